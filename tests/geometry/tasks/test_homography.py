"""The homography task against OpenCV, finite differences and what must hold of any weights."""

import cv2
import pytest
import torch
from torch import Tensor

from geometry import Status
from geometry.consensus.minimal import homography_problem, transfer
from geometry.tasks.homography import homography
from tests.numbers import DOUBLE, close, directions_of, errors_in_turn

TRUE = torch.tensor([[1.1, 0.1, 30], [-0.05, 0.9, 12], [1e-4, -2e-4, 1]], dtype=torch.float64)


def matches(B: int = 3, N: int = 20, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = 500 * torch.rand(B, N, 2, generator=generator, dtype=torch.float64)
    return a, transfer(TRUE, a) + noise * torch.randn(B, N, 2, generator=generator, dtype=torch.float64)


def test_exact_matches_give_the_homography_back() -> None:
    found = homography(*matches(noise=0.0))
    assert found.converged.all()
    assert found.cost.max() < 1e-18
    torch.testing.assert_close(found.x / found.x[:, 2:, 2:], TRUE.expand(3, 3, 3), rtol=1e-9, atol=1e-12)


def test_its_cost_is_at_most_that_of_opencv() -> None:
    a, b = matches()
    found = homography(a, b)
    for i in range(len(a)):
        H, _ = cv2.findHomography(a[i].numpy(), b[i].numpy(), 0)
        theirs = homography_problem.cost(torch.from_numpy(H), a[i], b[i])
        assert found.cost[i] <= theirs * (1 + 1e-12)
        assert found.cost[i] == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences() -> None:
    """In problem i of the batch, data[i] is moved."""
    generator = torch.Generator().manual_seed(1)
    a, b = matches()
    data = [a, b, torch.rand(3, 20, generator=generator, dtype=torch.float64) + 0.5]
    probe = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)
    sizes = (1.0, 1.0, 0.1)
    directions = directions_of(data, sizes, generator)
    errors = errors_in_turn(lambda *data: (homography(*data).x * probe).sum((1, 2)), data, directions)
    assert errors.max() < 1e-6


def test_a_weight_of_zero_is_as_if_absent() -> None:
    a, b = matches()
    weights = torch.ones(20, dtype=torch.float64)
    weights[15:] = 0
    torch.testing.assert_close(homography(a, b, weights).x, homography(a[:, :15], b[:, :15]).x, rtol=1e-9, atol=1e-12)


def test_a_problem_without_a_solution_is_flagged_and_alone() -> None:
    a, b = matches()
    line = a.clone()
    line[1, :, 1] = line[1, :, 0]  # all on a line
    line.requires_grad_()
    found = homography(line, b)
    assert found.status[1] != Status.CONVERGED
    assert found.converged[[0, 2]].all()
    found.x.sum().backward()
    assert line.grad is not None
    assert (line.grad[1] == 0).all()
    assert line.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points_a": torch.rand(3, 20, 3).double()}, r"points_a must have shape \(N,2\) or \(B,N,2\)"),
        ({"points_b": torch.rand(3, 19, 2).double()}, r"points_b must have shape \(20,2\) or \(3,20,2\)"),
        ({"points_b": torch.rand(2, 20, 2).double()}, "points_b must have shape"),
        ({"weights": torch.ones(3, 20)}, "weights must have the dtype and device of points_a"),
        ({"points_a": torch.full((3, 20, 2), torch.nan).double()}, "points_a must be finite"),
        ({"points_a": torch.rand(3, 3, 2).double(), "points_b": torch.rand(3, 3, 2).double()}, "at least 4"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    a, b = matches()
    with pytest.raises(ValueError, match=message):
        homography(**{"points_a": a, "points_b": b} | change)


@pytest.mark.parametrize("far", [0.0, -1e4, 1e10])
def test_a_match_of_weight_zero_may_lie_anywhere(far: float) -> None:
    g = torch.Generator().manual_seed(5)
    a = 100 * torch.randn(8, 2, generator=g, **DOUBLE)
    H = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1e-3, 5e-4, 1]], **DOUBLE)
    b = transfer(H, a) + 0.3 * torch.randn(8, 2, generator=g, **DOUBLE)
    weights = (torch.arange(8) < 7).double()
    alone = homography(a[:7], b[:7])
    for one, other in ((a.index_fill(0, torch.tensor([7]), far), b), (a, b.index_fill(0, torch.tensor([7]), far))):
        found = homography(one, other, weights)
        assert found.converged
        close(found.x, alone.x, 1e-9)
        close(found.cost, alone.cost, 1e-9)
