"""Pose estimation by backpropagating PnP (paper, section 4.1), and poses from real matches.

A network predicts the 2D keypoints of a cube; PnP turns them into a pose; the error of the cube it reprojects trains
the network through PnP. Presets: `paper` (VGG-11 and Adam, as published), `unregularised` (the same without the second
term of the loss: the pose converges, the keypoints need not), `default` (the keypoints themselves, by Gauss-Newton
through the layer), `real` (poses of a box in video frames from matches with outliers, focal length unknown), `smoke`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datasets import locate
from datasets.images.matches import read_box_matches
from datasets.made.scenes import CUBE, CUBE_EDGES, PUBLISHED_POSE
from experiments.drawing.figures import keypoint_tracks, loss_curve, trajectories
from experiments.paper.vgg import ConstantVgg11
from experiments.records.files import write_json
from experiments.running.config import RunConfig, cli, skip
from experiments.running.run import Run
from geometry import geman_mcclure, pnp, pnp_ransac, project, se3
from geometry.camera import matrix_from_intrinsics
from geometry.optim import NestedState, nested_start, nested_step
from geometry.reconstruction import CalibrationProblem


@dataclass(frozen=True)
class Config(RunConfig):
    method: Literal["vgg11_adam", "gauss_newton"] = "gauss_newton"
    """The paper's network and optimiser, or the keypoints as free parameters and Gauss-Newton steps."""
    learning_rate: float = 4e-6
    """Of Adam."""
    regularise: bool = True
    """Add mean|proj - x|^2 to the loss, which draws the keypoints to where the pose puts them."""
    iterations: int = 50
    """At the most."""
    threshold: float = 1e-3
    """Stop below this loss (px^2)."""
    matches: Path | None = None
    """A file or folder of 2D-3D matches (datasets/images/matches.py); `box_pnp` is found in the shared data."""
    image_size: tuple[int, int] = (640, 480)
    """Width and height of the images of `matches`."""
    inlier: float = 4.0
    """Pixels within which a match counts as right."""


PAPER = Config(preset="paper", method="vgg11_adam", iterations=2000, dtype="float32", log_every=100)
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

    def solve(self, x: Tensor, init: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pose (B,4,4) of keypoints x (B,8,2) by PnP, and the cube it projects (B,8,2)."""
        pose = pnp(x, self.points3d, self.K, init=init).x
        return pose, project(self.points3d, pose, self.K)

    def residual(self, x: Tensor, projected: Tensor) -> Tensor:
        """What the loss is the sum of squares of: (B,8,2) twice -> (B,16 or 32)."""
        terms = [projected - self.target] + [projected - x] * self.regularise
        return torch.cat([term.flatten(1) for term in terms], 1) / math.sqrt(self.target.numel())

    def errors(self, x: Tensor, pose: Tensor) -> dict[str, float]:
        rotation = se3.rotation_angle(pose[0, :3, :3] @ self.pose[:3, :3].mT)
        return {
            "rotation_deg": math.degrees(rotation.item()),
            "translation": (pose[0, :3, 3] - self.pose[:3, 3]).norm().item(),
            "keypoint_rms_px": (x[0] - self.target).square().sum(-1).mean().sqrt().item(),
        }


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


def learn_keypoints(config: Config, run: Run, scene: Scene) -> tuple[Tensor, list[Tensor], list[float]]:
    """Gauss-Newton through the layer: final keypoints (1,8,2), their track, and the losses."""
    problem = KeypointProblem(scene)
    # where an untrained network puts them: a few hundredths of a pixel around the origin
    theta = 0.06 * torch.randn(1, *scene.target.shape, dtype=run.dtype).to(run.device)
    tracks: list[Tensor] = []
    losses: list[float] = []
    if saved := run.restore():
        state, tracks, losses = NestedState(*saved["state"]), saved["tracks"], saved["losses"]
    else:
        state = nested_start(problem, theta)
    for step in run.iterations(config.iterations):
        losses.append(state.cost.item())
        tracks.append(state.theta[0])
        run.log(step, loss=losses[-1], **scene.errors(state.theta, state.inner))
        if run.records(step):
            run.frame(step, points2d=tracks[-1], world_to_camera=state.inner)
        if losses[-1] < config.threshold or state.done.all():
            break
        state = nested_step(problem, state)
        if run.due(step):
            if step:
                shown = torch.stack(tracks)
                run.figure("keypoints", step, keypoint_tracks(shown, scene.target, "predicted keypoints"))
            run.checkpoint(step, state=tuple(state), tracks=tracks, losses=losses)
    return state.theta, tracks, losses


def train_network(config: Config, run: Run, scene: Scene) -> tuple[Tensor, list[Tensor], list[float]]:
    """The paper's loop: final keypoints (1,8,2), their track, and the losses."""
    model = ConstantVgg11(scene.target.numel()).to(run.device, run.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    init: Tensor | None = None
    tracks: list[Tensor] = []
    losses: list[float] = []
    if saved := run.restore():
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        init, tracks, losses = saved["init"], saved["tracks"], saved["losses"]
    for step in run.iterations(config.iterations):
        x = model().view(1, *scene.target.shape)
        pose, projected = scene.solve(x, init)
        loss = scene.residual(x, projected).square().sum()
        losses.append(loss.item())
        tracks.append(x[0].detach())
        run.log(step, loss=loss, **scene.errors(x, pose))
        if run.records(step):
            run.frame(step, points2d=tracks[-1], world_to_camera=pose)
        if losses[-1] < config.threshold:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        init = pose.detach()  # the pose is followed, as in the published demo, from a global first start
        if run.due(step):
            if step:
                shown = torch.stack(tracks)
                run.figure("keypoints", step, keypoint_tracks(shown, scene.target, "predicted keypoints"))
            run.checkpoint(
                step,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                init=init,
                tracks=tracks,
                losses=losses,
            )
    return model().detach().view(1, *scene.target.shape), tracks, losses


def cube(config: Config) -> dict:
    """Learn the keypoints of the published cube."""
    with Run("pose_estimation", config) as run:
        if run.finished:
            return run.finished
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
        learn = train_network if config.method == "vgg11_adam" else learn_keypoints
        x, tracks, losses = learn(config, run, scene)
        pose, projected = scene.solve(x)
        loss = scene.residual(x, projected).square().sum().item()
        run.frame(len(losses), points2d=x[0], world_to_camera=pose)
        run.figure("loss", len(losses), loss_curve(losses, config.threshold), final=True)
        shown = torch.stack(tracks)
        run.figure("keypoints", len(losses), keypoint_tracks(shown, scene.target, "predicted keypoints"), final=True)
        with torch.no_grad():
            shown = torch.cat([scene.solve(x[None])[1] for x in tracks[:: max(1, len(tracks) // 100)]])
        run.figure("reprojection", len(losses), keypoint_tracks(shown, scene.target, "reprojected cube"), final=True)
        run.save_points("cube", scene.points3d, cameras=pose, K=scene.K[None])
        return run.finish(
            converged=loss < config.threshold,
            iterations=len(losses),
            loss=loss,
            errors=scene.errors(x, pose),
            reference={"iterations": "293 to 312"} if config.regularise else {"keypoint_rms_px": "about 26"},
            picture="keypoints",
        )


def video(config: Config) -> dict:
    """Poses of a known object in video frames from 2D-3D matches, many of them wrong, the focal length unknown.

    RANSAC over PnP gives each frame a start at a guessed focal length (the longer image side); then the focal length
    is learned through robust PnP of all frames at once, the poses being inner unknowns.
    """
    assert config.matches is not None
    try:
        frames = read_box_matches(locate.locate(str(config.matches)))
    except FileNotFoundError as error:
        skip(str(error))
    with Run("pose_estimation", config) as run:
        if run.finished:
            return run.finished

        from experiments.viewers.picture import picture  # a viewer: not before there is a run

        def padded(tensors: list[Tensor]) -> Tensor:
            return pad_sequence(tensors, batch_first=True).to(run.device, run.dtype)

        points2d, points3d = padded([f.points2d for f in frames]), padded([f.points3d for f in frames])
        # Lowe's ratio, best over second-best descriptor distance: the smaller, the likelier right
        likely = padded([(1 - f.ratio).clamp_min(0.02) ** 2 for f in frames])
        width, height = config.image_size

        def camera(theta: Tensor) -> tuple[Tensor, Tensor]:
            centre = theta.new_tensor([(width - 1) / 2, (height - 1) / 2])
            return matrix_from_intrinsics(torch.cat([theta, theta, centre])), theta.new_zeros(0)

        run.stage(points3d=points3d[likely > 0].unique(dim=0), image_size=torch.tensor(config.image_size))
        kernel = geman_mcclure(config.inlier)
        problem = CalibrationProblem(points2d, points3d, likely > 0, camera, kernel=kernel)
        history: list[Tensor] = []
        if saved := run.restore():
            state, history = NestedState(*saved["state"]), saved["history"]
        else:
            theta = points2d.new_tensor([[max(width, height)]])
            start = pnp_ransac(
                points2d, points3d, camera(theta[0])[0], mask=likely > 0, candidates=likely, threshold=2 * config.inlier
            )
            state = nested_start(problem, theta, start.x[None])
        for step in run.iterations(config.iterations):
            share, median = inliers(problem, state, config.inlier)
            run.log(step, loss=state.cost.item(), focal_px=state.theta.item(), inlier_share=share.mean())
            history.append(state.theta[0])
            if run.records(step):
                run.frame(step, world_to_camera=state.inner[0], K=camera(state.theta[0])[0])
            if state.done.all():
                break
            state = nested_step(problem, state)
            if run.due(step):
                run.checkpoint(step, state=tuple(state), history=history)

        run.frame(len(history), world_to_camera=state.inner[0], K=camera(state.theta[0])[0])
        share, median = inliers(problem, state, config.inlier)
        deviation = problem.covariance(state.theta, state.inner, state.cost)[0, 0].sqrt()
        run.figure("scene", len(history), picture(run.recorded()), final=True)
        run.figure("focal", len(history), trajectories(torch.stack(history), ["f (px)"]), final=True)
        run.save_points("object", points3d[likely > 0], cameras=state.inner[0], K=camera(state.theta[0])[0][None])
        poses = [
            {"frame": f.frame, "world_to_camera": T, "inlier_share": s.item(), "median_px": m.item()}
            for f, T, s, m in zip(frames, state.inner[0], share, median, strict=True)
        ]
        write_json(run.folder / "poses.json", poses)
        return run.finish(
            converged=bool(state.done.all() and torch.isfinite(state.cost).all()),
            iterations=state.steps,
            loss=state.cost.item(),
            errors={
                "focal_px": state.theta.item(),
                "focal_deviation_px": deviation.item(),
                "inlier_share": share.mean().item(),
                "lowest_inlier_share": share.min().item(),
                "median_px": median.median().item(),
            },
            reference={
                "focal_px": "703 to 705 (OpenCV self-calibration)",
                "inlier_share": "0.58 (OpenCV)",
                "median_px": "1.20 (OpenCV)",
            },
            picture="scene",
            note=f"{len(frames)} frames; there is no ground truth: the figures are fits, not errors",
        )


def inliers(problem: CalibrationProblem, state: NestedState, threshold: float) -> tuple[Tensor, Tensor]:
    """Share of matches within `threshold` px, and the median error of those, per frame. (V,), (V,)."""
    K, distortion = problem.unpack(state.theta[0])
    error = (project(problem.points3d, state.inner[0], K, distortion) - problem.points2d).norm(dim=-1)
    right = (error < threshold) & problem.mask
    return right.sum(1) / problem.mask.sum(1), torch.where(right, error, torch.nan).nanmedian(1).values


def main(config: Config) -> dict:
    return cube(config) if config.matches is None else video(config)


if __name__ == "__main__":
    main(cli(__doc__, PRESETS))
