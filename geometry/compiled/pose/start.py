"""The global start of PnP on the CPU, compiled: `geometry.pose.start` for the lens model "radtan".

The stages and the formulas are those of `geometry.pose.start`; here the eight lanes of a vector hold

1. rays and the form r^T Omega r: eight points, whose sums are added up at the end;
2. the descent on SO(3): eight of the 24 rotations;
3. the first refinement: eight candidates, over the same few points in every lane;
4. the last refinement, of those that may still be the best: eight points again ("spread"), all of them.

With n = (x, y, 1) on the ray of a pixel, V = w^2 (I - n n^T / |n|^2) has six numbers, and all that the first two stages
need of the points are the 60 products of these with 1, X, Y, Z, XX, XY, XZ, YY, YZ, ZZ.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit

from geometry.compiled.pose.descent import blend, levenberg_marquardt, retract
from geometry.compiled.pose.equations import CAMERA, OPTIONS, POSE, ROW, L, distort, jit, store6
from geometry.compiled.pose.tile import INPUTS, fill, finite, rows_of, write_pose
from geometry.compiled.vectors import get, highest, load, lowest, splat, store, total, where_less
from geometry.se3 import cube_rotations

__all__ = ["start"]

_DESCENT_STEPS = 8
_DISTINCT = 1.0 + 2.0 * math.cos(0.1)  # of the trace of R_a^T R_b: 0.1 rad
_FEW = 64  # points of the first refinement
_FIRST_STEPS, _LAST_STEPS = 6, 12
_ENOUGH = 1e-4  # relative decrease that is left to `solve`
_HOPELESS = 100.0  # times the lowest cost: not worth another step
_GRADUAL = (900.0, 64.0, 4.0, 1.0)  # times the squared scale of a robust kernel, one after the other

_SYMMETRIC = np.array([0, 1, 2, 1, 3, 4, 2, 4, 5])  # entry (i, j) among xx, xy, xz, yy, yz, zz
_ROTATIONS = 3  # vectors of rotations
_FORM = 60
_WORK = 74 * L


# The 24 rotations of `geometry.se3` as three poses of eight lanes each, t = 0.
_CUBE = np.pad(
    cube_rotations(torch.float64, torch.device("cpu")).numpy().reshape(_ROTATIONS, L, 9).transpose(0, 2, 1),
    ((0, 0), (0, 3), (0, 0)),
).reshape(-1)


@jit
def fill_rays(tile: Any, rows: Any, camera: Any, lens: Any, tolerance: Any, eps: Any, rays: Any) -> None:
    """x, y of the ray (x, y, 1) and squared weight of every point of a spread tile (`geometry.camera.unproject`).

    The weight is zero where the lens has no or no unique ray.
    """
    a, b, c, d = load(camera, 0), load(camera, L), load(camera, 2 * L), load(camera, 3 * L)
    scale = 1.0 / (a * d - b * c)
    for j in range(rows):
        o = j * ROW
        u, v = load(tile, o + 3 * L), load(tile, o + 4 * L)
        wu, wv = load(tile, o + 5 * L), load(tile, o + 6 * L)
        tx, ty = (d * u - b * v) * scale, (a * v - c * u) * scale
        x, y, good = tx, ty, splat(1.0, tile)
        if lens:
            for _ in range(20):
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
            # both eigenvalues positive: far out a folded lens may turn both, and the determinant does not show it
            good = where_less(0.0, j00 * j11 - j01 * j10, good, 0.0)
            good = where_less(0.0, j00 + j11, good, 0.0)
        good = where_less(x * x + y * y, np.inf, good, 0.0)
        store(rays, 3 * j * L, where_less(0.5, good, x, 0.0))
        store(rays, (3 * j + 1) * L, where_less(0.5, good, y, 0.0))
        store(rays, (3 * j + 2) * L, 0.5 * good * (wu * wu + wv * wv))


@jit
def _sum_up(tile: Any, rows: Any, rays: Any, work: Any, form: Any, middle: Any) -> Any:
    """The 60 sums of the object-space error, of points about their weighted centre `middle` and of size 1.

    Returns the size that was divided by.
    """
    sums, products = work[: _FORM * L], work[_FORM * L : (_FORM + 10) * L]
    weight, cx, cy, cz = splat(0.0, tile), splat(0.0, tile), splat(0.0, tile), splat(0.0, tile)
    for j in range(rows):
        o, w = j * ROW, load(rays, (3 * j + 2) * L)
        weight += w
        cx, cy, cz = cx + w * load(tile, o), cy + w * load(tile, o + L), cz + w * load(tile, o + 2 * L)
    scale = total(weight)
    scale = 1.0 / scale if scale > 0.0 else 0.0 * scale
    middle[0], middle[1], middle[2] = total(cx) * scale, total(cy) * scale, total(cz) * scale
    cx, cy, cz = splat(middle[0], tile), splat(middle[1], tile), splat(middle[2], tile)
    for k in range(_FORM):
        store(sums, k * L, 0.0)
    store(products, 0, 1.0)
    for j in range(rows):
        o = j * ROW
        X, Y, Z = load(tile, o) - cx, load(tile, o + L) - cy, load(tile, o + 2 * L) - cz
        store6(products, L, X, Y, Z, X * X, X * Y, X * Z)
        store(products, 7 * L, Y * Y)
        store(products, 8 * L, Y * Z)
        store(products, 9 * L, Z * Z)
        x, y = load(rays, 3 * j * L), load(rays, (3 * j + 1) * L)
        f = scale * load(rays, (3 * j + 2) * L) / (1.0 + x * x + y * y)
        xx, xy, xz, yy, yz, zz = f + y * y * f, -x * y * f, -x * f, f + x * x * f, -y * f, (x * x + y * y) * f
        for k in range(10):
            m, o = load(products, k * L), 6 * k * L
            a, b, c = load(sums, o) + m * xx, load(sums, o + L) + m * xy, load(sums, o + 2 * L) + m * xz
            d, e = load(sums, o + 3 * L) + m * yy, load(sums, o + 4 * L) + m * yz
            store6(sums, o, a, b, c, d, e, load(sums, o + 5 * L) + m * zz)
    for k in range(_FORM):
        form[k] = total(load(sums, k * L))
    # trace V = 2 w^2
    size = 0.0
    for k in (4, 7, 9):
        size += 0.5 * (form[6 * k] + form[6 * k + 3] + form[6 * k + 5])
    size = math.sqrt(size) if size > 0.0 else 1.0
    for k in range(6, _FORM):
        form[k] /= size if k < 24 else size * size
    return size


@jit
def _quadratic_form(form: Any, eps: Any, omega: Any, T: Any) -> None:
    """Omega (9 x 9) over r = (first, second, third column of R), and T (3 x 9) with t = T r; zero if not finite."""
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
        omega[:], T[:] = 0.0, 0.0


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
def _descend(omega: Any, R: Any, work: Any) -> Any:
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
def _place(R: Any, T: Any, form: Any, value: Any) -> Any:
    """Set t = T r; the value of those behind the camera is raised by 2, above all others."""
    depth = splat(0.0, R)
    for i in range(3):
        t = splat(0.0, R)
        for q in range(9):
            t += T[9 * i + q] * load(R, (3 * (q % 3) + q // 3) * L)
        store(R, (9 + i) * L, t)
        # mean of n / |n|^2 . (R X + t): the weights of n are found in those of V
        for k in range(4):
            o = 6 * k
            n = -form[o + 2] if i == 0 else -form[o + 4]
            if i == 2:
                n = 0.5 * (form[o] + form[o + 3] - form[o + 5])
            depth += n * (t if k == 0 else load(R, (3 * i + k - 1) * L))
    return where_less(0.0, depth, value, value + 2.0)


@jit
def _choose(rotations: Any, values: Any, size: Any, middle: Any, pose: Any) -> Any:
    """The lowest distinct minima, lane by lane, about the centre of the tile. Returns their number; the rest is copied.

    Minima behind the camera are taken only where there is none ahead.
    """
    count = 0
    for lane in range(L):
        best = 0
        for s in range(1, _ROTATIONS * L):
            if get(values, s) < get(values, best):
                best = s
        if lane > 0 and not get(values, best) < 1.5:
            for k in range(12):
                pose[k * L + lane] = pose[k * L]
            continue
        count += 1
        o = best // L * POSE + best % L
        for i in range(3):
            t = rotations[o + (9 + i) * L] * size
            for j in range(3):
                r = rotations[o + (3 * i + j) * L]
                pose[(3 * i + j) * L + lane] = r
                t -= r * middle[j]
            pose[(9 + i) * L + lane] = t
        for v in range(_ROTATIONS):
            trace = splat(0.0, pose)
            for k in range(9):
                trace += load(rotations, v * POSE + k * L) * pose[k * L + lane]
            store(values, v * L, where_less(_DISTINCT, trace, np.inf, load(values, v * L)))
    return count


@jit
def _lay_out(tile: Any, n: Any, count: Any, few: Any) -> Any:
    """Lay some of the visible points of a spread tile into every lane of `few`. Returns their number."""
    rows = min(count, _FEW)
    row, seen, wanted = 0, 0, 0
    for i in range(n):
        o = (i // L) * ROW + i % L
        if get(tile, o + 5 * L) == 0.0 and get(tile, o + 6 * L) == 0.0:
            continue
        if seen == wanted:
            for k in range(7):
                store(few, row * ROW + k * L, splat(get(tile, o + k * L), few))
            row += 1
            if row == rows:
                break
            # strides that are even but for a jitter, lest they run along the columns of a grid
            wanted = max(seen + 1, int((row + 0.618034 * row % 1.0) * count / rows))
        seen += 1
    return row


@jit
def _push_ahead(tile: Any, rows: Any, spread: Any, margin: Any, pose: Any) -> None:
    """Shift the poses along z until every point is at least `margin` ahead."""
    r20, r21, r22, tz = load(pose, 6 * L), load(pose, 7 * L), load(pose, 8 * L), load(pose, 11 * L)
    nearest = splat(np.inf, pose)
    for j in range(rows):
        o = j * ROW
        z = r20 * load(tile, o) + r21 * load(tile, o + L) + r22 * load(tile, o + 2 * L)
        nearest = where_less(z, nearest, z, nearest)
    if spread:
        nearest = splat(lowest(nearest), pose)
    store(pose, 11 * L, where_less(nearest + tz, margin, margin - nearest, tz))


@jit
def _trace(pose: Any, a: Any, b: Any) -> Any:
    """Trace of R_a^T R_b of two lanes."""
    s = 0.0
    for k in range(9):
        s += pose[k * L + a] * pose[k * L + b]
    return s


@jit
def _refine_few(
    few: Any, rows: Any, camera: Any, model: Any, eps: Any, pose: Any, other: Any,
    work: Any,
) -> Any:  # fmt: skip
    """Some steps on the candidates in all lanes at once, in place. Returns the costs.

    Gross outliers bend the start: with a robust kernel, the better of these steps and of those of graduated
    non-convexity, which begin with a kernel so wide that it is none (Yang, Antonante, Tzoumas and Carlone 2020,
    RA-L 5(2)).
    """
    lens, kind, scale2, alpha = model
    if not kind:
        cost, _ = levenberg_marquardt(few, rows, False, camera, model, _FIRST_STEPS, _ENOUGH, eps, pose, work)
        return cost
    other[:] = pose
    cost = splat(np.inf, pose)
    for wider in _GRADUAL:
        cost, _ = levenberg_marquardt(
            few, rows, False, camera, (lens, kind, scale2 * wider, alpha), _FIRST_STEPS, _ENOUGH, eps, pose, work
        )
    other_cost, _ = levenberg_marquardt(few, rows, False, camera, model, _FIRST_STEPS, _ENOUGH, eps, other, work)
    blend(where_less(other_cost, cost, splat(1.0, pose), 0.0), other, pose, POSE)
    return where_less(other_cost, cost, other_cost, cost)


@jit
def _refine_best(
    tile: Any, rows: Any, camera: Any, model: Any, eps: Any, size: Any,
    candidates: Any, pose: Any, costs: Any, alone: Any, work: Any,
) -> Any:  # fmt: skip
    """Refine the candidates that may be the global minimum on all points, in place. Returns the lanes of the best two.

    The second is distinct from the best; it is the best itself where there is no other.
    """
    best, second, refined = -1, -1, 0  # refined: a bit a lane
    for _ in range(candidates):
        lane = -1
        for k in range(candidates):
            if not refined >> k & 1 and (lane < 0 or costs[k] < costs[lane]):
                lane = k
        if best >= 0 and not costs[lane] <= _HOPELESS * costs[best]:
            break
        known = False
        for k in range(candidates):
            if refined >> k & 1 and _trace(pose, lane, k) > _DISTINCT:
                known = True
        refined |= 1 << lane
        if known:
            continue
        for k in range(12):
            store(alone, k * L, splat(pose[k * L + lane], alone))
        for pushed in range(2):
            if pushed:
                # a point that the first refinement has not seen lies behind
                _push_ahead(tile, rows, True, 0.1 * size, alone)
            cost, _ = levenberg_marquardt(tile, rows, True, camera, model, _LAST_STEPS, _ENOUGH, eps, alone, work)
            costs[lane] = highest(cost)
            if costs[lane] < np.inf:
                break
        for k in range(12):
            pose[k * L + lane] = alone[k * L]
        best = lane if best < 0 or costs[lane] < costs[best] else best
    for k in range(candidates):
        if _trace(pose, best, k) <= _DISTINCT and (second < 0 or costs[k] < costs[second]):
            second = k
    return best, second if second >= 0 else best


@jit
def _write(pose: Any, lane: Any, centre: Any, poses: Any, b: Any) -> None:
    """A lane as world_to_camera number b; the identity, one unit ahead, if that is not finite."""
    write_pose(pose, lane, centre, 0, poses, b)
    if not finite(poses[b].sum()):
        for i in range(3):
            for j in range(4):
                poses[b, i, j] = 1.0 if i == j or (i, j) == (2, 3) else 0.0


@njit(
    [f"void({INPUTS.format(t)}, int64, int64, {t}[:,:,::1], {t}[:,:,::1])" for t in ("float64", "float32")],
    cache=True, **OPTIONS,
)  # fmt: skip
def start(
    data: Any, kind: Any, scale2: Any, alpha: Any, eps: Any, begin: Any, end: Any, poses: Any, second: Any
) -> None:  # fmt: skip
    """Starts for `solve`: poses near the global minima, and next to the best minima that are distinct from these.

    Arguments as of `solve`. Writes poses and second (B,4,4), always finite; second is a copy of the first
    where no other minimum was found. Problems that cannot be solved get some pose: `solve` reports them.
    """
    n, lens = data[0].shape[1], data[3].shape[1]
    model = (lens, kind, scale2, alpha)
    rows = rows_of(data[0], True)
    tile, rays = np.empty(rows * ROW, poses.dtype), np.empty(rows * 3 * L, poses.dtype)
    few, rotations = np.empty(min(n, _FEW) * ROW, poses.dtype), np.empty(_ROTATIONS * POSE, poses.dtype)
    camera, centre, middle = np.zeros(CAMERA, poses.dtype), np.zeros(3 * L, poses.dtype), np.empty(3, poses.dtype)
    form, omega, T = np.empty(_FORM, poses.dtype), np.empty(81, poses.dtype), np.empty(27, poses.dtype)
    counts = np.zeros(2 * L, np.int64)
    values, costs = np.empty(_ROTATIONS * L, poses.dtype), np.empty(L, poses.dtype)
    pose, alone, work = np.empty(POSE, poses.dtype), np.empty(POSE, poses.dtype), np.empty(_WORK, poses.dtype)
    for b in range(begin, end):
        bad = fill(data, b, b + 1, True, tile, rows, camera, centre, counts)
        count = counts[0]
        if bad or count < 3:
            pose[:] = 0.0
            for k in range(0, 9, 4):
                store(pose, k * L, 1.0)
            if not bad:
                _push_ahead(tile, rows, True, 1.0, pose)
            _write(pose, 0, centre, poses, b)
            _write(pose, 0, centre, second, b)
            continue
        fill_rays(tile, rows, camera, lens, 1e-6 if eps < 1e-10 else 1e-4, eps, rays)
        size = _sum_up(tile, rows, rays, work, form, middle)
        _quadratic_form(form, eps, omega, T)
        rotations[:] = _CUBE
        for v in range(_ROTATIONS):
            R = rotations[v * POSE : (v + 1) * POSE]
            value = _descend(omega, R, work)
            store(values, v * L, _place(R, T, form, value))
        candidates = _choose(rotations, values, size, middle, pose)
        few_rows = _lay_out(tile, n, count, few)
        _push_ahead(few, few_rows, False, 0.1 * size, pose)
        cost = _refine_few(few, few_rows, camera, model, eps, pose, alone, work)
        store(costs, 0, cost * (count / few_rows))
        best, other = _refine_best(tile, rows, camera, model, eps, size, candidates, pose, costs, alone, work)
        _write(pose, best, centre, poses, b)
        _write(pose, other, centre, second, b)
