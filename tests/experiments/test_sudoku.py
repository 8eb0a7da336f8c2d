"""Learning sudoku: the layer, told the rules, solves it; its gradient; what it learns; that a killed run goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.made.sudoku import Puzzles, rules, sudoku_puzzles
from experiments.sudoku import (
    PRESETS,
    Network,
    OptNet,
    falling_penalty,
    learn,
    learner,
    main,
    right,
    share_right,
    solved,
)
from geometry.optim.quadratic import quadratic_program
from geometry.optim.solution import ConstrainedSolution
from tests.experiments.toys.scene import Place

TINY = replace(
    PRESETS["smoke"],
    iterations=6,
    batch=5,
    puzzles=40,
    test_every=3,
    watched=10,
    test_puzzles=10,
    width=4,
    log_every=2,
)


def some(count: int, seed: int = 0, clues: tuple[int, int] = (4, 8)) -> Puzzles:
    return sudoku_puzzles(count, torch.Generator().manual_seed(seed), clues=clues, dtype=torch.float64)


def optnet(rows: int = 40, seed: int = 0) -> OptNet:
    torch.manual_seed(seed)
    return OptNet(rows, 0.1).double()


@pytest.mark.slow
@pytest.mark.parametrize("clues", [4, 6, 8])
def test_told_the_rules_the_program_solves_every_puzzle(clues: int) -> None:
    """With little curvature the program is a linear one, whose solution is the board itself."""
    puzzles = some(100, clues=(clues, clues))
    R = rules()
    board = solved(puzzles.given, R, torch.ones(64).double(), penalty=0.01)
    torch.testing.assert_close(board, puzzles.solution, rtol=0, atol=1e-8)
    curved = solved(puzzles.given, R, torch.ones(64).double(), penalty=0.1)
    assert right(curved, puzzles).all()
    if clues == 4:
        assert (curved - puzzles.solution).abs().max() > 0.1


def test_with_some_of_the_rules_it_does_not() -> None:
    """Rows, columns and cells without the blocks."""
    puzzles, R = some(100), rules()[:48]
    answer = solved(puzzles.given, R, torch.ones(48).double(), penalty=0.01)
    assert 0 < right(answer, puzzles).double().mean() < 0.8


def test_the_gradient_of_the_loss_against_finite_differences() -> None:
    """From puzzles to the mean squared error, in entries of A and of log z0 and in a random direction of both."""
    network, puzzles = optnet(), some(8)
    A, log_z0 = (p.detach().clone() for p in network.parameters())

    def loss(dA: Tensor, dz: Tensor) -> Tensor:
        with torch.no_grad():
            network.A.copy_(A + dA)
            network.log_z0.copy_(log_z0 + dz)
        return (network(puzzles.given) - puzzles.solution).square().sum()

    zero_A, zero_z = torch.zeros_like(A), torch.zeros_like(log_z0)
    grad_A, grad_z = torch.autograd.grad(loss(zero_A, zero_z), list(network.parameters()))
    generator = torch.Generator().manual_seed(0)
    directions = [
        (torch.randn(A.shape, generator=generator).double(), torch.randn(64, generator=generator).double()),
        (zero_A, torch.eye(64)[3].double()),
    ]
    directions += [
        (zero_A.index_put((torch.tensor(i), torch.tensor(j)), torch.tensor(1.0).double()), zero_z)
        for i, j in ((0, 0), (17, 40), (39, 63))
    ]
    h = 1e-5
    for dA, dz in directions:
        slope = (grad_A * dA).sum() + (grad_z * dz).sum()
        numeric = (loss(h * dA, h * dz) - loss(-h * dA, -h * dz)) / (2 * h)
        assert slope.abs() > 1e-3
        assert slope.item() == pytest.approx(numeric.item(), rel=1e-6, abs=1e-7)


def test_a_program_that_fails_teaches_nothing() -> None:
    """Learned equations have a solution, z0; these have none with z >= 0."""
    puzzles = some(3)
    A = torch.ones(1, 64, dtype=torch.float64).requires_grad_()
    for b, learns in ((-1.0, False), (16.0, True)):
        A.grad = None
        (solved(puzzles.given, A, torch.tensor([b]).double(), 0.1) - puzzles.solution).square().sum().backward()
        assert A.grad is not None
        assert A.grad.any() == learns


def test_the_residual_is_what_is_missing_of_the_rules() -> None:
    network = optnet()
    basis = torch.linalg.svd(rules())[2][:40]
    mixed = torch.randn(40, 40, generator=torch.Generator().manual_seed(0)).double() @ basis
    for A in (basis, mixed):
        with torch.no_grad():
            network.A.copy_(A)
        assert network.rules_residual() < 1e-7
    with torch.no_grad():
        network.log_z0.add_(0.1)  # the same rows with other right-hand sides are not the rules
    assert network.rules_residual() > 0.01
    random = [optnet(seed=seed).rules_residual() for seed in range(5)]
    assert min(random) > 0.5
    assert optnet(rows=64).rules_residual() < 1e-7  # all of space; b is that of z0, a solution of the rules


def test_the_network_answers_with_a_distribution_over_digits() -> None:
    torch.manual_seed(0)
    network, puzzles = Network(8, 2).double(), some(4)
    board = network(puzzles.given)
    torch.testing.assert_close(board.sum(-1), torch.ones(4, 4, 4).double())
    # the digits' axis is not mistaken for one of the board's: what changes in a corner moves that corner most
    network.eval()
    changed = puzzles.given.clone()
    changed[:, 0, 0] = torch.tensor([0.0, 0.0, 0.0, 5.0])
    moved = (network(changed) - network(puzzles.given)).abs().sum(-1)
    assert (moved[:, 3, 3] < moved[:, 0, 0]).all()


def test_a_board_is_right_if_all_its_cells_are() -> None:
    puzzles = some(3)
    answer = puzzles.solution.clone()
    answer[1, 2, 3] = answer[1, 2, 3].roll(1)
    assert right(answer, puzzles).tolist() == [True, False, True]


@pytest.mark.slow
def test_it_learns_the_rules() -> None:
    """The first steps already bring A nearer to the rules, and the loss down."""
    torch.manual_seed(0)
    training = learner("optnet", replace(PRESETS["default"], iterations=30), Place())  # type: ignore[arg-type]
    assert isinstance(training.network, OptNet)
    before = training.network.rules_residual()
    losses = [learn(training, some(20, seed))[0] for seed in range(30)]
    assert training.network.rules_residual() < before - 0.05
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_penalty_falls_to_that_of_the_answers() -> None:
    config = replace(PRESETS["default"], iterations=100)
    penalties = [falling_penalty(config, step) for step in range(100)]
    assert penalties[0] == config.first_penalty
    assert penalties[-20:] == [config.penalty] * 20
    ratios = [b / a for a, b in pairwise(penalties[:80])]
    assert max(ratios) == pytest.approx(min(ratios))
    assert max(ratios) < 1
    network, puzzles = optnet(), some(5)
    plain = network(puzzles.given)
    network.training_penalty = 1.0
    assert (network(puzzles.given) - plain).abs().max() > 0.01
    torch.testing.assert_close(network.eval()(puzzles.given), plain)


@pytest.mark.slow
def test_some_hundred_steps_solve_boards_that_were_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no puzzle is lost to a program that fails: those of the trained A are degenerate, as those of the rules."""
    failed: list[Tensor] = []

    def watched(*program: Tensor) -> ConstrainedSolution:
        found = quadratic_program(*program)
        failed.append(~found.converged)
        return found

    monkeypatch.setattr("experiments.sudoku.quadratic_program", watched)
    config = replace(PRESETS["default"], iterations=150, puzzles=3000, test_puzzles=200, out=tmp_path)
    summary = main(config)
    assert summary["errors"]["optnet_unseen_right"] > 0.9
    assert summary["errors"]["optnet_unseen_right"] > summary["errors"]["network_unseen_right"] + 0.1
    assert summary["errors"]["rules_residual"] < 0.12
    assert torch.cat(failed).double().mean() < 1e-3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Summary and folder of a run."""
    out = tmp_path_factory.mktemp("whole")
    return main(replace(TINY, out=out)), out / "sudoku" / "smoke-seed0"


@pytest.mark.slow
def test_a_run_leaves_what_there_is_to_see(whole: tuple[dict[str, Any], Path]) -> None:
    summary, folder = whole
    assert summary["figures"] == ["boards.png", "curves.png"]
    for name in ("optnet_unseen_right", "network_unseen_right", "optnet_seen_right", "rules_residual"):
        assert 0 <= summary["errors"][name] <= 1
    assert summary["errors"]["rules_unseen_right"] == 1
    assert json.loads((folder / "summary.json").read_text()) == summary
    logged = (folder / "metrics.csv").read_text().splitlines()
    assert len(logged) == 7
    assert logged[0].startswith(
        "step,loss,optnet_test_right,optnet_loss,optnet_right,rules_residual,network_test_right"
    )


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_numbers(
    whole: tuple[dict[str, Any], Path], same_when_resumed: Callable[..., dict[str, Any]]
) -> None:
    same_when_resumed(main, TINY, at=5, whole=whole)


@pytest.mark.slow
def test_no_held_out_board_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, set[tuple[int, ...]]]] = []

    def noted(count: int, generator: torch.Generator, boards: Tensor, *rest: Any) -> Puzzles:
        asked.append((count, {tuple(board) for board in boards.flatten(1).tolist()}))
        return sudoku_puzzles(count, generator, boards, *rest)

    monkeypatch.setattr("experiments.sudoku.sudoku_puzzles", noted)
    main(replace(TINY, methods=("network",), iterations=1, out=tmp_path))
    (_, trained), (_, watched), (_, unseen), (_, seen) = asked
    assert watched == unseen
    assert trained == seen
    assert len(unseen) == 72
    assert len(trained) == 216
    assert not unseen & trained


def test_shares_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network, puzzles = Network(8, 2).double(), some(40, clues=(12, 12))
    learn(learner("network", TINY, Place()), puzzles)  # type: ignore[arg-type]
    whole = share_right(network, puzzles)
    halves = [share_right(network, Puzzles(*(part[k : k + 20] for part in puzzles))) for k in (0, 20)]
    assert whole == pytest.approx(sum(halves) / 2)
