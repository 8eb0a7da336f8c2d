"""Quadratic programs at, or close to, corners where more constraints meet than there are unknowns.

A layer that learns its constraints comes to such corners: those of a puzzle are nothing else.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from geometry.optim.quadratic import QuadraticProgram
from geometry.optim.solution import ConstrainedSolution, Status

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def corners(B: int, n: int, q: int, slack: Tensor, z: Tensor, seed: int = 0) -> tuple[tuple[Tensor, ...], Tensor]:
    """Programs with the minimiser x (B,n) and these slacks and multipliers (B,m) there: Q, p, G, h, A, b, and x."""
    g = torch.Generator().manual_seed(seed)
    G, A, x, y = (torch.randn(B, *s, generator=g, **DOUBLE) for s in ((slack.shape[1], n), (q, n), (n,), (q,)))
    Q = 0.1 * torch.eye(n, **DOUBLE)[None]
    p = -(0.1 * x + (z[:, None] @ G)[:, 0] + (y[:, None] @ A)[:, 0])
    return (Q, p, G, (G @ x[..., None])[..., 0] + slack, A, (A @ x[..., None])[..., 0]), x


def optimal(found: ConstrainedSolution, *data: Tensor) -> Tensor:
    """Whether the problems (B,) satisfy the conditions of a minimum, for numbers near one."""
    Q, p, G, h, A, b = data
    slack, z = h - (G @ found.x[..., None])[..., 0], found.inequality
    slope = (Q @ found.x[..., None])[..., 0] + p + (z[:, None] @ G)[:, 0] + (found.equality[:, None] @ A)[:, 0]
    left = torch.cat([slope, torch.minimum(slack, z), b - (A @ found.x[..., None])[..., 0]], -1)
    return left.abs().amax(-1) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize(("n", "q", "near"), [(20, 5, 1), (20, 5, 3), (20, 10, 10), (6, 2, 3)])
def test_constraints_that_pass_close_by_a_corner_are_told_from_those_that_make_it(n: int, q: int, near: int) -> None:
    """n - q rows push, and others miss the corner by 1e-5 to 1e-3.

    A hundredth may fail: random rows may be nearly parallel. It was two thirds as long as the active set was guessed
    while s z = mu was 1e-9 still, where a slack of 1e-5 has a multiplier of 1e-4.
    """
    B, m = 500, 2 * n
    g, row = torch.Generator().manual_seed(1), torch.arange(m)
    gap = 0.1 + torch.rand(B, m, generator=g, **DOUBLE)
    close_by = 10 ** (-5 + 2 * torch.rand(B, m, generator=g, **DOUBLE))
    slack = torch.where(row < n - q, 0.0, torch.where(row < n - q + near, close_by, gap))
    data, x = corners(B, n, q, slack, torch.where(row < n - q, gap, 0.0))
    found = QuadraticProgram().minimize(None, *data)
    assert set(found.status.tolist()) <= {Status.CONVERGED, Status.STALLED}
    assert found.converged.double().mean() >= 0.99
    assert optimal(found, *data)[found.converged].all()
    assert (found.x - x).abs().amax(-1)[found.converged].median() < 1e-12


@pytest.mark.parametrize(
    ("n", "m", "q", "touching"), [(20, 60, 5, 20), (20, 60, 5, 30), (10, 40, 2, 16), (5, 30, 0, 10)]
)
def test_constraints_that_touch_and_do_not_push_are_no_obstacle(n: int, m: int, q: int, touching: int) -> None:
    """More rows pass through the minimum than there are unknowns, and only a quarter of them push: no one may fail."""
    B, row = 400, torch.arange(m)
    slack = torch.where(row < touching, 0.0, 1.0).to(torch.float64).expand(B, m)
    z = torch.where(row < touching // 4, 1.0, 0.0).to(torch.float64).expand(B, m)
    data, x = corners(B, n, q, slack, z)
    found = QuadraticProgram().minimize(None, *data)
    assert found.converged.all()
    assert optimal(found, *data).all()
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-7)


def test_the_iterations_do_not_go_round_in_circles() -> None:
    """Mehrotra's corrector in full repeats the same six iterates here, at s z = 1e-3, until max_steps."""
    A = torch.tensor(
        [
            [0.06, 0.17, -0.06, -1.43, -0.34, -0.73, -1.56, -0.93],
            [0.15, -0.20, -0.42, 0.02, 0.81, -0.96, -0.12, -1.97],
            [0.40, -0.84, -0.90, -0.16, -0.29, 1.42, 0.06, 1.27],
        ],
        **DOUBLE,
    )[None]
    eye, none = torch.eye(8, **DOUBLE)[None], torch.zeros(1, 8, **DOUBLE)
    p = -torch.tensor([[0, 0, 1, 1, 0, 0, 0, 1]], **DOUBLE)
    data = 0.1 * eye, p, -eye, none, A, 0.25 * A.sum(-1)
    found = QuadraticProgram().minimize(None, *data)
    assert found.steps.item() < 20
    assert found.converged.all()
    assert optimal(found, *data).all()
