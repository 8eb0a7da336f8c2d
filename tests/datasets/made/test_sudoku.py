"""Sudoku: the boards are all there are, a puzzle has one solution and the clues it says, and the seed decides."""

from collections.abc import Iterator

import pytest
import torch

from datasets.made.sudoku import Puzzles, all_boards, rules, sudoku_puzzles
from tests.numbers import generator


def solutions(cells: list[list[int]]) -> Iterator[list[list[int]]]:
    """All boards that agree with the cells, -1 for a blank: backtracking, with nothing of the code under test."""
    for i in range(4):
        for j in range(4):
            if cells[i][j] >= 0:
                continue
            near = {cells[i][c] for c in range(4)} | {cells[r][j] for r in range(4)}
            near |= {cells[i // 2 * 2 + r][j // 2 * 2 + c] for r in range(2) for c in range(2)}
            for digit in set(range(4)) - near:
                cells[i][j] = digit
                yield from solutions(cells)
            cells[i][j] = -1
            return
    yield [list(row) for row in cells]


def digits(one_hot: torch.Tensor) -> list[list[int]]:
    """Digits of (4,4,4), -1 for a blank."""
    return torch.where(one_hot.sum(-1) > 0, one_hot.argmax(-1), -1).tolist()


def test_the_boards_are_all_there_are() -> None:
    expected = sorted(solutions([[-1] * 4 for _ in range(4)]))
    assert len(expected) == 288
    assert all_boards().tolist() == expected
    all_boards().zero_()
    assert all_boards().any()  # nobody can change them


def test_the_rules_hold_for_boards_and_for_nothing_else() -> None:
    R = rules()
    assert R.shape == (64, 64)
    assert torch.linalg.matrix_rank(R) == 40
    boards = torch.nn.functional.one_hot(all_boards(), 4).double().flatten(1)
    assert (boards @ R.mT == 1).all()
    changed = all_boards().flatten(1)
    at = torch.randint(16, (288, 1), generator=generator())
    changed.scatter_(1, at, (changed.gather(1, at) + 1) % 4)
    one_hot = torch.nn.functional.one_hot(changed, 4).double().flatten(1)
    assert (one_hot @ R.mT != 1).any(1).all()
    # every rule counts: without it some board of ones and zeros would pass
    assert ((R == 0) | (R == 1)).all()
    assert (R.sum(1) == 4).all()
    assert (R.sum(0) == 4).all()
    assert len(R.unique(dim=0)) == 64
    assert rules(torch.float32).dtype == torch.float32


@pytest.mark.parametrize("clues", [(4, 8), (5, 5)])
def test_a_puzzle_has_one_solution_and_the_clues_it_says(clues: tuple[int, int]) -> None:
    puzzles = sudoku_puzzles(200, generator(), clues=clues, dtype=torch.float64)
    assert puzzles.given.shape == puzzles.solution.shape == (200, 4, 4, 4)
    assert puzzles.given.dtype == puzzles.solution.dtype == torch.float64
    assert torch.equal(puzzles.given.sum((1, 2, 3)), puzzles.clues.double())
    assert set(puzzles.clues.tolist()) == set(range(clues[0], clues[1] + 1))
    for given, solution in zip(puzzles.given, puzzles.solution, strict=True):
        assert list(solutions(digits(given))) == [digits(solution)]


def test_clues_and_cells_are_random() -> None:
    puzzles = sudoku_puzzles(4000, generator(), clues=(6, 9))
    share = torch.bincount(puzzles.clues, minlength=10)[6:] / 4000
    torch.testing.assert_close(share, torch.full((4,), 0.25), rtol=0, atol=0.03)
    where = puzzles.given.sum(-1).mean(0)
    torch.testing.assert_close(where, torch.full((4, 4), 7.5 / 16), rtol=0, atol=0.04)
    boards = puzzles.solution.argmax(-1).flatten(1).unique(dim=0)
    assert len(boards) == 288


def test_one_seed_one_set_of_puzzles() -> None:
    one, same, other = (sudoku_puzzles(20, generator(seed)) for seed in (3, 3, 4))
    for a, b in zip(one, same, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.solution, other.solution)
    g = generator(3)
    sudoku_puzzles(20, g)
    assert not torch.equal(sudoku_puzzles(20, g).solution, one.solution)  # the generator goes on
    none = sudoku_puzzles(0, g)
    assert isinstance(none, Puzzles)
    assert none.given.shape == (0, 4, 4, 4)


def test_only_the_boards_that_are_given() -> None:
    some = all_boards()[[5, 77, 200]]
    puzzles = sudoku_puzzles(60, generator(), some)
    assert torch.equal(puzzles.solution.argmax(-1).unique(dim=0), some)
    for given, solution in zip(puzzles.given, puzzles.solution, strict=True):  # one of all 288, not of these three
        assert list(solutions(digits(given))) == [digits(solution)]


def test_what_cannot_be_is_refused() -> None:
    for clues in ((3, 8), (8, 7), (4, 17)):
        with pytest.raises(ValueError, match=r"clues must be two numbers with 4 <= low <= high <= 16"):
            sudoku_puzzles(1, generator(), clues=clues)
    with pytest.raises(ValueError, match=r"boards must have shape \(N,4,4\), N > 0, got \(0, 4, 4\)"):
        sudoku_puzzles(1, generator(), all_boards()[:0])
