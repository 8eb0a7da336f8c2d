"""What the solvers do with lenses that no kernel knows: poses, bundles, calibrations, their gradients, wide views."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geometry import bundle, calibrate, pnp, pnp_ransac, project, se3, unproject
from geometry.camera import Model, in_front, intrinsics_from_matrix, project_camera_frame
from geometry.lenses import LENSES
from geometry.pose import back_end
from tests.numbers import DOUBLE, close

WIDE: dict[Model, tuple[float, ...]] = {
    "eucm": (0.61, 1.1),
    "double_sphere": (-0.2, 0.58),
    "division": (-0.3,),
    "fov": (1.1,),
}
K = torch.tensor([[200.0, 0, 318], [0, 202, 236], [0, 0, 1]], **DOUBLE)


def rotations(B: int, g: torch.Generator) -> Tensor:
    return se3.rotation_from_quat_wxyz(torch.randn(B, 4, generator=g, **DOUBLE))


def around(model: Model, B: int, N: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """points2d and points3d of N points around cameras of poses (B,4,4), up to 115 degrees off their axes."""
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(B, 8 * N, 3, generator=g, **DOUBLE)
    p = (2 + torch.rand(B, 8 * N, 1, generator=g, **DOUBLE)) * p / p.norm(dim=-1, keepdim=True)
    chosen = (p[..., 2] > -0.42 * p.norm(dim=-1)).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :N]
    p = p.gather(1, chosen[..., None].expand(-1, -1, 3))
    pose = se3.make(rotations(B, g), torch.randn(B, 3, generator=g, **DOUBLE))
    pixels = project_camera_frame(p, K, torch.tensor(WIDE[model], **DOUBLE), model=model)
    return pixels + noise * torch.randn(B, N, 2, generator=g, **DOUBLE), se3.transform(se3.inverse(pose), p), pose


@pytest.mark.slow
@pytest.mark.parametrize("model", WIDE)
def test_poses_of_wide_views(model: Model) -> None:
    points2d, points3d, truth = around(model, 40, 12, 0.3)
    distortion = torch.tensor(WIDE[model], **DOUBLE)
    behind = se3.transform(truth, points3d)[..., 2] < 0
    assert behind.double().mean() > 0.2
    assert back_end(points2d, model=model) == "tensors"
    found = pnp(points2d, points3d, K, distortion=distortion, model=model)
    beside = pnp(points2d, points3d, K, distortion=distortion, model=model, init=truth)
    assert found.converged.all()
    assert (found.cost <= beside.cost * (1 + 1e-9)).all()
    assert (found.x - truth).abs().max() < 0.05
    exact = pnp(project(points3d, truth, K, distortion, model=model), points3d, K, distortion=distortion, model=model)
    close(exact.x, truth, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("model", WIDE)
def test_outliers_in_wide_views(model: Model) -> None:
    points2d, points3d, truth = around(model, 4, 40, 0.3)
    points2d[:, :12] += 60 * torch.randn(4, 12, 2, generator=torch.Generator().manual_seed(1), **DOUBLE)
    generator = torch.Generator().manual_seed(2)
    distortion = torch.tensor(WIDE[model], **DOUBLE)
    found = pnp_ransac(points2d, points3d, K, distortion=distortion, model=model, threshold=1.5, generator=generator)
    assert found.converged.all()
    assert found.inliers[:, 12:].double().mean() > 0.9
    assert (found.x - truth).abs().max() < 0.05


@pytest.mark.parametrize("name", ["points2d", "points3d", "K", "distortion", "weights"])
@pytest.mark.parametrize("model", WIDE)
def test_gradients_of_poses(
    model: Model, name: str, central_difference: Callable[..., Tensor], pose_tangent: Callable[..., Tensor]
) -> None:
    points2d, points3d, _ = around(model, 2, 8, 1.0)
    g = torch.Generator().manual_seed(5)
    inputs = {"points2d": points2d, "points3d": points3d, "K": K, "distortion": torch.tensor(WIDE[model], **DOUBLE)}
    inputs["weights"] = 0.5 + torch.rand(2, 8, 2, generator=g, **DOUBLE)
    base = pnp(**inputs, model=model).x.detach()
    direction = torch.randn(inputs[name].shape, generator=g, **DOUBLE)
    if name == "K":
        direction[2] = 0
    size = {"points2d": 1.0, "points3d": 0.01, "K": 1.0, "distortion": 0.01, "weights": 0.1}[name]

    def moved(step: Any) -> Tensor:
        found = pnp(**{**inputs, name: inputs[name] + size * step * direction}, model=model, init=base)
        assert found.converged.all()
        return pose_tangent(found.x, base)

    leaf = torch.zeros((), requires_grad=True, **DOUBLE)
    tangent = moved(leaf)
    derivative = torch.stack([torch.autograd.grad(t, leaf, retain_graph=True)[0] for t in tangent.flatten()])
    wanted = central_difference(lambda step: moved(step).detach(), 1e-2).flatten()
    assert (derivative - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("model", WIDE)
def test_a_bundle_learns_the_lens(model: Model, central_difference: Callable[..., Tensor]) -> None:
    """From a start off in all that is free: a cost below that of the truth, and gradients of the coefficients."""
    g, V, N = torch.Generator().manual_seed(6), 5, 30
    X = torch.randn(N, 3, generator=g, **DOUBLE)
    X = 3 * X / X.norm(dim=-1, keepdim=True)
    T = se3.make(rotations(V, g), 0.7 * torch.randn(V, 3, generator=g, **DOUBLE))
    lens = torch.tensor(WIDE[model], **DOUBLE)
    view, point = in_front(se3.transform(T, X[None]), 1.02 * lens, model=model).nonzero(as_tuple=True)
    pixels = project(X[None], T, K, lens, model=model)[view, point]
    good = (pixels - K[:2, 2]).norm(dim=-1) < 450
    view, point, exact = view[good], point[good], pixels[good]
    pixels = exact + 0.3 * torch.randn(exact.shape, generator=g, **DOUBLE)
    start = se3.retract(T, 0.01 * torch.randn(V, 6, generator=g, **DOUBLE)), X + 0.02 * torch.randn(N, 3, generator=g)
    free = ("poses", "points", "f", *LENSES[model].names)

    def solve(pixels: Tensor, *at: Tensor) -> Any:
        found = bundle(pixels, view, point, *at, free=free, model=model)
        assert found.converged
        return found

    found = solve(pixels, *start, K, 1.03 * lens)
    at = [part.detach() for part in found.x[:4]]
    counts = ~found.left_out
    assert (se3.transform(found.x.world_to_camera, found.x.points3d)[view, point, 2] < 0)[counts].sum() > 10
    assert found.cost < 0.5 * (pixels - exact).square().sum()
    close(found.x.distortion[0], lens, 0.03)
    if model != "double_sphere":  # what follows tests nothing that another lens does otherwise
        return
    close(solve(exact, *at).x.distortion[0], lens, 1e-7)
    direction = torch.randn(pixels.shape, generator=g, **DOUBLE)
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(solve(leaf, *at).x.distortion.sum(), leaf)
    wanted = central_difference(lambda step: solve(pixels + step * direction, *at).x.distortion.sum().detach(), 1e-2)
    assert ((gradient * direction).sum() - wanted).abs() < 1e-6 * wanted.abs()


@pytest.mark.slow
@pytest.mark.parametrize("model", WIDE)
def test_a_wide_camera_is_calibrated(model: Model) -> None:
    """Boards up to where half of the picture is behind the camera; nothing is known but the image's size."""
    g, distortion = torch.Generator().manual_seed(7), torch.tensor(WIDE[model], **DOUBLE)
    grid = torch.cartesian_prod(torch.arange(7.0), torch.arange(5.0)).to(**DOUBLE) - torch.tensor([3.0, 2.0])
    board = torch.nn.functional.pad(0.03 * grid, (0, 1))
    views: list[Tensor] = []
    while len(views) < 12:
        pixel = torch.rand(1, 2, generator=g, **DOUBLE) * torch.tensor([640.0, 480.0])
        z = unproject(pixel, K, distortion, model=model).directions[0]
        x = torch.linalg.cross(torch.tensor([0.0, 1, 0], **DOUBLE), z)
        R = torch.stack([x / x.norm(), torch.linalg.cross(z, x / x.norm()), z], 1)
        tilt = se3.exp(0.5 * torch.randn(3, generator=g, **DOUBLE))
        p = board @ (R @ tilt).mT + z * (0.15 + 0.3 * torch.rand(1, generator=g, **DOUBLE))
        pixels = project_camera_frame(p, K, distortion, model=model)
        inside = ((pixels > 0) & (pixels < torch.tensor([639.0, 479.0]))).all()
        if inside and in_front(p, distortion, model=model).all():
            views.append(pixels)
    exact = torch.stack(views)
    points2d = exact + 0.1 * torch.randn(exact.shape, generator=g, **DOUBLE)
    found = calibrate(points2d, board, (640, 480), distortion=len(distortion), model=model)
    assert found.converged
    assert found.cost < 0.5 * (points2d - exact).square().sum()
    error = torch.cat([intrinsics_from_matrix(found.x[0][0]), found.x[1][0]])
    error = error - torch.cat([intrinsics_from_matrix(K), distortion])
    assert (error.abs() < 4 * found.covariance().diagonal().sqrt()).all()
