"""Runs every experiment and writes one summary of them all: results/index.html, summary.md and summary.json.

Each run is a process of its own, so that one that dies takes no other with it. The exit code is 0 when every
run converged; a run whose data are not on this machine is reported as skipped and does not count.
"""

import argparse
import platform
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from itertools import groupby, product
from pathlib import Path
from typing import Any

from datasets.files import replacing
from experiments.records.files import EXIT_SKIPPED, read_summary, write_json
from experiments.records.text import spread

ROOT = Path(__file__).resolve().parent
EXPERIMENTS = (
    "experiments.pose_estimation",
    "experiments.structure_from_motion",
    "experiments.camera_calibration",
)
PATIENCE = 3.0
"""Seconds that a driver is given to end by itself after Ctrl-C, and again when it is asked to."""
PRESETS = ("default", "paper", "real", "smoke")
HEADER = (
    "experiment", "preset", "seeds", "goal", "converged", "iterations", "seconds", "loss", "error", "in the paper",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, write the summary, and return the exit code."""
    modules = {module.rsplit(".", 1)[-1]: module for module in EXPERIMENTS}
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--preset", nargs="+", default=["default", "real"], choices=PRESETS, help="default: default real")
    add("--only", nargs="+", default=list(modules), choices=list(modules), help="default: all of them")
    add("--seeds", nargs="+", type=int, default=[0], help="one run of everything with each; default: 0")
    add("--out", type=Path, default=Path("results"), help="where the results go; default: results")
    add("--resume", action="store_true", help="continue what was interrupted and keep what is done")
    options = parser.parse_args(arguments)

    unknown = {"status": "not run", "message": "", "summary": None}
    runs: list[dict[str, Any]] = [
        {"experiment": name, "preset": preset, "seed": seed, **unknown}
        for name, preset, seed in product(options.only, options.preset, options.seeds)
    ]
    out = options.out.resolve()
    try:
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {_title(run)}", flush=True)
            run.update(launch(modules[run["experiment"]], run["preset"], run["seed"], out, options.resume))
            print(f"[{number}/{len(runs)}] {_title(run)}: {run['status']}", flush=True)
    finally:  # after Ctrl-C, too: what has been computed is worth its summary
        ok = all(run["status"] in ("converged", "skipped") for run in runs)
        out.mkdir(parents=True, exist_ok=True)
        made = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "machine": machine()}
        write_json(out / "summary.json", {"ok": ok, **made, "runs": runs})
        text = report(runs)
        with replacing(out / "summary.md") as temporary:
            temporary.write_text(text)
        print(f"\n{text}\n{out / 'summary.md'}", flush=True)
        from experiments.viewers.index import write_index  # here: it needs jinja2

        print(write_index(out))
    return 0 if ok else 1


def launch(module: str, preset: str, seed: int, out: Path, resume: bool) -> dict[str, Any]:
    """Run one driver to its end: its status, its summary if it has one, and what it said if it has none."""
    command = [sys.executable, "-m", module, preset, "--seed", str(seed), "--out", str(out)]
    path = out / module.rsplit(".", 1)[-1] / f"{preset}-seed{seed}" / "summary.json"
    before = _written(path)
    tail: deque[str] = deque(maxlen=12)
    with subprocess.Popen(
        command + ["--resume"] * resume, cwd=ROOT, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as driver:
        assert driver.stderr is not None
        try:
            for line in driver.stderr:  # passed on as it comes: the progress is in it
                sys.stderr.write(line)
                tail.append(line.rstrip())
        except BaseException:
            _end(driver)
            raise
    code, said = driver.returncode, "\n".join(line for line in tail if line)
    if code == EXIT_SKIPPED:
        return {"status": "skipped", "message": said.rsplit("\n", 1)[-1]}
    if code != 0:
        return {"status": "failed", "message": f"exit code {code}\n{said}"}
    written = _written(path)
    if not written or (written == before and not resume):  # an old summary says nothing about this run
        return {"status": "failed", "message": f"it ended without writing {path}"}
    summary = read_summary(path)
    status = "converged" if summary["converged"] else "not converged"
    told = [*summary["undetermined"], *filter(None, [summary["note"]])]
    return {"status": status, "message": "\n".join(told), "summary": summary}


def _end(driver: subprocess.Popen[str]) -> None:
    """End with the driver: a terminal's Ctrl-C reaches both, another's this process alone; and some do not listen."""
    for ask in (lambda: None, lambda: driver.send_signal(signal.SIGINT), driver.kill):
        ask()
        try:
            driver.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            pass


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
            said = [f"    {line}" for line in run["message"].splitlines()]
            lines += ["", f"{_title(run)}: {run['status']}", *([""] if said else []), *said]
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


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _title(run: dict[str, Any]) -> str:
    return f"{run['experiment']} {run['preset']} --seed {run['seed']}"


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
