"""How the CPU runs the operators of `geometry.pose.operator`: views of NumPy's, threads, and compiled kernels.

Each takes the arguments of its operator, which says what they mean. Their arithmetic takes microseconds, and so does
every layer of Python and every operation of torch around it: there are as few of both as can be.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geometry.camera import Model
from geometry.checks import not_finite, values
from geometry.compiled.constants import ROBUST
from geometry.compiled.launch import in_parallel
from geometry.optim import ADJOINT, FEIGNED, margin

__all__ = ["adjoint", "search", "solve"]

_ARGUMENTS = ("points2d", "points3d", "K", "distortion", "weights", "init")
# Problems times points a thread: below, a thread costs more than it brings (about 100 microseconds of work).
_WORTH_A_THREAD = 4096
# From this many points on, one problem fills the lanes by itself.
_MANY_POINTS = 256
# Two minima less than about this many radians apart are one.
_SAME = 1e-3
_TORCH = {np.dtype(np.float64): torch.float64, np.dtype(np.float32): torch.float32}

Minima = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Poses (B,4,4), costs (B,), statuses (B,) int8, accepted steps (B,) int32."""


@cache
def _kernel(name: str) -> Callable[..., Any]:
    """A kernel, imported when it is called for the first time, as numba takes half a second; `solve` before any other.

    Functions that several kernels call are linked to the copy that was loaded first, and copies round differently.
    """
    from geometry.compiled.pose import solve

    if name == "start":
        from geometry.compiled.pose import start

        return start.start
    if name == "adjoint":
        from geometry.compiled.pose import adjoint

        return adjoint.adjoint
    return solve.solve


def solve(*inputs: Any) -> tuple[Tensor, ...]:
    """The operator `pnp`."""
    *data, init, model, robust, scale, alpha, max_steps, fewest, _exact = inputs
    given = _given(data, model, robust, scale, alpha)
    B, N, _ = given[0][0].shape
    poses, costs, statuses, steps = _minima(given, _array(init), (max_steps, fewest), _spread(B, N))
    numpy = torch.from_numpy
    return numpy(poses), numpy(costs), numpy(statuses), numpy(steps)


def search(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `pnp_search`: the better of the minima next to the two best of `geometry.compiled.pose.start`."""
    *data, model, robust, scale, alpha, max_steps = inputs
    given = _given(data, model, robust, scale, alpha)
    arrays, kind = given
    B, N, _ = arrays[0].shape
    starts, others = np.empty((B, 4, 4), arrays[0].dtype), np.empty((B, 4, 4), arrays[0].dtype)
    run = _kernel("start")

    def work(begin: int, end: int, slot: int) -> None:
        run(arrays, kind, (begin, end, slot, True, None), (starts, others))

    _in_parallel(_threads(B, 16 * N), B, work, arrays[2])
    limits, spread = (max_steps, 4), _spread(B, N)
    found = _minima(given, starts, limits, spread)
    best, second, ratio = found[0], found[0].copy(), np.zeros(B, starts.dtype)
    # where the start found one minimum alone, the other is a copy of the first
    (some,) = (starts != others).any((1, 2)).nonzero()
    if len(some):
        part = (arrays[0][some], *(d if len(d) == 1 else d[some] for d in arrays[1:6]), arrays[6])
        other = _minima((part, kind), others[some], limits, spread)  # `spread` as the others are
        best[some], second[some], ratio[some] = _better([d[some] for d in found], other)
    return torch.from_numpy(best), torch.from_numpy(second), torch.from_numpy(ratio)


def adjoint(*inputs: Any) -> tuple[Tensor, ...]:
    """The operator `pnp_adjoint`."""
    *data, poses, covectors, statuses, model, robust, scale, alpha, exact, wanted = inputs
    arrays, kind = _given(data, model, robust, scale, alpha)
    B, N, _ = arrays[0].shape
    threads, spread, run = _threads(B, N), _spread(B, N), _kernel("adjoint")
    out = []
    for i, (d, want) in enumerate(zip(arrays, wanted, strict=False)):
        shared = len(d) == 1 and i > 0
        if not want:
            out.append(np.empty([0] * d.ndim, d.dtype))
        elif shared or i in (2, 3):  # the kernel adds to these
            out.append(np.zeros((threads if shared else B, *d.shape[1:]), d.dtype))
        else:  # NumPy asks for huge pages: the first touch of fresh memory took longer than the arithmetic
            out.append(np.empty(d.shape, d.dtype))
    least, gradients = ADJOINT * _singular_below(arrays[0].dtype, N, spread), tuple(out)
    at = _array(poses), _array(statuses), _array(covectors)

    def work(begin: int, end: int, slot: int) -> None:
        run(arrays, kind, least, exact, at, (begin, end, slot, spread, None), gradients)

    _in_parallel(threads, B, work, arrays[2])
    whole = (g.sum(0, keepdims=True) if len(g) > len(d) else g for g, d in zip(out, arrays, strict=False))
    return tuple(torch.from_numpy(g) for g in whole)


def _given(data: list[Tensor], model: Model, robust: str, scale: float, alpha: float) -> tuple[Any, Any]:
    """The arguments that all kernels begin with. data: points2d, points3d, K, distortion, weights, mask."""
    points2d, points3d, K, distortion, weights, mask = map(_array, data)
    arrays = (points2d, points3d, K, distortion, weights, mask.view(np.uint8), int(model == "fisheye"))
    return arrays, (ROBUST[robust], scale * scale, alpha)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return tensor.contiguous().numpy()


def _minima(given: tuple[Any, Any], start: np.ndarray, limits: tuple[int, int], spread: bool) -> Minima:
    """The minima next to start. limits: steps at the most, and points that make a problem at the least."""
    points2d, _, K, *_ = given[0]
    B, N, _ = points2d.shape
    out = np.empty((B, 4, 4), start.dtype), np.empty(B, start.dtype), np.empty(B, np.int8), np.empty(B, np.int32)
    rule, run = (_singular_below(K.dtype, N, spread), FEIGNED), _kernel("solve")

    def work(begin: int, end: int, slot: int) -> int:
        return run(*given, rule, limits, start, (begin, end, slot, spread, None), out)

    _in_parallel(_threads(B, N), B, work, K, start)
    return out


@np.errstate(all="ignore")
def _better(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The better poses, the others (copies where there are none), and the ratios of their costs, or 0."""
    (pose_a, cost_a, status_a, _), (pose_b, cost_b, status_b, _) = a, b
    good_a, good_b = status_a == 0, status_b == 0  # Status.CONVERGED
    swap = (good_b & ((cost_b < cost_a) | ~good_a))[:, None, None]
    first, second = np.where(swap, pose_b, pose_a), np.where(swap, pose_a, pose_b)
    # sqrt(8) sin(angle / 2)
    chord = np.sqrt(np.square((first - second)[:, :3, :3]).sum((1, 2)))
    two = good_a & good_b & (chord > _SAME)
    low, high = np.minimum(cost_a, cost_b), np.maximum(cost_a, cost_b)
    ratio = np.where(two, low / np.maximum(high, np.finfo(low.dtype).tiny), 0)
    return first, np.where(two[:, None, None], second, first), ratio


def _threads(problems: int, points: int) -> int:
    """How many of torch's threads to use (`torch.set_num_threads`; data-loader workers have one)."""
    return max(1, min(torch.get_num_threads(), problems, problems * points // _WORTH_A_THREAD))


def _in_parallel(
    threads: int, size: int, work: Callable[[int, int, int], int | None], K: np.ndarray, init: np.ndarray | None = None
) -> None:
    """Call work(begin, end, slot) on `threads` parts of range(size); ValueError names the argument it complains of."""
    tile = 8 if size >= 8 * threads else 1  # whole tiles, unless that leaves a thread without work
    bounds = [0, *(size * i // threads // tile * tile for i in range(1, threads)), size] if threads > 1 else [0, size]
    for complaint in in_parallel(bounds, work):
        if complaint:
            _refuse(complaint, K, init)


def _refuse(complaint: int, K: np.ndarray, init: np.ndarray | None) -> None:
    """Raise the ValueError that `geometry.compiled.pose.solve` asks for."""
    if complaint <= len(_ARGUMENTS):
        raise not_finite(_ARGUMENTS[complaint - 1], " where mask is True")
    start = None if init is None else torch.from_numpy(init)
    values(" where mask is True", K=(torch.from_numpy(K), "camera"), init=(start, "pose"))
    # at the very bound of what is allowed the kernels may round otherwise
    raise ValueError("init must hold rotations (orthonormal, determinant 1), got one that is off by more than 1e-3")


def _spread(problems: int, points: int) -> bool:
    """Whether the lanes hold the points of one problem, rather than as many problems.

    Sums over points then come out in another order. So a problem among three others or more has the same bits in
    every batch, and so it has among fewer; one of 64 points by itself would take a fifth longer in the others' order.
    """
    return problems < 4 or points >= _MANY_POINTS


def _singular_below(dtype: np.dtype, points: int, spread: bool) -> float:
    """The `margin` of what the kernels add up point after point, or from eight to eight where spread."""
    return margin(_TORCH[dtype], 6, points / 8 if spread else points)
