"""What trainings of object_pose have reached, kept in one file that days, machines and interruptions add to.

The file is JSON: {"options": what all trainings were told, "runs": {name: label, seed, minutes, solver_share, scores}}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from filelock import FileLock

from experiments.object_poses.table import MEAN, report
from experiments.records.files import write_json
from experiments.records.text import mean_interval, table

__all__ = ["Reached", "add", "differences", "overview", "per_object", "read"]

MEASURES = {"add_0.02d": "0.02 d", "add_0.05d": "0.05 d", "add_0.1d": "0.1 d", "projection_5px": "5 px"}


@dataclass(frozen=True)
class Reached:
    """One training: label, of its loss or balance; scores [object][score], with "mean" and "all instances"."""

    label: str
    seed: int
    minutes: float
    solver_share: float
    scores: Mapping[str, Mapping[str, float]]


def read(path: Path, options: str) -> dict[str, Reached]:
    """The trainings of a file by their names; none where there is no file.

    Raises ValueError for a file of something else, and where its trainings were told other options.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        told, runs = content["options"], {name: Reached(**run) for name, run in content["runs"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: trainings of object_pose_study wanted, found something else: {error}") from None
    if told != options:
        raise ValueError(f"{path}: trainings told {options!r} wanted, found some told {told!r}: give another --record")
    return runs


def add(path: Path, options: str, runs: Mapping[str, Reached]) -> None:
    """Join trainings to a file's; those of the same name take the place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".tmp-{path.name}.lock")):
        joined = read(path, options) | dict(runs)
        write_json(path, {"options": options, "runs": {name: asdict(joined[name]) for name in sorted(joined)}})


def by_label(runs: Iterable[Reached], order: Sequence[str]) -> dict[str, list[Reached]]:
    """Trainings of each label by their seeds; labels as in `order`, then others."""
    found: dict[str, list[Reached]] = {}
    for run in sorted(runs, key=lambda run: (order.index(run.label) if run.label in order else len(order), run.seed)):
        found.setdefault(run.label, []).append(run)
    return found


def overview(groups: Mapping[str, Sequence[Reached]], heading: str) -> str:
    """A table of the means over objects: over seeds, mean and standard deviation."""
    rows = [
        [
            label,
            ", ".join(str(run.seed) for run in runs),
            *(_spread([run.scores[MEAN][key] for run in runs]) for key in MEASURES),
            f"{mean(run.minutes for run in runs):.1f}",
            f"{100 * mean(run.solver_share for run in runs):.1f}",
        ]
        for label, runs in groups.items()
    ]
    return table([heading, "seeds", *MEASURES.values(), "minutes", "solver's share"], rows)


def differences(groups: Mapping[str, Sequence[Reached]], base: str) -> str:
    """A table of what each label is above `base` with the same seeds, object by object; empty where none shares two."""
    rows = []
    at = {run.seed: run for run in groups.get(base, ())}
    for label, runs in groups.items():
        paired = [(run, at[run.seed]) for run in runs if run.seed in at]
        if label == base or len(paired) < 2:
            continue
        for name in (name for name in paired[0][0].scores if name != "all instances"):
            gains = [[one.scores[name][key] - other.scores[name][key] for one, other in paired] for key in MEASURES]
            rows.append([label, name, f"{len(paired)}", *(_interval(gain) for gain in gains)])
    return table(["loss", "object", "seeds", *MEASURES.values()], rows) if rows else ""


def per_object(groups: Mapping[str, Sequence[Reached]]) -> str:
    """The paper's tables, of the means over each label's seeds."""
    return report(
        {
            label: {
                name: {key: mean(run.scores[name][key] for run in runs) for key in runs[0].scores[name]}
                for name in runs[0].scores
            }
            for label, runs in groups.items()
        }
    )


def _spread(values: Sequence[float]) -> str:
    """Percent: mean, and standard deviation where there are several."""
    percent = [100 * value for value in values]
    return f"{mean(percent):.1f}" + (f" ± {stdev(percent):.1f}" if len(percent) > 1 else "")


def _interval(values: Sequence[float]) -> str:
    """Percent points: the mean of differences and the half width of its 95 % interval, Student's."""
    return mean_interval([100 * value for value in values], "+.1f")
