"""Calibration targets: plane prints of numbered marks, and how they are found in an image.

A `Target` is where its marks are, and a function from a grey image to the numbers and pixels of those that it finds.
The target's frame has x along its rows, y along its columns, and z = 0 on it, growing away from a camera that sees its
face; its origin is the first mark and its unit the caller's. Pixels are OpenCV's: (0, 0) is the centre of the top-left
pixel. OpenCV finds the marks, `datasets.images.refinement` says where exactly they are.

Chessboards and circle grids are found whole or not at all; markers say which they are, so that parts of a ChArUco
board or of a grid of tags count as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.images.refinement import Marks, refine_corners, refine_discs

__all__ = ["Seen", "Target", "charuco", "chessboard", "chessboard_points", "circles", "tags"]


class Seen(NamedTuple):
    """What an image shows: marks (n,), which of points3d; points2d (n,2) px; others: how many it has not."""

    marks: np.ndarray
    points2d: np.ndarray
    others: int = 0


Refine = Callable[[np.ndarray, Seen], Marks]


_CROSSING = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
"""How greys differ about a corner between squares (`refine_corners`)."""


@dataclass(frozen=True)
class Target:
    """A plane target.

    points3d (N,3): its marks; name: what it is, in words; detect: which marks a grey image (H,W) of bytes shows, None
    where none; refine: where exactly those are, from the image and what was detected; half_turn: it
    looks the same turned by 180 degrees, when its marks are numbered from the end; larger: targets of one row or column
    more, of which this might be a part.
    """

    points3d: Tensor
    name: str
    detect: Callable[[np.ndarray], Seen | None]
    refine: Refine
    half_turn: bool = False
    larger: tuple["Target", ...] = ()

    def find(self, image: np.ndarray) -> Seen | None:
        """The marks that a grey image (H,W) of bytes shows, as exactly as it tells."""
        seen = self.detect(image)
        if seen is None or len(seen.marks) == 0:
            return seen
        marks = self.refine(image, seen)
        good = marks.good.numpy()
        return Seen(seen.marks[good], marks.points2d.numpy()[good], seen.others)


def chessboard(corners: tuple[int, int], square: float = 1.0) -> Target:
    """A chessboard by its inner corners (along a row, along a column), row by row, and the side of its squares."""
    columns, rows = _counts("corners", corners, 3)  # the detector's own limit
    _length("square", square)
    larger = tuple(_chessboard(size, square) for size in ((columns + 1, rows), (columns, rows + 1)))
    return _chessboard((columns, rows), square, larger)


def _chessboard(corners: tuple[int, int], square: float, larger: tuple[Target, ...] = ()) -> Target:
    import cv2

    def detect(image: np.ndarray) -> Seen | None:
        # The quad-based detector, not findChessboardCornersSB: it finds every board of opencv_chess_left and of
        # fisheye_chess, where SB loses 2 of 13 and 3 of 26.
        flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE
        complete, points2d = cv2.findChessboardCorners(image, corners, flags=flags)
        return _whole(points2d) if complete else None

    points3d, half_turn = _grid(corners, square), sum(corners) % 2 == 0
    name = f"full board of {corners[0]} x {corners[1]} inner corners"
    return Target(
        points3d, name, detect, _corners(points3d, _CROSSING, (0.9 * square, 0.9 * square)), half_turn, larger
    )


def charuco(corners: tuple[int, int], square: float, marker: float, dictionary: str = "4X4_50") -> Target:
    """A ChArUco board by its inner corners, row by row, and the sides of its squares and of the markers in them.

    dictionary: OpenCV's name of the markers, as "4X4_50" or "5X5_100". Raises ValueError for another one.
    """
    import cv2

    columns, rows = _counts("corners", corners, 2)
    _length("square", square)
    if not 0 < marker < square:
        raise ValueError(f"marker: a side below that of a square, {square}, wanted, found {marker}")
    words = _dictionary(dictionary)
    board = cv2.aruco.CharucoBoard((columns + 1, rows + 1), square, marker, words)
    detector, count = cv2.aruco.CharucoDetector(board), len(board.getIds())

    def detect(image: np.ndarray) -> Seen | None:
        points2d, index, _, ids = detector.detectBoard(image)
        others = 0 if ids is None else int((ids >= count).sum())
        if index is None or len(index) == 0:
            return Seen(np.zeros(0, np.int64), np.zeros((0, 2)), others) if others else None
        return Seen(index.ravel().astype(np.int64), points2d.reshape(-1, 2).astype(np.float64), others)

    name = f"part of a ChArUco board of {columns} x {rows} inner corners"
    points3d, clear = _grid((columns, rows), square), ((square - marker) / 2, 0.9 * square)
    return Target(points3d, name, detect, _corners(points3d, _CROSSING, clear))


def tags(
    size: tuple[int, int], side: float = 1.0, gap: float = 0.3, dictionary: str = "APRILTAG_36h11", border: int = 1
) -> Target:
    """A grid of markers, numbered row by row from zero, each of four corners from its upper left one clockwise.

    size: markers (along a row, along a column); side: of a marker; gap: between two, in sides; dictionary: OpenCV's
    name, as "APRILTAG_36h11" or "4X4_50"; border: width of the black rim, in modules.
    """
    import cv2

    columns, rows = _counts("size", size, 1)
    _length("side", side)
    _length("gap", gap)
    words, parameters = _dictionary(dictionary), cv2.aruco.DetectorParameters()
    parameters.markerBorderBits = border
    detector = cv2.aruco.ArucoDetector(words, parameters)

    def detect(image: np.ndarray) -> Seen | None:
        quads, ids, _ = detector.detectMarkers(image)
        if ids is None:
            return None
        numbers = ids.ravel()
        ours = (numbers < columns * rows) & (np.bincount(numbers)[numbers] == 1)
        index = (4 * numbers[ours, None] + np.arange(4)).ravel().astype(np.int64)
        points2d = np.concatenate(quads).reshape(-1, 4, 2)[ours].reshape(-1, 2)
        return Seen(index, points2d.astype(np.float64), int((numbers >= columns * rows).sum()))

    corner = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.float64)
    points3d = (_grid((columns, rows), (1 + gap) * side)[:, None] + side * corner).flatten(0, 1)
    module = side * border / (words.markerSize + 2 * border)
    # from the upper left corner clockwise, the tag lies to the lower right, lower left, upper left, upper right
    shape = torch.tensor([[-1, 1, -1], [-1, -1, 1], [1, -1, -1], [1, 1, 1]], dtype=torch.float64)
    refine = _corners(points3d, shape.repeat(columns * rows, 1), (min(module, gap * side), gap * side))
    return Target(points3d, f"part of a grid of {columns} x {rows} markers {dictionary}", detect, refine)


def circles(size: tuple[int, int], spacing: float = 1.0, asymmetric: bool = False) -> Target:
    """A grid of dark discs by their number (along a row, along a column) and the distance of their centres in a row.

    asymmetric: every other row is half that distance to the right, and rows are half of it apart, as on OpenCV's
    boards of 4 x 11.
    """
    columns, rows = _counts("size", size, 2)
    _length("spacing", spacing)
    larger = tuple(_circles(more, spacing, asymmetric) for more in ((columns + 1, rows), (columns, rows + 1)))
    return _circles((columns, rows), spacing, asymmetric, larger)


def _circles(size: tuple[int, int], spacing: float, asymmetric: bool, larger: tuple[Target, ...] = ()) -> Target:
    import cv2

    flags = cv2.CALIB_CB_ASYMMETRIC_GRID if asymmetric else cv2.CALIB_CB_SYMMETRIC_GRID

    def detect(image: np.ndarray) -> Seen | None:
        complete, points2d = cv2.findCirclesGrid(image, size, flags=flags)
        return _whole(points2d) if complete else None

    points3d, apart = _grid(size, spacing), spacing
    if asymmetric:
        odd = (torch.arange(len(points3d)) // size[0]) % 2
        points3d = points3d * torch.tensor([1, 0.5, 1]) + odd[:, None] * torch.tensor([spacing / 2, 0, 0])
        apart = spacing / math.sqrt(2)
    name = f"full grid of {size[0]} x {size[1]} circles"
    half_turn = not asymmetric or size[1] % 2 == 0

    def refine(image: np.ndarray, seen: Seen) -> Marks:
        return refine_discs(image, seen.points2d, points3d[seen.marks], apart)

    return Target(points3d, name, detect, refine, half_turn, larger)


def _corners(points3d: Tensor, shape: Tensor, clear: tuple[float, float]) -> Refine:
    shape = shape.expand(len(points3d), 3)

    def refine(image: np.ndarray, seen: Seen) -> Marks:
        return refine_corners(image, seen.points2d, points3d[seen.marks], shape[seen.marks], clear)

    return refine


def _whole(points2d: np.ndarray) -> Seen:
    return Seen(np.arange(len(points2d)), points2d.reshape(-1, 2).astype(np.float64))


def chessboard_points(corners: tuple[int, int], square: float) -> Tensor:
    """Inner corners (N,3) of a chessboard of any size, row by row. Raises ValueError for what is no size."""
    _length("square", square)
    return _grid(_counts("corners", corners, 1), square)


def _grid(size: tuple[int, int], spacing: float) -> Tensor:
    """Places in a grid, row by row: (N,3), z = 0."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size[::-1]), indexing="ij")
    return spacing * torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)


def _counts(name: str, size: tuple[int, int], least: int) -> tuple[int, int]:
    if len(size) != 2 or min(size) < least:
        raise ValueError(f"{name}: at least {least} along a row and along a column wanted, found {size}")
    return size[0], size[1]


def _length(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: a positive length wanted, found {value}")


def _dictionary(name: str) -> "cv2.aruco.Dictionary":  # type: ignore[name-defined] # noqa: F821
    import cv2

    known = sorted(n.removeprefix("DICT_") for n in dir(cv2.aruco) if n.startswith("DICT_"))
    if name not in known:
        raise ValueError(f"dictionary: one of {', '.join(known)} wanted, found {name!r}")
    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{name}"))
