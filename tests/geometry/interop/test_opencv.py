import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from geometry import project, se3
from geometry.camera import Model
from geometry.interop import opencv
from tests.geometry.interop.scenes import DTYPES, FISHEYE, RADTAN, K, close, eps, points_before, poses

SIX = st.lists(st.floats(-10, 10), min_size=6, max_size=6)
LENSES: list[tuple[Model, int]] = [*(("radtan", k) for k in (0, 2, 4, 5, 8, 12)), *(("fisheye", k) for k in range(5))]


def lens(model: Model, k: int) -> torch.Tensor:
    return torch.tensor((RADTAN if model == "radtan" else FISHEYE)[:k], dtype=torch.float64)


@pytest.mark.parametrize(("model", "k"), LENSES)
def test_project_points_agrees(model: Model, k: int) -> None:
    pose, distortion = poses(), lens(model, k)
    points3d = points_before(pose)
    camera = opencv.to_camera(pose, K, distortion, model=model)
    project_points = cv2.projectPoints if model == "radtan" else cv2.fisheye.projectPoints
    expected, _ = project_points(points3d.numpy()[:, None], *camera)
    pixels = torch.from_numpy(expected[:, 0])
    close(project(points3d, pose, K, distortion, model=model), pixels, 1e-9)
    close(project(points3d, *opencv.from_camera(*camera, model=model), model=model), pixels, 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_poses_there_and_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pose = poses(*shape, dtype=dtype)
    rvec, tvec = opencv.to_pose(pose)
    assert rvec.shape == tvec.shape == (*shape, 3, 1)
    close(opencv.from_pose(rvec, tvec), pose, 10 * eps(dtype))
    assert opencv.from_pose(rvec, tvec).dtype == torch.float64


@settings(max_examples=50, deadline=None)
@given(SIX)
def test_any_rvec_is_rodrigues_of_opencv(six: list[float]) -> None:
    rvec, tvec = np.array(six[:3])[:, None], np.array(six[3:])[:, None]
    pose = opencv.from_pose(rvec, tvec)
    close(pose[:3, :3], torch.from_numpy(cv2.Rodrigues(rvec)[0]), 1e-12)
    again, t = opencv.to_pose(pose)
    np.testing.assert_array_equal(t, tvec)
    np.testing.assert_allclose(cv2.Rodrigues(again)[0], pose[:3, :3].numpy(), atol=1e-12)
    assert np.linalg.norm(again) <= np.pi + 1e-12


def test_every_shape_opencv_uses() -> None:
    pose = poses(3)
    rvec, tvec = opencv.to_pose(pose)
    R = pose[:, :3, :3].numpy()
    for rotation, t in [
        (rvec, tvec),
        (tuple(rvec), tuple(tvec)),  # calibrateCamera
        (rvec.transpose(0, 2, 1), tvec.transpose(0, 2, 1)),  # rows: fisheye and ArUco
        (R, tvec),
        (list(R), list(tvec)),
        ([cv2.Rodrigues(r)[0] for r in rvec], tvec),
    ]:
        close(opencv.from_pose(rotation, t), pose, 1e-12)
    for rotation in (rvec[0], rvec[0].T, rvec[0, :, 0], R[0]):  # R: as stereoCalibrate gives it
        close(opencv.from_pose(rotation, tvec[0]), pose[0], 1e-12)
        close(opencv.from_pose(rotation, tvec[0, :, 0]), pose[0], 1e-12)


def test_a_rig_is_a_pose_from_camera_1_to_camera_2() -> None:
    """stereoCalibrate's R and T of two cameras that see one board; K and the board are known exactly."""
    board = np.array([[x, y, 0] for x in range(6) for y in range(5)], np.float32)
    rig = se3.from_rotvec_t(torch.tensor([0.02, -0.2, 0.05, -1.5, 0.1, 0.2], dtype=torch.float64))
    g = torch.Generator().manual_seed(0)
    towards = 0.3 * torch.randn(6, 6, generator=g, dtype=torch.float64)
    towards[:, 3:] += torch.tensor([-2.0, -2, 14], dtype=torch.float64)
    first = se3.from_rotvec_t(towards)
    seen = [
        [p.float().numpy() for p in project(torch.from_numpy(board).double(), pose, K)] for pose in (first, rig @ first)
    ]
    fixed = (K.numpy(), np.zeros(5))
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 200, 1e-12)
    found = cv2.stereoCalibrate(
        [board] * 6, *seen, *fixed, *fixed, (640, 480), flags=cv2.CALIB_FIX_INTRINSIC, criteria=criteria
    )
    close(opencv.from_pose(found[5], found[6]), rig, 1e-5)  # OpenCV's pixels are float32


def test_calibrations_of_opencv_are_read() -> None:
    """rvecs, tvecs, K and distCoeffs of calibrateCamera reproject as OpenCV says."""
    board = np.array([[x, y, 0] for x in range(6) for y in range(5)], np.float32)
    towards = 0.3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    towards[:, 3:] += torch.tensor([-2.0, -2, 14], dtype=torch.float64)
    points3d = torch.from_numpy(board).double()
    seen = project(points3d, se3.from_rotvec_t(towards), K, lens("radtan", 4))
    observed = [p.float().numpy() for p in seen]
    for flags in (0, cv2.CALIB_RATIONAL_MODEL):  # 5 and 14 coefficients
        rms, matrix, coefficients, rvecs, tvecs = cv2.calibrateCamera(
            [board] * 6, observed, (640, 480), None, None, flags=flags
        )
        pixels = project(points3d, *opencv.from_camera(rvecs, tvecs, matrix, coefficients))
        measured = torch.from_numpy(np.stack(observed)).double()
        found = (pixels - measured).square().sum(-1).mean().sqrt().item()
        assert found == pytest.approx(rms, rel=1e-6)


@pytest.mark.parametrize(("model", "k"), LENSES)
def test_coefficients_there_and_back(model: Model, k: int) -> None:
    distortion = lens(model, k)
    found = opencv.to_distortion(distortion, model=model)
    assert found.shape == (max(4, k),)
    for shape in ((-1,), (1, -1), (-1, 1)):
        back = opencv.from_distortion(found.reshape(shape), model=model)
        assert torch.equal(back, pad(distortion, (0, max(0, 4 - k))))


def test_none_is_the_plain_lens() -> None:
    assert opencv.to_distortion(None).tolist() == [0, 0, 0, 0]
    assert opencv.from_distortion(None).shape == (0,)


def test_a_tilted_sensor_is_refused() -> None:
    fourteen = np.array([*RADTAN, 0.0, 0.0])
    assert opencv.from_distortion(fourteen).tolist() == RADTAN
    fourteen[13] = 1e-3
    with pytest.raises(ValueError, match=r"sensor that is not tilted wanted, got tau = \[0.0, 0.001\]"):
        opencv.from_distortion(fourteen)


@pytest.mark.parametrize("shape", [(13,), (15,), (3,), (2, 4), (1, 1, 3), ()])
def test_wrong_coefficients(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"(distCoeffs|distortion) must"):
        opencv.from_distortion(np.full(shape, 0.1))


def test_wrong_arguments() -> None:
    with pytest.raises(
        ValueError, match=r"one of \(0, 1, 2, 3, 4\) coefficients for model='fisheye', got shape \(5,\)"
    ):
        opencv.from_distortion(np.zeros(5), model="fisheye")
    with pytest.raises(ValueError, match="distortion must have one of"):
        opencv.to_distortion(torch.zeros(3))
    with pytest.raises(ValueError, match=r"model must be one of 'radtan', 'fisheye', got 'eucm'"):
        opencv.to_distortion(torch.zeros(2), model="eucm")
    with pytest.raises(ValueError, match=r"distortion must be \(k,\) of one lens, got shape \(2, 4\)"):
        opencv.to_distortion(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"K must be \(3,3\) of one camera, got shape \(2, 3, 3\)"):
        opencv.to_camera(poses(2), K.expand(2, 3, 3))
    for rotation in (np.zeros((5, 3)), np.zeros(4), np.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"rotation must have shape \(3,\), \(…,3,1\), \(…,1,3\) or \(…,3,3\)"):
            opencv.from_pose(rotation, np.zeros(3))
    with pytest.raises(ValueError, match=r"tvec must have shape .*, got \(3, 3\)"):
        opencv.from_pose(np.zeros((3, 3, 1)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"as many, got \(2,\) and \(3,\)"):
        opencv.from_pose(np.zeros((2, 3, 1)), np.zeros((3, 3, 1)))
    with pytest.raises(ValueError, match="rotation must be an array of numbers, or arrays of one shape"):
        opencv.from_pose([np.zeros((3, 1)), np.zeros((2, 1))], np.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match="hold rotations"):  # three rvecs stacked flat look like a matrix
        opencv.from_pose(np.full((3, 3), 0.1), np.zeros(3))
