"""Which loss, which balance: trains object_pose with each loss over several seeds, and with betas of many sizes.

`default`: the five losses, tables as the paper prints them and their spread over seeds; `balance`: l_m with betas over
four decades, by the paper's sum of squares and by the robust balance, in short trainings. Each training is a process of
its own, `parallel` of them at a time; what is finished is not repeated, what was interrupted is resumed.

    python -m experiments.object_pose_study balance
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from experiments.benchmarks.measuring import choose
from experiments.object_poses.table import report
from experiments.records.files import write_json, write_text
from experiments.records.text import table

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
    """Of every training."""
    betas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Of `balance`, robust."""
    paper_betas: tuple[float, ...] = (1e-6, 1e-5, 2e-4, 5e-3)
    """Of `balance`, paper."""
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


def train(config: Config, some: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its summary and its scores; raises RuntimeError with what it said where it failed."""
    command = [
        sys.executable, "-m", "experiments.object_pose", some.preset, "--seed", str(some.seed), "--out",
        str(config.out), "--name", some.name, "--resume", *some.options,
    ]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    folder = config.out / "object_pose" / some.name
    print(f"{some.label}, seed {some.seed}: {json.loads((folder / 'summary.json').read_text())['note']}", flush=True)
    summary, scores = (json.loads((folder / name).read_text()) for name in ("summary.json", "scores.json"))
    (rows,) = scores.values()
    return summary, rows


def averaged(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean of several seeds' scores, [object][score]."""
    return {name: {key: mean(row[name][key] for row in rows) for key in rows[0][name]} for name in rows[0]}


def spread(values: Sequence[float]) -> str:
    """Percent: mean, and standard deviation over seeds where there are several."""
    percent = [100 * value for value in values]
    return f"{mean(percent):.1f}" + (f" ± {stdev(percent):.1f}" if len(percent) > 1 else "")


def main(config: Config) -> dict[str, Any]:
    """Train, and write OUT/object_pose_study/<study>.md and .json."""
    wanted = trainings(config)
    with ThreadPoolExecutor(config.parallel) as pool:
        results = list(pool.map(lambda some: train(config, some), wanted))
    by_label: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for some, result in zip(wanted, results, strict=True):
        by_label.setdefault(some.label, []).append(result)
    measures = {"add_0.02d": "0.02 d", "add_0.05d": "0.05 d", "add_0.1d": "0.1 d", "projection_5px": "5 px"}
    overview = [
        [
            label,
            *(spread([rows["mean"][key] for _, rows in found]) for key in measures),
            f"{mean(summary['seconds'] for summary, _ in found) / 60:.1f}",
            f"{100 * mean(summary['errors']['pose_loss_share'] for summary, _ in found):.1f}",
        ]
        for label, found in by_label.items()
    ]
    header = [
        "loss" if config.study == "losses" else "balance and beta",
        *measures.values(),
        "minutes",
        "solver's share",
    ]
    seeds = f"seeds {', '.join(map(str, config.seeds))}" if len(config.seeds) > 1 else f"seed {config.seeds[0]}"
    text = f"ADD(-S) and projection, % of test crops correct, mean over objects, {seeds}:\n\n{table(header, overview)}"
    means = {label: averaged([rows for _, rows in found]) for label, found in by_label.items()}
    if config.study == "losses":
        text += f"\nPer object, mean over seeds.\n\n{report(means)}"
    folder = config.out / "object_pose_study"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{config.study}.md", text)
    write_json(
        folder / f"{config.study}.json", {some.name: rows for some, (_, rows) in zip(wanted, results, strict=True)}
    )
    print(text)
    return means


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.object_pose_study", __doc__))
