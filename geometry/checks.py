"""Checks that every solver makes of its arguments."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["ONE_PROBLEM", "batched", "breaks_graphs", "finite", "plainly", "refuse_captured", "untransformed"]

P = ParamSpec("P")
T = TypeVar("T")


ONE_PROBLEM = "this is one problem and knows no batch: call it in a loop, not torch.func.vmap"
"""What a solver of one problem says to torch.func.vmap."""


class _Plainly(torch.autograd.Function):
    """Runs on plain values, whatever wraps them: torch.func.vmap refuses to branch on its own."""

    @staticmethod
    def forward(run: Callable[..., None], batched: bool, *values: Tensor) -> Tensor:
        run(*values)
        return torch.empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, run: Callable[..., None], batched: bool, *values: Tensor) -> tuple[Tensor, None]:
        if not batched:
            raise NotImplementedError(ONE_PROBLEM)
        return _Plainly.apply(run, batched, *values), None


def breaks_graphs(f: Callable[P, T]) -> Callable[P, T]:
    """f, which graphs of torch.compile do not look into, as it branches on values."""

    @wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return (torch._dynamo.disable(f) if torch.compiler.is_compiling() else f)(*args, **kwargs)

    return call


def untransformed() -> bool:
    """Whether tensors are what they seem: neither a transform of torch.func nor a level of dual numbers is open."""
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def refuse_captured(what: Any) -> None:
    """Raise NotImplementedError if a function, or an object that holds some, has a tensor that a transform has wrapped.

    Solvers run outside of all transforms. What a residual is to be differentiated in, or mapped over, has to come as
    data: taken from around the residual it would be a constant to one transform, and nonsense to another.
    """
    seen: set[int] = set()

    def visit(it: Any, depth: int) -> None:
        if depth > 8 or id(it) in seen or it is None or isinstance(it, (str, bytes, int, float, type, ModuleType)):
            return
        seen.add(id(it))
        if isinstance(it, Tensor):
            if torch._C._functorch.is_functorch_wrapped_tensor(it) or forward_ad.unpack_dual(it).tangent is not None:
                raise NotImplementedError(
                    "a residual, a kernel or a start uses a tensor from around it that a transform of torch follows: "
                    "give it as data, and to a kernel as a number"
                )
            return
        parts: list[Any] = []
        if isinstance(it, dict):
            parts = [*it.values()]
        elif isinstance(it, (tuple, list)):
            parts = [*it]
        elif isinstance(it, partial):
            parts = [it.func, *it.args, *it.keywords.values()]
        elif isinstance(it, MethodType):
            parts = [it.__self__, it.__func__]
        elif isinstance(it, FunctionType):
            cells = [c for c in it.__closure__ or () if c != CellType()]
            parts = [*(c.cell_contents for c in cells), *(it.__defaults__ or ())]
        elif is_dataclass(it):
            parts = [getattr(it, f.name) for f in fields(it)]
        for part in parts:
            visit(part, depth + 1)

    visit(what, 0)


@breaks_graphs
def plainly(run: Callable[..., T], *values: Tensor, batched: bool = True) -> T:
    """What `run` returns of the plain values of tensors, whatever transform wraps them; it may branch, and raise.

    batched: under torch.func.vmap `run` is given the values of all instances at once; else NotImplementedError is
    raised. What it returns belongs to no graph.
    """
    if untransformed():
        return run(*(value.detach() for value in values))
    found: list[T] = []
    _Plainly.apply(lambda *plain: found.append(run(*plain)), batched, *(value.detach() for value in values))
    return found[0]


def finite(name: str, value: Tensor, where: str = "") -> None:
    """Raise ValueError naming the argument unless all values are finite; `where` says which of them are meant."""

    def look(value: Tensor) -> None:
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite{where}, got NaN or infinity")

    plainly(look, value)


def batched(least: int = 1, /, **arguments: tuple[Tensor | None, str]) -> tuple[Tensor, ...]:
    """The arguments as (B,…) each, in order.

    Each is a value and the shape of one instance, such as "N,2" or "V,3,3": letters stand for sizes that must agree.
    What was given for one instance, or with B = 1, serves the whole batch; weights may be None, and are ones then.
    Raises ValueError naming the argument for another shape, for N less than `least`, for a dtype that is not
    floating-point or not that of the first, and for values that are not finite.
    """
    sizes: dict[str, int] = {}
    found: list[Tensor] = []
    first, _ = next(iter(arguments.values()))
    assert first is not None
    for name, (value, shape) in arguments.items():
        wanted, known = shape.split(","), dict(sizes)  # by the arguments before
        if value is None:
            value = first.new_ones([sizes.get(size) or int(size) for size in wanted])
        single = value.ndim == len(wanted)
        fits = single or value.ndim == len(wanted) + 1
        for size, actual in zip(["B", *wanted][single:], value.shape, strict=False):
            if size == "B" and actual == 1:
                continue
            fits &= actual == (int(size) if size.isdigit() else sizes.setdefault(size, actual))
        if not fits:
            one = ",".join(str(known.get(size, size)) for size in wanted)
            raise ValueError(
                f"{name} must have shape ({one}) or ({known.get('B', 'B')},{one}), got {tuple(value.shape)}"
            )
        if sizes.get("N", least) < least:
            raise ValueError(f"{name} must have at least {least} rows, got {tuple(value.shape)}")
        if not value.is_floating_point() or value.dtype != first.dtype:
            raise ValueError(
                f"{name} must have a floating-point dtype, all the same ({first.dtype}), got {value.dtype}"
            )
        finite(name, value)
        found.append(value[None] if single else value)
    return tuple(value.expand(sizes.get("B", 1), *value.shape[1:]) for value in found)
