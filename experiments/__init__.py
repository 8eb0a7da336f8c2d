"""Experiment drivers, `python -m experiments.<name> <preset>`, and what they share with run_all.py.

Only the standard library is imported here, so that run_all.py starts at once.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
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
