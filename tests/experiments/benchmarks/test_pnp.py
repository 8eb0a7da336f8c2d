import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.benchmarks import measuring
from experiments.benchmarks.measuring import take_turns
from experiments.benchmarks.pnp import PRESETS, Config, main, measure_accuracy
from experiments.benchmarks.pnp_solvers import (
    DIFFERENTIABLE,
    MODES,
    Solver,
    load_solvers,
    make_problems,
    reprojection_cost,
)
from geometry import se3

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the smoke preset wrote, and where."""
    out = tmp_path_factory.mktemp("benchmark")
    main(replace(SMOKE, out=out))
    folder = out / "benchmark_pnp"
    return json.loads((folder / "table.json").read_text()), folder


def test_ours_is_the_optimum_and_its_gradient_is_right(smoke: tuple[dict[str, Any], Path]) -> None:
    rows = {row["solver"]: row for row in smoke[0]["accuracy"]}
    for name in ("ours", "ours, no start"):
        assert rows[name]["failed"] == 0
        assert rows[name]["excess"]["max"] < 1e-12
        assert rows[name]["degrees"]["max"] < 1e-6
        assert set(rows[name]["gradient"]) == set(DIFFERENTIABLE)
        assert max(rows[name]["gradient"].values()) < 1e-6
    # an independent solver agrees about where the optimum is, and an algebraic one is told apart from it
    assert rows["SciPy least_squares"]["excess"]["median"] < 1e-9
    assert rows["OpenCV SQPNP, no start"]["excess"]["median"] > 1e-6


def test_everything_is_timed_and_written_whole(smoke: tuple[dict[str, Any], Path]) -> None:
    results, folder = smoke
    times = {(row["solver"], row["mode"], row["B"], row["N"]): row for row in results["times"]}
    for B in SMOKE.batches:
        assert all(("ours", mode, B, 8) in times for mode in MODES)
        assert ("OpenCV ITERATIVE", "forward", B, 8) in times
    assert all(0 < row["min_us"] <= row["median_us"] and row["turns"] >= 3 for row in times.values())
    assert results["memory"].get("ours", 1) > 0
    assert results["first_call_s"] > 0
    assert sorted(path.name for path in folder.iterdir()) == ["cost.png", "table.json", "table.md"]
    assert "| ours |" in (folder / "table.md").read_text()


def test_no_peer_finds_more_global_minima(smoke: tuple[dict[str, Any], Path]) -> None:
    rows = smoke[0]["without_start"]
    assert sorted((row["N"], row["planar"]) for row in rows) == [(N, p) for N in (4, 6, 10, 50) for p in (False, True)]
    for row in rows:
        assert row["found"]["ours, no start"] >= row["found"]["any of the peers"], row


def test_a_peer_that_is_not_installed_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.geometry", None)
    solvers, absent = load_solvers(1, ())
    assert {"kornia", "BPnP", "EPro-PnP"} <= set(absent)
    assert not [name for name in solvers if "kornia" in name]


def test_a_checkout_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "BPnP.py").write_text(
        "class BPnP_fast:\n"
        "    @staticmethod\n"
        "    def apply(points2d, points3d, K, init):\n"
        "        return init + 0 * (points2d.sum() + points3d.sum() + K.sum())\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "BPnP", raising=False)
    solvers, absent = load_solvers(1, (f"BPnP={tmp_path}",))
    sys.modules.pop("BPnP")
    assert "BPnP" not in absent
    names = ("ours", "BPnP_fast")
    ours, stays = measure_accuracy(SMOKE, {name: solvers[name] for name in names}, 8)
    assert ours["degrees"]["max"] < 1e-6
    assert abs(stays["degrees"]["median"] - 10) < 1.5  # it returned the start
    assert stays["gradient"] == pytest.approx({"points2d": 1.0, "points3d": 1.0, "K": 1.0})


def test_a_checkout_without_the_peer_is_named_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match=f"--checkout EPro-PnP={tmp_path}: cannot import EPro-PnP"):
        load_solvers(1, (f"EPro-PnP={tmp_path}",))


@pytest.mark.parametrize("text", ["BPnP", "BPnP=", "OpenCV=somewhere", "other=somewhere"])
def test_a_checkout_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="checkout must be NAME=PATH with NAME one of BPnP, EPro-PnP, Theseus"):
        Config(checkout=(text,))


@pytest.mark.parametrize("bad", [{"batches": (0,)}, {"noise": 0.0}, {"problems": 7}, {"points": (3,)}])
def test_a_setting_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Config(**bad)


def test_turns_alternate_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], list[str]()

    def lasts(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock[0] += seconds
            order.append(name)

        return run

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    times = take_turns({"a": lasts("a", 1.0), "b": lasts("b", 2.0)}, seconds=11.0)
    assert times == {"a": [1.0] * 4, "b": [2.0] * 4}
    assert order[4:] == ["a", "b"] * 4
    assert len(take_turns({"a": lasts("a", 1.0)}, seconds=0.0)["a"]) == 3


def test_a_solver_is_measured_on_the_first_problems_and_may_refuse() -> None:
    def refuse(batch: Any, native: None) -> Any:
        raise RuntimeError

    solver = Solver(refuse, at_most=6, refuses=(RuntimeError,))
    for N, count in ((8, 6), (64, 6), (128, 3), (4096, 1)):
        assert len(solver.parts(make_problems(10, N, 1.0, 0))[0].K) == count
    assert solver.poses(make_problems(10, 4, 1.0, 0)).isnan().all()
    with pytest.raises(RuntimeError):
        Solver(refuse).poses(make_problems(10, 4, 1.0, 0))


def test_the_problems_are_as_stated() -> None:
    batch = make_problems(200, 12, torch.linspace(0, 10, 200, dtype=torch.float64), seed=3, planar=True)
    assert (batch.points3d[..., 2] == 0).all()
    truth = load_solvers(1, ())[0]["ours"].poses(batch)
    rms = (2 * reprojection_cost(batch, truth) / (24 - 6)).sqrt()
    assert rms[0] < 1e-9
    assert 4 < rms.mean() < 6  # the noise grows from 0 to 10 px
    turned = se3.rotation_angle(batch.init[0, :3, :3] @ truth[0, :3, :3].mT).rad2deg()
    moved = (batch.init[0, :3, 3] - truth[0, :3, 3]).norm() / truth[0, :3, 3].norm()
    assert turned.item() == pytest.approx(10)
    assert moved.item() == pytest.approx(0.1)
    behind = truth.clone()
    behind[:, 2, 3] = -9
    assert reprojection_cost(batch, behind).isinf().all()
    assert reprojection_cost(batch, behind * torch.nan).isinf().all()
