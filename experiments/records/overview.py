"""What came of many runs, as tables: in the terminal and in summary.md. The runs are as run_all.py lists them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from experiments.records.seeds import INTERVALS, Sweep, as_markdown
from experiments.records.text import said, spread, table

__all__ = ["report", "tell"]

HEADER = (
    "experiment", "preset", "seeds", "goal", "reached", "iterations", "seconds", "loss", "error", "in the paper",
)  # fmt: skip


def report(runs: Sequence[dict[str, Any]], over_seeds: Sequence[Sweep]) -> str:
    """The runs as Markdown: one table, where the seeds of an experiment share a line, and what went wrong."""
    lines = ["# Experiments", "", "Over several seeds: median (range). Errors are against the truth.", ""]
    grouped = groupby(runs, key=lambda run: (run["experiment"], run["preset"]))
    lines.append(table(HEADER, [[*names, *_cells(list(group))] for names, group in grouped]).rstrip())
    if over_seeds:
        lines += ["", "## Over seeds", "", INTERVALS, "", as_markdown(over_seeds).rstrip()]
    bad = ("failed", "not converged", "not run")
    noted = [run for run in runs if run["status"] == "converged" and run["message"]]
    for title, told in (("Failed", [run for run in runs if run["status"] in bad]), ("Notes", noted)):
        lines += ["", f"## {title}"] if told else []
        for run in told:
            message = [f"    {line}" for line in run["message"].splitlines()]
            lines += ["", f"{_title(run)}: {said(run['status'])}", *([""] if message else []), *message]
    return "\n".join(lines) + "\n"


def tell(runs: Sequence[dict[str, Any]]) -> None:
    """The runs as a table in the terminal: goal and verdict, the first figures beside their references, what failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    listed = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    listed.add_column("run", no_wrap=True)
    for column in ("reached", "seconds", "goal, and what was found"):
        listed.add_column(column)
    for (name, preset), group in groupby(runs, key=lambda run: (run["experiment"], run["preset"])):
        cells = dict(zip(HEADER[2:], _cells(some := list(group)), strict=True))
        seeds = f"seed{'s' if len(some) > 1 else ''} {cells['seeds']}"
        row = (f"{name}\n{preset}, {seeds}", cells["reached"], cells["seconds"], "\n".join(_lines(some)))
        good = all(run["status"] in ("converged", "skipped") for run in some)
        listed.add_row(*map(escape, row), style=None if good else "red")
    console.print()
    console.print(listed)
    for run in runs:
        if run["status"] not in ("converged", "skipped"):
            last = run["message"].strip().rpartition("\n")[2]
            console.print(f"[red]{escape(_title(run))}: {said(run['status'])}[/]{escape(f': {last}' if last else '')}")


def _cells(group: Sequence[dict[str, Any]]) -> list[str]:
    """What one line of the table says about the runs of one experiment and preset, one a seed."""
    seeds = ", ".join(str(run["seed"]) for run in group)
    if all(run["status"] == "skipped" for run in group):
        return [seeds, f"skipped: {group[0]['message']}", *[""] * (len(HEADER) - 4)]
    good = sum(run["status"] == "converged" for run in group)
    summaries = [run["summary"] for run in group if run["summary"]]
    names = list(dict.fromkeys(name for summary in summaries for name in summary["errors"]))
    errors = [f"{name} {spread(s['errors'][name] for s in summaries if name in s['errors'])}" for name in names]
    paper = [f"{name} {value}" for name, value in (summaries[0]["reference"] if summaries else {}).items()]
    columns = [spread(summary[key] for summary in summaries) for key in ("iterations", "seconds", "loss")]
    goal = "<br>".join(dict.fromkeys(filter(None, (summary["goal"] for summary in summaries))))
    return [seeds, goal, f"{good}/{len(group)}", *columns, "<br>".join(errors), "<br>".join(paper)]


def _lines(group: Sequence[dict[str, Any]], most: int = 3) -> list[str]:
    """The goals of runs of one experiment and preset, and a few figures: those that have a reference first."""
    summaries = [run["summary"] for run in group if run["summary"]]
    reference = summaries[0]["reference"] if summaries else {}
    values = [{**summary["errors"], **{key: summary[key] for key in ("iterations", "loss")}} for summary in summaries]
    names = sorted(dict.fromkeys(name for value in values for name in value), key=lambda name: name not in reference)
    told = [
        f"{name} {spread(value[name] for value in values if name in value)}".replace("_", " ")
        + (f", beside {reference[name]}" if name in reference else "")
        for name in names[:most]
    ]
    return [*dict.fromkeys(summary["goal"] for summary in summaries if summary["goal"]), *told]


def _title(run: dict[str, Any]) -> str:
    return f"{run['experiment']} {run['preset']} --seed {run['seed']}"
