import math

import pytest
import torch
from torch import Tensor

from geometry import barron, cauchy, geman_mcclure
from geometry.robust import RobustKernel, kernel_derivatives

S = torch.cat([torch.zeros(1), torch.logspace(-12, 6, 60)]).double()
ALPHAS = [1.9, 1.0, 0.5, 1e-6, -0.5, -2.0, -10.0]


def formula(s: Tensor, alpha: float, c: float) -> Tensor:
    """Barron 2019, eq. 1, times 2 c^2."""
    b = abs(alpha - 2)
    return 2 * c**2 * b / alpha * ((s / c**2 / b + 1) ** (alpha / 2) - 1)


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a != 1e-6])
def test_values_are_barron_s(alpha: float, scale: float) -> None:
    large = S[S > 1e-3]  # the formula as printed loses the digits of a small s
    torch.testing.assert_close(barron(alpha, scale)(large), formula(large, alpha, scale), rtol=1e-11, atol=0)
    small = S[(S > 0) & (S < 1e-9)]
    torch.testing.assert_close(barron(alpha, scale)(small), small, rtol=1e-7, atol=0)
    assert barron(alpha, scale)(S[:1]) == 0


@pytest.mark.parametrize("alpha", ALPHAS)
def test_derivatives_are_those_of_the_formula(alpha: float) -> None:
    scale, b = 3.0, abs(alpha - 2)
    x = 1 + S / (scale**2 * b)
    _, first, second = kernel_derivatives(barron(alpha, scale), S)
    # to the rounding of rho'(0) = 1: where a kernel redescends, the derivative of expm1 has no digits below that
    torch.testing.assert_close(first, x ** (alpha / 2 - 1), rtol=1e-12, atol=1e-15)
    expected = (alpha / 2 - 1) / (scale**2 * b) * x ** (alpha / 2 - 2)
    torch.testing.assert_close(second, expected, rtol=1e-12, atol=1e-15)


def test_alpha_towards_zero_is_cauchy() -> None:
    limit = cauchy(math.sqrt(2) * 3.0)
    assert barron(0, 3.0) == limit
    for alpha in (1e-3, -1e-3, 1e-9, -1e-9):
        for found, expected in zip(
            kernel_derivatives(barron(alpha, 3.0), S), kernel_derivatives(limit, S), strict=True
        ):
            error = (found - expected).abs() / expected.abs().clamp_min(1e-300)
            # d/d alpha of log rho' is half the logarithm, at most 6 here; of rho'' likewise
            assert error.max() < 12 * abs(alpha) + 1e-13


def test_alpha_minus_two_is_geman_mcclure_of_twice_the_scale() -> None:
    for found, expected in zip(
        kernel_derivatives(barron(-2, 1.5), S), kernel_derivatives(geman_mcclure(3.0), S), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_the_smaller_alpha_the_less_an_outlier_costs_and_pulls() -> None:
    far = torch.tensor([1e4], dtype=torch.float64)
    both = torch.stack([torch.cat(kernel_derivatives(barron(alpha, 2.0), far)[:2]) for alpha in ALPHAS])
    assert (both.diff(dim=0) < 0).all()


@pytest.mark.parametrize("alpha", [2.0, 3.0, math.nan, math.inf, -math.inf])
def test_alpha_must_be_a_number_below_two(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha must be a number below 2, got {alpha}"):
        barron(alpha, 1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_scale_must_be_positive(alpha: float, scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be a positive number, got"):
        barron(alpha, scale)
    with pytest.raises(ValueError, match="scale must be a positive number, got"):
        RobustKernel("huber", scale)
