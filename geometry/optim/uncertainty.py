"""How well the data determine a minimum: `covariance`.

The minimum of sum rho(|r_i|^2) / 2 lies where the scores J_i^T psi_i, psi_i = rho'(|r_i|^2) r_i, add up to zero. To
first order in the noise it moves by -A^-1 times their sum, with A the exact Hessian, and has the covariance
A^-1 B A^-1, B that of the sum (Huber 1967, "The behavior of maximum likelihood estimates under nonstandard
conditions"). With a kernel, 2 cost / (M - P) (J^T J)^-1, which is right for plain least squares, is wrong by a factor,
either way.

B here is s J^T J, with s the variance of a number of psi, one for all observations (Huber and Ronchetti 2009, "Robust
statistics", section 7.6): weights are there to make their noise alike. The sum of the products of every observation's
score with itself asks for no such thing, but a point has only its few observations to learn its spread from, and at
the minimum their residuals are shorter than the noise (`experiments.benchmarks.coverage` has both).
"""

import torch
from torch import Tensor

from geometry.checks import positive
from geometry.optim.instance import check_addition, checked
from geometry.optim.linear import inverse_spd
from geometry.optim.problem import Problem, batch_data, exact_hessian, jacobian, linearize, singular_below
from geometry.optim.solution import State
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["covariance", "laplace", "score_variance"]


def covariance(problem: Problem, x: State, *data: Tensor, sigma: float | None = None) -> Tensor:
    """Covariance (B,P,P) of the tangent step at the minimum x, to first order in the noise.

    Without a kernel sigma^2 (J^T J)^-1, sigma being the standard deviation of one residual component; None estimates it
    per problem from the residual, 2 cost / (M - P) with M the number of components that are not identically zero: one
    of weight zero does not count, one of a small weight does.
    With a kernel s A^-1 J^T J A^-1, A the exact Hessian and s the sum of |rho' r|^2 over the rows r of the residual,
    the observations, by M - P: wrong ones may be among them, if it can happen to all alike. What the kernel leaves of
    the noise no sigma tells: ValueError where there are both.
    NaN where the data do not determine x, where sigma is to be estimated from no more numbers than unknowns (M = P),
    and with a kernel where x is no minimum. Raises ValueError for an x or data of another batch, and where the parts of
    the problem do not fit them.

    >>> mean, b = Problem(lambda x, b: x - b, dof=1), torch.tensor([[1.0, 2.0, 6.0]])
    >>> covariance(mean, b.mean(1, keepdim=True), b, sigma=1.0).round(decimals=6)
    tensor([[[0.3333]]])
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a Problem, got {type(problem).__name__}")
    if isinstance(x, Tensor):
        check_addition(problem, x, "x")
    x, data = batch_data(x, data, "x", problem.residual)
    with torch.no_grad(), checked(problem, x, data):
        r, J = jacobian(problem, x, data)
        numbers = ((r != 0) | (J != 0).any(-1)).sum((-1, -2))
        variance = score_variance(r.square().sum(-1), numbers - problem.dof, problem.kernel, sigma)[:, None, None]
        if problem.kernel is None:
            return variance * laplace(problem, x, data)
        J = J.flatten(1, 2)
        inverse, ok = inverse_spd(exact_hessian(problem, x, data), singular_below(problem, x, data), problem.alike)
        return torch.where(ok[:, None, None], variance * inverse @ (J.mT @ J) @ inverse, torch.nan)


def score_variance(s: Tensor, freedom: Tensor | int, kernel: Kernel | None, sigma: float | None) -> Tensor:
    """Variance (…) of a number of rho' r, from the squared lengths s (…,M) of the rows r; or sigma^2 where it is given.

    freedom: numbers less unknowns; where none are left, residuals are zero whatever the noise, and tell nothing: NaN.
    Raises ValueError for a sigma that is not positive, or stands beside a kernel.
    """
    if sigma is None:
        slope = kernel_derivatives(kernel, s)[1]
        left = torch.as_tensor(freedom, dtype=s.dtype, device=s.device)
        return (slope.square() * s).sum(-1) / torch.where(left > 0, left, torch.nan)
    positive("sigma", sigma)
    if kernel is not None:
        raise ValueError(f"sigma must be None where there is a kernel, which changes the noise, got {sigma}")
    return s.new_full(s.shape[:-1], sigma * sigma)


def laplace(problem: Problem, x: State, data: tuple[Tensor, ...]) -> Tensor:
    """(J^T rho' J)^-1 (B,P,P): covariance of the Gaussian near the density exp(-cost) about its mode x, NaN where the
    data do not determine x."""
    lin = linearize(problem, x, data)
    inverse, ok = inverse_spd(lin.gauss_newton, singular_below(problem, x, data), problem.alike)
    return torch.where(ok[:, None, None], inverse, torch.nan)
