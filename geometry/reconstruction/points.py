"""Points seen by known cameras, each at the minimum of its own cost: N problems of three unknowns, one descent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from geometry.camera import Model, in_front, project_camera_frame, projection_jacobian
from geometry.optim import select

__all__ = ["Points", "as_table"]

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""loss(s) -> rho(s), d rho / d s of squared errors s (M,)."""


class _Place(NamedTuple):
    points3d: Tensor
    cost: Tensor


@dataclass(frozen=True)
class Points:
    """`geometry.optim.System` of N points: half the sum of rho(|error|^2) of each over the M observations of it.

    points2d (M,2) px and point (M,); pose (M,4,4), K (M,3,3), distortion (M,k) of each observation's camera. Behind it
    the error is infinite, and so is the cost unless rho is bounded.
    """

    points2d: Tensor
    point: Tensor
    pose: Tensor
    K: Tensor
    distortion: Tensor
    model: Model
    count: int
    loss: Loss

    def seen(self, points3d: Tensor) -> Tensor:
        """The point of each observation in its camera's frame, (M,1,3)."""
        return (self.pose[:, :3, :3] @ points3d[self.point, :, None] + self.pose[:, :3, 3:]).mT

    def squares(self, points3d: Tensor) -> Tensor:
        """Squared error of each observation (M,), infinite behind the camera."""
        p = self.seen(points3d)
        s = (project_camera_frame(p, self.K, self.distortion, model=self.model).squeeze(1) - self.points2d).square()
        s = s.sum(-1)
        return torch.where(in_front(p, self.distortion, model=self.model).squeeze(1) & s.isfinite(), s, torch.inf)

    def sums(self, values: Tensor) -> Tensor:
        """Add up (M,…) into (N,…)."""
        return values.new_zeros(self.count, *values.shape[1:]).index_add_(0, self.point, values)

    def at(self, points3d: Tensor) -> _Place:
        return _Place(points3d, 0.5 * self.sums(self.loss(self.squares(points3d))[0]))

    def step(self, at: _Place, damping: Tensor) -> tuple[Tensor, Tensor]:
        pixels, J = projection_jacobian(self.seen(at.points3d), self.K, self.distortion, self.model)
        r, J = pixels.squeeze(1) - self.points2d, J.squeeze(1) @ self.pose[:, :3, :3]
        slope = self.loss(self.squares(at.points3d))[1][:, None, None]
        H, g = self.sums(slope * (J.mT @ J)), self.sums((slope * (J.mT @ r[..., None])).squeeze(-1))
        diagonal = H.diagonal(dim1=1, dim2=2)
        # a direction that the rays leave open still gets some damping
        damped = damping[:, None] * diagonal + 1e-9 * diagonal.sum(-1, keepdim=True) + torch.finfo(H.dtype).tiny
        step = torch.linalg.solve_ex(H + torch.diag_embed(damped), -g[..., None]).result.squeeze(-1)
        return step, 0.5 * (step * (damped * step - g)).sum(-1)

    def move(self, at: _Place, step: Tensor, running: Tensor) -> _Place:
        return self.at(at.points3d + step)

    def choose(self, accept: Tensor, there: _Place, at: _Place) -> _Place:
        return _Place(select(accept, there.points3d, at.points3d), select(accept, there.cost, at.cost))

    def still(self, at: _Place, there: _Place) -> Tensor:
        return torch.zeros_like(at.cost, dtype=torch.bool)


def as_table(points2d: Tensor, camera: Tensor, point: Tensor, views: int, points: int) -> tuple[Tensor, Tensor]:
    """points2d (V,N,2), zero where not visible (V,N), of points2d (M,2), camera (M,), point (M,)."""
    visible = torch.zeros(views, points, dtype=torch.bool, device=points2d.device)
    visible[camera, point] = True
    return points2d.new_zeros(views, points, 2).index_put((camera, point), points2d), visible
