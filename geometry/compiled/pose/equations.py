"""PnP's normal equations, eight problems (or eight points of one) at a time.

The arithmetic of `geometry.pose.problem` in closed form. With q = R X and p = q + t, the step (omega, v) of
`geometry.se3.retract` moves p by omega x q + v, and the two coordinates n of its direction (`lens`) by E dp times the
inverse of its depth, or of its distance for a fisheye: E = [1 0 -n_x; 0 1 -n_y] for n = (p_x, p_y) / p_z. So every
point has a gradient b and a 3 x 3 matrix E^T S E by p, with a symmetric 2 x 2 matrix S, and adds q x b, b and the like
to the normal equations; nothing is stored per point but the seven numbers of its row in the tile. Curvature adds to S
(lens, kernel) and a matrix of rank two (an image does not change with the distance).

Layout, in vectors of L lanes: a tile has a ROW for every point; a pose is R row by row, then t; a camera is K[:2,:2]
row by row, the principal point, and twelve places for distortion coefficients in OpenCV's order.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from geometry.camera import FISHEYE_LIMIT_COS
from geometry.compiled.constants import FISHEYE

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
from .lens import angle_of, bend_of, curve, direction, distort, distort_bend, image

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
    """Problems in lanes: points (rows ROW), camera (CAMERA), and the lens.

    lens: the number of distortion coefficients, or FISHEYE.
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
def residuals(pose: Any, camera: Any, lens: Any, points: Any, o: Any) -> Any:
    """Weighted errors in u and v of the row that begins at o, and what is positive where the camera sees the point.

    Its pixels are relative to the principal point.
    """
    X, Y, Z = load(points, o), load(points, o + L), load(points, o + 2 * L)
    px = load(pose, 0) * X + load(pose, L) * Y + load(pose, 2 * L) * Z + load(pose, 9 * L)
    py = load(pose, 3 * L) * X + load(pose, 4 * L) * Y + load(pose, 5 * L) * Z + load(pose, 10 * L)
    pz = load(pose, 6 * L) * X + load(pose, 7 * L) * Y + load(pose, 8 * L) * Z + load(pose, 11 * L)
    if lens == FISHEYE:
        at, _ = direction(px, py, pz)
        x, y, _, _, _, _ = image(at, curve(camera, angle_of(at.sine, at.cosine)))
        pz = at.cosine - FISHEYE_LIMIT_COS
    else:
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
def accumulate(
    tile: Any, robust: Any, pose: Any, bent: Any, wide: Any, curved: Any, sums: Any
) -> None:  # fmt: skip
    """Cost, least depth, gradient and Gauss-Newton matrix, or exact Hessian (curved), of every lane at its pose.

    robust, bent (by a lens), wide (a fisheye) and curved are None where they are not: numba then drops their branches
    from the loop. Instead of the depth of a point, a fisheye has its cosine above the least that it sees.
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
        # pixel = A image; D = its derivative by the coordinates of a direction, which change by E dp inverse
        if wide is None:
            pz = qz + tz
            nearest = where_less(pz, nearest, pz, nearest)
            inverse = 1.0 / pz
            x, y = (qx + tx) * inverse, (qy + ty) * inverse
            u, v, d00, d01, d10, d11 = x, y, a00, a01, a10, a11
            if bent is not None:
                u, v, j00, j01, j10, j11 = distort(camera, x, y)
        else:
            at, inverse = direction(qx + tx, qy + ty, qz + tz)
            above = at.cosine - FISHEYE_LIMIT_COS
            nearest = where_less(above, nearest, above, nearest)
            arc = curve(camera, angle_of(at.sine, at.cosine))
            u, v, j00, j01, j10, j11 = image(at, arc)
        if bent is not None:
            d00, d01 = a00 * j00 + a01 * j10, a00 * j01 + a01 * j11
            d10, d11 = a10 * j00 + a11 * j10, a10 * j01 + a11 * j11
        wu, wv = load(points, o + 5 * L), load(points, o + 6 * L)
        ru = wu * (a00 * u + a01 * v - load(points, o + 3 * L))
        rv = wv * (a10 * u + a11 * v - load(points, o + 4 * L))
        s = ru * ru + rv * rv
        wu, wv = wu * inverse, wv * inverse
        ux, uy, vx, vy = wu * d00, wu * d01, wv * d10, wv * d11
        bx, by = ux * ru + vx * rv, uy * ru + vy * rv
        sxx, sxy, syy = ux * ux + vx * vx, ux * uy + vx * vy, uy * uy + vy * vy
        if robust is not None:
            s, slope, bend = rho(robust, s)
            sxx, sxy, syy = slope * sxx, slope * sxy, slope * syy
            if curved is not None:
                sxx += 2.0 * bend * bx * bx
                sxy += 2.0 * bend * bx * by
                syy += 2.0 * bend * by * by
            bx, by, ru, rv = slope * bx, slope * by, slope * ru, slope * rv
        if bent is not None and curved is not None:
            bu, bv = wu * ru, wv * rv
            bu, bv = bu * a00 + bv * a10, bu * a01 + bv * a11
            if wide is None:
                kxx, kxy, kyy = distort_bend(camera, x, y, bu, bv)
            else:
                kxx, kxy, kyy = bend_of(camera, at, arc, bu, bv)
            sxx, sxy, syy = sxx + kxx * inverse, sxy + kxy * inverse, syy + kyy * inverse
        cost += s
        # by the point: the gradient b and the Hessian C = E^T S E - (b m^T + m b^T), with m p = 1 along what divides
        if wide is None:
            bz = -(x * bx + y * by)
            cxx, cxy, cyy = sxx, sxy, syy
            cxz, cyz = -(sxx * x + sxy * y), -(sxy * x + syy * y)
            czz = -(x * cxz + y * cyz)
            if curved is not None:
                cxz, cyz, czz = cxz - bx * inverse, cyz - by * inverse, czz - 2.0 * bz * inverse
        else:
            a, b, sine, cosine = at
            ex, ey = cosine * a, cosine * b
            bx, by, bz = ex * bx - b * by, ey * bx + a * by, -sine * bx
            fx, fy, kx, ky = ex * sxx - b * sxy, ey * sxx + a * sxy, ex * sxy - b * syy, ey * sxy + a * syy  # S E
            cxx, cxy, cyy = ex * fx - b * kx, ey * fx + a * kx, ey * fy + a * ky
            cxz, cyz, czz = -sine * fx, -sine * fy, sine * sine * sxx
            if curved is not None:
                mx, my, mz = inverse * sine * a, inverse * sine * b, inverse * cosine
                cxx, cxy, cyy = cxx - 2.0 * bx * mx, cxy - bx * my - by * mx, cyy - 2.0 * by * my
                cxz, cyz, czz = cxz - bx * mz - bz * mx, cyz - by * mz - bz * my, czz - 2.0 * bz * mz
        # dp = omega x q + v
        g0, g1, g2 = g0 + qy * bz - qz * by, g1 + qz * bx - qx * bz, g2 + qx * by - qy * bx
        g3, g4, g5 = g3 + bx, g4 + by, g5 + bz
        # one column of C after the other, of which three numbers more than the sums are held at a time
        k0, k1, k2 = qy * cxz - qz * cxy, qz * cxx - qx * cxz, qx * cxy - qy * cxx
        h30, h31, h32, h33 = h30 + k0, h31 + k1, h32 + k2, h33 + cxx
        h10, h11 = h10 + qz * k0, h11 + qz * k1
        h20, h21, h22 = h20 - qy * k0, h21 - qy * k1, h22 - qy * k2
        k0, k1, k2 = qy * cyz - qz * cyy, qz * cxy - qx * cyz, qx * cyy - qy * cxy
        h40, h41, h42, h43, h44 = h40 + k0, h41 + k1, h42 + k2, h43 + cxy, h44 + cyy
        h00, h20, h21, h22 = h00 - qz * k0, h20 + qx * k0, h21 + qx * k1, h22 + qx * k2
        k0, k1, k2 = qy * czz - qz * cyz, qz * cxz - qx * czz, qx * cyz - qy * cxz
        h50, h51, h52, h53, h54, h55 = h50 + k0, h51 + k1, h52 + k2, h53 + cxz, h54 + cyz, h55 + czz
        h00, h10, h11 = h00 + qy * k0, h10 - qx * k0, h11 - qx * k1
        if curved is not None:
            # second order of exp: omega x (omega x q) = omega (omega . q) - q |omega|^2
            m0, m1, m2 = bx * qx, by * qy, bz * qz
            h00, h11, h22 = h00 - (m1 + m2), h11 - (m0 + m2), h22 - (m0 + m1)
            h10 += 0.5 * (bx * qy + by * qx)
            h20 += 0.5 * (bx * qz + bz * qx)
            h21 += 0.5 * (by * qz + bz * qy)
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
def _accumulate(tile: Any, robust: Any, pose: Any, curved: Any, sums: Any) -> None:
    """`accumulate` with what is not there as None. Under a robust kernel no lens is one without coefficients."""
    if tile.lens == FISHEYE:
        accumulate(tile, robust, pose, 1, 1, curved, sums)
    elif robust.code:
        accumulate(tile, robust, pose, 1, None, curved, sums)
    elif tile.lens:
        accumulate(tile, None, pose, 1, None, curved, sums)
    else:
        accumulate(tile, None, pose, None, None, curved, sums)


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
    if curved:
        _accumulate(tile, robust, pose, 1, sums)
    else:
        _accumulate(tile, robust, pose, None, sums)
    if tile.spread:
        nearest = lowest(load(sums, NEAREST))
        for k in range(0, SUMS, L):
            store(sums, k, splat(total(load(sums, k)), sums))
        store(sums, NEAREST, splat(nearest, sums))
    cost = load(sums, COST)
    cost = where_less(cost, np.inf, cost, np.inf)
    return where_less(0.0, load(sums, NEAREST), cost, np.inf)
