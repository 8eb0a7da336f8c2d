"""Robust kernels: how the squared length of one residual row enters the cost.

A kernel is a function rho(s) of s = |r|^2 >= 0 with rho(s) ~ s near zero, applied element by element; the cost is
half the sum of rho. Scales are in the units of the residual (pixels divided by sigma, for PnP). Any such function
of tensors is a kernel: its derivatives are taken by forward-mode differentiation. Those made here bring theirs, and are
also known to the compiled solvers. Formulas: Barron 2019, arXiv 1701.03077, eqs. 8 to 13, times 2 scale^2.

Scales are numbers, and a gradient reaches data alone. To learn one, divide the weights by it and take the kernel at
scale 1, `pnp(..., weights=weights / scale, kernel=huber(1.0))`: rho is scale^2 times that of r / scale at 1, so that
the minimum is the same, and its gradient reaches scale. In a bundle the weights of a prior are to be divided as well,
and a threshold counts in units of the scale.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from geometry._forward import directional
from geometry.checks import function, positive

__all__ = [
    "Kernel",
    "RobustKernel",
    "applied",
    "barron",
    "cauchy",
    "check_kernel",
    "geman_mcclure",
    "huber",
    "kernel_derivatives",
    "widened",
]

Kernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RobustKernel:
    """A kernel that is known by name; made by `huber`, `cauchy`, `geman_mcclure` or `barron`. Called as rho(s)."""

    name: Literal["huber", "cauchy", "geman_mcclure", "barron"]
    scale: float
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.scale, Tensor):
            raise ValueError("scale must be a number, and to learn one divide the weights by it, got a tensor")
        positive("scale", self.scale)

    def __call__(self, s: Tensor) -> Tensor:
        return self.derivatives(s)[0]

    def derivatives(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rho(s), rho'(s), rho''(s), element by element."""
        square = self.scale * self.scale
        if self.name == "huber":
            outside = s > square
            safe = torch.where(outside, s, 1)
            root = safe.sqrt()
            rho = torch.where(outside, 2 * self.scale * root - square, s)
            slope = torch.where(outside, self.scale / root, 1)
            return rho, slope, torch.where(outside, -0.5 * slope / safe, 0)
        if self.name == "cauchy":
            slope = 1 / (1 + s / square)
            return square * torch.log1p(s / square), slope, -slope * slope / square
        if self.name == "geman_mcclure":
            inverse = 1 / (1 + s / square)
            slope = inverse * inverse
            return s * inverse, slope, -2 / square * slope * inverse
        width = square * abs(self.alpha - 2)
        logarithm = torch.log1p(s / width)
        slope = torch.exp((0.5 * self.alpha - 1) * logarithm)
        rho = 2 * width / self.alpha * torch.expm1(0.5 * self.alpha * logarithm)
        return rho, slope, (0.5 * self.alpha - 1) * slope / (width + s)


def huber(scale: float) -> RobustKernel:
    """Quadratic up to `scale`, linear beyond.

    >>> huber(2.0)(torch.tensor([1.0, 100.0]))
    tensor([ 1., 36.])
    """
    return RobustKernel("huber", scale)


def cauchy(scale: float) -> RobustKernel:
    """scale^2 log(1 + s / scale^2).

    >>> cauchy(2.0)(torch.tensor([1.0, 100.0]))
    tensor([ 0.8926, 13.0324])
    """
    return RobustKernel("cauchy", scale)


def geman_mcclure(scale: float) -> RobustKernel:
    """s / (1 + s / scale^2): bounded by scale^2, so that a gross outlier has no pull at all.

    >>> geman_mcclure(2.0)(torch.tensor([1.0, 100.0]))
    tensor([0.8000, 3.8462])
    """
    return RobustKernel("geman_mcclure", scale)


def barron(alpha: float, scale: float) -> RobustKernel:
    """Barron's general and adaptive loss: one shape parameter alpha < 2 from nearly quadratic to redescending.

    alpha = 1 is pseudo-Huber, 0 Cauchy, -2 a Geman-McClure of twice the scale; the smaller, the less pull outliers
    have. Raises ValueError for alpha >= 2 (that is least squares: kernel=None) or not finite.

    >>> barron(1.0, scale=2.0)(torch.tensor([1.0, 100.0]))
    tensor([ 0.9443, 32.7922])
    """
    if not isinstance(alpha, Real) or not -math.inf < alpha < 2:
        raise ValueError(f"alpha must be a number below 2, got {alpha}")
    return RobustKernel("barron", scale, alpha) if alpha != 0 else cauchy(math.sqrt(2) * scale)


def check_kernel(kernel: Any) -> None:
    """Raise ValueError for what is no kernel: a name, a scale, or `huber` itself in place of huber(scale)."""
    if kernel is huber or kernel is cauchy or kernel is geman_mcclure or kernel is barron:
        raise ValueError(f"kernel must be a function or None, got {kernel.__name__} without its scale")
    function("kernel", kernel, such_as="geometry.huber(scale)")


def applied(kernel: Kernel, s: Tensor) -> Tensor:
    """rho(s); ValueError for a kernel that does not return a number for each of s."""
    rho = kernel(s)
    if not isinstance(rho, Tensor) or rho.shape != s.shape:
        found = tuple(rho.shape) if isinstance(rho, Tensor) else type(rho).__name__
        raise ValueError(f"kernel must return the shape that it is given, {tuple(s.shape)}, got {found}")
    return rho


def kernel_derivatives(kernel: Kernel | None, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rho(s), rho'(s), rho''(s), element by element; the identity where kernel is None."""
    if kernel is None:
        return s, torch.ones_like(s), torch.zeros_like(s)
    if isinstance(kernel, RobustKernel):
        return kernel.derivatives(s)
    rho, one = applied(kernel, s), torch.ones_like(s)
    first, second = directional(lambda a: directional(kernel, a, one)[1], s, one)
    return rho, first, second


def widened(kernel: Kernel, factor: float) -> Kernel:
    """factor^2 kernel(s / factor^2): the same kernel, its scale multiplied."""
    if isinstance(kernel, RobustKernel):
        return replace(kernel, scale=factor * kernel.scale)
    return lambda s: factor**2 * kernel(s / factor**2)
