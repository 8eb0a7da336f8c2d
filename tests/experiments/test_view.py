"""The command line: what it shows where, and what it says when it cannot."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.ply import write_ply
from datasets.reconstructions.bal import read_bal
from datasets.reconstructions.colmap import read_colmap, write_colmap
from experiments import view
from experiments.records.recording import Recording
from experiments.viewers.source import Source
from tests.experiments.viewers.recordings import sphere, written

CURVES = Recording("toy / curves", (), (), {"step": np.arange(3.0), "loss": np.arange(3.0)}, {}, is_run=True)
BAL = "bal/dubrovnik-3-7-pre.txt"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return written(sphere(), tmp_path / "results" / "toy" / "sphere")


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What stderr says of arguments that cannot be: one line, and the exit code is 2."""
    assert view.main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.strip()


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_mistyped_option_is_told_with_the_nearest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, run, "--sav", "a.png") == "view has no option --sav; did you mean --save?"


@pytest.mark.slow
def test_it_starts_at_once_and_a_ply_needs_no_torch(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", np.random.default_rng(0).normal(size=(9, 3)))
    code = f"""
import sys
from experiments.view import main
loaded = {{"torch", "open3d", "matplotlib"}} & sys.modules.keys()
assert not loaded, loaded
assert main([{str(tmp_path / "a.ply")!r}, "--save", {str(tmp_path / "a.png")!r}]) == 0
loaded = {{"torch", "open3d", "matplotlib.pyplot"}} & sys.modules.keys()
assert not loaded, loaded
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert is_png(tmp_path / "a.png")


def test_the_command_says_one_sentence_and_ends_with_2(tmp_path: Path) -> None:
    done = python("-m", "experiments.view", tmp_path / "absent")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{tmp_path / 'absent'} does not exist: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "starts"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")])
def test_a_run_is_saved_as_a_picture(run: Path, name: str, starts: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert view.main([str(run), "--save", str(run.parent / name)]) == 0
    assert (run.parent / name).read_bytes().startswith(starts)
    assert capsys.readouterr().out == f"{run.parent / name}\n"


def test_a_run_is_saved_as_a_page(run: Path, tmp_path: Path) -> None:
    assert view.main([str(run), "--save", str(tmp_path / "a.html")]) == 0
    assert "<title>toy / sphere</title>" in (tmp_path / "a.html").read_text()


def test_files_of_other_formats_are_shown_alike(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    bal = real_data("bal") / Path(BAL).name
    write_colmap(tmp_path / "model", read_bal(bal))
    for path in (bal, tmp_path / "model"):
        assert view.main([str(path), "--save", str(tmp_path / "a.png")]) == 0
        assert is_png(tmp_path / "a.png")
        (tmp_path / "a.png").unlink()


def test_the_model_that_a_run_wrote_is_exported_with_its_lens(
    run: Path, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    write_colmap(run / "colmap", read_bal(real_data("bal") / Path(BAL).name))
    model = read_colmap(run / "colmap")
    assert model.distortion.abs().min() > 0
    assert view.main([str(run), "--save", str(tmp_path / "model")]) == 0
    saved = read_colmap(tmp_path / "model")
    torch.testing.assert_close(saved.distortion, model.distortion)
    torch.testing.assert_close(saved.points2d, model.points2d)
    assert view.main([str(run), "--step", "3", "--save", str(tmp_path / "early")]) == 0
    early = read_colmap(tmp_path / "early")  # of the recording: the model is of the end
    assert len(early.points3d) == np.isfinite(Source(run, 3).read().frames[-1].points3d).all(1).sum()


def test_step_shows_a_run_as_it_stood(run: Path) -> None:
    whole, early = Source(run).read(), Source(run, 7).read()
    assert [f.step for f in early.frames] == list(range(8))
    np.testing.assert_array_equal(early.metrics["loss"], whole.metrics["loss"][:8])
    for path in (run / "recording").glob("frame-0000000[4-9].npz"):
        path.unlink()
    assert Source(run, 7).read().frames[-1].step == 3  # what was recorded last before it


# ---- what is wrong, and what to do ----


def test_a_missing_run_names_those_that_exist(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parents[2])
    for path in ("results/toy/spher", "results/typo/sphere", "sphere", "a.ply"):
        assert said(capsys, path) == f"{path} does not exist: there are results/toy/sphere"
    assert said(capsys, "results") == "results is a folder of runs: choose one, results/toy/sphere"
    assert said(capsys, "results/toy") == "results/toy is a folder of runs: choose one, results/toy/sphere"
    for number in range(9):
        written(CURVES, Path(f"results/toy/curves-{number}"))
    assert said(capsys, "results").count("results/toy/") == 6
    assert said(capsys, "results").endswith(", 4 more")


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "a" / "b" / "empty"
    empty.mkdir(parents=True)
    assert said(capsys, empty).startswith(f"{empty} holds no run: ")
    (empty / "config.json").write_text("{}")
    assert "holds no run" in said(capsys, empty)
    (tmp_path / "notes.md").write_text("# Notes\n")
    assert "wanted, found none of them" in said(capsys, tmp_path / "notes.md")


@pytest.mark.parametrize("kept", [0, 100, 3000])
@pytest.mark.parametrize("name", ["frame-00000003.npz", "stage-000.npz"])
def test_a_torn_file_of_a_run_is_named(run: Path, name: str, kept: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "recording" / name
    path.write_bytes(path.read_bytes()[:kept])
    assert said(capsys, run, "--save", run / "a.png").startswith(f"{path} is damaged")
    path.unlink()
    if name.startswith("stage"):
        assert "run the experiment again" in said(capsys, run, "--save", run / "a.png")
    assert not (run / "a.png").exists()


def test_metrics_that_break_off_are_shown_up_to_there(run: Path, tmp_path: Path) -> None:
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text[:-7])
    assert len(Source(run).read().metrics["loss"]) == 19
    assert view.main([str(run), "--save", str(tmp_path / "a.html")]) == 0


def test_a_damaged_ply_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ply(tmp_path / "a.ply", np.zeros((9, 3)))
    (tmp_path / "a.ply").write_bytes((tmp_path / "a.ply").read_bytes()[:-9])
    assert said(capsys, tmp_path / "a.ply").startswith(f"{tmp_path / 'a.ply'} is no PLY")


def test_a_run_of_curves_has_a_page_but_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(CURVES, tmp_path / "curves")
    assert "nothing in space to draw: --save it as .html" in said(capsys, run, "--save", run / "a.png")
    assert view.main([str(run), "--save", str(run / "a.html")]) == 0


def test_save_asks_for_a_name_and_a_place_that_can_be(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.avi", ".png"):
        assert "must end in .png, .pdf, .svg, .ply, .glb, .gif, .mp4, .rrd or .html, or be that of a folder" in said(
            capsys, run, "--save", run / name
        )
    (run / "folder.png").mkdir()
    (run / "folder.html").mkdir()
    for name in ("absent/a.png", "absent/a.html", "folder.png", "folder.html"):
        assert said(capsys, run, "--save", run / name).startswith(f"{run / name} cannot be written")
    assert not list(run.glob(".tmp*"))
    for flag in ("--watch", "--serve"):
        assert "leave out --watch and --serve" in said(capsys, run, "--save", run / "a.png", flag)


def test_a_step_before_the_first_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, run, "--step", -1) == f"{run} begins at iteration 0: --step -1 is before"


def test_only_a_run_can_be_watched(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ply(tmp_path / "a.ply", np.zeros((9, 3)))
    assert said(capsys, tmp_path / "a.ply", "--watch") == f"{tmp_path / 'a.ply'} is no run: leave out --watch"
    assert "choose one" in said(capsys, run.parent, "--watch")


# ---- a window, or the page ----


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which viewers were asked for."""
    called: list[str] = []
    monkeypatch.setattr(view, "show", lambda source, watch: called.append(f"window, watch={watch}"))
    monkeypatch.setattr(view, "serve", lambda source, host, port, watch: called.append(f"{host}:{port}, watch={watch}"))
    return called


@pytest.mark.parametrize("screen", ["DISPLAY", "WAYLAND_DISPLAY", None])
def test_there_is_a_window_where_there_is_a_screen(
    run: Path, shown: list[str], screen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if screen:
        monkeypatch.setenv(screen, ":0")
    assert view.main([str(run)]) == 0
    assert view.main([str(run), "--watch"]) == 0
    assert view.main([str(run), "--serve", "--host", "0.0.0.0", "--port", "80", "--watch"]) == 0
    either = ["window, watch=False", "window, watch=True"]
    assert shown == [*(either if screen else [e.replace("window", "127.0.0.1:8765") for e in either]),
                     "0.0.0.0:80, watch=True"]  # fmt: skip


def test_what_has_nothing_in_space_is_served_even_so(
    tmp_path: Path, shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(view, "has_screen", lambda: True)
    assert view.main([str(written(CURVES, tmp_path / "curves"))]) == 0
    assert shown == ["127.0.0.1:8765, watch=False"]
    assert "its page shows what there is" in capsys.readouterr().out


def test_watch_waits_for_the_run_and_its_window_for_a_frame(
    tmp_path: Path, shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, recording = tmp_path / "toy" / "later", sphere(frames=1)
    begun: list[Any] = [
        lambda: path.mkdir(parents=True),
        lambda: written(replace(recording, frames=(), summary={}), path),
        lambda: written(replace(recording, summary={}), path),
    ]
    monkeypatch.setattr(view.time, "sleep", lambda _: begun.pop(0)())
    monkeypatch.setattr(view, "has_screen", lambda: True)
    assert view.main([str(path), "--watch"]) == 0
    assert shown == ["window, watch=True"]
    assert begun == []
    assert capsys.readouterr().out.splitlines() == [
        f"waiting for {path} to begin (Ctrl-C ends)",
        f"waiting for the first frame of {path} (Ctrl-C ends)",
    ]


def test_a_version_is_new_when_there_is_something_new_and_only_then(run: Path) -> None:
    source, seen = Source(run), set()
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: (run / "metrics.csv").open("a").write("20,1,2\n"),
        lambda: written(replace(sphere(), frames=sphere(frames=21).frames[-1:]), run),
        lambda: (run / "recording" / "frame-00000001.npz").unlink(),
        lambda: (run / "summary.json").unlink(),
    ]
    for number, change in enumerate(changes):
        change()
        (run / "checkpoint.pt").write_bytes(bytes(number))  # nothing to look at
        (run / "recording" / ".tmp-frame-00000099.npz").write_bytes(bytes(number))
        seen.add(source.version())
        assert source.version() in seen
        assert len(seen) == number + 1


# ---- two of them ----


def test_two_runs_are_saved_as_one_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = written(sphere(frames=3), tmp_path / "results" / "toy" / "other")
    assert view.main([str(run), str(other), "--save", str(tmp_path / "both.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'both.html'}\n"
    text = (tmp_path / "both.html").read_text()
    assert text.count("<iframe ") == 2
    assert "must end in .html" in said(capsys, run, other, "--save", tmp_path / "both.png")
    assert "leave out --watch" in said(capsys, run, other, "--watch")
    assert "does not exist" in said(capsys, run, tmp_path / "absent")
    assert "cannot be written" in said(capsys, run, other, "--save", tmp_path / "absent" / "a.html")


def test_two_runs_are_served_where_no_file_is_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Any, ...]] = []
    monkeypatch.setattr(view, "serve_text", lambda *what: served.append(what))
    assert view.main([str(run), str(run), "--port", "80"]) == 0
    ((text, title, host, port),) = served
    assert text.count("<iframe ") == 2
    assert (title, host, port) == ("toy / sphere and toy / sphere", "127.0.0.1", 80)
