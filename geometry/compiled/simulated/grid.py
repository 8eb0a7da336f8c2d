"""`run` of `geometry.compiled.cuda.grid` as a loop over problems, on tensors of the CPU."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .threads import THREADS

__all__ = ["arrays", "run"]


def arrays(argument: Any) -> Any:
    """The tensors in an argument as arrays of the same memory."""
    if isinstance(argument, tuple):
        return tuple(arrays(a) for a in argument)
    return argument.numpy() if isinstance(argument, Tensor) else argument


def run(name: str, problems: int, arguments: Any, device: torch.device) -> None:
    given = arrays(arguments)
    with np.errstate(all="ignore"):
        for b in range(problems):
            THREADS[name](b, given)
