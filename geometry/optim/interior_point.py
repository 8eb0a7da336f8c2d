"""The interior-point and active-set iterations of a convex quadratic program.

For `geometry.optim.quadratic`, which says what is solved and by which method.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from geometry.optim.equations import Equations, largest, one_where_zero, times, transposed, violation

__all__ = ["active_set", "interior_point"]


def _longest(v: Tensor, dv: Tensor, fraction: Tensor | float) -> Tensor:
    """The step (B,1) up to one that goes this fraction of the way to where v + step dv is no longer positive."""
    ratio = torch.where(dv < 0, -fraction * v / dv, torch.inf)
    return pad(ratio, (0, 1), value=1.0).amin(-1, keepdim=True)


def _start(equations: Equations, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, w, s of Mehrotra's start (1992, section 7): the problem with the constraints as springs, moved inside."""
    m, ones = equations.m, torch.ones_like(equations.d)
    x, w = (v.nan_to_num() for v in equations.solve(equations.factor(ones, rho), ones, -equations.p, equations.d))
    s, z = -w[:, :m], w[:, :m]
    s, z = (v + pad(-1.5 * v, (0, 1)).amax(-1, keepdim=True).clamp_min(0) + 1e-2 for v in (s, z))
    product = 0.5 * (s * z).sum(-1, keepdim=True)
    return x, torch.cat([z + product / s.sum(-1, keepdim=True), w[:, m:]], -1), s + product / z.sum(-1, keepdim=True)


def _newton(
    equations: Equations, factored: tuple[Tensor, Tensor], residual: tuple[Tensor, Tensor], s: Tensor, z: Tensor,
    product: Tensor, *, exact: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dw, ds that take the residuals to zero, and s z down by `product` (B,m); factored: factor and weight.

    exact: without what the proximal terms leave of them, which matters where s / z is as small as these.
    """
    m, (rx, rw) = equations.m, residual
    rw = torch.cat([rw[:, :m] + product / z, rw[:, m:]], -1)
    dx, dw = equations.solve(*factored, rx, rw)
    for _ in range(3 if exact else 0):
        left_x = rx - equations.kappa * transposed(equations.Q, dx) - transposed(equations.C, dw)
        left_w = rw - times(equations.C, dx) + pad(s / z, (0, rw.shape[1] - m)) * dw
        more_x, more_w = equations.solve(*factored, left_x, left_w)
        dx, dw = dx + more_x, dw + more_w
    return dx, dw, -(product + s * dw[:, :m]) / z


def _contradiction(equations: Equations, w: Tensor) -> Tensor:
    """Whether w proves the constraints contrary (B,): Farkas' lemma, for all x that are not as large as eps^-0.4."""
    m, small = equations.m, torch.finfo(w.dtype).eps ** 0.4
    w = torch.cat([w[:, :m].clamp_min(0), w[:, m:]], -1)
    gain = -(equations.d * w).sum(-1)
    return (gain > small * largest(w)) & (largest(transposed(equations.C, w)) <= small * gain)


def _descent(equations: Equations, x: Tensor) -> Tensor:
    """Whether the cost falls for ever along x (B,), and x leaves no constraint."""
    m, small = equations.m, torch.finfo(x.dtype).eps ** 0.4
    fall, Cx = -(equations.p * x).sum(-1), times(equations.C, x)
    rise = torch.cat([equations.kappa * transposed(equations.Q, x), Cx[:, :m].clamp_min(0), Cx[:, m:]], -1)
    return (fall > small * largest(x)) & (largest(rise) <= small * fall)


def interior_point(
    equations: Equations, max_steps: int, deep: bool, narrow: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, w of the best iterate, steps (B,) int32, and whether the problem is infeasible, or unbounded (B,).

    deep: until s z = mu tells slacks of eps^0.6 from none, by exact steps, and whether or not the problem seems to be
    unbounded. narrow: part of the usual proximal terms of the multipliers; those of x are so much larger.
    """
    C, p, d, m = equations.C, equations.p, equations.d, equations.m
    eps = torch.finfo(p.dtype).eps
    enough = eps**1.3 if deep else eps**0.75
    delta, _ = equations.proximity
    delta = narrow * delta.clamp_max(eps**0.25)  # small beside s / z, too
    rho = eps**0.9 / delta
    x, w, s = _start(equations, rho)
    best_x, best_w, best = x, w, torch.full_like(x[:, 0], torch.inf)
    running = torch.ones_like(best, dtype=torch.bool)
    infeasible, unbounded = ~running, ~running
    steps = torch.zeros_like(best, dtype=torch.int32)
    for i in range(max_steps + 1):
        z = w[:, :m]
        Qx, Cx, Ctw = equations.kappa * transposed(equations.Q, x), times(C, x), transposed(C, w)
        rx, rw = -(Qx + p + Ctw), d - Cx
        rw = torch.cat([rw[:, :m] - s, rw[:, m:]], -1)
        mu = (s * z).sum(-1) / max(m, 1)
        residual = torch.maximum(largest(rx), largest(rw / d.abs().clamp_min(1)))
        error = torch.where(residual <= eps**0.75, mu, torch.maximum(residual, mu))
        better = running & (error < best)
        best = torch.where(better, error, best)
        best_x, best_w = torch.where(better[:, None], x, best_x), torch.where(better[:, None], w, best_w)
        # s z = mu says which constraints hold only once s and z are far from sqrt(mu): no sooner is `active_set` asked
        running = running & torch.isfinite(error) & (error > enough) & ~infeasible & ~unbounded
        if i == max_steps or not running.any():
            break
        weight = torch.cat([1 / (s / z + delta), (1 / delta).expand(-1, rw.shape[1] - m).expand(len(s), -1)], -1)
        factor = equations.factor(weight, rho)
        newton = partial(_newton, equations, (factor, weight), (rx, rw), s, z, exact=deep)
        _, dw, ds = newton(s * z)
        affine = torch.minimum(_longest(s, ds, 1.0), _longest(z, dw[:, :m], 1.0))
        mu_affine = ((s + affine * ds) * (z + affine * dw[:, :m])).sum(-1) / max(m, 1)
        left = mu_affine / mu
        centre = left**3 * mu
        # correcting a prediction in full that is blocked at once leads round in circles (Colombo and Gondzio 2008)
        trusted = torch.where(affine < 0.3, affine, 1.0)
        dx, dw, ds = newton(s * z + trusted * ds * dw[:, :m] - centre[:, None])
        fraction = (1 - 0.1 * left).clamp_min(0.995)[:, None]
        step = torch.minimum(_longest(s, ds, fraction), _longest(z, dw[:, :m], fraction))
        infeasible = infeasible | (running & (_contradiction(equations, dw) | _contradiction(equations, w + dw)))
        if not deep:
            unbounded = unbounded | (running & _descent(equations, dx))
        x, w, s = (torch.where(running[:, None], v + step * dv, v) for v, dv in ((x, dx), (w, dw), (s, ds)))
        steps = steps + running.int()
    return best_x, best_w, steps, infeasible, unbounded


def active_set(
    equations: Equations, x: Tensor, w: Tensor, failed: Tensor, polish: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x, w after primal-dual active-set steps, and the rows that hold as equations (B,m+q), 1 or 0.

    A row is active where z > s. What a step makes worse is refused. One step does it as a rule; where `polish` do not,
    of problems that have not failed (B,) before, `_exchanges` follow.
    """
    m, (delta, rho) = equations.m, equations.proximity

    def chosen(x: Tensor, w: Tensor) -> Tensor:
        slack, z = (equations.d - times(equations.C, x))[:, :m], w[:, :m]
        return pad((z > slack).to(x.dtype), (0, w.shape[1] - m), value=1.0)

    guess = chosen(x, w)
    best = _Point(x, w, guess, violation(equations, x, w)[0])
    for i in range(polish):
        unsolved = ~failed & (best.error > equations.aim) if i > 0 else torch.ones_like(failed)
        if not unsolved.any():
            break
        active = chosen(x, w)
        factor = equations.factor(active / delta, rho)
        residual = equations.d - times(equations.C, x)
        w = active * w
        dx, dw = equations.refined(factor, active, -equations.slope(x, w), residual, rounds=3)
        x, w = x + dx, w + dw
        best = best.or_better(_Point(x, w, active, violation(equations, x, w)[0]), unsolved)
    left = (~failed & (best.error > equations.aim)).nonzero()[:, 0]
    if polish and len(left):
        begun = _Point(*(v[left] for v in best))._replace(active=guess[left])
        ended = _exchanges(equations.at(left), begun, 25 * polish)
        best = _Point(*(v.index_copy(0, left, new) for v, new in zip(best, ended, strict=True)))
    return best.x, best.w, best.active


class _Point(NamedTuple):
    """x, w, active rows (B,…), and the `violation` (B,) there."""

    x: Tensor
    w: Tensor
    active: Tensor
    error: Tensor

    def or_better(self, other: "_Point", where: Tensor) -> "_Point":
        """This, or the other where that violates no more."""
        better = where & (other.error <= self.error)
        return _Point(
            *(torch.where(better.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(self, other, strict=True))
        )


def _exchanges(equations: Equations, begun: _Point, most: int) -> _Point:
    """The best point while rows join and leave the active ones one by one, at most so many times.

    With the proximal terms of x and w about a centre, the multipliers are the minimum of a strictly convex quadratic
    function for z >= 0, which the method of Lawson and Hanson (1974, chapter 23) finds from any rows to begin with:
    w goes towards the solution for these rows, the row whose z vanishes first leaves, and where none does the row that
    x violates most joins. Where there is none, the centre moves there (Rockafellar 1976). Multipliers begin at zero: of
    dependent rows few push, and no harder than they must. The equations are solved as they are, not squared as for a
    Cholesky factor, so that the proximal terms can be as small as rounding allows.
    """
    m, n, eps = equations.m, equations.Q.shape[-1], torch.finfo(begun.x.dtype).eps
    best, active = begun, begun.active
    inequality = torch.arange(active.shape[1], device=active.device) < m
    centre, at_centre, last = best.x.nan_to_num(), torch.zeros_like(best.w), torch.full_like(best.error, torch.inf)
    w = torch.zeros_like(best.w)
    rho, delta = eps**0.9 * equations.balance, eps**0.9 / equations.balance
    H = (equations.kappa[..., None] * equations.Q).expand(len(w), n, n) + torch.diag_embed(rho.expand(-1, n))
    running = torch.ones_like(best.error, dtype=torch.bool)
    for _ in range(most):
        C = active[..., None] * equations.C
        below = torch.cat([C, torch.diag_embed(active * (1 - delta) - 1)], -1)
        K = torch.cat([torch.cat([H, C.mT], -1), below], -2)
        held = active * (equations.d - times(equations.C, centre))
        step, _ = torch.linalg.solve_ex(K, torch.cat([-equations.slope(centre, active * at_centre), held], -1))
        x, goal = centre + step[:, :n], active * (at_centre + step[:, n:])
        here = _Point(x, goal, active, violation(equations, x, goal)[0])
        best = best.or_better(here, running)
        leaves = (active > 0) & inequality & (goal <= 0)
        part = torch.where(leaves, w / one_where_zero(w - goal), torch.inf)
        first = pad(part, (0, 1), value=1.0).amin(-1, keepdim=True)
        blocked = leaves.any(-1)
        leaves = leaves & (part <= first)
        w = torch.where(leaves, 0.0, w + first * (goal - w))
        excess = times(equations.C, x) - equations.d + delta * at_centre
        outside = (active == 0) & inequality & (excess > eps * (times(equations.C.abs(), x.abs()) + equations.d.abs()))
        worst = pad(torch.where(outside, excess, 0.0), (0, 1)).argmax(-1, keepdim=True)
        joins = outside & ~blocked[:, None] & (torch.arange(len(inequality), device=w.device) == worst)
        active = torch.where(leaves, 0.0, torch.where(joins, 1.0, active))
        settled = ~blocked & ~joins.any(-1)
        centre, at_centre = (torch.where(settled[:, None], *pair) for pair in ((x, centre), (goal, at_centre)))
        running = running & (best.error > equations.aim) & ~(settled & (best.error <= 1) & (here.error > 0.8 * last))
        last = torch.where(settled, here.error, last)
        if not running.any():
            break
    return best
