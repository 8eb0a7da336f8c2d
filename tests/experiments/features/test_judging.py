"""Errors of cameras that do not depend on the frame they stand in."""

import pytest
import torch

from experiments.features.judging import halves_differ, judge, relative_rotation
from experiments.features.network import Refined
from geometry import se3
from tests.experiments.features.scene import points_on_wall


def ones(made_points: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(made_points), dtype=torch.float64)


def test_relative_rotations_know_no_frame() -> None:
    made = points_on_wall()
    pose = made.world_to_camera_gt
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3] = se3.exp(torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64))
    assert relative_rotation(pose @ world, pose) < 1e-6
    # one of four cameras is off by 0.1 degrees: so are three of six pairs
    turned = pose.clone()
    turned[2, :3, :3] = se3.exp(torch.tensor([0, 0, 0.1]).double().deg2rad()) @ turned[2, :3, :3]
    assert abs(relative_rotation(turned @ world, pose) - 0.1 * 0.5**0.5) < 1e-6


def test_exact_keypoints_are_judged_exact_and_noisy_ones_by_their_noise() -> None:
    made = points_on_wall(60, 4)
    exact = judge(made.tracked, Refined(made.tracked.points2d, ones(made.tracked.point)), made.world_to_camera_gt)
    assert exact.converged
    assert max(exact.residual_px.max().item(), exact.rotation_deg, exact.centre_share) < 1e-5
    noisy = points_on_wall(60, 4, noise_px=0.1)
    found = judge(noisy.tracked, Refined(noisy.tracked.points2d, ones(noisy.tracked.point)), noisy.world_to_camera_gt)
    # eight numbers a point less the three that the point takes
    rms = found.residual_px.square().mean().div(2).sqrt().item()
    assert abs(rms - 0.1 * (5 / 8) ** 0.5) < 0.01
    assert found.bundle_rms < found.residual_px.square().mean().sqrt()


@pytest.mark.slow
def test_halves_tell_the_random_error() -> None:
    """Twice the noise is twice the deviation, and it is as large as the errors are over scenes."""
    small, large = (points_on_wall(40, 3, noise_px=noise) for noise in (0.05, 0.1))
    told = [halves_differ(m.tracked, Refined(m.tracked.points2d, ones(m.tracked.point)), 3) for m in (small, large)]
    assert 1.8 < told[1] / told[0] < 2.2
    squares = 0.0
    for seed in range(5):
        made = points_on_wall(40, 3, noise_px=0.1, seed=seed)
        refined = Refined(made.tracked.points2d, ones(made.tracked.point))
        squares += judge(made.tracked, refined, made.world_to_camera_gt).rotation_deg ** 2 / 5
    assert 0.5 < told[1] / squares**0.5 < 2.0
