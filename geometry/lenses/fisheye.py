"""The fisheye of Kannala and Brandt 2006 (TPAMI 28(8), eq. 6), as OpenCV has it: theta (1 + k1 theta^2 + …).

Without coefficients it is the equidistant lens: the image of a ray is as far from the middle as the angle between it
and the axis, in radians.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geometry.lenses.lens import Lens, Rays
from geometry.lenses.polynomials import even_polynomial, first_zero, horner, stretch

__all__ = ["FISHEYE", "FISHEYE_LIMIT_COS", "first_fold"]

# A fisheye ray is accepted up to this angle from the optical axis: the pole at 180 degrees has no direction.
FISHEYE_LIMIT_COS = -0.995


class _Polar(NamedTuple):
    """A fisheye in polar coordinates (…,N): distance r from the axis, unit vector (…,2,N) away from it, inverse squared
    distance L from the camera, d = theta (1 + k1 theta^2 + …) by its derivatives d' and d'' by theta, m = d / r, and
    e = d' z / L - m, which vanishes on the axis."""

    r: Tensor
    away: Tensor
    inverse: Tensor
    theta: Tensor
    d1: Tensor
    m: Tensor
    e: Tensor


def _polar(x: Tensor, y: Tensor, z: Tensor, distortion: Tensor) -> _Polar:
    s = torch.addcmul(x * x, y, y)
    inverse = 1 / torch.addcmul(s, z, z)
    r = s.clamp_min(torch.finfo(s.dtype).tiny).sqrt()
    theta = torch.atan2(r, z)
    t, m, d1 = theta * theta, theta / r, None
    if distortion.shape[-1] > 0:
        odd = torch.arange(3, 2 * distortion.shape[-1] + 2, 2, dtype=s.dtype, device=s.device)
        m, d1 = torch.addcmul(m, m * t, horner(distortion, t)), 1 + t * horner(distortion * odd, t)
    d1 = torch.ones_like(t) if d1 is None else d1
    return _Polar(r, torch.stack([x, y], -2) / r[..., None, :], inverse, theta, d1, m, d1 * z * inverse - m)


def _odd_bend(distortion: Tensor, theta: Tensor) -> Tensor:
    """d'' of `_Polar`: 6 k1 theta + 20 k2 theta^3 + …"""
    if distortion.shape[-1] == 0:
        return torch.zeros_like(theta)
    even = torch.arange(2, 2 * distortion.shape[-1] + 2, 2, dtype=theta.dtype, device=theta.device)
    return theta * horner(distortion * even * (even + 1), theta * theta)


def _near_axis(f: _Polar, z: Tensor, distortion: Tensor) -> Tensor:
    """e / r of `_Polar`, near the axis by its series in r / z: the formula of e cancels there."""
    k1, k2 = (distortion[..., i, None] if i < distortion.shape[-1] else 0.0 for i in range(2))
    inverse = 1 / z
    u = (f.r * inverse).square()
    near = (u < torch.finfo(z.dtype).eps ** (1 / 3)) & (z > 0)
    series = 2 * (k1 - 1 / 3 + 2 * (k2 - k1 + 1 / 5) * u) * f.r * inverse * inverse * inverse
    return torch.where(near, series, f.e / f.r)


def _image(p: Tensor, distortion: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    r2 = x * x + y * y
    # Near the axis theta and r vanish together: theta/r is taken from the series of atan(r/z)/(r/z) instead.
    near = (r2 < 1e-4 * z * z) & (z > 0)
    # on the axis behind the camera, and at its centre, there is no direction: any angle does, for a radius of zero
    r = torch.where(near | (r2 == 0), torch.ones_like(r2), r2).sqrt()
    z_safe = torch.where(near, z, torch.ones_like(z))
    s = torch.where(near, r2, torch.zeros_like(r2)) / (z_safe * z_safe)
    series = 1 - s * (1 / 3 - s * (1 / 5 - s * (1 / 7 - s * (1 / 9 - s / 11))))
    theta_by_r = torch.where(near, series / z_safe, torch.atan2(r, z) / r)
    theta2 = theta_by_r * theta_by_r * r2
    (factor,) = even_polynomial(distortion, theta2, 0)
    return p[..., :2] * (theta_by_r * factor)[..., None]


def _slopes(p: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = p.unbind(-1)
    f = _polar(x, y, z, distortion)
    # across the axis e away away^T + m I, along it -(d' r / L) away
    slopes = torch.cat([f.away * f.e[..., None, :], (-f.d1 * f.r * f.inverse)[..., None, :]], -2)
    rows = f.away[..., :, None, :] * slopes[..., None, :, :]
    rows[..., 0, 0, :] += f.m
    rows[..., 1, 1, :] += f.m
    return torch.stack([x, y], -2) * f.m[..., None, :], rows


def _bend(p: Tensor, distortion: Tensor, covector: Tensor) -> tuple[Tensor, ...]:
    x, y, z = p.unbind(-1)
    f = _polar(x, y, z, distortion)
    c, (a, b) = covector.unbind(-1), f.away.unbind(-2)
    along = c[0] * a + c[1] * b
    bent = _odd_bend(distortion, f.theta)
    rz, inverse2 = f.r * along, f.inverse * f.inverse
    G = (2 * f.d1 * f.r - bent * z) * inverse2
    k = _near_axis(f, z, distortion)
    # k (along I + c away^T + away c^T) - along (z G + 3 k) away away^T, and likewise for z
    ka, kb, common = k * a, k * b, k * along
    across = -along * (z * G + 3 * k)
    pa, pb = across * a, across * b
    xx, xy, yy = common + 2 * ka * c[0] + pa * a, ka * c[1] + kb * c[0] + pa * b, common + 2 * kb * c[1] + pb * b
    zG, slope = rz * G, f.d1 * f.inverse
    xz, yz = zG * a - slope * c[0], zG * b - slope * c[1]
    return xx, xy, xz, yy, yz, rz * (bent * f.r + 2 * f.d1 * z) * inverse2


def _sees(p: Tensor, distortion: Tensor) -> Tensor:
    return p[..., 2] > FISHEYE_LIMIT_COS * torch.linalg.vector_norm(p, dim=-1)


def first_fold(distortion: Tensor) -> Tensor:
    """The squared angle (…,1) at which the radius first ceases to grow; or infinity."""
    if distortion.shape[-1] == 0:
        return torch.full_like(distortion.sum(-1, keepdim=True), torch.inf)
    order = 2 * torch.arange(1, distortion.shape[-1] + 1, dtype=distortion.dtype, device=distortion.device)
    return first_zero(distortion * (1 + order))


def _rays(target: Tensor, distortion: Tensor, max_steps: int, tolerance: float) -> Rays:
    r2 = target.square().sum(-1)
    at_centre = r2 < 1e-24
    radius = torch.where(at_centre, torch.ones_like(r2), r2).sqrt()

    def newton(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta2 = theta * theta
        factor, bend = even_polynomial(distortion, theta2, 1)
        slope = factor + 2 * theta2 * bend
        return theta - (theta * factor - radius) / slope, slope

    with torch.no_grad():
        end = first_fold(distortion).clamp_max(math.pi**2)
        theta = radius * stretch(lambda t: even_polynomial(distortion, t, 1), radius.square(), end, max_steps)
        good = (theta * even_polynomial(distortion, theta * theta, 0)[0] - radius).abs() <= tolerance
    theta, slope = newton(torch.where(good, theta, torch.zeros_like(theta)))
    valid = at_centre | (good & (slope > 0) & (theta.cos() > FISHEYE_LIMIT_COS))
    lateral = torch.where(at_centre, torch.ones_like(theta), theta.sin() / radius)
    z = torch.where(at_centre, torch.ones_like(theta), theta.cos())
    rays = torch.cat([target * lateral[..., None], z[..., None]], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), valid)


FISHEYE = Lens(
    names=("k1", "k2", "k3", "k4"), counts=(0, 1, 2, 3, 4),
    image=_image, slopes=_slopes, bend=_bend, sees=_sees, rays=_rays,
    powers=(2, 4, 6, 8), start=(1 / math.pi, *[0.0] * 4), pinhole=False,
)  # fmt: skip
