"""A reconstruction as tensors, the same for every file format, and what the formats' readers and writers share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geometry.camera import Model, intrinsics_from_matrix, matrix_from_intrinsics, project
from geometry.lenses import check_distortion

__all__ = ["Reconstruction", "Rigs", "nearest_rotation", "pinhole", "radial_tangential", "reprojection_errors"]

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
    "rigs.world_to_rig": ("F", 4, 4),
    "rigs.rig_index": ("V",),
    "rigs.sensor_from_rig": ("S", 4, 4),
    "rigs.sensor_index": ("V",),
    "rigs.rig_of_sensor": ("S",),
    "rigs.fixed_sensors": ("S",),
}
_INTO = {
    "intrinsics_index": "C", "camera_index": "V", "point_index": "N",
    "rigs.rig_index": "F", "rigs.sensor_index": "S", "rigs.rig_of_sensor": "S",
}  # fmt: skip
_DTYPES = {
    "colors": torch.uint8, "image_sizes": torch.int64, "rigs.fixed_sensors": torch.bool,
} | dict.fromkeys(_INTO, torch.int64)  # fmt: skip


class Rigs(NamedTuple):
    """Cameras that are mounted together, by the names of `geometry.bundle`: F frames, S sensors.

    world_to_rig (F,4,4); rig_index (V,) int64: which frame an image is of; sensor_from_rig (S,4,4), sensor_index (V,)
    int64: which sensor took it. rig_of_sensor (S,) int64: which sensors are one rig's; fixed_sensors (S,) bool: the
    sensor of each rig to which its frame is fastened.
    """

    world_to_rig: Tensor
    rig_index: Tensor
    sensor_from_rig: Tensor
    sensor_index: Tensor
    rig_of_sensor: Tensor
    fixed_sensors: Tensor

    @property
    def world_to_camera(self) -> Tensor:
        """The poses (V,4,4) of the images."""
        return self.sensor_from_rig[self.sensor_index] @ self.world_to_rig[self.rig_index]


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
    rigs: how cameras are mounted together, None where they are not; world_to_camera are the poses that follow.
    coefficients: how many of the k the file has of every camera, None for all; the others were filled in with zeros.

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
    rigs: Rigs | None = None
    coefficients: int | None = None

    def __post_init__(self) -> None:
        sizes: dict[str | int, int] = {}
        tensors = vars(self) | {
            f"rigs.{name}": value for name, value in zip(Rigs._fields, self.rigs or (), strict=False)
        }
        for name, shape in _SHAPES.items():
            value: Any = tensors.get(name)
            if value is None and (name in ("colors", "image_sizes") or name.startswith("rigs.")):
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
            if name not in tensors:
                continue
            index, size = tensors[name], sizes[letter]
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
                found = f"{int(index.min())} … {int(index.max())}"
                raise ValueError(f"{name} must lie in 0 … {size - 1} ({letter} = {size}), got {found}")
        if self.coefficients is not None and not 0 <= self.coefficients <= sizes["k"]:
            raise ValueError(f"coefficients must lie in 0 … {sizes['k']}, got {self.coefficients}")
        if len(self.names) not in (0, sizes["V"]):
            raise ValueError(f"names must hold {sizes['V']} names or none, got {len(self.names)}")


def reprojection_errors(reconstruction: Reconstruction) -> Tensor:
    """Distance (M,) in px between where each observation is and where its point is seen; not finite behind a camera."""
    r = reconstruction
    lens = r.intrinsics_index[r.camera_index]
    seen = project(
        r.points3d[r.point_index][:, None],
        r.world_to_camera[r.camera_index],
        r.K[lens],
        r.distortion[lens],
        model=r.model,
    )
    return (seen[:, 0] - r.points2d).norm(dim=-1)


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
