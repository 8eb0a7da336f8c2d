"""Points from known cameras, of whose pixels some are wrong: which to trust is learned through the argmin.

Presets:

- default: Learns the weights of made points' pixels with 1 px of noise.
- smoke: Takes three steps on a small problem.
- real: Learns the weights of what five views of templeSparseRing see alike, some of it moved.
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
from geometry.tasks.triangulation import triangulation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VIEWS = 5


@dataclass(frozen=True)
class Config(TaskConfig):
    points: int = 12
    """Sets the number of made points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "points")


PRESETS = {
    "default": Config(preset="default"),
    "smoke": Config(preset="smoke", points=3, iterations=3),
    "real": Config(preset="real"),
}


def made_views(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy pixels (B,N,2) of B points in N views, world_to_camera (B,N,4,4) and K (3,3)."""
    angle = torch.linspace(-0.8, 0.8, VIEWS, dtype=torch.float64)
    turn = torch.stack([torch.zeros_like(angle), angle, torch.zeros_like(angle)], -1)
    cameras = se3.make(se3.exp(turn), torch.tensor([0.0, 0, 6], dtype=torch.float64).expand(VIEWS, 3))
    K = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]], dtype=torch.float64)
    points3d = 2 * torch.rand(count, 1, 1, 3, dtype=torch.float64) - 1
    points2d = project(points3d.expand(-1, VIEWS, -1, -1), cameras, K).squeeze(2)
    return points2d + torch.randn_like(points2d), cameras.expand(count, VIEWS, 4, 4), K


def temple_views() -> tuple[Tensor, Tensor, Tensor]:
    """The same of the tracks through five views of templeSparseRing."""
    from datasets.images.middlebury import read_middlebury
    from datasets.images.tracks import find_tracks
    from datasets.locate import locate

    views = read_middlebury(locate("temple_sparse_ring"))
    V = len(views.images)
    tracks = find_tracks(views.images, pairs=[(i, j) for i in range(V) for j in range(i + 1, min(i + 3, V))])
    long = torch.bincount(tracks.point_index)[tracks.point_index] == VIEWS
    cameras = views.world_to_camera[tracks.camera_index[long]]
    return tracks.points2d[long].unflatten(0, (-1, VIEWS)), cameras.unflatten(0, (-1, VIEWS)), views.K[0]


@experiment("triangulation", lambda config: temple_views() if config.preset == "real" else None)
def main(run: Run, config: Config, real: tuple[Tensor, Tensor, Tensor] | None) -> dict:
    right, cameras, K = config.placed(*(real or made_views(config.points)))
    B, N = right.shape[:2]
    K = K.expand(N, 3, 3)
    observed, wrong = moved(right.flatten(0, 1), config.wrong, 40.0)
    points2d = observed.unflatten(0, (B, N))
    truth = triangulation(right, cameras, K).x
    size = (truth - truth.mean(0)).norm(dim=-1).mean()

    def solve(weights: Tensor) -> Solution:
        found = triangulation(points2d, cameras, K, weights.view(B, N))
        return replace(found, cost=found.cost.sum()[None])  # the points together are one problem

    def draw(weights: Tensor, points: Tensor) -> Figure:
        fitted = project(points[:, None, None].expand(B, N, 1, 3), cameras, K).flatten(0, 2)
        return weighted_fit(observed, weights, fitted, "all views in one", "px")

    return learn_weights(
        run, config,
        Task(
            solve=solve,
            error=lambda points: (points - truth).norm(dim=-1).mean() / size,
            wrong=wrong, draw=draw, reference_cost=scipy_cost(points2d, cameras, K),
        ),
    )  # fmt: skip


def scipy_cost(points2d: Tensor, cameras: Tensor, K: Tensor) -> float:
    """Of SciPy's least squares from OpenCV's linear point of the first and the last view, all points together."""
    import cv2
    import numpy as np
    from scipy.optimize import least_squares

    P = (K @ cameras[..., :3, :]).double().cpu().numpy()
    cost = 0.0
    for projections, pixels in zip(P, points2d.double().cpu().numpy(), strict=True):

        def residual(X: np.ndarray, projections: np.ndarray = projections, pixels: np.ndarray = pixels) -> np.ndarray:
            mapped = projections @ np.append(X, 1)
            return (mapped[:, :2] / mapped[:, 2:] - pixels).ravel()

        start = cv2.triangulatePoints(projections[0], projections[-1], pixels[0], pixels[-1])[:, 0]
        cost += least_squares(residual, start[:3] / start[3], x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14).cost
    return cost


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
