"""Calibration of one camera or of several that are mounted together, with intrinsics by name free or fixed.

Each camera starts by itself (`geometry.reconstruction.calibrate`, from nothing but the size of its image); how they are
mounted, from the frames that two of them see; then all intrinsics, the mounting and the target's poses are one bundle
whose points are those of the target (`geometry.bundle`). Of two cameras that is what stereo calibrations minimise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.bundle_adjustment import BundleSolution, bundle
from geometry.camera import Model, project_camera_frame
from geometry.checks import (
    boolean,
    check_tensors,
    check_tensors_or_none,
    leading,
    one_of,
    positive,
    shaped,
    values,
    whole,
)
from geometry.lenses import LENSES, check_distortion
from geometry.optim import Solution
from geometry.pose import pnp
from geometry.reconstruction.calibration import CalibrationSolution, calibrate
from geometry.reconstruction.calibration_problem import free_intrinsics, start_intrinsics
from geometry.robust import Kernel, check_kernel

__all__ = ["JointCalibration", "calibrate_rig"]

_FOCAL = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0)
"""Focal lengths in parts of the longer side to begin from, where a camera by itself does not tell its own."""


class _Options(NamedTuple):
    """What every camera is calibrated with; free: names, None for all."""

    free: tuple[str, ...] | None
    model: Model
    kernel: Kernel | None
    max_steps: int

    def names(self, coefficients: int) -> tuple[str, ...]:
        """Of the free intrinsics."""
        every = ("fx", "fy", "cx", "cy", *LENSES[self.model].names[:coefficients])
        return every if self.free is None else self.free


class _Camera(NamedTuple):
    """K (3,3), distortion (k,), and the target's pose in each frame (F,4,4), NaN where it is not determined; the camera
    calibrated by itself with all intrinsics free."""

    K: Tensor
    distortion: Tensor
    poses: Tensor
    alone: CalibrationSolution


@dataclass(frozen=True)
class JointCalibration(Solution):
    """A `Solution` of batch 1 with x = (K (S,3,3), distortion (S,k), sensor_from_rig (S,4,4), world_to_rig (F,4,4)).

    world_to_rig: the target's pose in each frame, in the first camera's coordinates; NaN where left_out (F,) bool: no
    camera sees enough of the target to tell. residual (S,F,N,2) px: projected less measured, zero where nothing is
    seen. names: of the free intrinsics. bundle: its solution, and with it the covariance. alone: each camera by itself,
    with all intrinsics free.

    >>> found = calibrate_rig(project(board, views, K)[None], board, [(640, 480)], distortion=0, free=("f",))
    >>> found.names, found.residual.shape
    (('f',), torch.Size([1, 6, 20, 2]))
    """

    left_out: Tensor
    residual: Tensor
    names: tuple[str, ...]
    bundle: BundleSolution
    alone: tuple[CalibrationSolution, ...]

    def deviations(self) -> dict[str, Tensor]:
        """Standard deviations (S,) of the free intrinsics, by name; those of the first camera's mounting are none."""
        layout = self.bundle.task.problem.layout
        variances = self.bundle.covariance().cameras.diagonal(dim1=1, dim2=2)
        index = self.bundle.task.problem.intrinsics_index
        found = variances.new_full((len(self.x[0]), len(self.names)), torch.nan)
        seen = torch.bincount(layout.view, minlength=len(index)) > 0
        found[index[seen]] = variances[seen, 6 : 6 + len(self.names)]
        return dict(zip(self.names, found.sqrt().unbind(1), strict=True))


@torch.no_grad()
def calibrate_rig(
    points2d: Tensor,
    points3d: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    *,
    mask: Tensor | None = None,
    distortion: int = 5,
    free: Sequence[str] | None = None,
    K: Tensor | None = None,
    coefficients: Tensor | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    max_steps: int = 100,
) -> JointCalibration:
    """Calibrate S cameras, and how they are mounted, from F frames in which some of them see a known target.

    points2d (S,F,N,2) px, points3d (N,3), image_sizes: (width, height) px of each camera; mask (S,F,N) bool, False
    where a mark is not seen: a camera may miss any frame, if frames that two cameras see connect them all. distortion:
    how many coefficients of `model` there are. free: names of the intrinsics that are sought, "f" (fx and fy in their
    given ratio) or "fx", "fy", and "cx", "cy", "skew", "k1", ...; None: all but skew. What is not has the value of K
    (S,3,3) and coefficients (S,k), or where these are None that of a camera with square pixels, its principal point in
    the middle of the image and no distortion; nothing else of these is looked at. kernel: a robust kernel, for wrong
    marks.

    Returns a `JointCalibration`. status: that of the bundle; CONVERGED is a strict minimum of the sum of all
    reprojection errors. Solved in float64, without a gradient (`geometry.bundle`, begun at what is found, has it).
    Raises ValueError for shapes that do not fit, cameras that no frames connect, and as `calibrate` and `bundle` do.

    >>> seen = project(board, views, K)[None]  # of one camera
    >>> found = calibrate_rig(seen, board, [(640, 480)], distortion=0, free=("f", "cx", "cy"))
    >>> found.x[0][0, 0, 0].round(decimals=3)
    tensor(800.)
    """
    check_tensors(points2d=points2d, points3d=points3d)
    check_tensors_or_none(K=K, coefficients=coefficients)
    one_of("model", model, tuple(LENSES))
    check_kernel(kernel)
    whole("max_steps", max_steps, 1)
    whole("distortion", distortion, 0)
    check_distortion(points2d.new_zeros(distortion), model)
    options = _Options(_names(free, model, distortion), model, kernel, max_steps)
    sizes = _sizes(image_sizes)
    if points2d.ndim != 4 or len(points2d) != len(sizes) or len(points2d) == 0:
        raise ValueError(
            f"points2d must have shape (S,F,N,2) with S image_sizes, got {tuple(points2d.shape)} and {len(sizes)}"
        )
    mask = torch.ones_like(points2d[..., 0], dtype=torch.bool) if mask is None else mask
    boolean("mask", mask)
    shaped(points2d=(points2d, "S,F,N,2"), points3d=(points3d, "N,3"))
    S, F, N, _ = points2d.shape
    mask = mask[None, None] if mask.ndim == 1 else mask
    mask = leading("mask", mask, S, (F, N), (1, N)).expand(S, F, N)
    points, target = torch.where(mask[..., None], points2d.double(), 0.0), points3d.double()
    given = [free_intrinsics(start_intrinsics(size, distortion, model, points)) for size in sizes]
    K = torch.stack([one for one, _ in given]) if K is None else K.double()
    coefficients = torch.stack([one for _, one in given]) if coefficients is None else coefficients.double()
    K = leading("K", K, S, (3, 3)).expand(S, 3, 3)
    coefficients = leading("coefficients", coefficients, S, (distortion,)).expand(S, distortion)
    values(K=(K, "camera"), coefficients=(coefficients, "finite"))
    starts = [_alone(points[s], target, sizes[s], mask[s], (K[s], coefficients[s]), options) for s in range(S)]
    lenses = torch.stack([one.K for one in starts]), torch.stack([one.distortion for one in starts])
    poses = torch.stack([one.poses for one in starts])
    sensors = _mounting(poses, target)
    # of each frame the pose that one of the cameras has, by the errors that all have with it
    rigs = se3.inverse(sensors)[:, None] @ poses
    each = [_residual((*lenses, sensors, rig), points, target, mask, model) for rig in rigs]
    errors = [residual.norm(dim=-1).sum((0, 2)) for residual in each]
    rigs = rigs[torch.stack(errors).nan_to_num(torch.inf).argmin(0), torch.arange(F, device=mask.device)]
    left_out = ~torch.isfinite(rigs).all((1, 2))
    mask = mask & ~left_out[:, None]
    view, point = mask.flatten(0, 1).nonzero().unbind(1)
    sensor_index, rig_index = torch.cartesian_prod(*(torch.arange(n, device=mask.device) for n in (S, F))).unbind(1)
    names = options.names(distortion)
    rig: dict[str, Any] = {}
    if S > 1:
        rig = {"rig_index": rig_index, "sensor_index": sensor_index, "sensor_from_rig": sensors}
    found = bundle(
        points.flatten(0, 1)[view, point], view, point,
        torch.where(left_out[:, None, None], torch.eye(4).to(rigs), rigs), target, *lenses,
        intrinsics_index=sensor_index, free=("poses", *(["sensors"] if rig else []), *names), model=model,
        kernel=kernel, max_steps=max_steps, **rig,
    )  # fmt: skip
    rigs = torch.where(left_out[:, None, None], torch.nan, found.x.world_to_camera)
    mounted = found.x.sensor_from_rig
    x = found.x.K, found.x.distortion, sensors if mounted is None else mounted, rigs
    residual, alone = _residual(x, points, target, mask, model), tuple(start.alone for start in starts)
    return JointCalibration(x, found.cost, found.status, found.steps, left_out, residual, names, found, alone)


def _sizes(image_sizes: Any) -> list[tuple[int, int]]:
    """Checked."""
    try:
        sizes = [(width, height) for width, height in image_sizes]
    except (TypeError, ValueError):
        raise ValueError(f"image_sizes must hold (width, height) in px of each camera, got {image_sizes!r}") from None
    for length in (length for size in sizes for length in size):
        positive("image_sizes", length)
    return sizes


def _names(free: Any, model: Model, coefficients: int) -> tuple[str, ...] | None:
    """Checked."""
    known = ("f", "fx", "fy", "cx", "cy", "skew", *LENSES[model].names[:coefficients])
    if free is None:
        return None
    if isinstance(free, str) or not isinstance(free, Iterable) or not set(free) <= set(known):
        raise ValueError(f"free must hold names among {known} (distortion has {coefficients}), got {free!r}")
    return tuple(free)


def _alone(
    points2d: Tensor, points3d: Tensor, size: tuple[int, int], mask: Tensor, given: tuple[Tensor, Tensor],
    options: _Options,
) -> _Camera:  # fmt: skip
    """Where a camera by itself begins: points2d (F,N,2), points3d (N,3), mask (F,N), given K (3,3), distortion (k,)."""
    free, model, kernel, max_steps = options
    k = len(given[1])
    one = calibrate(points2d, points3d, size, distortion=k, model=model, mask=mask, kernel=kernel, max_steps=max_steps)
    found, poses = (one.x[0][0], one.x[1][0]), one.x[2][0]
    use = torch.isfinite(poses).all((1, 2))
    if (free is None and one.converged.all()) or not use.any():
        K, bend = found if use.any() else given
        return _Camera(K, bend, poses, one)
    # with what is held where it is: the focal length that suits the views best, by itself or among some
    lenses, names = [_held(given, found, options.names(k), model)], options.names(k)
    if {"f", "fx", "fy"} & set(names):
        for part in _FOCAL:
            K = given[0].clone()
            K[:2, :2] *= part * max(size) / K[0, 0]
            lenses.append(_held(given, (K, given[1]), names, model))
    best, least = _Camera(*given, poses, one), torch.inf
    for K, bend in lenses:
        if torch.isfinite(K).all() and torch.isfinite(bend).all() and K[0, 0] > 0 and K[1, 1] > 0:
            seen = points2d[use], points3d, K
            tried = pnp(*seen, distortion=bend, mask=mask[use], model=model, kernel=kernel)
            cost = tried.cost.nan_to_num(torch.inf).sum().item()
            if cost < least:
                best, least = _Camera(K, bend, poses.index_copy(0, use.nonzero()[:, 0], tried.x), one), cost
    return best


def _held(
    given: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], names: tuple[str, ...], model: Model
) -> tuple[Tensor, Tensor]:
    """The intrinsics that were found, but for what is not free: that is as it was given."""
    (K, bend), (free, bent) = given, found
    K, coefficients = K.clone(), LENSES[model].names[: len(bend)]
    if "f" in names:
        K[:2, :2] *= free[0, 0] / K[0, 0]
    for name, place in {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}.items():
        if name in names:
            K[place] = free[place]
    loose = torch.tensor([name in names for name in coefficients], dtype=torch.bool, device=K.device)
    return K, torch.where(loose, bent, bend)


def _mounting(poses: Tensor, points3d: Tensor) -> Tensor:
    """sensor_from_rig (S,4,4) from the target's poses (S,F,4,4) in each camera, NaN where unknown.

    From the first camera on, the one that shares most frames with those that are known; of the relative poses that
    these frames give, that with the least sum of distances between marks over all of them.
    """
    S, there = len(poses), torch.isfinite(poses).all((2, 3))
    sensors, known = torch.full_like(poses[:, 0], torch.nan), [0]
    sensors[0] = torch.eye(4).to(poses)
    while len(known) < S:
        pairs = [(int((there[a] & there[b]).sum()), a, b) for a in known for b in range(S) if b not in known]
        count, a, b = max(pairs, key=lambda pair: pair[0])
        if count == 0:
            apart = [s for s in range(S) if s not in known]
            raise ValueError(f"mask: frames that connect all cameras wanted, none do cameras {known} with {apart}")
        both = there[a] & there[b]
        relative = poses[b, both] @ se3.inverse(poses[a, both])
        one, two = (se3.transform(poses[s, both], points3d) for s in (a, b))
        moved = se3.transform(relative[:, None], one)
        distance = (moved - two).norm(dim=-1).mean(-1) / two.norm(dim=-1).mean(-1)
        sensors[b] = relative[distance.sum(1).argmin()] @ sensors[a]
        known.append(b)
    return sensors


def _residual(
    x: tuple[Tensor, Tensor, Tensor, Tensor], points2d: Tensor, points3d: Tensor, mask: Tensor, model: Model
) -> Tensor:
    """Projected less measured (S,F,N,2) px, zero where masked, of x as a `JointCalibration` has it."""
    K, distortion, sensors, rigs = x
    p = se3.transform(sensors[:, None] @ rigs, points3d)
    p = torch.where(mask[..., None], p, torch.ones_like(p))
    r = project_camera_frame(p, K[:, None], distortion[:, None], model=model) - points2d
    return torch.where(mask[..., None], r, 0.0)
