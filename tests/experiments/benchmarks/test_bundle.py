import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.reconstructions.model import Reconstruction
from experiments.benchmarks import bundle
from experiments.benchmarks.bundle import PRESETS, WITHIN, Config, beside_ours, large_table, main, summarise
from experiments.benchmarks.bundle_solvers import (
    FOCAL,
    LONGEST,
    Limits,
    Recorder,
    Solver,
    Trace,
    bundle_cost,
    camera_frame,
    load_solvers,
    read_scene,
    reproject,
    synthetic_scene,
    without_points_behind,
)


def street(cameras: int, points: int, seed: int = 0) -> tuple[Reconstruction, Reconstruction]:
    return synthetic_scene(cameras, points, 5, torch.Generator().manual_seed(seed))


def trace(*costs: float, full: float = math.nan) -> Trace:
    return Trace(np.arange(len(costs)), np.array(costs), np.full(len(costs), full), len(costs))


@pytest.mark.slow
@pytest.mark.parametrize(("cameras", "points"), [(5, 400), (40, 3000), (400, 20_000)])
def test_a_made_street_is_as_stated(cameras: int, points: int) -> None:
    start, truth = street(cameras, points)
    error = reproject(truth) - truth.points2d
    assert error.square().mean().sqrt().item() == pytest.approx(1.0, abs=4 / math.sqrt(2 * error.numel()))
    assert error.mean().item() == pytest.approx(0.0, abs=4 / math.sqrt(error.numel()))
    seen = truth.point_index.bincount(minlength=points)
    assert int(seen.min()) >= 2
    assert int(seen.max()) <= min(LONGEST, cameras)
    assert seen.double().mean().item() == pytest.approx(5 if cameras > LONGEST else 4.4, abs=0.2)
    pairs = torch.stack([truth.camera_index, truth.point_index])
    assert pairs.unique(dim=1).shape == pairs.shape  # a camera sees a point once
    for scene in (start, truth):
        p = camera_frame(scene)
        assert (p[:, 2] > 0).all()
        assert (p[:, :2].norm(dim=1) < 1.4 * p[:, 2]).all()  # where the lens is far from folding
    # what a camera sees is near: the reduced system is banded
    first = torch.full((points,), cameras).scatter_reduce(0, truth.point_index, truth.camera_index, "amin")
    assert (truth.camera_index - first[truth.point_index] < LONGEST).all()
    apart = (reproject(start) - start.points2d).norm(dim=1).square().mean().sqrt().item()
    assert 5 < apart < 20
    assert start.K[:, 0, 0].div(FOCAL).sub(1).abs().max() < 0.1
    assert torch.equal(start.points2d, truth.points2d)


def test_a_street_is_the_seed_s_and_the_noise_s() -> None:
    again, other = street(6, 50), street(6, 50, seed=1)
    assert torch.equal(street(6, 50)[0].points2d, again[0].points2d)
    assert len(other[0].points2d) != len(again[0].points2d) or not torch.equal(other[0].points2d, again[0].points2d)
    clean = synthetic_scene(6, 50, 5, torch.Generator().manual_seed(0), noise=0.0)[1]
    assert bundle_cost(clean) == 0


def test_points_behind_a_camera_go_with_all_their_observations() -> None:
    _, truth = street(6, 50)
    behind = truth.points3d.clone()
    behind[[3, 17]] *= 0.2  # across the street, behind those who saw them
    scene = without_points_behind(replace(truth, points3d=behind))
    kept = torch.tensor([n not in (3, 17) for n in range(50)])
    assert torch.equal(scene.points3d, truth.points3d[kept])
    rows = kept[truth.point_index]
    assert torch.equal(scene.points2d, truth.points2d[rows])
    assert torch.equal(scene.points3d[scene.point_index], truth.points3d[truth.point_index[rows]])
    assert bundle_cost(without_points_behind(truth)) == bundle_cost(truth)


def test_the_cost_of_ladybug_is_the_published_one(real_data: Callable[[str], Path]) -> None:
    scene = read_scene(real_data("bal") / "problem-49-7776-pre.txt")
    assert bundle_cost(scene) == pytest.approx(850912.460681, abs=1e-5)
    assert int((camera_frame(scene)[:, 2] <= 0).sum()) == 31
    assert len(without_points_behind(scene).points3d) == 7766


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_every_solver_finds_the_known_optimum_and_tells_every_step(shared: bool) -> None:
    start, truth = synthetic_scene(6, 60, 5, torch.Generator().manual_seed(0), noise=0.0)
    if shared:
        lens = {"distortion": truth.distortion[:1], "intrinsics_index": torch.zeros(6, dtype=torch.int64)}
        points2d = reproject(replace(truth, K=truth.K[:1], **lens))
        start = replace(start, K=start.K[:1], **{**lens, "distortion": start.distortion[:1]}, points2d=points2d)
    for name, solver in load_solvers()[0].items():
        found = solver.prepare(start, Limits(100, 60.0, 1, True))()
        assert found.cost[0] == pytest.approx(bundle_cost(start), rel=1e-10), name
        assert found.cost.min() < 1e-6 * found.cost[0], name  # without noise it is zero
        assert (np.diff(found.seconds) > 0).all(), name
        if name.startswith("Ceres"):
            # nothing is behind a camera; a step that was refused has the cost of the trial, but leaves the state
            lowest = np.minimum.accumulate(found.cost)
            assert found.full_cost == pytest.approx(lowest, rel=1e-6, abs=1e-9)


def test_noise_leaves_the_cost_that_statistics_say() -> None:
    """Half of: two residuals of variance 1 an observation, less the unknowns, of which a similarity is none."""
    pytest.importorskip("pycolmap")
    solver = load_solvers()[0].get("Ceres DENSE_SCHUR") or pytest.skip("pyceres is not installed")
    scenes = [street(6, 60, seed)[0] for seed in range(8)]
    found = sum(solver.prepare(scene, Limits(60))().cost.min() for scene in scenes)
    expected = sum(0.5 * (2 * len(scene.points2d) - 9 * 6 - 3 * 60 + 7) for scene in scenes)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected))


@pytest.mark.slow
def test_limits_are_kept() -> None:
    pytest.importorskip("pyceres")
    solvers, _ = load_solvers()
    scene = street(6, 60)[0]
    for name in ("Ceres DENSE_SCHUR", "SciPy least_squares"):
        assert len(solvers[name].prepare(scene, Limits(5))().cost) == 6
        assert len(solvers[name].prepare(scene, Limits(50, seconds=0.0))().cost) <= 2


def test_a_peer_that_is_not_installed_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyceres", None)
    solvers, absent = load_solvers()
    assert "Ceres" in absent
    assert not [name for name in solvers if name.startswith("Ceres")]


def test_a_trace_says_when_it_was_where() -> None:
    found = trace(9.0, 5.0, 7.0, math.nan, 4.0)
    assert found.accepted() == [(0.0, 9.0), (1.0, 5.0), (4.0, 4.0)]
    assert found.reaches(5.5) == (1.0, 1)
    assert found.reaches(3.0) == (math.inf, 4)
    assert found.step_seconds == 1.0
    recorder = Recorder()
    recorder(2.0)
    recorder(1.0, 3.0)
    assert recorder.trace().full_cost[1] == 3.0


def test_each_is_measured_by_the_optimum_of_what_it_minimises() -> None:
    solvers = {"ours": Solver(lambda *_: lambda: trace()), "Ceres": Solver(lambda *_: lambda: trace(), full=False)}
    runs = {"ours": [trace(200.0, 100.05, 100.0)], "Ceres": [trace(200.0, 90.5, 90.05)]}
    watched = {"ours": trace(200.0, 100.05, 100.0, full=100.0), "Ceres": trace(200.0, 90.5, 90.05, 90.0, full=120.0)}
    ours, ceres = summarise(solvers, runs, watched)
    assert (ours["optimum"], ceres["optimum"]) == (100.0, 90.0)
    assert ours["within"]["0.1 %"] == {"median_s": 1.0, "min_s": 1.0, "steps": 1}
    assert ceres["within"]["0.1 %"]["steps"] == 2
    assert ceres["within"]["0.01 %"]["median_s"] == math.inf
    assert (ours["full_cost"], ceres["full_cost"]) == (100.0, 120.0)
    # who minimises something else may come by a lower cost of all observations
    watched["Ceres"] = trace(200.0, 90.0, full=99.0)
    assert summarise(solvers, runs, watched)[0]["optimum"] == 99.0


def test_ratios_are_to_ours_and_missing_figures_are_dashes() -> None:
    rows = [{"solver": "ours"}, {"solver": "other"}, {"solver": "third"}]
    assert beside_ours(rows, [2.0, 5.0, math.inf]) == ["2 (1)", "5 (2.5)", "–"]
    assert beside_ours(rows[1:], [5.0, math.nan]) == ["5", "–"]
    row = {"within_s": dict.fromkeys(WITHIN, 3.0), "step_s": 1.0, "steps": 4, "total_s": 9.0, "cost": 1.0}
    large = [{"solver": "ours", **row, "added_bytes": 1 << 30, "peak_bytes": 9 << 30}]
    assert "9.00 too much |" in large_table(large, 8.0)
    assert "9.00 |" in large_table(large, 10.0)


@pytest.mark.slow
def test_everything_is_measured_and_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race by all solvers; memory, each in a process of its own that loads it all anew, of two of them."""
    scaling, some = bundle.measure_scaling, ("ours", "SciPy least_squares")
    monkeypatch.setattr(
        bundle, "measure_scaling", lambda config, by: scaling(config, {name: by[name] for name in some})
    )
    smoke = replace(PRESETS["smoke"], repetitions=1, out=tmp_path)
    results: dict[str, Any] = main(smoke)
    folder = tmp_path / "benchmark_bundle"
    names = {row["solver"] for row in results["races"][0]["solvers"]}
    assert names == set(load_solvers()[0])
    assert json.loads((folder / "table.json").read_text())["absent"] == results["absent"]
    assert "SciPy least_squares" in (folder / "table.md").read_text()
    files = {"race.png", "table.json", "table.md"}
    if bundle.measurable():
        files.add("scaling.png")
        assert {row["solver"] for row in results["scaling"]} == set(some)
        assert all(0 < row["added_bytes"] < row["peak_bytes"] for row in results["scaling"])
        assert all(row["step_s"] > 0 for row in results["scaling"])
    assert {path.name for path in folder.iterdir()} == files


@pytest.mark.parametrize(
    "bad", [{"threads": 0}, {"repetitions": 0}, {"max_steps": 2}, {"observations": (0,)}, {"large": (1, 5)}]
)
def test_a_setting_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Config(**bad)
