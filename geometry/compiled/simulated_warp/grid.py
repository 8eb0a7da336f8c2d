"""`run` of `geometry.compiled.simulated.grid`, by a team for every problem."""

from typing import Any

import numpy as np
import torch

from geometry.compiled.launch import arrays

from .threads import THREADS
from .vectors import TEAM, work_as_a_team

__all__ = ["TEAM", "run"]


def run(name: str, problems: int, arguments: Any, device: torch.device) -> None:
    given = arrays(arguments)
    for b in range(problems):

        def work(b: int = b) -> None:
            with np.errstate(all="ignore"):
                THREADS[name](b, given)

        work_as_a_team(work)
