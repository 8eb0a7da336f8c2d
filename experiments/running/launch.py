"""Drivers launched one by one or side by side, each a process of its own, so that one that dies takes no other with it.

The standard library alone is imported here, so that what launches starts at once.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from experiments.records.files import EXIT_MISSED, EXIT_SKIPPED, read_summary
from experiments.records.text import said

__all__ = ["Asked", "Ended", "launched"]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 3.0
"""Seconds that a driver is given to end by itself after Ctrl-C, and again when it is asked to."""


class Asked(NamedTuple):
    """A run of a driver: `python -m module preset --seed seed`, with further options."""

    module: str
    preset: str
    seed: int
    options: tuple[str, ...] = ()
    name: str = ""
    """Of its folder; left empty, <preset>-seed<seed>, whatever the data."""

    @property
    def experiment(self) -> str:
        return self.module.rsplit(".", 1)[-1]

    @property
    def title(self) -> str:
        return " ".join([self.experiment, self.preset, *self.options, "--seed", str(self.seed)])

    def folder(self, out: Path) -> Path:
        return out / self.experiment / (self.name or f"{self.preset}-seed{self.seed}")

    def command(self, out: Path, resume: bool) -> list[str]:
        """What starts it; the folder's name is told, since a driver would name it by the data as well."""
        words = [sys.executable, "-m", self.module, self.preset, "--seed", str(self.seed), "--out", str(out)]
        return [*words, "--name", self.folder(out).name, *self.options, *(("--resume",) if resume else ())]


class Ended(NamedTuple):
    """How it ended: converged, not converged, failed, skipped or not run; what it said; its summary if it has one."""

    status: str = "not run"
    message: str = ""
    summary: dict[str, Any] | None = None


def launched(runs: Sequence[Asked], out: Path, resume: bool = False, jobs: int = 1) -> Iterator[Ended]:
    """How each of the runs ended, in their order; up to `jobs` of them run at a time. Their results go to `out`.

    Whoever leaves this early, as by Ctrl-C, ends the drivers with it.
    """
    running: list[subprocess.Popen[str]] = []

    def run(number: int, asked: Asked) -> Ended:
        title = f"[{number}/{len(runs)}] {asked.title}"
        print(title, flush=True)
        ended = _run(asked, out, resume, running)
        print(f"{title}: {said(ended.status)}", flush=True)
        return ended

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, number, asked) for number, asked in enumerate(runs, 1)]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for driver in list(running):
                _end(driver)
            raise


def _run(asked: Asked, out: Path, resume: bool, running: list[subprocess.Popen[str]]) -> Ended:
    """One driver to its end; it is among the `running` for as long as it does."""
    path = asked.folder(out) / "summary.json"
    before = _written(path)
    tail: deque[str] = deque(maxlen=12)
    command = asked.command(out, resume)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, errors="replace") as driver:
        running.append(driver)
        assert driver.stderr is not None
        for line in driver.stderr:  # passed on as it comes: the progress is in it
            sys.stderr.write(line)
            tail.append(line.rstrip())
    running.remove(driver)
    code, last = driver.returncode, "\n".join(line for line in tail if line)
    if code == EXIT_SKIPPED:
        return Ended("skipped", last.rsplit("\n", 1)[-1])
    if code not in (0, EXIT_MISSED):
        return Ended("failed", f"exit code {code}\n{last}")
    written = _written(path)
    if not written or (written == before and not resume):  # an old summary says nothing about this run
        return Ended("failed", f"it ended without writing {path}")
    summary = read_summary(path)
    told = [*summary["undetermined"], *filter(None, [summary["note"]])]
    return Ended("converged" if summary["converged"] else "not converged", "\n".join(told), summary)


def _end(driver: subprocess.Popen[str]) -> None:
    """End a driver: a terminal's Ctrl-C reaches it, too, another's this process alone; and some do not listen."""
    for ask in (lambda: None, lambda: driver.send_signal(signal.SIGINT), driver.kill):
        ask()
        try:
            driver.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            pass


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
