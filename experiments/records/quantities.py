"""A number that a run found, as it is kept and as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.records.text import number

__all__ = ["Quantity"]


class Quantity(NamedTuple):
    """What was found, with its standard deviation and unit, and what it is held against.

    deviation: nan where the data do not determine the value, None where it is not known. unit: as a person writes it,
    "px", "deg", "m"; "" for a number without. reference: the truth, or a text that says whose figure it is; None
    without one.
    """

    value: float
    deviation: float | None = None
    unit: str = ""
    reference: float | str | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Quantity:
        """From summary.json, where nan and inf are strings."""
        deviation, reference = stored.get("deviation"), stored.get("reference")
        return cls(
            float(stored["value"]),
            None if deviation is None else float(deviation),
            str(stored.get("unit", "")),
            reference if reference is None or isinstance(reference, str) else float(reference),
        )

    @property
    def is_open(self) -> bool:
        """Whether the data leave it open."""
        return self.deviation is not None and math.isnan(self.deviation)

    def texts(self) -> tuple[str, str, str]:
        """Value, deviation and reference; where a deviation is known, as many digits as it bears out."""
        reference = number(self.reference) if isinstance(self.reference, float | int) else self.reference or ""
        if self.deviation is None:
            return number(float(self.value)), "", reference
        if not math.isfinite(self.deviation) or self.deviation <= 0:
            return number(float(self.value)), number(float(self.deviation)), reference
        digits = max(0, 1 - math.floor(math.log10(self.deviation)))
        return f"{self.value:.{digits}f}", f"{self.deviation:.{digits}f}", reference
