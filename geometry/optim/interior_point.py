"""The equations of a convex quadratic program, scaled, and their interior-point and active-set iterations.

For `geometry.optim.quadratic`, which says what is solved and by which method.
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Equations", "Coefficients", "active_set", "curvature", "interior_point", "times", "transposed", "violation"]


class Coefficients(NamedTuple):
    """Q (B|1,n,n) symmetric, p (B,n), C = [G; A] (B|1,m+q,n), d = [h; b] (B,m+q), and m."""

    Q: Tensor
    p: Tensor
    C: Tensor
    d: Tensor
    m: int


def _size(v: Tensor) -> Tensor:
    """Largest magnitude (B,) of v (B,k); zero for k = 0."""
    return pad(v, (0, 1)).abs().amax(-1)


def times(M: Tensor, v: Tensor) -> Tensor:
    """M v (B,i) of M (B|1,i,j) and v (B,j)."""
    return v @ M[0].mT if len(M) == 1 else (M @ v[..., None])[..., 0]


def transposed(M: Tensor, v: Tensor) -> Tensor:
    """M^T v (B,j) of M (B|1,i,j) and v (B,i); several times faster than `times` where M is not shared."""
    return v @ M[0] if len(M) == 1 else (v[:, None] @ M)[:, 0]


def _one_where_zero(a: Tensor) -> Tensor:
    return torch.where(a > 0, a, 1.0)


@dataclass(frozen=True)
class Equations:
    """The program in x / (X Dx) and w / (Z Dc): kappa Dx Q Dx, Dx p / Z, Dc C Dx, Dc d / X with kappa = X / Z.

    Dx and Dc bring the largest entry of every row and column of [Q C^T; C 0] near one (as Ruiz 2001 does, with the
    root for Q, which is scaled from both sides); X and Z (B,1) are the sizes of x and w: as large as d and p and the
    minimum without constraints ask for, or as they are given.

    balance (B,1): the largest entry of kappa Q, one at most, which is what it is unless X is given. All proximal terms
    are in proportion to it, so that the error that they leave does not depend on X.
    """

    Q: Tensor
    p: Tensor
    C: Tensor
    d: Tensor
    m: int
    kappa: Tensor
    unit_x: Tensor
    unit_w: Tensor
    unit_cost: Tensor
    balance: Tensor
    size: Tensor

    @staticmethod
    def of(program: Coefficients, size: Tensor | None = None, rounds: int = 2) -> "Equations":
        Q, p, C, d, m = program
        Dx, Dc, size_Q, size_C = torch.ones_like(Q[:, 0]), torch.ones_like(C[..., 0]), Q.abs(), C.abs()
        for _ in range(rounds):
            # rows first: the unit of a constraint says nothing about that of x
            change = 1 / _one_where_zero(size_C.amax(-1))
            Dc, size_C = change * Dc, change[..., None] * size_C
            change = 1 / _one_where_zero(torch.maximum(size_Q.amax(-1).sqrt(), pad(size_C, (0, 0, 0, 1)).amax(-2)))
            Dx, size_Q = change * Dx, change[..., :, None] * size_Q * change[..., None, :]
            size_C = size_C * change[..., None, :]
        Dx, Dc, size_Q = Dx.detach(), Dc.detach(), size_Q.detach()  # no solution depends on them
        p, d, curvature = Dx * p, Dc * d, size_Q.amax((-2, -1))
        cost = _one_where_zero(curvature)
        curvature = curvature / cost  # zero where p says nothing about the size of x, else one
        size_p, size_d = _size(p).detach(), _size(d).detach()
        X = torch.maximum(size_d, curvature * size_p / cost) if size is None else size
        Z = _one_where_zero(torch.maximum(size_p, curvature * (size_d if size is None else size) * cost))[:, None]
        X = _one_where_zero(X)[:, None]
        balance = torch.where(curvature[..., None] > 0, (X * cost[..., None] / Z).clamp_max(1), 1.0)
        Q = Dx[..., :, None] * Q * Dx[..., None, :]
        C = Dc[..., :, None] * C * Dx[..., None, :]
        return Equations(Q, p / Z, C, d / X, m, X / Z, X * Dx, Z * Dc, X * Z, balance, X[:, 0])

    def at(self, where: Tensor) -> "Equations":
        """The equations of some problems of the batch."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        own: dict[str, Any] = {k: t[where] for k, t in every.items() if isinstance(t, Tensor) and len(t) == len(self.p)}
        return replace(self, **own)

    @property
    def proximity(self) -> tuple[Tensor, Tensor]:
        """Weights (B,1) of the proximal terms of the multipliers, and of x where that may be left open.

        The first is small beside one, and eps times its inverse too; times the second it is still far above eps.
        """
        eps = torch.finfo(self.p.dtype).eps
        return eps**0.5 / self.balance, eps**0.4 * self.balance

    def push(self, x: Tensor, w: Tensor) -> Tensor:
        """The multipliers (B,1) up to which they may be rounding, of either sign."""
        eps, Qx = torch.finfo(x.dtype).eps, self.kappa * transposed(self.Q.abs(), x.abs())
        least = eps**0.8 * _size(Qx) + 64 * eps * torch.maximum(_size(self.p), _size(w))
        return least[:, None] + torch.finfo(x.dtype).tiny

    @property
    def aim(self) -> float:
        """The `violation` of rounding alone."""
        return min(0.125, 8 * torch.finfo(self.p.dtype).eps ** 0.2)

    def matrix(self, weight: Tensor) -> Tensor:
        """kappa Q + C^T diag(weight) C (B,n,n)."""
        root = weight.sqrt()[..., None] * self.C
        return (root.mT @ root).add_(self.kappa[..., None] * self.Q)  # two thirds of the time of baddbmm

    def factor(self, weight: Tensor, rho: Tensor) -> Tensor:
        """Cholesky factor of `matrix` with the proximal term rho of x; NaN where it is not positive definite."""
        M = self.matrix(weight)
        M.diagonal(dim1=-2, dim2=-1).add_(rho)
        factor, info = torch.linalg.cholesky_ex(M.mT)  # the transpose is laid out as LAPACK wants it
        factor.diagonal(dim1=-2, dim2=-1).masked_fill_((info != 0)[:, None], torch.nan)
        return factor

    def solve(self, factor: Tensor, weight: Tensor, rx: Tensor, rw: Tensor) -> tuple[Tensor, Tensor]:
        """dx, dw of (kappa Q + rho) dx + C^T dw = rx, C dx - dw / weight = rw; dw = 0 where the weight is zero."""
        rhs = rx + transposed(self.C, weight * rw)
        half = torch.linalg.solve_triangular(factor, rhs[..., None], upper=False)
        dx = torch.linalg.solve_triangular(factor.mT, half, upper=True)[..., 0]
        return dx, weight * (times(self.C, dx) - rw)

    @property
    def least(self) -> Tensor:
        """The smallest size (B,) that d, or p, would give to x: rounding beside it is none that one can see."""
        curvature = (self.kappa[..., None] * self.Q).abs().amax((-2, -1))
        sizes = torch.cat([self.d.abs(), (_size(self.p) / _one_where_zero(curvature))[:, None]], -1)
        return torch.where(sizes > 0, sizes, 1.0).amin(-1).clamp_max(1)

    def slope(self, x: Tensor, w: Tensor) -> Tensor:
        """Gradient of the Lagrangian (B,n)."""
        return self.kappa * transposed(self.Q, x) + self.p + transposed(self.C, w)

    def refined(self, factor: Tensor, active: Tensor, rx: Tensor, rw: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
        """dx, dw of kappa Q dx + C^T dw = rx, C dx = rw on the active rows, dw = 0 on the others.

        The factor is that of the proximal equations, whose error each round of the proximal method of multipliers
        (Rockafellar 1976) reduces by about `proximity`.
        """
        dx, dw = torch.zeros_like(rx), torch.zeros_like(rw)
        weight = active / self.proximity[0]
        for _ in range(rounds):
            left = rx - self.kappa * transposed(self.Q, dx) - transposed(self.C, dw)
            more_x, more_w = self.solve(factor, weight, left, active * (rw - times(self.C, dx)))
            dx, dw = dx + more_x, dw + more_w
        return dx, dw


def violation(equations: Equations, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Largest violation (B,) of the optimality conditions, in parts of what each is allowed, or infinite; and the
    size (B,) of x and of the right sides that it violates.

    Allowed is, row by row, eps^0.8 of the terms that meet in it, which is the same in all units, and the rounding of a
    solution of this size. A gradient is seen beside Q x, however large p and the multipliers are: it is what moves x.
    """
    m, eps = equations.m, torch.finfo(x.dtype).eps
    tolerance, rounding, tiny = eps**0.8, 64 * eps, torch.finfo(x.dtype).tiny
    Q, C, d, p = equations.Q.abs(), equations.C.abs(), equations.d.abs(), equations.p
    Qx, Ctw = equations.kappa * transposed(Q, x.abs()), transposed(C, w.abs())
    size = torch.maximum(_size(x), equations.least)[:, None]
    row = tolerance * (times(C, x.abs()) + d) + rounding * size * pad(C, (0, 1)).amax(-1) + tiny
    # harder than that they push against each other, and slope and slack prove nothing
    most = torch.maximum(_size(p), _size(Qx)) / eps**0.4
    force = rounding * torch.maximum(_size(p), _size(Ctw).minimum(most))[:, None] + tiny
    push = equations.push(x, w)
    slack, z = equations.d - times(equations.C, x), w[:, :m]
    held = torch.cat([torch.where(z > push, slack[:, :m].abs(), -slack[:, :m]), slack[:, m:].abs()], -1) / row
    parts = [equations.slope(x, w).abs() / (tolerance * Qx + force), held.clamp_min(0), (-z / push).clamp_min(0)]
    error = pad(torch.cat(parts, -1), (0, 1)).amax(-1)
    seen = torch.maximum(size[:, 0], _size(torch.where(held > 1, d, 0.0)))
    return torch.where(torch.isfinite(error), error, torch.inf), torch.where(torch.isfinite(seen), seen, 1.0)


def curvature(equations: Equations, x: Tensor, w: Tensor, active: Tensor) -> Tensor:
    """kappa Q + C^T C (B,n,n) over the active rows that push, in units in which x and the largest force on it are one.

    What is left of a curvature of eps there lets rounding move x by all of its size.
    """
    forces = torch.cat([equations.p, equations.kappa * transposed(equations.Q.abs(), x.abs())], -1)
    force = torch.maximum(_size(forces), _size(transposed(equations.C.abs(), w.abs())))
    size = torch.maximum(_size(x), equations.least)
    unit = torch.where((force > 0) & torch.isfinite(force), size / _one_where_zero(force), 1.0)
    pushing = torch.cat([w[:, : equations.m] > equations.push(x, w), torch.ones_like(w[:, equations.m :]) > 0], -1)
    return replace(equations, kappa=equations.kappa * unit[:, None]).matrix(active * pushing)


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
    return (gain > small * _size(w)) & (_size(transposed(equations.C, w)) <= small * gain)


def _descent(equations: Equations, x: Tensor) -> Tensor:
    """Whether the cost falls for ever along x (B,), and x leaves no constraint."""
    m, small = equations.m, torch.finfo(x.dtype).eps ** 0.4
    fall, Cx = -(equations.p * x).sum(-1), times(equations.C, x)
    rise = torch.cat([equations.kappa * transposed(equations.Q, x), Cx[:, :m].clamp_min(0), Cx[:, m:]], -1)
    return (fall > small * _size(x)) & (_size(rise) <= small * fall)


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
        residual = torch.maximum(_size(rx), _size(rw / d.abs().clamp_min(1)))
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
        part = torch.where(leaves, w / _one_where_zero(w - goal), torch.inf)
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
