"""Bundles of bearings: directions that any central camera measures, behind it as well."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.made.rigs import made_rig
from geometry import BundleSolution, bundle, geman_mcclure, huber, se3, unproject
from tests.geometry.bundle_adjustment.scenes import (
    assert_derivatives,
    make_tracks,
    relative,
)
from tests.numbers import DOUBLE, close, normal

V, N = 4, 14


def panoramas(noise: float = 2e-3) -> dict[str, Any]:
    """Cameras amid the points they see in all directions, and a start some percent off."""
    points = 5 * torch.nn.functional.normalize(normal(N, 3, seed=1), dim=1) + 0.5 * normal(N, 3, seed=2)
    poses = se3.make(se3.exp(normal(V, 3, seed=3)), 0.8 * normal(V, 3, seed=4))
    view, point = torch.cartesian_prod(torch.arange(V), torch.arange(N)).unbind(1)
    p = se3.transform(poses, points[None].expand(V, -1, -1)).flatten(0, 1)
    length = 0.5 + normal(len(p), 1, seed=5).abs()
    bearings = length * torch.nn.functional.normalize(
        torch.nn.functional.normalize(p, dim=1) + noise * normal(len(p), 3, seed=6), dim=1
    )
    assert (bearings[:, 2] < 0).any()
    return {
        "points2d": bearings, "camera_index": view, "point_index": point,
        "world_to_camera": se3.retract(poses, 0.02 * normal(V, 6, seed=7)),
        "points3d": points + 0.05 * normal(N, 3, seed=8), "K": None, "model": "ray",
        "weights": 200 + 100 * normal(len(p), seed=9).abs(),
    }  # fmt: skip


def solve(**options: Any) -> BundleSolution:
    return bundle(**panoramas() | options)


def angles(given: dict[str, Any], x: Any) -> Tensor:
    p = (x.world_to_camera[given["camera_index"], :3, :3] @ x.points3d[given["point_index"], :, None])[..., 0]
    p = p + x.world_to_camera[given["camera_index"], :3, 3]
    b = given["points2d"]
    return torch.atan2(torch.linalg.cross(b, p).norm(dim=1), (b * p).sum(1))


def test_the_cost_is_of_angles_and_no_point_lies_behind() -> None:
    given = panoramas()
    for found in (solve(max_steps=0), solve()):
        wanted = 0.5 * (given["weights"] * angles(given, found.x)).square().sum()
        close(found.cost[0], wanted, 1e-10 * float(wanted))
        assert not found.behind.any()
    assert found.converged


def equations_are_derivatives(task: Any) -> None:
    assert task.problem._compiled(task.data)
    assert len(task.problem.frame) == len(task.problem.layout.rows)
    assert_derivatives(task, 1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"kernel": huber(1.0), "times": 0.1 * normal(V * N), "velocity": normal(V, 6)}]
)
def test_normal_equations_are_derivatives_of_the_cost(options: dict[str, Any]) -> None:
    equations_are_derivatives(solve(max_steps=0, **options).task)


def test_normal_equations_of_rigs() -> None:
    generator = torch.Generator().manual_seed(2)
    rig = made_rig(3, 2, 40, generator).moved(generator, 0.02)
    sensor = rig.sensor_index[rig.camera_index]
    rays = unproject(rig.points2d[:, None], rig.K[sensor], rig.distortion[sensor]).directions[:, 0]
    given = rig._asdict() | {"points2d": rays, "K": None, "distortion": None, "model": "ray"}
    equations_are_derivatives(bundle(**given, free=("poses", "points", "sensors"), max_steps=0).task)


@pytest.mark.slow
@pytest.mark.parametrize("gauge", ["fixed", "free"])
@pytest.mark.parametrize("name", ["points2d", "weights"])
def test_gradients_agree_with_finite_differences(
    name: str, gauge: str, central_difference: Callable[..., Tensor]
) -> None:
    given = panoramas() | {"gauge": gauge}
    best = bundle(**given).x
    given |= {"world_to_camera": best.world_to_camera, "points3d": best.points3d}
    direction = {"points2d": 0.1, "weights": 100.0}[name] * normal(*given[name].shape, seed=11)

    def moved(step: Tensor) -> Tensor:
        x = bundle(**{**given, name: given[name] + step * direction}).x
        return x.points3d.sum() + x.world_to_camera[-1, :3].sum()

    step = torch.zeros((), **DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(moved(step), step)
    wanted = central_difference(lambda h: moved(torch.tensor(h, **DOUBLE)).detach(), 3e-3)
    assert (slope - wanted).abs() < 1e-6 * wanted.abs()


def test_the_length_of_a_bearing_says_nothing() -> None:
    given = panoramas()
    a, b = solve(), solve(points2d=3 * given["points2d"])
    close(a.cost, b.cost, 1e-9 * float(a.cost))
    close(a.x.points3d, b.x.points3d, 1e-8)


def test_rays_of_exact_pixels_give_the_truth_back() -> None:
    tracks = make_tracks(5, 20, noise=0.0)
    index, truth = tracks.intrinsics_index[tracks.camera_index], tracks.truth.points3d
    rays = unproject(tracks.points2d[:, None], tracks.K[index], tracks.distortion[index]).directions[:, 0]
    held = torch.arange(20) < 4
    start = tracks.world_to_camera, torch.where(held[:, None], truth, tracks.points3d)
    found = bundle(rays, tracks.camera_index, tracks.point_index, *start, None, model="ray", fixed_points=held)
    assert found.converged
    close(found.x.points3d, truth, 1e-8)
    close(found.x.world_to_camera, tracks.truth.world_to_camera, 1e-8)


def test_wrong_directions_are_borne() -> None:
    given = panoramas()
    off = torch.zeros(V * N, 3, **DOUBLE)
    off[torch.tensor([3, 17, 30, 44])] = 2.0
    held = {"kernel": geman_mcclure(3.0)}
    found, right = solve(points2d=given["points2d"] + off, **held), solve(**held)
    assert found.converged
    assert relative(found.x.world_to_camera, right.x.world_to_camera) < 2e-2


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "K": ({"K": torch.eye(3, **DOUBLE)}, "K and distortion must be None"),
    "pixels": ({"points2d": torch.zeros(V * N, 2, **DOUBLE)}, r"shape \(M,3\)"),
    "length zero": ({"points2d": torch.zeros(V * N, 3, **DOUBLE)}, "length above zero"),
    "focal length": ({"free": ("poses", "f")}, "no intrinsics"),
    "pixels without K": ({"model": "radtan"}, "K must be"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_named(wrong: str) -> None:
    options, said = WRONG[wrong]
    with pytest.raises(ValueError, match=said):
        solve(**options)
