"""Routes to structure side by side: the same tracks and the same start, K known, points and poses sought.

`backprop` learns the points through PnP (Gauss-Newton with the poses eliminated: the paper's idea, to second order),
`alternating` places all poses on the points and all points on the poses in turn, `bundle` moves everything at once,
`adam` is the paper's own first-order way through the differentiable layer. All minimise half the sum of the same
(robust) squared reprojection errors, so that only the way there differs.

Presets:

- default: Compares the routes on made scenes.
- real: Compares the routes on the tracks of a BAL file, or of another reconstruction, with its own intrinsics.
- smoke: Compares the routes on two made scenes in a few rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets import locate
from experiments.drawing.figures import BLUE, GREY, ORANGE
from experiments.records.files import write_json, write_text
from experiments.running.config import RunConfig
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from experiments.structure.alignment import rms_radius
from experiments.structure.determined import not_determined
from experiments.structure.routes import REGIMES, Regime, Tracks, make_starts, read_file
from geometry import bundle, se3
from geometry.camera import project_camera_frame
from geometry.optim import nested_start, nested_step
from geometry.reconstruction import StructureProblem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUTES = ("backprop", "alternating", "bundle", "adam")
COLORS = {"backprop": BLUE, "alternating": ORANGE, "bundle": "#000000", "adam": "#009E73"}
NEAR = 1e-6
"""Relative difference of costs below which two routes are said to have reached the same minimum."""


@dataclass(frozen=True)
class Config(RunConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts("with --regimes tracks", ("scene",), lambda config: "tracks" in config.regimes),
        Acts("with --regimes random_start", ("starts",), lambda config: "random_start" in config.regimes),
        Acts("with --adam-steps above 0", ("learning_rate",), lambda config: config.adam_steps > 0),
    )
    names_data: ClassVar[tuple[str, ...]] = ("scene",)

    regimes: tuple[Regime, ...] = tuple(regime for regime in REGIMES if regime != "tracks")
    """Lists the scenes to run; what they are stands in `REGIMES`, and in routes.md."""
    scene: str = "bal/problem-49-7776-pre.txt"
    """Names the file of the regime `tracks`: BAL or another format that `datasets.reconstructions.read` reads, here or
    in the shared data."""
    steps: int = 150
    """Limits the steps of `backprop` and `bundle`."""
    rounds: int = 400
    """Limits the rounds of `alternating`: a round is every pose and then every point."""
    adam_steps: int = 400
    """Sets the steps of `adam`; 0 leaves it out."""
    learning_rate: float = 1e-2
    """Sets the rate of `adam`, in units of the points' rms distance from their mean at the start. Of 1e-3, 3e-3, 1e-2
    and 3e-2 the default does best over the made scenes."""
    starts: int = 16
    """Sets how many random starts the regime `random_start` has."""


PRESETS = {
    "default": Config(preset="default"),
    "real": Config(preset="real", regimes=("tracks",), rounds=300, adam_steps=300, learning_rate=1e-3),
    "smoke": Config(preset="smoke", regimes=("overlap", "few_views"), rounds=30, adam_steps=20),
}


class Trace(NamedTuple):
    """One route from one start: seconds and cost after each iteration, the first before any; where it ended, and how.

    behind: observations that end behind their camera, where only the formula of `bundle` still sees them. undetermined:
    what `bundle` says that its data leave open, a sentence each.
    """

    seconds: list[float]
    costs: list[float]
    error: float
    behind: int
    end: str
    undetermined: Sequence[str] = ()


# ---- the routes ----


class Course(NamedTuple):
    """What a route does: seconds and cost after each iteration, points (N,3) and poses (V,4,4) at its end, and remarks;
    what is not determined of these, where it is known.

    Seconds are those of the processor: on one thread the time that passes, unless others want the machine, too.
    """

    seconds: list[float]
    costs: list[float]
    points: Tensor
    poses: Tensor
    end: str
    undetermined: Sequence[str] = ()


class Clock:
    """Processor seconds since it was made, and the cost by then, at each `note`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.costs: list[float] = []
        self._start = time.process_time()

    def note(self, cost: float) -> None:
        self.seconds.append(time.process_time() - self._start)
        self.costs.append(cost)

    def course(self, points: Tensor, poses: Tensor, end: str) -> Course:
        return Course(self.seconds, self.costs, points, poses, end)


def backprop(tracks: Tracks, config: Config) -> Course:
    """Gauss-Newton on the points, every pose at its argmin."""
    points2d, visible = tracks.dense
    lens = (tracks.K, tracks.distortion, tracks.model)
    seek = tracks.poses is None
    clock = Clock()
    problem = StructureProblem(points2d, visible, *lens, global_poses=seek, normalise=seek)
    poses = None if tracks.poses is None else tracks.poses[None]
    state = nested_start(problem, tracks.points[None], poses)
    clock.note(state.cost.item())
    while state.steps < config.steps and not state.done.all():
        state = nested_step(problem, state)
        clock.note(state.cost.item())
    end = "" if state.done.all() else "steps spent"
    return clock.course(state.theta[0], state.inner[0], "no start" if math.isinf(clock.costs[-1]) else end)


def alternating(tracks: Tracks, config: Config) -> Course:
    """Every pose, then every point, until a round gains less than one part in 10^10."""
    clock = Clock()
    points, placed = tracks.points, tracks.place_poses(tracks.points, tracks.poses)
    clock.note(placed.cost.sum().item())
    for _ in range(config.rounds):
        points = tracks.place_points(points, placed.x)
        placed = tracks.place_poses(points, None if tracks.poses is None else placed.x)
        clock.note(placed.cost.sum().item())
        before, cost = clock.costs[-2:]
        if not before - cost > 1e-10 * cost:
            return clock.course(points, placed.x, "" if math.isfinite(cost) else "a pose was lost")
    return clock.course(points, placed.x, "rounds spent")


def full_bundle(tracks: Tracks, config: Config) -> Course:
    """All at once. Without poses it is given those that PnP finds for the points at the start."""
    clock = Clock()
    poses = tracks.place_poses(tracks.points, None).x if tracks.poses is None else tracks.poses
    found = bundle(
        tracks.points2d, tracks.camera, tracks.point, poses, tracks.points, tracks.K, tracks.distortion,
        model=tracks.model, kernel=tracks.kernel, max_steps=config.steps, callback=lambda step, cost: clock.note(cost),
    )  # fmt: skip
    clock.note(found.cost.item())  # the polish with the exact Hessian is part of it
    course = clock.course(found.x.points3d, found.x.world_to_camera, "" if found.converged.all() else "not converged")
    return course._replace(undetermined=not_determined(found, tracks.camera, tracks.point))


def adam(tracks: Tracks, config: Config) -> Course:
    """Adam on the points, the gradient through the layer."""
    size = rms_radius(tracks.points).item()
    which, seen, points2d = tracks.packed
    clock = Clock()
    points = tracks.points.clone().requires_grad_()
    optimizer = torch.optim.Adam([points], lr=config.learning_rate * size)
    poses = tracks.poses
    for _ in range(config.adam_steps):
        placed = tracks.place_poses(points, poses)
        p = se3.transform(placed.x, points[which])
        p = torch.where(seen[..., None], p, p.new_tensor([0.0, 0.0, 1.0]))
        pixels = project_camera_frame(p, tracks.K, tracks.distortion, model=tracks.model)
        s = torch.where(seen, (pixels - points2d).square().sum(-1), 0)
        cost = 0.5 * (s if tracks.kernel is None else tracks.kernel(s)).sum()
        clock.note(cost.item())
        if not math.isfinite(clock.costs[-1]):
            return clock.course(points.detach(), placed.x.detach(), "a pose was lost")
        end = points.detach().clone(), placed.x.detach()
        poses = None if tracks.poses is None else end[1]
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    return clock.course(*end, "steps spent")


SOLVE = dict(zip(ROUTES, (backprop, alternating, full_bundle, adam), strict=True))


def follow(route: str, tracks: Tracks, config: Config) -> Trace | None:
    """One route; None for what it cannot do. A short one is run again: the quickest of up to three is kept."""
    if (route == "adam" and not config.adam_steps) or (route == "backprop" and tracks.kernel is not None):
        return None
    # compiled kernels are loaded at their first call
    SOLVE[route](tracks, replace(config, steps=2, rounds=1, adam_steps=2))
    runs = [SOLVE[route](tracks, config)]
    while len(runs) < 3 and sum(run.seconds[-1] for run in runs) < 0.5:
        runs.append(SOLVE[route](tracks, config))
    quickest = min(runs, key=lambda run: run.seconds[-1])
    points, poses = quickest.points, quickest.poses
    behind = int(tracks.behind(points, poses).sum())
    return Trace(quickest.seconds, quickest.costs, tracks.error(points), behind, quickest.end, quickest.undetermined)


# ---- what came out ----


class Outcome(NamedTuple):
    """A regime: the lowest cost anybody found, and the traces of each route, one a start."""

    regime: Regime
    best: float
    traces: dict[str, list[Trace]]
    note: str


def run_regime(regime: Regime, config: Config, given: Tracks | None = None) -> Outcome:
    """Every route from every start. Where there is a truth, bundle from there is one more witness of the best cost."""
    starts = make_starts(regime, seed=config.seed, starts=config.starts, given=given)
    traces: dict[str, list[Trace]] = {}
    for route in ROUTES:
        found = [trace for tracks in starts if (trace := follow(route, tracks, config))]
        traces |= {route: found} if found else {}
    best = min(trace.costs[-1] for some in traces.values() for trace in some)
    first = starts[0]
    if first.points_gt is not None and first.poses_gt is not None:
        witness = full_bundle(replace(first, points=first.points_gt, poses=first.poses_gt), config)
        best = min(best, witness.costs[-1])
    M, N, V = len(first.points2d), len(first.points), len(first.K)
    note = f"{V} views, {N} points, {M} observations" + (f"; {first.note}" if first.note else "")
    return Outcome(regime, best, traces, note)


def above(cost: float, best: float) -> float:
    """Relative excess of a cost, infinite where it is no number."""
    return cost / best - 1 if math.isfinite(cost) else math.inf


def time_to(trace: Trace, best: float) -> float:
    """Seconds until the cost is within `NEAR` of the best, infinite if never."""
    reached = (s for s, cost in zip(trace.seconds, trace.costs, strict=True) if above(cost, best) <= NEAR)
    return next(reached, math.inf)


def verdict(outcome: Outcome) -> str:
    """Which route wins, and which do not arrive."""
    expected: dict[str, float] = {}
    lost = []
    for route, traces in outcome.traces.items():
        times = [time_to(trace, outcome.best) for trace in traces]
        reached = sum(map(math.isfinite, times))
        if reached:  # a start that does not get there is time spent, too
            expected[route] = sum(trace.seconds[-1] for trace in traces) / reached if len(times) > 1 else times[0]
        if reached < len(times):
            low = min(above(trace.costs[-1], outcome.best) for trace in traces)
            count = (
                f" from {len(times) - reached} of {len(times)} starts" if len(times) > 1 else f" ({low:.1e} above it)"
            )
            lost.append(f"{route} does not get there{count}")
    order = sorted(expected, key=expected.__getitem__)
    told = [f"{route} {expected[route]:.2g} s" for route in order]
    many = any(len(traces) > 1 for traces in outcome.traces.values())
    first = "takes the least time for a success, failed starts included" if many else "is first at the minimum"
    won = f"**{order[0]}** {first}: {', '.join(told)}." if order else "Nobody gets there."
    return " ".join([won, *(f"{text[0].upper()}{text[1:]}." for text in lost)])


def report(outcomes: list[Outcome]) -> str:
    """Markdown: a table and a verdict for each regime."""
    lines = [
        "# Routes to structure", "",
        f"One thread, float64; seconds of the processor, each route's own. At the minimum: cost within {NEAR:g} of the "
        "lowest that any route found. Error: rms distance from the truth after similarity alignment, of the object's "
        "rms radius. Several starts: medians, and how many reached the minimum.",
    ]  # fmt: skip
    for outcome in outcomes:
        many = any(len(traces) > 1 for traces in outcome.traces.values())
        lines += ["", f"## {outcome.regime}", "", f"{REGIMES[outcome.regime]} ({outcome.note})."]
        lines += ["", f"Lowest cost {outcome.best:.8g} px^2. {verdict(outcome)}", ""]
        lines += [
            "| route | iterations | seconds | to the minimum, s | cost above it | error | remark |",
            "|---" * 7 + "|",
        ]
        for route, traces in outcome.traces.items():
            times = [time_to(trace, outcome.best) for trace in traces]
            ends = sorted({trace.end for trace in traces} - {""})
            behind = max(trace.behind for trace in traces)
            reached = [f"{sum(map(math.isfinite, times))} of {len(times)}"] if many else []
            remarks = [*reached, *ends, *([f"{behind} observations behind a camera"] if behind else [])]
            excess = np.median([above(trace.costs[-1], outcome.best) for trace in traces])
            good = [t for t in times if math.isfinite(t)]
            cells = [
                route, f"{np.median([len(trace.costs) - 1 for trace in traces]):.0f}",
                f"{np.median([trace.seconds[-1] for trace in traces]):.3g}",
                f"{np.median(good):.3g}" if good else "never", f"{max(excess, 0.0):.1e}",
                f"{np.median([trace.error for trace in traces]):.3g}".replace("nan", "unknown"), "; ".join(remarks),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        if "backprop" not in outcome.traces:
            lines += ["", "backprop: `geometry.reconstruction.StructureProblem` has no robust kernel."]
    return "\n".join(lines) + "\n"


def curves(outcomes: list[Outcome], over: Literal["seconds", "iterations"]) -> Figure:
    """Cost minus the lowest, a panel for each regime, a line for each route and start."""
    from matplotlib.figure import Figure

    columns = min(4, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure = Figure(figsize=(1 + 3.4 * columns, 0.6 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, outcome in zip(grid, outcomes, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E3E6EA", linewidth=0.8)
        floor = 1e-13 * outcome.best  # rounding; a zero has no place on a log axis
        for route, traces in outcome.traces.items():
            for i, trace in enumerate(traces):
                x = trace.seconds if over == "seconds" else range(1, len(trace.costs) + 1)
                y = np.maximum(np.array(trace.costs) - outcome.best, floor)
                y[~np.isfinite(y)] = np.nan
                thin = {"linewidth": 1.8} if len(traces) == 1 else {"linewidth": 0.9, "alpha": 0.6}
                axes.plot(x, y, color=COLORS[route], label=route if i == 0 else None, **thin)
                axes.plot(x[-1], y[-1], "o", color=COLORS[route], markersize=3)
        axes.set(xscale="log", yscale="log", title=outcome.regime.replace("_", " "))
        axes.axhline(NEAR * outcome.best, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xlabel("seconds" if over == "seconds" else "iteration, counted from 1")
    for axes in grid[len(outcomes) :]:
        axes.set_visible(False)
    grid[0].set_ylabel("cost - lowest, px$^2$")
    handles = [grid[0].plot([], [], color=COLORS[route], label=route)[0] for route in ROUTES]
    handles += grid[0].plot([], [], color=GREY, linewidth=0.8, linestyle=":", label=f"{NEAR:g} of the lowest: arrived")
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def plain(outcome: Outcome) -> dict[str, Any]:
    """As a file can hold it."""
    return outcome._asdict() | {"traces": {r: [t._asdict() for t in some] for r, some in outcome.traces.items()}}


def read(config: Config) -> Tracks | None:
    """The tracks of a file, where they are asked for."""
    return read_file(locate.locate(config.scene)) if "tracks" in config.regimes else None


@experiment("structure_routes", read)
def main(run: Run, config: Config, given: Tracks | None) -> dict:
    outcomes: list[Outcome] = []
    if saved := run.restore():
        for kept in saved["outcomes"]:
            traces = {route: [Trace(**trace) for trace in some] for route, some in kept.pop("traces").items()}
            outcomes.append(Outcome(traces=traces, **kept))
    for step in run.iterations(len(config.regimes)):
        outcomes.append(run_regime(config.regimes[step], config, given))
        ends = outcomes[-1].traces
        costs = {route: min(t.costs[-1] for t in ends[route]) if route in ends else math.nan for route in ROUTES}
        run.log(step, loss=outcomes[-1].best, **costs)
        run.checkpoint(step, outcomes=[plain(o) for o in outcomes])
    run.figure("routes", len(outcomes), curves(outcomes, "seconds"), final=True)
    run.figure("iterations", len(outcomes), curves(outcomes, "iterations"), final=True)
    write_text(run.folder / "routes.md", report(outcomes))
    write_json(run.folder / "routes.json", [plain(o) for o in outcomes])
    # of several starts the one that ends lowest
    bundled = [(o, min(o.traces["bundle"], key=lambda trace: above(trace.costs[-1], o.best))) for o in outcomes]
    excess = max(above(trace.costs[-1], o.best) for o, trace in bundled)
    return run.finish(
        converged=excess <= NEAR,
        goal=f"the bundle within {NEAR:g} of the lowest cost of any route",
        iterations=len(outcomes),
        loss=outcomes[-1].best,
        errors={"bundle_above_lowest": max(excess, 0.0)},
        undetermined=[f"{o.regime}: {told}" for o, trace in bundled for told in trace.undetermined],
        note=" ".join(f"{o.regime}: {verdict(o)}" for o in outcomes).replace("**", ""),
    )


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
