"""Numbers and tables as people read them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


def number(value: float) -> str:
    """As people read it: whole, or to four digits."""
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def said(status: str) -> str:
    """A run's status as people read it: a training does not converge, and a minimum may be the wrong one."""
    return {"converged": "goal reached", "not converged": "goal not reached"}.get(status, status)


def nearest(name: str, names: Iterable[str]) -> str:
    """Which of the names was meant, to be put behind a sentence: "; did you mean --points?"; nothing if none is near.

    Hyphens that all of them begin with are not what makes them alike.
    """
    stripped = {each.lstrip("-"): each for each in names}
    close = get_close_matches(name.lstrip("-"), stripped, 1)
    return f"; did you mean {stripped[close[0]]}?" if close else ""


def spread(values: Iterable[Any]) -> str:
    """Median and range, or the one value there is; a nan among them is not hidden by the others."""
    numbers = [float(value) for value in values]  # nan and inf are strings in JSON
    if not numbers:
        return ""
    if lost := sum(map(math.isnan, numbers)):
        return f"nan in {lost} of {len(numbers)}" if len(numbers) > 1 else "nan"
    low, middle, high = min(numbers), statistics.median(numbers), max(numbers)
    return number(middle) if low == high else f"{number(middle)} ({number(low)} to {number(high)})"


def half_width(values: Sequence[float]) -> float:
    """Half of Student's 95 % interval of the mean of two values or more."""
    from scipy.stats import t  # here: it takes a while to import

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def mean_interval(values: Sequence[float], style: str) -> str:
    """Mean ± half of Student's 95 % interval of it, both in one format; of one value, that alone."""
    n = len(values)
    if n < 1:
        raise ValueError("values must be one or more, got none")
    mean = format(statistics.fmean(values), style)
    return mean if n == 1 else f"{mean} ± {format(half_width(values), style.lstrip('+'))}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a cell may hold any text, of several lines as well."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
