"""A recording as one HTML page that needs no network: points and cameras in space, image points, curves.

Everything the page runs is in web/; `encode` says what it reads. It shows what is recorded and interpolates nothing.
"""

import base64
import gzip
import html
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.files import plain, write_text
from experiments.records.recording import Frame, Recording, Stage

__all__ = ["encode", "page", "side_by_side", "write_page"]

WEB = Path(__file__).with_name("web")

LIMIT = 1_500_000
"""Points of all frames together that a page holds; about 20 MB. What is beyond is left out, and the page says so."""


def page(recording: Recording, live: str | None = None, picture: bytes = b"") -> str:
    """The page, with the data in it; with `live`, one that asks a server for them.

    picture: a PNG to look at where nothing moves in space.
    live: what comes before `recording` (the bytes of `encode`, without a Content-Encoding) and `version` (a text that
    changes when there is something new; asked for once a second) in their addresses, such as "/".
    """
    parts = {
        "title": html.escape(recording.title),
        "live": html.escape(live or ""),
        "data": base64.b64encode(encode(recording)).decode() if live is None else "",
        "picture": f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}" alt="">' if picture else "",
        "page_css": _text("page.css"),
        "page_js": _text("page.bundle.js"),
    }
    return _filled("page.html", parts)


def side_by_side(left: Recording, right: Recording) -> str:
    """One page that holds the pages of two recordings and moves both by one slider, seen from the same side."""
    parts = {
        "title": html.escape(f"{left.title} | {right.title}"),
        "left_title": html.escape(left.title),
        "right_title": html.escape(right.title),
        "left": html.escape(page(left)),
        "right": html.escape(page(right)),
        "script": _text("side_by_side.js"),
    }
    return _filled("side_by_side.html", parts)


def _filled(name: str, parts: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _text(name))


def _text(name: str) -> str:
    return (WEB / name).read_text("utf-8")


def write_page(recording: Recording, path: Path, picture: bytes = b"") -> None:
    """Write `page(recording, picture=picture)` whole or not at all."""
    write_text(path, page(recording, picture=picture))


def encode(recording: Recording) -> bytes:
    """All that the page shows, gzipped: the length of a JSON header (uint32), the header, the bytes of its arrays.

    The header names arrays by their number in its `arrays`. Each of those is stored as planes: first the lowest byte of
    all its values that is kept, then the next; of float32 points the lowest is not, which leaves 17 binary digits, and
    of errors two are not. An array with a `base` is stored as XOR with that earlier array: what moves little becomes
    zeros. All is little endian. Points and cameras are relative to their stage's `centre`; nan is what is unknown.
    """
    numbers = range(len(recording.stages))
    centres, strides = [recording.centre(i) for i in numbers], [_stride(recording, i) for i in numbers]
    kept = _kept(recording.frames)
    arrays = _Arrays()
    header = {
        "title": recording.title,
        "is_run": recording.is_run,
        "summary": recording.summary,
        "up": recording.up,
        "frames_recorded": len(recording.frames),
        "metrics": {name: arrays.add(column, "<f8") for name, column in recording.metrics.items()},
        "stages": [_stage(arrays, recording.stages[i], centres[i], strides[i]) for i in numbers],
        "frames": [_frame(arrays, recording, recording.frames[i], centres, strides) for i in kept],
        "arrays": arrays.table,
    }
    text = json.dumps(plain(header), allow_nan=False).encode()
    return gzip.compress(b"".join([struct.pack("<I", len(text)), text, *arrays.stored]), compresslevel=4, mtime=0)


class _Arrays:
    """The arrays of a payload: each is stored once, however many frames have it."""

    def __init__(self) -> None:
        self.table: list[dict[str, Any]] = []
        self.stored: list[bytes] = []
        self._planes: list[np.ndarray] = []
        self._numbers: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._latest: dict[tuple[str, tuple[int, ...], str], int] = {}

    def add(self, values: np.ndarray | None, kind: str, dropped: int = 0, series: str = "") -> int | None:
        """Its number. dropped: how many of each value's lowest bytes; series: of which it is the next array."""
        if values is None:
            return None
        with np.errstate(over="ignore"):  # too far for float32 is inf, and that is unknown
            values = np.ascontiguousarray(values, dtype=kind)
        planes = values.reshape(-1, 1).view(np.uint8)
        if dropped:
            bits = values.view(np.uint32).reshape(-1)
            half = np.uint32(1 << (8 * dropped - 1))
            bits = np.where(np.isfinite(values).reshape(-1), bits + half, np.float32(np.nan).view(np.uint32))
            planes = bits.astype("<u4").reshape(-1, 1).view(np.uint8)[:, dropped:]
        planes = np.ascontiguousarray(planes.T)
        key = (kind, values.shape, planes.tobytes())
        if key not in self._numbers:
            self._numbers[key] = len(self.table)
            base = self._latest.get((kind, values.shape, series)) if series else None
            self.table.append({"kind": kind[1:], "shape": values.shape, "dropped": dropped, "base": base})
            self.stored.append(planes.tobytes() if base is None else (planes ^ self._planes[base]).tobytes())
            self._planes.append(planes)
        if series:
            self._latest[kind, values.shape, series] = self._numbers[key]
        return self._numbers[key]


def _stage(arrays: _Arrays, stage: Stage, centre: np.ndarray, stride: int) -> dict[str, Any]:
    colors, views, truth = (
        None if values is None else values[::stride] for values in (stage.colors, stage.views, stage.points3d_gt)
    )
    return {
        "name": stage.name,
        "centre": centre,
        "stride": stride,
        "colors": arrays.add(colors, "|u1"),
        "views": arrays.add(views, "<u4"),
        "edges": arrays.add(stage.edges, "<u4") if stride == 1 else None,
        "truth": arrays.add(None if truth is None else truth - centre, "<f4", 1, "points"),
        "cameras_truth": arrays.add(_cameras(stage.world_to_camera_gt, centre), "<f4"),
        "points2d_truth": arrays.add(stage.points2d_gt, "<f4"),
        "image_size": stage.image_size,
        "targets": stage.targets,
        "units": stage.units,
    }


def _frame(
    arrays: _Arrays, recording: Recording, frame: Frame, centres: list[np.ndarray], strides: list[int]
) -> dict[str, Any]:
    points, stage = recording.points3d(frame), recording.stages[frame.stage]
    truth, centre, stride = stage.points3d_gt, centres[frame.stage], strides[frame.stage]
    error = unit = None
    if truth is not None and len(truth) == len(points):
        error, unit = np.linalg.norm(points - truth, axis=1), ""
    elif frame.error_px is not None and len(frame.error_px) == len(points):
        error, unit = frame.error_px, "px"
    return {
        "step": frame.step,
        "stage": frame.stage,
        "points": arrays.add(points[::stride] - centre, "<f4", 1, "points"),
        "error": arrays.add(None if error is None else error[::stride], "<f4", 2, "error"),
        "error_unit": unit,
        "cameras": arrays.add(_cameras(frame.world_to_camera, centre), "<f4", 0, "cameras"),
        "K": arrays.add(recording.K(frame), "<f4", 0, "K"),
        "points2d": arrays.add(frame.points2d, "<f4", 0, "points2d"),
    }


def _cameras(world_to_camera: np.ndarray | None, centre: np.ndarray) -> np.ndarray | None:
    """R and t (V,3,4) in a world that begins at `centre`."""
    if world_to_camera is None:
        return None
    R, t = world_to_camera[:, :3, :3], world_to_camera[:, :3, 3]
    return np.concatenate([R, (t + R @ centre)[:, :, None]], axis=2)


def _stride(recording: Recording, number: int) -> int:
    """Which points of a stage there is room for: every so-manyth."""
    sizes = [len(recording.points3d(frame)) for frame in recording.frames if frame.stage == number]
    return max(1, -(-max(sizes, default=0) // LIMIT))


def _kept(frames: tuple[Frame, ...]) -> list[int]:
    """The frames for which there is room: first, last, and between them evenly."""
    moving = [(frame.points3d, frame.world_to_camera, frame.points2d) for frame in frames]
    total = sum(values.size // 3 for frame in moving for values in frame if values is not None)
    count = len(frames) if total <= LIMIT else max(2, len(frames) * LIMIT // total)
    return sorted({round(i) for i in np.linspace(0, len(frames) - 1, count)}) if frames else []
