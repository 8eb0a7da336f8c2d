"""Structure from motion by backpropagating PnP (paper, section 4.2): 3D points learned from 2D points, no pose known.

Points are predicted, PnP finds the pose of every view, and the reprojection error trains the points through PnP.
Presets: `paper` (VGG-11 and Adam, as published, from a global start of PnP), `default` (the points themselves, from
random ones, by Gauss-Newton with the poses eliminated), `real` (images with known K: tracks, a first reconstruction
camera after camera, points learned through PnP from there, then a robust bundle), `self_calibrated` (the same, K
unknown, which the paper has not), `smoke`.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from experiments.drawing.figures import loss_curve, value_colors
from experiments.paper.vgg import ConstantVgg11
from experiments.running.config import RunConfig, cli, skip
from experiments.running.run import Run
from experiments.structure.refinement import refine
from experiments.structure.scenes import Scene, SceneOptions, read_scene
from geometry import find_structure, pnp, project, triangulate
from geometry.optim import NestedState, nested_start, nested_step
from geometry.reconstruction import mirror


@dataclass(frozen=True)
class Config(SceneOptions, RunConfig):
    method: Literal["vgg11_adam", "gauss_newton"] = "gauss_newton"
    """The paper's network and optimiser, or the points as free parameters and Gauss-Newton steps."""
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


class Learned(NamedTuple):
    """Points (N,3), poses (V,4,4), losses over iterations, and whether they are at their end."""

    points: Tensor
    poses: Tensor
    losses: list[float]
    converged: bool


def learn_points(config: Config, run: Run, scene: Scene) -> Learned:
    """Gauss-Newton with the poses eliminated.

    Without a start, a structure of a few points is searched first; the poses it comes with triangulate all points.
    """
    N = scene.points2d.shape[1]
    problem = scene.problem(global_poses=False)
    losses: list[float] = []
    state: NestedState | None = None
    if saved := run.restore():
        state, losses = NestedState(*saved["state"]), saved["losses"]
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
            shown, columns = scene.only(few), few
            if guess.found:
                cameras = (poses, scene.K, scene.distortion)
                start = triangulate(scene.points2d, scene.visible, *cameras).x
                state = nested_start(problem, start[None], poses[None])
        else:
            # far below the threshold, so that what remains is the structure's error and not the optimiser's
            state = nested_step(problem, state, floor=1e-8 * config.threshold if scene.points_start is None else 0.0)
            points, poses, losses = state.theta[0], state.inner[0], [*losses, 2 * state.cost.item()]
            shown, columns = scene, None
        run.log(step, loss=losses[-1], points=len(points), **shown.errors(points))
        if run.records(step):
            show(run, shown, step, points, poses, columns, N)
        if state is not None and run.due(step):
            run.checkpoint(step, state=tuple(state), losses=losses)
    if state is None:  # nothing was found in time: the best few points are all there is
        return Learned(points, poses, losses, converged=False)
    done = losses[-1] < config.threshold if scene.points_start is None else bool(state.done.all())
    return Learned(state.theta[0], state.inner[0], losses, done)


def train_network(config: Config, run: Run, scene: Scene) -> Learned:
    """The paper's loop."""
    N = scene.visible.shape[1]
    model = ConstantVgg11(3 * N).to(run.device, run.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    mask = scene.visible if config.masked else None
    poses: Tensor | None = None
    losses: list[float] = []
    stalls = 0
    if saved := run.restore():
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        poses, losses, stalls = (saved[key] for key in ("poses", "losses", "stalls"))
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
        if run.records(step):
            show(run, scene, step, points.detach(), poses)
        if run.due(step):
            run.checkpoint(
                step,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                poses=poses,
                losses=losses,
                stalls=stalls,
            )
    assert poses is not None
    with torch.no_grad():
        return Learned(model().view(N, 3), poses, losses, losses[-1] < config.threshold)


def show(
    run: Run, scene: Scene, step: int, points: Tensor, poses: Tensor, columns: Tensor | None = None, N: int = 0
) -> None:
    """A frame: points and cameras laid onto the truth where there is one. columns: which of the N points these are."""
    error_px = scene.reprojection_error(points, poses) if scene.points_gt is None else None
    points, poses = scene.laid_onto_truth(points, poses)
    if columns is not None and len(columns) < N:
        points = points.new_full((N, 3), torch.nan).index_copy(0, columns, points)
    run.frame(step, points3d=points, world_to_camera=poses, error_px=error_px)


def main(config: Config) -> dict:
    torch.set_num_threads(config.threads)  # the first reconstruction is part of the run
    try:
        scene = read_scene(config, config.seed)
    except FileNotFoundError as absent:
        skip(str(absent))
    with Run("structure_from_motion", config) as run:
        if run.finished:
            return run.finished
        from experiments.viewers.picture import evolution, picture  # a viewer: not before there is a run

        scene = scene.to(run.device, run.dtype)
        run.stage(
            colors=scene.colors,
            views=scene.visible.sum(0),
            points3d_gt=scene.points_gt,
            world_to_camera_gt=scene.poses_gt,
            K=scene.K,
            targets={"loss": config.threshold} if scene.points_start is None else {},
        )
        learn = train_network if config.method == "vgg11_adam" else learn_points
        points, poses, losses, converged = learn(config, run, scene)
        complete = len(points) == scene.points2d.shape[1]
        rms, note = float("nan"), scene.note
        colors: Any = None
        found: dict[str, float] = {}
        if complete:
            rms = scene.reprojection_rms(points, poses)
        truth = scene.points_gt
        if scene.poses_start is not None:
            refined = refine(scene, points, poses, config.robust_px)
            model = refined.model
            converged = converged and bool(refined.solution.converged.all())
            points, poses = (t.to(run.device, run.dtype) for t in (model.points3d, model.world_to_camera))
            K, distortion = (
                lens[model.intrinsics_index].to(run.device, run.dtype) for lens in (model.K, model.distortion)
            )
            found = {**refined.errors, "learned_rms": rms}
            scene = replace(scene, K=K, distortion=distortion)
            rms = scene.reprojection_rms(points, poses)
            note += refined.note
            colors = model.colors
            run.save_model("colmap", model)
        elif complete:
            points, poses = scene.laid_onto_truth(points, poses)
        if complete:
            show(run, scene, len(losses), points, poses)
        run.figure("loss", len(losses), loss_curve(losses, config.threshold), final=True)
        errors = scene.errors(points) if complete else {}
        if errors:  # where perspective is weak, the mirror image fits nearly as well: say whether it is that
            errors["rms_share_of_mirror"] = scene.errors(mirror(points))["rms_share"]
        shown = run.recorded()
        run.figure("structure", len(losses), evolution(shown), final=True)
        run.figure("scene", len(losses), picture(shown), final=True)
        if truth is not None and complete:
            colors = value_colors(truth[:, 0])
        run.save_points("points", points, colors=colors, cameras=poses)
        return run.finish(
            converged=converged,
            iterations=len(losses),
            loss=losses[-1],
            errors={**errors, **found, "reprojection_rms": rms},
            reference=PAPER if truth is not None and scene.poses_start is None else {},
            note=note,
            picture="structure" if scene.colors is None else "scene",
        )


if __name__ == "__main__":
    main(cli(__doc__, PRESETS))
