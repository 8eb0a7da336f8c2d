"""Bundles of images whose rows are read one after the other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.made.rigs import made_rig
from datasets.made.rolling import RollingScene, made_rolling
from geometry import BundleSolution, Prior, bundle, cauchy, geman_mcclure, se3
from tests.geometry.bundle_adjustment.scenes import assert_derivatives
from tests.numbers import DOUBLE, close, normal

ALL = ("poses", "points", "velocities")


def made(**options: Any) -> RollingScene:
    return made_rolling(4, 25, torch.Generator().manual_seed(1), **options)


HELD = 8  # points that tests may hold


def start(scene: RollingScene) -> dict[str, Any]:
    """Poses and all but the first points some percent off."""
    poses = se3.retract(scene.world_to_camera, 0.01 * normal(len(scene.world_to_camera), 6))
    points = scene.points3d + 0.03 * normal(len(scene.points3d), 3, seed=1)
    points[:HELD] = scene.points3d[:HELD]
    return scene._asdict() | {"world_to_camera": poses, "points3d": points}


def solve(scene: RollingScene, **options: Any) -> BundleSolution:
    return bundle(**start(scene) | options)


def known(scene: RollingScene) -> Prior:
    return Prior(velocity=scene.velocity + 0.05, velocity_weights=5 + normal(*scene.velocity.shape, seed=3).abs())


CASES: dict[str, dict[str, Any]] = {
    "velocities": {"free": ALL},
    "velocities, f": {"free": (*ALL, "f"), "fixed_points": torch.arange(25) < HELD},
    "known velocities": {"free": ("poses", "points"), "kernel": cauchy(2.0)},
    "readout": {"free": ("poses", "points", "readout")},
    "all with a prior": {"free": (*ALL, "readout"), "prior": True},
    "poses fixed": {"free": ("points", "velocities"), "solver": "iterative"},
}


def case_of(scene: RollingScene, case: str) -> dict[str, Any]:
    options = dict(CASES[case])
    if "prior" in options:
        options["prior"] = known(scene)
    return options


def equations_are_derivatives(task: Any) -> None:
    assert len(task.problem.frame) == len(task.problem.layout.rows)
    assert_derivatives(task)


@pytest.mark.parametrize("slow", [1.0, 30.0])
@pytest.mark.parametrize("case", CASES)
def test_normal_equations_are_derivatives_of_the_cost(case: str, slow: float) -> None:
    """Also where the camera turns by radians while it reads."""
    scene = made()
    scene = scene._replace(times=slow * scene.times)
    equations_are_derivatives(solve(scene, max_steps=0, **case_of(scene, case)).task)


def test_normal_equations_of_rigs_that_move() -> None:
    generator = torch.Generator().manual_seed(2)
    rig = made_rig(3, 2, 40, generator).moved(generator, 0.02)
    times = 0.3 * (rig.points2d[:, 1] / 480 - 0.5)
    free = ("poses", "points", "sensors", "velocities", "readout", "f", "k1")
    equations_are_derivatives(bundle(**rig._asdict(), times=times, velocity=normal(3, 6), free=free, max_steps=0).task)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["points2d", "times", "velocity", "weights"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_finite_differences(
    case: str, name: str, central_difference: Callable[..., Tensor]
) -> None:
    scene = made()
    options = {"weights": torch.ones(len(scene.points2d), 2, **DOUBLE), **start(scene), **case_of(scene, case)}
    if name == "velocity" and "velocities" in options["free"]:
        pytest.skip("a start")
    found = bundle(**options).x
    options |= {"world_to_camera": found.world_to_camera, "points3d": found.points3d, "velocity": found.velocity}
    size = {"points2d": 1.0, "times": 1e-3, "velocity": 1.0, "weights": 1.0}[name]
    direction = size * torch.randn(options[name].shape, generator=torch.Generator().manual_seed(7), **DOUBLE)

    def moved(step: Tensor) -> Tensor:
        x = bundle(**{**options, name: options[name] + step * direction}).x
        return x.points3d.sum() + x.world_to_camera[-1, :3].sum() + x.velocity[0].sum() + x.readout.sum()

    step = torch.zeros((), **DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(moved(step), step)
    wanted = central_difference(lambda h: moved(torch.tensor(h, **DOUBLE)).detach(), 3e-3)
    assert (slope - wanted).abs() < 1e-6 * wanted.abs()


def test_without_noise_velocities_and_readout_are_the_truth() -> None:
    scene = made(noise=0.0)
    held = {"fixed_points": torch.arange(25) < HELD}
    found = solve(scene._replace(velocity=torch.zeros(4, 6, **DOUBLE)), free=ALL, **held)
    assert found.converged
    close(found.x.velocity, scene.velocity, 1e-6)
    close(found.x.world_to_camera, scene.world_to_camera, 1e-8)
    twice = solve(scene._replace(times=0.5 * scene.times), free=("poses", "points", "readout"), **held)
    assert twice.converged
    close(twice.x.readout, torch.full((1,), 2.0, **DOUBLE), 1e-7)


def test_where_the_worlds_origin_is_does_not_matter() -> None:
    scene, place = made(), torch.tensor([300.0, -200, 500], **DOUBLE)
    moved = scene._replace(world_to_camera=se3.about(scene.world_to_camera, -place), points3d=scene.points3d + place)
    a, b = (solve(s, free=ALL, fixed_points=torch.arange(25) < HELD) for s in (scene, moved))
    assert a.converged
    assert b.converged
    close(a.cost, b.cost, 1e-9 * float(a.cost))
    close(a.x.velocity, b.x.velocity, 1e-6)
    close(a.x.points3d + place, b.x.points3d, 1e-6)


def test_images_taken_at_once_are_those_of_any_bundle() -> None:
    scene = made(readout=0.0)
    found = solve(scene, free=("poses", "points"))
    plain = {n: t for n, t in start(scene).items() if n not in ("times", "velocity")}
    alone = bundle(**plain)
    assert found.converged
    close(found.cost, alone.cost, 1e-12 * float(alone.cost))


@pytest.mark.parametrize(("case", "freedom"), [("velocities", 7), ("known velocities", 6), ("all with a prior", 6)])
def test_a_known_speed_is_a_scale(case: str, freedom: int) -> None:
    scene = made()
    found = solve(scene, **case_of(scene, case))
    assert found.converged
    assert found.task.freedom(found.state) == freedom


@pytest.mark.slow
def test_a_readout_time_costs_little() -> None:
    """Errors of poses against a global shutter with the same noise, and against ignoring it."""
    held = {"fixed_points": torch.arange(60) < HELD}
    errors = []
    for seed in range(8):
        rolling, still = (
            made_rolling(6, 60, torch.Generator().manual_seed(50 + seed), readout=r) for r in (0.03, 0.0)
        )  # fmt: skip
        ignored = {"times": None, "velocity": None}
        runs = ((still, ignored), (rolling, {}), (rolling, ignored))
        found = [solve(s, **o, **held) for s, o in runs]
        assert all(f.converged for f in found)
        turns = [se3.rotation_angle(f.x.world_to_camera[:, :3, :3] @ s.world_to_camera[:, :3, :3].mT)
                 for f, (s, _) in zip(found, runs, strict=True)]  # fmt: skip
        errors.append([turn.square().mean() for turn in turns])
    still_error, error, ignored_error = torch.tensor(errors).mean(0).sqrt().tolist()
    assert error < 1.2 * still_error
    assert ignored_error > 5 * still_error


def test_wrong_matches_are_borne() -> None:
    """With a redescending kernel points settle by themselves, each with the times of its own observations."""
    scene = made_rolling(5, 60, torch.Generator().manual_seed(4))
    wrong = torch.rand(len(scene.points2d), 1, generator=torch.Generator().manual_seed(5), **DOUBLE) < 0.15
    off = 60 * normal(len(wrong), 2, seed=6)
    held = {"fixed_points": torch.arange(60) < HELD, "kernel": geman_mcclure(2.0)}
    found = solve(scene._replace(points2d=scene.points2d + wrong * off), **held)
    assert found.converged
    close(found.x.world_to_camera, scene.world_to_camera, 2e-2)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "velocity alone": ({"times": None}, "must come with times"),
    "free without times": ({"times": None, "velocity": None, "free": ALL}, "must come with times"),
    "times": ({"times": torch.zeros(3, **DOUBLE)}, "times must have shape"),
    "velocity": ({"velocity": torch.zeros(3, 6, **DOUBLE)}, "velocity must have shape"),
    "prior": ({"prior": Prior(velocity=torch.zeros(4, 6, **DOUBLE))}, "velocity_weights"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_named(wrong: str) -> None:
    options, said = WRONG[wrong]
    with pytest.raises(ValueError, match=said):
        solve(made(), **options)
