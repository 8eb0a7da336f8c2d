"""The scenes that `experiments.structure_from_motion` learns: made here, published, or a file's or images' tracks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from datasets import locate
from datasets.files import image_paths
from datasets.images.exif import usual_focal_length
from datasets.images.middlebury import read_middlebury
from datasets.images.track_files import is_database, read_database, read_track_text
from datasets.images.tracks import Tracks, find_tracks
from datasets.made.published import MESHES, Mesh, read_mesh, read_poses
from datasets.made.scenes import duck, half_visible, random_poses
from experiments.records.text import nearest
from experiments.running.options import Acts
from experiments.structure.alignment import move, shape_errors
from experiments.structure.lens import Known, Sought
from experiments.structure.start import Growing, start_known, start_sought
from experiments.structure.tracks import Flat, noise, pinhole, read_tracks, views_that_see
from geometry import align_similarity, project, se3
from geometry.camera import Model, matrix_from_intrinsics
from geometry.reconstruction import StructureProblem, as_table

EXIF_OFF = 0.1
"""Standard deviation of a focal length by EXIF, as a share of it."""
_TRACKS = (".csv", ".tracks")
"""Suffixes of texts of tracks without poses."""
PUBLISHED: dict[str, Mesh] = {"published" if mesh == "duck" else f"published_{mesh}": mesh for mesh in MESHES}
"""Scenes of the published demo."""
MADE = "duck", "orbit", "turntable"


def is_of_yours(scene: str) -> bool:
    """Whether it is a path, and not one that is made or published."""
    return scene not in (*MADE, *PUBLISHED)


def has_no_start(scene: str) -> bool:
    """Whether its points are learned from nothing, with no reconstruction before it."""
    return scene == "duck" or scene in PUBLISHED


Lens = tuple[Tensor, Tensor]
"""K (V|1,3,3) and distortion (V|1,k)."""


@dataclass(frozen=True)
class SceneOptions(Growing):
    """Which scene, and how its tracks become a start."""

    acts: ClassVar[tuple[Acts, ...]] = (
        Acts(
            "with a --scene of images or tracks, orbit or turntable",
            ("intrinsics_known", "free", "candidates_f", "inlier_px", "robust_px"),
            lambda config: not has_no_start(config.scene),
        ),
        Acts("with a --scene of yours", ("intrinsics", "image_size"), lambda config: is_of_yours(config.scene)),
        Acts(
            "with a --scene that is made: duck, orbit, turntable", ("scene_seed",), lambda config: config.scene in MADE
        ),
        Acts(
            "with a --scene that is made or published",
            ("points", "views"),
            lambda config: not is_of_yours(config.scene),
        ),
    )
    names_data: ClassVar[tuple[str, ...]] = ("scene",)

    scene: str = "duck"
    """Names what to reconstruct. `duck` is a solid made here; `published`, `published_driller`, `published_cat` are a
    mesh and the poses of the published demo, from the shared data; `orbit` is tracks made here with 0.5 px of noise, of
    cameras around a ball, up and down and not looking at its middle; `turntable` of one camera as the ball turns before
    it. All else is a path, here or in the shared data: a folder of images (with a Middlebury *_par.txt, the images it
    names); tracks without poses (a COLMAP database, or *.csv, *.tracks with lines of image, point, u, v); or a
    reconstruction that `datasets.reconstructions.read` reads (BAL, COLMAP, Bundler, libmv), whose points and poses are
    then the start."""
    intrinsics: tuple[float, ...] | None = None
    """Gives fx fy cx cy in px, and maybe k1 k2 p1 p2 k3 …, of a folder of images without a *_par.txt, or of tracks."""
    image_size: tuple[int, int] | None = None
    """Gives the width and height in px of the images that *.csv or *.tracks are of."""
    intrinsics_known: bool = True
    """Says whether K and the distortion stay as they are where they are given, as of `orbit`, `turntable`, or by a
    *_par.txt. Where they are sought, the focal length starts at what EXIF tells, or else is tried from 0.5 to 3 times
    the image's width; the principal point starts in the middle."""
    free: tuple[Literal["f", "fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3"], ...] | None = None
    """Lists the intrinsics to seek where they are not known, the same for all views; the rest keep their start. None
    seeks f, and what the data ask for of k1, k2, and cx with cy."""
    scene_seed: int = 0
    """Seeds the made scenes: points, poses. The run's own seed draws what is unknown: the start."""
    points: int = 1000
    """Sets the number of points of a made scene, and the most of a published one."""
    views: int = 12
    """Sets the number of views of a made or a published scene."""


@dataclass(frozen=True)
class Scene:
    """What is known: points2d (V,N,2), visible (V,N), K (V,3,3), distortion (V,k). What is not: the rest, if given.

    sought: K and distortion are not known after all. robust: the final bundle's kernel is. colors (N,3) uint8, names of
    the views, image_size (width, height): of images; left_out: why some are not among the views, by name.
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
    sought: Sought | None = None
    robust: bool = False
    colors: Tensor | None = None
    names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    note: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

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
    """The made or published scene, or tracks, as `SceneOptions.scene` says.

    seed: of the first reconstruction, where one is made. Raises ValueError where a view sees no point, or is alone.
    """
    scene = _read(options, seed)
    views_that_see(scene.visible.sum(1), options.scene, scene.names)
    return scene


def _read(options: SceneOptions, seed: int) -> Scene:
    if options.points < 1 or options.views < 1:
        raise ValueError(f"points, views: at least one wanted, found {options.points} and {options.views}")
    if options.scene in ("orbit", "turntable"):
        return make_tracks(options, seed)
    if options.scene == "duck":
        generator = torch.Generator().manual_seed(options.scene_seed)
        return look_at(duck(options.points, generator), random_poses(options.views, generator))
    if options.scene in PUBLISHED:
        points, poses = read_mesh(PUBLISHED[options.scene]), read_poses()
        if options.views > len(poses):
            raise ValueError(f"views: at most the {len(poses)} that were published wanted, found {options.views}")
        return look_at(points[: options.points], se3.from_rotvec_t(poses[: options.views]))
    try:
        path = locate.locate(options.scene)
    except FileNotFoundError as error:
        hint = nearest(options.scene, (*MADE, *PUBLISHED))
        raise type(error)(f"{error}{hint}") from None
    images = path.is_dir() and not any((path / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))
    if images:
        return read_images(path, options, seed)
    without_poses = path.suffix in _TRACKS or (path.is_file() and is_database(path))
    return read_track_file(path, options, seed) if without_poses else read_file(path)


def look_at(points: Tensor, poses: Tensor) -> Scene:
    """What is seen of points (N,3) from poses (V,4,4) as published: f = 0.0005, and each view sees half of the points,
    which PnP may be told or not."""
    K = pinhole(0.0005, 0.0005, 0.0, 0.0).expand(len(poses), 3, 3)
    visible = half_visible(points, len(poses))
    return Scene(project(points, poses, K), visible, K, K.new_zeros(len(K), 0), points_gt=points, poses_gt=poses)


def read_file(path: Path) -> Scene:
    """A file's tracks and intrinsics are known, its points and poses are where learning starts; points without a track
    are left out."""
    tracks, note = read_tracks(path)
    used, point = tracks.point_index.unique(return_inverse=True)
    V, N, index = len(tracks.world_to_camera), len(used), tracks.intrinsics_index
    return Scene(
        *as_table(tracks.points2d, tracks.camera_index, point, V, N),
        tracks.K[index], tracks.distortion[index], tracks.model, points_start=tracks.points3d[used],
        poses_start=tracks.world_to_camera, colors=None if tracks.colors is None else tracks.colors[used],
        names=tracks.names, note=f"{note}; {len(tracks.points3d) - N} points without a track",
    )  # fmt: skip


def read_images(folder: Path, options: SceneOptions, seed: int) -> Scene:
    """The tracks of a folder of images, and a first reconstruction to start learning from."""
    lens, images = given_lens(options), tuple(image_paths(folder))
    poses_gt = None
    known: Known = {}
    told = "unknown: none given, and EXIF tells none"
    other: dict[str, str] = {}
    if list(folder.glob("*_par.txt")):
        given = read_middlebury(folder)
        images, poses_gt = given.images, given.world_to_camera
        lens = given.K, given.K.new_zeros(len(given.K), 0)
    elif lens is None:
        focal, other = usual_focal_length(images)
        images = tuple(path for path in images if path.name not in other)
        if focal is not None:
            known, told = {"f": (focal.px, EXIF_OFF * focal.px)}, f"{focal.px:.0f} px by EXIF ({focal.source})"
    tracks = find_tracks(images)
    sought = Sought(tracks.image_size, known, options.free, told)
    scene, views = start_found(tracks, lens, sought, options, seed, other)
    return replace(scene, poses_gt=None if poses_gt is None else poses_gt[views])


def read_track_file(path: Path, options: SceneOptions, seed: int) -> Scene:
    """The tracks of a COLMAP database or of a text, and a first reconstruction to start learning from."""
    known: Known = {}
    told = "unknown: none given"
    if is_database(path):
        tracks, focal = read_database(path)
        if focal is not None:
            known, told = {"f": (focal.px, EXIF_OFF * focal.px)}, f"{focal.px:.0f} px ({focal.source})"
    elif options.image_size is None:
        raise ValueError(f"image_size: width and height in px wanted of the images of {path}")
    else:
        tracks = read_track_text(path, options.image_size)
    sought = Sought(tracks.image_size, known, options.free, told)
    return start_found(tracks, given_lens(options), sought, options, seed, {})[0]


def start_found(
    tracks: Tracks, lens: Lens | None, sought: Sought, options: SceneOptions, seed: int, other: dict[str, str]
) -> tuple[Scene, Tensor]:
    """`start_tracks` of tracks that were found, with names, colours, and the images that were left out, `other` of them
    before; and which views are left."""
    flat = Flat(tracks.points2d, tracks.camera_index, tracks.point_index, len(tracks.names))
    scene, views, points = start_tracks(flat, lens, sought, options, seed)
    out = other | dict(tracks.left_out)
    out |= {name: "not placed" for v, name in enumerate(tracks.names) if v not in views.tolist() and name not in out}
    names = tuple(tracks.names[v] for v in views)
    colors = None if tracks.colors is None else tracks.colors[points]
    return replace(scene, names=names, colors=colors, left_out=out), views


def given_lens(options: SceneOptions) -> Lens | None:
    """K (1,3,3) and distortion (1,k) of `intrinsics`, filled up with zeros to a number that OpenCV has."""
    if options.intrinsics is None:
        return None
    numbers = torch.tensor([options.intrinsics], dtype=torch.float64)
    sizes = [k for k in (0, 2, 4, 5, 8, 12) if k >= numbers.shape[1] - 4]
    if numbers.shape[1] < 4 or not sizes:
        raise ValueError(f"--intrinsics: fx fy cx cy and up to 12 coefficients wanted, found {numbers.shape[1]} in all")
    return matrix_from_intrinsics(numbers[:, :4]), torch.nn.functional.pad(
        numbers, (0, 4 + sizes[0] - numbers.shape[1])
    )[:, 4:]


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
    K = pinhole(900.0, 900.0, 319.5, 239.5)[None]
    towards = se3.centre(poses)[:, None] - X
    camera, point = ((towards * X).sum(-1) > 0.3).nonzero().T
    points2d = project(X, poses, K)[camera, point] + 0.5 * noise(g, len(camera), 2)
    flat, sought = Flat(points2d, camera, point, V), Sought((640, 480), {}, options.free, "not known")
    wide = replace(options, inlier_px=4 * options.inlier_px)
    scene, views, points = start_tracks(flat, (K, K.new_zeros(1, 0)), sought, wide, seed)
    return replace(scene, points_gt=X[points], poses_gt=poses[views], robust=False)


def start_tracks(
    tracks: Flat, lens: Lens | None, sought: Sought, options: SceneOptions, seed: int
) -> tuple[Scene, Tensor, Tensor]:
    """A reconstruction camera after camera: the scene that is left, and which views (v,) and points (n,) it has.

    lens: to be used, or only to be compared with where intrinsics are not known.
    """
    V = tracks.views
    given = None if lens is None else (lens[0].expand(V, 3, 3), lens[1].expand(V, -1))
    if given is not None and options.intrinsics_known:
        first, unknown = start_known(tracks, *given, options, seed), None
    else:
        first, unknown = start_sought(tracks, sought, options, seed), sought
    camera, point = tracks.camera[first.inlier], tracks.point[first.inlier]
    views, row = camera.unique(return_inverse=True)
    points, column = point.unique(return_inverse=True)
    table = as_table(tracks.points2d[first.inlier], row, column, len(views), len(points))
    left = len(tracks.point) - len(point)
    poses, points3d, K, distortion = first.bundle[:4]
    scene = Scene(
        *table, K[views], distortion[views], K_gt=None if given is None else given[0][views],
        points_start=points3d[points], poses_start=poses[views], sought=unknown, robust=True,
        image_size=sought.image_size,
        note=f"{len(views)} of {V} views placed; {left} of {len(tracks.point)} observations left out: more "
        f"than {options.inlier_px:g} px off, of no point found, or of a view that was not placed",
    )  # fmt: skip
    return scene, views, points
