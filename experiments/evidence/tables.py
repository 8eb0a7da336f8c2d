"""What the seeds of each claim found, as a file, and as the tables of README and pages; fresh seeds beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from experiments.evidence.intervals import RISK, Interval, of_count, of_each, of_median
from experiments.evidence.listed import ELSEWHERE, Claim
from experiments.records.files import write_json
from experiments.records.text import number, spread, table

__all__ = ["Found", "Reference", "Report", "compared", "stated"]

Value = float | bool | None

TITLES = {
    "default": "Default presets",
    "real": "Real presets",
    "published": "Published settings",
    "trained": "Trained networks",
}
HEAD = f"""# What is stated of the experiments, and where fresh seeds stay

`python -m experiments.claims` runs these and compares. A row's command is `.venv/bin/python -m experiments.` and its
first column, with `--seed` each of the seeds. *Found* is in how many of the runs, or the median and the range of their
values. *Fresh seeds stay in* is where the value of each of as many other seeds is, or in how many of those; their
median is within the range found. Chance alone leads out of each with probability {RISK:g}:
`experiments.evidence.intervals` has the rules. What depends on no seed is stated to three digits."""


@dataclass
class Found:
    """The values of a claim's measures by name, one of each seed: None where a run does not tell."""

    seeds: list[int] = field(default_factory=list)
    values: dict[str, list[Value]] = field(default_factory=dict)

    def add(self, seed: int, claim: Claim, summary: Mapping[str, Any]) -> None:
        """One more run."""
        self.seeds.append(seed)
        for measure in claim.measures:
            self.values.setdefault(measure.name, []).append(measure.of(summary))


class Reference(NamedTuple):
    """What was found for each claim, by its name, and on which day."""

    claims: Mapping[str, Found]
    dates: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Reference:
        """From claims.json; empty where there is none."""
        if not path.exists():
            return cls({}, {})
        stored = json.loads(path.read_text())["claims"]
        claims = {
            name: Found(
                one["seeds"],
                {key: [float(v) if isinstance(v, str) else v for v in values] for key, values in one["values"].items()},
            )
            for name, one in stored.items()
        }
        return cls(claims, {name: one["date"] for name, one in stored.items()})

    def write(self, path: Path) -> None:
        """To claims.json."""
        claims = {name: {"date": self.dates[name], **asdict(found)} for name, found in self.claims.items()}
        write_json(path, {"claims": claims})

    def updated(self, found: Mapping[str, Found], date: str) -> Reference:
        """With what was found today."""
        return Reference({**self.claims, **found}, {**self.dates, **dict.fromkeys(found, date)})


class Stated(NamedTuple):
    """What one measure found, and where fresh seeds stay: how many of them, or their median (None: unknown) and all."""

    found: str
    interval: Interval | None
    median: Interval | None = None
    share: bool = False

    @classmethod
    def of(cls, values: Sequence[Value], fresh: int, most: float = math.inf) -> Stated:
        """Of the values of a measure, which are at most `most`, and a number of fresh seeds."""
        if any(isinstance(value, bool) for value in values):
            hits = sum(value is True for value in values)
            return cls(f"{hits} of {len(values)}", of_count(hits, len(values), fresh), share=True)
        told = [float(value) for value in values if value is not None]
        found = spread(told) + (f", of {len(told)} runs" if len(told) < len(values) else "")
        if len(told) < 2 or not all(map(math.isfinite, told)):
            return cls(found or "–", None)
        each = of_each(told, fresh)
        return cls(found, each._replace(high=min(each.high, most)), of_median(told, fresh))

    def shown(self, fresh: int) -> str:
        """The interval in words."""
        if self.interval is None:
            return "–"
        low, high = self.interval
        if not self.share:
            return number(low) if low == high else f"{number(low)} to {number(high)}"
        if high == fresh:
            return f"{low} or more of {fresh}"
        return f"{high} or fewer of {fresh}" if low == 0 else f"{low} to {high} of {fresh}"

    def left_by(self, values: Sequence[Value]) -> str:
        """How fresh values leave it, in a few words; empty where they do not."""
        fresh = Stated.of(values, len(values)).found
        told = [float(value) for value in values if value is not None]
        if self.interval is None or not told:
            return ""
        if self.share:
            return "" if sum(told) in self.interval else fresh
        off = [value for value in told if value not in self.interval]
        if off:
            return f"{', '.join(map(number, off))} outside {self.shown(len(values))}"
        middle = float(sorted(told)[len(told) // 2] + sorted(told)[(len(told) - 1) // 2]) / 2
        if self.median and middle not in self.median:
            return f"the median {number(middle)} outside {number(self.median.low)} to {number(self.median.high)}"
        return ""


class Report(NamedTuple):
    """A page of tables, and what is not as it is stated."""

    text: str
    left: list[str]


def stated(claims: Sequence[Claim], reference: Reference) -> str:
    """The page of what is stated, claims.md of the reference."""
    header = ["run", "seeds", "of it", "found", "fresh seeds stay in"]
    pages = [HEAD]
    for title, some in groupby(claims, key=lambda claim: claim.table):
        rows, unknown = [], []
        for claim in some:
            if claim.name in reference.claims:
                rows += _rows(claim, reference.claims[claim.name])
            else:
                unknown.append(f"`{claim.name}`")
        pages += [f"## {TITLES[title]}", *([table(header, rows).rstrip()] if rows else [])]
        pages += [f"Nothing is stated yet of {', '.join(unknown)}."] if unknown else []
    rows = [[f"[{name}]({name})", f"`{command}`", over] for name, (command, over) in ELSEWHERE.items()]
    pages += ["## Written by other commands", "The files that are not here name their command themselves."]
    pages += [table(["file", "command", "over"], rows).rstrip()]
    return "\n\n".join(pages) + "\n"


def _rows(claim: Claim, found: Found) -> list[list[str]]:
    rows = []
    for i, measure in enumerate(claim.measures):
        one = Stated.of(found.values[measure.name], claim.seeds, measure.most)
        rows.append([*_first(claim, found, i), measure.name, one.found, one.shown(claim.seeds)])
    return rows


def _first(claim: Claim, found: Found, row: int) -> list[str]:
    """What stands in the first of a claim's rows alone: command and seeds."""
    return ["", ""] if row else [f"`{claim.name}`", _ranges(found.seeds)]


def _ranges(seeds: Sequence[int]) -> str:
    """Seeds as `200 to 219, 1000 to 1004`."""
    begins = [i for i, seed in enumerate(seeds) if i == 0 or seed != seeds[i - 1] + 1]
    runs = [seeds[i:j] for i, j in zip(begins, [*begins[1:], len(seeds)], strict=True)]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def compared(claims: Sequence[Claim], reference: Reference, fresh: Mapping[str, Found], date: str) -> Report:
    """Fresh seeds beside the reference."""
    left, rows = [], []
    for claim in claims:
        if claim.name not in fresh:
            rows.append([f"`{claim.name}`", "", "", "", "", "", "left out: no run"])
            continue
        seen, found = reference.claims[claim.name], fresh[claim.name]
        for i, measure in enumerate(claim.measures):
            one = Stated.of(seen.values[measure.name], len(found.seeds), measure.most)
            values = found.values[measure.name]
            off = one.left_by(values)
            left += [f"{claim.name}: {measure.name}: {off}"] if off else []
            rows.append(
                [
                    *_first(claim, found, i), measure.name, one.found, one.shown(len(found.seeds)),
                    Stated.of(values, len(values)).found, f"**no**: {off}" if off else "yes",
                ]
            )  # fmt: skip
    header = ["run", "fresh seeds", "of it", "found before", "stays in", "found", "within"]
    verdict = f"{len(left)} statements do not hold." if left else "Every statement holds."
    text = f"# Fresh seeds beside what is stated\n\n{date}. {verdict}\n\n{table(header, rows)}"
    return Report(text, left)
