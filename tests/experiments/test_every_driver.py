"""What holds of every driver directly in `experiments`: the names of its presets, and what it says without its data."""

import importlib
import inspect
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import experiments
from experiments.records.files import EXIT_SKIPPED
from experiments.running.config import RunConfig

MODULES = [importlib.import_module(f"experiments.{m.name}") for m in pkgutil.iter_modules(experiments.__path__)]
DRIVERS = {
    module.__name__.partition(".")[2]: module
    for module in MODULES
    if any(isinstance(config, RunConfig) for config in getattr(module, "PRESETS", {}).values())
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_presets_are_told_apart(driver: str) -> None:
    presets = DRIVERS[driver].PRESETS
    assert {name: config.preset for name, config in presets.items()} == {name: name for name in presets}
    assert {"default", "smoke"} <= presets.keys()


@pytest.mark.parametrize("driver", DRIVERS)
def test_its_command_tells_what_came_of_it(driver: str) -> None:
    """And says by its exit code whether the goal was reached: tests/experiments/running/test_telling.py."""
    last = inspect.getsource(DRIVERS[driver]).rstrip().rpartition("\n")[2]
    assert last == "    command(main, __doc__, PRESETS)"


@pytest.mark.parametrize(
    ("driver", "preset", "changes", "says"),
    [
        *((name, "real", {}, "LEARNABLE_GEOMETRY_DATA") for name in ("pose_estimation", "camera_calibration")),
        *((name, "real", {}, "LEARNABLE_GEOMETRY_DATA") for name in ("structure_from_motion", "structure_routes")),
        ("robust_pose", "real", {}, "LEARNABLE_GEOMETRY_DATA"),
        ("bundle_adjustment", "default", {}, "LEARNABLE_GEOMETRY_DATA"),
    ],
)
def test_absent_data_are_one_sentence_and_exit_code_3(
    driver: str,
    preset: str,
    changes: dict[str, Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LEARNABLE_GEOMETRY_DATA", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        DRIVERS[driver].main(replace(DRIVERS[driver].PRESETS[preset], **changes, out=tmp_path / "out"))
    assert ended.value.code == EXIT_SKIPPED == 3
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("driver", "preset", "changes", "says"),
    [
        ("object_pose", "smoke", {"data": Path("nowhere")}, "nowhere does not exist: --data wants"),
        ("robust_pose", "real", {"matches": Path("nowhere")}, "nowhere"),
        ("bundle_adjustment", "default", {"scene": "nowhere/at_all.txt"}, "nowhere"),
        ("bundle_adjustment", "default", {"scene": "text.txt"}, "text.txt"),
        ("structure_from_motion", "real", {"scene": "nowhere"}, "nowhere"),
        ("structure_routes", "real", {"scene": "nowhere.txt"}, "nowhere.txt"),
        ("camera_calibration", "smoke", {"device": "cuda:99"}, "device cuda:99: "),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(
    driver: str, preset: str, changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped path is no absent data."""
    (tmp_path / "text.txt").write_text("no scene")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        DRIVERS[driver].main(replace(DRIVERS[driver].PRESETS[preset], **changes, out=tmp_path / "out"))
    said = ended.value.code  # what the interpreter prints before it exits with 1
    assert isinstance(said, str)
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
