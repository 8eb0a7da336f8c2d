import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.certificate import PRESETS, descents, judged, main, objects
from geometry import pnp


@pytest.mark.slow
def test_smoke_run_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = main(replace(PRESETS["smoke"], problems=6, any=12, out=tmp_path))
    assert not any(row["false"] for row in found)
    assert sum(row["others"] for row in found) > 20
    assert "| solid | 8 | 0.5 | 6 | 100.0% |" in capsys.readouterr().out
    saved = json.loads((tmp_path / "benchmark_certificate" / "table.json").read_text())
    assert saved["rows"] == found


def test_a_proof_of_a_minimum_that_is_beaten_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    given = objects(6, 1.0, flat=True)(20, torch.Generator().manual_seed(1))
    counts = judged(given, 4, torch.Generator().manual_seed(2))
    assert counts["others"] > 10
    assert counts["false"] == 0

    def certain(*arguments, certify=False, **options):  # type: ignore[no-untyped-def]
        found = pnp(*arguments, **options)
        return replace(found, certified=found.converged) if certify else found

    monkeypatch.setattr("experiments.benchmarks.certificate.pnp", certain)
    assert judged(given, 4, torch.Generator().manual_seed(2))["false"] == counts["others"]


def test_descents_begin_with_the_points_ahead_and_find_the_minimum() -> None:
    given = objects(12, 1.0, flat=False)(10, torch.Generator().manual_seed(3))
    _, cost = descents(given, 32, torch.Generator().manual_seed(4))
    found = given.solved()
    assert torch.isfinite(cost).double().mean() > 0.9
    assert (cost.amin(1) / found.cost - 1).abs().max() < 1e-6
