"""A homography from matches, of which some are wrong: which to trust is learned through the argmin.

Presets:

- default: Learns the weights of made matches with 1 px of noise.
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
from geometry.consensus.minimal import transfer
from geometry.tasks.homography import homography

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(TaskConfig):
    matches: int = 60
    """Sets the number of made matches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 4, "matches")


PRESETS = {
    "default": Config(preset="default"),
    "smoke": Config(preset="smoke", matches=12, iterations=3),
    "real": Config(preset="real"),
}


def made_matches(count: int) -> tuple[Tensor, Tensor]:
    """Points (N,2) px of one image and, noisy, of the other."""
    H = torch.tensor([[1.1, 0.15, 30], [-0.1, 0.95, 20], [2e-4, -3e-4, 1]], dtype=torch.float64)
    points = torch.rand(count, 2, dtype=torch.float64) * torch.tensor([640, 480])
    return points, transfer(H, points) + torch.randn(count, 2, dtype=torch.float64)


def board_matches() -> tuple[Tensor, Tensor]:
    """Corners (N,2) of a chessboard in squares, and where a photograph has them, px."""
    from datasets.images.targets import chessboard
    from datasets.images.views import detect
    from datasets.locate import locate

    views = detect([locate("opencv_chess_left") / "left01.jpg"], chessboard((9, 6)))
    return views.points3d[:, :2], views.points2d[0]


@experiment("homography", lambda config: board_matches() if config.preset == "real" else None)
def main(run: Run, config: Config, real: tuple[Tensor, Tensor] | None) -> dict:
    points_a, right = config.placed(*(real or made_matches(config.matches)))
    points_b, wrong = moved(right, config.wrong, 40.0)
    truth = transfer(homography(points_a, right).x[0], points_a)

    def draw(weights: Tensor, H: Tensor) -> Figure:
        return weighted_fit(points_b, weights, transfer(H[0], points_a), "second image", "px")

    return learn_weights(
        run, config,
        Task(
            solve=lambda weights: homography(points_a, points_b, weights),
            error=lambda H: (transfer(H[0], points_a) - truth).norm(dim=-1).mean(),
            wrong=wrong, draw=draw, reference_cost=opencv_cost(points_a, points_b),
        ),
    )  # fmt: skip


def opencv_cost(points_a: Tensor, points_b: Tensor) -> float:
    """Of OpenCV's least-squares homography."""
    import cv2

    a, b = (points.double().cpu().numpy() for points in (points_a, points_b))
    H = torch.from_numpy(cv2.findHomography(a, b, 0)[0])
    return 0.5 * (transfer(H.to(points_a), points_a) - points_b).square().sum().item()


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
