"""Several numbers at a time for kernels: `Vector`, one problem a lane, as many lanes as the `target` has.

Numba's loop vectoriser gives up on bodies with dozens of accumulators. These vectors are values that LLVM keeps in
registers (AVX-512, two of AVX2, four of NEON; one number of a thread on a device), so that a kernel reads like the
formula for one problem and works on eight. Vectors mix with scalars, which are broadcast to their precision; there is
no mask type: `where_less` selects lane by lane. Changing this file does not refresh numba's caches of its users: touch
them as well.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from .target import (
    FASTMATH,
    LANES,
    TEAM,
    broadcast,
    cgutils,
    elementwise,
    entry,
    intrinsic,
    jit,
    lower_builtin,
    meet,
    member,
    models,
    reduction,
    register_model,
    room,
    type_callable,
    types,
)

__all__ = [
    "LANES",
    "TEAM",
    "Vector",
    "broadcast",
    "clear",
    "cos",
    "entry",
    "exp",
    "fabs",
    "get",
    "highest",
    "jit",
    "load",
    "log",
    "lowest",
    "meet",
    "member",
    "put",
    "resolution",
    "room",
    "scratch",
    "sin",
    "splat",
    "sqrt",
    "store",
    "total",
    "where_less",
]


class Vector(types.Type):
    """Type of LANES floating-point numbers."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Vector({dtype}, {LANES})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, vector: Vector) -> None:
        element = ir.DoubleType() if vector.dtype == types.float64 else ir.FloatType()
        super().__init__(dmm, vector, element if LANES == 1 else ir.VectorType(element, LANES))


def _as_vector(context: Any, builder: Any, value: Any, typ: types.Type, vector: Vector) -> Any:
    """Broadcast a scalar; a vector stays."""
    if isinstance(typ, Vector):
        return value
    scalar = context.cast(builder, value, typ, vector.dtype)
    if LANES == 1:
        return scalar
    empty = ir.Constant(context.get_value_type(vector), ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))


def _define_operator(function: Callable[..., Any], instruction: str) -> None:
    def typer(context: Any) -> Callable[..., Vector | None]:
        def result(a: types.Type, b: types.Type) -> Vector | None:
            for x, y in ((a, b), (b, a)):
                if isinstance(x, Vector) and (x == y or isinstance(y, types.Float | types.Integer)):
                    return x
            return None

        return result

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_as_vector(context, builder, v, t, sig.return_type) for v, t in zip(args, sig.args, strict=True))
        return getattr(builder, instruction)(a, b, flags=FASTMATH)

    type_callable(function)(typer)
    for pair in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *pair)(lower)


for _function, _instruction in {
    operator.add: "fadd",
    operator.iadd: "fadd",
    operator.sub: "fsub",
    operator.isub: "fsub",
    operator.mul: "fmul",
    operator.imul: "fmul",
    operator.truediv: "fdiv",
}.items():
    _define_operator(_function, _instruction)


@type_callable(operator.neg)
def _type_neg(context: Any) -> Callable[[types.Type], Vector | None]:
    return lambda a: a if isinstance(a, Vector) else None


@lower_builtin(operator.neg, Vector)
def _lower_neg(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    vector = sig.args[0]
    zero = _as_vector(context, builder, context.get_constant(vector.dtype, -0.0), vector.dtype, vector)
    return builder.fsub(zero, args[0], flags=FASTMATH)  # the compiler of devices does not know fneg


def _place(context: Any, builder: Any, array: Any, index: Any, sig: Any) -> Any:
    """Address of element number `index` of an array: of any shape if contiguous, else of one dimension."""
    made = context.make_array(sig.args[0])(context, builder, array)
    index = context.cast(builder, index, sig.args[1], types.intp)
    if sig.args[0].layout == "C":
        return builder.gep(made.data, [index])
    stride = builder.sdiv(builder.extract_value(made.strides, 0), made.itemsize)
    return builder.gep(made.data, [builder.mul(index, stride)])


def _pointer(context: Any, builder: Any, sig: Any, args: Any, vector: Vector) -> Any:
    """Address of LANES numbers from element args[1] of the array args[0]."""
    place = _place(context, builder, args[0], args[1], sig)
    return builder.bitcast(place, context.get_value_type(vector).as_pointer())


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """array[index : index + LANES] of a 1-D array, contiguous if LANES > 1; nothing is checked."""
    vector = Vector(array.dtype)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, sig, args, vector), align=array.dtype.bitwidth // 8)

    return vector(array, index), lower


@intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + LANES] = value; nothing is checked."""
    vector = Vector(array.dtype)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = _as_vector(context, builder, args[2], value, vector)
        builder.store(v, _pointer(context, builder, sig, args, vector), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, value), lower


@intrinsic
def get(typing_context: Any, array: Any, index: Any) -> Any:
    """Element number `index` of an array, of any shape if contiguous, else of one dimension; nothing is checked."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_place(context, builder, args[0], args[1], sig))

    return array.dtype(array, index), lower


@intrinsic
def put(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Set element number `index` of a contiguous array of any shape; nothing is checked."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _place(context, builder, args[0], args[1], sig)
        builder.store(context.cast(builder, args[2], value, array.dtype), place)
        return context.get_dummy_value()

    return types.void(array, index, value), lower


@intrinsic
def splat(typing_context: Any, value: Any, like: Any) -> Any:
    """A vector of equal numbers, of the dtype of the array or vector `like`."""
    vector = Vector(like.dtype)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _as_vector(context, builder, args[0], value, vector)

    return vector(value, like), lower


@intrinsic
def where_less(typing_context: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """x in the lanes where a < b, else y (so y where a or b is NaN)."""
    vector = next(t for t in (a, b, x, y) if isinstance(t, Vector))

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b, x, y = (_as_vector(context, builder, v, t, vector) for v, t in zip(args, sig.args, strict=True))
        return builder.select(builder.fcmp_ordered("<", a, b), x, y)

    return vector(a, b, x, y), lower


def _by_lanes(name: str) -> Any:
    """`elementwise` of a vector as a function that kernels call."""

    @intrinsic
    def call(typing_context: Any, a: Any) -> Any:
        return a(a), lambda context, builder, sig, args: elementwise(builder, name, args[0])

    return call


def _over_all(name: str) -> Any:
    """`reduction` of a vector as one; of a number, which has no lanes, over the team alone."""

    @intrinsic
    def call(typing_context: Any, a: Any) -> Any:
        vector = isinstance(a, Vector)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return reduction(builder, name, args[0]) if vector or TEAM > 1 else args[0]

        return (a.dtype if vector else a)(a), lower

    return call


sqrt, fabs, log, exp, sin, cos = map(_by_lanes, ("sqrt", "fabs", "log", "exp", "sin", "cos"))
total, lowest, highest = map(_over_all, ("fadd", "fmin", "fmax"))


def scratch(length: int, integer: bool = False) -> Any:
    """make(like): an array of so many numbers of the dtype of `like`, or integers, on the stack of who calls make.

    Nothing is written to it. It must not leave that function, which is why it is asked for by name: a heap takes as
    long as a problem of few points, and on a device there is none.
    """

    @intrinsic
    def make(typing_context: Any, like: Any) -> Any:
        array = types.Array(types.int64 if integer else like.dtype, 1, "C")

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            element = context.get_data_type(array.dtype)
            data = cgutils.alloca_once(builder, ir.ArrayType(element, length))
            data.align = 64  # a vector of eight float64 does not straddle two lines of the cache
            made = context.make_array(array)(context, builder)
            size = context.get_abi_sizeof(element)
            shape, strides = ([context.get_constant(types.intp, n)] for n in (length, size))
            context.populate_array(
                made, data=builder.bitcast(data, element.as_pointer()), shape=shape, strides=strides,
                itemsize=context.get_constant(types.intp, size), meminfo=None,
            )  # fmt: skip
            return made._getvalue()

        return array(like), lower

    return make


@jit
def clear(array: Any, length: Any) -> None:
    """array[:length] = 0, in whole vectors."""
    for k in range(0, length, LANES):
        store(array, k, 0.0)


@jit
def resolution(like: Any) -> Any:
    """The relative spacing of numbers of the dtype of `like`."""
    return np.finfo(like.dtype).eps
