import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.object_poses import metrics
from experiments.object_poses.metrics import (
    FRACTIONS,
    add,
    adds,
    mspd,
    mssd,
    projection_error,
    rotation_translation_error,
    vsd,
)
from geometry import se3

F64 = torch.float64


def wave(*shape: int, frequency: float) -> Tensor:
    """Numbers that look random and are the same everywhere."""
    return torch.sin(frequency * (1 + torch.arange(math.prod(shape), dtype=F64))).reshape(shape)


POINTS = torch.tensor([50.0, 35, 70], dtype=F64) * wave(60, 3, frequency=1.7)
TRUTH = se3.make(
    se3.exp(2 * wave(3, 3, frequency=0.9)),
    torch.tensor([40.0, 30, 60], dtype=F64) * wave(3, 3, frequency=2.3) + torch.tensor([0, 0, 700.0], dtype=F64),
)
STEP = torch.cat([0.25 * wave(3, 3, frequency=3.1), 8 * wave(3, 3, frequency=5.3)], -1)
POSE = se3.retract(TRUTH, STEP)
K = torch.tensor([[572.4, 0, 325.3], [0, 573.6, 242.0], [0, 0, 1]], dtype=F64)


def turns(count: int) -> Tensor:
    """Turns about the line x = 5, y = 2, (count,4,4), identity first."""
    angles = 2 * torch.pi * torch.arange(count, dtype=F64) / count
    R = se3.exp(angles[:, None] * torch.tensor([0.0, 0, 1], dtype=F64))
    offset = torch.tensor([5.0, 2, 0], dtype=F64)
    return se3.make(R, offset - R @ offset)


ALL_TURNS = turns(630)  # twice the 315 by which the benchmark samples a symmetry of rotation

MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda pose, truth: add(pose, truth, POINTS),
    "adds": lambda pose, truth: adds(pose, truth, POINTS),
    "projection": lambda pose, truth: projection_error(pose, truth, POINTS, K),
    "mssd": lambda pose, truth: mssd(pose, truth, POINTS),
    "mssd, symmetric": lambda pose, truth: mssd(pose, truth, POINTS, ALL_TURNS),
    "mspd": lambda pose, truth: mspd(pose, truth, POINTS, K),
    "mspd, symmetric": lambda pose, truth: mspd(pose, truth, POINTS, K, ALL_TURNS),
    "degrees": lambda pose, truth: rotation_translation_error(pose, truth)[0],
    "mm": lambda pose, truth: rotation_translation_error(pose, truth)[1],
}
IN_PICTURE = ("projection", "mspd", "mspd, symmetric")

# What BOP's toolkit says of the same poses (bop_toolkit_lib.pose_error, commit cea62d6); symmetric: with the rotation
# about z, offset (5, 2, 0), and the half turn that it contains.
TOOLKIT = {
    "add": [10.153599441226865, 10.803009832007465, 12.78984937216965],
    "adds": [9.935516690574293, 9.452242058374464, 8.873755366733123],
    "projection": [7.774973824589838, 7.709793172732334, 8.296050474328725],
    "mssd": [13.346956617048832, 15.152235935437227, 17.509474251899576],
    "mssd, symmetric": [12.343199324948845, 12.265437381355719, 16.058237016965883],
    "mspd": [9.698787581771633, 9.971480491937768, 10.359410774023708],
    "mspd, symmetric": [8.954916490951446, 8.829076331660762, 10.161582399063766],
    "degrees": [2.2246752946848347, 5.185377920016443, 8.13811331141069],
    "mm": [10.057786864960777, 10.136009362742843, 10.165452011745645],
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_the_toolkit_of_the_benchmark_says(name: str) -> None:
    wanted = torch.tensor(TOOLKIT[name], dtype=F64)
    torch.testing.assert_close(MEASURES[name](POSE, TRUTH), wanted, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", MEASURES)
def test_a_pose_is_right_against_itself_and_a_missing_one_infinitely_wrong(name: str) -> None:
    error = MEASURES[name](torch.stack([TRUTH[0], torch.full((4, 4), math.nan, dtype=F64), POSE[2]]), TRUTH)
    assert error[0] < 1e-5
    assert error[1] == math.inf
    torch.testing.assert_close(error[2].item(), TOOLKIT[name][2], rtol=1e-11, atol=0)
    assert MEASURES[name](POSE.new_full((3, 4, 4), math.inf), TRUTH).tolist() == [math.inf] * 3


@pytest.mark.parametrize("name", MEASURES)
def test_a_batch_is_as_its_poses_and_may_be_empty(name: str) -> None:
    singly = torch.cat([MEASURES[name](POSE[i : i + 1], TRUTH[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(MEASURES[name](POSE, TRUTH), singly, rtol=1e-14, atol=0)
    assert MEASURES[name](POSE[:0], TRUTH[:0]).shape == (0,)


@pytest.mark.parametrize("name", MEASURES)
def test_single_precision_stays_single(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for some in ("POINTS", "K", "ALL_TURNS"):
        monkeypatch.setitem(globals(), some, globals()[some].float())
    error = MEASURES[name](POSE.float(), TRUTH.float())
    assert error.dtype == torch.float32
    torch.testing.assert_close(error, torch.tensor(TOOLKIT[name]), rtol=1e-3, atol=0)


def test_how_many_symmetries_are_held_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CHUNK", 1000)  # 16 turns of 60 points
    wanted = torch.tensor(TOOLKIT["mspd, symmetric"], dtype=F64)
    torch.testing.assert_close(mspd(POSE, TRUTH, POINTS, K, ALL_TURNS), wanted, rtol=1e-11, atol=0)


def test_a_K_for_each_pose() -> None:
    K_each = K * torch.tensor([1.0, 2, 3], dtype=F64)[:, None, None]
    K_each[:, 2, 2] = 1
    wanted = torch.tensor([1.0, 2, 3], dtype=F64) * projection_error(POSE, TRUTH, POINTS, K)
    torch.testing.assert_close(projection_error(POSE, TRUTH, POINTS, K_each), wanted)


def test_every_pose_that_looks_the_same_is_right() -> None:
    symmetries = turns(6)
    pose, truth = TRUTH[:1] @ symmetries, TRUTH[:1].expand(6, 4, 4)
    degrees, mm = rotation_translation_error(pose, truth, symmetries)
    errors = [
        mssd(pose, truth, POINTS, symmetries),
        mspd(pose, truth, POINTS, K, symmetries),
        projection_error(pose, truth, POINTS, K, symmetries),
        degrees,
        mm,
    ]
    for error in errors:
        assert error.max() < 1e-5
    for error in (add(pose, truth, POINTS), mssd(pose, truth, POINTS), rotation_translation_error(pose, truth)[1]):
        assert error[1:].min() > 1
    everywhere = se3.transform(symmetries, POINTS).reshape(-1, 3)  # points with that symmetry
    assert adds(pose, truth, everywhere).max() < 1e-10


def test_angle_and_distance_are_of_one_and_the_same_symmetry() -> None:
    """Half a turn about a line beside the origin: to the nearer centre it is far round."""
    symmetries = turns(2)
    degrees, mm = rotation_translation_error(TRUTH[:1] @ symmetries[1:], TRUTH[:1], symmetries)
    assert degrees.item() < 1e-5
    assert mm.item() < 1e-10
    shifted = TRUTH[:1].clone()
    shifted[:, :3, 3] = (TRUTH[:1] @ symmetries[1:])[:, :3, 3]
    degrees, mm = rotation_translation_error(shifted, TRUTH[:1], symmetries)
    assert degrees.item() < 1e-5
    assert mm.item() == pytest.approx(2 * math.hypot(5, 2))


def test_angles_are_right_at_both_ends() -> None:
    for degrees in (1e-7, 1e-3, 90.0, 180.0):
        rotvec = torch.tensor([[0.6, 0, 0.8]], dtype=F64) * math.radians(degrees)
        pose = se3.retract(TRUTH[:1], torch.cat([rotvec, torch.tensor([[3.0, 0, 4]], dtype=F64)], -1))
        found, mm = rotation_translation_error(pose, TRUTH[:1])
        assert found.item() == pytest.approx(degrees, rel=1e-6)
        assert mm.item() == pytest.approx(5)


def test_what_the_measures_have_to_do_with_each_other() -> None:
    far = add(POSE, TRUTH, POINTS)
    assert (adds(POSE, TRUTH, POINTS) <= far).all()
    assert (mssd(POSE, TRUTH, POINTS) >= far).all()
    assert (mspd(POSE, TRUTH, POINTS, K) >= projection_error(POSE, TRUTH, POINTS, K)).all()
    moved = se3.exp(wave(3, frequency=0.3))
    camera = se3.make(moved, wave(3, frequency=4.0))
    for measure in (add, adds, mssd):  # lengths do not depend on where the camera's frame is
        torch.testing.assert_close(measure(camera @ POSE, camera @ TRUTH, POINTS), measure(POSE, TRUTH, POINTS))
    shifted = TRUTH.clone()
    shifted[:, :3, 3] += torch.tensor([2.0, 3, 6], dtype=F64)
    for measure in (add, mssd):
        torch.testing.assert_close(measure(shifted, TRUTH, POINTS), torch.full((3,), 7.0, dtype=F64))


def test_points_behind_the_camera_are_nowhere_in_the_picture() -> None:
    behind = TRUTH.clone()
    behind[1, 2, 3] = 0
    for name, measure in MEASURES.items():
        error = measure(behind, TRUTH)
        assert error.isfinite().tolist() == [True, name not in IN_PICTURE, True]


def ball(u: float, v: float, z: float) -> Tensor:
    """Depth (24,32) of a round thing of 8 px radius, 0 beside it."""
    rows, columns = torch.meshgrid(torch.arange(24.0, dtype=F64), torch.arange(32.0, dtype=F64), indexing="ij")
    height = 64 - (columns - u) ** 2 - (rows - v) ** 2
    return torch.where(height > 0, z - 4 * height.clamp(min=0).sqrt(), 0.0)


SMALL_K = torch.tensor([[50, 0, 15.3], [0, 52, 11.8], [0, 0, 1]], dtype=F64)
DEPTH_GT = ball(14, 12, 600)


def seen() -> Tensor:
    """What a sensor sees of DEPTH_GT: wavy noise, nothing above row 8, and something in front right of column 18."""
    rows, columns = torch.meshgrid(torch.arange(24.0, dtype=F64), torch.arange(32.0, dtype=F64), indexing="ij")
    test = torch.where(DEPTH_GT > 0, DEPTH_GT + 6 * torch.sin(3 * columns + 5 * rows), 900.0)
    test[:8] = 0
    test[:, 19:] = 540
    return test


def test_vsd_is_what_the_toolkit_of_the_benchmark_says() -> None:
    """Its function was given the same depth pictures in the place of its renderer's."""
    wanted = [
        [0.6463414634146342, 0.27439024390243905, 0.1402439024390244] + 7 * [0.10365853658536585],
        [0.8630952380952381, 0.7380952380952381, 0.5833333333333334, 0.4523809523809524, 0.3630952380952381,
         0.3392857142857143, *4 * [0.3273809523809524]],
        [0.9197530864197531, 0.8641975308641975, 0.8518518518518519, 0.7839506172839507, 0.7839506172839507,
         0.7407407407407407, *4 * [0.7283950617283951]],
    ]  # fmt: skip
    depth = torch.stack([ball(15, 12, 603), ball(17, 11, 590), ball(22, 12, 600)])
    found = vsd(depth, DEPTH_GT, seen(), SMALL_K, 64.0)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=F64), rtol=0, atol=1e-15)
    for image, errors in zip(depth, found, strict=True):
        assert torch.equal(vsd(image, DEPTH_GT, seen(), SMALL_K, 64.0), errors)


def test_vsd_counts_what_can_be_seen() -> None:
    nothing = torch.zeros_like(DEPTH_GT)
    ones, zeros = torch.ones(10, dtype=F64), torch.zeros(10, dtype=F64)
    assert torch.equal(vsd(DEPTH_GT, DEPTH_GT, seen(), SMALL_K, 64.0), zeros)
    assert torch.equal(vsd(DEPTH_GT, DEPTH_GT, nothing, SMALL_K, 64.0), zeros)  # a blind sensor hides nothing
    assert torch.equal(vsd(nothing, DEPTH_GT, seen(), SMALL_K, 64.0), ones)
    assert torch.equal(vsd(DEPTH_GT, nothing, nothing, SMALL_K, 64.0), ones)
    assert torch.equal(vsd(nothing, nothing, seen(), SMALL_K, 64.0), ones)
    wall = torch.full_like(DEPTH_GT, 300.0)
    assert torch.equal(vsd(DEPTH_GT, DEPTH_GT, wall, SMALL_K, 64.0), ones)  # neither is seen
    # 14 mm behind the surface that was seen is visible, 16 mm is not, and then the wrong depth costs nothing
    for behind, wanted in ((14.0, 0.0), (16.0, 1.0)):
        one = DEPTH_GT.where(DEPTH_GT.max() == DEPTH_GT, 0.0)  # a ring of pixels that the ray's slant leaves alone
        test = (one - behind).where(one > 0, 0.0)
        K = torch.tensor([[1e6, 0, 15.3], [0, 1e6, 11.8], [0, 0, 1]], dtype=F64)
        assert vsd(one, one, test, K, 64.0).tolist() == [wanted] * 10
        assert vsd(one, one, test, K, 64.0, delta=20).tolist() == [0.0] * 10


def test_vsd_measures_along_the_ray() -> None:
    K = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=F64)  # pixel (3, 4) is seen along (3, 4, 1)
    depth, truth = torch.zeros(5, 4, dtype=F64), torch.zeros(5, 4, dtype=F64)
    depth[4, 3], truth[4, 3] = 101.0, 100.0
    apart = math.sqrt(26)
    found = vsd(depth, truth, torch.zeros_like(truth), K, 1.0, taus=(0.99 * apart, 1.01 * apart))
    assert found.tolist() == [1.0, 0.0]


def test_the_fractions_are_those_of_the_toolkit() -> None:
    """numpy.arange(0.05, 0.51, 0.05): a VSD of 3 pixels in 20 counts as below the third, for want of a last bit."""
    assert FRACTIONS == (0.05, 0.1, 0.15000000000000002, 0.2, 0.25, 0.3, 0.35000000000000003, 0.4, 0.45, 0.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pose": POSE[0]}, r"pose must have shape \(4, 4, 4\) .* got \(4, 4\)"),
        ({"pose": POSE[:2]}, r"pose_gt must have shape \(2, 4, 4\) .* got \(3, 4, 4\)"),
        ({"pose_gt": TRUTH.float()}, r"pose_gt must .* got \(3, 4, 4\), torch.float32"),
        ({"pose_gt": TRUTH * math.nan}, "pose_gt must be finite"),
        ({"points3d": POINTS[:0]}, r"points3d must have shape \(N, 3\) .* got \(0, 3\)"),
        ({"points3d": POINTS.T}, r"points3d must have shape \(N, 3\)"),
        ({"symmetries": ALL_TURNS[:, :3]}, r"symmetries must have shape \(S, 4, 4\)"),
        ({"K": torch.stack([K, K])}, r"K must have shape \(3, 3\) or \(3, 3, 3\) .* got \(2, 3, 3\)"),
        ({"pose": POSE.long()}, r"pose must .* got \(3, 4, 4\), torch.int64"),
    ],
)
def test_mistakes_are_named(changed: dict[str, Tensor], message: str) -> None:
    arguments = {"pose": POSE, "pose_gt": TRUTH, "points3d": POINTS, "K": K, "symmetries": ALL_TURNS} | changed
    with pytest.raises(ValueError, match=message):
        mspd(**arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth_gt": DEPTH_GT[:-1]}, r"depth_gt must have shape \(…, 24, 32\), .* got \(23, 32\)"),
        ({"depth_test": DEPTH_GT.float()}, r"depth_test must .* got \(24, 32\), torch.float32"),
        ({"depth": DEPTH_GT[0]}, r"depth must .* got \(32,\)|depth_gt must"),
        ({"K": SMALL_K[:2]}, r"K must have shape \(…, 3, 3\), got \(2, 3\)"),
        ({"diameter": 0.0}, "diameter must be positive, got 0.0"),
    ],
)
def test_mistakes_of_vsd_are_named(changed: dict[str, Any], message: str) -> None:
    arguments = dict(depth=DEPTH_GT, depth_gt=DEPTH_GT, depth_test=DEPTH_GT, K=SMALL_K, diameter=64.0) | changed
    with pytest.raises(ValueError, match=message):
        vsd(**arguments)
