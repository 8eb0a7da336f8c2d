"""Routes to structure side by side: the same tracks and the same start, K known, points and poses sought.

`backprop` learns the points through PnP (Gauss-Newton with the poses eliminated: the paper's idea, to second order),
`alternating` places all poses on the points and all points on the poses in turn, `bundle` moves everything at once,
`adam` is the paper's own first-order way through the differentiable layer. All minimise half the sum of the same
(robust) squared reprojection errors, so that only the way there differs. Presets: `default` (made scenes), `real` (the
tracks of a BAL file, or of another reconstruction, with its own intrinsics), `smoke`.
"""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from datasets import shared
from datasets.formats import read_reconstruction
from datasets.synthetic import duck
from experiments import replacing, write_json
from experiments.figures import BLUE, GREY, ORANGE
from experiments.run import Run, RunConfig, cli, skip
from geometry import se3
from geometry.bundle import bundle
from geometry.camera import Model, in_front, project_camera_frame, projection_jacobian
from geometry.nested import nested_start, nested_step
from geometry.optim import next_damping
from geometry.pnp import pnp
from geometry.registration import align_similarity
from geometry.robust import RobustKernel, cauchy, kernel_derivatives
from geometry.structure import StructureProblem

ROUTES = ("backprop", "alternating", "bundle", "adam")
COLORS = {"backprop": BLUE, "alternating": ORANGE, "bundle": "#000000", "adam": "#009E73"}
Regime = Literal[
    "overlap", "few_views", "ring", "weak_perspective", "outliers", "outliers_robust", "random_start", "tracks"
]
REGIMES: dict[Regime, str] = {
    "overlap": "24 views all around 300 points, each sees half of them; a start 3 degrees, 5 % off",
    "few_views": "3 views 20 degrees apart, 100 points, all seen; a start 3 degrees, 5 % off",
    "ring": "60 cameras on a circle look outward, 600 points seen by 5 neighbours each; a start that has drifted away",
    "weak_perspective": "as overlap, 12 views, from 25 times as far with 25 times the focal length",
    "outliers": "as overlap, 10 % of the observations anywhere in the image",
    "outliers_robust": "the same with a Cauchy kernel of 1 px",
    "random_start": "12 views, 80 points, each view sees half of them; random points, poses sought globally",
    "tracks": "tracks of a reconstruction file; its poses and points are the start",
}
NEAR = 1e-6
"""Relative difference of costs below which two routes are said to have reached the same minimum."""


@dataclass(frozen=True)
class Config(RunConfig):
    regimes: tuple[Regime, ...] = tuple(regime for regime in REGIMES if regime != "tracks")
    """Which scenes to run; what they are stands in `REGIMES`, and in routes.md."""
    scene: str = "bal/problem-49-7776-pre.txt"
    """Of the regime `tracks`: a file of BAL or of another format that `datasets.formats` reads, here or in the
    shared data."""
    steps: int = 150
    """Of `backprop` and `bundle`, at most."""
    rounds: int = 400
    """Of `alternating`, at most: a round is every pose and then every point."""
    adam_steps: int = 400
    """Of `adam`; 0 leaves it out."""
    learning_rate: float = 1e-2
    """Of `adam`, in units of the points' rms distance from their mean at the start. Of 1e-3, 3e-3, 1e-2 and 3e-2 the
    default does best over the made scenes."""
    starts: int = 16
    """Random starts of the regime `random_start`."""


PRESETS = {
    "default": Config(preset="default"),
    "real": Config(preset="real", regimes=("tracks",), rounds=300, adam_steps=300, learning_rate=1e-3),
    "smoke": Config(preset="smoke", regimes=("overlap", "few_views"), rounds=30, adam_steps=20),
}


@dataclass(frozen=True)
class Tracks:
    """M observations points2d (M,2) px of N points by V cameras, K (V,3,3) and distortion (V,k) known, and the start.

    poses None: to be sought globally, wherever the points are. points_gt (N,3), poses_gt (V,4,4): the truth, or None.
    """

    points2d: Tensor
    camera: Tensor
    point: Tensor
    K: Tensor
    distortion: Tensor
    points: Tensor
    poses: Tensor | None
    model: Model = "radtan"
    kernel: RobustKernel | None = None
    points_gt: Tensor | None = None
    poses_gt: Tensor | None = None
    note: str = ""

    @cached_property
    def dense(self) -> tuple[Tensor, Tensor]:
        """points2d (V,N,2), zero where not visible (V,N)."""
        V, N = len(self.K), len(self.points)
        visible = torch.zeros(V, N, dtype=torch.bool)
        visible[self.camera, self.point] = True
        return self.points2d.new_zeros(V, N, 2).index_put((self.camera, self.point), self.points2d), visible

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """For PnP, the points that each view sees: which (V,m) of the points, seen (V,m), points2d (V,m,2)."""
        points2d, visible = self.dense
        most = int(visible.sum(1).max())
        which = visible.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return which, visible.gather(1, which), points2d.gather(1, which[..., None].expand(-1, -1, 2))

    def place_poses(self, points: Tensor, poses: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every pose (V,4,4) at the minimum of its own cost, next to `poses` or else the global one; costs (V,)."""
        which, seen, points2d = self.packed
        lens = {"distortion": self.distortion, "model": self.model, "kernel": self.kernel}
        found = pnp(points2d, points[which], self.K, mask=seen, init=poses, **lens)  # type: ignore[arg-type]
        return found.x, found.cost

    def point_costs(self, points: Tensor, poses: Tensor) -> Tensor:
        """Half the (robust) squared errors of each point (N,); infinite where a camera that sees it has it behind."""
        p = se3.transform(poses[self.camera], points[self.point][:, None])
        pixels = project_camera_frame(p, self.K[self.camera], self.distortion[self.camera], model=self.model)
        s = (pixels.squeeze(1) - self.points2d).square().sum(-1)
        cost = torch.where(in_front(p, model=self.model).squeeze(1), kernel_derivatives(self.kernel, s)[0], torch.inf)
        return 0.5 * points.new_zeros(len(points)).index_add(0, self.point, cost)

    def place_points(self, points: Tensor, poses: Tensor, most: int = 5) -> Tensor:
        """Every point (N,3) near the minimum of its own cost: N Levenberg-Marquardts side by side, in front of cameras.

        0.1 s on Ladybug. `geometry.structure.triangulate`, which begins with the rays, takes 13 s there; the bundle
        that holds the poses 0.1 s (and two to three times as long as this on the made scenes), but it lets points go
        behind cameras, where PnP cannot start.
        """
        cost = self.point_costs(points, poses)
        damping, growth = torch.full_like(cost, 1e-4), torch.full_like(cost, 2.0)
        running = cost.isfinite()
        R, lens = poses[self.camera, :3, :3], (self.K[self.camera], self.distortion[self.camera], self.model)
        for _ in range(most):
            pixels, J = projection_jacobian(se3.transform(poses[self.camera], points[self.point][:, None]), *lens)
            r, J = pixels.squeeze(1) - self.points2d, J.squeeze(1) @ R
            slope = kernel_derivatives(self.kernel, r.square().sum(-1))[1][:, None, None]
            H = points.new_zeros(len(points), 3, 3).index_add(0, self.point, slope * (J.mT @ J))
            g = points.new_zeros(len(points), 3).index_add(0, self.point, (slope * J.mT @ r[..., None]).squeeze(-1))
            diagonal = damping[:, None] * H.diagonal(dim1=1, dim2=2)
            step = torch.linalg.solve_ex(H + torch.diag_embed(diagonal + 1e-300), -g[..., None]).result.squeeze(-1)
            predicted = 0.5 * (step * (diagonal * step - g)).sum(-1)
            trial = self.point_costs(points + step, poses)
            accept = running & (trial < cost)
            ratio = (cost - trial) / predicted.clamp_min(1e-300)
            points = torch.where(accept[:, None], points + step, points)
            cost = torch.where(accept, trial, cost)
            damping, growth = next_damping(damping, growth, accept, torch.nan_to_num(ratio, -1.0))
            running &= (predicted > 1e-3 * cost) & (damping < 1e8)
            if not running.any():
                break
        return points

    def error(self, points: Tensor) -> float:
        """Rms distance from the truth after similarity alignment, as a share of the truth's rms radius; NaN without."""
        if self.points_gt is None or not points.isfinite().all():
            return math.nan
        distance = (align_similarity(points, self.points_gt).apply(points) - self.points_gt).square().sum(-1)
        return (distance.mean() / (self.points_gt - self.points_gt.mean(0)).square().sum(-1).mean()).sqrt().item()


class Trace(NamedTuple):
    """One route from one start: seconds and cost after each iteration, the first before any; where it ended, and how.

    Seconds are those of the processor: on one thread the time that passes, unless others want the machine, too.

    behind: observations that end behind their camera, where only the formula of `bundle` still sees them.
    """

    seconds: list[float]
    costs: list[float]
    error: float
    behind: int
    end: str


# ---- the routes ----


def backprop(tracks: Tracks, config: Config) -> tuple[list[float], list[float], Tensor, Tensor, str]:
    """Gauss-Newton on the points, every pose at its argmin."""
    points2d, visible = tracks.dense
    lens = (tracks.K, tracks.distortion, tracks.model)
    seek = tracks.poses is None
    clock = time.process_time()
    problem = StructureProblem(points2d, visible, *lens, global_poses=seek, normalise=seek)
    poses = None if tracks.poses is None else tracks.poses[None]
    state = nested_start(problem, tracks.points[None], poses)
    seconds, costs = [time.process_time() - clock], [state.cost.item()]
    while state.steps < config.steps and not state.done.all():
        state = nested_step(problem, state)
        seconds.append(time.process_time() - clock)
        costs.append(state.cost.item())
    end = "" if state.done.all() else "steps spent"
    return seconds, costs, state.theta[0], state.inner[0], "no start" if math.isinf(costs[-1]) else end


def alternating(tracks: Tracks, config: Config) -> tuple[list[float], list[float], Tensor, Tensor, str]:
    """Every pose, then every point, until a round gains less than one part in 10^10."""
    clock = time.process_time()
    poses, cost = tracks.place_poses(tracks.points, tracks.poses)
    points = tracks.points
    seconds, costs = [time.process_time() - clock], [cost.sum().item()]
    for _ in range(config.rounds):
        points = tracks.place_points(points, poses)
        poses, cost = tracks.place_poses(points, None if tracks.poses is None else poses)
        seconds.append(time.process_time() - clock)
        costs.append(cost.sum().item())
        if not costs[-2] - costs[-1] > 1e-10 * costs[-1]:
            return seconds, costs, points, poses, "a pose was lost" if not math.isfinite(costs[-1]) else ""
    return seconds, costs, points, poses, "rounds spent"


def full_bundle(tracks: Tracks, config: Config) -> tuple[list[float], list[float], Tensor, Tensor, str]:
    """All at once. Without poses it is given those that PnP finds for the points at the start."""
    clock = time.process_time()
    poses = tracks.place_poses(tracks.points, None)[0] if tracks.poses is None else tracks.poses
    seconds, costs = [], []

    def callback(step: int, cost: float) -> None:
        seconds.append(time.process_time() - clock)
        costs.append(cost)

    given = (tracks.points2d, tracks.camera, tracks.point, poses, tracks.points, tracks.K, tracks.distortion)
    options = {"model": tracks.model, "kernel": tracks.kernel, "max_steps": config.steps}
    found = bundle(*given, callback=callback, **options)  # type: ignore[arg-type]
    callback(-1, found.cost.item())  # the polish with the exact Hessian is part of it
    return seconds, costs, found.x.points3d, found.x.world_to_camera, "" if found.converged.all() else "not converged"


def adam(tracks: Tracks, config: Config) -> tuple[list[float], list[float], Tensor, Tensor, str]:
    """Adam on the points, the gradient through the layer."""
    size = (tracks.points - tracks.points.mean(0)).square().sum(-1).mean().sqrt().item()
    which, seen, points2d = tracks.packed
    lens = {"distortion": tracks.distortion, "model": tracks.model, "kernel": tracks.kernel}
    clock = time.process_time()
    points = tracks.points.clone().requires_grad_()
    optimizer = torch.optim.Adam([points], lr=config.learning_rate * size)
    seconds, costs, poses = [], [], tracks.poses
    for _ in range(config.adam_steps):
        found = pnp(points2d, points[which], tracks.K, mask=seen, init=poses, **lens)  # type: ignore[arg-type]
        p = se3.transform(found.x, points[which])
        p = torch.where(seen[..., None], p, p.new_tensor([0.0, 0.0, 1.0]))
        pixels = project_camera_frame(p, tracks.K, tracks.distortion, model=tracks.model)
        s = torch.where(seen, (pixels - points2d).square().sum(-1), 0)
        cost = 0.5 * (s if tracks.kernel is None else tracks.kernel(s)).sum()
        seconds.append(time.process_time() - clock)
        costs.append(cost.item())
        if not math.isfinite(costs[-1]):
            return seconds, costs, points.detach(), found.x.detach(), "a pose was lost"
        end = points.detach().clone(), found.x.detach()
        poses = None if tracks.poses is None else end[1]
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    return seconds, costs, *end, "steps spent"


SOLVE = dict(zip(ROUTES, (backprop, alternating, full_bundle, adam), strict=True))


def follow(route: str, tracks: Tracks, config: Config) -> Trace | None:
    """One route; None for what it cannot do. A short one is run again: the quickest of up to three is kept."""
    if (route == "adam" and not config.adam_steps) or (route == "backprop" and tracks.kernel is not None):
        return None
    # compiled kernels are loaded at their first call
    SOLVE[route](tracks, replace(config, steps=2, rounds=1, adam_steps=2))
    runs = [SOLVE[route](tracks, config)]
    while len(runs) < 3 and sum(run[0][-1] for run in runs) < 0.5:
        runs.append(SOLVE[route](tracks, config))
    seconds, costs, points, poses, end = min(runs, key=lambda run: run[0][-1])
    p = se3.transform(poses[tracks.camera], points[tracks.point][:, None])
    return Trace(seconds, costs, tracks.error(points), int((~in_front(p, model=tracks.model)).sum()), end)


# ---- the scenes ----


def noisy(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moved(poses: Tensor, turn: Tensor, share: Tensor) -> Tensor:
    """Poses (V,4,4) turned by `turn` (V,3) radians about the world's origin, t scaled by 1 + share (V,3)."""
    return se3.make(poses[:, :3, :3] @ se3.exp(turn), poses[:, :3, 3] * (1 + share))


def solid(
    views: int,
    points: int,
    generator: torch.Generator,
    *,
    far: float = 1.0,
    arc: float | None = None,
    share: float = 0.5,
    wrong: float = 0.0,
    kernel: RobustKernel | None = None,
) -> Tracks:
    """A duck of unit rms radius, 5 * far away, seen with 0.5 px of noise by cameras of 800 * far px.

    arc: degrees between views in a row, None for all around. share of the points, those nearest, in each view. wrong:
    share of the observations that lie anywhere in an image of 640 x 480 px.
    """
    X = duck(points, generator)
    X = (X - X.mean(0)) / (X - X.mean(0)).square().sum(-1).mean().sqrt()
    if arc is None:
        R = se3.rotation_from_quat_wxyz(noisy((views, 4), generator))
    else:
        angle = math.radians(arc) * torch.arange(views, dtype=torch.float64)
        R = se3.exp(torch.stack([0.3 * angle, angle, torch.zeros_like(angle)], -1))
    poses = se3.make(R, torch.tensor([0.0, 0.0, 5 * far], dtype=torch.float64).expand(views, 3))
    f = 800 * far
    K = torch.tensor([[f, 0, 319.5], [0, f, 239.5], [0, 0, 1]], dtype=torch.float64).expand(views, 3, 3)
    p = se3.transform(poses, X)
    camera, point = (p[..., 2] <= p[..., 2].quantile(share, dim=1, keepdim=True)).nonzero().T
    points2d = project_camera_frame(p, K)[camera, point] + 0.5 * noisy((len(camera), 2), generator)
    anywhere = torch.rand(len(camera), 2, generator=generator, dtype=torch.float64) * torch.tensor([639.0, 479.0])
    gross = torch.rand(len(camera), 1, generator=generator) < wrong
    start = moved(poses, math.radians(3) * noisy((views, 3), generator), 0.05 * noisy((views, 3), generator))
    return Tracks(
        torch.where(gross, anywhere, points2d), camera, point, K, K.new_zeros(views, 0),
        X + 0.05 * noisy(X.shape, generator), start, kernel=kernel, points_gt=X, poses_gt=poses,
    )  # fmt: skip


def ring(views: int, points: int, neighbours: int, generator: torch.Generator) -> Tracks:
    """Cameras one unit apart on a circle, looking outward at points 4 to 8 units away, each seen by its neighbours.

    The start drifts: the error of every pose is the last one's and 0.2 degrees and 0.01 units more, each point keeps
    its place in the frame of the first camera that sees it.
    """
    angle = 2 * math.pi * torch.arange(views, dtype=torch.float64) / views
    zero = torch.zeros_like(angle)
    R = se3.exp(torch.stack([zero, -angle, zero], -1))
    centre = views / (2 * math.pi) * torch.stack([angle.sin(), zero, angle.cos()], -1)
    poses = se3.make(R, -(R @ centre[..., None]).squeeze(-1))
    K = torch.tensor([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]], dtype=torch.float64).expand(views, 3, 3)
    first = torch.randint(views, (points,), generator=generator)
    offset = torch.rand(points, 3, generator=generator, dtype=torch.float64)
    local = torch.stack([6 * (offset[:, 0] - 0.5), 3 * (offset[:, 1] - 0.5), 4 + 4 * offset[:, 2]], -1)
    middle = (first + neighbours // 2) % views
    X = se3.transform(se3.inverse(poses)[middle], local[:, None]).squeeze(1)
    camera = ((first[:, None] + torch.arange(neighbours)) % views).flatten()
    point = torch.arange(points).repeat_interleave(neighbours)
    pixels = project_camera_frame(se3.transform(poses[camera], X[point][:, None]), K[camera]).squeeze(1)
    walk = torch.cat([math.radians(0.2) * noisy((views, 3), generator), 0.01 * noisy((views, 3), generator)], -1)
    start = se3.retract(poses, (walk - walk[:1]).cumsum(0))
    drifted = se3.inverse(start)[first] @ poses[first]
    return Tracks(
        pixels + 0.5 * noisy(tuple(pixels.shape), generator), camera, point, K, K.new_zeros(views, 0),
        se3.transform(drifted, X[:, None]).squeeze(1), start, points_gt=X, poses_gt=poses,
    )  # fmt: skip


def read_tracks(name: str) -> Tracks:
    """A file's tracks; observations behind their camera at the start and tracks of one view are left out."""
    scene = read_reconstruction(shared.locate(name))
    index = scene.intrinsics_index
    p = se3.transform(scene.world_to_camera[scene.camera_index], scene.points3d[scene.point_index][:, None])
    keep = in_front(p, model=scene.model).squeeze(1)
    keep &= (torch.bincount(scene.point_index[keep], minlength=len(scene.points3d)) >= 2)[scene.point_index]
    used, point = scene.point_index[keep].unique(return_inverse=True)
    left_out = int((~keep).sum())
    return Tracks(
        scene.points2d[keep], scene.camera_index[keep], point, scene.K[index], scene.distortion[index],
        scene.points3d[used], scene.world_to_camera, scene.model,
        note=f"{left_out} of {len(keep)} observations left out: behind their camera, or of one view only",
    )  # fmt: skip


def make_starts(regime: Regime, config: Config) -> list[Tracks]:
    """The scene of a regime, once for every start."""
    generator = torch.Generator().manual_seed(config.seed)
    if regime == "tracks":
        return [read_tracks(config.scene)]
    if regime == "ring":
        return [ring(60, 600, 5, generator)]
    if regime == "random_start":
        scene = replace(solid(12, 80, generator), poses=None)
        return [replace(scene, points=noisy((80, 3), generator) / math.sqrt(3)) for _ in range(config.starts)]
    if regime == "few_views":
        return [solid(3, 100, generator, arc=20.0, share=1.0)]
    if regime == "weak_perspective":
        return [solid(12, 300, generator, far=25.0)]
    wrong = 0.1 if regime.startswith("outliers") else 0.0
    kernel = cauchy(1.0) if regime == "outliers_robust" else None
    return [solid(24, 300, generator, wrong=wrong, kernel=kernel)]


# ---- what came out ----


class Outcome(NamedTuple):
    """A regime: the lowest cost anybody found, and the traces of each route, one a start."""

    regime: Regime
    best: float
    traces: dict[str, list[Trace]]
    note: str


def run_regime(regime: Regime, config: Config) -> Outcome:
    """Every route from every start. Where there is a truth, bundle from there is one more witness of the best cost."""
    starts = make_starts(regime, config)
    traces: dict[str, list[Trace]] = {}
    for route in ROUTES:
        found = [trace for tracks in starts if (trace := follow(route, tracks, config))]
        traces |= {route: found} if found else {}
    best = min(trace.costs[-1] for some in traces.values() for trace in some)
    first = starts[0]
    if first.points_gt is not None and first.poses_gt is not None:
        witness = full_bundle(replace(first, points=first.points_gt, poses=first.poses_gt), config)
        best = min(best, witness[1][-1])
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
            lines += ["", "backprop: `geometry.structure.StructureProblem` has no robust kernel."]
    return "\n".join(lines) + "\n"


def curves(outcomes: list[Outcome], over: Literal["seconds", "iterations"]) -> Figure:
    """Cost minus the lowest, a panel for each regime, a line for each route and start."""
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
        axes.set_xlabel("s" if over == "seconds" else "iteration, counted from 1")
    for axes in grid[len(outcomes) :]:
        axes.set_visible(False)
    grid[0].set_ylabel("cost - lowest, px$^2$")
    handles = [grid[0].plot([], [], color=COLORS[route], label=route)[0] for route in ROUTES]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def main(config: Config) -> dict:
    if "tracks" in config.regimes:
        try:
            shared.locate(config.scene)
        except FileNotFoundError as absent:
            skip(str(absent))
    with Run("structure_routes", config) as run:
        if run.finished:
            return run.finished
        outcomes: list[Outcome] = []
        if saved := run.restore():
            for regime, best, traces, note in saved["outcomes"]:
                kept = {route: [Trace(*trace) for trace in some] for route, some in traces.items()}
                outcomes.append(Outcome(regime, best, kept, note))
        for step in run.iterations(len(config.regimes)):
            outcomes.append(run_regime(config.regimes[step], config))
            ends = outcomes[-1].traces
            costs = {route: min(t.costs[-1] for t in ends[route]) if route in ends else math.nan for route in ROUTES}
            run.log(step, loss=outcomes[-1].best, **costs)
            plain_traces = [
                (o.regime, o.best, {r: [tuple(t) for t in some] for r, some in o.traces.items()}, o.note)
                for o in outcomes
            ]
            run.checkpoint(step, outcomes=plain_traces)
        run.figure("routes", len(outcomes), curves(outcomes, "seconds"), final=True)
        run.figure("iterations", len(outcomes), curves(outcomes, "iterations"), final=True)
        with replacing(run.folder / "routes.md") as temporary:
            temporary.write_text(report(outcomes))
        told = [o._asdict() | {"traces": {r: [t._asdict() for t in s] for r, s in o.traces.items()}} for o in outcomes]
        write_json(run.folder / "routes.json", told)
        near = [o for o in outcomes if o.regime != "random_start"]
        excess = max((above(o.traces["bundle"][0].costs[-1], o.best) for o in near), default=0.0)
        return run.finish(
            converged=excess <= NEAR,
            iterations=len(outcomes),
            loss=outcomes[-1].best,
            errors={"bundle_above_lowest": max(excess, 0.0)},
            note=" ".join(f"{o.regime}: {verdict(o)}" for o in outcomes).replace("**", ""),
        )


if __name__ == "__main__":
    main(cli(__doc__, PRESETS))
