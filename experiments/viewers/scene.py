"""One frame as what can be drawn anywhere: points, and line segments between points of the world."""

from typing import NamedTuple

import numpy as np

from experiments.drawing.figures import FRUSTUM_EDGES, frusta, value_colors, widest
from experiments.records.recording import Frame, Recording

__all__ = ["Scene", "caption", "has_space", "scene"]

HIDDEN = 0.002  # of the cloud's size: so near to its truth an estimate hides it
TOO_FAR, NEAR = 6.0, 3.5  # radii of the cloud: where one camera is farther than the one, all are drawn within the other


class Scene(NamedTuple):
    """All finite, in world units; each may be empty. colors (N,3) uint8, all others float64.

    points (N,3), truth (T,3); segments (S,2,3): residuals (from a point to its truth), edges, and the frusta of cameras
    and cameras_gt. Truth that its estimate hides is left out. drawn_near: so far away are the cameras that each is
    drawn on its line of sight, nearer and smaller.
    """

    points: np.ndarray
    colors: np.ndarray
    truth: np.ndarray
    residuals: np.ndarray
    edges: np.ndarray
    cameras: np.ndarray
    cameras_gt: np.ndarray
    drawn_near: bool

    @property
    def is_empty(self) -> bool:
        return len(self.points) + len(self.truth) + len(self.cameras) + len(self.cameras_gt) == 0


def has_space(recording: Recording) -> bool:
    """Whether the last frame has points or cameras, i.e. more than curves or image points."""
    return bool(recording.frames) and not scene(recording, -1).is_empty


def scene(recording: Recording, index: int) -> Scene:
    """Frame number `index`. A point has its image's colour, or one by its place, that of its truth if it has one."""
    frame = recording.frames[index]
    stage, points = recording.stages[frame.stage], recording.points3d(frame)
    known = np.isfinite(points).all(1)
    truth = points[:0] if stage.points3d_gt is None else stage.points3d_gt
    paired = truth.shape == points.shape
    placed = truth if paired else points
    colors = stage.colors
    if colors is None or len(colors) != len(points):
        colors = value_colors(placed[:, widest(placed)]) if known.any() else np.zeros(points.shape, np.uint8)
    edges = np.zeros((0, 2), int) if stage.edges is None or stage.edges.max(initial=-1) >= len(points) else stage.edges
    middle, radius = _extent(_finite(placed))
    poses = [frame.world_to_camera, stage.world_to_camera_gt]
    corners = [np.zeros((0, 5, 3)) if p is None else frusta(p, placed, recording.K(frame)) for p in poses]
    (cameras, cameras_gt), drawn_near = _near(corners, middle, radius)
    residuals = np.zeros((0, 2, 3))
    if paired:
        shown = ~(np.linalg.norm(points - truth, axis=1) < HIDDEN * radius)  # nan is shown: the truth, that is
        residuals, truth = np.stack([points, truth], axis=1)[shown], truth[shown]
    if cameras.shape == cameras_gt.shape:
        cameras_gt = cameras_gt[~(np.abs(cameras - cameras_gt) < HIDDEN * radius).all((1, 2))]
    segments = [residuals, points[edges], *(c[:, FRUSTUM_EDGES].reshape(-1, 2, 3) for c in (cameras, cameras_gt))]
    residuals, edges, cameras, cameras_gt = map(_finite, segments)
    return Scene(points[known], colors[known], _finite(truth), residuals, edges, cameras, cameras_gt, drawn_near)


def _finite(values: np.ndarray) -> np.ndarray:
    """Those of the points (N,3), or of the segments (N,2,3), that are finite."""
    return values[np.isfinite(values).all(axis=tuple(range(1, values.ndim)))]


def _extent(cloud: np.ndarray) -> tuple[np.ndarray, float]:
    """Middle (3,) of points (N,3), and the radius around it that holds 90 % of them; 0 of less than two."""
    if len(cloud) < 2:
        return np.zeros(3), 0.0
    middle = np.median(cloud, axis=0)
    return middle, float(np.percentile(np.linalg.norm(cloud - middle, axis=1), 90))


def _near(corners: list[np.ndarray], middle: np.ndarray, radius: float) -> tuple[list[np.ndarray], bool]:
    """Corners of frusta (V,5,3) so near that the cloud is seen beside them, and whether they were not."""
    away = [np.linalg.norm(c[:, :1] - middle, axis=-1, keepdims=True) for c in corners]
    if radius == 0 or not any((a > TOO_FAR * radius).any() for a in away):
        return corners, False
    shrink = [np.minimum(1, NEAR * radius / np.maximum(a, radius)) for a in away]
    return [middle + (c - middle) * s for c, s in zip(corners, shrink, strict=True)], True


def caption(recording: Recording, index: int) -> str:
    """Which iteration it is, how much there is to see, and how far it is from the truth or from the images."""
    frame, seen = recording.frames[index], scene(recording, index)
    cameras = 0 if frame.world_to_camera is None else len(frame.world_to_camera)
    said = [f"iteration {frame.step}"] if recording.is_run else []
    said += [
        f"{n:,} {what}{'s' if n > 1 else ''}" for n, what in ((len(seen.points), "point"), (cameras, "camera")) if n
    ]
    return ", ".join(said + ["cameras drawn nearer"] * seen.drawn_near + _error(recording, frame))


def _error(recording: Recording, frame: Frame) -> list[str]:
    stage, points = recording.stages[frame.stage], recording.points3d(frame)
    if stage.points3d_gt is not None and stage.points3d_gt.shape == points.shape and np.isfinite(points).all(1).any():
        return [f"rms distance to the truth {_rms(points - stage.points3d_gt):.3g} scene units"]
    if frame.points2d is not None and stage.points2d_gt is not None and stage.points2d_gt.shape == frame.points2d.shape:
        return [f"rms distance to the target {_rms(frame.points2d - stage.points2d_gt):.3g} px"]
    if frame.error_px is not None and np.isfinite(frame.error_px).any():
        return [f"median error {np.nanmedian(frame.error_px):.3g} px"]
    return []


def _rms(vectors: np.ndarray) -> float:
    """Root mean square length of those of the vectors (N,k) that are finite."""
    return float(np.sqrt(np.square(_finite(vectors)).sum(-1).mean()))
