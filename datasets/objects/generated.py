"""A small object-pose data set in the BOP layout, rendered from a seed, so that everything runs without a download.

As in LINEMOD, a scene has one annotated object, seen from the upper hemisphere among things that are not annotated:

    camera.json  test_targets_bop19.json  generated.json (the settings)  models/obj_000001.ply … models_info.json
    train/000001/  test/000001/  …            one scene for each object, its number that of the object
        scene_camera.json  scene_gt.json  scene_gt_info.json
        rgb/000000.jpg  depth/000000.png  mask/000000_000000.png  mask_visib/000000_000000.png  …

    python -m datasets.objects.generated FOLDER --train 2000 --test 300 --seed 0
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from datasets.objects.meshes import Solid, solids
from datasets.objects.pictures import SIZE, K, frame, turn_z
from datasets.ply import write_mesh
from datasets.progress import progress

__all__ = ["generate"]

_DEPTH_SCALE = 0.1  # mm in a unit of the depth files
_VERSION = 1  # of what a seed gives
_SETTINGS = "generated.json"
_CHUNK = 25  # pictures that a process is given at a time


def generate(
    folder: str | Path,
    seed: int = 0,
    train: int = 2000,
    test: int = 300,
    objects: Sequence[int] = (1, 2, 3, 4),
    processes: int = 2,
) -> Path:
    """Write the data set to `folder`, with `train` and `test` pictures of each object, and return the folder.

    It appears whole or not at all. A set with the same settings that is there already is left as it is. Objects are
    always the same; the seed chooses the pictures, each one by itself: what they show depends neither on how many there
    are nor on `processes`.

    Raises ValueError for counts that are not positive, unknown objects, and a folder that holds anything else,
    naming what differs where that is a generated set with other settings.
    """
    folder, objects = Path(folder), tuple(objects)
    if min(train, test, processes) < 1 or seed < 0:
        raise ValueError(
            f"train, test, processes: at least 1, seed: at least 0 wanted, found {train}, {test}, {processes}, {seed}"
        )
    if not objects or len(set(objects)) < len(objects) or not set(objects) <= set(solids()):
        raise ValueError(f"objects: some of {sorted(solids())}, each once, wanted, found {list(objects)}")
    settings = {"version": _VERSION, "seed": seed, "train": train, "test": test, "objects": sorted(objects)}
    if _is_there(folder, settings):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not _is_there(folder, settings):  # another process may have made it meanwhile
            _make(folder, settings, processes)
    return folder


def _make(folder: Path, settings: dict[str, Any], processes: int) -> None:
    """Render the set with these settings."""
    seed, train, test, objects = (settings[name] for name in ("seed", "train", "test", "objects"))
    with _appearing(folder) as temporary:
        _write_models(temporary, objects)
        counts = {"train": train, "test": test}
        for split in counts:
            for number in objects:
                for kind in ("rgb", "depth", "mask", "mask_visib"):
                    (temporary / split / f"{number:06d}" / kind).mkdir(parents=True)
        jobs = [
            (temporary, seed, split, number, range(start, min(start + _CHUNK, count)))
            for split, count in counts.items()
            for number in objects
            for start in range(0, count, _CHUNK)
        ]
        scenes: dict[tuple[str, int], list[tuple[dict, dict]]] = {}
        rendered = progress(_mapped(jobs, processes), "rendering", len(jobs))
        for job, annotations in zip(jobs, rendered, strict=True):
            scenes.setdefault(job[2:4], []).extend(annotations)
        for (split, number), annotations in scenes.items():
            _write_scene(temporary / split / f"{number:06d}", annotations)
        targets = [
            {"im_id": i, "inst_count": 1, "obj_id": number, "scene_id": number}
            for number in sorted(objects)
            for i in range(test)
        ]
        _write_json(temporary / "test_targets_bop19.json", targets)
        _write_json(temporary / _SETTINGS, settings)


def _is_there(folder: Path, settings: dict[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"folder: a new or an empty one wanted, found {folder}, which holds something else") from None
    if found != settings:
        differ = [f"{k} {found.get(k)} there, {v} wanted" for k, v in settings.items() if found.get(k) != v]
        raise ValueError(
            f"folder: {folder} holds a set with other settings ({'; '.join(differ)}): remove it, or choose another"
        )
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes this folder. The lock of one that was killed is free."""
    lock = FileLock(folder.with_name(f".tmp-{folder.name}.lock"))
    with lock:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink()


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name when the block ends well, and goes away when it does not.

    One that a killed process left is removed first.
    """
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mapped(jobs: list[tuple], processes: int) -> Iterator[list[tuple[dict, dict]]]:
    if processes == 1:
        yield from map(_write_frames, jobs)
        return
    # not forked: a fork would inherit locks of threads that it does not have
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as executor:
        yield from executor.map(_write_frames, jobs)


# Files --------------------------------------------------------------------------------------------------------------


def _write_models(folder: Path, objects: Sequence[int]) -> None:
    (folder / "models").mkdir()
    info = {}
    for number in sorted(objects):
        solid = solids()[number]
        write_mesh(folder / "models" / f"obj_{number:06d}.ply", solid.mesh)
        info[str(number)] = _model_info(solid)
    _write_json(folder / "models" / "models_info.json", info)
    fx, fy, cx, cy = (float(K[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    camera = {"cx": cx, "cy": cy, "depth_scale": _DEPTH_SCALE, "fx": fx, "fy": fy, "width": SIZE[0], "height": SIZE[1]}
    _write_json(folder / "camera.json", camera)


def _model_info(solid: Solid) -> dict[str, Any]:
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    vertices = solid.mesh.vertices
    low, size = vertices.min(0), np.ptp(vertices, axis=0)
    info: dict[str, Any] = {"diameter": float(pdist(vertices[ConvexHull(vertices).vertices]).max())}
    for axis, name in enumerate("xyz"):
        info[f"min_{name}"], info[f"size_{name}"] = float(low[axis]), float(size[axis])
    if solid.turns == 0:
        info["symmetries_continuous"] = [{"axis": [0, 0, 1], "offset": [0, 0, 0]}]
    if solid.turns > 1:
        turns = [turn_z(2 * np.pi * i / solid.turns) for i in range(1, solid.turns)]
        info["symmetries_discrete"] = [np.round(turn, 12).ravel().tolist() for turn in turns]
    return info


def _write_frames(job: tuple[Path, int, str, int, range]) -> list[tuple[dict, dict]]:
    """Render and write some pictures of one scene; returns what BOP's scene_gt and scene_gt_info say of each."""
    import cv2

    cv2.setNumThreads(1)
    folder, seed, split, number, indices = job
    scene = folder / split / f"{number:06d}"
    annotations = []
    for index in indices:
        shot = frame(seed, split, number, index)
        depth = np.rint(shot.depth / _DEPTH_SCALE).clip(0, 65535).astype(np.uint16)
        for path, values, options in (
            (scene / "rgb" / f"{index:06d}.jpg", shot.color[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]),
            (scene / "depth" / f"{index:06d}.png", depth, []),
            (scene / "mask" / f"{index:06d}_000000.png", np.uint8(255) * shot.mask, []),
            (scene / "mask_visib" / f"{index:06d}_000000.png", np.uint8(255) * shot.mask_visible, []),
        ):
            if not cv2.imwrite(str(path), np.ascontiguousarray(values), options):
                raise OSError(f"{path} could not be written")
        everything, visible = int(shot.mask.sum()), int(shot.mask_visible.sum())
        gt = {
            "cam_R_m2c": shot.pose[:3, :3].ravel().tolist(),
            "cam_t_m2c": shot.pose[:3, 3].tolist(),
            "obj_id": number,
        }
        info = {
            "bbox_obj": _box(shot.mask),
            "bbox_visib": _box(shot.mask_visible),
            "px_count_all": everything,
            "px_count_valid": int((shot.mask & (depth > 0)).sum()),
            "px_count_visib": visible,
            "visib_fract": visible / everything,
        }
        annotations.append((gt, info))
    return annotations


def _box(mask: np.ndarray) -> list[int]:
    """x, y, width, height of what is True, from centre to centre of the outermost pixels, as BOP has it."""
    v, u = np.nonzero(mask)
    return [int(u.min()), int(v.min()), int(np.ptp(u)), int(np.ptp(v))]


def _write_scene(folder: Path, annotations: list[tuple[dict, dict]]) -> None:
    camera = {"cam_K": K.ravel().tolist(), "depth_scale": _DEPTH_SCALE}
    _write_json(folder / "scene_camera.json", {str(i): camera for i in range(len(annotations))})
    _write_json(folder / "scene_gt.json", {str(i): [gt] for i, (gt, _) in enumerate(annotations)})
    _write_json(folder / "scene_gt_info.json", {str(i): [info] for i, (_, info) in enumerate(annotations)})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import sys

    import tyro

    try:
        tyro.cli(generate, config=(tyro.conf.PositionalRequiredArgs,))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
