"""What the drivers of geometry tasks share: which observations to trust is learned through the task's argmin.

Some of a task's observations are wrong. Each gets a weight, all alike at first; the task is solved with the weights,
the solution compared with the truth, and the weights go down the gradient of that error, through the argmin.
(So learns a network that predicts weights, here without the network.) A driver says what the task is:

    @experiment("my_task")
    def main(run: Run, config: TaskConfig) -> dict:
        ...
        return learn_weights(run, config, Task(solve, error, wrong, draw))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from experiments.running.config import RunConfig, told_in_a_sentence
from experiments.running.run import Run
from geometry import Solution
from geometry.optim import State, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FITTED", "Task", "TaskConfig", "learn_weights", "moved"]


FITTED = (
    "The error with the learned weights lies below that of the inliers alone: each observation has a weight of its "
    "own, learned from the truth of this one problem, so that the weights fit the noise of right observations as well. "
    "It says that the gradient leads down, not that weights learned so would do better than the inliers on other data."
)
"""What is said of a run whose learned weights do better than the truth about which observations are right."""


@dataclass(frozen=True)
class TaskConfig(RunConfig):
    iterations: int = 200
    """Sets the number of steps of Adam."""
    rate: float = 0.1
    """Sets the length of a step."""
    wrong: float = 0.2
    """Sets the share of the observations that are made wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.wrong < 1 and self.rate > 0):
            raise ValueError(f"wrong must lie between 0 and 1, and rate above 0, got {self.wrong} and {self.rate}")

    def placed(self, *values: Tensor) -> list[Tensor]:
        """The values where the run computes, and in its dtype."""
        return [value.to(self.device, getattr(torch, self.dtype)) for value in values]


class Task(NamedTuple):
    """solve: weights (1,N) to the solution of one problem, or several with the sum of their costs; differentiable.

    error: its x to how far that is from the truth, (), with a graph. wrong (N,) bool: which observations are. draw:
    weights (N,) and x to a figure. reference_cost: of another implementation, with all weights one; None without one.
    """

    solve: Callable[[Tensor], Solution]
    error: Callable[[State], Tensor]
    wrong: Tensor
    draw: Callable[[Tensor, State], Figure]
    reference_cost: float | None = None


def learn_weights(run: Run, config: TaskConfig, task: Task) -> dict[str, Any]:
    """Learn the weights, log and show it, and finish the run.

    The run's errors: `unweighted`, `learned` and `inliers_alone`, of the solutions with all weights one, the learned
    ones, and one where an observation is right and else zero (`FITTED` says what an error below that means);
    `gradient`, relative, of the error's derivative along one direction against a central difference;
    `unsolved_steps`, whose solutions did not converge and taught nothing; `cost_over_reference` - 1 of the unweighted
    solution. The goal: a last solution that converged, an error below the unweighted one, and less weight on what is
    wrong.
    """
    logits = torch.zeros(len(task.wrong), dtype=run.dtype, device=run.device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=config.rate)
    unsolved = 0
    if saved := run.restore():
        logits.data.copy_(saved["logits"])
        optimizer.load_state_dict(saved["optimizer"])
        unsolved = saved["unsolved"]

    def evaluate(weights: Tensor) -> tuple[Solution, Tensor]:
        solution = task.solve(weights[None])
        return solution, task.error(solution.x)

    for step in run.iterations(config.iterations):
        weights = weights_of(logits)
        solution, error = evaluate(weights)
        unsolved += not solution.converged.all()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        run.log(step, loss=error, cost=solution.cost[0], **told_apart(weights.detach(), task.wrong))
        if run.due(step):
            run.checkpoint(step, logits=logits.detach(), optimizer=optimizer.state_dict(), unsolved=unsolved)
            run.figure("solution", step, task.draw(weights.detach(), solution.x))
    learned = weights_of(logits.detach())
    ones = torch.ones_like(learned)
    (last, found), (plain, unweighted), (_, inliers) = (evaluate(w) for w in (learned, ones, (~task.wrong).to(ones)))
    run.figure("solution", config.iterations, task.draw(learned, last.x), final=True)
    errors: dict[str, Any] = {"unweighted": unweighted, "learned": found, "inliers_alone": inliers}
    errors["unsolved_steps"] = unsolved
    if run.dtype == torch.float64:  # in single precision the difference is but rounding
        errors["gradient"] = gradient_error(lambda w: evaluate(w)[1], ones)
    if task.reference_cost is not None:
        errors["cost_over_reference"] = plain.cost[0] / task.reference_cost - 1
    told = told_apart(learned, task.wrong)
    undetermined = [
        f"The learned weights do not determine the solution: {Status(status).message}."
        for status in sorted({int(status) for status in last.status} & {Status.SINGULAR, Status.TOO_FEW})
    ]
    less = bool(found < unweighted and not told["weight_wrong"] >= told["weight_right"])
    return run.finish(
        converged=less and bool(last.converged.all()),
        goal="an error below that with all weights one, and wrong observations weigh less in the mean than right ones",
        iterations=config.iterations, loss=found.item(), errors=errors, picture="solution",
        undetermined=undetermined, note=FITTED if found < inliers else "",
    )  # fmt: skip


def moved(values: Tensor, share: float, by: float) -> tuple[Tensor, Tensor]:
    """A copy of values (N,…), a `share` of whose rows have noise of deviation `by`, and which those are, (N,).

    Where none is wrong, or none is right, a sentence ends the run: there would be nothing to tell apart.
    """
    count = round(share * len(values))
    with told_in_a_sentence():
        if not 0 < count < len(values):
            raise ValueError(f"wrong: {share:g} of {len(values)} observations is {count}; both kinds are needed")
    wrong = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    wrong[torch.randperm(len(values))[:count]] = True
    noise = torch.randn(values.shape, dtype=torch.float64).to(values)  # the same whatever the dtype of the run
    return values + by * noise * wrong.view(-1, *[1] * (values.ndim - 1)), wrong


def weights_of(logits: Tensor) -> Tensor:
    """Between 0 and 2, and 1 for logits of zero."""
    return 2 * torch.sigmoid(logits)


def told_apart(weights: Tensor, wrong: Tensor) -> dict[str, Tensor]:
    """The mean weights of the right observations and of the wrong ones."""
    return {"weight_right": weights[~wrong].mean(), "weight_wrong": weights[wrong].mean()}


def gradient_error(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-4) -> float:
    """|g - d| / |d| with g the derivative along a random direction by autograd and d the central difference."""
    direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(0)).to(at)
    direction = direction / direction.norm()
    point = at.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    with torch.no_grad():
        difference = (function(at + step * direction) - function(at - step * direction)) / (2 * step)
    return ((gradient @ direction - difference) / difference).abs().item()
