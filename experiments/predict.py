"""Poses of known objects in pictures, by what an object_pose run has learned: as a table, as JSON, and drawn.

    python -m experiments.predict results/object_pose/linemod-seed0 DATA/lmo --split test --boxes detections.json
    python -m experiments.predict results/object_pose/default-seed0 shots/ --object 2 --box 90 60 80 70

OUT gets a CSV as BOP evaluates it (METHOD_DATASET-SPLIT.csv of a data set, else poses.csv), poses.json and overlays.
Millimetres and pixels; (0, 0) is the centre of the top-left pixel. The exit code is 0, 1 where a picture could not be
read, the others being done, or their truth could not, and 2 where nothing could be done.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from datasets.arrays import read_image
from datasets.files import replacing
from datasets.objects.layout import Estimate, Model, read_models, write_results
from datasets.ply import Mesh
from experiments.object_poses.estimator import Estimated, PoseEstimator, load_estimator
from experiments.object_poses.requests import (
    UNKNOWN,
    Camera,
    Picture,
    pictures_of_data_set,
    pictures_of_path,
    read_camera,
)
from experiments.object_poses.search import search
from experiments.records.files import write_json
from experiments.records.text import nearest
from experiments.running.mistyped import option_mistyped
from geometry import pose_covariance, project, se3

__all__ = ["main"]

_Numbers = tuple[float, float, float, float]


@dataclass(frozen=True)
class Options:
    estimator: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ESTIMATOR")]
    """Names a run of object_pose, results/object_pose/RUN, or its estimator.pt."""
    what: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WHAT")]
    """Names a picture, a folder of pictures, or with --split a data set in BOP's layout."""
    split: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Says that WHAT is a data set, and names its split: test or another."""
    object: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Looks for this object only; left out, for all that the estimator knows."""
    box: Annotated[_Numbers | None, tyro.conf.arg(metavar="X Y W H")] = None
    """Says where the object is, in every picture; left out, it is searched for, which is less sure and
    takes seconds."""
    boxes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Says where objects are, as BOP has its default detections; left out, a data set's are the truth's boxes."""
    search: bool = False
    """Searches for the objects of a data set, too."""
    intrinsics: Annotated[_Numbers | None, tyro.conf.arg(metavar="FX FY CX CY")] = None
    """Gives the intrinsics of the camera that took the pictures."""
    camera: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Names a file that gives them as BOP's camera.json does; left out, it is the camera.json beside the pictures."""
    models: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Names meshes for the overlays: a data set or its models; left out, they are WHAT's, and pictures show the
    keypoints' hull."""
    overlays: bool = True
    """Says whether to draw overlays, which take longer than the poses."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Says where to write; left out, it is predictions/WHAT beside the estimator."""
    device: str = "cpu"
    """Says where to compute, as torch names it: cpu, cuda, cuda:1."""


def main(arguments: list[str] | None = None) -> int:
    """The exit code. Of what is wrong with what was asked stderr says one sentence, and nothing is written."""
    if wrong := option_mistyped("predict", sys.argv[1:] if arguments is None else arguments, Options):
        print(wrong, file=sys.stderr)
        return 2
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.predict", description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    try:
        estimator, pictures, models = _read(options)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return _predict(options, estimator, pictures, models)
    except OSError as error:
        print(f"--out: {error.filename or _out(options)} cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: neither the CSV nor poses.json is written", file=sys.stderr)
        return 130


# What is asked ------------------------------------------------------------------------------------------------------


def _read(options: Options) -> tuple[PoseEstimator, list[Picture], dict[int, Model]]:
    """Raises ValueError or FileNotFoundError where something is wrong with it."""
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device}: {str(error).splitlines()[0]}") from None
    estimator = load_estimator(_estimator_path(options), options.device)
    if options.object is not None and options.object not in estimator.objects:
        raise ValueError(f"--object: one the estimator knows, {estimator.objects}, wanted, got {options.object}")
    objects = estimator.objects if options.object is None else [options.object]
    if len(given := [name for name in ("box", "boxes", "search") if getattr(options, name)]) > 1:
        raise ValueError(f"--{' and --'.join(given)} say where objects are: give one of them")
    if options.split:
        alone = {"--box": options.box, "--intrinsics": options.intrinsics, "--camera": options.camera}
        if given := [name for name, value in alone.items() if value]:
            raise ValueError(f"{', '.join(given)}: for pictures; a data set (--split) has its own, or --boxes FILE")
        pictures = pictures_of_data_set(options.what, options.split, objects, options.boxes, options.search)
    else:
        if any(options.what.glob("*/*/scene_camera.json")):
            raise ValueError(f"{options.what} is a data set in BOP's layout: give --split NAME, its test or another")
        if options.box and min(options.box[2:]) <= 0:
            raise ValueError(f"--box: X Y W H with W and H above 0 wanted, got {options.box}")
        if not options.what.exists():
            raise FileNotFoundError(f"{options.what}: a picture or a folder of pictures wanted, found nothing")
        pictures = pictures_of_path(options.what, objects, _camera(options), options.box, options.boxes)
    used = sorted({some.object for picture in pictures for some in (*picture.asked, *picture.truth)})
    return estimator, pictures, _models(options, estimator, used)


def _estimator_path(options: Options) -> Path:
    path = options.estimator / "estimator.pt" if options.estimator.is_dir() else options.estimator
    if not path.is_file():
        runs = [found.parent.as_posix() for found in options.estimator.parent.glob("*/estimator.pt")]
        hint = nearest(options.estimator.as_posix(), runs)
        raise FileNotFoundError(
            f"{path}: the estimator of an object_pose run that has ended wanted, found nothing{hint}"
        )
    return path


def _camera(options: Options) -> Camera:
    if options.intrinsics and options.camera:
        raise ValueError("--intrinsics and --camera say the same: give one of them")
    if options.intrinsics:
        fx, fy, cx, cy = options.intrinsics
        if not min(fx, fy) > 0:
            raise ValueError(f"--intrinsics: FX and FY above 0 wanted, got {options.intrinsics}")
        return Camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    if options.camera:
        return read_camera(options.camera)
    beside = (options.what if options.what.is_dir() else options.what.parent) / "camera.json"
    if not beside.is_file():
        raise ValueError(f"which camera? Give --intrinsics FX FY CX CY, or --camera FILE; there is no {beside} either")
    return read_camera(beside)


def _models(options: Options, estimator: PoseEstimator, objects: Sequence[int]) -> dict[int, Model]:
    """Of a folder, or made of what the estimator knows; ValueError where the folder's are other objects."""
    folder = options.models or (options.what if options.split else None)
    rows = {number: estimator.objects.index(number) for number in objects}
    if folder is None:
        return {number: _hull(estimator, row) for number, row in rows.items()}
    models = read_models(folder, objects)
    for number, row in rows.items():
        here, known = models[number].diameter, estimator.diameters[row].item()
        if abs(here - known) > 0.01 * known:
            raise ValueError(
                f"{folder}: object {number} with a diameter of {known:.1f} mm wanted, which the estimator has learned, "
                f"found one with {here:.1f} mm"
            )
    return models


def _hull(estimator: PoseEstimator, row: int) -> Model:
    """The convex hull of an object's keypoints, which lie on its surface and far from each other."""
    from scipy.spatial import ConvexHull

    points3d = estimator.keypoints3d[row].cpu().numpy()
    faces = ConvexHull(points3d).simplices.astype(np.int64)
    return Model(Mesh(points3d, faces), estimator.diameters[row].item(), estimator.symmetries[row].cpu().numpy())


def _out(options: Options) -> Path:
    name = f"{_dataset(options)}-{options.split}" if options.split else options.what.resolve().stem
    return options.out or _estimator_path(options).parent / "predictions" / name


def _dataset(options: Options) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", options.what.resolve().name)


def _csv(options: Options) -> str:
    """The name of the table, from which BOP's toolkit takes method, data set, split, and the split's type."""
    if not options.split:
        return "poses.csv"
    method = re.sub(r"[^A-Za-z0-9]+", "-", _estimator_path(options).resolve().parent.name)
    return f"{method}_{_dataset(options)}-{options.split.replace('_', '-')}.csv"


_SAID = {
    "truth": "boxes: the truth's, not a detector's",
    "search": "boxes: searched for, as if the object were in every picture; the score says how sure that is",
}

# What is answered ---------------------------------------------------------------------------------------------------


def _predict(
    options: Options, estimator: PoseEstimator, pictures: Sequence[Picture], models: Mapping[int, Model]
) -> int:
    out = _out(options)
    (out / "overlays" if options.overlays else out).mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    estimates: list[Estimate] = []
    unread: list[dict[str, str]] = []
    pause = 0.1 if sys.stderr.isatty() else 30.0  # a log file gets a line twice a minute
    for picture in tqdm(pictures, "pictures", mininterval=pause, maxinterval=max(pause, 10.0), file=sys.stderr):
        try:
            image = _image(picture)
        except (ValueError, FileNotFoundError) as error:
            unread.append({"path": str(picture.path), "error": str(error)})
            tqdm.write(str(error), file=sys.stderr)
            continue
        begun = time.perf_counter()
        boxes = [search(estimator, image, some) if some.box == UNKNOWN else some.box for some in picture.asked]
        picture = picture._replace(asked=[a._replace(box=box) for a, box in zip(picture.asked, boxes, strict=True)])
        found = list(estimator.estimate(picture.asked, read={picture.path: image}.__getitem__))
        seconds = time.perf_counter() - begun
        estimates += [f.estimate._replace(time=seconds) for f in found if np.isfinite(f.estimate.pose).all()]
        name = f"overlays/{picture.scene:06d}_{picture.image:06d}.png" if options.overlays else None
        if name:
            _save(out / name, _drawn(image, picture, found, models))
        told.append(_told(estimator, picture, found) | {"seconds": seconds, "overlay": name})
    asked = sum(len(picture.asked) for picture in pictures)
    write_results(out / _csv(options), estimates)
    source = "search" if options.search or not options.split else "truth"
    source = str(options.boxes) if options.boxes else "given" if options.box else source
    heading = {"estimator": str(_estimator_path(options)), "what": str(options.what), "boxes": source}
    write_json(out / "poses.json", heading | {"pictures": told, "unread": unread})
    if source in _SAID:
        print(_SAID[source])
    lost = f", {len(unread)} of which could not be read" if unread else ""
    print(f"{len(estimates)} poses of {asked} asked for, in {len(pictures)} pictures{lost}: {out}")
    try:
        _print_scores(pictures, estimates, {entry["path"] for entry in unread}, models)
    except (ValueError, FileNotFoundError) as error:
        print(f"no scores: {error}", file=sys.stderr)
        return 1
    return 1 if unread else 0


def _image(picture: Picture) -> np.ndarray:
    """(H,W,3) uint8; ValueError naming the picture where it cannot be what was asked about."""
    image = read_image(picture.path)
    height, width = image.shape[:2]
    if picture.camera.size and picture.camera.size != (width, height):
        wanted = "{}x{}".format(*picture.camera.size)
        raise ValueError(f"{picture.path}: a picture of {wanted}, as its camera's are, wanted, found {width}x{height}")
    for some in picture.asked:
        x, y, w, h = some.box
        if some.box != UNKNOWN and not (x < width and y < height and x + w > 0 and y + h > 0):
            raise ValueError(f"{picture.path}: the box {some.box} lies outside the picture of {width}x{height}")
    return image


def _told(estimator: PoseEstimator, picture: Picture, found: Sequence[Estimated]) -> dict[str, Any]:
    """A picture's part of poses.json; all numbers plain."""
    entries = [
        {
            "object": some.object,
            "score": f.estimate.score,
            "box": list(some.box),
            "keypoints2d": f.keypoints2d.tolist(),
            "keypoints2d_deviation": f.deviation.tolist(),
            "pose": _told_pose(estimator, some.object, picture.camera.K, f),
        }
        for some, f in zip(picture.asked, found, strict=True)
    ]
    place = {"path": str(picture.path), "scene": picture.scene, "image": picture.image}
    return place | {"K": picture.camera.K.tolist(), "objects": entries}


def _told_pose(estimator: PoseEstimator, number: int, K: np.ndarray, found: Estimated) -> dict[str, Any] | None:
    """The pose and how sure it is: the heatmaps' spreads, taken for deviations, through PnP's linearisation."""
    if not np.isfinite(found.estimate.pose).all():
        return None
    row = estimator.objects.index(number)
    points3d = estimator.keypoints3d[row].cpu()
    pose, points2d, sigma = (torch.from_numpy(v) for v in (found.estimate.pose, found.keypoints2d, found.deviation))
    projected = project(points3d, pose, torch.from_numpy(K))
    seen = points2d[None], points3d[None], torch.from_numpy(K)[None]
    C = pose_covariance(*seen, pose[None], weights=1 / sigma[None], sigma=1.0)[0]
    deviation = C.diagonal().sqrt()
    return {
        "R": pose[:3, :3].tolist(),
        "t_mm": pose[:3, 3].tolist(),
        "quat_wxyz": se3.quat_wxyz_from_rotation(pose[:3, :3]).tolist(),
        "reprojection_rms_px": (projected - points2d).square().sum(-1).mean().sqrt().item(),
        "rotation_deviation_deg": _finite(deviation[:3].rad2deg()),
        "t_deviation_mm": _finite(deviation[3:]),
    }


def _finite(values: Tensor) -> list[float] | None:
    return values.tolist() if bool(torch.isfinite(values).all()) else None


def _drawn(image: np.ndarray, picture: Picture, found: Sequence[Estimated], models: Mapping[int, Model]) -> np.ndarray:
    """The truth in orange, estimates with their keypoints in blue; a small picture enlarged."""
    from experiments.object_poses.overlay import overlay

    nowhere = np.full((4, 4), np.nan)
    drawn: list[tuple[int, np.ndarray, np.ndarray | None, np.ndarray | None]] = []
    drawn += [(some.object, nowhere, some.pose, None) for some in picture.truth]
    drawn += [(f.estimate.object, f.estimate.pose, None, f.keypoints2d) for f in found]
    canvas = np.ascontiguousarray(image)
    for number, pose, pose_gt, keypoints2d in drawn:
        scale = canvas.shape[1] / image.shape[1]
        enlarge = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
        if keypoints2d is not None:
            keypoints2d = keypoints2d * scale + (scale - 1) / 2
        canvas = overlay(canvas, models[number], pose, enlarge @ picture.camera.K, pose_gt, keypoints2d)
    return canvas


def _save(path: Path, image: np.ndarray) -> None:
    import cv2

    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), np.ascontiguousarray(image[..., ::-1])):
            raise OSError(None, "the picture was not taken", str(path))


def _print_scores(
    pictures: Sequence[Picture], estimates: Sequence[Estimate], unread: set[str], models: Mapping[int, Model]
) -> None:
    """The table of what is right, where the truth is known; a picture that could not be read is wrong."""
    from experiments.object_poses.evaluation import evaluate
    from experiments.object_poses.table import report, summarize

    truth = [some for picture in pictures for some in picture.truth]
    truth.sort(key=lambda some: str(some.path) in unread)  # the pictures' size is taken from the first
    if not truth or str(truth[0].path) in unread:
        return
    records = evaluate(estimates, truth, models, with_vsd=all(some.depth for some in truth))
    print(f"\n{report(summarize({'predict': records}))}")


if __name__ == "__main__":
    sys.exit(main())
