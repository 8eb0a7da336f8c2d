"""A reconstruction as tensors, the same for every file format, and what the formats' readers and writers share."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geometry.camera import Model, check_distortion, intrinsics_from_matrix, matrix_from_intrinsics

__all__ = [
    "Bytes",
    "Numbers",
    "Reconstruction",
    "find_ids",
    "nearest_rotation",
    "pinhole",
    "quote",
    "radial_tangential",
    "replacing",
]

_SHAPES: dict[str, tuple[str | int, ...]] = {
    "world_to_camera": ("V", 4, 4),
    "points3d": ("N", 3),
    "K": ("C", 3, 3),
    "distortion": ("C", "k"),
    "intrinsics_index": ("V",),
    "camera_index": ("M",),
    "point_index": ("M",),
    "points2d": ("M", 2),
    "colors": ("N", 3),
    "image_sizes": ("C", 2),
}
_INTO = {"intrinsics_index": "C", "camera_index": "V", "point_index": "N"}
_DTYPES = {"colors": torch.uint8, "image_sizes": torch.int64} | dict.fromkeys(_INTO, torch.int64)


@dataclass(frozen=True)
class Reconstruction:
    """V images taken by C cameras, N points, M observations of a point in an image, in any order.

    world_to_camera (V,4,4): poses of the images, axes as OpenCV has them (x right, y down, z forward).
    points3d (N,3): world frame, in the scene's own unit.
    K (C,3,3), distortion (C,k) of `model`: px and OpenCV's order, as in `geometry.camera`.
    intrinsics_index (V,) int64: which K took which image.
    camera_index (M,), point_index (M,) int64: which image (0 … V-1) saw which point.
    points2d (M,2): px on OpenCV's grid, (0, 0) is the centre of the top-left pixel, unless the format has no such grid.
    colors (N,3) uint8, image_sizes (C,2) int64 = width, height: None where unknown. names: of the V images, or ().

    Raises ValueError naming the field, the shape wanted and the shape given; likewise for a wrong dtype, a number
    that is not finite, and an index out of range.
    """

    world_to_camera: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    intrinsics_index: Tensor
    camera_index: Tensor
    point_index: Tensor
    points2d: Tensor
    model: Model = "radtan"
    colors: Tensor | None = None
    names: tuple[str, ...] = ()
    image_sizes: Tensor | None = None

    def __post_init__(self) -> None:
        sizes: dict[str | int, int] = {}
        for name, shape in _SHAPES.items():
            value = getattr(self, name)
            if value is None and name in ("colors", "image_sizes"):
                continue
            given = tuple(value.shape)
            known = tuple(sizes.get(size, size) for size in shape)
            if len(given) != len(shape) or any(
                isinstance(w, int) and w != g for w, g in zip(known, given, strict=True)
            ):
                wanted = str(known).replace("'", "")
                raise ValueError(f"{name} must have shape {wanted}, got {given}")
            sizes |= {size: found for size, found in zip(shape, given, strict=True) if isinstance(size, str)}
            dtype = _DTYPES.get(name)
            if value.dtype != dtype if dtype else not value.is_floating_point():
                raise ValueError(f"{name} must hold {dtype or 'floating-point numbers'}, got {value.dtype}")
            if not dtype and not value.isfinite().all():
                raise ValueError(f"{name} must be finite, got a number that is not")
        check_distortion(self.distortion, self.model)
        for name, letter in _INTO.items():
            index, size = getattr(self, name), sizes[letter]
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
                found = f"{int(index.min())} … {int(index.max())}"
                raise ValueError(f"{name} must lie in 0 … {size - 1} ({letter} = {size}), got {found}")
        if len(self.names) not in (0, sizes["V"]):
            raise ValueError(f"names must hold {sizes['V']} names or none, got {len(self.names)}")


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file that becomes `path` when the block ends well: whatever happens, `path` is the old file or the new one."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def nearest_rotation(matrices: np.ndarray, error: Callable[[int, str], ValueError]) -> np.ndarray:
    """Rotations nearest to matrices (V,3,3), which a file rounds to a few digits.

    Raises error(v, message) for the first that is no rotation to 1e-3.
    """
    u, _, vt = np.linalg.svd(matrices)
    R = u @ vt
    wrong = np.flatnonzero((np.abs(R - matrices).max((1, 2)) > 1e-3) | (np.linalg.det(R) < 0))
    if wrong.size:
        v = int(wrong[0])
        raise error(v, f"a rotation matrix wanted, found {matrices[v].tolist()}")
    return R


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


def pinhole(reconstruction: Reconstruction, kind: str, *, one_focal_length: bool = True) -> Tensor:
    """(fx, fy, cx, cy) of every K (C,4), for a writer of format `kind`.

    Raises ValueError for a K with skew or another third row and, if the format has one focal length, for fx != fy.
    """
    K = reconstruction.K.double()
    intrinsics = intrinsics_from_matrix(K)
    skewed = (matrix_from_intrinsics(intrinsics) != K).flatten(1).any(1).nonzero()
    if len(skewed):
        c = int(skewed[0])
        raise ValueError(f"K: {kind} wants zeros beside fx, fy, cx, cy and a third row (0, 0, 1), got {K[c].tolist()}")
    unequal = (intrinsics[:, 0] != intrinsics[:, 1]).nonzero()
    if one_focal_length and len(unequal):
        fx, fy = intrinsics[int(unequal[0]), :2].tolist()
        raise ValueError(f"K: {kind} has one focal length a camera, got fx = {fx} and fy = {fy}")
    return intrinsics


def radial_tangential(reconstruction: Reconstruction, kind: str, kept: list[int]) -> Tensor:
    """Coefficients `kept` of the distortion (C,len(kept)), for a writer of a format `kind` that has no others.

    Raises ValueError for a fisheye, and where another coefficient is not zero.
    """
    if reconstruction.model != "radtan":
        raise ValueError(f"model: {kind} holds 'radtan' cameras, got {reconstruction.model!r}")
    distortion = torch.nn.functional.pad(
        reconstruction.distortion.double(), (0, 12 - reconstruction.distortion.shape[1])
    )
    others = distortion.clone()
    others[:, kept] = 0
    if others.any():
        c = int(others.any(1).nonzero()[0])
        raise ValueError(
            f"distortion: {kind} holds {len(kept)} coefficients, {kept} of OpenCV's order counted from 0, and zeros "
            f"elsewhere, got {reconstruction.distortion[c].tolist()}"
        )
    return distortion[:, kept]


def quote(raw: bytes) -> str:
    """A short readable quotation of what a file holds, which may be anything."""
    text = raw.decode("ascii", errors="backslashreplace")
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _is_number(token: bytes) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return b"_" not in token
