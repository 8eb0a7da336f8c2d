"""Gradients of quadratic programs: finite differences, the envelope theorem, degenerate and repeated constraints."""

import pytest
import torch
from torch import Tensor

from geometry import quadratic_program
from tests.geometry.optim.programs import NAMES, random_programs, times
from tests.numbers import DOUBLE, STENCIL, close, generator, slope


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "m", "q", "rank"), [(6, 8, 2, None), (5, 0, 2, None), (5, 8, 0, None), (6, 12, 1, 3), (4, 0, 0, None)]
)
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_against_finite_differences(n: int, m: int, q: int, rank: int | None, shared: bool) -> None:
    """Of a random sum of x and both multipliers, in every input along a random direction."""
    data, _ = random_programs(3, n, m, q, rank, seed=3)
    if shared:
        Q, p, G, _, A, b = (d[:1] for d in data)
        p = p + 0.01 * data[1] / data[1].norm(dim=-1, keepdim=True)  # three programs that differ in p alone
        data = (Q, p, G, data[3][:1], A, b)
    g = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(3, k, generator=g, **DOUBLE) for k in (n, m, q)]

    def loss(*data: Tensor) -> Tensor:
        found = quadratic_program(*data, throw=True)
        parts = (found.x, found.inequality, found.equality)
        return sum((c * part).sum() for c, part in zip(cotangents, parts, strict=True))  # type: ignore[return-value]

    leaves = [d.clone().requires_grad_() for d in data]
    loss(*leaves).backward()
    for i, leaf in enumerate(leaves):
        if leaf.numel() == 0:
            continue
        direction = torch.randn(leaf.shape, generator=g, **DOUBLE)
        # a linear part of Q must not leave the semidefinite matrices: move its root instead
        if i == 0 and rank is not None:
            direction = direction @ leaf.detach()
            direction = direction + direction.mT
        h = 1e-4
        moved = torch.stack([loss(*data[:i], data[i] + k * h * direction, *data[i + 1 :]) for k in STENCIL])
        numeric = slope(moved, h).item()
        assert leaf.grad is not None
        analytic = (leaf.grad * (direction + direction.mT if i == 0 else direction)).sum() / (2 if i == 0 else 1)
        assert abs(analytic.item() - numeric) < 1e-7 * max(1, abs(numeric)), NAMES[i]


@pytest.mark.slow
def test_gradcheck() -> None:
    data, _ = random_programs(2, 4, 5, 1, seed=6)

    def solution(*data: Tensor) -> tuple[Tensor, ...]:
        found = quadratic_program(*data)
        return found.x, found.inequality, found.equality

    assert torch.autograd.gradcheck(solution, [d.requires_grad_() for d in data], atol=1e-6, rtol=1e-6)


def test_multipliers_are_the_derivatives_of_the_cost() -> None:
    """The envelope theorem, by another route than the adjoint: cost of the constraints' relaxation."""
    (Q, p, G, h, A, b), _ = random_programs(4, 6, 8, 2)
    found = quadratic_program(Q, p, G, h, A, b, throw=True)
    e = 1e-4
    for i in range(8):
        up, down = (quadratic_program(Q, p, G, h + k * e * torch.eye(8, **DOUBLE)[i], A, b).cost for k in (1, -1))
        close((up - down) / (2 * e), -found.inequality[:, i], 1e-6)
    for i in range(2):
        up, down = (quadratic_program(Q, p, G, h, A, b + k * e * torch.eye(2, **DOUBLE)[i]).cost for k in (1, -1))
        close((up - down) / (2 * e), -found.equality[:, i], 1e-6)


def test_a_degenerate_constraint_counts_as_absent() -> None:
    """The projection onto the orthant of a point on its boundary, where both one-sided derivatives exist: 0 and 1."""
    v = torch.tensor([[1.0, -1.0, 0.0]], **DOUBLE).requires_grad_()
    eye = torch.eye(3, **DOUBLE)[None]
    x = quadratic_program(eye, -v, -eye, torch.zeros(1, 3, **DOUBLE), throw=True).x
    close(x.detach(), torch.tensor([[1.0, 0, 0]], **DOUBLE), 1e-14)
    x.sum().backward()
    close(v.grad, torch.tensor([[1.0, 0, 1]], **DOUBLE), 1e-14)


@pytest.mark.parametrize("seed", range(2, 6))
def test_many_degenerate_constraints(seed: int) -> None:
    """Twenty planes through the free minimum of ten unknowns, none of which pushes.

    Their multipliers are determined in sums alone, which may cancel: each is as good as what ends the solver, eps^0.8.
    """
    g = generator(seed)
    G, x = torch.randn(200, 20, 10, generator=g, **DOUBLE), torch.randn(200, 10, generator=g, **DOUBLE)
    found = quadratic_program(torch.eye(10, **DOUBLE)[None], -x, G, times(G, x), throw=True)
    close(found.x, x, 1e-12)
    assert found.inequality.min() > -1e-10
    close(times(G.mT, found.inequality), torch.zeros(200, 10, **DOUBLE), 1e-12)


def test_repeated_constraints_share_their_gradient() -> None:
    (Q, p, G, h, A, b), _ = random_programs(3, 6, 8, 2)
    one, two = ([d.clone().requires_grad_() for d in (Q, p, A, b)] for _ in range(2))
    quadratic_program(*one[:2], G, h, *one[2:], throw=True).x.square().sum().backward()
    twice = torch.cat([G, G], 1), torch.cat([h, h], 1)
    quadratic_program(*two[:2], *twice, *two[2:], throw=True).x.square().sum().backward()
    for a, b in zip(one, two, strict=True):
        assert a.grad is not None
        close(a.grad, b.grad, 1e-9)
