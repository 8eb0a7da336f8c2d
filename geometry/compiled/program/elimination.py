"""Symmetric systems in lanes: partial Cholesky factors, by tiles of four rows and columns, and solutions by them.

A matrix of N rows, N a multiple of four, one problem a lane, is one array: entry (i, j) stands at (i ld + j) LANES. The
factor takes the place of the lower triangle, with reciprocals on its diagonal; what is above it is left as it is.
"""

from typing import Any

from ..vectors import LANES, jit, load, splat, sqrt, store

__all__ = ["back", "factorise", "forward"]

_TILE = 4


@jit
def _products(A: Any, ld: Any, I: Any, J: Any, last: Any, T: Any) -> None:
    """T[r, c] = sum over k < last of A[I + r, k] A[J + c, k]: sixteen sums in registers, eight loads a step."""
    a, b, step = I * ld * LANES, J * ld * LANES, ld * LANES
    zero = splat(0.0, A)
    s00, s01, s02, s03 = zero, zero, zero, zero
    s10, s11, s12, s13 = zero, zero, zero, zero
    s20, s21, s22, s23 = zero, zero, zero, zero
    s30, s31, s32, s33 = zero, zero, zero, zero
    for _ in range(last):
        b0, b1, b2, b3 = load(A, b), load(A, b + step), load(A, b + 2 * step), load(A, b + 3 * step)
        x = load(A, a)
        s00, s01, s02, s03 = s00 + x * b0, s01 + x * b1, s02 + x * b2, s03 + x * b3
        x = load(A, a + step)
        s10, s11, s12, s13 = s10 + x * b0, s11 + x * b1, s12 + x * b2, s13 + x * b3
        x = load(A, a + 2 * step)
        s20, s21, s22, s23 = s20 + x * b0, s21 + x * b1, s22 + x * b2, s23 + x * b3
        x = load(A, a + 3 * step)
        s30, s31, s32, s33 = s30 + x * b0, s31 + x * b1, s32 + x * b2, s33 + x * b3
        a, b = a + LANES, b + LANES
    store(T, 0 * LANES, s00), store(T, 1 * LANES, s01), store(T, 2 * LANES, s02), store(T, 3 * LANES, s03)
    store(T, 4 * LANES, s10), store(T, 5 * LANES, s11), store(T, 6 * LANES, s12), store(T, 7 * LANES, s13)
    store(T, 8 * LANES, s20), store(T, 9 * LANES, s21), store(T, 10 * LANES, s22), store(T, 11 * LANES, s23)
    store(T, 12 * LANES, s30), store(T, 13 * LANES, s31), store(T, 14 * LANES, s32), store(T, 15 * LANES, s33)


@jit
def factorise(A: Any, ld: Any, rows: Any, eliminated: Any, T: Any) -> None:
    """The Cholesky factor of the first `eliminated` of A's rows and, in those below, of A what is left without them.

    T: room for a tile. Where A is not positive definite the factor has entries that are not finite.
    """
    for J in range(0, rows, _TILE):
        last = min(J, eliminated)
        for I in range(J, rows, _TILE):
            _products(A, ld, I, J, last, T)
            for r in range(_TILE):
                row = (I + r) * ld
                for c in range(r + 1 if I == J else _TILE):
                    column = (J + c) * ld
                    at = (row + J + c) * LANES
                    v = load(A, at) - load(T, (r * _TILE + c) * LANES)
                    if eliminated > J:
                        for k in range(J, J + c):
                            v = v - load(A, (row + k) * LANES) * load(A, (column + k) * LANES)
                        v = 1.0 / sqrt(v) if row == column else v * load(A, (column + J + c) * LANES)
                    store(A, at, v)


@jit
def forward(A: Any, ld: Any, rows: Any, v: Any) -> None:
    """v = L^-1 v with the factor L of so many rows."""
    for i in range(rows):
        row = i * ld * LANES
        s0, s1 = load(v, i * LANES), splat(0.0, v)
        s2, s3 = s1, s1
        whole = i // _TILE * _TILE
        for k in range(0, whole, _TILE):
            at, to = row + k * LANES, k * LANES
            s0 = s0 - load(A, at) * load(v, to)
            s1 = s1 - load(A, at + LANES) * load(v, to + LANES)
            s2 = s2 - load(A, at + 2 * LANES) * load(v, to + 2 * LANES)
            s3 = s3 - load(A, at + 3 * LANES) * load(v, to + 3 * LANES)
        for k in range(whole, i):
            s0 = s0 - load(A, row + k * LANES) * load(v, k * LANES)
        store(v, i * LANES, ((s0 + s1) + (s2 + s3)) * load(A, row + i * LANES))


@jit
def back(A: Any, ld: Any, rows: Any, v: Any) -> None:
    """v = L^-T v with the factor L of so many rows."""
    for i in range(rows - 1, -1, -1):
        row = i * ld * LANES
        x = load(v, i * LANES) * load(A, row + i * LANES)
        store(v, i * LANES, x)
        for k in range(i):
            store(v, k * LANES, load(v, k * LANES) - load(A, row + k * LANES) * x)
