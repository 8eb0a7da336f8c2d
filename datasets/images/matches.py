"""Real 2D-3D matches with outliers: the box of OpenCV's real-time pose estimation sample, frame by frame.

The box frame has its origin at a corner of the box, axes along its edges (18.9 x 25.8 x 7.5), in centimetres.
There is no true pose, and the video's camera is not calibrated: a self-calibration gives about f = 704 px and
a principal point of (320, 240).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from datasets.arrays import load_npz, rows_to_tensor

__all__ = ["FrameMatches", "read_box_matches"]


@dataclass(frozen=True)
class FrameMatches:
    """N putative matches of one video frame, many of them wrong.

    frame: number in the video. points2d (N,2) in pixels; points3d (N,3) in cm, box frame; ratio (N,): the
    distance of the best descriptor over that of the second best, lower is surer.
    """

    frame: int
    points2d: Tensor
    points3d: Tensor
    ratio: Tensor


def read_box_matches(path: str | Path) -> tuple[FrameMatches, ...]:
    """Read an npz of one array (N,6) = (u, v, X, Y, Z, ratio) a frame, keys f000, f010, …; sorted by frame.

    path: the file, or the folder that holds it as its only npz. Raises ValueError, naming the file and the
    entry, for a wrong shape or key and a value that is not finite; FileNotFoundError where there is no file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if len(files) != 1:
            raise FileNotFoundError(
                f"{path}: a folder with one npz wanted, found {len(files)}; give the path of the file itself"
            )
        path = files[0]
    frames = (_frame(path, name, rows) for name, rows in load_npz(path).items())
    return tuple(sorted(frames, key=lambda matches: matches.frame))


def _frame(path: Path, name: str, rows: np.ndarray) -> FrameMatches:
    number = re.fullmatch(r"f?(\d+)", name)
    if number is None:
        raise ValueError(f"{path}: keys such as 'f010' wanted, found {name!r}")
    columns = rows_to_tensor(rows, 6, f"{path}, {name!r} (u, v, X, Y, Z, ratio)")
    points2d, points3d, ratio = (part.clone() for part in columns.split([2, 3, 1], dim=-1))
    return FrameMatches(int(number[1]), points2d, points3d, ratio[:, 0])
