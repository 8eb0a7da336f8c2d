"""The study of losses: what it trains, what it keeps, and what its tables say of several days' trainings."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from experiments import object_pose_study as study
from experiments.object_pose_study import PRESETS, Config, Training, main
from experiments.object_poses import records
from experiments.object_poses.records import Reached

KEYS = ("add_0.02d", "add_0.05d", "add_0.1d", "projection_5px")


def reached(label: str, seed: int, level: float = 0.5) -> Reached:
    """Scores that depend on all of it."""
    rng = np.random.default_rng([len(label), ord(label[-1]), seed])
    scores = {name: {key: level + 0.1 * float(rng.random()) for key in KEYS} for name in ("1", "3*")}
    whole = {key: sum(row[key] for row in scores.values()) / 2 for key in KEYS}
    return Reached(label, seed, 20.0 + seed, 0.02, scores | {"mean": whole, "all instances": whole})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was trained, in place of trainings."""
    names = []

    def train(_: Config, some: Sequence[Training]) -> Iterator[Reached | str]:
        for label, asked in some:
            names.append(asked.name)
            yield "it broke" if asked.name == "pose-seed1" else reached(label, asked.seed)

    monkeypatch.setattr(study, "train", train)
    return names


def config(folder: Path, **changes: Any) -> Config:
    return replace(PRESETS["default"], record=folder / "kept" / "all.json", **changes)


def test_the_default_is_every_loss_over_three_seeds(tmp_path: Path, trained: list[str]) -> None:
    with pytest.raises(SystemExit, match="it broke"):
        main(config(tmp_path))
    presets = ("heatmap", "default", "pose", "monte_carlo", "linear_covariance")
    assert sorted(trained) == sorted(f"{preset}-seed{seed}" for preset in presets for seed in (0, 1, 2))
    kept = json.loads((tmp_path / "kept" / "all.json").read_text())["runs"]
    assert sorted(kept) == sorted(set(trained) - {"pose-seed1"})  # of which the others are none the worse
    trained.clear()
    with pytest.raises(SystemExit, match="it broke"):
        main(config(tmp_path))
    assert trained == ["pose-seed1"]


def test_trainings_of_several_days_are_one_table(tmp_path: Path, trained: list[str]) -> None:
    main(config(tmp_path, presets=("heatmap", "default"), seeds=(0,)))
    main(config(tmp_path, presets=("heatmap",), seeds=(2, 0)))
    assert trained == ["heatmap-seed0", "default-seed0", "heatmap-seed2"]
    other = tmp_path / "elsewhere.json"
    records.add(other, "", {"default-seed2": reached("l_m", 2), "default-seed0": reached("l_m", 0)})
    runs = main(config(tmp_path, seeds=(), joined=(other,)))
    assert len(trained) == 3
    assert sorted(runs) == ["default-seed0", "default-seed2", "heatmap-seed0", "heatmap-seed2"]
    text = (tmp_path / "kept" / "all.md").read_text()
    for label in ("l_h", "l_m"):
        values = [100 * reached(label, seed).scores["mean"]["add_0.1d"] for seed in (0, 2)]
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {label} | 0, 2 |"))
        assert f" {np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} " in row
        assert "| 21.0 |" in row  # minutes


def test_differences_are_paired_and_their_intervals_student_s() -> None:
    runs = [reached(label, seed) for label in ("l_h", "l_m") for seed in (0, 1, 2, 5)] + [reached("l_h", 7)]
    runs.append(reached("l_p", 0))  # of which there is one alone
    text = records.differences(records.by_label(runs, ["l_h", "l_m"]), "l_h")
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [(row[0].strip("| "), row[1], row[2]) for row in rows] == [
        ("l_m", name, "4") for name in ("1", "3*", "mean")
    ]
    for row in rows:
        ours, base = (
            [reached(label, seed).scores[row[1]][KEYS[0]] for seed in (0, 1, 2, 5)] for label in ("l_m", "l_h")
        )
        low, high = ttest_rel(ours, base).confidence_interval(0.95)
        assert row[3] == f"{50 * (low + high):+.1f} ± {50 * (high - low):.1f}"


@pytest.mark.parametrize("content", ["[]", "{}", '{"options": "", "runs": {"a": {"label": "l_h"}}}', "no json"])
def test_what_is_no_record_is_named_and_left_alone(tmp_path: Path, trained: list[str], content: str) -> None:
    path = tmp_path / "all.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"all\.json: trainings of object_pose_study wanted"):
        main(replace(PRESETS["default"], record=path))
    assert path.read_text() == content
    assert not trained


def test_trainings_that_were_told_something_else_are_not_mixed_with_these(tmp_path: Path, trained: list[str]) -> None:
    main(config(tmp_path, presets=("heatmap",), seeds=(0,), options="--iterations=3000"))
    with pytest.raises(SystemExit, match="found some told '--iterations=3000': give another --record"):
        main(config(tmp_path))
    assert trained == ["heatmap-seed0"]


@pytest.mark.slow
def test_a_training_that_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"(?s)object_pose smoke.*exit code 1.*wants the folder of a data set in BOP's layout"
    ):
        main(replace(PRESETS["smoke"], out=tmp_path, options=f"--data={tmp_path / 'nowhere'}"))
    assert not (tmp_path / "object_pose_study" / "losses.md").exists()
