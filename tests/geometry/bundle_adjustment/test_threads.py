"""What threads of a CUDA device would do for a bundle, as plain Python: equal to the CPU's kernels in every option."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.made.rigs import made_rig
from experiments.benchmarks.places import Launches, simulated_grid
from geometry import barron, bundle, cauchy, geman_mcclure, huber
from geometry.bundle_adjustment import cuda, products, sums
from geometry.bundle_adjustment.equations import NormalEquations
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.problem import BundleData, BundleProblem, State
from tests.geometry.bundle_adjustment.scenes import Tracks, keep_only, make_tracks, system_of, with_gradient
from tests.numbers import DOUBLE, close, normal

KERNELS = {
    "none": None, "huber": huber(1.5), "cauchy": cauchy(1.5), "geman_mcclure": geman_mcclure(4.0),
    "barron": barron(-1.0, 3.0),
}  # fmt: skip
LENSES: dict[str, dict[str, Any]] = {
    "pinhole": {"lens": 0, "free": ()},
    "own f, k1, k2": {"lens": 2, "free": ("f", "k1", "k2")},
    "shared, tangential": {"lens": 5, "cameras": 1, "free": ("fx", "fy", "p1", "p2", "k3")},
    "twelve coefficients": {"lens": 12, "cameras": 2, "free": ("cx", "cy")},
    "fisheye": {"model": "fisheye", "lens": 4, "cameras": 2, "free": ("f", "k1", "k4")},
}
SCENES = ("all free", "fixed views and points", "a point seen once", "a view of nothing", "two views of four")


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated_grid("cuda")  # importing it makes constants
    monkeypatch.setattr(sums, "grid", simulated_grid)


@contextmanager
def on_device() -> Iterator[None]:
    """Whatever lies on the CPU is computed as on a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "on_device", lambda _: True)
        yield


def scene(kind: str, lens: str) -> tuple[Tracks, dict[str, Any]]:
    """Tracks and options of `bundle`; one observation has weight zero, and one component of another."""
    shape = dict(LENSES[lens])
    options: dict[str, Any] = {"free": ("poses", "points", *shape.pop("free"))}
    tracks = make_tracks(2, 4, seen=1.0, **shape) if kind == "two views of four" else make_tracks(4, 15, **shape)
    V, N, M = len(tracks.world_to_camera), len(tracks.points3d), len(tracks.points2d)
    weights = 0.5 + normal(M, 2, seed=5).abs()
    if kind != "two views of four":
        weights[3], weights[5, 0] = 0.0, 0.0
    if kind == "fixed views and points":
        options |= {"fixed_poses": torch.arange(V) < 2, "fixed_points": torch.arange(N) % 3 == 0}
    elif kind == "a point seen once":
        keep = (tracks.point_index != 3) | (tracks.camera_index == 1)
        tracks, weights = keep_only(tracks, keep), weights[keep]
        options["fixed_points"] = torch.arange(N) == 3
    elif kind == "a view of nothing":
        keep = tracks.camera_index != 2
        tracks, weights = keep_only(tracks, keep), weights[keep]
    return tracks, options | {"weights": weights}


def system(kind: str, lens: str, kernel: str = "none") -> tuple[BundleProblem, BundleData, State]:
    tracks, options = scene(kind, lens)
    problem, data, state = system_of(tracks, kernel=KERNELS[kernel], **options)
    # what some view sees is more than a thread adds up
    assert int(problem.layout.by_view.begin.diff().max()) > 1 or kind == "two views of four"
    return problem, data, state


def alike(found: Tensor, expected: Tensor) -> None:
    close(found, expected, 1e-12 * (float(expected.abs().max()) if expected.numel() else 0.0))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lens", LENSES)
def test_observations(lens: str, kernel: str, exact: bool) -> None:
    assert_observations_alike(system("all free", lens, kernel), exact)


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("kind", SCENES)
def test_observations_of_what_is_fixed_or_hardly_seen(kind: str, lens: str) -> None:
    assert_observations_alike(system(kind, lens, "huber"), exact=True)


def assert_observations_alike(made: tuple[BundleProblem, BundleData, State], exact: bool) -> None:
    problem, data, state = made
    with torch.no_grad():
        costs = problem.point_costs(problem.compose(state, data.given), data)
        expected = problem.linearize(state, data, exact=exact)
        with on_device():
            found_costs = problem.point_costs(problem.compose(state, data.given), data)
            found = problem.linearize(state, data, exact=exact)
    alike(found_costs, costs)
    alike(found.cost, expected.cost)
    alike(found.gradient.cameras, expected.gradient.cameras)
    alike(found.gradient.points, expected.gradient.points)
    for f, e in zip(found[2:], expected[2:], strict=True):
        alike(f, e)
        assert f.shape[-1] == 3 or torch.equal(f, f.mT)


def equations(kind: str, lens: str) -> tuple[NormalEquations, Tensor, Layout]:
    """Normal equations, V^-1 as `Schur` makes it, layout."""
    problem, data, state = system(kind, lens)
    found = problem.linearize(state, data)
    V_inverse = torch.linalg.inv(found.V + torch.eye(3, **DOUBLE))
    V_inverse[problem.layout.held] = 0
    return found, V_inverse, problem.layout


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("kind", SCENES)
def test_products(kind: str, lens: str, several: int) -> None:
    (_, _, U, W, _), V_inverse, layout = equations(kind, lens)
    points, cameras = normal(len(layout.held), 3, several, seed=1), normal(layout.size, several, seed=2)
    motions = normal(len(layout.rows), W.shape[1], 7, seed=3)
    alike(cuda.couple_back(W, cameras, layout), products.couple_back(W, cameras, layout))
    alike(cuda.project_blocks(W, motions, layout), products.project_blocks(W, motions, layout))
    own = products.own_blocks(W, V_inverse, layout)
    expected = (
        layout.from_views(U @ layout.to_views(cameras)),
        products.couple(W, points, layout),
        products.schur_product(W, V_inverse, cameras, layout),
        products.reduce(U, W, V_inverse, layout),
    )
    with on_device():
        alike(layout.from_views(U @ layout.to_views(cameras)), expected[0])
        alike(products.couple(W, points, layout), expected[1])
        alike(products.schur_product(W, V_inverse, cameras, layout), expected[2])
        S = products.reduce(U, W, V_inverse, layout)
        alike(S, expected[3])
        assert torch.equal(S, S.T) or not torch.equal(U, U.mT)
        found = products.own_blocks(W, V_inverse, layout)
    alike(found, own)
    assert torch.equal(found, found.mT)


def test_rows_of_the_reduced_matrix_that_many_views_share() -> None:
    """What adds to a row is cut into several runs where intrinsics are shared, or views move in groups."""
    (_, _, U, W, _), V_inverse, layout = equations("all free", "shared, tangential")
    groups = torch.arange(len(layout.rows)) // 2
    rows = 7 * groups[:, None] + torch.arange(7)
    between = Layout(layout.view, layout.point, rows, 7 * int(groups.max() + 1), (), layout.held)
    motions = normal(len(rows), W.shape[1], 7, seed=3)
    coarse = motions.mT @ U @ motions, products.project_blocks(W, motions, layout)
    for by, blocks in ((layout, (U, W)), (between, coarse)):
        expected = products.reduce(*blocks, V_inverse, by)
        by.__dict__["by_row_and_observation"] = sums.grouped(by.rows[by.view].flatten(), by.size, 5)
        with on_device():
            alike(products.reduce(*blocks, V_inverse, by), expected)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_groups_are_cut_into_runs(most: int) -> None:
    group = torch.tensor([2, 0, 5, 2, 2, 0, 5, 2, 4])
    groups = sums.grouped(group, 5, most)  # 1 and 3 are empty, 5 is none
    for g in range(5):
        runs = [
            groups.order[groups.bounds[k] : groups.bounds[k + 1]].tolist()
            for k in range(int(groups.begin[g]), int(groups.begin[g + 1]))
        ]
        assert [i for run in runs for i in run] == (group == g).nonzero().flatten().tolist()
        assert all(len(run) == most for run in runs[:-1])
        assert not runs or 1 <= len(runs[-1]) <= most
    assert len(groups.bounds) - 1 == int(groups.begin[-1])


@pytest.mark.parametrize("kind", ["mountings", "rows one after the other", "bearings"])
def test_rigs(kind: str) -> None:
    """Views that share poses and mountings: rows of the reduced matrix are those of several views."""
    generator = torch.Generator().manual_seed(1)
    rig = made_rig(3, 2, 40, generator).moved(generator, 0.02)
    given: dict[str, Any] = {**rig._asdict(), "free": ("poses", "points", "sensors", "f", "k1")}
    if kind == "rows one after the other":
        times = 0.1 * (rig.points2d[:, 1] / 480 - 0.5)
        given |= {"times": times, "velocity": normal(3, 6), "free": ("poses", "points", "velocities", "readout")}
    elif kind == "bearings":
        rays = torch.nn.functional.pad((rig.points2d - rig.points2d.new_tensor([320, 240])) / 500, (0, 1), value=1.0)
        given |= {"points2d": rays, "K": None, "distortion": None, "model": "ray", "free": ("poses", "points")}
    task = bundle(**given, max_steps=0).task
    problem, data = task.problem, task.data
    state = problem.start(data.given)
    assert_observations_alike((problem, data, state), exact=True)
    with torch.no_grad():
        found = problem.linearize(state, data)
        V_inverse = torch.linalg.inv(found.V + torch.eye(3, **DOUBLE))
        V_inverse[problem.layout.held] = 0
        blocks = found.U, found.W, V_inverse, problem.layout
        expected = products.reduce(*blocks)
        with on_device():
            alike(products.reduce(*blocks), expected)
        close(products._reduce_in_tensors(*blocks), expected, 1e-12 * float(expected.abs().max()))


def test_nothing_is_observed() -> None:
    problem, data, state = system("all free", "own f, k1, k2")
    none = torch.zeros(0, dtype=torch.long)
    layout = replace(problem.layout, view=none, point=none)
    empty = replace(problem, layout=layout), data._replace(points2d=data.points2d[:0], weights=data.weights[:0]), state
    assert_observations_alike(empty, exact=True)
    W, V_inverse = torch.zeros(0, 9, 3, **DOUBLE), normal(len(layout.held), 3, 3)
    U, cameras = normal(len(layout.rows), 9, 9), normal(layout.size, 2)
    expected = products.reduce(U, W, V_inverse, layout)
    with on_device():
        alike(products.reduce(U, W, V_inverse, layout), expected)
        assert not products.schur_product(W, V_inverse, cameras, layout).any()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_bundles(solver: str) -> None:
    """The whole descent, and its gradient, in kernels: what is found is what the CPU finds."""
    tracks = make_tracks(3, 8, cameras=1, noise=0.2, seen=1.0)
    options: dict[str, Any] = {"free": ("poses", "points", "f", "k1"), "kernel": huber(1.0), "solver": solver}
    expected, gradients = with_gradient(tracks, **options)
    assert expected.converged
    with on_device():
        found, found_gradients = with_gradient(tracks, **options)
    assert found.converged
    close(found.cost, expected.cost, 0.0, 1e-12)
    for f, e in zip(found.x[:4], expected.x[:4], strict=True):
        close(f, e, 1e-9 * float(e.detach().abs().max()))
    for name, g in gradients.items():
        assert (found_gradients[name] - g).norm() <= 1e-7 * g.norm(), name


def test_linearisations_and_products_are_a_few_launches_that_nothing_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, data, state = system("fixed views and points", "own f, k1, k2", "huber")
    layout, kernels = problem.layout, Counter[str]()

    class Counted:
        @staticmethod
        def run(name: str, *rest: Any) -> None:
            kernels[name] += 1
            simulated_grid("cuda").run(name, *rest)

    monkeypatch.setattr(sums, "grid", lambda team: Counted)

    def once() -> None:
        _, _, U, W, V = problem.linearize(state, data)
        problem.point_costs(problem.compose(state, data.given), data)
        cameras, points = normal(layout.size, 1), normal(len(layout.held), 3, 1)
        products.couple(W, points, layout)
        products.couple_back(W, cameras, layout)
        products.schur_product(W, V, cameras, layout)
        products.own_blocks(W, V, layout)
        products.project_blocks(W, normal(len(layout.rows), 9, 7), layout)
        products.reduce(U, W, V, layout)

    with torch.no_grad(), on_device():
        once()  # what belongs to the layout is found once
        kernels.clear()
        with Launches() as counted:
            once()
    assert counted.waits == 0
    assert not {"bincount", "repeat_interleave", "_unique2"} & counted.names.keys()
    assert kernels == {
        "bundle_linearize_point": 1, "bundle_linearize_view": 1, "bundle_observe": 1, "bundle_couple": 2,
        "bundle_couple_back": 1, "bundle_eliminate": 1, "bundle_own_blocks": 1, "bundle_project_blocks": 1,
        "bundle_reduce_rows": 1, "bundle_add_blocks": 1,
        # of gradient and U, of the gradient's shared rows, of two products twice, of own blocks, of rows of S
        "bundle_add_up": 8,
    }  # fmt: skip
