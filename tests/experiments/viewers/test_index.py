"""results/index.html: what it shows of run folders good and bad, in a browser and on disk."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from experiments.viewers.index import main, write_index

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver

ROOT = Path(__file__).parents[3]


def png(width: int, height: int) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def add_run(results: Path, experiment: str, preset: str = "default", seed: int = 0, **changes: Any) -> Path:
    """A finished run as `Run` leaves it; `changes` are to its summary."""
    folder = results / experiment / f"{preset}-seed{seed}"
    (folder / "recording").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"experiment": experiment, "preset": preset, "seed": seed}))
    for name in (
        "metrics.csv",
        "index.html",
        "points.ply",
        "checkpoint.pt",
        "events.out.tfevents.1.host",
        "recording/frame.npz",
    ):
        (folder / name).write_text("<!doctype html><title>the page of a run</title>")
    (folder / "loss.png").write_bytes(png(96, 54))
    (folder / "structure.png").write_bytes(png(90, 60))
    summary = {"converged": True, "iterations": 7, "seconds": 1.5, "loss": 0.25, "errors": {"rotation_deg": 0.5}}
    summary |= {"reference": {"iterations": "293 to 312"}, "note": "", "figures": ["structure.png", "loss.png"]}
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    return folder


def unfinish(folder: Path) -> None:
    (folder / "summary.json").unlink()


def tell(results: Path, *runs: tuple[str, str, int, str, str], **more: Any) -> None:
    """summary.json as run_all.py writes it: experiment, preset, seed, status and message of each run."""
    keys = ("experiment", "preset", "seed", "status", "message")
    told = [{**dict(zip(keys, run, strict=True)), "summary": None} for run in runs]
    (results / "summary.json").write_text(json.dumps({"ok": False, "runs": told, **more}))


def column(page: Any, number: int) -> list[str]:
    return page.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def broken_links(results: Path) -> list[str]:
    """What the page asks for, and is not there."""
    text = (results / "index.html").read_text()
    links = [unescape(link) for link in re.findall(r'(?:href|src)="([^"]*)"', text)]
    ids = set(re.findall(r'id="([^"]*)"', text))
    inside = [link for link in links if link.startswith("#") and link[1:] not in ids]
    outside = [link for link in links if not link.startswith(("#", "https:", "data:"))]
    assert outside or "There is no run" in text
    return inside + [link for link in outside if not (results / unquote(link)).is_file()]


def test_the_table_sorts_by_mouse_and_keyboard(tmp_path: Path, visit: Callable[..., Any]) -> None:
    for seed, (seconds, loss) in enumerate([(9.5, 1e-5), (10.25, "nan"), (100, "inf"), (0.001, 3e-20)]):
        add_run(tmp_path, "pose_estimation", seed=seed, seconds=seconds, loss=loss)
    unfinish(add_run(tmp_path, "pose_estimation", seed=10))
    page = visit(write_index(tmp_path))
    states = lambda: page.locator("thead th").evaluate_all("all => all.map(th => th.ariaSort)")
    assert set(states()) == {"none"}
    assert column(page, 3) == ["0", "1", "2", "3", "10"]

    page.get_by_role("button", name="Seconds").click()
    assert column(page, 6) == ["0.001", "9.5", "10.25", "100", ""]
    assert states()[5] == "ascending"
    page.get_by_role("button", name="Seconds").click()
    assert column(page, 6) == ["100", "10.25", "9.5", "0.001", ""]
    assert states()[5] == "descending"

    page.get_by_role("button", name="Loss").focus()
    page.keyboard.press("Enter")
    assert column(page, 3)[:3] == ["3", "0", "2"]  # 3e-20, 1e-5, inf
    assert set(column(page, 3)[3:]) == {"1", "10"}  # nan, and none yet: last
    assert (states()[5], states()[6]) == ("none", "ascending")
    page.keyboard.press("Enter")
    assert column(page, 3)[:3] == ["2", "0", "3"]
    assert set(column(page, 3)[3:]) == {"1", "10"}  # last, both ways

    page.get_by_role("button", name="State").click()
    assert column(page, 4) == ["goal reached"] * 4 + ["unfinished"]


def test_figures_sort_by_the_first_error(tmp_path: Path, visit: Callable[..., Any]) -> None:
    for seed, error in enumerate([20.0, 3.0, 100.0]):
        add_run(tmp_path, "pose_estimation", seed=seed, errors={"rotation_deg": error, "translation": 1})
    page = visit(write_index(tmp_path))
    page.get_by_role("button", name="Figures").click()
    assert column(page, 3) == ["1", "0", "2"]


def test_the_filter_leaves_rows_that_have_every_word(tmp_path: Path, visit: Callable[..., Any]) -> None:
    for seed in (1, 2):
        add_run(tmp_path, "pose_estimation", seed=seed)
    add_run(tmp_path, "camera_calibration", seed=2)
    page = visit(write_index(tmp_path))
    page.get_by_role("searchbox").fill("pose SEED 2")
    assert page.locator("tbody tr:visible").count() == 1
    assert page.locator("output").inner_text() == "1 of 3"
    page.get_by_role("searchbox").fill("")
    assert page.locator("tbody tr:visible").count() == 3


@pytest.mark.parametrize("width", [400, 1600])
def test_pictures_load_and_nothing_sticks_out(tmp_path: Path, visit: Callable[..., Any], width: int) -> None:
    add_run(tmp_path, "structure_from_motion")
    strip = add_run(tmp_path, "structure_from_motion", "real")
    (strip / "structure.png").write_bytes(png(450, 90))
    page = visit(write_index(tmp_path), width=width)
    pictures = page.locator("img")
    pictures.evaluate_all("all => all.forEach(image => image.loading = 'eager')")
    assert pictures.evaluate_all("all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))") == [90, 450]
    assert pictures.evaluate_all("all => all.map(image => image.alt)")[0] == (
        "structure of structure from motion default, seed 0"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    widths = page.locator(".card").evaluate_all("all => all.map(card => card.clientWidth)")
    assert (widths[1] > 1.9 * widths[0]) == (width == 1600)  # a strip takes the room of two


def test_a_moved_folder_still_works(tmp_path: Path, visit: Callable[..., Any]) -> None:
    results = tmp_path / "results"
    odd = add_run(results, "structure_from_motion")
    odd = odd.rename(odd.with_name("it's a #1? 100% ü:x"))
    (odd / "colmap").mkdir()
    (odd / "colmap" / "cameras.bin").write_text("")
    write_index(results)
    moved = results.rename(tmp_path / "elsewhere")
    assert broken_links(moved) == []
    text = (moved / "index.html").read_text()
    assert "colmap/cameras.bin" in text
    assert str(tmp_path) not in text
    for kept in ("checkpoint.pt", "tfevents", "frame.npz"):
        assert kept not in text
    page = visit(moved / "index.html")
    page.get_by_role("link", name="Interactive page").click()
    assert page.title() == "the page of a run"


def test_without_a_script_it_is_all_there(tmp_path: Path, browser: Any) -> None:
    add_run(tmp_path, "pose_estimation")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(write_index(tmp_path).as_uri())
    assert page.locator("tbody tr").count() == 1
    assert page.get_by_role("searchbox").count() == 0  # it would do nothing
    assert page.get_by_role("button").count() == 0
    context.close()


def test_a_script_in_a_note_is_text(tmp_path: Path, visit: Callable[..., Any]) -> None:
    bad = "<script>console.error('ran')</script>"
    add_run(tmp_path, "pose_estimation", note=bad, reference={"iterations": bad}, errors={bad: 1.0})
    tell(tmp_path, (bad, "real", 0, "failed", bad))
    page = visit(write_index(tmp_path))
    assert page.locator("script").count() == 1
    assert page.get_by_text(bad).count() >= 4


def test_seeds_share_a_card(tmp_path: Path, visit: Callable[..., Any]) -> None:
    for seed, iterations in enumerate([4, 6, 9]):
        add_run(
            tmp_path,
            "pose_estimation",
            seed=seed,
            iterations=iterations,
            converged=seed != 0,
            note="" if seed else "stuck",
        )
    page = visit(write_index(tmp_path))
    said = page.locator(".card").all_inner_texts()
    assert len(said) == 1
    assert "2 of 3 reached their goal" in said[0]
    assert "iterations\n6 (4 to 9) beside 293 to 312" in said[0]
    assert "Seed 0: stuck" in said[0]
    assert "seed1" in page.locator(".card .picture").get_attribute("href")  # the first that converged
    assert "2 of 3 runs reached the goal, 1 not" in page.locator(".counts").inner_text()


def test_the_goal_stands_beside_what_came_of_it(tmp_path: Path, visit: Callable[..., Any]) -> None:
    sentence = "Two points are seen once."
    add_run(tmp_path, "pose_estimation", converged=False, goal="loss below 1e-3", undetermined=[sentence])
    page = visit(write_index(tmp_path))
    for part in (".card", "tbody tr", ".unconverged"):
        assert "loss below 10−3" in page.locator(part).inner_text()
    for part in (".card", ".unconverged"):
        assert sentence in page.locator(part).inner_text()


def test_nan_is_not_hidden(tmp_path: Path, visit: Callable[..., Any]) -> None:
    add_run(tmp_path, "pose_estimation", seed=0)
    add_run(tmp_path, "pose_estimation", seed=1, errors={"rotation_deg": "nan"})
    page = visit(write_index(tmp_path))
    assert "nan in 1 of 2" in page.locator(".card").inner_text()
    assert "nan" in column(page, 8)[1]
    assert "in 1 of" not in column(page, 8)[1]


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path, visit: Callable[..., Any]) -> None:
    unfinish(add_run(tmp_path, "pose_estimation", seed=3))
    other = add_run(tmp_path, "pose_estimation", seed=4)
    unfinish(other.rename(other.with_name("mine")))
    typed = add_run(tmp_path, "homography", seed=5)
    config = json.loads((typed / "config.json").read_text())
    words = "python -m experiments.tasks.homography real --wrong 0.3 --overwrite --out /home/me/a/results"
    (typed / "config.json").write_text(json.dumps({**config, "command": words.split(" ")}))
    unfinish(typed)
    page = visit(write_index(tmp_path))
    command = "python -m experiments.pose_estimation default --seed"
    told = page.locator(".unconverged").inner_text()
    assert f"{command} 3 --out results --resume" in told
    assert f"{command} 4 --out results --name mine --resume" in told
    assert "python -m experiments.tasks.homography real --wrong 0.3 --out '…/results' --resume" in told


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"converged": true}', "[" * 100_000, b"\xff\xfe", '{"figures": 3}'],
)
@pytest.mark.parametrize("name", ["summary.json", "config.json"])
def test_a_damaged_run_is_listed_as_such(tmp_path: Path, text: str | bytes, name: str) -> None:
    good, bad = add_run(tmp_path, "pose_estimation"), add_run(tmp_path, "structure_from_motion")
    assert good != bad
    (bad / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    page = write_index(tmp_path).read_text()
    still_readable = name == "config.json" and str(text).startswith("{") and text != "{"  # it is not looked into
    assert ('<span class="badge damaged">' in page) != still_readable
    assert '<span class="badge converged">' in page
    assert broken_links(tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": None},
        {"loss": "much"},
        {"errors": [1]},
        {"errors": {"x": [1]}},
        {"iterations": 10**400},
        {"reference": 3},
    ],
)
def test_wrong_values_are_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    add_run(tmp_path, "pose_estimation", **changes)
    assert '<span class="badge damaged">' in write_index(tmp_path).read_text()


def test_half_a_character_does_not_stop_it(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "pose_estimation", note="\ud800")
    (folder / os.fsdecode(b"\xff.ply")).write_text("")
    write_index(tmp_path)
    assert "%FF.ply" in (tmp_path / "index.html").read_text()


def test_what_has_no_folder_comes_from_run_all(tmp_path: Path, visit: Callable[..., Any]) -> None:
    add_run(tmp_path, "pose_estimation")
    trace = 'exit code 1\n  File "/home/john smith/proj/dying.py", line 3\nValueError: /secret/place/x.txt is bad'
    tell(
        tmp_path,
        ("structure_from_motion", "default", 0, "failed", trace),
        ("pose_estimation", "real", 0, "skipped", "The data are absent."),
        ("pose_estimation", "default", 0, "converged", ""),
        ("camera_calibration", "default", 0, "not run", ""),
        ("camera_calibration", "real", 0, "converged", ""),  # its folder has been deleted
        date="2026-11-03",
        machine={"torch": "2.13", "cpu": "A processor", "gpu": "A card"},
        command=["python", "run_all.py", "--seeds", "0", "1", "--out", str(Path.cwd() / "mine")],
    )
    page = visit(write_index(tmp_path))
    said = page.locator("body").inner_text()
    badges = page.locator(".card .badge").all_inner_texts()
    assert badges == ["failed", "skipped", "goal reached", "not run"]  # in the order that run_all.py had
    assert "The data are absent." in page.locator(".card").nth(1).inner_text()
    assert 'File "…/dying.py", line 3\nValueError: …/x.txt is bad' in said
    assert "john" not in page.content()
    assert "secret" not in page.content()
    assert "3 November 2026 · torch 2.13, A processor\n" in said  # nothing ran on the card
    assert "1 of 4 runs reached the goal, 1 skipped, 1 not run, 1 failed" in said
    assert "python run_all.py --seeds 0 1 --out mine --resume" in said


def test_no_name_of_a_person_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/john smith")
    note = "read /home/john smith/x.png, /data/of/john/y.png; see https://example.org/a/b, 3 px/s and 1/2"
    add_run(tmp_path, "pose_estimation", note=note)
    text = write_index(tmp_path).read_text()
    assert "read /x.png, …/y.png; see https://example.org/a/b, 3 px/s and 1/2" in text
    assert "john" not in text


def test_a_newer_run_outdoes_an_older_failure(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "pose_estimation")
    tell(tmp_path, ("pose_estimation", "default", 0, "failed", "exit code 1"))
    os.utime(folder / "summary.json", (1, 1))
    assert '<span class="badge failed">' in write_index(tmp_path).read_text()
    os.utime(tmp_path / "summary.json", (0, 0))
    assert '<span class="badge converged">' in write_index(tmp_path).read_text()


def test_a_folder_outdoes_skipped_and_not_run(tmp_path: Path) -> None:
    add_run(tmp_path, "pose_estimation")
    unfinish(add_run(tmp_path, "pose_estimation", seed=1))
    tell(tmp_path, ("pose_estimation", "default", 0, "skipped", "x"), ("pose_estimation", "default", 1, "not run", ""))
    text = write_index(tmp_path).read_text()
    assert '<span class="badge unfinished">' in text
    assert "badge not-run" not in text
    assert "badge skipped" not in text


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": [{}]}', '{"runs": [3]}', '{"runs": 3}', "{}"])
def test_a_damaged_summary_of_all_is_said(tmp_path: Path, text: str) -> None:
    add_run(tmp_path, "pose_estimation")
    (tmp_path / "summary.json").write_text(text)
    page = write_index(tmp_path).read_text()
    assert "What run_all.py wrote cannot be read" in page
    assert '<span class="badge converged">' in page


def test_the_picture_is_the_first_that_is_not_the_loss(tmp_path: Path, visit: Callable[..., Any]) -> None:
    add_run(tmp_path, "a", figures=[])
    (add_run(tmp_path, "b", figures=["gone.png", "../a.png", "structure.png"]) / "another.png").write_bytes(png(30, 20))
    (add_run(tmp_path, "c") / "structure.png").unlink()
    (add_run(tmp_path, "d") / "structure.png").write_bytes(b"half a p")
    none = add_run(tmp_path, "e")
    for path in none.glob("*.png"):
        path.unlink()
    page = visit(write_index(tmp_path))
    shown = page.locator(".card img").evaluate_all("all => all.map(image => image.getAttribute('src'))")
    names = ("a/default-seed0/structure", "b/default-seed0/structure", "c/default-seed0/loss", "d/default-seed0/loss")
    assert shown == [f"{name}.png" for name in names]
    assert page.get_by_role("img", name="No picture").count() == 1


def test_rebuilding_needs_no_torch_and_says_the_same(tmp_path: Path) -> None:
    add_run(tmp_path, "pose_estimation")
    tell(tmp_path, ("pose_estimation", "real", 0, "skipped", "The data are absent."))
    before = write_index(tmp_path).read_text()
    (tmp_path / "index.html").unlink()
    code = (
        "import sys; from experiments.viewers.index import main; main(sys.argv[1:]);"
        "sys.exit(bool({'torch', 'numpy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'index.html'}\n")
    assert (tmp_path / "index.html").read_text() == before


def test_folders_without_runs(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "summary.json").write_text("{}")  # no run's: it lies too high
    assert "There is no run here yet" in write_index(tmp_path).read_text()
    shutil.rmtree(tmp_path / "reference")
    with pytest.raises(SystemExit, match=r"run_all\.py first"):
        main([str(tmp_path / "nosuch")])
