"""Tracks without poses out of files: COLMAP's database of verified matches, and plain text."""

import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from datasets.arrays import Numbers
from datasets.files import require_file
from datasets.images.exif import FocalLength
from datasets.images.tracks import Tracks, link

__all__ = ["is_database", "read_database", "read_track_text"]

_SQLITE = b"SQLite format 3\0"
_MOST_IMAGES = 2147483647
"""COLMAP's number of a pair is that of its first image times this, plus that of its second."""


def is_database(path: str | Path) -> bool:
    """Whether a file is a database of SQLite."""
    with require_file(path).open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def read_database(path: str | Path) -> tuple[Tracks, FocalLength | None]:
    """The tracks of a COLMAP database (`database.db`): its verified matches, linked.

    Images of another size than most are `left_out`, and those that nothing matches. With them comes the focal length
    that most cameras have from EXIF or their user (`prior_focal_length`), None where none has. Pixels are moved from
    COLMAP's grid, whose (0, 0) is the corner of the first pixel, to ours. Raises ValueError naming the file for what
    is no such database, and where no two images match.
    """
    with sqlite3.connect(f"file:{require_file(path)}?mode=ro", uri=True) as database:
        try:
            cameras = {
                camera: ((width, height), np.frombuffer(parameters, "<f8")[0] if told else None)
                for camera, width, height, parameters, told in database.execute(
                    "SELECT camera_id, width, height, params, prior_focal_length FROM cameras"
                )
            }
            images = sorted(database.execute("SELECT image_id, name, camera_id FROM images"), key=lambda row: row[1])
            places = {
                image: np.frombuffer(data or b"", "<f4").reshape(rows, columns)[:, :2].astype(np.float64) - 0.5
                for image, rows, columns, data in database.execute("SELECT image_id, rows, cols, data FROM keypoints")
            }
            pairs = {
                divmod(pair, _MOST_IMAGES): np.frombuffer(data, "<u4").reshape(rows, 2).astype(np.int64)
                for pair, rows, data in database.execute("SELECT pair_id, rows, data FROM two_view_geometries")
                if rows
            }
        except (sqlite3.DatabaseError, ValueError, IndexError) as error:
            raise ValueError(f"{path}: a COLMAP database wanted, found something else: {error}") from error
    view = {image: v for v, (image, _, _) in enumerate(images)}
    sizes = [cameras[camera][0] for _, _, camera in images]
    usual = Counter(sizes).most_common(1)[0][0] if sizes else (0, 0)
    reasons = {v: f"image size {size}, most images have {usual}" for v, size in enumerate(sizes) if size != usual}
    matches = {(view[i], view[j]): rows for (i, j), rows in pairs.items() if not {view[i], view[j]} & reasons.keys()}
    index, place, point = link(matches)
    if len(point) == 0:
        raise ValueError(f"{path}: two images with verified matches wanted, found none")
    for v in np.setdiff1d(np.arange(len(images)), index):
        reasons.setdefault(int(v), "no other image matches it")
    points2d = np.stack([places[images[v][0]][k] for v, k in zip(index, place, strict=True)])
    told = Counter(f for (size, f) in cameras.values() if f is not None and size == usual).most_common(1)
    focal = FocalLength(float(told[0][0]), "of the database's cameras") if told else None
    names = tuple(name for _, name, _ in images)
    left_out = tuple((names[v], reasons[v]) for v in sorted(reasons))
    assert usual is not None  # there are observations
    camera_index, point_index, pixels = (torch.from_numpy(column) for column in (index, point, points2d))
    return Tracks(camera_index, point_index, pixels, names, usual, None, left_out), focal


def read_track_text(path: str | Path, image_size: tuple[int, int]) -> Tracks:
    """Tracks as a text, a line an observation: `image point u v`, with spaces or commas between, `#` before remarks.

    image and point are names or numbers, u and v px of pictures of image_size (width, height), (0, 0) being the centre
    of the top-left pixel. A first line that ends in words is a heading. Raises ValueError naming file and line.
    """
    path = require_file(path)
    images: dict[str, int] = {}
    points: dict[str, int] = {}
    rows: dict[tuple[int, int], np.ndarray] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words or (not rows and words[-1].isalpha()):
            continue
        if len(words) != 4:
            raise ValueError(f"{path}, line {number}: image, point, u and v wanted, found {line[:60]!r}")
        pixel = Numbers(path, " ".join(words[2:]).encode(), lambda k: "uv"[k], number).values
        key = images.setdefault(words[0], len(images)), points.setdefault(words[1], len(points))
        if key in rows:
            raise ValueError(f"{path}, line {number}: a point once an image wanted, found {line[:60]!r} again")
        rows[key] = pixel
    if not rows:
        raise ValueError(f"{path}: lines of image, point, u and v wanted, found none")
    camera, point = torch.tensor(list(rows)).T.contiguous()
    order = torch.from_numpy(np.lexsort((camera.numpy(), point.numpy())))
    points2d = torch.from_numpy(np.stack(list(rows.values())))
    return Tracks(camera[order], point[order], points2d[order], tuple(images), image_size, None)
