"""The three drivers as a user meets them: smoke runs, what they leave behind, kills, seeds, absent data."""

import csv
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datasets.made.scenes import CUBE, duck
from experiments import camera_calibration, pose_estimation, structure_from_motion
from experiments.paper.boards import SHARED_BOARDS
from experiments.paper.peers import opencv_calibration
from experiments.records.files import EXIT_SKIPPED
from tests.experiments.summaries import without_times

ROOT = Path(__file__).parents[2]
DRIVERS = ("pose_estimation", "structure_from_motion", "camera_calibration")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PLY = {
    "pose_estimation": "cube",
    "structure_from_motion": "points",
    "camera_calibration": "cube",
}
FIGURES = {
    "pose_estimation": {"loss", "keypoints", "reprojection"},
    "structure_from_motion": {"loss", "structure"},
    "camera_calibration": {"loss", "intrinsics"},
}

# The driver, killed right after it has logged step KILL_AT.
KILLED = """
import importlib, os, signal, sys
from experiments.running.run import Run
from experiments.structure import scenes
from experiments.running.config import cli
log = Run.log
def dying(self, step, **values):
    log(self, step, **values)
    if step == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
Run.log = dying
driver = importlib.import_module(sys.argv.pop(1))
driver.main(cli(driver.__doc__, driver.PRESETS))
"""


def module(driver: str) -> Any:
    return importlib.import_module(f"experiments.{driver}")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a driver's smoke run, made as a user makes it, once."""
    out = tmp_path_factory.mktemp("smoke")

    def run(driver: str) -> Path:
        folder = out / driver / "smoke-seed0"
        if not folder.exists():
            command = [sys.executable, "-m", f"experiments.{driver}", "smoke", "--out", str(out)]
            ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
            assert ended.stdout.startswith("\nGoal reached: ")
            assert f"page  {folder}/index.html\n" in ended.stdout
        return folder

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---- what a smoke run leaves ----


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_smoke_converges_and_says_so(smoke: Callable[[str], Path], driver: str) -> None:
    folder = smoke(driver)
    config = json.loads((folder / "config.json").read_text())
    assert config["experiment"] == driver
    assert config["preset"] == "smoke"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["converged"] is True
    assert summary["experiment"] == driver
    logged = rows(folder)
    assert [int(row["step"]) for row in logged] == list(range(summary["iterations"]))
    assert float(logged[-1]["loss"]) == pytest.approx(summary["loss"], rel=1e-6, abs=1e-12)
    assert summary["loss"] < config["threshold"] < float(logged[0]["loss"])
    if driver == "structure_from_motion":
        assert summary["errors"]["rms_share"] < 1e-3
        assert summary["errors"]["within_1_percent"] == 1
    else:
        assert summary["errors"]["rotation_deg"] < 0.1
    if driver == "camera_calibration":
        assert summary["errors"]["intrinsics_px"] < 1
        truth = dict(fx=800, fy=700, cx=400, cy=300)
        assert {name: float(logged[-1][name]) for name in truth} == pytest.approx(truth, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_tensorboard_shows_what_was_logged(smoke: Callable[[str], Path], driver: str) -> None:
    folder = smoke(driver)
    events = EventAccumulator(str(folder), {"tensors": 0, "images": 0, "scalars": 0}).Reload()
    logged = rows(folder)
    for column in logged[0].keys() - {"step"}:
        shown = events.Scalars(column if column == "loss" else f"metrics/{column}")
        values = {event.step: event.value for event in shown}
        np.testing.assert_allclose(
            [values[int(r["step"])] for r in logged], [float(r[column]) for r in logged], rtol=1e-6
        )
    tags = events.Tags()
    assert set(tags["images"]) >= {f"pictures/{name}" for name in FIGURES[driver]}
    for name in FIGURES[driver]:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    clouds = [event.step for event in events.Tensors("points_VERTEX")]
    assert clouds == [*(int(row["step"]) for row in logged), len(logged)]


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_point_clouds_hold_the_scene(smoke: Callable[[str], Path], driver: str) -> None:
    o3d = pytest.importorskip("open3d")
    folder = smoke(driver)
    points = np.asarray(o3d.io.read_point_cloud(folder / f"{PLY[driver]}.ply").points)
    lines = o3d.io.read_line_set(folder / f"{PLY[driver]}_cameras.ply")
    if driver == "structure_from_motion":
        np.testing.assert_allclose(points, duck(100, torch.Generator().manual_seed(0)), atol=1e-4)
        assert len(lines.lines) == 8 * 8
    else:
        np.testing.assert_allclose(points, CUBE, atol=1e-12)
        assert len(lines.lines) == 8
    assert np.isfinite(np.asarray(lines.points)).all()


# ---- seeds ----


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_the_seed_decides(smoke: Callable[[str], Path], driver: str, tmp_path: Path) -> None:
    """The same numbers in another process; others from another seed."""
    expected = (smoke(driver) / "metrics.csv").read_bytes()
    config = replace(module(driver).PRESETS["smoke"], out=tmp_path)
    if driver != "structure_from_motion":  # there, resuming a killed run says the same
        module(driver).main(config)
        assert (tmp_path / driver / "smoke-seed0" / "metrics.csv").read_bytes() == expected
    module(driver).main(replace(config, seed=1, iterations=2))
    assert rows(tmp_path / driver / "smoke-seed1")[0] != rows(smoke(driver))[0]


# ---- kills ----


def killed(driver: str, arguments: list[str], at: int) -> None:
    command = [sys.executable, "-c", KILLED, f"experiments.{driver}", *arguments]
    environment = {**ENVIRONMENT, "KILL_AT": str(at)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -9, ended.stderr


@pytest.mark.slow
def test_a_killed_structure_resumes_to_the_same_numbers(smoke: Callable[[str], Path], tmp_path: Path) -> None:
    expected = (smoke("structure_from_motion") / "metrics.csv").read_bytes()
    last = len(expected.splitlines()) - 2
    killed("structure_from_motion", ["smoke", "--log-every", "1", "--out", str(tmp_path)], last)
    folder = tmp_path / "structure_from_motion" / "smoke-seed0"
    assert not (folder / "summary.json").exists()
    restored = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert restored == last - 1
    config = replace(structure_from_motion.PRESETS["smoke"], out=tmp_path, log_every=1, resume=True)
    summary = structure_from_motion.main(config)
    assert summary["converged"]
    assert (folder / "metrics.csv").read_bytes() == expected


SHORT = {
    "camera_calibration": dict(iterations=16, log_every=4),
    "pose_estimation": dict(iterations=4, log_every=3),
}


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "at"), [("camera_calibration", 11), ("pose_estimation", 2)])
def test_a_killed_paper_run_resumes_to_the_same_numbers(driver: str, at: int, tmp_path: Path) -> None:
    short = SHORT[driver]
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in short.items()]
    killed(driver, ["paper", *arguments, "--out", str(tmp_path / "killed")], at)
    folder = tmp_path / "killed" / driver / "paper-seed0"
    assert not (folder / "summary.json").exists()
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert step == {11: 8, 2: 0}[at]

    config = replace(module(driver).PRESETS["paper"], **short)
    resumed = module(driver).main(replace(config, out=tmp_path / "killed", resume=True))
    whole = module(driver).main(replace(config, out=tmp_path / "whole"))
    expected = tmp_path / "whole" / driver / "paper-seed0"
    assert (folder / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    assert len(rows(folder)) == short["iterations"]
    assert float(rows(folder)[-1]["loss"]) < float(rows(folder)[0]["loss"])
    assert without_times(resumed) == without_times(whole)


@pytest.mark.slow
def test_an_interrupted_network_of_points_resumes_to_the_same_numbers(
    same_when_resumed: Callable[..., dict[str, Any]],
) -> None:
    preset = structure_from_motion.PRESETS["paper_made"]
    config = replace(preset, points=30, views=6, iterations=4, log_every=3, threads=1)
    assert same_when_resumed(structure_from_motion.main, config, at=2)["iterations"] == 4


# ---- real data ----


def test_an_earlier_run_outlives_absent_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARNABLE_GEOMETRY_DATA", str(tmp_path / "empty"))
    folder = tmp_path / "structure_from_motion" / "published-seed0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"experiment": "structure_from_motion"}')
    (folder / "summary.json").write_text("{}")
    config = structure_from_motion.Config(preset="published", scene="published", out=tmp_path)
    with pytest.raises(SystemExit) as ended:
        structure_from_motion.main(config)
    assert ended.value.code == EXIT_SKIPPED
    assert (folder / "summary.json").exists()


@pytest.mark.slow
def test_a_real_camera_beside_opencv(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    real_data("sony_chess")
    target = next(t for t in SHARED_BOARDS if "sony" in t.source[0] and t.distortion == 2)
    summary = camera_calibration.main(replace(camera_calibration.PRESETS["real"], boards=(target,), out=tmp_path))
    assert summary["converged"]
    assert summary["errors"]["rms_above_opencv_px"] < 1e-6
    (result,) = json.loads((tmp_path / "camera_calibration" / "real-seed0" / "calibrations.json").read_text())
    assert result["views"] == 13
    assert result["rms_px"] == pytest.approx(result["opencv"]["rms_px"], abs=1e-6)
    assert result["rms_px"] == pytest.approx(0.16245, abs=1e-5)
    (camera,) = result["cameras"]
    np.testing.assert_allclose(camera["intrinsics"], result["opencv"]["intrinsics"], rtol=1e-4)
    np.testing.assert_allclose(camera["intrinsics"], [700.931, 698.550, 307.777, 247.467], atol=2e-3)
    np.testing.assert_allclose(camera["distortion"], result["opencv"]["distortion"], rtol=1e-4)
    assert result["opencv"]["largest_relative_difference"] < 1e-4
    assert all(deviation > 0 for deviation in camera["standard_deviations"].values())
    assert np.shape(result["world_to_rig"]) == (13, 4, 4)


def test_a_camera_beside_nothing() -> None:
    """OpenCV has no say where it does not fit the same lens."""
    board = SHARED_BOARDS[-1]
    assert board.model == "fisheye"
    assert opencv_calibration(None, board.distortion, board.model) is None  # type: ignore[arg-type]


def test_the_paper_s_drivers_have_its_preset_and_real_data() -> None:
    for driver in DRIVERS:
        assert {"paper", "real"} <= module(driver).PRESETS.keys()
    paper, unregularised = pose_estimation.PRESETS["paper"], pose_estimation.PRESETS["unregularised"]
    assert replace(unregularised, preset="paper", regularise=True) == paper
