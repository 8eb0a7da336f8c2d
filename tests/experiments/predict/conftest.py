"""A data set and an estimator of it, for the command line to be asked with."""

import shutil
from pathlib import Path

import pytest
import torch

from datasets.objects.generated import generate
from datasets.objects.layout import read_models
from experiments.object_poses.estimator import Network, PoseEstimator

OBJECTS = (1, 3)


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, made_set, and an estimator that has learned nothing in a run's, my_run-seed0."""
    folder = tmp_path_factory.mktemp("made")
    generate(folder / "made_set", train=1, test=2, objects=OBJECTS, processes=1)
    torch.manual_seed(0)
    (folder / "my_run-seed0").mkdir()
    estimator = PoseEstimator.of_models(Network(32, 6, "resnet10", 8), read_models(folder / "made_set"))
    torch.nn.init.normal_(estimator.network.head, std=1.0)  # or all heatmaps would be flat
    estimator.save(folder / "my_run-seed0" / "estimator.pt")
    return folder


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be damaged."""
    return shutil.copytree(made / "made_set", tmp_path / "made_set")
