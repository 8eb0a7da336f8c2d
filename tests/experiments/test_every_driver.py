"""What holds of every driver directly in `experiments`: the names of its presets, and what it says without its data."""

import importlib
import inspect
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import experiments
from experiments.paper.boards import Board
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


PATHS = (
    ("camera_calibration", "real", "board"),
    ("structure_from_motion", "real", "scene"),
    ("structure_routes", "real", "scene"),
    ("bundle_adjustment", "default", "scene"),
    ("pose_estimation", "real", "matches"),
    ("robust_pose", "real", "matches"),
    ("object_pose", "smoke", "data"),
    ("keypoint_refinement", "smoke", "photographs"),
)
"""Drivers that are told a path, and by which option."""


def told(driver: str, changes: dict[str, Any], preset: str, folder: Path) -> str:
    """What the driver ends with: a sentence, which the interpreter prints before it exits with 1; no folder is left."""
    (folder / "texts").mkdir()
    (folder / "empty").mkdir()
    for name in ("text.txt", "texts/text.txt"):
        (folder / name).write_text("no scene")
    (folder / "my.csv").write_text("0,0,1,2\n1,0,1,2\n")
    with pytest.raises(SystemExit) as ended:
        DRIVERS[driver].main(replace(DRIVERS[driver].PRESETS[preset], **changes, out=folder / "out"))
    said = ended.value.code
    assert isinstance(said, str)
    assert len(said.splitlines()) == 1
    assert not (folder / "out").exists()
    return said


@pytest.mark.parametrize("path", ["nowhere", "empty", "texts", "text.txt"])
@pytest.mark.parametrize(("driver", "preset", "option"), PATHS)
def test_a_path_with_nothing_for_a_driver_is_told_as_it_was_given(
    driver: str, preset: str, option: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value = {"board": Board((path,)), "scene": path, "photographs": path}.get(option, Path(path))
    assert path in told(driver, {option: value}, preset, tmp_path)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_device_that_is_not_there_is_told_before_anything_is_read(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEARNABLE_GEOMETRY_DATA", str(tmp_path / "empty"))
    assert told(driver, {"device": "cuda:99"}, "smoke", tmp_path).startswith("device cuda:99: ")


def test_a_device_of_no_name_is_told(tmp_path: Path) -> None:
    for driver in ("object_pose", "camera_calibration"):
        (tmp_path / driver).mkdir()
        assert told(driver, {"device": "gpu"}, "smoke", tmp_path / driver).startswith("device gpu: ")


@pytest.mark.parametrize(
    ("driver", "preset", "changes", "says"),
    [
        ("object_pose", "smoke", {"data": Path("nowhere")}, "nowhere does not exist: --data wants"),
        ("object_pose", "smoke", {"weights": Path("nowhere.pth")}, "nowhere.pth: a file wanted"),
        ("camera_calibration", "real", {"board": Board(("empty",), free=("f", "kk1"))}, "did you mean k1?"),
        ("camera_calibration", "real", {"board": Board(("empty",))}, "empty: images (.bmp, .jpeg"),
        ("structure_from_motion", "real", {"scene": "orbitt"}, "did you mean orbit?"),
        ("structure_from_motion", "real", {"scene": "my.csv"}, "image_size: width and height in px wanted"),
        ("structure_from_motion", "real", {"scene": "empty", "intrinsics": (1.0, 2.0)}, "found 2 in all"),
        ("keypoint_refinement", "smoke", {"photographs": "texts"}, "with cameras (*_par.txt) wanted, found texts"),
        ("robust_pose", "real", {"matches": Path("nowhere")}, "nowhere"),
        ("bundle_adjustment", "default", {"scene": "nowhere/at_all.txt"}, "nowhere"),
        ("bundle_adjustment", "default", {"scene": "text.txt"}, "text.txt"),
        ("structure_from_motion", "real", {"scene": "nowhere"}, "nowhere"),
        ("structure_routes", "real", {"scene": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(
    driver: str, preset: str, changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped path is no absent data."""
    monkeypatch.chdir(tmp_path)
    assert says in told(driver, changes, preset, tmp_path)
