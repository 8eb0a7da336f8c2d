"""Quadratic programs: the conditions of optimality, independent solvers, closed forms, and what changes nothing."""

from itertools import combinations, product

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from geometry import ConstrainedSolution, QuadraticProgram, Status, argmin, minimize, quadratic_program
from tests.geometry.optim.programs import NAMES, random_programs, times, violation
from tests.numbers import DOUBLE, close

# ---- optimality ----


@pytest.mark.parametrize(
    ("n", "m", "q", "rank"),
    [
        (1, 1, 0, None),
        (2, 0, 1, None),
        (5, 0, 0, None),
        (5, 20, 0, None),
        (10, 5, 4, None),
        (20, 60, 10, None),
        (50, 50, 0, None),
        (100, 100, 20, None),
        (20, 40, 5, 10),
        (12, 24, 0, 0),
        (30, 60, 15, 0),
    ],
)
def test_random_programs_are_solved_to_rounding(n: int, m: int, q: int, rank: int | None) -> None:
    data, x = random_programs(8, n, m, q, rank)
    found = quadratic_program(*data, throw=True)
    close(found.x, x, 1e-8)
    assert violation(found, *data).max() < 1e-11
    slack = data[3] - times(data[2], found.x)
    assert (slack * found.inequality).abs().sum() < 1e-12
    close(found.cost, 0.5 * (found.x * times(data[0], found.x)).sum(-1) + (data[1] * found.x).sum(-1), 1e-12)
    assert found.x.shape == (8, n)
    assert found.inequality.shape == (8, m)
    assert found.equality.shape == (8, q)
    assert found.status.dtype == torch.int8
    assert found.steps.dtype == torch.int32


def enumerated(Q: np.ndarray, p: np.ndarray, G: np.ndarray, h: np.ndarray, A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The minimum by trying every set of active constraints."""
    n, q, best, lowest = len(p), len(b), np.full(len(p), np.nan), np.inf
    for size in range(min(len(h), n - q) + 1):
        for rows in combinations(range(len(h)), size):
            C = np.concatenate([G[list(rows)], A])
            K = np.block([[Q, C.T], [C, np.zeros((len(C), len(C)))]])
            x = np.linalg.solve(K, np.concatenate([-p, h[list(rows)], b]))[:n]
            cost = 0.5 * x @ Q @ x + p @ x
            if (G @ x <= h + 1e-10).all() and cost < lowest:
                best, lowest = x, cost
    return best


@pytest.mark.parametrize(("n", "m", "q"), [(2, 6, 0), (4, 8, 1), (5, 7, 2)])
def test_the_minimum_is_that_of_all_sets_of_active_constraints(n: int, m: int, q: int) -> None:
    """Programs that are not made from their solution: the number of active constraints is whatever it is."""
    g = torch.Generator().manual_seed(1)
    (Q, p, G, h, A, b), x = random_programs(10, n, m, q, seed=2)
    p = 3 * torch.randn(10, n, generator=g, **DOUBLE)
    h = times(G, x) + torch.rand(10, m, generator=g, **DOUBLE)
    found = quadratic_program(Q, p, G, h, A, b, throw=True)
    for i in range(10):
        close(found.x[i], torch.from_numpy(enumerated(*(d[i].numpy() for d in (Q, p, G, h, A, b)))), 1e-10)


def test_scipy_agrees_on_quadratic_and_linear_programs() -> None:
    data, _ = random_programs(4, 8, 12, 3, seed=4)
    found = quadratic_program(*data, throw=True)
    for i in range(4):
        Q, p, G, h, A, b = (d[i].numpy() for d in data)
        peer = scipy.optimize.minimize(
            lambda x, Q=Q, p=p: 0.5 * x @ Q @ x + p @ x,
            np.zeros(8),
            jac=lambda x, Q=Q, p=p: Q @ x + p,
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda x, G=G, h=h: h - G @ x, "jac": lambda x, G=G: -G},
                {"type": "eq", "fun": lambda x, A=A, b=b: A @ x - b, "jac": lambda x, A=A: A},
            ],
            options={"ftol": 1e-16, "maxiter": 500},
        )
        close(found.x[i], torch.from_numpy(peer.x), 1e-7)  # SLSQP ends by its cost
    data, _ = random_programs(4, 8, 16, 3, rank=0, seed=4)
    found = quadratic_program(*data, throw=True)
    for i in range(4):
        _, p, G, h, A, b = (d[i].numpy() for d in data)
        peer = scipy.optimize.linprog(p, G, h, A, b, bounds=(None, None))
        close(found.x[i], torch.from_numpy(peer.x), 1e-8)
        close(found.inequality[i], -torch.from_numpy(peer.ineqlin.marginals), 1e-8)
        close(found.equality[i], -torch.from_numpy(peer.eqlin.marginals), 1e-8)


# ---- closed forms ----


def test_projections() -> None:
    g = torch.Generator().manual_seed(0)
    n = 12
    v, eye, ones = (
        torch.randn(20, n, generator=g, **DOUBLE),
        torch.eye(n, **DOUBLE)[None],
        torch.ones(1, 1, n, **DOUBLE),
    )
    box = quadratic_program(eye, -v, torch.cat([eye, -eye], 1), torch.full((1, 2 * n), 0.5, **DOUBLE), throw=True)
    close(box.x, v.clamp(-0.5, 0.5), 1e-14)
    close(box.inequality[:, :n], (v - 0.5).clamp_min(0), 1e-13)
    orthant = quadratic_program(eye, -v, -eye, torch.zeros(1, n, **DOUBLE), throw=True)
    close(orthant.x, v.clamp_min(0), 1e-14)
    simplex = quadratic_program(
        eye, -v, -eye, torch.zeros(1, n, **DOUBLE), ones, torch.ones(1, 1, **DOUBLE), throw=True
    )
    # Held, Wolfe and Crowder 1974: subtract what makes the positive parts sum to one
    sorted_v = v.sort(descending=True).values
    excess = (sorted_v.cumsum(-1) - 1) / torch.arange(1, n + 1)
    shift = excess.gather(1, (sorted_v > excess).sum(-1, keepdim=True) - 1)
    close(simplex.x, (v - shift).clamp_min(0), 1e-14)
    close(simplex.equality, shift, 1e-13)
    plane = quadratic_program(eye, -v, A=ones, b=torch.ones(1, 1, **DOUBLE), throw=True)
    close(plane.x, v - (v.sum(-1, keepdim=True) - 1) / n, 1e-14)


def sudoku() -> tuple[Tensor, Tensor]:
    """A (1,64,64): each cell, row, column and block of a 4x4 board has every digit once; and a board (64,), one-hot."""
    cells = list(product(range(4), repeat=3))
    groups = [
        lambda i, j, k: (i, j),
        lambda i, j, k: (i, k),
        lambda i, j, k: (j, k),
        lambda i, j, k: (i // 2 * 2 + j // 2, k),
    ]
    rows = [[float(of(*c) == pair) for c in cells] for of in groups for pair in product(range(4), repeat=2)]
    board = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 3, 2], [3, 2, 1, 0]])
    return torch.tensor([rows], **DOUBLE), torch.nn.functional.one_hot(board, 4).flatten().to(torch.float64)


@pytest.mark.parametrize("curvature", [0.0, 0.1])
def test_sudoku_is_a_linear_program(curvature: float) -> None:
    """64 unknowns, 64 constraints of rank 40: redundant rows are no obstacle, and a clear board is found."""
    A, board = sudoku()
    assert torch.linalg.matrix_rank(A[0]) == 40
    given = torch.zeros(3, 16, **DOUBLE)
    given[0], given[1, ::2], given[2, [0, 3, 5, 6, 9, 10]] = 1, 1, 1
    p = -given.repeat_interleave(4, 1) * board
    Q, eye = curvature * torch.eye(64, **DOUBLE)[None], torch.eye(64, **DOUBLE)[None]
    found = quadratic_program(Q, p, -eye, torch.zeros(1, 64, **DOUBLE), A, torch.ones(1, 64, **DOUBLE))
    reference = [
        scipy.optimize.linprog(c.numpy(), A_eq=A[0].numpy(), b_eq=np.ones(64), bounds=(0, None)).fun for c in p
    ]
    linear = (p * found.x).sum(-1)
    close(times(A, found.x), torch.ones(3, 64, **DOUBLE), 1e-10)
    assert found.x.min() > -1e-10
    if curvature == 0:
        close(linear, torch.tensor(reference, **DOUBLE), 1e-8)
        assert found.status[0] == Status.CONVERGED
        assert all(s in (Status.CONVERGED, Status.SINGULAR) for s in found.status.tolist())  # several boards may fit
    else:
        assert found.converged.all()
    close(found.x[0], board, 1e-10)


# ---- relations ----


def test_the_unit_of_the_cost_scales_the_multipliers_only() -> None:
    (Q, p, G, h, A, b), _ = random_programs(5, 10, 20, 3)
    one = quadratic_program(Q, p, G, h, A, b, throw=True)
    for c in (1e-6, 7.0, 1e6):
        other = quadratic_program(c * Q, c * p, G, h, A, b, throw=True)
        close(other.x, one.x, 1e-11)
        close(other.inequality / c, one.inequality, 1e-10)
        close(other.equality / c, one.equality, 1e-10)


def test_units_of_unknowns_and_of_constraints() -> None:
    (Q, p, G, h, A, b), _ = random_programs(5, 10, 20, 3)
    one = quadratic_program(Q, p, G, h, A, b, throw=True)
    unit = 10 ** torch.linspace(-4, 4, 10, **DOUBLE)
    row = 10 ** torch.linspace(3, -3, 20, **DOUBLE)
    other = quadratic_program(
        Q * unit[:, None] * unit, p * unit, row[:, None] * G * unit, row * h, A * unit, b, throw=True
    )
    close(other.x * unit, one.x, 1e-10)
    close(other.inequality * row, one.inequality, 1e-10)
    far = quadratic_program(Q, 1e5 * p, G, 1e5 * h, A, 1e5 * b, throw=True)
    close(far.x / 1e5, one.x, 1e-11)


def test_order_absent_rows_and_repeated_rows_change_nothing() -> None:
    (Q, p, G, h, A, b), _ = random_programs(5, 10, 20, 3)
    one = quadratic_program(Q, p, G, h, A, b, throw=True)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = quadratic_program(Q, p, G[:, order], h[:, order], A.flip(1), b.flip(1), throw=True)
    close(shuffled.x, one.x, 1e-12)
    close(shuffled.inequality, one.inequality[:, order], 1e-11)
    absent = torch.cat([G, 0 * G[:, :4]], 1), torch.cat([h, torch.ones(5, 4, **DOUBLE)], 1)
    padded = quadratic_program(Q, p, *absent, A, b, throw=True)
    close(padded.x, one.x, 1e-12)
    assert (padded.inequality[:, 20:] == 0).all()
    twice = torch.cat([G, 2 * G], 1), torch.cat([h, 2 * h], 1)
    doubled = quadratic_program(Q, p, *twice, torch.cat([A, A], 1), torch.cat([b, b], 1), throw=True)
    close(doubled.x, one.x, 1e-11)
    close(doubled.inequality[:, :20] + 2 * doubled.inequality[:, 20:], one.inequality, 1e-10)


def test_only_the_symmetric_part_of_Q_counts() -> None:
    (Q, *rest), _ = random_programs(3, 6, 8, 1)
    skew = torch.randn(3, 6, 6, **DOUBLE, generator=torch.Generator().manual_seed(0))
    leaf = (Q + skew - skew.mT).requires_grad_()
    found = quadratic_program(leaf, *rest, throw=True)
    close(found.x.detach(), quadratic_program(Q, *rest).x, 1e-12)
    (gradient,) = torch.autograd.grad(found.x.square().sum(), leaf)
    close(gradient, gradient.mT, 0)


def test_a_batch_is_a_loop_and_shared_data_are_repeated_data() -> None:
    data, _ = random_programs(4, 8, 10, 2)
    found = quadratic_program(*data, throw=True)
    for i in range(4):
        alone = quadratic_program(*(d[i : i + 1] for d in data), throw=True)
        close(alone.x[0], found.x[i], 1e-12)
        close(alone.inequality[0], found.inequality[i], 1e-11)
    p = data[1]
    shared = [d[:1].clone().requires_grad_() for d in data]
    repeated = [d[:1].clone().requires_grad_() for d in data]
    one = quadratic_program(shared[0], p, *shared[2:], throw=True)
    # not even G with A of its own size
    other = quadratic_program(repeated[0].expand(4, 8, 8), p, repeated[2].expand(4, 10, 8), *repeated[3:], throw=True)
    close(one.x, other.x, 1e-12)
    one.x.square().sum().backward()
    other.x.square().sum().backward()
    for name, a, b in zip(NAMES, shared, repeated, strict=True):
        if name != "p":
            assert a.grad is not None
            close(a.grad, b.grad, 1e-10)


def test_the_verbs_and_the_short_call_are_one() -> None:
    data, _ = random_programs(3, 6, 8, 2)
    leaf = data[1].clone().requires_grad_()
    short = quadratic_program(data[0], leaf, *data[2:])
    verb = argmin(QuadraticProgram(), None, data[0], leaf, *data[2:], throw=True)
    plain = minimize(QuadraticProgram(), None, data[0], leaf, *data[2:], throw=True)
    assert isinstance(verb, ConstrainedSolution)
    assert isinstance(plain, ConstrainedSolution)
    close(verb.x, short.x, 0)
    close(plain.x, short.x.detach(), 0)
    assert not plain.x.requires_grad
    assert not quadratic_program(*data).x.requires_grad
    only_Q_and_p = argmin(QuadraticProgram(), None, *data[:2], throw=True)
    close(only_Q_and_p.x, -torch.linalg.solve(data[0], data[1]), 1e-11)
    with torch.no_grad():
        assert not quadratic_program(data[0], leaf, *data[2:]).x.requires_grad


def test_float32() -> None:
    data, x = random_programs(8, 10, 20, 3)
    single = [d.float().requires_grad_() for d in data]
    found = quadratic_program(*single, throw=True)
    assert found.x.dtype == torch.float32
    close(found.x.detach(), x.float(), 3e-4)
    found.x.square().sum().backward()
    double = [d.clone().requires_grad_() for d in data]
    quadratic_program(*double).x.square().sum().backward()
    for a, b in zip(single, double, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad - b.grad).norm() < 1e-3 * b.grad.norm()
