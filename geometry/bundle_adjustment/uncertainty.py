"""How well tracks determine a bundle: the sandwich of `geometry.optim.uncertainty` in blocks.

With u = A^-1 e for the unit vectors e of a view or of a point, its block of A^-1 B A^-1 is u^T B u: nothing larger than
these columns is ever made.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.bundle_adjustment.equations import NormalEquations, Tangent
from geometry.bundle_adjustment.problem import Prior, State
from geometry.bundle_adjustment.schur import multiply
from geometry.bundle_adjustment.solver import Task
from geometry.optim import score_variance

__all__ = ["BundleCovariance", "covariance"]

_NUMBERS = 4_000_000  # of the columns that are solved for at a time


class BundleCovariance(NamedTuple):
    """Covariances of tangent steps: cameras (V,6+P,6+P), the pose (omega, v) and free intrinsics of each view, of rigs
    the pose of its frame; then, of what is free, six numbers of its mounting, six of its velocity, and the readout;
    points (n,3,3). Zero where something is fixed."""

    cameras: Tensor
    points: Tensor


def _spread(task: Task, state: State, variance: Tensor) -> NormalEquations:
    """B: that of the scores of observations, and of priors, which are known with the deviations that they state."""
    problem, data = replace(task.problem, kernel=None), task.data
    seen, known, more = (
        problem.linearize(state, data._replace(prior=Prior())),
        problem.linearize(state, data),
        variance - 1,
    )
    return known._replace(U=known.U + more * seen.U, W=variance * seen.W, V=known.V + more * seen.V)


def covariance(task: Task, state: State, points: Tensor | None, sigma: float | None) -> BundleCovariance:
    """See `BundleSolution.covariance`."""
    problem, layout = task.problem, task.problem.layout
    gauge = task.gauge_at(state)
    s = problem.residual(problem.compose(state, task.data.given), task.data).square().sum(-1)
    freedom = problem.redundancy(task.data) + task.freedom(state)
    variance = score_variance(s, freedom, problem.kernel, sigma)
    plain = problem.kernel is None and all(known is None for known in task.data.prior)  # B is but a multiple of A
    B = None if plain else _spread(task, state, variance)
    equations = problem.linearize(state, task.data, exact=problem.kernel is not None)
    system = task.factorise(state, equations, gauge)
    D, N, p = layout.size, len(layout.held), layout.rows.shape[1]

    def blocks(b: Tangent) -> Tensor:
        """(n,k,k) for unit vectors b: cameras (D,n,k), points (N,3,n,k)."""
        n, k = b.cameras.shape[1:]
        right = Tangent(*(b if gauge is None else gauge.ignore(b)).side_by_side())
        u = system.solve(right)
        v = right.times(variance) if B is None else multiply(B, u, layout)
        rows = torch.cat([u.cameras, u.points.flatten(0, 1)]), torch.cat([v.cameras, v.points.flatten(0, 1)])
        found = torch.einsum("dni,dnj->nij", *(t.unflatten(-1, (n, k)) for t in rows))
        # whether it is solved, conjugate gradients know afterwards
        return torch.where(system.ok, 0.5 * (found + found.mT), torch.nan)

    cameras = state.theta.new_zeros(len(layout.rows), p, p)
    for views in torch.arange(len(cameras), device=cameras.device).split(max(1, _NUMBERS // (p * (D + 3 * N)))):
        rows = layout.rows[views]
        b = cameras.new_zeros(D + 1, rows.numel())
        b[rows.flatten(), torch.arange(rows.numel(), device=rows.device)] = 1
        b = b[:-1].unflatten(1, rows.shape)
        cameras[views] = blocks(Tangent(b, b.new_zeros(N, 3, *rows.shape)))
    found = [cameras.new_zeros(0, 3, 3)]
    chosen = torch.zeros(0, dtype=torch.long) if points is None else points
    for some in chosen.to(cameras.device).split(max(1, _NUMBERS // (3 * (D + 3 * N)))):
        b = cameras.new_zeros(N, 3, len(some), 3)
        each = torch.arange(len(some), device=b.device)
        b[some[:, None], torch.arange(3), each[:, None], torch.arange(3)] = 1
        b[layout.held] = 0
        found.append(blocks(Tangent(b.new_zeros(D, len(some), 3), b)))
    # a turn about a camera's place in the world moves t besides
    moved = torch.eye(p, dtype=cameras.dtype, device=cameras.device).repeat(len(cameras), 1, 1)
    moved[:, :6, :6] = se3.step_from(task.poses(state), task.place)
    return BundleCovariance(moved @ cameras @ moved.mT, torch.cat(found))
