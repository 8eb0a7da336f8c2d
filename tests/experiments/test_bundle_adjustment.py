"""The driver that adjusts a file."""

from pathlib import Path

import pytest
import torch

from datasets.reconstructions.bal import write_bal
from datasets.reconstructions.colmap import read_colmap
from experiments.benchmarks.bundle_solvers import bundle_cost, synthetic_scene
from experiments.bundle_adjustment import Config, main


@pytest.mark.slow
def test_a_file_is_adjusted_and_saved(tmp_path: Path) -> None:
    start, truth = synthetic_scene(6, 120, 4, torch.Generator().manual_seed(0))
    write_bal(tmp_path / "street.txt", start)
    summary = main(Config(preset="test", scene=str(tmp_path / "street.txt"), out=tmp_path))
    assert summary["converged"]
    # a minimum lies below the truth, by about half a squared pixel an unknown
    assert 0.5 * bundle_cost(truth) < summary["loss"] < bundle_cost(truth)
    rms = (2 * summary["loss"] / len(start.points2d)) ** 0.5
    assert summary["errors"]["rms_after"] == pytest.approx(rms, rel=1e-12)
    saved = read_colmap(tmp_path / "bundle_adjustment" / "test-seed0" / "colmap")
    assert bundle_cost(saved) == pytest.approx(summary["loss"], rel=1e-9)


@pytest.mark.slow
def test_least_squares_bends_to_outliers_and_a_kernel_does_not(tmp_path: Path) -> None:
    start, truth = synthetic_scene(6, 120, 4, torch.Generator().manual_seed(1), noise=0.1)
    start.points2d[::20] += 50.0
    write_bal(tmp_path / "street.txt", start)
    found = {}
    for robust_px in (0.0, 1.0):
        name = f"robust{robust_px}"
        main(Config(scene=str(tmp_path / "street.txt"), out=tmp_path, name=name, robust_px=robust_px))
        K = read_colmap(tmp_path / "bundle_adjustment" / name / "colmap").K
        found[robust_px] = (K - truth.K)[:, 0, 0].abs().median()
    assert found[1.0] < 0.1 * found[0.0]
