"""What the first two stages of `start` need of the points: rays, a quadratic form, and its minima on SO(3).

With n on the ray of a pixel, V = w^2 (I - n n^T / |n|^2) has six numbers, and all that is needed of the points are the
60 products of these with 1, X, Y, Z, XX, XY, XZ, YY, YZ, ZZ, and, for what is ahead, the 12 of w^2 n / |n|^2 with the
first four.
n is (x, y, 1), or (x, y, (1 - x^2 - y^2) / 2) for a fisheye, which sees behind as well: of length (1 + x^2 + y^2) / 2.
"""

import math
from typing import Any

import numpy as np

from geometry.camera import FISHEYE_LIMIT_COS
from geometry.compiled.constants import FISHEYE

from ..vectors import (
    cos,
    exp,
    fabs,
    get,
    highest,
    jit,
    load,
    log,
    resolution,
    sin,
    splat,
    sqrt,
    store,
    total,
    where_less,
)
from .descent import blend, retract
from .equations import ROW, L, store6
from .lens import curve, distort, radial
from .tile import finite

__all__ = ["FORM", "descend", "fill_rays", "quadratic_form", "sum_up", "translate"]

FORM = 72
_AHEAD = 60  # where those of n begin
_DESCENT_STEPS = 8
_SYMMETRIC = np.array([0, 1, 2, 1, 3, 4, 2, 4, 5])  # entry (i, j) among xx, xy, xz, yy, yz, zz


@jit
def _first_zero(c1: Any, c2: Any, c3: Any, c4: Any, c5: Any, c6: Any) -> Any:
    """A point just below the first t > 0 at which 1 + c1 t + … vanishes, or infinity (`geometry.camera`)."""
    largest = max(abs(c1), math.sqrt(abs(c2)), abs(c3) ** (1.0 / 3.0))
    largest = max(largest, abs(c4) ** 0.25, abs(c5) ** 0.2, abs(c6) ** (1.0 / 6.0))
    if not 0.0 < largest < np.inf:
        return np.inf
    low, high = 0.0, 1.0
    for _ in range(2):
        a, slope, found, start, width = 0.0, c1, False, low, (high - low) / 64.0
        for i in range(65):
            s = start + i * width
            t = s / (largest * (1.0 + 1e-9 - s))
            value = 1.0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * (c5 + t * c6)))))
            bend = c1 + t * (2.0 * c2 + t * (3.0 * c3 + t * (4.0 * c4 + t * (5.0 * c5 + t * 6.0 * c6))))
            if i > 0 and slope < 0.0 < bend:
                m = a - (t - a) * slope / (bend - slope)
                value = min(value, 1.0 + m * (c1 + m * (c2 + m * (c3 + m * (c4 + m * (c5 + m * c6))))))
            if value < 0.0:
                low, high, found = s - width, s, True
                break
            a, slope = t, bend
        if not found:
            return np.inf
    return low / (largest * (1.0 - low))


@jit
def _first_fold(tile: Any) -> Any:
    """The squared radius, or angle, at which the radial part of the lens in the first lane first ceases to grow.

    What a denominator that vanishes makes infinite is taken in full; infinite where it always grows.
    """
    camera = tile.camera
    if tile.lens == FISHEYE:
        k1, k2, k3, k4 = get(camera, 6 * L), get(camera, 7 * L), get(camera, 8 * L), get(camera, 9 * L)
        fold = _first_zero(3.0 * float(k1), 5.0 * float(k2), 7.0 * float(k3), 9.0 * float(k4), 0.0, 0.0)
        return min(fold, math.pi * math.pi)
    part = 0.98 if tile.lens > 2 else 1.0  # tangential terms move the fold
    k1, k2, k3 = float(get(camera, 6 * L)), float(get(camera, 7 * L)), float(get(camera, 10 * L))
    k4, k5, k6 = float(get(camera, 11 * L)), float(get(camera, 12 * L)), float(get(camera, 13 * L))
    # a_i b_j (1 + 2 i - 2 j) for every i + j: the derivative of r a / b, times b^2
    first, second = 3.0 * k1 - k4, 5.0 * k2 + k1 * k4 - 3.0 * k5
    third, fourth = 7.0 * k3 + 3.0 * k2 * k4 - k1 * k5 - 5.0 * k6, 5.0 * k3 * k4 + k2 * k5 - 3.0 * k1 * k6
    fold = _first_zero(first, second, third, fourth, 3.0 * k3 * k5 - k2 * k6, k3 * k6)
    return min(part * part * fold, _first_zero(k4, k5, k6, 0.0, 0.0, 0.0))


@jit
def _stretch(tile: Any, r2: Any, end: Any) -> Any:
    """m with m g(m^2 r2) = 1 within the first fold, which is at the squared radius `end` (`geometry.camera`)."""
    camera = tile.camera
    low, high = splat(0.0, camera), sqrt(end / r2)
    m = where_less(1.0, high, splat(1.0, camera), 0.5 * high)
    for _ in range(16):
        t = m * m * r2
        if tile.lens == FISHEYE:
            k1, k2, k3, k4 = load(camera, 6 * L), load(camera, 7 * L), load(camera, 8 * L), load(camera, 9 * L)
            g, g1 = 1.0 + t * (k1 + t * (k2 + t * (k3 + t * k4))), k1 + t * (2.0 * k2 + t * (3.0 * k3 + t * 4.0 * k4))
        else:
            g, g1, _, _, _ = radial(camera, t)
        value = m * g
        low, high = where_less(value, 1.0, m, low), where_less(value, 1.0, high, m)
        newton = m * exp(-log(value) * g / (g + 2.0 * t * g1))
        half = where_less(high, np.inf, 0.5 * (low + high), 2.0 * m)
        new = where_less(fabs(newton - m), fabs(half - m), newton, half)
        new = where_less(newton, low, half, where_less(high, newton, half, new))
        change = fabs(new - m)
        m = new
        if highest(change - 1e-4 * m) < 0.0:
            break
    return m


@jit
def _fisheye_ray(tile: Any, tx: Any, ty: Any, end: Any, tolerance: Any) -> Any:
    """x, y of the ray to an image (tx, ty), and 1 where there is one, else 0."""
    one, r2 = splat(1.0, tx), tx * tx + ty * ty
    radius = sqrt(r2)
    arc = curve(tile.camera, radius * _stretch(tile, r2, end))
    angle = arc.angle - (arc.d - radius) / arc.d1
    good = where_less(fabs(arc.d - radius), tolerance, where_less(0.0, arc.d1, one, 0.0), 0.0)
    cosine = cos(angle)
    good = where_less(FISHEYE_LIMIT_COS, cosine, good, 0.0)
    centre = where_less(r2, 1e-24, one, 0.0)
    half = where_less(0.5, centre, 0.5, sin(angle) / ((1.0 + cosine) * radius))
    return half * tx, half * ty, where_less(0.5, centre, one, good)


@jit
def forward(tile: Any, x: Any, y: Any) -> Any:
    """The third coordinate of a ray, and its squared length."""
    z = splat(1.0, x)
    if tile.lens == FISHEYE:
        z = 0.5 - 0.5 * (x * x + y * y)
    return z, x * x + y * y + z * z


@jit
def fill_rays(tile: Any, rays: Any) -> None:
    """x, y of the ray and squared weight of every point of a spread tile (`geometry.camera.unproject`).

    The weight is zero where the lens has no or no unique ray.
    """
    points, camera, eps = tile.points, tile.camera, resolution(rays)
    tolerance = 1e-6 if eps < 1e-10 else 1e-4
    a, b, c, d = load(camera, 0), load(camera, L), load(camera, 2 * L), load(camera, 3 * L)
    scale = 1.0 / (a * d - b * c)
    end = _first_fold(tile) if tile.lens else np.inf
    for j in range(tile.rows):
        o = j * ROW
        u, v = load(points, o + 3 * L), load(points, o + 4 * L)
        wu, wv = load(points, o + 5 * L), load(points, o + 6 * L)
        tx, ty = (d * u - b * v) * scale, (a * v - c * u) * scale
        x, y, good = tx, ty, splat(1.0, points)
        if tile.lens == FISHEYE:
            x, y, good = _fisheye_ray(tile, tx, ty, end, tolerance)
        elif tile.lens:
            m = _stretch(tile, tx * tx + ty * ty, end)
            x, y = m * tx, m * ty
            for _ in range(7):
                px, py, j00, j01, j10, j11 = distort(camera, x, y)
                ex, ey = px - tx, py - ty
                inverse = 1.0 / (j00 * j11 - j01 * j10)
                sx, sy = (j11 * ex - j01 * ey) * inverse, (j00 * ey - j10 * ex) * inverse
                x, y = x - sx, y - sy
                if highest(sx * sx + sy * sy) < 1e3 * eps * eps:
                    break
            px, py, j00, j01, j10, j11 = distort(camera, x, y)
            ex, ey = px - tx, py - ty
            good = where_less(ex * ex + ey * ey, tolerance * tolerance, good, 0.0)
            good = where_less(0.0, j00 * j11 - j01 * j10, good, 0.0)
            good = where_less(0.0, j00 + j11, good, 0.0)
            good = where_less(1.06 * end, x * x + y * y, 0.0, good)
        good = where_less(x * x + y * y, np.inf, good, 0.0)
        store(rays, 3 * j * L, where_less(0.5, good, x, 0.0))
        store(rays, (3 * j + 1) * L, where_less(0.5, good, y, 0.0))
        store(rays, (3 * j + 2) * L, 0.5 * good * (wu * wu + wv * wv))


@jit
def sum_up(tile: Any, rays: Any, work: Any, form: Any, middle: Any) -> Any:
    """The 72 sums of the object-space error, of points about their weighted centre `middle` and of size 1.

    Returns the size that was divided by.
    """
    sums, products = work[: FORM * L], work[FORM * L : (FORM + 10) * L]
    points, zero = tile.points, splat(0.0, rays)
    weight, cx, cy, cz = zero, zero, zero, zero
    for j in range(tile.rows):
        o, w = j * ROW, load(rays, (3 * j + 2) * L)
        weight += w
        cx, cy, cz = cx + w * load(points, o), cy + w * load(points, o + L), cz + w * load(points, o + 2 * L)
    scale = total(weight)
    scale = 1.0 / scale if scale > 0.0 else 0.0 * scale
    middle[0], middle[1], middle[2] = total(cx) * scale, total(cy) * scale, total(cz) * scale
    cx, cy, cz = splat(middle[0], rays), splat(middle[1], rays), splat(middle[2], rays)
    for k in range(FORM):
        store(sums, k * L, 0.0)
    store(products, 0, 1.0)
    for j in range(tile.rows):
        o = j * ROW
        X, Y, Z = load(points, o) - cx, load(points, o + L) - cy, load(points, o + 2 * L) - cz
        store6(products, L, (X, Y, Z, X * X, X * Y, X * Z))
        store(products, 7 * L, Y * Y)
        store(products, 8 * L, Y * Z)
        store(products, 9 * L, Z * Z)
        x, y = load(rays, 3 * j * L), load(rays, (3 * j + 1) * L)
        z, length2 = forward(tile, x, y)
        f = scale * load(rays, (3 * j + 2) * L) / length2
        fx, fy, fz = f * x, f * y, f * z
        xx, xy, xz, yy, yz, zz = fy * y + fz * z, -fx * y, -fx * z, fx * x + fz * z, -fy * z, fx * x + fy * y
        for k in range(10):
            m, o = load(products, k * L), 6 * k * L
            a, b, c = load(sums, o) + m * xx, load(sums, o + L) + m * xy, load(sums, o + 2 * L) + m * xz
            d, e = load(sums, o + 3 * L) + m * yy, load(sums, o + 4 * L) + m * yz
            store6(sums, o, (a, b, c, d, e, load(sums, o + 5 * L) + m * zz))
        for k in range(4):
            m, o = load(products, k * L), (_AHEAD + 3 * k) * L
            store(sums, o, load(sums, o) + m * fx)
            store(sums, o + L, load(sums, o + L) + m * fy)
            store(sums, o + 2 * L, load(sums, o + 2 * L) + m * fz)
    for k in range(FORM):
        form[k] = total(load(sums, k * L))
    # trace V = 2 w^2
    size = 0.0
    for k in (4, 7, 9):
        size += 0.5 * (form[6 * k] + form[6 * k + 3] + form[6 * k + 5])
    size = math.sqrt(size) if size > 0.0 else 1.0
    for k in range(6, FORM):
        form[k] /= size if k < 24 or k >= _AHEAD else size * size
    for k in range(3):
        form[_AHEAD + k] *= size  # of the first three there is no length
    return size


@jit
def quadratic_form(form: Any, omega: Any, T: Any) -> None:
    """Omega (9 x 9) over r = (first, second, third column of R), and T (3 x 9) with t = T r; zero if not finite."""
    eps = resolution(form)
    # L D L^T of the sum of V; pixels that all but coincide leave the depth free to rounding
    d0 = 1.0 / (form[0] + 4.0 * eps)
    l1, l2 = form[1] * d0, form[2] * d0
    d1 = 1.0 / (form[3] + 4.0 * eps - l1 * form[1])
    m = form[4] - l1 * form[2]
    l3 = m * d1
    d2 = 1.0 / (form[5] + 4.0 * eps - l2 * form[2] - l3 * m)
    everything = 0.0
    for q in range(9):
        k, j = q // 3, q % 3
        a = form[6 + 6 * k + _SYMMETRIC[j]]
        b = form[6 + 6 * k + _SYMMETRIC[3 + j]] - l1 * a
        c = (form[6 + 6 * k + _SYMMETRIC[6 + j]] - l2 * a - l3 * b) * d2
        b = b * d1 - l3 * c
        T[q], T[9 + q], T[18 + q] = l1 * b + l2 * c - a * d0, -b, -c
        everything += T[q] + b + c
    for p in range(9):
        k, i = p // 3, p % 3
        o = 6 + 6 * k
        a, b, c = form[o + _SYMMETRIC[i]], form[o + _SYMMETRIC[3 + i]], form[o + _SYMMETRIC[6 + i]]
        for q in range(9):
            value = form[24 + 6 * _SYMMETRIC[3 * k + q // 3] + _SYMMETRIC[3 * i + q % 3]]
            omega[9 * p + q] = value + a * T[q] + b * T[9 + q] + c * T[18 + q]
            everything += omega[9 * p + q]
    if not finite(everything):
        for k in range(81):
            omega[k] = 0.0
        for k in range(27):
            T[k] = 0.0


@jit
def _evaluate_form(omega: Any, R: Any, work: Any, out: Any) -> None:
    """r^T Omega r, half its gradient (3) and half its Gauss-Newton matrix (00, 10, 11, 20, 21, 22) on SO(3)."""
    # first, second, third column of R: a, b, c
    a0, a1, a2 = load(R, 0), load(R, 3 * L), load(R, 6 * L)
    b0, b1, b2 = load(R, L), load(R, 4 * L), load(R, 7 * L)
    c0, c1, c2 = load(R, 2 * L), load(R, 5 * L), load(R, 8 * L)
    for j in range(9):
        o, to = 9 * j, 4 * j * L
        s0, s1, s2 = get(omega, o), get(omega, o + 1), get(omega, o + 2)
        s3, s4, s5 = get(omega, o + 3), get(omega, o + 4), get(omega, o + 5)
        s6, s7, s8 = get(omega, o + 6), get(omega, o + 7), get(omega, o + 8)
        # Omega r, and Omega times the derivative of r by each axis: d column = omega x column
        store(work, to, a0 * s0 + a1 * s1 + a2 * s2 + b0 * s3 + b1 * s4 + b2 * s5 + c0 * s6 + c1 * s7 + c2 * s8)
        store(work, to + L, a1 * s2 - a2 * s1 + b1 * s5 - b2 * s4 + c1 * s8 - c2 * s7)
        store(work, to + 2 * L, a2 * s0 - a0 * s2 + b2 * s3 - b0 * s5 + c2 * s6 - c0 * s8)
        store(work, to + 3 * L, a0 * s1 - a1 * s0 + b0 * s4 - b1 * s3 + c0 * s7 - c1 * s6)
    for k in range(10):
        store(out, k * L, 0.0)
    for column in range(3):
        x, y, z = load(R, column * L), load(R, (3 + column) * L), load(R, (6 + column) * L)
        o = 12 * column * L
        value = x * load(work, o) + y * load(work, o + 4 * L) + z * load(work, o + 8 * L)
        store(out, 0, load(out, 0) + value)
        for k in range(4):
            # entry i of the gradient is axis i . (column x y)
            px, py, pz = load(work, o + k * L), load(work, o + (4 + k) * L), load(work, o + (8 + k) * L)
            to = (1 if k == 0 else 4 + (k - 1) * k // 2) * L
            store(out, to, load(out, to) + y * pz - z * py)
            if k != 1:
                store(out, to + L, load(out, to + L) + z * px - x * pz)
                if k != 2:
                    store(out, to + 2 * L, load(out, to + 2 * L) + x * py - y * px)


@jit
def descend(omega: Any, R: Any, work: Any) -> Any:
    """Levenberg-Marquardt on r^T Omega r over SO(3) from the eight rotations in R. Returns the values."""
    now, new, step = work[36 * L : 46 * L], work[46 * L : 56 * L], work[56 * L : 62 * L]
    trial = work[62 * L : 74 * L]
    for k in range(3, 6):
        store(step, k * L, 0.0)
    _evaluate_form(omega, R, work, now)
    damping = splat(0.1, omega)
    for _ in range(_DESCENT_STEPS):
        a, b, c = load(now, 4 * L), load(now, 6 * L), load(now, 9 * L)
        d, e, f = load(now, 5 * L), load(now, 7 * L), load(now, 8 * L)
        shift = damping * (a + b + c + 1e-30) * (1.0 / 3.0)
        a, b, c = a + shift, b + shift, c + shift
        # Cramer's rule
        n0, n1, n2 = b * c - f * f, e * f - d * c, d * f - e * b
        scale = -1.0 / (a * n0 + d * n1 + e * n2)
        x, y, z = load(now, L), load(now, 2 * L), load(now, 3 * L)
        dx = (n0 * x + n1 * y + n2 * z) * scale
        dy = (n1 * x + (a * c - e * e) * y + (d * e - a * f) * z) * scale
        dz = (n2 * x + (d * e - a * f) * y + (a * b - d * d) * z) * scale
        store(step, 0, dx)
        store(step, L, dy)
        store(step, 2 * L, dz)
        retract(R, step, trial)
        _evaluate_form(omega, trial, work, new)
        accept = where_less(load(new, 0), load(now, 0), splat(1.0, omega), 0.0)
        blend(accept, trial, R, 9 * L)
        blend(accept, new, now, 10 * L)
        damping = where_less(0.5, accept, damping * 0.1, damping * 8.0)
        damping = where_less(damping, 1e-9, 1e-9, where_less(damping, 1e9, damping, 1e9))
        if highest(dx * dx + dy * dy + dz * dz) < 1e-8:
            break
    return load(now, 0)


@jit
def translate(R: Any, T: Any, form: Any, value: Any) -> Any:
    """Set t = T r; the value of those behind the camera is raised by 2, above all others."""
    depth = splat(0.0, R)
    for i in range(3):
        t = splat(0.0, R)
        for q in range(9):
            t += T[9 * i + q] * load(R, (3 * (q % 3) + q // 3) * L)
        store(R, (9 + i) * L, t)
        # mean of n / |n|^2 . (R X + t)
        for k in range(4):
            depth += form[_AHEAD + 3 * k + i] * (t if k == 0 else load(R, (3 * i + k - 1) * L))
    return where_less(0.0, depth, value, value + 2.0)
