import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from geometry import se3
from geometry.interop import scipy
from tests.geometry.interop.scenes import DTYPES, close, eps, poses

QUAT = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (6,)])
def test_rotations_there_and_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    R = poses(*shape, dtype=dtype)[..., :3, :3]
    rotation = scipy.to_rotation(R.clone().requires_grad_())
    assert rotation.single == (shape == ())
    found = scipy.from_rotation(rotation)
    assert found.shape == (*shape, 3, 3)
    assert found.dtype == torch.float64
    close(found, R, eps(dtype))
    points = np.random.default_rng(0).normal(size=(*shape, 3))
    expected = (R.double() @ torch.from_numpy(points)[..., None])[..., 0]
    close(torch.from_numpy(rotation.apply(points)), expected, 10 * eps(dtype))
    close(torch.from_numpy(rotation.as_rotvec()), se3.log(R.double()), 100 * eps(dtype))


@settings(max_examples=50, deadline=None)
@given(QUAT)
def test_quaternions(quat: list[float]) -> None:
    quat_wxyz = torch.tensor(quat, dtype=torch.float64)
    rotation = Rotation.from_quat(scipy.to_quat_xyzw(quat_wxyz).numpy())
    R = se3.rotation_from_quat_wxyz(quat_wxyz)
    close(scipy.from_rotation(rotation), R, 1e-14)
    back = scipy.from_quat_xyzw(torch.from_numpy(rotation.as_quat()))
    unit = quat_wxyz / quat_wxyz.norm()
    close(back * (back @ unit).sign(), unit, 1e-14)
    assert torch.equal(scipy.from_quat_xyzw(scipy.to_quat_xyzw(quat_wxyz)), quat_wxyz)
    close(se3.quat_wxyz_from_rotation(R).abs(), back.abs(), 1e-7)


def test_the_order_of_quaternions_in_a_stack() -> None:
    quat_wxyz = torch.arange(24.0, dtype=torch.float64).reshape(2, 3, 4).requires_grad_()
    assert scipy.to_quat_xyzw(quat_wxyz)[1, 2].tolist() == [21, 22, 23, 20]
    assert torch.autograd.gradcheck(scipy.to_quat_xyzw, quat_wxyz)
    assert torch.autograd.gradcheck(scipy.from_quat_xyzw, quat_wxyz)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns(axis: int) -> None:
    """At pi two rotation vectors are right; the matrix is one."""
    rotvec = torch.zeros(3, dtype=torch.float64)
    rotvec[axis] = torch.pi
    close(scipy.from_rotation(scipy.to_rotation(se3.exp(rotvec))), se3.exp(rotvec), 1e-14)
    close(scipy.from_rotation(Rotation.from_rotvec(rotvec.numpy())), se3.exp(rotvec), 1e-14)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"R must have shape \(3,3\) or \(N,3,3\), got \(2, 2, 3, 3\)"):
        scipy.to_rotation(poses(2, 2)[..., :3, :3])
    with pytest.raises(ValueError, match=r"R must have shape \(…,3,3\)"):
        scipy.to_rotation(poses())
    for convert in (scipy.to_quat_xyzw, scipy.from_quat_xyzw):
        with pytest.raises(ValueError, match=r"quat_\w+ must have shape \(…,4\) .*got \(3,\)"):
            convert(torch.zeros(3))
