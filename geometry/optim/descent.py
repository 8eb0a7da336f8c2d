"""One descent for every least-squares problem, Levenberg-Marquardt, and `minimize`, which runs it on a `Problem`.

B problems converge or fail independently, and nothing is moved to the host but one "is anyone still running" flag
per step. What a problem brings is a `System`: a damped step, and where it leads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from geometry.compiled.constants import (
    DAMPING,
    LEAST_DAMPING,
    LEAST_SHRINK,
    MOST_DAMPING,
    SAME_COST,
    SAME_STEP,
)
from geometry.optim.linear import damped_step, determined, solve_damped
from geometry.optim.problem import (
    Linearization,
    Problem,
    Program,
    batch_data,
    exact_hessian,
    linearize,
    map_state,
    move,
    select,
    singular_below,
    zero_step,
)
from geometry.optim.solution import Solution, State, Status
from geometry.optim.transforms import opaque

__all__ = ["Descent", "System", "begin", "descend", "minimize", "trial"]

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


def descend(system: System[At], at: At, tolerance: float, max_steps: int) -> Descent:
    """`trial` after trial from a place, until all problems have ended or made `max_steps`.

    Whether all have ended is asked after 2, 4, 8, … trials, as the host waits for the answer, and not at all where
    there are so few that it would gain nothing.
    """
    state, look = begin(at), 2
    for i in range(max_steps):
        if i == look and max_steps > _SHORT:
            if not state.running.any():
                break
            look *= 2
        state = trial(system, state, tolerance)
    return state


def _norm2(gradient: Tensor, gauss_newton: Tensor) -> Tensor:
    """Squared gradient in the units of the cost, whatever the units of x: sum g_i^2 / A_ii."""
    diagonal = gauss_newton.diagonal(dim1=-2, dim2=-1)
    return (gradient.square() / diagonal.clamp_min(torch.finfo(gradient.dtype).tiny)).sum(-1)


def _below_resolution(candidate: State, x: State) -> Tensor:
    """Whether a step moved no tensor of x by more than eps^0.7 of its size: quadratic convergence does the rest."""

    def small(a: Tensor, b: Tensor) -> Tensor:
        if a.numel() == 0:
            return torch.ones(len(a), dtype=torch.bool, device=a.device)
        a, b = a.detach().reshape(len(a), -1), b.detach().reshape(len(b), -1)  # one number a problem: no dimension 1
        return (a - b).abs().amax(1) <= torch.finfo(b.dtype).eps ** SAME_STEP * b.abs().amax(1)

    still = map_state(small, candidate, x)
    return still if isinstance(still, Tensor) else torch.stack(still).all(0)


def _infinite_where_nan(cost: Tensor) -> Tensor:
    return cost.nan_to_num(torch.inf, torch.inf, torch.inf)


class _Point(NamedTuple):
    """x of B dense problems, and their normal equations there."""

    x: State
    lin: Linearization

    @property
    def cost(self) -> Tensor:
        return _infinite_where_nan(self.lin.cost.detach())


@dataclass(frozen=True)
class _Dense:
    """`System` of B instances of a `Problem`."""

    problem: Problem
    data: tuple[Tensor, ...]

    def at(self, x: State) -> _Point:
        return _Point(x, linearize(self.problem, x, self.data))

    def step(self, at: _Point, damping: Tensor) -> tuple[Tensor, Tensor]:
        return damped_step(at.lin.gauss_newton, at.lin.gradient, damping)

    def move(self, at: _Point, step: Tensor, running: Tensor) -> _Point:
        return self.at(select(running, move(self.problem, at.x, step), at.x))

    def choose(self, accept: Tensor, there: _Point, at: _Point) -> _Point:
        lin = Linearization(*(select(accept, a, b) for a, b in zip(there.lin, at.lin, strict=True)))
        return _Point(select(accept, there.x, at.x), lin)

    def still(self, at: _Point, there: _Point) -> Tensor:
        return _below_resolution(there.x, at.x)


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


def _polish(
    problem: Problem, at: _Point, data: tuple[Tensor, ...], rounds: int
) -> tuple[State, Tensor, Tensor, Tensor]:
    """Undamped Newton steps that shrink the gradient: accepting by cost alone stops at sqrt(eps) of the optimum.

    Returns x, cost (B,), whether stationary (B,), whether the data determine x (B,), as `geometry.optim.linear` says.
    """
    (best, lin), candidate = at, at.x
    eps, tiny = torch.finfo(lin.cost.dtype).eps, torch.finfo(lin.cost.dtype).tiny
    norm2 = _norm2(lin.gradient, lin.gauss_newton)
    for i in range(rounds + 1):
        if i > 0:
            there = linearize(problem, candidate, data)
            new = _norm2(there.gradient, there.gauss_newton)
            # one part in a thousand of cost may be given up: Newton must not run to a saddle or to another basin
            better = (new <= norm2) & (there.cost <= SAME_COST * lin.cost + 1e3 * eps)
            best, norm2 = select(better, candidate, best), torch.where(better, new, norm2)
            lin = Linearization(*(select(better, a, b) for a, b in zip(there, lin, strict=True)))
        hessian = exact_hessian(problem, best, data)
        step, definite = solve_damped(hessian, -lin.gradient)
        candidate = move(problem, best, step)
    # Stationary: the next Newton step is below the resolution of x, or the residual is orthogonal to the Jacobian up
    # to rounding. The second test alone would fail where the residual itself is rounding.
    stationary = definite & (_below_resolution(candidate, best) | (norm2 <= eps * (2 * lin.cost + tiny)))
    least = singular_below(problem, best, data)
    definite = determined(hessian, lin.gauss_newton, lin.gradient, lin.cost, least, problem.alike)
    return best, lin.cost, stationary & definite, definite


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
        x0 = (given[0] if self.single else given) if self.start is None else self.start(*data)
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
    """The search for a minimum, and the tensors (B,…) that it is a function of."""
    if callable(x0):
        batch = next((d for d in data if len(d) != 1), data[0])
        return Search(problem, x0, 0, True, max_steps, polish, enough), batch_data(batch, data)
    parts = (x0,) if isinstance(x0, Tensor) else tuple(x0)
    one = Search(problem, None, len(parts), isinstance(x0, Tensor), max_steps, polish, enough)
    return one, (*(a.detach() for a in parts), *batch_data(x0, data))


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

    x0: a tensor (B,…) or a tuple of them, or a function of the data (B,…) that makes such a start; data: tensors with
    leading size B, or 1 where shared. Levenberg-Marquardt (`descend`) until it predicts a relative decrease of no more
    than `enough`, then `polish` exact Newton steps on the gradient. Each problem gets a `Status`; a failed one keeps
    the best x found and leaves the others untouched.
    Under torch.func.vmap the problems of all instances are one batch. Raises ValueError for data that does not fit
    the batch and, with throw=True, SolverError if any problem failed. A `Program` (`geometry.optim.quadratic`,
    `geometry.optim.constrained`) is solved by its own method, to which max_steps and polish go.
    """
    if isinstance(problem, Problem):
        one, tensors = search(problem, x0, data, max_steps, polish, enough)
        x, (_, *others) = opaque(one.find, *tensors)
        solution = Solution(x, *others)
    else:
        solution = problem.minimize(x0, *data, max_steps=max_steps, polish=polish)
    if throw:
        solution.raise_if_failed()
    return solution


def _least_squares(
    problem: Problem, x0: State, data: tuple[Tensor, ...], max_steps: int, polish: int, enough: float
) -> Solution:
    with torch.no_grad():
        if len(zero_step(problem, x0)) == 0:
            empty = zero_step(problem, x0).sum(-1)
            return Solution(x0, empty, empty.to(torch.int8), empty.int())
        at, steps, feasible = _descended(problem, x0, data, max_steps, enough)
        x, cost, stationary, definite = _polish(problem, at, data, polish)
        status = torch.where(stationary, Status.CONVERGED, torch.where(definite, Status.STALLED, Status.SINGULAR))
        status = torch.where(feasible, status, Status.INFEASIBLE).to(torch.int8)
    return Solution(x, cost, status, steps)
