"""PnP as a `Problem` in batched tensor operations: the reference of the compiled kernels, and what runs elsewhere."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.camera import Model, in_front, project_camera_frame, projection_curvature, projection_jacobian
from geometry.checks import one_of
from geometry.lenses import LENSES
from geometry.optim import Linearization, Problem
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["pnp_problem"]


def _points(
    pose: Tensor, points3d: Tensor, mask: Tensor, distortion: Tensor, model: Model
) -> tuple[Tensor, Tensor, Tensor]:
    """R X (…,3,N), R X + t (…,3,N), and whether the camera sees every visible point (…).

    Masked points sit at (1, 1, 1), out of harm, if not always in sight. Coordinates come first, so that each of them
    is contiguous.
    """
    rotated = pose[..., :3, :3] @ points3d.mT
    p = torch.where(mask[..., None, :], rotated + pose[..., :3, 3:], 1.0)
    return rotated, p, (in_front(p.mT, distortion, model=model) >= mask).all(-1)


def turned(R: Tensor, omega: Tensor) -> Tensor:
    """The rotation of the quaternion (1, omega / 2) times R: exp(omega) R to second order. (…,3,3), (…,3) -> (…,3,3).

    It needs no trigonometry and no series, and a rotation stays one to rounding.
    """
    half = 0.5 * omega
    scale = 2 / (1 + half.square().sum(-1))
    half = half[..., None]
    moved = torch.linalg.cross(half, R, dim=-2)
    return torch.addcmul(R, scale[..., None, None], moved + torch.linalg.cross(half, moved, dim=-2))


def _retract(pose: Tensor, step: Tensor) -> Tensor:
    """`se3.retract` to second order, by `turned`."""
    R, t = turned(pose[..., :3, :3], step[..., :3]), pose[..., :3, 3:] + step[..., 3:, None]
    return torch.cat([torch.cat([R, t], -1), pose[..., 3:, :]], -2)


def _by_step(D: Tensor, rotated: Tensor) -> Tensor:
    """Derivatives by the step (B,k,6,N) of what has the derivatives D (B,k,3,N) by the camera-frame point.

    d p / d step = [-hat(R X) | I], so that a row d becomes (R X) x d | d.
    """
    q, d = torch.cat([rotated, rotated[:, :2]], 1)[:, None], torch.cat([D, D[:, :, :2]], 2)
    turn = torch.addcmul(q[:, :, 1:4] * d[:, :, 2:5], q[:, :, 2:5], d[:, :, 1:4], value=-1)
    return torch.cat([turn, D], 2)


@lru_cache(maxsize=64)
def pnp_problem(model: Model = "radtan", kernel: Kernel | None = None) -> Problem:
    """PnP as a `Problem` over world_to_camera (4,4) with data
    (points2d (N,2), points3d (N,3), K (3,3), distortion (k,), weights (N,2), mask (N,)).

    The batched closed-form derivatives are tested against automatic differentiation of `residual`. Raises ValueError
    for a model that there is not, and a kernel that is no function.
    """
    one_of("model", model, LENSES)

    def residual(
        pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, mask: Tensor
    ) -> Tensor:
        p = se3.transform(pose, points3d)
        p = torch.where(mask[..., None], p, 1.0)
        r = weights * (project_camera_frame(p, K, distortion, model=model) - points2d)
        r = torch.where(in_front(p, distortion, model=model)[..., None], r, torch.inf)
        return torch.where(mask[..., None], r, 0.0)

    def linearize(
        pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, mask: Tensor,
        *, exact: bool = False,
    ) -> Linearization:  # fmt: skip
        rotated, p, seen = _points(pose, points3d, mask, distortion, model)
        pixels, D = projection_jacobian(p.mT, K, distortion, model)
        weights = torch.where(mask[..., None], weights, 0.0).mT  # (B,2,N)
        J = torch.cat([_by_step(D.movedim(-3, -1), rotated), (pixels - points2d).mT[:, :, None]], 2)  # (B,2,7,N)
        J = J * weights[:, :, None]
        u, v = left, right = J.unbind(1)
        rho, slope, bend = torch.addcmul(u[:, 6] * u[:, 6], v[:, 6], v[:, 6]), None, None
        if kernel is not None:
            rho, slope, bend = kernel_derivatives(kernel, rho)
            left, right = slope[:, None] * u, slope[:, None] * v
        products = torch.baddbmm(left @ u.mT, right, v.mT)
        cost = torch.where(seen, 0.5 * rho.sum(-1), torch.inf)
        found = Linearization(cost, products[:, :6, 6], products[:, :6, :6])
        if not exact:
            return found
        # gradient (B,3,N) of each point's cost with respect to the camera-frame point, and the part of its Hessian
        # (B,3,3,N) that is not in J^T J
        a = torch.addcmul(u[:, 3:6] * u[:, 6:], v[:, 3:6], v[:, 6:])
        covector = weights * J[:, :, 6]
        if slope is not None:
            covector = slope[:, None] * covector
        C = projection_curvature(p.mT, K, distortion, model, covector.mT).movedim(-3, -1)
        if slope is not None and bend is not None:
            C, a = C + (2 * bend[:, None] * a)[:, :, None] * a[:, None], slope[:, None] * a
        eye = torch.eye(3, dtype=p.dtype, device=p.device)
        along = _by_step(eye[..., None].expand_as(C), rotated)
        H = found.gauss_newton + (along @ _by_step(C, rotated).mT).sum(1)
        # second order of exp: omega x (omega x q) = omega (omega . q) - q |omega|^2
        aq = a @ rotated.mT
        trace = aq.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        rotation = 0.5 * (aq + aq.mT) - trace * eye
        return found._replace(hessian=H + nn.functional.pad(rotation, (0, 3, 0, 3)))

    return Problem(
        residual, dof=6, retract=_retract, kernel=kernel, linearize=linearize, alike=(3,),
        terms=lambda points2d, *_: 2 * points2d.shape[-2], broadcasts=True,
    )  # fmt: skip
