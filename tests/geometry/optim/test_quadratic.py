"""Quadratic programs: the conditions of optimality, independent solvers, closed forms, and the adjoint."""

from itertools import combinations, product

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from geometry import ConstrainedSolution, QuadraticProgram, SolverError, Status, argmin, minimize, quadratic_program
from tests.numbers import DOUBLE, STENCIL, close, slope

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


# ---- gradients ----


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


def test_many_degenerate_constraints() -> None:
    """Twenty planes through the free minimum of ten unknowns, none of which pushes."""
    g = torch.Generator().manual_seed(2)
    G, x = torch.randn(200, 20, 10, generator=g, **DOUBLE), torch.randn(200, 10, generator=g, **DOUBLE)
    found = quadratic_program(torch.eye(10, **DOUBLE)[None], -x, G, times(G, x), throw=True)
    close(found.x, x, 1e-12)
    assert found.inequality.min() > -1e-12
    # the multipliers of dependent constraints may cancel
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


def test_a_second_derivative_is_refused_not_wrong() -> None:
    (Q, p, *rest), _ = random_programs(2, 4, 5, 1)
    p.requires_grad_()
    (first,) = torch.autograd.grad(quadratic_program(Q, p, *rest).x.square().sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# ---- failures ----


def test_failures_are_named_isolated_and_without_gradient() -> None:
    """0, 5: fine; 1: x <= -1 and x >= 1; 2: no bound; 3: a flat valley; 4: not a number."""
    Q = torch.eye(2, **DOUBLE).repeat(6, 1, 1)
    p = torch.tensor([[1.0, 2], [1, 2], [0, -1], [1, 0], [1, torch.nan], [2, 1]], **DOUBLE)
    G = torch.tensor([[1.0, 0], [-1, 0]], **DOUBLE).repeat(6, 1, 1)
    h = torch.ones(6, 2, **DOUBLE)
    h[1], Q[2:4, 1, 1] = -1, 0
    leaves = [d.clone().requires_grad_() for d in (Q, p, G, h)]
    found = quadratic_program(*leaves)
    expected = [0, Status.INFEASIBLE, Status.UNBOUNDED, Status.SINGULAR, Status.INFEASIBLE, 0]
    assert found.status.tolist() == expected
    assert torch.isfinite(found.x[:4]).all()
    assert torch.isnan(found.x[4]).all()
    good = torch.tensor([0, 5])
    alone = [d[good].clone().requires_grad_() for d in (Q, p, G, h)]
    single = quadratic_program(*alone, throw=True)
    close(found.x[good], single.x, 1e-14)
    found.x.square().sum().backward()
    single.x.square().sum().backward()
    for a, b in zip(leaves, alone, strict=True):
        assert a.grad is not None
        assert (a.grad[1:5] == 0).all()
        close(a.grad[good], b.grad, 1e-13)
    with pytest.raises(SolverError, match=r"4 of 6 problems failed: problem 1: .*contrary constraints"):
        quadratic_program(Q, p, G, h, throw=True)


@pytest.mark.parametrize("curvature", [0.0, 1.0])
def test_contrary_constraints_are_seen(curvature: float) -> None:
    g = torch.Generator().manual_seed(0)
    n, Q = 8, curvature * torch.eye(8, **DOUBLE)[None]
    p, G, h = (torch.randn(40, *shape, generator=g, **DOUBLE) for shape in ((n,), (16, n), (16,)))
    slab = torch.cat([G, -G[:, :1]], 1), torch.cat([h, -h[:, :1] - 0.1], 1)
    box = (
        torch.cat([torch.eye(n, **DOUBLE), -torch.eye(n, **DOUBLE)]).repeat(40, 1, 1),
        torch.full((40, 16), 10.0, **DOUBLE),
    )
    both = torch.cat([slab[0], box[0]], 1), torch.cat([slab[1], box[1]], 1)
    assert (quadratic_program(Q, p, *both).status == Status.INFEASIBLE).all()
    A, b = G[:, :3].clone(), h[:, :3]
    A[:, 2] = A[:, 0] - A[:, 1]
    assert (quadratic_program(Q, p, *box, A, b).status == Status.INFEASIBLE).all()
    b = torch.stack([b[:, 0], b[:, 1], b[:, 0] - b[:, 1]], -1)
    assert not (quadratic_program(Q, p, *box, A, b / 10).status == Status.INFEASIBLE).any()


def test_no_lower_bound_is_seen() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(40, 5, generator=g, **DOUBLE)
    eye, zero = torch.eye(5, **DOUBLE)[None], torch.zeros(1, 5, **DOUBLE)
    assert (quadratic_program(0 * eye, p).status == Status.UNBOUNDED).all()
    bounded = (p > 0).all(-1)
    status = quadratic_program(0 * eye, p, -eye, zero).status
    assert (status[~bounded] == Status.UNBOUNDED).all()
    assert (status[bounded] == Status.CONVERGED).all()
    flat = torch.diag(torch.tensor([1.0, 2, 3, 4, 0], **DOUBLE))[None]
    assert (quadratic_program(flat, p).status == Status.UNBOUNDED).all()
    assert (quadratic_program(flat, p * (torch.arange(5) < 4)).status == Status.SINGULAR).all()


@pytest.mark.parametrize(("n", "m", "q"), [(5, 8, 2), (20, 30, 5), (64, 64, 30)])
def test_an_edge_of_minima_is_singular_and_its_cost_is_right(n: int, m: int, q: int) -> None:
    """Linear programs with one active constraint too few for a vertex: the last pivot is nothing but rounding."""
    data, x = random_programs(40, n, m, q, rank=0, spare=1)
    found = quadratic_program(*data)
    assert (found.status == Status.SINGULAR).all()
    close(found.cost, (data[1] * x).sum(-1), 1e-9)


def test_what_is_not_a_minimum_is_singular_and_too_few_steps_stall() -> None:
    (Q, p, G, h, A, b), _ = random_programs(3, 6, 8, 2)
    saddle = quadratic_program(-Q, p)
    assert (saddle.status == Status.SINGULAR).all()
    assert torch.isfinite(saddle.x).all()
    status = quadratic_program(Q, p, G, h, A, b, max_steps=1, polish=0).status
    assert all(s in (Status.STALLED, Status.SINGULAR) for s in status.tolist())


def test_an_empty_batch_belongs_to_the_graph() -> None:
    data, _ = random_programs(2, 4, 5, 1)
    Q = data[0][:1].clone().requires_grad_()
    found = quadratic_program(Q, *(d[:0] for d in data[1:]))
    assert found.x.shape == (0, 4)
    assert found.inequality.shape == (0, 5)
    found.x.sum().backward()
    assert (Q.grad == 0).all()


def test_errors_name_the_argument() -> None:
    data, _ = random_programs(3, 4, 5, 2)
    for i, wanted in enumerate(["3 or 1, 4, 4", "3 or 1, 4", "3 or 1, 5, 4", "3 or 1, 5", "3 or 1, 2, 4", "3 or 1, 2"]):
        bad = list(data)
        bad[i] = data[i][:2]
        with pytest.raises(ValueError, match=rf"{NAMES[i]} must have shape \({wanted}\), got \(2, "):
            quadratic_program(*bad)
    with pytest.raises(ValueError, match=r"G must have shape \(3 or 1, 5, 4\), got \(3, 5, 3\)"):
        quadratic_program(*data[:2], data[2][..., :3], data[3])
    with pytest.raises(ValueError, match=r"p must have shape \(B\|1,n\), got \(4,\)"):
        quadratic_program(data[0], data[1][0])
    with pytest.raises(ValueError, match="G and h must be given together"):
        quadratic_program(*data[:3])
    with pytest.raises(ValueError, match="A and b must be given together"):
        quadratic_program(*data[:2], b=data[5])
    with pytest.raises(ValueError, match=r"h must have the floating dtype of p, torch.float64, got torch.float32"):
        quadratic_program(*data[:3], data[3].float())
    with pytest.raises(ValueError, match="x0 must be None"):
        argmin(QuadraticProgram(), data[1], *data)
    with pytest.raises(ValueError, match="data must be Q, p, then G, h, then A, b, got 3 tensors"):
        argmin(QuadraticProgram(), None, *data[:3])
    with pytest.raises(ValueError, match=r"gradient of a quadratic program must be \"exact\", got 'unrolled'"):
        argmin(QuadraticProgram(), None, *data, gradient="unrolled")
