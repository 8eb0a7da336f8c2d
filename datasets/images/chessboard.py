"""Views of a chessboard: the 2D-3D correspondences that a calibration starts from.

The board frame has its origin at the first inner corner, x along the board's rows, y along its columns, z = 0
on the board and growing away from a camera that sees its face; its unit is that of `square`. Corners come in
OpenCV's order, row by row. Pixels are OpenCV's too: (0, 0) is the centre of the top-left pixel. A board that
looks the same turned by 180 degrees may be found so; that changes the pose of the view, nothing else.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import load_npz, read_image, rows_to_tensor
from datasets.files import image_paths, require_file

__all__ = ["Views", "detect", "read_corners"]


@dataclass(frozen=True)
class Views:
    """V views of one board with N inner corners.

    points2d (V,N,2) in pixels; points3d (N,3) in the board frame; image_size (width, height) in pixels; names
    of the V views; left_out: (image name, reason) for each image that gave no view.
    """

    points2d: Tensor
    points3d: Tensor
    image_size: tuple[int, int]
    names: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def detect(
    images: str | Path | Iterable[str | Path],
    corners: tuple[int, int] = (9, 6),
    square: float = 1.0,
    window: int = 5,
) -> Views:
    """Find the board in each image of a folder (natural order of names), or of a list of files (its order).

    corners: inner corners (along a row, along a column). square: side of a square, the unit of points3d.
    window: half the side, in pixels, of the patch that refines a corner (cornerSubPix); it must not reach the
    neighbouring corners, or they pull the corner away. Pixels are the sensor's: EXIF's orientation is ignored.

    Only full boards count. An image without one, or of another size than most, is listed in `left_out`.
    Raises ValueError when a file is no image or no view is left, FileNotFoundError when a path is missing.
    """
    import cv2

    points3d = _board(corners, square)
    if min(corners) < 3:  # the detector's own limit
        raise ValueError(f"corners: at least 3 along a row and along a column wanted, found {corners}")
    if window < 1:
        raise ValueError(f"window: a positive number of pixels wanted, found {window}")
    paths = image_paths(images)
    # The quad-based detector, not findChessboardCornersSB: it finds every board of opencv_chess_left and of
    # fisheye_chess, where SB loses 2 of 13 and 3 of 26.
    flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 1e-3)
    seen: list[tuple[tuple[int, int], np.ndarray | None]] = []
    for path in paths:
        image = read_image(path, "grey")
        complete, points2d = cv2.findChessboardCorners(image, corners, flags=flags)
        if complete:
            points2d = cv2.cornerSubPix(image, points2d, (window, window), (-1, -1), criteria).reshape(-1, 2)
        seen.append(((image.shape[1], image.shape[0]), points2d if complete else None))
    image_size = Counter(size for size, _ in seen).most_common(1)[0][0]  # the first may be a thumbnail
    found: list[np.ndarray] = []
    names: list[str] = []
    left_out: list[tuple[str, str]] = []
    for path, (size, points) in zip(paths, seen, strict=True):
        if size != image_size:
            left_out.append((path.name, f"image size {size}, most images have {image_size}"))
        elif points is None:
            left_out.append((path.name, f"no full board of {corners[0]} x {corners[1]} inner corners found"))
        else:
            found.append(points)
            names.append(path.name)
    if not found:
        raise ValueError(
            f"{paths[0].parent}: a full board of {corners[0]} x {corners[1]} inner corners wanted in one "
            f"image at least, found in none of {len(paths)}"
        )
    return Views(
        torch.from_numpy(np.stack(found).astype(np.float64)),
        points3d,
        image_size,
        tuple(names),
        tuple(left_out),
    )


def read_corners(
    path: str | Path,
    corners: tuple[int, int] | None = None,
    square: float | None = None,
    image_size: tuple[int, int] | None = None,
) -> Views:
    """Read stored corners: a .yml of OpenCV's calibration sample, or an .npz of one array (N,2) a view.

    The yml states the board, its square and the image size: an argument that says otherwise is an error. The
    npz states none of them, so `corners`, `square` and `image_size` (width, height) must be given; its keys
    are the names of the views, in the file's order.

    Raises ValueError, naming the file and the entry, for what is missing, of the wrong shape or not finite,
    and FileNotFoundError when there is no such file.
    """
    path = require_file(path)
    if path.suffix.lower() == ".npz":
        if corners is None or square is None or image_size is None:
            raise ValueError(
                f"{path}: an npz states no board: corners, square and image_size wanted as arguments, found "
                f"{corners}, {square} and {image_size}"
            )
        return _to_views(path, load_npz(path), corners, square, image_size)
    stored, stated_corners, stated_square, stated_size = _load_yml(path)
    for given, stated in ((corners, stated_corners), (square, stated_square), (image_size, stated_size)):
        if given is not None and given != stated:
            raise ValueError(f"{path}: the file states {stated}, the argument says {given}")
    return _to_views(path, stored, stated_corners, stated_square, stated_size)


def _board(corners: tuple[int, int], square: float) -> Tensor:
    """Inner corners in the board frame, row by row: (N,3), z = 0."""
    if len(corners) != 2 or min(corners) < 1:
        raise ValueError(f"corners: two positive integers (along a row, along a column) wanted, found {corners}")
    if not 0 < square < math.inf:
        raise ValueError(f"square: a positive length wanted, found {square}")
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in corners[::-1]), indexing="ij")
    return square * torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)


def _load_yml(path: Path) -> tuple[dict[str, np.ndarray], tuple[int, int], float, tuple[int, int]]:
    """Image points by view, corners, square and image size, as stored by OpenCV's calibration sample.

    Raises ValueError naming the file and the entry.
    """
    import cv2

    try:
        storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)

        def node(name: str) -> cv2.FileNode:
            # Older versions of the sample capitalise the second word, or the first.
            first, last = name.split("_")
            names = (name, f"{first}_{last.capitalize()}", f"{first.capitalize()}_{last}")
            return next((n for n in map(storage.getNode, names) if not n.empty()), storage.getNode(name))

        def number(name: str) -> float:
            value = node(name).real() if node(name).isInt() or node(name).isReal() else None
            if value is None or not 0 < value < math.inf:
                raise ValueError(f"{path}: a positive number under {name!r} wanted, found {value}")
            return value

        corners = (int(number("board_width")), int(number("board_height")))
        image_size = (int(number("image_width")), int(number("image_height")))
        square = number("square_size")
        stored = None if node("image_points").empty() else node("image_points").mat()
    except (cv2.error, SystemError) as error:
        # OpenCV's Python constructor reports a file that it cannot parse as a SystemError.
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{path}: a storage file of OpenCV wanted, found something else: {reason}") from error
    if stored is None or stored.ndim != 3 or len(stored) == 0:
        found = "none" if stored is None else f"shape {stored.shape}"
        wanted = f"(V, {corners[0] * corners[1]}, 2)"
        raise ValueError(f"{path}: 'image_points' of shape {wanted} wanted, found {found}")
    return {f"view {i}": view for i, view in enumerate(stored)}, corners, square, image_size


def _to_views(
    path: Path,
    stored: dict[str, np.ndarray],
    corners: tuple[int, int],
    square: float,
    image_size: tuple[int, int],
) -> Views:
    points3d = _board(corners, square)
    views = [rows_to_tensor(v, 2, f"{path}, {name!r}", rows=len(points3d)) for name, v in stored.items()]
    return Views(torch.stack(views), points3d, image_size, tuple(stored))
