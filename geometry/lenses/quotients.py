"""Lenses whose image of a point is (x, y) / D: what they share, once each has said its D.

D is a function of q = x^2 + y^2 and of z, of the degree of a length. That of all three lenses here is made of one,

    alpha d + (1 - alpha) z,    d = sqrt(beta q + z^2),

the enhanced unified camera model (`geometry.lenses.eucm`). Its image of a ray moves outwards with the angle from the
axis as long as alpha z + (1 - alpha) d > 0, and is there as long as D > 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from geometry.lenses.lens import Lens, Rays

__all__ = ["Divisor", "quotient_lens", "unified", "unified_depth", "unified_sees"]


Divisor = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, ...]]
"""q (…,N), z (…,N), coefficients (…,k), order -> D, and from order 1 on D_q, D_z, from 2 on D_qq, D_qz, D_zz."""


def unified(q: Tensor, z: Tensor, alpha: Tensor | float, beta: Tensor | float, order: int) -> tuple[Tensor, ...]:
    """alpha d + (1 - alpha) z and its derivatives up to `order`, as of a `Divisor`."""
    lateral, d = _distance(q, z, beta)
    value = _between(alpha, lateral, d, z)
    if order == 0:
        return (value,)
    i = 1 / d
    slope = alpha * i
    first = value, 0.5 * beta * slope, _between(1 - alpha, lateral, d, z) * i
    if order == 1:
        return first
    bend = slope * i * i
    return *first, -0.25 * beta * beta * bend, -0.5 * beta * z * bend, lateral * bend


def _distance(q: Tensor, z: Tensor, beta: Tensor | float) -> tuple[Tensor, Tensor]:
    """beta q and d."""
    lateral = beta * q
    square = lateral + z * z
    # at the camera's centre, and where beta < 0 sees nothing, there is none: whoever puts such a point aside must not
    # have NaN
    return lateral, torch.where(square > 0, square, 1.0).sqrt()


def _between(part: Tensor | float, lateral: Tensor, d: Tensor, z: Tensor) -> Tensor:
    """part d + (1 - part) z; behind the camera, where that is a difference, the quotient of a sum that is none."""
    behind = z < 0
    total = part * d + (1 - part) * z.abs()
    apart = part * part * lateral + (2 * part - 1) * z * z
    return torch.where(behind, apart / torch.where(behind, total, 1.0), total)


def unified_sees(q: Tensor, z: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """Whether rays have images, and no others beside them the same; bool (…,N)."""
    lateral, d = _distance(q, z, beta)
    least = torch.finfo(z.dtype).eps * (q + z * z).sqrt()
    ahead, outwards = (_between(part, lateral, d, z) > least for part in (alpha, 1 - alpha))
    return ahead & outwards & (lateral + z * z > 0)


def unified_depth(r2: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """z where D = 1: the ray of an image (u, v) of squared radius r2 (…,N) is (u, v, z), if it has one."""
    inner = 1 - (2 * alpha - 1) * beta * r2
    root = torch.where(inner > 0, inner, 1.0).sqrt()
    return (1 - alpha * alpha * beta * r2) / (alpha * root + (1 - alpha))


def quotient_lens(
    divisor: Divisor, sees: Callable[[Tensor, Tensor], Tensor], ray: Callable[[Tensor, Tensor], Tensor],
    names: tuple[str, ...], powers: tuple[int, ...], start: tuple[float, ...],
) -> Lens:  # fmt: skip
    """The lens of a divisor. ray: image (…,N,2), coefficients (…,k) -> the ray (…,N,3), of any length."""

    def of(p: Tensor, c: Tensor, order: int) -> tuple[Tensor, ...]:
        x, y, z = p.unbind(-1)
        return divisor(x * x + y * y, z, c, order)

    def image(p: Tensor, c: Tensor) -> Tensor:
        (D,) = of(p, c, 0)
        return p[..., :2] / torch.where(D == 0, 1.0, D)[..., None]

    def slopes(p: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        x, y, _ = p.unbind(-1)
        D, D_q, D_z = of(p, c, 1)
        s = 1 / D
        along, s_z = -2 * D_q * s * s, -D_z * s * s
        across = x * y * along
        rows = torch.stack([s + x * x * along, across, x * s_z, across, s + y * y * along, y * s_z], -2)
        return torch.stack([x * s, y * s], -2), rows.unflatten(-2, (2, 3))

    def bend(p: Tensor, c: Tensor, covector: Tensor) -> tuple[Tensor, ...]:
        (x, y, _), (a, b) = p.unbind(-1), covector.unbind(-1)
        D, D_q, D_z, D_qq, D_qz, D_zz = of(p, c, 2)
        # s = 1 / D by its derivatives, and <covector, image> = L s with L linear in x and y
        s, L = 1 / D, a * x + b * y
        square = s * s
        s_q, s_z = -D_q * square, -D_z * square
        pairs = (D_q, D_q, D_qq), (D_q, D_z, D_qz), (D_z, D_z, D_zz)
        s_qq, s_qz, s_zz = (square * (2 * left * right * s - both) for left, right, both in pairs)
        common, mixed, cross = 2 * L * s_q, 2 * L * s_qz, 4 * L * s_qq
        xx, yy = common + x * (4 * a * s_q + x * cross), common + y * (4 * b * s_q + y * cross)
        xy = 2 * (a * y + b * x) * s_q + x * y * cross
        return xx, xy, a * s_z + x * mixed, yy, b * s_z + y * mixed, L * s_zz

    def rays(target: Tensor, c: Tensor, max_steps: int, tolerance: float) -> Rays:
        with torch.no_grad():
            found = ray(target, c)
            good = ((image(found, c) - target).norm(dim=-1) <= tolerance) & sees(found, c)
        # an invalid pixel must not poison the gradients of its neighbours
        found = ray(torch.where(good[..., None], target, 0.0), c)
        return Rays(found / found.norm(dim=-1, keepdim=True), good)

    counts = (0, len(names))
    return Lens(names, counts, image, slopes, bend, sees, rays, powers, start)
