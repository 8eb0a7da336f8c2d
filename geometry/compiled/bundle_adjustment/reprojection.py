"""Derivatives of reprojection errors for the bundle, eight observations at a time.

The closed forms of `geometry.bundle_adjustment.problem`. In vectors of L lanes: the pose of each observation's view (as
`equations` lays it out), its camera likewise, and a row: the point, the pixel from the principal point, its weights.
The unknowns of an observation are the columns (omega, v, kappa, X): its pose, the free intrinsics in the order of
`codes`, its point. codes: 0 to 4 for f, fx, fy, cx, cy, 5 + i for coefficient i of k1, k2, p1, p2, k3, or of a
fisheye's k1 to k4. A direction has two coordinates, as `lens` says; E takes a step of the point to them, times the
inverse of its depth, or of its distance for a fisheye.

Derivatives are one array, because every one that a tuple brings into a kernel of this size is counted up and down: two
rows J, then gradient, then the lower triangle H, each from its place on.
"""

from typing import Any, NamedTuple

from geometry.compiled.constants import FISHEYE

from ..pose.equations import L, rho
from ..pose.lens import Curve, Direction, angle_of, bend_of, curve, direction, distort, distort_bend, image, radial
from ..vectors import jit, load, splat, store, where_less

FREE = 10  # free intrinsics at the most
COLUMNS = 6 + FREE + 3
ENTRIES = COLUMNS * (COLUMNS + 1) // 2
GRADIENT = 2 * COLUMNS * L
H = 3 * COLUMNS * L
_WORK = H + ENTRIES * L
DERIVATIVES = _WORK + 27 * L


class Model(NamedTuple):
    """The lens, 0 for one without distortion, or FISHEYE; the robust kernel; whether the exact Hessian is wanted."""

    lens: Any
    robust: Any
    exact: Any


class _Ray(NamedTuple):
    """Of a point: x, y and 1 / depth; its direction and 1 / distance, `wide` for a fisheye."""

    x: Any
    y: Any
    inverse: Any
    at: Any
    wide: Any


class _Bend(NamedTuple):
    """What second derivatives need: q; the ray; slopes of the lens; a covector of the pixel."""

    q: Any
    ray: Any
    slopes: Any
    covector: Any


@jit
def _ray(wide: Any, px: Any, py: Any, pz: Any) -> Any:
    if wide:
        at, inverse = direction(px, py, pz)
        return _Ray(px, py, inverse, at, wide)
    inverse = 1.0 / pz
    return _Ray(px * inverse, py * inverse, inverse, Direction(px, py, px, py), wide)


@jit
def _by_point(ray: Any, gx: Any, gy: Any) -> Any:
    """Derivatives by the point, of those by the two coordinates of its direction."""
    if ray.wide:
        a, b, sine, cosine = ray.at
        gx, gy = gx * ray.inverse, gy * ray.inverse
        return cosine * a * gx - b * gy, cosine * b * gx + a * gy, -sine * gx
    gx, gy = gx * ray.inverse, gy * ray.inverse
    return gx, gy, -(ray.x * gx + ray.y * gy)


@jit
def _basis(code: Any, camera: Any, ray: Any) -> Any:
    """u, v, u_x, u_y, v_x, v_y of what one coefficient multiplies, x and y the coordinates of the direction."""
    zero, x, y = splat(0.0, camera), ray.x, ray.y
    if ray.wide:
        angle = angle_of(ray.at.sine, ray.at.cosine)
        t = angle * angle
        power = t
        for _ in range(code - 5):
            power = power * t
        return image(ray.at, Curve(angle, angle * power, (2.0 * code - 7.0) * power, zero))
    if code == 7:
        return 2.0 * x * y, x * x + 3.0 * y * y, 2.0 * y, 2.0 * x, 2.0 * x, 6.0 * y
    if code == 8:
        return 3.0 * x * x + y * y, 2.0 * x * y, 6.0 * x, 2.0 * y, 2.0 * y, 2.0 * x
    r2 = x * x + y * y
    _, _, _, d, d1 = radial(camera, r2)
    # h(r2) = r2^n d(r2) and its derivative
    if code == 5:
        h, h1 = r2 * d, d
    elif code == 6:
        h, h1 = r2 * r2 * d, 2.0 * r2 * d
    else:
        h, h1 = r2 * r2 * r2 * d, 3.0 * r2 * r2 * d
    h1 = 2.0 * (h1 - h * d * d1) + zero
    return x * h, y * h, h + x * x * h1, x * y * h1, x * y * h1, h + y * y * h1


@jit
def _at(a: Any, b: Any) -> Any:
    """Place of entry (a, b), b <= a, of the lower triangle."""
    return H + (a * (a + 1) // 2 + b) * L


@jit
def derive(pose: Any, camera: Any, row: Any, codes: Any, model: Any, out: Any) -> Any:
    """rho(|r|^2) of observations, and its derivatives (DERIVATIVES)."""
    lens, robust, exact = model
    P = len(codes)
    n = 9 + P
    X, Y, Z = load(row, 0), load(row, L), load(row, 2 * L)
    qx = load(pose, 0) * X + load(pose, L) * Y + load(pose, 2 * L) * Z
    qy = load(pose, 3 * L) * X + load(pose, 4 * L) * Y + load(pose, 5 * L) * Z
    qz = load(pose, 6 * L) * X + load(pose, 7 * L) * Y + load(pose, 8 * L) * Z
    ray = _ray(lens == FISHEYE, qx + load(pose, 9 * L), qy + load(pose, 10 * L), qz + load(pose, 11 * L))
    x, y = ray.x, ray.y
    a00, a01, a10, a11 = load(camera, 0), load(camera, L), load(camera, 2 * L), load(camera, 3 * L)
    one, zero = splat(1.0, row), splat(0.0, row)
    u, v, u_x, u_y, v_x, v_y = x, y, one, zero, zero, one
    if ray.wide:
        u, v, u_x, u_y, v_x, v_y = image(ray.at, curve(camera, angle_of(ray.at.sine, ray.at.cosine)))
    elif lens:
        u, v, u_x, u_y, v_x, v_y = distort(camera, x, y)
    wu, wv = load(row, 5 * L), load(row, 6 * L)
    ru = wu * (a00 * u + a01 * v - load(row, 3 * L))
    rv = wv * (a10 * u + a11 * v - load(row, 4 * L))
    ru, rv = where_less(0.0, wu * wu, ru, zero), where_less(0.0, wv * wv, rv, zero)
    # derivative of the weighted pixel by the direction's coordinates, then by p
    d00, d01 = wu * (a00 * u_x + a01 * v_x), wu * (a00 * u_y + a01 * v_y)
    d10, d11 = wv * (a10 * u_x + a11 * v_x), wv * (a10 * u_y + a11 * v_y)
    d00, d01 = where_less(0.0, wu * wu, d00, zero), where_less(0.0, wu * wu, d01, zero)
    d10, d11 = where_less(0.0, wv * wv, d10, zero), where_less(0.0, wv * wv, d11, zero)
    for i in range(2):
        gx, gy, gz = _by_point(ray, d00, d01) if i == 0 else _by_point(ray, d10, d11)
        o = i * n * L
        store(out, o, qy * gz - qz * gy)
        store(out, o + L, qz * gx - qx * gz)
        store(out, o + 2 * L, qx * gy - qy * gx)
        store(out, o + 3 * L, gx)
        store(out, o + 4 * L, gy)
        store(out, o + 5 * L, gz)
        for k in range(3):
            turned = load(pose, k * L) * gx + load(pose, (3 + k) * L) * gy + load(pose, (6 + k) * L) * gz
            store(out, o + (6 + P + k) * L, turned)
    for k in range(P):
        ju, jv = zero, zero
        code = codes[k]
        if code == 0:
            ju, jv = wu * (a00 * u + a01 * v) / a00, wv * (a10 * u + a11 * v) / a00
        elif code == 1:
            ju = wu * u
        elif code == 2:
            jv = wv * v
        elif code == 3:
            ju = wu
        elif code == 4:
            jv = wv
        else:
            bu, bv, _, _, _, _ = _basis(code, camera, ray)
            ju, jv = wu * (a00 * bu + a01 * bv), wv * (a10 * bu + a11 * bv)
        store(out, (6 + k) * L, where_less(0.0, wu * wu, ju, zero))
        store(out, (n + 6 + k) * L, where_less(0.0, wv * wv, jv, zero))
    s, slope, bend = rho(robust, ru * ru + rv * rv)
    for a in range(n):
        ja, ka = load(out, a * L), load(out, (n + a) * L)
        store(out, GRADIENT + a * L, ja * ru + ka * rv)
        ja, ka = slope * ja, slope * ka
        g = 2.0 * bend * load(out, GRADIENT + a * L)
        for b in range(a + 1):
            h = ja * load(out, b * L) + ka * load(out, (n + b) * L)
            if exact and robust.code:
                h += g * load(out, GRADIENT + b * L)
            store(out, _at(a, b), h)
    for a in range(n):
        store(out, GRADIENT + a * L, slope * load(out, GRADIENT + a * L))
    ru, rv = slope * ru, slope * rv
    if exact:
        _add_curvature(
            pose, camera, lens, codes, _Bend((qx, qy, qz), ray, (u_x, u_y, v_x, v_y), (wu * ru, wv * rv)), out
        )
    return s


@jit
def _add_curvature(pose: Any, camera: Any, lens: Any, codes: Any, bend: Any, out: Any) -> None:
    """Add to H what the second derivatives of the pixels contribute along the covector."""
    P = len(codes)
    ray = bend.ray
    x, y, iz = ray.x, ray.y, ray.inverse
    u_x, u_y, v_x, v_y = bend.slopes
    cu, cv = bend.covector
    a00, a01, a10, a11 = load(camera, 0), load(camera, L), load(camera, 2 * L), load(camera, 3 * L)
    bu, bv = cu * a00 + cv * a10, cu * a01 + cv * a11
    kxx, kxy, kyy = splat(0.0, camera), splat(0.0, camera), splat(0.0, camera)
    if ray.wide:
        kxx, kxy, kyy = bend_of(camera, ray.at, curve(camera, angle_of(ray.at.sine, ray.at.cosine)), bu, bv)
    elif lens:
        kxx, kxy, kyy = distort_bend(camera, x, y, bu, bv)
    beta_x, beta_y = bu * u_x + bv * v_x, bu * u_y + bv * v_y
    # Hessian by p
    iz2 = iz * iz
    if ray.wide:
        # E^T K E, less the gradient times the vector outwards over the distance, and its transposed
        a, b, sine, cosine = ray.at
        ex, ey = cosine * a, cosine * b
        fx, fy, hx, hy = ex * kxx - b * kxy, ey * kxx + a * kxy, ex * kxy - b * kyy, ey * kxy + a * kyy
        tx, ty, tz = ex * beta_x - b * beta_y, ey * beta_x + a * beta_y, -sine * beta_x
        mx, my, mz = sine * a, sine * b, cosine
        pxx, pyy = ex * fx - b * hx - 2.0 * tx * mx, ey * fy + a * hy - 2.0 * ty * my
        pxy, pzz = ey * fx + a * hx - tx * my - ty * mx, sine * sine * kxx - 2.0 * tz * mz
        pxz, pyz = -sine * fx - tx * mz - tz * mx, -sine * fy - ty * mz - tz * my
        pxx, pxy, pxz, pyy, pyz, pzz = pxx * iz2, pxy * iz2, pxz * iz2, pyy * iz2, pyz * iz2, pzz * iz2
    else:
        along_x, along_y = kxx * x + kxy * y, kxy * x + kyy * y
        pxx, pxy, pyy = kxx * iz2, kxy * iz2, kyy * iz2
        pxz, pyz = -(along_x + beta_x) * iz2, -(along_y + beta_y) * iz2
        pzz = (along_x * x + along_y * y + 2.0 * (beta_x * x + beta_y * y)) * iz2
    # d p by every column but kappa, three vectors each
    qx, qy, qz = bend.q
    zero, one = splat(0.0, camera), splat(1.0, camera)
    _store3(out, 0, zero, -qz, qy)
    _store3(out, 1, qz, zero, -qx)
    _store3(out, 2, -qy, qx, zero)
    _store3(out, 3, one, zero, zero)
    _store3(out, 4, zero, one, zero)
    _store3(out, 5, zero, zero, one)
    for k in range(3):
        _store3(out, 6 + k, load(pose, k * L), load(pose, (3 + k) * L), load(pose, (6 + k) * L))
    for i in range(9):
        a = i if i < 6 else i + P
        mx, my, mz = _load3(out, i)
        hx = pxx * mx + pxy * my + pxz * mz
        hy = pxy * mx + pyy * my + pyz * mz
        hz = pxz * mx + pyz * my + pzz * mz
        for j in range(i + 1):
            b = j if j < 6 else j + P
            nx, ny, nz = _load3(out, j)
            more = hx * nx + hy * ny + hz * nz
            store(out, _at(a, b), load(out, _at(a, b)) + more)
    # by kappa and p, and by two of kappa
    for k in range(P):
        code = codes[k]
        gx, gy = zero, zero
        if code == 0:
            gx, gy = beta_x / a00, beta_y / a00
        elif code == 1:
            gx, gy = cu * u_x, cu * u_y
        elif code == 2:
            gx, gy = cv * v_x, cv * v_y
        elif code > 4:
            _, _, e_x, e_y, f_x, f_y = _basis(code, camera, ray)
            gx, gy = bu * e_x + bv * f_x, bu * e_y + bv * f_y
        gx, gy, gz = _by_point(ray, gx, gy)
        for i in range(9):
            a = i if i < 6 else i + P
            mx, my, mz = _load3(out, i)
            more = gx * mx + gy * my + gz * mz
            place = _at(6 + k, a) if a < 6 else _at(a, 6 + k)
            store(out, place, load(out, place) + more)
        for m in range(P):
            if codes[m] < 5 or code > 2:
                continue
            e, f, _, _, _, _ = _basis(codes[m], camera, ray)
            if code == 0:
                more = (bu * e + bv * f) / a00
            elif code == 1:
                more = cu * e
            else:
                more = cv * f
            place = _at(6 + m, 6 + k) if m > k else _at(6 + k, 6 + m)
            store(out, place, load(out, place) + more)
    # second order of exp(omega) R (X + dX): omega x (omega x q), and omega x R dX, along the gradient by p
    ax, ay, az = load(out, GRADIENT + 3 * L), load(out, GRADIENT + 4 * L), load(out, GRADIENT + 5 * L)
    m0, m1, m2 = ax * qx, ay * qy, az * qz
    _add(out, 0, 0, -(m1 + m2))
    _add(out, 1, 1, -(m0 + m2))
    _add(out, 2, 2, -(m0 + m1))
    _add(out, 1, 0, 0.5 * (ax * qy + ay * qx))
    _add(out, 2, 0, 0.5 * (ax * qz + az * qx))
    _add(out, 2, 1, 0.5 * (ay * qz + az * qy))
    for k in range(3):
        rx, ry, rz = load(pose, k * L), load(pose, (3 + k) * L), load(pose, (6 + k) * L)
        _add(out, 6 + P + k, 0, ry * az - rz * ay)
        _add(out, 6 + P + k, 1, rz * ax - rx * az)
        _add(out, 6 + P + k, 2, rx * ay - ry * ax)


@jit
def _load3(out: Any, place: Any) -> Any:
    o = _WORK + 3 * place * L
    return load(out, o), load(out, o + L), load(out, o + 2 * L)


@jit
def _store3(out: Any, place: Any, a: Any, b: Any, c: Any) -> None:
    store(out, _WORK + 3 * place * L, a)
    store(out, _WORK + (3 * place + 1) * L, b)
    store(out, _WORK + (3 * place + 2) * L, c)


@jit
def _add(out: Any, a: Any, b: Any, value: Any) -> None:
    store(out, _at(a, b), load(out, _at(a, b)) + value)
