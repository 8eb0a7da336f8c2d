"""A run's TensorBoard events: what its dashboards show without any setting."""

import itertools
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, scalar

from experiments.drawing.figures import BLUE, FRUSTUM_EDGES, GREY, ORANGE, centres, frusta, rgb, value_colors, widest
from experiments.records.recording import Frame, Stage, is_recorded, upward

FARTHEST = 0.8  # sizes of the cloud at which a camera is shown
SPACING = 0.02  # sizes of the cloud between the dots of a line
AXIS_COLORS = ("#B4474B", "#4B9B5A", "#4B6FB4")  # x, y, z


class _Events:
    """A file of events that is written where it is told to.

    SummaryWriter hands them to a thread, for which `close` waits two minutes or for ever after an untimely Ctrl-C.
    """

    _number = itertools.count()

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        parts = f"{time.time():010.0f}", socket.gethostname(), str(os.getpid()), str(next(self._number))
        self._file = (folder / ".".join(["events.out.tfevents", *parts])).open("wb")
        self._records = RecordWriter(self._file)
        self.add(None, file_version="brain.Event:2")
        self.flush()

    def add(self, step: int | None, **what: Any) -> None:
        """One event: keywords are those of its protocol buffer."""
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), step=step, **what).SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Board:
    """Writes one run's events; `purge_step`: the first step that a resumed run computes again.

    Every scalar becomes a point; of pictures TensorBoard loads the last and nine drawn at random, unless it is told
    `--samples_per_plugin images=0`.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        # 0 drops nothing, but one of TensorBoard's readers takes only a second such mark for a resumed run's
        self._events = _Events(folder)
        self._events.add(purge_step or 0, session_log=SessionLog(status=SessionLog.START))
        self._step = 0
        self._scenes: dict[int, _Scene] = {}
        self._shown: dict[int, int] = {}
        self._held: tuple[Stage, Frame] | None = None

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._release()
        self._events.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The loss on top, all others in one group."""
        self._step = max(self._step, step)
        for name, value in values.items():
            self._add(scalar(name if name == "loss" else f"metrics/{name}", value), step)

    def picture(self, name: str, step: int, png: bytes) -> None:
        """An image that is encoded already."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # where a PNG says so
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._add(Summary(value=[Summary.Value(tag=f"pictures/{name}", image=image)]), step)

    def hyperparameters(self, chosen: Mapping[str, Any], final: Mapping[str, float], step: int) -> None:
        """What was chosen, in a table beside the last values of all scalars, which `final` becomes.

        add_hparams would make a second run of it. The list of names that it writes stays away: TensorBoard would take
        one run's for those of all.
        """
        _, start, end = hparams(dict(chosen), {})
        self._add(start, None)
        self._add(end, None)
        self.scalars(max(step, self._step), final)

    def frame(self, stage: Stage, frame: Frame) -> None:
        """One more frame for the mesh plugin, under the stage's name.

        TensorBoard loads at most 100 frames, drawn at random: a stage's first 32 are sent, then fewer and fewer, and
        its last, which waits until the next stage or `close`.
        """
        if self._held and self._held[1].stage != frame.stage:
            self._release()
        count = self._shown[frame.stage] = self._shown.get(frame.stage, -1) + 1
        self._held = (stage, frame)
        if is_recorded(count, 32):
            self._release()

    def _release(self) -> None:
        if self._held:
            self._show(*self._held)
        self._held = None

    def _show(self, stage: Stage, frame: Frame) -> None:
        """Points, truth, lines, cameras and axes: the plugin has nothing but points under a tag, so lines are dotted.

        The middle of the cloud becomes the origin. A camera more than FARTHEST sizes of the cloud away from it is shown
        on its line of sight, so far away.
        """
        points = stage.points3d if frame.points3d is None else frame.points3d
        if points is None or not np.isfinite(points).all(1).any():
            return
        placed = points if stage.points3d_gt is None else stage.points3d_gt
        if frame.stage not in self._scenes:
            self._scenes[frame.stage] = _scene(stage, frame, placed)
        scene = self._scenes[frame.stage]
        K = stage.K if frame.K is None else frame.K

        known = np.isfinite(points).all(1)
        colors = value_colors(placed[:, scene.axis]) if stage.colors is None else stage.colors
        layers = [] if stage.edges is None else [(_dotted(points[stage.edges], scene.size), rgb(GREY))]
        if stage.points3d_gt is not None:
            layers.append((stage.points3d_gt, rgb(ORANGE)))
        layers.append((points[known], colors[known]))  # after the truth, which it covers where they agree
        for cameras, color in ((stage.world_to_camera_gt, ORANGE), (frame.world_to_camera, BLUE)):
            if cameras is not None:
                corners = frusta(_nearer(cameras, scene), scene.middle[None], K)
                layers.append((_dotted(corners[:, FRUSTUM_EDGES].reshape(-1, 2, 3), scene.size), rgb(color)))
        axes = scene.middle + 0.6 * scene.size * np.stack([np.zeros((3, 3)), np.eye(3)], axis=1)
        layers += [(_dotted(axis[None], scene.size), rgb(c)) for axis, c in zip(axes, AXIS_COLORS, strict=True)]

        vertices = np.concatenate([layer for layer, _ in layers]) - scene.middle
        colors = np.concatenate([np.broadcast_to(color, layer.shape) for layer, color in layers])
        tag = stage.name or "points"
        self._add(_mesh(tag, (vertices @ scene.turn.T).astype(np.float32), colors, scene.config), frame.step)

    def _add(self, summary: Any, step: int | None) -> None:
        self._events.add(step, summary=summary)


@dataclass(frozen=True)
class _Scene:
    """How a stage is seen, as its first frame decides: TensorBoard reads no later configuration.

    turn (3,3): to the plugin's axes, y up and z towards the viewer. axis: the one that colours tell.
    """

    middle: np.ndarray
    size: float
    turn: np.ndarray
    axis: int
    config: str


def _scene(stage: Stage, frame: Frame, placed: np.ndarray) -> _Scene:
    cameras = frame.world_to_camera if stage.world_to_camera_gt is None else stage.world_to_camera_gt
    known = placed[np.isfinite(placed).all(1)]
    middle = np.median(known, axis=0)
    size = 2 * float(np.percentile(np.linalg.norm(known - middle, axis=1), 90)) or 1.0
    up = upward(cameras)
    front, away, above = np.eye(3)[np.abs(up).argmin()], 2.6 * size, 0.35
    if cameras is not None:  # seen from their side, if they have one
        away = 3.3 * size
        offset = centres(cameras).mean(0) - middle
        above = float(np.copysign(above, offset @ up))
        side = np.cross(np.cross(up, offset), up)
        front = side if np.linalg.norm(side) > 0.1 * size else front
    right = np.cross(up, front)
    right /= np.linalg.norm(right)
    config = {
        "camera": {
            "fov": 30,
            "near": 0.01 * size,
            "position": [0.45 * away, above * away, 0.82 * away],
            "lookAt": [0, 0, 0],
        },
        "material": {"size": float(np.clip(14 / len(placed) ** 0.25, 2, 5)), "sizeAttenuation": False},  # pixels
    }
    return _Scene(middle, size, np.stack([right, up, np.cross(right, up)]), widest(placed), json.dumps(config))


def _mesh(tag: str, vertices: np.ndarray, colors: np.ndarray, config: str) -> Any:
    """The summary that add_mesh would make, from arrays: it makes a Python number of every coordinate."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.mesh import metadata
    from tensorboard.plugins.mesh.plugin_data_pb2 import MeshPluginData
    from tensorboard.util.tensor_util import make_tensor_proto

    parts = {MeshPluginData.VERTEX: vertices[None], MeshPluginData.COLOR: colors[None]}
    components = metadata.get_components_bitmask(list(parts))
    return Summary(
        value=[
            Summary.Value(
                tag=metadata.get_instance_name(tag, kind),
                tensor=make_tensor_proto(part),
                metadata=metadata.create_summary_metadata(tag, None, kind, components, part.shape, json_config=config),
            )
            for kind, part in parts.items()
        ]
    )


def _nearer(world_to_camera: np.ndarray, scene: _Scene) -> np.ndarray:
    """The cameras (V,4,4), those that are too far away moved towards the middle of the cloud."""
    offsets = centres(world_to_camera) - scene.middle
    away = np.linalg.norm(offsets, axis=1, keepdims=True)
    nearer = scene.middle + offsets * np.minimum(1, FARTHEST * scene.size / np.maximum(away, 1e-300))
    moved = world_to_camera.copy()
    moved[:, :3, 3] = -np.einsum("vij,vj->vi", moved[:, :3, :3], nearer)
    return moved


def _dotted(segments: np.ndarray, size: float) -> np.ndarray:
    """Points along the segments (S,2,3), evenly spaced on each of them; none where an end is not known."""
    segments = segments[np.isfinite(segments).all((1, 2))]
    steps = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1) / (SPACING * size)
    counts = np.clip(np.ceil(steps), 2, 64).astype(int)
    start, along = np.repeat(segments[:, 0], counts, 0), np.repeat(segments[:, 1] - segments[:, 0], counts, 0)
    index = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return start + along * (index / np.repeat(counts - 1, counts))[:, None]
