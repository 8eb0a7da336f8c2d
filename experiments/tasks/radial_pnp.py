"""Pose and lens of a view of known points, of which some are wrong: which to trust is learned through the argmin.

Presets:

- default: Learns the weights of made points with 1 px of noise.
- smoke: Takes three steps on a small problem.
- real: Learns the weights of a photographed chessboard's corners, some of them moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.drawing.figures import weighted_fit
from experiments.running.config import at_least
from experiments.running.learned_weights import Task, TaskConfig, learn_weights, moved
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from geometry import se3
from geometry.tasks.radial_pnp import State, radial_pnp, radial_projection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


VIEW = 6
"""A tilted one: the straighter a board is seen, the less focal length and distance can be told apart."""


@dataclass(frozen=True)
class Config(TaskConfig):
    points: int = 60
    """Sets the number of made points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 5, "points")


PRESETS = {
    "default": Config(preset="default"),
    "smoke": Config(preset="smoke", points=20, iterations=3),
    "real": Config(preset="real"),
}


def made_view(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy pixels (N,2) of points (N,3), and the principal point (2,)."""
    points3d = 2 * torch.rand(count, 3, dtype=torch.float64) - 1
    turn, t, centre = torch.tensor([[0.3, -0.4, 0.2], [0.1, -0.1, 3.5], [320, 240, 0]], dtype=torch.float64)
    f, distortion = torch.tensor(600.0, dtype=torch.float64), torch.tensor([-0.28, 0.09], dtype=torch.float64)
    pixels = radial_projection((se3.make(se3.exp(turn), t), f, distortion), points3d, centre[:2])
    return pixels + torch.randn_like(pixels), points3d, centre[:2]


def board_view() -> tuple[Tensor, Tensor, Tensor]:
    """The same of a view of opencv_corners, whose own calibration holds the principal point in the middle, too."""
    from datasets.images.stored_marks import read_corners
    from datasets.locate import locate

    views = read_corners(locate("opencv_corners") / "out_camera_data.yml")
    middle = (torch.tensor(views.image_size, dtype=torch.float64) - 1) / 2
    return views.points2d[VIEW], views.points3d, middle


@experiment("radial_pnp", lambda config: board_view() if config.preset == "real" else None)
def main(run: Run, config: Config, real: tuple[Tensor, Tensor, Tensor] | None) -> dict:
    right, points3d, centre = config.placed(*(real or made_view(config.points)))
    points2d, wrong = moved(right, config.wrong, 40.0)
    truth = radial_projection(radial_pnp(right, points3d, centre).x, points3d, centre)

    def draw(weights: Tensor, x: State) -> Figure:
        return weighted_fit(points2d, weights, radial_projection(x, points3d, centre)[0], "image", "px")

    return learn_weights(
        run, config,
        Task(
            solve=lambda weights: radial_pnp(points2d, points3d, centre, weights),
            error=lambda x: (radial_projection(x, points3d, centre) - truth).norm(dim=-1).mean(),
            wrong=wrong, draw=draw, reference_cost=opencv_cost(points2d, points3d, centre),
        ),
    )  # fmt: skip


def opencv_cost(points2d: Tensor, points3d: Tensor, centre: Tensor) -> float:
    """Of OpenCV's calibration of one view, its principal point held and its start that of a middling lens."""
    import cv2
    import numpy as np

    pixels, points, middle = (value.double().cpu().numpy() for value in (points2d, points3d, centre))
    f = 2 * np.abs(pixels - middle).max()
    K = np.array([[f, 0, middle[0]], [0, f, middle[1]], [0, 0, 1]])
    flags = (
        cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_FIX_PRINCIPAL_POINT | cv2.CALIB_FIX_ASPECT_RATIO
        | cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K3
    )  # fmt: skip
    size = tuple(int(2 * m + 1) for m in middle)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 1000, 1e-15)
    given = [points.astype(np.float32)], [pixels.astype(np.float32)]
    rms, *_ = cv2.calibrateCamera(*given, size, K, np.zeros(5), flags=flags, criteria=criteria)
    return 0.5 * len(pixels) * rms**2


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
