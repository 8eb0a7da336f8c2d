"""kornia: PinholeCamera.

Nothing flips and nothing shifts: its extrinsics are a world_to_camera for columns, its axes OpenCV's, and (0, 0) is the
centre of the top-left pixel. Matrices are embedded: the intrinsics are K in a 4 x 4. It has no distortion;
`kornia.geometry.calibration.distort_points` takes ours as it is. Quaternions of `kornia.geometry.conversions` are our
quat_wxyz, axis-angle vectors our rotvec. Everything is differentiable and keeps dtype and device.

    pixels = kornia.to_camera(world_to_camera, K, (width, height)).project(points3d)
    world_to_camera, K, image_size = kornia.from_camera(camera)

`PinholeCamera.scale` multiplies the principal point by the scale alone, which is right on a grid whose (0, 0) is the
corner of the image, not on this one: scale K yourself, c <- (c + 0.5) scale - 0.5.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from geometry.interop._checks import ImageSize, batch, check_K, check_pose

if TYPE_CHECKING:
    from kornia.geometry.camera import PinholeCamera

__all__ = ["from_camera", "to_camera"]


def to_camera(world_to_camera: Tensor, K: Tensor, image_size: ImageSize) -> "PinholeCamera":
    """B cameras of kornia; its `project` is ours without distortion.

    world_to_camera (B,4,4) or (4,4), K (B,3,3) or (3,3), image_size (width, height) or (B,2); B = 1 where none has a
    batch. No flip, no shift; skew stays. Raises ValueError for what is no rigid motion, and for shapes that do not fit.
    """
    from kornia.geometry.camera import PinholeCamera

    pose, K, size = batch(world_to_camera, K, image_size)
    corner = torch.diag(K.new_tensor([0, 0, 0, 1]))
    return PinholeCamera(pad(K, (0, 1, 0, 1)) + corner, pose, height=size[:, 1], width=size[:, 0])


def from_camera(camera: "PinholeCamera") -> tuple[Tensor, Tensor, Tensor]:
    """world_to_camera (B,4,4), K (B,3,3), image_size (B,2) = width, height of kornia's cameras.

    No flip, no shift. Raises ValueError for extrinsics that are no rigid motion, and a K that is not upper triangular.
    """
    pose, K = camera.extrinsics, camera.camera_matrix
    check_pose("extrinsics", pose)
    check_K(K, None)
    return pose, K, torch.stack([camera.width, camera.height], -1)
