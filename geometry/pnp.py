"""BPnP: the Perspective-n-Point problem as a layer.

The pose minimises half the sum of rho(|w_i (project(X_i) - x_i)|^2) over the visible points: the reprojection error
itself, not a depth-scaled substitute, so that the implicit gradient belongs to the minimum that is returned.
After "End-to-End Learnable Geometric Vision by Backpropagating PnP Optimization", CVPR 2020, arXiv 1909.06043.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.camera import (
    Model,
    check_distortion,
    in_front,
    project_camera_frame,
    projection_curvature,
    projection_jacobian,
)
from geometry.implicit import Gradient, argmin
from geometry.optim import Linearization, Problem, Solution, Status
from geometry.pnp_start import find_pose
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["BPnP", "pnp", "pnp_problem"]

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

    return Problem(residual, dof=6, retract=se3.retract, kernel=kernel, linearize=linearize, hessian=hessian)


def _check(name: str, value: Tensor, wanted: str, shapes: list[tuple[int, ...]]) -> None:
    if tuple(value.shape) not in shapes:
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(value.shape)}")


def _prepare(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor | None,
    weights: Tensor | None,
    mask: Tensor | None,
    init: Tensor | None,
    model: Model,
) -> tuple[Tensor, ...]:
    """Check the arguments of `pnp` and bring them to the batched shapes of `pnp_problem`."""
    if points2d.ndim != 3 or points2d.shape[-1] != 2:
        raise ValueError(f"points2d must have shape (B,N,2), got {tuple(points2d.shape)}")
    B, N, _ = points2d.shape
    _check("points3d", points3d, f"({B}|1,{N},3) or ({N},3)", [(B, N, 3), (1, N, 3), (N, 3)])
    _check("K", K, f"({B}|1,3,3) or (3,3)", [(B, 3, 3), (1, 3, 3), (3, 3)])
    if distortion is None:
        distortion = points2d.new_zeros(0)
    if distortion.ndim not in (1, 2) or (distortion.ndim == 2 and distortion.shape[0] not in (1, B)):
        raise ValueError(f"distortion must have shape ({B}|1,k) or (k,), got {tuple(distortion.shape)}")
    check_distortion(distortion, model)
    if weights is None:
        weights = points2d.new_ones(1, N, 2)
    else:
        _check("weights", weights, f"({B}|1,{N}) or ({B}|1,{N},2)", [(B, N), (1, N), (B, N, 2), (1, N, 2)])
        weights = weights[..., None] if weights.ndim == 2 else weights
    if mask is None:
        mask = torch.ones(1, N, dtype=torch.bool, device=points2d.device)
    else:
        _check("mask", mask, f"({B}|1,{N})", [(B, N), (1, N)])
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be of dtype torch.bool, got {mask.dtype}")
    if not points2d.is_floating_point():
        raise ValueError(f"points2d must be of a floating-point dtype, got {points2d.dtype}")
    named = {"points3d": points3d, "K": K, "distortion": distortion, "weights": weights, "init": init}
    for name, value in named.items():
        if value is not None and (value.dtype != points2d.dtype or value.device != points2d.device):
            raise ValueError(
                f"{name} must have the dtype and device of points2d ({points2d.dtype}, {points2d.device}), "
                f"got {value.dtype}, {value.device}"
            )
    if init is not None:
        _check("init", init, f"({B}|1,4,4)", [(B, 4, 4), (1, 4, 4)])
    needed = 4 if init is None else 3
    if needed > N:
        raise ValueError(
            f"points2d must hold at least {needed} points {'' if init is None else 'with init'}, got N={N}"
        )

    def per_point(value: Tensor, last: int) -> Tensor:
        return value.expand(B, N, last)

    mask = mask.expand(B, N)
    # A masked entry may hold anything, NaN included: it is replaced before it meets a derivative.
    points2d = torch.where(mask[..., None], points2d, 0)
    points3d = torch.where(mask[..., None], per_point(points3d, 3), 0)
    weights = torch.where(mask[..., None], per_point(weights, 2), 0)
    named = {
        "points2d": points2d,
        "points3d": points3d,
        "K": K,
        "distortion": distortion,
        "weights": weights,
        "init": init,
    }
    for name, value in named.items():
        if value is not None and not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite where mask is True, got NaN or infinity")
    # weight zero means absent, also where the point lies behind the camera
    mask = mask & (weights != 0).any(-1)
    return points2d, points3d, K.expand(B, 3, 3), distortion.expand(B, distortion.shape[-1]), weights, mask


def pnp(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    init: Tensor | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    gradient: Gradient = "exact",
    max_steps: int = 50,
    solve_dtype: torch.dtype = torch.float64,
    throw: bool = False,
) -> Solution:
    """Camera pose from 2D-3D correspondences, differentiable in every input by the implicit function theorem.

    points2d (B,N,2) px; points3d (B|1,N,3) or (N,3); K (B|1,3,3) or (3,3); distortion (B|1,k) or (k,) of `model`
    (`geometry.camera`); weights (B|1,N) or (B|1,N,2) multiply the residual (1/sigma; zero means absent);
    mask (B|1,N) bool, False means absent, in value and in gradient; kernel: a robust kernel over the weighted pixel
    error of a point. Returns Solution with x = world_to_camera (B,4,4), at the dtype and on the device of points2d.
    solve_dtype: the precision inside; float32 cannot tell depth from rotation once the object is a few pixels wide.

    init (B|1,4,4): a pose to start from; the local minimum next to it is returned. With init=None the global
    minimum is sought: the object-space error, a quadratic form in R, is minimised on SO(3) from the 24
    rotations of a cube, its distinct minima with the points in front of the camera are refined on the
    reprojection error, and the best is kept (`geometry.pnp_start`). At least 4 points, planar or not; 3 with init.

    gradient: "exact", "gauss_newton" or "unrolled" (`geometry.implicit.argmin`). status per sample: CONVERGED;
    STALLED after max_steps; SINGULAR (collinear points); INFEASIBLE (a point behind the camera at `init`); TOO_FEW
    points left by the mask. A sample that did not converge has gradient zero and leaves the others untouched.
    Raises ValueError naming the argument for wrong shapes, dtypes, devices, too few points or non-finite values;
    with throw=True, SolverError where a sample failed.
    """
    *tensors, visible = _prepare(points2d, points3d, K, distortion, weights, mask, init, model)
    pixels, X, *rest = (d.to(solve_dtype) for d in tensors)
    # Turn about the middle of the object: about a far origin, rotation and translation can hardly be told apart.
    count = visible.sum(-1, keepdim=True).clamp_min(1)
    centre = (X.detach() * visible[..., None]).sum(1) / count
    data = (pixels, X - centre[:, None], *rest, visible)
    B = points2d.shape[0]
    enough = visible.sum(-1) >= (4 if init is None else 3)
    problem = pnp_problem(model, kernel)
    with torch.no_grad():
        if init is None:
            start = find_pose(problem, *(d.detach() for d in data), model=model)
        else:
            # a rotation that was rounded to float32, or came from a file, is made one again
            R = se3.rotation_from_quat_wxyz(se3.quat_wxyz_from_rotation(init[..., :3, :3].to(solve_dtype)))
            t = init[..., :3, 3].to(solve_dtype) + (R @ centre[..., None]).squeeze(-1)
            start = se3.make(R.expand(B, 3, 3), t)
    found = argmin(problem, start, *data, gradient=gradient, max_steps=max_steps)
    # A sample with too few points may look converged to the solver; it is not, and its gradient is dropped.
    R = found.x[:, :3, :3]
    pose = se3.make(R, found.x[:, :3, 3] - (R @ centre[..., None]).squeeze(-1))
    pose = torch.where(enough[:, None, None], pose, pose.detach())
    status = torch.where(enough, found.status, torch.full_like(found.status, Status.TOO_FEW))
    dtype = points2d.dtype
    solution = Solution(pose.to(dtype), found.cost.to(dtype), status, found.steps)
    if throw:
        solution.raise_if_failed()
    return solution


class BPnP(nn.Module):
    """`pnp` as a module: points2d (B,N,2) in, world_to_camera (B,4,4) out.

    points3d (N,3) or (B,N,3), K and the keywords of `pnp` are given once, or per call as keywords, which win.
    vector=True returns the six-vector [rotvec, t] (B,6) of the published code instead. Tensors given here are
    buffers (they move with .to()); pass nn.Parameter objects per call, or register them on the parent, to learn them.
    """

    points3d: Tensor | None
    K: Tensor | None

    def __init__(
        self,
        points3d: Tensor | None = None,
        K: Tensor | None = None,
        *,
        vector: bool = False,
        model: Model = "radtan",
        kernel: Kernel | None = None,
        gradient: Gradient = "exact",
        max_steps: int = 50,
    ) -> None:
        super().__init__()
        self.register_buffer("points3d", points3d, persistent=False)
        self.register_buffer("K", K, persistent=False)
        self.vector, self.model, self.kernel = vector, model, kernel
        self.gradient, self.max_steps = gradient, max_steps

    def forward(
        self,
        points2d: Tensor,
        points3d: Tensor | None = None,
        K: Tensor | None = None,
        *,
        distortion: Tensor | None = None,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
        init: Tensor | None = None,
    ) -> Tensor:
        points3d = self.points3d if points3d is None else points3d
        K = self.K if K is None else K
        if points3d is None or K is None:
            raise ValueError(f"{'points3d' if points3d is None else 'K'} must be given to BPnP or to its call")
        pose = pnp(
            points2d,
            points3d,
            K,
            distortion=distortion,
            weights=weights,
            mask=mask,
            init=init,
            model=self.model,
            kernel=self.kernel,
            gradient=self.gradient,
            max_steps=self.max_steps,
        ).x
        return se3.rotvec_t(pose) if self.vector else pose
