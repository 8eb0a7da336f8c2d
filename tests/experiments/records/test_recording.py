"""What a run leaves to be looked at comes back as it was, whole or not at all; files become recordings of one frame."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.ply import write_ply
from datasets.reconstructions.colmap import write_colmap
from datasets.reconstructions.model import Reconstruction
from experiments.drawing.figures import centres
from experiments.records.files import write_json
from experiments.records.recording import (
    FOLDER,
    Recording,
    add_frame,
    add_stage,
    drop_frames,
    is_recorded,
    read_file,
    read_run,
    upward,
)
from geometry import project, se3
from tests.experiments.viewers.recordings import keypoints, sphere, written


def assert_same(one: Any, other: Any) -> None:
    """Equal to what the files hold: points to float32 of their extent, cameras, and the float32 of other numbers."""
    for f in fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, np.ndarray) and f.name in ("points3d", "points3d_gt"):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-7 * np.ptp(a[np.isfinite(a).all(1)], axis=0).max())
        elif isinstance(a, np.ndarray) and f.name.startswith("world_to_camera"):
            np.testing.assert_array_equal(b, a)
        elif isinstance(a, np.ndarray) and a.dtype.kind == "f":
            np.testing.assert_array_equal(b, a.astype(np.float32).astype(np.float64))
            assert b.dtype == np.float64
        else:
            np.testing.assert_equal(b, a)


@pytest.mark.parametrize("recording", [sphere(), keypoints()], ids=["sphere", "keypoints"])
def test_what_is_recorded_comes_back(recording: Recording, tmp_path: Path) -> None:
    found = read_run(written(recording, tmp_path / "default-seed0"))
    assert found.title == "toy / default-seed0"
    assert found.is_run
    assert found.summary == recording.summary
    assert len(found.frames) == len(recording.frames)
    for one, other in zip(recording.stages + recording.frames, found.stages + found.frames, strict=True):
        assert_same(one, other)
    for name, column in recording.metrics.items():
        np.testing.assert_array_equal(found.metrics[name], column)


def test_tensors_and_numbers_are_stored_like_arrays(tmp_path: Path) -> None:
    points = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    add_frame(tmp_path, step=3, points3d=points, stage=0)
    add_stage(tmp_path, 0, edges=torch.tensor([[0, 1]]), targets={"fx": torch.tensor(800.0), "a/b": 2})
    (tmp_path / "config.json").write_text('{"experiment": "toy"}')
    found = read_run(tmp_path)
    np.testing.assert_allclose(found.frames[0].points3d, points.detach(), rtol=0, atol=1e-6)
    assert found.frames[0].step == 3
    assert found.stages[0].targets == {"fx": 800.0, "a/b": 2.0}
    np.testing.assert_array_equal(found.stages[0].edges, [[0, 1]])


def test_a_name_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Frame has no points"):
        add_frame(tmp_path, step=0, points=np.zeros((1, 3)))
    assert list(tmp_path.iterdir()) == []


def test_early_steps_are_kept_and_later_ones_thinned() -> None:
    kept = [step for step in range(100_000) if is_recorded(step)]
    assert kept[:64] == list(range(64))
    assert [step for step in kept if 64 <= step < 128] == list(range(64, 128, 2))
    gaps = np.diff(kept)
    assert (np.diff(gaps) >= 0).all()
    assert len([step for step in kept if step < 1000]) == 191
    assert len(kept) == 401


def test_frames_from_a_step_on_can_be_dropped(tmp_path: Path) -> None:
    recording = sphere(frames=9)
    run = written(recording, tmp_path)
    drop_frames(run, 5)
    assert [frame.step for frame in read_run(run).frames] == [0, 1, 2, 3, 4]
    drop_frames(tmp_path / "nothing here", 0)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    for text in (None, "not json", "[]", "{}"):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"holds no run: it has no config\.json"):
            read_run(tmp_path)


@pytest.mark.parametrize("size", [0, 10, 200])
def test_a_damaged_frame_is_named(tmp_path: Path, size: int) -> None:
    run = written(sphere(frames=3), tmp_path)
    path = run / "recording" / "frame-00000001.npz"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"frame-00000001\.npz is damaged"):
        read_run(run)


def test_metrics_are_read_up_to_the_last_whole_row(tmp_path: Path) -> None:
    run = written(sphere(frames=3), tmp_path)
    path = run / "metrics.csv"
    path.write_text("step,loss\n0,0.5\n1,nan\n2,0.2")
    found = read_run(run).metrics
    np.testing.assert_array_equal(found["step"], [0, 1])
    np.testing.assert_array_equal(found["loss"], [0.5, np.nan])
    path.write_text("step,loss\n0,0.5\n1,what\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        read_run(run)
    path.write_text("step,lo")
    assert read_run(run).metrics == {}
    path.unlink()
    assert read_run(run).metrics == {}


def test_up_is_what_the_cameras_have_above_them() -> None:
    ring = sphere().frames[-1].world_to_camera
    assert ring is not None
    np.testing.assert_allclose(upward(ring), [0, 0, 1], atol=1e-12)
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    turned = ring.copy()
    turned[:, :3, :3] = ring[:, :3, :3] @ turn.T
    np.testing.assert_allclose(upward(turned), turn @ [0, 0, 1], atol=1e-12)
    tilted = turned.copy()
    tilted[::2, :2] *= -1  # every second one upside down: nothing but the ring tells
    tilted[1, :2] *= -1
    assert abs(upward(tilted) @ turn @ [0, 0, 1]) == pytest.approx(1)
    opposed = turned[[0, 0]]
    opposed[1, :2] *= -1
    np.testing.assert_array_equal(upward(opposed), [0, 0, 1])
    np.testing.assert_array_equal(upward(None), [0, 0, 1])
    np.testing.assert_array_equal(upward(np.full((2, 4, 4), np.nan)), [0, 0, 1])


def test_points_and_intrinsics_that_stay_come_from_the_stage() -> None:
    shown = keypoints()
    np.testing.assert_array_equal(shown.points3d(shown.frames[0]), shown.stages[0].points3d)
    np.testing.assert_array_equal(shown.K(shown.frames[0]), shown.stages[0].K)
    shown = sphere()
    np.testing.assert_array_equal(shown.points3d(shown.frames[5]), shown.frames[5].points3d)
    nothing = replace(shown, frames=(replace(shown.frames[0], points3d=None),))
    assert nothing.points3d(nothing.frames[0]).shape == (0, 3)


def reconstruction() -> Reconstruction:
    """Two views of 30 points; the first point is seen 3 px to the right of where it is."""
    g = torch.Generator().manual_seed(0)
    points = torch.rand(30, 3, generator=g, dtype=torch.float64)
    poses = se3.from_rotvec_t(torch.tensor([[0.1, 0, 0, 0, 0, 4], [0, 0.2, 0, 0, 0, 5]], dtype=torch.float64))
    K = torch.tensor([[[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]], dtype=torch.float64)
    camera, point = torch.ones(2, 30).nonzero().T
    seen = project(points, poses, K)[camera, point]
    seen[point == 0, 0] += 3
    index = torch.zeros(2, dtype=torch.int64)
    colors = torch.randint(0, 256, (30, 3), generator=g).to(torch.uint8)
    return Reconstruction(poses, points, K, K.new_zeros(1, 0), index, camera, point, seen, colors=colors)


def test_a_colmap_model_is_one_frame_with_reprojection_errors(tmp_path: Path) -> None:
    model = reconstruction()
    write_colmap(tmp_path / "model", model)
    found = read_file(tmp_path / "model")
    (frame,), (stage,) = found.frames, found.stages
    np.testing.assert_allclose(frame.points3d, model.points3d, atol=1e-12)
    np.testing.assert_allclose(frame.world_to_camera, model.world_to_camera, atol=1e-12)
    np.testing.assert_allclose(frame.error_px, [3.0] + [0.0] * 29, atol=1e-9)
    np.testing.assert_array_equal(stage.views, [2] * 30)
    np.testing.assert_array_equal(stage.colors, model.colors)
    assert stage.K is not None
    assert stage.K.shape == (2, 3, 3)
    assert not found.is_run
    assert found.title == "model"


def test_a_ply_is_one_frame(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(7, 3))
    write_ply(tmp_path / "a.PLY", points, edges=np.array([[0, 1], [2, 6]]))
    found = read_file(tmp_path / "a.PLY")
    np.testing.assert_array_equal(found.frames[0].points3d, points)
    np.testing.assert_array_equal(found.stages[0].edges, [[0, 1], [2, 6]])
    assert found.stages[0].colors is None


def test_a_bal_file_is_one_frame(real_data: Any) -> None:
    found = read_file(real_data("bal") / "problem-49-7776-pre.txt")
    frame, stage = found.frames[0], found.stages[0]
    assert frame.points3d is not None
    assert frame.error_px is not None
    assert stage.views is not None
    assert frame.points3d.shape == (7776, 3)
    # half the file's sum of squares is 850912.460681 (Agarwal et al. 2010)
    assert (frame.error_px**2 * stage.views).sum() / 2 == pytest.approx(850912.460681, rel=1e-9)


def test_a_world_far_from_the_origin_keeps_its_shape(tmp_path: Path) -> None:
    """In metres of a map, a millimetre is a millimetre, in the recording and on the page."""
    rng, far = np.random.default_rng(0), np.array([4.5e5, 5.4e6, 120.0])
    points, cameras = rng.normal(size=(50, 3)), np.tile(np.eye(4), (3, 1, 1))
    turns = np.linalg.qr(rng.normal(size=(3, 3, 3)))[0]
    cameras[:, :3, :3] = turns * np.linalg.det(turns)[:, None, None]
    cameras[:, :3, 3] = [0, 0, 5]
    moved = cameras.copy()
    moved[:, :3, 3] -= moved[:, :3, :3] @ far
    write_json(tmp_path / "config.json", {"experiment": "far"})
    add_stage(tmp_path, 0, points3d_gt=points + far, world_to_camera_gt=moved)
    add_frame(tmp_path, step=0, points3d=points + far + 1e-3, world_to_camera=moved)
    found = read_run(tmp_path)
    frame, stage = found.frames[0], found.stages[0]
    assert frame.points3d is not None
    assert stage.points3d_gt is not None
    assert frame.world_to_camera is not None
    np.testing.assert_allclose(frame.points3d - far, points + 1e-3, rtol=0, atol=2e-6)
    np.testing.assert_allclose(frame.points3d - stage.points3d_gt, 1e-3, rtol=0, atol=2e-6)
    np.testing.assert_allclose(centres(frame.world_to_camera) - far, centres(cameras), rtol=0, atol=1e-8)
    assert all(path.stat().st_size < 50 * 3 * 8 + 3000 for path in (tmp_path / FOLDER).iterdir())
