"""Who reads and writes each number that threads of a device share: two at one place at once is an error, unless both
read.

Threads of one launch are at once whatever they do, but for those of a team, which `meet`. What a team tells each other
by shuffles does not order what they do in memory, so that no shuffle counts here.
"""

import threading
from typing import Any

import numpy as np

__all__ = ["Accesses", "RaceError", "act", "watched"]

_SEVERAL = -1
_own = threading.local()


class RaceError(Exception):
    """Two threads were at one place at once, and one of them wrote."""


class Accesses:
    """Who has read and who has written each place, by its address, since they have met last."""

    def __init__(self) -> None:
        self._readers: dict[int, int] = {}
        self._writers: dict[int, int] = {}

    def forget(self) -> None:
        """All have met."""
        self._readers.clear()
        self._writers.clear()

    # Each notes itself before it looks for others, so that of two at once at least one sees the other.
    def read(self, place: int, who: int) -> None:
        if self._readers.setdefault(place, who) != who:
            self._readers[place] = _SEVERAL
        if self._writers.get(place, who) != who:
            raise RaceError(f"thread {who} reads what thread {self._writers[place]} writes")

    def write(self, place: int, who: int) -> None:
        if self._writers.setdefault(place, who) != who:
            raise RaceError(f"threads {who} and {self._writers[place]} write to one place")
        if self._readers.get(place, who) != who:
            reader = self._readers[place]
            raise RaceError(f"thread {who} writes what {'others read' if reader < 0 else f'thread {reader} reads'}")


def act(*parts: tuple[Accesses, int]) -> None:
    """From here on this thread of Python is, in each of these, the thread of that number."""
    _own.parts = parts


class _Watched(np.ndarray):
    """An array whose elements are read and written under watch, in it and in its views."""

    def _addresses(self, key: Any) -> list[int]:
        index = key if isinstance(key, tuple) else (key,)
        if len(index) < self.ndim or any(isinstance(i, slice) for i in index):
            part = super().__getitem__(key)
            first, strides = part.__array_interface__["data"][0], part.strides
            return [first + sum(map(int.__mul__, i, strides)) for i in np.ndindex(*part.shape)]
        if min(index) < 0:
            raise IndexError(f"place {key} of an array of shape {self.shape}: a device does not count from the end")
        return [self.__array_interface__["data"][0] + sum(int(i) * s for i, s in zip(index, self.strides, strict=True))]

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if not isinstance(found, np.ndarray):
            (place,) = self._addresses(key)
            for accesses, who in _own.parts:
                accesses.read(place, who)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        for place in self._addresses(key):
            for accesses, who in _own.parts:
                accesses.write(place, who)
        super().__setitem__(key, value)


def watched(arguments: Any) -> Any:
    """A tuple of what kernels take, the arrays in it and in the tuples within it under watch."""
    if isinstance(arguments, tuple):
        return tuple(watched(a) for a in arguments)
    return arguments.view(_Watched) if isinstance(arguments, np.ndarray) else arguments
