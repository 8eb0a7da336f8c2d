"""EPro-PnP (Chen et al. 2022, arXiv 2203.13254): the pose as a distribution that peaks at the truth.

`monte_carlo_pose_loss` makes the posterior of the pose peak at the true one. The paper adds
`derivative_regularisation_loss`, which sends the solver's next step there, and gives Huber's kernel a threshold that
follows the data, `adaptive_huber_scale`. None of them differentiates a solver. The samples and their weights, for any
`Problem` over a pose, are those of `geometry.pose.sampling`.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.camera import Model
from geometry.checks import check_tensors, leading, positive, values
from geometry.optim import Problem, Status, linearize, solve_spd, stop_gradient_where
from geometry.pose.data import (
    PnPData,
    check_like,
    check_options,
    check_pose,
    observed,
    precision,
    prepare,
    without_masked,
)
from geometry.pose.layer import PoseSolution, pnp
from geometry.pose.losses import PoseLoss, nothing_of
from geometry.pose.problem import pnp_problem
from geometry.pose.sampling import log_normaliser, sample_poses
from geometry.robust import Kernel, huber

__all__ = ["MonteCarloLoss", "adaptive_huber_scale", "derivative_regularisation_loss", "monte_carlo_pose_loss"]


@dataclass(frozen=True)
class MonteCarloLoss(PoseLoss):
    """`PoseLoss` with effective_samples (B,), 1 / sum of squared normalised weights, 0 where the sample failed.

    0.4 of the draws where the posterior is nearly Gaussian; below some tens the estimate is not to be trusted.
    """

    effective_samples: Tensor


def monte_carlo_pose_loss(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    pose_gt: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    init: Tensor | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    huber_scale: Tensor | None = None,
    samples: int = 512,
    iterations: int = 4,
    generator: torch.Generator | None = None,
) -> MonteCarloLoss:
    """-log p(pose_gt | data): the Monte-Carlo pose loss of EPro-PnP (arXiv 2203.13254).

        loss = cost(pose_gt) + log Z,   Z = integral of exp(-cost(y)) dR dt,
        cost = 1/2 sum_i rho(|w_i (project(X_i) - x_i)|^2),

    the Kullback-Leibler divergence of the posterior from a point mass at the truth, but for a constant. The weights
    are in earnest here, 1/sigma of each coordinate: the loss learns their scale as well as their proportions. log Z
    is estimated by `sample_poses` about the pose that `pnp` finds (from `init`, or globally): see there
    for the measure, the proposals, and in what they differ from the paper's. Gradients reach points2d, points3d, K,
    distortion, weights and pose_gt through the costs alone, the poses drawn and their density being constants:

        d loss = d cost(pose_gt) - sum_j w_j d cost(y_j),   w normalised.

    Arguments as for `pnp`, at least 4 points; pose_gt (B|1,4,4) world_to_camera; samples a multiple of iterations;
    huber_scale (B|1,): thresholds of Huber's kernel, one a sample, in the place of a kernel. The paper's own are
    `adaptive_huber_scale`; gradients reach them, too. Its second term is `derivative_regularisation_loss`.
    Precision: that of points2d (float32 for 16-bit inputs). Returns `MonteCarloLoss`. status: that of `pnp`; SINGULAR
    where no density could be formed, or huber_scale is zero; INFEASIBLE also where pose_gt has a point behind the
    camera. Raises ValueError as `pnp` does, and for the shape, dtype, device and values of pose_gt and huber_scale.

    >>> found = monte_carlo_pose_loss(points2d, points3d, K, pose, weights=torch.full((12,), 2.0))
    >>> found.converged, bool((found.effective_samples > 50).all())
    (tensor([True, True, True]), True)
    """
    check_options(model, kernel)
    points2d = observed(
        points2d, points3d, weights, mask, (K, 2), (distortion, 1), (pose_gt, 2), (init, 2), (huber_scale, 0)
    )
    given = prepare(points2d, points3d, K, distortion, weights, mask, model=model).to(precision(points2d))
    scale = _thresholds(huber_scale, kernel, points2d)
    data, frame = given.prepared().centred()
    truth = frame.to_frame(check_pose("pose_gt", pose_gt, points2d).to(data.K.dtype))
    if init is not None:
        init = frame.to_frame(check_pose("init", init, points2d).detach().to(data.K.dtype))
    if len(points2d) == 0:
        nothing = nothing_of(data)
        return MonteCarloLoss(nothing, nothing.to(torch.int8), nothing.detach())
    problem, tensors, plain = pnp_problem(model, kernel), tuple(data), data.detached()
    usable = torch.ones_like(data.mask[:, 0])
    if scale is not None:
        usable, scale = scale > 0, torch.where(scale > 0, scale.to(data.K.dtype), 1)
        problem, tensors = _huber_problem(model), (*tensors, scale)
        plain, kernel = _at_scale_one(plain, scale.detach()), huber(1.0)
    with torch.no_grad():
        found = _minimum(plain, init, model, kernel)
        fixed = tuple(d.detach() for d in tensors)
        drawn = sample_poses(problem, found.x, *fixed, samples=samples, iterations=iterations, generator=generator)
        feasible = torch.isfinite(problem.costs(truth.detach(), *fixed))
        status = torch.where(found.converged & ~(drawn.ok & usable), Status.SINGULAR, found.status)
        status = torch.where(found.converged & ~feasible, Status.INFEASIBLE, status).to(torch.int8)
    ok = status == int(Status.CONVERGED)
    live, truth = stop_gradient_where(~ok, tensors), stop_gradient_where(~ok, truth)
    drawn = replace(drawn, ok=ok)
    loss = problem.costs(truth, *live) + log_normaliser(problem, drawn, *live)
    return MonteCarloLoss(torch.where(ok, loss, 0), status, drawn.effective)


def derivative_regularisation_loss(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    pose_gt: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    init: Tensor | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    huber_scale: Tensor | None = None,
    beta: float = 1.0,
) -> PoseLoss:
    """Distance from the truth after one more Gauss-Newton step of the solver: EPro-PnP's second loss.

        loss = smooth_l1(|t - t_gt|) + 1 - cos(angle between R and R_gt),   (R, t) = y* moved by
        step = -(J^T J)^-1 J^T r   at the minimum y* that `pnp` finds (from `init`, or globally)

    (arXiv 2203.13254, "local regularisation of derivatives"). y* is a constant and the step is zero, but its derivative
    is not: the gradient is that of the same distance through `pnp(gradient="gauss_newton")`, by another road. beta:
    the distance, in units of points3d, at which the loss of the position turns from quadratic to linear. Both terms
    belong to the origin of points3d. In the authors' training on LineMOD it weighs five times as much as
    `monte_carlo_pose_loss`, beta being 5 cm.

    Arguments as for `pnp`, at least 4 points; pose_gt (B|1,4,4) world_to_camera; huber_scale (B|1,): thresholds of
    Huber's kernel, one a sample (`adaptive_huber_scale`), in the place of a kernel. Computed in float64, returned in
    the precision of points2d (float32 for 16-bit inputs). Returns `PoseLoss`; gradients reach points2d, points3d, K,
    distortion, weights, huber_scale and pose_gt. status: that of `pnp`; SINGULAR where the points do not determine the
    step, or huber_scale is zero. Raises ValueError as `pnp` does, and for the shape, dtype, device and values of
    pose_gt and huber_scale.

    >>> derivative_regularisation_loss(points2d, points3d, K, pose).converged
    tensor([True, True, True])
    """
    check_options(model, kernel)
    positive("beta", beta)
    points2d = observed(
        points2d, points3d, weights, mask, (K, 2), (distortion, 1), (pose_gt, 2), (init, 2), (huber_scale, 0)
    )
    given = prepare(points2d, points3d, K, distortion, weights, mask, model=model).to(torch.float64)
    scale = _thresholds(huber_scale, kernel, points2d)
    data, frame = given.prepared().centred()
    truth = check_pose("pose_gt", pose_gt, points2d).double()
    if init is not None:
        init = frame.to_frame(check_pose("init", init, points2d).detach().double())
    if len(points2d) == 0:
        nothing = nothing_of(data).to(precision(points2d))
        return PoseLoss(nothing, nothing.to(torch.int8))
    usable = torch.ones_like(data.mask[:, 0])
    if scale is not None:
        usable = scale > 0
        data, kernel = _at_scale_one(data, torch.where(usable, scale.double(), 1)), huber(1.0)
    problem = pnp_problem(model, kernel)
    with torch.no_grad():
        found = _minimum(data, init, model, kernel)
        at = linearize(problem, found.x, tuple(data.detached()))
        usable = usable & solve_spd(at.gauss_newton, at.gradient)[1]
        status = torch.where(found.converged & ~usable, Status.SINGULAR, found.status).to(torch.int8)
    ok = status == int(Status.CONVERGED)
    live, truth = stop_gradient_where(~ok, tuple(data)), stop_gradient_where(~ok, truth)
    # J^T r is zero at the minimum, so that J^T J is as good as a constant
    step, _ = solve_spd(at.gauss_newton, -linearize(problem, found.x, live).gradient)
    moved = frame.from_frame(se3.retract(found.x, step))
    distance = torch.linalg.vector_norm(moved[:, :3, 3] - truth[:, :3, 3], dim=-1)
    position = nn.functional.smooth_l1_loss(distance, torch.zeros_like(distance), beta=beta, reduction="none")
    cosine = ((moved[:, :3, :3] * truth[:, :3, :3]).sum((-2, -1)) - 1) / 2
    return PoseLoss(torch.where(ok, position + 1 - cosine, 0).to(precision(points2d)), status)


def adaptive_huber_scale(
    points2d: Tensor, weights: Tensor | None = None, mask: Tensor | None = None, *, relative: float = 0.1
) -> Tensor:
    """A threshold (B,) of Huber's kernel that follows the data: `huber_scale` of the losses of EPro-PnP.

        scale = relative * (mean of |weights|) * sqrt(var(x) + var(y)),

    mean and variances over the visible points (arXiv 2203.13254, supplement): in the units of the weighted residual, as
    large as that of a point that is off by `relative` times the spread of the points. relative is 0.1 in the authors'
    training on LineMOD, 0.5 on nuScenes. points2d (B,N,2), weights (B|1,N) or (B|1,N,2), mask (B|1,N) as for `pnp`.
    Differentiable in the weights; the spread is a constant, so that no loss falls by drawing the points together.
    Zero where fewer than two points are visible, or all are in one place. Raises ValueError as `pnp` does.

    >>> scale = adaptive_huber_scale(points2d, relative=0.1)
    >>> monte_carlo_pose_loss(points2d, points3d, K, pose, huber_scale=scale).loss.shape
    torch.Size([3])
    """
    positive("relative", relative)
    points2d = observed(points2d, None, weights, mask)
    points3d = points2d.new_zeros(points2d.shape[1], 3)
    K = torch.eye(3, dtype=points2d.dtype, device=points2d.device)
    given = prepare(points2d, points3d, K, None, weights, mask).to(precision(points2d))
    points2d, _, weights, seen = without_masked(given.points2d, given.points3d, given.weights, given.mask)
    values(" where mask is True", points2d=(points2d, "finite"), weights=(weights, "finite"))
    present = seen[..., None].to(points2d.dtype)
    count = present.sum(1).clamp_min(1)
    with torch.no_grad():
        centre = (points2d * present).sum(1) / count
        square = ((points2d - centre[:, None]) * present).square().sum((1, 2))
        spread = (square / (count[:, 0] - 1).clamp_min(1)).sqrt()
    return relative * (weights.abs() * present).mean(-1).sum(-1) / count[:, 0] * spread


def _minimum(data: PnPData, init: Tensor | None, model: Model, kernel: Kernel | None) -> PoseSolution:
    """What `pnp` makes of prepared data, without a graph."""
    points2d, points3d, K, distortion, weights, mask = data.detached()
    return pnp(
        points2d, points3d, K, distortion=distortion, weights=weights, mask=mask, init=init, model=model, kernel=kernel
    )


def _thresholds(scale: Tensor | None, kernel: Kernel | None, points2d: Tensor) -> Tensor | None:
    """huber_scale (B,), after ValueErrors."""
    if scale is None:
        return None
    if kernel is not None:
        raise ValueError("kernel must be None with huber_scale, which says that it is Huber's, got another kernel")
    check_tensors(huber_scale=scale)
    B = len(points2d)
    scale = leading("huber_scale", scale, B, ())
    check_like("huber_scale", scale, points2d)
    values(huber_scale=(scale, "odds"))
    return scale.expand(B)


def _at_scale_one(data: PnPData, scale: Tensor) -> PnPData:
    """The problem of the same minimum under `huber(1)`: Huber's cost at scale d is d^2 times that of r / d at 1."""
    return data._replace(weights=data.weights / scale[:, None, None])


@cache
def _huber_problem(model: Model) -> Problem:
    """PnP under Huber's kernel, the threshold () being the last of the data, by rows r sqrt(rho(|r|^2)) / |r|."""
    plain = pnp_problem(model)

    def residual(pose: Tensor, *data: Tensor) -> Tensor:
        r, scale = plain.residual(pose, *data[:-1]), data[-1]
        length2 = r.square().sum(-1, keepdim=True)
        outside = length2 > scale.square()
        length = torch.where(outside, length2, 1).sqrt()
        rho = torch.where(outside, scale * (2 * length - scale), 1)
        return r * rho.sqrt() / length

    return Problem(residual, dof=6, retract=plain.retract, alike=plain.alike, broadcasts=plain.broadcasts)
