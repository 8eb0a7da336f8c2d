"""Threads of Python over compiled kernels, which release its lock; as many as torch has."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

__all__ = ["in_parallel"]

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
