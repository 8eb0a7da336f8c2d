"""What every conversion refuses, and that what it gives shares no memory with what it was given."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from geometry.interop import colmap, kornia, open3d, opencv, pytorch3d, scipy
from tests.geometry.interop.scenes import SIZE, K, poses


def camera_of_open3d(pose: Tensor, K: Tensor) -> SimpleNamespace:
    intrinsic = SimpleNamespace(intrinsic_matrix=K.numpy(), width=640, height=480)
    return SimpleNamespace(extrinsic=pose.numpy(), intrinsic=intrinsic)


TAKES_POSE: dict[str, Callable[[Tensor], object]] = {
    "opencv": opencv.to_pose,
    "opencv camera": lambda pose: opencv.to_camera(pose, K),
    "colmap": colmap.to_pose,
    "pytorch3d": pytorch3d.to_pose,
    "pytorch3d camera": lambda pose: pytorch3d.to_camera(pose, K, SIZE),
    "pytorch3d transform": pytorch3d.to_transform,
    "kornia": lambda pose: kornia.to_camera(pose, K, SIZE),
    "kornia, back": lambda pose: kornia.from_camera(SimpleNamespace(extrinsics=pose, camera_matrix=K)),
    "open3d": lambda pose: open3d.to_camera(pose, K, SIZE),
    "open3d rays": lambda pose: open3d.to_rays(pose, K, SIZE),
    "open3d, back": lambda pose: open3d.from_camera(camera_of_open3d(pose, K)),
}
TAKES_ROTATION: dict[str, Callable[[Tensor], object]] = {
    "opencv": lambda R: opencv.from_pose(R.numpy(), np.zeros((3, 1))),
    "pytorch3d": lambda R: pytorch3d.from_pose(R, R.new_zeros(3)),
    "scipy": scipy.to_rotation,
}
TAKES_SKEW: dict[str, Callable[[Tensor], object]] = {
    "OpenCV": lambda K: opencv.to_camera(poses(), K),
    "OpenCV ": lambda K: opencv.from_camera(np.zeros(3), np.zeros(3), K.numpy()),
    "COLMAP": lambda K: colmap.to_camera(K, None, SIZE),
    "a PerspectiveCameras": lambda K: pytorch3d.to_camera(poses(), K, SIZE),
    "Open3D": lambda K: open3d.to_camera(poses(), K, SIZE),
    "Open3D ": lambda K: open3d.from_camera(camera_of_open3d(poses(), K)),
}


def spoilt(how: str) -> Tensor:
    pose = poses()
    if how == "reflection":
        pose[:3, 0] *= -1
    elif how == "scale":
        pose[:3, :3] *= 1.01
    elif how == "not a number":
        pose[1, 2] = torch.nan
    elif how == "rows":  # for row vectors: the translation stands at the bottom
        pose = pose.mT
    return pose


@pytest.mark.parametrize("how", ["reflection", "scale", "not a number", "rows"])
@pytest.mark.parametrize("name", TAKES_POSE)
def test_what_is_no_rigid_motion(name: str, how: str) -> None:
    with pytest.raises(ValueError, match=r"must (hold rotations|have the last row|be finite)"):
        TAKES_POSE[name](spoilt(how))


@pytest.mark.parametrize("how", ["reflection", "scale", "not a number"])
@pytest.mark.parametrize("name", TAKES_ROTATION)
def test_what_is_no_rotation(name: str, how: str) -> None:
    with pytest.raises(
        ValueError, match=r"(R|rotation) must (hold rotations \(orthonormal, determinant 1\), got \[\[|be finite)"
    ):
        TAKES_ROTATION[name](spoilt(how)[:3, :3])


@pytest.mark.parametrize("name", TAKES_POSE)
def test_what_is_no_pose(name: str) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(…,4,4\) .*got \(3, 4\)"):
        TAKES_POSE[name](poses()[:3])
    infinite = poses()
    infinite[0, 3] = torch.inf
    with pytest.raises(ValueError, match="must be finite"):
        TAKES_POSE[name](infinite)
    if "back" not in name:
        with pytest.raises(ValueError, match=r"floating-point numbers, got \(4, 4\) of torch.int64"):
            TAKES_POSE[name](torch.eye(4, dtype=torch.int64))


@pytest.mark.parametrize("name", TAKES_SKEW)
def test_skew_is_not_passed_over(name: str) -> None:
    skewed = K.clone()
    skewed[0, 1] = 2.0
    with pytest.raises(ValueError, match=f"K: {name.strip()} .*has no skew|K: {name.strip()} .*got 2.0"):
        TAKES_SKEW[name](skewed)
    TAKES_SKEW[name](K)
    below = K.clone()
    below[1, 0] = 1.0
    with pytest.raises(ValueError, match="K must have zeros below the diagonal"):
        TAKES_SKEW[name](below)


@pytest.mark.parametrize("to_camera", [kornia.to_camera, pytorch3d.to_camera])
def test_batches_that_do_not_fit(to_camera: Callable) -> None:
    for arguments in [
        (poses(3), K.expand(2, 3, 3), SIZE),
        (poses(3), K, torch.tensor([SIZE, SIZE])),
        (poses(2, 3), K, SIZE),
    ]:
        with pytest.raises(ValueError, match="must share one leading dimension or lack it"):
            to_camera(*arguments)
    with pytest.raises(ValueError, match=r"image_size must be \(width, height\)"):
        to_camera(poses(), K, (640, 480, 3))
    with pytest.raises(ValueError, match="one dtype"):
        to_camera(poses(dtype=torch.float32), K, SIZE)


@pytest.mark.parametrize("size", [(640.5, 480), (-1, 480), (640,), torch.zeros(2, 2)])
def test_sizes_of_one_image(size: object) -> None:
    for call in (lambda: open3d.to_camera(poses(), K, size), lambda: colmap.to_camera(K, None, size)):
        with pytest.raises(ValueError, match="image_size must be"):
            call()


@pytest.mark.parametrize("convert", [opencv.to_pose, colmap.to_pose])
def test_nothing_shares_memory_and_gradients_stay_behind(convert: Callable) -> None:
    pose = poses().requires_grad_()
    before = pose.detach().clone()
    for array in convert(pose):
        assert array.dtype == np.float64
        array += 1
    matrix = opencv.to_camera(pose, K)[2]
    matrix += 1
    extrinsic = open3d.to_rays(pose, K, SIZE)["extrinsic_matrix"]
    extrinsic += 1
    assert torch.equal(pose.detach(), before)
    assert K[2, 2] == 1
