"""Cameras that stand in one place, or hardly apart, and such as see nothing: what of the gauge is left then."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from geometry import Prior, Status, project, se3
from tests.geometry.bundle_adjustment.scenes import keep_only, make_tracks, relative, still_steps
from tests.numbers import DOUBLE

GAUGES = ["fixed", "free"]


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-8, 1e-4, 1e-2])
def test_cameras_may_start_in_one_place(spread: float, gauge: str) -> None:
    """A scale that moves no camera cannot be held by one; next to that, a step apart must not shrink the world."""
    tracks = make_tracks(5, 20, seen=1.0)
    pose = torch.eye(4, **DOUBLE).repeat(5, 1, 1)
    pose[:, :3, 3] = spread * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), **DOUBLE)
    start = replace(tracks, world_to_camera=pose, points3d=tracks.truth.points3d + pose.new_tensor([0, 0, 7]))
    expected = tracks.solve()
    for unit in (1.0, 1e-6):
        pose = pose.clone()
        pose[:, :3, 3] *= unit
        found = replace(start, world_to_camera=pose, points3d=unit * start.points3d).solve(gauge=gauge)
        assert found.converged
        assert relative(found.cost, expected.cost) < 1e-11
        if gauge == "fixed":
            assert still_steps(pose, found.x.world_to_camera)[0].all()


@pytest.mark.parametrize("options", [{"free": ("points",)}, {"fixed_poses": torch.arange(5) < 4}])
def test_cameras_fixed_in_one_place(options: dict[str, Any]) -> None:
    """They see no depth, and say so."""
    tracks = make_tracks(5, 20, seen=1.0)
    T = tracks.world_to_camera
    pose = se3.make(T[:, :3, :3], (T[:, :3, :3] @ T[0, :3, :3].mT) @ T[0, :3, 3])
    still = replace(tracks, world_to_camera=pose)
    pixels = project(still.points3d[None], pose, still.K, still.distortion)[still.camera_index, still.point_index]
    found = replace(still, points2d=pixels).solve(**options)
    assert found.undetermined.all()
    assert found.cost < 1e-16


def test_fixed_cameras_close_to_each_other_hold_the_world() -> None:
    """Two fixed cameras far from all points: of what they hold nothing is lost in the rounding of distances."""
    tracks = make_tracks(5, 20, seen=1.0)
    pose, away = tracks.world_to_camera.clone(), torch.tensor([0.0, 0, 1e6], **DOUBLE)
    pose[:, :3, 3] += away
    found = replace(tracks, world_to_camera=pose).solve(fixed_poses=torch.arange(5) < 2, max_steps=0)
    assert found.task.freedom(found.state) == 0
    found = replace(tracks, world_to_camera=pose).solve(fixed_poses=torch.arange(5) < 1, max_steps=0)
    assert found.task.freedom(found.state) == 1


@pytest.mark.parametrize("gauge", GAUGES)
def test_where_nothing_is_seen_nothing_moves(gauge: str) -> None:
    tracks = keep_only(make_tracks(5, 20), torch.arange(0))
    known = Prior(tracks.truth.world_to_camera, torch.ones(5, 6, **DOUBLE))
    for given, options in (
        (tracks, {}),
        (tracks, {"prior": known, "fixed_poses": torch.ones(5, dtype=torch.bool)}),
        (tracks, {"fixed_poses": torch.arange(5) < 1}),
        (replace(tracks, points3d=tracks.points3d[:0]), {}),
    ):
        found = given.solve(gauge=gauge, **options)
        assert Status(int(found.status)) == Status.TOO_FEW
        assert found.task.gauge_at(found.state) is None
        for a, b in zip(found.x[:2], (given.world_to_camera, given.points3d), strict=True):
            assert torch.equal(a, b)
