"""How far the pose of an object is from the truth, as the literature measures it, one number a pose.

Poses (B,4,4) are object to camera; lengths are in the unit of the translations and of points3d, millimetres as in BOP.
All poses of a call are of one object: points3d (N,3), the vertices of its mesh, and symmetries (S,4,4), the motions of
it that nobody can see, identity first. dtype and device follow the input.

A pose that does not exist, because its solver failed, is NaN and infinitely wrong. So is one that puts points of the
object behind the camera, where a distance in the picture is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from geometry import se3

__all__ = ["FRACTIONS", "add", "adds", "mspd", "mssd", "projection_error", "rotation_translation_error", "vsd"]

FRACTIONS = tuple(0.05 + 0.05 * k for k in range(10))
"""0.05, 0.1, …, 0.5: BOP's misalignment tolerances and thresholds of correctness, rounded as the benchmark's own."""

CHUNK = 2**16
"""Distances held at once: sampled rotations times a mesh's vertices times poses would fill the memory."""


def add(pose: Tensor, pose_gt: Tensor, points3d: Tensor) -> Tensor:
    """Mean distance between a point where it is and where it should be (B,): ADD of Hinterstoisser et al., ACCV 2012.

    Raises ValueError, as all measures do, naming an argument of a wrong shape or dtype, or a truth that is not finite.
    """
    _check(pose, pose_gt, points3d)
    return _least(pose, pose_gt, points3d, None, None, torch.mean)


def adds(pose: Tensor, pose_gt: Tensor, points3d: Tensor) -> Tensor:
    """Mean distance from where a point should be to the nearest point (B,): ADD-S of Hinterstoisser et al., ACCV 2012.

    For objects that look the same from several sides. Exact, by a k-d tree on the host. Raises as `add`.
    """
    from scipy.spatial import cKDTree

    _check(pose, pose_gt, points3d)
    found = torch.full_like(pose[:, 0, 0], math.inf)
    for i in pose.isfinite().flatten(1).all(1).nonzero().ravel().tolist():
        there, wanted = (se3.transform(some[i], points3d).detach().cpu().numpy() for some in (pose, pose_gt))
        found[i] = float(cKDTree(there).query(wanted)[0].mean())
    return found


def projection_error(
    pose: Tensor, pose_gt: Tensor, points3d: Tensor, K: Tensor, symmetries: Tensor | None = None
) -> Tensor:
    """Mean distance in pixels between points' projections (B,): Brachmann et al., CVPR 2016 (correct below 5 px).

    K (3,3) or (B,3,3). With symmetries, the least over the truths that look the same. Raises as `add`.
    """
    _check(pose, pose_gt, points3d, symmetries, K)
    return _least(pose, pose_gt, points3d, symmetries, K, torch.mean)


def mssd(pose: Tensor, pose_gt: Tensor, points3d: Tensor, symmetries: Tensor | None = None) -> Tensor:
    """Maximum symmetry-aware surface distance (B,): largest over the points, least over the truths that look the same.

    Hodan et al., BOP Challenge 2020 on 6D object localization (ECCV Workshops 2020). Raises as `add`.
    """
    _check(pose, pose_gt, points3d, symmetries)
    return _least(pose, pose_gt, points3d, symmetries, None, torch.amax)


def mspd(pose: Tensor, pose_gt: Tensor, points3d: Tensor, K: Tensor, symmetries: Tensor | None = None) -> Tensor:
    """Maximum symmetry-aware projection distance (B,) in pixels, as `mssd` in the picture. K (3,3) or (B,3,3)."""
    _check(pose, pose_gt, points3d, symmetries, K)
    return _least(pose, pose_gt, points3d, symmetries, K, torch.amax)


def rotation_translation_error(
    pose: Tensor, pose_gt: Tensor, symmetries: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Angle in degrees and distance in the translation's unit, (B,) each: Shotton et al., CVPR 2013 (5 cm, 5 degrees).

    With symmetries, both are to the truth of the least angle, of all that look the same. Raises as `add`.
    """
    _check(pose, pose_gt, None, symmetries)
    truth = _truths(pose_gt, symmetries)
    exists = pose.isfinite().flatten(1).all(1)
    some = pose.where(exists[:, None, None], pose_gt)[:, None]
    angles, nearest = se3.rotation_angle(some[..., :3, :3] @ truth[..., :3, :3].mT).min(dim=1)
    t = truth[..., :3, 3].take_along_dim(nearest[:, None, None], dim=1)
    distances = (some[..., :3, 3] - t).norm(dim=-1).squeeze(1)
    return angles.rad2deg().where(exists, math.inf), distances.where(exists, math.inf)


def vsd(
    depth: Tensor,
    depth_gt: Tensor,
    depth_test: Tensor,
    K: Tensor,
    diameter: float,
    *,
    delta: float = 15.0,
    taus: Sequence[float] = FRACTIONS,
) -> Tensor:
    """Visible surface discrepancy (…,T) for T tolerances in diameters: Hodan et al., ECCV 2018.

    depth, depth_gt (…,H,W): the object alone, rendered in the estimated and in the true pose, along z and 0 where it is
    not; depth_test (…,H,W): what the sensor saw, 0 where it saw nothing. K (…,3,3), (0, 0) the top-left pixel's centre.
    The surface is visible where it is at most delta behind what was seen, and where nothing was seen (the benchmark's
    rule since 2019); the estimate's also where the truth's is. A pixel of only one visible surface costs 1, as does one
    where the two are tau or more apart along the ray; the mean is over all pixels of either. 1 where neither is seen.

    Raises ValueError naming the argument for a wrong shape or dtype, and for a diameter that is not positive.
    """
    for name, image in (("depth_gt", depth_gt), ("depth_test", depth_test), ("depth", depth)):
        if image.ndim < 2 or image.shape[-2:] != depth.shape[-2:] or image.dtype != K.dtype:
            wanted = f"(…, {', '.join(map(str, depth.shape[-2:]))}), as depth, and K's dtype {K.dtype}"
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(image.shape)}, {image.dtype}")
    if K.shape[-2:] != (3, 3):
        raise ValueError(f"K must have shape (…, 3, 3), got {tuple(K.shape)}")
    if not diameter > 0:
        raise ValueError(f"diameter must be positive, got {diameter}")
    rows, columns = (torch.arange(n, dtype=K.dtype, device=K.device) for n in depth.shape[-2:])
    x = (columns - K[..., 0, 2, None]) / K[..., 0, 0, None]
    y = (rows - K[..., 1, 2, None]) / K[..., 1, 1, None]
    along_ray = (1 + x.square()[..., None, :] + y.square()[..., None]).sqrt()
    test, truth, there = (image * along_ray for image in (depth_test, depth_gt, depth))
    seen_gt = (truth > 0) & ((truth - test <= delta) | (test == 0))
    seen = (there > 0) & ((there - test <= delta) | (test == 0) | seen_gt)
    both, either = seen & seen_gt, (seen | seen_gt).sum((-2, -1))
    apart = (there - truth).abs() / diameter
    agree = torch.stack([(both & (apart < tau)).sum((-2, -1)) for tau in taus], -1)
    either = either[..., None]
    return torch.where(either > 0, (either - agree).to(K.dtype) / either, 1.0)


def _least(
    pose: Tensor,
    pose_gt: Tensor,
    points3d: Tensor,
    symmetries: Tensor | None,
    K: Tensor | None,
    over_points: Callable[..., Tensor],
) -> Tensor:
    """(B,) the mean or the largest distance of the points, in space or with K in the picture, least of all truths."""
    found = []
    coordinates = points3d.mT.contiguous()  # rows of x, of y and of z: several times as fast as rows of points
    for i, truths in enumerate(_truths(pose_gt, symmetries)):
        camera = K if K is None or K.ndim == 2 else K[i]
        there = _seen(pose[i], coordinates, camera)
        some = truths.split(max(1, CHUNK // len(points3d)))
        errors = [over_points(_apart(_seen(truth, coordinates, camera), there), -1) for truth in some]
        found.append(torch.cat(errors).amin())
    least = torch.stack(found) if found else pose.new_empty(0)
    return least.where(~least.isnan(), math.inf)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square_().sum(-2).sqrt_()


def _truths(pose_gt: Tensor, symmetries: Tensor | None) -> Tensor:
    """All poses (B,S,4,4) that look like the true one."""
    return pose_gt[:, None] if symmetries is None else pose_gt[:, None] @ symmetries


def _seen(pose: Tensor, coordinates: Tensor, K: Tensor | None) -> Tensor:
    """Points (3,N) in the camera's frame (…,3,N) or, with K, in the picture (…,2,N) and NaN behind the camera."""
    matrix = pose[..., :3, :] if K is None else K @ pose[..., :3, :]
    points = matrix[..., :3] @ coordinates + matrix[..., 3:]
    if K is None:
        return points
    z = points[..., 2:, :]
    return points[..., :2, :] / z.where(z > 0, math.nan)


def _check(
    pose: Tensor,
    pose_gt: Tensor,
    points3d: Tensor | None = None,
    symmetries: Tensor | None = None,
    K: Tensor | None = None,
) -> None:
    """Raise ValueError for a shape or dtype that does not go with pose's, and for what must be finite and is not."""
    B = len(pose) if pose.ndim else 1
    shapes: dict[str, tuple[Tensor | None, list[tuple[int | str, ...]]]] = {
        "pose": (pose, [(B, 4, 4)]),
        "pose_gt": (pose_gt, [(B, 4, 4)]),
        "points3d": (points3d, [("N", 3)]),
        "symmetries": (symmetries, [("S", 4, 4)]),
        "K": (K, [(3, 3), (B, 3, 3)]),
    }
    for name, (value, wanted) in shapes.items():
        if value is None:
            continue
        given = tuple(value.shape)
        fits = any(
            len(w) == len(given) and all(b if isinstance(a, str) else a == b for a, b in zip(w, given, strict=True))
            for w in wanted
        )
        if not fits or value.dtype != pose.dtype or not value.is_floating_point():
            either = " or ".join(str(w).replace("'", "") for w in wanted)
            raise ValueError(f"{name} must have shape {either} and pose's dtype, got {given}, {value.dtype}")
        if name != "pose" and not value.isfinite().all():
            raise ValueError(f"{name} must be finite, got a number that is not")
