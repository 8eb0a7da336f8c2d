"""`run` of `geometry.compiled.simulated.grid`, by a team for every problem."""

from typing import Any

import numpy as np
import torch

from geometry.compiled.launch import arrays
from geometry.compiled.simulated.races import Accesses, act, watched

from .threads import THREADS
from .vectors import TEAM, member, work_as_a_team

__all__ = ["TEAM", "run"]


def run(name: str, problems: int, arguments: Any, device: torch.device) -> None:
    given, accesses = watched(arrays(arguments)), Accesses()
    for b in range(problems):

        def work(of_team: Accesses, b: int = b) -> None:
            act((accesses, b), (of_team, member()))
            with np.errstate(all="ignore"):
                THREADS[name](b, given)

        work_as_a_team(work)
