"""Made scenes: what is promised of their shape, and that the published ones are the published ones."""

import math

import pytest
import torch
from torch import Tensor

from datasets.made.published import read_points, read_poses
from datasets.made.scenes import CUBE, PUBLISHED_POSE, duck, half_visible, random_poses
from tests.numbers import generator

# (centre, radii) of body, head, beak, tail: the definition, written once more
PARTS = [
    ((0.00, 0, 0.10), (0.150, 0.105, 0.085)),
    ((0.09, 0, 0.23), (0.068, 0.062, 0.066)),
    ((0.16, 0, 0.22), (0.045, 0.032, 0.014)),
    ((-0.14, 0, 0.14), (0.050, 0.040, 0.050)),
]


def test_the_cube_and_the_pose_are_the_published_ones(real_data) -> None:
    real_data("bpnp_demo")
    torch.testing.assert_close(CUBE, read_points("cube"), rtol=0, atol=0)
    torch.testing.assert_close(PUBLISHED_POSE, read_poses()[0], rtol=1e-4, atol=1e-6)


def test_the_cube_is_a_cube() -> None:
    distances = torch.cdist(CUBE, CUBE)
    for row in distances:
        expected = [0] + [2] * 3 + [2 * math.sqrt(2)] * 3 + [2 * math.sqrt(3)]
        assert row.sort().values.tolist() == pytest.approx(expected, abs=1e-12)


def test_duck_points_lie_on_its_surface() -> None:
    points = duck(1000, generator())
    assert points.shape == (1000, 3)
    assert points.dtype == torch.float64
    levels = torch.stack(
        [((points - points.new_tensor(c)) / points.new_tensor(r)).square().sum(-1) for c, r in PARTS], 1
    )
    assert (levels.amin(1) - 1).abs().max() < 1e-8  # on one part, inside of none
    share = (levels - 1 < 1e-8).double().mean(0)
    assert (share > 0.02).all()  # each part is there
    assert share.argmax() == 0
    extent = points.amax(0) - points.amin(0)
    assert 0.35 < extent.max() < 0.4
    assert extent.argmax() == 0


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_a_duck_has_as_many_points_as_asked_for(count: int) -> None:
    assert {len(duck(count, generator(seed))) for seed in range(400)} == {count}


def test_random_poses_are_in_the_published_range() -> None:
    poses = random_poses(2000, generator())
    R, t = poses[:, :3, :3], poses[:, :3, 3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand_as(R), rtol=0, atol=1e-13)
    assert (torch.linalg.det(R) > 0).all()
    assert torch.equal(poses[:, 3], torch.tensor([0, 0, 0, 1.0]).double().expand(2000, 4))
    assert 3.8 <= t[:, 2].min() < 3.85
    assert 19.8 < t[:, 2].max() <= 20
    log_depth = (t[:, 2] / 3.8).log() / math.log(20 / 3.8)
    quantiles = log_depth.quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    assert quantiles.tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.05)
    lateral = (t[:, :2] / t[:, 2:]).abs()
    assert 0.059 < lateral.max() <= 0.06
    # from all sides: directions are uniform, so that their mean is 0 and their second moment I/3
    for axis in R.unbind(1):
        assert axis.mean(0).abs().max() < 0.06
        torch.testing.assert_close(axis.T @ axis / 2000, torch.eye(3).double() / 3, rtol=0, atol=0.03)
    near = random_poses(50, generator(), depth=(1.0, 2.0))[:, 2, 3]
    assert near.min() >= 1
    assert near.max() <= 2


@pytest.mark.parametrize("make", [duck, random_poses])
def test_the_generator_alone_decides(make) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = make(20, generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(make(20, generator(3)), first)
    assert not torch.equal(make(20, generator(4)), first)


def sees(points: Tensor, view: int) -> Tensor:
    axis, away = view % 6 // 2, view % 2
    return torch.stack([(p > points[:, axis].median()) != bool(away) for p in points[:, axis]])


@pytest.mark.parametrize("count", [100, 101])
def test_each_view_sees_its_half(count: int) -> None:
    points = duck(count, generator())
    visible = half_visible(points, 8)
    assert visible.shape == (8, count)
    assert visible.dtype == torch.bool
    assert ((visible.sum(1) - count / 2).abs() <= 1).all()
    assert torch.equal(visible[0::2], ~visible[1::2])
    assert torch.equal(visible[6:], visible[:2])
    for view in range(6):
        on_the_median = points[:, view // 2] == points[:, view // 2].median()
        assert torch.equal(visible[view][~on_the_median], sees(points, view)[~on_the_median])
