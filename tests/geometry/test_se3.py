import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.geometry import conversions as kornia
from pytorch3d import transforms as p3d
from torch import Tensor
from torch.func import hessian, jacrev, vmap

from geometry import se3
from tests.numbers import STENCIL, close, slope

# 0.2 is where exp changes from its series to the closed form; log does near the same angle
ANGLES = [0.0, 1e-8, 1e-4, 0.19999, 0.20001, 1.0, 2.5, math.pi - 1e-6, math.pi]
EPS = {torch.float32: 1.2e-7, torch.float64: 2.3e-16}


def axes() -> Tensor:
    """Unit vectors: the three axes, diagonals, and some at random. (12,3)"""
    g = torch.Generator().manual_seed(0)
    v = torch.cat(
        [
            torch.eye(3, dtype=torch.float64),
            torch.tensor([[1.0, 1, 0], [0, -1, 1], [-1, 0, -1], [1, 1, 1]], dtype=torch.float64),
            torch.randn(5, 3, generator=g, dtype=torch.float64),
        ]
    )
    return v / v.norm(dim=-1, keepdim=True)


def matrix_exp(rotvec: Tensor) -> Tensor:
    return torch.matrix_exp(se3.hat(rotvec))


def random_pose(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    quat = torch.randn(*shape, 4, generator=g, dtype=torch.float64)
    t = torch.randn(*shape, 3, generator=g, dtype=torch.float64)
    return se3.make(se3.rotation_from_quat_wxyz(quat), t).to(dtype)


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_is_the_matrix_exponential_with_its_gradient(angle: float) -> None:
    v = angle * axes()
    close(se3.exp(v), matrix_exp(v), 1e-14)
    close(vmap(jacrev(se3.exp))(v), vmap(jacrev(matrix_exp))(v), 1e-14)


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_agrees_with_kornia_and_pytorch3d(angle: float) -> None:
    v = angle * axes()
    # both switch to a first-order branch at small angles, 1e-3 rad at most
    atol = 1e-14 if angle == 0 or angle > 1e-3 else 10 * angle**2 + 1e-14
    close(se3.exp(v), kornia.axis_angle_to_rotation_matrix(v), max(atol, 2e-6))  # kornia adds 1e-6 to the angle
    close(se3.exp(v), p3d.axis_angle_to_matrix(v), atol)


@pytest.mark.slow
@pytest.mark.parametrize("angle", [0.0, 1e-8, 0.19999, 0.20001, 2.5])
def test_exp_second_derivative(angle: float) -> None:
    """At 0 it is (E_i E_j + E_j E_i) / 2; elsewhere finite differences of the gradient of matrix_exp."""
    for v in angle * axes():
        found = hessian(se3.exp)(v)  # (3,3,3,3): entry, entry, i, j
        if angle < 1e-7:
            E = se3.hat(torch.eye(3, dtype=torch.float64))
            expected = torch.einsum("iab,jbc->acij", E, E)
            expected = 0.5 * (expected + expected.transpose(-1, -2))
            close(found, expected, 1e-15 if angle == 0 else 1e-7)
        else:
            h = 1e-3
            gradient = vmap(jacrev(matrix_exp))
            steps = h * torch.eye(3, dtype=torch.float64)
            numeric = slope(torch.stack([gradient(v + k * steps) for k in STENCIL]), h)
            close(found, numeric.permute(1, 2, 3, 0), 1e-11)


@pytest.mark.parametrize("angle", ANGLES)
def test_log_inverts_exp_with_its_gradient(angle: float) -> None:
    v = angle * axes()
    R = matrix_exp(v)
    found = se3.log(R)
    if angle == math.pi:  # the axis has two signs there
        sign = torch.where((found * v).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        close(sign * found, v, 1e-14)
        close(se3.exp(found), R, 1e-14)
    else:
        close(found, v, 1e-15 + 4e-15 * angle)  # 1e-8 keeps eight digits
        jacobian = vmap(jacrev(lambda v: se3.log(se3.exp(v))))(v)
        close(jacobian, torch.eye(3, dtype=torch.float64).expand_as(jacobian), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_gradient_at_pi_is_that_of_one_side(dtype: torch.dtype) -> None:
    """A turn about the axis by a changes the angle by a, up to the sign of the axis that was returned."""
    axis = axes().to(dtype)
    R = matrix_exp(math.pi * axis)
    turned = vmap(jacrev(lambda w, R: se3.log(se3.exp(w) @ R)))(torch.zeros_like(axis), R)
    assert torch.isfinite(turned).all()
    rate = (turned @ axis[..., None]).squeeze(-1)
    close(rate, axis, 30 * EPS[dtype])


@pytest.mark.parametrize("angle", [1e-8, 1e-4, 0.5, 2.5, math.pi - 1e-6])
def test_log_agrees_with_kornia_and_pytorch3d(angle: float) -> None:
    v = angle * axes()
    R = matrix_exp(v)
    close(se3.log(R), p3d.matrix_to_axis_angle(R), 1e-13 if angle > 1e-3 else 1e-7)
    close(se3.log(R), kornia.rotation_matrix_to_axis_angle(R), 1e-13 if angle > 1e-3 else 1e-7)


def test_log_gradient_agrees_with_pytorch3d_at_moderate_angles() -> None:
    R = random_pose(20)[..., :3, :3]
    zero = torch.zeros(20, 3, dtype=torch.float64)
    ours = vmap(jacrev(lambda w, R: se3.log(se3.exp(w) @ R)))(zero, R)
    theirs = vmap(jacrev(lambda w, R: p3d.so3_log_map((se3.exp(w) @ R)[None])[0]))(zero, R)
    close(ours, theirs, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("angle", [0.0, 1e-8, 0.19999, 1.0])
def test_exp_and_log_pass_gradgradcheck(angle: float) -> None:
    v = (angle * axes()[6:10]).requires_grad_()
    R0 = random_pose(4, seed=3)[..., :3, :3]
    assert torch.autograd.gradcheck(se3.exp, v)
    assert torch.autograd.gradgradcheck(se3.exp, v)
    assert torch.autograd.gradcheck(lambda v: se3.log(se3.exp(v) @ R0), v)
    assert torch.autograd.gradgradcheck(lambda v: se3.log(se3.exp(v) @ R0), v)


def test_float32_follows_float64() -> None:
    v = torch.cat([angle * axes() for angle in ANGLES[:-1]])
    close(se3.exp(v.float()).double(), se3.exp(v), 5e-7)
    close(vmap(jacrev(se3.exp))(v.float()).double(), vmap(jacrev(se3.exp))(v), 2e-6)
    below_pi = v[v.norm(dim=-1) < 3]
    close(se3.log(se3.exp(below_pi.float())).double(), below_pi, 2e-6)


def test_float32_stays_float32_in_forward_mode() -> None:
    """A pose problem in float32 is linearised by jvp over scalars, whose tangents must not become float64."""
    step = torch.tensor([0.1, -0.2, 0.3, 1.0, 2.0, 3.0])
    for x in (step, torch.zeros(6)):
        J = torch.func.jacfwd(lambda v: se3.retract(torch.eye(4), v))(x)
        assert J.dtype == torch.float32
        reference = torch.func.jacfwd(lambda v: se3.retract(torch.eye(4, dtype=torch.float64), v))(x.double())
        torch.testing.assert_close(J.double(), reference, rtol=0, atol=1e-6)


def test_quaternions_agree_with_kornia_and_pytorch3d() -> None:
    # half turns about every axis: each of the four pivots is the largest somewhere
    R = torch.cat([random_pose(50)[..., :3, :3], matrix_exp(math.pi * axes()), matrix_exp(1e-8 * axes())])
    quat = se3.quat_wxyz_from_rotation(R)
    assert (quat[:, 0] >= 0).all()
    close(quat.norm(dim=-1), torch.ones(len(R), dtype=torch.float64), 1e-14)
    for theirs in (p3d.matrix_to_quaternion(R), kornia.rotation_matrix_to_quaternion(R)):  # both w, x, y, z
        aligned = theirs * (theirs * quat).sum(-1, keepdim=True).sign()
        close(quat, aligned, 1e-8)  # kornia's eps
        close(quat[:50], aligned[:50], 1e-13)
    close(se3.rotation_from_quat_wxyz(quat), R, 1e-14)
    close(se3.rotation_from_quat_wxyz(-7.3 * quat), R, 1e-14)
    g = torch.Generator().manual_seed(1)
    any_quat = torch.randn(50, 4, generator=g, dtype=torch.float64)
    close(se3.rotation_from_quat_wxyz(any_quat), p3d.quaternion_to_matrix(any_quat), 1e-14)
    close(se3.rotation_from_quat_wxyz(any_quat), kornia.quaternion_to_rotation_matrix(any_quat), 1e-13)


def test_quaternion_order_is_w_first() -> None:
    quarter_turn = torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64)
    expected = torch.tensor([math.sqrt(0.5), 0, 0, math.sqrt(0.5)], dtype=torch.float64)
    close(se3.quat_wxyz_from_rotation(se3.exp(quarter_turn)), expected, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotation_angle_is_accurate_at_both_ends(dtype: torch.dtype) -> None:
    for angle in (0.0, 1e-6, 1.0, math.pi - 1e-3, math.pi):
        found = se3.rotation_angle(se3.exp(angle * axes().to(dtype)))
        close(found, torch.full((12,), angle, dtype=dtype), 4 * EPS[dtype] * max(angle, 1e-6) + EPS[dtype] * angle)


def test_hat_is_the_cross_product() -> None:
    g = torch.Generator().manual_seed(0)
    v, w = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    close((se3.hat(v) @ w[..., None]).squeeze(-1), torch.linalg.cross(v, w), 1e-14)


def test_make_transform_and_the_six_vector() -> None:
    R = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # a quarter turn about z
    pose = se3.make(R, torch.tensor([10.0, 20, 30]))
    assert pose[3].tolist() == [0, 0, 0, 1]
    assert se3.transform(pose, torch.tensor([[1.0, 0, 0], [0, 1, 5]])).tolist() == [[10, 21, 30], [9, 20, 35]]
    six = se3.rotvec_t(pose)
    close(six, torch.tensor([0, 0, math.pi / 2, 10, 20, 30]), 1e-6)
    close(se3.from_rotvec_t(six), pose, 1e-6)


def test_retract_turns_the_frame_and_shifts_the_translation_apart() -> None:
    pose, step = random_pose(4), torch.tensor([0.1, -0.2, 0.3, 1, 2, 3], dtype=torch.float64)
    moved = se3.retract(pose, step.expand(4, 6))
    close(moved[:, :3, :3], matrix_exp(step[:3]) @ pose[:, :3, :3], 1e-14)
    close(moved[:, :3, 3], pose[:, :3, 3] + step[3:], 0)


shapes = st.sampled_from([(), (1,), (3,), (2, 0), (2, 3)])
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**20)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds)
def test_group_axioms(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    A, B, C = (random_pose(*shape, dtype=dtype, seed=seed + i) for i in range(3))
    points3d = torch.randn(*shape, 5, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    identity = torch.eye(4, dtype=dtype).expand(*shape, 4, 4)
    atol = 60 * EPS[dtype]
    assert se3.transform(A, points3d).shape == points3d.shape
    assert se3.inverse(A).dtype == dtype
    close(se3.inverse(A) @ A, identity, atol)
    close(A @ se3.inverse(A), identity, atol)
    close(se3.inverse(A @ B), se3.inverse(B) @ se3.inverse(A), atol)
    close(se3.transform(A, se3.transform(B, points3d)), se3.transform(A @ B, points3d), atol)
    close(se3.transform((A @ B) @ C, points3d), se3.transform(A @ (B @ C), points3d), atol)
    close(se3.transform(se3.inverse(A), se3.transform(A, points3d)), points3d, atol)
    close(se3.transform(identity, points3d), points3d, 0)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, dtype=dtypes, seed=seeds, size=st.sampled_from([1e-8, 1e-3, 0.2, 1.5, 6.0]))
def test_exp_axioms(shape: tuple[int, ...], dtype: torch.dtype, seed: int, size: float) -> None:
    v = size * torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    R = se3.exp(v)
    atol = 30 * EPS[dtype] * max(1.0, size)
    assert R.shape == (*shape, 3, 3)
    assert R.dtype == dtype
    close(R @ R.mT, torch.eye(3, dtype=dtype).expand(*shape, 3, 3), atol)
    close(torch.linalg.det(R), torch.ones(shape, dtype=dtype), atol)
    close(se3.exp(-v), R.mT, atol)
    close(se3.exp(0.25 * v) @ se3.exp(0.75 * v), R, atol)  # one-parameter subgroup
    pose = random_pose(*shape, dtype=dtype, seed=seed)
    adjoint = pose[..., :3, :3] @ R @ pose[..., :3, :3].mT  # Q exp(v) Q^T = exp(Q v)
    close(se3.exp((pose[..., :3, :3] @ v[..., None]).squeeze(-1)), adjoint, 3 * atol)
    close(se3.exp(se3.log(R)), R, atol)
    assert (se3.log(R).norm(dim=-1) <= math.pi * (1 + 4 * EPS[dtype])).all()
    step = torch.zeros(*shape, 6, dtype=dtype)
    close(se3.retract(pose, step), pose, 0)


def test_centre_is_where_the_inverse_puts_the_origin() -> None:
    pose = se3.from_rotvec_t(torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(se3.centre(pose), se3.inverse(pose)[:, :3, 3], rtol=0, atol=1e-15)


def test_a_direction_is_turned_to_the_axis_wherever_it_points() -> None:
    directions = 3 * torch.cat([axes(), -axes()]).requires_grad_()
    R = se3.rotation_to_axis(directions)
    close(R @ R.mT, torch.eye(3, dtype=torch.float64).expand_as(R), 1e-15)
    close(torch.linalg.det(R), torch.ones(len(R), dtype=torch.float64), 1e-14)
    axis = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(len(R), 3)
    close((R @ (directions / 3)[..., None])[..., 0], axis, 1e-15)
    off = directions[(directions[:, 2].abs() > 0.1)].detach().requires_grad_()  # it may jump where z = 0
    assert torch.autograd.gradcheck(se3.rotation_to_axis, off)
