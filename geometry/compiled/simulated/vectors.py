"""The names of `geometry.compiled.vectors` for one lane, as plain Python on NumPy arrays whose indices are checked."""

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "LANES",
    "TEAM",
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

LANES, TEAM = 1, 1


def jit(function: Any) -> Any:
    return function


def entry(*signatures: str) -> Callable[[Any], Any]:
    return jit


def _place(array: Any, index: Any) -> Any:
    """The array as one of one dimension, after a check of the index."""
    if not 0 <= index < array.size:
        raise IndexError(f"element {index} of an array of {array.size}")
    return array if array.ndim == 1 else array.reshape(-1)


def load(array: Any, index: Any) -> Any:
    value = _place(array, index)[index]
    if array.dtype.kind == "f" and value.tobytes() == _UNWRITTEN[array.dtype.itemsize]:
        raise ValueError(f"element {index} was read before it was written")
    return value


def store(array: Any, index: Any, value: Any) -> None:
    _place(array, index)[index] = value


get, put = load, store

# A NaN that no arithmetic makes.
_UNWRITTEN = {8: b"\x2a\x2a\x2a\x2a\x2a\x2a\xfa\x7f", 4: b"\x2a\x2a\xea\x7f"}


def unwritten(length: int, dtype: Any) -> Any:
    """An array that nothing was written to, which `load` will notice."""
    dtype = np.dtype(dtype)
    if dtype.kind != "f":
        return np.full(length, np.iinfo(dtype).min, dtype)
    return np.frombuffer(_UNWRITTEN[dtype.itemsize] * length, dtype).copy()


def scratch(length: int, integer: bool = False) -> Callable[[Any], Any]:
    return lambda like: unwritten(length, np.int64 if integer else like.dtype)


def member() -> int:
    return 0


def meet() -> None:
    pass


def broadcast(x: Any, who: Any) -> Any:
    return x


def room(part: Any, begin: Any, length: Any, like: Any) -> Any:
    column = part.workspace[begin : begin + length, part.slot]
    assert len(column) == length, "the workspace is too small"
    return column


def clear(array: Any, length: Any) -> None:
    array[:length] = 0.0


def resolution(like: Any) -> Any:
    return np.finfo(like.dtype).eps


def splat(value: Any, like: Any) -> Any:
    return like.dtype.type(value)


def where_less(a: Any, b: Any, x: Any, y: Any) -> Any:
    kind = next(type(v) for v in (a, b, x, y) if isinstance(v, np.floating))
    return kind(x if a < b else y)


sqrt, fabs, log, exp, sin, cos = np.sqrt, np.abs, np.log, np.exp, np.sin, np.cos


def total(x: Any) -> Any:
    return x


lowest = highest = total
