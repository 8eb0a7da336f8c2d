"""Triangulation: the point with the least reprojection error in views of known cameras."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from geometry.alignment import Frame
from geometry.camera import in_front, project_camera_frame
from geometry.checks import batched, one_of
from geometry.optim import Problem, Solution, argmin
from geometry.se3 import centre, rotation_to_axis, transform

__all__ = ["bearing_problem", "triangulation", "triangulation_problem"]


def residual(point: Tensor, points2d: Tensor, world_to_camera: Tensor, K: Tensor, weights: Tensor) -> Tensor:
    """(N,2): errors in px, times weights (N,); infinite behind a camera that counts.

    Infinite as well within a camera, where rays from one place meet: nearer than sqrt(eps) of its distance from the
    origin, rounding of the centres would be taken for parallax.
    """
    p, apart = seen_from(point, world_to_camera)
    error = weights[:, None] * (project_camera_frame(p, K).squeeze(1) - points2d)
    return torch.where((in_front(p) & apart) | (weights == 0)[:, None], error, torch.inf)


def residual_of_bearings(point: Tensor, bearings: Tensor, world_to_camera: Tensor, weights: Tensor) -> Tensor:
    """(N,2): angles in rad from the bearings, on any side of the camera, times weights (N,); infinite within a camera.

    They are pixels of an equidistant fisheye that looks along the bearing.
    """
    p, apart = seen_from(point, world_to_camera)
    p, K = p @ rotation_to_axis(bearings).mT, torch.eye(3, dtype=p.dtype, device=p.device)
    error = weights[:, None] * project_camera_frame(p, K, model="fisheye").squeeze(1)
    return torch.where((in_front(p, model="fisheye") & apart) | (weights == 0)[:, None], error, torch.inf)


def seen_from(point: Tensor, world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
    """The point (N,1,3) in the camera frames, and whether it is farther from the camera than rounding."""
    p = transform(world_to_camera, point.expand(len(world_to_camera), 1, 3))
    return p, p.norm(dim=-1) > torch.finfo(p.dtype).eps ** 0.5 * world_to_camera[:, None, :3, 3].norm(dim=-1)


triangulation_problem = Problem(residual, dof=3, alike=(3,))
"""x (3,) in the world, data points2d (N,2), world_to_camera (N,4,4), K (N,3,3), weights (N,)."""

bearing_problem = Problem(residual_of_bearings, dof=3, alike=(3,))
"""The same of data bearings (N,3), of any length but zero, world_to_camera (N,4,4), weights (N,)."""


def triangulation(
    points2d: Tensor,
    world_to_camera: Tensor,
    K: Tensor | None,
    weights: Tensor | None = None,
    *,
    model: Literal["radtan", "ray"] = "radtan",
) -> Solution:
    """The point of the least reprojection error in N >= 2 views.

    points2d (B,N,2) or (N,2), px: where each view shows it; world_to_camera (B,N,4,4) or (N,4,4), K (B,N,3,3) or
    (N,3,3): the views' cameras, without distortion; weights (B,N) or (N,) multiply their errors. x (B,3) in the world,
    differentiable in all. What fails says so in `status`: SINGULAR or INFEASIBLE where the rays are parallel or lie
    in one line, INFEASIBLE where the start lies behind a camera. Raises ValueError for other shapes.

    model="ray": points2d (B,N,3) or (N,3) are bearings, directions of any length but zero in the camera frames, behind
    them as well, as `unproject` gives them of any lens; K is None, errors are angles in radians.

    Starts at the linear triangulation and minimises the reprojection error (Hartley and Sturm, "Triangulation", CVIU
    1997, sections 5.1 and 3; the start is invariant to affine maps of the world).
    """
    one_of("model", model, ("radtan", "ray"))
    bearings = model == "ray"
    if bearings != (K is None):
        raise ValueError(f"K must be {'None' if bearings else 'given'} for model={model!r}, got {K}")
    cameras = {} if K is None else {"K": (K, "N,3,3", "camera")}
    points2d, world_to_camera, *lens, weights = batched(
        2, points2d=(points2d, "N,3" if bearings else "N,2"), world_to_camera=(world_to_camera, "N,4,4", "pose"),
        **cameras, weights=(weights, "N"),
    )  # fmt: skip
    frame = Frame.amid(centre(world_to_camera), weights != 0)
    problem = bearing_problem if bearings else triangulation_problem
    found = argmin(problem, linear, points2d, frame.to_frame(world_to_camera), *lens, weights)
    return replace(found, x=frame.unit[:, None] * found.x + frame.origin)


def linear(points2d: Tensor, world_to_camera: Tensor, *lens_and_weights: Tensor) -> Tensor:
    """The point (B,3) of the least algebraic error: of how far [R t] X lies beside the rays."""
    *K, weights = lens_and_weights
    rays = torch.linalg.solve_ex(K[0], torch.nn.functional.pad(points2d, (0, 1), value=1.0))[0] if K else points2d
    across = rotation_to_axis(rays)[..., :2, :]
    rows = weights[..., None, None] * (across @ world_to_camera[..., :3, :])
    A, b = rows.flatten(1, 2).split([3, 1], -1)
    return torch.linalg.solve_ex(A.mT @ A, -A.mT @ b)[0].squeeze(-1)
