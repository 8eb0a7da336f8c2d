"""Batched dense quadratic programs, and their minimisers as differentiable functions of every coefficient.

    minimise 1/2 x^T Q x + p^T x    subject to    G x <= h ,  A x = b

`QuadraticProgram` is what `minimize` and `argmin` take, `quadratic_program` the call for everyday use. With C = [G; A],
d = [h; b] and the multipliers w = [z; y], a minimum satisfies (Nocedal and Wright 2006, eq. 16.37)

    Q x + p + C^T w = 0 ,  G x + s = h ,  A x = b ,  s >= 0 ,  z >= 0 ,  s z = 0

Forward: Mehrotra's predictor-corrector interior-point method (Mehrotra 1992; Nocedal and Wright, algorithm 16.4), with
the proximal terms of Pougkakiotis and Gondzio (2021, IP-PMM), which are centred on the iterate and so change no
solution: Q may be singular and rows of A redundant. It ends with a few primal-dual active-set steps (Hintermüller, Ito
and Kunisch 2002), after which the active constraints hold, and the multipliers of the others are zero, to rounding.
Backward: the adjoint of the same equations (Amos and Kolter 2017, OptNet, arXiv 1703.00443, eqs. 7 and 8).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geometry.optim.adjoint import argmin
from geometry.optim.interior_point import Coefficients, Equations, active_set, interior_point, transposed, violation
from geometry.optim.linear import solve_spd
from geometry.optim.solution import ConstrainedSolution, State, Status

__all__ = ["QuadraticProgram", "quadratic_program"]


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
    A (B|1,q,n) and b (B|1,q). Leading size 1: shared by all problems. Either pair may be None. A row of zeros in G
    with a positive h is as if absent. The multipliers of the solution carry gradients too.

    Status: INFEASIBLE where the constraints contradict each other, or where a number is not finite and so x is NaN,
    UNBOUNDED where the cost falls for ever (either one where both hold), SINGULAR where the minimum is not unique,
    STALLED where max_steps interior-point and 6 `polish` active-set steps do not reach it. These have gradient zero.
    The gradient is that of the problem whose strictly active constraints (z > 0) are equations and whose others are
    absent; where a constraint is degenerate (z = s = 0) that is one of the one-sided derivatives. Where the active
    constraints depend on each other, x has its gradient in Q and p, and in the constraints as long as they stay
    consistent; the multipliers are then not unique, and what they carry is no derivative.
    Raises ValueError for shapes and dtypes that do not fit.
    """
    solution = argmin(QuadraticProgram(), None, Q, p, G, h, A, b, max_steps=max_steps, polish=polish, throw=throw)
    assert isinstance(solution, ConstrainedSolution)
    return solution


@dataclass(frozen=True)
class QuadraticProgram:
    """minimise 1/2 x^T Q x + p^T x subject to G x <= h, A x = b; data: Q, p, G, h, A, b as in `quadratic_program`.

    There is nothing to start from: x0 is None.
    """

    def minimize(self, x0: State, *data: Any, max_steps: int = 50, polish: int = 2) -> ConstrainedSolution:
        """What `geometry.minimize` returns for this problem."""
        with torch.no_grad():
            return _solve(_checked(x0, *data), max_steps, polish)[0]

    def argmin(
        self, x0: State, *data: Any, gradient: str = "exact", max_steps: int = 50, polish: int = 2
    ) -> ConstrainedSolution:
        """What `geometry.argmin` returns for this problem."""
        if gradient != "exact":
            raise ValueError(f'gradient of a quadratic program must be "exact", got {gradient!r}')
        program = _checked(x0, *data)
        with torch.no_grad():
            found, optimum = _solve(program, max_steps, polish)
        inputs = program[:4]
        if not (torch.is_grad_enabled() and any(a.requires_grad for a in inputs)):
            return found
        w = torch.cat([found.inequality, found.equality], -1)
        x, w = _AtOptimum.apply(optimum, found.x, w, *inputs)
        return ConstrainedSolution(x, found.cost, found.status, found.steps, w[:, : program.m], w[:, program.m :])


def _checked(x0: State, Q: Tensor, p: Tensor, *constraints: Tensor | None) -> Coefficients:
    """The program in one piece; ValueError where something does not fit."""
    if x0 is not None:
        raise ValueError("x0 must be None: a quadratic program is not solved from a start")
    if p.ndim != 2:
        raise ValueError(f"p must have shape (B|1,n), got {tuple(p.shape)}")
    if len(constraints) not in (0, 2, 4):
        raise ValueError(f"data must be Q, p, then G, h, then A, b, got {2 + len(constraints)} tensors")
    n, given_or_none = p.shape[1], (*constraints, None, None, None, None)
    G, h, A, b = given_or_none[:4]
    for names, C, d in (("G and h", G, h), ("A and b", A, b)):
        if (C is None) != (d is None):
            raise ValueError(f"{names} must be given together")
    G, h = (p.new_zeros(1, 0, n), p.new_zeros(1, 0)) if G is None or h is None else (G, h)
    A, b = (p.new_zeros(1, 0, n), p.new_zeros(1, 0)) if A is None or b is None else (A, b)
    m, q = (d.shape[-1] if d.ndim else 0 for d in (h, b))
    given = {"Q": (Q, (n, n)), "p": (p, (n,)), "G": (G, (m, n)), "h": (h, (m,)), "A": (A, (q, n)), "b": (b, (q,))}
    sizes = {a.shape[0] for a, _ in given.values() if a.ndim > 0} - {1}
    B = max(sizes, default=1)
    for name, (a, shape) in given.items():
        if a.ndim == 0 or a.shape[1:] != shape or a.shape[0] not in (1, B):
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"{name} must have shape ({B} or 1, {wanted}), got {tuple(a.shape)}")
        if a.dtype != p.dtype or not a.is_floating_point():
            raise ValueError(f"{name} must have the floating dtype of p, {p.dtype}, got {a.dtype}")

    def stacked(one: Tensor, other: Tensor) -> Tensor:
        if one.shape[1] == 0 or other.shape[1] == 0:
            return one if other.shape[1] == 0 else other
        size = max(len(one), len(other)) if B else 0
        return torch.cat([one.expand(size, *one.shape[1:]), other.expand(size, *other.shape[1:])], 1)

    return Coefficients(0.5 * (Q + Q.mT), p.expand(B, n), stacked(G, A), stacked(h, b).expand(B, m + q), m)


class _Optimum(NamedTuple):
    """What the adjoint needs: the equations, the rows that hold there (B,m+q), and who converged (B,)."""

    equations: Equations
    active: Tensor
    ok: Tensor


def _solve(program: Coefficients, max_steps: int, polish: int) -> tuple[ConstrainedSolution, _Optimum]:
    equations = Equations.of(program)
    eps = torch.finfo(program.p.dtype).eps
    total = equations.Q.sum((-2, -1)) + equations.C.sum((-2, -1)) + equations.p.sum(-1) + equations.d.sum(-1)
    finite = torch.isfinite(total)
    x, w, steps, infeasible, unbounded = interior_point(equations, max_steps)
    infeasible = infeasible | ~finite
    x, w, active = active_set(equations, x, w, infeasible | unbounded, polish)
    M = equations.matrix(active)
    M.diagonal(dim1=-2, dim2=-1).mul_(1 - eps**0.75)  # far above rounding, so that a singular one is seen
    _, unique = solve_spd(M, torch.zeros_like(x))
    optimal = violation(equations, x, w) <= eps**0.7
    status = torch.where(unique & optimal, Status.CONVERGED, torch.where(unique, Status.STALLED, Status.SINGULAR))
    status = torch.where(unbounded, Status.UNBOUNDED, status)
    status = torch.where(infeasible, Status.INFEASIBLE, status).to(torch.int8)
    x, w = equations.unit_x * x, equations.unit_w * w
    x = torch.where(finite[:, None], x, torch.nan)
    cost = (x * (0.5 * transposed(program.Q, x) + program.p)).sum(-1)
    m = program.m
    found = ConstrainedSolution(x, cost, status, steps, w[:, :m], w[:, m:])
    return found, _Optimum(equations, active, found.converged)


# ---- the adjoint ----


class _AtOptimum(torch.autograd.Function):
    """x (B,n) and w (B,m+q), with the gradients of the optimum in Q, p, C and d."""

    @staticmethod
    def forward(
        ctx: Any, optimum: _Optimum, x: Tensor, w: Tensor, Q: Tensor, p: Tensor, C: Tensor, d: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.optimum, ctx.shared = optimum, (len(Q) == 1, len(C) == 1)
        x, w = x.clone(), w.clone()
        ctx.save_for_backward(x, w)
        return x, w

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_w: Tensor) -> tuple[Tensor | None, ...]:
        equations, active, ok = ctx.optimum
        factor = equations.factor(active / equations.proximity, equations.proximity)
        rx, rw = equations.unit_x * grad_x, active * equations.unit_w * grad_w
        u, v = equations.refined(factor, active, rx, rw, rounds=6)
        u, v = equations.unit_x * u / equations.unit_cost, equations.unit_w * v / equations.unit_cost
        # a failed problem contributes exactly nothing, whatever its numbers are
        x, w, u, v = (torch.where(ok[:, None], a, 0.0) for a in (*ctx.saved_tensors, u, v))
        shared_Q, shared_C = ctx.shared
        _, _, _, need_Q, need_p, need_C, need_d = ctx.needs_input_grad
        return (
            None,
            None,
            None,
            _outer(torch.stack([u, x], -1), torch.stack([x, u], -1), shared_Q).mul_(-0.5) if need_Q else None,
            -u if need_p else None,
            _outer(torch.stack([w, v], -1), torch.stack([u, x], -1), shared_C).neg_() if need_C else None,
            v if need_d else None,
        )


def _outer(a: Tensor, b: Tensor, shared: bool) -> Tensor:
    """a b^T (B,i,j) of a (B,i,k) and b (B,j,k); their sum (1,i,j) where the matrix is shared by the batch."""
    return torch.einsum("bik,bjk->ij", a, b)[None] if shared else a @ b.mT
