"""The compiled PnP as torch operators: gradients, vmap, torch.compile and threads around `geometry.compiled`.

Two operators, because the gradient is worth an operator of its own: `solve` finds poses, `adjoint` is its
vector-Jacobian product, whose own derivative (double backward) is left to automatic differentiation of
`geometry.pose.problem`. Operators are opaque to torch.compile, so that a network that contains them is one graph.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geometry.checks import untransformed, values
from geometry.compiled.launch import in_parallel
from geometry.optim import ADJOINT, FEIGNED, Status, along, attach_gradient, forward_mode, margin, primals, transpose
from geometry.pose.data import PnPData
from geometry.pose.problem import pnp_problem
from geometry.robust import RobustKernel

__all__ = ["adjoint", "search", "solve"]

_ARGUMENTS = ("points2d", "points3d", "K", "distortion", "weights", "init")
# Problems times points a thread: below, a thread costs more than it brings (about 100 microseconds of work).
_WORTH_A_THREAD = 4096
# From this many points on, one problem fills the lanes by itself.
_MANY_POINTS = 256

_NAMESPACE = "learnable_geometry"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


def _threads(problems: int, points: int) -> int:
    """How many of torch's threads to use (`torch.set_num_threads`; data-loader workers have one)."""
    return max(1, min(torch.get_num_threads(), problems, problems * points // _WORTH_A_THREAD))


def _in_parallel(
    threads: int, size: int, work: Callable[[int, int, int], int | None], K: np.ndarray, init: Tensor | None = None
) -> None:
    """Call work(begin, end, slot) on `threads` parts of range(size); ValueError names the argument it complains of."""
    tile = 8 if size >= 8 * threads else 1  # whole tiles, unless that leaves a thread without work
    bounds = [size * i // threads // tile * tile for i in range(threads)] + [size]
    complaints = in_parallel(bounds, work)
    for complaint in complaints:
        if complaint == len(_ARGUMENTS) + 1:
            values(" where mask is True", K=(torch.from_numpy(K), "camera"), init=(init, "pose"))
            # at the very bound of what is allowed the kernels may round otherwise
            raise ValueError("init must hold rotations (orthonormal, determinant 1)")
        elif complaint:
            raise ValueError(f"{_ARGUMENTS[complaint - 1]} must be finite where mask is True, got NaN or infinity")


@cache
def _code(robust: str) -> int:
    """What the kernels call a robust kernel. An import takes a microsecond, also of what is there already."""
    from geometry.compiled.pose.equations import ROBUST

    return ROBUST[robust]


def _kernel_inputs(data: tuple[Tensor, ...], robust: str, scale: float, alpha: float) -> tuple[Any, ...]:
    """The arguments that all kernels begin with. data: points2d, points3d, K, distortion, weights, mask."""
    *numbers, mask = (d.contiguous() for d in data)
    arrays = (*(d.numpy() for d in numbers), mask.view(torch.uint8).numpy())
    return arrays, (_code(robust), scale * scale, alpha)


def _spread(problems: int, points: int) -> bool:
    """Whether the lanes hold the points of one problem, rather than as many problems.

    Sums over points then come out in another order. So a problem among three others or more has the same bits in
    every batch, and so it has among fewer; one of 64 points by itself would take a fifth longer in the others' order.
    """
    return problems < 4 or points >= _MANY_POINTS


def _singular_below(dtype: torch.dtype, points: int, spread: bool) -> float:
    """The `margin` of what the kernels add up point after point, or from eight to eight where spread."""
    return margin(dtype, 6, points / 8 if spread else points)


def _operator(name: str) -> Callable[[Callable], Any]:
    """Define a torch operator by its implementation on the CPU, as torch.library.custom_op does.

    That one adds ten microseconds to every call, and a second to the first, in which it imports the compiler.
    """

    def define(implementation: Callable) -> Any:
        _LIBRARY.define(name + torch.library.infer_schema(implementation, mutates_args=()))
        _LIBRARY.impl(name, implementation, "CPU")
        return getattr(getattr(torch.ops, _NAMESPACE), name).default

    return define


@_operator("pnp")
def _solve(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor,
    weights: Tensor,
    mask: Tensor,
    init: Tensor,
    robust: str,
    scale: float,
    alpha: float,
    max_steps: int,
    fewest: int,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Local minima next to init: poses (B,4,4), costs (B,), `Status` (B,) int8 and accepted steps (B,) int32.

    Tensors as in `geometry.pnp`, batched, of one floating dtype, leading size 1 where shared; weights (B|1,N,2), or
    (1,1,1) for ones; mask (B|1,N), or (1,1) for True; init (B|1,4,4). robust: the name of a `RobustKernel`, or "none";
    fewest: points below which the status is TOO_FEW; exact: which Hessian the gradient is to be taken with.
    """
    inputs = _kernel_inputs((points2d, points3d, K, distortion, weights, mask), robust, scale, alpha)
    return _minima(inputs, init, (max_steps, fewest), _spread(*inputs[0][0].shape[:2]))


def _minima(
    inputs: tuple[Any, ...], init: Tensor, limits: tuple[int, int], spread: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_solve` by the arguments of its kernel."""
    from geometry.compiled.pose import solve as kernel

    B, N, _ = inputs[0][0].shape
    dtype = inputs[0][0].dtype
    out = np.empty((B, 4, 4), dtype), np.empty(B, dtype), np.empty(B, np.int8), np.empty(B, np.int32)
    start, rule, run = init.contiguous().numpy(), (_singular_below(init.dtype, N, spread), FEIGNED), kernel.solve

    def work(begin: int, end: int, slot: int) -> int:
        return run(*inputs, rule, limits, start, (begin, end, slot, spread, None), out)

    _in_parallel(_threads(B, N), B, work, inputs[0][2], init)
    return torch.from_numpy(out[0]), torch.from_numpy(out[1]), torch.from_numpy(out[2]), torch.from_numpy(out[3])


@torch.library.register_fake(f"{_NAMESPACE}::pnp")
def _(points2d: Tensor, *_: Any) -> tuple[Tensor, ...]:
    B = points2d.shape[0]
    cost = points2d.new_empty(B)
    return points2d.new_empty(B, 4, 4), cost, cost.new_empty(B, dtype=torch.int8), cost.new_empty(B, dtype=torch.int32)


@_operator("pnp_search")
def search(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor,
    weights: Tensor,
    mask: Tensor,
    robust: str,
    scale: float,
    alpha: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best minimum (B,4,4), the second best (B,4,4), and the ratio (B,) of their costs, of `PoseSolution`."""
    from geometry.compiled.pose import start as kernel

    B, N, _ = points2d.shape
    arrays, kind = _kernel_inputs((points2d, points3d, K, distortion, weights, mask), robust, scale, alpha)
    starts, spread = points2d.new_empty(2, B, 4, 4), _spread(B, N)
    out, run = (starts[0].numpy(), starts[1].numpy()), kernel.start

    def work(begin: int, end: int, slot: int) -> None:
        run(arrays, kind, (begin, end, slot, True, None), out)

    _in_parallel(_threads(B, 16 * N), B, work, arrays[2])
    a = _minima((arrays, kind), starts[0], (max_steps, 4), spread)[:3]
    # where the start found one minimum alone, second is a copy of the first
    other = (starts[0] != starts[1]).flatten(1).any(1).nonzero().flatten()
    some = other.numpy()
    part = (arrays[0][some], *(d if len(d) == 1 else d[some] for d in arrays[1:]))
    b = _minima((part, kind), starts[1, other], (max_steps, 4), spread)[:3]  # `spread` as the others are
    return _better(*a, *(x.index_copy(0, other, y) for x, y in zip(a, b, strict=True)))


# Two minima less than about this many radians apart are one.
_SAME = 1e-3


def _better(
    pose_a: Tensor, cost_a: Tensor, status_a: Tensor, pose_b: Tensor, cost_b: Tensor, status_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The better minimum, the other (a copy of the better where it is none), and the ratio of their costs, or 0."""
    good_a, good_b = status_a == Status.CONVERGED, status_b == Status.CONVERGED
    swap = (good_b & ((cost_b < cost_a) | ~good_a))[:, None, None]
    first, second = torch.where(swap, pose_b, pose_a), torch.where(swap, pose_a, pose_b)
    # sqrt(8) sin(angle / 2), element by element: torch's threads, once woken, hold their cores for milliseconds
    chord = (first - second)[:, :3, :3].square().sum((-2, -1)).sqrt()
    two = good_a & good_b & (chord > _SAME)
    low, high = torch.minimum(cost_a, cost_b), torch.maximum(cost_a, cost_b)
    ratio = torch.where(two, low / high.clamp_min(torch.finfo(low.dtype).tiny), 0)
    return first, torch.where(two[:, None, None], second, first), ratio


@torch.library.register_fake(f"{_NAMESPACE}::pnp_search")
def _(points2d: Tensor, *_: Any) -> tuple[Tensor, ...]:
    B = points2d.shape[0]
    return points2d.new_empty(B, 4, 4), points2d.new_empty(B, 4, 4), points2d.new_empty(B)


@_operator("pnp_adjoint")
def _adjoint(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor,
    weights: Tensor,
    mask: Tensor,
    poses: Tensor,
    covectors: Tensor,
    statuses: Tensor,
    robust: str,
    scale: float,
    alpha: float,
    exact: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of <covectors, poses> by the first five arguments, in their shapes; empty where not wanted."""
    from geometry.compiled.pose import adjoint as kernel

    B, N, _ = points2d.shape
    inputs = _kernel_inputs((points2d, points3d, K, distortion, weights, mask), robust, scale, alpha)
    threads, spread, run = _threads(B, N), _spread(B, N), kernel.adjoint
    out = []
    for i, (d, want) in enumerate(zip(inputs[0], wanted, strict=False)):
        shared = len(d) == 1 and i > 0
        if not want:
            out.append(np.empty([0] * d.ndim, d.dtype))
        elif shared or i in (2, 3):  # the kernel adds to these
            out.append(np.zeros((threads if shared else B, *d.shape[1:]), d.dtype))
        else:  # NumPy asks for huge pages: the first touch of fresh memory took longer than the arithmetic
            out.append(np.empty(d.shape, d.dtype))
    least = ADJOINT * _singular_below(poses.dtype, N, spread)
    at, gradients = tuple(a.contiguous().numpy() for a in (poses, statuses, covectors)), tuple(out)

    def work(begin: int, end: int, slot: int) -> None:
        run(*inputs, least, exact, at, (begin, end, slot, spread, None), gradients)

    _in_parallel(threads, B, work, inputs[0][2])
    g0, g1, g2, g3, g4 = (
        torch.from_numpy(g.sum(0, keepdims=True) if want and len(g) != len(d) else g)
        for g, d, want in zip(out, inputs[0], wanted, strict=False)
    )
    return g0, g1, g2, g3, g4


@torch.library.register_fake(f"{_NAMESPACE}::pnp_adjoint")
def _(points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, *rest: Any) -> Any:
    data = (points2d, points3d, K, distortion, weights)
    return tuple(d.new_empty(d.shape if want else [0] * d.ndim) for d, want in zip(data, rest[-1], strict=True))


def _save_solve(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *data, _init, ctx.robust, ctx.scale, ctx.alpha, _max_steps, _fewest, ctx.exact = inputs
    ctx.save_for_backward(*data, output[0], output[2])
    ctx.save_for_forward(*data, output[0], output[2])
    ctx.mark_non_differentiable(*output[1:])


def _solve_backward(ctx: Any, covectors: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *data, poses, statuses = ctx.saved_tensors
    wanted = [bool(n) for n in ctx.needs_input_grad[:5]]
    gradients = adjoint(*data, poses, covectors, statuses, ctx.robust, ctx.scale, ctx.alpha, ctx.exact, wanted)
    return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), *[None] * 8)


def _solve_jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """The poses' tangent, in tensor operations, which can be differentiated again."""
    *data, mask, poses, statuses = primals(ctx.saved_tensors)
    known = [i for i, tangent in enumerate(tangents[:5]) if tangent is not None]
    with forward_mode():
        pose = _as_tensors(ctx, data, mask, poses, statuses, known)
        moved = along(pose, tuple(data[i] for i in known), tuple(tangents[i] for i in known))
    return moved, None, None, None


def _save_adjoint(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.robust, ctx.scale, ctx.alpha, ctx.exact, ctx.wanted = inputs
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
    return (*gradients, None, None, of_seeds, *[None] * 6)


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
    problem = pnp_problem("radtan", kernel)

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


torch.library.register_vmap(search.name(), _vmap_rule(search, 6))


def _differentiable(operator: Any, save: Callable, backward: Callable, jvp: Callable, vmap: Callable) -> Callable:
    """Give an operator its gradient and its rule for vmap.

    Twice, because neither way serves all: torch.func does not take the autograd of an operator, and torch.compile
    would look into an autograd.Function. Without a derivative to record the operator is called itself, which is faster.
    """
    torch.library.register_autograd(operator.name(), backward, setup_context=save)
    torch.library.register_vmap(operator.name(), vmap)

    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return operator(*inputs)

    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # torch asks for it at every call
    members: dict[str, Any] = {"forward": forward, "setup_context": save, "backward": backward, "jvp": jvp}
    members["vmap"] = vmap
    function: Any = type("Function", (torch.autograd.Function,), {name: staticmethod(f) for name, f in members.items()})

    def call(*inputs: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return operator(*inputs)
        if not untransformed():
            return function.apply(*inputs)
        if torch.is_grad_enabled():
            for x in inputs:
                if isinstance(x, Tensor) and x.requires_grad:
                    return function.apply(*inputs)
        return operator(*inputs)

    return call


def _solve_vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return _vmap_rule(solve, 7)(info, in_dims, *inputs)


solve = _differentiable(_solve, _save_solve, _solve_backward, _solve_jvp, _solve_vmap)
adjoint = _differentiable(_adjoint, _save_adjoint, _adjoint_backward, _adjoint_jvp, _adjoint_vmap)
