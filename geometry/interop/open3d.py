"""Open3D: PinholeCameraParameters, the rays of its ray caster, PointCloud.

Nothing flips: its extrinsic is a world_to_camera for columns, its axes OpenCV's. Pixels have two grids. Depth images
(`create_from_depth_image`, `project_to_depth_image`) have (0, 0) at the centre of the top-left pixel, as ours is, so
that a PinholeCameraIntrinsic is K as it stands. `RaycastingScene.create_rays_pinhole` has (0.5, 0.5) there: `to_rays`
adds half a pixel to the principal point. Open3D's objects live on the host: values are detached, copied, float64.

    cloud = o3d.geometry.PointCloud.create_from_depth_image(depth, camera.intrinsic, camera.extrinsic)
    rays = o3d.t.geometry.RaycastingScene.create_rays_pinhole(**open3d.to_rays(world_to_camera, K, (width, height)))
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geometry.checks import check_tensors
from geometry.interop._checks import ImageSize, check_K, check_pose, host, integers, tensor

if TYPE_CHECKING:
    from open3d.camera import PinholeCameraParameters
    from open3d.geometry import PointCloud

__all__ = ["from_camera", "from_points", "from_rays", "to_camera", "to_points", "to_rays"]

_HALF_PIXEL = 0.5


def to_camera(world_to_camera: Tensor, K: Tensor, image_size: ImageSize) -> "PinholeCameraParameters":
    """One camera: world_to_camera (4,4), K (3,3), image_size (width, height). No flip, no shift.

    Its `intrinsic` is a PinholeCameraIntrinsic, its `extrinsic` the pose. Raises ValueError for skew, which Open3D
    keeps and passes over, for batches, and for what is no rigid motion.
    """
    import open3d as o3d

    _check_one(world_to_camera, K)
    check_K(K, "Open3D")
    camera = o3d.camera.PinholeCameraParameters()
    camera.intrinsic = o3d.camera.PinholeCameraIntrinsic(*integers(image_size), host(K))
    camera.extrinsic = host(world_to_camera)
    return camera


def from_camera(camera: "PinholeCameraParameters") -> tuple[Tensor, Tensor, tuple[int, int]]:
    """world_to_camera (4,4), K (3,3), (width, height); float64 on the CPU. No flip, no shift.

    Raises ValueError for skew, and an extrinsic that is no rigid motion: a new PinholeCameraParameters has none at all.
    """
    pose, K = tensor("extrinsic", camera.extrinsic), tensor("intrinsic_matrix", camera.intrinsic.intrinsic_matrix)
    check_pose("extrinsic", pose)
    check_K(K, "Open3D")
    return pose, K, (camera.intrinsic.width, camera.intrinsic.height)


def to_rays(world_to_camera: Tensor, K: Tensor, image_size: ImageSize) -> dict[str, Any]:
    """The keywords of `RaycastingScene.create_rays_pinhole` whose ray (v, u) passes through our pixel (u, v).

    No flip; the principal point shifts by half a pixel; skew stays. Along a ray `t_hit` is the depth, as directions
    have z = 1 in the camera. Raises ValueError for batches, and for what is no rigid motion.
    """
    _check_one(world_to_camera, K)
    width, height = integers(image_size)
    matrix = host(K)
    matrix[:2, 2] += _HALF_PIXEL
    return {
        "intrinsic_matrix": matrix,
        "extrinsic_matrix": host(world_to_camera),
        "width_px": width,
        "height_px": height,
    }


def from_rays(
    intrinsic_matrix: Any, extrinsic_matrix: Any, width_px: int, height_px: int
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """world_to_camera (4,4), K (3,3), (width, height) of the arguments of `create_rays_pinhole`; float64 on the CPU.

    No flip; the principal point loses the half pixel that `to_rays` adds. Raises ValueError for batches, and for what
    is no rigid motion.
    """
    pose, K = tensor("extrinsic_matrix", extrinsic_matrix), tensor("intrinsic_matrix", intrinsic_matrix)
    _check_one(pose, K)
    K[:2, 2] -= _HALF_PIXEL
    return pose, K, integers((width_px, height_px))


def to_points(points3d: Tensor, colors: Tensor | None = None) -> "PointCloud":
    """A PointCloud of points3d (N,3), and colors (N,3), RGB, uint8 or floating-point numbers in 0 … 1.

    No flip: the points stay in their frame. uint8 becomes 0 … 1. Raises ValueError for other shapes and other colours.
    """
    import open3d as o3d

    check_tensors(points3d=points3d)
    if colors is not None:
        check_tensors(False, colors=colors)
    if points3d.dim() != 2 or points3d.shape[1] != 3:
        raise ValueError(f"points3d must have shape (N,3), got {tuple(points3d.shape)}")
    cloud = o3d.geometry.PointCloud()
    cloud.points = o3d.utility.Vector3dVector(host(points3d))
    if colors is not None:
        if colors.shape != points3d.shape:
            raise ValueError(f"colors must have shape {tuple(points3d.shape)}, got {tuple(colors.shape)}")
        share = colors.double() / 255 if colors.dtype == torch.uint8 else colors
        if not share.is_floating_point() or not ((share >= 0) & (share <= 1)).all():
            raise ValueError(f"colors must be uint8, or floating-point numbers in 0 … 1, got others of {colors.dtype}")
        cloud.colors = o3d.utility.Vector3dVector(host(share))
    return cloud


def from_points(cloud: "PointCloud") -> tuple[Tensor, Tensor | None]:
    """points3d (N,3), float64, and colors (N,3), RGB uint8, or None where the cloud has none. Normals stay behind.

    No flip. Colours are rounded to uint8, and clipped where Open3D's are beyond 0 … 1. A cloud of `open3d.t` becomes
    such a one by `cloud.to_legacy()`.
    """
    points3d = tensor("points", cloud.points).reshape(-1, 3)
    if not cloud.has_colors():
        return points3d, None
    return points3d, (tensor("colors", cloud.colors) * 255).round().clamp(0, 255).to(torch.uint8)


def _check_one(world_to_camera: Tensor, K: Tensor) -> None:
    check_pose("world_to_camera", world_to_camera)
    check_K(K, None)
    if (world_to_camera.dim(), K.dim()) != (2, 2):
        found = f"{tuple(world_to_camera.shape)} and {tuple(K.shape)}"
        raise ValueError(f"world_to_camera must be (4,4) and K (3,3) of one camera, got {found}")
