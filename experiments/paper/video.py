"""Poses of a known object in video frames from 2D-3D matches, many of them wrong, the focal length unknown.

RANSAC over PnP gives each frame a start at a guessed focal length (the longer image side); then the focal length is
learned through robust PnP of all frames at once, the poses being inner unknowns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datasets import locate
from datasets.images.matches import FrameMatches, read_box_matches
from experiments.drawing.figures import trajectories
from experiments.paper.learning import GaussNewton
from experiments.records.files import write_json
from experiments.records.quantities import Quantity
from experiments.running.config import RunConfig
from experiments.running.determined import is_loose
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from geometry import Status, geman_mcclure, pnp, pnp_ransac, project
from geometry.camera import matrix_from_intrinsics
from geometry.reconstruction import CalibrationProblem

__all__ = ["VideoConfig", "video"]

OPENCV = {
    "focal_px": "624 (OpenCV, on the inliers found here)",
    "inlier_share": "0.58 (OpenCV)",
    "median_px": "1.20 (OpenCV)",
}
"""What OpenCV makes of the matches of the shared box."""

LEAST = 6
"""Matches of a frame that must fit its pose: twice as many as can be made to."""


@dataclass(frozen=True)
class VideoConfig(RunConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts("with --matches", ("image_size", "inlier"), lambda config: config.matches is not None),
    )
    names_data: ClassVar[tuple[str, ...]] = ("matches",)

    iterations: int = 50
    """Limits the number of steps."""
    matches: Path | None = None
    """Names a file or folder of 2D-3D matches (datasets/images/matches.py); `box_pnp` is found in the shared data."""
    image_size: tuple[int, int] = (640, 480)
    """Gives the width and height of the images of `matches`."""
    inlier: float = 4.0
    """Sets the pixels within which a match counts as right."""


@experiment("pose_estimation", lambda config: read_box_matches(locate.locate(str(config.matches))))
def video(run: Run, config: VideoConfig, frames: Sequence[FrameMatches]) -> dict:
    """Learn the focal length of all frames, and write each one's pose to poses.json."""
    from experiments.viewers.picture import picture  # a viewer: not before there is a run

    def padded(tensors: list[Tensor]) -> Tensor:
        return pad_sequence(tensors, batch_first=True).to(run.device, run.dtype)

    points2d, points3d = padded([f.points2d for f in frames]), padded([f.points3d for f in frames])
    # Lowe's ratio, best over second-best descriptor distance: the smaller, the likelier right
    likely = padded([(1 - f.ratio).clamp_min(0.02) ** 2 for f in frames])
    mask = likely > 0
    width, height = config.image_size

    def camera(theta: Tensor) -> tuple[Tensor, Tensor]:
        centre = theta.new_tensor([(width - 1) / 2, (height - 1) / 2])
        return matrix_from_intrinsics(torch.cat([theta, theta, centre])), theta.new_zeros(0)

    def start() -> tuple[Tensor, Tensor]:
        theta = points2d.new_tensor([max(width, height)])
        K, threshold = camera(theta)[0], 2 * config.inlier
        return theta[None], pnp_ransac(points2d, points3d, K, mask=mask, candidates=likely, threshold=threshold).x[None]

    run.stage(points3d=points3d[mask].unique(dim=0), image_size=torch.tensor(config.image_size))
    problem = CalibrationProblem(points2d, points3d, mask, camera, kernel=geman_mcclure(config.inlier))
    learning = GaussNewton(run, problem, start)
    for step in learning.steps(config.iterations):
        share, median = inliers(problem, learning.prediction, learning.poses, config.inlier)
        run.log(step, loss=learning.losses[-1], focal_px=learning.prediction.item(), inlier_share=share.mean())
        if run.records(step):
            run.frame(step, world_to_camera=learning.poses, K=camera(learning.prediction)[0])

    state, poses, last = learning.state, learning.poses, len(learning.history)
    K = camera(learning.prediction)[0]
    run.frame(last, world_to_camera=poses, K=K)
    share, median = inliers(problem, learning.prediction, poses, config.inlier)
    deviation = problem.covariance(state.theta, state.inner)[0, 0].sqrt()
    run.figure("scene", last, picture(run.recorded()), final=True)
    run.figure("focal", last, trajectories(torch.stack(learning.history), ["f (px)"]), final=True)
    run.save_points("object", points3d[mask], cameras=poses, K=K[None])
    told = [
        {"frame": f.frame, "world_to_camera": pose, "inlier_share": s.item(), "median_px": m.item()}
        for f, pose, s, m in zip(frames, poses, share, median, strict=True)
    ]
    write_json(run.folder / "poses.json", told)
    reference = OPENCV if str(config.matches) == "box_pnp" else {}
    return run.finish(
        converged=bool(state.done.all() and torch.isfinite(state.cost).all()),
        goal="focal length and poses at the minimum of the robust error",
        found={"focal length": Quantity(state.theta.item(), deviation.item(), "px", reference.get("focal_px"))},
        undetermined=undetermined(frames, problem, learning.prediction, poses, deviation.item(), config.inlier),
        iterations=state.steps,
        loss=state.cost.item(),
        errors={
            "focal_px": state.theta.item(),
            "focal_deviation_px": deviation.item(),
            "inlier_share": share.mean().item(),
            "lowest_inlier_share": share.min().item(),
            "median_px": median.median().item(),
        },
        reference=reference,
        picture="scene",
        note=f"{len(frames)} frames; there is no ground truth: the figures are fits, not errors",
    )


def undetermined(
    frames: Sequence[FrameMatches],
    problem: CalibrationProblem,
    theta: Tensor,
    poses: Tensor,
    deviation: float,
    threshold: float,
) -> list[str]:
    """Sentences on a focal length theta (1,) px whose deviation is too large, and on poses (V,4,4) that the
    matches within `threshold` px do not determine."""  # fmt: skip
    told = []
    if not math.isnan(deviation) and is_loose(deviation, theta.item()):  # one that is unknown is seen by the run
        told.append(f"The matches hardly tell the focal length: {theta.item():.0f} px, deviation {deviation:.0f} px.")
    K, distortion = problem.unpack(theta)
    error = (project(problem.points3d, poses, K, distortion) - problem.points2d).norm(dim=-1)
    right = (error < threshold) & problem.mask
    status = pnp(problem.points2d, problem.points3d, K, mask=right, init=poses).status
    for frame, some, state in zip(frames, right.sum(1).tolist(), status.tolist(), strict=True):
        if some < LEAST:
            told.append(f"Frame {frame.frame}: {some} matches fit, fewer than the {LEAST} that bear a pose out.")
        elif state in (Status.SINGULAR, Status.TOO_FEW):
            told.append(f"Frame {frame.frame}: the {some} matches that fit determine no pose.")
    return told


def inliers(problem: CalibrationProblem, theta: Tensor, poses: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Share of matches within `threshold` px, and the median error of those, per frame. (V,), (V,)."""
    error = (project(problem.points3d, poses, *problem.unpack(theta)) - problem.points2d).norm(dim=-1)
    right = (error < threshold) & problem.mask
    return right.sum(1) / problem.mask.sum(1), torch.where(right, error, torch.nan).nanmedian(1).values
