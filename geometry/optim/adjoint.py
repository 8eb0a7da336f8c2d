"""Minima as differentiable functions of the data: `argmin`, by the implicit gradient of `geometry.optim.transforms`."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from geometry.checks import boolean, one_of
from geometry.optim.captured import constant
from geometry.optim.descent import levenberg_marquardt, minimize, search
from geometry.optim.instance import check_addition, checked
from geometry.optim.linear import ADJOINT, solve_spd
from geometry.optim.problem import (
    Problem,
    Program,
    batch_data,
    check_program,
    exact_hessian,
    linearize,
    map_state,
    move,
    select,
    singular_below,
    zero_step,
)
from geometry.optim.solution import Solution, State
from geometry.optim.transforms import Batch, Find, implicit

__all__ = ["Gradient", "argmin", "attach_gradient"]

Gradient = Literal["exact", "gauss_newton", "unrolled"]


@dataclass(frozen=True)
class _Minimum:
    """`Equation` of a minimum of `problem`: the gradient of the cost by a tangent step vanishes.

    find: of tensors of which the data are all but the `first`. exact: the Hessian, or J^T J in its place. least: the
    part of the margin of `geometry.optim.linear` below which there is no gradient.
    """

    problem: Problem
    find: Find
    first: int
    exact: bool
    least: float = ADJOINT
    batch: ClassVar[Batch] = "each"

    def step(self, x: State) -> Tensor:
        return zero_step(self.problem, x)

    def retract(self, x: State, step: Tensor) -> State:
        return move(self.problem, x, step)

    def slope(self, x: State, *tensors: Tensor) -> Tensor:
        data = tensors[self.first :]
        if self.problem.linearize is not None:
            return self.problem.linearize(x, *data).gradient

        def single(x: State, step: Tensor, *data: Tensor) -> Tensor:
            return grad(lambda step: self.problem.cost(self.problem.retract(x, step), *data))(step)

        return vmap(single)(x, self.step(x), *data)

    def solve(self, x: State, tensors: tuple[Tensor, ...], b: Tensor) -> tuple[Tensor, Tensor]:
        data = tensors[self.first :]
        H = exact_hessian(self.problem, x, data) if self.exact else linearize(self.problem, x, data).gauss_newton
        return solve_spd(H, b, self.least * singular_below(self.problem, x, data))


def attach_gradient(
    problem: Problem,
    x: State,
    *data: Tensor,
    ok: Tensor | None = None,
    gradient: Literal["exact", "gauss_newton"] = "exact",
) -> State:
    """Make a minimiser x of `problem` differentiable in every tensor of `data`; its value does not change.

    x is taken to be stationary, a minimum in the data as they are given: no check of it is made, and of another x the
    gradient means nothing. ok (B,) bool, as `Solution.converged`, marks the problems that may be trusted; the others
    get a gradient of zero, as do those whose Hessian is singular (`geometry.optim.linear`). gradient="gauss_newton"
    replaces the exact Hessian by J^T J, which is wrong by the curvature of the residual (0.2 % at 1 px of noise for PnP
    with 12 points, 2 % at 10 px).

    >>> b = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
    >>> found_elsewhere = torch.tensor([[3.0]])
    >>> mean = attach_gradient(Problem(lambda x, b: x - b, dof=1), found_elsewhere, b)
    >>> torch.autograd.grad(mean.sum(), b)[0].round(decimals=6)
    tensor([[0.3333, 0.3333, 0.3333]])
    """
    one_of("gradient", gradient, ("exact", "gauss_newton"))
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a Problem, got {type(problem).__name__}")
    _constant(problem)
    if isinstance(x, Tensor):
        check_addition(problem, x, "x")
    x, data = batch_data(x, data, "x", problem.residual)
    x = map_state(lambda a: a.detach(), x)
    if len(data[0]) == 0:
        return _of_nothing(x, data)
    parts = (x,) if isinstance(x, Tensor) else tuple(x)
    if ok is not None:
        boolean("ok", ok)
        if ok.shape != (len(data[0]),):
            raise ValueError(f"ok must have shape ({len(data[0])},), got {tuple(ok.shape)}")
    trusted = torch.ones(len(data[0]), dtype=torch.bool, device=data[0].device) if ok is None else ok

    first, single = 1 + len(parts), isinstance(x, Tensor)

    def given(*tensors: Tensor) -> tuple[State, tuple[Tensor, ...]]:
        x = tensors[1] if single else tensors[1:first]
        with checked(problem, x, tensors[first:]):
            return x, (tensors[0].clone(),)

    equation = _Minimum(problem, given, first, gradient == "exact", 1.0 if ok is None else ADJOINT)
    return implicit(equation, trusted, *parts, *data)[0]


def _constant(problem: Problem) -> None:
    """Raise ValueError where the problem has a tensor that wants a gradient and is no datum."""
    constant(
        residual=problem.residual, kernel=problem.kernel, retract=problem.retract, linearize=problem.linearize,
        jacobian=problem.jacobian,
    )  # fmt: skip


def _of_nothing(x: State, data: tuple[Tensor, ...]) -> State:
    """The x of an empty batch, which belongs to the graph of its data: vmap cannot map over nothing."""
    return map_state(lambda a: a + sum(d.sum() for d in data if d.requires_grad), x)


def argmin(
    problem: Problem | Program,
    x0: State,
    *data: Any,
    gradient: Gradient = "exact",
    max_steps: int = 50,
    polish: int = 2,
    throw: bool = False,
) -> Solution:
    """`minimize`, with x differentiable in every tensor of `data`.

    gradient: "exact" (implicit function theorem with the exact Hessian), "gauss_newton" (the same with J^T J), or
    "unrolled" (autograd through every accepted Levenberg-Marquardt step from x0; memory grows with the steps,
    and the result is as exact as the solver is converged). A problem that failed has gradient zero. x0 itself gets
    no gradient from the implicit routes: a local minimum does not depend on where the search began.
    A `Program` (`geometry.optim.quadratic`, `geometry.optim.constrained`) brings its own adjoint and knows its own
    `gradient`s.
    Raises ValueError, but for "unrolled", where the residual or kernel uses a tensor from around it that requires a
    gradient: it is a constant to the minimum, as only data are not.

    >>> b = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
    >>> mean = argmin(Problem(lambda x, b: x - b, dof=1), torch.zeros(1, 1), b).x
    >>> torch.autograd.grad(mean.sum(), b)[0].round(decimals=6)
    tensor([[0.3333, 0.3333, 0.3333]])
    """
    one_of("gradient", gradient, ("exact", "gauss_newton", "unrolled"))
    if not isinstance(problem, Problem):
        check_program(problem)
        found = problem.argmin(x0, *data, gradient=gradient, max_steps=max_steps, polish=polish)
        if throw:
            found.raise_if_failed()
        return found
    if gradient == "unrolled":
        return _unrolled(problem, x0, data, max_steps, polish, throw)
    _constant(problem)
    minimum, tensors = search(problem, x0, data, max_steps, polish)
    if len(tensors[-1]) == 0:
        solution = minimize(problem, x0, *data)
        return replace(solution, x=_of_nothing(solution.x, tensors))
    equation = _Minimum(problem, minimum.find, minimum.first, gradient == "exact")
    x, (_, cost, status, steps) = implicit(equation, *tensors)
    solution = Solution(x, cost, status, steps)
    if throw:
        solution.raise_if_failed()
    return solution


def _unrolled(
    problem: Problem, x0: State, data: tuple[Tensor, ...], max_steps: int, polish: int, throw: bool
) -> Solution:
    """`argmin` by autograd through the steps."""
    solution = minimize(problem, x0, *data, max_steps=max_steps, polish=polish, throw=throw)
    _, batched = batch_data(solution.x, data)
    if len(solution.cost) == 0:
        return replace(solution, x=_of_nothing(solution.x, batched))
    x0 = x0(*(d.detach() for d in batched)) if callable(x0) else batch_data(x0, data)[0]
    # cut failed problems off the data: their steps may have derivatives that are not finite
    batched = stop_gradient_where(~solution.converged, batched)
    x, _, _ = levenberg_marquardt(problem, x0, batched, max_steps)
    # One step more, whatever it gains: a start at the minimum takes none, and would leave x without a gradient.
    lin = linearize(problem, x, batched)
    step, _ = solve_spd(lin.gauss_newton, -lin.gradient, ADJOINT * singular_below(problem, x, batched))
    x = move(problem, x, torch.where(solution.converged[:, None], step, torch.zeros_like(step)))
    # The steps end near the minimum; what is returned is the minimum, as the status says.
    x = map_state(lambda a, b: a + (b - a).detach(), x, solution.x)
    return replace(solution, x=stop_gradient_where(~solution.converged, x))


def stop_gradient_where(condition: Tensor, x: State) -> State:
    return select(condition, map_state(torch.Tensor.detach, x), x)
