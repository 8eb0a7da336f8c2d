"""What must not change what `bundle` finds: orders, labels, units, weights as copies, precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from geometry import Prior, cauchy, huber, se3
from tests.geometry.bundle_adjustment.scenes import (
    ALL,
    assert_same,
    assert_same_gradients,
    keep_only,
    make_tracks,
    relative,
    with_gradient,
)
from tests.numbers import DOUBLE, close

OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "intrinsics": {"free": ALL},
    "robust, in tensors": {"kernel": lambda s: 4 * torch.log1p(s / 4), "free": (*ALL[:2], "f")},
    "iterative": {"solver": "iterative", "kernel": huber(1.0)},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIONS)
def test_the_order_of_observations_does_not_matter(case: str) -> None:
    tracks = make_tracks(5, 20, cameras=2)
    order = torch.randperm(len(tracks.points2d), generator=torch.Generator().manual_seed(1))
    moved = keep_only(tracks, order)
    (a, ga), (b, gb) = with_gradient(moved, **OPTIONS[case]), with_gradient(tracks, **OPTIONS[case])
    assert_same(a, b)
    assert_same_gradients(ga, {n: g[order] if n != "K" else g for n, g in gb.items()})


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIONS)
def test_labels_of_views_and_points_do_not_matter(case: str) -> None:
    """But for the first view, which the gauge fixes, and the coordinate that fixes the scale."""
    tracks = make_tracks(5, 20, cameras=2)
    g = torch.Generator().manual_seed(1)
    views, points = (
        torch.cat([torch.zeros(1).long(), 1 + torch.randperm(4, generator=g)]),
        torch.randperm(20, generator=g),
    )
    moved = replace(
        tracks,
        camera_index=views.argsort()[tracks.camera_index],
        point_index=points.argsort()[tracks.point_index],
        world_to_camera=tracks.world_to_camera[views],
        points3d=tracks.points3d[points],
        K=tracks.K.flip(0),
        distortion=tracks.distortion.flip(0),
        intrinsics_index=1 - tracks.intrinsics_index[views],
    )
    a, b = moved.solve(**OPTIONS[case]), tracks.solve(**OPTIONS[case])
    close(a.x.points3d, b.x.points3d[points], 1e-9)
    close(a.x.world_to_camera, b.x.world_to_camera[views], 1e-9)
    assert relative(a.x.K.flip(0), b.x.K) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIONS)
def test_weight_zero_is_absent(case: str) -> None:
    tracks = make_tracks(5, 20, cameras=2)
    absent = torch.arange(len(tracks.points2d)) % 7 == 3
    weights = (~absent).double()[:, None].expand(-1, 2)
    wild = replace(tracks, points2d=torch.where(absent[:, None], 1e6, tracks.points2d))
    a, ga = with_gradient(wild, weights=weights, **OPTIONS[case])
    b, gb = with_gradient(keep_only(tracks, ~absent), **OPTIONS[case])
    assert_same(a, b, 1e-12)
    assert not ga["points2d"][absent].any()
    assert not ga["weights"][absent].any()
    assert_same_gradients({n: g[~absent] if n != "K" else g for n, g in ga.items()}, gb, 1e-10)


def test_one_component_of_weight_zero() -> None:
    """Only u is seen: where v lies does not matter."""
    tracks = make_tracks(5, 20, seen=1.0)
    weights = torch.ones_like(tracks.points2d)
    weights[::5, 1] = 0
    elsewhere = tracks.points2d.clone()
    elsewhere[::5, 1] += 300
    a, ga = with_gradient(replace(tracks, points2d=elsewhere), weights=weights)
    b, gb = with_gradient(tracks, weights=weights)
    assert_same(a, b, 1e-12)
    assert_same_gradients(ga, gb, 1e-10)
    assert not ga["points2d"][::5, 1].any()


@pytest.mark.parametrize("case", ["fixed", "intrinsics"])  # a kernel tells one of double weight from two
def test_a_weight_is_the_root_of_the_number_of_copies(case: str) -> None:
    tracks = make_tracks(5, 20, cameras=2)
    copies = 1 + torch.arange(len(tracks.points2d)) % 3
    each = torch.arange(len(copies)).repeat_interleave(copies)
    assert_same(
        keep_only(tracks, each).solve(**OPTIONS[case]), tracks.solve(weights=copies.double().sqrt(), **OPTIONS[case])
    )


def test_the_unit_of_pixels_does_not_matter() -> None:
    tracks, s = make_tracks(5, 20), 0.01
    K = tracks.K.clone()
    K[:, :2] *= s
    small = replace(tracks, points2d=s * tracks.points2d, K=K)
    weights = torch.full((len(small.points2d),), 1 / s, **DOUBLE)
    for kernel in (None, cauchy(1.0)):
        a, b = small.solve(weights=weights, free=ALL, kernel=kernel), tracks.solve(free=ALL, kernel=kernel)
        close(a.cost, b.cost, 1e-9)
        close(a.x.points3d, b.x.points3d, 1e-9)
        assert relative(a.x.K[:, 0, 0] / s, b.x.K[:, 0, 0]) < 1e-9


def test_float32_is_solved_in_float64() -> None:
    tracks = make_tracks(5, 20)
    names = ("points2d", "world_to_camera", "points3d", "K", "distortion")
    single = replace(tracks, **{n: getattr(tracks, n).float() for n in names})
    double = replace(single, **{n: getattr(single, n).double() for n in names})
    (a, ga), (b, gb) = with_gradient(single, free=ALL), with_gradient(double, free=ALL)
    assert a.converged
    for found, expected in zip((*a.x[:4], *ga.values(), a.cost), (*b.x[:4], *gb.values(), b.cost), strict=True):
        assert found.dtype == torch.float32
        assert relative(found, expected.float()) < 3e-6


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("away", [0.0, 1e3, 1e6, 1e8])
def test_where_the_origin_lies_and_what_the_unit_is(away: float, unit: float) -> None:
    """Far away the coordinates themselves are rounded, by a part of 1e-16 of the distance."""
    tracks = make_tracks(5, 20, cameras=2)
    shift = away * torch.tensor([1.0, 0.5, -0.2], **DOUBLE)
    pose = tracks.world_to_camera.clone()
    pose[:, :3, 3] *= unit
    moved = replace(tracks, points3d=unit * (tracks.points3d + shift), world_to_camera=se3.about(pose, -unit * shift))
    found, gradients = [], []
    for one, size, place in ((moved, unit, shift), (tracks, 1.0, 0 * shift)):
        leaf = one.points2d.clone().requires_grad_()
        solution = replace(one, points2d=leaf).solve()
        points = solution.x.points3d / size - place
        found.append((solution, points.detach()))
        gradients.append(torch.autograd.grad(points.pow(3).sum(), leaf)[0])
    (a, points_a), (b, points_b) = found
    rounding = 1e-9 + 1e-15 * away
    assert a.converged
    close(a.cost, b.cost, rounding * float(b.cost))
    close(points_a, points_b, 100 * rounding)
    assert relative(gradients[0], gradients[1]) < 100 * rounding


@pytest.mark.parametrize("gauge", ["fixed", "free"])
@pytest.mark.parametrize("known", ["fixed points", "fixed poses", "prior", "points alone"])
def test_what_is_fixed_or_known_moves_with_the_origin(known: str, gauge: str) -> None:
    """As in UTM coordinates, 5,000 km from their origin."""
    tracks = make_tracks(5, 20)
    shift = torch.tensor([5e5, 5e6, -3e2], **DOUBLE)
    costs = []
    for place in (0 * shift, shift):
        poses = se3.about(tracks.world_to_camera, -place), se3.about(tracks.truth.world_to_camera, -place)
        moved = replace(tracks, world_to_camera=poses[0], points3d=tracks.points3d + place)
        weights = torch.full((5, 6), 10.0, **DOUBLE), torch.full((20, 3), 5.0, **DOUBLE)
        options: dict[str, Any] = {
            "fixed points": {"fixed_points": torch.arange(20) < 2},
            "fixed poses": {"fixed_poses": torch.arange(5) < 1},
            "prior": {"prior": Prior(poses[1], weights[0], tracks.truth.points3d + place, weights[1])},
            "points alone": {"free": ("points",)},
        }
        found = moved.solve(gauge=gauge, **options[known])
        assert found.converged
        assert not found.behind.any()
        costs.append(found.cost)
    close(costs[1], costs[0], 0.0, 1e-6)  # fixed coordinates are rounded to 1e-9


def test_far_away_in_float32() -> None:
    """The start is rounded to a part of 1e-7 of the distance, the optimum found is the same."""
    tracks, costs = make_tracks(5, 20), []
    for away in (0.0, 1e4):
        place = away * torch.tensor([1.0, 0.5, -0.2], **DOUBLE)
        moved = replace(
            tracks, world_to_camera=se3.about(tracks.world_to_camera, -place), points3d=tracks.points3d + place
        )
        names = ("points2d", "world_to_camera", "points3d", "K", "distortion")
        found = replace(moved, **{n: getattr(moved, n).float() for n in names}).solve()
        assert found.converged
        assert found.x.points3d.dtype == torch.float32
        costs.append(found.cost)
    close(costs[1], costs[0], 0.0, 1e-5)
