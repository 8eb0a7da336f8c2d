"""Estimates where the heatmaps are right, and wrong; keypoints; saving and loading."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.objects.layout import Instance, Model
from datasets.ply import Mesh
from experiments.object_poses.crops import MARGIN, Crops
from experiments.object_poses.estimator import Network, PoseEstimator, farthest_points, load_estimator
from experiments.object_poses.network import STRIDE, cells_of
from geometry import project
from tests.experiments.object_poses.scene import K, box, pose

TINY = Network(size=160, keypoints=6, backbone="resnet10", width=8, views=1)


def solid(seed: int, turns: int = 1) -> Model:
    """Forty points and no shape, with the symmetries of a box that looks the same after so many turns."""
    vertices = 30 * np.random.default_rng(seed).normal(size=(40, 3)).clip(-1.5, 1.5)
    return Model(Mesh(vertices, np.zeros((0, 3), np.int64)), 120.0 + seed, box(1, 1, 1, turns).symmetries)


MODELS = {3: solid(3), 8: solid(8, turns=4)}


@pytest.fixture
def scene(tmp_path: Path) -> list[Instance]:
    """Five instances in two pictures of nothing."""
    instances = []
    for i, number in enumerate((8, 3, 3, 8, 3)):
        at = pose(0.5 * i, 0.3, -0.2 * i, 8 * i - 15, 5 - 3 * i, 420 + 40 * i)
        path = tmp_path / f"{i // 3}.png"
        cv2.imwrite(str(path), np.full((60, 80, 3), 90, np.uint8))
        points = (MODELS[number].mesh.vertices @ at[:3, :3].T + at[:3, 3]) @ K.T
        points = points[:, :2] / points[:, 2:]
        low, high = points.min(0), points.max(0)
        bounds = (float(low[0]), float(low[1]), *map(float, high - low))
        instances.append(Instance(1, i // 3, number, i, path, K, at, bounds, 1.0))
    return instances


class Oracle(nn.Module):
    """Maps that are Gaussians about the true keypoints of the crops to come, of widths that grow with the row."""

    def __init__(self, estimator: PoseEstimator, instances: list[Instance], off: float = 0.0) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.sigmas = [0.7 + 0.03 * row for row in range(len(instances))]
        crops = Crops(instances, estimator.objects, estimator.setup.size, roll=0.0, alike=True)
        views = estimator.setup.views
        for row, view in product(range(len(instances)), range(views)):
            sigma = self.sigmas[row]
            _, crop = crops[view or None, row]
            cells = cells_of(project(estimator.keypoints3d[crop.objects], crop.pose_gt, crop.K)) + off
            grid = torch.arange(estimator.setup.size // STRIDE, dtype=torch.float64)
            x, y = (-0.5 * ((grid - cells[:, i, None]) / sigma) ** 2 for i in (0, 1))
            self.maps.append((y[:, :, None] + x[:, None, :]).float())

    def forward(self, images: Tensor, objects: Tensor) -> Tensor:
        found, self.maps = self.maps[: len(images)], self.maps[len(images) :]
        return torch.stack(found)


def estimator(**options: Any) -> PoseEstimator:
    torch.manual_seed(0)
    return PoseEstimator.of_models(Network(**{**vars(TINY), **options}), MODELS)


@pytest.mark.slow
@pytest.mark.parametrize(("weighted", "views"), [(True, 1), (False, 1), (True, 3)])
def test_right_heatmaps_are_right_poses(scene: list[Instance], weighted: bool, views: int) -> None:
    made = estimator(weighted=weighted, views=views)
    oracle = Oracle(made, scene)
    made.network = oracle  # type: ignore[assignment]
    found = list(made.estimate(scene))
    assert len(found) == 5
    for row, (some, one) in enumerate(zip(scene, found, strict=True)):
        estimate = one.estimate
        assert (estimate.scene, estimate.image, estimate.object) == (some.scene, some.image, some.object)
        assert estimate.pose.dtype == np.float64
        np.testing.assert_allclose(estimate.pose[:3, :3], some.pose[:3, :3], rtol=0, atol=1e-3)
        np.testing.assert_allclose(estimate.pose[:3, 3], some.pose[:3, 3], rtol=1e-3, atol=0.1)
        keypoints3d = made.keypoints3d[made.objects.index(some.object)]
        wanted = project(keypoints3d, *(torch.from_numpy(a) for a in (some.pose, some.K)))
        np.testing.assert_allclose(one.keypoints2d, wanted, rtol=0, atol=0.01)  # in the picture, not in the crop
        spread = STRIDE * math.sqrt(oracle.sigmas[row] ** 2 + 1 / 12)
        assert 1 / estimate.score == pytest.approx(spread, rel=0.02)  # a little of a Gaussian is beyond the map
        scale = 160 / (MARGIN * max(some.box[2:]))
        np.testing.assert_allclose(one.deviation, spread / scale, rtol=0.05 if views == 1 else 0.2)


@pytest.mark.slow
def test_an_estimate_does_not_depend_on_what_else_is_asked_for(scene: list[Instance]) -> None:
    made = estimator(views=3)
    for row, one in enumerate(made.estimate(scene)):
        (alone,) = made.estimate([scene[row]])
        np.testing.assert_allclose(alone.keypoints2d, one.keypoints2d, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_view_that_is_wrong_does_not_matter(scene: list[Instance]) -> None:
    made = estimator(views=3)
    oracle = Oracle(made, scene)
    oracle.maps[1] = oracle.maps[1].roll(9, -1)
    made.network = oracle  # type: ignore[assignment]
    (found, *_) = made.estimate(scene)
    np.testing.assert_allclose(found.estimate.pose, scene[0].pose, rtol=0, atol=0.2)


def test_the_true_pose_is_not_looked_at(scene: list[Instance]) -> None:
    made = estimator()
    blind = [some._replace(pose=np.full((4, 4), np.nan)) for some in scene]
    for one, other in zip(made.estimate(scene), made.estimate(blind), strict=True):
        np.testing.assert_array_equal(one.estimate.pose, other.estimate.pose)
        assert one.estimate.score == other.estimate.score


def test_more_instances_than_a_batch_keep_their_order(scene: list[Instance]) -> None:
    made = estimator()
    few = list(made.estimate(scene))
    many = list(made.estimate(scene * 7, workers=1))
    assert len(many) == 35
    for i, one in enumerate(many):
        assert one.estimate.image == few[i % 5].estimate.image
        np.testing.assert_allclose(one.keypoints2d, few[i % 5].keypoints2d, rtol=0, atol=1e-3)
    assert list(made.estimate([])) == []


def test_an_instance_without_a_pose_has_none_and_leaves_the_others_alone(scene: list[Instance]) -> None:
    """The keypoints of object 3 on a line."""
    made = estimator()
    line = torch.linspace(-40, 40, 6, dtype=torch.float64)[:, None]
    made.keypoints3d[0] = line * torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    made.network = Oracle(made, scene)  # type: ignore[assignment]
    found = [one.estimate.pose for one in made.estimate(scene)]
    for some, at in zip(scene, found, strict=True):
        if some.object == 3:
            assert np.isnan(at).all()
        else:
            np.testing.assert_allclose(at, some.pose, rtol=1e-3, atol=0.1)


def test_a_saved_estimator_is_the_same_when_loaded(scene: list[Instance], tmp_path: Path) -> None:
    made = estimator(weighted=False)
    made.save(tmp_path / "estimator.pt")
    assert [path.name for path in tmp_path.glob("*estimator*")] == ["estimator.pt"]
    torch.manual_seed(77)
    loaded = load_estimator(tmp_path / "estimator.pt")
    assert loaded.objects == [3, 8]
    assert loaded.setup == made.setup
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), loaded.state_dict().values(), strict=True))
    for one, other in zip(made.estimate(scene), loaded.estimate(scene), strict=True):
        np.testing.assert_array_equal(one.estimate.pose, other.estimate.pose)


def test_a_file_that_is_no_estimator_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_estimator(tmp_path / "nowhere.pt")
    path = tmp_path / "other.pt"
    for write in (
        lambda: path.write_text("text"),
        lambda: torch.save({"state": {}}, path),
        lambda: torch.save(nn.Linear(2, 2).state_dict(), path),
    ):
        write()
        with pytest.raises(ValueError, match=r"other\.pt: the estimator of an object_pose run wanted, found"):
            load_estimator(path)


def test_symmetries_are_filled_up_with_the_identity() -> None:
    made = estimator()
    assert made.symmetries.shape == (2, 4, 4, 4)
    assert torch.equal(made.symmetries[0], torch.eye(4, dtype=torch.float64).expand(4, 4, 4))
    np.testing.assert_array_equal(made.symmetries[1], MODELS[8].symmetries)
    assert made.diameters.tolist() == [123, 128]
    assert {value.dtype for value in (made.symmetries, made.keypoints3d, made.diameters)} == {torch.float64}


@pytest.mark.parametrize("count", [4, 9, 40])
def test_each_keypoint_is_the_farthest_from_those_before(count: int) -> None:
    vertices = solid(1).mesh.vertices
    chosen = [0]
    while len(chosen) < count:
        distance = np.linalg.norm(vertices[:, None] - vertices[chosen], axis=-1).min(1)
        chosen.append(int(distance.argmax()))
    found = farthest_points(vertices, count)
    assert sorted(map(tuple, found)) == sorted(map(tuple, vertices[chosen]))


@pytest.mark.parametrize("count", [3, 41])
def test_too_few_and_too_many_keypoints_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"keypoints must be between 4 and the mesh's 40 vertices, got {count}"):
        farthest_points(solid(1).mesh.vertices, count)
