"""OpenCV's lens "radtan": radial, tangential and thin-prism terms of the normalised coordinates (X/Z, Y/Z).

Brown 1966; the denominator and the prism as in OpenCV's `calib3d` documentation.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from geometry.lenses.lens import Lens, Rays
from geometry.lenses.polynomials import even_polynomial, first_zero, stretch

__all__ = ["RADTAN", "distort", "first_fold", "radial_factor"]

# of Newton's method, which leaves squares of what the tangential terms are beside the radial ones
_TANGENTIAL_STEPS = 6


def _numerator_and_denominator(distortion: Tensor) -> tuple[Tensor, Tensor | None]:
    """Coefficients (…,2 or 3) of r2, r2^2, … in the radial factor of "radtan", above and, if there are any, below."""
    k = distortion.shape[-1]
    above = torch.cat([distortion[..., :2], distortion[..., 4:5]], -1) if k > 4 else distortion[..., :2]
    return above, distortion[..., 5:8] if k > 5 else None


def radial_factor(distortion: Tensor, r2: Tensor, order: int) -> tuple[Tensor, ...]:
    """The radial factor of "radtan" and its first `order` derivatives by r2 (…,N)."""
    above, denominator = _numerator_and_denominator(distortion)
    values = even_polynomial(above, r2, order)
    if denominator is None:
        return values
    below = even_polynomial(denominator, r2, order)
    inverse = 1 / below[0]
    g = values[0] * inverse
    if order == 0:
        return (g,)
    g1 = (values[1] - g * below[1]) * inverse
    if order == 1:
        return g, g1
    return g, g1, (values[2] - 2 * g1 * below[1] - g * below[2]) * inverse


def distort(xy: Tensor, distortion: Tensor) -> Tensor:
    """OpenCV's radial, tangential and thin-prism distortion of normalised coordinates.

    xy (…,N,2) = (X/Z, Y/Z), distortion (…,k) of model "radtan" -> (…,N,2).
    """
    k = distortion.shape[-1]
    if k == 0:
        return xy
    c = distortion[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    (radial,) = radial_factor(distortion, r2, 0)
    u, v = x * radial, y * radial
    if k > 2:
        u = u + 2 * c[2] * x * y + c[3] * (r2 + 2 * x * x)
        v = v + c[2] * (r2 + 2 * y * y) + 2 * c[3] * x * y
    if k > 8:
        u = u + r2 * (c[8] + r2 * c[9])
        v = v + r2 * (c[10] + r2 * c[11])
    return torch.stack([u, v], -1)


class _Bend(NamedTuple):
    """First and second derivatives of a function of normalised coordinates (x, y)."""

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


def _distorted(xy: Tensor, distortion: Tensor) -> tuple[Tensor, ...]:
    """u, v = `distort` (…,N) and u_x, u_y, v_x, v_y, their derivatives by normalised coordinates (x, y)."""
    k = distortion.shape[-1]
    c = distortion[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    xx, xy, yy = x * x, x * y, y * y
    r2 = xx + yy
    g, g1 = radial_factor(distortion, r2, 1)
    g1 = 2 * g1
    u, v = x * g, y * g
    u_x, u_y, v_y = torch.addcmul(g, xx, g1), xy * g1, torch.addcmul(g, yy, g1)
    if k > 2:
        p1, p2 = 2 * c[2], 2 * c[3]
        a, b = p2 * x, p1 * y
        # the tangential part is (b x + a x + c3 r2, a y + b y + c2 r2)
        both = a + b
        u, v = torch.addcmul(torch.addcmul(u, x, both), c[3], r2), torch.addcmul(torch.addcmul(v, y, both), c[2], r2)
        u_x, v_y = torch.add(u_x + both, a, alpha=2), torch.add(v_y + both, b, alpha=2)
        u_y = torch.addcmul(torch.addcmul(u_y, p1, x), p2, y)
    v_x = u_y
    if k > 8:
        r4 = r2 * r2
        u, v = u + c[8] * r2 + c[9] * r4, v + c[10] * r2 + c[11] * r4
        prism_u, prism_v = 2 * c[8] + 4 * c[9] * r2, 2 * c[10] + 4 * c[11] * r2
        u_x, u_y = torch.addcmul(u_x, prism_u, x), torch.addcmul(u_y, prism_u, y)
        v_x, v_y = torch.addcmul(v_x, prism_v, x), torch.addcmul(v_y, prism_v, y)
    return u, v, u_x, u_y, v_x, v_y


def _distort_bend(xy: Tensor, covector: Tensor, distortion: Tensor) -> _Bend:
    """Derivatives of <covector, distort(xy)> by normalised coordinates. xy, covector (…,N,2) -> each (…,N)."""
    bu, bv = covector.unbind(-1)
    k = distortion.shape[-1]
    c = distortion[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    _, g1, g2 = radial_factor(distortion, r2, 2)
    _, _, u_x, u_y, v_x, v_y = _distorted(xy, distortion)
    radial = bu * x + bv * y
    along, twice, g1 = 2 * radial * g1, 4 * radial * g2, 2 * g1
    if k > 8:
        along = along + 2 * (bu * (c[8] + 2 * r2 * c[9]) + bv * (c[10] + 2 * r2 * c[11]))
        twice = twice + 8 * (bu * c[9] + bv * c[11])
    xx = along + x * (twice * x + 2 * bu * g1)
    yy = along + y * (twice * y + 2 * bv * g1)
    mixed = twice * x * y + g1 * (bu * y + bv * x)
    if k > 2:
        p1, p2 = 2 * c[2], 2 * c[3]
        xx, yy = xx + 3 * bu * p2 + bv * p1, yy + bu * p2 + 3 * bv * p1
        mixed = mixed + bu * p1 + bv * p2
    return _Bend(bu * u_x + bv * v_x, bu * u_y + bv * v_y, xx, mixed, yy)


def _image(p: Tensor, distortion: Tensor) -> Tensor:
    # at depth zero that of depth one: whoever puts such a point aside by a `where` must not have NaN in the gradient
    xy, z = p.tensor_split((2,), -1)
    return distort(xy / torch.where(z == 0, 1.0, z), distortion)


def _slopes(p: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor]:
    x, y, z = p.unbind(-1)
    x, y, iz = x / z, y / z, 1 / z
    u, v, u_x, u_y, v_x, v_y = _distorted(torch.stack([x, y], -1), distortion)
    u_z, v_z = -torch.addcmul(u_x * x, u_y, y), -torch.addcmul(v_x * x, v_y, y)
    rows = torch.stack([u_x, u_y, u_z, v_x, v_y, v_z], -2).unflatten(-2, (2, 3)) * iz[..., None, None, :]
    return torch.stack([u, v], -2), rows


def _bend(p: Tensor, distortion: Tensor, covector: Tensor) -> tuple[Tensor, ...]:
    x, y, z = p.unbind(-1)
    x, y, iz2 = x / z, y / z, 1 / (z * z)
    bend = _distort_bend(torch.stack([x, y], -1), covector, distortion)
    # chain rule through the division by depth
    xx, xy, yy = bend.xx * iz2, bend.xy * iz2, bend.yy * iz2
    a, b = bend.x * iz2, bend.y * iz2
    xz, yz = -(x * xx + y * xy + a), -(x * xy + y * yy + b)
    return xx, xy, xz, yy, yz, x * (a - xz) + y * (b - yz)


def _sees(p: Tensor, distortion: Tensor) -> Tensor:
    z = p[..., 2]
    return z > torch.finfo(z.dtype).eps * torch.linalg.vector_norm(p, dim=-1)


def first_fold(distortion: Tensor, part: float = 1.0) -> Tensor:
    """The squared radius (…,1) at which the radial part of the lens first ceases to grow; or infinity.

    part: of that radius; what a denominator that vanishes makes infinite is taken in full.
    """
    if distortion.shape[-1] == 0:
        return torch.full_like(distortion.sum(-1, keepdim=True), torch.inf)
    above, below = _numerator_and_denominator(distortion)
    order = 2 * torch.arange(1, above.shape[-1] + 1, dtype=distortion.dtype, device=distortion.device)
    if below is None:
        return part**2 * first_zero(above * (1 + order))
    # b^2 times the derivative of r a / b, where a_i b_j meet in the power i + j, and where b vanishes
    a, b = (torch.cat([torch.ones_like(c[..., :1]), c], -1) for c in (above, below))
    order = torch.cat([torch.zeros_like(order[:1]), order])
    products = a[..., :, None] * b[..., None, :] * (1 + order[:, None] - order)
    shifted = pad(products, (0, 4)).flatten(-2)[..., :28].unflatten(-1, (4, 7))
    return torch.minimum(part**2 * first_zero(shifted.sum(-2)[..., 1:]), first_zero(below))


def _undistorted(target: Tensor, distortion: Tensor, max_steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """The (x, y) (…,N,2) within the first fold that `distort` takes to the target, and whether there is one (…,N)."""

    def newton(xy: Tensor) -> tuple[Tensor, Tensor]:
        u, v, a, b, c, d = _distorted(xy, distortion)
        ex, ey = u - target[..., 0], v - target[..., 1]
        det = a * d - b * c
        step = torch.stack([d * ex - b * ey, a * ey - c * ex], -1) / det[..., None]
        return xy - step, (det > 0) & (a + d > 0)

    tangential = distortion.shape[-1] > 2
    with torch.no_grad():
        # these terms move the fold: Newton's method converges from within, and then a little beyond
        end = first_fold(distortion, 0.98 if tangential else 1.0)
        r2 = target.square().sum(-1)
        xy = target * stretch(lambda t: radial_factor(distortion, t, 1), r2, end, max_steps)[..., None]
        if tangential:
            for _ in range(_TANGENTIAL_STEPS):
                xy = newton(xy)[0]
        good = ((distort(xy, distortion) - target).norm(dim=-1) <= tolerance) & torch.isfinite(xy).all(-1)
        good = good & (xy.square().sum(-1) <= 1.06 * end)
    # an invalid pixel must not poison the gradients of its neighbours
    xy, unfolded = newton(torch.where(good[..., None], xy, torch.zeros_like(xy)))
    return xy, good & unfolded


def _rays(image: Tensor, distortion: Tensor, max_steps: int, tolerance: float) -> Rays:
    xy, valid = _undistorted(image, distortion, max_steps, tolerance)
    rays = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), valid)


RADTAN = Lens(
    names=("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4"), counts=(0, 2, 4, 5, 8, 12),
    image=_image, slopes=_slopes, bend=_bend, sees=_sees, rays=_rays,
    powers=(2, 4, 1, 1, 6, 2, 4, 6, 1, 3, 1, 3), start=(1.0, *[0.0] * 12),
)  # fmt: skip
