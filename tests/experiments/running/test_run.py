"""The run folder under every way a run can end, and what comes back out of the files it writes."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiments.drawing import figures
from experiments.records.files import write_json
from experiments.records.recording import read_run
from experiments.running.config import RunConfig
from experiments.running.run import Run
from experiments.running.tensorboard import Board
from tests.experiments.running import toy_driver
from tests.experiments.running.toy_driver import PRESETS, Config
from tests.experiments.summaries import without_times

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(PRESETS["default"], out=tmp_path)


def folder(config: RunConfig) -> Path:
    return config.out / "toy_driver" / "default-seed0"


def interrupt(config: Config, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Run it up to that step, where it dies of Ctrl-C."""
    monkeypatch.setenv("TOY_RAISE_AT", str(step))
    with pytest.raises(KeyboardInterrupt):
        toy_driver.main(config)
    monkeypatch.delenv("TOY_RAISE_AT")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, bytes]:
    config = replace(PRESETS["default"], out=tmp_path_factory.mktemp("whole"))
    return toy_driver.main(config), (folder(config) / "metrics.csv").read_bytes()


# ---- dying and going on ----


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_numbers(config: Config, uninterrupted: tuple[dict, bytes]) -> None:
    command = [sys.executable, "-m", "tests.experiments.running.toy_driver", "default", "--out", str(config.out)]
    killed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TOY_KILL_AT": "37"}, capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert not (folder(config) / "summary.json").exists()
    rows = len((folder(config) / "metrics.csv").read_text().splitlines())
    assert rows == 1 + len(read_run(folder(config)).frames) == 1 + 38  # those past the checkpoint are computed again

    summary = toy_driver.main(replace(config, resume=True))
    assert without_times(summary) == without_times(uninterrupted[0])
    assert (folder(config) / "metrics.csv").read_bytes() == uninterrupted[1]


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 30, 37, 49])  # before the second checkpoint, at one, past one, at the last
def test_an_interrupted_run_keeps_every_row_and_resumes(
    config: Config, uninterrupted: tuple[dict, bytes], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    interrupt(config, monkeypatch, step)
    rows = (folder(config) / "metrics.csv").read_bytes()
    assert rows == b"".join(uninterrupted[1].splitlines(keepends=True)[: step + 2])
    assert not (folder(config) / "summary.json").exists()

    summary = toy_driver.main(replace(config, resume=True, log_every=7))  # log_every changes no number
    assert without_times(summary) == without_times(uninterrupted[0])
    assert (folder(config) / "metrics.csv").read_bytes() == uninterrupted[1]


@pytest.mark.slow
def test_rows_past_the_checkpoint_are_gone_when_a_resumed_run_dies_earlier(
    config: Config, uninterrupted: tuple[dict, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(config, monkeypatch, 38)
    interrupt(replace(config, resume=True), monkeypatch, 33)
    rows = (folder(config) / "metrics.csv").read_bytes()
    assert rows == b"".join(uninterrupted[1].splitlines(keepends=True)[: 1 + 34])


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_that_is_begun_again_is_unfinished(
    config: Config, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    toy_driver.main(replace(config, iterations=20))
    interrupt(replace(config, resume=resume, overwrite=not resume), monkeypatch, 35)
    assert not (folder(config) / "summary.json").exists()


@pytest.mark.slow
def test_seconds_add_up_over_resumes(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(config, monkeypatch, 30)
    path = folder(config) / "checkpoint.pt"
    torch.save({**torch.load(path), "seconds": 1000.0}, path)
    assert 1000 < toy_driver.main(replace(config, resume=True))["seconds"] < 2000


@pytest.mark.slow
def test_without_resume_an_unfinished_run_starts_afresh(
    config: Config, uninterrupted: tuple[dict, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(replace(config, rate=0.2), monkeypatch, 15)
    (folder(config) / "old").mkdir()
    (folder(config) / "old" / "left.over").touch()
    assert without_times(toy_driver.main(replace(config, overwrite=True))) == without_times(uninterrupted[0])
    assert (folder(config) / "metrics.csv").read_bytes() == uninterrupted[1]
    assert not (folder(config) / "old").exists()
    assert len(list(folder(config).glob("events*"))) == 1


def test_resume_without_a_checkpoint_says_so(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    with Run("toy_driver", replace(config, resume=True)) as run:
        assert run.start == 0
        assert run.restore() is None
    assert "no checkpoint: starting at iteration 0" in capsys.readouterr().err


@pytest.mark.slow
def test_resume_of_a_finished_run_returns_its_summary(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = toy_driver.main(config)
    monkeypatch.setattr(Run, "iterations", lambda *_: pytest.fail("it was computed again"))
    assert toy_driver.main(replace(config, resume=True)) == summary


@pytest.mark.slow
def test_a_finished_run_can_be_given_more_iterations(config: Config, uninterrupted: tuple[dict, bytes]) -> None:
    toy_driver.main(replace(config, iterations=20))
    assert without_times(toy_driver.main(replace(config, resume=True))) == without_times(uninterrupted[0])
    assert (folder(config) / "metrics.csv").read_bytes() == uninterrupted[1]
    with pytest.raises(SystemExit, match="iteration 50 already"):
        toy_driver.main(replace(config, resume=True, iterations=20))
    assert (folder(config) / "summary.json").exists()


@pytest.mark.parametrize(("field", "value"), [("rate", 0.2), ("dtype", "float32"), ("preset", "smoke"), ("seed", 1)])
def test_another_config_is_not_resumed(config: Config, monkeypatch: pytest.MonkeyPatch, field: str, value: Any) -> None:
    config = replace(config, name="default-seed0")
    interrupt(config, monkeypatch, 15)
    changes: dict[str, Any] = {"resume": True, field: value}
    with pytest.raises(SystemExit, match=rf"{field} was .*, is now {value!r}"):
        toy_driver.main(replace(config, **changes))
    assert (folder(config) / "checkpoint.pt").exists()


def test_iterations_before_restore_is_a_mistake(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(config, monkeypatch, 15)
    with Run("toy_driver", replace(config, resume=True)) as run, pytest.raises(RuntimeError, match="restore"):
        next(run.iterations(50))


def test_a_state_that_could_not_be_loaded_fails_when_it_is_saved(config: Config) -> None:
    with Run("toy_driver", config) as run, pytest.raises(Exception, match=r"[Ww]eights"):
        run.checkpoint(0, x=np.zeros(3))
    assert [path.name for path in folder(config).glob("*check*")] == []


# ---- whose folder it is ----


def test_a_second_process_in_the_folder_is_told_so_and_stops(config: Config) -> None:
    with Run("toy_driver", config) as run:
        run.log(0, loss=1.0)
        before = sorted(path.name for path in folder(config).iterdir())
        for resume in (False, True):
            with pytest.raises(SystemExit, match="is being written by another process") as ended:
                toy_driver.main(replace(config, resume=resume))
            assert ended.value.code not in (0, None)
        assert sorted(path.name for path in folder(config).iterdir()) == before
    assert toy_driver.main(replace(config, iterations=3))["iterations"] == 3


def test_a_run_that_cannot_begin_leaves_the_folder_free(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("experiments.running.run.Board", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy_driver.main(config)
    assert toy_driver.main(replace(config, iterations=3))["iterations"] == 3


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("marker", [None, "not json", "[]", "{}", '{"experiment": "another"}', '{"experiment": null}'])
def test_a_foreign_folder_is_never_touched(config: Config, marker: str | None, resume: bool) -> None:
    folder(config).mkdir(parents=True)
    (folder(config) / "thesis.tex").write_text("years of work")
    (folder(config) / "summary.json").write_text("{}")
    if marker is not None:
        (folder(config) / "config.json").write_text(marker)
    before = {path.name: path.read_text() for path in folder(config).iterdir()}
    with pytest.raises(SystemExit, match="holds no run of toy_driver"):
        toy_driver.main(replace(config, resume=resume))
    assert {path.name: path.read_text() for path in folder(config).iterdir()} == before


@pytest.mark.parametrize("name", ["..", "a/b", "/tmp"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="plain folder name"):
        Config(name=name)


@pytest.mark.slow
def test_what_a_link_points_to_stays(config: Config, tmp_path: Path) -> None:
    toy_driver.main(config)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kept").touch()
    (folder(config) / "link").symlink_to(tmp_path / "data")
    toy_driver.main(config)
    assert (tmp_path / "data" / "kept").exists()
    assert not (folder(config) / "link").is_symlink()


def test_a_missing_device_is_reported_before_a_run_is_overwritten(config: Config) -> None:
    toy_driver.main(config)
    with pytest.raises(SystemExit, match="device cuda:99: "):
        toy_driver.main(replace(config, device="cuda:99"))
    assert (folder(config) / "summary.json").exists()


# ---- what is in the files ----


@pytest.mark.slow
def test_tensorboard_reads_everything_back(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(config, monkeypatch, 37)
    summary = toy_driver.main(replace(config, resume=True))
    events = EventAccumulator(str(folder(config)), {"tensors": 0, "images": 0, "scalars": 0}).Reload()

    losses = events.Scalars("loss")
    assert [event.step for event in losses] == list(range(51))  # the rows past the checkpoint are purged
    assert losses[-1].value == pytest.approx(summary["loss"], rel=1e-6)
    assert events.Scalars("metrics/x")[0].value == pytest.approx(summary["errors"]["x"], rel=1e-6)
    assert [event.step for event in events.Images("pictures/loss")] == [50]
    steps = [event.step for event in events.Tensors("points_VERTEX")]
    assert steps[:32] == list(range(32))
    assert steps[-19:] == list(range(31, 50))  # some after the checkpoint twice: this loader purges no tensors
    data = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert data.session_start_info.hparams["rate"].number_value == 0.1
    assert data.session_start_info.hparams["preset"].string_value == "default"


def test_ply_files_read_back(config: Config) -> None:
    o3d = pytest.importorskip("open3d")
    points = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    colors = torch.randint(0, 256, (20, 3), dtype=torch.uint8)
    cameras = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    cameras[:, 2, 3] = torch.tensor([4.0, 5.0, 6.0])
    K = torch.tensor([[100.0, 0, 50], [0, 100, 25], [0, 0, 1]])
    with Run("toy_driver", config) as run:
        run.save_points("points", points, colors, cameras, K)
    cloud = o3d.io.read_point_cloud(folder(config) / "points.ply")
    np.testing.assert_allclose(np.asarray(cloud.points), points.detach(), atol=1e-12)
    np.testing.assert_array_equal(np.rint(np.asarray(cloud.colors) * 255), colors)
    lines = o3d.io.read_line_set(folder(config) / "points_cameras.ply")
    assert len(lines.lines) == 3 * 8
    apexes = np.asarray(lines.points)[::5]
    np.testing.assert_allclose(apexes, [[0, 0, -4], [0, 0, -5], [0, 0, -6]], atol=1e-12)
    assert {path.suffix for path in folder(config).glob(".tmp*")} == set()


def test_frusta_end_where_the_image_does() -> None:
    K = np.array([[100.0, 0, 50], [0, 80, 30], [0, 0, 1]])
    angle = 0.3
    camera = np.eye(4)
    camera[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    camera[:3, 3] = [1, 2, 10]
    corners = figures.frusta(camera[None], np.zeros((1, 3)), K)[0]
    seen = corners @ camera[:3, :3].T + camera[:3, 3]
    np.testing.assert_allclose(seen[0], 0, atol=1e-12)
    pixels = seen[1:] @ K.T / seen[1:, 2:]
    np.testing.assert_allclose(pixels[:, :2], [[0, 0], [100, 0], [100, 60], [0, 60]], atol=1e-9)


def test_a_summary_with_nan_is_valid_json(config: Config) -> None:
    with Run("toy_driver", config) as run:
        summary = run.finish(
            converged=False, goal="", iterations=1, loss=torch.tensor(float("nan")), errors={"x": float("inf"), "y": 1}
        )
    text = (folder(config) / "summary.json").read_text()
    stored = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert stored == summary
    assert stored["loss"] == "nan"
    assert stored["errors"] == {"x": "inf", "y": 1}
    assert stored.keys() >= {"experiment", "preset", "seed", "dtype", "seconds", "reference", "note"}


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})

    class Untold:
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_json(path, {"a": 2, "b": Untold()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_columns_do_not_change_under_way(config: Config) -> None:
    with Run("toy_driver", config) as run:
        run.log(0, loss=1.0, error=2)
        with pytest.raises(ValueError, match=r"columns are \['loss', 'error'\]"):
            run.log(1, loss=1.0, eror=2)
    assert (folder(config) / "metrics.csv").read_text() == "step,loss,error\n0,1.0,2\n"


@pytest.mark.slow
def test_a_resumed_run_has_every_frame_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replace(config, name="whole")
    toy_driver.main(whole)
    interrupt(config, monkeypatch, 38)
    assert not (folder(config) / "index.html").exists()
    toy_driver.main(replace(config, resume=True))
    one, other = (read_run(config.out / "toy_driver" / name) for name in ("whole", "default-seed0"))
    assert [frame.step for frame in one.frames] == [frame.step for frame in other.frames] == list(range(50))
    for a, b in zip(one.frames, other.frames, strict=True):
        np.testing.assert_array_equal(a.points3d, b.points3d)
    assert other.stages[0].targets == {"loss": 0.1}


@pytest.mark.slow
def test_an_overwritten_run_keeps_no_frame_and_no_page(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_driver.main(config)
    assert (folder(config) / "index.html").exists()
    interrupt(config, monkeypatch, 3)
    assert [frame.step for frame in read_run(folder(config)).frames] == [0, 1, 2, 3]
    assert not (folder(config) / "index.html").exists()


def test_whoever_watches_sees_curves_as_long_as_the_frames(config: Config) -> None:
    with Run("toy_driver", config) as run:
        for step in range(3):
            run.log(step, loss=1.0)
            run.frame(step, points3d=np.zeros((2, 3)))
            shown = run.recorded()
            assert len(shown.metrics["loss"]) == len(shown.frames) == step + 1


@pytest.mark.slow
def test_the_price_of_logging_is_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, **__: Any) -> None:
        time.sleep(0.02)

    monkeypatch.setattr(Board, "frame", slow)
    monkeypatch.setattr("experiments.viewers.page.write_page", slow)
    summary = toy_driver.main(replace(config, iterations=20))
    assert summary["logging_seconds"] > 20 * 0.02
    assert 0.02 < summary["drawing_seconds"] < summary["seconds"] + 0.02


@pytest.mark.slow
def test_the_picture_comes_first_among_the_figures(config: Config) -> None:
    with Run("toy_driver", config) as run:
        for tag in ("a", "z", "m"):
            run.figure(tag, 0, figures.loss_curve([1.0]), final=True)
        run.figure("b", 0, figures.loss_curve([1.0]))
        run.finish(converged=True, goal="", iterations=1, loss=0, errors={}, picture="m")
    assert json.loads((folder(config) / "summary.json").read_text())["figures"] == ["m.png", "a.png", "z.png"]


def test_colors_must_be_bytes_of_every_point(config: Config) -> None:
    with Run("toy_driver", config) as run, pytest.raises(ValueError, match="uint8"):
        run.save_points("points", np.zeros((3, 3)), colors=np.ones((3, 3)))


# ---- figures ----


def test_figures_draw_extreme_values() -> None:
    rng = np.random.default_rng(0)
    drawn = [
        figures.loss_curve([1.0, 0.0, float("nan")], threshold=1e-3),
        figures.loss_curve([]),
        figures.keypoint_tracks(rng.normal(size=(1, 3, 2)), rng.normal(size=(3, 2)), "one frame"),
        figures.trajectories(torch.ones(5, 3), ["fx", "fy", "cx"], truth=[1.0, 2.0, 3.0]),
    ]
    for figure in drawn:
        figure.canvas.draw()
    rows = figures.keypoint_tracks(rng.normal(size=(4, 3, 2)), rng.normal(size=(3, 2)), "rows").axes[0]
    assert rows.yaxis_inverted()


def test_values_have_viridis_colors() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    values = torch.linspace(0, 100, 201)
    found = figures.value_colors(values)
    wanted = matplotlib.colormaps["viridis"](np.clip((values.numpy() - 1) / 98, 0, 1), bytes=True)[:, :3]
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 10
    assert (figures.value_colors([np.nan, 1.0, 2.0, 2.0])[0] == found[0]).all()
    assert figures.value_colors(np.ones(3)).shape == (3, 3)
