"""What PnP is given: its arguments checked, masked and centred, each with its batch dimension."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geometry.alignment import Frame
from geometry.camera import Model, Rays, rays_of
from geometry.checks import (
    boolean,
    check_tensors,
    check_tensors_or_none,
    intercepted,
    leading,
    misshapen,
    one_of,
    spread,
    unlike,
    values,
    whole,
)
from geometry.lenses import LENSES, check_distortion
from geometry.optim import Gradient, Problem
from geometry.pose.problem import PoseModel, pnp_problem
from geometry.robust import Kernel, check_kernel

__all__ = [
    "Options",
    "PnPData",
    "check_like",
    "check_options",
    "check_pose",
    "observed",
    "precision",
    "prepare",
    "taken",
    "without_masked",
]


class Options(NamedTuple):
    """What is to be minimised and how, beside the data: arguments of `geometry.pnp`, and `scale` of `rig_pnp`."""

    model: PoseModel = "radtan"
    kernel: Kernel | None = None
    gradient: Gradient = "exact"
    max_steps: int = 50
    scale: bool = False

    @property
    def lens(self) -> Model:
        """The camera: that of bearings is a fisheye without coefficients, which measures angles."""
        return "fisheye" if self.model == "ray" else self.model

    @property
    def problem(self) -> Problem:
        """What is minimised."""
        return pnp_problem(self.model, self.kernel, self.scale)


class PnPData(NamedTuple):
    """The tensors of `pnp_problem`, in its order.

    points2d (B,N,2), points3d (B|1,N,3), K (B|1,3,3), distortion (B|1,k), weights (B|1,N,2), or (1,1,1) for ones, mask
    (B|1,N), or (1,1) for True. `prepared` gives all of them their full size.
    """

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    weights: Tensor
    mask: Tensor

    def to(self, dtype: torch.dtype) -> "PnPData":
        """The same in another precision."""
        if {d.dtype for d in self[:5]} == {dtype}:
            return self
        points2d, points3d, K, distortion, weights = (d.to(dtype) for d in self[:5])
        return PnPData(points2d, points3d, K, distortion, weights, self.mask)

    def detached(self) -> "PnPData":
        """The same without a graph."""
        return PnPData(*(d.detach() for d in self))

    def prepared(self, init: Tensor | None = None) -> "PnPData":
        """`masked`, once it is certain that all numbers are finite, K a camera's and init a pose, or ValueError."""
        data = self.masked()
        values(
            " where mask is True", points2d=(data.points2d, "finite"), points3d=(data.points3d, "finite"),
            K=(self.K, "camera"), distortion=(self.distortion, "finite"), weights=(data.weights, "finite"),
            init=(init, "pose"),
        )  # fmt: skip
        return data

    def masked(self) -> "PnPData":
        """Everything of full size, zeros for what is masked, and mask False where the weights are zero as well.

        A masked entry may hold anything, NaN included: it is replaced before it meets a derivative. A point of weight
        zero is as if absent, also behind the camera.
        """
        B = len(self.points2d)
        points2d, points3d, weights, mask = without_masked(self.points2d, self.points3d, self.weights, self.mask)
        return PnPData(points2d, points3d, self.K.expand(B, 3, 3), self.distortion.expand(B, -1), weights, mask)

    def centred(self, mask: Tensor | None = None, scaled: bool = False) -> tuple["PnPData", Frame]:
        """Prepared data with points3d about the middle of those visible (or of `mask`), and that frame.

        About a far origin, rotation and translation can hardly be told apart. scaled: in units of about the extent of
        the points, too, so that a step says by its size whether it matters.
        """
        mask = self.mask if mask is None else mask
        frame = Frame.amid(self.points3d, mask, scaled)
        return self._replace(points3d=frame.points(self.points3d), mask=mask), frame

    def at(self, index: Tensor) -> "PnPData":
        """Some of the points, those of index (B,M)."""
        points2d, points3d, weights = (taken(d, index) for d in (self.points2d, self.points3d, self.weights))
        return self._replace(points2d=points2d, points3d=points3d, weights=weights, mask=taken(self.mask, index))

    def information(self) -> Tensor:
        """About the inverse square (B,N) of each ray's deviation, up to a common factor."""
        return self.weights.square().mean(-1)

    def rays(self, model: Model, max_steps: int = 16) -> Rays:
        """Directions of the pixels in the frame of the camera, and which may be trusted."""
        return rays_of(self.points2d, self.K, self.distortion, model, max_steps)


def without_masked(
    points2d: Tensor, points3d: Tensor, weights: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of full size, as `PnPData.masked` has them."""
    B, N, _ = points2d.shape
    mask = mask.expand(B, N)
    seen = mask[..., None]
    points2d, points3d = (torch.where(seen, d, 0.0) for d in (points2d, points3d))
    weights = torch.where(seen, weights.expand(B, N, 2), 0.0)
    return points2d, points3d, weights, mask & (weights != 0).any(-1)


def taken(values: Tensor, index: Tensor) -> Tensor:
    """Values (B,N,…) of the points of index (B,M): (B,M,…)."""
    index = index.view(*index.shape, *[1] * (values.ndim - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def check_options(
    model: PoseModel,
    kernel: Kernel | None,
    gradient: Gradient = "exact",
    max_steps: int = 1,
    *,
    bearings: bool = False,
) -> None:
    """Raise ValueError for options that there are not. bearings: whether "ray" is a model."""
    one_of("model", model, (*LENSES, "ray") if bearings else LENSES)
    check_kernel(kernel)
    one_of("gradient", gradient, ("exact", "gauss_newton", "unrolled"))
    whole("max_steps", max_steps, 1)


def observed(
    points2d: Tensor,
    points3d: Any,
    weights: Any,
    mask: Any,
    *others: tuple[Any, int],
    width: int = 2,
) -> Tensor:
    """points2d (B,N,width), B being what any argument says; others: the rest, and how many dimensions each has of one.

    Weights (N,2) of one problem are not those (B,N) of many: none has but two points. Raises ValueError for points2d of
    another shape, or that are no tensor.
    """
    check_tensors(points2d=points2d)
    if points2d.ndim not in (2, 3) or points2d.shape[-1] != width:
        bearings = ', bearings, with model="ray"' if width == 3 else ""
        wanted = f"(B,N,{width}) or (N,{width}){bearings}"
        raise misshapen("points2d", points2d, wanted, lambda shape: len(shape) in (2, 3) and shape[-1] == width)
    one = 1
    if isinstance(weights, Tensor) and weights.ndim > 1 and weights.shape[-1] == 2:
        one = 3 if weights.ndim > 2 and weights.shape[-2] == 2 else 2
    return spread(points2d, 2, (points3d, 2), (weights, one), (mask, 1), *others)


def precision(value: Tensor) -> torch.dtype:
    """The dtype of an argument, 16-bit floats counted as float32: no pose could be told in their three digits."""
    return torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype


def prepare(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor | None,
    weights: Tensor | None,
    mask: Tensor | None,
    *,
    init: Tensor | None = None,
    model: Model = "radtan",
    fewest: int = 4,
) -> PnPData:
    """Check shapes, dtypes and devices, and give every argument its batch dimension, of size 1 where shared.

    points2d (B,N,2) comes from `observed`. fewest: how many points are wanted without init; with it, three.
    Nothing here looks at values or moves data. Weights become (B|1,N,2), or (1,1,1) where there are none, mask (1,1).
    """
    check_tensors(points3d=points3d, K=K)
    check_tensors_or_none(distortion=distortion, weights=weights, init=init)
    B, N, _ = points2d.shape
    points3d, K = leading("points3d", points3d, B, (N, 3)), leading("K", K, B, (3, 3))
    nothing = _nothing(points2d, K.dtype)
    if distortion is None:
        distortion = nothing.distortion
    elif distortion.ndim not in (1, 2) or (distortion.ndim == 2 and distortion.shape[0] not in (1, B)):
        raise ValueError(f"distortion must have shape ({B}|1,k) or (k,), got {tuple(distortion.shape)}")
    check_distortion(distortion, model)
    distortion = distortion if distortion.ndim == 2 else distortion[None]
    if weights is None:
        weights = nothing.weights
    else:
        weights = leading("weights", weights, B, (N,), (N, 2))
        weights = weights[..., None].expand(-1, -1, 2) if weights.ndim == 2 else weights
    if mask is None:
        mask = nothing.mask
    else:
        boolean("mask", mask)
        mask = leading("mask", mask, B, (N,))
        if mask.device != points2d.device:
            raise ValueError(f"mask must be on the device of points2d ({points2d.device}), got {mask.device}")
    for name, value in (("points3d", points3d), ("K", K), ("distortion", distortion), ("weights", weights)):
        check_like(name, value, points2d)
    if init is not None:
        check_like("init", init, points2d)
        leading("init", init, B, (4, 4))
    needed = fewest if init is None else 3
    if needed > N:
        start = "" if init is None else " with init"
        raise ValueError(f"points2d must hold at least {needed} points{start}, got N={N}")
    return PnPData(points2d, points3d, K, distortion, weights, mask)


class _Nothing(NamedTuple):
    """What stands for an argument that is not given."""

    distortion: Tensor
    weights: Tensor
    mask: Tensor


def _nothing(points2d: Tensor, dtype: torch.dtype) -> _Nothing:
    return _made(points2d, dtype) if intercepted((points2d,)) else _kept(dtype)


def _made(like: Tensor, dtype: torch.dtype) -> _Nothing:
    mask = torch.ones(1, 1, dtype=torch.bool, device=like.device)
    return _Nothing(like.new_empty(1, 0, dtype=dtype), like.new_ones(1, 1, 1, dtype=dtype), mask)


@cache
def _kept(dtype: torch.dtype) -> _Nothing:
    """Made once, as three operations of torch take a tenth of what a pose does; nobody is given them to change."""
    with torch.inference_mode(False):  # or no graph could hold them, later
        return _made(torch.empty(0, device="cpu"), dtype)


def check_like(name: str, value: Tensor, points2d: Tensor) -> None:
    if value.device != points2d.device or (value.dtype != points2d.dtype and precision(value) != precision(points2d)):
        raise unlike(name, value, "points2d", points2d)


def check_pose(name: str, pose: Tensor, points2d: Tensor) -> Tensor:
    """The pose with batch B, in its own precision, after ValueErrors about its shape, dtype, device and values."""
    check_tensors(**{name: pose})
    B = len(points2d)
    pose = leading(name, pose, B, (4, 4))
    check_like(name, pose, points2d)
    values(**{name: (pose, "pose")})
    return pose.expand(B, 4, 4)
