"""Homographies, projective maps from plane to plane: of four pairs of points, and as a `Problem` of many."""

import torch
from torch import Tensor

from geometry.optim import Problem

__all__ = ["homography", "homography_problem", "transfer"]


def homography(points_a: Tensor, points_b: Tensor) -> Tensor:
    """The homography with b ~ H a for four pairs of points (…,4,2) -> (…,3,3), of Frobenius norm one.

    Its sign makes the third coordinate of the mapped points positive in their mean. NaN where three of the points of an
    image are collinear or two coincide. Differentiable. Raises ValueError for other shapes.

    By projective bases (Richter-Gebert, "Perspectives on Projective Geometry", 3.4): with l = adj[a_1 a_2 a_3] a_4
    the matrix [l_1 a_1, l_2 a_2, l_3 a_3] takes the unit vectors and their sum to the four points; one such matrix
    after the inverse of the other is H. No system of equations is solved.
    """
    for name, value in (("points_a", points_a), ("points_b", points_b)):
        if value.shape[-2:] != (4, 2):
            raise ValueError(f"{name} must have shape (…,4,2), got {tuple(value.shape)}")
    points_a, points_b = torch.broadcast_tensors(points_a, points_b)
    with torch.no_grad():
        good = _in_general_position(points_a) & _in_general_position(points_b)
    # what has none is replaced, lest its derivatives be NaN
    square = points_a.new_tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    points_a, points_b = (torch.where(good[..., None, None], p, square) for p in (points_a, points_b))
    a, to_a = normalised(points_a)
    b, to_b = normalised(points_b)
    (cofactors, la, _), (_, lb, _) = _basis(a), _basis(b)
    inverse = torch.stack([la[..., 1] * la[..., 2], la[..., 0] * la[..., 2], la[..., 0] * la[..., 1]], -1)
    H = b[..., :3, :].mT @ ((lb * inverse)[..., None] * cofactors)
    H = oriented(_inverse_similarity(to_b) @ H @ to_a, points_a)
    return torch.where(good[..., None, None], H, torch.nan)


def _in_general_position(points: Tensor) -> Tensor:
    """Whether no three of four points are collinear up to rounding."""
    _, odds, determinant = _basis(normalised(points)[0])
    areas = torch.cat([odds, determinant[..., None]], -1).abs().amin(-1)
    return areas > 64 * torch.finfo(points.dtype).eps


def _inverse_similarity(T: Tensor) -> Tensor:
    """Up to scale."""
    s = T[..., 0, 0]
    zero = torch.zeros_like(s)
    rows = [torch.stack(r, -1) for r in ((s**0, zero, -T[..., 0, 2]), (zero, s**0, -T[..., 1, 2]), (zero, zero, s))]
    return torch.stack(rows, -2)


def _basis(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """adj[p_1 p_2 p_3], that times p_4, and the determinant, of homogeneous points (…,4,3)."""
    first, second, third, fourth = p.unbind(-2)
    cofactors = torch.stack(
        [torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)], -2
    )
    return cofactors, (cofactors @ fourth[..., None]).squeeze(-1), (cofactors[..., 0, :] * first).sum(-1)


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
    h = H.flatten() * H.square().sum().rsqrt()
    # the reflection that takes the last axis to h takes the others to its complement
    last = torch.zeros_like(h)
    last[-1] = 1
    v = h + torch.where(h[-1] < 0, -last, last)
    moved = torch.cat([step, step.new_zeros(1)])
    h = h + moved - 2 * v * (v @ moved) / (v @ v)
    return (h * h.square().sum().rsqrt()).unflatten(0, (3, 3))


homography_problem = Problem(residual, dof=8, retract=retract)
"""x (3,3) up to scale, data points_a (N,2), points_b (N,2), weights (N,) or nothing."""


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
