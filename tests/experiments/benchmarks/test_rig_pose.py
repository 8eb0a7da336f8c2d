import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.benchmarks.rig_pose import PRESETS, main

pytest.importorskip("poselib", reason="PoseLib is not installed")


@pytest.mark.slow
def test_judges_find_nothing_wrong_with_rigs(tmp_path: Path) -> None:
    main(replace(PRESETS["smoke"], poses=30, ransacs=20, batch=5, turns=1, out=tmp_path))
    results = json.loads((tmp_path / "benchmark_rig_pose" / "table.json").read_text())
    for row in results["poses"].values():
        assert row["problems"] == row["CONVERGED"] == 10
        wrong = ("moving", "no minimum", "beaten from the truth", "beaten from PoseLib")
        assert not any(row[name] for name in wrong), row
    for row in results["ransac"]:
        assert row["ours"] >= row["right points alone"]
        assert row["ours 2 % above"] == 0
