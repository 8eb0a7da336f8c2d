"""Generalised P3P: the poses of a rig that sees three known points along three rays, each from a place of its own."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from geometry.consensus.minimal.p3p import PAIRS, aligned

__all__ = ["generalised_p3p"]

_POLISH = 5  # Newton steps: one is enough but near a double root


def generalised_p3p(centres: Tensor, rays: Tensor, points3d: Tensor) -> Tensor:
    """All poses that put three points on three rays, each ahead of where its ray begins.

    centres (…,3,3): where the rays begin, in the frame of the rig; rays (…,3,3): their directions, of any length;
    points3d (…,3,3) -> world_to_rig (…,8,4,4), NaN where there are fewer, and eight of NaN for collinear or coincident
    points. Raises ValueError for other shapes. Differentiable in all arguments where roots are distinct (by one Newton
    step from the root).

    With depths d_i along unit rays, the points c_i + d_i b_i are as far apart as they are in the world: three quadrics.
    Those of the pairs (1, 2) and (1, 3) are quadratic in d_2 and in d_3, monic, so that that of (2, 3) is linear in
    each; its norm, the product over their roots, is a polynomial of degree eight in d_1 (Nistér and Stewénius, JMIV
    2007). The real eigenvalues of its companion matrix begin Newton's method on the quadrics.
    """
    for name, value in (("centres", centres), ("rays", rays), ("points3d", points3d)):
        if value.shape[-2:] != (3, 3):
            raise ValueError(f"{name} must have shape (…,3,3), got {tuple(value.shape)}")
    centres, rays, points3d = torch.broadcast_tensors(centres, rays, points3d)
    with torch.no_grad():
        quadrics, _ = _quadrics(centres, rays, points3d)
        d = _depths(quadrics)
        each = quadrics.unsqueeze(-3)
        for _ in range(_POLISH):
            d = _newton(d, each)
        bound = torch.finfo(d.dtype).eps ** 0.5 * d.square().amax(-1).clamp_min(1)
        good = (d > 0).all(-1) & (_errors(d, each).abs().amax(-1) < bound) & ~_again(d)
    # What has no root is replaced, lest its derivatives be NaN; a root is then a function of the data by one step more.
    eye = torch.eye(3, dtype=rays.dtype, device=rays.device)
    some = good.any(-1)[..., None, None]
    centres, rays, points3d = (torch.where(some, a, b) for a, b in ((centres, 0.0), (rays, eye), (points3d, eye)))
    quadrics, size = _quadrics(centres, rays, points3d)
    d = _newton(torch.where(good[..., None], d, 2**-0.5), quadrics.unsqueeze(-3))
    unit = rays / rays.norm(dim=-1, keepdim=True)
    in_rig = centres.unsqueeze(-3) + (d * size[..., None, None])[..., None] * unit.unsqueeze(-3)
    pose = aligned(in_rig, points3d.unsqueeze(-3))
    good = good & torch.isfinite(pose).all(-1).all(-1)
    return torch.where(good[..., None, None], pose, torch.nan)


def _quadrics(centres: Tensor, rays: Tensor, points3d: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pair (i, j), in units of the size (…) of the triangle, g, p, q, e (…,3,4) of what must vanish:

    d_i^2 + d_j^2 - 2 g d_i d_j + 2 p d_i - 2 q d_j + e.
    """
    rays = rays / rays.norm(dim=-1, keepdim=True)
    sides = torch.stack([(points3d[..., i, :] - points3d[..., j, :]).square().sum(-1) for i, j in PAIRS], -1)
    size = sides.sum(-1).sqrt()
    rows = []
    for k, (i, j) in enumerate(PAIRS):
        a, b, apart = rays[..., i, :], rays[..., j, :], (centres[..., i, :] - centres[..., j, :]) / size[..., None]
        e = apart.square().sum(-1) - sides[..., k] / size.square()
        rows.append(torch.stack([(a * b).sum(-1), (a * apart).sum(-1), (b * apart).sum(-1), e], -1))
    return torch.stack(rows, -2), size


def _errors(d: Tensor, quadrics: Tensor) -> Tensor:
    """What must vanish of the three pairs. (…,3)."""
    g, p, q, e = quadrics.unbind(-1)
    a, b = (d[..., [pair[k] for pair in PAIRS]] for k in (0, 1))
    return a * a + b * b - 2 * g * a * b + 2 * p * a - 2 * q * b + e


def _newton(d: Tensor, quadrics: Tensor) -> Tensor:
    """One Newton step on the three quadrics; the matrix is taken as constant, which leaves first derivatives exact."""
    g, p, q, _ = quadrics.detach().unbind(-1)
    a, b = (d.detach()[..., [pair[k] for pair in PAIRS]] for k in (0, 1))
    # half the slopes of each by its two depths; rows (u0, v0, 0), (u1, 0, v1), (0, u2, v2)
    u, v = a - g * b + p, b - g * a - q
    (u0, u1, u2), (v0, v1, v2) = u.unbind(-1), v.unbind(-1)
    determinant = -(u0 * v1 * u2 + v0 * u1 * v2)
    e, f, h = _errors(d, quadrics).unbind(-1)
    x = -v1 * u2 * e - v0 * v2 * f + v0 * v1 * h
    y = -u1 * v2 * e + u0 * v2 * f - u0 * v1 * h
    z = u1 * u2 * e - u0 * u2 * f - v0 * u1 * h
    return d - 0.5 * torch.stack([x, y, z], -1) / determinant[..., None]


def _again(d: Tensor) -> Tensor:
    """Whether a root (…,8,3) is one of those before it, to half of the digits: (…,8)."""
    apart = (d[..., :, None, :] - d[..., None, :, :]).abs().amax(-1)
    return (apart <= torch.finfo(d.dtype).eps ** 0.5 * d.abs().amax(-1)[..., None]).tril(-1).any(-1)


def _times(a: Tensor, b: Tensor, *more: Tensor) -> Tensor:
    """The product of polynomials (…,n), coefficients from the constant upwards."""
    n = a.shape[-1]
    product = torch.stack([pad(a[..., i, None] * b, (i, n - 1 - i)) for i in range(n)]).sum(0)
    return _times(product, *more) if more else product


def _plus(a: Tensor, b: Tensor) -> Tensor:
    """The sum of polynomials."""
    n = max(a.shape[-1], b.shape[-1])
    return pad(a, (0, n - a.shape[-1])) + pad(b, (0, n - b.shape[-1]))


def _depths(quadrics: Tensor) -> Tensor:
    """Depths (…,8,3) of the common zeros of the quadrics; NaN for those that are not real."""
    (g, p, q, e), (g3, p3, q3, e3), (h, r, s, f) = (row.unbind(-1) for row in quadrics.unbind(-2))
    one = torch.ones_like(g)
    # d_2^2 = p1 d_2 + p0 and d_3^2 = q1 d_3 + q0, with polynomials in d_1
    p1, p0 = torch.stack([2 * q, 2 * g], -1), -torch.stack([e, 2 * p, one], -1)
    q1, q0 = torch.stack([2 * q3, 2 * g3], -1), -torch.stack([e3, 2 * p3, one], -1)
    # A d_2 + B d_3 + C d_2 d_3 + D = u d_2 + v, with u = A + C d_3 and v = D + B d_3
    A, B, C = _plus(p1, 2 * r[..., None]), _plus(q1, -2 * s[..., None]), -2 * h[..., None]
    D = _plus(p0 + q0, f[..., None])

    def reduced(low: Tensor, middle: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """low + middle d_3 + high d_3^2 as constant and slope in d_3."""
        return _plus(low, _times(high, q0)), _plus(middle, _times(high, q1))

    uu = reduced(_times(A, A), 2 * _times(A, C), _times(C, C))
    uv = reduced(_times(A, D), _plus(_times(A, B), _times(C, D)), _times(C, B))
    vv = reduced(_times(D, D), 2 * _times(B, D), _times(B, B))
    # (u x + v) (u y + v) of the two x, y that d_2 may be, and so on with d_3
    g0, g1 = (_plus(_plus(-_times(a, p0), _times(b, p1)), c) for a, b, c in zip(uu, uv, vv, strict=True))
    norm = _plus(_plus(_times(g0, g0), _times(g0, g1, q1)), -_times(g1, g1, q0))
    x = _real_roots(norm)
    d3 = -_at(g0, x) / _at(g1, x)
    d2 = -(_at(D, x) + _at(B, x) * d3) / (_at(A, x) + C * d3)
    return torch.stack([x, d2, d3], -1)


def _at(polynomial: Tensor, x: Tensor) -> Tensor:
    """Values (…,R) of polynomials (…,n) at x (…,R)."""
    *rest, value = polynomial[..., None, :].unbind(-1)
    for c in reversed(rest):
        value = value * x + c
    return value


def _real_roots(polynomial: Tensor) -> Tensor:
    """Real roots (…,n) of polynomials (…,n+1), NaN in place of the others."""
    n = polynomial.shape[-1] - 1
    # of the reversed polynomial, whose roots are the inverses, where its leading coefficient is larger
    swap = (polynomial[..., :1].abs() > polynomial[..., -1:].abs()).expand_as(polynomial)
    c = torch.where(swap, polynomial.flip(-1), polynomial)
    c = c[..., :-1] / c[..., -1:]
    finite = torch.isfinite(c).all(-1, keepdim=True)
    shift = torch.eye(n, dtype=c.dtype, device=c.device).roll(1, 0)
    shift[0] = 0
    companion = torch.cat([shift.expand(*c.shape, n)[..., :-1], -torch.where(finite, c, 0.0)[..., None]], -1)
    values = torch.linalg.eigvals(companion)
    real = finite & (values.imag.abs() <= torch.finfo(c.dtype).eps ** 0.4 * (1 + values.abs()))
    x = torch.where(real, values.real, torch.nan)
    return torch.where(swap[..., :1], 1 / x, x)
