"""The problem of the multipliers that is left without x, S w + g = s: its interior-point and active-set steps.

The matrix K of `geometry.compiled.program.solve` has -S at its end. sizes: n, m + q, n in whole tiles, rows of K.
"""

from typing import Any

import numpy as np

from ..vectors import LANES, fabs, highest, jit, load, resolution, splat, store, where_less
from .elimination import back, factorise, forward

__all__ = ["active_set", "factor_of_multipliers", "interior_point", "larger"]


@jit
def larger(a: Any, b: Any) -> Any:
    return where_less(a, b, b, a)


@jit
def _longest(v: Any, dv: Any, fraction: Any, step: Any) -> Any:
    """The step, or the fraction of it that leaves v + step dv positive."""
    ratio = where_less(dv, 0.0, -fraction * v / dv, step)
    return where_less(ratio, step, ratio, step)


@jit
def _slack(K: Any, sizes: Any, g: Any, w: Any, out: Any) -> None:
    """out = g + S w, which is d - C x at the minimum for these w."""
    n4, N = sizes[2:]
    for i in range(N - n4):
        row, wi = ((n4 + i) * N + n4) * LANES, load(w, i * LANES)
        total = load(g, i * LANES) - load(K, row + i * LANES) * wi
        for j in range(i):
            S = load(K, row + j * LANES)
            total = total - S * load(w, j * LANES)
            store(out, j * LANES, load(out, j * LANES) - S * wi)
        store(out, i * LANES, total)


@jit
def factor_of_multipliers(K: Any, sizes: Any, active: Any, more: Any, F: Any, T: Any) -> None:
    """The factor F of S + diag(more) over the active rows, 1 or 0, and of the identity over the others."""
    n4, N = sizes[2:]
    M4 = N - n4
    for i in range(M4):
        row, to, a = ((n4 + i) * N + n4) * LANES, i * M4 * LANES, load(active, i * LANES)
        for j in range(i):
            store(F, to + j * LANES, -a * load(active, j * LANES) * load(K, row + j * LANES))
        store(F, to + i * LANES, a * (load(more, i * LANES) - load(K, row + i * LANES)) + (1.0 - a))
    factorise(F, M4, M4, M4, T)


@jit
def _centred(z: Any, s: Any, m: Any) -> None:
    """Move z and s inside, as Mehrotra's start does."""
    low_s, low_z = splat(0.0, s), splat(0.0, s)
    for i in range(m):
        low_s = larger(low_s, -1.5 * load(s, i * LANES))
        low_z = larger(low_z, -1.5 * load(z, i * LANES))
    sum_s, sum_z, product = splat(0.0, s), splat(0.0, s), splat(0.0, s)
    for i in range(m):
        si, zi = load(s, i * LANES) + low_s + 1e-2, load(z, i * LANES) + low_z + 1e-2
        sum_s, sum_z, product = sum_s + si, sum_z + zi, product + 0.5 * si * zi
        store(s, i * LANES, si), store(z, i * LANES, zi)
    for i in range(m):
        store(s, i * LANES, load(s, i * LANES) + product / sum_z)
        store(z, i * LANES, load(z, i * LANES) + product / sum_s)


@jit
def interior_point(K: Any, sizes: Any, m: Any, limits: Any, problem: Any, room: Any) -> Any:
    """Write the multipliers of the best iterate, and return the steps of every problem."""
    n4, N = sizes[2:]
    M4 = N - n4
    d, g, delta, ones, w = problem
    F, T, u, s, r, more, dw, ds = room
    eps = resolution(w)
    small, far, infinite = eps**0.75, eps**-0.4, splat(np.inf, w)
    for i in range(M4):
        store(more, i * LANES, 1.0)
        store(u, i * LANES, -load(g, i * LANES))
    factor_of_multipliers(K, sizes, ones, more, F, T)
    forward(F, M4, M4, u), back(F, M4, M4, u)
    for i in range(m):
        store(s, i * LANES, -load(u, i * LANES))
    _centred(u, s, m)
    proximal = load(delta, 0)
    running, best, steps = splat(1.0, w), infinite, splat(0.0, w)
    for step_number in range(limits + 1):
        _slack(K, sizes, g, u, r)
        mu, worst, size = splat(0.0, w), splat(0.0, w), splat(0.0, w)
        for i in range(M4):
            v = load(r, i * LANES)
            if i < m:
                v = v - load(s, i * LANES)
                mu = mu + load(s, i * LANES) * load(u, i * LANES) / m
            store(r, i * LANES, v)
            size = larger(fabs(load(u, i * LANES)), size)
            worst = larger(fabs(v) / larger(fabs(load(d, i * LANES)), splat(1.0, w)), worst)
        error = where_less(small, worst, larger(worst, mu), mu)
        better = where_less(error, best, running, 0.0)
        best = where_less(0.0, better, error, best)
        for i in range(M4):
            store(w, i * LANES, where_less(0.0, better, load(u, i * LANES), load(w, i * LANES)))
        running = where_less(error, infinite, where_less(small, error, running, 0.0), 0.0)
        running = where_less(size, far, running, 0.0)  # multipliers without end: the constraints may be contrary
        if step_number == limits or not highest(running) > 0.0:
            break
        steps = steps + running
        for i in range(M4):
            v = load(r, i * LANES)
            ratio = splat(0.0, w)
            if i < m:
                ratio, v = load(s, i * LANES) / load(u, i * LANES), v + load(s, i * LANES)
            store(more, i * LANES, ratio + proximal)
            store(dw, i * LANES, -v)
        factor_of_multipliers(K, sizes, ones, more, F, T)
        forward(F, M4, M4, dw), back(F, M4, M4, dw)
        affine, one = splat(1.0, w), splat(1.0, w)
        for i in range(m):
            si, zi, dz = load(s, i * LANES), load(u, i * LANES), load(dw, i * LANES)
            store(ds, i * LANES, -si * (1.0 + dz / zi))
            affine = _longest(zi, dz, one, _longest(si, load(ds, i * LANES), one, affine))
        left = splat(0.0, w)
        for i in range(m):
            left = left + (load(s, i * LANES) + affine * load(ds, i * LANES)) * (
                load(u, i * LANES) + affine * load(dw, i * LANES)
            )
        left = left / (m * mu)
        centre = left * left * left * mu
        trusted = where_less(affine, 0.3, affine, 1.0)
        for i in range(M4):
            v = load(r, i * LANES)
            if i < m:
                si, zi = load(s, i * LANES), load(u, i * LANES)
                product = si * zi + trusted * load(ds, i * LANES) * load(dw, i * LANES) - centre
                store(ds, i * LANES, product)
                v = v + product / zi
            store(dw, i * LANES, -v)
        forward(F, M4, M4, dw), back(F, M4, M4, dw)
        fraction = larger(1.0 - 0.1 * left, splat(0.995, w))
        step = one
        for i in range(m):
            si, zi, dz = load(s, i * LANES), load(u, i * LANES), load(dw, i * LANES)
            store(ds, i * LANES, -(load(ds, i * LANES) + si * dz) / zi)
            step = _longest(zi, dz, fraction, _longest(si, load(ds, i * LANES), fraction, step))
        for i in range(M4):
            v = load(u, i * LANES)
            store(u, i * LANES, where_less(0.0, running, v + step * load(dw, i * LANES), v))
            if i < m:
                v = load(s, i * LANES)
                store(s, i * LANES, where_less(0.0, running, v + step * load(ds, i * LANES), v))
    return steps


@jit
def _choose(K: Any, sizes: Any, m: Any, g: Any, w: Any, active: Any, r: Any) -> Any:
    """Take the inequalities with z > slack as active; how many of every problem have changed."""
    _slack(K, sizes, g, w, r)
    changed = splat(0.0, w)
    for i in range(m):
        a = where_less(load(r, i * LANES), load(w, i * LANES), splat(1.0, w), 0.0)
        changed = changed + fabs(a - load(active, i * LANES))
        store(active, i * LANES, a)
    return changed


@jit
def active_set(K: Any, sizes: Any, m: Any, polish: Any, problem: Any, room: Any) -> None:
    """Primal-dual active-set steps of w, and the factor of the rows that they end with."""
    n4, N = sizes[2:]
    M4 = N - n4
    g, active, more, w = problem
    F, T, r = room
    _choose(K, sizes, m, g, w, active, r)
    changed = splat(1.0, w)
    for k in range(polish):
        factor_of_multipliers(K, sizes, active, more, F, T)
        for i in range(M4):
            store(w, i * LANES, load(active, i * LANES) * load(w, i * LANES))
        for _ in range(2):
            _slack(K, sizes, g, w, r)
            for i in range(M4):
                store(r, i * LANES, -load(active, i * LANES) * load(r, i * LANES))
            forward(F, M4, M4, r), back(F, M4, M4, r)
            for i in range(M4):
                store(w, i * LANES, load(w, i * LANES) + where_less(0.0, changed, load(r, i * LANES), 0.0))
        if k + 1 == polish:
            break
        changed = _choose(K, sizes, m, g, w, active, r)
        if not highest(changed) > 0.0:
            break
