"""A `Problem` whose parts do not fit each other is told which of them it is, by whoever solves it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from geometry import Problem, argmin, huber, minimize, se3
from tests.numbers import DOUBLE, normal

POSES = torch.eye(4, **DOUBLE).expand(2, 4, 4)
X = torch.zeros(2, 3, **DOUBLE)
Y = normal(2, 3)


def difference(x: Tensor, y: Tensor) -> Tensor:
    return x - y


WRONG: list[tuple[Problem, Any, Any, str]] = [
    (Problem(difference, dof=1), X, Y, "dof must be the length of x, 3, where x [+] step moves it, got 1"),
    (Problem(difference, dof=2), X, Y, "dof must be the length of x, 3, where x [+] step moves it, got 2"),
    (Problem(difference, dof=16), POSES, POSES, r"retract must be given .* got x of \[\(4, 4\)\]"),
    (
        Problem(lambda x, y: x[0] - y, dof=3), (X, X), Y,
        r"retract must be given unless x is a vector.* got x of \[\(3,\), \(3,\)\]",
    ),
    (
        Problem(lambda T, y: T[:3, 3] - y, dof=4, retract=se3.retract), POSES, Y,
        r"retract must move x of \[\(4, 4\)\] by a step of shape \(4,\), as dof says, got step must have shape",
    ),
    (
        Problem(difference, dof=2, retract=lambda x, step: x + step), X, Y,
        r"retract must move x of \[\(3,\)\] by a step of shape \(2,\), as dof says, got The size of tensor",
    ),
    (
        Problem(difference, dof=3, retract=lambda x, step: x[:2] + step[:2]), X, Y,
        r"retract must return the shapes of x, \[\(3,\)\], got \[\(2,\)\]",
    ),
    (
        Problem(lambda x, y: (x - y).square().sum(), dof=3), X, Y,
        r"residual must return shape \(M,\) or \(M,k\), a row for each observation, got \(\)",
    ),
    (Problem(lambda x, y: (x - y)[None, None], dof=3), X, Y, r"residual must return .* got \(1, 1, 3\)"),
    (Problem(lambda x, y: (x - y,), dof=3), X, Y, "residual must return .* got tuple"),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "x0", "y", "said"), WRONG)
def test_what_does_not_fit_is_named(problem: Problem, x0: Any, y: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        minimize(problem, x0, y)
    with pytest.raises(ValueError, match=f"^{said}"):
        minimize(problem, lambda y: x0, y)
    for gradient in ("exact", "gauss_newton", "unrolled"):
        with pytest.raises(ValueError, match=f"^{said}"):
            argmin(problem, x0, y, gradient=gradient)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{said}"):
        vmap(lambda y: minimize(problem, x0, y).cost)(y.expand(3, *y.shape))


def test_a_solution_is_printed_with_the_names_of_its_statuses() -> None:
    logarithm = Problem(lambda x, y: torch.log(x) - y, dof=1)
    starts = torch.tensor([[2.0], [-1.0], [1.0]], **DOUBLE)

    def solve(y: Tensor) -> Tensor:
        solution = minimize(logarithm, starts, y)
        said.append(str(solution))
        return solution.cost

    said: list[str] = []
    expected = (
        "Solution of {} problems\n{} CONVERGED: converged to a strict local minimum\n{} INFEASIBLE: no finite cost"
        " at the start; for a camera: a point lies behind it; or contrary constraints"
    )
    solve(Y[:1, :1])
    vmap(solve)(Y[:, None, :1])
    assert said == [expected.format(3, 2, 1), expected.format(6, 4, 2)]


def test_an_error_of_the_residual_itself_comes_as_it_is() -> None:
    def residual(x: Tensor, y: Tensor) -> Tensor:
        raise KeyError("a mistake of its own")

    with pytest.raises(KeyError, match="a mistake of its own"):
        minimize(Problem(residual, dof=3), X, Y)


def test_what_fits_is_solved() -> None:
    """Of one number, of rows, of a tuple, of a pose: x + step is only for vectors."""
    for problem, x0, y in (
        (Problem(difference, dof=1), X[:, :1], Y[:, :1]),
        (Problem(lambda x, y: (x - y)[:, None], dof=3, kernel=huber(9.0)), X, Y),
        (Problem(lambda x, y: x[0] - y, dof=3, retract=lambda x, s: (x[0] + s, x[1])), (X, X), Y),
        (Problem(lambda T, y: se3.transform(T, torch.eye(3, **DOUBLE)) - y, dof=6, retract=se3.retract), POSES, Y),
    ):
        assert (minimize(problem, x0, y).steps > 0).all()
