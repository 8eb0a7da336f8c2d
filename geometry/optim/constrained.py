"""Least squares under linear equality constraints, through the same `minimize` and `argmin`.

The constraints c(x, data) = 0 are affine in x, so that all points that satisfy them are x + N v, where the columns of
N span the null space of C = dc/dx. In v the problem is free: it is solved by Levenberg-Marquardt as any other is, and
at its minimum the gradient of the Lagrangian cost + w . c vanishes. Differentiating that condition and c = 0,

    [ H  C^T ] [ u ]   [ dL/dx ]
    [ C   0  ] [ v ] = [   0   ] ,     dL/d data = - d/d data ( < u , grad (cost + w . c) > + < v , c > )

with H the Hessian of the cost: Gould et al. 2016, arXiv 1607.05447, proposition 4.5 (their closed form in H^-1, without
asking that H be invertible; only N^T H N must be, which is what makes the minimum strict).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from geometry.checks import function, whole
from geometry.optim.captured import constant
from geometry.optim.descent import minimize
from geometry.optim.instance import check_addition, checked, copies, explained, unchanged, versions
from geometry.optim.linear import ADJOINT, margin, solve_spd
from geometry.optim.problem import Linearization, Problem, batch_data, exact_hessian, linearize, singular_below
from geometry.optim.solution import ConstrainedSolution, State, Status
from geometry.optim.transforms import Batch, implicit, opaque

__all__ = ["Constrained"]


@dataclass(frozen=True)
class Constrained:
    """`problem` subject to equality(x, *data) (q,) = 0, written for one instance and affine in x (dof,).

    The residual and the constraints see the same data: for A x = b, `Constrained(Problem(lambda x, y, A, b: x - y,
    dof=n), equality=lambda x, y, A, b: A @ x - b)`. x is one tensor (B,dof) that moves by addition, there are fewer
    constraints than unknowns, and x0 need not satisfy them. `minimize` and `argmin` return a `ConstrainedSolution`
    whose x and multipliers are differentiable in all data, A and b included. gradient="unrolled" is not offered.
    Status: SINGULAR where the constraints depend on each other (INFEASIBLE if they then cannot be met), or where the
    cost has no strict minimum on them; otherwise as `minimize` says of the free problem.
    Raises ValueError for an x0 or constraints of another form, such as equations that are not affine.

    >>> nearest = Constrained(Problem(lambda x, y: x - y, dof=2), equality=lambda x, y: x.sum()[None] - 1)
    >>> argmin(nearest, torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])).x.sum(1).round(decimals=6)
    tensor([1.])
    """

    problem: Problem
    equality: Callable[..., Tensor]

    def __post_init__(self) -> None:
        if not isinstance(self.problem, Problem):
            raise ValueError(f"problem must be a Problem, got {type(self.problem).__name__}")
        function("equality", self.equality, optional=False)

    def minimize(self, x0: State, *data: Any, max_steps: int = 50, polish: int = 2) -> ConstrainedSolution:
        """What `geometry.minimize` returns for this problem."""
        tensors = self._checked(x0, data, max_steps, polish)
        return _solution(*opaque(_Optimum(self, True, max_steps, polish).find, *tensors))

    def argmin(
        self, x0: State, *data: Any, gradient: str = "exact", max_steps: int = 50, polish: int = 2
    ) -> ConstrainedSolution:
        """What `geometry.argmin` returns for this problem."""
        if gradient not in ("exact", "gauss_newton"):
            raise ValueError(f'gradient under constraints must be "exact" or "gauss_newton", got {gradient!r}')
        constant(residual=self.problem.residual, kernel=self.problem.kernel, equality=self.equality)
        tensors = self._checked(x0, data, max_steps, polish)
        if len(tensors[0]) == 0:
            return self.minimize(x0, *data)
        return _solution(*implicit(_Optimum(self, gradient == "exact", max_steps, polish), *tensors))

    def _checked(self, x0: State, data: tuple[Tensor, ...], max_steps: int, polish: int) -> tuple[Tensor, ...]:
        whole("max_steps", max_steps, 1)
        whole("polish", polish, 0)
        dof = self.problem.dof
        if self.problem.retract is not Problem.retract:
            raise ValueError("problem must move x by addition to be constrained, got one with a retract of its own")
        if isinstance(x0, Tensor) and x0.ndim < 2:
            check_addition(self.problem, x0, "x0")
        if not isinstance(x0, Tensor) or x0.ndim != 2 or x0.shape[1] != dof:
            shape = tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            raise ValueError(f"x0 must be one tensor of shape (B,{dof}), got {shape}")
        x0, data = batch_data(x0, data, "x0", self.problem.residual)
        return x0.detach(), *data

    def solve(self, x0: Tensor, data: tuple[Tensor, ...], max_steps: int, polish: int) -> ConstrainedSolution:
        """The solution, of tensors that are not tracked."""
        problem, equality = self.problem, self.equality
        if len(x0) == 0:
            found = minimize(problem, x0, *data)
            empty = x0.new_zeros(0, 0)
            return ConstrainedSolution(x0, found.cost, found.status, found.steps, empty, empty)
        with checked(problem, x0, data, "x0"), explained(equality=equality):
            self._check_equality(x0, data)
            return self._solve(x0, data, max_steps, polish)

    def _check_equality(self, x0: Tensor, data: tuple[Tensor, ...]) -> None:
        """Raise ValueError where the first instance has constraints that are not affine in x."""
        one, given = x0[0].clone(), copies(data)
        before = versions((one, *given))
        c = self.equality(one, *given)
        unchanged("equality", self.equality, (one, *given), before)
        if not isinstance(c, Tensor) or c.ndim != 1 or len(c) >= self.problem.dof:
            found = tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__
            wanted = f"(q,) with q below the number of unknowns {self.problem.dof}"
            raise ValueError(f"equality must return shape {wanted}, got {found}")
        # on the other side of zero, and there of another size in every number
        other = -one - torch.where(one < 0, -1, 1) * torch.linspace(0.7, 1.9, len(one)).to(one)
        here, there = (jacrev(self.equality)(x, *given).detach() for x in (one, other))
        size = torch.maximum(here.abs().amax(), there.abs().amax()) if len(c) else 0.0
        if ((here - there).abs() > torch.finfo(one.dtype).eps ** 0.5 * size).any():
            raise ValueError(
                "equality must be affine in x, A x - b: nonlinear equations are not offered, got a Jacobian that "
                f"changes with x, {here.tolist()} and {there.tolist()}"
            )

    def _solve(self, x0: Tensor, data: tuple[Tensor, ...], max_steps: int, polish: int) -> ConstrainedSolution:
        problem, equality = self.problem, self.equality
        c, C = vmap(equality)(x0, *data), vmap(jacrev(equality))(x0, *data)
        surface = _surface(C)

        def retract(state: tuple[Tensor, Tensor], step: Tensor) -> tuple[Tensor, Tensor]:
            x, null = state
            return x + null @ step, null

        def projected(state: tuple[Tensor, Tensor], *data: Tensor, exact: bool = False) -> Linearization:
            x, null = state
            cost, gradient, gauss_newton, H = linearize(problem, x, data, exact)
            H = None if H is None else null.mT @ H @ null
            return Linearization(cost, (gradient[:, None] @ null)[:, 0], null.mT @ gauss_newton @ null, H)

        free = Problem(
            residual=lambda state, *data: problem.residual(state[0], *data),
            dof=problem.dof - c.shape[1],
            retract=retract,
            kernel=problem.kernel,
            linearize=projected,
        )
        eps, x, steps = torch.finfo(x0.dtype).eps, x0, torch.zeros_like(x0[:, 0], dtype=torch.int32)
        for _ in range(2):
            start = x - (surface.inverse @ vmap(equality)(x, *data)[..., None])[..., 0]
            found = minimize(free, (start, surface.null), *data, max_steps=max_steps, polish=polish)
            x, steps = found.x[0], steps + found.steps
            # up to rounding, given what cancels in them
            size = (C.abs() @ x.abs()[..., None])[..., 0] + vmap(equality)(torch.zeros_like(x), *data).abs()
            if (vmap(equality)(x, *data).abs() <= eps**0.9 * size).all():
                break
            # a start far from the minimum has left its own rounding: begin again, where there is none
        met = (vmap(equality)(x, *data).abs() <= eps**0.5 * size).all(-1)
        status = torch.where(surface.independent, found.status, Status.SINGULAR)
        status = torch.where(met, status, Status.INFEASIBLE).to(torch.int8)
        gradient = linearize(problem, x, data).gradient
        w = -(gradient[:, None] @ surface.inverse)[:, 0]
        return ConstrainedSolution(x, found.cost, status, steps, c.new_zeros(len(c), 0), w)


class _Surface(NamedTuple):
    """The pseudo-inverse (B,P,q) of C, an orthonormal basis (B,P,P-q) of its null space, and if q is its rank (B,)."""

    inverse: Tensor
    null: Tensor
    independent: Tensor


def _surface(C: Tensor) -> _Surface:
    q = C.shape[1]
    finite = torch.isfinite(C).all(-1).all(-1)
    size = C.norm(dim=-1, keepdim=True)
    scale = torch.where(finite[:, None, None] & (size > 0), size, 1.0)
    # the decomposition refuses the whole batch where one number is not finite
    U, S, Vh = torch.linalg.svd(torch.where(finite[:, None, None], C / scale, 0.0))
    seen = margin(C.dtype, C.shape[2]) * S[:, :1] < S
    inverse = (Vh[:, :q].mT * torch.where(seen, 1 / S, 0.0)[:, None]) @ U.mT / scale.mT
    return _Surface(inverse, Vh[:, q:].mT, seen.all(-1))


def _solution(state: State, others: tuple[Tensor, ...]) -> ConstrainedSolution:
    x, w = state
    _, cost, status, steps = others
    return ConstrainedSolution(x, cost, status, steps, w.new_zeros(len(w), 0), w)


@dataclass(frozen=True)
class _Optimum:
    """`Equation` of x (B,P) and the multipliers w (B,q): the gradient of cost + w . c, and c, vanish."""

    program: Constrained
    exact: bool
    max_steps: int
    polish: int
    first: ClassVar[int] = 1
    batch: ClassVar[Batch] = "each"

    def find(self, x0: Tensor, *data: Tensor) -> tuple[State, tuple[Tensor, ...]]:
        found = self.program.solve(x0, data, self.max_steps, self.polish)
        return (found.x, found.equality), (found.converged, found.cost, found.status, found.steps)

    def step(self, state: State) -> Tensor:
        return torch.zeros_like(torch.cat(state, -1))

    def retract(self, state: State, step: Tensor) -> State:
        x, w = state
        along, across = step.split([x.shape[1], w.shape[1]], -1)
        return x + along, w + across

    def slope(self, state: State, _: Tensor, *data: Tensor) -> Tensor:
        def single(x: Tensor, w: Tensor, *data: Tensor) -> Tensor:
            def lagrangian(x: Tensor) -> tuple[Tensor, Tensor]:
                c = self.program.equality(x, *data)
                return self.program.problem.cost(x, *data) + (w * c).sum(), c

            return torch.cat(grad(lagrangian, has_aux=True)(x))

        return vmap(single)(*state, *data)

    def solve(self, state: State, tensors: tuple[Tensor, ...], b: Tensor) -> tuple[Tensor, Tensor]:
        (x, w), data, problem = state, tensors[1:], self.program.problem
        bx, bw = b.split([x.shape[1], w.shape[1]], -1)
        C = vmap(jacrev(self.program.equality))(x, *data)
        H = exact_hessian(problem, x, data) if self.exact else linearize(problem, x, data).gauss_newton
        base = _surface(C.detach())
        # the same right inverse and complement as functions of C: a decomposition has no derivative where q < P
        eye = torch.eye(w.shape[1], dtype=C.dtype, device=C.device)
        inverse = base.inverse @ torch.linalg.inv(torch.where(base.independent[:, None, None], C @ base.inverse, eye))
        null = base.null - inverse @ (C @ base.null)
        across = (inverse @ bw[..., None])[..., 0]
        right = ((bx - (across[:, None] @ H)[:, 0])[:, None] @ null)[:, 0]
        along, definite = solve_spd(null.mT @ H @ null, right, ADJOINT * singular_below(problem, x, data))
        u = across + (null @ along[..., None])[..., 0]
        v = ((bx - (u[:, None] @ H)[:, 0])[:, None] @ inverse)[:, 0]
        return torch.cat([u, v], -1), definite & base.independent
