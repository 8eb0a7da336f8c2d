"""A warp of a CUDA device as kernels see it: a team of 32 threads, of one lane each, that add up by shuffles.

All of a team do the same but for their points, and hold the same sums bit for bit, so that they stay together.
"""

from typing import Any

from llvmlite import ir
from numba import cuda

from geometry.compiled.cuda.target import (
    FASTMATH,
    LANES,
    cgutils,
    elementwise,
    entry,
    intrinsic,
    jit,
    lower_builtin,
    models,
    register_model,
    rooms,
    type_callable,
    types,
)

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
    "type_callable",
    "types",
]

TEAM = 32


@jit
def member() -> Any:
    """Which of the team this thread is."""
    return cuda.laneid


@jit
def meet() -> None:
    """Wait for the team: what any of it has written before to arrays that they share, all can read from here on."""
    cuda.syncwarp()


@jit
def broadcast(x: Any, who: Any) -> Any:
    """What one of the team, by its number, has for x; all of it ask at once."""
    return cuda.shfl_sync(0xFFFFFFFF, x, who)


def _own_column(builder: Any, slot: Any, spread: Any) -> Any:
    """Each of a team has a column of its own; where the problem is not spread, it has one, which all of them see."""
    kind = ir.FunctionType(ir.IntType(32), [])
    lane = builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.nvvm.read.ptx.sreg.laneid"), [])
    own = builder.add(builder.mul(slot, ir.Constant(slot.type, TEAM)), builder.zext(lane, slot.type))
    return builder.select(spread, own, slot)


room = rooms(_own_column)


def _partner(builder: Any, x: Any, distance: int) -> Any:
    """The number of the thread whose place in the team differs in one bit."""
    half, bits = ir.IntType(32), 64 if x.type == ir.DoubleType() else 32
    result = ir.LiteralStructType([half, ir.IntType(1)])
    shuffle = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [half] * 5), "llvm.nvvm.shfl.sync.i32"
    )
    everyone, by_xor, clamp = (ir.Constant(half, n) for n in (-1, 3, TEAM - 1))

    def exchanged(word: Any) -> Any:
        sent = builder.call(shuffle, [everyone, by_xor, word, ir.Constant(half, distance), clamp])
        return builder.extract_value(sent, 0)

    whole = ir.IntType(bits)
    word = builder.bitcast(x, whole)
    if bits == 32:
        return builder.bitcast(exchanged(word), x.type)
    shift = ir.Constant(whole, 32)
    low = builder.zext(exchanged(builder.trunc(word, half)), whole)
    high = builder.zext(exchanged(builder.trunc(builder.lshr(word, shift), half)), whole)
    return builder.bitcast(builder.or_(low, builder.shl(high, shift)), x.type)


def reduction(builder: Any, name: str, x: Any) -> Any:
    """fadd or fmin of what the team holds, the same in all of it; the largest is of what all hold alike."""
    if name == "fmax":
        return x
    distance = TEAM // 2
    while distance:
        other = _partner(builder, x, distance)
        x = builder.fadd(x, other) if name == "fadd" else builder.select(builder.fcmp_ordered("<", other, x), other, x)
        distance //= 2
    return x
