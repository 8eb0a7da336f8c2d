"""Structure without poses: the step against a dense one, what it must not depend on, and recovery from nothing."""

import io
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jacfwd

from datasets.made.scenes import duck, half_visible, random_poses
from geometry import Status, align_similarity, find_structure, project, se3, triangulate
from geometry.camera import matrix_from_intrinsics
from geometry.optim import NestedState, nested_start, nested_step
from geometry.reconstruction import StructureProblem, mirror
from tests.numbers import DOUBLE, central_difference, close, directions_of, generator

torch.set_num_threads(1)
RADTAN = (-0.2, 0.1, 0.001, -0.002)


class Scene(NamedTuple):
    """What `StructureProblem` is told, and the truth."""

    points2d: Tensor
    visible: Tensor
    K: Tensor
    distortion: Tensor
    points_gt: Tensor
    poses_gt: Tensor

    def problem(self, **options: Any) -> StructureProblem:
        return StructureProblem(self.points2d, self.visible, self.K, self.distortion, **options)


def make_scene(N: int, V: int, *, seed: int = 0, noise: float = 0.0, coefficients: tuple[float, ...] = ()) -> Scene:
    """A duck of 3 units seen from 4 to 10, half of it in each view; seven points are in all of them."""
    g = torch.Generator().manual_seed(seed)
    points, poses = 8 * duck(N, g), random_poses(V, g, depth=(4.0, 10.0))
    visible = half_visible(points, V)
    visible[:, :7] = True
    K = matrix_from_intrinsics(torch.tensor([500.0, 510.0, 320.0, 240.0], dtype=torch.float64)).expand(V, 3, 3)
    distortion = K.new_tensor(coefficients).expand(V, -1)
    pixels = project(points, poses, K, distortion)
    pixels = pixels + noise * torch.randn(pixels.shape, generator=g, dtype=torch.float64)
    return Scene(pixels, visible, K, distortion, points, poses)


def disturbed(scene: Scene, S: int = 2, by: float = 0.1) -> Tensor:
    g = torch.Generator().manual_seed(7)
    return scene.points_gt + by * torch.randn(S, *scene.points_gt.shape, generator=g, dtype=torch.float64)


def run(problem: StructureProblem, state: NestedState, steps: int) -> NestedState:
    while state.steps < steps and not state.done.all():
        state = nested_step(problem, state)
    return state


# ---- one step ----


@pytest.mark.parametrize("coefficients", [(), RADTAN])
def test_the_step_is_that_of_the_dense_system(coefficients: tuple[float, ...]) -> None:
    scene = make_scene(12, 3, noise=1.0, coefficients=coefficients)
    scene.visible[:, 11] = False  # a point that nobody sees
    problem = scene.problem()
    theta = disturbed(scene)
    _, inner = problem.evaluate(theta, None)
    damping = torch.tensor([3.0, 0.1], dtype=torch.float64)  # well above the ridge of 1e-10
    step, predicted = problem.step(theta, inner, damping)
    assert torch.equal(step[:, 11], torch.zeros(2, 3, dtype=torch.float64))

    for s in range(2):

        def residual(unknowns: Tensor, s: int = s) -> Tensor:
            points = theta[s] + unknowns[:36].view(12, 3)
            poses = se3.retract(inner[s], unknowns[36:].view(3, 6))
            return (project(points, poses, scene.K, scene.distortion) - scene.points2d)[scene.visible].flatten()

        zero = torch.zeros(36 + 18, dtype=torch.float64)
        r, J = residual(zero), jacfwd(residual)(zero)
        assert (J[:, 36:].T @ r).abs().max() < 1e-6  # the poses are at their argmin
        A, g = J.T @ J, J.T @ r
        D, W, H = A[:36, :36], A[:36, 36:], A[36:, 36:]
        schur = D - W @ torch.linalg.solve(H, W.T)
        kept = D.diagonal() > 0
        lm = schur + damping[s] * torch.diag(D.diagonal())
        dense = torch.zeros(36, dtype=torch.float64)
        dense[kept] = torch.linalg.solve(lm[kept][:, kept], -g[:36][kept])
        torch.testing.assert_close(step[s].flatten(), dense, rtol=1e-6, atol=1e-7 * dense.abs().max().item())
        decrease = -(g[:36] @ dense + 0.5 * dense @ schur @ dense)
        torch.testing.assert_close(predicted[s], decrease, rtol=1e-6, atol=0)


def test_the_cost_is_that_of_each_view_alone() -> None:
    scene = make_scene(20, 4, noise=1.0)
    theta = disturbed(scene)
    cost, poses = scene.problem().evaluate(theta, None)
    error = (project(theta[:, None], poses, scene.K) - scene.points2d).square().sum(-1)
    torch.testing.assert_close(cost, 0.5 * (error * scene.visible).sum((1, 2)))


# ---- what must not matter ----


@pytest.mark.slow
@pytest.mark.parametrize("value", [1e6, torch.nan])
def test_masked_entries_may_hold_anything(value: float) -> None:
    scene = make_scene(20, 4, noise=1.0)
    poisoned = scene._replace(points2d=torch.where(scene.visible[..., None], scene.points2d, value))
    theta = disturbed(scene, S=1)
    for a, b in zip(
        run(scene.problem(), nested_start(scene.problem(), theta), 2)[:-1],
        run(poisoned.problem(), nested_start(poisoned.problem(), theta), 2)[:-1],
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    cameras = (scene.poses_gt, scene.K, scene.K.new_tensor(RADTAN).expand(4, -1))
    torch.testing.assert_close(
        triangulate(poisoned.points2d, scene.visible, *cameras).x,
        triangulate(scene.points2d, scene.visible, *cameras).x,
        rtol=1e-12,
        atol=1e-12,
    )


def test_the_order_of_points_and_of_views_does_not_matter() -> None:
    scene = make_scene(20, 4, noise=1.0)
    theta = disturbed(scene)
    g = torch.Generator().manual_seed(3)
    points, views = torch.randperm(20, generator=g), torch.randperm(4, generator=g)
    shuffled = Scene(
        scene.points2d[views][:, points],
        scene.visible[views][:, points],
        scene.K[views],
        scene.distortion[views],
        scene.points_gt[points],
        scene.poses_gt[views],
    )
    one = run(scene.problem(), nested_start(scene.problem(), theta), 3)
    other = run(shuffled.problem(), nested_start(shuffled.problem(), theta[:, points]), 3)
    torch.testing.assert_close(other.cost, one.cost, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.theta, one.theta[:, points], rtol=0, atol=1e-8)
    torch.testing.assert_close(other.inner, one.inner[:, views], rtol=0, atol=1e-6)


def test_candidates_together_are_each_alone() -> None:
    scene = make_scene(20, 4, noise=1.0)
    problem = scene.problem()
    theta = disturbed(scene, S=3)
    together = run(problem, nested_start(problem, theta), 4)
    for s in range(3):
        alone = run(problem, nested_start(problem, theta[s : s + 1]), 4)
        for a, b in zip(alone[:4], together[:4], strict=True):
            torch.testing.assert_close(a[0], b[s], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("global_poses", [True, False])
def test_a_stored_state_goes_on_exactly(global_poses: bool) -> None:
    scene = make_scene(20, 4, noise=1.0)
    problem = scene.problem(global_poses=global_poses)
    whole = run(problem, nested_start(problem, disturbed(scene)), 6)
    half = run(problem, nested_start(problem, disturbed(scene)), 3)
    buffer = io.BytesIO()
    torch.save(tuple(half), buffer)
    buffer.seek(0)
    again = scene.problem(global_poses=global_poses)
    resumed = run(again, NestedState(*torch.load(buffer, weights_only=True)), 6)
    assert resumed.steps == whole.steps == 6
    for a, b in zip(resumed[:-1], whole[:-1], strict=True):
        assert torch.equal(a, b)


def test_the_scale_of_the_world_does_not_matter() -> None:
    """A similarity of the structure leaves the cost alone, and so does a smaller unit of pixels but for its square."""
    scene = make_scene(20, 4, noise=1.0)
    theta = disturbed(scene)
    cost, _ = scene.problem().evaluate(theta, None)
    R = se3.exp(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    moved, _ = scene.problem().evaluate(3.5 * theta @ R.T + 2, None)
    torch.testing.assert_close(moved, cost, rtol=1e-8, atol=0)
    unit = torch.diag(torch.tensor([1e-6, 1e-6, 1.0], dtype=torch.float64))
    small = scene._replace(points2d=1e-6 * scene.points2d, K=unit @ scene.K)
    torch.testing.assert_close(small.problem().evaluate(theta, None)[0], 1e-12 * cost, rtol=1e-8, atol=0)


def test_retract_normalises_unless_told_not_to() -> None:
    scene = make_scene(20, 4)
    theta, step = disturbed(scene), 0.1 * torch.ones(2, 20, 3, dtype=torch.float64)
    assert torch.equal(scene.problem(normalise=False).retract(theta, step), theta + step)
    moved = scene.problem().retract(theta, step)
    torch.testing.assert_close(moved.mean(1), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(moved.square().sum(-1).mean(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(align_similarity(theta, moved).apply(theta), moved)


def test_mirror_is_a_reflection() -> None:
    theta = disturbed(make_scene(20, 4))
    assert torch.equal(mirror(mirror(theta)), theta)
    torch.testing.assert_close(torch.cdist(mirror(theta), mirror(theta)), torch.cdist(theta, theta))
    assert (align_similarity(theta, mirror(theta)).apply(theta) - mirror(theta)).abs().max() > 0.1


# ---- triangulation ----


def rays_by_opencv(scene: Scene, pair: tuple[int, int]) -> np.ndarray:
    a, b = pair
    P = [(scene.K[v] @ scene.poses_gt[v, :3]).numpy() for v in pair]
    homogeneous = cv2.triangulatePoints(P[0], P[1], scene.points2d[a].T.numpy(), scene.points2d[b].T.numpy())
    return (homogeneous[:3] / homogeneous[3]).T


def test_triangulate_is_exact_without_noise() -> None:
    scene = make_scene(30, 2)
    visible = torch.ones_like(scene.visible)
    found = triangulate(scene.points2d, visible, scene.poses_gt, scene.K, scene.distortion)
    assert found.converged.all()
    torch.testing.assert_close(found.x, torch.from_numpy(rays_by_opencv(scene, (0, 1))), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.x, scene.points_gt, rtol=0, atol=1e-10)
    lens = make_scene(30, 5, coefficients=RADTAN)
    found = triangulate(lens.points2d, lens.visible, lens.poses_gt, lens.K, lens.distortion)
    torch.testing.assert_close(found.x, lens.points_gt, rtol=0, atol=1e-10)


def test_triangulate_has_the_gradient_of_its_minimum() -> None:
    scene, g = make_scene(8, 4, noise=2.0, coefficients=RADTAN), generator(3)
    data = scene.points2d, scene.K.expand(4, 3, 3), scene.distortion.expand(4, -1), torch.zeros(4, 6, **DOUBLE)
    directions = directions_of(data, (1.0, 1.0, 1e-2, 1e-2), g)

    def points(pixels: Tensor, K: Tensor, lens: Tensor, step: Tensor) -> Tensor:
        return triangulate(pixels, scene.visible, se3.retract(scene.poses_gt, step), K, lens).x

    directions[1][..., 2, :] = 0  # the third row of K is what it is
    moving = [d.clone().requires_grad_() for d in data]
    for gradient, d, direction in zip(
        torch.autograd.grad(points(*moving)[2, 1], moving), data, directions, strict=True
    ):
        wanted = central_difference(
            lambda h, d=d, by=direction: points(*(a + h * by if a is d else a for a in data))[2, 1], 1e-2
        )
        close((gradient * direction).sum(), wanted, atol=1e-8 * float(wanted.abs()))


def test_triangulate_never_costs_more_than_opencv() -> None:
    scene = make_scene(50, 2, noise=2.0)
    visible = torch.ones_like(scene.visible)
    found = triangulate(scene.points2d, visible, scene.poses_gt, scene.K, scene.distortion)

    def cost(points: Tensor) -> Tensor:
        return 0.5 * (project(points, scene.poses_gt, scene.K) - scene.points2d).square().sum((0, 2))

    assert found.converged.all()
    torch.testing.assert_close(found.cost, cost(found.x))
    theirs = cost(torch.from_numpy(rays_by_opencv(scene, (0, 1))))
    assert (found.cost <= theirs * (1 + 1e-9)).all()
    assert (found.cost < 0.999 * theirs).any()  # theirs is algebraic
    truth = cost(scene.points_gt)
    assert (found.cost <= truth).all()


def test_a_point_that_is_not_determined_is_reported() -> None:
    scene = make_scene(20, 4)
    scene.visible[:, 8] = False
    scene.visible[:, 9] = torch.tensor([True, False, False, False])
    found = triangulate(scene.points2d, scene.visible, scene.poses_gt, scene.K, scene.distortion)
    good = torch.ones(20, dtype=torch.bool)
    good[[8, 9]] = False
    assert torch.equal(found.converged, good)
    assert (found.status[[8, 9]] == Status.SINGULAR).all()
    torch.testing.assert_close(found.x[good], scene.points_gt[good], rtol=0, atol=1e-10)


# ---- from nothing ----


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_duck_is_recovered_from_nothing(seed: int) -> None:
    scene = make_duck(seed)
    torch.manual_seed(seed)
    few = torch.randperm(100)[:40]
    given = scene.points2d[:, few], scene.visible[:, few], scene.K, scene.distortion
    guess = find_structure(*given, sigma=1e-8)  # of f = 0.0005
    assert guess.found, guess.message
    error = (project(guess.points3d, guess.world_to_camera, scene.K) - given[0]).square().sum(-1)[given[1]].sum()
    assert error < 1e-14
    start = triangulate(scene.points2d, scene.visible, guess.world_to_camera, scene.K, scene.distortion).x
    problem = scene.problem(global_poses=False)
    state = run(problem, nested_start(problem, start[None], guess.world_to_camera[None]), 30)
    found = state.theta[0]
    error = (align_similarity(found, scene.points_gt).apply(found) - scene.points_gt).norm(dim=-1)
    size = (scene.points_gt - scene.points_gt.mean(0)).square().sum(-1).mean().sqrt()
    assert error.max() < 1e-3 * size


def make_duck(seed: int) -> Scene:
    """The paper's scene, smaller: 100 points, 12 views, half visible, f = 0.0005."""
    g = torch.Generator().manual_seed(seed)
    points, poses = duck(100, g), random_poses(12, g)
    K = matrix_from_intrinsics(torch.tensor([0.0005, 0.0005, 0, 0], dtype=torch.float64)).expand(12, 3, 3)
    return Scene(project(points, poses, K), half_visible(points, 12), K, K.new_zeros(12, 0), points, poses)


def test_bad_input_is_named() -> None:
    scene = make_scene(20, 4)
    theta = disturbed(scene)
    with pytest.raises(ValueError, match="points3d"):
        scene.problem().evaluate(torch.full_like(theta, torch.nan), None)
    with pytest.raises(ValueError, match="distortion"):
        replace(scene.problem(), distortion=torch.zeros(4, 3, dtype=torch.float64)).evaluate(theta, None)
    with pytest.raises(ValueError, match="distortion"):
        triangulate(scene.points2d, scene.visible, scene.poses_gt, scene.K, torch.zeros(4, 3).double())
    scene.visible[1] = False
    with pytest.raises(ValueError, match=r"^visible .* view 1 sees no point"):
        scene.problem()
    scene.visible[3] = False
    with pytest.raises(ValueError, match=r"^visible .* views 1, 3 see no point"):
        triangulate(scene.points2d, scene.visible, scene.poses_gt, scene.K, scene.distortion)
