"""The descent of a bundle to its minimum: Levenberg-Marquardt, then Newton with the exact Hessian."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geometry.bundle_adjustment.coarse import coarse_motions
from geometry.bundle_adjustment.equations import NormalEquations
from geometry.bundle_adjustment.gauge import Gauge, GaugeChoice, gauge_at
from geometry.bundle_adjustment.problem import BundleData, BundleProblem, State
from geometry.bundle_adjustment.schur import Schur
from geometry.optim import FEIGNED, Status, next_damping

__all__ = ["Solver", "Task", "descend", "solve"]

Solver = Literal["auto", "dense", "iterative"]
# Camera unknowns up to which every step builds and factorises S: 3,000 take 70 MB and 0.2 seconds.
_DENSE = 3000
# The same for the last steps and the gradient, which have to be exact: 12,000 take 1.2 GB and some ten seconds.
_DENSE_TO_THE_END = 12000


class Progress(NamedTuple):
    """Where the descent stands after `trials` steps, of which `steps` were accepted."""

    state: State
    cost: Tensor
    trials: int
    steps: int
    done: bool


@dataclass(frozen=True)
class Task:
    """A problem with its data and the options of its solution."""

    problem: BundleProblem
    data: BundleData
    gauge: GaugeChoice
    rows: Tensor
    solver: Solver
    stiff: Tensor | None = None

    @cached_property
    def rounding(self) -> Tensor:
        """Cost () that a perfect fit leaves: pixels are known to a few digits less than they have."""
        eps = torch.finfo(self.data.points2d.dtype).eps
        return (eps * self.data.weights * self.data.points2d).square().sum()

    def gauge_at(self, state: State) -> Gauge | None:
        return gauge_at(self.problem, state, self.data, self.gauge, self.rows)

    def factorise(
        self,
        state: State,
        equations: NormalEquations,
        gauge: Gauge | None,
        damping: float = 0.0,
        *,
        truncated: bool = False,
    ) -> Schur:
        """The equations, ready to be solved; `truncated` where an approximate step will do."""
        layout = self.problem.layout
        iterative = layout.size > (_DENSE if truncated else _DENSE_TO_THE_END)
        if self.solver != "auto":
            iterative = self.solver == "iterative"
        unseen = None if gauge is None else gauge.motions.cameras
        coarse = None
        if iterative:
            coarse = coarse_motions(self.problem.compose(state, self.data.given).world_to_camera, layout)
        return Schur(
            equations, layout, damping, unseen, self.stiff, iterative=iterative, truncated=truncated, coarse=coarse
        )


def descend(task: Task, state: State, max_steps: int, tolerance: float) -> Iterator[Progress]:
    """Levenberg-Marquardt with Marquardt's scaling; yields the start, and what stands after every trial."""
    problem, data = task.problem, task.data
    equations = problem.linearize(state, data)
    cost = equations.cost
    damping, growth = torch.full_like(cost, 1e-4), torch.full_like(cost, 2.0)
    steps = 0
    done = not bool(torch.isfinite(cost))
    yield Progress(state, cost, 0, 0, done)
    gauge = task.gauge_at(state)
    for trial in range(1, max_steps + 1):
        system = task.factorise(state, equations, gauge, float(damping), truncated=True)
        step = system.solve(equations.gradient.times(-1))
        predicted = 0.5 * (step.dot(system.damped.times_entries(step)) - step.dot(equations.gradient))
        if gauge is not None:
            step = gauge.section(step)
        candidate, trial_cost = problem.advance(state, step, data)
        accept = system.ok & (trial_cost < cost)
        ratio = (cost - trial_cost) / predicted.clamp_min(torch.finfo(cost.dtype).tiny)
        damping, growth = next_damping(damping, growth, accept, torch.nan_to_num(ratio, -1.0))
        small = tolerance * torch.minimum(cost, trial_cost) + task.rounding
        done = bool(system.ok & ((predicted <= small) | (accept & (cost - trial_cost <= small))) | (damping > 1e12))
        if accept:
            state, steps = candidate, steps + 1
            gauge = task.gauge_at(state)
            equations = problem.linearize(state, data)
            cost = equations.cost
        yield Progress(state, cost, trial, steps, done)
        if done:
            return


def _endless(task: Task, state: State) -> Tensor:
    """Unit rays (N,3) of the points whose depth the data leave open, zero for all others.

    At the end of the descent such a point would still more than double its distance, or shows no parallax at all.
    """
    equations = task.problem.linearize(state, task.data)
    ray = task.problem.rays(state)
    length = ray.norm(dim=-1)
    ray = ray / length.clamp_min(torch.finfo(ray.dtype).tiny)[:, None]
    stiffness = (ray * (equations.V @ ray[..., None]).squeeze(-1)).sum(-1)
    push = -(ray * equations.gradient.points).sum(-1)
    most = equations.V.diagonal(dim1=-2, dim2=-1).amax(-1)
    open_end = (push > stiffness * length) | (stiffness <= 1e-12 * most)
    return torch.where((open_end & (most > 0) & ~task.problem.layout.held)[:, None], ray, 0)


def _determined(task: Task, state: State, exact: NormalEquations, system: Schur, gauge: Gauge | None) -> bool:
    """`geometry.optim.linear.determined` of the minimum: J^T J is looked at only where the Hessian leaves a doubt."""
    if not system.definite:
        return False
    tiny = torch.finfo(exact.cost.dtype).tiny
    size = exact.diagonal(task.problem.layout)
    slope2 = (exact.gradient.cameras.square() / size.cameras.abs().clamp_min(tiny)).sum()
    slope2 = slope2 + (exact.gradient.points.square() / size.points.abs().clamp_min(tiny)).sum()
    cosine = float((slope2 / (2 * exact.cost).clamp_min(tiny)).sqrt())
    if system.share > system.least + FEIGNED * cosine:
        return True
    return task.factorise(state, task.problem.linearize(state, task.data), gauge).definite


def _polish(task: Task, state: State, cost: Tensor, rounds: int) -> tuple[State, Tensor, Status]:
    """Undamped Newton with the exact Hessian, until the next step would not matter; that one is still taken.

    Accepting steps by cost alone stops at the square root of the resolution. Returns state, cost and status.
    """
    problem, data = task.problem, task.data
    best, best_cost, decrease = state, cost, torch.full_like(cost, torch.inf)
    status = Status.SINGULAR
    for _ in range(rounds):
        equations = problem.linearize(state, data, exact=True)
        gauge = task.gauge_at(state)
        system = task.factorise(state, equations, gauge)
        step = system.solve(equations.gradient.times(-1))
        new_decrease = -0.5 * step.dot(equations.gradient)
        # one part in a thousand of cost may be given up: Newton must not run to a saddle or to another basin
        near = equations.cost <= 1.001 * best_cost + 1e3 * task.rounding
        if not (system.ok & near & (new_decrease < decrease)):
            break
        best, best_cost, decrease = state, equations.cost, new_decrease
        status = Status.STALLED
        state = problem.retract(state, step if gauge is None else gauge.section(step))
        if decrease <= 1e-13 * best_cost + task.rounding:
            if not _determined(task, best, equations, system, gauge):
                return best, best_cost, Status.SINGULAR
            return state, best_cost, Status.CONVERGED
    return best, best_cost, status


def solve(
    task: Task, state: State, max_steps: int, callback: Callable[[int, float], None] | None
) -> tuple[State, Tensor, Status, int, Tensor]:
    """Descend, then polish; where Newton does not converge yet, descend farther. Returns state, cost, status, accepted
    steps and the rays (N,3) of points without depth."""
    layout = task.problem.layout
    taken = accepted = 0
    stiff = torch.zeros_like(state.points3d)
    if len(layout.view) == 0:
        return state, task.problem.cost(state, task.data), Status.TOO_FEW, 0, stiff
    for tolerance in (1e-7, 1e-10, 1e-13):
        for progress in descend(task, state, max_steps - taken, tolerance):
            if callback is not None and (progress.trials or not taken):
                callback(taken + progress.trials, float(progress.cost))
        state, cost = progress.state, progress.cost
        taken, accepted = taken + progress.trials, accepted + progress.steps
        if not torch.isfinite(cost):
            return state, cost, Status.INFEASIBLE, accepted, stiff
        stiff = _endless(task, state)
        state, cost, status = _polish(replace(task, stiff=stiff), state, cost, rounds=6)
        if status == Status.CONVERGED or taken >= max_steps:
            break
    if task.problem.redundancy(task.data) + len(task.rows) < 0:
        status = Status.TOO_FEW
    elif status == Status.SINGULAR and not progress.done:
        status = Status.STALLED
    return state, cost, status, accepted, stiff
