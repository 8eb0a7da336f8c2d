"""The study of the toys: runs each with every seed, repeats none that is finished, and writes a page of each."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.toy_study import PRESETS, TRAININGS, main


def test_options_and_presets_are_those_of_the_toys() -> None:
    """A preset that is gone, or a folder two trainings share, is found here and not after an hour."""
    from experiments import expert_selection, line_fitting, robust_pose

    toys = {"line_fitting": line_fitting, "expert_selection": expert_selection, "robust_pose": robust_pose}
    for toy, trainings in TRAININGS.items():
        assert {training.preset for training in trainings} <= set(toys[toy].PRESETS)
        assert len({training.folder(200) for training in trainings}) == len(trainings)


ODDS = ("sampling_sharp", "weights_sharp", "classify_sharp", "ratio_sharp", "uniform", "labels")


def test_a_page_is_made_of_the_runs_of_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is asked to resume each run, and what it left is read."""
    commands: list[list[str]] = []

    def finished(command: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        """What a run leaves: a success of one per cent and its seed."""
        commands.append(command)
        folder = tmp_path / "robust_pose" / command[command.index("--name") + 1]
        folder.mkdir(parents=True)
        success = 0.01 * (1 + int(command[command.index("--seed") + 1]))
        row = {"budget": 16, "share": 0.6, "success": success}
        said = {"summary": {"errors": {}}, "rows": {"synthetic": [row | {"odds": o} for o in ODDS], "real": []}}
        said["config"] = {
            "points": 60, "noise": 1.0, "success": [2.0, 0.02], "test_problems": 50, "budgets": [16],
        }  # fmt: skip
        for name, value in said.items():
            (folder / f"{name}.json").write_text(json.dumps(value))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", finished)
    page = main(replace(PRESETS["default"], toys=("robust_pose",), seeds=(3, 5), out=tmp_path))["robust_pose"]
    assert [command[2:4] for command in commands] == [["experiments.robust_pose", "real"]] * 2
    assert all("--resume" in command for command in commands)
    assert "| all alike | 5.0 ± 12.7 |" in page
    assert (tmp_path / "toy_study" / "robust_pose" / "table.md").read_text() == page
    assert (tmp_path / "toy_study" / "robust_pose" / "success.png").exists()


def test_a_run_that_fails_ends_the_study_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "the data are absent")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **named: failed)
    with pytest.raises(RuntimeError, match="the data are absent"):
        main(replace(PRESETS["default"], toys=("line_fitting",), out=tmp_path))
