"""The triangulation task against OpenCV and SciPy, finite differences and what must hold of any weights."""

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor

from geometry import Status, project, se3
from geometry.tasks.triangulation import triangulation
from tests.numbers import directions_of, errors_in_turn, one_each

POINTS = torch.tensor([[0.3, -0.2, 0.1], [-0.8, 0.5, -0.4], [0.6, 0.9, 0.7]], dtype=torch.float64)


def views(noise: float = 1.0, N: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """points2d (3,N,2), world_to_camera (N,4,4), K (N,3,3), all different."""
    generator = torch.Generator().manual_seed(0)
    turn = 0.4 * torch.randn(N, 3, generator=generator, dtype=torch.float64)
    pose = se3.make(se3.exp(turn), torch.tensor([0.0, 0, 6], dtype=torch.float64).expand(N, 3))
    K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], dtype=torch.float64).repeat(N, 1, 1)
    K[:, :2, :2] *= torch.linspace(1, 1.5, N)[:, None, None]
    pixels = project(POINTS[:, None, None].expand(3, N, 1, 3), pose, K).squeeze(2)
    return pixels + noise * torch.randn(3, N, 2, generator=generator, dtype=torch.float64), pose, K


def opencv_pixel(X: np.ndarray, pose: np.ndarray, K: np.ndarray) -> np.ndarray:
    return cv2.projectPoints(X, cv2.Rodrigues(pose[:3, :3])[0], pose[:3, 3], K, None)[0].ravel()


def test_exact_pixels_give_the_points_back() -> None:
    found = triangulation(*views(noise=0.0))
    assert found.converged.all()
    assert found.cost.max() < 1e-18
    torch.testing.assert_close(found.x, POINTS, rtol=0, atol=1e-12)


def test_of_two_exact_views_it_is_opencvs_point() -> None:
    pixels, pose, K = views(noise=0.0, N=2)
    P = (K @ pose[:, :3]).numpy()
    theirs = cv2.triangulatePoints(P[0], P[1], pixels[:, 0].T.numpy(), pixels[:, 1].T.numpy())
    found = triangulation(pixels, pose, K)
    torch.testing.assert_close(found.x, torch.from_numpy((theirs[:3] / theirs[3]).T), rtol=0, atol=1e-9)


def test_it_is_the_minimum_that_scipy_finds_from_opencvs_point() -> None:
    pixels, pose, K = views()
    found = triangulation(pixels, pose, K)
    P = (K @ pose[:, :3]).numpy()
    cameras = list(zip(pose.numpy(), K.numpy(), strict=True))
    for i, seen in enumerate(pixels.numpy()):

        def residual(X: np.ndarray, seen: np.ndarray = seen) -> np.ndarray:
            return (np.stack([opencv_pixel(X, T, k) for T, k in cameras]) - seen).ravel()

        start = cv2.triangulatePoints(P[0], P[1], seen[0], seen[1])[:, 0]
        theirs = least_squares(residual, start[:3] / start[3], xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert found.cost[i] <= theirs.cost * (1 + 1e-9)
        assert found.cost[i] == pytest.approx(theirs.cost, rel=1e-6)
        np.testing.assert_allclose(found.x[i].numpy(), theirs.x, atol=1e-6)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences() -> None:
    """In problem i of the batch, data[i] is moved."""
    generator = torch.Generator().manual_seed(1)
    pixels, pose, K = views()
    weights = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.5
    data = one_each([pixels, pose.expand(3, 5, 4, 4), K.expand(3, 5, 3, 3), weights])
    probe = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    sizes = (1.0, 0.001, 1.0, 0.1)  # matrices stay rotations, as rounded
    directions = directions_of(data, sizes, generator)
    directions[1][..., 3, :] = directions[2][..., 2, :] = 0  # the last rows of poses and K are no variables
    errors = errors_in_turn(lambda *data: (triangulation(*data).x * probe).sum(1), data, directions)
    assert errors.max() < 1e-6


def test_a_weight_of_zero_is_as_if_absent() -> None:
    pixels, pose, K = views()
    weights = torch.tensor([1.0, 2, 1, 0, 0], dtype=torch.float64)
    behind = pose.clone()
    behind[3] = se3.make(torch.eye(3).double(), torch.tensor([0.0, 0, -9], dtype=torch.float64))
    wanted = triangulation(pixels[:, :3], pose[:3], K[:3], weights[:3])
    for cameras in (pose, behind):
        found = triangulation(pixels, cameras, K, weights)
        assert found.converged.all()
        torch.testing.assert_close(found.x, wanted.x, rtol=0, atol=1e-10)


def test_a_batch_is_a_loop() -> None:
    pixels, pose, K = views()
    together = triangulation(pixels, pose, K)
    for i in range(3):
        torch.testing.assert_close(triangulation(pixels[i], pose, K).x[0], together.x[i], rtol=0, atol=1e-12)


def test_a_problem_without_a_solution_is_flagged_and_alone() -> None:
    pixels, pose, K = views()
    pose, K = pose.repeat(3, 1, 1, 1), K.repeat(3, 1, 1, 1)
    pose[1], K[1] = pose[0, 0], K[0, 0]  # all views from one place
    pixels = pixels.requires_grad_()
    found = triangulation(pixels, pose, K)
    assert found.status[1] != Status.CONVERGED
    assert found.converged[[0, 2]].all()
    found.x.sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad[1] == 0).all()
    assert (pixels.grad[[0, 2]] != 0).all()
    assert pixels.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points2d": torch.rand(3, 5, 3).double()}, r"points2d must have shape \(N,2\)"),
        (
            {"world_to_camera": torch.rand(4, 4, 4).double()},
            r"shape \(5,4,4\) or \(3,5,4,4\)",
        ),
        ({"K": torch.rand(3, 3).double()}, r"K must have shape \(5,3,3\)"),
        ({"weights": torch.ones(3, 5)}, "weights must have the dtype and device of points2d"),
        ({"points2d": torch.full((3, 5, 2), torch.nan).double()}, "points2d must be finite"),
        ({"points2d": torch.rand(3, 1, 2).double()}, "at least 2"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    pixels, pose, K = views()
    with pytest.raises(ValueError, match=message):
        triangulation(**{"points2d": pixels, "world_to_camera": pose, "K": K} | change)


def bearings_around(noise: float = 0.002, N: int = 5) -> tuple[Tensor, Tensor]:
    """Bearings (3,N,3) of any length and world_to_camera (N,4,4) of cameras that look anywhere."""
    generator = torch.Generator().manual_seed(2)
    R = se3.rotation_from_quat_wxyz(torch.randn(N, 4, generator=generator, dtype=torch.float64))
    pose = se3.make(R, 4 * torch.randn(N, 3, generator=generator, dtype=torch.float64))
    p = se3.transform(pose, POINTS[:, None, None].expand(3, N, 1, 3)).squeeze(2)
    p = p + noise * p.norm(dim=-1, keepdim=True) * torch.randn(3, N, 3, generator=generator, dtype=torch.float64)
    return p / p.norm(dim=-1, keepdim=True) * (
        0.5 + torch.rand(3, N, 1, generator=generator, dtype=torch.float64)
    ), pose


def test_bearings_on_all_sides_of_the_cameras() -> None:
    exact, pose = bearings_around(noise=0.0)
    assert (exact[..., 2] < 0).any()
    found = triangulation(exact, pose, None, model="ray")
    assert found.converged.all()
    torch.testing.assert_close(found.x, POINTS, rtol=0, atol=1e-10)


def test_it_is_the_minimum_that_scipy_finds_of_the_angles() -> None:
    bearings, pose = bearings_around()
    found = triangulation(bearings, pose, None, model="ray")
    for i, seen in enumerate(bearings.numpy()):

        def angles(X: np.ndarray, seen: np.ndarray = seen) -> np.ndarray:
            p = np.stack([R @ X + t for R, t in zip(pose[:, :3, :3].numpy(), pose[:, :3, 3].numpy(), strict=True)])
            return np.arctan2(np.linalg.norm(np.cross(seen, p), axis=1), (seen * p).sum(1))

        theirs = least_squares(angles, POINTS[i].numpy(), xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert found.cost[i] == pytest.approx(theirs.cost, rel=1e-6)
        np.testing.assert_allclose(found.x[i].numpy(), theirs.x, atol=1e-5)


def test_bearings_do_not_tell_where_a_camera_looks() -> None:
    bearings, pose = bearings_around()
    wanted = triangulation(bearings, pose, None, model="ray")
    turn = se3.rotation_from_quat_wxyz(torch.randn(5, 4, generator=torch.Generator().manual_seed(3)).double())
    turned = (turn @ (2 * bearings)[..., None]).squeeze(-1)
    found = triangulation(turned, se3.make(turn, torch.zeros(5, 3).double()) @ pose, None, model="ray")
    torch.testing.assert_close(found.x, wanted.x, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.cost, wanted.cost, rtol=1e-9, atol=0)


@pytest.mark.slow
def test_gradients_of_bearings_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    bearings, pose = bearings_around(noise=0.01)
    weights = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.5
    data = one_each([bearings, pose.expand(3, 5, 4, 4), weights])
    directions = directions_of(data, (0.01, 0.001, 0.1), generator)
    directions[1][..., 3, :] = 0
    probe = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    errors = errors_in_turn(
        lambda b, T, w: (triangulation(b, T, None, w, model="ray").x * probe).sum(1), data, directions
    )
    assert errors.max() < 1e-6


def test_bearings_have_no_K_and_pixels_have() -> None:
    bearings, pose = bearings_around()
    with pytest.raises(ValueError, match="K must be None for model='ray'"):
        triangulation(bearings, pose, torch.eye(3).double().expand(5, 3, 3), model="ray")
    with pytest.raises(ValueError, match="K must be given for model='radtan'"):
        triangulation(bearings[..., :2], pose, None)
    with pytest.raises(ValueError, match=r"points2d must have shape \(N,3\)"):
        triangulation(bearings[..., :2], pose, None, model="ray")
