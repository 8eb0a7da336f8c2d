"""How fast, how accurate and how large is `geometry.pnp`, beside every other PnP solver that is installed?

All get the same seeded problems: N points in a cube of side 2 (or a square), f = 800 px, 640 x 480, 1 px of noise,
weights one, float64 (BPnP: float32, as published), and those that need a start one that is 10 degrees and 10 % off.
All run in one process, on as many threads, in turns, so that a noisy machine hits all alike. What is timed is a
solver's call on its own representation, not the conversion. A loop on the host, and a peer that is batched once B x N
is large, takes time linear in B: both are measured on the first problems of a large batch
(`experiments.benchmarks.pnp_solvers`).

- excess cost: (cost - best) / best, best being the lowest that any solver reaches, before or after our refinement;
- rotation error: against that pose; gradient error: |J - F| / |F| as in `experiments.gradient_error`, F by finite
  differences of that optimum, median over problems, of the worst input that the solver is differentiable in;
- memory: what forward + backward adds to the memory of a fresh process at its peak, by the size of the inputs;
- without a start: share of problems in which refining the returned pose ends in the lowest minimum that any found.

Peers that are not on PyPI are read from a working tree, `--checkout BPnP=PATH`; so are EPro-PnP and Theseus.
Writes results/benchmark_pnp/table.md, table.json and cost.png.

Presets:

- default: Measures common sizes, and 1,600 problems without a start.
- full: Measures all sizes, and 10,000 problems without a start: the reference.
- smoke: Measures tiny problems, to see that everything works.
"""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from experiments.benchmarks.measuring import alone, choose, count_from_here, measurable, resident, save, take_turns
from experiments.benchmarks.pnp_solvers import (
    BATCHED,
    DIFFERENTIABLE,
    MODES,
    PEERS,
    Batch,
    Solver,
    load_solvers,
    make_problems,
    ours,
    reprojection_cost,
    timed_call,
)
from experiments.drawing.figures import BLUE, GREY, ORANGE
from experiments.gradients.derivatives import numeric, tangent
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import pnp, se3
from geometry.camera import intrinsics_from_matrix, matrix_from_intrinsics

MAX_POINTS = 5_000_000
"""B x N of the largest batch."""
COLORS = {
    "ours": BLUE, "OpenCV": ORANGE, "PoseLib": "#009E73", "SciPy": GREY, "kornia": "#CC79A7", "pypose": "#E69F00",
    "BPnP_fast": "#000000", "EPro-PnP": "#56B4E9", "Theseus": "#B8A800",
}  # fmt: skip
FIRST_CALL = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
points3d = 2 * torch.rand(256, 64, 3, dtype=torch.float64) - 1
K, init = torch.diag(torch.tensor([800.0, 800, 1], dtype=torch.float64)), torch.eye(4, dtype=torch.float64)[None]
points2d = (800 * points3d[..., :2] / (points3d[..., 2:] + 6)).requires_grad_()
init[:, 2, 3] = 6.3
start = time.perf_counter()
from geometry import pnp
pnp(points2d, points3d, K, init=init).x.sum().backward()
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Config:
    batches: tuple[int, ...] = (1, 256, 4096)
    """Lists B of the timings: the problems a call."""
    points: tuple[int, ...] = (8, 64, 512)
    """Lists N of the timings: the points a problem. Pairs with B x N above 5e6 are left out."""
    seconds: float = 4.0
    """Sets the time for the turns of one pair (B, N); there are at least three."""
    accuracy_points: tuple[int, ...] = (8, 64)
    """Lists N of the accuracies."""
    accuracy_problems: int = 256
    """Sets the problems of the accuracies; the gradients are of the first 20 of them."""
    noise: float = 1.0
    """Sets the standard deviation of the pixels' noise; without a start it is 0 to 10 px."""
    memory: tuple[int, int] = (16384, 64)
    """Sets B and N of the peak memory."""
    problems: int = 1600
    """Sets the number of problems without a start, over N = 4, 6, 10, 50, planar and not."""
    seed: int = 0
    """Seeds the problems."""
    threads: int = 1
    """Sets the CPU threads of every solver."""
    checkout: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Gives NAME=PATH of a peer's working tree, repeatable: BPnP, EPro-PnP, Theseus."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_pnp."""

    def __post_init__(self) -> None:
        known = [name for name, (_, folders) in PEERS.items() if folders]
        for text in self.checkout:
            if not re.fullmatch(rf"({'|'.join(known)})=.+", text):
                raise ValueError(f"checkout must be NAME=PATH with NAME one of {', '.join(known)}, got {text!r}")
        at_least(self, 1, "batches", "accuracy_problems", "threads")
        at_least(self, 8, "problems")
        if self.noise <= 0:
            raise ValueError(f"noise must be positive, got {self.noise}")
        at_least(self, 4, "points", "accuracy_points")  # of fewer PnP without a start is ambiguous
        if self.memory[1] < 4:
            raise ValueError(f"memory must have at least 4 points, got {self.memory}")


# ---- the measures ----


def measure_times(config: Config, solvers: dict[str, Solver], B: int, N: int) -> list[dict[str, Any]]:
    """Microseconds a pose of every solver that can do these problems."""
    batch = make_problems(B, N, config.noise, config.seed)
    calls, counts = {}, {}
    for name, solver in solvers.items():
        part = solver.parts(batch)[0]
        if torch.isfinite(solver.poses(part.split(1)[0])).all():
            counts[name] = len(part.K)
            for mode in MODES if solver.gradients else MODES[:1]:
                calls[name, mode] = timed_call(solver, part, mode)
    rows = []
    for (name, mode), seconds in take_turns(calls, config.seconds).items():
        us = 1e6 * np.array(seconds) / counts[name]
        row = {"solver": name, "mode": mode, "B": B, "N": N, "measured_B": counts[name], "turns": len(us)}
        rows.append({**row, "median_us": float(np.median(us)), "min_us": float(us.min())})
    return rows


def refine(batch: Batch, poses: Tensor) -> Tensor:
    """Where our solver ends from each pose; NaN stays NaN."""
    failed = ~torch.isfinite(poses).all((-2, -1), keepdim=True)
    init = torch.where(failed, batch.init, poses)
    refined = pnp(batch.points2d, batch.points3d, batch.K, init=init, max_steps=200).x
    return torch.where(failed, torch.nan, refined)


def jacobians(solver: Solver, inputs: dict[str, Tensor], init: Tensor) -> dict[str, Tensor]:
    """d (omega, t) / d input (B,6,n) of the flat inputs of `experiments.gradients.derivatives`."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in solver.gradients}
    points2d, points3d, intrinsics, weights = ({**inputs, **leaves}[name] for name in DIFFERENTIABLE)
    shaped = (points2d.unflatten(1, (-1, 2)), points3d.unflatten(1, (-1, 3)), matrix_from_intrinsics(intrinsics))
    batch = Batch(*shaped, weights.unflatten(1, (-1, 2)), init).to(solver.dtype)
    pose = solver.pose(solver.solve(batch, solver.native(batch)))
    six = tangent(pose, pose.detach())
    rows = [torch.autograd.grad(six[:, j].sum(), list(leaves.values()), retain_graph=True) for j in range(6)]
    return {name: torch.stack([row[i] for row in rows], 1) for i, name in enumerate(leaves)}


def measure_accuracy(config: Config, solvers: dict[str, Solver], N: int) -> list[dict[str, Any]]:
    """Excess cost, rotation error in degrees, and relative gradient error of every solver."""
    batch = make_problems(config.accuracy_problems, N, config.noise, config.seed)
    found = {name: solver.poses(batch) for name, solver in solvers.items()}
    candidates = torch.stack([*found.values(), *(refine(batch, poses) for poses in found.values())])
    costs = torch.stack([reprojection_cost(batch, poses) for poses in candidates])
    best, index = costs.min(0)
    optimum = candidates[index, torch.arange(len(index))]

    few = batch.split(20)[0]
    inputs = {name: getattr(few, name).flatten(1) for name in DIFFERENTIABLE}
    inputs["K"] = intrinsics_from_matrix(few.K)
    truth = numeric(inputs, optimum[:20])
    rows = []
    for (name, poses), cost in zip(found.items(), costs, strict=False):
        excess = cost / best - 1
        degrees = se3.rotation_angle(poses[:, :3, :3] @ optimum[:, :3, :3].mT).rad2deg()
        row: dict[str, Any] = {"solver": name, "N": N, "failed": (~torch.isfinite(cost)).sum().item(), "gradient": {}}
        for measure, values in {"excess": excess, "degrees": degrees}.items():
            values = values.nan_to_num(nan=torch.inf, posinf=torch.inf)  # a failure
            row[measure] = {"median": values.median().item(), "max": values.max().item()}
        if solvers[name].gradients and row["failed"] < len(cost):
            for key, J in jacobians(solvers[name], inputs, few.init).items():
                error = (J - truth[key]).flatten(1).norm(dim=1) / truth[key].flatten(1).norm(dim=1)
                row["gradient"][key] = error.median().item()
        rows.append(row)
    return rows


def global_minima(config: Config, solvers: dict[str, Solver]) -> list[dict[str, Any]]:
    """Share of problems whose global minimum lies where a solver without a start ends, and where any peer does."""
    rows = []
    for N, planar in product((4, 6, 10, 50), (False, True)):
        noise = torch.linspace(0, 10, config.problems // 8, dtype=torch.float64)
        batch = make_problems(len(noise), N, noise, config.seed, planar)
        searching = {name: solver for name, solver in solvers.items() if not solver.start}
        cost = {
            name: reprojection_cost(batch, refine(batch, solver.poses(batch))) for name, solver in searching.items()
        }
        best = torch.stack(list(cost.values())).amin(0)
        hit = {name: c <= best * (1 + 1e-6) + 1e-9 for name, c in cost.items()}  # without noise, the best is zero
        peers = [h for name, h in hit.items() if name not in ours()]
        share = {name: h.double().mean().item() for name, h in hit.items()}
        share["any of the peers"] = torch.stack(peers).any(0).double().mean().item() if peers else 0.0
        rows.append({"N": N, "planar": planar, "problems": len(noise), "found": share})
    return rows


def peak_memory(config: Config, name: str) -> float:
    """What forward + backward adds to this process, which must be a fresh one, by the size of the inputs."""
    solver, (B, N) = load_solvers(config.threads, config.checkout)[0][name], config.memory
    timed_call(solver, solver.parts(make_problems(16, N, config.noise, config.seed))[0], MODES[1])()
    batch = solver.parts(make_problems(B, N, config.noise, config.seed))[0]
    run = timed_call(solver, batch, MODES[1])
    count_from_here()
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / sum(getattr(batch, key).nbytes for key in DIFFERENTIABLE)


def measure_memory(config: Config, solvers: dict[str, Solver]) -> dict[str, float]:
    """`peak_memory` of ours and of batched peers with a start, each in a process of its own. glibc only."""
    if not measurable():
        return {}
    found = {}
    batched = [name for name, solver in solvers.items() if solver.gradients and solver.at_most >= BATCHED]
    for name in [name for name in batched if solvers[name].start or name in ours()]:
        found[name] = alone(peak_memory, config, name)
    return found


def first_call(threads: int) -> float:
    """Seconds from `import geometry` to the gradients of 256 poses, in a process that has torch alone."""
    command = [sys.executable, "-c", FIRST_CALL, str(threads)]
    root = Path(__file__).resolve().parents[2]
    return float(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)


# ---- the results ----


def timing_table(times: Sequence[dict[str, Any]], mode: str, N: int) -> str:
    """Median microseconds a pose over B, and how many times ours that is."""
    median = {(row["solver"], row["B"]): row["median_us"] for row in times if (row["mode"], row["N"]) == (mode, N)}
    batches = sorted({B for _, B in median})

    def cell(name: str, B: int) -> str:
        if (name, B) not in median:
            return "–"
        reference = median["ours, no start" if name.endswith("no start") else "ours", B]
        return f"{median[name, B]:.3g} ({median[name, B] / reference:.3g})"

    names = dict.fromkeys(name for name, _ in median)
    rows = [[name, *(cell(name, B) for B in batches)] for name in names]
    return table([f"N = {N}", *(f"B = {B}" for B in batches)], rows)


def accuracy_table(rows: Sequence[dict[str, Any]], memory: Mapping[str, float], N: int) -> str:
    def cells(row: dict[str, Any]) -> list[str]:
        worst = f"{max(row['gradient'].values()):.1e}" if row["gradient"] else "–"
        size = f"{memory[row['solver']]:.1f}" if row["solver"] in memory else "–"
        spread = [f"{row[key]['median']:.1e} / {row[key]['max']:.1e}" for key in ("excess", "degrees")]
        return [row["solver"], *spread, worst, size]

    header = [f"N = {N}", "excess cost", "rotation error, degrees", "gradient error", "memory"]
    return table(header, [cells(row) for row in rows if row["N"] == N])


def global_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["points", *rows[0]["found"]]
    share = [
        [f"{row['N']}{', planar' if row['planar'] else ''}", *(f"{value:.2%}" for value in row["found"].values())]
        for row in rows
    ]
    total = [f"{np.mean([row['found'][name] for row in rows]):.2%}" for name in header[1:]]
    return table(header, [*share, ["all", *total]])


def markdown(config: Config, results: dict[str, Any]) -> str:
    """The whole page."""
    absent = ", ".join(results["absent"]) or "none"
    parts = [
        f"Threads: {config.threads}. Noise: {config.noise:g} px. Not installed: {absent}.",
        f"First call of a fresh process, import to gradients of 256 poses: {results['first_call_s']:.2f} s.",
        "\n## Accuracy\n",
        f"Median / largest of {config.accuracy_problems} problems; memory by the size of the inputs, "
        f"B = {config.memory[0]}, N = {config.memory[1]}.\n",
        *(accuracy_table(results["accuracy"], results["memory"], N) for N in config.accuracy_points),
    ]
    for mode in MODES:
        parts.append(f"\n## Time, {mode}\n\nMedian microseconds a pose (times ours).\n")
        parts += [timing_table(results["times"], mode, N) for N in config.points]
    parts.append(f"\n## Without a start\n\nGlobal minima found, {config.problems} problems, noise 0 to 10 px.\n")
    return "\n".join([*parts, global_table(results["without_start"])])


def cost_figure(times: Sequence[dict[str, Any]]) -> Figure:
    """Microseconds a pose against B and against N, the other one in the middle of its range."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    grid = figure.subplots(2, 2, sharey=True)
    markers = dict.fromkeys(row["solver"] for row in times)
    for (i, mode), (j, (x, other)) in product(enumerate(MODES), enumerate((("B", "N"), ("N", "B")))):
        axes, values = grid[i, j], sorted({row[other] for row in times})
        fixed = values[len(values) // 2]
        for name, marker in zip(markers, "os^vD<>PX*hp8d", strict=False):
            shown = sorted(
                (row[x], row["median_us"])
                for row in times
                if (row["solver"], row["mode"], row[other]) == (name, mode, fixed)
            )
            color = next(color for family, color in COLORS.items() if name.startswith(family))
            style = {"color": color, "marker": marker, "markersize": 4, "linewidth": 2.4 if color == BLUE else 1.2}
            axes.plot(
                *np.array(shown).reshape(-1, 2).T, "--" if name.endswith("no start") else "-", label=name, **style
            )
        axes.set(xscale="log", yscale="log", xlabel=x, title=f"{mode}, {other} = {fixed}")
        axes.set_ylabel("microseconds a pose" if j == 0 else "")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E3E6EA", linewidth=0.8)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Measure, print and save."""
    solvers, absent = load_solvers(config.threads, config.checkout)
    grid = [(B, N) for N, B in product(config.points, config.batches) if B * N <= MAX_POINTS]
    results: dict[str, Any] = {
        "config": {**vars(config), "checkout": [text.split("=")[0] for text in config.checkout]},
        "absent": absent,
        "first_call_s": first_call(config.threads),
        "memory": measure_memory(config, solvers),
        "accuracy": [row for N in config.accuracy_points for row in measure_accuracy(config, solvers, N)],
        "without_start": global_minima(config, solvers),
        "times": [row for B, N in tqdm(grid, "timings") for row in measure_times(config, solvers, B, N)],
    }
    print(text := markdown(config, results))
    save(config.out / "benchmark_pnp", text, results, {"cost.png": cost_figure(results["times"])})
    return results


PRESETS = {
    "default": Config(),
    "full": Config(
        batches=(1, 16, 256, 4096, 65536), points=(4, 8, 64, 512, 4096), seconds=20, memory=(65536, 64), problems=10_000
    ),
    "smoke": Config(
        batches=(1, 8),
        points=(8,),
        seconds=0.1,
        accuracy_points=(8,),
        accuracy_problems=20,
        memory=(64, 8),
        problems=16,
    ),
}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.pnp", __doc__))
