"""A CUDA device as kernels see it: one lane, which is a thread, compiled by numba-cuda.

The names of `geometry.compiled.target`. An `entry` is a function of the device: `grid` makes kernels of them.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cuda
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic, lower_builtin, models, register_model, type_callable

__all__ = [
    "FASTMATH",
    "LANES",
    "TEAM",
    "broadcast",
    "cgutils",
    "elementwise",
    "entry",
    "intrinsic",
    "jit",
    "lower_builtin",
    "meet",
    "member",
    "models",
    "reduction",
    "register_model",
    "room",
    "rooms",
    "type_callable",
    "types",
]

LANES, TEAM = 1, 1
FASTMATH = ("contract", "arcp", "nsz", "reassoc")  # as on the CPU

jit: Any = cuda.jit(device=True)
"""A function that kernels call."""


def entry(*signatures: str) -> Callable[[Any], Any]:
    """What Python calls on the CPU; here a kernel calls it for its problem, and these signatures do not matter."""
    return jit


@jit
def member() -> Any:
    """Which of the team this thread is."""
    return 0


@jit
def meet() -> None:
    """Wait for the team: what any of it has written before to arrays that they share, all can read from here on."""


@jit
def broadcast(x: Any, who: Any) -> Any:
    """What one of the team, by its number, has for x; all of it ask at once."""
    return x


def rooms(column_of: Callable[[Any, Any, Any], Any]) -> Any:
    """room(part, begin, length, like): what lies in a thread's column of the workspace (length, columns).

    From place `begin` on; column_of(builder, slot, spread) is the number of the column. What neighbours read lies side
    by side.
    """

    @intrinsic
    def room(typing_context: Any, part: Any, begin: Any, length: Any, like: Any) -> Any:
        workspace, column = part.types[4], types.Array(like.dtype, 1, "A")

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            whole = context.make_array(workspace)(context, builder, builder.extract_value(args[0], 4))
            slot = context.cast(builder, builder.extract_value(args[0], 2), part.types[2], types.intp)
            spread = builder.extract_value(args[0], 3)
            begin, length = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2))
            columns = builder.extract_value(whole.shape, 1)
            place = builder.add(builder.mul(begin, columns), column_of(builder, slot, spread))
            made = context.make_array(column)(context, builder)
            context.populate_array(
                made, data=builder.gep(whole.data, [place]), shape=[length],
                strides=[builder.mul(columns, whole.itemsize)], itemsize=whole.itemsize, meminfo=None,
            )  # fmt: skip
            return made._getvalue()

        return column(part, begin, length, like), lower

    return room


room = rooms(lambda builder, slot, spread: slot)


def elementwise(builder: Any, name: str, x: Any) -> Any:
    """sqrt, fabs, log, exp, sin or cos of a number."""
    full_name = f"__nv_{name}{'f' if x.type == ir.FloatType() else ''}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), full_name)
    return builder.call(function, [x])


def reduction(builder: Any, name: str, x: Any) -> Any:
    """The sum, the least or the largest of one number."""
    return x
