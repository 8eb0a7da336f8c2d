"""The normal equations of a bundle, in blocks, and the steps they are solved for."""

import math
from typing import NamedTuple

from torch import Tensor

from geometry.bundle_adjustment.indices import Layout

__all__ = ["Tangent", "NormalEquations"]


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

    def side_by_side(self) -> tuple[Tensor, Tensor]:
        """One vector or several, side by side: (D,R), (N,3,R)."""
        several = math.prod(self.cameras.shape[1:])
        return self.cameras.reshape(len(self.cameras), several), self.points.reshape(len(self.points), 3, several)


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
