"""Which model to fit, learned with how to fit it: the toy problem of expert sample consensus (ESAC).

An image shows a line or a circle, and nobody says which. Two experts each predict 64 points, one for lines through
them, one for circles; a gating network says how likely each expert is the one to ask. Hypotheses are drawn from that
mixture, and the one with the best consensus wins (Brachmann and Rother, ICCV 2019, arXiv 1908.02484).

- separate: a classifier learns from labels, each expert from images of its own kind; the classifier alone chooses.
- esac: begins like that, then all three networks learn together from how far the chosen model is off, where a wrong
  kind counts as far off, and nothing else. The gating network's gradient is that of the drawn experts'
  log-probability.
- unlabelled: esac's loss from the first step on.

Test images are fitted three times with the networks of each: hypotheses drawn from the gating network's mixture, drawn
evenly (`even`), and all from the likelier expert (`hard`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from datasets.made.toy_images import SIDE, ToyImages, shape_images
from experiments.drawing.shapes import Shown, by_method, curves, outline, panels
from experiments.running.config import cli
from experiments.running.run import Run, experiment
from experiments.running.training import Training, side_by_side
from experiments.toys.config import ConsensusConfig
from experiments.toys.networks import ImageNetwork, PointNetwork
from experiments.toys.shapes import CIRCLE, LINE, bounded, consensus
from geometry import draw_sets, expected_loss, score_function_loss

Method = Literal["esac", "separate", "unlabelled"]
Choice = Literal["mixture", "even", "hard"]
EXPERTS = (LINE, CIRCLE)
"""Expert 0 fits lines, expert 1 circles."""
TEST_SEED = 2**31
"""Of the test images; training images have the run's seed, which is taken to be another."""


@dataclass(frozen=True)
class Config(ConsensusConfig):
    methods: tuple[Method, ...] = ("esac", "separate")
    """Trained side by side, on the same images."""
    alone: int = 200
    """Of these steps, how many esac's networks learn apart."""
    wanted: float = 0.35
    """Share of test images that the first method must fit correctly, to have converged."""


PRESETS = {
    "default": Config(preset="default", dtype="float32", log_every=100),
    "smoke": Config(
        preset="smoke", dtype="float32", iterations=100, alone=60, batch=16, width=8, test_images=200, hypotheses=32,
        log_every=20, wanted=0.04,
    ),
}  # fmt: skip


class Hypotheses(NamedTuple):
    """Of E experts, H each: scores, losses, errors in pixels (B,E,H), models (B,E,H,3), points (B,E,N,2)."""

    score: Tensor
    loss: Tensor
    error: Tensor
    model: Tensor
    points: Tensor


class Learner:
    """One method: its experts, its gating network, half as wide, and how they are trained."""

    def __init__(self, method: Method, config: Config, run: Run) -> None:
        self.method, self.config = method, config
        experts = [PointNetwork(config.width, config.reach, bfloat16=config.bfloat16) for _ in EXPERTS]
        gating = ImageNetwork(max(2, config.width // 2), len(EXPERTS), config.bfloat16)
        self.network = nn.ModuleList([gating, *experts]).to(run.device, run.dtype)
        self.training = Training(self.network, config.learning_rate, config.iterations)

    def ask(self, images: Tensor, truth: Tensor, kind: Tensor) -> tuple[Tensor, Hypotheses]:
        """The gating network's log-probabilities (B,E), and what every expert would say."""
        gating, *experts = self.network
        config = self.config
        parts = []
        for number, (shape, expert) in enumerate(zip(EXPERTS, experts, strict=True)):
            points, _ = expert(images)
            sets = draw_sets(points.new_zeros(points.shape[:2]), shape.size, config.hypotheses)
            found = consensus(shape, points, sets, config.threshold, config.beta)
            error = shape.error(found.model, truth[:, None])
            right = (kind == number)[:, None]
            loss = torch.where(right, bounded(error, config.scale), config.scale)
            parts.append(
                Hypotheses(found.score, loss, torch.where(right, SIDE * error, torch.inf), found.model, points)
            )
        return gating(images).log_softmax(-1), Hypotheses(*(torch.stack(each, 1) for each in zip(*parts, strict=True)))

    def loss(self, log_gate: Tensor, said: Hypotheses, kind: Tensor, step: int) -> Tensor:
        """What this method minimises (B,)."""
        config = self.config
        if self.method == "separate" or (self.method == "esac" and step < config.alone):
            own = torch.arange(len(kind), device=kind.device), kind
            return expected_loss(said.score[own], said.loss[own], config.alpha) - log_gate[own]
        return esac_loss(log_gate, said.score, said.loss, config.pools, config.alpha)

    def learn(self, step: int, images: Tensor, truth: Tensor, kind: Tensor) -> tuple[float, Tensor, Tensor]:
        """One step: the mean loss; of what was fitted before, errors (B,) in pixels and the experts asked (B,)."""
        with self.training.timed():
            log_gate, said = self.ask(images, truth, kind)
            loss = self.loss(log_gate, said, kind, step).mean()
            self.training.step(loss)
        expert, best = choose(log_gate.detach(), said.score.detach(), self.usual)
        return loss.item(), said.error.detach()[torch.arange(len(kind), device=kind.device), expert, best], expert

    @property
    def usual(self) -> Choice:
        """How this method is meant to choose."""
        return "hard" if self.method == "separate" else "mixture"


def draw_experts(log_gate: Tensor, count: int) -> Tensor:
    """`count` independent draws (B,count) int64 of an expert with log-probabilities (B,E)."""
    return torch.multinomial(log_gate.detach().exp(), count, replacement=True)


def esac_loss(log_gate: Tensor, score: Tensor, loss: Tensor, pools: int, alpha: float) -> Tensor:
    """Expected loss (B,) of a softmax choice among hypotheses of drawn experts, differentiable in log_gate as well.

    log_gate (B,E); score, loss (B,E,H): of each expert's hypotheses. The H numbers are split into pools; in each pool
    the expert who makes hypothesis j is drawn, and the expected loss of the choice among them is one draw of
    `score_function_loss`. The gradient's mean is that of the mean over all draws.
    """
    B, _, H = score.shape
    expert = draw_experts(log_gate, H)
    drawn = [values.gather(1, expert[:, None])[:, 0].reshape(B * pools, -1) for values in (score, loss)]
    log_probability = log_gate.gather(1, expert).view(B, pools, -1).sum(-1)
    return score_function_loss(expected_loss(drawn[0], drawn[1], alpha).view(B, pools), log_probability)


def choose(log_gate: Tensor, score: Tensor, how: Choice) -> tuple[Tensor, Tensor]:
    """The expert (B,) and the number (B,) of its hypothesis with the best score (B,E,H), of those that are asked for.

    H hypotheses for each image: "mixture" draws the expert of each from log_gate (B,E), "even" asks each expert for
    H / E, "hard" asks the likelier one for all.
    """
    B, E, H = score.shape
    if how == "mixture":
        expert = draw_experts(log_gate, H)
    elif how == "even":
        expert = (torch.arange(H, device=score.device) % E).expand(B, -1)
    else:
        expert = log_gate.argmax(1, keepdim=True).expand(-1, H)
    best = score.gather(1, expert[:, None])[:, 0].argmax(1)
    return expert.gather(1, best[:, None])[:, 0], best


@experiment("expert_selection")
def main(run: Run, config: Config) -> dict:
    """Train the methods side by side and test them."""
    learners = {method: Learner(method, config, run) for method in config.methods}

    def learn(step: int, generator: torch.Generator) -> dict[str, float]:
        images, truth, kind = _on(run, shape_images(config.batch, generator))
        columns: dict[str, float] = {}
        for method, learner in learners.items():
            loss, error, expert = learner.learn(step, images, truth, kind)
            columns[f"{method}_loss"] = loss
            columns[f"{method}_right_expert"] = (expert == kind).double().mean().item()
            columns[f"{method}_correct"] = (error < config.correct_px).double().mean().item()
        return columns

    columns = side_by_side(run, config, {method: each.training for method, each in learners.items()}, learn)
    errors = test(config, run, learners)
    return run.finish(
        converged=errors[f"{config.methods[0]}_correct"] >= config.wanted,
        goal=f"{config.methods[0]}: at least {config.wanted:.0%} of unseen images correct",
        iterations=config.iterations,
        loss=columns[f"{config.methods[0]}_loss"],
        errors=errors,
        note=f"correct: the right kind of model, off by less than {config.correct_px:g} px at most, "
        f"of {config.test_images} images",
        picture="examples",
    )


def _on(run: Run, data: ToyImages) -> tuple[Tensor, Tensor, Tensor]:
    """Images, true shapes and the experts to ask, where the run computes."""
    return (
        data.images.to(run.device, run.dtype),
        data.shape.to(run.device, run.dtype),
        data.is_circle.to(run.device, torch.int64),
    )


@torch.no_grad()
def test(config: Config, run: Run, learners: dict[Method, Learner]) -> dict[str, float]:
    """Shares of right experts and of correct models on unseen images; draws the figures."""
    ways: tuple[Choice, ...] = ("mixture", "even", "hard")
    shares: dict[str, list[Tensor]] = {}
    rows: dict[str, list[Shown]] = {}
    generator = torch.Generator().manual_seed(TEST_SEED)
    for start in range(0, config.test_images, 100):
        images, truth, kind = _on(run, shape_images(min(100, config.test_images - start), generator))
        at = torch.arange(len(kind), device=kind.device)
        for method, learner in learners.items():
            learner.network.eval()
            log_gate, said = learner.ask(images, truth, kind)
            for how in ways:
                expert, best = believed = choose(log_gate, said.score, how)
                error = said.error[at, expert, best]
                name = method if how == learner.usual else f"{method}_{how}"
                shares.setdefault(f"{name}_right_expert", []).append(expert == kind)
                shares.setdefault(f"{name}_correct", []).append(error < config.correct_px)
                if how == learner.usual and method not in rows:
                    rows[method] = shown(config, log_gate, said, images, truth, kind, believed)
    run.figure("examples", config.iterations, panels(rows), final=True)
    titles = {"share of right experts": "right_expert", "share of correct models": "correct"}
    drawn = by_method(run.recorded().metrics, learners, titles)
    run.figure("curves", config.iterations, curves(drawn, window=max(1, config.iterations // 20)), final=True)
    found = {name: torch.cat(parts).double().mean().item() for name, parts in shares.items()}
    return found | {f"{method}_seconds": learner.training.seconds for method, learner in learners.items()}


def shown(
    config: Config,
    log_gate: Tensor,
    said: Hypotheses,
    images: Tensor,
    truth: Tensor,
    kind: Tensor,
    believed: tuple[Tensor, Tensor],
) -> list[Shown]:
    """Panels of the first images, each with the points and hypotheses of the expert who was believed."""
    found = []
    for i in range(min(6, len(images))):
        e, j = (int(chosen[i]) for chosen in believed)
        model = said.model[i, e, j]
        near = EXPERTS[e].distance(model, said.points[i, e]) < config.threshold
        off, gate = said.error[i, e, j].item(), log_gate[i].exp()
        found.append(
            Shown(
                images[i],
                estimate=outline(model, e == 1),
                truth=outline(truth[i], bool(kind[i])),
                correct=off < config.correct_px,
                title=f"circle {gate[1]:.0%}, " + (f"off by {off:.1f} px" if e == kind[i] else "wrong kind"),
                points=said.points[i, e],
                agreement=near,
                hypotheses=[outline(m, e == 1) for m in said.model[i, e]],
                likely=(config.alpha * said.score[i, e]).softmax(0),
            )
        )
    return found


if __name__ == "__main__":
    main(cli(__doc__, PRESETS))
