"""What `geometry.bundle` is given, checked and numbered."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.problem import Bundle, Prior
from geometry.camera import Model
from geometry.checks import check_tensors_or_none, indices, values
from geometry.lenses import LENSES, check_distortion

__all__ = ["check_prior", "check_scene", "components", "determining", "free_names", "lay_out"]


def check_scene(
    world_to_camera: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor | None, index: Tensor | None, model: Model
) -> tuple[Bundle, Tensor]:
    """What is given as a `Bundle` with one row of intrinsics for each of the C cameras, and the index (V,) of views."""
    V, N = len(world_to_camera), len(points3d)
    if world_to_camera.shape != (V, 4, 4):
        raise ValueError(f"world_to_camera must have shape (V,4,4), got {tuple(world_to_camera.shape)}")
    if points3d.shape != (N, 3):
        raise ValueError(f"points3d must have shape (N,3), got {tuple(points3d.shape)}")
    K = K[None] if K.ndim == 2 else K
    C = len(K)
    if K.shape != (C, 3, 3):
        raise ValueError(f"K must have shape (3,3) or (C,3,3), got {tuple(K.shape)}")
    distortion = K.new_zeros(C, 0) if distortion is None else distortion
    distortion = distortion.expand(C, -1) if distortion.ndim == 1 else distortion
    if distortion.ndim != 2 or len(distortion) != C:
        raise ValueError(f"distortion must have shape (k,) or ({C},k), got {tuple(distortion.shape)}")
    check_distortion(distortion, model)
    if index is None:
        if C not in (1, V):
            raise ValueError(f"K must have size 1 or {V} (the views) without intrinsics_index, got {C}")
        index = torch.arange(V, device=K.device) if C == V else torch.zeros(V, dtype=torch.long, device=K.device)
    indices("intrinsics_index", index)
    if index.shape != (V,) or (V and (int(index.min()) < 0 or int(index.max()) >= C)):
        raise ValueError(f"intrinsics_index must have shape ({V},) and values 0 … {C - 1}, got {tuple(index.shape)}")
    given = Bundle(world_to_camera, points3d, K, distortion)
    values(
        world_to_camera=(world_to_camera, "pose"), points3d=(points3d, "finite"), K=(K, "camera"),
        distortion=(distortion, "finite"),
    )  # fmt: skip
    return given, index.long()


def check_prior(prior: Any) -> None:
    """Raise ValueError unless this is a prior of tensors, where nothing is without its weights, nor weights alone."""
    if not isinstance(prior, Prior):
        raise ValueError(f"prior must be a Prior, got {type(prior).__name__}")
    check_tensors_or_none(**{f"prior.{name}": value for name, value in prior._asdict().items()})
    names = iter(prior._fields)
    for known, weights in zip(names, names, strict=True):
        alone = [name for name in (known, weights) if getattr(prior, name) is not None]
        if len(alone) == 1:
            other = weights if alone[0] == known else known
            raise ValueError(f"prior.{alone[0]} must come with prior.{other}, got it alone")


def free_names(free: Sequence[str], coefficients: int, model: Model) -> tuple[str, ...]:
    """The free intrinsics among `free`, checked."""
    known = ("poses", "points", "f", "fx", "fy", "cx", "cy", *LENSES[model].names[:coefficients])
    if (
        isinstance(free, str)
        or not isinstance(free, Iterable)
        or not set(free) <= set(known)
        or len(set(free)) < len(free)
    ):
        raise ValueError(f"free must hold names among {known} (distortion has {coefficients}), each once, got {free!r}")
    if "f" in free and ("fx" in free or "fy" in free):
        raise ValueError(f'free may hold "f" or "fx" and "fy", not both, got {free!r}')
    return tuple(name for name in free if name not in ("poses", "points"))


def determining(view: Tensor, point: Tensor, seen: Tensor, known_pose: Tensor, known_point: Tensor) -> Tensor:
    """Observations (M,) that are left when points and views are taken away that they cannot determine.

    A point has three unknowns and a view six; of each other they see two numbers, less where only one component is
    `seen` (M,2), and no more where the same is observed several times.
    """
    N = len(known_point)
    pairs, which = torch.unique(view * N + point, return_inverse=True)
    numbers = seen.new_zeros(len(pairs), 2, dtype=torch.long).index_add_(0, which, seen.long()).clamp_max(1).sum(1)
    view, point = pairs // max(1, N), pairs % max(1, N)

    def few(of: Tensor, known: Tensor, unknowns: int) -> Tensor:
        count = numbers.new_zeros(len(known)).index_add_(0, of, numbers)
        return ((count < unknowns) & ~known)[of]

    while True:
        fewer = torch.where(few(view, known_pose, 6) | few(point, known_point, 3), 0, numbers)
        if bool((fewer == numbers).all()):
            return (numbers > 0)[which] & seen.any(1)
        numbers = fewer


def components(view: Tensor, point: Tensor, views: int, points: int) -> Tensor:
    """Which part of the scene each view (V,) belongs to: parts are numbered from 0, and share no point; -1: none.

    Labels run along the observations and, as trees of them are flattened at each step, in few steps through long
    chains (Shiloach and Vishkin 1982).
    """
    label = torch.arange(views, device=view.device)
    while True:
        lowest = label.new_full((points,), views).scatter_reduce(0, point, label[view], "amin")
        lower = label.scatter_reduce(0, view, lowest[point], "amin")
        lower = lower.scatter_reduce(0, label, lower, "amin")
        lower = lower[lower]
        if torch.equal(lower, label):
            break
        label = lower
    seen = torch.bincount(view, minlength=views) > 0
    part = torch.full_like(label, -1)
    part[seen] = torch.unique(label[seen], return_inverse=True)[1]
    return part


def lay_out(
    view: Tensor,
    point: Tensor,
    still: tuple[Tensor, Tensor],
    known: tuple[Tensor, Tensor],
    index: Tensor,
    free_intrinsics: int,
) -> Layout:
    """Number the camera unknowns: those of a view that nobody shares side by side, shared intrinsics at the end.

    still, known: poses (V,) and points (N,) that are fixed, and that a prior determines, seen or not.
    """
    V, P, device = len(still[0]), free_intrinsics, view.device
    seen = torch.bincount(view, minlength=V) > 0
    users = torch.bincount(index[seen], minlength=int(index.max()) + 1 if V else 0)
    own = (users == 1)[index] & seen if P else torch.zeros_like(seen)
    pose_free = (seen | known[0]) & ~still[0]
    width = 6 * pose_free + P * own
    start = width.cumsum(0) - width
    size = int(width.sum())
    groups = (users > 1).nonzero().flatten() if P else index[:0]
    total = size + P * len(groups)
    rows = torch.full((V, 6 + P), total, device=device)
    rows[:, :6] = torch.where(pose_free[:, None], start[:, None] + torch.arange(6, device=device), total)
    kappa = torch.where(own, start + 6 * pose_free, total)
    place = torch.full_like(users, total)
    place[groups] = size + P * torch.arange(len(groups), device=device)
    kappa = torch.where(seen & ~own, place[index], kappa) if P else kappa
    rows[:, 6:] = torch.where(kappa[:, None] < total, kappa[:, None] + torch.arange(P, device=device), total)
    # blocks of equal width for the preconditioner
    blocks = [
        start[width == w][:, None] + torch.arange(w, device=device) for w in torch.unique(width).tolist() if w > 0
    ]
    if len(groups):
        blocks.append(torch.arange(size, total, device=device).view(-1, P))
    held = still[1] | ~(known[1] | (torch.bincount(point, minlength=len(known[1])) > 0))
    return Layout(view, point, rows, total, tuple(blocks), held)
