"""COLMAP's `rigs` and `frames` (3.12 and later), text and binary: which cameras are mounted together, and which images
they took at once.

    rig:    id, number of sensors, the reference sensor, then each other sensor with its pose (sensor_from_rig) or none
    frame:  id, rig, pose (rig_from_world), number of images, then each image with its sensor

One grammar reads both kinds of files, number by number. A sensor is a type and an id, that of a camera for a camera.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import Bytes
from datasets.files import quote, replacing
from datasets.reconstructions.model import Rigs
from geometry import se3
from geometry.interop.colmap import from_pose, to_pose

__all__ = ["disagreeing", "read_rigs", "write_rigs"]

_SENSORS = ("CAMERA", "IMU")
# Numbers as `struct` calls them: 32 and 64 bits, flags, real ones, and i, which in a text is the name of a sensor type.
_UNSIGNED = {"I": 2**32, "Q": 2**64, "B": 2}
_AGREE = 1e-6  # poses of images and of frames, in radians and in parts of the distance from the origin

Take = Callable[[str], Any]


class _Record(NamedTuple):
    """A rig or a frame as a file has it: its own id, the rig's, a pose (7,), sensors; error(message) names the place.

    sensors: type, id, and the pose or None of a rig's sensor, or the image of a frame.
    """

    id: int
    rig: int
    pose: list[float]
    sensors: list[tuple[int, int, Any]]
    error: Callable[[str], ValueError]


_IDENTITY = [1.0, 0, 0, 0, 0, 0, 0]


def _pose(take: Take) -> list[float]:
    return [take("d") for _ in range(7)]


def _rig(take: Take, error: Callable[[str], ValueError]) -> _Record:
    number, sensors = take("I"), []
    for i in range(take("I")):
        kind, sensor = take("i"), take("I")
        sensors.append((kind, sensor, _IDENTITY if i == 0 else _pose(take) if take("B") else None))
    return _Record(number, number, _IDENTITY, sensors, error)


def _frame(take: Take, error: Callable[[str], ValueError]) -> _Record:
    number, rig, pose = take("I"), take("I"), _pose(take)
    return _Record(number, rig, pose, [(take("i"), take("I"), take("Q")) for _ in range(take("I"))], error)


def _binary(path: Path, parse: Callable[..., _Record]) -> Iterator[_Record]:
    file = Bytes(path)

    def take(code: str) -> Any:
        start = file.offset
        value = struct.unpack(f"<{code}", file.raw(struct.calcsize(f"<{code}"), path.stem))[0]
        if (code == "d" and not np.isfinite(value)) or (code == "i" and not 0 <= value < len(_SENSORS)):
            raise file.error(start, f"{_wanted(code)} wanted, found {value}")
        return value

    for _ in range(take("Q")):
        start = file.offset
        yield parse(take, lambda message, start=start: file.error(start, message))
    file.end()


def _text(path: Path, parse: Callable[..., _Record]) -> Iterator[_Record]:
    for k, line in enumerate(path.read_bytes().split(b"\n"), 1):
        words = iter(line.split())
        if not line.strip() or line.strip().startswith(b"#"):
            continue

        def error(message: str, k: int = k) -> ValueError:
            return ValueError(f"{path}, line {k}: {message}")

        def take(code: str, words: Iterator[bytes] = words, error: Callable[[str], ValueError] = error) -> Any:
            word = next(words, None)
            if word is None:
                raise error(f"{_wanted(code)} wanted, found the end of the line")
            if code == "i" and word.decode("ascii", "replace") in _SENSORS:
                return _SENSORS.index(word.decode())
            if code in _UNSIGNED and word.isdigit() and int(word) < _UNSIGNED[code]:
                return int(word)
            try:
                value = float(word) if code == "d" and b"_" not in word else np.nan
            except ValueError:
                value = np.nan
            if not np.isfinite(value):
                raise error(f"{_wanted(code)} wanted, found {quote(word)}")
            return value

        yield parse(take, error)
        rest = next(words, None)
        if rest is not None:
            raise error(f"the end of the line wanted, found {quote(rest)}")


def _wanted(code: str) -> str:
    return {"d": "a finite number", "i": f"a sensor type, {' or '.join(_SENSORS)},"}.get(code, "a whole number")


def _records(path: Path, parse: Callable[..., _Record]) -> dict[int, _Record]:
    """The records by id, in ascending order."""
    found: dict[int, _Record] = {}
    for record in (_binary if path.suffix == ".bin" else _text)(path, parse):
        if record.id in found:
            raise record.error(f"id {record.id} stands a second time")
        for pose in [record.pose, *(rest for *_, rest in record.sensors if isinstance(rest, list))]:
            length = float(np.linalg.norm(pose[:4]))
            if length == 0 or not np.isfinite(length):
                raise record.error(f"a quaternion wanted for the pose, found {pose[:4]}")
        found[record.id] = record
    return dict(sorted(found.items()))


def _poses(poses: list[list[float]]) -> Tensor:
    """World-to-something (n,4,4) of quaternion and translation."""
    numbers = np.array(poses, dtype=np.float64).reshape(-1, 7)
    return from_pose(numbers[:, :4], numbers[:, 4:])


def read_rigs(
    folder: Path, suffix: str, camera_ids: np.ndarray, image_ids: np.ndarray, camera_of_image: np.ndarray
) -> Rigs | None:
    """The rigs of a model whose cameras and images have these ids, each image with the camera (V,) that took it.

    None where the folder has no `rigs` and `frames`, or where no two cameras are mounted together. Raises ValueError
    naming file and line or byte for what is no such file, and for images that no frame, or no sensor with a pose, has.
    """
    paths = folder / f"rigs{suffix}", folder / f"frames{suffix}"
    if not all(path.is_file() for path in paths):
        return None
    camera_at = {int(number): c for c, number in enumerate(camera_ids)}
    image_at = {int(number): v for v, number in enumerate(image_ids)}
    rigs = _records(paths[0], _rig)
    C, V = len(camera_ids), len(image_ids)
    mounting, rig_of_sensor = [_IDENTITY] * C, np.full(C, -1)
    known, fixed = np.ones(C, dtype=bool), np.zeros(C, dtype=bool)
    for r, rig in enumerate(rigs.values()):
        mine = [(camera_at[i], pose) for kind, i, pose in rig.sensors if _SENSORS[kind] == "CAMERA" and i in camera_at]
        for c, pose in mine:
            if rig_of_sensor[c] >= 0:
                raise rig.error(f"a camera in one rig wanted, found camera {camera_ids[c]} in another as well")
            rig_of_sensor[c], known[c], mounting[c] = r, pose is not None, pose or _IDENTITY
        for c, _ in mine[:1]:  # the reference, or what stands in for one that is no camera
            fixed[c] = True
    if not (np.bincount(rig_of_sensor[rig_of_sensor >= 0], minlength=1) > 1).any():
        return None

    frame_of = np.full(V, -1)
    poses: list[list[float]] = []
    for frame in _records(paths[1], _frame).values():
        if frame.rig not in rigs:
            raise frame.error(f"a rig of `rigs` wanted, found id {frame.rig}")
        taken = [(image_at[i], s) for kind, s, i in frame.sensors if _SENSORS[kind] == "CAMERA" and i in image_at]
        for v, s in taken:
            c = int(camera_of_image[v])
            if frame_of[v] >= 0:
                raise frame.error(f"an image in one frame wanted, found image {image_ids[v]} in another as well")
            if camera_ids[c] != s:
                raise frame.error(f"camera {camera_ids[c]} wanted, which took image {image_ids[v]}, found {s}")
            if list(rigs).index(frame.rig) != rig_of_sensor[c] or not known[c]:
                raise frame.error(f"a camera with a pose in rig {frame.rig} wanted for image {image_ids[v]}, found {s}")
            frame_of[v] = len(poses)
        poses += [frame.pose] * bool(taken)
    for v in np.flatnonzero(frame_of < 0)[:1]:
        raise ValueError(f"{paths[1]}: a frame wanted for image {image_ids[v]}, found none")
    alone = np.flatnonzero(rig_of_sensor < 0)  # cameras that nothing is said of are rigs of their own
    rig_of_sensor[alone], fixed[alone] = len(rigs) + np.arange(len(alone)), True
    return Rigs(
        world_to_rig=_poses(poses),
        rig_index=torch.from_numpy(frame_of),
        sensor_from_rig=_poses(mounting),
        sensor_index=torch.from_numpy(camera_of_image.astype(np.int64)),
        rig_of_sensor=torch.from_numpy(np.unique(rig_of_sensor, return_inverse=True)[1]),
        fixed_sensors=torch.from_numpy(fixed),
    )


def disagreeing(rigs: Rigs, world_to_camera: Tensor) -> list[int]:
    """Images whose pose (V,4,4) is not that of their rig."""
    found, pose = rigs.world_to_camera, world_to_camera.double()
    turned = (found[:, :3, :3] - pose[:, :3, :3]).abs().amax((1, 2)) > _AGREE
    size = 1 + pose[:, :3, 3].norm(dim=1)
    return (turned | ((found - pose)[:, :3, 3].norm(dim=1) > _AGREE * size)).nonzero()[:, 0].tolist()


def write_rigs(folder: Path, suffix: str, rigs: Rigs, intrinsics_index: Tensor) -> None:
    """Write `rigs` and `frames`; ids from 1, those of cameras and images their places. The reference of a rig is its
    sensor that is fixed, to whose frame poses are brought.

    Raises ValueError where a sensor is not a camera of its own, a rig has no reference, or a frame two rigs or two
    images of a camera.
    """
    R, S = rigs.rig_of_sensor, len(rigs.sensor_from_rig)
    if not torch.equal(rigs.sensor_index, intrinsics_index):
        raise ValueError("rigs: COLMAP has a camera a sensor, sensor_index must be intrinsics_index, got another")
    pairs = torch.stack([rigs.rig_index, rigs.sensor_index], 1)
    if len(pairs.unique(dim=0)) < len(pairs):
        raise ValueError("rigs: COLMAP has one image of a camera in a frame, got several")
    references = rigs.fixed_sensors.nonzero()[:, 0]
    number = torch.full((int(R.max()) + 1,), -1)
    number[R[references]] = references
    if len(references) != len(R.unique()) or (number[R] < 0).any():
        raise ValueError(f"rigs: one fixed sensor a rig wanted by COLMAP, got {rigs.fixed_sensors.tolist()}")
    base = rigs.sensor_from_rig[number[R]].double()  # of each sensor's reference
    mounting = rigs.sensor_from_rig.double() @ se3.inverse(base)
    of_frame = torch.full((len(rigs.world_to_rig),), -1).scatter(0, rigs.rig_index, R[rigs.sensor_index])
    if not torch.equal(of_frame[rigs.rig_index], R[rigs.sensor_index]):
        raise ValueError("rigs: COLMAP has one rig in a frame, got images of several")
    seen = (of_frame >= 0).nonzero()[:, 0]
    poses = rigs.world_to_rig[seen].double()
    poses = base[number[of_frame[seen]]] @ poses

    q, t = (array.tolist() for array in to_pose(mounting))
    lines = []
    for r in R.unique().tolist():
        reference = int(number[r])
        others = [s for s in range(S) if R[s] == r and s != reference]
        line = [("I", r + 1), ("I", 1 + len(others)), ("i", 0), ("I", reference + 1)]
        for s in others:
            line += [("i", 0), ("I", s + 1), ("B", 1), *(("d", value) for value in (*q[s], *t[s]))]
        lines.append(line)
    _write(folder / f"rigs{suffix}", lines)

    q, t = (array.tolist() for array in to_pose(poses))
    lines = []
    for i, f in enumerate(seen.tolist()):
        images = (rigs.rig_index == f).nonzero()[:, 0].tolist()
        line = [("I", i + 1), ("I", int(of_frame[f]) + 1), *(("d", value) for value in (*q[i], *t[i]))]
        line.append(("I", len(images)))
        for v in images:
            line += [("i", 0), ("I", int(rigs.sensor_index[v]) + 1), ("Q", v + 1)]
        lines.append(line)
    _write(folder / f"frames{suffix}", lines)


def _write(path: Path, lines: list[list[tuple[str, Any]]]) -> None:
    if path.suffix == ".bin":
        numbers = [("Q", len(lines)), *(number for line in lines for number in line)]
        content = b"".join(struct.pack(f"<{code}", value) for code, value in numbers)
    else:
        words = [" ".join(_SENSORS[v] if code == "i" else repr(v) for code, v in line) for line in lines]
        content = "\n".join([f"# Number of {path.stem}: {len(lines)}", *words, ""]).encode()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
