"""The relative pose of two calibrated views from matches: rotation and direction of the least epipolar error."""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from geometry.checks import batched, one_of
from geometry.consensus.minimal import angles_to_meet, before_both, five_point, pose_of_essential
from geometry.optim import Problem, Solution, argmin, levenberg_marquardt
from geometry.se3 import exp, hat, make

__all__ = ["bearing_problem", "fundamental", "relative_pose", "relative_pose_problem"]

SAMPLES = 16
SAMPLE_STEPS = 5


def fundamental(pose: Tensor, K_a: Tensor, K_b: Tensor) -> Tensor:
    """F (…,3,3) with b^T F a = 0 for the pixels a and b of a point; pose (…,4,4) with p_b = R p_a + t."""
    return torch.linalg.inv(K_b).mT @ hat(pose[..., :3, 3]) @ pose[..., :3, :3] @ torch.linalg.inv(K_a)


def residual(pose: Tensor, points_a: Tensor, points_b: Tensor, K_a: Tensor, K_b: Tensor, weights: Tensor) -> Tensor:
    """(N,): distances in px of each match from the nearest with b^T F a = 0, to first order, times weights (N,)."""
    F = fundamental(pose, K_a, K_b)
    a, b = homogeneous(points_a), homogeneous(points_b)
    line_b, line_a = a @ F.mT, b @ F
    size = torch.cat([line_b[:, :2], line_a[:, :2]], -1).square().sum(-1)
    return weights * (b * line_b).sum(-1) * size.rsqrt()


def residual_of_bearings(pose: Tensor, rays_a: Tensor, rays_b: Tensor, weights: Tensor) -> Tensor:
    """(N,): angles in rad of each match from the nearest rays that meet, to first order, times weights (N,)."""
    return weights * angles_to_meet(hat(pose[:3, 3]) @ pose[:3, :3], rays_a, rays_b)


def homogeneous(points: Tensor) -> Tensor:
    return pad(points, (0, 1), value=1.0)


def retract(pose: Tensor, step: Tensor) -> Tensor:
    """A pose (4,4) with |t| = 1, moved by step (5,): R <- exp(omega) R, and t along the sphere."""
    t = pose[:3, 3]
    first = torch.linalg.cross(t, torch.zeros_like(t).scatter(0, t.abs().argmin()[None], 1.0))
    first = first * first.square().sum().rsqrt()
    moved = t + step[3] * first + step[4] * torch.linalg.cross(t, first)
    return make(exp(step[:3]) @ pose[:3, :3], moved * moved.square().sum().rsqrt())


relative_pose_problem = Problem(residual, dof=5, retract=retract, alike=(5,))
"""x (4,4) with |t| = 1, data points_a (N,2), points_b (N,2), K_a (3,3), K_b (3,3), weights (N,)."""

bearing_problem = Problem(residual_of_bearings, dof=5, retract=retract, alike=(5,))
"""The same of data rays_a (N,3), rays_b (N,3), of any length but zero, weights (N,)."""


def relative_pose(
    points_a: Tensor,
    points_b: Tensor,
    K_a: Tensor | None,
    K_b: Tensor | None,
    weights: Tensor | None = None,
    *,
    model: Literal["radtan", "ray"] = "radtan",
) -> Solution:
    """Where camera b stands in the frame of camera a, up to the length of the translation.

    points_a, points_b (B,N,2) or (N,2), px: N >= 6 matches; K_a, K_b (B,3,3) or (3,3): the cameras, without distortion;
    weights (B,N) or (N,) multiply the errors. x (B,4,4) with p_b = R p_a + t and |t| = 1, differentiable in all. What
    fails says so in `status`, as where a turn alone explains the matches. Raises ValueError for other shapes.

    model="ray": points_a, points_b (B,N,3) or (N,3) are bearings, directions of any length but zero in the camera
    frames, behind them as well, as `unproject` gives them of any lens; K_a and K_b are None, errors are angles in rad.

    Minimises Sampson's error (Hartley and Zisserman, "Multiple View Geometry", equation 11.9), whose minimum is four
    poses; the one with most points before both cameras is returned. Starts at the five-point poses (Nistér, TPAMI
    2004) of 16 samples, drawn evenly and not at random, of which the best after a few steps goes on.
    """
    one_of("model", model, ("radtan", "ray"))
    bearings = model == "ray"
    for name, K in (("K_a", K_a), ("K_b", K_b)):
        if bearings != (K is None):
            raise ValueError(f"{name} must be {'None' if bearings else 'given'} for model={model!r}, got {K}")
    cameras = {name: (K, "3,3", "camera") for name, K in (("K_a", K_a), ("K_b", K_b)) if K is not None}
    shape = "N,3" if bearings else "N,2"
    data = batched(6, points_a=(points_a, shape), points_b=(points_b, shape), **cameras, weights=(weights, "N"))
    problem = bearing_problem if bearings else relative_pose_problem
    found = argmin(problem, partial(sampled, problem), *data)
    a, b = rays_of(*(d.detach() for d in data))
    return replace(found, x=before_both(found.x, a, b, data[-1].detach() != 0))


def sampled(problem: Problem, *data: Tensor) -> Tensor:
    """A pose (B,4,4) near the least error. A match of weight zero is in no sample."""
    weights = data[-1]
    places = torch.arange(5 * SAMPLES, device=weights.device).view(5, SAMPLES).mT.flatten()
    count = (weights != 0).cumsum(-1)
    index = torch.searchsorted(count, places * count[:, -1:] // (5 * SAMPLES) + 1).clamp_max(weights.shape[-1] - 1)
    a, b = (r.gather(1, index[..., None].expand(-1, -1, 3)).unflatten(1, (SAMPLES, 5)) for r in rays_of(*data))
    E = five_point(a, b).nan_to_num()
    B, _, roots = E.shape[:3]
    poses = pose_of_essential(E)

    def best(poses: Tensor, count: int) -> Tensor:
        """Of every `count` poses (…,4,4) in a row the one of the least error."""
        cost = problem.costs(poses, *repeated(len(poses) // B)).nan_to_num(torch.inf).view(-1, count)
        return poses.unflatten(0, (-1, count))[torch.arange(len(cost), device=cost.device), cost.argmin(-1)]

    def repeated(times: int) -> tuple[Tensor, ...]:
        return tuple(d.repeat_interleave(times, 0) for d in data)

    chosen = best(poses.flatten(0, 2), roots)  # of each sample
    return best(levenberg_marquardt(problem, chosen, repeated(SAMPLES), SAMPLE_STEPS)[0], SAMPLES)


def rays_of(points_a: Tensor, points_b: Tensor, *K_and_weights: Tensor) -> tuple[Tensor, ...]:
    """The rays (B,N,3) of both views, which are given, or those of pixels (B,N,2)."""
    *K, _ = K_and_weights
    if not K:
        return points_a, points_b
    pairs = zip(K, (points_a, points_b), strict=True)
    return tuple(torch.linalg.solve_ex(k, homogeneous(points).mT)[0].mT for k, points in pairs)
