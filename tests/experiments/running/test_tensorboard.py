"""What TensorBoard reads back of a board: scalars, pictures, clouds over steps, hyperparameters."""

import io
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.mesh.metadata import parse_plugin_metadata
from tensorboard.util.tensor_util import make_ndarray

from experiments.drawing.figures import BLUE, GREY, ORANGE, rgb
from experiments.records.recording import Frame, Recording, Stage
from experiments.running.tensorboard import AXIS_COLORS, FARTHEST, Board
from tests.experiments.viewers.recordings import keypoints, sphere


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"tensors": 0, "images": 0, "scalars": 0}).Reload()


def shown(folder: Path, *recordings: Recording, name: str = "points") -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Vertices (N,3) and colours (N,3) by step, of the first stages of these recordings, one after another."""
    board = Board(folder)
    for number, recording in enumerate(recordings):
        for frame in recording.frames:
            board.frame(recording.stages[0], replace(frame, stage=number))
    board.close()
    return cloud(read(folder), name)


def cloud(events: EventAccumulator, name: str = "points") -> dict[int, tuple[np.ndarray, np.ndarray]]:
    vertices, colors = (
        {event.step: make_ndarray(event.tensor_proto)[0] for event in events.Tensors(f"{name}_{kind}")}
        for kind in ("VERTEX", "COLOR")
    )
    return {step: (vertices[step], colors[step]) for step in vertices}


def of_color(shot: tuple[np.ndarray, np.ndarray], color: str) -> np.ndarray:
    vertices, colors = shot
    return vertices[(colors == rgb(color)).all(1)]


def config(folder: Path) -> dict:
    content = read(folder).SummaryMetadata("points_VERTEX").plugin_data.content
    return json.loads(parse_plugin_metadata(content).json_config)


def only(recording: Recording, stage: Stage, frames: Sequence[Frame]) -> Recording:
    return replace(recording, stages=(stage,), frames=tuple(frames))


def without_cameras(recording: Recording) -> Recording:
    frames = [replace(frame, world_to_camera=None) for frame in recording.frames]
    return only(recording, replace(recording.stages[0], world_to_camera_gt=None), frames)


def middle_and_size(points: np.ndarray) -> tuple[np.ndarray, float]:
    middle = np.median(points, axis=0)
    return middle, 2 * np.percentile(np.linalg.norm(points - middle, axis=1), 90)


def turn(points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """The rotation from points (N,3) about their middle to vertices (N,3); that it is one is asserted."""
    R = np.linalg.lstsq(points - np.median(points, axis=0), vertices, rcond=None)[0].T
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(R) > 0
    return R


# ---- the cloud ----


def test_every_frame_has_truth_and_points_with_up_as_y(tmp_path: Path) -> None:
    recording = without_cameras(sphere())
    truth, colors = recording.stages[0].points3d_gt, recording.stages[0].colors
    assert truth is not None
    assert colors is not None
    shots = shown(tmp_path, recording)
    assert list(shots) == [frame.step for frame in recording.frames]
    for frame, shot in zip(recording.frames, shots.values(), strict=True):
        assert frame.points3d is not None
        known = np.isfinite(frame.points3d).all(1)
        assert known.sum() == (300 if frame.step else 150)
        assert np.isfinite(shot[0]).all()
        orange = of_color(shot, ORANGE)
        R = turn(truth, orange)
        np.testing.assert_allclose(R @ [0, 0, 1], [0, 1, 0], atol=1e-6)  # z is up where no camera says otherwise
        estimates = (frame.points3d[known] - np.median(truth, axis=0)) @ R.T
        np.testing.assert_allclose(shot[0][300 : 300 + known.sum()], estimates, atol=1e-5)
        np.testing.assert_array_equal(shot[1][300 : 300 + known.sum()], colors[known])


def test_without_truth_and_colours_points_tell_their_place(tmp_path: Path) -> None:
    recording = without_cameras(sphere())
    stretched = [replace(f, points3d=f.points3d * [5, 1, 1]) for f in recording.frames if f.points3d is not None]
    recording = only(recording, replace(recording.stages[0], points3d_gt=None, colors=None), stretched)
    vertices, colors = shown(tmp_path, recording)[19]
    x = stretched[-1].points3d[:, 0]  # type: ignore[index]
    assert len(of_color((vertices, colors), ORANGE)) == 0
    np.testing.assert_array_equal(colors[x.argmin()], [68, 1, 84])  # viridis, from dark blue
    np.testing.assert_array_equal(colors[x.argmax()], [253, 231, 36])  # to yellow


@pytest.mark.parametrize("sizes", [0.5, FARTHEST, 2, 1000])
def test_a_far_camera_is_pulled_in_on_its_line_of_sight(tmp_path: Path, sizes: float) -> None:
    recording = sphere(frames=1)
    truth = recording.stages[0].points3d_gt
    assert truth is not None
    middle, size = middle_and_size(truth)
    direction = np.array([2, 1, 2]) / 3
    camera = np.eye(4)
    camera[:3, 3] = -(middle + sizes * size * direction)  # R = 1: t is minus the centre
    stage = replace(recording.stages[0], world_to_camera_gt=None)
    shot = shown(tmp_path, only(recording, stage, [Frame(0, points3d=truth, world_to_camera=camera[None])]))[0]
    R = turn(truth, of_color(shot, ORANGE))
    np.testing.assert_allclose(R @ [0, -1, 0], [0, 1, 0], atol=1e-6)  # what the camera has above it
    blue = of_color(shot, BLUE)
    np.testing.assert_allclose(blue[0], R @ direction * min(sizes, FARTHEST) * size, atol=1e-5)
    depth = (blue - blue[0]) @ R @ [0, 0, 1]
    assert depth.max() == pytest.approx(0.1 * min(sizes, FARTHEST) * size, rel=1e-4)
    assert depth.min() == pytest.approx(0, abs=1e-5)


def test_true_and_estimated_cameras_have_their_colours(tmp_path: Path) -> None:
    recording = sphere()
    shot = shown(tmp_path, recording)[19]  # the frame where they agree
    orange, blue = of_color(shot, ORANGE)[300:], of_color(shot, BLUE)
    assert len(blue) > 6 * 8 * 2
    np.testing.assert_allclose(orange, blue, atol=1e-5)


def test_edges_are_dots_between_their_points(tmp_path: Path) -> None:
    recording = keypoints()
    corners, edges = recording.stages[0].points3d, recording.stages[0].edges
    assert corners is not None
    assert edges is not None
    grey = of_color(shown(tmp_path, recording)[0], GREY)
    ends = shown(tmp_path / "points", only(recording, replace(recording.stages[0], edges=None), recording.frames))[0]
    R = turn(corners, ends[0][:8])
    dots = grey @ R  # the cube's middle is the origin
    assert (np.isclose(np.abs(dots), 1, atol=1e-5).sum(1) >= 2).all()
    for i, j in edges:
        from_one, along = dots - corners[i], (corners[j] - corners[i]) / 2
        places = np.sort((from_one @ along)[np.linalg.norm(np.cross(from_one, along), axis=1) < 1e-4])
        np.testing.assert_allclose(places[[0, -1]], [0, 2], atol=1e-5)
        assert np.diff(places).max() < 0.2


def test_an_edge_to_an_unknown_point_is_left_out(tmp_path: Path) -> None:
    recording = keypoints()
    points = recording.stages[0].points3d
    assert points is not None
    partly = points.copy()
    partly[0] = np.nan
    frames = [Frame(0, points3d=points), Frame(1, points3d=partly)]
    shots = shown(tmp_path, only(recording, recording.stages[0], frames))
    assert np.isfinite(shots[1][0]).all()
    assert len(of_color(shots[1], GREY)) == len(of_color(shots[0], GREY)) * 9 / 12


def test_axes_start_in_the_middle(tmp_path: Path) -> None:
    shot = shown(tmp_path, without_cameras(sphere()))[0]
    axes = [of_color(shot, color) for color in AXIS_COLORS]
    ends = np.array([axis[-1] for axis in axes])
    np.testing.assert_allclose([axis[0] for axis in axes], 0, atol=1e-6)
    np.testing.assert_allclose(ends @ ends.T, np.eye(3) * (ends[0] @ ends[0]), atol=1e-5)
    assert np.linalg.det(ends) > 0
    np.testing.assert_allclose(ends[2] / np.linalg.norm(ends[2]), [0, 1, 0], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
@pytest.mark.parametrize("alter", [lambda r: r, without_cameras])
def test_all_of_it_is_seen_on_opening(tmp_path: Path, scale: float, alter: Callable[[Recording], Recording]) -> None:
    recording = alter(sphere(frames=2))
    offset = scale * np.array([100.0, -50, 30])
    stage = recording.stages[0]
    truth, cameras = stage.points3d_gt, stage.world_to_camera_gt
    assert truth is not None
    if cameras is not None:
        cameras = cameras.copy()
        cameras[:, :3, 3] = scale * cameras[:, :3, 3] - cameras[:, :3, :3] @ offset
    stage = replace(stage, points3d_gt=scale * truth + offset, world_to_camera_gt=cameras)
    frame = Frame(0, points3d=stage.points3d_gt, world_to_camera=cameras)
    vertices, _ = shown(tmp_path, only(recording, stage, [frame]))[0]
    view = config(tmp_path)["camera"]
    eye = np.array(view["position"])
    forward = -eye / np.linalg.norm(eye)
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    seen = (vertices - eye) @ np.stack([right, np.cross(right, forward), forward]).T
    filled = np.abs(seen[:, :2] / seen[:, 2:]).max() / np.tan(np.deg2rad(view["fov"] / 2))
    assert view["lookAt"] == [0, 0, 0]
    assert view["near"] < seen[:, 2].min()
    assert 0.7 < filled < 1


def test_many_points_are_small_and_few_are_large(tmp_path: Path) -> None:
    sizes = []
    for count in (8, 300, 8000):
        shown(tmp_path / str(count), sphere(count, frames=1))
        material = config(tmp_path / str(count))["material"]
        assert material["sizeAttenuation"] is False  # pixels, at any scale of the scene
        sizes.append(material["size"])
    assert sizes[0] == 5
    assert 2 < sizes[1] < 5
    assert sizes[2] == 2


def test_at_most_100_frames_and_the_last_are_sent(tmp_path: Path) -> None:
    steps = list(shown(tmp_path, without_cameras(sphere(4, frames=501, views=1))))
    assert steps[:32] == list(range(32))
    assert steps[-1] == 500
    assert 64 < len(steps) <= 100
    assert np.diff(steps).max() <= 16


def test_a_stage_is_a_tag_and_keeps_its_last_frame(tmp_path: Path) -> None:
    first, second = (without_cameras(sphere(4, frames=40, views=1)) for _ in range(2))
    first = only(first, replace(first.stages[0], name="left"), first.frames)
    second = only(second, second.stages[0], [replace(f, step=40 + f.step) for f in second.frames])
    unnamed = shown(tmp_path, first, second)
    named = cloud(read(tmp_path), "left")
    assert list(named)[:33] == list(range(33))
    assert max(named) == 39
    assert min(unnamed) == 40
    assert max(unnamed) == 79


def test_nothing_in_space_is_no_cloud(tmp_path: Path) -> None:
    recording = sphere()
    frames = [Frame(0), Frame(1, points3d=np.full((300, 3), np.nan))]
    board = Board(tmp_path)
    for frame in frames:
        board.frame(recording.stages[0], frame)
    board.close()
    assert read(tmp_path).Tags()["tensors"] == []


# ---- the rest ----


def test_scalars_end_with_the_final_ones_beside_what_was_chosen(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for step in range(5):
        board.scalars(step, {"loss": 0.5**step, "fx": 700.0 + step})
    board.hyperparameters({"rate": 0.25, "preset": "default", "resume": True}, {"loss": 0.01, "rms": 2.0}, 3)
    board.close()
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["loss", "metrics/fx", "metrics/rms"]
    assert [(e.step, e.value) for e in events.Scalars("metrics/fx")] == [(s, 700 + s) for s in range(5)]
    assert [e.step for e in events.Scalars("loss")] == [0, 1, 2, 3, 4, 4]  # never back to step 3
    assert [e.value for e in events.Scalars("loss")][:5] == [0.5**step for step in range(5)]
    assert events.Scalars("loss")[-1].value == pytest.approx(0.01)
    assert [(e.step, e.value) for e in events.Scalars("metrics/rms")] == [(4, 2.0)]
    start, end = (
        HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/session_{which}_info").plugin_data.content)
        for which in ("start", "end")
    )
    chosen = start.session_start_info.hparams
    assert set(chosen) == {"rate", "preset", "resume"}
    assert chosen["rate"].number_value == 0.25
    assert chosen["preset"].string_value == "default"
    assert chosen["resume"].number_value == 1
    assert end.session_end_info.status == 1  # success
    assert "_hparams_/experiment" not in events.summary_metadata


def test_a_picture_keeps_its_size(tmp_path: Path) -> None:
    png = io.BytesIO()
    Figure(figsize=(3, 2)).savefig(png, dpi=50, format="png")
    board = Board(tmp_path)
    board.picture("keypoints", 7, png.getvalue())
    board.close()
    (event,) = read(tmp_path).Images("pictures/keypoints")
    assert (event.step, event.width, event.height) == (7, 150, 100)
    assert Image.open(io.BytesIO(event.encoded_image_string)).size == (150, 100)


def test_a_resumed_run_replaces_what_it_computes_again(tmp_path: Path) -> None:
    recording = without_cameras(sphere())
    for start, stop, purge in ((0, 10, None), (5, 8, 5)):
        board = Board(tmp_path, purge)
        for frame in recording.frames[start:stop]:
            board.scalars(frame.step, {"loss": start})
            board.frame(recording.stages[0], frame)
        board.close()
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(s, 0 if s < 5 else 5) for s in range(8)]
    loaded = PluginEventAccumulator(str(tmp_path), {"tensors": 0}).Reload()  # the older one keeps expired tensors
    assert [event.step for event in loaded.Tensors("points_VERTEX")] == list(range(8))


def test_a_board_closes_at_once_wherever_ctrl_c_meets_it(tmp_path: Path) -> None:
    """What stands in the file is whole but for its end, and nothing waits for a thread."""
    threads = threading.active_count()
    for number in range(30):
        board = Board(tmp_path / str(number))
        assert threading.active_count() == threads
        with suppress(KeyboardInterrupt), interrupting(after=0.001 * (1 + number)):
            for step in itertools.count():
                board.scalars(step, {"loss": float(step), "other": 1.0})
        board.close()
        losses = read(tmp_path / str(number)).Scalars("loss")
        assert [event.value for event in losses] == list(range(len(losses)))


@contextmanager
def interrupting(after: float) -> Iterator[None]:
    """KeyboardInterrupt wherever Python is then."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
