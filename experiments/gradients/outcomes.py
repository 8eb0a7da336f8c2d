"""What came out of the runs of a regime, and how sure it is: means over the seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from experiments.gradients.methods import Method
from experiments.gradients.scenes import Regime
from experiments.records.text import half_width

__all__ = ["Interval", "Outcome", "Trace", "across", "chosen", "interval"]


class Interval(NamedTuple):
    """A ratio: its geometric mean over the seeds, and Student's 95 % interval of the mean of its logarithm."""

    middle: float
    low: float
    high: float

    @property
    def level(self) -> bool:
        """Whether 1, no difference, is inside."""
        return self.low <= 1 <= self.high


def interval(logarithms: Sequence[float]) -> Interval:
    """Of a seed's logarithms each; a lost run makes all infinite, one seed alone has no interval that ends."""
    if not all(map(math.isfinite, logarithms)):
        return Interval(math.inf, math.inf, math.inf)
    middle, n = fmean(logarithms), len(logarithms)
    if n < 2:
        return Interval(math.exp(middle), 0.0, math.inf)
    half = half_width(logarithms)
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def chosen(tried: Mapping[float, float]) -> float:
    """The rate that ended lowest of those tried."""
    return min(tried, key=tried.__getitem__)


class Trace(NamedTuple):
    """One method in one regime: tried, every rate and what it ends with on held-out seeds; what a step costs; errors
    [run][test][rotation, translation, distance].

    rotation in degrees; translation and rms displacement of the points in half sides of the object: medians over views.
    """

    tried: dict[float, float]
    milliseconds: float
    errors: list[list[list[float]]]

    @property
    def bracketed(self) -> bool:
        """Whether a smaller and a larger rate ended higher than the one chosen."""
        return min(self.tried) < chosen(self.tried) < max(self.tried)


class Outcome(NamedTuple):
    """One regime: the steps after which was tested, the oracle's errors (run, 3), and the traces."""

    regime: Regime
    tested: list[int]
    oracle: list[list[float]]
    traces: dict[Method, Trace]

    @classmethod
    def loaded(cls, saved: Mapping[str, Any]) -> Outcome:
        """Of what `plain` or a JSON file of it says."""
        traces = {}
        for method, trace in saved["traces"].items():
            tried = {float(rate): float(end) for rate, end in trace["tried"].items()}
            errors = [[[float(e) for e in test] for test in run] for run in trace["errors"]]
            traces[method] = Trace(tried, trace["milliseconds"], errors)
        return cls(saved["regime"], saved["tested"], saved["oracle"], traces)

    def plain(self) -> dict[str, Any]:
        return self._asdict() | {"traces": {method: trace._asdict() for method, trace in self.traces.items()}}

    def rounded(self) -> Outcome:
        """The same to six digits, as its file says it: what is told of a run can be made of its file again."""

        def six(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: six(item) for key, item in value.items()}
            if isinstance(value, list):
                return [six(item) for item in value]
            return float(f"{value:.6g}") if isinstance(value, float) else value

        return Outcome.loaded(six(self.plain()))

    def excess(self, method: Method) -> list[list[float]]:
        """[run][test]: displacement over the oracle's."""
        runs = zip(self.traces[method].errors, self.oracle, strict=True)
        return [[test[2] / best[2] for test in run] for run, best in runs]

    def logarithms(self, method: Method) -> list[float]:
        """[run]: that of the displacement over the oracle's at the end."""
        return [math.log(run[-1]) for run in self.excess(method)]

    def final(self, method: Method) -> Interval:
        """Displacement over the oracle's at the end."""
        return interval(self.logarithms(method))

    def against(self, method: Method, other: Method) -> Interval:
        """Displacement at the end over that of another method, seed by seed."""
        if not math.isfinite(self.final(other).middle):
            return Interval(1.0, 0.0, math.inf)
        pairs = zip(self.logarithms(method), self.logarithms(other), strict=True)
        return interval([ours - theirs for ours, theirs in pairs])

    @property
    def order(self) -> list[Method]:
        """The methods, the one that ends lowest first."""
        return sorted(self.traces, key=lambda method: self.final(method).middle)

    @property
    def level(self) -> list[Method]:
        """The best and those whose difference from it may be none, in their order."""
        best = self.order[0]
        return [method for method in self.order if method == best or self.against(method, best).level]

    def cheapest(self) -> Method:
        """Of the level ones that whose step takes the least time."""
        return min(self.level, key=lambda method: self.traces[method].milliseconds)

    def arrivals(self, method: Method, goal: float) -> list[float]:
        """Steps until rotation and translation are within `goal` times the oracle's; infinite for never."""
        found = []
        for run, best in zip(self.traces[method].errors, self.oracle, strict=True):
            there = (test[0] <= goal * best[0] and test[1] <= goal * best[1] for test in run)
            found.append(next((float(s) for s, ok in zip(self.tested, there, strict=True) if ok), math.inf))
        return found

    def reached(self, method: Method, goal: float) -> tuple[list[float], int]:
        """Steps of the runs that got there, and how many runs there are."""
        arrivals = self.arrivals(method, goal)
        return [a for a in arrivals if math.isfinite(a)], len(arrivals)

    def worse(self, method: Method) -> int:
        """Runs that end no better than they began, or as no number."""
        return sum(not run[-1][2] < run[0][2] for run in self.traces[method].errors)


def across(outcomes: Sequence[Outcome], method: Method, other: Method | None = None) -> Interval:
    """Displacement over the oracle's, or over that of another method, in the mean of all regimes with both of them."""
    rows = []
    for outcome in outcomes:
        if method in outcome.traces and (other is None or other in outcome.traces):
            ours = outcome.logarithms(method)
            theirs = [0.0] * len(ours) if other is None else outcome.logarithms(other)
            rows.append([a - b for a, b in zip(ours, theirs, strict=True)])
    return interval([fmean(column) for column in zip(*rows, strict=True)])
