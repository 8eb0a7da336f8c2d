"""The radial PnP task against OpenCV, PoseLib, finite differences and what must hold of any weights."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from geometry import Status, se3
from geometry.tasks.radial_pnp import radial_pnp, radial_pnp_problem, radial_projection
from tests.numbers import directions_of, errors_in_turn, one_each

CENTRE = torch.tensor([320.0, 240], dtype=torch.float64)
TURNS = torch.tensor([[0.4, -0.3, 0.2], [-0.5, 0.2, 2.0], [0.1, 0.6, -1.0]], dtype=torch.float64)
SHIFTS = torch.tensor([[0.1, -0.2, 3.5], [-0.2, 0.1, 4.0], [0.0, 0.2, 3.0]], dtype=torch.float64)
TRUE = (
    se3.make(se3.exp(TURNS), SHIFTS),
    torch.tensor([600.0, 450, 900], dtype=torch.float64),
    torch.tensor([[-0.3, 0.1], [-0.2, 0.05], [0.1, -0.05]], dtype=torch.float64),
)


def view(noise: float = 0.5, N: int = 40, planar: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    points3d = 2 * torch.rand(3, N, 3, generator=generator, dtype=torch.float64) - 1
    if planar:
        points3d[..., 2] = 0
    pixels = radial_projection(TRUE, points3d, CENTRE)
    return pixels + noise * torch.randn(3, N, 2, generator=generator, dtype=torch.float64), points3d


@pytest.mark.parametrize("planar", [False, True])
def test_exact_pixels_give_pose_and_lens_back(planar: bool) -> None:
    found = radial_pnp(*view(noise=0.0, planar=planar), CENTRE)
    assert found.converged.all()
    assert found.cost.max() < 1e-16
    for ours, wanted in zip(found.x, TRUE, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("planar", [False, True])
def test_its_cost_is_that_of_opencvs_calibration_of_one_view(planar: bool) -> None:
    pixels, points3d = (value.float().double() for value in view(planar=planar))  # OpenCV rounds them
    found = radial_pnp(pixels, points3d, CENTRE)
    flags = (
        cv2.CALIB_USE_INTRINSIC_GUESS
        | cv2.CALIB_FIX_PRINCIPAL_POINT
        | cv2.CALIB_FIX_ASPECT_RATIO
        | cv2.CALIB_ZERO_TANGENT_DIST
        | cv2.CALIB_FIX_K3
    )
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 1000, 1e-15)
    for i in range(3):
        K = np.array([[700.0, 0, 320], [0, 700, 240], [0, 0, 1]])
        given = [points3d[i].float().numpy()], [pixels[i].float().numpy()]
        _, K, k, (rvec,), (tvec,) = cv2.calibrateCamera(
            *given, (641, 481), K, np.zeros(5), flags=flags, criteria=criteria
        )
        pose = se3.from_rotvec_t(torch.from_numpy(np.append(rvec, tvec)))
        theirs = pose, torch.tensor(K[0, 0]), torch.from_numpy(k.ravel()[:2])
        cost = radial_pnp_problem.cost(theirs, pixels[i], points3d[i], CENTRE, torch.ones(40).double())
        assert found.cost[i] <= cost * (1 + 1e-9)
        assert found.cost[i] == pytest.approx(cost.item(), rel=1e-6)
        assert found.x[1][i].item() == pytest.approx(K[0, 0], rel=1e-4)


def test_poselib_with_its_lens_finds_its_pose() -> None:
    poselib = pytest.importorskip("poselib")
    pixels, points3d = view()
    pose, f, distortion = radial_pnp(pixels, points3d, CENTRE).x
    options = {"loss_type": "TRIVIAL", "gradient_tol": 1e-16, "step_tol": 1e-16, "max_iterations": 1000}
    for i in range(3):
        lens = [f[i].item(), *CENTRE.tolist(), *distortion[i].tolist()]
        camera = {"model": "RADIAL", "width": 641, "height": 481, "params": lens}
        start = poselib.CameraPose()
        start.R, start.t = TRUE[0][i, :3, :3].numpy(), TRUE[0][i, :3, 3].numpy()
        theirs, _ = poselib.refine_absolute_pose(pixels[i].numpy(), points3d[i].numpy(), start, camera, options)
        torch.testing.assert_close(pose[i, :3], torch.from_numpy(theirs.Rt), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences() -> None:
    """In problem i of the batch, data[i] is moved."""
    generator = torch.Generator().manual_seed(1)
    pixels, points3d = view()
    weights = torch.rand(3, 40, generator=generator, dtype=torch.float64) + 0.5
    data = one_each([pixels, points3d, CENTRE.expand(3, 2), weights])
    probes = [torch.randn(4, *x.shape[1:], generator=generator, dtype=torch.float64) for x in TRUE]

    def value(*data: Tensor) -> Tensor:
        return sum(((x * p).flatten(1).sum(1) for x, p in zip(parts(*data), probes, strict=True)), torch.zeros(4))

    def parts(*data: Tensor) -> list[Tensor]:
        pose, f, distortion = radial_pnp(*data).x
        return [pose, f[:, None] / 600, distortion]

    probes[1] = probes[1][:, None]
    sizes = (1.0, 0.01, 1.0, 0.1)
    directions = directions_of(data, sizes, generator)
    assert errors_in_turn(value, data, directions).max() < 1e-6


@pytest.mark.slow
def test_a_weight_of_zero_is_as_if_absent() -> None:
    pixels, points3d = view()
    weights = torch.ones(40, dtype=torch.float64)
    weights[30:] = 0
    points3d[:, 39] += 100 * TRUE[0][:, 2, :3] * -1  # behind the camera
    wanted = radial_pnp(pixels[:, :30], points3d[:, :30], CENTRE)
    found = radial_pnp(pixels, points3d, CENTRE, weights)
    assert found.converged.all()
    for ours, theirs in zip(found.x, wanted.x, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_a_batch_is_a_loop() -> None:
    pixels, points3d = view()
    together = radial_pnp(pixels, points3d, CENTRE)
    for i in range(3):
        for ours, theirs in zip(radial_pnp(pixels[i], points3d[i], CENTRE).x, together.x, strict=True):
            torch.testing.assert_close(ours[0], theirs[i], rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_pixels_twice_as_fine_double_the_focal_length_alone() -> None:
    pixels, points3d = view()
    one, two = radial_pnp(pixels, points3d, CENTRE), radial_pnp(2 * pixels, points3d, 2 * CENTRE)
    torch.testing.assert_close(two.cost, 4 * one.cost, rtol=1e-9, atol=0)
    for ours, wanted in zip(two.x, (one.x[0], 2 * one.x[1], one.x[2]), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-8)


def test_a_problem_without_a_solution_is_flagged_and_alone() -> None:
    pixels, points3d = view(noise=0.0)
    points3d[1, :, 2] = 0  # a plane, seen straight on
    pose = TRUE[0].clone()
    pose[1, :3, :3] = torch.eye(3)
    pixels[1] = radial_projection((pose, *TRUE[1:]), points3d, CENTRE)[1]
    pixels.requires_grad_()
    found = radial_pnp(pixels, points3d, CENTRE)
    assert found.status[1] != Status.CONVERGED
    assert found.converged[[0, 2]].all()
    sum(x.sum() for x in found.x).backward()
    assert pixels.grad is not None
    assert (pixels.grad[1] == 0).all()
    assert (pixels.grad[[0, 2]] != 0).all()
    assert pixels.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points2d": torch.rand(3, 40, 3).double()}, r"points2d must have shape \(N,2\)"),
        ({"points3d": torch.rand(3, 39, 3).double()}, r"points3d must have shape \(40,3\) or \(3,40,3\)"),
        ({"principal_point": torch.rand(3, 3).double()}, r"principal_point must have shape \(2\) or \(3,2\)"),
        ({"weights": torch.ones(3, 40)}, "weights must have the dtype and device of points2d"),
        ({"points3d": torch.full((3, 40, 3), torch.nan).double()}, "points3d must be finite"),
        ({"points2d": torch.rand(3, 4, 2).double(), "points3d": torch.rand(3, 4, 3).double()}, "at least 5"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    pixels, points3d = view()
    with pytest.raises(ValueError, match=message):
        radial_pnp(**{"points2d": pixels, "points3d": points3d, "principal_point": CENTRE} | change)
