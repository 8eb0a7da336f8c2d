"""Batched nonlinear least squares: `Problem`, `Solution`, `minimize`.

A `Problem` is written for ONE instance; everything here runs B of them at once. Dimension 0 of every tensor of
`x` and of every tensor of `data` is the batch (size 1 in `data` is shared by all), B problems converge or fail
independently, and nothing is moved to the host but one "is anyone still running" flag per step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

from geometry.robust import Kernel, kernel_derivatives

__all__ = [
    "ConstrainedSolution",
    "Problem",
    "Program",
    "Solution",
    "SolverError",
    "State",
    "Status",
    "batch_data",
    "minimize",
]

State = Any
"""An unknown `x`: one tensor or a tuple of tensors. Not a union, or every caller would have to say which."""


class Status(IntEnum):
    """What became of one problem of the batch."""

    CONVERGED = 0
    STALLED = 1
    SINGULAR = 2
    INFEASIBLE = 3
    TOO_FEW = 4
    UNBOUNDED = 5

    @property
    def message(self) -> str:
        """One sentence for a person."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged to a strict local minimum",
    Status.STALLED: "stopped before the gradient vanished: raise max_steps, or the minimum lies at infinity",
    Status.SINGULAR: "the minimum is not isolated or not a minimum: the data do not determine the unknowns",
    Status.INFEASIBLE: "no finite cost at the start; for a camera: a point lies behind it; or contrary constraints",
    Status.TOO_FEW: "fewer observations than the unknowns need",
    Status.UNBOUNDED: "the cost falls for ever within the constraints",
}


class SolverError(RuntimeError):
    """Raised with `throw=True` when a problem of the batch did not converge."""


def _add(x: State, step: Tensor) -> State:
    return x + step


@dataclass(frozen=True)
class Problem:
    """One nonlinear least-squares problem: minimise half the sum of rho(|r_i|^2) over x.

    residual(x, *data) -> (M,) or (M,k), one row per observation; a non-finite residual marks x as infeasible.
    retract(x, step (dof,)) -> x moves x by a tangent step; x + step by default. dof is the number of unknowns.
    kernel is a robust kernel applied to the rows (`geometry.robust`), None for plain least squares.

    A problem that must be fast may bring its own derivatives, batched and without vmap:
    linearize(x, *data) -> Linearization and hessian(x, *data) -> (B,P,P). Automatic differentiation of `residual`
    stays the reference that they are tested against.
    """

    residual: Callable[..., Tensor]
    dof: int
    retract: Callable[..., State] = _add
    kernel: Kernel | None = None
    linearize: "Callable[..., Linearization] | None" = None
    hessian: Callable[..., Tensor] | None = None

    def cost(self, x: State, *data: Tensor) -> Tensor:
        """Cost () of one instance."""
        r = self.residual(x, *data)
        s = r.square().sum(-1) if r.ndim == 2 else r.square()
        return 0.5 * (s if self.kernel is None else self.kernel(s)).sum()

    def costs(self, x: State, *data: Tensor) -> Tensor:
        """Costs (B,) of a batch."""
        return vmap(self.cost)(x, *data)


class Linearization(NamedTuple):
    """Cost (B,), gradient (B,P) and Gauss-Newton matrix (B,P,P) at x, with respect to the tangent step."""

    cost: Tensor
    gradient: Tensor
    gauss_newton: Tensor


@dataclass(frozen=True)
class Solution:
    """What a solver found, and whether to trust it.

    x: the minimiser, with the shapes of the start. cost (B,): half the robustified sum of squares. status (B,): int8
    of `Status`. steps (B,): accepted Levenberg-Marquardt steps, int32.
    """

    x: State
    cost: Tensor
    status: Tensor
    steps: Tensor

    @property
    def converged(self) -> Tensor:
        """(B,) bool."""
        return self.status == Status.CONVERGED

    def raise_if_failed(self) -> None:
        """Raise SolverError naming the failed problems of the batch and why they failed."""
        failed = (~self.converged).nonzero().flatten().tolist()
        if failed:
            lines = [f"problem {i}: {Status(int(self.status[i])).message}" for i in failed[:5]]
            raise SolverError(f"{len(failed)} of {len(self.status)} problems failed: " + "; ".join(lines))


@dataclass(frozen=True)
class ConstrainedSolution(Solution):
    """The solution of a constrained problem, with multipliers w for which the gradient of cost + w . c vanishes.

    inequality (B,m): nonnegative, of c <= 0; equality (B,q): of c = 0. A constraint's multiplier is the fall of the
    cost per unit by which it is relaxed.
    """

    inequality: Tensor
    equality: Tensor


class Program(Protocol):
    """A problem that is not a free sum of squares: it brings the two verbs itself, and they hand over to it."""

    def minimize(self, x0: State, *data: Tensor | None, max_steps: int, polish: int) -> Solution:
        """See `geometry.optim.problem.minimize`."""
        ...

    def argmin(self, x0: State, *data: Tensor | None, gradient: str, max_steps: int, polish: int) -> Solution:
        """See `geometry.optim.adjoint.argmin`."""
        ...


def map_state(f: Callable[..., Tensor], *states: State) -> State:
    """Apply f to corresponding tensors of states."""
    if isinstance(states[0], Tensor):
        return f(*states)
    return tuple(f(*tensors) for tensors in zip(*states, strict=True))


def select(condition: Tensor, a: State, b: State) -> State:
    """Per problem, a where condition (B,) holds, else b."""
    return map_state(lambda u, v: torch.where(condition.view(-1, *[1] * (u.ndim - 1)), u, v), a, b)


def batch_data(x0: State, data: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Expand shared data (leading size 1) to the batch of x0; ValueError where a leading size fits neither."""
    size = (x0 if isinstance(x0, Tensor) else x0[0]).shape[0]
    for i, d in enumerate(data):
        if d.ndim == 0 or d.shape[0] not in (1, size):
            raise ValueError(f"data[{i}] must have leading size 1 or {size} (the batch), got {tuple(d.shape)}")
    return tuple(d.expand(size, *d.shape[1:]) for d in data)


def zero_step(problem: Problem, x: State) -> Tensor:
    """A tangent step of zeros (B,P) for the batch x."""
    first = x if isinstance(x, Tensor) else x[0]
    return first.new_zeros(first.shape[0], problem.dof)


def jacobian(problem: Problem, x: State, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Residual (B,M,k) at x and its derivative (B,M,k,P) by a tangent step, in forward mode; differentiable."""

    def single(x: State, step: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        def moved(step: Tensor) -> tuple[Tensor, Tensor]:
            r = problem.residual(problem.retract(x, step), *data)
            r = r if r.ndim == 2 else r[:, None]
            return r, r

        derivative, r = jacfwd(moved, has_aux=True)(step)
        return r, derivative

    return vmap(single)(x, zero_step(problem, x), *data)


def linearize(problem: Problem, x: State, data: tuple[Tensor, ...]) -> Linearization:
    """Normal equations at x: the problem's own if it brings them, else by forward-mode differentiation."""
    if problem.linearize is not None:
        return problem.linearize(x, *data)

    r, J = jacobian(problem, x, data)
    rho, slope, _ = kernel_derivatives(problem.kernel, r.square().sum(-1))
    weighted = slope[..., None] * r
    gradient = torch.einsum("bmk,bmkp->bp", weighted, J)
    weighted_J = (slope[..., None, None] * J).flatten(1, 2)
    return Linearization(0.5 * rho.sum(-1), gradient, J.flatten(1, 2).mT @ weighted_J)


def exact_hessian(problem: Problem, x: State, data: tuple[Tensor, ...]) -> Tensor:
    """Hessian (B,P,P) of the cost with respect to the step: the problem's own, else by autodiff."""
    if problem.hessian is not None:
        return problem.hessian(x, *data)

    def single(x: State, step: Tensor, *data: Tensor) -> Tensor:
        return hessian(lambda s: problem.cost(problem.retract(x, s), *data))(step)

    return vmap(single)(x, zero_step(problem, x), *data)


def solve_spd(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Solve A u = b for symmetric A after scaling its diagonal to one. (B,P,P), (B,P) -> u (B,P), ok (B,).

    ok is False, and u zero, where A is not numerically positive definite; the other problems are untouched.
    """
    scale = A.diagonal(dim1=-2, dim2=-1).abs().clamp_min(torch.finfo(A.dtype).tiny).rsqrt()
    scaled = A * scale[..., :, None] * scale[..., None, :]
    finite = torch.isfinite(scaled).all(-1).all(-1)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(torch.where(finite[..., None, None], scaled, eye))
    pivot = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    ok = finite & (info == 0) & (pivot > 100 * torch.finfo(A.dtype).eps)
    factor = torch.where(ok[..., None, None], factor, eye)
    u = torch.cholesky_solve((b * scale)[..., None], factor).squeeze(-1) * scale
    return torch.where(ok[..., None], u, torch.zeros_like(u)), ok


def _norm2(gradient: Tensor, gauss_newton: Tensor) -> Tensor:
    """Squared gradient in the units of the cost, whatever the units of x: sum g_i^2 / A_ii."""
    diagonal = gauss_newton.diagonal(dim1=-2, dim2=-1)
    return (gradient.square() / diagonal.clamp_min(torch.finfo(gradient.dtype).tiny)).sum(-1)


def _below_resolution(candidate: State, x: State) -> Tensor:
    """Whether a step moved no tensor of x by more than eps^0.7 of its size: quadratic convergence does the rest."""

    def small(a: Tensor, b: Tensor) -> Tensor:
        if a.numel() == 0:
            return torch.ones(len(a), dtype=torch.bool, device=a.device)
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)  # one number per problem has no dimension 1
        return (a - b).abs().amax(1) <= torch.finfo(b.dtype).eps ** 0.7 * b.abs().amax(1)

    still = map_state(small, map_state(torch.Tensor.detach, candidate), map_state(torch.Tensor.detach, x))
    return still if isinstance(still, Tensor) else torch.stack(still).all(0)


def _infinite_where_nan(cost: Tensor) -> Tensor:
    return torch.where(torch.isfinite(cost), cost, torch.full_like(cost, torch.inf))


def next_damping(
    damping: Tensor, growth: Tensor, accept: Tensor, ratio: Tensor, least: float = 1e-14
) -> tuple[Tensor, Tensor]:
    """Damping and growth after a trial step, by the ratio of real to predicted decrease (Nielsen 1999, eq. 2.4)."""
    shrink = (1 - (2 * ratio.clamp(-1, 2) - 1) ** 3).clamp(1 / 3, 1)
    damping = torch.where(accept, (damping * shrink).clamp_min(least), damping * growth)
    return damping, torch.where(accept, 2.0, 2 * growth)


def levenberg_marquardt(
    problem: Problem, x: State, data: tuple[Tensor, ...], max_steps: int
) -> tuple[State, Tensor, Tensor]:
    """Damped Gauss-Newton with Nielsen's damping (1999) and Marquardt's scaling, accepted problem by problem.

    Returns x, accepted steps (B,), and whether the start was feasible (B,). Runs with or without an autograd graph:
    decisions are taken on detached values, so that a graph, if recorded, is that of the accepted steps.
    """
    eps = torch.finfo(zero_step(problem, x).dtype).eps
    # predicted relative decrease that ends a problem: a few digits above rounding of the cost
    tolerance = max(1e-12, 50 * eps)
    lin = linearize(problem, x, data)
    cost = _infinite_where_nan(lin.cost.detach())
    feasible = torch.isfinite(cost)
    running = feasible.clone()
    damping = torch.full_like(cost, 1e-3)
    growth = torch.full_like(cost, 2.0)
    steps = torch.zeros(len(cost), dtype=torch.int32, device=cost.device)
    for _ in range(max_steps):
        if not running.any():
            break
        diagonal = lin.gauss_newton.diagonal(dim1=-2, dim2=-1).detach()
        # a direction that the data do not see still gets some damping
        floor = 1e-9 * diagonal.amax(-1, keepdim=True) + torch.finfo(cost.dtype).tiny
        D = torch.diag_embed(damping[:, None] * torch.maximum(diagonal, floor))
        step, _ = solve_spd(lin.gauss_newton + D, -lin.gradient)
        candidate = problem.retract(x, step) if problem.retract is _add else vmap(problem.retract)(x, step)
        predicted = 0.5 * (step * (damping[:, None] * diagonal * step - lin.gradient)).sum(-1).detach()
        trial = linearize(problem, select(running, candidate, x), data)
        trial_cost = _infinite_where_nan(trial.cost.detach())
        accept = running & (trial_cost < cost)
        ratio = (cost - trial_cost) / predicted.clamp_min(torch.finfo(cost.dtype).tiny)
        done = (predicted <= tolerance * torch.minimum(cost, trial_cost)) | _below_resolution(candidate, x)
        x = select(accept, candidate, x)
        lin = Linearization(*(select(accept, a, b) for a, b in zip(trial, lin, strict=True)))
        cost = torch.where(accept, trial_cost, cost)
        further, wider = next_damping(damping, growth, accept, ratio)
        # that of a finished problem would grow without end while others go on, and its unrolled gradient be nan
        damping, growth = torch.where(running, further, damping), torch.where(running, wider, growth)
        steps = steps + accept.int()
        running = running & ~done & (damping < 1e12)
    return x, steps, feasible


def _polish(problem: Problem, x: State, data: tuple[Tensor, ...], rounds: int) -> tuple[State, Tensor, Tensor, Tensor]:
    """Undamped Newton steps that shrink the gradient: accepting by cost alone stops at sqrt(eps) of the optimum.

    Returns x, cost (B,), whether stationary (B,), whether the Hessian there is positive definite (B,).
    """
    eps = torch.finfo(zero_step(problem, x).dtype).eps
    lin = linearize(problem, x, data)
    best = lin
    best_x, candidate = x, x
    stationary = torch.zeros_like(lin.cost, dtype=torch.bool)
    definite = stationary
    for i in range(rounds + 1):
        if i > 0:
            lin = linearize(problem, candidate, data)
        norm2, best_norm2 = _norm2(lin.gradient, lin.gauss_newton), _norm2(best.gradient, best.gauss_newton)
        # one part in a thousand of cost may be given up: Newton must not run to a saddle or to another basin
        better = torch.isfinite(lin.cost) & (norm2 <= best_norm2) & (lin.cost <= 1.001 * best.cost + 1e3 * eps)
        if i > 0:
            best_x = select(better, candidate, best_x)
            best = Linearization(*(select(better, a, b) for a, b in zip(lin, best, strict=True)))
        step, definite = solve_spd(exact_hessian(problem, best_x, data), -best.gradient)
        candidate = vmap(problem.retract)(best_x, step)
        # Stationary: the next Newton step is below the resolution of x, or the residual is orthogonal to the
        # Jacobian up to rounding. The second test alone would fail where the residual itself is rounding.
        cosine2 = _norm2(best.gradient, best.gauss_newton) / (2 * best.cost + torch.finfo(lin.cost.dtype).tiny)
        stationary = definite & (_below_resolution(candidate, best_x) | (cosine2 <= eps))
    return best_x, best.cost, stationary, definite


def minimize(
    problem: Problem | Program,
    x0: State,
    *data: Any,
    max_steps: int = 50,
    polish: int = 2,
    throw: bool = False,
) -> Solution:
    """Find a local minimum of B problems at once, without an autograd graph.

    x0: a tensor (B,…) or a tuple of them; data: tensors with leading size B, or 1 where shared. Levenberg-Marquardt
    (`levenberg_marquardt`), then `polish` exact Newton steps on the gradient. Each problem gets a `Status`; a
    failed one keeps the best x found and leaves the others untouched. Raises ValueError for data that does not fit
    the batch and, with throw=True, SolverError if any problem failed. A `Program` (`geometry.optim.quadratic`,
    `geometry.optim.constrained`) is solved by its own method, to which max_steps and polish go.
    """
    if isinstance(problem, Problem):
        solution = _least_squares(problem, x0, batch_data(x0, data), max_steps, polish)
    else:
        solution = problem.minimize(x0, *data, max_steps=max_steps, polish=polish)
    if throw:
        solution.raise_if_failed()
    return solution


def _least_squares(problem: Problem, x0: State, data: tuple[Tensor, ...], max_steps: int, polish: int) -> Solution:
    with torch.no_grad():
        x0 = map_state(lambda a: a.detach(), x0)
        if len(zero_step(problem, x0)) == 0:
            empty = zero_step(problem, x0).sum(-1)
            return Solution(x0, empty, empty.to(torch.int8), empty.int())
        x, steps, feasible = levenberg_marquardt(problem, x0, data, max_steps)
        x, cost, stationary, definite = _polish(problem, x, data, polish)
        status = torch.where(stationary, Status.CONVERGED, torch.where(definite, Status.STALLED, Status.SINGULAR))
        status = torch.where(feasible, status, Status.INFEASIBLE).to(torch.int8)
    return Solution(x, cost, status, steps)
