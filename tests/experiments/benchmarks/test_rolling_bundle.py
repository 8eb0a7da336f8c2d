import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.benchmarks.rolling_bundle import PRESETS, main


@pytest.mark.slow
def test_smoke_run_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(replace(PRESETS["smoke"], out=tmp_path))["rows"]
    found = {row["way"]: row["turn"] for row in rows}
    assert found["velocities known"] < found["ignored"]
    saved = json.loads((tmp_path / "benchmark_rolling_bundle" / "table.json").read_text())
    assert [row["way"] for row in saved["rows"]] == list(found)
    assert "| 30 | ignored |" in capsys.readouterr().out
