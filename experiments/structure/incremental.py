"""A first reconstruction from tracks: two cameras by their essential matrix, the others camera after camera."""

from typing import NamedTuple

import torch
from torch import Tensor

from datasets.progress import progress
from geometry import Bundle, align_similarity, se3, unproject
from geometry.camera import Model
from geometry.reconstruction import Incremental, Refine, check_tracks, grow

__all__ = ["compare", "reconstruct"]


class _Pair(NamedTuple):
    """What the first two cameras must be like: arguments of `reconstruct`."""

    model: Model
    threshold: float
    parallax: float
    fewest: int


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
    start: Incremental | None = None,
    rounds: int = 4,
    seed: int = 0,
) -> Incremental:
    """Cameras and points from tracks and intrinsics, which `refine` may improve.

    points2d (M,2) px; camera_index, point_index (M,), at most one observation of a point by a camera; K (V,3,3), or
    (3,3) for all that camera_index names; distortion (V,k) or (k,) of `model`. threshold: pixels within which an
    observation agrees. parallax: degrees; a point is found if a ray is half of it away from their mean, or more.
    fewest: so many points must agree on a camera. refine: called after each camera, and `rounds` times at the end;
    None places all cameras anew on the points. start: a reconstruction to go on from, with the lenses as given now.
    seed: the same gives the same output.

    A camera that no RANSAC can place is not `registered`. Raises ValueError naming the argument for wrong shapes or
    indices, and where no two cameras share points enough to start from.
    """
    K, distortion = check_tracks(points2d, camera_index, point_index, K, distortion)
    generator = torch.Generator(points2d.device).manual_seed(seed)
    if start is None:
        start = _first_pair(
            points2d, camera_index, point_index, K, distortion, _Pair(model, threshold, parallax, fewest)
        )
    start = start._replace(bundle=start.bundle._replace(K=K, distortion=distortion))
    bar = progress(range(len(K)), "placing cameras")
    return grow(
        points2d, camera_index, point_index, start, model=model, threshold=threshold, parallax=parallax, fewest=fewest,
        refine=refine, rounds=rounds, generator=generator, callback=lambda placed: next(bar, None),
    )  # fmt: skip


def _first_pair(
    points2d: Tensor, camera: Tensor, point: Tensor, K: Tensor, distortion: Tensor, wanted: _Pair
) -> Incremental:
    """The poses of the two cameras with the most points whose rays meet at a good angle, and no points yet."""
    import cv2

    V, N, eye = len(K), int(point.max()) + 1, torch.eye(3, dtype=torch.float64).numpy()
    poses = torch.eye(4).repeat(V, 1, 1).to(K)
    bundle = Bundle(poses, K.new_zeros(N, 3), K, distortion)
    rays, usable = unproject(points2d[:, None], K[camera], distortion[camera], model=wanted.model)
    rays, usable = rays.squeeze(1), usable.squeeze(1)
    row = torch.full((V, N), -1)  # which observation a camera has of a point
    pinhole = usable & (rays[:, 2] > 0.1)  # up to 84 degrees off the axis, or the plane z = 1 is too far
    row[camera[pinhole], point[pinhole]] = pinhole.nonzero().flatten().cpu()
    best, start, pair = 0.0, torch.eye(4), [0, 0]
    for i, j in torch.combinations(torch.arange(V)).tolist():
        both = (row[i] >= 0) & (row[j] >= 0)
        if both.sum() < max(wanted.fewest, best):
            continue
        a, b = (rays[row[v, both]].double().cpu() for v in (i, j))
        one, other = ((d[:, :2] / d[:, 2:]).numpy() for d in (a, b))
        # Measured: three times as accurate as USAC_MAGSAC. With 2 px, narrow views get motions 10 degrees wrong.
        tolerance = min(0.5 * wanted.threshold, 1.0) / K[[i, j]][:, [0, 1], [0, 1]].mean().item()
        E, inlier = cv2.findEssentialMat(one, other, eye, cv2.USAC_ACCURATE, 0.9999, tolerance)
        if E is None or E.shape != (3, 3):
            continue
        _, *motion, inlier = cv2.recoverPose(E, one, other, eye, mask=inlier)
        R, t, agree = (torch.from_numpy(array) for array in (*motion, inlier[:, 0] > 0))
        angle = (a @ R.mT * b).sum(-1)[agree].clamp(-1, 1).acos().rad2deg()
        # a point is no better for more than four times the parallax that it must have
        score = (angle / (4 * wanted.parallax)).clamp(max=1).sum().item()
        if len(angle) >= wanted.fewest and score > best:
            best, start, pair = score, se3.make(R, t.squeeze(-1)), [i, j]
    if best == 0:
        raise ValueError(f"point_index: two cameras with {wanted.fewest} good points in common wanted, found none")
    registered = torch.zeros(V, dtype=torch.bool)
    poses[pair[1]], registered[pair] = start.to(K), True
    nothing = torch.zeros(N, dtype=torch.bool, device=K.device), torch.zeros_like(usable)
    return Incremental(bundle, registered.to(K.device), *nothing)


def compare(world_to_camera: Tensor, world_to_camera_gt: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of poses (V,4,4), V >= 3, after the similarity that suits their centres best: rotation (V,) in degrees and
    centre (V,) as a share of the largest distance between two true centres."""
    found, true = (se3.centre(pose) for pose in (world_to_camera, world_to_camera_gt))
    to_true = align_similarity(found, true)
    turn = world_to_camera[:, :3, :3] @ to_true.R.mT @ world_to_camera_gt[:, :3, :3].mT
    centre = (to_true.apply(found) - true).norm(dim=-1) / torch.cdist(true, true).max()
    return se3.rotation_angle(turn).rad2deg(), centre
