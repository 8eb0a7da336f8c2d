"""Do stated deviations hold the truth as often as they say?

Estimates from simulated data whose truth is known (`experiments.benchmarks.simulated`): poses, with and without RANSAC,
bundles, calibrations and tasks; with every robust kernel, without wrong observations and with some; and of each the
covariance that is stated of it. Told are

- z: what the estimates are off in stated deviations, root mean square over all unknowns; it should be little above 1;
- each: percent of single unknowns whose 95 % interval holds the truth;
- 50, 90, 95: percent of estimates whose region of all unknowns together, of this confidence, does.

Where sigma is estimated, intervals are Student's and regions Fisher's, with as many degrees of freedom as numbers were
left over; where it is given, they are the normal distribution's. Writes results/benchmark_coverage/table.md and
table.json.

Presets:

- smoke: Measures tiny problems, to see that everything works.
- default: Estimates often enough to tell percents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from tqdm import tqdm

from experiments.benchmarks.measuring import choose, save
from experiments.benchmarks.simulated import (
    KERNELS,
    TASKS,
    Setting,
    Stated,
    bundles,
    calibrations,
    one_focal_length,
    poses,
    products_of_scores,
    ransacs,
)
from experiments.records.text import table
from experiments.running.config import at_least

REGIONS = (50, 90, 95)
HEAD = ("", "kernel", "wrong", "points", "sigma", "estimates", "CONVERGED", "z", "each", *map(str, REGIONS))
Row = tuple[tuple[str, ...], Setting, int, Callable[[int, Setting, torch.Generator], list[Stated]]]


@dataclass(frozen=True)
class Config:
    poses: int = 2000
    """Sets the number of poses of a row."""
    tasks: int = 500
    """Sets the number of solutions of a task."""
    bundles: int = 80
    """Sets the number of bundles of a row."""
    calibrations: int = 100
    """Sets the number of calibrations of a row."""
    seed: int = 0
    """Seeds all data."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_coverage."""

    def __post_init__(self) -> None:
        at_least(self, 1, "poses", "tasks", "bundles", "calibrations")


def rows(config: Config) -> Iterator[Row]:
    """What is measured: names of the parts of an estimate, setting, how many, and how they are made."""

    def settings(*shares: float, points: int = 50) -> Iterator[Setting]:
        for kernel in KERNELS:
            for wrong in shares if kernel != "none" else (0.0,):
                yield Setting(kernel, wrong, points)

    for points in (10, 20, 50, 200):
        for setting in settings(0.0, 0.2, 0.35, points=points):
            yield ("pose",), setting, config.poses, poses
    for sigma in (0.1, 5.0, 20.0):
        for kernel in ("none", "cauchy(2)"):
            yield ("pose",), Setting(kernel, 0.0, 20, sigma), config.poses, poses
    yield ("pose, sigma given",), Setting(points=10), config.poses, partial(poses, known=True)
    for kernel in ("none", "cauchy(2)"):
        for wrong in (0.35, 0.6):
            for threshold in (4.0, 2.5):
                name = f"RANSAC's pose, threshold {threshold:g} sigma"
                yield (name,), Setting(kernel, wrong, 100), config.poses, partial(ransacs, threshold=threshold)
    parts = ("bundle: poses", "bundle: points", "bundle: f and k1")
    for setting in settings(0.0, 0.15, points=40):
        yield parts, setting, config.bundles, bundles
    for kernel, wrong in (("none", 0.0), ("cauchy(2)", 0.0), ("cauchy(2)", 0.15)):
        for name, sigma, kind in (("with GPS", 0.3, {"gps": True}), ("of three views a point", 1.0, {"seen": 3})):
            names = tuple(part.replace("bundle", f"bundle {name}") for part in parts)
            yield names, Setting(kernel, wrong, 40, sigma), config.bundles, partial(bundles, **kind)
    for setting in settings(0.0, 0.1, points=54):
        yield ("calibration",), setting, config.calibrations, calibrations
    for setting in settings(0.0, 0.35, points=40):
        yield ("focal length of a film",), setting, config.calibrations, one_focal_length
    for name, task in TASKS.items():
        for points in (54,) if name == "stereo rig" else (12, 40):
            yield (name,), Setting(points=points), config.tasks, task
    for points in (10, 20, 50):
        for setting in settings(0.0, 0.35, points=points):
            if setting.kernel in ("cauchy(2)", "geman_mcclure(4)"):
                yield ("pose by products of scores",), setting, config.poses, products_of_scores


def judged(stated: Stated) -> dict[str, float]:
    """z, and the shares in percent, of what is CONVERGED."""
    off, C, converged, freedom = stated
    ok = converged & torch.isfinite(C).all(-1).all(-1)
    off, C = off[ok], C[ok]
    P = off.shape[1]
    z = off / C.diagonal(dim1=1, dim2=2).sqrt()
    distance = (off * torch.linalg.solve(C, off[..., None])[..., 0]).sum(-1)
    within = stats.norm.ppf(0.975) if freedom is None else stats.t.ppf(0.975, freedom)
    found = {
        "estimates": len(converged),
        "CONVERGED": 100 * ok.double().mean().item(),
        "z": z.square().mean().sqrt().item(),
        "each": 100 * (z.abs() < within).double().mean().item(),
    }
    for percent in REGIONS:
        radius = stats.chi2.ppf(percent / 100, P)
        if freedom is not None:
            radius = P * stats.f.ppf(percent / 100, P, freedom)
        found[str(percent)] = 100 * (distance < radius).double().mean().item()
    return found


def main(config: Config) -> list[dict[str, Any]]:
    """Simulate, print and save."""
    found: list[dict[str, Any]] = []
    for seed, (names, setting, number, estimates) in enumerate(tqdm(list(rows(config)))):
        g = torch.Generator().manual_seed(1_000_003 * (config.seed + 1) + seed)
        for name, stated in zip(names, estimates(number, setting, g), strict=True):
            found.append({"what": name, **setting._asdict(), **judged(stated)})
    print(text := table(HEAD, [cells(row) for row in sorted(found, key=lambda row: row["what"])]))
    save(config.out / "benchmark_coverage", text, {"config": vars(config), "rows": found}, {})
    return found


def cells(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    head = [row["what"], row["kernel"], f"{100 * row['wrong']:.0f} %", str(row["points"]), f"{row['sigma']:g}"]
    shares = [f"{row[name]:.1f}" for name in ("each", *map(str, REGIONS))]
    return [*head, str(row["estimates"]), f"{row['CONVERGED']:.1f}", f"{row['z']:.2f}", *shares]


PRESETS = {"smoke": Config(poses=100, tasks=20, bundles=2, calibrations=2), "default": Config()}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.coverage", __doc__))
