"""OpenCV: rvec, tvec, cameraMatrix, distCoeffs.

Nothing flips and nothing shifts: axes, pixel grid and the order of coefficients are OpenCV's own here. A rotation
becomes a Rodrigues vector, vectors become columns (3,1), and coefficients are padded to a number that OpenCV takes.
All is numpy float64, detached; cv2 itself is not needed.

    pixels, _ = cv2.projectPoints(points3d, *opencv.to_camera(world_to_camera, K, distortion))
    pixels = project(points3d, *opencv.from_camera(rvec, tvec, cameraMatrix, distCoeffs))
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from geometry import se3
from geometry.camera import Model
from geometry.checks import check_tensors_or_none, one_of
from geometry.interop._checks import check_K, check_pose, check_rotation, host, tensor
from geometry.lenses import check_distortion

if TYPE_CHECKING:
    import numpy as np

__all__ = ["from_camera", "from_distortion", "from_pose", "to_camera", "to_distortion", "to_pose"]


_MODELS = ("radtan", "fisheye")
"""Lenses that OpenCV has as well."""


def to_pose(world_to_camera: Tensor) -> "tuple[np.ndarray, np.ndarray]":
    """rvec (…,3,1) in radians and tvec (…,3,1) of poses (…,4,4), as solvePnP and calibrateCamera give them.

    No flip, no shift. A batch becomes arrays whose items are what OpenCV takes: `list(rvec)` are calibrateCamera's
    rvecs. A rig, R and T of stereoCalibrate from camera 1 to camera 2, is such a pose too: "world" is then camera 1,
    and `cv2.Rodrigues(rvec)[0]` is R. Raises ValueError for what is no rigid motion.
    """
    check_pose("world_to_camera", world_to_camera)
    pose = world_to_camera.detach().double()
    return host(se3.log(pose[..., :3, :3])[..., None]), host(pose[..., :3, 3:])


def from_pose(rotation: Any, tvec: Any) -> Tensor:
    """world_to_camera (…,4,4), float64, of rvec and tvec, or of R and T.

    rotation: rvec (3,), (…,3,1) or (…,1,3), or rotation matrices (…,3,3), as stereoCalibrate's R is one; tvec likewise.
    Both may be OpenCV's tuples of arrays. No flip, no shift. Raises ValueError for other shapes, for leading dimensions
    that differ, and for matrices that are no rotations.
    """
    matrix = tensor("rotation", rotation)
    t = _vector("tvec", tensor("tvec", tvec), "")
    if matrix.shape[-2:] == (3, 3):
        check_rotation("rotation", matrix)
    else:
        matrix = se3.exp(_vector("rotation", matrix, " or (…,3,3)"))
    if matrix.shape[:-2] != t.shape[:-1]:
        raise ValueError(f"rotation and tvec must be as many, got {tuple(matrix.shape[:-2])} and {tuple(t.shape[:-1])}")
    return se3.make(matrix, t)


def to_distortion(distortion: Tensor | None, *, model: Model = "radtan") -> "np.ndarray":
    """distCoeffs (k,) of one lens; k = 4, 5, 8 or 12, or 4 for cv2.fisheye.

    The order is OpenCV's already; zeros fill what OpenCV wants beyond (k = 0, 2; fisheyes below 4), which changes no
    pixel. Raises ValueError for another shape or number, and for lenses that OpenCV has not.
    """
    check_tensors_or_none(distortion=distortion)
    one_of("model", model, _MODELS)
    distortion = torch.zeros(0) if distortion is None else distortion
    check_distortion(distortion, model)
    if distortion.dim() != 1:
        raise ValueError(f"distortion must be (k,) of one lens, got shape {tuple(distortion.shape)}")
    return host(pad(distortion, (0, max(0, 4 - len(distortion)))))


def from_distortion(distCoeffs: Any, *, model: Model = "radtan") -> Tensor:
    """distortion (k,), float64, of distCoeffs (k,), (1,k) or (k,1) of one lens; None: k = 0.

    Of 14 coefficients the last two tilt the sensor, which `geometry.camera` does not: where they are zero they are
    dropped, elsewhere ValueError is raised, as for another shape or number. Thin-prism terms (the four before) stay.
    """
    one_of("model", model, _MODELS)
    values = tensor("distCoeffs", () if distCoeffs is None else distCoeffs)
    distortion = values.flatten()
    if max(values.shape, default=0) != len(distortion):
        raise ValueError(f"distCoeffs must be one lens, (k,), (1,k) or (k,1), got shape {tuple(values.shape)}")
    if len(distortion) == 14:
        if distortion[12:].any():
            raise ValueError(f"distCoeffs: a sensor that is not tilted wanted, got tau = {distortion[12:].tolist()}")
        distortion = distortion[:12]
    check_distortion(distortion, model)
    return distortion


def to_camera(
    world_to_camera: Tensor, K: Tensor, distortion: Tensor | None = None, *, model: Model = "radtan"
) -> "tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]":
    """rvec, tvec (…,3,1), cameraMatrix (3,3), distCoeffs (k,): what projectPoints takes, in its order.

    world_to_camera (…,4,4), K (3,3) and distortion (k,) of one camera. No flip, no shift; `model="fisheye"` is for the
    functions of cv2.fisheye. Raises ValueError for skew, which OpenCV passes over, and as `to_pose` and
    `to_distortion` do.
    """
    check_K(K, "OpenCV")
    if K.dim() != 2:
        raise ValueError(f"K must be (3,3) of one camera, got shape {tuple(K.shape)}")
    return *to_pose(world_to_camera), host(K), to_distortion(distortion, model=model)


def from_camera(
    rotation: Any, tvec: Any, cameraMatrix: Any, distCoeffs: Any = None, *, model: Model = "radtan"
) -> tuple[Tensor, Tensor, Tensor]:
    """world_to_camera (…,4,4), K (3,3), distortion (k,): what `project` takes, in its order, float64 on the CPU.

    `rotation` is rvec or R, one or a tuple of them. No flip, no shift. Raises ValueError as `from_pose` and
    `from_distortion` do, and for skew, which OpenCV passes over.
    """
    K = tensor("cameraMatrix", cameraMatrix)
    check_K(K, "OpenCV")
    return from_pose(rotation, tvec), K, from_distortion(distCoeffs, model=model)


def _vector(name: str, x: Tensor, or_else: str) -> Tensor:
    """Vectors (…,3) of one (3,), of columns (…,3,1) or of rows (…,1,3)."""
    if x.shape == (3,):
        return x
    if x.shape[-2:] not in ((3, 1), (1, 3)):
        raise ValueError(f"{name} must have shape (3,), (…,3,1), (…,1,3){or_else}, got {tuple(x.shape)}")
    return x.flatten(-2)
