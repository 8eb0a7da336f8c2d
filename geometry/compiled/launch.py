"""How compiled kernels are started: in threads of Python, whose lock they release, or on a grid of a device's."""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal, TypeVar

import torch

__all__ = ["arrays", "compiles_for", "grid", "in_parallel"]

T = TypeVar("T")


@lru_cache(maxsize=4)
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork: a data-loader worker starts its own, if it has more than one at all."""
    return ThreadPoolExecutor(workers, thread_name_prefix="geometry")


def in_parallel(bounds: Sequence[int], work: Callable[[int, int, int], T]) -> list[T]:
    """work(bounds[i], bounds[i + 1], i) of every part, the first one here, the others in threads."""
    if len(bounds) == 2:
        return [work(bounds[0], bounds[1], 0)]
    pool = _pool(os.getpid(), torch.get_num_threads() - 1)
    others = [pool.submit(work, bounds[i], bounds[i + 1], i) for i in range(1, len(bounds) - 1)]
    return [work(bounds[0], bounds[1], 0), *(future.result() for future in others)]


def arrays(arguments: Any) -> Any:
    """A tuple of what kernels take, in it and in the tuples within it arrays for tensors of the CPU."""
    if isinstance(arguments, tuple):
        return tuple(arrays(a) for a in arguments)
    return arguments.numpy() if isinstance(arguments, torch.Tensor) else arguments


def compiles_for(tensor: torch.Tensor) -> bool:
    """Whether kernels can be had where a tensor lies: on the CPU, and on CUDA devices if numba-cuda is installed."""
    return tensor.is_cpu or (tensor.is_cuda and _numba_cuda())


@lru_cache(maxsize=1)
def _numba_cuda() -> bool:
    if importlib.util.find_spec("numba_cuda") is None:
        warnings.warn(
            "numba-cuda is not installed: on this device tensor operations solve, in hundreds of launches a call where "
            "a kernel needs one. pip install 'learnable-geometry[cuda]'",
            stacklevel=5,
        )
        return False
    return True


def grid(team: Literal["cuda", "warp"]) -> Any:
    """What starts kernels on a device, of one thread or one warp a problem; numba takes a second when first asked."""
    return importlib.import_module(f"geometry.compiled.{team}.grid")
