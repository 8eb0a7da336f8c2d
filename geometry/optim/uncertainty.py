"""How well the data determine a minimum: `covariance`."""

import torch
from torch import Tensor
from torch.func import vmap

from geometry.checks import positive
from geometry.optim.linear import inverse_spd
from geometry.optim.problem import Problem, batch_data, linearize, singular_below
from geometry.optim.solution import State

__all__ = ["covariance"]


def covariance(problem: Problem, x: State, *data: Tensor, sigma: float | None = None) -> Tensor:
    """Covariance (B,P,P) of the tangent step at the minimum x, to first order in the noise.

    sigma^2 (J^T J)^-1 with sigma the standard deviation of one residual component; None estimates it per problem
    from the residual, 2 cost / (M - P) with M the number of residual components that are not identically zero.
    NaN where the data do not determine x.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a Problem, got {type(problem).__name__}")
    if sigma is not None:
        positive("sigma", sigma)
    data = batch_data(x, data)
    with torch.no_grad():
        lin = linearize(problem, x, data)
        inverse, ok = inverse_spd(lin.gauss_newton, singular_below(problem, x, data), problem.alike)
        if sigma is None:
            r = vmap(problem.residual)(x, *data).flatten(1)
            freedom = ((r != 0).sum(-1) - problem.dof).clamp_min(1)
            variance = 2 * lin.cost / freedom
        else:
            variance = torch.full_like(lin.cost, sigma * sigma)
        return torch.where(ok[:, None, None], inverse * variance[:, None, None], torch.nan)
