"""Numbers, arrays and images out of files, checked, with errors that name the place."""

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datasets.files import quote, require_file

__all__ = ["Bytes", "Numbers", "find_ids", "load_npz", "read_image", "rows_to_tensor"]


class Numbers:
    """A text of numbers separated by white space, and the line each stands on.

    tokens: as the file has them; values (n,): float64, finite. what(k) says what token k stands for, and first_line
    which line of the file the text starts on. Raises ValueError naming file and line for what is no finite number.
    """

    def __init__(self, path: Path, text: bytes, what: Callable[[int], str], first_line: int = 1):
        self.path, self.text, self.first_line = path, text, first_line
        self.tokens = text.split()
        try:
            if b"_" in text:  # numpy reads 1_000 as Python does
                raise ValueError
            self.values = np.array(self.tokens, dtype=np.float64)
        except ValueError:
            k = next(k for k, token in enumerate(self.tokens) if not _is_number(token))
            raise self.error(k, f"a number wanted for {what(k)}, found {quote(self.tokens[k])}") from None
        bad = np.flatnonzero(~np.isfinite(self.values))
        if bad.size:
            k = int(bad[0])
            raise self.error(k, f"a finite number wanted for {what(k)}, found {quote(self.tokens[k])}")

    def integers(self, at: np.ndarray, what: str, low: int, high: int) -> np.ndarray:
        """Tokens `at` (n,) as int64. Raises ValueError for what is no integer in low … high."""
        values = self.values[at]
        bad = np.flatnonzero((values != np.floor(values)) | (values < low) | (values > high))
        if bad.size:
            k = int(at[bad[0]])
            raise self.error(k, f"{what} wanted in {low} … {high}, found {quote(self.tokens[k])}")
        return values.astype(np.int64)

    def line(self, k: int) -> int:
        """Line of token k, or the last line. Counted again at each call, since only an error asks for it."""
        lines = self.text.split(b"\n")
        ends = np.cumsum([len(line.split()) for line in lines])  # a line holds the tokens before its end
        return self.first_line + min(int(np.searchsorted(ends, k, side="right")), len(lines) - 1)

    def error(self, k: int, message: str) -> ValueError:
        """To raise: something is wrong with token k."""
        return ValueError(f"{self.path}, line {self.line(k)}: {message}")


class Bytes:
    """A binary file read from front to back; what is missing or not finite raises ValueError naming file and byte."""

    def __init__(self, path: Path):
        self.path, self.data, self.offset = path, path.read_bytes(), 0

    def take(self, dtype: Any, count: int, what: str) -> np.ndarray:
        """The next `count` records of a structured dtype. The file's size is looked at before memory is taken."""
        dtype, start = np.dtype(dtype), self.offset
        rows = np.frombuffer(self.raw(dtype.itemsize * count, what), dtype)
        self.check_finite(rows, np.arange(count) * dtype.itemsize + start, what)
        return rows

    def raw(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        start, left = self.offset, len(self.data) - self.offset
        if size > left:
            raise self.error(start, f"{size} bytes wanted for {what}, found {left}: the file is cut or corrupted")
        self.offset += size
        return self.data[start : self.offset]

    def check_finite(self, rows: np.ndarray, offsets: np.ndarray, what: str) -> None:
        """Raise for the first record with a number that is not finite; offsets (n,): where the records stand."""
        for name, (dtype, at, *_) in (rows.dtype.fields or {}).items():
            if dtype.base.kind == "f" and not np.isfinite(rows[name]).all():
                bad = np.flatnonzero(~np.isfinite(rows[name]).reshape(len(rows), -1).all(1))[0]
                found = rows[name][bad].tolist()
                raise self.error(int(offsets[bad]) + at, f"finite numbers wanted for {what} ({name}), found {found}")

    def end(self) -> None:
        """Raise unless the file ends here."""
        if self.offset != len(self.data):
            left = len(self.data) - self.offset
            raise self.error(self.offset, f"the end of the file wanted, found {left} more bytes")

    def error(self, offset: int, message: str) -> ValueError:
        """To raise: something is wrong at byte `offset`."""
        return ValueError(f"{self.path}, byte {offset}: {message}")


def find_ids(wanted: np.ndarray, ids: np.ndarray, error: Callable[[int, str], ValueError]) -> np.ndarray:
    """Positions (n,) of the wanted ids among `ids`, and -1 for those that are not there.

    Raises error(i, message) where ids[i] stands a second time.
    """
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if twice.size:
        i = int(order[twice[0] + 1])
        raise error(i, f"{ids[i]} stands a second time")
    if not len(ids):
        return np.full(len(wanted), -1)
    position = order[np.searchsorted(ids[order], wanted).clip(max=len(ids) - 1)]
    return np.where(ids[position] == wanted, position, -1)


def _is_number(token: bytes) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return b"_" not in token


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


def read_image(path: str | Path, kind: Literal["color", "grey", "stored"] = "color") -> np.ndarray:
    """The pixels of an image: color (H,W,3) uint8, RGB; grey (H,W) uint8; or as stored, as of depths and masks.

    The one reader of images. They are as the sensor has them, which K and distortion are of: what EXIF says of how to
    turn a photograph for people is ignored. Raises FileNotFoundError, or ValueError naming a file that is no image.
    """
    import cv2

    flags = {"color": cv2.IMREAD_COLOR, "grey": cv2.IMREAD_GRAYSCALE, "stored": cv2.IMREAD_UNCHANGED}[kind]
    if kind != "stored":  # which leaves them as they are, and takes no other flag
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    content = require_file(path).read_bytes()
    image = cv2.imdecode(np.frombuffer(_upright(content), np.uint8), flags) if content else None
    if image is None:
        raise ValueError(f"{path}: an image wanted, found {len(content)} bytes that OpenCV cannot read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if kind == "color" else image


def _upright(content: bytes) -> bytes:
    """The image with the orientation of a TIFF said to be none. OpenCV obeys that tag whatever it is told."""
    order, magic = {b"II": "<", b"MM": ">"}.get(content[:2]), content[2:4]
    if order is None or magic not in (b"*\0", b"\0*") or len(content) < 8:
        return content
    (first,) = struct.unpack_from(f"{order}I", content, 4)
    if first + 2 > len(content):
        return content
    (entries,) = struct.unpack_from(f"{order}H", content, first)
    for at in range(first + 2, min(first + 2 + 12 * entries, len(content) - 11), 12):
        if struct.unpack_from(f"{order}H", content, at) == (0x0112,):
            return content[: at + 8] + struct.pack(f"{order}H", 1) + content[at + 10 :]
    return content


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
