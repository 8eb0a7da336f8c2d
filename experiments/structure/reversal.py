"""A structure and its mirror image: where perspective is weak both fit well (Necker reversal), one of them better."""

from typing import NamedTuple

import torch
from torch import Tensor

from experiments.structure.alignment import shape_errors
from geometry.optim import nested_start, nested_step
from geometry.reconstruction import StructureProblem, mirror

__all__ = ["STEPS", "Pair", "settle"]

STEPS = 6
"""Gauss-Newton steps at the most, from either."""
_SURE = 9.2
"""Difference in chi squared from which on the better of two fits is taken for the right one: odds of 100 to 1."""


class Pair(NamedTuple):
    """A structure and its mirror image, settled: points (2,N,3), poses (2,V,4,4), losses (2,), squared errors summed.

    apart: whether the losses tell which of the two it is, or the two are the same shape, as of a plane.
    """

    points: Tensor
    poses: Tensor
    losses: Tensor
    apart: bool

    @property
    def better(self) -> int:
        """Which has the lower loss: 0, the structure as it was given, or 1."""
        return int(self.losses.argmin())


def settle(problem: StructureProblem, points: Tensor) -> Pair:
    """Points (N,3) and their mirror image, each after at most `STEPS` Gauss-Newton steps with all poses sought anew."""
    state = nested_start(problem, torch.stack([points, mirror(points)]))
    while state.steps < STEPS and not state.done.all():
        state = nested_step(problem, state)
    losses = 2 * state.cost
    V, N = problem.visible.shape
    spare = max(1, 2 * int(problem.visible.sum()) - 6 * V - 3 * N + 7)
    seen = problem.points2d[problem.visible]
    rounding = (torch.finfo(seen.dtype).eps * seen).square().sum()
    low, high = losses.sort().values
    one, other = state.theta
    same = shape_errors(one, other)["rms_share"] < 1e-3
    return Pair(
        state.theta, state.inner, losses, bool(spare * (high - low) > _SURE * torch.maximum(low, rounding)) or same
    )
