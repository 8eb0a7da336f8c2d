"""Huber's threshold that follows the data, and the derivative regularisation, against other computations of both."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geometry import (
    Status,
    adaptive_huber_scale,
    derivative_regularisation_loss,
    huber,
    monte_carlo_pose_loss,
    pnp,
    project,
    se3,
)
from tests.geometry.pose.solving import inverse_sigma
from tests.numbers import DOUBLE, close, directions_of, errors_in_turn, generator, one_each

SCALES = torch.tensor([0.5, 1.0, 3.0], **DOUBLE)


def with_outliers(scene: Any) -> Tensor:
    """The keypoints, a quarter of them 60 px off."""
    count = scene.points2d.shape[1] // 4
    offset = torch.zeros_like(scene.points2d)
    offset[:, :count, 0] = 60
    return scene.points2d + offset


# ---- threshold ----


@pytest.mark.slow
def test_the_threshold_is_that_of_numpy() -> None:
    points2d = 50 * torch.randn(3, 9, 2, generator=generator(1), **DOUBLE)
    weights = inverse_sigma(3, 9, 2.0)
    mask = torch.rand(3, 9, generator=generator(2)) < 0.6
    spoilt = torch.where(mask[..., None], points2d, torch.nan)
    found = adaptive_huber_scale(spoilt, torch.where(mask[..., None], weights, torch.inf), mask, relative=0.5)
    for b in range(3):
        x, w = points2d[b, mask[b]].numpy(), weights[b, mask[b]].numpy()
        assert found[b].item() == pytest.approx(0.5 * w.mean() * math.sqrt(np.var(x, axis=0, ddof=1).sum()))
    close(adaptive_huber_scale(points2d), 0.1 * points2d.var(1).sum(-1).sqrt(), 1e-12)
    close(adaptive_huber_scale(7 * points2d, 2 * weights), 14 * adaptive_huber_scale(points2d, weights), 1e-10)
    assert adaptive_huber_scale(torch.ones(1, 4, 2)) == 0


def test_the_threshold_follows_the_weights_and_draws_no_points_together() -> None:
    points2d = torch.randn(2, 6, 2, generator=generator(1), **DOUBLE).requires_grad_()
    weights = inverse_sigma(2, 6, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: adaptive_huber_scale(points2d.detach(), w), weights)
    by_points, by_weights = torch.autograd.grad(
        adaptive_huber_scale(points2d, weights).sum(), (points2d, weights), allow_unused=True
    )
    assert by_points is None
    assert (by_weights > 0).all()


# ---- Monte-Carlo loss under it ----


def importance_sampled(points2d: np.ndarray, scene: Any, weights: np.ndarray, scale: float, draws: int) -> Any:
    """log Z of the Huber posterior, and its standard error: t-distributed steps from the mode, in numpy alone."""
    X, K, truth = (d.numpy() for d in (scene.points3d[0], scene.K, scene.world_to_camera_gt[0]))

    def costs(R: np.ndarray, t: np.ndarray) -> np.ndarray:
        p = X @ np.swapaxes(R, -1, -2) + t[:, None]
        pixels = p[..., :2] / p[..., 2:] * K[[0, 1], [0, 1]] + K[:2, 2]
        length = np.linalg.norm(weights * (pixels - points2d), axis=-1)
        rho = np.where(length > scale, 2 * scale * length - scale**2, length**2)
        return np.where((p[..., 2] > 0).all(-1), 0.5 * rho.sum(-1), np.inf)

    mode = pnp(
        torch.from_numpy(points2d)[None], scene.points3d, scene.K, weights=torch.from_numpy(weights)[None],
        kernel=huber(scale), throw=True,
    ).x[0].numpy()  # fmt: skip
    R0, t0 = mode[:3, :3], mode[:3, 3]
    # curvature by differences of the cost: where to draw, not what is drawn
    h, eye = 1e-3, np.eye(6)
    steps = h * np.stack([a + b for a in eye for b in eye] + [a - b for a in eye for b in eye])

    def at(step: np.ndarray) -> np.ndarray:
        return costs(rotations(step[:, :3]) @ R0, t0 + step[:, 3:])

    plus, minus = at(steps).reshape(2, 6, 6)
    H = (plus - minus) / (2 * h * h)
    H = (H + H.T) / 2
    factor = np.linalg.inv(np.linalg.cholesky(H)).T
    g, nu = np.random.default_rng(0), 5.0
    z = g.standard_normal((draws, 6)) / np.sqrt(g.chisquare(nu, (draws, 1)) / nu)
    step = z @ factor.T
    log_q = math.lgamma((nu + 6) / 2) - math.lgamma(nu / 2) - 3 * math.log(nu * math.pi)
    log_q = log_q + 0.5 * np.linalg.slogdet(H)[1] - (nu + 6) / 2 * np.log1p((z**2).sum(-1) / nu)
    angle = np.linalg.norm(step[:, :3], axis=-1)
    measure = np.where(angle < math.pi, 2 * (1 - np.cos(angle)) / angle**2, 0)  # dR over d omega, each rotation once
    weight = np.exp(-at(step) - log_q) * measure
    assert np.isfinite(truth).all()
    return math.log(weight.mean()), weight.std() / weight.mean() / math.sqrt(draws)


def rotations(rotvec: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(rotvec).as_matrix()


@pytest.mark.slow
def test_monte_carlo_loss_with_a_threshold_against_another_sampler(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(1, 12, 3.0)
    points2d, weights = with_outliers(scene), inverse_sigma(1, 12, 3.0)
    scale = adaptive_huber_scale(points2d, weights)
    assert 1 < scale < 20
    log_z, error = importance_sampled(points2d[0].numpy(), scene, weights[0].numpy(), scale.item(), 100_000)
    assert error < 0.01
    found = monte_carlo_pose_loss(
        points2d, scene.points3d, scene.K, scene.world_to_camera_gt, weights=weights, huber_scale=scale, samples=20_000,
        generator=generator(1),
    )  # fmt: skip
    s = (weights * (project(scene.points3d, scene.world_to_camera_gt, scene.K) - points2d)).square().sum(-1)
    cost = 0.5 * huber(scale.item())(s).sum()
    spread = (1 / found.effective_samples - 1 / 20_000).sqrt().item()
    assert spread < 0.02
    assert abs(found.loss.item() - cost.item() - log_z) < 4 * math.hypot(error, spread)


@pytest.mark.slow
def test_gradient_under_a_threshold_is_that_of_a_kernel_of_its_scale(make_scene: Callable[..., Any]) -> None:
    """Of points and weights that of `kernel=huber(scale)`, but for the noise of both draws, which copies measure."""
    scene, copies = make_scene(3, 12, 3.0), 16
    inputs = with_outliers(scene), inverse_sigma(3, 12, 3.0), scene.points3d, scene.world_to_camera_gt

    def gradients(problems: slice, seed: int, **options: Any) -> Tensor:
        """(copies,B,N,4)"""
        x, w, X, truth = (d[problems].repeat(copies, *[1] * (d.ndim - 1)) for d in inputs)
        leaves = x.requires_grad_(), w.requires_grad_()
        loss = monte_carlo_pose_loss(
            leaves[0], X, scene.K, truth, weights=leaves[1], samples=2000, generator=generator(seed), **options
        ).loss
        return torch.cat(torch.autograd.grad(loss.sum(), leaves), -1).unflatten(0, (copies, -1))

    found = gradients(slice(None), 1, huber_scale=SCALES.repeat(copies))
    wanted = torch.cat([gradients(slice(b, b + 1), 2, kernel=huber(s)) for b, s in enumerate(SCALES.tolist())], 1)
    error = ((found.var(0) + wanted.var(0)) / copies).sqrt()
    assert ((found.mean(0) - wanted.mean(0)).abs() < 4.5 * error).all()
    assert error.norm() < 0.05 * wanted.mean(0).norm()


@pytest.mark.slow
def test_gradient_of_the_threshold_is_the_slope_of_the_loss(make_scene: Callable[..., Any]) -> None:
    scene, copies = make_scene(3, 12, 3.0), 16
    inputs = with_outliers(scene), scene.points3d, scene.world_to_camera_gt, inverse_sigma(3, 12, 3.0)
    x, X, truth, w = (d.repeat(copies, *[1] * (d.ndim - 1)) for d in inputs)
    scale = SCALES.repeat(copies).requires_grad_()

    def loss(scale: Tensor) -> Tensor:
        options: dict[str, Any] = {"weights": w, "huber_scale": scale, "samples": 2000}
        return monte_carlo_pose_loss(x, X, scene.K, truth, **options, generator=generator(1)).loss

    (found,) = torch.autograd.grad(loss(scale).sum(), scale)
    h = 0.1 * scale.detach()
    with torch.no_grad():
        slope = (loss(scale + h) - loss(scale - h)) / (2 * h)
    found, slope = (a.view(copies, 3) for a in (found, slope))
    error = ((found - slope).var(0) / copies).sqrt()
    assert ((found.mean(0) - slope.mean(0)).abs() < 4.5 * error + 0.01 * slope.mean(0).abs()).all()
    assert (error < 0.05 * slope.mean(0).abs()).all()


def test_a_threshold_beyond_all_residuals_is_none(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 8, 3.0)
    arguments = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    options: dict[str, Any] = {"weights": inverse_sigma(2, 8, 3.0)}
    large = torch.full((1,), 1e6, **DOUBLE)
    plain, wide = (
        monte_carlo_pose_loss(*arguments, **options, huber_scale=scale, generator=generator(3)).loss
        for scale in (None, large)
    )
    close(wide, plain, 1e-8)
    plain, wide = (
        derivative_regularisation_loss(*arguments, **options, huber_scale=scale).loss for scale in (None, large)
    )
    close(wide, plain, 1e-8)


# ---- derivative regularisation ----


def distance(pose: Tensor, truth: Tensor, beta: float) -> Tensor:
    """Of poses: the position's by torch's Huber loss over beta, the orientation's by its angle."""
    apart = (pose[:, :3, 3] - truth[:, :3, 3]).norm(dim=-1)
    position = torch.nn.functional.huber_loss(apart, torch.zeros_like(apart), delta=beta, reduction="none") / beta
    return position + 1 - se3.rotation_angle(pose[:, :3, :3] @ truth[:, :3, :3].mT).cos()


@pytest.mark.parametrize("kernel", [None, huber(1.0), "thresholds"])
@pytest.mark.parametrize("beta", [1e-3, 1.0])
def test_derivative_regularisation_is_gauss_newton_by_another_road(
    make_scene: Callable[..., Any], kernel: Any, beta: float
) -> None:
    scene = make_scene(3, 10, 4.0, distorted=True)
    offset = torch.tensor([3.0, -2.0, 1.0], **DOUBLE)  # the origin is not the middle
    points2d = with_outliers(scene)
    inputs = [points2d, scene.points3d + offset, scene.K.expand(3, 3, 3), scene.distortion.expand(3, -1),
              inverse_sigma(3, 10, 4.0)]  # fmt: skip
    ours, theirs = ([a.clone().requires_grad_() for a in inputs] for _ in range(2))
    truth = se3.retract(scene.world_to_camera_gt, torch.full((3, 6), 0.02, **DOUBLE))

    def options(leaves: list[Tensor], which: slice) -> dict[str, Any]:
        return {"distortion": leaves[3][which], "weights": leaves[4][which]}

    robust: dict[str, Any] = {"huber_scale": SCALES} if kernel == "thresholds" else {"kernel": kernel}
    found = derivative_regularisation_loss(
        ours[0], ours[1], ours[2], truth, **options(ours, slice(None)), beta=beta, **robust
    )
    assert found.converged.all()
    poses = []
    for b in range(3):
        one, its = slice(b, b + 1), huber(SCALES[b].item()) if kernel == "thresholds" else kernel
        solved = pnp(
            *(a[one] for a in theirs[:3]), **options(theirs, one), kernel=its, gradient="gauss_newton", throw=True
        )
        poses.append(solved.x)
    expected = distance(torch.cat(poses), truth, beta)
    close(found.loss, expected, 1e-10)
    found.loss.sum().backward()
    expected.sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        close(a.grad, b.grad, 1e-8 * b.grad.abs().max().item())


def test_derivative_regularisation_against_differences_where_the_fit_is_exact(make_scene: Callable[..., Any]) -> None:
    """Without residuals Gauss-Newton is exact: the derivative is that of the solver, which is called anew each time."""
    scene = make_scene(3, 8)
    truth = se3.retract(scene.world_to_camera_gt, torch.full((3, 6), 0.03, **DOUBLE))
    data = one_each([scene.points2d, scene.points3d, scene.K.expand(3, 3, 3)])

    def loss(x: Tensor, X: Tensor, K: Tensor) -> Tensor:
        return derivative_regularisation_loss(x, X, K, truth).loss

    directions = directions_of(data, (1.0, 1e-2, 1.0), generator(1))
    directions[2][:, 2] = 0
    assert (errors_in_turn(loss, data, directions) < 1e-6).all()


# ---- failures ----


@pytest.mark.parametrize("loss", [monte_carlo_pose_loss, derivative_regularisation_loss])
def test_a_threshold_of_zero_fails_alone(make_scene: Callable[..., Any], loss: Any) -> None:
    scene = make_scene(3, 8, 3.0)
    leaf, scale = scene.points2d.clone().requires_grad_(), torch.tensor([1.0, 0.0, 2.0], **DOUBLE).requires_grad_()
    found = loss(leaf, scene.points3d, scene.K, scene.world_to_camera_gt, huber_scale=scale)
    assert found.status.tolist() == [Status.CONVERGED, Status.SINGULAR, Status.CONVERGED]
    assert found.loss[1] == 0
    found.loss.sum().backward()
    for gradient in (leaf.grad, scale.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert (gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None]).abs().sum(1).gt(0).tolist() == [
            True, False, True,
        ]  # fmt: skip


@pytest.mark.parametrize("loss", [monte_carlo_pose_loss, derivative_regularisation_loss])
def test_mistakes_in_the_threshold(make_scene: Callable[..., Any], loss: Any) -> None:
    scene = make_scene(2, 8, 1.0)
    arguments = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    for scale, options, message in (
        (torch.ones(3, **DOUBLE), {}, r"huber_scale must have shape \(2\|1,\) or \(\), got \(3,\)"),
        (torch.ones(2), {}, "huber_scale must have the dtype"),
        (-torch.ones(2, **DOUBLE), {}, "huber_scale must be finite and not negative"),
        (torch.ones(2, **DOUBLE), {"kernel": huber(1.0)}, "kernel must be None with huber_scale"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*arguments, huber_scale=scale, **options)
    with pytest.raises(ValueError, match="beta must be a positive number"):
        derivative_regularisation_loss(*arguments, beta=0.0)
