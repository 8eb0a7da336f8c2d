"""Estimates of object poses as the CSV that the BOP benchmark evaluates (Hodan et al., ECCV 2018; rules of 2019)."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.files import replacing
from datasets.reconstructions.model import nearest_rotation

__all__ = ["Estimate", "poses_from_rows", "read_results", "write_results"]

_HEADER = "scene_id,im_id,obj_id,score,R,t,time"


class Estimate(NamedTuple):
    """pose (4,4) object to camera, mm; score, higher is surer; time, seconds for the whole picture, -1 if unknown."""

    scene: int
    image: int
    object: int
    score: float
    pose: np.ndarray
    time: float = -1.0


def write_results(path: str | Path, estimates: Iterable[Estimate]) -> None:
    """Write estimates, every number in full; whole or not at all.

    Raises ValueError naming the estimate for a pose that is no rotation and translation, a number that is not finite,
    and times of one picture that differ by more than a millisecond, which the benchmark refuses.
    """
    estimates = list(estimates)
    poses = np.zeros((len(estimates), 4, 4))
    times: dict[tuple[int, int], float] = {}
    for i, estimate in enumerate(estimates):
        pose = np.asarray(estimate.pose, dtype=np.float64)
        if pose.shape != (4, 4) or not np.isfinite([*pose.flat, estimate.score, estimate.time]).all():
            raise ValueError(f"estimates[{i}]: a finite pose (4, 4), score and time wanted, found {estimate}")
        time = times.setdefault((estimate.scene, estimate.image), estimate.time)
        if abs(time - estimate.time) > 1e-3:
            raise ValueError(f"estimates[{i}]: time {time} as before in its picture wanted, found {estimate.time}")
        poses[i] = pose
    nearest_rotation(poses[:, :3, :3], lambda i, message: ValueError(f"estimates[{i}]: {message}"))
    lines = [_HEADER]
    for (scene, image, number, score, _, time), pose in zip(estimates, poses, strict=True):
        R, t = (" ".join(map(repr, values.ravel().tolist())) for values in (pose[:3, :3], pose[:3, 3]))
        lines.append(f"{scene},{image},{number},{float(score)!r},{R},{t},{float(time)!r}")
    with replacing(Path(path)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")


def read_results(path: str | Path) -> list[Estimate]:
    """The estimates in the file's order; it may lack the line of names. R becomes the nearest rotation.

    Raises FileNotFoundError, or ValueError naming file and line of what is damaged.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise FileNotFoundError(f"{path}: a CSV of estimates wanted, found {found}")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    skipped = int(lines[:1] == [_HEADER])
    keys, rows = [], np.zeros((len(lines) - skipped, 14))
    for i, line in enumerate(lines[skipped:]):
        try:
            scene, image, number, score, R, t, time = line.split(",")
            if (len(R.split()), len(t.split())) != (9, 3):
                raise ValueError
            rows[i] = [float(value) for value in (*R.split(), *t.split(), score, time)]
            keys.append((int(scene), int(image), int(number)))
        except ValueError:
            wanted = f"{_HEADER} with 9 numbers R and 3 numbers t"
            raise ValueError(f"{path}, line {i + 1 + skipped}: {wanted} wanted, found {line[:80]!r}") from None
    poses = poses_from_rows(rows[:, :12], lambda i, message: ValueError(f"{path}, line {i + 1 + skipped}: {message}"))
    return [
        Estimate(*key, score, pose, time)
        for key, pose, (score, time) in zip(keys, poses, rows[:, 12:].tolist(), strict=True)
    ]


def poses_from_rows(rows: np.ndarray, error: Callable[[int, str], ValueError]) -> np.ndarray:
    """Poses (N,4,4) of rows (N,12), 9 numbers of R and 3 of t; R becomes the nearest rotation.

    Raises error(row, message) for a number that is not finite, and an R that is no rotation to 1e-3.
    """
    bad = np.flatnonzero(~np.isfinite(rows).all(-1))
    if bad.size:
        raise error(int(bad[0]), f"finite numbers wanted, found {rows[bad[0]].tolist()}")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = nearest_rotation(rows[:, :9].reshape(-1, 3, 3), error)
    poses[:, :3, 3] = rows[:, 9:]
    return poses
