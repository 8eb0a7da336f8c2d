"""Which model to fit, learned with how to fit it: the toy problem of expert sample consensus (ESAC).

An image shows a line or a circle, and nobody says which. Two experts each predict 64 points, one for lines through
them, one for circles; a gating network says how likely each expert is the one to ask. Hypotheses are drawn from that
mixture, and the one with the best consensus wins (Brachmann and Rother, ICCV 2019, arXiv 1908.02484).

As published, all three learn apart first: a classifier from labels, each expert from images of its own kind. What that
gives is `begun`; two copies of it go on, at a small rate:

- esac: all three together, from how far the chosen model is off, where a wrong kind counts as far off, and nothing
  else. The gating network's gradient is that of the drawn experts' log-probability.
- separate: apart, as before, so that it has had as many steps as esac; the classifier alone chooses.

Unseen images are fitted four times with the networks of each: hypotheses drawn from the gating network's mixture, drawn
evenly (`even`), all from the likelier expert (`hard`), and all from the right one (`told`), which no choice can beat.

Presets:

- default: Trains for 400 steps, of which 300 are apart.
- paper: Trains for 1,000 steps, of which 700 are apart.
- ambiguous: Lets the gating network see mean colours alone: a picture does not say which expert to ask.
- smoke: Takes 100 steps of small networks, to see that everything works.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from datasets.made.toy_images import SIDE, ToyImages, shape_images
from experiments.drawing.shapes import Shown, by_method, curves, outline, panels
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from experiments.running.training import Training, side_by_side
from experiments.toys.config import ConsensusConfig
from experiments.toys.networks import ImageNetwork, PointNetwork
from experiments.toys.shapes import CIRCLE, LINE, bounded, consensus
from geometry import draw_sets, expected_loss, score_function_loss

Method = Literal["esac", "separate"]
Stage = Literal["begun", "esac", "separate"]
Choice = Literal["mixture", "even", "hard"]
EXPERTS = (LINE, CIRCLE)
"""Expert 0 fits lines, expert 1 circles."""
TEST_SEED = 2**31
"""Of the test images, plus the run's seed, which training images have and which is taken to be smaller."""


@dataclass(frozen=True)
class Config(ConsensusConfig):
    methods: tuple[Method, ...] = ("esac", "separate")
    """Lists what goes on from where learning apart ended, side by side, on the same images."""
    alone: int = 300
    """Sets in how many of all steps the networks learn apart: their rate goes through its whole cycle."""
    together_rate: float = 1e-3
    """Sets the highest rate of the cycle of the steps that follow."""
    blocks: int = 1
    """Sets the pixels along the sides of blocks whose mean colours are all that the gating network sees; 1 shows it the
    image itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alone < self.iterations:
            raise ValueError(f"alone must be 0 or more and below iterations {self.iterations}, got {self.alone}")
        if self.blocks < 1 or SIDE % self.blocks:
            raise ValueError(f"blocks must divide the {SIDE} pixels of a side, got {self.blocks}")


PRESETS = {
    "default": Config(preset="default", dtype="float32", log_every=100),
    "paper": Config(preset="paper", dtype="float32", iterations=1000, alone=700, log_every=200),
    # what the method was made for, in small: a picture does not say which expert to ask (there, rooms that look alike)
    "ambiguous": Config(preset="ambiguous", dtype="float32", iterations=1000, alone=700, blocks=32, log_every=200),
    "smoke": Config(
        preset="smoke", dtype="float32", iterations=100, alone=60, batch=16, width=8, test_images=200, hypotheses=32,
        log_every=20,
    ),
}  # fmt: skip


class Hypotheses(NamedTuple):
    """Of E experts, H each: scores, losses, errors in pixels (B,E,H), models (B,E,H,3), points (B,E,N,2)."""

    score: Tensor
    loss: Tensor
    error: Tensor
    model: Tensor
    points: Tensor


class Told(NamedTuple):
    """Of a step: the mean loss; of what was fitted before it, the experts asked (B,) and errors (B,) in pixels."""

    loss: float
    expert: Tensor
    error: Tensor


class Learner:
    """A gating network, half as wide as its experts, and how they are trained."""

    def __init__(self, stage: Stage, config: Config, run: Run) -> None:
        self.stage, self.config = stage, config
        experts = [PointNetwork(config.width, config.reach, bfloat16=config.bfloat16) for _ in EXPERTS]
        gating = ImageNetwork(max(2, config.width // 2), len(EXPERTS), config.bfloat16)
        self.network = nn.ModuleList([gating, *experts]).to(run.device, run.dtype)
        rate, steps = config.learning_rate, config.alone
        if stage != "begun":
            rate, steps = config.together_rate, config.iterations - config.alone
        self.training = Training(self.network, rate, steps)

    @property
    def usual(self) -> Choice:
        """How these networks are meant to choose."""
        return "mixture" if self.stage == "esac" else "hard"

    def gate(self, images: Tensor) -> Tensor:
        """Log-probabilities (B,E) of the experts."""
        gating, block = self.network[0], self.config.blocks
        if block > 1:
            images = nn.functional.avg_pool2d(images, block)
            images = images.repeat_interleave(block, 2).repeat_interleave(block, 3)
        told: Tensor = gating(images).log_softmax(-1)
        return told

    def ask(self, number: int, images: Tensor, truth: Tensor, right: Tensor) -> Hypotheses:
        """What one expert would say (B,H): of images that it is right for, or not (B,), which then is far off."""
        config, shape = self.config, EXPERTS[number]
        points, _ = self.network[1 + number](images)
        sets = draw_sets(points.new_zeros(points.shape[:2]), shape.size, config.hypotheses)
        found = consensus(shape, points, sets, config.threshold, config.beta)
        error = shape.error(found.model, truth[:, None])
        loss = torch.where(right[:, None], bounded(error, config.scale), config.scale)
        error = torch.where(right[:, None], SIDE * error, torch.inf)
        return Hypotheses(found.score, loss, error, found.model, points)

    def ask_all(self, images: Tensor, truth: Tensor, kind: Tensor) -> Hypotheses:
        """What every expert would say (B,E,H)."""
        said = [self.ask(number, images, truth, kind == number) for number in range(len(EXPERTS))]
        return Hypotheses(*(torch.stack(each, 1) for each in zip(*said, strict=True)))

    def apart(self, images: Tensor, truth: Tensor, kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss () of networks that learn apart, each expert on its own images; experts (B,) and errors (B,)."""
        log_gate = self.gate(images)
        loss, expert = nn.functional.nll_loss(log_gate, kind), log_gate.argmax(1)
        error = loss.new_full((len(kind),), torch.inf)
        for number in range(len(EXPERTS)):
            mine = kind == number
            if not mine.any():
                continue
            said = self.ask(number, images[mine], truth[mine], mine[mine])
            loss = loss + expected_loss(said.score, said.loss, self.config.alpha).sum() / len(kind)
            best = said.error.gather(1, said.score.argmax(1, keepdim=True))[:, 0]
            error[mine] = torch.where(expert[mine] == number, best.detach(), torch.inf)
        return loss, expert, error

    def together(self, images: Tensor, truth: Tensor, kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same where all learn from which model is chosen."""
        log_gate, said = self.gate(images), self.ask_all(images, truth, kind)
        loss = esac_loss(log_gate, said.score, said.loss, self.config.pools, self.config.alpha).mean()
        expert, best = choose(log_gate.detach(), said.score.detach(), self.usual)
        return loss, expert, said.error.detach()[torch.arange(len(kind), device=kind.device), expert, best]

    def learn(self, images: Tensor, truth: Tensor, kind: Tensor) -> Told:
        """One step."""
        with self.training.timed():
            how = self.together if self.stage == "esac" else self.apart
            loss, expert, error = how(images, truth, kind)
            self.training.step(loss)
        return Told(loss.item(), expert, error)


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
    """Train the networks apart, go on side by side, and test what each method ends with."""
    stages: tuple[Stage, ...] = (*config.methods, "begun")
    learners = {stage: Learner(stage, config, run) for stage in stages}
    begun = learners["begun"]

    def learn(step: int, generator: torch.Generator) -> dict[str, float]:
        data = _on(run, shape_images(config.batch, generator))
        kind = data[-1]
        if step < config.alone:
            told = dict.fromkeys(config.methods, begun.learn(*data))
        else:
            if step == config.alone:
                for method in config.methods:
                    learners[method].network.load_state_dict(begun.network.state_dict())
            told = {method: learners[method].learn(*data) for method in config.methods}
        columns: dict[str, float] = {}
        for method, (loss, expert, error) in told.items():
            columns[f"{method}_loss"] = loss
            columns[f"{method}_right_expert"] = (expert == kind).double().mean().item()
            columns[f"{method}_correct"] = (error < config.correct_px).double().mean().item()
        return columns

    trainings: dict[str, Training] = {stage: learner.training for stage, learner in learners.items()}
    columns = side_by_side(run, config, trainings, learn)
    errors = test(config, run, learners)
    first, *others = stages
    return run.finish(
        converged=all(errors[f"{first}_correct"] > errors[f"{other}_correct"] for other in others),
        goal=f"{first}: a larger share of unseen images correct than {' and '.join(others)}",
        iterations=config.iterations,
        loss=columns[f"{first}_loss"],
        errors=errors,
        note=f"correct: the right kind of model, off by less than {config.correct_px:g} px at most, "
        f"of {config.test_images} unseen images",
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
def test(config: Config, run: Run, learners: dict[Stage, Learner]) -> dict[str, float]:
    """Shares of right experts and of correct models on unseen images; draws the figures."""
    ways: tuple[Choice, ...] = ("mixture", "even", "hard")
    shares: dict[str, list[Tensor]] = {}
    rows: dict[str, list[Shown]] = {}
    generator = torch.Generator().manual_seed(TEST_SEED + config.seed)
    for start in range(0, config.test_images, 100):
        images, truth, kind = _on(run, shape_images(min(100, config.test_images - start), generator))
        at = torch.arange(len(kind), device=kind.device)
        for method, learner in learners.items():
            learner.network.eval()
            log_gate, said = learner.gate(images), learner.ask_all(images, truth, kind)
            believed: dict[str, tuple[Tensor, Tensor]] = {how: choose(log_gate, said.score, how) for how in ways}
            believed["told"] = choose(nn.functional.one_hot(kind, len(EXPERTS)), said.score, "hard")
            for how, (expert, best) in believed.items():
                error = said.error[at, expert, best]
                name = method if how == learner.usual else f"{method}_{how}"
                shares.setdefault(f"{name}_right_expert", []).append(expert == kind)
                shares.setdefault(f"{name}_correct", []).append(error < config.correct_px)
            if method not in rows:
                rows[method] = shown(config, log_gate, said, images, truth, kind, believed[learner.usual])
    run.figure("examples", config.iterations, panels(rows), final=True)
    titles = {"share of right experts": "right_expert", "share of correct models": "correct"}
    drawn = by_method(run.recorded().metrics, config.methods, titles)
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
    command(main, __doc__, PRESETS)
