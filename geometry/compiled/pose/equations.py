"""PnP's normal equations, eight problems (or eight points of one) at a time.

The arithmetic of `geometry.pose.problem` in closed form. With q = R X, p = q + t, n = (p_x, p_y) / p_z and the step
(omega, v) of `geometry.se3.retract`,

    p_z dn = E (omega, v),    E = [ -n_x q_y      q_z + n_x q_x   -q_y   1  0  -n_x ]
                                  [ -q_z - n_y q_y    n_y q_x      q_x   0  1  -n_y ]

so that every point adds E^T S E to the normal equations with a symmetric 2 x 2 matrix S, and nothing is stored per
point but the seven numbers of its row in the tile. Curvature adds to S (lens, kernel) and a matrix of rank two
(division by depth).

Layout, in vectors of L lanes: a tile has a ROW for every point; a pose is R row by row, then t; a camera is K[:2,:2]
row by row, the principal point, and twelve distortion coefficients in OpenCV's order.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..vectors import (
    LANES,
    exp,
    fabs,
    jit,
    load,
    log,
    lowest,
    scratch,
    splat,
    sqrt,
    store,
    total,
    where_less,
)

L = LANES
ROW = 7 * L  # X, Y, Z, u, v, weight of u, weight of v
POSE = 12 * L
CAMERA = 18 * L
COST, NEAREST, GRADIENT, HESSIAN = 0, L, 2 * L, 8 * L  # places in sums; of the Hessian the lower triangle, row by row
SUMS = 29 * L

new_pose, new_camera, new_sums = scratch(POSE), scratch(CAMERA), scratch(SUMS)


class Robust(NamedTuple):
    """A robust kernel: its code in `geometry.compiled.constants.ROBUST`, its squared scale, its shape."""

    code: Any
    scale2: Any
    alpha: Any


class Tile(NamedTuple):
    """Problems in lanes: points (rows ROW), camera (CAMERA), number of distortion coefficients.

    spread: the lanes hold points of one problem, whose sums are added up, instead of one problem each.
    """

    points: Any
    rows: Any
    camera: Any
    lens: Any
    spread: Any


@jit
def rho(robust: Any, s: Any) -> Any:
    """rho(s), rho'(s), rho''(s) of `geometry.robust`."""
    code, scale2, alpha = robust
    one = splat(1.0, s)
    if code == 1:
        scale = math.sqrt(scale2)
        root = sqrt(where_less(scale2, s, s, one))
        value = where_less(scale2, s, 2.0 * scale * root - scale2, s)
        return value, where_less(scale2, s, scale / root, one), where_less(scale2, s, -0.5 * scale / (root * s), 0.0)
    if code == 2:
        x = s / scale2
        d = 1.0 / (1.0 + x)
        series = x - x * x * (0.5 - x * (1.0 / 3.0))  # the logarithm of 1 + x loses the digits of a small x
        return scale2 * where_less(x, 1e-5, series, log(1.0 + x)), d, -d * d / scale2
    if code == 3:
        d = 1.0 / (1.0 + s / scale2)
        return s * d, d * d, -2.0 * d * d * d / scale2
    if code == 4:
        b = abs(alpha - 2.0)
        x = s / (scale2 * b)
        logarithm = where_less(x, 1e-5, x - x * x * (0.5 - x * (1.0 / 3.0)), log(1.0 + x))
        slope = exp((0.5 * alpha - 1.0) * logarithm)
        power = 0.5 * alpha * logarithm
        grown = where_less(fabs(power), 1e-5, power + 0.5 * power * power, exp(power) - 1.0)
        value = (2.0 * scale2 * b / alpha) * grown
        return value, slope, (0.5 * alpha - 1.0) * slope / ((1.0 + x) * (scale2 * b))
    return s, one, splat(0.0, s)


@jit
def radial(camera: Any, r2: Any) -> Any:
    """g(r2) = numerator over denominator, its first and second derivative, one over the denominator, its derivative."""
    k1, k2, k3 = load(camera, 6 * L), load(camera, 7 * L), load(camera, 10 * L)
    k4, k5, k6 = load(camera, 11 * L), load(camera, 12 * L), load(camera, 13 * L)
    d = 1.0 / (1.0 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    d1, d2 = k4 + r2 * (2.0 * k5 + 3.0 * r2 * k6), 2.0 * k5 + 6.0 * r2 * k6
    g = (1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))) * d
    g1 = (k1 + r2 * (2.0 * k2 + 3.0 * r2 * k3) - g * d1) * d
    return g, g1, (2.0 * k2 + 6.0 * r2 * k3 - 2.0 * g1 * d1 - g * d2) * d, d, d1


@jit
def distort(camera: Any, x: Any, y: Any) -> Any:
    """Distorted coordinates and their derivatives by x and y: u, v, u_x, u_y, v_x, v_y (`geometry.camera.distort`)."""
    p1, p2 = load(camera, 8 * L), load(camera, 9 * L)
    s1, s2, s3, s4 = load(camera, 14 * L), load(camera, 15 * L), load(camera, 16 * L), load(camera, 17 * L)
    r2 = x * x + y * y
    g, g1, _, _, _ = radial(camera, r2)
    u = x * g + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x) + r2 * (s1 + r2 * s2)
    v = y * g + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y + r2 * (s3 + r2 * s4)
    mixed = 2.0 * (x * y * g1 + p1 * x + p2 * y)
    prism_u, prism_v = 2.0 * s1 + 4.0 * r2 * s2, 2.0 * s3 + 4.0 * r2 * s4
    u_x = g + 2.0 * x * x * g1 + 2.0 * p1 * y + 6.0 * p2 * x + prism_u * x
    v_y = g + 2.0 * y * y * g1 + 6.0 * p1 * y + 2.0 * p2 * x + prism_v * y
    return u, v, u_x, mixed + prism_u * y, mixed + prism_v * x, v_y


@jit
def residuals(pose: Any, camera: Any, lens: Any, points: Any, o: Any) -> Any:
    """Weighted errors in u and v, and depths, of the row that begins at o; its pixels are relative to the principal
    point."""
    X, Y, Z = load(points, o), load(points, o + L), load(points, o + 2 * L)
    px = load(pose, 0) * X + load(pose, L) * Y + load(pose, 2 * L) * Z + load(pose, 9 * L)
    py = load(pose, 3 * L) * X + load(pose, 4 * L) * Y + load(pose, 5 * L) * Z + load(pose, 10 * L)
    pz = load(pose, 6 * L) * X + load(pose, 7 * L) * Y + load(pose, 8 * L) * Z + load(pose, 11 * L)
    iz = 1.0 / pz
    x, y = px * iz, py * iz
    if lens:
        x, y, _, _, _, _ = distort(camera, x, y)
    wu, wv = load(points, o + 5 * L), load(points, o + 6 * L)
    ru = wu * (load(camera, 0) * x + load(camera, L) * y - load(points, o + 3 * L))
    rv = wv * (load(camera, 2 * L) * x + load(camera, 3 * L) * y - load(points, o + 4 * L))
    # weight zero is as good as absent, wherever the point lies
    return where_less(0.0, wu * wu, ru, splat(0.0, pose)), where_less(0.0, wv * wv, rv, splat(0.0, pose)), pz


@jit
def distort_bend(camera: Any, x: Any, y: Any, bu: Any, bv: Any) -> Any:
    """Second derivatives xx, xy, yy of bu u + bv v."""
    p1, p2 = load(camera, 8 * L), load(camera, 9 * L)
    s1, s2, s3, s4 = load(camera, 14 * L), load(camera, 15 * L), load(camera, 16 * L), load(camera, 17 * L)
    r2 = x * x + y * y
    _, g1, g2, _, _ = radial(camera, r2)
    along = 2.0 * ((bu * x + bv * y) * g1 + bu * (s1 + 2.0 * r2 * s2) + bv * (s3 + 2.0 * r2 * s4))
    twice = 4.0 * ((bu * x + bv * y) * g2 + 2.0 * (bu * s2 + bv * s4))
    xx = along + twice * x * x + 4.0 * bu * x * g1 + 6.0 * bu * p2 + 2.0 * bv * p1
    yy = along + twice * y * y + 4.0 * bv * y * g1 + 2.0 * bu * p2 + 6.0 * bv * p1
    return xx, twice * x * y + 2.0 * g1 * (bu * y + bv * x) + 2.0 * (bu * p1 + bv * p2), yy


@jit
def accumulate(tile: Any, robust: Any, pose: Any, bent: Any, curved: Any, sums: Any) -> None:
    """Cost, least depth, gradient and Gauss-Newton matrix, or exact Hessian (curved), of every lane at its pose.

    bent (by a lens or a robust kernel) and curved are None where they are not: numba then drops their branches from
    the loop.
    """
    points, camera = tile.points, tile.camera
    r00, r01, r02 = load(pose, 0), load(pose, L), load(pose, 2 * L)
    r10, r11, r12 = load(pose, 3 * L), load(pose, 4 * L), load(pose, 5 * L)
    r20, r21, r22 = load(pose, 6 * L), load(pose, 7 * L), load(pose, 8 * L)
    tx, ty, tz = load(pose, 9 * L), load(pose, 10 * L), load(pose, 11 * L)
    a00, a01, a10, a11 = load(camera, 0), load(camera, L), load(camera, 2 * L), load(camera, 3 * L)
    zero = splat(0.0, points)
    cost, nearest = zero, splat(np.inf, points)
    g0 = g1 = g2 = g3 = g4 = g5 = zero
    h00 = h10 = h11 = h20 = h21 = h22 = h30 = h31 = h32 = h33 = zero
    h40 = h41 = h42 = h43 = h44 = h50 = h51 = h52 = h53 = h54 = h55 = zero
    for j in range(tile.rows):
        o = j * ROW
        X, Y, Z = load(points, o), load(points, o + L), load(points, o + 2 * L)
        qx = r00 * X + r01 * Y + r02 * Z
        qy = r10 * X + r11 * Y + r12 * Z
        qz = r20 * X + r21 * Y + r22 * Z
        pz = qz + tz
        nearest = where_less(pz, nearest, pz, nearest)
        iz = 1.0 / pz
        x, y = (qx + tx) * iz, (qy + ty) * iz
        # pixel = A distorted; D = its derivative by n
        u, v, d00, d01, d10, d11 = x, y, a00, a01, a10, a11
        if bent is not None:
            u, v, j00, j01, j10, j11 = distort(camera, x, y)
            d00, d01 = a00 * j00 + a01 * j10, a00 * j01 + a01 * j11
            d10, d11 = a10 * j00 + a11 * j10, a10 * j01 + a11 * j11
        wu, wv = load(points, o + 5 * L), load(points, o + 6 * L)
        ru = wu * (a00 * u + a01 * v - load(points, o + 3 * L))
        rv = wv * (a10 * u + a11 * v - load(points, o + 4 * L))
        s = ru * ru + rv * rv
        wu, wv = wu * iz, wv * iz
        ux, uy, vx, vy = wu * d00, wu * d01, wv * d10, wv * d11
        bx, by = ux * ru + vx * rv, uy * ru + vy * rv
        sxx, sxy, syy = ux * ux + vx * vx, ux * uy + vx * vy, uy * uy + vy * vy
        if bent is not None:
            s, slope, bend = rho(robust, s)
            sxx, sxy, syy = slope * sxx, slope * sxy, slope * syy
            if curved is not None:
                sxx += 2.0 * bend * bx * bx
                sxy += 2.0 * bend * bx * by
                syy += 2.0 * bend * by * by
            bx, by, ru, rv = slope * bx, slope * by, slope * ru, slope * rv
        cost += s
        # E, and the gradient E^T b
        e00, e01 = -x * qy, qz + x * qx
        e10, e11 = -(qz + y * qy), y * qx
        f0, f1 = e00 * bx + e10 * by, e01 * bx + e11 * by
        f2, f5 = qx * by - qy * bx, -(x * bx + y * by)
        g0, g1, g2, g3, g4, g5 = g0 + f0, g1 + f1, g2 + f2, g3 + bx, g4 + by, g5 + f5
        if curved is not None:
            if bent is not None:
                bu, bv = wu * ru, wv * rv
                kxx, kxy, kyy = distort_bend(camera, x, y, bu * a00 + bv * a10, bu * a01 + bv * a11)
                sxx, sxy, syy = sxx + kxx * iz, sxy + kxy * iz, syy + kyy * iz
            # division by depth: - (E^T b) m^T - m (E^T b)^T with p_z m the third row of dp / d step
            mx, my = iz * qy, -iz * qx
            h00 -= 2.0 * f0 * mx
            h10 -= f1 * mx + f0 * my
            h11 -= 2.0 * f1 * my
            h20, h21 = h20 - f2 * mx, h21 - f2 * my
            h30, h31 = h30 - bx * mx, h31 - bx * my
            h40, h41 = h40 - by * mx, h41 - by * my
            h50 -= f5 * mx + f0 * iz
            h51 -= f5 * my + f1 * iz
            h52, h53, h54, h55 = h52 - f2 * iz, h53 - bx * iz, h54 - by * iz, h55 - 2.0 * f5 * iz
            # second order of exp: omega x (omega x q) = omega (omega . q) - q |omega|^2
            m0, m1, m2 = bx * qx, by * qy, f5 * qz
            h00, h11, h22 = h00 - (m1 + m2), h11 - (m0 + m2), h22 - (m0 + m1)
            h10 += 0.5 * (bx * qy + by * qx)
            h20 += 0.5 * (bx * qz + f5 * qx)
            h21 += 0.5 * (by * qz + f5 * qy)
        # E^T S E
        x0, y0 = sxx * e00 + sxy * e10, sxy * e00 + syy * e10
        x1, y1 = sxx * e01 + sxy * e11, sxy * e01 + syy * e11
        x2, y2 = sxy * qx - sxx * qy, syy * qx - sxy * qy
        x5, y5 = sxx * x + sxy * y, sxy * x + syy * y
        h00 += e00 * x0 + e10 * y0
        h10 += e01 * x0 + e11 * y0
        h20 += qx * y0 - qy * x0
        h30, h40 = h30 + x0, h40 + y0
        h50 -= x * x0 + y * y0
        h11 += e01 * x1 + e11 * y1
        h21 += qx * y1 - qy * x1
        h31, h41 = h31 + x1, h41 + y1
        h51 -= x * x1 + y * y1
        h22 += qx * y2 - qy * x2
        h32, h42 = h32 + x2, h42 + y2
        h52 -= x * x2 + y * y2
        h33, h43, h44 = h33 + sxx, h43 + sxy, h44 + syy
        h53, h54 = h53 - x5, h54 - y5
        h55 += x * x5 + y * y5
    store(sums, COST, 0.5 * cost)
    store(sums, NEAREST, nearest)
    store6(sums, GRADIENT, (g0, g1, g2, g3, g4, g5))
    store6(sums, HESSIAN, (h00, h10, h11, h20, h21, h22))
    store6(sums, HESSIAN + 6 * L, (h30, h31, h32, h33, h40, h41))
    store6(sums, HESSIAN + 12 * L, (h42, h43, h44, h50, h51, h52))
    store(sums, HESSIAN + 18 * L, h53)
    store(sums, HESSIAN + 19 * L, h54)
    store(sums, HESSIAN + 20 * L, h55)


@jit
def store6(array: Any, place: Any, values: Any) -> None:
    a, b, c, d, e, f = values
    store(array, place, a)
    store(array, place + L, b)
    store(array, place + 2 * L, c)
    store(array, place + 3 * L, d)
    store(array, place + 4 * L, e)
    store(array, place + 5 * L, f)


@jit
def evaluate(tile: Any, robust: Any, pose: Any, curved: Any, sums: Any) -> Any:
    """`accumulate`, added up over the lanes if spread. Returns the cost, infinite where a pose is infeasible."""
    bent = tile.lens or robust.code
    if curved and bent:
        accumulate(tile, robust, pose, 1, 1, sums)
    elif curved:
        accumulate(tile, robust, pose, None, 1, sums)
    elif bent:
        accumulate(tile, robust, pose, 1, None, sums)
    else:
        accumulate(tile, robust, pose, None, None, sums)
    if tile.spread:
        nearest = lowest(load(sums, NEAREST))
        for k in range(0, SUMS, L):
            store(sums, k, splat(total(load(sums, k)), sums))
        store(sums, NEAREST, splat(nearest, sums))
    cost = load(sums, COST)
    cost = where_less(cost, np.inf, cost, np.inf)
    return where_less(0.0, load(sums, NEAREST), cost, np.inf)
