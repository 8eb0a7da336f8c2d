"""Sections of a benchmark that must end in time, each a process of its own: one that dies takes no other along.

As many are prepared at once as there are cores, since kernels take long to compile, and measure one after the other. A
CUDA device that a mistake has upset is of no use to its process any more, which is why a section's failure ends there.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from experiments.benchmarks.places import Place

__all__ = ["LEFT_OUT", "Measures", "NotHereError", "Row", "Section", "attempted", "measured", "run_all"]

LEFT_OUT = "left out: no time"


class NotHereError(Exception):
    """Something that is measured only where it can be is not here: nobody's failure."""


@dataclass(frozen=True)
class Row:
    """A line of a section's table after its name, and what others want to know of it: numbers by name."""

    cells: Sequence[str]
    figures: Mapping[str, float] = field(default_factory=dict)


Measures = Iterator[tuple[str, Callable[[], Row]]]


@dataclass(frozen=True)
class Section:
    """A table: measures(place, options) gives the names of its lines and what measures them, in this order.

    prepare: imports and compiles, beside those of all others. seconds: no measure begins after so many, and twice as
    many end the section. The functions are those of a module, so that another process finds them.
    """

    title: str
    header: Sequence[str]
    seconds: float
    measures: Callable[[Place, Mapping[str, Any]], Measures]
    prepare: Callable[[Place], Row] | None = None


def measured(section: Section, place: Place, options: Mapping[str, Any], seconds: float) -> Iterator[tuple[str, Row]]:
    """The lines of a section's table; a failure is one of them, and so is what there was no time for."""
    end = time.perf_counter() + seconds
    try:
        for name, measure in section.measures(place, options):
            yield name, Row([LEFT_OUT]) if time.perf_counter() > end else attempted(measure)
    except Exception as error:
        yield "the rest", failed(error)


def attempted(measure: Callable[[], Row]) -> Row:
    """What it finds, or what went wrong."""
    try:
        return measure()
    except NotHereError as error:
        return Row([f"left out: {error}"])
    except (Exception, SystemExit) as error:
        return failed(error)


def failed(error: BaseException) -> Row:
    said = (str(error).strip() or "nothing said").splitlines()[0]
    return Row([f"**failed**: {type(error).__name__}: {said}"], {"failures": 1.0})


def work(section: Section, place: Place, options: Mapping[str, Any], pipe: Connection) -> None:
    """The process of a section: it is told when to measure, and for how long; every line is sent at once."""
    begin = time.perf_counter()
    row = attempted(lambda: section.prepare(place) if section.prepare else Row(["nothing to compile"]))
    pipe.send((f"prepared in {time.perf_counter() - begin:.1f} s", row))
    for line in measured(section, place, options, pipe.recv()):
        pipe.send(line)
    pipe.send(None)


def run_all(
    sections: Sequence[Section], place: Place, options: Mapping[str, Any], seconds: float
) -> Iterator[tuple[Section, list[tuple[str, Row]]]]:
    """Each section with its lines, as it ends; all within so many seconds."""
    end, context = time.perf_counter() + seconds, get_context("spawn")
    started: list[tuple[Any, Connection]] = []

    def start_one() -> None:
        if len(started) < len(sections):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(sections[len(started)], place, options, theirs), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))

    for _ in range(os.cpu_count() or 1):
        start_one()
    # what is timed should not share the processor with compilers, unless one takes very long
    waiting: set[Any] = {pipe for _, pipe in started}
    while waiting and time.perf_counter() < end - seconds / 2:
        waiting -= set(wait(list(waiting), end - seconds / 2 - time.perf_counter()))
    for i, section in enumerate(sections):
        process, pipe = started[i]
        left = end - time.perf_counter()
        lines = _lines(pipe, min(section.seconds, left), min(2 * section.seconds, left))
        process.kill()
        process.join()
        start_one()
        yield section, lines


def _lines(pipe: Connection, seconds: float, longest: float) -> list[tuple[str, Row]]:
    """What a section sends within so many seconds."""
    lines: list[tuple[str, Row]] = []
    if longest <= 0:
        return [("all", Row([LEFT_OUT]))]
    end, why = time.perf_counter() + longest, f"not ended after {longest:.0f} s"
    try:
        pipe.send(seconds)
        while pipe.poll(max(0.0, end - time.perf_counter())):
            line = pipe.recv()
            if line is None:
                return lines
            lines.append(line)
    except (EOFError, OSError):
        why = "its process has died"
    return [*lines, ("the rest", Row([f"**failed**: {why}"], {"failures": 1.0}))]
