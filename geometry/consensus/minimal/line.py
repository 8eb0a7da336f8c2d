"""Lines of the plane."""

import torch
from torch import Tensor

from geometry.optim import Problem

__all__ = ["line", "line_problem"]


def line(points: Tensor) -> Tensor:
    """The line (a, b, c), a x + b y + c = 0 with a^2 + b^2 = 1, through two points (…,2,2) -> (…,3).

    NaN where they coincide. Differentiable. Raises ValueError for other shapes.
    """
    if points.shape[-2:] != (2, 2):
        raise ValueError(f"points must have shape (…,2,2), got {tuple(points.shape)}")
    distinct = (points[..., 0, :] != points[..., 1, :]).any(-1)
    # what has no line is replaced, lest its derivatives be NaN
    p, q = torch.where(distinct[..., None, None], points, points.new_tensor([[0.0, 0], [1, 0]])).unbind(-2)
    along = (q - p) / (q - p).norm(dim=-1, keepdim=True)
    normal = torch.stack([-along[..., 1], along[..., 0]], -1)
    found = torch.cat([normal, -(normal * 0.5 * (p + q)).sum(-1, keepdim=True)], -1)
    return torch.where(distinct[..., None], found, torch.nan)


def _residual(x: Tensor, points: Tensor) -> Tensor:
    return points @ x[:2] + x[2]


def _retract(x: Tensor, step: Tensor) -> Tensor:
    normal = x[:2] + step[0] * torch.stack([-x[1], x[0]])
    return torch.cat([normal * normal.square().sum().rsqrt(), (x[2] + step[1])[None]])


line_problem = Problem(_residual, dof=2, retract=_retract)
"""x (3,) as `line` gives it, data points (N,2): the distances (N,) of the points from the line."""
