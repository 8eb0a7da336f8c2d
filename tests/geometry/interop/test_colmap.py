from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from geometry import project, unproject
from geometry.camera import Model, in_front, project_camera_frame
from geometry.interop import colmap
from tests.geometry.interop.scenes import DTYPES, FISHEYE, RADTAN, SIZE, K, close, eps, points_before, poses

SQUARE = torch.tensor([[800.0, 0, 330], [0, 800, 235], [0, 0, 1]], dtype=torch.float64)
# what stands in K and distortion, and which camera model has the least room for it
CASES: list[tuple[str, torch.Tensor, Model, list[float]]] = [
    ("SIMPLE_PINHOLE", SQUARE, "radtan", []),
    ("PINHOLE", K, "radtan", []),
    ("SIMPLE_RADIAL", SQUARE, "radtan", [-0.2, 0.0]),
    ("RADIAL", SQUARE, "radtan", RADTAN[:2]),
    ("OPENCV", K, "radtan", RADTAN[:4]),
    ("OPENCV", K, "radtan", RADTAN[:2]),
    ("OPENCV", SQUARE, "radtan", [-0.2, 0, 0, 0]),
    ("FULL_OPENCV", K, "radtan", RADTAN[:5]),
    ("FULL_OPENCV", K, "radtan", RADTAN[:8]),
    ("FULL_OPENCV", K, "radtan", [*RADTAN[:8], 0, 0, 0, 0]),
    ("SIMPLE_FISHEYE", SQUARE, "fisheye", []),
    ("FISHEYE", K, "fisheye", []),
    ("SIMPLE_RADIAL_FISHEYE", SQUARE, "fisheye", FISHEYE[:1]),
    ("RADIAL_FISHEYE", SQUARE, "fisheye", FISHEYE[:2]),
    ("OPENCV_FISHEYE", K, "fisheye", FISHEYE),
    ("OPENCV_FISHEYE", K, "fisheye", FISHEYE[:1]),
    ("FOV", K, "fov", [0.9]),
    ("SIMPLE_DIVISION", SQUARE, "division", [-0.2]),
    ("DIVISION", K, "division", [0.05]),
    ("EUCM", K, "eucm", [0.6, 1.1]),
]


@pytest.mark.parametrize(("name", "K", "model", "coefficients"), CASES)
def test_pycolmap_projects_the_same(name: str, K: torch.Tensor, model: Model, coefficients: list[float]) -> None:
    pycolmap: Any = pytest.importorskip("pycolmap")
    pose, distortion = poses(), torch.tensor(coefficients, dtype=torch.float64)
    camera = pycolmap.Camera(**colmap.to_camera(K, distortion, SIZE, model))
    assert camera.model.name == name
    assert (camera.width, camera.height) == SIZE
    assert camera.verify_params()
    points3d = points_before(pose)
    qvec, tvec = colmap.to_pose(pose)
    by_quaternion = pycolmap.Rigid3d(pycolmap.Rotation3d(np.roll(qvec, -1, -1)), tvec)
    by_matrix = pycolmap.Rigid3d(pose[:3].numpy())
    for rigid in (by_quaternion, by_matrix):
        pixels = np.stack([camera.img_from_cam(rigid * point) for point in points3d.numpy()])
        close(colmap.from_pixels(torch.from_numpy(pixels)), project(points3d, pose, K, distortion, model=model), 1e-9)

    back = colmap.from_camera(camera.model, camera.width, camera.height, camera.params)
    assert torch.equal(back[0], K)
    length = len(back[1])
    assert torch.equal(back[1], pad(distortion, (0, 12))[:length])
    assert back[2:] == (SIZE, model)
    again = colmap.to_camera(*back)
    if length == len(coefficients):
        assert again == colmap.to_camera(K, distortion, SIZE, model)
    close(colmap.to_pixels(project(points3d, pose, *back[:2], model=model)), torch.from_numpy(pixels), 1e-9)


@pytest.mark.parametrize(("name", "K", "model", "coefficients"), CASES)
def test_pycolmap_has_the_same_rays(name: str, K: torch.Tensor, model: Model, coefficients: list[float]) -> None:
    """Of pixels, and of points behind the camera where that sees them."""
    pycolmap: Any = pytest.importorskip("pycolmap")
    distortion = torch.tensor(coefficients, dtype=torch.float64)
    camera = pycolmap.Camera(**colmap.to_camera(K, distortion, SIZE, model))
    points = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = project_camera_frame(points, K, distortion, model=model)
    rays = unproject(pixels, K, distortion, model=model)
    good = rays.valid & in_front(points, distortion, model=model) & (pixels.abs() < 3000).all(-1)
    assert good.sum() > 20
    ahead = good & (points[:, 2] > 0)
    theirs = camera.cam_from_img(colmap.to_pixels(pixels[ahead]).numpy())
    found = rays.directions[ahead]
    close(found[:, :2] / found[:, 2:], torch.from_numpy(np.asarray(theirs)), 1e-6)  # COLMAP iterates, and stops there
    for point, pixel in zip(points[good].numpy(), pixels[good], strict=True):
        other = camera.img_from_cam(point)
        if other is not None:
            close(colmap.from_pixels(torch.from_numpy(np.asarray(other))), pixel, 1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_poses_there_and_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pose = poses(*shape, dtype=dtype)
    qvec, tvec = colmap.to_pose(pose)
    assert (qvec.shape, tvec.shape) == ((*shape, 4), (*shape, 3))
    assert (qvec[..., 0] >= 0).all()
    close(colmap.from_pose(qvec, tvec), pose, 10 * eps(dtype))
    close(colmap.from_pose(-3 * qvec, tvec), pose, 10 * eps(dtype))


def test_poses_of_pycolmap_are_read() -> None:
    pycolmap: Any = pytest.importorskip("pycolmap")
    xyzw = np.array([0.1, -0.3, 0.3, 0.9])
    rigid = pycolmap.Rigid3d(pycolmap.Rotation3d(xyzw), np.array([0.1, 0.2, 3.0]))
    found = colmap.from_pose(np.roll(rigid.rotation.quat, 1), rigid.translation)
    np.testing.assert_allclose(found[:3].numpy(), rigid.matrix(), atol=1e-14)


def test_the_line_of_a_text_file() -> None:
    K, distortion, size, model = colmap.from_camera("SIMPLE_RADIAL", 100, 200, [90, 50, 100, 0.1])
    assert K.tolist() == [[90, 0, 49.5], [0, 90, 99.5], [0, 0, 1]]
    assert distortion.tolist() == [0.1, 0]
    assert (size, model) == ((100, 200), "radtan")
    line = {"model": "SIMPLE_RADIAL", "width": 100, "height": 200, "params": [90, 50, 100, 0.1]}
    assert colmap.to_camera(K, distortion, size, model) == line
    R = colmap.from_pose([0.5, 0.5, 0.5, 0.5], [1, 2, 3])
    assert R.tolist() == [[0, 0, 1, 1], [1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]]


def test_pixels_shift_by_half_and_carry_gradients() -> None:
    points2d = torch.tensor([[0.0, 0.0], [2.5, 7.0]], dtype=torch.float64, requires_grad=True)
    assert colmap.to_pixels(points2d).tolist() == [[0.5, 0.5], [3.0, 7.5]]
    assert torch.equal(colmap.from_pixels(colmap.to_pixels(points2d)), points2d)
    assert torch.autograd.gradcheck(colmap.to_pixels, points2d)
    assert torch.autograd.gradcheck(colmap.from_pixels, points2d)


def test_what_colmap_cannot_say() -> None:
    with pytest.raises(ValueError, match="distortion: COLMAP has no thin-prism coefficients"):
        colmap.to_camera(K, torch.tensor(RADTAN), SIZE)
    with pytest.raises(ValueError, match="distortion: COLMAP has no camera model for 'double_sphere'"):
        colmap.to_camera(K, torch.tensor([0.1, 0.5]), SIZE, "double_sphere")
    assert colmap.to_camera(K, None, SIZE, "double_sphere")["model"] == "PINHOLE"
    with pytest.raises(ValueError, match="K must have zeros below the diagonal"):
        colmap.to_camera(2 * K, None, SIZE)
    with pytest.raises(ValueError, match=r"of one camera, got \(2, 3, 3\) and \(0,\)"):
        colmap.to_camera(K.expand(2, 3, 3), None, SIZE)
    with pytest.raises(ValueError, match="distortion must have one of"):
        colmap.to_camera(K, torch.zeros(3), SIZE)


def test_what_cannot_be_read() -> None:
    with pytest.raises(ValueError, match=r"model must be one of SIMPLE_PINHOLE, PINHOLE, .*, got 'THIN_PRISM_FISHEYE'"):
        colmap.from_camera("THIN_PRISM_FISHEYE", *SIZE, [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="params: 8 parameters of OPENCV wanted, got 4"):
        colmap.from_camera("OPENCV", *SIZE, [1, 2, 3, 4])
    for qvec in (np.zeros(4), np.array([np.nan, 0, 0, 1])):
        with pytest.raises(ValueError, match="qvec must hold quaternions of finite length above zero"):
            colmap.from_pose(np.stack([np.ones(4), qvec]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"qvec must have shape \(…,4\)"):
        colmap.from_pose(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"tvec must have shape \(2, 3\) beside this qvec, got \(3,\)"):
        colmap.from_pose(np.ones((2, 4)), np.zeros(3))
