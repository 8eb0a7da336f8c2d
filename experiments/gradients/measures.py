"""Two measures of a gradient with respect to keypoints, on problems without bias or outliers, at a given noise.

Error: |g - F| / |F| of a problem, F being finite differences of the number that the method is said to be the gradient
of; for `dsac` and `epro_pnp`, which draw, F is the mean over many draws. Right way: whether a step down the gradient
moves a keypoint towards its true projection, - < g_i, truth_i - x_i > > 0 (arXiv 2303.11516 counts so).
"""

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.made.scenes import CUBE, random_poses
from experiments.gradients.derivatives import STENCIL, STEPS
from experiments.gradients.methods import AWAY, LAYERS, METHODS, STOCHASTIC, Method, View
from experiments.gradients.scenes import POINTS
from geometry import pnp, project, se3
from geometry.camera import matrix_from_intrinsics

__all__ = ["Quality", "gradient", "gradient_errors", "measure", "problems", "right_way"]


class Quality(NamedTuple):
    """Of one method at one noise: median and largest error of all problems, and the share of keypoints a seed."""

    error: float
    largest: float
    right_way: list[float]


def problems(count: int, noise: float, seed: int) -> tuple[View, Tensor]:
    """`count` views with weights 1/noise, and where their keypoints belong (count,N,2)."""
    g = torch.Generator().manual_seed(seed)
    inner = 2 * torch.rand(POINTS - len(CUBE), 3, generator=g, dtype=torch.float64) - 1
    points3d = torch.cat([CUBE, inner])[None]
    K = matrix_from_intrinsics(torch.tensor([300.0, 300, 128, 128], dtype=torch.float64))
    pose = random_poses(count, g, (4.0, 8.0))
    truth = project(points3d, pose, K)
    points2d = truth + noise * torch.randn(truth.shape, generator=g, dtype=torch.float64)
    log_weights = -torch.full((count, POINTS), noise, dtype=torch.float64).log()
    return View(points2d, log_weights, points3d, K, pose, generator=g), truth


def gradient(method: Method, view: View) -> Tensor:
    """d loss / d points2d (B,N,2)."""
    points2d = view.points2d.detach().requires_grad_()
    return torch.autograd.grad(METHODS[method](view._replace(points2d=points2d)).sum(), points2d)[0]


def repeated(view: View, times: int) -> View:
    """The view as a batch of copies, copy after copy."""
    init = None if view.init is None else view.init.repeat(times, 1, 1)
    return view._replace(
        points2d=view.points2d.repeat(times, 1, 1), log_weights=view.log_weights.repeat(times, 1),
        pose_gt=view.pose_gt.repeat(times, 1, 1), init=init,
    )  # fmt: skip


def numeric(loss: Callable[[View], Tensor], view: View) -> Tensor:
    """d loss / d points2d (B,N,2) by finite differences."""
    B, N, _ = view.points2d.shape
    step = STEPS["points2d"]
    moves = step * torch.eye(2 * N, dtype=view.points2d.dtype).view(2 * N, 1, N, 2)
    found = torch.zeros(2 * N, B, dtype=view.points2d.dtype)
    many = repeated(view, 2 * N)
    for k, weight in STENCIL:
        moved = (view.points2d + k * moves).flatten(0, 1)
        found += weight / (60 * step) * loss(many._replace(points2d=moved)).view(2 * N, B)
    return found.T.reshape(B, N, 2)


@torch.no_grad()
def _at_minimum(view: View) -> View:
    return view._replace(init=pnp(view.points2d, view.points3d, view.K, weights=view.log_weights.exp()).x)


def gradient_errors(method: Method, view: View, draws: int) -> Tensor:
    """|g - F| / |F| (B,), or (draws B,) of a method that draws, F then being the mean of `draws`."""
    if method in STOCHASTIC:
        found = gradient(method, repeated(view, draws)).reshape(draws, -1, 2 * POINTS)
        true = found.mean(0)
        return ((found - true).norm(dim=-1) / true.norm(dim=-1)).flatten()
    through = method in LAYERS or method == "unweighted"
    if not through:
        found, true = gradient(method, view), numeric(METHODS[method], view)
    else:
        at = _at_minimum(view)
        assert at.init is not None
        start = at.init
        if method == "unrolled":
            start = se3.retract(start, start.new_tensor(AWAY).expand(len(start), 6))
        with torch.no_grad():
            true = numeric(METHODS["exact"], at)
        found = gradient(method, at._replace(init=start))
    return (found - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)


def right_way(method: Method, view: View, truth: Tensor) -> float:
    """Share of keypoints that a step down the gradient moves towards the truth."""
    towards = -(gradient(method, view) * (truth - view.points2d)).sum(-1)
    return (towards > 0).double().mean().item()


def measure(method: Method, noise: float, seeds: list[int], count: int, draws: int) -> Quality:
    """Both, over seeds of `count` problems each; a quarter of them for the errors, which take many solutions."""
    errors: list[float] = []
    shares: list[float] = []
    for seed in seeds:
        view, truth = problems(count, noise, seed)
        shares.append(right_way(method, view, truth))
        few = max(1, count // 4)
        view = view._replace(
            points2d=view.points2d[:few], log_weights=view.log_weights[:few], pose_gt=view.pose_gt[:few]
        )
        errors += gradient_errors(method, view, draws).tolist()
    return Quality(median(errors), max(errors), shares)
