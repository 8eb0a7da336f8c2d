"""The page by night, on a phone, and by keyboard alone."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.viewers.page import write_page
from tests.commands import PATIENCE
from tests.experiments.viewers.recordings import keypoints, sphere
from tests.experiments.viewers.screen import near, pixels, settle

pytestmark = pytest.mark.slow  # a browser

NIGHT, NIGHTS_BLUE, NIGHTS_ORANGE = "#14171B", "#56B4E9", "#F28C38"
PAINTED = """(night) => {
    const gl = document.querySelector("#canvas").getContext("webgl2");
    return gl.getParameter(gl.COLOR_CLEAR_VALUE)[0] < 0.5 === night;
}"""
MANY = {f"error {i}": 10.0**i for i in range(20)}


@pytest.fixture(scope="module")
def tab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One tab for all tests, which is faster: of a run with points, cameras, image points and many figures."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    summary = sphere().summary | {"errors": MANY}
    write_page(replace(keypoints(), summary=summary), path)
    with browser.new_context(offline=True) as context:
        context.set_default_timeout(1000 * PATIENCE)
        page, troubles = context.new_page(), []
        page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("viewer.draws > 0")
        yield page
        assert troubles == []


@pytest.fixture
def at(tab: Any) -> Callable[..., Any]:
    """at(width, height, scheme): the tab as it is there, at the last frame."""

    def set_(width: int, height: int, scheme: str = "light") -> Any:
        tab.emulate_media(color_scheme=scheme)
        tab.set_viewport_size({"width": width, "height": height})
        tab.wait_for_function(PAINTED, arg=scheme == "dark")  # the browser tells the page some frames later
        tab.evaluate("viewer.setFrame(viewer.frames - 1)")
        settle(tab)
        return tab

    return set_


def test_night_changes_all_that_is_drawn_while_the_page_is_open(at: Callable[..., Any]) -> None:
    by_day = {part: pixels(at(1100, 700), part) for part in ("#canvas", "#image-canvas", ".chart >> nth=0")}
    night = at(1100, 700, "dark")
    for part, day in by_day.items():
        image = pixels(night, part)
        assert near(day, "#FFFFFF") > 0.6 * day[..., 0].size, part
        assert near(image, NIGHT) > 0.6 * image[..., 0].size, part
        assert near(image, NIGHTS_BLUE) > 20, part  # cameras, points, the curve
    assert near(pixels(night, ".chart >> nth=0"), NIGHTS_ORANGE) > 50  # its target
    again = at(1100, 700)
    np.testing.assert_array_equal(pixels(again, "#canvas"), by_day["#canvas"])


@pytest.mark.parametrize(("width", "height"), [(390, 844), (360, 740)])
def test_a_phone_shows_all_of_it(at: Callable[..., Any], width: int, height: int) -> None:
    tab = at(width, height)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    cut = """() => [...document.querySelectorAll("dd, .value, .target, #counts, #moment span, .u-axis, .plot canvas")]
        .filter((part) => part.checkVisibility())
        .filter((part) => {
            const { left, right } = part.getBoundingClientRect();
            return left < 0 || right > innerWidth || part.scrollWidth > part.clientWidth + 1 && part.tagName === "DD";
        }).map((part) => part.outerHTML)"""
    assert tab.evaluate(cut) == []
    box = tab.locator(".chart .plot canvas").first.bounding_box()
    assert width - 60 < box["width"] <= width
    assert tab.get_by_label("Truth", exact=True).is_hidden()  # what to show is folded, and does not cover the points
    tab.get_by_text("Show", exact=True).click()
    tab.get_by_label("Truth", exact=True).uncheck()
    tab.get_by_label("Truth", exact=True).check()
    tab.get_by_text("Show", exact=True).click()
    assert tab.get_by_label("Truth", exact=True).is_hidden()


def test_what_a_phone_folds_a_desk_shows(at: Callable[..., Any]) -> None:
    assert at(390, 844).get_by_label("Truth", exact=True).is_hidden()
    tab = at(1100, 700)
    assert tab.get_by_label("Truth", exact=True).is_visible()
    assert tab.locator("#facts dt").count() == 10
    assert tab.locator("#more dt").count() == 3 + len(MANY) - 10
    assert tab.locator("#more dd").first.is_hidden()
    tab.get_by_text("13 more figures").click()
    assert tab.locator("#more dd").first.is_visible()
    tab.get_by_text("13 more figures").click()


def test_the_canvas_takes_the_keyboard(at: Callable[..., Any]) -> None:
    tab = at(1100, 700)
    last = tab.evaluate("viewer.frame")
    seen = lambda: np.array([tab.evaluate(f"viewer.screen({i})") for i in range(8)])

    def pressed(key: str) -> np.ndarray:
        tab.keyboard.press(key)
        settle(tab)
        return seen()

    tab.get_by_role("button", name="Fit all").click()
    settle(tab)
    fitted = seen()
    tab.get_by_role("button", name="Keyboard shortcuts").focus()
    tab.keyboard.press("Tab")
    while tab.evaluate("document.activeElement.id") != "canvas":
        tab.keyboard.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight"):
        before = seen()
        assert np.abs(pressed(key) - before).max() > 5, key
    spread = np.ptp(pressed("f"), axis=0).max()  # from there, as large as can be
    assert spread > 0.5 * np.ptp(fitted, axis=0).max()
    assert np.ptp(pressed("+"), axis=0).max() > 1.05 * spread
    pressed("-")
    assert np.ptp(pressed("-"), axis=0).max() < 0.97 * spread
    np.testing.assert_allclose(np.ptp(pressed("0"), axis=0).max(), spread, rtol=1e-3)
    assert tab.evaluate("viewer.frame") == last  # none of them went in time
    tab.keyboard.press("Home")
    assert tab.evaluate("viewer.frame") == 0
    tab.locator("#canvas").click()  # the mouse takes the focus away: arrows go in time, as before
    still = seen()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("viewer.frame") == 1
    settle(tab)
    np.testing.assert_allclose(seen(), still, atol=0.5)


def test_shortcuts_are_listed(at: Callable[..., Any]) -> None:
    tab = at(1100, 700)
    tab.keyboard.press("?")
    listed = tab.get_by_role("dialog", name="Keyboard shortcuts")
    assert "play or pause" in listed.inner_text()
    frame = tab.evaluate("viewer.frame")
    tab.keyboard.press("Home")  # while it is open, nothing moves behind it
    assert tab.evaluate("viewer.frame") == frame
    tab.keyboard.press("Escape")
    assert listed.is_hidden()
    tab.get_by_role("button", name="Keyboard shortcuts").click()
    tab.get_by_role("button", name="Close").click()
    assert listed.is_hidden()
