"""Where poses put an object in a picture, drawn into it: outline, box, axes and keypoints; and sheets of such pictures.

Estimates are blue and truths orange, as in all figures. Lengths in mm, poses object to camera, (0, 0) the centre of the
top-left pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.drawing.figures import BLUE, ORANGE, rgb

if TYPE_CHECKING:
    from datasets.objects.layout import Model

__all__ = ["overlay", "sheet"]

Color = tuple[int, int, int]

DARK: Color = (30, 30, 34)
LIGHT: Color = (255, 255, 255)
AXES: tuple[Color, ...] = ((215, 25, 30), (0, 140, 40), (95, 50, 200))  # x, y, z
LEAST_SIDE = 480
"""Pictures whose longer side is shorter are enlarged by a whole number, or lines would hide what they are about."""
_SHIFT = 4  # binary places of a pixel in cv2's coordinates
_FARTHEST = 2**14  # pixels: beyond, cv2's coordinates overflow


class Line(NamedTuple):
    """points (N,2) in pixels, NaN where there is nothing to draw."""

    points: np.ndarray
    color: Color
    thickness: int
    closed: bool = False


def overlay(
    image: np.ndarray,
    model: Model,
    pose: np.ndarray,
    K: np.ndarray,
    pose_gt: np.ndarray | None = None,
    keypoints2d: np.ndarray | None = None,
) -> np.ndarray:
    """The picture (H,W,3) uint8, RGB, with the object where `pose` (4,4) and `pose_gt` put it; a new array.

    Outline and box of either, the axes of `pose`, and keypoints2d (N,2) in pixels of the picture, as found. A pose that
    is not finite is not drawn, nor is what lies behind the camera. Small pictures come back a whole number of times as
    large (320x240 as 640x480).

    Raises ValueError for an image, a pose, a K or keypoints of another shape or dtype.
    """
    import cv2

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: uint8 of shape (H, W, 3) wanted, found {image.dtype} of shape {image.shape}")
    for name, value, shape in (("pose", pose, (4, 4)), ("pose_gt", pose_gt, (4, 4)), ("K", K, (3, 3))):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name}: shape {shape} wanted, found {value.shape}")
    if keypoints2d is not None and (keypoints2d.ndim != 2 or keypoints2d.shape[1] != 2):
        raise ValueError(f"keypoints2d: shape (N, 2) wanted, found {keypoints2d.shape}")
    height, width = image.shape[:2]
    scale = max(1, -(-LEAST_SIDE // max(height, width)))
    enlarge = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])  # about pixels' corners
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    K = enlarge @ K
    size = canvas.shape[1], canvas.shape[0]
    drawn = [(some, color) for some, color in ((pose_gt, ORANGE), (pose, BLUE)) if some is not None]
    drawn = [(some, color) for some, color in drawn if np.isfinite(some).all()]
    boxes = [
        Line(_project(edge, some, K), _color(color), 1) for some, color in drawn for edge in _box(model.mesh.vertices)
    ]
    outlines = [
        Line(points, _color(color), 2, closed=True)
        for some, color in drawn
        for points in _outlines(model, some, K, size)
    ]
    axes = _axes(0.4 * model.diameter, pose, K)
    rims = canvas.copy()
    for line in outlines + axes:
        _draw(rims, line._replace(color=LIGHT, thickness=line.thickness + 2))
    canvas = cv2.addWeighted(rims, 0.6, canvas, 0.4, 0)
    for line in boxes + outlines + axes:
        _draw(canvas, line)
    for line, letter in zip(axes, "xyz", strict=False):
        if _drawable(line.points):
            x, y = (int(value) for value in np.rint(line.points[1]) + 4)
            for ink, thickness in ((LIGHT, 3), (line.color, 1)):
                cv2.putText(canvas, letter, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, ink, thickness, cv2.LINE_AA)
    if keypoints2d is not None:
        for point in keypoints2d @ enlarge[:2, :2] + enlarge[:2, 2]:
            if _drawable(point):
                x, y = (int(value) for value in np.rint(point * 2**_SHIFT))
                for radius, ink in ((4, LIGHT), (3, _color(BLUE))):
                    cv2.circle(canvas, (x, y), radius << _SHIFT, ink, -1, cv2.LINE_AA, _SHIFT)
    return canvas


def sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 4) -> np.ndarray:
    """Pictures (H,W,3) uint8 side by side on white, `columns` in a row, each with its caption (ASCII) below it.

    Raises ValueError for no images, other than one caption an image, and no columns.
    """
    import cv2

    if not images or len(captions) != len(images) or columns < 1:
        wanted = "images, one at least, a caption for each, and one column at least"
        raise ValueError(f"{wanted}, wanted; found {len(images)}, {len(captions)} and {columns}")
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    margin, line = 6, 30
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = np.full((rows * (height + line) + margin, columns * (width + margin) + margin, 3), 255, np.uint8)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        top, left = margin + i // columns * (height + line), margin + i % columns * (width + margin)
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
        (across, _), _ = cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, 1, 1)
        size = min(0.6, width / max(across, 1))
        at = (left, top + height + 20)
        cv2.putText(canvas, caption, at, cv2.FONT_HERSHEY_SIMPLEX, size, DARK, 1, cv2.LINE_AA)
    return canvas


def _color(name: str) -> Color:
    red, green, blue = (int(value) for value in rgb(name))
    return red, green, blue


def _project(points: np.ndarray, pose: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Pixels (N,2) of points (N,3); NaN behind the camera."""
    x, y, z = K @ (pose[:3, :3] @ points.T + pose[:3, 3:])
    z = np.where(z > 0, z, np.nan)
    return np.stack([x / z, y / z], -1)


def _box(vertices: np.ndarray) -> list[np.ndarray]:
    """The twelve edges (2,3) of the box around vertices, along the object's axes."""
    ends = np.stack([vertices.min(0), vertices.max(0)])
    corners = [np.array([i, j, k]) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    pairs = [pair for pair in combinations(corners, 2) if np.abs(pair[0] - pair[1]).sum() == 1]
    return [np.stack([ends[corner, [0, 1, 2]] for corner in pair]) for pair in pairs]


def _outlines(model: Model, pose: np.ndarray, K: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Edges of the silhouette, holes included, as closed lines (N,2) in pixels."""
    import cv2

    from datasets.objects.rendering import render_depth

    depth, _ = render_depth([model.mesh], pose[None], K, size)
    contours, _ = cv2.findContours((depth > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    points = [contour[:, 0].astype(float) for contour in contours if len(contour) > 8]
    return [np.mean([np.roll(some, k, axis=0) for k in range(-2, 3)], axis=0) for some in points]  # less of a staircase


def _axes(length: float, pose: np.ndarray, K: np.ndarray) -> list[Line]:
    if not np.isfinite(pose).all():
        return []
    ends = _project(np.concatenate([np.zeros((1, 3)), length * np.eye(3)]), pose, K)
    return [Line(ends[[0, i]], color, 2) for i, color in enumerate(AXES, start=1)]


def _drawable(points: np.ndarray) -> bool:
    """Whether points (…,2) are before the camera, and not so far off that cv2 could not count the pixels."""
    return bool((np.abs(points) < _FARTHEST).all())


def _draw(canvas: np.ndarray, line: Line) -> None:
    import cv2

    if _drawable(line.points):
        points = np.rint(line.points * 2**_SHIFT).astype(np.int32)[:, None]
        cv2.polylines(canvas, [points], line.closed, line.color, line.thickness, cv2.LINE_AA, _SHIFT)
