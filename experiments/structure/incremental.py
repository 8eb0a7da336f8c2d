"""A first reconstruction from tracks, camera after camera: what a bundle adjustment needs for a start.

Two cameras by their essential matrix, then each further one by RANSAC over PnP on the points found so far (Snavely,
Seitz and Szeliski 2006; Schönberger and Frahm 2016). Whenever the cameras have changed, all points are triangulated
anew, robustly: no observation is lost for good, and none is kept that no longer agrees.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.structure.points import Points
from experiments.structure.tracks import as_table
from geometry import align_similarity, cauchy, geman_mcclure, pnp, pnp_problem, ransac, se3, unproject
from geometry.camera import Model, in_front, project_camera_frame
from geometry.optim import descend

__all__ = ["Incremental", "Refine", "compare", "reconstruct"]

Refine = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""refine(world_to_camera (V,4,4), points3d (N,3), K (V,3,3), inlier (M,)) -> (world_to_camera, points3d).

Only the observations in `inlier` count. Cameras and points without one are not known yet and may come back as they are.
"""


class Incremental(NamedTuple):
    """A reconstruction, up to a similarity: the world is the frame of the first pair's first camera, their distance 1.

    world_to_camera (V,4,4), identity unless registered (V,); points3d (N,3), zero unless found (N,); inlier (M,): the
    observations, by registered cameras of found points, that lie within the threshold of the point's projection.
    """

    world_to_camera: Tensor
    points3d: Tensor
    registered: Tensor
    found: Tensor
    inlier: Tensor


class _Scene(NamedTuple):
    """What is given, one row an observation. rays (M,3): unit, in the camera frame; usable (M,): there is a ray."""

    points2d: Tensor
    camera: Tensor
    point: Tensor
    K: Tensor
    distortion: Tensor
    model: Model
    rays: Tensor
    usable: Tensor
    threshold: float
    parallax: float
    fewest: int
    generator: torch.Generator


def reconstruct(
    points2d: Tensor,
    camera_index: Tensor,
    point_index: Tensor,
    K: Tensor,
    distortion: Tensor | None = None,
    *,
    model: Model = "radtan",
    threshold: float = 2.0,
    parallax: float = 2.0,
    fewest: int = 15,
    refine: Refine | None = None,
    rounds: int = 2,
    seed: int = 0,
) -> Incremental:
    """Cameras and points from tracks and known intrinsics.

    points2d (M,2) px; camera_index, point_index (M,), at most one observation of a point by a camera; K (V,3,3), or
    (3,3) for all that camera_index names; distortion (V,k) or (k,) of `model`. threshold: pixels within which an
    observation agrees. parallax: degrees; a point is found if a ray is half of it away from their mean, or more.
    fewest: so many points must agree on a camera. refine: called after each camera, and `rounds` times at the end;
    None places all cameras anew on the points. seed: the same gives the same output.

    A camera that no RANSAC can place is not `registered`. Raises ValueError naming the argument for wrong shapes or
    indices, and where no two cameras share points enough to start from.
    """
    K, distortion = _cameras(points2d, camera_index, point_index, K, distortion)
    rays, usable = unproject(points2d[:, None], K[camera_index], distortion[camera_index], model=model)
    given = (points2d, camera_index, point_index, K, distortion, model, rays.squeeze(1), usable.squeeze(1))
    scene = _Scene(*given, threshold, parallax, fewest, torch.Generator(points2d.device).manual_seed(seed))

    refine = partial(_resect_all, scene) if refine is None else refine
    state = _improve(scene, _triangulate(scene, _first_pair(scene)), refine)
    while (larger := _add_camera(scene, state)) is not None:
        state = _improve(scene, _triangulate(scene, larger), refine)
    for _ in range(rounds):
        state = _improve(scene, state, refine)
    return state


def _cameras(x: Tensor, camera: Tensor, point: Tensor, K: Tensor, distortion: Tensor | None) -> tuple[Tensor, Tensor]:
    """K (V,3,3) and distortion (V,k), once the arguments of `reconstruct` are found to be in order."""
    M = len(x)
    if x.shape != (M, 2) or M == 0 or not torch.isfinite(x).all():
        raise ValueError(f"points2d must be finite and of shape (M,2), M > 0, got {tuple(x.shape)}")
    for name, index in (("camera_index", camera), ("point_index", point)):
        if index.shape != (M,) or index.dtype != torch.int64 or index.min() < 0:
            raise ValueError(f"{name} must hold int64 >= 0 of shape ({M},), got {index.dtype} {tuple(index.shape)}")
    if torch.unique(torch.stack([camera, point]), dim=1).shape[1] < M:
        raise ValueError("point_index must name a point once a camera, got one twice")
    V = len(K) if K.ndim == 3 else int(camera.max()) + 1
    if K.shape not in ((3, 3), (V, 3, 3)) or camera.max() >= V:
        raise ValueError(f"K must have shape (3,3) or (V,3,3) with V > {int(camera.max())}, got {tuple(K.shape)}")
    distortion = K.new_zeros(0) if distortion is None else distortion
    if distortion.ndim not in (1, 2) or (distortion.ndim == 2 and len(distortion) != V):
        raise ValueError(f"distortion must have shape (k,) or ({V},k), got {tuple(distortion.shape)}")
    return K.expand(V, 3, 3), distortion.expand(V, distortion.shape[-1])


def _first_pair(scene: _Scene) -> Incremental:
    """The poses of the two cameras with the most points whose rays meet at a good angle, and no points yet."""
    import cv2

    V, N, eye = len(scene.K), int(scene.point.max()) + 1, torch.eye(3, dtype=torch.float64).numpy()
    row = torch.full((V, N), -1)  # which observation a camera has of a point
    pinhole = scene.usable & (scene.rays[:, 2] > 0.1)  # up to 84 degrees off the axis, or the plane z = 1 is too far
    row[scene.camera[pinhole], scene.point[pinhole]] = pinhole.nonzero().flatten().cpu()
    best, start, pair = 0.0, torch.eye(4), [0, 0]
    for i, j in torch.combinations(torch.arange(V)).tolist():
        both = (row[i] >= 0) & (row[j] >= 0)
        if both.sum() < max(scene.fewest, best):
            continue
        a, b = (scene.rays[row[v, both]].double().cpu() for v in (i, j))
        one, other = ((d[:, :2] / d[:, 2:]).numpy() for d in (a, b))
        # Measured: three times as accurate as USAC_MAGSAC. With 2 px, narrow views get motions 10 degrees wrong.
        tolerance = min(0.5 * scene.threshold, 1.0) / scene.K[[i, j]][:, [0, 1], [0, 1]].mean().item()
        E, inlier = cv2.findEssentialMat(one, other, eye, cv2.USAC_ACCURATE, 0.9999, tolerance)
        if E is None or E.shape != (3, 3):
            continue
        _, *motion, inlier = cv2.recoverPose(E, one, other, eye, mask=inlier)
        R, t, agree = (torch.from_numpy(array) for array in (*motion, inlier[:, 0] > 0))
        angle = (a @ R.mT * b).sum(-1)[agree].clamp(-1, 1).acos().rad2deg()
        # a point is no better for more than four times the parallax that it must have
        score = (angle / (4 * scene.parallax)).clamp(max=1).sum().item()
        if len(angle) >= scene.fewest and score > best:
            best, start, pair = score, se3.make(R, t.squeeze(-1)), [i, j]
    if best == 0:
        raise ValueError(f"point_index: two cameras with {scene.fewest} good points in common wanted, found none")
    pose, registered = torch.eye(4).repeat(V, 1, 1).to(scene.K), torch.zeros(V, dtype=torch.bool)
    pose[pair[1]], registered[pair] = start.to(scene.K), True
    nothing = torch.zeros(N, dtype=torch.bool, device=pose.device), torch.zeros_like(scene.usable)
    return Incremental(pose, pose.new_zeros(N, 3), registered.to(pose.device), *nothing)


def _add_camera(scene: _Scene, state: Incremental) -> Incremental | None:
    """One camera more: of those that can be placed the one that sees most of the points; None where there is none."""
    known = state.found[scene.point] & ~state.registered[scene.camera]
    count = torch.bincount(scene.camera[known], minlength=len(scene.K))
    for v in count.argsort(descending=True, stable=True)[: int((count >= scene.fewest).sum())]:
        rows = known & (scene.camera == v)
        pose, agree = _resect(scene, int(v), scene.points2d[rows][None], state.points3d[scene.point[rows]][None])
        if agree >= scene.fewest:
            this = torch.arange(len(count), device=v.device) == v
            pose = torch.where(this[:, None, None], pose, state.world_to_camera)
            return state._replace(world_to_camera=pose, registered=state.registered | this)
    return None


def _resect(scene: _Scene, v: int, x: Tensor, X: Tensor) -> tuple[Tensor, int]:
    """Pose (4,4) of camera v from points2d x (1,n,2) and points3d X (1,n,3), and how many of them agree on it."""
    K, distortion, model, ones = scene.K[v : v + 1], scene.distortion[v : v + 1], scene.model, torch.ones_like(x)

    def five_points(index: Tensor) -> Tensor:
        return pnp(x[0, index[0]], X[0, index[0]], K, distortion=distortion, model=model).x[None]

    data, odds = (x, X, K, distortion, ones, ones[..., 0] > 0), ones[..., 0]
    threshold, rng = scene.threshold, scene.generator
    found = ransac(pnp_problem(model), five_points, *data, candidates=odds, size=5, threshold=threshold, generator=rng)
    pose = pnp(x, X, K, distortion=distortion, init=found.x, model=model, kernel=geman_mcclure(threshold)).x
    p = se3.transform(pose, X)
    error = (project_camera_frame(p, K, distortion, model=model) - x).norm(dim=-1)
    return pose[0], int(((error < threshold) & in_front(p, distortion, model=model)).sum())


def _resect_all(scene: _Scene, pose: Tensor, points3d: Tensor, K: Tensor, inlier: Tensor) -> tuple[Tensor, Tensor]:
    """The least that `refine` can do: all poses anew, in one batch, by robust PnP from the inliers."""
    x, mask = as_table(scene.points2d[inlier], scene.camera[inlier], scene.point[inlier], len(K), len(points3d))
    kernel, lens = cauchy(scene.threshold / 2), scene.distortion
    solution = pnp(x, points3d, K, distortion=lens, mask=mask, init=pose, model=scene.model, kernel=kernel)
    return torch.where(solution.converged[:, None, None], solution.x, pose), points3d


def _improve(scene: _Scene, state: Incremental, refine: Refine) -> Incremental:
    """Refined, and triangulated anew."""
    pose, points3d = refine(state.world_to_camera, state.points3d, scene.K, state.inlier)
    pose = torch.where(state.registered[:, None, None], pose, state.world_to_camera)
    return _triangulate(scene, state._replace(world_to_camera=pose, points3d=points3d))


def _triangulate(scene: _Scene, state: Incremental) -> Incremental:
    """The points anew, all that two registered cameras agree on, and `found` and `inlier` with them.

    The best (MSAC score) of the old point and 16 pairs of rays, and the minimum next to it.
    """
    pose, N = state.world_to_camera, len(state.points3d)
    rows = (scene.usable & state.registered[scene.camera]).nonzero().flatten()
    rows = rows[scene.point[rows].argsort(stable=True)]
    camera, point, x, model = scene.camera[rows], scene.point[rows], scene.points2d[rows], scene.model
    R, t, bound = pose[camera, :3, :3], pose[camera, :3, 3:], scene.threshold**2
    rays, eye = R.mT @ scene.rays[rows, :, None], torch.eye(3).to(x)
    across = eye - rays @ rays.mT
    to_ray = across @ -(R.mT @ t)  # across @ (X - centre) = 0 on the ray

    def msac(s: Tensor) -> tuple[Tensor, Tensor]:
        return s.clamp(max=bound), (s < bound).to(s)

    lenses = scene.K[camera], scene.distortion[camera], model
    seen = Points(x, point, pose[camera], *lenses, N, msac)
    count, best = torch.bincount(point, minlength=N), seen.at(state.points3d)
    first = (count.cumsum(0) - count).clamp(max=len(rows) - 1)
    for _ in range(16):
        a, b = torch.rand(2, N, dtype=x.dtype, device=x.device, generator=scene.generator)
        one, step = (a * count).long(), 1 + (b * (count - 1).clamp(min=0)).long()
        one, other = first + one, first + (one + step) % count.clamp(min=1)
        found = torch.linalg.solve_ex(across[one] + across[other] + 1e-12 * eye, to_ray[one] + to_ray[other]).result
        there = seen.at(found.squeeze(-1))
        best = seen.choose(there.cost < best.cost, there, best)
    points3d = descend(seen, best, 1e-3, 3).at.points3d
    agree = seen.squares(points3d) < bound
    middle = torch.nn.functional.normalize(seen.sums(rays[..., 0] * agree[:, None]), dim=-1)
    off = (rays[..., 0] * middle[point]).sum(-1).clamp(-1, 1).acos() * agree
    spread = off.new_zeros(N).scatter_reduce(0, point, off, "amax")  # at least half the largest angle of two rays
    found = (seen.sums(agree.long()) >= 2) & (spread >= math.radians(scene.parallax) / 2)
    inlier = torch.zeros_like(scene.usable).index_put((rows,), agree & found[point])
    return state._replace(points3d=torch.where(found[:, None], points3d, 0), found=found, inlier=inlier)


def compare(world_to_camera: Tensor, world_to_camera_gt: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of poses (V,4,4), V >= 3, after the similarity that suits their centres best: rotation (V,) in degrees and
    centre (V,) as a share of the largest distance between two true centres."""
    found, true = (se3.centre(pose) for pose in (world_to_camera, world_to_camera_gt))
    to_true = align_similarity(found, true)
    turn = world_to_camera[:, :3, :3] @ to_true.R.mT @ world_to_camera_gt[:, :3, :3].mT
    centre = (to_true.apply(found) - true).norm(dim=-1) / torch.cdist(true, true).max()
    return se3.rotation_angle(turn).rad2deg(), centre
