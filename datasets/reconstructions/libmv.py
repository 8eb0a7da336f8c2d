"""The binary problems of libmv's bundle adjuster, as Ceres distributes them (`libmv-ba-problems`):

    'v' or 'V': little or big endian,  'P' or 'N': markers in pixels or normalised
    f, cx, cy, k1, k2, k3, p1, p2                             of the one camera
    <cameras>,  then image number, R column by column, t      each
    <points>,   then track number, X Y Z                      each
    <markers>,  then image number, track number, x, y         each

Integers have 32 bits, and so have real numbers. Axes are OpenCV's, and so is the distortion. The formulas are the same
for normalised markers, only that f, cx, cy are then 1, 0, 0. The format states no pixel grid: coordinates are kept.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import Bytes, find_ids
from datasets.files import replacing, require_file
from datasets.reconstructions.model import Reconstruction, nearest_rotation, pinhole, radial_tangential
from geometry import se3
from geometry.camera import matrix_from_intrinsics

__all__ = ["read_libmv", "write_libmv"]

# Where OpenCV's k1, k2, p1, p2, k3 stand in the file's order, and the reverse.
_TO_OPENCV, _FROM_OPENCV = [0, 1, 3, 4, 2], [0, 1, 4, 2, 3]


def _dtype(endian: str, integers: list[str], **reals: int) -> np.dtype:
    """A record of integers, then of real numbers: name=how many."""
    return np.dtype([(name, f"{endian}i4") for name in integers] + [(k, f"{endian}f4", (n,)) for k, n in reals.items()])


def _dtypes(endian: str) -> dict[str, np.dtype]:
    return {
        "count": _dtype(endian, ["count"]),
        "intrinsics": _dtype(endian, [], f=1, centre=2, distortion=5),
        "camera": _dtype(endian, ["image"], R=9, t=3),
        "point": _dtype(endian, ["track"], xyz=3),
        "marker": _dtype(endian, ["image", "track"], xy=2),
    }


def read_libmv(path: str | Path) -> Reconstruction:
    """Read a libmv problem: V images of one camera, N points, M observations in the file's order.

    distortion (1,5) = k1, k2, p1, p2, k3; names: the images' numbers. float32 rounds the rotations: the nearest ones
    are taken. A marker whose image has no camera or whose track has no point is left out, as libmv's adjuster does.

    Raises ValueError naming the file and byte when it is no such file, is truncated or too long, or holds a number that
    is not finite, no rotation, or a number of an image or track that is negative or given twice. FileNotFoundError if
    there is none.
    """
    file = Bytes(require_file(path))
    flags = file.data[:2]
    if flags not in (b"vP", b"vN", b"VP", b"VN"):
        raise file.error(0, f"not a libmv problem: 'v' or 'V', then 'P' or 'N' wanted at its start, found {flags!r}")
    file.offset = 2
    dtypes = _dtypes("<" if flags[:1] == b"v" else ">")
    intrinsics = file.take(dtypes["intrinsics"], 1, "the intrinsics")
    cameras, at_camera = _table(file, dtypes, "camera")
    points, at_point = _table(file, dtypes, "point")
    markers, _ = _table(file, dtypes, "marker")
    file.end()

    camera_index = find_ids(
        markers["image"], cameras["image"], lambda i, text: file.error(at_camera[i], f"image {text}")
    )
    point_index = find_ids(markers["track"], points["track"], lambda i, text: file.error(at_point[i], f"track {text}"))
    known = (camera_index >= 0) & (point_index >= 0)
    R = _tensor(cameras["R"]).unflatten(-1, (3, 3)).mT.numpy()
    R = nearest_rotation(R, lambda v, text: file.error(at_camera[v], f"camera {v}: {text}"))
    f, centre = _tensor(intrinsics["f"]), _tensor(intrinsics["centre"])
    return Reconstruction(
        world_to_camera=se3.make(torch.from_numpy(R), _tensor(cameras["t"])),
        points3d=_tensor(points["xyz"]),
        K=matrix_from_intrinsics(torch.cat([f, f, centre], -1)),
        distortion=_tensor(intrinsics["distortion"])[:, _TO_OPENCV],
        intrinsics_index=torch.zeros(len(cameras), dtype=torch.int64),
        camera_index=torch.from_numpy(camera_index[known]),
        point_index=torch.from_numpy(point_index[known]),
        points2d=_tensor(markers["xy"][known]),
        names=tuple(str(number) for number in cameras["image"]),
    )


def write_libmv(path: str | Path, reconstruction: Reconstruction) -> None:
    """Write a libmv problem, little endian with markers in pixels, whole or not at all. Numbers are rounded to float32.

    Names that are distinct integers from 0 become the images' numbers; otherwise images are numbered in their order, as
    tracks are. Colours, other names and image sizes are lost. Raises ValueError naming the reason for what the format
    cannot say: several cameras, fx != fy, skew, a fisheye, distortion other than k1, k2, p1, p2, k3, and numbers beyond
    float32.
    """
    path = Path(path)
    if len(reconstruction.K) != 1:
        raise ValueError(f"K: libmv has one camera for all images, got {len(reconstruction.K)}")
    dtypes = _dtypes("<")

    def rows(kind: str, **columns: Tensor) -> bytes:
        """The rows of one kind from their columns, and their count before all but the intrinsics."""
        table = np.empty(len(next(iter(columns.values()))), dtypes[kind])
        for name, column in columns.items():
            with np.errstate(over="ignore"):
                table[name] = column.numpy()
            if not np.isfinite(table[name]).all():
                raise ValueError(f"{name} of a {kind}: libmv holds numbers of float32, got {column.abs().max().item()}")
        counted = b"" if kind == "intrinsics" else np.array(len(table), dtypes["count"]["count"]).tobytes()
        return counted + table.tobytes()

    lens = pinhole(reconstruction, "libmv")
    pose, points3d = reconstruction.world_to_camera.double(), reconstruction.points3d.double()
    numbers = _image_numbers(reconstruction.names, len(pose))
    distortion = radial_tangential(reconstruction, "libmv", [0, 1, 2, 3, 4])[:, _FROM_OPENCV]
    seen = {"image": numbers[reconstruction.camera_index], "track": reconstruction.point_index}
    content = [
        b"vP",
        rows("intrinsics", f=lens[:, :1], centre=lens[:, 2:], distortion=distortion),
        rows("camera", image=numbers, R=pose[:, :3, :3].mT.flatten(1), t=pose[:, :3, 3]),
        rows("point", track=torch.arange(len(points3d)), xyz=points3d),
        rows("marker", **seen, xy=reconstruction.points2d.double()),
    ]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(content))


def _table(file: Bytes, dtypes: dict[str, np.dtype], kind: str) -> tuple[np.ndarray, Sequence[int]]:
    """The rows of one kind, a count before them, and the bytes they start at. Their numbers are not negative."""
    count = int(file.take(dtypes["count"], 1, f"the number of {kind}s")["count"][0])
    start = file.offset
    if count < 0:
        raise file.error(start - 4, f"the number of {kind}s wanted, found {count}")
    rows = file.take(dtypes[kind], count, f"{count} {kind}s")
    offsets = range(start, file.offset, rows.itemsize)
    for name in {"image", "track"} & set(rows.dtype.names or ()):
        negative = np.flatnonzero(rows[name] < 0)
        if negative.size:
            i = int(negative[0])
            raise file.error(offsets[i], f"{name} numbers from 0 wanted for {kind} {i}, found {rows[name][i]}")
    return rows, offsets


def _image_numbers(names: tuple[str, ...], V: int) -> Tensor:
    """Names that are distinct integers of 31 bits as these, otherwise 0 … V-1."""
    numbers = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) <= 9]
    return torch.tensor(numbers if len(set(numbers)) == V else range(V), dtype=torch.int64)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))
