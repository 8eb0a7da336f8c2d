"""`run` of `geometry.compiled.cuda.grid` as a loop over problems, on tensors of the CPU."""

from typing import Any

import numpy as np
import torch

from ..launch import arrays
from .races import Accesses, act, watched
from .threads import THREADS

__all__ = ["run"]


def run(name: str, problems: int, arguments: Any, device: torch.device) -> None:
    given, accesses = watched(arrays(arguments)), Accesses()
    with np.errstate(all="ignore"):
        for b in range(problems):
            act((accesses, b))
            THREADS[name](b, given)
