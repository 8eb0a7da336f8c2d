"""The loops of `geometry.bundle_adjustment.products`: products with the blocks W of a bundle, and the reduced matrix.

index is the tuple (view (M,), begin (N+1,)): observations are sorted by point, those of point j are begin[j] to
begin[j + 1] - 1. Work is on points first to last - 1; what several threads would add to is an array for each.
"""

from typing import Any

import numpy as np

from ..pose.equations import L
from ..vectors import entry, get, jit, load, store

__all__ = [
    "couple",
    "couple_back",
    "dot_row",
    "gather",
    "own_blocks",
    "project_blocks",
    "reduce_pairs",
    "row_times",
    "schur_product",
    "times",
]

_POINTS = "UniTuple(int64[::1], 2), int64, int64"  # index, first, last


@jit
def dot_row(Wi: Any, a: Any, X: Any) -> Any:
    """Row a of a block W (p,3) times X."""
    x, y, z = X
    return Wi[a, 0] * x + Wi[a, 1] * y + Wi[a, 2] * z


@jit
def row_times(Wi: Any, a: Any, B: Any) -> Any:
    """Row a of a block W (p,3) times B (3,3)."""
    x = Wi[a, 0] * B[0, 0] + Wi[a, 1] * B[1, 0] + Wi[a, 2] * B[2, 0]
    y = Wi[a, 0] * B[0, 1] + Wi[a, 1] * B[1, 1] + Wi[a, 2] * B[2, 1]
    z = Wi[a, 0] * B[0, 2] + Wi[a, 1] * B[1, 2] + Wi[a, 2] * B[2, 2]
    return x, y, z


@jit
def times(B: Any, X: Any) -> Any:
    """B (3,3) times X."""
    x, y, z = X
    return (
        B[0, 0] * x + B[0, 1] * y + B[0, 2] * z,
        B[1, 0] * x + B[1, 1] * y + B[1, 2] * z,
        B[2, 0] * x + B[2, 1] * y + B[2, 2] * z,
    )


@jit
def gather(W: Any, views: Any, view: Any, begin: Any, end: Any) -> Any:
    """W^T views of observations begin to end - 1, which are of one point."""
    x = y = z = 0.0
    for i in range(begin, end):
        Wi, c = W[i], views[view[i]]
        for a in range(W.shape[1]):
            x += Wi[a, 0] * c[a]
            y += Wi[a, 1] * c[a]
            z += Wi[a, 2] * c[a]
    return x, y, z


@jit
def _spread(W: Any, X: Any, view: Any, begin: Any, end: Any, out: Any) -> None:
    """Add W X of observations begin to end - 1 to out (V,p)."""
    for i in range(begin, end):
        Wi, to = W[i], out[view[i]]
        for a in range(W.shape[1]):
            to[a] += dot_row(Wi, a, X)


@entry(f"void(float64[:,:,::1], float64[:,::1], {_POINTS}, float64[:,::1])")
def couple(W: Any, points: Any, index: Any, first: Any, last: Any, out: Any) -> None:
    """Add W points to out (V,p); points (N,3)."""
    view, begin = index
    for j in range(first, last):
        x, y, z = points[j, 0], points[j, 1], points[j, 2]
        _spread(W, (x, y, z), view, begin[j], begin[j + 1], out)


@entry(f"void(float64[:,:,::1], float64[:,::1], {_POINTS}, float64[:,::1])")
def couple_back(W: Any, views: Any, index: Any, first: Any, last: Any, out: Any) -> None:
    """out (N,3) = W^T views, of the points at hand; views (V,p)."""
    view, begin = index
    for j in range(first, last):
        x, y, z = gather(W, views, view, begin[j], begin[j + 1])
        out[j, 0], out[j, 1], out[j, 2] = x, y, z


@entry(f"void(float64[:,:,::1], float64[:,:,::1], float64[:,::1], {_POINTS}, float64[:,::1])")
def schur_product(W: Any, V_inverse: Any, views: Any, index: Any, first: Any, last: Any, out: Any) -> None:
    """Add W V^-1 W^T views to out (V,p), reading W from memory once; views (V,p)."""
    view, begin = index
    for j in range(first, last):
        X = gather(W, views, view, begin[j], begin[j + 1])
        X = times(V_inverse[j], X)
        _spread(W, X, view, begin[j], begin[j + 1], out)


@entry(f"void(float64[:,:,::1], float64[:,:,::1], {_POINTS}, float64[:,:,::1])")
def project_blocks(W: Any, motions: Any, index: Any, first: Any, last: Any, out: Any) -> None:
    """out (M,c,3) = motions^T W, of the points at hand; motions (V,p,c)."""
    view, begin = index
    p, c = motions.shape[1:]
    for i in range(begin[first], begin[last]):
        Wi, T, to = W[i], motions[view[i]], out[i]
        for k in range(3):
            for b in range(c):
                to[b, k] = 0.0
        for a in range(p):
            x, y, z = Wi[a, 0], Wi[a, 1], Wi[a, 2]
            for b in range(c):
                to[b, 0] += T[a, b] * x
                to[b, 1] += T[a, b] * y
                to[b, 2] += T[a, b] * z


@entry(f"void(float64[:,:,::1], float64[:,:,::1], {_POINTS}, float64[:,:,::1])")
def own_blocks(W: Any, V_inverse: Any, index: Any, first: Any, last: Any, out: Any) -> None:
    """Add W V^-1 W^T of each observation to the lower triangle of its view's block in out (V,p,p)."""
    view, begin = index
    p = W.shape[1]
    for j in range(first, last):
        B = V_inverse[j]
        for i in range(begin[j], begin[j + 1]):
            Wi, to = W[i], out[view[i]]
            for a in range(p):
                X = row_times(Wi, a, B)
                for b in range(a + 1):
                    to[a, b] += dot_row(Wi, b, X)


@entry(
    f"void(float64[:,:,::1], float64[:,:,::1], Tuple((int64[:,::1], int64[::1])), {_POINTS}, float64[:,::1])"
)  # fmt: skip
def reduce_pairs(W: Any, V_inverse: Any, runs: Any, index: Any, first: Any, last: Any, T: Any) -> None:
    """Add -W V^-1 W^T to T, in such a way that T + T^T is the sum: every pair of observations of a point once.

    runs: starts (V,r), the rows where runs of a view's columns begin, which lie side by side in T, and bounds (r+1,),
    where the runs begin among the columns. T: square, with room behind the last column, where zeros are added.
    """
    starts, bounds = runs
    view, begin = index
    stride, most, p = T.shape[1], 0, W.shape[1]
    for j in range(first, last):
        most = max(most, begin[j + 1] - begin[j])
    # runs padded with zeros to whole vectors: where each of them begins, and which one a column is of
    padded, run = np.zeros(len(bounds), np.int64), np.empty(p, np.int64)
    for r in range(len(bounds) - 1):
        padded[r + 1] = padded[r] + (bounds[r + 1] - bounds[r] + L - 1) // L * L
        run[bounds[r] : bounds[r + 1]] = r
    wide = padded[-1]
    rows, left, into = np.zeros((most, 3 * wide), W.dtype), np.empty(3 * p, W.dtype), np.empty(p, np.int64)
    for j in range(first, last):
        count = begin[j + 1] - begin[j]
        B = V_inverse[j]
        if B[0, 0] == 0.0 and B[1, 1] == 0.0 and B[2, 2] == 0.0:
            continue
        for m in range(count):
            Wi, to = W[begin[j] + m], rows[m]
            for k in range(3):
                for a in range(p):
                    to[k * wide + padded[run[a]] + a - bounds[run[a]]] = Wi[a, k]
        for m in range(count):
            Wi, v = W[begin[j] + m], view[begin[j] + m]
            for a in range(p):
                into[a] = (starts[v, run[a]] + a - bounds[run[a]]) * stride
                for k in range(3):
                    left[3 * a + k] = -(Wi[a, 0] * B[0, k] + Wi[a, 1] * B[1, k] + Wi[a, 2] * B[2, k])
            for o in range(m + 1):
                other, c = rows[o], view[begin[j] + o]
                half = 0.5 if o == m else 1.0
                for r in range(len(bounds) - 1):
                    place = starts[c, r] - padded[r]
                    for k in range(padded[r], padded[r + 1], L):
                        x, y, z = half * load(other, k), half * load(other, wide + k), half * load(other, 2 * wide + k)
                        for a in range(p):
                            to_row = into[a] + place + k
                            more = get(left, 3 * a) * x + get(left, 3 * a + 1) * y + get(left, 3 * a + 2) * z
                            store(T, to_row, load(T, to_row) + more)
