"""Calibrations that the data hardly determine, or not at all: what is left out, what is named, and long lenses."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from geometry import Status, calibrate, project, se3
from geometry.reconstruction import free_intrinsics
from tests.geometry.reconstruction.test_calibration import CRITERIA, RADTAN, SIZE, all_of, make, parameters, rms


def test_views_that_determine_no_pose_are_left_out_and_named() -> None:
    """Of three corners, of none, and of corners on a line: the others calibrate as they do alone."""
    made = make(V=6, noise=0.2, theta=RADTAN[:6])
    mask = all_of(made.points2d)
    mask[1, 3:], mask[2], mask[4, 6:] = False, False, False
    found = calibrate(made.points2d, made.points3d, SIZE, mask=mask, distortion=2)
    assert found.converged.all()
    assert found.left_out.tolist() == [False, True, True, False, True, False]
    alone = calibrate(made.points2d[~found.left_out], made.points3d, SIZE, distortion=2)
    torch.testing.assert_close(parameters(found), parameters(alone), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.x[2][:, ~found.left_out], alone.x[2], rtol=0, atol=1e-12)
    assert found.x[2][:, found.left_out].isnan().all()
    torch.testing.assert_close(found.covariance(), alone.covariance())
    none = calibrate(made.points2d, made.points3d, SIZE, mask=torch.zeros_like(mask), distortion=2)
    assert none.status.tolist() == [Status.TOO_FEW]
    assert none.left_out.all()
    assert none.covariance().isnan().all()


def seen(poses: Tensor, theta: tuple[float, ...], noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Corners of the board of `make`, and the board, of rotation vectors and translations (V,6)."""
    camera, points3d = torch.tensor(theta, dtype=torch.float64), make().points3d
    x = project(points3d, se3.from_rotvec_t(poses), *free_intrinsics(camera))
    return x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), points3d


TILTED = torch.tensor([[0.3, -0.4, 0.1, 0.5, -0.5, 8.0], [-0.5, 0.2, 0.4, -0.5, 0.8, 9.0]], dtype=torch.float64)
PARALLEL = torch.tensor([[0.0, 0, 0.4 * i, 0.3 * i, -0.2 * i, 7.0 + i] for i in range(4)], dtype=torch.float64)
PINHOLE = (700.0, 705.0, 325.0, 235.0)


@pytest.mark.parametrize(
    ("poses", "theta", "noise", "open_"),
    [
        (TILTED[:1], PINHOLE, 0.0, [True] * 4),
        (TILTED[:1], PINHOLE, 0.2, [True] * 4),
        (TILTED[:1].expand(3, 6), PINHOLE, 0.2, [True] * 4),
        (PARALLEL, PINHOLE, 0.0, [True] * 4),
        # a lens that bends has a middle, and bends in proportion to its focal length
        (PARALLEL, (*PINHOLE, -0.2, 0.1), 0.0, [True, True, False, False, True, True]),
    ],
    ids=["one plane", "one noisy plane", "copies of a view", "parallel boards", "parallel boards through a lens"],
)
def test_what_the_data_do_not_determine_is_singular_and_named(
    poses: Tensor, theta: tuple[float, ...], noise: float, open_: list[bool]
) -> None:
    """Parallel boards are parallel to the image; copies are so to the last digit, noise included."""
    copies = len(poses) > 1 and bool((poses == poses[0]).all())
    points2d, points3d = seen(poses[:1] if copies else poses, theta, noise)
    found = calibrate(points2d.expand(len(poses), -1, 2), points3d, SIZE, distortion=len(theta) - 4)
    assert found.status.tolist() == [Status.SINGULAR]
    assert found.undetermined.tolist() == open_
    assert found.covariance().isnan().all()
    assert found.covariance(sigma=1.0).isnan().all()


def test_as_many_numbers_as_unknowns_say_nothing_of_the_noise() -> None:
    """Two views of four corners determine four intrinsics and two poses, and leave no residual to take sigma from."""
    points2d, points3d = seen(TILTED, PINHOLE, 0.1)
    four = [0, 5, 24, 29]
    found = calibrate(points2d[:, four], points3d[four], SIZE, distortion=0)
    assert found.converged.all()
    assert not found.undetermined.any()
    assert found.covariance().isnan().all()
    deviations = found.covariance(sigma=0.1).diagonal().sqrt()
    assert (deviations > 0.1).all()
    assert (parameters(found) - torch.tensor(PINHOLE)).abs().max() < 4 * deviations.max()


# ---- long lenses ----


@pytest.mark.parametrize("f", [4000.0, 14500.0])
def test_a_long_lens_is_calibrated_as_opencv_does_from_the_truth(f: float) -> None:
    """From afar a board and its reverse look alike, and at other focal lengths the wrong one fits better."""
    rng = torch.Generator().manual_seed(0)
    normal = torch.randn(15, 6, generator=rng, dtype=torch.float64)
    poses = normal * torch.tensor([0.5, 0.5, 0.5, 1.6, 1.6, 1.6])
    poses[:, 5] += 1.6 * f / 90
    points2d, points3d = seen(poses, (f, f, 611.5, 511.5), 0.2)
    points2d = points2d.float().double()
    found = calibrate(points2d, points3d, (1224, 1024), distortion=0)
    assert found.converged.all()
    flags = cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_ZERO_TANGENT_DIST
    flags |= cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2 | cv2.CALIB_FIX_K3
    K_gt = np.array([[f, 0, 611.5], [0, f, 511.5], [0, 0, 1]])
    boards = [points3d.numpy().astype(np.float32)] * 15
    corners = [view.numpy().astype(np.float32)[:, None] for view in points2d]
    theirs, K, *_ = cv2.calibrateCamera(boards, corners, (1224, 1024), K_gt, None, flags=flags, criteria=CRITERIA)
    assert rms(found.cost, all_of(points2d)) <= theirs * (1 + 1e-9)
    assert found.x[0][0, 0, 0].item() == pytest.approx(K[0, 0], rel=1e-5)
