"""The descent of a bundle to its minimum: Levenberg-Marquardt, then Newton with the exact Hessian."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from geometry.bundle_adjustment.coarse import coarse_motions
from geometry.bundle_adjustment.equations import NormalEquations, Tangent
from geometry.bundle_adjustment.gauge import Gauge, GaugeChoice, gauge_at
from geometry.bundle_adjustment.points import settle
from geometry.bundle_adjustment.problem import BundleData, BundleProblem, State
from geometry.bundle_adjustment.schur import Schur
from geometry.optim import FEIGNED, Descent, Newton, Status, begin, polish, trial

__all__ = ["Solver", "Task", "solve"]

Solver = Literal["auto", "dense", "iterative"]
# Camera unknowns up to which every step builds and factorises S: 3,000 take 70 MB and 0.2 seconds.
_DENSE = 3000
# The same for the last steps and the gradient, which have to be exact: 12,000 take 1.2 GB and some ten seconds.
_DENSE_TO_THE_END = 12000
_ROUNDS = 5  # of Newton's method after a descent
# Decrease, in parts of the cost, from which on a descent with a robust kernel takes the exact Hessian.
_NEAR = 1e-3


@dataclass(frozen=True)
class Task:
    """A problem with its data, relative to a place (3,) of the caller's world, and the options of its solution."""

    problem: BundleProblem
    data: BundleData
    place: Tensor
    gauge: GaugeChoice
    rows: Tensor
    solver: Solver
    stiff: Tensor | None = None

    @cached_property
    def rounding(self) -> Tensor:
        """Cost () that a perfect fit leaves: pixels are known to a few digits less than they have, angles as numbers
        of about one."""
        eps = torch.finfo(self.data.points2d.dtype).eps
        size = self.data.points2d if self.data.bearings is None else torch.ones_like(self.data.weights)
        return (eps * self.data.weights * size).square().sum()

    def poses(self, state: State) -> Tensor:
        """world_to_camera (V,4,4), the fixed ones among them; of rigs the world_to_rig of each view."""
        return self.problem.compose(state, self.data.given).world_to_camera[self.problem.frame]

    def gauge_at(self, state: State) -> Gauge | None:
        return gauge_at(self.problem, state, self.data, self.gauge, self.rows)

    def freedom(self, state: State) -> int:
        """How many similarities the data leave open."""
        gauge = self.gauge_at(state)
        return 0 if gauge is None else gauge.motions.cameras.shape[1]

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
            poses = self.problem.compose(state, self.data.given).world_to_camera
            coarse = coarse_motions(poses, layout, self.problem.frame)
        return Schur(
            equations, layout, damping, unseen, self.stiff, iterative=iterative, truncated=truncated, coarse=coarse
        )


class _Place:
    """Unknowns, their cost (1,), and what is known there once it is asked for; exact: with the exact Hessian."""

    def __init__(self, task: Task, state: State, cost: Tensor | None = None, *, exact: bool = False) -> None:
        self.task, self.state, self.exact = task, state, exact
        cost = self.equations.cost if cost is None else cost
        self.cost = torch.where(torch.isfinite(cost), cost, torch.inf)[None]

    @cached_property
    def equations(self) -> NormalEquations:
        return self.task.problem.linearize(self.state, self.task.data, exact=self.exact)

    @cached_property
    def gauge(self) -> Gauge | None:
        return self.task.gauge_at(self.state)


@dataclass(frozen=True)
class _Bundle:
    """`System` of one bundle, whose steps are solved for on the Schur complement of its points.

    exact: by the exact Hessian instead of Gauss-Newton's matrix, from places where the points have settled.
    """

    task: Task
    exact: bool = False

    def at(self, state: State, cost: Tensor | None = None) -> _Place:
        if self.exact:
            problem, data = self.task.problem, self.task.data
            state = settle(problem, data, state, self.task.rounding)
            cost = problem.cost(state, data)
        return _Place(self.task, state, cost, exact=self.exact)

    def step(self, at: _Place, damping: Tensor) -> tuple[Tangent, Tensor]:
        gradient = at.equations.gradient
        system = self.task.factorise(at.state, at.equations, at.gauge, float(damping), truncated=True)
        step = system.solve(gradient.times(-1))
        predicted = 0.5 * (step.dot(system.damped.times_entries(step)) - step.dot(gradient))
        step = step if at.gauge is None else at.gauge.short_section(step, at.state.points3d.norm())
        nothing = Tangent(torch.zeros_like(step.cameras), torch.zeros_like(step.points))
        return (
            (step, predicted[None].nan_to_num(torch.inf))
            if system.ok
            else (nothing, torch.full_like(damping, torch.inf))
        )

    def move(self, at: _Place, step: Tangent, running: Tensor) -> _Place:
        if self.exact and not (step.cameras.any() or step.points.any()):
            return at  # there is no step, and nothing to settle
        return self.at(*self.task.problem.advance(at.state, step, self.task.data))

    def choose(self, accept: Tensor, there: _Place, at: _Place) -> _Place:
        return there if accept else at

    def still(self, at: _Place, there: _Place) -> Tensor:
        return torch.zeros_like(at.cost, dtype=torch.bool)

    def newton(self, x: State) -> Newton:
        equations = self.task.problem.linearize(x, self.task.data, exact=True)
        gauge = self.task.gauge_at(x)
        system = self.task.factorise(x, equations, gauge)
        step = system.solve(equations.gradient.times(-1))
        decrease = -0.5 * step.dot(equations.gradient)
        definite = decrease.new_full((1,), bool(system.ok), dtype=torch.bool)
        step = step if gauge is None else gauge.section(step)
        return Newton(x, equations.cost[None], step, decrease[None], definite, (equations, system, gauge))

    def retract(self, x: State, step: Tangent) -> State:
        return self.task.problem.retract(x, step)

    def moved(self, x: State, there: State) -> Tensor:
        """Infinitely far: what a step gains is judged by the resolution of the pixels, `Task.rounding`."""
        return x.points3d.new_full((1,), torch.inf)


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


def _polished(task: Task, state: State, rounds: int) -> tuple[State, Tensor, Status]:
    """`polish`, and what its end says. Returns state, cost () and status."""
    best, beyond, stationary = polish(_Bundle(task), state, rounds, 1e-13, task.rounding)
    cost = best.cost[0]
    if not best.definite:
        return state, cost, Status.SINGULAR
    if not stationary:
        return best.x, cost, Status.STALLED
    if not _determined(task, best.x, *best.where):
        return best.x, cost, Status.SINGULAR
    return beyond, cost, Status.CONVERGED


def solve(
    task: Task, state: State, max_steps: int, callback: Callable[[int, float], None] | None
) -> tuple[State, Tensor, Status, int, Tensor]:
    """Descend, then polish; where Newton does not converge yet, descend farther. Returns state, cost, status, accepted
    steps and the rays (N,3) of points without depth.

    With a robust kernel Gauss-Newton's matrix leaves out the kernel's negative curvature: its steps fall short, at the
    end by any factor, while all of them are accepted. It is followed as long as it brings much, and the exact Hessian
    from there.
    """
    layout = task.problem.layout
    taken = accepted = 0
    stiff = torch.zeros_like(state.points3d)
    if len(layout.view) == 0:
        return state, task.problem.cost(state, task.data), Status.TOO_FEW, 0, stiff
    system = _Bundle(task)
    told = callback or (lambda step, cost: None)

    def descended(at: _Place, tolerance: float) -> Descent:
        nonlocal taken, accepted
        descent = begin(at)
        while descent.running and taken + descent.trials < max_steps:
            descent = trial(system, descent, tolerance, task.rounding)
            told(taken + descent.trials, float(descent.at.cost))
        taken, accepted = taken + descent.trials, accepted + int(descent.accepted)
        return descent

    at = system.at(state)
    told(0, float(at.cost))
    if task.problem.kernel is not None:
        state = descended(at, _NEAR).at.state
        system = _Bundle(task, exact=True)
        at = system.at(state)
    for tolerance in (1e-7, 1e-10, 1e-13):
        descent = descended(at, tolerance)
        state, cost = descent.at.state, descent.at.cost[0]
        if not torch.isfinite(cost):
            return state, cost, Status.INFEASIBLE, accepted, stiff
        stiff = _endless(task, state)
        state, cost, status = _polished(replace(task, stiff=stiff), state, min(_ROUNDS, max_steps))
        if status == Status.CONVERGED or taken >= max_steps:
            break
        at = system.at(state)
    if task.problem.redundancy(task.data) + task.freedom(state) < 0:
        status = Status.TOO_FEW
    elif status == Status.SINGULAR and descent.running:
        status = Status.STALLED
    return state, cost, status, accepted, stiff
