"""Kernels of a CUDA grid: every thread calls an `entry` for its own problem."""

from typing import Any

from numba import cuda

from .pose import adjoint as of_adjoint
from .pose import solve as of_solve
from .pose import start as of_start

_solve, _adjoint, _start = of_solve.solve, of_adjoint.adjoint, of_start.start


@cuda.jit
def solve(data: Any, robust: Any, rule: Any, limits: Any, init: Any, workspace: Any, out: Any) -> None:
    """`solve` of `geometry.compiled.pose`, a problem a thread."""
    b = cuda.grid(1)
    if b < data[0].shape[0]:
        _solve(data, robust, rule, limits, init, (b, b + 1, b, False, workspace), out)


@cuda.jit
def adjoint(data: Any, robust: Any, least: Any, exact: Any, at: Any, workspace: Any, gradients: Any) -> None:
    """`adjoint` of `geometry.compiled.pose`, a problem a thread."""
    b = cuda.grid(1)
    if b < data[0].shape[0]:
        _adjoint(data, robust, least, exact, at, (b, b + 1, b, False, workspace), gradients)


@cuda.jit
def start(data: Any, robust: Any, workspace: Any, out: Any) -> None:
    """`start` of `geometry.compiled.pose`, a problem a thread."""
    b = cuda.grid(1)
    if b < data[0].shape[0]:
        _start(data, robust, (b, b + 1, b, True, workspace), out)


def all_kernels():
    from numba import float64, float32, int8, int32, int64, uint8, boolean, types

    for t, tn in ((float64, "f64"), (float32, "f32")):
        data = types.Tuple((t[:, :, ::1], t[:, :, ::1], t[:, :, ::1], t[:, ::1], t[:, :, ::1], uint8[:, ::1]))
        robust = types.Tuple((int64, float64, float64))
        ws = t[:, ::1]
        yield (
            f"solve_{tn}",
            solve.py_func,
            (
                data,
                robust,
                types.UniTuple(float64, 2),
                types.UniTuple(int64, 2),
                t[:, :, ::1],
                ws,
                types.Tuple((t[:, :, ::1], t[::1], int8[::1], int32[::1])),
            ),
        )
        yield (
            f"adjoint_{tn}",
            adjoint.py_func,
            (
                data,
                robust,
                float64,
                boolean,
                types.Tuple((t[:, :, ::1], int8[::1], t[:, :, ::1])),
                ws,
                types.Tuple((t[:, :, ::1], t[:, :, ::1], t[:, :, ::1], t[:, ::1], t[:, :, ::1])),
            ),
        )
        yield f"start_{tn}", start.py_func, (data, robust, ws, types.UniTuple(t[:, :, ::1], 2))
