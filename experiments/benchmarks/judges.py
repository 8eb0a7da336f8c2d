"""What a solver says, looked at by code that shares nothing with it: costs written out anew, their derivatives by
automatic differentiation, minima sought from elsewhere.

All is in double precision and in the caller's units. A cost is a function of a step away from what was found; a step
is measured against the curvature of the cost, so that no unit and no origin matters.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from geometry.robust import RobustKernel

__all__ = ["Views", "Shape", "descend", "image_of", "moved", "pose_cost", "resolution", "shape_at"]

Cost = Callable[..., Tensor]
"""Cost () of one problem at a step (P,), and its data."""

_ROUNDS = 40  # of the descent
_CHUNK = 250  # problems differentiated at once: what that holds fits into a few hundred megabytes


class Shape(NamedTuple):
    """The cost (B,) of problems at a point; the decrease (B,) that Newton's step from there predicts; the least
    curvature (B,) with the diagonal of the Hessian scaled to one; and that step (B,P). Both costs are infinite where
    one is not finite."""

    cost: Tensor
    decrease: Tensor
    curvature: Tensor
    step: Tensor


def shape_at(cost: Cost, dof: int, data: tuple[Tensor, ...], damping: Tensor | float = 0.0, free: int = 0) -> Shape:
    """The shape of a cost at the step zero. free: directions that cost nothing (a gauge), which are left out."""
    zero = data[0].new_zeros(len(data[0]), dof)
    parts = [
        (vmap(cost)(z, *d), vmap(grad(cost))(z, *d), vmap(hessian(cost))(z, *d))
        for z, *d in zip(*(a.split(_CHUNK) for a in (zero, *data)), strict=True)
    ]
    value, g, H = (torch.cat(each) for each in zip(*parts, strict=True))
    ok = torch.isfinite(value) & torch.isfinite(g).all(-1) & torch.isfinite(H).all(-1).all(-1)
    eye = torch.eye(dof, dtype=H.dtype)
    g, H = torch.where(ok[:, None], g, 0.0), torch.where(ok[:, None, None], H, eye)
    scale = H.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, :, None] * H * scale[:, None])
    # the free directions have the smallest curvatures in size
    _, order = values.abs().sort(-1)
    kept = torch.ones_like(values, dtype=torch.bool).scatter(1, order[:, :free], False)
    along = (vectors.mT @ (scale * g)[..., None])[..., 0]
    inverse = torch.where(kept, 1 / (values.abs() + damping).clamp_min(1e-300), 0.0)
    step = -scale * (vectors @ (inverse * along)[..., None])[..., 0]
    curvature = torch.where(kept, values, torch.inf).amin(-1)
    decrease = torch.where(ok, 0.5 * (inverse * along.square()).sum(-1), torch.inf)
    return Shape(torch.where(ok, value, torch.inf), decrease, curvature, step)


class Views(NamedTuple):
    """What a pose is sought from: points2d (B,N,2) px, points3d (B,N,3), K (B,3,3), distortion (B,k), weights
    (B,N)."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    weights: Tensor


def image_of(p: Tensor, K: Tensor, k: Tensor, fisheye: bool) -> Tensor:
    """Pixels (…,N,2) of points (…,N,3) in the camera frame by OpenCV's formulas, k of four numbers or none for a
    fisheye and of five or none otherwise; infinite where the camera cannot see the point."""
    x, y, z = p.unbind(-1)
    if fisheye:
        r = (x * x + y * y).clamp_min(1e-300).sqrt()
        angle = torch.atan2(r, z)
        a2 = angle * angle
        factor = torch.ones_like(a2)
        for i in range(k.shape[-1]):
            factor = factor + k[..., i, None] * a2 ** (i + 1)
        u, v, seen = x / r * angle * factor, y / r * angle * factor, z > -0.995 * (r * r + z * z).sqrt()
    else:
        x, y = x / z, y / z
        u, v, seen = x, y, z > 0
        if k.shape[-1]:
            k1, k2, p1, p2, k3 = (k[..., i, None] for i in range(5))
            r2 = x * x + y * y
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
            u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
            v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    pixels = torch.stack([u, v], -1) @ K[..., :2, :2].mT + K[..., None, :2, 2]
    return torch.where(seen[..., None], pixels, torch.inf)


def moved(pose: Tensor, step: Tensor, centre: Tensor, size: Tensor) -> Tensor:
    """The pose (4,4) turned about a centre (3,) of the world by step[:3], and shifted by step[3:] times size ()."""
    w = step[:3]
    x, y, z = w.unbind()
    zero = torch.zeros_like(x)
    W = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    turn = torch.eye(3, dtype=w.dtype) + W + 0.5 * W @ W  # exp to second order, which is all that derivatives see
    R = turn @ pose[:3, :3]
    # where the centre is seen must not be found as the difference of two large numbers twice over
    t = pose[:3, 3] + (pose[:3, :3] - R) @ centre + size * step[3:]
    return torch.cat([torch.cat([R, t[:, None]], 1), pose[3:]], 0)


def _rho(kernel: RobustKernel | None, s: Tensor) -> Tensor:
    if kernel is None:
        return s
    c2 = kernel.scale**2
    if kernel.name == "huber":
        return torch.where(s <= c2, s, 2 * kernel.scale * s.clamp_min(c2).sqrt() - c2)
    if kernel.name == "cauchy":
        return c2 * torch.log1p(s / c2)
    assert kernel.name == "geman_mcclure"
    return s / (1 + s / c2)


def pose_cost(fisheye: bool, kernel: RobustKernel | None) -> Cost:
    """Cost of a step (6,) from a pose, as data: pose (4,4), then `Views`, about the points' middle."""

    def cost(step: Tensor, pose: Tensor, x: Tensor, X: Tensor, K: Tensor, k: Tensor, w: Tensor) -> Tensor:
        centre = X.mean(0)
        size = (X - centre).square().sum(-1).mean().sqrt().clamp_min(1e-300)
        turned = moved(pose, step, centre, size)
        there = turned[:3, :3] @ centre + turned[:3, 3]
        error = image_of((X - centre) @ turned[:3, :3].T + there, K, k, fisheye) - x
        error = torch.where((w > 0)[:, None], error, 0.0)
        return 0.5 * _rho(kernel, (w[:, None] * error).square().sum(-1)).sum()

    return cost


def resolution(pose: Tensor, views: Views, eps: float) -> Tensor:
    """Cost (B,) that the rounding of pixels, and of a pose far from the world's origin, leaves of a perfect fit."""
    depth = (views.points3d @ pose[:, 2, :3, None])[..., 0] + pose[:, 2, 3:]
    far = views.points3d.norm(dim=-1) + pose[:, :3, 3].norm(dim=-1, keepdim=True)
    pixels = views.points2d.norm(dim=-1) + views.K[:, :1, 0] * far / depth.abs().clamp_min(1e-300)
    return (views.weights * eps * pixels).square().sum(-1)


def descend(cost: Cost, pose: Tensor, views: Views) -> tuple[Tensor, Shape]:
    """The minimum next to poses (B,4,4), by damped Newton steps with the sizes of the curvatures, and its shape."""
    X = views.points3d
    size = (X - X.mean(1, keepdim=True)).square().sum(-1).mean(-1).sqrt().clamp_min(1e-300)
    damping = pose.new_full((len(pose), 1), 1e-3)
    zero = pose.new_zeros(len(pose), 6)
    for _ in range(_ROUNDS):
        here = shape_at(cost, 6, (pose, *views), damping)
        if (here.decrease <= 1e-14 * here.cost).all():
            break
        step = here.step * (0.5 / here.step.norm(dim=-1, keepdim=True).clamp_min(0.5))
        there = _rigid(vmap(moved)(pose, step, X.mean(1), size))
        better = vmap(cost)(zero, there, *views) < here.cost
        pose = torch.where(better[:, None, None], there, pose)
        damping = torch.where(better[:, None], 0.1 * damping, 10 * damping).clamp(1e-12, 1e6)
    return pose, shape_at(cost, 6, (pose, *views))


def _rigid(pose: Tensor) -> Tensor:
    """The nearest rotations in place of what has been moved to second order; the shift is kept (…,4,4)."""
    U, _, Vh = torch.linalg.svd(pose[:, :3, :3])
    return torch.cat([torch.cat([U @ Vh, pose[:, :3, 3:]], -1), pose[:, 3:]], -2)
