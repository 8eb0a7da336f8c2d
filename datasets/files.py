"""Files: written whole or not at all, found or asked for by name. Only the standard library is imported here."""

import bz2
import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["image_paths", "quote", "read_packed", "replacing", "require_file"]

_IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file that becomes `path` when the block ends well: even a killed process leaves old or new, whole."""
    temporary = path.with_name(f".tmp-{path.name}")  # the suffix stays: open3d and matplotlib go by it
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_packed(path: str | Path, most: int = -1) -> bytes:
    """What a file holds, or `most` bytes of it, unpacked if it is a .gz or .bz2, whatever its name.

    Raises FileNotFoundError, and ValueError naming a file that is packed and damaged.
    """
    path = require_file(path)
    with path.open("rb") as file:
        start = file.read(3)
    opened = gzip.open if start[:2] == b"\x1f\x8b" else bz2.open if start == b"BZh" else open
    try:
        with opened(path, "rb") as file:
            return file.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: a packed file wanted, found a damaged one: {error}") from error


def quote(raw: bytes) -> str:
    """A short readable quotation of what a file holds, which may be anything."""
    text = raw.decode("ascii", errors="backslashreplace")
    return repr(text if len(text) <= 40 else text[:37] + "...")


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


def image_paths(images: str | Path | Iterable[str | Path]) -> list[Path]:
    """The images of a list, or of a folder in natural order: 2.jpg before 10.jpg.

    Of a folder: files that are not hidden (macOS leaves a `._x.jpg` beside x.jpg), each once, whatever links to it.
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
    named = (p for p in folder.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES and not p.name.startswith("."))
    files = sorted((p for p in named if p.is_file()), key=lambda p: (not p.is_symlink(), p.name))
    paths = list({path.resolve(): path for path in files}.values())  # the file itself rather than a link to it
    if not paths:
        raise ValueError(f"{folder}: images ({', '.join(sorted(_IMAGE_SUFFIXES))}) wanted, found none")
    # re.split puts text at even and digits at odd places, so that only like is compared with like
    return sorted(paths, key=lambda p: [int(s) if i % 2 else s for i, s in enumerate(re.split(r"(\d+)", p.name))])
