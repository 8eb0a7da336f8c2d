"""Marks of a target that somebody else has measured: corner files, and lists of points and their pixels."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from datasets.arrays import load_npz, rows_to_tensor
from datasets.files import require_file
from datasets.images.targets import chessboard_points
from datasets.images.views import Views

__all__ = ["read_corners", "read_measured"]


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
    points3d = chessboard_points(corners, square)
    views = [rows_to_tensor(v, 2, f"{path}, {name!r}", rows=len(points3d)) for name, v in stored.items()]
    points2d = torch.stack(views)
    return Views(points2d, torch.ones_like(points2d[..., 0], dtype=torch.bool), points3d, image_size, tuple(stored))


def read_measured(points: str | Path, measured: str | Path, image_size: tuple[int, int]) -> Views:
    """Read any target: a file of its points, and one of where images show them.

    points: lines of a name and X Y Z; measured: lines of an image, the name of a point, and u v in pixels; both
    separated by white space or commas, a # begins a comment. The points need not lie in a plane. Views come in the
    order of the file. Raises ValueError naming file and line for what is no such line, a name that stands twice or is
    none of the points', and FileNotFoundError when there is no such file.
    """
    places: dict[str, list[float]] = {}
    for where, (name,), numbers in _lines(points, 1, "a name and X Y Z", 3):
        if name in places:
            raise ValueError(f"{where}: another name for each point wanted, found {name!r} a second time")
        places[name] = numbers
    order = {name: i for i, name in enumerate(places)}
    seen: dict[str, dict[int, list[float]]] = {}
    for where, (image, name), numbers in _lines(measured, 2, "an image, a point and u v", 2):
        if name not in order:
            raise ValueError(f"{where}: a point of {points} wanted, found {name!r}")
        if order[name] in seen.setdefault(image, {}):
            raise ValueError(f"{where}: each point once an image wanted, found {name!r} a second time in {image!r}")
        seen[image][order[name]] = numbers
    if not places or not seen:
        raise ValueError(
            f"{points}, {measured}: points and measured pixels wanted, found {len(places)} and {len(seen)}"
        )
    points2d = torch.zeros(len(seen), len(places), 2, dtype=torch.float64)
    mask = torch.zeros(len(seen), len(places), dtype=torch.bool)
    for v, view in enumerate(seen.values()):
        index = torch.tensor([*view])
        points2d[v, index], mask[v, index] = torch.tensor([*view.values()], dtype=torch.float64), True
    points3d = torch.tensor([*places.values()], dtype=torch.float64)
    return Views(points2d, mask, points3d, image_size, tuple(seen))


def _lines(path: str | Path, words: int, wanted: str, numbers: int) -> Iterator[tuple[str, list[str], list[float]]]:
    """Of each line: file and line, in words; its first words; its numbers."""
    for i, line in enumerate(require_file(path).read_text().splitlines(), 1):
        parts = line.partition("#")[0].replace(",", " ").split()
        if not parts:
            continue
        where = f"{path}, line {i}"
        try:
            values = [float(part) for part in parts[words:]]
        except ValueError:
            values = []
        if len(values) != numbers or not all(map(math.isfinite, values)):
            raise ValueError(f"{where}: {wanted} wanted, found {line.strip()!r}")
        yield where, parts[:words], values
