import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.made.unknown_shapes import UnknownShape, made_unknown
from experiments.benchmarks.from_nothing import PRESETS, Cell, main, possible, right
from geometry import find_structure
from geometry.reconstruction import mirror


@pytest.mark.slow
def test_smoke_run_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(replace(PRESETS["smoke"], scenes=1, out=tmp_path))["rows"]
    found = [row["counts"].get("RIGHT", 0) for row in rows if row["group"] == "noise"]
    assert found == [1, 1, 1]
    assert not any(row["counts"].get("WRONG") for row in rows)
    saved = json.loads((tmp_path / "benchmark_from_nothing" / "table.json").read_text())
    assert [row["counts"] for row in saved["rows"]] == [row["counts"] for row in rows]
    assert "| noise | 4 | 50 | ball, all seen, 2.0 px |" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_wrong_is_not_taken_for_right() -> None:
    cell = Cell(UnknownShape(points=20))
    views = made_unknown(cell.what, 0)
    torch.manual_seed(0)
    found = find_structure(views.points2d, views.visible, views.K, sigma=cell.sigma)
    assert found.found
    assert right(cell, views, found)
    # the same verdict on the mirror image
    wrong = views._replace(points3d=mirror(views.points3d))
    assert not right(cell, wrong, found)


def test_a_scene_of_too_few_observations_is_not_possible() -> None:
    few, many = (Cell(UnknownShape(views=3, points=points, visible="half")) for points in (6, 60))
    assert possible(many, made_unknown(many.what, 0))
    assert not possible(few, made_unknown(few.what, 0))
