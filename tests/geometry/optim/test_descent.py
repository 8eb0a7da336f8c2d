from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geometry import Problem, SolverError, Status, cauchy, geman_mcclure, huber, minimize, pnp_problem, se3
from geometry.camera import Model
from geometry.optim import batch_data, exact_hessian, levenberg_marquardt, linearize, solve_spd
from tests.numbers import DOUBLE, close


def valley() -> Problem:
    """Rosenbrock's: residuals 10 (y - x^2) and 1 - x, in data the 10 and the 1."""
    return Problem(lambda x, data: torch.stack([data[0] * (x[1] - x[0] ** 2), data[1] - x[0]]), dof=2)


def decay(x: tuple[Tensor, Tensor], time: Tensor, value: Tensor) -> Tensor:
    """amplitude exp(-rate time) + offset, with the rate kept positive by its own retract."""
    amplitude_offset, rate = x
    return amplitude_offset[0] * torch.exp(-rate * time) + amplitude_offset[1] - value


def retract_decay(x: tuple[Tensor, Tensor], step: Tensor) -> tuple[Tensor, Tensor]:
    return x[0] + step[:2], x[1] * torch.exp(step[2])


DECAY = Problem(decay, dof=3, retract=retract_decay)


def decay_data(B: int, M: int = 15, seed: int = 0) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 4, M, **DOUBLE).expand(B, M)
    amplitude, offset = 2 + torch.rand(2, B, 1, generator=g, **DOUBLE)
    rate = 0.5 + torch.rand(B, 1, generator=g, **DOUBLE)
    value = amplitude * torch.exp(-rate * time) + offset + 0.05 * torch.randn(B, M, generator=g, **DOUBLE)
    return time, value, (torch.ones(B, 2, **DOUBLE), torch.ones(B, **DOUBLE))


def pnp_data(scene: Any) -> tuple[Tensor, ...]:
    B, N, _ = scene.points2d.shape
    g = torch.Generator().manual_seed(3)
    weights = 0.5 + torch.rand(B, N, 2, generator=g, **DOUBLE)
    mask = torch.rand(B, N, generator=g) < 0.8
    distortion = scene.distortion.expand(B, -1)
    return scene.points2d, scene.points3d, scene.K.expand(B, 3, 3), distortion, weights, mask


@pytest.mark.slow
@pytest.mark.parametrize("kernel_name", ["none", "huber", "cauchy", "geman_mcclure"])
@pytest.mark.parametrize(("model", "distorted"), [("radtan", False), ("radtan", True), ("fisheye", True)])
def test_closed_derivatives_of_pnp_are_the_automatic_ones(
    make_scene: Any, model: Model, distorted: bool, kernel_name: str
) -> None:
    kernel = {"none": None, "huber": huber(3.0), "cauchy": cauchy(3.0), "geman_mcclure": geman_mcclure(5.0)}[
        kernel_name
    ]
    fast = pnp_problem(model, kernel)
    plain = replace(fast, linearize=None, jacobian=None)
    scene = make_scene(3, 10, 5.0, model=model, distorted=distorted, seed=2)
    data = pnp_data(scene)
    # away from the optimum, where the gradient is not small
    away = torch.tensor([0.05, -0.03, 0.04, 0.1, -0.1, 0.2], **DOUBLE)
    pose = se3.retract(scene.world_to_camera_gt, away.expand(3, 6))
    found, expected = (linearize(problem, pose, data, exact=True) for problem in (fast, plain))
    for a, b in zip(found, expected, strict=True):
        close(a / b.abs().max(), b / b.abs().max(), 1e-13)
    *_, gauss_newton, H = found
    assert ((H - gauss_newton).abs().amax((1, 2)) > 1e-3 * H.abs().max()).all()  # the two do differ
    assert linearize(fast, pose, data).hessian is None
    (by_autograd,) = torch.autograd.grad(
        plain.costs(
            torch.func.vmap(se3.retract)(pose, (step := torch.zeros(3, 6, **DOUBLE).requires_grad_())), *data
        ).sum(),
        step,
    )
    close(by_autograd / b.abs().max(), found.gradient / b.abs().max(), 1e-13)


def test_both_routes_of_pnp_find_the_same_pose(make_scene: Any) -> None:
    scene = make_scene(4, 10, 2.0, seed=2)
    data = pnp_data(scene)
    fast = minimize(pnp_problem(), scene.world_to_camera_gt, *data)
    plain = minimize(replace(pnp_problem(), linearize=None, jacobian=None), scene.world_to_camera_gt, *data)
    assert fast.converged.all()
    assert plain.converged.all()
    close(fast.x, plain.x, 1e-12)


def test_pnp_residual_is_infinite_behind_the_camera_and_zero_where_masked(make_scene: Any) -> None:
    scene = make_scene(2, 10, 2.0, seed=2)
    *data, _ = pnp_data(scene)
    behind = scene.world_to_camera_gt.clone()
    behind[1, 2, 3] = -6
    everything, nothing = torch.ones(2, 10, dtype=torch.bool), torch.zeros(2, 10, dtype=torch.bool)
    for problem in (pnp_problem(), replace(pnp_problem(), linearize=None, jacobian=None)):
        assert torch.isfinite(linearize(problem, behind, (*data, everything)).cost).tolist() == [True, False]
        assert linearize(problem, behind, (*data, nothing)).cost.tolist() == [0, 0]


def test_rosenbrock() -> None:
    start = torch.tensor([[-1.2, 1.0], [5, -3], [0, 0], [1, 1]], **DOUBLE)
    data = torch.tensor([[10.0, 1], [10, 1], [30, 2], [10, 1]], **DOUBLE)
    solution = minimize(valley(), start, data)
    assert solution.converged.all()
    close(solution.x, torch.tensor([[1.0, 1], [1, 1], [2, 4], [1, 1]], **DOUBLE), 1e-12)
    close(solution.cost, torch.zeros(4, **DOUBLE), 1e-20)
    assert solution.steps.tolist()[3] == 0  # begun at the minimum
    assert solution.steps.dtype == torch.int32
    assert solution.status.dtype == torch.int8


@pytest.mark.parametrize("kernel_name", ["linear", "huber", "cauchy"])
def test_a_user_s_fit_with_tuple_and_retract_is_scipy_s(kernel_name: str) -> None:
    time, value, start = decay_data(4)
    value[:, 3] += 1.5  # an outlier for the kernel
    kernel = {"linear": None, "huber": huber(0.1), "cauchy": cauchy(0.1)}[kernel_name]
    solution = minimize(replace(DECAY, kernel=kernel), start, time, value, max_steps=200)
    assert solution.converged.all()
    for i in range(4):

        def residual(x: np.ndarray, i: int = i) -> np.ndarray:
            return x[0] * np.exp(-x[2] * time[i].numpy()) + x[1] - value[i].numpy()

        options: dict[str, Any] = {"loss": kernel_name, "f_scale": 0.1, "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-14}
        expected = scipy.optimize.least_squares(residual, np.ones(3), **options)
        x = torch.cat([solution.x[0][i], solution.x[1][i : i + 1]])
        close(x, torch.from_numpy(expected.x), 1e-6)
        close(solution.cost[i], torch.tensor(expected.cost, **DOUBLE), 0, 1e-9)


def test_rows_of_several_components_share_a_kernel() -> None:
    """A kernel sees the length of a row: (M,k) is not the same as M k rows."""
    target = torch.tensor([[[0.0, 0], [0.2, 0.1], [-0.1, 0.2], [3, 4]]], **DOUBLE)
    rows = Problem(lambda x, target: x - target, dof=2, kernel=huber(1.0))
    solution = minimize(rows, torch.zeros(1, 2, **DOUBLE), target)
    pull = target[0] - solution.x
    length = pull.norm(dim=-1, keepdim=True)
    close((pull / length.clamp_min(1)).sum(0), torch.zeros(2, **DOUBLE), 1e-12)  # stationary, by hand
    assert length[3] > 1
    close(solution.cost, (0.5 * pull[:3].square().sum() + length[3] - 0.5), 1e-14)
    flat = replace(rows, residual=lambda x, target: (x - target).flatten())
    assert (minimize(flat, torch.zeros(1, 2, **DOUBLE), target).x - solution.x).norm() > 0.01


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(B=st.integers(1, 5), seed=st.integers(0, 1000))
def test_a_batch_is_a_loop(B: int, seed: int) -> None:
    time, value, start = decay_data(B, seed=seed)
    batch = minimize(DECAY, start, time, value)
    for i in range(B):
        one = slice(i, i + 1)
        single = minimize(DECAY, (start[0][one], start[1][one]), time[one], value[one])
        close(single.x[0][0], batch.x[0][i], 1e-9)
        close(single.x[1][0], batch.x[1][i], 1e-9)
        close(single.cost[0], batch.cost[i], 1e-12)
        assert single.status[0] == batch.status[i]


def test_shared_data_have_leading_size_one() -> None:
    time, value, start = decay_data(4)
    a, b = minimize(DECAY, start, time[:1], value), minimize(DECAY, start, time, value)
    close(a.x, b.x, 0)
    with pytest.raises(
        ValueError, match=r"data\[1\] must have leading size 1 or 4 \(the batch, as of x0\[0\]\), got \(3, 15\): value"
    ):
        minimize(DECAY, start, time, value[:3])
    with pytest.raises(ValueError, match=r"data\[0\] must have leading size .* got \(\)"):
        batch_data(start, (torch.tensor(1.0),))


def unseen(x: Tensor, target: Tensor) -> Tensor:
    """The second unknown is nowhere to be seen where the target's second entry is zero."""
    return torch.stack([x[0] - target[0], target[1] * (x[1] - 1)])


def rooted(x: Tensor, target: Tensor) -> Tensor:
    """Not finite where x[0] is negative."""
    return torch.stack([torch.sqrt(x[0]) - target[0], x[1] - target[1]])


CASES: dict[str, tuple[Callable[..., Tensor], list[list[float]], list[list[float]], Status]] = {
    "unseen unknown": (unseen, [[1, 1], [2, 0], [3, 2]], [[0, 0]] * 3, Status.SINGULAR),
    "infeasible start": (rooted, [[1, 1], [2, 2], [3, 2]], [[1, 0], [-1, 0], [4, 0]], Status.INFEASIBLE),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_failed_problem_says_why_and_leaves_the_others_alone(name: str) -> None:
    residual, target, start, status = CASES[name]
    problem = Problem(residual, dof=2)
    data, x0 = torch.tensor(target, **DOUBLE), torch.tensor(start, **DOUBLE)
    solution = minimize(problem, x0, data)
    assert solution.status.tolist() == [Status.CONVERGED, status, Status.CONVERGED]
    alone = minimize(problem, x0[::2], data[::2])
    close(solution.x[::2], alone.x, 1e-15)  # type: ignore[index]
    close(solution.cost[::2], alone.cost, 1e-15)
    assert solution.steps[::2].tolist() == alone.steps.tolist()
    assert torch.isfinite(solution.x).all()  # type: ignore[arg-type]
    with pytest.raises(SolverError, match=f"1 of 3 problems failed: problem 1: {status.message[:25]}"):
        minimize(problem, x0, data, throw=True)


def test_stalled_where_the_minimum_is_at_infinity_or_the_steps_run_out() -> None:
    problem = Problem(lambda x, target: torch.exp(-x) - target, dof=1)
    x0, target = torch.zeros(2, 1, **DOUBLE), torch.tensor([[-0.1], [0.5]], **DOUBLE)
    solution = minimize(problem, x0, target)
    assert solution.status.tolist() != [Status.CONVERGED] * 2
    assert solution.status[1] == Status.CONVERGED
    close(solution.x[1], -torch.tensor([0.5], **DOUBLE).log(), 1e-12)  # type: ignore[index]
    early = minimize(valley(), torch.tensor([[-1.2, 1.0]], **DOUBLE), torch.tensor([[10.0, 1]], **DOUBLE), max_steps=1)
    assert early.status.tolist() == [Status.STALLED]
    with pytest.raises(SolverError, match="raise max_steps"):
        early.raise_if_failed()


def test_a_maximum_or_a_saddle_is_no_solution() -> None:
    """cos x has a vanishing gradient at 0, where 1/2 cos^2 x is largest."""
    problem = Problem(lambda x, target: torch.cos(x) + 0 * target, dof=1)
    solution = minimize(problem, torch.tensor([[0.0], [1.0]], **DOUBLE), torch.zeros(1, 1, **DOUBLE))
    assert solution.status.tolist() == [Status.SINGULAR, Status.CONVERGED]
    close(solution.x[1], torch.tensor([torch.pi / 2], **DOUBLE), 1e-12)  # type: ignore[index]


def test_polish_shrinks_the_gradient_beyond_what_the_cost_can_tell(make_scene: Any) -> None:
    scene = make_scene(6, 12, 10.0, seed=4)
    *data, _ = pnp_data(scene)
    data = (*data, torch.ones(6, 12, dtype=torch.bool))
    problem = pnp_problem()

    def newton_step(pose: Tensor) -> Tensor:
        lin = linearize(problem, pose, data)
        return solve_spd(exact_hessian(problem, pose, data), lin.gradient)[0].norm(dim=-1)

    polished = newton_step(minimize(problem, scene.world_to_camera_gt, *data).x)
    assert polished.max() < 1e-13
    descended, _, _ = levenberg_marquardt(problem, scene.world_to_camera_gt, data, 50)
    assert newton_step(descended).median() > 10 * polished.median()


def test_throw_passes_where_all_converged() -> None:
    time, value, start = decay_data(3)
    assert minimize(DECAY, start, time, value, throw=True).converged.all()


def test_an_empty_batch() -> None:
    time, value, start = decay_data(1)
    solution = minimize(DECAY, (start[0][:0], start[1][:0]), time[:0], value[:0], throw=True)
    assert [tuple(a.shape) for a in solution.x] == [(0, 2), (0,)]
    assert solution.cost.shape == solution.status.shape == solution.steps.shape == (0,)
    assert solution.status.dtype == torch.int8


def test_no_graph_is_recorded_and_nothing_is_changed_in_place() -> None:
    time, value, start = decay_data(2)
    value.requires_grad_()
    before = [a.clone() for a in (*start, time, value)]
    solution = minimize(DECAY, start, time, value)
    assert not any(a.requires_grad for a in (*solution.x, solution.cost))
    assert all(torch.equal(a, b) for a, b in zip(before, (*start, time, value), strict=True))


def test_float32() -> None:
    time, value, start = decay_data(3)
    exact = minimize(DECAY, start, time, value)
    single = minimize(DECAY, (start[0].float(), start[1].float()), time.float(), value.float())
    assert single.x[0].dtype == single.cost.dtype == torch.float32
    assert single.converged.all()
    close(single.x[0].double(), exact.x[0], 1e-4)


def test_solve_spd() -> None:
    g = torch.Generator().manual_seed(0)
    J = torch.randn(4, 9, 5, generator=g, **DOUBLE)
    units = torch.tensor([1e-9, 1.0, 1e5, 1e9, 1.0], **DOUBLE)  # unknowns of very different units
    A = (J.mT @ J) * units[:, None] * units
    b = torch.randn(4, 5, generator=g, **DOUBLE) * units
    A[2] = -A[2]
    A[3, 0, 0] = torch.nan
    u, ok = solve_spd(A, b)
    assert ok.tolist() == [True, True, False, False]
    assert (u[2:] == 0).all()
    close((A[:2] @ u[:2, :, None]).squeeze(-1) / units, b[:2] / units, 1e-12)
    rank_four = J[:1, :4].mT @ J[:1, :4]
    assert solve_spd(rank_four, b[:1])[1].tolist() == [False]


def test_every_status_has_a_message() -> None:
    assert len({status.message for status in Status}) == len(Status) == 6


def test_an_unknown_of_no_numbers_is_no_obstacle() -> None:
    """A state may hold a tensor that happens to be empty, such as intrinsics none of which is free."""
    problem = Problem(lambda x, y: x[0] - y, dof=2, retract=lambda x, step: (x[0] + step, x[1]))
    y = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    solution = minimize(problem, (torch.zeros_like(y), y.new_zeros(2, 0)), y)
    assert solution.converged.all()
    torch.testing.assert_close(solution.x[0], y)
