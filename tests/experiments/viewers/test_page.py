"""What the page of a recording is packed from, and how it is written."""

import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.records.recording import Frame, Recording, Stage
from experiments.viewers import page as module
from experiments.viewers.page import encode, write_page
from tests.experiments.viewers.recordings import keypoints, sphere

RELATIVE = 2.0**-16  # points keep 17 binary digits of their distance from the centre


def decoded(recording: Recording) -> dict[str, Any]:
    """The header, and its arrays in place of their numbers in `arrays`."""
    raw = gzip.decompress(encode(recording))
    (size,) = struct.unpack_from("<I", raw)
    header, at = json.loads(raw[4 : 4 + size]), 4 + size
    arrays: list[np.ndarray] = []
    for entry in header["arrays"]:
        kind, shape = np.dtype("<" + entry["kind"]), tuple(entry["shape"])
        count, kept = int(np.prod(shape)), np.dtype(entry["kind"]).itemsize - entry["dropped"]
        planes = np.zeros((kind.itemsize, count), np.uint8)
        planes[entry["dropped"] :] = np.frombuffer(raw, np.uint8, kept * count, at).reshape(kept, count)
        at += kept * count
        if entry["base"] is not None:
            planes ^= arrays[entry["base"]].reshape(-1, 1).view(np.uint8).T
        arrays.append(np.ascontiguousarray(planes.T).reshape(-1).view(kind).reshape(shape))
    assert at == len(raw)
    return header | {"arrays": arrays}


def test_payload_is_what_was_recorded() -> None:
    recording = sphere(count=50, frames=7)
    far = 1e5 * np.array([3.0, -7.0, 1.0])  # coordinates as of a map: they must not cost digits
    frames = tuple(
        replace(f, points3d=f.points3d + far, world_to_camera=_moved(f.world_to_camera, far)) for f in recording.frames
    )
    stage = replace(recording.stages[0], points3d_gt=recording.stages[0].points3d_gt + far)
    packed = decoded(replace(recording, frames=frames, stages=(stage,)))
    arrays, centre = packed["arrays"], np.array(packed["stages"][0]["centre"])
    assert np.abs(centre - far).max() < 1

    def assert_close(number: int, points: np.ndarray) -> None:
        np.testing.assert_allclose(arrays[number], points - centre, rtol=RELATIVE, atol=0)  # nan where that is nan

    assert_close(packed["stages"][0]["truth"], stage.points3d_gt)
    assert [frame["step"] for frame in packed["frames"]] == list(range(7))
    for frame, record in zip(packed["frames"], frames, strict=True):
        assert_close(frame["points"], record.points3d)
        distance = np.linalg.norm(record.points3d - stage.points3d_gt, axis=1)
        np.testing.assert_allclose(arrays[frame["error"]], distance, rtol=2.0**-8, atol=1e-9)
        R, t = arrays[frame["cameras"]][:, :, :3], arrays[frame["cameras"]][:, :, 3]
        eyes = centre - np.einsum("vji,vj->vi", R, t)
        wanted = np.linalg.inv(record.world_to_camera)[:, :3, 3]
        np.testing.assert_allclose(eyes, wanted, atol=1e-5)
        np.testing.assert_array_equal(arrays[frame["K"]], record.K.astype(np.float32))
    assert np.isnan(arrays[packed["frames"][0]["points"]][::2]).all()
    np.testing.assert_array_equal(arrays[packed["stages"][0]["colors"]], stage.colors)
    np.testing.assert_array_equal(arrays[packed["stages"][0]["views"]], stage.views)
    for name, column in recording.metrics.items():
        np.testing.assert_array_equal(arrays[packed["metrics"][name]], column)
    assert packed["stages"][0]["targets"] == stage.targets


def test_payload_stores_once_what_stays() -> None:
    packed = decoded(keypoints())
    assert len({frame["points"] for frame in packed["frames"]}) == 1
    assert len({frame["points2d"] for frame in packed["frames"]}) == len(packed["frames"])
    assert [a.shape for a in packed["arrays"]].count((8, 3)) == 1


def test_payload_takes_what_float32_cannot_hold_as_unknown() -> None:
    points = np.array([[1.0, 2, 3], [np.inf, 0, 0], [1e39, 0, 0]])
    packed = decoded(Recording("x", (Stage(),), (Frame(0, points3d=points),)))
    seen = packed["arrays"][packed["frames"][0]["points"]]
    assert np.isfinite(seen).all(1).tolist() == [True, False, False]


def test_frames_for_which_there_is_no_room_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = sphere(count=100, frames=20)
    monkeypatch.setattr(module, "LIMIT", 1000)
    packed = decoded(recording)
    steps = [frame["step"] for frame in packed["frames"]]
    assert (steps[0], steps[-1], packed["frames_recorded"]) == (0, 19, 20)
    assert 5 <= len(steps) <= 10
    assert np.ptp(np.diff(steps)) <= 1  # evenly
    assert packed["arrays"][packed["stages"][0]["truth"]].shape == (100, 3)
    assert packed["arrays"][packed["metrics"]["loss"]].shape == (20,)


def test_points_for_which_there_is_no_room_are_thinned_with_all_that_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = sphere(count=100, frames=1)
    monkeypatch.setattr(module, "LIMIT", 40)
    packed = decoded(recording)
    stage, arrays = packed["stages"][0], packed["arrays"]
    assert stage["stride"] == 3
    points = recording.frames[0].points3d[::3] - stage["centre"]
    np.testing.assert_allclose(arrays[packed["frames"][0]["points"]], points, rtol=RELATIVE)
    np.testing.assert_array_equal(arrays[stage["colors"]], recording.stages[0].colors[::3])
    assert {len(arrays[i]) for i in (stage["truth"], stage["views"], packed["frames"][0]["error"])} == {34}


def _moved(world_to_camera: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The same cameras in a world whose points were moved by `offset`."""
    moved = world_to_camera.copy()
    moved[:, :3, 3] -= world_to_camera[:, :3, :3] @ offset
    return moved


def test_page_is_small(tmp_path: Path) -> None:
    recording = sphere(count=1000, frames=100)
    write_page(recording, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 5e6
    write_page(Recording("empty", (), ()), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 800e3


def test_writing_fails_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_page(replace(sphere(), title="half a letter: \ud83d"), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
