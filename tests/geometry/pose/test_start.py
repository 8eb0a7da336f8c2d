from typing import Any

import cv2
import pytest
import torch
from torch import Tensor

from geometry import cauchy, huber, minimize, pnp, pnp_problem, project, se3, unproject
from geometry.camera import in_front
from geometry.pose import tensors
from geometry.pose.data import Options, PnPData
from geometry.pose.form import Sights, descend, quadratic_form
from geometry.se3 import cube_rotations
from tests.numbers import DOUBLE


def full_data(scene: Any) -> tuple[Tensor, ...]:
    """The data of `pnp_problem`: nothing shared, nothing left out."""
    B, N, _ = scene.points2d.shape
    distortion = torch.zeros(1, 0, **DOUBLE) if scene.distortion is None else scene.distortion
    shared = scene.K.expand(B, 3, 3), distortion.expand(B, distortion.shape[-1])
    return scene.points2d, scene.points3d, *shared, torch.ones(B, N, 2, **DOUBLE), torch.ones(B, N, dtype=torch.bool)


def tilted_scene(make_scene: Any, B: int, N: int, noise: float, distorted: bool = False) -> Any:
    """A plane seen at 60 to 85 degrees from 2.4 units: strong perspective."""
    scene = make_scene(B, N, 0.0, planar=True, distorted=distorted, seed=N)
    g = torch.Generator().manual_seed(N + 1)
    tilt = torch.deg2rad(60 + 25 * torch.rand(B, generator=g, **DOUBLE))
    spin = 6.3 * torch.rand(2, B, generator=g, **DOUBLE)
    zero = torch.zeros(B, **DOUBLE)
    about_z = [se3.exp(torch.stack([zero, zero, angle], -1)) for angle in spin]
    R = about_z[0] @ se3.exp(torch.stack([tilt, zero, zero], -1)) @ about_z[1]
    pose = se3.make(R, torch.tensor([0.1, -0.2, 2.4], **DOUBLE).expand(B, 3))
    pixels = project(scene.points3d, pose, scene.K, scene.distortion)
    noisy = pixels + noise * torch.randn(pixels.shape, generator=g, **DOUBLE)
    return scene._replace(points2d=noisy, world_to_camera_gt=pose)


def lowest_of_many_starts(scene: Any, rotations: int = 100) -> Tensor:
    """Lowest cost (B,) from random rotations, each with the translation that is linear least squares for it."""
    B, N, _ = scene.points2d.shape
    g = torch.Generator().manual_seed(99)
    R = se3.rotation_from_quat_wxyz(torch.randn(rotations, 4, generator=g, **DOUBLE)).expand(B, -1, 3, 3)
    rays = unproject(scene.points2d, scene.K, scene.distortion).directions
    n = (rays[..., :2] / rays[..., 2:])[:, None]
    rotated = scene.points3d[:, None] @ R.mT
    # x = (Y_x + t_x) / (Y_z + t_z) is linear in t; weights of the depth are left out
    A = torch.cat([torch.eye(2, **DOUBLE).expand(B, 1, N, 2, 2), -n[..., None]], -1).flatten(2, 3)
    b = (n * rotated[..., 2:] - rotated[..., :2]).flatten(2)
    t = torch.linalg.lstsq(A.expand(B, rotations, -1, -1), b[..., None]).solution.squeeze(-1)
    nearest = (rotated[..., 2] + t[..., 2:]).amin(-1)
    t = t + torch.tensor([0.0, 0, 1], **DOUBLE) * (0.1 - nearest).clamp(min=0)[..., None]
    starts = torch.cat([se3.make(R, t), scene.world_to_camera_gt[:, None]], 1)
    data = full_data(scene)
    many = [d.repeat_interleave(rotations + 1, 0) for d in data]
    found = minimize(pnp_problem(), starts.flatten(0, 1), *many, max_steps=60)
    cost = torch.where(torch.isfinite(found.cost), found.cost, torch.inf)
    # a lens polynomial has a second branch far out, where no ray passes: no minimum of the camera
    p = se3.transform(found.x, many[1])  # type: ignore[arg-type]
    real = (p[..., :2] / p[..., 2:]).norm(dim=-1).amax(-1) < 1.7
    return torch.where(real, cost, torch.inf).view(B, -1).amin(1)


PATHS = {"compiled": None, "tensors": lambda s: s}
"""Kernels that lead to the compiled start and to that of `geometry.pose.start`: a kernel of the user is the
latter's.
"""


@pytest.mark.slow
@pytest.mark.parametrize(("N", "path"), [*((N, "compiled") for N in (4, 6, 10, 50)), (6, "tensors")])
@pytest.mark.parametrize("kind", ["general", "planar", "far plane", "tilted plane"])
def test_no_search_finds_a_lower_minimum(make_scene: Any, kind: str, N: int, path: str) -> None:
    for noise in (0.0, 1.0, 5.0):
        B = 6 if N < 50 else 2
        if kind == "tilted plane":
            scene = tilted_scene(make_scene, B, N, noise)
        else:
            scene = make_scene(B, N, noise, planar="plan" in kind, depth=25.0 if kind == "far plane" else 6.0, seed=N)
        solution = pnp(scene.points2d, scene.points3d, scene.K, kernel=PATHS[path])
        assert solution.converged.all()
        assert (solution.cost <= lowest_of_many_starts(scene, 30) * (1 + 1e-6) + 1e-12).all()
        assert in_front(se3.transform(solution.x, scene.points3d)).all()  # type: ignore[arg-type]
        if noise == 0:
            error = se3.rotation_angle(solution.x[:, :3, :3] @ scene.world_to_camera_gt[:, :3, :3].mT)  # type: ignore[index]
            assert error.max() < 1e-7


@pytest.mark.slow
def test_no_search_finds_a_lower_minimum_through_a_lens(make_scene: Any) -> None:
    scene = tilted_scene(make_scene, 5, 6, 3.0, distorted=True)
    solution = pnp(scene.points2d, scene.points3d, scene.K, distortion=scene.distortion)
    assert solution.converged.all()
    assert (solution.cost <= lowest_of_many_starts(scene, 10) * (1 + 1e-6)).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["general", "planar", "far plane"])
def test_no_search_finds_a_lower_minimum_in_many_problems(make_scene: Any, kind: str) -> None:
    for N in (4, 10):
        scene = make_scene(60, N, 2.0, planar="plan" in kind, depth=25.0 if kind == "far plane" else 6.0, seed=N)
        solution = pnp(scene.points2d, scene.points3d, scene.K)
        assert (solution.cost <= lowest_of_many_starts(scene) * (1 + 1e-6)).all()


def test_five_hundred_points(make_scene: Any) -> None:
    scene = make_scene(2, 500, 5.0, seed=0)
    solution = pnp(scene.points2d, scene.points3d, scene.K)
    local = pnp(scene.points2d, scene.points3d, scene.K, init=scene.world_to_camera_gt)
    assert solution.converged.all()
    torch.testing.assert_close(solution.x, local.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("name", ["huber", "cauchy"])
def test_outliers_under_a_robust_kernel(make_scene: Any, name: str, share: float) -> None:
    """Up to 30 % of the points lie anywhere in the image; the pose is as good as if it had been known before."""
    kernel = {"huber": huber(3.0), "cauchy": cauchy(3.0)}[name]
    scene = make_scene(10, 50, 1.0, seed=3)
    outliers = int(share * 50)
    anywhere = torch.rand(10, outliers, 2, generator=torch.Generator().manual_seed(1), **DOUBLE)
    scene.points2d[:, :outliers] = anywhere * torch.tensor([640.0, 480.0], **DOUBLE)
    solution = pnp(scene.points2d, scene.points3d, scene.K, kernel=kernel)
    local = pnp(scene.points2d, scene.points3d, scene.K, kernel=kernel, init=scene.world_to_camera_gt)
    assert solution.converged.all()
    assert (solution.cost <= local.cost * (1 + 1e-6)).all()
    error = se3.rotation_angle(solution.x[:, :3, :3] @ scene.world_to_camera_gt[:, :3, :3].mT)  # type: ignore[index]
    assert error.max() < 0.02
    plain = pnp(scene.points2d, scene.points3d, scene.K)
    ruined = se3.rotation_angle(plain.x[:, :3, :3] @ scene.world_to_camera_gt[:, :3, :3].mT)  # type: ignore[index]
    assert ruined.median() > 3 * error.median()


@pytest.mark.parametrize("start", ["init", "global"])
@pytest.mark.parametrize(("offset", "planar"), [(100.0, False), (1e4, True), (1e6, False)])
def test_the_object_far_from_the_world_s_origin(make_scene: Any, start: str, planar: bool, offset: float) -> None:
    scene = make_scene(20, 6, 1.0, planar=planar, seed=4)
    away = offset * torch.tensor([1.0, -0.5, 0.7], **DOUBLE)
    there = se3.make(torch.eye(3, **DOUBLE), -away)
    plain = pnp(scene.points2d, scene.points3d, scene.K, init=scene.world_to_camera_gt if start == "init" else None)
    init = scene.world_to_camera_gt @ there if start == "init" else None
    moved = pnp(scene.points2d, scene.points3d + away, scene.K, init=init)
    assert moved.converged.all()
    torch.testing.assert_close(moved.cost, plain.cost, rtol=1e-6, atol=0)
    torch.testing.assert_close(moved.x[:, :3, :3], plain.x[:, :3, :3], rtol=0, atol=1e-12 * offset)  # type: ignore[index]


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_metres_on_the_sensor(make_scene: Any, dtype: torch.dtype, planar: bool) -> None:
    """f = 0.0005 and an object 0.3 across: nothing may depend on the size of a pixel or of the object."""
    scene = make_scene(10, 8, 1.0, planar=planar, seed=5)
    plain = pnp(scene.points2d, scene.points3d, scene.K)
    pixel = 0.0005 / 800
    K = scene.K * torch.tensor([pixel, pixel, 1.0], **DOUBLE)[:, None]
    small = pnp((pixel * scene.points2d).to(dtype), (0.15 * scene.points3d).to(dtype), K.to(dtype))
    assert small.converged.all()
    assert small.x.dtype == dtype  # type: ignore[union-attr]
    back = small.x.double()  # type: ignore[union-attr]
    atol = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(back[:, :3, :3], plain.x[:, :3, :3], rtol=0, atol=atol)  # type: ignore[index]
    torch.testing.assert_close(back[:, :3, 3] / 0.15, plain.x[:, :3, 3], rtol=0, atol=10 * atol)  # type: ignore[index]


def test_float32_inside(make_scene: Any) -> None:
    scene = make_scene(20, 10, 1.0, seed=6)
    exact = pnp(scene.points2d, scene.points3d, scene.K)
    single = (a.float() for a in (scene.points2d, scene.points3d, scene.K))
    found = pnp(*single, solve_dtype=torch.float32)
    assert found.converged.all()
    torch.testing.assert_close(found.x, exact.x.float(), rtol=0, atol=2e-4)  # type: ignore[union-attr]


def test_no_start_is_worse_than_opencv_s_sqpnp(make_scene: Any) -> None:
    scene = make_scene(20, 6, 3.0, depth=3.0, seed=7)
    start, _, _ = tensors.search(PnPData(*full_data(scene)), Options())
    for i in range(20):
        arrays = scene.points3d[i].numpy(), scene.points2d[i].numpy(), scene.K.numpy(), None
        _, rvec, tvec = cv2.solvePnP(*arrays, flags=cv2.SOLVEPNP_SQPNP)
        theirs = se3.from_rotvec_t(torch.from_numpy(cv2.vconcat([rvec, tvec])[:, 0]))
        cost = [
            (project(scene.points3d[i], pose, scene.K) - scene.points2d[i]).square().sum()
            for pose in (start[i], theirs)
        ]
        assert cost[0] <= cost[1] * (1 + 1e-9)


def test_the_quadratic_form_is_the_object_space_error(make_scene: Any) -> None:
    scene = make_scene(3, 7, 2.0, seed=8)
    rays = unproject(scene.points2d, scene.K).directions
    w2 = torch.rand(3, 7, generator=torch.Generator().manual_seed(0), **DOUBLE)
    omega, T = quadratic_form(Sights(rays, scene.points3d, w2))
    R = cube_rotations(torch.float64, torch.device("cpu"))[[1, 5, 20]]
    r = R.mT.flatten(-2)
    t = (T @ r[..., None]).squeeze(-1)
    value = ((omega @ r[..., None]).squeeze(-1) * r).sum(-1)

    def error(t: Tensor) -> Tensor:
        p = scene.points3d @ R.mT + t[:, None]
        off = p - rays * (rays * p).sum(-1, keepdim=True)
        return (w2 * off.square().sum(-1)).sum(-1)

    torch.testing.assert_close(value, error(t), rtol=1e-9, atol=0)
    for axis in torch.eye(3, **DOUBLE):  # t is its minimiser
        assert (error(t + 1e-3 * axis) > value).all()
        assert (error(t - 1e-3 * axis) > value).all()


def test_the_descent_ends_at_minima(make_scene: Any) -> None:
    scene = make_scene(4, 10, 2.0, seed=9)
    w2 = torch.full((4, 10), 0.1, **DOUBLE)
    omega, _ = quadratic_form(Sights(unproject(scene.points2d, scene.K).directions, scene.points3d, w2))
    R, value = descend(omega, cube_rotations(torch.float64, torch.device("cpu")).expand(4, 24, 3, 3), 100)
    step = torch.zeros(4, 24, 3, **DOUBLE, requires_grad=True)
    r = (se3.exp(step) @ R).mT.flatten(-2)
    again = (r * (r @ omega)).sum(-1)
    torch.testing.assert_close(again, value, rtol=1e-9, atol=1e-15)
    (gradient,) = torch.autograd.grad(again.sum(), step)
    assert gradient.norm(dim=-1).max() < 1e-6 * omega.abs().max()


def test_the_rotations_are_spread_evenly() -> None:
    """24 rotations, 90 degrees apart at the least, and none further than 63 degrees from all of them."""
    R = cube_rotations(torch.float64, torch.device("cpu"))
    assert R.shape == (24, 3, 3)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(24, **DOUBLE))
    g = torch.Generator().manual_seed(0)
    anywhere = se3.rotation_from_quat_wxyz(torch.randn(5000, 4, generator=g, **DOUBLE))
    nearest = se3.rotation_angle(anywhere[:, None] @ R.mT).amin(1)
    assert torch.rad2deg(nearest.max()) < 63
    among = se3.rotation_angle(R[:, None] @ R.mT) + 10 * torch.eye(24, **DOUBLE)
    assert torch.rad2deg(among.min()) > 89.9


def test_hopeless_problems_still_give_a_finite_pose() -> None:
    """All pixels the same, all points the same, pixels without order."""
    K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], **DOUBLE)
    g = torch.Generator().manual_seed(0)
    anywhere2d = 500 * torch.rand(3, 6, 2, generator=g, **DOUBLE)
    anywhere3d = torch.randn(3, 6, 3, generator=g, **DOUBLE)
    points2d = torch.stack([torch.full((6, 2), 100.0, **DOUBLE), anywhere2d[1], anywhere2d[2]])
    points3d = torch.stack([anywhere3d[0], torch.ones(6, 3, **DOUBLE), anywhere3d[2]])
    solution = pnp(points2d.requires_grad_(), points3d, K)
    assert torch.isfinite(solution.x).all()  # type: ignore[arg-type]
    assert not solution.converged[:2].any()
    solution.x.sum().backward()  # type: ignore[union-attr]
    assert torch.isfinite(points2d.grad).all()  # type: ignore[arg-type]
    assert (points2d.grad[:2] == 0).all()  # type: ignore[index]
