"""RANSAC for PnP: `attempt`, one round of it, and `score`, what a pose is worth."""

import math
from typing import Any

import numpy as np

from geometry.compiled.constants import MIX, STRIDE, WIDER, WORTH

from ..pose.equations import POSE, SUMS, L, new_camera, new_pose
from ..pose.form import fill_rays
from ..pose.p3p import POSES, ROOTS, SAMPLE, fill_sample, p3p
from ..pose.tile import DATA, Data, Part, Visible, fill, fill_pose, new_centre, new_counts, new_tile, place, write_pose
from ..vectors import entry, get, jit, put, splat, store
from .refinement import Spare, mirror, refine, score_of, support

__all__ = ["attempt", "score"]

_TURNS = 6  # times that the inliers of the best pose are chosen anew


@jit
def _optimise(tile: Any, pose: Any, threshold2: Any, spare: Any, other: Any) -> Any:
    """Descend through wider thresholds, from a pose, in place, and from its mirror image. Returns the best score."""
    squares = spare.squares
    cost = refine(tile, pose, threshold2, True, _TURNS, spare)
    score_of(tile, pose, threshold2, np.inf, squares)
    count = support(squares, threshold2)
    if count >= 4:
        other[:] = pose
        mirror(tile, other, threshold2, squares)
        score_of(tile, other, threshold2, np.inf, squares)
        # of an object that is not flat, or fills the view, the mirror image is far from any minimum
        if 2 * support(squares, WIDER[0] * WIDER[0] * threshold2) >= count:
            lower = refine(tile, other, threshold2, True, _TURNS, spare)
            if lower < cost:
                pose[:], cost = other, lower
    return cost


@jit
def _survey(
    tile: Any, rays: Any, candidates: Any, b: Any, mask: Any, threshold2: Any, ends: Any
) -> Any:  # fmt: skip
    """Cumulated odds (n) of what is present, its number, and the chance of a random pixel to be an inlier.

    What has no ray, no weight or no odds gets weight zero. The chance is the mean over points of the share that the
    disc within the threshold has of the box around all pixels.
    """
    points, count, odds, area = tile.points, 0, 0.0, 0.0
    left = top = np.inf
    right = bottom = -np.inf
    many, masked = candidates.shape[1] > 1, mask.shape[1] > 1
    row, line = min(b, candidates.shape[0] - 1), min(b, mask.shape[0] - 1)
    for i in range(len(ends)):
        o = place(i, 0, True)
        w = get(rays, 3 * (i // L) * L + 2 * L + i % L)
        c = candidates[row, i if many else 0]
        if w > 0.0 and c > 0.0 and (mask[line, i] if masked else True):
            count += 1
            odds += c
            u, v = get(points, o + 3 * L), get(points, o + 4 * L)
            left, right, top, bottom = min(left, u), max(right, u), min(top, v), max(bottom, v)
            area += 1.0 / max(abs(get(points, o + 5 * L) * get(points, o + 6 * L)), 1e-300)
        else:
            put(points, o + 5 * L, 0.0)
            put(points, o + 6 * L, 0.0)
        ends[i] = odds
    box = max((right - left) * (bottom - top), 1e-300) if count > 0 else 1.0
    # of every point at most one
    chance = min(math.pi * threshold2 * area / (box * max(count, 1)), 1.0)
    return count, chance


@jit
def _uniform(seed: Any, n: Any) -> Any:
    """Number n of a stream, as `geometry.consensus.samples.uniform` makes it."""
    z = seed + np.uint64(n + 1) * np.uint64(STRIDE)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX[1])
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@jit
def _draw(ends: Any, seed: Any, h: Any, chosen: Any) -> None:
    """Sample h of a stream: three different indices, as `geometry.consensus.samples.draw` draws them."""
    n = len(ends)
    total_odds = ends[n - 1]
    first = second = width = other = 0.0
    for j in range(3):
        at = _uniform(seed, 3 * h + j) * max(total_odds - width - other, 0.0)
        if j > 0 and at >= first:
            at += width
        if j > 1 and at >= second:
            at += other
        low, high = 0, n - 1
        guess = min(int(at * n / total_odds), n - 1)  # right where the odds are alike, and then no search
        if ends[guess] > at and (guess == 0 or ends[guess - 1] <= at):
            low = high = guess
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


_INPUTS = DATA.format("float64")


@entry(
    f"int64({_INPUTS}, Tuple((float64[:,::1], uint64[::1], uint8[::1], int64, int64)), float64, "
    "int64, int64, int64, Tuple((float64[:,:,::1], float64[::1], uint8[:,::1], float64[:,::1])))"
)  # fmt: skip
def attempt(
    data: Any, sampling: Any, threshold2: Any, refined: Any, begin: Any, end: Any, out: Any
) -> Any:  # fmt: skip
    """Better poses for the problems begin to end - 1 that are running, if samples of three of their points have any.

    data: a tuple as `geometry.compiled.pose.tile.Data`; sampling: the odds of candidates (B|1,N|1), the seeds (B,) of
    the problems' streams, whether they are running (B,), and which samples, from `first` on H of them. The `refined`
    best hypotheses of each problem are fitted to their inliers, and the best of these is optimised where it is worth
    it; with 0 all stay as they are. out: poses (B,4,4), costs (B,) = half the score and inliers (B,N) change where the
    score becomes lower; facts (B,3): the points that are present, the inliers among them by their share of the odds,
    the chance of a random pixel to be one. Returns 0, or what is not finite as `tile.fill` says.
    """
    data = Data(*data)
    candidates, seeds, running, first, H = sampling
    best = max(refined, 1)
    poses, costs, inliers, facts = out
    n, eps = data.points2d.shape[1], 2.0**-52
    tile = new_tile(data, Part(begin, end, 0, True, None), new_camera(costs))
    visible = Visible(new_centre(costs), new_counts(costs))
    points, centre = tile.points, visible.centre
    pose, winner, squares = new_pose(costs), new_pose(costs), np.empty(tile.rows * L)
    sample, roots = np.empty(SAMPLE), np.empty(POSES)
    spare = Spare(squares, np.empty_like(points), np.empty(42 * L), np.empty(SUMS))
    scores, kept = np.empty(best), np.empty((best, 12))
    rays, ends, chosen = np.empty(3 * tile.rows * L), np.empty(n), np.empty(3, np.int64)
    for b in range(begin, end):
        if not running[b]:
            continue
        bad = fill(data, b, b + 1, tile, visible)
        if bad:
            return bad
        fill_rays(tile, rays)
        count, chance = _survey(tile, rays, candidates, b, data.mask, threshold2, ends)
        facts[b, 0], facts[b, 1], facts[b, 2] = count, 0.0, chance
        if count < 3:
            continue
        scores[:] = np.inf
        for h in range(0, H, L):
            for lane in range(L):
                _draw(ends, seeds[b], first + min(h + lane, H - 1), chosen)
                for j in range(3):
                    fill_sample(tile, rays, chosen[j], j, lane, sample)
            p3p(sample, eps, spare.work, roots)
            for root in range(ROOTS):
                at = root * (POSE + L)
                for lane in range(min(L, H - h)):
                    if roots[at + POSE + lane] == 0.0:
                        continue
                    for k in range(12):
                        store(pose, k * L, splat(roots[at + k * L + lane], pose))
                    cost = score_of(tile, pose, threshold2, scores[best - 1], squares)
                    if cost < scores[best - 1]:
                        k = best - 1
                        while k > 0 and cost < scores[k - 1]:
                            scores[k], kept[k] = scores[k - 1], kept[k - 1]
                            k -= 1
                        scores[k] = cost
                        for q in range(12):
                            kept[k, q] = roots[at + q * L + lane]
        least = np.inf
        for k in range(best):
            if not scores[k] < np.inf:
                break
            for q in range(12):
                store(pose, q * L, splat(kept[k, q], pose))
            cost = refine(tile, pose, threshold2, False, min(refined, 1), spare)
            if cost < least:
                winner[:], least = pose, cost
        if refined > 0 and 0.5 * least < WORTH * costs[b]:
            least = _optimise(tile, winner, threshold2, spare, pose)
        if 0.5 * least < costs[b]:
            costs[b] = 0.5 * least
            write_pose(winner, 0, centre, 0, poses, b)
            score_of(tile, winner, threshold2, np.inf, squares)
            for i in range(n):
                inliers[b, i] = get(squares, i) <= threshold2
        odds = 0.0
        for i in range(n):
            if inliers[b, i]:
                odds += ends[i] - (ends[i - 1] if i > 0 else 0.0)
        facts[b, 1] = count * odds / ends[n - 1]
    return 0


@entry(
    f"int64({_INPUTS}, float64[:,::1], float64, float64[:,:,::1], int64, int64, "
     "Tuple((float64[::1], uint8[:,::1])))"
)  # fmt: skip
def score(data: Any, candidates: Any, threshold2: Any, poses: Any, begin: Any, end: Any, out: Any) -> Any:
    """out: costs (B,) = half the score, and inliers (B,N), of poses (B,4,4); arguments and result as of `attempt`."""
    data = Data(*data)
    costs, inliers = out
    tile = new_tile(data, Part(begin, end, 0, True, None), new_camera(costs))
    visible = Visible(new_centre(costs), new_counts(costs))
    centre = visible.centre
    pose, squares, rays = new_pose(costs), np.empty(tile.rows * L), np.empty(3 * tile.rows * L)
    ends = np.empty(data.points2d.shape[1])
    for b in range(begin, end):
        bad = fill(data, b, b + 1, tile, visible)
        if bad:
            return bad
        fill_rays(tile, rays)
        _survey(tile, rays, candidates, b, data.mask, threshold2, ends)
        for lane in range(L):
            fill_pose(poses, b, lane, centre, 0, pose)
        costs[b] = 0.5 * score_of(tile, pose, threshold2, np.inf, squares)
        for i in range(len(ends)):
            inliers[b, i] = get(squares, i) <= threshold2
    return 0
