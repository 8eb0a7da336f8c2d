"""Runs every experiment and writes one summary of them all: results/index.html, summary.md and summary.json.

Each run is a process of its own, so that one that dies takes no other with it. The exit code is 0 when every
run reached its goal; a run whose data are not on this machine is reported as skipped and does not count.
"""

import argparse
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from itertools import groupby, product
from pathlib import Path
from typing import Any

from datasets.files import replacing
from experiments.records.files import write_json
from experiments.records.text import said, spread
from experiments.running.launch import Asked, Ended, launched

EXPERIMENTS = (
    "experiments.pose_estimation",
    "experiments.structure_from_motion",
    "experiments.camera_calibration",
)
PRESETS = ("default", "paper", "real", "smoke")
HEADER = (
    "experiment", "preset", "seeds", "goal", "reached", "iterations", "seconds", "loss", "error", "in the paper",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, write the summary, and return the exit code."""
    modules = {module.rsplit(".", 1)[-1]: module for module in EXPERIMENTS}
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--preset", nargs="+", default=["default", "real"], choices=PRESETS, help="names them; default: default real")
    add("--only", nargs="+", default=list(modules), choices=list(modules), help="names experiments; default: all")
    add("--seeds", nargs="+", type=int, default=[0], help="runs everything with each of these seeds; default: 0")
    add("--out", type=Path, default=Path("results"), help="names the folder of all results; default: results")
    add("--jobs", type=int, default=1, help="sets how many runs share the machine, and slow each other; default: 1")
    add("--resume", action="store_true", help="continues what was interrupted and keeps what is done")
    add("--overwrite", action="store_true", help="replaces runs that had other options")
    options = parser.parse_args(arguments)

    asked = [
        Asked(modules[name], preset, seed, ("--overwrite",) * options.overwrite)
        for name, preset, seed in product(options.only, options.preset, options.seeds)
    ]
    runs: list[dict[str, Any]] = [
        {"experiment": run.experiment, "preset": run.preset, "seed": run.seed, **Ended()._asdict()} for run in asked
    ]
    out = options.out.resolve()
    try:
        for run, ended in zip(runs, launched(asked, out, options.resume, options.jobs), strict=True):
            run.update(ended._asdict())
    finally:  # after Ctrl-C, too: what has been computed is worth its summary
        ok = all(run["status"] in ("converged", "skipped") for run in runs)
        out.mkdir(parents=True, exist_ok=True)
        made = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "machine": machine()}
        write_json(out / "summary.json", {"ok": ok, **made, "runs": runs})
        with replacing(out / "summary.md") as temporary:
            temporary.write_text(report(runs))
        from experiments.viewers.index import write_index  # here: it needs jinja2

        tell(runs)
        print(f"\nsummary  {out / 'summary.md'}\npage     {write_index(out)}", flush=True)
    return 0 if ok else 1


def machine() -> dict[str, str]:
    """What the seconds were measured on: torch's version, the processor's name, and the graphics cards'."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = ""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    except (OSError, StopIteration):  # no Linux, or no x86
        cpu = platform.processor() or platform.machine()
    return {"torch": torch, "cpu": cpu, "gpu": _graphics_cards()}


def _graphics_cards() -> str:
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    if not shutil.which(asked[0]):
        return ""
    try:
        named = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # installed, but there is no card
        return ""
    return ", ".join(dict.fromkeys(named.splitlines()))


def tell(runs: Sequence[dict[str, Any]]) -> None:
    """The runs as a table in the terminal: goal and verdict, the first figures beside their references, what failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("run", no_wrap=True)
    for column in ("reached", "seconds", "goal, and what was found"):
        table.add_column(column)
    for (name, preset), group in groupby(runs, key=lambda run: (run["experiment"], run["preset"])):
        cells = dict(zip(HEADER[2:], _cells(some := list(group)), strict=True))
        seeds = f"seed{'s' if len(some) > 1 else ''} {cells['seeds']}"
        row = (f"{name}\n{preset}, {seeds}", cells["reached"], cells["seconds"], "\n".join(_lines(some)))
        good = all(run["status"] in ("converged", "skipped") for run in some)
        table.add_row(*map(escape, row), style=None if good else "red")
    console.print()
    console.print(table)
    for run in runs:
        if run["status"] not in ("converged", "skipped"):
            last = run["message"].strip().rpartition("\n")[2]
            console.print(f"[red]{escape(_title(run))}: {said(run['status'])}[/]{escape(f': {last}' if last else '')}")


def report(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as Markdown: one table, where the seeds of an experiment share a line, and what went wrong."""
    lines = ["# Experiments", "", "Over several seeds: median (range). Errors are against the truth.", ""]
    lines += [_row(HEADER), _row(["---"] * len(HEADER))]
    for (name, preset), group in groupby(runs, key=lambda run: (run["experiment"], run["preset"])):
        lines.append(_row([name, preset, *_cells(list(group))]))
    bad = ("failed", "not converged", "not run")
    noted = [run for run in runs if run["status"] == "converged" and run["message"]]
    for title, told in (("Failed", [run for run in runs if run["status"] in bad]), ("Notes", noted)):
        lines += ["", f"## {title}"] if told else []
        for run in told:
            message = [f"    {line}" for line in run["message"].splitlines()]
            lines += ["", f"{_title(run)}: {said(run['status'])}", *([""] if message else []), *message]
    return "\n".join(lines) + "\n"


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


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _title(run: dict[str, Any]) -> str:
    return f"{run['experiment']} {run['preset']} --seed {run['seed']}"


if __name__ == "__main__":
    sys.exit(main())
