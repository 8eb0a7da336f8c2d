"""What `bundle` refuses, and how it names it; what it takes in any form."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from geometry import Prior, Status
from tests.geometry.bundle_adjustment.scenes import ALL, assert_same, keep_only, make_tracks, solved_scene

BAD: dict[str, dict[str, Any]] = {
    "points2d": {"points2d": torch.zeros(3, 3)},
    "camera_index": {"camera_index": torch.full((80,), 5)},
    "point_index": {"point_index": torch.full((80,), -1)},
    "world_to_camera": {"world_to_camera": torch.zeros(5, 3, 4)},
    "points3d": {"points3d": torch.zeros(20, 2)},
    "K": {"K": torch.eye(3).expand(3, 3, 3), "distortion": None, "intrinsics_index": None},
    "distortion": {"distortion": torch.zeros(3, 2)},
    "intrinsics_index": {"intrinsics_index": torch.arange(5) + 1},
    "weights": {"weights": torch.ones(3)},
    "fixed_poses": {"fixed_poses": torch.zeros(4, dtype=torch.bool)},
    "fixed_points": {"fixed_points": torch.zeros(4, dtype=torch.bool)},
    "prior.pose_weights": {"prior": Prior(pose_weights=torch.zeros(5, 3))},
    "prior.theta": {"prior": Prior(theta=torch.zeros(5, 3))},
    "free": {"free": ("poses", "k3")},
    "model": {"model": "pinhole"},
    "gauge": {"gauge": "loose"},
    "solver": {"solver": "cholmod"},
    "gradient": {"gradient": "unrolled"},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    tracks = make_tracks(5, 20)
    tracks = keep_only(tracks, torch.arange(len(tracks.points2d)) < 80)
    given = {k: v for k, v in BAD[name].items() if hasattr(tracks, k)}
    options = {k: v for k, v in BAD[name].items() if k not in given or k in ("intrinsics_index", "model")}
    with pytest.raises(ValueError, match=f"^{name} must"):
        replace(tracks, **given).solve(**options)


def test_indices_may_be_int32() -> None:
    tracks = make_tracks(5, 20)
    short = {n: getattr(tracks, n).int() for n in ("camera_index", "point_index", "intrinsics_index")}
    assert_same(replace(tracks, **short).solve(free=ALL), tracks.solve(free=ALL), 1e-15)


def test_no_steps_move_nothing() -> None:
    tracks = make_tracks(5, 20)
    found = tracks.solve(max_steps=0)
    assert Status(int(found.status)) == Status.STALLED
    assert int(found.steps) == 0
    assert torch.equal(found.x.points3d, tracks.points3d)
    assert torch.equal(found.x.world_to_camera, tracks.world_to_camera)
    # at the minimum none are needed
    best = replace(tracks, **solved_scene(tracks.solve())).solve(max_steps=0)
    assert best.converged


@pytest.mark.parametrize("name", ["points2d", "world_to_camera", "points3d", "K", "distortion", "weights"])
def test_nan_is_named(name: str) -> None:
    tracks = make_tracks(4, 10)
    broken = torch.ones_like(tracks.points2d) if name == "weights" else getattr(tracks, name).clone()
    broken.view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match=f"^{name} must be finite"):
        tracks.solve(weights=broken) if name == "weights" else replace(tracks, **{name: broken}).solve()


@pytest.mark.parametrize("free", [("f", "fx"), ("fx", "fx"), "poses", ("pose",)])
def test_bad_names_of_what_is_free(free: Any) -> None:
    with pytest.raises(ValueError, match=r"^free m"):
        make_tracks(4, 10).solve(free=free)


def test_the_callback_sees_every_trial() -> None:
    seen: list[tuple[int, float]] = []
    found = make_tracks(5, 20).solve(callback=lambda step, cost: seen.append((step, cost)))
    steps, costs = zip(*seen, strict=True)
    assert steps[0] == 0
    assert list(steps) == sorted(set(steps))
    assert list(costs) == sorted(costs, reverse=True)
    assert abs(costs[-1] - float(found.cost)) < 1e-4 * costs[-1]
