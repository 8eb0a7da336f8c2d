"""Problems over the whole range that is legal, family by family, and what is wrong with what the solvers say of them.

The judges share no code with the solvers: `experiments.benchmarks.judges`, OpenCV, PoseLib, SciPy.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.nn.functional import normalize

from experiments.benchmarks.judges import Shape, Views, descend, image_of, pose_cost, resolution, shape_at
from geometry import Status, bundle, calibrate, pnp, pnp_ransac, quadratic_program, se3
from geometry.robust import RobustKernel, cauchy, geman_mcclure, huber

__all__ = ["OTHERS", "POSES", "Family", "PoseProblem", "Verdict", "pose_problem", "poses"]

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
POINTS = (4, 5, 6, 8, 12, 30, 64, 100, 300)


class Verdict(NamedTuple):
    """Per problem (B,): its status, and what is wrong with it, by name."""

    status: Tensor
    wrong: dict[str, Tensor]


Family = Callable[[int, torch.Generator, bool], Verdict]
"""Verdicts on B problems; the flag says whether other searches are to look for them, too."""


# ---- problems of poses ----


class PoseProblem(NamedTuple):
    views: Views
    truth: Tensor
    noise: Tensor


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, **DOUBLE)


def between(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g, **DOUBLE)


def pick(g: torch.Generator, values: tuple[Any, ...]) -> Any:
    return values[int(torch.randint(len(values), (1,), generator=g))]


def turns(g: torch.Generator, B: int) -> Tensor:
    """Rotations (B,3,3) about any axis, by any angle."""
    rotvec = torch.pi * normalize(normal(g, B, 3), dim=-1) * between(g, 0, 1, B, 1)
    return se3.from_rotvec_t(torch.cat([rotvec, torch.zeros_like(rotvec)], -1))[:, :3, :3]


def pose_problem(B: int, g: torch.Generator, fisheye: bool, outliers: float, weighted: bool) -> PoseProblem:
    """Objects of any shape, unit and origin, seen by any focal length; one number of points a batch."""
    N = pick(g, POINTS)
    X = between(g, -1, 1, B, N, 3)
    # solid, flat, nearly on a line
    flat = 10 ** between(g, -2.5, 0, B, 1, 1) * torch.tensor([0.0, 0, 1]) + torch.tensor([1.0, 1, 0])
    line = 10 ** between(g, -2.5, 0, B, 1, 1) * torch.tensor([0.0, 1, 1]) + torch.tensor([1.0, 0, 0])
    plane = torch.tensor([1.0, 1, 0], **DOUBLE).expand(B, 1, 3)
    X = X * torch.stack([torch.ones_like(flat), flat, plane, line]).gather(
        0, torch.randint(4, (1, B, 1, 1), generator=g).expand(1, B, 1, 3)
    ).squeeze(0)
    f = 10 ** between(g, 2, 4.3, B)
    if fisheye:
        f = f.clamp_max(1000)
    # its size in the image: from fifteen to five hundred pixels, and never nearer than two and a half radii
    depth = (f / 10 ** between(g, 1.2, 2.7, B)).clamp_min(2.5)
    R = turns(g, B)
    t = torch.cat([0.2 * depth[:, None] * between(g, -1, 1, B, 2), depth[:, None]], -1)
    K = torch.zeros(B, 3, 3, **DOUBLE)
    K[:, 0, 0] = K[:, 1, 1] = f
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = 320, 240, 1
    lens = {True: ([0.05, -0.01, 0.003, -0.001], 0.3), False: ([-0.2, 0.05, 1e-3, -1e-3, 0.0], 0.5)}[fisheye]
    k = (
        torch.tensor(lens[0], **DOUBLE) * between(g, 0, 1, B, 1)
        if pick(g, (True, False))
        else torch.empty(B, 0, **DOUBLE)
    )
    x = image_of(X @ R.mT + t[:, None], K, k, fisheye)
    extent = (x - x.mean(1, keepdim=True)).square().sum(-1).mean(-1).sqrt()
    sigma = torch.minimum(pick(g, (0.0, 0.1, 1.0, 3.0)) * torch.ones(B, **DOUBLE), 0.03 * extent)
    x = x + sigma[:, None, None] * normal(g, B, N, 2)
    wrong = torch.rand(B, N, generator=g) < outliers
    x = torch.where(wrong[..., None], x + 30 * extent[:, None, None] * normal(g, B, N, 2) / 10, x)
    weights = 10 ** between(g, -8, 8, B, N) if weighted else torch.ones(B, N, **DOUBLE)
    unit = 10 ** between(g, -4, 4, B)
    origin = 10 ** between(g, -1, 6, B, 1) * unit[:, None] * normalize(normal(g, B, 3), dim=-1)
    X, t = unit[:, None, None] * X + origin[:, None], unit[:, None] * t - (R @ origin[..., None])[..., 0]
    return PoseProblem(Views(x, X, K, k, weights), se3.make(R, t), sigma)


def about_start(problem: PoseProblem, g: torch.Generator) -> Tensor:
    """Poses near the truth, turned and shifted by a few hundredths of the object about its middle."""
    X = problem.views.points3d.mean(1)
    size = (problem.views.points3d - X[:, None]).norm(dim=-1).mean(-1, keepdim=True)
    step = se3.from_rotvec_t(torch.cat([0.02 * normal(g, len(X), 3), torch.zeros(len(X), 3)], -1))[:, :3, :3]
    R, t = problem.truth[:, :3, :3], problem.truth[:, :3, 3]
    middle = (R @ X[..., None])[..., 0] + t
    turned = step @ R
    return se3.make(turned, middle + 0.02 * size * normal(g, len(X), 3) - (turned @ X[..., None])[..., 0])


def _moving(shape: Shape, part: float, floor: Tensor | float) -> Tensor:
    """Whether a step would gain more than a part of the cost (B,), or the cost is infinite, as behind the camera."""
    return ~torch.isfinite(shape.cost) | (shape.decrease > part * shape.cost + floor)


def sqpnp(views: Views) -> Tensor:
    """OpenCV's poses (B,4,4) of undistorted pixels, the identity where it fails."""
    import cv2

    poses = torch.eye(4, **DOUBLE).repeat(len(views.K), 1, 1)
    for i, (x, X, K, k, _) in enumerate(zip(*(a.numpy() for a in views), strict=True)):
        centre = X.mean(0)
        size = np.abs(X - centre).max()
        try:  # it raises where it finds the points too small
            ok, r, t = cv2.solvePnP((X - centre) / size, x, K, k if k.size else None, flags=cv2.SOLVEPNP_SQPNP)
        except cv2.error:
            continue
        if ok:
            R = cv2.Rodrigues(r)[0]
            poses[i] = se3.make(torch.from_numpy(R), torch.from_numpy(size * t[:, 0] - R @ centre))
    return poses


def poses(
    B: int, g: torch.Generator, sought: bool, *, start: bool = False, fisheye: bool = False, outliers: float = 0.0,
    weighted: bool = False, kernel: Callable[[float], RobustKernel] | None = None, dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Verdict:  # fmt: skip
    """`pnp`, and what is wrong with its poses."""
    problem = pose_problem(B, g, fisheye, outliers, weighted)
    views = Views(*(a.to(dtype).double() for a in problem.views))
    robust = None if kernel is None else kernel(3.0)
    options |= {"kernel": robust, "model": "fisheye" if fisheye else "radtan", "solve_dtype": dtype}
    near = about_start(problem, g).to(dtype) if start else None

    def solve(part: Tensor, pixels: Tensor) -> Any:
        _, X, K, k, w = (a.to(dtype)[part] for a in views)
        init = None if near is None else near[part]
        return pnp(pixels[part], X, K, distortion=k if k.shape[1] else None, weights=w, init=init, **options)

    everyone = torch.arange(B)
    pixels = views.points2d.to(dtype).clone().requires_grad_()
    found = solve(everyone, pixels)
    (gradient,) = torch.autograd.grad(found.x.sum(), pixels)
    pose, cost = found.x.detach().double(), pose_cost(fisheye, robust)
    floor = 100 * resolution(pose, views, torch.finfo(dtype).eps)
    shape = shape_at(cost, 6, (pose, *views))
    loose = dtype == torch.float32
    converged = found.status == Status.CONVERGED
    wrong = {
        "moving": converged & _moving(shape, 1e-4 if loose else 1e-9, floor),
        "no minimum": converged & (shape.curvature < (-1e-3 if loose else -1e-9)) & (shape.cost > floor),
        "not finite": ~torch.isfinite(gradient).all(-1).all(-1) | (converged & ~torch.isfinite(pose).all(-1).all(-1)),
    }
    # among other neighbours, some of whom fail
    if B >= 16:
        order = torch.randperm(B, generator=g)
        others = pixels.detach()[order].clone()
        others[B // 2 :] = 0.0
        inverse = order.argsort()
        again = solve(order, others[inverse])
        kept = order[: B // 2]
        same = (again.x[: B // 2] == found.x[kept]).flatten(1).all(1) & (again.status[: B // 2] == found.status[kept])
        wrong["neighbour"] = torch.zeros(B, dtype=torch.bool).index_fill(0, kept[~same], True)
    if sought:
        _, lowest = descend(cost, problem.truth.clone(), views)
        if not start and not fisheye and outliers == 0 and not weighted:
            _, other = descend(cost, sqpnp(views), views)
            lower = torch.minimum(lowest.cost, other.cost)
        else:
            lower = lowest.cost
        if not start:
            wrong["beaten"] = converged & (lower < (1 - (1e-2 if loose else 1e-6)) * shape.cost - floor)
        strict = torch.isfinite(lowest.cost) & (lowest.curvature > (0.01 if loose else 1e-6))
        settled = lowest.decrease <= 1e-9 * lowest.cost + floor
        wrong["missed"] = ~converged & strict & settled
    return Verdict(found.status, wrong)


# ---- RANSAC ----


def ransacs(B: int, g: torch.Generator, sought: bool, *, flat: bool) -> Verdict:
    """`pnp_ransac` on solid or on flat and small objects with 30 to 90 % right matches, its MSAC cost beside PoseLib's
    and that of the right matches."""
    import poselib

    N, share, noise = pick(g, (60, 100, 200, 300)), pick(g, (0.3, 0.5, 0.7, 0.9)), pick(g, (0.5, 1.0, 2.0))
    X = between(g, -1, 1, B, N, 3) * torch.tensor([1.0, 0.7, 0.05 if flat else 1.0])
    pose = se3.make(turns(g, B), torch.zeros(B, 3, **DOUBLE))
    pose[:, :3, 3] = torch.cat([normal(g, B, 2), between(g, 6, 16 if flat else 12, B, 1)], -1)
    K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], **DOUBLE)
    none = torch.empty(B, 0, **DOUBLE)
    x = image_of(X @ pose[:, :3, :3].mT + pose[:, None, :3, 3], K, none, False) + noise * normal(g, B, N, 2)
    right = torch.rand(B, N, generator=g) < share
    wild = torch.rand(B, N, 2, generator=g, **DOUBLE) * torch.tensor([640.0, 480.0])
    x = torch.where(right[..., None], x, wild)

    def msac(pose: Tensor) -> Tensor:
        e = (image_of(X @ pose[:, :3, :3].mT + pose[:, None, :3, 3], K, none, False) - x).square().sum(-1)
        return e.nan_to_num(torch.inf).clamp_max(16).sum(-1)

    found = pnp_ransac(x, X, K, threshold=4.0, generator=g)
    camera = poselib.Camera("PINHOLE", [800.0, 800, 320, 240], 640, 480)
    limits = {"max_reproj_error": 4.0, "max_iterations": 10_000, "success_prob": 0.9999, "min_iterations": 100}
    theirs = [
        poselib.estimate_absolute_pose(a, b, camera, limits, {})[0].Rt
        for a, b in zip(x.numpy(), X.numpy(), strict=True)
    ]
    of = torch.from_numpy(np.stack(theirs))
    truth = pnp(x, X, K, mask=right, init=pose).x
    best = torch.stack([msac(found.x), msac(of), msac(truth), msac(pose)]).amin(0)
    converged = found.status == Status.CONVERGED
    return Verdict(
        found.status,
        {
            "beaten": converged & (msac(found.x) > 1.02 * best),
            "missed": ~converged & (msac(truth) < 16 * (~right).sum(-1) + 16 * 0.2 * right.sum(-1)),
            "PoseLib beaten": msac(of) > 1.02 * best,
        },
    )


# ---- bundles, calibrations, programs ----


def bundles(B: int, g: torch.Generator, sought: bool) -> Verdict:
    """`bundle` of three to six views of a dozen points, of any unit and origin."""
    statuses, moving, saddles, missed = [], [], [], []
    for _ in range(B):
        V, N = pick(g, (3, 4, 6)), 12
        unit = 10 ** between(g, -4, 4, 1)
        origin = 10 ** between(g, -1, 6, 1) * unit * normalize(normal(g, 3), dim=0)
        X = between(g, -1, 1, N, 3)
        pose = se3.from_rotvec_t(
            torch.cat([0.3 * normal(g, V, 3), normal(g, V, 3) * 0.5 + torch.tensor([0, 0, 6.0])], -1)
        )
        K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], **DOUBLE) * torch.tensor([[1.0], [1], [1]])
        R, t = pose[:, :3, :3], pose[:, :3, 3]
        x = image_of(X @ R.mT + t[:, None], K, torch.empty(0, **DOUBLE), False)
        x = x + pick(g, (0.0, 0.5, 2.0)) * normal(g, V, N, 2)
        near = X + 0.02 * normal(g, N, 3)
        seen = torch.rand(V, N, generator=g) < pick(g, (0.7, 1.0))
        view, point = seen.nonzero().unbind(1)
        moved_t = unit * t - (R @ origin)
        found = bundle(x[view, point], view, point, se3.make(R, moved_t), unit * near + origin, K)
        converged = found.status == Status.CONVERGED
        statuses.append(found.status)
        used = ~found.left_out
        seen_where = x[view, point][used], view[used], point[used]
        shape = _bundle_shape(*found.x[:2], K, seen_where, unit, origin)
        eps = torch.finfo(torch.float64).eps
        floor = 100 * (eps * (1000 + 800 * float(origin.norm() / unit) / 5)) ** 2 * int(used.sum())
        moving.append(converged & _moving(shape, 1e-8, floor)[0])
        saddles.append(converged & (shape.curvature[0] < -1e-9) & (shape.cost[0] > floor))
        enough = bool((seen.sum(0) >= 2).all() and (seen.sum(1) >= 6).all())
        missed.append(~converged & torch.tensor(enough))
    wrong = {"moving": torch.stack(moving), "no minimum": torch.stack(saddles), "missed": torch.stack(missed)}
    return Verdict(torch.stack(statuses), wrong)


def _bundle_shape(
    pose: Tensor, points: Tensor, K: Tensor, seen: tuple[Tensor, Tensor, Tensor], unit: Tensor, origin: Tensor
) -> Shape:
    """The shape of a bundle's cost with seven free directions, about its middle and in its own size."""
    V, (x, view, point) = len(pose), seen
    R = pose[:, :3, :3]
    t = (pose[:, :3, 3] + R @ origin) / unit
    X = (points - origin) / unit
    used = torch.unique(point)

    def cost(step: Tensor, R: Tensor, t: Tensor, X: Tensor) -> Tensor:
        w, v, p = step[: 3 * V].view(V, 3), step[3 * V : 6 * V].view(V, 3), step[6 * V :].view(-1, 3)
        a, b, c = w.unbind(-1)
        zero = torch.zeros_like(a)
        W = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).view(V, 3, 3)
        turned = R + W @ R + 0.5 * W @ W @ R
        Y = X.index_add(0, used, p)
        there = (turned[view] @ Y[point][..., None])[..., 0] + (t + v)[view]
        error = image_of(there[:, None], K, there.new_empty(0), False)[:, 0] - x
        return 0.5 * error.square().sum()

    return shape_at(cost, 6 * V + 3 * len(used), (R[None], t[None], X[None]), free=7)


def calibrations(B: int, g: torch.Generator, sought: bool) -> Verdict:
    """`calibrate` from boards, beside `cv2.calibrateCamera` on the same corners."""
    import cv2

    statuses, beaten, missed = [], [], []
    board = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="xy"), -1).flatten(0, 1)
    board = torch.cat([board - board.mean(0), torch.zeros(48, 1)], -1).double()
    for _ in range(B):
        V, count, f = pick(g, (4, 8, 16)), pick(g, (0, 2, 5)), float(10 ** between(g, 2.5, 4, 1))
        depth = f / 60 * between(g, 0.8, 1.6, V, 1)
        turn = torch.cat([between(g, -0.7, 0.7, V, 2), between(g, -3, 3, V, 1)], -1)
        pose = se3.from_rotvec_t(torch.cat([turn, between(g, -1, 1, V, 2) * 0.15 * depth * 640 / f, depth], -1))
        K = torch.tensor([[f, 0, 330.0], [0, f, 235.0], [0, 0, 1]], **DOUBLE)
        k = torch.zeros(5, **DOUBLE)
        k[: min(count, 5)] = torch.tensor([-0.1, 0.05, 1e-3, -1e-3, 0.01], **DOUBLE)[: min(count, 5)]
        x = image_of(board @ pose[:, :3, :3].mT + pose[:, None, :3, 3], K, k, False)
        x = x + pick(g, (0.1, 0.5)) * normal(g, V, 48, 2)
        found = calibrate(x, board, (640, 480), distortion=count)
        flags = {0: cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2 | cv2.CALIB_FIX_K3,
                 2: cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K3, 5: 0}[count]  # fmt: skip
        corners = [a.numpy().astype(np.float32) for a in x]
        _, found_K, found_k, r, t = cv2.calibrateCamera(
            [board.numpy().astype(np.float32)] * V, corners, (640, 480), None, None, flags=flags
        )
        theirs = torch.stack(
            [
                se3.make(torch.from_numpy(cv2.Rodrigues(a)[0]), torch.from_numpy(b[:, 0]))
                for a, b in zip(r, t, strict=True)
            ]
        )
        K2, k2 = (torch.from_numpy(np.asarray(a)) for a in (found_K, found_k))
        lower = torch.stack([
            0.5 * (image_of(board @ p[:, :3, :3].mT + p[:, None, :3, 3], M, d, False) - x).square().sum()
            for p, M, d in ((theirs, K2, k2.flatten()[:5]), (pose, K, k))
        ]).min()  # fmt: skip
        converged = found.status.flatten()[0] == Status.CONVERGED
        statuses.append(found.status.flatten()[0])
        beaten.append(converged & (lower < found.cost.flatten()[0] * (1 - 1e-6)))
        missed.append(~converged)
    wrong = {"beaten": torch.stack(beaten), "missed": torch.stack(missed)}
    return Verdict(torch.stack(statuses), wrong)


def programs(B: int, g: torch.Generator, sought: bool) -> Verdict:
    """`quadratic_program` with any scale of rows, bounds as "none", and objectives from strict to linear; judged by
    its optimality conditions row by row, and by SciPy's linear programs where it says that there is no solution."""
    n, m = pick(g, (1, 2, 3, 6)), pick(g, (1, 2, 4, 8))
    L = normal(g, B, n, pick(g, (n, max(1, n - 1))))
    Q = L @ L.mT * 10 ** between(g, -10, 2, B, 1, 1) * pick(g, (0.0, 1.0, 1.0, 1.0))
    rows = 10 ** between(g, -4, 4, B, m)
    p, G = normal(g, B, n), rows[..., None] * normal(g, B, m, n)
    inside = normal(g, B, n)
    h = (G @ inside[..., None])[..., 0] + rows * torch.rand(B, m, generator=g, **DOUBLE) * pick(g, (0.0, 1.0, 1.0))
    h = torch.where(torch.rand(B, m, generator=g) < 0.1, pick(g, (1e8, 1e13, torch.inf)), h)
    found = quadratic_program(Q, p, G, h)
    x, z = found.x, found.inequality
    size = (G.abs() @ x.abs()[..., None])[..., 0] + torch.where(torch.isinf(h), 0.0, h.abs().minimum(rows * 1e3))
    violated = ((G @ x[..., None])[..., 0] - h > 1e-7 * size).any(-1)
    terms = (Q.abs() @ x.abs()[..., None])[..., 0] + p.abs() + (G.mT.abs() @ z.abs()[..., None])[..., 0]
    slope = (Q @ x[..., None])[..., 0] + p + (G.mT @ z[..., None])[..., 0]
    uphill = (slope.abs() > 1e-6 * terms).any(-1) | (z < 0).any(-1)
    slack = torch.where(torch.isinf(h), 0.0, (h - (G @ x[..., None])[..., 0]).abs())
    apart = (slack * z).sum(-1) > 1e-6 * ((p * x).sum(-1).abs() + (x * (Q @ x[..., None])[..., 0]).sum(-1).abs() + 1e-6)
    converged = found.status == Status.CONVERGED
    missed = torch.zeros(B, dtype=torch.bool)
    for i in (~converged).nonzero().flatten().tolist():
        some = torch.isfinite(h[i])
        free = [(None, None)] * n
        # there is a solution where some point is feasible and the objective falls along no direction for ever
        point = linprog(np.zeros(n), G[i][some].numpy(), h[i][some].numpy(), bounds=free)
        rows_of, flat = (G[i] / rows[i][:, None])[some].numpy(), (Q[i] / Q[i].abs().max().clamp_min(1e-300)).numpy()
        cone = linprog(p[i].numpy(), rows_of, np.zeros(len(rows_of)), flat, np.zeros(n), bounds=[(-1, 1)] * n)
        missed[i] = point.status == 0 and cone.status == 0 and cone.fun > -1e-7 and _resolved(*(
            a.numpy() for a in (Q[i], p[i], G[i][some] / rows[i, some, None], h[i][some] / rows[i][some], L[i])
        ))  # fmt: skip
    wrong = {"moving": converged & (uphill | apart), "beaten": converged & violated, "missed": missed}
    return Verdict(found.status, wrong)


def _resolved(Q: np.ndarray, p: np.ndarray, G: np.ndarray, h: np.ndarray, L: np.ndarray) -> bool:
    """Whether p is seen beside Q x where the bounds end the way on which Q = L L^T is flat.

    On it p alone makes the cost fall. Rows hold to eps^0.8 of the terms that meet in them, as `quadratic_program` says:
    where that of Q x is more than p, every x near that end, and a p of zero, is as good.
    """
    way = np.linalg.svd(L)[0][:, L.shape[1] :] if Q.any() else np.eye(len(p))
    if way.shape[1] == 0:
        return True
    end = linprog(way.T @ p, G @ way, h.clip(0), bounds=[(None, None)] * way.shape[1])
    terms = (np.abs(Q) @ np.abs(way @ end.x)).max() if end.status == 0 else np.inf
    return bool(np.finfo(float).eps ** 0.8 * terms < np.abs(way.T @ p).max())


POSES: dict[str, tuple[Family, float]] = {
    "pose, sought": (poses, 0.3),
    "pose, with a start": (partial(poses, start=True), 0.2),
    "pose, weights from 1e-8 to 1e8": (partial(poses, weighted=True), 0.1),
    "pose, weights, with a start": (partial(poses, weighted=True, start=True), 0.1),
    "pose, Huber, 20 % wrong": (partial(poses, kernel=huber, outliers=0.2), 0.05),
    "pose, Cauchy, 20 % wrong": (partial(poses, kernel=cauchy, outliers=0.2), 0.05),
    "pose, Geman-McClure, with a start": (partial(poses, kernel=geman_mcclure, outliers=0.3, start=True), 0.05),
    "pose, float32": (partial(poses, dtype=torch.float32), 0.05),
    "pose, fisheye": (partial(poses, fisheye=True), 0.03),
    "pose, fisheye, with a start": (partial(poses, fisheye=True, start=True), 0.03),
    "pose, in tensors": (partial(poses, gradient="unrolled"), 0.02),
    "pose, in tensors, with a start": (partial(poses, gradient="unrolled", start=True), 0.02),
}
"""Each family, and its part of the poses."""

OTHERS: dict[str, tuple[Family, str, float]] = {
    "RANSAC, solids": (partial(ransacs, flat=False), "ransacs", 0.5),
    "RANSAC, flat and small": (partial(ransacs, flat=True), "ransacs", 0.5),
    "bundle": (bundles, "others", 1.0),
    "calibration": (calibrations, "others", 0.1),
    "quadratic program": (programs, "others", 1.0),
}
