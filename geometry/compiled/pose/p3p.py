"""P3P of eight samples, one in each lane: the arithmetic of `geometry.consensus.minimal.p3p`."""

import math
from typing import Any

import numpy as np

from geometry.compiled.constants import FISHEYE

from ..vectors import exp, fabs, jit, load, log, splat, sqrt, store, where_less
from .equations import POSE, L
from .tile import of_point

__all__ = ["POSES", "ROOTS", "SAMPLE", "fill_sample", "p3p"]

SAMPLE = 18 * L  # three rays, then three points
ROOTS = 4
POSES = ROOTS * (POSE + L)  # each root's pose, then 1 where it is one


@jit
def _cross(ax: Any, ay: Any, az: Any, bx: Any, by: Any, bz: Any) -> Any:
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@jit
def _unit(x: Any, y: Any, z: Any) -> Any:
    s = 1.0 / sqrt(x * x + y * y + z * z)
    return x * s, y * s, z * s


@jit
def _pick(a: Any, b: Any, c: Any, p: Any, q: Any, r: Any) -> Any:
    """p where a is the largest of a, b, c; q where b is; r where c is."""
    return where_less(a, b, where_less(b, c, r, q), where_less(a, c, r, p))


@jit
def _largest(first: Any, second: Any, third: Any) -> Any:
    """The longest of three vectors."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = first, second, third
    a, b, c = ax * ax + ay * ay + az * az, bx * bx + by * by + bz * bz, cx * cx + cy * cy + cz * cz
    return _pick(a, b, c, ax, bx, cx), _pick(a, b, c, ay, by, cy), _pick(a, b, c, az, bz, cz)


@jit
def _adjugate(xx: Any, xy: Any, xz: Any, yy: Any, yz: Any, zz: Any) -> Any:
    return (
        yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy, xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    )  # fmt: skip


@jit
def _trace(a: Any, b: Any) -> Any:
    """Trace of the product of two symmetric matrices."""
    return a[0] * b[0] + a[3] * b[3] + a[5] * b[5] + 2.0 * (a[1] * b[1] + a[2] * b[2] + a[4] * b[4])


@jit
def _singular_member(first: Any, second: Any) -> Any:
    """(u : v), of length one, with det(u first + v second) = 0."""
    adjugate, adjugate2 = (
        _adjugate(first[0], first[1], first[2], first[3], first[4], first[5]),
        _adjugate(second[0], second[1], second[2], second[3], second[4], second[5]),
    )
    c0, c1 = _trace(adjugate, first) * (1.0 / 3.0), _trace(adjugate, second)
    c2, c3 = _trace(adjugate2, first), _trace(adjugate2, second) * (1.0 / 3.0)
    a0, a3 = fabs(c0), fabs(c3)
    low, high = where_less(a3, a0, c3, c0), where_less(a3, a0, c0, c3)
    inverse = 1.0 / high
    shift = where_less(a3, a0, c1, c2) * inverse * (1.0 / 3.0)
    s = where_less(a3, a0, c2, c1) * inverse
    p, q = s - 3.0 * shift * shift, shift * (2.0 * shift * shift - s) + low * inverse
    size = fabs(q)
    y = sqrt(where_less(p, 0.0, (-4.0 / 3.0) * p, 0.0)) + exp((1.0 / 3.0) * log(size))
    for _ in range(8):
        slope = 3.0 * y * y + p
        y = y - (y * (y * y + p) - size) / where_less(1e-300, slope, slope, 1e-300)
    g = where_less(0.0, q, -y, y) - shift
    scale = 1.0 / sqrt(1.0 + g * g)
    return where_less(a3, a0, g, 1.0) * scale, where_less(a3, a0, 1.0, g) * scale


@jit
def _form(m: Any, ax: Any, ay: Any, az: Any, bx: Any, by: Any, bz: Any) -> Any:
    """a^T m b."""
    return (
        ax * (m[0] * bx + m[1] * by + m[2] * bz)
        + ay * (m[1] * bx + m[3] * by + m[4] * bz)
        + az * (m[2] * bx + m[4] * by + m[5] * bz)
    )


@jit
def _meet(lx: Any, ly: Any, lz: Any, conic: Any, eps: Any, out: Any, o: Any) -> None:
    """The two points of a line on a conic; NaN where they are not real."""
    zero, one = splat(0.0, lx), splat(1.0, lx)
    a, b, c = -fabs(lx), -fabs(ly), -fabs(lz)
    ex, ey, ez = _pick(a, b, c, one, zero, zero), _pick(a, b, c, zero, one, zero), _pick(a, b, c, zero, zero, one)
    ux, uy, uz = _cross(lx, ly, lz, ex, ey, ez)
    ux, uy, uz = _unit(ux, uy, uz)
    vx, vy, vz = _cross(lx, ly, lz, ux, uy, uz)
    vx, vy, vz = _unit(vx, vy, vz)
    a, b = _form(conic, ux, uy, uz, ux, uy, uz), _form(conic, ux, uy, uz, vx, vy, vz)
    c = _form(conic, vx, vy, vz, vx, vy, vz)
    discriminant = b * b - a * c
    least = -16.0 * eps**0.5 * (b * b + fabs(a * c))
    root = sqrt(where_less(least, discriminant, fabs(discriminant), np.nan))
    q = where_less(0.0, b, -b - root, root - b)
    store(out, o, q * ux + a * vx)
    store(out, o + L, q * uy + a * vy)
    store(out, o + 2 * L, q * uz + a * vz)
    store(out, o + 3 * L, c * ux + q * vx)
    store(out, o + 4 * L, c * uy + q * vy)
    store(out, o + 5 * L, c * uz + q * vz)


@jit
def _depths(squares: Any, cosines: Any, eps: Any, out: Any) -> None:
    """Four depths (x, y, z) up to scale; NaN for those that are not real.

    squares: of the distances xy, xz, yz of the points; cosines: of the angles between their rays.
    """
    (axy, axz, ayz), (cxy, cxz, cyz) = squares, cosines
    zero = splat(0.0, axy)
    first = (ayz, -ayz * cxy, zero, ayz - axy, axy * cyz, -axy)
    second = (ayz, zero, -ayz * cxz, -axz, axz * cyz, ayz - axz)
    u, v = _singular_member(first, second)
    xx, xy, xz = u * first[0] + v * second[0], u * first[1], v * second[2]
    yy, yz, zz = u * first[3] + v * second[3], u * first[4] + v * second[4], u * first[5] + v * second[5]
    other = (
        u * second[0] - v * first[0], -v * first[1], u * second[2],
        u * second[3] - v * first[3], u * second[4] - v * first[4], u * second[5] - v * first[5],
    )  # fmt: skip
    kxx, kxy, kxz, kyy, kyz, kzz = _adjugate(xx, xy, xz, yy, yz, zz)
    a, b, c = -kxx, -kyy, -kzz
    most = _pick(a, b, c, a, b, c)
    scale = 1.0 / sqrt(where_less(0.0, most, most, np.nan))
    px, py, pz = (
        scale * _pick(a, b, c, kxx, kxy, kxz),
        scale * _pick(a, b, c, kxy, kyy, kyz),
        scale * _pick(a, b, c, kxz, kyz, kzz),
    )
    lx, ly, lz = _largest((xx, xy - pz, xz + py), (xy + pz, yy, yz - px), (xz - py, yz + px, zz))
    _meet(lx, ly, lz, other, eps, out, 0)
    lx, ly, lz = _largest((xx, xy + pz, xz - py), (xy - pz, yy, yz + px), (xz + py, yz - px, zz))
    _meet(lx, ly, lz, other, eps, out, 6 * L)


@jit
def _newton(x: Any, y: Any, z: Any, squares: Any, cosines: Any) -> Any:
    """A Newton step on the three quadrics of `_depths`, and the largest of their errors before it."""
    (axy, axz, ayz), (cxy, cxz, cyz) = squares, cosines
    e = x * x + y * y - 2.0 * cxy * x * y - axy
    f = x * x + z * z - 2.0 * cxz * x * z - axz
    g = y * y + z * z - 2.0 * cyz * y * z - ayz
    xx, xy, yx, yz, zy, zz = x - cxy * y, y - cxy * x, x - cxz * z, z - cxz * x, y - cyz * z, z - cyz * y
    scale = 0.5 / (xx * yz * zy + xy * yx * zz)
    nx = x + scale * (-yz * zy * e - xy * zz * f + xy * yz * g)
    ny = y + scale * (-yx * zz * e + xx * zz * f - xx * yz * g)
    nz = z + scale * (yx * zy * e - xx * zy * f - xy * yx * g)
    e, f, g = fabs(e), fabs(f), fabs(g)
    return nx, ny, nz, _pick(e, f, g, e, f, g)


@jit
def _frame(points: Any, o: Any, out: Any) -> None:
    """The orthonormal frame of a triangle, column by column."""
    ax, ay, az = load(points, o), load(points, o + L), load(points, o + 2 * L)
    bx, by, bz = load(points, o + 3 * L) - ax, load(points, o + 4 * L) - ay, load(points, o + 5 * L) - az
    cx, cy, cz = load(points, o + 6 * L) - ax, load(points, o + 7 * L) - ay, load(points, o + 8 * L) - az
    nx, ny, nz = _cross(bx, by, bz, cx, cy, cz)
    bx, by, bz = _unit(bx, by, bz)
    # the normal of a flat triangle is known to few digits; what is orthogonal to x by construction is so to all
    cx, cy, cz = _cross(nx, ny, nz, bx, by, bz)
    cx, cy, cz = _unit(cx, cy, cz)
    nx, ny, nz = _cross(bx, by, bz, cx, cy, cz)
    store(out, 0, bx)
    store(out, L, by)
    store(out, 2 * L, bz)
    store(out, 3 * L, cx)
    store(out, 4 * L, cy)
    store(out, 5 * L, cz)
    store(out, 6 * L, nx)
    store(out, 7 * L, ny)
    store(out, 8 * L, nz)


@jit
def fill_sample(tile: Any, rays: Any, i: Any, j: Any, lane: Any, sample: Any) -> None:
    """Point i of a spread tile, and its ray as of `form.fill_rays`, as number j of the three in a lane of a sample."""
    x, y = of_point(rays, 3, 0, i), of_point(rays, 3, 1, i)
    z = 0.5 - 0.5 * (x * x + y * y) if tile.lens == FISHEYE else 1.0
    length = 1.0 / math.sqrt(x * x + y * y + z * z)
    sample[3 * j * L + lane], sample[(3 * j + 1) * L + lane] = x * length, y * length
    sample[(3 * j + 2) * L + lane] = z * length
    for k in range(3):
        sample[(9 + 3 * j + k) * L + lane] = of_point(tile.points, 7, k, i)


@jit
def p3p(sample: Any, eps: Any, work: Any, poses: Any) -> None:
    """Four poses of the three unit rays and three points of a sample, and which of them exist. work: (39 L).

    poses (ROOTS (POSE + L)): for every root a pose as in `equations`, then 1 in the lanes that have this root, else 0.
    """
    depths, world, camera, frame = work[: 12 * L], work[12 * L : 21 * L], work[21 * L : 30 * L], work[30 * L : 39 * L]
    for i in range(3):
        k, m = ((0, 3), (0, 6), (3, 6))[i]
        a, c = splat(0.0, sample), splat(0.0, sample)
        for j in range(3):
            difference = load(sample, (9 + k + j) * L) - load(sample, (9 + m + j) * L)
            a += difference * difference
            c += load(sample, (k + j) * L) * load(sample, (m + j) * L)
        store(camera, i * L, a)
        store(camera, (3 + i) * L, c)
    axy, axz, ayz = load(camera, 0), load(camera, L), load(camera, 2 * L)
    cxy, cxz, cyz = load(camera, 3 * L), load(camera, 4 * L), load(camera, 5 * L)
    size = axy + axz + ayz
    inverse = 1.0 / size
    squares, cosines, size = (axy * inverse, axz * inverse, ayz * inverse), (cxy, cxz, cyz), sqrt(size)
    _depths(squares, cosines, eps, depths)
    _frame(sample, 9 * L, world)
    mx = (load(sample, 9 * L) + load(sample, 12 * L) + load(sample, 15 * L)) * (1.0 / 3.0)
    my = (load(sample, 10 * L) + load(sample, 13 * L) + load(sample, 16 * L)) * (1.0 / 3.0)
    mz = (load(sample, 11 * L) + load(sample, 14 * L) + load(sample, 17 * L)) * (1.0 / 3.0)
    tolerance = eps**0.5
    for root in range(ROOTS):
        o, d = root * (POSE + L), 3 * root * L
        x, y, z = load(depths, d), load(depths, d + L), load(depths, d + 2 * L)
        quadric = 2.0 * (x * x + y * y + z * z - cxy * x * y - cxz * x * z - cyz * y * z)
        scale = 1.0 / sqrt(quadric)
        scale = where_less(x + y + z, 0.0, -scale, scale)
        x, y, z = x * scale, y * scale, z * scale
        for _ in range(5):
            x, y, z, _ = _newton(x, y, z, squares, cosines)
        nearest, farthest = -_pick(-x, -y, -z, -x, -y, -z), _pick(x, y, z, x, y, z)
        nx, ny, nz, error = _newton(x, y, z, squares, cosines)
        bound = tolerance * where_less(1.0, farthest, farthest * farthest, 1.0)
        good = where_less(0.0, nearest, where_less(error, bound, splat(1.0, sample), 0.0), 0.0)
        nx, ny, nz = nx * size, ny * size, nz * size
        for j in range(3):
            store(camera, j * L, nx * load(sample, j * L))
            store(camera, (3 + j) * L, ny * load(sample, (3 + j) * L))
            store(camera, (6 + j) * L, nz * load(sample, (6 + j) * L))
        _frame(camera, 0, frame)
        everything = splat(0.0, sample)
        for i in range(3):
            t = (load(camera, i * L) + load(camera, (3 + i) * L) + load(camera, (6 + i) * L)) * (1.0 / 3.0)
            for j in range(3):
                r = load(frame, i * L) * load(world, j * L) + load(frame, (3 + i) * L) * load(world, (3 + j) * L)
                r += load(frame, (6 + i) * L) * load(world, (6 + j) * L)
                store(poses, o + (3 * i + j) * L, r)
                t -= r * (mx if j == 0 else my if j == 1 else mz)
                everything += fabs(r)
            store(poses, o + (9 + i) * L, t)
            everything += fabs(t)
        store(poses, o + POSE, where_less(everything, np.inf, good, 0.0))
