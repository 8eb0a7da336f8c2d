"""Camera poses from 2D-3D matches most of which may be wrong: which matches to draw, learned in three ways.

A network sees the matches of an image, each with its descriptors' ratio, and says how likely each is right; RANSAC
draws by that (`candidates` of `geometry.pnp_ransac`). All methods have the same network and see the same problems.

- sampling: the network is told nothing but how far off the pose is that sample consensus ends with, which is not
  differentiable: score-function gradient of the drawn sets (Brachmann and Rother, ICCV 2019, arXiv 1905.04132).
- weights: likelihoods multiply the residuals of a robust PnP; the error of its pose goes back through the minimum.
- classify: cross-entropy with the labels right and wrong, which the other two do not see.

Not learned: `ratio`, the odds (1 - ratio)^2 that experiments.pose_estimation has; `uniform` odds; `labels`, the right
matches alone. What is likely right is not yet what is best drawn: `_sharp` are the same odds to the one of POWERS with
which RANSAC of the fewest hypotheses does best on problems set aside, the ratio's as well as the learned ones.
Training is on synthetic problems. Tests: unseen ones with 10 to 90 % wrong, by limit of hypotheses, and with the preset
`real`, the matches of a box in a video, against RANSAC with a limit of 100,000. No network saw those, but how synthetic
ratios are distributed was chosen with an eye on the box. It matters: where no wrong match looks as sure as a right one
(`deceptive` = 0 in make_matches), a sharp enough ratio is as good as learning.

Presets:

- default: Trains on synthetic problems and tests on unseen ones.
- real: Trains on synthetic problems and tests on the matches of a box in a video as well.
- smoke: Takes 60 steps of a small network, to see that everything works.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from datasets import locate
from datasets.images.matches import read_box_matches
from experiments.drawing.shapes import by_method, curves
from experiments.drawing.success import over
from experiments.records.files import write_json, write_text
from experiments.records.text import table
from experiments.running.mistyped import check_names
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from experiments.running.training import Training, TrainingConfig, side_by_side
from experiments.toys.correspondences import Matches, MatchNetwork, box_matches, consensus, make_matches, pose_error
from experiments.toys.shapes import bounded
from geometry import draw_sets, geman_mcclure, pnp, pnp_ransac, score_function_loss, se3, set_log_probability

TEST_SEED = 2**31
"""Of the test problems, plus twice the run's seed, and the next of those set aside; training problems have the run's
seed, taken to be smaller."""
POWERS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of odds, to choose from."""

Method = Literal["sampling", "weights", "classify"]


@dataclass(frozen=True)
class Config(TrainingConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts("with --methods sampling", ("pools", "sets"), lambda config: "sampling" in config.methods),
        Acts("with --methods weights", ("start", "kernel"), lambda config: "weights" in config.methods),
        Acts(
            "with --matches",
            ("image_size", "focal", "long", "repeats", "real_budgets", "real_success"),
            lambda config: config.matches is not None,
        ),
    )
    names_data: ClassVar[tuple[str, ...]] = ("matches",)

    methods: tuple[Method, ...] = ("sampling", "weights", "classify")
    """Lists the methods to train side by side, on the same problems."""
    width: int = 32
    """Sets the number of channels of the network."""
    points: int = 100
    """Sets the number of matches of a problem."""
    noise: float = 1.0
    """Sets the standard deviation of right pixels."""
    threshold: float = 4.0
    """Sets the largest error of an inlier in pixels."""
    pools: int = 16
    """Sets how many poses a problem the method sampling draws in a step; their losses are each other's baseline."""
    sets: int = 4
    """Sets how many minimal sets compete for each of them."""
    start: int = 64
    """Sets the hypotheses of the RANSAC from which PnP starts in the method weights."""
    kernel: float = 200.0
    """Sets the pixels at which the robust kernel of the method weights gives up. At 20 it leaves hardly anything to
    learn."""
    scale: float = 0.1
    """Sets the radians, or parts of the distance, beyond which a larger error hardly counts in the loss."""
    budgets: tuple[int, ...] = (16, 64, 256)
    """Lists the limits of RANSAC's hypotheses in the test."""
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Lists the shares of wrong matches in the test."""
    test_problems: int = 200
    """Sets the unseen problems of each share, others for every seed, so that what seeds differ by includes what
    problems do."""
    success: tuple[float, float] = (2.0, 0.02)
    """Sets within how many degrees and parts of the distance a pose is right."""
    rival: str = "ratio_sharp"
    """Names the odds that those of the first method must beat with the fewest hypotheses, to have converged."""
    matches: Path | None = None
    """Names a file or folder of real matches (datasets/images/matches.py); `box_pnp` is found in the shared data."""
    image_size: tuple[int, int] = (640, 480)
    """Gives the width and height of the images of `matches`."""
    focal: float = 622.0
    """Gives their focal length in pixels, as experiments.pose_estimation finds it."""
    long: int = 100_000
    """Sets the hypotheses of the search that others are compared with on real frames."""
    repeats: int = 20
    """Sets the number of searches of each real frame."""
    real_budgets: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Lists the limits of RANSAC's hypotheses on real frames."""
    real_success: tuple[float, float] = (1.0, 0.01)
    """Sets what success sets for real frames, whose own fit is less certain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        odds = [f"{name}{sharp}" for name in (*self.methods, "ratio") for sharp in ("", "_sharp")]
        check_names("rival", [self.rival], [*odds, "uniform", "labels"])


PRESETS = {
    "default": Config(preset="default", dtype="float32", log_every=50),
    "real": Config(preset="real", dtype="float32", log_every=50, matches=Path("box_pnp")),
    "smoke": Config(
        preset="smoke", dtype="float32", iterations=60, batch=16, width=16, points=60, pools=8, log_every=20,
        budgets=(16,), shares=(0.3, 0.6, 0.8), test_problems=50, rival="uniform",
    ),
}  # fmt: skip


# ---- learning ----


class Learner:
    """One method, its network and how it is trained."""

    def __init__(self, method: Method, config: Config, run: Run) -> None:
        self.method, self.config = method, config
        self.network = MatchNetwork(config.width).to(run.device, run.dtype)
        self.training = Training(self.network, config.learning_rate, config.iterations)

    def logits(self, matches: Matches) -> Tensor:
        """Of each match being right (B,N)."""
        return self.network(matches.points2d, matches.points3d, matches.ratio, matches.mask)

    def loss(self, matches: Matches, logits: Tensor) -> Tensor:
        """What this method minimises (B,)."""
        config, truth = self.config, matches.world_to_camera_gt
        assert matches.right is not None
        assert truth is not None
        if self.method == "classify":
            labels = matches.right.to(logits.dtype)
            return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        log_weights = nn.functional.logsigmoid(logits)
        if self.method == "sampling":
            sets = draw_sets(log_weights, 3, config.pools * config.sets)
            pools = sets.unflatten(1, (config.pools, config.sets))
            with torch.no_grad():
                error = pose_error(consensus(matches, pools, config.threshold), truth[:, None].double())
                error = bounded(error, config.scale).nan_to_num(config.scale).to(logits.dtype)
            drawn = set_log_probability(log_weights, sets).view(pools.shape[:3]).sum(-1)
            return score_function_loss(error, drawn)
        points, weights = (matches.points2d, matches.points3d, matches.K), log_weights.exp()
        start = pnp_ransac(
            *points, candidates=weights.detach(), threshold=config.threshold, hypotheses=config.start, confidence=1.0
        )
        found = pnp(*points, weights=weights, init=start.x.detach(), kernel=geman_mcclure(config.kernel))
        return bounded(pose_error(found.x, truth), config.scale)

    def learn(self, matches: Matches) -> dict[str, float]:
        """One step: the mean loss, and the share of right matches among those drawn by the odds before it."""
        assert matches.right is not None
        with self.training.timed():
            logits = self.logits(matches)
            loss = self.loss(matches, logits).mean()
            self.training.step(loss)
        return {"loss": loss.item(), "right": drawn_right(logits.detach().sigmoid(), matches.right).mean().item()}


def drawn_right(odds: Tensor, right: Tensor) -> Tensor:
    """The chance (B,) that a match drawn by odds (B,N) is right."""
    return (odds * right).sum(1) / odds.sum(1).clamp_min(torch.finfo(odds.dtype).tiny)


def read_box(config: Config) -> Matches | None:
    """The real matches of the config, if it names any."""
    if config.matches is None:
        return None
    return box_matches(read_box_matches(locate.locate(str(config.matches))), config.focal, config.image_size)


@experiment("robust_pose", read_box)
def main(run: Run, config: Config, box: Matches | None) -> dict:
    """Train the methods side by side and test them."""
    learners = {method: Learner(method, config, run) for method in config.methods}

    def learn(step: int, generator: torch.Generator) -> dict[str, float]:
        shares = 0.1 + 0.8 * torch.rand(config.batch, generator=generator)
        matches = _on(run, make_matches(shares, config.points, generator, noise=config.noise))
        told = {method: learner.learn(matches) for method, learner in learners.items()}
        return {f"{method}_{key}": value for method, some in told.items() for key, value in some.items()}

    columns = side_by_side(run, config, {method: each.training for method, each in learners.items()}, learn)
    return finish(config, run, learners, columns, box)


def _on(run: Run, matches: Matches) -> Matches:
    """The same where the run computes, and as it does."""
    parts = {name: d for name, d in matches._asdict().items() if d is not None}
    return Matches(**{n: d.to(run.device, run.dtype if d.is_floating_point() else None) for n, d in parts.items()})


# ---- testing ----


def all_odds(
    learners: dict[Method, Learner], matches: Matches, powers: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Odds (B,N) float64 of each match to be drawn: of all methods, of none, and to the powers of those named."""
    odds: dict[str, Tensor] = {method: learner.logits(matches).sigmoid() for method, learner in learners.items()}
    odds["ratio"] = (1 - matches.ratio).clamp_min(0.02).square()
    odds = {name: values.double() * matches.mask for name, values in odds.items()}
    for name, power in (powers or {}).items():
        odds[f"{name}_sharp"] = (odds[name] / odds[name].amax(1, keepdim=True)) ** power
    odds["uniform"] = matches.mask.double()
    if matches.right is not None:
        odds["labels"] = (matches.right & matches.mask).double()
    return odds


@torch.no_grad()
def best_powers(config: Config, run: Run, learners: dict[Method, Learner]) -> dict[str, float]:
    """For each method and the ratio, the power that succeeds most often on problems set aside; the lowest of equals."""
    generator = torch.Generator().manual_seed(TEST_SEED + 2 * config.seed + 1)
    shares = torch.linspace(0.1, 0.9, config.test_problems)
    matches = _on(run, make_matches(shares, config.points, generator, noise=config.noise))
    fewest, powers = (min(config.budgets),), {}
    assert matches.world_to_camera_gt is not None
    for name in (*learners, "ratio"):
        success = []
        for power in POWERS:
            odds = all_odds(learners, matches, {name: power})[f"{name}_sharp"]
            success += judged(matches, matches.world_to_camera_gt, odds, fewest, config.success, config)
        powers[name] = max(zip(POWERS, success, strict=True), key=lambda pair: pair[1]["success"])[0]
    return powers


def errors_of(pose: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Angles in degrees (B,), and shifts over the distance (B,)."""
    angle = torch.rad2deg(se3.rotation_angle((pose[:, :3, :3] @ truth[:, :3, :3].mT).double()))
    return angle, (pose - truth)[:, :3, 3].norm(dim=1) / truth[:, :3, 3].norm(dim=1)


def search(config: Config, matches: Matches, odds: Tensor, budget: int) -> Tensor:
    """Poses (B,4,4) of RANSAC that draws by the odds, by no more than `budget` samples, and by no fewer."""
    generator = torch.Generator(odds.device).manual_seed(TEST_SEED)
    return pnp_ransac(
        matches.points2d, matches.points3d, matches.K, candidates=odds, mask=matches.mask, threshold=config.threshold,
        hypotheses=budget, confidence=1.0, generator=generator,
    ).x  # fmt: skip


def judged(
    matches: Matches,
    truth: Tensor,
    odds: Tensor,
    budgets: tuple[int, ...],
    success: tuple[float, float],
    config: Config,
) -> list[dict[str, Any]]:
    """Of every budget: the share of poses within `success` of the truth, and the median angle."""
    rows = []
    for budget in budgets:
        angle, shift = errors_of(search(config, matches, odds, budget), truth)
        ok = (angle < success[0]) & (shift < success[1])
        rows.append({"budget": budget, "success": ok.double().mean().item(), "median_deg": angle.median().item()})
    return rows


@torch.no_grad()
def synthetic_rows(
    config: Config, run: Run, learners: dict[Method, Learner], powers: Mapping[str, float]
) -> list[dict[str, Any]]:
    """`judged`, and the chance to draw a right match, for every odds and share of wrong ones."""
    rows = []
    for share in config.shares:
        generator = torch.Generator().manual_seed(TEST_SEED + 2 * config.seed)
        shares = torch.full((config.test_problems,), share)
        matches = _on(run, make_matches(shares, config.points, generator, noise=config.noise))
        right, truth = matches.right, matches.world_to_camera_gt
        assert right is not None
        assert truth is not None
        for name, odds in all_odds(learners, matches, powers).items():
            said = {"odds": name, "share": share, "right": drawn_right(odds, right).mean().item()}
            rows += [said | row for row in judged(matches, truth, odds, config.budgets, config.success, config)]
    return rows


@torch.no_grad()
def real_rows(
    config: Config, run: Run, learners: dict[Method, Learner], powers: Mapping[str, float], box: Matches
) -> list[dict[str, Any]]:
    """`judged` against a long search, and the chance to draw one of its inliers, for every odds."""
    box = _on(run, box)
    likely = all_odds({}, box)["ratio"]
    reference = pnp_ransac(
        box.points2d, box.points3d, box.K, candidates=likely, mask=box.mask, threshold=config.threshold,
        hypotheses=config.long, confidence=1.0, generator=torch.Generator(run.device).manual_seed(TEST_SEED),
    )  # fmt: skip

    def repeated(values: Tensor) -> Tensor:
        return values.repeat(config.repeats, *[1] * (values.ndim - 1))

    several = Matches(repeated(box.points2d), repeated(box.points3d), repeated(box.ratio), repeated(box.mask), box.K)
    rows = []
    for name, odds in all_odds(learners, box, powers).items():
        said = {"odds": name, "right": drawn_right(odds, reference.inliers).mean().item()}
        found = judged(several, repeated(reference.x), repeated(odds), config.real_budgets, config.real_success, config)
        rows += [said | row for row in found]
    return rows


def finish(
    config: Config, run: Run, learners: dict[Method, Learner], columns: dict[str, float], box: Matches | None
) -> dict[str, Any]:
    """Test everything, and write the tables, the figures and the summary."""
    for learner in learners.values():
        learner.network.eval()
    powers = best_powers(config, run, learners)
    rows = synthetic_rows(config, run, learners, powers)
    real = [] if box is None else real_rows(config, run, learners, powers, box)
    write_json(run.folder / "rows.json", {"powers": powers, "synthetic": rows, "real": real})
    write_text(run.folder / "table.md", markdown(config, rows, real, powers))
    panels = {f"{budget} hypotheses": [row for row in rows if row["budget"] == budget] for budget in config.budgets}
    run.figure("success", config.iterations, over("share", panels, config.success), final=True)
    if real:
        shown = over("budget", {"agreement on a box in a video": real}, config.real_success)
        run.figure("real", config.iterations, shown, final=True)
    titles = {"loss": "loss", "chance to draw a right match": "right"}
    drawn = by_method(run.recorded().metrics, learners, titles)
    run.figure("curves", config.iterations, curves(drawn, window=max(1, config.iterations // 20)), final=True)
    errors: dict[str, float] = {}
    for name in dict.fromkeys(row["odds"] for row in rows):
        for budget in config.budgets:
            some = [row["success"] for row in rows if (row["odds"], row["budget"]) == (name, budget)]
            errors[f"{name}_success_{budget}"] = sum(some) / len(some)
    errors |= {f"{name}_power": power for name, power in powers.items()}
    errors |= {f"{row['odds']}_box_{row['budget']}": row["success"] for row in real}
    errors |= {f"{method}_seconds": learner.training.seconds for method, learner in learners.items()}
    first, least = config.methods[0], min(config.budgets)
    degrees, part = config.success
    return run.finish(
        converged=errors[f"{first}_success_{least}"] > errors[f"{config.rival}_success_{least}"],
        goal=f"{first} above {config.rival} at {least} hypotheses",
        iterations=config.iterations,
        loss=columns[f"{first}_loss"],
        errors=errors,
        note=f"success: poses within {degrees:g} degrees and {part:.0%} of the distance, mean over shares of wrong "
        f"matches; by RANSAC's hypotheses. Converged: {first} beats {config.rival} at the fewest",
        picture="success",
    )


# ---- what there is to look at ----


def markdown(
    config: Config, rows: list[dict[str, Any]], real: list[dict[str, Any]], powers: Mapping[str, float]
) -> str:
    """The whole page of tables."""
    names = dict.fromkeys(row["odds"] for row in rows)
    header = ["odds", *(f"{share:.0%}" for share in config.shares)]
    degrees, part = config.success
    parts = [
        f"{config.points} matches, {config.noise:g} px of noise, {config.test_problems} problems of each share of "
        f"wrong matches; success: within {degrees:g} degrees and {part:.0%} of the distance. Powers of the sharp: "
        f"{', '.join(f'{name} {power:g}' for name, power in powers.items())}.\n"
    ]

    def by_share(budget: int, key: str, style: str) -> str:
        found = {(row["odds"], row["share"]): row[key] for row in rows if row["budget"] == budget}
        return table(header, [[n, *(f"{found[n, s]:{style}}" for s in config.shares)] for n in names])

    parts += ["\n## Chance to draw a right match\n", by_share(config.budgets[0], "right", ".1%")]
    for budget in config.budgets:
        parts += [f"\n## Success with {budget} hypotheses\n", by_share(budget, "success", ".1%")]
        parts += [f"\n## Median angle with {budget} hypotheses (degrees)\n", by_share(budget, "median_deg", ".3g")]
    if real:
        degrees, part = config.real_success
        parts.append(
            f"\n## Real matches: searches that agree with {config.long} hypotheses within {degrees:g} degrees and "
            f"{part:.0%}, by hypotheses\n"
        )
        found = {(row["odds"], row["budget"]): row["success"] for row in real}
        right = {row["odds"]: row["right"] for row in real}
        lines = [[n, f"{right[n]:.1%}", *(f"{found[n, b]:.1%}" for b in config.real_budgets)] for n in right]
        parts.append(table(["odds", "chance of an inlier", *map(str, config.real_budgets)], lines))
    return "\n".join(parts)


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
