import numpy as np
import open3d as o3d
import pytest
import torch

from geometry import project, se3
from geometry.interop import open3d
from tests.geometry.interop.scenes import DTYPES, SIZE, K, close, eps, poses

SMALL = torch.tensor([[9.0, 0, 3.3], [0, 10, 2.2], [0, 0, 1]], dtype=torch.float64)
WIDTH, HEIGHT = 7, 5


def pixels() -> torch.Tensor:
    """(u, v) of every pixel, row after row. (HEIGHT * WIDTH, 2)"""
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([u, v], -1).reshape(-1, 2).double()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cameras_there_and_back(dtype: torch.dtype) -> None:
    pose = poses(dtype=dtype)
    camera = open3d.to_camera(pose, K.to(dtype), SIZE)
    assert isinstance(camera, o3d.camera.PinholeCameraParameters)
    assert camera.intrinsic.get_focal_length() == (810, 790)
    assert camera.intrinsic.get_principal_point() == (330, 235)
    found, matrix, size = open3d.from_camera(camera)
    assert found.dtype == matrix.dtype == torch.float64
    close(found, pose, 0)
    close(matrix, K, 0)
    assert size == SIZE
    again = open3d.to_camera(found, matrix, size)
    np.testing.assert_array_equal(again.extrinsic, camera.extrinsic)


def test_a_depth_image_has_our_pixel_grid() -> None:
    pose = poses()
    camera = open3d.to_camera(pose, SMALL, (WIDTH, HEIGHT))
    depth = np.linspace(1, 3, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    cloud = o3d.geometry.PointCloud.create_from_depth_image(
        o3d.geometry.Image(depth), camera.intrinsic, camera.extrinsic, depth_scale=1.0
    )
    points3d, colors = open3d.from_points(cloud)
    assert colors is None
    close(project(points3d, pose, SMALL), pixels(), 1e-9)
    close(se3.transform(pose, points3d)[:, 2], torch.from_numpy(depth.ravel()), 1e-12)


def test_a_point_projects_into_the_pixel_it_rounds_to() -> None:
    """`project_to_depth_image` of the tensor API: 0.4 px beside a centre is still that pixel."""
    for u, v in [(0, 0), (6, 4), (2, 3)]:
        for shift in (-0.4, 0.4):
            xy = (torch.tensor([u + shift, v + shift]) - SMALL[:2, 2]) / SMALL.diagonal()[:2]
            point = np.array([[*xy.tolist(), 1.0]], np.float32)
            image = o3d.t.geometry.PointCloud(point).project_to_depth_image(
                WIDTH, HEIGHT, o3d.core.Tensor(SMALL.numpy()), depth_scale=1.0
            )
            assert np.argwhere(image.as_tensor().numpy()[..., 0]).tolist() == [[v, u]]


@pytest.mark.parametrize("skew", [0.0, 0.7])
def test_rays_pass_through_our_pixels(skew: float) -> None:
    """A wall seen by the ray caster: what the ray of pixel (u, v) meets projects to (u, v), and t is its depth."""
    pose, camera_matrix = poses(), SMALL.clone()
    camera_matrix[0, 1] = skew
    corners = torch.tensor([[-9, -9, 3], [9, -9, 3.5], [9, 9, 5], [-9, 9, 4.5]], dtype=torch.float64)  # in one plane
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor(se3.transform(se3.inverse(pose), corners).numpy().astype(np.float32)),
        o3d.core.Tensor(np.array([[0, 1, 2], [0, 2, 3]], np.uint32)),
    )
    rays = scene.create_rays_pinhole(**open3d.to_rays(pose, camera_matrix, (WIDTH, HEIGHT)))
    assert tuple(rays.shape) == (HEIGHT, WIDTH, 6)
    t = torch.from_numpy(scene.cast_rays(rays)["t_hit"].numpy()).double().reshape(-1, 1)
    rays = torch.from_numpy(rays.numpy()).double().reshape(-1, 6)
    points3d = rays[:, :3] + t * rays[:, 3:]
    close(project(points3d, pose, camera_matrix), pixels(), 2e-5)  # rays are float32
    close(se3.transform(pose, points3d)[:, 2:], t, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_point_clouds_there_and_back(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    points3d = torch.randn(256, 3, generator=g, dtype=dtype, requires_grad=True)
    colors = torch.stack([torch.arange(256), torch.arange(255, -1, -1), torch.full((256,), 7)], -1).to(torch.uint8)
    cloud = open3d.to_points(points3d, colors)
    assert np.asarray(cloud.colors)[255].tolist() == [1, 0, 7 / 255]
    np.asarray(cloud.points)[0] += 1.0  # its own memory
    found, found_colors = open3d.from_points(cloud)
    assert torch.equal(found[1:], points3d.detach()[1:].double())
    close(found[0], points3d.detach()[0].double() + 1, eps(torch.float64))
    assert torch.equal(found_colors, colors)
    legacy = o3d.t.geometry.PointCloud.from_legacy(cloud).to_legacy()
    assert torch.equal(open3d.from_points(legacy)[1], colors)

    shares = open3d.to_points(points3d, colors.to(dtype) / 255)
    np.testing.assert_allclose(np.asarray(shares.colors), np.asarray(cloud.colors), atol=eps(dtype))
    assert torch.equal(open3d.from_points(shares)[1], colors)
    assert open3d.from_points(open3d.to_points(points3d))[1] is None


def test_no_points_and_colours_beyond_one() -> None:
    found, colors = open3d.from_points(open3d.to_points(torch.zeros(0, 3)))
    assert found.shape == (0, 3)
    assert colors is None
    cloud = open3d.to_points(torch.zeros(2, 3), torch.zeros(2, 3))
    np.asarray(cloud.colors)[:] = [[-0.1, 0.5, 1.1], [0.001, 0.003, 0.999]]
    assert open3d.from_points(cloud)[1].tolist() == [[0, 128, 255], [0, 1, 255]]


def test_wrong_arguments() -> None:
    for to in (open3d.to_camera, open3d.to_rays):
        with pytest.raises(ValueError, match=r"of one camera, got \(2, 4, 4\) and \(3, 3\)"):
            to(poses(2), K, SIZE)
    with pytest.raises(ValueError, match=r"points3d must have shape \(N,3\), got \(3,\)"):
        open3d.to_points(torch.zeros(3))
    with pytest.raises(ValueError, match=r"colors must have shape \(4, 3\), got \(3, 3\)"):
        open3d.to_points(torch.zeros(4, 3), torch.zeros(3, 3))
    for colors in (torch.full((1, 3), 200.0), torch.full((1, 3), -0.1), torch.zeros(1, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"colors must be uint8, or floating-point numbers in 0 … 1"):
            open3d.to_points(torch.zeros(1, 3), colors)


def test_rays_lead_back_to_their_camera() -> None:
    pose, matrix, size = open3d.from_rays(**open3d.to_rays(poses(), K, SIZE))
    assert torch.equal(pose, poses())
    assert torch.equal(matrix, K)
    assert size == SIZE
    with pytest.raises(ValueError, match=r"world_to_camera must be \(4,4\) and K \(3,3\) of one camera"):
        open3d.from_rays(np.eye(3)[None], np.eye(4)[None], *SIZE)
