"""The machine, the drivers that run on it, and the peers, for `experiments.benchmarks.device`."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.device_times import batch_of, solver_of, timed
from experiments.benchmarks.places import Place
from experiments.benchmarks.pnp_solvers import MODES, PEERS, Solver, load_solvers, ours, timed_call
from experiments.benchmarks.sections import Measures, NotHereError, Row
from geometry.pose import back_end

__all__ = ["PEERS_HEADER", "compile_on_cpu", "drivers", "machine", "peers"]

ROOT = Path(__file__).resolve().parents[2]
PEERS_HEADER = (*(f"{name}, {mode}" for mode in MODES for name in ("microseconds a pose", "times ours")),)


def machine(place: Place, options: Mapping[str, Any]) -> Measures:
    yield "device", lambda: Row([card(place)])
    yield "driver", lambda: Row([driver(place)])
    yield "processor", lambda: Row([f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"])
    yield "versions", lambda: Row([", ".join(version(name) for name in ("python", "torch", "numba", "numba-cuda"))])
    yield "what solves pnp", lambda: Row([f"on the device: {back_end(torch.empty(0, device=place.device))}"])


def card(place: Place) -> str:
    if place.stand_in:
        return "none: the CPU, with kernels as plain Python in the place of a device's"
    found = torch.cuda.get_device_properties(place.device)
    size, cards = f"{found.total_memory / 2**30:.0f} GiB", torch.cuda.device_count()
    return f"{found.name}, {size}, capability {found.major}.{found.minor}, the first of {cards}"


def driver(place: Place) -> str:
    if place.stand_in or not shutil.which("nvidia-smi"):
        raise NotHereError("nothing tells")
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    return f"{said[0]}, torch for CUDA {torch.version.cuda}"


def version(name: str) -> str:
    if name == "python":
        return f"Python {platform.python_version()}"
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"no {name}"


def compile_on_cpu(place: Place) -> Row:
    """The kernels that are measured beside the device's, left in the cache for the other sections."""
    cpu = torch.device("cpu")
    for dtype in (torch.float64, torch.float32):
        timed_call(solver_of(dtype), batch_of(1, 8, dtype, cpu), MODES[1])()
    return Row(["kernels of the CPU"])


# ---- drivers ----


def drivers(place: Place, options: Mapping[str, Any]) -> Measures:
    """The smoke preset of every driver of runs, each a process, all at once."""
    if place.stand_in:
        yield "all", no_device
        return
    names = [p for p in sorted((ROOT / "experiments").rglob("*.py")) if "\n@experiment(" in p.read_text()]
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in names]
    folder = tempfile.mkdtemp()
    started = {}
    for module in modules:
        command = [sys.executable, "-m", module, "smoke", "--device", place.name, "--out", folder]
        log = Path(folder, module)
        with log.open("w") as told:
            started[module] = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=told), log
    end = time.perf_counter() + float(options["driver_seconds"])
    for module, (process, log) in started.items():
        yield module, partial(ended, process, log, end)
    shutil.rmtree(folder, ignore_errors=True)


def no_device() -> Row:
    raise NotHereError("a CUDA device wanted")


def ended(process: subprocess.Popen, log: Path, end: float) -> Row:
    try:
        code = process.wait(max(0.1, end - time.perf_counter()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise NotHereError("not ended in time") from None
    said = ([line for line in log.read_text().splitlines() if line.strip()] or [""])[-1]
    if "ModuleNotFoundError" in said:
        raise NotHereError(said.partition(": ")[2])
    return Row(["ok"]) if code == 0 else Row([f"**exit code {code}**: {said}"], {"failures": 1.0})


# ---- peers ----


def peers(place: Place, options: Mapping[str, Any]) -> Measures:
    """Those of which a working tree lies in a folder, on the device, in turns with ours."""
    folder = options["peers"]
    for name, (_, inside) in PEERS.items():
        if inside:
            yield name, partial(time_peer, place, name, folder)


def time_peer(place: Place, name: str, folder: Path | None) -> Row:
    if folder is None or not (folder / name).is_dir():
        raise NotHereError(f"--peers FOLDER holds no {name}")
    threads = torch.get_num_threads()
    found, _ = load_solvers(threads, (f"{name}={folder / name}",))
    (theirs,) = (s for n, s in found.items() if n.startswith(name))
    batch = batch_of(min(4096, theirs.at_most), 64, theirs.dtype, place.device)
    cells = []
    for mode in MODES:
        both: dict[str, Solver] = {"theirs": theirs, "ours": ours()["ours"]}
        best = timed(place, {n: timed_call(s, batch, mode) for n, s in both.items()}, 1.0)
        cells += [f"{1e6 * best['theirs'] / len(batch.K):.3g}", f"{best['theirs'] / best['ours']:.3g}"]
    return Row(cells)
