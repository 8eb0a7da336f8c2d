"""Estimates of object poses against the truth of a data set in BOP's layout: a record an instance, and shares correct.

    records = evaluate(estimates, read_split(folder, "test"), read_models(folder), with_vsd=True)
    scores(records)["add_0.1d"]

`experiments.object_poses.metrics` holds the measures and their sources. The scores of all records are those of BOP's
toolkit (`scripts/eval_bop19_pose.py`) on the same estimates. Where a picture shows several instances of an object, the
toolkit pairs them with estimates anew at every threshold; here each estimate belongs to one instance once and for all,
chosen for the least sum of errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import read_image
from experiments.object_poses import metrics
from experiments.object_poses.metrics import FRACTIONS

if TYPE_CHECKING:
    from datasets.objects.layout import Estimate, Instance, Model

__all__ = ["Record", "evaluate", "scores"]


@dataclass(frozen=True)
class Record:
    """Errors of one instance's pose; infinite, and 1 for VSD, where it has no estimate. Lengths in mm.

    add is the mean distance to the point itself or, of a symmetric object, adds, that to the nearest point. projection,
    degrees, mm, mssd and mspd are the least over the object's symmetries; mspd in pixels of a picture 640 wide, as BOP
    counts it, projection in the picture's own. vsd has an error for each of `FRACTIONS`, or none.
    """

    scene: int
    image: int
    object: int
    index: int
    diameter: float
    symmetric: bool
    add: float
    adds: float
    projection: float
    degrees: float
    mm: float
    mssd: float
    mspd: float
    vsd: tuple[float, ...] = ()


def evaluate(
    estimates: Iterable[Estimate],
    instances: Sequence[Instance],
    models: Mapping[int, Model],
    *,
    with_vsd: bool = False,
    delta: float = 15.0,
) -> list[Record]:
    """The errors of every instance, in the order of `instances`; an instance without an estimate is an error too.

    Of a picture's estimates of an object those of the highest scores count, as many as there are instances of it. All
    pictures have the first one's size, as in every BOP set. `with_vsd` renders each pose and reads each depth picture
    (0.01 s an instance); `delta` (mm) is its tolerance of visibility, 15 in all BOP sets but ITODD, where it is 5.

    Raises ValueError for no instances, an object without a model, and estimates of which none is of any instance;
    FileNotFoundError for a picture that is not there.
    """
    if not instances:
        raise ValueError("instances: one at least wanted, found none")
    unknown = {some.object for some in instances} - models.keys()
    if unknown:
        raise ValueError(f"models: the objects {sorted(models)} are there, {sorted(unknown)} wanted as well")
    poses = _assign(list(estimates), instances, models)
    width, _ = read_image(instances[0].path, "stored").shape[1::-1]
    records: dict[int, Record] = {}
    for number in sorted({some.object for some in instances}):
        model = models[number]
        chosen = [i for i, some in enumerate(instances) if some.object == number]
        points3d, symmetries = torch.from_numpy(model.mesh.vertices), torch.from_numpy(model.symmetries)
        pose, pose_gt = torch.from_numpy(poses[chosen]), _stack([instances[i].pose for i in chosen])
        K = _stack([instances[i].K for i in chosen])
        symmetric = len(symmetries) > 1
        adds = metrics.adds(pose, pose_gt, points3d)
        degrees, mm = metrics.rotation_translation_error(pose, pose_gt, symmetries)
        columns: dict[str, Tensor] = {
            "add": adds if symmetric else metrics.add(pose, pose_gt, points3d),
            "adds": adds,
            "projection": metrics.projection_error(pose, pose_gt, points3d, K, symmetries),
            "degrees": degrees,
            "mm": mm,
            "mssd": metrics.mssd(pose, pose_gt, points3d, symmetries),
            "mspd": metrics.mspd(pose, pose_gt, points3d, K, symmetries) * (640 / width),
        }
        for row, i in enumerate(chosen):
            some = instances[i]
            errors: dict[str, Any] = {name: float(values[row]) for name, values in columns.items()}
            errors["vsd"] = _vsd(poses[i], some, model, delta) if with_vsd else ()
            where = (some.scene, some.image, some.object, some.index)
            records[i] = Record(*where, model.diameter, symmetric, **errors)
    return [records[i] for i in range(len(instances))]


def scores(records: Sequence[Record]) -> dict[str, float]:
    """Shares of correct poses, 0 … 1, by the names that `experiments.object_poses.table` prints.

    add_0.02d, add_0.05d, add_0.1d: ADD, or ADD-S of symmetric objects, below that share of the diameter (Hinterstoisser
    et al. 2012); projection_5px (Brachmann et al. 2016); 5cm_5deg (Shotton et al. 2013); and BOP's average recalls
    (Hodan et al. 2020): ar_mssd over thresholds of 0.05, 0.1, …, 0.5 diameters, ar_mspd over 5, 10, …, 50 px of a
    picture 640 wide and, of records with VSD, ar_vsd over 0.05, …, 0.5 for each of its ten tolerances, and ar, the mean
    of the three. Raises ValueError for no records, and for records of which only some have a VSD.
    """
    lengths = {len(record.vsd) for record in records}
    if len(lengths) != 1:
        wanted = "one record at least" if not lengths else "a VSD in all records or in none"
        raise ValueError(f"records: {wanted} wanted, found {f'lengths {sorted(lengths)}' if lengths else 'none'}")
    column = {f.name: np.array([getattr(record, f.name) for record in records]) for f in fields(Record)}
    share = {f"add_{k}d": float((column["add"] < k * column["diameter"]).mean()) for k in (0.02, 0.05, 0.1)}
    share["projection_5px"] = float((column["projection"] < 5).mean())
    share["5cm_5deg"] = float(((column["mm"] < 50) & (column["degrees"] < 5)).mean())
    fractions = np.array(FRACTIONS)
    share["ar_mssd"] = _average_recall(column["mssd"] / column["diameter"], fractions)
    share["ar_mspd"] = _average_recall(column["mspd"], np.arange(5, 51, 5))
    if lengths != {0}:
        share["ar_vsd"] = _average_recall(column["vsd"], fractions)
        share["ar"] = (share["ar_vsd"] + share["ar_mssd"] + share["ar_mspd"]) / 3
    return share


def _average_recall(errors: np.ndarray, thresholds: np.ndarray) -> float:
    return float((errors[..., None] < thresholds).mean())


def _assign(estimates: list[Estimate], instances: Sequence[Instance], models: Mapping[int, Model]) -> np.ndarray:
    """The estimated pose (I,4,4) of each instance, NaN where it has none."""
    from scipy.optimize import linear_sum_assignment

    places: dict[tuple[int, int, int], list[int]] = {}
    for i, some in enumerate(instances):
        places.setdefault((some.scene, some.image, some.object), []).append(i)
    found: dict[tuple[int, int, int], list[Estimate]] = {key: [] for key in places}
    for estimate in estimates:
        if (key := (estimate.scene, estimate.image, estimate.object)) in found:
            found[key].append(estimate)
    if estimates and not any(found.values()):
        first = f"the first is of scene {estimates[0].scene}, image {estimates[0].image}, object {estimates[0].object}"
        raise ValueError(f"estimates: one at least of an instance's object in its picture wanted, {first}")
    poses = np.full((len(instances), 4, 4), np.nan)
    for key, wanted in places.items():
        best = sorted(found[key], key=lambda estimate: -estimate.score)[: len(wanted)]
        model = models[key[2]]
        cost = (
            np.stack([_mssd(best, instances[i], model) for i in wanted])
            if len(wanted) > 1
            else np.zeros((1, len(best)))
        )
        # what is wrong at every threshold is equally wrong, and there is no assignment at infinite cost
        for i, k in zip(*linear_sum_assignment(cost.clip(max=FRACTIONS[-1] * model.diameter)), strict=True):
            poses[wanted[i]] = best[k].pose
    return poses


def _mssd(estimates: Sequence[Estimate], instance: Instance, model: Model) -> np.ndarray:
    if not estimates:
        return np.empty(0)
    pose = _stack([estimate.pose for estimate in estimates])
    pose_gt = torch.from_numpy(instance.pose).expand_as(pose)
    vertices, symmetries = torch.from_numpy(model.mesh.vertices), torch.from_numpy(model.symmetries)
    return metrics.mssd(pose, pose_gt, vertices, symmetries).numpy()


def _vsd(pose: np.ndarray, instance: Instance, model: Model, delta: float) -> tuple[float, ...]:
    from datasets.objects.rendering import render_depth

    if instance.depth is None:
        raise FileNotFoundError(f"{instance.path}: a depth picture beside it wanted, as VSD needs one, found none")
    if not np.isfinite(pose).all():
        return (1.0,) * len(FRACTIONS)
    test = read_image(instance.depth, "stored") * instance.depth_scale
    size = test.shape[1], test.shape[0]
    depth, depth_gt = (render_depth([model.mesh], some[None], instance.K, size)[0] for some in (pose, instance.pose))
    seen, truth, tested = (torch.from_numpy(np.asarray(image, np.float64)) for image in (depth, depth_gt, test))
    K = torch.from_numpy(instance.K)
    return tuple(metrics.vsd(seen, truth, tested, K, model.diameter, delta=delta).tolist())


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
