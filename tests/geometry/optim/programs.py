"""Quadratic programs whose minimisers are known, for the tests of `quadratic_program`."""

import torch
from torch import Tensor

from geometry import ConstrainedSolution
from tests.numbers import DOUBLE

NAMES = ("Q", "p", "G", "h", "A", "b")


def times(M: Tensor, v: Tensor) -> Tensor:
    return (M @ v[..., None])[..., 0]


def random_programs(
    B: int, n: int, m: int, q: int, rank: int | None = None, seed: int = 0, spare: int = 0
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Q, p, G, h, A, b, and the minimiser, made by choosing x, slack and multipliers first.

    Q is definite and half of the degrees of freedom that A leaves are taken by active rows of G; or it has the given
    rank, and they take all but `spare`.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, **DOUBLE)

    root, G, A, x = normal(B, n if rank is None else rank, n), normal(B, m, n), normal(B, q, n), normal(B, n)
    Q = root.mT @ root / n + (0.1 * torch.eye(n, **DOUBLE) if rank is None else 0)
    active = torch.rand(B, m, generator=g).argsort(-1) < ((n - q + 1) // 2 if rank is None else n - q - spare)
    gap = 0.1 + torch.rand(B, m, generator=g, **DOUBLE)
    z, s, y = torch.where(active, gap, 0.0), torch.where(active, 0.0, gap), normal(B, q)
    p = -(times(Q, x) + times(G.mT, z) + times(A.mT, y))
    return (Q, p, G, times(G, x) + s, A, times(A, x)), x


def violation(found: ConstrainedSolution, *data: Tensor) -> Tensor:
    """How far (B,) x and its multipliers are from satisfying the Karush-Kuhn-Tucker conditions."""
    Q, p, G, h, A, b = data
    slope = times(Q, found.x) + p + times(G.mT, found.inequality) + times(A.mT, found.equality)
    slack = h - times(G, found.x)
    parts = [slope, slack.clamp_max(0), found.inequality.clamp_max(0), slack * found.inequality]
    return torch.cat([*parts, times(A, found.x) - b], -1).abs().amax(-1)
