"""Normal equations of two kinds of unknowns, cameras and points, and their solution with the points eliminated.

    [ U   W ] [ u_cameras ]   [ b_cameras ]        S = U - W V^-1 W^T
    [ W^T V ] [ u_points  ] = [ b_points  ]

V is block diagonal (3 x 3 a point), so only S, of the size of the cameras, is ever factorised (Schur complement trick:
Brown 1958; Triggs et al. 2000, section 6). S is built densely, or, where it would be too large, only multiplied with:
conjugate gradients preconditioned by its diagonal blocks (Agarwal et al. 2010, section 4). Memory is linear in the
number of observations besides.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry.schur_op import Layout, couple, couple_back, own_blocks, reduce, schur_product

__all__ = ["NormalEquations", "Schur", "Tangent"]


class Tangent(NamedTuple):
    """A vector of the tangent space: cameras (D,…), points (N,3,…)."""

    cameras: Tensor
    points: Tensor

    def dot(self, other: "Tangent") -> Tensor:
        """Inner product () of two vectors."""
        return (self.cameras * other.cameras).sum() + (self.points * other.points).sum()

    def times(self, factor: Tensor | float) -> "Tangent":
        """Scaled."""
        return Tangent(factor * self.cameras, factor * self.points)

    def times_entries(self, other: "Tangent") -> "Tangent":
        """Entry by entry."""
        return Tangent(self.cameras * other.cameras, self.points * other.points)

    def plus(self, other: "Tangent") -> "Tangent":
        """Sum."""
        return Tangent(self.cameras + other.cameras, self.points + other.points)


class NormalEquations(NamedTuple):
    """Cost (), gradient, and the blocks of a Gauss-Newton or exact Hessian: U (V,p,p), W (M,p,3), V (N,3,3)."""

    cost: Tensor
    gradient: Tangent
    U: Tensor
    W: Tensor
    V: Tensor

    def diagonal(self, layout: Layout) -> Tangent:
        """Diagonal of the Hessian."""
        return Tangent(
            layout.from_views(self.U.diagonal(dim1=-2, dim2=-1)), self.V.diagonal(dim1=-2, dim2=-1).contiguous()
        )


def _inverse3(A: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of symmetric positive definite (N,3,3), and whether each is so numerically (N,); zero where it is not."""
    a, b, c, d, e, f = A[:, 0, 0], A[:, 0, 1], A[:, 0, 2], A[:, 1, 1], A[:, 1, 2], A[:, 2, 2]
    ca, cb, cc = d * f - e * e, c * e - b * f, b * e - c * d
    minor = a * d - b * b
    det = a * ca + b * cb + c * cc
    eps = 100 * torch.finfo(A.dtype).eps
    good = (a > 0) & (minor > eps * a * d) & (det > eps * minor * f)
    adjugate = torch.stack([ca, cb, cc, cb, a * f - c * c, b * c - a * e, cc, b * c - a * e, minor], -1)
    inverse = adjugate / torch.where(good, det, torch.ones_like(det))[:, None]
    return torch.where(good[:, None], inverse, 0).unflatten(-1, (3, 3)), good


class Schur:
    """The equations (H + damping diag(H) + E E^T) u = b, factorised.

    damping: 0 or a positive number. unseen (D,g) or None: camera part of g directions that H does not see (a gauge);
    E makes the matrix definite along them, and a right-hand side without share in them is solved as if E were not
    there. stiff (N,3) or None: a unit vector along which a point must not move, or zero. iterative: conjugate
    gradients to a relative residual `accuracy` instead of a dense Cholesky factor. `ok` () tells whether the matrix is
    numerically positive definite; solutions are zero where it is not.
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
        accuracy: float = 1e-12,
    ) -> None:
        self.equations, self.layout, self.accuracy = equations, layout, accuracy
        diagonal = equations.diagonal(layout)
        # a direction that the data do not see still gets some damping
        floor = 1e-9 * diagonal.points.amax(-1, keepdim=True)
        self.damped = Tangent(
            damping * torch.maximum(diagonal.cameras, 1e-9 * diagonal.cameras.max()),
            damping * torch.maximum(diagonal.points, floor),
        )
        V = equations.V + torch.diag_embed(self.damped.points)
        if stiff is not None:
            along = stiff[:, :, None] * stiff[:, None, :]
            free = torch.eye(3, dtype=V.dtype, device=V.device) - along
            size = V.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
            V = free @ V @ free + size * along
        self.V_inverse, good = _inverse3(V)
        if stiff is not None:
            self.V_inverse = self.V_inverse - along / size.clamp_min(torch.finfo(V.dtype).tiny)
        self.V_inverse[layout.held] = 0
        self.ok = torch.isfinite(equations.cost) & (good | layout.held).all()
        scale = (diagonal.cameras + self.damped.cameras).clamp_min(torch.finfo(V.dtype).tiny).rsqrt()
        self.scale = scale
        self.border = None if unseen is None else torch.linalg.qr(unseen / scale[:, None])[0] / scale[:, None]
        self.factor: Tensor | None = None
        if iterative:
            self._precondition()
            return
        S = reduce(equations.U, equations.W, self.V_inverse, layout)
        S.diagonal().add_(self.damped.cameras)
        if self.border is not None:
            S += self.border @ self.border.T
        S *= scale[:, None]
        S *= scale
        factor, info = torch.linalg.cholesky_ex(S)
        pivot = factor.diagonal().square().amin() if len(S) else torch.ones_like(equations.cost)
        # NaN pivots compare false
        self.ok = self.ok & (info == 0) & (pivot > 100 * torch.finfo(S.dtype).eps)
        self.factor = factor

    def solve(self, b: Tangent) -> Tangent:
        """u, with as many right-hand sides as b has: cameras (D,…), points (N,3,…)."""
        if not self.ok:
            return Tangent(torch.zeros_like(b.cameras), torch.zeros_like(b.points))
        W, layout = self.equations.W, self.layout
        cameras, points = b.cameras.reshape(len(b.cameras), -1), b.points.reshape(*b.points.shape[:2], -1)
        eliminated = self.V_inverse @ points
        right = cameras - couple(W, eliminated, layout)
        if self.factor is not None:
            u = torch.cholesky_solve(right * self.scale[:, None], self.factor) * self.scale[:, None]
        else:
            u = self._conjugate_gradients(right)
        back = eliminated - self.V_inverse @ couple_back(W, u, layout)
        return Tangent(u.view_as(b.cameras), back.view_as(b.points))

    def multiply(self, cameras: Tensor) -> Tensor:
        """S cameras, with damping and border: (D,R) -> (D,R)."""
        layout = self.layout
        product = layout.from_views(self.equations.U @ layout.to_views(cameras))
        product += self.damped.cameras[:, None] * cameras
        product -= schur_product(self.equations.W, self.V_inverse, cameras, layout)
        if self.border is not None:
            product += self.border @ (self.border.T @ cameras)
        return product

    def _precondition(self) -> None:
        """Cholesky factors of the diagonal blocks: of S for what one view owns, of U for what views share."""
        U, W, layout = self.equations.U, self.equations.W, self.layout
        own = U - own_blocks(W, self.V_inverse, layout)
        self.block_factors = []
        for block in layout.blocks:
            n, size = block.shape
            place = torch.full((layout.size + 1,), -1, device=U.device)
            place[block.flatten()] = torch.arange(n * size, device=U.device)
            inside = place[layout.rows]
            shared = bool((layout.rows[inside >= 0].bincount(minlength=1) > 1).any())
            source = U if shared else own
            blocks = U.new_zeros(n * size * size + 1)
            row, column = inside[:, :, None], inside[:, None, :]
            where = torch.where((row >= 0) & (column >= 0), row * size + column % size, n * size * size)
            blocks.index_add_(0, where.flatten(), source.flatten())
            matrix = blocks[:-1].view(n, size, size)
            matrix.diagonal(dim1=-2, dim2=-1).add_(self.damped.cameras[block])
            factor, info = torch.linalg.cholesky_ex(matrix)
            self.ok = self.ok & (info == 0).all()
            self.block_factors.append(factor)

    def _conjugate_gradients(self, right: Tensor) -> Tensor:
        """Solve S u = right (D,R), every column by itself."""

        def precondition(r: Tensor) -> Tensor:
            z = torch.zeros_like(r)
            for block, factor in zip(self.layout.blocks, self.block_factors, strict=True):
                z[block.flatten()] = torch.cholesky_solve(r[block], factor).flatten(0, 1)
            return z

        u, r = torch.zeros_like(right), right.clone()
        z = precondition(r)
        p, rz = z, (r * z).sum(0)
        goal = self.accuracy**2 * rz
        for _ in range(max(200, 2 * len(right))):
            running = rz > goal
            if not running.any():
                break
            Sp = self.multiply(p)
            curvature = (p * Sp).sum(0)
            if (running & ~(curvature > 0)).any():
                self.ok = torch.zeros_like(self.ok)
                return torch.zeros_like(right)
            alpha = torch.where(running, rz / torch.where(running, curvature, 1), 0)
            u += alpha * p
            r -= alpha * Sp
            z = precondition(r)
            rz_next = torch.where(running, (r * z).sum(0), rz)
            p = z + torch.where(running, rz_next / torch.where(rz > 0, rz, 1), 0) * p
            rz = rz_next
        return u
