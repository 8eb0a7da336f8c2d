"""Pose estimation by backpropagating PnP (paper, section 4.1), and poses from real matches.

A network predicts the 2D keypoints of a cube; PnP turns them into a pose; the error of the reprojected cube trains the
network through PnP. Presets: `paper` (VGG-11 and Adam, as published), `unregularised` (the same without the second
term of the loss: the pose converges, the keypoints need not), `default` (free keypoints and L-BFGS), `real` (poses
of a box in video frames from matches with outliers, the focal length unknown), `smoke`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from datasets import shared
from datasets.matches import read_box_matches
from datasets.synthetic import CUBE, PUBLISHED_POSE
from experiments import write_json
from experiments.figures import keypoint_tracks, loss_curve, trajectories
from experiments.networks import ConstantVgg11
from experiments.run import Run, RunConfig, cli, skip
from geometry import se3
from geometry.calibration import CalibrationProblem
from geometry.camera import matrix_from_intrinsics, project
from geometry.nested import NestedState, nested_levenberg_marquardt, nested_start
from geometry.pnp import pnp, pnp_problem
from geometry.ransac import ransac
from geometry.robust import geman_mcclure

PAPER = {"iterations": "293 to 312"}


@dataclass(frozen=True)
class Config(RunConfig):
    keypoints: Literal["vgg11", "free"] = "free"
    """What predicts the 16 numbers: the paper's network, or the numbers themselves."""
    optimizer: Literal["adam", "lbfgs"] = "lbfgs"
    """Adam at the learning rate below, or L-BFGS with a strong-Wolfe line search."""
    learning_rate: float = 4e-6
    """Of Adam."""
    regularise: bool = True
    """Add mean|proj - x|^2 to the loss: keypoints are drawn to where the pose puts them."""
    iterations: int = 100
    """At the most."""
    threshold: float = 1e-3
    """Stop below this loss (px^2)."""
    matches: Path | None = None
    """A file of 2D-3D matches, as in datasets/matches.py; the `real` preset takes the box of the shared data."""
    image_size: tuple[int, int] = (640, 480)
    """Width and height of the images of `matches`."""
    inlier: float = 4.0
    """Pixels within which a match counts as right."""


PAPER_CONFIG = {"keypoints": "vgg11", "optimizer": "adam", "iterations": 2000, "dtype": "float32", "log_every": 100}
PRESETS = {
    "default": Config(preset="default", log_every=1),
    "paper": Config(preset="paper", **PAPER_CONFIG),  # type: ignore[arg-type]
    "unregularised": Config(preset="unregularised", regularise=False, **PAPER_CONFIG),  # type: ignore[arg-type]
    "real": Config(preset="real", matches=Path("box_pnp"), log_every=1),
    "smoke": Config(preset="smoke", iterations=3, log_every=1),
}


class FreeKeypoints(nn.Module):
    """The keypoints themselves as parameters, started as the network starts: a few hundredths of a pixel around 0."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.values = nn.Parameter(0.06 * torch.randn(outputs))

    def forward(self) -> Tensor:
        return self.values


def synthetic(config: Config) -> dict:
    """Learn the keypoints of the cube."""
    with Run("pose_estimation", config) as run:
        if run.finished:
            return run.finished
        like = {"dtype": run.dtype, "device": run.device}
        points3d = CUBE.to(**like)
        K = matrix_from_intrinsics(torch.tensor([300.0, 300.0, 128.0, 128.0], **like))  # type: ignore[arg-type]
        pose_gt = se3.from_rotvec_t(PUBLISHED_POSE.to(**like))
        target = project(points3d, pose_gt, K)

        model = (ConstantVgg11 if config.keypoints == "vgg11" else FreeKeypoints)(2 * len(points3d)).to(**like)
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adam":
            optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        else:
            optimizer = torch.optim.LBFGS(
                model.parameters(), max_iter=1, history_size=20, line_search_fn="strong_wolfe",
                tolerance_grad=0, tolerance_change=0,
            )  # fmt: skip
        init: Tensor | None = None
        tracks: list[Tensor] = []
        projections: list[Tensor] = []
        losses: list[float] = []
        evaluations = 0
        if saved := run.restore():
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            init, evaluations = saved["init"], saved["evaluations"]
            tracks, projections, losses = saved["tracks"], saved["projections"], saved["losses"]

        def evaluate() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            x = model().view(1, -1, 2)
            pose = pnp(x, points3d, K, init=init).x
            assert isinstance(pose, Tensor)
            projected = project(points3d, pose, K)
            loss = (projected - target).square().mean()
            if config.regularise:
                loss = loss + (projected - x).square().mean()
            return loss, x, pose, projected

        def closure() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            optimizer.zero_grad()
            loss = evaluate()[0]
            loss.backward()
            return loss

        def measure(x: Tensor, pose: Tensor) -> dict[str, float]:
            return {
                "rotation_deg": math.degrees(se3.rotation_angle(pose[0, :3, :3] @ pose_gt[:3, :3].mT)),
                "translation": (pose[0, :3, 3] - pose_gt[:3, 3]).norm().item(),
                "keypoint_rms_px": (x[0] - target).square().sum(-1).mean().sqrt().item(),
            }

        for step in run.iterations(config.iterations):
            loss, x, pose, projected = evaluate()
            run.log(step, loss=loss, **measure(x, pose))
            tracks.append(x[0].detach())
            projections.append(projected[0].detach())
            losses.append(loss.item())
            if losses[-1] < config.threshold:
                break
            if config.optimizer == "lbfgs":
                optimizer.step(closure)  # type: ignore[arg-type]
            else:
                evaluations += 1
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                init = pose.detach()  # follow the pose, as the published demo does after its first start
            if run.due(step):
                figure = keypoint_tracks(torch.stack(tracks), target, "predicted keypoints")
                run.figure("keypoints", step, figure)
                run.checkpoint(
                    step, model=model.state_dict(), optimizer=optimizer.state_dict(), init=init,
                    evaluations=evaluations, tracks=tracks, projections=projections, losses=losses,
                )  # fmt: skip

        with torch.no_grad():
            loss, x, pose, _ = evaluate()
        step = len(losses)
        run.figure("loss", step, loss_curve(losses, config.threshold), final=True)
        for tag, track, title in (
            ("keypoints", tracks, "predicted keypoints"),
            ("reprojection", projections, "cube reprojected by the pose"),
        ):
            run.figure(tag, step, keypoint_tracks(torch.stack(track), target, title), final=True)
        run.save_points("cube", points3d, cameras=pose, K=K[None])
        return run.finish(
            converged=loss.item() < config.threshold,
            iterations=len(losses),
            loss=loss,
            errors=measure(x, pose),
            reference=PAPER,
            note=f"{evaluations} gradient evaluations",
        )


def real(config: Config) -> dict:
    """Poses of a known object in video frames from 2D-3D matches, a third to two thirds of them wrong, focal length unknown.

    RANSAC over PnP gives each frame's start at a guessed focal length (the image width); then the focal length is
    learned through robust PnP of all frames at once, the poses being inner unknowns.
    """
    assert config.matches is not None
    try:
        path = config.matches if config.matches.exists() else shared.find(str(config.matches))
    except FileNotFoundError as error:
        skip(str(error))
    frames = read_box_matches(path)
    with Run("pose_estimation", config) as run:
        if run.finished:
            return run.finished
        pad = {"batch_first": True}
        points2d = pad_sequence([f.points2d for f in frames], **pad).to(run.device, run.dtype)  # type: ignore[arg-type]
        points3d = pad_sequence([f.points3d for f in frames], **pad).to(run.device, run.dtype)  # type: ignore[arg-type]
        # Lowe's ratio, distance to the best over the second best match: the smaller the likelier right
        likely = pad_sequence([(1 - f.ratio).clamp_min(0.02) ** 2 for f in frames], **pad).to(points2d)  # type: ignore[arg-type]
        mask = likely > 0
        width, height = config.image_size

        def camera(theta: Tensor) -> tuple[Tensor, Tensor]:
            centre = theta.new_tensor([(width - 1) / 2, (height - 1) / 2])
            return matrix_from_intrinsics(torch.cat([theta, theta, centre])), theta.new_zeros(0)

        problem = CalibrationProblem(points2d, points3d, mask, camera, kernel=geman_mcclure(config.inlier))
        theta = points2d.new_tensor([[max(width, height)]])
        if saved := run.restore():
            state = NestedState(*saved["state"])
            history = saved["history"]
        else:
            K = camera(theta[0])[0]
            start = ransac_poses(points2d, points3d, K, likely, 3 * config.inlier)
            state, history = nested_start(problem, theta, start[None]), []

        steps = nested_levenberg_marquardt(problem, state)
        for step in run.iterations(config.iterations):
            share, median = inliers(problem, state, config.inlier)
            run.log(step, loss=state.cost, focal_px=state.theta[0, 0], inlier_share=share.mean(), median_px=median.median())
            history.append(state.theta[0])
            if state.done.all():
                break
            state = next(steps)
            if run.due(step):
                run.figure("focal", step, trajectories(torch.stack(history), ["f (px)"]))
                run.checkpoint(step, state=tuple(state), history=history)

        share, median = inliers(problem, state, config.inlier)
        sd = problem.covariance(state.theta, state.inner, state.cost)[0, 0].sqrt()
        run.figure("focal", len(history), trajectories(torch.stack(history), ["f (px)"]), final=True)
        run.save_points("object", points3d[mask], cameras=state.inner[0], K=camera(state.theta[0])[0])
        write_json(
            run.folder / "poses.json",
            {f"{f.frame}": {"world_to_camera": T, "inlier_share": s, "median_px": m}
             for f, T, s, m in zip(frames, state.inner[0], share, median, strict=True)},
        )  # fmt: skip
        return run.finish(
            converged=bool(state.done.all() and torch.isfinite(state.cost).all()),
            iterations=state.steps,
            loss=state.cost,
            errors={
                "focal_px": state.theta[0, 0].item(),
                "focal_sd_px": sd.item(),
                "inlier_share": share.mean().item(),
                "lowest_inlier_share": share.min().item(),
                "median_px": median.median().item(),
            },
            reference={"focal_px": "703 to 705 (self-calibration with OpenCV; the truth is unknown)", "median_px": 1.20},
            note=f"{len(frames)} frames; no ground truth: figures are fits, not errors",
        )


def ransac_poses(points2d: Tensor, points3d: Tensor, K: Tensor, likely: Tensor, threshold: float) -> Tensor:
    """A pose (V,4,4) for each frame from samples of five matches, drawn with the odds `likely` (V,N)."""
    V, N = likely.shape

    def five_points(index: Tensor) -> Tensor:
        rows = torch.arange(V, device=index.device)[:, None, None]
        x, X = points2d[rows, index].flatten(0, 1), points3d[rows, index].flatten(0, 1)
        pose = pnp(x, X, K).x
        assert isinstance(pose, Tensor)
        return pose.unflatten(0, (V, -1))

    weights, mask = points2d.new_ones(V, N, 2), likely > 0
    data = (points2d, points3d, K.expand(V, 3, 3), K.new_zeros(V, 0), weights, mask)
    found = ransac(
        pnp_problem(), five_points, *data, candidates=likely, size=5, threshold=threshold, hypotheses=128
    )
    assert isinstance(found.x, Tensor)
    return found.x


def inliers(problem: CalibrationProblem, state: NestedState, threshold: float) -> tuple[Tensor, Tensor]:
    """Share of matches within `threshold` px, and the median error of those, per frame. (V,), (V,)."""
    K, distortion = problem.unpack(state.theta[0])
    points3d = problem.points3d.expand(*problem.points2d.shape[:2], 3)
    error = (project(points3d, state.inner[0], K, distortion) - problem.points2d).norm(dim=-1)
    right = (error < threshold) & problem.mask
    share = right.sum(1) / problem.mask.sum(1)
    return share, torch.where(right, error, torch.nan).nanmedian(1).values


def main(config: Config) -> dict:
    return real(config) if config.matches is not None else synthetic(config)


if __name__ == "__main__":
    main(cli(__doc__, PRESETS))
