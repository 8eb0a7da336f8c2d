"""Two runs of the same config must agree in all that they say, but for how long they took."""

from typing import Any


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    """All of a run's summary, its errors among it, that does not depend on the machine's load."""

    def timeless(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if "seconds" not in key}

    return timeless(summary) | {"errors": timeless(summary["errors"])}
