"""What holds of every driver of `experiments.tasks`, a user's among them: its smoke run, as a user starts it."""

import importlib
import json
import pkgutil
from pathlib import Path

import pytest

import experiments.tasks
from experiments.running.learned_weights import TaskConfig
from tests.commands import python_m

DRIVERS = [module.name for module in pkgutil.iter_modules(experiments.tasks.__path__)]


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
def test_a_smoke_run_solves_differentiates_logs_and_shows(name: str, tmp_path: Path) -> None:
    python_m(f"experiments.tasks.{name}", "smoke", "--out", str(tmp_path))
    folder = tmp_path / name / "smoke-seed0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["converged"], summary
    errors = summary["errors"]
    assert errors["learned"] < errors["unweighted"]
    assert errors["gradient"] < 1e-6
    assert errors.get("cost_over_reference", 0) < 1e-6
    assert {"index.html", "metrics.csv", "solution.png"} <= {path.name for path in folder.iterdir()}
    assert "data:image/png;base64," in (folder / "index.html").read_text()


@pytest.mark.parametrize("name", DRIVERS)
def test_presets(name: str) -> None:
    presets = importlib.import_module(f"experiments.tasks.{name}").PRESETS
    assert {"default", "smoke"} <= presets.keys()
    for preset, config in presets.items():
        assert isinstance(config, TaskConfig)
        assert config.preset == preset
