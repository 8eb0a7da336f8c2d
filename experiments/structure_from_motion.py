"""Structure from motion by backpropagating PnP (paper, section 4.2): 3D points learned from 2D points, no pose known.

Points are predicted, PnP finds the pose of every view, and the reprojection error trains the points through PnP.
Presets: `paper` (VGG-11 and Adam, as published, from a global start of PnP), `default` (the points themselves, from
random ones, by Gauss-Newton with the poses eliminated), `real` (images with known K: tracks, a first reconstruction
camera after camera, points learned through PnP from there, then a robust bundle), `self_calibrated` (the same, K
unknown, which the paper has not), `smoke`.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from torch import Tensor

from datasets import shared
from datasets.bpnp_demo import DUCK_UNIT, read_points, read_poses
from datasets.formats import read_reconstruction
from datasets.middlebury import read_middlebury
from datasets.reconstruction import Reconstruction
from datasets.synthetic import duck, half_visible, random_poses
from datasets.tracks import find_tracks
from experiments.figures import FRUSTUM_EDGES, ORANGE, array, frusta, loss_curve, point_clouds, value_colors
from experiments.incremental import Refine, compare, reconstruct
from experiments.networks import ConstantVgg11
from experiments.run import Run, RunConfig, cli, skip
from geometry import se3
from geometry.bundle import BundleSolution, bundle
from geometry.camera import (
    Model,
    in_front,
    intrinsics_from_matrix,
    matrix_from_intrinsics,
    project,
)
from geometry.nested import NestedState, nested_start, nested_step
from geometry.pnp import pnp
from geometry.registration import Similarity, align_similarity
from geometry.robust import cauchy
from geometry.structure import StructureProblem, find_structure, mirror, triangulate


@dataclass(frozen=True)
class Config(RunConfig):
    method: Literal["vgg11_adam", "gauss_newton"] = "gauss_newton"
    """The paper's network and optimiser, or the points as free parameters and Gauss-Newton steps."""
    scene: str = "duck"
    """`duck`: a solid made here; `published`: duck and poses of the published demo, from the shared data; `orbit`:
    tracks made here with 0.5 px of noise, of cameras around a ball, up and down and not looking at its middle;
    `turntable`: of one camera as the ball turns before it; else a path, here or in the shared data: a folder of images
    (with a Middlebury *_par.txt, the images it names), or a reconstruction that `datasets.formats` reads (BAL, COLMAP,
    Bundler, libmv), whose points and poses are then the start."""
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
    iterations: int = 200
    """At the most."""
    threshold: float = 1e-10
    """Loss at which the run counts as converged: sum of squared errors in the units of K (f = 0.0005)."""
    learning_rate: float = 1e-3
    """Of Adam."""
    masked: bool = True
    """Give PnP the visible points only. The published demo gives it all of them and masks the loss alone."""
    look_again: int = 0
    """Every so many iterations seek all poses globally, and keep those that fit better; 0: only at the start."""
    candidates: int = 8
    """Random structures searched at once, on a few points, before all points are learned."""
    search_points: int = 80
    """Points of the search."""


PAPER = {"loss": "1e-10, or stalled"}
PRESETS = {
    "default": Config(preset="default"),
    "paper": Config(
        preset="paper",
        method="vgg11_adam",
        iterations=1000,
        masked=False,
        look_again=10,
        dtype="float32",
        threads=2,
        log_every=50,
    ),
    "real": Config(preset="real", scene="temple_sparse_ring", iterations=30, log_every=5),
    "self_calibrated": Config(
        preset="self_calibrated",
        scene="temple_sparse_ring",
        intrinsics_known=False,
        free=("f", "cx", "cy"),
        iterations=30,
        log_every=5,
    ),
    "smoke": Config(preset="smoke", points=100, search_points=100, views=8),
}


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
        """After similarity alignment: rms over the object's rms radius, and the share of points within 1 %."""
        if self.points_gt is None:
            return {}
        error = (align_similarity(theta, self.points_gt).apply(theta) - self.points_gt).norm(dim=-1)
        size = (self.points_gt - self.points_gt.mean(0)).square().sum(-1).mean().sqrt()
        return {
            "rms_share": (error.square().mean().sqrt() / size).item(),
            "within_1_percent": (error < 0.01 * size).double().mean().item(),
        }


def read_scene(config: Config) -> Scene:
    """The made or published scene (f = 0.0005, points 0.37 across, half of them visible in each view), or tracks."""
    if config.scene in ("orbit", "turntable"):
        return make_tracks(config)
    if config.scene not in ("duck", "published"):
        path = shared.locate(config.scene)
        images = path.is_dir() and not any((path / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))
        return read_images(path, config) if images else read_tracks(path)
    if config.scene == "published":
        points, poses = DUCK_UNIT * read_points("duck")[:1000], se3.from_rotvec_t(read_poses()[: config.views])
    else:
        generator = torch.Generator().manual_seed(config.scene_seed)
        points, poses = duck(config.points, generator), random_poses(config.views, generator)
    K = matrix_from_intrinsics(torch.tensor([0.0005, 0.0005, 0.0, 0.0], dtype=torch.float64)).expand(len(poses), 3, 3)
    points2d = project(points, poses, K)
    return Scene(points2d, half_visible(points, len(poses)), K, K.new_zeros(len(K), 0), points_gt=points)


def read_tracks(path: Path) -> Scene:
    """A file's tracks and intrinsics are known, its points and poses are where learning starts."""
    tracks = read_reconstruction(path)
    V, N = len(tracks.world_to_camera), len(tracks.points3d)
    dense = torch.zeros(V, N, 2, dtype=torch.float64)
    visible = torch.zeros(V, N, dtype=torch.bool)
    dense[tracks.camera_index, tracks.point_index] = tracks.points2d
    visible[tracks.camera_index, tracks.point_index] = True
    given = int(visible.sum())
    # A point behind one of its cameras has no reprojection error there; a track of one view is no track.
    visible &= in_front(se3.transform(tracks.world_to_camera, tracks.points3d), model=tracks.model)
    visible &= visible.sum(0) >= 2
    index = tracks.intrinsics_index
    return Scene(
        dense, visible, tracks.K[index], tracks.distortion[index], tracks.model,
        points_start=tracks.points3d, poses_start=tracks.world_to_camera, colors=tracks.colors, names=tracks.names,
        note=f"{given - int(visible.sum())} of {given} observations left out: behind their camera, or of one view only",
    )  # fmt: skip


def read_images(folder: Path, config: Config) -> Scene:
    """The tracks of a folder of images, and a first reconstruction to start learning from."""
    torch.set_num_threads(config.threads)
    images: Any = folder
    poses_gt = K = None
    if list(folder.glob("*_par.txt")):
        given = read_middlebury(folder)
        images, K, poses_gt = given.images, given.K, given.world_to_camera
    elif config.intrinsics is not None:
        K = matrix_from_intrinsics(torch.tensor(config.intrinsics, dtype=torch.float64))
    elif config.intrinsics_known:
        raise ValueError(f"intrinsics: fx fy cx cy wanted for the images of {folder}, or --no-intrinsics-known")
    tracks = find_tracks(images)
    V = len(tracks.names)
    flat = Flat(tracks.points2d, tracks.camera_index, tracks.point_index, V, tracks.image_size)
    K = None if K is None else K.expand(V, 3, 3)
    scene, views, points = start_tracks(flat, K, config)
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


def make_tracks(config: Config) -> Scene:
    """Tracks of a ball's surface (unit radius, from 4 away, f = 900 px, 640 x 480), 0.5 px of noise in x and y."""
    g = torch.Generator().manual_seed(config.scene_seed)
    V, N = config.views, config.points

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    X = torch.nn.functional.normalize(noise(N, 3), dim=1)
    angle = 2 * math.pi * torch.arange(V, dtype=torch.float64) / V
    up, aside, zero = 0.4 * noise(V), 0.2 * noise(V, 2), torch.zeros_like(angle)
    if config.scene == "turntable":
        up, aside = zero, torch.zeros_like(aside)
    R = se3.exp(torch.stack([up, zero, zero], -1)) @ se3.exp(torch.stack([zero, angle, zero], -1))
    poses = se3.make(R, torch.cat([aside, 4 + zero[:, None]], -1))
    K = matrix_from_intrinsics(torch.tensor([900.0, 900.0, 319.5, 239.5], dtype=torch.float64)).expand(V, 3, 3)
    towards = se3.inverse(poses)[:, None, :3, 3] - X
    camera, point = ((towards * X).sum(-1) > 0.3).nonzero().T
    points2d = project(X, poses, K)[camera, point] + 0.5 * noise(len(camera), 2)
    flat = Flat(points2d, camera, point, V, (640, 480))
    scene, views, points = start_tracks(flat, K, replace(config, inlier_px=4 * config.inlier_px))
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

    def refine(self, K: Tensor, config: Config) -> Refine:
        """The robust bundle that a growing reconstruction is refined by."""

        def refined(poses: Tensor, points: Tensor, _: Tensor, inlier: Tensor) -> tuple[Tensor, Tensor]:
            found = bundle(*self.only(inlier), poses, points, K, kernel=cauchy(config.robust_px), max_steps=20).x
            return found.world_to_camera, found.points3d

        return refined


def seek_focal_length(tracks: Flat, config: Config) -> Tensor:
    """K (3,3) with the principal point in the middle and the focal length whose robust bundle fits the tracks best.

    Each candidate is the start of a reconstruction and of a bundle that frees f; what is no inlier costs as much as one
    at the threshold. A focal length far off places few cameras.
    """
    width, height = tracks.image_size
    kernel = cauchy(config.robust_px)
    outlier = kernel(torch.tensor(config.inlier_px**2, dtype=torch.float64)).item() / 2
    best, best_K = math.inf, None
    for share in np.geomspace(0.5, 3, config.candidates_f).tolist():
        f = share * width
        K = matrix_from_intrinsics(torch.tensor([f, f, (width - 1) / 2, (height - 1) / 2], dtype=torch.float64))
        try:
            # farther than the truth by what a wrong f adds
            first = reconstruct(*tracks[:3], K.expand(tracks.views, 3, 3), threshold=2 * config.inlier_px, rounds=1)
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


def start_tracks(tracks: Flat, K: Tensor | None, config: Config) -> tuple[Scene, Tensor, Tensor]:
    """A reconstruction camera after camera: the scene that is left, and which views (v,) and points (n,) it has.

    K (V,3,3): to be used, or only to be compared with where intrinsics are not known.
    """
    K_gt = K
    free: tuple[str, ...] = ()
    if K is None or not config.intrinsics_known:
        K, free = seek_focal_length(tracks, config).expand(tracks.views, 3, 3), config.free
    first = reconstruct(*tracks[:3], K, threshold=config.inlier_px, refine=tracks.refine(K, config), seed=config.seed)
    camera, point = tracks.camera[first.inlier], tracks.point[first.inlier]
    views, row = camera.unique(return_inverse=True)
    points, column = point.unique(return_inverse=True)
    points2d = K.new_zeros(len(views), len(points), 2).index_put((row, column), tracks.points2d[first.inlier])
    visible = torch.zeros(points2d.shape[:2], dtype=torch.bool).index_put((row, column), torch.ones_like(row) > 0)
    left = len(tracks.point) - len(point)
    coefficients = 2 if {"k1", "k2"} & set(free) else 0
    scene = Scene(
        points2d, visible, K[views], K.new_zeros(len(views), coefficients),
        K_gt=None if K_gt is None else K_gt[views], points_start=first.points3d[points],
        poses_start=first.world_to_camera[views], free=free, robust=True, image_size=tracks.image_size,
        note=f"{len(views)} of {tracks.views} views placed; {left} of {len(tracks.point)} observations left out: more "
        f"than {config.inlier_px:g} px off, of no point found, or of a view that was not placed",
    )  # fmt: skip
    return scene, views, points


Album = list[tuple[int, Tensor, Tensor]]
"""Clouds on the way: iteration, points (n,3) laid onto the truth where there is one, a value (n,) to colour them by."""


class Learned(NamedTuple):
    """Points (N,3), poses (V,4,4), losses over iterations, whether they are at their end, and clouds on the way."""

    points: Tensor
    poses: Tensor
    losses: list[float]
    converged: bool
    album: Album


def learn_points(config: Config, run: Run, scene: Scene) -> Learned:
    """Gauss-Newton with the poses eliminated.

    Without a start, a structure of a few points is searched first; the poses it comes with triangulate all points.
    """
    N = scene.points2d.shape[1]
    problem = scene.problem(global_poses=False)
    losses: list[float] = []
    album: Album = []
    state: NestedState | None = None
    if saved := run.restore():
        state, losses, album = NestedState(*saved["state"]), saved["losses"], saved["album"]
    elif scene.points_start is not None and scene.poses_start is not None:
        state = nested_start(problem, scene.points_start[None], scene.poses_start[None])
    few = torch.randperm(N)[: config.search_points].to(run.device)
    good_enough = 0.5 * config.threshold * len(few) / N
    search = find_structure(scene.only(few).problem(global_poses=True), good_enough, candidates=config.candidates)
    for step in run.iterations(config.iterations):
        if state is not None and state.done.all():
            break
        if state is None:
            guess = next(search)
            points, poses, losses = guess.points, guess.poses, [*losses, 2 * guess.cost * N / len(few)]
            shown = scene.only(few)
            if guess.found:
                cameras = (poses, scene.K, scene.distortion)
                start = triangulate(scene.points2d, scene.visible, *cameras).x
                state = nested_start(problem, start[None], poses[None])
        else:
            # far below the threshold, so that what remains is the structure's error and not the optimiser's
            state = nested_step(problem, state, floor=1e-8 * config.threshold if scene.points_start is None else 0.0)
            points, poses, losses = state.theta[0], state.inner[0], [*losses, 2 * state.cost.item()]
            shown = scene
        run.log(step, loss=losses[-1], points=len(points), **shown.errors(points))
        show(run, shown, album, step, points, poses)
        if state is not None and run.due(step):
            run.checkpoint(step, state=tuple(state), losses=losses, album=album)
    if state is None:  # nothing was found in time: the best few points are all there is
        return Learned(points, poses, losses, converged=False, album=album)
    done = losses[-1] < config.threshold if scene.points_start is None else bool(state.done.all())
    return Learned(state.theta[0], state.inner[0], losses, done, album)


def train_network(config: Config, run: Run, scene: Scene) -> Learned:
    """The paper's loop."""
    N = scene.visible.shape[1]
    model = ConstantVgg11(3 * N).to(run.device, run.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    mask = scene.visible if config.masked else None
    poses: Tensor | None = None
    losses: list[float] = []
    album: Album = []
    stalls = 0
    if saved := run.restore():
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        poses, losses, album, stalls = (saved[key] for key in ("poses", "losses", "album", "stalls"))
    for step in run.iterations(config.iterations):
        points = model().view(N, 3)
        found = pnp(scene.points2d, points, scene.K, mask=mask, init=poses)
        switched = 0
        if poses is not None and config.look_again and step % config.look_again == 0:
            with torch.no_grad():
                again = pnp(scene.points2d, points, scene.K, mask=mask)
            better = ~found.converged | (again.converged & (again.cost < 0.999 * found.cost))
            switched = int(better.sum())
            if switched:
                best = torch.where(better[:, None, None], again.x, found.x.detach())
                found = pnp(scene.points2d, points, scene.K, mask=mask, init=best)
        error = (project(points, found.x, scene.K) - scene.points2d) * scene.visible[..., None]
        loss = error.square().sum()
        poses = found.x.detach()
        losses.append(loss.item())
        failed = int((~found.converged).sum())
        run.log(step, loss=loss, switched_views=switched, failed_views=failed, **scene.errors(points.detach()))
        stalls += len(losses) > 1 and 0 < losses[-2] - losses[-1] < 1e-12
        if losses[-1] < config.threshold or stalls == 20:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run.due(step):
            show(run, scene, album, step, points.detach(), poses)
            run.checkpoint(
                step,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                poses=poses,
                losses=losses,
                album=album,
                stalls=stalls,
            )
    assert poses is not None
    with torch.no_grad():
        return Learned(model().view(N, 3), poses, losses, losses[-1] < config.threshold, album)


def show(run: Run, scene: Scene, album: Album, step: int, points: Tensor, poses: Tensor) -> None:
    """The cloud for TensorBoard, with its cameras, and for the album; a point keeps its colour as it moves."""
    values = points[:, 2]
    if scene.points_gt is not None:
        alignment = align_similarity(points, scene.points_gt)
        points, poses = alignment.apply(points), moved_cameras(alignment, poses)
        values = scene.points_gt[:, 0]
    run.cloud("points", step, points, colors=value_colors(values), cameras=poses)
    album.append((step, points.cpu(), values.cpu()))


def moved_cameras(alignment: Similarity, poses: Tensor) -> Tensor:
    """The cameras (V,4,4) of a world that was moved by a similarity."""
    R = poses[:, :3, :3] @ alignment.R.mT
    return se3.make(R, alignment.scale * poses[:, :3, 3] - (R @ alignment.t))


class Refined(NamedTuple):
    """The final bundle, what it saw as a list, and its scene: points (N,3) and poses (V,4,4) laid onto the truth."""

    solution: BundleSolution
    model: Reconstruction
    errors: dict[str, float]
    note: str


def refine(config: Config, scene: Scene, points: Tensor, poses: Tensor) -> Refined:
    """Everything at once, from what was learned: robustly from images, by least squares from a file's tracks."""
    camera, point = scene.visible.nonzero().T.contiguous()
    points2d = scene.points2d[camera, point]
    lenses, index = torch.cat([scene.K.flatten(1), scene.distortion], 1).unique(dim=0, return_inverse=True)
    given = lenses[:, :9].reshape(-1, 3, 3), lenses[:, 9:]
    solution = bundle(
        points2d, camera, point, poses, points, *given, intrinsics_index=index, model=scene.model,
        free=("poses", "points", *scene.free), kernel=cauchy(config.robust_px) if scene.robust else None, max_steps=300,
    )  # fmt: skip
    poses, points, K, distortion = (t.detach().cpu() for t in solution.x)
    errors: dict[str, float] = {}
    note = ""
    if scene.poses_gt is not None:
        rotation, centre = compare(poses, scene.poses_gt.cpu())
        true = se3.inverse(scene.poses_gt.cpu())[:, :3, 3]
        alignment = align_similarity(se3.inverse(poses)[:, :3, 3], true)
        points, poses = alignment.apply(points), moved_cameras(alignment, poses)
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

    The deviations hold for Gaussian noise of the size that the robust cost tells.
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
        told.append(f"{name} {value:.6g} ± {deviation:.2g}{truth}" + (", not determined" if lost else ""))
        if pixels and name in given:
            errors |= {f"{name}_off_px": value - given[name], f"{name}_deviation_px": deviation}
    return ", ".join(told), errors


def scene_figure(model: Reconstruction) -> Figure:
    """Cloud with cameras, and the cloud close by; up is across the plane that fits the cameras best. 98 % of points."""
    corners, X = frusta(model.world_to_camera, model.points3d, model.K[model.intrinsics_index]), array(model.points3d)
    low, high = np.percentile(X, [1, 99], axis=0)
    kept = (X.clip(low, high) == X).all(1)
    _, _, axes3 = np.linalg.svd(corners[:, 0] - corners[:, 0].mean(0))
    up = np.sign(-array(model.world_to_camera)[:, 1, :3].mean(0) @ axes3[2]) * axes3[2]
    turn = np.stack([axes3[0], np.cross(up, axes3[0]), up])
    corners, cloud = corners @ turn.T, X[kept] @ turn.T
    colors = np.full((len(cloud), 3), 0.3) if model.colors is None else array(model.colors)[kept] / 255
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for i, shown in enumerate((np.concatenate([cloud, corners.reshape(-1, 3)]), cloud)):
        axes: Any = figure.add_subplot(1, 2, i + 1, projection="3d", computed_zorder=False)
        axes.scatter(*cloud.T, c=colors, s=(1.0, 4.0)[i], linewidths=0)
        if i == 0:
            lines = corners[:, FRUSTUM_EDGES].reshape(-1, 2, 3)
            axes.add_collection3d(Line3DCollection(lines, colors=ORANGE, linewidths=0.8))
        middle, half = (shown.max(0) + shown.min(0)) / 2, np.ptp(shown, axis=0).max() / 2
        axes.set(**{f"{name}lim": (m - half, m + half) for name, m in zip("xyz", middle, strict=True)})
        axes.set_box_aspect((1, 1, 1), zoom=1.4)
        axes.view_init(elev=(35, 8)[i], azim=-60)
        axes.set_title((f"{len(X)} points, {len(corners)} cameras", "the points")[i], fontsize=10)
        axes.set_axis_off()
    return figure


def reprojection_rms(scene: Scene, points: Tensor, poses: Tensor) -> float:
    """Root mean square distance of the visible points from their projections, in px."""
    error = project(points, poses, scene.K, scene.distortion, model=scene.model) - scene.points2d
    return error.square().sum(-1)[scene.visible].mean().sqrt().item()


def main(config: Config) -> dict:
    try:
        scene = read_scene(config)
    except FileNotFoundError as absent:
        skip(str(absent))
    with Run("structure_from_motion", config) as run:
        if run.finished:
            return run.finished
        scene = scene.to(run.device, run.dtype)
        learn = train_network if config.method == "vgg11_adam" else learn_points
        points, poses, losses, converged, album = learn(config, run, scene)
        complete = len(points) == scene.points2d.shape[1]
        rms, note = float("nan"), scene.note
        colors: Any = None
        found: dict[str, float] = {}
        if complete:
            rms = reprojection_rms(scene, points, poses)
        truth = scene.points_gt
        if scene.poses_start is not None:
            refined = refine(config, scene, points, poses)
            model = refined.model
            converged = converged and bool(refined.solution.converged.all())
            points, poses = (t.to(run.device, run.dtype) for t in (model.points3d, model.world_to_camera))
            K, distortion = (
                lens[model.intrinsics_index].to(run.device, run.dtype) for lens in (model.K, model.distortion)
            )
            found = {"learned_rms": rms, **refined.errors}
            rms = reprojection_rms(replace(scene, K=K, distortion=distortion), points, poses)
            note += refined.note
            colors = model.colors
            run.save_model("colmap", model)
            run.figure("reconstruction", len(losses), scene_figure(model), final=True)
        elif truth is not None and complete:
            alignment = align_similarity(points, truth)
            points, poses = alignment.apply(points), moved_cameras(alignment, poses)
        run.figure("loss", len(losses), loss_curve(losses, config.threshold), final=True)
        errors = scene.errors(points) if complete else {}
        if errors:  # where perspective is weak, the mirror image fits nearly as well: say whether it is that
            errors["rms_share_of_mirror"] = scene.errors(mirror(points))["rms_share"]
        steps, clouds, values = zip(*(album[round(i * (len(album) - 1) / 4)] for i in range(5)), strict=True)
        titles = [f"iteration {step}" for step in steps]
        run.figure("structure", len(losses), point_clouds(clouds, titles, values), final=True)
        if colors is None and complete:
            colors = value_colors(values[-1])
        run.save_points("points", points, colors=colors, cameras=poses)
        return run.finish(
            converged=converged,
            iterations=len(losses),
            loss=losses[-1],
            errors={"reprojection_rms": rms, **found, **errors},
            reference=PAPER if truth is not None and scene.poses_start is None else {},
            note=note,
        )


if __name__ == "__main__":
    main(cli(__doc__, PRESETS))
