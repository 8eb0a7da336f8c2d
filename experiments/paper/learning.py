"""How the paper's experiments learn through PnP: by gradient descent, as published, or by Gauss-Newton.

Either gives its driver a step at a time, remembers what is drawn at the end, and goes on where a killed run was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from experiments.running.run import Run
from geometry.optim import NestedProblem, NestedState, nested_start, nested_step

__all__ = ["Descent", "GaussNewton", "Learning"]


class Descent:
    """Gradient descent of what `predict()` returns, the poses being followed from their first, global, solution:

    for step, x in descent.steps(1000, threshold=1e-3):
        poses = pnp(x, ..., init=descent.poses).x
        descent.found(loss, poses)
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

    @property
    def prediction(self) -> Tensor:
        """As it is now."""
        return self.predict().detach()

    def steps(self, total: int, threshold: float) -> Iterator[tuple[int, Tensor]]:
        """Each step and its prediction, until its loss is below the threshold or there were `total` of them."""
        for step in self.run.iterations(total):
            prediction = self.predict()
            self.history.append(prediction.detach())
            yield step, prediction
            if self.losses[-1] < threshold:
                return
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
    """Gauss-Newton steps of one problem whose poses are inner unknowns.

    start() is where theta (1,…) begins, and the poses if they are known. A loss is `scale` times the problem's cost.
    """

    def __init__(
        self, run: Run, problem: NestedProblem, start: Callable[[], tuple[Tensor, Tensor | None]], scale: int = 1
    ) -> None:
        self.run, self.problem, self.scale = run, problem, scale
        self.losses: list[float] = []
        self.history: list[Tensor] = []
        if saved := run.restore():
            self.state, self.losses, self.history = NestedState(*saved["state"]), saved["losses"], saved["history"]
        else:
            self.state = nested_start(problem, *start())

    @property
    def prediction(self) -> Tensor:
        """Theta, as it is now."""
        return self.state.theta[0]

    @property
    def poses(self) -> Tensor:
        """The inner unknowns of the one problem."""
        return self.state.inner[0]

    def steps(self, total: int, threshold: float = 0.0) -> Iterator[int]:
        """Each step, where `state` is what it begins with, until the loss is below the threshold or no step helps."""
        for step in self.run.iterations(total):
            self.losses.append(self.scale * self.state.cost.item())
            self.history.append(self.prediction)
            yield step
            if self.losses[-1] < threshold or self.state.done.all():
                return
            self.state = nested_step(self.problem, self.state)
            if self.run.due(step):
                self.run.checkpoint(step, state=tuple(self.state), losses=self.losses, history=self.history)


Learning = Descent | GaussNewton
