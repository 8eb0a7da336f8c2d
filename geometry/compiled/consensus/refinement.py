"""What a pose is worth, and better ones near it: the local optimisation of RANSAC, on a problem dealt out to all lanes.

What is overwritten travels as `Spare`.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from geometry.camera import FISHEYE_LIMIT_COS
from geometry.compiled.constants import FISHEYE, WIDER

from ..pose.descent import copy, levenberg_marquardt, new_factor
from ..pose.equations import POSE, ROW, L, Robust, Tile, new_pose, new_sums
from ..pose.lens import angle_of, curve, direction, distort, image
from ..pose.tile import place
from ..vectors import get, jit, load, put, room, scratch, splat, store, total, where_less

__all__ = ["Spare", "new_spare", "optimise", "refine", "score_of"]

_STEPS = 4  # of a descent on a set of inliers, at most
_ROUGHLY, _ENOUGH = 1e-2, 1e-4  # predicted relative decrease that ends it, for a wider threshold and for its own
_WORTH = 1e-3  # relative decrease of the score that is worth another one
_TURNS = 6  # times that the inliers of the best pose are chosen anew
_SQUARINGS = 6  # make the 64th power: the larger of two eigenvalues, 1.1 apart, stays alone but for 0.2 %


_new_matrix, _new_point = scratch(9), scratch(3)


class Spare(NamedTuple):
    """Every point's |r|^2 (rows L), and a tile as large."""

    squares: Any
    few: Any


@jit
def new_spare(part: Any, begin: Any, tile: Any) -> Any:
    """A `Spare`, from place `begin` on in the workspace."""
    rows, camera = tile.rows, tile.camera
    return Spare(room(part, begin, rows * L, camera), room(part, begin + rows * L, rows * ROW, camera))


@jit
def score_of(tile: Any, pose: Any, threshold2: Any, enough: Any, squares: Any) -> Any:
    """Sum of min(|r|^2, threshold2) over the points, those that the camera cannot see counting in full.

    Gives up when it is more than `enough`. Writes every point's |r|^2 to squares, infinite where absent, unless None.
    """
    points, camera = tile.points, tile.camera
    r00, r01, r02 = load(pose, 0), load(pose, L), load(pose, 2 * L)
    r10, r11, r12 = load(pose, 3 * L), load(pose, 4 * L), load(pose, 5 * L)
    r20, r21, r22 = load(pose, 6 * L), load(pose, 7 * L), load(pose, 8 * L)
    tx, ty, tz = load(pose, 9 * L), load(pose, 10 * L), load(pose, 11 * L)
    a00, a01, a10, a11 = load(camera, 0), load(camera, L), load(camera, 2 * L), load(camera, 3 * L)
    cost, bound = splat(0.0, pose), splat(threshold2, pose)
    for j in range(tile.rows):
        o = j * ROW
        X, Y, Z = load(points, o), load(points, o + L), load(points, o + 2 * L)
        px, py = r00 * X + r01 * Y + r02 * Z + tx, r10 * X + r11 * Y + r12 * Z + ty
        pz = r20 * X + r21 * Y + r22 * Z + tz
        if tile.lens == FISHEYE:
            at, _ = direction(px, py, pz)
            x, y, _, _, _, _ = image(at, curve(camera, angle_of(at.sine, at.cosine)))
            pz = at.cosine - FISHEYE_LIMIT_COS
        else:
            iz = 1.0 / pz
            x, y = px * iz, py * iz
            if tile.lens:
                x, y, _, _, _, _ = distort(camera, x, y)
        wu, wv = load(points, o + 5 * L), load(points, o + 6 * L)
        u = wu * (a00 * x + a01 * y - load(points, o + 3 * L))
        v = wv * (a10 * x + a11 * y - load(points, o + 4 * L))
        s = u * u + v * v
        present = wu * wu + wv * wv
        s = where_less(0.0, present, where_less(0.0, pz, s, np.inf), np.inf)
        if squares is not None:
            store(squares, j * L, s)
        cost += where_less(s, bound, s, where_less(0.0, present, bound, 0.0))
        if j % 4 == 3 and total(cost) > enough:
            return np.inf
    return total(cost)


@jit
def _support(squares: Any, threshold2: Any) -> Any:
    """Number of inliers."""
    count = 0
    for i in range(len(squares)):
        count += get(squares, i) <= threshold2
    return total(float(count))


@jit
def _gather(tile: Any, squares: Any, threshold2: Any, few: Any) -> Any:
    """Lay the inliers into a spread tile of their own, each of a team those it has. Returns it, and their number."""
    count = 0
    for i in range(len(squares)):
        if get(squares, i) <= threshold2:
            o, to = place(i, 0, True), place(count, 0, True)
            for k in range(0, 7 * L, L):
                put(few, to + k, get(tile.points, o + k))
            count += 1
    rows = (count + L - 1) // L
    for i in range(count, rows * L):
        o, to = place(count - 1, 0, True), place(i, 0, True)
        for k in range(0, 5 * L, L):
            put(few, to + k, get(few, o + k))
        put(few, to + 5 * L, 0.0)
        put(few, to + 6 * L, 0.0)
    return Tile(few, rows, tile.camera, tile.lens, tile.spread), total(float(count))


@jit
def _fit(tile: Any, pose: Any, threshold2: Any, enough: Any, spare: Any) -> Any:
    """Least squares over the points whose squares are within the threshold. Returns whether they are enough."""
    inliers, count = _gather(tile, spare.squares, threshold2, spare.few)
    if count >= 4:
        work, sums = new_factor(pose), new_sums(pose)
        levenberg_marquardt(inliers, Robust(0, 1.0, 1.0), _STEPS, enough, pose, work, sums)
    return count >= 4


@jit
def refine(tile: Any, pose: Any, threshold2: Any, wide: Any, turns: Any, spare: Any) -> Any:
    """Descend on the score from a pose, in place: least squares over the inliers, and their choice, in turns.

    wide: the first choices are those of wider thresholds. Returns the score, infinite where the start has none.
    """
    squares = spare.squares
    best = new_pose(pose)
    copy(pose, best, POSE)
    cost = last = score_of(tile, pose, threshold2, np.inf, squares)
    if wide:
        for factor in WIDER:
            score_of(tile, pose, factor * factor * threshold2, np.inf, squares)
            if not _fit(tile, pose, factor * factor * threshold2, _ROUGHLY, spare):
                break
        last = score_of(tile, pose, threshold2, np.inf, squares)
        if last < cost:
            copy(pose, best, POSE)
            cost = last
    for _ in range(turns):
        if not _fit(tile, pose, threshold2, _ENOUGH, spare):
            break
        lower = score_of(tile, pose, threshold2, np.inf, squares)
        if lower < cost:
            copy(pose, best, POSE)
            cost = lower
        if not lower < (1.0 - _WORTH) * last:
            break
        last = lower
    copy(best, pose, POSE)
    return cost


@jit
def _normal(tile: Any, squares: Any, threshold2: Any) -> Any:
    """Middle of the inliers, and the direction in which they extend least; NaN where they are on a line."""
    count = mx = my = mz = 0.0
    xx = xy = xz = yy = yz = zz = 0.0
    for i in range(len(squares)):
        if get(squares, i) <= threshold2:
            o = place(i, 0, True)
            x, y, z = get(tile.points, o), get(tile.points, o + L), get(tile.points, o + 2 * L)
            count, mx, my, mz = count + 1.0, mx + x, my + y, mz + z
            xx, xy, xz, yy, yz, zz = xx + x * x, xy + x * y, xz + x * z, yy + y * y, yz + y * z, zz + z * z
    count, mx, my, mz = total(count), total(mx), total(my), total(mz)
    xx, xy, xz, yy, yz, zz = total(xx), total(xy), total(xz), total(yy), total(yz), total(zz)
    mx, my, mz = mx / count, my / count, mz / count
    xx, xy, xz = xx - count * mx * mx, xy - count * mx * my, xz - count * mx * mz
    yy, yz, zz = yy - count * my * my, yz - count * my * mz, zz - count * mz * mz
    # the adjugate has the eigenvectors of the matrix, and where that has its least eigenvalue, its largest
    xx, xy, xz, yy, yz, zz = (
        yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy, xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    )  # fmt: skip
    for _ in range(_SQUARINGS):
        s = 1.0 / (xx + yy + zz)
        xx, xy, xz, yy, yz, zz = xx * s, xy * s, xz * s, yy * s, yz * s, zz * s
        xx, xy, xz, yy, yz, zz = (
            xx * xx + xy * xy + xz * xz, xx * xy + xy * yy + xz * yz, xx * xz + xy * yz + xz * zz,
            xy * xy + yy * yy + yz * yz, xy * xz + yy * yz + yz * zz, xz * xz + yz * yz + zz * zz,
        )  # fmt: skip
    a, b, c = xz, yz, zz
    if xx >= yy and xx >= zz:
        a, b, c = xx, xy, xz
    elif yy >= zz:
        a, b, c = xy, yy, yz
    s = 1.0 / math.sqrt(a * a + b * b + c * c)
    return (mx, my, mz), (a * s, b * s, c * s)


@jit
def _mirror(tile: Any, pose: Any, threshold2: Any, squares: Any) -> None:
    """`geometry.pose.ransac.mirrored` in place, squares being those of the pose."""
    middle, normal = _normal(tile, squares, threshold2)
    R, p = _new_matrix(pose), _new_point(pose)
    for i in range(3):
        x, along = get(pose, (9 + i) * L), 0.0
        for j in range(3):
            x += get(pose, (3 * i + j) * L) * middle[j]
            along += get(pose, (3 * i + j) * L) * normal[j]
        put(p, i, x)
        for j in range(3):
            put(R, 3 * i + j, get(pose, (3 * i + j) * L) - 2.0 * along * normal[j])
    px, py, pz = get(p, 0), get(p, 1), get(p, 2)
    distance2 = px * px + py * py + pz * pz
    for j in range(3):
        along = (px * get(R, j) + py * get(R, 3 + j) + pz * get(R, 6 + j)) / distance2
        for i in range(3):
            put(R, 3 * i + j, get(R, 3 * i + j) - 2.0 * along * get(p, i))
    for i in range(3):
        t = get(p, i)
        for j in range(3):
            store(pose, (3 * i + j) * L, splat(get(R, 3 * i + j), pose))
            t -= get(R, 3 * i + j) * middle[j]
        store(pose, (9 + i) * L, splat(t, pose))


@jit
def optimise(tile: Any, pose: Any, threshold2: Any, spare: Any) -> Any:
    """Descend through wider thresholds, from a pose, in place, and from its mirror image. Returns the best score."""
    squares, other = spare.squares, new_pose(pose)
    cost = refine(tile, pose, threshold2, True, _TURNS, spare)
    score_of(tile, pose, threshold2, np.inf, squares)
    count = _support(squares, threshold2)
    if count >= 4:
        copy(pose, other, POSE)
        _mirror(tile, other, threshold2, squares)
        score_of(tile, other, threshold2, np.inf, squares)
        # of an object that is not flat, or fills the view, the mirror image is far from any minimum
        if 2 * _support(squares, WIDER[0] * WIDER[0] * threshold2) >= count:
            lower = refine(tile, other, threshold2, True, _TURNS, spare)
            if lower < cost:
                copy(other, pose, POSE)
                cost = lower
    return cost
