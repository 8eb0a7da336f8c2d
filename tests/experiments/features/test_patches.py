"""Patches in the frames of their tracks, and what alignment finds of shifts that are known."""

import pytest
import torch
from torch import Tensor

from experiments.features.patches import align, others_mean, seen_by_planes
from experiments.features.tracked import Tracked
from geometry import project, se3
from tests.experiments.features.scene import K, grey, points_on_wall, texture


def test_planes_face_the_cameras_and_a_unit_is_a_pixel() -> None:
    """Against projections of places on the plane; seen by one camera turned about its axis by that turn."""
    tracked = points_on_wall().tracked
    J = seen_by_planes(tracked)
    lengths = torch.linalg.svdvals(J)
    assert 0.9 < lengths[:, 0].median() < 1.1
    assert (lengths[:, 1] > 0.6).all()  # by foreshortening and distance
    assert (torch.linalg.det(J) > 0).all()
    first, roll = tracked.world_to_camera[:1], torch.tensor([0.0, 0, 0.4]).double()
    both = torch.cat([first, se3.make(se3.exp(roll), roll.new_zeros(3)) @ first])
    kept = tracked.camera < 2
    pair = tracked._replace(
        camera=tracked.camera[kept], point=tracked.point[kept], points2d=tracked.points2d[kept], world_to_camera=both
    )
    one, other = seen_by_planes(pair).chunk(2)
    near_axis = ((pair.points2d[: len(one)] - K[:2, 2]).norm(dim=-1) < 20).nonzero().flatten()
    expected = se3.exp(roll)[:2, :2] @ one
    torch.testing.assert_close(other[near_axis], expected[near_axis], atol=0.02, rtol=0)


def pair(shift: Tensor, scale: float, gain: float) -> tuple[Tracked, Tensor]:
    """Two pictures of one texture by one camera and one that hardly moved, the second shifted and scaled about each
    of nine places; SIFT puts both where the first has them."""
    waves = texture()
    grid = torch.stack(torch.meshgrid(torch.arange(160), torch.arange(120), indexing="xy"), -1).double()
    places = torch.cartesian_prod(torch.tensor([40.0, 80, 120]), torch.tensor([30.0, 60, 90])).double()
    nearest = torch.cdist(grid.view(-1, 2), places).argmin(1)
    about = places[nearest].view(120, 160, 2)
    second = gain * (grey(waves, about + (grid - about - shift) / scale) - 0.5) + 0.45
    pictures = torch.stack([grey(waves, grid), second]).float()
    pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    pose[1, 0, 3] = 1e-9
    X = torch.cat([(places - K[:2, 2]) / 400, torch.ones(9, 1, dtype=torch.float64)], 1) * 4
    camera, point = torch.arange(2).repeat_interleave(9), torch.arange(9).repeat(2)
    return Tracked(pictures, K, places.repeat(2, 1), camera, point, pose, X), places


@pytest.mark.parametrize(("scale", "gain"), [(1.0, 1.0), (1.08, 0.7)])
def test_alignment_finds_a_shift_whatever_scale_and_light(scale: float, gain: float) -> None:
    shift = torch.tensor([0.42, -0.31], dtype=torch.float64)
    tracked, places = pair(shift, scale, gain)
    assert (project(tracked.points3d, tracked.world_to_camera[0], K) - places).abs().max() < 1e-9
    aligned = align(tracked)
    one, other = aligned.points2d.chunk(2)
    # both show one place: what lies as far off the middle in the first one, scaled, is there in the second
    assert (other - places - shift - scale * (one - places)).norm(dim=-1).max() < 0.003
    # the track as a whole stays where it was
    torch.testing.assert_close((one + other) / 2, places)
    assert aligned.correlation.min() > 0.99


def test_what_loses_its_patch_is_put_back() -> None:
    tracked, _ = pair(torch.tensor([3.5, 0.0], dtype=torch.float64), 1.0, 1.0)
    aligned = align(tracked)
    moved = (aligned.points2d - tracked.points2d).norm(dim=-1)
    assert (moved <= 1).all()
    assert (moved == 0).any()
    assert torch.equal(aligned.shift[moved == 0], torch.zeros_like(aligned.shift[moved == 0]))


def test_a_patch_is_no_part_of_the_mean_of_its_others() -> None:
    patches = torch.randn(5, 225, generator=torch.Generator().manual_seed(0))
    point = torch.tensor([0, 0, 0, 1, 1])
    changed = patches.clone()
    changed[1] += 1
    changed[1, :50] *= 3
    before, after = others_mean(patches, point), others_mean(changed, point)
    torch.testing.assert_close(before[[1, 3, 4]], after[[1, 3, 4]], atol=1e-5, rtol=1e-5)
    assert (before[[0, 2]] - after[[0, 2]]).abs().max() > 0.1
    # of a pair the other one, standardised: its gain and offset do not matter
    torch.testing.assert_close(others_mean(3 * patches + 2, point)[3:], before[3:], atol=1e-4, rtol=1e-4)
