"""What is singular: the rule of `geometry.optim.linear`, on matrices and through every solver that goes by it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from geometry import Problem, Status, argmin, bundle, covariance, geman_mcclure, pnp, project, se3
from geometry.optim import margin, share, share_of_factor, solve_spd
from geometry.tasks.homography import homography
from geometry.tasks.point_registration import point_registration, rigid_problem
from geometry.tasks.relative_pose import relative_pose
from geometry.tasks.triangulation import triangulation

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
K = torch.tensor([[800.0, 0.0, 320.0], [0.0, 800.0, 240.0], [0.0, 0.0, 1.0]], **DOUBLE)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, **DOUBLE)


def even(*shape: int, g: torch.Generator) -> Tensor:
    return 2 * torch.rand(*shape, generator=g, **DOUBLE) - 1


def poses(B: int, g: torch.Generator) -> Tensor:
    """world_to_camera (B,4,4) with the origin some five units ahead."""
    return se3.from_rotvec_t(torch.cat([normal(B, 3, g=g), normal(B, 3, g=g) * 0.3 + K.new_tensor([0, 0, 5.0])], -1))


def lines(B: int, N: int, seed: int, axis: int | None = None) -> tuple[Tensor, Tensor, torch.Generator]:
    """points3d (B,N,3) on lines through about the origin, along an axis of the camera if given; world_to_camera."""
    g = generator(seed)
    pose = poses(B, g)
    along = normalize(normal(B, 3, g=g), dim=-1) if axis is None else pose[:, axis, :3]
    offset = 0.1 * normal(B, 1, 3, g=g) if axis is None else 0.0
    return even(B, N, 1, g=g) * along[:, None] + offset, pose, g


# ---- matrices ----


def hidden(P: int, lost: float, seed: int = 0) -> Tensor:
    """(200,P,P) J^T J, each with one direction in which J is as small as `lost`, all unknowns taking any part in it."""
    g = generator(seed)
    J = normal(200, 3 * P, P, g=g)
    v = normalize(normal(200, P, g=g) * 10 ** (3 * even(200, P, g=g)), dim=-1)
    J = J - (J @ v[..., None]) * v[:, None] * (1 - lost)
    return J.mT @ J


@pytest.mark.parametrize("P", [2, 6, 9])
def test_a_direction_that_is_lost_is_singular_whatever_the_order(P: int) -> None:
    """With the last pivot alone, the verdict is that of the part which the last unknown takes in the direction."""
    A = hidden(P, 0.0)
    for order in (torch.arange(P), torch.arange(P).flip(0), torch.randperm(P, generator=generator(1))):
        assert not solve_spd(A[:, order][:, :, order], torch.ones(200, P, **DOUBLE))[1].any()


@pytest.mark.parametrize("lost", [1e-3, 1e-5, 1e-6])
def test_the_share_is_the_same_for_every_order_and_unit(lost: float) -> None:
    A = hidden(6, lost)
    unit = 10 ** (8 * even(200, 6, g=generator(2)))
    other = (A * unit[:, None] * unit[..., None])[:, [3, 5, 0, 1, 4, 2]][:, :, [3, 5, 0, 1, 4, 2]]
    known = share(A)
    assert known.amin() > 0
    # rounding of the entries is a part of 1e-15 / share of the share
    assert ((share(other) - known).abs() <= 1e-13 + 1e-9 * known).all()
    d = A.diagonal(dim1=1, dim2=2).rsqrt()
    smallest = torch.linalg.eigvalsh(A * d[:, None] * d[..., None])[:, 0]
    assert (known > smallest - 1e-14).all()
    assert (known < 6 * smallest + 1e-13).all()


def test_the_share_of_a_large_matrix_is_that_of_its_inverse() -> None:
    g = generator(3)
    J = normal(300, 100, g=g) * 10 ** (2 * even(100, g=g))
    J[:, 7] = J[:, 40] + 1e-4 * J[:, 40].norm() * normalize(normal(300, g=g), dim=0)
    A = J.T @ J
    d = A.diagonal().rsqrt()
    found = share_of_factor(torch.linalg.cholesky(A * d * d[:, None]))
    torch.testing.assert_close(found, share(A[None])[0], rtol=1e-4, atol=0)


def test_more_terms_in_a_sum_round_more() -> None:
    assert margin(torch.float64, 6) < margin(torch.float64, 6, 1000) < margin(torch.float64, 6, 1e6) < 1e-9
    assert margin(torch.float32, 6) / margin(torch.float64, 6) == pytest.approx(2.0**29)


# ---- what the data do not determine ----


def statuses_on_lines(seed: int, axis: int | None, N: int, **options: Any) -> Tensor:
    B = 300 if options.get("gradient") == "unrolled" else 2000
    start = options.pop("start", True)
    X, pose, g = lines(B, N, seed, axis)
    x = project(X, pose, K) + (seed % 2) * normal(B, N, 2, g=g)
    return pnp(x, X, K, init=pose if start else None, **options).status


@pytest.mark.slow
@pytest.mark.parametrize("axis", [None, 0, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": False},
        {"gradient": "unrolled"},
        {"kernel": geman_mcclure(2.0)},
        {"solve_dtype": torch.float32},
    ],
    ids=["start", "sought", "tensors", "robust", "float32"],
)
def test_points_on_a_line_determine_no_pose(options: dict[str, Any], axis: int | None) -> None:
    for seed, N in enumerate((4, 12, 40, 300)):
        assert not (statuses_on_lines(seed, axis, N, **options) == Status.CONVERGED).any()


def test_points_on_a_line_with_weights_of_all_sizes_determine_no_pose() -> None:
    X, pose, g = lines(2000, 12, 5)
    x = project(X, pose, K) + normal(2000, 12, 2, g=g)
    assert not pnp(x, X, K, init=pose, weights=10 ** (6 * even(2000, 12, g=g))).converged.any()


@pytest.mark.parametrize("N", [200, 4000])
def test_eight_points_on_a_line_are_no_more_for_being_many(N: int) -> None:
    """Equal terms are rounded alike: their errors add up instead of cancelling."""
    X, pose, _ = lines(100, 8, 6)
    X = X.repeat(1, N // 8, 1)
    assert not pnp(project(X, pose, K), X, K, init=pose).converged.any()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_points_on_a_line_are_not_registered(axis: int | None, scale: bool) -> None:
    X, pose, g = lines(500, 10, 7, axis)
    Y = se3.transform(pose, X)
    for noise in (0.0, 0.01):
        found = point_registration(X, Y + noise * normal(500, 10, 3, g=g), scale=scale)
        assert not found.converged.any()
    assert torch.isnan(covariance(rigid_problem, pose, X, Y)).any(-1).any(-1).all()


def test_points_on_a_line_determine_no_homography() -> None:
    g = generator(8)
    a = 320 + 200 * even(300, 12, 1, g=g) * normalize(normal(300, 1, 2, g=g), dim=-1)
    b = a.flip(-1) / (1 + 1e-4 * a.sum(-1, keepdim=True))
    assert not homography(a, b).converged.any()
    assert not homography(a, b + 0.5 * normal(300, 12, 2, g=g)).converged.any()


@pytest.mark.slow
def test_a_turn_alone_determines_no_translation() -> None:
    g = generator(9)
    pose = poses(20, g)
    turn = se3.from_rotvec_t(torch.cat([0.1 * normal(20, 3, g=g), torch.zeros(20, 3, **DOUBLE)], -1))
    X = even(20, 20, 3, g=g)
    assert not relative_pose(project(X, pose, K), project(X, turn @ pose, K), K, K).converged.any()


def test_views_from_one_place_determine_no_depth() -> None:
    g = generator(10)
    turns = se3.from_rotvec_t(torch.cat([0.1 * normal(300, 4, 3, g=g), torch.zeros(300, 4, 3, **DOUBLE)], -1))
    ahead = se3.from_rotvec_t(torch.tensor([0.0, 0, 0, 0, 0, 5], **DOUBLE)).expand(300, 4, 4)
    for pose in (poses(300, g), ahead):
        x = project(0.3 * even(300, 1, 1, 3, g=g), turns @ pose[:, None], K)[:, :, 0]
        for noise in (0.0, 0.5):
            found = triangulation(x + noise * normal(300, 4, 2, g=g), turns @ pose[:, None], K.expand(300, 4, 3, 3))
            assert not found.converged.any()


def two_scenes(seed: int, noise: float, joined: bool) -> tuple[Tensor, ...]:
    """Arguments of `bundle`: two pairs of views, each with twelve points of its own; joined, with four more for all."""
    g = generator(seed)
    X = even(28, 3, g=g)
    pose = se3.from_rotvec_t(
        torch.cat([0.3 * normal(4, 3, g=g), 0.5 * normal(4, 3, g=g) + K.new_tensor([0, 0, 5])], -1)
    )
    view = torch.arange(4).repeat_interleave(12)
    point = torch.cat([torch.arange(12)] * 2 + [torch.arange(12, 24)] * 2)
    if joined:
        view = torch.cat([view, torch.arange(4).repeat_interleave(4)])
        point = torch.cat([point, torch.arange(24, 28).repeat(4)])
    x = project(X[point][:, None], pose[view], K)[:, 0] + noise * normal(len(view), 2, g=g)
    return x, view, point, pose, X, K


@pytest.mark.parametrize("gauge", ["fixed", "free"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_two_scenes_in_one_bundle_may_move_against_each_other(noise: float, gauge: Any) -> None:
    for seed in range(5):
        assert bundle(*two_scenes(seed, noise, False), gauge=gauge).status.item() == Status.SINGULAR
        assert bundle(*two_scenes(seed, noise, True), gauge=gauge).status.item() == Status.CONVERGED


# ---- what they do ----


@pytest.mark.parametrize("route", ["compiled", "tensors"])
@pytest.mark.parametrize("width", [1e-2, 1e-3, 1e-4, 1e-5])
def test_a_pose_of_points_close_to_a_line_is_found_and_has_a_gradient(width: float, route: str) -> None:
    """Scaled condition numbers up to 1e12. In tensors the last of them may take more than the usual steps."""
    g = generator(11)
    B = 500 if route == "compiled" else 100
    pose = poses(B, g)
    X = even(B, 12, 3, g=g)
    X[..., 1:] *= width
    leaf = (project(X, pose, K) + 0.1 * width * normal(B, 12, 2, g=g)).requires_grad_()
    found = pnp(leaf, X, K, init=pose, gradient="exact" if route == "compiled" else "unrolled")
    assert not (found.status == Status.SINGULAR).any()
    assert found.converged.all() or (found.converged.double().mean() > 0.8 and width < 1e-4 and route == "tensors")
    assert isinstance(found.x, Tensor)
    found.x[:, :3].sum().backward()
    assert leaf.grad is not None
    assert ((leaf.grad != 0).flatten(1).any(1) == found.converged).all()


@pytest.mark.parametrize("N", [3, 4, 50, 300])
def test_a_pose_of_points_all_about_is_found(N: int) -> None:
    g = generator(12)
    pose = poses(2000, g)
    X = even(2000, N, 3, g=g)
    x = project(X, pose, K) + (N > 3) * normal(2000, N, 2, g=g)
    assert pnp(x, X, K, init=se3.retract(pose, 1e-4 * normal(2000, 6, g=g))).converged.double().mean() > 0.999


def beside_a_square(x: Tensor, a: Tensor) -> Tensor:
    return torch.stack([x[0] - a[0], x[1].square() + a[1]])


def test_a_strict_minimum_whose_jacobian_is_singular_is_a_minimum() -> None:
    """r = x^2 + a has J = 0 at x = 0, and the Hessian 2 a; at a = 0 that vanishes as well."""
    problem = Problem(beside_a_square, dof=2)
    a = torch.tensor([[1.0, 1.0], [1.0, 1e-3], [2.0, 0.0]], **DOUBLE).requires_grad_()
    found = argmin(problem, torch.tensor([[0.0, 0.0], [0.3, 1e-2], [0.0, 0.0]], **DOUBLE), a, polish=6)
    assert found.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.SINGULAR]
    assert isinstance(found.x, Tensor)
    found.x[:, 0].sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad[:, 0], torch.tensor([1.0, 1.0, 0.0], **DOUBLE))


def test_three_points_without_an_exact_pose_still_have_a_best_one() -> None:
    """J has six rows and is singular where the residual is not zero; only its curvature makes the minimum strict."""
    g = generator(13)
    pose = poses(3000, g)
    X = even(3000, 3, 3, g=g)
    X[..., 1:] *= 1e-2
    x = project(X, pose, K) + 3 * normal(3000, 3, 2, g=g)
    found = pnp(x, X, K, init=pose)
    inexact = found.converged & (found.cost > 1e-6)
    assert inexact.sum() > 500
    leaf = x[inexact].requires_grad_()
    again = pnp(leaf, X[inexact], K, init=found.x[inexact])  # type: ignore[index]
    assert again.converged.double().mean() > 0.99
    again.x.sum().backward()  # type: ignore[union-attr]
    assert ((leaf.grad != 0).flatten(1).any(1) == again.converged).all()  # type: ignore[union-attr]
