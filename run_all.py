"""Runs experiments, the three of the paper or those that are named, and writes one summary of them all.

That is results/index.html, summary.md and summary.json.

Each run is a process of its own, so that one that dies takes no other with it; with --submit a job of its own, on a
cluster. The exit code is 0 when every run reached its goal; a run whose data are not on this machine is reported as
skipped and does not count. Ctrl-C ends what runs, or cancels the jobs, and --resume goes on.
"""

import argparse
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

from experiments.records.files import write_json, write_text
from experiments.records.overview import report, tell
from experiments.records.seeds import sweeps
from experiments.records.text import nearest
from experiments.running.catalogue import drivers, preset_mistyped
from experiments.running.cluster import Cluster
from experiments.running.launch import Asked, Ended, launched

EXPERIMENTS = (
    "experiments.pose_estimation",
    "experiments.structure_from_motion",
    "experiments.camera_calibration",
)
"""What runs where nothing is named."""
PRESETS = ("default", "real")
"""Those of each that run where nothing is named."""


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for; a mistake in it ends the program with a sentence and exit code 2."""
    usual = {module.rsplit(".", 1)[-1]: module for module in EXPERIMENTS}
    presets = {name: [*driver.presets] for name, driver in drivers().items() if driver.is_run}
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--preset", nargs="+", metavar="PRESET", help="names them; default: default, and real of what has it")
    add("--only", nargs="+", default=[*usual], metavar="EXPERIMENT",
        help=f"names experiments, as python -m experiments lists them; default: {' '.join(usual)}")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[0], help="runs everything with each of these seeds; default: 0")
    add("--out", type=Path, default=Path("results"), help="names the folder of all results; default: results")
    add("--jobs", type=int, help="sets how many runs go at a time; default: 1, of SLURM's as many as there are")
    add("--resume", action="store_true", help="continues what was interrupted and keeps what is done")
    add("--overwrite", action="store_true", help="replaces runs that had other options")
    add("--submit", choices=("local", "slurm"), help="submits every run as a job, by submitit")
    add("--slurm", nargs="+", default=[], metavar="NAME=VALUE",
        help="passes options on to sbatch, as submitit names them: timeout_min=60 partition=gpu gpus_per_node=1 "
        "cpus_per_task=4 mem_gb=16 account=me …; default: timeout_min=60")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.slurm and options.submit != "slurm":
        parser.error("--slurm: of --submit slurm only")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs: at least 1 wanted, got {options.jobs}")
    options.asked = []
    for name in options.only:
        if name not in usual and name not in presets:
            parser.error(f"--only: no experiment {name}{nearest(name, [*presets])}; python -m experiments lists them")
        has = presets.get(name, [*PRESETS, *(options.preset or ())])
        for preset in options.preset or [preset for preset in PRESETS if preset in has]:
            if wrong := preset_mistyped(name, preset, has):
                parser.error(f"--preset: {wrong}")
            options.asked.append((usual.get(name, f"experiments.{name}"), preset))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, write the summary, and return the exit code."""
    options = options_of(arguments)
    asked = [
        Asked(module, preset, seed, ("--overwrite",) * options.overwrite)
        for (module, preset), seed in product(options.asked, options.seeds)
    ]
    runs: list[dict[str, Any]] = [
        {"experiment": run.experiment, "preset": run.preset, "seed": run.seed, **Ended()._asdict()} for run in asked
    ]
    out = options.out.resolve()
    jobs = options.jobs or (len(asked) if options.submit == "slurm" else 1)
    try:
        place = Cluster(options.submit, out, options.slurm) if options.submit else None
    except ValueError as error:
        sys.exit(f"--submit {error}")
    try:
        for run, ended in zip(runs, launched(asked, out, options.resume, jobs, place), strict=True):
            run.update(ended._asdict())
    finally:  # after Ctrl-C, too: what has been computed is worth its summary
        ok = all(run["status"] in ("converged", "skipped") for run in runs)
        out.mkdir(parents=True, exist_ok=True)
        made = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "machine": machine()}
        over_seeds = sweeps(runs)
        seeds = [sweep.as_json() for sweep in over_seeds]
        command = ["python", "run_all.py", *map(str, sys.argv[1:] if arguments is None else arguments)]
        write_json(out / "summary.json", {"ok": ok, "command": command, **made, "runs": runs, "over_seeds": seeds})
        write_text(out / "summary.md", report(runs, over_seeds))
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command with --resume goes on.")
