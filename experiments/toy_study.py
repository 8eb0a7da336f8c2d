"""What the toys of learning through a choice show over seeds: runs them, and writes a page of tables of each.

line_fitting, expert_selection, robust_pose. Test images and problems are others for every seed; intervals are
Student's, of 95 %. Runs that are finished are not repeated, those that were interrupted are resumed.

    python -m experiments.toy_study default --toys robust_pose

Presets:

- default: Runs all toys over five seeds.
- smoke: Runs the toys' presets smoke over two seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.benchmarks.measuring import choose, save
from experiments.drawing.success import over
from experiments.running.launch import Asked, launched
from experiments.toys.seeds import averaged, expert_tables, line_table, match_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Toy = Literal["line_fitting", "expert_selection", "robust_pose"]


@dataclass(frozen=True)
class Config:
    toys: tuple[Toy, ...] = ("line_fitting", "expert_selection", "robust_pose")
    """Lists which of them to run."""
    seeds: tuple[int, ...] = (200, 201, 202, 203, 204)
    """Lists the seeds of every training; those that take an hour have the first alone."""
    smoke: bool = False
    """Runs the toys' presets `smoke`."""
    jobs: int = 1
    """Sets how many runs go side by side, a process and a thread each."""
    out: Path = Path("results")
    """Names the folder of the results of the runs and of this."""


PRESETS = {"default": Config(), "smoke": Config(seeds=(0, 1), smoke=True)}


class Training(NamedTuple):
    """A preset of a toy with options, its title in tables, its folders' name, and how many seeds it gets at most."""

    title: str
    preset: str
    options: tuple[str, ...] = ()
    name: str = ""
    most: int = 1000

    def folder(self, seed: int) -> str:
        return f"{self.name or self.preset}-seed{seed}"


QUICK = ("--bfloat16",)
TRAININGS: Mapping[Toy, Sequence[Training]] = {
    "line_fitting": (
        Training("default: 2,500 steps", "default", QUICK),
        Training("paper: 50,000 steps", "paper", (*QUICK, "--methods", "dsac"), "paper-dsac", most=1),
        Training("paper: 50,000 steps", "paper", (*QUICK, "--methods", "direct"), "paper-direct", most=1),
    ),
    "expert_selection": (
        Training("The gating network sees the image", "paper", QUICK),
        Training("The gating network cannot tell: it sees mean colours of blocks", "ambiguous", QUICK),
    ),
    "robust_pose": (Training("real", "real"),),
}


class Ran(NamedTuple):
    """A finished run: its folder, its summary and its config."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]


def ran(toy: Toy, config: Config) -> dict[str, list[Ran]]:
    """Its runs by their title, finished now or before. Raises RuntimeError with what one said that has no result."""
    wanted = [(training, seed) for training in TRAININGS[toy] for seed in config.seeds[: training.most]]
    asked = [
        Asked(
            f"experiments.{toy}", "smoke" if config.smoke else training.preset, seed,
            (*training.options, "--threads", "1"), training.folder(seed),
        )
        for training, seed in wanted
    ]  # fmt: skip
    found: dict[str, list[Ran]] = {}
    out = config.out.resolve()
    ends = launched(asked, out, resume=True, jobs=config.jobs)
    for (training, _), each, ended in zip(wanted, asked, ends, strict=True):
        if ended.summary is None:
            raise RuntimeError(f"{each.title}: {ended.message}")
        folder = each.folder(out)
        settings = json.loads((folder / "config.json").read_text())
        found.setdefault(training.title, []).append(Ran(folder, ended.summary, settings))
    return found


Page = tuple[str, dict[str, "Figure"]]


def line_page(runs: Mapping[str, Sequence[Ran]]) -> Page:
    """Of line_fitting."""
    (first, *_) = next(iter(runs.values()))
    text = (
        "# Lines in noisy images\n\n"
        f"Networks that are told how far their line is off, on {first.config['test_images']} unseen images of each "
        "seed (`experiments/line_fitting.py`). The published example counts lines as correct by the sum of both ends."
        "\n\n"
    )
    return text + line_table({title: [run.summary["errors"] for run in some] for title, some in runs.items()}), {}


def expert_page(runs: Mapping[str, Sequence[Ran]]) -> Page:
    """Of expert_selection."""
    config = next(iter(runs.values()))[0].config
    text = (
        "# Which model to fit, learned with how to fit it\n\n"
        f"{config['alone']} steps in which two experts and a gating network learn apart, then "
        f"{config['iterations'] - config['alone']} in which copies of them go on, by ESAC or apart, at "
        f"{config['together_rate'] / config['learning_rate']:.0%} of the rate (`experiments/expert_selection.py`); "
        f"{config['test_images']} unseen images of each seed. A model is right that is of the right kind and off by "
        f"less than {config['correct_px']:g} px.\n\n"
    )
    return text + expert_tables({title: [run.summary["errors"] for run in some] for title, some in runs.items()}), {}


def match_page(runs: Mapping[str, Sequence[Ran]]) -> Page:
    """Of robust_pose, with its figure."""
    (several,) = runs.values()
    config = several[0].config
    rows = [json.loads((run.folder / "rows.json").read_text()) for run in several]
    degrees, part = config["success"]
    text = (
        "# Which matches to draw\n\n"
        f"{config['points']} matches, {config['noise']:g} px of noise; a pose is right within {degrees:g} degrees and "
        f"{part:.0%} of the distance; {config['test_problems']} unseen problems of each share of wrong matches and "
        "seed. Odds are to the power with which the fewest hypotheses do best on problems set aside "
        "(`experiments/robust_pose.py`; the tables of every run are in its table.md).\n\n"
    )
    mean = averaged([row["synthetic"] for row in rows])
    panels = {f"{b} hypotheses": [row for row in mean if row["budget"] == b] for b in config["budgets"]}
    tables = match_tables([row["synthetic"] for row in rows], [row["real"] for row in rows])
    return text + tables, {"success.png": over("share", panels, config["success"])}


PAGES: Mapping[Toy, Callable[[Mapping[str, Sequence[Ran]]], Page]] = {
    "line_fitting": line_page,
    "expert_selection": expert_page,
    "robust_pose": match_page,
}


def main(config: Config) -> dict[Toy, str]:
    """Run what is not finished, and write OUT/toy_study/TOY/table.md and figures. The pages."""
    pages: dict[Toy, str] = {}
    for toy in config.toys:
        pages[toy], figures = PAGES[toy](ran(toy, config))
        save(config.out / "toy_study" / toy, pages[toy], {}, figures)
        print(pages[toy])
    return pages


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.toy_study", __doc__))
