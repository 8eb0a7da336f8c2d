"""Which loss, which balance: trains object_pose with each loss over several seeds, and with betas of many sizes.

`default`: the five losses over three seeds, the whole training of each: tables as the paper prints them, their spread
over seeds and what each loss is above l_h with the same seeds. `balance`: l_m with betas over four decades, by the
paper's sum of squares and by the robust balance, in short trainings.

Each training is a process of its own, `parallel` of them at a time. What it reached is added to --record as soon as it
ends; what is in that file is not trained again but tabulated with the rest, whatever day or machine it is from, and
what was interrupted is resumed. With no --seeds only what is there is tabulated.

    python -m experiments.object_pose_study default --record results/reference/object_pose.json
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.files import require_file
from experiments.benchmarks.measuring import choose
from experiments.object_poses import records
from experiments.object_poses.records import Reached
from experiments.records.files import EXIT_MISSED, write_text
from experiments.running.config import told_in_a_sentence

LOSSES = {
    "heatmap": "l_h",
    "default": "l_m",
    "pose": "l_p",
    "monte_carlo": "l_h + Monte Carlo",
    "linear_covariance": "l_h + linear covariance",
}


@dataclass(frozen=True)
class Config:
    study: Literal["losses", "balance"] = "losses"
    """What is compared."""
    presets: tuple[str, ...] = tuple(LOSSES)
    """Of `losses`: presets of object_pose."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of every training; none: nothing is trained."""
    betas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Of `balance`, robust."""
    paper_betas: tuple[float, ...] = (1e-6, 1e-5, 2e-4, 5e-3)
    """Of `balance`, paper."""
    record: Path | None = None
    """File of what trainings have reached, with the tables beside it; left out, OUT/object_pose_study/STUDY.json."""
    joined: tuple[Path, ...] = ()
    """Files of other days or machines whose trainings are added to it."""
    options: str = ""
    """What else object_pose is told, such as --options="--iterations=1000 --data=my_set"."""
    parallel: int = 2
    """Trainings at a time, each with one thread and one process that loads."""
    out: Path = Path("results")
    """The results of object_pose and of this."""


PRESETS = {
    "default": Config(),
    "balance": Config(study="balance", seeds=(0,), options="--iterations=1000"),
    "smoke": Config(presets=("smoke",), seeds=(0,)),
}


@dataclass(frozen=True)
class Training:
    """One run of object_pose: what it is of, its preset and options, and the name of its folder."""

    label: str
    seed: int
    preset: str
    name: str
    options: tuple[str, ...]


def trainings(config: Config) -> list[Training]:
    """All that the study compares."""
    options = tuple(shlex.split(config.options))
    if config.study == "losses":
        return [
            Training(LOSSES.get(preset, preset), seed, preset, f"{preset}-seed{seed}", options)
            for seed in config.seeds
            for preset in config.presets
        ]
    swept = [("paper", beta) for beta in config.paper_betas] + [("robust", beta) for beta in config.betas]
    return [
        Training("l_h", seed, "heatmap", f"balance-none-seed{seed}", options) for seed in config.seeds
    ] + [
        Training(
            f"{balance} {beta:g}", seed, "default", f"balance-{balance}-{beta:g}-seed{seed}",
            (*options, "--balance", balance, "--beta", f"{beta:g}"),
        )
        for seed in config.seeds
        for balance, beta in swept
    ]  # fmt: skip


def train(config: Config, some: Training) -> Reached:
    """What it reached; raises RuntimeError with what it said where it failed."""
    command = [
        sys.executable, "-m", "experiments.object_pose", some.preset, "--seed", str(some.seed), "--out",
        str(config.out), "--name", some.name, "--resume", *some.options,
    ]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode not in (0, EXIT_MISSED):  # short trainings are compared, too
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    folder = config.out / "object_pose" / some.name
    summary, scores = (json.loads((folder / name).read_text()) for name in ("summary.json", "scores.json"))
    print(f"{some.label}, seed {some.seed}: {summary['note']}", flush=True)
    (rows,) = scores.values()
    return Reached(some.label, some.seed, summary["seconds"] / 60, summary["errors"]["pose_loss_share"], rows)


def tables(config: Config, runs: dict[str, Reached]) -> str:
    """All trainings of the record, in Markdown."""
    groups = records.by_label(runs.values(), list(LOSSES.values()))
    losses = config.study == "losses"
    text = f"# Object poses: {'what each loss reaches' if losses else 'balances'}\n\n"
    text += f"`python -m experiments.object_pose_study {'default' if losses else config.study}"
    text += f' --options="{config.options}"`\n\n' if config.options else "`\n\n"
    text += "ADD(-S) and projection, % of test crops correct, mean over objects; ± standard deviation over seeds.\n\n"
    text += records.overview(groups, "loss" if losses else "balance and beta")
    if losses:
        if above := records.differences(groups, LOSSES["heatmap"]):
            text += f"\nAbove l_h with the same seeds, % points, with 95 % intervals of the mean.\n\n{above}"
        text += f"\nPer object, mean over seeds.\n\n{records.per_object(groups)}"
    return text


def main(config: Config) -> dict[str, Reached]:
    """Train what the record lacks, and write the tables of all that it then has."""
    record = config.record or config.out / "object_pose_study" / f"{config.study}.json"
    with told_in_a_sentence():
        for path in config.joined:
            records.add(record, config.options, records.read(require_file(path), config.options))
        known = records.read(record, config.options)
    missing = [some for some in trainings(config) if some.name not in known]

    def learn(some: Training) -> None:
        records.add(record, config.options, {some.name: train(config, some)})

    with ThreadPoolExecutor(config.parallel) as pool:
        learning = [pool.submit(learn, some) for some in missing]
        try:
            wait(learning)
        except KeyboardInterrupt:  # those that wait for their turn do not begin any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    runs = records.read(record, config.options)
    if runs:
        text = tables(config, runs)
        write_text(record.with_suffix(".md"), text)
        print(text)
    for one in learning:
        one.result()  # raises what went wrong, now that the others are kept
    return runs


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.object_pose_study", __doc__))
