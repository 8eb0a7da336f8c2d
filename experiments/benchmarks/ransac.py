"""How often and how fast does `geometry.pnp_ransac` find a pose among outliers, beside OpenCV and PoseLib?

All get the same seeded problems: N points in a cube of side 2 at a distance of 6 to 12, f = 800 px, 640 x 480, noise on
the right pixels, a share of wrong ones anywhere in the image; the same threshold, confidence and limit of samples.
Ours is called on batches; the others are a loop over the same problems, on as many threads of Python as ours has of
torch (they release its lock). Solvers take turns, batch by batch, so that a noisy machine hits all alike.

- success: share of poses within 0.5 degrees and 1 % of the distance; that of PnP on the right points alone bounds it;
- time: median over batches of microseconds a problem, from arrays to a pose; in brackets times ours.

Writes results/benchmark_ransac/table.md, table.json and success.png.

Flat (--flat) it asks for the lowest score instead, on flat and small objects (`experiments.benchmarks.flat_objects`),
real ones where the data are at hand: a run has failed whose MSAC score is 2 % or more above the lowest that any solver
found. It writes results/benchmark_ransac_flat/table.md and table.json; times are means.

Presets:

- default: Measures all shares of wrong correspondences.
- bar: Measures the one share of a half.
- flat: Asks for the lowest score on 2,000 flat and small objects, instead of for success.
- flat_smoke: Asks for the lowest score on 16 flat and small objects.
- smoke: Measures tiny problems, to see that everything works.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from datasets.locate import find
from experiments.benchmarks.flat_objects import Matches, frames, made, score
from experiments.benchmarks.measuring import choose, save
from experiments.benchmarks.pnp_solvers import make_problems
from experiments.drawing.figures import BLUE, GREY
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import pnp, pnp_ransac, se3

OURS, BOUND = "ours", "PnP of the right points"


@dataclass(frozen=True)
class Config:
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Lists the shares of wrong correspondences."""
    bar: float = 0.5
    """Sets the share that gets `problems` problems."""
    problems: int = 1000
    """Sets the number of problems of the share `bar`."""
    others: int = 100
    """Sets the number of problems of every other share."""
    points: int = 100
    """Sets the number of correspondences of a problem."""
    noise: float = 1.0
    """Sets the standard deviation of the right pixels' noise."""
    batch: int = 256
    """Sets the number of problems of a call."""
    threads: tuple[int, ...] = (1, 2)
    """Lists the numbers of threads, one after the other."""
    threshold: float = 4.0
    """Sets the largest error of an inlier in pixels."""
    confidence: float = 0.9999
    """Sets how sure to be of having seen a sample without outliers."""
    hypotheses: int = 10_000
    """Limits the number of samples."""
    flat: bool = False
    """Counts failures on flat, small objects instead of success: `problems` made ones, `others` of 10 %
    right matches."""
    repeats: int = 100
    """Sets the number of runs on every real frame of a flat object."""
    seed: int = 0
    """Seeds the problems and our samples."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_ransac."""

    def __post_init__(self) -> None:
        at_least(self, 1, "problems", "others", "batch", "repeats", "threads", "hypotheses")
        at_least(self, 4, "points")
        if not all(0 <= share < 1 for share in self.shares):
            raise ValueError(f"shares must lie in [0, 1), got {self.shares}")


@dataclass(frozen=True)
class Problems:
    """points2d (B,N,2), points3d (B,N,3), K (3,3), the true poses (B,4,4), and which points are wrong (B,N)."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    world_to_camera_gt: Tensor
    wrong: Tensor


def make(config: Config, share: float, count: int) -> Problems:
    """Seeded problems, `share` of their pixels anywhere in the image."""
    right = make_problems(count, config.points, config.noise, config.seed)
    # without noise the pose that was drawn is found again
    truth = pnp(make_problems(count, config.points, 0.0, config.seed).points2d, right.points3d, right.K).x
    g = torch.Generator().manual_seed(config.seed + 1)
    rank = torch.rand(count, config.points, generator=g).argsort(1).argsort(1)
    wild = torch.rand(count, config.points, 2, generator=g, dtype=torch.float64) * torch.tensor([640.0, 480.0])
    wrong = rank < round(share * config.points)
    return Problems(torch.where(wrong[..., None], wild, right.points2d), right.points3d, right.K[0], truth, wrong)


def success(x: Tensor, truth: Tensor) -> float:
    """Share of poses within 0.5 degrees and 1 %."""
    angle = torch.rad2deg(se3.rotation_angle(x[:, :3, :3] @ truth[:, :3, :3].mT))
    shift = (x - truth)[:, :3, 3].norm(dim=1) / truth[:, :3, 3].norm(dim=1)
    return ((angle < 0.5) & (shift < 0.01)).double().mean().item()


# ---- the peers: one problem as arrays in, a pose (3,4) out ----


def opencv(config: Config) -> dict[str, Callable[..., np.ndarray]]:
    import cv2

    cv2.setNumThreads(1)  # the threads are those of the loop

    def loop(flag: int) -> Callable[..., np.ndarray]:
        limits = (config.hypotheses, config.threshold, config.confidence)

        def solve(x: np.ndarray, X: np.ndarray, K: np.ndarray) -> np.ndarray:
            found, rotvec, t, _ = cv2.solvePnPRansac(X, x, K, None, None, None, False, *limits, None, flag)
            return np.hstack([cv2.Rodrigues(rotvec)[0], t]) if found else np.full((3, 4), np.nan)

        return solve

    names = ("SOLVEPNP_ITERATIVE", "SOLVEPNP_P3P", "USAC_DEFAULT", "USAC_ACCURATE", "USAC_MAGSAC")
    return {f"OpenCV {name.removeprefix('SOLVEPNP_')}": loop(getattr(cv2, name)) for name in names}


def poselib(config: Config) -> dict[str, Callable[..., np.ndarray]]:
    import poselib

    @lru_cache
    def camera(*intrinsics: float) -> Any:
        return poselib.Camera("PINHOLE", list(intrinsics), 640, 480)

    def loop(**options: Any) -> Callable[..., np.ndarray]:
        options = {"success_prob": config.confidence, "max_iterations": config.hypotheses, **options}

        def solve(x: np.ndarray, X: np.ndarray, K: np.ndarray) -> np.ndarray:
            seen_by = camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2])
            return poselib.estimate_absolute_pose(x, X, seen_by, options, {})[0].Rt

        return solve

    return {
        "PoseLib": loop(max_reproj_error=config.threshold, min_iterations=100),
        "PoseLib, 1000 samples at least": loop(max_reproj_error=config.threshold, min_iterations=1000),
        "PoseLib, its defaults": loop(max_iterations=100_000),  # 12 px, at least 1000 samples
    }


def kornia(config: Config) -> dict[str, Callable[..., np.ndarray]]:
    from kornia_rs.k3d import solve_pnp_ransac

    def solve(x: np.ndarray, X: np.ndarray, K: np.ndarray) -> np.ndarray:
        try:
            R, t, *_ = solve_pnp_ransac(X, x, K, threshold=config.threshold)
        except ValueError:  # there is no model, it says
            return np.full((3, 4), np.nan)
        return np.hstack([R, t[:, None]])

    return {"kornia-rs, its defaults": solve}  # 1000 samples at most


def peers(config: Config) -> tuple[dict[str, Callable[..., np.ndarray]], list[str]]:
    """The peers that are installed, and the names of those that are not."""
    found, absent = {}, []
    for name, load in {"OpenCV": opencv, "PoseLib": poselib, "kornia-rs": kornia}.items():
        try:
            found.update(load(config))
        except ImportError:
            absent.append(name)
    return found, absent


# ---- the measures ----


@dataclass(frozen=True)
class Solvers:
    """All solvers of problems (B,N,2), (B,N,3), (3,3) -> poses (B,4,4), on a pool of threads."""

    config: Config
    pool: ThreadPoolExecutor
    generator: torch.Generator

    def ours(self, x: Tensor, X: Tensor, K: Tensor) -> Tensor:
        limits = {name: getattr(self.config, name) for name in ("threshold", "hypotheses", "confidence")}
        return pnp_ransac(x, X, K, generator=self.generator, **limits).x

    def looped(self, solve: Callable[..., np.ndarray], x: Tensor, X: Tensor, K: Tensor) -> Tensor:
        pixels, points, camera = (a.numpy() for a in (x, X, K))
        found = torch.from_numpy(np.array(list(self.pool.map(solve, pixels, points, [camera] * len(x)))))
        return se3.make(found[:, :3, :3], found[:, :3, 3])

    def all(self) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
        loops, _ = peers(self.config)
        return {OURS: self.ours, **{name: partial(self.looped, solve) for name, solve in loops.items()}}


@contextmanager
def solvers(config: Config, threads: int) -> Iterator[dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """All solvers, on so many threads; ours has run before, so that its kernels are loaded."""
    torch.set_num_threads(threads)
    warm = make(config, 0.5, 8)
    Solvers(config, ThreadPoolExecutor(1), torch.Generator()).ours(warm.points2d, warm.points3d, warm.K)
    with ThreadPoolExecutor(threads) as pool:
        yield Solvers(config, pool, torch.Generator().manual_seed(config.seed)).all()


def timed(solve: Callable[..., Tensor], *problems: Tensor) -> tuple[Tensor, float]:
    """What a solver finds, and microseconds a problem."""
    start = time.perf_counter()
    found = solve(*problems)
    return found, 1e6 * (time.perf_counter() - start) / len(found)


def measure(config: Config, share: float, threads: int) -> list[dict[str, Any]]:
    """Success and microseconds a problem of every solver."""
    problems = make(config, share, config.problems if share == config.bar else config.others)
    count = len(problems.points2d)
    with solvers(config, threads) as calls:
        poses: dict[str, list[Tensor]] = {name: [] for name in calls}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for first in range(0, count, config.batch):
            part = slice(first, min(first + config.batch, count))
            for name, solve in calls.items():
                found, us = timed(solve, problems.points2d[part], problems.points3d[part], problems.K)
                times[name].append(us)
                poses[name].append(found)
    bound = pnp(
        problems.points2d, problems.points3d, problems.K, mask=~problems.wrong, init=problems.world_to_camera_gt
    ).x
    rows = [{"solver": BOUND, "success": success(bound, problems.world_to_camera_gt), "us": None}]
    for name, parts in poses.items():
        value = success(torch.cat(parts), problems.world_to_camera_gt)
        rows.append({"solver": name, "success": value, "us": statistics.median(times[name])})
    return [{**row, "share": share, "threads": threads, "problems": count} for row in rows]


def families(config: Config) -> dict[str, Callable[[], Iterable[Matches]]]:
    """The made objects, and those real ones that are at hand."""
    result: dict[str, Callable[[], Iterable[Matches]]] = {
        "made, 30 to 90 % right": partial(made, config.problems, config.batch, (0.3, 0.9), config.seed),
        "made, 10 % right": partial(made, config.others, config.batch, (0.1, 0.1), config.seed + 1),
    }
    for name in ("box_flat", "box_pnp"):
        try:
            find(name)
        except FileNotFoundError:
            continue
        result[name] = partial(frames, name, config.repeats, config.seed + 2)
    return result


def failures(config: Config, family: str, problems: Iterable[Matches], threads: int) -> list[dict[str, Any]]:
    """How often every solver ends 2 % above the lowest score, its inliers, and microseconds a problem (means)."""
    with solvers(config, threads) as calls:
        failed, inliers, times, runs = dict.fromkeys(calls, 0), dict.fromkeys(calls, 0), dict.fromkeys(calls, 0.0), 0
        for batch in problems:
            scores = {}
            for name, solve in calls.items():
                found, us = timed(solve, batch.points2d, batch.points3d, batch.K)
                times[name] += us * len(found)
                scores[name], agree = score(batch, found, config.threshold)
                inliers[name] += int(agree.sum())
            lowest = torch.stack([*scores.values()]).amin(0)
            if family.startswith("box"):  # one problem many times
                lowest = lowest.amin().expand_as(lowest)
            for name, value in scores.items():
                failed[name] += int((value >= 1.02 * lowest).sum())
            runs += len(lowest)
    return [
        {"solver": name, "family": family, "threads": threads, "runs": runs, "failed": failed[name],
         "inliers": inliers[name] / runs, "us": times[name] / runs}
        for name in calls
    ]  # fmt: skip


# ---- the results ----


def markdown(config: Config, rows: list[dict[str, Any]], absent: list[str]) -> str:
    """The whole page."""
    parts = [
        f"{config.points} points, {config.noise:g} px of noise, threshold {config.threshold:g} px, confidence "
        f"{config.confidence:g}, at most {config.hypotheses} samples; {config.problems} problems at "
        f"{config.bar:.0%}, {config.others} at other shares. Not installed: {', '.join(absent) or 'none'}.\n",
    ]
    found = {(row["solver"], row["share"], row["threads"]): row for row in rows}
    names = dict.fromkeys(row["solver"] for row in rows)
    header = ["wrong", *(f"{share:.0%}" for share in config.shares)]
    for threads in config.threads:

        def speed(name: str, share: float, threads: int = threads) -> str:
            us = found[name, share, threads]["us"]
            return f"{us:.0f} ({us / found[OURS, share, threads]['us']:.2g})"

        successes = [[n, *(f"{found[n, s, threads]['success']:.1%}" for s in config.shares)] for n in names]
        speeds = [[n, *(speed(n, s) for s in config.shares)] for n in names if n != BOUND]
        parts += [f"\n## Success, {threads} thread(s)\n", table(header, successes)]
        parts += [f"\n## Microseconds a problem (times ours), {threads} thread(s)\n", table(header, speeds)]
    return "\n".join(parts)


def flat_markdown(config: Config, rows: list[dict[str, Any]], absent: list[str]) -> str:
    """The page of the flat objects."""
    parts = [
        f"Flat, small objects: runs whose MSAC score is 2 % or more above the lowest, threshold {config.threshold:g} "
        f"px, confidence {config.confidence:g}, at most {config.hypotheses} samples, seed {config.seed}; mean numbers "
        "of inliers and microseconds a problem, in brackets times ours. "
        f"Not installed: {', '.join(absent) or 'none'}.\n",
    ]
    found = {(row["solver"], row["family"], row["threads"]): row for row in rows}
    names = [*dict.fromkeys(row["family"] for row in rows)]
    for threads in config.threads:
        runs = [f"{name} ({found[OURS, name, threads]['runs']})" for name in names]
        lines = []
        for solver in dict.fromkeys(row["solver"] for row in rows):
            cells = []
            for name in names:
                row, us = found[solver, name, threads], found[OURS, name, threads]["us"]
                share, times = row["failed"] / row["runs"], row["us"] / us
                cells += [f"{row['failed']} ({share:.2%})", f"{row['inliers']:.1f}", f"{row['us']:.0f} ({times:.2g})"]
            lines.append([solver, *cells])
        header = ["failures", *(cell for run in runs for cell in (run, "inliers", "µs"))]
        parts += [f"\n## {threads} thread(s)\n", table(header, lines)]
    return "\n".join(parts)


def figure(config: Config, rows: list[dict[str, Any]]) -> Figure:
    """Success and time against the share of wrong correspondences, of the first number of threads."""
    result = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = result.subplots(1, 2)
    for name in dict.fromkeys(row["solver"] for row in rows):
        mine = [row for row in rows if (row["solver"], row["threads"]) == (name, config.threads[0])]
        style: dict[str, Any] = {
            "linewidth": 2.4 if name == OURS else 1.2,
            "markersize": 4,
            "marker": "o",
            "label": name,
        }
        if name in (OURS, BOUND):
            style["color"] = BLUE if name == OURS else GREY
        left.plot([row["share"] for row in mine], [row["success"] for row in mine], **style)
        if name != BOUND:
            right.plot([row["share"] for row in mine], [row["us"] for row in mine], **style)
    left.set(xlabel="share of wrong correspondences", ylabel="success (0.5 degrees, 1 %)")
    right.set(xlabel="share of wrong correspondences", ylabel="microseconds a problem", yscale="log")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E3E6EA", linewidth=0.8)
    result.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return result


def main(config: Config) -> dict[str, Any]:
    """Measure, print and save."""
    before = torch.get_num_threads()
    grid: list[tuple[int, Any]]
    try:
        if config.flat:
            grid = [(threads, family) for threads in config.threads for family in families(config).items()]
            parts = [failures(config, name, problems(), n) for n, (name, problems) in tqdm(grid, "families")]
        else:
            grid = [(threads, share) for threads in config.threads for share in config.shares]
            parts = [measure(config, share, threads) for threads, share in tqdm(grid, "shares")]
    finally:
        torch.set_num_threads(before)
    rows, absent = [row for part in parts for row in part], peers(config)[1]
    results = {"config": vars(config), "absent": absent, "rows": rows}
    print(text := (flat_markdown if config.flat else markdown)(config, rows, absent))
    figures = {} if config.flat else {"success.png": figure(config, rows)}
    save(config.out / ("benchmark_ransac_flat" if config.flat else "benchmark_ransac"), text, results, figures)
    return results


PRESETS = {
    "default": Config(),
    "bar": Config(shares=(0.5,)),
    "flat": Config(flat=True, problems=2000, others=100, batch=50, threads=(1,)),
    "flat_smoke": Config(flat=True, problems=16, others=4, batch=8, repeats=4, threads=(1,)),
    "smoke": Config(shares=(0.3, 0.5), problems=20, others=10, points=40, batch=8, threads=(1,)),
}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.ransac", __doc__))
