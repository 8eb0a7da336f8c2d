import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments import structure_routes
from experiments.structure.routes import Regime, Tracks, make_starts, read_file, solid
from experiments.structure_routes import (
    NEAR,
    PRESETS,
    SOLVE,
    Outcome,
    Trace,
    follow,
    report,
    time_to,
    verdict,
)
from geometry import cauchy, project

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver

SMOKE = PRESETS["smoke"]


def small(seed: int = 0, **options) -> Tracks:
    return solid(10, 40, torch.Generator().manual_seed(seed), **options)


def starts(regime: Regime) -> list[Tracks]:
    return make_starts(regime, seed=0, starts=3)


def half_squares(tracks: Tracks, points: Tensor, poses: Tensor) -> float:
    """The cost, computed another way: all points into all views."""
    pixels = project(points, poses, tracks.K, tracks.distortion)[tracks.camera, tracks.point]
    s = (pixels - tracks.points2d).square().sum(-1)
    return 0.5 * (s if tracks.kernel is None else tracks.kernel(s)).sum().item()


@pytest.mark.parametrize("kernel", [None, cauchy(1.0)], ids=["squares", "cauchy"])
@pytest.mark.parametrize("options", [{}, {"far": 25.0}, {"arc": 12.0, "share": 1.0}], ids=["around", "far", "arc"])
def test_all_routes_reach_the_same_minimum(options: dict, kernel) -> None:
    tracks = small(kernel=kernel, **options)
    config = replace(SMOKE, rounds=600, adam_steps=0)
    costs = {}
    for route in ("alternating", "bundle") if kernel else ("backprop", "alternating", "bundle"):
        course = SOLVE[route](tracks, config)
        assert course.end == ""
        assert len(course.seconds) == len(course.costs)
        assert half_squares(tracks, course.points, course.poses) == pytest.approx(course.costs[-1], rel=1e-9)
        assert tracks.error(course.points) < 0.05
        costs[route] = course.costs[-1]
    for cost in costs.values():
        assert cost == pytest.approx(costs["bundle"], rel=NEAR)


@pytest.mark.parametrize(
    "regime", ["overlap", "few_views", pytest.param("ring", marks=pytest.mark.slow), "outliers", "outliers_robust"]
)
def test_bundle_is_never_above_the_others(regime) -> None:
    (tracks,) = starts(regime)
    config = replace(SMOKE, rounds=10)
    costs = {route: trace.costs[-1] for route in SOLVE if (trace := follow(route, tracks, config))}
    assert ("backprop" in costs) == (regime != "outliers_robust")
    assert costs["bundle"] <= min(costs.values()) * (1 + NEAR)


def test_adam_goes_down_to_the_same_minimum() -> None:
    tracks = small()
    least = SOLVE["bundle"](tracks, SMOKE).costs[-1]
    traced = SOLVE["adam"](tracks, replace(SMOKE, adam_steps=300)).costs
    assert len(traced) == 300
    assert least * (1 - 1e-9) < traced[-1] < 1.01 * least < 0.01 * traced[0]


def test_outliers_need_the_kernel() -> None:
    (plain,), (robust,) = starts("outliers"), starts("outliers_robust")
    assert torch.equal(plain.points2d, robust.points2d)
    plain_error, error = (tracks.error(SOLVE["bundle"](tracks, SMOKE).points) for tracks in (plain, robust))
    assert error < 0.005 < 0.1 < plain_error


def test_random_starts_go_down() -> None:
    costs = [SOLVE["bundle"](tracks, SMOKE).costs for tracks in starts("random_start")]
    assert len(costs) == 3
    assert all(traced[-1] < traced[0] for traced in costs)


def test_the_bundle_says_what_its_tracks_leave_open() -> None:
    whole, thin = small(), small()
    assert SOLVE["bundle"](whole, SMOKE).undetermined == []
    kept = (thin.point != 3) | (thin.camera == thin.camera[thin.point == 3][0])
    thin = replace(thin, points2d=thin.points2d[kept], camera=thin.camera[kept], point=thin.point[kept])
    (told,) = SOLVE["bundle"](thin, SMOKE).undetermined
    assert told == "1 of 40 points are seen by fewer than two views that are determined."


def test_random_starts_alone_are_judged_too(tmp_path: Path) -> None:
    config = replace(SMOKE, regimes=("random_start",), starts=1, rounds=2, adam_steps=0, steps=3, out=tmp_path)
    summary = structure_routes.main(config)
    assert not summary["converged"]
    assert summary["errors"]["bundle_above_lowest"] > NEAR


def outcome(**costs: list[list[float]]) -> Outcome:
    traces = {
        route: [Trace([0.1 * (i + 1) for i in range(len(some))], some, 0.01, 0, "") for some in starts]
        for route, starts in costs.items()
    }
    return Outcome("overlap", 1.0, traces, "a few views")


def test_the_verdict_names_the_quickest_and_the_lost() -> None:
    said = verdict(outcome(bundle=[[9.0, 1.0, 1.0]], backprop=[[9.0, 8.0, 1.0]], adam=[[9.0, 2.0, 1.5]]))
    assert said.startswith("**bundle** is first at the minimum: bundle 0.2 s, backprop 0.3 s.")
    assert "Adam does not get there (5.0e-01 above it)." in said
    assert verdict(outcome(adam=[[9.0, math.inf]])).startswith("Nobody gets there.")


def test_a_failed_start_is_time_spent() -> None:
    sure, lucky = [[9.0, 4.0, 1.0], [9.0, 4.0, 1.0]], [[9.0, 1.0], [9.0, 8.0]]
    said = verdict(outcome(bundle=sure, backprop=lucky))
    assert "backprop 0.4 s." in said  # 0.2 + 0.2 s for one success; bundle has two
    assert said.startswith("**bundle** takes the least time for a success, failed starts included: bundle 0.3 s, back")
    assert "Backprop does not get there from 1 of 2 starts." in said
    table = report([outcome(bundle=sure, backprop=lucky)])
    assert "| bundle | 2 | 0.3 | 0.3 | 0.0e+00 | 0.01 | 2 of 2 |" in table
    assert "1 of 2 |" in table


def test_time_to_the_minimum() -> None:
    trace = Trace([0.1, 0.2, 0.3], [5.0, 1.0 + 0.5 * NEAR, 1.0], 0.0, 0, "")
    assert time_to(trace, 1.0) == 0.2
    assert time_to(trace, 0.5) == math.inf


def test_a_run_says_what_came_out_and_resumes(tmp_path: Path, interrupted: Any) -> None:
    config = replace(SMOKE, rounds=3, adam_steps=3)
    summary = structure_routes.main(replace(config, out=tmp_path / "whole"))
    assert summary["converged"]
    assert summary["errors"]["bundle_above_lowest"] <= NEAR
    interrupted(structure_routes.main, replace(config, out=tmp_path / "cut"), at=1)
    structure_routes.main(replace(config, out=tmp_path / "cut", resume=True))
    whole, cut = (tmp_path / name / "structure_routes" / "smoke-seed0" for name in ("whole", "cut"))
    assert (whole / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()
    for folder in (whole, cut):
        text = (folder / "routes.md").read_text()
        told = json.loads((folder / "routes.json").read_text())
        assert [regime["regime"] for regime in told] == ["overlap", "few_views"]
        for regime in told:
            assert f"## {regime['regime']}" in text
            for route, (trace,) in regime["traces"].items():
                assert f"| {route} | {len(trace['costs']) - 1} |" in text
                assert trace["seconds"] == sorted(trace["seconds"])
        for name in ("routes.png", "iterations.png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_ladybug_ends_where_bundle_does(real_data) -> None:
    tracks = read_file(real_data("bal") / "problem-49-7776-pre.txt")
    assert len(tracks.points2d) == 31812
    config = replace(PRESETS["real"], rounds=3, adam_steps=3)
    backprop, alternating, bundled, adam = (SOLVE[route](tracks, config).costs for route in SOLVE)
    assert backprop[-1] == pytest.approx(bundled[-1], rel=NEAR)
    assert bundled[-1] == pytest.approx(16330.597, rel=1e-6)
    assert bundled[-1] <= min(alternating[-1], adam[-1])
    assert alternating == sorted(alternating, reverse=True)
