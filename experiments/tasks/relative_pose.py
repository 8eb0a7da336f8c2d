"""The relative pose of two views from matches, of which some are wrong: which to trust is learned through the argmin.

Presets:

- default: Learns the weights of made matches with 1 px of noise.
- smoke: Takes three steps on a small problem.
- real: Learns the weights of matches of two views of templeSparseRing, whose poses are known.
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
from geometry import project, se3
from geometry.tasks.relative_pose import fundamental, relative_pose

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(TaskConfig):
    matches: int = 60
    """Sets the number of made matches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 5, "matches")


PRESETS = {
    "default": Config(preset="default"),
    "smoke": Config(preset="smoke", matches=20, iterations=3),
    "real": Config(preset="real"),
}


def made_matches(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels (N,2) of one view and, noisy, of the other, K (3,3), and the pose (4,4) of the other."""
    K = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]], dtype=torch.float64)
    turn, t = torch.tensor([[0.05, -0.35, 0.02], [1.8, 0.1, 0.3]], dtype=torch.float64)
    pose = se3.make(se3.exp(turn), t)
    points3d = torch.rand(count, 3, dtype=torch.float64) * torch.tensor([4, 3, 3]) + torch.tensor([-2, -1.5, 4])
    points_a, points_b = (project(points3d, T, K) for T in (torch.eye(4, dtype=torch.float64), pose))
    return points_a, points_b + torch.randn(count, 2, dtype=torch.float64), K, pose


def temple_matches() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of two neighbours in templeSparseRing."""
    from datasets.images.middlebury import read_middlebury
    from datasets.images.tracks import find_tracks
    from datasets.locate import locate

    views = read_middlebury(locate("temple_sparse_ring"))
    points_a, points_b = find_tracks(views.images[9:11]).points2d.unflatten(0, (-1, 2)).unbind(1)
    a, b = views.world_to_camera[9:11]
    return points_a, points_b, views.K[0], b @ se3.inverse(a)


@experiment("relative_pose", lambda config: temple_matches() if config.preset == "real" else None)
def main(run: Run, config: Config, real: tuple[Tensor, Tensor, Tensor, Tensor] | None) -> dict:
    points_a, right, K, truth = config.placed(*(real or made_matches(config.matches)))
    points_b, wrong = moved(right, config.wrong, 10.0)  # by more, the least squares have nothing to do with the pose

    def error(pose: Tensor) -> Tensor:
        """Degrees of rotation and of direction, together."""
        R, t = pose[0, :3, :3] @ truth[:3, :3].mT, pose[0, :3, 3]
        between = torch.atan2(torch.linalg.cross(t, truth[:3, 3]).norm(), t @ truth[:3, 3])
        return torch.rad2deg(se3.rotation_angle(R) + between)

    def draw(weights: Tensor, pose: Tensor) -> Figure:
        lines = torch.nn.functional.pad(points_a, (0, 1), value=1.0) @ fundamental(pose[0], K, K).mT
        normal, offset = lines[:, :2], lines[:, 2:]
        beside = ((normal * points_b).sum(-1, keepdim=True) + offset) / normal.square().sum(-1, keepdim=True)
        return weighted_fit(points_b, weights, points_b - beside * normal, "second view, to the epipolar lines", "px")

    return learn_weights(
        run, config,
        Task(
            solve=lambda weights: relative_pose(points_a, points_b, K, K, weights),
            error=error, wrong=wrong, draw=draw, reference_cost=scipy_cost(points_a, points_b, K, truth),
        ),
    )  # fmt: skip


def scipy_cost(points_a: Tensor, points_b: Tensor, K: Tensor, truth: Tensor) -> float:
    """Of SciPy's least squares on Sampson's errors: the lower of those from OpenCV's pose and from the true one."""
    import cv2
    import numpy as np
    from scipy.optimize import least_squares

    a, b, camera, true = (value.double().cpu().numpy() for value in (points_a, points_b, K, truth))
    ones = np.ones((len(a), 1))
    rays_a, rays_b = (np.hstack([p, ones]) @ np.linalg.inv(camera).T for p in (a, b))
    focal = np.tile(camera.diagonal()[:2], 2)

    def residual(x: np.ndarray) -> np.ndarray:
        """Of rotvec and a translation of any length: b.(t x Ra) over its slope by the four pixel coordinates."""
        turned = rays_a @ cv2.Rodrigues(x[:3])[0].T
        line_b = np.cross(x[3:], turned)
        line_a = np.cross(rays_b, x[3:]) @ cv2.Rodrigues(x[:3])[0]
        return (rays_b * line_b).sum(1) / np.linalg.norm(np.hstack([line_b[:, :2], line_a[:, :2]]) / focal, axis=1)

    E, _ = cv2.findEssentialMat(a, b, camera, cv2.RANSAC, 0.999, 2.0)
    _, R, t, _ = cv2.recoverPose(E, a, b, camera)
    starts = (np.append(cv2.Rodrigues(rotation)[0], shift) for rotation, shift in ((R, t), (true[:3, :3], true[:3, 3])))
    return min(least_squares(residual, x, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14).cost for x in starts)


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
