import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.calibration import PRESETS, SIZE, Config, by_us, cost_of, main, make
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "part"),
    [
        pytest.param(71_017, (-0.203, 0.245), id="k1, k2: the focal length runs away"),
        pytest.param(71_022, (0.268, 0.241), id="five coefficients: half way there"),
        pytest.param(72_003, (-0.257, -0.11), id="fisheye: on the other side"),
        pytest.param(72_109, (-0.199, -0.065), id="k1, k2: on the other side"),
        pytest.param(72_094, (-0.175, 0.171), id="five coefficients: on the other side"),
    ],
)
def test_a_principal_point_far_from_the_middle_is_found(seed: int, part: tuple[float, float]) -> None:
    """What was found while it was held in the middle, lens and turns of the boards, is that of another minimum."""
    case = make(Config(), seed)
    shift = torch.tensor(part).double() * torch.tensor(SIZE)
    theta = case.theta.clone()
    theta[2:4] += shift
    case = case._replace(points2d=case.points2d + shift, theta=theta)
    cost, _, status = by_us(case)
    assert status == Status.CONVERGED
    assert cost < cost_of(case, case.theta, case.world_to_camera)


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="focal must be two positive numbers"):
        replace(SMOKE, focal=(2000.0, 400.0))
    with pytest.raises(ValueError, match="views must be at least 3, got"):
        replace(SMOKE, views=(1, 5))
