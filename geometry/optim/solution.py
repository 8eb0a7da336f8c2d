"""What a solver found, and whether to trust it: `Solution` and its `Status`."""

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch import Tensor

from geometry.checks import plainly

__all__ = ["ConstrainedSolution", "Solution", "SolverError", "State", "Status"]

State = Any
"""An unknown `x`: one tensor or a tuple of tensors. Not a union, or every caller would have to say which."""


class Status(IntEnum):
    """What became of one problem of the batch.

    >>> status = pnp(points2d, points3d, K).status
    >>> Status(int(status[0])).name
    'CONVERGED'
    """

    CONVERGED = 0
    STALLED = 1
    SINGULAR = 2
    INFEASIBLE = 3
    TOO_FEW = 4
    UNBOUNDED = 5

    @property
    def message(self) -> str:
        """One sentence for a person."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged to a strict local minimum",
    Status.STALLED: "stopped before the gradient vanished: raise max_steps, or the minimum lies at infinity",
    Status.SINGULAR: "the minimum is not isolated or not a minimum: the data do not determine the unknowns",
    Status.INFEASIBLE: "no finite cost at the start; for a camera: a point lies behind it; or contrary constraints",
    Status.TOO_FEW: "fewer observations than the unknowns need",
    Status.UNBOUNDED: "the cost falls for ever within the constraints",
}


class SolverError(RuntimeError):
    """Raised with `throw=True` when a problem of the batch did not converge.

    >>> one_place = torch.zeros(12, 3)
    >>> pnp(points2d, one_place, K, throw=True)
    Traceback (most recent call last):
        ...
    geometry.optim.solution.SolverError: 3 of 3 problems failed: ...
    """


@dataclass(frozen=True)
class Solution:
    """What a solver found, and whether to trust it.

    x: the minimiser, with the shapes of the start; of a problem that did not converge it is where the search stood, or
    NaN, and means nothing: a loss leaves it out, `torch.where(solution.converged, error, 0)`. cost (B,): half the
    robustified sum of squares. status (B,): int8 of `Status`. steps (B,): accepted Levenberg-Marquardt steps, int32.
    Printed, it says how many ended in which status.

    >>> mean = Problem(lambda x, y: x - y, dof=1)
    >>> minimize(mean, torch.zeros(2, 1), torch.ones(2, 3)).converged
    tensor([True, True])
    """

    x: State
    cost: Tensor
    status: Tensor
    steps: Tensor

    @property
    def converged(self) -> Tensor:
        """(B,) bool."""
        return self.status == int(Status.CONVERGED)  # torch.compile takes no IntEnum for a number

    def __str__(self) -> str:
        def look(status: Tensor) -> str:
            every = Counter(status.flatten().tolist())
            lines = [f"{count} {Status(one).name}: {Status(one).message}" for one, count in sorted(every.items())]
            return "\n".join([f"{type(self).__name__} of {every.total()} problems", *lines])

        return plainly(look, self.status)

    def raise_if_failed(self) -> None:
        """Raise SolverError naming the failed problems of the batch and why they failed."""

        def look(status: Tensor) -> None:
            every = status.flatten().tolist()
            failed = [i for i, one in enumerate(every) if one != Status.CONVERGED]
            if failed:
                lines = [f"problem {i}: {Status(every[i]).message}" for i in failed[:5]]
                raise SolverError(f"{len(failed)} of {len(every)} problems failed: " + "; ".join(lines))

        plainly(look, self.status)


@dataclass(frozen=True)
class ConstrainedSolution(Solution):
    """The solution of a constrained problem, with multipliers w for which the gradient of cost + w . c vanishes.

    inequality (B,m): nonnegative, of c <= 0; equality (B,q): of c = 0. A constraint's multiplier is the fall of the
    cost per unit by which it is relaxed.

    >>> found = quadratic_program(torch.eye(2), -torch.ones(2), torch.ones(1, 2), torch.ones(1))
    >>> found.inequality.round(decimals=6)
    tensor([[0.5000]])
    """

    inequality: Tensor
    equality: Tensor
