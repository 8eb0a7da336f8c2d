"""The rolling shutter against the truth, SciPy, finite differences, and what must hold of origins, units and clocks."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from geometry import Status, pnp, project, se3
from geometry.camera import Model, project_camera_frame
from geometry.tasks.rolling_shutter import rolling_shutter, rolling_shutter_points, row_times
from tests.numbers import DOUBLE, close, directions_of, errors_in_turn, one_each

K = torch.tensor([[800.0, 0, 640], [0, 790, 360], [0, 0, 1]], **DOUBLE)
HEIGHT, READOUT = 720, 0.03


class Scene(NamedTuple):
    points2d: Tensor
    points3d: Tensor
    times: Tensor
    world_to_camera: Tensor
    velocity: Tensor


def scene(B: int = 3, N: int = 20, noise: float = 0.5, seed: int = 0, model: Model = "radtan", lens: Any = ()) -> Scene:
    """Points that moving cameras see all over their images: about 1 rad/s, and 2 units/s at distances of 3 to 9."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, **DOUBLE)
    pose = se3.make(se3.rotation_from_quat_wxyz(normal(B, 4)), 0.5 * normal(B, 3))
    velocity = normal(B, 6) * torch.tensor([1.0, 1, 1, 2, 2, 2])
    spread = torch.rand(B, N, 3, generator=g, **DOUBLE) * torch.tensor([1.4, 0.8, 6]) - torch.tensor([0.7, 0.4, -3])
    p = torch.cat([spread[..., :2] * spread[..., 2:], spread[..., 2:]], -1)
    points2d = project_camera_frame(p, K, torch.tensor(lens, **DOUBLE), model=model)
    times = row_times(points2d, READOUT, HEIGHT)
    still = p - times[..., None] * velocity[:, None, 3:]
    still = (se3.exp(-times[..., None] * velocity[:, None, :3]) @ still[..., None]).squeeze(-1)
    points3d = se3.transform(se3.inverse(pose), still)
    return Scene(points2d + noise * normal(B, N, 2), points3d, times, pose, velocity)


def test_exact_pixels_give_pose_and_velocity_back() -> None:
    made = scene(noise=0.0)
    found = rolling_shutter(made.points2d, made.points3d, K, made.times)
    assert found.converged.all()
    close(found.x[0], made.world_to_camera, 1e-9)
    close(found.x[1], made.velocity, 1e-7)
    p = rolling_shutter_points(made.world_to_camera, made.velocity, made.points3d, made.times)
    close(project_camera_frame(p, K), made.points2d, 1e-9)


def test_a_known_velocity_gives_the_readout_time() -> None:
    made = scene(noise=0.0)
    rows = row_times(made.points2d, 1.0, HEIGHT)
    found = rolling_shutter(made.points2d, made.points3d, K, rows, velocity=made.velocity)
    assert found.converged.all()
    close(found.x[0], made.world_to_camera, 1e-9)
    close(found.x[1], torch.full((3, 1), READOUT, **DOUBLE), 1e-9)


@pytest.mark.parametrize(
    ("model", "lens"), [("radtan", (-0.2, 0.05)), ("fisheye", (0.02,)), ("double_sphere", (0.1, 0.4))]
)
def test_through_a_lens(model: Model, lens: tuple[float, ...]) -> None:
    made, distortion = scene(noise=0.0, model=model, lens=lens), torch.tensor(lens, **DOUBLE)
    found = rolling_shutter(made.points2d, made.points3d, K, made.times, distortion=distortion, model=model)
    assert found.converged.all()
    close(found.x[1], made.velocity, 1e-7)


def test_it_is_the_minimum_that_scipy_finds_from_the_truth() -> None:
    made = scene()
    found = rolling_shutter(made.points2d, made.points3d, K, made.times)
    for i in range(3):
        pixels, X, times, pose, velocity = (part[i].numpy() for part in made)

        def residual(x: np.ndarray, pixels: Any = pixels, X: Any = X, times: Any = times) -> np.ndarray:
            p = X @ Rotation.from_rotvec(x[:3]).as_matrix().T + x[3:6]
            p = Rotation.from_rotvec(times[:, None] * x[6:9]).apply(p) + times[:, None] * x[9:]
            return (p @ K.numpy().T / p[:, 2:] - np.pad(pixels, ((0, 0), (0, 1)), constant_values=1)).ravel()

        start = np.concatenate([Rotation.from_matrix(pose[:3, :3]).as_rotvec(), pose[:3, 3], velocity])
        theirs = least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale="jac")
        assert found.cost[i] == pytest.approx(theirs.cost, rel=1e-8)
        np.testing.assert_allclose(found.x[1][i].numpy(), theirs.x[6:], atol=1e-4)


def test_who_knows_the_rows_is_nearer_to_the_pose() -> None:
    """Half a tenth of a second of motion unseen costs ten times the error; the six more unknowns about a fifth."""
    made = scene(B=60, N=30)
    found = rolling_shutter(made.points2d, made.points3d, K, made.times)
    ignored = pnp(made.points2d, made.points3d, K)
    g = torch.Generator().manual_seed(9)
    at_once = project(made.points3d, made.world_to_camera, K) + 0.5 * torch.randn(60, 30, 2, generator=g, **DOUBLE)
    wanted = pnp(at_once, made.points3d, K)

    def error(pose: Tensor) -> Tensor:
        between = pose[:, :3, :3] @ made.world_to_camera[:, :3, :3].mT
        return se3.rotation_angle(between).square().mean().sqrt()

    assert found.converged.all()
    assert error(ignored.x) > 8 * error(found.x[0])
    assert error(found.x[0]) < 1.4 * error(wanted.x)  # of 60 draws; that of many is in docs/tasks.md


def test_origin_unit_and_clock_do_not_matter() -> None:
    made = scene()
    wanted = rolling_shutter(made.points2d, made.points3d, K, made.times)
    move = se3.from_rotvec_t(torch.tensor([0.3, -1.0, 0.5, 3e4, -2e4, 100], **DOUBLE))
    moved = rolling_shutter(made.points2d, se3.transform(move, made.points3d), K, made.times)
    close(moved.x[0] @ move, wanted.x[0], 1e-6)
    close(moved.x[1], wanted.x[1], 1e-6)
    scaled = rolling_shutter(made.points2d, 1000 * made.points3d, K, 1000 * made.times)  # mm and ms
    close(scaled.x[1] * torch.tensor([1000.0, 1000, 1000, 1, 1, 1]), wanted.x[1], 1e-7)
    close(scaled.cost, wanted.cost, 0, 1e-9)
    later = rolling_shutter(made.points2d, made.points3d, K, made.times - 0.004)
    p = rolling_shutter_points(*later.x, made.points3d, made.times - 0.004)
    close(p, rolling_shutter_points(*wanted.x, made.points3d, made.times), 1e-4)  # a motion turns as it goes


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_gradients_agree_with_finite_differences(known: bool) -> None:
    made, g = scene(N=10), torch.Generator().manual_seed(1)
    weights, lens = torch.rand(3, 10, generator=g, **DOUBLE) + 0.5, torch.zeros(3, 2, **DOUBLE)
    data = [made.points2d, made.points3d, K.expand(3, 3, 3), made.times, weights, lens]
    sizes = [1.0, 0.01, 1.0, 0.0003, 0.1, 0.01]
    if known:
        data, sizes = [*data, made.velocity], [*sizes, 0.1]
    data = one_each(data)
    directions = directions_of(data, sizes, g)
    directions[2][..., 2, :] = 0
    probes = torch.randn(4, 4, generator=g, **DOUBLE), torch.randn(1 if known else 6, generator=g, **DOUBLE)

    def value(*data: Tensor) -> Tensor:
        lens, *velocity = data[5:]
        more = {"velocity": velocity[0]} if velocity else {}
        pose, sought = rolling_shutter(*data[:5], distortion=lens, **more).x
        return (pose * probes[0]).sum((1, 2)) + (sought * probes[1]).sum(1)

    assert errors_in_turn(value, data, directions).max() < 1e-6


def test_a_weight_of_zero_is_as_if_absent_and_a_batch_is_a_loop() -> None:
    made = scene(N=14)
    weights = (torch.arange(14) < 11).to(torch.float64)
    broken = made.points2d.clone()
    broken[:, 11:] += 300
    found = rolling_shutter(broken, made.points3d, K, made.times, weights)
    for i in range(3):
        alone = rolling_shutter(made.points2d[i, :11], made.points3d[i, :11], K, made.times[i, :11])
        close(found.x[0][i], alone.x[0][0], 1e-9)
        close(found.x[1][i], alone.x[1][0], 1e-7)


def test_what_the_times_do_not_tell_is_singular_and_alone() -> None:
    made = scene()
    times = made.times.clone()
    times[1] = 0.002  # all at once: the motion has no part in the image
    pixels = made.points2d.clone().requires_grad_()
    found = rolling_shutter(pixels, made.points3d, K, times)
    assert found.status.tolist() == [Status.CONVERGED, Status.SINGULAR, Status.CONVERGED]
    (gradient,) = torch.autograd.grad(found.x[1].sum(), pixels)
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2]] != 0).any()
    still = rolling_shutter(made.points2d, made.points3d, K, made.times, velocity=torch.zeros(6, **DOUBLE))
    assert (still.status == Status.SINGULAR).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points2d": torch.rand(3, 5, 2, **DOUBLE)}, "points2d must hold at least 6 observations, got N=5"),
        ({"times": torch.rand(3, 4, **DOUBLE)}, r"times must have shape \(20\) or \(3,20\), got \(3, 4\)"),
        ({"times": torch.full((3, 20), torch.nan, **DOUBLE)}, "times must be finite"),
        ({"velocity": torch.zeros(3, **DOUBLE)}, r"velocity must have shape \(6\)"),
        ({"distortion": torch.zeros(3, **DOUBLE)}, "distortion must have one of"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    made = scene()
    with pytest.raises(ValueError, match=message):
        rolling_shutter(**{"points2d": made.points2d, "points3d": made.points3d, "K": K, "times": made.times} | change)
