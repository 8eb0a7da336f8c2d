import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.benchmarks.calibration import PRESETS, Config, by_us, cost_of, main, make
from geometry import Status

SMOKE = PRESETS["smoke"]


@pytest.mark.slow
def test_no_calibration_ends_above_the_truth_or_opencv(tmp_path: Path) -> None:
    main(replace(SMOKE, calibrations=8, focal=(1000.0, 20_000.0), out=tmp_path))
    folder = tmp_path / "benchmark_calibration"
    row = json.loads((folder / "table.json").read_text())["rows"]["all"]
    assert row["calibrations"] == row["converged"] == 8
    assert row["above"] == [0, 0, 0]
    assert "five coefficients" in (folder / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "seed"),
    [(Config(), 50_498), *((Config(focal=(5_000.0, 20_000.0)), seed) for seed in (90_042, 90_562, 90_614, 90_638))],
)
def test_a_long_lens_that_bends_is_found(config: Config, seed: int) -> None:
    """Descents over its principal point and bend at once end far from the middle, or creep along a valley."""
    case = make(config, seed)
    cost, _, status = by_us(case)
    assert status == Status.CONVERGED
    assert cost < cost_of(case, case.theta, case.world_to_camera)


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="focal must be two positive numbers"):
        replace(SMOKE, focal=(2000.0, 400.0))
    with pytest.raises(ValueError, match="views at least 3"):
        replace(SMOKE, views=(1, 5))
