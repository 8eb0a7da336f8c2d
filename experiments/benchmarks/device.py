"""Does a CUDA device solve what the CPU does, and how fast? One command of five minutes, for the day one is at hand.

Needs torch, numpy, numba and numba-cuda alone. Sections, each a process of its own, one after the other within the
seconds it is given: the machine; PnP's times; every public solver and its gradients beside the CPU's; RANSAC; bundles;
the smoke presets of the drivers that can be imported; peers, of which --peers FOLDER holds working trees named
EPro-PnP, Theseus, BPnP. What fails is a line of its table, and the next one is measured. The page is written whole
whenever a section has ended: results/reference/device.md.

`--device stand-in` does the same with tiny problems on the CPU, where kernels run as plain Python in the place of a
device's; its page goes to results/benchmark_device/table.md and says nothing of speed.
"""

import argparse
import operator
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.device_behaviour import behaviour
from experiments.benchmarks.device_checks import checks
from experiments.benchmarks.device_machine import PEERS_HEADER, compile_on_cpu, drivers, machine, peers
from experiments.benchmarks.device_times import (
    BUNDLES,
    POSES,
    SEARCHES,
    bundles,
    compile_bundle,
    compile_poses,
    compile_search,
    poses,
    searches,
)
from experiments.benchmarks.places import PLACES, Place
from experiments.benchmarks.pnp_solvers import MODES
from experiments.benchmarks.sections import Row, Section, run_all
from experiments.records.files import EXIT_SKIPPED, write_text
from experiments.records.text import table

CHECKS = ("largest difference, relative", "of", "statuses", "")
DOUBLE, SINGLE = torch.float64, torch.float32
# the order in which they are measured: what is worth most comes first
SECTIONS = (
    Section("Machine", ("",), 10, machine, compile_on_cpu),
    Section("Poses a second, float64", POSES, 50, partial(poses, dtype=DOUBLE), partial(compile_poses, dtype=DOUBLE)),
    Section("Right, float64", CHECKS, 60, partial(checks, dtype=DOUBLE), partial(compile_poses, dtype=DOUBLE)),
    Section("What a call must be able to do", ("", ""), 40, behaviour, partial(compile_poses, dtype=DOUBLE)),
    Section("Poses a second, float32", POSES, 25, partial(poses, dtype=SINGLE), partial(compile_poses, dtype=SINGLE)),
    Section("Bundles", BUNDLES, 40, bundles, compile_bundle),
    Section("Without a start", SEARCHES, 15, searches, compile_search),
    Section("Right, float32", CHECKS, 20, partial(checks, dtype=SINGLE), partial(compile_poses, dtype=SINGLE)),
    Section("Peers, N = 64", PEERS_HEADER, 20, peers),
    Section("Drivers", ("smoke preset",), 40, drivers),
)
BOTH = MODES[1]


def least_ratio(figures: Mapping[str, float], begin: str) -> float | None:
    """How many times faster than the CPU a device is at the worst, from 64 problems on."""
    ratios = [
        figures[f"CPU, {name}"] / value
        for name, value in figures.items()
        if name.startswith(begin) and f"CPU, {name}" in figures and int(name.rpartition("= ")[2]) >= 64
    ]
    return min(ratios, default=None)


def figure(name: str, scale: Callable[[float], float] = float) -> Callable[[Mapping[str, float]], float | None]:
    return lambda figures: scale(figures[name]) if name in figures else None


def single_by_double(figures: Mapping[str, float]) -> float | None:
    name = f"{BOTH}, N = 64, B = 65536"
    there = f"float32, {name}" in figures and f"float64, {name}" in figures
    return figures[f"float64, {name}"] / figures[f"float32, {name}"] if there else None


# what is asked for, what is measured, and how they compare
BARS: tuple[tuple[str, Callable[[Mapping[str, float]], float | None], Callable[..., bool], float], ...] = (
    (
        "poses a second, forward + backward, float64, N = 64, B = 65,536: 1e7",
        figure(f"float64, {BOTH}, N = 64, B = 65536", lambda s: 65536 / s), operator.ge, 1e7,
    ),
    (
        "milliseconds a call, forward + backward, float64, N = 64, B = 256: below 0.3",
        figure(f"float64, {BOTH}, N = 64, B = 256", lambda s: 1e3 * s), operator.lt, 0.3,
    ),
    ("times as fast as the CPU, the worst from B = 64 on: 1", lambda f: least_ratio(f, "float"), operator.ge, 1.0),
    ("times as fast in float32, forward + backward, N = 64, B = 65,536: 2", single_by_double, operator.ge, 2.0),
    ("Ladybug-49 to its optimum with gradient, milliseconds: 20", figure("small, with gradient", lambda s: 1e3 * s),
     operator.le, 20.0),
    ("1.5 million observations to 0.1 %, seconds: 0.5", figure("large, to 0.1 %"), operator.le, 0.5),
)  # fmt: skip

Found = Sequence[tuple[Section, Sequence[tuple[str, Row]]]]


def markdown(place: Place, found: Found, seconds: float) -> str:
    """The whole page."""
    rows = [row for _, lines in found for _, row in lines]
    figures = {name: value for row in rows for name, value in row.figures.items()}
    failures = round(sum(row.figures.get("failures", 0.0) for row in rows))
    said = f"{datetime.now(timezone.utc):%Y-%m-%d}, {seconds:.0f} s. {failures} of {len(rows)} lines failed."
    parts = ["# On a device\n", f"`python -m experiments.benchmarks.device --device {place.name}`, {said}\n"]
    if place.stand_in:
        parts += ["No device: nothing here says how fast one is.\n"]
    else:
        met = [(text, value(figures), compare, bar) for text, value, compare, bar in BARS]
        verdicts = [
            [text, "–", "not measured"] if v is None else [text, f"{v:.3g}", "met" if compare(v, bar) else "**missed**"]
            for text, v, compare, bar in met
        ]
        parts += [table(["asked for", "measured", ""], verdicts)]
    for section, lines in found:
        parts += [f"## {section.title}\n"]
        if lines and lines[0][0].startswith("prepared"):
            parts += [f"P{lines[0][0][1:]}: {', '.join(lines[0][1].cells)}.\n"]
            lines = lines[1:]
        empty = [""] * len(section.header)
        cells = [[name, *row.cells, *empty[len(row.cells) :]] for name, row in lines]
        parts += [table(["", *section.header], cells)]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and save what the command line asks for, and return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m experiments.benchmarks.device", None, __doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=PLACES, help="says where to measure; default: cuda")
    parser.add_argument(
        "--seconds", type=float, default=290.0, help="limits the seconds of all sections together; default: 290"
    )
    parser.add_argument("--peers", type=Path, help="names a folder with working trees of peers, under their names")
    parser.add_argument("--only", nargs="+", help="lists sections by how their titles begin; default: all")
    parser.add_argument("--out", type=Path, help="names the page; default: results/reference/device.md")
    given = parser.parse_args(arguments)
    place = Place(given.device)
    if not place.stand_in and not torch.cuda.is_available():
        print("there is no CUDA device that torch can use: nothing was measured", file=sys.stderr)
        return EXIT_SKIPPED
    usual = "results/benchmark_device/table.md" if place.stand_in else "results/reference/device.md"
    out = given.out or Path(usual)
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = [s for s in SECTIONS if given.only is None or s.title.startswith(tuple(given.only))]
    options: dict[str, Any] = {"peers": given.peers and given.peers.resolve(), "driver_seconds": 35.0}
    begin, found = time.perf_counter(), []
    for section, lines in run_all(chosen, place, options, given.seconds):
        found.append((section, lines))
        text = markdown(place, found, time.perf_counter() - begin)
        write_text(out, text)
        print(f"{section.title}: {len(lines)} lines", flush=True)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
