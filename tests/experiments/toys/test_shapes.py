"""Lines and circles against brute force, the general solver and finite differences; consensus against its sums."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.toys.shapes import CIRCLE, LINE, Shape, border_crossings, bounded, consensus, line_at, line_error_sum
from geometry import Problem, argmin, draw_sets, expected_loss, minimize


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(angle: float, point: tuple[float, float]) -> Tensor:
    """The line at `angle` through a point."""
    normal = torch.tensor([-math.sin(angle), math.cos(angle)], dtype=torch.float64)
    return torch.cat([normal, (normal * torch.tensor(point, dtype=torch.float64)).sum()[None]])


# ---- lines ----


def test_a_line_goes_through_its_points() -> None:
    points = random(50, 2, 2)
    points[0, 1] = points[0, 0] + torch.tensor([0.0, 0.3])  # upright
    points[1, 1] = points[1, 0] + torch.tensor([0.3, 0.0])  # level
    points[2, 1] = points[2, 0]  # says nothing
    found = LINE.through(points)
    torch.testing.assert_close(found[:, :2].norm(dim=-1), torch.ones(50, dtype=torch.float64))
    assert LINE.distance(found, points).max() < 1e-12
    points.requires_grad_()
    (gradient,) = torch.autograd.grad(LINE.through(points).sum(), points)
    assert torch.isfinite(gradient).all()


def test_distance_against_points_along_the_line() -> None:
    found, points = LINE.through(random(5, 2, 2)), random(5, 7, 2, seed=1)
    n, d = found[:, None, :2], found[:, None, 2:]
    along = torch.stack([-n[..., 1], n[..., 0]], -1)
    fine = d * n + torch.linspace(-4, 4, 80_001, dtype=torch.float64)[:, None] * along
    torch.testing.assert_close(LINE.distance(found, points), torch.cdist(points, fine).amin(-1), rtol=0, atol=1e-5)


def residual(x: Tensor, points: Tensor, share: Tensor) -> Tensor:
    """Of a line at angle x_0 and offset x_1: what `fit_line` minimises the squares of."""
    return share.sqrt() * (points @ torch.stack([x[0].cos(), x[0].sin()]) - x[1])


@pytest.mark.parametrize("seed", range(3))
def test_the_fitted_line_is_the_minimum_and_has_its_gradient(seed: int) -> None:
    """Against the general solver and the implicit function theorem, which share no line with the closed form."""
    points = (random(4, 9, 2, seed=seed) * torch.tensor([1.0, 0.2 + seed])).requires_grad_()
    share = (0.1 + random(4, 9, seed=seed + 10)).requires_grad_()
    found = LINE.fit(points, share)
    n, d = found.detach()[:, :2], found.detach()[:, 2]
    start = torch.stack([torch.atan2(n[:, 1], n[:, 0]) + 0.02, d + 0.01], -1)
    solution = argmin(Problem(residual, 2), start, points, share)
    assert solution.converged.all()
    angle, offset = solution.x.unbind(-1)
    expected = torch.stack([angle.cos(), angle.sin(), offset], -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    weights = random(4, 3, seed=5)
    ours, general = (torch.autograd.grad((x * weights).sum(), (points, share)) for x in (found, expected))
    for one, other in zip(ours, general, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_no_angle_is_better_than_the_fitted_one() -> None:
    points, share = random(1, 8, 2, seed=3), random(1, 8, seed=4)
    middle = (share[..., None] * points).sum(1) / share.sum()
    angle = torch.linspace(0, math.pi, 20_000, dtype=torch.float64)
    tried = line_at(middle.expand(len(angle), 2), torch.stack([(2 * angle).cos(), (2 * angle).sin()], -1))
    costs = (share * LINE.distance(tried, points).square()).sum(-1)
    cost = (share * LINE.distance(LINE.fit(points, share), points).square()).sum()
    assert costs.min() * (1 - 1e-6) <= cost <= costs.min()


def test_a_double_angle_has_no_sign() -> None:
    point, angle = random(9, 2), 7 * random(9)
    double = torch.stack([(2 * angle).cos(), (2 * angle).sin()], -1)
    normal = torch.stack([angle.cos(), angle.sin()], -1)
    found = line_at(point, 3 * double)
    torch.testing.assert_close((found[:, :2] * normal).sum(-1).abs(), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close((found[:, :2] * point).sum(-1), found[:, 2])


def brute_crossings(model: Tensor) -> np.ndarray:
    """All the points where n . p = d meets the four sides of the square, by solving for each side."""
    a, b, d = model.tolist()
    found = []
    for x in (0.0, 1.0):
        if abs(b) > 1e-12 and -1e-12 <= (d - a * x) / b <= 1 + 1e-12:
            found.append((x, (d - a * x) / b))
    for y in (0.0, 1.0):
        if abs(a) > 1e-12 and -1e-12 <= (d - b * y) / a <= 1 + 1e-12:
            found.append(((d - b * y) / a, y))
    return np.array(found)


def test_border_crossings_against_each_side() -> None:
    angles = torch.linspace(0, math.pi, 37, dtype=torch.float64).tolist()  # level and upright ones among them
    for angle in angles:
        for point in random(20, 2, seed=6).tolist():
            model = line(angle, (point[0], point[1]))
            expected = brute_crossings(model)
            found = border_crossings(model).numpy()
            gaps = np.linalg.norm(found[:, None] - expected[None], axis=-1)
            assert gaps.min(1).max() < 1e-9
            assert gaps.min(0).max() < 1e-9


def test_crossings_stay_near_for_a_line_that_misses() -> None:
    """Continuous across the corner, on the line, and never further away than the line itself and half a diagonal."""
    offsets = torch.linspace(1.3, 1.6, 301, dtype=torch.float64)
    models = torch.stack([line(-math.pi / 4 + 0.1, (0, 0)).expand(301, 3)[:, i] for i in range(3)], -1).clone()
    models[:, 2] = offsets
    found = border_crossings(models)
    assert LINE.distance(models, found).max() < 1e-12
    assert (found[1:] - found[:-1]).norm(dim=-1).max() < 0.05
    assert (found - 0.5).norm(dim=-1).max() < math.hypot(1.6, math.sqrt(0.5))


def test_line_error_by_hand_and_without_a_sign() -> None:
    level = [line(0.0, (0.5, y)) for y in (0.25, 0.5)]
    assert LINE.error(level[0], level[1]).item() == pytest.approx(0.25)
    slanted = line(math.atan2(0.5, 1.0), (0.0, 0.25))  # from (0, 1/4) to (1, 3/4)
    assert LINE.error(slanted, level[1]).item() == pytest.approx(0.25)
    assert LINE.error(slanted, level[0]).item() == pytest.approx(0.5)
    models = LINE.through(random(2, 30, 2, 2, seed=7))
    error = LINE.error(models[0], models[1])
    torch.testing.assert_close(LINE.error(-models[0], models[1]), error)
    torch.testing.assert_close(LINE.error(models[1], models[0]), error)
    assert (LINE.error(models, models) == 0).all()


def test_the_sum_of_both_ends_by_hand() -> None:
    level, slanted = line(0.0, (0.5, 0.25)), line(math.atan2(0.5, 1.0), (0.0, 0.5))  # from (0, 1/2) to (1, 1)
    assert line_error_sum(slanted, level).item() == pytest.approx(0.25 + 0.75)
    models = LINE.through(random(2, 30, 2, 2, seed=7))
    total, largest = line_error_sum(models[0], models[1]), LINE.error(models[0], models[1])
    assert ((total >= largest) & (total <= 2 * largest)).all()
    torch.testing.assert_close(line_error_sum(-models[0], models[1]), total)


# ---- circles ----


def test_a_circle_goes_through_its_points() -> None:
    points = random(50, 3, 2)
    found = CIRCLE.through(points)
    bent = found[:, 2] > 0
    assert bent.sum() > 45
    assert CIRCLE.distance(found, points)[bent].max() < 1e-9
    straight = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.7, 0.7]], dtype=torch.float64).requires_grad_()
    point = CIRCLE.through(straight)
    torch.testing.assert_close(point, torch.tensor([0.1, 0.1, 0.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(point.sum(), straight)
    assert torch.isfinite(gradient).all()


def test_the_fitted_circle_is_the_least_squares_one() -> None:
    points, share = random(6, 9, 2, seed=8), random(6, 9, seed=9)
    found = CIRCLE.fit(points, share)
    for model, p, s in zip(found.numpy(), points.numpy(), share.numpy(), strict=True):
        root = np.sqrt(s)[:, None]
        design = np.concatenate([2 * p, np.ones((9, 1))], 1)
        x, y, k = np.linalg.lstsq(root * design, root[:, 0] * (p**2).sum(1), rcond=None)[0]
        np.testing.assert_allclose(model, [x, y, np.sqrt(k + x * x + y * y)], rtol=0, atol=1e-9)
    angle = 2 * math.pi * random(1, 12, seed=10)
    exact = 0.4 + 0.3 * torch.stack([angle.cos(), angle.sin()], -1)
    torch.testing.assert_close(
        CIRCLE.fit(exact, random(1, 12, seed=11)), torch.tensor([[0.4, 0.4, 0.3]], dtype=torch.float64)
    )


def test_circle_error_against_points_on_both() -> None:
    circles = random(2, 6, 3, seed=12)
    angle = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    edges = circles[..., None, :2] + circles[..., None, 2:] * torch.stack([angle.cos(), angle.sin()], -1)
    farthest = torch.maximum(*(CIRCLE.distance(circles[1 - i], edges[i]).amax(-1) for i in (0, 1)))
    torch.testing.assert_close(CIRCLE.error(circles[0], circles[1]), farthest, rtol=0, atol=1e-6)


# ---- both ----


@pytest.mark.parametrize("shape", [LINE, CIRCLE], ids=["line", "circle"])
def test_gradients_against_finite_differences(shape: Shape) -> None:
    minimal = random(3, shape.size, 2, seed=13).requires_grad_()
    assert torch.autograd.gradcheck(shape.through, minimal)
    model, points = random(3, 3, seed=14).requires_grad_(), random(3, 6, 2, seed=15).requires_grad_()
    share = (0.2 + random(3, 6, seed=16)).requires_grad_()
    assert torch.autograd.gradcheck(shape.distance, (model, points))
    assert torch.autograd.gradcheck(shape.fit, (points, share))
    truth = random(3, shape.size, 2, seed=17)
    assert torch.autograd.gradcheck(lambda p: shape.error(shape.through(p), shape.through(truth)), minimal)


@pytest.mark.parametrize("shape", [LINE, CIRCLE], ids=["line", "circle"])
def test_the_expected_loss_has_an_exact_gradient(shape: Shape) -> None:
    """Through sampling's points, scores, shares and refined models at once, against central differences."""
    points, trust = random(2, 10, 2, seed=18), 0.2 + 0.8 * random(2, 10, seed=19)
    sets = draw_sets(torch.zeros(2, 10), shape.size, 6, torch.Generator().manual_seed(0))
    truth = shape.through(random(2, 1, shape.size, 2, seed=20))

    def loss(points: Tensor, trust: Tensor) -> Tensor:
        found = consensus(shape, points, sets, 0.1, 20.0, trust)
        return expected_loss(found.score, bounded(shape.error(found.model, truth), 0.3), 0.7)

    assert torch.autograd.gradcheck(loss, (points.requires_grad_(), trust.requires_grad_()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", [LINE, CIRCLE], ids=["line", "circle"])
def test_points_that_say_nothing_spoil_nothing(shape: Shape) -> None:
    points = random(2, 8, 2, seed=21)
    points[0] = 0.5  # all in one place
    points = points.float().requires_grad_()
    sets = draw_sets(torch.zeros(2, 8), shape.size, 5, torch.Generator().manual_seed(0))
    found = consensus(shape, points, sets, 0.05, 100.0)
    truth = shape.through(random(2, 1, shape.size, 2, seed=22).float())
    loss = expected_loss(found.score, shape.error(found.model, truth), 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), points)
    assert torch.isfinite(gradient).all()
    alone = consensus(shape, points[1:], sets[1:], 0.05, 100.0)
    torch.testing.assert_close(found.model[1:], alone.model)


@pytest.mark.parametrize("shape", [LINE, CIRCLE], ids=["line", "circle"])
def test_consensus_finds_the_shape_among_outliers(shape: Shape) -> None:
    truth = shape.through(random(20, shape.size, 2, seed=23))
    if shape is CIRCLE:
        truth = torch.cat([0.3 + 0.4 * random(20, 2, seed=24), 0.1 + 0.2 * random(20, 1, seed=25)], -1)
        angle = 2 * math.pi * random(20, 30, seed=26)
        on = truth[:, None, :2] + truth[:, None, 2:] * torch.stack([angle.cos(), angle.sin()], -1)
    else:
        a, b = border_crossings(truth).unbind(1)
        on = torch.lerp(a[:, None], b[:, None], random(20, 30, 1, seed=26))
    points = torch.cat([on + 0.004 * (random(20, 30, 2, seed=27) - 0.5), random(20, 20, 2, seed=28)], 1)
    sets = draw_sets(torch.zeros(20, 50), shape.size, 200, torch.Generator().manual_seed(0))
    found = consensus(shape, points, sets, 0.02, 200.0)
    assert (shape.error(found.best, truth) < 0.05).double().mean() >= 0.95
    trust = torch.cat([torch.ones(20, 30), torch.zeros(20, 20)], 1).double()
    told = consensus(shape, points, sets, 0.02, 200.0, trust)
    absent = consensus(shape, points[:, :30], sets % 30, 0.02, 200.0)
    same = (sets < 30).all(-1)
    torch.testing.assert_close(told.score[same], absent.score[same])
    torch.testing.assert_close(told.model[same], absent.model[same])


def test_a_bounded_error_starts_as_itself_and_ends_at_its_scale() -> None:
    error = torch.tensor([0.0, 1e-6, 0.1, 1e9], dtype=torch.float64)
    torch.testing.assert_close(
        bounded(error, 0.1), torch.tensor([0.0, 1e-6, 0.05, 0.1], dtype=torch.float64), rtol=0, atol=1e-9
    )
    assert bounded(error, math.inf) is error


def test_minimize_agrees_that_circles_are_refined() -> None:
    """Kasa's fit of points near a circle is near the geometric one, which is what the refinement stands for."""
    angle = 2 * math.pi * random(5, 40, seed=29)
    truth = torch.tensor([0.5, 0.4, 0.25], dtype=torch.float64)
    points = (
        truth[:2] + truth[2] * torch.stack([angle.cos(), angle.sin()], -1) + 0.01 * (random(5, 40, 2, seed=30) - 0.5)
    )
    problem = Problem(lambda x, p: (p - x[:2]).norm(dim=-1) - x[2], 3)
    geometric = minimize(problem, truth.expand(5, 3), points)
    assert geometric.converged.all()
    assert CIRCLE.error(CIRCLE.fit(points, torch.ones(5, 40)), geometric.x).max() < 1e-3
