"""Targets are found in pictures whose marks are known, more exactly than OpenCV has them."""

import math

import cv2
import numpy as np
import pytest
import torch

from datasets.images.targets import charuco, chessboard, circles, tags
from datasets.made.boards import (
    Camera,
    Conditions,
    charuco_print,
    chessboard_print,
    circle_print,
    poses,
    render,
    tag_print,
)
from geometry import project

SIZE = (320, 240)
K = torch.tensor([[330.0, 0, 160], [0, 333, 118], [0, 0, 1]], dtype=torch.float64)
CAMERA = Camera(K, torch.tensor([-0.2, 0.05, 1e-3, -1e-3, 0], dtype=torch.float64), SIZE)
KINDS = {
    "chessboard": (chessboard((7, 5)), chessboard_print((7, 5)), 0.03),
    "charuco": (charuco((5, 4), 1.0, 0.75), charuco_print((5, 4)), 0.04),
    "tags": (tags((3, 2)), tag_print((3, 2)), 0.06),
    "circles": (circles((6, 5)), circle_print((6, 5), 0.3), 0.05),
    "asymmetric circles": (circles((4, 7), 1.0, True), circle_print((4, 7), 0.2, True), 0.05),
}


@pytest.fixture(scope="module")
def rays():
    return CAMERA.rays()


def picture(board, rays, seed):
    g = torch.Generator().manual_seed(seed)
    (pose,) = poses(board, CAMERA, 1, g)
    return render(board, pose, rays, Conditions(0.6, 0.01, 0.3), g), project(
        board.points3d, pose, CAMERA.K, CAMERA.distortion
    ).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_marks_are_found_where_they_are(rays, kind):
    target, board, most = KINDS[kind]
    assert torch.allclose(target.points3d, board.points3d)
    errors, others = [], []
    for seed in range(4):
        image, truth = picture(board, rays, seed)
        seen, plain = target.find(image), target.detect(image)
        if seen is None:
            continue
        if target.half_turn and np.linalg.norm(seen.points2d - truth[seen.marks], axis=1).mean() > 5:
            truth = truth[::-1]
        errors.append(seen.points2d - truth[seen.marks])
        others.append(plain.points2d - truth[plain.marks])
    count, of = (sum(map(len, each)) for each in (errors, others))
    assert of >= 2 * len(board.points3d)
    assert count >= 0.9 * of
    rms, theirs = (math.sqrt((np.concatenate(e) ** 2).sum(1).mean()) for e in (errors, others))
    assert rms < most
    assert rms < theirs


@pytest.mark.slow
def test_a_hidden_mark_is_none(rays):
    target, board, _ = KINDS["tags"]
    image, truth = picture(board, rays, 1)
    u, v = truth[0].round().astype(int)
    cv2.circle(image, (int(u), int(v)), 3, 128, -1)
    plain, seen = target.detect(image), target.find(image)
    assert 0 not in seen.marks
    assert set(seen.marks) <= set(plain.marks)


@pytest.mark.slow
def test_part_of_a_board_is_as_good(rays):
    target, board, most = KINDS["charuco"]
    image, truth = picture(board, rays, 2)
    whole = target.find(image)
    image[:, : int(truth[:, 0].mean())] = 200
    part = target.find(image)
    assert 4 <= len(part.marks) < len(whole.marks)
    assert np.linalg.norm(part.points2d - truth[part.marks], axis=1).max() < 4 * most


def test_a_picture_upside_down_gives_the_marks_upside_down(rays):
    """What is fitted knows no direction: an image turned by 180 degrees moves no mark."""
    target, board, _ = KINDS["charuco"]
    image, _ = picture(board, rays, 3)
    seen, turned = target.detect(image), np.ascontiguousarray(image[::-1, ::-1])
    there = target.refine(image, seen)
    again = target.refine(turned, seen._replace(points2d=np.array(SIZE) - 1 - seen.points2d))
    assert there.good.equal(again.good)
    torch.testing.assert_close(there.points2d, torch.tensor(SIZE) - 1 - again.points2d, rtol=0, atol=1e-3)


def test_markers_of_another_board_are_counted(rays):
    image, _ = picture(tag_print((3, 2)), rays, 0)
    assert tags((2, 2)).detect(image).others == 2


def test_nothing_is_found_in_nothing():
    blank = np.full(SIZE[::-1], 128, np.uint8)
    assert all(target.find(blank) is None for target, *_ in KINDS.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chessboard((9, 2)), "corners: at least 3"),
        (lambda: chessboard((9, 6), 0.0), "square: a positive length"),
        (lambda: charuco((5, 4), 1.0, 1.5), "marker: a side below that of a square"),
        (lambda: charuco((5, 4), 1.0, 0.7, "3X3_1"), "dictionary: one of .*4X4_50.* wanted, found '3X3_1'"),
        (lambda: tags((3, 0)), "size: at least 1"),
        (lambda: tags((3, 2), gap=0), "gap: a positive length"),
        (lambda: circles((4, 1)), "size: at least 2"),
        (lambda: circles((4, 3), -1.0), "spacing: a positive length"),
    ],
)
def test_a_target_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
