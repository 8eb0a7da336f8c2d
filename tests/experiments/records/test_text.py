"""Numbers as people read them."""

import math
import statistics

import pytest
from scipy import stats

from experiments.records.text import mean_interval


def test_the_interval_is_student_s() -> None:
    values = [46.0, 51.5, 48.25, 44.0, 49.0]
    low, high = stats.t.interval(0.95, 4, statistics.fmean(values), statistics.stdev(values) / math.sqrt(5))
    mean, _, half = mean_interval(values, ".6f").partition(" ± ")
    assert float(mean) == pytest.approx((low + high) / 2, abs=1e-6)
    assert float(half) == pytest.approx((high - low) / 2, abs=1e-6)


def test_one_value_has_no_interval_and_a_half_has_no_sign() -> None:
    assert mean_interval([2.0], "+.1f") == "+2.0"
    assert mean_interval([1.0, 2.0], "+.1f") == "+1.5 ± 6.4"
    with pytest.raises(ValueError, match="one or more"):
        mean_interval([], ".1f")
