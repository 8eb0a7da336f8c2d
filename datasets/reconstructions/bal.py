"""Bundle Adjustment in the Large: its text format (Agarwal, Snavely, Seitz, Szeliski, ECCV 2010).

    <cameras> <points> <observations>
    <camera index> <point index> <x> <y>          one line per observation
    rotvec (3), t (3), f, k1, k2                  per camera, usually one number a line
    X Y Z                                         per point, likewise

BAL's camera is Bundler's (Snavely 2006). It looks along -z with the image's y axis up, and pixels are counted from the
principal point:

    P = R X + t,   p = -P_xy / P_z,   r2 = |p|^2,   p' = f (1 + k1 r2 + k2 r2^2) p

Half a turn about the camera's x axis makes it the project's (x right, y down, z forward), and flips the image's y.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import Numbers
from datasets.files import quote, read_packed, replacing
from datasets.reconstructions.model import Reconstruction, pinhole, radial_tangential
from geometry import se3
from geometry.camera import matrix_from_intrinsics

__all__ = ["SnavelyCameras", "from_snavely", "read_bal", "to_snavely", "write_bal"]


class SnavelyCameras(NamedTuple):
    """Cameras and observations in the convention of BAL and Bundler: y up, looking along -z.

    poses (V,4,4) world to camera, lens (V,3) = f in px, k1, k2; points2d (M,2) in px from the principal point.
    """

    poses: Tensor
    lens: Tensor
    points2d: Tensor


def from_snavely(cameras: SnavelyCameras, **fields: Any) -> Reconstruction:
    """The reconstruction of `cameras`, each with intrinsics of its own; `fields` are the remaining ones."""
    f, k = cameras.lens.split([1, 2], dim=-1)
    return Reconstruction(
        world_to_camera=_half_turn(cameras.poses),
        K=matrix_from_intrinsics(torch.cat([f, f, torch.zeros_like(k)], -1)),
        distortion=k.clone(),
        intrinsics_index=torch.arange(len(f)),
        points2d=_flip_y(cameras.points2d),
        **fields,
    )


def to_snavely(reconstruction: Reconstruction, kind: str) -> SnavelyCameras:
    """The cameras and observations of a reconstruction, for a writer of the format `kind`.

    Shared intrinsics are repeated for every image. The principal point is subtracted from points2d, which leaves the
    reprojection errors as they are. Raises ValueError for what the format cannot say: fx != fy, skew, a fisheye,
    distortion other than k1, k2.
    """
    f, _, centre = pinhole(reconstruction, kind).split([1, 1, 2], dim=-1)
    lens = torch.cat([f, radial_tangential(reconstruction, kind, [0, 1])], -1)
    index = reconstruction.intrinsics_index
    points2d = reconstruction.points2d.double() - centre[index[reconstruction.camera_index]]
    return SnavelyCameras(_half_turn(reconstruction.world_to_camera.double()), lens[index], _flip_y(points2d))


def _half_turn(pose: Tensor) -> Tensor:
    """Between OpenCV's camera axes and Bundler's, both ways."""
    return pose * pose.new_tensor([1, -1, -1, 1])[:, None]


def _flip_y(points2d: Tensor) -> Tensor:
    return points2d * points2d.new_tensor([1, -1])


def read_bal(path: str | Path) -> Reconstruction:
    """Read a BAL text file, packed (.bz2, .gz) or not: V images with intrinsics of their own, N points, M observations.

    The principal point is (0, 0): the file counts pixels from it and does not say where in the image it is; distortion
    (V,2) = k1, k2. Raises ValueError naming the file and line when it is no BAL file, is truncated or too long, holds
    something that is not a finite number, or an index outside 0 … V-1 or 0 … N-1. FileNotFoundError if there is none.
    """
    path = Path(path)
    text = read_packed(path)
    V, N, M = _counts(path, text)
    numbers = Numbers(path, text, lambda k: _what(k, V, N, M))
    if len(numbers.tokens) != 3 + 4 * M + 9 * V + 3 * N:
        _raise_count(numbers, V, N, M)
    first = np.arange(3, 3 + 4 * M, 4)
    camera_index = numbers.integers(first, "camera index", 0, V - 1)
    point_index = numbers.integers(first + 1, "point index", 0, N - 1)
    values = torch.from_numpy(numbers.values)[3:]
    observations, cameras, points3d = values.split([4 * M, 9 * V, 3 * N])
    rotvec, t, lens = cameras.view(V, 9).split([3, 3, 3], dim=-1)
    poses = se3.make(se3.exp(rotvec), t)
    for v in (~poses.isfinite()).flatten(1).any(1).nonzero()[:1, 0].tolist():
        raise numbers.error(3 + 4 * M + 9 * v, f"a rotation vector wanted for camera {v}, found {rotvec[v].tolist()}")
    return from_snavely(
        SnavelyCameras(poses, lens, observations.view(M, 4)[:, 2:]),
        points3d=points3d.view(N, 3).clone(),
        camera_index=torch.from_numpy(camera_index),
        point_index=torch.from_numpy(point_index),
    )


def write_bal(path: str | Path, reconstruction: Reconstruction) -> None:
    """Write a BAL text file, whole or not at all; numbers keep all their digits.

    Shared intrinsics are written out per image, and a principal point other than (0, 0) is subtracted from points2d:
    `read_bal` gives it back as (0, 0). Colours, names and image sizes are lost. Raises ValueError naming the reason
    for what BAL cannot say (`to_snavely`), and for a reconstruction without images, points or observations.
    """
    path = Path(path)
    cameras = to_snavely(reconstruction, "BAL")
    sizes = len(cameras.poses), len(reconstruction.points3d), len(cameras.points2d)
    if 0 in sizes:
        raise ValueError(f"BAL wants one image, point and observation at least, got {sizes} of them")
    seen = zip(
        reconstruction.camera_index.tolist(),
        reconstruction.point_index.tolist(),
        *cameras.points2d.T.tolist(),
        strict=True,
    )
    numbers = torch.cat(
        [
            torch.cat([se3.rotvec_t(cameras.poses), cameras.lens], -1).flatten(),
            reconstruction.points3d.double().flatten(),
        ]
    )
    with replacing(path) as temporary, temporary.open("w", newline="\n") as file:
        file.write("{} {} {}\n".format(*sizes))
        file.writelines(f"{v} {n} {x!r} {y!r}\n" for v, n, x, y in seen)
        file.writelines(f"{value!r}\n" for value in numbers.tolist())


def _counts(path: Path, text: bytes) -> tuple[int, int, int]:
    head = text.split(None, 3)[:3]
    if len(head) < 3 or not all(re.fullmatch(rb"[1-9]\d{0,9}", token) for token in head):
        raise ValueError(
            f"{path}, line 1: not a BAL file: it starts with three positive integers (cameras, points, "
            f"observations), found {quote(b' '.join(head))}"
        )
    V, N, M = (int(token) for token in head)
    return V, N, M


def _raise_count(numbers: Numbers, V: int, N: int, M: int) -> NoReturn:
    """The file holds too few or too many numbers: name the first line that is to blame."""
    wanted, found = 3 + 4 * M + 9 * V + 3 * N, len(numbers.tokens)
    total = f"{V} cameras, {N} points and {M} observations need {wanted} numbers, found {found}"
    # Every observation is a line of four, so a short one in the middle can be named. Without this the blame
    # would fall on the end of the file.
    seen = 0
    for number, line in enumerate(numbers.text.split(b"\n"), start=1):
        count = len(line.split())
        if 3 <= seen < 3 + 4 * M and count not in (0, 4):
            raise ValueError(
                f"{numbers.path}, line {number}: 4 numbers (camera, point, x, y) wanted for observation "
                f"{(seen - 3) // 4}, found {count}: {quote(line.strip())}; {total}"
            )
        seen += count
    if found < wanted:
        raise numbers.error(found - 1, f"the file ends after {_what(found - 1, V, N, M)}: {total}")
    raise numbers.error(wanted, f"the end of the file wanted, found {quote(numbers.tokens[wanted])}; {total}")


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
