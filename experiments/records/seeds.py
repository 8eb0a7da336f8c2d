"""What an experiment's seeds have in common: medians, ranges, and intervals of 95 %.

Of how many of n seeds reached the goal, Clopper and Pearson's interval of the probability; of values, the interval of
their median by order statistics, without any assumption on how they are distributed. Fewer than six seeds have no such
interval: the median lies outside of the range of five with a probability of 6 %. (`experiments.evidence.intervals` asks
another question: where fresh seeds will lie.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from experiments.records.text import number, table

__all__ = [
    "INTERVALS",
    "MEASURED",
    "Share",
    "Sweep",
    "Values",
    "as_markdown",
    "share_of",
    "sweeps",
    "texts",
    "values_of",
]

CONFIDENCE = 0.95
MEASURED = ("iterations", "seconds", "loss")
INTERVALS = (
    "Intervals are of 95 %: of the share of seeds that reach the goal Clopper and Pearson's, of medians by order "
    "statistics, which need six seeds or more."
)
"""What is to be said beside them."""


class Share(NamedTuple):
    """How many of so many seeds, and the interval of the share."""

    hits: int
    seeds: int
    interval: tuple[float, float]


class Values(NamedTuple):
    """One value a seed; all of its figures are nan where a value is. interval: of the median, None of too few seeds."""

    each: tuple[float, ...]
    median: float
    low: float
    high: float
    interval: tuple[float, float] | None


class Sweep(NamedTuple):
    """The runs of one experiment and preset. values: of those that have ended, by what they are of."""

    experiment: str
    preset: str
    seeds: tuple[int, ...]
    reached: Share
    values: Mapping[str, Values]

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        values = {name: values._asdict() for name, values in self.values.items()}
        return {**self._asdict(), "reached": self.reached._asdict(), "values": values}


def share_of(hits: int, seeds: int) -> Share:
    """The share with its interval."""
    from scipy.stats import binomtest  # here, and below: it takes a while to import

    bounds = binomtest(hits, seeds).proportion_ci(CONFIDENCE, "exact")
    return Share(hits, seeds, (float(bounds.low), float(bounds.high)))


def values_of(values: Iterable[Any]) -> Values:
    """The values, of which there is one or more, with their figures."""
    each = tuple(float(value) for value in values)  # nan and inf are strings in JSON
    if any(map(math.isnan, each)):
        return Values(each, math.nan, math.nan, math.nan, None)
    return Values(each, statistics.median(each), min(each), max(each), _of_median(each))


def _of_median(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval is open, and so are both of its ends, where there are too few values."""
    from scipy.stats import quantile_test

    if len(values) < 2:
        return None
    bounds = quantile_test(values, p=0.5).confidence_interval(CONFIDENCE)
    return None if math.isnan(bounds.low) or math.isnan(bounds.high) else (float(bounds.low), float(bounds.high))


def sweeps(runs: Sequence[Mapping[str, Any]]) -> list[Sweep]:
    """Of runs as run_all.py lists them, those of experiments and presets of which two seeds or more have ended.

    What was skipped or not run has not ended; what failed has, without reaching its goal.
    """
    found = []
    for (experiment, preset), group in groupby(runs, key=lambda run: (run["experiment"], run["preset"])):
        ended = [run for run in group if run["status"] in ("converged", "not converged", "failed")]
        if len(ended) > 1:
            hits = sum(run["status"] == "converged" for run in ended)
            found.append(
                Sweep(
                    experiment, preset, tuple(run["seed"] for run in ended), share_of(hits, len(ended)),
                    _values([run["summary"] for run in ended if run["summary"]]),
                )
            )  # fmt: skip
    return found


def _values(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    figures = [{**{name: summary[name] for name in MEASURED}, **summary["errors"]} for summary in summaries]
    names = dict.fromkeys(name for some in figures for name in some)
    return {name: values_of(some[name] for some in figures if name in some) for name in names}


def as_markdown(some: Sequence[Sweep]) -> str:
    """For summary.md: a row for each figure."""
    rows = []
    for sweep in some:
        low, high = sweep.reached.interval
        share = f"{sweep.reached.hits} of {sweep.reached.seeds}"
        rows.append([sweep.experiment, sweep.preset, "goal reached", share, "", f"{low:.0%} to {high:.0%}"])
        for name, values in sweep.values.items():
            rows.append([sweep.experiment, sweep.preset, name, *texts(values)])
    return table(["experiment", "preset", "figure", "median", "range", "95 % interval of the median"], rows)


def texts(values: Values) -> tuple[str, str, str]:
    """Median, range and the interval, as people read them."""
    if lost := sum(map(math.isnan, values.each)):
        return f"nan in {lost} of {len(values.each)}", "", ""
    interval = f"{number(values.interval[0])} to {number(values.interval[1])}" if values.interval else ""
    extent = f"{number(values.low)} to {number(values.high)}" if values.low < values.high else ""
    return number(values.median), extent, interval
