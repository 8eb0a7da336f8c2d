"""A link that carries the view, and two runs side by side on one slider."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.viewers.page import side_by_side, write_page
from tests.experiments.viewers.recordings import sphere
from tests.experiments.viewers.screen import settle

pytestmark = pytest.mark.slow  # a browser


def screen(tab: Any) -> np.ndarray:
    settle(tab)
    return np.array(tab.evaluate("Array.from({length: 40}, (_, i) => viewer.screen(i))"))


def test_a_link_leads_to_the_view(tmp_path: Path, visit: Callable[..., Any]) -> None:
    write_page(sphere(), tmp_path / "page.html")
    tab = visit(tmp_path / "page.html")
    tab.wait_for_function("viewer.draws > 0")
    fresh = screen(tab)
    tab.evaluate("viewer.setFrame(7)")
    tab.select_option("#color", "views")
    tab.get_by_label("Grid", exact=True).uncheck()
    tab.locator("#canvas").focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "+", "Shift+ArrowDown"):
        tab.keyboard.press(key)
    seen = screen(tab)
    tab.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    tab.get_by_role("button", name="Copy link").click()
    tab.wait_for_function("window.copied")
    link = tab.evaluate("copied")
    assert link == tab.url
    assert link.startswith((tmp_path / "page.html").as_uri() + "#iteration=7&eye=")

    tab.goto("about:blank")
    tab.goto(link)  # as somebody else would open it
    tab.wait_for_function("viewer.draws > 0")
    np.testing.assert_allclose(screen(tab), seen, atol=1)
    assert tab.evaluate("viewer.frame") == 7
    assert tab.locator("#color").input_value() == "views"
    assert tab.get_by_label("Grid", exact=True).is_checked() is False
    assert tab.get_by_label("Truth", exact=True).is_checked()

    # what an address says wrongly is as if unsaid, and the rest of it holds
    tab.goto("about:blank")
    tab.goto(link.partition("#")[0] + "#iteration=999&eye=1,2&target=,,&colour=pink&size=huge&%&show=truth,nonsense")
    tab.wait_for_function("viewer.draws > 0")
    assert tab.evaluate("viewer.frame") == 19
    assert tab.locator("#color").input_value() == "image"
    np.testing.assert_allclose(screen(tab), fresh, atol=0.5)
    assert tab.locator("#toggles input:checked").evaluate_all("all => all.map((one) => one.name)") == ["truth"]


def test_a_link_says_so_where_it_cannot_be_copied(tmp_path: Path, visit: Callable[..., Any]) -> None:
    write_page(sphere(frames=2), tmp_path / "page.html")
    tab = visit(tmp_path / "page.html")
    tab.wait_for_function("viewer.draws > 0")
    tab.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    tab.get_by_role("button", name="Copy link").click()
    tab.get_by_role("button", name="It is in the address bar").wait_for()
    assert "#iteration=1&" in tab.url


def test_two_runs_share_a_slider_and_a_camera(tmp_path: Path, visit: Callable[..., Any]) -> None:
    left, right = sphere(count=40, frames=12), sphere(count=60, frames=5, seed=1)
    (tmp_path / "both.html").write_text(side_by_side(left, right))
    tab = visit(tmp_path / "both.html", width=1100, height=700)
    tab.wait_for_selector("body[data-ready]")
    pages = tab.frames[1:]
    standing = lambda: [page.evaluate("viewer.frame") for page in pages]
    assert tab.title() == "toy / sphere | toy / sphere"
    assert standing() == [11, 4]
    slider = tab.get_by_role("slider", name="Frame")
    slider.focus()
    tab.keyboard.press("Home")
    assert standing() == [0, 0]
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    assert standing() == [3, 3]  # by iteration
    slider.fill("7")
    assert standing() == [7, 4]  # the shorter one at its end
    assert tab.inner_text("#moment") == "Iteration 7 and 4"
    tab.get_by_label("Together").select_option("share")
    slider.fill("5")
    assert standing() == [5, 2]  # halfway through each

    pages[1].evaluate("viewer.setFrame(4)")  # as a click on one of its curves does
    assert standing() == [11, 4]
    before = [page.evaluate("viewer.look.eye") for page in pages]
    np.testing.assert_allclose(before[0], before[1], atol=1e-6)
    pages[1].locator("#canvas").focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("+")
    for page in pages:
        settle(page)
    after = [page.evaluate("viewer.look.eye") for page in pages]
    np.testing.assert_allclose(after[0], after[1], atol=1e-6)
    assert np.abs(np.subtract(after[0], before[0])).max() > 0.1
    for page in pages:
        assert page.locator("#timeline").is_hidden()
        assert page.get_by_role("button", name="Copy link").is_hidden()
