"""Shares of correct poses for each object and method: as numbers for summary.json and as tables in Markdown.

The tables are those of the BPnP paper (Chen, Parra, Cao, Li and Chin, CVPR 2020, section 5): a row for each object, and
under each threshold a column for each method or loss, symmetric objects starred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.object_poses.evaluation import Record, scores
from experiments.records.text import table

__all__ = ["report", "summarize"]

Summary = dict[str, dict[str, dict[str, float]]]
"""[method][object, "mean" or "all instances"][score of `experiments.object_poses.evaluation.scores`]."""

MEAN, ALL = "mean", "all instances"

TABLES: dict[str, dict[str, str]] = {
    "ADD(-S)": {"add_0.02d": "0.02 d", "add_0.05d": "0.05 d", "add_0.1d": "0.1 d"},
    "Projection, and rotation with translation": {"projection_5px": "5 px", "5cm_5deg": "5 cm, 5°"},
    "Average recall of BOP": {"ar_vsd": "VSD", "ar_mssd": "MSSD", "ar_mspd": "MSPD", "ar": "AR"},
}


def summarize(results: Mapping[str, Sequence[Record]], names: Mapping[int, str] | None = None) -> Summary:
    """Scores of each method's records: of each object, of their mean, as papers have it, and of all instances, as BOP.

    An object goes by its name, or its number where `names` has none, with a star if it is symmetric.
    Raises ValueError for no methods, no records, methods that were asked about different instances, and equal names.
    """
    if not results:
        raise ValueError("results: the records of one method at least wanted, found none")
    asked = {method: _instances(records) for method, records in results.items()}
    first = next(iter(asked))
    for method, instances in asked.items():
        if instances != asked[first]:
            raise ValueError(
                f"results: all methods on the same instances wanted, found {len(instances)} of {method!r} and "
                f"{len(asked[first])} of {first!r}, {len(instances ^ asked[first])} of them in one only"
            )
    found: Summary = {}
    for method, records in results.items():
        rows = {}
        for number in sorted({record.object for record in records}):
            chosen = [record for record in records if record.object == number]
            name = (names or {}).get(number, f"{number}") + ("*" if chosen[0].symmetric else "")
            if name in rows:
                raise ValueError(f"names: a name of its own for each object wanted, found {name!r} twice")
            rows[name] = scores(chosen)
        whole = scores(records)
        mean = {key: sum(row[key] for row in rows.values()) / len(rows) for key in whole}
        found[method] = rows | {MEAN: mean, ALL: whole}
    return found


def report(summary: Summary) -> str:
    """The tables in Markdown, in percent; the best of several methods in bold. What no method measured has no table."""
    methods = list(summary)
    parts = []
    for title, measures in TABLES.items():
        shown = {key: name for key, name in measures.items() if all(key in summary[m][ALL] for m in methods)}
        if not shown:
            continue
        header = [
            "object",
            *(f"{name}: {method}" if len(methods) > 1 else name for name in shown.values() for method in methods),
        ]
        rows = []
        for row in summary[methods[0]]:
            cells = [row]
            for key in shown:
                values = [f"{100 * summary[method][row][key]:.1f}" for method in methods]
                best = max(values, key=float) if len(set(values)) > 1 else None
                cells += [f"**{value}**" if value == best else value for value in values]
            rows.append(cells)
        parts.append(f"**{title}**, % correct\n\n{table(header, rows)}")
    return "\n".join([*parts, _LEGEND])


_LEGEND = (
    "Starred objects are symmetric: ADD-S counts instead of ADD and, but for VSD, the least error of all poses that "
    "look the same. d is the object's diameter; a pose that does not exist is wrong.\n"
)


def _instances(records: Sequence[Record]) -> set[tuple[int, int, int, int]]:
    return {(record.scene, record.image, record.object, record.index) for record in records}
