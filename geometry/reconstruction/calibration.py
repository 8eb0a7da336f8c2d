"""Camera calibration through PnP: intrinsics and distortion are the outer unknowns, every view's pose an inner one.

One camera sees a known target in V views. For each trial of the intrinsics the poses are found by PnP; the intrinsics
take the Gauss-Newton step of the reduced reprojection error (`geometry.optim.nested`). The minimum is that of the joint
calibration of Zhang 2000, TPAMI 22(11), eq. 14, and the start needs the size of the image only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacfwd

from geometry import se3
from geometry.camera import Model, matrix_from_intrinsics, project
from geometry.checks import boolean, check_distortion, check_tensors, function, one_of, positive, shaped, whole
from geometry.optim import Solution, Status, nested_start, nested_step
from geometry.pose import pnp, pnp_problem
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["CalibrationProblem", "calibrate", "free_intrinsics", "start_intrinsics"]

Unpack = Callable[[Tensor], tuple[Tensor, Tensor]]


def free_intrinsics(theta: Tensor) -> tuple[Tensor, Tensor]:
    """The usual parameters: theta (4+k,) = fx, fy, cx, cy, distortion -> K (3,3), distortion (k,)."""
    return matrix_from_intrinsics(theta[:4]), theta[4:]


def start_intrinsics(image_size: tuple[int, int], distortion: int, model: Model, like: Tensor) -> Tensor:
    """theta (4+distortion,) that knows nothing but the image size (width, height) in pixels.

    Principal point at the image centre, no distortion; the focal length is the longer side ("radtan": 53 degrees
    across), or what maps half a turn to it ("fisheye"). dtype and device are those of `like`.
    """
    width, height = image_size
    f = max(width, height) / (torch.pi if model == "fisheye" else 1.0)
    return like.new_tensor([f, f, (width - 1) / 2, (height - 1) / 2, *[0.0] * distortion])


@dataclass(frozen=True)
class CalibrationProblem:
    """`NestedProblem` over theta (1,P); inner: world_to_camera (1,V,4,4).

    points2d (V,N,2) px, points3d (V,N,3) or (N,3) target frame, mask (V,N) bool. unpack maps theta (P,) to K (3,3) and
    distortion (k,): `free_intrinsics`, or any function of yours that ties or fixes parameters. kernel: robust kernel.
    A view whose PnP fails makes the cost infinite, so that the step is refused.
    """

    points2d: Tensor
    points3d: Tensor
    mask: Tensor
    unpack: Unpack = free_intrinsics
    model: Model = "radtan"
    kernel: Kernel | None = None

    def evaluate(self, theta: Tensor, inner: Tensor | None) -> tuple[Tensor, Tensor]:
        K, distortion = self.unpack(theta[0])
        if not (K[0, 0] > 0 and K[1, 1] > 0 and torch.isfinite(theta).all()):
            # a focal length through zero is a mirror world: refuse the step
            assert inner is not None
            return theta.new_full((1,), torch.inf), inner
        init = None if inner is None else inner[0]
        found = self.poses(K, distortion, init)
        if init is not None and (found.status == Status.INFEASIBLE).any():
            found = self.poses(K, distortion, None)
        usable = (found.status != Status.INFEASIBLE) & (found.status != Status.TOO_FEW)
        cost = torch.where(usable, found.cost, torch.inf).sum()
        return cost.detach()[None], found.x.detach()[None]

    def poses(self, K: Tensor, distortion: Tensor, init: Tensor | None = None) -> Solution:
        """PnP of every view at given intrinsics, differentiable in them."""
        return pnp(
            self.points2d,
            self.points3d,
            K,
            distortion=distortion,
            mask=self.mask,
            init=init,
            model=self.model,
            kernel=self.kernel,
        )

    def reduced(self, theta: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (P,) and Gauss-Newton matrix (P,P) of the reduced cost: the Schur complement of the poses."""
        pose, theta = inner[0], theta[0]
        V, N = self.points2d.shape[:2]
        # turns and shifts of the poses are told apart best about the middle of the target
        points3d, mask = self.points3d.expand(V, N, 3), self.mask[..., None]
        middle = torch.where(mask, points3d, 0).sum((0, 1)) / mask.sum().clamp_min(1)
        points3d, pose = points3d - middle, se3.about(pose, middle)

        def residual(theta: Tensor) -> Tensor:
            K, distortion = self.unpack(theta)
            r = project(points3d, pose, K, distortion, model=self.model) - self.points2d
            return torch.where(self.mask[..., None], r, 0)

        r, J = residual(theta), jacfwd(residual)(theta)
        slope = kernel_derivatives(self.kernel, r.square().sum(-1))[1]
        K, distortion = self.unpack(theta)
        J_pose = self._pose_jacobian(points3d, pose, K, distortion)
        weighted = slope[..., None, None] * J
        gradient = torch.einsum("vnkp,vnk->p", weighted, r)
        A = torch.einsum("vnkp,vnkq->pq", weighted, J)
        B = torch.einsum("vnkp,vnkq->vpq", weighted, J_pose)
        C = torch.einsum("vnk,vnkp,vnkq->vpq", slope[..., None].expand_as(r), J_pose, J_pose)
        return gradient, A - (B @ torch.linalg.solve(C, B.mT)).sum(0)

    def _pose_jacobian(self, points3d: Tensor, pose: Tensor, K: Tensor, distortion: Tensor) -> Tensor:
        """d pixels / d pose step (V,N,2,6), zero where masked."""
        V = len(self.mask)
        problem = pnp_problem(self.model, None)
        weights = torch.ones_like(self.points2d)

        def residual(step: Tensor) -> Tensor:
            moved = problem.retract(pose, step.expand(V, 6))
            return problem.residual(moved, self.points2d, points3d, K, distortion, weights, self.mask)

        return jacfwd(residual)(pose.new_zeros(6))

    def step(self, theta: Tensor, inner: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        gradient, A = self.reduced(theta, inner)
        diagonal = A.diagonal().clamp_min(torch.finfo(A.dtype).tiny)
        scale = diagonal.rsqrt()
        eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
        scaled = A * scale[:, None] * scale + damping * eye
        step = -scale * torch.linalg.solve(scaled, scale * gradient)
        predicted = 0.5 * (step * (damping * diagonal * step - gradient)).sum()
        return step[None], predicted[None]

    def retract(self, theta: Tensor, step: Tensor) -> Tensor:
        return theta + step

    def covariance(self, theta: Tensor, inner: Tensor, cost: Tensor) -> Tensor:
        """Covariance (P,P) of theta with the poses marginalised, sigma^2 estimated from the residual."""
        freedom = 2 * int(self.mask.sum()) - theta.shape[1] - 6 * len(self.mask)
        A = self.reduced(theta, inner)[1]
        scale = A.diagonal().rsqrt()
        inverse = torch.linalg.inv(A * scale[:, None] * scale) * scale[:, None] * scale
        return inverse * (2 * cost / max(freedom, 1))


def calibrate(
    points2d: Tensor,
    points3d: Tensor,
    image_size: tuple[int, int],
    *,
    distortion: int = 5,
    model: Model = "radtan",
    mask: Tensor | None = None,
    kernel: Kernel | None = None,
    max_steps: int = 100,
) -> Solution:
    """Calibrate one camera from V views of a known target.

    points2d (V,N,2) px, points3d (N,3) or (V,N,3), image_size (width, height) px, distortion: how many coefficients
    of `model` to estimate, mask (V,N) bool. Returns a Solution of batch 1 with x = (K (1,3,3), distortion (1,k),
    world_to_camera (1,V,4,4)); status CONVERGED or STALLED after max_steps. Standard deviations come from
    `CalibrationProblem.covariance`. Raises ValueError as `geometry.pnp` does.
    """
    check_tensors(points2d=points2d, points3d=points3d)
    one_of("model", model, ("radtan", "fisheye"))
    function("kernel", kernel)
    whole("max_steps", max_steps, 1)
    whole("distortion", distortion, 0)
    check_distortion(points2d.new_zeros(distortion), model)
    try:
        width, height = image_size
    except (TypeError, ValueError):
        raise ValueError(f"image_size must be (width, height) in px, got {image_size!r}") from None
    positive("image_size", width)
    positive("image_size", height)
    if points2d.ndim != 3:
        raise ValueError(f"points2d must have shape (V,N,2), got {tuple(points2d.shape)}")
    if mask is not None:
        boolean("mask", mask)
        shaped(points2d=(points2d, "V,N,2"), mask=(mask, "V,N"))
    if mask is None:
        mask = torch.ones(points2d.shape[:2], dtype=torch.bool, device=points2d.device)
    problem = CalibrationProblem(points2d, points3d, mask, free_intrinsics, model, kernel)
    theta = start_intrinsics(image_size, distortion, model, points2d)[None]
    state = nested_start(problem, theta)
    # perfect corners leave nothing but rounding: about 1e-14 of the image
    floor = 0.5 * int(mask.sum()) * (1e-14 * max(image_size)) ** 2
    while not state.done.all() and state.steps < max_steps:
        state = nested_step(problem, state, floor=floor)
    K, coefficients = free_intrinsics(state.theta[0])
    status = torch.where(state.done & torch.isfinite(state.cost), Status.CONVERGED, Status.STALLED)
    steps = torch.full_like(status, state.steps, dtype=torch.int32)
    return Solution((K[None], coefficients[None], state.inner), state.cost, status.to(torch.int8), steps)
