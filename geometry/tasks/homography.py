"""A homography from matches: the plane-to-plane map with the least transfer error in the second image."""

from dataclasses import replace

import torch
from torch import Tensor

from geometry.alignment import Frame
from geometry.checks import batched
from geometry.consensus.minimal import homography_problem, normalised, oriented
from geometry.optim import Solution, argmin

__all__ = ["homography"]


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
    counts = weights != 0
    a, b = Frame.amid(points_a, counts), Frame.amid(points_b, counts)
    # a match of weight zero may lie anywhere, and has no part in the start
    seen_a, seen_b = (torch.where(counts[..., None], p, 0.0) for p in (a.points(points_a), b.points(points_b)))
    data = seen_a, seen_b, b.unit[:, None] * weights
    found = argmin(homography_problem, direct_linear, *data)
    H = b.inverse @ found.x @ a.matrix
    return replace(found, x=H * H.square().sum((-2, -1), keepdim=True).rsqrt())


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
