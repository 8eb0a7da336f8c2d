"""PnP by compiled kernels on the CPU: the back end of `geometry.pnp` for what they know.

The contract of a back end, which `geometry.pose.tensors` fulfils as well:

prepared(data, init)                 the data as the other two take them
search(data, options)                the global minimum (B,4,4), the second best (B,4,4), the ratio (B,) of their costs
solve(data, init, options, fewest)   the minima next to init (B|1,4,4), differentiable in the data: poses (B,4,4),
                                     costs (B,), `Status` (B,) int8, accepted steps (B,) int32; TOO_FEW where fewer
                                     than `fewest` points are visible

Poses are world_to_camera; `second` is a copy of the best, and the ratio 0, where no other minimum was found. Both raise
ValueError naming an argument that is not finite where the mask is True, a K that is none, an init that is no pose; the
kernels do not see the last two within a graph of torch.compile.
"""

from torch import Tensor

from geometry.camera import Model
from geometry.pose import operator
from geometry.pose.data import Options, PnPData
from geometry.robust import RobustKernel

__all__ = ["MODELS", "prepared", "search", "solve"]

MODELS = ("radtan", "fisheye")
"""Lenses that the kernels know."""


def prepared(data: PnPData, init: Tensor | None) -> PnPData:
    """The data as they are: the kernels expand, mask, see what is wrong with them, and centre while they read."""
    return data


def search(data: PnPData, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """See the module."""
    best, second, ratio = operator.search(*data, *_how(options), options.max_steps)
    return best, second, ratio


def solve(data: PnPData, init: Tensor, options: Options, fewest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See the module."""
    exact = options.gradient == "exact"
    pose, cost, status, steps = operator.solve(*data, init, *_how(options), options.max_steps, fewest, exact)
    return pose, cost, status, steps


def _how(options: Options) -> tuple[Model, str, float, float]:
    """The lens; name, scale and shape of the robust kernel."""
    kernel = options.kernel
    if kernel is None:
        return options.lens, "none", 1.0, 1.0
    assert isinstance(kernel, RobustKernel)
    return options.lens, kernel.name, kernel.scale, kernel.alpha
