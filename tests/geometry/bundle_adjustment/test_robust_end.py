"""How a bundle with a robust kernel ends: points settle by themselves, and the exact Hessian takes over."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from geometry import Status
from geometry.bundle_adjustment.points import settle
from geometry.bundle_adjustment.problem import BundleData, BundleProblem, State
from geometry.robust import barron, cauchy, geman_mcclure, huber
from tests.geometry.bundle_adjustment.scenes import Tracks, make_tracks, system_of
from tests.numbers import close

KERNELS = {
    "huber": huber(1.0),
    "cauchy": cauchy(1.0),
    "geman_mcclure": geman_mcclure(2.0),
    "barron": barron(-2.0, 1.0),
    "own": lambda s: 4 * torch.log1p(s / 4),
}


def short_tracks(seed: int, V: int = 10, N: int = 100, wrong: float = 0.2) -> Tracks:
    """Points that three views see or so, 2 px of noise, some observations wrong by tens of pixels; the start of least
    squares, as a mapper leaves it."""
    tracks = make_tracks(V, N, cameras=1, noise=2.0, seen=0.3, off=0.3, seed=seed)
    g = torch.Generator().manual_seed(seed)
    M = len(tracks.points2d)
    bad = torch.rand(M, generator=g) < wrong
    moved = tracks.points2d + 20 * bad[:, None] * torch.randn(M, 2, generator=g, dtype=torch.float64)
    start = tracks.solve()
    return replace(
        tracks, points2d=moved, world_to_camera=start.x.world_to_camera, points3d=start.x.points3d, K=start.x.K
    )


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_ends_soon(kernel: str) -> None:
    """Gauss-Newton's steps alone take hundreds here: they fall short along the valleys of points."""
    taken = []
    for seed in range(2 if kernel == "own" else 4):  # one that runs in tensors takes ten times as long
        found = short_tracks(seed).solve(kernel=KERNELS[kernel], free=("poses", "points", "f"))
        assert found.converged, (seed, found.message)
        taken.append(int(found.steps))
    assert max(taken) < 60, taken


def test_callers_see_the_cost_fall_and_max_steps_is_kept() -> None:
    told: list[tuple[int, float]] = []
    tracks = short_tracks(0)
    tracks.solve(kernel=cauchy(1.0), callback=lambda step, cost: told.append((step, cost)))
    steps, costs = zip(*told, strict=True)
    assert list(steps) == list(range(len(steps)))
    assert all(after <= before for before, after in pairwise(costs))
    few: list[int] = []
    stopped = tracks.solve(kernel=cauchy(1.0), max_steps=2, callback=lambda step, cost: few.append(step))
    assert few == [0, 1, 2]
    assert stopped.status == Status.STALLED


def settled(tracks: Tracks, kernel: str = "cauchy") -> tuple[BundleProblem, BundleData, State, State]:
    problem, data, state = system_of(tracks, kernel=KERNELS[kernel])
    return problem, data, state, settle(problem, data, state, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_point_ends_in_a_minimum_of_its_own(kernel: str) -> None:
    problem, data, state, found = settled(short_tracks(1), kernel)
    assert torch.equal(found.world_to_camera, state.world_to_camera)
    before, after = (problem.point_costs(problem.compose(x, data.given), data) for x in (state, found))
    assert (after <= before).all()
    equations = problem.linearize(found, data, exact=True)
    free = ~problem.layout.held
    assert (torch.linalg.eigvalsh(equations.V[free])[:, 0] > 0).all()
    newton = torch.linalg.solve(equations.V[free], equations.gradient.points[free])
    decrement = 0.5 * (newton * equations.gradient.points[free]).sum(-1)
    assert (decrement <= 1e-8 * after[free]).all()


def test_a_point_settles_where_it_does_alone() -> None:
    problem, data, state, found = settled(short_tracks(2))
    layout = problem.layout
    for point in (~layout.held).nonzero().flatten()[::9].tolist():
        own = layout.point == point
        only = replace(problem, layout=replace(layout, view=layout.view[own], point=layout.point[own]))
        seen = data._replace(points2d=data.points2d[own], weights=data.weights[own])
        alone = settle(only, seen, state, torch.zeros((), dtype=torch.float64))
        close(alone.points3d[point], found.points3d[point], 1e-12)


def test_held_points_stay() -> None:
    tracks = short_tracks(3)
    held = torch.arange(len(tracks.points3d)) % 2 == 0
    problem, data, state = system_of(tracks, kernel=KERNELS["cauchy"], fixed_points=held)
    found = settle(problem, data, state, torch.zeros((), dtype=torch.float64))
    assert torch.equal(found.points3d[held], state.points3d[held])
    assert not torch.equal(found.points3d[~held], state.points3d[~held])
