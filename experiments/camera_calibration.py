"""Camera calibration by backpropagating PnP (paper, section 4.3), and calibration of real cameras.

The intrinsics are the only unknowns; PnP gives the pose that suits them, and the reprojection error of the cube trains
them through PnP. A camera of yours, or several mounted together:

    python -m experiments.camera_calibration real --board.source my_images --board.corners 9 6 --board.square 0.025
    ... --board.source left right --board.kind charuco --board.corners 8 5 --board.square 0.03 --board.marker 0.75
    ... --board.source my_images --board.kind tags --board.corners 6 6 --board.marker 0.3 --board.free f k1 k2

Presets:

- default: Learns K of the published cube from a random start, by Gauss-Newton with the pose eliminated.
- paper: Learns K = 1000 sigmoid(theta) by SGD, as published.
- real: Calibrates from chessboard images and corner files: intrinsics, distortion and their standard deviations,
  beside OpenCV's joint calibration.
- smoke: Does what `default` does, which takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from datasets.made.scenes import CUBE, CUBE_EDGES, PUBLISHED_POSE
from experiments.drawing.figures import loss_curve, trajectories
from experiments.gradients.published import with_published_gradient
from experiments.paper.boards import SHARED_BOARDS, CalibrationConfig
from experiments.paper.calibrations import NAMES, calibrations
from experiments.paper.learning import Descent, GaussNewton, Learning
from experiments.records.quantities import Quantity
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from geometry import pnp, project, se3
from geometry.camera import matrix_from_intrinsics
from geometry.reconstruction import CalibrationProblem


@dataclass(frozen=True)
class Config(CalibrationConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts("where there are no boards", ("method", "threshold"), lambda config: not config.boarded),
        Acts(
            "where there are no boards, with --method sgd",
            ("learning_rate", "gradient"),
            lambda config: not config.boarded and config.method == "sgd",
        ),
    )

    method: Literal["sgd", "gauss_newton"] = "gauss_newton"
    """Chooses the paper's optimiser over K = 1000 sigmoid(theta), or Gauss-Newton over K with the pose eliminated."""
    learning_rate: float = 1e-5
    """Sets the rate of SGD."""
    threshold: float = 1e-3
    """Stops below this loss, the sum of squared pixel errors of the cube."""
    gradient: Literal["exact", "published"] = "exact"
    """Chooses the gradient of the pose in K, for SGD: the exact one, or the published code's formula, which is off by
    0.4 %."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient == "published" and (self.method != "sgd" or self.boarded):
            raise ValueError(
                "gradient must be exact, unless the published cube's camera is learned by method sgd, got published"
            )


PUBLISHED = {"iterations": "260 to 1287"}
"""By the published formula, 40 seeds: results/reference/claims.md."""
PRESETS = {
    "default": Config(preset="default", log_every=5),
    "paper": Config(preset="paper", method="sgd", iterations=2000, log_every=100),
    "real": Config(preset="real", boards=SHARED_BOARDS),
    "smoke": Config(preset="smoke", log_every=5),
}


@experiment("camera_calibration")
def cube(run: Run, config: Config) -> dict:
    """Learn the intrinsics that the published cube was projected with."""
    points3d = CUBE.to(run.device, run.dtype)
    truth = points3d.new_tensor([800.0, 700.0, 400.0, 300.0])
    pose_gt = se3.from_rotvec_t(PUBLISHED_POSE.to(run.device, run.dtype))[None]
    points2d = project(points3d, pose_gt, matrix_from_intrinsics(truth))
    run.stage(
        points3d=points3d,
        edges=CUBE_EDGES,
        points2d_gt=points2d[0],
        world_to_camera_gt=pose_gt,
        image_size=torch.tensor([800, 600]),
        targets={"loss": config.threshold, **dict(zip(NAMES, truth.tolist(), strict=True))},
        units={"loss": "px²", **dict.fromkeys(NAMES, "px")},
    )
    learning = (by_sgd if config.method == "sgd" else by_gauss_newton)(config, run, points2d, points3d)
    losses, history, pose = learning.losses, learning.history, learning.poses
    assert pose is not None
    show(run, len(losses), learning, points3d)
    run.figure("loss", len(losses), loss_curve(losses, config.threshold), final=True)
    run.figure("intrinsics", len(losses), trajectories(torch.stack(history), NAMES, truth), final=True)
    run.save_points("cube", points3d, cameras=pose, K=matrix_from_intrinsics(history[-1])[None])
    rotation = se3.rotation_angle(pose[0, :3, :3] @ pose_gt[0, :3, :3].mT)
    return run.finish(
        converged=losses[-1] < config.threshold,
        goal=f"loss below {config.threshold:g} px^2",
        found={
            name: Quantity(value, unit="px", reference=wanted)
            for name, value, wanted in zip(NAMES, history[-1].tolist(), truth.tolist(), strict=True)
        },
        iterations=len(losses),
        loss=losses[-1],
        errors={
            "intrinsics_px": (history[-1] - truth).abs().max().item(),
            "rotation_deg": torch.rad2deg(rotation).item(),
            "translation": (pose[0, :3, 3] - pose_gt[0, :3, 3]).norm().item(),
        },
        reference=PUBLISHED,
        picture="intrinsics",
    )


def by_sgd(config: Config, run: Run, points2d: Tensor, points3d: Tensor) -> Learning:
    """The paper's loop."""
    theta = (1.1 * torch.randn(4, dtype=run.dtype)).to(run.device).requires_grad_()
    learning = Descent(run, lambda: 1000 * theta.sigmoid(), torch.optim.SGD([theta], lr=config.learning_rate))
    for step, intrinsics in learning.steps(config.iterations, config.threshold):
        K = matrix_from_intrinsics(intrinsics)
        pose = pnp(points2d, points3d, K, init=learning.poses).x
        if config.gradient == "published":
            pose = with_published_gradient(pose, points2d, points3d, K)
        learning.found((project(points3d, pose, K) - points2d).square().sum(), pose)
        tell(run, step, learning, points3d)
    return learning


def by_gauss_newton(config: Config, run: Run, points2d: Tensor, points3d: Tensor) -> Learning:
    """Gauss-Newton with the pose eliminated, from a random start as spread as the paper's."""

    def start() -> tuple[Tensor, None]:
        return (1000 * (1.1 * torch.randn(1, 4, dtype=run.dtype)).sigmoid()).to(run.device), None

    mask = torch.ones(points2d.shape[:2], dtype=torch.bool, device=run.device)
    learning = GaussNewton(run, CalibrationProblem(points2d, points3d, mask), start, scale=2)  # sums of squares
    for step in learning.steps(config.iterations, config.threshold):
        tell(run, step, learning, points3d)
    return learning


def tell(run: Run, step: int, learning: Learning, points3d: Tensor) -> None:
    """Log the last intrinsics of the history, and show the camera that has them."""
    run.log(step, loss=learning.losses[-1], **dict(zip(NAMES, learning.history[-1].tolist(), strict=True)))
    if run.records(step):
        show(run, step, learning, points3d)


def show(run: Run, step: int, learning: Learning, points3d: Tensor) -> None:
    """A frame: the camera, and where it sees the points (N,3)."""
    assert learning.poses is not None
    K = matrix_from_intrinsics(learning.history[-1])
    run.frame(step, world_to_camera=learning.poses, K=K, points2d=project(points3d, learning.poses[0], K))


def main(config: Config) -> dict:
    return calibrations(config) if config.boarded else cube(config)


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
