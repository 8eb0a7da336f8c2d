"""The reduced camera matrix S = U - W V^-1 W^T of a bundle, what is left once the points are eliminated."""

from typing import NamedTuple

from torch import Tensor

from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.products import reduce, schur_product

__all__ = ["Reduced"]


class Reduced(NamedTuple):
    """S + diag(damping) + border border^T, by what it is made of: to be written out, or only multiplied with.

    U (V,p,p) and W (M,p,3) of the normal equations; V_inverse (N,3,3); damping (D,); border (D,g) or None.
    """

    U: Tensor
    W: Tensor
    V_inverse: Tensor
    damping: Tensor
    border: Tensor | None
    layout: Layout

    def dense(self) -> Tensor:
        """The matrix (D,D)."""
        S = reduce(self.U, self.W, self.V_inverse, self.layout)
        S.diagonal().add_(self.damping)
        if self.border is not None:
            S += self.border @ self.border.T
        return S

    def multiply(self, cameras: Tensor) -> Tensor:
        """Its product with cameras (D,R): (D,R)."""
        layout = self.layout
        product = layout.from_views(self.U @ layout.to_views(cameras))
        product += self.damping[:, None] * cameras
        product -= schur_product(self.W, self.V_inverse, cameras, layout)
        if self.border is not None:
            product += self.border @ (self.border.T @ cameras)
        return product
