"""What a run says of itself: whether the goal was reached, and what the data do not determine."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.records.files import read_summary, write_json
from experiments.records.quantities import Quantity
from experiments.running.run import Run
from tests.experiments.running.toy_driver import PRESETS, Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(PRESETS["default"], out=tmp_path)


def test_what_is_undetermined_is_not_converged(config: Config) -> None:
    with Run("toy_driver", config) as run:
        sentence = "Two points are seen once."
        said = run.finish(
            converged=True, goal="loss below 1", iterations=1, loss=0.5, errors={}, undetermined=[sentence]
        )
    assert (said["converged"], said["goal"], said["undetermined"]) == (False, "loss below 1", [sentence])


def test_a_quantity_without_a_finite_deviation_is_undetermined(config: Config) -> None:
    found = {"fx": Quantity(800.0, 0.1, "px", 801.0), "cx": Quantity(320.0, math.nan, "px"), "k1": Quantity(0.1)}
    with Run("toy_driver", config) as run:
        said = run.finish(converged=True, goal="loss below 1", iterations=1, loss=0.5, errors={}, found=found)
    assert said["undetermined"] == ["The data do not determine cx."]
    assert not said["converged"]
    assert Quantity.read(said["found"]["fx"]) == found["fx"]
    assert said["found"]["cx"] == {"value": 320.0, "deviation": "nan", "unit": "px", "reference": None}


def test_a_summary_of_an_earlier_version_has_no_goal(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"converged": True, "errors": {}})
    said = {"converged": True, "errors": {}, "goal": "", "undetermined": [], "found": {}, "left_out": {}}
    assert read_summary(tmp_path / "summary.json") == said
