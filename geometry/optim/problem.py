"""One nonlinear least-squares problem, `Problem`, and its cost, Jacobian and Hessian over a batch.

A `Problem` is written for ONE instance; everything here runs B of them at once. Dimension 0 of every tensor of
`x` and of every tensor of `data` is the batch (size 1 is shared by all).
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

from geometry._forward import one_at_a_time
from geometry.checks import check_tensors, function, whole
from geometry.optim.linear import chain_of_blocks, margin
from geometry.optim.solution import Solution, State
from geometry.robust import Kernel, check_kernel, kernel_derivatives

__all__ = ["Problem", "Program", "batch_data"]


def _add(x: State, step: Tensor) -> State:
    return x + step


@dataclass(frozen=True)
class Problem:
    """One nonlinear least-squares problem: minimise half the sum of rho(|r_i|^2) over x.

    residual(x, *data) -> (M,) or (M,k), one row per observation; a non-finite residual marks x as infeasible.
    retract(x, step (dof,)) -> x moves x by a tangent step; x + step by default. dof is the number of unknowns.
    kernel is a robust kernel applied to the rows (`geometry.robust`), None for plain least squares. Raises ValueError
    for what is no function, and a dof that is no positive number.

    A problem that must be fast may bring its own derivatives, batched and without vmap: linearize(x, *data, exact)
    -> Linearization, with the Hessian where `exact`. Automatic differentiation of `residual` stays the reference that
    they are tested against.

    alike: numbers of unknowns, from the first, that have a unit in common: (3,) where a step begins with a rotation
    (`geometry.optim.linear.determined` says what it is for).

    jacobian(x, *data) -> residual (B,M,k) and its derivative (B,M,k,P) by a step, batched: what is made of the rows of
    this problem, as RANSAC's score is, need not differentiate them then.

    terms(*data) -> int: how many numbers one residual has, so that it need not be evaluated to be counted.

    broadcasts: whether retract takes a whole batch (B,…) and steps (B,P) as well, and so needs no vmap.

    >>> line = Problem(lambda x, a, b: x[0] * a + x[1] - b, dof=2)  # one line, by points (a, b)
    >>> a = torch.linspace(0, 1, 5)[None]
    >>> minimize(line, torch.zeros(1, 2), a, 3 * a + 1).x.round(decimals=6)
    tensor([[3., 1.]])
    """

    residual: Callable[..., Tensor]
    dof: int
    retract: Callable[..., State] = _add
    kernel: Kernel | None = None
    linearize: "Callable[..., Linearization] | None" = None
    alike: tuple[int, ...] = ()
    terms: Callable[..., int] | None = None
    broadcasts: bool = False
    jacobian: Callable[..., tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        function("residual", self.residual, optional=False)
        function("retract", self.retract, optional=False)
        check_kernel(self.kernel)
        function("linearize", self.linearize)
        function("jacobian", self.jacobian)
        whole("dof", self.dof, 1)

    def cost(self, x: State, *data: Tensor) -> Tensor:
        """Cost () of one instance."""
        r = self.residual(x, *data)
        s = r.square().sum(-1) if r.ndim == 2 else r.square()
        return 0.5 * (s if self.kernel is None else self.kernel(s)).sum()

    def costs(self, x: State, *data: Tensor) -> Tensor:
        """Costs (B,) of a batch."""
        return vmap(self.cost)(x, *data)


class Linearization(NamedTuple):
    """Cost (B,), gradient (B,P) and Gauss-Newton matrix (B,P,P) at x, with respect to the tangent step; the Hessian
    (B,P,P) where it is asked for."""

    cost: Tensor
    gradient: Tensor
    gauss_newton: Tensor
    hessian: Tensor | None = None


class Program(Protocol):
    """A problem that is not a free sum of squares: it brings the two verbs itself, and they hand over to it."""

    def minimize(self, x0: State, *data: Tensor | None, max_steps: int, polish: int) -> Solution:
        """See `geometry.minimize`."""
        ...

    def argmin(self, x0: State, *data: Tensor | None, gradient: str, max_steps: int, polish: int) -> Solution:
        """See `geometry.argmin`."""
        ...


def check_program(problem: Any) -> None:
    """Raise ValueError unless this is a `Program`."""
    if not (callable(getattr(problem, "minimize", None)) and callable(getattr(problem, "argmin", None))):
        raise ValueError(f"problem must be a Problem or a Program, got {type(problem).__name__}")


def map_state(f: Callable[..., Tensor], *states: State) -> State:
    """Apply f to corresponding tensors of states."""
    if isinstance(states[0], Tensor):
        return f(*states)
    return tuple(f(*tensors) for tensors in zip(*states, strict=True))


def select(condition: Tensor, a: State, b: State) -> State:
    """Per problem, a where condition (B,) holds, else b."""
    return map_state(lambda u, v: torch.where(condition.view(-1, *[1] * (u.ndim - 1)), u, v), a, b)


def argument(function: Any, i: int) -> str | None:
    """What a function calls its argument number i, or None where nobody knows."""
    try:
        parameters = list(signature(function).parameters.values())[: i + 1]
    except (TypeError, ValueError):
        return None
    plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return parameters[i].name if plain and len(parameters) > i else None


def batch_data(
    x: State, data: tuple[Tensor, ...], name: str = "x", residual: Callable[..., Tensor] | None = None
) -> tuple[State, tuple[Tensor, ...]]:
    """x and the data, what is shared (leading size 1) expanded to the batch; ValueError for a leading size that fits
    neither.

    Also for an x (`name`) that is no tensor (B,…) of floating-point numbers nor a tuple of such, and data that are no
    tensors. residual: whose names of the data are said in messages.
    """
    parts = (
        {name: x}
        if isinstance(x, Tensor) or not isinstance(x, (tuple, list))
        else {f"{name}[{i}]": part for i, part in enumerate(x)}
    )
    for i, d in enumerate(data):
        if isinstance(d, (bool, int, float)):
            raise ValueError(f"data[{i}] must be a torch.Tensor, got {d}: torch.tensor([{float(d)}]) is shared by all")
    check_tensors(**parts)
    check_tensors(False, **{f"data[{i}]": d for i, d in enumerate(data)})
    if not parts:
        raise ValueError(f"{name} must hold at least one tensor, got none")
    every = parts | {f"data[{i}]": d for i, d in enumerate(data)}
    like, size = next(((k, len(v)) for k, v in every.items() if v.ndim > 0 and len(v) != 1), ("", 1))
    for i, (part, value) in enumerate(every.items()):
        if value.ndim == 0 or len(value) not in (1, size):
            known = argument(residual, i - len(parts) + 1) if residual and i >= len(parts) else None
            raise ValueError(
                f"{part} must have leading size 1 or {size} (the batch{like and f', as of {like}'}), "
                f"got {tuple(value.shape)}: {known or part}[None] is shared by all"
            )

    def whole_batch(value: Tensor) -> Tensor:
        return value.expand(size, *value.shape[1:])

    return map_state(whole_batch, x), tuple(whole_batch(d) for d in data)


def move(problem: Problem, x: State, step: Tensor) -> State:
    """The batch x, moved by steps (B,P)."""
    return problem.retract(x, step) if problem.broadcasts or problem.retract is _add else vmap(problem.retract)(x, step)


def zero_step(problem: Problem, x: State) -> Tensor:
    """A tangent step of zeros (B,P) for the batch x."""
    first = x if isinstance(x, Tensor) else x[0]
    return first.new_zeros(first.shape[0], problem.dof)


def jacobian(problem: Problem, x: State, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Residual (B,M,k) at x and its derivative (B,M,k,P) by a tangent step: the problem's own, else in forward mode;
    differentiable."""
    if problem.jacobian is not None:
        return problem.jacobian(x, *data)

    def single(x: State, step: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        def moved(step: Tensor) -> tuple[Tensor, Tensor]:
            r = problem.residual(problem.retract(x, step), *data)
            r = r if r.ndim == 2 else r[:, None]
            return r, r

        derivative, r = jacfwd(moved, has_aux=True)(step)
        return r, derivative

    with one_at_a_time():
        return vmap(single)(x, zero_step(problem, x), *data)


def linearize(problem: Problem, x: State, data: tuple[Tensor, ...], exact: bool = False) -> Linearization:
    """Normal equations at x, with the Hessian where `exact`: the problem's own, else by automatic differentiation."""
    if problem.linearize is not None:
        return problem.linearize(x, *data, exact=exact)

    r, J = jacobian(problem, x, data)
    rho, slope, _ = kernel_derivatives(problem.kernel, r.square().sum(-1))
    weighted = slope[..., None] * r
    gradient = torch.einsum("bmk,bmkp->bp", weighted, J)
    weighted_J = (slope[..., None, None] * J).flatten(1, 2)
    H = exact_hessian(problem, x, data) if exact else None
    return Linearization(0.5 * rho.sum(-1), gradient, J.flatten(1, 2).mT @ weighted_J, H)


def exact_hessian(problem: Problem, x: State, data: tuple[Tensor, ...]) -> Tensor:
    """Hessian (B,P,P) of the cost with respect to the step."""
    if problem.linearize is not None:
        H = problem.linearize(x, *data, exact=True).hessian
        assert H is not None
        return H

    def single(x: State, step: Tensor, *data: Tensor) -> Tensor:
        return hessian(lambda s: problem.cost(problem.retract(x, s), *data))(step)

    with one_at_a_time():
        return vmap(single)(x, zero_step(problem, x), *data)


def singular_below(problem: Problem, x: State, data: tuple[Tensor, ...]) -> float:
    """The `margin` of the normal equations and of the Hessian of this problem, by the size of its residual."""
    first = x if isinstance(x, Tensor) else x[0]
    if problem.terms is None:
        terms = vmap(problem.residual)(map_state(lambda a: a[:1], x), *(d[:1] for d in data)).numel()
    else:
        terms = problem.terms(*data)
    return margin(first.dtype, problem.dof, chain_of_blocks(terms))
