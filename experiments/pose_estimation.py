"""Pose estimation by backpropagating PnP (paper, section 4.1), and poses from real matches.

A network predicts the 2D keypoints of a cube; PnP turns them into a pose; the error of the cube it reprojects trains
the network through PnP.

Presets:

- default: Learns the keypoints themselves, by Gauss-Newton through the layer.
- paper: Trains VGG-11 with Adam, as published.
- unregularised: Trains as `paper` does, without the second term of the loss: the pose converges, the keypoints need
  not.
- real: Finds the poses of a box in video frames from matches with outliers, and the focal length.
- smoke: Does what `default` does, which takes a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from datasets.made.scenes import CUBE, CUBE_EDGES, PUBLISHED_POSE
from experiments.drawing.figures import keypoint_tracks, loss_curve
from experiments.gradients.published import with_published_gradient
from experiments.paper.learning import Descent, GaussNewton, Learning
from experiments.paper.vgg import ConstantVgg11
from experiments.paper.video import VideoConfig, video
from experiments.records.quantities import Quantity
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from geometry import Solution, Status, pnp, project, se3
from geometry.camera import matrix_from_intrinsics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config(VideoConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts(
            "without --matches",
            ("method", "regularise", "threshold", "gradient"),
            lambda config: config.matches is None,
        ),
        Acts(
            "without --matches, with --method vgg11_adam",
            ("learning_rate",),
            lambda config: config.matches is None and config.method == "vgg11_adam",
        ),
    )

    method: Literal["vgg11_adam", "gauss_newton"] = "gauss_newton"
    """Chooses the paper's network and optimiser, or the keypoints as free parameters and Gauss-Newton steps."""
    learning_rate: float = 4e-6
    """Sets the rate of Adam."""
    regularise: bool = True
    """Says whether mean|proj - x|^2 is in the loss, which draws the keypoints to where the pose puts them."""
    threshold: float = 1e-3
    """Stops below this loss (px^2)."""
    gradient: Literal["exact", "published"] = "exact"
    """Chooses the gradient of the pose in the keypoints: the exact one, or the published code's formula, which is off
    by 8 %."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient == "published" and self.matches is not None:
            raise ValueError("gradient must be exact for poses from matches, which are not learned, got published")


PAPER = Config(preset="paper", method="vgg11_adam", iterations=2000, dtype="float32", log_every=100)
PUBLISHED = {"iterations": "297 to 365"}
"""By the published formula, 40 seeds: results/reference/claims.md."""
PRESETS = {
    "default": Config(preset="default", log_every=5),
    "paper": PAPER,
    "unregularised": Config(**{**vars(PAPER), "preset": "unregularised", "regularise": False}),
    "real": Config(preset="real", matches=Path("box_pnp"), log_every=5),
    "smoke": Config(preset="smoke", log_every=5),
}


class Scene:
    """The published cube, camera and pose, and the two terms of the paper's loss."""

    def __init__(self, run: Run, config: Config) -> None:
        self.points3d = CUBE.to(run.device, run.dtype)
        self.K = matrix_from_intrinsics(self.points3d.new_tensor([300.0, 300.0, 128.0, 128.0]))
        self.pose = se3.from_rotvec_t(PUBLISHED_POSE.to(run.device, run.dtype))
        self.target = project(self.points3d, self.pose, self.K)
        self.regularise = config.regularise
        self.gradient = config.gradient

    def pose_of(self, x: Tensor, init: Tensor | None = None) -> Solution:
        """Of keypoints x (B,8,2): (B,4,4)."""
        return pnp(x, self.points3d, self.K, init=init)

    def solve(self, x: Tensor, init: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pose (B,4,4) of keypoints x (B,8,2) by PnP, and the cube it projects (B,8,2)."""
        pose = self.pose_of(x, init).x
        if self.gradient == "published":
            pose = with_published_gradient(pose, x, self.points3d, self.K)
        return pose, project(self.points3d, pose, self.K)

    def residual(self, x: Tensor, projected: Tensor) -> Tensor:
        """What the loss is the sum of squares of: (B,8,2) twice -> (B,16 or 32)."""
        terms = [projected - self.target] + [projected - x] * self.regularise
        return torch.cat([term.flatten(1) for term in terms], 1) / math.sqrt(self.target.numel())

    def errors(self, x: Tensor, pose: Tensor) -> dict[str, float]:
        """Of keypoints (8,2) and pose (1,4,4)."""
        rotation = se3.rotation_angle(pose[0, :3, :3] @ self.pose[:3, :3].mT)
        return {
            "rotation_deg": math.degrees(rotation.item()),
            "translation": (pose[0, :3, 3] - self.pose[:3, 3]).norm().item(),
            "keypoint_rms_px": (x - self.target).square().sum(-1).mean().sqrt().item(),
        }

    def found(self, pose: Tensor) -> dict[str, Quantity]:
        """Rotation vector and translation of the pose (1,4,4)."""
        rows = [(se3.log(some[:3, :3]).rad2deg().tolist(), some[:3, 3].tolist()) for some in (pose[0], self.pose)]
        (turn, shift), (turn_gt, shift_gt) = rows
        return {
            **{f"rotation {a}": Quantity(r, None, "deg", t) for a, r, t in zip("xyz", turn, turn_gt, strict=True)},
            **{f"translation {a}": Quantity(r, None, "", t) for a, r, t in zip("xyz", shift, shift_gt, strict=True)},
        }

    def tracks(self, history: list[Tensor]) -> Figure:
        """Where keypoints went."""
        return keypoint_tracks(torch.stack(history), self.target, "predicted keypoints")

    def tell(self, run: Run, step: int, loss: float, pose: Tensor, history: list[Tensor]) -> None:
        """Log and show keypoints (8,2), the last of the history, and their pose (1,4,4)."""
        run.log(step, loss=loss, **self.errors(history[-1], pose))
        if run.records(step):
            run.frame(step, points2d=history[-1], world_to_camera=pose)
        if step and run.due(step):
            run.figure("keypoints", step, self.tracks(history))


class KeypointProblem:
    """`NestedProblem` over the keypoints theta (1,8,2), the pose being inner, sought globally each time."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def evaluate(self, theta: Tensor, inner: Tensor | None) -> tuple[Tensor, Tensor]:
        pose, projected = self.scene.solve(theta)
        return self.scene.residual(theta, projected).square().sum(1), pose

    def step(self, theta: Tensor, inner: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        # One copy of the problem per residual: a single backward pass through the layer is the whole Jacobian.
        rows = self.scene.residual(theta, self.scene.solve(theta, inner)[1]).shape[1]
        copies = theta.expand(rows, *theta.shape[1:]).clone().requires_grad_()
        r = self.scene.residual(copies, self.scene.solve(copies, inner)[1])
        (J,) = torch.autograd.grad(r.diagonal().sum(), copies)
        J, r = J.flatten(1), r[0].detach()
        gradient, A = 2 * J.mT @ r, 2 * J.mT @ J
        scale = A.diagonal() + 1e-9 * A.diagonal().amax()
        step = torch.linalg.solve(A + damping * torch.diag(scale), -gradient)
        predicted = 0.5 * (step * (damping * scale * step - gradient)).sum()
        return step.view_as(theta), predicted[None]

    def retract(self, theta: Tensor, step: Tensor) -> Tensor:
        return theta + step


def learn_keypoints(config: Config, run: Run, scene: Scene) -> Learning:
    """Gauss-Newton through the layer."""

    def start() -> tuple[Tensor, None]:
        # where an untrained network puts them: a few hundredths of a pixel around the origin
        return 0.06 * torch.randn(1, *scene.target.shape, dtype=run.dtype).to(run.device), None

    learning = GaussNewton(run, KeypointProblem(scene), start)
    for step in learning.steps(config.iterations, config.threshold):
        scene.tell(run, step, learning.losses[-1], learning.state.inner, learning.history)
    return learning


def train_network(config: Config, run: Run, scene: Scene) -> Learning:
    """The paper's loop."""
    model = ConstantVgg11(scene.target.numel()).to(run.device, run.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    learning = Descent(run, lambda: model().view(scene.target.shape), optimizer)
    for step, x in learning.steps(config.iterations, config.threshold):
        pose, projected = scene.solve(x[None], learning.poses)
        learning.found(scene.residual(x[None], projected).square().sum(), pose)
        scene.tell(run, step, learning.losses[-1], pose, learning.history)
    return learning


@experiment("pose_estimation")
def cube(run: Run, config: Config) -> dict:
    """Learn the keypoints of the published cube."""
    scene = Scene(run, config)
    run.stage(
        points3d=scene.points3d,
        edges=CUBE_EDGES,
        points2d_gt=scene.target,
        world_to_camera_gt=scene.pose[None],
        K=scene.K,
        image_size=torch.tensor([256, 256]),
        targets={"loss": config.threshold, "rotation_deg": 0, "translation": 0},
    )
    learning = (train_network if config.method == "vgg11_adam" else learn_keypoints)(config, run, scene)
    x, history, losses = learning.prediction, learning.history, learning.losses
    status = Status(int(scene.pose_of(x[None]).status))
    pose, projected = scene.solve(x[None])
    loss, last = scene.residual(x[None], projected).square().sum().item(), len(losses)
    run.frame(last, points2d=x, world_to_camera=pose)
    run.figure("loss", last, loss_curve(losses, config.threshold), final=True)
    run.figure("keypoints", last, scene.tracks(history), final=True)
    with torch.no_grad():
        shown = torch.cat([scene.solve(x[None])[1] for x in history[:: max(1, last // 100)]])
    run.figure("reprojection", last, keypoint_tracks(shown, scene.target, "reprojected cube"), final=True)
    run.save_points("cube", scene.points3d, cameras=pose, K=scene.K[None])
    return run.finish(
        converged=loss < config.threshold,
        goal=f"loss below {config.threshold:g} px^2",
        undetermined=[f"The keypoints determine no pose: {status.message}."] if status != Status.CONVERGED else [],
        note="" if config.regularise else "the loss is of the pose alone: it does not determine the keypoints",
        iterations=last,
        loss=loss,
        found=scene.found(pose),
        errors=scene.errors(x, pose),
        reference=PUBLISHED if config.regularise else {"keypoint_rms_px": "about 26"},
        picture="keypoints",
    )


def main(config: Config) -> dict:
    return cube(config) if config.matches is None else video(config)


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
