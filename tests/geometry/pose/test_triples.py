"""Starts from three points: where few points decide, the minima of the algebraic error are not those of the cost."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch

from geometry import cauchy, geman_mcclure, huber, pnp
from geometry.compiled.pose import triples as compiled
from geometry.pose import triples
from geometry.robust import RobustKernel
from tests.numbers import DOUBLE

GRADIENTS = {"compiled": "exact", "tensors": "unrolled"}
"""Gradients that lead to the back ends."""


def assert_not_beaten(scene: Any, back_end: str, **options: Any) -> None:
    """No descent from the truth ends lower than the search, which converges about as often."""
    arguments = scene.points2d, scene.points3d, scene.K
    found = pnp(*arguments, gradient=GRADIENTS[back_end], **options)
    local = pnp(*arguments, init=scene.world_to_camera_gt, **options)
    beaten = found.converged & local.converged & (local.cost < (1 - 1e-6) * found.cost)
    assert not beaten.any()
    assert found.converged.sum() >= 0.98 * local.converged.sum()


@pytest.mark.parametrize("back_end", GRADIENTS)
@pytest.mark.parametrize("N", [5, 8])
def test_weights_over_sixteen_orders(make_scene: Any, N: int, back_end: str) -> None:
    scene = make_scene(200, N, 1.0, seed=N)
    g = torch.Generator().manual_seed(N)
    assert_not_beaten(scene, back_end, weights=10 ** (16 * torch.rand(200, N, generator=g, **DOUBLE) - 8))


@pytest.mark.parametrize("back_end", GRADIENTS)
@pytest.mark.parametrize("kernel", [huber, cauchy, geman_mcclure])
def test_a_few_points_and_gross_outliers(
    make_scene: Any, kernel: Callable[[float], RobustKernel], back_end: str
) -> None:
    scene = make_scene(100, 6, 1.0, seed=2)
    scene.points2d[:, 0] += 200 * torch.randn(100, 2, generator=torch.Generator().manual_seed(2), **DOUBLE)
    assert_not_beaten(scene, back_end, kernel=kernel(3.0))


def test_all_triples_of_a_few_points_and_some_of_many() -> None:
    every = [set(map(tuple, t.tolist())) for t in triples._members(torch.tensor([3, 4, 5, 6, 7, 50]))]
    for count, found in zip((3, 4, 5, 6), every, strict=False):
        assert found == set(combinations(range(count), 3))
    for count, found in zip((7, 50), every[4:], strict=True):
        assert len(found) > 20
        assert {i for triple in found for i in triple} <= set(range(count))
    assert len({i for triple in every[5] for i in triple}) > 25  # not the same few again and again


def test_both_back_ends_number_them_alike() -> None:
    number = 0
    for last in range(2, 9):
        for middle in range(1, last):
            for first in range(middle):
                assert compiled._members(number, 9) == (first, middle, last)
                number += 1
    assert [list(compiled._members(k, 6)) for k in range(20)] == triples._members(torch.tensor([6]))[0, :20].tolist()


def test_triples_are_drawn_where_few_points_count_or_a_kernel_is_given() -> None:
    w2 = torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 0], [1, 2, 900, 3, 1000, 4, 5, 6], [0, 0, 0, 0, 0, 0, 0, 0]], **DOUBLE)
    w2 = w2 / w2.sum(-1, keepdim=True).clamp_min(1)
    order, count = triples._draw_from(w2, robust=False)
    assert count.tolist() == [0, 6, 0]
    assert order[1, :6].tolist() == [4, 2, 7, 6, 5, 3]
    order, count = triples._draw_from(w2, robust=True)
    assert count.tolist() == [7, 6, 0]
    assert order[0].tolist() == list(range(8))
