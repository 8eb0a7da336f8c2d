"""The solvers that `experiments.benchmarks.pnp` compares, each behind the same call, and the problems they get."""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.made.scenes import random_poses
from geometry import pnp, project, se3
from geometry.camera import intrinsics_from_matrix, matrix_from_intrinsics

DIFFERENTIABLE = ("points2d", "points3d", "K", "weights")
MODES = ("forward", "forward + backward")


@dataclass(frozen=True)
class Batch:
    """B problems: points2d (B,N,2) px, points3d (B,N,3), K (B,3,3), weights (B,N,2), init (B,4,4)."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    weights: Tensor
    init: Tensor

    def split(self, count: int) -> list["Batch"]:
        """Batches of `count` problems, the last one of what is left."""
        return [Batch(*values) for values in zip(*(value.split(count) for value in vars(self).values()), strict=True)]

    def to(self, where: torch.dtype | torch.device) -> "Batch":
        return Batch(*(value.to(where) for value in vars(self).values()))


def make_problems(B: int, N: int, noise: float | Tensor, seed: int, planar: bool = False) -> Batch:
    """Seeded problems; noise in px, a number or one per problem (B,)."""
    g = torch.Generator().manual_seed(seed)
    points3d = 2 * torch.rand(B, N, 3, generator=g, dtype=torch.float64) - 1
    if planar:
        points3d[..., 2] = 0
    poses = random_poses(B, g, depth=(6.0, 12.0))
    K = matrix_from_intrinsics(torch.tensor([800.0, 800.0, 320.0, 240.0], dtype=torch.float64)).repeat(B, 1, 1)
    sigma = torch.as_tensor(noise, dtype=torch.float64).expand(B)[:, None, None]
    points2d = project(points3d, poses, K) + sigma * torch.randn(B, N, 2, generator=g, dtype=torch.float64)
    axis, direction = torch.nn.functional.normalize(torch.randn(2, B, 3, generator=g, dtype=torch.float64), dim=-1)
    away = 0.1 * poses[:, :3, 3].norm(dim=-1, keepdim=True) * direction
    init = se3.retract(poses, torch.cat([math.radians(10) * axis, away], -1))
    return Batch(points2d, points3d, K, torch.ones_like(points2d), init)


def reprojection_cost(batch: Batch, poses: Tensor) -> Tensor:
    """Half the sum of squared errors (B,) in px^2; infinite for a failed pose or with a point behind the camera."""
    behind = (se3.transform(poses, batch.points3d)[..., 2] <= 0).any(-1)
    cost = 0.5 * (project(batch.points3d, poses, batch.K) - batch.points2d).square().sum((-2, -1))
    return torch.where(behind | ~torch.isfinite(cost), torch.inf, cost)


# ---- the solvers ----


@dataclass(frozen=True)
class Solver:
    """One way to solve PnP: `pose(solve(batch, native(batch)))`, of which only `solve` is timed."""

    solve: Callable[[Batch, Any], Any]
    native: Callable[[Batch], Any] = lambda batch: None
    """What the solver wants in a form of its own."""
    pose: Callable[[Any], Tensor] = lambda found: found
    """Poses (B,4,4) of what `solve` returns; a failure is NaN."""
    start: bool = True
    """Whether it goes from `Batch.init`."""
    gradients: tuple[str, ...] = ()
    """The inputs that it is differentiable in."""
    at_most: int = sys.maxsize
    """Problems of 64 points that are measured of a larger batch, fewer of more points."""
    dtype: torch.dtype = torch.float64
    refuses: tuple[type[Exception], ...] = ()
    """What it raises for a batch that it cannot do."""

    def parts(self, batch: Batch) -> list[Batch]:
        """The batch in the solver's precision, cut into calls of the size that is measured."""
        count = min(self.at_most, max(1, self.at_most * 64 // batch.points2d.shape[1]))
        return batch.to(self.dtype).split(count)

    def poses(self, batch: Batch) -> Tensor:
        """Poses (B,4,4) in float64; NaN where it refuses."""
        return torch.cat([self._poses(part) for part in self.parts(batch)])

    def _poses(self, batch: Batch) -> Tensor:
        try:
            with torch.no_grad():
                pose = self.pose(self.solve(batch, self.native(batch))).to(torch.float64)
        except self.refuses:
            return torch.full_like(batch.init, torch.nan)
        R = se3.rotation_from_quat_wxyz(se3.quat_wxyz_from_rotation(pose[:, :3, :3]))
        return se3.make(R, pose[:, :3, 3])  # what was rounded to float32 is a rotation again


def timed_call(solver: Solver, batch: Batch, mode: str) -> Callable[[], object]:
    """One call on a batch, with a fixed random cotangent in the backward pass."""
    native = solver.native(batch)
    if mode == "forward":
        return torch.no_grad()(lambda: solver.solve(batch, native))
    first = batch.split(1)[0]
    shape = (len(batch.K), *solver.solve(first, solver.native(first)).shape[1:])
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=solver.dtype).to(batch.K.device)
    leaves = {name: getattr(batch, name).clone().requires_grad_() for name in solver.gradients}
    batch = replace(batch, **leaves)
    return lambda: torch.autograd.grad(solver.solve(batch, native), list(leaves.values()), cotangent)


SLOW, HOST, BATCHED = 16, 256, 4096  # at_most of a loop of milliseconds, a loop on the host, a batched peer


def ours() -> dict[str, Solver]:
    def solve(batch: Batch, init: Tensor | None) -> Tensor:
        return pnp(batch.points2d, batch.points3d, batch.K, weights=batch.weights, init=init).x

    return {
        "ours": Solver(solve, lambda batch: batch.init, gradients=DIFFERENTIABLE),
        "ours, no start": Solver(solve, start=False, gradients=DIFFERENTIABLE, at_most=BATCHED),
    }


def six_vectors(batch: Batch) -> list[tuple[np.ndarray, ...]]:
    """Each problem as points3d, points2d, K and, of its start, rotvec (3,1) and t (3,1), which OpenCV insists on."""
    arrays = (batch.points3d, batch.points2d, batch.K, *se3.rotvec_t(batch.init)[..., None].split(3, -2))
    return list(zip(*(value.numpy() for value in arrays), strict=True))


def from_six_vectors(found: Sequence[Any]) -> Tensor:
    """Poses of a list of [rotvec, t], in any shape of six numbers."""
    return se3.from_rotvec_t(torch.from_numpy(np.array(found, dtype=np.float64).reshape(-1, 6)))


def opencv() -> dict[str, Solver]:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())

    # the start is overwritten by these two
    def iterative(X: Any, x: Any, K: Any, rotvec: Any, t: Any) -> Any:
        return cv2.solvePnP(X, x, K, None, rotvec.copy(), t.copy(), True, cv2.SOLVEPNP_ITERATIVE)[1:]

    def refine_lm(X: Any, x: Any, K: Any, rotvec: Any, t: Any) -> Any:
        return cv2.solvePnPRefineLM(X, x, K, None, rotvec.copy(), t.copy())

    def without_start(flag: int) -> Callable[..., Any]:
        def call(X: Any, x: Any, K: Any, *_: Any) -> Any:
            try:
                found, rotvec, t = cv2.solvePnP(X, x, K, None, flags=flag)
            except cv2.error:  # ITERATIVE, with fewer than six points that are not in a plane
                found = False
            return (rotvec, t) if found else np.full((2, 3, 1), np.nan)

        return call

    def loop(call: Callable[..., Any], start: bool) -> Solver:
        return Solver(
            lambda _, problems: [call(*p) for p in problems], six_vectors, from_six_vectors, start, at_most=HOST
        )

    return {
        "OpenCV ITERATIVE": loop(iterative, True),
        "OpenCV RefineLM": loop(refine_lm, True),
        "OpenCV ITERATIVE, no start": loop(without_start(cv2.SOLVEPNP_ITERATIVE), False),
        "OpenCV SQPNP, no start": loop(without_start(cv2.SOLVEPNP_SQPNP), False),
    }


def from_Rt(Rt: Tensor) -> Tensor:
    """Poses of [R | t] (B,3,4)."""
    return se3.make(Rt[..., :3], Rt[..., 3])


def poselib() -> dict[str, Solver]:
    import poselib

    bundle = {"loss_type": "TRIVIAL"}
    ransac = {"max_reproj_error": 1e3}  # every point is an inlier

    def native(batch: Batch) -> list[tuple[Any, ...]]:
        problems = []
        for x, X, K, init in zip(batch.points2d, batch.points3d, batch.K, batch.init, strict=True):
            pose = poselib.CameraPose()
            pose.R, pose.t = init[:3, :3].numpy(), init[:3, 3].numpy()
            camera = poselib.Camera("PINHOLE", intrinsics_from_matrix(K).tolist(), 640, 480)
            problems.append((x.numpy(), X.numpy(), camera, pose))
        return problems

    def refine(_: Batch, problems: list) -> list:
        return [poselib.refine_absolute_pose(x, X, init, camera, bundle)[0] for x, X, camera, init in problems]

    def absolute(_: Batch, problems: list) -> list:
        return [poselib.estimate_absolute_pose(x, X, camera, ransac, bundle)[0] for x, X, camera, _ in problems]

    def pose(found: list) -> Tensor:
        return from_Rt(torch.from_numpy(np.array([p.Rt for p in found])))

    return {
        "PoseLib refine": Solver(refine, native, pose, at_most=HOST),
        "PoseLib RANSAC, no start": Solver(absolute, native, pose, start=False, at_most=SLOW),
    }


def scipy() -> dict[str, Solver]:
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    def call(X: np.ndarray, x: np.ndarray, K: np.ndarray, rotvec: np.ndarray, t: np.ndarray) -> np.ndarray:
        def residual(six: np.ndarray) -> np.ndarray:
            p = (X @ Rotation.from_rotvec(six[:3]).as_matrix().T + six[3:]) @ K.T
            return (p[:, :2] / p[:, 2:] - x).ravel()

        six = np.concatenate([rotvec, t]).ravel()
        return least_squares(residual, six, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15).x

    solve = lambda _, problems: [call(*p) for p in problems]
    return {"SciPy least_squares": Solver(solve, six_vectors, from_six_vectors, at_most=SLOW)}


def kornia() -> dict[str, Solver]:
    from kornia.geometry import solve_pnp_dlt

    def solve(batch: Batch, _: None) -> Tensor:
        return solve_pnp_dlt(batch.points3d, batch.points2d, batch.K)

    # it refuses fewer than six points, and planes
    dlt = Solver(solve, pose=from_Rt, start=False, gradients=DIFFERENTIABLE[:3], at_most=BATCHED, refuses=(Exception,))
    return {"kornia DLT, no start": dlt}


def pypose() -> dict[str, Solver]:
    import pypose

    layer = pypose.module.EPnP()

    def solve(batch: Batch, _: None) -> Tensor:
        return layer(batch.points3d, batch.points2d, batch.K).tensor()

    def pose(found: Tensor) -> Tensor:
        return pypose.SE3(found).matrix()

    # it refuses planes; its refinement has one Jacobian for the whole batch, so that small batches suit it best
    epnp = Solver(solve, pose=pose, start=False, gradients=DIFFERENTIABLE[:3], at_most=SLOW, refuses=(Exception,))
    return {"pypose EPnP, no start": epnp}


def bpnp() -> dict[str, Solver]:
    import kornia

    # what it was called in the kornia of its time
    vars(kornia).setdefault("angle_axis_to_rotation_matrix", kornia.geometry.conversions.axis_angle_to_rotation_matrix)
    layer = importlib.import_module("BPnP").BPnP_fast.apply

    def native(batch: Batch) -> Tensor:
        return se3.rotvec_t(batch.init)

    def solve(batch: Batch, init: Tensor) -> Tensor:
        """A call takes one K and one set of points3d; it loops over its batch on the host itself."""
        problems = zip(batch.points2d, batch.points3d, batch.K, init, strict=True)
        return torch.cat([layer(x[None], X, K, start[None]) for x, X, K, start in problems])

    gradients = DIFFERENTIABLE[:3]
    fast = Solver(solve, native, se3.from_rotvec_t, gradients=gradients, at_most=SLOW, dtype=torch.float32)
    return {"BPnP_fast": fast}


def epropnp() -> dict[str, Solver]:
    """Five Gauss-Newton steps; the gradient is that of one more, as in its training."""
    names = ("camera", "cost_fun", "levenberg_marquardt")
    camera, cost_fun, solver = (importlib.import_module(f"lib.ops.pnp.{name}") for name in names)
    vars(solver)["solve_wrapper"] = lambda b, A: torch.linalg.solve(A, b)  # torch.solve is no more
    layer = solver.LMSolver(dof=6, num_iter=5)
    squares = cost_fun.HuberPnPCost(delta=1e9)

    def native(batch: Batch) -> Tensor:
        return torch.cat([batch.init[:, :3, 3], se3.quat_wxyz_from_rotation(batch.init[:, :3, :3])], -1)

    def solve(batch: Batch, init: Tensor) -> Tensor:
        view, learning = camera.PerspectiveCamera(batch.K), torch.is_grad_enabled()
        pose, _, _, one_more = layer(
            batch.points3d, batch.points2d, batch.weights, view, squares,
            pose_init=init, fast_mode=True, with_pose_opt_plus=learning,
        )  # fmt: skip
        return one_more if learning else pose

    def pose(found: Tensor) -> Tensor:
        return se3.make(se3.rotation_from_quat_wxyz(found[:, 3:]), found[:, :3])

    return {"EPro-PnP": Solver(solve, native, pose, gradients=DIFFERENTIABLE, at_most=BATCHED)}


def theseus() -> dict[str, Solver]:
    """Gauss-Newton; implicit backward."""
    import theseus as th

    class Reprojection(th.CostFunction):
        """All N points of a problem in one cost, with its Jacobian: automatic, that takes time quadratic in N."""

        def __init__(self, pose: Any, data: Sequence[Any], weight: Any, name: str | None = None) -> None:
            super().__init__(weight, name=name)
            self.pose, self.points2d, self.points3d, self.K, self.weights = pose, *data
            self.register_optim_vars(["pose"])
            self.register_aux_vars(list(DIFFERENTIABLE))

        def dim(self) -> int:
            return 2 * self.points2d.shape[1]

        def _copy_impl(self, new_name: str | None = None) -> "Reprojection":
            data = [value.copy() for value in (self.points2d, self.points3d, self.K, self.weights)]
            return Reprojection(self.pose.copy(), data, self.weight.copy(), new_name)

        def _homogeneous(self) -> Tensor:
            T, X, K = self.pose.tensor, self.points3d.tensor, self.K.tensor
            return (X @ T[..., :3].mT + T[..., None, :, 3]) @ K.mT

        def error(self) -> Tensor:
            p = self._homogeneous()
            return (self.weights.tensor * (p[..., :2] / p[..., 2:] - self.points2d.tensor)).flatten(1)

        def jacobians(self) -> tuple[list[Tensor], Tensor]:
            """With respect to (v, omega) of T <- T exp(v, omega)."""
            p, KR = self._homogeneous(), self.K.tensor @ self.pose.tensor[..., :3]
            pixels = p[..., :2] / p[..., 2:]
            D = (KR[:, None, :2] - pixels[..., None] * KR[:, None, 2:]) / p[..., 2:, None]  # by R^T dp
            D = self.weights.tensor[..., None] * D
            turned = torch.linalg.cross(self.points3d.tensor[:, :, None].expand_as(D), D)
            return [torch.cat([D, turned], -1).flatten(1, 2)], self.error()

    @lru_cache
    def layer(N: int, device: torch.device) -> Any:
        shapes = zip(DIFFERENTIABLE, ((N, 2), (N, 3), (3, 3), (N, 2)), strict=True)
        data = [th.Variable(torch.ones(1, *shape, dtype=torch.float64), name=name) for name, shape in shapes]
        weight = th.ScaleCostWeight(torch.ones(1, 1, dtype=torch.float64))
        objective = th.Objective(dtype=torch.float64)
        objective.add(Reprojection(th.SE3(name="pose", dtype=torch.float64), data, weight))
        return th.TheseusLayer(th.GaussNewton(objective, max_iterations=10)).to(device)

    def native(batch: Batch) -> Tensor:
        return batch.init[:, :3].contiguous()

    def solve(batch: Batch, start: Tensor) -> Tensor:
        inputs = {"pose": start, **{name: getattr(batch, name) for name in DIFFERENTIABLE}}
        found = layer(batch.points2d.shape[1], batch.K.device)
        return found.forward(inputs, optimizer_kwargs={"backward_mode": "implicit"})[0]["pose"]

    return {"Theseus": Solver(solve, native, from_Rt, gradients=DIFFERENTIABLE, at_most=BATCHED)}


# a peer's solvers, and where a working tree of it keeps its packages (nowhere: PyPI has it)
PEERS: dict[str, tuple[Callable[[], dict[str, Solver]], tuple[str, ...]]] = {
    "OpenCV": (opencv, ()),
    "PoseLib": (poselib, ()),
    "SciPy": (scipy, ()),
    "kornia": (kornia, ()),
    "pypose": (pypose, ()),
    "BPnP": (bpnp, (".",)),
    "EPro-PnP": (epropnp, ("EPro-PnP-6DoF",)),
    "Theseus": (theseus, (".", "torchlie", "torchkin")),
}


def load_solvers(threads: int, checkout: Sequence[str]) -> tuple[dict[str, Solver], list[str]]:
    """Ours and those of the peers that are here, NAME=PATH ones from there; the names of the peers that are not."""
    torch.set_num_threads(threads)
    paths = dict(text.split("=", 1) for text in checkout)
    solvers, absent = ours(), []
    for name, (factory, folders) in PEERS.items():
        if name in paths:
            sys.path[:0] = [str(Path(paths[name], folder).resolve()) for folder in folders]
        try:
            solvers |= factory()
        except (ImportError, AttributeError) as error:  # a folder of that name imports as an empty package
            if name in paths:
                raise SystemExit(
                    f"--checkout {name}={paths[name]}: cannot import {name} from there: {error}"
                ) from error
            absent.append(name)
    return solvers, absent
