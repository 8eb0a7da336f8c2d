import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from experiments import gradient_comparison
from experiments.gradient_comparison import ONLY, PRESETS, Runs, choose_rate, main, oracle, train
from experiments.gradients.measures import gradient_errors, numeric, problems, right_way
from experiments.gradients.methods import LAYERS, METHODS, STOCHASTIC, UNWEIGHTED, Method, View, displacement
from experiments.gradients.networks import LargeRefiner, Refiner
from experiments.gradients.outcomes import Interval, Outcome, Trace, across, chosen, interval
from experiments.gradients.report import advice_table, brackets, everywhere, report, verdict
from experiments.gradients.scenes import POINTS, REGIMES, Regime, Scene, make_scene
from experiments.records.files import write_json
from geometry import pnp, project, se3

SMOKE = PRESETS["smoke"]


def losses(method: Method, view: View) -> Tensor:
    return METHODS[method](view._replace(generator=torch.Generator().manual_seed(3)))


@pytest.fixture(scope="module")
def noisy() -> tuple[View, Tensor]:
    return problems(6, 4.0, 1)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite_and_reach_what_the_method_learns(method: Method, noisy: tuple[View, Tensor]) -> None:
    view, _ = noisy
    points2d, log_weights = view.points2d.clone().requires_grad_(), view.log_weights.clone().requires_grad_()
    loss = losses(method, view._replace(points2d=points2d, log_weights=log_weights))
    assert loss.shape == (6,)
    by_points, by_weights = torch.autograd.grad(loss.sum(), (points2d, log_weights), allow_unused=True)
    assert torch.isfinite(by_points).all()
    assert (by_points.flatten(1).norm(dim=1) > 0).all()
    if method in UNWEIGHTED:
        assert by_weights is None
    else:
        assert torch.isfinite(by_weights).all()
        assert (by_weights.norm(dim=1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_as_its_views(method: Method, noisy: tuple[View, Tensor]) -> None:
    view, _ = noisy
    if method in STOCHASTIC:  # each view would have draws of its own
        first, again = losses(method, view), losses(method, view)
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        return
    both = losses(method, view)
    for i in range(len(both)):
        one = view._replace(
            points2d=view.points2d[i : i + 1], log_weights=view.log_weights[i : i + 1], pose_gt=view.pose_gt[i : i + 1]
        )
        # what is unrolled ends where the cost can no longer tell, and is not polished
        rtol = 1e-6 if method == "unrolled" else 1e-9
        torch.testing.assert_close(losses(method, one)[0], both[i], rtol=rtol, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("exact", 0.0, 1e-6),
        ("unweighted", 0.0, 1e-6),
        ("linear_covariance", 0.0, 1e-6),
        ("reprojection", 0.0, 1e-6),
        ("likelihood", 0.0, 1e-6),
        ("unrolled", 0.0, 1e-2),
        ("gauss_newton", 1e-3, 0.2),
        ("published", 0.01, 0.5),
        ("epro_pnp", 0.01, 1.0),
        ("epro_pnp_full", 0.01, 1.0),
        ("dsac", 0.05, 10.0),
        ("nabla_ransac", 0.05, 10.0),
    ],
)
def test_gradients_against_finite_differences(
    method: Method, low: float, high: float, noisy: tuple[View, Tensor]
) -> None:
    error = gradient_errors(method, noisy[0], draws=16).median()
    assert low <= error < high


def test_weights_have_the_exact_gradient(noisy: tuple[View, Tensor]) -> None:
    view, _ = noisy
    log_weights = view.log_weights.clone().requires_grad_()
    (found,) = torch.autograd.grad(losses("exact", view._replace(log_weights=log_weights)).sum(), log_weights)
    step = 1e-4
    for i in (0, 7):
        move = step * torch.eye(view.log_weights.shape[1], dtype=found.dtype)[i]
        up, down = (losses("exact", view._replace(log_weights=view.log_weights + s * move)) for s in (1, -1))
        torch.testing.assert_close(found[:, i], (up - down) / (2 * step), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", LAYERS)
def test_the_layers_have_the_same_loss(method: Method, noisy: tuple[View, Tensor]) -> None:
    view, _ = noisy  # uniform weights: the published one knows no others
    torch.testing.assert_close(losses(method, view), losses("exact", view), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1.0, 5.0, 20.0])
def test_right_way(noise: float) -> None:
    view, truth = problems(64, noise, 2)
    share = {method: right_way(method, view, truth) for method in METHODS}
    for method in ("linear_covariance", "reprojection", "likelihood"):
        assert share[method] > 0.95, method
    for method in (*LAYERS, "unweighted"):
        assert 0.5 < share[method] < 0.7, method
    assert 0.5 < share["epro_pnp"] < 0.9


def test_towards_is_towards() -> None:
    view, truth = problems(4, 5.0, 0)
    assert right_way("reprojection", view, truth) == 1.0
    assert right_way("reprojection", view, 2 * view.points2d - truth) == 0.0


def test_finite_differences_of_a_known_gradient(noisy: tuple[View, Tensor]) -> None:
    view, truth = noisy
    known = 2 * (view.points2d - truth) / truth.shape[1]
    torch.testing.assert_close(numeric(METHODS["reprojection"], view), known, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("regime", REGIMES)
def test_scenes(regime: Regime) -> None:
    setting = REGIMES[regime]
    scene, again = make_scene(regime, 3, 40, 200), make_scene(regime, 3, 40, 200)
    assert torch.equal(scene.test.observed, again.test.observed)
    assert not torch.equal(scene.train.observed[:40], scene.test.observed[:40])
    assert (scene.points3d[:, 2] == 0).all() == setting.planar
    assert scene.bias.norm(dim=-1).max() == pytest.approx(setting.bias)
    assert (scene.test.init is None) == (setting.turned == 0)
    wrong = (scene.test.whitener == 0).all(-1).double().mean().item()
    assert wrong == pytest.approx(max(setting.outliers, setting.exchanged), abs=0.05)
    # white noise: the oracle's residuals at the truth have unit variance
    noise = scene.test.observed - scene.bias - project(scene.points3d, scene.test.pose_gt, scene.K)
    white = scene.test.whitener @ noise
    assert white.square().sum() / (2 * white.shape[0] * white.shape[1] * (1 - wrong)) == pytest.approx(1, abs=0.1)


def test_a_half_turn_nearly_exchanges_the_points_of_a_pair_and_so_do_confused_keypoints() -> None:
    setting = REGIMES["near_symmetric"]
    scene, half = make_scene("near_symmetric", 3, 1, 400), POINTS // 2
    turn = torch.diag(torch.tensor([-1.0, -1, 1], dtype=torch.float64))
    apart = (scene.points3d[:half] @ turn - scene.points3d[half:]).norm(dim=-1)
    torch.testing.assert_close(apart, torch.full_like(apart, setting.asymmetry))
    views = scene.test
    confused = (views.whitener == 0).all(-1)
    assert torch.equal(confused[:, :half], confused[:, half:])
    turned = project(scene.points3d, views.pose_gt @ se3.make(turn, torch.zeros(3, dtype=torch.float64)), scene.K)
    right = project(scene.points3d, views.pose_gt, scene.K)
    as_turned, as_right = ((views.observed - scene.bias - pixels).norm(dim=-1) for pixels in (turned, right))
    assert as_turned[confused].median() < 8 < as_right[confused].median()
    assert as_right[~confused].median() < 8 < as_turned[~confused].median()


def test_the_oracle_is_better_than_equal_weights() -> None:
    scene = make_scene("shared_noise", 0, 1, 200)
    views = scene.test
    plain = pnp(views.observed - scene.bias, scene.points3d, scene.K).x
    assert oracle(scene)[2] < 0.8 * displacement(plain, views.pose_gt, scene.points3d).median()


@pytest.mark.parametrize("network", [Refiner, LargeRefiner])
def test_a_network_begins_with_what_is_observed_and_learns_from_everything(network: type[Refiner]) -> None:
    scene = make_scene("outliers", 0, 8, 8)
    runs = network([0, 1])
    observed, cues = scene.train.observed.expand(2, -1, -1, -1), scene.train.cues.expand(2, -1, -1, -1)
    points2d, log_weights = runs(observed, cues)
    assert torch.equal(points2d, observed)
    assert (log_weights == math.log(1 / 8)).all()
    with torch.no_grad():
        runs.runs[0][-1].normal_(generator=torch.Generator().manual_seed(1))
    points2d, log_weights = runs(observed, cues)
    assert torch.equal(points2d[1], observed[1])  # another run's parameters
    assert not torch.equal(points2d[0], observed[0])
    (points2d.sum() + log_weights.sum()).backward()
    for parameter in runs.runs[0]:
        assert parameter.grad is not None
        assert (parameter.grad != 0).any()
    assert sum(p.numel() for p in LargeRefiner([0]).runs[0]) == pytest.approx(1.1e6, rel=0.05)


def test_runs_side_by_side_are_runs_alone() -> None:
    config = replace(SMOKE, steps=6)
    scenes = [make_scene("noise", seed, 48, 16) for seed in (0, 1)]
    both = train("exact", scenes, [1e-2, 3e-2], config, [0, 3, 6])
    for scene, rate, run in zip(scenes, (1e-2, 3e-2), both, strict=True):
        (alone,) = train("exact", [scene], [rate], config, [0, 3, 6])
        torch.testing.assert_close(torch.tensor(alone), torch.tensor(run), rtol=1e-6, atol=1e-9)
        assert len(run) == 3
        assert run[-1][2] < run[0][2]


# ---- learning rates ----


def ends(curve: Callable[[float], float]) -> Callable[..., list]:
    """What stands for training: the displacement a rate ends with, twice as large on the second scene."""

    def trained(method: Method, scenes: list[Scene], rates: list[float], config: Any, tested: list[int]) -> list:
        assert tested == [config.steps]
        factors = {scene.seed: 2.0**i for i, scene in enumerate(held_out())}
        return [[[1.0, 1.0, factors[scene.seed] * curve(rate)]] for scene, rate in zip(scenes, rates, strict=True)]

    return trained


def held_out(regime: Regime = "noise") -> list[Scene]:
    return [make_scene(regime, seed, 1, 1) for seed in (7, 8)]


@pytest.mark.parametrize("best", [1e-4, 1e-2, 1.0])
def test_rates_are_widened_until_the_best_lies_inside(best: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_comparison, "train", ends(lambda rate: math.exp(abs(math.log10(rate / best)))))
    tried = choose_rate("exact", held_out(), PRESETS["full"])
    assert math.isclose(chosen(tried), best)
    assert Trace(tried, 1.0, []).bracketed
    rates = list(tried)
    assert rates == sorted(rates)
    for low, high in itertools.pairwise(rates):
        assert high / low == pytest.approx(math.sqrt(10))
    assert tried[chosen(tried)] == pytest.approx(math.sqrt(2))  # the geometric mean of both scenes
    began = {0, 1, 2}  # none is tried without need: all lie between the three to begin with and the best's neighbours
    steps = {round(2 * (math.log10(rate) + 2.5)) for rate in rates}
    wanted = round(2 * (math.log10(best) + 2.5))
    assert steps == {*range(min({wanted - 1} | began), max({wanted + 1} | began) + 1)}


def test_a_rate_that_loses_a_run_ends_the_widening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_comparison, "train", ends(lambda rate: math.inf if rate > 0.2 else 1 / rate))
    tried = choose_rate("exact", held_out(), PRESETS["full"])
    assert chosen(tried) == pytest.approx(0.1)
    assert tried[max(tried)] == math.inf
    large = choose_rate("exact", held_out("large_network"), replace(PRESETS["full"], widenings=0))
    assert list(large) == pytest.approx([10**-3.5, 10**-3, 10**-2.5])
    assert not Trace(large, 1.0, []).bracketed


def test_where_a_method_takes_part_are_regimes() -> None:
    assert set(ONLY) <= set(METHODS)
    assert all(set(regimes) <= set(REGIMES) for regimes in ONLY.values())


def test_a_run_that_is_lost_is_reported_and_leaves_the_others() -> None:
    config = replace(SMOKE, steps=4)
    scenes = [make_scene("noise", seed, 32, 16) for seed in (0, 1)]
    runs = Runs("exact", scenes, [1e-2, 1e-2], config)
    with torch.no_grad():
        runs.network.runs[0][2].fill_(math.nan)
    runs.learn(0)
    errors = runs.test()
    assert torch.isinf(errors[0]).all()
    assert torch.isfinite(errors[1]).all()


# ---- what is said of it ----


def outcome(**finals: tuple[float, float, list[float]]) -> Outcome:
    """One with the milliseconds, rate and displacement at the end that are given for each method."""
    traces: dict[Any, Trace] = {}
    for method, (milliseconds, rate, runs) in finals.items():
        tried = {0.01: 2.0, 0.03: 3.0, 0.1: 4.0} | {rate: 1.0}
        traces[method] = Trace(tried, milliseconds, [[[9.0, 9.0, 9.0], [end, end, end]] for end in runs])
    return Outcome("noise", [0, 10], [[1.0, 1.0, 1.0]] * 3, traces)


@pytest.fixture
def some() -> Outcome:
    return outcome(
        exact=(2.0, 0.03, [1.5, 1.6, 1.4]), dsac=(9.0, 0.1, [math.inf, 2.0, 2.0]),
        epro_pnp=(50.0, 0.03, [1.2, 1.3, 1.1]), likelihood=(0.5, 0.03, [1.3, 1.2, 1.15]),
    )  # fmt: skip


def test_intervals_are_those_of_scipy_s_t_test() -> None:
    from scipy.stats import ttest_1samp, ttest_rel

    ours, theirs = [0.1, 0.4, -0.2, 0.3, 0.25], [0.0, 0.1, -0.1, 0.2, 0.3]
    found, known = interval(ours), ttest_1samp(ours, 0).confidence_interval(0.95)
    assert [math.log(v) for v in found] == pytest.approx([0.17, known.low, known.high])
    paired = interval([a - b for a, b in zip(ours, theirs, strict=True)])
    test = ttest_rel(ours, theirs)
    assert [math.log(paired.low), math.log(paired.high)] == pytest.approx([*test.confidence_interval(0.95)])
    assert paired.level == (test.pvalue > 0.05)
    assert interval([0.1, math.inf]) == Interval(math.inf, math.inf, math.inf)
    assert interval([0.0]) == Interval(1.0, 0.0, math.inf)


@pytest.mark.slow
def test_an_interval_covers_as_often_as_it_says() -> None:
    draws = 0.3 + torch.randn(4000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covered = [low < math.exp(0.3) < high for _, low, high in map(interval, draws.tolist())]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.015)


def test_who_is_level_with_the_lowest_and_cheapest_of_them(some: Outcome) -> None:
    assert some.order == ["epro_pnp", "likelihood", "exact", "dsac"]
    assert some.level == ["epro_pnp", "likelihood"]
    assert some.cheapest() == "likelihood"
    assert some.final("dsac").middle == math.inf
    assert some.against("exact", "likelihood").middle == pytest.approx((3.36 / 1.794) ** (1 / 3))
    assert across([some, some], "exact", "likelihood").middle == pytest.approx((3.36 / 1.794) ** (1 / 3))
    row = advice_table([some])[-1]
    assert row.startswith("| noise that strikes each keypoint by itself | `epro_pnp` | 1.2 (")
    assert row.endswith(" | `likelihood` | `likelihood`, 0.5 ms a step |")
    said = everywhere([some, some])
    assert said.startswith("In the mean of the regimes `epro_pnp` is lowest, at 1.2 (")
    assert "level with it: `likelihood` (1.01" in said


def test_the_verdict_says_who_wins_and_where_ours_loses(some: Outcome) -> None:
    said = verdict(some, goal=2.0)
    assert said.startswith("**epro pnp** ends lowest, at 1.2 (")
    assert "level with it: likelihood 1.22." in said
    assert "exact loses here: 1.25 (" in said
    assert "all reach the goal: likelihood, 0.005 s" in said
    assert "Never at the goal" not in said
    assert some.arrivals("exact", 1.0) == [math.inf] * 3
    assert some.worse("dsac") == 1
    assert brackets([some]) == "3 of 4 rates chosen lie between two that ended higher; not so: dsac in noise."


def test_an_outcome_survives_its_checkpoint_and_its_file(some: Outcome, tmp_path: Path) -> None:
    assert Outcome.loaded(some.plain()) == some
    write_json(tmp_path / "some.json", some.plain())
    assert Outcome.loaded(json.loads((tmp_path / "some.json").read_text())) == some
    assert "lost" in report([some], {}, 2.0, {})


def test_every_method_and_regime_has_a_name() -> None:
    assert set(get_args(Method)) == set(METHODS)
    assert set(get_args(Regime)) == set(REGIMES)


def measured(folder: Path) -> Any:
    """gradient_comparison.json without what a clock says."""
    told = json.loads((folder / "gradient_comparison.json").read_text())
    for some in told["outcomes"]:
        for trace in some["traces"].values():
            assert trace.pop("milliseconds") > 0
    return told


@pytest.mark.slow
def test_smoke_writes_its_files_and_resumes_to_the_same_numbers(
    tmp_path: Path, interrupted: Callable[..., None]
) -> None:
    config = replace(
        SMOKE, methods=("exact", "published", "dsac"), seeds=1, rates=(1e-2,), widenings=1, steps=4, test_every=2,
        test_views=8, problems=2, draws=4, out=tmp_path,
    )  # fmt: skip
    summary = main(config)
    folder = tmp_path / "gradient_comparison" / "smoke-seed0"
    assert summary["figures"] == ["gradient_comparison.png", "curves.png"]
    text = (folder / "gradient_comparison.md").read_text()
    for told in ("Which should I use, when?", "## Noise", "## Planar", "| exact |", "Oracle:"):
        assert told in text
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]
    interrupted(main, replace(config, name="cut"), at=1)
    main(replace(config, name="cut", resume=True))
    assert measured(folder.parent / "cut") == measured(folder)
