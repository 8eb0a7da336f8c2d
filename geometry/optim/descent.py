"""Batched Levenberg-Marquardt: `minimize`.

B problems converge or fail independently, and nothing is moved to the host but one "is anyone still running" flag
per step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from geometry.optim.linear import determined, solve_damped
from geometry.optim.problem import (
    Linearization,
    Problem,
    Program,
    _add,
    batch_data,
    exact_hessian,
    linearize,
    map_state,
    select,
    singular_below,
    zero_step,
)
from geometry.optim.solution import Solution, State, Status
from geometry.optim.transforms import opaque

__all__ = ["minimize"]


def _norm2(gradient: Tensor, gauss_newton: Tensor) -> Tensor:
    """Squared gradient in the units of the cost, whatever the units of x: sum g_i^2 / A_ii."""
    diagonal = gauss_newton.diagonal(dim1=-2, dim2=-1)
    return (gradient.square() / diagonal.clamp_min(torch.finfo(gradient.dtype).tiny)).sum(-1)


def _below_resolution(candidate: State, x: State) -> Tensor:
    """Whether a step moved no tensor of x by more than eps^0.7 of its size: quadratic convergence does the rest."""

    def small(a: Tensor, b: Tensor) -> Tensor:
        if a.numel() == 0:
            return torch.ones(len(a), dtype=torch.bool, device=a.device)
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)  # one number per problem has no dimension 1
        return (a - b).abs().amax(1) <= torch.finfo(b.dtype).eps ** 0.7 * b.abs().amax(1)

    still = map_state(small, map_state(torch.Tensor.detach, candidate), map_state(torch.Tensor.detach, x))
    return still if isinstance(still, Tensor) else torch.stack(still).all(0)


def _infinite_where_nan(cost: Tensor) -> Tensor:
    return torch.where(torch.isfinite(cost), cost, torch.full_like(cost, torch.inf))


def next_damping(
    damping: Tensor, growth: Tensor, accept: Tensor, ratio: Tensor, least: float = 1e-14
) -> tuple[Tensor, Tensor]:
    """Damping and growth after a trial step, by the ratio of real to predicted decrease (Nielsen 1999, eq. 2.4)."""
    shrink = (1 - (2 * ratio.clamp(-1, 2) - 1) ** 3).clamp(1 / 3, 1)
    damping = torch.where(accept, (damping * shrink).clamp_min(least), damping * growth)
    return damping, torch.where(accept, 2.0, 2 * growth)


def levenberg_marquardt(
    problem: Problem, x: State, data: tuple[Tensor, ...], max_steps: int
) -> tuple[State, Tensor, Tensor]:
    """Damped Gauss-Newton with Nielsen's damping (1999) and Marquardt's scaling, accepted problem by problem.

    Returns x, accepted steps (B,), and whether the start was feasible (B,). Runs with or without an autograd graph:
    decisions are taken on detached values, so that a graph, if recorded, is that of the accepted steps.
    """
    eps = torch.finfo(zero_step(problem, x).dtype).eps
    # predicted relative decrease that ends a problem: a few digits above rounding of the cost
    tolerance = max(1e-12, 50 * eps)
    lin = linearize(problem, x, data)
    cost = _infinite_where_nan(lin.cost.detach())
    feasible = torch.isfinite(cost)
    running = feasible.clone()
    damping = torch.full_like(cost, 1e-3)
    growth = torch.full_like(cost, 2.0)
    steps = torch.zeros(len(cost), dtype=torch.int32, device=cost.device)
    for _ in range(max_steps):
        if not running.any():
            break
        diagonal = lin.gauss_newton.diagonal(dim1=-2, dim2=-1).detach()
        # a direction that the data do not see still gets some damping
        floor = 1e-9 * diagonal.amax(-1, keepdim=True) + torch.finfo(cost.dtype).tiny
        D = torch.diag_embed(damping[:, None] * torch.maximum(diagonal, floor))
        step, _ = solve_damped(lin.gauss_newton + D, -lin.gradient)
        candidate = problem.retract(x, step) if problem.retract is _add else vmap(problem.retract)(x, step)
        predicted = 0.5 * (step * (damping[:, None] * diagonal * step - lin.gradient)).sum(-1).detach()
        trial = linearize(problem, select(running, candidate, x), data)
        trial_cost = _infinite_where_nan(trial.cost.detach())
        accept = running & (trial_cost < cost)
        ratio = (cost - trial_cost) / predicted.clamp_min(torch.finfo(cost.dtype).tiny)
        done = (predicted <= tolerance * torch.minimum(cost, trial_cost)) | _below_resolution(candidate, x)
        x = select(accept, candidate, x)
        lin = Linearization(*(select(accept, a, b) for a, b in zip(trial, lin, strict=True)))
        cost = torch.where(accept, trial_cost, cost)
        further, wider = next_damping(damping, growth, accept, ratio)
        # that of a finished problem would grow without end while others go on, and its unrolled gradient be nan
        damping, growth = torch.where(running, further, damping), torch.where(running, wider, growth)
        steps = steps + accept.int()
        running = running & ~done & (damping < 1e12)
    return x, steps, feasible


def _polish(problem: Problem, x: State, data: tuple[Tensor, ...], rounds: int) -> tuple[State, Tensor, Tensor, Tensor]:
    """Undamped Newton steps that shrink the gradient: accepting by cost alone stops at sqrt(eps) of the optimum.

    Returns x, cost (B,), whether stationary (B,), whether the data determine x (B,), as `geometry.optim.linear` says.
    """
    eps = torch.finfo(zero_step(problem, x).dtype).eps
    lin = linearize(problem, x, data)
    best = lin
    best_x, candidate = x, x
    stationary, hessian = torch.zeros_like(lin.cost, dtype=torch.bool), lin.gauss_newton
    for i in range(rounds + 1):
        if i > 0:
            lin = linearize(problem, candidate, data)
        norm2, best_norm2 = _norm2(lin.gradient, lin.gauss_newton), _norm2(best.gradient, best.gauss_newton)
        # one part in a thousand of cost may be given up: Newton must not run to a saddle or to another basin
        better = torch.isfinite(lin.cost) & (norm2 <= best_norm2) & (lin.cost <= 1.001 * best.cost + 1e3 * eps)
        if i > 0:
            best_x = select(better, candidate, best_x)
            best = Linearization(*(select(better, a, b) for a, b in zip(lin, best, strict=True)))
        hessian = exact_hessian(problem, best_x, data)
        step, definite = solve_damped(hessian, -best.gradient)
        candidate = vmap(problem.retract)(best_x, step)
        # Stationary: the next Newton step is below the resolution of x, or the residual is orthogonal to the
        # Jacobian up to rounding. The second test alone would fail where the residual itself is rounding.
        cosine2 = _norm2(best.gradient, best.gauss_newton) / (2 * best.cost + torch.finfo(lin.cost.dtype).tiny)
        stationary = definite & (_below_resolution(candidate, best_x) | (cosine2 <= eps))
    least = singular_below(problem, best_x, data)
    definite = determined(hessian, best.gauss_newton, best.gradient, best.cost, least, problem.alike)
    return best_x, best.cost, stationary & definite, definite


@dataclass(frozen=True)
class Search:
    """A local minimum as a function of tensors: the `first` of them are the start, unless `start` makes it."""

    problem: Problem
    start: Callable[..., State] | None
    first: int
    single: bool
    max_steps: int
    polish: int

    def find(self, *tensors: Tensor) -> tuple[State, tuple[Tensor, ...]]:
        """x, and whether it converged (B,), cost (B,), status (B,) and steps (B,)."""
        given, data = tensors[: self.first], tensors[self.first :]
        x0 = (given[0] if self.single else given) if self.start is None else self.start(*data)
        found = _least_squares(self.problem, x0, data, self.max_steps, self.polish)
        return found.x, (found.converged, found.cost, found.status, found.steps)


def search(
    problem: Problem, x0: State | Callable[..., State], data: tuple[Tensor, ...], max_steps: int, polish: int
) -> tuple[Search, tuple[Tensor, ...]]:
    """The search for a minimum, and the tensors (B,…) that it is a function of."""
    if callable(x0):
        size = max(len(d) for d in data)
        return Search(problem, x0, 0, True, max_steps, polish), batch_data(
            data[0].expand(size, *data[0].shape[1:]), data
        )
    parts = (x0,) if isinstance(x0, Tensor) else tuple(x0)
    one = Search(problem, None, len(parts), isinstance(x0, Tensor), max_steps, polish)
    return one, (*(a.detach() for a in parts), *batch_data(x0, data))


def minimize(
    problem: Problem | Program,
    x0: State | Callable[..., State],
    *data: Any,
    max_steps: int = 50,
    polish: int = 2,
    throw: bool = False,
) -> Solution:
    """Find a local minimum of B problems at once, without an autograd graph.

    x0: a tensor (B,…) or a tuple of them, or a function of the data (B,…) that makes such a start; data: tensors with
    leading size B, or 1 where shared. Levenberg-Marquardt (`levenberg_marquardt`), then `polish` exact Newton steps on
    the gradient. Each problem gets a `Status`; a failed one keeps the best x found and leaves the others untouched.
    Under torch.func.vmap the problems of all instances are one batch. Raises ValueError for data that does not fit
    the batch and, with throw=True, SolverError if any problem failed. A `Program` (`geometry.optim.quadratic`,
    `geometry.optim.constrained`) is solved by its own method, to which max_steps and polish go.
    """
    if isinstance(problem, Problem):
        one, tensors = search(problem, x0, data, max_steps, polish)
        x, (_, *others) = opaque(one.find, *tensors)
        solution = Solution(x, *others)
    else:
        solution = problem.minimize(x0, *data, max_steps=max_steps, polish=polish)
    if throw:
        solution.raise_if_failed()
    return solution


def _least_squares(problem: Problem, x0: State, data: tuple[Tensor, ...], max_steps: int, polish: int) -> Solution:
    with torch.no_grad():
        if len(zero_step(problem, x0)) == 0:
            empty = zero_step(problem, x0).sum(-1)
            return Solution(x0, empty, empty.to(torch.int8), empty.int())
        x, steps, feasible = levenberg_marquardt(problem, x0, data, max_steps)
        x, cost, stationary, definite = _polish(problem, x, data, polish)
        status = torch.where(stationary, Status.CONVERGED, torch.where(definite, Status.STALLED, Status.SINGULAR))
        status = torch.where(feasible, status, Status.INFEASIBLE).to(torch.int8)
    return Solution(x, cost, status, steps)
