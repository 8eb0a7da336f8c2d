import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.benchmarks.qp import MODES, PRESETS, Config, Solver, load_solvers, main, make_programs, measure
from geometry import quadratic_program

SMOKE = PRESETS["smoke"]


def test_everything_is_measured_and_written(tmp_path: Path) -> None:
    main(replace(SMOKE, out=tmp_path))
    folder = tmp_path / "benchmark_qp"
    assert sorted(path.name for path in folder.iterdir()) == ["table.json", "table.md"]
    results = json.loads((folder / "table.json").read_text())
    rows = {(row["solver"], row["mode"], tuple(row["size"])): row for row in results["times"]}
    for size in SMOKE.sizes:
        for mode in MODES:
            row = rows["ours", mode, size]
            assert 0 < row["min_s"] <= row["median_s"]
            assert row["turns"] >= 3
    assert max(results["violation"].values()) < 1e-11
    # whichever peers are installed find the same minimum
    assert all(row["difference"] < 1e-5 for (_, mode, _), row in rows.items() if mode == MODES[0])
    assert "| ours |" in (folder / "table.md").read_text()


def test_a_peer_that_is_not_installed_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("qpth.qp", "quadprog"):
        monkeypatch.setitem(sys.modules, module, None)
    solvers, absent = load_solvers(1)
    assert {"qpth", "quadprog"} <= set(absent)
    assert "qpth" not in solvers


@pytest.mark.slow
def test_a_loop_is_measured_on_the_first_problems_and_told_apart() -> None:
    def off(*data: torch.Tensor) -> torch.Tensor:
        calls.append(len(data[0]))
        return quadratic_program(*data).x + 0.5

    calls: list[int] = []
    solvers = {"ours": load_solvers(1)[0]["ours"], "off": Solver(off, gradients=False, at_most=3)}
    config = replace(SMOKE, batch=60, seconds=0.0)
    rows = measure(config, solvers, (20, 4, 1))
    assert set(calls) == {15}  # 3 of 100 unknowns are 15 of 20
    found = {(row["solver"], row["mode"]): row for row in rows}
    assert set(found) == {("ours", MODES[0]), ("ours", MODES[1]), ("off", MODES[0])}
    assert found["off", MODES[0]]["difference"] == pytest.approx(0.5)
    assert found["ours", MODES[1]]["difference"] == 0


def test_peers_get_the_problem_in_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """quadprog's: minimise 1/2 x^T Q x - a^T x with C^T x >= b, of which the first rows are equations."""
    seen: list[Any] = []

    def solve_qp(Q: Any, a: Any, C: Any, b: Any, meq: int) -> tuple[Any]:
        seen.append(meq)
        Q, a, C, b = (torch.from_numpy(v)[None] for v in (Q, a, C, b))
        return (quadratic_program(Q, -a, -C.mT[:, meq:], -b[:, meq:], C.mT[:, :meq], b[:, :meq]).x[0].numpy(),)

    monkeypatch.setitem(sys.modules, "quadprog", SimpleNamespace(solve_qp=solve_qp))
    solvers, _ = load_solvers(1)
    data = make_programs(3, 6, 5, 2, seed=1)
    torch.testing.assert_close(solvers["quadprog"].solve(*data), solvers["ours"].solve(*data), rtol=0, atol=1e-10)
    assert seen == [2, 2, 2]


@pytest.mark.parametrize("bad", [{"batch": 0}, {"threads": 0}, {"sizes": ((5, 0, 0),)}, {"sizes": ((5, 3, 5),)}])
def test_a_setting_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Config(**bad)
