"""A homography from matches: the plane-to-plane map with the least transfer error in the second image."""

import torch
from torch import Tensor

from geometry.checks import batched
from geometry.optim.adjoint import argmin
from geometry.optim.problem import Problem
from geometry.optim.solution import Solution

__all__ = ["homography", "homography_problem", "transfer"]


def transfer(H: Tensor, points: Tensor) -> Tensor:
    """The points (…,N,2) mapped by H (…,3,3)."""
    mapped = points @ H[..., :2].mT + H[..., None, :, 2]
    return mapped[..., :2] / mapped[..., 2:]


def residual(H: Tensor, points_a: Tensor, points_b: Tensor, weights: Tensor | None = None) -> Tensor:
    """(N,2): errors in the second image, times weights (N,)."""
    error = transfer(H, points_a) - points_b
    return error if weights is None else weights[:, None] * error


def retract(H: Tensor, step: Tensor) -> Tensor:
    """H (3,3) of norm one, moved by step (8,) along the sphere."""
    h = H.flatten() / H.norm()
    # the reflection that takes the last axis to h takes the others to its complement
    last = torch.zeros_like(h)
    last[-1] = 1
    v = h + torch.where(h[-1] < 0, -last, last)
    moved = torch.cat([step, step.new_zeros(1)])
    h = h + moved - 2 * v * (v @ moved) / (v @ v)
    return (h / h.norm()).unflatten(0, (3, 3))


homography_problem = Problem(residual, dof=8, retract=retract)
"""x (3,3) up to scale, data points_a (N,2), points_b (N,2), weights (N,) or nothing."""


def homography(points_a: Tensor, points_b: Tensor, weights: Tensor | None = None) -> Solution:
    """The homography with b ~ H a of the least transfer error in the second image.

    points_a, points_b (B,N,2) or (N,2), px: N >= 4 matches; weights (B,N) or (N,) multiply their errors. x (B,3,3) of
    norm one, differentiable in all. What fails says so in `status`. Raises ValueError for other shapes.

    Starts at the direct linear transform of normalised points (Hartley and Zisserman, "Multiple View Geometry",
    algorithm 4.2) and minimises the transfer error of equation 4.6.
    """
    points_a, points_b, weights = batched(
        4, points_a=(points_a, "N,2"), points_b=(points_b, "N,2"), weights=(weights, "N")
    )
    start = direct_linear(points_a.detach(), points_b.detach(), weights.detach())
    return argmin(homography_problem, start, points_a, points_b, weights)


def direct_linear(points_a: Tensor, points_b: Tensor, weights: Tensor) -> Tensor:
    """The homography (B,3,3) of norm one of the least algebraic error; third coordinates have a positive mean."""
    (a, to_a), (b, to_b) = normalised(points_a), normalised(points_b)
    zero, w = torch.zeros_like(a), weights[..., None]
    rows = torch.cat(
        [
            w * torch.cat([a, zero, -b[..., :1] * a], -1),
            w * torch.cat([zero, a, -b[..., 1:2] * a], -1),
        ],
        1,
    )
    _, vectors = torch.linalg.eigh(rows.mT @ rows)
    H = torch.linalg.solve(to_b, vectors[..., 0].unflatten(-1, (3, 3)) @ to_a)
    return oriented(H, points_a)


def oriented(H: Tensor, points: Tensor) -> Tensor:
    """H (…,3,3) of norm one, its sign such that mapped points (…,N,2) have third coordinates of a positive mean."""
    H = H / H.flatten(-2).norm(dim=-1)[..., None, None]
    depth = (points.mean(-2) * H[..., 2, :2]).sum(-1) + H[..., 2, 2]
    return torch.where((depth < 0)[..., None, None], -H, H)


def normalised(points: Tensor) -> tuple[Tensor, Tensor]:
    """Homogeneous points (…,N,3) about their mean and of mean length one, and the similarity (…,3,3) that does it."""
    mean = points.mean(-2, keepdim=True)
    scale = (points - mean).norm(dim=-1, keepdim=True).mean(-2, keepdim=True).clamp_min(torch.finfo(points.dtype).tiny)
    moved = (points - mean) / scale
    inverse = 1 / scale[..., 0]
    zero, one = torch.zeros_like(inverse), torch.ones_like(inverse)
    shift = -mean[..., 0, :] * inverse
    rows = (
        torch.cat([inverse, zero, shift[..., :1]], -1),
        torch.cat([zero, inverse, shift[..., 1:]], -1),
        torch.cat([zero, zero, one], -1),
    )
    return torch.cat([moved, torch.ones_like(moved[..., :1])], -1), torch.stack(rows, -2)
