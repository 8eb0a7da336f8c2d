"""COLMAP: camera models and their parameters, image poses, pixels.

Axes are the same (x right, y down, z forward), and so are the order and the meaning of the coefficients. Pixels shift:
COLMAP's (0.5, 0.5) is the centre of the top-left pixel, where ours is (0, 0), so that principal points and points2d
gain half a pixel on their way to COLMAP. It is said here and nowhere else; `datasets.reconstructions.colmap` reads
files with it. Values go to the host as float64, detached; pycolmap itself is not needed.

Of COLMAP's camera models THIN_PRISM_FISHEYE and RAD_TAN_THIN_PRISM_FISHEYE (tangential and thin-prism terms of the
angle instead of the slope) are none of `geometry.lenses`; their rays, by pycolmap's `cam_from_img`, are bearings to any
solver that takes these. EQUIRECTANGULAR has no K: `geometry.camera.equirectangular_rays`.

    camera = pycolmap.Camera(**colmap.to_camera(K, distortion, (width, height)))
    K, distortion, image_size, model = colmap.from_camera(camera.model, camera.width, camera.height, camera.params)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import Model, intrinsics_from_matrix, matrix_from_intrinsics
from geometry.checks import check_tensors_or_none
from geometry.interop._checks import ImageSize, check_K, check_pose, check_shape, host, integers, tensor
from geometry.lenses import LENSES as TABLE
from geometry.lenses import check_distortion

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "LENSES",
    "Lens",
    "from_camera",
    "from_parameters",
    "from_pixels",
    "from_pose",
    "to_camera",
    "to_parameters",
    "to_pixels",
    "to_pose",
]

_HALF_PIXEL = 0.5


class Lens(NamedTuple):
    """A camera model: its id, how many focal lengths and coefficients it has, and how many OpenCV needs to say them."""

    id: int
    focal_lengths: int
    coefficients: int
    length: int
    model: Model = "radtan"


# Simplest first, each model apart. Parameters: focal lengths, principal point, coefficients in OpenCV's own order.
LENSES = {
    "SIMPLE_PINHOLE": Lens(0, 1, 0, 0),
    "PINHOLE": Lens(1, 2, 0, 0),
    "SIMPLE_RADIAL": Lens(2, 1, 1, 2),
    "RADIAL": Lens(3, 1, 2, 2),
    "OPENCV": Lens(4, 2, 4, 4),
    "FULL_OPENCV": Lens(6, 2, 8, 8),
    "SIMPLE_FISHEYE": Lens(14, 1, 0, 0, "fisheye"),
    "FISHEYE": Lens(15, 2, 0, 0, "fisheye"),
    "SIMPLE_RADIAL_FISHEYE": Lens(8, 1, 1, 1, "fisheye"),
    "RADIAL_FISHEYE": Lens(9, 1, 2, 2, "fisheye"),
    "OPENCV_FISHEYE": Lens(5, 2, 4, 4, "fisheye"),
    "FOV": Lens(7, 2, 1, 1, "fov"),
    "SIMPLE_DIVISION": Lens(12, 1, 1, 1, "division"),
    "DIVISION": Lens(13, 2, 1, 1, "division"),
    "EUCM": Lens(16, 2, 2, 2, "eucm"),
}


def to_pixels(points2d: Tensor) -> Tensor:
    """COLMAP's pixels of points2d (…,2): half a pixel is added, nothing flips. Differentiable."""
    check_shape("points2d", points2d, 2)
    return points2d + _HALF_PIXEL


def from_pixels(xy: Tensor) -> Tensor:
    """points2d (…,2) of COLMAP's pixels: half a pixel is taken off, nothing flips. Differentiable."""
    check_shape("xy", xy, 2)
    return xy - _HALF_PIXEL


def to_pose(world_to_camera: Tensor) -> "tuple[np.ndarray, np.ndarray]":
    """qvec (…,4) in the order w, x, y, z with w >= 0, and tvec (…,3), as `images.txt` has them, of poses (…,4,4).

    No flip, no shift. The Rotation3d of pycolmap takes x, y, z, w instead: `np.roll(qvec, -1, -1)`, or the matrix
    itself, `pycolmap.Rigid3d(world_to_camera[:3])`. Raises ValueError for what is no rigid motion.
    """
    check_pose("world_to_camera", world_to_camera)
    pose = world_to_camera.detach().double()
    return host(se3.quat_wxyz_from_rotation(pose[..., :3, :3])), host(pose[..., :3, 3])


def from_pose(qvec: Any, tvec: Any) -> Tensor:
    """world_to_camera (…,4,4), float64, of qvec (…,4) = w, x, y, z of any length but zero, and tvec (…,3).

    No flip, no shift. Raises ValueError for other shapes, and for a quaternion of length zero or not finite.
    """
    q, t = tensor("qvec", qvec), tensor("tvec", tvec)
    check_shape("qvec", q, 4)
    if t.shape != (*q.shape[:-1], 3):
        raise ValueError(f"tvec must have shape {(*q.shape[:-1], 3)} beside this qvec, got {tuple(t.shape)}")
    length2 = q.square().sum(-1)
    for row in q[~((length2 > 0) & length2.isfinite())][:1]:
        raise ValueError(f"qvec must hold quaternions of finite length above zero, got {row.tolist()}")
    return se3.make(se3.rotation_from_quat_wxyz(q), t)


def to_parameters(intrinsics: Sequence[float], distortion: Sequence[float], model: Model) -> tuple[str, list[float]]:
    """Name and parameters of the simplest camera model that has as many coefficients as `distortion` and holds them.

    intrinsics: fx, fy, cx, cy in our pixels. One of fewer coefficients would come back as another shape. Raises
    ValueError for thin-prism coefficients that are not zero, and for lenses that COLMAP has not.
    """
    fx, fy, cx, cy = intrinsics
    if not distortion and TABLE[model].pinhole:
        model = "radtan"
    lenses = {name: lens for name, lens in LENSES.items() if lens.model == model}
    longest = max((lens.length for lens in lenses.values()), default=0)
    for name, lens in lenses.items():
        room = lens.length >= min(len(distortion), longest) and not any(distortion[lens.coefficients :])
        if room and (lens.focal_lengths == 2 or fx == fy):
            coefficients = [*distortion, *[0.0] * lens.coefficients][: lens.coefficients]
            return name, [*(fx, fy)[2 - lens.focal_lengths :], cx + _HALF_PIXEL, cy + _HALF_PIXEL, *coefficients]
    lacks = "thin-prism coefficients" if model == "radtan" else f"camera model for {model!r}"
    raise ValueError(f"distortion: COLMAP has no {lacks}, got {list(distortion)}")


def from_parameters(name: str, parameters: Sequence[float]) -> tuple[list[float], list[float]]:
    """fx, fy, cx, cy in our pixels, and the distortion, of a camera model's parameters; zeros where it has none.

    Raises ValueError for a camera model that is not among `LENSES`, and for another number of parameters.
    """
    if name not in LENSES:
        raise ValueError(f"model must be one of {', '.join(LENSES)}, got {name!r}")
    lens = LENSES[name]
    wanted = lens.focal_lengths + 2 + lens.coefficients
    if len(parameters) != wanted:
        raise ValueError(f"params: {wanted} parameters of {name} wanted, got {len(parameters)}")
    values = [float(value) for value in parameters]
    cx, cy, *coefficients = values[lens.focal_lengths :]
    padding = [0.0] * (lens.length - lens.coefficients)
    return [values[0], values[lens.focal_lengths - 1], cx - _HALF_PIXEL, cy - _HALF_PIXEL], coefficients + padding


def to_camera(K: Tensor, distortion: Tensor | None, image_size: ImageSize, model: Model = "radtan") -> dict[str, Any]:
    """The keywords model, width, height, params of `pycolmap.Camera`, and the fields of `cameras.txt`, for one camera.

    K (3,3), distortion (k,) or None of geometry.camera's `model`; image_size (width, height). The principal point
    shifts by half a pixel, nothing flips. The camera model is the simplest that has as many coefficients as
    `distortion` and holds its values: SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL, OPENCV, FULL_OPENCV or one of
    the fisheyes, FOV, DIVISION, EUCM. Raises ValueError for what COLMAP cannot say: skew, thin-prism coefficients, a
    double sphere.
    """
    check_K(K, "COLMAP")
    check_tensors_or_none(distortion=distortion)
    distortion = K.new_zeros(0) if distortion is None else distortion
    check_distortion(distortion, model)
    if (K.dim(), distortion.dim()) != (2, 1):
        raise ValueError(
            f"K must be (3,3) and distortion (k,) of one camera, got {tuple(K.shape)} and {tuple(distortion.shape)}"
        )
    width, height = integers(image_size)
    name, params = to_parameters(intrinsics_from_matrix(K).tolist(), distortion.tolist(), model)
    return {"model": name, "width": width, "height": height, "params": params}


def from_camera(
    model: Any, width: int, height: int, params: Sequence[float]
) -> tuple[Tensor, Tensor, tuple[int, int], Model]:
    """K (3,3), distortion (k,), (width, height) and geometry.camera's `model` of one camera; float64 on the CPU.

    model: COLMAP's name, or pycolmap's `camera.model`. The principal point shifts by half a pixel, nothing flips;
    k is 0, 2, 4 or 8 (fisheye: 1, 2, 4; division, fov: 1; EUCM: 2). Raises ValueError for a camera model that is not
    among `LENSES`, and for another number of parameters.
    """
    name = getattr(model, "name", model)
    intrinsics, distortion = from_parameters(name, params)
    K = matrix_from_intrinsics(torch.tensor(intrinsics, dtype=torch.float64))
    size = integers((width, height))
    return K, torch.tensor(distortion, dtype=torch.float64), size, LENSES[name].model
