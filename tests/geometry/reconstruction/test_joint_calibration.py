"""Cameras calibrated together: against the truth, OpenCV's stereo calibration, and `calibrate` of one."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from geometry import cauchy, project, se3
from geometry.camera import matrix_from_intrinsics
from geometry.reconstruction import JointCalibration, calibrate, calibrate_rig

SIZE = (640, 480)
INTRINSICS = torch.tensor([[600.0, 604, 322, 238], [560, 563, 315, 245], [620, 618, 330, 236]], dtype=torch.float64)
BEND = torch.tensor([[-0.25, 0.08], [-0.2, 0.05], [-0.22, 0.1]], dtype=torch.float64)
SENSORS = se3.from_rotvec_t(
    torch.tensor([[0.0] * 6, [0.02, -0.2, 0.03, -4, 0.1, 0.2], [-0.15, 0.1, 0.4, 1, 3, 0]], dtype=torch.float64)
)
BOARD = torch.cat([torch.cartesian_prod(torch.arange(6.0), torch.arange(5.0)), torch.zeros(30, 1)], 1).double()


def made(cameras: int, frames: int, sigma: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """points2d (S,F,N,2) of boards before all cameras, and their poses (F,4,4) before the first."""
    g = torch.Generator().manual_seed(seed)
    step = torch.randn(frames, 6, generator=g, dtype=torch.float64) * torch.tensor([0.35, 0.35, 0.4, 1.5, 1.0, 2.0])
    rigs = se3.from_rotvec_t(step + torch.tensor([0, 0, 0, 0.0, -2, 13]))
    K = matrix_from_intrinsics(INTRINSICS[:cameras])
    exact = project(BOARD, SENSORS[:cameras, None] @ rigs, K[:, None], BEND[:cameras, None])
    return exact + sigma * torch.randn(exact.shape, generator=g, dtype=torch.float64), rigs


def solved(points2d: Tensor, **options: object) -> JointCalibration:
    return calibrate_rig(points2d, BOARD, [SIZE] * len(points2d), distortion=2, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_of_one_camera_it_is_its_calibration() -> None:
    points2d, _ = made(1, 8)
    together, alone = solved(points2d), calibrate(points2d[0], BOARD, SIZE, distortion=2)
    assert together.converged.all()
    torch.testing.assert_close(together.cost, alone.cost, rtol=1e-9, atol=0)
    for one, other in zip((*together.x[:2], together.x[3]), (*alone.x[:2], alone.x[2][0]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    deviations = torch.cat([*together.deviations().values()])
    torch.testing.assert_close(deviations, alone.covariance().diagonal().sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(together.cost[0], together.residual.square().sum() / 2)


@pytest.mark.slow
def test_two_cameras_cost_no_more_than_opencv_s() -> None:
    points2d, _ = made(2, 8)
    found = solved(points2d)
    assert found.converged.all()
    # OpenCV reads single precision, and wants a start
    one, two = (list(views.numpy().astype(np.float32)) for views in points2d)
    board = [BOARD.numpy().astype(np.float32)] * len(one)
    flags = cv2.CALIB_FIX_K3 | cv2.CALIB_ZERO_TANGENT_DIST
    starts = [cv2.calibrateCamera(board, views, SIZE, None, None, flags=flags)[1:3] for views in (one, two)]
    flags, criteria = flags | cv2.CALIB_USE_INTRINSIC_GUESS, (3, 1000, 1e-12)
    rms, K1, _, _, _, R, t, *_ = cv2.stereoCalibrate(
        board, one, two, *starts[0], *starts[1], SIZE, flags=flags, criteria=criteria
    )
    ours = (found.residual.square().sum() / found.residual[..., 0].numel()).sqrt().item()
    assert ours <= rms + 1e-6
    np.testing.assert_allclose(found.x[0][0], K1, atol=0.1)
    np.testing.assert_allclose(found.x[2][1, :3, :3], R, atol=1e-4)
    np.testing.assert_allclose(found.x[2][1, :3, 3], t[:, 0], atol=2e-3)


@pytest.mark.slow
def test_cameras_that_miss_frames_are_connected_by_others() -> None:
    """The first and the last never see the board at once; marks that are hidden count for nothing."""
    points2d, rigs = made(3, 12, sigma=0.02)
    mask = torch.ones(points2d.shape[:3], dtype=torch.bool)
    mask[0, 6:], mask[2, :6], mask[1, ::5] = False, False, False
    mask[1, 1, 10:] = False
    points2d[1, 1, 10:] = torch.nan
    found = solved(points2d, mask=mask)
    assert found.converged.all()
    assert not found.left_out.any()
    assert (found.residual[~mask] == 0).all()
    assert se3.rotation_angle(found.x[2][:, :3, :3] @ SENSORS[:, :3, :3].mT).max() < 3e-3
    torch.testing.assert_close(found.x[2][:, :3, 3], SENSORS[:, :3, 3], rtol=0, atol=0.05)
    torch.testing.assert_close(found.x[3][:, :3, 3], rigs[:, :3, 3], rtol=0, atol=0.15)
    z = torch.stack([*found.deviations().values()], 1)
    z = (torch.cat([found.x[0].diagonal(dim1=1, dim2=2)[:, :2], found.x[0][:, :2, 2], found.x[1]], 1)
         - torch.cat([INTRINSICS, BEND], 1)) / z  # fmt: skip
    assert 0.3 < z.square().mean().sqrt() < 2
    # another order of frames and another origin of the board change nothing
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = calibrate_rig(
        points2d[:, order], BOARD + torch.tensor([50.0, -20, 7]), [SIZE] * 3, mask=mask[:, order], distortion=2
    )
    torch.testing.assert_close(moved.x[0], found.x[0], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(moved.x[2], found.x[2], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_what_is_not_free_stays() -> None:
    points2d, _ = made(1, 6, sigma=0.1)
    K = torch.tensor([[[60.0, 0, 322], [0, 60.4, 238], [0, 0, 1]]], dtype=torch.float64)
    found = solved(points2d, free=("f", "k1"), K=K, coefficients=BEND[:1])
    assert found.converged.all()
    assert found.x[0][0, 1, 1] / found.x[0][0, 0, 0] == pytest.approx(604 / 600)
    assert found.x[0][0, :2, 2].tolist() == [322, 238]
    assert found.x[1][0, 1] == BEND[0, 1]
    assert found.x[0][0, 0, 0] == pytest.approx(600, abs=5 * found.deviations()["f"].item())
    assert [*found.deviations()] == ["f", "k1"]


@pytest.mark.slow
@pytest.mark.parametrize("free", [("skew", "fx", "fy", "cx", "cy"), ("skew", "f", "cx", "cy")])
def test_pixels_may_be_no_rectangles(free: tuple[str, ...]) -> None:
    _, rigs = made(1, 8)
    K = torch.tensor([[600.0, 2.5, 322], [0, 600, 238], [0, 0, 1]], dtype=torch.float64)
    noise = 0.02 * torch.randn(1, 8, 30, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = calibrate_rig(project(BOARD, rigs, K)[None] + noise, BOARD, [SIZE], distortion=0, free=free)
    assert found.converged.all()
    assert found.x[0][0, 0, 1] == pytest.approx(2.5, abs=5 * found.deviations()["skew"].item())
    assert found.deviations()["skew"] < 0.3
    torch.testing.assert_close(found.x[0][0], K, rtol=0, atol=1.0)


@pytest.mark.slow
def test_one_view_tells_a_focal_length() -> None:
    """From which all intrinsics cannot be had: the camera by itself is no start."""
    points2d, _ = made(1, 1, sigma=0.05)
    K = torch.tensor([[[60.0, 0, 322], [0, 60.4, 238], [0, 0, 1]]], dtype=torch.float64)
    found = solved(points2d, free=("f",), K=K, coefficients=BEND[:1])
    assert found.converged.all()
    assert found.x[0][0, 0, 0] == pytest.approx(600, rel=0.03)


@pytest.mark.slow
def test_wrong_marks_are_borne_by_a_robust_kernel() -> None:
    points2d, _ = made(1, 8, sigma=0.05)
    points2d[0, :, ::10] += 15
    plain, robust = solved(points2d), solved(points2d, kernel=cauchy(0.5))
    assert robust.converged.all()
    error = [(found.x[0][0, 0, 0] - 600).abs() for found in (plain, robust)]
    assert error[1] < 3 < error[0]


@pytest.mark.slow
def test_a_frame_without_a_pose_is_left_out() -> None:
    points2d, _ = made(1, 6)
    mask = torch.ones(points2d.shape[:3], dtype=torch.bool)
    mask[0, 2, 3:] = False
    found = solved(points2d, mask=mask)
    assert found.converged.all()
    assert found.left_out.tolist() == [False, False, True, False, False, False]
    assert torch.isnan(found.x[3][2]).all()


def test_what_does_not_fit_is_named() -> None:
    points2d, _ = made(2, 4)
    with pytest.raises(ValueError, match=r"points2d must have shape \(S,F,N,2\) with S image_sizes"):
        calibrate_rig(points2d, BOARD, [SIZE])
    with pytest.raises(ValueError, match=r"K must have shape \(2\|1,3,3\) or \(3,3\), got \(3, 3, 3\)"):
        solved(points2d, K=torch.eye(3).double().expand(3, 3, 3))
    with pytest.raises(ValueError, match="mask must"):
        solved(points2d, mask=torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.slow
def test_cameras_that_no_frame_connects_are_named() -> None:
    points2d, _ = made(2, 6)
    mask = torch.ones(points2d.shape[:3], dtype=torch.bool)
    mask[0, :3], mask[1, 3:] = False, False
    with pytest.raises(ValueError, match=r"frames that connect all cameras wanted, none do cameras \[0\] with \[1\]"):
        solved(points2d, mask=mask)
