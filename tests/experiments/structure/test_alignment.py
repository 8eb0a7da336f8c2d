import math

import pytest
import torch

from experiments.structure.alignment import move, rms_radius, shape_errors
from geometry import Similarity, project, se3

K = torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]], dtype=torch.float64)


@pytest.fixture
def similarity() -> Similarity:
    t = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    turn = se3.exp(torch.tensor([0.3, -1.2, 0.5], dtype=torch.float64))
    return Similarity(torch.tensor(2.5, dtype=torch.float64), turn, t)


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_moved_cameras_see_what_they_saw(similarity: Similarity, points: torch.Tensor) -> None:
    poses = se3.from_rotvec_t(torch.tensor([[0.1, 0.2, 0.3, 0.0, 0.0, 9.0], [-1.0, 0.4, 0.0, 1.0, 0.5, 7.0]]).double())
    moved, moved_poses = move(similarity, points, poses)
    assert (moved - points).abs().max() > 1
    torch.testing.assert_close(project(moved, moved_poses, K), project(points, poses, K), rtol=0, atol=1e-9)
    centres, moved_centres = (se3.inverse(p)[:, :3, 3] for p in (poses, moved_poses))
    torch.testing.assert_close(moved_centres, similarity.apply(centres), rtol=0, atol=1e-12)


def test_a_similarity_is_no_error_and_a_stray_point_is(similarity: Similarity, points: torch.Tensor) -> None:
    errors = shape_errors(points, similarity.apply(points))
    assert errors["rms_share"] < 1e-12
    assert errors["within_1_percent"] == 1
    stray = points.clone()
    stray[0] += 0.03 * rms_radius(points)
    errors = shape_errors(similarity.apply(stray), points)
    assert errors["rms_share"] == pytest.approx(0.03 * math.sqrt(3 / 30), rel=0.2)
    assert errors["within_1_percent"] == pytest.approx(29 / 30)


def test_the_radius_is_of_the_points_about_their_mean() -> None:
    points = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0]], dtype=torch.float64) + 7
    assert rms_radius(points).item() == pytest.approx(math.sqrt(2.5))
