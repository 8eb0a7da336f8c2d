"""What is exported is read back by other programs, and is what the recording has."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.ply import read_ply
from datasets.reconstructions.bal import read_bal
from datasets.reconstructions.colmap import read_colmap
from experiments import view
from experiments.drawing.figures import BLUE, rgb
from experiments.records.recording import Recording
from experiments.viewers import export
from experiments.viewers.picture import picture
from experiments.viewers.scene import scene
from tests.experiments.viewers.recordings import keypoints, sphere, written

FAR = np.array([4e5, 5e6, 100.0])  # as of a map


def saved(recording: Recording, folder: Path, name: str, *options: str) -> Path:
    run = written(recording, folder / "toy" / "run")
    assert view.main([str(run), "--save", str(folder / name), *options]) == 0
    return folder / name


def played(path: Path) -> list[np.ndarray]:
    """The pictures of a video (H,W,3)."""
    import cv2

    video, pictures = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        pictures.append(read[1])
    return pictures


def moved(recording: Recording, offset: np.ndarray) -> Recording:
    """The same in a world whose origin is elsewhere."""
    frames = []
    for frame in recording.frames:
        cameras = frame.world_to_camera.copy()
        cameras[:, :3, 3] -= cameras[:, :3, :3] @ offset
        frames.append(replace(frame, points3d=frame.points3d + offset, world_to_camera=cameras))
    stage = replace(recording.stages[0], points3d_gt=None, world_to_camera_gt=None)
    return replace(recording, stages=(stage,), frames=tuple(frames))


def test_points_keep_places_colours_and_edges(tmp_path: Path) -> None:
    recording = sphere(count=50)
    ply = read_ply(saved(recording, tmp_path, "points.ply"))
    np.testing.assert_allclose(ply.points3d, recording.frames[-1].points3d, atol=1e-6)
    np.testing.assert_array_equal(ply.colors, recording.stages[0].colors)
    assert len(read_ply(saved(recording, tmp_path, "early.ply", "--step", "0")).points3d) == 25  # those that are known
    cube = read_ply(saved(keypoints(), tmp_path / "cube", "points.ply"))
    np.testing.assert_array_equal(cube.edges, keypoints().stages[0].edges)


@pytest.mark.slow
def test_a_scene_is_what_is_drawn_turned_upright(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    recording = moved(sphere(count=50, views=5), FAR)
    read = trimesh.load(saved(recording, tmp_path, "scene.glb"))
    seen = scene(recording, -1)
    assert read.geometry.keys() == {"points", "cameras"}
    assert len(read.geometry["cameras"].vertices) == 2 * len(seen.cameras)
    (length,) = struct.unpack_from("<I", (tmp_path / "scene.glb").read_bytes(), 12)
    header = json.loads((tmp_path / "scene.glb").read_bytes()[20 : 20 + length])
    colors = {mesh["name"]: mesh["primitives"][0]["attributes"]["COLOR_0"] for mesh in header["meshes"]}
    assert header["accessors"][colors["cameras"]]["min"] == [*rgb(BLUE).tolist(), 255]  # trimesh reads no line's colour
    np.testing.assert_array_equal(read.geometry["points"].colors[:, :3], seen.colors)
    place, name = read.graph["points"]
    assert name == "points"
    there = read.geometry["points"].vertices @ place[:3, :3].T + place[:3, 3]
    np.testing.assert_allclose(there @ place[:3, :3], seen.points, atol=2e-6)  # a turn, and no more
    np.testing.assert_allclose(place[:3, :3] @ recording.up, [0, 1, 0], atol=1e-12)
    assert np.linalg.det(place[:3, :3]) == pytest.approx(1)


def test_a_model_is_read_back_here_and_by_colmap(tmp_path: Path) -> None:
    recording = sphere(count=50)
    model = read_colmap(saved(recording, tmp_path, "model"))
    frame, stage = recording.frames[-1], recording.stages[0]
    np.testing.assert_allclose(model.points3d, frame.points3d, atol=1e-6)
    np.testing.assert_allclose(model.world_to_camera, frame.world_to_camera, atol=1e-12)
    np.testing.assert_allclose(model.K[model.intrinsics_index[0]], frame.K, rtol=1e-6)
    np.testing.assert_array_equal(model.colors, stage.colors)
    assert model.image_sizes.tolist() == [[640, 480]]
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    theirs = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert (theirs.num_cameras(), theirs.num_images(), theirs.num_points3D()) == (1, 6, 50)
    pose = theirs.image(1).cam_from_world()
    np.testing.assert_allclose(pose.matrix(), frame.world_to_camera[0, :3], atol=1e-12)
    written = next(point for number, point in theirs.points3D.items() if number == 7)
    np.testing.assert_allclose(written.xyz, frame.points3d[6], atol=1e-6)


def test_a_reconstruction_becomes_a_model_with_its_observations(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    bal = real_data("bal") / "dubrovnik-3-7-pre.txt"
    assert view.main([str(bal), "--save", str(tmp_path / "model")]) == 0
    ours, theirs = read_bal(bal), read_colmap(tmp_path / "model")
    assert len(theirs.points2d) == len(ours.points2d)
    np.testing.assert_allclose(theirs.points3d, ours.points3d)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learning.gif", "learning.mp4"])
def test_a_video_has_a_picture_for_each_frame_seen_from_one_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = sphere(count=40, frames=9)
    pictures = played(saved(recording, tmp_path, name))
    assert [picture.shape for picture in pictures] == [(600, 800, 3)] * 9
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 100  # something moves
    whole = sum(np.abs(picture.astype(int) - 255).sum(-1) > 60 for picture in pictures)
    assert (whole > 0).mean() < 0.7
    monkeypatch.setattr(export, "FRAMES", 4)
    assert len(played(saved(recording, tmp_path / "short", name))) == 4


def test_pictures_of_one_place_have_one_frame() -> None:
    recording = sphere(count=40, frames=9)
    end = scene(recording, -1)
    alone, together = picture(recording, 0), picture(recording, 0, end)
    last = picture(recording, 8)
    assert alone.axes[0].get_xlim() != last.axes[0].get_xlim()
    assert together.axes[0].get_xlim() == last.axes[0].get_xlim()


def test_what_there_is_not_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curves = replace(sphere(), frames=(), stages=())
    run = str(written(curves, tmp_path / "toy" / "curves"))
    for name, words in (
        ("a.ply", "no points"), ("a.glb", "neither points nor cameras"), ("a.gif", "neither points nor cameras"),
        ("model", "no cameras with intrinsics"),
    ):  # fmt: skip
        assert view.main([run, "--save", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    assert view.main([run, "--save", run]) == 2
    assert "holds something else" in capsys.readouterr().err
