"""Structure from motion by backpropagating PnP (paper, section 4.2): 3D points learned from 2D points, no pose known.

Points are predicted, PnP finds the pose of every view, and the reprojection error trains the points through PnP.
Presets: `paper` (VGG-11 and Adam, as published, from a global start of PnP), `default` (the points themselves, from
random ones, by Gauss-Newton with the poses eliminated), `real` (tracks of a BAL file with its intrinsics), `smoke`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from datasets import shared
from datasets.bal import read_bal
from datasets.bpnp_demo import DUCK_UNIT, read_points, read_poses
from datasets.synthetic import duck, half_visible, random_poses
from experiments.figures import loss_curve, point_clouds, value_colors
from experiments.networks import ConstantVgg11
from experiments.run import Run, RunConfig, cli, skip
from geometry import se3
from geometry.camera import in_front, matrix_from_intrinsics, project
from geometry.nested import NestedState, nested_start, nested_step
from geometry.pnp import pnp
from geometry.registration import Similarity, align_similarity
from geometry.structure import StructureProblem, find_structure, mirror, triangulate


@dataclass(frozen=True)
class Config(RunConfig):
    method: Literal["vgg11_adam", "gauss_newton"] = "gauss_newton"
    """The paper's network and optimiser, or the points as free parameters and Gauss-Newton steps."""
    scene: str = "duck"
    """`duck`: a solid made here; `published`: duck and poses of the published demo, from the shared data; else the path
    of a BAL file, here or in the shared data."""
    scene_seed: int = 0
    """Seed of the made scene: points, poses. The run's own seed draws what is unknown: the start."""
    points: int = 1000
    """Of the made scene."""
    views: int = 12
    """Of the made scene and of the published one."""
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
    "real": Config(preset="real", scene="bal/problem-49-7776-pre.txt", iterations=30, log_every=5),
    "smoke": Config(preset="smoke", points=100, search_points=100, views=8),
}


@dataclass(frozen=True)
class Scene:
    """What is known: points2d (V,N,2), visible (V,N), K (V,3,3), distortion (V,k). What is not: the rest, if given."""

    points2d: Tensor
    visible: Tensor
    K: Tensor
    distortion: Tensor
    points_gt: Tensor | None = None
    points_start: Tensor | None = None
    poses_start: Tensor | None = None
    note: str = ""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Scene":
        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device) if value.dtype == torch.bool else value.to(device, dtype)

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
    if config.scene not in ("duck", "published"):
        return read_tracks(shared.locate(config.scene))
    if config.scene == "published":
        points, poses = DUCK_UNIT * read_points("duck")[:1000], se3.from_rotvec_t(read_poses()[: config.views])
    else:
        generator = torch.Generator().manual_seed(config.scene_seed)
        points, poses = duck(config.points, generator), random_poses(config.views, generator)
    K = matrix_from_intrinsics(torch.tensor([0.0005, 0.0005, 0.0, 0.0], dtype=torch.float64)).expand(len(poses), 3, 3)
    points2d = project(points, poses, K)
    return Scene(points2d, half_visible(points, len(poses)), K, K.new_zeros(len(K), 0), points_gt=points)


def read_tracks(path: Path) -> Scene:
    """A BAL file: its tracks and intrinsics are known, its points and poses are where learning starts."""
    tracks = read_bal(path)
    V, N = len(tracks.world_to_camera), len(tracks.points3d)
    dense = torch.zeros(V, N, 2, dtype=torch.float64)
    visible = torch.zeros(V, N, dtype=torch.bool)
    dense[tracks.camera_index, tracks.point_index] = tracks.points2d
    visible[tracks.camera_index, tracks.point_index] = True
    given = int(visible.sum())
    # A point behind one of its cameras has no reprojection error there; a track of one view is no track.
    visible &= in_front(se3.transform(tracks.world_to_camera, tracks.points3d))
    visible &= visible.sum(0) >= 2
    return Scene(
        dense, visible, tracks.K, tracks.distortion, points_start=tracks.points3d, poses_start=tracks.world_to_camera,
        note=f"{given - int(visible.sum())} of {given} observations left out: behind their camera, or of one view only",
    )  # fmt: skip


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
            state = nested_step(problem, state, floor=1e-8 * config.threshold if scene.points_gt is not None else 0.0)
            points, poses, losses = state.theta[0], state.inner[0], [*losses, 2 * state.cost.item()]
            shown = scene
        run.log(step, loss=losses[-1], points=len(points), **shown.errors(points))
        show(run, shown, album, step, points, poses)
        if state is not None and run.due(step):
            run.checkpoint(step, state=tuple(state), losses=losses, album=album)
    if state is None:  # nothing was found in time: the best few points are all there is
        return Learned(points, poses, losses, converged=False, album=album)
    done = bool(state.done.all()) if scene.points_gt is None else losses[-1] < config.threshold
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
        rms = float("nan")
        if complete:
            error = project(points, poses, scene.K, scene.distortion) - scene.points2d
            rms = error.square().sum(-1)[scene.visible].mean().sqrt().item()
        truth = scene.points_gt
        if truth is not None and complete:
            alignment = align_similarity(points, truth)
            points, poses = alignment.apply(points), moved_cameras(alignment, poses)
        run.figure("loss", len(losses), loss_curve(losses, config.threshold), final=True)
        found = scene.errors(points) if complete else {}
        if found:  # where perspective is weak, the mirror image fits nearly as well: say whether it is that
            found["rms_share_of_mirror"] = scene.errors(mirror(points))["rms_share"]
        steps, clouds, values = zip(*(album[round(i * (len(album) - 1) / 4)] for i in range(5)), strict=True)
        titles = [f"iteration {step}" for step in steps]
        run.figure("structure", len(losses), point_clouds(clouds, titles, values), final=True)
        run.save_points("points", points, colors=value_colors(values[-1]) if complete else None, cameras=poses)
        return run.finish(
            converged=converged,
            iterations=len(losses),
            loss=losses[-1],
            errors={"reprojection_rms": rms, **found},
            reference=PAPER if truth is not None else {},
            note=scene.note,
        )


if __name__ == "__main__":
    main(cli(__doc__, PRESETS))
