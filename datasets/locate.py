"""Where the real data sets lie. They are no part of the project, so a machine may lack them."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["find", "image_paths", "load_npz", "require_file", "rows_to_tensor"]

_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}


def find(name: str) -> Path:
    """Folder of the real data set `name`, e.g. find("bal").

    It is looked for in $LEARNABLE_GEOMETRY_DATA where that is set, else in ../shared/data beside the project.
    Raises FileNotFoundError, saying how to provide it, when it is not there.
    """
    root = Path(os.environ.get("LEARNABLE_GEOMETRY_DATA") or Path(__file__).parents[2] / "shared" / "data")
    folder = root / name
    if not name or not folder.is_dir():
        raise FileNotFoundError(
            f"data set {name!r} wanted as the folder {folder}, which does not exist: set "
            f"LEARNABLE_GEOMETRY_DATA to the folder that holds the data sets"
        )
    return folder


def require_file(path: str | Path) -> Path:
    """`path` as a Path; raises FileNotFoundError with what to do unless it is an existing file."""
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise FileNotFoundError(
            f"{path}: a file wanted, found {found}; give the path of an existing file "
            f"(datasets.locate.find gives the folder of a real data set)"
        )
    return path


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an npz by name, in the file's order; at least one.

    Raises ValueError naming the file when it is no npz, holds pickled objects, or is empty.
    """
    path = require_file(path)
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("a single array")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: an npz of numeric arrays wanted, found something else: {error}") from error
    if not arrays:
        raise ValueError(f"{path}: one array at least wanted, found none")
    return arrays


def rows_to_tensor(array: np.ndarray, columns: int, where: str, rows: int | None = None) -> Tensor:
    """A stored array of numbers (N,columns), N > 0, as a float64 tensor; N = `rows` where that is given.

    Raises ValueError starting with `where` (file and entry) for another shape, no numbers, or one not finite.
    """
    shape = f"({'N' if rows is None else rows}, {columns})"
    fits = array.ndim == 2 and array.shape[1] == columns and len(array) > 0 and rows in (None, len(array))
    if not fits or array.dtype.kind not in "fiu":
        raise ValueError(f"{where}: numbers of shape {shape} wanted, found {array.dtype} of shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array).all(-1))
    if bad.size:
        raise ValueError(f"{where}, row {bad[0]}: finite numbers wanted, found {array[bad[0]].tolist()}")
    return torch.from_numpy(array.astype(np.float64))


def locate(name: str) -> Path:
    """A file or folder as it is named, or else below the shared data. Raises FileNotFoundError as `find` does."""
    path = Path(name)
    return path if path.exists() else find(path.parts[0]).joinpath(*path.parts[1:])


def image_paths(images: str | Path | Iterable[str | Path]) -> list[Path]:
    """The images of a list, or of a folder in natural order: 2.jpg before 10.jpg.

    Raises FileNotFoundError for a path that does not exist, ValueError where there is no image.
    """
    if not isinstance(images, (str, Path)):
        paths = [require_file(path) for path in images]
        if not paths:
            raise ValueError("images: a folder or at least one file wanted, found an empty list")
        return paths
    folder = Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give an existing folder of images, or a list of files")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]
    if not paths:
        raise ValueError(f"{folder}: images ({', '.join(sorted(_IMAGE_SUFFIXES))}) wanted, found none")
    # re.split puts text at even and digits at odd places, so that only like is compared with like
    return sorted(paths, key=lambda p: [int(s) if i % 2 else s for i, s in enumerate(re.split(r"(\d+)", p.name))])
