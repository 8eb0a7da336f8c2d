"""The last step from images or tracks: a bundle over everything, and what it says of the free intrinsics."""

from typing import NamedTuple

import torch
from torch import Tensor

from datasets.reconstructions.model import Reconstruction
from experiments.structure.alignment import move
from experiments.structure.incremental import compare
from experiments.structure.scenes import Scene
from geometry import BundleSolution, align_similarity, bundle, cauchy, se3
from geometry.camera import intrinsics_from_matrix


class Refined(NamedTuple):
    """The final bundle, what it saw as a list, and its scene: points (N,3) and poses (V,4,4) laid onto the truth."""

    solution: BundleSolution
    model: Reconstruction
    errors: dict[str, float]
    note: str


def refine(scene: Scene, points: Tensor, poses: Tensor, robust_px: float) -> Refined:
    """Everything at once, from what was learned: robustly from images, by least squares from a file's tracks."""
    camera, point = scene.visible.nonzero().T.contiguous()
    points2d = scene.points2d[camera, point]
    lenses, index = torch.cat([scene.K.flatten(1), scene.distortion], 1).unique(dim=0, return_inverse=True)
    given = lenses[:, :9].reshape(-1, 3, 3), lenses[:, 9:]
    solution = bundle(
        points2d, camera, point, poses, points, *given, intrinsics_index=index, model=scene.model,
        free=("poses", "points", *scene.free), kernel=cauchy(robust_px) if scene.robust else None, max_steps=300,
    )  # fmt: skip
    poses, points, K, distortion = (t.detach().cpu() for t in solution.x[:4])
    errors: dict[str, float] = {}
    note = ""
    if scene.poses_gt is not None:
        rotation, centre = compare(poses, scene.poses_gt.cpu())
        true = se3.centre(scene.poses_gt.cpu())
        alignment = align_similarity(se3.centre(poses), true)
        points, poses = move(alignment, points, poses)
        errors |= {"rotation_deg": rotation.median().item(), "largest_rotation_deg": rotation.max().item()}
        errors |= {"centre_share": centre.median().item(), "largest_centre_share": centre.max().item()}
    if scene.free:
        told, more = intrinsics_found(scene, solution)
        errors, note = errors | more, f"; {told}"
    size = None if scene.image_size is None else torch.tensor([scene.image_size]).expand(len(K), 2)
    flat = (camera.cpu(), point.cpu(), points2d.cpu(), scene.model)
    colors = None if scene.colors is None else scene.colors.cpu()
    model = Reconstruction(poses, points, K, distortion, index.cpu(), *flat, colors, scene.names, size)
    return Refined(solution, model, errors, note)


def intrinsics_found(scene: Scene, solution: BundleSolution) -> tuple[str, dict[str, float]]:
    """The free intrinsics in words, with standard deviations, and f's difference from the truth and deviation in px.

    The deviations hold for tracks whose errors are as large in one place as in another, wrong ones among them.
    """
    values = solution.state.theta[0].tolist()
    deviations = solution.covariance().cameras[0, 6:, 6:].diagonal().sqrt().tolist()
    told: list[str] = []
    errors: dict[str, float] = {}
    given: dict[str, float] = {}
    if scene.K_gt is not None:
        fx, fy, cx, cy = intrinsics_from_matrix(scene.K_gt[0]).tolist()
        given = {"f": (fx + fy) / 2, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
    for name, value, deviation in zip(scene.free, values, deviations, strict=True):
        truth = f" (given: {given[name]:.6g})" if name in given else ""
        pixels = not name.startswith("k")
        lost = pixels and not deviation < 0.05 * solution.x.K[0, 0, 0].item()
        note = (", not determined" if lost else "") if solution.converged else ", not at a minimum"
        told.append(f"{name} {value:.6g} ± {deviation:.2g}{truth}{note}")
        if pixels and name in given:
            errors |= {f"{name}_off_px": value - given[name], f"{name}_deviation_px": deviation}
    return ", ".join(told), errors
