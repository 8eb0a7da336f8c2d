"""`run` of `geometry.compiled.cuda.grid` as a loop over problems, on tensors of the CPU."""

from typing import Any

import numpy as np
import torch

from ..launch import arrays
from .threads import THREADS

__all__ = ["run"]


def run(name: str, problems: int, arguments: Any, device: torch.device) -> None:
    given = arrays(arguments)
    with np.errstate(all="ignore"):
        for b in range(problems):
            THREADS[name](b, given)
