"""Losses that know the true pose and differentiate no solver; the covariance of a pose.

- `keypoint_likelihood_loss`: the keypoints are Gaussian about the true projections, their weights being 1/sigma.
- `linear_covariance_loss` (Liu, Hu and Salzmann 2023, arXiv 2303.11516): the spread of the solver's answer about the
  truth is made small.

`linear_covariance` takes any `Problem` over a pose. Those of EPro-PnP are in `geometry.pose.epro_pnp`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import Model
from geometry.optim import (
    Problem,
    State,
    Status,
    batch_data,
    covariance,
    jacobian,
    linearize,
    map_state,
    solve_spd,
    stop_gradient_where,
)
from geometry.pose.data import PnPData, check_options, check_pose, observed, precision, prepare
from geometry.pose.problem import pnp_problem
from geometry.robust import Kernel, kernel_derivatives

__all__ = [
    "PoseLoss",
    "keypoint_likelihood_loss",
    "linear_covariance",
    "linear_covariance_loss",
    "nothing_of",
    "pose_covariance",
]


@dataclass(frozen=True)
class PoseLoss:
    """loss (B,) of each sample, and status (B,) int8 of `Status`; a sample that failed has loss and gradient zero."""

    loss: Tensor
    status: Tensor

    @property
    def converged(self) -> Tensor:
        """(B,) bool: whether the loss means anything."""
        return self.status == int(Status.CONVERGED)


def keypoint_likelihood_loss(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    pose_gt: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    model: Model = "radtan",
) -> PoseLoss:
    """-log p(points2d | pose_gt), the coordinates being Gaussian about the true projections: weights are 1/sigma.

        loss = sum over visible coordinates of 1/2 w^2 (project(X) - x)^2 - log w,

    but for a constant (Kendall and Gal 2017, arXiv 1703.04977, eq. 5, with w = 1/sigma). The true pose and the known
    points are turned into labels of the keypoints, and nothing is solved: a step down the gradient moves every keypoint
    towards its place, and its weight towards 1/|distance|. Errors that keypoints have in common are not seen.

    Arguments as for `pnp`, at least 4 points; pose_gt (B|1,4,4) world_to_camera. A coordinate of weight zero is as if
    absent; the loss has no bound as a weight goes to zero. Precision: that of points2d (float32 for 16-bit inputs).
    Gradients reach points2d, points3d, K, distortion, weights and pose_gt. Returns `PoseLoss`. status: CONVERGED;
    TOO_FEW where no point is visible; INFEASIBLE where one is behind the camera at pose_gt.
    Raises ValueError as `pnp` does, and for the shape, dtype, device and values of pose_gt.

    >>> weights = torch.full((12,), 2.0, requires_grad=True)  # 1/sigma
    >>> keypoint_likelihood_loss(points2d, points3d, K, pose, weights=weights).loss.sum().backward()
    >>> weights.grad.shape
    torch.Size([12])
    """
    points2d = observed(points2d, points3d, weights, mask, (K, 2), (distortion, 1), (pose_gt, 2))
    given = prepare(points2d, points3d, K, distortion, weights, mask, model=model).to(precision(points2d))
    data, frame = given.prepared().centred()
    truth = frame.to_frame(check_pose("pose_gt", pose_gt, points2d).to(data.K.dtype))
    if len(points2d) == 0:
        nothing = nothing_of(data)
        return PoseLoss(nothing, nothing.to(torch.int8))
    problem = pnp_problem(model)
    with torch.no_grad():
        feasible = torch.isfinite(problem.costs(truth, *data))
        status = torch.where(feasible, Status.CONVERGED, Status.INFEASIBLE)
        status = torch.where(data.mask.any(-1), status, Status.TOO_FEW).to(torch.int8)
    ok = status == int(Status.CONVERGED)
    data, truth = PnPData(*stop_gradient_where(~ok, tuple(data))), stop_gradient_where(~ok, truth)
    sizes = data.weights.abs()
    counted = data.mask[..., None] & (sizes > 0)
    log_sizes = torch.where(counted, torch.where(counted, sizes, 1).log(), 0)
    loss = problem.costs(truth, *data) - log_sizes.sum((-2, -1))
    return PoseLoss(torch.where(ok, loss, 0), status)


def linear_covariance(problem: Problem, x: State, *data: Tensor) -> Tensor:
    """Covariance (B,P,P) of the tangent step from x to the minimum, each residual being the measure of its own noise.

    With r (M,) and J (M,P) residual and Jacobian at x, the linearised minimiser moves by

        delta = -(J^T J)^-1 J^T r = sum_m a_m r_m,

    and noises that are independent, of mean zero and variance r_m^2, give it the covariance sum_m a_m a_m^T r_m^2
    (arXiv 2303.11516; the sandwich of Eicker, Huber and White). Unlike delta delta^T it holds no products of two
    different residuals, in which noises cancel. Put the truth for x, where residuals are noise: at the minimum they
    are smaller. A robust kernel enters as in one step of reweighting, r -> rho' r and J^T J -> J^T rho' J.
    Differentiable in data; x is a constant. NaN, and without gradient, where the data do not determine the step.
    """
    x, data = batch_data(x, data)
    x = map_state(lambda a: a.detach(), x)
    with torch.no_grad():
        lin = linearize(problem, x, tuple(d.detach() for d in data))
        scale = lin.gauss_newton.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(lin.cost.dtype).tiny).rsqrt()
        ok = solve_spd(lin.gauss_newton, lin.gradient)[1] & torch.isfinite(lin.cost)
    data = stop_gradient_where(~ok, data)

    r, J = jacobian(problem, x, data)
    _, slope, _ = kernel_derivatives(problem.kernel, r.square().sum(-1))
    J = J * scale[:, None, None]
    score = ((slope[..., None] * r)[..., None] * J).flatten(1, 2)
    H = J.flatten(1, 2).mT @ (slope[..., None, None] * J).flatten(1, 2)
    eye = torch.eye(problem.dof, dtype=H.dtype, device=H.device)
    moves = torch.linalg.solve(torch.where(ok[:, None, None], H, eye), score.mT) * scale[..., None]
    return torch.where(ok[:, None, None], moves @ moves.mT, torch.nan)


def linear_covariance_loss(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    pose_gt: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    model: Model = "radtan",
) -> PoseLoss:
    """The linear-covariance loss (after arXiv 2303.11516): spread of PnP's answer, linearised at the true pose.

        loss = sqrt( mean_i trace(M_i C M_i^T) ),   C = `linear_covariance` at pose_gt,   M_i = [-hat(R X_i) | I]:

    the root-mean-square distance, in the units of points3d, by which the visible points move in the camera frame
    under a pose error of covariance C; an expected ADD error. The paper's loss is made of the diagonal elements of
    the pose covariance. Here the object itself weighs rotation against translation, so that neither the units nor
    the origin of points3d matter. The M_i are constants; gradients reach points2d, points3d, K, distortion and
    weights through residuals and Jacobian. Each residual enters by its square: a step down the gradient moves every
    one of points2d towards its true projection, whatever the others do. At an exact fit the gradient is zero.

    Arguments as for `pnp`, at least 4 points; pose_gt (B|1,4,4) world_to_camera. Computed in float64, returned in
    the precision of points2d (float32 for 16-bit inputs). Returns `PoseLoss`. status: CONVERGED; TOO_FEW visible
    points (less than 4); INFEASIBLE (a point behind the camera at pose_gt); SINGULAR.
    Raises ValueError as `pnp` does, and for the shape, dtype, device and values of pose_gt.

    >>> linear_covariance_loss(points2d, points3d, K, pose).converged
    tensor([True, True, True])
    """
    points2d = observed(points2d, points3d, weights, mask, (K, 2), (distortion, 1), (pose_gt, 2))
    given = prepare(points2d, points3d, K, distortion, weights, mask, model=model).to(torch.float64)
    data, frame = given.prepared().centred()
    truth = frame.to_frame(check_pose("pose_gt", pose_gt, points2d).detach().double())
    if len(points2d) == 0:
        nothing = nothing_of(data).to(precision(points2d))
        return PoseLoss(nothing, nothing.to(torch.int8))
    problem = pnp_problem(model)
    with torch.no_grad():
        feasible = torch.isfinite(problem.costs(truth, *data))
        seen = data.mask[..., None, None]
        count = data.mask.sum(-1)
        turn = -se3.hat(data.points3d @ truth[:, :3, :3].mT)
        eye = torch.eye(3, dtype=turn.dtype, device=turn.device).expand_as(turn)
        M = torch.cat([turn, eye], -1) * seen
        metric = (M.mT @ M).sum(1) / count.clamp_min(1)[:, None, None]
    C = linear_covariance(problem, truth, *data)
    singular = torch.isnan(C).any(-1).any(-1)
    status = torch.where(singular, Status.SINGULAR, Status.CONVERGED)
    status = torch.where(feasible, status, Status.INFEASIBLE)
    status = torch.where(count < 4, Status.TOO_FEW, status).to(torch.int8)
    ok = status == int(Status.CONVERGED)
    square = torch.where(ok, (metric * C).sum((-2, -1)), 0)
    # the root has no derivative at zero
    positive = square > 0
    loss = torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)
    return PoseLoss(loss.to(precision(points2d)), status)


def pose_covariance(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    pose: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    sigma: float | None = None,
) -> Tensor:
    """Covariance (B,6,6) of a pose that `pnp` found: of (omega, v), R <- exp(omega) R, t <- t + v.

    `covariance` of the PnP problem: without a kernel sigma^2 (J^T J)^-1, sigma times 1/weights being the standard
    deviation of each coordinate, in pixels; None estimates it from the residuals. Weights that are 1/sigma in earnest
    want sigma=1. With a kernel, with which there is no sigma, the covariance of what the kernel makes of the noise.
    Arguments as for `pnp`; pose (B|1,4,4), the kernel that it was found with.
    Computed in float64, returned in the precision of points2d. No graph.
    NaN where the points do not determine the pose, or lie behind the camera, and where sigma is to be estimated from
    three points, which any pose of theirs fits. Raises ValueError as `pnp` does.

    >>> pose_covariance(points2d, points3d, K, pnp(points2d, points3d, K).x).shape
    torch.Size([3, 6, 6])
    """
    check_options(model, kernel)
    points2d = observed(points2d, points3d, weights, mask, (K, 2), (distortion, 1), (pose, 2))
    given = prepare(points2d, points3d, K, distortion, weights, mask, model=model, fewest=3).to(torch.float64)
    data, frame = given.prepared().centred()
    pose = check_pose("pose", pose, points2d).detach().double()
    C = covariance(pnp_problem(model, kernel), frame.to_frame(pose), *data, sigma=sigma)
    G = se3.step_from(pose, frame.origin)
    return (G @ C @ G.mT).to(precision(points2d))


def nothing_of(data: PnPData) -> Tensor:
    """The losses (0,) of an empty batch, which belong to the graph of its data: vmap cannot map over nothing."""
    return torch.stack([d.flatten(1).sum(1) for d in data[:5]]).sum(0)
