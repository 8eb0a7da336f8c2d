"""Nested least squares: outer unknowns optimised while inner ones sit at their argmin.

For a cost c(theta, x) with x*(theta) = argmin_x c, the reduced cost c(theta, x*(theta)) is minimised by
Levenberg-Marquardt over theta alone: the gradient comes through the inner argmin (at the minimum the implicit term
vanishes: the envelope theorem), and the Gauss-Newton matrix is the Schur complement of the inner unknowns, which is
J^T J for J = d r(theta, x*(theta)) / d theta with d x*/d theta from the implicit function theorem. Known as variable
projection (Golub and Pereyra 1973; Kaufman 1975, whose approximation this is; Ruhe and Wedin 1980, algorithm 2).
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from geometry.optim.descent import next_damping
from geometry.optim.problem import select

__all__ = ["NestedProblem", "NestedState", "nested_start", "nested_step"]


class NestedProblem(Protocol):
    """S independent outer problems at once; dimension 0 of theta and of everything returned is S."""

    def evaluate(self, theta: Tensor, inner: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cost (S,) at the inner argmin, and that argmin (S,…); `inner` is where to start it, None: nowhere.

        A cost that is not finite says that an inner problem failed; the step is then refused.
        """
        ...

    def step(self, theta: Tensor, inner: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        """Damped Gauss-Newton step of theta (S,…) and the decrease of cost (S,) it predicts. damping (S,)."""
        ...

    def retract(self, theta: Tensor, step: Tensor) -> Tensor:
        """Move theta by a step."""
        ...


class NestedState(NamedTuple):
    """Where S problems stand after `steps` trials; all there is to know, so that a stored state goes on exactly.

    theta (S,…) and inner (S,…): the unknowns; cost, damping and its growth (S,); done (S,) bool.
    """

    theta: Tensor
    inner: Tensor
    cost: Tensor
    damping: Tensor
    growth: Tensor
    done: Tensor
    steps: int


def nested_start(problem: NestedProblem, theta: Tensor, inner: Tensor | None = None) -> NestedState:
    """The state at theta (S,…), the inner argmin sought from `inner`."""
    cost, found = problem.evaluate(theta, inner)
    cost = torch.where(torch.isfinite(cost), cost, torch.inf)
    return NestedState(
        theta, found, cost, torch.full_like(cost, 1e-2), torch.full_like(cost, 2.0), torch.isinf(cost), 0
    )


def nested_step(
    problem: NestedProblem, state: NestedState, *, tolerance: float = 1e-13, floor: float = 0.0
) -> NestedState:
    """One Levenberg-Marquardt trial of the S problems, each accepted or refused by itself.

    A problem is done when the predicted decrease falls below `tolerance` of its cost, its cost below `floor`, or no
    step helps any more; it then stays as it is. Call it while not state.done.all().
    """
    step, predicted = problem.step(state.theta, state.inner, state.damping)
    candidate = problem.retract(state.theta, step)
    trial_cost, trial_inner = problem.evaluate(candidate, state.inner)
    trial_cost = torch.where(torch.isfinite(trial_cost), trial_cost, torch.inf)
    accept = ~state.done & (trial_cost < state.cost)
    ratio = (state.cost - trial_cost) / predicted.clamp_min(torch.finfo(predicted.dtype).tiny)
    cost = torch.where(accept, trial_cost, state.cost)
    damping, growth = next_damping(state.damping, state.growth, accept, ratio, least=1e-12)
    damping, growth = torch.where(state.done, state.damping, damping), torch.where(state.done, state.growth, growth)
    done = state.done | (predicted <= tolerance * cost) | (cost <= floor) | (damping > 1e8)
    return NestedState(
        select(accept, candidate, state.theta),
        select(accept, trial_inner, state.inner),
        cost,
        damping,
        growth,
        done,
        state.steps + 1,
    )
