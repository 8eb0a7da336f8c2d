"""What `experiments.predict` is asked: pictures, their cameras, and which objects lie in which boxes of them.

    pictures_of_data_set(folder, "test", objects)            the truth's boxes
    pictures_of_data_set(folder, "test", objects, "detections.json")
    pictures_of_path("shots/", objects, camera, boxes="detections.json")

Boxes come as BOP publishes its default detections, a JSON list of

    {"scene_id": 1, "image_id": 3, "category_id": 2, "bbox": [x, y, w, h], "score": 0.9}

Pixels, (0, 0) the centre of the top-left one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.files import image_paths, require_file
from datasets.objects.layout import Box, Instance, read_split, read_targets

__all__ = ["UNKNOWN", "Camera", "Picture", "pictures_of_data_set", "pictures_of_path", "read_boxes", "read_camera"]

UNKNOWN: Box = (-1.0, -1.0, -1.0, -1.0)
"""The box of what is to be searched for; BOP has it where there is none."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


class Detection(NamedTuple):
    """An object in a picture, where its box (x, y, w, h) says."""

    scene: int
    image: int
    object: int
    box: Box
    score: float


class Camera(NamedTuple):
    """K (3,3), and the size (width, height) of its pictures where that is known."""

    K: np.ndarray
    size: tuple[int, int] | None = None


class Picture(NamedTuple):
    """A picture, the objects and boxes asked for in it, and the truth where it is known.

    asked: instances of unknown pose (NaN) and visible share; truth: those that should be found.
    """

    scene: int
    image: int
    path: Path
    camera: Camera
    asked: list[Instance]
    truth: list[Instance]


def pictures_of_data_set(
    folder: Path, split: str, objects: Collection[int], boxes: Path | None = None, search: bool = False
) -> list[Picture]:
    """Pictures of a data set's split in BOP's layout, in order, with all that is asked of `objects` in them.

    Where the data set has test_targets_bop19.json, of a test split only its targets are asked for, and of the boxes
    of a file only as many as the target has instances, those of the highest scores. Without a file of boxes they are
    the truth's, or UNKNOWN where they are to be searched for.

    Raises FileNotFoundError and ValueError as `read_split`, `read_targets` and `read_boxes` do, and ValueError where
    there are neither boxes nor truth, or nothing is asked of `objects`.
    """
    has_scenes, has_truth = (any((folder / split).glob(f"*/scene_{name}.json")) for name in ("camera", "gt"))
    truth = read_split(folder, split) if has_truth or not has_scenes else []  # which says what is missing
    if not (truth or boxes):
        raise ValueError(f"{folder / split} has no truth (scene_gt.json) to take boxes from: give --boxes FILE")
    if boxes:
        found = sorted(read_boxes(boxes), key=lambda some: -some.score)
    else:
        seen = [some for some in truth if max(some.box[2:]) > 0]
        found = [Detection(*some[:3], UNKNOWN if search else some.box, 1.0) for some in seen]
    present = sorted({some.object for some in found})
    truth = [some for some in truth if some.object in objects]
    found = [some for some in found if some.object in objects]
    if split.startswith("test") and (folder / "test_targets_bop19.json").is_file():
        counts = {target[:3]: target.instances for target in read_targets(folder)}
        truth = [some for some in truth if some[:3] in counts]
        found = _first(found, counts)
    if not found:
        whose = f"boxes of {boxes}" if boxes else f"{folder / split}"
        raise ValueError(f"objects {sorted(objects)} wanted, {whose} (targets of the test) have none; there: {present}")
    asked: dict[tuple[int, int], list[Instance]] = {}
    known: dict[tuple[int, int], list[Instance]] = {}
    for instance in truth:
        known.setdefault((instance.scene, instance.image), []).append(instance)
    places = {key: (some[0].path, Camera(some[0].K)) for key, some in known.items()}
    cameras: dict[int, Any] = {}
    for some in sorted(found, key=lambda some: some[:2]):  # else as they were
        key = some.scene, some.image
        if key not in places:
            places[key] = _place(folder / split, *key, cameras)
        asked.setdefault(key, []).append(_instance(some, *places[key]))
    return [Picture(*key, *place, asked.get(key, []), known.get(key, [])) for key, place in sorted(places.items())]


def _first(found: Sequence[Detection], counts: dict[tuple, int]) -> list[Detection]:
    """Of each target as many as are wanted of it."""
    left, chosen = dict(counts), []
    for some in found:
        if left.get(some[:3], 0) > 0:
            left[some[:3]] -= 1
            chosen.append(some)
    return chosen


def _instance(some: Detection, path: Path, camera: Camera) -> Instance:
    return Instance(*some[:3], 0, path, camera.K, np.full((4, 4), np.nan), some.box, 1.0)


def _place(split: Path, scene: int, image: int, cameras: dict[int, Any]) -> tuple[Path, Camera]:
    """Path and camera of a picture without truth; `cameras` remembers the files of the scenes."""
    folder = split / f"{scene:06d}"
    file = folder / "scene_camera.json"
    if scene not in cameras:
        cameras[scene] = _json(file)
    entry = cameras[scene].get(str(image)) if isinstance(cameras[scene], dict) else None
    K = np.array(_numbers(f"{file}, image {image}", entry, "cam_K", 9)).reshape(3, 3)
    paths = [folder / kind / f"{image:06d}{suffix}" for kind in ("rgb", "gray") for suffix in _SUFFIXES]
    for path in paths:
        if path.is_file():
            return path, Camera(K)
    raise FileNotFoundError(f"{folder}: rgb or gray/{image:06d}.png, .jpg or .tif wanted, found none")


def pictures_of_path(
    path: Path, objects: Sequence[int], camera: Camera, box: Box | None = None, boxes: Path | None = None
) -> list[Picture]:
    """A picture, or those of a folder in natural order, of one camera; scene 0.

    A picture's number is that of its name, 000012.png, where all the names are different numbers, else its position.
    box: of the one object of `objects`, in every picture; boxes: a file of them, of scene 0 and any of `objects`;
    with neither, the one object's is UNKNOWN.

    Raises FileNotFoundError for a path that is not there, ValueError for a folder without pictures, several objects
    without a file of boxes, a file without a box for them, and as `read_boxes` does.
    """
    paths = image_paths(path) if path.is_dir() else [require_file(path)]
    numbers = list(range(len(paths)))
    if all(some.stem.isdecimal() for some in paths) and len({int(some.stem) for some in paths}) == len(paths):
        numbers = [int(some.stem) for some in paths]
    if boxes:
        read = read_boxes(boxes)
        found = [some for some in read if some.scene == 0 and some.image in numbers and some.object in objects]
        if not found:
            wanted = f"boxes of scene 0, images {_several(numbers)} and objects {_several(objects)}"
            first = f"the first of {len(read)} is {read[0]}" if read else "none"
            raise ValueError(f"{boxes}: {wanted} wanted, found {first}")
    else:
        if len(objects) != 1:
            raise ValueError(f"--object: one of {list(objects)} wanted, which the estimator knows")
        found = [Detection(0, number, objects[0], box or UNKNOWN, 1.0) for number in numbers]
    return [
        Picture(0, number, some, camera, [_instance(a, some, camera) for a in found if a.image == number], [])
        for number, some in sorted(zip(numbers, paths, strict=True))
    ]


def _several(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) < 9 else f"{numbers[0]}, {numbers[1]}, …, {numbers[-1]}"


def read_boxes(path: Path) -> list[Detection]:
    """Boxes as BOP publishes its default detections; segmentations and times, if any, are not looked at.

    Raises FileNotFoundError, or ValueError naming the file, the entry and the key that is damaged.
    """
    entries = _json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a list of boxes wanted, found {str(entries)[:80]}")
    found = []
    for i, entry in enumerate(entries):
        where = f"{path}, entry {i}"
        scene, image, number = (_whole(where, entry, key) for key in ("scene_id", "image_id", "category_id"))
        x, y, w, h = _numbers(where, entry, "bbox", 4)
        if min(w, h) <= 0:
            raise ValueError(f"{where}: 'bbox' [x, y, w, h] with w and h above 0 wanted, found {entry['bbox']}")
        found.append(Detection(scene, image, number, (x, y, w, h), _numbers(where, entry, "score", 1)[0]))
    return found


def read_camera(path: Path) -> Camera:
    """A camera in BOP's form, {"fx": 572.4, "fy": 573.6, "cx": 325.3, "cy": 242.0}, maybe with its width and height.

    Raises FileNotFoundError, or ValueError naming the file and the key that is damaged.
    """
    entry = _json(path)
    fx, fy, cx, cy = (_numbers(f"{path}", entry, key, 1)[0] for key in ("fx", "fy", "cx", "cy"))
    if min(fx, fy) <= 0:
        raise ValueError(f"{path}: positive 'fx' and 'fy' wanted, found {fx}, {fy}")
    sized = "width" in entry and "height" in entry
    size = (_whole(f"{path}", entry, "width"), _whole(f"{path}", entry, "height")) if sized else None
    return Camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), size)


def _json(path: Path) -> Any:
    try:
        return json.loads(require_file(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of the encoding
        raise ValueError(f"{path}: JSON wanted, found something else: {error}") from None


def _whole(where: str, entry: Any, key: str) -> int:
    (number,) = _numbers(where, entry, key, 1)
    if number != int(number):
        raise ValueError(f"{where}: a whole number wanted for {key!r}, found {number}")
    return int(number)


def _numbers(where: str, entry: Any, key: str, count: int) -> list[float]:
    value: Any = entry.get(key) if isinstance(entry, dict) else None
    values: list[Any] = value if isinstance(value, list) else [value]
    if len(values) != count or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        wanted = f"{count} finite numbers" if count > 1 else "a finite number"
        there = entry if value is None else value
        raise ValueError(f"{where}: {wanted} wanted for {key!r}, found {str(there)[:80]}")
    return [float(v) for v in values]
