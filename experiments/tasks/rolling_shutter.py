"""Pose and velocity of a moving camera with a rolling shutter, some pixels wrong: which to trust is learned.

Presets:

- default: Learns the weights of made points' pixels over the whole image, 30 ms from the first row to the last, 0.5
  px of noise.
- smoke: Takes three steps on a small problem.
- study: Learns as `default` does, and writes a table of how far poses are off over many draws, beside those of a
  shutter that opens for all rows at once, and beside what `pnp` finds that knows of no motion:
  results/rolling_shutter/study-seed0/table.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from experiments.drawing.figures import weighted_fit
from experiments.records.files import write_text
from experiments.records.text import table
from experiments.running.config import at_least
from experiments.running.learned_weights import Task, TaskConfig, learn_weights, moved
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from geometry import Status, pnp, project, se3
from geometry.camera import project_camera_frame
from geometry.optim import State
from geometry.tasks.rolling_shutter import rolling_shutter, rolling_shutter_points, row_times

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

COUNTS = 8, 10, 15, 20, 30, 50, 100, 200


@dataclass(frozen=True)
class Config(TaskConfig):
    points: int = 40
    """Sets the number of made points."""
    readout: float = 0.03
    """Sets the seconds from the first row to the last."""
    noise: float = 0.5
    """Sets the standard deviation of the noise in px."""
    draws: int = 0
    """Sets the number of problems of each number of points in the table; 0 leaves the table out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 6, "points")


PRESETS = {
    "default": Config(preset="default"),
    "smoke": Config(preset="smoke", points=15, iterations=3),
    "study": Config(preset="study", iterations=50, draws=1000),
}
K = torch.tensor([[800.0, 0, 639.5], [0, 800, 359.5], [0, 0, 1]], dtype=torch.float64)
WIDTH, HEIGHT = 1280, 720


class Views(NamedTuple):
    """points2d (B,N,2) without noise, points3d (B,N,3), and the truth: world_to_camera (B,4,4), velocity (B,6)."""

    points2d: Tensor
    points3d: Tensor
    world_to_camera: Tensor
    velocity: Tensor


def made_views(B: int, N: int, readout: float) -> Views:
    """Cameras that turn by about 1 rad/s and move by 2 units/s, at distances of 3 to 9 units of points."""
    pose = se3.make(
        se3.rotation_from_quat_wxyz(torch.randn(B, 4, dtype=torch.float64)), torch.randn(B, 3, dtype=torch.float64)
    )
    velocity = torch.randn(B, 6, dtype=torch.float64) * torch.tensor([1.0, 1, 1, 2, 2, 2])
    points2d = torch.rand(B, N, 2, dtype=torch.float64) * torch.tensor([WIDTH, HEIGHT]) - 0.5
    depth = 3 + 6 * torch.rand(B, N, 1, dtype=torch.float64)
    seen = depth * torch.cat([(points2d - K[:2, 2]) / K.diagonal()[:2], torch.ones_like(depth)], -1)
    times = row_times(points2d, readout, HEIGHT)
    # where the points were in the middle of the readout
    still = (seen - times[..., None] * velocity[:, None, 3:])[..., None]
    still = se3.exp(-times[..., None] * velocity[:, None, :3]) @ still
    return Views(points2d, se3.transform(se3.inverse(pose), still.squeeze(-1)), pose, velocity)


@experiment("rolling_shutter")
def main(run: Run, config: Config) -> dict:
    if config.draws:
        write_text(run.folder / "table.md", study(config))
    made = made_views(1, config.points, config.readout)
    right, points3d, pose, velocity, camera = config.placed(*(part[0] for part in made), K)
    noise = torch.randn(right.shape, dtype=torch.float64).to(right)
    points2d, wrong = moved(right + config.noise * noise, config.wrong, 20.0)
    times = row_times(points2d, config.readout, HEIGHT)
    truth = rolling_shutter_points(pose, velocity, points3d, row_times(right, config.readout, HEIGHT))

    def error(x: State) -> Tensor:
        """Of the points before the moving camera, in parts of their distances."""
        found = rolling_shutter_points(x[0][0], x[1][0], points3d, row_times(right, config.readout, HEIGHT))
        return ((found - truth).norm(dim=-1) / truth.norm(dim=-1)).mean()

    def draw(weights: Tensor, x: State) -> Figure:
        fitted = project_camera_frame(rolling_shutter_points(x[0][0], x[1][0], points3d, times), camera)
        return weighted_fit(points2d, weights, fitted, "pixels, to the moving camera's", "px")

    data = points2d, points3d, camera, times
    return learn_weights(
        run, config,
        Task(
            solve=lambda weights: rolling_shutter(*data, weights), error=error, wrong=wrong, draw=draw,
            reference_cost=scipy_cost(*data, pose, velocity),
        ),
    )  # fmt: skip


def scipy_cost(points2d: Tensor, points3d: Tensor, K: Tensor, times: Tensor, pose: Tensor, velocity: Tensor) -> float:
    """Of SciPy's least squares from the truth."""
    import numpy as np
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    given = (points2d, points3d, K, times, pose, velocity)
    pixels, X, camera, tau, T, motion = (value.double().cpu().numpy() for value in given)

    def residual(x: np.ndarray) -> np.ndarray:
        p = X @ Rotation.from_rotvec(x[:3]).as_matrix().T + x[3:6]
        p = Rotation.from_rotvec(tau[:, None] * x[6:9]).apply(p) + tau[:, None] * x[9:]
        return ((p @ camera.T)[:, :2] / p[:, 2:] - pixels).ravel()

    start = np.concatenate([Rotation.from_matrix(T[:3, :3]).as_rotvec(), T[:3, 3], motion])
    return float(least_squares(residual, start, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15).cost)


def study(config: Config) -> str:
    """Root mean squares of `errors` over the draws, and in `ratio` those of the rolling shutter over those at once."""
    rows = []
    for N in COUNTS:
        made = made_views(config.draws, N, config.readout)
        noise = config.noise * torch.randn_like(made.points2d)
        rolled, at_once = made.points2d + noise, project(made.points3d, made.world_to_camera, K) + noise
        found = rolling_shutter(rolled, made.points3d, K, row_times(rolled, config.readout, HEIGHT))
        poses = pnp(at_once, made.points3d, K).x, found.x[0], pnp(rolled, made.points3d, K).x
        turns, shifts = zip(*(errors(pose, made.world_to_camera) for pose in poses), strict=True)
        cells = [f"{value:.3f}" for value in (*turns, *shifts)]
        ratios = [f"{turns[1] / turns[0]:.2f}", f"{shifts[1] / shifts[0]:.2f}"]
        share = f"{100 * (found.status == Status.CONVERGED).double().mean():.1f} %"
        rows.append([str(N), *cells[:3], ratios[0], *cells[3:], ratios[1], share])
    names = ["at once", "rolling", "ignored", "ratio"]
    header = ["points", *(f"rotation, {n}" for n in names), *(f"place, {n}" for n in names), "converged"]
    return table(header, rows)


def errors(pose: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean squares, over a batch: degrees of rotation, permille of the mean distance that the camera is off."""
    turn = torch.rad2deg(se3.rotation_angle(pose[:, :3, :3] @ truth[:, :3, :3].mT))
    shift = (se3.centre(pose) - se3.centre(truth)).norm(dim=-1) / 6e-3
    return turn.square().mean().sqrt(), shift.square().mean().sqrt()


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
