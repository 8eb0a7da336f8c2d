"""The equations of a convex quadratic program, scaled, and their interior-point and active-set iterations.

For `geometry.optim.quadratic`, which says what is solved and by which method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Equations", "Coefficients", "active_set", "interior_point", "times", "transposed", "violation"]


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
    root for Q, which is scaled from both sides); X and Z (B,1) are the sizes of d and p.
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

    @staticmethod
    def of(program: Coefficients, rounds: int = 2) -> "Equations":
        Q, p, C, d, m = program
        Dx, Dc, size_Q, size_C = torch.ones_like(Q[:, 0]), torch.ones_like(C[..., 0]), Q.abs(), C.abs()
        for _ in range(rounds):
            change = 1 / _one_where_zero(torch.maximum(size_Q.amax(-1).sqrt(), pad(size_C, (0, 0, 0, 1)).amax(-2)))
            Dx, size_Q = change * Dx, change[..., :, None] * size_Q * change[..., None, :]
            size_C = size_C * change[..., None, :]
            change = 1 / _one_where_zero(size_C.amax(-1))
            Dc, size_C = change * Dc, change[..., None] * size_C
        Dx, Dc, size_Q = Dx.detach(), Dc.detach(), size_Q.detach()  # no solution depends on them
        p, d, curvature = Dx * p, Dc * d, size_Q.amax((-2, -1))
        cost = _one_where_zero(curvature)
        curvature = curvature / cost  # zero where p says nothing about the size of x, else one
        size_p, size_d = _size(p).detach(), _size(d).detach()
        X = _one_where_zero(torch.maximum(size_d, curvature * size_p / cost))[:, None]
        Z = _one_where_zero(torch.maximum(size_p, curvature * size_d * cost))[:, None]
        Q = Dx[..., :, None] * Q * Dx[..., None, :]
        C = Dc[..., :, None] * C * Dx[..., None, :]
        return Equations(Q, p / Z, C, d / X, m, X / Z, X * Dx, Z * Dc, X * Z)

    @property
    def proximity(self) -> float:
        """Weight of the proximal term of the multipliers: small beside one, and eps times its inverse too."""
        return torch.finfo(self.p.dtype).eps ** 0.5

    @property
    def wide_proximity(self) -> float:
        """Weight of the proximal term of x where x may be left open: times `proximity` it is still far above eps."""
        return torch.finfo(self.p.dtype).eps ** 0.4

    def matrix(self, weight: Tensor) -> Tensor:
        """kappa Q + C^T diag(weight) C (B,n,n)."""
        root = weight.sqrt()[..., None] * self.C
        return (root.mT @ root).add_(self.kappa[..., None] * self.Q)  # two thirds of the time of baddbmm

    def factor(self, weight: Tensor, rho: float) -> Tensor:
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

    def slope(self, x: Tensor, w: Tensor) -> Tensor:
        """Gradient of the Lagrangian (B,n)."""
        return self.kappa * transposed(self.Q, x) + self.p + transposed(self.C, w)

    def refined(self, factor: Tensor, active: Tensor, rx: Tensor, rw: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
        """dx, dw of kappa Q dx + C^T dw = rx, C dx = rw on the active rows, dw = 0 on the others.

        The factor is that of the proximal equations, whose error each round of the proximal method of multipliers
        (Rockafellar 1976) reduces by about `proximity`.
        """
        dx, dw = torch.zeros_like(rx), torch.zeros_like(rw)
        for _ in range(rounds):
            left = rx - self.kappa * transposed(self.Q, dx) - transposed(self.C, dw)
            more_x, more_w = self.solve(factor, active / self.proximity, left, active * (rw - times(self.C, dx)))
            dx, dw = dx + more_x, dw + more_w
        return dx, dw


def violation(equations: Equations, x: Tensor, w: Tensor) -> Tensor:
    """Largest violation (B,) of the optimality conditions, in the scaled units; NaN becomes infinite."""
    m = equations.m
    Cx, Ctw = times(equations.C, x), transposed(equations.C, w)
    Qx = equations.kappa * transposed(equations.Q, x)
    slope = _size(Qx + equations.p + Ctw) / torch.stack([_size(Qx), _size(Ctw)]).amax(0).clamp_min(1)
    slack, z = equations.d - Cx, w[:, :m]
    # min(s, z) = 0 says feasibility of both and complementarity at once
    natural = torch.cat([torch.minimum(slack[:, :m], z), slack[:, m:]], -1)
    error = torch.maximum(slope, _size(natural) / _size(Cx).clamp_min(1))
    return torch.where(torch.isfinite(error), error, torch.inf)


def _longest(v: Tensor, dv: Tensor, fraction: Tensor | float) -> Tensor:
    """The step (B,1) up to one that goes this fraction of the way to where v + step dv is no longer positive."""
    ratio = torch.where(dv < 0, -fraction * v / dv, torch.inf)
    return pad(ratio, (0, 1), value=1.0).amin(-1, keepdim=True)


def _start(equations: Equations, rho: float) -> tuple[Tensor, Tensor, Tensor]:
    """x, w, s of Mehrotra's start (1992, section 7): the problem with the constraints as springs, moved inside."""
    m, ones = equations.m, torch.ones_like(equations.d)
    x, w = (v.nan_to_num() for v in equations.solve(equations.factor(ones, rho), ones, -equations.p, equations.d))
    s, z = -w[:, :m], w[:, :m]
    s, z = (v + pad(-1.5 * v, (0, 1)).amax(-1, keepdim=True).clamp_min(0) + 1e-2 for v in (s, z))
    product = 0.5 * (s * z).sum(-1, keepdim=True)
    return x, torch.cat([z + product / s.sum(-1, keepdim=True), w[:, m:]], -1), s + product / z.sum(-1, keepdim=True)


def _newton(
    solve: Callable[..., tuple[Tensor, Tensor]], rx: Tensor, rw: Tensor, s: Tensor, z: Tensor, product: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dw, ds that take the residuals to zero, and s z down by `product` (B,m); solve: that of `Equations`."""
    m = s.shape[1]
    dx, dw = solve(rx, torch.cat([rw[:, :m] + product / z, rw[:, m:]], -1))
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


def interior_point(equations: Equations, max_steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, w of the best iterate, steps (B,) int32, and whether the problem is infeasible, or unbounded (B,)."""
    C, p, d, m, delta = equations.C, equations.p, equations.d, equations.m, equations.proximity
    eps = torch.finfo(p.dtype).eps
    x, w, s = _start(equations, equations.wide_proximity)
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
        error = torch.stack([_size(rx), _size(rw), mu]).amax(0)
        better = running & (error < best)
        best = torch.where(better, error, best)
        best_x, best_w = torch.where(better[:, None], x, best_x), torch.where(better[:, None], w, best_w)
        # s z = mu says which constraints hold only once s and z are far from sqrt(mu): no sooner is `active_set` asked
        running = running & torch.isfinite(error) & (error > eps**0.75) & ~infeasible & ~unbounded
        if i == max_steps or not running.any():
            break
        weight = pad(1 / (s / z + delta), (0, rw.shape[1] - m), value=1 / delta)
        solve = partial(equations.solve, equations.factor(weight, equations.wide_proximity), weight)
        newton = partial(_newton, solve, rx, rw, s, z)
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
        unbounded = unbounded | (running & _descent(equations, dx))
        x, w, s = (torch.where(running[:, None], v + step * dv, v) for v, dv in ((x, dx), (w, dw), (s, ds)))
        steps = steps + running.int()
    return best_x, best_w, steps, infeasible, unbounded


def active_set(
    equations: Equations, x: Tensor, w: Tensor, failed: Tensor, polish: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x, w after primal-dual active-set steps, and the rows that hold as equations (B,m+q), 1 or 0.

    A row is active where z > s. What a step makes worse is refused. One step does it as a rule; there are up to
    6 `polish`, until all problems are optimal that have not failed (B,) before. Where z and s are both zero, as in
    programs with more constraints through the minimum than it has unknowns, the interior point leaves both near
    sqrt(mu), and which is larger is chance. The second `polish` steps therefore begin there anew, with only the rows
    whose z is clearly above that: the others have no part in the minimum's multipliers.
    """
    m, eps = equations.m, torch.finfo(x.dtype).eps
    inner = x, w
    best_x, best_w, best = x, w, torch.where(failed, 0.0, violation(equations, x, w))

    def chosen(x: Tensor, w: Tensor, least: float = -torch.inf) -> Tensor:
        slack, z = (equations.d - times(equations.C, x))[:, :m], w[:, :m]
        return pad(((z > slack) & (z > least)).to(x.dtype), (0, w.shape[1] - m), value=1.0)

    best_active = chosen(x, w)
    for i in range(6 * polish):
        unsolved = (best > eps**0.7) if i > 0 else torch.ones_like(failed)
        if not unsolved.any():
            break
        if i == polish:
            x, w = inner
            active = chosen(x, w, eps**0.3)
        else:
            active = chosen(x, w)
        # dependent constraints have many multipliers: at first the nearest ones, then the smallest
        w = active * w if i < 2 * polish else torch.zeros_like(w)
        factor = equations.factor(active / equations.proximity, equations.wide_proximity)
        residual = equations.d - times(equations.C, x)
        dx, dw = equations.refined(factor, active, -equations.slope(x, w), residual, rounds=3)
        x, w = x + dx, w + dw
        error = violation(equations, x, w)
        better = unsolved & (error <= best)
        best = torch.where(better, error, best)
        best_x, best_w, best_active = (
            torch.where(better[:, None], new, old) for new, old in ((x, best_x), (w, best_w), (active, best_active))
        )
    return best_x, best_w, best_active
