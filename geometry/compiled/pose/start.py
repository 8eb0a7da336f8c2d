"""The global start of PnP on the CPU, compiled: `geometry.pose.start`.

The stages and the formulas are those of `geometry.pose.start`; here the eight lanes of a vector hold

1. rays and the form r^T Omega r (`form`): eight points, whose sums are added up at the end;
2. the descent on SO(3) (`form`): eight of the 24 rotations; and the poses of eight triples of points (`triples`);
3. the first refinement: eight candidates, over the same few points in every lane;
4. the last refinement, of those that may still be the best: eight points again ("spread"), all of them.

A thread of a team that shares a problem has one lane. It takes its part of the points in 1, 3 and 4, and of the
rotations in 2; all of the team have the same candidates.
"""

from typing import Any

import numpy as np
import torch

from geometry.compiled.constants import CANDIDATES, DISTINCT, FISHEYE
from geometry.se3 import cube_rotations

from ..vectors import (
    TEAM,
    broadcast,
    clear,
    entry,
    get,
    highest,
    jit,
    load,
    lowest,
    member,
    put,
    room,
    scratch,
    splat,
    store,
    total,
    where_less,
)
from .descent import blend, copy, levenberg_marquardt
from .equations import POSE, ROW, L, Robust, Tile, new_camera, new_pose, new_sums
from .form import FORM, descend, fill_rays, quadratic_form, sum_up, translate
from .tile import INPUTS, PART, Data, Part, Visible, fill, finite, new_centre, new_counts, new_tile, place, write_pose
from .triples import Spare, add_triples, candidate, new_candidates, new_costs, new_roots, new_sample

__all__ = ["start"]

_FEW = 64  # points of the first refinement
_FIRST_STEPS, _LAST_STEPS = 6, 12
_ENOUGH = 1e-4  # relative decrease that is left to `solve`
_HOPELESS = 100.0  # times the lowest cost: not worth another step
_GRADUAL = (900.0, 64.0, 4.0, 1.0)  # times the squared scale of a robust kernel, one after the other

_ROTATIONS, _VECTORS = 24 // L, CANDIDATES // L  # vectors of rotations, and of candidates
_new_few, _new_work = scratch(_FEW // TEAM * ROW), scratch((FORM + 14) * L)
_new_rotations, _new_values, _new_costs = scratch(_ROTATIONS * POSE), scratch(_ROTATIONS * L), scratch(CANDIDATES)
_new_form, _new_omega, _new_T, _new_middle = scratch(FORM), scratch(81), scratch(27), scratch(3)


# The 24 rotations of `geometry.se3` as three poses of eight lanes each, t = 0.
_CUBE = np.pad(
    cube_rotations(torch.float64, torch.device("cpu")).numpy().reshape(_ROTATIONS, L, 9).transpose(0, 2, 1),
    ((0, 0), (0, 3), (0, 0)),
).reshape(-1)


@jit
def _choose(rotations: Any, values: Any, size: Any, middle: Any, pose: Any) -> Any:
    """The lowest distinct minima about the centre of the tile, as `CANDIDATES` poses; what is left is copied.
    Returns their number.

    Minima behind the camera are taken only where there is none ahead.
    """
    count = 0
    for c in range(CANDIDATES):
        to, best = candidate(c), 0
        for s in range(1, _ROTATIONS * L):
            if get(values, s) < get(values, best):
                best = s
        if c > 0 and not get(values, best) < 1.5:
            for k in range(12):
                pose[to + k * L] = pose[k * L]
            continue
        count += 1
        o = best // L * POSE + best % L
        for i in range(3):
            t = rotations[o + (9 + i) * L] * size
            for j in range(3):
                r = rotations[o + (3 * i + j) * L]
                pose[to + (3 * i + j) * L] = r
                t -= r * middle[j]
            pose[to + (9 + i) * L] = t
        for v in range(_ROTATIONS):
            trace = splat(0.0, pose)
            for k in range(9):
                trace += load(rotations, v * POSE + k * L) * pose[to + k * L]
            store(values, v * L, where_less(DISTINCT, trace, np.inf, load(values, v * L)))
    return count


@jit
def _tell(array: Any, length: Any) -> None:
    """Give to all of a team the vectors of rotations, so long each, that every one of it has taken its part of."""
    for v in range(_ROTATIONS if TEAM > 1 else 0):
        for k in range(v * length, (v + 1) * length):
            put(array, k, broadcast(get(array, k), v % TEAM))


@jit
def _lay_out(tile: Any, few: Any) -> Any:
    """A tile with some of the visible points of a spread one in every lane; few: room for its points.

    Each of a team chooses among the points that are its own.
    """
    points, count = tile.points, 0
    for i in range(tile.rows * L):
        o = place(i, 0, True)
        count += get(points, o + 5 * L) != 0.0 or get(points, o + 6 * L) != 0.0
    rows = min(count, _FEW // TEAM)
    row, seen, wanted = 0, 0, 0
    for i in range(tile.rows * L):
        o = place(i, 0, True)
        if get(points, o + 5 * L) == 0.0 and get(points, o + 6 * L) == 0.0:
            continue
        if seen == wanted:
            for k in range(7):
                store(few, row * ROW + k * L, splat(get(points, o + k * L), few))
            row += 1
            if row == rows:
                break
            # strides that are even but for a jitter, lest they run along the columns of a grid
            wanted = max(seen + 1, int((row + 0.618034 * row % 1.0) * count / rows))
        seen += 1
    return Tile(few, row, tile.camera, tile.lens, TEAM > 1)


@jit
def _push_ahead(tile: Any, margin: Any, pose: Any) -> None:
    """Shift the poses along z until every point is at least `margin` ahead.

    A fisheye sees those behind as well, but none at its centre, where a start for points in one place has them.
    """
    points, wide = tile.points, tile.lens == FISHEYE
    r20, r21, r22, tz = load(pose, 6 * L), load(pose, 7 * L), load(pose, 8 * L), load(pose, 11 * L)
    nearest = splat(np.inf, pose)
    for j in range(tile.rows):
        o = j * ROW
        X, Y, Z = load(points, o), load(points, o + L), load(points, o + 2 * L)
        z = r20 * X + r21 * Y + r22 * Z
        if wide:
            x = load(pose, 0) * X + load(pose, L) * Y + load(pose, 2 * L) * Z + load(pose, 9 * L)
            y = load(pose, 3 * L) * X + load(pose, 4 * L) * Y + load(pose, 5 * L) * Z + load(pose, 10 * L)
            z = x * x + y * y + (z + tz) * (z + tz)
        nearest = where_less(z, nearest, z, nearest)
    if tile.spread:
        nearest = splat(lowest(nearest), pose)
    if wide:
        store(pose, 11 * L, where_less(0.0, nearest, tz, tz + margin))
    else:
        store(pose, 11 * L, where_less(nearest + tz, margin, margin - nearest, tz))


@jit
def _trace(pose: Any, a: Any, b: Any) -> Any:
    """Trace of R_a^T R_b of two candidates."""
    s, a, b = 0.0, candidate(a), candidate(b)
    for k in range(9):
        s += pose[a + k * L] * pose[b + k * L]
    return s


@jit
def _refine_few(few: Any, robust: Any, pose: Any, other: Any, work: Any) -> Any:
    """Some steps on the candidates in all lanes at once, in place. Returns their costs.

    Gross outliers bend the start: with a robust kernel, the better of these steps and of those of graduated
    non-convexity, which begin with a kernel so wide that it is none (Yang, Antonante, Tzoumas and Carlone 2020,
    RA-L 5(2)).
    """
    sums = new_sums(pose)
    if not robust.code:
        cost, _ = levenberg_marquardt(few, robust, _FIRST_STEPS, _ENOUGH, pose, work, sums)
        return cost
    copy(pose, other, POSE)
    cost = splat(np.inf, pose)
    for wider in _GRADUAL:
        wide = Robust(robust.code, robust.scale2 * wider, robust.alpha)
        cost, _ = levenberg_marquardt(few, wide, _FIRST_STEPS, _ENOUGH, pose, work, sums)
    other_cost, _ = levenberg_marquardt(few, robust, _FIRST_STEPS, _ENOUGH, other, work, sums)
    blend(where_less(other_cost, cost, splat(1.0, pose), 0.0), other, pose, POSE)
    return where_less(other_cost, cost, other_cost, cost)


@jit
def _refine_best(
    tile: Any, robust: Any, size: Any, candidates: Any, pose: Any, costs: Any, work: Any
) -> Any:  # fmt: skip
    """Refine the candidates that may be the global minimum on all points, in place. Returns which are the best two.

    The second is distinct from the best; it is the best itself where there is no other.
    """
    best, second, refined = -1, -1, 0  # refined: a bit a candidate
    alone, sums = new_pose(pose), new_sums(pose)
    for _ in range(candidates):
        c = -1
        for k in range(candidates):
            if not refined >> k & 1 and (c < 0 or costs[k] < costs[c]):
                c = k
        if best >= 0 and not costs[c] <= _HOPELESS * costs[best]:
            break
        known = False
        for k in range(candidates):
            if refined >> k & 1 and _trace(pose, c, k) > DISTINCT:
                known = True
        refined |= 1 << c
        if known:
            continue
        at = candidate(c)
        for k in range(12):
            store(alone, k * L, splat(pose[at + k * L], alone))
        for pushed in range(2):
            if pushed:
                # a point that the first refinement has not seen lies behind
                _push_ahead(tile, 0.1 * size, alone)
            cost, _ = levenberg_marquardt(tile, robust, _LAST_STEPS, _ENOUGH, alone, work, sums)
            costs[c] = highest(cost)
            if costs[c] < np.inf:
                break
        for k in range(12):
            pose[at + k * L] = alone[k * L]
        best = c if best < 0 or costs[c] < costs[best] else best
    for k in range(candidates):
        if _trace(pose, best, k) <= DISTINCT and (second < 0 or costs[k] < costs[second]):
            second = k
    return best, second if second >= 0 else best


@jit
def _write(pose: Any, two: Any, centre: Any, out: Any, b: Any) -> None:
    """Two candidates as world_to_camera number b of each of out; the identity, one unit ahead, if not finite."""
    for k in range(2 if member() == 0 else 0):
        poses, everything = out[k], 0.0
        write_pose(pose, candidate(two[k]), centre, 0, poses, b)
        for i in range(3):
            everything += poses[b, i, 0] + poses[b, i, 1] + poses[b, i, 2] + poses[b, i, 3]
        if not finite(everything):
            for i in range(3):
                for j in range(4):
                    poses[b, i, j] = 1.0 if i == j or (i, j) == (2, 3) else 0.0


@entry(*(f"void({INPUTS.format(t)}, {PART}, UniTuple({t}[:,:,::1], 2))" for t in ("float64", "float32")))
def start(data: Any, robust: Any, part: Any, out: Any) -> None:
    """Starts for `solve`: poses near the global minima, and next to the best minima that are distinct from these.

    data, robust, part: as of `solve`; every problem is spread. Writes out, two of poses (B,4,4), always finite; the
    second is a copy of the first where no other minimum was found. Problems that cannot be solved get some pose:
    `solve` reports them.
    """
    data, robust, part = Data(*data), Robust(*robust), Part(*part)
    poses = out[0]
    tile, visible = new_tile(data, part, new_camera(poses)), Visible(new_centre(poses), new_counts(poses))
    centre, counts = visible
    rays, few_points = room(part, tile.rows * ROW, tile.rows * 3 * L, poses), _new_few(poses)
    form, omega, T, middle = _new_form(poses), _new_omega(poses), _new_T(poses), _new_middle(poses)
    rotations, values, costs = _new_rotations(poses), _new_values(poses), _new_costs(poses)
    pose, other, work = new_candidates(poses), new_pose(poses), _new_work(poses)
    order = room(part, tile.rows * (ROW + 3 * L), tile.rows * L, poses)
    spare = Spare(order, new_sample(poses), new_roots(poses), new_costs(poses), work)
    for b in range(part.begin, part.end):
        bad = fill(data, b, b + 1, tile, visible)
        count = counts[0]
        if bad or count < 3:
            clear(pose, POSE)
            for k in range(0, 9, 4):
                store(pose, k * L, 1.0)
            if not bad:
                _push_ahead(tile, 1.0, pose)
            _write(pose, (0, 0), centre, out, b)
            continue
        fill_rays(tile, rays)
        size = sum_up(tile, rays, work, form, middle)
        quadratic_form(form, omega, T)
        for k in range(_ROTATIONS * POSE):
            put(rotations, k, get(_CUBE, k))
        clear(values, _ROTATIONS * L)
        for v in range(member(), _ROTATIONS, TEAM):
            R = rotations[v * POSE : (v + 1) * POSE]
            value = descend(omega, R, work)
            store(values, v * L, translate(R, T, form, value))
        _tell(rotations, POSE)
        _tell(values, L)
        candidates = _choose(rotations, values, size, middle, pose)
        few = _lay_out(tile, few_points)
        share = count / total(float(few.rows))
        candidates = add_triples(tile, rays, few, robust, candidates, pose, spare)
        for v in range(_VECTORS):
            some = pose[v * POSE : (v + 1) * POSE]
            _push_ahead(few, 0.1 * size, some)
            store(costs, v * L, _refine_few(few, robust, some, other, work) * share)
        best = _refine_best(tile, robust, size, candidates, pose, costs, work)
        _write(pose, best, centre, out, b)
