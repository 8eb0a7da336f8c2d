"""How fast and how accurate is `geometry.quadratic_program`, beside every other differentiable QP solver that is
installed?

All get the same seeded dense programs, made as in OptNet's timings (arXiv 1703.00443, section 4.1): Q = L L^T + 1e-3 I
with L uniform, p, G, A normal, h and b such that a point is feasible; every problem has matrices of its own. All run in
one process, on as many threads, in turns, so that a noisy machine hits all alike. A peer that loops over the batch
takes time linear in B, and is measured on its first problems.

- time: seconds a batch, median over the turns, and how many times ours;
- violation: largest |Q x + p + G^T z + A^T y|, violated constraint, negative multiplier or |s z| of any of ours;
- difference: largest |x - ours| of any problem, and |dL/d - ours| / |ours| of the worst input for a random sum L of x.

Peers: qpth, proxsuite (its PyTorch layer), cvxpylayers, and quadprog, which has no gradient; those that are not
installed are named and left out. Writes results/benchmark_qp/table.md and table.json.

Presets:

- default: Measures 128 programs of each size.
- smoke: Measures tiny problems, to see that everything works.
"""

import importlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import quadratic_program

MODES = ("forward", "forward + backward")
NAMES = ("Q", "p", "G", "h", "A", "b")

Solve = Callable[..., Tensor]
"""x (B,n) of Q, p, G, h, A, b; the last two have no rows where there are no equations."""


@dataclass(frozen=True)
class Config:
    batch: int = 128
    """Sets the number of problems a call."""
    sizes: tuple[tuple[int, int, int], ...] = (
        (10, 10, 0), (50, 50, 0), (100, 100, 0), (100, 100, 20), (100, 50, 50), (100, 200, 0), (200, 50, 0),
    )  # fmt: skip
    """Lists the numbers of unknowns, inequalities and equations."""
    seconds: float = 10.0
    """Sets the time for the turns of one size; there are at least three."""
    seed: int = 0
    """Seeds the problems."""
    threads: int = 1
    """Sets the CPU threads of every solver."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_qp."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch", "threads")
        for n, m, q in self.sizes:
            if not (n > q >= 0 and m >= 1):
                raise ValueError(f"sizes must have at least one inequality and n > q >= 0, got {(n, m, q)}")


def make_programs(B: int, n: int, m: int, q: int, seed: int) -> list[Tensor]:
    """Q, p, G, h, A, b of B feasible programs."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    L = torch.rand(B, n, n, generator=g, dtype=torch.float64)
    p, G, A, x = normal(B, n), normal(B, m, n), normal(B, q, n), normal(B, n, 1)
    slack = torch.rand(B, m, generator=g, dtype=torch.float64)
    Q = L @ L.mT + 1e-3 * torch.eye(n, dtype=torch.float64)
    return [Q, p, G, (G @ x)[..., 0] + slack, A, (A @ x)[..., 0]]


# ---- the solvers ----


@dataclass(frozen=True)
class Solver:
    """One solver: `solve`, whether it has gradients, and on how many problems of 100 unknowns it is measured."""

    solve: Solve
    gradients: bool = True
    at_most: int = sys.maxsize


def qpth(threads: int) -> Solver:
    function = importlib.import_module("qpth.qp").QPFunction(verbose=-1, check_Q_spd=False)

    def solve(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
        none = Q.new_zeros(0)
        return function(Q, p, G, h, *((A, b) if A.shape[1] else (none, none)))

    return Solver(solve)


def proxsuite(threads: int) -> Solver:
    layer = importlib.import_module("proxsuite.torch.qplayer").QPFunction(
        eps=1e-10, maxIter=10_000, eps_backward=1e-10, omp_parallel=threads > 1
    )

    def solve(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
        return layer(Q, p, A, b, G, torch.full_like(h, -1e20), h)[0]

    return Solver(solve)


def cvxpylayers(threads: int) -> Solver:
    cvxpy, layers = importlib.import_module("cvxpy"), importlib.import_module("cvxpylayers.torch")
    built: dict[tuple[int, int, int], Any] = {}

    def layer(n: int, m: int, q: int) -> Any:
        x, root = cvxpy.Variable(n), cvxpy.Parameter((n, n))
        names = [root, *(cvxpy.Parameter(shape) for shape in ((n,), (m, n), (m,), *([(q, n), (q,)] if q else [])))]
        constraints = [names[2] @ x <= names[3], *([names[4] @ x == names[5]] if q else [])]
        cost = cvxpy.Minimize(0.5 * cvxpy.sum_squares(root @ x) + names[1] @ x)
        return layers.CvxpyLayer(cvxpy.Problem(cost, constraints), parameters=names, variables=[x])

    def solve(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
        size = (p.shape[1], h.shape[1], b.shape[1])
        if size not in built:
            built[size] = layer(*size)
        # it takes no quadratic form as a parameter: the root of Q, whose gradient autograd carries on to Q
        data = torch.linalg.cholesky(Q).mT, p, G, h, *((A, b) if size[2] else ())
        return built[size](*data, solver_args={"solve_method": "Clarabel"})[0]  # far closer than its default, SCS

    return Solver(solve, at_most=2)


def quadprog(threads: int) -> Solver:
    solve_qp = importlib.import_module("quadprog").solve_qp

    def solve(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
        C, d = torch.cat([A, -G], 1).mT.contiguous().numpy(), torch.cat([b, -h], 1).numpy()
        found = [solve_qp(*problem, A.shape[1])[0] for problem in zip(Q.numpy(), -p.numpy(), C, d, strict=True)]
        return torch.from_numpy(np.stack(found))

    return Solver(solve, gradients=False)


def ours(threads: int) -> Solver:
    return Solver(lambda *data: quadratic_program(*data).x)


SOLVERS = {"ours": ours, "qpth": qpth, "proxsuite": proxsuite, "cvxpylayers": cvxpylayers, "quadprog": quadprog}


def load_solvers(threads: int) -> tuple[dict[str, Solver], list[str]]:
    """The solvers that can be imported, by name, and the names of the others."""
    torch.set_num_threads(threads)
    found, absent = {}, []
    for name, load in SOLVERS.items():
        try:
            found[name] = load(threads)
        except ImportError:
            absent.append(name)
    return found, absent


# ---- the measures ----


def timed_call(solver: Solver, data: list[Tensor], mode: str) -> Callable[[], Any]:
    """One call on a batch, with a fixed random cotangent in the backward pass."""
    if mode == MODES[0]:
        return torch.no_grad()(lambda: solver.solve(*data))
    cotangent = torch.randn(data[1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaves = [d.clone().requires_grad_() for d in data]
    wanted = [leaf for leaf in leaves if leaf.numel()]
    return lambda: torch.autograd.grad(solver.solve(*leaves), wanted, cotangent)


def measure(config: Config, solvers: dict[str, Solver], size: tuple[int, int, int]) -> list[dict[str, Any]]:
    """A row per solver and mode: seconds a batch, and the largest difference from ours."""
    data = make_programs(config.batch, *size, config.seed)
    calls, counts, results = {}, {}, {}
    for name, solver in solvers.items():
        counts[name] = (
            min(config.batch, max(1, solver.at_most * 100 // size[0])) if solver.at_most < 1e6 else config.batch
        )
        for mode in MODES if solver.gradients else MODES[:1]:
            calls[name, mode] = timed_call(solver, [d[: counts[name]] for d in data], mode)
            results[name, mode] = calls[name, mode]()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for (name, mode), run in calls.items():
            start = time.perf_counter()
            run()
            times[name, mode].append((time.perf_counter() - start) * config.batch / counts[name])
    rows = []
    for (name, mode), seconds in times.items():
        row = {"solver": name, "mode": mode, "size": list(size), "measured": counts[name], "turns": len(seconds)}
        row |= {"median_s": float(np.median(seconds)), "min_s": min(seconds)}
        pairs = results[name, mode], results["ours", mode]
        if mode == MODES[0]:
            row["difference"] = (pairs[0] - pairs[1][: counts[name]]).abs().max().item()
        else:
            row["difference"] = max(
                ((a - b[: len(a)]).norm() / b[: len(a)].norm()).item() for a, b in zip(*pairs, strict=True)
            )
        rows.append(row)
    return rows


def violation(config: Config, size: tuple[int, int, int]) -> float:
    """Largest violation of the conditions of optimality by our solutions; infinite where one did not converge."""
    Q, p, G, h, A, b = data = make_programs(config.batch, *size, config.seed)
    found = quadratic_program(*data)
    slope = torch.stack(
        [(M.mT @ v[..., None])[..., 0] for M, v in ((Q, found.x), (G, found.inequality), (A, found.equality))]
    )
    slack = h - (G @ found.x[..., None])[..., 0]
    parts = [slope.sum(0) + p, slack.clamp_max(0), found.inequality.clamp_max(0), slack * found.inequality]
    worst = torch.cat([*parts, (A @ found.x[..., None])[..., 0] - b], -1).abs().max().item()
    return worst if found.converged.all() else math.inf


# ---- the results ----


def timing_table(rows: list[dict[str, Any]], mode: str) -> str:
    """Median seconds a batch (times ours; difference from ours), over sizes."""
    found = {(row["solver"], tuple(row["size"])): row for row in rows if row["mode"] == mode}
    sizes = list(dict.fromkeys(size for _, size in found))

    def cell(name: str, size: tuple[int, ...]) -> str:
        if (name, size) not in found:
            return "–"
        row, reference = found[name, size], found["ours", size]["median_s"]
        text = f"{row['median_s']:.3g} ({row['median_s'] / reference:.2f}"
        return f"{text})" if name == "ours" else f"{text}; {row['difference']:.0e})"

    names = dict.fromkeys(name for name, _ in found)
    return table(
        ["n, m, q", *(", ".join(map(str, size)) for size in sizes)],
        [[name, *(cell(name, size) for size in sizes)] for name in names],
    )


def main(config: Config) -> dict[str, Any]:
    """Measure, print and save."""
    solvers, absent = load_solvers(config.threads)
    violations = {", ".join(map(str, size)): violation(config, size) for size in config.sizes}
    times = [row for size in tqdm(config.sizes, "sizes") for row in measure(config, solvers, size)]
    results = {"config": vars(config), "absent": absent, "violation": violations, "times": times}
    worst = max(violations.values())
    parts = [f"B = {config.batch}, threads: {config.threads}. Not installed: {', '.join(absent) or 'none'}."]
    parts.append(f"Largest violation of the conditions of optimality by ours: {worst:.1e}.\n")
    for mode in MODES:
        parts.append(f"## {mode}\n\nMedian seconds a batch (times ours; difference from ours).\n")
        parts.append(timing_table(times, mode))
    print(text := "\n".join(parts))
    save(config.out / "benchmark_qp", text, results, {})
    return results


PRESETS = {
    "default": Config(),
    "smoke": Config(batch=4, sizes=((6, 8, 0), (6, 8, 2)), seconds=0.1),
}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.qp", __doc__))
