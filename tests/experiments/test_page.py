"""The page of a recording, opened and used as a person does, and what it is packed from."""

import gzip
import io
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.figures import BLUE, ORANGE, rgb
from experiments.recording import Frame, Recording, Stage
from experiments.viewers import page as module
from experiments.viewers.page import encode, page, write_page
from tests.experiments.recordings import keypoints, sphere

RELATIVE = 2.0**-16  # points keep 17 binary digits of their distance from the centre

# ---- what the page is packed from ----


def decoded(recording: Recording) -> dict[str, Any]:
    """The header, and its arrays in place of their numbers in `arrays`."""
    raw = gzip.decompress(encode(recording))
    (size,) = struct.unpack_from("<I", raw)
    header, at = json.loads(raw[4 : 4 + size]), 4 + size
    arrays: list[np.ndarray] = []
    for entry in header["arrays"]:
        kind, shape = np.dtype("<" + entry["kind"]), tuple(entry["shape"])
        count, kept = int(np.prod(shape)), np.dtype(entry["kind"]).itemsize - entry["dropped"]
        planes = np.zeros((kind.itemsize, count), np.uint8)
        planes[entry["dropped"] :] = np.frombuffer(raw, np.uint8, kept * count, at).reshape(kept, count)
        at += kept * count
        if entry["base"] is not None:
            planes ^= arrays[entry["base"]].reshape(-1, 1).view(np.uint8).T
        arrays.append(np.ascontiguousarray(planes.T).reshape(-1).view(kind).reshape(shape))
    assert at == len(raw)
    return header | {"arrays": arrays}


def test_payload_is_what_was_recorded() -> None:
    recording = sphere(count=50, frames=7)
    far = 1e5 * np.array([3.0, -7.0, 1.0])  # coordinates as of a map: they must not cost digits
    frames = tuple(
        replace(f, points3d=f.points3d + far, world_to_camera=_moved(f.world_to_camera, far)) for f in recording.frames
    )
    stage = replace(recording.stages[0], points3d_gt=recording.stages[0].points3d_gt + far)
    packed = decoded(replace(recording, frames=frames, stages=(stage,)))
    arrays, centre = packed["arrays"], np.array(packed["stages"][0]["centre"])
    assert np.abs(centre - far).max() < 1

    def assert_close(number: int, points: np.ndarray) -> None:
        np.testing.assert_allclose(arrays[number], points - centre, rtol=RELATIVE, atol=0)  # nan where that is nan

    assert_close(packed["stages"][0]["truth"], stage.points3d_gt)
    assert [frame["step"] for frame in packed["frames"]] == list(range(7))
    for frame, record in zip(packed["frames"], frames, strict=True):
        assert_close(frame["points"], record.points3d)
        distance = np.linalg.norm(record.points3d - stage.points3d_gt, axis=1)
        np.testing.assert_allclose(arrays[frame["error"]], distance, rtol=2.0**-8, atol=1e-9)
        R, t = arrays[frame["cameras"]][:, :, :3], arrays[frame["cameras"]][:, :, 3]
        eyes = centre - np.einsum("vji,vj->vi", R, t)
        wanted = np.linalg.inv(record.world_to_camera)[:, :3, 3]
        np.testing.assert_allclose(eyes, wanted, atol=1e-5)
        np.testing.assert_array_equal(arrays[frame["K"]], record.K.astype(np.float32))
    assert np.isnan(arrays[packed["frames"][0]["points"]][::2]).all()
    np.testing.assert_array_equal(arrays[packed["stages"][0]["colors"]], stage.colors)
    np.testing.assert_array_equal(arrays[packed["stages"][0]["views"]], stage.views)
    for name, column in recording.metrics.items():
        np.testing.assert_array_equal(arrays[packed["metrics"][name]], column)
    assert packed["stages"][0]["targets"] == stage.targets


def test_payload_stores_once_what_stays() -> None:
    packed = decoded(keypoints())
    assert len({frame["points"] for frame in packed["frames"]}) == 1
    assert len({frame["points2d"] for frame in packed["frames"]}) == len(packed["frames"])
    assert [a.shape for a in packed["arrays"]].count((8, 3)) == 1


def test_payload_takes_what_float32_cannot_hold_as_unknown() -> None:
    points = np.array([[1.0, 2, 3], [np.inf, 0, 0], [1e39, 0, 0]])
    packed = decoded(Recording("x", (Stage(),), (Frame(0, points3d=points),)))
    seen = packed["arrays"][packed["frames"][0]["points"]]
    assert np.isfinite(seen).all(1).tolist() == [True, False, False]


def test_frames_for_which_there_is_no_room_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = sphere(count=100, frames=20)
    monkeypatch.setattr(module, "LIMIT", 1000)
    packed = decoded(recording)
    steps = [frame["step"] for frame in packed["frames"]]
    assert (steps[0], steps[-1], packed["frames_recorded"]) == (0, 19, 20)
    assert 5 <= len(steps) <= 10
    assert np.ptp(np.diff(steps)) <= 1  # evenly
    assert packed["arrays"][packed["stages"][0]["truth"]].shape == (100, 3)
    assert packed["arrays"][packed["metrics"]["loss"]].shape == (20,)


def test_points_for_which_there_is_no_room_are_thinned_with_all_that_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = sphere(count=100, frames=1)
    monkeypatch.setattr(module, "LIMIT", 40)
    packed = decoded(recording)
    stage, arrays = packed["stages"][0], packed["arrays"]
    assert stage["stride"] == 3
    points = recording.frames[0].points3d[::3] - stage["centre"]
    np.testing.assert_allclose(arrays[packed["frames"][0]["points"]], points, rtol=RELATIVE)
    np.testing.assert_array_equal(arrays[stage["colors"]], recording.stages[0].colors[::3])
    assert {len(arrays[i]) for i in (stage["truth"], stage["views"], packed["frames"][0]["error"])} == {34}


def _moved(world_to_camera: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The same cameras in a world whose points were moved by `offset`."""
    moved = world_to_camera.copy()
    moved[:, :3, 3] -= world_to_camera[:, :3, :3] @ offset
    return moved


# ---- the page, used ----

Visit = Callable[..., Any]


@pytest.fixture
def show(visit: Visit, tmp_path: Path) -> Callable[..., Any]:
    """show(recording): its page, drawn."""

    def opened(recording: Recording, **size: int) -> Any:
        write_page(recording, tmp_path / "a page.html")
        tab = visit(tmp_path / "a page.html", **size)
        tab.wait_for_function("window.viewer && document.querySelector('#state').textContent")
        settle(tab)
        return tab

    return opened


def settle(tab: Any) -> None:
    """Wait until space is drawn, and no longer drawn again."""
    tab.evaluate("""() => new Promise((done) => {
        let before = -1;
        const look = () => {
            if (viewer.draws === before) return done();
            before = viewer.draws;
            requestAnimationFrame(() => requestAnimationFrame(look));
        };
        requestAnimationFrame(look);
    })""")


def pixels(tab: Any, selector: str = "#space") -> np.ndarray:
    """(H,W,3) of what is on the screen."""
    settle(tab)
    return np.asarray(Image.open(io.BytesIO(tab.locator(selector).screenshot())).convert("RGB")).astype(int)


def differ(a: np.ndarray, b: np.ndarray) -> int:
    """How many pixels are clearly different."""
    return int((np.abs(a - b).max(-1) > 40).sum())


def near(image: np.ndarray, color: str) -> int:
    """How many pixels are about of this colour."""
    return int((np.abs(image - rgb(color)).max(-1) < 30).sum())


def assert_shows(tab: Any, recording: Recording, number: int) -> None:
    """The points in the drawn buffer are those of that frame."""
    points = recording.points3d(recording.frames[number])
    drawn = np.array(tab.evaluate("viewer.positions"), dtype=float)
    assert tab.evaluate("viewer.frame") == number
    np.testing.assert_allclose(drawn, points, atol=RELATIVE * np.nanmax(np.abs(points)))


def test_page_draws_points_truth_and_cameras(show: Callable[..., Any]) -> None:
    recording = sphere()
    tab = show(recording)
    assert_shows(tab, recording, 19)
    image = pixels(tab, "#canvas")
    assert differ(image, np.full_like(image, 255)) > 10_000
    tab.get_by_role("button", name="Fit all").click()
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
    tab.keyboard.press("Space")  # at the end: from the start
    tab.wait_for_function("viewer.frame > 0 && viewer.frame < 5")
    tab.wait_for_function("document.querySelector('#play').getAttribute('aria-label') === 'Play'")
    assert tab.evaluate("viewer.frame") == 5
    tab.get_by_label("Loop").check()
    tab.get_by_role("button", name="Play").click()
    tab.wait_for_function("viewer.frame === 5")
    tab.wait_for_function("viewer.frame < 5")
    tab.get_by_role("button", name="Pause").click()
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


def test_first_view_is_of_the_points_however_far_the_cameras(show: Callable[..., Any]) -> None:
    recording = sphere(frames=2)
    frames = tuple(replace(f, world_to_camera=_farther(f.world_to_camera, 50)) for f in recording.frames)
    tab = show(replace(recording, frames=frames, stages=(replace(recording.stages[0], world_to_camera_gt=None),)))

    def spread() -> float:
        return float(np.ptp([tab.evaluate(f"viewer.screen({i})")[1] for i in range(40)]))

    assert spread() > 250
    tab.get_by_role("button", name="Fit all").click()
    settle(tab)
    assert spread() < 25
    tab.get_by_role("button", name="Fit points").click()
    settle(tab)
    assert spread() > 250


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
    second = replace(b.stages[0], name="second", points3d_gt=20 * b.stages[0].points3d_gt + far, targets={"loss": 0.25})
    moved = tuple(replace(f, step=4 + f.step, stage=1, points3d=20 * f.points3d + far) for f in b.frames)
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
    assert 0.5 < np.ptp(smaller[:, 1]) / np.ptp(points[:, 1]) < 2  # a twentieth of the size, and the view came closer


def test_page_without_frames_is_its_curves(show: Callable[..., Any]) -> None:
    tab = show(replace(sphere(), frames=(), summary={}))
    assert "at iteration 19" in tab.inner_text("#state")
    assert "Nothing that moves in space" in tab.inner_text("#no-space")
    assert tab.locator("#canvas").is_hidden()
    assert tab.locator(".chart").count() == 2
    width = sum(box["width"] for box in (chart.bounding_box() for chart in tab.locator(".chart").all()))
    assert width > 1200


def test_page_without_webgl_says_what_to_do(visit: Visit, tmp_path: Path) -> None:
    text = page(sphere())
    blind = "<script>HTMLCanvasElement.prototype.getContext = ((old) => function (kind, ...rest) { return "
    blind += "kind === 'webgl2' ? null : old.call(this, kind, ...rest); })(HTMLCanvasElement.prototype.getContext)"
    (tmp_path / "page.html").write_text(text.replace("<head>", f"<head>{blind}</script>", 1))
    tab = visit(tmp_path / "page.html")
    tab.wait_for_selector(".chart")
    assert "hardware acceleration" in tab.inner_text("#no-space")
    tab.keyboard.press("Home")
    assert tab.get_by_label("Curve of loss").locator(".value").inner_text() == "1"


def test_header_tells_what_came_of_it(show: Callable[..., Any]) -> None:
    recording = sphere(count=10, frames=3)
    tab = show(recording)
    assert tab.title() == tab.inner_text("h1") == "toy / sphere"
    assert tab.inner_text("#state") == "Converged"
    facts = tab.inner_text("#facts").split("\n")
    assert facts[:2] == ["iterations", "3reference 293 to 312"]
    assert "1.5 s" in facts
    assert facts[facts.index("rms share") + 1] == "1e-6"
    assert tab.locator("#note p").is_hidden()
    tab.get_by_text("Note").click()
    assert tab.inner_text("#note p") == "a test"
    tab = show(replace(recording, summary=recording.summary | {"converged": False, "errors": {"px": float("nan")}}))
    assert tab.inner_text("#state") == "Not converged"
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
            summary=recording.summary | {"note": evil, "errors": {evil: 1.0}, "reference": {evil: evil}},
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


def test_page_is_small(tmp_path: Path) -> None:
    recording = sphere(count=1000, frames=100)
    write_page(recording, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 5e6
    write_page(Recording("empty", (), ()), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 800e3


def test_large_recording_is_usable(show: Callable[..., Any], tmp_path: Path) -> None:
    recording = sphere(count=100_000, frames=100)
    tab = show(recording)
    assert (tmp_path / "a page.html").stat().st_size < 25e6
    kept = tab.evaluate("viewer.frames")
    assert f"{kept} of 100 frames kept" in tab.inner_text("#moment")
    last = pixels(tab, "#canvas")
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowRight")
    step = tab.evaluate("viewer.step")
    drawn = np.array(tab.evaluate("viewer.positions.slice(0, 1000)"))
    np.testing.assert_allclose(drawn, recording.frames[step].points3d[:1000], atol=1e-4)
    assert differ(pixels(tab, "#canvas"), last) > 10_000


def test_writing_fails_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_page(replace(sphere(), title="half a letter: \ud83d"), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# ---- the page, following a run ----


class Source:
    """What the server below gives; None is a run that cannot be read."""

    def __init__(self, recording: Recording | None) -> None:
        self.recording, self.version = recording, 0

    def set(self, recording: Recording | None) -> None:
        self.recording, self.version = recording, self.version + 1


@contextmanager
def serving(source: Source) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                body = page(source.recording, live="/").encode()  # type: ignore[arg-type]
            elif source.recording is None:
                body = b"a damaged file"
            else:
                body = encode(source.recording) if self.path == "/recording" else str(source.version).encode()
            self.send_response(200 if source.recording else 500)
            self.send_header("Content-Type", "text/html" if self.path == "/" else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_live_page_follows_the_run(visit: Visit) -> None:
    whole = sphere(count=40, frames=12)
    source = Source(replace(whole, frames=(), metrics={}, summary={}))
    with serving(source) as address:
        tab = visit(address)
        tab.wait_for_function("document.querySelector('#state').textContent === 'Unfinished'")
        source.set(replace(whole, frames=whole.frames[:6], summary={}))
        tab.wait_for_function("viewer.frames === 6")
        assert tab.evaluate("viewer.frame") == 5
        tab.select_option("#color", "error")
        settle(tab)
        before = tab.evaluate("viewer.screen(3)")
        tab.mouse.move(500, 500)
        tab.mouse.down()
        tab.mouse.move(560, 520)
        tab.mouse.up()
        tab.mouse.wheel(0, -200)
        settle(tab)  # the turn swings out
        turned = tab.evaluate("viewer.screen(3)")
        assert np.hypot(*np.subtract(turned, before)) > 5

        source.set(replace(whole, frames=(*whole.frames[:6], replace(whole.frames[5], step=6)), summary={}))
        tab.wait_for_function("viewer.frames === 7")
        assert tab.evaluate("viewer.frame") == 6  # it was at the end, and stays there
        np.testing.assert_allclose(tab.evaluate("viewer.screen(3)"), turned, atol=0.5)  # and so does the view
        assert tab.locator("#color").input_value() == "error"

        tab.evaluate("viewer.setFrame(2)")
        source.set(whole)
        tab.wait_for_function("viewer.frames === 12")
        assert tab.evaluate("viewer.frame") == 2
        assert tab.inner_text("#state") == "Converged"
        assert tab.locator("#trouble").is_hidden()


def test_live_page_says_that_the_server_left(browser: Any) -> None:
    source = Source(sphere(count=10, frames=3))
    context = browser.new_context()
    tab = context.new_page()
    with serving(source) as address:
        tab.goto(address)
        tab.wait_for_function("viewer.frames === 3")
        source.set(None)
        tab.wait_for_selector("#trouble:not([hidden])")
        assert "a damaged file" in tab.inner_text("#trouble")
        source.set(sphere(count=10, frames=4))
        tab.wait_for_function("viewer.frames === 4")
        assert tab.locator("#trouble").is_hidden()
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "no longer answers" in tab.inner_text("#trouble")
    assert tab.evaluate("viewer.frames") == 4
    context.close()
