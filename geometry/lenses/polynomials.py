"""The radial part of polynomial lenses: r g(r^2) of a distance r from the axis, or an angle, and its inverse."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["even_polynomial", "first_zero", "horner", "stretch"]


def horner(coefficients: Tensor, t: Tensor) -> Tensor:
    """c_0 + c_1 t + c_2 t^2 + … (…,N) of coefficients (…,k), k > 0, at t (…,N)."""
    *rest, value = coefficients[..., None, :].unbind(-1)
    value = value.expand_as(t) if not rest else value
    for c in reversed(rest):
        value = torch.addcmul(c, value, t)
    return value


def even_polynomial(coefficients: Tensor, t: Tensor, order: int) -> tuple[Tensor, ...]:
    """1 + c_1 t + c_2 t^2 + … and its first `order` derivatives by t. (…,k), (…,N) -> each (…,N)."""
    if coefficients.shape[-1] == 0:
        return torch.ones_like(t), *[torch.zeros_like(t)] * order
    values = [1 + t * horner(coefficients, t)]
    for _ in range(order):
        coefficients = coefficients * torch.arange(1, coefficients.shape[-1] + 1, dtype=t.dtype, device=t.device)
        values.append(horner(coefficients, t) if coefficients.shape[-1] else torch.zeros_like(t))
        coefficients = coefficients[..., 1:]
    return tuple(values)


def stretch(factor: Callable[[Tensor], tuple[Tensor, ...]], r2: Tensor, end: Tensor, steps: int) -> Tensor:
    """m (…,N) with m factor(m^2 r2) = 1, the least one, where m^2 r2 <= end (…,1); otherwise m ends there.

    factor: of a squared radius (…,N), with its derivative; up to `end` the radius times it grows. Newton's method for
    the logarithms, in which powers are straight, or half of the bracket where that would leave it.
    """
    low, high = torch.zeros_like(r2), (end / r2).sqrt()
    m = torch.where(high > 1, 1.0, 0.5 * high)
    for _ in range(steps):
        t = m * m * r2
        g, g1 = factor(t)
        value = m * g
        below = value < 1
        low, high = torch.where(below, m, low), torch.where(below, high, m)
        newton = m / (g / torch.addcmul(g, t, g1, value=2) * value.log()).exp()
        half = torch.where(high < torch.inf, torch.lerp(low, high, 0.5), 2 * m)
        near = (newton - m).abs() <= (half - m).abs()  # further leads round in circles, or far out
        m = torch.where(near & (newton >= low) & (newton <= high), newton, half)
    return m


def first_zero(c: Tensor) -> Tensor:
    """A point just below the first t > 0 (…,1) at which 1 + c_1 t + c_2 t^2 + … vanishes; infinite where none does.

    c (…,k), k > 0. All t > 0 are seen as s / (1 - s), in a unit that suits c: at equal distances and, where the slope
    changes its sign between two of these, at the minimum there; and the first interval with a zero once more.
    """
    d = c.shape[-1]
    j = torch.arange(1, d + 1, dtype=c.dtype, device=c.device)
    largest = (c.abs().log() / j).exp().amax(-1, keepdim=True)
    unit = torch.where((largest > 0) & torch.isfinite(largest), 1 / largest, 1.0)
    # s^j (1 - s)^(d - j) in powers of s
    powers = [[math.comb(d - j, i - j) * (-1) ** (i - j) if i >= j else 0 for i in range(d + 1)] for j in range(d + 1)]
    p = torch.cat([torch.ones_like(unit), c * unit.expand_as(c).cumprod(-1)], -1) @ c.new_tensor(powers)
    slope, nothing = p[..., 1:] * j, -64 * torch.finfo(c.dtype).eps
    grid = torch.linspace(0, 1, 65, dtype=c.dtype, device=c.device)
    low, high = torch.zeros_like(unit), torch.ones_like(unit)
    for _ in range(2):
        s = low + (high - low) * grid
        start, stop, bend = s[..., :-1], s[..., 1:], horner(slope, s)
        before, after = bend[..., :-1], bend[..., 1:]
        least = torch.where((before < 0) & (after > 0), start - (stop - start) * before / (after - before), stop)
        dips = horner(p, least) < nothing
        zero = dips | (horner(p, stop) < nothing)
        first, none = zero.to(torch.uint8).argmax(-1, keepdim=True), ~zero.any(-1, keepdim=True)
        low = torch.where(none, high, start.gather(-1, first))
        high = torch.where(none, high, torch.where(dips, least, stop).gather(-1, first))
    return unit * low / (1 - low)
