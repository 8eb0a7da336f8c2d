"""docs/trainers.md: its files run, with the packages they are for where these are installed, else with stand-ins."""

import importlib.util
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PAGE = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text()
FILES = dict(re.findall(r"```\{code-block\} python\n:caption: (\S+)\n(.*?)```", PAGE, re.DOTALL))


class Module(torch.nn.Module):
    """What the example takes of a LightningModule."""

    def log(self, name: str, value: Any, prog_bar: bool = False) -> None:
        assert torch.isfinite(value).all(), name


class Trainer:
    """What the example takes of a Trainer."""

    def __init__(self, max_epochs: int, **_: Any) -> None:
        self.max_epochs = max_epochs

    def fit(self, module: Any, batches: Any) -> None:
        optimizer = module.configure_optimizers()
        for _ in range(self.max_epochs):
            for index, batch in enumerate(batches):
                optimizer.zero_grad()
                module.training_step(batch, index).backward()
                optimizer.step()


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **what: Any) -> None:
    module = ModuleType(name)
    vars(module).update(what)
    monkeypatch.setitem(sys.modules, name, module)


def needs(package: str) -> None:
    """Skip, unless the package itself is installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed, which is optional: pip install {package}; a stand-in was tested")


def read(name: str, **options: Any) -> dict[str, Any]:
    """The names that the file of the page has made."""
    made: dict[str, Any] = {"__name__": "example"} | options
    exec(compile(FILES[name], name, "exec"), made)
    return made


def check_that_it_learns(trainer: Any) -> None:
    made = read("train_lightning.py")
    points3d, K, batches = made["poses_of_an_object"](128)
    module = made["Keypoints"](points3d, K)

    def off() -> float:
        seen, poses = batches.dataset.tensors
        with torch.no_grad():
            return float((module(seen) - made["project"](points3d, poses, K)).norm(dim=-1).mean())

    torch.manual_seed(0)
    before = off()
    trainer(max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False).fit(module, batches)
    assert off() < 0.5 * before


@pytest.mark.slow
def test_a_lightning_module_learns_through_pnp_with_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "lightning", LightningModule=Module, Trainer=Trainer)
    check_that_it_learns(Trainer)


@pytest.mark.slow
def test_a_lightning_module_learns_through_pnp_in_lightning() -> None:
    needs("lightning")
    check_that_it_learns(importlib.import_module("lightning").Trainer)


def check_what_was_written(folder: Path) -> None:
    """The driver's curve, in the folder in which a writer was opened that Weights & Biases notices."""
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [*range(6)]  # it has reached its goal then
    assert len([*folder.glob("events.out.tfevents.*")]) == 2


@pytest.mark.slow
def test_a_run_is_told_to_wandb_with_a_stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    @contextmanager
    def init(**options: Any) -> Any:
        told.append(options)
        yield

    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, "wandb", init=init)
    config = read("track_wandb.py")["config"]
    assert told == [{"project": "geometry", "sync_tensorboard": True, "config": vars(config)}]
    check_what_was_written(config.folder("pose_estimation"))


@pytest.mark.slow
def test_a_run_is_collected_by_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline: the file that it keeps of the run names the driver's curve."""
    needs("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    check_what_was_written(read("track_wandb.py")["config"].folder("pose_estimation"))
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"rotation_deg" in kept.read_bytes()
