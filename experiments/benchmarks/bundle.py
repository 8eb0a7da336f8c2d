"""How fast and how large is `geometry.bundle`, beside Ceres (as COLMAP uses it) and SciPy?

All go from the same start with the same loss and the same unknowns on as many threads
(`experiments.benchmarks.bundle_solvers`).

- race: cost over time on a BAL file, every solver in turn, several times, so that a noisy machine hits all alike. Time
  to within 0.1 and 0.01 % of the optimum counts from the call, on the solver's own representation. The optimum is
  the lowest that any solver of the same cost reaches, a long run included. COLMAP leaves out what is behind its
  cameras, so Ceres is measured by its own optimum; its cost over all observations stands beside it, and a second
  race, without the points that start behind a camera, is one for the same minimum.
- scaling: seconds a trial step and memory against the number of observations, on made streets.
- large: the same for one scene of 1,000 cameras and 300,000 points (1.5 million observations), to the end.

Memory is that of a fresh process: `added` is what the solver's own representation and its run take at their peak
besides the scene, `peak` all that the process held. COLMAP's reconstruction is a part of its representation.
Writes results/benchmark_bundle/table.md, table.json, race.png and scaling.png.

Presets:

- default: Measures the race, the scaling and the large scene.
- race: Measures the race alone.
- smoke: Measures tiny problems, to see that everything works.
"""

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from datasets.locate import find
from datasets.reconstructions.model import Reconstruction
from experiments.benchmarks.bundle_solvers import (
    Limits,
    Solver,
    Trace,
    load_solvers,
    read_scene,
    synthetic_scene,
    without_points_behind,
)
from experiments.benchmarks.measuring import alone, choose, count_from_here, measurable, resident, save
from experiments.drawing.figures import BLUE, GREY, ORANGE
from experiments.records.text import table
from experiments.running.config import at_least

WITHIN = {"0.1 %": 1e-3, "0.01 %": 1e-4}
COLORS = {
    "ours": BLUE, "Ceres DENSE_SCHUR": ORANGE, "Ceres SPARSE_SCHUR": "#CC79A7", "Ceres ITERATIVE_SCHUR": "#009E73",
    "SciPy least_squares": GREY,
}  # fmt: skip
OBSERVATIONS_PER_POINT, OBSERVATIONS_PER_CAMERA = 5, 1500
GIB = 1 << 30


@dataclass(frozen=True)
class Config:
    file: Path | None = None
    """Names a BAL file, or a problem of libmv (*.bin); left out, it is Ladybug with 49 cameras, from the data."""
    street: tuple[int, int] = (0, 0)
    """Races on a made street of so many cameras and points instead of a file."""
    repetitions: int = 7
    """Sets the number of runs of each solver in a race."""
    max_steps: int = 50
    """Limits the trial steps of a race and of the large scene."""
    long: int = 300
    """Limits the trial steps of the run that looks for the optimum."""
    seconds: float = 60.0
    """Ends a run of the race or of the scaling after so many; a step that is under way is waited for."""
    observations: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Lists the sizes of the scaling, about."""
    scaling_steps: int = 8
    """Limits the trial steps of the scaling."""
    large: tuple[int, int] = (1000, 300_000)
    """Sets the cameras and points of the large scene; 0 0 leaves it out."""
    large_seconds: float = 900.0
    """Ends a run on the large scene after so many."""
    memory_limit: float = 8.0
    """Limits the GiB that a process may take on the large scene."""
    seed: int = 0
    """Seeds the made scenes."""
    threads: int = 2
    """Sets the CPU threads of every solver."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_bundle."""

    def __post_init__(self) -> None:
        at_least(self, 1, "repetitions", "threads", "observations")
        if not (self.seconds > 0 and self.large_seconds > 0):
            raise ValueError(f"seconds and large_seconds must be positive, got {self.seconds}, {self.large_seconds}")
        at_least(self, 3, "max_steps", "long", "scaling_steps")  # fewer have no median time
        for name, (cameras, points) in {"street": self.street, "large": self.large}.items():
            if (cameras, points) != (0, 0) and (cameras < 2 or points < 1):
                raise ValueError(f"{name} must be 0 0, or at least 2 cameras and 1 point, got {cameras} {points}")


# ---- the measures ----


def size_of(scene: Reconstruction) -> dict[str, int]:
    sizes = (scene.world_to_camera, scene.points3d, scene.points2d)
    return dict(zip(("cameras", "points", "observations"), map(len, sizes), strict=True))


def race(config: Config, solvers: Mapping[str, Solver], scene: Reconstruction, title: str) -> dict[str, Any]:
    """Cost over time of every solver that can do this scene: the traces of all its runs, and what they say."""
    size = size_of(scene)
    solvers = {name: s for name, s in solvers.items() if s.fits(size["cameras"], size["observations"])}
    limits = Limits(config.max_steps, config.seconds, config.threads)
    runs: dict[str, list[Trace]] = {name: [] for name in solvers}
    watched = {
        name: s.prepare(scene, Limits(config.long, config.seconds, config.threads, watch=True))()
        for name, s in solvers.items()
        if not s.slow
    }  # not timed: it looks far ahead, and compiles what has to be
    for i in tqdm(range(config.repetitions), title):
        for name, solver in solvers.items():
            if i == 0 or not solver.slow:
                run = solver.prepare(scene, limits)
                gc.collect()
                runs[name].append(run())
    return {"title": title, **size, "solvers": summarise(solvers, runs, watched)}


def summarise(
    solvers: Mapping[str, Solver], runs: Mapping[str, Sequence[Trace]], watched: Mapping[str, Trace]
) -> list[dict[str, Any]]:
    """A row a solver; the optimum is the lowest cost of all solvers that minimise the same."""
    optima = {}
    for full in (True, False):
        own = [t.cost for name, s in solvers.items() if s.full == full for t in runs[name]]
        own += [t.cost for name, t in watched.items() if solvers[name].full == full]
        if full:  # whoever comes by
            own += [t.full_cost for t in watched.values()]
        optima[full] = min((float(np.nanmin(c)) for c in own if not np.isnan(c).all()), default=math.nan)
    rows = []
    for name, solver in solvers.items():
        optimum, traces = optima[solver.full], runs[name]
        steps_done = min(len(traces[0].cost), len(watched[name].cost)) if name in watched else 0
        row: dict[str, Any] = {
            "solver": name,
            "runs": len(traces),
            "optimum": optimum,
            "cost": float(np.median([t.cost.min() for t in traces])),
            "full_cost": float(watched[name].full_cost[steps_done - 1]) if steps_done else float(traces[0].cost.min()),
            "steps": len(traces[0].cost) - 1,
            "step_s": float(np.median([t.step_seconds for t in traces])),
            "total_s": float(np.median([t.total for t in traces])),
            "within": {},
        }
        for text, share in WITHIN.items():
            seconds, steps = np.array([t.reaches(optimum * (1 + share)) for t in traces]).T
            row["within"][text] = {
                "median_s": float(np.median(seconds)), "min_s": float(seconds.min()), "steps": int(np.median(steps)),
            }  # fmt: skip
        row["trace"] = sorted(traces, key=lambda t: t.total)[len(traces) // 2].accepted()
        rows.append(row)
    return rows


def measure_alone(name: str, cameras: int, points: int, seed: int, limits: Limits, warm: bool = True) -> dict[str, Any]:
    """Time and memory of one solver on a street, for a process that has done nothing else."""
    solver = load_solvers()[0][name]
    if warm:  # imports, compiled code
        start, _ = synthetic_scene(5, 100, 4, torch.Generator().manual_seed(seed))
        solver.prepare(start, Limits(3, threads=limits.threads))()
    scene, _ = synthetic_scene(cameras, points, OBSERVATIONS_PER_POINT, torch.Generator().manual_seed(seed))
    count_from_here()
    before = resident("VmRSS")
    begun = time.perf_counter()
    run = solver.prepare(scene, limits)
    prepared = time.perf_counter() - begun
    trace = run()
    peak = resident("VmHWM")
    return {
        "solver": name, **size_of(scene), "prepare_s": prepared, "step_s": trace.step_seconds,
        "steps": len(trace.cost) - 1, "total_s": trace.total, "cost": float(trace.cost.min()),
        "added_bytes": peak - before, "peak_bytes": peak, "trace": trace.accepted(),
    }  # fmt: skip


def street_size(observations: int) -> tuple[int, int]:
    """Cameras and points of a street with about so many observations."""
    return max(5, observations // OBSERVATIONS_PER_CAMERA), max(1, observations // OBSERVATIONS_PER_POINT)


def measure_scaling(config: Config, solvers: Mapping[str, Solver]) -> list[dict[str, Any]]:
    limits = Limits(config.scaling_steps, config.seconds, config.threads)
    tasks = [(name, *street_size(M), M) for M in config.observations for name in solvers]
    tasks = [task for task in tasks if solvers[task[0]].fits(task[1], task[3])]
    return [alone(measure_alone, name, V, N, config.seed, limits) for name, V, N, _ in tqdm(tasks, "scaling")]


def measure_large(config: Config, solvers: Mapping[str, Solver]) -> list[dict[str, Any]]:
    """Every solver that can, on the one large street, to its end."""
    cameras, points = config.large
    if not points:
        return []
    limits = Limits(config.max_steps, config.large_seconds, config.threads)
    names = [name for name, s in solvers.items() if s.fits(cameras, points * OBSERVATIONS_PER_POINT)]
    rows = [alone(measure_alone, name, cameras, points, config.seed, limits) for name in tqdm(names, "large")]
    lowest = min(row["cost"] for row in rows)
    for row in rows:
        row["within_s"] = {
            text: next((s for s, cost in row["trace"] if cost <= lowest * (1 + share)), math.inf)
            for text, share in WITHIN.items()
        }
    return rows


# ---- the results ----


def beside_ours(rows: Sequence[dict[str, Any]], values: Sequence[float]) -> list[str]:
    """A cell a row: the figure, and in brackets how many times ours that is."""
    ours = next((value for row, value in zip(rows, values, strict=True) if row["solver"] == "ours"), math.inf)
    known = math.isfinite(ours) and ours > 0
    return [
        f"{value:.3g}{f' ({value / ours:.3g})' if known else ''}" if math.isfinite(value) else "–" for value in values
    ]


def race_table(rows: Sequence[dict[str, Any]]) -> str:
    """Times with the ratio to ours; costs to the digits that tell solvers apart."""
    columns = {"solver": [row["solver"] for row in rows]}
    for text in WITHIN:
        columns[f"s to {text}"] = beside_ours(rows, [row["within"][text]["median_s"] for row in rows])
        columns[f"steps to {text}"] = [
            str(row["within"][text]["steps"]) if math.isfinite(row["within"][text]["median_s"]) else "–" for row in rows
        ]
    columns["ms a step"] = beside_ours(rows, [1e3 * row["step_s"] for row in rows])
    columns["steps"] = [str(row["steps"]) for row in rows]
    columns["s in all"] = beside_ours(rows, [row["total_s"] for row in rows])
    costs = {"cost": "cost", "cost, all observations": "full_cost", "optimum": "optimum"}
    columns |= {text: [f"{row[key]:.2f}" for row in rows] for text, key in costs.items()}
    return table(list(columns), list(zip(*columns.values(), strict=True)))


def scaling_table(rows: Sequence[dict[str, Any]], key: str, unit: float) -> str:
    """One measure over the number of observations."""
    columns: dict[str, dict[str, str]] = {}
    for M in sorted({row["observations"] for row in rows}):
        there = [row for row in rows if row["observations"] == M]
        cells = beside_ours(there, [row[key] / unit for row in there])
        columns[f"{M:,}"] = dict(zip((row["solver"] for row in there), cells, strict=True))
    names = dict.fromkeys(row["solver"] for row in rows)
    lines = [[name, *(column.get(name, "–") for column in columns.values())] for name in names]
    return table(["observations", *columns], lines)


def large_table(rows: Sequence[dict[str, Any]], memory_limit: float) -> str:
    columns = {"solver": [row["solver"] for row in rows]}
    for text in WITHIN:
        columns[f"s to {text}"] = beside_ours(rows, [row["within_s"][text] for row in rows])
    columns["s a step"] = beside_ours(rows, [row["step_s"] for row in rows])
    columns["steps"] = [str(row["steps"]) for row in rows]
    columns["s in all"] = beside_ours(rows, [row["total_s"] for row in rows])
    columns["cost"] = [f"{row['cost']:.2f}" for row in rows]
    columns["GiB added"] = beside_ours(rows, [row["added_bytes"] / GIB for row in rows])
    columns[f"GiB in all (limit {memory_limit:g})"] = [
        f"{row['peak_bytes'] / GIB:.2f}{' too much' if row['peak_bytes'] > memory_limit * GIB else ''}" for row in rows
    ]
    return table(list(columns), list(zip(*columns.values(), strict=True)))


def markdown(config: Config, results: dict[str, Any]) -> str:
    """The whole page."""
    absent = ", ".join(results["absent"]) or "none"
    parts = [f"Threads: {config.threads}. Not installed: {absent}. In brackets: times ours.\n"]
    for found in results["races"]:
        size = f"{found['cameras']:,} cameras, {found['points']:,} points, {found['observations']:,} observations"
        parts.append(f"## Race: {found['title']}\n\n{size}; medians of {config.repetitions} runs in turns.\n")
        parts.append(race_table(found["solvers"]))
    if results["scaling"]:
        parts.append(f"## Scaling\n\nMilliseconds a trial step, the median of {config.scaling_steps}; MiB added.\n")
        parts += [
            scaling_table(results["scaling"], *measure) for measure in (("step_s", 1e-3), ("added_bytes", 1 << 20))
        ]
    if results["large"]:
        row = results["large"][0]
        parts.append(f"## Large\n\n{row['cameras']:,} cameras, {row['observations']:,} observations.\n")
        parts.append(large_table(results["large"], config.memory_limit))
    return "\n".join(parts)


def tidy(axes: Axes, **labels: str) -> None:
    axes.set(xscale="log", yscale="log", **labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E3E6EA", linewidth=0.8)


def race_figure(races: Sequence[dict[str, Any]]) -> Figure:
    """Cost above the optimum over time: the median run of every solver, against the optimum of what it minimises."""
    figure = Figure(figsize=(5.5 * len(races), 4.6), layout="constrained")
    grid = figure.subplots(1, len(races), squeeze=False)[0]
    for axes, found in zip(grid, races, strict=True):
        for row in found["solvers"]:
            seconds, cost = np.array(row["trace"]).T
            excess = cost / row["optimum"] - 1
            shown = (excess > 1e-7) & (seconds > 0)
            style = {"color": COLORS[row["solver"]], "linewidth": 2.4 if row["solver"] == "ours" else 1.2}
            axes.plot(seconds[shown], excess[shown], "o-", markersize=3, label=row["solver"], **style)
        for text, share in WITHIN.items():
            axes.axhline(share, color=GREY, linewidth=0.8, linestyle=":")
            axes.annotate(
                f"{text} above", (1, share), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                textcoords="offset points", ha="right", color=GREY, fontsize=8,
            )  # fmt: skip
        tidy(axes, xlabel="seconds", ylabel="cost above the optimum, relative", title=found["title"])
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def scaling_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Seconds a step and memory over the number of observations."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    grid = figure.subplots(1, 2)
    shown = (("seconds a trial step", "step_s", 1.0), ("GiB added by the solver", "added_bytes", GIB))
    for axes, (text, key, unit) in zip(grid, shown, strict=True):
        for name in dict.fromkeys(row["solver"] for row in rows):
            points = sorted((row["observations"], row[key] / unit) for row in rows if row["solver"] == name)
            style = {"color": COLORS[name], "linewidth": 2.4 if name == "ours" else 1.2}
            axes.plot(*np.array(points).T, "o-", markersize=4, label=name, **style)
        tidy(axes, xlabel="observations", ylabel=text)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def scenes(config: Config) -> dict[str, Reconstruction]:
    """What is raced on, by title."""
    if any(config.street):
        start, _ = synthetic_scene(*config.street, OBSERVATIONS_PER_POINT, torch.Generator().manual_seed(config.seed))
        return {"a made street": start}
    path = config.file or find("bal") / "problem-49-7776-pre.txt"
    given = read_scene(path)
    reduced = without_points_behind(given)
    if len(reduced.points3d) == len(given.points3d):
        return {path.stem: given}
    return {path.stem: given, f"{path.stem}, without points behind a camera": reduced}


def main(config: Config) -> dict[str, Any]:
    """Measure, print and save."""
    solvers, absent = load_solvers()
    results: dict[str, Any] = {
        "config": vars(config) | {"file": config.file and config.file.name},
        "absent": absent,
        "races": [race(config, solvers, scene, title) for title, scene in scenes(config).items()],
        "scaling": measure_scaling(config, solvers) if measurable() else [],
        "large": measure_large(config, solvers) if measurable() else [],
    }
    print(text := markdown(config, results))
    figures = {"race.png": race_figure(results["races"])}
    if results["scaling"]:
        figures["scaling.png"] = scaling_figure(results["scaling"])
    save(config.out / "benchmark_bundle", text, results, figures)
    return results


PRESETS = {
    "default": Config(),
    "race": Config(observations=(), large=(0, 0)),
    "smoke": Config(
        street=(6, 60), repetitions=2, max_steps=8, long=20, seconds=10.0, observations=(500,), scaling_steps=3,
        large=(0, 0), threads=1,
    ),
}  # fmt: skip


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.bundle", __doc__))
