import pytest
import torch
from kornia.geometry.calibration import distort_points
from kornia.geometry.camera import PinholeCamera
from kornia.geometry.depth import depth_to_3d_v2
from torch import Tensor

from geometry import project, se3
from geometry.camera import intrinsics_from_matrix, matrix_from_intrinsics, project_camera_frame
from geometry.interop import kornia
from tests.geometry.interop.scenes import DTYPES, RADTAN, SIZE, K, close, points_before, poses

SKEWED = K.clone()
SKEWED[0, 1] = 3.0


@pytest.mark.parametrize("Ks", [K, SKEWED, SKEWED.expand(3, 3, 3)])
def test_project_agrees(Ks: Tensor) -> None:
    pose = poses(3)
    points3d = points_before(pose)
    camera = kornia.to_camera(pose, Ks, SIZE)
    assert isinstance(camera, PinholeCamera)
    pixels = project(points3d, pose, Ks)
    close(camera.project(points3d), pixels, 1e-9)
    depth = se3.transform(pose, points3d)[..., 2:]
    if Ks is K:
        close(camera.unproject(pixels, depth), points3d, 1e-9)
    close(project(points3d, *kornia.from_camera(camera)[:2]), pixels, 1e-9)


def test_pixels_have_their_centres_at_whole_numbers() -> None:
    """kornia's own depth maps: pixel (row v, column u) lies on the ray through (u, v) of our K."""
    points = depth_to_3d_v2(torch.full((1, 480, 640), 2.0, dtype=torch.float64), K[None])
    close(project_camera_frame(points[0, 7:8, 11], K), torch.tensor([[11.0, 7.0]]), 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cameras_there_and_back(dtype: torch.dtype) -> None:
    pose, sizes = poses(3, dtype=dtype), torch.tensor([[640, 480], [320, 240], [100, 200]])
    Ks = torch.stack([K, SKEWED, K]).to(dtype)
    camera = kornia.to_camera(pose, Ks, sizes)
    assert camera.height.tolist() == [480, 240, 200]
    assert camera.intrinsics[:, 3].tolist() == [[0, 0, 0, 1]] * 3
    for found, expected in zip(kornia.from_camera(camera), (pose, Ks, sizes), strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
    again = kornia.to_camera(*kornia.from_camera(camera))
    assert torch.equal(again.intrinsics, camera.intrinsics)

    single = kornia.to_camera(pose[0], Ks[0], SIZE)
    assert single.batch_size == 1
    assert torch.equal(single.extrinsics, camera.extrinsics[:1])
    assert kornia.to_camera(pose, Ks[0], SIZE).batch_size == 3


def test_a_zero_padded_matrix_is_read() -> None:
    intrinsics = torch.zeros(1, 4, 4, dtype=torch.float64)
    intrinsics[:, :3, :3] = K
    camera = PinholeCamera(intrinsics, poses(1), torch.tensor([480.0]), torch.tensor([640.0]))
    _, found, size = kornia.from_camera(camera)
    assert torch.equal(found[0], K)
    assert size.tolist() == [[640, 480]]


def test_gradients_flow_there_and_back() -> None:
    six, points3d = se3.rotvec_t(poses(2)), points_before(poses(2), N=3)

    def there(six: Tensor, intrinsics: Tensor, points3d: Tensor) -> Tensor:
        camera = kornia.to_camera(se3.from_rotvec_t(six), matrix_from_intrinsics(intrinsics), SIZE)
        return camera.project(points3d)

    def back(six: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        camera = kornia.to_camera(se3.from_rotvec_t(six), matrix_from_intrinsics(intrinsics), SIZE)
        return kornia.from_camera(camera)[:2]

    inputs = [x.clone().requires_grad_() for x in (six, intrinsics_from_matrix(K), points3d)]
    assert torch.autograd.gradcheck(there, inputs)
    assert torch.autograd.gradcheck(back, inputs[:2])
    theirs = torch.autograd.grad(there(*inputs).square().sum(), inputs)
    six, intrinsics, points3d = inputs
    ours = project(points3d, se3.from_rotvec_t(six), matrix_from_intrinsics(intrinsics)).square().sum()
    for found, expected in zip(theirs, torch.autograd.grad(ours, inputs), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [4, 5, 8, 12])
def test_distortion_needs_no_conversion(k: int) -> None:
    pose, distortion = poses(), torch.tensor(RADTAN[:k], dtype=torch.float64)
    points3d = points_before(pose)
    plain = kornia.to_camera(pose, K, SIZE).project(points3d[None])
    close(distort_points(plain, K[None], distortion[None])[0], project(points3d, pose, K, distortion), 1e-9)


def test_a_scaled_camera_is_half_a_pixel_off() -> None:
    """Half the resolution: what kornia's `scale` makes of the principal point, and what the docstring advises."""
    scaled = kornia.from_camera(kornia.to_camera(poses(), K, SIZE).scale(torch.tensor([0.5], dtype=torch.float64)))[1]
    advised = (K[:2, 2] + 0.5) * 0.5 - 0.5
    close(scaled[0, :2, 2] - advised, torch.full((2,), 0.25), 1e-12)
