"""One implicit gradient: solvers as functions that every transform of torch takes.

What a solver finds satisfies an equation, slope(x, data) = 0, in a tangent space at x. Differentiated, with the
Jacobian H of slope by a step of x (Krantz and Parks 2002; BPnP, arXiv 1909.06043, eqs. 8 to 10),

    H u = dL/d step ,    dL/d data = - (d slope / d data)^T u        (vector-Jacobian product)
    H step = - (d slope / d data) ddata                              (Jacobian-vector product)

for symmetric H. Nothing else is asked of the solver: how it found x does not matter. Both products are ordinary
operations of x and data, so that they can be differentiated again wherever `solve` can.

Why a function of torch's own and not the operations of a solver: solvers branch on their values, which no transform
can follow. Here they run on plain tensors, whatever wraps those of the caller: torch.autograd and its forward mode,
torch.func's grad, jacrev, jacfwd, jvp, hessian and vmap, which joins its dimension with the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.func import vjp

from geometry.checks import ONE_PROBLEM, breaks_graphs, untransformed
from geometry.optim.captured import refuse_captured
from geometry.optim.problem import map_state, select
from geometry.optim.solution import State

__all__ = ["Batch", "Equation", "Find", "along", "forward_mode", "implicit", "opaque", "primals", "solved", "transpose"]

Batch = Literal["each", "shared", "none"]
Find = Callable[..., tuple[State, tuple[Tensor, ...]]]
"""find(*tensors): x, and what else was found, beginning with whether x is to be trusted (B,) bool."""


class Equation(Protocol):
    """How x is found from tensors, and what it satisfies.

    first: the number of the first tensor that x is differentiable in; those before, as a start, get no gradient.
    batch: "each": for B problems at once, dimension 0 of every tensor is B; "shared": it is B or 1, for all, and the
    slope of a failed problem is finite; "none": one problem, whose tensors have any shape, and where below B is no
    dimension.
    """

    @property
    def first(self) -> int: ...

    @property
    def batch(self) -> Batch: ...

    def find(self, *tensors: Any) -> tuple[State, tuple[Tensor, ...]]:
        """As `Find` says."""
        ...

    def step(self, x: State, /) -> Tensor:
        """A tangent step of zeros (B,P) at x."""
        ...

    def retract(self, x: State, step: Tensor, /) -> State:
        """x moved by a step; differentiable."""
        ...

    def slope(self, x: State, /, *tensors: Any) -> Tensor:
        """What vanishes at x (B,P); differentiable in the tensors."""
        ...

    def solve(self, x: State, tensors: tuple[Tensor, ...], b: Tensor, /) -> tuple[Tensor, Tensor]:
        """u (B,P) with H u = b, and where H is definite enough to say (B,); u is zero elsewhere."""
        ...


def _in_full(tensors: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """Without autocast: the digits of a minimum are not for sale."""
    device = tensors[0].device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


@breaks_graphs
def implicit(equation: Equation, *tensors: Tensor) -> tuple[State, tuple[Tensor, ...]]:
    """What `equation.find` returns, x with its derivatives in the tensors; of the rest nothing carries any."""
    if untransformed() and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        with torch.no_grad(), _in_full(tensors):
            return equation.find(*tensors)
    refuse_captured(equation)
    parts = _Parts(equation.find, equation.batch)
    with _in_full(tensors):
        found = _Implicit.apply(equation, parts, *tensors)
    return parts.joined(found[: parts.count]), found[parts.count :]


@breaks_graphs
def opaque(find: Find, *tensors: Tensor, batch: Batch = "each") -> tuple[State, tuple[Tensor, ...]]:
    """What find(*tensors) returns, without derivatives, under whatever transform. Dimension 0 is the batch."""
    tensors = tuple(t.detach() for t in tensors)
    if untransformed():
        with torch.no_grad(), _in_full(tensors):
            return find(*tensors)
    refuse_captured(find)
    parts = _Parts(find, batch)
    with _in_full(tensors):
        found = _Opaque.apply(parts, *tensors)
    return parts.joined(found[: parts.count]), found[parts.count :]


class _Parts:
    """A search, and of how many tensors its x consists, which is known once it has been found."""

    def __init__(self, find: Find, batch: Batch) -> None:
        self.search, self.batch, self.count, self.single = find, batch, 0, True

    def find(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        x, others = self.search(*tensors)
        self.single = isinstance(x, Tensor)
        parts = (x,) if isinstance(x, Tensor) else tuple(x)
        self.count = len(parts)
        # a search that takes no step may return its start, which a function of torch must not
        return (*(part.clone() for part in parts), *others)

    def joined(self, parts: Sequence[Tensor]) -> State:
        return parts[0] if self.single else tuple(parts)

    def split(self, saved: Sequence[Tensor]) -> tuple[State, Tensor, tuple[Tensor, ...]]:
        """x, whether it is to be trusted, and the tensors, of what was saved."""
        return self.joined(saved[: self.count]), saved[self.count], tuple(saved[self.count + 1 :])


@contextmanager
def forward_mode() -> Iterator[None]:
    """Forward mode within forward mode.

    Torch turns it off while it asks a function for its derivative, which would silently drop the outer one of two
    nested ones. And torch.func opens torch's one level of dual numbers by itself, unless it is told that it is open.
    """
    opened = forward_ad._current_level >= 0 and eager_transforms.JVP_NESTING == 0
    eager_transforms.JVP_NESTING += opened
    try:
        with forward_ad._set_fwd_grad_enabled(True):
            yield
    finally:
        eager_transforms.JVP_NESTING -= opened


def primals(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors without the tangents that they carry."""
    return [forward_ad.unpack_dual(t).primal for t in tensors]


def _mask(good: Tensor, values: Tensor) -> Tensor:
    """A failed problem contributes exactly nothing, also where its derivatives are not finite."""
    if good.ndim == 1 and len(values) != len(good):  # shared by all
        return values
    zeros = torch.zeros_like(values)
    return torch.where(good, values, zeros) if good.ndim == 0 else select(good, values, zeros)


def transpose(f: Callable[..., Any], *at: State) -> Callable[..., Any]:
    """The transposed derivative of f, a function of covectors."""
    return vjp(f, *at)[1]


def along(f: Callable[..., Any], at: tuple[State, ...], tangents: tuple[State, ...]) -> Any:
    """The derivative of f along tangents, as the transpose of its transpose.

    torch.func.jvp cannot stand in the forward mode of torch.autograd, and not all of torch has a forward mode.
    """
    value, pull = vjp(f, *at)[:2]
    return transpose(pull, map_state(torch.zeros_like, value))(tangents)[0]


def _partial(f: Callable[..., Tensor], tensors: Sequence[Tensor], wanted: Sequence[int]) -> Callable[..., Tensor]:
    """f as a function of some of its tensors, on all of which it depends: nested transforms fail on what is unused."""

    def of_some(*some: Tensor) -> Tensor:
        every = list(tensors)
        for i, t in zip(wanted, some, strict=True):
            every[i] = t
        nothing = sum(torch.where(torch.zeros_like(t, dtype=torch.bool), t, 0.0).sum() for t in some)
        return f(*every) + nothing

    return of_some


def _moved(equation: Equation, x: State) -> Callable[[Tensor], State]:
    """x moved by a step, as new tensors: no transform takes a result that no operation has made."""
    return lambda step: map_state(torch.clone, equation.retract(x, step))


def _without_failed(
    equation: Equation, x: State, good: Tensor, tensors: tuple[Tensor, ...]
) -> tuple[State, tuple[Tensor, ...]]:
    """x and the tensors with some problem that did not fail in place of those that did.

    Their derivatives need not be finite, and 0 times NaN in a second one would reach what they share with others.
    """
    if equation.batch == "none" or len(good) == 0:
        return x, tensors
    example = good.long().argmax()[None]

    def replaced(t: Tensor) -> Tensor:
        if not t.is_floating_point() or len(t) != len(good):
            return t
        return select(good, t, t.detach().index_select(0, example))

    return map_state(replaced, x), tuple(replaced(t) for t in tensors)


def _pull(
    equation: Equation, x: State, good: Tensor, tensors: tuple[Tensor, ...], covectors: State, wanted: list[int]
) -> list[Tensor]:
    """The vector-Jacobian product, by those tensors that are wanted."""
    x, tensors = _without_failed(equation, x, good, tensors)
    (tangent,) = transpose(_moved(equation, x), equation.step(x))(covectors)
    u, definite = equation.solve(x, tensors, tangent)
    u = _mask(good & definite, u)  # here for what is shared by all, and below for derivatives that are not finite
    slope = _partial(lambda *every: equation.slope(x, *every), tensors, wanted)
    pull = transpose(slope, *(tensors[i] for i in wanted))
    return [_mask(good & definite, g) for g in pull(-u)]


def _push(
    equation: Equation, x: State, good: Tensor, tensors: tuple[Tensor, ...], tangents: dict[int, Tensor]
) -> State:
    """The Jacobian-vector product, along the tangents of some of the tensors."""
    x, tensors = _without_failed(equation, x, good, tensors)
    slope = _partial(lambda *every: equation.slope(x, *every), tensors, list(tangents))
    change = along(slope, tuple(tensors[i] for i in tangents), tuple(tangents.values()))
    step, definite = equation.solve(x, tensors, -change)
    moved = along(_moved(equation, x), (equation.step(x),), (step,))
    return map_state(lambda part: _mask(good & definite, part), moved)


def _folded(
    info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor], batch: Batch
) -> tuple[list[Tensor], tuple[int, int]]:
    """The tensors with the dimension that vmap adds joined with the batch, and the sizes of the two."""
    if batch == "none":
        raise NotImplementedError(ONE_PROBLEM)
    own = [t if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, in_dims, strict=True)]
    sizes = {len(t) if dim is None else t.shape[1] for t, dim in zip(own, in_dims, strict=True)}
    size = max(sizes - {1}, default=1)
    folded = []
    for t, dim in zip(own, in_dims, strict=True):
        if not (batch == "shared" and dim is None and len(t) == 1):
            t = t.expand(info.batch_size, *t.shape) if dim is None else t
            t = t.expand(-1, size, *t.shape[2:]).flatten(0, 1)
        folded.append(t)
    return folded, (info.batch_size, size)


def _unfolded(sizes: tuple[int, int], found: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return tuple(o.unflatten(0, sizes) for o in found), (0,) * len(found)


class _Opaque(torch.autograd.Function):
    """A function of tensors that no transform looks into; its results are constants to all of them."""

    @staticmethod
    def forward(parts: _Parts, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), forward_mode():
            return parts.find(*primals(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], parts: _Parts, *tensors: Tensor) -> Any:
        folded, sizes = _folded(info, in_dims[1:], tensors, parts.batch)
        return _unfolded(sizes, _Opaque.apply(parts, *folded))


class _Implicit(torch.autograd.Function):
    """x and what else was found, of an equation and its tensors."""

    @staticmethod
    def forward(equation: Equation, parts: _Parts, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), forward_mode():
            return parts.find(*primals(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.equation, ctx.parts, *tensors = inputs
        count = ctx.parts.count
        ctx.others = len(output) - count
        saved = (*output[: count + 1], *tensors)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.mark_non_differentiable(*output[count:])

    @staticmethod
    def backward(ctx: Any, *covectors: Tensor) -> tuple[Tensor | None, ...]:
        parts: _Parts = ctx.parts
        x, good, tensors = parts.split(ctx.saved_tensors)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed and i >= ctx.equation.first]
        gradients: list[Tensor | None] = [None] * len(tensors)
        if wanted:
            with forward_mode():
                found = _pull(ctx.equation, x, good, tensors, parts.joined(covectors[: parts.count]), wanted)
            for i, g in zip(wanted, found, strict=True):
                gradients[i] = g
        return None, None, *gradients

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        # what is saved still carries the tangents that are asked about
        x, good, tensors = ctx.parts.split(primals(ctx.saved_tensors))
        known = {i: t for i, t in enumerate(tangents) if t is not None and i >= ctx.equation.first}
        with forward_mode():
            moved = _push(ctx.equation, x, good, tensors, known)
        return (*((moved,) if isinstance(moved, Tensor) else moved), *(None,) * ctx.others)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], equation: Equation, parts: _Parts, *tensors: Tensor) -> Any:
        folded, sizes = _folded(info, in_dims[2:], tensors, parts.batch)
        return _unfolded(sizes, _Implicit.apply(equation, parts, *folded))


class _Solve(torch.autograd.Function):
    """u = H^-1 b and whether H is definite, by a method that no transform can look into; H is symmetric."""

    @staticmethod
    def forward(solve: Callable[..., tuple[Tensor, Tensor]], b: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), forward_mode():
            return solve(*primals((b, *tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.solve, _, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, covector: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        if any(ctx.needs_input_grad[2:]):
            raise NotImplementedError(_TWICE)
        return None, _Solve.apply(ctx.solve, covector, *ctx.saved_tensors)[0], *(None,) * len(ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: Tensor | None, *others: Tensor | None) -> tuple[Tensor, None]:
        if tangent is None or any(other is not None for other in others):
            raise NotImplementedError(_TWICE)
        return _Solve.apply(ctx.solve, tangent, *primals(ctx.saved_tensors))[0], None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], solve: Any, b: Tensor, *tensors: Tensor) -> Any:
        if in_dims[1] is None or any(dim is not None for dim in in_dims[2:]):
            raise NotImplementedError(_TWICE)
        rest = b.movedim(in_dims[1], -1)
        u, definite = _Solve.apply(solve, rest.flatten(1), *tensors)
        return (u.unflatten(1, rest.shape[1:]), definite), (rest.ndim - 1, None)


_TWICE = "the solver of this problem is differentiable once, not twice"


def solved(solve: Callable[..., tuple[Tensor, Tensor]], b: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """solve(b (P,R), *tensors) -> (u (P,R), definite ()), for one b (P,) under whatever transform of b.

    What would need the derivative of u by the other tensors raises NotImplementedError.
    """
    u, definite = _Solve.apply(solve, b[:, None], *tensors)
    return u[:, 0], definite
