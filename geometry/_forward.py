"""Forward-mode derivatives of element-wise functions: one pass a direction, whatever the size of the batch."""

from collections.abc import Callable

from torch import Tensor
from torch.func import jvp

__all__ = ["directional"]


def directional(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and its derivative along `direction`, which broadcasts to x."""
    value, derivative = jvp(f, (x,), (direction.expand_as(x).contiguous(),))[:2]
    return value, derivative
