"""Sets of poses hold the truth as often as is asked for, whatever the errors; their sizes and gradients are right."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from geometry import PoseSet, conformal_level, geman_mcclure, pnp, pose_covariance, pose_set, project, se3
from tests.numbers import DOUBLE, central_difference, close, generator

K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)
N = 10
POINTS = 2 * torch.rand(N, 3, generator=generator(), **DOUBLE) - 1
SIGMA = torch.tensor([0.5] * 5 + [6.0] * 5, **DOUBLE)


class Views(NamedTuple):
    points2d: Tensor
    pose: Tensor


def views(B: int, seed: int, tail: float = 3.0) -> Views:
    """Every second keypoint is bad, all have tails (Student's, of so many degrees), and their errors go together."""
    g = generator(seed)
    spread = torch.tensor([0.5, 0.5, 0.5, 0.3, 0.3, 1.0], **DOUBLE)
    pose = se3.from_rotvec_t(spread * torch.randn(B, 6, generator=g, **DOUBLE) + torch.tensor([0, 0, 0, 0, 0, 6.0]))
    noise = torch.randn(B, N, 2, generator=g, **DOUBLE) + 0.5 * torch.randn(B, 1, 2, generator=g, **DOUBLE)
    chi2 = torch.randn(B, N, 1, int(tail), generator=g, **DOUBLE).square().sum(-1)
    return Views(project(POINTS, pose, K) + SIGMA[:, None] * noise * (tail / chi2).sqrt(), pose)


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("how", ["plain", "weights", "wrong weights", "kernel"])
def test_sets_hold_the_truth_as_often_as_is_asked_for(how: str, coverage: float) -> None:
    weights = {"weights": 1 / SIGMA, "wrong weights": SIGMA}.get(how)
    kernel = geman_mcclure(5.0) if how == "kernel" else None
    known, new = views(2000, 1), views(4000, 2)
    sets = pose_set(known.points2d, POINTS, K, weights=weights, kernel=kernel)
    level = conformal_level(sets.excess(known.pose), coverage)
    held = pose_set(new.points2d, POINTS, K, weights=weights, kernel=kernel).contains(new.pose, level)
    deviation = math.sqrt(coverage * (1 - coverage) * (1 / 2000 + 1 / 4000))
    assert abs(held.double().mean() - coverage) < 3 * deviation


def test_a_level_is_the_order_statistic_that_the_theorem_asks_for() -> None:
    """Of exchangeable scores the new one is as likely at every rank: the coverage is k / (n + 1) exactly."""
    g = generator(3)
    for n, coverage in ((9, 0.9), (19, 0.9), (20, 0.5), (99, 0.95)):
        scores = torch.randn(20000, n + 1, generator=g, **DOUBLE)
        levels = torch.func.vmap(conformal_level, in_dims=(0, None))(scores[:, :n], coverage)
        share = (scores[:, n] <= levels).double().mean().item()
        expected = math.ceil((n + 1) * coverage - 1e-9) / (n + 1)
        assert abs(share - expected) < 4 * math.sqrt(0.25 / 20000)
    assert conformal_level(torch.arange(8.0), 0.9) == torch.inf
    assert conformal_level(torch.tensor([math.nan, 1.0, 2.0]), 0.7) == torch.inf
    assert conformal_level(torch.tensor([math.nan, 1.0, 2.0]), 0.5) == 2
    with pytest.raises(ValueError, match=r"^scores must have shape \(n,\), got \(2, 3\)"):
        conformal_level(torch.zeros(2, 3), 0.5)


def test_volume_is_that_of_the_ellipsoid_and_of_the_set_where_it_is_small() -> None:
    given = views(6, 4)
    pixels = project(POINTS, given.pose, K) + 1e-3 * torch.randn(6, N, 2, generator=generator(5), **DOUBLE)
    sets, level = pose_set(pixels, POINTS, K), 1e-5
    C = pose_covariance(pixels, POINTS, K, sets.x, sigma=1.0)
    close(sets.log_volume(level), math.log(math.pi**3 / 6) + 0.5 * torch.logdet(2 * level * C), 1e-9)
    # along any direction the set ends where the ellipsoid does
    L = torch.linalg.cholesky(2 * level * C)
    for seed in range(10):
        ray = torch.nn.functional.normalize(torch.randn(6, 6, generator=generator(seed), **DOUBLE), dim=-1)
        step = (L @ ray[..., None])[..., 0]
        for length, inside in ((0.98, True), (1.02, False)):
            assert (sets.contains(se3.retract(sets.x, length * step), level) == inside).all()


def test_sets_do_not_depend_on_origin_unit_or_the_scale_of_weights() -> None:
    given = views(50, 6)
    sets = pose_set(given.points2d, POINTS, K, weights=1 / SIGMA)
    excess, volume = sets.excess(given.pose), sets.log_volume(3.0)
    scaled = pose_set(given.points2d, POINTS, K, weights=10 / SIGMA)
    close(scaled.excess(given.pose), 100 * excess, 0, 1e-8)
    close(scaled.log_volume(300.0), volume, 1e-9)
    origin = torch.tensor([3e3, -2e3, 500.0], **DOUBLE)
    pose = given.pose.clone()
    pose[:, :3, 3] = 100 * (pose[:, :3, 3] - pose[:, :3, :3] @ origin)
    moved = pose_set(given.points2d, 100 * (POINTS + origin), K, weights=1 / SIGMA)
    close(moved.excess(pose), excess, 1e-5, 1e-6)
    close(moved.log_volume(3.0), volume + 3 * math.log(100), 1e-7)


def test_gradients_of_scores_and_volumes() -> None:
    given = views(3, 7, tail=30.0)
    weights = (1 / SIGMA).expand(3, N).clone().requires_grad_()
    pixels, points, camera = (
        given.points2d.requires_grad_(),
        POINTS.clone().requires_grad_(),
        K.clone().requires_grad_(),
    )
    data = {"points2d": pixels, "points3d": points, "K": camera, "weights": weights}
    g = generator(8)
    direction = {n: torch.randn(t.shape, generator=g, **DOUBLE) for n, t in data.items()}
    direction["K"][2] = 0
    best = pose_set(**data).x  # type: ignore[arg-type]

    def moved(name: str, h: float) -> PoseSet:
        return pose_set(**{n: (t + h * direction[n] if n == name else t).detach() for n, t in data.items()})  # type: ignore[arg-type]

    sets = pose_set(**data)  # type: ignore[arg-type]
    slopes = torch.autograd.grad(sets.excess(given.pose).sum(), list(data.values()), retain_graph=True)
    for (name, _), slope in zip(data.items(), slopes, strict=True):

        def excess(h: float, name: str = name) -> Tensor:
            return moved(name, h).excess(given.pose).sum()

        expected = central_difference(excess, 1e-5)
        close((slope * direction[name]).sum(), expected, 1e-5 * abs(float(expected)) + 1e-7)
    # x is held: what the volume's gradient leaves out is the way of x
    (slope,) = torch.autograd.grad(sets.log_volume(2.0).sum(), [weights])

    def held(h: float) -> Tensor:
        C = pose_covariance(
            pixels.detach(), POINTS, K, best, weights=(weights + h * direction["weights"]).detach(), sigma=1.0
        )
        return 0.5 * torch.logdet(C).sum()

    close((slope * direction["weights"]).sum(), central_difference(held, 1e-6), 1e-6)


def test_views_that_tell_no_pose_have_every_pose_and_leave_the_others() -> None:
    given = views(4, 9)
    mask = torch.ones(4, N, dtype=torch.bool)
    mask[1, 3:] = False
    weights = torch.ones(4, N, **DOUBLE, requires_grad=True)
    sets = pose_set(given.points2d, POINTS, K, weights=weights, mask=mask)
    assert sets.converged.tolist() == [True, False, True, True]
    assert sets.contains(given.pose.flip(0), 0.0)[1]
    assert sets.log_volume(1.0)[1] == torch.inf
    alone = pose_set(given.points2d[2:], POINTS, K)
    close(sets.excess(given.pose)[2:], alone.excess(given.pose[2:]), 1e-9)
    sets.excess(given.pose).sum().backward()
    assert weights.grad is not None
    assert (weights.grad[1] == 0).all()
    assert (weights.grad[0] != 0).any()
    behind = given.pose.clone()
    behind[:, 2, 3] = -6
    assert (sets.excess(behind)[[0, 2, 3]] == torch.inf).all()


def test_no_views_have_no_sets() -> None:
    given = views(1, 9)
    sets = pose_set(given.points2d[:0], POINTS, K)
    assert sets.log_volume(1.0).shape == sets.excess(given.pose[:0]).shape == (0,)


def test_a_second_minimum_belongs_to_the_set() -> None:
    flat = POINTS * torch.tensor([1.0, 1, 0], **DOUBLE)
    pose = se3.from_rotvec_t(torch.tensor([[0.25, 0.1, 0, 0, 0, 25.0]], **DOUBLE))
    pixels = project(flat, pose, K) + 0.5 * torch.randn(1, N, 2, generator=generator(10), **DOUBLE)
    found = pnp(pixels, flat, K)
    assert found.ratio is not None
    assert found.second is not None
    assert found.ratio > 0.5
    excess = pose_set(pixels, flat, K).excess(found.second)
    close(excess, found.cost / found.ratio - found.cost, 1e-6)


def test_weights_learned_for_small_sets_tell_good_points_from_bad() -> None:
    """And the coverage on new views stays what was asked for."""
    log_weights = torch.zeros(N, **DOUBLE, requires_grad=True)
    optimiser = torch.optim.Adam([log_weights], lr=0.1)
    volumes = []
    for step in range(40):
        batch = views(256, 100 + step)
        sets = pose_set(batch.points2d, POINTS, K, weights=log_weights.exp())
        level = conformal_level(sets.excess(batch.pose)[:128], 0.9)
        loss = sets.log_volume(level)[128:].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        volumes.append(loss.item())

    def size(weights: Tensor | None) -> float:
        known, new = views(2000, 11), views(2000, 12)
        level = conformal_level(pose_set(known.points2d, POINTS, K, weights=weights).excess(known.pose), 0.9)
        sets = pose_set(new.points2d, POINTS, K, weights=weights)
        assert abs(sets.contains(new.pose, level).double().mean() - 0.9) < 3 * math.sqrt(0.09 / 1000)
        return float(sets.log_volume(level).mean())

    learned, ideal, none = size(log_weights.detach().exp()), size(1 / SIGMA), size(None)
    assert none - ideal > 3
    assert learned < ideal + 0.3 * (none - ideal)
    learned_ratio = (log_weights[:5].mean() - log_weights[5:].mean()).exp()
    assert learned_ratio > 3
