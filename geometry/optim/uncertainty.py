"""How well the data determine a minimum: `covariance`."""

import torch
from torch import Tensor
from torch.func import vmap

from geometry.optim.problem import Problem, batch_data, linearize
from geometry.optim.solution import State

__all__ = ["covariance"]


def covariance(problem: Problem, x: State, *data: Tensor, sigma: float | None = None) -> Tensor:
    """Covariance (B,P,P) of the tangent step at the minimum x, to first order in the noise.

    sigma^2 (J^T J)^-1 with sigma the standard deviation of one residual component; None estimates it per problem
    from the residual, 2 cost / (M - P) with M the number of residual components that are not identically zero.
    NaN where the data do not determine x.
    """
    data = batch_data(x, data)
    with torch.no_grad():
        lin = linearize(problem, x, data)
        eye = torch.eye(problem.dof, dtype=lin.cost.dtype, device=lin.cost.device).expand_as(lin.gauss_newton)
        scale = lin.gauss_newton.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(eye.dtype).tiny).rsqrt()
        scaled = lin.gauss_newton * scale[:, :, None] * scale[:, None, :]
        factor, info = torch.linalg.cholesky_ex(scaled)
        inverse = torch.cholesky_solve(eye, factor) * scale[:, :, None] * scale[:, None, :]
        if sigma is None:
            r = vmap(problem.residual)(x, *data).flatten(1)
            freedom = ((r != 0).sum(-1) - problem.dof).clamp_min(1)
            variance = 2 * lin.cost / freedom
        else:
            variance = torch.full_like(lin.cost, sigma * sigma)
        return torch.where(
            (info == 0)[:, None, None], inverse * variance[:, None, None], torch.full_like(inverse, torch.nan)
        )
