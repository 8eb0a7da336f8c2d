"""One descent for every least-squares problem, Levenberg-Marquardt, and `minimize`, which runs it on a `Problem`.

B problems converge or fail independently, and nothing is moved to the host but one "is anyone still running" flag
per step. What a problem brings is a `System`: a damped step, and where it leads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from geometry.checks import check_tensors, positive, whole
from geometry.compiled.constants import (
    DAMPING,
    LEAST_DAMPING,
    LEAST_SHRINK,
    MOST_DAMPING,
    SAME_COST,
    SAME_STEP,
    SHORT_STEP,
)
from geometry.optim.instance import check_addition, checked, started
from geometry.optim.linear import damped_step, determined, margin
from geometry.optim.problem import (
    Linearization,
    Problem,
    Program,
    batch_data,
    check_program,
    linearize,
    map_state,
    move,
    select,
    singular_below,
    zero_step,
)
from geometry.optim.solution import Solution, State, Status
from geometry.optim.transforms import opaque

__all__ = ["Descent", "ExactSystem", "Newton", "System", "begin", "descend", "minimize", "polish", "trial"]

_SHORT = 6
"""Trials among which it gains nothing to ask whether all problems have ended."""

At = TypeVar("At", bound="Place")


class Place(Protocol):
    """Where B problems stand, with all that is known there; infinite costs (B,) say that a place cannot be."""

    @property
    def cost(self) -> Tensor: ...


class System(Protocol[At]):
    """What the descent needs of B problems."""

    def step(self, at: At, damping: Tensor) -> tuple[Any, Tensor]:
        """A damped Gauss-Newton step, and the decrease of cost (B,) that it predicts; infinite where there is none.

        damping (B,): in parts of the diagonal of the Gauss-Newton matrix.
        """
        ...

    def move(self, at: At, step: Any, running: Tensor) -> At:
        """The place that a step leads to; where `running` (B,) is False it is not looked at."""
        ...

    def choose(self, accept: Tensor, there: At, at: At) -> At:
        """There, for the problems that accept (B,); where they were for the others."""
        ...

    def still(self, at: At, there: At) -> Tensor:
        """Whether the step was too small to matter, whatever it gained (B,)."""
        ...


class Newton(NamedTuple):
    """Newton's step at x, of B problems, and what it says about x.

    cost (B,) at x; decrease (B,) of it that the step predicts; definite (B,): whether the Hessian is; where: all else
    that is known there.
    """

    x: Any
    cost: Tensor
    step: Any
    decrease: Tensor
    definite: Tensor
    where: Any


class ExactSystem(Protocol):
    """What the polish needs of B problems."""

    def newton(self, x: Any) -> Newton:
        """The step of the exact Hessian, undamped."""
        ...

    def retract(self, x: Any, step: Any) -> Any:
        """Where a step leads to from x."""
        ...

    def choose(self, accept: Tensor, there: Any, here: Any) -> Any:
        """There, for the problems that accept (B,); here for the others. Of x, and of `Newton`."""
        ...

    def moved(self, x: Any, there: Any) -> Tensor:
        """How far x moved, in parts of its size (B,)."""
        ...


class Descent(NamedTuple):
    """Where a descent stands after `trials` steps; all there is to know, so that a stored one goes on exactly.

    damping, growth (B,): of the next step; running (B,) bool; accepted (B,) int32: how many steps were.
    """

    at: Any
    damping: Tensor
    growth: Tensor
    running: Tensor
    accepted: Tensor
    trials: int


def begin(at: Place, damping: float = DAMPING) -> Descent:
    """A descent at its start; problems without a finite cost there have ended."""
    cost = at.cost
    accepted = torch.zeros_like(cost, dtype=torch.int32)
    return Descent(at, torch.full_like(cost, damping), torch.full_like(cost, 2.0), torch.isfinite(cost), accepted, 0)


def trial(system: System[At], state: Descent, tolerance: float, floor: Tensor | float = 0.0) -> Descent:
    """One step of every problem, each accepted or refused by itself.

    Damping follows the ratio of real to predicted decrease (Nielsen 1999, eq. 2.4). A problem has ended when the
    decrease that is predicted falls below `tolerance` of its cost, or to `floor`, when a step is too small to matter,
    or when none helps any more; it then stays as it is. Runs with or without an autograd graph: decisions are taken
    on detached values, so that a graph, if recorded, is that of the accepted steps.
    """
    at, damping, growth, running, accepted, trials = state
    step, predicted = system.step(at, damping)
    there = system.move(at, step, running)
    cost, new = at.cost, there.cost
    accept = running & (new < cost)
    ratio = (cost - new) / predicted.clamp_min(torch.finfo(cost.dtype).tiny)
    small = (predicted <= tolerance * torch.minimum(cost, new) + floor) | system.still(at, there)
    shrink = (1 - (2 * ratio - 1).clamp(-3, 3) ** 3).clamp(LEAST_SHRINK, 1)
    further = torch.where(accept, (damping * shrink).clamp_min(LEAST_DAMPING), damping * growth)
    wider = torch.where(accept, 2.0, 2 * growth)
    # that of a finished problem would grow without end while others go on, and its unrolled gradient be nan
    damping, growth = torch.where(running, further, damping), torch.where(running, wider, growth)
    running = running & ~small & (damping < MOST_DAMPING)
    return Descent(system.choose(accept, there, at), damping, growth, running, accepted + accept.int(), trials + 1)


def descend(system: System[At], at: At, tolerance: float, max_steps: int, floor: Tensor | float = 0.0) -> Descent:
    """`trial` after trial from a place, until all problems have ended or made `max_steps`.

    Whether all have ended is asked after 2, 3, 5, 8, … trials, as the host waits for the answer, and not at all where
    there are so few that it would gain nothing.
    """
    state, look = begin(at), 2
    for i in range(max_steps):
        if i == look and max_steps > _SHORT:
            if not state.running.any():
                break
            look += (look + 1) // 2
        state = trial(system, state, tolerance, floor)
    return state


def _moved(x: State, there: State) -> Tensor:
    """The largest change of a number of x, in parts of the largest number in its tensor (B,)."""

    def part(a: Tensor, b: Tensor) -> Tensor:
        if a.numel() == 0:
            return a.new_zeros(len(a))
        a, b = a.detach().reshape(len(a), -1), b.detach().reshape(len(b), -1)  # one number a problem: no dimension 1
        return (b - a).abs().amax(1) / a.abs().amax(1).clamp_min(torch.finfo(a.dtype).tiny)

    parts = map_state(part, x, there)
    return parts if isinstance(parts, Tensor) else torch.stack(parts).amax(0)


def polish(
    system: ExactSystem, x: Any, rounds: int, tolerance: float, floor: Tensor | float = 0.0
) -> tuple[Newton, Any, Tensor]:
    """At most `rounds` of Newton's steps, until the next would not matter: `Newton` at the best x, what its step leads
    to, and whether x is stationary (B,) in that this step is the last that matters.

    Accepting steps by cost alone stops at the square root of the resolution; these are accepted by the decrease that
    is left to predict (Newton's decrement). The last step is still taken: it is short, and convergence is quadratic.
    tolerance, floor: of the decrease, in parts of the cost, and the cost that rounding leaves.
    """
    best = system.newton(x)
    eps = torch.finfo(best.cost.dtype).eps
    for i in range(rounds + 1):
        candidate = system.retract(best.x, best.step)
        moved = system.moved(best.x, candidate)
        small = (best.decrease <= tolerance * best.cost + floor) | (moved <= eps**SAME_STEP)
        stationary = best.definite & small
        # to ask is to wait, which two rounds are worth once
        if i == rounds or ((rounds > 2 or i == 1) and stationary.all()):
            break
        there = system.newton(candidate)
        # Newton must not run to a saddle or to another basin, where it takes more than a very short step
        near = (there.cost <= SAME_COST * best.cost + 1e3 * floor) | (moved <= eps**SHORT_STEP)
        # who has ended stays, so that its bits do not depend on how long others go on
        better = ~stationary & there.definite & near & (there.decrease < best.decrease)
        if rounds > 2 and not better.any():
            break  # what follows would be the same again
        best = system.choose(better, there, best)
    return best, candidate, stationary


class _Point(NamedTuple):
    """x of B dense problems, their normal equations there, and their costs without a graph."""

    x: State
    lin: Linearization
    cost: Tensor


@dataclass(frozen=True)
class _Dense:
    """`System` of B instances of a `Problem`."""

    problem: Problem
    data: tuple[Tensor, ...]

    def at(self, x: State) -> _Point:
        lin = linearize(self.problem, x, self.data)
        return _Point(x, lin, lin.cost.detach().nan_to_num(torch.inf, torch.inf, torch.inf))

    def step(self, at: _Point, damping: Tensor) -> tuple[Tensor, Tensor]:
        return damped_step(at.lin.gauss_newton, at.lin.gradient, damping)[:2]

    def move(self, at: _Point, step: Tensor, running: Tensor) -> _Point:
        return self.at(select(running, move(self.problem, at.x, step), at.x))

    def choose(self, accept: Tensor, there: Any, at: Any) -> Any:
        if at is None or isinstance(at, Tensor):
            return None if at is None else select(accept, there, at)
        parts = [self.choose(accept, a, b) for a, b in zip(there, at, strict=True)]
        return type(at)(*parts) if hasattr(at, "_fields") else tuple(parts)

    def still(self, at: _Point, there: _Point) -> Tensor:
        return _moved(at.x, there.x) <= torch.finfo(at.cost.dtype).eps ** SAME_STEP

    def newton(self, x: State) -> Newton:
        lin = linearize(self.problem, x, self.data, exact=True)
        assert lin.hessian is not None
        step, decrease, pivot = damped_step(lin.hessian, lin.gradient)
        return Newton(x, lin.cost, step, decrease, pivot > margin(pivot.dtype, 1), lin)

    def retract(self, x: State, step: Tensor) -> State:
        return move(self.problem, x, step)

    def moved(self, x: State, there: State) -> Tensor:
        return _moved(x, there)

    def determined(self, at: Newton) -> Tensor:
        """Whether the data determine x (B,), as `geometry.optim.linear` says."""
        lin: Linearization = at.where
        assert lin.hessian is not None
        least = singular_below(self.problem, at.x, self.data)
        return determined(lin.hessian, lin.gauss_newton, lin.gradient, at.cost, least, self.problem.alike)


def levenberg_marquardt(
    problem: Problem, x: State, data: tuple[Tensor, ...], max_steps: int, enough: float = 1e-12
) -> tuple[State, Tensor, Tensor]:
    """`descend` of a `Problem` from x: x, accepted steps (B,), and whether the start was feasible (B,)."""
    at, steps, feasible = _descended(problem, x, data, max_steps, enough)
    return at.x, steps, feasible


def _descended(
    problem: Problem, x: State, data: tuple[Tensor, ...], max_steps: int, enough: float
) -> tuple[_Point, Tensor, Tensor]:
    dense = _Dense(problem, data)
    start = dense.at(x)
    # predicted relative decrease that ends a problem: a few digits above rounding of the cost
    tolerance = max(enough, 50 * torch.finfo(start.cost.dtype).eps)
    found = descend(dense, start, tolerance, max_steps)
    return found.at, found.accepted, torch.isfinite(start.cost)


@dataclass(frozen=True)
class Search:
    """A local minimum as a function of tensors: the `first` of them are the start, unless `start` makes it."""

    problem: Problem
    start: Callable[..., State] | None
    first: int
    single: bool
    max_steps: int
    polish: int
    enough: float = 1e-12

    def find(self, *tensors: Tensor) -> tuple[State, tuple[Tensor, ...]]:
        """x, and whether it converged (B,), cost (B,), status (B,) and steps (B,)."""
        given, data = tensors[: self.first], tensors[self.first :]
        x0 = (given[0] if self.single else given) if self.start is None else started(self.problem, self.start, data)
        with checked(self.problem, x0, data, "x0"):
            found = _least_squares(self.problem, x0, data, self.max_steps, self.polish, self.enough)
        return found.x, (found.converged, found.cost, found.status, found.steps)


def search(
    problem: Problem,
    x0: State | Callable[..., State],
    data: tuple[Tensor, ...],
    max_steps: int,
    polish: int,
    enough: float = 1e-12,
) -> tuple[Search, tuple[Tensor, ...]]:
    """The search for a minimum, and the tensors (B,…) that it is a function of; ValueError for what cannot be one."""
    whole("max_steps", max_steps, 1)
    whole("polish", polish, 0)
    positive("enough", enough)
    if callable(x0):
        check_tensors(False, **{f"data[{i}]": d for i, d in enumerate(data)})
        if not data:
            raise ValueError("data must hold a tensor where x0 is a function of them, got none")
        batch = next((d for d in data if len(d) != 1), data[0])
        return Search(problem, x0, 0, True, max_steps, polish, enough), batch_data(batch, data, "data")[1]
    if isinstance(x0, Tensor):
        check_addition(problem, x0, "x0")
    x0, data = batch_data(x0, data, "x0", problem.residual)
    parts = (x0,) if isinstance(x0, Tensor) else tuple(x0)
    one = Search(problem, None, len(parts), isinstance(x0, Tensor), max_steps, polish, enough)
    return one, (*(a.detach() for a in parts), *data)


def minimize(
    problem: Problem | Program,
    x0: State | Callable[..., State],
    *data: Any,
    max_steps: int = 50,
    polish: int = 2,
    enough: float = 1e-12,
    throw: bool = False,
) -> Solution:
    """Find a local minimum of B problems at once, without an autograd graph.

    x0: a tensor (B,…) or a tuple of them, or a function of the data (B,…) that makes such a start; data: tensors. Each
    has leading size B, or 1 where shared. Levenberg-Marquardt (`descend`) until it predicts a relative decrease of no
    more than `enough`, then `polish` exact Newton steps on the gradient. Each problem gets a `Status`; a failed one
    keeps the best x found and leaves the others untouched.
    Under torch.func.vmap the problems of all instances are one batch. Raises ValueError for data that does not fit
    the batch and, with throw=True, SolverError if any problem failed. A `Program` (`geometry.optim.quadratic`,
    `geometry.optim.constrained`) is solved by its own method, to which max_steps and polish go.

    >>> line = Problem(lambda x, a, b: x[0] * a + x[1] - b, dof=2)
    >>> a = torch.linspace(0, 1, 5)[None]
    >>> minimize(line, torch.zeros(1, 2), a, 3 * a + 1).x.round(decimals=6)
    tensor([[3., 1.]])
    """
    if isinstance(problem, Problem):
        one, tensors = search(problem, x0, data, max_steps, polish, enough)
        x, (_, *others) = opaque(one.find, *tensors)
        solution = Solution(x, *others)
    else:
        check_program(problem)
        solution = problem.minimize(x0, *data, max_steps=max_steps, polish=polish)
    if throw:
        solution.raise_if_failed()
    return solution


def _least_squares(
    problem: Problem, x0: State, data: tuple[Tensor, ...], max_steps: int, rounds: int, enough: float
) -> Solution:
    with torch.no_grad():
        if len(zero_step(problem, x0)) == 0:
            empty = zero_step(problem, x0).sum(-1)
            return Solution(x0, empty, empty.to(torch.int8), empty.int())
        at, steps, feasible = _descended(problem, x0, data, max_steps, enough)
        dense, eps = _Dense(problem, data), torch.finfo(at.cost.dtype).eps
        found, beyond, stationary = polish(dense, at.x, rounds, max(1e-13, 50 * eps))
        definite = dense.determined(found)
        stationary = stationary & definite
        x = select(stationary, beyond, found.x)
        cost = torch.where(stationary, (found.cost - found.decrease).clamp_min(0), found.cost)
        status = torch.where(stationary, Status.CONVERGED, torch.where(definite, Status.STALLED, Status.SINGULAR))
        status = torch.where(feasible, status, Status.INFEASIBLE).to(torch.int8)
    return Solution(x, cost, status, steps)
