import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.benchmarks.calibration import PRESETS, main

SMOKE = PRESETS["smoke"]


@pytest.mark.slow
def test_no_calibration_ends_above_the_truth_or_opencv(tmp_path: Path) -> None:
    main(replace(SMOKE, calibrations=8, focal=(1000.0, 20_000.0), out=tmp_path))
    folder = tmp_path / "benchmark_calibration"
    row = json.loads((folder / "table.json").read_text())["rows"]["all"]
    assert row["calibrations"] == row["converged"] == 8
    assert row["above"] == [0, 0, 0]
    assert "five coefficients" in (folder / "table.md").read_text()


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="focal must be two positive numbers"):
        replace(SMOKE, focal=(2000.0, 400.0))
    with pytest.raises(ValueError, match="views at least 3"):
        replace(SMOKE, views=(1, 5))
