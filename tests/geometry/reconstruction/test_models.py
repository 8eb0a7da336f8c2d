"""Model choice on problems whose answer is known, and patterns that are planted in residuals."""

import math

import pytest
import torch

from geometry.reconstruction.models import Estimate, choose_model, residual_pattern


def regression(coefficients, *, noise=0.1, count=200, seed=0, units=None):
    """fit(free) of y = sum coefficient * x by least squares, x standard normal. units: of the unknowns."""
    g = torch.Generator().manual_seed(seed)
    names, units = list(coefficients), units or {}
    x = dict(zip(names, torch.randn(len(names), count, generator=g, dtype=torch.float64), strict=True))
    y = sum(value * x[name] for name, value in coefficients.items())
    y = y + noise * torch.randn(count, generator=g, dtype=torch.float64)

    def fit(free, last):
        assert last is None or set(last.found) < set(free)
        X = torch.stack([x[name] / units.get(name, 1.0) for name in free], -1)
        inverse = torch.linalg.inv(X.mT @ X)
        found = inverse @ (X.mT @ y)
        variance = (y - X @ found).square().sum() / (count - len(free))
        return Estimate(found, variance * inverse, free)

    return fit


NONE = dict.fromkeys("abcde", 0.0)


def test_what_differs_is_freed_and_nothing_else():
    fit = regression({"a": 1.0, "b": 0.0, "c": 0.5, "d": -0.5, "e": 0.0}, seed=3)
    choice = choose_model(fit, "a", [("b",), ("c", "d"), ("e",)], NONE)
    assert choice.free == ("a", "c", "d")
    assert choice.estimate.found == choice.free
    first, last = choice.trials[:3], choice.trials[3:]
    assert [trial.taken for trial in first] == [False, True, False]
    assert [trial.added for trial in last] == [("b",), ("e",)]
    assert not any(trial.taken for trial in last)
    assert all(trial.probability > 0.01 for trial in last)


def test_usual_values_are_what_they_are_compared_with():
    fit = regression({"a": 1.0, "b": 2.0})
    assert choose_model(fit, "a", ["b"], {"b": 0.0}).free == ("a", "b")
    # without b the residuals are large, but it is b's value with b free that is asked for
    assert choose_model(fit, "a", ["b"], {"b": 2.0}).free == ("a",)


def test_neither_the_order_of_blocks_nor_units_matter():
    true = {"a": 1.0, "b": 0.03, "c": 0.02, "d": 0.0}
    blocks = [("b",), ("c",), ("d",)]
    odds = [
        {t.added: t.probability for t in choose_model(regression(true, units=units), "a", order, NONE).trials[:3]}
        for order, units in ((blocks, None), (blocks[::-1], None), (blocks, {"b": 1e6, "c": 1e-9}))
    ]
    for other in odds[1:]:
        assert other == pytest.approx(odds[0], rel=1e-6)


def test_the_surest_goes_first_where_odds_are_too_small_for_numbers():
    true = {"a": 1.0, "b": 0.9, "c": 5.0}

    def fit(free, last):
        return Estimate(torch.tensor([true[name] for name in free]), 1e-6 * torch.eye(len(free)))

    for order in (["b", "c"], ["c", "b"]):
        choice = choose_model(fit, "a", order, NONE)
        assert choice.free == ("a", "c", "b")
        assert [trial.probability for trial in choice.trials] == [0, 0, 0]


def test_noise_alone_is_taken_as_often_as_said():
    found = [
        choose_model(regression({"a": 1.0, "b": 0.0, "c": 0.0}, seed=seed), "a", [("b", "c")], NONE).trials[0]
        for seed in range(400)
    ]
    odds = torch.tensor([trial.probability for trial in found]).sort().values
    uniform = (torch.arange(400) + 0.5) / 400
    assert (odds - uniform).abs().max() < 1.63 / math.sqrt(400)  # Kolmogorov and Smirnov, 1 %


@pytest.mark.parametrize("covariance", [torch.full((2, 2), torch.nan), torch.zeros(2, 2)])
def test_what_is_not_determined_is_not_freed(covariance):
    choice = choose_model(lambda free, last: Estimate(torch.ones(2), covariance), "a", ["b"], NONE)
    assert choice.free == ("a",)
    assert choice.trials[0].probability == 1


def test_choice_errors():
    with pytest.raises(ValueError, match=r"usual must have a value for each name in blocks, got none for f, g"):
        choose_model(regression({"a": 1.0}), "a", ["gf"], NONE)
    with pytest.raises(ValueError, match="significance must be a positive number"):
        choose_model(regression({"a": 1.0}), "a", [], NONE, significance=0)


# --- residuals ---

SIZE = (640, 480)


def noise(count, seed, pattern=0.0):
    """Pixels anywhere, residuals whose size grows outward, and a smooth field on top."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 2, generator=g, dtype=torch.float64) * torch.tensor(SIZE)
    far = (x - 320).norm(dim=-1, keepdim=True) / 320
    field = torch.stack([(x[:, 0] / 100).sin(), (x[:, 1] / 80).cos()], -1)
    return x, (0.2 + far) * torch.randn(count, 2, generator=g, dtype=torch.float64) + pattern * field


def test_noise_of_any_size_has_no_pattern():
    found = torch.tensor([residual_pattern(*noise(1500, seed), SIZE).deviations for seed in range(300)])
    assert abs(found.mean()) < 4 / math.sqrt(300)
    assert found.std() == pytest.approx(1, abs=4 / math.sqrt(600))
    assert (found > 3).sum() <= 4


def test_a_field_is_seen_with_its_share_of_the_variance():
    x, r = noise(20_000, 0, pattern=0.5)
    field = r - noise(20_000, 0)[1]
    found = residual_pattern(x, r, SIZE, cells=40)
    assert found.present
    assert found.share == pytest.approx((field.square().sum() / r.square().sum()).item(), rel=0.1)
    # a tenth of its square is hardly 3 % of the variance, and yet seen by so many
    assert residual_pattern(*noise(20_000, 1, pattern=0.15), SIZE).present


def test_order_unit_and_scale_do_not_matter():
    x, r = noise(500, 2, pattern=0.3)
    found, order = residual_pattern(x, r, SIZE), torch.randperm(500)
    assert residual_pattern(x[order], -1e6 * r[order], SIZE) == pytest.approx(found, rel=1e-9)
    assert residual_pattern(2 * x + 0.5, r, (1280, 960)) == pytest.approx(found, rel=1e-9)


def test_nothing_to_compare_is_no_pattern():
    x, r = noise(1, 0)
    assert residual_pattern(x, r, SIZE) == (0, 0)
    x, r = noise(50, 0)
    assert residual_pattern(x, 0 * r, SIZE) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residuals": torch.zeros(3, 2)}, "residuals must have shape"),
        ({"points2d": torch.full((4, 2), torch.nan)}, "points2d must be finite"),
        ({"image_size": (640, 0)}, "image_size must be a positive number"),
        ({"cells": 0}, "cells must be a whole number of at least 1"),
    ],
)
def test_pattern_errors(changes, message):
    arguments = {"points2d": torch.rand(4, 2), "residuals": torch.rand(4, 2), "image_size": SIZE}
    with pytest.raises(ValueError, match=message):
        residual_pattern(**arguments | changes)
