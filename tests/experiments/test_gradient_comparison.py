import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from experiments.gradient_comparison import PRESETS, Runs, main, oracle, train
from experiments.gradients.measures import gradient, gradient_errors, numeric, problems, right_way
from experiments.gradients.methods import LAYERS, METHODS, STOCHASTIC, UNWEIGHTED, Method, View, displacement
from experiments.gradients.report import Outcome, Trace, verdict
from experiments.gradients.scenes import REGIMES, Refiner, Regime, make_scene
from geometry import pnp, project

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
        ("last_step", 1e-3, 0.2),
        ("published", 0.01, 0.5),
        ("epro_pnp", 0.01, 1.0),
        ("dsac", 0.05, 10.0),
    ],
)
def test_gradients_against_finite_differences(
    method: Method, low: float, high: float, noisy: tuple[View, Tensor]
) -> None:
    error = gradient_errors(method, noisy[0], draws=16).median()
    assert low <= error < high


def test_the_last_step_is_gauss_newton_by_another_road(noisy: tuple[View, Tensor]) -> None:
    torch.testing.assert_close(
        gradient("last_step", noisy[0]), gradient("gauss_newton", noisy[0]), rtol=1e-6, atol=1e-9
    )


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
    assert wrong == pytest.approx(setting.outliers, abs=0.05)
    # white noise: the oracle's residuals at the truth have unit variance
    noise = scene.test.observed - scene.bias - project(scene.points3d, scene.test.pose_gt, scene.K)
    white = scene.test.whitener @ noise
    assert white.square().sum() / (2 * white.shape[0] * white.shape[1] * (1 - wrong)) == pytest.approx(1, abs=0.1)


def test_the_oracle_is_better_than_equal_weights() -> None:
    scene = make_scene("shared_noise", 0, 1, 200)
    views = scene.test
    plain = pnp(views.observed - scene.bias, scene.points3d, scene.K).x
    assert oracle(scene)[2] < 0.8 * displacement(plain, views.pose_gt, scene.points3d).median()


def test_the_network_begins_with_what_is_observed() -> None:
    scene = make_scene("outliers", 0, 8, 8)
    network = Refiner([0, 1])
    observed = scene.train.observed.expand(2, -1, -1, -1)
    points2d, log_weights = network(observed, scene.train.cues.expand(2, -1, -1, -1))
    assert torch.equal(points2d, observed)
    assert (log_weights == math.log(1 / 8)).all()


def test_runs_side_by_side_are_runs_alone() -> None:
    config = replace(SMOKE, steps=6, test_every=3)
    scenes = [make_scene("noise", seed, 48, 16) for seed in (0, 1)]
    both = train("exact", scenes, [1e-2, 3e-2], config)
    for scene, rate, run in zip(scenes, (1e-2, 3e-2), both, strict=True):
        (alone,) = train("exact", [scene], [rate], config)
        torch.testing.assert_close(torch.tensor(alone), torch.tensor(run), rtol=1e-6, atol=1e-9)
        assert run[-1][2] < run[0][2]


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


def outcome() -> Outcome:
    def trace(end: float, milliseconds: float) -> Trace:
        return Trace(1e-2, milliseconds, [[[9.0, 9.0, 9.0], [end, end, end]], [[9.0, 9.0, 9.0], [end, end, end]]])

    traces: dict[Method, Trace] = {"exact": trace(1.5, 2.0), "dsac": trace(math.inf, 9.0), "epro_pnp": trace(1.2, 50.0)}
    return Outcome("noise", [0, 10], [[1.0, 1.0, 1.0]] * 2, traces)


def test_the_verdict_says_who_wins_and_where_ours_loses() -> None:
    told = verdict(outcome(), goal=2.0)
    assert told.startswith("**epro pnp** ends lowest, at 1.20")
    assert "exact loses here: 1.50" in told
    assert "all reach the goal: exact, 0.02 s" in told
    assert "Never at the goal: dsac" in told
    assert outcome().arrivals("exact", 1.0) == [math.inf, math.inf]
    assert outcome().worse("dsac") == 2


def test_an_outcome_survives_its_checkpoint() -> None:
    assert Outcome.loaded(outcome().plain()) == outcome()


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
    short = {"seeds": 1, "rates": (1e-2,), "steps": 4, "test_every": 2, "test_views": 8, "problems": 2, "draws": 4}
    config = replace(SMOKE, methods=("exact", "published", "dsac"), out=tmp_path, **short)
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
