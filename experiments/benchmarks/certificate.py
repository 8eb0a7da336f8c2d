"""What share of poses `pnp(certify=True)` proves to be global minima, how long it takes, and whether a proof is wrong.

A certificate is wrong where a pose with all points ahead has a lower cost. Two searches look for one: other minima are
given to it as the answer, the second of `pnp` and what descents find; and descents from random rotations look for a
lower minimum than one that is certified. "clear" are the problems whose second minimum, if there is one, costs at
least twice as much.

Objects of size 2 at 3 to 8 units of distance, f = 800 px; the last two rows are of any unit, origin, focal length and
shape (`experiments.benchmarks.families`), nearly collinear ones included.

Writes results/benchmark_certificate/table.md.

Presets:

- default: Looks at 1,000 problems a row, and at 10,000 of any kind.
- million: Looks at a million problems of any kind, and at 1,000 of each of the other rows.
- smoke: Looks at 20 problems a row.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.benchmarks.families import pose_problem
from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import pnp, project, se3

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], **DOUBLE)
BETTER = 1e-7  # relative difference of costs from which on one is the lower
CLEAR = 0.5


@dataclass(frozen=True)
class Config:
    problems: int = 1000
    """Sets the number of problems a row."""
    any: int = 10_000
    """Sets the number of problems of the row of any problem."""
    starts: int = 24
    """Sets from how many random rotations each problem is solved again."""
    batch: int = 250
    """Sets the number of problems of a call."""
    seed: int = 0
    """Seeds all problems."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_certificate."""

    def __post_init__(self) -> None:
        at_least(self, 1, "problems", "any", "starts", "batch")


PRESETS = {
    "default": Config(),
    "million": Config(any=1_000_000),
    "smoke": Config(problems=20, any=20, starts=4, batch=20),
}


class Problems(NamedTuple):
    """points2d (B,N,2), points3d (B,N,3), K (B|1,3,3), weights (B|1,N)."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    weights: Tensor

    def some(self, which: Tensor) -> "Problems":
        """Those of a mask or of places."""
        return Problems(*(each[which] if len(each) > 1 else each for each in self))

    def solved(self, **options: Any) -> Any:
        """What `pnp` returns."""
        return pnp(self.points2d, self.points3d, self.K, weights=self.weights, **options)


def objects(points: int, noise: float, flat: bool) -> Callable[[int, torch.Generator], Problems]:
    """Draws problems of one number of points and one level of noise in px."""

    def draw(B: int, g: torch.Generator) -> Problems:
        X = 2 * torch.rand(B, points, 3, generator=g, **DOUBLE) - 1
        if flat:
            X[..., 2] = 0
        R = se3.rotation_from_quat_wxyz(torch.randn(B, 4, generator=g, **DOUBLE))
        place = torch.rand(B, 3, generator=g, **DOUBLE)
        depth = 3 + 5 * place[:, 2]
        aside = (place[:, :2] - 0.5) * torch.tensor([0.6, 0.4]) * depth[:, None]
        pixels = project(X, se3.make(R, torch.cat([aside, depth[:, None]], -1)), K)
        return Problems(
            pixels + noise * torch.randn(B, points, 2, generator=g, **DOUBLE),
            X,
            K[None],
            torch.ones(1, points, **DOUBLE),
        )

    return draw


def anything(B: int, g: torch.Generator, weighted: bool = False) -> Problems:
    """Draws problems of any unit, origin, focal length and shape, without a lens; weighted: from 1e-8 to 1e8."""
    while True:
        views = pose_problem(B, g, fisheye=False, outliers=0.0, weighted=weighted).views
        if not views.distortion.shape[1]:
            return Problems(views.points2d, views.points3d, views.K, views.weights)


def rows(config: Config) -> Iterator[tuple[str, str, str, int, Callable[[int, torch.Generator], Problems]]]:
    """What is drawn, points, noise, how many problems, and what draws them."""
    for name, flat in (("solid", False), ("flat", True)):
        for points in (4, 6, 8, 24, 100):
            for noise in (0.5, 2.0, 5.0):
                yield name, str(points), f"{noise:g}", config.problems, objects(points, noise, flat)
    yield "any", "4 to 300", "0 to 3", config.any, anything
    yield "any, weighted", "4 to 300", "0 to 3", config.problems, partial(anything, weighted=True)


def descents(given: Problems, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Minima (B,count,4,4) and costs (B,count) that descents from random rotations end in, infinite where in none.

    They begin where the middle of the points is seen amid the pixels, at a distance that suits their sizes.
    """
    x, X, camera, _ = given
    B = len(x)
    middle, at = X.mean(1), x.mean(1)
    extent = (X - middle[:, None]).norm(dim=-1).amax(-1)
    pixels = (x - at[:, None]).norm(dim=-1).amax(-1)
    f = camera[:, 0, 0].expand(B)
    depth = (f * extent / pixels.clamp_min(1e-9)).maximum(1.2 * extent)
    ahead = torch.cat([(at - camera[:, :2, 2]) / f[:, None], torch.ones_like(at[:, :1])], -1) * depth[:, None]
    R = se3.rotation_from_quat_wxyz(torch.randn(B, count, 4, generator=g, **DOUBLE))
    t = ahead[:, None] - (R @ middle[:, None, :, None])[..., 0]
    found = given.some(torch.arange(B).repeat_interleave(count)).solved(init=se3.make(R, t).flatten(0, 1))
    cost = torch.where(found.converged, found.cost, torch.inf)
    return found.x.unflatten(0, (B, count)), cost.view(B, count)


def judged(given: Problems, starts: int, g: torch.Generator) -> dict[str, float]:
    """Counts of a batch, and seconds of `pnp` without and with a proof.

    false: proofs of minima that are beaten; others: minima that were given to be proved though they are beaten.
    """
    begin = time.process_time()
    given.solved()
    middle = time.process_time()
    found = given.solved(certify=True)
    end = time.process_time()
    proved, ratio, second = found.certified, found.ratio, found.second
    minima, costs = descents(given, starts, g)
    lowest = torch.minimum(costs.amin(1), torch.where(found.converged, found.cost, torch.inf))
    apart = given.weights[..., None] * (given.points2d - given.points2d.mean(1, keepdim=True))
    floor = 1e-9 * apart.square().sum((1, 2))
    beaten = found.cost > lowest * (1 + BETTER) + floor
    # minima that are beaten: the second, and the worst of the descents
    worst = torch.where(torch.isfinite(costs), costs, -torch.inf).max(1)
    last = minima.gather(1, worst.indices.view(-1, 1, 1, 1).expand(-1, 1, 4, 4))[:, 0]
    others, false = 0, int((proved & beaten).sum())
    for pose, cost, there in (
        (second, found.cost / ratio.clamp_min(1e-300), ratio > 0),
        (last, worst.values, worst.values > -torch.inf),
    ):
        some = there & (cost > lowest * (1 + BETTER) + floor)
        if some.any():
            wrong = given.some(some).solved(init=pose[some], certify=True)
            still = wrong.cost > lowest[some] * (1 + BETTER) + floor[some]
            others += int(still.sum())
            false += int((wrong.certified & still).sum())
    clear = found.converged & (ratio < CLEAR)
    return {
        "problems": len(proved), "certified": int(proved.sum()), "clear": int(clear.sum()),
        "clear_certified": int((proved & clear).sum()), "others": others, "false": false,
        "plain": middle - begin, "proof": end - middle,
    }  # fmt: skip


def main(config: Config) -> list[dict[str, Any]]:
    """Judge, print and save."""
    torch.set_num_threads(1)
    header = [
        "object", "points", "noise, px", "problems", "certified", "clear", "of these certified", "ms a problem",
        "times `pnp`", "minima that are beaten", "false certificates",
    ]  # fmt: skip
    found, lines = [], []
    for number, (name, points, noise, problems, draw) in enumerate(tqdm(list(rows(config)))):
        counts = []
        for i in range(0, problems, config.batch):
            g = torch.Generator().manual_seed(1_000_003 * (config.seed + 1) + 10_007 * number + i)
            counts.append(judged(draw(min(config.batch, problems - i), g), config.starts, g))
        total = {key: sum(each[key] for each in counts) for key in counts[0]}
        found.append({"object": name, "points": points, "noise": noise, **total})
        share, clear = total["certified"] / problems, total["clear_certified"] / max(total["clear"], 1)
        lines.append(
            [
                name, points, noise, f"{problems:,}", f"{share:.1%}", f"{total['clear'] / problems:.1%}",
                f"{clear:.1%}", f"{1e3 * total['proof'] / problems:.2f}", f"{total['proof'] / total['plain']:.0f}",
                f"{total['others']:,}", str(total['false']),
            ]
        )  # fmt: skip
    print(text := table(header, lines))
    save(config.out / "benchmark_certificate", text, {"config": vars(config), "rows": found}, {})
    return found


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.certificate", __doc__))
