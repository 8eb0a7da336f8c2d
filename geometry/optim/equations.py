"""The equations of a convex quadratic program, scaled, and whether a point satisfies them.

For `geometry.optim.quadratic`, which says what is solved.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from geometry.optim.linear import margin

__all__ = [
    "Coefficients",
    "Equations",
    "Terms",
    "Units",
    "certainly_unique",
    "curvature",
    "judged",
    "largest",
    "one_where_zero",
    "times",
    "transposed",
    "violation",
]


AnyUnits = TypeVar("AnyUnits", bound="Units")


class Coefficients(NamedTuple):
    """Q (B|1,n,n) symmetric, p (B,n), C = [G; A] (B|1,m+q,n), d = [h; b] (B,m+q), and m."""

    Q: Tensor
    p: Tensor
    C: Tensor
    d: Tensor
    m: int

    def at(self, where: Tensor) -> "Coefficients":
        """Those of some problems of the batch."""
        Q, p, C, d = (t[where] if len(t) == len(self.p) else t for t in self[:4])
        return Coefficients(Q, p, C, d, self.m)


def largest(v: Tensor) -> Tensor:
    """Largest magnitude (B,) of v (B,k); zero for k = 0."""
    return pad(v, (0, 1)).abs().amax(-1)


def times(M: Tensor, v: Tensor) -> Tensor:
    """M v (B,i) of M (B|1,i,j) and v (B,j)."""
    return v @ M[0].mT if len(M) == 1 else (M @ v[..., None])[..., 0]


def transposed(M: Tensor, v: Tensor) -> Tensor:
    """M^T v (B,j) of M (B|1,i,j) and v (B,i); several times faster than `times` where M is not shared."""
    return v @ M[0] if len(M) == 1 else (v[:, None] @ M)[:, 0]


def one_where_zero(a: Tensor) -> Tensor:
    return torch.where(a > 0, a, 1.0)


class Terms(NamedTuple):
    """What meets at x, w: kappa Q x, C^T w (B,n) and C x (B,m+q); the same of all magnitudes; and the largest
    coefficient (B|1,m+q) of every row of C."""

    Qx: Tensor
    size_Qx: Tensor
    Ctw: Tensor
    size_Ctw: Tensor
    Cx: Tensor
    size_Cx: Tensor
    reach: Tensor


@dataclass(frozen=True)
class Units:
    """The units of x / (X Dx) and w / (Z Dc), in which the program is kappa Dx Q Dx, Dx p / Z, Dc C Dx, Dc d / X with
    kappa = X / Z.

    Dx and Dc bring the largest entry of every row and column of [Q C^T; C 0] near one (as Ruiz 2001 does, with the
    root for Q, which is scaled from both sides); X and Z (B,1) are the sizes of x and w: as large as d and p and the
    minimum without constraints ask for, or as they are given. No entry of Q is larger than its diagonal says: that of
    Dx Q Dx (B|1,n) is the `diagonal`.

    balance (B,1): the largest entry of kappa Q, one at most, which is what it is unless X is given. All proximal terms
    are in proportion to it, so that the error that they leave does not depend on X.
    """

    p: Tensor
    d: Tensor
    m: int
    kappa: Tensor
    Dx: Tensor
    Dc: Tensor
    unit_x: Tensor
    unit_w: Tensor
    unit_cost: Tensor
    balance: Tensor
    size: Tensor
    diagonal: Tensor

    @staticmethod
    def of(program: Coefficients, size: Tensor | None = None, rounds: int = 2) -> "Units":
        Q, p, C, d, m = program
        size_Q, size_C = Q.detach().diagonal(dim1=-2, dim2=-1).abs(), C.detach().abs()
        Dx, Dc = torch.ones_like(size_Q), torch.ones_like(size_C[..., 0])
        for _ in range(rounds):
            # rows first: the unit of a constraint says nothing about that of x
            Dc = Dc / one_where_zero(Dc * (size_C * Dx[:, None]).amax(-1))
            across = Dx * pad(size_C * Dc[..., None], (0, 0, 0, 1)).amax(-2)
            Dx = Dx / one_where_zero(torch.maximum(size_Q.sqrt() * Dx, across))
        p, d, diagonal = Dx * p, Dc * d, Dx * size_Q * Dx
        curvature = diagonal.amax(-1)
        cost = one_where_zero(curvature)
        curvature = curvature / cost  # zero where p says nothing about the size of x, else one
        size_p, size_d = largest(p).detach(), largest(d).detach()
        X = torch.maximum(size_d, curvature * size_p / cost) if size is None else size
        Z = one_where_zero(torch.maximum(size_p, curvature * (size_d if size is None else size) * cost))[:, None]
        X = one_where_zero(X)[:, None]
        balance = torch.where(curvature[:, None] > 0, (X * cost[:, None] / Z).clamp_max(1), 1.0)
        return Units(p / Z, d / X, m, X / Z, Dx, Dc, X * Dx, Z * Dc, X * Z, balance, X[:, 0], diagonal)

    def at(self: AnyUnits, where: Tensor) -> AnyUnits:
        """Those of some problems of the batch."""
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

    def push(self, Qx: Tensor, w: Tensor) -> Tensor:
        """The multipliers (B,1) up to which they may be rounding, of either sign; Qx (B,n): the terms of Q x."""
        eps = torch.finfo(w.dtype).eps
        least = eps**0.8 * largest(Qx) + 64 * eps * torch.maximum(largest(self.p), largest(w))
        return least[:, None] + torch.finfo(w.dtype).tiny

    @property
    def aim(self) -> float:
        """The `violation` of rounding alone."""
        return min(0.125, 8 * torch.finfo(self.p.dtype).eps ** 0.2)

    @property
    def least(self) -> Tensor:
        """The smallest size (B,) that d, or p, would give to x: rounding beside it is none that one can see."""
        curvature = largest(self.kappa * self.diagonal)
        sizes = torch.cat([self.d.abs(), (largest(self.p) / one_where_zero(curvature))[:, None]], -1)
        return torch.where(sizes > 0, sizes, 1.0).amin(-1).clamp_max(1)


@dataclass(frozen=True)
class Equations(Units):
    """The program in its units; Q is Dx Q Dx, without kappa."""

    Q: Tensor
    C: Tensor

    @staticmethod
    def of(program: Coefficients, size: Tensor | None = None, rounds: int = 2) -> "Equations":
        units = Units.of(program, size, rounds)
        Q = units.Dx[:, :, None] * program.Q * units.Dx[:, None]
        C = units.Dc[:, :, None] * program.C * units.Dx[:, None]
        return Equations(**{f.name: getattr(units, f.name) for f in fields(units)}, Q=Q, C=C)

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

    def terms(self, x: Tensor, w: Tensor) -> Terms:
        """What meets in the equations at x, w."""
        Q, C, along, across = self.Q.abs(), self.C.abs(), x.abs(), w.abs()
        return Terms(
            self.kappa * transposed(self.Q, x),
            self.kappa * transposed(Q, along),
            transposed(self.C, w),
            transposed(C, across),
            times(self.C, x),
            times(C, along),
            pad(C, (0, 1)).amax(-1),
        )


def violation(equations: Equations, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """As `judged` says, of x and w."""
    return judged(equations, equations.terms(x, w), x, w)


def judged(units: Units, terms: Terms, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Largest violation (B,) of the optimality conditions, in parts of what each is allowed, or infinite; and the
    size (B,) of x and of the right sides that it violates.

    Allowed is, row by row, eps^0.8 of the terms that meet in it, which is the same in all units, and the rounding of a
    solution of this size. A gradient is seen beside Q x, however large p and the multipliers are: it is what moves x.
    """
    m, p, d, eps = units.m, units.p, units.d, torch.finfo(x.dtype).eps
    tolerance, rounding, tiny = eps**0.8, 64 * eps, torch.finfo(x.dtype).tiny
    size = torch.maximum(largest(x), units.least)[:, None]
    row = tolerance * (terms.size_Cx + d.abs()) + rounding * size * terms.reach + tiny
    # harder than that they push against each other, and slope and slack prove nothing
    most = torch.maximum(largest(p), largest(terms.size_Qx)) / eps**0.4
    force = rounding * torch.maximum(largest(p), largest(terms.size_Ctw).minimum(most))[:, None] + tiny
    push = units.push(terms.size_Qx, w)
    slack, z = d - terms.Cx, w[:, :m]
    held = torch.cat([torch.where(z > push, slack[:, :m].abs(), -slack[:, :m]), slack[:, m:].abs()], -1) / row
    slope = (terms.Qx + p + terms.Ctw).abs() / (tolerance * terms.size_Qx + force)
    error = pad(torch.cat([slope, held.clamp_min(0), (-z / push).clamp_min(0)], -1), (0, 1)).amax(-1)
    seen = torch.maximum(size[:, 0], largest(torch.where(held > 1, d, 0.0)))
    return torch.where(torch.isfinite(error), error, torch.inf), torch.where(torch.isfinite(seen), seen, 1.0)


def _unit_of_curvature(units: Units, terms: Terms, x: Tensor) -> Tensor:
    """The unit (B,1) of kappa Q in which x and the largest force on it are one."""
    force = torch.maximum(largest(torch.cat([units.p, terms.size_Qx], -1)), largest(terms.size_Ctw))
    size = torch.maximum(largest(x), units.least)
    return torch.where((force > 0) & torch.isfinite(force), size / one_where_zero(force), 1.0)[:, None]


def curvature(equations: Equations, x: Tensor, w: Tensor, active: Tensor) -> Tensor:
    """kappa Q + C^T C (B,n,n) over the active rows that push, in units in which x and the largest force on it are one,
    its diagonal less by eps^0.75: far above rounding, so that a singular one is seen.

    What is left of a curvature of eps there lets rounding move x by all of its size.
    """
    m, terms = equations.m, equations.terms(x, w)
    pushing = torch.cat([w[:, :m] > equations.push(terms.size_Qx, w), torch.ones_like(w[:, m:]) > 0], -1)
    unit = _unit_of_curvature(equations, terms, x)
    M = replace(equations, kappa=equations.kappa * unit).matrix(active * pushing)
    M.diagonal(dim1=-2, dim2=-1).mul_(1 - _seen_in(x))
    return M


def certainly_unique(units: Units, terms: Terms, pull: Tensor, x: Tensor, definite: float) -> Tensor:
    """Whether `curvature` is known to be regular (B,) without a factor of it.

    definite: Q less so much of its diagonal is positive definite. pull (B,n): the diagonal of C^T C over the active
    rows. Then kappa Q + C^T C less so much of its own diagonal is definite too, as large a part as Q has of it.
    """
    own = units.kappa * _unit_of_curvature(units, terms, x) * units.diagonal
    part = (own / (own + pull)).amin(-1)
    return definite * part > 2 * (_seen_in(x) + margin(x.dtype, x.shape[1]))


def _seen_in(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps ** 0.75
