"""Triangulation: the point with the least reprojection error in views of known cameras."""

from dataclasses import replace

import torch
from torch import Tensor

from geometry.alignment import Frame
from geometry.camera import in_front, project_camera_frame
from geometry.checks import batched
from geometry.optim import Problem, Solution, argmin
from geometry.se3 import centre, transform

__all__ = ["triangulation", "triangulation_problem"]


def residual(point: Tensor, points2d: Tensor, world_to_camera: Tensor, K: Tensor, weights: Tensor) -> Tensor:
    """(N,2): errors in px, times weights (N,); infinite behind a camera that counts.

    Infinite as well within a camera, where rays from one place meet: nearer than sqrt(eps) of its distance from the
    origin, rounding of the centres would be taken for parallax.
    """
    p = transform(world_to_camera, point.expand(len(world_to_camera), 1, 3))
    apart = p.norm(dim=-1) > torch.finfo(p.dtype).eps ** 0.5 * world_to_camera[:, None, :3, 3].norm(dim=-1)
    error = weights[:, None] * (project_camera_frame(p, K).squeeze(1) - points2d)
    return torch.where((in_front(p) & apart) | (weights == 0)[:, None], error, torch.inf)


triangulation_problem = Problem(residual, dof=3, alike=(3,))
"""x (3,) in the world, data points2d (N,2), world_to_camera (N,4,4), K (N,3,3), weights (N,)."""


def triangulation(points2d: Tensor, world_to_camera: Tensor, K: Tensor, weights: Tensor | None = None) -> Solution:
    """The point of the least reprojection error in N >= 2 views.

    points2d (B,N,2) or (N,2), px: where each view shows it; world_to_camera (B,N,4,4) or (N,4,4), K (B,N,3,3) or
    (N,3,3): the views' cameras, without distortion; weights (B,N) or (N,) multiply their errors. x (B,3) in the world,
    differentiable in all. What fails says so in `status`: SINGULAR or INFEASIBLE where the rays are parallel or lie
    in one line, INFEASIBLE where the start lies behind a camera. Raises ValueError for other shapes.

    Starts at the linear triangulation and minimises the reprojection error (Hartley and Sturm, "Triangulation", CVIU
    1997, sections 5.1 and 3; the start is invariant to affine maps of the world).
    """
    points2d, world_to_camera, K, weights = batched(
        2, points2d=(points2d, "N,2"), world_to_camera=(world_to_camera, "N,4,4", "pose"), K=(K, "N,3,3", "camera"),
        weights=(weights, "N"),
    )  # fmt: skip
    frame = Frame.amid(centre(world_to_camera), weights != 0)
    found = argmin(triangulation_problem, linear, points2d, frame.to_frame(world_to_camera), K, weights)
    return replace(found, x=frame.unit[:, None] * found.x + frame.origin)


def linear(points2d: Tensor, world_to_camera: Tensor, K: Tensor, weights: Tensor) -> Tensor:
    """The point (B,3) of the least algebraic error u (p3 X) - p1 X, v (p3 X) - p2 X, with p the rows of [R t]."""
    rays = torch.linalg.solve_ex(K, torch.nn.functional.pad(points2d, (0, 1), value=1.0))[0]
    P = world_to_camera[..., :3, :]
    rows = weights[..., None, None] * (rays[..., :2, None] * P[..., 2:, :] - rays[..., 2:, None] * P[..., :2, :])
    A, b = rows.flatten(1, 2).split([3, 1], -1)
    return torch.linalg.solve_ex(A.mT @ A, -A.mT @ b)[0].squeeze(-1)
