"""Registration of corresponding point clouds: the rigid motion or similarity of the least point-to-point error."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from geometry import se3
from geometry.alignment import Frame, align_similarity
from geometry.checks import batched
from geometry.optim import Problem, Solution, argmin

__all__ = ["point_registration", "rigid_problem", "similarity_problem"]


def residual(source_to_target: Tensor, source: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """(N,3): errors in the target's frame and unit, times weights (N,)."""
    error = se3.transform(source_to_target, source) - target
    return error if weights is None else weights[:, None] * error


def retract_similarity(similarity: Tensor, step: Tensor) -> Tensor:
    """(4,4) of s R and t, moved by step (7,): omega, v and the logarithm of a factor of s."""
    moved = se3.retract(similarity, step[:6])
    return se3.make(step[6].exp() * moved[:3, :3], moved[:3, 3])


rigid_problem = Problem(residual, dof=6, retract=se3.retract, alike=(3,))
"""x source_to_target (4,4), data source (N,3), target (N,3), weights (N,) or nothing."""

similarity_problem = Problem(residual, dof=7, retract=retract_similarity, alike=(3,))
"""The same with a scale: the upper left (3,3) of x is s R."""


def point_registration(
    source: Tensor, target: Tensor, weights: Tensor | None = None, *, scale: bool = False
) -> Solution:
    """The motion that takes source points to their target points with the least sum of squared distances.

    source, target (B,N,3) or (N,3), each in a frame of its own, any unit: N >= 3 pairs, not on a line; weights (B,N) or
    (N,) multiply their errors. x = source_to_target (B,4,4): target = x source, in the target's unit; rigid, or with
    `scale` a similarity, whose upper left (3,3) is s R, s > 0. Differentiable in all. What fails says so in `status`:
    SINGULAR for points on a line, or a mirror image that no rotation fits best. Raises ValueError for other shapes.

    Starts at the minimum in closed form (Umeyama 1991, TPAMI 13(4), eqs. 40 to 42, with weights), which `argmin`
    verifies and differentiates.
    """
    source, target, weights = batched(3, source=(source, "N,3"), target=(target, "N,3"), weights=(weights, "N"))
    a, b = Frame.amid(source, weights != 0), Frame.amid(target, weights != 0)
    a = a if scale else a._replace(unit=b.unit)  # a rigid motion knows one unit
    data = a.points(source), b.points(target), b.unit[:, None] * weights
    found = argmin(similarity_problem if scale else rigid_problem, partial(closed_form, scale=scale), *data)
    return replace(found, x=b.inverse @ found.x @ a.matrix)


def closed_form(source: Tensor, target: Tensor, weights: Tensor, scale: bool) -> Tensor:
    """The minimum (B,4,4) by Umeyama's method."""
    found = align_similarity(source, target, weights)
    R = found.scale.nan_to_num(1.0)[:, None, None] * found.R if scale else found.R
    share = weights.square()[..., None]
    gap = target - source @ R.mT
    return se3.make(R, (share * gap).sum(1) / share.sum(1).clamp_min(torch.finfo(share.dtype).tiny))
