"""RANSAC for PnP: `attempt`, one round of it, and `score`, what a pose is worth."""

import math
from typing import Any

import numpy as np
from numba import njit

from geometry.compiled.consensus.p3p import POSES, ROOTS, SAMPLE, p3p
from geometry.compiled.pose.descent import levenberg_marquardt
from geometry.compiled.pose.equations import CAMERA, OPTIONS, POSE, ROW, SUMS, L, distort, jit
from geometry.compiled.pose.form import fill_rays
from geometry.compiled.pose.tile import fill, fill_pose, place, rows_of, write_pose
from geometry.compiled.vectors import get, load, put, splat, store, total, where_less

__all__ = ["attempt", "score"]

_ENOUGH = 1e-4  # predicted relative decrease that ends a descent on a set of inliers


@jit
def _score(
    tile: Any, rows: Any, pose: Any, camera: Any, lens: Any, threshold2: Any, enough: Any, squares: Any
) -> Any:  # fmt: skip
    """Sum of min(|r|^2, threshold2) over the points of a spread tile, a point behind the camera counting in full.

    Gives up when it is more than `enough`. Writes every point's |r|^2 to squares (rows L).
    """
    r00, r01, r02 = load(pose, 0), load(pose, L), load(pose, 2 * L)
    r10, r11, r12 = load(pose, 3 * L), load(pose, 4 * L), load(pose, 5 * L)
    r20, r21, r22 = load(pose, 6 * L), load(pose, 7 * L), load(pose, 8 * L)
    tx, ty, tz = load(pose, 9 * L), load(pose, 10 * L), load(pose, 11 * L)
    a00, a01, a10, a11 = load(camera, 0), load(camera, L), load(camera, 2 * L), load(camera, 3 * L)
    cost, bound = splat(0.0, tile), splat(threshold2, tile)
    for j in range(rows):
        o = j * ROW
        X, Y, Z = load(tile, o), load(tile, o + L), load(tile, o + 2 * L)
        pz = r20 * X + r21 * Y + r22 * Z + tz
        iz = 1.0 / pz
        x, y = (r00 * X + r01 * Y + r02 * Z + tx) * iz, (r10 * X + r11 * Y + r12 * Z + ty) * iz
        if lens:
            x, y, _, _, _, _ = distort(camera, x, y)
        wu, wv = load(tile, o + 5 * L), load(tile, o + 6 * L)
        u = wu * (a00 * x + a01 * y - load(tile, o + 3 * L))
        v = wv * (a10 * x + a11 * y - load(tile, o + 4 * L))
        s = u * u + v * v
        present = wu * wu + wv * wv
        s = where_less(0.0, present, where_less(0.0, pz, s, np.inf), np.inf)
        store(squares, j * L, s)
        cost += where_less(s, bound, s, where_less(0.0, present, bound, 0.0))
        if j % 4 == 3 and total(cost) > enough:
            return np.inf
    return total(cost)


@jit
def _gather(tile: Any, n: Any, squares: Any, threshold2: Any, few: Any) -> Any:
    """Lay the inliers into a spread tile of their own. Returns their number."""
    count = 0
    for i in range(n):
        if get(squares, i) <= threshold2:
            o, to = place(i, 0, True), place(count, 0, True)
            for k in range(0, 7 * L, L):
                put(few, to + k, get(tile, o + k))
            count += 1
    for i in range(count, (count + L - 1) // L * L):
        o, to = place(count - 1, 0, True), place(i, 0, True)
        for k in range(0, 5 * L, L):
            put(few, to + k, get(few, o + k))
        put(few, to + 5 * L, 0.0)
        put(few, to + 6 * L, 0.0)
    return count


@jit
def _refine(
    tile: Any, rows: Any, n: Any, camera: Any, lens: Any, threshold2: Any, eps: Any, descents: Any, pose: Any,
    squares: Any, few: Any, work: Any,
) -> Any:  # fmt: skip
    """Descend on the score: least squares over the inliers, and their choice, in turns. Returns the score."""
    before, sums = pose.copy(), np.empty(SUMS, pose.dtype)
    cost = _score(tile, rows, pose, camera, lens, threshold2, np.inf, squares)
    for _ in range(descents):
        count = _gather(tile, n, squares, threshold2, few)
        if count < 4:
            break
        model = (lens, 0, 1.0, 1.0)
        levenberg_marquardt(few, (count + L - 1) // L, True, camera, model, 4, _ENOUGH, eps, pose, work, sums)
        lower = _score(tile, rows, pose, camera, lens, threshold2, np.inf, squares)
        if not lower < cost:
            pose[:] = before
            break
        done = lower > (1.0 - 1e-3) * cost
        before[:], cost = pose, lower
        if done:
            break
    return cost


@jit
def _survey(
    tile: Any, n: Any, rays: Any, candidates: Any, b: Any, mask: Any, threshold2: Any, ends: Any
) -> Any:  # fmt: skip
    """Cumulated odds (n) of what is present, its number, and the chance of a random pixel to be an inlier.

    What has no ray, no weight or no odds gets weight zero. The chance is the mean over points of the share that the
    disc within the threshold has of the box around all pixels.
    """
    count, odds, area = 0, 0.0, 0.0
    left = top = np.inf
    right = bottom = -np.inf
    many, masked = candidates.shape[1] > 1, mask.shape[1] > 1
    row, line = min(b, candidates.shape[0] - 1), min(b, mask.shape[0] - 1)
    for i in range(n):
        o = place(i, 0, True)
        w = get(rays, 3 * (i // L) * L + 2 * L + i % L)
        c = candidates[row, i if many else 0]
        if w > 0.0 and c > 0.0 and (mask[line, i] if masked else True):
            count += 1
            odds += c
            u, v = get(tile, o + 3 * L), get(tile, o + 4 * L)
            left, right, top, bottom = min(left, u), max(right, u), min(top, v), max(bottom, v)
            area += 1.0 / max(abs(get(tile, o + 5 * L) * get(tile, o + 6 * L)), 1e-300)
        else:
            put(tile, o + 5 * L, 0.0)
            put(tile, o + 6 * L, 0.0)
        ends[i] = odds
    box = max((right - left) * (bottom - top), 1e-300) if count > 0 else 1.0
    # of every point at most one
    chance = min(math.pi * threshold2 * area / (box * max(count, 1)), 1.0)
    return count, chance


@jit
def _draw(ends: Any, n: Any, uniform: Any, chosen: Any) -> None:
    """Three different indices by three numbers in [0, 1), as `geometry.consensus.search.draw` does it."""
    total_odds = ends[n - 1]
    first = second = width = other = 0.0
    for j in range(3):
        at = uniform[j] * max(total_odds - width - other, 0.0)
        if j > 0 and at >= first:
            at += width
        if j > 1 and at >= second:
            at += other
        low, high = 0, n - 1
        while low < high:
            middle = (low + high) // 2
            if ends[middle] > at:
                high = middle
            else:
                low = middle + 1
        while low > 0 and ends[low] == ends[low - 1]:
            low -= 1  # rounding led beyond the last that has odds
        chosen[j] = low
        begin = ends[low - 1] if low > 0 else 0.0
        odds = ends[low] - begin
        if j == 0:
            first, width = begin, odds
        elif begin < first:
            second, other, first, width = first, width, begin, odds
        else:
            second, other = begin, odds


_ARRAYS = (
    "Tuple((float64[:,:,::1], float64[:,:,::1], float64[:,:,::1], float64[:,::1], float64[:,:,::1], uint8[:,::1]))"
)


@njit(
    [f"int64({_ARRAYS}, float64[:,::1], float64[:,:,::1], uint8[::1], float64, int64, int64, int64, int64, "
     "float64[:,:,::1], float64[::1], uint8[:,::1], float64[:,::1])"],
    cache=True, **OPTIONS,
)  # fmt: skip
def attempt(
    data: Any, candidates: Any, uniform: Any, running: Any, threshold2: Any, best: Any, descents: Any,
    begin: Any, end: Any, poses: Any, costs: Any, inliers: Any, facts: Any,
) -> Any:  # fmt: skip
    """Better poses for the problems begin to end - 1 that are running, if samples of three of their points have any.

    data as in `geometry.compiled.pose.tile`; candidates (B|1,N|1); uniform (B,H,3) numbers in [0, 1) that become
    samples. The `best` hypotheses of each problem are refined. poses (B,4,4), costs (B,) = half the score and inliers
    (B,N) change where the score becomes lower. facts (B,3): the points that are present, the inliers among them by
    their share of the odds, the chance of a random pixel to be one. Returns 0, or what is not finite as `tile.fill`
    says.
    """
    eps = 2.0**-52
    n, H, lens = data[0].shape[1], uniform.shape[1], data[3].shape[1]
    rows = rows_of(data[0], True)
    tile, few = np.empty(rows * ROW, np.float64), np.empty(rows * ROW, np.float64)
    camera, pose, centre = np.zeros(CAMERA, np.float64), np.empty(POSE, np.float64), np.empty(3 * L, np.float64)
    work, squares, counts = np.empty(42 * L, np.float64), np.empty(rows * L, np.float64), np.empty(2 * L, np.int64)
    sample, roots = np.empty(SAMPLE, np.float64), np.empty(POSES, np.float64)
    scores, kept = np.empty(best, np.float64), np.empty((best, 12), np.float64)
    rays, ends, chosen = np.empty(3 * rows * L, np.float64), np.empty(n, np.float64), np.empty(3, np.int64)
    for b in range(begin, end):
        if not running[b]:
            continue
        bad = fill(data, b, b + 1, True, tile, rows, camera, centre, counts)
        if bad:
            return bad
        fill_rays(tile, rows, camera, lens, 1e-6, eps, rays)
        count, chance = _survey(tile, n, rays, candidates, b, data[5], threshold2, ends)
        facts[b, 0], facts[b, 1], facts[b, 2] = count, 0.0, chance
        if count < 3:
            continue
        scores[:] = np.inf
        for h in range(0, H, L):
            for lane in range(L):
                _draw(ends, n, uniform[b, min(h + lane, H - 1)], chosen)
                for j in range(3):
                    i = chosen[j]
                    o, r = place(i, 0, True), 3 * (i // L) * L + i % L
                    x, y = rays[r], rays[r + L]
                    length = 1.0 / math.sqrt(1.0 + x * x + y * y)
                    sample[3 * j * L + lane], sample[(3 * j + 1) * L + lane] = x * length, y * length
                    sample[(3 * j + 2) * L + lane] = length
                    for k in range(3):
                        sample[(9 + 3 * j + k) * L + lane] = tile[o + k * L]
            p3p(sample, eps, work, roots)
            for root in range(ROOTS):
                at = root * (POSE + L)
                for lane in range(min(L, H - h)):
                    if roots[at + POSE + lane] == 0.0:
                        continue
                    for k in range(12):
                        store(pose, k * L, splat(roots[at + k * L + lane], pose))
                    cost = _score(tile, rows, pose, camera, lens, threshold2, scores[best - 1], squares)
                    if cost < scores[best - 1]:
                        k = best - 1
                        while k > 0 and cost < scores[k - 1]:
                            scores[k], kept[k] = scores[k - 1], kept[k - 1]
                            k -= 1
                        scores[k] = cost
                        for q in range(12):
                            kept[k, q] = roots[at + q * L + lane]
        for k in range(best):
            if not scores[k] < np.inf:
                break
            for q in range(12):
                store(pose, q * L, splat(kept[k, q], pose))
            cost = _refine(tile, rows, n, camera, lens, threshold2, eps, descents, pose, squares, few, work)
            if 0.5 * cost < costs[b]:
                costs[b] = 0.5 * cost
                write_pose(pose, 0, centre, 0, poses, b)
                _score(tile, rows, pose, camera, lens, threshold2, np.inf, squares)
                for i in range(n):
                    inliers[b, i] = get(squares, i) <= threshold2
        odds = 0.0
        for i in range(n):
            if inliers[b, i]:
                odds += ends[i] - (ends[i - 1] if i > 0 else 0.0)
        facts[b, 1] = count * odds / ends[n - 1]
    return 0


@njit(
    [f"int64({_ARRAYS}, float64[:,::1], float64, float64[:,:,::1], int64, int64, float64[::1], uint8[:,::1])"],
    cache=True, **OPTIONS,
)  # fmt: skip
def score(
    data: Any, candidates: Any, threshold2: Any, poses: Any, begin: Any, end: Any, costs: Any, inliers: Any
) -> Any:  # fmt: skip
    """costs (B,) = half the score, and inliers (B,N), of poses (B,4,4); arguments and result as of `attempt`."""
    n, lens = data[0].shape[1], data[3].shape[1]
    rows = rows_of(data[0], True)
    tile, squares, rays = np.empty(rows * ROW), np.empty(rows * L), np.empty(3 * rows * L)
    camera, pose, centre = np.zeros(CAMERA, np.float64), np.empty(POSE), np.empty(3 * L)
    counts, ends = np.empty(2 * L, np.int64), np.empty(n)
    for b in range(begin, end):
        bad = fill(data, b, b + 1, True, tile, rows, camera, centre, counts)
        if bad:
            return bad
        fill_rays(tile, rows, camera, lens, 1e-6, 2.0**-52, rays)
        _survey(tile, n, rays, candidates, b, data[5], threshold2, ends)
        for lane in range(L):
            fill_pose(poses, b, lane, centre, 0, pose)
        costs[b] = 0.5 * _score(tile, rows, pose, camera, lens, threshold2, np.inf, squares)
        for i in range(n):
            inliers[b, i] = get(squares, i) <= threshold2
    return 0
