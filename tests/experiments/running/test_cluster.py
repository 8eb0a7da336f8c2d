"""Runs as jobs: of this machine, and of a SLURM that runs them here."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import run_all
from experiments.running import cluster, launch
from tests.commands import PATIENCE
from tests.slurm import installed

submitit = pytest.importorskip("submitit", reason="submitit is not installed")
pytestmark = pytest.mark.slow

# A driver without torch. Its seed says how it ends; `paper` waits, until it is resumed.
STUB = """
import json, os, pathlib, sys, time
preset, _, seed, _, out, _, name, *rest = sys.argv[1:]
folder = pathlib.Path(out) / "stub" / name
folder.mkdir(parents=True, exist_ok=True)
(folder / "started").open("a").write(f"{os.getpid()} {os.getppid()} {' '.join(rest)}\\n")
if seed == "6":
    sys.exit(print("The data are absent.", file=sys.stderr) or 3)
if seed == "5":
    raise ValueError("no such luck")
if preset == "paper" and "--resume" not in rest:
    time.sleep(1000)
summary = {"converged": True, "iterations": 7, "seconds": 1.5, "loss": 0.25, "errors": {"x": 1 + int(seed)}}
(folder / "summary.json").write_text(json.dumps(summary | {"reference": {}, "note": ""}))
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """run_all with one experiment, a stub; the folder of its results."""
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(run_all, "EXPERIMENTS", ("stub",))
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(cluster.Cluster, "pace", 0.1)
    # jobs import the suite, which then looks for drivers in its own folder: the stub is put on their path
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "out"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of its jobs."""
    for name, value in installed(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    submitit.SlurmJob.watcher.clear()  # jobs have the numbers of another test's
    return tmp_path / "slurm"


def statuses(out: Path) -> list[str]:
    return [run["status"] for run in json.loads((out / "summary.json").read_text())["runs"]]


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_runs_end_as_they_do_here(stub: Path, slurm: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What works, fails and is skipped, two at a time; gathered into one summary, over seeds as well."""
    jobs = ["--submit", kind, "--jobs", "2"]
    assert run_all.main(["--preset", "default", "--seeds", "3", "4", "5", "6", "--out", str(stub), *jobs]) == 1
    assert statuses(stub) == ["converged", "converged", "failed", "skipped"]
    summary = json.loads((stub / "summary.json").read_text())
    assert summary["runs"][2]["message"].endswith("ValueError: no such luck")
    assert summary["runs"][3]["message"] == "The data are absent."
    (sweep,) = summary["over_seeds"]
    assert (sweep["reached"]["hits"], sweep["reached"]["seeds"]) == (2, 3)
    assert sweep["values"]["x"]["median"] == 4.5
    assert "stub default --seed 4: goal reached" in capfd.readouterr().out
    assert len(list(slurm.glob("*.script"))) == (4 if kind == "slurm" else 0)


def test_slurm_is_told_what_was_asked_for(stub: Path, slurm: Path) -> None:
    told = ["partition=gpu", "timeout_min=7", "gpus_per_node=2", "setup=['export GREETING=hello']"]
    assert run_all.main(["--preset", "default", "--out", str(stub), "--submit", "slurm", "--slurm", *told]) == 0
    script = (slurm / "1.script").read_text()
    for line in ("--partition=gpu", "--time=7", "--gpus-per-node=2", "--job-name=stub-default-seed0"):
        assert f"#SBATCH {line}\n" in script
    assert "\nexport GREETING=hello\n" in script


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (["partitoin=gpu"], "Unknown argument 'partitoin'"),
        (["gpu"], "options NAME=VALUE wanted, got 'gpu'"),
    ],
)
def test_options_that_are_none_are_refused(
    stub: Path, slurm: Path, told: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        run_all.main(["--out", str(stub), "--submit", "slurm", "--slurm", *told])
    assert list(slurm.glob("*.script")) == []


def test_where_there_is_no_slurm_it_says_so(stub: Path) -> None:
    with pytest.raises(SystemExit, match='--submit slurm: Could not detect "srun"'):
        run_all.main(["--out", str(stub), "--submit", "slurm"])


def test_without_submitit_it_says_how_to_get_it(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install -c constraints.txt -e '.\[experiments,cluster\]'"):
        cluster.Cluster("local", stub)
    assert not stub.exists()


def test_a_job_that_slurm_refuses_or_kills_has_failed(stub: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # no file is on its way from another machine
    asked = ["--preset", "default", "--out", str(stub), "--submit", "slurm", "--slurm"]
    assert run_all.main([*asked, "partition=closed"]) == 1
    (run,) = json.loads((stub / "summary.json").read_text())["runs"]
    assert run["message"].startswith("it could not be submitted: ")
    assert "invalid partition specified: closed" in run["message"]
    assert run_all.main([*asked, "setup=['kill -9 $$']"]) == 1
    (run,) = json.loads((stub / "summary.json").read_text())["runs"]
    assert run["message"].endswith("job 1: failed")


@contextmanager
def waiting(out: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[int], list[str]]]]:
    """run_all as a process of its own, whose one run waits; and what was said at that driver's n-th start."""
    program = "import sys, run_all, experiments.running.launch as launch\n"
    program += "run_all.EXPERIMENTS, launch.ROOT = ('stub',), launch.Path(sys.argv.pop(1))\nsys.exit(run_all.main())"
    root = Path(run_all.__file__).parent
    command = [sys.executable, "-c", program, str(out.parent), "--preset", "paper", "--out", str(out), *options]
    with subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:

        def started(times: int) -> list[str]:
            latest = time.monotonic() + PATIENCE
            path = out / "stub" / "paper-seed0" / "started"
            while not path.exists() or path.read_text().count("\n") < times:
                assert time.monotonic() < latest, process.poll()
                time.sleep(0.05)
            return path.read_text().splitlines()[times - 1].split()

        try:
            yield process, started
        finally:
            process.kill()


def is_there(process: str) -> bool:
    try:
        return b"stub" in Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_what_is_preempted_goes_on_from_its_checkpoint(stub: Path, slurm: Path, kind: str) -> None:
    """The signal that submitit asks SLURM for, to the job: it has the driver end, and is queued again."""
    with waiting(stub, "--submit", kind) as (process, started):
        driver, job, *options = started(1)
        assert options == []
        os.kill(int(job), signal.SIGUSR2)
        assert started(2)[2:] == ["--resume"]
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert not is_there(driver)
    assert statuses(stub) == ["converged"]


def test_what_slurm_ends_and_queues_again_by_itself_goes_on_too(stub: Path, slurm: Path) -> None:
    """SIGTERM to all processes, and then no more asking: what the driver came to is no result."""
    with waiting(stub, "--submit", "slurm") as (process, started):
        driver, *_ = started(1)
        (slurm / "1.again").touch()
        batch = int((slurm / "1.pid").read_text())
        os.killpg(batch, signal.SIGTERM)
        while is_there(driver):
            time.sleep(0.05)
        time.sleep(0.3)
        assert process.poll() is None
        os.killpg(batch, signal.SIGKILL)
        assert started(2)[2:] == ["--resume"]
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert statuses(stub) == ["converged"]


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_ctrl_c_cancels_the_jobs_and_resume_goes_on(stub: Path, slurm: Path, kind: str) -> None:
    with waiting(stub, "--submit", kind) as (process, started):
        driver, *_ = started(1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in said
    assert statuses(stub) == ["not run"]
    latest = time.monotonic() + PATIENCE
    while is_there(driver) and time.monotonic() < latest:
        time.sleep(0.05)
    assert not is_there(driver)
    with waiting(stub, "--submit", kind, "--resume") as (process, started):
        assert started(2)[2:] == ["--resume"]
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert statuses(stub) == ["converged"]
