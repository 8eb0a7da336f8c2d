"""How a CUDA device runs the operators of `geometry.pose.operator`: a problem a thread, and nothing waits for it.

Each takes the arguments of its operator, which says what they mean. A launch or two do the work, so that a call can be
captured in a CUDA graph; what the CPU raises ValueError for when it sees the values ends INFEASIBLE here.
"""

from typing import Any

import torch
from torch import Tensor

from geometry.camera import Model
from geometry.compiled.constants import ROBUST
from geometry.compiled.launch import grid
from geometry.optim import ADJOINT, FEIGNED, margin

__all__ = ["adjoint", "search", "shared", "solve", "workspace"]

_WARP = 32  # threads
# Problems that fill a device with a thread each: 132 multiprocessors of an H100, 256 threads of 255 registers each.
# By arithmetic, not measured: no device was at hand.
_MANY = 132 * 256


def solve(*inputs: Any) -> tuple[Tensor, ...]:
    """The operator `pnp`."""
    *data, init, model, robust, scale, alpha, max_steps, fewest, _exact = inputs
    given = _given(data, model, robust, scale, alpha)
    out = _empty(data[0])
    together = shared(data[0])
    rule, space = _rule(data[0], together), workspace(data[0], 7, together)
    _run("solve", (*given, rule, (max_steps, fewest), init.detach().contiguous(), space, out), together)
    return out


def search(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `pnp_search`."""
    *data, model, robust, scale, alpha, max_steps = inputs
    given = _given(data, model, robust, scale, alpha)
    first, second, ratios = _empty(data[0]), _empty(data[0]), data[0].new_empty(len(data[0]))
    together = shared(data[0])
    rule, space = _rule(data[0], together), workspace(data[0], 11, together)
    _run("search", (*given, rule, (max_steps, 4), space, first, second, ratios), together)
    return first[0], second[0], ratios


def adjoint(*inputs: Any) -> tuple[Tensor, ...]:
    """The operator `pnp_adjoint`."""
    *data, poses, covectors, statuses, model, robust, scale, alpha, exact, wanted = inputs
    B, N, _ = data[0].shape
    shapes = ((N, 2), (N, 3), (3, 3), data[3].shape[1:], data[4].shape[1:])
    # threads do not share a sum: what is shared has a row for each of them, added up at the end
    out = tuple(
        data[0].new_empty([0] * (len(shape) + 1)) if not want
        else (data[0].new_zeros if i in (2, 3) or (i > 0 and len(data[i]) == 1) else data[0].new_empty)(B, *shape)
        for i, (shape, want) in enumerate(zip(shapes, wanted, strict=True))
    )  # fmt: skip
    at = tuple(t.detach().contiguous() for t in (poses, statuses, covectors))
    together = shared(data[0])
    least = ADJOINT * _rule(data[0], together)[0]
    given = _given(data, model, robust, scale, alpha)
    _run("adjoint", (*given, least, exact, at, workspace(data[0], 7, together), out), together)
    return tuple(
        g.sum(0, keepdim=True) if want and len(d) < len(g) else g for g, d, want in zip(out, data, wanted, strict=False)
    )


def _run(name: str, arguments: tuple[Any, ...], shared: bool) -> None:
    points2d = arguments[0][0]
    if len(points2d):
        grid("warp" if shared else "cuda").run(name, len(points2d), arguments, points2d.device)


def shared(points2d: Tensor) -> bool:
    """Whether a warp shares every problem: where there are too few to fill a device, and points for all threads."""
    B, N, _ = points2d.shape
    return B < _MANY and N >= _WARP


def _given(data: list[Tensor], model: Model, robust: str, scale: float, alpha: float) -> tuple[Any, Any]:
    """The arguments that all kernels begin with. data: points2d, points3d, K, distortion, weights, mask."""
    *numbers, mask = (d.detach().contiguous() for d in data)
    return (*numbers, mask.view(torch.uint8), int(model == "fisheye")), (ROBUST[robust], scale * scale, alpha)


def _empty(points2d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Poses (B,4,4), costs (B,), statuses (B,) int8, accepted steps (B,) int32."""
    B = len(points2d)
    return (
        points2d.new_empty(B, 4, 4), points2d.new_empty(B),
        points2d.new_empty(B, dtype=torch.int8), points2d.new_empty(B, dtype=torch.int32),
    )  # fmt: skip


def workspace(points2d: Tensor, numbers: int, shared: bool = False) -> Tensor:
    """So many numbers of every point, in a column for every thread: neighbours read what lies together."""
    B, N, _ = points2d.shape
    return points2d.new_empty(-(-N // _WARP) * numbers, B * _WARP) if shared else points2d.new_empty(N * numbers, B)


def _rule(points2d: Tensor, shared: bool = False) -> tuple[float, float]:
    """What is singular (`geometry.compiled.pose.descent.Rule`): sums run from point to point, or to the 32nd next."""
    points = points2d.shape[1]
    return margin(points2d.dtype, 6, points / _WARP if shared else points), FEIGNED
