"""Calibration of a stereo rig from corners, some of them wrong: which to trust is learned through the argmin.

Presets:

- default: Learns the weights of a made chessboard's corners before two made cameras, with 0.3 px of noise.
- smoke: Takes three steps on a small problem.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.drawing.figures import weighted_fit
from experiments.running.config import at_least
from experiments.running.learned_weights import Task, TaskConfig, learn_weights, moved
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from geometry import Solution, project, se3
from geometry.optim import State
from geometry.tasks.stereo_rig import stereo_rig, stereo_rig_problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(TaskConfig):
    iterations: int = 100
    """Sets the number of steps of Adam."""
    views: int = 4
    """Sets the number of views of the board."""
    corners: tuple[int, int] = (6, 5)
    """Sets the numbers of corners along a row and along a column of the board."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "views")


PRESETS = {
    "default": Config(preset="default"),
    "smoke": Config(preset="smoke", views=2, corners=(5, 4), iterations=3),
}
LENSES = {
    "K": [[[800, 0, 320], [0, 790, 240], [0, 0, 1]], [[700, 0, 310], [0, 705, 250], [0, 0, 1]]],
    "distortion": [[-0.28, 0.1, 1e-3, -1e-3], [-0.2, 0.05, 0, 1e-3]],
}


def made_views(config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """points2d (2,V,N,2) px, points3d (N,3) mm, and the truth: camera1_to_camera2 (4,4), target_to_camera1 (V,4,4)."""
    K, distortion = (torch.tensor(value, dtype=torch.float64) for value in LENSES.values())
    grid = torch.cartesian_prod(*(30 * (torch.arange(n) - (n - 1) / 2) for n in config.corners)).double()
    points3d = torch.cat([grid, torch.zeros_like(grid[:, :1])], -1)
    rig = se3.from_rotvec_t(torch.tensor([0.02, -0.2, 0.03, -120, 5, 10], dtype=torch.float64))
    step = torch.randn(config.views, 6, dtype=torch.float64) * torch.tensor([0.4, 0.4, 0.4, 40, 30, 80])
    target = se3.from_rotvec_t(step + torch.tensor([0, 0, 0, 40, 0, 700]))
    points2d = project(points3d, torch.stack([target, rig @ target]), K[:, None], distortion[:, None])
    return points2d + 0.3 * torch.randn_like(points2d), points3d, rig, target


@experiment("stereo_rig")
def main(run: Run, config: Config) -> dict:
    right, points3d, rig, target = config.placed(*made_views(config))
    K, distortion = config.placed(*(torch.tensor(value, dtype=torch.float64) for value in LENSES.values()))
    points2d, wrong = moved(right.flatten(0, 2), config.wrong, 20.0)
    points2d = points2d.view_as(right)
    shape = points2d.shape[:3]
    points_camera1 = se3.transform(target, points3d)

    def solve(weights: Tensor) -> Solution:
        return stereo_rig(points2d, points3d, K, distortion, weights.unflatten(-1, shape))

    def error(x: State) -> Tensor:
        """In mm, of where camera 2 has the points that camera 1 has rightly."""
        return (se3.transform(x[0], points_camera1) - se3.transform(rig, points_camera1)).norm(dim=-1).mean()

    def draw(weights: Tensor, x: State) -> Figure:
        seen = project(points3d, x[0][0] @ x[1][0, 0], K[1], distortion[1])
        return weighted_fit(points2d[1, 0], weights.view(shape)[1, 0], seen, "first view, second camera", "px")

    return learn_weights(
        run, config,
        Task(
            solve=solve, error=error, wrong=wrong, draw=draw,
            reference_cost=opencv_cost(points2d, points3d, K, distortion),
        ),
    )  # fmt: skip


def opencv_cost(points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor) -> float:
    """Of OpenCV's calibration with fixed intrinsics."""
    import cv2
    import numpy as np

    image, corners, (K1, K2), (lens1, lens2) = (d.double().cpu().numpy() for d in (points2d, points3d, K, distortion))
    one, two = (list(views) for views in image.astype(np.float32))
    _, _, _, _, _, R, t, _, _, rotvecs, ts, _ = cv2.stereoCalibrateExtended(
        [corners.astype(np.float32)] * len(one), one, two, K1, lens1, K2, lens2, (640, 480), np.eye(3), np.zeros(3),
        flags=cv2.CALIB_FIX_INTRINSIC, criteria=(3, 1000, 1e-15),
    )  # fmt: skip
    rig = se3.make(torch.from_numpy(R), torch.from_numpy(np.ravel(t)))
    target = se3.from_rotvec_t(torch.from_numpy(np.concatenate([rotvecs, ts], 1)[..., 0]))
    problem = replace(stereo_rig_problem, dof=6 + 6 * len(target))
    return problem.cost((rig.to(K), target.to(K)), points2d, points3d, K, distortion).item()


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
