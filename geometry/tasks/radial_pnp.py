"""PnP with an unknown lens: pose, focal length and radial distortion of one view, from points known in 3D."""

from dataclasses import replace

import torch
from torch import Tensor

from geometry import se3
from geometry.alignment import Frame
from geometry.camera import distort
from geometry.checks import batched
from geometry.optim import Problem, Solution, argmin
from geometry.pose import pnp

__all__ = ["radial_pnp", "radial_pnp_problem", "radial_projection"]

HALF_ANGLES = (5, 10, 20, 35, 50)
"""Degrees from the principal point to the farthest pixel, for which the start is tried."""

State = tuple[Tensor, Tensor, Tensor]


def radial_projection(x: State, points3d: Tensor, principal_point: Tensor) -> Tensor:
    """Pixels (…,N,2) of points3d (…,N,3) by x: world_to_camera (…,4,4), focal length (…), k1 and k2 (…,2)."""
    world_to_camera, f, distortion = x
    p = se3.transform(world_to_camera, points3d)
    z = torch.where(p[..., 2:] == 0, 1.0, p[..., 2:])  # what lies there and counts for nothing must not be NaN
    return f[..., None, None] * distort(p[..., :2] / z, distortion) + principal_point[..., None, :]


def residual(x: State, points2d: Tensor, points3d: Tensor, principal_point: Tensor, weights: Tensor) -> Tensor:
    """(N,2): errors in px, times weights (N,); infinite where a point that counts lies behind the camera."""
    ahead = se3.transform(x[0], points3d)[:, 2:] > 0
    error = weights[:, None] * (radial_projection(x, points3d, principal_point) - points2d)
    return torch.where(ahead | (weights == 0)[:, None], error, torch.inf)


def retract(x: State, step: Tensor) -> State:
    """x moved by step (9,): the pose by six (`se3.retract`), then f together with the depth, k1 and k2."""
    world_to_camera, f, distortion = x
    # A view tells f / t_z far better than f: with both by one factor, the valley of the cost is a line along an axis.
    R, t, grown = world_to_camera[:3, :3], world_to_camera[:3, 3], step[6].exp()
    moved = se3.make(R, torch.cat([t[:2], grown * t[2:]]))
    return se3.retract(moved, step[:6]), f * grown, distortion + step[7:]


radial_pnp_problem = Problem(residual, dof=9, retract=retract, alike=(3,))
"""x (pose (4,4), f (), distortion (2,)), data points2d (N,2), points3d (N,3), principal_point (2,), weights (N,)."""


def radial_pnp(points2d: Tensor, points3d: Tensor, principal_point: Tensor, weights: Tensor | None = None) -> Solution:
    """Pose, focal length and radial distortion of a view of N >= 5 known points, of the least reprojection error.

    points2d (B,N,2) or (N,2), px; points3d (B,N,3) or (N,3), world; principal_point (B,2) or (2,), px, about which the
    lens is round, such as the middle of the image; weights (B,N) or (N,) multiply the errors. x is a tuple, each
    differentiable in all: world_to_camera (B,4,4), the focal length (B,) in px, distortion (B,2) = k1, k2, OpenCV's.
    What fails says so in `status`, as where focal length and distance cannot be told apart: of a plane seen straight
    on. Raises ValueError for other shapes.

    Minimises the reprojection error of Brown's radial lens (Zhang, TPAMI 2000, equations 11 and 14, of one view).
    Starts at the best of the `pnp` poses for some focal lengths, without distortion.
    """
    points2d, points3d, principal_point, weights = batched(
        5, points2d=(points2d, "N,2"), points3d=(points3d, "N,3"), principal_point=(principal_point, "2"),
        weights=(weights, "N"),
    )  # fmt: skip
    frame = Frame.amid(points3d, weights != 0)
    data = points2d, frame.points(points3d), principal_point, weights
    found = argmin(radial_pnp_problem, start, *data, max_steps=100)
    pose, f, distortion = found.x
    return replace(found, x=(frame.from_frame(pose), f, distortion))


def start(points2d: Tensor, points3d: Tensor, principal_point: Tensor, weights: Tensor) -> State:
    """The pose (B,4,4) and focal length (B,) of the least error without distortion (B,2), which is zero."""
    B, S = len(points2d), len(HALF_ANGLES)
    mask = weights != 0
    widest = torch.where(mask, (points2d - principal_point[:, None]).norm(dim=-1), 0).amax(-1)
    f = widest[:, None] / torch.deg2rad(points2d.new_tensor(HALF_ANGLES)).tan()
    f = torch.where(f > 0, f, 1.0).flatten()
    K = torch.diag_embed(torch.stack([f, f, torch.ones_like(f)], -1))
    K[:, :2, 2] = principal_point.repeat_interleave(S, 0)
    pixels, points, w, counts = (d.repeat_interleave(S, 0) for d in (points2d, points3d, weights, mask))
    found = pnp(pixels, points, K, weights=w, mask=counts)
    best = found.cost.nan_to_num(torch.inf).view(B, S).argmin(-1) + S * torch.arange(B, device=f.device)
    return found.x[best], f[best], f.new_zeros(B, 2)
