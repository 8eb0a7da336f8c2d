"""A reconstruction that grows camera after camera: what a bundle adjustment needs for a start.

From two cameras whose motion is known, each further one is placed by RANSAC over PnP on the points found so far
(Snavely, Seitz and Szeliski 2006; Schönberger and Frahm 2016). Whenever cameras or their lenses have changed, all
points are triangulated anew, robustly: no observation is lost for good, and none is kept that no longer agrees.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from geometry.bundle_adjustment import Bundle
from geometry.camera import Model, unproject
from geometry.optim import descend
from geometry.pose import pnp, pnp_ransac
from geometry.reconstruction.points import Points, as_table
from geometry.robust import cauchy, geman_mcclure

__all__ = ["Incremental", "Refine", "check_tracks", "grow"]

_WIDE = 3.0
"""A camera is placed by points within so many thresholds: points that few cameras see, and a lens that is not known
yet, are off by more than pixels are measured."""

Refine = Callable[[Bundle, Tensor], Bundle]
"""refine(bundle, inlier (M,)) -> bundle, with world_to_camera (V,4,4), points3d (N,3), K (V,3,3), distortion (V,k).

Only the observations in `inlier` count. Cameras and points without one are not known yet and may come back as they are.
"""


class Incremental(NamedTuple):
    """A reconstruction, up to a similarity: the world is the frame of the first pair's first camera, their distance 1.

    bundle: world_to_camera (V,4,4), identity unless registered (V,); points3d (N,3), zero unless found (N,); K (V,3,3)
    and distortion (V,k), as given unless `refine` changes them. inlier (M,): the observations, by registered cameras of
    found points, that lie within the threshold of the point's projection.
    """

    bundle: Bundle
    registered: Tensor
    found: Tensor
    inlier: Tensor


class _Scene(NamedTuple):
    """What is given, one row an observation."""

    points2d: Tensor
    camera: Tensor
    point: Tensor
    model: Model
    threshold: float
    parallax: float
    fewest: int
    generator: torch.Generator

    def rays(self, bundle: Bundle) -> tuple[Tensor, Tensor]:
        """Of each observation the unit ray (M,3) in the camera's frame, and whether there is one (M,)."""
        lenses = bundle.K[self.camera], bundle.distortion[self.camera]
        rays, usable = unproject(self.points2d[:, None], *lenses, model=self.model)
        return rays.squeeze(1), usable.squeeze(1)


def grow(
    points2d: Tensor,
    camera_index: Tensor,
    point_index: Tensor,
    start: Incremental,
    *,
    model: Model = "radtan",
    threshold: float = 2.0,
    parallax: float = 2.0,
    fewest: int = 15,
    refine: Refine | None = None,
    rounds: int = 4,
    generator: torch.Generator,
    callback: Callable[[int], int | None] | None = None,
) -> Incremental:
    """A reconstruction from two registered cameras, or from more, with the lenses as `start` has them.

    points2d (M,2) px; camera_index, point_index (M,), at most one observation of a point by a camera. threshold: pixels
    within which an observation agrees. parallax: degrees; a point is found if a ray is half of it away from their mean,
    or more. fewest: so many points must agree on a camera. refine: called after each camera, and `rounds` times at the
    end; None places all cameras anew on the points. A camera that no RANSAC can place is not `registered`.
    callback(count) is told how many cameras are. Raises ValueError naming the argument for wrong shapes or indices.
    """
    check_tracks(points2d, camera_index, point_index, start.bundle.K, start.bundle.distortion)
    scene = _Scene(points2d, camera_index, point_index, model, threshold, parallax, fewest, generator)
    refine = partial(_resect_all, scene) if refine is None else refine
    state = _improve(scene, _triangulate(scene, start), refine)
    while (larger := _add_camera(scene, state)) is not None:
        state = _improve(scene, _triangulate(scene, larger), refine)
        if callback is not None:
            callback(int(state.registered.sum()))
    for _ in range(rounds):
        state = _improve(scene, state, refine)
    return state


def check_tracks(
    x: Tensor, camera: Tensor, point: Tensor, K: Tensor, distortion: Tensor | None
) -> tuple[Tensor, Tensor]:
    """K (V,3,3) and distortion (V,k), once tracks are found to be in order."""
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


def _add_camera(scene: _Scene, state: Incremental) -> Incremental | None:
    """One camera more: of those that can be placed the one that sees most of the points; None where there is none."""
    known = state.found[scene.point] & ~state.registered[scene.camera]
    bundle = state.bundle
    count = torch.bincount(scene.camera[known], minlength=len(bundle.K))
    for v in count.argsort(descending=True, stable=True)[: int((count >= scene.fewest).sum())]:
        rows = known & (scene.camera == v)
        seen = scene.points2d[rows][None], bundle.points3d[scene.point[rows]][None], bundle.K[v][None]
        placed = pnp_ransac(
            *seen, distortion=bundle.distortion[v][None], threshold=_WIDE * scene.threshold, model=scene.model,
            kernel=geman_mcclure(scene.threshold), generator=scene.generator,
        )  # fmt: skip
        if placed.converged and placed.inliers.sum() >= scene.fewest:
            this = torch.arange(len(count), device=v.device) == v
            poses = torch.where(this[:, None, None], placed.x, bundle.world_to_camera)
            larger = bundle._replace(world_to_camera=poses)
            return state._replace(bundle=larger, registered=state.registered | this)
    return None


def _resect_all(scene: _Scene, bundle: Bundle, inlier: Tensor) -> Bundle:
    """The least that `refine` can do: all poses anew, in one batch, by robust PnP from the inliers."""
    pose, points3d, K, lens = bundle[:4]
    x, mask = as_table(scene.points2d[inlier], scene.camera[inlier], scene.point[inlier], len(K), len(points3d))
    kernel = cauchy(scene.threshold / 2)
    solution = pnp(x, points3d, K, distortion=lens, mask=mask, init=pose, model=scene.model, kernel=kernel)
    return bundle._replace(world_to_camera=torch.where(solution.converged[:, None, None], solution.x, pose))


def _improve(scene: _Scene, state: Incremental, refine: Refine) -> Incremental:
    """Refined, and triangulated anew."""
    refined, given = refine(state.bundle, state.inlier), state.bundle.world_to_camera
    poses = torch.where(state.registered[:, None, None], refined.world_to_camera, given)
    return _triangulate(scene, state._replace(bundle=refined._replace(world_to_camera=poses)))


def _triangulate(scene: _Scene, state: Incremental) -> Incremental:
    """The points anew, all that two registered cameras agree on, and `found` and `inlier` with them.

    The best (MSAC score) of the old point and 16 pairs of rays, and the minimum next to it.
    """
    pose, old, K, distortion = state.bundle[:4]
    N, (rays, usable) = len(old), scene.rays(state.bundle)
    rows = (usable & state.registered[scene.camera]).nonzero().flatten()
    rows = rows[scene.point[rows].argsort(stable=True)]
    camera, point, x, model = scene.camera[rows], scene.point[rows], scene.points2d[rows], scene.model
    R, t, bound = pose[camera, :3, :3], pose[camera, :3, 3:], scene.threshold**2
    rays, eye = R.mT @ rays[rows, :, None], torch.eye(3).to(x)
    across = eye - rays @ rays.mT
    to_ray = across @ -(R.mT @ t)  # across @ (X - centre) = 0 on the ray

    def msac(s: Tensor) -> tuple[Tensor, Tensor]:
        return s.clamp(max=bound), (s < bound).to(s)

    lenses = K[camera], distortion[camera], model
    seen = Points(x, point, pose[camera], *lenses, N, msac)
    count, best = torch.bincount(point, minlength=N), seen.at(old)
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
    inlier = torch.zeros_like(usable).index_put((rows,), agree & found[point])
    points3d = torch.where(found[:, None], points3d, 0)
    return state._replace(bundle=state.bundle._replace(points3d=points3d), found=found, inlier=inlier)
