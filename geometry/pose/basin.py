"""Basins of a minimum of the reprojection error: a region about it in which no pose is as good.

With the residuals r (2N) at the pose, f = |r|^2 / 2, and a step d = (omega, v) that leads to [exp(omega) R | t + v],
along s d for s from 0 to 1

    f(d) >= f + g . d + d^T H d / 2 - max |f'''| / 6,    f''' = 3 r' . r'' + r . r'''.

Bounds of the derivatives of every point's projection over the ellipsoid d^T H d <= radius^2 bound f''', which vanishes
with the third power of the radius; where it is below 3 radius^2, every pose of the ellipsoid but its centre is worse.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.optim import Linearization

__all__ = ["Basin", "Views", "basin", "slack"]

_MARGIN = 1e-3  # of the second order that the third must leave
_STRAY = 0.3  # how far a point may move in the plane at z = 1, against which the bound of its direction is held
_OCTAVES = 24  # that the radius is sought in
_STATIONARY = 1e-3  # of the slack: as much as Newton's step from a minimum may still gain
_SLACK = 1e-9, 1e-13  # of the squares of the residuals, and of those of the pixels about their mean


class Views(NamedTuple):
    """Points (B,N,3) about their mean, where they are seen in the plane at z = 1 (B,N,2), and what makes a residual of
    a difference there (B,N,2,2); visible (B,N). What is not visible is zero."""

    points: Tensor
    seen: Tensor
    whiten: Tensor
    visible: Tensor

    def at(self, index: Tensor) -> "Views":
        """Some of the problems."""
        return Views(*(each[index] for each in self))


class Basin(NamedTuple):
    """What is known of the surroundings of poses (B,4,4) that are minima.

    quat_wxyz (B,4) of the rotation; depth (B,N) of the points; squares (B,): |r|^2; radius (B,) of the ellipsoid, zero
    where nothing is known. With C the derivative of the residuals times depth over depth at the pose, which is linear
    in the pose: stretch (B,) of d^T H d over |C d|^2 at the most; slope (B,) of r . C d over |C d| at the most; bend
    (B,): of |C (exp(omega) R - R - hat(omega) R)| over |omega|^2 / 2 at the most.
    """

    quat_wxyz: Tensor
    depth: Tensor
    squares: Tensor
    radius: Tensor
    stretch: Tensor
    slope: Tensor
    bend: Tensor


def slack(views: Views, squares: Tensor) -> Tensor:
    """How much less |r|^2 (B,) another pose may have without being called better: rounding, generously."""
    count = views.visible.sum(-1).clamp_min(1)[:, None]
    apart = views.seen - (views.seen.sum(1) / count)[:, None]
    return _SLACK[0] * squares + _SLACK[1] * (views.whiten @ apart[..., None]).square().sum((1, 2, 3))


def basin(pose: Tensor, views: Views, local: Linearization) -> Basin:
    """The basins of poses (B,4,4) in the frame of the views, by bounds of third derivatives; local has the Hessian."""
    X, seen, W, visible = views
    squares, gradient, gauss_newton, H = 2 * local.cost, local.gradient, local.gauss_newton, local.hessian
    assert H is not None
    # a pose with a point behind, or of no numbers, has no basin, and must not trouble the factors of the others
    ahead = torch.isfinite(squares)
    pose = torch.where(ahead[:, None, None], pose, torch.eye(4, dtype=X.dtype, device=X.device))
    gauss_newton, H = (torch.where(ahead[:, None, None], each, 0.0) for each in (gauss_newton, H))
    R, t = pose[:, :3, :3], pose[:, None, :3, 3]
    turned = X @ R.mT
    p = torch.where((visible & ahead[:, None])[..., None], turned + t, 1.0)
    z = p[..., 2]
    q = p[..., :2] / z[..., None]
    r = (W @ (q - seen)[..., None])[..., 0]

    eye2, eye3 = torch.eye(2, dtype=X.dtype, device=X.device), torch.eye(3, dtype=X.dtype, device=X.device)
    move = torch.cat([-se3.hat(turned), eye3.expand(*turned.shape, 3)], -1)  # of p, by d
    plane = torch.cat([eye2.expand(*q.shape, 2), -q[..., None]], -1) / z[..., None, None]
    flow = torch.where(visible[..., None, None], plane @ move, 0.0)  # of q
    sink = torch.where(visible[..., None], move[..., 2, :] / z[..., None], 0.0)  # of z, over z
    factor, info = torch.linalg.cholesky_ex(H)
    good = ahead & (info == 0) & torch.isfinite(factor).all(-1).all(-1)
    factor = torch.where(good[:, None, None], factor, torch.eye(6, dtype=X.dtype, device=X.device))
    T = torch.linalg.solve_triangular(factor, torch.eye(6, dtype=X.dtype, device=X.device), upper=False).mT
    newton = (gradient[:, None] @ T)[:, 0].square().sum(-1)
    good &= newton <= _STATIONARY * slack(views, squares)

    weight = _norm2(W)
    bounds = _Bounds(
        turn=torch.linalg.eigvalsh(T[:, :3] @ T[:, :3].mT)[:, -1].sqrt(),
        flow=_norm2(flow @ T[:, None]),
        sink=(sink @ T).norm(dim=-1),
        arm=X.norm(dim=-1) / z,
        ray=(1 + (q.norm(dim=-1) + _STRAY).square()).sqrt(),
        weight=weight,
        first=torch.linalg.eigvalsh(T.mT @ gauss_newton @ T)[:, -1].clamp_min(0).sqrt(),
        rest=squares.sqrt(),
    )
    radius = torch.where(good, _radius(bounds), 0.0)

    C = (W @ torch.cat([eye2.expand(*q.shape, 2), -seen[..., None]], -1)) / z[..., None, None]
    A = (C @ move).flatten(1, 2)
    metric, info = torch.linalg.cholesky_ex(A.mT @ A)
    radius = torch.where(info == 0, radius, 0.0)
    metric = torch.where((info == 0)[:, None, None], metric, torch.eye(6, dtype=X.dtype, device=X.device))
    half = torch.linalg.solve_triangular(metric, H, upper=False)
    stretch = torch.linalg.eigvalsh(torch.linalg.solve_triangular(metric, half.mT, upper=False))[:, -1].clamp_min(0)
    covector = (A * r.flatten(1)[..., None]).sum(1)
    slope = torch.linalg.solve_triangular(metric, covector[..., None], upper=False)[..., 0].norm(dim=-1)
    bend = (weight * bounds.arm * (1 + seen.square().sum(-1)).sqrt()).norm(dim=-1)
    depth = torch.where(visible, z, torch.inf)
    return Basin(se3.quat_wxyz_from_rotation(R), depth, squares, radius, stretch, slope, bend)


class _Bounds(NamedTuple):
    """Of a step of length one in the metric of H, at the pose: |omega| (B,), how far a point (B,N) moves in the plane
    at z = 1, and in depth over its depth; of a point its distance from the middle over its depth, the length of its
    direction and the norm of what makes residuals (B,N); the norm of the derivative of r, and of r (B,)."""

    turn: Tensor
    flow: Tensor
    sink: Tensor
    arm: Tensor
    ray: Tensor
    weight: Tensor
    first: Tensor
    rest: Tensor


def _radius(bounds: _Bounds) -> Tensor:
    """The largest radius (B,) at which the third order is smaller than the second, by bisection of its logarithm."""
    # beyond it a point might come to the camera
    high = (1 / bounds.sink.amax(-1).clamp_min(torch.finfo(bounds.sink.dtype).tiny)).log2()
    low, step = high - _OCTAVES, _OCTAVES / 2
    for _ in range(12):
        low = torch.where(_holds(bounds, (low + step).exp2()), low + step, low)
        step /= 2
    radius = low.exp2()
    return torch.where(_holds(bounds, radius), radius, 0.0)


def _holds(bounds: _Bounds, radius: Tensor) -> Tensor:
    """Whether |f'''| is below 3 radius^2 along every step within the radius (B,)."""
    length = radius[:, None]
    turn = bounds.turn[:, None] * length
    bent = turn.square() * bounds.arm
    # |z'| and z along the step, over z at its begin
    sink = bounds.sink * length + bent
    left = 1 - bounds.sink * length - bent / 2
    # (q' z)' = p''_xy - q p''_z - q' z', and so on
    room = left - sink
    q1 = (bounds.flow * length + bounds.ray * bent) / room
    q2 = (bounds.ray * bent + 2 * q1 * sink) / left
    q3 = (bounds.ray * turn * bent + 3 * q1 * bent + 3 * q2 * sink) / left
    inside = ((room > 0) & (q1 < _STRAY)).all(-1)
    second, third = ((bounds.weight * each).norm(dim=-1) for each in (q2, q3))
    first = bounds.first * radius + second
    return inside & (3 * first * second + (bounds.rest + first) * third < 3 * (1 - _MARGIN) * radius.square())


def _norm2(A: Tensor) -> Tensor:
    """The largest singular value (…,) of matrices (…,2,k)."""
    a, b, c = A[..., 0, :].square().sum(-1), A[..., 1, :].square().sum(-1), (A[..., 0, :] * A[..., 1, :]).sum(-1)
    return ((a + b + ((a - b).square() + 4 * c.square()).sqrt()) / 2).sqrt()
