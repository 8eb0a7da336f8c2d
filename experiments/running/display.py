"""What is said of runs while they go on: one display of all of them in a terminal, plain lines in a log.

How far each is, is read from its folder, wherever it runs. The standard library alone is imported here, rich when there
is a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from experiments.records.progress import planned_at, reached
from experiments.records.text import number, said

if TYPE_CHECKING:
    from rich.progress import TaskID

    from experiments.running.launch import Ended

__all__ = ["Display", "display"]

PACE = 0.5
"""Seconds between looks into the folders of runs."""


class Display(Protocol):
    """What is told of each run, by its place among all of them."""

    is_live: bool
    """Whether lines of drivers would break it."""

    def begin(self, place: int, title: str, folder: Path) -> None:
        """A run begins."""

    def look(self) -> None:
        """Look how far the runs are; to be called often."""

    def end(self, place: int, ended: Ended) -> None:
        """A run has ended."""


@contextmanager
def display(total: int) -> Iterator[Display]:
    """Of so many runs, on stdout: `Bars` in a terminal, else `Lines`."""
    if sys.stdout.isatty():
        bars = Bars(total)
        with bars.progress:
            yield bars
    else:
        yield Lines(total)


class Lines:
    """A line where a run begins, and one where it ends."""

    is_live = False

    def __init__(self, total: int) -> None:
        self.total = total
        self.titles: dict[int, str] = {}

    def begin(self, place: int, title: str, folder: Path) -> None:
        """Its title."""
        self.titles[place] = f"[{place + 1}/{self.total}] {title}"
        print(self.titles[place], flush=True)

    def look(self) -> None:
        """Nothing: a driver that writes into a log tells by itself how far it is."""

    def end(self, place: int, ended: Ended) -> None:
        """Its title, and how it ended."""
        print(f"{self.titles[place]}: {said(ended.status)}", flush=True)


class Bars:
    """A bar for all runs, and below it one for each that goes on; those that have ended are lines above."""

    is_live = True

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            console=Console(highlight=False),
            redirect_stderr=sys.stderr.isatty(),
            transient=True,
        )
        self.all = self.progress.add_task("runs", total=total, told="")
        self.failed = 0
        self.going: dict[int, tuple[TaskID, str, Path, int]] = {}
        self.looked = 0.0

    def begin(self, place: int, title: str, folder: Path) -> None:
        """A bar for it, which moves once its folder tells of this run, and not of one before it."""
        task = self.progress.add_task(title, total=None, told="begins")
        self.going[place] = task, title, folder, planned_at(folder)

    def look(self) -> None:
        """Read from the folders how far the runs are."""
        if time.monotonic() < self.looked + PACE:
            return
        self.looked = time.monotonic()
        for task, _, folder, before in self.going.values():
            if planned_at(folder) != before and (so_far := reached(folder)):
                told = f"loss {number(so_far.loss)}"
                self.progress.update(task, completed=so_far.done, total=so_far.total, told=told)

    def end(self, place: int, ended: Ended) -> None:
        """A line above the bars: how it ended, with its figures or the last that it said."""
        from rich.markup import escape

        task, title, _, _ = self.going.pop(place)
        self.progress.remove_task(task)
        good = ended.status in ("converged", "skipped")
        self.failed += not good
        line = escape(f"[{place + 1}/{self.progress.tasks[0].total}] {title}: {said(ended.status)}{_figures(ended)}")
        self.progress.print(line if good else f"[red]{line}[/]")
        self.progress.update(self.all, advance=1, told=f"{self.failed} missed" if self.failed else "")


def _figures(ended: Ended) -> str:
    summary: dict[str, Any] = ended.summary or {}
    if not summary:
        last = ended.message.strip().rpartition("\n")[2]
        return f": {last}" if last else ""
    iterations, seconds, loss = (number(float(summary[key])) for key in ("iterations", "seconds", "loss"))
    return f", {iterations} iterations, {seconds} s, loss {loss}"
