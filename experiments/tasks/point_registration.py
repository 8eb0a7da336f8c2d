"""Registration of point clouds from matches, of which some are wrong: which to trust is learned through the argmin.

Presets:

- default: Learns the weights of made points with 1 cm of noise and a rigid motion.
- smoke: Takes three steps on a small problem.
- similarity: Learns as `default` does, and seeks a scale besides the rigid motion.
- real: Learns the weights of SIFT matches between two RGB-D frames, lifted with their depth, wrong where the frames'
  recorded poses put them 10 cm or more apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from experiments.drawing.figures import weighted_fit
from experiments.running.config import at_least
from experiments.running.learned_weights import Task, TaskConfig, learn_weights, moved
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from geometry import Solution, se3
from geometry.tasks.point_registration import point_registration

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(TaskConfig):
    matches: int = 60
    """Sets the number of made matches."""
    scale: bool = False
    """Estimates a scale besides the rigid motion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 3, "matches")


PRESETS = {
    "default": Config(preset="default"),
    "smoke": Config(preset="smoke", matches=12, iterations=3),
    "similarity": Config(preset="similarity", scale=True),
    "real": Config(preset="real"),
}


def made_clouds(config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source and target points (N,3) in m, which are wrong (N,), and the truth source_to_target (4,4)."""
    truth = se3.from_rotvec_t(torch.tensor([0.2, -0.5, 0.1, 0.6, -0.2, 0.3], dtype=torch.float64))
    truth[:3, :3] *= 1.5 if config.scale else 1.0
    source = torch.rand(config.matches, 3, dtype=torch.float64) * torch.tensor([3.0, 2.0, 2.0])
    target, wrong = moved(se3.transform(truth, source), config.wrong, 0.5)
    return source, target + 0.01 * torch.randn_like(target), wrong, truth


def rgbd_clouds(first: int = 4, second: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of two frames in their cameras' frames: x right, y down, z forward."""
    import cv2

    from datasets.locate import find

    folder = find("tum_rgbd")
    (points_a, described_a), (points_b, described_b) = (lifted_features(folder, i) for i in (first, second))
    pairs = cv2.BFMatcher(crossCheck=True).match(described_a, described_b)
    source, target = points_a[[pair.queryIdx for pair in pairs]], points_b[[pair.trainIdx for pair in pairs]]
    rows = torch.from_numpy(np.loadtxt(folder / "pose.txt"))[[first - 1, second - 1]]  # t, quaternion x, y, z, w
    to_world = se3.make(se3.rotation_from_quat_wxyz(rows[:, [6, 3, 4, 5]]), rows[:, :3])
    truth = se3.inverse(to_world[1]) @ to_world[0]
    return source, target, (se3.transform(truth, source) - target).norm(dim=-1) > 0.1, truth


def lifted_features(folder: Path, number: int) -> tuple[Tensor, np.ndarray]:
    """Points (N,3) in m and their SIFT descriptors (N,128), where the frame has a depth."""
    import cv2

    from datasets.arrays import read_image

    fx, fy, cx, cy = 518.0, 519.0, 325.5, 253.5
    picture = read_image(folder / f"color_{number}.png", "grey")
    depth = read_image(folder / f"depth_{number}.png", "stored") / 1000
    features, described = cv2.SIFT.create(1000).detectAndCompute(picture, None)
    u, v = np.array([feature.pt for feature in features]).T
    z = depth[v.round().astype(int).clip(0, len(depth) - 1), u.round().astype(int).clip(0, depth.shape[1] - 1)]
    points = np.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], -1)
    return torch.from_numpy(points[z > 0]), described[z > 0]


@experiment("point_registration", lambda config: rgbd_clouds() if config.preset == "real" else None)
def main(run: Run, config: Config, real: tuple[Tensor, Tensor, Tensor, Tensor] | None) -> dict:
    source, target, wrong, truth = real or made_clouds(config)
    source, target, truth = config.placed(source, target, truth)
    wrong = wrong.to(source.device)

    def solve(weights: Tensor) -> Solution:
        return point_registration(source, target, weights, scale=config.scale)

    def draw(weights: Tensor, x: Tensor) -> Figure:
        seen = se3.transform(x[0], source)
        return weighted_fit(target[:, :2], weights, seen[:, :2], "target's frame, along its z", "m")

    return learn_weights(
        run, config,
        Task(
            solve=solve,
            error=lambda x: (se3.transform(x[0], source) - se3.transform(truth, source)).norm(dim=-1).mean(),
            wrong=wrong, draw=draw, reference_cost=open3d_cost(source, target, config.scale),
        ),
    )  # fmt: skip


def open3d_cost(source: Tensor, target: Tensor, scale: bool) -> float:
    """Of Open3D's closed form."""
    from open3d import geometry, pipelines, utility

    clouds = [geometry.PointCloud(utility.Vector3dVector(p.double().cpu().numpy())) for p in (source, target)]
    pairs = utility.Vector2iVector(np.arange(len(source))[:, None].repeat(2, 1).astype(np.int32))
    estimation: Any = pipelines.registration.TransformationEstimationPointToPoint(scale)
    x = torch.from_numpy(np.array(estimation.compute_transformation(*clouds, pairs)))
    return 0.5 * (se3.transform(x.to(source), source) - target).square().sum().item()


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
