"""The covariances of poses and the loss of it: sums over residuals, finite differences, noisy solves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geometry import (
    Problem,
    cauchy,
    covariance,
    huber,
    linear_covariance_loss,
    pnp,
    pnp_problem,
    pose_covariance,
    project,
    se3,
)
from geometry.pose import linear_covariance
from tests.geometry.pose.solving import inverse_sigma
from tests.numbers import DOUBLE, close, generator


def whitened(empirical: Tensor, predicted: Tensor) -> Tensor:
    """The identity, where the two covariances agree."""
    L = torch.linalg.cholesky(predicted)
    return torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, empirical, upper=False).mT, upper=False)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["radtan", "fisheye"])
def test_gradient_of_the_linear_covariance_loss_against_differences(
    make_scene: Callable[..., Any], central_difference: Callable[..., Tensor], model: Any
) -> None:
    scene = make_scene(2, 8, 4.0, distorted=True, model=model, seed=9)
    inputs = [scene.points2d, scene.points3d, scene.K, scene.distortion, inverse_sigma(2, 8, 3.0)]
    sizes = (1.0, 1e-2, 1.0, 0.1, 1e-2)

    def run(inputs: list[Tensor]) -> Tensor:
        x, X, K, distortion, weights = inputs
        options: dict[str, Any] = {"distortion": distortion, "weights": weights, "model": model}
        # the points that weigh the covariance and their centre are constants: they are put in unmoved
        result = linear_covariance_loss(x, X, K, scene.world_to_camera_gt, **options)
        return result.loss.sum()

    def with_frozen_metric(X: Tensor) -> Tensor:
        mask = torch.ones(2, 8, dtype=torch.bool)
        data = (inputs[0], X, inputs[2].expand(2, 3, 3), inputs[3].expand(2, -1), inputs[4], mask)
        C = linear_covariance(pnp_problem(model), scene.world_to_camera_gt, *data)
        rotated = inputs[1] @ scene.world_to_camera_gt[:, :3, :3].mT
        M = torch.cat([-se3.hat(rotated), torch.eye(3, **DOUBLE).expand(2, 8, 3, 3)], -1)
        return (M @ C[:, None] @ M.mT).diagonal(dim1=-2, dim2=-1).sum(-1).mean(-1).sqrt().sum()

    close(with_frozen_metric(inputs[1]), run(inputs), 1e-10)
    for i, size in enumerate(sizes):
        direction = size * torch.randn(inputs[i].shape, generator=generator(i), **DOUBLE)
        if i == 2:
            direction[2] = 0
        leaves = [a.clone().requires_grad_(j == i) for j, a in enumerate(inputs)]
        run(leaves).backward()

        def moved(h: float, i: int = i, direction: Tensor = direction) -> Tensor:
            shifted = [a + h * direction if j == i else a for j, a in enumerate(inputs)]
            return with_frozen_metric(shifted[1]) if i == 1 else run(shifted)

        numeric = central_difference(moved, 1e-2)
        close((leaves[i].grad * direction).sum() / numeric, torch.ones((), **DOUBLE), 1e-6)  # type: ignore[operator]


def test_linear_covariance_is_the_sum_over_residuals(make_scene: Callable[..., Any]) -> None:
    """By a loop over residuals, with the Jacobian of reverse-mode differentiation of `project`."""
    scene = make_scene(1, 6, 3.0, seed=10)
    weights = inverse_sigma(1, 6, 2.0)
    mask = torch.ones(1, 6, dtype=torch.bool)
    data = (scene.points2d, scene.points3d, scene.K[None], scene.points2d.new_zeros(1, 0), weights, mask)
    truth = scene.world_to_camera_gt
    for kernel in (None, cauchy(1.0)):
        C = linear_covariance(pnp_problem(kernel=kernel), truth, *data)[0]

        def residual(step: Tensor) -> Tensor:
            return weights[0] * (project(scene.points3d[0], se3.retract(truth[0], step), scene.K) - scene.points2d[0])

        r = residual(torch.zeros(6, **DOUBLE))
        J = torch.autograd.functional.jacobian(residual, torch.zeros(6, **DOUBLE))
        slope = torch.ones(6, **DOUBLE) if kernel is None else 1 / (1 + r.square().sum(-1))
        H = sum((slope[i] * J[i].mT @ J[i] for i in range(6)), start=torch.zeros(6, 6, **DOUBLE))
        expected = torch.zeros(6, 6, **DOUBLE)
        for i in range(6):
            for c in range(2):
                a = torch.linalg.solve(H, slope[i] * J[i, c]) * r[i, c]
                expected += torch.outer(a, a)
        close(C / expected.abs().max(), expected / expected.abs().max(), 1e-10)


def test_linear_covariance_over_any_problem() -> None:
    """A line: the sandwich of the textbooks."""
    line = Problem(lambda x, A, b: A @ x - b, dof=2)
    A, b = torch.randn(2, 9, 2, generator=generator(1), **DOUBLE), torch.randn(2, 9, generator=generator(2), **DOUBLE)
    A[1, :, 1] = A[1, :, 0]
    b.requires_grad_()
    C = linear_covariance(line, torch.zeros(2, 2, **DOUBLE), A, b)
    P = torch.linalg.pinv(A[0])
    close(C[0], P @ torch.diag(b[0] ** 2) @ P.mT, 1e-12)
    assert torch.isnan(C[1]).all()
    C.nansum().backward()
    assert (b.grad[1] == 0).all()  # type: ignore[index]
    assert (b.grad[0] != 0).all()  # type: ignore[index]


def test_linear_covariance_with_a_kernel_against_differences(central_difference: Callable[..., Tensor]) -> None:
    line = Problem(lambda x, A, b: A @ x - b, dof=2, kernel=cauchy(1.0))
    data = [torch.randn(2, 9, 2, generator=generator(1), **DOUBLE), torch.randn(2, 9, generator=generator(2), **DOUBLE)]
    x, weigh = torch.zeros(2, 2, **DOUBLE), torch.randn(2, 2, 2, generator=generator(3), **DOUBLE)
    for i in range(2):
        direction = torch.randn(data[i].shape, generator=generator(4), **DOUBLE)
        leaf = data[i].clone().requires_grad_()
        (linear_covariance(line, x, *data[:i], leaf, *data[i + 1 :]) * weigh).sum().backward()

        def moved(h: float, i: int = i, direction: Tensor = direction) -> Tensor:
            return (linear_covariance(line, x, *data[:i], data[i] + h * direction, *data[i + 1 :]) * weigh).sum()

        numeric = central_difference(moved, 1e-3)
        close((leaf.grad * direction).sum() / numeric, torch.ones((), **DOUBLE), 1e-8)  # type: ignore[operator]


def test_linear_covariance_where_the_residual_is_not_a_number() -> None:
    log = Problem(lambda x, a, b: (x[0] - a).log() - b, dof=1)
    x, b = torch.ones(3, 1, **DOUBLE), torch.randn(3, 4, generator=generator(1), **DOUBLE)
    a = torch.rand(3, 4, generator=generator(2), **DOUBLE)
    a[1, 2] = 2.0  # the logarithm of a negative number
    leaves = [t.clone().requires_grad_() for t in (a, b)]
    C = linear_covariance(log, x, *leaves)
    assert torch.isnan(C).flatten().tolist() == [False, True, False]
    C.nansum().backward()
    for leaf in leaves:
        assert (leaf.grad[1] == 0).all()  # type: ignore[index]
        assert (leaf.grad[[0, 2]] != 0).all()  # type: ignore[index]
        assert torch.isfinite(leaf.grad).all()  # type: ignore[arg-type]


def test_linear_covariance_predicts_the_spread_of_noisy_solves(make_scene: Callable[..., Any]) -> None:
    """Mean covariance = sigma^2 (J^T J)^-1, and mean square loss = mean square displacement of the points by `pnp`."""
    B, sigma = 2000, 0.7
    scene = make_scene(1, 12, 0.0, seed=11)
    points2d = scene.points2d + sigma * torch.randn(B, 12, 2, generator=generator(1), **DOUBLE)
    truth, K = scene.world_to_camera_gt, scene.K
    data = points2d, scene.points3d, K[None], K.new_zeros(1, 0), torch.ones(1, 12, 2, **DOUBLE)
    mask = torch.ones(1, 12, dtype=torch.bool)
    found = linear_covariance(pnp_problem(), truth.expand(B, 4, 4), *data, mask).mean(0)
    predicted = pose_covariance(scene.points2d, scene.points3d, K, truth, sigma=sigma)[0]
    assert torch.linalg.eigvalsh(whitened(found, predicted)).sub(1).abs().max() < 0.1
    solved = pnp(points2d, scene.points3d, K, init=truth).x
    displacement = se3.transform(solved, scene.points3d) - se3.transform(truth, scene.points3d)
    mean_square = displacement.square().sum(-1).mean()
    loss = linear_covariance_loss(points2d, scene.points3d, K, truth).loss
    assert loss.square().mean().item() == pytest.approx(mean_square.item(), rel=0.05)


def test_linear_covariance_loss_sends_every_point_home(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(20, 12, 5.0, seed=12)
    leaf = scene.points2d.clone().requires_grad_()
    linear_covariance_loss(leaf, scene.points3d, scene.K, scene.world_to_camera_gt).loss.sum().backward()
    offset = scene.points2d - project(scene.points3d, scene.world_to_camera_gt, scene.K)
    assert (leaf.grad * offset > 0).all()
    # which the mean-square pose error of the layer does not
    solved = pnp(leaf, scene.points3d, scene.K).x
    apart = se3.transform(solved, scene.points3d) - se3.transform(scene.world_to_camera_gt, scene.points3d)
    (gradient,) = torch.autograd.grad(apart.square().sum(), leaf)
    assert 0.4 < (gradient * offset > 0).double().mean() < 0.8


def test_linear_covariance_loss_ignores_the_scale_of_weights_and_units(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(3, 9, 2.0, seed=13)
    weights = inverse_sigma(3, 9, 1.0)
    truth = scene.world_to_camera_gt
    one = linear_covariance_loss(scene.points2d, scene.points3d, scene.K, truth, weights=weights).loss
    close(linear_covariance_loss(scene.points2d, scene.points3d, scene.K, truth, weights=30 * weights).loss, one, 1e-12)
    millimetres = se3.make(truth[:, :3, :3], 1000 * truth[:, :3, 3])
    found = linear_covariance_loss(scene.points2d, 1000 * scene.points3d, scene.K, millimetres, weights=weights).loss
    close(found / 1000, one, 1e-12)
    # twice the residuals, twice the loss
    exact = project(scene.points3d, truth, scene.K)
    found = linear_covariance_loss(2 * scene.points2d - exact, scene.points3d, scene.K, truth, weights=weights).loss
    close(found, 2 * one, 1e-10)


def test_an_exact_fit_has_loss_and_gradient_zero() -> None:
    x = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0], [0, 0, 1]], **DOUBLE)[None]
    truth = torch.eye(4, **DOUBLE)[None].clone()
    truth[0, 2, 3] = 4
    K = torch.eye(3, **DOUBLE)
    leaf = project(x, truth, K).requires_grad_()
    result = linear_covariance_loss(leaf, x, K, truth)
    result.loss.sum().backward()
    assert result.converged.all()
    assert (result.loss == 0).all()
    assert (leaf.grad == 0).all()  # type: ignore[union-attr]


# ---- covariance of a pose ----


@pytest.mark.parametrize(("kernel", "sigma"), [(None, 1.0), (None, 0.3), (None, None), (huber(1.0), None)])
def test_pose_covariance_is_that_of_the_problem(make_scene: Callable[..., Any], kernel: Any, sigma: Any) -> None:
    scene = make_scene(3, 10, 2.0, distorted=True, seed=14)
    weights = inverse_sigma(3, 10, 2.0)
    mask = torch.rand(3, 10, generator=generator(1)) > 0.2
    X = scene.points3d + torch.tensor([3.0, -1.0, 2.0], **DOUBLE)
    options: dict[str, Any] = {"distortion": scene.distortion, "weights": weights, "mask": mask, "kernel": kernel}
    pose = pnp(scene.points2d, X, scene.K, **options).x
    found = pose_covariance(scene.points2d, X, scene.K, pose, **options, sigma=sigma)
    K, distortion = scene.K.expand(3, 3, 3), scene.distortion.expand(3, 5)
    problem = pnp_problem(kernel=kernel)
    expected = covariance(problem, pose, scene.points2d, X, K, distortion, weights, mask, sigma=sigma)
    close(found / expected.abs().amax((1, 2), keepdim=True), expected / expected.abs().amax((1, 2), keepdim=True), 1e-9)


def test_pose_covariance_far_from_the_origin(make_scene: Callable[..., Any]) -> None:
    """In float32, where (J^T J) about the origin has lost its digits; NaN where nothing is determined."""
    scene = make_scene(2, 10, 2.0, seed=15)
    offset = torch.tensor([200.0, -100.0, 50.0], **DOUBLE)
    truth = scene.world_to_camera_gt
    far = se3.make(truth[:, :3, :3], truth[:, :3, 3] - truth[:, :3, :3] @ offset)
    line = scene.points3d.clone()
    line[1] = torch.linspace(-1, 1, 10, **DOUBLE)[:, None] * torch.ones(3, **DOUBLE)
    arguments = scene.points2d, line + offset, scene.K, far
    wanted = pose_covariance(*arguments)
    found = pose_covariance(*(a.float() for a in arguments))
    close(found[0].double() / wanted[0].abs().max(), wanted[0] / wanted[0].abs().max(), 2e-3)
    assert torch.isnan(wanted[1]).all()
