"""What there is to look at of a run, or of a file of points: written by `Run`, read by every viewer.

A recording is a sequence of frames on a stage. A frame is what moves (points, cameras, image points of one iteration),
a stage is what stays (the truth, colours, what belongs together). Most runs have one stage; one that treats several
targets in turn has as many. In the run's folder they are files that appear whole or not at all, so that a viewer may
read while the run goes on:

    recording/stage-000.npz
    recording/frame-00000000.npz ...

Every array is float64 once it is read. Files hold points of the world as float32 about a `centre` amid them, which is
finer than a screen however far they are from the origin, cameras as float64, and other numbers as float32. World frame
and units are the scene's own; cameras are world_to_camera (4,4) with OpenCV's axes (x right, y down, z forward), K and
image points px.
"""

import csv
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import replacing
from experiments.drawing.figures import centres
from experiments.records.files import read_summary

__all__ = [
    "Frame",
    "Recording",
    "Stage",
    "add_frame",
    "add_stage",
    "drop_frames",
    "is_recorded",
    "read_file",
    "read_metrics",
    "read_run",
]

FOLDER = "recording"
_IN_SPACE = ("points3d", "points3d_gt")
_CAMERAS = ("world_to_camera", "world_to_camera_gt")


@dataclass(frozen=True)
class Stage:
    """What does not move. Everything may be None: unknown, or there is no such thing.

    points3d (N,3): of all frames that have none of their own. colors (N,3) uint8: as in the images. views (N,): how
    many views see the point. edges (E,2) int: pairs of points, or of image points, that a line connects.
    points3d_gt (N,3), world_to_camera_gt (V,4,4), points2d_gt (M,2): the truth, or what is aimed at; of frames with the
    same N, V, M. K (3,3) or (V,3,3), image_size (2,) = width, height: of the cameras.
    targets: where columns of metrics.csv should end; units: of them, as a person writes them, where they have one.
    """

    name: str = ""
    points3d: np.ndarray | None = None
    colors: np.ndarray | None = None
    views: np.ndarray | None = None
    edges: np.ndarray | None = None
    points3d_gt: np.ndarray | None = None
    world_to_camera_gt: np.ndarray | None = None
    points2d_gt: np.ndarray | None = None
    K: np.ndarray | None = None
    image_size: np.ndarray | None = None
    targets: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """One iteration, `step`, on stage number `stage`; what is None does not exist or stays as the stage has it.

    points3d (N,3): nan where a point is not known yet. world_to_camera (V,4,4). K (3,3) or (V,3,3). points2d (M,2):
    points of one image that move. error_px (N,): rms reprojection error of each point, where there is no truth.
    """

    step: int
    stage: int = 0
    points3d: np.ndarray | None = None
    world_to_camera: np.ndarray | None = None
    K: np.ndarray | None = None
    points2d: np.ndarray | None = None
    error_px: np.ndarray | None = None


@dataclass(frozen=True)
class Recording:
    """All that a viewer shows. frames: by step, none of a run that moves nothing in space.

    metrics: the columns of metrics.csv (T,), `step` first; empty for a file. summary: of a finished run, else {}.
    """

    title: str
    stages: tuple[Stage, ...]
    frames: tuple[Frame, ...]
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    is_run: bool = False

    def points3d(self, frame: Frame) -> np.ndarray:
        """(N,3), (0,3) where the frame has none."""
        points = self.stages[frame.stage].points3d if frame.points3d is None else frame.points3d
        return np.zeros((0, 3)) if points is None else points

    def K(self, frame: Frame) -> np.ndarray | None:
        """(3,3) or (V,3,3)."""
        return self.stages[frame.stage].K if frame.K is None else frame.K

    def centre(self, number: int) -> np.ndarray:
        """The middle of a stage's points (3,): coordinates far from zero would cost digits."""
        last = [frame for frame in self.frames if frame.stage == number][-1:]
        clouds = [self.stages[number].points3d_gt, *map(self.points3d, last)]
        known = [cloud[(np.abs(cloud) < np.finfo(np.float32).max).all(1)] for cloud in clouds if cloud is not None]
        points = np.concatenate([*known, np.zeros((0, 3))])
        return np.median(points, axis=0) if len(points) else np.zeros(3)

    @cached_property
    def up(self) -> np.ndarray:
        """Which way to show as up (3,)."""
        return upward(self.frames[-1].world_to_camera if self.frames else None)


def upward(world_to_camera: np.ndarray | None) -> np.ndarray:
    """Which way is up for cameras (V,4,4), (3,): what they have above them, if they agree.

    Else, as of a rig that turns its camera over, the axis of the ring they stand in; z where there is nothing to go by.
    """
    z = np.array([0.0, 0.0, 1.0])
    if world_to_camera is None or not np.isfinite(world_to_camera).all():
        return z
    above = -world_to_camera[:, 1, :3].mean(0)
    agreement = float(np.linalg.norm(above))
    places = centres(world_to_camera)
    if agreement < 0.6 and len(places) >= 5:
        _, spread, axes = np.linalg.svd(places - places.mean(0))
        if spread[1] > 0.3 * spread[0] and spread[2] < 0.2 * spread[1]:
            return axes[2] if axes[2] @ above >= 0 else -axes[2]
    return above / agreement if agreement > 0.3 else z


# ---- writing, while a run goes on ----


def is_recorded(step: int, dense: int = 64) -> bool:
    """Whether to keep this step: the first `dense`, then every second until twice as many, every fourth, ...

    Iterations do less and less: the early ones are worth more. 1,000 steps keep 192, 100,000 some 400.
    """
    return step % (1 << max(0, (step // dense).bit_length())) == 0


def add_stage(run: Path, number: int, **values: Any) -> Stage:
    """Stage `number` of the run in that folder: keywords are `Stage`'s; arrays may be tensors on any device."""
    return _write(run / FOLDER / f"stage-{number:03d}.npz", Stage, values)


def add_frame(run: Path, **values: Any) -> Frame:
    """A frame of the run in that folder: keywords are `Frame`'s; arrays may be tensors on any device."""
    return _write(run / FOLDER / f"frame-{values['step']:08d}.npz", Frame, values)


def drop_frames(run: Path, start: int) -> None:
    """Forget the frames from step `start` on: a resumed run computes them again."""
    for path in (run / FOLDER).glob("frame-*.npz"):
        if int(path.stem.removeprefix("frame-")) >= start:
            path.unlink()


def _write(path: Path, kind: Any, values: dict[str, Any]) -> Any:
    unknown = values.keys() - {f.name for f in fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{key}": item if isinstance(item, str) else float(item) for key, item in value.items()}
        elif value is not None:
            flat[name] = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    clouds = [flat[name] for name in _IN_SPACE if name in flat]
    if clouds:
        flat["centre"] = _middle(np.concatenate(clouds))
    flat = {name: _stored(name, v, flat) if isinstance(v, np.ndarray) else v for name, v in flat.items()}
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        np.savez(temporary, **flat)
    return _made(kind, flat)


def _stored(name: str, array: np.ndarray, beside: Mapping[str, Any]) -> np.ndarray:
    if name in _CAMERAS or name == "centre":  # turned in float32, a far origin would be elsewhere
        return array.astype(np.float64)
    with np.errstate(over="ignore"):  # too far for float32 is inf, and that is unknown
        if name in _IN_SPACE:
            return (array - beside["centre"]).astype(np.float32)
        return array.astype(np.float32) if array.dtype.kind == "f" else array


def _middle(points: np.ndarray) -> np.ndarray:
    """Amid the finite ones of points (N,3): (3,), float64."""
    known = points[np.isfinite(points).all(1)].astype(np.float64)
    return np.median(known, axis=0) if len(known) else np.zeros(3)


# ---- reading ----


def read_run(folder: Path) -> Recording:
    """The recording of a run, finished or not. Raises ValueError saying what the folder is instead."""
    try:
        config = json.loads((folder / "config.json").read_text())
        title = f"{config['experiment']} / {folder.resolve().name}"
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"{folder} holds no run: it has no config.json of an experiment") from None
    path = folder / "summary.json"
    summary = read_summary(path) if path.exists() else {}
    # frames first: while a run goes on, their stage was there before them
    frames = [_read(path, Frame) for path in sorted((folder / FOLDER).glob("frame-*.npz"))]
    stages = [_read(path, Stage) for path in sorted((folder / FOLDER).glob("stage-*.npz"))]
    if any(frame.stage >= len(stages) for frame in frames):
        raise ValueError(f"{folder / FOLDER} lacks a stage that a frame names: run the experiment again")
    return Recording(title, tuple(stages), tuple(frames), read_metrics(folder / "metrics.csv"), summary, is_run=True)


def _read(path: Path, kind: Any) -> Any:
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return _made(kind, dict(stored))
    except (ValueError, TypeError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): run the experiment again") from None


def _made(kind: Any, flat: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {}
    centre = flat.get("centre", 0.0)
    for name, value in flat.items():
        if name == "centre":
            continue
        whole, _, key = name.partition("/")
        if key:
            values.setdefault(whole, {})[key] = value.item() if isinstance(value, np.ndarray) else value
        elif isinstance(value, np.ndarray):
            values[name] = value.item() if value.ndim == 0 else _widened(value)
            if name in _IN_SPACE:
                values[name] = values[name] + centre
    return kind(**values)


def _widened(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The columns of a metrics.csv; of a run that goes on, up to the last whole row. Empty where there is none."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        text = file.read()
    rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    if not rows:
        return {}
    header, body = rows[0], rows[1:]
    try:
        values = np.array([[float(cell or "nan") for cell in row] for row in body]).reshape(-1, len(header))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): run the experiment again") from None
    return dict(zip(header, values.T, strict=True))


def read_file(path: Path) -> Recording:
    """One frame from a PLY, or from a reconstruction that `datasets.reconstructions.read` reads (BAL, COLMAP, Bundler,
    libmv).
    """
    if path.suffix.lower() == ".ply":
        from datasets.ply import read_ply

        ply = read_ply(path)
        stage = Stage(colors=ply.colors, edges=ply.edges if len(ply.edges) else None)
        return Recording(path.name, (stage,), (Frame(0, points3d=ply.points3d),))
    from datasets.reconstructions.model import reprojection_errors
    from datasets.reconstructions.read import read_reconstruction  # torch, which a PLY does not need

    r = read_reconstruction(path)
    error = reprojection_errors(r)
    views = r.point_index.bincount(minlength=len(r.points3d))
    squares = error.new_zeros(len(r.points3d)).index_add(0, r.point_index, error.square())
    arrays = [t.numpy() for t in (r.points3d, r.world_to_camera, (squares / views).sqrt())]
    stage = Stage(
        colors=None if r.colors is None else r.colors.numpy(),
        views=views.numpy(),
        K=r.K[r.intrinsics_index].numpy(),
    )
    frame = Frame(0, points3d=arrays[0], world_to_camera=arrays[1], error_px=arrays[2])
    return Recording(path.name, (stage,), (frame,))
