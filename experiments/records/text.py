"""Numbers and tables as people read them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def number(value: float) -> str:
    """As people read it: whole, or to four digits."""
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def spread(values: Iterable[Any]) -> str:
    """Median and range, or the one value there is; a nan among them is not hidden by the others."""
    numbers = [float(value) for value in values]  # nan and inf are strings in JSON
    if not numbers:
        return ""
    if lost := sum(map(math.isnan, numbers)):
        return f"nan in {lost} of {len(numbers)}" if len(numbers) > 1 else "nan"
    low, middle, high = min(numbers), statistics.median(numbers), max(numbers)
    return number(middle) if low == high else f"{number(middle)} ({number(low)} to {number(high)})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
