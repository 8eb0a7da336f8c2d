"""Files of a run. Only the standard library is imported here, so that run_all.py starts at once."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.files import replacing

EXIT_SKIPPED = 3
"""Exit code of a driver whose data are not on this machine."""

EXIT_MISSED = 4
"""Exit code of a driver that ended and did not reach its goal."""

UNSAID = {"goal": "", "undetermined": [], "found": {}, "left_out": {}}
"""What summaries that were written by earlier versions do not say."""


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


def read_summary(path: Path) -> dict[str, Any]:
    """What a run says at its end: `Run.finish` has the names; what an earlier version did not say is empty.

    Raises FileNotFoundError, or ValueError naming the file where it is damaged.
    """
    try:
        summary = json.loads(path.read_text())
        if not isinstance(summary, dict):
            raise ValueError("no object of JSON")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): run the experiment again") from None
    return UNSAID | summary


def write_text(path: Path, text: str) -> None:
    """Write `text` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")
