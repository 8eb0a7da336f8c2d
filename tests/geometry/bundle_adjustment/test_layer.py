"""What `bundle` finds: against other solvers and real files, where little is determined, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.csgraph
import torch
from torch import Tensor
from torch.func import jacfwd

from datasets.reconstructions.bal import read_bal
from datasets.reconstructions.libmv import read_libmv
from datasets.reconstructions.model import Reconstruction
from geometry import (
    BundleSolution,
    SolverError,
    Status,
    align_similarity,
    bundle,
    cauchy,
    minimize,
    project,
    se3,
)
from geometry.bundle_adjustment.layout import components
from tests.geometry.bundle_adjustment.scenes import (
    ALL,
    assert_same,
    dense_problem,
    keep_only,
    make_tracks,
    relative,
    still_steps,
    two_scenes,
    with_gradient,
)
from tests.numbers import DOUBLE, close

# --- the optimum -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("lens", "cameras"), [(False, None), (True, None), (True, 2), (True, 1)])
def test_optimum_is_that_of_a_dense_problem(lens: bool, cameras: int | None) -> None:
    tracks = make_tracks(4, 15, cameras=cameras)
    weights = 0.5 + torch.rand(len(tracks.points2d), 2, generator=torch.Generator().manual_seed(1), **DOUBLE)
    found = tracks.solve(weights=weights, free=ALL if lens else ALL[:2])
    still = still_steps(tracks.world_to_camera, found.x.world_to_camera)
    assert still[0].all()
    assert int(still.sum()) == 7
    problem, start = dense_problem(tracks, still, lens=lens)
    expected = minimize(problem, start, tracks.points2d[None], weights[None], throw=True, max_steps=200)
    poses, points, theta = expected.x
    close(found.cost, expected.cost, 1e-10)
    close(found.x.points3d, points[0], 1e-9)
    close(found.x.world_to_camera, poses[0], 1e-9)
    if lens:
        close(found.x.K[:, 0, 0], theta[0, :, 0], 1e-7)
        close(found.x.distortion, theta[0, :, 1:], 1e-9)
        close(found.x.K[:, 1, 1] / found.x.K[:, 0, 0], tracks.K[:, 1, 1] / tracks.K[:, 0, 0], 1e-14)


def test_optimum_is_scipy_s() -> None:
    tracks = make_tracks(4, 12)
    found = tracks.solve()
    problem, start = dense_problem(tracks, still_steps(tracks.world_to_camera, found.x.world_to_camera))
    data = tracks.points2d, torch.ones_like(tracks.points2d)

    def residual(step: Tensor) -> Tensor:
        return problem.residual(problem.retract(tuple(t[0] for t in start), step), *data).flatten()

    result = scipy.optimize.least_squares(
        lambda step: residual(torch.from_numpy(step)).numpy(),
        np.zeros(problem.dof),
        jac=lambda step: jacfwd(residual)(torch.from_numpy(step)).numpy(),
        xtol=1e-15, ftol=1e-15, gtol=1e-12, method="lm",
    )  # fmt: skip
    assert abs(result.cost - float(found.cost)) < 1e-10
    points = start[1][0] + torch.from_numpy(result.x[-3 * len(tracks.points3d) :]).view(-1, 3)
    close(found.x.points3d, points, 1e-6)  # scipy stops at sqrt(eps)


def test_perfect_tracks_give_the_truth_up_to_a_similarity() -> None:
    tracks = make_tracks(6, 30, noise=0.0)
    found = tracks.solve(free=ALL)
    assert found.converged
    assert found.cost < 1e-16
    similarity = align_similarity(found.x.points3d, tracks.truth.points3d)
    close(similarity.apply(found.x.points3d), tracks.truth.points3d, 1e-8)
    close(found.x.K, tracks.truth.K, 1e-6)
    close(found.x.distortion, tracks.truth.distortion, 1e-8)


def solve_file(scene: Reconstruction, **options: Any) -> tuple[BundleSolution, float]:
    costs: list[float] = []
    seen = (scene.points2d.double(), scene.camera_index, scene.point_index)
    given = (scene.world_to_camera.double(), scene.points3d.double(), scene.K.double(), scene.distortion.double())
    options |= {"intrinsics_index": scene.intrinsics_index, "callback": lambda step, cost: costs.append(cost)}
    return bundle(*seen, *given, **options), costs[0]


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "gauge"), [("dense", "fixed"), ("dense", "free"), ("iterative", "fixed")])
def test_ladybug(real_data: Callable[[str], Path], solver: str, gauge: str) -> None:
    """49 images of 7776 points; the start's cost is known from the paper's authors, the optimum from other solvers."""
    scene = read_bal(real_data("bal") / "problem-49-7776-pre.txt")
    found, start = solve_file(scene, free=ALL, solver=solver, gauge=gauge)
    assert abs(start - 850912.460681) < 1e-5
    assert found.converged
    assert found.cost <= 13344.3
    assert found.steps <= 60


def test_more_unknowns_than_residuals(real_data: Callable[[str], Path]) -> None:
    scene = read_bal(real_data("bal") / "dubrovnik-3-7-pre.txt")
    found, _ = solve_file(scene, free=ALL)
    assert Status(int(found.status)) == Status.TOO_FEW
    assert found.cost < 1e-6


@pytest.mark.slow
def test_libmv(real_data: Callable[[str], Path]) -> None:
    found, start = solve_file(read_libmv(real_data("libmv_ba") / "problem_01.bin"))
    assert found.converged
    assert abs(start - 4607.594484) < 1e-5
    assert abs(float(found.cost) - 4607.5920) < 1e-4


# --- what is free, fixed, shared -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "free",
    [("poses", "points"), ("poses",), ("points",), ("poses", "points", "f"), ("poses", "points", "fx"),
     ("poses", "points", "fy", "cx"), ("poses", "cy", "k2"), ("points", "f", "k1"), ("f", "k1", "k2"), ("k2",)],
)  # fmt: skip
def test_only_what_is_named_moves(free: tuple[str, ...]) -> None:
    tracks = make_tracks(6, 25, cameras=2)
    found = tracks.solve(free=free)
    assert found.converged
    x, places = found.x, {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}
    assert torch.equal(x.world_to_camera, tracks.world_to_camera) == ("poses" not in free)
    assert torch.equal(x.points3d, tracks.points3d) == ("points" not in free)
    assert (x.points3d != tracks.points3d).any(1).all() == ("points" in free)
    for name, (i, j) in places.items():
        moved = name in free or ("f" in free and name in ("fx", "fy"))
        assert bool((x.K[:, i, j] != tracks.K[:, i, j]).all()) == moved, name
        assert torch.equal(x.K[:, i, j], tracks.K[:, i, j]) != moved, name
    for i, name in enumerate(("k1", "k2")):
        assert torch.equal(x.distortion[:, i], tracks.distortion[:, i]) == (name not in free), name
    if "f" in free:
        close(x.K[:, 1, 1] / x.K[:, 0, 0], tracks.K[:, 1, 1] / tracks.K[:, 0, 0], 1e-14)


def test_fixed_poses_and_points_do_not_move_by_a_bit() -> None:
    tracks = make_tracks(5, 20)
    poses, points = torch.arange(5) % 2 == 1, torch.arange(20) < 4
    x = tracks.solve(fixed_poses=poses, fixed_points=points, free=ALL).x
    assert torch.equal(x.world_to_camera[poses], tracks.world_to_camera[poses])
    assert torch.equal(x.points3d[points], tracks.points3d[points])
    assert (x.world_to_camera[~poses, :3] != tracks.world_to_camera[~poses, :3]).flatten(1).any(1).all()
    assert (x.points3d[~points] != tracks.points3d[~points]).any(1).all()


@pytest.mark.parametrize("form", ["one K", "one K, index", "distortion of all"])
def test_ways_to_say_that_intrinsics_are_shared(form: str) -> None:
    tracks = make_tracks(5, 20, cameras=1)
    expected = tracks.solve(free=ALL)
    if form == "one K":
        found = replace(tracks, K=tracks.K[0]).solve(free=ALL, intrinsics_index=None)
    elif form == "one K, index":
        found = replace(tracks, K=tracks.K[0]).solve(free=ALL)
    else:
        found = replace(tracks, distortion=tracks.distortion[0]).solve(free=ALL)
    assert_same(found, expected, 1e-14)
    assert found.x.K.shape == (1, 3, 3)


def test_fixed_intrinsics_may_be_shared_or_stacked() -> None:
    tracks = make_tracks(5, 20, cameras=2)
    index = tracks.intrinsics_index
    stacked = replace(tracks, K=tracks.K[index], distortion=tracks.distortion[index], intrinsics_index=torch.arange(5))
    a, b = tracks.solve(), stacked.solve()
    for found, expected in zip(a.x[:2], b.x[:2], strict=True):
        close(found, expected, 1e-12)


def test_an_unused_camera_and_an_unseen_view_stay() -> None:
    tracks = make_tracks(5, 20, cameras=2)
    K, distortion = torch.cat([tracks.K, tracks.K[:1]]), torch.cat([tracks.distortion, tracks.distortion[:1]])
    pose = torch.cat([tracks.world_to_camera, tracks.world_to_camera[:1]])
    index = torch.cat([tracks.intrinsics_index, torch.tensor([2])])
    found = replace(tracks, K=K, distortion=distortion, world_to_camera=pose, intrinsics_index=index).solve(free=ALL)
    expected = tracks.solve(free=ALL)
    assert torch.equal(found.x.world_to_camera[5], pose[5])
    assert torch.equal(found.x.K[2], K[2])
    close(found.x.points3d, expected.x.points3d, 1e-11)


# --- what determines nothing -----------------------------------------------------------------------------------------


def test_what_determines_nothing_is_left_out() -> None:
    """A point seen once; a view of two points, one of which only one more view sees."""
    tracks = make_tracks(6, 20, seen=1.0)
    view, point = tracks.camera_index, tracks.point_index
    once, twice = (point == 7) & (view != 2), (view == 5) & (point != 3) & (point != 4)
    given = keep_only(tracks, ~once & ~twice & ~((point == 3) & (view != 5) & (view != 1)))
    view, point = given.camera_index, given.point_index
    found, gradients = with_gradient(given)
    useless = (point == 7) | (view == 5) | (point == 3)
    assert torch.equal(found.left_out, useless)
    alone, expected = with_gradient(keep_only(given, ~useless))
    assert found.converged
    for a, b in zip(found.x[:4], alone.x[:4], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(found.x.points3d[[3, 7]], given.points3d[[3, 7]])
    assert torch.equal(found.x.world_to_camera[5], given.world_to_camera[5])
    for name in ("points2d", "weights"):
        assert not gradients[name][useless].any()
        assert (gradients[name][~useless] - expected[name]).norm() < 1e-12 * expected[name].norm()
    # a view of two points is of use where its pose is fixed, a point seen once where it is
    fixed_poses, fixed_points = torch.arange(6) == 5, torch.arange(20) == 7
    assert not given.solve(fixed_poses=fixed_poses, fixed_points=fixed_points).left_out.any()


@pytest.mark.parametrize("kind", ["view", "point", "one component"])
def test_the_same_seen_twice_determines_no_more(kind: str) -> None:
    """A view of two points, a point of one view, each listed several times; a point of which two numbers are seen."""
    tracks = make_tracks(5, 20, seen=1.0)
    view, point = tracks.camera_index, tracks.point_index
    weights = torch.ones_like(tracks.points2d)
    if kind == "view":
        useless, kept = view == 2, point < 2
    elif kind == "point":
        useless, kept = point == 4, view == 1
    else:
        useless, kept = point == 4, view < 2
        weights[useless, 1] = 0
    few = (~useless | kept).nonzero().flatten()
    again = torch.cat([few, few[useless[few]], few[useless[few]]]) if kind != "one component" else few
    found = keep_only(tracks, again).solve(weights=weights[again])
    assert found.converged
    assert torch.equal(found.left_out, useless[again])
    assert_same(found, keep_only(tracks, ~useless).solve(), 1e-12)


def test_parts_that_share_nothing_are_named() -> None:
    for solver in ("dense", "iterative"):
        found = two_scenes().solve(solver=solver)
        assert Status(int(found.status)) == Status.SINGULAR
        assert found.component.tolist() == [0] * 5 + [1] * 4
        assert found.message.startswith(Status.SINGULAR.message)
        assert "2 parts that share no point" in found.message
        with pytest.raises(SolverError, match="2 parts that share no point"):
            found.raise_if_failed()
    # what is fixed places each of them, and nothing is said
    placed = two_scenes().solve(fixed_poses=torch.tensor([True, True, False, False, False, True, True, False, False]))
    assert placed.converged
    assert placed.message == Status.CONVERGED.message


def test_components_are_those_of_the_graph() -> None:
    """Against scipy's, long chains among them."""
    g = torch.Generator().manual_seed(0)
    for V, N, M in ((30, 40, 50), (200, 300, 350), (5, 5, 0)):
        view, point = torch.randint(V, (M,), generator=g), torch.randint(N, (M,), generator=g)
        for v, p in ((view, point), (torch.arange(V).repeat(2)[:-1], torch.cat([torch.arange(V), torch.arange(1, V)]))):
            size = max(N, V)
            edges = scipy.sparse.coo_array((np.ones(len(v)), (v.numpy(), V + p.numpy())), shape=(V + size, V + size))
            _, label = scipy.sparse.csgraph.connected_components(edges, directed=False)
            found = components(v, p, V, size)
            seen = torch.bincount(v, minlength=V) > 0
            assert torch.equal(found < 0, ~seen)
            pairs = {(a, b) for a, b in zip(found[seen].tolist(), label[:V][seen.numpy()].tolist(), strict=True)}
            assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
            assert sorted({a for a, _ in pairs}) == list(range(len(pairs)))


@pytest.mark.parametrize("far", [1e5, 1e9])
def test_points_at_infinity_have_no_depth(far: float) -> None:
    """Five points so far away that no parallax is seen; they still tell the cameras' rotations."""
    tracks = make_tracks(6, 40, noise=0.3, seen=1.0, seed=4)
    X = tracks.truth.points3d.clone()
    X[:5] = far * (X[:5] * torch.tensor([0.3, 0.3, 0], **DOUBLE) + torch.tensor([0.0, 0, 1], **DOUBLE))
    index = tracks.intrinsics_index
    pixels = project(X[None], tracks.truth.world_to_camera, tracks.K[index], tracks.distortion[index])
    noise = 0.3 * torch.randn(tracks.points2d.shape, generator=torch.Generator().manual_seed(2), **DOUBLE)
    start = torch.where(torch.arange(40)[:, None] < 5, 0.01 * X * 1e5 / far, tracks.points3d)
    given = replace(tracks, points2d=pixels[tracks.camera_index, tracks.point_index] + noise, points3d=start)
    found, gradients = with_gradient(replace(given, points3d=start.flip(0), point_index=39 - given.point_index))
    assert found.converged
    assert not found.undetermined[:35].any()
    assert found.undetermined[35:].any()
    assert (found.x.points3d[35:].norm(dim=1) > 100).all()
    near = keep_only(given, given.point_index >= 5)
    alone = near.solve()
    similarity = align_similarity(found.x.points3d[:35], tracks.truth.points3d.flip(0)[:35])
    error = (similarity.apply(found.x.points3d[:35]) - tracks.truth.points3d.flip(0)[:35]).norm()
    similarity = align_similarity(alone.x.points3d[5:], tracks.truth.points3d[5:])
    assert error < 1.2 * (similarity.apply(alone.x.points3d[5:]) - tracks.truth.points3d[5:]).norm()
    assert all(g.isfinite().all() for g in gradients.values())


def test_two_cameras_in_one_place() -> None:
    """Points that only a turned camera sees twice have a direction and no depth; all others are as they were."""
    tracks = make_tracks(5, 30, noise=0.3, seen=1.0)
    pose = tracks.truth.world_to_camera.clone()
    R = se3.exp(torch.tensor([0.05, -0.1, 0.02], **DOUBLE)) @ pose[0, :3, :3]
    pose[1] = se3.make(R, R @ pose[0, :3, :3].T @ pose[0, :3, 3])
    index, view, point = tracks.intrinsics_index, tracks.camera_index, tracks.point_index
    pixels = project(tracks.truth.points3d[None], pose, tracks.K[index], tracks.distortion[index])[view, point]
    keep = (point >= 6) | (view < 2)
    given = keep_only(replace(tracks, points2d=pixels, world_to_camera=pose), keep)
    fixed = torch.arange(5) < 2
    found = given.solve(fixed_poses=fixed)
    assert found.converged
    assert torch.equal(found.undetermined, torch.arange(30) < 6)
    assert found.cost < 1e-16
    # the scale of the world is not seen by two cameras in one place
    similarity = align_similarity(found.x.points3d[6:], tracks.truth.points3d[6:])
    close(similarity.apply(found.x.points3d[6:]), tracks.truth.points3d[6:], 1e-8)


def test_points_behind_a_camera_are_projected_by_the_formula() -> None:
    tracks = make_tracks(5, 30, noise=0.2, seen=1.0, lens=0)
    pose = tracks.truth.world_to_camera.clone()
    pose[0, 2, 3] -= 6.5  # among the points
    z = se3.transform(pose, tracks.truth.points3d[None])[..., 2]
    good = (z.abs() > 0.5)[tracks.camera_index, tracks.point_index]
    pixels = project(tracks.truth.points3d[None], pose, tracks.K[tracks.intrinsics_index])
    pixels = pixels[tracks.camera_index, tracks.point_index] + tracks.points2d - tracks.points2d.round()
    given = keep_only(replace(tracks, points2d=pixels, world_to_camera=pose, points3d=tracks.truth.points3d), good)
    found, gradients = with_gradient(given)
    assert found.converged
    assert torch.equal(found.behind, (z < 0)[given.camera_index, given.point_index])
    assert 0 < int(found.behind.sum()) < 20
    assert f"{int(found.behind.sum())} of {len(given.points2d)} observations see a point behind" in found.message
    assert gradients["points2d"][found.behind].any(1).all()


# --- lenses and kernels ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "lens", "free"),
    [("radtan", 0, ("f",)), ("radtan", 2, ("f", "k1", "k2")), ("radtan", 5, ("fx", "fy", "k1", "k2", "p1", "p2")),
     ("fisheye", 4, ("f", "k1", "k2"))],
)  # fmt: skip
def test_lenses_are_found(model: Any, lens: int, free: tuple[str, ...]) -> None:
    tracks = make_tracks(8, 60, model=model, lens=lens, cameras=1, noise=0.0, seen=1.0)
    start = replace(
        tracks, K=tracks.K * torch.tensor([[1.03], [1.03], [1]], **DOUBLE), distortion=0.9 * tracks.distortion
    )
    start.K[:, :, 2] = tracks.K[:, :, 2]
    if lens > 2 and "k3" not in free:
        start.distortion[:, 4 if model == "radtan" else 2 :] = tracks.distortion[:, 4 if model == "radtan" else 2 :]
    found = start.solve(free=("poses", "points", *free))
    assert found.converged
    assert relative(found.x.K, tracks.K) < 1e-8
    assert lens == 0 or relative(found.x.distortion, tracks.distortion) < 1e-7


def test_a_robust_kernel_finds_the_truth_among_outliers() -> None:
    tracks = make_tracks(8, 60, noise=0.3, seen=1.0)
    g = torch.Generator().manual_seed(4)
    wrong = torch.rand(len(tracks.points2d), generator=g) < 0.1
    gross = 80 * torch.randn(len(wrong), 2, generator=g, **DOUBLE)
    given = replace(tracks, points2d=tracks.points2d + wrong[:, None] * gross)

    def error(**options: Any) -> float:
        found = given.solve(**options)
        assert found.converged
        X = found.x.points3d
        return float((align_similarity(X, tracks.truth.points3d).apply(X) - tracks.truth.points3d).norm(dim=1).median())

    robust, plain, clean = error(kernel=cauchy(1.0)), error(), 1e-2
    assert robust < clean < 5 * clean < plain
