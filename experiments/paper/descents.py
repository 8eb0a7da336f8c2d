"""How a calibration of one camera learns: the descent over its intrinsics, every view's pose at its argmin.

`calibrate` searches from several focal lengths and keeps the best. This is one descent, from what is known before any
view is seen, for people to look at: a frame a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.images.views import Views
from geometry import project
from geometry.camera import Model
from geometry.optim import nested_start, nested_step
from geometry.reconstruction import CalibrationProblem
from geometry.reconstruction.calibration_problem import free_intrinsics, start_intrinsics
from geometry.robust import Kernel

__all__ = ["Lens", "descent"]


class Lens(NamedTuple):
    """A camera with its views: K (3,3), distortion (k,), world_to_camera (V,4,4), which of the views they are (V,)."""

    K: Tensor
    distortion: Tensor
    world_to_camera: Tensor
    views: Tensor

    def rms_px(self, seen: Views, model: Model) -> float:
        """sqrt(mean(dx^2 + dy^2)) over the marks of its views."""
        K, distortion = self.K.expand(len(self.views), 3, 3), self.distortion.expand(len(self.views), -1)
        again = project(seen.points3d.to(self.K), self.world_to_camera, K, distortion, model=model)
        mask = seen.mask[self.views]
        return float((again - seen.points2d[self.views].to(again))[mask].square().sum(-1).mean().sqrt())


def descent(
    seen: Views, views: Tensor, model: Model, coefficients: int, kernel: Kernel | None, most: int
) -> Iterator[Lens]:
    """The camera before the first step, and after each, of at most `most`; views: those that determine a pose."""
    mask, points3d = seen.mask[views], seen.points3d.double()
    points2d = torch.where(mask[..., None], seen.points2d[views].double(), 0.0)
    problem = CalibrationProblem(points2d, points3d, mask, free_intrinsics, model, kernel)
    state = nested_start(problem, start_intrinsics(seen.image_size, coefficients, model, points2d)[None])
    while True:
        yield Lens(*free_intrinsics(state.theta[0]), state.inner[0], views)
        if state.done.all() or state.steps >= most:
            return
        state = nested_step(problem, state)
