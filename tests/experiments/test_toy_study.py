"""The study of the toys: runs each with every seed, repeats none that is finished, and writes a page of each."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import toy_study
from experiments.running.launch import Asked, Ended
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
    asked: list[Asked] = []

    def finished(runs: Sequence[Asked], out: Path, resume: bool, jobs: int) -> Iterator[Ended]:
        """What the runs leave: a success of one per cent and their seed."""
        assert resume
        for run in runs:
            asked.append(run)
            folder = run.folder(out)
            folder.mkdir(parents=True)
            row = {"budget": 16, "share": 0.6, "success": 0.01 * (1 + run.seed)}
            rows = {"synthetic": [row | {"odds": odds} for odds in ODDS], "real": []}
            config = {"points": 60, "noise": 1.0, "success": [2.0, 0.02], "test_problems": 50, "budgets": [16]}
            for name, value in {"rows": rows, "config": config}.items():
                (folder / f"{name}.json").write_text(json.dumps(value))
            yield Ended("converged", "", {"errors": {}})

    monkeypatch.setattr(toy_study, "launched", finished)
    page = main(replace(PRESETS["default"], toys=("robust_pose",), seeds=(3, 5), out=tmp_path))["robust_pose"]
    assert [(run.experiment, run.preset, run.seed) for run in asked] == [
        ("robust_pose", "real", 3),
        ("robust_pose", "real", 5),
    ]
    assert "| all alike | 5.0 ± 12.7 |" in page
    assert (tmp_path / "toy_study" / "robust_pose" / "table.md").read_text() == page
    assert (tmp_path / "toy_study" / "robust_pose" / "success.png").exists()


def test_a_run_that_fails_ends_the_study_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_study, "launched", lambda runs, *_, **__: [Ended("failed", "no memory")] * len(runs))
    with pytest.raises(RuntimeError, match=r"line_fitting default --bfloat16.*no memory"):
        main(replace(PRESETS["default"], toys=("line_fitting",), out=tmp_path))
