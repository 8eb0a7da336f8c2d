"""PnP as torch operators: what they promise, their gradients, vmap and torch.compile. How they run is said elsewhere.

Two operators, because the gradient is worth an operator of its own: `solve` finds poses, `adjoint` is its
vector-Jacobian product, whose own derivative (double backward) is left to automatic differentiation of
`geometry.pose.problem`. Operators are opaque to torch.compile, so that a network that contains them is one graph.

On the CPU, where nothing looks on, the functions of `geometry.pose.cpu` are called directly: torch's way to an operator
in Python and back takes longer than the arithmetic.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from geometry.checks import intercepted, untransformed
from geometry.optim import Status, along, attach_gradient, forward_mode, primals, transpose
from geometry.pose import cpu, cuda
from geometry.pose.data import PnPData
from geometry.pose.problem import pnp_problem
from geometry.robust import RobustKernel

__all__ = ["adjoint", "search", "solve"]

_NAMESPACE = "learnable_geometry"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")

# Tensors as in `geometry.pnp`, batched, of one floating dtype, leading size 1 where shared: weights (B|1,N,2), or
# (1,1,1) for ones; mask (B|1,N), or (1,1) for True. model: the lens; robust: the name of a `RobustKernel`, or "none".
_DATA = "Tensor points2d, Tensor points3d, Tensor K, Tensor distortion, Tensor weights, Tensor mask"
_HOW = "str model, str robust, float scale, float alpha"


def _operator(name: str, arguments: str, results: str, on_cpu: Callable[..., Any], on_cuda: Callable[..., Any]) -> Any:
    """A torch operator and what it is on each device, as torch.library.custom_op makes it.

    That one adds ten microseconds to every call, and a second to the first, in which it imports the compiler.
    """
    _LIBRARY.define(f"{name}({arguments}) -> ({results})")
    _LIBRARY.impl(name, on_cpu, "CPU")
    _LIBRARY.impl(name, on_cuda, "CUDA")
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


# Local minima next to init (B|1,4,4): poses (B,4,4), costs (B,), `Status` (B,) int8 and accepted steps (B,) int32.
# fewest: points below which the status is TOO_FEW; exact: which Hessian the gradient is to be taken with.
_solve = _operator(
    "pnp",
    f"{_DATA}, Tensor init, {_HOW}, int max_steps, int fewest, bool exact",
    "Tensor poses, Tensor costs, Tensor statuses, Tensor steps",
    cpu.solve,
    cuda.solve,
)


@torch.library.register_fake(_solve.name())
def _(points2d: Tensor, *_: Any) -> tuple[Tensor, ...]:
    B = points2d.shape[0]
    cost = points2d.new_empty(B)
    return points2d.new_empty(B, 4, 4), cost, cost.new_empty(B, dtype=torch.int8), cost.new_empty(B, dtype=torch.int32)


# The best minimum (B,4,4), the second best (B,4,4), and the ratio (B,) of their costs, of `PoseSolution`.
_search = _operator(
    "pnp_search",
    f"{_DATA}, {_HOW}, int max_steps",
    "Tensor best, Tensor second, Tensor ratio",
    cpu.search,
    cuda.search,
)


@torch.library.register_fake(_search.name())
def _(points2d: Tensor, *_: Any) -> tuple[Tensor, ...]:
    B = points2d.shape[0]
    return points2d.new_empty(B, 4, 4), points2d.new_empty(B, 4, 4), points2d.new_empty(B)


# Gradients of <covectors, poses> by the first five arguments, in their shapes; empty where not wanted.
_adjoint = _operator(
    "pnp_adjoint",
    f"{_DATA}, Tensor poses, Tensor covectors, Tensor statuses, {_HOW}, bool exact, bool[] wanted",
    "Tensor points2d, Tensor points3d, Tensor K, Tensor distortion, Tensor weights",
    cpu.adjoint,
    cuda.adjoint,
)


@torch.library.register_fake(_adjoint.name())
def _(points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, *rest: Any) -> Any:
    data = (points2d, points3d, K, distortion, weights)
    return tuple(d.new_empty(d.shape if want else [0] * d.ndim) for d, want in zip(data, rest[-1], strict=True))


def _save_solve(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *data, _init, ctx.model, ctx.robust, ctx.scale, ctx.alpha, _max_steps, _fewest, ctx.exact = inputs
    ctx.save_for_backward(*data, output[0], output[2])
    ctx.save_for_forward(*data, output[0], output[2])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _solve_backward(ctx: Any, covectors: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if covectors is None:
        return (None,) * 14
    *data, poses, statuses = ctx.saved_tensors
    wanted = [bool(n) for n in ctx.needs_input_grad[:5]]
    how = ctx.model, ctx.robust, ctx.scale, ctx.alpha
    gradients = adjoint(*data, poses, covectors, statuses, *how, ctx.exact, wanted)
    return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), *[None] * 9)


def _solve_jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """The poses' tangent, in tensor operations, which can be differentiated again."""
    *data, mask, poses, statuses = primals(ctx.saved_tensors)
    known = [i for i, tangent in enumerate(tangents[:5]) if tangent is not None]
    with forward_mode():
        pose = _as_tensors(ctx, data, mask, poses, statuses, known)
        moved = along(pose, tuple(data[i] for i in known), tuple(tangents[i] for i in known))
    return moved, None, None, None


def _save_adjoint(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.model, ctx.robust, ctx.scale, ctx.alpha, ctx.exact, ctx.wanted = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _adjoint_backward(ctx: Any, *covectors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Double backward: the same in tensor operations, transposed once more.

    They take the poses for what they are, a function of the data, so that no gradient is left for the poses as such.
    """
    *data, mask, poses, seeds, statuses = ctx.saved_tensors
    wanted = [i for i, want in enumerate(ctx.wanted) if want]
    at = (*(data[i] for i in wanted), seeds)
    with forward_mode():
        adjoint = _adjoint_as_tensors(ctx, data, mask, poses, statuses, wanted)
        given = (covectors[i] for i in wanted)
        whole = tuple(torch.zeros_like(data[i]) if c is None else c for i, c in zip(wanted, given, strict=True))
        *found, of_seeds = transpose(adjoint, *at)(whole)
    gradients: list[Tensor | None] = [None] * 5
    for i, g in zip(wanted, found, strict=True):
        gradients[i] = g
    return (*gradients, None, None, of_seeds, *[None] * 7)


def _adjoint_jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    *data, mask, poses, seeds, statuses = primals(ctx.saved_tensors)
    wanted = [i for i, want in enumerate(ctx.wanted) if want]
    at = (*(data[i] for i in wanted), seeds)
    given = [*(tangents[i] for i in wanted), tangents[7]]
    moving = tuple(torch.zeros_like(a) if t is None else t for a, t in zip(at, given, strict=True))
    with forward_mode():
        moved = along(_adjoint_as_tensors(ctx, data, mask, poses, statuses, wanted), at, moving)
    gradients: list[Tensor | None] = [d.new_zeros([0] * d.ndim) for d in data]
    for i, g in zip(wanted, moved, strict=True):
        gradients[i] = g
    return tuple(gradients)


def _as_tensors(
    ctx: Any, data: Sequence[Tensor], mask: Tensor, poses: Tensor, statuses: Tensor, moving: Sequence[int]
) -> Callable[..., Tensor]:
    """The poses as a function of some of the data, in tensor operations that every transform can follow."""
    kernel = None if ctx.robust == "none" else RobustKernel(ctx.robust, ctx.scale, ctx.alpha)
    problem = pnp_problem(ctx.model, kernel)

    def pose(*some: Tensor) -> Tensor:
        every = list(data)
        for i, d in zip(moving, some, strict=True):
            every[i] = d
        points2d, points3d, K, distortion, weights = every
        centred, frame = PnPData(points2d, points3d, K, distortion, weights, mask).masked().centred()
        how: Literal["exact", "gauss_newton"] = "exact" if ctx.exact else "gauss_newton"
        ok = statuses == Status.CONVERGED
        return frame.from_frame(attach_gradient(problem, frame.to_frame(poses), *centred, ok=ok, gradient=how))

    return pose


def _adjoint_as_tensors(
    ctx: Any, data: Sequence[Tensor], mask: Tensor, poses: Tensor, statuses: Tensor, wanted: Sequence[int]
) -> Callable[..., tuple[Tensor, ...]]:
    """`adjoint` as a function of the data that are wanted, and the covectors."""
    pose = _as_tensors(ctx, data, mask, poses, statuses, wanted)
    return lambda *some: transpose(pose, *some[:-1])(some[-1])


def _fold(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor], batch: int) -> list[Tensor]:
    """Join the dimension that vmap adds with the batch; what is shared by all stays so."""
    folded = []
    for t, dim in zip(tensors, in_dims, strict=True):
        if dim is None and t.shape[0] == 1 and t is not tensors[0]:
            folded.append(t)
            continue
        t = t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        folded.append(t.expand(-1, batch, *t.shape[2:]).flatten(0, 1))
    return folded


def _vmap_rule(operator: Any, tensors: int) -> Callable[..., Any]:
    """The rule of an operator whose first arguments are tensors and whose results have one row a problem."""

    def rule(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = _fold(info, in_dims[:tensors], inputs[:tensors], _batch_size(in_dims[0], inputs[0]))
        out = operator(*folded, *inputs[tensors:])
        return tuple(o.unflatten(0, (info.batch_size, -1)) for o in out), (0,) * len(out)

    return rule


def _adjoint_vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size, batch, wanted = info.batch_size, _batch_size(in_dims[0], inputs[0]), inputs[-1]
    # every instance has a gradient of its own, so nothing stays shared
    tensors = [t[None] if dim is None else t.movedim(dim, 0) for t, dim in zip(inputs[:9], in_dims[:9], strict=True)]
    own = [t.expand(size, batch, *t.shape[2:]).flatten(0, 1) for t in tensors]
    gradients = []
    for g, t, want in zip(adjoint(*own, *inputs[9:]), tensors, wanted, strict=False):
        g = g.unflatten(0, (size, batch)) if want else g.expand(size, *g.shape)
        gradients.append(g.sum(1, keepdim=True) if want and t.shape[1] == 1 else g)
    return tuple(gradients), (0,) * len(gradients)


def _batch_size(dim: int | None, points2d: Tensor) -> int:
    return (points2d if dim is None else points2d.select(dim, 0)).shape[0]


torch.library.register_vmap(_search.name(), _vmap_rule(_search, 6))


def _differentiable(
    operator: Any, on_cpu: Callable[..., Any], tensors: int, **rules: Callable[..., Any]
) -> Callable[..., Any]:
    """Give an operator of so many tensors its gradient and its rule for vmap, and call it in the shortest way.

    Twice, because neither way serves all: torch.func does not take the autograd of an operator, and torch.compile
    would look into an autograd.Function. Without a derivative to record the operator is called itself, which is faster.
    """
    torch.library.register_autograd(operator.name(), rules["backward"], setup_context=rules["setup_context"])
    torch.library.register_vmap(operator.name(), rules["vmap"])

    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return (operator if intercepted(inputs[:tensors]) else on_cpu)(*inputs)

    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # torch asks for it at every call
    members = {name: staticmethod(f) for name, f in {"forward": forward, **rules}.items()}
    function: Any = type("Function", (torch.autograd.Function,), members)
    # what is left of `function.apply` where there is no transform to look for, nor arguments by name
    record = super(torch.autograd.Function, function).apply

    def call(*inputs: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return operator(*inputs)
        if not untransformed():
            return function.apply(*inputs)
        if torch.is_grad_enabled():
            for x in inputs[:tensors]:
                if x.requires_grad:
                    return record(*inputs)
        return forward(*inputs)

    return call


def _solve_vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return _vmap_rule(solve, 7)(info, in_dims, *inputs)


def search(*inputs: Any) -> tuple[Tensor, ...]:
    """What is best of all, which is a constant to every derivative: `solve` next to it has them."""
    if not intercepted(inputs[:6]):
        return cpu.search(*inputs)
    with torch.no_grad():
        return _search(*(x.detach() for x in inputs[:6]), *inputs[6:])


solve = _differentiable(
    _solve, cpu.solve, 7, setup_context=_save_solve, backward=_solve_backward, jvp=_solve_jvp, vmap=_solve_vmap
)
adjoint = _differentiable(
    _adjoint, cpu.adjoint, 9,
    setup_context=_save_adjoint, backward=_adjoint_backward, jvp=_adjoint_jvp, vmap=_adjoint_vmap,
)  # fmt: skip
