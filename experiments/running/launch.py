"""Drivers launched one by one or side by side, each a process of its own, so that one that dies takes no other with it.

Where they run is a `Place`: `Here` is this machine, `experiments.running.cluster` has others. The standard library
alone is imported here, so that what launches starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol

from experiments.records.files import EXIT_MISSED, EXIT_SKIPPED, read_summary
from experiments.running.display import display

__all__ = ["Asked", "Driver", "Ended", "Here", "Place", "Running", "end", "launched"]

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


class Running(Protocol):
    """A run that has been started."""

    def done(self) -> bool:
        """Whether it has ended."""

    def result(self) -> Ended:
        """How it ended, once it has."""


class Place(Protocol):
    """Where runs are started, and what ends them early."""

    pace: float
    """Seconds between looks at what runs there."""

    def start(self, asked: Asked, out: Path, resume: bool) -> Running:
        """Start one; its results go to `out`."""

    def end(self, running: Sequence[Any]) -> None:
        """End those that it started and that have not ended."""


def launched(
    runs: Sequence[Asked], out: Path, resume: bool = False, jobs: int = 1, place: Place | None = None
) -> Iterator[Ended]:
    """How each of the runs ended, in their order; up to `jobs` of them run at a time. Their results go to `out`.

    place: where they run, on this machine if it is left out. Whoever leaves this early, as by Ctrl-C, ends the drivers
    with it.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    waiting = deque(enumerate(runs))
    running: dict[int, Running] = {}
    ended: dict[int, Ended] = {}
    with display(len(runs)) as screen:
        there: Place = place or Here(quiet=screen.is_live)
        try:
            for number in range(len(runs)):
                while number not in ended:
                    while waiting and len(running) < jobs:
                        following, asked = waiting.popleft()
                        screen.begin(following, asked.title, asked.folder(out))
                        running[following] = there.start(asked, out, resume)
                    for each in [each for each, run in running.items() if run.done()]:
                        ended[each] = running[each].result()
                        del running[each]
                        screen.end(each, ended[each])
                    screen.look()
                    if number not in ended:
                        time.sleep(there.pace)
                yield ended[number]
        finally:
            there.end(list(running.values()))


class Here:
    """This machine. quiet: drivers say nothing but their warnings, since there is a display of all of them."""

    pace = 0.1

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def start(self, asked: Asked, out: Path, resume: bool) -> Driver:
        """Start the driver."""
        return Driver(asked, out, resume, self.quiet)

    def end(self, running: Sequence[Driver]) -> None:
        """A terminal's Ctrl-C has reached the drivers, too; another's reached this process alone."""
        _wait(running)
        end(running)


def end(drivers: Sequence[Driver]) -> None:
    """Interrupt those that have not ended, and kill those that do not listen."""
    for ask in (Driver.interrupt, Driver.kill):
        for driver in drivers:
            if not driver.done():
                ask(driver)
        _wait(drivers)


def _wait(drivers: Sequence[Driver]) -> None:
    latest = time.monotonic() + PATIENCE
    while time.monotonic() < latest and not all(driver.done() for driver in drivers):
        time.sleep(0.05)


class Driver:
    """The process of one run. quiet: it prints no progress and no verdict, whoever started it does."""

    def __init__(self, asked: Asked, out: Path, resume: bool, quiet: bool = False) -> None:
        self._path = asked.folder(out) / "summary.json"
        self._before = _written(self._path)
        self._resume = resume
        self._tail: deque[str] = deque(maxlen=12)
        self._process = subprocess.Popen(
            asked.command(out, resume),
            cwd=ROOT, env={**os.environ, "TQDM_DISABLE": "1"} if quiet else None,
            stdout=subprocess.DEVNULL if quiet else None, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        self._reader = Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        """Pass on what it says as it comes: the progress is in it."""
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                sys.stderr.write(line)
                self._tail.append(line.rstrip())

    def done(self) -> bool:
        """Whether it has ended, and has been listened to."""
        return self._process.poll() is not None and not self._reader.is_alive()

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Without asking."""
        self._process.kill()

    def wait(self) -> int:
        """Its exit code, once it has ended; that of one which a signal ended is below zero."""
        self._reader.join()
        return self._process.wait()

    def result(self) -> Ended:
        """Wait for its end, and say what came of it."""
        code, last = self.wait(), "\n".join(line for line in self._tail if line)
        if code == EXIT_SKIPPED:
            return Ended("skipped", last.rsplit("\n", 1)[-1])
        if code not in (0, EXIT_MISSED):
            return Ended("failed", f"exit code {code}\n{last}")
        written = _written(self._path)
        if not written or (written == self._before and not self._resume):  # an old summary says nothing about this run
            return Ended("failed", f"it ended without writing {self._path}")
        summary = read_summary(self._path)
        told = [*summary["undetermined"], *filter(None, [summary["note"]])]
        return Ended("converged" if summary["converged"] else "not converged", "\n".join(told), summary)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
