"""The solvers that `experiments.benchmarks.bundle` compares, each behind the same call, and the scenes they get.

All minimise half the sum of squared reprojection errors over poses, points, and f, k1, k2 of every camera, from the
same start on the same number of threads; principal points stay. A solver is prepared (not timed: its own
representation of the scene) and run once; what is timed is the run, up to each of its steps.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from datasets.reconstructions.bal import read_bal
from datasets.reconstructions.libmv import read_libmv
from datasets.reconstructions.model import Reconstruction
from geometry import se3
from geometry.camera import matrix_from_intrinsics, project_camera_frame

FOCAL = 500.0
"""Pixels, of the made cameras."""
LONGEST = 12
"""Observations of a made point, at most."""


def read_scene(path: Path) -> Reconstruction:
    """A BAL file, or a problem of libmv (*.bin); lenses with more than k1 and k2 are refused."""
    found = read_libmv(path) if path.suffix == ".bin" else read_bal(path)
    if found.distortion[:, 2:].any():
        raise ValueError(f"{path}: a lens with k1 and k2 alone wanted, got {found.distortion.tolist()}")
    return replace(found, distortion=found.distortion[:, :2])


def camera_frame(scene: Reconstruction) -> Tensor:
    """The point of each observation, in its camera's frame (M,3)."""
    pairs = zip(scene.camera_index.split(1 << 16), scene.point_index.split(1 << 16), strict=True)
    parts = [se3.transform(scene.world_to_camera[v], scene.points3d[n][:, None])[:, 0] for v, n in pairs]
    return torch.cat(parts)


def reproject(scene: Reconstruction) -> Tensor:
    """Pixels of each observation by the formula, behind the camera too, as BAL counts them (M,2)."""
    index = scene.intrinsics_index[scene.camera_index]
    parts = zip(camera_frame(scene).split(1 << 16), index.split(1 << 16), strict=True)
    return torch.cat([project_camera_frame(p[:, None], scene.K[c], scene.distortion[c])[:, 0] for p, c in parts])


def bundle_cost(scene: Reconstruction) -> float:
    """Half the sum of squared errors of all observations, px^2."""
    return 0.5 * (reproject(scene) - scene.points2d).square().sum().item()


def without_points_behind(scene: Reconstruction) -> Reconstruction:
    """The scene less each point that is behind a camera which sees it: there solvers differ in what they minimise."""
    keep = torch.ones(len(scene.points3d), dtype=torch.bool)
    keep[scene.point_index[camera_frame(scene)[:, 2] <= 0]] = False
    seen = keep[scene.point_index]
    renumbered = keep.cumsum(0) - 1
    return replace(
        scene,
        points3d=scene.points3d[keep],
        camera_index=scene.camera_index[seen],
        point_index=renumbered[scene.point_index[seen]],
        points2d=scene.points2d[seen],
    )


def synthetic_scene(
    cameras: int, points: int, observations_per_point: float, generator: torch.Generator, noise: float = 1.0
) -> tuple[Reconstruction, Reconstruction]:
    """A street round a large circle: the start, and the truth. Seven pixels apart at the start, `noise` at the truth.

    Cameras stand one unit apart and look outward. A point is seen by 2 to 12 neighbouring cameras, on average by
    `observations_per_point` (fewer if there are fewer cameras), and is the farther away the more they are, so that
    it lies within 40 degrees of their axes. Every camera has its own f, k1 and k2.
    """
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    radius = max(cameras, 300) / (2 * math.pi)
    angle = torch.arange(cameras, dtype=torch.float64) / radius
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    outward = torch.stack([angle.cos(), angle.sin(), zero], -1)
    along = torch.stack([-angle.sin(), angle.cos(), zero], -1)
    down = torch.stack([zero, zero, -one], -1)
    centre = radius * outward + 0.05 * torch.randn(cameras, 3, **kind)
    level = torch.stack([-along, down, outward], -2)  # right-handed: x right, y down, z forward
    R = se3.exp(0.03 * torch.randn(cameras, 3, **kind)) @ level
    poses = se3.make(R, -(R @ centre[..., None])[..., 0])
    f = FOCAL * (1 + 0.02 * torch.randn(cameras, **kind))
    spread = torch.tensor([0.01, 0.003], dtype=torch.float64)
    distortion = torch.tensor([-0.08, 0.01], dtype=torch.float64) + spread * torch.randn(cameras, 2, **kind)

    rate = torch.full((points,), max(observations_per_point - 2, 0.0), dtype=torch.float64)
    length = (2 + torch.poisson(rate, generator=generator).long()).clamp(max=min(LONGEST, cameras))
    first = (torch.rand(points, **kind) * (cameras - length + 1)).long()
    depth = length * (1 + torch.rand(points, **kind))
    middle = (first + (length - 1) * torch.rand(points, **kind)) / radius
    height = 0.6 * depth * (torch.rand(points, **kind) - 0.5)
    beyond = radius + depth
    points3d = torch.stack([beyond * middle.cos(), beyond * middle.sin(), height], -1)
    point_index = torch.arange(points).repeat_interleave(length)
    before = (length.cumsum(0) - length).repeat_interleave(length)
    camera_index = first.repeat_interleave(length) + torch.arange(len(point_index)) - before

    K = matrix_from_intrinsics(torch.stack([f, f, zero, zero], -1))
    each = torch.arange(cameras)
    unseen = torch.zeros(len(point_index), 2, dtype=torch.float64)
    truth = Reconstruction(poses, points3d, K, distortion, each, camera_index, point_index, unseen)
    pixels = reproject(truth)
    truth = replace(truth, points2d=pixels + noise * torch.randn(pixels.shape, **kind))

    turn = se3.make(se3.exp(0.006 * torch.randn(cameras, 3, **kind)), 0.03 * torch.randn(cameras, 3, **kind))
    f = f * (1 + 0.01 * torch.randn(cameras, **kind))
    start = replace(
        truth,
        world_to_camera=turn @ poses,
        points3d=points3d + 0.01 * depth[:, None] * torch.randn(points, 3, **kind),
        K=matrix_from_intrinsics(torch.stack([f, f, zero, zero], -1)),
        distortion=torch.zeros_like(distortion),
    )
    return start, truth


# ---- the solvers ----


@dataclass(frozen=True)
class Limits:
    """How far a run may go: trial steps, seconds; CPU threads; whether each state's `full_cost` is wanted, untimed."""

    max_steps: int = 50
    seconds: float = math.inf
    threads: int = 1
    watch: bool = False


@dataclass(frozen=True)
class Trace:
    """The start and what came after each trial step, (S,): seconds since the call, the solver's own cost (of what
    stands or of what was tried), and the cost over all observations of what stands where it was watched, else NaN.
    total: seconds to the call's return."""

    seconds: np.ndarray
    cost: np.ndarray
    full_cost: np.ndarray
    total: float

    def accepted(self) -> list[tuple[float, float]]:
        """The start and the steps that went down."""
        lowest = np.fmin.accumulate(self.cost)
        new = np.diff(lowest, prepend=np.inf) < 0
        return list(zip(self.seconds[new].tolist(), self.cost[new].tolist(), strict=True))

    def reaches(self, cost: float) -> tuple[float, int]:
        """Seconds and trial steps to this cost; infinite and all if it is not reached."""
        hit = np.flatnonzero(self.cost <= cost)
        return (float(self.seconds[hit[0]]), int(hit[0])) if len(hit) else (math.inf, len(self.cost) - 1)

    @property
    def step_seconds(self) -> float:
        """Median seconds a trial step, without what comes before the second; NaN for fewer than two steps."""
        return float(np.median(np.diff(self.seconds[1:]))) if len(self.seconds) > 2 else math.nan


class OutOfTimeError(Exception):
    """Raised by a `Recorder` in a callback, to stop a solver that cannot be told how long it may take."""


@dataclass
class Recorder:
    """Notes the time of each cost it is told."""

    seconds: float = math.inf
    rows: list[tuple[float, float, float]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def __call__(self, cost: float, full_cost: float = math.nan) -> None:
        now = time.perf_counter() - self.start
        self.rows.append((now, cost, full_cost))
        if now > self.seconds:
            raise OutOfTimeError

    def trace(self) -> Trace:
        total = time.perf_counter() - self.start
        seconds, cost, full_cost = np.array(self.rows, dtype=np.float64).reshape(-1, 3).T
        return Trace(seconds, cost, full_cost, total)


Run = Callable[[], Trace]


@dataclass(frozen=True)
class Solver:
    """`prepare(scene, limits)()` is the one run; `full`: it counts observations behind their cameras too."""

    prepare: Callable[[Reconstruction, Limits], Run]
    full: bool = True
    slow: bool = False
    """It is run once where others are repeated."""
    most_cameras: float = math.inf
    most_observations: float = math.inf

    def fits(self, cameras: int, observations: int) -> bool:
        """Whether it can be expected to end in minutes."""
        return cameras <= self.most_cameras and observations <= self.most_observations


def ours() -> dict[str, Solver]:
    """`geometry.bundle`, as a user calls it: what it does before the first step is timed."""
    from geometry import bundle

    def prepare(scene: Reconstruction, limits: Limits) -> Run:
        torch.set_num_threads(limits.threads)
        start_cost = bundle_cost(scene)

        def run() -> Trace:
            recorder = Recorder(limits.seconds)
            recorder.rows.append((0.0, start_cost, start_cost))

            def tell(step: int, cost: float) -> None:
                if step:
                    recorder(cost, cost)

            with torch.no_grad(), suppress(OutOfTimeError):
                bundle(
                    scene.points2d, scene.camera_index, scene.point_index,
                    scene.world_to_camera, scene.points3d, scene.K, scene.distortion,
                    intrinsics_index=scene.intrinsics_index, free=("poses", "points", "f", "k1", "k2"),
                    max_steps=limits.max_steps, gauge="free", callback=tell,
                )  # fmt: skip
            return recorder.trace()

        return run

    return {"ours": Solver(prepare)}


def reconstruction(scene: Reconstruction) -> Any:
    """The scene as COLMAP's, with RADIAL cameras; pixels stay as they are, since its cameras are told the same."""
    import pycolmap

    found = pycolmap.Reconstruction()
    for c, (K, k) in enumerate(zip(scene.K.tolist(), scene.distortion.tolist(), strict=True)):
        parameters = [K[0][0], K[0][2], K[1][2], *k]
        camera = pycolmap.Camera(model="RADIAL", width=1, height=1, params=parameters, camera_id=c + 1)
        found.add_camera_with_trivial_rig(camera)
    order = scene.camera_index.argsort(stable=True)
    counts = scene.camera_index.bincount(minlength=len(scene.world_to_camera))
    tracks = [pycolmap.Track() for _ in scene.points3d]
    poses, intrinsics = scene.world_to_camera[:, :3].numpy(), scene.intrinsics_index.tolist()
    for v, rows in enumerate(order.split(counts.tolist())):
        image = pycolmap.Image(
            name=str(v), keypoints=scene.points2d[rows].numpy(), camera_id=intrinsics[v] + 1, image_id=v + 1
        )
        found.add_image_with_trivial_frame(image, pycolmap.Rigid3d(poses[v]))
        for i, n in enumerate(scene.point_index[rows].tolist()):
            tracks[n].add_element(v + 1, i)
    for X, track in zip(scene.points3d.numpy(), tracks, strict=True):
        found.add_point3D(X, track)
    return found


def state_of(found: Any, scene: Reconstruction) -> Reconstruction:
    """The scene, with the values that COLMAP's reconstruction has now."""
    poses = [found.image(v + 1).cam_from_world().matrix() for v in range(len(scene.world_to_camera))]
    f, cx, cy, k1, k2 = torch.from_numpy(np.stack([found.camera(c + 1).params for c in range(len(scene.K))])).T
    top = torch.from_numpy(np.stack(poses))
    return replace(
        scene,
        world_to_camera=se3.make(top[..., :3], top[..., 3]),
        points3d=torch.from_numpy(np.stack([found.point3D(n + 1).xyz for n in range(len(scene.points3d))])),
        K=matrix_from_intrinsics(torch.stack([f, f, cx, cy], -1)),
        distortion=torch.stack([k1, k2], -1),
    )


def ceres() -> dict[str, Solver]:
    """Ceres on COLMAP's bundle problem, with Ceres' own defaults but for the linear solver, and no tolerances.

    COLMAP states the problem (its C++ costs with their analytic derivatives, poses and intrinsics in blocks of
    their own); pyceres solves it, since it reports every iteration. Building the problem is not timed, the solver's
    preprocessing is. COLMAP takes the error of an observation behind its camera as zero, hence `full=False`.
    ITERATIVE_SCHUR has the explicit Schur complement and SCHUR_JACOBI, the fastest of its choices on Ladybug.
    """
    import pyceres
    import pycolmap

    pyceres.logging.minloglevel = pyceres.logging.FATAL.value
    Next = pyceres.CallbackReturnType

    class Callback(pyceres.IterationCallback):
        def __init__(self, tell: Callable[[Any], object]) -> None:
            super().__init__()
            self.tell = tell

        def __call__(self, summary: Any) -> Any:
            try:
                self.tell(summary)
            except OutOfTimeError:
                return Next.SOLVER_TERMINATE_SUCCESSFULLY
            return Next.SOLVER_CONTINUE

    def solver(name: str, **choices: Any) -> Solver:
        def prepare(scene: Reconstruction, limits: Limits) -> Run:
            found, config = reconstruction(scene), pycolmap.BundleAdjustmentConfig()
            for v in range(len(scene.world_to_camera)):
                config.add_image(v + 1)
            adjuster = pycolmap.create_default_ceres_bundle_adjuster(
                pycolmap.BundleAdjustmentOptions(refine_sensor_from_rig=False, print_summary=False), config, found
            )
            options = pyceres.SolverOptions()
            settings = {
                "linear_solver_type": getattr(pyceres.LinearSolverType, name),
                "num_threads": limits.threads,
                "max_num_iterations": limits.max_steps,
                "update_state_every_iteration": limits.watch,
                "logging_type": pyceres.LoggingType.SILENT,
                **dict.fromkeys(("function_tolerance", "gradient_tolerance", "parameter_tolerance"), 0.0),
                **choices,
            }
            for key, value in settings.items():
                setattr(options, key, value)

            def run() -> Trace:
                recorder = Recorder(limits.seconds)

                def tell(summary: Any) -> None:
                    recorder(summary.cost, bundle_cost(state_of(found, scene)) if limits.watch else math.nan)

                callback = Callback(tell)  # held here: Ceres does not own it
                options.callbacks = [callback]
                pyceres.solve(options, adjuster.problem, pyceres.SolverSummary())
                return recorder.trace()

            return run

        return Solver(prepare, full=False, most_cameras=400 if name == "DENSE_SCHUR" else math.inf)

    explicit = {
        "preconditioner_type": pyceres.PreconditionerType.SCHUR_JACOBI, "use_explicit_schur_complement": True
    }  # fmt: skip
    return {
        "Ceres DENSE_SCHUR": solver("DENSE_SCHUR"),
        "Ceres SPARSE_SCHUR": solver("SPARSE_SCHUR"),
        "Ceres ITERATIVE_SCHUR": solver("ITERATIVE_SCHUR", **explicit),
    }


def scipy() -> dict[str, Solver]:
    """`least_squares`, the trust region with LSMR, and the exact sparse Jacobian: the usual way from Python alone.

    Its sparse products are on one thread; residuals and Jacobian are torch's. A step is one evaluation. LSMR stops
    after 300 iterations: with SciPy's own limit, the number of unknowns, one step on Ladybug takes 20 seconds.
    Where other processes are busy, NumPy's threads wait for each other and a step takes up to ten times as long;
    OPENBLAS_NUM_THREADS=1 avoids that.
    """
    from scipy.optimize import least_squares
    from scipy.sparse import csr_array

    def prepare(scene: Reconstruction, limits: Limits) -> Run:
        torch.set_num_threads(limits.threads)
        V, C = len(scene.world_to_camera), len(scene.K)
        intrinsics_index, centre = scene.intrinsics_index[scene.camera_index], scene.K[:, :2, 2]
        three = torch.arange(3)
        columns = torch.cat([
            6 * scene.camera_index[:, None] + torch.arange(6),
            6 * V + 3 * intrinsics_index[:, None] + three,
            6 * V + 3 * C + 3 * scene.point_index[:, None] + three,
        ], -1)  # fmt: skip
        indices = columns.repeat_interleave(2, 0).flatten().numpy()
        indptr = np.arange(0, 24 * len(columns) + 1, 12)
        lens = torch.cat([scene.K[:, 0, :1], scene.distortion], -1)
        start = torch.cat([v.flatten() for v in (se3.rotvec_t(scene.world_to_camera), lens, scene.points3d)])

        def error(own: Tensor, pixel: Tensor, c: Tensor) -> Tensor:
            """Of one observation; `own` (12,) are its rotvec, t, f, k1, k2, point."""
            p = se3.exp(own[:3]) @ own[9:] + own[3:6]
            q = p[:2] / p[2]
            r2 = q.square().sum()
            return own[6] * (1 + r2 * (own[7] + r2 * own[8])) * q + c - pixel

        data = (scene.points2d, centre[intrinsics_index])

        def run() -> Trace:
            recorder = Recorder(limits.seconds)

            def residual(x: np.ndarray) -> np.ndarray:
                found = vmap(error)(torch.from_numpy(x)[columns], *data).flatten()
                cost = 0.5 * found.square().sum().item()
                recorder(cost, cost)
                return found.numpy()

            def jacobian(x: np.ndarray) -> Any:
                values = vmap(jacfwd(error), chunk_size=1 << 16)(torch.from_numpy(x)[columns], *data)
                return csr_array((values.flatten().numpy(), indices, indptr), shape=(2 * len(columns), len(x)))

            with suppress(OutOfTimeError):
                least_squares(
                    residual, start.numpy(), jacobian, method="trf", tr_solver="lsmr", x_scale="jac",
                    tr_options={"maxiter": 300}, ftol=1e-12, xtol=1e-12, gtol=None, max_nfev=limits.max_steps + 1,
                )  # fmt: skip
            return recorder.trace()

        return run

    return {"SciPy least_squares": Solver(prepare, slow=True, most_observations=40_000)}


PEERS: dict[str, Callable[[], dict[str, Solver]]] = {"ours": ours, "Ceres": ceres, "SciPy": scipy}


def load_solvers() -> tuple[dict[str, Solver], list[str]]:
    """Ours and those of the peers that are here; the names of the peers that are not."""
    solvers, absent = dict[str, Solver](), list[str]()
    for name, factory in PEERS.items():
        try:
            solvers |= factory()
        except ImportError:
            absent.append(name)
    return solvers, absent
