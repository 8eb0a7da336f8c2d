"""How the paper's experiments learn through PnP: by gradient descent, as published, or by Gauss-Newton.

Either gives its driver a step at a time, remembers what is drawn at the end, and goes on where a killed run was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from experiments.running.run import Run
from geometry.optim import NestedProblem, NestedState, nested_start, nested_step

__all__ = ["Descent", "GaussNewton"]


class Descent:
    """Gradient descent of what `predict()` returns, the poses being followed from their first, global, solution:

    for step, x in descent.steps(1000):
        poses = pnp(x, ..., init=descent.poses).x
        descent.found(loss, poses)  # break here, or go down the gradient of this loss
    """

    def __init__(self, run: Run, predict: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.run, self.predict, self.optimizer = run, predict, optimizer
        self.poses: Tensor | None = None
        self.losses: list[float] = []
        self.history: list[Tensor] = []
        self._parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        if saved := run.restore():
            for parameter, value in zip(self._parameters, saved["parameters"], strict=True):
                parameter.data.copy_(value)
            optimizer.load_state_dict(saved["optimizer"])
            self.poses, self.losses, self.history = saved["poses"], saved["losses"], saved["history"]

    def steps(self, total: int) -> Iterator[tuple[int, Tensor]]:
        """Each step and its prediction, until there were `total` of them."""
        for step in self.run.iterations(total):
            prediction = self.predict()
            self.history.append(prediction.detach())
            yield step, prediction
            self.optimizer.zero_grad()
            self._loss.backward()
            self.optimizer.step()
            if self.run.due(step):
                self.run.checkpoint(
                    step, parameters=[p.detach() for p in self._parameters], optimizer=self.optimizer.state_dict(),
                    poses=self.poses, losses=self.losses, history=self.history,
                )  # fmt: skip

    def found(self, loss: Tensor, poses: Tensor) -> None:
        """What the step's prediction leads to: its loss (), with a graph, and its poses."""
        self._loss, self.poses = loss, poses.detach()
        self.losses.append(loss.item())


class GaussNewton:
    """Gauss-Newton steps of one problem whose poses are inner unknowns, from theta (1,…) where `start` begins."""

    def __init__(self, run: Run, problem: NestedProblem, start: Callable[[], tuple[Tensor, Tensor | None]]) -> None:
        self.run, self.problem = run, problem
        self.costs: list[float] = []
        self.history: list[Tensor] = []
        if saved := run.restore():
            self.state, self.costs, self.history = NestedState(*saved["state"]), saved["costs"], saved["history"]
        else:
            self.state = nested_start(problem, *start())

    @property
    def poses(self) -> Tensor:
        """The inner unknowns of the one problem."""
        return self.state.inner[0]

    def steps(self, total: int) -> Iterator[int]:
        """Each step, where `state` is what it begins with, until no more helps or there were `total` of them."""
        for step in self.run.iterations(total):
            self.costs.append(self.state.cost.item())
            self.history.append(self.state.theta[0])
            yield step
            if self.state.done.all():
                return
            self.state = nested_step(self.problem, self.state)
            if self.run.due(step):
                self.run.checkpoint(step, state=tuple(self.state), costs=self.costs, history=self.history)
