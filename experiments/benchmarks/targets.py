"""Are marks of calibration targets, and calibrations from them, as exact as OpenCV's?

Rendered pictures of chessboards, ChArUco boards, grids of AprilTags and of circles (blur, noise, uneven light, a strong
lens; things that hide a part of those whose markers say which they are) by made cameras, whose marks are known. OpenCV
finds the marks; they are compared as it refines them (cornerSubPix; of tags CORNER_REFINE_SUBPIX) and as
`datasets.images.refinement` does. `geometry.calibrate` and `cv2.calibrateCamera` are then given either.

- marks: rms distance from the truth, of the marks that both have;
- lost: marks that OpenCV has and the refinement leaves out;
- camera: rms distance in px between where the camera found and the true one have the rays of a grid of pixels, after
  the turn between both that suits best: what a calibration is wrong by.

Writes results/benchmark_targets/table.md and table.json.

Presets:

- default: Calibrates four cameras a target from 25 pictures each.
- smoke: Calibrates one camera a target from five pictures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.images.targets import Target, charuco, chessboard, circles, tags
from datasets.made.boards import (
    Camera,
    Conditions,
    Print,
    charuco_print,
    chessboard_print,
    circle_print,
    poses,
    render,
    tag_print,
)
from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from geometry import calibrate, project
from geometry.camera import matrix_from_intrinsics, unproject

SIZE = (640, 480)


@dataclass(frozen=True)
class Config:
    views: int = 25
    """Sets the number of pictures a calibration."""
    calibrations: int = 4
    """Sets the number of cameras a target."""
    blur: tuple[float, float] = (0.4, 1.2)
    """Sets the least and the most standard deviation of the blur in px."""
    noise: tuple[float, float] = (0.005, 0.03)
    """Sets the least and the most standard deviation of the noise in parts of the whole range of greys."""
    seed: int = 0
    """Seeds the cameras and pictures."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_targets."""


class Kind(NamedTuple):
    """A target, its print, and how many things hide a part of a picture, which must show this share of the marks."""

    target: Target
    board: Print
    covers: int = 0
    visible: float = 1.0


KINDS = {
    "chessboard 9 x 6": lambda: Kind(chessboard((9, 6)), chessboard_print((9, 6))),
    "ChArUco 8 x 5": lambda: Kind(charuco((8, 5), 1.0, 0.75), charuco_print((8, 5)), 2, 0.6),
    "AprilTags 5 x 4": lambda: Kind(tags((5, 4)), tag_print((5, 4)), 2, 0.6),
    "circles 7 x 6": lambda: Kind(circles((7, 6)), circle_print((7, 6), 0.25)),
    "circles 4 x 11": lambda: Kind(circles((4, 11), 1.0, True), circle_print((4, 11), 0.2, True)),
}


class Marks(NamedTuple):
    """What OpenCV and the refinement make of V pictures: points2d (2,V,N,2), mask (V,N) of the marks that both have;
    truth (V,N,2); lost: marks that OpenCV alone has, of all that it has; unseen: pictures in which it found nothing."""

    points2d: Tensor
    mask: Tensor
    truth: Tensor
    lost: int
    found: int
    unseen: int


def made_camera(g: torch.Generator) -> Camera:
    f = 450 + 350 * torch.rand(1, generator=g, dtype=torch.float64)
    centre = torch.tensor(SIZE).double() / 2 + 20 * (torch.rand(2, generator=g, dtype=torch.float64) - 0.5)
    bend = (f / 500) ** 2 * torch.tensor([-0.25, 0.0, 0.0, 0.0, 0.0]) + torch.tensor([0, 0.06, 5e-4, -5e-4, 0])
    return Camera(matrix_from_intrinsics(torch.cat([f, 1.01 * f, centre])), bend.double(), SIZE)


def refined_by_opencv(kind: str, image: np.ndarray, index: np.ndarray, points2d: np.ndarray) -> np.ndarray:
    """The marks (n,2) that were detected, as OpenCV has them at its best; NaN for those that it then does not find."""
    if kind.startswith("chessboard"):
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 1e-3)
        start = points2d.astype(np.float32)[:, None].copy()
        return cv2.cornerSubPix(image, start, (5, 5), (-1, -1), criteria)[:, 0]
    if not kind.startswith("AprilTags"):
        return points2d  # they were refined when they were detected
    parameters = cv2.aruco.DetectorParameters()
    parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
    words = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
    quads, ids, _ = cv2.aruco.ArucoDetector(words, parameters).detectMarkers(image)
    found = {int(number): quad.reshape(4, 2) for number, quad in zip(ids.ravel(), quads, strict=True)}
    return np.array([found[i // 4][i % 4] if i // 4 in found else [np.nan] * 2 for i in index.tolist()])


def look(name: str, kind: Kind, camera: Camera, config: Config, g: torch.Generator) -> Marks:
    """Pictures of a target, and what is found in them."""

    def even(least: float, most: float) -> float:
        return least + (most - least) * torch.rand(1, generator=g).item()

    board, rays, N = kind.board, camera.rays(), len(kind.board.points3d)
    views = poses(board, camera, config.views, g, visible=kind.visible)
    truth = project(board.points3d, views, camera.K, camera.distortion)
    points2d, mask = torch.zeros(2, len(views), N, 2, dtype=torch.float64), torch.zeros(len(views), N, dtype=torch.bool)
    lost = found = unseen = 0
    for v, pose in enumerate(views):
        image = render(board, pose, rays, Conditions(even(*config.blur), even(*config.noise), 0.3, kind.covers), g)
        seen = kind.target.detect(image)
        if seen is None or len(seen.marks) < 4:
            unseen += 1
            continue
        theirs = refined_by_opencv(name, image, seen.marks, seen.points2d).astype(np.float64)
        ours = kind.target.refine(image, seen)
        there = torch.from_numpy(np.isfinite(theirs).all(-1))
        both = (ours.good & there).numpy()
        index = seen.marks[both]
        if kind.target.half_turn and np.linalg.norm(theirs - truth[v].flip(0).numpy(), axis=1).mean() < 5:
            truth[v] = truth[v].flip(0)
        points2d[0, v, index], points2d[1, v, index] = torch.from_numpy(theirs[both]), ours.points2d[both]
        mask[v, index] = True
        lost, found = lost + int((there & ~ours.good).sum()), found + int(there.sum())
    return Marks(points2d, mask, truth, lost, found, unseen)


def wrong_by(camera: Camera, K: Tensor, distortion: Tensor) -> float:
    """Rms distance, px, between a camera found and the true one, after the turn between them that suits best."""
    grid = torch.cartesian_prod(*(torch.linspace(20, n - 21, 15, dtype=torch.float64) for n in SIZE))
    true = unproject(grid, camera.K, camera.distortion).directions
    found = unproject(grid, K, distortion).directions
    u, _, vt = torch.linalg.svd(true.mT @ found)
    turned = true @ (u @ torch.diag(torch.tensor([1, 1, torch.det(u @ vt).item()]).double()) @ vt)
    seen = project(turned, torch.eye(4, dtype=torch.float64), K, distortion)
    return (seen - grid).square().sum(-1).mean().sqrt().item()


def calibrated(camera: Camera, marks: Marks, points3d: Tensor) -> list[float]:
    """How wrong the cameras are of: OpenCV by its marks, OpenCV by ours, we by OpenCV's marks, we by ours."""
    used = marks.mask.sum(1) >= 6
    result = []
    for points2d in marks.points2d:
        views = [
            (points3d[there].numpy().astype(np.float32), seen[there].numpy().astype(np.float32))
            for seen, there in zip(points2d[used], marks.mask[used], strict=True)
        ]
        three, two = ([view[i] for view in views] for i in range(2))
        _, K, bend, *_ = cv2.calibrateCamera(three, two, SIZE, None, None)
        result.append(wrong_by(camera, torch.from_numpy(K), torch.from_numpy(bend).ravel()[:5]))
    for points2d in marks.points2d:
        found = calibrate(points2d[used], points3d, SIZE, mask=marks.mask[used])
        result.append(wrong_by(camera, found.x[0][0], found.x[1][0]))
    return result


def main(config: Config) -> dict[str, Any]:
    """Compare, print and save."""
    head = ["", "pictures", "with marks", "marks", "lost", "OpenCV's marks, px", "ours, px"]
    head += ["camera by OpenCV, px", "its, our marks", "ours, its marks", "ours"]
    cells, rows = [], []
    for name, made in KINDS.items():
        kind, cameras, counts = made(), [], np.zeros(4, int)
        errors: tuple[list[Tensor], list[Tensor]] = ([], [])
        for c in tqdm(range(config.calibrations), name):
            g = torch.Generator().manual_seed(1000 * config.seed + c)
            camera = made_camera(g)
            marks = look(name, kind, camera, config, g)
            for i in range(2):
                errors[i].append((marks.points2d[i] - marks.truth)[marks.mask].square().sum(-1))
            cameras.append(calibrated(camera, marks, kind.board.points3d))
            counts += [config.views, config.views - marks.unseen, marks.found, marks.lost]
        rms = [torch.cat(e).mean().sqrt().item() for e in errors]
        wrong = np.sqrt(np.square(cameras).mean(0)).tolist()
        rows.append({"target": name, "counts": counts.tolist(), "marks_px": rms, "cameras_px": cameras})
        cells.append([name, *map(str, counts), *(f"{e:.4f}" for e in (*rms, *wrong))])
    text = table(head, cells)
    print(text)
    results = {"config": vars(config), "rows": rows}
    save(config.out / "benchmark_targets", text, results, {})
    return results


PRESETS = {"default": Config(), "smoke": Config(views=5, calibrations=1)}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.targets", __doc__))
