"""The hand-eye task against OpenCV and scipy, finite differences and what must hold of any weights."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from geometry import Status, se3
from geometry.tasks.hand_eye import hand_eye, hand_eye_problem, motions
from tests.numbers import errors_in_turn

TRUE = se3.from_rotvec_t(torch.tensor([0.1, -0.2, 1.5, 0.05, 0.03, 0.1], dtype=torch.float64))
# What calibrateHandEye of OpenCV 4.12.0 makes of `absolute(0.01)`, as (rotation vector, t); 5.0 lacks it in Python.
# Of `absolute(0.0)` each method returns TRUE to 1e-14.
OPENCV = {
    "Tsai": [0.103608312, -0.196666294, 1.505760038, 0.044849581, 0.030457893, 0.095123471],
    "Park": [0.103929032, -0.197538418, 1.505397359, 0.044769138, 0.030473105, 0.095258551],
    "Horaud": [0.103976834, -0.197688001, 1.505428055, 0.044756957, 0.030461128, 0.095272719],
    "Andreff": [0.105289286, -0.197325285, 1.506471298, 0.044852231, 0.029757692, 0.095389694],
    "Daniilidis": [0.105657921, -0.196343959, 1.508045742, 0.043247111, 0.031874432, 0.095231979],
}


def absolute(noise: float) -> tuple[Tensor, Tensor]:
    """gripper_to_base and target_to_camera (6,4,4), without random numbers, so that they are those OpenCV was given."""
    target_to_base = se3.from_rotvec_t(torch.tensor([0.3, -0.1, 0.3, 0.6, 0.2, 0.1], dtype=torch.float64))
    wave = 7.3 * torch.arange(36, dtype=torch.float64).view(6, 6) ** 1.1
    gripper_to_base = se3.from_rotvec_t(wave.sin() * torch.tensor([0.7, 0.7, 0.7, 0.3, 0.3, 0.3]))
    seen = se3.inverse(gripper_to_base @ TRUE) @ target_to_base
    return gripper_to_base, se3.retract(seen, noise * (wave + 1).sin())


def batch(B: int = 3, N: int = 6, noise: float = 0.02) -> tuple[Tensor, Tensor]:
    """Motions (B,N,4,4)."""
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(2, B, N, 6, generator=generator, dtype=torch.float64)
    gripper = se3.from_rotvec_t(step[0] * torch.tensor([1.0, 1.0, 1.0, 0.3, 0.3, 0.3]))
    return gripper, se3.retract(se3.inverse(TRUE) @ gripper @ TRUE, noise * step[1])


def test_exact_motions_give_the_pose_back_as_all_methods_of_opencv_do() -> None:
    found = hand_eye(*motions(*absolute(0.0)))
    assert found.converged.all()
    assert found.cost.max() < 1e-24
    torch.testing.assert_close(found.x[0], TRUE, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", OPENCV)
def test_its_cost_is_below_that_of_opencv(method: str) -> None:
    data = motions(*absolute(0.01))
    found = hand_eye(*data)
    theirs = se3.from_rotvec_t(torch.tensor(OPENCV[method], dtype=torch.float64))
    assert (theirs - found.x[0]).abs().max() < 0.003
    assert found.cost[0] < 0.998 * hand_eye_problem.cost(theirs, *data)


def test_it_agrees_with_scipy() -> None:
    A, B = (d.numpy() for d in motions(*absolute(0.01)))

    def residual(x: np.ndarray) -> np.ndarray:
        R = Rotation.from_rotvec(x[:3])
        R_A, R_B = (Rotation.from_matrix(d[:, :3, :3]) for d in (A, B))
        t = R_A.apply(x[3:]) + A[:, :3, 3] - R.apply(B[:, :3, 3]) - x[3:]
        return np.concatenate([(R_A * R * (R * R_B).inv()).as_rotvec(), t]).ravel()

    theirs = least_squares(residual, np.zeros(6), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    found = hand_eye(torch.from_numpy(A), torch.from_numpy(B))
    np.testing.assert_allclose(se3.rotvec_t(found.x)[0], theirs.x, rtol=0, atol=1e-6)
    assert found.cost[0].item() == pytest.approx(theirs.cost, rel=1e-9)


def test_half_turns_need_no_care() -> None:
    gripper, _ = batch()
    step = se3.rotvec_t(gripper)
    step[..., :3] *= torch.pi / step[..., :3].norm(dim=-1, keepdim=True)
    gripper = se3.from_rotvec_t(step)
    noise = 1e-3 * torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = hand_eye(gripper, se3.retract(se3.inverse(TRUE) @ gripper @ TRUE, noise))
    assert found.converged.all()
    assert (found.x - TRUE).abs().max() < 5e-3


@pytest.mark.slow
def test_gradients_agree_with_finite_differences() -> None:
    """In problem i of the batch, data[i] is moved: each entry of its matrices by itself."""
    generator = torch.Generator().manual_seed(1)
    data = [*batch(), torch.rand(3, 6, 2, generator=generator, dtype=torch.float64) + 0.5]
    probe = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    directions = [0.1 * torch.randn(d.shape, generator=generator, dtype=torch.float64) for d in data]
    for direction in directions[:2]:  # matrices stay rotations, as rounded
        direction *= 0.03
    directions[0][..., 3, :] = directions[1][..., 3, :] = 0  # their last row is no variable

    def solve(*inputs: Tensor) -> Tensor:
        return (hand_eye(*inputs).x * probe).sum((1, 2))

    assert errors_in_turn(solve, data, directions).max() < 1e-6


@pytest.mark.slow
def test_a_weight_of_zero_is_as_if_absent() -> None:
    gripper, camera = batch()
    weights = torch.ones(6, 2, dtype=torch.float64)
    weights[4:] = 0
    found = hand_eye(gripper, camera, weights)
    torch.testing.assert_close(found.x, hand_eye(gripper[:, :4], camera[:, :4]).x, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_another_unit_of_length_is_another_weight() -> None:
    gripper, camera = batch()
    weights = torch.tensor([1.0, 1e-3], dtype=torch.float64).expand(6, 2)
    unit = torch.ones(4, 4, dtype=torch.float64)
    unit[:3, 3] = 1e3
    in_mm = hand_eye(gripper * unit, camera * unit, weights)
    torch.testing.assert_close(in_mm.x, hand_eye(gripper, camera).x * unit, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_a_batch_is_a_loop() -> None:
    gripper, camera = batch()
    together = hand_eye(gripper, camera)
    for i in range(len(gripper)):
        torch.testing.assert_close(hand_eye(gripper[i], camera[i]).x[0], together.x[i], rtol=1e-9, atol=1e-9)


def test_parallel_axes_are_flagged_and_alone() -> None:
    gripper, camera = batch(noise=0.0)
    gripper[1] = se3.from_rotvec_t(se3.rotvec_t(gripper[1]) * torch.tensor([0, 0, 1.0, 1, 1, 1]))
    camera[1] = se3.inverse(TRUE) @ gripper[1] @ TRUE
    gripper.requires_grad_()
    found = hand_eye(gripper, camera)
    assert found.status[1] == Status.SINGULAR
    assert found.converged[[0, 2]].all()
    found.x.sum().backward()
    assert gripper.grad is not None
    assert (gripper.grad[1] == 0).all()
    assert gripper.grad[[0, 2]].isfinite().all()
    assert (gripper.grad[[0, 2]] != 0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gripper": torch.rand(3, 6, 3, 4).double()}, r"gripper must have shape \(N,4,4\)"),
        ({"camera": torch.rand(3, 5, 4, 4).double()}, r"camera must have shape \(6,4,4\) or \(3,6,4,4\)"),
        ({"camera": torch.rand(2, 6, 4, 4).double()}, "camera must have shape"),
        ({"weights": torch.ones(3, 6).double()}, "weights must have shape"),
        ({"weights": torch.ones(3, 6, 2)}, "weights must have the dtype and device of gripper"),
        ({"camera": torch.full((3, 6, 4, 4), torch.nan).double()}, "camera must be finite"),
        ({"gripper": torch.rand(3, 1, 4, 4).double(), "camera": torch.rand(3, 1, 4, 4).double()}, "at least 2"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    gripper, camera = batch()
    with pytest.raises(ValueError, match=message):
        hand_eye(**{"gripper": gripper, "camera": camera} | change)
