"""Which of the unknowns that were sought together the data determine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

__all__ = ["LOOSE", "is_loose", "undetermined_names"]

LOOSE = 0.1
"""Standard deviation, in focal lengths, from which a focal length or a principal point is not told by the data: stated
deviations hold to first order in the noise, which so much is beyond."""


def is_loose(deviation: float, focal_length: float) -> bool:
    """Whether a focal length or a principal point with this standard deviation, nan or inf among them, is not told.

    It is not asked of coefficients of a lens: those of one lens go together, and what is open in each may be settled in
    their sum.
    """
    return not deviation < LOOSE * focal_length


def undetermined_names(
    groups: Iterable[Sequence[str]], determines: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...]:
    """The names that cannot be sought beside those before them.

    A singular problem does not say which of its unknowns is one too many. Groups are added in their order, the most
    wanted first; what makes `determines(names)`, of all names that are sought, false is left out again and returned.
    """
    sought: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    for group in groups:
        more = (*sought, *group)
        if determines(more):
            sought = more
        else:
            left = (*left, *group)
    return left
