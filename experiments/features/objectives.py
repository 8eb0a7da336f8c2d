"""What a rendered scene's truth says of refined keypoints: losses to learn from, without a label on any pixel."""

import torch
from torch import Tensor

from experiments.features.network import Refined
from experiments.features.tracked import ROBUST_PX, Made, adjusted, residuals
from geometry import se3

__all__ = ["pose_loss", "residual_loss"]

_FARTHEST_PX = 1.0
"""How far a point must be off its surface to count as little more than one that is farther."""


def pose_loss(made: Made, refined: Refined) -> Tensor:
    """Log of the errors of cameras and points that a bundle finds from refined keypoints: through the bundle.

    Its start are the true cameras, and its gauge is the start's, so that what it finds needs no alignment. Turns and
    shifts of cameras are taken as so many px, and points by how far they lie off the surface that the camera that saw
    them first looks at through them.
    """
    truth = made.world_to_camera_gt
    tracked = made.tracked._replace(world_to_camera=truth)
    solution = adjusted(tracked, *refined)
    pose, points3d = solution.x.world_to_camera, solution.x.points3d
    f, centres = tracked.K[0, 0], se3.centre(truth)
    distance = (tracked.points3d.mean(0) - centres).norm(dim=-1)
    turns = f * se3.log(pose[:, :3, :3] @ truth[:, :3, :3].mT)
    shifts = f * (se3.centre(pose) - centres) / distance[:, None]
    cameras = (turns.square() + shifts.square()).sum(-1).mean()
    first = torch.full((len(points3d),), len(truth) - 1).scatter_reduce(0, tracked.point, tracked.camera, "amin")
    with torch.no_grad():
        towards = points3d - centres[first]
        away, normal = made.solids.along(centres[first], towards)
        there = away.isfinite()
        surface = centres[first] + torch.where(there, away, 1)[:, None] * towards
    off = f / distance[first] * ((points3d - surface) * normal).sum(-1)
    points = torch.log1p((off[there] / _FARTHEST_PX).square()).mean()
    return 0.5 * (cameras + 1e-6).log() + 0.5 * (points + 1e-6).log()


def residual_loss(made: Made, refined: Refined) -> Tensor:
    """Negative log-likelihood of refined keypoints, where cameras are held at the truth and the points found alone.

    A weight is that of Cauchy's distribution in the plane. Points take three of a track's 2 n numbers with them: so
    much less tell its weights.
    """
    solution = adjusted(made.tracked, *refined, poses=made.world_to_camera_gt)
    off = residuals(made.tracked, solution, refined.points2d).square().sum(-1)
    count = torch.bincount(made.tracked.point)[made.tracked.point]
    told = 1 - 1.5 / count
    return (1.5 * torch.log1p(off * (refined.weights / ROBUST_PX).square()) - 2 * told * refined.weights.log()).mean()
