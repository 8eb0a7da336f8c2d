"""Section 4.2 of the paper over seeds: which shape is learned, the right one or its mirror image, and what is added by
`--finish`.

Each run is a process of its own, `jobs` of them at a time; what is finished is not repeated, what was interrupted is
resumed.

    python -m experiments.structure_study default

Presets:

- default: Runs `structure_from_motion paper --finish` on the published scene and, over fewer seeds, on its variants:
  our duck, and the driller and the cat of the published demo.
- smoke: Runs five iterations of one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks.measuring import choose
from experiments.records.files import write_text
from experiments.records.text import spread, table
from experiments.running.launch import Asked, launched

SCENES: dict[str, tuple[str, ...]] = {
    "published duck": ("paper", "--finish"),
    "our duck": ("paper_made", "--finish"),
    "published driller": ("paper", "--scene", "published_driller", "--finish"),
    "published cat": ("paper", "--scene", "published_cat", "--finish"),
}
"""What `structure_from_motion` is told for each."""


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = tuple(range(200, 220))
    """Lists the seeds of the published scene."""
    other_seeds: tuple[int, ...] = tuple(range(200, 205))
    """Lists the seeds of its variants; none leaves them out."""
    iterations: int = 1000
    """Limits the iterations of the published loop."""
    jobs: int = 1
    """Sets how many runs go at a time, each with one thread."""
    out: Path = Path("results")
    """Names the folder of the runs of structure_from_motion, and of structure_study/published.md."""


PRESETS = {"default": Config(), "smoke": Config(seeds=(0,), other_seeds=(), iterations=5)}


def shape(errors: Mapping[str, Any], prefix: str = "") -> str:
    """Which shape it is, to a tenth of its size."""
    one, other = (float(errors[f"{prefix}{name}"]) for name in ("rms_share", "rms_share_of_mirror"))
    return "right" if one < 0.1 else "mirror" if other < 0.1 else "neither"


def told(summaries: Sequence[Mapping[str, Any]]) -> str:
    """What the seeds of a scene have in common."""
    every = [summary["errors"] for summary in summaries]
    learned = [shape(errors, "learned_") for errors in every]
    below = [float(errors["learned_loss"]) < 1e-10 for errors in every]
    counts = ", ".join(
        f"{learned.count(kind)} {kind} ({sum(b for b, k in zip(below, learned, strict=True) if k == kind)} below 1e-10)"
        for kind in ("right", "mirror", "neither")
        if kind in learned
    )
    right = [summary["iterations"] for summary, kind in zip(summaries, learned, strict=True) if kind == "right"]
    steps = f"; the right ones took {spread(right)} iterations" if right else ""
    finished = sum(
        summary["converged"] and shape(errors) == "right" for summary, errors in zip(summaries, every, strict=True)
    )
    both = [float(summary["loss"]) for summary in summaries], [float(errors["mirror_loss"]) for errors in every]
    losses = [f"{median(some):.4g}" for some in both]
    return (
        f"Learned are {counts}{steps}. After the finish {finished} of {len(every)} are the right shape; the losses of "
        f"the two end at {losses[0]} and {losses[1]} (medians)."
    )


def report(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: what the seeds of each scene have in common, and a row for every run."""
    lines = [
        "# Section 4.2 over seeds", "",
        "`.venv/bin/python -m experiments.structure_study default`: the published loop (VGG-11, Adam, float32, until",
        "the loss is below 1e-10 or stalls) from a global start of PnP, then at most 6 Gauss-Newton steps from what",
        "was learned and from its mirror image. Rms: distance from the truth after similarity alignment, of the",
        "object's rms radius.",
    ]  # fmt: skip
    header = ["seed", "iterations", "learned shape", "loss", "rms", "finish: loss", "loss of the mirror image", "rms"]
    for scene, summaries in found.items():
        rows = []
        for summary in summaries:
            errors = {name: float(value) for name, value in summary["errors"].items()}
            rows.append(
                [
                    str(summary["seed"]), str(summary["iterations"]), shape(errors, "learned_"),
                    f"{errors['learned_loss']:.3e}", f"{100 * errors['learned_rms_share']:.1f} %",
                    f"{float(summary['loss']):.1e}", f"{errors['mirror_loss']:.4e}", f"{errors['rms_share']:.0e}",
                ]
            )  # fmt: skip
        command = " ".join(SCENES[scene])
        lines += ["", f"## {scene.capitalize()}", "", f"`structure_from_motion {command}`. {told(summaries)}", ""]
        lines.append(table(header, rows).rstrip())
    return "\n".join(lines) + "\n"


def asked(config: Config, scene: str, seed: int) -> Asked:
    """The run of a scene and a seed."""
    preset, *options = SCENES[scene]
    name = "-".join([preset, *(option.strip("-") for option in options), f"seed{seed}"])
    limits = ("--iterations", str(config.iterations), "--threads", "1")
    return Asked("experiments.structure_from_motion", preset, seed, (*options, *limits), name)


def main(config: Config) -> str:
    """Learn, and write OUT/structure_study/published.md; ends with what a run said that failed."""
    first, *others = SCENES
    wanted = [(first, seed) for seed in config.seeds] + [(scene, s) for scene in others for s in config.other_seeds]
    runs = [asked(config, *each) for each in wanted]
    found: dict[str, list[Mapping[str, Any]]] = {}
    results = launched(runs, config.out.resolve(), resume=True, jobs=config.jobs)
    for (scene, _), run, ended in zip(wanted, runs, results, strict=True):
        if ended.summary is None:
            raise SystemExit(f"{run.title}: {ended.status}: {ended.message}")
        found.setdefault(scene, []).append(ended.summary)
        (run.folder(config.out) / "checkpoint.pt").unlink(missing_ok=True)  # a gigabyte
    text = report(found)
    folder = config.out / "structure_study"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "published.md", text)
    print(text)
    return text


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.structure_study", __doc__))
