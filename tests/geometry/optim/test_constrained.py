"""Least squares under linear equalities: the optimum is one on the constraints, and the adjoint is that of the KKT."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from geometry import Constrained, ConstrainedSolution, Problem, SolverError, Status, argmin, cauchy, minimize
from tests.numbers import DOUBLE, STENCIL, close, slope


def residual(x: Tensor, time: Tensor, value: Tensor, A: Tensor, b: Tensor) -> Tensor:
    return x[0] * torch.exp(-x[1] * time) + x[2] * torch.cos(x[3] * time) - value


CURVE = Problem(residual, dof=4)
BOUND = Constrained(CURVE, equality=lambda x, time, value, A, b: A @ x - b)


def curve_data(B: int = 3, q: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x0, time, value, A, b of noisy curves whose constraints are not met by the curve that made them, nor by x0."""
    g = torch.Generator().manual_seed(0)
    time = torch.linspace(0, 4, 12, **DOUBLE).expand(B, 12).clone()
    truth = torch.tensor([2.0, 0.7, 1.0, 1.5], **DOUBLE) + 0.1 * torch.randn(B, 4, generator=g, **DOUBLE)
    value = torch.stack([residual(t, time[0], time[0] * 0, time, time) for t in truth])
    value = value + 0.1 * torch.randn(B, 12, generator=g, **DOUBLE)
    A = torch.randn(B, q, 4, generator=g, **DOUBLE)
    b = (A @ truth[..., None])[..., 0] + 0.05 * torch.randn(B, q, generator=g, **DOUBLE)
    return truth + 0.1, time, value, A, b


def solve(*data: Tensor, **options: Any) -> ConstrainedSolution:
    solution = argmin(BOUND, *data, throw=True, **options)
    assert isinstance(solution, ConstrainedSolution)
    return solution


@pytest.mark.slow
@pytest.mark.parametrize("q", [1, 2, 3])
def test_the_optimum_satisfies_the_conditions_and_is_scipys(q: int) -> None:
    x0, *data = curve_data(q=q)
    A, b = data[2:]
    found = solve(x0, *data)
    close((A @ found.x[..., None])[..., 0], b, 1e-13)
    x = found.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(CURVE.costs(x, *data).sum(), x)
    close((found.equality[:, None] @ A)[:, 0], -gradient, 1e-11)
    assert gradient.abs().max() > 1e-2  # the constraints do pull
    assert found.inequality.shape == (3, 0)
    close(found.cost, CURVE.costs(found.x, *data), 1e-14)
    for i in range(3):

        def cost(x: np.ndarray, i: int = i) -> tuple[float, np.ndarray]:
            at = torch.from_numpy(x).requires_grad_()
            value_at = CURVE.cost(at, *(d[i] for d in data))
            return value_at.item(), torch.autograd.grad(value_at, at)[0].numpy()

        constraint = {"type": "eq", "fun": lambda x, i=i: A[i].numpy() @ x - b[i].numpy(), "jac": lambda x, i=i: A[i]}
        options = {"ftol": 1e-16, "maxiter": 500}
        peer = scipy.optimize.minimize(cost, x0[i], jac=True, method="SLSQP", constraints=constraint, options=options)
        close(found.x[i], torch.from_numpy(peer.x), 1e-7)  # SLSQP ends by its cost


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [None, cauchy(0.2)])
def test_gradients_of_x_and_multipliers_against_finite_differences(kernel: Any) -> None:
    bound = Constrained(Problem(residual, dof=4, kernel=kernel), BOUND.equality)
    x0, *data = curve_data()
    start = minimize(bound, x0, *data, throw=True).x
    g = torch.Generator().manual_seed(5)
    cotangents = torch.randn(3, 4, generator=g, **DOUBLE), torch.randn(3, 2, generator=g, **DOUBLE)

    def loss(*data: Tensor, x0: Tensor = start) -> Tensor:
        found = argmin(bound, x0, *data, throw=True)
        assert isinstance(found, ConstrainedSolution)
        k = len(x0) // 3
        return (cotangents[0].repeat(k, 1) * found.x).sum(-1) + (cotangents[1].repeat(k, 1) * found.equality).sum(-1)

    leaves = [d.clone().requires_grad_() for d in data]
    loss(*leaves).sum().backward()
    for i, leaf in enumerate(leaves):
        direction, h = torch.randn(leaf.shape, generator=g, **DOUBLE), 1e-3
        moved = [torch.cat([d] * 6) for d in data]
        moved[i] = torch.cat([data[i] + k * h * direction for k in STENCIL])
        values = loss(*moved, x0=start.repeat(6, 1)).view(6, 3)
        numeric = slope(values, h)
        assert leaf.grad is not None
        analytic = (leaf.grad * direction).flatten(1).sum(1)
        assert ((analytic - numeric).abs() / numeric.abs()).max() < 1e-7


def test_shared_data_gets_the_sum_of_its_gradients() -> None:
    x0, *data = curve_data()
    shared, repeated = ([d[:1].clone().requires_grad_() for d in data] for _ in range(2))
    solve(x0, *shared).x.square().sum().backward()
    solve(x0, *(d.expand(3, *d.shape[1:]) for d in repeated)).x.square().sum().backward()
    for a, b in zip(shared, repeated, strict=True):
        assert a.grad is not None
        close(a.grad, b.grad, 1e-12)


def test_a_linear_problem_is_the_system_of_its_conditions() -> None:
    g = torch.Generator().manual_seed(3)
    J, y = torch.randn(4, 8, 5, generator=g, **DOUBLE), torch.randn(4, 8, generator=g, **DOUBLE)
    A, b = torch.randn(4, 2, 5, generator=g, **DOUBLE), torch.randn(4, 2, generator=g, **DOUBLE)
    linear = Constrained(Problem(lambda x, J, y, A, b: J @ x - y, dof=5), lambda x, J, y, A, b: A @ x - b)
    grads = []
    for implicit in (True, False):
        leaves = [d.clone().requires_grad_() for d in (J, y, A, b)]
        J_, y_, A_, b_ = leaves
        if implicit:
            found = argmin(linear, torch.zeros(4, 5, **DOUBLE), *leaves, throw=True)
            assert isinstance(found, ConstrainedSolution)
            both = torch.cat([found.x, found.equality], -1)
        else:
            zero = torch.zeros(4, 2, 2, **DOUBLE)
            K = torch.cat([torch.cat([J_.mT @ J_, A_.mT], -1), torch.cat([A_, zero], -1)], -2)
            both = torch.linalg.solve(K, torch.cat([(J_.mT @ y_[..., None])[..., 0], b_], -1))
        both.square().sum().backward()
        grads.append([both.detach(), *(leaf.grad for leaf in leaves)])
    for a, b in zip(*grads, strict=True):
        close(a, b, 1e-11)


def test_gauss_newton_is_off_by_the_curvature() -> None:
    x0, *data = curve_data()
    grads = []
    for gradient in ("exact", "gauss_newton"):
        leaf = data[1].clone().requires_grad_()
        solve(x0, data[0], leaf, *data[2:], gradient=gradient).x.sum().backward()
        grads.append(leaf.grad)
    error = (grads[0] - grads[1]).norm() / grads[0].norm()  # type: ignore[operator,union-attr]
    assert 1e-4 < error < 0.5


def test_a_batch_is_a_loop_and_a_failure_stays_alone() -> None:
    """1: contrary constraints; 2: twice the same; 3: no number; 4: no finite start."""
    x0, *data = (d.repeat(2, *[1] * (d.ndim - 1)) for d in curve_data())
    value, A, b = data[1:]
    A[1, 1], A[2, 1] = A[1, 0], A[2, 0]
    b[2, 1], b[3, 0] = b[2, 0], torch.nan
    value[4, 3] = torch.inf
    leaves = [d.clone().requires_grad_() for d in data]
    found = argmin(BOUND, x0, *leaves)
    assert found.status.tolist() == [0, Status.INFEASIBLE, Status.SINGULAR, Status.INFEASIBLE, Status.INFEASIBLE, 0]
    found.x[found.converged].square().sum().backward()  # type: ignore[index,union-attr]
    for i in (0, 5):
        alone = [d[i : i + 1].clone().requires_grad_() for d in data]
        single = solve(x0[i : i + 1], *alone)
        close(found.x[i], single.x[0], 1e-13)  # type: ignore[index]
        single.x.square().sum().backward()
        for leaf, other in zip(leaves, alone, strict=True):
            assert leaf.grad is not None
            assert other.grad is not None
            close(leaf.grad[i], other.grad[0], 1e-11)
    assert all((leaf.grad[1:5] == 0).all() for leaf in leaves if leaf.grad is not None)
    with pytest.raises(SolverError, match="4 of 6 problems failed"):
        minimize(BOUND, x0, *data, throw=True)


def test_a_start_that_satisfies_the_constraints_or_not_leads_to_the_same_minimum() -> None:
    x0, *data = curve_data()
    found = solve(x0, *data)
    close(solve(found.x, *data).x, found.x, 1e-12)
    close(solve(x0 + 0.05, *data).x, found.x, 1e-10)
    plain = minimize(BOUND, x0, *data)
    assert isinstance(plain, ConstrainedSolution)
    close(plain.x, found.x, 0)
    close(plain.equality, found.equality, 0)


def test_an_empty_batch_and_no_graph() -> None:
    x0, *data = curve_data()
    empty = argmin(BOUND, x0[:0], *(d[:0].requires_grad_() for d in data))
    assert empty.x.shape == (0, 4)  # type: ignore[union-attr]
    assert not solve(x0, *data).x.requires_grad


def test_errors_name_the_argument() -> None:
    x0, *data = curve_data()
    with pytest.raises(ValueError, match=r"x0 must be one tensor of shape \(B,4\), got \(3, 3\)"):
        minimize(BOUND, x0[:, :3], *data)
    with pytest.raises(ValueError, match=r"x0 must be one tensor .* got tuple"):
        minimize(BOUND, (x0,), *data)
    with pytest.raises(ValueError, match=r"gradient under constraints must be .*'unrolled'"):
        argmin(BOUND, x0, *data, gradient="unrolled")
    with pytest.raises(ValueError, match=r"equality must return shape .* below the number of unknowns 4"):
        minimize(BOUND, *curve_data(q=4))
    with pytest.raises(ValueError, match=r"data\[2\] must have leading size 1 or 3"):
        minimize(BOUND, x0, *data[:2], data[2][:2], data[3])
    turned = Problem(residual, dof=4, retract=lambda x, step: x - step)
    with pytest.raises(ValueError, match="problem must move x by addition"):
        minimize(Constrained(turned, BOUND.equality), x0, *data)


@pytest.mark.parametrize("far", [1e4, 1e8, 1e15])
def test_a_far_start_leaves_none_of_its_rounding_in_the_constraints(far: float) -> None:
    """The projection of y onto a plane: what the start is rounded to was left over, 0.25 of 1."""
    y, A, b = torch.tensor([[0.3, -0.2, 0.5]], **DOUBLE), torch.ones(1, 1, 3, **DOUBLE), torch.ones(1, 1, **DOUBLE)
    plane = Constrained(Problem(lambda x, y, A, b: x - y, dof=3), equality=lambda x, y, A, b: A @ x - b)
    found = minimize(plane, far * torch.tensor([[1.0, -2.0, 0.7]], **DOUBLE), y, A, b, throw=True)
    close(found.x, y - (y.sum() - 1) / 3, 1e-14)


@pytest.mark.parametrize(
    "equality",
    [
        lambda x, y: x[:1] * x[1:2] - 1,
        lambda x, y: x[:1].abs() - 1,
        lambda x, y: x[:1].sin() - 0.5,
        lambda x, y: x[:1].square() - y[:1],
    ],
)
@pytest.mark.parametrize("start", [0.0, 1.0, -0.3])
def test_equations_that_are_not_affine_are_refused(equality: Callable[..., Tensor], start: float) -> None:
    program = Constrained(Problem(lambda x, y: x - y, dof=2), equality)
    x0, y = torch.full((1, 2), start, **DOUBLE), torch.tensor([[1.0, 2.0]], **DOUBLE)
    for solve in (minimize, argmin):
        with pytest.raises(ValueError, match=r"^equality must be affine in x.* got a Jacobian that changes"):
            solve(program, x0, y)
