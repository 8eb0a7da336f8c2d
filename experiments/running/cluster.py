"""Runs as jobs of SLURM, or of this machine, by submitit: each job starts the driver that `Here` would.

A job that is preempted, or whose time is over, is queued again and goes on from its last checkpoint. What jobs write,
they write into the folder of all results, which every machine must see.
"""

from __future__ import annotations

import ast
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.running.launch import PATIENCE, ROOT, Asked, Driver, Ended, end

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

__all__ = ["Cluster"]

MINUTES = {"local": 30 * 24 * 60, "slurm": 60}
"""Minutes that submitit gives a job are 2 here and 5 there, where nothing is said."""
GRACE = 120.0
"""Seconds after SLURM's SIGTERM in which it has ended whatever it meant to end, the job itself among it."""


class Cluster:
    """A place for runs. options: of sbatch, as submitit names them, NAME=VALUE each.

    Raises ValueError where submitit or SLURM is not there, or an option is none.
    """

    pace = 1.0

    def __init__(self, kind: Literal["local", "slurm"], out: Path, options: Sequence[str] = ()) -> None:
        try:
            from submitit import AutoExecutor
        except ImportError:
            raise ValueError(
                "submitit is not installed: pip install -c constraints.txt -e '.[experiments,cluster]'"
            ) from None
        (out / "jobs").mkdir(parents=True, exist_ok=True)
        # a folder of their own: numbers of local jobs are those of processes, and come again
        folder = tempfile.mkdtemp(prefix=f"{time.strftime('%Y-%m-%d')}-", dir=out / "jobs")
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        python = shlex.join(["env", f"PYTHONPATH={paths}", sys.executable])
        told = {"timeout_min": MINUTES[kind], **dict(map(_option, options))}
        try:
            self.executor = AutoExecutor(folder, kind, local_python=python, slurm_python=python)
            self.executor.update_parameters(**{f"{kind}_{name}": value for name, value in told.items()})
        except (RuntimeError, NameError, ValueError, AssertionError) as error:
            os.rmdir(folder)
            raise ValueError(f"{kind}: {str(error).splitlines()[0]}") from None

    def start(self, asked: Asked, out: Path, resume: bool) -> Submitted:
        """Submit it."""
        self.executor.update_parameters(name=f"{asked.experiment}-{asked.folder(out).name}")
        try:
            return Submitted(self.executor.submit(Run(asked, out, resume)))
        except (RuntimeError, OSError) as error:
            return Submitted(None, f"it could not be submitted: {error}")

    def end(self, running: Sequence[Submitted]) -> None:
        """Cancel the jobs."""
        for each in running:
            each.cancel()
        latest = time.monotonic() + PATIENCE
        while time.monotonic() < latest and not all(each.done() for each in running):
            time.sleep(0.1)


def _option(told: str) -> tuple[str, Any]:
    """A name, and a value that is a number or list of Python, or else the text as it is."""
    name, equals, value = told.partition("=")
    if not (name and equals):
        raise ValueError(f"slurm: options NAME=VALUE wanted, got {told!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


class Submitted:
    """A job, or why there is none."""

    def __init__(self, job: Job[Ended] | None, trouble: str = "") -> None:
        self.job, self.trouble = job, trouble

    def done(self) -> bool:
        """Whether it has ended; one that is queued again has not."""
        return self.job is None or self.job.done()

    def result(self) -> Ended:
        """What the run came to, or what became of the job."""
        if self.job is None:
            return Ended("failed", self.trouble)
        try:
            return self.job.result()
        except RuntimeError as error:  # submitit's: it was killed, cancelled, or took too much
            return Ended("failed", f"{error}\njob {self.job.job_id}: {self.job.state.lower()}")

    def cancel(self) -> None:
        """Take it out of the queue, or end it."""
        if self.job is not None:
            self.job.cancel(check=False)


class Run:
    """What the job does. It is pickled when it is submitted, and again when it is queued again."""

    def __init__(self, asked: Asked, out: Path, resume: bool) -> None:
        self.asked, self.out, self.resume = asked, out, resume

    def __call__(self) -> Ended:
        """Start the driver and wait for its end. SLURM's count says of a job that it queued again by itself."""
        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        self.driver = Driver(self.asked, self.out, self.resume or again)
        try:
            if -self.driver.wait() in (signal.SIGTERM, signal.SIGUSR2):  # of SLURM, to all processes of the job:
                time.sleep(GRACE)  # it is no result, this process is the next to be ended
            return self.driver.result()
        finally:
            end([self.driver])

    def checkpoint(self) -> DelayedSubmission:
        """What is queued again: submitit asks when the job is preempted, or shortly before its time is over."""
        from submitit.helpers import DelayedSubmission

        end([self.driver])
        return DelayedSubmission(Run(self.asked, self.out, resume=True))
