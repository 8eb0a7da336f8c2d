"""Calibration through PnP against OpenCV's joint calibration of the same corners, and against the truth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacfwd

from datasets.images.stored_marks import read_corners
from datasets.images.targets import chessboard
from datasets.images.views import Views, detect
from geometry import Solution, Status, calibrate, cauchy, project, se3
from geometry.camera import Model, intrinsics_from_matrix, matrix_from_intrinsics
from geometry.optim import NestedState, nested_start, nested_step
from geometry.reconstruction import CalibrationProblem, free_intrinsics, start_intrinsics

torch.set_num_threads(1)
CRITERIA = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 1000, 1e-15)
SIZE = (640, 480)
RADTAN = (540.0, 525.0, 330.0, 228.0, -0.28, 0.11, 0.0011, -0.0015, -0.02)
FISHEYE = (205.0, 201.0, 322.0, 236.0, 0.06, -0.012, 0.004, -0.001)


def solve(problem: CalibrationProblem, theta: Tensor, inner: Tensor | None = None, **options: float) -> NestedState:
    state = nested_start(problem, theta[None], inner)
    while not state.done.all():
        assert state.steps < 100
        state = nested_step(problem, state, **options)
    return state


def all_of(points2d: Tensor) -> Tensor:
    return torch.ones(points2d.shape[:2], dtype=torch.bool)


def rms(cost: Tensor, mask: Tensor) -> float:
    return (2 * cost[0] / mask.sum()).sqrt().item()


def parameters(solution: Solution) -> Tensor:
    return torch.cat([intrinsics_from_matrix(solution.x[0][0]), solution.x[1][0]])


# ---- real cameras ----


def board(views: Views) -> list[np.ndarray]:
    return [views.points3d.numpy().astype(np.float32)] * len(views.points2d)


REAL: dict[str, Callable[[Callable[[str], Path]], Views]] = {
    "opencv_chess_left": lambda find: detect(find("opencv_chess_left"), chessboard((9, 6), 0.025)),
    "opencv_corners": lambda find: read_corners(find("opencv_corners") / "out_camera_data.yml"),
    "sony_chess": lambda find: read_corners(find("sony_chess") / "corners_6x4_opencv.npz", (6, 4), 30.0, SIZE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_camera_is_calibrated_as_opencv_does(real_data: Callable[[str], Path], name: str) -> None:
    views = REAL[name](real_data)
    found = calibrate(views.points2d, views.points3d, views.image_size)
    assert found.converged.all()
    corners = [view.numpy().astype(np.float32)[:, None] for view in views.points2d]
    # a looser run of theirs ends where it started to crawl: this one goes to the end
    theirs, K, k, _, _, deviations, _, _ = cv2.calibrateCameraExtended(
        board(views), corners, views.image_size, None, None, criteria=CRITERIA
    )
    mask = all_of(views.points2d)
    assert rms(found.cost, mask) <= theirs + 1e-6
    assert rms(found.cost, mask) == pytest.approx(theirs, abs=1e-6)
    expected = np.concatenate([K[[0, 1, 0, 1], [0, 1, 2, 2]], k.ravel()[:5]])
    np.testing.assert_allclose(parameters(found), expected, rtol=1e-4)
    problem = CalibrationProblem(views.points2d, views.points3d, mask)
    covariance = problem.covariance(parameters(found)[None], found.x[2])
    np.testing.assert_allclose(covariance.diagonal().sqrt(), deviations.ravel()[:9], rtol=1e-2)
    torch.testing.assert_close(covariance, covariance.T, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_real_fisheye_camera_is_calibrated_beyond_90_degrees(real_data: Callable[[str], Path]) -> None:
    views = detect(real_data("fisheye_chess"), chessboard((6, 4), 30.0))
    assert len(views.names) == 26
    found = calibrate(views.points2d, views.points3d, views.image_size, distortion=4, model="fisheye", mask=views.mask)
    assert found.converged.all()
    assert rms(found.cost, views.mask) < 0.2
    poses = found.x[2][0]
    z = (views.points3d @ poses[:, 2, :3].T + poses[:, 2, 3]).amin(0)
    beyond = [name for name, depth in zip(views.names, z, strict=True) if depth < 0]
    assert beyond == ["4.jpg", "5.jpg"]

    # OpenCV takes the views within 90 degrees only, and a guess
    kept = [i for i, name in enumerate(views.names) if name not in beyond]
    points2d, mask = views.points2d[kept], views.mask[kept]
    flags = cv2.CALIB_RECOMPUTE_EXTRINSIC | cv2.CALIB_FIX_SKEW | cv2.CALIB_USE_INTRINSIC_GUESS
    theirs, K, k, *_ = cv2.fisheye.calibrate(
        [views.points3d[seen].numpy()[None] for seen in mask],
        [view[seen].numpy()[None] for view, seen in zip(points2d, mask, strict=True)],
        views.image_size,
        np.array([[190.0, 0, 320], [0, 190, 320], [0, 0, 1]]),
        np.zeros((4, 1)),
        flags=flags,
        criteria=CRITERIA,
    )
    problem = CalibrationProblem(points2d, views.points3d, mask, model="fisheye")
    state = solve(problem, parameters(found), found.x[2][:, kept], tolerance=1e-10)
    assert rms(state.cost, problem.mask) == pytest.approx(theirs, abs=1e-6)
    np.testing.assert_allclose(state.theta[0], [*K[[0, 1, 0, 1], [0, 1, 2, 2]], *k.ravel()], rtol=1e-4)


@pytest.mark.slow
def test_the_published_flags_of_opencv_corners(real_data: Callable[[str], Path]) -> None:
    """Fixed aspect ratio and principal point, no tangential part: the result that came with the corners."""
    views = REAL["opencv_corners"](real_data)

    def unpack(theta: Tensor) -> tuple[Tensor, Tensor]:
        f, k1, k2, k3 = theta
        zero = torch.zeros_like(f)
        centre = theta.new_tensor([319.5, 239.5])
        return matrix_from_intrinsics(torch.cat([f[None], f[None], centre])), torch.stack([k1, k2, zero, zero, k3])

    problem = CalibrationProblem(views.points2d, views.points3d, all_of(views.points2d), unpack)
    state = solve(problem, torch.tensor([640.0, 0, 0, 0], dtype=torch.float64))
    flags = cv2.CALIB_FIX_ASPECT_RATIO | cv2.CALIB_FIX_PRINCIPAL_POINT | cv2.CALIB_ZERO_TANGENT_DIST
    corners = [view.numpy().astype(np.float32)[:, None] for view in views.points2d]
    K = np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]])
    theirs, K, *_ = cv2.calibrateCamera(
        board(views), corners, views.image_size, K, None, flags=flags, criteria=CRITERIA
    )
    assert rms(state.cost, problem.mask) == pytest.approx(theirs, abs=1e-9)
    assert state.theta[0, 0].item() == pytest.approx(K[0, 0], rel=1e-6)
    # the corners were rounded when they were stored: the seventh digit of what was published is beyond them
    assert rms(state.cost, problem.mask) == pytest.approx(0.38441346, abs=1e-6)
    assert state.theta[0, 0].item() == pytest.approx(657.46697810, abs=1e-4)
    np.testing.assert_allclose(state.theta[0, 1:], [-0.418023, 0.507152, -0.578436], atol=2e-6)


# ---- made cameras ----


class Made(NamedTuple):
    """Corners of a planar board, seen by a known camera through OpenCV's projection."""

    points2d: Tensor
    points3d: Tensor
    theta_gt: Tensor


def make(model: Model = "radtan", V: int = 6, noise: float = 0.0, theta: tuple[float, ...] | None = None) -> Made:
    rng = np.random.default_rng(1)
    theta = theta or (FISHEYE if model == "fisheye" else RADTAN)
    fx, fy, cx, cy, *k = theta
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    grid = np.stack(np.meshgrid(np.arange(6) - 2.5, np.arange(5) - 2.0, indexing="xy"), -1).reshape(-1, 2)
    points3d = np.concatenate([grid, np.zeros((30, 1))], 1)
    views = []
    for _ in range(V):
        tilt = rng.uniform(0.3, 0.7) * np.array([np.cos(a := rng.uniform(0, 6.3)), np.sin(a), 0])
        t = np.array([*rng.uniform(-1.5, 1.5, 2), rng.uniform(2.5, 4) if model == "fisheye" else rng.uniform(6, 9)])
        if model == "fisheye":
            pixels, _ = cv2.fisheye.projectPoints(points3d[:, None], tilt, t, K, np.array(k))
        else:
            pixels, _ = cv2.projectPoints(points3d, tilt, t, K, np.array([*k, 0, 0, 0, 0, 0])[:5])
        views.append(pixels.reshape(-1, 2) + noise * rng.standard_normal((30, 2)))
    return Made(*(torch.tensor(np.array(a), dtype=torch.float64) for a in (views, points3d, theta)))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["radtan", "fisheye"])
def test_noise_free_views_give_the_truth(model: Model) -> None:
    made = make(model, V=4)
    problem = CalibrationProblem(made.points2d, made.points3d, all_of(made.points2d), model=model)
    start = start_intrinsics(SIZE, len(made.theta_gt) - 4, model, made.points2d)
    state = solve(problem, start, floor=1e-20)
    assert state.cost.item() <= 1e-20
    np.testing.assert_allclose(state.theta[0, :4], made.theta_gt[:4], rtol=1e-8)
    np.testing.assert_allclose(state.theta[0, 4:], made.theta_gt[4:], atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [None, cauchy(0.2)])
@pytest.mark.parametrize("model", ["radtan", "fisheye"])
def test_the_covariance_is_a_block_of_the_joint_one(model: Model, kernel: Any) -> None:
    """A^-1 s J^T J A^-1 of intrinsics and poses together, s from what psi is over the degrees of freedom; A is J^T J
    without a kernel, else the Hessian."""
    made = make(model, V=3, noise=0.1)
    mask = torch.rand(3, 30, generator=torch.Generator().manual_seed(0)) < 0.8
    problem = CalibrationProblem(made.points2d, made.points3d, mask, model=model, kernel=kernel)
    theta = made.theta_gt
    _, inner = problem.evaluate(theta[None], None)
    P = len(theta)

    def residual(unknowns: Tensor) -> Tensor:
        K, distortion = free_intrinsics(theta + unknowns[:P])
        poses = se3.retract(inner[0], unknowns[P:].view(3, 6))
        return (project(made.points3d, poses, K, distortion, model=model) - made.points2d)[mask]

    def cost(unknowns: Tensor) -> Tensor:
        return 0.5 * 0.04 * torch.log1p(residual(unknowns).square().sum(-1) / 0.04).sum()

    zero = torch.zeros(P + 18, dtype=torch.float64)
    r, J = residual(zero), jacfwd(residual)(zero).flatten(0, 1)
    A = J.T @ J if kernel is None else hessian(cost)(zero)
    psi = r if kernel is None else r / (1 + r.square().sum(-1, keepdim=True) / 0.04)
    expected = torch.linalg.solve(A, torch.linalg.solve(A, J.T @ J).T)[:P, :P]
    expected = expected * psi.square().sum() / (r.numel() - P - 18)
    scale = expected.diagonal().rsqrt()
    found = problem.covariance(theta[None], inner)
    torch.testing.assert_close(found * scale * scale[:, None], expected * scale * scale[:, None], rtol=0, atol=1e-6)


def test_with_a_kernel_no_sigma_is_taken() -> None:
    made = make(V=3, noise=0.1)
    problem = CalibrationProblem(made.points2d, made.points3d, all_of(made.points2d), kernel=cauchy(1.5))
    theta = made.theta_gt[None]
    with pytest.raises(ValueError, match="sigma must be None where there is a kernel"):
        problem.covariance(theta, problem.evaluate(theta, None)[1], sigma=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kernel"), [("radtan", None), ("radtan", cauchy(1.5)), ("fisheye", None)])
def test_the_gradient_is_that_of_the_evaluated_cost(model: Model, kernel: Any) -> None:
    made = make(model, V=3, noise=0.5)
    mask = torch.rand(3, 30, generator=torch.Generator().manual_seed(0)) < 0.8
    problem = CalibrationProblem(made.points2d, made.points3d, mask, model=model, kernel=kernel)
    theta = made.theta_gt.clone()
    theta[:4] += 1
    theta[4:] *= 1.02
    _, inner = problem.evaluate(theta[None], None)
    gradient, A = (part[0] for part in problem.reduced(theta[None], inner)[:2])
    # along one direction that every parameter takes part in
    normal = torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = 0.02 * normal * A.diagonal().rsqrt()

    def cost(k: int) -> float:
        return problem.evaluate((theta + k * direction)[None], inner)[0].item()

    # the stencil of four points: error of the fourth order
    slope = sum(w * (cost(k) - cost(-k)) for k, w in {1: 8, 2: -1}.items()) / 12
    assert (gradient @ direction).item() == pytest.approx(slope, rel=1e-6)


def test_the_matrix_is_the_curvature_of_the_reduced_cost() -> None:
    """Where the residual vanishes, Gauss-Newton's matrix is the Hessian, and step the Newton step."""
    made = make(V=3)
    problem = CalibrationProblem(made.points2d, made.points3d, all_of(made.points2d))
    theta = made.theta_gt
    _, inner = problem.evaluate(theta[None], None)
    A = problem.reduced(theta[None], inner).matrix[0]
    scale = A.diagonal().rsqrt()
    normal = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = []
    for sign in (1, -1):
        moved = theta + sign * 1e-3 * normal * scale
        ends.append(problem.reduced(moved[None], problem.evaluate(moved[None], inner)[1]).gradient[0])
    slope = (ends[0] - ends[1]) / 2e-3
    torch.testing.assert_close(slope * scale, A @ (normal * scale) * scale, rtol=0, atol=1e-5)
    off = theta + 1e-4 * scale
    cost, poses = problem.evaluate(off[None], inner)
    step, predicted = problem.step(off[None], poses, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(predicted, cost, rtol=1e-4, atol=0)
    assert ((off + step[0] - theta) / scale).abs().max() < 1e-5


def test_any_parametrisation_can_be_unpacked() -> None:
    """The focal length alone is unknown, given as its logarithm."""
    made = make(theta=(500.0, 500.0, 319.5, 239.5), V=2)

    def unpack(theta: Tensor) -> tuple[Tensor, Tensor]:
        f = theta[:1].exp()
        return matrix_from_intrinsics(torch.cat([f, f, theta.new_tensor([319.5, 239.5])])), theta.new_zeros(0)

    problem = CalibrationProblem(made.points2d, made.points3d, all_of(made.points2d), unpack)
    state = solve(problem, torch.tensor([640.0], dtype=torch.float64).log())
    assert state.theta.exp().item() == pytest.approx(500, rel=1e-9)


def test_a_robust_kernel_ignores_outliers() -> None:
    made = make(V=3, noise=0.02, theta=RADTAN[:6])
    wrong = torch.rand(3, 30, generator=torch.Generator().manual_seed(1)) < 0.08
    assert 3 < wrong.sum() < 12
    spoilt = made.points2d + torch.where(wrong, 25.0, 0.0)[..., None]
    robust = calibrate(spoilt, made.points3d, SIZE, distortion=2, kernel=cauchy(0.1))
    plain = calibrate(spoilt, made.points3d, SIZE, distortion=2)
    assert robust.converged.all()
    errors = [(parameters(found) - made.theta_gt)[:4].abs().max() for found in (robust, plain)]
    assert errors[0] < 0.5
    assert errors[1] > 5


def test_masked_corners_are_as_if_absent() -> None:
    made = make(V=3, noise=0.2, theta=RADTAN[:6])
    mask = all_of(made.points2d)
    mask[:, [0, 7, 29]] = False
    points2d = torch.where(mask[..., None], made.points2d, torch.nan)
    kept = mask[0]
    expected = calibrate(made.points2d[:, kept], made.points3d[kept], SIZE, distortion=2)
    found = calibrate(points2d, made.points3d, SIZE, distortion=2, mask=mask)
    torch.testing.assert_close(parameters(found), parameters(expected), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.x[2], expected.x[2], rtol=0, atol=1e-7)
    # each view its own target, with other points masked in each
    target = made.points3d.expand(3, 30, 3).clone()
    ragged = torch.rand(3, 30, generator=torch.Generator().manual_seed(2)) < 0.7
    target[~ragged] = torch.nan
    theta = parameters(found)[None]
    poisoned = CalibrationProblem(torch.where(ragged[..., None], made.points2d, -1e4), target, ragged)
    clean = CalibrationProblem(made.points2d, made.points3d, ragged)
    one, other = poisoned.evaluate(theta, None), clean.evaluate(theta, None)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for a, b in zip(poisoned.reduced(theta, one[1]), clean.reduced(theta, one[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-7)


def test_units_and_order_do_not_matter() -> None:
    made = make(V=3, noise=0.2, theta=RADTAN[:6])
    expected = calibrate(made.points2d, made.points3d, SIZE, distortion=2)
    order = torch.tensor([2, 0, 1])
    corners = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    found = calibrate(made.points2d[order][:, corners], 1000 * made.points3d[corners], SIZE, distortion=2)
    torch.testing.assert_close(parameters(found), parameters(expected), rtol=1e-7, atol=1e-9)
    moved = expected.x[2][0, order].clone()
    moved[:, :3, 3] *= 1000
    torch.testing.assert_close(found.x[2][0], moved, rtol=1e-6, atol=1e-6)


def test_the_start_knows_the_image_size_only() -> None:
    like = torch.zeros(1, dtype=torch.float32)
    theta = start_intrinsics((640, 480), 2, "radtan", like)
    assert theta.dtype == torch.float32
    assert theta.tolist() == [640, 640, 319.5, 239.5, 0, 0]
    # half a turn of an equidistant lens spans the longer side
    f = start_intrinsics((480, 640), 4, "fisheye", like)[0].item()
    assert f * np.pi == pytest.approx(640, rel=1e-6)
    K, k = free_intrinsics(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    assert K.tolist() == [[1, 0, 3], [0, 2, 4], [0, 0, 1]]
    assert k.tolist() == [5, 6]


def test_a_mirror_world_is_refused() -> None:
    made = make(V=3)
    problem = CalibrationProblem(made.points2d, made.points3d, all_of(made.points2d))
    _, inner = problem.evaluate(made.theta_gt[None], None)
    for bad in (-1.0, 0.0, torch.nan):
        for i in range(2):
            theta = made.theta_gt.clone()
            theta[i] = bad
            cost, kept = problem.evaluate(theta[None], inner)
            assert cost.tolist() == [torch.inf]
            assert torch.equal(kept, inner)


def test_converged_is_stationary() -> None:
    """The step that would still be taken is rounding, also in what hardly matters to the cost."""
    made = make(V=4, noise=0.3)
    found = calibrate(made.points2d, made.points3d, SIZE)
    problem = found.problem
    theta, inner = found.state.theta, found.state.inner
    exact = problem.reduced(theta, inner, exact=True)
    step = torch.linalg.solve(exact.matrix[0], exact.gradient[0])
    deviations = found.covariance().diagonal().sqrt()
    assert (step.abs() < 1e-8 * deviations).all()


def test_the_exact_matrix_is_the_hessian_of_the_evaluated_cost() -> None:
    made = make(V=3, noise=1.0)
    problem = CalibrationProblem(made.points2d, made.points3d, all_of(made.points2d), kernel=cauchy(1.5))
    theta = made.theta_gt
    _, inner = problem.evaluate(theta[None], None)
    exact = problem.reduced(theta[None], inner, exact=True)
    normal = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = 1e-3 * normal * exact.diagonal[0].rsqrt()
    ends = []
    for sign in (1, -1):
        moved = (theta + sign * direction)[None]
        ends.append(problem.reduced(moved, problem.evaluate(moved, inner)[1]).gradient[0])
    scale = 1e3 * exact.diagonal[0].rsqrt()
    expected, found = (ends[0] - ends[1]) / 2, exact.matrix[0] @ direction
    torch.testing.assert_close(found * scale, expected * scale, rtol=1e-5, atol=1e-7)


def test_an_unfinished_calibration_says_so() -> None:
    made = make(V=3, noise=0.2)
    assert calibrate(made.points2d, made.points3d, SIZE, max_steps=2).status.tolist() == [Status.STALLED]


def test_bad_input_is_named() -> None:
    made = make(V=3)
    broken = made.points2d.clone()
    broken[1, 4, 0] = torch.nan
    with pytest.raises(ValueError, match="points2d must be finite"):
        calibrate(broken, made.points3d, SIZE)
    with pytest.raises(ValueError, match="points3d must have shape"):
        calibrate(made.points2d, made.points3d[:7], SIZE)
    with pytest.raises(ValueError, match="distortion must have one of"):
        calibrate(made.points2d, made.points3d, SIZE, distortion=3)
    with pytest.raises(ValueError, match="points2d must hold at least one view"):
        calibrate(made.points2d[:0], made.points3d, SIZE)
    with pytest.raises(ValueError, match="image_size must be"):
        calibrate(made.points2d, made.points3d, (640, 0))
    with pytest.raises(ValueError, match="mask must have shape"):
        calibrate(made.points2d, made.points3d, SIZE, mask=torch.ones(3, 7, dtype=torch.bool))
