"""Forward-mode derivatives: of element-wise functions one pass a direction, whatever the size of the batch."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import jvp, vmap

__all__ = ["curvature", "directional", "one_at_a_time"]

_LOCK = threading.RLock()
_AT_ONCE = 200_000  # second derivatives that are taken together


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


def curvature(f: Callable[[Tensor], Tensor], y: Tensor, covector: Tensor) -> Tensor:
    """Second derivative (M,n,n) of <covector, f(y)>, y (M,n)."""
    n = y.shape[1]
    axes = torch.eye(n, dtype=y.dtype, device=y.device)
    i, j = torch.tril_indices(n, n, device=y.device)

    def entry(one: Tensor, other: Tensor) -> Tensor:
        return directional(lambda y: (covector * directional(f, y, one)[1]).sum(-1), y, other)[1]

    # few observations are as much work for torch as many: all entries at once, as far as memory allows
    entries = vmap(entry, chunk_size=max(1, _AT_ONCE // max(1, len(y))))(axes[i], axes[j])
    H = y.new_zeros(len(y), n, n)
    H[:, i, j] = H[:, j, i] = entries.T
    return H
