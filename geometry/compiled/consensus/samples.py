"""A problem of PnP as RANSAC sees it: which points are present, with what odds, and samples of three of them."""

import math
from typing import Any, NamedTuple

import numpy as np

from geometry.compiled.constants import MIX, STRIDE

from ..pose.equations import ROW, L
from ..pose.form import fill_rays
from ..pose.p3p import POSES, SAMPLE
from ..pose.tile import Visible, fill, finite, new_counts, new_tile, place
from ..vectors import get, jit, put, room, scratch

__all__ = ["Table", "behind", "draw", "fill_table", "new_chosen", "new_roots", "new_sample", "new_table", "new_work"]

new_sample, new_roots, new_work = scratch(SAMPLE), scratch(POSES), scratch(39 * L)  # what `p3p` takes
new_chosen = scratch(3, integer=True)


class Table(NamedTuple):
    """One problem, dealt out to all lanes: its `Tile`, rays as of `form.fill_rays`, cumulated odds (N), and the centre
    (3 L) that its points are relative to."""

    tile: Any
    rays: Any
    ends: Any
    centre: Any


@jit
def new_table(data: Any, part: Any, camera: Any, centre: Any) -> Any:
    """A table for `fill_table`, whose camera is an array of CAMERA numbers."""
    tile = new_tile(data, part, camera)
    rays = room(part, tile.rows * ROW, tile.rows * 3 * L, camera)
    return Table(tile, rays, room(part, tile.rows * (ROW + 3 * L), data.points2d.shape[1], camera), centre)


@jit
def behind(table: Any) -> Any:
    """Where a workspace goes on behind a table."""
    return table.tile.rows * (ROW + 4 * L)


@jit
def _survey(table: Any, candidates: Any, b: Any, mask: Any, threshold2: Any) -> Any:
    """Cumulate the odds of what is present. Returns its number, and the chance of a random pixel to be an inlier.

    What has no ray, no weight or no odds gets weight zero. The chance is the mean over points of the share that the
    disc within the threshold has of the box around all pixels. The number is -1 where odds are negative or not finite.
    """
    tile, rays, ends, _ = table
    points, count, odds, area, good = tile.points, 0, 0.0, 0.0, True
    left = top = np.inf
    right = bottom = -np.inf
    many, masked = candidates.shape[1] > 1, mask.shape[1] > 1
    row, line = min(b, candidates.shape[0] - 1), min(b, mask.shape[0] - 1)
    for i in range(len(ends)):
        o = place(i, 0, True)
        w = get(rays, 3 * (i // L) * L + 2 * L + i % L)
        c = candidates[row, i if many else 0]
        good &= c >= 0.0
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
    return count if good and finite(odds) else -1, chance


@jit
def fill_table(data: Any, b: Any, candidates: Any, threshold2: Any, table: Any) -> Any:
    """Lay out problem b. Returns what is not as it should be, and what is present and the chance as `_survey` says.

    What is not: as `tile.fill` says; 6 where it is the odds.
    """
    bad = fill(data, b, b + 1, table.tile, Visible(table.centre, new_counts(table.centre)))
    if bad:
        return bad, 0, 0.0
    fill_rays(table.tile, table.rays)
    count, chance = _survey(table, candidates, b, data.mask, threshold2)
    return 6 if count < 0 else 0, count, chance


@jit
def _uniform(seed: Any, n: Any) -> Any:
    """Number n of a stream, as `geometry.consensus.samples.uniform` makes it."""
    z = seed + np.uint64(n + 1) * np.uint64(STRIDE)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX[1])
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@jit
def draw(ends: Any, seed: Any, h: Any, chosen: Any) -> None:
    """Sample h of a stream: three different indices, as `geometry.consensus.samples.draw` draws them."""
    n, seed = len(ends), np.uint64(seed)
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
