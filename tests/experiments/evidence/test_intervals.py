"""Intervals that fresh seeds stay in: their risks by enumeration where there is one, and what they are at the edges."""

import math
from itertools import combinations
from statistics import median

import numpy as np
import pytest
from scipy.stats import binom

from experiments.evidence import intervals
from experiments.evidence.intervals import RISK, of_count, of_each, of_median


@pytest.mark.parametrize(("seen", "fresh"), [(20, 20), (20, 50), (5, 20)])
def test_a_count_leaves_its_interval_with_no_more_than_the_risk_whatever_its_probability(seen: int, fresh: int) -> None:
    some = [of_count(hits, seen, fresh) for hits in range(seen + 1)]
    fresh_hits = np.arange(fresh + 1)
    outside = np.array([[j not in interval for j in fresh_hits.tolist()] for interval in some])
    for p in np.linspace(0, 1, 201):
        risk = binom.pmf(np.arange(seen + 1), seen, p) @ outside @ binom.pmf(fresh_hits, fresh, p)
        assert risk <= RISK


def test_the_interval_of_a_count_says_something() -> None:
    assert of_count(20, 20, 20) == (11, 20)
    assert of_count(0, 20, 20) == (0, 9)
    assert 0 < of_count(10, 20, 100).low < of_count(10, 20, 100).high < 100


@pytest.mark.parametrize(("seen", "fresh"), [(6, 6), (6, 5), (5, 6)])
def test_the_median_leaves_its_interval_with_no_more_than_the_risk(
    seen: int, fresh: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of continuous values every order is as likely as any: all are counted."""
    monkeypatch.setattr(intervals, "RISK", 0.3)
    everyone = set(range(1, seen + fresh + 1))
    left = []
    for some in combinations(sorted(everyone), seen):
        interval = of_median([float(value) for value in some], fresh)
        assert interval is not None
        left.append(median(everyone - set(some)) not in interval)
    assert 0 < np.mean(left) <= 0.3


def test_five_seeds_say_nothing_of_a_median() -> None:
    assert of_median([1.0, 2.0, 3.0, 4.0, 5.0], 5) is None


@pytest.mark.parametrize("logarithmic", [True, False])
def test_all_values_stay_in_theirs_but_for_the_risk(logarithmic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RISK", 0.1)
    draws = np.random.default_rng(0).normal(size=(2000, 40))
    values = np.exp(draws) if logarithmic else draws  # some of the latter are negative
    left = []
    for row in values:
        interval = of_each(row[:20].tolist(), 20)
        left.append(any(value not in interval for value in row[20:].tolist()))
    assert 0.05 < np.mean(left) < 0.1 + 3 * math.sqrt(0.09 / 2000)


def test_what_never_varies_is_stated_to_three_digits() -> None:
    low, high = of_each([0.15903] * 20, 20)
    assert 0.157 < low < 0.15903 < high < 0.161
    assert of_each([0.0] * 20, 20) == (0, 0)
    assert of_each([-3.0, -3.0], 20) == (-3, -3)


@pytest.mark.parametrize("few", [[1.0, 2.0], [0.3, 60.0, 1e9]])
def test_of_few_values_nothing_is_known(few: list[float]) -> None:
    low, high = of_each(few, 20)
    assert low <= min(few) / 1000
    assert high >= 1000 * max(few)


def test_intervals_are_written_outwards_and_of_whole_numbers_whole() -> None:
    values = np.random.default_rng(1).normal(3.0, 0.1, 20).tolist()
    low, high = of_each(values, 20)
    assert (f"{low:.3g}", f"{high:.3g}") == (str(low), str(high))
    low, high = of_each([4.0, 5.0, 6.0, 5.0, 5.0], 20)
    assert low == int(low)
    assert high == int(high)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_cannot_be_stated_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        of_each(values, 20)
