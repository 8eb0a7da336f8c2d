"""Calibration of real cameras from views of targets, from nothing but the size of their images.

Folders of images, corner files and lists of measured points; one camera, one for each size of image in a folder, or
several that are mounted together. For each: intrinsics, distortion and their standard deviations beside OpenCV's joint
calibration of the same marks, a table of the views, a picture of residuals and coverage, and files that OpenCV, ROS and
Kalibr read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets import locate
from datasets.arrays import read_image
from datasets.files import replacing
from datasets.images.stored_marks import read_corners, read_measured
from datasets.images.views import RigViews, Views, detect, detect_cameras, in_rig
from datasets.reconstructions.camera_files import CameraFile, write_kalibr, write_opencv, write_ros
from experiments.drawing.calibration import residuals_and_coverage
from experiments.paper.boards import Board, CalibrationConfig
from experiments.paper.descents import Lens, descent
from experiments.paper.peers import opencv_calibration
from experiments.records.files import write_json
from experiments.records.quantities import Quantity
from experiments.records.text import table
from experiments.running.config import told_in_a_sentence
from experiments.running.determined import is_loose, undetermined_names
from experiments.running.mistyped import check_names
from experiments.running.run import Run, experiment
from geometry import cauchy, project
from geometry.camera import intrinsics_from_matrix
from geometry.lenses import LENSES
from geometry.optim import Status
from geometry.reconstruction import JointCalibration, calibrate_rig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NAMES", "calibrations"]

NAMES = ["fx", "fy", "cx", "cy"]


COARSE_PX = 1.0
"""Above this rms a fit is no matter of how exactly marks are found: of the shared pictures all are below 0.3 px, and a
fisheye taken for a pinhole with five coefficients is at 5 px."""


class Job(NamedTuple):
    """One calibration: what it is called, the cameras as they were found, and as they were taken together."""

    name: str
    board: Board
    cameras: tuple[Views, ...]
    views: RigViews


def read_views(config: CalibrationConfig) -> list[Job]:
    """The marks of each board: a job a camera, or a rig."""
    jobs = []
    for board in (config.board,) if config.board.source else config.boards:
        most = len(LENSES[board.model].names)
        if not 0 <= board.coefficients <= most:
            raise ValueError(
                f"--board.model {board.model} takes --board.distortion 0 to {most}, got {board.distortion}"
            )
        check_names("free", board.free, ("f", "fx", "fy", "cx", "cy", "skew", *LENSES[board.model].names))
        paths = [locate.locate(source) for source in board.source]
        if len(paths) > 1:
            target = board.target()
            cameras = tuple(detect(path, target) for path in paths)
            jobs.append(Job(board.name, board, cameras, in_rig(cameras, target)))
            continue
        found = _views(board, paths[0])
        for views in found:
            name = board.name if len(found) == 1 else f"{board.name}-{views.image_size[0]}x{views.image_size[1]}"
            together = RigViews(
                views.points2d[None], views.mask[None], views.points3d, (views.image_size,), views.names
            )
            jobs.append(Job(name, board, (views,), together))
    return jobs


def _views(board: Board, path: Path) -> list[Views]:
    if board.points:
        if board.image_size is None:
            raise ValueError("image_size: width and height wanted with a file of points, found none")
        return [read_measured(locate.locate(board.points), path, board.image_size)]
    if path.is_dir():
        return detect_cameras(path, board.target())
    return [read_corners(path, board.corners, board.square, board.image_size)]


@experiment("camera_calibration", read_views)
def calibrations(run: Run, config: CalibrationConfig, jobs: Sequence[Job]) -> dict:
    """Do the jobs in turn, and write what there is to say of them to calibrations.json."""
    saved = run.restore()
    results: list[dict] = saved["results"] if saved else []
    steps = run.iterations(len(jobs) * (config.iterations + 2))
    for job in jobs[len(results) :]:
        views, board = job.views, job.board
        solve = partial(
            calibrate_rig,
            views.points2d.to(run.device, run.dtype), views.points3d.to(run.device, run.dtype), views.image_sizes,
            mask=views.mask.to(run.device), distortion=board.coefficients, model=board.model,
            kernel=cauchy(board.robust_px) if board.robust_px else None, max_steps=config.iterations,
        )  # fmt: skip
        with told_in_a_sentence():  # options that do not go together
            found = solve(free=board.free or None)
        results.append({**describe(job, found, config.opencv), "undetermined": undetermined(found, solve)})
        step = _show(run, steps, config.iterations, len(results) - 1, job, found)
        _save(run, step, job, found, results[-1])
        write_json(run.folder / "calibrations.json", results)
        run.checkpoint(step, results=results)
    return _finish(run, results, complete=len(results) == len(jobs))


def undetermined(found: JointCalibration, solve: Callable[..., JointCalibration]) -> list[str]:
    """Names of the free intrinsics that the views do not tell, which solve(free=names), with fewer of them, shows."""
    names = found.names
    if found.converged.all():
        return [name for name in names if name in loose(found)]
    lens = [[name] for name in names if name not in ("f", *NAMES)]
    groups = [[name for name in names if name in some] for some in (("f", "fx", "fy"), ("cx", "cy"))] + lens

    def tells(some: tuple[str, ...]) -> bool:
        fewer = solve(free=some)
        return bool(fewer.converged.all()) and not loose(fewer)

    return list(undetermined_names(filter(None, groups), tells))


def loose(found: JointCalibration) -> set[str]:
    """Which of f, fx, fy, cx and cy have no standard deviation, or one that is_loose."""
    K, deviations = found.x[0], found.deviations()
    limits = {"f": K[:, 0, 0], "fx": K[:, 0, 0], "fy": K[:, 1, 1], "cx": K[:, 0, 0], "cy": K[:, 1, 1]}
    return {
        name
        for name, focal in limits.items()
        if name in deviations and any(map(is_loose, deviations[name].tolist(), focal.tolist()))
    }


def _show(run: Run, steps: Iterator[int], most: int, number: int, job: Job, found: JointCalibration) -> int:
    """A stage and a curve: the first camera as it learns, seen in the first of its views, and at the end as it was
    found. Of a rig, and where intrinsics are held, the end alone. Returns the last step.
    """
    rig, board, (K, distortion, _, poses) = job.views, job.board, (part.cpu() for part in found.x)
    seen = Views(rig.points2d[0], rig.mask[0], rig.points3d, rig.image_sizes[0], rig.names)
    views = (~found.alone[0].left_out.cpu() & ~found.left_out.cpu()).nonzero()[:, 0]
    first = int(views[0]) if len(views) else 0
    there = seen.mask[first]
    run.stage(
        number, name=job.name, points3d=seen.points3d[there], points2d_gt=seen.points2d[first, there],
        image_size=torch.tensor(seen.image_size), units={"loss": "px rms", **dict.fromkeys(NAMES, "px")},
    )  # fmt: skip
    shown = [Lens(K[0], distortion[0], poses[views], views)]
    if len(job.cameras) == 1 and not board.free and len(views):
        kernel = cauchy(board.robust_px) if board.robust_px else None
        shown = [*descent(seen, views, board.model, board.coefficients, kernel, most), *shown]
    for lens, step in zip(shown, steps, strict=False):
        intrinsics = dict(zip(NAMES, intrinsics_from_matrix(lens.K).tolist(), strict=True))
        run.log(step, loss=lens.rms_px(seen, board.model), **intrinsics)
        points, pose = seen.points3d[there].to(lens.K), lens.world_to_camera[:1]
        again = project(points, pose[0], lens.K, lens.distortion, model=board.model) if len(pose) else None
        run.frame(step, world_to_camera=lens.world_to_camera, K=lens.K, points2d=again)
    return step


def _save(run: Run, step: int, job: Job, found: JointCalibration, result: dict) -> None:
    """A table of the views, a picture of residuals and coverage, the cameras in three formats, the target, and of one
    camera an image that is undistorted."""
    views, board, name = job.views, job.board, job.name
    with replacing(run.folder / f"{name}-views.md") as temporary:
        temporary.write_text(views_table(result))
    seen = [mask & ~found.left_out.cpu()[:, None] for mask in views.mask]
    pixels = [points2d[mask].numpy() for points2d, mask in zip(views.points2d, seen, strict=True)]
    errors = [r[mask].numpy() for r, mask in zip(found.residual.cpu(), seen, strict=True)]
    named = [camera["name"] for camera in result["cameras"]]
    drawn = residuals_and_coverage(named, views.image_sizes, pixels, errors)
    run.figure(f"{name}-residuals", step, drawn, final=True)
    K, distortion, sensors, poses = (part.cpu() for part in found.x)
    cameras = [CameraFile(one, K[s], distortion[s], views.image_sizes[s], board.model) for s, one in enumerate(named)]
    for camera in cameras:
        write_opencv(run.folder / f"{camera.name}-opencv.yml", camera)
        _written(result, run.folder / f"{camera.name}-ros.yaml", write_ros, camera)
    _written(result, run.folder / f"{name}-kalibr.yaml", write_kalibr, cameras, sensors)
    run.save_points(name, views.points3d, cameras=poses[~found.left_out.cpu()], K=K[:1])
    folder = locate.locate(board.source[0])
    if folder.is_dir() and board.model == "radtan" and len(distortion[0]) in (0, 2, 4, 5):
        picture = undistorted(folder / job.cameras[0].names[0], K[0], distortion[0])
        run.figure(f"{name}-undistorted", step, picture, final=True)


def _written(result: dict, path: Path, write: Callable[..., None], *content: Any) -> None:
    """Write a file, or note what its format cannot say."""
    try:
        write(path, *content)
    except ValueError as error:
        result["notes"].append(f"{path.name} is not written, as its format cannot say this lens ({error})")


def _finish(run: Run, results: Sequence[dict], complete: bool) -> dict:
    """The run's summary of all jobs."""
    if results:
        from experiments.viewers.picture import picture  # a viewer: not before there is something to see

        run.figure("scene", len(results), picture(run.recorded()), final=True)
    above = [r["rms_px"] - r["opencv"]["rms_px"] for r in results if r["opencv"]]
    return run.finish(
        converged=complete and all(r["converged"] for r in results),
        goal="every camera at the minimum of its reprojection error",
        undetermined=[sentence for r in results for sentence in doubts(r)],
        iterations=sum(r["iterations"] for r in results),
        loss=max(r["rms_px"] for r in results),
        errors={
            **{f"{r['name']} rms_px": r["rms_px"] for r in results},
            **({"rms_above_opencv_px": max(above)} if above else {}),
        },
        reference={f"{r['name']} rms_px": f"{r['opencv']['rms_px']:.6f} (OpenCV)" for r in results if r["opencv"]},
        found={name: value for r in results for name, value in found_in(r, alone=len(results) == 1).items()},
        left_out={f"{r['name']}: {row['view']}": row["why"] for r in results for row in r["table"] if not row["used"]},
        note="; ".join(note for r in results for note in told(r)),
        picture="scene",
    )


def found_in(result: dict, alone: bool) -> dict[str, Quantity]:
    """The intrinsics of each camera, beside OpenCV's where it has any; `alone`, without the camera's name."""
    found = {}
    for camera in result["cameras"]:
        lens = LENSES[result["board"]["model"]].names[: len(camera["distortion"])]
        values = dict(zip((*NAMES, *lens), camera["intrinsics"] + camera["distortion"], strict=True))
        peer = result["opencv"]
        beside = dict(zip(values, peer["intrinsics"] + peer["distortion"], strict=True)) if peer else {}
        deviations = camera["standard_deviations"]
        if "f" in deviations:
            deviations = deviations | {"fx": deviations["f"], "fy": deviations["f"]}
        for name, value in values.items():
            unit, reference = "px" if name in NAMES else "", f"{beside[name]:.6g} (OpenCV)" if name in beside else None
            if name in deviations:  # the others were held
                shown = name if alone and len(result["cameras"]) == 1 else f"{camera['name']} {name}"
                found[shown] = Quantity(value, deviations[name], unit, reference)
    return found


def doubts(result: dict) -> list[str]:
    """Why a calibration is not to be used, even at a minimum, a sentence each; none where it is."""
    name, rms, peer, said = result["name"], result["rms_px"], result["opencv"], []
    if result["undetermined"]:
        said.append(
            f"{name}: the views do not tell {', '.join(result['undetermined'])}: tilt the board more, or name what is "
            "sought in --board.free."
        )
    if rms > COARSE_PX:
        said.append(
            f"{name}: THE LENS DOES NOT FIT: the rms is {rms:.3g} px, where marks are found to a few tenths; another "
            "--board.model (fisheye), more --board.distortion, or wrong marks (--board.robust-px)."
        )
    if peer and rms - peer["rms_px"] > 1e-3 * rms:
        said.append(f"{name}: OpenCV ends lower, at {peer['rms_px']:.3g} px: this is another minimum than the best.")
    views, seen = len(result["table"]), result["views"]
    if said and 2 * seen < views:  # the likely reason of all else
        columns, rows = result["board"]["corners"]
        said.insert(0, f"{name}: {seen} of {views} images show the board. Is it really one of {columns} x {rows}?")
    return said


def told(result: dict) -> list[str]:
    """What a person should know of a calibration besides its figures."""
    name = result["name"]
    notes = [f"{name}: {note}" for note in result["notes"]]
    if result["worst"]:
        view, rms = result["worst"]["view"], result["worst"]["rms_px"]
        notes.append(f"{name}: worst view {view}, {rms:.3f} px; the rms of all is {result['rms_px']:.3f} px")
    return notes


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


def describe(job: Job, found: JointCalibration, opencv: bool) -> dict:
    """All there is to say about one calibration, for calibrations.json."""
    views, board, (K, distortion, sensors, poses) = job.views, job.board, (part.cpu() for part in found.x)
    S, seen = len(K), views.mask & ~found.left_out.cpu()[:, None]
    deviations = {name: value.tolist() for name, value in found.deviations().items()}
    names = [job.name] if S == 1 else [f"{job.name}-cam{s}" for s in range(S)]
    cameras = [
        {
            "name": names[s],
            "image_size": list(views.image_sizes[s]),
            "intrinsics": intrinsics_from_matrix(K[s]).tolist(),
            "distortion": distortion[s].tolist(),
            "standard_deviations": {name: values[s] for name, values in deviations.items()},
            "sensor_from_rig": sensors[s].tolist(),
        }
        for s in range(S)
    ]
    plain = opencv and not board.free and not board.robust_px
    peer = opencv_calibration(views, board.coefficients, board.model) if plain else None
    if peer:
        ours = np.array(cameras[0]["intrinsics"] + cameras[0]["distortion"])
        theirs = np.array(peer["intrinsics"] + peer["distortion"])
        peer["largest_relative_difference"] = float(np.abs((ours - theirs) / theirs).max())
    rows = [row for s in range(S) for row in _rows(job, found, s)]
    used = [row for row in rows if row["used"]]
    return {
        "name": job.name,
        "board": asdict(board),
        "status": Status(int(found.status)).name,
        "converged": bool(found.converged.all()),
        "iterations": int(found.steps) + sum(int(one.steps) for one in found.alone),
        "views": len(used),
        # sqrt(mean(dx^2 + dy^2))
        "rms_px": float(found.residual.cpu()[seen].square().sum(-1).mean().sqrt()),
        "cameras": cameras,
        "world_to_rig": poses.tolist(),
        "table": rows,
        "worst": max(used, key=lambda row: row["rms_px"]) if len(used) > 1 else None,
        "notes": [note for camera in job.cameras for note in camera.notes],
        "opencv": peer,
    }


def _rows(job: Job, found: JointCalibration, s: int) -> list[dict]:
    """Each image of a camera: its rms in px, marks, and whether it was used or why not."""
    views, lost, camera = job.views, found.left_out.cpu(), job.cameras[s]
    error = found.residual[s].cpu().square().sum(-1)
    rows = []
    for v, name in enumerate(views.names):
        marks = int(views.mask[s, v].sum())
        if marks == 0:
            continue
        rms = float((error[v].sum() / marks).sqrt()) if not lost[v] else None
        why = "its marks determine no pose" if lost[v] else ""
        rows.append({"camera": s, "view": name, "rms_px": rms, "marks": marks, "used": not bool(lost[v]), "why": why})
    out = {"camera": s, "rms_px": None, "marks": 0, "used": False}
    return rows + [{**out, "view": name, "why": why} for name, why in camera.left_out]


def views_table(result: dict) -> str:
    """The views as a table in Markdown, the worst one below it."""
    rows = [
        [
            str(row["camera"]), row["view"], "" if row["rms_px"] is None else f"{row['rms_px']:.4f}",
            str(row["marks"]), "yes" if row["used"] else f"no: {row['why']}",
        ]
        for row in result["table"]
    ]  # fmt: skip
    text = table(["camera", "view", "rms px", "marks", "used"], rows)
    worst = result["worst"]
    return text + (f"\nWorst: {worst['view']}, {worst['rms_px']:.4f} px.\n" if worst else "")
