"""Object poses from pictures, end to end (paper, section 5): the pose loss trains the network through PnP.

A network predicts a heatmap for each keypoint of an object; their expected coordinates go through PnP.
The presets are losses. Without --data a small set is rendered, once, beside the results. LINEMOD from the download to
the table of its objects:

    python -m experiments.object_pose linemod --download

Two processes on one training: torchrun --nproc-per-node 2 -m experiments.object_pose default. The trained estimator is
the run's estimator.pt, for python -m experiments.predict.

Presets:

- default: Learns by l_m = l_h + beta l_proj.
- heatmap: Learns by l_h alone, the heatmaps' loss.
- pose: Learns by l_p = l_reg + beta l_proj.
- monte_carlo: Learns by l_h and EPro-PnP's Monte Carlo loss.
- linear_covariance: Learns by l_h and the linear-covariance loss.
- linemod: Learns by l_m on LINEMOD or any data set in BOP's layout (--data), with a larger network.
- smoke: Takes six steps with a dozen pictures, to see that everything works.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import tyro

from datasets.arrays import read_image
from datasets.objects.layout import Instance, Model, read_models, read_split, write_results
from experiments.object_poses.crops import Batches, Crops, crop_loader
from experiments.object_poses.estimator import Network, PoseEstimator
from experiments.object_poses.evaluation import evaluate
from experiments.object_poses.network import load_backbone
from experiments.object_poses.table import report, summarize
from experiments.object_poses.training import Objective, training_step
from experiments.object_poses.weights import weights_file
from experiments.records.files import write_json, write_text
from experiments.running.config import RunConfig, at_least, skip, told_in_a_sentence
from experiments.running.distributed import Group, joined
from experiments.running.folder import check
from experiments.running.options import Acts
from experiments.running.run import Run, begun, device_of
from experiments.running.telling import command
from experiments.running.training import Training, keep_memory

_SHOWN = 8


@dataclass(frozen=True)
class Config(RunConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts(
            "with a --loss other than heatmap",
            ("objective.beta", "objective.balance", "objective.warm_up"),
            lambda config: config.objective.loss != "heatmap",
        ),
        Acts("without --data", ("pictures",), lambda config: config.data is None and not config.download),
    )
    names_data: ClassVar[tuple[str, ...]] = ("data",)

    objective: Annotated[Objective, tyro.conf.arg(name="")] = field(default_factory=Objective)
    """Describes what is minimised."""
    network: Annotated[Network, tyro.conf.arg(name="")] = field(default_factory=Network)
    """Describes how the network is built, and how it is read."""
    data: Path | None = None
    """Names a data set in BOP's layout; left out, one is rendered to OUT/data."""
    download: bool = False
    """Fetches what is missing of the set from BOP, tens of gigabytes; where --data names none, LINEMOD
    to OUT/data/lm."""
    train: str = "train"
    """Names the split to learn from: train_pbr, train_real, ..."""
    test: str = "test"
    """Names the split to evaluate on."""
    objects: tuple[int, ...] = ()
    """Lists the numbers of the objects; left out, they are all there are."""
    pictures: int = 2500
    """Sets the number of pictures of each object to learn from, where the data set is rendered."""
    weights: Path | None = None
    """Names the backbone's weights: a file of torchvision's or timm's (resnet18-….pth), or timm's name; wants --width
    64."""
    iterations: int = 10_500
    """Sets the steps of the training; over them the learning rate rises and falls."""
    batch: int = 24
    """Sets the number of crops a step, of all processes together."""
    learning_rate: float = 3e-3
    """Sets the highest rate of its cycle."""
    validations: int = 8
    """Sets how often in a training one crop in twenty, kept from the training, is evaluated."""
    patience: int = 4
    """Stops after so many validations without a better one; what is kept is the best."""
    wanted: float = 0.8
    """Sets the goal: the share of the test crops whose pose is correct by ADD(-S) at 0.1 diameters."""
    workers: int = 1
    """Sets the number of processes that load and augment crops."""
    log_every: int = 100
    """Sets how many iterations lie between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "pictures", "iterations", "batch", "validations", "patience")
        if self.network.size % 32 or self.network.size < 32:
            raise ValueError(f"size must be a multiple of 32, got {self.network.size}")


PRESETS = {
    "default": Config(preset="default"),
    "heatmap": Config(preset="heatmap", objective=Objective(loss="heatmap")),
    "pose": Config(preset="pose", objective=Objective(loss="pose")),
    "monte_carlo": Config(preset="monte_carlo", objective=Objective(loss="monte_carlo")),
    "linear_covariance": Config(preset="linear_covariance", objective=Objective(loss="linear_covariance")),
    "linemod": Config(
        preset="linemod", train="train_pbr", iterations=100_000, network=Network(256, 24, "resnet34", 64, 4),
        workers=8, validations=20, log_every=1000,
    ),
    "smoke": Config(
        preset="smoke", pictures=12, iterations=6, batch=4, validations=2, log_every=2,
        network=Network(64, 8, "resnet10", 8),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Models by number, and the instances of the three parts."""

    models: dict[int, Model]
    train: list[Instance]
    validation: list[Instance]
    test: list[Instance]


def read_data(config: Config, group: Group) -> Data:
    """What `config` names; the data set rendered first, by one process, where it names none."""
    folder, wanted = config.data, "--data wants the folder of a data set in BOP's layout; --download fetches one"
    if config.download:
        from datasets.objects.download import download

        folder = folder or config.out / "data" / "lm"
        if group.rank == 0:
            parts = dict.fromkeys(f"{split}_all" if split == "test" else split for split in (config.test, config.train))
            download(folder.name, folder.parent, ("base", "models", *parts))
        group.shared(None)
    if folder is None and config.train != "train":
        skip(f"{wanted}: the one that is rendered has no split {config.train}")
    if folder is None:
        from datasets.objects.generated import generate

        test = max(config.pictures * 3 // 20, 2)
        folder = config.out / "data" / f"bop-{config.pictures}-{test}"
        if group.rank == 0:
            generate(folder, train=config.pictures, test=test)
        group.shared(None)
    elif not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: {wanted}")
    models = read_models(folder, config.objects or None)
    known, unseen = (read_split(folder, split, models) for split in (config.train, config.test))
    return Data(models, [some for i, some in enumerate(known) if i % 20], known[::20][:1000], unseen)


def fetched_weights(weights: Path, config: Config, group: Group) -> Path:
    """The file of `weights`; one that timm has by this name is fetched first, by one process."""
    if group.rank == 0:
        weights_file(weights, config.out / "data" / "weights")
    group.shared(None)
    return weights_file(weights, config.out / "data" / "weights")


class Trainer:
    """The estimator, how it is trained, and the best that a validation found of it."""

    def __init__(self, config: Config, data: Data, group: Group, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.data, self.group, self.device, self.dtype = config, data, group, device, dtype
        self.estimator = PoseEstimator.of_models(config.network, data.models)
        if config.weights:
            load_backbone(self.estimator.network, config.weights)
        self.estimator.to(device)
        self.network = group.wrap(self.estimator.network)
        self.training = Training(self.estimator.network, config.learning_rate, config.iterations)
        self.best, self.best_score, self.since = self.estimator.network.state_dict(), -1.0, 0
        self.seconds = {"waiting": 0.0, "pose_loss": 0.0, "steps": 0.0}

    def state(self) -> dict[str, Any]:
        """For `Run.checkpoint`."""
        kept = {name: getattr(self, name) for name in ("best", "best_score", "since", "seconds")}
        return kept | {"training": self.training.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.training.load(state["training"])
        for name in ("best", "best_score", "since", "seconds"):
            setattr(self, name, state[name])

    def steps(self, start: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Train from iteration `start` on, and give each one's metrics; ends early where the validations say so.

        All that is random in an iteration depends on its number, the seed and the process alone, so that a resumed
        training goes on as if it had never stopped.
        """
        config, group = self.config, self.group
        crops = Crops(self.data.train, self.estimator.objects, config.network.size, config.seed)
        batches = Batches(len(crops), config.batch, config.seed, start, config.iterations, group.rank, group.world)
        loader = iter(crop_loader(crops, batches, config.workers, augmented=True))
        generator = torch.Generator(self.device)
        for step in range(start, config.iterations):
            if self.since >= config.patience:
                return
            begun = time.perf_counter()
            batch = next(loader).to(self.device)
            self.seconds["waiting"] += time.perf_counter() - begun
            self.network.train()
            generator.manual_seed(((config.seed * 1_000_003) + step) * group.world + group.rank)
            found = training_step(
                self.estimator, self.network, batch, config.objective, step / config.iterations, self.dtype, generator
            )
            self.training.step(found.loss)
            self.seconds["pose_loss"] += found.pose_seconds
            self.seconds["steps"] += time.perf_counter() - begun
            values = group.mean(torch.stack([value.detach().double() for value in found[:4]]))
            if self.validates(step):
                self.validate()
            names = ("loss", "heatmap_loss", "pose_loss", "keypoint_px")
            yield step, dict(zip(names, values.tolist(), strict=True)) | {"validation": self.best_score}

    def validates(self, step: int) -> bool:
        """Whether this step ends with a validation."""
        every = -(-self.config.iterations // self.config.validations)
        return (step + 1) % every == 0 or step + 1 == self.config.iterations

    def validate(self) -> None:
        """Keep the network if it is the best so far on the crops that are held back."""
        score = self.group.shared(self._validation_score() if self.group.rank == 0 else None)
        self.since += 1
        if score > self.best_score:
            state = self.estimator.network.state_dict()
            self.best = {name: value.detach().clone() for name, value in state.items()}
            self.best_score, self.since = score, 0

    def _validation_score(self) -> float:
        """Mean share of poses that place the keypoints, symmetries aside, within 0.02, 0.05 and 0.1 diameters."""
        instances, errors = self.data.validation, []
        estimates = self.estimator.estimate(instances, views=1, precision=self.config.objective.precision)
        for some, found in zip(instances, estimates, strict=True):
            distance = _off(self.estimator, some, found.estimate.pose)
            errors.append(distance if np.isfinite(distance) else np.inf)
        return float(np.mean([np.mean(np.array(errors) < limit) for limit in (0.02, 0.05, 0.1)]))


def _off(estimator: PoseEstimator, some: Instance, pose: np.ndarray) -> float:
    """How far a pose places the keypoints from where they are, symmetries aside, in diameters."""
    i = estimator.objects.index(some.object)
    points3d = estimator.keypoints3d[i].cpu().numpy()
    poses = some.pose @ estimator.symmetries[i].cpu().numpy()
    error = _placed(pose, points3d) - _placed(poses, points3d)
    return float(np.linalg.norm(error, axis=-1).mean(-1).min() / estimator.diameters[i].item())


def _placed(poses: np.ndarray, points3d: np.ndarray) -> np.ndarray:
    """Points (N,3) in the camera's frame, (…,N,3)."""
    return points3d @ np.swapaxes(poses[..., :3, :3], -1, -2) + poses[..., None, :3, 3]


def spread_out(instances: Sequence[Instance], count: int) -> Sequence[Instance]:
    """About `count` of them, evenly spread."""
    return instances[:: max(len(instances) // count, 1)][:count]


def overlays(trainer: Trainer, instances: Sequence[Instance], columns: int = 4) -> np.ndarray:
    """Pictures of instances with what is estimated, in blue, and the truth, in orange."""
    from experiments.object_poses.overlay import overlay, sheet

    pictures, captions = [], []
    for some, found in zip(instances, trainer.estimator.estimate(instances), strict=True):
        model = trainer.data.models[some.object]
        picture = read_image(some.path)
        pictures.append(overlay(picture, model, found.estimate.pose, some.K, some.pose, found.keypoints2d))
        off = _off(trainer.estimator, some, found.estimate.pose)
        told = f"{100 * off:.2g} % of its size off" if np.isfinite(off) else "no pose found"
        captions.append(f"object {some.object}, {told}")
    return sheet(pictures, captions, columns)


def evaluated(trainer: Trainer, run: Run) -> tuple[dict[str, float], float]:
    """The test split's scores, for the mean over objects, and the share of instances with a pose.

    Writes results.csv as BOP evaluates it (to be named METHOD_DATASET-SPLIT.csv there), scores.json and table.md.
    """
    test = trainer.data.test
    precision = trainer.config.objective.precision
    estimates = [found.estimate for found in trainer.estimator.estimate(test, precision=precision)]
    posed = [estimate for estimate in estimates if np.isfinite(estimate.pose).all()]
    write_results(run.folder / "results.csv", posed)
    records = evaluate(posed, test, trainer.data.models, with_vsd=all(some.depth for some in test))
    table = summarize({trainer.config.objective.loss: records})
    write_json(run.folder / "scores.json", table)
    write_text(run.folder / "table.md", report(table))
    return table[trainer.config.objective.loss]["mean"], len(posed) / len(test)


def main(config: Config) -> dict[str, Any] | None:
    with told_in_a_sentence():
        device = device_of(config.device, there=False)
    keep_memory()
    with joined(device) as group:
        with told_in_a_sentence():  # before an earlier run is overwritten
            if group.rank == 0:
                check(config.folder("object_pose"), "object_pose", config)
                device_of(config.device)
            if config.weights:
                config = replace(config, weights=fetched_weights(config.weights, config, group))
            data = read_data(config, group)
            Batches(len(data.train), config.batch, config.seed, 0, config.iterations, group.rank, group.world)
        if group.rank > 0:
            follow(config, data, group, device)
            return None
        return lead(config, data, group, device)


def lead(config: Config, data: Data, group: Group, device: torch.device) -> dict[str, Any]:
    """Train, evaluate and write: what process 0 does."""
    with begun("object_pose", config) as run:
        if finished := group.shared(run.finished):
            return finished
        trainer = Trainer(config, data, group, device, run.dtype)
        saved = run.restore()
        group.shared((run.start, saved))
        loss, step = torch.nan, run.start - 1
        if saved:
            with told_in_a_sentence():
                trainer.load(saved)
            loss = saved["loss"]
        iterations = run.iterations(config.iterations)
        shown = spread_out(data.validation, _SHOWN // 2)
        for step, metrics in trainer.steps(run.start):
            next(iterations, None)
            loss = metrics["loss"]
            run.log(step, **metrics)
            if run.due(step):
                run.checkpoint(step, loss=loss, **trainer.state())
            if trainer.validates(step):
                run.picture("validation", step, overlays(trainer, shown))
        trainer.estimator.network.load_state_dict(trainer.best)
        trainer.estimator.save(run.folder / "estimator.pt")
        found, posed = evaluated(trainer, run)
        run.picture("test", step + 1, overlays(trainer, spread_out(data.test, _SHOWN)), final=True)
        seconds = trainer.seconds
        shares = {f"{name}_share": seconds[name] / max(seconds["steps"], 1e-9) for name in ("waiting", "pose_loss")}
        return run.finish(
            converged=found["add_0.1d"] >= config.wanted, iterations=step + 1, loss=loss,
            goal=f"ADD(-S) at 0.1 d: at least {config.wanted:.0%} of test crops",
            errors=found | {"posed": posed} | shares,
            note=f"ADD(-S) at 0.1 d: {found['add_0.1d']:.1%} of {len(data.test)} test crops", picture="test",
        )  # fmt: skip


def follow(config: Config, data: Data, group: Group, device: torch.device) -> None:
    """Train as the other processes do, in step with process 0."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if group.shared(None):
        return
    trainer = Trainer(config, data, group, device, getattr(torch, config.dtype))
    start, saved = group.shared(None)
    if saved:
        trainer.load(saved)
    for _ in trainer.steps(start):
        pass


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
