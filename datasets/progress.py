"""A bar for what takes a while before there is anything else to see."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

__all__ = ["progress"]

T = TypeVar("T")


PATIENCE = 10.0
"""Seconds between lines where there is no terminal."""


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, behind a bar on a terminal's stderr that is gone at the end; elsewhere a line now and then.

    what: what is done to them, such as "matching images". total: how many there are, where they do not say so.
    """
    if sys.stderr.isatty():
        return iter(tqdm(items, what, total, leave=False, file=sys.stderr))
    return _in_lines(items, what, len(items) if total is None and isinstance(items, Sized) else total)


def _in_lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    """Short work says nothing; what takes longer says how far it is, a line at a time, as a log wants it."""
    told = time.monotonic()
    for i, item in enumerate(items):
        if time.monotonic() - told > PATIENCE:
            told = time.monotonic()
            print(f"{what}: {i}{'' if total is None else f' of {total}'}", file=sys.stderr, flush=True)
        yield item
