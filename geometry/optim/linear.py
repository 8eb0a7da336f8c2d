"""What is singular: one rule for every solver, and the symmetric systems that are judged by it.

With the diagonal of a positive definite A scaled to one, 1 / (A^-1)_kk is what is left of the curvature of unknown k
once all others are free to follow it (one minus the squared multiple correlation of statistics). The least of these,
the `share`, depends neither on the units nor on the order of the unknowns, and lies between the smallest eigenvalue and
P times that. The last pivot of a Cholesky factorisation is no such measure: where the data leave a direction v open it
is the rounding divided by v_P^2, as large as one likes where the last unknown hardly takes part.

Rounding. The entries of a computed J^T J are off by a few eps sqrt(A_ii A_jj), as every factor is rounded, and by up to
half an eps for each of the additions that follow one another in a sum, if terms repeat themselves; a factorisation adds
P eps. So what the data leave open has a share of that size, times at most P, instead of zero; what has no more than
`margin` is SINGULAR. In every dtype this is half of its digits: points that lie within about 1e-7 of their extent from
a line determine no pose in double precision, and 1e-6 is enough.

Which matrix. Where the cost does not change along v, J v = 0 at every x, so J^T J tells what the data leave open
wherever it is taken. The exact Hessian H does so only where the gradient g vanishes: elsewhere v^T H v = - g . a, with
a the curvature of the path on which the cost stays the same. Yet a minimum may be strict although J^T J is singular, by
the curvature of the residual (r = x^2 + 1). `determined` therefore asks that H be definite and besides that J^T J be,
or that the share of H be far above what the rest of the gradient may feign.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ADJOINT",
    "FEIGNED",
    "chain_of_blocks",
    "damped_step",
    "determined",
    "inverse_spd",
    "margin",
    "share",
    "share_by_solving",
    "share_of_factor",
    "solve_spd",
]

ADJOINT = 0.25
"""Part of the margin that an adjoint asks for: what was CONVERGED has a gradient, whatever a last step has moved."""

FEIGNED = 10.0
"""Share of H, in parts of the cosine between residual and J, that the gradient may feign where J^T J is singular."""


def margin(dtype: torch.dtype, unknowns: int, chain: float = 0.0) -> float:
    """The share up to which a matrix of so many unknowns is singular.

    chain: how many additions followed one another in the sums that made it (`chain_of_blocks` for tensors).
    """
    return torch.finfo(dtype).eps * (32 + 8 * unknowns + 0.5 * chain)


def chain_of_blocks(terms: int) -> float:
    """What a sum of so many terms loses in torch, which adds in blocks, in additions that follow one another."""
    return 2 * math.sqrt(terms)


def _factorise(A: Tensor, diagonal: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Scale (B,P) that makes the diagonal one, Cholesky factor of the scaled A, and whether it has one (B,)."""
    diagonal = A.diagonal(dim1=-2, dim2=-1).abs() if diagonal is None else diagonal
    scale = diagonal.clamp_min(torch.finfo(A.dtype).tiny).rsqrt()
    scaled = A * scale[..., :, None] * scale[..., None, :]
    finite = torch.isfinite(scaled).all(-1).all(-1)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(torch.where(finite[..., None, None], scaled, eye))
    ok = finite & (info == 0) & (factor.diagonal(dim1=-2, dim2=-1) > 0).all(-1)
    return scale, torch.where(ok[..., None, None], factor, eye), ok


def _inverse_diagonal(factor: Tensor) -> Tensor:
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).square().sum(-2)


def share(A: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """Least part (B,) of its diagonal entry that an unknown of A (B,P,P) keeps, the others free; -1 if not definite.

    diagonal (B,P): what to measure against instead, where entries of A's own have cancelled.
    """
    _, factor, ok = _factorise(A, diagonal)
    return torch.where(ok, 1 / _inverse_diagonal(factor).amax(-1), -1)


def solve_spd(A: Tensor, b: Tensor, least: float | None = None) -> tuple[Tensor, Tensor]:
    """Solve A u = b for symmetric A after scaling its diagonal to one. (B,P,P), (B,P) -> u (B,P), ok (B,).

    ok is False, and u zero, where A is singular or not positive definite, its share at most `least` (the `margin`, of
    no sums, unless given); the other problems are untouched.
    """
    scale, factor, ok = _factorise(A)
    least = margin(A.dtype, A.shape[-1]) if least is None else least
    ok = ok & (_inverse_diagonal(factor).amax(-1) * least < 1)
    return _solved(scale, factor, b, ok), ok


class DampedStep(NamedTuple):
    """step (B,P), zero where the matrix is not positive definite; decrease (B,) of the cost that it predicts; pivot
    (B,): the least of the scaled matrix, which is never below its `share`, -1 where it is not definite."""

    step: Tensor
    decrease: Tensor
    pivot: Tensor


def damped_step(A: Tensor, gradient: Tensor, damping: Tensor | None = None) -> DampedStep:
    """Step of a descent by (A + damping D) step = -gradient, D the absolute diagonal of A (Marquardt).

    A (B,P,P), damping (B,), or None: a direction that the data do not see still gets some damping, and one of negative
    curvature what one of positive would. Decisions carry no graph.
    """
    diagonal = A.diagonal(dim1=-2, dim2=-1).detach().abs()
    scale = torch.maximum(diagonal, 1e-9 * diagonal.amax(-1, keepdim=True)).clamp_min(torch.finfo(A.dtype).tiny).rsqrt()
    scaled = A * scale[:, :, None] * scale[:, None]
    if damping is not None:
        scaled.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    factor, info = torch.linalg.cholesky_ex(scaled)
    ok = info == 0
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, target = torch.where(ok[:, None, None], factor, eye), gradient * -scale
    u = torch.where(ok[:, None], torch.cholesky_solve(target[..., None], factor)[..., 0], 0.0)
    push = target if damping is None else torch.addcmul(target, damping[:, None], u)
    pivot = torch.where(ok, factor.detach().diagonal(dim1=-2, dim2=-1).amin(-1).square(), -1.0)
    return DampedStep(u * scale, 0.5 * (u * push).sum(-1).detach(), pivot)


def share_of_factor(factor: Tensor) -> Tensor:
    """`share_by_solving` of a matrix with Cholesky factor (P,P): where the share is far below that of all else, three
    times are plenty."""
    return share_by_solving(lambda b: torch.cholesky_solve(b, factor), factor[:, 0], 8, 3)


def share_by_solving(solve: Callable[[Tensor], Tensor], like: Tensor, vectors: int, times: int) -> Tensor:
    """`share` () of one large matrix, scaled by what is to be measured against, by inverse iteration on some vectors.

    solve: b (P,R) -> A^-1 b. like (P,): any tensor of its size, dtype and device.
    """
    P = len(like)
    count = min(P, vectors)  # of any vectors: drawn ones no transform would take
    start = torch.arange(1.0, 1 + P * count, dtype=like.dtype, device=like.device).square().cos().view(P, count)
    basis = torch.linalg.qr(start)[0]
    for _ in range(times):
        basis = torch.linalg.qr(solve(basis))[0]
    # the diagonal of the inverse within the span of the vectors
    return 1 / ((basis @ (basis.T @ solve(basis))) * basis).sum(1).amax()


def _solved(scale: Tensor, factor: Tensor, b: Tensor, ok: Tensor) -> Tensor:
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    factor = torch.where(ok[..., None, None], factor, eye)
    u = torch.cholesky_solve((b * scale)[..., None], factor).squeeze(-1) * scale
    return torch.where(ok[..., None], u, torch.zeros_like(u))


def determined(
    H: Tensor, gauss_newton: Tensor, gradient: Tensor, cost: Tensor, least: float, alike: tuple[int, ...] = ()
) -> Tensor:
    """Whether the data determine the minimum (B,), from the exact Hessian and J^T J (B,P,P), the gradient (B,P) and
    the cost (B,) near it; least: the `margin`.

    alike: numbers of unknowns, from the first, that have a unit in common, as (3,) where a rotation comes first. An
    entry of a column of J^T J is rounded by a part of the longest column among them, which shows where a line lies
    along an axis: the column of the rotation about it holds rounding and nothing else.
    """
    size = torch.maximum(gauss_newton.diagonal(dim1=-2, dim2=-1), H.diagonal(dim1=-2, dim2=-1)).abs()
    together, tiny = _longest(size, alike), torch.finfo(H.dtype).tiny
    diagonals = torch.stack([_rounded(gauss_newton, alike), together, size])
    linear, curved, own = share(torch.stack([gauss_newton, H, H]), diagonals)
    cosine2 = (gradient.square() / together.clamp_min(tiny)).sum(-1) / (2 * cost).clamp_min(tiny)
    return (own > least) & ((linear > least) | (curved > least + FEIGNED * cosine2.sqrt()))


def inverse_spd(gauss_newton: Tensor, least: float, alike: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """The inverse (B,P,P) of J^T J, and where the data determine all unknowns to first order (B,); `determined` says
    what the others are."""
    scale, factor, ok = _factorise(gauss_newton)
    ok = ok & (share(gauss_newton, _rounded(gauss_newton, alike)) > least)
    return torch.cholesky_inverse(factor) * scale[..., :, None] * scale[..., None, :], ok


def _rounded(gauss_newton: Tensor, alike: tuple[int, ...]) -> Tensor:
    """What the rounding of the diagonal (B,P) is a part of: its entries times the largest of their kind, rooted."""
    own = gauss_newton.diagonal(dim1=-2, dim2=-1).abs()
    return (own * _longest(own, alike)).sqrt()


def _longest(diagonal: Tensor, alike: tuple[int, ...]) -> Tensor:
    """The diagonal (B,P), every entry that of the largest of its kind."""
    rest = diagonal.shape[-1] - sum(alike)
    parts = diagonal.split([*alike, *[1] * rest], -1)
    return torch.cat([part.amax(-1, keepdim=True).expand_as(part) for part in parts], -1)
