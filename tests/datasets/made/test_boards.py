"""Rendered targets: what is dark is where it should be, to fractions of a pixel."""

import cv2
import numpy as np
import pytest
import torch

from datasets.made.boards import Camera, Conditions, chessboard_print, circle_print, poses, render
from geometry import project, se3

SIZE = (160, 120)
K = torch.tensor([[160.0, 0, 80], [0, 160, 60], [0, 0, 1]], dtype=torch.float64)
CAMERA = Camera(K, torch.zeros(0, dtype=torch.float64), SIZE)
PLAIN = Conditions(blur=0.0, noise=0.0, light=0.0)


def test_a_pixel_is_as_dark_as_the_print_covers_it() -> None:
    """A board parallel to the image, whose edges cut pixels at known places."""
    board, side = chessboard_print((2, 2)), 16.3
    pose = se3.make(torch.eye(3).double(), torch.tensor([-0.5, -0.5, 160 / side]).double())
    image = render(board, pose, CAMERA.rays(), PLAIN, torch.Generator()).astype(float) / 255
    left = 80 - 1.5 * side  # px, the left edge of the first square
    row = image[round(60 - side), :]
    assert row[round(left + side / 2)] == pytest.approx(0.15, abs=0.003)
    column = int(np.floor(left + 0.5))
    covered = column + 0.5 - left
    assert row[column] == pytest.approx(0.85 - 0.7 * covered, abs=0.01)
    dark = (image.max() - image).sum() / (image.max() - image.min())
    assert dark == pytest.approx(5 * side**2, rel=2e-3)


def test_the_middle_of_a_disc_is_where_it_is_projected_to() -> None:
    board = circle_print((3, 3), 0.3)
    pose = se3.make(torch.eye(3).double(), torch.tensor([-0.93, -1.08, 6.0]).double())
    image = 0.85 - render(board, pose, CAMERA.rays(), PLAIN._replace(blur=0.8), torch.Generator()).astype(float) / 255
    for u, v in project(board.points3d, pose, K).tolist():
        y, x = np.mgrid[: SIZE[1], : SIZE[0]]
        near = np.hypot(x - u, y - v) < 13
        middle = [(image * near * c).sum() / (image * near).sum() for c in (x, y)]
        assert middle == pytest.approx([u, v], abs=0.02)


def test_boards_are_in_the_picture_and_things_hide_a_part() -> None:
    board = chessboard_print((5, 4))
    g = torch.Generator().manual_seed(0)
    views = poses(board, CAMERA, 4, g)
    seen = project(board.points3d, views, K)
    assert ((seen > 9) & (seen < torch.tensor(SIZE) - 10)).all()
    things = (PLAIN._replace(covers=n) for n in (0, 2))
    plain, hidden = (render(board, views[0], CAMERA.rays(), each, torch.Generator().manual_seed(1)) for each in things)
    assert 0.01 < (plain != hidden).mean() < 0.3
    assert cv2.findChessboardCorners(plain, (5, 4))[0]
