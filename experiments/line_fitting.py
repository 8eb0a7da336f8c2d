"""Lines in noisy images by differentiable RANSAC, against direct regression: the toy problem of DSAC.

A network predicts 64 points of an image of one line segment among circles; RANSAC fits the line to those that agree.
It is told nothing but how far the line is off, as is a network with the same body that predicts the line itself. All
methods see the same images, take as many steps with the same optimiser, and are tested on the same unseen images.

- dsac: expected loss of a softmax choice among hypotheses (Brachmann et al., CVPR 2017, arXiv 1611.05705).
- ng_dsac: the network also says how likely each point lies on the line; hypotheses are drawn, and points counted, by
  that (Brachmann and Rother, ICCV 2019, arXiv 1905.04132).
- direct: regression of a point and a direction.

Presets:

- default: Trains dsac beside direct regression, in 2,500 steps.
- guided: Trains ng_dsac beside both.
- paper: Takes the published example's 50,000 steps, rate and reach.
- smoke: Takes 80 steps of small networks, to see that everything works.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from datasets.made.toy_images import SIDE, ToyImages, line_images
from experiments.drawing.shapes import Shown, by_method, curves, outline, panels
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from experiments.running.training import Training, side_by_side
from experiments.toys.config import ConsensusConfig
from experiments.toys.networks import ImageNetwork, PointNetwork
from experiments.toys.shapes import LINE, Consensus, bounded, consensus, line_at, line_error_sum
from geometry import draw_sets, expected_loss, score_function_loss, set_log_probability

TEST_SEED = 2**31
"""Of the test images, plus the run's seed, which training images have and which is taken to be smaller."""

Method = Literal["dsac", "ng_dsac", "direct"]


@dataclass(frozen=True)
class Config(ConsensusConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts("with --methods ng_dsac", ("pools",), lambda config: "ng_dsac" in config.methods),
        Acts("with --methods direct", ("direct_scale",), lambda config: "direct" in config.methods),
        Acts(
            "with --methods dsac or ng_dsac",
            ("hypotheses", "threshold", "alpha", "beta", "scale"),
            lambda config: bool({"dsac", "ng_dsac"} & {*config.methods}),
        ),
    )

    methods: tuple[Method, ...] = ("dsac", "direct")
    """Lists the methods to train side by side, on the same images."""
    iterations: int = 2500
    """Sets the number of steps of each method."""
    learning_rate: float = 5e-3
    """Sets the highest rate of AdamW's one-cycle schedule."""
    width: int = 16
    """Sets the channels of the first layer; the others have multiples of it."""
    easy: int = 200
    """Sets in how many iterations images have fewer circles, from none up to as many as the test images."""
    direct_scale: float = float("inf")
    """Sets the same for direct regression as scale does, since it needs to be told how far off it is."""
    wanted: float = 0.2
    """Sets the goal: the share of correct test images that the first method must reach, besides beating the last."""


PRESETS = {
    "default": Config(preset="default", dtype="float32", log_every=250),
    "guided": Config(preset="guided", methods=("dsac", "ng_dsac", "direct"), dtype="float32", log_every=250),
    # the published example's steps, rate and reach; its network is wider (16 to 256 channels), its rate is halved in
    # steps, and its error is the sum over both crossings
    "paper": Config(
        preset="paper", dtype="float32", iterations=50_000, learning_rate=1e-3,
        easy=0, reach=0.5, scale=float("inf"), log_every=1000, wanted=0.5,
    ),
    "smoke": Config(
        preset="smoke", dtype="float32", iterations=80, batch=16, width=8, easy=300, test_images=200, log_every=20,
        wanted=0.05,
    ),
}  # fmt: skip


class Fit(NamedTuple):
    """What a method makes of B images: a line (B,3), the loss (B,) that it learns from, and what consensus saw."""

    line: Tensor
    loss: Tensor
    points: Tensor | None = None
    found: Consensus | None = None


class Learner:
    """One method, its network and how it is trained."""

    def __init__(self, method: Method, config: Config, run: Run) -> None:
        self.method, self.config = method, config
        network: nn.Module
        if method == "direct":
            network = ImageNetwork(config.width, 4, config.bfloat16)
        else:
            network = PointNetwork(config.width, config.reach, int(method == "ng_dsac"), config.bfloat16)
        self.network = network.to(run.device, run.dtype)
        self.training = Training(self.network, config.learning_rate, config.iterations)

    def fit(self, images: Tensor, truth: Tensor) -> Fit:
        """Lines of images (B,3,64,64), and the loss against truth (B,3)."""
        config = self.config
        if self.method == "direct":
            out = self.network(images)
            line = line_at(0.5 + out[:, :2], out[:, 2:])
            return Fit(line, bounded(LINE.error(line, truth), config.direct_scale))
        points, extra = self.network(images)
        guided = self.method == "ng_dsac"
        log_weights = nn.functional.logsigmoid(extra[..., 0]) if guided else points.new_zeros(points.shape[:2])
        sets = draw_sets(log_weights, LINE.size, config.hypotheses)
        found = consensus(LINE, points, sets, config.threshold, config.beta, log_weights.exp())
        loss = bounded(LINE.error(found.model, truth[:, None]), config.scale)
        if self.method == "dsac":
            return Fit(found.best, expected_loss(found.score, loss, config.alpha), points, found)
        pools = (len(images) * config.pools, -1)
        pooled = expected_loss(found.score.reshape(pools), loss.reshape(pools), config.alpha).view(-1, config.pools)
        drawn = set_log_probability(log_weights, sets).reshape(len(images), config.pools, -1).sum(-1)
        return Fit(found.best, score_function_loss(pooled, drawn), points, found)

    def learn(self, images: Tensor, truth: Tensor) -> tuple[float, Tensor]:
        """One step: the mean loss, and errors (B,) in pixels of what was fitted before it."""
        with self.training.timed():
            fit = self.fit(images, truth)
            self.training.step(fit.loss.mean())
        return fit.loss.mean().item(), SIDE * LINE.error(fit.line.detach(), truth)


@experiment("line_fitting")
def main(run: Run, config: Config) -> dict:
    """Train the methods side by side and test them."""
    learners = {method: Learner(method, config, run) for method in config.methods}

    def learn(step: int, generator: torch.Generator) -> dict[str, float]:
        most = min(5, 6 * step // config.easy) if config.easy else 5
        images, truth = _on(run, line_images(config.batch, generator, circles=(min(2, most), most)))
        columns: dict[str, float] = {}
        for method, learner in learners.items():
            loss, error = learner.learn(images, truth)
            columns |= {f"{method}_loss": loss, f"{method}_px": error.median().item()}
            columns[f"{method}_correct"] = (error < config.correct_px).double().mean().item()
        return columns

    columns = side_by_side(run, config, {method: each.training for method, each in learners.items()}, learn)
    errors = test(config, run, learners)
    shares = [errors[f"{method}_correct"] for method in config.methods]
    return run.finish(
        converged=shares[0] >= max(config.wanted, shares[-1] if len(shares) > 1 else 0.0),
        goal=f"{config.methods[0]}: at least {config.wanted:.0%} of unseen images correct"
        + (f", and no fewer than {config.methods[-1]}" if len(shares) > 1 else ""),
        iterations=config.iterations,
        loss=columns[f"{config.methods[0]}_loss"],
        errors=errors,
        reference={},
        note=f"correct: both border crossings off by less than {config.correct_px:g} px, or their sum, of "
        f"{config.test_images} unseen images",
        picture="examples",
    )


def _on(run: Run, data: ToyImages) -> tuple[Tensor, Tensor]:
    """Images and true shapes where the run computes."""
    return data.images.to(run.device, run.dtype), data.shape.to(run.device, run.dtype)


@torch.no_grad()
def test(config: Config, run: Run, learners: dict[Method, Learner]) -> dict[str, float]:
    """Shares of correct lines and median errors on unseen images; draws the figures."""
    generator = torch.Generator().manual_seed(TEST_SEED + config.seed)
    errors: dict[Method, list[Tensor]] = {method: [] for method in learners}
    sums: dict[Method, list[Tensor]] = {method: [] for method in learners}
    rows: dict[str, list[Shown]] = {}
    for count in [100] * (config.test_images // 100) + [config.test_images % 100] * (config.test_images % 100 > 0):
        images, truth = _on(run, line_images(count, generator))
        for method, learner in learners.items():
            learner.network.eval()
            fit = learner.fit(images, truth)
            error = SIDE * LINE.error(fit.line, truth)
            errors[method].append(error)
            sums[method].append(SIDE * line_error_sum(fit.line, truth))
            if method not in rows:
                rows[method] = shown(config, fit, images, truth, error)
    run.figure("examples", config.iterations, panels(rows), final=True)
    titles = {"share of correct lines": "correct", "median error (px)": "px"}
    drawn = by_method(run.recorded().metrics, learners, titles)
    run.figure("curves", config.iterations, curves(drawn, window=max(1, config.iterations // 20)), final=True)
    found: dict[str, float] = {}
    for method, parts in errors.items():
        error = torch.cat(parts)
        found[f"{method}_correct"] = (error < config.correct_px).double().mean().item()
        found[f"{method}_correct_sum"] = (torch.cat(sums[method]) < config.correct_px).double().mean().item()
        found[f"{method}_median_px"] = error.median().item()
        found[f"{method}_seconds"] = learners[method].training.seconds
    return found


def shown(config: Config, fit: Fit, images: Tensor, truth: Tensor, error: Tensor) -> list[Shown]:
    """Panels of the first images."""
    panels = []
    for i in range(min(6, len(images))):
        seen: dict[str, Any] = {}
        if fit.found is not None and fit.points is not None:
            likely = (config.alpha * fit.found.score[i]).softmax(0)
            seen = dict(
                points=fit.points[i],
                agreement=fit.found.agreement[i, fit.found.score[i].argmax()],
                hypotheses=[outline(model, False) for model in fit.found.model[i]],
                likely=likely,
            )
        off = error[i].item()
        lines = dict(estimate=outline(fit.line[i], False), truth=outline(truth[i], False))
        panels.append(Shown(images[i], correct=off < config.correct_px, title=f"off by {off:.1f} px", **lines, **seen))
    return panels


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
