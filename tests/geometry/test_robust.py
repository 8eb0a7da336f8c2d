import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize._lsq.least_squares import IMPLEMENTED_LOSSES
from torch import Tensor

from geometry import cauchy, geman_mcclure, huber
from geometry.robust import Kernel, kernel_derivatives

FACTORIES: list[Callable[[float], Kernel]] = [huber, cauchy, geman_mcclure]
S = torch.cat([torch.zeros(1), torch.logspace(-12, 6, 60)]).double()  # no entry at a scale squared


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
    barron = abs(alpha - 2) / alpha * ((S / c**2 / abs(alpha - 2) + 1) ** (alpha / 2) - 1)
    torch.testing.assert_close(geman_mcclure(scale)(S), 2 * c**2 * barron, rtol=1e-9, atol=1e-15)
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
    torch.testing.assert_close(first, by_autograd, rtol=1e-13, atol=0)
    torch.testing.assert_close(second, bend, rtol=1e-12, atol=0)


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
