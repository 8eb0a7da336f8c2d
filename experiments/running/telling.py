"""What a run says in the terminal at its end, and the exit code that says it to a script."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.records.files import EXIT_MISSED
from experiments.records.quantities import Quantity
from experiments.records.text import number
from experiments.running.config import C, cli

__all__ = ["command", "tell"]

LONGEST = 40
"""Rows of what was found that a terminal is given; the rest is in summary.json."""

_LEFT = {"model": "colmap", "ply": "points.ply", "lens": "*-opencv.yml"}
"""What a run leaves for other programs, by kind: a model with its lens, points with cameras, a camera for OpenCV."""
_COLUMNS: Mapping[str, Literal["left", "right"]] = {
    "": "left", "found": "right", "deviation": "right", "unit": "left", "truth or reference": "left",
}  # fmt: skip
_UNITS = {"px": "px", "deg": "deg", "seconds": "s"}


def command(main: Callable[[C], dict[str, Any] | None], description: str | None, presets: Mapping[str, C]) -> NoReturn:
    """What `python -m experiments.NAME` does: run what the command line asks for, say what came of it, and exit.

    The exit code is 0 where the goal was reached and `EXIT_MISSED` where it was not. A process that returns nothing, as
    the second of a training by several, says nothing; torchrun, which takes any other code for a crash, is told 0.
    """
    config = cli(description, presets)
    try:
        summary = main(config)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command with --resume goes on from the last checkpoint, if there is one.")
    if summary is not None:
        tell(summary, config.folder(summary["experiment"]).as_posix())
    missed = summary is not None and not summary["converged"] and "TORCHELASTIC_RUN_ID" not in os.environ
    sys.exit(EXIT_MISSED if missed else 0)


def tell(summary: Mapping[str, Any], folder: str, console: Console | None = None) -> None:
    """Print the verdict of a run, what it found, what was left out, and how to look at it."""
    console = console or Console(highlight=False)
    reached, goal = summary["converged"], escape(summary["goal"])
    verdict = "[bold green]Goal reached[/]" if reached else "[bold red]Goal not reached[/]"
    console.print(f"\n{verdict}{f': {goal}' if goal else ''}")
    for sentence in summary["undetermined"]:
        console.print(f"[yellow]{escape(sentence)}[/]")
    title = f"{summary['experiment']} {summary['preset']}, seed {summary['seed']}: {summary['iterations']} iterations, "
    console.print(escape(f"{title}{number(float(summary['seconds']))} s, loss {number(float(summary['loss']))}"))
    rows = _rows(summary)
    if rows:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        said = [any(cells) for cells in zip(*rows, strict=True)]  # a column without any entry says nothing
        for (column, justify), there in zip(_COLUMNS.items(), said, strict=True):
            if there:
                table.add_column(column, justify=justify)
        for row in rows[:LONGEST]:
            table.add_row(*(escape(cell) for cell, there in zip(row, said, strict=True) if there))
        console.print(table)
    if len(rows) > LONGEST:
        console.print(f"… and {len(rows) - LONGEST} more in summary.json")
    for name, why in summary["left_out"].items():
        console.print(escape(f"Left out: {name} ({why})"))
    if summary["note"]:
        console.print(escape(f"Note: {summary['note']}"))
    for kind, pattern in _LEFT.items():
        for path in sorted(Path(folder).glob(pattern)):
            console.print(escape(f"{kind:5} {path.as_posix()}"), soft_wrap=True)
    console.print(escape(f"page  {folder}/index.html"), soft_wrap=True)
    console.print(escape(f"view  python -m experiments.view {folder}"), soft_wrap=True)


def _rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Name, value, deviation, unit and reference: of what was found, then of the errors, then of other references."""
    reference = dict(summary["reference"])
    rows = []
    for name, stored in summary["found"].items():
        quantity = Quantity.read(stored)
        value, deviation, beside = quantity.texts()
        rows.append([name, value, deviation, quantity.unit, beside])
    for name, value in summary["errors"].items():
        words, _, end = name.replace("_", " ").rpartition(" ")
        unit = _UNITS.get(end, "") if words else ""
        rows.append(
            [words if unit else name.replace("_", " "), number(float(value)), "", unit, str(reference.pop(name, ""))]
        )
    given = {key: number(float(summary[key])) for key in ("iterations", "seconds", "loss")}
    return rows + [[name.replace("_", " "), given.get(name, ""), "", "", str(text)] for name, text in reference.items()]
