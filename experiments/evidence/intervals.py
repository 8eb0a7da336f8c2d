"""Intervals that fresh seeds stay in, predicted from the seeds that were seen: the range of those is no such interval.

Of n seeds that were seen, the next one lies outside of their range with probability 2 / (n + 1), and one of the next n
nearly always does. So three intervals are stated instead, of m fresh seeds that are run as those n were:

- of shares (how many of the m succeed), the beta-binomial prediction interval, without any assumption: Clopper and
  Pearson's bounds of the probability, carried over to a number of m (Thatcher 1964, Ratios of a Binomial);
- of the median of the m values, order statistics of the n, without any assumption but that values are continuous (with
  ties the risk is smaller): how many of m values lie below the i-th of n is beta-binomial (Wilks 1942);
- of all m values, Student's prediction interval of their logarithms, or of the values where they are no positive
  numbers: with twenty seeds nothing can be said of the rarest of the next twenty without a distribution, and numbers
  of steps and errors, products of many factors, are nearer to log-normal than to normal. m values share the risk.

`RISK` is the chance that fresh seeds leave one of these intervals although nothing has changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["RISK", "Interval", "of_count", "of_each", "of_median"]

RISK = 1e-3
"""Of one interval. A few dozen are stated, so that a run of all of them is wrong about one in some twenty times."""
DIGIT = 5e-3
"""What is stated has three digits: no interval is narrower than this part of its value to either side."""


class Interval(NamedTuple):
    """From low to high, both of them in it."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


def of_count(hits: int, seen: int, fresh: int) -> Interval:
    """How many of `fresh` seeds succeed, after `hits` of `seen` did."""
    _checked(seen, fresh)
    low = stats.betabinom.ppf(RISK / 2, fresh, hits, seen - hits + 1) if hits else 0
    high = stats.betabinom.isf(RISK / 2, fresh, hits + 1, seen - hits) if hits < seen else fresh
    return Interval(int(low), int(high))


def of_median(values: Sequence[float], fresh: int) -> Interval | None:
    """Where the median of `fresh` seeds lies; None where so few seeds cannot say."""
    n = len(values)
    _checked(n, fresh)
    # the median lies below the i-th of the values only if half of the fresh ones do
    below = [stats.betabinom.sf(math.ceil(fresh / 2) - 1, fresh, i, n - i + 1) for i in range(1, n // 2 + 1)]
    safe = sum(risk <= RISK / 2 for risk in below)
    if not safe:
        return None
    ordered = sorted(values)
    return _rounded(ordered[safe - 1], ordered[n - safe], values)


def of_each(values: Sequence[float], fresh: int) -> Interval:
    """Where each of `fresh` seeds lies."""
    _checked(len(values), fresh)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"finite values of two seeds or more wanted, got {list(values)}")
    logarithmic = min(values) > 0
    x = np.log(values) if logarithmic else np.array(values, dtype=float)
    reach = stats.t.isf(RISK / (2 * fresh), len(x) - 1) * x.std(ddof=1) * math.sqrt(1 + 1 / len(x))
    ends = np.array([x.mean() - reach, x.mean() + reach])
    with np.errstate(over="ignore"):  # of few values that differ widely nothing is known: to infinity
        low, high = np.exp(ends) if logarithmic else ends
    return _rounded(low, high, values)


def _checked(seen: int, fresh: int) -> None:
    if seen < 1 or fresh < 1:
        raise ValueError(f"at least one seed seen and one fresh wanted, got {seen} and {fresh}")


def _rounded(low: float, high: float, values: Sequence[float]) -> Interval:
    """As it is written: widened to the third digit, and of whole numbers to the whole numbers in it."""
    middle = float(np.median(values))
    low, high = min(low, middle - DIGIT * abs(middle)), max(high, middle + DIGIT * abs(middle))
    if all(float(value).is_integer() for value in (*values, *filter(math.isinf, (low, high)))):
        return Interval(float(math.ceil(low)), float(math.floor(high)))
    return Interval(_outward(low, math.floor), _outward(high, math.ceil))


def _outward(value: float, to: Callable[[float], int]) -> float:
    """To three digits, up or down."""
    if value == 0 or math.isinf(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return float(f"{to(value / unit) * unit:.6g}")
