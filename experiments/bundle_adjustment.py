"""Bundle adjustment of a reconstruction file of yours: BAL, COLMAP, Bundler or libmv in, COLMAP and PLY out.

    python -m experiments.bundle_adjustment default --scene my_problem.txt --robust-px 1

The run says at its end: rms before and after, observations left out or behind their camera, what of `--free` the data
do not determine. Points whose depth they leave open are not in what it writes.

Presets:

- default: Adjusts Ladybug, or the --scene that is given, with what its cameras have of f, k1 and k2.
- smoke: Adjusts a small file with its intrinsics held.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from datasets import locate
from datasets.reconstructions.model import Reconstruction
from datasets.reconstructions.read import read_reconstruction
from experiments.drawing.figures import loss_curve
from experiments.records.quantities import Quantity
from experiments.running.config import RunConfig, at_least, told_in_a_sentence
from experiments.running.determined import LOOSE, is_loose, undetermined_names
from experiments.running.mistyped import check_names
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from geometry import GaugeChoice, bundle, cauchy
from geometry.bundle_adjustment import BundleSolution
from geometry.lenses import LENSES
from geometry.optim import Status


@dataclass(frozen=True)
class Config(RunConfig):
    names_data: ClassVar[tuple[str, ...]] = ("scene",)

    scene: str = "bal/problem-49-7776-pre.txt"
    """Names a BAL, Bundler .out or libmv .bin file, or the folder of a COLMAP model; here or in the shared data."""
    free: tuple[str, ...] = ()
    """Lists what to seek: poses, points, sensors (of a COLMAP model with rigs), intrinsics by name (f, or fx and fy;
    cx, cy, k1, k2, p1, ...). Left empty, it is poses, points, and of f, k1, k2 what the cameras of the file have."""
    robust_px: float = 0.0
    """Sets the scale of a Cauchy kernel; 0 means least squares."""
    gauge: GaugeChoice = "fixed"
    """Keeps the first camera where it is (fixed), or all of them on the whole (free)."""
    max_steps: int = 200
    """Limits the number of steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "robust_px")


SCENE = ("poses", "points", "sensors")
"""What of `free` is no intrinsic."""

FEW_LENSES, FEW_VIEWS = 4, 200
"""Lenses whose numbers are told one by one, and views up to which their deviations take no longer than the rest."""

PRESETS = {
    "default": Config(preset="default", threads=2),
    "smoke": Config(preset="smoke", scene="bal/dubrovnik-3-7-pre.txt", free=("poses", "points")),
}


def rms(residual: Tensor) -> float:
    """Root mean square length of residuals (M,2)."""
    return residual.square().sum(-1).mean().sqrt().item()


def sought(free: tuple[str, ...], scene: Reconstruction) -> tuple[str, ...]:
    """The names of `--free`, or else what the lenses of the file have.

    Raises ValueError naming the one that is none, and where sensors are sought of what has no rigs.
    """
    lens = LENSES[scene.model].names
    check_names("free", free, (*SCENE, "f", "fx", "fy", "cx", "cy", "skew", *lens))
    if "sensors" in free and scene.rigs is None:
        raise ValueError("free: sensors are of a COLMAP model with rigs, and this scene has none")
    of_file = lens[: scene.distortion.shape[1] if scene.coefficients is None else scene.coefficients]
    return free or ("poses", "points", "f", *(name for name in ("k1", "k2") if name in of_file))


def read(config: Config) -> tuple[Reconstruction, tuple[str, ...]]:
    """The scene with room for what is sought of its lenses, and the names of all that is."""
    scene = read_reconstruction(locate.locate(config.scene))
    free, lens = sought(config.free, scene), LENSES[scene.model]
    k = scene.distortion.shape[1]
    needed = max([k, *(lens.names.index(name) + 1 for name in free if name in lens.names)])
    room = min(count for count in lens.counts if count >= needed)
    return replace(scene, distortion=torch.nn.functional.pad(scene.distortion, (0, room - k))), free


@experiment("bundle_adjustment", read)
def main(run: Run, config: Config, given: tuple[Reconstruction, tuple[str, ...]]) -> dict:
    scene, free = given
    views = scene.point_index.bincount(minlength=len(scene.points3d))
    run.stage(colors=scene.colors, views=views, K=scene.K[scene.intrinsics_index])
    run.frame(0, points3d=scene.points3d, world_to_camera=scene.world_to_camera)
    costs: list[float] = []

    steps = run.iterations(config.max_steps + 1)

    def tell(step: int, cost: float) -> None:
        costs.append(cost)
        run.log(next(steps, len(costs) - 1), loss=cost)

    rigs = scene.rigs
    mounted: dict[str, Any] = {}
    if rigs is not None:
        names = ("rig_index", "sensor_index", "sensor_from_rig", "fixed_sensors")
        mounted = {name: getattr(rigs, name).to(run.device) for name in names}
    start = scene.world_to_camera if rigs is None else rigs.world_to_rig

    def solve(free: tuple[str, ...], callback: Callable[[int, float], None] | None = None) -> BundleSolution:
        return bundle(
            *(t.to(run.device) for t in (scene.points2d, scene.camera_index, scene.point_index)),
            *(t.to(run.device) for t in (start, scene.points3d, scene.K, scene.distortion)),
            intrinsics_index=scene.intrinsics_index.to(run.device), free=free, model=scene.model,
            kernel=cauchy(config.robust_px) if config.robust_px else None, gauge=config.gauge,
            max_steps=config.max_steps, callback=callback, **mounted,
        )  # fmt: skip

    with told_in_a_sentence():  # names that do not go together
        found = solve(free, tell)
    problem, data = found.task.problem, found.task.data
    with torch.no_grad():
        r = problem.residual(problem.compose(found.state, data.given), data)
        before = problem.residual(data.given, data)
    poses, points, K, distortion = (t.cpu() for t in found.x[:4])
    if rigs is not None and found.x.sensor_from_rig is not None:
        rigs = rigs._replace(world_to_rig=poses, sensor_from_rig=found.x.sensor_from_rig.cpu())
        poses = rigs.world_to_camera
    model = replace(scene, world_to_camera=poses, points3d=points, K=K, distortion=distortion, rigs=rigs)
    model = without_points(model, found.undetermined.cpu())
    points = torch.where(found.undetermined.cpu()[:, None], torch.nan, points)
    run.frame(max(1, len(costs) - 1), points3d=points, world_to_camera=poses, K=K[scene.intrinsics_index])
    run.save_model("colmap", model)
    run.save_points("points", model.points3d, colors=model.colors, cameras=poses)
    run.figure("loss", len(costs), loss_curve(costs), final=True)
    left_out = (
        (f"{int(found.left_out.sum())} observations", int(found.left_out.sum()), "they determine nothing"),
        (f"{int(found.undetermined.sum())} points", int(found.undetermined.sum()), "the data leave their depth open"),
    )
    rms_after = Quantity(rms(r), unit="px", reference=f"{rms(before):.6g} at the start")
    intrinsics = lenses(found)
    return run.finish(
        found={"rms": rms_after, **intrinsics},
        converged=bool(found.converged),
        goal="minimum of the reprojection error",
        iterations=len(costs) - 1,
        loss=found.cost.item(),
        errors={"rms_before_px": rms(before), "rms_after_px": rms(r)},
        note=found.message,
        undetermined=undetermined(found, free, solve) + loose(intrinsics),
        left_out={name: why for name, count, why in left_out if count},
    )


def lenses(found: BundleSolution) -> dict[str, Quantity]:
    """The free intrinsics of each lens with their deviations, where there are few enough to read."""
    problem, theta = found.task.problem, found.state.theta
    used = problem.layout.view.unique()
    first = {int(problem.intrinsics_index[view]): int(view) for view in used.flip(0)}  # a view of each lens
    if not found.converged or len(first) > FEW_LENSES or len(used) > FEW_VIEWS or not problem.names:
        return {}
    variances = found.covariance().cameras.diagonal(dim1=1, dim2=2)
    return {
        name if len(first) == 1 else f"lens {lens} {name}": Quantity(
            theta[lens, i].item(), variances[view, 6 + i].sqrt().item(), "px" if name[0] in "fc" else ""
        )
        for lens, view in sorted(first.items())
        for i, name in enumerate(problem.names)
    }


def loose(intrinsics: Mapping[str, Quantity]) -> list[str]:
    """A sentence on focal lengths that the data hardly tell."""
    names = [
        name
        for name, each in intrinsics.items()
        if name.split(" ")[-1] in ("f", "fx", "fy") and not each.is_open  # what is open is told by the run
        if each.deviation is not None and is_loose(each.deviation, each.value)
    ]
    return [f"The data hardly tell {', '.join(names)}: deviations are above {LOOSE:.0%} of it."] if names else []


def undetermined(
    found: BundleSolution, free: tuple[str, ...], solve: Callable[[tuple[str, ...]], BundleSolution]
) -> list[str]:
    """A sentence on what of `free` the data do not determine, which a bundle without it, `solve(names)`, tells."""
    if int(found.status) not in (Status.SINGULAR, Status.TOO_FEW):
        return []
    scene = tuple(name for name in free if name in SCENE)
    groups = [scene, *((name,) for name in free if name not in SCENE)]
    names = undetermined_names(filter(None, groups), lambda names: bool(solve(names).converged))
    kept = [name for name in free if name not in names]
    beside = f" beside {', '.join(kept)}" if kept else ""
    return [f"The data do not determine {', '.join(names or free)}{beside}: {found.message}."]


def without_points(model: Reconstruction, out: Tensor) -> Reconstruction:
    """The same without the points where out (N,) is true, and without what was seen of them."""
    kept, number = ~out[model.point_index], (~out).cumsum(0) - 1
    return replace(
        model,
        points3d=model.points3d[~out],
        colors=None if model.colors is None else model.colors[~out],
        points2d=model.points2d[kept],
        camera_index=model.camera_index[kept],
        point_index=number[model.point_index[kept]],
    )


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
