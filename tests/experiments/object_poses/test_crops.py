"""Crops against pictures that are formulas, cameras that must agree with them, and batches that know no process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from datasets.arrays import read_image
from datasets.objects.layout import Instance
from experiments.object_poses.crops import MARGIN, Batches, Collate, CropBatch, Crops, crop_loader, crop_map, cut
from tests.experiments.object_poses.scene import pose

K = np.array([[520.0, 0, 163.4], [0, 518, 117.2], [0, 0, 1]])


def scaling(scale: float, u: float, v: float, size: int) -> np.ndarray:
    """A map of this scale that takes (u, v) of the picture to the middle of the crop."""
    c = (size - 1) / 2
    return np.array([[scale, 0, c - scale * u], [0, scale, c - scale * v], [0, 0, 1]])


# ---- one crop ----


@pytest.mark.parametrize("scale", [1, 0.5, 0.3, 2, 0.77, 0.19])
def test_a_ramp_is_reproduced_at_every_scale(scale: float) -> None:
    """The value at pixel u of the crop is the ramp's at A^-1 u, where linear interpolation, or a mean, is exact."""
    v, u = np.mgrid[:333, :445].astype(np.float32)  # not a multiple of what it is reduced by
    size = 48
    A = scaling(scale, 222.3, 165.8, size)
    crop = cut(np.stack([u, v, 3 * u - 2 * v], -1), A, size)
    there = np.linalg.inv(A) @ np.stack([*np.mgrid[:size, :size][::-1].reshape(2, -1), np.ones(size * size)])
    wanted = np.stack([there[0], there[1], 3 * there[0] - 2 * there[1]], -1).reshape(size, size, 3)
    one = 1 / scale if scale < 1 else 1  # pixels of what is interpolated; OpenCV's tables have 32 steps of one
    np.testing.assert_allclose(crop[..., :2], wanted[..., :2], rtol=0, atol=one / 32)
    np.testing.assert_allclose(crop[..., 2], wanted[..., 2], rtol=0, atol=5 * one / 32)


def test_a_crop_at_scale_one_is_a_piece_of_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    A = np.array([[1.0, 0, -21], [0, 1, -9], [0, 0, 1]])
    assert (cut(picture, A, 32) == picture[9:41, 21:53]).all()
    assert (cut(picture[..., ::-1], A, 32) == picture[9:41, 21:53, ::-1]).all()  # as read_image gives it


def test_what_is_outside_is_grey() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    for scale in (1, 0.4):
        crop = cut(picture, scaling(scale, 0, 0, 32), 32)
        assert (crop[:14] == 128).all()
        assert (crop[:, :14] == 128).all()
        assert (crop[18:22, 18:22] == 0).all()


@pytest.mark.parametrize("scale", [0.5, 0.3, 0.125])
def test_finer_patterns_than_the_crop_s_pixels_become_their_mean(scale: float) -> None:
    v, u = np.mgrid[:200, :200]
    picture = np.repeat(np.uint8(255 * ((u + v) % 2))[..., None], 3, -1)
    crop = cut(picture, scaling(scale, 100, 100, 24), 24).astype(float)
    assert np.abs(crop - 127.5).max() < 30
    assert abs(crop.mean() - 127.5) < 3


@pytest.mark.parametrize("box", [(30.0, 40.0, 20.0, 50.0), (-10.0, 7.5, 33.0, 12.0), (3.0, 4.0, 0.0, 5.0)])
def test_a_box_fills_its_crop_but_for_the_margin(box: tuple[float, float, float, float]) -> None:
    x, y, w, h = box
    A = crop_map(box, 96)
    centre = A @ [x + w / 2, y + h / 2, 1]
    np.testing.assert_allclose(centre, [47.5, 47.5, 1])  # the middle of pixels 0 ... 95
    corner = A @ [x, y, 1]
    np.testing.assert_allclose(2 * (centre - corner)[:2], np.array([w, h]) / max(w, h) * 96 / MARGIN)
    assert A[0, 0] == A[1, 1]  # as wide as high


@pytest.mark.parametrize("box", [(1, 2, 0, 0), (-1, -1, -1, -1), (0, 0, np.nan, 3)])
def test_an_empty_box_is_refused(box: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="box must have a width and a height above zero, got"):
        crop_map(box, 64)


# ---- a data set ----


def dots(points2d: np.ndarray, sigma: float) -> np.ndarray:
    """A picture (240,320,3) with a bright round dot about each of the points, on black."""
    v, u = np.mgrid[:240, :320]
    squares = (u[..., None] - points2d[:, 0]) ** 2 + (v[..., None] - points2d[:, 1]) ** 2
    return np.repeat(np.uint8(np.rint(250 * np.exp(-0.5 * squares / sigma**2).max(-1)))[..., None], 3, -1)


def projected(K: np.ndarray, at: np.ndarray, X: np.ndarray) -> np.ndarray:
    p = (X @ at[:3, :3].T + at[:3, 3]) @ K.T
    return p[:, :2] / p[:, 2:]


X = np.array([[0.0, 0, 0], [45, 5, 10], [-40, 20, -10], [5, -42, 15]])


@pytest.fixture
def scene(tmp_path: Path) -> list[Instance]:
    """Six pictures of four dots in space, from afar and from near; objects 4 and 9 in turns."""
    instances = []
    for i, z in enumerate((330.0, 1200, 700, 250, 500, 600)):
        at = pose(0.2 * i, -0.1 * i, 0.5, 10 - 3 * i, 2 * i, z)
        points2d = projected(K, at, X)
        path = tmp_path / f"{i:06d}.png"
        cv2.imwrite(str(path), dots(points2d, 0.006 * 520 * 300 / z))
        low, high = points2d.min(0), points2d.max(0)
        box = (float(low[0]), float(low[1]), *map(float, high - low))
        instances.append(Instance(1, i, (4, 9)[i % 2], 0, path, K, at, box, 1.0))
    return instances


@pytest.mark.parametrize("draw", [None, 0, 17])
def test_the_camera_of_a_crop_sees_what_the_crop_shows(scene: list[Instance], draw: int | None) -> None:
    """Dots of the picture are in the crop where its K and pose put them, however it was moved, scaled and turned."""
    crops = Crops(scene, (9, 4), 96, seed=3)
    for row, instance in enumerate(scene):
        _, crop = crops[draw, row]
        assert crop.images.shape == (3, 96, 96)
        assert crop.images.dtype == torch.uint8
        assert crop.objects == (1, 0)[row % 2]
        assert crop.rows == row
        assert (crop.pose_gt.numpy() == instance.pose).all() == (draw is None)
        points2d = projected(crop.K.numpy(), crop.pose_gt.numpy(), X)
        value = crop.images[0].numpy().astype(float) ** 3  # so that dots are narrow, and far ones do not pull
        value[crop.images[0].numpy() == 128] = 0
        v, u = np.mgrid[:96, :96]
        whole = points2d[(points2d > 5).all(-1) & (points2d < 90).all(-1)]
        assert len(whole) >= 2
        for x, y in whole:
            near = value * ((u - x) ** 2 + (v - y) ** 2 < 5**2)
            found = np.array([(near * u).sum(), (near * v).sum()]) / near.sum()
            np.testing.assert_allclose(found, [x, y], rtol=0, atol=0.12)
    with pytest.raises(AssertionError):  # a third of a pixel off would be seen
        np.testing.assert_allclose(found, [x + 1 / 3, y], rtol=0, atol=0.12)


def test_draws_move_the_box_within_bounds_and_none_leaves_it(scene: list[Instance]) -> None:
    crops = Crops(scene, (4, 9), 64, seed=1, shift=0.1, zoom=0.2, roll=0.0)
    box = np.array(scene[0].box)
    middle, side = np.append(box[:2] + box[2:] / 2, 1), box[2:].max()
    moved, scales = [], []
    for draw in range(40):
        A = crops[draw, 0][1].K.numpy() @ np.linalg.inv(K)
        moved.append((A @ middle)[:2] - 31.5)
        scales.append(64 / MARGIN / side / A[0, 0])
    plain = crops[None, 0][1].K.numpy() @ np.linalg.inv(K)
    np.testing.assert_allclose(plain, crop_map(scene[0].box, 64), atol=1e-9)
    shift = np.abs(moved) * np.array(scales)[:, None] / (64 / MARGIN)
    assert 0.08 < shift.max() <= 0.1 + 1e-9
    assert 0.8 - 1e-9 <= min(scales) < 0.85
    assert 1.15 < max(scales) <= 1.2 + 1e-9
    assert abs(np.mean(moved)) < 1.5


def test_draws_turn_the_camera_about_its_axis_within_bounds(scene: list[Instance]) -> None:
    crops = Crops(scene, (4, 9), 64, seed=1, roll=0.5)
    angles = []
    for draw in range(40):
        turn = crops[draw, 0][1].pose_gt.numpy() @ np.linalg.inv(scene[0].pose)
        angles.append(np.arctan2(turn[1, 0], turn[0, 0]))
        wanted = np.eye(4)
        wanted[:2, :2] = [[np.cos(angles[-1]), -np.sin(angles[-1])], [np.sin(angles[-1]), np.cos(angles[-1])]]
        np.testing.assert_allclose(turn, wanted, rtol=0, atol=1e-10)
    assert -0.5 <= min(angles) < -0.4
    assert 0.4 < max(angles) <= 0.5


def test_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png: a file wanted, found nothing"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png: an image wanted, found"):
        read_image(tmp_path / "text.png")
    cv2.imwrite(str(tmp_path / "red.png"), np.uint8([[[0, 0, 255]]]))
    assert read_image(tmp_path / "red.png").tolist() == [[[255, 0, 0]]]
    cv2.imwrite(str(tmp_path / "gray.png"), np.uint8([[7]]))
    assert read_image(tmp_path / "gray.png").tolist() == [[[7, 7, 7]]]


# ---- what a crop does not depend on ----


def same(one: CropBatch, other: CropBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def loaded(scene: list[Instance], batches: Any, workers: int, seed: int = 0, augmented: bool = True) -> list[CropBatch]:
    return list(crop_loader(Crops(scene, (4, 9), 32, seed), batches, workers, augmented))


@pytest.mark.slow
def test_crops_are_the_same_whoever_loads_them(scene: list[Instance]) -> None:
    """In this process, by one worker, by two; from the beginning or from the middle; after other random numbers."""
    whole = loaded(scene, Batches(6, 2, 5, 0, 6), 0)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    others = loaded(scene, Batches(6, 2, 5, 0, 6), 0)
    for workers in (1, 2):
        tail = loaded(scene, Batches(6, 2, 5, 2, 6), workers)
        assert len(tail) == 4
        assert all(same(a, b) for a, b in zip(tail, whole[2:], strict=True))
    assert all(same(a, b) for a, b in zip(others, whole, strict=True))
    assert not same(whole[0], loaded(scene, Batches(6, 2, 5, 0, 1), 0, seed=1)[0])


def test_a_crop_does_not_depend_on_its_neighbours(scene: list[Instance]) -> None:
    one = loaded(scene, [[(3, 0), (3, 5), (8, 2)]], 0, augmented=False)[0]
    other = loaded(scene, [[(8, 2), (1, 1), (3, 0)]], 0, augmented=False)[0]
    assert same(CropBatch(*(v[[0, 2]] for v in one)), CropBatch(*(v[[2, 0]] for v in other)))
    assert not torch.equal(one.images[2], loaded(scene, [[(9, 2)]], 0, augmented=False)[0].images[0])


def test_augmentation_changes_pictures_alone(scene: list[Instance]) -> None:
    crops = Crops(scene, (4, 9), 32)
    items = [crops[7, row] for row in range(6)]
    state = torch.get_rng_state()
    plain, augmented = (Collate(flag)(items) for flag in (False, True))
    assert torch.equal(state, torch.get_rng_state())  # nor the training's random numbers
    assert same(plain._replace(images=augmented.images), augmented)
    assert augmented.images.dtype == torch.uint8
    changed = (plain.images.float() - augmented.images.float()).abs().flatten(1).mean(1)
    assert (changed > 0).sum() >= 4
    assert changed.mean() < 60
    assert same(augmented, Collate(True)(items))
    items[0] = crops[8, 0]  # another draw
    assert not torch.equal(Collate(True)(items).images[1:], augmented.images[1:])


# ---- batches ----


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_what_one_would_have(world: int) -> None:
    one = list(Batches(50, 12, 4, 0, 10))
    parts = [list(Batches(50, 12, 4, 0, 10, rank, world)) for rank in range(world)]
    for step, batch in enumerate(one):
        assert all(len(part[step]) == 12 // world for part in parts)
        assert sorted(row for part in parts for row in part[step]) == sorted(batch)
        assert {draw for draw, _ in batch} == {step}


def test_batches_go_on_where_they_were() -> None:
    whole = list(Batches(50, 12, 4, 0, 11))
    for start in (1, 4, 7, 11):
        assert list(Batches(50, 12, 4, start, 11)) == whole[start:]
        assert len(Batches(50, 12, 4, start, 11)) == 11 - start
    assert list(Batches(50, 12, 4, 3, 2)) == []


def test_an_epoch_has_every_row_once() -> None:
    steps = list(Batches(12, 4, 0, 0, 9))
    epochs = [[row for batch in steps[i : i + 3] for _, row in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(12))
    assert list(Batches(12, 4, 1, 0, 3)) != steps[:3]
    # where batches do not divide the rows, what is left over is another each time
    rows = [{row for batch in list(Batches(13, 4, 0, 3 * i, 3 * i + 3)) for _, row in batch} for i in range(8)]
    assert all(len(some) == 12 for some in rows)
    assert len(set().union(*rows)) == 13


@pytest.mark.parametrize(("batch", "world"), [(13, 1), (9, 2)])
def test_batches_that_cannot_be_are_refused(batch: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"batch must be a multiple of the {world} processes and at most 12, got"):
        Batches(12, batch, 0, 0, 5, 0, world)
