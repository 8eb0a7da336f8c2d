"""A recording for Rerun (https://rerun.io), for those who have rerun-sdk: no other module imports it.

Points, cameras, image points and curves lie on a timeline of iterations. Each stage is a space of its own, about its
centre: Rerun holds places as float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import replacing
from experiments.drawing.figures import BLUE, ORANGE, centres, rgb
from experiments.records.recording import Frame, Recording
from experiments.viewers.scene import scene

__all__ = ["show_in_rerun", "write_rerun"]

TIME = "iteration"


def show_in_rerun(recording: Recording) -> None:
    """Open Rerun's viewer, or use the one that is open. Raises ValueError without rerun-sdk."""
    stream = _stream(recording)
    stream.spawn()
    _log(recording, stream)


def write_rerun(recording: Recording, path: Path) -> None:
    """An .rrd file, whole or not at all. Raises ValueError without rerun-sdk."""
    with replacing(path) as temporary:
        stream = _stream(recording)
        stream.save(temporary)
        _log(recording, stream)
        stream.flush()
        stream.disconnect()


def _stream(recording: Recording) -> Any:
    try:
        import rerun
    except ImportError:
        raise ValueError("rerun-sdk is not installed: pip install rerun-sdk") from None
    return rerun.RecordingStream(recording.title.replace(" / ", "-"))


def _log(recording: Recording, stream: Any) -> None:
    import rerun

    names = [_name(recording, number) for number in range(len(recording.stages))]
    largest = np.abs(recording.up).argmax()  # Rerun knows axes only
    axis, sense = "XYZ"[largest], "UP" if recording.up[largest] > 0 else "DOWN"
    for number, (name, stage) in enumerate(zip(names, recording.stages, strict=True)):
        centre = recording.centre(number)
        stream.log(name, getattr(rerun.ViewCoordinates, f"RIGHT_HAND_{axis}_{sense}"), static=True)
        if stage.points3d_gt is not None:
            stream.log(f"{name}/truth", rerun.Points3D(stage.points3d_gt - centre, colors=rgb(ORANGE)), static=True)
        if stage.points2d_gt is not None:
            stream.log(f"{name}/image/target", rerun.Points2D(stage.points2d_gt, colors=rgb(ORANGE)), static=True)
    before = None
    for index, frame in enumerate(recording.frames):
        stream.set_time(TIME, sequence=frame.step)
        if before is not None and before != frame.stage:
            stream.log(names[before], rerun.Clear(recursive=True))
        before = frame.stage
        _log_frame(recording, index, names[frame.stage], stream)
    steps = recording.metrics.get("step", np.zeros(0))
    for column, values in recording.metrics.items():
        if column != "step" and len(values):
            times = rerun.TimeColumn(TIME, sequence=steps.astype(np.int64))
            stream.send_columns(f"curves/{column}", indexes=[times], columns=rerun.Scalars.columns(scalars=values))


def _name(recording: Recording, number: int) -> str:
    stage = recording.stages[number]
    return "world" if len(recording.stages) == 1 else f"stages/{stage.name or number}"


def _log_frame(recording: Recording, index: int, name: str, stream: Any) -> None:
    import rerun

    frame, seen = recording.frames[index], scene(recording, index)
    centre = recording.centre(frame.stage)
    if len(seen.points):
        stream.log(f"{name}/points", rerun.Points3D(seen.points - centre, colors=seen.colors))
    if len(seen.edges):
        stream.log(f"{name}/edges", rerun.LineStrips3D(seen.edges - centre, colors=rgb(BLUE)))
    if frame.points2d is not None:
        stream.log(f"{name}/image/points", rerun.Points2D(frame.points2d, colors=rgb(BLUE)))
    if frame.world_to_camera is None:
        return
    for v, (eye, pose) in enumerate(zip(centres(frame.world_to_camera), frame.world_to_camera, strict=True)):
        if np.isfinite(pose).all():
            camera = f"{name}/cameras/{v}"
            stream.log(camera, rerun.Transform3D(translation=eye - centre, mat3x3=pose[:3, :3].T))
            stream.log(camera, _pinhole(recording, frame, v))


def _pinhole(recording: Recording, frame: Frame, v: int) -> Any:
    import rerun

    K, size = recording.K(frame), recording.stages[frame.stage].image_size
    if K is None:
        return rerun.Pinhole(fov_y=np.radians(48), aspect_ratio=4 / 3)  # as pictures draw it
    one = K if K.ndim == 2 else K[v]
    return rerun.Pinhole(image_from_camera=one, resolution=2 * one[:2, 2] if size is None else size)
