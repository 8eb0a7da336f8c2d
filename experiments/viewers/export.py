"""What a recording shows, as files of other programs: PLY, glTF, COLMAP, Rerun, and a video.

Points, scene and model are of the last frame, as `--step` chooses it; video and Rerun's file have all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.files import replacing
from experiments.drawing.figures import BLUE, ORANGE, rgb
from experiments.records.recording import Recording
from experiments.viewers.picture import INK, picture, view
from experiments.viewers.rerun_log import write_rerun
from experiments.viewers.scene import Scene, has_space, scene

if TYPE_CHECKING:
    from datasets.reconstructions.model import Reconstruction

__all__ = ["EXPORTS", "convert", "model", "write_model", "write_points", "write_scene", "write_video"]

FRAMES = 120
"""That a video has at most: the first, the last, and evenly chosen ones between them."""

RATE = 12
"""Frames a second."""

DPI = 100


def write_points(recording: Recording, path: Path) -> None:
    """A PLY of the points that are known, with their colours, and the edges between them where all are."""
    from datasets.ply import write_ply

    seen = scene(recording, -1) if recording.frames else None
    if seen is None or not len(seen.points):
        raise ValueError(f"{recording.title} has no points: a .ply holds nothing else")
    edges = recording.stages[recording.frames[-1].stage].edges
    whole = len(seen.points) == len(recording.points3d(recording.frames[-1]))
    write_ply(path, seen.points, seen.colors, edges if whole and len(seen.edges) else None)


def write_scene(recording: Recording, path: Path) -> None:
    """A binary glTF: points, the truth where it is elsewhere, edges, and cameras as frusta; turned so that y is up."""
    import trimesh

    seen = _spatial(recording)
    seen_from = view(seen, recording.up)
    along, across, up = seen_from.floor
    place = np.eye(4)  # points are kept as float32 about their middle: a far origin would cost digits
    place[:3, :3] = [along, up, -across]
    place[:3, 3] = place[:3, :3] @ seen_from.middle
    made = trimesh.Scene()
    orange = np.broadcast_to(rgb(ORANGE), seen.truth.shape)
    for name, points, colors in (("points", seen.points, seen.colors), ("truth", seen.truth, orange)):
        if len(points):
            cloud = trimesh.PointCloud(points - seen_from.middle, colors=colors)
            made.add_geometry(cloud, geom_name=name, transform=place)
    for name, segments, color in (
        ("edges", seen.edges, INK), ("cameras", seen.cameras, BLUE), ("cameras_truth", seen.cameras_gt, ORANGE),
    ):  # fmt: skip
        if len(segments):
            lines = trimesh.load_path(segments - seen_from.middle)
            lines.colors = np.tile([*rgb(color), 255], (len(lines.entities), 1)).astype(np.uint8)
            made.add_geometry(lines, geom_name=name, transform=place)
    with replacing(path) as temporary:
        temporary.write_bytes(made.export(file_type="glb"))


def write_model(recording: Recording, path: Path) -> None:
    """A COLMAP model, binary, in a folder: cameras, images and points as far as a recording has them."""
    from datasets.reconstructions.colmap import write_colmap

    write_colmap(path, model(recording))


def convert(source: Path, path: Path) -> None:
    """A reconstruction of any format that is read, with its observations, as a COLMAP model."""
    from datasets.reconstructions.colmap import write_colmap
    from datasets.reconstructions.read import read_reconstruction

    write_colmap(path, read_reconstruction(source))


def model(recording: Recording) -> Reconstruction:
    """Cameras and known points of the last frame, without distortion and observations, which no recording has.

    Raises ValueError where it has no camera, or nothing says what its K is.
    """
    import torch

    from datasets.reconstructions.model import Reconstruction

    frame = recording.frames[-1] if recording.frames else None
    poses, K = (None, None) if frame is None else (frame.world_to_camera, recording.K(frame))
    if frame is None or poses is None or K is None:
        raise ValueError(f"{recording.title} has no cameras with intrinsics, of which a COLMAP model consists")
    known = np.isfinite(poses).all((1, 2))
    cameras, index = np.unique(np.broadcast_to(K, (len(poses), 3, 3))[known], axis=0, return_inverse=True)
    stage, points = recording.stages[frame.stage], recording.points3d(frame)
    there, size = np.isfinite(points).all(1), stage.image_size
    none = torch.zeros(0, dtype=torch.int64)
    return Reconstruction(
        world_to_camera=torch.from_numpy(poses[known]),
        points3d=torch.from_numpy(points[there]),
        K=torch.from_numpy(cameras),
        distortion=torch.zeros(len(cameras), 0, dtype=torch.float64),
        intrinsics_index=torch.from_numpy(index.reshape(-1)),
        camera_index=none,
        point_index=none,
        points2d=torch.zeros(0, 2, dtype=torch.float64),
        colors=torch.from_numpy(scene(recording, -1).colors) if stage.colors is not None else None,
        image_sizes=None if size is None else torch.from_numpy(np.tile(size.astype(np.int64), (len(cameras), 1))),
    )


def write_video(recording: Recording, path: Path) -> None:
    """The frames in turn, those of a stage seen from one place: a .gif, or an .mp4 that browsers play (VP9)."""
    _spatial(recording)
    with replacing(path) as temporary:
        (_write_gif if path.suffix.lower() == ".gif" else _write_mp4)(_pictures(recording), temporary)


def _pictures(recording: Recording) -> Iterator[np.ndarray]:
    """Of up to FRAMES frames, (H,W,3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    last = {frame.stage: index for index, frame in enumerate(recording.frames)}
    ends = {stage: scene(recording, index) for stage, index in last.items()}
    count = len(recording.frames)
    for index in sorted({round(i) for i in np.linspace(0, count - 1, min(count, FRAMES))}):
        figure = picture(recording, index, ends[recording.frames[index].stage])
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _write_gif(pictures: Iterator[np.ndarray], path: Path) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(picture) for picture in pictures)
    milliseconds = [1000 // RATE] * len(rest) + [2000]  # the result stays a while
    first.save(path, format="gif", save_all=True, append_images=rest, duration=milliseconds, loop=0)


def _write_mp4(pictures: Iterator[np.ndarray], path: Path) -> None:
    import cv2

    first = next(pictures)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"vp09"), RATE, first.shape[1::-1])
    if not writer.isOpened():
        raise ValueError("this build of OpenCV writes no VP9: choose a .gif")
    for one in chain([first], pictures):
        writer.write(one[..., ::-1])
    writer.release()


def _spatial(recording: Recording) -> Scene:
    if not has_space(recording):
        raise ValueError(f"{recording.title} has neither points nor cameras")
    return scene(recording, -1)


EXPORTS: dict[str, Callable[[Recording, Path], None]] = {
    ".ply": write_points,
    ".glb": write_scene,
    ".gif": write_video,
    ".mp4": write_video,
    ".rrd": write_rerun,
    "": write_model,
}
"""By the end of the name; a folder has none."""
