"""Figures in the prose of docs/ are those of the tables of results/reference that they are read off."""

import json
import re
from pathlib import Path
from statistics import median

from experiments import camera_calibration, pose_estimation
from experiments.evidence.blocks import figure, tables_of

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "results" / "reference"


def prose(page: str) -> str:
    """A page in one line, without its blocks."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    return " ".join(text.split())


def values_of(claim: str, measure: str) -> list[float]:
    """What each seed of a claim found."""
    return json.loads((REFERENCE / "claims.json").read_text())["claims"][claim]["values"][measure]


def test_the_picture_of_readme_is_told_as_it_is() -> None:
    run = "structure_from_motion real"
    degrees = median(values_of(run, "rotations off the gantry's, median, degrees"))
    share = median(values_of(run, "centres off the gantry's, median, % of the ring"))
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"rotations agree to {degrees:.2f} degrees, centres to {share:.2f} % of the ring" in text


def test_runs_are_held_against_what_the_published_formula_takes() -> None:
    for driver in (pose_estimation, camera_calibration):
        name = driver.__name__.rpartition(".")[2]
        found = values_of(f"{name} paper --gradient published", "iterations until then")
        assert driver.PUBLISHED["iterations"] == f"{min(found)} to {max(found)}"


def test_how_exact_the_marks_of_targets_are() -> None:
    ((_, rows),) = tables_of((REFERENCE / "benchmark_targets.md").read_text())
    value = lambda row, column: float(figure(rows[row][column]))
    marks = {row: value(row, "OpenCV's marks, px") / value(row, "ours, px") for row in rows}
    cameras = {row: value(row, "camera by OpenCV, px") / value(row, "ours") for row in rows}
    circles = {row for row in rows if row.startswith("circles")}
    corners = rows.keys() - circles
    text = prose("speed.md")
    low, high = (of(marks[row] for row in corners) for of in (min, max))
    assert f"Corners are {low:.1f} (tags, some of them hidden in part) to {high:.0f} times as exact" in text
    low, high = (of(cameras[row] for row in corners) for of in (min, max))
    assert f"cameras from them {low:.0f} to {high:.0f} times" in text
    assert (
        "Circles are five to seven times as exact, and yet the cameras from them are two to three times worse" in text
    )
    assert {round(marks[row]) for row in circles} == {5, 7}
    assert {round(1 / cameras[row]) for row in circles} == {2, 3}


def test_what_a_call_for_one_pose_takes() -> None:
    tables = tables_of((REFERENCE / "benchmark_pnp.md").read_text())
    forward, both = (
        figure(one.rows["ours"]["B = 1"])
        for heading in ("Time, forward", "Time, forward + backward")
        for one in tables
        if (one.heading, one.corner) == (heading, "N = 8")
    )
    assert f"one pose of 8 points takes {forward} microseconds, and {both} with its gradient" in prose("speed.md")


def test_shares_of_stated_intervals_that_hold_the_truth() -> None:
    lines = [line.split("|") for line in (REFERENCE / "coverage.md").read_text().splitlines() if line.startswith("| ")]
    header, _, *body = [[cell.strip() for cell in line[1:-1]] for line in lines]
    rows = [dict(zip(header, line, strict=True)) for line in body]
    is_of = lambda row, *what: (row[""], row["kernel"], row["points"]) == what
    each = lambda keep: [float(row["each"]) for row in rows if keep(row)]
    text = prose("uncertainty.md")

    few = each(lambda row: (row[""], row["points"], row["wrong"]) == ("pose", "10", "35 %"))
    assert f"a third of which is wrong, {min(few):.0f} to {max(few):.0f} %" in text
    huber = {row["wrong"]: float(row["each"]) for row in rows if is_of(row, "pose", "huber(1.5)", "200")}
    assert f"points with 20 % (35 %) wrong, {huber['20 %']:.0f} % ({huber['35 %']:.0f} %)" in text
    ransac = each(lambda row: row[""].endswith("threshold 2.5 sigma"))
    assert f"cuts noise off that belongs there: {min(ransac):.0f} to {max(ransac):.0f} %" in text


def test_no_wrong_shape_was_found() -> None:
    header, _, *rows = re.findall(r"^\|.*\|$", (REFERENCE / "benchmark_from_nothing.md").read_text(), re.MULTILINE)
    column = header.split("|").index(" WRONG ")
    assert len(rows) > 40
    assert {row.split("|")[column] for row in rows} == {" 0 "}
    assert "In no scene of the table a WRONG shape was FOUND." in prose("results.md")
