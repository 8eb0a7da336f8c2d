import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from datasets.objects.linemod import read_cat
from datasets.objects.rendering import render_depth
from experiments.drawing.figures import BLUE, ORANGE, rgb
from experiments.object_poses.overlay import overlay, sheet
from tests.experiments.object_poses.scene import MODELS, moved, pose

K = np.array([[520.0, 0, 163.4], [0, 518, 117.2], [0, 0, 1]])
IMAGE = np.full((240, 320, 3), 200, np.uint8)
TRUTH = pose(0.7, -0.5, 0.2, 20, 10, 400)


def inked(picture: np.ndarray, color: str, tolerance: int = 40) -> np.ndarray:
    """Rows and columns (N,2) of the pixels that are nearly of this colour."""
    return np.argwhere((np.abs(picture.astype(int) - rgb(color).astype(int)) < tolerance).all(-1))


def silhouette(model: Any, at: np.ndarray, scale: int) -> np.ndarray:
    """(H,W) bool: the object's pixels, of a picture enlarged about the corner of its first pixel."""
    enlarge = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
    depth, _ = render_depth([model.mesh], at[None], enlarge @ K, (320 * scale, 240 * scale))
    return depth > 0


def test_the_outline_lies_on_the_silhouettes_edge() -> None:
    drawn = overlay(IMAGE, MODELS[1], TRUTH, K)
    assert drawn.shape == (480, 640, 3)  # twice as large, to be legible
    assert drawn.dtype == np.uint8
    mask = silhouette(MODELS[1], TRUTH, 2).astype(np.uint8)
    edge = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
    from_edge = cv2.distanceTransform(1 - edge, cv2.DIST_L2, 5)
    blue = np.zeros(mask.shape, np.uint8)
    blue[tuple(inked(drawn, BLUE).T)] = 1
    from_blue = cv2.distanceTransform(1 - blue, cv2.DIST_L2, 5)
    assert from_blue[edge > 0].max() < 3  # all of the edge is drawn,
    outside = from_edge[(blue > 0) & (cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0)]
    assert outside.size == 0  # and nothing outside: a box's box is itself
    assert len(inked(drawn, ORANGE)) == 0


def test_truth_is_orange_and_the_estimate_blue_where_they_are() -> None:
    far = moved(TRUTH, 0, 0, 0, -70, -40, 0)
    drawn = overlay(IMAGE, MODELS[1], far, K, TRUTH)
    for at, color in ((far, BLUE), (TRUTH, ORANGE)):
        rows, columns = np.nonzero(silhouette(MODELS[1], at, 2))
        pixels = inked(drawn, color)
        assert len(pixels) > 200
        low, high = pixels.min(0), pixels.max(0)
        assert np.abs(low - (rows.min(), columns.min())).max() <= 3
        assert np.abs(high - (rows.max(), columns.max())).max() <= 3


def test_keypoints_lie_where_they_were_found() -> None:
    plain, point = overlay(IMAGE, MODELS[1], TRUTH, K), np.array([[40.0, 200.0], [math.nan, 3.0], [1e9, 1.0]])
    drawn = overlay(IMAGE, MODELS[1], TRUTH, K, keypoints2d=point)
    changed = np.abs(drawn.astype(float) - plain).sum(-1)
    rows, columns = np.nonzero(changed)
    middle = np.average(rows, weights=changed[rows, columns]), np.average(columns, weights=changed[rows, columns])
    assert middle == pytest.approx((2 * 200 + 0.5, 2 * 40 + 0.5), abs=0.1)
    assert max(np.ptp(rows), np.ptp(columns)) <= 12


@pytest.mark.slow
def test_what_does_not_exist_is_not_drawn() -> None:
    nowhere = np.full((4, 4), math.nan)
    assert (overlay(IMAGE, MODELS[1], nowhere, K) == 200).all()
    drawn = overlay(IMAGE, MODELS[1], nowhere, K, TRUTH)
    assert len(inked(drawn, ORANGE)) > 200
    assert len(inked(drawn, BLUE)) == 0
    for z in (-400.0, 0.0, 1e-3):  # behind the camera, around it, and all over the picture
        overlay(IMAGE, MODELS[1], pose(0.7, -0.5, 0.2, 20, 10, z), K, TRUTH)
    assert (IMAGE == 200).all()  # the picture itself is left alone


def test_large_pictures_keep_their_size() -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    assert overlay(image, MODELS[1], TRUTH, K).shape == (480, 640, 3)
    assert overlay(image[:100, :120].copy(), MODELS[1], TRUTH, K).shape == (400, 480, 3)


def test_the_real_cat(real_data: Callable[[str], Path]) -> None:
    """The outline of its nine points' convex hull lies within the cat of the picture, and fills most of it."""
    model, cat = read_cat(real_data("linemod_cat"))
    assert cat.mask is not None
    image = cv2.imread(str(cat.path))[..., ::-1]
    drawn = overlay(image, model, cat.pose, cat.K)
    mask = cv2.imread(str(cat.mask), cv2.IMREAD_GRAYSCALE) > 127
    changed = (drawn != image).any(-1)
    assert 0 < changed.sum() < 0.05 * mask.size
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((61, 61), np.uint8)) > 0  # room for the box and the axes' letters
    assert not (changed & ~grown).any()


def test_a_sheet_holds_every_picture_above_its_caption() -> None:
    tiles = [np.full((40, 60, 3), 10 * i, np.uint8) for i in range(1, 6)]
    tiles[1] = tiles[1][:30]
    found = sheet(tiles, [f"ADD {i}.0 mm, a very long name of an object" for i in range(5)], columns=2)
    for tile, (rows, columns) in zip(tiles, [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)], strict=True):
        at = np.argwhere((found == tile[0, 0]).all(-1))
        assert len(at) == tile.shape[0] * tile.shape[1]
        assert (np.ptp(at, axis=0) + 1).tolist() == list(tile.shape[:2])
        assert (at.min(0) // (60, 60)).tolist() == [rows - 1, columns - 1]
        below = found[at[:, 0].max() + 1 :, at[:, 1].min() : at[:, 1].max() + 1][:30]
        assert (below < 128).any()
    assert (found[:, -6:] == 255).all()  # captions are made to fit
    assert (found[:4] == 255).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": IMAGE.astype(float)}, "image: uint8 of shape .* found float64"),
        ({"image": IMAGE[..., 0]}, r"image: .* found uint8 of shape \(240, 320\)"),
        ({"pose": TRUTH[:3]}, r"pose: shape \(4, 4\) wanted, found \(3, 4\)"),
        ({"pose_gt": TRUTH[None]}, r"pose_gt: shape \(4, 4\) wanted, found \(1, 4, 4\)"),
        ({"K": K[:2]}, r"K: shape \(3, 3\) wanted"),
        ({"keypoints2d": np.zeros((4, 3))}, r"keypoints2d: shape \(N, 2\) wanted, found \(4, 3\)"),
    ],
)
def test_mistakes_are_named(changed: dict[str, np.ndarray], message: str) -> None:
    arguments = {"image": IMAGE, "model": MODELS[1], "pose": TRUTH, "K": K} | changed
    with pytest.raises(ValueError, match=message):
        overlay(**arguments)


def test_mistakes_of_a_sheet_are_named() -> None:
    for images, captions, columns in (([], [], 4), ([IMAGE], [], 4), ([IMAGE], ["one"], 0)):
        with pytest.raises(ValueError, match=f"found {len(images)}, {len(captions)} and {columns}"):
            sheet(images, captions, columns)
