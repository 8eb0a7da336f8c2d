"""Is CONVERGED a promise?

Random problems over the whole range that is legal, every public solver, and judges that share no code with them
(`experiments.benchmarks.judges`, OpenCV, PoseLib, SciPy). Counted are, of what is CONVERGED,

- moving: not stationary, in the caller's units;
- no minimum: the curvature is negative along some direction;
- beaten: where the global minimum was sought, another search (OpenCV's SQPnP refined, a descent from the truth,
  PoseLib, `cv2.calibrateCamera`) finds a lower one; of RANSAC, an MSAC cost below it by 2 %;
- not finite: a number in the solution or its gradient;

of what is not, missed: a judge finds a strict minimum next to the truth; and neighbour: problems whose bits change with
the other problems of their batch. Writes results/benchmark_honesty/table.md and table.json.

Presets:

- smoke: Solves 20,000 poses and fewer of all else.
- full: Solves a million poses, and as much of all else as there is.
- default: Solves 100,000 poses, and a part of all else.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.benchmarks.families import OTHERS, POSES, Family
from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import Status

COUNTS = ("moving", "no minimum", "beaten", "not finite", "missed", "neighbour")


@dataclass(frozen=True)
class Config:
    poses: int = 1_000_000
    """Sets the number of problems of `pnp`, shared out among the families."""
    ransacs: int = 100_000
    """Sets the number of images of `pnp_ransac`."""
    others: int = 10_000
    """Sets the number of bundles, calibrations and programs, of each a part that fits its time."""
    batch: int = 500
    """Sets the number of problems of a call."""
    sought: float = 0.05
    """Sets the part of the poses that other searches look for, too."""
    seed: int = 0
    """Seeds all problems."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_honesty."""

    def __post_init__(self) -> None:
        at_least(self, 1, "poses", "ransacs", "others", "batch")
        if not 0 < self.sought <= 1:
            raise ValueError(f"sought must lie in (0, 1], got {self.sought}")


def judged(family: Family, number: int, config: Config, seed: int) -> dict[str, int]:
    """Counts of a family."""
    size = max(1, min(config.batch, number // 20))
    total: dict[str, int] = {"problems": 0, "CONVERGED": 0, "sought": 0}
    every = max(1, round(1 / config.sought))
    for i in range(-(-number // size)):
        g = torch.Generator().manual_seed(1_000_003 * (config.seed + 1) + 10_007 * seed + i)
        B = min(size, number - i * size)
        verdict = family(B, g, i % every == 0)
        total["problems"] += B
        total["CONVERGED"] += int((verdict.status == Status.CONVERGED).sum())
        for name, wrong in verdict.wrong.items():
            total[name] = total.get(name, 0) + int(wrong.sum())
            total[f"{name}: looked at"] = total.get(f"{name}: looked at", 0) + B
    return total


def main(config: Config) -> dict[str, Any]:
    """Judge, print and save."""
    families = [(name, family, max(1, round(part * config.poses))) for name, (family, part) in POSES.items()]
    families += [(name, f, max(1, round(part * getattr(config, of)))) for name, (f, of, part) in OTHERS.items()]
    found = {name: judged(family, number, config, seed) for seed, (name, family, number) in enumerate(tqdm(families))}
    head = ["", "problems", "CONVERGED", *COUNTS]

    def cell(row: dict[str, int], name: str) -> str:
        looked = row.get(f"{name}: looked at", 0)
        return "" if looked == 0 else f"{row[name]}" + ("" if looked == row["problems"] else f" of {looked}")

    rows = [
        [name, str(row["problems"]), str(row["CONVERGED"]), *(cell(row, n) for n in COUNTS)]
        for name, row in found.items()
    ]
    print(text := table(head, rows))
    save(config.out / "benchmark_honesty", text, {"config": vars(config), "families": found}, {})
    return found


PRESETS = {
    "smoke": Config(poses=20_000, ransacs=400, others=100, batch=200),
    "full": Config(),
}
PRESETS["default"] = replace(PRESETS["smoke"], poses=100_000, ransacs=2000, others=500, batch=500)


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.honesty", __doc__))
