"""The Monte-Carlo loss against its parts and the truth, the keypoints' likelihood, and what must change no loss."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geometry import (
    Status,
    barron,
    derivative_regularisation_loss,
    keypoint_likelihood_loss,
    linear_covariance_loss,
    monte_carlo_pose_loss,
    pnp,
    pnp_problem,
    pose_covariance,
    project,
    sample_poses,
    se3,
)
from geometry.pose import log_normaliser
from tests.geometry.pose.solving import inverse_sigma
from tests.numbers import DOUBLE, close, errors_in_turn, generator, one_each

LOSSES: dict[str, Any] = {
    "monte_carlo": lambda *a, **k: monte_carlo_pose_loss(*a, **k, generator=generator(7)),
    "linear_covariance": linear_covariance_loss,
    "derivative_regularisation": derivative_regularisation_loss,
    "keypoint_likelihood": keypoint_likelihood_loss,
}
every = pytest.mark.parametrize("name", LOSSES)
FAILURES = {
    "monte_carlo": {1: Status.SINGULAR, 2: Status.INFEASIBLE, 4: Status.TOO_FEW},
    "linear_covariance": {1: Status.SINGULAR, 2: Status.INFEASIBLE, 4: Status.TOO_FEW},
    "derivative_regularisation": {1: Status.SINGULAR, 4: Status.TOO_FEW},
    "keypoint_likelihood": {2: Status.INFEASIBLE},
}
"""Of the problems 1, 2 and 4, which fail when their points lie on a line, behind the camera, are three."""


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    at = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    return pose_covariance(*at, weights=weights, sigma=1.0)


def test_a_start_is_as_good_as_the_search(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(3, 10, 2.0)
    inputs = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    options: dict[str, Any] = {"weights": inverse_sigma(3, 10, 2.0)}
    searched = monte_carlo_pose_loss(*inputs, **options, generator=generator(1))
    started = monte_carlo_pose_loss(*inputs, **options, init=inputs[3], generator=generator(1))
    close(started.loss, searched.loss, 1e-6)


# ---- likelihood of the keypoints ----


def test_keypoint_likelihood_is_that_of_torch_s_normal_distribution(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(3, 8, 4.0, distorted=True)
    weights = inverse_sigma(3, 8, 4.0)
    mask = torch.rand(3, 8, generator=generator(1)) < 0.7
    options: dict[str, Any] = {"distortion": scene.distortion, "weights": weights, "mask": mask}
    found = keypoint_likelihood_loss(scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt, **options)
    centre = project(scene.points3d, scene.world_to_camera_gt, scene.K, scene.distortion)
    density = torch.distributions.Normal(centre, 1 / weights).log_prob(scene.points2d) + math.log(2 * math.pi) / 2
    close(found.loss, -(density * mask[..., None]).sum((1, 2)), 1e-10)
    assert found.converged.all()
    unseen = keypoint_likelihood_loss(
        scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt, mask=torch.zeros_like(mask)
    )
    assert (unseen.status == Status.TOO_FEW).all()


def test_gradient_of_the_keypoint_likelihood_against_differences(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(5, 8, 4.0, distorted=True)
    data = one_each(
        [
            scene.points2d,
            scene.points3d,
            scene.K.expand(5, 3, 3),
            scene.distortion.expand(5, -1),
            inverse_sigma(5, 8, 4),
        ]
    )

    def loss(x: Tensor, X: Tensor, K: Tensor, distortion: Tensor, weights: Tensor) -> Tensor:
        options: dict[str, Any] = {"distortion": distortion, "weights": weights}
        return keypoint_likelihood_loss(x, X, K, scene.world_to_camera_gt, **options).loss

    directions = [torch.randn(d.shape, generator=generator(i), **DOUBLE) for i, d in enumerate(data)]
    directions[2][:, 2] = 0
    sizes = (1.0, 1e-2, 1.0, 0.1, 1e-2)
    directions = [size * d for size, d in zip(sizes, directions, strict=True)]
    assert (errors_in_turn(loss, data, directions) < 1e-7).all()


def test_keypoint_likelihood_learns_how_far_off_each_coordinate_is(make_scene: Callable[..., Any]) -> None:
    """Its slope vanishes at weights 1 / |distance|, is up below them and down above, whatever else is seen."""
    scene = make_scene(2, 8, 4.0)
    distance = (project(scene.points3d, scene.world_to_camera_gt, scene.K) - scene.points2d).abs()
    for factor, sign in ((0.5, -1), (1.0, 0), (2.0, 1)):
        weights = (factor / distance).requires_grad_()
        loss = keypoint_likelihood_loss(
            scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt, weights=weights
        ).loss
        (slope,) = torch.autograd.grad(loss.sum(), weights)
        assert ((slope * weights).sign() * ((slope * weights).abs() > 1e-9) == sign).all()


# ---- what must not change any loss ----


@every
def test_masked_is_absent_and_order_and_origin_do_not_matter(make_scene: Callable[..., Any], name: str) -> None:
    loss = LOSSES[name]
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
    if name == "derivative_regularisation":  # its position is that of the origin
        return
    offset = torch.tensor([30.0, -20.0, 10.0], **DOUBLE)
    far = se3.make(truth[:, :3, :3], truth[:, :3, 3] - truth[:, :3, :3] @ offset)
    found = loss(scene.points2d[:, :7], scene.points3d[:, :7] + offset, scene.K, far, weights=weights[:, :7]).loss
    close(found, plain, 1e-6, 1e-6)


@every
def test_a_failed_sample_has_gradient_zero_and_spoils_no_other(make_scene: Callable[..., Any], name: str) -> None:
    loss = LOSSES[name]
    scene = make_scene(5, 10, 2.0, seed=6)
    weights = inverse_sigma(5, 10, 2.0)

    def run(points3d: Tensor, truth: Tensor, mask: Tensor) -> tuple[Any, list[Tensor]]:
        leaves = [a.clone().requires_grad_() for a in (scene.points2d, points3d, scene.K, weights)]
        result = loss(*leaves[:3], truth, weights=leaves[3], mask=mask)
        result.loss[keep].sum().backward(retain_graph=True)
        shared = leaves[2].grad.clone()  # type: ignore[union-attr]
        result.loss[[*FAILURES[name]]].sum().backward()
        return result, [leaves[0].grad, leaves[1].grad, leaves[3].grad, shared, leaves[2].grad]  # type: ignore[list-item]

    keep = [0, 3]
    points3d, truth = scene.points3d.clone(), scene.world_to_camera_gt.clone()
    mask = torch.ones(5, 10, dtype=torch.bool)
    whole, expected = run(points3d, truth, mask)
    assert whole.converged.all()
    statuses = FAILURES[name]
    if 1 in statuses:
        points3d[1] = torch.linspace(-1, 1, 10, **DOUBLE)[:, None] * torch.ones(3, **DOUBLE)  # one line
    if 2 in statuses:
        truth[2, 2, 3] -= 20  # behind the camera
    if 4 in statuses:
        mask[4, 3:] = False
    broken, found = run(points3d, truth, mask)
    assert broken.converged.tolist() == [i not in statuses for i in range(5)]
    failed = list(statuses)
    assert broken.status[failed].tolist() == [*statuses.values()]
    assert (broken.loss[failed] == 0).all()
    close(broken.loss[keep], whole.loss[keep], 1e-10)
    for f, e in zip(found[:3], expected[:3], strict=True):
        assert (f[failed] == 0).all()
        close(f[keep], e[keep], 1e-9)
    close(found[3], expected[3], 1e-9)
    assert torch.equal(found[3], found[4])


@every
def test_a_batch_is_its_samples_and_shared_inputs_add_up(make_scene: Callable[..., Any], name: str) -> None:
    loss = LOSSES[name]
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
    if name != "monte_carlo":
        alone = torch.cat([loss(points2d[b : b + 1], points3d, K, truth, weights=weights).loss for b in range(3)])
        close(gradients[0][0], alone, 1e-12)


def test_the_default_dtype_does_not_matter(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(1, 12, 1.0, dtype=torch.float32)
    data = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    wanted = monte_carlo_pose_loss(*data, generator=generator()).loss
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(monte_carlo_pose_loss(*data, generator=generator()).loss, wanted)
    finally:
        torch.set_default_dtype(torch.float32)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lower_precision(make_scene: Callable[..., Any], name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]
    scene = make_scene(4, 12, 2.0, seed=8)
    weights = inverse_sigma(4, 12, 2.0)
    wanted = loss(scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt, weights=weights).loss
    leaf = scene.points2d.to(dtype).requires_grad_()
    single = (scene.points3d, scene.K, scene.world_to_camera_gt)
    found = loss(leaf, *(a.float() for a in single), weights=weights.float()).loss
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    if dtype == torch.float32:  # other random numbers: a standard deviation of 0.06
        tolerance = 0.3 if name == "monte_carlo" else 1e-4
        close(found.double(), wanted, tolerance)
    found.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert (leaf.grad != 0).any()


@every
def test_an_empty_batch_belongs_to_the_graph(make_scene: Callable[..., Any], name: str) -> None:
    loss = LOSSES[name]
    scene = make_scene(2, 8, 1.0)
    K = scene.K.clone().requires_grad_()
    result = loss(scene.points2d[:0], scene.points3d[:0], K, scene.world_to_camera_gt[:0])
    assert result.loss.shape == result.status.shape == (0,)
    result.loss.sum().backward()
    assert (K.grad == 0).all()  # type: ignore[operator]


# ---- mistakes ----


@every
def test_mistakes_name_the_argument(make_scene: Callable[..., Any], name: str) -> None:
    loss = LOSSES[name]
    scene = make_scene(3, 8, 1.0)
    x, X, K, truth = scene.points2d, scene.points3d, scene.K, scene.world_to_camera_gt
    nan = truth.clone()
    nan[1, 0, 0] = torch.nan
    bad = x.clone()
    bad[0, 0, 0] = torch.inf
    for arguments, options, message in (
        ((x[0, 0], X, K, truth), {}, r"points2d must have shape \(B,N,2\) or \(N,2\), got \(2,\)"),
        ((x, X[:2], K, truth), {}, r"points3d must have shape .*got \(2, 8, 3\)"),
        ((x, X, K, truth[:2]), {}, r"pose_gt must have shape \(3\|1,4,4\) or \(4,4\), got \(2, 4, 4\)"),
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
        monte_carlo_pose_loss(*arguments, init=torch.eye(3, **DOUBLE))
    with pytest.raises(ValueError, match="pose must have shape"):
        pose_covariance(*arguments[:3], torch.eye(3, **DOUBLE))
