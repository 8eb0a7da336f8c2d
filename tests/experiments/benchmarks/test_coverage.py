"""The benchmark of stated deviations: what it counts of numbers that are known, and that every row is made."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.coverage import PRESETS, judged, main
from experiments.benchmarks.simulated import Stated
from tests.numbers import DOUBLE, generator

SMOKE = PRESETS["smoke"]


@pytest.mark.parametrize("freedom", [None, 7])
def test_what_is_drawn_from_its_covariance_is_held_as_often_as_it_says(freedom: int | None) -> None:
    """20,000 Gaussian steps, of known size or of one that seven numbers tell: within five standard errors."""
    n, g = 20_000, generator(1)
    root = torch.tensor([[1.0, 0, 0], [2, 0.5, 0], [-30, 4, 10]], **DOUBLE)
    C, off = (root @ root.T).expand(n, 3, 3), torch.randn(n, 3, generator=g, **DOUBLE) @ root.T
    size = torch.ones(n, **DOUBLE)
    if freedom is not None:
        size = torch.randn(n, freedom, generator=g, **DOUBLE).square().mean(1)
    converged = torch.arange(n) % 10 != 0
    found = judged(Stated(off, size[:, None, None] * C, converged, freedom))
    assert found["CONVERGED"] == pytest.approx(90.0)
    for name, share in (("each", 95), ("50", 50), ("90", 90), ("95", 95)):
        assert found[name] == pytest.approx(share, abs=5 * (share * (100 - share) / (0.9 * n)) ** 0.5)
    small = judged(Stated(off, 0.25 * size[:, None, None] * C, converged, freedom))
    assert small["z"] == pytest.approx(2 * found["z"])
    assert small["95"] < 75


@pytest.mark.slow
def test_every_row_is_made(tmp_path: Path) -> None:
    main(replace(SMOKE, poses=40, tasks=4, bundles=1, calibrations=1, out=tmp_path))
    rows = json.loads((tmp_path / "benchmark_coverage" / "table.json").read_text())["rows"]
    assert len({row["what"] for row in rows}) > 20
    assert all(0 <= row["each"] <= 100 and row["CONVERGED"] > 0 for row in rows)
    poses = [row["each"] for row in rows if row["what"] == "pose" and row["wrong"] == 0]
    assert sum(poses) / len(poses) > 90


def test_counts_are_positive() -> None:
    with pytest.raises(ValueError, match="tasks must be at least 1, got 0"):
        replace(SMOKE, tasks=0)
