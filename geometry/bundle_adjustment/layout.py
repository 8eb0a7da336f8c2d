"""What `geometry.bundle` is given, checked and numbered."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.problem import Bundle, Prior
from geometry.bundle_adjustment.rigs import Rig
from geometry.bundle_adjustment.shutter import Shutter
from geometry.camera import Model
from geometry.checks import boolean, check_tensors, check_tensors_or_none, indices, leading, misshapen, shaped, values
from geometry.lenses import LENSES, check_distortion

__all__ = [
    "check_bearings",
    "check_prior",
    "check_range",
    "check_rig",
    "check_scene",
    "check_shutter",
    "components",
    "determining",
    "free_names",
    "lay_out",
]


def check_rig(
    rig_index: Tensor | None,
    sensor_index: Tensor | None,
    sensor_from_rig: Tensor | None,
    fixed_sensors: Tensor | None,
    frames: int,
    free: Sequence[str],
) -> Rig | None:
    """How views are mounted, None where nothing is said of it. frames: F, how many poses there are."""
    given = (rig_index, sensor_index, sensor_from_rig)
    if rig_index is None or sensor_index is None or sensor_from_rig is None:
        if any(t is not None for t in (*given, fixed_sensors)) or "sensors" in free:
            raise ValueError(
                "rig_index, sensor_index and sensor_from_rig must come together, and with them fixed_sensors and the "
                f'name "sensors" in free, got {[None if t is None else tuple(t.shape) for t in given]}'
            )
        return None
    check_tensors(sensor_from_rig=sensor_from_rig)
    V, S = len(rig_index), len(sensor_from_rig)
    if sensor_from_rig.shape != (S, 4, 4) or S == 0:
        raise ValueError(f"sensor_from_rig must have shape (S,4,4), S > 0, got {tuple(sensor_from_rig.shape)}")
    for name, index, size in (("rig_index", rig_index, frames), ("sensor_index", sensor_index, S)):
        _check_owners(name, index, V, size)
    values(sensor_from_rig=(sensor_from_rig, "pose"))
    if fixed_sensors is None:
        fixed_sensors = torch.arange(S, device=rig_index.device) == 0
    boolean("fixed_sensors", fixed_sensors)
    if fixed_sensors.shape != (S,):
        raise ValueError(f"fixed_sensors must have shape ({S},), got {tuple(fixed_sensors.shape)}")
    fixed = fixed_sensors | ("sensors" not in free)
    return Rig(rig_index.long(), sensor_index.long(), fixed, not bool(fixed.all()))


def check_bearings(bearings: Tensor, K: Tensor | None, distortion: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Zero pixels (M,2), the bearings (M,3), and the identity for K: every bearing is the axis of a fisheye."""
    if not (K is None and distortion is None):
        raise ValueError('K and distortion must be None with model="ray", as bearings have no camera, got a tensor')
    if bearings.ndim != 2 or bearings.shape[1] != 3:
        wanted = '(M,3), bearings, with model="ray"'
        raise misshapen("points2d", bearings, wanted, lambda shape: len(shape) == 2 and shape[1] == 3)
    values(points2d=(bearings, "finite"))
    if not bool((bearings != 0).any(-1).all()):
        raise ValueError("points2d must hold bearings of a length above zero, got one of zero")
    eye = torch.eye(3, dtype=bearings.dtype, device=bearings.device)
    return bearings.new_zeros(len(bearings), 2), bearings, eye


def _check_owners(name: str, index: Tensor, views: int, size: int) -> None:
    """Raise ValueError unless there is one of `size` owners for each view."""
    indices(name, index)
    if index.shape != (views,):
        raise ValueError(f"{name} must have shape ({views},), one for each view, got {tuple(index.shape)}")
    check_range(name, index, size)


def check_range(name: str, index: Tensor, size: int) -> None:
    """Raise ValueError unless each index is that of one of `size` things."""
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
        raise ValueError(f"{name} must lie in 0 … {size - 1}, got {int(index.min())} … {int(index.max())}")


def check_shutter(
    times: Tensor | None, velocity: Tensor | None, scene: Bundle, free: Sequence[str], rig: Rig | None
) -> tuple[Bundle, Shutter | None]:
    """The scene with velocities (F,6), zero where none are given, and what is sought of them; None without times."""
    if times is None:
        if velocity is not None or {"velocities", "readout"} & set(free):
            raise ValueError('velocity, and "velocities" and "readout" in free, must come with times, got no times')
        return scene, None
    check_tensors_or_none(times=times, velocity=velocity)
    frames = len(scene.world_to_camera)
    velocity = scene.points3d.new_zeros(frames, 6) if velocity is None else velocity
    velocity = leading("velocity", velocity, frames, (6,)).expand(frames, 6)
    values(velocity=(velocity, "finite"))
    if rig is not None and scene.sensor_from_rig is not None:
        at_origin = rig.fixed & (scene.sensor_from_rig[:, :3, 3] == 0).all(-1)
        if not at_origin.any():
            raise ValueError("fixed_sensors must hold a sensor at the rig's origin where times are given, got none")
    return scene._replace(velocity=velocity, readout=velocity.new_ones(1)), Shutter(
        "velocities" in free, "readout" in free
    )


def check_scene(given: Bundle, index: Tensor | None, model: Model, rig: Rig | None) -> tuple[Bundle, Tensor]:
    """What is given with one row of intrinsics for each of the C cameras, and the index (V,) of views.

    The K given may be (3,3), the distortion (k,).
    """
    world_to_camera, points3d, K, distortion = given[:4]
    F = len(world_to_camera)
    V = F if rig is None else len(rig.frame)
    if world_to_camera.shape != (F, 4, 4):
        raise ValueError(f"world_to_camera must have shape (V,4,4), got {tuple(world_to_camera.shape)}")
    shaped(points3d=(points3d, "N,3"))
    K = K[None] if K.ndim == 2 else K
    C = len(K)
    if K.shape != (C, 3, 3):
        raise ValueError(f"K must have shape (3,3) or (C,3,3), got {tuple(K.shape)}")
    distortion = leading("distortion", distortion, C, distortion.shape[-1:]).expand(C, -1)
    check_distortion(distortion, model)
    if index is None:
        which = torch.arange(V, device=K.device) if rig is None else rig.sensor
        owners, all_of_them = (V, "views") if rig is None else (len(rig.fixed), "sensors")
        if C not in (1, owners):
            raise ValueError(f"K must have size 1 or {owners} (the {all_of_them}) without intrinsics_index, got {C}")
        index = which if owners == C else torch.zeros_like(which)
    _check_owners("intrinsics_index", index, V, C)
    values(
        world_to_camera=(world_to_camera, "pose"), points3d=(points3d, "finite"), K=(K, "camera"),
        distortion=(distortion, "finite"),
    )  # fmt: skip
    return given._replace(K=K, distortion=distortion), index.long()


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
    unknowns = ("poses", "points", "sensors", "velocities", "readout")
    known = (*unknowns, "f", "fx", "fy", "cx", "cy", "skew", *LENSES[model].names[:coefficients])
    if (
        isinstance(free, str)
        or not isinstance(free, Iterable)
        or not set(free) <= set(known)
        or len(set(free)) < len(free)
    ):
        raise ValueError(f"free must hold names among {known} (distortion has {coefficients}), each once, got {free!r}")
    if "f" in free and ("fx" in free or "fy" in free):
        raise ValueError(f'free may hold "f" or "fx" and "fy", not both, got {free!r}')
    return tuple(name for name in free if name not in unknowns)


def determining(
    view: Tensor, point: Tensor, seen: Tensor, unknowns: tuple[Tensor, Tensor, Tensor], rig: Rig | None
) -> Tensor:
    """Observations (M,) that are left when points, poses and mountings are taken away that they cannot determine.

    A view and a point see two numbers of each other, less where only one component is `seen` (M,2), and no more where
    the same is observed several times. unknowns: how many there are to determine of poses (F,), points (N,), mountings
    (S,).
    """
    of_pose, of_point, of_sensor = unknowns
    N = len(of_point)
    pairs, which = torch.unique(view * N + point, return_inverse=True)
    numbers = seen.new_zeros(len(pairs), 2, dtype=torch.long).index_add_(0, which, seen.long()).clamp_max(1).sum(1)
    view, point = pairs // max(1, N), pairs % max(1, N)
    frame = view if rig is None else rig.frame[view]

    def few(of: Tensor, unknowns: Tensor) -> Tensor:
        count = numbers.new_zeros(len(unknowns)).index_add_(0, of, numbers)
        return (count < unknowns)[of]

    while True:
        too_few = few(frame, of_pose) | few(point, of_point)
        if rig is not None:
            too_few |= few(rig.sensor[view], of_sensor)
        fewer = torch.where(too_few, 0, numbers)
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
    known: tuple[Tensor, Tensor, Tensor],
    index: Tensor,
    free_intrinsics: int,
    *,
    rig: Rig | None,
    shutter: Shutter | None,
) -> Layout:
    """Number the camera unknowns: those of a pose, of the one view that has it, and of its velocity, side by side; at
    the end what views share otherwise, intrinsics, then mountings, then the readout.

    still, known: poses (F,), points (N,) and mountings (S,) that are fixed, and that a prior determines, seen or not;
    mountings that are fixed tells the rig.
    """
    V, F, P, device = len(index), len(still[0]), free_intrinsics, view.device
    frame = torch.arange(V, device=device) if rig is None else rig.frame
    seen = torch.bincount(view, minlength=V) > 0
    users = torch.bincount(index[seen], minlength=int(index.max()) + 1 if V else 0)
    views = torch.bincount(frame, minlength=F)
    own = (users == 1)[index] & (views == 1)[frame] & seen if P else torch.zeros_like(seen)
    there = _any(seen, frame, F)
    pose_free = (there | (known[0] & (views > 0))) & ~still[0]
    moving = there & (shutter is not None and shutter.velocities)
    before = 6 * pose_free + P * _any(own, frame, F)
    width = before + 6 * moving
    start = width.cumsum(0) - width
    size = int(width.sum())
    shared = users > 0
    shared[index[own]] = False
    groups = shared.nonzero().flatten() if P else index[:0]
    mounted = index[:0]
    if rig is not None and rig.moving:
        S = len(rig.fixed)
        there = _any(seen, rig.sensor, S) | (known[2] & (torch.bincount(rig.sensor, minlength=S) > 0))
        mounted = (there & ~rig.fixed).nonzero().flatten()
    sensors = size + P * len(groups)
    readout = sensors + 6 * len(mounted)
    total = readout + (shutter is not None and shutter.readout and len(view) > 0)

    def columns(begin: Tensor, count: int) -> Tensor:
        """(V,count): so many columns from there on, or nowhere."""
        return torch.where(begin[:, None] < total, begin[:, None] + torch.arange(count, device=device), total)

    rows = [columns(torch.where(pose_free, start, total)[frame], 6)]
    if P:
        place = torch.full_like(users, total)
        place[groups] = size + P * torch.arange(len(groups), device=device)
        beside = (start + 6 * pose_free)[frame]
        rows.append(columns(torch.where(own, beside, torch.where(seen, place[index], total)), P))
    if rig is not None and rig.moving:
        place = torch.full((len(rig.fixed),), total, device=device)
        place[mounted] = sensors + 6 * torch.arange(len(mounted), device=device)
        rows.append(columns(place[rig.sensor], 6))
    if shutter is not None and shutter.velocities:
        rows.append(columns(torch.where(moving, start + before, total)[frame], 6))
    if shutter is not None and shutter.readout:
        rows.append(torch.full((V, 1), readout, device=device))
    # blocks of equal width for the preconditioner
    blocks = [
        start[width == w][:, None] + torch.arange(w, device=device) for w in torch.unique(width).tolist() if w > 0
    ]
    for begin, end, count in ((size, sensors, P), (sensors, readout, 6), (readout, total, 1)):
        if end > begin:
            blocks.append(torch.arange(begin, end, device=device).view(-1, count))
    held = still[1] | ~(known[1] | (torch.bincount(point, minlength=len(known[1])) > 0))
    return Layout(view, point, torch.cat(rows, 1), total, tuple(blocks), held)


def _any(what: Tensor, group: Tensor, groups: int) -> Tensor:
    """Whether it is so (n,) of any of a group: (groups,)."""
    return what.new_zeros(groups).index_put_((group[what],), what.new_ones(()))
