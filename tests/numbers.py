"""What many tests compute with: closeness, random numbers, and the differences that gradients are held against."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
STENCIL = {-3: -1.0, -2: 9.0, -1: -45.0, 1: 45.0, 2: -9.0, 3: 1.0}
"""Weights, over 60 h, of the values of a function at k h: their sum is its slope at 0, to the sixth order in h."""


def close(found: Any, expected: Any, atol: float, rtol: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), **DOUBLE)


def slope(values: Tensor, h: float) -> Tensor:
    """d f(step) / d step (…) at 0, of values (6,…) of f at k h for k of the stencil."""
    return torch.tensordot(torch.tensor([*STENCIL.values()], dtype=values.dtype), values, 1) / (60 * h)


def central_difference(f: Callable[[float], Tensor], h: float) -> Tensor:
    """d f(step) / d step at 0."""
    return slope(torch.stack([f(k * h) for k in STENCIL]), h)


def directions_of(data: Sequence[Tensor], sizes: Sequence[float], g: torch.Generator) -> list[Tensor]:
    """A random direction of its size for each of the data."""
    return [size * torch.randn(d.shape, generator=g, dtype=d.dtype) for size, d in zip(sizes, data, strict=True)]


def one_each(data: Sequence[Tensor]) -> list[Tensor]:
    """Of data (B,…) as many problems as there are data, for `errors_in_turn`: problem after problem, over again."""
    return [d[torch.arange(len(data)) % len(d)] for d in data]


def errors_in_turn(value: Callable[..., Tensor], data: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """How far autograd is from differences, relative (B,): in problem i of value(*data) (B,), only data[i] moves."""
    alone = [torch.zeros_like(d).index_copy(0, torch.tensor([i]), d[i : i + 1]) for i, d in enumerate(directions)]
    inputs = [d.clone().requires_grad_() for d in data]
    gradients = torch.autograd.grad(value(*inputs).sum(), inputs)
    ours = torch.stack([(g * d).sum() for g, d in zip(gradients, alone, strict=True)])
    wanted = central_difference(lambda h: value(*(a + h * d for a, d in zip(data, alone, strict=True))), 1e-2)
    return ((ours - wanted) / wanted).abs()
