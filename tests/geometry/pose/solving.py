"""What the tests of `pnp` give it, and solutions with gradients."""

from typing import Any

import torch
from torch import Tensor

from geometry import pnp
from tests.numbers import DOUBLE, generator


def inputs_of(scene: Any, seed: int = 7) -> dict[str, Tensor]:
    """Every differentiable input of `pnp`, one of each per problem, with uneven weights."""
    B, N, _ = scene.points2d.shape
    g = torch.Generator().manual_seed(seed)
    inputs = {
        "points2d": scene.points2d,
        "points3d": scene.points3d,
        "K": scene.K.expand(B, 3, 3),
        "weights": (0.7 + 0.6 * torch.rand(B, N, 2, generator=g, dtype=torch.float64)).to(scene.K.dtype),
    }
    if len(scene.distortion):
        inputs["distortion"] = scene.distortion.expand(B, -1)
    return {name: value.clone() for name, value in inputs.items()}


def solve_with_gradients(inputs: dict[str, Any], **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """Solution, and the gradients of one fixed function of the poses to all floating inputs."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    solution = pnp(**leaves, **options)
    covector = torch.linspace(-1, 1, 12, dtype=solution.cost.dtype).view(3, 4)
    (solution.x[:, :3] * covector).sum().backward()
    return solution, {k: v.grad for k, v in leaves.items() if v.is_floating_point()}


def inverse_sigma(B: int, N: int, sigma: float, seed: int = 1) -> Tensor:
    """Weights (B,N,2) about 1 / sigma."""
    return (0.5 + torch.rand(B, N, 2, generator=generator(seed), **DOUBLE)) / sigma
