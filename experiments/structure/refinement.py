"""The last step from images or tracks: a bundle over everything, and what it says of a lens that was sought."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.reconstructions.model import Reconstruction
from experiments.records.quantities import Quantity
from experiments.running.determined import is_loose
from experiments.structure.alignment import move
from experiments.structure.determined import not_determined
from experiments.structure.incremental import compare
from experiments.structure.lens import Fit, in_words, of_views
from experiments.structure.scenes import Scene
from experiments.structure.tracks import Flat
from geometry import Bundle, BundleSolution, align_similarity, se3
from geometry.camera import intrinsics_from_matrix
from geometry.reconstruction import Estimate


class Refined(NamedTuple):
    """The final bundle, what it saw as a list, and its scene: points (N,3) and poses (V,4,4) laid onto the truth;
    undetermined: what of it is not, a sentence each; found: the intrinsics that were sought."""

    solution: BundleSolution
    model: Reconstruction
    errors: dict[str, float]
    note: str
    undetermined: list[str]
    found: dict[str, Quantity]


def refine(scene: Scene, points: Tensor, poses: Tensor, robust_px: float) -> Refined:
    """Everything at once, from what was learned: robustly from images, by least squares from a file's tracks."""
    camera, point = scene.visible.nonzero().T.contiguous()
    tracks = Flat(scene.points2d[camera, point], camera, point, len(poses))
    start, sought = Bundle(poses, points, scene.K, scene.distortion), scene.sought
    scale = robust_px if scene.robust else 1.0
    fit = Fit(tracks, scene.model, scale, scene.robust, {} if sought is None else sought.known)
    free: tuple[str, ...] = ()
    told: list[str] = []
    found: dict[str, Quantity] = {}
    if sought is None:
        estimate = Estimate(points.new_zeros(0), points.new_zeros(0, 0), fit.adjust(start))
    elif sought.free is None:
        choice = fit.choose(start, sought.usual)
        estimate, free = choice.estimate, choice.free
        told.append(in_words(choice))
    else:
        estimate, free = fit.estimate(start, sought.free), sought.free
    solution: BundleSolution = estimate.found
    undetermined = not_determined(solution, camera, point, scene.names)
    errors: dict[str, float] = {}
    if scene.image_size is not None:
        pattern = fit.pattern(of_views(solution), scene.image_size)
        errors["pattern_deviations"] = pattern.deviations
        if pattern.present:
            told.append(
                f"THE LENS DOES NOT FIT: residuals of neighbouring pixels have {100 * pattern.share:.1f} % of their "
                f"variance in common, {pattern.deviations:.1f} deviations; errors are larger than the deviations say"
            )
    if sought is not None:
        words, lost, more, found = intrinsics_found(scene, free, estimate)
        told, errors = [*told, f"focal length at first {sought.told}", words], errors | more
        undetermined += lost
    index = solution.task.problem.intrinsics_index.cpu()
    poses, points, K, distortion = (t.detach().cpu() for t in solution.x[:4])
    if scene.poses_gt is not None:
        rotation, centre = compare(poses, scene.poses_gt.cpu())
        true = se3.centre(scene.poses_gt.cpu())
        alignment = align_similarity(se3.centre(poses), true)
        points, poses = move(alignment, points, poses)
        errors |= {"rotation_deg": rotation.median().item(), "largest_rotation_deg": rotation.max().item()}
        errors |= {"centre_share": centre.median().item(), "largest_centre_share": centre.max().item()}
    size = None if scene.image_size is None else torch.tensor([scene.image_size]).expand(len(K), 2)
    flat = (camera.cpu(), point.cpu(), tracks.points2d.cpu(), scene.model)
    colors = None if scene.colors is None else scene.colors.cpu()
    model = Reconstruction(poses, points, K, distortion, index, *flat, colors, scene.names, size)
    return Refined(solution, model, errors, "".join(f"; {words}" for words in told), undetermined, found)


def intrinsics_found(
    scene: Scene, free: tuple[str, ...], estimate: Estimate
) -> tuple[str, list[str], dict[str, float], dict[str, Quantity]]:
    """The free intrinsics in words, with standard deviations; those that are not determined; f's difference from the
    truth and deviation in px; and the intrinsics by name.

    The deviations hold for tracks whose errors are as large in one place as in another, wrong ones among them.
    """
    values, deviations = estimate.values.tolist(), estimate.covariance.diagonal().sqrt().tolist()
    told: list[str] = []
    undetermined: list[str] = []
    errors: dict[str, float] = {}
    found: dict[str, Quantity] = {}
    given: dict[str, float] = {}
    if scene.K_gt is not None:
        fx, fy, cx, cy = intrinsics_from_matrix(scene.K_gt[0]).tolist()
        given = {"f": (fx + fy) / 2, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
    for name, value, deviation in zip(free, values, deviations, strict=True):
        truth = f" (given: {given[name]:.6g})" if name in given else ""
        pixels = name[0] in "fc"
        lost = pixels and is_loose(deviation, estimate.found.x.K[0, 0, 0].item())
        undetermined += [f"The intrinsic {name}: {value:.6g} ± {deviation:.2g} px."] if lost else []
        # one that is lost is told of already
        known = deviation if math.isfinite(deviation) else None
        found[name] = Quantity(value, known, "px" if pixels else "", given.get(name))
        note = ", not determined" if lost else "" if estimate.found.converged else ", not at a minimum"
        told.append(f"{name} {value:.6g} ± {deviation:.2g}{truth}{note}")
        if pixels and name in given:
            errors |= {f"{name}_off_px": value - given[name], f"{name}_deviation_px": deviation}
    return ", ".join(told), undetermined, errors, found
