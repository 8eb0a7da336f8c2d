"""Levenberg-Marquardt and Newton on a tile of PnP problems, every lane with a fate of its own."""

from typing import Any, NamedTuple

import numpy as np

from geometry.compiled.constants import (
    DAMPING,
    LEAST_DAMPING,
    LEAST_SHRINK,
    MOST_DAMPING,
    SAME_COST,
    SAME_STEP,
    SHORT_STEP,
)

from ..vectors import clear, fabs, highest, jit, load, resolution, scratch, splat, sqrt, store, where_less
from .equations import GRADIENT, HESSIAN, POSE, SUMS, L, evaluate, new_pose, new_sums

new_step, new_factor = scratch(6 * L), scratch(42 * L)


class Linear(NamedTuple):
    """Of six linear equations: right-hand side and solution (6 L), and what `solve6` leaves of the matrix (42 L)."""

    rhs: Any
    step: Any
    work: Any


class Rule(NamedTuple):
    """What is singular: the margin, and `FEIGNED` of `geometry.optim.linear`."""

    least: Any
    feigned: Any


@jit
def solve6(sums: Any, damping: Any, linear: Any) -> Any:
    """Solve (H + diag(damping H_ii)) step = rhs by L D L^T. Returns the least pivot relative to its diagonal entry.

    A direction that the data do not see still gets some damping. No pivot is below `shares` of its matrix.
    """
    rhs, step, work = linear
    most = load(sums, HESSIAN)
    for i in range(1, 6):
        d = load(sums, HESSIAN + (i * (i + 3) // 2) * L)
        most = where_less(most, d, d, most)
    least = splat(np.inf, sums)
    for i in range(6):
        row = i * (i + 1) // 2
        value = load(rhs, i * L)
        for j in range(i + 1):
            column = j * (j + 1) // 2
            a = load(sums, HESSIAN + (row + j) * L)
            if i == j:
                diagonal = where_less(1e-9 * most, a, a, 1e-9 * most)
                a = a + damping * diagonal
            s = a
            for k in range(j):
                # work: L D below the diagonal; 1 / D on it; L in the second half
                s -= load(work, (row + k) * L) * load(work, (21 + column + k) * L)
            if i == j:
                relative = s / where_less(0.0, a, a, 1.0)
                least = where_less(relative, least, relative, least)
                least = where_less(-np.inf, relative, least, -1.0)  # NaN
                store(work, (row + i) * L, 1.0 / s)
            else:
                store(work, (row + j) * L, s)
                store(work, (21 + row + j) * L, s * load(work, (column + j) * L))
        for j in range(i):
            value -= load(work, (21 + row + j) * L) * load(step, j * L)
        store(step, i * L, value)
    for i in range(5, -1, -1):
        value = load(step, i * L) * load(work, (i * (i + 3) // 2) * L)
        for k in range(i + 1, 6):
            value -= load(work, (21 + k * (k + 1) // 2 + i) * L) * load(step, k * L)
        store(step, i * L, value)
    return least


@jit
def shares(work: Any, one: Any, other: Any) -> Any:
    """What is left of each unknown where the others are free, in parts of two diagonals (6 L): the least of each.

    work: what `solve6` has left there, the pivots all positive. The share of `geometry.optim.linear`, 1 / (H^-1)_kk, by
    the columns of L^-1.
    """
    first, second = splat(0.0, work), splat(0.0, work)
    column = new_step(work)
    for k in range(6):
        inverse = load(work, (k * (k + 3) // 2) * L)
        for i in range(k + 1, 6):
            row = 21 + i * (i + 1) // 2
            y = -load(work, (row + k) * L)
            for j in range(k + 1, i):
                y -= load(work, (row + j) * L) * load(column, j * L)
            store(column, i * L, y)
            inverse += y * y * load(work, (i * (i + 3) // 2) * L)
        a, b = inverse * load(one, k * L), inverse * load(other, k * L)
        first, second = where_less(first, a, a, first), where_less(second, b, b, second)
    return 1.0 / first, 1.0 / second


@jit
def diagonal(sums: Any, out: Any) -> None:
    """The diagonal (6 L) of the matrix in sums, made positive."""
    for i in range(6):
        store(out, i * L, fabs(load(sums, HESSIAN + (i * (i + 3) // 2) * L)))


@jit
def join(own: Any, together: Any) -> None:
    """The diagonal own (6 L), the three of the rotation as large as the largest of them, as they have one unit."""
    most = load(own, 0)
    for i in range(1, 3):
        a = load(own, i * L)
        most = where_less(most, a, a, most)
    for i in range(6):
        store(together, i * L, most if i < 3 else load(own, i * L))


@jit
def retract(pose: Any, step: Any, out: Any) -> None:
    """`geometry.se3.retract` by the quaternion (1, omega / 2): exp to second order, and no trigonometry."""
    x, y, z = 0.5 * load(step, 0), 0.5 * load(step, L), 0.5 * load(step, 2 * L)
    f = 2.0 / (1.0 + x * x + y * y + z * z)
    for k in range(3):
        a, b, c = load(pose, k * L), load(pose, (3 + k) * L), load(pose, (6 + k) * L)
        # column + f (h x column + h x (h x column))
        da, db, dc = y * c - z * b, z * a - x * c, x * b - y * a
        store(out, k * L, a + f * (da + y * dc - z * db))
        store(out, (3 + k) * L, b + f * (db + z * da - x * dc))
        store(out, (6 + k) * L, c + f * (dc + x * db - y * da))
        store(out, (9 + k) * L, load(pose, (9 + k) * L) + load(step, (3 + k) * L))


@jit
def still(pose: Any, step: Any, resolution: Any) -> Any:
    """1 in the lanes where a step is below the resolution of the pose, else 0."""
    turn, shift, size = splat(0.0, pose), splat(0.0, pose), splat(0.0, pose)
    for k in range(3):
        a, b, c = fabs(load(step, k * L)), fabs(load(step, (3 + k) * L)), fabs(load(pose, (9 + k) * L))
        turn, shift = where_less(turn, a, a, turn), where_less(shift, b, b, shift)
        size = where_less(size, c, c, size)
    return where_less(resolution, turn, 0.0, where_less(resolution * size, shift, 0.0, 1.0))


@jit
def copy(source: Any, to: Any, length: Any) -> None:
    for k in range(0, length, L):
        store(to, k, load(source, k))


@jit
def blend(condition: Any, new: Any, old: Any, length: Any) -> None:
    """old[...] = new[...] in the lanes where condition is 1."""
    for k in range(0, length, L):
        store(old, k, where_less(0.5, condition, load(new, k), load(old, k)))


@jit
def negated_gradient(sums: Any, out: Any) -> None:
    for k in range(0, 6 * L, L):
        store(out, k, -load(sums, GRADIENT + k))


@jit
def dot6(a: Any, b: Any) -> Any:
    s = load(a, 0) * load(b, 0)
    for k in range(L, 6 * L, L):
        s += load(a, k) * load(b, k)
    return s


@jit
def levenberg_marquardt(
    tile: Any, robust: Any, max_steps: Any, enough: Any, pose: Any, work: Any, now: Any
) -> Any:  # fmt: skip
    """`geometry.optim.descent.levenberg_marquardt` on a tile, until the predicted relative decrease is `enough`.

    Moves pose in place; returns cost (infinite where the start is infeasible) and accepted steps, lane by lane, and
    leaves in `now` the normal equations (SUMS) at the pose. A lane that has ended stays as it is.
    """
    one, smallest = splat(1.0, pose), resolution(pose) ** SAME_STEP
    trial, new, rhs, step = new_pose(pose), new_sums(pose), new_step(pose), new_step(pose)
    linear = Linear(rhs, step, work)
    cost = evaluate(tile, robust, pose, False, now)
    running = where_less(cost, np.inf, one, 0.0)
    damping, growth, steps = splat(DAMPING, pose), splat(2.0, pose), splat(0.0, pose)
    for _ in range(max_steps):
        if highest(running) == 0.0:
            break
        negated_gradient(now, rhs)
        pivot = solve6(now, damping, linear)
        for k in range(0, 6 * L, L):  # damped, and only a trial: that it can be factorised is enough
            store(step, k, where_less(0.0, pivot, load(step, k), 0.0))
        predicted = 0.5 * dot6(rhs, step)
        for i in range(6):
            a = load(now, HESSIAN + (i * (i + 3) // 2) * L)
            predicted += 0.5 * damping * a * load(step, i * L) * load(step, i * L)
        retract(pose, step, trial)
        trial_cost = evaluate(tile, robust, trial, False, new)
        accept = running * where_less(trial_cost, cost, one, 0.0)
        ratio = (cost - trial_cost) / where_less(1e-300, predicted, predicted, 1e-300)
        ratio = where_less(ratio, 2.0, where_less(-1.0, ratio, ratio, -1.0), 2.0)
        cubed = 2.0 * ratio - 1.0
        shrink = 1.0 - cubed * cubed * cubed
        shrink = where_less(shrink, LEAST_SHRINK, LEAST_SHRINK, where_less(shrink, 1.0, shrink, 1.0))
        shrunk = damping * shrink
        shrunk = where_less(shrunk, LEAST_DAMPING, LEAST_DAMPING, shrunk)
        lower = where_less(trial_cost, cost, trial_cost, cost)
        done = where_less(enough * lower, predicted, still(pose, step, smallest), 1.0)
        blend(accept, trial, pose, POSE)
        blend(accept, new, now, SUMS)
        cost = where_less(0.5, accept, trial_cost, cost)
        damping = where_less(0.5, accept, shrunk, damping * growth)
        growth = where_less(0.5, accept, 2.0, 2.0 * growth)
        steps += accept
        running *= where_less(0.5, done, 0.0, where_less(damping, MOST_DAMPING, one, 0.0))
    return cost, steps


@jit
def _linear_share(now: Any, own: Any, linear: Any, together: Any) -> Any:
    """The share of J^T J in now, -1 where it is not definite. Overwrites linear and together (6 L)."""
    negated_gradient(now, linear.rhs)
    pivot = solve6(now, splat(0.0, now), linear)
    join(own, together)
    for k in range(0, 6 * L, L):
        store(together, k, sqrt(load(own, k) * load(together, k)))
    share, _ = shares(linear.work, together, together)
    return where_less(0.0, pivot, share, -1.0)


@jit
def _determined(sums: Any, now: Any, own: Any, cost: Any, rule: Any, asked: Any, linear: Any) -> Any:
    """`geometry.optim.linear.determined` in the lanes that are asked for (1), 0 in all others.

    sums: gradient and exact Hessian, which `solve6` has factorised in linear, its pivots positive where asked; now:
    J^T J, and own its diagonal; cost: what it is there. Overwrites linear.
    """
    size, together = new_step(own), new_step(own)
    diagonal(sums, size)
    for k in range(0, 6 * L, L):
        a, b = load(own, k), load(size, k)
        store(size, k, where_less(b, a, a, b))
    join(size, together)
    cosine2 = splat(0.0, sums)
    for k in range(0, 6 * L, L):
        g = load(linear.rhs, k)
        cosine2 += g * g / load(together, k)
    curved, alone = shares(linear.work, size, together)
    alone -= rule.feigned * sqrt(0.5 * cosine2 / cost)
    asked = where_less(rule.least, curved, asked, 0.0)
    # NaN where the cost is zero: J^T J has to tell then
    if highest(where_less(rule.least, alone, 0.0, asked)) == 1.0:
        alone = where_less(rule.least, alone, alone, _linear_share(now, own, linear, together))
    return where_less(rule.least, alone, asked, 0.0)


@jit
def polish(tile: Any, robust: Any, rule: Any, pose: Any, work: Any, now: Any) -> Any:
    """Undamped Newton steps with the exact Hessian, until the next one would not matter; that one is still taken.

    now: normal equations (SUMS) near the pose, with J^T J; the `rule` is that of `geometry.optim.linear.determined`.
    Moves pose in place; returns cost, and lane by lane whether stationary, whether determined. A lane that has ended
    stays as it is, whatever the others still need.
    """
    one, zero, eps = splat(1.0, pose), splat(0.0, pose), resolution(pose)
    tolerance, smallest = max(1e-13, 50.0 * eps), eps**SAME_STEP
    own, candidate, sums = new_step(pose), new_pose(pose), new_sums(pose)
    rhs, step, best_step = new_step(pose), new_step(pose), new_step(pose)
    copy(pose, candidate, POSE)
    clear(best_step, 6 * L)
    linear = Linear(rhs, step, work)
    cost, decrease, running = splat(np.inf, pose), splat(np.inf, pose), one
    stationary, definite, determined = zero, zero, zero
    diagonal(now, own)
    for i in range(4):
        new_cost = evaluate(tile, robust, candidate, True, sums)
        negated_gradient(sums, rhs)
        pivot = solve6(sums, zero, linear)
        new_definite = where_less(rule.least, pivot, one, 0.0)
        new_decrease = 0.5 * dot6(rhs, step)
        # Newton must not run to a saddle or to another basin, where it takes more than a very short step
        short = where_less(new_cost, np.inf, running * still(pose, best_step, eps**SHORT_STEP), 0.0)
        better = where_less(new_cost, SAME_COST * cost, running, short)
        better *= new_definite * where_less(decrease, new_decrease, 0.0, one)
        if i == 0:
            better = one
        blend(better, candidate, pose, POSE)
        blend(better, step, best_step, 6 * L)
        cost = where_less(0.5, better, new_cost, cost)
        decrease = where_less(0.5, better, new_decrease, decrease)
        definite = where_less(0.5, better, new_definite, definite)
        small = where_less(tolerance * cost, decrease, still(pose, best_step, smallest), 1.0)
        stationary = definite * small
        asked = stationary * better
        if highest(asked) == 1.0:
            found = _determined(sums, now, own, new_cost, rule, asked, linear)
            determined = where_less(0.5, better, found, determined)
        # where J^T J is singular, another step has to show that it was not the gradient that made H definite
        running = where_less(0.5, better * definite, where_less(0.5, stationary * determined, 0.0, running), 0.0)
        if highest(running) == 0.0:
            break
        retract(pose, best_step, candidate)
    asked = where_less(0.5, stationary, 0.0, definite)
    if highest(asked) == 1.0:  # seldom: stalled, unless there is nothing to find
        new_cost = evaluate(tile, robust, pose, True, sums)
        negated_gradient(sums, rhs)
        solve6(sums, zero, linear)
        found = _determined(sums, now, own, new_cost, rule, asked, linear)
        determined = where_less(0.5, asked, found, determined)
    stationary *= determined
    for k in range(0, 6 * L, L):
        store(best_step, k, where_less(0.5, stationary, load(best_step, k), 0.0))
    retract(pose, best_step, pose)
    lowered = cost - decrease
    lowered = where_less(0.0, lowered, lowered, 0.0)
    return where_less(0.5, stationary, lowered, cost), stationary, determined
