"""4x4 sudoku without being told the rules: a quadratic program that learns its constraints, against a network.

Both see puzzles and their solutions, one-hot, and learn from the mean squared error alone, with the same steps on the
same puzzles (Amos and Kolter, OptNet, ICML 2017, arXiv 1703.00443, section 4.4). Boards that are held out are
never seen; all others are, but not with the same clues.

- optnet: z minimises penalty/2 |z|^2 - given . z subject to A z = A z0, z >= 0. A and log z0 are learned; z0 > 0
  satisfies all constraints, so that there is always a solution. A starts with random orthonormal rows, as many as the
  rules have independent ones, and z0 at 1/4: each digit as likely as any. The penalty falls while it learns, because
  the small one that decides boards hides what is to be learned: `falling_penalty` says how.
- network: convolutions over the board and a softmax over the digits of a cell.

Both answer with each cell's largest entry; a board is right if all 16 cells are. `rules_residual` says how much of the
rules is missing in A: the part of their equations that does not follow from A z = A z0, 0 to 1.

Presets:

- default: Trains the quadratic program beside the network on 9,000 puzzles.
- smoke: Takes 60 steps on 500 puzzles, to see that everything works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from datasets.made.sudoku import Puzzles, all_boards, rules, sudoku_puzzles
from experiments.drawing.figures import BLUE, GREY, ORANGE, array
from experiments.drawing.shapes import by_method, curves
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from experiments.running.training import Training, TrainingConfig, side_by_side
from geometry import quadratic_program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST_SEED = 2**31
"""Of the test puzzles and of which boards are held out; training puzzles have the run's seed, taken to be another."""

Method = Literal["optnet", "network"]


@dataclass(frozen=True)
class Config(TrainingConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts(
            "with --methods optnet",
            ("learning_rate", "rows", "penalty", "first_penalty"),
            lambda config: "optnet" in config.methods,
        ),
        Acts(
            "with --methods network",
            ("network_rate", "width", "depth"),
            lambda config: "network" in config.methods,
        ),
    )

    methods: tuple[Method, ...] = ("optnet", "network")
    """Lists the methods to train side by side, on the same puzzles."""
    batch: int = 50
    """Sets the number of puzzles a step."""
    puzzles: int = 9000
    """Sets the number of puzzles to train on; there are 288 boards, but many puzzles of each."""
    clues: tuple[int, int] = (4, 8)
    """Sets the fewest and the most cells that are given."""
    held_out: int = 72
    """Sets the number of boards that no training puzzle has."""
    learning_rate: float = 3e-2
    """Sets the highest rate of the one-cycle schedule of optnet's AdamW."""
    rows: int = 40
    """Sets the number of equations of optnet; the rules have 40 independent ones."""
    penalty: float = 0.1
    """Sets the curvature of optnet's cost at the end of the training, and for the answers."""
    first_penalty: float = 1.0
    """Sets that curvature at the first step of the training."""
    network_rate: float = 1e-2
    """Sets for the network what learning_rate sets for optnet."""
    width: int = 64
    """Sets the number of channels of the network."""
    depth: int = 3
    """Sets the number of its hidden layers."""
    test_every: int = 20
    """Sets how many steps lie between tests on a few unseen boards, for the curves."""
    watched: int = 200
    """Sets the number of puzzles of these tests."""
    test_puzzles: int = 1000
    """Sets how many puzzles of held-out boards, and as many of others, the final test has; they are the same for all
    seeds."""
    wanted: float = 0.9
    """Sets the goal: the share of test puzzles of held-out boards that the first method must solve."""


PRESETS = {
    "default": Config(preset="default", log_every=50),
    "smoke": Config(
        preset="smoke", iterations=60, batch=16, puzzles=500, test_every=20, watched=30, test_puzzles=100, width=8,
        clues=(6, 8), log_every=20, wanted=0.01,
    ),
}  # fmt: skip


class OptNet(nn.Module):
    """Puzzles (B,4,4,4) to boards (B,4,4,4): the minimiser of a quadratic program with learned equality constraints."""

    def __init__(self, rows: int, penalty: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.linalg.qr(torch.randn(64, rows))[0].mT.contiguous())
        self.log_z0 = nn.Parameter(torch.full((64,), 0.25).log())
        self.penalty = self.training_penalty = penalty

    def forward(self, given: Tensor) -> Tensor:
        penalty = self.training_penalty if self.training else self.penalty
        return solved(given, self.A, self.A @ self.log_z0.exp(), penalty)

    @torch.no_grad()
    def rules_residual(self) -> float:
        """Share of the rules' equations [R 1] outside of the row space of [A b], in the Frobenius norm."""
        R = rules(self.A.dtype).to(self.A.device)
        wanted = torch.cat([R, torch.ones_like(R[:, :1])], 1)
        learned = torch.cat([self.A, (self.A @ self.log_z0.exp())[:, None]], 1)
        basis = torch.linalg.qr(learned.mT)[0]
        return ((wanted - wanted @ basis @ basis.mT).norm() / wanted.norm()).item()


def solved(given: Tensor, A: Tensor, b: Tensor, penalty: float) -> Tensor:
    """argmin over z >= 0 with A z = b of penalty/2 |z|^2 - given . z: (B,4,4,4), of given (B,4,4,4), A (q,64), b (q,).

    A puzzle whose program fails (quadratic_program says when) has gradient zero.
    """
    identity = torch.eye(64, dtype=given.dtype, device=given.device)[None]
    none = torch.zeros_like(identity[0, :1])
    found = quadratic_program(penalty * identity, -given.flatten(1), -identity, none, A[None], b[None])
    return found.x.view_as(given)


def falling_penalty(config: Config, step: int) -> float:
    """Curvature at a step of the training: `first_penalty` to `penalty` by equal ratios, over 4/5 of the iterations.

    A row of A that is orthogonal to all of the rules takes the place of one of them, and the loss is stationary in its
    turning there: how long it takes to leave depends on rounding. With little curvature minima are corners, whose
    derivatives say what one corner does; their noise outweighs the slope near such a row. With more curvature minima
    lie on faces and the slope is seen: no row is left there after a few dozen steps.
    """
    left = max(0.0, 1 - step / (0.8 * config.iterations))
    return config.penalty * (config.first_penalty / config.penalty) ** left


class Network(nn.Module):
    """Puzzles (B,4,4,4) to boards (B,4,4,4): 3x3 convolutions, and a softmax for each cell."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in [4] + [width] * (depth - 1):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 4, 1))

    def forward(self, given: Tensor) -> Tensor:
        return self.layers(given.permute(0, 3, 1, 2)).softmax(1).permute(0, 2, 3, 1)


def right(boards: Tensor, puzzles: Puzzles) -> Tensor:
    """Which of the boards (B,4,4,4) have the largest entry of every cell at the solution's digit. (B,) bool."""
    return (boards.argmax(-1) == puzzles.solution.argmax(-1)).flatten(1).all(1)


@experiment("sudoku")
def main(run: Run, config: Config) -> dict:
    """Train the methods side by side and test them."""
    boards = all_boards()
    boards = boards[torch.randperm(len(boards), generator=torch.Generator().manual_seed(TEST_SEED))]
    unseen, seen = boards[: config.held_out], boards[config.held_out :]
    training = puzzles_of(config, run, config.puzzles, config.seed, seen)
    watched = puzzles_of(config, run, config.watched, TEST_SEED, unseen)
    learners: dict[str, Training] = {method: learner(method, config, run) for method in config.methods}

    def one_step(step: int, _: torch.Generator) -> dict[str, float]:
        columns: dict[str, float] = {}
        drawn = torch.randint(config.puzzles, (config.batch,))
        batch = Puzzles(*(part[drawn] for part in training))
        test_now = step % config.test_every == 0 or step + 1 == config.iterations
        for method, each in learners.items():
            if isinstance(each.network, OptNet):
                each.network.training_penalty = falling_penalty(config, step)
            if test_now:
                columns[f"{method}_test_right"] = share_right(each.network, watched)
            columns[f"{method}_loss"], columns[f"{method}_right"] = learn(each, batch)
            if isinstance(each.network, OptNet):
                columns["rules_residual"] = each.network.rules_residual()
        return columns

    columns = side_by_side(run, config, learners, one_step)
    final = {
        where: puzzles_of(config, run, config.test_puzzles, TEST_SEED + 1, those)
        for where, those in (("unseen", unseen), ("seen", seen))
    }
    errors = {
        f"{method}_{where}_right": share_right(each.network, puzzles)
        for method, each in learners.items()
        for where, puzzles in final.items()
    }
    R = rules(run.dtype).to(run.device)
    told = solved(final["unseen"].given, R, torch.ones_like(R[:, 0]), config.penalty)
    errors["rules_unseen_right"] = right(told, final["unseen"]).double().mean().item()
    errors |= {name: columns[name] for name in ("rules_residual",) if name in columns}
    errors |= {f"{method}_seconds": each.seconds for method, each in learners.items()}
    draw(config, run, learners, final["unseen"])
    return run.finish(
        converged=errors[f"{config.methods[0]}_unseen_right"] >= config.wanted,
        goal=f"{config.methods[0]}: at least {config.wanted:.0%} of unseen boards right",
        iterations=config.iterations,
        loss=columns[f"{config.methods[0]}_loss"],
        errors=errors,
        note="right: share of puzzles with all 16 cells right, of boards that no training puzzle has (unseen) and "
        "of the others (seen); rules_unseen_right: of the same program told the rules",
        picture="boards",
    )


def puzzles_of(config: Config, run: Run, count: int, seed: int, boards: Tensor) -> Puzzles:
    """Puzzles of some of the boards, where the run computes."""
    made = sudoku_puzzles(count, torch.Generator().manual_seed(seed), boards, config.clues, run.dtype)
    return Puzzles(*(part.to(run.device) for part in made))


def learner(method: Method, config: Config, run: Run) -> Training:
    """A method's network at its start, and how it is trained."""
    network = OptNet(config.rows, config.penalty) if method == "optnet" else Network(config.width, config.depth)
    rate = config.learning_rate if method == "optnet" else config.network_rate
    return Training(network.to(run.device, run.dtype), rate, config.iterations)


def learn(training: Training, puzzles: Puzzles) -> tuple[float, float]:
    """One step: the mean squared error, and the share of right boards before it."""
    with training.timed():
        training.network.train()
        boards = training.network(puzzles.given)
        loss = (boards - puzzles.solution).square().mean()
        training.step(loss)
    return loss.item(), right(boards, puzzles).double().mean().item()


@torch.no_grad()
def share_right(network: nn.Module, puzzles: Puzzles) -> float:
    """Share of puzzles that the network solves."""
    network.eval()
    return right(network(puzzles.given), puzzles).double().mean().item()


# ---- figures ----


@torch.no_grad()
def draw(config: Config, run: Run, learners: Mapping[str, Training], puzzles: Puzzles) -> None:
    """Learning curves, and what the methods make of the first puzzles."""
    metrics = run.recorded().metrics
    lines = by_method(metrics, learners, {"share of right unseen boards": "test_right", "training loss": "loss"})
    if "optnet" in learners:
        lines["rules missing in A"] = {"optnet": metrics["rules_residual"]}
    run.figure("curves", config.iterations, curves(lines, window=1), final=True)
    some = Puzzles(*(part[:6] for part in puzzles))
    answers: dict[str, Tensor] = {method: each.network.eval()(some.given) for method, each in learners.items()}
    run.figure("boards", config.iterations, boards_figure(some, answers), final=True)


def boards_figure(puzzles: Puzzles, answers: Mapping[str, Tensor]) -> Figure:
    """A row of puzzles, one of each method's answers (B,4,4,4), and one of solutions; wrong digits in orange.

    Digits are 1 to 4, given ones grey. A digit's opacity is its entry's share of the cell.
    """
    from matplotlib.figure import Figure

    rows = {"puzzle": puzzles.given, **answers, "solution": puzzles.solution}
    across = len(puzzles.given)
    figure = Figure(figsize=(1.35 * across + 0.5, 1.5 * len(rows)), layout="constrained")
    for (name, values), line in zip(rows.items(), figure.subplots(len(rows), across, squeeze=False), strict=True):
        for k, axes in enumerate(line):
            axes.set(xlim=(0, 4), ylim=(4, 0), xticks=[], yticks=[], aspect="equal")
            for at in range(1, 4):
                thick = 1.6 if at == 2 else 0.5
                axes.axhline(at, color="black", linewidth=thick)
                axes.axvline(at, color="black", linewidth=thick)
            cells, given, truth = array(values[k]).clip(0), array(puzzles.given[k]), array(puzzles.solution[k])
            wrong = 0
            for i in range(4):
                for j in range(4):
                    if not cells[i, j].any():
                        continue
                    digit, known = cells[i, j].argmax(), given[i, j].any()
                    missed = digit != truth[i, j].argmax()
                    wrong += missed
                    color = ORANGE if missed else GREY if known else BLUE
                    sure = 0.35 + 0.65 * cells[i, j, digit] / cells[i, j].sum()
                    axes.text(
                        j + 0.5, i + 0.54, str(digit + 1), color=color, alpha=sure, ha="center", va="center",
                        fontsize=13, fontweight="bold" if known or missed else "normal",
                    )  # fmt: skip
            if name in answers:
                axes.set_title(f"{wrong} wrong" if wrong else "right", fontsize=8, pad=3)
            elif name == "puzzle":
                axes.set_title(f"{int(puzzles.clues[k])} clues", fontsize=8, pad=3)
        line[0].set_ylabel(name)
    return figure


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
