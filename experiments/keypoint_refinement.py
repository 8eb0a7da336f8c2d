"""Keypoints refined by a network that learns through a bundle: no pixel is labelled, cameras are.

SIFT's tracks of rendered scenes are aligned by their greys; a small network looks at the aligned patches of a track and
says of each observation how it should move and how much to trust it. A bundle adjusts cameras and points to that, and
their errors, against the truth of the renderer, train the network through the bundle (`poses`). Beside it, the same
network learns from residuals under the true cameras (`residuals`), for which points alone must be found.

Tested on scenes that were not learned from, beside SIFT, OpenCV's cornerSubPix and the alignment without a network, and
on photographs with measured cameras. The run's network.pt is for `experiments.features.network.refine_tracks`.

Presets:

- default: Learns from 24 rendered scenes and tests on 20 others and on photographs.
- smoke: Takes four steps on small scenes, to see that everything works.
"""

import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.locate import AbsentDataError
from datasets.made.surfaces import Solids
from experiments.drawing.shapes import by_method, curves
from experiments.features.figures import error_curves, patch_sheet
from experiments.features.judging import Judged, corners, halves_differ, judge
from experiments.features.network import Refined, RefinementNetwork, save_network
from experiments.features.objectives import pose_loss, residual_loss
from experiments.features.patches import Aligned, align
from experiments.features.photographs import photographs_folder, read_photographs
from experiments.features.tracked import Made, Tracked, adjusted, made_scene
from experiments.records.files import write_json, write_text
from experiments.records.text import number, table
from experiments.running import saved
from experiments.running.options import Acts
from experiments.running.run import Run, experiment
from experiments.running.telling import command
from experiments.running.training import Training, TrainingConfig, side_by_side

Objective = Literal["poses", "residuals"]
LOSSES: dict[Objective, Callable[[Made, Refined], Tensor]] = {"poses": pose_loss, "residuals": residual_loss}
_TEST = 1_000_000
"""Test scenes have seeds from here on, other ones for each seed of a run, and training scenes below."""


@dataclass(frozen=True)
class Config(TrainingConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts("with --photographs", ("halves",), lambda config: bool(config.photographs)),
    )
    names_data: ClassVar[tuple[str, ...]] = ("photographs",)

    methods: tuple[Objective, ...] = ("poses", "residuals")
    """Lists what the network learns from; all are trained side by side, on the same tracks."""
    iterations: int = 800
    """Sets the number of steps of each method."""
    batch: int = 2
    """Sets the number of scenes a step."""
    tracks: int = 100
    """Sets the number of tracks of a scene in a step; they are drawn anew each time."""
    learning_rate: float = 2e-3
    """Sets the highest rate of AdamW's one-cycle schedule."""
    width: int = 16
    """Sets the channels of the network's first layer."""
    scenes: int = 24
    """Sets the number of scenes to learn from."""
    test_scenes: int = 20
    """Sets the number of scenes to test on."""
    most: int = 400
    """Limits the tracks of a scene."""
    views: int = 6
    """Sets the number of pictures of a scene."""
    image_size: tuple[int, int] = (320, 240)
    """Sets the width and height of the pictures."""
    photographs: str = "temple_sparse_ring"
    """Names a Middlebury set, by path or name in the shared data, to test on as well; left empty, there is none."""
    halves: int = 5
    """Sets how often the photographs' tracks are halved, to tell how much of their error is random."""


PRESETS = {
    "default": Config(preset="default", log_every=50),
    "smoke": Config(
        preset="smoke", iterations=4, batch=1, tracks=30, scenes=2, test_scenes=2, most=60, views=4,
        image_size=(160, 120), photographs="", log_every=2,
    ),
}  # fmt: skip


class Sample(NamedTuple):
    """A scene and its aligned patches."""

    made: Made
    aligned: Aligned

    def of(self, points: Tensor) -> "Sample":
        """Some of its tracks."""
        tracked, kept = self.made.tracked.of(points)
        return Sample(self.made._replace(tracked=tracked), Aligned(*(value[kept] for value in self.aligned)))


def prepared(config: Config, seed: int) -> Sample:
    """The scene of a seed, which is kept beside the results."""
    width, height = config.image_size
    path = config.out / "data" / f"surfaces-{width}x{height}-{config.views}-{config.most}" / f"{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = made_scene(seed, config.views, config.image_size, config.most)
        kept = {"tracked": tuple(made.tracked), "poses": made.world_to_camera_gt, "solids": tuple(made.solids)}
        saved.save(path, kept | {"aligned": tuple(align(made.tracked))})
    value, _ = saved.load(path, "a rendered scene")
    made = Made(Tracked(*value["tracked"]), value["poses"], Solids(*value["solids"]))
    return Sample(made, Aligned(*value["aligned"]))


class Learner:
    """A network, what it learns from, and how it is trained."""

    def __init__(self, method: Objective, config: Config) -> None:
        torch.manual_seed(config.seed)  # all begin alike
        self.network = RefinementNetwork(config.width)
        self.loss, self.training = LOSSES[method], Training(self.network, config.learning_rate, config.iterations)

    def learn(self, samples: list[Sample]) -> float:
        """One step: the mean loss before it."""
        with self.training.timed():
            losses = [self.loss(some.made, self.refined(some)) for some in samples]
            loss = torch.stack(losses).mean()
            self.training.step(loss)
        return loss.item()

    def refined(self, some: Sample) -> Refined:
        """What the network makes of a scene's observations."""
        return self.network.refine(some.aligned, some.made.tracked.point)


def look(config: Config) -> None:
    """What is wrong with the photographs is told before hours of training; they are read after it."""
    if config.photographs:
        with suppress(AbsentDataError):
            photographs_folder(config.photographs)


@experiment("keypoint_refinement", look)
def main(run: Run, config: Config, _: None) -> dict[str, Any]:
    """Train the networks side by side and test them."""
    first = 1000 * config.seed
    samples = [prepared(config, first + i) for i in tqdm(range(config.scenes), "scenes to learn from")]
    tests = [prepared(config, _TEST + first + i) for i in tqdm(range(config.test_scenes), "scenes to test on")]
    learners = {method: Learner(method, config) for method in config.methods}
    best = learners[config.methods[0]]
    run.stage(world_to_camera_gt=tests[0].made.world_to_camera_gt, K=tests[0].made.tracked.K)

    def learn(step: int, generator: torch.Generator) -> dict[str, float]:
        drawn = []
        for i in torch.randint(len(samples), (config.batch,), generator=generator).tolist():
            N = len(samples[i].made.tracked.points3d)
            drawn.append(samples[i].of(torch.randperm(N, generator=generator)[: config.tracks]))
        if run.due(step):
            show(run, config, step, tests[0], best)
        return {f"{method}_loss": learner.learn(drawn) for method, learner in learners.items()}

    columns = side_by_side(run, config, {method: each.training for method, each in learners.items()}, learn)
    save_network(run.folder / "network.pt", best.network)
    errors, page, won = tested(run, config, tests, learners)
    note = f"medians of {config.test_scenes} scenes that were not learned from"
    if config.photographs:
        told, words = on_photographs(config, learners)
        errors |= {f"photographs_{name}_{key}": value for name, row in told.items() for key, value in row.items()}
        if told:
            page += "\n" + table(
                ["photographs", *told["sift"]], [[n, *map(number, row.values())] for n, row in told.items()]
            )
        note += words
    write_text(run.folder / "table.md", page)
    run.figure(
        "loss", config.iterations, curves(by_method(run.recorded().metrics, learners, {"loss": "loss"}), 100), True
    )
    return run.finish(
        converged=won,
        goal="residuals, rotations and centres of the cameras below SIFT's on scenes that were not learned from",
        iterations=config.iterations,
        loss=columns[f"{config.methods[0]}_loss"],
        errors=errors | {f"{name}_seconds": each.training.seconds for name, each in learners.items()},
        note=note,
        picture="errors",
    )


@torch.no_grad()
def show(run: Run, config: Config, step: int, some: Sample, learner: Learner) -> None:
    """A frame: what the bundle of one test scene finds, and a figure of its patches."""
    refined, tracked = learner.refined(some), some.made.tracked._replace(world_to_camera=some.made.world_to_camera_gt)
    found = adjusted(tracked, *refined).x
    run.frame(step, points3d=found.points3d, world_to_camera=found.world_to_camera)
    offset = torch.linalg.solve(some.aligned.jacobian, refined.points2d - some.aligned.points2d)
    figure = patch_sheet(some.aligned, tracked.point, offset, refined.weights)
    run.figure("patches", step, figure, final=step + 1 == config.iterations)


def ways(tracked: Tracked, aligned: Aligned, learners: dict[Objective, Learner]) -> dict[str, Refined]:
    """Keypoints of a scene by every way there is; weights of one where a way has none."""
    ones = torch.ones_like(tracked.points2d[:, 0])
    found = {
        "sift": Refined(tracked.points2d, ones),
        "corner": corners(tracked),
        "aligned": Refined(aligned.points2d, ones),
    }
    return found | {name: learner.network.refine(aligned, tracked.point) for name, learner in learners.items()}


@torch.no_grad()
def tested(
    run: Run, config: Config, tests: list[Sample], learners: dict[Objective, Learner]
) -> tuple[dict[str, float], str, bool]:
    """Medians over the test scenes; a table of them, with in how many scenes a way is better than SIFT; and whether the
    first network's are better than SIFT's, but for the rms, in which it may leave what it does not trust."""
    judged: dict[str, list[Judged]] = {}
    for some in tqdm(tests, "test"):
        for name, refined in ways(some.made.tracked, some.aligned, learners).items():
            judged.setdefault(name, []).append(judge(some.made.tracked, refined, some.made.world_to_camera_gt))
    values = {name: [measures(each) for each in scenes] for name, scenes in judged.items()}
    medians = {
        name: {key: statistics.median(each[key] for each in scenes) for key in scenes[0]}
        for name, scenes in values.items()
    }
    sift, rows = values["sift"], []
    for name, scenes in values.items():
        better = {key: sum(each[key] < other[key] for each, other in zip(scenes, sift, strict=True)) for key in sift[0]}
        cells = [number(v) + ("" if name == "sift" else f" ({better[k]})") for k, v in medians[name].items()]
        rows.append([name, *cells, str(sum(each.converged for each in judged[name]))])
    page = table([f"{len(tests)} scenes", *sift[0], "converged"], rows)
    write_json(run.folder / "judged.json", values)
    pooled = {name: torch.cat([each.residual_px for each in scenes]) for name, scenes in judged.items()}
    run.figure("errors", config.iterations, error_curves(pooled), final=True)
    learned = medians[config.methods[0]]
    won = all(learned[key] < medians["sift"][key] for key in learned if key != "residual_rms_px")
    return {f"{name}_{key}": value for name, found in medians.items() for key, value in found.items()}, page, won


def measures(judged: Judged) -> dict[str, float]:
    """What is compared of a scene."""
    off = judged.residual_px
    return {
        "residual_px": off.median().item(),
        "residual_rms_px": off.square().mean().sqrt().item(),
        "rotation_deg": judged.rotation_deg,
        "centre_share": judged.centre_share,
    }


@torch.no_grad()
def on_photographs(config: Config, learners: dict[Objective, Learner]) -> tuple[dict[str, dict[str, float]], str]:
    """The same of photographs, with how much of the relative rotations' error is random; and what to add to the note.

    random_deg: standard deviation of rotation_deg by halves of the tracks. aligned_deg: as of `structure_from_motion`.
    """
    try:
        tracked, poses = read_photographs(config.photographs, config.seed)
    except AbsentDataError as absent:
        return {}, f"; photographs left out: {absent}"
    told: dict[str, dict[str, float]] = {}
    for name, refined in ways(tracked, align(tracked), learners).items():
        found = judge(tracked, refined, poses)
        told[name] = {
            "residual_px": measures(found)["residual_px"],
            "rotation_deg": found.rotation_deg,
            "centre_share": found.centre_share,
            "aligned_deg": found.aligned_deg,
            "random_deg": halves_differ(tracked, refined, config.halves),
        }
    return told, ""


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
