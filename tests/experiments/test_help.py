"""What a newcomer is told: the list of all drivers, and the help of each."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import listed, main
from experiments.running.catalogue import ROOT, drivers, presets_told, without_presets
from experiments.running.config import cli
from experiments.running.mistyped import options
from experiments.running.options import idle, written
from tests.commands import python_m

DRIVERS = drivers()
WITH_PRESETS = [name for name in DRIVERS if "\nPRESETS = " in (ROOT / f"{name.replace('.', '/')}.py").read_text()]
VERBS = {
    *("Adjusts", "Asks", "Calibrates", "Chooses", "Compares", "Continues", "Counts", "Describes", "Does", "Ends"),
    *("Estimates", "Fetches", "Finds", "Follows", "Gives", "Keeps", "Learns", "Leaves", "Lets", "Limits", "Lists"),
    *("Looks", "Makes", "Measures", "Names", "Passes", "Races", "Reconstructs", "Replaces", "Runs", "Says", "Searches"),
    *("Seeds", "Seeks", "Serves", "Sets", "Shows", "Solves", "Stops", "Takes", "Trains", "Weighs", "Writes"),
}
"""What a help text begins with: it says what the option does."""


def module(name: str) -> Any:
    return importlib.import_module(f"experiments.{name}")


def told(printed: str) -> dict[str, str]:
    """The first word of the help of each option in what --help prints."""
    return dict(
        re.findall(
            r"^[│ ] (--[\w.-]+)\b(?: \S.*?)?(?: {2,}|[ │]*\n(?:[│ ] [^ -].*\n)*[│ ] {8,})([A-Z]\S*)",
            printed,
            re.MULTILINE,
        )
    )


@pytest.mark.parametrize("name", WITH_PRESETS)
def test_every_preset_and_every_option_has_a_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    presets = module(name).PRESETS
    assert DRIVERS[name].presets.keys() == presets.keys()
    for preset, sentence in DRIVERS[name].presets.items():
        assert sentence.split()[0] in VERBS, (preset, sentence)
        assert sentence.endswith("."), (preset, sentence)
        monkeypatch.setenv("COLUMNS", "110")  # of more, groups stand side by side
        monkeypatch.setattr(sys, "argv", [name, preset, "--help"])
        with pytest.raises(SystemExit) as ended:
            cli(module(name).__doc__, presets)
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        assert sentence in " ".join(printed.split())
        first = told(printed)
        config = presets[preset]
        asleep = {written(config)[name].option for name in idle(config, helping=True)}
        assert asleep <= options(config).keys()
        assert first.keys() == options(config).keys() - asleep
        assert set(first.values()) <= VERBS, {key: word for key, word in first.items() if word not in VERBS}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DRIVERS if name not in WITH_PRESETS])
def test_commands_without_presets_say_what_their_options_do(name: str) -> None:
    printed = python_m(f"experiments.{name}", "--help")
    first = told(printed) or dict(re.findall(r"^  (--[\w.-]+)(?: \S+)*\s+(\w+)", printed, re.MULTILINE))
    assert first
    assert {word.capitalize() for word in first.values()} <= VERBS, first


def test_all_that_can_be_run_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = listed()
    assert {"pose_estimation", "view", "tasks.homography", "benchmarks.pnp"} <= DRIVERS.keys()
    for name, driver in DRIVERS.items():
        assert driver.title.endswith((".", "?")), name
        assert f"\n  {name}: " in text
    assert "    default        Learns the keypoints themselves, by Gauss-Newton through the layer." in text


@pytest.mark.slow
def test_the_list_comes_without_the_libraries_of_the_drivers() -> None:
    script = (
        "import sys, experiments.__main__ as it; it.main([]); assert not {'torch', 'tyro', 'numpy'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert "pose_estimation" in done.stdout


def test_presets_are_read_from_the_list_of_a_docstring() -> None:
    docstring = "What it is.\n\nPresets:\n\n- default: Runs\n  it all.\n- smoke: Runs less.\n\nMore."
    assert presets_told(docstring) == {"default": "Runs it all.", "smoke": "Runs less."}
    assert without_presets(docstring) == "What it is.\n\nMore."
    assert presets_told(None) == presets_told("What it is.\n") == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("pose_estimatoin", "There is no experiment pose_estimatoin; did you mean pose_estimation?"),
        ("homography", "There is no experiment homography; did you mean tasks.homography?"),
        ("qqq", "There is no experiment qqq; python -m experiments lists them"),
        (
            "benchmarks.rig_bundle smok",
            "benchmarks.rig_bundle has presets default, smoke, not smok; did you mean smoke?",
        ),
    ],
)
def test_the_nearest_name_is_told_before_anything_is_imported(arguments: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == sentence


@pytest.mark.slow
def test_a_driver_runs_by_its_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments", "camera_calibration", "smoke", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT.parent, capture_output=True, check=True)
    assert (tmp_path / "camera_calibration" / "smoke-seed0" / "summary.json").exists()
