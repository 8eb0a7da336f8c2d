"""Hand-eye calibration from views of a target, some of them wrong: which to trust is learned through the argmin.

Presets:

- default: Learns the weights of made poses of a gripper, and of a target before its camera with 2 mrad and 2 mm of
  noise.
- smoke: Takes three steps on a small problem.
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
from geometry import Solution, se3
from geometry.tasks.hand_eye import hand_eye, hand_eye_problem, motions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(TaskConfig):
    views: int = 15
    """Sets the number of views of the target."""
    noise: float = 2e-3
    """Sets the noise of the camera's poses, in radians and metres."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 3, "views")


PRESETS = {
    "default": Config(preset="default"),
    "smoke": Config(preset="smoke", views=6, iterations=3),
}


def made_views(config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """gripper_to_base and target_to_camera (V,4,4), and the truth camera_to_gripper (4,4); metres."""
    truth = se3.from_rotvec_t(torch.tensor([0.1, -0.2, 1.5, 0.05, 0.03, 0.1], dtype=torch.float64))
    target_to_base = se3.from_rotvec_t(torch.tensor([0.0, 0.0, 0.3, 0.6, 0.2, 0.0], dtype=torch.float64))
    step = torch.randn(config.views, 6, dtype=torch.float64)
    gripper_to_base = se3.from_rotvec_t(step * torch.tensor([0.4, 0.4, 0.4, 0.2, 0.2, 0.2]))
    seen = se3.inverse(gripper_to_base @ truth) @ target_to_base
    return gripper_to_base, se3.retract(seen, config.noise * torch.randn_like(step)), truth


@experiment("hand_eye")
def main(run: Run, config: Config) -> dict:
    gripper_to_base, right, truth = config.placed(*made_views(config))
    step, wrong = moved(right.new_zeros(config.views, 6), config.wrong, 0.1)
    target_to_camera = se3.retract(right, step)
    gripper, camera = motions(gripper_to_base, target_to_camera)
    first, second = torch.triu_indices(config.views, config.views, 1, device=gripper.device)

    def solve(weights: Tensor) -> Solution:
        pairs = weights[:, first] * weights[:, second]
        return hand_eye(gripper, camera, pairs[..., None].expand(-1, -1, 2))

    def draw(weights: Tensor, x: Tensor) -> Figure:
        found = se3.inverse(x) @ gripper @ x
        pairs = weights[first] * weights[second]
        return weighted_fit(camera[:, :2, 3], pairs, found[:, :2, 3], "the camera's motions, their x and y", "m")

    def error(x: Tensor) -> Tensor:
        return (x[0, :3] - truth[:3]).norm()

    return learn_weights(
        run, config,
        Task(
            solve=solve, error=error, wrong=wrong, draw=draw,
            reference_cost=opencv_cost(gripper_to_base, target_to_camera),
        ),
    )  # fmt: skip


def opencv_cost(gripper_to_base: Tensor, target_to_camera: Tensor) -> float | None:
    """The least of OpenCV's methods; None where it has them not, as 5.0 of its Python packages."""
    import cv2

    if not hasattr(cv2, "calibrateHandEye"):
        return None
    poses = [pose.double().cpu().numpy() for pose in (gripper_to_base, target_to_camera)]
    views = [part for pose in poses for part in (pose[:, :3, :3], pose[:, :3, 3])]
    found = [cv2.calibrateHandEye(*views, method=method) for method in range(5)]
    data = motions(gripper_to_base, target_to_camera)
    x = [se3.make(*(torch.from_numpy(part).to(data[0]) for part in (R, t.ravel()))) for R, t in found]
    return min(hand_eye_problem.cost(one, *data).item() for one in x)


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
