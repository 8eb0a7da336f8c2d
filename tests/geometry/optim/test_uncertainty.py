"""Covariances with robust kernels: written out, under changes that must not matter, and against noisy solves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import hessian

from geometry import (
    Problem,
    barron,
    cauchy,
    covariance,
    geman_mcclure,
    huber,
    minimize,
    pnp,
    pnp_problem,
    pose_covariance,
    project,
    se3,
)
from geometry.robust import Kernel

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
KERNELS: list[Any] = [huber(1.0), cauchy(1.5), geman_mcclure(3.0), barron(-1.0, 2.0)]


def mean(kernel: Kernel | None) -> Problem:
    """The middle of points (N,2)."""
    return Problem(lambda x, y: x - y, dof=2, kernel=kernel)


def noisy(B: int, N: int, wrong: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(B, N, 2, generator=g, **DOUBLE)
    y[:, :wrong] *= 20
    return y


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_sandwich_of_a_mean_is_the_one_written_out(kernel: Kernel) -> None:
    y = noisy(1, 25, wrong=4)
    x = minimize(mean(kernel), torch.zeros(1, 2, **DOUBLE), y).x
    assert isinstance(x, Tensor)
    H = hessian(lambda x: 0.5 * kernel((x - y[0]).square().sum(-1)).sum())(x[0])
    r = (x - y[0]).requires_grad_()
    (psi,) = torch.autograd.grad(0.5 * kernel(r.square().sum(-1)).sum(), r)
    expected = psi.square().sum() / (50 - 2) * 25 * torch.linalg.inv(H @ H)
    torch.testing.assert_close(covariance(mean(kernel), x, y)[0], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_so_wide_that_it_is_none_changes_nothing(kernel: Any) -> None:
    y = noisy(2, 12)
    x = y.mean(1)
    wide = covariance(mean(replace(kernel, scale=1e7)), x, y)
    torch.testing.assert_close(wide, covariance(mean(None), x, y), rtol=1e-9, atol=1e-12)


def test_units_order_and_batch_do_not_matter() -> None:
    kernel, y = cauchy(1.5), noisy(3, 25, wrong=4)
    found = minimize(mean(kernel), torch.zeros(3, 2, **DOUBLE), y).x
    assert isinstance(found, Tensor)
    expected = covariance(mean(kernel), found, y)
    turned = y[:, torch.randperm(25, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(covariance(mean(kernel), found, turned), expected, rtol=1e-12, atol=0)
    large = covariance(mean(cauchy(1500.0)), 1000 * found, 1000 * y)
    torch.testing.assert_close(large / 1e6, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(covariance(mean(kernel), found[1:2], y[1:2]), expected[1:2], rtol=1e-12, atol=0)


def test_an_own_linearisation_gives_what_automatic_differentiation_gives(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(3, 12, 2.0, distorted=True, seed=4)
    kernel = geman_mcclure(4.0)
    pose = pnp(scene.points2d, scene.points3d, scene.K, distortion=scene.distortion, kernel=kernel).x
    ones, mask = torch.ones(1, 12, 2, **DOUBLE), torch.arange(12)[None] != 3
    data = scene.points2d, scene.points3d, scene.K[None], scene.distortion[None], ones, mask
    problem = pnp_problem(kernel=kernel)
    expected = covariance(replace(problem, linearize=None, retract=se3.retract, broadcasts=False), pose, *data)
    scale = expected.diagonal(dim1=1, dim2=2).rsqrt()
    found = scale[:, :, None] * covariance(problem, pose, *data) * scale[:, None]
    torch.testing.assert_close(found, scale[:, :, None] * expected * scale[:, None], rtol=0, atol=1e-8)


def test_what_is_no_minimum_has_no_covariance() -> None:
    """Where two groups of points pull apart, the middle between them is a saddle."""
    y = torch.tensor([[-9.0, 0], [-9, 1], [-9, -1], [9, 0], [9, 1], [9, -1]], **DOUBLE)[None]
    kernel = geman_mcclure(2.0)
    found = minimize(mean(kernel), torch.tensor([[8.0, 0.1]], **DOUBLE), y)
    assert found.converged.all()
    assert torch.isfinite(covariance(mean(kernel), found.x, y)).all()
    assert torch.isnan(covariance(mean(kernel), torch.zeros(1, 2, **DOUBLE), y)).all()


def test_what_the_data_leave_open_is_nan_with_a_kernel_too() -> None:
    line = Problem(lambda x, A, b: A @ x - b, dof=2, kernel=huber(1.0))
    A = torch.tensor([[[1.0, 1], [1, 2], [1, 3]], [[1, 1], [2, 2], [3, 3]]], **DOUBLE)
    found = covariance(line, torch.zeros(2, 2, **DOUBLE), A, torch.full((2, 3), 0.5, **DOUBLE))
    assert torch.isfinite(found[0]).all()
    assert torch.isnan(found[1]).all()


def test_no_sigma_beside_a_kernel() -> None:
    y = noisy(1, 12)
    with pytest.raises(ValueError, match=r"sigma must be None where there is a kernel.*got 1\.0"):
        covariance(mean(cauchy(1.0)), y.mean(1), y, sigma=1.0)
    with pytest.raises(ValueError, match="sigma must be"):
        covariance(mean(None), y.mean(1), y, sigma=-1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "wrong"), [(cauchy(1.0), 0), (geman_mcclure(3.0), 0), (geman_mcclure(3.0), 14)])
def test_deviations_are_those_of_noisy_poses(kernel: Kernel, wrong: int) -> None:
    """1500 poses of 40 points: z is as large as it says, within three standard errors of the mean of its square.

    2 cost / (M - P) (J^T J)^-1 makes z 1.19, 1.08 and 0.63 here.
    """
    B, N, g = 1500, 40, torch.Generator().manual_seed(1)
    points3d = 2 * torch.rand(B, N, 3, generator=g, **DOUBLE) - 1
    turn = torch.randn(B, 3, generator=g, **DOUBLE)
    truth = se3.from_rotvec_t(torch.cat([turn, torch.tensor([0.0, 0, 5], **DOUBLE).expand(B, 3)], -1))
    K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], **DOUBLE)
    points2d = project(points3d, truth, K) + torch.randn(B, N, 2, generator=g, **DOUBLE)
    points2d[:, :wrong] = torch.tensor([640.0, 480], **DOUBLE) * torch.rand(B, wrong, 2, generator=g, **DOUBLE)
    pose = pnp(points2d, points3d, K, kernel=kernel).x
    ones, mask = torch.ones(1, N, 2, **DOUBLE), torch.ones(1, N, dtype=torch.bool)
    data = points2d, points3d, K[None], K.new_zeros(1, 0), ones, mask
    deviation = covariance(pnp_problem(kernel=kernel), pose, *data).diagonal(dim1=1, dim2=2).sqrt()
    off = torch.cat([se3.log(pose[:, :3, :3] @ truth[:, :3, :3].mT), pose[:, :3, 3] - truth[:, :3, 3]], -1)
    z2 = (off / deviation).square().mean(-1)
    # what first order leaves out, and that s is estimated, add up to 4 % with 40 points
    assert abs(z2.mean() - 1.04) < 3 * z2.std() / B**0.5 + 0.04


def test_no_sigma_is_estimated_from_as_many_numbers_as_unknowns() -> None:
    """Residuals are then zero whatever the noise; zeros of a perfect fit to more numbers are an estimate."""
    y = noisy(3, 4)
    y[1] = y[1, :1]
    w = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]], **DOUBLE)
    weighted = Problem(lambda x, y, w: w[:, None] * (x - y), dof=2)
    x = minimize(weighted, torch.zeros(3, 2, **DOUBLE), y, w).x
    assert isinstance(x, Tensor)
    found = covariance(weighted, x, y, w)
    assert (found[0].diagonal() > 0).all()
    assert found[1].abs().max() < 1e-25
    assert torch.isnan(found[2]).all()
    assert torch.isfinite(covariance(weighted, x, y, w, sigma=1.0)).all()


def test_of_three_points_a_pose_has_a_covariance_where_sigma_is_given() -> None:
    g = torch.Generator().manual_seed(2)
    K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], **DOUBLE)
    points3d = 2 * torch.rand(10, 3, generator=g, **DOUBLE) - 1
    pose = se3.from_rotvec_t(torch.tensor([0.2, 0.1, 0, 0, 0, 6.0], **DOUBLE))[None]
    points2d = project(points3d, pose, K) + torch.randn(1, 10, 2, generator=g, **DOUBLE)
    found = pnp(points2d[:, :3], points3d[:3], K, init=pose)
    assert found.converged.all()
    few = pose_covariance(points2d[:, :3], points3d[:3], K, found.x, sigma=1.0)
    mask = torch.arange(10)[None] < 3
    torch.testing.assert_close(few, pose_covariance(points2d, points3d, K, found.x, mask=mask, sigma=1.0))
    assert (few[0].diagonal() > 0).all()
    assert torch.isnan(pose_covariance(points2d[:, :3], points3d[:3], K, found.x)).all()
    assert torch.isnan(pose_covariance(points2d, points3d, K, found.x, mask=mask)).all()
    with pytest.raises(ValueError, match="points2d must hold at least 3 points, got N=2"):
        pose_covariance(points2d[:, :2], points3d[:2], K, found.x, sigma=1.0)
