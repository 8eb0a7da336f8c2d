"""results/seeds.html: of each experiment that was run with several seeds, all losses in one plot, and its figures.

The figures (loss, iterations, seconds, errors) are a dot a seed, with the median and its interval. The page is HTML and
SVG without a script; its colours are those of results/index.html, which links to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from experiments.records.files import write_text
from experiments.records.seeds import INTERVALS, Sweep, Values, sweeps, texts
from experiments.records.text import number

if TYPE_CHECKING:
    from experiments.viewers.index import Entry

__all__ = ["Axis", "Panel", "write_seeds"]

POINTS = 400
"""Of a curve, at most."""
WIDE = 100.0
"""Values above zero of which the largest is so many times the smallest are shown by their logarithms."""


@dataclass(frozen=True)
class Axis:
    """From low to high, by logarithms or not; both ends differ."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, values: Sequence[float], margin: float = 0.0) -> Axis | None:
        """For the finite ones of the values; None where there is none. margin: room beyond either end, as a part."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return None
        positive = [value for value in finite if value > 0]
        is_log = min(finite) >= 0 and bool(positive) and max(positive) > WIDE * min(positive)
        shown = [math.log10(value) for value in positive] if is_log else finite
        low, high = min(shown), max(shown)
        room = margin * (high - low) or (0 if high > low else abs(low) / 10 or 1.0)
        return cls(low - room, high + room, is_log)

    def at(self, value: float) -> float:
        """Where it lies, in percent of the way; nan where it has no place."""
        if not math.isfinite(value) or (self.is_log and value <= 0):
            return math.nan
        return 100 * ((math.log10(value) if self.is_log else value) - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Places in percent with their labels: powers of ten, or both ends and the middle."""
        if not self.is_log:
            values = [self.low, (self.low + self.high) / 2, self.high]
            return [(place, number(float(value))) for place, value in zip((0, 50, 100), values, strict=True)]
        first, last = math.ceil(self.low), math.floor(self.high)
        every = math.ceil((last - first + 1) / most)
        return [(self.at(10.0**power), f"1e{power}") for power in range(first, last + 1, every)]


@dataclass(frozen=True)
class Curve:
    """Of one run: points as SVG reads them, x and y in percent, y downward; pieces where values are missing."""

    entry: Entry
    pieces: Sequence[str]


@dataclass(frozen=True)
class Row:
    """A figure of all seeds: a dot a seed in percent, and the texts beside them."""

    name: str
    dots: Sequence[tuple[float, Entry]]
    median: float | None
    interval: tuple[float, float] | None
    texts: tuple[str, str, str]
    is_log: bool


@dataclass(frozen=True)
class Panel:
    """One experiment and preset."""

    sweep: Sweep
    curves: Sequence[Curve]
    x: Axis
    y: Axis | None
    rows: Sequence[Row]

    @property
    def anchor(self) -> str:
        """Its place on the page."""
        return re.sub(r"[^\w-]", "-", f"{self.sweep.experiment}-{self.sweep.preset}")

    @property
    def share(self) -> str:
        """The interval of the share that reaches the goal."""
        low, high = self.sweep.reached.interval
        return f"{100 * low:.0f} to {100 * high:.0f} %"


def write_seeds(
    results: Path, entries: Sequence[Entry], environment: jinja2.Environment
) -> Mapping[tuple[str, str], Panel]:
    """Write seeds.html, and return what it has, by experiment and preset; without anything to compare there is none."""
    path = results / "seeds.html"
    listed = [
        {**vars(entry), "preset": entry.label, "status": entry.state, "summary": _summary(entry)} for entry in entries
    ]
    panels = {}
    for sweep in sweeps(listed):
        mine = [e for e in entries if (e.experiment, e.label) == sweep[:2] and e.seed in sweep.seeds]
        panels[sweep[:2]] = _panel(sweep, mine)
    if panels:
        write_text(path, environment.get_template("seeds.html").render(panels=panels.values(), intervals=INTERVALS))
    else:
        path.unlink(missing_ok=True)
    return panels


def _summary(entry: Entry) -> dict[str, Any] | None:
    return {**entry.measured, "errors": entry.errors} if entry.measured else None


def _panel(sweep: Sweep, entries: Sequence[Entry]) -> Panel:
    from experiments.records.recording import read_metrics  # here: it needs numpy

    losses: list[tuple[Entry, list[float], list[float]]] = []
    for entry in entries:
        try:
            metrics = read_metrics(entry.folder / "metrics.csv") if entry.folder else {}
            losses.append((entry, metrics["step"].tolist(), metrics["loss"].tolist()))
        except (OSError, ValueError, KeyError):  # it failed before its first step, or its files are damaged
            continue
    x = Axis(0, max((1.0, *(step for _, steps, _ in losses for step in steps))), False)
    y = Axis.of([value for _, _, values in losses for value in values], 0.04)
    curves = [Curve(entry, _pieces(steps, values, x, y)) for entry, steps, values in losses] if y else []
    done = [entry for entry in entries if entry.measured]
    rows = [_row(name, values, done) for name, values in sweep.values.items()]
    return Panel(sweep, curves, x, y, rows)


def _pieces(steps: Sequence[float], values: Sequence[float], x: Axis, y: Axis) -> list[str]:
    """The curve by `POINTS` or so of its points, the last among them."""
    stride = max(1, len(steps) // POINTS)
    shown = [*range(0, len(steps) - 1, stride), len(steps) - 1] if len(steps) else []
    pieces: list[list[str]] = [[]]
    for i in shown:
        place = y.at(values[i])
        if math.isnan(place):
            pieces.append([])
        else:
            pieces[-1].append(f"{x.at(steps[i]):.2f},{100 - place:.2f}")
    return [" ".join(piece) for piece in pieces if piece]


def _row(name: str, values: Values, entries: Sequence[Entry]) -> Row:
    """entries: those that have ended with a summary, of which some may lack this figure."""
    mine = [entry for entry in entries if name in {**entry.errors, **entry.measured}]
    axis = Axis.of(values.each, 0.03)
    places = [axis.at(value) if axis else math.nan for value in (*values.each, values.median, *(values.interval or ()))]
    known = [None if math.isnan(place) else place for place in places]  # of nan, inf, and 0 among powers of ten
    each, (median, *ends) = known[: len(mine)], known[len(mine) :]
    dots = [(place, entry) for place, entry in zip(each, mine, strict=True) if place is not None]
    low, high = ends or (None, None)
    interval = None if low is None or high is None else (low, high)
    return Row(name, dots, median, interval, texts(values), axis is not None and axis.is_log)
