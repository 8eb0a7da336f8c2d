"""4x4 sudoku: all 288 boards, puzzles of them that have one solution, and the rules as linear equations.

A board has digits 0 to 3, each once in every row, column and 2x2 block. One-hot: entry (i, j, d) of (…,4,4,4) is 1
where row i, column j holds digit d; all four are 0 where a cell is blank, as in OptNet (Amos and Kolter 2017, arXiv
1703.00443, section 4.4).
"""

from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["Puzzles", "all_boards", "rules", "sudoku_puzzles"]


class Puzzles(NamedTuple):
    """B puzzles and their only solutions, both one-hot (B,4,4,4); blanks of `given` are zero. clues (B,) int64."""

    given: Tensor
    solution: Tensor
    clues: Tensor


@lru_cache(maxsize=1)
def _boards() -> Tensor:
    rows = torch.tensor(list(permutations(range(4))))
    number = torch.cartesian_prod(*[torch.arange(len(rows))] * 4)
    boards = rows[number]  # all that have every digit once in each row
    groups = torch.cat([boards.mT, _blocks(boards)], 1)
    return boards[(groups.sort(-1).values == torch.arange(4)).all(-1).all(-1)]


def _blocks(boards: Tensor) -> Tensor:
    """The same cells (B,4,4), block by block."""
    return boards.reshape(-1, 2, 2, 2, 2).transpose(2, 3).reshape(-1, 4, 4)


def all_boards() -> Tensor:
    """Every board there is, (288,4,4) int64, in lexical order."""
    return _boards().clone()


def rules(dtype: torch.dtype = torch.float64) -> Tensor:
    """R (64,64) with R z = 1 for one-hot boards z (64,), and for no other z of zeros and ones. Its rank is 40.

    16 rows each say: one digit in a cell; a digit once in a row, in a column, in a block.
    """
    cells = torch.arange(16).view(1, 4, 4)
    i, j, block = (k.flatten() for k in (cells // 4, cells % 4, cells // 8 * 2 + cells % 4 // 2))
    member = torch.cat([torch.eye(4, dtype=dtype)[k].mT for k in (i, j, block)])  # (12,16): which cells are in which
    cells_alone = torch.einsum("ab,d->abd", torch.eye(16, dtype=dtype), torch.ones(4, dtype=dtype))
    digits_once = torch.einsum("gc,de->gdce", member, torch.eye(4, dtype=dtype))
    return torch.cat([cells_alone.reshape(16, 64), digits_once.reshape(48, 64)])


def sudoku_puzzles(
    count: int,
    generator: torch.Generator,
    boards: Tensor | None = None,
    clues: tuple[int, int] = (4, 8),
    dtype: torch.dtype = torch.float32,
) -> Puzzles:
    """`count` puzzles of boards (N,4,4) int64, of all 288 if None; one board and one number of clues each, at random.

    The number of clues is evenly distributed between the two given, 4 (below which no puzzle has one solution) to 16;
    the cells are random among those choices of so many that leave one solution. Raises ValueError for other numbers.
    """
    low, high = clues
    if not 4 <= low <= high <= 16:
        raise ValueError(f"clues must be two numbers with 4 <= low <= high <= 16, got {clues}")
    if boards is None:
        boards = _boards()
    if boards.ndim != 3 or boards.shape[1:] != (4, 4) or len(boards) == 0:
        raise ValueError(f"boards must have shape (N,4,4), N > 0, got {tuple(boards.shape)}")
    board = boards[torch.randint(len(boards), (count,), generator=generator)].flatten(1)
    number = torch.randint(low, high + 1, (count,), generator=generator)
    known = torch.zeros(count, 16, dtype=torch.bool)
    every = one_hot(_boards().flatten(1), 4).float().flatten(1)
    solution = one_hot(board, 4)
    left = torch.arange(count)
    while len(left):
        order = torch.rand(len(left), 16, generator=generator).argsort(1).argsort(1)
        trial = order < number[left, None]
        agree = (solution[left] * trial[..., None]).float().flatten(1) @ every.T
        unique = (agree == number[left, None]).sum(1) == 1
        known[left[unique]] = trial[unique]
        left = left[~unique]
    whole = solution.view(-1, 4, 4, 4).to(dtype)
    return Puzzles(whole * known.view(-1, 4, 4, 1), whole, number)
