"""How good keypoints are: residuals under the true cameras, and the poses that a bundle finds from them."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from experiments.features.network import Refined
from experiments.features.tracked import Tracked, adjusted, residuals
from experiments.structure.incremental import compare
from geometry import se3

__all__ = ["Judged", "corners", "halves_differ", "judge", "relative_rotation"]


class Judged(NamedTuple):
    """residual_px (M,) of observations from their points, which the true cameras see best; rotation_deg: rms of the
    relative rotations of all pairs of cameras; aligned_deg: median rotation, centres laid onto the true ones;
    centre_share: median distance of these, over the largest between two; bundle_rms in px; converged."""

    residual_px: Tensor
    rotation_deg: float
    aligned_deg: float
    centre_share: float
    bundle_rms: float
    converged: bool


@torch.no_grad()
def judge(tracked: Tracked, refined: Refined, world_to_camera_gt: Tensor) -> Judged:
    """Bundles of refined keypoints, compared with the true cameras (V,4,4)."""
    known = adjusted(tracked, *refined, poses=world_to_camera_gt)
    found = adjusted(tracked, *refined)
    pose = found.x.world_to_camera
    aligned, centre = compare(pose, world_to_camera_gt)
    return Judged(
        residuals(tracked, known, refined.points2d).norm(dim=-1),
        relative_rotation(pose, world_to_camera_gt),
        aligned.median().item(),
        centre.median().item(),
        residuals(tracked, found, refined.points2d).square().sum(-1).mean().sqrt().item(),
        bool(found.converged.all()),
    )


def relative_rotation(one: Tensor, other: Tensor) -> float:
    """Root mean square angle in degrees between the relative rotations of cameras (V,4,4), over all pairs: whatever the
    frames are in which they stand."""
    turn = one[:, :3, :3].mT @ other[:, :3, :3]
    i, j = torch.combinations(torch.arange(len(turn))).T
    return se3.rotation_angle(turn[i] @ turn[j].mT).square().mean().sqrt().rad2deg().item()


@torch.no_grad()
def halves_differ(tracked: Tracked, refined: Refined, times: int) -> float:
    """Standard deviation of `relative_rotation` from what is random in keypoints: bundles of two halves of the tracks
    differ by twice as much as one of them all is off. What all tracks have in common is not in it."""
    generator = torch.Generator().manual_seed(0)
    squares = 0.0
    for _ in range(times):
        order = torch.randperm(len(tracked.points3d), generator=generator)
        poses = []
        for half in order.chunk(2):
            few, kept = tracked.of(half)
            poses.append(adjusted(few, *(value[kept] for value in refined)).x.world_to_camera)
        squares += (relative_rotation(*poses) / 2) ** 2
    return (squares / times) ** 0.5


def corners(tracked: Tracked) -> Refined:
    """OpenCV's cornerSubPix of each observation, where it stays within a pixel."""
    x = tracked.points2d.clone()
    for v, picture in enumerate(tracked.pictures):
        here = (tracked.camera == v).nonzero().flatten()
        if len(here):
            start = np.array(tracked.points2d[here].numpy()[:, None], np.float32)  # with the strides that OpenCV wants
            stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 40, 1e-3)
            found = cv2.cornerSubPix(np.ascontiguousarray(picture.numpy()), start, (5, 5), (-1, -1), stop)
            x[here] = torch.from_numpy(found[:, 0]).double()
    near = (x - tracked.points2d).norm(dim=-1, keepdim=True) < 1
    return Refined(torch.where(near, x, tracked.points2d), torch.ones_like(x[:, 0]))
