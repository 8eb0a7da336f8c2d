"""Views of a calibration target: the 2D-3D correspondences that a calibration starts from.

A target that looks the same turned by 180 degrees may be found so; that changes the pose of the view, nothing else.
Cameras of a rig that see it at once must find it the same way: `in_rig`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.arrays import read_image
from datasets.files import image_paths
from datasets.images.targets import Seen, Target
from datasets.progress import progress

__all__ = ["RigViews", "Views", "detect", "detect_cameras", "in_rig"]

_LEAST = 4
"""Marks that determine a pose."""


class RigViews(NamedTuple):
    """What S cameras see of one target in F frames: points2d (S,F,N,2) px, mask (S,F,N), False where a camera does not
    see a mark, points3d (N,3), image_size of each camera, names of the F frames."""

    points2d: Tensor
    mask: Tensor
    points3d: Tensor
    image_sizes: tuple[tuple[int, int], ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Views:
    """V views of one target with N marks, by one camera.

    points2d (V,N,2) in pixels, zero where mask (V,N) is False: what was not seen; points3d (N,3) in the target's frame;
    image_size (width, height) in pixels; names of the V views; left_out: (image name, reason) for each image that gave
    no view; notes: what else a person should know.
    """

    points2d: Tensor
    mask: Tensor
    points3d: Tensor
    image_size: tuple[int, int]
    names: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def alone(self) -> RigViews:
        """Those of a rig of one camera."""
        return RigViews(self.points2d[None], self.mask[None], self.points3d, (self.image_size,), self.names)


def detect(images: str | Path | Iterable[str | Path], target: Target) -> Views:
    """Find the target in each image of a folder (natural order of names), or of a list of files (its order).

    The camera is the one that most views are of the size of (`detect_cameras`); images of another size are listed in
    `left_out`, as is one that shows fewer than four marks. Pixels are the sensor's: EXIF's orientation is ignored.
    Raises ValueError when a file is no image or no view is left, FileNotFoundError when a path is missing.
    """
    first, *others = detect_cameras(images, target)
    most = f"most images have {first.image_size}"
    foreign = [(name, f"image size {v.image_size}, {most}") for v in others for name in v.names]
    foreign += [out for views in others for out in views.left_out]
    return Views(**{**vars(first), "left_out": tuple(sorted((*first.left_out, *foreign)))})


def detect_cameras(images: str | Path | Iterable[str | Path], target: Target) -> list[Views]:
    """As `detect`, a camera for each size of image that has views; that of most images first."""
    paths = image_paths(images)
    found: dict[tuple[int, int], list[tuple[Path, Seen | None]]] = {}
    for path in progress(paths, f"looking for a {target.name}"):
        image = read_image(path, "grey")
        found.setdefault((image.shape[1], image.shape[0]), []).append((path, target.find(image)))
    cameras = [_views(target, size, seen) for size, seen in found.items()]
    kept = [views for views in cameras if views.names]
    if not kept:
        hints = "".join(f"; {note}" for note in _larger(target, paths, "found in"))
        hints += ": inner corners lie where four squares meet, 9 x 6 of 10 x 7 squares" * ("inner" in target.name)
        raise ValueError(
            f"{paths[0].parent}: a {target.name} wanted in one image at least, found in none of {len(paths)}{hints}"
        )
    return sorted(kept, key=lambda views: -len(views.names) - len(views.left_out))


def _views(target: Target, size: tuple[int, int], found: Sequence[tuple[Path, Seen | None]]) -> Views:
    N, used, left_out = len(target.points3d), [], []
    for path, seen in found:
        if seen is None or len(seen.marks) == 0:
            left_out.append((path.name, f"no {target.name} found"))
        elif len(seen.marks) < _LEAST:
            left_out.append((path.name, f"{len(seen.marks)} of {N} marks found, {_LEAST} wanted"))
        else:
            used.append((path, seen))
    points2d = torch.zeros(len(used), N, 2, dtype=torch.float64)
    mask = torch.zeros(len(used), N, dtype=torch.bool)
    for v, (_, seen) in enumerate(used):
        points2d[v, seen.marks], mask[v, seen.marks] = torch.from_numpy(seen.points2d), True
    notes = _larger(target, [path for path, _ in used], "fits as well in")
    foreign = sum(seen is not None and seen.others > 0 for _, seen in found)
    if foreign:
        notes.append(f"markers that a {target.name.removeprefix('part of a ')} has not were seen in {foreign} images")
    names = tuple(path.name for path, _ in used)
    return Views(points2d, mask, target.points3d, size, names, tuple(left_out), tuple(notes))


def _larger(target: Target, paths: Sequence[Path], found: str) -> list[str]:
    """What is to be said of targets that are larger than the one that was stated, and seen in half of some images."""
    some, notes = paths[:: max(1, len(paths) // 8)], []
    for larger in target.larger if some else ():
        count = sum(larger.detect(read_image(path, "grey")) is not None for path in some)
        if 2 * count >= len(some):
            notes.append(f"a {larger.name} {found} {count} of {len(some)} images: is that the board?")
    return notes


def in_rig(cameras: Sequence[Views], target: Target) -> RigViews:
    """The views of cameras that look at a target at once, frame by frame, with the target the same way in all.

    Views belong together whose names have the same numbers (left07.jpg and right07.jpg), or the same names where there
    are none; a camera may miss any. A target that looks the same turned by 180 degrees is turned where its rows run
    against those that the first camera of the frame sees: the images must be the same way up.

    Raises ValueError for views of another target, two of a camera with the same numbers, and where the rows of such a
    target differ by 60 to 120 degrees between images, so that nothing tells which way it is.
    """
    frames: dict[object, list[int | None]] = {}
    for camera, views in enumerate(cameras):
        if not views.points3d.equal(target.points3d):
            raise ValueError(f"cameras: views of a {target.name} wanted, found others")
        keys = [tuple(re.findall(r"\d+", Path(name).stem)) or name for name in views.names]
        if len(set(keys)) < len(keys):
            raise ValueError(f"names: other numbers for each view wanted, found {', '.join(views.names)}")
        for place, key in enumerate(keys):
            frames.setdefault(key, [None] * len(cameras))[camera] = place
    S, F, N = len(cameras), len(frames), len(target.points3d)
    points2d, mask = torch.zeros(S, F, N, 2, dtype=torch.float64), torch.zeros(S, F, N, dtype=torch.bool)
    names = []
    for f, views_of in enumerate(frames.values()):
        first: tuple[str, Tensor] | None = None
        for s, v in enumerate(views_of):
            if v is None:
                continue
            seen, there, name = cameras[s].points2d[v], cameras[s].mask[v], cameras[s].names[v]
            rows = _rows(seen, there, target.points3d)
            if first is None:
                first = name, rows
                names.append(name)
            elif target.half_turn:
                cosine = float(rows @ first[1])
                if abs(cosine) < 0.5:
                    raise ValueError(
                        f"{first[0]}, {name}: rows of the board within 60 degrees wanted, as it looks the same turned "
                        f"by 180, found {math.degrees(math.acos(cosine)):.0f}"
                    )
                if cosine < 0:
                    seen, there = seen.flip(0), there.flip(0)
            points2d[s, f], mask[s, f] = seen, there
    sizes = tuple(views.image_size for views in cameras)
    return RigViews(points2d, mask, target.points3d, sizes, tuple(names))


def _rows(points2d: Tensor, mask: Tensor, points3d: Tensor) -> Tensor:
    """Which way the target's rows run in an image, a unit vector (2,)."""
    x = points3d[mask, 0]
    return torch.nn.functional.normalize((x - x.mean()) @ points2d[mask], dim=0)
