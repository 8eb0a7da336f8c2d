"""Forward-mode derivatives: of element-wise functions one pass a direction, whatever the size of the batch."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import jvp

__all__ = ["directional", "one_at_a_time"]

_LOCK = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """For what opens torch's level of dual numbers: the process has one, and its threads would share it."""
    if torch.compiler.is_compiling():
        yield
    else:
        with _LOCK:
            yield


def directional(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and its derivative along `direction`, which broadcasts to x."""
    with one_at_a_time():
        value, derivative = jvp(f, (x,), (direction.expand_as(x).contiguous(),))[:2]
    return value, derivative
