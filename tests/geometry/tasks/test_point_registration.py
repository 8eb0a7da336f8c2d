"""Point registration against Open3D, finite differences and what must hold of any weights."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geometry import Problem, Solution, Status, minimize, se3
from geometry.tasks.point_registration import point_registration, rigid_problem, similarity_problem
from tests.numbers import errors_in_turn

TRUE = se3.from_rotvec_t(torch.tensor([0.4, -1.2, 0.3, 2.0, -1.0, 5.0], dtype=torch.float64))
PROBLEMS = pytest.mark.parametrize(("scale", "problem"), [(False, rigid_problem), (True, similarity_problem)])


def clouds(scale: bool, B: int = 3, N: int = 12, noise: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """source, target (B,N,3) and the truth (4,4)."""
    generator = torch.Generator().manual_seed(0)
    truth = TRUE.clone()
    truth[:3, :3] *= 0.4 if scale else 1.0
    source = 3 * torch.rand(B, N, 3, generator=generator, dtype=torch.float64)
    target = se3.transform(truth, source)
    return source, target + noise * torch.randn(B, N, 3, generator=generator, dtype=torch.float64), truth


def open3d(source: Tensor, target: Tensor, pairs: Tensor, scale: bool) -> Tensor:
    from open3d import geometry, pipelines, utility

    a, b = (geometry.PointCloud(utility.Vector3dVector(points.numpy())) for points in (source, target))
    estimation = pipelines.registration.TransformationEstimationPointToPoint(scale)
    indices = utility.Vector2iVector(pairs[:, None].repeat(1, 2).numpy().astype(np.int32))
    return torch.from_numpy(np.array(estimation.compute_transformation(a, b, indices)))


@PROBLEMS
def test_exact_points_give_the_motion_back(scale: bool, problem: Problem) -> None:
    source, target, truth = clouds(scale, noise=0.0)
    found = point_registration(source, target, scale=scale)
    assert found.converged.all()
    assert found.cost.max() < 1e-24
    torch.testing.assert_close(found.x, truth.expand(3, 4, 4), rtol=0, atol=1e-12)


@PROBLEMS
def test_it_agrees_with_open3d_which_counts_a_pair_of_weight_root_k_as_k_pairs(scale: bool, problem: Problem) -> None:
    source, target, _ = clouds(scale, noise=0.5)
    counts = 1 + torch.arange(12) % 3
    found = point_registration(source, target, counts.double().sqrt(), scale=scale)
    plain = point_registration(source, target, scale=scale)
    assert (found.x - plain.x).abs().max() > 1e-3
    for i in range(len(source)):
        for ours, pairs in ((found.x[i], torch.arange(12).repeat_interleave(counts)), (plain.x[i], torch.arange(12))):
            torch.testing.assert_close(ours, open3d(source[i], target[i], pairs, scale), rtol=0, atol=1e-6)


@pytest.mark.slow
@PROBLEMS
def test_the_start_is_the_minimum_and_the_only_one(scale: bool, problem: Problem) -> None:
    source, target, _ = clouds(scale, noise=0.5)
    weights = torch.rand(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = point_registration(source, target, weights, scale=scale)
    far = minimize(problem, TRUE.inverse().expand(3, 4, 4), source, target, weights)
    assert far.converged.all()
    assert far.steps.min() > 3
    torch.testing.assert_close(found.x, far.x, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@PROBLEMS
def test_gradients_agree_with_finite_differences(scale: bool, problem: Problem) -> None:
    """In problem i of the batch, data[i] is moved."""
    generator = torch.Generator().manual_seed(1)
    source, target, _ = clouds(scale)
    data = [source, target, torch.rand(3, 12, generator=generator, dtype=torch.float64) + 0.5]
    probe = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    directions = [torch.randn(d.shape, generator=generator, dtype=torch.float64) for d in data]

    def solve(*inputs: Tensor) -> Tensor:
        return (point_registration(*inputs, scale=scale).x * probe).sum((1, 2))

    assert errors_in_turn(solve, data, directions).max() < 1e-6


@PROBLEMS
def test_a_weight_of_zero_is_as_if_absent(scale: bool, problem: Problem) -> None:
    source, target, _ = clouds(scale)
    weights = torch.ones(12, dtype=torch.float64)
    weights[8:] = 0
    torch.testing.assert_close(
        point_registration(source, target, weights, scale=scale).x,
        point_registration(source[:, :8], target[:, :8], scale=scale).x, rtol=1e-10, atol=1e-10,
    )  # fmt: skip


@pytest.mark.slow
@PROBLEMS
def test_a_batch_is_a_loop(scale: bool, problem: Problem) -> None:
    source, target, _ = clouds(scale)
    together = point_registration(source, target, scale=scale)
    for i in range(len(source)):
        alone = point_registration(source[i], target[i], scale=scale)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-12, atol=1e-12)


def flagged_and_alone(source: Tensor, target: Tensor, scale: bool) -> Solution:
    """Asserts that of three problems the second is singular, and its gradient zero."""
    source.requires_grad_()
    found = point_registration(source, target, scale=scale)
    assert found.status[1] == Status.SINGULAR
    assert found.converged[[0, 2]].all()
    found.x[..., :3, :].square().sum().backward()
    assert source.grad is not None
    assert (source.grad[1] == 0).all()
    assert source.grad[[0, 2]].isfinite().all()
    assert (source.grad[[0, 2]] != 0).any()
    return found


@PROBLEMS
def test_points_on_a_line_or_all_the_same_are_flagged(scale: bool, problem: Problem) -> None:
    source, target, _ = clouds(scale)
    line, same = source.clone(), source.clone()
    line[1] = line[1, :, :1] * torch.tensor([1.0, 2.0, -1.0])
    same[1] = same[1, :1]
    flagged_and_alone(line, target, scale)
    flagged_and_alone(same, target, scale)


def test_a_mirror_image_that_no_rotation_fits_best_is_flagged() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    _, target, _ = clouds(False, N=8)
    source = target.clone()
    source[1], target[1] = corners, -corners
    flagged_and_alone(source, target, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": torch.rand(3, 12, 2).double()}, r"source must have shape \(N,3\)"),
        ({"target": torch.rand(3, 11, 3).double()}, r"target must have shape \(12,3\) or \(3,12,3\)"),
        ({"target": torch.rand(2, 12, 3).double()}, "target must have shape"),
        ({"weights": torch.ones(3, 12)}, "weights must have the dtype and device of source"),
        ({"source": torch.full((3, 12, 3), torch.nan).double()}, "source must be finite"),
        ({"source": torch.rand(3, 2, 3).double(), "target": torch.rand(3, 2, 3).double()}, "at least 3"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    source, target, _ = clouds(False)
    with pytest.raises(ValueError, match=message):
        point_registration(**{"source": source, "target": target} | change)
