import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize._lsq.least_squares import IMPLEMENTED_LOSSES
from torch import Tensor

from geometry import barron, cauchy, geman_mcclure, huber
from geometry.robust import Kernel, RobustKernel, kernel_derivatives

FACTORIES: list[Callable[[float], Kernel]] = [huber, cauchy, geman_mcclure]
S = torch.cat([torch.zeros(1), torch.logspace(-12, 6, 60)]).double()  # no entry at a scale squared
ALPHAS = [1.9, 1.0, 0.5, 1e-6, -0.5, -2.0, -10.0]  # of Barron's kernels


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("factory", [huber, cauchy])
def test_values_and_derivatives_are_scipy_s(factory: Callable[[float], Kernel], scale: float) -> None:
    """scipy.optimize.least_squares uses C^2 rho(s / C^2)."""
    z = (S / scale**2).numpy()
    rho = np.empty((3, len(z)))
    IMPLEMENTED_LOSSES[factory.__name__](z, rho, cost_only=False)
    expected = torch.from_numpy(np.stack([scale**2 * rho[0], rho[1], rho[2] / scale**2]))
    found = torch.stack(kernel_derivatives(factory(scale), S))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_geman_mcclure_is_barron_s_alpha_minus_2(scale: float) -> None:
    """Barron 2019, eq. 1 with alpha = -2: |alpha - 2| / alpha ((s / c^2 / |alpha - 2| + 1)^(alpha / 2) - 1)."""
    c, alpha = scale / 2, -2.0
    expected = abs(alpha - 2) / alpha * ((S / c**2 / abs(alpha - 2) + 1) ** (alpha / 2) - 1)
    torch.testing.assert_close(geman_mcclure(scale)(S), 2 * c**2 * expected, rtol=1e-9, atol=1e-15)
    assert (geman_mcclure(scale)(S) <= scale**2).all()


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_kernel_is_the_identity_near_zero_grows_and_stays_below_it(factory: Callable[[float], Kernel]) -> None:
    rho, first, second = kernel_derivatives(factory(2.0), S)
    assert rho[0] == 0
    assert first[0] == 1
    assert (rho.diff() > 0).all()
    assert (rho <= S).all()
    assert ((first > 0) & (first <= 1)).all()
    assert (second <= 0).all()
    for derivative in (first, second):
        assert torch.isfinite(derivative).all()


@pytest.mark.parametrize("factory", FACTORIES)
def test_derivatives_are_those_of_the_values(factory: Callable[[float], Kernel]) -> None:
    s = torch.tensor([0.0, 0.3, 2.0, 3.9, 4.1, 50.0, 1e4], dtype=torch.float64, requires_grad=True)
    kernel = factory(2.0)
    rho, first, second = kernel_derivatives(kernel, s)
    (by_autograd,) = torch.autograd.grad(kernel(s).sum(), s, create_graph=True)
    (bend,) = torch.autograd.grad(by_autograd.sum(), s)
    torch.testing.assert_close(rho, kernel(s), rtol=0, atol=0)
    # automatic differentiation subtracts numbers up to rho'(0) = 1, of which a redescending kernel leaves 1e-7
    torch.testing.assert_close(first, by_autograd, rtol=1e-13, atol=1e-18)
    torch.testing.assert_close(second, bend, rtol=1e-12, atol=1e-18)


def test_no_kernel_is_the_identity() -> None:
    rho, first, second = kernel_derivatives(None, S)
    assert torch.equal(rho, S)
    assert torch.equal(first, torch.ones_like(S))
    assert torch.equal(second, torch.zeros_like(S))


def test_a_kernel_of_the_user_is_any_function_of_tensors() -> None:
    def welsch(s: Tensor) -> Tensor:
        return 1 - torch.exp(-s)

    rho, first, second = kernel_derivatives(welsch, torch.tensor([0.0, math.log(2.0)], dtype=torch.float64))
    torch.testing.assert_close(
        torch.stack([rho, first, second]), torch.tensor([[0, 0.5], [1, 0.5], [-1, -0.5]]).double()
    )


# ---- Barron's kernels ----


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
