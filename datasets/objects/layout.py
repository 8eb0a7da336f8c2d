"""Data sets in the layout of the BOP benchmark (Hodan et al., ECCV 2018): LINEMOD, LM-O, YCB-V, T-LESS and others.

    models | models_eval/   models_info.json  obj_000001.ply …
    <split>/000000/         scene_camera.json  scene_gt.json  scene_gt_info.json
                            rgb | gray/000000.png   depth/000000.png   mask, mask_visib/000000_000000.png
    test_targets_bop19.json

Millimetres and pixels; poses take the model to the camera, x right, y down, z forward; (0, 0) is the centre of the
top-left pixel. Pictures are .png, .jpg or .tif. Estimates are written and read by `datasets.objects.results`.
"""

import functools
import json
import math
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets.arrays import read_image
from datasets.objects.results import Estimate, poses_from_rows, read_results, write_results
from datasets.ply import Mesh, read_mesh
from geometry import se3

__all__ = [
    "Box",
    "Estimate",
    "Instance",
    "Model",
    "Target",
    "box_of_mask",
    "read_models",
    "read_results",
    "read_split",
    "read_targets",
    "write_results",
]

Box = tuple[float, float, float, float]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
_NOTHING: Box = (-1.0, -1.0, -1.0, -1.0)  # BOP's box of what is not to be seen
_TURN = 0.01  # of the diameter: how far the outermost point moves between samples of a continuous symmetry (BOP 2019)


class Model(NamedTuple):
    """mesh in mm; diameter in mm; symmetries (S,4,4) float64, identity first: pose @ symmetry looks like pose.

    Of a continuous symmetry there are 315 turns, as in BOP's evaluation.
    """

    mesh: Mesh
    diameter: float
    symmetries: np.ndarray


class Instance(NamedTuple):
    """One object in one picture.

    scene, image, object, index: the numbers of the scene, the picture, the model, and the entry among the picture's.
    path: the picture. K (3,3) px, pose (4,4) object to camera in mm, both float64.
    box: (x, y, w, h) px of the silhouette with its hidden parts, as a detector of whole objects gives it; BOP counts it
    from centre to centre of the outermost pixels, so that a single pixel has w = 0; four times -1 where there is none.
    visible: share of the silhouette that is seen, 0 … 1.
    mask, mask_visible, depth: images, None where there is none; depth times depth_scale is z in mm.
    """

    scene: int
    image: int
    object: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks an instance for
    path: Path
    K: np.ndarray
    pose: np.ndarray
    box: Box
    visible: float
    mask: Path | None = None
    mask_visible: Path | None = None
    depth: Path | None = None
    depth_scale: float = 1.0


class Target(NamedTuple):
    """What the benchmark asks for: so many `instances` of an object in a picture."""

    scene: int
    image: int
    object: int
    instances: int


def read_models(folder: str | Path, objects: Iterable[int] | None = None) -> dict[int, Model]:
    """Models of a data set by their number; all, or those of `objects`.

    folder: the data set, of which `models` is read, else `models_eval`; or a folder of models itself. Textures are
    not read. Raises FileNotFoundError saying what is missing, ValueError naming file, object and key of what is
    damaged, or the objects that there are.
    """
    folder = _models_folder(_existing(folder))
    path = folder / "models_info.json"
    infos = _by_number(path, "diameters and symmetries of the models")
    wanted = set(infos) if objects is None else set(objects)
    if missing := wanted - set(infos):
        raise ValueError(f"objects: {sorted(missing)} wanted, {path} has {sorted(infos)}")
    models = {}
    for number in sorted(wanted):
        where = f"{path}, object {number}"
        diameter = _numbers(where, infos[number], "diameter", 1).item()
        if diameter <= 0:
            raise ValueError(f"{where}: a positive 'diameter' wanted, found {diameter}")
        symmetries = _symmetries(where, infos[number])
        models[number] = Model(read_mesh(_model_path(folder, number)), diameter, symmetries)
    return models


def read_split(
    folder: str | Path, split: str, objects: Iterable[int] | None = None, min_visible: float = 0.1
) -> list[Instance]:
    """Instances of a split ("train_pbr", "test", …) of which min_visible can be seen, in order of scene, image, entry.

    objects: numbers of the models wanted; all by default. Where a scene has no scene_gt_info.json, the box is that of
    mask's pixels, else of mask_visib's, else of the model's projected vertices (not cut off at the picture's border),
    and the visible share is the ratio of the two masks' pixels, 1 unless there are both.

    Raises FileNotFoundError saying what is missing: the split, with those there are; a file of a scene; a picture.
    Raises ValueError naming file, image, entry and key of what is damaged, or the objects that have no instance.
    """
    folder = _existing(folder)
    if not (split and (folder / split).is_dir()):
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir() and _scenes(path))
        raise FileNotFoundError(
            f"{folder}: a split {split!r} wanted, found "
            + (
                ", ".join(splits)
                if splits
                else "no folder that holds scenes 000000, 000001, …: this is no BOP data set"
            )
        )
    scenes = _scenes(folder / split)
    if not scenes:
        raise FileNotFoundError(f"{folder / split}: scenes 000000, 000001, … wanted, found none")

    @functools.cache
    def vertices(number: int) -> np.ndarray:
        return read_mesh(_model_path(_models_folder(folder), number)).vertices

    objects = None if objects is None else set(objects)
    instances = [instance for scene in scenes for instance in _read_scene(scene, objects, vertices)]
    if missing := (objects or set()) - {instance.object for instance in instances}:
        raise ValueError(f"objects: {sorted(missing)} wanted, {folder / split} has no instance of them")
    return [instance for instance in instances if instance.visible >= min_visible]


def read_targets(folder: str | Path) -> list[Target]:
    """The benchmark's targets of a data set, test_targets_bop19.json, in the file's order.

    Raises FileNotFoundError where there is none, ValueError naming the file, the entry and the key that is damaged.
    """
    path = _existing(folder) / "test_targets_bop19.json"
    entries = _json(path, "targets of the benchmark")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a list wanted, found {reprlib.repr(entries)}")
    keys = ("scene_id", "im_id", "obj_id", "inst_count")
    return [Target(*(_whole(f"{path}, entry {i}", entry, key) for key in keys)) for i, entry in enumerate(entries)]


def box_of_mask(path: Path) -> tuple[Box, int]:
    """(x, y, w, h) as `Instance.box` has it, and the number of pixels that are not 0, of a mask.

    Raises FileNotFoundError, or ValueError naming a file that is no image.
    """
    mask = read_image(path, "stored")
    y, x = np.nonzero(mask if mask.ndim == 2 else mask[..., :3].any(-1))
    return (_span(np.stack([x, y], axis=-1)), len(x)) if len(x) else (_NOTHING, 0)


def _read_scene(scene: Path, objects: Iterable[int] | None, vertices: Callable[[int], np.ndarray]) -> list[Instance]:
    """All instances of a scene; vertices(number) gives a model's, should they be needed."""
    camera, truth, info = (scene / f"scene_{name}.json" for name in ("camera", "gt", "gt_info"))
    cameras = _by_number(camera, "cameras of the scene's images")
    truths = _by_number(truth, "poses of the objects (of some test sets BOP does not publish them)")
    infos = _by_number(info, "boxes of the objects") if info.is_file() else None
    pictures = _images(scene / "rgb") or _images(scene / "gray")
    masks, visible_masks, depths = (_images(scene / name) for name in ("mask", "mask_visib", "depth"))

    entries = []
    for image in sorted(truths):
        for index, entry in enumerate(_list(f"{truth}, image {image}", truths[image])):
            where = f"{truth}, image {image}, entry {index}"
            number = _whole(where, entry, "obj_id")
            if objects is None or number in objects:
                R, t = _numbers(where, entry, "cam_R_m2c", 9), _numbers(where, entry, "cam_t_m2c", 3)
                entries.append((image, index, number, [*R, *t]))
    if not entries:
        return []
    poses = poses_from_rows(
        np.array([entry[3] for entry in entries]),
        lambda i, message: ValueError(f"{truth}, image {entries[i][0]}, entry {entries[i][1]}, 'cam_R_m2c': {message}"),
    )
    instances = []
    for (image, index, number, _), pose in zip(entries, poses, strict=True):
        if f"{image:06d}" not in pictures:
            raise FileNotFoundError(
                f"{truth}, image {image}: {scene}/rgb or gray/{image:06d}.png, .jpg or .tif is missing"
            )
        K, depth_scale = _camera(f"{camera}, image {image}", cameras.get(image))
        mask, visible_mask = (m.get(f"{image:06d}_{index:06d}") for m in (masks, visible_masks))
        if infos is not None:
            box, visible = _box(f"{info}, image {image}", infos.get(image), index)
        elif visible_mask or mask:
            box, visible = _box_of_masks(visible_mask, mask)
        else:
            points = (vertices(number) @ pose[:3, :3].T + pose[:3, 3]) @ K.T
            box, visible = _span(points[:, :2] / points[:, 2:]), 1.0
        instances.append(
            Instance(
                scene=int(scene.name),
                image=image,
                object=number,
                index=index,
                path=pictures[f"{image:06d}"],
                K=K,
                pose=pose,
                box=box,
                visible=visible,
                mask=mask,
                mask_visible=visible_mask,
                depth=depths.get(f"{image:06d}"),
                depth_scale=depth_scale,
            )
        )
    return instances


def _camera(where: str, camera: Any) -> tuple[np.ndarray, float]:
    K = _numbers(where, camera, "cam_K", 9).reshape(3, 3)
    if K[2].tolist() != [0, 0, 1] or min(K[0, 0], K[1, 1]) <= 0:
        raise ValueError(
            f"{where}: positive focal lengths and a third row (0, 0, 1) wanted for 'cam_K', found {K.tolist()}"
        )
    return K, _numbers(where, camera, "depth_scale", 1).item() if "depth_scale" in camera else 1.0


def _box(where: str, entries: Any, index: int) -> tuple[Box, float]:
    entries = _list(where, entries)
    if index >= len(entries):
        raise ValueError(f"{where}: an entry for each of scene_gt.json wanted, found {len(entries)}")
    where = f"{where}, entry {index}"
    x, y, w, h = _numbers(where, entries[index], "bbox_obj", 4).tolist()
    return (x, y, w, h), _numbers(where, entries[index], "visib_fract", 1).item()


def _box_of_masks(visible_mask: Path | None, mask: Path | None) -> tuple[Box, float]:
    """Box of the second, or the only one, and the share of its pixels that the first has."""
    pixels = [box_of_mask(path) for path in (visible_mask, mask) if path]
    (_, seen), (box, whole) = pixels[0], pixels[-1]
    return box, seen / whole if whole else 0.0


def _span(points2d: np.ndarray) -> Box:
    low, high = points2d.min(axis=0), points2d.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def _symmetries(where: str, info: Any) -> np.ndarray:
    """(S,4,4): every turn about every axis of continuous symmetry after every discrete symmetry, identity first."""
    discrete = [np.eye(4)]
    for matrix in _list(where, info.get("symmetries_discrete", [])):
        symmetry = _numbers(where, {"symmetries_discrete": matrix}, "symmetries_discrete", 16).reshape(4, 4)
        R = symmetry[:3, :3]
        rigid = np.abs(R @ R.T - np.eye(3)).max() < 1e-2 and np.linalg.det(R) > 0  # files have three digits
        if not rigid or symmetry[3].tolist() != [0, 0, 0, 1]:
            raise ValueError(f"{where}: rotations and translations wanted for 'symmetries_discrete', found {matrix}")
        discrete.append(symmetry)
    turns = []
    for entry in _list(where, info.get("symmetries_continuous", [])):
        axis, offset = _numbers(where, entry, "axis", 3), _numbers(where, entry, "offset", 3)
        if not axis.any():
            raise ValueError(f"{where}: an 'axis' that is not 0 wanted for 'symmetries_continuous', found {entry}")
        count = math.ceil(math.pi / _TURN)
        angles = np.arange(count) * (2 * np.pi / count)
        R = se3.exp(torch.from_numpy(angles[:, None] * (axis / np.linalg.norm(axis)))).numpy()
        turn = np.tile(np.eye(4), (count, 1, 1))
        turn[:, :3, :3], turn[:, :3, 3] = R, offset - R @ offset
        turns.append(turn)
    continuous = np.concatenate(turns) if turns else np.eye(4)[None]
    return (continuous @ np.stack(discrete)[:, None]).reshape(-1, 4, 4)


def _existing(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the folder of a BOP data set wanted, found no such folder")
    return folder


def _models_folder(folder: Path) -> Path:
    for path in (folder, folder / "models", folder / "models_eval"):
        if (path / "models_info.json").is_file():
            return path
    present = sorted(path.name for path in folder.glob("models*") if path.is_dir())
    found = f"{', '.join(present)} without it" if present else "no folder of models"
    raise FileNotFoundError(f"{folder}: models_info.json in models or models_eval wanted, found {found}")


def _model_path(folder: Path, number: int) -> Path:
    return folder / f"obj_{number:06d}.ply"


def _scenes(split: Path) -> list[Path]:
    """Folders of the scenes in order of their number."""
    return sorted(
        (path for path in split.iterdir() if path.name.isdecimal() and path.is_dir()), key=lambda p: int(p.name)
    )


def _images(folder: Path) -> dict[str, Path]:
    """Images of a folder by their names without suffix; none of a folder that is not there."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.stem: path for path in paths if path.suffix.lower() in _SUFFIXES}


def _json(path: Path, what: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {what} wanted, found no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of the encoding
        raise ValueError(f"{path}: JSON wanted, found something else: {error}") from None


def _by_number(path: Path, what: str) -> dict[int, Any]:
    content = _json(path, what)
    if not (isinstance(content, dict) and all(key.isdecimal() for key in content)):
        raise ValueError(f"{path}: entries by number wanted, found {reprlib.repr(content)}")
    return {int(key): value for key, value in content.items()}


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: a list wanted, found {reprlib.repr(value)}")
    return value


def _whole(where: str, entry: Any, key: str) -> int:
    value = _value(where, entry, key)
    if type(value) is not int:
        raise ValueError(f"{where}: a whole number wanted for {key!r}, found {reprlib.repr(value)}")
    return value


def _numbers(where: str, entry: Any, key: str, count: int) -> np.ndarray:
    value = _value(where, entry, key)
    try:
        numbers = np.asarray(value, dtype=np.float64).ravel()
    except (ValueError, TypeError):
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{where}: {count} finite numbers wanted for {key!r}, found {reprlib.repr(value)}")
    return numbers


def _value(where: str, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        found = f"keys {sorted(entry)}" if isinstance(entry, dict) else reprlib.repr(entry)
        raise ValueError(f"{where}: {key!r} wanted, found {found}")
    return entry[key]
