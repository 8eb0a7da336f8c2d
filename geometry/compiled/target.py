"""The CPU as kernels see it: eight lanes of SIMD, numba's own compiler, and a place for what is compiled.

`geometry.compiled.cuda.target` has the same names for a device. Every kernel imports this file, and with it a last
place for machine code, should the package and the home both be read-only.
"""

import atexit
import shutil
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache, UserProvidedCacheLocator
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

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

LANES = 8
TEAM = 1
"""Threads that share a problem where it is `spread`: every TEAM-th point is one's own, sums are over all of them."""
# Sums may be regrouped and fused; NaN and infinity keep their meaning, because they mark infeasible problems.
FASTMATH = ("contract", "arcp", "nsz", "reassoc")
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": set(FASTMATH)}

jit: Any = numba.njit(**_OPTIONS)
"""A function that kernels call."""


def entry(*signatures: str) -> Any:
    """A function that Python calls, compiled for these signatures when its module is imported."""
    return numba.njit(list(signatures), cache=True, **_OPTIONS)


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


@jit
def room(part: Any, begin: Any, length: Any, like: Any) -> Any:
    """An array of so many numbers for the problems at hand, from place `begin` on in the workspace, if there is one."""
    return np.empty(length, like.dtype)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=("reassoc",))


def elementwise(builder: Any, name: str, x: Any) -> Any:
    """sqrt, fabs, log, exp, sin or cos of every lane. The last four take tens of nanoseconds, lane by lane in C."""
    return _call(builder, f"llvm.{name}.v{LANES}{_short(x)}", x.type, [x])


def reduction(builder: Any, name: str, x: Any) -> Any:
    """fadd, fmin or fmax of all lanes."""
    first = [ir.Constant(x.type.element, 0.0)] if name == "fadd" else []
    return _call(builder, f"llvm.vector.reduce.{name}.v{LANES}{_short(x)}", x.type.element, [*first, x])


def _short(x: Any) -> str:
    return "f64" if x.type.element == ir.DoubleType() else "f32"


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
