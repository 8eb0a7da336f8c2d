"""Views of a chessboard: the 2D-3D correspondences that a calibration starts from.

The board frame has its origin at the first inner corner, x along the board's rows, y along its columns, z = 0
on the board and growing away from a camera that sees its face; its unit is that of `square`. Corners come in
OpenCV's order, row by row. Pixels are OpenCV's too: (0, 0) is the centre of the top-left pixel. A board that
looks the same turned by 180 degrees (one whose counts of corners are both odd or both even) may be found so; that
changes the pose of the view, nothing else. Two cameras that see it at once must find it the same way: `in_pairs`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import load_npz, read_image, rows_to_tensor
from datasets.files import image_paths, require_file

__all__ = ["Views", "detect", "in_pairs", "read_corners"]


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


def in_pairs(one: Views, two: Views, corners: tuple[int, int]) -> tuple[Views, Views]:
    """Of two cameras of a rig the views that both have, in the order of one, with the board the same way in both.

    Views belong together whose names have the same numbers (left07.jpg and right07.jpg), or the same names where there
    are none. A board that looks the same turned by 180 degrees is turned in `two` where its rows run against those in
    `one`: the images must be the same way up. corners: (along a row, along a column).

    Raises ValueError for views of another board, none in pairs, two with the same numbers; and where the rows of such
    a board differ by 60 to 120 degrees between the images, so that nothing tells which way it is in the other.
    """
    if not one.points3d.equal(two.points3d) or len(one.points3d) != math.prod(corners):
        raise ValueError(f"one, two: views of one board of {corners[0]} x {corners[1]} corners wanted, found others")
    keys = [[tuple(re.findall(r"\d+", Path(name).stem)) or name for name in views.names] for views in (one, two)]
    for found, views in zip(keys, (one, two), strict=True):
        if len(set(found)) < len(found):
            raise ValueError(f"names: other numbers for each view wanted, found {', '.join(views.names)}")
    pairs = [(i, keys[1].index(key)) for i, key in enumerate(keys[0]) if key in keys[1]]
    if not pairs:
        raise ValueError(f"views of both cameras with the same numbers wanted, found {one.names} and {two.names}")
    first, second = (_some(views, [pair[k] for pair in pairs]) for k, views in enumerate((one, two)))
    if sum(corners) % 2:
        return first, second
    rows = [torch.nn.functional.normalize(_rows(views, corners), dim=-1) for views in (first, second)]
    cosine = (rows[0] * rows[1]).sum(-1)
    for v in (cosine.abs() < 0.5).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"{first.names[v]}, {second.names[v]}: rows of the board within 60 degrees wanted, as it looks "
            f"the same turned by 180, found {math.degrees(math.acos(cosine[v])):.0f}"
        )
    points2d = torch.where((cosine < 0)[:, None, None], second.points2d.flip(1), second.points2d)
    return first, replace(second, points2d=points2d)


def _some(views: Views, which: list[int]) -> Views:
    return replace(views, points2d=views.points2d[which], names=tuple(views.names[v] for v in which))


def _rows(views: Views, corners: tuple[int, int]) -> Tensor:
    """Which way the board's rows run in each image, (V,2)."""
    grid = views.points2d.unflatten(1, corners[::-1])
    return (grid[:, :, -1] - grid[:, :, 0]).mean(1)


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
