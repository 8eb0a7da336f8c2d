from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from datasets.objects.layout import Estimate, Instance
from experiments.object_poses.estimator import Estimated, Network, PoseEstimator, farthest_points
from experiments.object_poses.search import search
from tests.experiments.object_poses.scene import MODELS, pose

K = np.array([[520.0, 0, 163.4], [0, 518, 117.2], [0, 0, 1]])
NOWHERE = np.full((4, 4), np.nan)
PICTURE = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)


def asked(K: np.ndarray = K) -> Instance:
    return Instance(0, 0, 4, 0, None, K, NOWHERE, (-1.0, -1, -1, -1), 1.0)  # type: ignore[arg-type]


def project(points3d: np.ndarray, at: np.ndarray, K: np.ndarray) -> np.ndarray:
    return cv2.projectPoints(points3d, cv2.Rodrigues(at[:3, :3])[0], at[:3, 3], K, None)[0][:, 0]


class Knowing:
    """As an estimator that knows the pose in boxes that are about right, and is less sure the less they are."""

    objects, setup = (4,), SimpleNamespace(size=96)

    def __init__(self, truth: np.ndarray, error: float) -> None:
        self.truth, self.error, self.asked = truth, error, 0
        self.keypoints3d = torch.from_numpy(farthest_points(MODELS[4].mesh.vertices, 8))[None]

    def estimate(self, instances: Sequence[Instance], **_: Any) -> Iterator[Estimated]:
        for some in instances:
            self.asked += 1
            points2d = project(self.keypoints3d[0].numpy(), self.truth, some.K)
            low, size = points2d.min(0), np.ptp(points2d, 0)
            x, y, w, h = some.box
            off = np.linalg.norm(low + size / 2 - (x + w / 2, y + h / 2)) / size.max()
            zoom = abs(np.log(max(w, h) / size.max() / 1.1))
            right = off < 0.25 and zoom < 0.25
            wrong = self.truth.copy()
            wrong[:3, 3] *= 1 + self.error * (1 if right else 5)
            wrong[0, 3] += 0 if right else 300
            place = (some.scene, some.image, some.object)
            yield Estimated(Estimate(*place, 1 / (1 + off + zoom), wrong), points2d, np.ones((8, 2)))


@pytest.mark.parametrize(("x", "y", "z"), [(0, 0, 500), (-90, 60, 800), (120, -50, 700), (20, 10, 950)])
def test_the_box_is_found_and_follows_the_pose(x: float, y: float, z: float) -> None:
    truth = pose(0.4, -0.7, 0.3, x, y, z)
    corners = project(MODELS[4].mesh.vertices, truth, K)
    estimator = Knowing(truth, error=0.0)
    found = np.array(search(estimator, PICTURE, asked()))  # type: ignore[arg-type]
    low, size = corners.min(0), np.ptp(corners, 0)
    np.testing.assert_allclose(found[2:], 1.1 * size, atol=1e-6)
    np.testing.assert_allclose(found[:2] + found[2:] / 2, low + size / 2, atol=1e-6)
    assert estimator.asked < 1000


def test_a_pose_elsewhere_or_none_leaves_the_box_where_the_scan_found_it() -> None:
    class Lost(Knowing):
        def estimate(self, instances: Sequence[Instance], **_: Any) -> Iterator[Estimated]:
            for found in super().estimate(instances):
                yield found._replace(estimate=found.estimate._replace(pose=self.says))

    for says in (NOWHERE, pose(0, 0, 0, 0, 0, -700), pose(0, 0, 0, 250, 0, 700), pose(0, 0, 0, 0, 0, 9000)):
        estimator = Lost(pose(0.4, -0.7, 0.3, 0, 0, 700), 0.0)
        estimator.says = says
        x, y, w, h = search(estimator, PICTURE, asked())  # type: ignore[arg-type]
        points2d = project(estimator.keypoints3d[0].numpy(), estimator.truth, K)
        assert w == h == pytest.approx(1.1 * np.ptp(points2d, 0).max(), rel=0.2)
        np.testing.assert_allclose((x + w / 2, y + h / 2), (points2d.min(0) + points2d.max(0)) / 2, atol=w / 4)


@pytest.mark.slow
def test_a_picture_twice_as_large_has_the_box_twice_as_large() -> None:
    torch.manual_seed(0)
    estimator = PoseEstimator.of_models(Network(32, 6, "resnet10", 8), {4: MODELS[4]})
    torch.nn.init.normal_(estimator.network.head, std=1.0)
    twice = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    box = search(estimator, PICTURE, asked())
    large = search(estimator, PICTURE.repeat(2, 0).repeat(2, 1), asked(twice @ K))
    assert large == pytest.approx((2 * box[0] + 0.5, 2 * box[1] + 0.5, 2 * box[2], 2 * box[3]), abs=1e-6)
