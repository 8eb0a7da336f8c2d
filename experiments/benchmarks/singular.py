"""Is CONVERGED ever said where the data determine nothing, and always where they do?

Random problems of two kinds, each solved as its task solves it, and their statuses counted.

- undetermined: poses from points on a line, which may lie along an axis of the camera, come many times over or have
  weights over twelve orders of magnitude; registration and homography of points on a line; the relative pose of views
  that have turned alone; triangulation from one place; bundles of two scenes that share nothing. None may be CONVERGED.
- determined: poses from boxes, planes, small and far objects and boxes a thousand times as long as wide, with noise up
  to two pixels, or two hundredths of one where the image is small. They should be CONVERGED.
- condition: poses from ever thinner boxes, by the condition number of J^T J, its diagonal scaled to one, as the square
  of that of J at the truth. By double precision, an end comes at about 1e13.

Writes results/benchmark_singular/table.md and table.json.

Presets:

- default: Solves a million problems that determine nothing, and 120,000 others.
- smoke: Solves a few thousand.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import Status, bundle, geman_mcclure, pnp, project, se3
from geometry.consensus.minimal.homography import transfer
from geometry.tasks.homography import homography
from geometry.tasks.point_registration import point_registration
from geometry.tasks.relative_pose import relative_pose
from geometry.tasks.triangulation import triangulation

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
K = torch.tensor([[800.0, 0.0, 320.0], [0.0, 800.0, 240.0], [0.0, 0.0, 1.0]], **DOUBLE)
POINTS = (3, 4, 6, 12, 50, 200, 400)

Family = Callable[[int, int], Tensor]
"""Statuses of as many problems, made from a seed."""


@dataclass(frozen=True)
class Config:
    undetermined: int = 1_000_000
    """Sets the number of problems that determine nothing, shared out among the families."""
    determined: int = 100_000
    """Sets the number of problems that determine a pose."""
    condition: int = 20_000
    """Sets the number of problems of the table of condition numbers; a tenth of them are solved in tensors too."""
    batch: int = 2000
    """Sets the number of problems a call."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_singular."""

    def __post_init__(self) -> None:
        at_least(self, 1, "undetermined", "determined", "condition", "batch")


# ---- poses ----


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, **DOUBLE)


def even(*shape: int, generator: torch.Generator) -> Tensor:
    """Evenly between -1 and 1."""
    return 2 * torch.rand(*shape, generator=generator, **DOUBLE) - 1


def poses_before_the_camera(centre: Tensor, generator: torch.Generator) -> Tensor:
    """world_to_camera (B,4,4), turned at will, that have the centres (B,3) some 5 units ahead."""
    B = len(centre)
    shift = torch.cat([0.3 * normal(B, 2, generator=generator), 5 + 0.3 * normal(B, 1, generator=generator)], -1)
    R = se3.from_rotvec_t(normal(B, 6, generator=generator))[:, :3, :3]
    return se3.make(R, shift - (R @ centre[..., None])[..., 0])


def on_a_line(B: int, N: int, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """points3d (B,N,3) on a line, and world_to_camera (B,4,4): "any" line, one "along an axis" of the camera, "many
    times" eight points each.
    """
    pose = poses_before_the_camera(torch.zeros(B, 3, **DOUBLE), generator)
    along = normalize(normal(B, 1, 3, generator=generator), dim=-1)
    if kind == "along an axis":
        axis = torch.randint(3, (B,), generator=generator)
        along = pose[torch.arange(B), axis, :3][:, None]
    places = even(B, N, 1, generator=generator)
    if kind == "many times":
        places = places[:, :8].repeat(1, -(-N // 8), 1)[:, :N]
    return places * along + 0.1 * (kind == "any") * normal(B, 1, 3, generator=generator), pose


def collinear(kind: str, **options: Any) -> Family:
    """Pose from points on a line. options: those of `pnp`; start=False seeks it, weighted=True weighs points."""
    start, weighted = options.pop("start", True), options.pop("weighted", False)

    def statuses(B: int, seed: int) -> Tensor:
        g = generator_of(seed)
        N = max(POINTS[seed % len(POINTS)], 3 if start else 4)
        X, pose = on_a_line(B, N, kind, g)
        x = project(X, pose, K) + (seed // len(POINTS) % 3) ** 2 * 0.25 * normal(B, N, 2, generator=g)
        weights = 10 ** (6 * even(B, N, generator=g)) if weighted else None
        return pnp(x, X, K, init=pose if start else None, weights=weights, **options).status

    return statuses


# ---- other tasks ----


def registered(B: int, seed: int) -> Tensor:
    g = generator_of(seed)
    X, pose = on_a_line(B, 10, ("any", "along an axis")[seed % 2], g)
    Y = se3.transform(pose, X)
    return point_registration(X, Y + 0.01 * (seed % 3) * normal(*Y.shape, generator=g), scale=seed % 4 < 2).status


def flat(B: int, seed: int) -> Tensor:
    g = generator_of(seed)
    along = normalize(normal(B, 1, 2, generator=g), dim=-1)
    a = 320 + 200 * even(B, 12, 1, generator=g) * along
    sizes = torch.tensor([[0.1, 0.1, 30.0], [0.1, 0.1, 30.0], [1e-4, 1e-4, 0.0]], **DOUBLE)
    true = torch.eye(3, **DOUBLE) + sizes * normal(B, 3, 3, generator=g)
    b = transfer(true, a)
    return homography(a, b + 0.5 * (seed % 2) * normal(*b.shape, generator=g)).status


def turned(B: int, seed: int) -> Tensor:
    g = generator_of(seed)
    pose = poses_before_the_camera(torch.zeros(B, 3, **DOUBLE), g)
    X = even(B, 20, 3, generator=g)
    turn = se3.from_rotvec_t(torch.cat([0.1 * normal(B, 3, generator=g), torch.zeros(B, 3, **DOUBLE)], -1))
    return relative_pose(project(X, pose, K), project(X, turn @ pose, K), K, K).status


def from_one_place(B: int, seed: int) -> Tensor:
    g = generator_of(seed)
    pose = poses_before_the_camera(torch.zeros(B, 3, **DOUBLE), g)
    turns = se3.from_rotvec_t(torch.cat([0.1 * normal(B, 4, 3, generator=g), torch.zeros(B, 4, 3, **DOUBLE)], -1))
    views = turns @ pose[:, None]
    x = project(0.3 * even(B, 1, 1, 3, generator=g), views, K)[:, :, 0]
    return triangulation(x + 0.5 * (seed % 2) * normal(*x.shape, generator=g), views, K.expand(B, 4, 3, 3)).status


def apart(B: int, seed: int) -> Tensor:
    """Bundles of two pairs of views that share no point: the second may move against the first."""
    found = []
    for i in range(B):
        g = generator_of(seed * 100_003 + i)
        X = even(24, 3, generator=g)
        turn = 0.3 * normal(4, 3, generator=g)
        shift = torch.cat([0.5 * normal(4, 2, generator=g), 5 + 0.3 * normal(4, 1, generator=g)], -1)
        pose = se3.from_rotvec_t(torch.cat([turn, shift], -1))
        view = torch.arange(4).repeat_interleave(12)
        point = torch.cat([torch.arange(12)] * 2 + [torch.arange(12, 24)] * 2)
        x = project(X[point][:, None], pose[view], K)[:, 0] + 0.5 * (seed % 2) * normal(48, 2, generator=g)
        found.append(bundle(x, view, point, pose, X, K).status)
    return torch.cat(found)


UNDETERMINED: dict[str, tuple[Family, float]] = {
    "pose, with a start": (collinear("any"), 0.3009),
    "pose, sought": (collinear("any", start=False), 0.14),
    "pose, line along an axis": (collinear("along an axis"), 0.15),
    "pose, line along an axis, sought": (collinear("along an axis", start=False), 0.05),
    "pose, the same points many times": (collinear("many times"), 0.1),
    "pose, weights from 1e-6 to 1e6": (collinear("any", weighted=True), 0.1),
    "pose, robust": (collinear("any", kernel=geman_mcclure(1.0)), 0.05),
    "pose, float32": (collinear("any", solve_dtype=torch.float32), 0.05),
    "pose, in tensors": (collinear("any", gradient="unrolled"), 0.01),
    "pose, line along an axis, in tensors": (collinear("along an axis", gradient="unrolled"), 0.01),
    "registration": (registered, 0.025),
    "homography": (flat, 0.005),
    "triangulation": (from_one_place, 0.008),
    "relative pose": (turned, 0.001),
    "bundle": (apart, 0.0001),
}
"""Each family, and its part of all problems: the slower, the smaller."""


# ---- what the data determine ----


def boxes(B: int, N: int, kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """points2d without noise, points3d, world_to_camera, and the generator to go on with."""
    g = generator_of(seed)
    size = {"plane": (1.0, 1.0, 0.0), "small": (0.01,) * 3, "thin": (1.0, 1e-3, 1e-3)}.get(kind, (1.0,) * 3)
    X = even(B, N, 3, generator=g) * torch.tensor(size, **DOUBLE) + (1e5 if kind == "far" else 0.0)
    pose = poses_before_the_camera(X.mean(1), g)
    return project(X, pose, K), X, pose, g


def solid(kind: str, fewest: int = 3, **options: Any) -> Family:
    start = options.pop("start", True)

    def statuses(B: int, seed: int) -> Tensor:
        N = max(POINTS[seed % len(POINTS)], fewest)
        x, X, pose, g = boxes(B, N, kind, seed)
        near = se3.retract(pose, (1e-8 if kind == "far" else 1e-3) * normal(B, 6, generator=g))
        # little beside what is narrowest in the image
        size = 0.01 if kind in ("small", "thin") else 1.0
        noise = (0.0 if N == 3 else size) * (seed // len(POINTS) % 3)
        x = x + noise * normal(B, N, 2, generator=g)
        return pnp(x, X, K, init=near if start else None, **options).status

    return statuses


DETERMINED: dict[str, tuple[Family, float]] = {
    **{f"{kind}, with a start": (solid(kind), 0.15) for kind in ("box", "plane", "small", "thin", "far")},
    **{f"{kind}, sought": (solid(kind, 4, start=False), 0.05) for kind in ("box", "plane", "thin", "far")},
    "box, in tensors": (solid("box", 4, gradient="unrolled"), 0.025),
    "plane, in tensors": (solid("plane", 4, gradient="unrolled"), 0.025),
}


def conditions(X: Tensor, pose: Tensor) -> Tensor:
    """Condition number (B,) of J^T J at the truth, its diagonal scaled to one: the square of that of J."""
    X = X - X.mean(1, keepdim=True)
    q = X @ pose[:, :3, :3].mT
    p = q + pose[:, None, :3, 3]
    zero, one = torch.zeros_like(p[..., 0]), torch.ones_like(p[..., 0])
    x, y = (p[..., :2] / p[..., 2:]).unbind(-1)
    D = (
        800
        / p[..., 2, None, None]
        * torch.stack([torch.stack([one, zero, -x], -1), torch.stack([zero, one, -y], -1)], -2)
    )
    J = torch.cat([torch.linalg.cross(q[..., None, :].expand_as(D), D), D], -1).flatten(1, 2)
    values = torch.linalg.svdvals(J / J.norm(dim=1, keepdim=True))
    return (values[:, 0] / values[:, -1]).square()


def thinner(B: int, seed: int) -> tuple[Tensor, ...]:
    """Condition numbers (B,) of boxes of twelve points between 1e-2 and 1e-9 wide, and what `pnp` is given."""
    g = generator_of(seed)
    X = even(B, 12, 3, generator=g)
    width = 10 ** (-5.5 + 3.5 * even(B, 1, 1, generator=g))
    X[..., 1:] *= width
    pose = poses_before_the_camera(torch.zeros(B, 3, **DOUBLE), g)
    # about their mean, as the solver turns them
    x = project(X, pose, K) + 0.1 * width * normal(B, 12, 2, generator=g)
    shifted = se3.make(pose[:, :3, :3], (pose[:, :3, :3] @ X.mean(1)[..., None])[..., 0] + pose[:, :3, 3])
    return conditions(X, shifted), x, X, pose


# ---- counts ----


def batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    for seed, begin in enumerate(range(0, count, size)):
        yield min(size, count - begin), seed


def count(families: dict[str, tuple[Family, float]], total: int, batch: int) -> dict[str, dict[str, int]]:
    """Of every family, how many problems there were and how many of them ended with each status."""
    found = {}
    for name, (family, part) in tqdm(families.items(), "families"):
        number = max(1, round(part * total))
        # batches of at most a hundredth, so that all sizes and noises have their turn
        size = max(1, min(batch, number // 21))
        statuses = torch.cat([family(*each) for each in batches(number, size)])
        found[name] = {"problems": number, **{s.name: int((statuses == s).sum()) for s in Status}}
    return found


def count_by_condition(total: int, batch: int) -> list[dict[str, Any]]:
    """A row for every decade of the condition number: the shares of CONVERGED, compiled and in tensors."""
    every, compiled, tensors, few = [], [], [], []
    for B, seed in tqdm(list(batches(total, batch)), "condition"):
        condition, x, X, pose = thinner(B, seed)
        every.append(condition)
        compiled.append(pnp(x, X, K, init=pose).status)
        part = slice(0, max(1, B // 10))
        few.append(condition[part])
        tensors.append(pnp(x[part], X[part], K, init=pose[part], gradient="unrolled").status)
    rows = []
    for decade in range(6, 17):
        row: dict[str, Any] = {"condition": 10.0**decade}
        for name, where, statuses in (("compiled", every, compiled), ("tensors", few, tensors)):
            inside = (torch.cat(where).log10().round() == decade).nonzero()[:, 0]
            of = torch.cat(statuses)[inside]
            row[name] = {"problems": len(of), **{s.name: int((of == s).sum()) for s in Status}}
        rows.append(row)
    return rows


def counts_table(found: dict[str, dict[str, int]]) -> str:
    names = [s.name for s in Status if any(row[s.name] for row in found.values()) or s == Status.CONVERGED]
    total = {key: sum(row[key] for row in found.values()) for key in ("problems", *names)}
    rows = [[name, *(row[key] for key in ("problems", *names))] for name, row in {**found, "all": total}.items()]
    return table(["", "problems", *names], [[str(cell) for cell in row] for row in rows])


def main(config: Config) -> dict[str, Any]:
    """Count, print and save."""
    undetermined = count(UNDETERMINED, config.undetermined, config.batch)
    determined = count(DETERMINED, config.determined, config.batch)
    rows = count_by_condition(config.condition, config.batch)
    keys = ("problems", "CONVERGED", "STALLED", "SINGULAR")
    head = [f"{end}: {key}" for end in ("compiled", "tensors") for key in keys]
    cells = [
        [f"{row['condition']:.0e}", *(str(row[end][key]) for end in ("compiled", "tensors") for key in keys)]
        for row in rows
    ]
    parts = ["## What the data do not determine\n", counts_table(undetermined)]
    parts += ["## What they determine\n", counts_table(determined)]
    parts += ["## By the condition number of J^T J, its diagonal scaled to one\n", table(["condition", *head], cells)]
    print(text := "\n".join(parts))
    results = {"config": vars(config), "undetermined": undetermined, "determined": determined, "condition": rows}
    save(config.out / "benchmark_singular", text, results, {})
    return results


PRESETS = {
    "default": Config(),
    "smoke": Config(undetermined=4000, determined=1000, condition=500),
}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.singular", __doc__))
