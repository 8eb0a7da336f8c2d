"""Multi-view sets of the Middlebury benchmark (Seitz, Curless, Diebel, Scharstein, Szeliski, CVPR 2006).

A folder holds the images and one `*_par.txt`: the number of images, then a line for each of them,

    name.png  k11 k12 … k33  r11 r12 … r33  t1 t2 t3          p = K (R X + t), X in metres

with x to the right and y down from the top left of the image, camera axes as OpenCV's. K is passed on as it stands.
Whether its (0, 0) is the centre or the corner of the top-left pixel is not said, and the images do not tell: on
matches of templeSparseRing between upright and upside-down views, the epipolar distances are smallest where K counts x
from a place 0.26 px left of the pixel's centre (0.15 px in the median; 0.41 px for the centre, 0.35 px for the
corner), and hardly depend on y. A quarter of a pixel is a hundredth of a degree there.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.reconstructions.model import nearest_rotation
from geometry import se3

__all__ = ["MiddleburyViews", "read_middlebury"]


@dataclass(frozen=True)
class MiddleburyViews:
    """V calibrated images: their paths and names, K (V,3,3) in pixels, world_to_camera (V,4,4) in metres."""

    images: tuple[Path, ...]
    K: Tensor
    world_to_camera: Tensor
    names: tuple[str, ...]


def read_middlebury(folder: str | Path) -> MiddleburyViews:
    """Read the one `*_par.txt` of a folder; the images are those it names, in its order.

    Raises ValueError naming the file and line for a wrong count, something that is not a finite number, a K whose
    third row is not (0, 0, 1) or whose focal lengths are not positive, an R that is no rotation to 1e-3, and an image
    named twice; FileNotFoundError naming what is missing: the folder, the file, or images.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*_par.txt"))
    if len(files) != 1:
        found = f"{len(files)} of them" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder}: a folder with one *_par.txt wanted, found {found}")
    path = files[0]
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    numbered = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered or len(numbered[0][1]) != 1 or not numbered[0][1][0].isdecimal():
        raise ValueError(f"{path}, line 1: the number of images wanted, found {lines[0][:40] if lines else ''!r}")
    (head, (count,)), *rows = numbered
    if not rows or int(count) != len(rows):
        raise ValueError(f"{path}, line {head}: states {count} images, {len(rows)} lines of cameras follow")
    names: list[str] = []
    for number, (name, *_) in rows:
        if name in names:
            raise ValueError(f"{path}, line {number}: every image once wanted, found {name!r} again")
        names.append(name)
    values = torch.tensor(np.array([_numbers(f"{path}, line {number}", row[1:]) for number, row in rows]))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} names images that {folder} lacks: {', '.join(missing)}")
    K, R, t = values.split([9, 9, 3], dim=1)
    pose = se3.make(R.reshape(-1, 3, 3), t)
    return MiddleburyViews(tuple(folder / name for name in names), K.reshape(-1, 3, 3), pose, tuple(names))


def _numbers(where: str, tokens: list[str]) -> np.ndarray:
    """The 21 numbers of one camera; ValueError starting with `where` unless they are a camera."""
    try:
        values = np.array(tokens, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: numbers wanted after the name: {error}") from error
    if len(values) != 21 or not np.isfinite(values).all():
        raise ValueError(f"{where}: a name and 21 finite numbers (K, R, t) wanted, found {' '.join(tokens)[:60]!r}")
    K, R = values[:9].reshape(3, 3), values[9:18].reshape(3, 3)
    if K[2].tolist() != [0, 0, 1] or min(K[0, 0], K[1, 1]) <= 0:
        raise ValueError(f"{where}: K with positive focal lengths and third row (0, 0, 1) wanted, found {K.tolist()}")
    nearest = nearest_rotation(R[None], lambda _, message: ValueError(f"{where}: {message}"))
    return np.concatenate([values[:9], nearest.ravel(), values[18:]])
