"""A bar for what takes a while before there is anything else to see."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["progress"]

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, behind a bar on a terminal's stderr that is gone at the end; nothing is written where there is none.

    what: what is done to them, such as "matching images". total: how many there are, where they do not say so.
    """
    return iter(tqdm(items, what, total, leave=False, file=sys.stderr, disable=not sys.stderr.isatty()))
