"""Checks that every task makes of its arguments."""

from torch import Tensor

__all__ = ["batched"]


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
        if not value.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        found.append(value[None] if single else value)
    return tuple(value.expand(sizes.get("B", 1), *value.shape[1:]) for value in found)
