"""Strictly convex quadratic programs, eight at a time, by elimination of x.

With the factor L of Q and V^T = C L^-T the multipliers w satisfy S w + g = s, where S = V^T V and g = d + C Q^-1 p: a
problem of as many unknowns as there are constraints. On it run the iterations of `geometry.optim.interior_point`, which
says what they are, and the active-set steps; then x and w are refined in the equations as they are. Whether they are a
minimum is judged there.

All of a problem stands in one matrix of n + m + q rows, each number rounded up to whole tiles: [Q C^T; C 0] above the
diagonal, and below it what is left of it without x, [L 0; V^T -S].
"""

from typing import Any

import numpy as np

from ..vectors import LANES, clear, entry, fabs, highest, jit, load, resolution, splat, store, where_less
from .elimination import back, factorise, forward
from .multipliers import active_set, factor_of_multipliers, interior_point, larger

__all__ = ["solve"]


@jit
def _of(a: Any, magnitude: Any) -> Any:
    return fabs(a) if magnitude else a


@jit
def _gather(data: Any, first: Any, end: Any, sizes: Any, K: Any, vectors: Any) -> None:
    """The matrix, its diagonal Q_ii, p, d, delta and the shifted Q_ii, scaled, of the problems from `first` on.

    The shift is half of the digits: where L exists nevertheless, Q is definite by so much.
    """
    Q, C, p, d, units, forces, kappa, proximal = data
    n, rows, n4, N = sizes
    diagonal, pv, dv, delta = vectors
    clear(K, N * N * LANES)
    clear(pv, n4 * LANES), clear(dv, (N - n4) * LANES)
    shift = 1.0 - np.sqrt(resolution(p))
    for lane in range(LANES):
        b = min(first + lane, end - 1)
        Qb, Cb = Q[b if len(Q) > 1 else 0], C[b if len(C) > 1 else 0]
        delta[lane] = proximal[b]
        for i in range(n4):
            K[(i * N + i) * LANES + lane] = 1.0
            diagonal[i * LANES + lane] = 1.0
        for i in range(n):
            unit = 0.5 * kappa[b] * units[b, i]
            for j in range(i):
                v = unit * units[b, j] * (Qb[i, j] + Qb[j, i])
                K[(i * N + j) * LANES + lane] = v
                K[(j * N + i) * LANES + lane] = v
            v = 2.0 * unit * units[b, i] * Qb[i, i]
            diagonal[i * LANES + lane] = v
            K[(i * N + i) * LANES + lane] = shift * v
            pv[i * LANES + lane] = p[b, i]
        for r in range(rows):
            for i in range(n):
                v = forces[b, r] * units[b, i] * Cb[r, i]
                K[((n4 + r) * N + i) * LANES + lane] = v
                K[(i * N + n4 + r) * LANES + lane] = v
            dv[r * LANES + lane] = d[b, r]


@jit
def _terms(K: Any, diagonal: Any, sizes: Any, size: Any, at: Any, out: Any) -> None:
    """Q x, C^T w and C x at x, w; size: of all magnitudes."""
    n4, N = sizes[2:]
    x, w = at
    Qx, Ctw, Cx = out
    clear(Qx, n4 * LANES), clear(Cx, (N - n4) * LANES)
    for i in range(n4):
        row, xi = i * N * LANES, _of(load(x, i * LANES), size)
        total = load(Qx, i * LANES) + _of(load(diagonal, i * LANES), size) * xi
        other = splat(0.0, x)
        for j in range(i + 1, n4):
            q = _of(load(K, row + j * LANES), size)
            total = total + q * _of(load(x, j * LANES), size)
            store(Qx, j * LANES, load(Qx, j * LANES) + q * xi)
        for r in range(N - n4):
            c = _of(load(K, row + (n4 + r) * LANES), size)
            other = other + c * _of(load(w, r * LANES), size)
            store(Cx, r * LANES, load(Cx, r * LANES) + c * xi)
        store(Qx, i * LANES, total)
        store(Ctw, i * LANES, other)


@jit
def _refine(K: Any, sizes: Any, rounds: Any, problem: Any, room: Any) -> Any:
    """Add to x, w, until it is rounding, what is left of the equations Q x + C^T w = -p and, of active rows, C x = d.

    Returns the last change of every problem, in parts of x and w.
    """
    n4, N = sizes[2:]
    M4 = N - n4
    diagonal, p, d, active, x, w = problem
    F, Qx, Ctw, Cx = room
    enough, change = resolution(x) ** 0.75, splat(np.inf, x)
    for _ in range(rounds):
        _terms(K, diagonal, sizes, False, (x, w), (Qx, Ctw, Cx))
        for i in range(n4):
            store(Qx, i * LANES, -(load(Qx, i * LANES) + load(Ctw, i * LANES) + load(p, i * LANES)))
        forward(K, N, n4, Qx)
        for i in range(M4):
            row, total = (n4 + i) * N * LANES, load(Cx, i * LANES) - load(d, i * LANES)
            other = splat(0.0, x)
            for k in range(0, n4, 2):
                total = total + load(K, row + k * LANES) * load(Qx, k * LANES)
                other = other + load(K, row + (k + 1) * LANES) * load(Qx, (k + 1) * LANES)
            store(Cx, i * LANES, load(active, i * LANES) * (total + other))
        forward(F, M4, M4, Cx), back(F, M4, M4, Cx)
        for i in range(M4):
            row, v = (n4 + i) * N * LANES, load(Cx, i * LANES)
            for k in range(n4):
                store(Qx, k * LANES, load(Qx, k * LANES) - load(K, row + k * LANES) * v)
        back(K, N, n4, Qx)
        running = where_less(enough, change, splat(1.0, x), 0.0)
        new = _added(w, Cx, M4, running) + _added(x, Qx, n4, running)
        change = where_less(0.0, running, new, change)
        if not highest(change) > enough:  # each round leaves a small part of what the last has changed
            break
    return change


@jit
def _added(v: Any, dv: Any, length: Any, running: Any) -> Any:
    """Add dv to v of the problems that run; the largest change in parts of the largest entry."""
    most, size = splat(0.0, v), splat(0.0, v)
    for i in range(length):
        change = load(dv, i * LANES)
        new = load(v, i * LANES) + change
        store(v, i * LANES, where_less(0.0, running, new, load(v, i * LANES)))
        most, size = larger(fabs(change), most), larger(size, fabs(new))
    return most / larger(size, splat(np.finfo(v.dtype).tiny, v))


@jit
def _rows(K: Any, sizes: Any, active: Any, reach: Any, pull: Any) -> None:
    """The largest entry of every row of C, and the diagonal of C^T C over the active rows."""
    n4, N = sizes[2:]
    clear(reach, (N - n4) * LANES)
    for i in range(n4):
        total = splat(0.0, pull)
        for r in range(N - n4):
            c = fabs(load(K, (i * N + n4 + r) * LANES))
            store(reach, r * LANES, larger(load(reach, r * LANES), c))
            total = total + load(active, r * LANES) * c * c
        store(pull, i * LANES, total)


@jit
def _spread(v: Any, first: Any, end: Any, out: Any) -> None:
    """out (B,k) of the problems at hand from the lanes of v."""
    for b in range(first, min(first + LANES, end)):
        for i in range(out.shape[1]):
            out[b, i] = v[i * LANES + b - first]


@jit
def _begin(K: Any, sizes: Any, m: Any, known: Any, out: Any) -> None:
    """g = d + C Q^-1 p, with room for L^-1 p; ones for all rows, and as active those of equations."""
    rows, n4, N = sizes[1:]
    p, d = known
    u, g, ones, active = out
    for i in range(n4):
        store(u, i * LANES, load(p, i * LANES))
    forward(K, N, n4, u)
    for i in range(N - n4):
        total = load(d, i * LANES)
        for k in range(n4):
            total = total + load(K, ((n4 + i) * N + k) * LANES) * load(u, k * LANES)
        store(g, i * LANES, total)
        store(ones, i * LANES, 1.0 if i < rows else 0.0)
        store(active, i * LANES, 1.0 if m <= i < rows else 0.0)


@jit
def _tell(K: Any, sizes: Any, at: Any, room: Any, part: Any, terms: Any) -> None:
    """Write the terms at x, w of the problems at hand."""
    first, end = part
    diagonal, x, w, active = at
    Qx, Ctw, Cx = room
    _terms(K, diagonal, sizes, False, (x, w), room)
    _spread(Qx, first, end, terms[0]), _spread(Ctw, first, end, terms[2]), _spread(Cx, first, end, terms[4])
    _terms(K, diagonal, sizes, True, (x, w), room)
    _spread(Qx, first, end, terms[1]), _spread(Ctw, first, end, terms[3]), _spread(Cx, first, end, terms[5])
    _rows(K, sizes, active, Cx, Qx)
    _spread(Cx, first, end, terms[6]), _spread(Qx, first, end, terms[7])


_REAL = ["float64[::1]", "float64[:,::1]", "float64[:,:,::1]"]
_DATA = ", ".join([_REAL[2], _REAL[2], *[_REAL[1]] * 4, _REAL[0], _REAL[0]])


@entry(
    f"void(Tuple(({_DATA})), int64, UniTuple(int64, 3), UniTuple(int64, 2), "
    f"UniTuple({_REAL[1]}, 3), UniTuple({_REAL[1]}, 8), UniTuple({_REAL[1]}, 2))"
)
def solve(data: Any, m: Any, limits: Any, part: Any, out: Any, terms: Any, report: Any) -> None:
    """Find x (B,n), w (B,M) and the active rows (B,M), of M rows of which all but the first m are equations: `out`.

    data: Q (B|1,n,n), C (B|1,M,n), p (B,n), d (B,M), units of x (B,n) and of the rows (B,M), kappa (B,) and the
    proximal term of w (B,). limits: interior-point steps, active-set steps, rounds of refinement; no active-set steps:
    the active rows are given, and there are no terms. part: first and last problem. terms: Q x, |Q| |x|, C^T w,
    |C|^T |w| (B,n), C x, |C| |x| and the largest of every row of |C| (B,M), and the diagonal of C^T C over the active
    rows (B,n). report: interior-point steps, and how much the last round of refinement has changed (B,1).
    """
    n, rows, like = data[0].shape[2], data[1].shape[1], data[2]
    n4, M4 = (n + 3) // 4 * 4, (rows + 3) // 4 * 4
    N = n4 + M4
    sizes = n, rows, n4, N
    K, F, T = np.empty(N * N * LANES, like.dtype), np.empty(M4 * M4 * LANES, like.dtype), np.empty(128, like.dtype)
    of_x, of_w = np.empty((5, n4 * LANES), like.dtype), np.empty((11, M4 * LANES), like.dtype)
    diagonal, p, x, Qx, Ctw = of_x[0], of_x[1], of_x[2], of_x[3], of_x[4]
    d, g, w, active, ones, more, Cx = of_w[0], of_w[1], of_w[2], of_w[3], of_w[4], of_w[5], of_w[6]
    delta, counted = np.empty(LANES, like.dtype), np.zeros(LANES, like.dtype)
    search, end = limits[1] > 0, part[1]
    for first in range(part[0], end, LANES):
        _gather(data, first, end, sizes, K, (diagonal, p, d, delta))
        factorise(K, N, N, n4, T)
        clear(x, n4 * LANES), clear(w, M4 * LANES), clear(active, M4 * LANES)
        if search:
            _begin(K, sizes, m, (p, d), (Qx, g, ones, active))
            room = F, T, of_w[7], of_w[8], Cx, more, of_w[9], of_w[10]
            store(counted, 0, interior_point(K, sizes, m, limits[0], (d, g, delta, ones, w), room))
        for b in range(first, min(first + LANES, end)):
            report[0][b, 0] = counted[b - first]
            for i in range(0 if search else rows):
                active[i * LANES + b - first] = out[2][b, i]
        for i in range(M4):
            store(more, i * LANES, load(delta, 0))
        if search:
            active_set(K, sizes, m, limits[1], (g, active, more, w), (F, T, Cx))
        else:
            factor_of_multipliers(K, sizes, active, more, F, T)
        store(counted, 0, _refine(K, sizes, limits[2], (diagonal, p, d, active, x, w), (F, Qx, Ctw, Cx)))
        if search:
            for i in range(m):
                store(w, i * LANES, larger(load(w, i * LANES), splat(0.0, w)))  # below is rounding, or no optimum
            _tell(K, sizes, (diagonal, x, w, active), (Qx, Ctw, Cx), (first, end), terms)
        _spread(x, first, end, out[0]), _spread(w, first, end, out[1]), _spread(active, first, end, out[2])
        _spread(counted, first, end, report[1])
