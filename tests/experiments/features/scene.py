"""Tracks without a renderer: points before a textured wall, and pictures of them."""

import torch
from torch import Tensor

from datasets.made.surfaces import Solids
from experiments.features.tracked import Made, Tracked
from geometry import project, se3
from geometry.camera import matrix_from_intrinsics

K = matrix_from_intrinsics(torch.tensor([400.0, 400, 79.5, 59.5], dtype=torch.float64))


def wall() -> Solids:
    """A flat box whose near face is the plane z = 0."""
    linear = torch.diag(torch.tensor([3.0, 3.0, 0.5], dtype=torch.float64))[None]
    return Solids(torch.tensor([False]), linear, torch.tensor([[0, 0, 0.5]], dtype=torch.float64))


def points_on_wall(points: int = 25, views: int = 4, noise_px: float = 0.0, seed: int = 0) -> Made:
    """Points of the wall and before it, all seen by all cameras, at most so many px off; no pictures."""
    g = torch.Generator().manual_seed(seed)
    X = 0.5 * torch.randn(points, 3, generator=g, dtype=torch.float64)
    X[:, 2] = 0
    angle = torch.linspace(-0.5, 0.5, views, dtype=torch.float64)
    tilt = 0.2 * torch.randn(views, generator=g, dtype=torch.float64)
    turn = se3.exp(torch.stack([tilt, angle, 0.1 * tilt], -1))
    pose = se3.make(turn, torch.tensor([0.05, -0.02, 4.0], dtype=torch.float64).expand(views, 3))
    camera, point = (
        index.flatten() for index in torch.meshgrid(torch.arange(views), torch.arange(points), indexing="ij")
    )
    x = project(X, pose, K)[camera, point]
    x = x + noise_px * torch.randn(x.shape, generator=g, dtype=torch.float64)
    pictures = torch.zeros(views, 120, 160)
    return Made(Tracked(pictures, K, x, camera, point, pose, X), pose, wall())


def texture(seed: int = 0) -> Tensor:
    """Smooth noise (16,2) waves and (16,) phases, for `grey`."""
    g = torch.Generator().manual_seed(seed)
    return torch.cat([0.5 * torch.randn(24, 2, generator=g), 6.3 * torch.rand(24, 1, generator=g)], 1).double()


def grey(waves: Tensor, places: Tensor) -> Tensor:
    """Its greys, 0 … 1, at places (…,2) px: known everywhere, not on a grid alone."""
    return 0.5 + 0.4 * torch.sin(places @ waves[:, :2].mT + waves[:, 2]).mean(-1)
