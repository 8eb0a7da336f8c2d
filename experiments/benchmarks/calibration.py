"""Does `geometry.calibrate` ever end above OpenCV's cost, or above that of the truth?

Made calibrations of one camera from a board of 9 x 6 corners: focal lengths from 300 to 20,000 px on images of
1224 x 1024 px, 3 to 30 views, lenses without distortion, with two or five coefficients of OpenCV's, or fisheye, normal
noise. Each is calibrated from the size of the image alone and compared with

- truth: the cost at the true camera and poses, which no minimum may exceed;
- next to it: the minimum that a descent from the truth ends in;
- OpenCV: the cost of `cv2.calibrateCamera`, or `cv2.fisheye.calibrate`, of the same corners; where that gives up from
  a start of its own, from the truth's K.

A cost counts as above another one if it is so by more than a millionth. Writes results/benchmark_calibration/table.md
and table.json.

Presets:

- default: Compares 500 calibrations.
- smoke: Compares four small ones.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import Status, calibrate, project, se3
from geometry.camera import Model, in_front, intrinsics_from_matrix, matrix_from_intrinsics, unproject
from geometry.optim import nested_start, nested_step
from geometry.reconstruction import CalibrationProblem

SIZE = (1224, 1024)
CRITERIA = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 1000, 1e-15)
LENSES: dict[str, tuple[Model, int]] = {
    "no distortion": ("radtan", 0),
    "k1, k2": ("radtan", 2),
    "five coefficients": ("radtan", 5),
    "fisheye": ("fisheye", 4),
}
_SAME = 1e-6


@dataclass(frozen=True)
class Config:
    calibrations: int = 500
    """Sets the number of calibrations, the four lenses in turn."""
    focal: tuple[float, float] = (300.0, 20_000.0)
    """Sets the shortest and the longest focal length in px; they are evenly spread in their logarithm."""
    views: tuple[int, int] = (3, 30)
    """Sets the fewest and the most views of the board."""
    noise: tuple[float, float] = (0.1, 0.5)
    """Sets the least and the largest standard deviation of a corner in px."""
    seed: int = 0
    """Seeds the first calibration."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_calibration."""

    def __post_init__(self) -> None:
        for name in ("focal", "views", "noise"):
            least, most = getattr(self, name)
            if not 0 < least <= most:
                raise ValueError(f"{name} must be two positive numbers, the larger last, got {(least, most)}")
        at_least(self, 1, "calibrations")
        at_least(self, 3, "views")


class Case(NamedTuple):
    """points2d (V,54,2) px of points3d (54,3) by the camera theta (4+k,) and poses world_to_camera (V,4,4)."""

    lens: str
    points2d: Tensor
    points3d: Tensor
    theta: Tensor
    world_to_camera: Tensor


def board() -> Tensor:
    """Corners (54,3) of unit squares."""
    grid = torch.meshgrid(torch.arange(9.0), torch.arange(6.0), indexing="xy")
    return torch.stack([*grid, torch.zeros(6, 9)], -1).reshape(-1, 3).double()


def some_views(K: Tensor, bend: Tensor, model: Model, points3d: Tensor, g: torch.Generator) -> Tensor:
    """Those of some random poses (n,4,4) in which the whole board is in the picture and ahead of the camera, at most
    0.9 of the picture wide and turned by some thirty degrees, and seen where the lens does not fold.
    """
    size, f = torch.tensor(SIZE).double(), K[0, 0]
    drawn = torch.rand(20, 3, generator=g, dtype=torch.float64)
    rays, ok = unproject(size * (0.1 + 0.8 * drawn[:, :2]), K, bend, model=model)
    R = se3.exp(0.5 * torch.randn(20, 3, generator=g, dtype=torch.float64))
    centre = rays * 9 * f / ((0.3 + 0.6 * drawn[:, 2:]) * SIZE[0])
    poses = se3.make(R, centre - R @ points3d.mean(0))
    p, seen = se3.transform(poses, points3d), project(points3d, poses, K, bend, model=model)
    rays, valid = unproject(seen, K, bend, model=model)
    same = (rays - torch.nn.functional.normalize(p, dim=-1)).norm(dim=-1) < 1e-4 / f
    inside = ((seen > 0) & (seen < size - 1)).all(-1)
    return poses[ok & (valid & same & in_front(p) & (p[..., 2] > 0.1 * p.norm(dim=-1)) & inside).all(-1)]


def make(config: Config, seed: int) -> Case:
    """A made calibration."""
    g = torch.Generator().manual_seed(seed)

    def even(least: float, most: float, *shape: int) -> Tensor:
        return least + (most - least) * torch.rand(*shape, generator=g, dtype=torch.float64)

    lens = [*LENSES][seed % len(LENSES)]
    model, k = LENSES[lens]
    size = torch.tensor(SIZE).double()
    f = config.focal[0] * (config.focal[1] / config.focal[0]) ** even(0, 1, 1)
    intrinsics = torch.cat([f, f * even(0.98, 1.02, 1), (size - 1) / 2 + 0.02 * size * even(-1, 1, 2)])
    # the bend of the lens at the corner of the image is the same for all focal lengths
    corner = size.norm() / 2 / f.item()
    if model == "fisheye":
        powers, sizes = [2, 4, 6, 8], [0.1, 0.05, 0.02, 0.01]
    else:
        powers, sizes = [2, 4, 1, 1, 6], [0.15, 0.05, 0.005, 0.005, 0.02]
    bend = torch.tensor(sizes[:k]).double() / corner ** torch.tensor(powers[:k]).double() * even(-1, 1, k)
    K = matrix_from_intrinsics(intrinsics)
    V, points3d = int(even(config.views[0], config.views[1] + 1, 1)), board()
    poses = points3d.new_zeros(0, 4, 4)
    while len(poses) < V:
        poses = torch.cat([poses, some_views(K, bend, model, points3d, g)])[:V]
    exact = project(points3d, poses, K, bend, model=model)
    noisy = exact + even(*config.noise, 1) * torch.randn(exact.shape, generator=g, dtype=torch.float64)
    # OpenCV reads single precision
    return Case(lens, noisy.float().double(), points3d, torch.cat([intrinsics, bend]), poses)


def cost_of(case: Case, theta: Tensor, poses: Tensor) -> float:
    """Half the sum of squared errors."""
    K = matrix_from_intrinsics(theta[:4])
    seen = project(case.points3d, poses, K, theta[4:], model=LENSES[case.lens][0])
    return 0.5 * (seen - case.points2d).square().sum().item()


def by_us(case: Case) -> tuple[float, Tensor, int]:
    """Cost, theta and status."""
    model, k = LENSES[case.lens]
    found = calibrate(case.points2d, case.points3d, SIZE, distortion=k, model=model)
    theta = torch.cat([intrinsics_from_matrix(found.x[0][0]), found.x[1][0]])
    return found.cost.item(), theta, int(found.status)


def next_to_the_truth(case: Case) -> float:
    """Cost of the minimum that a descent from the truth ends in."""
    mask = torch.ones(case.points2d.shape[:2], dtype=torch.bool)
    problem = CalibrationProblem(case.points2d, case.points3d, mask, model=LENSES[case.lens][0])
    state = nested_start(problem, case.theta[None], case.world_to_camera[None])
    while not state.done.all() and state.steps < 100:
        state = nested_step(problem, state)
    return state.cost.item()


def by_opencv(case: Case) -> tuple[float, bool]:
    """Cost, and whether OpenCV found it from a start of its own."""
    model, k = LENSES[case.lens]
    V, N = case.points2d.shape[:2]
    corners, target = case.points2d.numpy(), case.points3d.numpy()
    guess = matrix_from_intrinsics(case.theta[:4]).numpy()
    if model == "radtan":
        flags = {0: cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2, 2: 0, 5: 0}[k]
        if k < 5:
            flags |= cv2.CALIB_FIX_K3 | cv2.CALIB_ZERO_TANGENT_DIST
        single = [target.astype(np.float32)] * V, [view.astype(np.float32)[:, None] for view in corners]
        rms = cv2.calibrateCamera(*single, SIZE, None, None, flags=flags, criteria=CRITERIA)[0]
        return 0.5 * rms**2 * V * N, True
    flags = cv2.CALIB_RECOMPUTE_EXTRINSIC | cv2.CALIB_FIX_SKEW
    double: Any = [target[None]] * V, [view[None] for view in corners]
    for own, more in ((True, 0), (False, cv2.CALIB_USE_INTRINSIC_GUESS)):
        # without that flag K is only where the answer goes
        given: Any = *double, SIZE, guess.copy(), np.zeros((4, 1))
        try:
            rms = cv2.fisheye.calibrate(*given, flags=flags | more, criteria=CRITERIA)[0]  # type: ignore[call-overload]
        except cv2.error:
            continue
        if np.isfinite(rms):
            return 0.5 * rms**2 * V * N, own
    return float("inf"), False


COLUMNS = ("truth", "next to it", "OpenCV")


@dataclass
class Row:
    """What is counted of one lens."""

    calibrations: int = 0
    converged: int = 0
    above: tuple[int, ...] = (0,) * len(COLUMNS)
    below: tuple[int, ...] = (0,) * len(COLUMNS)
    guessed: int = 0
    seconds: float = 0.0
    seeds: tuple[int, ...] = ()

    def __add__(self, other: "Row") -> "Row":
        above, below = (
            tuple(a + b for a, b in zip(x, y, strict=True))
            for x, y in ((self.above, other.above), (self.below, other.below))
        )
        return Row(
            self.calibrations + other.calibrations, self.converged + other.converged, above, below,
            self.guessed + other.guessed, self.seconds + other.seconds, self.seeds + other.seeds,
        )  # fmt: skip


def compare(case: Case, seed: int) -> Row:
    """One calibration, compared; its seed is kept where it ended above anything."""
    begin = time.process_time()
    cost, _, status = by_us(case)
    seconds = time.process_time() - begin
    theirs, own = by_opencv(case)
    others = (cost_of(case, case.theta, case.world_to_camera), next_to_the_truth(case), theirs)
    above = tuple(int(not cost <= (1 + _SAME) * other) for other in others)
    below = tuple(int(cost < (1 - _SAME) * other) for other in others)
    return Row(1, int(status == Status.CONVERGED), above, below, int(not own), seconds, (seed,) if any(above) else ())


def main(config: Config) -> dict[str, Any]:
    """Compare, print and save."""
    rows = {lens: Row() for lens in LENSES}
    by_us(make(config, config.seed))  # what is loaded and compiled once is not timed
    for i in tqdm(range(config.calibrations), "calibrations"):
        case = make(config, config.seed + i)
        rows[case.lens] += compare(case, config.seed + i)
    rows["all"] = sum(rows.values(), Row())
    head = ["", "calibrations", "converged", *(f"above {c}" for c in COLUMNS), *(f"below {c}" for c in COLUMNS[1:])]
    cells = [
        [name, row.calibrations, row.converged, *(f"{n / row.calibrations:.1%}" for n in (*row.above, *row.below[1:])),
         f"{1e3 * row.seconds / row.calibrations:.0f}"]
        for name, row in rows.items()
        if row.calibrations
    ]  # fmt: skip
    text = table([*head, "CPU ms each"], [[str(cell) for cell in row] for row in cells])
    text += f"\nOpenCV was given the truth's K for a start in {rows['all'].guessed} of them.\n"
    text += f"Seeds that ended above anything: {[*rows['all'].seeds]}\n"
    print(text)
    results = {"config": vars(config), "rows": {name: vars(row) for name, row in rows.items()}}
    save(config.out / "benchmark_calibration", text, results, {})
    return results


PRESETS = {
    "default": Config(),
    "smoke": Config(calibrations=4, views=(3, 6), focal=(400.0, 2000.0)),
}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.calibration", __doc__))
