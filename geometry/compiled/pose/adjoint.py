"""`adjoint`: the gradient of PnP by the implicit function theorem."""

from typing import Any

from geometry.compiled.constants import FISHEYE

from ..vectors import clear, entry, jit, load, member, scratch, splat, store, total, where_less
from .descent import Linear, diagonal, new_factor, new_step, shares, solve6
from .equations import (
    CAMERA,
    ROW,
    L,
    Robust,
    evaluate,
    new_camera,
    new_pose,
    new_sums,
    rho,
)
from .lens import angle_of, bend_of, curve, direction, distort, distort_bend, image, radial
from .tile import (
    BLOCK,
    INPUTS,
    PART,
    Data,
    Part,
    Rows,
    Visible,
    drain,
    fill,
    fill_covector,
    fill_pose,
    new_centre,
    new_counts,
    new_tile,
)

__all__ = ["adjoint"]

_new_ok = scratch(L)


@jit
def _vector_jacobian_product(
    tile: Any, robust: Any, begin: Any, end: Any, pose: Any, u: Any, sums: Any
) -> None:  # fmt: skip
    """Minus the derivative of <u, gradient of the cost> by the data, in the place of the data.

    Rows begin to end - 1 of the tile become those of points3d, points2d and weights; sums (CAMERA) gathers those of K
    and the coefficients, in the order of the camera.
    """
    points, camera = tile.points, tile.camera
    r00, r01, r02 = load(pose, 0), load(pose, L), load(pose, 2 * L)
    r10, r11, r12 = load(pose, 3 * L), load(pose, 4 * L), load(pose, 5 * L)
    r20, r21, r22 = load(pose, 6 * L), load(pose, 7 * L), load(pose, 8 * L)
    tx, ty, tz = load(pose, 9 * L), load(pose, 10 * L), load(pose, 11 * L)
    a00, a01, a10, a11 = load(camera, 0), load(camera, L), load(camera, 2 * L), load(camera, 3 * L)
    wide, ox, oy, oz = tile.lens == FISHEYE, load(u, 0), load(u, L), load(u, 2 * L)
    vx, vy, vz = load(u, 3 * L), load(u, 4 * L), load(u, 5 * L)
    for j in range(begin, end):
        o = j * ROW
        X, Y, Z = load(points, o), load(points, o + L), load(points, o + 2 * L)
        qx = r00 * X + r01 * Y + r02 * Z
        qy = r10 * X + r11 * Y + r12 * Z
        qz = r20 * X + r21 * Y + r22 * Z
        # the direction u, seen as a motion of the point, of its direction and outwards (`lens`), of the image
        nx, ny, nz = oy * qz - oz * qy + vx, oz * qx - ox * qz + vy, ox * qy - oy * qx + vz
        if wide:
            at, inverse = direction(qx + tx, qy + ty, qz + tz)
            arc, (a, b, sine, cosine) = curve(camera, angle_of(at.sine, at.cosine)), at
            ahead = a * nx + b * ny
            nx, ny, nz = cosine * ahead - sine * nz, a * ny - b * nx, sine * ahead + cosine * nz
            nx, ny, nz = nx * inverse, ny * inverse, nz * inverse
            dx, dy, j00, j01, j10, j11 = image(at, arc)
        else:
            inverse = 1.0 / (qz + tz)
            x, y, nz = (qx + tx) * inverse, (qy + ty) * inverse, nz * inverse
            nx, ny = nx * inverse - x * nz, ny * inverse - y * nz
            dx, dy = x, y
            if tile.lens:
                dx, dy, j00, j01, j10, j11 = distort(camera, x, y)
        fx, fy = nx, ny
        if tile.lens:
            fx, fy = j00 * nx + j01 * ny, j10 * nx + j11 * ny
        wu, wv = load(points, o + 5 * L), load(points, o + 6 * L)
        mu = a00 * dx + a01 * dy - load(points, o + 3 * L)
        mv = a10 * dx + a11 * dy - load(points, o + 4 * L)
        ru, rv = wu * mu, wv * mv
        hu, hv = a00 * fx + a01 * fy, a10 * fx + a11 * fy
        eu, ev = wu * hu, wv * hv
        # f = rho' r.e; pu, pv = df/dr; ru, rv become df/de
        pu, pv = eu, ev
        if robust.code:
            along = ru * eu + rv * ev
            _, slope, bend = rho(robust, ru * ru + rv * rv)
            pu, pv = slope * eu + 2.0 * bend * along * ru, slope * ev + 2.0 * bend * along * rv
            ru, rv = slope * ru, slope * rv
        store(points, o + 5 * L, -(pu * mu + ru * hu))
        store(points, o + 6 * L, -(pv * mv + rv * hv))
        pu, pv, ru, rv = wu * pu, wv * pv, wu * ru, wv * rv
        store(points, o + 3 * L, pu)
        store(points, o + 4 * L, pv)
        store(sums, 0, load(sums, 0) - (pu * dx + ru * fx))
        store(sums, L, load(sums, L) - (pu * dy + ru * fy))
        store(sums, 2 * L, load(sums, 2 * L) - (pv * dx + rv * fx))
        store(sums, 3 * L, load(sums, 3 * L) - (pv * dy + rv * fy))
        store(sums, 4 * L, load(sums, 4 * L) - pu)
        store(sums, 5 * L, load(sums, 5 * L) - pv)
        # covectors of the image and of its motion, pulled back to the direction and its motion
        px, py = a00 * pu + a10 * pv, a01 * pu + a11 * pv
        cx, cy = a00 * ru + a10 * rv, a01 * ru + a11 * rv
        if tile.lens:
            if wide:
                _fisheye_gradient(at, arc.angle, (nx, ny), (px, py), (cx, cy), sums)
                kxx, kxy, kyy = bend_of(camera, at, arc, cx, cy)
            else:
                _distortion_gradient(camera, (x, y), (nx, ny), (px, py), (cx, cy), sums)
                kxx, kxy, kyy = distort_bend(camera, x, y, cx, cy)
            px, py = j00 * px + j10 * py + kxx * nx + kxy * ny, j01 * px + j11 * py + kxy * nx + kyy * ny
            cx, cy = j00 * cx + j10 * cy, j01 * cx + j11 * cy
        px, py, pz = (px - nz * cx) * inverse, (py - nz * cy) * inverse, -inverse * (cx * nx + cy * ny)
        cx, cy = cx * inverse, cy * inverse
        if wide:
            ahead, outwards = cosine * px + sine * pz, cosine * cx
            px, py, pz = a * ahead - b * py, b * ahead + a * py, cosine * pz - sine * px
            cx, cy, cz = a * outwards - b * cy, b * outwards + a * cy, -sine * cx
        else:
            pz -= px * x + py * y
            cz = -(cx * x + cy * y)
        # motion of the point = omega x q + v
        px, py, pz = px + cy * oz - cz * oy, py + cz * ox - cx * oz, pz + cx * oy - cy * ox
        store(points, o, -(r00 * px + r10 * py + r20 * pz))
        store(points, o + L, -(r01 * px + r11 * py + r21 * pz))
        store(points, o + 2 * L, -(r02 * px + r12 * py + r22 * pz))


@jit
def _fisheye_gradient(at: Any, angle: Any, n_dot: Any, p: Any, c: Any, sums: Any) -> None:
    """`_distortion_gradient` of a fisheye, by its four."""
    (nx, ny), (pu, pv), (cu, cv) = n_dot, p, c
    along, across = cu * at.a + cv * at.b, cv * at.a - cu * at.b
    steep = nx * along
    flat = angle * (pu * at.a + pv * at.b + across * ny / at.sine)
    power = angle * angle
    for m in range(4):
        o = (6 + m) * L
        store(sums, o, load(sums, o) - power * (flat + (2.0 * m + 3.0) * steep))
        power = power * angle * angle


@jit
def _distortion_gradient(camera: Any, n: Any, n_dot: Any, p: Any, c: Any, sums: Any) -> None:
    """Subtract from sums the derivative of p.distort(n) + c.(d distort(n) / dn) n' by the twelve coefficients."""
    (x, y), (nx, ny), (pu, pv), (cu, cv) = n, n_dot, p, c
    r2, r2dot = x * x + y * y, 2.0 * (x * nx + y * ny)
    g, g1, _, d, d1 = radial(camera, r2)
    # p.n g + c.(n g)' = a g + b g'
    a, b = pu * x + pv * y + cu * nx + cv * ny, (cu * x + cv * y) * r2dot
    power, below = r2, splat(1.0, x)
    for m in range(3):
        order = m + 1.0
        slope = order * below - power * d1 * d
        upper = (4 if m == 2 else m) * L
        store(sums, 6 * L + upper, load(sums, 6 * L + upper) - (a * power + b * slope) * d)
        lower = (11 + m) * L
        store(sums, lower, load(sums, lower) + (a * g * power + b * (g1 * power + g * slope)) * d)
        below, power = power, power * r2
    xy, xy_dot = 2.0 * x * y, 2.0 * (nx * y + x * ny)
    p1 = pu * xy + pv * (r2 + 2.0 * y * y) + cu * xy_dot + cv * (r2dot + 4.0 * y * ny)
    p2 = pu * (r2 + 2.0 * x * x) + pv * xy + cu * (r2dot + 4.0 * x * nx) + cv * xy_dot
    store(sums, 8 * L, load(sums, 8 * L) - p1)
    store(sums, 9 * L, load(sums, 9 * L) - p2)
    store(sums, 14 * L, load(sums, 14 * L) - (pu * r2 + cu * r2dot))
    store(sums, 15 * L, load(sums, 15 * L) - (pu * r2 + 2.0 * cu * r2dot) * r2)
    store(sums, 16 * L, load(sums, 16 * L) - (pv * r2 + cv * r2dot))
    store(sums, 17 * L, load(sums, 17 * L) - (pv * r2 + 2.0 * cv * r2dot) * r2)


@entry(
    *(f"void({INPUTS.format(t)}, float64, boolean, Tuple(({t}[:,:,::1], int8[::1], {t}[:,:,::1])), {PART}, "
      f"Tuple(({t}[:,:,::1], {t}[:,:,::1], {t}[:,:,::1], {t}[:,::1], {t}[:,:,::1])))" for t in ("float64", "float32"))
)  # fmt: skip
def adjoint(data: Any, robust: Any, least: Any, exact: Any, at: Any, part: Any, gradients: Any) -> None:
    """Vector-Jacobian product of the minima that `solve` found: gradients of <covectors, poses> by the data.

    One solve with the exact Hessian (or the Gauss-Newton matrix) and one pass over the points
    (`geometry.optim.adjoint`). data, robust, part: as of `solve`; at: poses (B,4,4), statuses (B,), covectors (B,4,4).
    gradients: by the first five of data. Where one of these is shared, its gradient has leading size `slots` instead
    of B, and this call adds to row `slot`; to those of K and distortion it adds always. A gradient without elements is
    not wanted. Problems that did not converge get zeros, as do those whose matrix is singular: its share at most
    `least` (`geometry.optim.linear`).
    """
    data, robust, part = Data(*data), Robust(*robust), Part(*part)
    _, points3d, K, distortion, weights, _, _ = data
    poses, statuses, covectors = at
    grad2d, grad3d, grad_K, grad_distortion, grad_weights = gradients
    tile, visible = new_tile(data, part, new_camera(poses)), Visible(new_centre(poses), new_counts(poses))
    pose, sums, ok = new_pose(poses), new_sums(poses), _new_ok(poses)
    rhs, step, work, size = new_step(poses), new_step(poses), new_factor(poses), new_step(poses)
    centre, (width, per_row) = visible.centre, ((1, L) if part.spread else (L, 1))
    for first in range(part.begin, part.end, width):
        fill(data, first, part.end, tile, visible)
        for to in range(L):
            lane = to % width
            b = min(first + lane, part.end - 1)
            fill_pose(poses, b, to, centre, lane, pose)
            fill_covector(covectors, b, to, centre, lane, pose, rhs)
            ok[to] = 1.0 if statuses[b] == 0 else 0.0
        evaluate(tile, robust, pose, exact, sums)
        pivot = solve6(sums, splat(0.0, pose), Linear(rhs, step, work))
        diagonal(sums, size)
        left, _ = shares(work, size, size)
        store(ok, 0, where_less(0.0, pivot, where_less(least, left, load(ok, 0), 0.0), 0.0))
        clear(sums, CAMERA)
        last = min(width, part.end - first)
        for row in range(0, tile.rows, BLOCK):
            until = min(row + BLOCK, tile.rows)
            _vector_jacobian_product(tile, robust, row, until, pose, step, sums)
            i, j = row * per_row, until * per_row
            for lane in range(last):
                b, good = first + lane, ok[lane] != 0.0
                if grad2d.size:
                    drain(tile, 3, lane, i, j, good, Rows(grad2d, b, False))
                if grad3d.size:
                    shared = points3d.shape[0] == 1
                    drain(tile, 0, lane, i, j, good, Rows(grad3d, part.slot if shared else b, shared))
                if grad_weights.size:
                    shared = weights.shape[0] == 1
                    drain(tile, 5, lane, i, j, good, Rows(grad_weights, part.slot if shared else b, shared))
        if part.spread:
            for k in range(0, CAMERA, L):
                store(sums, k, splat(total(load(sums, k)), sums))
        for lane in range(last if member() == 0 else 0):
            b = first + lane
            if ok[lane] != 0.0 and grad_K.size:
                row = part.slot if K.shape[0] == 1 else b
                for i in range(2):
                    grad_K[row, i, 0] += sums[2 * i * L + lane]
                    grad_K[row, i, 1] += sums[(2 * i + 1) * L + lane]
                    grad_K[row, i, 2] += sums[(4 + i) * L + lane]
            if ok[lane] != 0.0 and grad_distortion.size:
                row = part.slot if distortion.shape[0] == 1 else b
                for i in range(distortion.shape[1]):
                    grad_distortion[row, i] += sums[(6 + i) * L + lane]
