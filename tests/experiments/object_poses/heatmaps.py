"""Heatmaps of keypoints and the truth behind them, and gradients by differences, for the tests of losses."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.object_poses.losses import Target
from experiments.object_poses.network import STRIDE, cells_of
from geometry import project, se3
from tests.numbers import DOUBLE, generator

SIDE = 12  # cells of a map along either side


class Scene(NamedTuple):
    """Logits (B,N,H,W) of maps with a peak about every keypoint, and the truth."""

    logits: Tensor
    target: Target


def scene(B: int = 2, N: int = 7, noise: float = 0.4, off: float = 0.4, seed: int = 0) -> Scene:
    """Maps of Gaussians that are `off` cells from the truth, with `noise` on their logits, at different depths."""
    draw = lambda *shape: torch.randn(*shape, generator=generator(seed + len(shape)), **DOUBLE)
    points3d = 35 * draw(B, N, 3).clamp(-1, 1)
    points3d = points3d - points3d.mean(1, keepdim=True)
    size = STRIDE * SIDE
    c = (size - 1) / 2
    K = torch.tensor([[3.4 * size, 0, c], [0, 3.5 * size, c], [0, 0, 1]], **DOUBLE).expand(B, 3, 3)
    t = torch.tensor([3.0, -2.0, 420.0], **DOUBLE) + torch.arange(B, **DOUBLE)[:, None] * torch.tensor([2.0, 3, 40])
    pose = se3.make(se3.exp(draw(B, 3)), t.double())
    points2d = project(points3d, pose, K)
    assert points2d.min() > 2
    assert points2d.max() < size - 3
    cells = cells_of(points2d) + off * draw(B, N, 2)
    grid = torch.arange(SIDE, **DOUBLE)
    sigma = 0.8 + 0.4 * torch.rand(B, N, 2, 1, generator=generator(seed), **DOUBLE)
    x, y = (-0.5 * ((grid - cells[..., i, None]) / sigma[..., i, :]) ** 2 for i in (0, 1))
    logits = y[..., :, None] + x[..., None, :] + noise * draw(B, N, SIDE, SIDE)
    return Scene(logits, Target(points3d, K, pose, points2d))


def rows(target: Target, row: Tensor) -> Target:
    return Target(*(value[row] for value in target))


def numeric(loss: Any, logits: Tensor, h: float = 1e-4) -> Tensor:
    """Central differences (B,N,H,W) of loss(logits, row) (many,) in each logit: `row` says which sample each is of."""
    found = []
    for b, own in enumerate(logits):
        steps = h * torch.eye(own.numel(), **DOUBLE).view(-1, *own.shape)
        row = torch.full((len(steps),), b)
        found.append((loss(own + steps, row) - loss(own - steps, row)).view(own.shape) / (2 * h))
    return torch.stack(found)


def largest_error(found: Tensor, wanted: Tensor) -> float:
    """Of a sample's gradient, over the norm of that: the worst sample's."""
    return ((found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).max().item()
