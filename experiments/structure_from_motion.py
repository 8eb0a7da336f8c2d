"""Structure from motion by backpropagating PnP (paper, section 4.2): 3D points learned from 2D points, no pose known.

Points are predicted, PnP finds the pose of every view, and the reprojection error trains the points through PnP.

Presets:

- default: Learns the points of a made duck themselves, from random ones, by Gauss-Newton with the poses eliminated.
- paper: Learns the published duck by VGG-11 and Adam, as published but for a global start of PnP.
- paper_made: Learns a duck that is made here as `paper` learns the published one.
- real: Reconstructs images: tracks, a first reconstruction camera after camera, points learned through PnP from
  there, then a robust bundle; the lens is sought where it is not given.
- self_calibrated: Reconstructs as `real` does, and seeks the lens though it is given, for comparison.
- smoke: Learns 100 points of a made duck in seconds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from experiments.drawing.figures import loss_curve, value_colors
from experiments.paper.learning import Descent
from experiments.paper.vgg import ConstantVgg11
from experiments.records.quantities import Quantity
from experiments.running.config import RunConfig, at_least
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from experiments.structure.determined import not_determined, shape_deviation
from experiments.structure.refinement import refine
from experiments.structure.reversal import settle
from experiments.structure.scenes import Scene, SceneOptions, has_no_start, read_scene
from geometry import BundleSolution, bundle, find_structure, pnp, project, triangulate
from geometry.optim import NestedState, nested_start, nested_step
from geometry.reconstruction import Guess, mirror


@dataclass(frozen=True)
class Config(SceneOptions, RunConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts("with --method vgg11_adam", ("learning_rate", "masked"), lambda config: config.method == "vgg11_adam"),
        Acts(
            "with --method gauss_newton and a --scene without poses: duck, published",
            ("candidates", "search_points"),
            lambda config: config.method == "gauss_newton" and has_no_start(config.scene),
        ),
        Acts(
            "with a --scene without poses: duck, published",
            ("finish", "known"),
            lambda config: has_no_start(config.scene),
        ),
    )

    method: Literal["vgg11_adam", "gauss_newton"] = "gauss_newton"
    """Chooses the paper's network and optimiser, or the points as free parameters and Gauss-Newton steps."""
    iterations: int = 200
    """Limits the number of steps."""
    threshold: float = 1e-10
    """Sets the loss at which the run counts as converged: the sum of squared errors in the units of K (f = 0.0005)."""
    learning_rate: float = 1e-3
    """Sets the rate of Adam."""
    masked: bool = True
    """Says whether PnP gets the visible points only. The published demo gives it all of them and masks
    the loss alone."""
    finish: bool = False
    """Takes at most 6 Gauss-Newton steps from what was learned from nothing and from its mirror image, and keeps the
    better."""
    known: float = 0.1
    """Sets how far errors that leave a loss as large as the threshold may move a shape that is learned from nothing, as
    a share of its size, for it to count as determined; one that fits without any does, too."""
    candidates: int = 8
    """Sets how many random structures are searched at once, on a few points, before all points are learned."""
    search_points: int = 80
    """Sets the number of points of that search."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "candidates", "search_points")
        at_least(self, 0, "robust_px", "inlier_px")


EXACT = 1e-8
"""Share of the threshold down to which a descent goes on, so that what remains is the structure's error and not the
optimiser's: a fit without errors in its pixels."""
PAPER = {"loss": "1e-10, or stalled"}
_PUBLISHED = Config(
    preset="paper",
    method="vgg11_adam",
    scene="published",
    iterations=1000,
    masked=False,
    dtype="float32",
    threads=2,
    log_every=50,
)
PRESETS = {
    "default": Config(preset="default"),
    "paper": _PUBLISHED,
    "paper_made": replace(_PUBLISHED, preset="paper_made", scene="duck"),
    "real": Config(preset="real", scene="temple_sparse_ring", iterations=30, log_every=5),
    "self_calibrated": Config(
        preset="self_calibrated",
        scene="temple_sparse_ring",
        intrinsics_known=False,
        iterations=30,
        log_every=5,
    ),
    "smoke": Config(preset="smoke", points=100, search_points=100, views=8),
}


class Learned(NamedTuple):
    """Points (N,3), poses (V,4,4), losses over iterations, and whether they are at their end; which of the scene's
    points these are, None for all, and why not all."""

    points: Tensor
    poses: Tensor
    losses: list[float]
    converged: bool
    columns: Tensor | None = None
    message: str = ""


def read(config: Config) -> Scene:
    """The scene, with a first reconstruction of images, which is part of the run."""
    torch.set_num_threads(config.threads)
    return read_scene(config, config.seed)


@experiment("structure_from_motion", read)
def main(run: Run, config: Config, given: Scene) -> dict:
    scene = given.to(run.device, run.dtype)
    run.stage(
        colors=scene.colors,
        views=scene.visible.sum(0),
        points3d_gt=scene.points_gt,
        world_to_camera_gt=scene.poses_gt,
        K=scene.K,
        targets={"loss": config.threshold} if scene.points_start is None else {},
    )
    learned = (train_network if config.method == "vgg11_adam" else learn_points)(config, run, scene)
    if scene.poses_start is None:
        found = laid(config, given.to(run.device, torch.float64), learned)
    else:
        found = bundled(config, run, scene, learned)
    return tell(config, run, learned, found)


# ---- learning ----


def learn_points(config: Config, run: Run, scene: Scene) -> Learned:
    """Gauss-Newton with the poses eliminated, from a start that is given or else searched."""
    problem = scene.problem(global_poses=False)
    losses: list[float] = []
    state: NestedState | None = None
    steps = run.iterations(config.iterations)
    if saved := run.restore():
        state, losses = NestedState(*saved["state"]), saved["losses"]
    elif scene.points_start is not None and scene.poses_start is not None:
        state = nested_start(problem, scene.points_start[None], scene.poses_start[None])
    else:
        few = search(config, run, scene, steps)
        if not few.converged:  # they are all there is
            return few
        points = triangulate(scene.points2d, scene.visible, few.poses, scene.K, scene.distortion).x
        state = nested_start(problem, points[None], few.poses[None])
        losses = few.losses
        run.checkpoint(len(losses) - 1, state=tuple(state), losses=losses)  # the search is not repeated
    searched = scene.points_start is None
    floor = EXACT * config.threshold if searched else 0.0
    for step in steps:
        if state.done.all():
            break
        state = nested_step(problem, state, floor=floor)
        losses.append(2 * state.cost.item())
        points, poses = state.theta[0], state.inner[0]
        run.log(step, loss=losses[-1], points=len(points), **scene.errors(points))
        if run.records(step):
            show(run, scene, step, points, poses)
        if run.due(step):
            run.checkpoint(step, state=tuple(state), losses=losses)
    done = losses[-1] < config.threshold if searched else bool(state.done.all())
    return Learned(state.theta[0], state.inner[0], losses, done)


def search(config: Config, run: Run, scene: Scene, steps: Iterator[int]) -> Learned:
    """A few of the points, sought from random ones: converged where they fit."""
    N = scene.points2d.shape[1]
    few = some_points(scene.visible, config.search_points, torch.randperm(N).to(run.device))
    seen = scene.only(few)
    # noise of which the threshold is the loss
    sigma = (config.threshold / (2 * int(scene.visible.sum()))) ** 0.5
    losses: list[float] = []

    def watch(guess: Guess) -> bool:
        """Log and show the best so far; whether the search has had all its steps."""
        step = next(steps, None)
        if step is None:
            return True
        losses.append(2 * guess.cost * N / len(few))
        run.log(step, loss=losses[-1], points=len(few), **seen.errors(guess.points))
        if run.records(step):
            show(run, seen, step, guess.points, guess.poses, among=(few, N))
        return False

    found = find_structure(
        seen.points2d, seen.visible, seen.K, seen.distortion, model=seen.model, sigma=sigma,
        candidates=config.candidates, callback=watch,
    )  # fmt: skip
    # whether the data determine the shape is asked of all points, at the end
    return Learned(found.points3d, found.world_to_camera, losses, found.verdict != "EXHAUSTED", few, found.message)


def some_points(visible: Tensor, wanted: int, order: Tensor) -> Tensor:
    """The first points in this order (N,), as many as wanted, and more until each view sees six of them, or all that it
    sees at all."""
    seen = visible[:, order].cumsum(1)
    enough = (seen >= seen[:, -1:].clamp(max=6)).all(0)
    return order[: max(wanted, int(enough.to(torch.int8).argmax()) + 1)]


def train_network(config: Config, run: Run, scene: Scene) -> Learned:
    """The paper's loop."""
    N = scene.visible.shape[1]
    model = ConstantVgg11(3 * N).to(run.device, run.dtype)
    # fused: of 75 million numbers in a tenth of the time
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    learning = Descent(run, lambda: model().view(N, 3), optimizer)
    mask = scene.visible if config.masked else None
    losses = learning.losses
    for step, points in learning.steps(config.iterations, config.threshold):
        found = pnp(scene.points2d, points, scene.K, mask=mask, init=learning.poses)
        error = (project(points, found.x, scene.K) - scene.points2d) * scene.visible[..., None]
        learning.found(error.square().sum(), found.x)
        failed, reached = int((~found.converged).sum()), learning.history[-1]
        run.log(step, loss=losses[-1], failed_views=failed, **scene.errors(reached))
        if run.records(step):
            show(run, scene, step, reached, found.x.detach())
        if sum(0 < before - after < 1e-12 for before, after in pairwise(losses)) == 20:  # it stalls
            break
    assert learning.poses is not None
    return Learned(learning.prediction, learning.poses, losses, losses[-1] < config.threshold)


def show(
    run: Run, scene: Scene, step: int, points: Tensor, poses: Tensor, among: tuple[Tensor, int] | None = None
) -> None:
    """A frame: points and cameras laid onto the truth where there is one. among: which of how many points these are."""
    error_px = scene.reprojection_error(points, poses) if scene.points_gt is None else None
    points, poses = scene.laid_onto_truth(points, poses)
    if among is not None:
        columns, N = among
        points = points.new_full((N, 3), torch.nan).index_copy(0, columns, points)
    run.frame(step, points3d=points, world_to_camera=poses, error_px=error_px)


# ---- what was learned ----


class Found(NamedTuple):
    """The scene with its lenses as they are known at the end, and what was found in it, in the truth's frame; whether
    it is what was to be found, and what of it the data do not determine."""

    scene: Scene
    points: Tensor
    poses: Tensor
    loss: float
    converged: bool
    undetermined: list[str]
    errors: dict[str, float]
    colors: Any = None
    intrinsics: Mapping[str, Quantity] = MappingProxyType({})


def shape(scene: Scene, points: Tensor) -> dict[str, float]:
    """`Scene.errors`, and the rms of the mirror image, which fits nearly as well where perspective is weak."""
    errors = scene.errors(points)
    return {**errors, "rms_share_of_mirror": scene.errors(mirror(points))["rms_share"]} if errors else {}


def laid(config: Config, scene: Scene, learned: Learned) -> Found:
    """What was learned from nothing, beside its mirror image, laid onto the truth."""
    N, note = scene.points2d.shape[1], scene.note
    if learned.columns is not None:
        scene = scene.only(learned.columns)
        note = f"{len(learned.columns)} of {N} points were searched, {learned.message}"
    points, poses = learned.points.to(scene.points2d), learned.poses.to(scene.points2d)
    loss, errors = learned.losses[-1], {}
    pair = settle(scene.problem(global_poses=True), points)
    kept = pair.better if config.finish else 0
    if config.finish:
        errors = {"learned_loss": loss, **{f"learned_{name}": value for name, value in shape(scene, points).items()}}
        points, poses, loss = pair.points[kept], pair.poses[kept], pair.losses[kept].item()
    other = pair.losses[1 - kept].item()
    camera, point = scene.visible.nonzero().T.contiguous()
    pixels, start, lens = (
        scene.points2d[camera, point],
        (pair.poses[kept], pair.points[kept]),
        (scene.K, scene.distortion),
    )

    def adjusted(points2d: Tensor) -> BundleSolution:
        return bundle(points2d, camera, point, *start, *lens, model=scene.model, gauge="free")

    undetermined = not_determined(adjusted(pixels), camera, point, scene.names)
    # what the threshold lets pass may be noise, or a minimum beside the right one
    level = loss if loss < EXACT * config.threshold else max(loss, config.threshold)
    deviation = shape_deviation(adjusted, pixels, level)
    if not undetermined and not deviation < config.known:
        undetermined.append(f"The shape: errors that leave such a loss move it by {100 * deviation:.0f} % of its size.")
    if not undetermined and not pair.apart:
        undetermined.append(f"Which of two shapes that mirror each other: losses end at {loss:.3g} and {other:.3g}.")
    elif kept != pair.better:
        note = f"{note}; the mirror image fits better: its loss ends at {other:.3g} (--finish takes it)".lstrip("; ")
    errors |= {"mirror_loss": other, "deviation_share": deviation}
    errors["reprojection_rms_px"] = scene.reprojection_rms(points, poses)
    converged = loss < config.threshold and kept == pair.better and learned.columns is None
    points, poses = scene.laid_onto_truth(points, poses)
    return Found(replace(scene, note=note), points, poses, loss, converged, undetermined, errors)


def bundled(config: Config, run: Run, scene: Scene, learned: Learned) -> Found:
    """What was learned from a start, adjusted once more together with the intrinsics that are free."""
    learned_rms = scene.reprojection_rms(learned.points, learned.poses)
    refined = refine(scene, learned.points, learned.poses, config.robust_px)
    model, index = refined.model, refined.model.intrinsics_index
    run.save_model("colmap", model)
    points, poses, K, distortion = (
        value.to(run.device, run.dtype)
        for value in (model.points3d, model.world_to_camera, model.K[index], model.distortion[index])
    )
    scene = replace(scene, K=K, distortion=distortion, note=scene.note + refined.note)
    rms = scene.reprojection_rms(points, poses)
    converged = learned.converged and bool(refined.solution.converged.all())
    errors = {**refined.errors, "learned_rms_px": learned_rms, "reprojection_rms_px": rms}
    loss, undetermined = learned.losses[-1], refined.undetermined
    return Found(scene, points, poses, loss, converged, undetermined, errors, model.colors, refined.found)


def tell(config: Config, run: Run, learned: Learned, found: Found) -> dict:
    """The figures, the point cloud and the summary."""
    from experiments.viewers.picture import evolution, picture  # a viewer: not before there is something to see

    scene, points, poses, loss, converged, undetermined, errors, colors, intrinsics = found
    last, note, from_nothing = len(learned.losses), scene.note, scene.poses_start is None
    if learned.columns is None:
        show(run, scene, last, points, poses)
    errors = {**shape(scene, points), **errors}
    if from_nothing and errors.get("rms_share_of_mirror", 1.0) < errors.get("rms_share", 0.0):
        note = f"{note}; what was found is the mirror image of the truth".lstrip("; ")
    if scene.points_gt is not None:
        colors = value_colors(scene.points_gt[:, 0])
    run.figure(
        "loss", last, loss_curve(learned.losses, config.threshold if scene.points_start is None else None), final=True
    )
    shown = run.recorded()
    run.figure("structure", last, evolution(shown), final=True)
    run.figure("scene", last, picture(shown), final=True)
    run.save_points("points", points, colors=colors, cameras=poses)
    return run.finish(
        converged=converged,
        goal=f"loss below {config.threshold:g} and the mirror image's" if from_nothing else "a minimum of the bundle",
        iterations=last,
        loss=loss,
        errors=errors,
        reference=PAPER if scene.points_gt is not None and from_nothing else {},
        note=note,
        picture="structure" if scene.colors is None else "scene",
        undetermined=undetermined,
        found=intrinsics,
        left_out=scene.left_out,
    )


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
