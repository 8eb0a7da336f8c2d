"""Checks that every solver makes of its arguments."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["batched", "finite", "on_values"]


class _Look(torch.autograd.Function):
    """Looks at plain values, whatever wraps them: torch.func.vmap refuses to branch on its own."""

    @staticmethod
    def forward(look: Callable[[Tensor], None], value: Tensor) -> Tensor:
        look(value)
        return torch.empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, look: Callable[[Tensor], None], value: Tensor) -> tuple[Tensor, None]:
        return _Look.apply(look, value), None


def on_values(look: Callable[[Tensor], None], value: Tensor) -> None:
    """Call `look` with the plain values of a tensor, of all instances at once under torch.func.vmap; it may raise."""
    _Look.apply(look, value.detach())


def finite(name: str, value: Tensor, where: str = "") -> None:
    """Raise ValueError naming the argument unless all values are finite; `where` says which of them are meant."""

    def look(value: Tensor) -> None:
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite{where}, got NaN or infinity")

    on_values(look, value)


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
