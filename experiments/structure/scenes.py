"""The scenes that `experiments.structure_from_motion` learns: made here, published, or a file's or images' tracks."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets import locate
from datasets.images.middlebury import read_middlebury
from datasets.images.tracks import find_tracks
from datasets.made.published import DUCK_UNIT, read_points, read_poses
from datasets.made.scenes import duck, half_visible, random_poses
from experiments.structure.alignment import move, shape_errors
from experiments.structure.incremental import Refine, reconstruct
from experiments.structure.tracks import as_table, noise, pinhole, read_tracks
from geometry import align_similarity, bundle, cauchy, project, se3
from geometry.camera import Model
from geometry.reconstruction import StructureProblem


@dataclass(frozen=True)
class SceneOptions:
    """Which scene, and how its tracks become a start."""

    scene: str = "duck"
    """`duck`: a solid made here; `published`: duck and poses of the published demo, from the shared data; `orbit`:
    tracks made here with 0.5 px of noise, of cameras around a ball, up and down and not looking at its middle;
    `turntable`: of one camera as the ball turns before it; else a path, here or in the shared data: a folder of images
    (with a Middlebury *_par.txt, the images it names), or a reconstruction that `datasets.reconstructions.read` reads
    (BAL, COLMAP, Bundler, libmv), whose points and poses are then the start."""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy in px, of a folder of images without a *_par.txt; no distortion."""
    intrinsics_known: bool = True
    """Of images, `orbit` and `turntable`; else K is sought, too: f is tried from 0.5 to 3 times the image's width, the
    principal point starts in its middle, and the final bundle frees what `free` names."""
    free: tuple[Literal["f", "fx", "fy", "cx", "cy", "k1", "k2"], ...] = ("f",)
    """Intrinsics that the final bundle seeks where they are not known, the same for all views; the rest keep their
    start."""
    candidates_f: int = 7
    """Focal lengths to try where they are not known."""
    inlier_px: float = 1.0
    """Of images, `orbit` and `turntable`: an observation farther from its point's projection is left out."""
    robust_px: float = 0.25
    """Scale of the Cauchy kernel of their bundles; the final one of `orbit` and `turntable`, which have no outliers, is
    least squares."""
    scene_seed: int = 0
    """Seed of the made scenes: points, poses. The run's own seed draws what is unknown: the start."""
    points: int = 1000
    """Of the made scenes."""
    views: int = 12
    """Of the made scenes and of the published one."""


@dataclass(frozen=True)
class Scene:
    """What is known: points2d (V,N,2), visible (V,N), K (V,3,3), distortion (V,k). What is not: the rest, if given.

    free: intrinsics, the same for all views, that are not known after all. robust: the final bundle's kernel is. colors
    (N,3) uint8, names of the views, image_size (width, height): of images.
    """

    points2d: Tensor
    visible: Tensor
    K: Tensor
    distortion: Tensor
    model: Model = "radtan"
    points_gt: Tensor | None = None
    poses_gt: Tensor | None = None
    K_gt: Tensor | None = None
    points_start: Tensor | None = None
    poses_start: Tensor | None = None
    free: tuple[str, ...] = ()
    robust: bool = False
    colors: Tensor | None = None
    names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    note: str = ""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Scene":
        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype) if value.is_floating_point() else value.to(device)

        return Scene(**{name: move(value) for name, value in vars(self).items()})

    def only(self, columns: Tensor) -> "Scene":
        """The scene of some of the points."""
        points_gt = None if self.points_gt is None else self.points_gt[columns]
        return replace(self, points2d=self.points2d[:, columns], visible=self.visible[:, columns], points_gt=points_gt)

    def problem(self, *, global_poses: bool) -> StructureProblem:
        """The learning problem."""
        return StructureProblem(
            self.points2d,
            self.visible,
            self.K,
            self.distortion,
            self.model,
            global_poses=global_poses,
            normalise=self.points_start is None,
        )

    def errors(self, theta: Tensor) -> dict[str, float]:
        """`shape_errors` of points (N,3); none without a truth."""
        return {} if self.points_gt is None else shape_errors(theta, self.points_gt)

    def reprojection_rms(self, points: Tensor, poses: Tensor) -> float:
        """Root mean square distance of the visible points from their projections, in px."""
        return self._squares(points, poses)[self.visible].mean().sqrt().item()

    def reprojection_error(self, points: Tensor, poses: Tensor) -> Tensor:
        """The same of each point (N,)."""
        return ((self._squares(points, poses) * self.visible).sum(0) / self.visible.sum(0)).sqrt()

    def _squares(self, points: Tensor, poses: Tensor) -> Tensor:
        error = project(points, poses, self.K, self.distortion, model=self.model) - self.points2d
        return error.square().sum(-1)

    def laid_onto_truth(self, points: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N,3) and poses (V,4,4), moved so that the points, or else the camera centres, fit the truth best."""
        if self.points_gt is not None:
            return move(align_similarity(points, self.points_gt), points, poses)
        if self.poses_gt is not None:
            return move(align_similarity(se3.centre(poses), se3.centre(self.poses_gt)), points, poses)
        return points, poses


def read_scene(options: SceneOptions, seed: int) -> Scene:
    """The made or published scene (f = 0.0005, points 0.37 across, half of them visible in each view), or tracks.

    seed: of the first reconstruction, where one is made.
    """
    if options.scene in ("orbit", "turntable"):
        return make_tracks(options, seed)
    if options.scene not in ("duck", "published"):
        path = locate.locate(options.scene)
        images = path.is_dir() and not any((path / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))
        return read_images(path, options, seed) if images else read_file(path)
    if options.scene == "published":
        points, poses = DUCK_UNIT * read_points("duck")[:1000], se3.from_rotvec_t(read_poses()[: options.views])
    else:
        generator = torch.Generator().manual_seed(options.scene_seed)
        points, poses = duck(options.points, generator), random_poses(options.views, generator)
    K = pinhole(0.0005, 0.0005, 0.0, 0.0).expand(len(poses), 3, 3)
    points2d = project(points, poses, K)
    return Scene(
        points2d, half_visible(points, len(poses)), K, K.new_zeros(len(K), 0), points_gt=points, poses_gt=poses
    )


def read_file(path: Path) -> Scene:
    """A file's tracks and intrinsics are known, its points and poses are where learning starts."""
    tracks, note = read_tracks(path)
    V, N, index = len(tracks.world_to_camera), len(tracks.points3d), tracks.intrinsics_index
    return Scene(
        *as_table(tracks.points2d, tracks.camera_index, tracks.point_index, V, N),
        tracks.K[index], tracks.distortion[index], tracks.model, points_start=tracks.points3d,
        poses_start=tracks.world_to_camera, colors=tracks.colors, names=tracks.names, note=note,
    )  # fmt: skip


def read_images(folder: Path, options: SceneOptions, seed: int) -> Scene:
    """The tracks of a folder of images, and a first reconstruction to start learning from."""
    images: Any = folder
    poses_gt = K = None
    if list(folder.glob("*_par.txt")):
        given = read_middlebury(folder)
        images, K, poses_gt = given.images, given.K, given.world_to_camera
    elif options.intrinsics is not None:
        K = pinhole(*options.intrinsics)
    elif options.intrinsics_known:
        raise ValueError(f"intrinsics: fx fy cx cy wanted for the images of {folder}, or --no-intrinsics-known")
    tracks = find_tracks(images)
    V = len(tracks.names)
    flat = Flat(tracks.points2d, tracks.camera_index, tracks.point_index, V, tracks.image_size)
    K = None if K is None else K.expand(V, 3, 3)
    scene, views, points = start_tracks(flat, K, options, seed)
    out = [f"{name}: {reason}" for name, reason in tracks.left_out]
    out += [
        name for v, name in enumerate(tracks.names) if v not in views.tolist() and name not in dict(tracks.left_out)
    ]
    return replace(
        scene,
        colors=tracks.colors[points],
        names=tuple(tracks.names[v] for v in views),
        poses_gt=None if poses_gt is None else poses_gt[views],
        note=scene.note + (f"; images left out: {', '.join(out)}" if out else ""),
    )


def make_tracks(options: SceneOptions, seed: int) -> Scene:
    """Tracks of a ball's surface (unit radius, from 4 away, f = 900 px, 640 x 480), 0.5 px of noise in x and y."""
    g = torch.Generator().manual_seed(options.scene_seed)
    V, N = options.views, options.points
    X = torch.nn.functional.normalize(noise(g, N, 3), dim=1)
    angle = 2 * math.pi * torch.arange(V, dtype=torch.float64) / V
    up, aside, zero = 0.4 * noise(g, V), 0.2 * noise(g, V, 2), torch.zeros_like(angle)
    if options.scene == "turntable":
        up, aside = zero, torch.zeros_like(aside)
    R = se3.exp(torch.stack([up, zero, zero], -1)) @ se3.exp(torch.stack([zero, angle, zero], -1))
    poses = se3.make(R, torch.cat([aside, 4 + zero[:, None]], -1))
    K = pinhole(900.0, 900.0, 319.5, 239.5).expand(V, 3, 3)
    towards = se3.centre(poses)[:, None] - X
    camera, point = ((towards * X).sum(-1) > 0.3).nonzero().T
    points2d = project(X, poses, K)[camera, point] + 0.5 * noise(g, len(camera), 2)
    flat = Flat(points2d, camera, point, V, (640, 480))
    scene, views, points = start_tracks(flat, K, replace(options, inlier_px=4 * options.inlier_px), seed)
    return replace(scene, points_gt=X[points], poses_gt=poses[views], robust=False)


class Flat(NamedTuple):
    """Tracks as a list: points2d (M,2) px, camera (M,), point (M,), the number of views, image_size (width, height)."""

    points2d: Tensor
    camera: Tensor
    point: Tensor
    views: int
    image_size: tuple[int, int]

    def only(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Some of the observations."""
        return self.points2d[kept], self.camera[kept], self.point[kept]

    def refine(self, K: Tensor, robust_px: float) -> Refine:
        """The robust bundle that a growing reconstruction is refined by."""

        def refined(poses: Tensor, points: Tensor, _: Tensor, inlier: Tensor) -> tuple[Tensor, Tensor]:
            found = bundle(*self.only(inlier), poses, points, K, kernel=cauchy(robust_px), max_steps=20).x
            return found.world_to_camera, found.points3d

        return refined


def seek_focal_length(tracks: Flat, options: SceneOptions) -> Tensor:
    """K (3,3) with the principal point in the middle and the focal length whose robust bundle fits the tracks best.

    Each candidate is the start of a reconstruction and of a bundle that frees f; what is no inlier costs as much as one
    at the threshold. A focal length far off places few cameras.
    """
    width, height = tracks.image_size
    kernel = cauchy(options.robust_px)
    outlier = kernel(torch.tensor(options.inlier_px**2, dtype=torch.float64)).item() / 2
    best, best_K = math.inf, None
    for share in np.geomspace(0.5, 3, options.candidates_f).tolist():
        f = share * width
        K = pinhole(f, f, (width - 1) / 2, (height - 1) / 2)
        try:
            # farther than the truth by what a wrong f adds
            first = reconstruct(*tracks[:3], K.expand(tracks.views, 3, 3), threshold=2 * options.inlier_px, rounds=1)
        except ValueError:  # no two cameras agree
            continue
        start = (first.world_to_camera, first.points3d, K)
        found = bundle(*tracks.only(first.inlier), *start, free=("poses", "points", "f"), kernel=kernel)
        cost = found.cost.item() + outlier * int((~first.inlier).sum())
        if cost < best:
            best, best_K = cost, found.x.K[0]
    if best_K is None:
        raise ValueError("candidates_f: a focal length at which two images agree wanted, found none")
    return best_K


def start_tracks(tracks: Flat, K: Tensor | None, options: SceneOptions, seed: int) -> tuple[Scene, Tensor, Tensor]:
    """A reconstruction camera after camera: the scene that is left, and which views (v,) and points (n,) it has.

    K (V,3,3): to be used, or only to be compared with where intrinsics are not known.
    """
    K_gt = K
    free: tuple[str, ...] = ()
    if K is None or not options.intrinsics_known:
        K, free = seek_focal_length(tracks, options).expand(tracks.views, 3, 3), options.free
    refine = tracks.refine(K, options.robust_px)
    first = reconstruct(*tracks[:3], K, threshold=options.inlier_px, refine=refine, seed=seed)
    camera, point = tracks.camera[first.inlier], tracks.point[first.inlier]
    views, row = camera.unique(return_inverse=True)
    points, column = point.unique(return_inverse=True)
    table = as_table(tracks.points2d[first.inlier], row, column, len(views), len(points))
    left = len(tracks.point) - len(point)
    coefficients = 2 if {"k1", "k2"} & set(free) else 0
    scene = Scene(
        *table, K[views], K.new_zeros(len(views), coefficients),
        K_gt=None if K_gt is None else K_gt[views], points_start=first.points3d[points],
        poses_start=first.world_to_camera[views], free=free, robust=True, image_size=tracks.image_size,
        note=f"{len(views)} of {tracks.views} views placed; {left} of {len(tracks.point)} observations left out: more "
        f"than {options.inlier_px:g} px off, of no point found, or of a view that was not placed",
    )  # fmt: skip
    return scene, views, points
