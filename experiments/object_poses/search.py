"""Where an object is in a picture, by nothing but the estimator of its pose: no detector, but a way to do without one.

Crops of several sizes from all over the picture go through the network, and the one whose heatmaps are narrowest wins:
it has seen the object only about the middle of crops, and knows it there. From then on the box follows the pose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datasets.objects.layout import Box, Instance
from experiments.object_poses.estimator import Estimated, PoseEstimator
from geometry import project

__all__ = ["search"]

# What training's shifts and zooms have taught the network to bear, with a little more.
_STRIDE = 1 / 3  # of a box's side
_ZOOM = 1.4
_LEAST = 6  # the smallest boxes' part of the picture's shorter side
_ROUNDS = 3
_GROWN = 1.1  # the keypoints' box into the object's: measured, without it boxes shrink round by round


def search(estimator: PoseEstimator, picture: np.ndarray, asked: Instance) -> Box:
    """The box (x, y, w, h) px of the object of `asked`, taken to be once in the picture (H,W,3) uint8, of its K.

    It is found between a sixth of the picture's shorter side and all of it, and wherever the estimator is surest where
    it is nowhere: 750 crops of a picture of 4:3, two or three seconds with the default network on one core.
    """
    import cv2

    height, width = picture.shape[:2]
    factor = max(int(min(height, width) / (_LEAST * estimator.setup.size)), 1)  # finer than the finest crop
    size = width // factor, height // factor
    small = cv2.resize(picture[: size[1] * factor, : size[0] * factor], size, interpolation=cv2.INTER_AREA)
    reduce = np.array([[1 / factor, 0, (1 / factor - 1) / 2], [0, 1 / factor, (1 / factor - 1) / 2], [0, 0, 1]])
    asked = asked._replace(K=reduce @ asked.K)

    def estimates(boxes: Sequence[Box]) -> list[Estimated]:
        asked_for = [asked._replace(box=box) for box in boxes]
        return list(estimator.estimate(asked_for, views=1, read=lambda _: small))

    boxes = _boxes(*size)
    found, box = max(zip(estimates(boxes), boxes, strict=True), key=lambda one: one[0].estimate.score)
    for _ in range(_ROUNDS):
        following = _following(estimator, asked, found)
        if following is None or not _near(following, box):
            break
        box = following
        (found,) = estimates([box])
    x, y, w, h = (value * factor for value in box)
    return x + (factor - 1) / 2, y + (factor - 1) / 2, w, h


def _boxes(width: int, height: int) -> list[Box]:
    """Square boxes of all sizes all over the picture, out of it by a tenth of their side."""
    boxes: list[Box] = []
    side = min(width, height) / _LEAST
    while side <= 1.01 * min(width, height):
        xs, ys = (
            np.linspace(-0.1 * side, whole - 0.9 * side, int(np.ceil((whole - 0.8 * side) / (_STRIDE * side))) + 1)
            for whole in (width, height)
        )
        boxes += [(float(x), float(y), side, side) for x in xs for y in ys]
        side *= _ZOOM
    return boxes


def _following(estimator: PoseEstimator, asked: Instance, found: Estimated) -> Box | None:
    """The box of the model's keypoints in its pose, grown; None where there is no pose, or one behind the camera."""
    pose = torch.from_numpy(found.estimate.pose)
    points3d = estimator.keypoints3d[estimator.objects.index(asked.object)].cpu()
    points2d = project(points3d, pose, torch.from_numpy(asked.K))
    depth = points3d @ pose[2, :3] + pose[2, 3]
    if not (bool(torch.isfinite(points2d).all()) and bool((depth > 0).all())):
        return None
    low, high = points2d.amin(0), points2d.amax(0)
    w, h = (_GROWN * (high - low)).tolist()
    x, y = ((low + high) / 2).tolist()
    return x - w / 2, y - h / 2, w, h


def _near(following: Box, box: Box) -> bool:
    """Whether it is a correction, and no jump to elsewhere."""
    (centre, side), (old_centre, old_side) = (
        (np.array([x + w / 2, y + h / 2]), max(w, h)) for x, y, w, h in (following, box)
    )
    return 0.4 * old_side < side < 2.5 * old_side and float(np.linalg.norm(centre - old_centre)) < old_side
