"""The names of `geometry.compiled.simulated.vectors` for a team of threads that add up what each of them holds."""

import functools
import operator
import threading
from collections.abc import Callable
from typing import Any

from geometry.compiled.simulated import vectors as _alone
from geometry.compiled.simulated.vectors import *  # noqa: F403  # all that a team does not do otherwise

__all__ = [*_alone.__all__, "work_as_a_team"]

TEAM = 4  # a divisor of a warp is as good for tests, and starts fewer threads

_own = threading.local()


def work_as_a_team(work: Callable[[], None]) -> None:
    """Let TEAM threads do it together; what one of them raises is raised here."""
    barrier, held, raised = threading.Barrier(TEAM), [None] * TEAM, []

    def alone(number: int) -> None:
        _own.number, _own.barrier, _own.held = number, barrier, held
        try:
            work()
        except threading.BrokenBarrierError:
            pass  # another one has said why
        except Exception as error:
            raised.append(error)
            barrier.abort()

    threads = [threading.Thread(target=alone, args=(number,)) for number in range(TEAM)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def member() -> int:  # type: ignore[no-redef]
    return _own.number


def _together(x: Any, both: Callable[[Any, Any], Any]) -> Any:
    """What all hold, taken together from pair to pair as by shuffles; it is an error if not all of them ask."""
    _own.held[_own.number] = x
    _own.barrier.wait(timeout=60)
    values = list(_own.held)
    _own.barrier.wait(timeout=60)
    distance = TEAM // 2
    while distance:
        values = [both(values[i], values[i ^ distance]) for i in range(TEAM)]
        distance //= 2
    return values[_own.number]


total, lowest = functools.partial(_together, both=operator.add), functools.partial(_together, both=min)


def room(part: Any, begin: Any, length: Any, like: Any) -> Any:  # type: ignore[no-redef]
    column = part.workspace[begin : begin + length, part.slot * TEAM + member()]
    assert len(column) == length, "the workspace is too small"
    return column
