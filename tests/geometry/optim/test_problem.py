"""A `Problem` whose parts do not fit each other is told which of them it is, by whoever solves it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from geometry import Problem, argmin, attach_gradient, covariance, huber, minimize, se3
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
        Problem(lambda R, y: R[0] - y, dof=6, retract=se3.retract), torch.eye(3, **DOUBLE).expand(2, 3, 3), Y,
        r"retract must move x of \[\(3, 3\)\] .* got pose must have shape \(…,4,4\), got \(3, 3\)",
    ),
    (
        Problem(difference, dof=3, retract=lambda x, step: 0.9 * x + step), X, Y,
        "retract must leave x where it is at a step of zeros, got one that moves",
    ),
    (Problem(difference, dof=3, kernel=lambda s: s.sum()), X, Y, r"kernel must return .* \(3,\), got \(\)"),
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
    with pytest.raises(ValueError, match=f"^{said.replace('x0', 'x')}"):
        covariance(problem, x0, y)
    with pytest.raises(ValueError, match=f"^{said}"):
        vmap(lambda y: minimize(problem, x0, y).cost)(y.expand(3, *y.shape))


WRITES: list[tuple[str, dict[str, Any], str]] = [
    ("residual", {"residual": lambda x, y: y.sub_(y.mean()) - x}, "y"),
    ("residual", {"residual": lambda x, y: x.mul_(2) - y}, "x"),
    ("retract", {"retract": lambda x, step: x.add_(step)}, "x"),
    ("kernel", {"kernel": lambda s: s.clamp_(max=1)}, "s"),
]


@pytest.mark.parametrize(("name", "part", "argument"), WRITES)
def test_what_writes_into_its_arguments_is_named_and_nothing_is_changed(
    name: str, part: dict[str, Any], argument: str
) -> None:
    x0, y = torch.zeros(2, 3, **DOUBLE), Y + 2
    problem = Problem(**{"residual": difference, "dof": 3, **part})
    for solve in (minimize, argmin, attach_gradient, covariance):
        with pytest.raises(ValueError, match=f"^{name} must not change its arguments in place .* into {argument}$"):
            solve(problem, x0, y)
    assert (x0 == 0).all()
    assert (y == Y + 2).all()


def test_a_start_that_writes_into_the_data_is_named() -> None:
    with pytest.raises(ValueError, match=r"^x0 must not change its arguments in place .* into y$"):
        minimize(Problem(difference, dof=3), lambda y: y.sub_(1.0), Y.clone())


UNBATCHED: list[tuple[Problem, Any, tuple[Any, ...], str]] = [
    (Problem(difference, dof=2), X[0, :2], (Y[:, :2],), r"x0 must have a leading .* got shape \(2,\): x0\[None\]"),
    (
        Problem(lambda T, y: T[:3, 3] - y, dof=6, retract=se3.retract), POSES[0], (Y[:1],),
        r"x0 must have a leading batch dimension, got shape \(4, 4\): x0\[None\]",
    ),
    (
        Problem(difference, dof=3), lambda y: y[0], (Y,),
        r"x0\(\*data\) must have a leading batch dimension, got shape \(3,\): x0\(\*data\)\[None\]",
    ),
    (
        Problem(difference, dof=3), lambda y: y[[0, 0, 0]], (Y,),
        r"x0\(\*data\) must have leading size 1 or 2 \(the batch\), got \(3, 3\)",
    ),
    (
        Problem(difference, dof=3), X, (Y[0],),
        r"data\[0\] must have leading size 1 or 2 \(the batch, as of x0\), got \(3,\): y\[None\] is shared by all",
    ),
    (Problem(difference, dof=3), X, (Y[0, 0],), r"data\[0\] must have .* got \(\): y\[None\]"),
    (Problem(difference, dof=3), X, (2,), r"data\[0\] must be a torch.Tensor, got 2: torch.tensor\(\[2.0\]\)"),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "x0", "data", "said"), UNBATCHED)
def test_a_missing_batch_dimension_is_told(problem: Problem, x0: Any, data: Any, said: str) -> None:
    for solve in (minimize, argmin):
        with pytest.raises(ValueError, match=f"^{said}"):
            solve(problem, x0, *data)


def test_a_start_may_lie_off_the_manifold() -> None:
    def retract(x: Tensor, step: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x + step, dim=0)

    solution = minimize(Problem(lambda x, y: torch.cat([x - y, 0 * x]), dof=3, retract=retract), X + 5, Y)
    assert (solution.x.norm(dim=1) - 1).abs().max() < 1e-12


def test_one_start_made_of_the_data_is_shared() -> None:
    assert minimize(Problem(difference, dof=3), lambda y: y[:1], Y).converged.all()


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
