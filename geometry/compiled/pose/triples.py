"""Candidates of the global start from three points, compiled: `geometry.pose.triples`."""

from typing import Any, NamedTuple

import numpy as np

from geometry.compiled.constants import CANDIDATES, DISTINCT, DOMINATED, HEAVIEST, OF_TRIPLES, TRIPLES

from ..vectors import get, jit, load, put, resolution, scratch, splat, store, where_less
from .equations import POSE, L, evaluate
from .p3p import POSES, ROOTS, SAMPLE, fill_sample, p3p

__all__ = ["Spare", "add_triples", "candidate", "new_candidates", "new_costs", "new_roots", "new_sample"]

_VECTORS = TRIPLES // L
new_candidates = scratch(CANDIDATES // L * POSE)
new_sample, new_roots, new_costs = scratch(SAMPLE), scratch(_VECTORS * POSES), scratch(_VECTORS * ROOTS * L)


class Spare(NamedTuple):
    """What `add_triples` overwrites: a number for every point, a sample, all roots, sums, all costs, 39 L numbers."""

    order: Any
    sample: Any
    roots: Any
    sums: Any
    costs: Any
    work: Any


@jit
def candidate(c: Any) -> Any:
    """Where candidate c begins among vectors of poses."""
    return c // L * POSE + c % L


@jit
def _draw_from(rays: Any, n: Any, robust: Any, order: Any) -> Any:
    """Write the points that triples are drawn from, as floating-point numbers, of which a device has an array.
    Returns how many there are: none where they would not help."""
    count, weight, squares = 0, 0.0, 0.0
    for i in range(n):
        w = get(rays, 3 * (i // L) * L + 2 * L + i % L)
        if w > 0.0:
            put(order, count, i)
            count += 1
        weight += w
    for i in range(n):
        w = get(rays, 3 * (i // L) * L + 2 * L + i % L) / weight
        squares += w * w
    if not squares * DOMINATED > 1.0:
        return count if robust.code else 0
    few = min(count, HEAVIEST)
    for k in range(few):
        for m in range(k + 1, count):
            i, j = int(get(order, k)), int(get(order, m))
            if get(rays, 3 * (j // L) * L + 2 * L + j % L) > get(rays, 3 * (i // L) * L + 2 * L + i % L):
                put(order, k, j)
                put(order, m, i)
    return few


@jit
def _members(number: Any, count: Any) -> Any:
    """Three of `count` points: triple `number` of all, in the order of their last, then middle, then first one."""
    last, before = 2, 0
    while last < count - 1 and before + last * (last - 1) // 2 <= number:
        before += last * (last - 1) // 2
        last += 1
    middle, number = 1, number - before
    while number >= middle:
        number -= middle
        middle += 1
    return number, middle, last


@jit
def add_triples(
    tile: Any, rays: Any, few: Any, robust: Any, candidates: Any, pose: Any, spare: Any
) -> Any:  # fmt: skip
    """Put the best distinct poses of triples of points next to, or in place of, the candidates in pose.

    few: the points that tell which are the best. Returns the number of candidates then; `geometry.pose.triples` says
    when, and why.
    """
    order, sample, roots, sums, costs, work = spare
    count = _draw_from(rays, tile.rows * L, robust, order)
    if count < 3:
        return candidates
    eps = resolution(pose)
    every = count * (count - 1) * (count - 2) // 6
    for v in range(_VECTORS):
        for lane in range(L):
            # all of them, or strides that are even but for a jitter
            k = v * L + lane
            k = min(k, every - 1) if every <= TRIPLES else int((k + 0.618034 * k % 1.0) * every / TRIPLES)
            first, middle, last = _members(k, count)
            fill_sample(tile, rays, int(get(order, first)), 0, lane, sample)
            fill_sample(tile, rays, int(get(order, middle)), 1, lane, sample)
            fill_sample(tile, rays, int(get(order, last)), 2, lane, sample)
        p3p(sample, eps, work, roots[v * POSES : (v + 1) * POSES])
    for k in range(_VECTORS * ROOTS):
        root = roots[k * (POSE + L) : (k + 1) * (POSE + L)]
        cost = evaluate(few, robust, root, False, sums)
        store(costs, k * L, where_less(0.5, load(root, POSE), cost, np.inf))
    own = min(candidates, CANDIDATES - OF_TRIPLES)
    for c in range(own, own + OF_TRIPLES):
        to, best = candidate(c), 0
        for k in range(1, _VECTORS * ROOTS * L):
            if get(costs, k) < get(costs, best):
                best = k
        if not costs[best] < np.inf:
            break
        o = best // L * (POSE + L) + best % L
        for k in range(12):
            pose[to + k * L] = roots[o + k * L]
        candidates = max(candidates, c + 1)
        for k in range(_VECTORS * ROOTS):
            trace = splat(0.0, pose)
            for q in range(9):
                trace += load(roots, k * (POSE + L) + q * L) * pose[to + q * L]
            store(costs, k * L, where_less(DISTINCT, trace, np.inf, load(costs, k * L)))
    return candidates
