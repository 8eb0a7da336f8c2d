"""Scenes and pictures: what is drawn, where, and in which order."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.drawing.figures import BLUE, ORANGE
from experiments.records.recording import Frame, Recording, Stage
from experiments.viewers.picture import _framed, picture, view
from experiments.viewers.scene import caption, has_space, scene
from tests.experiments.viewers.recordings import keypoints, sphere


def cloud(points: np.ndarray, **stage: Any) -> Recording:
    return Recording("cloud", (Stage(**stage),), (Frame(0, points3d=points),))


def normal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


def drawn(figure: Any) -> dict[str, Any]:
    """The dots and lines of a picture: colour of the lines to their segments, "points" and "truth" to their places."""
    axes, found = figure.axes[0], {}
    for collection in axes.collections:
        kind = type(collection).__name__
        if kind == "PathCollection":
            found["truth" if collection.get_alpha() == 0.5 else "points"] = collection
        elif len(collection.get_segments()):
            color = tuple(np.rint(255 * collection.get_colors()[0][:3]).astype(int))
            found.setdefault("#{:02X}{:02X}{:02X}".format(*color), []).extend(collection.get_segments())
    return found


# ---- scenes ----


def test_what_is_unknown_is_left_out_and_the_rest_keeps_its_color() -> None:
    recording = sphere()
    start, end = scene(recording, 0), scene(recording, -1)
    assert (len(start.points), len(start.residuals), len(start.truth)) == (150, 150, 300)
    np.testing.assert_array_equal(start.points, recording.frames[0].points3d[1::2])
    np.testing.assert_array_equal(start.colors, recording.stages[0].colors[1::2])
    np.testing.assert_array_equal(start.residuals[:, 1], recording.stages[0].points3d_gt[1::2])
    assert len(end.points) == 300


def test_truth_that_its_estimate_covers_is_left_out() -> None:
    recording = sphere()
    end = scene(recording, -1)
    assert (len(end.truth), len(end.cameras_gt), len(end.cameras)) == (0, 0, 6 * 8)
    half = recording.frames[-1].points3d.copy()
    half[:100] += 0.1
    half[100:200] = np.nan
    apart = scene(replace(recording, frames=(replace(recording.frames[-1], points3d=half),)), -1)
    np.testing.assert_array_equal(apart.truth, recording.stages[0].points3d_gt[:200])


def test_colors_by_place_are_those_of_the_truth() -> None:
    recording = sphere()
    plain = replace(recording, stages=(replace(recording.stages[0], colors=None),))
    known = np.isfinite(recording.frames[0].points3d).all(1)
    np.testing.assert_array_equal(scene(plain, 0).colors, scene(plain, -1).colors[known])
    assert len(np.unique(scene(plain, 0).colors, axis=0)) > 50


def test_edges_are_those_of_points_alone() -> None:
    assert scene(keypoints(), 0).edges.shape == (12, 2, 3)
    assert np.allclose(np.ptp(scene(keypoints(), 0).edges, axis=1).sum(-1), 2)  # along the sides of the cube
    of_image_points = cloud(np.zeros((2, 3)), edges=np.array([[0, 5]]))
    assert len(scene(of_image_points, 0).edges) == 0


def test_cameras_far_away_come_nearer_on_their_lines_of_sight() -> None:
    recording = sphere()
    near, far = recording.frames[-1].world_to_camera, recording.frames[-1].world_to_camera.copy()
    far[:, 2, 3] *= 25
    moved = replace(recording, frames=(replace(recording.frames[-1], world_to_camera=far),))
    assert not scene(recording, -1).drawn_near
    assert scene(moved, -1).drawn_near
    assert "cameras drawn nearer" in caption(moved, -1)
    ends = scene(moved, -1).cameras[::8, 0]
    centres = -np.einsum("vji,vj->vi", near[:, :3, :3], near[:, :3, 3])
    directions = [c / np.linalg.norm(c, axis=1, keepdims=True) for c in (ends, centres)]
    np.testing.assert_allclose(*directions, atol=0.1)  # the middle of the points is not quite 0
    assert np.linalg.norm(ends, axis=1).max() < 5


@pytest.mark.parametrize(
    ("recording", "index", "says"),
    [
        (sphere(), -1, "iteration 19, 300 points, 6 cameras, rms distance to the truth 0 scene units"),
        (keypoints(), 0, "iteration 0, 8 points, 1 camera, rms distance to the target 191 px"),
        (cloud(normal(3000)), 0, "3,000 points"),
        (replace(cloud(normal(3)), frames=(Frame(0, points3d=normal(3), error_px=np.array([1, 2, np.nan])),)), 0,
         "3 points, median error 1.5 px"),
    ],
)  # fmt: skip
def test_captions_say_what_there_is_and_how_good(recording: Recording, index: int, says: str) -> None:
    assert caption(recording, index) == says


def test_nothing_in_space_is_told_apart() -> None:
    assert has_space(sphere())
    assert has_space(keypoints())
    image_points = replace(keypoints(), stages=(Stage(),), frames=(Frame(0, points2d=np.zeros((3, 2))),))
    for nothing in (
        replace(sphere(), frames=()),
        image_points,
        cloud(np.full((5, 3), np.nan)),
        cloud(np.zeros((0, 3))),
    ):
        assert not has_space(nothing)
        with pytest.raises(ValueError, match=r"no frame|neither points nor cameras"):
            picture(nothing)


# ---- pictures ----


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 8, -1])
@pytest.mark.parametrize("recording", [sphere(), keypoints(), cloud(normal(40_000))], ids=["sphere", "cube", "many"])
def test_all_that_is_not_astray_is_inside_the_picture(recording: Recording, index: int) -> None:
    index = index if len(recording.frames) > 1 else 0
    figure = picture(recording, index)
    axes, seen = figure.axes[0], scene(recording, index)
    places = view(seen, recording.up)(np.concatenate([_framed(seen)]))[0]
    box = np.array([axes.get_xlim(), axes.get_ylim()])
    assert ((places > box[:, 0]) & (places < box[:, 1])).all()
    sides = (places.max(0) - places.min(0)) / np.ptp(box, axis=1)
    assert sides.max() == pytest.approx(1 / 1.1)  # and as large as can be
    width, height = np.ptp(box, axis=1)
    extent = axes.get_window_extent()
    assert width / height == pytest.approx(extent.width / extent.height)


def test_a_few_points_astray_do_not_shrink_the_others() -> None:
    points = normal(1000)
    astray = np.concatenate([points, 1e6 * normal(10, 1)])
    scales = [np.ptp(picture(cloud(p)).axes[0].get_xlim()) for p in (points, astray)]
    assert scales[1] == pytest.approx(scales[0], rel=0.2)


def test_near_points_cover_far_ones_and_cameras_are_before_or_behind() -> None:
    recording = sphere()
    seen = scene(recording, -1)
    looked = view(seen, recording.up)
    places, near = looked(seen.points)
    offsets = drawn(picture(recording))["points"].get_offsets()
    np.testing.assert_allclose(offsets, places[np.argsort(near)])
    viewer = looked.middle + 3.5 * looked.radius * looked.R[2]
    distances = np.linalg.norm(seen.points[np.argsort(near)] - viewer, axis=1)
    assert distances[-30:].max() < distances[:30].min()
    lines = [c for c in picture(recording).axes[0].collections if c.get_zorder() in (1, 4) and len(c.get_segments())]
    assert {c.get_zorder() for c in lines} == {1, 4}


def test_what_is_up_is_drawn_upwards_and_not_mirrored() -> None:
    points = normal(500)
    for up in (np.array([0.0, 0, 1]), np.array([0.6, 0, -0.8])):
        seen = scene(cloud(points), 0)
        looked = view(seen, up)
        ends, _ = looked(np.stack([looked.middle, looked.middle + 0.1 * up]))
        assert ends[1, 1] > ends[0, 1]
        assert abs(ends[1, 0] - ends[0, 0]) < 1e-9
        np.testing.assert_allclose(looked.R @ looked.R.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(looked.R) == pytest.approx(1)


def test_estimates_are_blue_and_truth_is_orange() -> None:
    start, end = (drawn(picture(sphere(), index)) for index in (0, -1))
    assert len(start[BLUE]) == 6 * 8
    assert len(start[ORANGE]) == 150 + 6 * 8
    assert len(start["truth"].get_offsets()) == 300
    assert ORANGE not in end
    for index, told in ((0, True), (-1, False)):
        texts = [text.get_text() for text in picture(sphere(), index).axes[0].texts]
        assert ("orange: the truth, where it differs" in texts) == told


@pytest.mark.slow
@pytest.mark.parametrize(("count", "scale"), [(1, 1.0), (2, 1e-9), (8, 1.0), (8, 0.0), (1000, 1e6), (100_000, 1.0)])
def test_any_number_of_points_of_any_size_is_drawn(count: int, scale: float, tmp_path: Any) -> None:
    figure = picture(cloud(scale * normal(count) + 7 * scale))
    figure.savefig(tmp_path / "a.svg")
    assert len(drawn(figure)["points"].get_offsets()) == count
    assert (tmp_path / "a.svg").stat().st_size < 3e6


def test_cameras_alone_are_drawn() -> None:
    poses = sphere().frames[-1].world_to_camera
    figure = picture(Recording("poses", (Stage(),), (Frame(0, world_to_camera=poses),)))
    assert len(drawn(figure)[BLUE]) == 6 * 8


def test_a_title_is_taken_literally() -> None:
    figure = picture(replace(sphere(), title=r"a$\frac{b$_c"))
    figure.canvas.draw()
    assert figure.texts[0].get_text() == r"a$\frac{b$_c"
