"""PyTorch3D: PerspectiveCameras and Transform3d.

Flips: the camera's x points left and its y up, ours right and down; points are rows, X R + T, where ours are columns;
image sizes are (height, width), ours (width, height). Shifts: (0, 0) is the corner of the image, so that the
top-left pixel has its centre at (0.5, 0.5), ours at (0, 0), and the principal point gains half a pixel. PyTorch3D's own
`cameras_from_opencv_projection` leaves that half pixel out.

    camera = PerspectiveCameras(**pytorch3d.to_camera(world_to_camera, K, (width, height)))
    world_to_camera, K, image_size = pytorch3d.from_camera(
        camera.R, camera.T, camera.focal_length, camera.principal_point, camera.image_size, camera.in_ndc()
    )

Quaternions and axis-angle vectors need no conversion: `matrix_to_quaternion` is our quat_wxyz (real part first) and
`matrix_to_axis_angle` our rotvec, of matrices that act on columns. `se3_exp_map` is another: it takes the translation
first, couples it with the rotation, and gives the matrix for rows. Everything here is differentiable and keeps dtype
and device; PerspectiveCameras itself computes in float32 and fails with float64, so give it float32.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import matrix_from_intrinsics
from geometry.checks import check_tensors
from geometry.interop._checks import ImageSize, batch, check_K, check_pose, check_rotation, check_shape

if TYPE_CHECKING:
    from pytorch3d.transforms import Transform3d

__all__ = [
    "from_camera",
    "from_pixels",
    "from_pose",
    "from_transform",
    "to_camera",
    "to_pixels",
    "to_pose",
    "to_transform",
]

_HALF_PIXEL = 0.5
_AXES = (-1.0, -1.0, 1.0)  # ours times these are PyTorch3D's


def to_pixels(points2d: Tensor) -> Tensor:
    """Screen coordinates, as `transform_points_screen` gives them, of points2d (…,2): half a pixel is added."""
    check_shape("points2d", points2d, 2)
    return points2d + _HALF_PIXEL


def from_pixels(screen: Tensor) -> Tensor:
    """points2d (…,2) of screen coordinates (…,2): half a pixel is taken off."""
    check_shape("screen", screen, 2)
    return screen - _HALF_PIXEL


def to_pose(world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
    """R (…,3,3) and T (…,3) of PyTorch3D's cameras, X_view = X R + T for rows X, of poses (…,4,4).

    R is transposed, and x and y of the camera flip; the world does not. Raises ValueError for what is no rigid motion.
    """
    check_pose("world_to_camera", world_to_camera)
    axes = world_to_camera.new_tensor(_AXES)
    return world_to_camera[..., :3, :3].mT * axes, world_to_camera[..., :3, 3] * axes


def from_pose(R: Tensor, T: Tensor) -> Tensor:
    """world_to_camera (…,4,4) of R (…,3,3) and T (…,3) of PyTorch3D's cameras: transposed, x and y flipped.

    Raises ValueError for other shapes and for what is no rotation.
    """
    check_rotation("R", R)
    check_tensors(T=T)
    if T.shape != R.shape[:-1]:
        raise ValueError(f"T must have shape {tuple(R.shape[:-1])} beside this R, got {tuple(T.shape)}")
    axes = R.new_tensor(_AXES)
    return se3.make((R * axes).mT, T * axes)


def to_camera(
    world_to_camera: Tensor, K: Tensor, image_size: ImageSize, in_ndc: bool = False
) -> dict[str, Tensor | bool]:
    """The keywords R, T, focal_length, principal_point, image_size, in_ndc of `PerspectiveCameras`, B cameras.

    world_to_camera (B,4,4) or (4,4), K (B,3,3) or (3,3), image_size (width, height) or (B,2); B = 1 where none has a
    batch. Axes flip and R is transposed as in `to_pose`, image_size becomes (height, width), the principal point gains
    half a pixel. in_ndc=True says the same in normalised device coordinates: pixels over half the shorter side,
    from the centre of the image, x left and y up. Raises ValueError for skew, and for shapes that do not fit.
    """
    check_K(K, "a PerspectiveCameras without a K of its own")
    pose, K, size = batch(world_to_camera, K, image_size)
    R, T = to_pose(pose)
    focal_length, principal_point = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1), to_pixels(K[:, :2, 2])
    if in_ndc:
        scale = size.to(K).amin(-1, keepdim=True) / 2
        focal_length, principal_point = focal_length / scale, (size.to(K) / 2 - principal_point) / scale
    return {
        "R": R,
        "T": T,
        "focal_length": focal_length,
        "principal_point": principal_point,
        "image_size": size.flip(-1),
        "in_ndc": in_ndc,
    }


def from_camera(
    R: Tensor, T: Tensor, focal_length: Tensor, principal_point: Tensor, image_size: Tensor, in_ndc: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """world_to_camera (B,4,4), K (B,3,3), image_size (B,2) = width, height of the attributes of a PerspectiveCameras.

    R (B,3,3), T (B,3), focal_length (B,2) or (B,1), principal_point (B,2), image_size (B,2) = height, width. What
    `to_camera` flips and shifts is undone. Raises ValueError for shapes that do not fit, and for what is no rotation.
    """
    pose = from_pose(R, T)
    check_tensors(focal_length=focal_length, principal_point=principal_point)
    check_tensors(False, image_size=image_size)
    wanted = (*R.shape[:-2], 2)
    for name, x in {"focal_length": focal_length, "principal_point": principal_point, "image_size": image_size}.items():
        if x.shape != wanted and not (x is focal_length and x.shape == (*wanted[:-1], 1)):
            raise ValueError(f"{name} must have shape {wanted} beside this R, got {tuple(x.shape)}")
    size = image_size.flip(-1)
    if in_ndc:
        scale = size.to(R).amin(-1, keepdim=True) / 2
        focal_length, principal_point = focal_length * scale, size.to(R) / 2 - principal_point * scale
    intrinsics = torch.cat([focal_length.expand_as(principal_point), from_pixels(principal_point)], -1)
    return pose, matrix_from_intrinsics(intrinsics), size


def to_transform(world_to_camera: Tensor) -> "Transform3d":
    """A Transform3d that maps points as the poses (B,4,4) or (4,4) do.

    The matrix is transposed, as its points are rows; axes do not flip: this is any rigid motion, in the frames it has.
    What a camera of PyTorch3D calls its world-to-view transform flips x and y after it;
    `PerspectiveCameras(**to_camera(…))` has that one. Differentiable. Raises ValueError for what is no rigid motion.
    """
    from pytorch3d.transforms import Transform3d

    check_pose("world_to_camera", world_to_camera)
    return Transform3d(matrix=world_to_camera.mT, device=world_to_camera.device)


def from_transform(transform: "Transform3d") -> Tensor:
    """The pose (B,4,4) of a Transform3d, composed or not: its matrix transposed, axes as they are. Differentiable.

    Raises ValueError where it is no rigid motion, but scales, reflects or projects.
    """
    pose = transform.get_matrix().mT
    check_pose("transform", pose)
    return pose
