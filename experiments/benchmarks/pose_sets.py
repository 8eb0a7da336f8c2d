"""How large sets of poses are that hold the truth in 90 % of views: `geometry.pose_set` beside conformal keypoints.

Keypoints of made objects, with errors of several kinds that no set is told of: half of the keypoints ten times as bad,
tails, errors that go together, one in ten anywhere. Levels come from 2,000 views with known poses, coverage and
volumes from as many new ones. Conformal keypoints (Yang and Pavone 2023, arXiv 2303.12246): a view's score is the
largest distance of a keypoint from its prediction, times its weight, and the set is all poses that bring every keypoint
into its disc. Volumes are measured alike: along random directions from the pose of `pnp`, to where the set ends,
and given as the side of a cube of the same volume in six dimensions, of degrees and hundredths of the object's size.

Writes results/benchmark_pose_sets/table.md and table.json.

Presets:

- default: Looks at 2,000 views of each kind.
- smoke: Looks at 200 views of each kind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import conformal_level, geman_mcclure, pose_covariance, pose_set, project, se3

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], **DOUBLE)
SIZE = 2.0  # of the objects
FARTHEST = 100.0  # standard deviations that a set may reach
HALVINGS = 14  # of that, in the search of where a set ends


@dataclass(frozen=True)
class Config:
    views: int = 2000
    """Sets the number of views that give the level, and of those that it is tried on."""
    directions: int = 16
    """Sets along how many directions each set is measured."""
    keypoints: int = 12
    """Sets the number of keypoints of an object."""
    coverage: float = 0.9
    """Sets the share of views in which the sets shall hold the truth."""
    seed: int = 0
    """Seeds all views."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_pose_sets."""

    def __post_init__(self) -> None:
        at_least(self, 1, "directions")
        at_least(self, 20, "views")
        at_least(self, 6, "keypoints")


PRESETS = {"default": Config(), "smoke": Config(views=200, directions=8)}


class Views(NamedTuple):
    """points2d (B,N,2) of points3d (N,3), pose (B,4,4), and weights (N,) that a network would have learned."""

    points2d: Tensor
    points3d: Tensor
    pose: Tensor
    weights: Tensor


ERRORS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "Gaussian": lambda noise, _: noise,
    "tails": lambda noise, g: noise * (3 / torch.randn(*noise.shape, 3, generator=g, **DOUBLE).square().sum(-1)).sqrt(),
    "together": lambda noise, g: noise + torch.randn(len(noise), 1, 2, generator=g, **DOUBLE),
    "one in ten anywhere": lambda noise, g: torch.where(
        torch.rand(*noise.shape[:2], 1, generator=g) < 0.1, 50 * noise, noise
    ),
}  # fmt: skip
"""What becomes of errors (B,N,2) of one pixel."""


def views(kind: str, config: Config, g: torch.Generator) -> Views:
    """Views of one object."""
    B, N = config.views, config.keypoints
    points3d = SIZE * (torch.rand(N, 3, generator=torch.Generator().manual_seed(config.seed), **DOUBLE) - 0.5)
    R = se3.rotation_from_quat_wxyz(torch.randn(B, 4, generator=g, **DOUBLE))
    depth = 4 + 4 * torch.rand(B, 1, generator=g, **DOUBLE)
    pose = se3.make(R, torch.cat([0.2 * depth * (torch.rand(B, 2, generator=g, **DOUBLE) - 0.5), depth], -1))
    sigma = torch.where(torch.arange(N) % 2 == 0, 0.5, 5.0).double()
    noise = ERRORS[kind](torch.randn(B, N, 2, generator=g, **DOUBLE), g)
    return Views(project(points3d, pose, K) + sigma[:, None] * noise, points3d, pose, 1 / sigma)


def worst(given: Views, pose: Tensor, weights: Tensor | None) -> Tensor:
    """The largest distance of a keypoint (B,), times its weight: the score of conformal keypoints."""
    distance = (project(given.points3d, pose, K) - given.points2d).norm(dim=-1)
    return (distance if weights is None else weights * distance).amax(-1)


def sizes(score: Callable[[Tensor], Tensor], level: Tensor, best: Tensor, spread: Tensor, rays: Tensor) -> Tensor:
    """Logarithms of volumes (B,) of {pose: score(pose) <= level} that is seen from poses best (B,4,4), in the metric of
    spread (B,6,6), along rays (S,6) of length one; none where best itself is not in the set."""
    L = torch.linalg.cholesky(spread)
    inside = score(best) <= level
    total = torch.zeros(len(best), **DOUBLE)
    for ray in rays:
        step = L @ ray
        low, high = torch.zeros(len(best), **DOUBLE), torch.full((len(best),), FARTHEST, **DOUBLE)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            held = score(se3.retract(best, middle[:, None] * step)) <= level
            low, high = torch.where(held, middle, low), torch.where(held, high, middle)
        total += low**6
    volume = math.log(math.pi**3 / 6) + (total / len(rays)).log() + L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(inside, volume, -torch.inf)


def judged(kind: str, told: str, config: Config) -> dict[str, Any]:
    """Coverage and sizes of both kinds of sets."""
    known, new = (views(kind, config, torch.Generator().manual_seed(1000 * config.seed + i)) for i in (1, 2))
    weights = known.weights if "weights" in told else None
    kernel = geman_mcclure(4.0 if "weights" in told else 8.0) if "kernel" in told else None
    options: dict[str, Any] = {"weights": weights, "kernel": kernel}
    of_known, of_new = (pose_set(each.points2d, each.points3d, K, **options) for each in (known, new))
    spread = pose_covariance(new.points2d, new.points3d, K, of_new.x, weights=weights, sigma=1.0)
    g = torch.Generator().manual_seed(1000 * config.seed + 3)
    rays = torch.nn.functional.normalize(torch.randn(config.directions, 6, generator=g, **DOUBLE), dim=-1)
    row: dict[str, Any] = {"errors": kind, "told": told}
    # a side in degrees and hundredths of the size: sixth root of the volume
    unit = 3 * math.log(180 / math.pi) + 3 * math.log(100 / SIZE)
    scores = {
        "ours": (of_known.excess(known.pose), of_new.excess),
        "keypoints": (worst(known, known.pose, weights), lambda pose: worst(new, pose, weights)),
    }
    for name, (of_truth, score) in scores.items():
        level = conformal_level(of_truth, config.coverage)
        volume = sizes(score, level, of_new.x, spread, rays)
        row[name] = {
            "coverage": (score(new.pose) <= level).double().mean().item(),
            "side": math.exp((volume.median().item() + unit) / 6),
            "empty": (volume == -torch.inf).double().mean().item(),
        }
    return row


def main(config: Config) -> list[dict[str, Any]]:
    """Measure, print and save."""
    rows = [
        judged(kind, told, config)
        for kind in tqdm(ERRORS)
        for told in ("nothing", "weights", "weights and a kernel")
    ]  # fmt: skip
    header = [
        "errors", "told", "coverage, %", "side", "conformal keypoints: coverage, %", "side", "volume, times ours",
    ]  # fmt: skip
    lines = []
    for row in rows:
        ours, theirs = row["ours"], row["keypoints"]
        lines.append(
            [
                row["errors"], row["told"],
                *(f"{number:.{digits}f}" for each in (ours, theirs) for number, digits in
                  ((100 * each["coverage"], 1), (each["side"], 2))),
                f"{(theirs['side'] / ours['side']) ** 6:.2g}",
            ]
        )  # fmt: skip
    print(text := table(header, lines))
    save(config.out / "benchmark_pose_sets", text, {"config": vars(config), "rows": rows}, {})
    return rows


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.pose_sets", __doc__))
