"""The stereo rig task against OpenCV, finite differences and what must hold of any weights."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from geometry import Status, project, se3
from geometry.tasks.stereo_rig import best_of_views, stereo_rig, stereo_rig_problem
from tests.numbers import directions_of, errors_in_turn

RIG = se3.from_rotvec_t(torch.tensor([0.02, -0.2, 0.03, -120, 5, 10], dtype=torch.float64))
K = torch.tensor(
    [[[800, 0, 320], [0, 790, 240], [0, 0, 1]], [[700, 0, 310], [0, 705, 250], [0, 0, 1]]], dtype=torch.float64
)
DISTORTION = torch.tensor([[-0.28, 0.1, 1e-3, -1e-3], [-0.2, 0.05, 0, 1e-3]], dtype=torch.float64)
BOARD = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 2, torch.zeros(1, dtype=torch.float64)) * 50
Views = dict[str, Tensor]


def views(B: int = 1, V: int = 2, noise: float = 0.5) -> tuple[Views, Tensor]:
    """What `stereo_rig` takes, of a board of 16 points (mm), and the truth target_to_camera1 (B,V,4,4)."""
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(B, V, 6, generator=generator, dtype=torch.float64)
    middle = torch.tensor([0.0, 0, 0, -40, -75, 700])
    target = se3.from_rotvec_t(middle + step * torch.tensor([0.4, 0.4, 0.4, 40, 30, 80]))
    points2d = project(BOARD, torch.stack([target, RIG @ target], 1), K[:, None], DISTORTION[:, None])
    points2d = points2d + noise * torch.randn(points2d.shape, generator=generator, dtype=torch.float64)
    return {"points2d": points2d, "points3d": BOARD, "K": K, "distortion": DISTORTION}, target


def test_exact_corners_give_the_rig_back() -> None:
    data, target = views(B=2, V=3, noise=0.0)
    found = stereo_rig(**data)
    assert found.converged.all()
    assert found.cost.max() < 1e-18
    torch.testing.assert_close(found.x[0], RIG.expand(2, 4, 4), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.x[1], target, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_it_agrees_with_opencv(noise: float) -> None:
    data, _ = views(V=4, noise=noise)
    data["points2d"] = data["points2d"].float().double()  # OpenCV takes no others
    found = stereo_rig(**data)
    one, two = (list(views) for views in data["points2d"][0].numpy().astype(np.float32))
    (K1, K2), (lens1, lens2) = K.numpy(), DISTORTION.numpy()
    rms, _, _, _, _, R, t, *_ = cv2.stereoCalibrate(
        [BOARD.numpy().astype(np.float32)] * 4, one, two, K1, lens1, K2, lens2, (640, 480),
        flags=cv2.CALIB_FIX_INTRINSIC, criteria=(3, 1000, 1e-15),
    )  # fmt: skip
    rig = found.x[0][0].numpy()
    np.testing.assert_allclose(rig[:3, :3], R, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rig[:3, 3], np.ravel(t), rtol=0, atol=1e-6 * float(np.linalg.norm(t)))
    theirs = rms**2 * 4 * 16
    assert found.cost[0] <= theirs * (1 + 1e-9)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences() -> None:
    """In problem i of the batch, data[i] is moved."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    points2d = views(B=5)[0]["points2d"]
    weights = 0.5 + torch.rand(5, 2, 2, 16, generator=generator, dtype=torch.float64)
    data = [points2d, *(d.expand(5, *d.shape).clone() for d in (BOARD, K, DISTORTION)), weights]
    probes = normal(5, 4, 4), normal(5, 2, 4, 4)
    sizes = (1.0, 1.0, 1.0, 0.01, 0.1)
    directions = directions_of(data, sizes, generator)
    directions[2][..., 2, :] = 0  # the third row of K is (0, 0, 1)

    def solve(*inputs: Tensor) -> Tensor:
        x = stereo_rig(*inputs).x
        return sum(((one * probe).flatten(1).sum(1) for one, probe in zip(x, probes, strict=True)), torch.zeros(()))

    assert errors_in_turn(solve, data, directions).max() < 1e-6


@pytest.mark.slow
def test_a_weight_of_zero_is_as_if_absent() -> None:
    """Corners of one view in one camera, and the whole of another view in the other, whatever stands there."""
    data, _ = views(V=3)
    weights = torch.ones(2, 3, 16, dtype=torch.float64)
    weights[0, 1, 10:] = 0
    weights[0, 2] = 0
    found = stereo_rig(**data, weights=weights)
    assert found.converged.all()
    spoiled = torch.where(weights[..., None] == 0, torch.rand(2, 3, 16, 2).double() * 1e4, data["points2d"])
    torch.testing.assert_close(stereo_rig(**data | {"points2d": spoiled}, weights=weights).x, found.x)
    # a view that one camera sees says nothing of the rig
    fewer = stereo_rig(**data | {"points2d": data["points2d"][:, :, :2]}, weights=weights[:, :2])
    torch.testing.assert_close(fewer.x[0], found.x[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fewer.x[1], found.x[1][:, :2], rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_a_batch_is_a_loop_and_cameras_change_places() -> None:
    data, _ = views(B=2)
    together = stereo_rig(**data)
    for i in range(2):
        alone = stereo_rig(**data | {"points2d": data["points2d"][i]})
        torch.testing.assert_close([one[0] for one in alone.x], [one[i] for one in together.x], rtol=1e-9, atol=1e-9)
    swapped = {name: value if name == "points3d" else value.flip(-4 if value.ndim == 5 else 0)
               for name, value in data.items()}  # fmt: skip
    torch.testing.assert_close(stereo_rig(**swapped).x[0], se3.inverse(together.x[0]), rtol=1e-7, atol=1e-7)


def test_the_start_is_not_that_of_a_spoiled_view() -> None:
    """One camera saw the board elsewhere than the other in a view; the rig starts as the other views have it."""
    data, _ = views(V=4)
    data["points2d"][0, 1, 0] = data["points2d"][0, 1, 3] + 30
    weights = torch.ones(1, 2, 4, 16, dtype=torch.float64)
    rig, _ = best_of_views(data["points2d"], BOARD[None], K[None], DISTORTION[None], weights)
    assert se3.rotation_angle(rig[0, :3, :3] @ RIG[:3, :3].mT) < 0.05
    assert (rig[0, :3, 3] - RIG[:3, 3]).norm() < 30


@pytest.mark.slow
@pytest.mark.parametrize("turned", [[1], [0, 1, 2, 3]])
def test_the_cost_tells_where_a_camera_numbered_a_symmetric_board_the_other_way(turned: list[int]) -> None:
    """In one view or in all: no rig suits points that are so numbered, by far."""
    data, _ = views(V=4)
    right = stereo_rig(**data)
    points2d = data["points2d"].clone()
    points2d[:, 1, turned] = points2d[:, 1, turned].flip(2)
    wrong = stereo_rig(**data | {"points2d": points2d})
    assert wrong.cost > 100 * right.cost


def test_a_view_that_no_camera_sees_is_flagged_and_alone() -> None:
    data, _ = views(B=3)
    points2d = data["points2d"].requires_grad_()
    weights = torch.ones(3, 2, 2, 16, dtype=torch.float64)
    weights[1, :, 0] = 0
    found = stereo_rig(**data, weights=weights)
    assert found.status[1] != Status.CONVERGED
    assert found.converged[[0, 2]].all()
    found.x[0].sum().backward()
    assert points2d.grad is not None
    assert (points2d.grad[1] == 0).all()
    assert points2d.grad[[0, 2]].isfinite().all()
    assert (points2d.grad[[0, 2]] != 0).any()


def test_a_point_behind_a_camera_makes_the_cost_infinite() -> None:
    data, target = views()
    problem = replace(stereo_rig_problem, dof=18)
    turned = RIG.clone()
    turned[:3, 3] -= torch.tensor([0.0, 0.0, 2000.0])
    one = {**data, "points2d": data["points2d"][0]}
    assert problem.cost((RIG, target[0]), *one.values()).isfinite()
    assert problem.cost((turned, target[0]), *one.values()) == torch.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points2d": torch.rand(3, 2, 16, 2).double()}, r"points2d must have shape \(2,V,N,2\)"),
        ({"points3d": torch.rand(15, 3).double()}, r"points3d must have shape \(16,3\)"),
        ({"K": K[0]}, r"K must have shape \(2,3,3\)"),
        ({"distortion": DISTORTION[0]}, "distortion must have shape"),
        ({"distortion": torch.zeros(2, 3).double()}, "distortion must have one of"),
        ({"weights": torch.ones(2, 16).double()}, r"weights must have shape \(2,2,16\)"),
        ({"weights": torch.ones(2, 2, 16)}, "weights must have the dtype and device of points2d"),
        ({"points3d": torch.full((16, 3), torch.nan).double()}, "points3d must be finite"),
        ({"points2d": torch.rand(2, 2, 3, 2).double(), "points3d": torch.rand(3, 3).double()}, "at least 4"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    data, _ = views()
    with pytest.raises(ValueError, match=message):
        stereo_rig(**data | change)
