"""Minimal solvers of lines, homographies and essential matrices, and the problems that go with them."""

import importlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import poselib
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from geometry import Problem, Status, minimize, ransac, se3
from geometry.consensus.minimal import (
    essential_problem,
    essential_ray_problem,
    five_point,
    homography,
    homography_problem,
    line,
    line_problem,
    transfer,
)
from geometry.consensus.search import truncated
from tests.numbers import generator

module = importlib.import_module("geometry.consensus.minimal.essential")
torch.set_num_threads(1)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def planes(n: int, points: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Homographies (n,3,3) between views of a plane, pixels of its points in both (n,points,2)."""
    g = generator(seed)
    a = torch.rand(n, points, 2, generator=g, dtype=torch.float64) * torch.tensor([640.0, 480.0], dtype=torch.float64)
    K = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]], dtype=torch.float64)
    motion = se3.exp(0.2 * normal(g, n, 3)) + 0.2 * normal(g, n, 3)[:, :, None] * normalize(normal(g, n, 3))[:, None]
    H = K @ motion @ K.inverse()
    return H, a, transfer(H, a)


def views(n: int, points: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Essential matrices (n,3,3), and the points (n,points,3) in the frames of both cameras."""
    g = generator(seed)
    a = normal(g, n, points, 3) + torch.tensor([0.0, 0, 5])
    R, t = se3.exp(0.3 * normal(g, n, 3)), normalize(normal(g, n, 3))
    return se3.hat(t) @ R, a, a @ R.mT + t[:, None]


def up_to_sign(A: Tensor, B: Tensor) -> Tensor:
    """Distance of matrices (…,3,3) of length one."""
    A, B = (M / M.flatten(-2).norm(dim=-1)[..., None, None] for M in (A, B))
    return torch.minimum((A - B).flatten(-2).norm(dim=-1), (A + B).flatten(-2).norm(dim=-1))


# ---- values ----


def test_a_line_goes_through_its_points() -> None:
    points = normal(generator(), 50, 2, 2)
    found = line(points)
    torch.testing.assert_close(found[:, :2].norm(dim=1), torch.ones(50, dtype=torch.float64))
    assert ((points @ found[:, :2, None]).squeeze(-1) + found[:, 2:]).abs().max() < 1e-14


def test_a_homography_is_opencvs() -> None:
    H, a, b = planes(300)
    found = homography(a, b)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(300, dtype=torch.float64))
    torch.testing.assert_close(transfer(found, a), b, rtol=1e-7, atol=1e-7)
    apart = torch.tensor([np.linalg.cond(h.numpy()) for h in found]) < 1e7
    assert up_to_sign(found, H)[apart].max() < 1e-6
    theirs = [cv2.getPerspectiveTransform(p.numpy(), q.numpy()) for p, q in zip(a.float(), b.float(), strict=True)]
    assert up_to_sign(found, torch.from_numpy(np.array(theirs))).median() < 1e-5
    # all points of a plane that is seen lie on one side of the line that goes to infinity
    depth = (a * found[:, None, 2, :2]).sum(-1) + found[:, 2, 2, None]
    assert (depth.mean(1) > 0).all()


@pytest.mark.slow
def test_every_essential_matrix_is_one_and_none_is_missed() -> None:
    E, a, b = views(400)
    found = five_point(2 * a, 3 * b)
    real = torch.isfinite(found).all(-1).all(-1)
    assert (up_to_sign(found, E[:, None]).nan_to_num(9).amin(1) < 1e-6).all()
    values = torch.linalg.svdvals(found[real])
    torch.testing.assert_close(
        values, torch.tensor([1.0, 1, 0], dtype=torch.float64).expand_as(values), rtol=0, atol=1e-9
    )
    unit_a, unit_b = normalize(a, dim=-1), normalize(b, dim=-1)
    assert ((unit_b[:, None] @ found) * unit_a[:, None]).sum(-1)[real].abs().max() < 1e-9
    total = missed = 0
    for i in range(400):
        x, y = a[i, :, :2] / a[i, :, 2:], b[i, :, :2] / b[i, :, 2:]
        stacked, _ = cv2.findEssentialMat(x.numpy(), y.numpy(), np.eye(3), method=cv2.RANSAC, maxIters=1)
        theirs = [*np.array(poselib.essential_matrix_5pt(unit_a[i].numpy(), unit_b[i].numpy())).reshape(-1, 3, 3)]
        theirs += [] if stacked is None else [*stacked.reshape(-1, 3, 3)]
        for other in map(torch.from_numpy, theirs):
            # theirs are not all exact, and some are none
            M = other / other.norm() * 2**0.5
            wrong = (2 * M @ M.T @ M - 2 * M).abs().max() + ((unit_b[i] @ M) * unit_a[i]).sum(-1).abs().max()
            if wrong < 1e-8:
                total += 1
                missed += int(up_to_sign(found[i][real[i]], other).amin() > 1e-3)
    assert total > 1500
    assert missed == 0


def test_the_jacobian_is_that_of_the_errors() -> None:
    e, M = normal(generator(), 4, 10, 9), normal(generator(1), 4, 5, 9)
    numeric = torch.func.vmap(torch.func.jacrev(lambda x, m: module._errors(x[None], m)[0]))
    expected = torch.stack([numeric(e[:, i], M) for i in range(10)], 1)
    torch.testing.assert_close(module._jacobian(e, M), expected)


def test_float32_is_good_enough_to_start_from() -> None:
    E, a, b = views(300, seed=2)
    found = five_point(a.float(), b.float())
    assert found.dtype == torch.float32
    best = up_to_sign(found.double(), E[:, None]).nan_to_num(9).amin(1)
    assert best.median() < 1e-4
    assert (best < 0.05).float().mean() > 0.9
    H, p, q = planes(300)
    assert up_to_sign(homography(p.float(), q.float()).double(), H).median() < 1e-4


# ---- degenerate samples, gradients, shapes ----


def solvers() -> list[tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Each solver, twenty samples for it, and the same of which the second is degenerate."""
    g = generator(4)
    points = normal(g, 20, 2, 2)
    _, p, q = planes(20, seed=4)
    _, a, b = views(20, seed=4)
    bad_points, bad_p, bad_a = points.clone(), p.clone(), a.clone()
    bad_points[1] = bad_points[1, 0]
    bad_p[1, 2] = 0.5 * (bad_p[1, 0] + bad_p[1, 1])  # collinear
    bad_a[1, 2] = 0
    return [
        (line, (points,), (bad_points,)),
        (homography, (p, q), (bad_p, q)),
        (five_point, (a, b), (bad_a, b)),
    ]


@pytest.mark.parametrize("case", solvers(), ids=lambda case: case[0].__name__)
def test_a_degenerate_sample_is_nan_and_leaves_the_others_alone(case: Any) -> None:
    solver, good, bad = case
    leaves = [d.clone().requires_grad_() for d in bad]
    found, clean = solver(*leaves), solver(*good)
    assert found[1].isnan().all()
    others = [0, *range(2, 20)]
    torch.testing.assert_close(found[others], clean[others], equal_nan=True)
    found[torch.isfinite(found)].sum().backward()
    for leaf in leaves:
        assert torch.isfinite(leaf.grad).all()
        assert (leaf.grad[1] == 0).all()
        assert (leaf.grad[others] != 0).any()


@pytest.mark.parametrize("case", solvers(), ids=lambda case: case[0].__name__)
def test_all_the_same_is_nan(case: Any) -> None:
    solver, good, _ = case
    flat = [torch.ones_like(d) for d in good]
    assert solver(*flat).isnan().all()
    assert solver(*(torch.full_like(d, torch.nan) for d in good)).isnan().all()


@pytest.mark.parametrize("case", solvers(), ids=lambda case: case[0].__name__)
def test_gradients_are_those_of_finite_differences(case: Any) -> None:
    solver, good, _ = case
    seeds = torch.randn(solver(*good).shape, generator=generator(1), dtype=torch.float64)

    def f(*data: Tensor) -> Tensor:
        found = solver(*data)
        return torch.where(torch.isfinite(found), seeds * found, 0).flatten(1).sum(1)

    leaves = [d.clone().requires_grad_() for d in good]
    gradients = torch.autograd.grad(f(*leaves).sum(), leaves)
    for k, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        direction = torch.randn(leaf.shape, generator=generator(k), dtype=torch.float64)

        def along(h: float, k: int = k, direction: Tensor = direction) -> Tensor:
            return f(*(a.detach() + h * direction * (i == k) for i, a in enumerate(leaves)))

        size = leaf.detach().abs().mean().item()
        coarse, fine = (
            (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h) for h in (1e-5 * size, 2e-6 * size)
        )
        scale = 1 + fine.abs()
        steady = (coarse - fine).abs() < 1e-6 * scale  # near a double root there are no differences to compare with
        assert steady.sum() >= 15
        error = ((gradient * direction).flatten(1).sum(1) - coarse).abs() / scale
        assert error[steady].max() < 1e-6


@pytest.mark.parametrize("case", solvers(), ids=lambda case: case[0].__name__)
def test_leading_dimensions_are_the_batch(case: Any) -> None:
    solver, good, _ = case
    flat = solver(*good)
    nested = solver(*(d[:4].unflatten(0, (2, 2)) for d in good))
    torch.testing.assert_close(nested.flatten(0, 1), flat[:4], equal_nan=True)
    torch.testing.assert_close(solver(*(d[2] for d in good)), flat[2], equal_nan=True)
    with pytest.raises(ValueError, match="must have shape"):
        solver(*(d[:, :1] for d in good))


# ---- problems ----


def noisy() -> list[tuple[Problem, Tensor, tuple[Tensor, ...], Callable[[Tensor], Tensor], int, float]]:
    """A problem, its true x (3,…), data with 40 % of wrong rows, a minimal solver of samples, its size, a threshold."""
    B, N, g = 3, 80, generator(8)
    wrong = torch.rand(B, N, generator=g) < 0.4
    rows = torch.arange(B)[:, None, None]
    truth = normalize(normal(g, B, 2))
    truth = torch.cat([truth, 0.1 * normal(g, B, 1)], -1)
    along = 2 * torch.rand(B, N, 1, generator=g, dtype=torch.float64) - 1
    points = -truth[:, None, 2:] * truth[:, None, :2] + along * torch.stack([-truth[:, 1], truth[:, 0]], -1)[:, None]
    points = points + torch.where(wrong[..., None], 1.0, 1e-3) * normal(g, B, N, 2)
    H, p, q = planes(B, N, seed=5)
    q = torch.where(wrong[..., None], p.flip(1), q + normal(g, B, N, 2))
    E, a, b = views(B, N, seed=6)
    a, b = a[..., :2] / a[..., 2:], b[..., :2] / b[..., 2:]
    b = torch.where(wrong[..., None], b.flip(1), b + 1e-3 * normal(g, B, N, 2))
    lift = lambda x: torch.nn.functional.pad(x, (0, 1), value=1.0)
    # of cameras that look another way, so that what they see may be behind them
    S, Q = se3.rotation_from_quat_wxyz(normal(g, 2, 4))
    c, d, E_turned = -2 * lift(a) @ S.mT, 3 * lift(b) @ Q.mT, Q @ E @ S.mT
    return [
        (line_problem, truth, (points,), lambda i: line(points[rows, i]), 2, 4e-3),
        (homography_problem, H, (p, q), lambda i: homography(p[rows, i], q[rows, i]), 4, 4.0),
        (essential_problem, E, (a, b), lambda i: five_point(lift(a[rows, i]), lift(b[rows, i])).flatten(1, 2), 5, 4e-3),
        (essential_ray_problem, E_turned, (c, d), lambda i: five_point(c[rows, i], d[rows, i]).flatten(1, 2), 5, 4e-3),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", noisy(), ids=["line", "homography", "essential", "essential of rays"])
def test_ransac_finds_it_among_outliers_and_minimize_agrees(case: Any) -> None:
    problem, truth, data, solver, size, threshold = case
    options: dict[str, Any] = {"candidates": torch.ones(3, 80, dtype=torch.float64), "size": size}
    found = ransac(problem, solver, *data, threshold=threshold, generator=generator(), **options)
    assert found.converged.all()
    if problem is line_problem:
        error = torch.minimum((found.x - truth).norm(dim=1), (found.x + truth).norm(dim=1))
    elif problem is homography_problem:
        error = (transfer(found.x, data[0]) - transfer(truth, data[0])).norm(dim=-1).median(1).values / 100
    else:
        error = up_to_sign(found.x, truth)
    assert error.max() < 0.025  # the lowest score of the third essential matrix has a wrong row among its inliers
    assert (found.inliers.sum(1) > 40).all()
    # who knows the truth finds no lower score from there
    present = torch.ones(1, 80, dtype=torch.bool)
    told = minimize(truncated(problem, threshold), truth, *data, present)
    assert (found.cost <= (1 + 1e-9) * told.cost).all()

    # of the inliers alone it is all but the least-squares solution, which has a gradient of zero in every direction
    def residual(x: Tensor, *data_and_inliers: Tensor) -> Tensor:
        *data, inliers = data_and_inliers
        r = problem.residual(x, *data)
        return torch.where(inliers if r.ndim == 1 else inliers[:, None], r, 0)

    refined = minimize(Problem(residual, problem.dof, problem.retract), found.x, *data, found.inliers)
    assert (refined.status == Status.CONVERGED).all()
    outside = 0.5 * threshold**2 * (~found.inliers).sum(1)
    torch.testing.assert_close(found.cost, refined.cost + outside, rtol=1e-5, atol=0)


def test_a_step_stays_on_the_manifold() -> None:
    E, _, _ = views(1, seed=9)
    moved = essential_problem.retract(E[0], 0.3 * normal(generator(), 5))
    values = torch.linalg.svdvals(moved)
    torch.testing.assert_close(values, torch.tensor([1.0, 1, 0], dtype=torch.float64), rtol=0, atol=1e-12)
    x = line_problem.retract(line(normal(generator(), 2, 2)), normal(generator(), 2))
    assert x[:2].norm().item() == pytest.approx(1)
    assert homography_problem.retract(E[0], normal(generator(), 8)).norm().item() == pytest.approx(1)


@pytest.mark.parametrize("case", noisy(), ids=["line", "homography", "essential", "essential of rays"])
def test_the_unknowns_are_all_of_them(case: Any) -> None:
    problem, truth, *_ = case
    x = truth[0]

    def moved(step: Tensor) -> Tensor:
        y = problem.retract(x, step)
        return (y / y.norm()).flatten()

    J = torch.func.jacfwd(moved)(torch.zeros(problem.dof, dtype=torch.float64))
    assert torch.linalg.matrix_rank(J, rtol=1e-6) == problem.dof
