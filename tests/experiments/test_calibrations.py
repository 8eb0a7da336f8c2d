"""One command calibrates what is in a folder: cameras of several sizes, rigs, and lists of measured points."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from datasets.made.boards import Camera, Conditions, charuco_print, poses, render
from experiments import camera_calibration
from experiments.paper.boards import Board, CalibrationConfig
from experiments.paper.calibrations import doubts, read_views, told, undetermined, views_table
from experiments.records.recording import read_run
from geometry import project, se3
from geometry.reconstruction import calibrate_rig

BOARD = charuco_print((5, 4))
BENDS = torch.tensor([[-0.15, 0.03], [-0.1, 0.0]], dtype=torch.float64)


def camera(width: int, height: int, bend: Tensor) -> Camera:
    K = torch.tensor([[1.05 * width, 0, width / 2], [0, 1.06 * width, height / 2 - 3], [0, 0, 1]], dtype=torch.float64)
    return Camera(K, bend, (width, height))


ONE, TWO = camera(320, 240, BENDS[0]), camera(280, 220, BENDS[1])
MOUNTED_TWO = se3.from_rotvec_t(torch.tensor([[0.0] * 6, [0, -0.2, 0, -1, 0, 0]], dtype=torch.float64))
MOUNTED = se3.from_rotvec_t(torch.tensor([0.02, -0.1, 0.05, -0.7, 0.1, 0.1], dtype=torch.float64))


def draw(folder: Path, camera: Camera, views: Tensor, prefix: str) -> None:
    folder.mkdir(exist_ok=True)
    g, rays = torch.Generator().manual_seed(1), camera.rays()
    for i, view in enumerate(views):
        image = render(BOARD, view, rays, Conditions(0.6, 0.01, 0.2), g)
        cv2.imwrite(str(folder / f"{prefix}{i:02d}.png"), image)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `left` and `right` of a rig, and `both` with the images of either."""
    root = tmp_path_factory.mktemp("boards")
    views = poses(BOARD, ONE, 7, torch.Generator().manual_seed(0))
    for folder in ("left", "both"):
        draw(root / folder, ONE, views, "a")
    for folder in ("right", "both"):
        draw(root / folder, TWO, MOUNTED @ views[:6], "b")
    cv2.imwrite(str(root / "both" / "blank.png"), np.full((240, 320), 128, np.uint8))
    return root


def calibrated(tmp_path: Path, **board: Any) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    config = replace(camera_calibration.PRESETS["real"], board=Board(**board), out=tmp_path)
    summary, folder = camera_calibration.main(config), tmp_path / "camera_calibration" / "real-seed0"
    return summary, json.loads((folder / "calibrations.json").read_text()), folder


CHARUCO: dict[str, Any] = {"kind": "charuco", "corners": (5, 4), "square": 1.0, "marker": 0.75, "distortion": 2}


@pytest.mark.slow
def test_a_folder_of_two_sizes_is_two_cameras(images: Path, tmp_path: Path, interrupted: Callable[..., None]) -> None:
    summary, results, folder = calibrated(tmp_path, source=(str(images / "both"),), **CHARUCO)
    assert summary["converged"]
    assert [r["name"] for r in results] == ["both-2-320x240", "both-2-280x220"]
    for result, made in zip(results, (ONE, TWO), strict=True):
        (found,) = result["cameras"]
        truth = [*made.K.diagonal()[:2].tolist(), *made.K[:2, 2].tolist(), *made.distortion.tolist()]
        deviations = [*found["standard_deviations"].values()]
        z = (np.array(found["intrinsics"] + found["distortion"]) - truth) / deviations
        assert np.abs(z).max() < 4
        assert result["rms_px"] < 0.06
        name = result["name"]
        read = cv2.FileStorage(str(folder / f"{name}-opencv.yml"), cv2.FILE_STORAGE_READ)
        assert read.getNode("camera_matrix").mat()[0, 0] == found["intrinsics"][0]
        assert yaml.safe_load((folder / f"{name}-ros.yaml").read_text())["image_width"] == made.image_size[0]
        assert [*yaml.safe_load((folder / f"{name}-kalibr.yaml").read_text())] == ["cam0"]
        assert (folder / f"{name}-residuals.png").read_bytes().startswith(b"\x89PNG")
    assert results[0]["table"][-1]["why"].startswith("no part of a ChArUco board")
    why = "no part of a ChArUco board of 5 x 4 inner corners found"
    assert summary["left_out"] == {"both-2-320x240: blank.png": why}
    assert len(summary["found"]) == 2 * 6
    (camera,) = results[0]["cameras"]
    fx = {"value": camera["intrinsics"][0], "deviation": camera["standard_deviations"]["fx"], "unit": "px"}
    assert summary["found"]["both-2-320x240 fx"].items() >= fx.items()
    worst = max((row for row in results[0]["table"] if row["used"]), key=lambda row: row["rms_px"])
    assert f"worst view {worst['view']}" in summary["note"]
    table = (folder / "both-2-320x240-views.md").read_text()
    assert table == views_table(results[0])
    assert "| 0 | blank.png |  | 0 | no: no part" in table

    # each camera is a stage with a curve: from what is known before any view to what was found
    recording = read_run(folder)
    assert [stage.name for stage in recording.stages] == [r["name"] for r in results]
    assert recording.stages[1].units == {"loss": "px rms", "fx": "px", "fy": "px", "cx": "px", "cy": "px"}
    assert [frame.step for frame in recording.frames] == recording.metrics["step"].tolist()
    for number, result in enumerate(results):
        own = [frame.stage == number for frame in recording.frames]
        curve = recording.metrics["loss"][own]
        assert len(curve) > 4
        assert curve[0] > 10 * curve[-1]
        assert curve[-1] == pytest.approx(result["rms_px"])
        assert curve[-2] == pytest.approx(result["rms_px"])  # the descent ends in what the search found
        last = recording.frames[np.flatnonzero(own)[-1]]
        assert len(last.world_to_camera) == result["views"]
        stage = recording.stages[number]
        assert np.linalg.norm(last.points2d - stage.points2d_gt, axis=-1).max() < 0.5
    config = replace(camera_calibration.PRESETS["real"], board=Board(source=(str(images / "both"),), **CHARUCO))
    middle = next(frame.step for frame in recording.frames if frame.stage == 1) + 2
    interrupted(camera_calibration.main, replace(config, out=tmp_path / "cut"), at=middle)
    camera_calibration.main(replace(config, out=tmp_path / "cut", resume=True))
    again = tmp_path / "cut" / "camera_calibration" / "real-seed0"
    assert (again / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    assert [f.step for f in read_run(again).frames] == [f.step for f in recording.frames]


def test_a_lens_has_as_many_coefficients_as_its_model_unless_it_is_told() -> None:
    models = {"radtan": 5, "fisheye": 4, "fov": 1}
    assert {model: Board(model=model).coefficients for model in models} == models
    assert Board(model="fisheye", distortion=2).coefficients == 2
    with pytest.raises(ValueError, match=r"--board\.model fisheye takes --board\.distortion 0 to 4, got 5"):
        read_views(CalibrationConfig(board=Board(("nowhere",), model="fisheye", distortion=5)))


def test_a_calibration_that_is_not_to_be_used_says_why() -> None:
    good = {
        "name": "mine-5", "notes": ["a note"], "worst": None, "undetermined": [], "opencv": {"rms_px": 0.3},
        "rms_px": 0.3, "views": 2, "table": [{}] * 9, "board": {"corners": (7, 5)},
    }  # fmt: skip
    assert told(good) == ["mine-5: a note"]
    assert doubts(good) == []  # a board may be out of sight
    shown, fits, lower = doubts(good | {"rms_px": 4.8, "opencv": {"rms_px": 3.6}})
    assert shown == "mine-5: 2 of 9 images show the board. Is it really one of 7 x 5?"
    assert fits.startswith("mine-5: THE LENS DOES NOT FIT: the rms is 4.8 px")
    assert lower.startswith("mine-5: OpenCV ends lower, at 3.6 px")
    (open_,) = doubts(good | {"undetermined": ["f"], "views": 9, "opencv": None})
    assert open_.startswith("mine-5: the views do not tell f:")


@pytest.mark.slow
def test_two_folders_are_a_rig(images: Path, tmp_path: Path) -> None:
    sources = (str(images / "left"), str(images / "right"))
    summary, (result,), folder = calibrated(tmp_path, source=sources, **CHARUCO)
    assert summary["converged"]
    assert len(result["cameras"]) == 2
    assert result["views"] == 13  # one of them the first camera's alone
    found = torch.tensor(result["cameras"][1]["sensor_from_rig"]).double()
    assert se3.rotation_angle(found[:3, :3] @ MOUNTED[:3, :3].mT) < 0.02
    assert (found[:3, 3] - MOUNTED[:3, 3]).norm() < 0.05
    chain = yaml.safe_load((folder / "left-right-2-kalibr.yaml").read_text())
    np.testing.assert_allclose(chain["cam1"]["T_cn_cnm1"], found)


@pytest.mark.slow
def test_any_measured_points_will_do(tmp_path: Path) -> None:
    """Of a room: not in a plane, by names, with intrinsics that are fixed."""
    g = torch.Generator().manual_seed(2)
    room = torch.rand(20, 3, generator=g).double() * 2 - 1
    views = se3.from_rotvec_t(torch.randn(6, 6, generator=g).double() * 0.3 + torch.tensor([0, 0, 0, 0, 0, 5.0]))
    seen = project(room, views, ONE.K, ONE.distortion) + 0.05 * torch.randn(6, 20, 2, generator=g).double()
    (tmp_path / "room.txt").write_text("".join(f"p{i} {x} {y} {z}\n" for i, (x, y, z) in enumerate(room.tolist())))
    lines = (
        f"{v}.jpg p{i} {u} {w}\n" for v, view in enumerate(seen.tolist()) for i, (u, w) in enumerate(view) if i != v
    )
    (tmp_path / "measured.txt").write_text("".join(lines))
    summary, (result,), _ = calibrated(
        tmp_path, source=(str(tmp_path / "measured.txt"),), points=str(tmp_path / "room.txt"), distortion=2,
        image_size=(320, 240), free=("fx", "fy", "cy", "k1", "k2"),
    )  # fmt: skip
    assert summary["converged"]
    assert result["opencv"] is None
    assert [row["marks"] for row in result["table"]] == [19] * 6
    intrinsics, deviations = result["cameras"][0]["intrinsics"], result["cameras"][0]["standard_deviations"]
    assert intrinsics[2] == 159.5
    assert "cx" not in deviations
    assert intrinsics[0] == pytest.approx(ONE.K[0, 0].item(), rel=0.01)


@pytest.mark.parametrize(
    ("board", "says"),
    [
        ({"source": ("nowhere",)}, "nowhere"),
        ({"points": "room.txt"}, "image_size: width and height wanted"),
        ({"kind": "charuco", "marker": 2.0}, "marker: a side below that of a square"),
    ],
)
def test_a_mistake_is_one_sentence(
    board: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    (tmp_path / "room.txt").write_text("a 0 0 0")
    with pytest.raises(SystemExit) as ended:
        calibrated(tmp_path / "out", **{"source": (str(tmp_path / "some"),), **board})
    assert says in str(ended.value.code)


# ---- what the views do not tell ----

FLAT = torch.cat([torch.cartesian_prod(torch.arange(6.0), torch.arange(5.0)), torch.zeros(30, 1)], 1).double()


def marks(count: int, tilt: float, sensors: Tensor | None = None) -> Tensor:
    """Of `count` views of a board (S,count,30,2), tilted about x and y by `tilt` radians, with a tenth of a pixel of
    noise; sensors (S,4,4) are mounted cameras."""
    g = torch.Generator().manual_seed(200)
    step = torch.randn(count, 6, generator=g).double() * torch.tensor([tilt, tilt, 0.3, 0.5, 0.5, 2.0])
    views = se3.from_rotvec_t(step + torch.tensor([0, 0, 0, -2.5, -2, 13]))
    K = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]], dtype=torch.float64)
    seen = project(FLAT, torch.eye(4).double()[None, None] @ views if sensors is None else sensors[:, None] @ views, K)
    return seen + 0.1 * torch.randn(seen.shape, generator=g).double()


def open_names(points2d: Tensor, free: tuple[str, ...] | None) -> list[str]:
    solve = partial(calibrate_rig, points2d, FLAT, [(640, 480)] * len(points2d), distortion=0, max_steps=20)
    return undetermined(solve(free=free), solve)


@pytest.mark.slow
def test_one_view_tells_a_focal_length_and_no_principal_point() -> None:
    assert open_names(marks(1, tilt=0.5), ("f",)) == []
    assert {"cx", "cy"} <= set(open_names(marks(1, tilt=0.5), None))


@pytest.mark.slow
def test_a_rig_is_asked_the_same() -> None:
    assert open_names(marks(3, tilt=0.0, sensors=MOUNTED_TWO), ("f",)) == ["f"]
    assert open_names(marks(3, tilt=0.5, sensors=MOUNTED_TWO), ("f",)) == []


@pytest.mark.slow
def test_boards_that_all_face_the_camera_tell_no_focal_length(tmp_path: Path) -> None:
    """A board that is seen straight on is as large from afar with a long lens; noise alone makes a minimum."""
    (tmp_path / "board.txt").write_text("".join(f"p{i} {x} {y} 0\n" for i, (x, y, _) in enumerate(FLAT.tolist())))
    seen = marks(4, tilt=0.0)[0].tolist()
    lines = [f"{v}.jpg p{i} {u} {w}\n" for v, view in enumerate(seen) for i, (u, w) in enumerate(view)]
    (tmp_path / "measured.txt").write_text("".join(lines))
    summary, (result,), _ = calibrated(
        tmp_path, source=(str(tmp_path / "measured.txt"),), points=str(tmp_path / "board.txt"), distortion=0,
        image_size=(640, 480), free=("f",),
    )  # fmt: skip
    assert result["converged"]  # the solver found a minimum
    assert not summary["converged"]
    assert result["undetermined"] == ["f"]
    assert "the views do not tell f" in summary["undetermined"][0]
