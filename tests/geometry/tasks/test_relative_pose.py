"""The relative pose task against OpenCV, PoseLib, finite differences and what must hold of any weights."""

import cv2
import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from geometry import Status, project, se3
from geometry.tasks.relative_pose import fundamental, relative_pose
from tests.numbers import directions_of, errors_in_turn, one_each

K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], dtype=torch.float64)
K_B = torch.tensor([[700.0, 0.5, 300], [0, 720, 250], [0, 0, 1]], dtype=torch.float64)
TURNS = torch.tensor([[0.1, -0.3, 0.05], [-0.2, 0.1, 0.4], [0.02, 0.35, 0.0]], dtype=torch.float64)
SHIFTS = torch.tensor([[1.8, 0.2, 0.3], [-0.6, 1.0, 0.2], [-1.9, 0.1, 0.8]], dtype=torch.float64)
TRUE = se3.make(se3.exp(TURNS), SHIFTS / SHIFTS.norm(dim=-1, keepdim=True))


def matches(noise: float = 0.5, N: int = 30, K_b: Tensor = K_B) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(3, N, 3, generator=generator, dtype=torch.float64)
    X = unit * torch.tensor([4, 3, 3]) + torch.tensor([-2, -1.5, 4])
    a = project(X, torch.eye(4, dtype=torch.float64), K)
    b = project(X, se3.make(TRUE[:, :3, :3], SHIFTS), K_b)
    a, b = (p + noise * torch.randn(3, N, 2, generator=generator, dtype=torch.float64) for p in (a, b))
    return a, b


def sampson_cost(pose: Tensor, a: Tensor, b: Tensor, K_b: Tensor) -> float:
    """By OpenCV."""
    F = fundamental(pose, K, K_b).numpy()
    rows = (np.append(p, 1.0) for p in (*a.numpy(), *b.numpy()))
    first, second = np.split(np.stack(list(rows)), 2)
    return 0.5 * sum(cv2.sampsonDistance(p, q, F) for p, q in zip(first, second, strict=True))


def test_exact_matches_give_the_pose_back() -> None:
    found = relative_pose(*matches(noise=0.0), K, K_B)
    assert found.converged.all()
    assert found.cost.max() < 1e-18
    torch.testing.assert_close(found.x, TRUE, rtol=0, atol=1e-9)


def test_its_cost_is_that_of_opencvs_distance_and_below_opencvs_own_pose() -> None:
    a, b = matches(K_b=K)
    found = relative_pose(a, b, K, K)
    for i in range(3):
        E, _ = cv2.findEssentialMat(a[i].numpy(), b[i].numpy(), K.numpy(), cv2.LMEDS)
        _, R, t, _ = cv2.recoverPose(E, a[i].numpy(), b[i].numpy(), K.numpy())
        theirs = se3.make(torch.from_numpy(R), torch.from_numpy(t[:, 0]))
        assert sampson_cost(found.x[i], a[i], b[i], K) == pytest.approx(found.cost[i].item(), rel=1e-9)
        assert found.cost[i] <= sampson_cost(theirs, a[i], b[i], K)
        assert se3.rotation_angle(theirs[:3, :3] @ found.x[i, :3, :3].mT) < 0.05


def test_it_is_the_pose_that_poselib_refines_opencvs_to() -> None:
    poselib = pytest.importorskip("poselib")
    a, b = matches(K_b=K)  # one focal length: PoseLib's errors are in units of it
    found = relative_pose(a, b, K, K)
    camera = {"model": "PINHOLE", "width": 640, "height": 480, "params": [800.0, 800, 320, 240]}
    options = {"loss_type": "TRIVIAL", "gradient_tol": 1e-16, "step_tol": 1e-16, "max_iterations": 1000}
    for i in range(3):
        E, _ = cv2.findEssentialMat(a[i].numpy(), b[i].numpy(), K.numpy(), cv2.LMEDS)
        _, R, t, _ = cv2.recoverPose(E, a[i].numpy(), b[i].numpy(), K.numpy())
        start = poselib.CameraPose()
        start.R, start.t = R, t[:, 0]
        theirs, _ = poselib.refine_relative_pose(a[i].numpy(), b[i].numpy(), start, camera, camera, options)
        pose = se3.make(torch.from_numpy(theirs.R), torch.from_numpy(theirs.t / np.linalg.norm(theirs.t)))
        theirs_cost = sampson_cost(pose, a[i], b[i], K)
        assert found.cost[i] <= theirs_cost * (1 + 1e-9)
        assert found.cost[i] == pytest.approx(theirs_cost, rel=1e-6)
        torch.testing.assert_close(found.x[i], pose, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences() -> None:
    """In problem i of the batch, data[i] is moved."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(3, 30, generator=generator, dtype=torch.float64) + 0.5
    data = one_each([*matches(), K.expand(3, 3, 3), K_B.expand(3, 3, 3), weights])
    probe = torch.randn(5, 4, 4, generator=generator, dtype=torch.float64)
    sizes = (1.0, 1.0, 1.0, 1.0, 0.1)
    directions = directions_of(data, sizes, generator)
    for direction in directions[2:4]:
        direction[:, 2] = 0  # the last row of K is (0, 0, 1)
    errors = errors_in_turn(lambda *data: (relative_pose(*data).x * probe).sum((1, 2)), data, directions)
    assert errors.max() < 1e-6


def test_a_weight_of_zero_is_as_if_absent() -> None:
    a, b = matches()
    weights = torch.ones(30, dtype=torch.float64)
    weights[::3] = 0
    kept = weights != 0
    b[:, ::3] += 300
    wanted = relative_pose(a[:, kept], b[:, kept], K, K_B)
    torch.testing.assert_close(relative_pose(a, b, K, K_B, weights).x, wanted.x, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_the_other_way_round_it_is_the_inverse() -> None:
    a, b = matches()
    there, back = relative_pose(a, b, K, K_B), relative_pose(b, a, K_B, K)
    torch.testing.assert_close(back.cost, there.cost, rtol=1e-9, atol=0)
    torch.testing.assert_close(back.x, se3.inverse(there.x), rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_batch_is_a_loop() -> None:
    a, b = matches()
    together = relative_pose(a, b, K, K_B)
    for i in range(3):
        torch.testing.assert_close(relative_pose(a[i], b[i], K, K_B).x[0], together.x[i], rtol=0, atol=1e-9)


def test_a_problem_without_a_solution_is_flagged_and_alone() -> None:
    a, b = matches(K_b=K)
    b[1] = a[1]  # the same picture twice: any direction will do
    a.requires_grad_()
    found = relative_pose(a, b, K, K)
    assert found.status[1] != Status.CONVERGED
    assert found.converged[[0, 2]].all()
    (found.x * torch.arange(16.0).view(4, 4)).sum().backward()
    assert a.grad is not None
    assert (a.grad[1] == 0).all()
    assert (a.grad[[0, 2]] != 0).all()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points_a": torch.rand(3, 30, 3).double()}, r"points_a must have shape \(N,2\)"),
        ({"points_b": torch.rand(3, 29, 2).double()}, r"points_b must have shape \(30,2\) or \(3,30,2\)"),
        ({"K_a": torch.rand(4).double()}, r"K_a must have shape \(3,3\)"),
        ({"K_b": torch.rand(2, 3, 3).double()}, r"K_b must have shape \(3,3\) or \(3,3,3\)"),
        ({"weights": torch.ones(3, 30)}, "weights must have the dtype and device of points_a"),
        ({"points_a": torch.full((3, 30, 2), torch.nan).double()}, "points_a must be finite"),
        ({"points_a": torch.rand(3, 5, 2).double(), "points_b": torch.rand(3, 5, 2).double()}, "at least 6"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    a, b = matches()
    with pytest.raises(ValueError, match=message):
        relative_pose(**{"points_a": a, "points_b": b, "K_a": K, "K_b": K_B} | change)


def bearings(noise: float = 0.001, N: int = 30) -> tuple[Tensor, Tensor]:
    """Of points all around both cameras, ahead of neither, of any length. (3,N,3) each."""
    generator = torch.Generator().manual_seed(5)
    X = 3 * torch.randn(3, N, 3, generator=generator, dtype=torch.float64)
    both = torch.stack([X, se3.transform(se3.make(TRUE[:, :3, :3], SHIFTS), X)])
    both = both / both.norm(dim=-1, keepdim=True)
    both = both + noise * torch.randn(both.shape, generator=generator, dtype=torch.float64)
    a, b = both * (0.5 + torch.rand(2, 3, N, 1, generator=generator, dtype=torch.float64))
    return a, b


def test_bearings_on_all_sides_give_the_pose() -> None:
    a, b = bearings(noise=0.0)
    assert (a[..., 2] < 0).double().mean() > 0.3
    found = relative_pose(a, b, None, None, model="ray")
    assert found.converged.all()
    torch.testing.assert_close(found.x, TRUE, rtol=0, atol=1e-8)
    noisy = relative_pose(*bearings(), None, None, model="ray")
    assert noisy.converged.all()
    assert (noisy.x - TRUE).abs().max() < 0.01


def test_the_cost_of_bearings_is_that_of_the_angles_to_rays_that_meet() -> None:
    """To first order: the least sum of squared angles by which both rays can turn so that they meet, by SciPy."""
    a, b = bearings()
    found = relative_pose(a, b, None, None, model="ray")
    R, t = found.x[0, :3, :3].numpy(), found.x[0, :3, 3].numpy()
    total = 0.0
    for one, two in zip(a[0].numpy(), b[0].numpy(), strict=True):
        depth = np.linalg.lstsq(np.stack([R @ one, -two], 1), -t, rcond=None)[0][0]

        def angles(X: np.ndarray, one: np.ndarray = one, two: np.ndarray = two) -> np.ndarray:
            pairs = ((one, X), (two, R @ X + t))
            return np.array([np.arctan2(np.linalg.norm(np.cross(r, p)), r @ p) for r, p in pairs])

        total += scipy.optimize.least_squares(angles, depth * one, xtol=1e-15, ftol=1e-15, gtol=1e-15).cost
    assert found.cost[0] == pytest.approx(total, rel=0.01)


def test_bearings_do_not_tell_where_a_camera_looks() -> None:
    a, b = bearings()
    wanted = relative_pose(a, b, None, None, model="ray")
    S, Q = se3.rotation_from_quat_wxyz(torch.randn(2, 4, generator=torch.Generator().manual_seed(3)).double())
    found = relative_pose(a @ S.mT, 2 * b @ Q.mT, None, None, model="ray")
    R, t = wanted.x[:, :3, :3], wanted.x[:, :3, 3]
    torch.testing.assert_close(found.x, se3.make(Q @ R @ S.mT, t @ Q.mT), rtol=0, atol=1e-8)


@pytest.mark.slow
def test_gradients_of_bearings_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = bearings(noise=0.01)
    weights = torch.rand(3, 30, generator=generator, dtype=torch.float64) + 0.5
    data = one_each([a, b, weights])
    directions = directions_of(data, (0.01, 0.01, 0.1), generator)
    probe = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)

    def value(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return (relative_pose(a, b, None, None, w, model="ray").x * probe).sum((1, 2))

    assert errors_in_turn(value, data, directions).max() < 1e-6


def test_bearings_have_no_K_and_pixels_have() -> None:
    a, b = bearings()
    with pytest.raises(ValueError, match="K_a must be None for model='ray'"):
        relative_pose(a, b, K, None, model="ray")
    with pytest.raises(ValueError, match="K_b must be given for model='radtan'"):
        relative_pose(*matches(), K, None)
