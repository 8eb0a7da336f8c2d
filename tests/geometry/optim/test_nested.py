"""The outer Levenberg-Marquardt on a problem whose inner argmin is a formula: a decaying exponential on a ground."""

import io

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor

from geometry.optim import NestedState, nested_start, nested_step

TIMES = torch.linspace(0, 4, 25, dtype=torch.float64)


class Decay:
    """y ~ a exp(-theta t) + b: theta (S,1) is outer, (a, b) (S,2) inner. `sign` = -1 walks uphill."""

    def __init__(self, y: Tensor, sign: float = 1.0) -> None:
        self.y, self.sign = y, sign
        self.evaluated: list[Tensor] = []

    @staticmethod
    def fit(basis: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Line fit y ~ a basis + b by its two normal equations, row by row. (S,T) -> (S,), (S,)."""
        centred = basis - basis.mean(1, keepdim=True)
        a = (centred * y).sum(1) / centred.square().sum(1)
        return a, y.mean(1) - a * basis.mean(1)

    def evaluate(self, theta: Tensor, inner: Tensor | None) -> tuple[Tensor, Tensor]:
        self.evaluated.append(theta)
        basis = (-theta * TIMES).exp()
        a, b = self.fit(basis, self.y)
        return 0.5 * (a[:, None] * basis + b[:, None] - self.y).square().sum(1), torch.stack([a, b], 1)

    def step(self, theta: Tensor, inner: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        basis = (-theta * TIMES).exp()
        r = inner[:, :1] * basis + inner[:, 1:] - self.y
        full = -inner[:, :1] * TIMES * basis
        a, b = self.fit(basis, full)
        J = full - a[:, None] * basis - b[:, None]
        g, A = (J * r).sum(1), J.square().sum(1)
        step = -g / (A * (1 + damping))
        return self.sign * step[:, None], 0.5 * (damping * A * step * step - g * step)

    def retract(self, theta: Tensor, step: Tensor) -> Tensor:
        return theta + step


def observations(noise: float = 0.05) -> Tensor:
    g = torch.Generator().manual_seed(0)
    rates = torch.tensor([[0.4], [1.0], [2.5]], dtype=torch.float64)
    clean = torch.tensor([[3.0], [-2.0], [1.0]]) * (-rates * TIMES).exp() + torch.tensor([[1.0], [0.0], [-4.0]])
    return clean + noise * torch.randn(3, 25, generator=g, dtype=torch.float64)


def solve(problem: Decay, state: NestedState, limit: int = 100, **options: float) -> tuple[NestedState, list[Tensor]]:
    costs = [state.cost]
    while not state.done.all() and state.steps < limit:
        state = nested_step(problem, state, **options)
        costs.append(state.cost)
    return state, costs


START = torch.tensor([[3.0], [0.1], [0.7]], dtype=torch.float64)


def test_the_minimum_is_that_of_the_joint_problem() -> None:
    y = observations()
    state, costs = solve(Decay(y), nested_start(Decay(y), START))
    assert state.done.all()
    assert len(costs) == state.steps + 1 < 40
    assert (torch.stack(costs).diff(dim=0) <= 0).all()
    t = TIMES.numpy()
    for row, theta, inner, cost in zip(y.numpy(), state.theta, state.inner, state.cost, strict=True):
        start = [0.9, row[0] - row[-1], row[-1]]
        joint = least_squares(lambda p, row=row: p[1] * np.exp(-p[0] * t) + p[2] - row, start, xtol=1e-15, ftol=1e-15)
        assert cost.item() == pytest.approx(joint.cost, rel=1e-12)
        np.testing.assert_allclose(torch.cat([theta, inner]), joint.x, rtol=1e-6)


def test_a_batch_is_its_problems_alone() -> None:
    y = observations()
    together, _ = solve(Decay(y), nested_start(Decay(y), START))
    for i in range(3):
        alone, _ = solve(Decay(y[i : i + 1]), nested_start(Decay(y[i : i + 1]), START[i : i + 1]))
        for one, all_of_them in zip(alone[:3], together[:3], strict=True):
            torch.testing.assert_close(one[0], all_of_them[i], rtol=1e-13, atol=0)


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_stored_state_goes_on_exactly(cut: int) -> None:
    problem = Decay(observations())
    whole, _ = solve(problem, nested_start(problem, START))
    half, _ = solve(problem, nested_start(problem, START), limit=cut)
    buffer = io.BytesIO()
    torch.save(tuple(half), buffer)
    buffer.seek(0)
    resumed, _ = solve(problem, NestedState(*torch.load(buffer, weights_only=True)))
    assert resumed.steps == whole.steps > cut
    for a, b in zip(resumed[:-1], whole[:-1], strict=True):
        assert torch.equal(a, b)


def test_a_finished_problem_stays_as_it_is_however_long_the_others_take() -> None:
    problem = Decay(observations(), sign=1.0)
    state, _ = solve(problem, nested_start(problem, START))
    waiting = state._replace(done=torch.tensor([True, True, False]))
    later = waiting
    for _ in range(80):
        later = nested_step(problem, later)
    for a, b in zip(waiting[:-1], later[:-1], strict=True):
        assert torch.equal(a[:2], b[:2])
    assert torch.isfinite(torch.cat(problem.evaluated)).all()


def test_a_failed_inner_problem_at_the_start_ends_that_problem_only() -> None:
    y = observations()
    start = START.clone()
    start[1] = torch.nan
    state = nested_start(Decay(y), start)
    assert state.done.tolist() == [False, True, False]
    assert state.cost[1] == torch.inf
    state, _ = solve(Decay(y), state)
    others = [0, 2]
    alone, _ = solve(Decay(y[others]), nested_start(Decay(y[others]), START[others]))
    torch.testing.assert_close(state.theta[others], alone.theta, rtol=1e-13, atol=0)


def test_a_step_that_does_not_help_is_refused() -> None:
    problem = Decay(observations(), sign=-1.0)
    start = nested_start(problem, START)
    state, damping = start, [start.damping]
    while not state.done.all() and state.steps < 100:
        state = nested_step(problem, state)
        damping.append(state.damping)
    assert state.done.all()
    assert state.steps < 15
    for a, b in zip(start[:3], state[:3], strict=True):
        assert torch.equal(a, b)
    factors = torch.stack(damping)[1:5] / torch.stack(damping)[:4]
    assert factors.tolist() == [[2.0] * 3, [4.0] * 3, [8.0] * 3, [16.0] * 3]


def test_a_trial_whose_cost_is_not_finite_is_refused() -> None:
    class Cliff(Decay):
        def evaluate(self, theta: Tensor, inner: Tensor | None) -> tuple[Tensor, Tensor]:
            cost, inner = super().evaluate(theta, inner)
            return torch.where(theta[:, 0] < 1.7, torch.nan, cost), inner

    problem = Cliff(observations()[2:].expand(2, -1))
    state, costs = solve(problem, nested_start(problem, torch.tensor([[3.5], [6.0]], dtype=torch.float64)))
    assert torch.isfinite(torch.stack(costs)).all()
    free, _ = solve(Decay(observations()[2:]), nested_start(Decay(observations()[2:]), START[2:]))
    torch.testing.assert_close(state.theta, free.theta.expand(2, 1), rtol=1e-6, atol=0)


def test_the_floor_ends_a_problem() -> None:
    y = observations(noise=0.0)
    exact, _ = solve(Decay(y), nested_start(Decay(y), START))
    early, costs = solve(Decay(y), nested_start(Decay(y), START), floor=1e-4)
    assert early.steps < exact.steps
    assert (early.cost <= 1e-4).all()
    assert (torch.stack(costs)[:-1] > 1e-4).any(1).all()
    torch.testing.assert_close(exact.theta[:, 0], torch.tensor([0.4, 1.0, 2.5], dtype=torch.float64))
