"""Two processes on one training, as torchrun starts them: the gradients of one, and one run folder."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.running.distributed import Group, joined
from tests.commands import PATIENCE
from tests.slurm import installed

ROOT = Path(__file__).parents[3]

# What each process does: the gradient of a batch (alone, if there is one process); then whole runs of the driver, of
# which one is resumed from the folder as it was at a checkpoint, and once more when it is finished.
PROGRAM = """
import shutil, sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
import torch
from datasets.objects.layout import read_models, read_split
from experiments import object_pose
from experiments.running.distributed import joined
from experiments.object_pose import PRESETS, main
from experiments.object_poses.crops import Batches, Crops, crop_loader
from experiments.object_poses.estimator import Network, PoseEstimator
from experiments.object_poses.training import Objective, training_step
from experiments.running.run import Run

data, out = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
with joined(torch.device("cpu")) as group:
    torch.manual_seed(group.rank)  # whoever is alike afterwards was made so
    models = read_models(data)
    estimator = PoseEstimator.of_models(Network(64, 8, "resnet10", 8, norm="group"), models)
    if group.world == 1 or group.rank == 0:
        start = Path(out / "start.pt")
        if start.exists():
            estimator.load_state_dict(torch.load(start))
        else:
            torch.save(estimator.state_dict(), start)
    network = group.wrap(estimator.network)
    instances = read_split(data, "train", models)
    crops = Crops(instances, estimator.objects, 64)
    (batch,) = crop_loader(crops, Batches(len(crops), 8, 0, 5, 6, group.rank, group.world), 0)
    found = {"rows": batch.rows}
    for loss in ("heatmap", "mixture", "linear_covariance"):
        estimator.zero_grad()
        objective = Objective(loss=loss, precision="float32")
        training_step(estimator, network, batch, objective, 0.9).loss.backward()
        found[loss] = torch.cat([p.grad.flatten() for p in estimator.network.parameters()])
    found["mean"] = group.mean(torch.tensor([group.rank, 10.0]))
    found["shared"] = group.shared({"from": group.rank})
    torch.save(found, out / f"{group.world}-{group.rank}.pt")

    checkpoint = Run.checkpoint

    def copied(self, step, **state):  # what a kill would leave
        checkpoint(self, step, **state)
        if step == 2 and self.config.name == "whole":
            shutil.copytree(self.folder, self.folder.with_name("cut"))

    if group.world > 1:
        Run.checkpoint = copied
        object_pose.joined = lambda device: nullcontext(group)
    for name, resume in (("whole", False), ("cut", True), ("cut", True)) if group.world > 1 else ():
        config = replace(PRESETS["smoke"], data=data, out=out, name=name, resume=resume)
        assert (main(config) is None) == (group.rank > 0)
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and then two have written."""
    from datasets.objects.generated import generate

    out = tmp_path_factory.mktemp("distributed")
    data = generate(out / "set", train=12, test=2, objects=(1, 3), processes=1)
    (out / "program.py").write_text(PROGRAM)
    program = [str(out / "program.py"), str(data), str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", program)
        runpy.run_path(program[0])
    run = torchrun(*program)
    assert run.returncode == 0, run.stderr
    return out


def test_alone_there_is_nothing_to_agree_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if world:
            monkeypatch.setenv("WORLD_SIZE", world)
        with joined(torch.device("cpu")) as group:
            assert group == Group(0, 1)
            assert not torch.distributed.is_initialized()
            network = torch.nn.Linear(1, 1)
            assert group.wrap(network) is network
            assert group.shared("this") == "this"
            assert group.mean(torch.tensor([3.0])) == 3


def tensors(path: Path) -> Any:
    return torch.load(path)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(ended: Path) -> None:
    """Of the same batch, from the network that process 0 has."""
    alone, *both = (tensors(ended / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert sorted(torch.cat([some["rows"] for some in both]).tolist()) == sorted(alone["rows"].tolist())
    assert [len(some["rows"]) for some in both] == [4, 4]
    for loss in ("heatmap", "mixture", "linear_covariance"):
        assert alone[loss].norm() > 0.01
        assert torch.equal(both[0][loss], both[1][loss])
        off = (both[0][loss] - alone[loss]).norm() / alone[loss].norm()
        print(loss, off.item())
        assert off < 1e-6, loss
    assert all(some["mean"].tolist() == [0.5, 10] for some in both)
    assert alone["mean"].tolist() == [0, 10]
    assert all(some["shared"] == {"from": 0} for some in both)


@pytest.mark.slow
def test_two_processes_write_one_run_that_resumes_to_the_same_bits(ended: Path) -> None:
    runs = ended / "object_pose"
    assert sorted(path.name for path in runs.iterdir()) == ["cut", "whole"]
    with (runs / "whole" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(6))
    for name in ("metrics.csv", "results.csv", "scores.json", "table.md", "test.png"):
        assert (runs / "cut" / name).read_bytes() == (runs / "whole" / name).read_bytes(), name
    states = [tensors(runs / name / "estimator.pt")["state"] for name in ("whole", "cut")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert json.loads((runs / "whole" / "summary.json").read_text())["iterations"] == 6


@pytest.mark.slow
def test_what_stops_one_process_stops_both(ended: Path, tmp_path: Path) -> None:
    """The driver's own command; process 0 alone looks at the run's folder, which is not the driver's."""
    folder = tmp_path / "object_pose" / "smoke-seed0"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    at = ("--data", str(ended / "set"), "--out", str(tmp_path), "--name", folder.name)
    run = torchrun("-m", "experiments.object_pose", "smoke", *at)
    assert run.returncode != 0
    assert "holds no run of object_pose" in run.stderr
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_the_batch_script_of_the_page_trains_on_two_machines(ended: Path, tmp_path: Path) -> None:
    """They meet as the script says, and find what two processes of one machine did; SLURM's commands are stand-ins."""
    page = (ROOT / "docs" / "experiments.md").read_text()
    script = re.search(r":caption: object_pose.sbatch\n(.*?)```", page, re.DOTALL)[1]
    assert ".venv/bin/torchrun" in script
    script = script.replace(".venv/bin/torchrun", f"{sys.executable} -m torch.distributed.run")
    (tmp_path / "object_pose.sbatch").write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **installed(tmp_path / "slurm")}
    at = ("--data", str(ended / "set"), "--out", str(tmp_path))
    command = ["sbatch", str(tmp_path / "object_pose.sbatch"), "smoke", *at, "--name", "met"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    state, latest = tmp_path / "slurm" / "1.state", time.monotonic() + PATIENCE
    while state.read_text() in ("PENDING", "RUNNING") and time.monotonic() < latest:
        time.sleep(0.1)
    assert state.read_text() == "COMPLETED"
    alone, both = ended / "object_pose" / "whole", tmp_path / "object_pose" / "met"
    for name in ("metrics.csv", "results.csv", "scores.json"):
        assert (both / name).read_bytes() == (alone / name).read_bytes(), name
