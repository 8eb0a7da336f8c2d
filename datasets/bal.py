"""Bundle Adjustment in the Large: its text format (Agarwal, Snavely, Seitz, Szeliski, ECCV 2010).

    <cameras> <points> <observations>
    <camera index> <point index> <x> <y>          one line per observation
    rotvec (3), t (3), f, k1, k2                  per camera, usually one number a line
    X Y Z                                         per point, likewise

BAL's camera looks along -z with the image's y axis up and its origin at the principal point:

    P = R X + t,   p = -P_xy / P_z,   r2 = |p|^2,   p' = f (1 + k1 r2 + k2 r2^2) p

`to_opencv` turns that into this project's convention (x right, y down, z forward).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from datasets.shared import require_file
from geometry import se3

__all__ = ["Bal", "OpenCVCameras", "read_bal", "to_opencv"]


@dataclass(frozen=True)
class Bal:
    """A bundle problem as the file states it, in BAL's own camera convention.

    camera_index (M,), point_index (M,): int64, which camera saw which point.
    points2d (M,2): pixels from the principal point, y up.
    cameras (V,9): rotvec, t (world to camera), f in pixels, k1, k2.
    points3d (N,3): world frame, in the scene's own arbitrary unit.
    """

    camera_index: Tensor
    point_index: Tensor
    points2d: Tensor
    cameras: Tensor
    points3d: Tensor


class OpenCVCameras(NamedTuple):
    """What `to_opencv` gives; a point of the world needs no conversion.

    world_to_camera (V,4,4), K (V,3,3) with the principal point at (0, 0), distortion (V,4) = k1, k2, 0, 0,
    points2d (M,2) in pixels from the principal point, y down.
    """

    world_to_camera: Tensor
    K: Tensor
    distortion: Tensor
    points2d: Tensor


def read_bal(path: str | Path) -> Bal:
    """Read a BAL text file; V cameras, N points, M observations.

    Raises ValueError naming the file and line when it is no BAL file, is truncated or too long, holds
    something that is not a finite number, or an index outside 0 … V-1 or 0 … N-1.
    """
    path = require_file(path)
    tokens = path.read_bytes().split()
    V, N, M = _counts(path, tokens)
    wanted = 3 + 4 * M + 9 * V + 3 * N
    if len(tokens) != wanted:
        _raise_count(path, tokens, V, N, M)
    try:
        values = np.array(tokens, dtype=np.float64)
    except ValueError:
        k = next(k for k, token in enumerate(tokens) if not _is_number(token))
        _raise_at(path, k, f"a number wanted for {_what(k, V, N, M)}, found {_quote(tokens[k])}")
    if not np.isfinite(values).all():
        k = int(np.flatnonzero(~np.isfinite(values))[0])
        _raise_at(path, k, f"a finite number wanted for {_what(k, V, N, M)}, found {_quote(tokens[k])}")

    observations = values[3 : 3 + 4 * M].reshape(M, 4)
    for column, (name, size) in enumerate((("camera", V), ("point", N))):
        index = observations[:, column]
        bad = np.flatnonzero((index != np.floor(index)) | (index < 0) | (index >= size))
        if bad.size:
            k = 3 + 4 * int(bad[0]) + column
            _raise_at(path, k, f"{name} index wanted in 0 … {size - 1}, found {_quote(tokens[k])}")
    cameras, points3d = np.split(values[3 + 4 * M :], [9 * V])
    return Bal(
        camera_index=torch.from_numpy(observations[:, 0].astype(np.int64)),
        point_index=torch.from_numpy(observations[:, 1].astype(np.int64)),
        points2d=torch.from_numpy(observations[:, 2:].copy()),
        cameras=torch.from_numpy(cameras.reshape(V, 9).copy()),
        points3d=torch.from_numpy(points3d.reshape(N, 3).copy()),
    )


def to_opencv(bal: Bal) -> OpenCVCameras:
    """The cameras and observations in OpenCV's convention; the cost of a reprojection stays the same.

    Half a turn about the x axis takes BAL's camera axes (x right, y up, z backward) to OpenCV's, and flips
    the image's y with them. The radial model is OpenCV's own: k1, k2 are kept.
    """
    half_turn = torch.tensor([1.0, -1.0, -1.0], dtype=bal.cameras.dtype, device=bal.cameras.device)
    rotvec, t, f, k = bal.cameras.split([3, 3, 1, 2], dim=-1)
    world_to_camera = se3.make(half_turn[:, None] * se3.exp(rotvec), half_turn * t)
    K = torch.diag_embed(torch.cat([f, f, torch.ones_like(f)], dim=-1))
    distortion = torch.cat([k, torch.zeros_like(k)], dim=-1)
    return OpenCVCameras(world_to_camera, K, distortion, bal.points2d * half_turn[:2])


def _counts(path: Path, tokens: list[bytes]) -> tuple[int, int, int]:
    head = tokens[:3]
    if len(head) < 3 or not all(re.fullmatch(rb"[1-9]\d{0,9}", token) for token in head):
        raise ValueError(
            f"{path}, line 1: not a BAL file: it starts with three positive integers (cameras, points, "
            f"observations), found {_quote(b' '.join(head))}"
        )
    V, N, M = (int(token) for token in head)
    return V, N, M


def _raise_count(path: Path, tokens: list[bytes], V: int, N: int, M: int) -> NoReturn:
    """The file holds too few or too many numbers: name the first line that is to blame."""
    wanted = 3 + 4 * M + 9 * V + 3 * N
    total = f"{V} cameras, {N} points and {M} observations need {wanted} numbers, found {len(tokens)}"
    # Every observation is a line of four, so a short one in the middle can be named. Without this the blame
    # would fall on the end of the file.
    seen = 0
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        count = len(line.split())
        if 3 <= seen < 3 + 4 * M and count not in (0, 4):
            raise ValueError(
                f"{path}, line {number}: 4 numbers (camera, point, x, y) wanted for observation "
                f"{(seen - 3) // 4}, found {count}: {_quote(line.strip())}; {total}"
            )
        seen += count
    if len(tokens) < wanted:
        k = len(tokens) - 1
        raise ValueError(f"{path}, line {_line(path, k)}: the file ends after {_what(k, V, N, M)}: {total}")
    _raise_at(path, wanted, f"the end of the file wanted, found {_quote(tokens[wanted])}; {total}")


def _raise_at(path: Path, k: int, message: str) -> NoReturn:
    raise ValueError(f"{path}, line {_line(path, k)}: {message}")


def _line(path: Path, k: int) -> int:
    """1-based line of token k. Read again, since only an error asks for it."""
    seen = 0
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        seen += len(line.split())
        if seen > k:
            return number
    return len(lines)


def _what(k: int, V: int, N: int, M: int) -> str:
    """What token k of the file stands for."""
    if k < 3:
        return "the header"
    k -= 3
    if k < 4 * M:
        return f"observation {k // 4} ({('camera index', 'point index', 'x', 'y')[k % 4]})"
    k -= 4 * M
    if k < 9 * V:
        return f"camera {k // 9}, value {k % 9 + 1} of 9"
    k -= 9 * V
    return f"point {k // 3}, value {k % 3 + 1} of 3"


def _is_number(token: bytes) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _quote(raw: bytes) -> str:
    """A short readable quotation of what the file holds, which may be anything."""
    text = raw.decode("ascii", errors="backslashreplace")
    return repr(text if len(text) <= 40 else text[:37] + "...")
