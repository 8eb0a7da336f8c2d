"""Candidates of the global start from three points, compiled: `geometry.pose.triples`."""

from typing import Any, NamedTuple

import numpy as np

from geometry.compiled.constants import CANDIDATES, DISTINCT, DOMINATED, HEAVIEST, OF_TRIPLES, RANKED, TRIPLES

from ..vectors import (
    TEAM,
    broadcast,
    clear,
    get,
    jit,
    load,
    member,
    put,
    resolution,
    scratch,
    splat,
    store,
    total,
    where_less,
)
from .equations import POSE, ROW, L, residuals, rho
from .p3p import POSES, ROOTS, SAMPLE, fill_sample, p3p
from .tile import of_point

__all__ = ["Spare", "add_triples", "candidate", "new_candidates", "new_costs", "new_roots", "new_sample"]

new_candidates = scratch(CANDIDATES // L * POSE)
new_sample, new_roots, new_costs = scratch(SAMPLE), scratch(POSES), scratch(OF_TRIPLES)


class Spare(NamedTuple):
    """What `add_triples` overwrites: a number a point, a sample, its roots, costs (OF_TRIPLES), 39 L numbers."""

    order: Any
    sample: Any
    roots: Any
    costs: Any
    work: Any


@jit
def candidate(c: Any) -> Any:
    """Where candidate c begins among vectors of poses."""
    return c // L * POSE + c % L


@jit
def _note(order: Any, k: Any, i: Any) -> None:
    """Let number k of the order be point i. It is a floating-point number, of which a device has an array."""
    if k % TEAM == member():
        put(order, k // TEAM, i)


@jit
def _noted(order: Any, k: Any) -> Any:
    return int(broadcast(get(order, k // TEAM), k % TEAM))


@jit
def _draw_from(rays: Any, rows: Any, robust: Any, order: Any) -> Any:
    """Note the points that triples are drawn from. Returns their number: none where they would not help."""
    weight, squares = 0.0, 0.0
    for i in range(rows * L):
        weight += get(rays, 3 * (i // L) * L + 2 * L + i % L)
    weight = total(weight)
    for i in range(rows * L):
        w = get(rays, 3 * (i // L) * L + 2 * L + i % L) / weight
        squares += w * w
    dominated = total(squares) * DOMINATED > 1.0
    if not dominated and not robust.code:
        return 0
    clear(order, rows * L)
    count = 0
    for i in range(rows * L * TEAM):
        if of_point(rays, 3, 2, i) > 0.0:
            _note(order, count, i)
            count += 1
    if not dominated:
        return count
    few = min(count, HEAVIEST)
    for k in range(few):
        for m in range(k + 1, count):
            i, j = _noted(order, k), _noted(order, m)
            if of_point(rays, 3, 2, j) > of_point(rays, 3, 2, i):
                _note(order, k, j)
                _note(order, m, i)
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
def _costs(tile: Any, robust: Any, pose: Any) -> Any:
    """Costs of the poses in all lanes on about `RANKED` of the points, infinite where one of these lies behind."""
    cost, ranked = splat(0.0, pose), min(tile.rows, max(RANKED // TEAM, 1))
    for k in range(ranked):
        # strides that are even but for a jitter
        j = int((k + 0.618034 * k % 1.0) * tile.rows / ranked)
        ru, rv, depth = residuals(pose, tile.camera, tile.lens, tile.points, j * ROW)
        s = ru * ru + rv * rv
        if robust.code:
            s, _, _ = rho(robust, s)
        cost += where_less(0.0, depth, s, np.inf)
    if tile.spread:
        cost = splat(total(cost), pose)
    return where_less(cost, np.inf, cost, np.inf)


@jit
def _slot(root: Any, lane: Any, pose: Any, own: Any, costs: Any) -> Any:
    """Which of the poses kept so far the root in a lane replaces: what it lies next to, or the highest; -1 for none."""
    cost, slot = get(root, POSE + lane), 0
    for c in range(1, OF_TRIPLES):
        slot = c if get(costs, c) > get(costs, slot) else slot
    if not cost < get(costs, slot):
        return -1
    for c in range(OF_TRIPLES):
        if get(costs, c) < np.inf:
            trace, kept = 0.0, candidate(own + c)
            for k in range(9):
                trace += get(root, k * L + lane) * get(pose, kept + k * L)
            if trace > DISTINCT:
                if get(costs, c) <= cost:
                    return -1
                put(costs, c, np.inf)
                slot = c
    return slot


@jit
def add_triples(
    tile: Any, rays: Any, few: Any, robust: Any, candidates: Any, pose: Any, spare: Any
) -> Any:  # fmt: skip
    """Put the best distinct poses of triples of points next to, or in place of, the candidates in pose.

    few: the points some of which tell which are the best. Returns the number of candidates then;
    `geometry.pose.triples` says when, and why. Poses are kept or not vector by vector: all of them at once are more
    than a thread of a device has room for.
    """
    order, sample, roots, costs, work = spare
    count = _draw_from(rays, tile.rows, robust, order)
    if count < 3:
        return candidates
    eps = resolution(pose)
    every = count * (count - 1) * (count - 2) // 6
    own = min(candidates, CANDIDATES - OF_TRIPLES)
    for c in range(OF_TRIPLES):
        put(costs, c, np.inf)
    for v in range(TRIPLES // L):
        for lane in range(L):
            # all of them, or strides that are even but for a jitter
            k = v * L + lane
            k = min(k, every - 1) if every <= TRIPLES else int((k + 0.618034 * k % 1.0) * every / TRIPLES)
            first, middle, last = _members(k, count)
            fill_sample(tile, rays, _noted(order, first), 0, lane, sample)
            fill_sample(tile, rays, _noted(order, middle), 1, lane, sample)
            fill_sample(tile, rays, _noted(order, last), 2, lane, sample)
        p3p(sample, eps, work, roots)
        for k in range(ROOTS):
            root = roots[k * (POSE + L) : (k + 1) * (POSE + L)]
            store(root, POSE, where_less(0.5, load(root, POSE), _costs(few, robust, root), np.inf))
            for lane in range(L):
                slot = _slot(root, lane, pose, own, costs)
                if slot >= 0:
                    put(costs, slot, get(root, POSE + lane))
                    for i in range(12):
                        put(pose, candidate(own + slot) + i * L, get(root, i * L + lane))
                    candidates = max(candidates, own + slot + 1)
    return candidates
