"""COLMAP's sparse models, text and binary: a folder of `cameras`, `images` and `points3D`, each .txt or .bin.

COLMAP 3.12 and later add `rigs` and `frames` (`datasets.reconstructions.colmap_rigs`), which say what is mounted
together; `images` still has every pose. Ids are arbitrary numbers. What camera models and pixels mean is said in
`geometry.interop.colmap`.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import find_ids
from datasets.files import require_file
from datasets.reconstructions.colmap_rigs import disagreeing, read_rigs, write_rigs
from datasets.reconstructions.colmap_tables import (
    CAMERAS,
    IMAGES,
    NAMES,
    POINTS,
    UNSEEN,
    Table,
    read_table,
    slots,
    write_table,
)
from datasets.reconstructions.model import Reconstruction, pinhole, reprojection_errors
from geometry.camera import Model, matrix_from_intrinsics
from geometry.interop.colmap import LENSES, from_parameters, from_pixels, from_pose, to_parameters, to_pixels, to_pose

__all__ = ["read_colmap", "write_colmap"]


def read_colmap(folder: str | Path) -> Reconstruction:
    """Read a model, the binary one where `folder` has both: V images, C cameras, N points, each in the order of ids.

    Observations are ordered by image; 2D points that show no point are left out. Images, cameras and points that
    nothing refers to are kept. distortion (C,k) is filled with zeros to what the longest camera model needs. rigs are
    read where cameras are mounted together: a sensor is a camera, and other sensors (IMU) are left out.

    Raises FileNotFoundError where one of the three files is missing, and ValueError naming the file and the line or
    byte when one is truncated or too long, holds something that is not a finite number, an id twice or one that is
    nowhere, tracks that disagree with the images' 2D points, frames that disagree with the images' poses, or a camera
    model that `geometry.interop.colmap` has not; or when lenses of one `model` stand beside those of another.
    """
    folder = Path(folder)
    binary = (folder / "cameras.bin").is_file() or not (folder / "cameras.txt").is_file()
    suffix = ".bin" if binary else ".txt"
    paths = [(require_file(folder / (kind.file + suffix)), kind) for kind in (CAMERAS, IMAGES, POINTS)]
    cameras, images, points = (read_table(path, kind) for path, kind in paths)

    intrinsics_index = find_ids(images.heads["camera"], cameras.heads["id"], cameras.error)
    for c in np.flatnonzero((cameras.heads["size"] >= 2**31).any(1))[:1]:
        raise cameras.error(c, f"an image size below 2^31 wanted, found {cameras.heads['size'][c].tolist()}")
    for v in np.flatnonzero(intrinsics_index < 0)[:1]:
        raise images.error(v, f"a camera of `cameras` wanted, found id {images.heads['camera'][v]}")
    length2 = _tensor(images.heads["quat_wxyz"]).square().sum(-1)
    for v in ((length2 == 0) | length2.isinf()).nonzero()[:1, 0].tolist():
        raise images.error(v, f"a quaternion wanted for the pose, found {images.heads['quat_wxyz'][v].tolist()}")
    camera_index, point_index, points2d = _observations(images, points)
    intrinsics, distortion, model, coefficients = _intrinsics(cameras)
    sizes = torch.from_numpy(cameras.heads["size"].astype(np.int64))
    poses = from_pose(images.heads["quat_wxyz"], images.heads["t"])
    rigs = read_rigs(folder, suffix, cameras.heads["id"], images.heads["id"], intrinsics_index)
    for v in disagreeing(rigs, poses)[:1] if rigs else ():
        raise images.error(v, "the pose of its frame and sensor wanted for an image, found another")
    return Reconstruction(
        world_to_camera=poses,
        points3d=_tensor(points.heads["xyz"]),
        K=matrix_from_intrinsics(intrinsics),
        distortion=distortion,
        intrinsics_index=torch.from_numpy(intrinsics_index),
        camera_index=torch.from_numpy(camera_index),
        point_index=torch.from_numpy(point_index),
        points2d=from_pixels(_tensor(points2d)),
        model=model,
        colors=torch.from_numpy(points.heads["color"].copy()),
        names=tuple(images.names or ()),
        image_sizes=sizes if sizes.any() else None,
        rigs=rigs,
        coefficients=coefficients,
    )


def write_colmap(folder: str | Path, reconstruction: Reconstruction, *, binary: bool = True) -> None:
    """Write a model into `folder`, which is made; each file whole or not at all, with all digits, ids from 1.

    Each camera becomes the simplest model that has as many coefficients as `distortion` and holds its values. Without
    names, images are called by their number; a point's error is the mean distance from its observations; unknown
    colours become black and unknown sizes 0 x 0, which `read_colmap` takes for unknown. Files of rigs and frames are
    written where the reconstruction has `rigs`. COLMAP itself cuts a name at a
    space in a text model; in a binary one it does not.

    Raises ValueError naming the reason for what COLMAP cannot say: skew, thin-prism distortion, a pose that is no rigid
    motion, rigs whose sensors are no cameras of their own or that contradict world_to_camera, names that are empty,
    given twice, or have control characters or white space at an end; and where `folder` holds files of another model
    (rigs, frames, the other kind of files), which would be read together with the new ones or instead.
    """
    folder = Path(folder)
    suffix, other = (".bin", ".txt") if binary else (".txt", ".bin")
    names = [kind.file + other for kind in (CAMERAS, IMAGES, POINTS)]
    ends = (suffix, other) if reconstruction.rigs is None else (other,)
    names += [name + end for name in ("rigs", "frames") for end in ends]
    rest = [name for name in names if (folder / name).exists()]
    if rest:
        raise ValueError(f"{folder}: a folder without files of another model wanted, found {', '.join(rest)}")
    rigs = reconstruction.rigs
    for v in disagreeing(rigs, reconstruction.world_to_camera)[:1] if rigs else ():
        raise ValueError(f"world_to_camera[{v}] must be the pose that follows from rigs, got another")
    tables = {CAMERAS: _cameras(reconstruction), IMAGES: _images(reconstruction), POINTS: _points(reconstruction)}
    folder.mkdir(parents=True, exist_ok=True)
    for kind, table in tables.items():
        write_table(folder / (kind.file + suffix), kind, table)
    if rigs is not None:
        write_rigs(folder, suffix, rigs, reconstruction.intrinsics_index)


def _observations(images: Table, points: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (M,), point (M,) and place (M,2) of the 2D points that show a point, once the tracks say the same."""
    ids = images.items["point"]
    owner = np.repeat(np.arange(len(images.heads)), images.counts)
    slot = slots(images.counts)
    shown = find_ids(ids, points.heads["id"].astype(np.int64), points.error)
    for k in np.flatnonzero((shown < 0) & (ids != UNSEEN))[:1]:
        raise images.error(owner[k], f"a point of `points3D` or -1 wanted for 2D point {slot[k]}, found id {ids[k]}")

    track = np.repeat(np.arange(len(points.heads)), points.counts)
    image = find_ids(points.items["image"], images.heads["id"], images.error)
    index = points.items["index"].astype(np.int64)
    inside = (image >= 0) & (index < np.append(images.counts, 0)[image])
    place = np.where(inside, (np.cumsum(images.counts) - images.counts)[image] + index if len(images.heads) else -1, -1)
    wrong = ~inside
    wrong[inside] = shown[place[inside]] != track[inside]
    for k in np.flatnonzero(wrong)[:1]:
        item = points.items[k]
        raise points.error(track[k], f"image {item['image']} does not show this point as its 2D point {item['index']}")
    tracked = np.zeros(len(ids), dtype=bool)
    tracked[place] = True
    for k in np.flatnonzero((shown >= 0) & ~tracked)[:1]:
        raise images.error(owner[k], f"2D point {slot[k]} shows point {ids[k]}, whose track in `points3D` lacks it")
    seen = shown >= 0
    return owner[seen], shown[seen], images.items["xy"][seen]


def _intrinsics(cameras: Table) -> tuple[Tensor, Tensor, Model, int | None]:
    """(fx, fy, cx, cy) (C,4), distortion (C,k), the model of all, and `coefficients`."""
    names = [NAMES[lens] for lens in cameras.heads["lens"]]
    lenses = [LENSES[name] for name in names]
    model = lenses[0].model if lenses else "radtan"
    intrinsics = np.empty((len(lenses), 4))
    distortion = np.zeros((len(lenses), max((lens.length for lens in lenses), default=0)))
    parameters = np.split(cameras.items["parameter"], np.cumsum(cameras.counts)[:-1])
    for c, (lens, values) in enumerate(zip(lenses, parameters, strict=False)):
        if lens.model != model:
            raise cameras.error(c, f"one lens model for all cameras wanted, found {lens.model!r} beside {model!r}")
        intrinsics[c], distortion[c, : lens.length] = from_parameters(names[c], values.tolist())
    fewest = min((lens.coefficients for lens in lenses), default=0)
    coefficients = fewest if fewest < distortion.shape[1] else None
    return torch.from_numpy(intrinsics), torch.from_numpy(distortion), model, coefficients


def _cameras(reconstruction: Reconstruction) -> Table:
    intrinsics = pinhole(reconstruction, "COLMAP", one_focal_length=False)
    sizes = reconstruction.image_sizes
    heads, parameters = np.empty(len(intrinsics), CAMERAS.head), []
    heads["id"] = np.arange(1, len(intrinsics) + 1)
    heads["size"] = 0 if sizes is None else sizes.numpy()
    for c, (values, distortion) in enumerate(zip(intrinsics.tolist(), reconstruction.distortion.tolist(), strict=True)):
        name, values = to_parameters(values, distortion, reconstruction.model)
        heads["lens"][c] = LENSES[name].id
        parameters.append(values)
    items = np.array([value for values in parameters for value in values], dtype=np.float64).view(CAMERAS.item)
    return Table(heads, items, np.array([len(values) for values in parameters]))


def _images(reconstruction: Reconstruction) -> Table:
    V = len(reconstruction.world_to_camera)
    heads, items = np.empty(V, IMAGES.head), np.empty(len(reconstruction.points2d), IMAGES.item)
    heads["id"] = np.arange(1, V + 1)
    heads["quat_wxyz"], heads["t"] = to_pose(reconstruction.world_to_camera)
    heads["camera"] = reconstruction.intrinsics_index.numpy() + 1
    order = reconstruction.camera_index.argsort(stable=True)
    items["xy"] = to_pixels(reconstruction.points2d.double())[order].numpy()
    items["point"] = reconstruction.point_index[order].numpy() + 1
    names = list(reconstruction.names) or [f"{v:06d}" for v in range(V)]
    for name, count in Counter(names).items():
        if not name or name != name.strip() or re.search(r"[\x00-\x1f]", name) or count > 1:
            raise ValueError(f"names: distinct names without control characters wanted by COLMAP, got {name!r}")
    return Table(heads, items, reconstruction.camera_index.bincount(minlength=V).numpy(), names)


def _points(reconstruction: Reconstruction) -> Table:
    N = len(reconstruction.points3d)
    heads, items = np.empty(N, POINTS.head), np.empty(len(reconstruction.points2d), POINTS.item)
    heads["id"] = np.arange(1, N + 1)
    heads["xyz"] = reconstruction.points3d.double().numpy()
    heads["color"] = 0 if reconstruction.colors is None else reconstruction.colors.numpy()
    views = reconstruction.point_index.bincount(minlength=N)
    total = torch.zeros(N, dtype=torch.float64)
    total.index_add_(0, reconstruction.point_index, reprojection_errors(reconstruction).double())
    mean = total / views  # as COLMAP has it; -1 is its word for unknown: without views, or behind one
    heads["error"] = torch.where(mean.isfinite(), mean, -1).numpy()
    by_image = reconstruction.camera_index.argsort(stable=True)
    image, point = reconstruction.camera_index[by_image].numpy(), reconstruction.point_index[by_image]
    index = slots(np.bincount(image, minlength=len(reconstruction.world_to_camera)))
    order = point.argsort(stable=True).numpy()
    items["image"], items["index"] = image[order] + 1, index[order]
    return Table(heads, items, views.numpy())


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))
