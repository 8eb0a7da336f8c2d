"""Bundler's output, `bundle.out`, version 0.3 (Snavely, Seitz, Szeliski 2006):

    # Bundle file v0.3
    <cameras> <points>
    f k1 k2, R row by row (9), t (3)                                       per camera
    X Y Z, R G B, <views>, then <camera> <key> <x> <y> for each view       per point

The cameras are BAL's (`datasets.reconstructions.bal`); pixels are counted from the image's centre, which is the
principal point, y up.
"""

from pathlib import Path

import numpy as np
import torch

from datasets.arrays import Numbers
from datasets.files import quote, replacing, require_file
from datasets.reconstructions.bal import SnavelyCameras, from_snavely, to_snavely
from datasets.reconstructions.model import Reconstruction, nearest_rotation
from geometry import se3

__all__ = ["read_bundler", "write_bundler"]

_HEADER = b"# Bundle file v0.3"


def read_bundler(path: str | Path) -> Reconstruction:
    """Read a Bundler v0.3 file: V images with intrinsics of their own, N points, M observations ordered by point.

    The principal point is (0, 0), the image's centre; distortion (V,2) = k1, k2. A camera with f = 0 was not
    registered and is left out; `names` holds each image's number in the file ("0", "2", …), which is its line in
    Bundler's list of images. Rotations are rounded in the file: the nearest ones are taken. Keys are dropped.

    Raises ValueError naming the file and line when it is no such file, is truncated or too long, or holds something
    that is not a finite number, no rotation, a view of a camera that is not there or not registered, or a colour
    outside 0 … 255. FileNotFoundError if there is none.
    """
    path = require_file(path)
    header, _, text = path.read_bytes().partition(b"\n")
    if header.strip() != _HEADER:
        raise ValueError(f"{path}, line 1: {_HEADER.decode()!r} wanted, found {quote(header.strip())}")
    numbers = Numbers(path, text, _what, first_line=2)
    if len(numbers.tokens) < 2:
        raise numbers.error(1, f"two counts (cameras, points) wanted, found {len(numbers.tokens)}")
    V, N = numbers.integers(np.arange(2), "the number of cameras and points", 0, 2**31 - 1).tolist()
    heads, views = _layout(numbers, V, N)

    cameras = numbers.values[2 : 2 + 15 * V].reshape(V, 15)
    registered = np.flatnonzero(cameras[:, 0] != 0)
    cameras = cameras[registered]
    R = nearest_rotation(
        cameras[:, 3:12].reshape(-1, 3, 3),
        lambda v, message: numbers.error(2 + 15 * int(registered[v]) + 3, f"camera {registered[v]}: {message}"),
    )
    position = np.full(V, -1)
    position[registered] = np.arange(len(registered))
    seen_by = numbers.integers(views, "camera index", 0, V - 1)
    lost = np.flatnonzero(position[seen_by] < 0)
    if lost.size:
        k = int(views[lost[0]])
        raise numbers.error(k, f"a registered camera wanted (f not 0), found camera {quote(numbers.tokens[k])}")
    colors = [numbers.integers(heads + 3 + i, "colour", 0, 255) for i in range(3)]
    pose = se3.make(torch.from_numpy(R), torch.from_numpy(cameras[:, 12:].copy()))
    points2d = numbers.values[views[:, None] + [2, 3]]
    return from_snavely(
        SnavelyCameras(pose, torch.from_numpy(cameras[:, :3].copy()), torch.from_numpy(points2d)),
        points3d=torch.from_numpy(numbers.values[heads[:, None] + np.arange(3)]),
        camera_index=torch.from_numpy(position[seen_by]),
        point_index=torch.from_numpy(np.repeat(np.arange(N), numbers.values[heads + 6].astype(np.int64))),
        colors=torch.from_numpy(np.stack(colors, -1).astype(np.uint8)),
        names=tuple(str(v) for v in registered),
    )


def write_bundler(path: str | Path, reconstruction: Reconstruction) -> None:
    """Write a Bundler v0.3 file, whole or not at all; numbers keep all their digits.

    Images are numbered in their order, names and image sizes are lost, and cameras that were not registered do not come
    back. Keys count the observations of each image. Points without colours become black. Shared intrinsics, the
    principal point and what raises ValueError: as in `write_bal`.
    """
    path = Path(path)
    cameras = to_snavely(reconstruction, "Bundler")
    V, N = len(cameras.poses), len(reconstruction.points3d)
    colors = reconstruction.colors if reconstruction.colors is not None else torch.zeros(N, 3, dtype=torch.uint8)
    views: list[list[str]] = [[] for _ in range(N)]
    keys = [0] * V
    seen = zip(
        reconstruction.camera_index.tolist(),
        reconstruction.point_index.tolist(),
        cameras.points2d.tolist(),
        strict=True,
    )
    for v, n, (x, y) in seen:
        views[n].append(f"{v} {keys[v]} {x!r} {y!r}")
        keys[v] += 1

    def lines(*rows: list[float]) -> str:
        return "".join(" ".join(map(repr, row)) + "\n" for row in rows)

    with replacing(path) as temporary, temporary.open("w", newline="\n") as file:
        file.write(f"{_HEADER.decode()}\n{V} {N}\n")
        for pose, lens in zip(cameras.poses, cameras.lens.tolist(), strict=True):
            file.write(lines(lens, *pose[:3, :3].tolist(), pose[:3, 3].tolist()))
        for point, color, view in zip(reconstruction.points3d.double().tolist(), colors.tolist(), views, strict=True):
            file.write(lines(point, color) + " ".join([str(len(view)), *view]) + "\n")


def _layout(numbers: Numbers, V: int, N: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each point (N,) and each view (M,) starts among the tokens."""
    total, k = len(numbers.tokens), 2 + 15 * V
    if k + 7 * N > total:
        wanted = f"{V} cameras and {N} points need {k + 7 * N} numbers at least"
        raise numbers.error(total - 1, f"the file ends after {_what(total - 1)}: {wanted}, found {total}")
    heads, views = np.empty(N, dtype=np.int64), []
    for n in range(N):
        if k + 7 > total:
            raise numbers.error(total - 1, f"the file ends before point {n} of {N}")
        count = numbers.values[k + 6]
        if count != int(count) or not 0 <= 4 * count <= total - k - 7:
            found = f"found {quote(numbers.tokens[k + 6])}, and {total - k - 7} more numbers in the file"
            raise numbers.error(k + 6, f"the number of views of point {n} wanted, four numbers each, {found}")
        heads[n] = k
        views.append(np.arange(k + 7, k + 7 + 4 * int(count), 4))
        k += 7 + 4 * int(count)
    if k != total:
        raise numbers.error(k, f"the end of the file wanted after point {N - 1}, found {quote(numbers.tokens[k])}")
    return heads, np.concatenate([np.empty(0, dtype=np.int64), *views])


def _what(k: int) -> str:
    return "the header" if k < 2 else f"value {k - 1} after the counts"
