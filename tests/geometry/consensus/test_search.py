"""RANSAC: the inliers are found, the weights decide who is drawn, and the score is what it says."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geometry import Problem, Status, geman_mcclure, minimize, pnp, pnp_problem, project, ransac, se3
from geometry.consensus.minimal import line, line_problem
from geometry.consensus.search import search, truncated
from tests.numbers import generator

module = importlib.import_module("geometry.consensus.search")
torch.set_num_threads(1)


# ---- PnP ----


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6])
def test_a_pose_is_found_among_outliers(make_scene: Callable[..., Any], share: float) -> None:
    B, N = 3, 50
    scene = make_scene(B, N, 0.3, seed=1)
    outlier = torch.stack([torch.randperm(N, generator=generator(b)) < share * N for b in range(B)])
    wild = torch.rand(B, N, 2, generator=generator(9), dtype=torch.float64) * torch.tensor([640.0, 480.0])
    points2d = torch.where(outlier[..., None], wild, scene.points2d)

    def four_points(index: Tensor) -> Tensor:
        rows = torch.arange(B)[:, None, None]
        sampled = (points2d[rows, index].flatten(0, 1), scene.points3d[rows, index].flatten(0, 1))
        return pnp(*sampled, scene.K).x.unflatten(0, (B, -1))

    data = (points2d, scene.points3d, scene.K[None], scene.K.new_zeros(1, 0), torch.ones(1, N, 2).double())
    mask = torch.ones(1, N, dtype=torch.bool)
    found = ransac(
        pnp_problem(),
        four_points,
        *data,
        mask,
        candidates=torch.ones(B, N, dtype=torch.float64),
        size=4,
        threshold=4.0,
        hypotheses=300,
        generator=generator(),
    )
    assert found.converged.all()
    truth = scene.world_to_camera_gt
    angle = se3.rotation_angle(found.x[:, :3, :3] @ truth[:, :3, :3].mT)  # type: ignore[index]
    assert torch.rad2deg(angle).max() < 0.5
    error = (project(scene.points3d, found.x, scene.K) - points2d).norm(dim=-1)  # type: ignore[arg-type]
    torch.testing.assert_close(found.cost, 0.5 * error.clamp(max=4.0).square().sum(1))
    assert not (error[outlier & (wild - scene.points2d).norm(dim=-1).gt(30)] < 4).any()

    # refined with a robust kernel it is the pose of the inliers alone, up to the pull that is left of the outliers
    refined = minimize(pnp_problem(kernel=geman_mcclure(4.0)), found.x, *data, mask)
    inliers_only = pnp(points2d, scene.points3d, scene.K, mask=~outlier).x
    angle = se3.rotation_angle(refined.x[:, :3, :3] @ inliers_only[:, :3, :3].mT)  # type: ignore[index]
    assert torch.rad2deg(angle).max() < 0.05


# ---- a line, where everything can be counted by hand ----


def residual(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return x[0] + x[1] * t - y


LINE = Problem(residual, dof=2)


class Lines:
    """B lines through N noisy points, the first `wrong` of which are off; the drawn indices are kept."""

    def __init__(self, B: int = 2, N: int = 40, wrong: int = 16) -> None:
        g = generator(5)
        self.t = torch.linspace(-1, 1, N, dtype=torch.float64)[torch.randperm(N, generator=g)].expand(B, N)
        self.truth = torch.tensor([[1.0, -2.0], [0.3, 5.0]], dtype=torch.float64)[:B]
        self.y = self.truth[:, :1] + self.truth[:, 1:] * self.t
        self.y = self.y + 0.01 * torch.randn(B, N, generator=g, dtype=torch.float64)
        self.y[:, :wrong] += 3 + torch.rand(B, wrong, generator=g, dtype=torch.float64)
        self.drawn: list[Tensor] = []

    def solver(self, index: Tensor) -> Tensor:
        self.drawn.append(index)
        rows = torch.arange(len(self.t))[:, None, None]
        t, y = self.t[rows, index], self.y[rows, index]
        slope = (y[..., 1] - y[..., 0]) / (t[..., 1] - t[..., 0])
        return torch.stack([y[..., 0] - slope * t[..., 0], slope], -1)

    def ransac(self, candidates: Tensor | None = None, seed: int | None = 0, **options: Any) -> Any:
        candidates = torch.ones_like(self.t) if candidates is None else candidates
        options = {"size": 2, "threshold": 0.05, "hypotheses": 64, "refine": 0, **options}
        g = None if seed is None else generator(seed)
        return ransac(LINE, self.solver, self.t, self.y, candidates=candidates, generator=g, **options)


def test_the_best_score_of_all_hypotheses_wins() -> None:
    lines = Lines()
    found = lines.ransac()
    (index,) = lines.drawn
    assert index.shape == (2, 64, 2)
    for b in range(2):
        t, y = lines.t[b].numpy(), lines.y[b].numpy()
        scores = []
        for i, j in index[b].tolist():
            assert i != j
            line = np.polyfit(t[[i, j]], y[[i, j]], 1)
            scores.append(0.5 * np.minimum(np.square(np.polyval(line, t) - y), 0.05**2).sum())
        assert found.cost[b].item() == pytest.approx(min(scores), rel=1e-9)
        i, j = index[b, int(np.argmin(scores))].tolist()
        np.testing.assert_allclose(found.x[b], np.polyfit(t[[i, j]], y[[i, j]], 1)[::-1], rtol=1e-9)
    assert found.converged.all()
    torch.testing.assert_close(found.x, lines.truth, rtol=0, atol=0.05)


def test_what_has_weight_zero_is_never_drawn_and_never_counts() -> None:
    lines = Lines(wrong=16)
    weights = torch.rand(lines.t.shape, generator=generator(1), dtype=torch.float64) + 0.1
    weights[:, :16] = 0
    weights[1, 30:] = 0
    before = lines.ransac(weights, hypotheses=500, refine=2)
    index = torch.cat(lines.drawn, 1)
    assert (weights.gather(1, index.flatten(1)) > 0).all()
    lines.y[:, :16] = torch.inf
    lines.y[1, 30:] = torch.nan
    after = lines.ransac(weights, hypotheses=500, refine=2)
    assert torch.equal(before.x, after.x)
    assert torch.equal(before.cost, after.cost)
    assert torch.equal(before.inliers, after.inliers)
    assert not (after.inliers & (weights == 0)).any()


def test_right_weights_find_what_uniform_ones_miss() -> None:
    lines = Lines(wrong=36)
    likely = torch.full_like(lines.t, 0.01)
    likely[:, 36:] = 1
    found = lines.ransac(likely, hypotheses=32)
    torch.testing.assert_close(found.x, lines.truth, rtol=0, atol=0.05)
    assert (lines.ransac(hypotheses=32).x - lines.truth).abs().max() > 0.5


def test_too_few_inliers_are_reported() -> None:
    lines = Lines()
    lines.y[1] = torch.randn(40, generator=generator(2), dtype=torch.float64) * 1e6
    weights = torch.ones_like(lines.t)
    found = lines.ransac(weights, threshold=1e-12)
    assert (found.status == Status.TOO_FEW).all()  # the two of the sample themselves say nothing
    assert (found.inliers.sum(1) == 2).all()
    found = lines.ransac(weights)
    assert found.status[0] == Status.CONVERGED
    weights[1, 1:] = 0
    found = lines.ransac(weights)
    assert found.status.tolist() == [Status.CONVERGED, Status.TOO_FEW]
    weights[1] = 0
    found = lines.ransac(weights)
    assert found.status.tolist() == [Status.CONVERGED, Status.TOO_FEW]
    torch.testing.assert_close(found.x[0], lines.truth[0], rtol=0, atol=0.05)


def test_a_solver_that_gives_nothing_is_too_few() -> None:
    lines = Lines()
    found = ransac(
        LINE,
        lambda index: torch.full((*index.shape[:2], 2), 1e9, dtype=torch.float64),
        lines.t,
        lines.y,
        candidates=torch.ones_like(lines.t),
        size=2,
        threshold=0.05,
    )
    assert (found.status == Status.TOO_FEW).all()
    torch.testing.assert_close(found.cost, torch.full((2,), 0.5 * 40 * 0.05**2).double())


def test_a_hypothesis_that_is_not_a_number_never_wins() -> None:
    lines = Lines()

    def mostly_broken(index: Tensor) -> Tensor:
        x = lines.solver(index).clone()
        x[:, 1::2] = torch.nan
        x[:, 0::4] = torch.inf
        return x

    found = ransac(
        LINE,
        mostly_broken,
        lines.t,
        lines.y,
        candidates=torch.ones_like(lines.t),
        size=2,
        threshold=0.05,
        generator=generator(),
    )
    assert found.converged.all()
    torch.testing.assert_close(found.x, lines.truth, rtol=0, atol=0.05)


def test_a_generator_makes_it_repeatable() -> None:
    lines = Lines()
    state = torch.get_rng_state()
    one, again, other = lines.ransac(seed=0), lines.ransac(seed=0), lines.ransac(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x, again.x)
    assert torch.equal(one.cost, again.cost)
    assert torch.equal(lines.drawn[0], lines.drawn[1])
    assert not torch.equal(lines.drawn[0], lines.drawn[2])
    assert not torch.equal(one.x, other.x)
    torch.manual_seed(0)
    first = lines.ransac(seed=None)
    torch.manual_seed(0)
    assert torch.equal(lines.ransac(seed=None).x, first.x)


# ---- rounds, refinement, inliers ----


def test_enough_is_enough_when_the_confidence_says_so() -> None:
    """Of n = 50 the model fits k: a sample of two is right with probability k (k-1) / (n (n-1))."""
    n, counts = 50, torch.tensor([50, 20, 5, 1])
    for confidence in (0.9, 0.9999):
        rounds: list[int] = []

        def attempt(begin: int, H: int, running: Tensor, rounds: list[int] = rounds) -> tuple[Tensor, Tensor]:
            assert begin == sum(rounds)
            rounds.append(H)
            return torch.full((4,), n), counts.double()

        samples = search(attempt, 4, 2, 5000, confidence, counts.device)
        chance = (counts * (counts - 1) / (n * (n - 1))).double()
        needed = (math.log(1 - confidence) / torch.log1p(-chance.clamp(1e-12, 1 - 1e-12))).clamp(1, 5000)
        assert (samples >= needed.floor()).all()
        # rounds of 64 or half of what was drawn before
        assert (samples <= (1.5 * needed + 64)).all()
        assert samples[0] == 64
        assert samples[3] == 5000
        assert sum(rounds) == 5000
    every = lambda begin, H, running: (torch.full((4,), n), counts.double())
    assert (search(every, 4, 2, 300, 1.0, counts.device) == 300).all()
    few = lambda begin, H, running: (torch.tensor([1, 9]), torch.tensor([1.0, 0.0]))
    assert search(few, 2, 2, 300, 0.99, counts.device).tolist() == [64, 300]


def test_a_batch_is_a_loop_with_one_generator() -> None:
    """Every problem takes one number of the generator, however many rounds the others need."""
    lines = Lines(wrong=16)
    lines.y[1, :34] += 3 + 9 * torch.rand(34, generator=generator(7), dtype=torch.float64)

    def of(lines: Lines, g: torch.Generator) -> Any:
        options: dict[str, Any] = {"size": 2, "threshold": 0.05, "hypotheses": 300, "refine": 0}
        return ransac(LINE, lines.solver, lines.t, lines.y, candidates=torch.ones_like(lines.t), generator=g, **options)

    g, h = generator(), generator()
    both = of(lines, g)
    assert both.steps[0] < both.steps[1]
    for b in range(2):
        alone = Lines(wrong=16)
        alone.t, alone.y = lines.t[b : b + 1], lines.y[b : b + 1]
        one = of(alone, h)
        torch.testing.assert_close(one.x[0], both.x[b], rtol=1e-12, atol=1e-12)
        assert torch.equal(one.inliers[0], both.inliers[b])
        assert one.steps[0] == both.steps[b]
    assert torch.equal(g.get_state(), h.get_state())


def test_refinement_ends_at_the_least_squares_line_of_its_inliers() -> None:
    lines = Lines()
    rough, found = lines.ransac(hypotheses=10), lines.ransac(hypotheses=10, refine=2)
    assert (found.cost < rough.cost).all()
    for b in range(2):
        rows = found.inliers[b]
        assert 20 <= rows.sum() <= 24
        assert not rows[:16].any()
        fit = np.polyfit(lines.t[b, rows].numpy(), lines.y[b, rows].numpy(), 1)[::-1]
        np.testing.assert_allclose(found.x[b], fit, rtol=1e-8, atol=1e-8)
    r = (found.x[:, :1] + found.x[:, 1:] * lines.t - lines.y).abs()
    assert torch.equal(found.inliers, r <= 0.05)
    torch.testing.assert_close(found.cost, 0.5 * r.clamp(max=0.05).square().sum(1))


def test_the_lowest_of_many_minima_is_found() -> None:
    """Noise not much below the threshold makes a score of many minima; its lowest is known from all pairs of points."""
    B, N, g = 100, 60, generator(5)
    t = 2 * torch.rand(N, generator=g, dtype=torch.float64) - 1
    points = torch.stack([t, torch.zeros_like(t)], -1) + 0.07 * torch.randn(N, 2, generator=g, dtype=torch.float64)
    wild = torch.rand(N, 2, generator=g, dtype=torch.float64) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.5])
    points = torch.where(torch.arange(N)[:, None] < 24, points, wild)
    pairs = line(points[torch.combinations(torch.arange(N))])
    target = truncated(line_problem, 0.1)
    every = [points.expand(len(pairs), -1, -1), torch.ones(len(pairs), N, dtype=torch.bool)]
    lowest = minimize(target, pairs, *every).cost.min()
    found = ransac(
        line_problem, lambda index: line(points[index]), points.expand(B, -1, -1),
        candidates=torch.ones(B, N, dtype=torch.float64), size=2, threshold=0.1, generator=generator(),
    )  # fmt: skip
    assert (found.cost < 1.02 * lowest).all()


def test_what_looks_alike_is_looked_at() -> None:
    """Either sign of x explains the data, the wrong one a little worse; no descent leads from the one to the other."""
    t = torch.linspace(0.5, 2, 30, dtype=torch.float64)[None]
    y = t + 0.02 * torch.randn(1, 30, generator=generator(), dtype=torch.float64) + torch.where(t > 1.8, 1.0, 0.0)
    problem = Problem(lambda x, t, y: torch.where(x > 0, 1.0, 0.9) * (x.square() * t - y), dof=1)
    solver = lambda index: torch.ones(1, 1, 1, dtype=torch.float64).expand(1, index.shape[1], 1)
    options: dict[str, Any] = {"candidates": torch.ones_like(t), "size": 1, "threshold": 0.1, "hypotheses": 1}
    plain = ransac(problem, solver, t, y, **options)
    both = ransac(problem, solver, t, y, alternative=lambda x, inliers: -x, **options)
    assert plain.x.item() == pytest.approx(1, abs=0.01)
    assert both.x.item() == pytest.approx(-plain.x.item(), rel=1e-6)
    assert both.cost < plain.cost


def test_the_score_counts_what_is_absent_nothing_and_what_is_infinite_in_full() -> None:
    target = truncated(Problem(lambda x, r: r * x, dof=1), 2.0)
    r = torch.tensor([1.0, 3.0, torch.inf, torch.nan, 0.5], dtype=torch.float64)
    x, present = torch.ones(1, dtype=torch.float64), torch.tensor([True, True, True, True, False])
    assert target.cost(x, r, present).item() == 0.5 * (1 + 4 + 4 + 4)
    slope = torch.func.jacfwd(target.residual)(x, r, present)
    assert torch.equal(slope[:, 0, 0], torch.tensor([1.0, 3, 0, 0, 0], dtype=torch.float64))


def test_memory_is_bounded_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines()
    whole = lines.ransac(refine=2)
    monkeypatch.setattr(module, "_AT_ONCE", 100)
    parts = lines.ransac(refine=2)
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [{"confidence": 0.0}, {"confidence": 1.5}, {"hypotheses": 0}, {"refine": -1}])
def test_an_option_that_makes_no_sense_is_a_mistake(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must"):
        Lines().ransac(**bad)


def test_the_result_carries_no_gradient() -> None:
    lines = Lines()
    lines.y = lines.y.requires_grad_()
    found = lines.ransac()
    assert not found.x.requires_grad
    assert not found.cost.requires_grad


def test_x_may_be_a_tuple_and_rows_may_be_vectors() -> None:
    lines = Lines()
    pairs = Problem(
        lambda x, t, y: torch.stack([residual(torch.stack(x), t, y), 0 * t], -1),
        dof=2,
        retract=lambda x, step: (x[0] + step[0], x[1] + step[1]),
    )
    found = ransac(
        pairs,
        lambda index: lines.solver(index).unbind(-1),
        lines.t,
        lines.y,
        candidates=torch.ones_like(lines.t),
        size=2,
        threshold=0.05,
        hypotheses=64,
        generator=generator(),
    )
    torch.testing.assert_close(torch.stack(found.x, -1), lines.ransac(refine=2).x)


def test_a_sample_larger_than_the_data_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="number of observations 40, got 41"):
        Lines().ransac(size=41)
    lines = Lines()
    with pytest.raises(ValueError, match="leading size"):
        ransac(
            LINE, lines.solver, lines.t[:1].expand(3, -1), lines.y, candidates=torch.ones(2, 40), size=2, threshold=1
        )
