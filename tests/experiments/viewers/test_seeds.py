"""results/seeds.html: the losses of all seeds and where each ended, in a browser and on disk."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from experiments.viewers.index import write_index
from experiments.viewers.seeds import Axis


def add_run(results: Path, seed: int, losses: list[float], converged: bool = True, **errors: Any) -> Path:
    """A finished run as `Run` leaves it."""
    folder = results / "pose_estimation" / f"default-seed{seed}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"experiment": "pose_estimation", "preset": "default"}))
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))
    (folder / "metrics.csv").write_text(f"step,loss\n{rows}")
    (folder / "index.html").write_text("<!doctype html><title>the page of a run</title>")
    summary = {"converged": converged, "iterations": len(losses), "seconds": 1.5, "loss": losses[-1]}
    summary |= {"errors": errors, "reference": {}, "note": "", "figures": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_places_on_an_axis() -> None:
    linear = Axis.of([2.0, math.inf, 4.0, math.nan])
    assert linear == Axis(2, 4, False)
    assert [linear.at(value) for value in (2, 3, 4)] == [0, 50, 100]
    assert linear.ticks() == [(0, "2"), (50, "3"), (100, "4")]
    powers = Axis.of([1e-6, 0.0, 1.0, 1e-3])
    assert powers is not None
    assert powers.at(1e-3) == pytest.approx(50)
    assert math.isnan(powers.at(0))
    assert [label for _, label in powers.ticks()] == ["1e-6", "1e-4", "1e-2", "1e0"]
    assert Axis.of([math.nan]) is None
    alike = Axis.of([3.0, 3.0])
    assert alike is not None
    assert alike.at(3) == 50


@pytest.mark.slow
def test_losses_and_figures_of_all_seeds(tmp_path: Path, visit: Callable[..., Any]) -> None:
    for seed in range(6):
        losses = [10.0 ** -(i * (seed + 1) / 10) for i in range(50)]
        add_run(tmp_path, seed, losses, seed != 2, rotation_deg=seed, other="nan" if seed == 3 else 1)
    index = visit(write_index(tmp_path))
    assert "Of all seeds 36 to 100 % reach the goal" in index.locator(".card").inner_text()
    index.get_by_role("link", name="Over seeds").click()
    page = index
    assert page.locator("h1").inner_text() == "Over seeds"
    assert "5 of 6 seeds reached the goal" in page.locator(".reach").inner_text()
    assert page.locator(".curves g.good").count() == 5
    assert page.locator(".curves g.bad title").text_content() == "seed 2: goal not reached"

    # the curves lie in their frame, that of the last seed falls from its top to its bottom
    frame = page.locator(".plot").bounding_box()
    box = page.locator(".curves polyline").last.bounding_box()
    assert box["width"] == pytest.approx(frame["width"], abs=5)
    assert 0.85 * frame["height"] < box["height"] <= frame["height"]
    assert box["y"] >= frame["y"]

    turned = page.get_by_role("group", name="rotation (deg)")
    assert turned.locator(".told").inner_text() == "2.5 0 to 5\nmedian within 0 to 5"
    places = turned.locator(".dot").evaluate_all("all => all.map(dot => dot.getBoundingClientRect().x)")
    steps = [b - a for a, b in pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 5, abs=0.5)
    band, middle = (turned.locator(name).bounding_box() for name in (".band", ".median"))
    assert band["x"] + band["width"] / 2 == pytest.approx(middle["x"] + middle["width"] / 2, abs=1)
    assert turned.locator(".dot.bad").count() == 1
    lost = page.get_by_role("group", name="other")
    assert lost.locator(".told").inner_text().strip() == "nan in 1 of 6"
    assert lost.locator(".dot").count() == 5
    assert lost.locator(".band").count() == 0

    turned.locator(".dot").last.click()
    assert page.title() == "the page of a run"


@pytest.mark.slow
def test_it_fits_a_narrow_screen(tmp_path: Path, visit: Callable[..., Any]) -> None:
    for seed in range(3):
        add_run(tmp_path, seed, [3.0, 2.0, 1.0 + seed], rotation_deg=1e-9 * 10**seed)
    write_index(tmp_path)
    page = visit(tmp_path / "seeds.html", width=400)
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_one_seed_is_compared_with_nothing(tmp_path: Path) -> None:
    folder = add_run(tmp_path, 0, [2.0, 1.0])
    (tmp_path / "seeds.html").write_text("of an earlier day")
    assert "seeds.html" not in write_index(tmp_path).read_text()
    assert not (tmp_path / "seeds.html").exists()
    add_run(tmp_path, 1, [2.0, 1.0])
    (folder / "metrics.csv").write_text("step,loss\n0,much\n")  # damaged: it has no curve, and figures all the same
    assert 'href="seeds.html#pose_estimation-default"' in write_index(tmp_path).read_text()
    text = (tmp_path / "seeds.html").read_text()
    assert text.count("<polyline") == 1
    assert "2 of 2" in text
