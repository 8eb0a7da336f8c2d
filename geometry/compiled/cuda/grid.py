"""Kernels of a CUDA grid: thread b, or team b, does the work of `geometry.compiled.threads` for problem b."""

from functools import cache
from typing import Any

import torch
from numba import cuda

from .target import TEAM
from .threads import THREADS

__all__ = ["kernel", "run"]

# Of a block: at 255 registers a thread, two blocks of 128 fill a multiprocessor.
_BLOCK = 128


@cache
def kernel(name: str) -> Any:
    """The kernel of that name in THREADS: arguments are the number of problems and a tuple."""
    work = THREADS[name]

    @cuda.jit
    def launched(problems: Any, arguments: Any) -> None:
        b = cuda.grid(1) // TEAM
        if b < problems:
            work(b, arguments)

    return launched


def run(name: str, problems: int, arguments: Any, device: torch.device) -> None:
    """Start a kernel on a device, in the stream that torch uses there; waits for nothing."""
    index = device.index
    with cuda.gpus[index]:
        stream = cuda.external_stream(torch.cuda.current_stream(index).cuda_stream)
        kernel(name)[(TEAM * problems + _BLOCK - 1) // _BLOCK, _BLOCK, stream](problems, arguments)
