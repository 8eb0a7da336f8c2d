"""The losses against their parts, finite differences, noisy solves, and what must not change them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geometry import (
    Problem,
    Status,
    barron,
    cauchy,
    covariance,
    huber,
    linear_covariance_loss,
    monte_carlo_pose_loss,
    pnp,
    pnp_problem,
    pose_covariance,
    project,
    sample_poses,
    se3,
)
from geometry.pose import linear_covariance, log_normaliser
from tests.numbers import DOUBLE, close, generator

LOSSES = [lambda *a, **k: monte_carlo_pose_loss(*a, **k, generator=generator(7)), linear_covariance_loss]
both = pytest.mark.parametrize("loss", LOSSES, ids=["monte_carlo", "linear_covariance"])


def inverse_sigma(B: int, N: int, sigma: float, seed: int = 1) -> Tensor:
    """Weights (B,N,2) about 1 / sigma."""
    return (0.5 + torch.rand(B, N, 2, generator=generator(seed), **DOUBLE)) / sigma


def whitened(empirical: Tensor, predicted: Tensor) -> Tensor:
    """The identity, where the two covariances agree."""
    L = torch.linalg.cholesky(predicted)
    return torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, empirical, upper=False).mT, upper=False)


# ---- Monte-Carlo pose loss ----


@pytest.mark.parametrize("kernel", [None, barron(1.0, 1.0)])
def test_monte_carlo_loss_and_gradient_are_those_of_its_parts(make_scene: Callable[..., Any], kernel: Any) -> None:
    scene = make_scene(3, 8, 5.0, distorted=True)
    mask = torch.ones(3, 8, dtype=torch.bool)
    inputs = (scene.points2d, scene.points3d, scene.K, scene.distortion, inverse_sigma(3, 8, 5.0))
    ours, parts = ([a.clone().requires_grad_() for a in (*inputs, scene.world_to_camera_gt)] for _ in range(2))
    result = monte_carlo_pose_loss(
        *ours[:3], ours[5], distortion=ours[3], weights=ours[4], kernel=kernel, generator=generator(2)
    )
    assert result.converged.all()
    assert (result.effective_samples > 100).all()
    x, X, K, distortion, weights, truth = parts
    centre = X.detach().mean(1)
    data = (x, X - centre[:, None], K.expand(3, 3, 3), distortion.expand(3, 5), weights, mask)

    def moved(pose: Tensor) -> Tensor:
        R = pose[:, :3, :3]
        return se3.make(R, pose[:, :3, 3] + (R @ centre[..., None]).squeeze(-1))

    problem, plain = pnp_problem(kernel=kernel), tuple(d.detach() for d in data)
    mode = pnp(*plain[:3], distortion=plain[3], weights=plain[4], kernel=kernel).x
    drawn = sample_poses(problem, mode, *plain, generator=generator(2))
    expected = problem.costs(moved(truth), *data) + log_normaliser(problem, drawn, *data)
    close(result.loss, expected, 1e-10)
    result.loss.sum().backward()
    expected.sum().backward()
    for a, b in zip(ours, parts, strict=True):
        assert (b.grad != 0).any()  # type: ignore[union-attr]
        close(a.grad, b.grad, 1e-10, 1e-10)


def test_monte_carlo_loss_learns_the_scale_of_the_weights(make_scene: Callable[..., Any]) -> None:
    """With 1/sigma of the noise the gradient of a common factor of the weights is zero in the mean; not with less."""
    B, sigma = 400, 3.0
    scene = make_scene(1, 10, 0.0, seed=3)
    noise = sigma * torch.randn(B, 10, 2, generator=generator(1), **DOUBLE)
    slopes = []
    for factor in (0.7, 1.0, 1.4):
        scale = torch.full((B, 1, 1), factor / sigma, **DOUBLE).requires_grad_()
        result = monte_carlo_pose_loss(
            scene.points2d + noise,
            scene.points3d,
            scene.K,
            scene.world_to_camera_gt,
            weights=scale.expand(B, 10, 2),
            samples=128,
            generator=generator(2),
        )
        (slope,) = torch.autograd.grad(result.loss.sum(), scale)
        slopes.append((slope.mean() / (slope.std() / math.sqrt(B))).item())
    assert slopes[0] < -10
    assert abs(slopes[1]) < 3
    assert slopes[2] > 10


def test_monte_carlo_loss_is_lowest_at_the_truth_in_the_mean(make_scene: Callable[..., Any]) -> None:
    """A proper score: of all poses the true one has the highest mean log density."""
    B, sigma = 300, 2.0
    scene = make_scene(1, 10, 0.0, seed=4)
    points2d = scene.points2d + sigma * torch.randn(B, 10, 2, generator=generator(1), **DOUBLE)
    weights = torch.full((1, 10), 1 / sigma, **DOUBLE)

    def losses(pose: Tensor) -> Tensor:
        options: dict[str, Any] = {"weights": weights, "samples": 64, "generator": generator(3)}
        return monte_carlo_pose_loss(points2d, scene.points3d, scene.K, pose, **options).loss

    at_truth = losses(scene.world_to_camera_gt)
    deviation = covariance_of(scene, weights).diagonal(dim1=1, dim2=2).sqrt()
    for i in range(6):
        for sign in (-1, 1):
            step = torch.zeros(1, 6, **DOUBLE)
            step[0, i] = sign * deviation[0, i]
            assert losses(se3.retract(scene.world_to_camera_gt, step)).mean() > at_truth.mean()


def covariance_of(scene: Any, weights: Tensor) -> Tensor:
    return pose_covariance(scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt, weights=weights)


def test_a_start_is_as_good_as_the_search(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(3, 10, 2.0)
    inputs = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    options: dict[str, Any] = {"weights": inverse_sigma(3, 10, 2.0)}
    searched = monte_carlo_pose_loss(*inputs, **options, generator=generator(1))
    started = monte_carlo_pose_loss(*inputs, **options, init=inputs[3], generator=generator(1))
    close(started.loss, searched.loss, 1e-6)


# ---- what must not change either loss ----


@both
def test_masked_is_absent_and_order_and_origin_do_not_matter(make_scene: Callable[..., Any], loss: Any) -> None:
    scene = make_scene(3, 10, 2.0, seed=5)
    weights = inverse_sigma(3, 10, 2.0)
    truth = scene.world_to_camera_gt
    plain = loss(scene.points2d[:, :7], scene.points3d[:, :7], scene.K, truth, weights=weights[:, :7]).loss
    for spoil in ("mask", "weight"):
        points2d, points3d, w = scene.points2d.clone(), scene.points3d.clone(), weights.clone()
        mask = torch.ones(3, 10, dtype=torch.bool)
        if spoil == "mask":
            mask[:, 7:] = False
            points2d[:, 7:], points3d[:, 8:], w[:, 9:] = torch.nan, torch.inf, torch.nan
        else:
            w[:, 7:] = 0
            points3d[:, 7:] = -50 * truth[:, None, 2, :3]  # behind the camera
        leaves = [a.requires_grad_() for a in (points2d, points3d, w)]
        found = loss(*leaves[:2], scene.K, truth, weights=w, mask=mask).loss
        close(found, plain, 1e-9, 1e-9)
        found.sum().backward()
        for leaf in leaves:
            assert (leaf.grad[:, 7:] == 0).all()
            assert (leaf.grad[:, :7] != 0).all()
    order = torch.randperm(7, generator=generator(3))
    found = loss(scene.points2d[:, order], scene.points3d[:, order], scene.K, truth, weights=weights[:, order]).loss
    close(found, plain, 1e-8, 1e-8)
    offset = torch.tensor([30.0, -20.0, 10.0], **DOUBLE)
    far = se3.make(truth[:, :3, :3], truth[:, :3, 3] - truth[:, :3, :3] @ offset)
    found = loss(scene.points2d[:, :7], scene.points3d[:, :7] + offset, scene.K, far, weights=weights[:, :7]).loss
    close(found, plain, 1e-6, 1e-6)


@both
def test_a_failed_sample_has_gradient_zero_and_spoils_no_other(make_scene: Callable[..., Any], loss: Any) -> None:
    scene = make_scene(5, 10, 2.0, seed=6)
    weights = inverse_sigma(5, 10, 2.0)

    def run(points3d: Tensor, truth: Tensor, mask: Tensor) -> tuple[Any, list[Tensor]]:
        leaves = [a.clone().requires_grad_() for a in (scene.points2d, points3d, scene.K, weights)]
        result = loss(*leaves[:3], truth, weights=leaves[3], mask=mask)
        result.loss[keep].sum().backward(retain_graph=True)
        shared = leaves[2].grad.clone()  # type: ignore[union-attr]
        result.loss[[1, 2, 4]].sum().backward()
        return result, [leaves[0].grad, leaves[1].grad, leaves[3].grad, shared, leaves[2].grad]  # type: ignore[list-item]

    keep = [0, 3]
    points3d, truth = scene.points3d.clone(), scene.world_to_camera_gt.clone()
    mask = torch.ones(5, 10, dtype=torch.bool)
    whole, expected = run(points3d, truth, mask)
    assert whole.converged.all()
    points3d[1] = torch.linspace(-1, 1, 10, **DOUBLE)[:, None] * torch.ones(3, **DOUBLE)  # one line
    truth[2, 2, 3] -= 20  # behind the camera
    mask[4, 3:] = False
    broken, found = run(points3d, truth, mask)
    assert broken.converged.tolist() == [True, False, False, True, False]
    assert broken.status[2] == Status.INFEASIBLE
    assert broken.status[4] == Status.TOO_FEW
    assert (broken.loss[[1, 2, 4]] == 0).all()
    close(broken.loss[keep], whole.loss[keep], 1e-10)
    for f, e in zip(found[:3], expected[:3], strict=True):
        assert (f[[1, 2, 4]] == 0).all()
        close(f[keep], e[keep], 1e-9)
    close(found[3], expected[3], 1e-9)
    assert torch.equal(found[3], found[4])


@both
def test_a_batch_is_its_samples_and_shared_inputs_add_up(make_scene: Callable[..., Any], loss: Any) -> None:
    scene = make_scene(3, 10, 2.0, seed=7)
    weights = inverse_sigma(1, 10, 2.0)
    points3d, K, truth = scene.points3d[:1], scene.K, scene.world_to_camera_gt[:1]
    points2d = project(points3d, truth, K) + 2 * torch.randn(3, 10, 2, generator=generator(1), **DOUBLE)
    gradients = []
    for shared in (True, False):
        leaves = [a.clone().requires_grad_() for a in (points3d, K[None], weights)]
        X, k, w = leaves if shared else (a.expand(3, *a.shape[1:]) for a in leaves)
        result = loss(points2d, X, k, truth if shared else truth.expand(3, 4, 4), weights=w)
        result.loss.sum().backward()
        gradients.append([result.loss.detach(), *(leaf.grad for leaf in leaves)])
    for a, b in zip(*gradients, strict=True):
        close(a, b, 1e-10)
    if loss is linear_covariance_loss:
        alone = torch.cat([loss(points2d[b : b + 1], points3d, K, truth, weights=weights).loss for b in range(3)])
        close(gradients[0][0], alone, 1e-12)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lower_precision(make_scene: Callable[..., Any], loss: Any, dtype: torch.dtype) -> None:
    scene = make_scene(4, 12, 2.0, seed=8)
    weights = inverse_sigma(4, 12, 2.0)
    wanted = loss(scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt, weights=weights).loss
    leaf = scene.points2d.to(dtype).requires_grad_()
    single = (scene.points3d, scene.K, scene.world_to_camera_gt)
    found = loss(leaf, *(a.float() for a in single), weights=weights.float()).loss
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    if dtype == torch.float32:  # other random numbers: a standard deviation of 0.06
        tolerance = 1e-4 if loss is linear_covariance_loss else 0.3
        close(found.double(), wanted, tolerance)
    found.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert (leaf.grad != 0).any()


@both
def test_an_empty_batch_belongs_to_the_graph(make_scene: Callable[..., Any], loss: Any) -> None:
    scene = make_scene(2, 8, 1.0)
    K = scene.K.clone().requires_grad_()
    result = loss(scene.points2d[:0], scene.points3d[:0], K, scene.world_to_camera_gt[:0])
    assert result.loss.shape == result.status.shape == (0,)
    result.loss.sum().backward()
    assert (K.grad == 0).all()  # type: ignore[operator]


# ---- linear covariance ----


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


@pytest.mark.parametrize("kernel", [None, huber(1.0)])
@pytest.mark.parametrize("sigma", [1.0, 0.3, None])
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


# ---- mistakes ----


@both
def test_mistakes_name_the_argument(make_scene: Callable[..., Any], loss: Any) -> None:
    scene = make_scene(3, 8, 1.0)
    x, X, K, truth = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    nan = truth.clone()
    nan[1, 0, 0] = torch.nan
    bad = x.clone()
    bad[0, 0, 0] = torch.inf
    for arguments, options, message in (
        ((x[0], X, K, truth), {}, r"points2d must have shape \(B,N,2\), got \(8, 2\)"),
        ((x, X[:2], K, truth), {}, r"points3d must have shape .*got \(2, 8, 3\)"),
        ((x, X, K, truth[:2]), {}, r"pose_gt must have shape \(3\|1,4,4\), got \(2, 4, 4\)"),
        ((x, X, K, truth.float()), {}, "pose_gt must have the dtype"),
        ((x, X, K, nan), {}, "pose_gt must be finite"),
        ((bad, X, K, truth), {}, "points2d must be finite where mask is True"),
        ((x, X, K, truth), {"weights": x[:, :, 0] + torch.nan}, "weights must be finite"),
        ((x[:, :3], X[:, :3], K, truth), {}, "points2d must hold at least 4 points"),
        ((x, X, K, truth), {"mask": torch.ones(3, 8)}, "mask must be of dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*arguments, **options)


def test_mistakes_of_one_function_alone(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 8, 1.0)
    arguments = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    with pytest.raises(ValueError, match="samples must be a positive multiple of iterations"):
        monte_carlo_pose_loss(*arguments, samples=10, iterations=4)
    with pytest.raises(ValueError, match=r"init must have shape \(2\|1,4,4\)"):
        monte_carlo_pose_loss(*arguments, init=torch.eye(4, **DOUBLE))
    with pytest.raises(ValueError, match="pose must have shape"):
        pose_covariance(*arguments[:3], torch.eye(4, **DOUBLE))
