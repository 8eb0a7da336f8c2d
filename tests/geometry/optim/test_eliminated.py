"""Programs whose x is eliminated by compiled code, beside the iterations in tensors, which stay."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor

from geometry import ConstrainedSolution, Status, quadratic_program
from geometry.optim import eliminated, quadratic
from geometry.optim.equations import Coefficients, Equations, Units, certainly_unique, curvature
from geometry.optim.linear import solve_spd
from tests.geometry.optim.programs import NAMES, random_programs, violation
from tests.numbers import DOUBLE, close, generator


@contextmanager
def in_tensors() -> Iterator[None]:
    """As on a device: nothing is eliminated."""
    with mock.patch.object(eliminated, "fits", return_value=False):
        yield


@contextmanager
def nothing_left() -> Iterator[None]:
    """The iterations in tensors may not be needed."""
    with (
        mock.patch.object(quadratic, "interior_point", side_effect=AssertionError),
        mock.patch.object(quadratic, "_saddle_point", side_effect=AssertionError),
    ):
        yield


def compared(data: tuple[Tensor, ...], rtol: float) -> ConstrainedSolution:
    """What is found, after a look at what tensors find."""
    found = quadratic_program(*data)
    with in_tensors():
        expected = quadratic_program(*data)
    assert found.status.tolist() == expected.status.tolist()
    good = expected.converged
    for one, other in ((found.x[good], expected.x[good]), (found.cost[good, None], expected.cost[good, None])):
        close(one / other.abs().amax(-1, keepdim=True), other / other.abs().amax(-1, keepdim=True), rtol)
    return found


@pytest.mark.parametrize(
    ("n", "m", "q"), [(1, 0, 0), (1, 1, 0), (3, 2, 1), (4, 4, 0), (5, 9, 2), (8, 0, 3), (13, 30, 4), (40, 17, 9)]
)
@pytest.mark.parametrize("B", [1, 11])
def test_minima_of_all_sizes_are_those_of_the_tensors(n: int, m: int, q: int, B: int) -> None:
    """Whole tiles and whole vectors or not."""
    data, x = random_programs(B, n, m, q, seed=n)
    found = compared(data, 1e-11)
    close(found.x, x, 1e-10)
    assert violation(found, *data).max() < 1e-9
    with nothing_left():
        assert quadratic_program(*data).converged.all()


def degenerate(kind: str, B: int = 24) -> tuple[Tensor, ...]:
    (Q, p, G, h, A, b), x = random_programs(B, 8, 10, 2, seed=7)
    g = generator(3)
    if kind == "redundant equations":
        A, b = torch.cat([A, 2 * A], 1), torch.cat([b, 2 * b], 1)
    elif kind == "repeated inequalities":
        G, h = torch.cat([G, G], 1), torch.cat([h, h], 1)
    elif kind == "rows that touch":
        touching = (G @ x[..., None])[..., 0]
        G, h = torch.cat([G, -G], 1), torch.cat([h, -touching + (touching - h).abs()], 1)
    elif kind == "units":
        unit = 10 ** (8 * torch.rand(B, 8, generator=g, **DOUBLE) - 4)
        Q, p, G, A = unit[..., None] * Q * unit[:, None], unit * p, G * unit[:, None], A * unit[:, None]
    elif kind == "bounds that stand for none":
        h[:, ::2] = 1e13
        G[:, ::2] = G[:, ::2].abs()
    elif kind == "infeasible":
        G[::2, 1], h[::2, 1] = -G[::2, 0], -h[::2, 0] - 1
    elif kind == "flat":
        Q[::3] = 0
    elif kind == "nearly flat":
        Q = Q * 10 ** (-14 * torch.rand(B, 1, 1, generator=g, **DOUBLE))
    elif kind == "not finite":
        p[::3, 0], h[1::3, 0] = torch.nan, torch.inf
    elif kind == "not symmetric":
        skew = torch.randn(B, 8, 8, generator=g, **DOUBLE)
        Q = Q + skew - skew.mT
    return Q, p, G, h, A, b


KINDS = (
    "redundant equations", "repeated inequalities", "rows that touch", "units", "bounds that stand for none",
    "infeasible", "flat", "nearly flat", "not finite", "not symmetric",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_programs_end_as_in_tensors(kind: str) -> None:
    found = compared(degenerate(kind), 1e-10)
    if kind in ("infeasible", "not finite"):
        assert (found.status == Status.INFEASIBLE).any()
    assert found.converged.any()


@pytest.mark.parametrize("kind", ["none", "redundant equations", "units", "flat", "infeasible", "not symmetric"])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_the_tensors(kind: str, shared: bool) -> None:
    data = degenerate("none" if kind == "redundant equations" else kind)
    if shared:
        data = (data[0][1:2], data[1], *(d[1:2] for d in data[2:]))
    cotangent = torch.randn(data[1].shape, generator=generator(1), **DOUBLE)

    def gradients() -> tuple[Tensor, ...]:
        leaves = [d.clone().requires_grad_() for d in data]
        Q, p, G, h, A, b = leaves
        if kind == "redundant equations":  # which must stay consistent
            A, b = torch.cat([A, 2 * A], 1), torch.cat([b, 2 * b], 1)
        found = quadratic_program(Q, p, G, h, A, b)
        loss = (cotangent * found.x).sum()
        if kind not in ("redundant equations", "units"):
            loss = loss + found.inequality.square().sum() + found.equality.sum()
        return torch.autograd.grad(loss, leaves)

    with in_tensors():
        expected = gradients()
    for name, one, other in zip(NAMES, gradients(), expected, strict=True):
        assert torch.isfinite(one).all(), name
        assert (one - other).norm() <= 1e-8 * other.norm(), name
    if kind == "none" and not shared:
        with nothing_left():
            gradients()


def test_second_derivatives_follow_the_first() -> None:
    """A graph of the gradient is made of tensors; its values are those of the kernel."""
    data = [d[:3].clone().requires_grad_() for d in degenerate("none")]
    plain = torch.autograd.grad(quadratic_program(*data).x.square().sum(), data)
    watched = torch.autograd.grad(quadratic_program(*data).x.square().sum(), data, create_graph=True)
    for one, other in zip(plain, watched, strict=True):
        close(one, other.detach(), 1e-10)
    assert torch.autograd.grad(watched[1].sum(), data[0])[0].abs().max() > 0


def test_no_problem_depends_on_its_neighbours() -> None:
    """To the last bit, beside one that is not finite, one that is flat and one that contradicts itself."""
    Q, p, G, h, A, b = data = degenerate("none")
    alone = quadratic_program(*data)
    Q, p, h = Q.clone(), p.clone(), h.clone()
    p[2], Q[5] = torch.nan, 0
    G, h[9] = torch.where(torch.arange(24)[:, None, None] == 9, G[:, :1], G), -torch.arange(10.0)
    A = torch.where(torch.arange(24)[:, None, None] == 9, torch.cat([G[:, :1], -G[:, :1]], 1), A)
    beside = quadratic_program(Q, p, G, h, A, torch.where(torch.arange(24)[:, None] == 9, 1.0, b))
    others = [i for i in range(24) if i not in (2, 5, 9)]
    assert not beside.converged[[2, 9]].any()
    assert torch.equal(beside.x[others], alone.x[others])
    assert torch.equal(beside.inequality[others], alone.inequality[others])


def test_threads_change_nothing() -> None:
    data, _ = random_programs(33, 20, 20, 3, seed=4)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(quadratic_program(*data))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0].x, found[1].x)
    assert torch.equal(found[0].equality, found[1].equality)


def test_what_is_certainly_unique_is_unique() -> None:
    """From where Q is definite by half of the digits down to where it is not; what decides otherwise is a factor."""
    B, n, m = 200, 6, 8
    g = generator(0)
    (Q, p, G, h, _, _), _ = random_programs(B, n, m, 0, seed=2)
    _, V = torch.linalg.eigh(Q)
    Q = V @ (10 ** (-16 * torch.rand(B, n, generator=g, **DOUBLE)[..., None]) * V.mT)
    program = Coefficients(0.5 * (Q + Q.mT), p * 10 ** (6 * torch.rand(B, 1, generator=g, **DOUBLE)), G, h, m)
    units, equations = Units.of(program), Equations.of(program)
    x, w, active, _, terms, pull = eliminated.minimum(program, units, 50, 2)
    definite = torch.isfinite(x).all(-1)
    certain = definite & certainly_unique(units, terms, pull, x, eliminated.DEFINITE)
    _, unique = solve_spd(curvature(equations, x.nan_to_num(), w.nan_to_num(), active), torch.zeros_like(x))
    assert 0.1 < definite.double().mean() < 0.9
    assert certain.any()
    assert unique[certain].all()
    own = equations.terms(x, w)
    pairs = ((own.Qx, own.size_Qx), (own.Ctw, own.size_Ctw), (own.Cx, own.size_Cx))
    for place, (value, size) in enumerate(pairs):
        assert ((terms[2 * place] - value).abs() <= 1e-14 * size)[definite].all()
        assert ((terms[2 * place + 1] - size).abs() <= 1e-14 * size)[definite].all()
    close(terms.reach[definite], own.reach.expand_as(w)[definite], 1e-15)


def test_large_programs_and_many_rows_are_left_to_tensors() -> None:
    def fits(n: int, m: int, dtype: torch.dtype = torch.float64) -> bool:
        zeros = torch.zeros(1, max(n, m), max(n, m), dtype=dtype)
        return eliminated.fits(Coefficients(zeros[:, :n, :n], zeros[:, 0, :n], zeros[:, :m, :n], zeros[:, 0, :m], m))

    assert fits(10, 52)
    assert not fits(10, 53)
    assert not fits(300, 10)
    assert not fits(10, 10, torch.float32)
