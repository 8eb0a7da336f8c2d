"""Samples are drawn with the odds that were asked for, by numbers that are a problem's own."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from geometry.consensus.samples import draw, seeds, uniform
from tests.numbers import DOUBLE, generator

CPU = torch.device("cpu")


def drawn(weights: Tensor, size: int, count: int) -> Tensor:
    """Samples of each problem from a stream of its own."""
    return draw(weights, uniform(seeds(len(weights), generator(), CPU), 0, count, size))


def test_the_weights_are_the_odds() -> None:
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0]], dtype=torch.float64)
    index = drawn(weights, 2, 20000)
    p = weights[0] / 10
    for i in range(4):
        for j in range(4):
            if i != j:
                # without replacement: first i, then j among the others
                expected = (p[i] * p[j] / (1 - p[i])).item()
                share = ((index[0, :, 0] == i) & (index[0, :, 1] == j)).double().mean().item()
                assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / 20000))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_sample_has_no_index_twice(size: int) -> None:
    weights = torch.rand(7, 12, generator=generator(1), dtype=torch.float64) ** 4
    index = drawn(weights, size, 3000)
    assert index.shape == (7, 3000, size)
    assert (index.sort(-1).values.diff(dim=-1) > 0).all()
    everything = drawn(torch.ones(1, 5), 5, 200)
    assert (everything.sort(-1).values == torch.arange(5)).all()


def test_the_third_of_a_sample_has_the_odds_of_what_is_left() -> None:
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    index = drawn(p[None], 3, 60000)[0]
    for i, j, k in itertools.permutations(range(4), 3):
        expected = (p[i] * p[j] / (1 - p[i]) * p[k] / (1 - p[i] - p[j])).item()
        share = (index == torch.tensor([i, j, k])).all(1).double().mean().item()
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / 60000))


# ---- the numbers ----


def test_the_stream_is_splitmix() -> None:
    """The first words of the published generator, seed 1234567."""
    words = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
    found = uniform(torch.tensor([1234567]), 0, 5, 1).flatten()
    assert found.tolist() == [(word >> 11) / (1 << 53) for word in words]


def test_where_a_round_begins_changes_nothing() -> None:
    seed = seeds(4, generator(2), CPU)
    parts = [uniform(seed, begin, end - begin, 3) for begin, end in itertools.pairwise((0, 1, 65, 300))]
    assert torch.equal(torch.cat(parts, 1), uniform(seed, 0, 300, 3))


def test_a_seed_is_one_number_of_the_generator() -> None:
    g, h = generator(1), generator(1)
    apart = torch.cat([seeds(n, h, CPU) for n in (1, 0, 5, 34)])
    assert torch.equal(seeds(40, g, CPU), apart)
    assert torch.equal(g.get_state(), h.get_state())


def test_streams_are_even_and_strangers_to_each_other() -> None:
    numbers = uniform(seeds(20, generator(3), CPU), 0, 5000, 3).flatten(1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 50, 0, 1)
    expected = numbers.numel() / 50
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()
    correlation = torch.corrcoef(numbers) - torch.eye(20, **DOUBLE)
    assert correlation.abs().max() < 5 / math.sqrt(numbers.shape[1])
    following = torch.corrcoef(torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()]))[0, 1]
    assert following.abs() < 5 / math.sqrt(numbers.numel())
