"""Tensors that a residual or a kernel takes from around it instead of as data, of which no derivative is taken."""

import dis
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from geometry.checks import breaks_graphs

__all__ = ["constant", "refuse_captured", "wrapped"]


def refuse_captured(what: Any) -> None:
    """Raise NotImplementedError if a function, or an object that holds some, has a tensor that a transform has wrapped.

    Solvers run outside of all transforms. What a residual is to be differentiated in, or mapped over, has to come as
    data: taken from around the residual it would be a constant to one transform, and nonsense to another.
    """
    for _, tensor in _held(what):
        if _followed(tensor):
            raise NotImplementedError(
                "a residual, a kernel or a start uses a tensor from around it that a transform of torch follows: "
                "give it as data, and to a kernel as a number"
            )


@breaks_graphs
def constant(**functions: Any) -> None:
    """Raise ValueError where a function uses a tensor from around it that requires a gradient, which it would not get.

    The gradient of a minimum is taken in its data; what a residual or a kernel has beside them is a constant to it.
    """
    if not torch.is_grad_enabled():
        return
    for name, function in functions.items():
        for place, tensor in _held(function):
            if tensor.requires_grad and not _followed(tensor):  # of those `refuse_captured` speaks
                raise ValueError(
                    f"{name} must not use a tensor from around it that requires a gradient, as the gradient reaches "
                    f"data alone: give it as data (a kernel's scale: `geometry.robust`) or detach it, got {place!r}"
                )


def wrapped(tensor: Tensor) -> bool:
    """Whether a transform of torch.func has wrapped the tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _followed(tensor: Tensor) -> bool:
    """Whether a transform of torch has wrapped the tensor, or made it a dual number."""
    return wrapped(tensor) or forward_ad.unpack_dual(tensor).tangent is not None


def _held(what: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a function, or an object that holds some, uses beside its arguments, and their names."""
    seen: set[int] = set()

    def visit(name: str, it: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
        if depth > 8 or id(it) in seen or it is None or isinstance(it, (str, bytes, int, float, type, ModuleType)):
            return
        seen.add(id(it))
        if isinstance(it, Tensor):
            yield name, it
            return
        parts: Iterable[tuple[str, Any]] = ()
        if isinstance(it, dict):
            parts = ((f"{name}[{key!r}]", value) for key, value in it.items())
        elif isinstance(it, (tuple, list)):
            parts = ((f"{name}[{i}]", value) for i, value in enumerate(it))
        elif isinstance(it, partial):
            parts = [(name, it.func), (name, it.args), *it.keywords.items()]
        elif isinstance(it, MethodType):
            parts = [(name, it.__self__), (name, it.__func__)]
        elif isinstance(it, FunctionType):
            parts = _around(it)
        elif isinstance(it, torch.nn.Module):
            parts = [*it.named_parameters(), *it.named_buffers()]
        elif is_dataclass(it):
            parts = ((f.name, getattr(it, f.name)) for f in fields(it))
        elif hasattr(it, "__dict__"):
            parts = [(key, value) for key, value in vars(it).items() if isinstance(value, (Tensor, torch.nn.Module))]
        for part, value in parts:
            yield from visit(part, value, depth + 1)

    yield from visit("", what, 0)


def _around(f: FunctionType) -> list[tuple[str, Any]]:
    """What a function has but its arguments: of what encloses it, its defaults, and what it names of its module."""
    cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
    parts = [(name, cell.cell_contents) for name, cell in cells if cell != CellType()]
    parts += [("a default", value) for value in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values())]
    if f.__module__ and f.__module__.partition(".")[0] not in ("torch", "geometry"):
        for name in _named(f.__code__):
            value = f.__globals__.get(name)
            here = isinstance(value, FunctionType) and value.__module__ == f.__module__
            if here or isinstance(value, (Tensor, torch.nn.Module)):
                parts.append((name, value))
    return parts


@lru_cache(maxsize=256)
def _named(code: CodeType) -> tuple[str, ...]:
    """The names of its module that code reads, that of the functions in it as well."""
    inner = (one for part in code.co_consts if isinstance(part, CodeType) for one in _named(part))
    return (*(step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"), *inner)
