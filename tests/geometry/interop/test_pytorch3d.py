"""The wheel's compiled part needs CUDA's libraries; its cameras and its rasteriser in Python do not, and load alone."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from pytorch3d.transforms import Transform3d, Translate, axis_angle_to_matrix, matrix_to_axis_angle, se3_exp_map
from torch import Tensor

from geometry import project, se3
from geometry.camera import matrix_from_intrinsics
from geometry.interop import pytorch3d
from tests.geometry.interop.scenes import DTYPES, SIZE, K, close, eps, points_before, poses


@pytest.fixture(scope="module")
def real() -> Iterator[SimpleNamespace]:
    """PyTorch3D's own PerspectiveCameras, and the rasteriser in Python that its compiled one is tested against."""
    import pytorch3d as wheel

    before = set(sys.modules)
    try:
        try:
            import pytorch3d.renderer
        except ImportError:
            for name in set(sys.modules) - before:
                del sys.modules[name]
            for name in ("renderer", "renderer.mesh"):
                package = ModuleType(f"pytorch3d.{name}")
                package.__path__ = [str(Path(wheel.__file__).parent.joinpath(*name.split(".")))]
                sys.modules[package.__name__] = package
            sys.modules["pytorch3d._C"] = ModuleType("pytorch3d._C")
        from pytorch3d.renderer.cameras import PerspectiveCameras
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes_python
        from pytorch3d.structures import Meshes

        yield SimpleNamespace(PerspectiveCameras=PerspectiveCameras, rasterize=rasterize_meshes_python, Meshes=Meshes)
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("pytorch3d"):
                del sys.modules[name]


def written_out(points3d: Tensor, R, T, focal_length, principal_point, image_size, in_ndc) -> Tensor:
    """Screen coordinates from PyTorch3D's notes on cameras: rows times R, x left and y up, the corner at (0, 0)."""
    view = points3d @ R + T[:, None]
    left, up = (focal_length[:, None] * view[..., :2] / view[..., 2:]).unbind(-1)
    height, width = image_size.to(points3d).unbind(-1)
    px, py = principal_point[:, None].unbind(-1)
    if in_ndc:  # left edge of the image: x = width / shorter side; the principal point is left and up, too
        half = torch.minimum(height, width)[:, None] / 2
        return torch.stack([width[:, None] / 2 - half * (left + px), height[:, None] / 2 - half * (up + py)], -1)
    return torch.stack([px - left, py - up], -1)


@pytest.mark.parametrize("in_ndc", [False, True])
@pytest.mark.parametrize("size", [SIZE, (480, 640)])
def test_the_written_out_projection_agrees(size: tuple[int, int], in_ndc: bool) -> None:
    pose = poses(3)
    points3d = points_before(pose)
    keywords = pytorch3d.to_camera(pose, K, size, in_ndc)
    assert keywords["image_size"].tolist() == [[size[1], size[0]]] * 3
    close(pytorch3d.from_pixels(written_out(points3d, **keywords)), project(points3d, pose, K), 1e-9)


@pytest.mark.parametrize("in_ndc", [False, True])
@pytest.mark.parametrize("size", [SIZE, (480, 640)])
def test_perspective_cameras_agree(real: SimpleNamespace, size: tuple[int, int], in_ndc: bool) -> None:
    pose = poses(3)
    points3d, pose32 = points_before(pose), pose.float()
    camera = real.PerspectiveCameras(**pytorch3d.to_camera(pose32, K.float(), size, in_ndc))
    screen = camera.transform_points_screen(points3d.float())[..., :2]  # float32 throughout, and nothing else
    close(pytorch3d.from_pixels(screen), project(points3d, pose, K), 2e-3)
    back = pytorch3d.from_camera(
        camera.R, camera.T, camera.focal_length, camera.principal_point, camera.image_size, camera.in_ndc()
    )
    close(back[0], pose32, 1e-6)
    close(back[1], K.expand(3, 3, 3), 1e-4)
    assert back[2].tolist() == [list(size)] * 3


@pytest.mark.parametrize(("width", "height"), [(6, 4), (4, 6)])
def test_a_pixel_is_where_the_rasteriser_paints(real: SimpleNamespace, width: int, height: int) -> None:
    """A triangle 0.4 px wide covers one pixel's centre: the one that our `project` rounds to."""
    small = matrix_from_intrinsics(torch.tensor([5.0, 5.5, 2.2, 2.1]))
    pose = se3.from_rotvec_t(torch.tensor([0.2, -0.1, 0.3, 0.1, 0.2, 4.0]))
    camera = real.PerspectiveCameras(**pytorch3d.to_camera(pose, small, (width, height)))
    for u, v in [(0, 0), (width - 1, 0), (1, height - 1), (2, 3)]:
        corners = torch.tensor([[u - 0.2, v - 0.2], [u + 0.2, v - 0.2], [u, v + 0.2]])
        rays = torch.cat([(corners - small[:2, 2]) / small.diagonal()[:2], torch.ones(3, 1)], -1)
        points3d = se3.transform(se3.inverse(pose), 3 * rays)
        close(project(points3d, pose, small), corners, 1e-5)
        mesh = real.Meshes(camera.transform_points_ndc(points3d)[None], torch.tensor([[[0, 1, 2]]]))
        painted = real.rasterize(mesh, image_size=(height, width))[0][0, :, :, 0] >= 0
        assert painted.nonzero().tolist() == [[v, u]]


@pytest.mark.parametrize("in_ndc", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cameras_there_and_back(dtype: torch.dtype, in_ndc: bool) -> None:
    pose = poses(4, dtype=dtype)
    Ks = K.to(dtype) * torch.linspace(1, 2, 4, dtype=dtype)[:, None, None]
    Ks[:, 2, 2] = 1
    sizes = torch.tensor([[640, 480], [480, 640], [333, 222], [100, 100]])
    keywords = pytorch3d.to_camera(pose, Ks, sizes, in_ndc)
    assert all(value.dtype == dtype for key, value in keywords.items() if key not in ("image_size", "in_ndc"))
    back = pytorch3d.from_camera(**keywords)
    close(back[0], pose, 0)
    close(back[1], Ks, 1000 * eps(dtype))
    assert back[0].dtype == back[1].dtype == dtype
    assert torch.equal(back[2], sizes)
    again = pytorch3d.to_camera(*back, in_ndc)
    close(again["principal_point"], keywords["principal_point"], 1000 * eps(dtype))

    single = pytorch3d.to_camera(pose[0], Ks[0], (640, 480), in_ndc)
    for key in ("R", "T", "focal_length", "principal_point", "image_size"):
        assert torch.equal(single[key], keywords[key][:1]), key
    one = pytorch3d.from_camera(**(single | {"focal_length": single["focal_length"][:, :1]}))
    assert one[1][0, 1, 1] == one[1][0, 0, 0]


@pytest.mark.parametrize("in_ndc", [False, True])
def test_gradients_there_and_back(in_ndc: bool) -> None:
    six, points3d = se3.rotvec_t(poses(2)), points_before(poses(2), N=3)
    intrinsics = torch.tensor([810.0, 790, 330, 235], dtype=torch.float64)

    def there(six: Tensor, intrinsics: Tensor) -> Tensor:
        keywords = pytorch3d.to_camera(se3.from_rotvec_t(six), matrix_from_intrinsics(intrinsics), SIZE, in_ndc)
        return written_out(points3d, **keywords)

    inputs = (six.requires_grad_(), intrinsics.requires_grad_())
    assert torch.autograd.gradcheck(there, inputs)
    for found, expected in zip(
        torch.autograd.grad(there(*inputs).square().sum(), inputs),
        torch.autograd.grad(
            (project(points3d, se3.from_rotvec_t(six), matrix_from_intrinsics(intrinsics)) + 0.5).square().sum(), inputs
        ),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)

    keywords = pytorch3d.to_camera(poses(2), K, SIZE, in_ndc)
    fixed = {key: keywords.pop(key) for key in ("image_size", "in_ndc", "R")}

    def back(**tensors: Tensor) -> tuple[Tensor, ...]:
        return pytorch3d.from_camera(**tensors, **fixed)[:2]

    names, values = zip(*keywords.items(), strict=True)
    leaves = tuple(value.clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(lambda *v: back(**dict(zip(names, v, strict=True))), leaves)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_transforms(shape: tuple[int, ...]) -> None:
    pose, points3d = poses(*shape), torch.randn(*shape, 7, 3, dtype=torch.float64)
    transform = pytorch3d.to_transform(pose)
    assert isinstance(transform, Transform3d)
    close(transform.transform_points(points3d), se3.transform(pose, points3d), 1e-12)
    close(pytorch3d.from_transform(transform), pose.reshape(-1, 4, 4), 0)
    # composed in the order of application: first the pose, then a shift of the camera
    moved = transform.compose(Translate(1.0, 2.0, 3.0, dtype=torch.float64))
    shift = se3.from_rotvec_t(torch.tensor([0, 0, 0, 1.0, 2, 3], dtype=torch.float64))
    close(pytorch3d.from_transform(moved), (shift @ pose).reshape(-1, 4, 4), 1e-12)


def test_gradients_of_transforms() -> None:
    six = se3.rotvec_t(poses(2)).requires_grad_()
    points3d = torch.randn(2, 3, 3, dtype=torch.float64)
    there = lambda six: pytorch3d.to_transform(se3.from_rotvec_t(six)).transform_points(points3d)
    assert torch.autograd.gradcheck(there, six)
    back = lambda six: pytorch3d.from_transform(pytorch3d.to_transform(se3.from_rotvec_t(six)))
    assert torch.autograd.gradcheck(back, six)


def test_rotation_vectors_are_the_same_and_se3_exp_map_is_not() -> None:
    six = 0.5 * torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pose = se3.from_rotvec_t(six)
    close(axis_angle_to_matrix(six[:, :3]), pose[:, :3, :3], 1e-12)
    close(matrix_to_axis_angle(pose[:, :3, :3]), six[:, :3], 1e-12)
    theirs = se3_exp_map(six[:, [3, 4, 5, 0, 1, 2]]).mT
    close(theirs[:, :3, :3], pose[:, :3, :3], 1e-6)
    assert (theirs[:, :3, 3] - pose[:, :3, 3]).abs().max() > 0.01  # its translation is V v


def test_wrong_arguments() -> None:
    camera = pytorch3d.to_camera(poses(2), K, SIZE)
    for name, value, message in [
        ("T", torch.zeros(3, 3), r"T must have shape \(2, 3\) beside this R, got \(3, 3\)"),
        ("focal_length", torch.ones(2, 3), r"focal_length must have shape \(2, 2\) beside this R, got \(2, 3\)"),
        ("focal_length", torch.ones(3, 1), r"focal_length must have shape \(2, 2\) beside this R, got \(3, 1\)"),
        ("image_size", torch.ones(1, 2), r"image_size must have shape \(2, 2\) beside this R, got \(1, 2\)"),
        ("principal_point", torch.ones(2, 1), r"principal_point must have shape \(2, 2\) beside .*got \(2, 1\)"),
        ("R", torch.zeros(2, 3, 3).double(), "R must hold rotations"),
    ]:
        with pytest.raises(ValueError, match=message):
            pytorch3d.from_camera(**(camera | {name: value}))
    with pytest.raises(ValueError, match="transform must hold rotations"):
        pytorch3d.from_transform(Transform3d(dtype=torch.float64).scale(2.0))
