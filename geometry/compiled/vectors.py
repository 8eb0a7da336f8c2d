"""Eight numbers at a time for numba kernels: `Vector`, one problem a lane.

Numba's loop vectoriser gives up on bodies with dozens of accumulators. These vectors are values that LLVM keeps in
registers (AVX-512, two of AVX2, four of NEON), so that a kernel reads like the formula for one problem and works on
eight. Vectors mix with scalars, which are broadcast; there is no mask type: `where_less` selects lane by lane.
Changing this file does not refresh numba's caches of its users: touch them as well. Every kernel imports this file, and
with it a last place for what is compiled, should the package and the home both be read-only.
"""

import atexit
import operator
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numba.extending
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache, UserProvidedCacheLocator
from numba.extending import lower_builtin, models, register_model, type_callable

__all__ = [
    "LANES",
    "Vector",
    "clear",
    "entry",
    "exp",
    "fabs",
    "get",
    "highest",
    "jit",
    "load",
    "log",
    "lowest",
    "put",
    "resolution",
    "room",
    "scratch",
    "splat",
    "sqrt",
    "store",
    "total",
    "where_less",
]

intrinsic: Any = numba.extending.intrinsic  # what it makes is called with other arguments than what it decorates

LANES = 8
# Sums may be regrouped and fused; NaN and infinity keep their meaning, because they mark infeasible problems.
FASTMATH = ("contract", "arcp", "nsz", "reassoc")
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": set(FASTMATH)}

jit: Any = numba.njit(**_OPTIONS)
"""A function that kernels call."""


def entry(*signatures: str) -> Any:
    """A function that Python calls, compiled for these signatures when its module is imported."""
    return numba.njit(list(signatures), cache=True, **_OPTIONS)


class _LastPlace(UserProvidedCacheLocator):
    """Where kernels of this package are kept if they can be kept nowhere else: for this process alone."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file, self._lineno = py_file, py_func.__code__.co_firstlineno
        self._cache_path = str(Path(_temporary_folder(), self.get_suitable_cache_subpath(py_file)))

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls(py_func, py_file) if Path(__file__).parent in Path(py_file).parents else None


@lru_cache(maxsize=1)
def _temporary_folder() -> str:
    warnings.warn(
        f"neither {Path(__file__).parent} nor a cache folder of the user can be written: what is compiled is lost "
        "when this process ends, and takes minutes. Set NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )
    folder = tempfile.mkdtemp(prefix="geometry-")  # nobody else's: numba runs what it finds in a cache
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


FunctionCache._impl_class._locator_classes.append(_LastPlace)  # numba asks them in turn, and fails if none can


class Vector(types.Type):
    """Type of LANES floating-point numbers."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Vector({dtype}, {LANES})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, vector: Vector) -> None:
        element = ir.DoubleType() if vector.dtype == types.float64 else ir.FloatType()
        super().__init__(dmm, vector, ir.VectorType(element, LANES))


def _as_vector(context: Any, builder: Any, value: Any, typ: types.Type, vector: Vector) -> Any:
    """Broadcast a scalar; a vector stays."""
    if isinstance(typ, Vector):
        return value
    scalar = context.cast(builder, value, typ, vector.dtype)
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
    return builder.fneg(args[0], flags=FASTMATH)


def _pointer(context: Any, builder: Any, sig: Any, args: Any, vector: Vector) -> Any:
    """Address of LANES numbers from element args[1] of the contiguous array args[0]."""
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    index = context.cast(builder, args[1], sig.args[1], types.intp)
    return builder.bitcast(builder.gep(data, [index]), context.get_value_type(vector).as_pointer())


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """array[index : index + LANES] of a contiguous 1-D array; nothing is checked."""
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
    """Element number `index` of a contiguous array of any shape; nothing is checked."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.load(builder.gep(data, [context.cast(builder, args[1], index, types.intp)]))

    return array.dtype(array, index), lower


@intrinsic
def put(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Set element number `index` of a contiguous array of any shape; nothing is checked."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        place = builder.gep(data, [context.cast(builder, args[1], index, types.intp)])
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


def _llvm(name: str, start: float | None = None, reduces: bool = False) -> Any:
    """The LLVM intrinsic of that name on one vector; a reduction, if so said, with a start value."""

    @intrinsic
    def call(typing_context: Any, a: Vector) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            vector = context.get_value_type(a)
            result = vector.element if reduces else vector
            first = [] if start is None else [ir.Constant(vector.element, start)]
            kind = ir.FunctionType(result, [*(c.type for c in first), vector])
            full_name = f"llvm.{name}.v{LANES}f{a.dtype.bitwidth}"
            function = cgutils.get_or_insert_function(builder.module, kind, full_name)
            return builder.call(function, [*first, args[0]], fastmath=("reassoc",))

        return (a.dtype if reduces else a)(a), lower

    return call


sqrt, fabs = _llvm("sqrt"), _llvm("fabs")
log, exp = _llvm("log"), _llvm("exp")  # lane by lane in the C library: tens of nanoseconds
total = _llvm("vector.reduce.fadd", start=0.0, reduces=True)
lowest = _llvm("vector.reduce.fmin", reduces=True)
highest = _llvm("vector.reduce.fmax", reduces=True)


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
def room(part: Any, begin: Any, length: Any, like: Any) -> Any:
    """An array of so many numbers for the problems at hand, from place `begin` on in the workspace, if there is one."""
    return np.empty(length, like.dtype)


@jit
def clear(array: Any, length: Any) -> None:
    """array[:length] = 0, in whole vectors."""
    for k in range(0, length, LANES):
        store(array, k, 0.0)


@jit
def resolution(like: Any) -> Any:
    """The relative spacing of numbers of the dtype of `like`."""
    return np.finfo(like.dtype).eps
