"""The losses of keypoints: their values by other means, their gradients against finite differences, their bounds."""

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from experiments.object_poses.losses import (
    Balance,
    Loss,
    Target,
    heatmap_loss,
    pose_loss,
    pulled_at_most,
    ramp,
    regularisation,
)
from experiments.object_poses.network import cells_of, read_heatmaps
from geometry import pnp_problem, project, sample_poses, se3
from geometry.pose import log_normaliser
from tests.experiments.object_poses.heatmaps import SIDE, largest_error, numeric, rows, scene
from tests.numbers import DOUBLE, generator

WEIGHTED = pytest.mark.parametrize("weighted", [True, False])


def of_logits(
    name: Loss, logits: Tensor, target: Target, weighted: bool = True, balance: Balance = "paper", seed: int = 3
) -> Tensor:
    heatmaps = read_heatmaps(logits)
    given = (heatmaps.points2d, heatmaps.deviation, target)
    return pose_loss(name, *given, weighted=weighted, balance=balance, generator=generator(seed))


# ---- from the logits to the loss of the pose ----


@pytest.mark.slow
@WEIGHTED
@pytest.mark.parametrize("name", ["mixture", "linear_covariance"])
def test_gradients_from_the_logits_through_pnp_to_the_loss_are_finite_differences(name: Loss, weighted: bool) -> None:
    """Softmax, expectation, deviation as weight, PnP, projection, loss: in every one of the logits."""
    logits, target = scene()
    logits.requires_grad_()
    value = of_logits(name, logits, target, weighted)
    assert (value > 0.05).all()
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    with torch.no_grad():
        wanted = numeric(lambda some, row: of_logits(name, some, rows(target, row), weighted), logits)
    assert largest_error(gradient, wanted) < 1e-6
    if name == "mixture":  # the deviations have a say in the gradient exactly where they weigh
        heatmaps = read_heatmaps(logits.detach())
        deviation = heatmaps.deviation.requires_grad_()
        value = pose_loss(name, heatmaps.points2d, deviation, target, weighted=weighted, balance="paper").sum()
        assert value.requires_grad == weighted
        if weighted:
            assert torch.autograd.grad(value, deviation)[0].abs().max() > 0.01


def test_gradients_of_the_monte_carlo_loss_are_those_of_its_draws_held_fixed() -> None:
    """loss = cost(truth) + log Z, Z estimated from poses that do not move with the data."""
    logits, target = scene()
    logits.requires_grad_()
    value = of_logits("monte_carlo", logits, target)
    (gradient,) = torch.autograd.grad(value.sum(), logits)

    problem = pnp_problem()
    B, N = logits.shape[:2]

    def data(logits: Tensor) -> tuple[Tensor, ...]:
        heatmaps = read_heatmaps(logits)
        none, visible = logits.new_empty(B, 0), torch.ones(B, N, dtype=torch.bool)
        return heatmaps.points2d, target.points3d, target.K, none, 1 / heatmaps.deviation, visible

    with torch.no_grad():
        at = logits.detach()
        mode = _solved(data(at))
        drawn = sample_poses(problem, mode, *data(at), generator=generator(3))
        surrogate = lambda some: problem.costs(target.pose, *data(some)) + log_normaliser(problem, drawn, *data(some))
        torch.testing.assert_close(value.detach(), surrogate(at), rtol=1e-7, atol=1e-7)
        for seed in range(4):
            direction = torch.randn(at.shape, generator=generator(seed), **DOUBLE)
            slope = (gradient * direction).flatten(1).sum(1)
            wanted = (surrogate(at + 1e-4 * direction) - surrogate(at - 1e-4 * direction)) / 2e-4
            assert slope.abs().min() > 1e-3
            torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=0)


def _solved(data: tuple[Tensor, ...]) -> Tensor:
    from geometry import pnp

    points2d, points3d, K, _, weights, _ = data
    found = pnp(points2d, points3d, K, weights=weights)
    assert found.converged.all()
    return found.x


@WEIGHTED
def test_the_pose_loss_is_that_of_another_solver_s_pose(weighted: bool) -> None:
    logits, target = scene(B=3)
    heatmaps = read_heatmaps(logits)
    deviation = heatmaps.deviation * torch.linspace(0.3, 3, 14, **DOUBLE).view(7, 2)
    given = (heatmaps.points2d, deviation, target)
    paper = pose_loss("mixture", *given, weighted=weighted, balance="paper")
    robust = pose_loss("mixture", *given, weighted=weighted, balance="robust")
    for b in range(3):
        X, K, truth = (value[b].numpy() for value in (target.points3d, target.K, target.points2d))
        weights = 1 / deviation[b].numpy() if weighted else 1

        def projected(pose: np.ndarray, X: np.ndarray = X, K: np.ndarray = K) -> np.ndarray:
            return cv2.projectPoints(X, pose[:3], pose[3:], K, None)[0][:, 0]

        start = np.r_[Rotation.from_matrix(target.pose[b, :3, :3]).as_rotvec(), target.pose[b, :3, 3]]
        residual = lambda pose, b=b, w=weights, p=projected: (w * (p(pose) - heatmaps.points2d[b].numpy())).ravel()
        found = least_squares(residual, start, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14)
        off = np.linalg.norm(projected(found.x) - truth, axis=-1)
        assert paper[b].item() == pytest.approx((off**2).sum(), rel=1e-6)
        huber = np.where(off < 1, 0.5 * off**2, off - 0.5).mean()
        assert robust[b].item() == pytest.approx(huber, rel=1e-6)


@pytest.mark.parametrize("balance", ["paper", "robust"])
def test_keypoints_in_place_leave_nothing_to_lose(balance: Balance) -> None:
    _, target = scene()
    deviation = torch.ones_like(target.points2d)
    loss = pose_loss("mixture", target.points2d, deviation, target, weighted=True, balance=balance)
    assert loss.max() < 1e-5
    spread = pose_loss("linear_covariance", target.points2d, deviation, target, weighted=True, balance=balance)
    assert spread.abs().max() < 1e-5


def test_the_linear_covariance_loss_knows_no_unit_of_length() -> None:
    """In percent of the distance: a world twice as large looks the same."""
    logits, target = scene()
    pose = target.pose.clone()
    pose[:, :3, 3] *= 2
    larger = target._replace(points3d=2 * target.points3d, pose=pose)
    one, other = (of_logits("linear_covariance", logits, some) for some in (target, larger))
    torch.testing.assert_close(one, other)


# ---- what one sample may do ----


@pytest.mark.parametrize("name", ["mixture", "monte_carlo", "linear_covariance"])
@pytest.mark.parametrize("balance", ["paper", "robust"])
def test_a_sample_that_has_no_pose_teaches_nothing_and_leaves_the_others_alone(name: Loss, balance: Balance) -> None:
    """Keypoints on a line: the turn about it is anyone's."""
    logits, target = scene(B=3)
    points3d = target.points3d.clone()
    points3d[1] = torch.linspace(-40, 40, 7, **DOUBLE)[:, None] * torch.tensor([1.0, 0.5, 0.2], **DOUBLE)
    points2d = project(points3d, target.pose, target.K)
    broken = target._replace(points3d=points3d, points2d=points2d)
    logits[1] = 0  # and the maps say nothing, so that all are in one place
    logits.requires_grad_()
    kept = torch.tensor([0, 2])
    value = of_logits(name, logits, broken, balance=balance)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value[1] == 0
    assert (gradient[1] == 0).all()
    assert torch.isfinite(gradient).all()
    if name != "monte_carlo":  # whose draws depend on the sample's place
        alone = of_logits(name, logits[kept], rows(target, kept), balance=balance)
        (wanted,) = torch.autograd.grad(alone.sum(), logits)
        torch.testing.assert_close(value[kept], alone, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient[kept], wanted[kept], rtol=1e-9, atol=1e-12)
    assert gradient[kept].flatten(1).norm(dim=1).min() > 1e-6


def test_forces_below_the_bound_stay_and_larger_ones_shrink_to_it() -> None:
    """A loss that is linear in both inputs, whose slopes are known; N keypoints: at most 1 / sqrt(N)."""
    B, N = 5, 9
    slope = torch.randn(B, 2 * N * 2, generator=generator(), **DOUBLE)
    norms = torch.tensor([0.1, 1 / 3 - 1e-9, 1 / 3 + 1e-9, 5, 1e9], **DOUBLE)
    slope = (norms[:, None] * slope / slope.norm(dim=1, keepdim=True)).view(B, 2, N, 2)
    points2d, deviation = (torch.rand(B, N, 2, generator=generator(i), **DOUBLE).requires_grad_() for i in (1, 2))

    def loss(points2d: Tensor, deviation: Tensor) -> Tensor:
        return (slope * torch.stack([points2d, deviation], 1)).flatten(1).sum(1)

    value = pulled_at_most(loss, points2d, deviation)
    torch.testing.assert_close(value, loss(points2d, deviation), rtol=0, atol=0)
    outer = torch.tensor([1.0, 2, 3, 4, 5], **DOUBLE)  # what follows the loss does not change the bound
    found = torch.stack(torch.autograd.grad((outer * value).sum(), (points2d, deviation)), 1) / outer.view(B, 1, 1, 1)
    torch.testing.assert_close(found[:2], slope[:2], rtol=1e-14, atol=0)
    bounded = slope / (3 * norms).view(B, 1, 1, 1)
    torch.testing.assert_close(found[2:], bounded[2:], rtol=1e-8, atol=0)
    assert found.flatten(1).norm(dim=1).max() < 1 / 3 + 1e-12


def test_a_force_that_is_no_number_is_none() -> None:
    points2d, deviation = (torch.ones(3, 4, 2, **DOUBLE).requires_grad_() for _ in range(2))
    scale = torch.tensor([1.0, 0.0, 1.0], **DOUBLE).view(3, 1, 1)
    root = lambda points2d, deviation: 0.01 * (scale * points2d).sqrt().sum((1, 2))  # infinite slope at zero
    root_with_nan = lambda points2d, deviation: root(points2d, deviation) + 0 * deviation.sum((1, 2))
    gradient, _ = torch.autograd.grad(pulled_at_most(root_with_nan, points2d, deviation).sum(), (points2d, deviation))
    assert (gradient[1] == 0).all()
    torch.testing.assert_close(gradient[[0, 2]], torch.full((2, 4, 2), 0.005, **DOUBLE))


@WEIGHTED
@pytest.mark.parametrize("name", ["mixture", "linear_covariance"])
def test_the_robust_gradient_is_the_losses_own_unless_it_is_too_large(name: Loss, weighted: bool) -> None:
    """The same finite differences, in the keypoints and deviations, cut where they pass the bound."""
    _, target = scene(B=4)
    points3d = target.points3d.clone()
    points3d[3] *= torch.tensor([1.0, 0.02, 0.02], **DOUBLE)  # nearly a line: the turn about it is hardly anyone's
    K = target.K.clone()
    K[:, :2] *= 30 if name == "linear_covariance" else 1  # in larger pixels every force on it is above the bound
    target = target._replace(points3d=points3d, K=K, points2d=project(points3d, target.pose, K))
    off = 0.7 * torch.randn(4, 2, 7, 2, generator=generator(), **DOUBLE)
    off[3] *= 3  # and badly seen
    inputs = off + torch.stack([target.points2d, torch.full_like(off[:, 0], 6)], 1)
    inputs.requires_grad_()

    def loss(inputs: Tensor, row: Tensor) -> Tensor:
        return pose_loss(name, *inputs.unbind(1), rows(target, row), weighted=weighted, balance="robust")

    value = loss(inputs, torch.arange(4))
    (gradient,) = torch.autograd.grad(value.sum(), inputs)
    with torch.no_grad():
        own = numeric(loss, inputs.detach(), h=1e-5)
    norm, bound = own.flatten(1).norm(dim=1), 7**-0.5
    # (without weights PnP projects its keypoints orthogonally, but for curvature, which lengthens no force)
    assert (norm > 1.01 * bound).any() == (weighted or name == "linear_covariance")
    assert (norm < 0.99 * bound).any()
    wanted = own * (bound / norm).clamp(max=1).view(-1, 1, 1, 1)
    assert largest_error(gradient, wanted) < 1e-6


# ---- the losses of heatmaps ----


def gaussian(cell: np.ndarray, sigma: float) -> np.ndarray:
    u = np.arange(SIDE)
    x, y = (np.exp(-0.5 * ((u - cell[i]) / sigma) ** 2) for i in (0, 1))
    G = np.outer(y, x)
    return G / G.sum()


@pytest.mark.parametrize(
    ("name", "balance"),
    [("mixture", "robust"), ("mixture", "paper"), ("monte_carlo", "robust"), ("linear_covariance", "robust")],
)
def test_which_turn_of_a_body_of_revolution_is_called_the_truth_changes_nothing(name: Loss, balance: Balance) -> None:
    """Neither the loss nor its gradient, at any angle; and keypoints of a turned truth are no error."""
    _, target = scene(B=1)
    count = 12
    many = lambda value: value.expand(count, *value.shape[1:]).contiguous()
    turned = lambda angles: se3.make(
        se3.exp(angles[:, None] * torch.tensor([0.0, 0, 1], **DOUBLE)), torch.zeros(len(angles), 3, **DOUBLE)
    )
    symmetries = turned(2 * torch.pi * torch.arange(315, **DOUBLE) / 315).expand(count, -1, -1, -1)
    angles = torch.linspace(0, 6.2, count, **DOUBLE)
    points3d, K, pose = (many(value) for value in (target.points3d, target.K, target.pose))
    wrong = se3.retract(pose, torch.tensor([0.1, -0.15, 0.05, 4, -3, 20], **DOUBLE).expand(count, 6))
    noise = many(torch.randn(1, 7, 2, generator=generator(), **DOUBLE))
    deviation = many(2 + 3 * torch.rand(1, 7, 2, generator=generator(), **DOUBLE))

    def loss(points2d: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        points2d = points2d.detach().requires_grad_()
        value = pose_loss(
            name, points2d, deviation, Target(points3d, K, truth, project(points3d, truth, K)), weighted=True,
            balance=balance, symmetries=symmetries, generator=generator(4),
        )  # fmt: skip
        return value.detach(), torch.autograd.grad(value.sum(), points2d)[0]

    estimate = project(points3d, wrong, K) + noise
    values, gradients = loss(estimate, pose)
    same, alike = loss(estimate, pose @ turned(angles))
    torch.testing.assert_close(same, values, rtol=1e-4, atol=0)
    assert (alike - gradients).norm() < 1e-4 * gradients.norm()
    if name == "mixture":
        assert loss(project(points3d, pose @ turned(angles), K), pose)[0].max() < 1e-4 * values.min()


def test_the_heatmap_loss_is_the_divergence_from_gaussians() -> None:
    logits, target = scene()
    cells = cells_of(target.points2d)
    found = heatmap_loss(logits, cells, 1.3)
    for b in range(2):
        each = []
        for n in range(7):
            G = gaussian(cells[b, n].numpy(), 1.3)
            P = np.exp(logits[b, n].numpy())
            P /= P.sum()
            each.append((G * np.log(G / P)).sum())
        assert found[b].item() == pytest.approx(np.mean(each), rel=1e-9)
    exact = torch.from_numpy(np.stack([[np.log(gaussian(c, 1.3)) for c in some] for some in cells.numpy()]))
    assert heatmap_loss(exact + 5, cells, 1.3).abs().max() < 1e-12  # a constant more changes no softmax


def test_the_regularisation_is_the_distance_from_one_peak_of_the_known_width() -> None:
    logits, _ = scene(noise=0.8)
    heatmaps = read_heatmaps(logits)
    found = regularisation(heatmaps, 1.1)
    cells = cells_of(heatmaps.points2d).numpy()
    for b in range(2):
        each = []
        for n in range(7):
            P, G = heatmaps.probability[b, n].numpy(), gaussian(cells[b, n], 1.1)
            M = (P + G) / 2
            each.append(0.5 * (P * np.log(P / M)).sum() + 0.5 * (G * np.log(G / M)).sum())
        assert found[b].item() == pytest.approx(np.mean(each), rel=1e-9)
    peak = torch.from_numpy(np.log(gaussian(np.array([6.3, 5.2]), 1.1)))[None, None]
    assert regularisation(read_heatmaps(peak), 1.1) < 1e-6
    assert regularisation(read_heatmaps(peak), 2.2) > 0.1


@pytest.mark.parametrize("loss", ["heatmap", "regularisation"])
def test_gradients_of_the_heatmaps_losses_are_finite_differences(loss: str) -> None:
    logits, target = scene(N=4)
    cells = cells_of(target.points2d)

    def value(some: Tensor, row: Tensor) -> Tensor:
        if loss == "heatmap":
            return heatmap_loss(some, cells[row], 1.3)
        return regularisation(read_heatmaps(some), 1.3)

    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(value(logits, torch.arange(2)).sum(), logits)
    with torch.no_grad():
        wanted = numeric(value, logits)
    assert largest_error(gradient, wanted) < 1e-7


def test_ramp() -> None:
    assert [ramp(p, (0.2, 0.6)) for p in (0.0, 0.2, 0.3, 0.5, 0.6, 1.0)] == pytest.approx([0, 0, 0.25, 0.75, 1, 1])
    assert [ramp(p, (0.5, 0.5)) for p in (0.4, 0.5, 0.6)] == pytest.approx([0, 0, 1])


def test_regularisation_of_the_least_of_probabilities() -> None:
    """Numbers so small that half of them is zero."""
    logits = torch.full((1, 1, 32, 32), -200.0)
    logits[0, 0, 28, 28] = 0
    logits[0, 0, 0] = torch.linspace(-103.9, -102.8, 32)  # about the least number of float32, far from the peak
    logits.requires_grad_()
    heatmaps = read_heatmaps(logits)
    assert ((heatmaps.probability > 0) & (heatmaps.probability < torch.finfo(torch.float32).tiny)).any()
    loss = regularisation(heatmaps, 1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
