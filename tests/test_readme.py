"""The README: short, its code runs, and its figures are those of results/reference."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REFERENCE = ROOT / "results" / "reference"


def test_it_can_be_read_at_once() -> None:
    assert len(README.splitlines()) <= 130


@pytest.mark.filterwarnings("error")
def test_its_ten_lines_run() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["solution"].converged.all()  # type: ignore[attr-defined]
    assert names["points2d"].grad.norm() > 0  # type: ignore[attr-defined]


def table(file: str, section: str) -> dict[str, dict[str, str]]:
    """Rows by their label, each cell by its column, of the table whose text or first column begins with `section`."""
    text = (REFERENCE / file).read_text()
    lines = text[text.index(section) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *body = rows
    return {
        " | ".join(row[:2]) if header[0] == "input" else row[0]: dict(zip(header, row, strict=True)) for row in body
    }


def number(text: str) -> float:
    """The first number of a cell."""
    return float(re.findall(r"[\d.,]+(?:e[+-]?\d+)?", text)[0].replace(",", ""))


def figures(row: str) -> tuple[list[float], list[float]]:
    """The numbers in "ours" and in "beside it" of a row of the README."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row}")]
    return tuple([number(n) for n in re.findall(r"[\d.,]*\d(?:e[+-]?\d+)?", cell)] for cell in line.split("|")[2:4])  # type: ignore[return-value]


def test_its_figures_are_those_of_the_reference_runs() -> None:
    gradient = table("gradient_error.md", "| input")
    at = lambda method: number(gradient[f"points2d | {method}"]["1 px"])
    assert figures("relative error") == ([at("exact")], [at("published formula")])

    text = (REFERENCE / "benchmark_pnp.md").read_text()
    backward = text[text.index("## Time, forward + backward") :]
    pnp = table("benchmark_pnp.md", backward[backward.index("| N = 64") :][:400])
    times = [number(pnp[name]["B = 256"]) for name in ("ours", "EPro-PnP", "Theseus", "BPnP_fast")]
    assert figures("PnP and its gradient") == (times[:1], times[1:])
    found = table("benchmark_pnp.md", "## Without a start")["all"]
    names = ("ours, no start", "PoseLib RANSAC, no start", "OpenCV SQPNP, no start")
    shares = [number(found[name]) for name in names]
    assert figures("PnP without a start") == (shares[:1], shares[1:])

    right, cost = (
        table("benchmark_ransac.md", name) for name in ("## Success, 1", "## Microseconds a problem (times ours), 1")
    )
    values = [number(t[name]["50%"]) for name in ("ours", "PoseLib", "OpenCV ITERATIVE") for t in (right, cost)]
    assert figures("RANSAC") == (values[:2], values[2:])

    race = table("benchmark_bundle.md", "## Race")
    ceres = min(number(row["s to 0.1 %"]) for name, row in race.items() if name.startswith("Ceres"))
    (ours,), (theirs,) = figures("bundle of Ladybug-49")
    assert (ours, theirs) == (round(number(race["ours"]["s to 0.1 %"]), 3), ceres)
