"""Batched dense quadratic programs, and their minimisers as differentiable functions of every coefficient.

    minimise 1/2 x^T Q x + p^T x    subject to    G x <= h ,  A x = b

`QuadraticProgram` is what `minimize` and `argmin` take, `quadratic_program` the call for everyday use. With C = [G; A],
d = [h; b] and the multipliers w = [z; y], a minimum satisfies (Nocedal and Wright 2006, eq. 16.37)

    Q x + p + C^T w = 0 ,  G x + s = h ,  A x = b ,  s >= 0 ,  z >= 0 ,  s z = 0

Bounds that stand for none, rows in other units and little Q beside p make numbers of many orders meet. Whether a point
is a minimum is therefore judged row by row (`violation`), and where it is not, the methods begin anew in units of what
was found: of x, and of the right sides that it violates.

Forward: Mehrotra's predictor-corrector interior-point method (Mehrotra 1992; Nocedal and Wright, algorithm 16.4), with
the proximal terms of Pougkakiotis and Gondzio (2021, IP-PMM), which are centred on the iterate and so change no
solution: Q may be singular and rows of A redundant. It ends with a few primal-dual active-set steps (Hintermüller, Ito
and Kunisch 2002), after which the active constraints hold, and the multipliers of the others are zero, to rounding.
Where they do not get there, rows are exchanged one by one (Lawson and Hanson 1974), which does from wherever it begins.
On the CPU, in float64, x is eliminated first where Q is definite and constraints are few (`eliminated`): the same
iterations of the multipliers alone. Where they lead to no minimum, or to none that is certainly unique, all that is
said above follows.
Backward: the adjoint of the same equations (Amos and Kolter 2017, OptNet, arXiv 1703.00443, eqs. 7 and 8).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from geometry.checks import check_tensors, check_tensors_or_none, leading, whole
from geometry.optim import eliminated
from geometry.optim.adjoint import argmin
from geometry.optim.equations import (
    Coefficients,
    Equations,
    Units,
    certainly_unique,
    curvature,
    judged,
    times,
    transposed,
    violation,
)
from geometry.optim.interior_point import active_set, interior_point
from geometry.optim.linear import solve_spd
from geometry.optim.solution import ConstrainedSolution, State, Status
from geometry.optim.transforms import Batch, implicit, opaque

__all__ = ["QuadraticProgram", "quadratic_program"]

_NARROWER = (0.0, 0.2, 0.1)
"""Powers of eps, by which proximal terms are narrower in the second to fourth attempt."""

_SETTLED = 0.125
"""The `violation` up to which nothing else is tried: far below the one that is allowed, and as far above rounding."""


def quadratic_program(
    Q: Tensor,
    p: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    *,
    max_steps: int = 50,
    polish: int = 2,
    throw: bool = False,
) -> ConstrainedSolution:
    """argmin over x (B,n) of 1/2 x^T Q x + p^T x with G x <= h and A x = b, differentiable in all six.

    Q (B|1,n,n), positive semidefinite, of which the symmetric part counts; p (B|1,n); G (B|1,m,n) and h (B|1,m);
    A (B|1,q,n) and b (B|1,q). Leading size 1, or none: shared by all problems. Either pair may be None. A row of zeros
    in G with a positive h is as if absent, so is one whose h is infinite. The multipliers of the solution carry
    gradients too. CONVERGED holds row by row, to about eps^0.8 of the terms that meet in that row, whatever the others
    are.

    Status: INFEASIBLE where the constraints contradict each other, or where a number is not finite and so x is NaN,
    UNBOUNDED where the cost falls for ever (either one where both hold), SINGULAR where the minimum is not unique, to
    that accuracy: the cost may be flat, or p hidden by the rounding of a far larger Q x. STALLED where four attempts,
    of max_steps interior-point steps, `polish` active-set steps and exchanges of 25 `polish` rows, do not reach it.
    These have gradient zero.
    The gradient is that of the problem whose strictly active constraints (z > 0) are equations and whose others are
    absent; where a constraint is degenerate (z = s = 0) that is one of the one-sided derivatives. Where the active
    constraints depend on each other, x has its gradient in Q and p, and in the constraints as long as they stay
    consistent; the multipliers are then not unique, and what they carry is no derivative.
    Raises ValueError for shapes and dtypes that do not fit.

    >>> found = quadratic_program(torch.eye(2), -torch.ones(2), torch.ones(1, 2), torch.ones(1))
    >>> found.x.round(decimals=6)  # nearest to (1, 1) where x + y <= 1
    tensor([[0.5000, 0.5000]])
    """
    solution = argmin(QuadraticProgram(), None, Q, p, G, h, A, b, max_steps=max_steps, polish=polish, throw=throw)
    assert isinstance(solution, ConstrainedSolution)
    return solution


@dataclass(frozen=True)
class QuadraticProgram:
    """minimise 1/2 x^T Q x + p^T x subject to G x <= h, A x = b; data: Q, p, G, h, A, b as in `quadratic_program`.

    There is nothing to start from: x0 is None.

    >>> argmin(QuadraticProgram(), None, torch.eye(2), torch.tensor([-1.0, 2.0])).x.round(decimals=6)
    tensor([[ 1., -2.]])
    """

    def minimize(self, x0: State, *data: Any, max_steps: int = 50, polish: int = 2) -> ConstrainedSolution:
        """What `geometry.minimize` returns for this problem."""
        program = _checked(x0, *data, max_steps=max_steps, polish=polish)
        optimum = _Optimum(program.m, max_steps, polish)
        return _solution(program.m, *opaque(optimum.find, *program[:4], batch="shared"))

    def argmin(
        self, x0: State, *data: Any, gradient: str = "exact", max_steps: int = 50, polish: int = 2
    ) -> ConstrainedSolution:
        """What `geometry.argmin` returns for this problem."""
        if gradient != "exact":
            raise ValueError(f'gradient of a quadratic program must be "exact", got {gradient!r}')
        program = _checked(x0, *data, max_steps=max_steps, polish=polish)
        optimum = _Optimum(program.m, max_steps, polish)
        return _solution(program.m, *implicit(optimum, *program[:4]))


def _checked(x0: State, *data: Tensor | None, max_steps: int, polish: int) -> Coefficients:
    """The program in one piece; ValueError where something does not fit."""
    whole("max_steps", max_steps, 1)
    whole("polish", polish, 0)
    if x0 is not None:
        found = type(x0).__name__
        raise ValueError(f"x0 must be None, as a quadratic program is not solved from a start, got {found}")
    if len(data) not in (2, 4, 6):
        raise ValueError(f"data must be Q, p, then G, h, then A, b, got {len(data)} tensors")
    Q, p, *constraints = data
    check_tensors(Q=Q, p=p)
    check_tensors_or_none(**dict(zip("GhAb", constraints, strict=False)))
    assert Q is not None
    assert p is not None
    if p.ndim not in (1, 2):
        raise ValueError(f"p must have shape (B|1,n) or (n,), got {tuple(p.shape)}")
    n = p.shape[-1]
    padded: list[Tensor | None] = [*constraints, *[None] * (4 - len(constraints))]
    G, h, A, b = padded
    for names, C, d in (("G and h", G, h), ("A and b", A, b)):
        if (C is None) != (d is None):
            raise ValueError(f"{names} must be given together, got {names[0 if d is None else -1]} alone")
    G, h = (p.new_zeros(1, 0, n), p.new_zeros(1, 0)) if G is None or h is None else (G, h)
    A, b = (p.new_zeros(1, 0, n), p.new_zeros(1, 0)) if A is None or b is None else (A, b)
    m, q = (d.shape[-1] if d.ndim else 0 for d in (h, b))
    every = {"Q": (Q, (n, n)), "p": (p, (n,)), "G": (G, (m, n)), "h": (h, (m,)), "A": (A, (q, n)), "b": (b, (q,))}
    sizes = {a.shape[0] for a, shape in every.values() if a.ndim > len(shape)} - {1}
    B = max(sizes, default=1)
    for name, (a, _) in every.items():
        if a.dtype != p.dtype or not a.is_floating_point():
            raise ValueError(f"{name} must have the floating dtype of p, {p.dtype}, got {a.dtype}")
    Q, p, G, h, A, b = (leading(name, a, B, shape) for name, (a, shape) in every.items())

    def stacked(one: Tensor, other: Tensor) -> Tensor:
        if one.shape[1] == 0 or other.shape[1] == 0:
            return one if other.shape[1] == 0 else other
        size = max(len(one), len(other)) if B else 0
        return torch.cat([one.expand(size, *one.shape[1:]), other.expand(size, *other.shape[1:])], 1)

    return Coefficients(0.5 * (Q + Q.mT), p.expand(B, n), stacked(G, A), stacked(h, b).expand(B, m + q), m)


def _solution(m: int, state: State, others: tuple[Tensor, ...]) -> ConstrainedSolution:
    x, w, _ = state
    _, cost, status, steps = others
    return ConstrainedSolution(x, cost, status, steps, w[:, :m], w[:, m:])


def _without_rows(program: Coefficients, rows: Tensor) -> Coefficients:
    """The program without some of its inequalities (B,m): they become 0 x <= 1."""
    if not rows.any():
        return program
    rows = pad(rows, (0, program.d.shape[1] - program.m))
    return program._replace(C=torch.where(rows[..., None], 0.0, program.C), d=torch.where(rows, 1.0, program.d))


class _Found(NamedTuple):
    """x, w, active rows and steps (B,…), what is known of them (B,), and the size of x in its scaled units (B,)."""

    x: Tensor
    w: Tensor
    active: Tensor
    steps: Tensor
    optimal: Tensor
    unique: Tensor
    infeasible: Tensor
    unbounded: Tensor
    size: Tensor

    def improved(self, where: Tensor, other: "_Found") -> "_Found":
        """This, with what another attempt found at some problems; only its optima replace what was unbounded, or one
        of many optima."""
        steps = self.steps.index_add(0, where, other.steps)
        kept = self.unbounded[where] & ~other.optimal
        other = other._replace(infeasible=other.infeasible & ~kept, unbounded=kept)
        many = self.optimal[where] & ~other.optimal
        where, other = where[~many], _Found(*(v[~many] for v in other))

        def put(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, where, new)

        return _Found(*map(put, self, other))._replace(steps=steps)


@dataclass(frozen=True)
class _Optimum:
    """`Equation` of a program of m inequalities: x (B,n), w (B,m+q), and the rows that hold as equations, 1 or 0.

    There Q x + p + C^T w and C x - d vanish, and w on all other rows.
    """

    m: int
    max_steps: int
    polish: int
    first: ClassVar[int] = 0
    batch: ClassVar[Batch] = "shared"

    def find(self, *tensors: Tensor) -> tuple[State, tuple[Tensor, ...]]:
        Q, p, C, d = tensors
        program = Coefficients(Q, p, C, d, self.m)
        program = _without_rows(program, torch.isposinf(program.d[:, : self.m]))
        total = program.Q.sum((-2, -1)) + program.C.sum((-2, -1)) + program.p.sum(-1) + program.d.sum(-1)
        finite = torch.isfinite(total)
        found = self.begin(program)
        hopeless = ~finite
        for narrow in _NARROWER:
            again = (~hopeless & ~found.infeasible & ~(found.optimal & found.unique)).nonzero()[:, 0]
            if len(again) == 0:
                break
            found = found.improved(again, self.attempt(program.at(again), found.size[again], narrow))
            hopeless = hopeless | found.unbounded | found.optimal
        infeasible = found.infeasible | ~finite
        status = torch.where(found.optimal, Status.CONVERGED, Status.STALLED)
        status = torch.where(found.unique, status, Status.SINGULAR)
        status = torch.where(found.unbounded & ~found.optimal, Status.UNBOUNDED, status)
        status = torch.where(infeasible, Status.INFEASIBLE, status).to(torch.int8)
        x, w = torch.where(finite[:, None], found.x, torch.nan), found.w
        cost = (x * (0.5 * transposed(program.Q, x) + program.p)).sum(-1)
        return (x, w, found.active), (status == Status.CONVERGED, cost, status, found.steps)

    def begin(self, program: Coefficients) -> "_Found":
        """What is found in the units that the coefficients ask for, with x eliminated where that leads to a minimum."""
        if not (self.polish and eliminated.fits(program)):
            return self.attempt(program, None, 0.0)
        units = Units.of(program)
        x, w, active, steps, terms, pull = eliminated.minimum(program, units, self.max_steps, self.polish)
        error, seen = judged(units, terms, x, w)
        unique, solved = certainly_unique(units, terms, pull, x, eliminated.DEFINITE), error <= _SETTLED
        doubtful = (solved & ~unique).nonzero()[:, 0]
        if len(doubtful):
            M = curvature(Equations.of(program.at(doubtful)), x[doubtful], w[doubtful], active[doubtful])
            unique[doubtful] = solve_spd(M, torch.zeros_like(x[doubtful]))[1]
        x, w, never = units.unit_x * x, units.unit_w * w, torch.zeros_like(unique)
        found = _Found(x, w, active, steps, error <= 1, unique, never, never, units.size * seen)
        left = (~unique | ~solved).nonzero()[:, 0]
        if len(left) == 0:
            return found
        rest = self.attempt(program.at(left), None, 0.0)
        rest = rest._replace(steps=rest.steps + steps[left])
        return _Found(*(old.index_copy(0, left, new) for old, new in zip(found, rest, strict=True)))

    def attempt(self, program: Coefficients, size: Tensor | None, narrow: float) -> "_Found":
        """What the methods find in units of this size (B,) of x, or of what the coefficients ask for."""
        eps, deep = torch.finfo(program.p.dtype).eps, size is not None
        whole = equations = Equations.of(program, size)
        if deep:  # what is that far away holds, and would hide the others
            equations = Equations.of(_without_rows(program, whole.d[:, : self.m] > eps**-0.5), size)
        x, w, steps, infeasible, unbounded = interior_point(equations, self.max_steps, deep, eps**narrow)
        x, w = equations.unit_x * x / whole.unit_x, equations.unit_w * w / whole.unit_w
        x, w, active = active_set(whole, x, w, infeasible | unbounded, self.polish)
        w = torch.cat([w[:, : self.m].clamp_min(0), w[:, self.m :]], -1)  # below zero is rounding, or no optimum
        error, seen = violation(whole, x, w)
        _, unique = solve_spd(curvature(whole, x, w, active), torch.zeros_like(x))
        # an x that large may hide what p and the nearer rows say
        seen = torch.where((error <= 1) & ~unique, whole.least, seen)
        x, w = whole.unit_x * x, whole.unit_w * w
        return _Found(x, w, active, steps, error <= 1, unique, infeasible, unbounded, whole.size * seen)

    def step(self, state: State) -> Tensor:
        return torch.zeros_like(torch.cat(state[:2], -1))

    def retract(self, state: State, step: Tensor) -> State:
        x, w, active = state
        along, across = step.split([x.shape[1], w.shape[1]], -1)
        return x + along, w + across, active

    def slope(self, state: State, Q: Tensor, p: Tensor, C: Tensor, d: Tensor) -> Tensor:
        x, w, active = state
        # a failed problem, whose x may be NaN, has a step of zero, which must not meet it
        x, w = x.nan_to_num(), active * w.nan_to_num()
        return torch.cat(
            [times(Q, x) + p + transposed(C, w), active * (times(C, x) - torch.where(active > 0, d, 0.0))], -1
        )

    def solve(self, state: State, tensors: tuple[Tensor, ...], b: Tensor) -> tuple[Tensor, Tensor]:
        x, _, active = state
        Q, p, C, d = tensors
        program = Coefficients(Q, p, C, torch.where(active > 0, d, 0.0), self.m)
        bx, bw = b.split([x.shape[1], active.shape[1]], -1)
        watched = torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, b))
        if watched or not eliminated.fits(program, b):
            found = _saddle_point(program, active, bx, bw)
        else:
            units = Units.of(program)
            u, v, good = eliminated.saddle_point(program, units, active, *_scaled(units, active, bx, bw))
            found, left = _unscaled(units, u, v), (~good).nonzero()[:, 0]
            if len(left):
                found[left] = _saddle_point(program.at(left), active[left], bx[left], bw[left])
        good = torch.isfinite(found).all(-1)
        return torch.where(good[:, None], found, 0.0), good


def _scaled(units: Units, active: Tensor, bx: Tensor, bw: Tensor) -> tuple[Tensor, Tensor]:
    return units.unit_x * bx, active * units.unit_w * bw


def _unscaled(units: Units, u: Tensor, v: Tensor) -> Tensor:
    return torch.cat([units.unit_x * u / units.unit_cost, units.unit_w * v / units.unit_cost], -1)


def _saddle_point(program: Coefficients, active: Tensor, bx: Tensor, bw: Tensor) -> Tensor:
    """u, v (B,n+m+q) of Q u + C^T v = bx, C u = bw on the active rows, v = 0 on the others; differentiable."""
    equations = Equations.of(program)
    with torch.no_grad():
        delta, _ = equations.proximity
        factor = equations.factor(active / delta, delta).detach()
    u, v = equations.refined(factor, active, *_scaled(equations, active, bx, bw), rounds=6)
    return _unscaled(equations, u, v)
