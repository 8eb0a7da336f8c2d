import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.benchmarks.singular import PRESETS, main

SMOKE = PRESETS["smoke"]


@pytest.mark.slow
def test_nothing_undetermined_is_converged_and_what_is_determined_is(tmp_path: Path) -> None:
    main(replace(SMOKE, undetermined=2000, determined=500, condition=300, out=tmp_path))
    folder = tmp_path / "benchmark_singular"
    results = json.loads((folder / "table.json").read_text())
    assert sum(row["problems"] for row in results["undetermined"].values()) > 1900
    assert not any(row["CONVERGED"] for row in results["undetermined"].values())
    problems, converged = (sum(row[key] for row in results["determined"].values()) for key in ("problems", "CONVERGED"))
    assert converged > 0.99 * problems
    for row in results["condition"]:
        for end in ("compiled", "tensors"):
            if row["condition"] <= 1e8:
                assert row[end]["CONVERGED"] == row[end]["problems"], row
            if row["condition"] >= 1e16:
                assert row[end]["CONVERGED"] == 0, row
    assert "1e+12" in (folder / "table.md").read_text()


def test_counts_are_positive() -> None:
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        replace(SMOKE, batch=0)
