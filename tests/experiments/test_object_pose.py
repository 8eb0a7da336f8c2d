"""The driver of object poses, on a set of a few small pictures: what a run leaves, kills, early stops, bad input."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datasets.objects.generated import generate
from datasets.objects.layout import read_models, read_results, read_split
from experiments import object_pose
from experiments.object_pose import PRESETS, Config, Trainer, main
from experiments.object_poses.estimator import Network, load_estimator
from experiments.running.run import Run
from tests.experiments.summaries import without_times

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver

SMOKE = replace(PRESETS["smoke"], workers=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of a cat and of a bottle, a body of revolution, and two of each to test."""
    folder = tmp_path_factory.mktemp("bop") / "set"
    return generate(folder, train=12, test=2, objects=(1, 3), processes=1)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupts: its folder and summary."""
    out = tmp_path_factory.mktemp("whole")
    summary = main(replace(SMOKE, data=data, out=out))
    assert summary is not None
    return out / "object_pose" / "smoke-seed0", summary


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the machine's load."""
    summary = without_times(summary)
    errors = {key: value for key, value in summary["errors"].items() if not key.endswith("_share")}
    return summary | {"errors": errors}


def equal(one: Path, other: Path) -> None:
    """Two runs' folders say the same, to the bit."""
    for name in ("metrics.csv", "results.csv", "scores.json", "table.md", "test.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [load_estimator(folder / "estimator.pt").state_dict() for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert timeless(json.loads((one / "summary.json").read_text())) == timeless(
        json.loads((other / "summary.json").read_text())
    )


# ---- what a run leaves ----


def test_a_run_leaves_its_results(data: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = whole
    logged = rows(folder)
    assert [int(row["step"]) for row in logged] == list(range(6))
    assert {"loss", "heatmap_loss", "pose_loss", "keypoint_px", "validation"} < set(logged[0])
    values = np.array([[float(value) for value in row.values()] for row in logged])
    assert np.isfinite(values).all()
    assert float(logged[-1]["loss"]) == summary["loss"]
    assert summary["iterations"] == 6
    assert [float(row["validation"]) for row in logged[:2]] == [-1, -1]  # none yet
    assert float(logged[2]["validation"]) >= 0

    test = read_split(data, "test")
    estimates = read_results(folder / "results.csv")
    found = {(some.scene, some.image, some.object) for some in test}
    assert {(one.scene, one.image, one.object) for one in estimates} <= found
    assert len(estimates) == round(len(test) * summary["errors"]["posed"])
    saved = load_estimator(folder / "estimator.pt")
    assert saved.objects == [1, 3]
    again = [one.estimate for one in saved.estimate(test, precision="bfloat16")]
    for one in estimates:
        (same,) = (some for some in again if (some.image, some.object) == (one.image, one.object))
        np.testing.assert_allclose(one.pose, same.pose, rtol=1e-6, atol=1e-6)

    scores = json.loads((folder / "scores.json").read_text())["mixture"]
    assert set(scores) == {"1", "3*", "mean", "all instances"}
    assert scores["mean"]["add_0.1d"] == summary["errors"]["add_0.1d"]
    assert {"ar_vsd", "ar_mssd", "ar_mspd"} < set(scores["mean"])
    table = (folder / "table.md").read_text()
    assert "**ADD(-S)**" in table
    assert "\n| 3* |" in table
    assert (folder / "test.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "index.html").exists()
    assert {"waiting_share", "pose_loss_share"} < set(summary["errors"])
    assert 0 < summary["errors"]["pose_loss_share"] < 1
    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    assert [event.step for event in events.Images("pictures/validation")] == [2, 5]
    assert [event.step for event in events.Images("pictures/test")] == [6]


def test_a_finished_run_is_not_repeated(data: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = main(replace(SMOKE, data=data, out=folder.parents[1], resume=True))
    assert again == json.loads((folder / "summary.json").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_seed_decides(data: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    main(replace(SMOKE, data=data, out=tmp_path, seed=1, iterations=2, validations=1))
    assert rows(tmp_path / "object_pose" / "smoke-seed1")[0] != rows(whole[0])[0]


@pytest.mark.parametrize("loss", ["heatmap", "pose", "monte_carlo", "linear_covariance"])
def test_every_loss_is_a_preset(data: Path, tmp_path: Path, loss: str) -> None:
    preset = PRESETS[loss]
    assert preset.preset == preset.objective.loss == loss
    assert replace(preset, preset="default", objective=PRESETS["default"].objective) == PRESETS["default"]
    config = replace(SMOKE, data=data, out=tmp_path, objective=preset.objective, iterations=1, validations=1)
    summary = main(config)
    assert summary is not None
    assert np.isfinite(summary["loss"])
    assert set(json.loads((tmp_path / "object_pose" / "smoke-seed0" / "scores.json").read_text())) == {loss}


def test_crops_are_parted_into_learned_and_held_back(data: Path) -> None:
    parts = object_pose.read_data(replace(SMOKE, data=data), object_pose.Group())
    key = lambda some: (some.object, some.image)
    known = [key(some) for some in read_split(data, "train")]
    train, validation = ([key(some) for some in part] for part in (parts.train, parts.validation))
    assert sorted(train + validation) == sorted(known)
    assert len(validation) == 2
    assert {number for number, _ in train} == {1, 3}
    one = object_pose.read_data(replace(SMOKE, data=data, objects=(3,)), object_pose.Group())
    assert list(one.models) == [3]
    assert {some.object for some in one.train + one.validation + one.test} == {3}


def test_without_data_a_set_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rendered(folder: Path, **settings: Any) -> Path:
        asked.append((folder, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr("datasets.objects.generated.generate", rendered)
    with pytest.raises(KeyboardInterrupt):
        main(replace(SMOKE, out=tmp_path, pictures=40))
    assert asked == [(tmp_path / "data" / "bop-40-6", {"train": 40, "test": 6})]


def test_linemod_is_fetched_learned_and_tabulated_by_one_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From archives by BOP's names, on this machine; what is there is not fetched again."""
    published = tmp_path / "published" / "lm" / "resolve" / "main"
    published.mkdir(parents=True)
    whole = shutil.copytree(data, tmp_path / "lm")
    (whole / "train").rename(whole / "train_pbr")
    for part, entries in {
        "base": ["camera.json", "test_targets_bop19.json"], "models": ["models"], "test_all": ["test"],
        "train_pbr": ["train_pbr"],
    }.items():  # fmt: skip
        top = tmp_path / part / ("lm" if part == "base" else "")
        top.mkdir(parents=True)
        for entry in entries:
            shutil.move(whole / entry, top / entry)
        shutil.make_archive(str(published / f"lm_{part}"), "zip", tmp_path / part)
    monkeypatch.setattr("datasets.objects.download.SOURCE", (tmp_path / "published").as_uri())
    preset = PRESETS["linemod"]
    config = replace(
        SMOKE, preset="linemod", train=preset.train, test=preset.test, download=True, out=tmp_path / "out",
        iterations=1, validations=1,
    )  # fmt: skip
    assert main(config) is not None
    shutil.rmtree(tmp_path / "published")
    assert main(replace(config, resume=True)) is not None
    table = (tmp_path / "out" / "object_pose" / "linemod-seed0" / "table.md").read_text()
    assert "| 1 |" in table
    assert "| 3* |" in table


# ---- kills ----


@pytest.mark.parametrize(("at", "workers"), [(3, 1), (5, 0)])
def test_an_interrupted_run_resumes_to_the_same_bits(
    data: Path,
    whole: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    interrupted: Callable[..., None],
    at: int,
    workers: int,
) -> None:
    """Between two validations, with crops loaded by a process of their own; after the last checkpoint."""
    config = replace(SMOKE, data=data, out=tmp_path, workers=workers)
    interrupted(main, config, at=at)
    folder = tmp_path / "object_pose" / "smoke-seed0"
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == at - 1 - (at - 1) % 2
    torch.manual_seed(123)
    main(replace(config, resume=True))
    equal(whole[0], folder)


def test_a_run_that_is_killed_while_it_is_evaluated_ends_the_same(
    data: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are done, and not repeated."""
    config = replace(SMOKE, data=data, out=tmp_path)

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(object_pose, "evaluated", dying)
        with pytest.raises(KeyboardInterrupt):
            main(config)
    with monkeypatch.context() as patch:
        patch.setattr(object_pose, "training_step", dying)
        main(replace(config, resume=True))
    equal(whole[0], tmp_path / "object_pose" / "smoke-seed0")


def test_iterations_cannot_be_added_to_a_run(data: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The learning rate falls over them."""
    shutil.copytree(whole[0], tmp_path / "object_pose" / whole[0].name)
    with pytest.raises(SystemExit, match="iterations must stay 6"):
        main(replace(SMOKE, data=data, out=tmp_path, iterations=8, resume=True))


# ---- the best, and when to stop ----


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """judged(0.3, 0.2, …): what the validations at the steps 0, 1, … find."""

    def set_scores(*scores: float) -> None:
        def score(self: Trainer) -> float:
            return scores[int(self.training.schedule.last_epoch) - 1]

        monkeypatch.setattr(Trainer, "_validation_score", score)

    return set_scores


def test_training_stops_early_stays_stopped_and_keeps_the_best(
    data: Path, tmp_path: Path, judged: Callable[..., None], interrupted: Callable[..., None]
) -> None:
    judged(0.1, 0.4, 0.4, 0.3, 0.9, 0.9)  # patience 2: the second best but one, equal to the best, is no better
    config = replace(SMOKE, data=data, out=tmp_path / "whole", validations=6, patience=2, log_every=3)
    states = []
    keep = Trainer.validate

    def watched(self: Trainer) -> None:
        keep(self)
        states.append({k: v.clone() for k, v in self.estimator.network.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "validate", watched)
        summary = main(config)
    assert summary is not None
    folder = tmp_path / "whole" / "object_pose" / "smoke-seed0"
    assert len(rows(folder)) == summary["iterations"] == 4
    assert [float(row["validation"]) for row in rows(folder)] == [0.1, 0.4, 0.4, 0.4]
    best = load_estimator(folder / "estimator.pt").network.state_dict()
    assert all(torch.equal(value, best[name]) for name, value in states[1].items())
    assert not all(torch.equal(value, best[name]) for name, value in states[3].items())

    # a kill after the stop, and one before it
    for name, patience_at in (("evaluated", None), ("cut", 2)):
        again = replace(config, out=tmp_path / name)
        if patience_at is None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(object_pose, "evaluated", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    main(again)
        else:
            interrupted(main, again, at=patience_at)
        main(replace(again, resume=True))
        equal(folder, tmp_path / name / "object_pose" / "smoke-seed0")


def test_a_validation_counts_poses_that_place_the_keypoints(data: Path) -> None:
    """Symmetries aside; a pose that is none counts as wrong."""
    config = replace(SMOKE, data=data, network=Network(64, 8, "resnet10", 8))
    parts = object_pose.read_data(config, object_pose.Group())
    trainer = Trainer(config, parts, object_pose.Group(), torch.device("cpu"), torch.float64)
    instances = parts.validation
    turned = {some.object: read_models(data)[some.object].symmetries[-1] for some in instances}
    shift = np.eye(4)

    def said(some: list[Any], **_: Any) -> Any:
        from datasets.objects.layout import Estimate
        from experiments.object_poses.estimator import Estimated

        for one in some:
            moved = one.pose.copy()
            moved[:3, 3] += shift[:3, 3] * parts.models[one.object].diameter
            estimate = Estimate(one.scene, one.image, one.object, 1.0, moved @ turned[one.object], -1.0)
            yield Estimated(estimate, np.zeros((8, 2)), np.ones((8, 2)))

    trainer.estimator.estimate = said  # type: ignore[method-assign, assignment]
    scores = []
    for off in (0, 0.03, 0.07, 0.2, np.nan):
        shift[0, 3] = off
        scores.append(trainer._validation_score())
    assert scores == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])


# ---- what cannot be ----


def test_a_folder_that_is_no_data_set_and_a_split_that_is_not_there_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"models_info\.json"):
        main(replace(SMOKE, data=tmp_path, out=tmp_path / "out"))
    with pytest.raises(SystemExit, match="a split 'train_pbr' wanted, found test, train"):
        main(replace(SMOKE, data=data, train="train_pbr", out=tmp_path / "out"))
    with pytest.raises(SystemExit, match=r"objects: \[7\] wanted"):
        main(replace(SMOKE, data=data, objects=(7,), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_batch_larger_than_the_data_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="batch must be a multiple of the 1 processes and at most 22, got 23"):
        main(replace(SMOKE, data=data, out=tmp_path, batch=23))
    assert not (tmp_path / "object_pose").exists()  # told before an earlier run there is overwritten


@pytest.mark.parametrize("size", [0, 16, 100, -32])
def test_a_size_that_the_network_cannot_halve_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be a multiple of 32, got {size}"):
        Config(network=Network(size=size))


@pytest.mark.parametrize("name", ["pictures", "iterations", "batch", "validations", "patience"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        replace(SMOKE, **{name: 0})


def test_weights_for_the_backbone_are_loaded(data: Path, tmp_path: Path) -> None:
    parts = object_pose.read_data(replace(SMOKE, data=data), object_pose.Group())
    make = lambda config: Trainer(config, parts, object_pose.Group(), torch.device("cpu"), torch.float64)
    config = replace(SMOKE, data=data)
    torch.manual_seed(5)
    own = make(config).estimator.network.backbone.state_dict()
    torch.save(own, tmp_path / "weights.pth")
    loaded = make(replace(config, weights=tmp_path / "weights.pth")).estimator.network.backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in own.items())
    with pytest.raises(FileNotFoundError, match="absent"):
        make(replace(config, weights=tmp_path / "absent.pth"))


def test_the_run_s_own_folder_is_the_only_one(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = whole
    assert [path.name for path in folder.parents[1].iterdir()] == ["object_pose"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]
    assert Run("object_pose", replace(SMOKE, out=folder.parents[1])).folder == folder
