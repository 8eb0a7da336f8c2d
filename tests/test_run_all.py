"""run_all.py with toy drivers: one bad run does not take the others, or the summary, with it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import run_all
from experiments.records.overview import report
from experiments.running import launch

# A driver without torch, so that each run takes a blink: its preset says how it ends.
STUB = """
import json, pathlib, sys
preset, _, seed, _, out, *rest = sys.argv[1:]
folder = pathlib.Path(out) / __file__.split("/")[-1][:-3] / f"{preset}-seed{seed}"
if preset == "real":
    sys.exit(print("loading", file=sys.stderr) or print("The data are absent.", file=sys.stderr) or 3)
folder.mkdir(parents=True, exist_ok=True)
(folder / "arguments").write_text(" ".join(rest))
if preset != "smoke":  # smoke ends well, and says nothing
    summary = {"converged": preset == "default", "iterations": 7, "seconds": 1.5, "loss": 0.25}
    if preset == "paper":  # as an earlier version did not
        summary |= {"goal": "loss below 1", "undetermined": ["Nobody knows the scale."]}
    summary |= {"errors": {"x": 0.125}, "reference": {"x": "1 px"}, "note": f"ended as {preset}"}
    (folder / "summary.json").write_text(json.dumps(summary))
    sys.exit(0 if summary["converged"] else 4)
"""


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """run_all with two experiments, of which the first dies; returns the options that keep it in tmp_path."""
    (tmp_path / "dying.py").write_text("def f():\n    raise ValueError('no such luck')\nf()")
    (tmp_path / "good.py").write_text(STUB)
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(run_all, "EXPERIMENTS", ("dying", "good"))
    return ["--out", str(tmp_path / "out")]


def results(options: list[str]) -> tuple[dict, str]:
    out = Path(options[1])
    return json.loads((out / "summary.json").read_text()), (out / "summary.md").read_text()


def test_it_goes_on_after_a_failure(stubs: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_all.main(stubs) == 1
    summary, table = results(stubs)
    assert [run["status"] for run in summary["runs"]] == ["failed", "failed", "converged", "skipped"]
    assert not summary["ok"]
    assert summary["runs"][0]["message"].startswith("exit code 1\n")
    assert summary["runs"][0]["message"].endswith("ValueError: no such luck")
    assert "| dying | default | 0 |  | 0/1 |  |" in table
    assert "| good | default | 0 |  | 1/1 | 7 | 1.5 | 0.25 | x 0.125 | x 1 px |" in table
    assert "| good | real | 0 | skipped: The data are absent. |" in table
    assert "    ValueError: no such luck" in table
    assert "good default --seed 0: goal reached\n\n    ended as default" in table
    index = Path(stubs[1]) / "index.html"
    page = index.read_text()
    assert [page.count(f'<span class="badge {state}">') > 0 for state in ("failed", "converged", "skipped")] == [
        True
    ] * 3
    assert "ValueError: no such luck" in page
    assert "torch" in page
    said = capfd.readouterr()
    assert "dying            0/1" in said.out
    assert "x 0.125" in said.out
    assert "dying default --seed 0: failed: ValueError: no such luck" in said.out
    assert said.out.endswith(f"{index}\n")
    assert "no such luck" in said.err


def test_what_converged_or_was_skipped_is_a_success(stubs: list[str]) -> None:
    assert run_all.main([*stubs, "--only", "good", "--seeds", "3", "4", "--resume"]) == 0
    summary, table = results(stubs)
    assert summary["ok"]
    assert "| good | default | 3, 4 |  | 2/2 | 7 |" in table
    assert (Path(stubs[1]) / "good" / "default-seed4" / "arguments").read_text() == "--name default-seed4 --resume"


def test_a_run_that_misses_its_goal_counts_as_failed(stubs: list[str]) -> None:
    assert run_all.main([*stubs, "--only", "good", "--preset", "default", "paper"]) == 1
    table = results(stubs)[1]
    assert "| good | paper | 0 | loss below 1 | 0/1 | 7 |" in table
    assert (
        "## Failed\n\ngood paper --seed 0: goal not reached\n\n    Nobody knows the scale.\n    ended as paper" in table
    )


@pytest.mark.parametrize("stale", [False, True])
def test_a_run_without_a_summary_of_its_own_failed(stubs: list[str], stale: bool) -> None:
    if stale:
        path = Path(stubs[1]) / "good" / "smoke-seed0" / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_text('{"converged": true}')
    assert run_all.main([*stubs, "--only", "good", "--preset", "smoke"]) == 1
    assert "ended without writing" in results(stubs)[1]


@pytest.mark.slow
def test_it_finds_what_a_driver_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_all, "EXPERIMENTS", ("tests.experiments.running.toy_driver",))
    assert run_all.main(["--out", str(tmp_path), "--seeds", "1"]) == 0
    summary, table = results(["--out", str(tmp_path)])
    assert [run["status"] for run in summary["runs"]] == ["converged", "skipped"]
    assert "| toy_driver | default | 1 | loss below 0.1 | 1/1 | 50 |" in table
    assert "| toy_driver | real | 1 | skipped: The real quadratic is not on this machine. |" in table


def test_ctrl_c_still_writes_the_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_all, "launched", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all.main(["--only", "pose_estimation", "--out", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {run["status"] for run in summary["runs"]} == {"not run"}
    assert not summary["ok"]
    assert '<span class="badge not-run">' in (tmp_path / "index.html").read_text()


# A driver that listens to Ctrl-C, or does not; who it is stands in a file.
WAITING = """
import os, pathlib, signal, sys, time
if "deaf" in __file__:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path(__file__).with_suffix(".pid").write_text(str(os.getpid()))
print("ready", file=sys.stderr, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("name", ["listening", "deaf"])
def test_ctrl_c_of_run_all_alone_ends_its_driver_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text(WAITING)
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(launch, "PATIENCE", 0.3)
    shown = sys.stderr

    class Screen:
        def write(self, line: str) -> None:
            shown.write(line)
            if line == "ready\n":
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys, "stderr", Screen())
    with pytest.raises(KeyboardInterrupt):
        list(launch.launched([launch.Asked(name, "default", 0), launch.Asked(name, "default", 1)], tmp_path / "out"))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / f"{name}.pid").read_text()), 0)


def test_seeds_are_aggregated_and_nan_stands_out() -> None:
    def run(seed: int, loss: object) -> dict:
        summary = {
            "goal": f"loss below {1 + seed // 2}",
            "iterations": 10 + seed,
            "seconds": 1.5,
            "loss": loss,
            "errors": {"x": loss},
        }
        ended = {"status": "converged", "message": "", "summary": {**summary, "reference": {"x": "1 px"}}}
        return {"experiment": "e", "preset": "p", "seed": seed, **ended}

    table = report([run(0, 1.0), run(1, 3.0), run(2, 8.25)], [])
    row = "| e | p | 0, 1, 2 | loss below 1<br>loss below 2 | 3/3 | 11 (10 to 12) | 1.5 | 3 (1 to 8.25) | "
    assert row + "x 3 (1 to 8.25) | x 1 px |" in table
    assert "| nan in 1 of 2 | x nan in 1 of 2 |" in report([run(0, 1.0), run(1, "nan")], [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nosuch"],
        ["--preset", "nosuch"],
        ["--seeds", "x"],
        ["--jobs", "0"],
        ["--submit", "nosuch"],
        ["--submit", "local", "--slurm", "partition=gpu"],
    ],
)
def test_bad_arguments_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_all.main(arguments)
    assert ended.value.code == 2


def test_it_imports_nothing_heavy() -> None:
    code = "import run_all, sys; sys.exit(bool({'torch', 'numpy', 'matplotlib', 'jinja2'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(run_all.__file__).parent, check=False).returncode == 0


def test_others_are_named_as_the_list_names_them() -> None:
    asked = run_all.options_of(["--only", "tasks.hand_eye", "tasks.homography", "pose_estimation"]).asked
    assert asked == [
        ("experiments.tasks.hand_eye", "default"),  # it has no preset real
        ("experiments.tasks.homography", "default"),
        ("experiments.tasks.homography", "real"),
        ("experiments.pose_estimation", "default"),
        ("experiments.pose_estimation", "real"),
    ]
    assert run_all.options_of(["--only", "object_pose", "--preset", "pose"]).asked == [
        ("experiments.object_pose", "pose")
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--only homographyy", "--only: no experiment homographyy; did you mean tasks.homography?"),
        ("--only toy_study", "--only: no experiment toy_study"),  # it makes no run of its own
        ("--only tasks.hand_eye --preset real", "--preset: tasks.hand_eye has presets default, smoke, not real"),
        ("--preset smok", "--preset: pose_estimation has presets"),
    ],
)
def test_the_nearest_is_told(arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_all.options_of(arguments.split())
    assert sentence in capsys.readouterr().err
