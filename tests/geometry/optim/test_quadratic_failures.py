"""Quadratic programs without a minimum, or without a single one, and what is no program at all."""

import pytest
import torch
from torch.func import vmap

from geometry import QuadraticProgram, SolverError, Status, argmin, quadratic_program
from tests.geometry.optim.programs import NAMES, random_programs
from tests.numbers import DOUBLE, close


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


def test_what_is_shared_learns_from_those_alone_that_converged() -> None:
    """x = 0 where a x = b asks for it; a x = -1 for x >= 0 cannot be met, and what it says of a counts for nothing."""
    eye, a = torch.eye(3, **DOUBLE)[None], torch.ones(1, 1, 3, **DOUBLE)
    p, G, h = torch.tensor([[1.0, 2, -1]], **DOUBLE), -eye, torch.zeros(1, 3, **DOUBLE)
    gradients = []
    for b in ([[2.0]], [[2.0], [-1.0]]):
        shared = [d.clone().requires_grad_() for d in (eye, a)]
        found = quadratic_program(shared[0], p, G, h, shared[1], torch.tensor(b, **DOUBLE))
        found.x.square().sum().backward()
        gradients.append([d.grad for d in shared])
    assert found.status.tolist() == [0, Status.INFEASIBLE]
    for one, other in zip(*gradients, strict=True):
        assert one.any()
        close(other, one, 1e-12)


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


@pytest.mark.parametrize("shape", [(0, 2, 4), (2, 0, 4), (0, 0, 4)])
def test_an_empty_batch_under_vmap(shape: tuple[int, ...]) -> None:
    eye, zero = torch.eye(4, **DOUBLE)[None], torch.zeros(1, 4, **DOUBLE)
    assert vmap(lambda p: quadratic_program(eye, p, -eye, zero).x)(torch.zeros(shape, **DOUBLE)).shape == shape


@pytest.mark.parametrize("q", [1.0, 1e-8, 0.0])
def test_contrary_rows_are_no_mean_of_both(q: float) -> None:
    """x >= 1 and x >= 2 push alike and are not contrary; x <= 1 and x >= 2 are, at every curvature."""
    Q, one = torch.full((1, 1, 1), q, **DOUBLE), torch.ones(1, 1, **DOUBLE)
    alike = quadratic_program(Q, one, torch.tensor([[[-1.0], [-1.0]]], **DOUBLE), torch.tensor([[-1.0, -2]], **DOUBLE))
    close(alike.x, 2 * one, 1e-12)
    assert alike.converged
    contrary = torch.tensor([[1.0, -2.0]], **DOUBLE)
    found = quadratic_program(Q, one, torch.tensor([[[1.0], [-1.0]]], **DOUBLE), contrary)
    assert found.status == Status.INFEASIBLE


def test_errors_name_the_argument() -> None:
    data, _ = random_programs(3, 4, 5, 2)
    for i, wanted in enumerate(["4,4", "4,", "5,4", "5,", "2,4", "2,"]):
        bad = list(data)
        bad[i] = data[i][:2]
        with pytest.raises(
            ValueError, match=rf"{NAMES[i]} must have shape \(3\|1,{wanted.strip(',')}\) or \({wanted}\), got \(2, "
        ):
            quadratic_program(*bad)
    with pytest.raises(ValueError, match=r"G must have shape \(3\|1,5,4\) or \(5,4\), got \(3, 5, 3\)"):
        quadratic_program(*data[:2], data[2][..., :3], data[3])
    with pytest.raises(ValueError, match=r"p must have shape \(B\|1,n\) or \(n,\), got \(1, 3, 4\)"):
        quadratic_program(data[0], data[1][None])
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
