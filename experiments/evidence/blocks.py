"""The blocks of README and pages that are made from results/reference, each between two comments that name it:

<!-- made by python -m experiments.claims tables: NAME -->
...
<!-- end of NAME -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.records.files import write_text
from experiments.records.text import number, table

__all__ = ["BLOCKS", "made", "rewrite", "tables_of"]

Row = dict[str, str]


class Table(NamedTuple):
    """A table of a page of results/reference: the heading it stands under, and rows by their first cell."""

    heading: str
    rows: dict[str, Row]

    @property
    def corner(self) -> str:
        """The head of its first column."""
        return next(iter(next(iter(self.rows.values()))))


def tables_of(text: str) -> list[Table]:
    """All tables of a Markdown page, in their order. Rows of equal first cells are told apart by the second."""
    found: list[Table] = []
    heading, lines = "", text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not re.fullmatch(r"\|[\s:|-]+\|", line):
            continue
        header = _cells(lines[i - 1])
        rows: dict[str, Row] = {}
        for below in lines[i + 1 :]:
            if not below.startswith("|"):
                break
            row = dict(zip(header, _cells(below), strict=True))
            first, second = list(row.values())[:2]
            rows[f"{first} {second}" if header[1] == "method" else first] = row
        found.append(Table(heading, rows))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def figure(cell: str) -> str:
    """The first number of a cell, as it is written there."""
    found = re.search(r"\d[\d.,]*(?:e[+-]?\d+)?", cell)
    if not found:
        raise ValueError(f"a cell with a number wanted, got {cell!r}")
    return found[0]


def _table(reference: Path, file: str, heading: str, corner: str = "") -> dict[str, Row]:
    """The rows of the first table under a heading that begins so, and whose first column does."""
    for one in tables_of((reference / file).read_text()):
        if one.heading.startswith(heading) and one.corner.startswith(corner):
            return one.rows
    raise ValueError(
        f"{reference / file}: a table under {heading!r} whose first column is {corner!r} wanted, none found"
    )


# ---- the blocks ----


def measured(reference: Path) -> str:
    """README's table of what was measured."""
    gradient = _table(reference, "gradient_error.md", "", "input")
    error = {method: figure(gradient[f"points2d {method}"]["1 px"]) for method in ("exact", "published formula")}

    pnp = _table(reference, "benchmark_pnp.md", "Time, forward + backward", "N = 64")
    cost = {name: _thousands(figure(pnp[name]["B = 256"])) for name in ("ours", "EPro-PnP", "Theseus", "BPnP_fast")}
    globally = _table(reference, "benchmark_pnp.md", "Without a start")["all"]

    success = _table(reference, "benchmark_ransac.md", "Success, 1 thread")
    took = _table(reference, "benchmark_ransac.md", "Microseconds a problem (times ours), 1 thread")
    ransac = {
        name: f"{success[name]['50%'].replace('%', ' %')}, {_thousands(figure(took[name]['50%']))} µs"
        for name in ("ours", "PoseLib", "OpenCV ITERATIVE")
    }

    race = _table(reference, "benchmark_bundle.md", "Race")
    seconds = {name: figure(row["s to 0.1 %"]) for name, row in race.items() if re.search(r"\d", row["s to 0.1 %"])}
    ceres = min((s for name, s in seconds.items() if name.startswith("Ceres")), key=float)
    rows = [
        [
            "relative error of d(pose)/d(points2d), 1 px of noise", error["exact"],
            f"published BPnP formula: {error['published formula']}",
            "[`gradient_error`](results/reference/gradient_error.md), 50 problems",
        ],
        [
            "PnP and its gradient, 256 poses of 64 points", f"{cost['ours']} µs a pose",
            f"EPro-PnP {cost['EPro-PnP']}, Theseus {cost['Theseus']}, BPnP {cost['BPnP_fast']}",
            "[`benchmarks.pnp full`](results/reference/benchmark_pnp.md)",
        ],
        [
            "PnP without a start: global minimum found", _percent(globally["ours, no start"]),
            f"PoseLib's RANSAC {_percent(globally['PoseLib RANSAC, no start'])}, "
            f"SQPNP {_percent(globally['OpenCV SQPNP, no start'])}",
            "the same, 10,000 problems",
        ],
        [
            "RANSAC, half of the matches wrong", ransac["ours"],
            f"PoseLib {ransac['PoseLib']}; OpenCV {ransac['OpenCV ITERATIVE']}",
            "[`benchmarks.ransac bar`](results/reference/benchmark_ransac.md), 1,000 problems",
        ],
        [
            "bundle of Ladybug-49, to 0.1 % of its minimum", f"{float(seconds['ours']):.3f} s",
            f"best of Ceres: {ceres} s",
            "[`benchmarks.bundle`](results/reference/benchmark_bundle.md), 5 runs",
        ],
    ]  # fmt: skip
    return table(["", "ours", "beside it", "`python -m experiments.`"], rows)


def routes(reference: Path) -> str:
    """Seconds of every route on every scene, until the minimum; from random points, for each start that gets there."""
    scenes = {
        "overlap": "24 views all around, half of the points seen in each",
        "few_views": "3 views",
        "ring": "ring of 60 cameras, each point seen by 5, drifted start",
        "weak_perspective": "weak perspective",
        "outliers_robust": "10 % outliers, robust kernel",
        "tracks": "Ladybug: 49 cameras, 7,766 points",
        "random_start": "random points, nothing known: seconds a success",
    }
    titles = {
        "backprop": "backprop through PnP",
        "adam": "Adam through PnP",
        "alternating": "alternating",
        "bundle": "bundle",
    }
    text = (reference / "routes.md").read_text()
    by_scene = {one.heading: one.rows for one in tables_of(text)}
    rows = []
    for scene, told in scenes.items():
        seconds = {route: by_scene[scene].get(route, {}).get("to the minimum, s", "–") for route in titles}
        reached = dict.fromkeys(titles, "")
        if scene == "random_start":
            _, _, section = text.partition(f"## {scene}")
            seconds |= dict(re.findall(r"(\w+) ([\d.]+) s\b", section.partition("\n|")[0]))
            reached = {route: f" ({row['remark'].partition(';')[0]})" for route, row in by_scene[scene].items()}
        cells = {route: f"{float(s):.2g}" if re.match(r"\d", s) else s for route, s in seconds.items()}
        best = min((cell for cell in cells.values() if re.match(r"\d", cell)), key=float)
        cells = {route: f"**{cell}**" if cell == best else cell for route, cell in cells.items()}
        rows.append([told, *(cells[route] + reached[route] for route in titles)])
    return table(["tracks", *titles.values()], rows)


def object_poses(reference: Path) -> str:
    """The means over objects of every loss that was trained with."""
    means: Row = {}
    for one in tables_of((reference / "object_pose.md").read_text()):
        means |= one.rows.get("mean", {})
    titles = {"0.02 d": "ADD(-S) 0.02 d", "AR": "BOP's AR"}
    measures = ("0.02 d", "0.05 d", "0.1 d", "5 cm, 5°", "AR")
    losses = [column.partition(": ")[2] for column in means if column.startswith(f"{measures[0]}: ")]
    rows = []
    for loss in losses:
        cells = [means[f"{measure}: {loss}"] for measure in measures]
        rows.append([loss, *(re.sub(r"[\d.]+", lambda n: f"{n[0]} %", cell) for cell in cells)])
    return table(["", *(titles.get(measure, measure) for measure in measures)], rows)


BLOCKS: Mapping[str, Mapping[str, Callable[[Path], str]]] = {
    "README.md": {"measured": measured},
    "docs/results.md": {"routes": routes, "object poses": object_poses},
}


def made(text: str, page: str, reference: Path) -> str:
    """The text of a page with its blocks as the reference has them. Raises ValueError where one has no place in it."""
    for name, make in BLOCKS[page].items():
        begin, end = f"<!-- made by python -m experiments.claims tables: {name} -->\n", f"<!-- end of {name} -->"
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not begun or not ended:
            raise ValueError(f"{page}: the comments around the block {name!r} wanted, not found")
        text = f"{before}{begin}\n{make(reference)}\n{end}{after}"
    return text


def rewrite(root: Path, reference: Path) -> None:
    """Make the blocks of all pages anew."""
    for page in BLOCKS:
        write_text(root / page, made((root / page).read_text(), page, reference))


def _thousands(written: str) -> str:
    value = float(written.replace(",", ""))
    return f"{value:,.0f}" if value >= 1000 else number(value)


def _percent(cell: str) -> str:
    return f"{figure(cell)} %"
