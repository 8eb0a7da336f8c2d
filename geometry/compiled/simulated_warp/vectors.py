"""The names of `geometry.compiled.simulated.vectors` for a team of threads that add up what each of them holds."""

import functools
import operator
import threading
from collections.abc import Callable
from typing import Any

from geometry.compiled.simulated import vectors as _alone
from geometry.compiled.simulated.races import Accesses
from geometry.compiled.simulated.vectors import *  # noqa: F403  # all that a team does not do otherwise

__all__ = [*_alone.__all__, "work_as_a_team"]

TEAM = 4  # a divisor of a warp is as good for tests, and starts fewer threads

_own = threading.local()


def work_as_a_team(work: Callable[[Accesses], None]) -> None:
    """Let TEAM threads do it together; what one of them raises is raised here. work is given what they share."""
    barrier, held, accesses, raised = threading.Barrier(TEAM), [None] * TEAM, Accesses(), []

    def alone(number: int) -> None:
        _own.number, _own.barrier, _own.held, _own.accesses = number, barrier, held, accesses
        try:
            work(accesses)
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


def _of_all(x: Any) -> list[Any]:
    """What each of them holds; it is an error if not all of them ask."""
    _own.held[_own.number] = x
    _own.barrier.wait(timeout=60)
    values = list(_own.held)
    _own.barrier.wait(timeout=60)
    return values


def meet() -> None:  # type: ignore[no-redef]
    _of_all(None)
    if member() == 0:
        _own.accesses.forget()
    _own.barrier.wait(timeout=60)


def broadcast(x: Any, who: Any) -> Any:  # type: ignore[no-redef]
    values = _of_all((x, who))
    assert all(other == who for _, other in values), "a team asks for what one of them holds, not for several"
    return values[who][0]


def _together(x: Any, both: Callable[[Any, Any], Any]) -> Any:
    """What all hold, taken together from pair to pair as by shuffles."""
    values, distance = _of_all(x), TEAM // 2
    while distance:
        values = [both(values[i], values[i ^ distance]) for i in range(TEAM)]
        distance //= 2
    return values[_own.number]


total, lowest = functools.partial(_together, both=operator.add), functools.partial(_together, both=min)


def room(part: Any, begin: Any, length: Any, like: Any) -> Any:  # type: ignore[no-redef]
    slot = part.slot * TEAM + member() if part.spread else part.slot
    column = part.workspace[begin : begin + length, slot]
    assert len(column) == length, "the workspace is too small"
    return column
