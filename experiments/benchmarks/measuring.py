"""What the benchmarks share: times in turns, memory of a process of its own, tables, a command line of presets."""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datasets.files import replacing
from experiments.records.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["alone", "choose", "count_from_here", "measurable", "resident", "save", "take_turns"]

T = TypeVar("T")


def resident(field: str) -> int:
    """VmRSS, the bytes of memory that this process holds, or VmHWM, the most that it held."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def count_from_here() -> None:
    """Give memory back that is not used, and count the most that is held from here on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for later would be used unseen
    Path("/proc/self/clear_refs").write_text("5")


def measurable() -> bool:
    """Whether `count_from_here` works: Linux with glibc."""
    return Path("/proc/self/clear_refs").exists() and hasattr(ctypes.CDLL(None), "malloc_trim")


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def take_turns(calls: Mapping[Any, Callable[[], object]], seconds: float) -> dict[Any, list[float]]:
    """Seconds a call, one after the other until the time is over, at least three times each."""
    repeats = {}
    for key, run in calls.items():
        run()
        start = time.perf_counter()
        run()
        repeats[key] = math.ceil(1e-3 / (time.perf_counter() - start))  # a turn is far longer than the clock's tick
    times: dict[Any, list[float]] = {key: [] for key in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for key, run in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[key]):
                run()
            times[key].append((time.perf_counter() - start) / repeats[key])
    return times


def save(folder: Path, text: str, results: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Write table.md, table.json and the figures by their file names, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "table.md") as temporary:
        temporary.write_text(text)
    write_json(folder / "table.json", results)
    for name, figure in figures.items():
        with replacing(folder / name) as temporary:
            figure.savefig(temporary, dpi=150)


def choose(presets: Mapping[str, T], program: str, description: str | None) -> T:
    """The preset that the command line names, "default" where it names none, with its changes."""
    from experiments.running.config import cli  # here: it needs tyro, which a machine that measures need not have

    return cli(description, presets, program, default="default")
