"""Two runs of the same config must agree in all that they say, but for how long they took."""

from typing import Any


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    """All of a run's summary that does not depend on the machine's load."""
    return {key: value for key, value in summary.items() if not key.endswith("seconds")}
