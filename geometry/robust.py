"""Robust kernels: how the squared length of one residual row enters the cost.

A kernel is a function rho(s) of s = |r|^2 >= 0 with rho(s) ~ s near zero, applied element by element; the cost is
half the sum of rho. Scales are in the units of the residual (pixels divided by sigma, for PnP). Any such function
of tensors is a kernel: its derivatives are taken by forward-mode differentiation. Formulas: Barron 2019,
arXiv 1701.03077, eqs. 8 to 12 up to Barron's factor 1/2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from geometry.derivatives import directional

__all__ = ["Kernel", "cauchy", "geman_mcclure", "huber", "kernel_derivatives"]

Kernel = Callable[[Tensor], Tensor]


def huber(scale: float) -> Kernel:
    """Quadratic up to `scale`, linear beyond."""

    def rho(s: Tensor) -> Tensor:
        outside = s > scale * scale
        root = torch.where(outside, s, torch.ones_like(s)).sqrt()
        return torch.where(outside, 2 * scale * root - scale * scale, s)

    return rho


def cauchy(scale: float) -> Kernel:
    """scale^2 log(1 + s / scale^2)."""
    return lambda s: scale * scale * torch.log1p(s / (scale * scale))


def geman_mcclure(scale: float) -> Kernel:
    """s / (1 + s / scale^2): bounded by scale^2, so that a gross outlier has no pull at all."""
    return lambda s: s / (1 + s / (scale * scale))


def kernel_derivatives(kernel: Kernel | None, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rho(s), rho'(s), rho''(s), element by element; the identity where kernel is None."""
    if kernel is None:
        return s, torch.ones_like(s), torch.zeros_like(s)
    one = torch.ones_like(s)

    first, second = directional(lambda a: directional(kernel, a, one)[1], s, one)
    return kernel(s), first, second
