"""Where the points of a bundle fit best while its cameras stay: N problems of three unknowns, each with a damping of
its own.

A redescending kernel leaves a point that few views see, one of them wrongly, with long valleys and saddles. In a joint
step one damping serves all unknowns, and a single such point decides how far thousands of others may go. Settled by
themselves ("embedded point iterations": Jeong, Nistér, Steedly, Szeliski, Kweon 2010) they leave the joint problem with
blocks V that are positive definite, as its minimum has them.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from geometry.bundle_adjustment.equations import NormalEquations, Tangent
from geometry.bundle_adjustment.prior import Prior
from geometry.bundle_adjustment.problem import BundleData, BundleProblem, State
from geometry.optim import damped_step, descend

__all__ = ["settle"]

_ALL, _FEW = 3, 60  # trials of all points, most of which need no more; of those that do
_TOLERANCE = 1e-9  # decrease of a point's cost that matters no more, in parts of it


@dataclass(frozen=True)
class _Place:
    """Where the points are, and their costs (N,)."""

    problem: BundleProblem
    data: BundleData
    state: State
    cost: Tensor

    @cached_property
    def equations(self) -> NormalEquations:
        return self.problem.linearize(self.state, self.data, exact=True)


@dataclass(frozen=True)
class _Points:
    """`System` of the points that are not held. A point of another's place has the cost that it has there."""

    problem: BundleProblem
    data: BundleData

    def at(self, state: State, cost: Tensor) -> _Place:
        return _Place(self.problem, self.data, state, torch.where(cost.isfinite(), cost, torch.inf))

    def step(self, at: _Place, damping: Tensor) -> tuple[Tensor, Tensor]:
        gradient = torch.where(self.problem.layout.held[:, None], 0, at.equations.gradient.points)
        step, decrease, pivot = damped_step(at.equations.V, gradient, damping)
        return step, torch.where(pivot > 0, decrease, torch.inf)

    def move(self, at: _Place, step: Tensor, running: Tensor) -> _Place:
        still = step.new_zeros(self.problem.layout.size)
        along = Tangent(still, torch.where(running[:, None], step, 0))
        return self.at(*self.problem.along(at.state, along, self.data))

    def choose(self, accept: Tensor, there: _Place, at: _Place) -> _Place:
        points = torch.where(accept[:, None], there.state.points3d, at.state.points3d)
        return self.at(at.state._replace(points3d=points), torch.where(accept, there.cost, at.cost))

    def still(self, at: _Place, there: _Place) -> Tensor:
        return torch.zeros_like(at.cost, dtype=torch.bool)


def settle(problem: BundleProblem, data: BundleData, state: State, floor: Tensor) -> State:
    """The state with every point in a minimum of its own cost, or close to one.

    floor (): cost that rounding leaves.
    """
    known = data.prior  # that of the cameras, which stand still, would be differentiated in every trial
    data = data._replace(prior=Prior(points3d=known.points3d, point_weights=known.point_weights))
    for trials in (_ALL, _FEW):
        points = _Points(problem, data)
        cost = problem.point_costs(problem.compose(state, data.given), data)
        found = descend(points, points.at(state, cost), _TOLERANCE, trials, floor)
        state, running = found.at.state, found.running
        if not running.any():
            break
        # the others would cost as much again in every trial
        layout, keep = problem.layout, running[problem.layout.point]
        few = replace(layout, view=layout.view[keep], point=layout.point[keep], held=layout.held | ~running)
        problem = replace(problem, layout=few)
        data = data.of(keep)
    return state
