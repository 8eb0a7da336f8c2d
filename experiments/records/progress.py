"""How far a run is, read from its folder: so it is known of a process here as of a job on another machine.

The standard library alone is imported here.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from experiments.records.files import write_text

__all__ = ["Reached", "plan", "planned_at", "reached"]

_PLAN = ".iterations"
_TAIL = 1 << 16
"""Bytes of metrics.csv that are read: more than its last row has."""


class Reached(NamedTuple):
    """Iterations that are done, out of so many at most, and the last one's loss."""

    done: int
    total: int
    loss: float


def plan(folder: Path, total: int) -> None:
    """Say in the run's folder how many iterations there are to be, finished and resumed ones among them."""
    write_text(folder / _PLAN, f"{total}\n")


def planned_at(folder: Path) -> int:
    """When that was said last, in nanoseconds; 0 where it was not."""
    path = folder / _PLAN
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def reached(folder: Path) -> Reached | None:
    """What metrics.csv has of the run, up to its last whole row; None where there is no row yet."""
    try:
        total = int((folder / _PLAN).read_text())
        with (folder / "metrics.csv").open("rb") as file:
            file.readline()
            file.seek(max(file.tell(), file.seek(0, 2) - _TAIL))
            *rows, _ = file.read().decode().split("\n")
        step, loss, *_ = next(csv.reader(rows[-1:]))  # `Run.log` writes them first
        return Reached(int(step) + 1, total, float(loss))
    except (OSError, ValueError, StopIteration):
        return None
