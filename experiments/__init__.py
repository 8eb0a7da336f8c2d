"""Experiment drivers, `python -m experiments.<name> <preset>`, and what they share with run_all.py.

Only the standard library is imported here, so that run_all.py starts at once.
"""

import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXIT_SKIPPED = 3
"""Exit code of a driver whose data are not on this machine."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file that becomes `path` when the block ends well: even a killed process leaves old or new, whole."""
    temporary = path.with_name(f".tmp-{path.name}")  # the suffix stays: open3d and matplotlib go by it
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """`value` as JSON can say it: nan and inf as strings that float() reads back, tensors as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def write_json(path: Path, value: Any) -> None:
    """Write `value` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


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
