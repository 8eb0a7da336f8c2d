"""The published formula as a gradient: the pose stays, and each input's gradient is the formula's Jacobian."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import camera_calibration, pose_estimation
from experiments.gradients.derivatives import published, tangent
from experiments.gradients.published import with_published_gradient
from geometry import pnp, project, se3
from geometry.camera import intrinsics_from_matrix
from tests.numbers import close, normal

K = torch.tensor([[300.0, 0, 128], [0, 310, 120], [0, 0, 1]], dtype=torch.float64)


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """points2d (2,8,2), points3d (8,3), and the poses (2,4,4) that fit them best."""
    points3d = normal(8, 3)
    pose = se3.from_rotvec_t(torch.tensor([[0.1, 0.2, 0.3, 0, 0, 6], [0.4, 0, 0.1, 0.1, 0, 5]], dtype=torch.float64))
    points2d = project(points3d, pose, K) + normal(2, 8, 2, seed=1)
    return points2d, points3d, pnp(points2d, points3d, K).x


def test_each_input_has_the_gradient_of_the_formula(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    points2d, points3d, optimum = problem
    inputs = [value.clone().requires_grad_() for value in (points2d, points3d, K)]
    pose = with_published_gradient(optimum, *inputs)
    close(pose, optimum, 1e-14)
    flat = {
        "points2d": points2d.flatten(1),
        "points3d": points3d.expand(2, 8, 3).flatten(1),
        "K": intrinsics_from_matrix(K).expand(2, 4),
    }
    wanted = published(flat, optimum)
    for k in range(6):
        moved = tangent(pose, optimum)[:, k].sum()
        by_points2d, by_points3d, by_K = torch.autograd.grad(moved, inputs, retain_graph=True)
        close(by_points2d.flatten(1), wanted["points2d"][:, k], 1e-14)
        close(by_points3d.flatten(), wanted["points3d"][:, k].sum(0), 1e-14)
        close(intrinsics_from_matrix(by_K), wanted["K"][:, k].sum(0), 1e-14)


def test_it_is_another_than_the_exact_one(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    points2d, points3d, optimum = problem
    leaf = points2d.clone().requires_grad_()
    ours, theirs = (
        torch.autograd.grad(pose[:, :3, 3].square().sum(), leaf)[0]
        for pose in (pnp(leaf, points3d, K).x, with_published_gradient(optimum, leaf, points3d, K))
    )
    assert 1e-3 < (ours - theirs).norm() / ours.norm() < 0.5


def test_without_a_gradient_there_is_nothing_to_do(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    points2d, points3d, optimum = problem
    assert torch.equal(with_published_gradient(optimum, points2d, points3d, K), optimum)
    with torch.no_grad():
        assert not with_published_gradient(optimum, points2d.clone().requires_grad_(), points3d, K).requires_grad


def test_drivers_refuse_it_where_nothing_is_learned_by_it() -> None:
    for config in (camera_calibration.PRESETS["default"], camera_calibration.PRESETS["real"]):
        with pytest.raises(ValueError, match="gradient must be exact"):
            replace(config, gradient="published")
    with pytest.raises(ValueError, match="gradient must be exact"):
        replace(pose_estimation.PRESETS["real"], gradient="published")


@pytest.mark.slow
def test_keypoints_are_learned_by_it_and_in_more_steps(tmp_path: Path) -> None:
    config = replace(pose_estimation.PRESETS["smoke"], out=tmp_path)
    exact = pose_estimation.main(config)
    formula = pose_estimation.main(replace(config, gradient="published", name="formula"))
    assert exact["converged"]
    assert formula["loss"] != exact["loss"]
    assert formula["iterations"] >= exact["iterations"]


def test_single_precision_has_the_same_gradient_and_a_sample_without_one_has_zero(
    problem: tuple[Tensor, Tensor, Tensor],
) -> None:
    points2d, points3d, optimum = problem
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf = points2d.to(dtype).requires_grad_()
        poses = optimum.to(dtype).clone()
        poses[1, :3, 3] = torch.nan  # of a sample that failed
        pose = with_published_gradient(poses, leaf, points3d.to(dtype), K.to(dtype))
        assert pose.dtype == dtype
        (gradient,) = torch.autograd.grad(pose[:, :3, :3].square().sum() + pose[:, :3].sum(), leaf)
        assert not gradient[1].any()
        gradients.append(gradient[0].double())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())
