"""Whether the parts of a `Problem` fit each other and what it is given, by one instance of a batch.

What does not fit would end as some error of torch's from within the batch, or as a wrong answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor

from geometry.optim.captured import wrapped
from geometry.optim.problem import Problem, argument, batch_data, map_state, zero_step
from geometry.optim.solution import State
from geometry.robust import RobustKernel, applied

__all__ = ["check_addition", "checked", "copies", "explained", "started", "unchanged", "versions"]

_STEP = 1e-2
"""The step that a retraction is tried with: not zero, as some return x there without a look."""


def check_addition(problem: Problem, x: Any, name: str) -> None:
    """Raise ValueError where x + step would be no step of `dof` numbers, but broadcast. No operation, no wait."""
    if problem.retract is not Problem.retract:
        return
    if isinstance(x, Tensor) and x.ndim < 2:
        raise _unbatched(name, x)
    if not isinstance(x, Tensor) or x.ndim != 2:
        found = [shape[1:] for shape in _shapes(x)] if _is_state(x) else type(x).__name__
        raise ValueError(f"retract must be given unless x is a vector, which x + step moves, got x of {found}")
    if x.shape[1] != problem.dof:
        raise ValueError(f"dof must be the length of x, {x.shape[1]}, where x + step moves it, got {problem.dof}")


def started(problem: Problem, start: Callable[..., State], data: tuple[Tensor, ...]) -> State:
    """The batch of starts that a function makes of the data; ValueError where they are none of this problem."""
    name, before = "x0(*data)", versions(data)
    x = start(*data)
    unchanged("x0", start, data, before)
    parts = {name: x} if isinstance(x, Tensor) else {f"{name}[{i}]": a for i, a in enumerate(x)} if _is_state(x) else {}
    for part, value in parts.items():
        if isinstance(value, Tensor) and value.ndim and len(value) not in (1, len(data[0])):
            if problem.retract is Problem.retract and value.ndim == 1:
                raise _unbatched(part, value)
            raise ValueError(f"{part} must have leading size 1 or {len(data[0])} (the batch), got {tuple(value.shape)}")
    check_addition(problem, x, name)
    return batch_data(x, data, name)[0]


@contextmanager
def checked(problem: Problem, x: State, data: tuple[Tensor, ...], name: str = "x") -> Iterator[None]:
    """Raise ValueError where `dof`, `retract`, `residual` and `kernel` do not fit each other, x and the data, by the
    first instance of the batch; errors within say in which of them they were raised.

    A problem that brings its own normal equations is trusted. name: of x, in messages.
    """
    check_addition(problem, x, name)
    with explained(residual=problem.residual, retract=problem.retract, kernel=problem.kernel):
        tensors = (*((x,) if isinstance(x, Tensor) else x), *data)
        if problem.linearize is None and all(map(len, tensors)) and not any(map(wrapped, tensors)):
            with torch.inference_mode(False), torch.no_grad():
                _check_instance(problem, x, data, name)
        yield


def _check_instance(problem: Problem, x: State, data: tuple[Tensor, ...], name: str) -> None:
    one, given = map_state(lambda a: a[0].clone(), x), copies(data)
    shapes = _shapes(one)
    if problem.retract is not Problem.retract:
        _check_retract(problem, x, name)
    before = versions((one, *given))
    r = problem.residual(one, *given)
    unchanged("residual", problem.residual, (one, *given), before)
    if not isinstance(r, Tensor) or r.ndim not in (1, 2):
        found = tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__
        raise ValueError(
            f"residual must return shape (M,) or (M,k), a row for each observation, got {found} "
            f"of x {shapes} and data {_shapes(given)}"
        )
    if problem.kernel is not None and not isinstance(problem.kernel, RobustKernel):
        s = r.square().sum(-1) if r.ndim == 2 else r.square()
        before = versions((s,))
        applied(problem.kernel, s)
        unchanged("kernel", problem.kernel, (s,), before)


def _check_retract(problem: Problem, x: State, name: str) -> None:
    one = map_state(lambda a: a[0].clone(), x)
    shapes, zero = _shapes(one), zero_step(problem, x)[0]
    step = zero + _STEP
    before = versions((one, step))
    try:
        there = problem.retract(one, step)
    except (IndexError, RuntimeError, ValueError) as error:
        if isinstance(x, Tensor) and _moves(problem, x, zero):
            raise _unbatched(name, x) from None
        raise ValueError(
            f"retract must move x of {shapes} by a step of shape ({problem.dof},), as dof says, got {error}"
        ) from error
    unchanged("retract", problem.retract, (one, step), before)
    if not _is_state(there) or _shapes(there) != shapes:
        found = _shapes(there) if _is_state(there) else type(there).__name__
        raise ValueError(f"retract must return the shapes of x, {shapes}, got {found}")
    # from where it has led: a start need not lie on the manifold that it moves along
    again = problem.retract(map_state(torch.clone, there), zero)
    for a, b in zip(_parts(there), _parts(again), strict=True):
        moved, size = ((b - a).abs().amax(), a.abs().amax()) if a.numel() else (zero.sum(), zero.sum())
        if moved > torch.finfo(a.dtype).eps ** 0.5 * size:
            raise ValueError(
                f"retract must leave x where it is at a step of zeros, got one that moves numbers of {size.item():.3g} "
                f"by {moved.item():.3g}"
            )


def _moves(problem: Problem, x: Tensor, step: Tensor) -> bool:
    """Whether retract takes x as a whole for one instance."""
    try:
        moved = problem.retract(x.clone(), step)
    except Exception:
        return False
    return isinstance(moved, Tensor) and moved.shape == x.shape


@contextmanager
def explained(**functions: Any) -> Iterator[None]:
    """A note on errors raised inside one of the functions: torch says nothing of why it looks at them so closely."""
    try:
        yield
    except Exception as error:
        reached = {frame.f_code for frame, _ in walk_tb(error.__traceback__)}
        for name, function in functions.items():
            if _code(function) in reached and hasattr(error, "add_note"):  # Python 3.10 has no notes
                error.add_note(
                    f"raised inside {name}, which is written for one instance and batched by torch.func.vmap: "
                    "see docs/troubleshooting.md"
                )
        raise


def _code(function: Any) -> Any:
    """The code of a function, a method or of what is called as one; None where Python has none of it."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, torch.nn.Module):
        function = function.forward
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)


def copies(data: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first instance of each of the data, not in their memory."""
    return tuple(d[0].clone() for d in data)


def unchanged(name: str, function: Any, arguments: tuple[State, ...], before: list[int]) -> None:
    """Raise ValueError where a function has written into its arguments since `versions` counted."""
    for i, (a, b) in enumerate(zip(before, versions(arguments), strict=True)):
        if a != b:
            raise ValueError(
                f"{name} must not change its arguments in place (t = t - c in place of t -= c), "
                f"got one that writes into {argument(function, i) or f'argument {i}'}"
            )


def versions(arguments: tuple[State, ...]) -> list[int]:
    """How often each of the arguments has been written to, as far as torch counts it."""
    return [sum(0 if part.is_inference() else part._version for part in _parts(a)) for a in arguments]


def _unbatched(name: str, x: Tensor) -> ValueError:
    return ValueError(f"{name} must have a leading batch dimension, got shape {tuple(x.shape)}: {name}[None]")


def _is_state(x: Any) -> bool:
    return isinstance(x, Tensor) or (isinstance(x, (tuple, list)) and all(isinstance(part, Tensor) for part in x))


def _parts(x: State) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def _shapes(x: State) -> list[tuple[int, ...]]:
    return [tuple(part.shape) for part in _parts(x)]
