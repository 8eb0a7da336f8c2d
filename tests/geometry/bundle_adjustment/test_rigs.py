"""Bundles of rigs: cameras that share a pose, and mountings that frames share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.made.rigs import RigScene, made_rig
from geometry import BundleSolution, Prior, bundle, cauchy, huber, se3
from geometry.bundle_adjustment.indices import Layout
from tests.geometry.bundle_adjustment.scenes import (
    ALL,
    assert_derivatives,
    dense_hessian,
    make_tracks,
    moving,
    relative,
)
from tests.numbers import DOUBLE, close, normal

FREE = ("poses", "points", "sensors")
NONE_FIXED = torch.zeros(3, dtype=torch.bool)


def scene(frames: int = 4, sensors: int = 3, points: int = 50, *, off: float = 0.02, **options: Any) -> RigScene:
    """Some observations, and a start a few percent off."""
    generator = torch.Generator().manual_seed(2)
    return made_rig(frames, sensors, points, generator, **options).moved(generator, off)


def solve(rig: RigScene, **options: Any) -> BundleSolution:
    return bundle(**{"free": FREE, **rig._asdict(), **options})


def mounting_prior(rig: RigScene) -> Prior:
    known = se3.retract(rig.sensor_from_rig, 0.01 * normal(len(rig.sensor_from_rig), 6, seed=4))
    return Prior(sensor_from_rig=known, sensor_weights=50 + 50 * normal(len(known), 6, seed=5).abs())


def options_of(rig: RigScene) -> dict[str, dict[str, Any]]:
    truth = scene(off=0.0).sensor_from_rig
    K, lens = rig.K.repeat(2, 1, 1), rig.distortion.repeat(2, 1)
    halves = {"intrinsics_index": rig.sensor_index + 3 * (rig.rig_index % 2), "K": K, "distortion": lens}
    return {
        "mountings": {},
        "free gauge": {"gauge": "free"},
        "two fixed": {"fixed_sensors": torch.tensor([True, False, True])},
        "all fixed": {"free": ("poses", "points"), "kernel": cauchy(3.0), "sensor_from_rig": truth},
        "no mounting held": {"fixed_sensors": NONE_FIXED},
        "no mounting held, free gauge": {"fixed_sensors": NONE_FIXED, "gauge": "free"},
        "prior": {"fixed_sensors": NONE_FIXED, "prior": mounting_prior(rig)},
        "intrinsics of sensors, huber": {"free": (*FREE, "f", "k1"), "kernel": huber(1.0)},
        "intrinsics of other groups": {"free": (*FREE, "k1"), **halves},
        "a pose fixed": {"fixed_poses": torch.arange(4) == 1},
        "iterative": {"solver": "iterative"},
    }  # fmt: skip


CASES = tuple(options_of(scene()))


@pytest.mark.parametrize("case", [c for c in CASES if c != "iterative"])
def test_normal_equations_are_derivatives_of_the_cost(case: str) -> None:
    rig = scene()
    assert_derivatives(solve(rig, max_steps=0, **options_of(rig)[case]).task)


def loss(x: Any) -> Tensor:
    sensors = (x.sensor_from_rig[:, :3] * normal(3, 3, 4, seed=6)).sum()
    return x.points3d[:5].sum() + x.world_to_camera[-1, :3].sum() + sensors + 1e-2 * x.K[:, 0, 0].sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["points2d", "sensor_from_rig", "K", "weights"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_finite_differences(
    case: str, name: str, central_difference: Callable[..., Tensor]
) -> None:
    rig, g = scene(), torch.Generator().manual_seed(7)
    options = {"weights": torch.ones(len(rig.points2d), 2, **DOUBLE), **rig._asdict(), **options_of(rig)[case]}
    options = {**options, **{n: t for n, t in solve(rig, **options).x._asdict().items() if t is not None}}
    value, free = options[name], options.get("free", FREE)
    direction = torch.randn(value.shape, generator=g, **DOUBLE)
    if name == "sensor_from_rig":
        fixed = options.get("fixed_sensors", torch.arange(3) == 0) | ("sensors" not in free)
        direction = 0.1 * torch.randn(3, 6, generator=g, **DOUBLE) * fixed[:, None]
        if not fixed.any():
            pytest.skip("all of them are starts")
    elif name == "K":
        direction[:, 2], direction[:, 1, 0] = 0, 0
        direction[:, 0, 0] *= "f" not in free  # a start

    def moved(step: Tensor) -> Tensor:
        there = se3.retract(value, step * direction) if name == "sensor_from_rig" else value + step * direction
        return loss(solve(rig, **{**options, name: there}).x)

    size = 3e-3 if "kernel" in options else 1e-2  # what a robust kernel gives bends sooner
    step = torch.zeros((), **DOUBLE, requires_grad=True)
    (found,) = torch.autograd.grad(moved(step), step)
    wanted = central_difference(lambda h: moved(torch.tensor(h, **DOUBLE)).detach(), size)
    assert (found - wanted).abs() < 1e-6 * wanted.abs()


def test_a_rig_of_one_camera_is_the_camera() -> None:
    tracks = make_tracks()
    V = len(tracks.world_to_camera)
    rig = {
        "rig_index": torch.arange(V), "sensor_index": torch.zeros(V, dtype=torch.long),
        "sensor_from_rig": torch.eye(4, **DOUBLE)[None], "intrinsics_index": tracks.intrinsics_index,
    }  # fmt: skip
    pixels = tracks.points2d.clone().requires_grad_()
    found, alone = (
        replace(tracks, points2d=pixels).solve(free=ALL, gauge="free", **more) for more in (rig, {})
    )  # fmt: skip
    assert found.converged
    close(found.cost, alone.cost, 1e-12 * float(alone.cost.detach()))
    for a, b in zip(found.x[:4], alone.x[:4], strict=True):
        close(a, b, 1e-12 * float(b.detach().abs().max()))
    slopes = [torch.autograd.grad(s.x.points3d.square().sum(), pixels)[0] for s in (found, alone)]
    close(slopes[0], slopes[1], 1e-9 * float(slopes[1].abs().max()))


def test_known_mountings_are_poses_of_single_cameras() -> None:
    """With a view a frame, mountings do no more than name the poses otherwise."""
    rig = scene(6, 3, 80, apart=0.1)
    one = rig.sensor_index[rig.camera_index] == rig.rig_index[rig.camera_index] % 3
    rig = rig._replace(**{n: getattr(rig, n)[one] for n in ("points2d", "camera_index", "point_index")})
    found = solve(rig, free=("poses", "points"))
    poses = rig.sensor_from_rig[torch.arange(6) % 3] @ rig.world_to_camera
    frame, sensor = rig.rig_index[rig.camera_index], torch.arange(6) % 3
    seen = (rig.points2d, frame, rig.point_index)
    alone = bundle(*seen, poses, rig.points3d, rig.K, rig.distortion, intrinsics_index=sensor)
    assert found.converged
    assert alone.converged
    close(found.cost, alone.cost, 1e-10 * float(alone.cost))
    assert found.task.freedom(found.state) == alone.task.freedom(alone.state)


@pytest.mark.parametrize(("case", "freedom"), [
    ("mountings", 7), ("two fixed", 6), ("all fixed", 6), ("no mounting held", 13), ("prior", 6), ("a pose fixed", 1),
])  # fmt: skip
def test_number_of_free_similarities(case: str, freedom: int) -> None:
    rig = scene()
    found = solve(rig, **options_of(rig)[case])
    assert found.task.freedom(found.state) == freedom
    assert found.converged


def test_of_mountings_at_one_place_none_tells_the_scale() -> None:
    """Cameras that turn about one centre: whether held or free, a larger world looks the same."""
    rig = scene(baseline=0.0)
    turned = rig.sensor_from_rig.clone()
    turned[:, :3, 3] = 0
    for fixed in (torch.ones(3, dtype=torch.bool), torch.arange(3) == 0):
        start = solve(rig._replace(sensor_from_rig=turned), fixed_sensors=fixed, max_steps=0)
        assert start.task.freedom(start.state) == 7


def test_the_rig_may_be_told_of_another_frame() -> None:
    rig, moved = scene(), se3.make(se3.exp(normal(3, seed=8)), normal(3, seed=9))
    other = rig._replace(
        world_to_camera=moved @ rig.world_to_camera, sensor_from_rig=rig.sensor_from_rig @ se3.inverse(moved)
    )
    a, b = solve(rig, gauge="free"), solve(other, gauge="free")
    assert a.converged
    assert b.converged
    close(a.cost, b.cost, 1e-9 * float(a.cost))
    # a mounting to the one that is held
    relative_poses = [s.x.sensor_from_rig @ se3.inverse(s.x.sensor_from_rig[:1]) for s in (a, b)]
    close(relative_poses[0][:, :3, :3], relative_poses[1][:, :3, :3], 1e-6)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_covariance_is_the_inverse_of_the_dense_matrix(solver: str) -> None:
    rig = scene()
    names = (*FREE, "f")
    fixed = {"fixed_poses": torch.arange(4) == 0, "fixed_sensors": torch.tensor([True, False, True])}
    found = solve(rig, free=names, solver=solver, **fixed)
    task, layout = found.task, found.task.problem.layout
    with torch.no_grad():
        H = dense_hessian(task.problem.linearize(found.state, task.data), layout)
    places = moving(layout)
    wanted = torch.zeros(len(H) + 1, len(H) + 1, **DOUBLE)
    wanted[places[:, None], places] = torch.linalg.inv(H[places][:, places])
    rows = torch.where(layout.rows < layout.size, layout.rows, len(H))
    wanted = wanted[rows[:, :, None], rows[:, None]]
    # a turn about the world's origin, not about the place amid the points
    turn = torch.eye(rows.shape[1], **DOUBLE).repeat(len(rows), 1, 1)
    turn[:, :6, :6] = se3.step_from(task.poses(found.state), task.place)
    assert relative(found.covariance(sigma=1.0).cameras, turn @ wanted @ turn.mT) < 1e-7


def test_what_no_view_uses_stays() -> None:
    rig = scene()
    more = torch.cat([rig.sensor_from_rig, 2 * torch.eye(4, **DOUBLE)[None].tril()])
    more[3, 3, 3], more[3, :3, :3] = 1, torch.eye(3)
    given = rig._replace(sensor_from_rig=more, K=rig.K[:1], distortion=rig.distortion[:1])
    frames = torch.cat([rig.world_to_camera, rig.world_to_camera[:1]])
    found = solve(given._replace(world_to_camera=frames), fixed_sensors=torch.arange(4) == 0)
    assert torch.equal(found.x.sensor_from_rig[3], more[3])
    assert torch.equal(found.x.world_to_camera[4], frames[4])
    assert (found.x.sensor_from_rig[1:3] != more[1:3]).flatten(1).any(1).all()


def test_a_sensor_that_sees_too_little_is_left_out() -> None:
    rig = scene()
    sensor = rig.sensor_index[rig.camera_index]
    few = (sensor == 2).nonzero().flatten()[2:]
    keep = torch.ones(len(sensor), dtype=torch.bool)
    keep[few] = False
    rig = rig._replace(**{n: getattr(rig, n)[keep] for n in ("points2d", "camera_index", "point_index")})
    found = solve(rig)
    assert found.converged
    assert found.left_out[sensor[keep] == 2].all()
    assert torch.equal(found.x.sensor_from_rig[2], rig.sensor_from_rig[2])


def test_views_of_a_frame_belong_together() -> None:
    """Cameras of a rig that look to both sides see no point together, and hang together all the same."""
    rig = scene(5, 2, 150, apart=2.0)
    found = solve(rig)
    assert found.converged
    both = torch.zeros(2, len(rig.points3d), dtype=torch.bool)
    both[rig.sensor_index[rig.camera_index], rig.point_index] = True
    used = found.component >= 0
    assert (found.component[used] == 0).all()


def test_blocks_of_shared_columns_reach_the_reduced_matrix() -> None:
    """What lies side by side in all views is one run of columns, and nothing else is."""
    rig = scene()
    layout: Layout = solve(rig, free=(*FREE, "f"), fixed_poses=torch.arange(4) == 0, max_steps=0).task.problem.layout
    starts, bounds = layout.runs
    assert bounds.tolist() == [0, 6, 7, 13]
    assert torch.equal(starts, layout.rows[:, [0, 6, 7]])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "alone": ({"sensor_index": None}, "must come together"),
    "free without a rig": (dict.fromkeys(("rig_index", "sensor_index", "sensor_from_rig")), '"sensors" in free'),
    "frame": ({"rig_index": torch.full((12,), 4)}, "rig_index"),
    "sensor": ({"sensor_index": torch.full((12,), -1)}, "sensor_index"),
    "mounting": ({"sensor_from_rig": torch.ones(3, 4, 4, **DOUBLE)}, "sensor_from_rig"),
    "mask": ({"fixed_sensors": torch.zeros(2, dtype=torch.bool)}, "fixed_sensors"),
    "K": ({"K": torch.eye(3, **DOUBLE).repeat(4, 1, 1), "distortion": None}, "the sensors"),
    "prior": ({"prior": Prior(sensor_from_rig=torch.eye(4, **DOUBLE)[None])}, "sensor_weights"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_named(wrong: str) -> None:
    options, said = WRONG[wrong]
    with pytest.raises(ValueError, match=said):
        solve(scene(), **options)
