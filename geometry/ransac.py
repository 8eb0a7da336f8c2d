"""RANSAC over any `Problem`: hypotheses from minimal samples, all problems and hypotheses in one batch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

from geometry.optim import Problem, Solution, State, Status, batch_data, map_state

__all__ = ["ransac"]


def ransac(
    problem: Problem,
    minimal_solver: Callable[[Tensor], State],
    *data: Tensor,
    candidates: Tensor,
    size: int,
    threshold: float,
    hypotheses: int = 256,
    generator: torch.Generator | None = None,
) -> Solution:
    """The hypothesis with the best MSAC score (Torr and Zisserman 2000) for each of B problems.

    candidates (B,N): the sampling weight of each observation, 0 for absent ones; uniform if they are all alike.
    minimal_solver(index (B,H,size)) -> x with leading sizes (B,H), from the observations that index names; observation
    n is row n of `problem.residual`. threshold: in the units of the residual row's norm. Returns x, the truncated cost
    (B,) = 1/2 sum min(|r|^2, threshold^2), and status CONVERGED, or TOO_FEW where fewer than `size` observations
    lie within the threshold. x carries no gradient. Refine it with a robust kernel.
    """
    data = batch_data(candidates, data)
    B, N = candidates.shape
    if size > N:
        raise ValueError(f"size must be at most the number of observations {N}, got {size}")
    with torch.no_grad():
        # The `size` largest of log(weight) + Gumbel noise are a weighted sample without replacement.
        uniform = torch.rand(B, hypotheses, N, generator=generator, dtype=candidates.dtype, device=candidates.device)
        index = (candidates.log()[:, None] - (-uniform.log()).log()).topk(size, dim=-1).indices
        x = minimal_solver(index)

        def squares(x: State, *data: Tensor) -> Tensor:
            r = problem.residual(x, *data)
            return r.square().sum(-1) if r.ndim == 2 else r.square()

        over_hypotheses = vmap(squares, in_dims=(0, *[None] * len(data)))
        s = vmap(over_hypotheses, chunk_size=8)(x, *data)
        s = torch.where(torch.isfinite(s), s, torch.inf)
        present = (candidates > 0)[:, None]
        cost = 0.5 * (s.clamp(max=threshold**2) * present).sum(-1)
        best = cost.argmin(1)
        rows = torch.arange(B, device=best.device)
        support = ((s[rows, best] <= threshold**2) & present[:, 0]).sum(-1)
        status = torch.where(support >= size, Status.CONVERGED, Status.TOO_FEW).to(torch.int8)
        return Solution(
            map_state(lambda a: a[rows, best], x), cost[rows, best], status, torch.zeros_like(best, dtype=torch.int32)
        )
