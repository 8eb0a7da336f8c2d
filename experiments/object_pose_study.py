"""Which loss, which balance: trains object_pose with each loss over several seeds, and with betas of many sizes.

Each training is a process of its own, `parallel` of them at a time. What it reached is added to --record when it and
those before it have ended; what is in that file is not trained again but tabulated with the rest, whatever day or
machine it is from, and what was interrupted is resumed. With no --seeds only what is there is tabulated.

    python -m experiments.object_pose_study default --record results/reference/object_pose.json

Presets:

- default: Compares the five losses over three seeds, the whole training of each: tables as the paper prints them,
  their spread over seeds and what each loss is above l_h with the same seeds.
- balance: Compares l_m with betas over four decades, by the paper's sum of squares and by the robust balance, in
  short trainings.
- smoke: Trains the preset smoke of object_pose once, and tabulates it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from datasets.files import require_file
from experiments.benchmarks.measuring import choose
from experiments.object_poses import records
from experiments.object_poses.records import Reached
from experiments.records.files import write_text
from experiments.running.config import told_in_a_sentence
from experiments.running.launch import Asked, launched

Preset = Literal["heatmap", "default", "pose", "monte_carlo", "linear_covariance", "linemod", "smoke"]
LOSSES: dict[Preset, str] = {
    "heatmap": "l_h",
    "default": "l_m",
    "pose": "l_p",
    "monte_carlo": "l_h + Monte Carlo",
    "linear_covariance": "l_h + linear covariance",
}
MEANING = (
    "l_h: of the heatmaps. l_m = l_h + beta l_proj, of the keypoints projected by PnP's pose. "
    "l_p = l_reg + beta l_proj, where l_reg keeps heatmaps narrow."
)


@dataclass(frozen=True)
class Config:
    study: Literal["losses", "balance"] = "losses"
    """Chooses what is compared."""
    presets: tuple[Preset, ...] = tuple(LOSSES)
    """Lists the presets of object_pose that `losses` compares."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Lists the seeds of every training; without any, nothing is trained."""
    betas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Lists the betas of `balance`, robust."""
    paper_betas: tuple[float, ...] = (1e-6, 1e-5, 2e-4, 5e-3)
    """Lists the betas of `balance`, paper."""
    record: Path | None = None
    """Names the file of what trainings have reached, with the tables beside it; left out, it is
    OUT/object_pose_study/STUDY.json."""
    joined: tuple[Path, ...] = ()
    """Lists files of other days or machines whose trainings are added to it."""
    options: str = ""
    """Passes on what else object_pose is told, such as --options="--iterations=1000 --data=my_set"."""
    parallel: int = 2
    """Sets how many trainings run at a time, each with one thread and one process that loads."""
    out: Path = Path("results")
    """Names the folder of the results of object_pose and of this."""


PRESETS = {
    "default": Config(),
    "balance": Config(study="balance", seeds=(0,), options="--iterations=1000"),
    "smoke": Config(presets=("smoke",), seeds=(0,)),
}


class Training(NamedTuple):
    """One run of object_pose, and what it is of."""

    label: str
    asked: Asked


def trainings(config: Config) -> list[Training]:
    """All that the study compares."""
    told = tuple(shlex.split(config.options))

    def training(label: str, seed: int, preset: str, name: str, *more: str) -> Training:
        return Training(label, Asked("experiments.object_pose", preset, seed, (*told, *more), f"{name}-seed{seed}"))

    if config.study == "losses":
        return [
            training(LOSSES.get(preset, preset), seed, preset, preset)
            for seed in config.seeds
            for preset in config.presets
        ]
    swept = [("paper", beta) for beta in config.paper_betas] + [("robust", beta) for beta in config.betas]
    return [training("l_h", seed, "heatmap", "balance-none") for seed in config.seeds] + [
        training(
            f"{balance} {beta:g}", seed, "default", f"balance-{balance}-{beta:g}",
            "--balance", balance, "--beta", f"{beta:g}",
        )
        for seed in config.seeds
        for balance, beta in swept
    ]  # fmt: skip


def train(config: Config, some: Sequence[Training]) -> Iterator[Reached | str]:
    """What each reached, in their order, or what it said where it failed; what was interrupted is resumed."""
    out = config.out.resolve()
    ends = launched([training.asked for training in some], out, resume=True, jobs=config.parallel)
    for (label, asked), ended in zip(some, ends, strict=True):
        if ended.summary is None:
            yield f"{asked.title}: {ended.message}"
            continue
        (rows,) = json.loads((asked.folder(out) / "scores.json").read_text()).values()
        yield Reached(
            label, asked.seed, ended.summary["seconds"] / 60, ended.summary["errors"]["pose_loss_share"], rows
        )


def tables(config: Config, runs: dict[str, Reached]) -> str:
    """All trainings of the record, in Markdown."""
    groups = records.by_label(runs.values(), list(LOSSES.values()))
    losses = config.study == "losses"
    text = f"# Object poses: {'what each loss reaches' if losses else 'balances'}\n\n"
    text += f"`python -m experiments.object_pose_study {'default' if losses else config.study}"
    text += f' --options="{config.options}"`\n\n' if config.options else "`\n\n"
    text += "ADD(-S) and projection, % of test crops correct, mean over objects; ± standard deviation over seeds.\n\n"
    text += f"{MEANING}\n\n" if losses else ""
    text += records.overview(groups, "loss" if losses else "balance and beta")
    if losses:
        if above := records.differences(groups, LOSSES["heatmap"]):
            text += f"\nAbove l_h with the same seeds, % points, with 95 % intervals of the mean.\n\n{above}"
        text += f"\nPer object, mean over seeds.\n\n{records.per_object(groups)}"
    return text


def main(config: Config) -> dict[str, Reached]:
    """Train what the record lacks, write the tables of all that it then has, and end if a training has failed."""
    record = config.record or config.out / "object_pose_study" / f"{config.study}.json"
    with told_in_a_sentence():
        for path in config.joined:
            records.add(record, config.options, records.read(require_file(path), config.options))
        known = records.read(record, config.options)
    missing = [some for some in trainings(config) if some.asked.name not in known]
    wrong = []
    for some, reached in zip(missing, train(config, missing), strict=True):
        if isinstance(reached, str):
            wrong.append(reached)
        else:
            records.add(record, config.options, {some.asked.name: reached})
    runs = records.read(record, config.options)
    if runs:
        text = tables(config, runs)
        write_text(record.with_suffix(".md"), text)
        print(text)
    if wrong:
        raise SystemExit("\n".join(wrong))
    return runs


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.object_pose_study", __doc__))
