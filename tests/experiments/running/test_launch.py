"""Runs side by side: what is said of them in a terminal and in a log, and how they end."""

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.records.progress import plan, planned_at, reached
from experiments.running.launch import Asked, Ended, launched
from tests.commands import PATIENCE

ROOT = Path(__file__).parents[3]

# A driver without torch. Half way it waits until its half is on the screen, which a file says.
STUB = """
import json, os, pathlib, sys, time
sys.path.insert(0, os.environ["SUITE"])
from experiments.records.progress import plan
preset, _, seed, _, out, _, name, *rest = sys.argv[1:]
folder = pathlib.Path(out) / "stub" / name
folder.mkdir(parents=True, exist_ok=True)
plan(folder, 20)
(folder / "metrics.csv").write_text("step,loss,x\\n" + "".join(f"{i},{0.5 ** i},1\\n" for i in range(7)) + "7,0.0")
print("careful", file=sys.stderr)
print("my own verdict")
if "TQDM_DISABLE" not in os.environ:
    print("my own bar", file=sys.stderr)
while "GO" in os.environ and not pathlib.Path(os.environ["GO"]).exists():
    time.sleep(0.02)
if preset == "dies":
    sys.exit("no such luck")
summary = {"converged": True, "iterations": 20, "seconds": 1.5, "loss": 0.25, "errors": {}, "reference": {}, "note": ""}
(folder / "summary.json").write_text(json.dumps(summary))
"""

# Launches two of them, side by side.
PROGRAM = """
import sys
from pathlib import Path
from experiments.running import launch
launch.ROOT = Path(sys.argv[1])
runs = [launch.Asked("stub", preset, 3) for preset in ("works", "dies")]
print([ended.status for ended in launch.launched(runs, Path(sys.argv[1]) / "out", jobs=2)])
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    (tmp_path / "stub.py").write_text(STUB)
    return [sys.executable, "-c", PROGRAM, str(tmp_path)]


def test_a_terminal_has_one_display_of_all_runs(program: list[str], tmp_path: Path) -> None:
    mine, its = pty.openpty()
    environment = {**os.environ, "SUITE": str(ROOT), "GO": str(tmp_path / "go"), "COLUMNS": "150", "TERM": "xterm"}
    begun = time.monotonic()
    with subprocess.Popen(program, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=environment) as launching:
        os.close(its)
        shown = ""
        while time.monotonic() < begun + PATIENCE:
            try:
                shown += os.read(mine, 1 << 16).decode(errors="replace")
            except OSError:  # it has ended
                break
            if shown.count("7/20") > 3:
                (tmp_path / "go").touch()
    os.close(mine)
    assert launching.returncode == 0
    assert "0/2" in shown  # of the runs
    assert "loss 0.01562" in shown
    assert "[1/2] stub works --seed 3: goal reached, 20 iterations, 1.5 s, loss 0.25" in shown
    assert "[2/2] stub dies --seed 3: failed: no such luck" in shown
    assert "careful" in shown
    assert "my own" not in shown
    assert "['converged', 'failed']" in shown


def test_a_log_has_lines(program: list[str]) -> None:
    environment = {**os.environ, "SUITE": str(ROOT)}
    ended = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = ended.stdout.splitlines()
    assert lines[:2] == ["[1/2] stub works --seed 3", "[2/2] stub dies --seed 3"]
    # not by lines: two drivers write into one log, and each may end its line after the other's words
    assert "[1/2] stub works --seed 3: goal reached\n" in ended.stdout
    assert "[2/2] stub dies --seed 3: failed\n" in ended.stdout
    assert ended.stdout.count("my own verdict") == 2
    assert "\x1b" not in ended.stdout
    assert ended.stderr.count("my own bar") == 2


def test_runs_come_in_their_order_and_no_more_than_jobs_at_a_time(tmp_path: Path) -> None:
    """The first of three goes on when the others have ended."""
    going: list[int] = []
    most = 0

    class Run:
        def __init__(self, seed: int) -> None:
            self.seed, self.looks = seed, 8 if seed == 0 else 2

        def done(self) -> bool:
            self.looks -= 1
            return self.looks == 0

        def result(self) -> Ended:
            going.remove(self.seed)
            return Ended("converged", str(self.seed))

    class Place:
        pace = 0.0
        left: Sequence[Run] = (Run(9),)

        def start(self, asked: Asked, out: Path, resume: bool) -> Run:
            nonlocal most
            going.append(asked.seed)
            most = max(most, len(going))
            return Run(asked.seed)

        def end(self, running: Sequence[Run]) -> None:
            self.left = running

    place = Place()
    runs = [Asked("stub", "works", seed) for seed in range(3)]
    ended = [run.message for run in launched(runs, tmp_path, jobs=2, place=place)]
    assert ended == ["0", "1", "2"]
    assert most == 2
    assert place.left == []
    halfway = launched(runs[1::-1], tmp_path, jobs=2, place=place)
    next(halfway)
    halfway.close()
    assert [run.seed for run in place.left] == [0]


def test_no_jobs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        next(launched([Asked("stub", "works", 0)], tmp_path, jobs=0))


def test_progress_is_that_of_the_last_whole_row(tmp_path: Path) -> None:
    assert planned_at(tmp_path) == 0
    assert reached(tmp_path) is None
    plan(tmp_path, 50)
    assert planned_at(tmp_path) > 0
    metrics = tmp_path / "metrics.csv"
    for text in ("", "step,loss", "step,loss\n", "step,loss\n0,0."):
        metrics.write_text(text)
        assert reached(tmp_path) is None
    metrics.write_text("step,loss,x\n0,nan,1\n1,2e-3,1\n2,")
    assert reached(tmp_path) == (2, 50, 2e-3)
    metrics.write_text("step,loss,x\n" + "".join(f"{i},{i / 10},{'1' * 50}\n" for i in range(5000)))
    assert reached(tmp_path) == (5000, 50, 499.9)


@pytest.mark.slow
def test_a_run_says_how_far_it_is(tmp_path: Path) -> None:
    from tests.experiments.running.toy_driver import PRESETS, main

    folder = tmp_path / "toy_driver" / "smoke-seed0"
    summary = main(type(PRESETS["smoke"])(preset="smoke", iterations=3, out=tmp_path))
    assert reached(folder) == (3, 3, summary["loss"])
    assert json.loads((folder / "config.json").read_text())["iterations"] == 3
