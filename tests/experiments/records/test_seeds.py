"""What seeds have in common: medians, ranges and intervals, and which runs count."""

import math

import numpy as np
import pytest

from experiments.records.seeds import as_markdown, share_of, sweeps, texts, values_of


def run(seed: int, status: str = "converged", **figures: object) -> dict:
    """As run_all.py lists it: with a summary unless there are no figures."""
    summary = {"iterations": 10 + seed, "seconds": 1.5, "loss": 0.25, "errors": figures} if figures else None
    return {"experiment": "e", "preset": "p", "seed": seed, "status": status, "summary": summary}


def test_the_interval_of_a_share_is_clopper_and_pearsons() -> None:
    """None of n: the interval ends where none of n has a probability of 2.5 %."""
    assert share_of(0, 5).interval == pytest.approx((0, 1 - 0.025 ** (1 / 5)))
    assert share_of(5, 5).interval == pytest.approx((0.025 ** (1 / 5), 1))
    low, high = share_of(3, 6).interval
    assert low == pytest.approx(1 - high)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    """Of values that are anything but normal; six are the fewest that have one."""
    assert values_of([3.0, 1.0, 2.0, 5.0, 4.0]).interval is None
    assert values_of([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]).interval == (1, 6)
    draws = np.exp(3 * np.random.default_rng(0).normal(size=(400, 12)))  # of median 1
    intervals = [values_of(values).interval for values in draws]
    held = sum(found is not None and found[0] <= 1 <= found[1] for found in intervals)
    assert held >= 0.95 * 400 - 3 * math.sqrt(400 * 0.95 * 0.05)
    assert held < 400


def test_nan_is_not_hidden_and_infinity_is_a_value() -> None:
    lost = values_of([1.0, "nan", 2.0])
    assert texts(lost) == ("nan in 1 of 3", "", "")
    assert math.isnan(lost.median)
    endless = values_of([1.0, 2.0, 3.0, 4.0, 5.0, "inf"])
    assert (endless.median, endless.interval) == (3.5, (1, math.inf))
    assert texts(values_of([2.0] * 6)) == ("2", "", "2 to 2")
    assert texts(values_of([2.0])) == ("2", "", "")


def test_what_ended_counts_and_what_did_not_begin_does_not() -> None:
    runs = [run(0, x=1), run(1, "not converged", x=3, y=2), run(2, "failed"), run(3, "skipped"), run(4, "not run")]
    (sweep,) = sweeps(runs)
    assert sweep.seeds == (0, 1, 2)
    assert sweep.reached[:2] == (1, 3)
    assert sweep.values["x"].each == (1, 3)
    assert sweep.values["y"].each == (2,)
    assert sweep.values["iterations"].median == 10.5
    assert sweeps([run(0, x=1), run(1, "skipped")]) == []
    assert [sweep.preset for sweep in sweeps([*runs, {**run(0, x=1), "preset": "q"}])] == ["p"]


def test_it_is_told_in_json_and_in_markdown() -> None:
    (sweep,) = sweeps([run(seed, x=seed) for seed in range(6)])
    told = sweep.as_json()
    assert told["reached"]["hits"] == 6
    assert told["values"]["x"] == {"each": (0, 1, 2, 3, 4, 5), "median": 2.5, "low": 0, "high": 5, "interval": (0, 5)}
    lines = as_markdown([sweep]).splitlines()
    assert "| e | p | goal reached | 6 of 6 |  | 54% to 100% |" in lines
    assert "| e | p | x | 2.5 | 0 to 5 | 0 to 5 |" in lines
