"""Shapes from nothing: how often `find_structure` finds the right one, how often it says that it cannot tell, and why.

Made views of a ball, a plane and a rod (`datasets.made.unknown_shapes`), neither poses nor structure given. RIGHT is
what is FOUND, is the minimum that the bundle reaches from the truth (cost within 1e-6 of its own, on the same
observations), and is within five of its own standard deviations of the truth; WRONG is what is FOUND and is not.
`possible` counts the scenes whose right observations determine the shape, by the bundle from the truth: it converges,
and ends within a tenth of the size. Minima that fit as well as the truth, which make a scene ambiguous, are only seen
by the search.

Writes results/benchmark_from_nothing/table.md and table.json.

Presets:

- default: Seeks the shapes of 20 scenes a row.
- smoke: Seeks the shapes of two scenes in two groups of rows.
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.made.unknown_shapes import UnknownShape, UnknownViews, made_unknown
from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import align_similarity, bundle, find_structure
from geometry.reconstruction import StructureSolution

Free = tuple[()] | tuple[Literal["f"]]
REASONS = ("UNDETERMINED", "AMBIGUOUS", "EXHAUSTED")


class Cell(NamedTuple):
    """A row: what is seen, and what is sought. The focal length, where it is, begins 1.4 times too long."""

    what: UnknownShape
    free: Free = ()

    @property
    def sigma(self) -> float:
        """What the search is told of the noise, in px: the truth, and a tenth where there is none."""
        return max(self.what.noise, 0.1)


VIEWS = (2, 3, 4, 5, 6, 8, 12)
CELLS = {
    "all visible": [Cell(UnknownShape(views=V)) for V in VIEWS],
    "half visible": [Cell(UnknownShape(views=V, visible="half")) for V in VIEWS[1:]],
    "few and many points": [
        Cell(UnknownShape(views=V, points=N, visible="half")) for N in (20, 100) for V in (3, 6)
    ],
    "noise": [Cell(UnknownShape(noise=noise)) for noise in (0.0, 1.0, 2.0)],
    "plane": [Cell(UnknownShape(views=V, shape="plane")) for V in (2, 3, 4, 6)],
    "rod": [Cell(UnknownShape(views=V, shape="rod")) for V in (3, 4, 6)],
    "20 % wrong": [
        *(Cell(UnknownShape(views=V, wrong=0.2)) for V in (2, 3, 4, 6)),
        *(Cell(UnknownShape(shape=shape, wrong=0.2)) for shape in ("plane", "rod")),
        Cell(UnknownShape(views=6, points=100, visible="half", wrong=0.2)),
    ],
    "focal length unknown": [
        *(Cell(UnknownShape(views=V), ("f",)) for V in (2, 3, 4, 6)),
        Cell(UnknownShape(views=6, visible="half"), ("f",)),
        Cell(UnknownShape(shape="plane"), ("f",)),
        Cell(UnknownShape(far=10.0), ("f",)),
    ],
    "not to be told": [
        Cell(UnknownShape(far=1000.0)),
        Cell(UnknownShape(views=3, points=10, visible="half")),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    cells: tuple[str, ...] = tuple(CELLS)
    """Lists the groups of rows, of `CELLS`."""
    scenes: int = 20
    """Sets the number of scenes a row."""
    seed: int = 200
    """Seeds the first scene."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_from_nothing."""

    def __post_init__(self) -> None:
        at_least(self, 1, "scenes")
        if not set(self.cells) <= set(CELLS):
            raise ValueError(f"cells must be among {', '.join(CELLS)}, got {', '.join(self.cells)}")


class Fit(NamedTuple):
    """A bundle: its cost in units of sigma, the shape, and whether it is at a minimum."""

    cost: float
    points3d: Tensor
    converged: bool


def fitted(cell: Cell, views: UnknownViews, used: Tensor, poses: Tensor, points: Tensor, K: Tensor) -> Fit:
    """The bundle of the observations that are used (V,N), from a start."""
    camera, point = used.nonzero().T
    found = bundle(
        views.points2d[camera, point], camera, point, poses, points, K[:1], free=("poses", "points", *cell.free),
        intrinsics_index=torch.zeros(len(K), dtype=torch.int64),
        weights=poses.new_full((len(camera),), 1 / cell.sigma),
    )  # fmt: skip
    return Fit(found.cost.item(), found.x.points3d, bool(found.converged.all()))


def share(points: Tensor, points_gt: Tensor) -> float:
    """The rms distance after a similarity, as a share of the truth's rms radius, which is 1."""
    return (align_similarity(points, points_gt).apply(points) - points_gt).square().sum(-1).mean().sqrt().item()


def right(cell: Cell, views: UnknownViews, found: StructureSolution) -> bool:
    """Whether the bundle goes to the same place from what was found and from the truth, and noise led so far off."""
    used = found.inlier & found.determined
    there = fitted(cell, views, used, found.world_to_camera, found.points3d, found.K)
    truth = fitted(cell, views, used, views.world_to_camera, views.points3d, views.K)
    apart = share(there.points3d[found.determined], truth.points3d[found.determined])
    off = share(found.points3d[found.determined], views.points3d[found.determined])
    return abs(there.cost - truth.cost) <= 1e-6 * truth.cost + 1e-9 and apart < 1e-3 and off < 5 * found.deviation


def possible(cell: Cell, views: UnknownViews) -> bool:
    """Whether the right observations, of points that two views see rightly, determine a shape next to the truth."""
    used = views.visible & ~views.wrong
    used &= used.sum(0) > 1
    truth = fitted(cell, views, used, views.world_to_camera, views.points3d, views.K)
    seen = used.any(0)
    return truth.converged and share(truth.points3d[seen], views.points3d[seen]) < 0.1


def measured(cell: Cell, config: Config) -> dict[str, Any]:
    """A row."""
    counts: Counter[str] = Counter()
    shares, seconds = [], []
    for seed in range(config.seed, config.seed + config.scenes):
        views = made_unknown(cell.what, seed)
        K = views.K * views.K.new_tensor([[1.4, 1, 1], [1, 1.4, 1], [1, 1, 1]]) if cell.free else views.K
        torch.manual_seed(seed)
        start = time.process_time()
        found = find_structure(views.points2d, views.visible, K, sigma=cell.sigma, free=cell.free)
        seconds.append(time.process_time() - start)
        counts["possible"] += possible(cell, views)
        if found.found:
            counts["RIGHT" if right(cell, views, found) else "WRONG"] += 1
            shares.append(share(found.points3d[found.determined], views.points3d[found.determined]))
        else:
            counts[found.verdict] += 1
    middle = torch.tensor(shares).median().item() if shares else None
    return {
        "cell": {**vars(cell.what), "free": cell.free}, "counts": dict(counts), "share": middle,
        "seconds": torch.tensor(seconds).median().item(), "slowest": max(seconds),
    }  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    """Of the table."""
    cell, counts = row["cell"], Counter(row["counts"])
    more = [cell["shape"], f"{cell['visible']} seen", f"{cell['noise']} px"]
    more += [f"{100 * cell['wrong']:.0f} % wrong"] if cell["wrong"] else []
    more += ["f unknown"] if cell["free"] else []
    more += [f"{cell['far']:.0f} times as far"] if cell["far"] != 1 else []
    told = ", ".join(f"{counts[reason]} {reason}" for reason in REASONS if counts[reason])
    return [
        row["group"], str(cell["views"]), str(cell["points"]), ", ".join(more), str(counts["possible"]),
        str(counts["RIGHT"]), str(counts["WRONG"]), told,
        "" if row["share"] is None else f"{100 * row['share']:.2g} %", f"{row['seconds']:.1f}", f"{row['slowest']:.1f}",
    ]  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Measure, print and save; what there is after every row, as all of them take ten minutes."""
    torch.set_num_threads(1)
    head = ["", "views", "points", "scene", "possible", "RIGHT", "WRONG", "cannot tell", "rms", "s", "slowest"]
    last = config.seed + config.scenes - 1
    said = f"{config.scenes} scenes a row, seeds {config.seed} to {last}; seconds of one processor, median and most."
    rows: list[dict[str, Any]] = []
    text = ""
    cells = [(group, cell) for group in config.cells for cell in CELLS[group]]
    for group, cell in tqdm(cells):
        rows.append({"group": group, **measured(cell, config)})
        text = f"{said}\n\n{table(head, [line(row) for row in rows])}"
        save(config.out / "benchmark_from_nothing", text, {"rows": rows}, {})
    print(text)
    return {"rows": rows}


PRESETS = {"default": Config(), "smoke": Config(cells=("noise", "not to be told"), scenes=2)}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.from_nothing", __doc__))
