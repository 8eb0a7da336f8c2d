"""The page of a recording, opened and used as a person does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.drawing.figures import BLUE, ORANGE
from experiments.records.recording import Frame, Recording, Stage
from experiments.viewers.page import page, write_page
from tests.experiments.viewers.recordings import keypoints, sphere
from tests.experiments.viewers.screen import differ, near, pixels, settle

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver

DRAWN = "window.viewer && document.querySelector('#state').textContent"


@pytest.fixture(scope="module")
def watched(browser: Any) -> Iterator[tuple[Any, list[str]]]:
    """A tab without a network, and what its console complains about: one for all tests, which is faster."""
    with browser.new_context(offline=True) as context:
        tab, troubles = context.new_page(), []
        tab.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("requestfailed", lambda request: troubles.append(f"asked for {request.url}"))
        yield tab, troubles


@pytest.fixture
def show(watched: tuple[Any, list[str]], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """show(recording or its page, width=): the tab, with the page drawn; its console must stay clean."""
    tab, troubles = watched

    def opened(what: Recording | str, width: int = 1100) -> Any:
        path = tmp_path / "a page.html"
        if isinstance(what, str):
            path.write_text(what)
        else:
            write_page(what, path)
        tab.mouse.move(0, 0)
        tab.set_viewport_size({"width": width, "height": 700})
        tab.goto(path.as_uri())
        tab.wait_for_function(DRAWN)
        settle(tab)
        return tab

    yield opened
    found, troubles[:] = troubles[:], []
    assert found == []


def assert_shows(tab: Any, recording: Recording, number: int) -> None:
    """The points in the drawn buffer are those of that frame."""
    points = recording.points3d(recording.frames[number])
    drawn = np.array(tab.evaluate("viewer.positions"), dtype=float)
    assert tab.evaluate("viewer.frame") == number
    np.testing.assert_allclose(drawn, points, atol=2.0**-16 * np.nanmax(np.abs(points)))


def test_page_draws_points_truth_and_cameras(show: Callable[..., Any]) -> None:
    recording = sphere()
    tab = show(recording)
    assert_shows(tab, recording, 19)
    image = pixels(tab, "#canvas")
    assert differ(image, np.full_like(image, 255)) > 10_000
    tab.keyboard.press("Home")
    image = pixels(tab, "#canvas")
    for label, color in [("Truth", ORANGE), ("Cameras", BLUE)]:
        tab.get_by_label(label, exact=True).uncheck()
        without = pixels(tab, "#canvas")
        assert near(image, color) - near(without, color) > 50, label
        image = without


def test_slider_moves_the_points(show: Callable[..., Any]) -> None:
    recording = sphere()
    tab = show(recording)
    last = pixels(tab, "#canvas")
    tab.get_by_role("slider", name="Frame").focus()
    tab.keyboard.press("Home")
    assert_shows(tab, recording, 0)  # half of the points are unknown
    assert "150 of 300 points known" in tab.inner_text("#counts")
    first = pixels(tab, "#canvas")
    assert differ(first, last) > 5000
    tab.keyboard.press("ArrowRight")
    assert_shows(tab, recording, 1)
    box = tab.locator("#slider").bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert 8 <= tab.evaluate("viewer.frame") <= 11
    assert_shows(tab, recording, tab.evaluate("viewer.frame"))
    tab.locator("#canvas").click()
    tab.keyboard.press("End")
    assert_shows(tab, recording, 19)
    tab.mouse.move(2, 2)
    assert differ(pixels(tab, "#canvas"), last) == 0
    assert "Iteration 19" in tab.inner_text("#moment")


def test_space_plays_to_the_end_and_loops(show: Callable[..., Any]) -> None:
    tab = show(sphere(count=20, frames=6))
    tab.select_option("#speed", "40")
    # The page itself writes down what it shows: between two looks from outside several frames may pass.
    tab.evaluate("""() => {
        window.seen = [];
        new MutationObserver(() => seen.push(viewer.frame)).observe(
            document.querySelector("#moment"), { childList: true, characterData: true, subtree: true });
    }""")
    tab.keyboard.press("Space")  # at the end: from the start
    tab.wait_for_function("seen.length > 0 && document.querySelector('#play').getAttribute('aria-label') === 'Play'")
    assert tab.evaluate("seen") == [0, 1, 2, 3, 4, 5]
    assert tab.evaluate("viewer.frame") == 5
    tab.get_by_label("Loop").check()
    tab.evaluate("seen.length = 0")
    tab.get_by_role("button", name="Play").click()
    tab.wait_for_function("seen.length >= 8")
    tab.get_by_role("button", name="Pause").click()
    assert tab.evaluate("seen.slice(0, 8)") == [0, 1, 2, 3, 4, 5, 0, 1]
    assert tab.locator("#play").get_attribute("aria-label") == "Play"


def test_colours_and_their_bar(show: Callable[..., Any]) -> None:
    recording = sphere()
    tab = show(recording)
    assert tab.locator("#color").input_value() == "image"
    assert tab.locator("#bar").is_hidden()
    tab.evaluate("viewer.setFrame(10)")
    seen = {"image": pixels(tab, "#canvas")}
    bars = {}
    for mode in ("position", "error", "views"):
        tab.select_option("#color", mode)
        seen[mode] = pixels(tab, "#canvas")
        bars[mode] = [float(text) for text in tab.locator("#bar-numbers span").all_inner_texts()]
    for a, b in [("image", "position"), ("position", "error"), ("error", "views"), ("image", "views")]:
        assert differ(seen[a], seen[b]) > 2000, (a, b)
    assert bars["views"] == [1, 3.5, 6]
    assert bars["position"][0] < -0.9
    assert bars["position"][2] > 0.9
    errors = [np.linalg.norm(f.points3d - recording.stages[0].points3d_gt, axis=1) for f in recording.frames]
    wanted = np.nanpercentile([e for e in np.concatenate(errors) if e > 0], [1, 99])
    np.testing.assert_allclose([bars["error"][0], bars["error"][2]], wanted, rtol=0.1)
    tab.evaluate("viewer.setFrame(12)")
    assert [float(text) for text in tab.locator("#bar-numbers span").all_inner_texts()] == bars["views"]


def test_only_colours_that_exist_are_offered(show: Callable[..., Any]) -> None:
    points = sphere(count=40).frames[-1].points3d
    tab = show(Recording("points", (Stage(),), (Frame(0, points3d=points, error_px=np.geomspace(0.1, 10, 40)),)))
    assert tab.locator("#color option").all_inner_texts() == ["position", "error"]
    tab.select_option("#color", "error")
    assert "px" in tab.inner_text("#bar-name")
    assert tab.inner_text("#state") == "File"
    assert tab.locator("#timeline").is_hidden()
    assert tab.locator("#side").is_hidden()


def test_pointing_at_a_point_says_what_it_is(show: Callable[..., Any]) -> None:
    recording = sphere(count=8)
    tab = show(recording)
    tab.evaluate("viewer.setFrame(15)")
    settle(tab)
    tab.mouse.move(*tab.evaluate("viewer.screen(5)"))
    tab.wait_for_selector("#tip:not([hidden])")
    words = tab.inner_text("#tip")
    x = recording.frames[15].points3d[5, 0]
    assert "point 5" in words
    assert f"x {float(f'{x:.4g}')}" in words
    assert f"seen in {recording.stages[0].views[5]} view" in words


@pytest.mark.parametrize("after", ["pointerleave", "wheel"])
def test_a_pointer_that_has_left_is_not_answered(show: Callable[..., Any], after: str) -> None:
    """Both events come before the next frame, as they do where frames are slow."""
    tab = show(sphere(count=8))
    x, y = tab.evaluate("viewer.screen(5)")
    shown = """([x, y, events]) => new Promise((done) => {
        const at = { clientX: x, clientY: y, bubbles: true };
        for (const name of events) {
            const event = name === "wheel" ? new WheelEvent(name, at) : new PointerEvent(name, at);
            document.querySelector("#canvas").dispatchEvent(event);
        }
        requestAnimationFrame(() => requestAnimationFrame(() => done(!document.querySelector("#tip").hidden)));
    })"""
    assert tab.evaluate(shown, [x, y, ["pointermove"]])
    assert not tab.evaluate(shown, [x, y, ["pointermove", after]])


@pytest.mark.parametrize("truth", [False, True])
@pytest.mark.parametrize("factor", [2.3, 2.7])
def test_first_view_is_of_all_unless_a_camera_is_far(show: Callable[..., Any], factor: float, truth: bool) -> None:
    """The points' box is a cube with side 2, each camera 4.2 from its middle: factor 2.5 makes that 6 radii."""
    recording = sphere(frames=2)
    cameras = recording.frames[-1].world_to_camera.copy()
    cameras[:1] = _farther(cameras[:1], factor)
    stage, frame = recording.stages[0], recording.frames[-1]
    if truth:
        stage = replace(stage, world_to_camera_gt=cameras)
    else:
        frame = replace(frame, world_to_camera=cameras)
    tab = show(replace(recording, stages=(stage,), frames=(recording.frames[0], frame)))

    def seen() -> np.ndarray:
        settle(tab)
        return np.array(tab.evaluate("Array.from({length: 40}, (_, i) => viewer.screen(i))"))

    first = seen()
    tab.get_by_role("button", name="Fit all").click()
    of_all = seen()
    tab.get_by_role("button", name="Fit points").click()
    of_points = seen()
    assert np.ptp(of_points[:, 1]) > 250
    assert np.ptp(of_all[:, 1]) < 0.6 * np.ptp(of_points[:, 1])
    np.testing.assert_allclose(first, of_all if factor < 2.5 else of_points, atol=0.5)


@pytest.mark.parametrize("width", [1100, 900])
@pytest.mark.parametrize("recording", [sphere(views=16), keypoints()], ids=["ring", "one camera"])
def test_all_of_the_first_view_is_on_the_canvas(show: Callable[..., Any], recording: Recording, width: int) -> None:
    tab = show(recording, width=width)
    box = tab.locator("#canvas").bounding_box()
    low, size = np.array([box["x"], box["y"]]), np.array([box["width"], box["height"]])
    places = tab.evaluate("viewer.eyes") + [tab.evaluate(f"viewer.screen({i})") for i in range(8)]
    shares = (np.array(places) - low) / size
    assert shares.min() > 0.03
    assert shares.max() < 0.97
    assert np.ptp(shares, axis=0).max() > 0.75  # and as large as can be


def _farther(world_to_camera: np.ndarray, factor: float) -> np.ndarray:
    moved = world_to_camera.copy()
    moved[:, :3, 3] *= factor
    return moved


def test_curves_lead_to_frames(show: Callable[..., Any]) -> None:
    tab = show(sphere())
    assert tab.locator(".chart-head span:first-child").all_inner_texts() == ["loss", "fx"]
    assert tab.locator(".target").all_inner_texts() == ["target 0.001", "target 800"]
    plot = tab.get_by_label("Curve of fx").locator(".u-over")
    assert near(pixels(tab, ".chart:nth-child(2)"), ORANGE) > 100
    box = plot.bounding_box()

    def at(share: float) -> tuple[float, float]:
        return box["x"] + share * box["width"], box["y"] + box["height"] / 2

    tab.mouse.move(*at(5.2 / 19))
    tab.mouse.down()
    assert tab.evaluate("viewer.frame") == 5
    tab.mouse.move(*at(12.9 / 19))
    assert tab.evaluate("viewer.frame") == 13
    tab.mouse.up()
    tab.mouse.move(*at(2 / 19))
    assert tab.evaluate("viewer.frame") == 13  # only a pressed button moves it
    tab.mouse.move(2, 2)
    marker = tab.get_by_label("Curve of loss").locator(".now-line").bounding_box()
    assert marker["x"] == pytest.approx(at(13 / 19)[0], abs=2)
    assert tab.get_by_label("Curve of loss").locator(".value").inner_text() == "0.002512"  # 10^-2.6


def test_curves_of_any_numbers(show: Callable[..., Any]) -> None:
    steps = np.arange(3000.0)
    odd = {
        "zero": 0 * steps,
        "constant": 0 * steps + 3.5e-7,
        "gaps": np.where(steps % 3 == 0, np.nan, steps),
        "nothing": steps * np.nan,
        "endless": np.where(steps > 100, np.inf, 1.0),
        "falls": np.maximum(10.0 ** (-steps / 100) - 1e-20, 0),
        "huge": 1e300 * (steps + 1),
        "negative": -steps,
    }
    tab = show(replace(sphere(), metrics={"step": steps, **odd}))
    assert tab.locator(".chart").count() == len(odd)
    assert tab.get_by_label("Curve of falls").locator(".value").inner_text() == "0.6457"  # at step 19
    assert tab.get_by_label("Curve of nothing").locator(".value").inner_text() == "nan"
    one = {name: column[:1] for name, column in odd.items()}
    tab = show(replace(sphere(), metrics={"step": steps[:1], **one}))
    assert tab.locator(".chart").count() == len(odd)


def test_image_points(show: Callable[..., Any]) -> None:
    recording = keypoints()
    tab = show(recording)
    last = pixels(tab, "#image-canvas")
    assert near(last, ORANGE) > 50  # targets
    assert near(last, BLUE) > 200  # points and edges
    tab.evaluate("viewer.setFrame(3)")
    now = pixels(tab, "#image-canvas")
    assert differ(now, last) > 200
    assert_shows(tab, recording, 3)  # the cube, which stays
    tab.get_by_label("Edges").uncheck()
    assert tab.locator("#canvas").is_visible()


def test_image_points_alone_need_no_space(show: Callable[..., Any]) -> None:
    recording = keypoints()
    frames = tuple(replace(f, world_to_camera=None) for f in recording.frames)
    tab = show(replace(recording, frames=frames, stages=(replace(recording.stages[0], points3d=None),)))
    assert tab.locator("#canvas").is_hidden()
    assert near(pixels(tab, "#image-canvas"), ORANGE) > 50
    tab.keyboard.press("Home")
    assert tab.evaluate("viewer.step") == 0


def test_stages_bring_their_own_scene(show: Callable[..., Any]) -> None:
    a, b = sphere(count=30, frames=4), sphere(count=50, frames=3, seed=1)
    far = np.array([3000.0, 0, 0])

    def larger(world_to_camera: np.ndarray) -> np.ndarray:
        made = world_to_camera.copy()
        made[:, :3, 3] = 20 * made[:, :3, 3] - made[:, :3, :3] @ far
        return made

    second = replace(
        b.stages[0],
        name="second",
        points3d_gt=20 * b.stages[0].points3d_gt + far,
        world_to_camera_gt=larger(b.stages[0].world_to_camera_gt),
        targets={"loss": 0.25},
    )
    moved = tuple(
        replace(f, step=4 + f.step, stage=1, points3d=20 * f.points3d + far, world_to_camera=larger(f.world_to_camera))
        for f in b.frames
    )
    recording = replace(a, stages=(replace(a.stages[0], name="first"), second), frames=a.frames + moved)
    tab = show(recording)
    assert_shows(tab, recording, 6)
    assert "second" in tab.inner_text("#moment")
    assert tab.inner_text(".target >> nth=0") == "target 0.25"
    points = np.array([tab.evaluate(f"viewer.screen({i})") for i in range(50)])
    tab.select_option("#stage-choice", label="first")
    settle(tab)
    assert_shows(tab, recording, 3)
    assert "first" in tab.inner_text("#moment")
    assert tab.inner_text(".target >> nth=0") == "target 0.001"
    smaller = np.array([tab.evaluate(f"viewer.screen({i})") for i in range(30)])
    assert (
        0.8 < np.ptp(smaller[:, 1]) / np.ptp(points[:, 1]) < 1.25
    )  # a twentieth of the size, and the view came closer


def test_page_without_frames_is_its_curves(show: Callable[..., Any]) -> None:
    tab = show(replace(sphere(), frames=(), summary={}))
    assert "at iteration 19" in tab.inner_text("#state")
    assert "Nothing that moves in space" in tab.inner_text("#no-space")
    assert tab.locator("#canvas").is_hidden()
    assert tab.locator(".chart").count() == 2
    width = sum(box["width"] for box in (chart.bounding_box() for chart in tab.locator(".chart").all()))
    assert width > 0.85 * 1100


def test_page_without_webgl_says_what_to_do(show: Callable[..., Any]) -> None:
    blind = "<script>HTMLCanvasElement.prototype.getContext = ((old) => function (kind, ...rest) { return "
    blind += "kind === 'webgl2' ? null : old.call(this, kind, ...rest); })(HTMLCanvasElement.prototype.getContext)"
    tab = show(page(sphere()).replace("<head>", f"<head>{blind}</script>", 1))
    assert "hardware acceleration" in tab.inner_text("#no-space")
    tab.keyboard.press("Home")
    assert tab.get_by_label("Curve of loss").locator(".value").inner_text() == "1"


def test_header_tells_what_came_of_it(show: Callable[..., Any]) -> None:
    recording = sphere(count=10, frames=3)
    found = {
        "fx": {"value": 800.0314, "deviation": 0.2, "unit": "px", "reference": 800.0},
        "cx": {"value": 320.0, "deviation": "nan", "unit": "px", "reference": None},
    }
    told = {"found": found, "left_out": {"view 3": "no board found"}}
    recording = replace(recording, summary=recording.summary | told)
    tab = show(recording)
    assert tab.title() == tab.inner_text("h1") == "toy / sphere"
    assert tab.inner_text("#state") == "Finished, goal reached"
    assert tab.inner_text("#goal") == "Goal: loss below 1e-3"
    assert tab.locator("#undetermined").is_hidden()
    facts = tab.inner_text("#facts").split("\n")
    assert facts[:4] == ["fx", "800.03 ± 0.20 pxreference 800", "cx", "320 ± nan px"]
    assert facts[4:6] == ["iterations", "3reference 293 to 312"]
    assert tab.locator("#left-out li").all_inner_texts() == ["view 3: no board found"]
    assert "1.5 s" in facts
    assert facts[facts.index("rms share") + 1] == "1e-6"
    assert tab.locator("#note p").is_hidden()
    tab.get_by_text("Note").click()
    assert tab.inner_text("#note p") == "a test"
    failed = {"converged": False, "undetermined": ["Two points are seen once."], "errors": {"px": float("nan")}}
    tab = show(replace(recording, summary=recording.summary | failed))
    assert tab.inner_text("#state") == "Finished, goal not reached"
    assert tab.locator("#undetermined li").all_inner_texts() == ["Two points are seen once."]
    assert "nan" in tab.inner_text("#facts")


def test_texts_are_texts(show: Callable[..., Any]) -> None:
    evil = "</script><b id=evil>x</b><script>throw 1</script>&amp;{{data}}\\u003c"
    recording = sphere(count=10, frames=3)
    tab = show(
        replace(
            recording,
            title=evil,
            stages=(replace(recording.stages[0], name=evil), Stage(name=evil)),
            metrics=recording.metrics | {evil: np.arange(3.0)},
            summary=recording.summary
            | {"note": evil, "goal": evil, "undetermined": [evil], "errors": {evil: 1.0}, "reference": {evil: evil}},
        )
    )
    assert tab.inner_text("h1") == tab.title() == evil
    assert tab.text_content("#note p") == evil
    assert evil in tab.locator(".chart-head").all_inner_texts()[2]
    assert tab.locator("#evil").count() == 0


def test_narrow_window_stacks(show: Callable[..., Any]) -> None:
    tab = show(keypoints(), width=900)
    space, side = (tab.locator(part).bounding_box() for part in ("#space", "#side"))
    assert side["y"] >= space["y"] + space["height"]
    assert space["width"] == side["width"] == 900
    assert tab.evaluate("document.documentElement.scrollWidth") <= 900


def test_large_recording_is_usable(show: Callable[..., Any], tmp_path: Path) -> None:
    recording = sphere(count=100_000, frames=30)
    tab = show(recording)
    assert (tmp_path / "a page.html").stat().st_size < 25e6
    kept = tab.evaluate("viewer.frames")
    assert f"{kept} of 30 frames kept" in tab.inner_text("#moment")
    last = pixels(tab, "#canvas")
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowRight")
    step = tab.evaluate("viewer.step")
    drawn = np.array(tab.evaluate("viewer.positions.slice(0, 1000)"))
    np.testing.assert_allclose(drawn, recording.frames[step].points3d[:1000], atol=1e-4)
    assert differ(pixels(tab, "#canvas"), last) > 10_000
