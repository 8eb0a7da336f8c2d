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

from geometry.optim.descent import Descent, begin, trial
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


class _At(NamedTuple):
    theta: Tensor
    inner: Tensor
    cost: Tensor


class _Outer:
    """`System` of a nested problem."""

    def __init__(self, problem: NestedProblem) -> None:
        self.problem = problem

    def at(self, theta: Tensor, inner: Tensor | None) -> _At:
        cost, found = self.problem.evaluate(theta, inner)
        return _At(theta, found, torch.where(torch.isfinite(cost), cost, torch.inf))

    def step(self, at: _At, damping: Tensor) -> tuple[Tensor, Tensor]:
        return self.problem.step(at.theta, at.inner, damping)

    def move(self, at: _At, step: Tensor, running: Tensor) -> _At:
        return self.at(self.problem.retract(at.theta, step), at.inner)

    def choose(self, accept: Tensor, there: _At, at: _At) -> _At:
        return _At(*(select(accept, a, b) for a, b in zip(there, at, strict=True)))

    def still(self, at: _At, there: _At) -> Tensor:
        return torch.zeros_like(at.cost, dtype=torch.bool)


# An outer step changes all inner problems, which makes the linear model worse than that of a plain one.
_DAMPING = 1e-2


def nested_start(problem: NestedProblem, theta: Tensor, inner: Tensor | None = None) -> NestedState:
    """The state at theta (S,…), the inner argmin sought from `inner`."""
    return _state(begin(_Outer(problem).at(theta, inner), _DAMPING))


def nested_step(
    problem: NestedProblem, state: NestedState, *, tolerance: float = 1e-13, floor: float = 0.0
) -> NestedState:
    """One Levenberg-Marquardt trial of the S problems, each accepted or refused by itself.

    A problem is done when the predicted decrease falls below `tolerance` of its cost, its cost below `floor`, or no
    step helps any more; it then stays as it is. Call it while not state.done.all().
    """
    theta, inner, cost, damping, growth, done, steps = state
    accepted = torch.zeros_like(done, dtype=torch.int32)
    start = Descent(_At(theta, inner, cost), damping, growth, ~done, accepted, steps)
    found = trial(_Outer(problem), start, tolerance)
    return _state(found._replace(running=found.running & (found.at.cost > floor)))


def _state(descent: Descent) -> NestedState:
    at: _At = descent.at
    return NestedState(*at, descent.damping, descent.growth, ~descent.running, descent.trials)
