"""Calibration of real cameras from views of chessboards, through PnP alone and from nothing but the image size.

Folders of images and corner files; intrinsics, distortion and their standard deviations, beside OpenCV's joint
calibration of the same corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import tyro
from torch import Tensor

from datasets import locate
from datasets.arrays import read_image
from datasets.images.chessboard import Views, detect, read_corners
from experiments.records.files import write_json
from experiments.running.config import RunConfig
from experiments.running.run import Run, experiment
from geometry import calibrate, project
from geometry.camera import Model, intrinsics_from_matrix
from geometry.reconstruction import CalibrationSolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NAMES", "SHARED_TARGETS", "ChessboardConfig", "Target", "chessboards"]

NAMES = ["fx", "fy", "cx", "cy"]
COEFFICIENTS: dict[Model, list[str]] = {
    "radtan": ["k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4"],
    "fisheye": ["k1", "k2", "k3", "k4"],
}


@dataclass(frozen=True)
class Target:
    """Where views of a chessboard come from, and which lens to fit."""

    source: str = ""
    """A folder of images, or a corner file (.yml, .npz), here or in the shared data."""
    corners: tuple[int, int] = (9, 6)
    """Inner corners along the board's rows and columns."""
    square: float = 1.0
    """Side of a square, in the unit wanted for the poses."""
    distortion: int = 5
    """How many distortion coefficients to estimate."""
    model: Model = "radtan"
    """Lens model: OpenCV's radial-tangential, or fisheye."""
    image_size: tuple[int, int] | None = None
    """Width and height, for corner files that do not say."""


SHARED_TARGETS = (
    Target("opencv_chess_left", (9, 6), 0.025, 2),
    Target("opencv_chess_left", (9, 6), 0.025, 5),
    Target("opencv_corners/out_camera_data.yml", (9, 6), 50.0, 2),
    Target("opencv_corners/out_camera_data.yml", (9, 6), 50.0, 5),
    Target("sony_chess/corners_6x4_opencv.npz", (6, 4), 30.0, 2, image_size=(640, 480)),
    Target("sony_chess/corners_6x4_opencv.npz", (6, 4), 30.0, 5, image_size=(640, 480)),
    Target("fisheye_chess", (6, 4), 30.0, 4, "fisheye"),
)


@dataclass(frozen=True)
class ChessboardConfig(RunConfig):
    iterations: int = 100
    """At the most; for each target, where there are several."""
    board: Target = Target()
    """A chessboard of yours; its source left empty, the preset's."""
    targets: tyro.conf.Suppress[tuple[Target, ...]] = ()
    """What the preset calibrates from; nothing: the published cube."""
    opencv: bool = True
    """Calibrate the same corners with OpenCV, for comparison."""


def read_views(config: ChessboardConfig) -> list[tuple[Target, Views]]:
    """The corners of each target, from images or a corner file, here or in the shared data."""
    found = []
    for target in (config.board,) if config.board.source else config.targets:
        path, board = locate.locate(target.source), (target.corners, target.square)
        views = detect(path, *board) if path.is_dir() else read_corners(path, *board, target.image_size)
        found.append((target, views))
    return found


@experiment("camera_calibration", read_views)
def chessboards(run: Run, config: ChessboardConfig, found: Sequence[tuple[Target, Views]]) -> dict:
    """Calibrate the camera of each target in turn, and write what there is to say of them to calibrations.json."""
    saved = run.restore()
    results: list[dict] = saved["results"] if saved else []
    for step in run.iterations(len(found)):
        target, views = found[step]
        solution = calibrate(
            views.points2d.to(run.device, run.dtype),
            views.points3d.to(run.device, run.dtype),
            views.image_size,
            distortion=target.distortion,
            model=target.model,
            max_steps=config.iterations,
        )
        results.append(describe(target, views, solution, config.opencv))
        run.stage(
            step,
            name=target_name(target),
            points3d=views.points3d,
            edges=grid_edges(*target.corners),
            points2d_gt=views.points2d[0],
            image_size=torch.tensor(views.image_size),
        )
        intrinsics = dict(zip(NAMES, results[-1]["intrinsics"], strict=True))
        run.log(step, loss=results[-1]["rms_px"], target=step, **intrinsics)
        K, distortion, poses = (part[0] for part in solution.x)
        seen = project(views.points3d.to(poses), poses[0], K, distortion, model=target.model)
        run.frame(step, world_to_camera=poses, K=K, points2d=seen)
        save(run, step, target, views, solution)
        write_json(run.folder / "calibrations.json", results)
        run.checkpoint(step, results=results)
    return finish(run, results, complete=len(results) == len(found))


def save(run: Run, step: int, target: Target, views: Views, solution: CalibrationSolution) -> None:
    """A target's board and cameras, and of images one that is undistorted."""
    name, (K, distortion, poses) = target_name(target), (part[0] for part in solution.x)
    run.save_points(name, views.points3d, cameras=poses, K=K[None])
    folder = locate.locate(target.source)
    if folder.is_dir() and target.model == "radtan":
        run.figure(f"{name}-undistorted", step, undistorted(folder / views.names[0], K, distortion), final=True)


def finish(run: Run, results: Sequence[dict], complete: bool) -> dict:
    """The run's summary of all targets."""
    if results:
        from experiments.viewers.picture import picture  # a viewer: not before there is something to see

        run.figure("scene", len(results), picture(run.recorded()), final=True)
    worst = max((r["rms_px"] - r["opencv"]["rms_px"] for r in results if r["opencv"]), default=float("nan"))
    return run.finish(
        converged=complete and all(r["converged"] for r in results),
        iterations=sum(r["iterations"] for r in results),
        loss=max(r["rms_px"] for r in results),
        errors={**{f"{r['name']} rms_px": r["rms_px"] for r in results}, "rms_above_opencv_px": worst},
        reference={f"{r['name']} rms_px": f"{r['opencv']['rms_px']:.6f} (OpenCV)" for r in results if r["opencv"]},
        note="; ".join(f"{r['name']}: left out {n} ({why})" for r in results for n, why in r["left_out"]),
        picture="scene",
    )


def target_name(target: Target) -> str:
    """Source and number of coefficients."""
    path = Path(target.source)
    return f"{(path.parent.name or path.stem) if path.suffix else path.name}-{target.distortion}"


def grid_edges(columns: int, rows: int) -> Tensor:
    """Neighbours among the corners of a board, which are numbered along its rows. (E,2)."""
    index = torch.arange(columns * rows).view(rows, columns)
    across, down = (index[:, :-1], index[:, 1:]), (index[:-1], index[1:])
    return torch.cat([torch.stack(pair, -1).flatten(0, 1) for pair in (across, down)])


def undistorted(image: Path, K: Tensor, distortion: Tensor) -> Figure:
    """An image of the board before and after the fitted distortion is taken out: its lines must come out straight."""
    from kornia.geometry.calibration import undistort_image
    from matplotlib.figure import Figure

    before = torch.from_numpy(read_image(image)).to(K).permute(2, 0, 1)[None] / 255
    padded = torch.nn.functional.pad(distortion, (0, max(0, 5 - len(distortion))))
    after = undistort_image(before, K[None], padded[None])
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, picture, title in zip(figure.subplots(1, 2), (before, after), ("as taken", "undistorted"), strict=True):
        axes.imshow(picture[0].permute(1, 2, 0).clamp(0, 1).cpu())
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return figure


def describe(target: Target, views: Views, solution: CalibrationSolution, opencv: bool) -> dict:
    """All there is to say about one calibration, for calibrations.json."""
    K, distortion, poses = (part[0] for part in solution.x)
    found = [*intrinsics_from_matrix(K).tolist(), *distortion.tolist()]
    peer = opencv_calibration(target, views) if opencv else None
    if peer:
        theirs = np.array(peer["intrinsics"] + peer["distortion"])
        peer["largest_relative_difference"] = float(np.abs((np.array(found) - theirs) / theirs).max())
    names = [*NAMES, *COEFFICIENTS[target.model]]
    return {
        "name": target_name(target),
        "target": asdict(target),
        "converged": bool(solution.converged.all()),
        "undetermined": [name for name, is_open in zip(names, solution.undetermined, strict=False) if is_open],
        "iterations": int(solution.steps),
        "views": len(views.names),
        "left_out": [list(pair) for pair in views.left_out],
        # sqrt(mean(dx^2 + dy^2))
        "rms_px": (2 * solution.cost.item() / views.points2d[..., 0].numel()) ** 0.5,
        "intrinsics": found[:4],
        "distortion": found[4:],
        "standard_deviations": solution.covariance().diagonal().sqrt().tolist(),
        "world_to_camera": poses.tolist(),
        "opencv": peer,
    }


def opencv_calibration(target: Target, views: Views) -> dict | None:
    """OpenCV's joint calibration of the same corners; None for a lens it does not fit the same way.

    cv2.fisheye.calibrate needs a guess and does not take views beyond 90 degrees: it has no say here.
    """
    import cv2

    if target.model != "radtan" or target.distortion not in (0, 2, 5):
        return None
    flags = {0: cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2, 2: 0, 5: 0}[target.distortion]
    if target.distortion < 5:
        flags |= cv2.CALIB_FIX_K3 | cv2.CALIB_ZERO_TANGENT_DIST
    board = views.points3d.numpy().astype(np.float32)
    corners = [view.numpy().astype(np.float32)[:, None] for view in views.points2d]
    criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 1000, 1e-15)
    rms, K, distortion, *_ = cv2.calibrateCamera(
        [board] * len(corners), corners, views.image_size, None, None, flags=flags, criteria=criteria
    )
    return {
        "rms_px": float(rms),
        "intrinsics": [*K.diagonal()[:2].tolist(), *K[:2, 2].tolist()],
        "distortion": distortion.ravel()[: target.distortion].tolist(),
    }
