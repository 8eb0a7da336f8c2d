"""Conjugate gradients on the reduced camera matrix, which is only multiplied with."""

from collections.abc import Callable

import torch
from torch import Tensor

from geometry.bundle_adjustment.coarse import Coarse
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.products import own_blocks, project_blocks, reduce
from geometry.bundle_adjustment.reduced import Reduced

__all__ = ["TwoLevel", "conjugate_gradients"]

# Relative residual, in the norm of the preconditioner, at which conjugate gradients end.
_ACCURACY = 1e-13
# What small problems may take that the preconditioner does not suit: conditions to 1e4, times the digits.
_STEPS = 2000
# Truncated, they end where the last of k steps gained less than this part of the average (Nash and Sofer 1990).
_ENOUGH = 0.001


class TwoLevel:
    """Approximate inverse of the reduced matrix: its diagonal blocks, plus the coarse problem where one is given.

    The blocks are those of S for poses and what one view owns, of U for what else views share. `ok` (): whether all are
    definite.
    """

    def __init__(self, reduced: Reduced, coarse: Coarse | None) -> None:
        self.layout, self.coarse = reduced.layout, coarse
        U, layout = reduced.U, reduced.layout
        own = U - own_blocks(reduced.W, reduced.V_inverse, layout)
        self.ok = torch.ones((), dtype=torch.bool, device=U.device)
        self.factors = []
        users = torch.bincount(layout.rows[:, 6:].flatten(), minlength=layout.size + 1)
        for block in layout.blocks:
            n, size = block.shape
            place = torch.full((layout.size + 1,), -1, device=U.device)
            place[block.flatten()] = torch.arange(n * size, device=U.device)
            inside = place[layout.rows]
            source = U if bool((users[block] > 1).any()) else own
            blocks = U.new_zeros(n * size * size + 1)
            row, column = inside[:, :, None], inside[:, None, :]
            where = torch.where((row >= 0) & (column >= 0), row * size + column % size, n * size * size)
            blocks.index_add_(0, where.flatten(), source.flatten())
            matrix = blocks[:-1].view(n, size, size)
            matrix.diagonal(dim1=-2, dim2=-1).add_(reduced.damping[block])
            factor, info = torch.linalg.cholesky_ex(matrix)
            self.ok = self.ok & (info == 0).all()
            self.factors.append(factor)
        if coarse is not None:
            self._factorise_coarse(reduced, coarse)

    def _factorise_coarse(self, reduced: Reduced, coarse: Coarse) -> None:
        """The reduced matrix of the coarse unknowns: the same equations, between groups instead of views."""
        layout, (groups, motions, first) = self.layout, coarse
        self.once = motions * first[..., None]
        c = motions.shape[2]
        rows = c * groups[:, None] + torch.arange(c, device=groups.device)
        between = Layout(layout.view, layout.point, rows, c * coarse.size, (), layout.held)
        damped = torch.diag_embed(layout.to_views(reduced.damping) * first)
        U = motions.mT @ (reduced.U + damped) @ motions
        matrix = reduce(U, project_blocks(reduced.W, motions, layout), reduced.V_inverse, between)
        if reduced.border is not None:
            border = between.from_views(self.once.mT @ layout.to_views(reduced.border))
            matrix += border @ border.T
        diagonal = matrix.diagonal()
        self.scale = torch.where(diagonal > 0, diagonal, 1).rsqrt()[:, None]
        matrix = self.scale * matrix * self.scale.T
        # motions that no view of a group can make, and what rounding leaves of the others
        matrix.diagonal().add_(torch.where(diagonal > 0, 1e-10, 1.0))
        self.coarse_factor, info = torch.linalg.cholesky_ex(matrix)
        if info:
            self.coarse = None

    def __call__(self, r: Tensor) -> Tensor:
        """(D,R) -> (D,R)."""
        z = torch.zeros_like(r)
        for block, factor in zip(self.layout.blocks, self.factors, strict=True):
            z[block.flatten()] = torch.cholesky_solve(r[block], factor).flatten(0, 1)
        if self.coarse is not None:
            groups = self.coarse.groups
            each = self.once.mT @ self.layout.to_views(r)
            together = each.new_zeros(self.coarse.size, *each.shape[1:]).index_add_(0, groups, each)
            found = self.scale * torch.cholesky_solve(self.scale * together.flatten(0, 1), self.coarse_factor)
            z += self.layout.from_views(self.once @ found.view_as(together)[groups])
        return z


def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], right: Tensor, *, truncated: bool
) -> tuple[Tensor, bool]:
    """Solve S u = right (D,R), every column by itself.

    Returns u, and whether S showed itself positive definite and, unless truncated, u was found within twice as many
    steps as there are unknowns, or `_STEPS`. Without rounding one a number would do; S for which it takes that much
    longer counts as singular.
    """
    u, r = torch.zeros_like(right), right.clone()
    z = precondition(r)
    p, rz = z, (r * z).sum(0)
    goal = 0.0 if truncated else _ACCURACY**2 * rz
    decrease = torch.zeros_like(rz)
    for k in range(1, max(200 if truncated else _STEPS, 2 * len(right)) + 1):
        running = rz > goal
        if not running.any():
            return u, True
        Sp = multiply(p)
        curvature = (p * Sp).sum(0)
        if (running & ~(curvature > 0)).any():
            return torch.zeros_like(right), False
        alpha = torch.where(running, rz / torch.where(running, curvature, 1), 0)
        u += alpha * p
        r -= alpha * Sp
        gain = alpha * rz
        decrease += gain
        if truncated and bool((k * gain <= _ENOUGH * decrease).all()):
            return u, True
        z = precondition(r)
        rz_next = torch.where(running, (r * z).sum(0), rz)
        p = z + torch.where(running, rz_next / torch.where(rz > 0, rz, 1), 0) * p
        rz = rz_next
    return (u, True) if truncated else (torch.zeros_like(right), False)
