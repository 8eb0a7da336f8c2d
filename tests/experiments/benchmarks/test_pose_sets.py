import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.pose_sets import PRESETS, main, sizes
from geometry import se3


def test_smoke_run_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(replace(PRESETS["smoke"], views=150, directions=2, out=tmp_path))
    assert all(0.78 < row[name]["coverage"] <= 1 for row in rows for name in ("ours", "keypoints"))
    assert "| Gaussian | weights | " in capsys.readouterr().out
    saved = json.loads((tmp_path / "benchmark_pose_sets" / "table.json").read_text())
    assert saved["rows"] == rows


def test_sizes_are_those_of_an_ellipsoid() -> None:
    g = torch.Generator().manual_seed(0)
    best = se3.from_rotvec_t(torch.randn(3, 6, generator=g, dtype=torch.float64))
    A = torch.randn(3, 6, 6, generator=g, dtype=torch.float64)
    spread = 1e-6 * (A @ A.mT + torch.eye(6, dtype=torch.float64))
    inverse = torch.linalg.inv(spread)

    def score(pose: torch.Tensor) -> torch.Tensor:
        turn = se3.log(pose[:, :3, :3] @ best[:, :3, :3].mT)
        step = torch.cat([turn, pose[:, :3, 3] - best[:, :3, 3]], -1)
        return (step[:, None] @ inverse @ step[..., None]).flatten()

    rays = torch.nn.functional.normalize(torch.randn(5, 6, generator=g, dtype=torch.float64), dim=-1)
    level = torch.tensor(4.0, dtype=torch.float64)
    expected = math.log(math.pi**3 / 6) + 6 * math.log(2) + 0.5 * torch.logdet(spread)
    assert (sizes(score, level, best, spread, rays) - expected).abs().max() < 0.05
    assert (sizes(score, -level, best, spread, rays) == -torch.inf).all()
