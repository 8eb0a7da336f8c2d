"""Camera calibration by backpropagating PnP (paper, section 4.3), and calibration of real cameras.

The intrinsics are the only unknowns; PnP gives the pose that suits them, and the reprojection error of the cube trains
them through PnP. Presets: `paper` (K = 1000 sigmoid(theta), SGD, as published), `default` (Gauss-Newton of the reduced
error from the image size alone), `real` (folders of chessboard images and corner files: intrinsics, distortion and
their standard deviations, beside OpenCV's joint calibration), `smoke`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from datasets import locate
from datasets.images.chessboard import Views, detect, read_corners
from datasets.made.scenes import CUBE, CUBE_EDGES, PUBLISHED_POSE
from experiments.drawing.figures import loss_curve, trajectories
from experiments.records.files import write_json
from experiments.running.config import RunConfig, cli, skip
from experiments.running.run import Run
from geometry import pnp, project, se3
from geometry.camera import Model, intrinsics_from_matrix, matrix_from_intrinsics
from geometry.optim import NestedState, nested_start, nested_step
from geometry.reconstruction import CalibrationProblem, free_intrinsics, start_intrinsics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ["fx", "fy", "cx", "cy"]


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
class Config(RunConfig):
    method: Literal["sgd", "gauss_newton"] = "gauss_newton"
    """The paper's optimiser over K = 1000 sigmoid(theta), or Gauss-Newton over K with the pose eliminated."""
    learning_rate: float = 1e-5
    """Of SGD."""
    iterations: int = 100
    """At the most; for each target, where there are several."""
    threshold: float = 1e-3
    """Stop below this loss, the sum of squared pixel errors of the cube."""
    board: Target = Target()
    """A chessboard of yours; its source left empty, the preset's."""
    targets: tyro.conf.Suppress[tuple[Target, ...]] = ()
    """What the preset calibrates from; nothing: the published cube."""
    opencv: bool = True
    """Calibrate the same corners with OpenCV, for comparison."""


PRESETS = {
    "default": Config(preset="default", log_every=5),
    "paper": Config(preset="paper", method="sgd", iterations=2000, log_every=100),
    "real": Config(preset="real", targets=SHARED_TARGETS),
    "smoke": Config(preset="smoke", log_every=5),
}


def cube(config: Config) -> dict:
    """Learn the intrinsics that the published cube was projected with."""
    with Run("camera_calibration", config) as run:
        if run.finished:
            return run.finished
        points3d = CUBE.to(run.device, run.dtype)
        truth = points3d.new_tensor([800.0, 700.0, 400.0, 300.0])
        pose_gt = se3.from_rotvec_t(PUBLISHED_POSE.to(run.device, run.dtype))[None]
        points2d = project(points3d, pose_gt, matrix_from_intrinsics(truth))
        run.stage(
            points3d=points3d,
            edges=CUBE_EDGES,
            points2d_gt=points2d[0],
            world_to_camera_gt=pose_gt,
            image_size=torch.tensor([800, 600]),
            targets={"loss": config.threshold, **dict(zip(NAMES, truth.tolist(), strict=True))},
        )
        learn = by_sgd if config.method == "sgd" else by_gauss_newton
        losses, history, pose = learn(config, run, points2d, points3d)
        show(run, len(losses), points3d, pose, history[-1])
        run.figure("loss", len(losses), loss_curve(losses, config.threshold), final=True)
        run.figure("intrinsics", len(losses), trajectories(torch.stack(history), NAMES, truth), final=True)
        run.save_points("cube", points3d, cameras=pose, K=matrix_from_intrinsics(history[-1])[None])
        rotation = se3.rotation_angle(pose[0, :3, :3] @ pose_gt[0, :3, :3].mT)
        return run.finish(
            converged=losses[-1] < config.threshold,
            iterations=len(losses),
            loss=losses[-1],
            errors={
                "intrinsics_px": (history[-1] - truth).abs().max().item(),
                "rotation_deg": torch.rad2deg(rotation).item(),
                "translation": (pose[0, :3, 3] - pose_gt[0, :3, 3]).norm().item(),
            },
            reference={"iterations": "612 to 1019"},
            picture="intrinsics",
        )


def show(run: Run, step: int, points3d: Tensor, pose: Tensor, intrinsics: Tensor) -> None:
    """A frame: the camera (1,4,4), its intrinsics (4,), and where it sees the points (N,3)."""
    K = matrix_from_intrinsics(intrinsics)
    run.frame(step, world_to_camera=pose, K=K, points2d=project(points3d, pose[0], K))


def by_sgd(config: Config, run: Run, points2d: Tensor, points3d: Tensor) -> tuple[list[float], list[Tensor], Tensor]:
    """The paper's loop. Losses, intrinsics over iterations, and the last pose."""
    theta = (1.1 * torch.randn(4, dtype=run.dtype)).to(run.device).requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=config.learning_rate)
    init: Tensor | None = None
    losses: list[float] = []
    history: list[Tensor] = []
    if saved := run.restore():
        theta.data.copy_(saved["theta"])
        init, losses, history = saved["init"], saved["losses"], saved["history"]
    for step in run.iterations(config.iterations):
        intrinsics = 1000 * theta.sigmoid()
        K = matrix_from_intrinsics(intrinsics)
        pose = pnp(points2d, points3d, K, init=init).x
        loss = (project(points3d, pose, K) - points2d).square().sum()
        losses.append(loss.item())
        history.append(intrinsics.detach())
        init = pose.detach()  # the pose is followed, as in the published demo, from a global first start
        run.log(step, loss=loss, **dict(zip(NAMES, history[-1].tolist(), strict=True)))
        if run.records(step):
            show(run, step, points3d, init, history[-1])
        if losses[-1] < config.threshold:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run.due(step):
            run.checkpoint(step, theta=theta.detach(), init=init, losses=losses, history=history)
    assert init is not None
    return losses, history, init


def by_gauss_newton(
    config: Config, run: Run, points2d: Tensor, points3d: Tensor
) -> tuple[list[float], list[Tensor], Tensor]:
    """Gauss-Newton with the pose eliminated, from a random start as spread as the paper's."""
    mask = torch.ones(points2d.shape[:2], dtype=torch.bool, device=run.device)
    problem = CalibrationProblem(points2d, points3d, mask)
    losses: list[float] = []
    history: list[Tensor] = []
    if saved := run.restore():
        state, losses, history = NestedState(*saved["state"]), saved["losses"], saved["history"]
    else:
        state = nested_start(problem, (1000 * (1.1 * torch.randn(1, 4, dtype=run.dtype)).sigmoid()).to(run.device))
    for step in run.iterations(config.iterations):
        losses.append(2 * state.cost.item())
        history.append(state.theta[0])
        run.log(step, loss=losses[-1], **dict(zip(NAMES, history[-1].tolist(), strict=True)))
        if run.records(step):
            show(run, step, points3d, state.inner[0], history[-1])
        if losses[-1] < config.threshold or state.done.all():
            break
        state = nested_step(problem, state)
        if run.due(step):
            run.checkpoint(step, state=tuple(state), losses=losses, history=history)
    return losses, history, state.inner[0]


def chessboards(config: Config) -> dict:
    """Calibrate the camera of each target through PnP alone, from nothing but the image size."""
    found: list[tuple[Target, Views]] = []
    for target in (config.board,) if config.board.source else config.targets:
        try:
            found.append((target, read_views(target)))
        except FileNotFoundError as error:
            skip(str(error))
    with Run("camera_calibration", config) as run:
        if run.finished:
            return run.finished
        results: list[dict] = []
        state: NestedState | None = None
        if saved := run.restore():
            results, state = saved["results"], saved["state"] and NestedState(*saved["state"])
        for step in run.iterations(len(found) * config.iterations):
            if len(results) == len(found):
                break
            target, views = found[len(results)]
            like = views.points2d.to(run.device, run.dtype)
            mask = torch.ones(like.shape[:2], dtype=torch.bool, device=run.device)
            problem = CalibrationProblem(like, views.points3d.to(like), mask, free_intrinsics, target.model)
            if state is None:
                theta = start_intrinsics(views.image_size, target.distortion, target.model, like)
                state = nested_start(problem, theta[None])
            else:
                state = nested_step(problem, state)
            if state.steps == 0 or run.start == step:
                run.stage(
                    len(results),
                    name=target_name(target),
                    points3d=views.points3d,
                    edges=grid_edges(*target.corners),
                    points2d_gt=views.points2d[0],
                    image_size=torch.tensor(views.image_size),
                )
            rms = rms_px(state, mask)
            intrinsics = dict(zip(NAMES, state.theta[0, :4].tolist(), strict=True))
            run.log(step, loss=rms, target=len(results), **intrinsics)
            if run.records(step):
                K, distortion = free_intrinsics(state.theta[0])
                seen = project(problem.points3d, state.inner[0, 0], K, distortion, model=target.model)
                run.frame(step, world_to_camera=state.inner[0], K=K, points2d=seen)
            if state.done.all() or state.steps >= config.iterations - 1:
                results.append(describe(target, views, problem, state, rms, config.opencv))
                name = results[-1]["name"]
                K = free_intrinsics(state.theta[0])[0]
                run.save_points(name, problem.points3d, cameras=state.inner[0], K=K[None])
                write_json(run.folder / "calibrations.json", results)
                folder = locate.locate(target.source)
                if folder.is_dir() and target.model == "radtan":
                    run.figure(
                        f"{name}-undistorted",
                        step,
                        undistorted(folder / views.names[0], *free_intrinsics(state.theta[0])),
                        final=True,
                    )
                state = None
            if run.due(step) or state is None:
                run.checkpoint(step, results=results, state=state and tuple(state))
        if results:
            from experiments.viewers.picture import picture  # a viewer: not before there is something to see

            run.figure("scene", len(results), picture(run.recorded()), final=True)
        worst = max((r["rms_px"] - r["opencv"]["rms_px"] for r in results if r["opencv"]), default=float("nan"))
        return run.finish(
            converged=len(results) == len(found) and all(r["converged"] for r in results),
            iterations=sum(r["iterations"] for r in results),
            loss=max(r["rms_px"] for r in results),
            errors={
                **{f"{r['name']} rms_px": r["rms_px"] for r in results},
                "rms_above_opencv_px": worst,
            },
            reference={f"{r['name']} rms_px": f"{r['opencv']['rms_px']:.6f} (OpenCV)" for r in results if r["opencv"]},
            note="; ".join(f"{r['name']}: left out {n} ({why})" for r in results for n, why in r["left_out"]),
            picture="scene",
        )


def read_views(target: Target) -> Views:
    """The target's corners, from images or a corner file, here or in the shared data."""
    path = locate.locate(target.source)
    if path.is_dir():
        return detect(path, target.corners, target.square)
    return read_corners(path, target.corners, target.square, target.image_size)


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
    import cv2
    from kornia.geometry.calibration import undistort_image
    from matplotlib.figure import Figure

    pixels = cv2.imread(str(image))
    assert pixels is not None
    before = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).to(K).permute(2, 0, 1)[None] / 255
    padded = torch.nn.functional.pad(distortion, (0, max(0, 5 - len(distortion))))
    after = undistort_image(before, K[None], padded[None])
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, picture, title in zip(figure.subplots(1, 2), (before, after), ("as taken", "undistorted"), strict=True):
        axes.imshow(picture[0].permute(1, 2, 0).clamp(0, 1).cpu())
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return figure


def rms_px(state: NestedState, mask: Tensor) -> float:
    """sqrt(mean(dx^2 + dy^2))."""
    return (2 * state.cost / mask.sum()).sqrt().item()


def describe(
    target: Target, views: Views, problem: CalibrationProblem, state: NestedState, rms: float, opencv: bool
) -> dict:
    """All there is to say about one calibration, for calibrations.json."""
    deviation = problem.covariance(state.theta, state.inner, state.cost).diagonal().sqrt()
    peer = opencv_calibration(target, views) if opencv else None
    if peer:
        theta = torch.tensor(peer["intrinsics"] + peer["distortion"], dtype=torch.float64)
        peer["largest_relative_difference"] = ((state.theta[0].cpu() - theta) / theta).abs().max().item()
    K, distortion = free_intrinsics(state.theta[0])
    return {
        "name": target_name(target),
        "target": asdict(target),
        "converged": bool(state.done.all() and torch.isfinite(state.cost).all()),
        "iterations": state.steps,
        "views": len(views.names),
        "left_out": [list(pair) for pair in views.left_out],
        "rms_px": rms,
        "intrinsics": intrinsics_from_matrix(K).tolist(),
        "distortion": distortion.tolist(),
        "standard_deviations": deviation.tolist(),
        "world_to_camera": state.inner[0].tolist(),
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
        "rms_px": rms,
        "intrinsics": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]],
        "distortion": distortion.ravel()[: target.distortion].tolist(),
    }


def main(config: Config) -> dict:
    return chessboards(config) if config.targets or config.board.source else cube(config)


if __name__ == "__main__":
    main(cli(__doc__, PRESETS))
