import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.benchmarks.photographs import PRESETS, main, make


def test_collections_are_as_told() -> None:
    collections = [make(seed) for seed in range(40)]
    k1 = [c.photographs.distortion[0].item() for c in collections]
    assert -0.3 <= min(k1) < -0.2 < 0 < max(k1) <= 0.1
    off = [c.photographs.K[0, 2].item() - 479.5 for c in collections]
    assert 10 < sum(one == 0 for one in off) < 30
    for c in collections:
        f = c.photographs.K[0, 0].item()
        exif = c.millimetres * math.hypot(960, 640) / math.hypot(36, 24)
        # whole millimetres, and a part that was cut off
        assert 0.85 * f - 30 < exif < f + 30
    one, again = make(3), make(3)
    assert one.photographs.K.equal(again.photographs.K)
    assert one.words == again.words


@pytest.mark.slow
def test_a_table_of_one_collection(tmp_path: Path) -> None:
    main(replace(PRESETS["smoke"], out=tmp_path))
    folder = tmp_path / "benchmark_photographs"
    (row,) = json.loads((folder / "table.json").read_text())["rows"]
    assert row["views"] == 8
    assert abs(row["chosen"]["off"]) < 4
    assert row["chosen"]["pattern"] < 3
    assert row["chosen"]["free"][0] == "f"
    assert "f is within three of its deviations in" in (folder / "table.md").read_text()
