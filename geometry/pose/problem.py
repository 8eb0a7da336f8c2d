"""PnP as a `Problem` in batched tensor operations: the reference of the compiled kernels, and what runs elsewhere."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.camera import Model, in_front, project_camera_frame, projection_curvature, projection_jacobian
from geometry.optim import Linearization, Problem
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["pnp_problem"]

_AHEAD = (0.0, 0.0, 1.0)


def _visible_points(pose: Tensor, points3d: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated points R X and camera-frame points R X + t; masked points sit ahead of the camera, out of harm."""
    rotated = points3d @ pose[..., :3, :3].mT
    p = rotated + pose[..., None, :3, 3]
    return rotated, torch.where(mask[..., None], p, p.new_tensor(_AHEAD))


@lru_cache(maxsize=64)
def pnp_problem(model: Model = "radtan", kernel: Kernel | None = None) -> Problem:
    """PnP as a `Problem` over world_to_camera (4,4) with data
    (points2d (N,2), points3d (N,3), K (3,3), distortion (k,), weights (N,2), mask (N,)).

    The batched closed-form derivatives are tested against automatic differentiation of `residual`.
    """

    def residual(
        pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, mask: Tensor
    ) -> Tensor:
        _, p = _visible_points(pose, points3d, mask)
        r = weights * (project_camera_frame(p, K, distortion, model=model) - points2d)
        r = torch.where(in_front(p, model=model)[..., None], r, r.new_full((), torch.inf))
        return torch.where(mask[..., None], r, r.new_zeros(()))

    def linearize(
        pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, mask: Tensor
    ) -> Linearization:
        rotated, p = _visible_points(pose, points3d, mask)
        pixels, D = projection_jacobian(p, K, distortion, model)
        r = weights * (pixels - points2d) * mask[..., None]
        D = weights[..., None] * D * mask[..., None, None]
        rho, slope, _ = kernel_derivatives(kernel, r.square().sum(-1))
        # d p / d step = [-hat(R X) | I]; rows of D times that: (R X) x d | d
        J = torch.cat([torch.linalg.cross(rotated[..., None, :].expand_as(D), D), D], -1).flatten(1, 2)
        root = slope.repeat_interleave(2, -1)[..., None] * J
        visible = (in_front(p, model=model) | ~mask).all(-1)
        cost = torch.where(visible, 0.5 * rho.sum(-1), torch.inf)
        return Linearization(cost, (root * r.flatten(1)[..., None]).sum(1), J.mT @ root)

    def hessian(
        pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, mask: Tensor
    ) -> Tensor:
        rotated, p = _visible_points(pose, points3d, mask)
        pixels, D = projection_jacobian(p, K, distortion, model)
        weights = weights * mask[..., None]
        r = weights * (pixels - points2d)
        D = weights[..., None] * D
        _, slope, bend = kernel_derivatives(kernel, r.square().sum(-1))
        # gradient a (B,N,3) and Hessian C (B,N,3,3) of each point's cost with respect to the camera-frame point
        Dr = (D.mT @ r[..., None]).squeeze(-1)
        a = slope[..., None] * Dr
        C = slope[..., None, None] * (D.mT @ D) + 2 * bend[..., None, None] * Dr[..., :, None] * Dr[..., None, :]
        covector = slope[..., None] * weights * r
        C = C + projection_curvature(p, K, distortion, model, covector)
        M = torch.cat([-se3.hat(rotated), torch.eye(3, dtype=p.dtype, device=p.device).expand_as(C)], -1)
        H = (M.mT @ C @ M).sum(1)
        # second order of exp: omega x (omega x q) = omega (omega . q) - q |omega|^2
        aq = (a[..., :, None] * rotated[..., None, :]).sum(1)
        trace = aq.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        rotation = 0.5 * (aq + aq.mT) - trace * torch.eye(3, dtype=p.dtype, device=p.device)
        return H + nn.functional.pad(rotation, (0, 3, 0, 3))

    return Problem(
        residual, dof=6, retract=se3.retract, kernel=kernel, linearize=linearize, hessian=hessian, alike=(3,)
    )
