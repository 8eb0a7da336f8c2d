"""The stand-in for a device complains where two threads are at one place at once, and one of them writes."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.benchmarks.places import simulated_grid
from geometry.compiled.simulated.races import RaceError
from geometry.compiled.simulated_warp import vectors as team
from geometry.pose import cuda
from tests.numbers import DOUBLE


def launch(name: str, work: Callable[[int, Any], None], threads: int = 3) -> Tensor:
    """Run planted work on nine numbers."""
    numbers = torch.zeros(9, **DOUBLE)
    grid = simulated_grid(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grid.THREADS, "planted", work)
        grid.run("planted", threads, (numbers,), numbers.device)
    return numbers


@pytest.mark.parametrize("grid", ["cuda", "warp"])
def test_problems_that_keep_to_their_own_places_and_read_what_all_read(grid: str) -> None:
    def work(b: int, arguments: Any) -> None:
        (numbers,) = arguments
        if grid == "cuda" or team.member() == 0:
            numbers[b] = 1.0 + numbers[8] + numbers[b]

    assert launch(grid, work)[:4].tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("grid", ["cuda", "warp"])
@pytest.mark.parametrize("first", ["reads", "writes"])
@pytest.mark.parametrize("then", ["reads", "writes", "writes a slice"])
def test_problems_at_one_place(grid: str, first: str, then: str) -> None:
    def work(b: int, arguments: Any) -> None:
        (numbers,) = arguments
        what = first if b == 0 else then
        if what == "reads":
            assert numbers[5] == 0.0
        elif what == "writes":
            numbers.reshape(3, 3)[1, 2] = 0.0
        else:
            numbers[4:7] = 0.0

    if first == then == "reads":
        launch(grid, work, 2)
        return
    with pytest.raises(RaceError, match=r"threads? [01]"):
        launch(grid, work, 2)


@pytest.mark.parametrize("between", ["nothing", "a shuffle", "a meeting"])
@pytest.mark.parametrize("order", ["write, then read", "read, then write", "write, then write"])
def test_a_team_has_to_meet_between_what_one_writes_and_another_reads(between: str, order: str) -> None:
    first, second = order.split(", then ")

    def act(numbers: Any, what: str) -> None:
        if what == "write":
            numbers[0] = 1.0
        else:
            assert numbers[0] >= 0.0

    def work(_: int, arguments: Any) -> None:
        if team.member() == 1:
            act(arguments[0], first)
        if between == "a meeting":
            team.meet()
        if between == "a shuffle":
            team.total(1.0)
        if team.member() == 2:
            act(arguments[0], second)

    if between == "a meeting":
        launch("warp", work, 1)
        return
    with pytest.raises(RaceError):
        launch("warp", work, 1)


def test_a_team_asks_for_what_one_of_them_holds() -> None:
    def work(_: int, arguments: Any) -> None:
        told = team.broadcast(10.0 * team.member(), 2)
        if team.member() == 0:
            arguments[0][0] = told
        team.broadcast(0.0, team.member())

    with pytest.raises(AssertionError, match="one of them"):
        launch("warp", work, 1)


def test_poses_are_written_where_a_team_has_read_its_start(
    make_scene: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(1, 8, 0.5)
    simulated_grid("warp")
    monkeypatch.setattr(cuda, "grid", simulated_grid)
    monkeypatch.setattr(cuda, "_MANY", math.inf)
    monkeypatch.setattr(cuda, "_WARP", 4)
    shared = scene.K[None], torch.zeros(1, 0, **DOUBLE), torch.ones(1, 1, 1, **DOUBLE), torch.ones(1, 1) == 1
    inputs = scene.points2d, scene.points3d, *shared, "radtan", "none", 1.0, 1.0, 50
    cuda.search(*inputs)
    solving = importlib.import_module("geometry.compiled.simulated_warp.pose.solve")
    monkeypatch.setattr(solving, "meet", lambda: None)
    with pytest.raises(RaceError):
        cuda.search(*inputs)
