"""Normal equations of two kinds of unknowns, cameras and points, and their solution with the points eliminated.

    [ U   W ] [ u_cameras ]   [ b_cameras ]        S = U - W V^-1 W^T
    [ W^T V ] [ u_points  ] = [ b_points  ]

V is block diagonal (3 x 3 a point), so only S, of the size of the cameras, is ever factorised (Schur complement trick:
Brown 1958; Triggs et al. 2000, section 6). S is built densely, or, where it would be too large, only multiplied with:
conjugate gradients preconditioned by its diagonal blocks (Agarwal et al. 2010, section 4). Memory is linear in the
number of observations besides.
"""

from functools import cached_property

import torch
from torch import Tensor

from geometry.bundle_adjustment.coarse import Coarse
from geometry.bundle_adjustment.conjugate_gradients import TwoLevel, conjugate_gradients
from geometry.bundle_adjustment.equations import NormalEquations, Tangent
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.products import couple, couple_back
from geometry.bundle_adjustment.reduced import Reduced
from geometry.optim import ADJOINT, margin, share_by_solving, share_of_factor

__all__ = ["Schur", "multiply"]


def _inverse3(A: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Inverse of symmetric positive definite (N,3,3), zero where singular: a share at most `least`
    (`geometry.optim.linear`); and which are not (N,).
    """
    a, b, c, d, e, f = A[:, 0, 0], A[:, 0, 1], A[:, 0, 2], A[:, 1, 1], A[:, 1, 2], A[:, 2, 2]
    ca, cb, cc = d * f - e * e, c * e - b * f, b * e - c * d
    minor = a * d - b * b
    det = a * ca + b * cb + c * cc
    middle = a * f - c * c
    good = (a > 0) & (minor > 0) & (det > least * torch.maximum(torch.maximum(a * ca, d * middle), f * minor))
    adjugate = torch.stack([ca, cb, cc, cb, middle, b * c - a * e, cc, b * c - a * e, minor], -1)
    inverse = adjugate / torch.where(good, det, torch.ones_like(det))[:, None]
    return torch.where(good[:, None], inverse, 0).unflatten(-1, (3, 3)), good


def multiply(equations: NormalEquations, u: Tangent, layout: Layout) -> Tangent:
    """The Hessian times several vectors u: cameras (D,R), points (N,3,R)."""
    cameras = layout.from_views(equations.U @ layout.to_views(u.cameras)) + couple(equations.W, u.points, layout)
    return Tangent(cameras, equations.V @ u.points + couple_back(equations.W, u.cameras, layout))


class Schur:
    """The equations (H + damping diag(H) + E E^T) u = b, factorised.

    damping: 0 or a positive number. unseen (D,g) or None: camera part of g directions that H does not see (a gauge);
    E makes the matrix definite along them, and a right-hand side without share in them is solved as if E were not
    there. stiff (N,3) or None: a unit vector along which a point must not move, or zero. iterative: conjugate
    gradients instead of a dense Cholesky factor, with a coarse problem if given, to full accuracy, or truncated, which
    suffices for a step that is tried anyway. `definite` tells whether the matrix is so by the rule of
    `geometry.optim.linear`, `ok` () whether by that of an adjoint, or by its pivots where it is damped; solutions are
    zero where it is not.
    """

    def __init__(
        self,
        equations: NormalEquations,
        layout: Layout,
        damping: float = 0.0,
        unseen: Tensor | None = None,
        stiff: Tensor | None = None,
        *,
        iterative: bool = False,
        truncated: bool = False,
        coarse: Coarse | None = None,
    ) -> None:
        self.equations, self.layout, self.truncated = equations, layout, truncated
        diagonal = equations.diagonal(layout)
        # a direction that the data do not see still gets some damping, one of negative curvature as much as of positive
        large = Tangent(diagonal.cameras.abs(), diagonal.points.abs())
        most = large.cameras.max() if layout.size else large.cameras.new_zeros(())
        self.damped = Tangent(
            damping * torch.maximum(large.cameras, 1e-9 * most),
            damping * torch.maximum(large.points, 1e-9 * large.points.amax(-1, keepdim=True)),
        )
        V = equations.V + torch.diag_embed(self.damped.points)
        if stiff is not None:
            along = stiff[:, :, None] * stiff[:, None, :]
            free = torch.eye(3, dtype=V.dtype, device=V.device) - along
            size = V.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
            V = free @ V @ free + size * along
        self.V_inverse, good = _inverse3(V, margin(V.dtype, 3, 0.0 if damping else layout.most))
        if stiff is not None:
            self.V_inverse = self.V_inverse - along / size.clamp_min(torch.finfo(V.dtype).tiny)
        self.V_inverse[layout.held] = 0
        self.ok = torch.isfinite(equations.cost) & (good | layout.held).all()
        scale = (diagonal.cameras + self.damped.cameras).clamp_min(torch.finfo(V.dtype).tiny).rsqrt()
        self.scale = scale
        border = None if unseen is None else torch.linalg.qr(unseen / scale[:, None])[0] / scale[:, None]
        self.reduced = Reduced(equations.U, equations.W, self.V_inverse, self.damped.cameras, border, layout)
        self.factor: Tensor | None = None
        if iterative:
            self.precondition = TwoLevel(self.reduced, coarse)
            self.ok = self.ok & self.precondition.ok
            return
        S = self.reduced.dense()
        S *= scale[:, None]
        S *= scale
        factor, info = torch.linalg.cholesky_ex(S)
        pivot = factor.diagonal().square().amin() if len(S) else torch.ones_like(equations.cost)
        # NaN pivots compare false
        self.ok = self.ok & (info == 0) & (pivot > margin(S.dtype, 1))
        self.factor = factor
        if not damping:
            self.ok = self.ok & (self.share > ADJOINT * self.least)

    @cached_property
    def least(self) -> float:
        """The share up to which the matrix is singular: a view's sums run over its observations, one by one."""
        layout = self.layout
        longest = int(torch.bincount(layout.view).max()) if len(layout.view) else 0
        return margin(self.scale.dtype, layout.size, longest)

    @cached_property
    def share(self) -> float:
        """What is left of the camera unknown that is determined worst, the others free (`geometry.optim.linear`).

        Conjugate gradients take a matrix only as far as a right-hand side needs it, and a gradient has no share in what
        the data leave open. They are therefore given one that has, and its solution: an order of magnitude.
        """
        if not self.ok:
            return -1.0
        if self.layout.size == 0:
            return 1.0
        if self.factor is not None:
            return float(share_of_factor(self.factor))
        scale = self.scale[:, None]
        found = float(share_by_solving(lambda b: self._solve_cameras(b / scale) / scale, self.scale, 1, 1))
        return found if self.ok else -1.0

    @property
    def definite(self) -> bool:
        """Whether the data determine all unknowns: the points given the cameras, and the cameras."""
        return bool(self.ok) and self.share > self.least

    def _solve_cameras(self, right: Tensor) -> Tensor:
        """The cameras' part (D,R) of the solution, once the points' part is taken out of the right-hand side (D,R)."""
        if self.factor is not None:
            return torch.cholesky_solve(right * self.scale[:, None], self.factor) * self.scale[:, None]
        u, found = conjugate_gradients(self.reduced.multiply, self.precondition, right, truncated=self.truncated)
        self.ok = self.ok & found
        return u

    def solve(self, b: Tangent) -> Tangent:
        """u, with as many right-hand sides as b has: cameras (D,…), points (N,3,…)."""
        if self.factor is None and not self.ok:  # a device is not waited for where that would save little
            return Tangent(torch.zeros_like(b.cameras), torch.zeros_like(b.points))
        W, layout = self.equations.W, self.layout
        cameras, points = b.side_by_side()
        eliminated = self.V_inverse @ points
        u = self._solve_cameras(cameras - couple(W, eliminated, layout))
        back = eliminated - self.V_inverse @ couple_back(W, u, layout)
        u, back = (torch.where(self.ok, found, 0) for found in (u, back))
        return Tangent(u.view_as(b.cameras), back.view_as(b.points))

    def solve_exactly(self, b: Tangent) -> Tangent:
        """`solve`, and once more for what that leaves: eliminating points of weak depth costs half the digits.

        For equations without damping. With conjugate gradients, whose end is no finer, it would cost as much again.
        """
        u = self.solve(b)
        if self.factor is None:
            return u
        cameras, points = multiply(self.equations, Tangent(*u.side_by_side()), self.layout)
        left = Tangent(b.cameras - cameras.view_as(u.cameras), b.points - points.view_as(u.points))
        more = self.solve(left)
        return Tangent(u.cameras + more.cameras, u.points + more.points)
