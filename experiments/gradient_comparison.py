"""Which gradient should a network learn a pose with? Every one on the same task, network and budget.

A network corrects the keypoints of a known object and says what each should weigh (`gradients.scenes`); it is told the
true pose of a view and nothing else. What turns keypoints, weights and pose into a loss is the method
(`gradients.methods`): gradients through PnP, exact, approximate and as published; losses that go around it. All learn
from the same views with Adam in the same number of steps, its rate falling linearly to zero. The rate is the best of
those tried on seeds that are not counted: the three of `rates`, and further ones, a half decade apart, while the best
of them is the largest or the smallest. All are tested alike: what `geometry.pnp`, searching globally, makes of the
keypoints and weights of unseen views.

A run has reached its goal once the median errors of rotation and translation are both below `goal` times those of the
oracle: the maximum-likelihood pose of keypoints without bias and wrong matches, their noise being known. Runs of
several seeds go side by side as one batch; seconds are steps times the processor time of a step of one run alone.

Presets:

- default: Compares all methods but the dearest in the small regimes, over three seeds.
- full: Compares all methods in all regimes over ten seeds: the reference.
- smoke: Compares four methods in two regimes in 20 steps.
"""

import json
import math
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from experiments.gradients.figures import curves, summary
from experiments.gradients.measures import Quality, measure
from experiments.gradients.methods import METHODS, UNWEIGHTED, Method, View, displacement
from experiments.gradients.networks import LargeRefiner, Refiner
from experiments.gradients.outcomes import Outcome, Trace, chosen
from experiments.gradients.report import report
from experiments.gradients.scenes import REGIMES, Regime, Scene, make_scene
from experiments.records.files import plain, write_text
from experiments.running.config import RunConfig
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from geometry import Problem, Solution, minimize, pnp, project, se3

HELD_OUT = 2**20
"""Added to the seeds of the runs on which learning rates are chosen."""
HALF_DECADE = math.sqrt(10)
SMALL: tuple[Regime, ...] = tuple(regime for regime in REGIMES if regime != "large_network")
ONLY: dict[Method, tuple[Regime, ...]] = {
    "unrolled": ("noise", "wrong_init"),
    "published": ("noise", "outliers", "planar", "wrong_init"),
    "epro_pnp_full": ("noise", "outliers", "near_symmetric", "ambiguous"),
    "gauss_newton": SMALL, "dsac": SMALL, "nabla_ransac": SMALL,
}  # fmt: skip
"""Where a method takes part that is too dear for all: the first three take most of the time, and a large network more.

`unrolled` says what `exact` says, `published` what `unweighted` does, `epro_pnp_full` is `epro_pnp` with additions.
"""


@dataclass(frozen=True)
class Config(RunConfig):
    methods: tuple[Method, ...] = tuple(method for method in METHODS if method != "unrolled")
    """Lists what to compare. Those that are dear take part in some regimes alone."""
    regimes: tuple[Regime, ...] = SMALL
    """Lists where to compare it; what they are stands in `REGIMES`, and in gradient_comparison.md."""
    seeds: int = 3
    """Sets the runs of each method in each regime: objects, biases, views and networks of their own."""
    held_out: int = 1
    """Sets the runs of each learning rate that is tried."""
    steps: int = 120
    """Sets the number of steps of Adam."""
    batch: int = 8
    """Sets the number of views a step; none is seen twice."""
    rates: tuple[float, ...] = (10**-2.5, 10**-2, 10**-1.5)
    """Lists the learning rates to begin with; the large network has a tenth of them."""
    widenings: int = 6
    """Limits how many rates are tried beyond them, half a decade after the other."""
    test_views: int = 128
    """Sets the number of test views of each seed."""
    test_every: int = 10
    """Sets how many steps lie between tests."""
    goal: float = 2.0
    """Sets how many times the oracle's errors the goal is."""
    noise: tuple[float, ...] = (1.0, 5.0, 20.0)
    """Lists the pixels of noise at which a gradient is measured."""
    problems: int = 64
    """Sets the problems of each of five seeds, or fewer, for these measures."""
    draws: int = 64
    """Sets how often a stochastic gradient is drawn, for its mean."""


PRESETS = {
    "default": Config(preset="default"),
    "full": Config(
        preset="full", methods=tuple(METHODS), regimes=tuple(REGIMES), seeds=10, held_out=2, batch=12
    ),
    "smoke": Config(
        preset="smoke", regimes=("noise", "planar"), methods=("exact", "published", "epro_pnp", "linear_covariance"),
        seeds=2, steps=20, rates=(1e-2, 3e-2), widenings=0, test_views=32, noise=(5.0,), problems=8, draws=8,
    ),
}  # fmt: skip


class Runs:
    """Networks of one method, side by side: one for each scene and learning rate."""

    def __init__(self, method: Method, scenes: list[Scene], rates: list[float], config: Config) -> None:
        self.method, self.scenes, self.config = method, scenes, config
        network = LargeRefiner if REGIMES[scenes[0].regime].large else Refiner
        self.network = network([scene.seed for scene in scenes])
        groups = [{"params": own, "lr": rate} for own, rate in zip(self.network.runs, rates, strict=True)]
        self.optimizer = torch.optim.Adam(groups)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / config.steps)
        self.points3d, self.K = torch.stack([scene.points3d for scene in scenes]), scenes[0].K
        self.generator = torch.Generator().manual_seed(config.seed)

    def look(self, views: list) -> tuple[View, Tensor]:
        """What the networks say of as many views each, flat (R B, …), and which runs (R,) still say anything."""
        observed = torch.stack([some.observed for some in views])
        points2d, log_weights = self.network(observed, torch.stack([some.cues for some in views]))
        alive = torch.isfinite(points2d).flatten(1).all(1) & torch.isfinite(log_weights).flatten(1).all(1)
        points2d = torch.where(alive[:, None, None, None], points2d, observed)
        log_weights = torch.where(alive[:, None, None], log_weights, 0.0)
        B = observed.shape[1]
        init = None if views[0].init is None else torch.cat([some.init for some in views])
        pose_gt = torch.cat([some.pose_gt for some in views])
        points3d = self.points3d.repeat_interleave(B, 0)
        flat = points2d.flatten(0, 1), log_weights.flatten(0, 1)
        return View(*flat, points3d, self.K, pose_gt, init, self.generator), alive

    def learn(self, step: int) -> None:
        """One step of every run, on views that are its own."""
        B = self.config.batch
        view, _ = self.look([scene.train.part(step * B, (step + 1) * B) for scene in self.scenes])
        loss = METHODS[self.method](view).sum() / B
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def test(self) -> Tensor:
        """Median errors (R,3) on unseen views; infinite for a run that has come to nothing."""
        view, alive = self.look([scene.test for scene in self.scenes])
        weights = None if self.method in UNWEIGHTED else view.log_weights.exp()
        errors = pose_errors(view, pnp(view.points2d, view.points3d, view.K, weights=weights))
        return torch.where(alive[:, None], errors.unflatten(0, (len(alive), -1)).median(1).values, torch.inf)


def pose_errors(view: View, found: Solution) -> Tensor:
    """Rotation in degrees, translation, displacement (B,3) of the poses found; infinite where none was."""
    assert isinstance(found.x, Tensor)
    turn = se3.rotation_angle(found.x[:, :3, :3] @ view.pose_gt[:, :3, :3].mT).rad2deg()
    shift = (found.x[:, :3, 3] - view.pose_gt[:, :3, 3]).norm(dim=-1)
    errors = torch.stack([turn, shift, displacement(found.x, view.pose_gt, view.points3d)], -1)
    return torch.where(found.converged[:, None], errors, torch.inf)


def _white(pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor, whitener: Tensor) -> Tensor:
    return whitener @ (project(points3d, pose, K) - points2d)


def oracle(scene: Scene) -> Tensor:
    """Median errors (3,) of the maximum-likelihood pose: no bias, the true covariance of the noise, no wrong match."""
    views = scene.test
    points2d, sizes = views.observed - scene.bias, views.whitener.norm(dim=-1)
    view = View(points2d, sizes.log(), scene.points3d[None], scene.K, views.pose_gt)
    start = pnp(points2d, scene.points3d, scene.K, weights=sizes)
    B = len(points2d)
    data = (points2d, scene.points3d.expand(B, -1, 3), scene.K.expand(B, 3, 3), views.whitener)
    found = minimize(Problem(_white, dof=6, retract=se3.retract), start.x, *data)
    return pose_errors(view, found).median(0).values


def tests(config: Config) -> list[int]:
    """The steps after which is tested."""
    return sorted({*range(0, config.steps + 1, config.test_every), config.steps})


def train(
    method: Method, scenes: list[Scene], rates: list[float], config: Config, tested: list[int]
) -> list[list[list[float]]]:
    """Test errors of each run after the steps `tested`: a triple for each."""
    runs, found = Runs(method, scenes, rates, config), []
    for step in range(config.steps + 1):
        if step in tested:
            found.append(runs.test())
        if step < config.steps:
            runs.learn(step)
    return torch.stack(found, 1).tolist()


def choose_rate(method: Method, scenes: list[Scene], config: Config) -> dict[float, float]:
    """Every rate tried, and the displacement it ends with: geometric mean of the scenes, infinite with a lost run.

    While the best rate is the least or the largest of them, the next one beyond it is tried.
    """
    scale = 0.1 if REGIMES[scenes[0].regime].large else 1.0
    rates = [scale * rate for rate in config.rates]
    tried: dict[float, float] = {}
    for widening in range(config.widenings + 1):
        pairs = [(scene, rate) for rate in rates for scene in scenes]
        runs = train(method, [p[0] for p in pairs], [p[1] for p in pairs], config, [config.steps])
        ends = torch.tensor(runs, dtype=torch.float64)[:, -1, 2].view(len(rates), -1)
        tried |= dict(zip(rates, ends.log().mean(1).exp().nan_to_num(math.inf, math.inf).tolist(), strict=True))
        best = chosen(tried)
        if min(tried) < best < max(tried) or widening == config.widenings:
            break
        rates = [best * HALF_DECADE if best == max(tried) else best / HALF_DECADE]
    return dict(sorted(tried.items()))


def step_milliseconds(method: Method, scene: Scene, config: Config) -> float:
    """Processor time of a step of one run alone: the least of some."""
    runs, times = Runs(method, [scene], [0.0], config), []
    for step in range(min(6, config.steps)):
        begun = time.process_time()
        runs.learn(step)
        times.append(time.process_time() - begun)
    return 1e3 * min(times)


def run_regime(regime: Regime, config: Config) -> Outcome:
    """Every method: its rate chosen on held-out seeds, then run on all the others."""
    count = config.steps * config.batch

    def scenes_of(first: int, number: int) -> list[Scene]:
        return [make_scene(regime, first + i, count, config.test_views) for i in range(number)]

    held_out, scenes = scenes_of(config.seed + HELD_OUT, config.held_out), scenes_of(config.seed, config.seeds)
    traces: dict[Method, Trace] = {}
    for method in config.methods:
        if regime not in ONLY.get(method, (regime,)):
            continue
        tried = choose_rate(method, held_out, config)
        errors = train(method, scenes, [chosen(tried)] * len(scenes), config, tests(config))
        traces[method] = Trace(tried, step_milliseconds(method, scenes[0], config), errors)
    return Outcome(regime, tests(config), [oracle(scene).tolist() for scene in scenes], traces).rounded()


@experiment("gradient_comparison")
def main(run: Run, config: Config) -> dict:
    """Train, measure, and write the page."""
    outcomes: list[Outcome] = []
    if saved := run.restore():
        outcomes = [Outcome.loaded(some) for some in saved["outcomes"]]
    for step in run.iterations(len(config.regimes)):
        outcomes.append(run_regime(config.regimes[step], config))
        ends: dict[str, float] = {m: outcomes[-1].final(m).middle for m in outcomes[-1].traces}
        run.log(step, loss=min(ends.values()), **{method: ends.get(method, math.nan) for method in config.methods})
        run.checkpoint(step, outcomes=[outcome.plain() for outcome in outcomes])
    seeds = [config.seed + i for i in range(min(5, config.seeds))]
    quality: dict[float, dict[Method, Quality]] = {
        noise: {method: measure(method, noise, seeds, config.problems, config.draws) for method in config.methods}
        for noise in config.noise
    }
    run.figure("curves", len(outcomes), curves(outcomes, config.goal), final=True)
    run.figure("gradient_comparison", len(outcomes), summary(outcomes, quality, config.goal), final=True)
    settings = {key: value for key, value in asdict(config).items() if key in REPORTED}
    write_text(run.folder / "gradient_comparison.md", report(outcomes, quality, config.goal, settings))
    told = {
        "settings": settings,
        "goal": config.goal,
        "outcomes": [outcome.plain() for outcome in outcomes],
        "quality": {noise: {m: q._asdict() for m, q in some.items()} for noise, some in quality.items()},
    }
    write_text(run.folder / "gradient_comparison.json", json.dumps(plain(told)) + "\n")
    errors = {f"{o.regime}_{method}": o.final(method).middle for o in outcomes for method in o.traces}
    first = config.methods[0]
    return run.finish(
        converged=all(math.isfinite(o.final(first).middle) for o in outcomes if first in o.traces),
        goal=f"no run of {first} lost in any regime",
        iterations=len(outcomes),
        loss=min(outcomes[-1].final(method).middle for method in outcomes[-1].traces),
        errors=errors,
        note="errors: displacement of the object's points at the end, over the oracle's, geometric mean of the seeds",
        picture="gradient_comparison",
    )


REPORTED = ("seed", "seeds", "held_out", "steps", "batch", "test_views", "problems", "draws")


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
