import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.made.rigs import made_rig
from experiments.benchmarks.rig_bundle import PRESETS, colmap_cost, main, ours


@pytest.mark.slow
@pytest.mark.parametrize(("cameras", "apart"), [(2, 0.3), (3, 1.3), (4, 0.5), (5, 1.3), (6, 0.3)])
def test_colmap_ends_at_the_same_cost(cameras: int, apart: float) -> None:
    """Fifty frames, wide baselines, views that overlap and that do not."""
    pytest.importorskip("pyceres")
    pytest.importorskip("pycolmap")
    generator = torch.Generator().manual_seed(10 + cameras)
    scene = made_rig(50, cameras, 300, generator, apart=apart, baseline=1.0).moved(generator, 0.02)
    found = ours(scene)
    assert found.converged
    assert abs(found.cost.item() / colmap_cost(scene)[0] - 1) < 1e-6


@pytest.mark.slow
def test_smoke_run_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyceres")
    pytest.importorskip("pycolmap")
    rows = main(replace(PRESETS["smoke"], out=tmp_path))["rows"]
    assert [row["cameras"] for row in rows] == [2, 2]
    saved = json.loads((tmp_path / "benchmark_rig_bundle" / "table.json").read_text())
    assert saved["rows"][0]["cost"] == rows[0]["cost"]
    assert "| 2 | yes |" in capsys.readouterr().out
