"""Section 4.2 over seeds: what is said of runs, and that there are as many as were asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments import structure_study
from experiments.running.launch import Asked, Ended
from experiments.structure_study import Config, report, told


def summary(seed: int, learned: float, finished: float, loss: float = 9e-11) -> dict[str, Any]:
    """A run that learned a shape with this rms, and ended with that one after the finish."""
    errors = {
        "learned_loss": loss, "learned_rms_share": learned, "learned_rms_share_of_mirror": 0.77 - learned,
        "rms_share": finished, "rms_share_of_mirror": 0.8, "mirror_loss": 1.0675e-10,
    }  # fmt: skip
    return {
        "seed": seed, "iterations": 80 + seed, "converged": finished < 0.1, "loss": 1e-21, "errors": errors, "note": "",
        "undetermined": [],
    }  # fmt: skip


RUNS = [summary(0, 0.03, 1e-9), summary(1, 0.74, 1e-9, 1.08e-10), summary(2, 0.04, 0.5), summary(3, 0.4, 1e-9)]


def test_what_the_seeds_have_in_common() -> None:
    said = told(RUNS)
    assert said.startswith("Learned are 2 right (2 below 1e-10), 1 mirror (0 below 1e-10), 1 neither (1 below 1e-10)")
    assert "the right ones took 81 (80 to 82) iterations" in said
    assert "After the finish 3 of 4 are the right shape" in said
    assert said.endswith("end at 1e-21 and 1.068e-10 (medians).")


def test_a_row_for_every_run() -> None:
    text = report({"published duck": RUNS, "our duck": RUNS[:1]})
    assert "## Published duck\n\n`structure_from_motion paper --finish`. Learned" in text
    assert "## Our duck\n\n`structure_from_motion paper_made --finish`. Learned" in text
    assert "| 1 | 81 | mirror | 1.080e-10 | 74.0 % | 1.0e-21 | 1.0675e-10 | 1e-09 |" in text
    assert len([line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]) == 5


def test_runs_are_launched_once_each_and_may_be_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Asked] = []

    def launched(runs: Sequence[Asked], out: Path, resume: bool, jobs: int) -> Iterator[Ended]:
        assert resume
        for run in runs:
            seen.append(run)
            yield Ended("converged", "", summary(run.seed, 0.03, 1e-9))

    monkeypatch.setattr(structure_study, "launched", launched)
    text = structure_study.main(Config(seeds=(5, 6), other_seeds=(7,), out=tmp_path))
    assert (tmp_path / "structure_study" / "published.md").read_text() == text
    assert len({run.name for run in seen}) == len(seen) == 2 + 3
    assert seen[0].title.startswith("structure_from_motion paper --finish")
    assert [run.seed for run in seen] == [5, 6, 7, 7, 7]


def test_a_run_that_fails_ends_the_study_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure_study, "launched", lambda *runs, **how: iter([Ended("failed", "no memory")]))
    with pytest.raises(SystemExit, match="failed: no memory"):
        structure_study.main(Config(seeds=(5,), other_seeds=(), out=tmp_path))
