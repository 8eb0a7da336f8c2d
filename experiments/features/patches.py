"""Patches of tracks, laid into one frame, and aligned with each other by their greys.

A point's surface is taken to be a plane that faces the cameras that see it. Seen through this plane, as an affine map,
its patches differ by little, whatever the distance and the roll of the cameras. What is left is found by affine
alignment of each patch to the mean of its track's others (Lucas and Kanade 1981; Baker and Matthews 2004, IJCV 56;
of all views at once: Furukawa and Ponce 2009, IJCV 84).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import map_coordinates, spline_filter
from torch import Tensor
from torch.nn.functional import normalize

from experiments.features.tracked import Tracked
from geometry import se3

__all__ = ["SIDE", "Aligned", "align", "others_mean", "seen_by_planes"]

_REACH = 7
"""Units of the frame, about a pixel each, from the middle of a patch to its side."""
SIDE = 2 * _REACH + 1
"""Of a patch, in units."""
_WIDTH = 3.5
"""Standard deviation of the window in which patches are compared."""
_STEPS = 5
_FARTHEST = 1.0
"""An observation that moves farther than so many px is put back: it has lost its patch."""
_LIGHTLY = (1e-4, 1e-4, 2e-3, 2e-3, 2e-3, 2e-3, 1e-4, 1e-4)
"""How much is held against a shift, an affine change, a gain and an offset, beside the greys' variance."""


class Aligned(NamedTuple):
    """points2d (M,2) px after alignment; patches (M,SIDE,SIDE), of mean 0 and variance 1 in the window; jacobian
    (M,2,2), pixels by units of the patch; correlation (M,) with the mean of the others; shift (M,2) of the patch."""

    points2d: Tensor
    patches: Tensor
    jacobian: Tensor
    correlation: Tensor
    shift: Tensor


def seen_by_planes(tracked: Tracked) -> Tensor:
    """Pixels by units of the track's plane, (M,2,2): the plane through the point that faces the mean of its cameras.

    A unit is about a pixel, at the mean distance; the plane's axes are those of the track's first camera.
    """
    pose, X, camera, point = tracked.world_to_camera, tracked.points3d, tracked.camera, tracked.point
    towards = normalize(se3.centre(pose)[camera] - X[point], dim=-1)
    normal = normalize(torch.zeros_like(X).index_add(0, point, towards), dim=-1)
    first = torch.full((len(X),), len(pose) - 1).scatter_reduce(0, point, camera, "amin")
    x = pose[first, 0, :3]
    x = normalize(x - (x * normal).sum(-1, keepdim=True) * normal, dim=-1)
    p = se3.transform(pose[camera], X[point][:, None]).squeeze(1)
    z, f = p[:, 2, None, None], tracked.K[[0, 1], [0, 1]]
    depth = X.new_zeros(len(X)).index_add(0, point, p[:, 2]) / torch.bincount(point, minlength=len(X))
    axes = torch.stack([x, torch.linalg.cross(-normal, x)], -1) * (depth / f.mean())[:, None, None]
    moved = pose[camera, :3, :3] @ axes[point]
    return f[:, None] * (moved[:, :2] - p[:, :2, None] / z * moved[:, 2:]) / z


def others_mean(patches: Tensor, point: Tensor) -> Tensor:
    """For each patch (M,SIDE²) the mean of its track's other patches, standardised."""
    total = patches.new_zeros(int(point.max()) + 1, patches.shape[1]).index_add(0, point, patches)
    return _standardised(total[point] - patches)[0]


def align(tracked: Tracked) -> Aligned:
    """Move each observation so that the greys around it fit those around the track's others.

    The track as a whole stays where it is: what alignment cannot tell is left to SIFT.
    """
    point, w, J, pictures = tracked.point, _window(), seen_by_planes(tracked), _splines(tracked.pictures)
    g = torch.arange(-_REACH, _REACH + 1.0)
    u, v = (t.flatten() / _REACH for t in torch.meshgrid(g, g, indexing="xy"))
    count = torch.bincount(point)
    share = (1 - 1 / count)[point, None]  # the others move as well
    A, shift = torch.eye(2).to(J).repeat(len(J), 1, 1), torch.zeros_like(tracked.points2d)
    for _ in range(_STEPS):
        raw = _sampled(pictures, tracked.camera, tracked.points2d + _times(J, shift), J @ A)
        patches, deviation = _standardised(raw.flatten(1))
        du, dv = (d.flatten(1) / deviation for d in _slopes(raw))
        B = torch.stack([du, dv, du * u, du * v, dv * u, dv * v, patches, torch.ones_like(patches)], -1)
        weighted = (B * w[:, None]).mT
        H = weighted @ B + torch.diag(torch.tensor(_LIGHTLY))
        gradient = weighted @ (patches - others_mean(patches, point))[..., None]
        step = -share * torch.linalg.solve(H, gradient).squeeze(-1).double()
        forward = step[:, :2] * (1 / step[:, :2].norm(dim=-1, keepdim=True)).clamp(max=1)
        shift = shift + _times(A, forward)
        A = A + A @ step[:, 2:6].view(-1, 2, 2) / _REACH
        mean = shift.new_zeros(len(count), 2).index_add(0, point, shift) / count[:, None]
        shift = shift - mean[point]
    lost = _times(J, shift).norm(dim=-1) > _FARTHEST
    shift = torch.where(lost[:, None], 0, shift)
    points2d, jacobian = tracked.points2d + _times(J, shift), torch.where(lost[:, None, None], J, J @ A)
    patches = _standardised(_sampled(pictures, tracked.camera, points2d, jacobian).flatten(1))[0]
    correlation = (patches * others_mean(patches, point) * w).sum(1)
    return Aligned(points2d, patches.view(-1, SIDE, SIDE), jacobian, correlation, shift)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None]).squeeze(-1)


def _window() -> Tensor:
    """Weights (SIDE²,) of a patch's pixels, of sum one."""
    g = torch.exp(-torch.arange(-_REACH, _REACH + 1.0).square() / (2 * _WIDTH**2))
    w = (g[:, None] * g).flatten()
    return w / w.sum()


def _standardised(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (M,SIDE²) less their mean and over their deviation (M,1), both in the window; and that."""
    w = _window()
    patches = patches - (patches * w).sum(1, keepdim=True)
    deviation = ((patches.square() * w).sum(1, keepdim=True) + 1e-6).sqrt()
    return patches / deviation, deviation


def _slopes(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of patches (M,n,n) to the right and down, zero at the sides."""
    right, down = torch.zeros_like(patches), torch.zeros_like(patches)
    right[:, :, 1:-1] = (patches[:, :, 2:] - patches[:, :, :-2]) / 2
    down[:, 1:-1] = (patches[:, 2:] - patches[:, :-2]) / 2
    return right, down


def _sampled(pictures: Sequence[np.ndarray], camera: Tensor, points2d: Tensor, jacobian: Tensor) -> Tensor:
    """The greys on the grid of each patch (M,SIDE,SIDE), float32, of pictures by their splines."""
    g = torch.arange(-_REACH, _REACH + 1, dtype=points2d.dtype)
    grid = torch.stack(torch.meshgrid(g, g, indexing="xy"), -1).view(-1, 2)
    at = (points2d[:, None] + grid @ jacobian.mT).numpy()
    out = np.empty(at.shape[:2], np.float32)
    for v, picture in enumerate(pictures):
        here = (camera == v).numpy()
        out[here] = map_coordinates(picture, at[here].transpose(2, 0, 1)[::-1], prefilter=False, mode="nearest")
    return torch.from_numpy(out).view(-1, SIDE, SIDE)


def _splines(pictures: Tensor) -> list[np.ndarray]:
    """Cubic splines through the greys. Cubic convolution as torch has it (-0.75) moves what it interpolates by up to a
    tenth of a pixel, as it does not leave a ramp a ramp."""
    return [spline_filter(picture.numpy().astype(np.float64), mode="nearest") for picture in pictures]
