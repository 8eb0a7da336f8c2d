"""Every way to learn 2D keypoints from a true pose, as one kind of function: `METHODS[name](view)` -> loss (B,).

Through the solver, the loss being the distance by which its pose misplaces the object (`displacement`):

- exact, gauss_newton: the implicit gradients of `geometry.pnp`; unrolled: through the Levenberg-Marquardt steps
  from a start six degrees off (or the regime's own).
- published: the formula of Chen et al.'s code (CVPR 2020), which differentiates a depth-scaled residual that its solver
  does not minimise. It knows no weights; `unweighted`, the exact gradient without them, is there to tell the two apart.

Without its derivative, or with many solutions:

- dsac: expected displacement of a softmax choice among hypotheses of five points each, refined on all points by their
  soft agreement (arXiv 1611.05705, 1711.10228). Sets are drawn by the weights, which also count in the scores.
- nabla_ransac: mean displacement, up to `BOUND`, of poses from as many such sets, drawn by the Gumbel trick, whose gate
  multiplies the weights (arXiv 2212.13185). Nothing is chosen and nothing refined.
- epro_pnp: the Monte-Carlo pose loss (arXiv 2203.13254). epro_pnp_full: as its authors train it, with Huber's kernel at
  the threshold that follows the data, and the derivative regularisation beside it.
- linear_covariance: the spread about the truth (arXiv 2303.11516).
- reprojection: squared distance of the keypoints from where the true pose projects them; it says nothing of weights.
- likelihood: the same with them, as the Gaussian negative log-likelihood, weight = 1/sigma: the textbook's answer
  (Kendall and Gal, arXiv 1703.04977), which the solver's friends have to beat.

The derivative regularisation alone is gauss_newton by another road: its gradient is that of its distance through the
solver (`tests/geometry/pose/test_epro_pnp.py`).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from experiments.gradients.published import with_published_gradient
from geometry import (
    PoseSolution,
    adaptive_huber_scale,
    derivative_regularisation_loss,
    draw_sets,
    expected_loss,
    keypoint_likelihood_loss,
    linear_covariance_loss,
    monte_carlo_pose_loss,
    pnp,
    project,
    relaxed_sets,
    se3,
    soft_inliers,
)
from geometry.optim import Gradient

__all__ = ["LAYERS", "METHODS", "STOCHASTIC", "UNWEIGHTED", "Method", "View", "displacement"]

Method = Literal[
    "exact", "gauss_newton", "unrolled", "published", "unweighted", "dsac", "nabla_ransac", "epro_pnp", "epro_pnp_full",
    "linear_covariance", "reprojection", "likelihood",
]  # fmt: skip

LAYERS: tuple[Method, ...] = ("exact", "gauss_newton", "unrolled", "published")
"""Methods that claim to be the gradient of the same number, through the solver."""
STOCHASTIC: tuple[Method, ...] = ("dsac", "nabla_ransac", "epro_pnp", "epro_pnp_full")
UNWEIGHTED: tuple[Method, ...] = ("published", "unweighted", "reprojection")
"""Methods that learn keypoints alone; the solver gets theirs without weights."""

AWAY = (0.1, -0.1, 0.05, 0.05, -0.05, 0.3)
"""Step (omega, v) from the minimum to where `unrolled` begins, so that there is something to unroll."""
HYPOTHESES, SET = 16, 5
THRESHOLD, BETA, ALPHA = 12.0, 0.4, 1.0
"""Of dsac: pixels within which a point agrees, steepness per pixel, weight of a score."""
BOUND = 2.0
"""Of nabla_ransac: a set that misplaces the object by more than its size is as bad as another one."""
SAMPLES = 128
"""Poses drawn by epro_pnp, in four rounds."""
HUBER, SMOOTH, REGULARISATION = 0.1, 0.5, 5.0
"""Of epro_pnp_full, as on LineMOD: relative threshold; a quarter of the object, up to which the loss of a position is
quadratic; weight of the regularisation over that of the Monte-Carlo loss (0.1 over 0.02)."""


class View(NamedTuple):
    """B views of one object and what a network says of them.

    points2d (B,N,2) px, log_weights (B,N) of 1/px, points3d (B|1,N,3), K (3,3), pose_gt (B,4,4). init (B,4,4): where
    solvers start; None: wherever they find the global minimum. generator: of what is drawn.
    """

    points2d: Tensor
    log_weights: Tensor
    points3d: Tensor
    K: Tensor
    pose_gt: Tensor
    init: Tensor | None = None
    generator: torch.Generator | None = None


def displacement(pose: Tensor, pose_gt: Tensor, points3d: Tensor) -> Tensor:
    """Root-mean-square distance (…) between the points under both poses, in their units."""
    offset = se3.transform(pose, points3d) - se3.transform(pose_gt, points3d)
    return (offset.square().sum(-1).mean(-1) + 1e-18).sqrt()


def _solved(
    view: View, weighted: bool = True, gradient: Gradient = "exact", init: Tensor | None = None
) -> PoseSolution:
    weights = view.log_weights.exp() if weighted else None
    init = view.init if init is None else init
    return pnp(view.points2d, view.points3d, view.K, weights=weights, init=init, gradient=gradient)


def _outer(view: View, pose: Tensor, ok: Tensor) -> Tensor:
    """The displacement, zero where the solver failed."""
    return torch.where(ok, displacement(pose, view.pose_gt, view.points3d), 0.0)


def _implicit(gradient: Gradient, weighted: bool = True) -> Callable[[View], Tensor]:
    def loss(view: View) -> Tensor:
        found = _solved(view, weighted, gradient)
        return _outer(view, found.x, found.converged)

    return loss


def _unrolled(view: View) -> Tensor:
    start = view.init
    if start is None:
        with torch.no_grad():
            start = _solved(view).x
        start = se3.retract(start, start.new_tensor(AWAY).expand(len(start), 6))
    found = _solved(view._replace(init=start), gradient="unrolled")
    return _outer(view, found.x, found.converged)


def _published(view: View) -> Tensor:
    with torch.no_grad():
        found = _solved(view, weighted=False)
    pose = torch.where(found.converged[:, None, None], found.x, view.pose_gt)
    return _outer(view, with_published_gradient(pose, view.points2d, view.points3d, view.K), found.converged)


def _sets(view: View, index: Tensor, gate: Tensor | None = None) -> PoseSolution:
    """Poses (B H) of sets of keypoints, index (B,H,SET)."""
    rows = torch.arange(len(index), device=index.device)[:, None, None]
    weights = view.log_weights.exp()[rows, index]
    weights = weights if gate is None else weights * gate
    points3d = view.points3d.expand(len(index), -1, 3)
    init = None if view.init is None else view.init.repeat_interleave(index.shape[1], 0)
    sets = view.points2d[rows, index].flatten(0, 1), points3d[rows, index].flatten(0, 1)
    return pnp(*sets, view.K, weights=weights.flatten(0, 1), init=init)


def _dsac(view: View) -> Tensor:
    B, N, _ = view.points2d.shape
    H = HYPOTHESES
    drawn = _sets(view, draw_sets(view.log_weights, SET, H, view.generator))

    def many(d: Tensor) -> Tensor:
        return d[:, None].expand(B, H, *d.shape[1:]).flatten(0, 1)

    keypoints, weights = many(view.points2d), many(view.log_weights.exp())
    objects = many(view.points3d.expand(B, N, 3))
    error = (project(objects, drawn.x, view.K) - keypoints).norm(dim=-1)
    likely = weights / weights.sum(-1, keepdim=True)
    agreement = torch.sigmoid(BETA * (THRESHOLD - error.detach())).nan_to_num(0.0)
    score = N * (likely * soft_inliers(error[..., None], THRESHOLD, BETA)).sum(-1)
    refined = pnp(keypoints, objects, view.K, weights=weights * (agreement + 1e-3), init=drawn.x.detach())
    loss = displacement(refined.x, many(view.pose_gt), objects)
    loss = torch.where(drawn.converged & refined.converged, loss, torch.inf)
    return expected_loss(score.view(B, H), loss.view(B, H), ALPHA)


def _nabla_ransac(view: View) -> Tensor:
    index, gate = relaxed_sets(view.log_weights, SET, HYPOTHESES, generator=view.generator)
    drawn = _sets(view, index, gate)
    pose, found = drawn.x.unflatten(0, index.shape[:2]), drawn.converged.unflatten(0, index.shape[:2])
    loss = displacement(pose, view.pose_gt[:, None], view.points3d[:, None]).clamp_max(BOUND)
    return torch.where(found, loss, 0.0).sum(-1) / found.sum(-1).clamp_min(1)


def _epro_pnp(view: View) -> Tensor:
    return monte_carlo_pose_loss(
        view.points2d, view.points3d, view.K, view.pose_gt, weights=view.log_weights.exp(), init=view.init,
        samples=SAMPLES, generator=view.generator,
    ).loss  # fmt: skip


def _epro_pnp_full(view: View) -> Tensor:
    given, weights = (view.points2d, view.points3d, view.K, view.pose_gt), view.log_weights.exp()
    scale = adaptive_huber_scale(view.points2d, weights, relative=HUBER)
    density = monte_carlo_pose_loss(
        *given, weights=weights, init=view.init, huber_scale=scale, samples=SAMPLES, generator=view.generator
    ).loss
    step = derivative_regularisation_loss(*given, weights=weights, init=view.init, huber_scale=scale, beta=SMOOTH)
    return density + REGULARISATION * step.loss


def _linear_covariance(view: View) -> Tensor:
    weights = view.log_weights.exp()
    return linear_covariance_loss(view.points2d, view.points3d, view.K, view.pose_gt, weights=weights).loss


def _reprojection(view: View) -> Tensor:
    return (view.points2d - project(view.points3d, view.pose_gt, view.K)).square().sum(-1).mean(-1)


def _likelihood(view: View) -> Tensor:
    weights = view.log_weights.exp()
    return keypoint_likelihood_loss(view.points2d, view.points3d, view.K, view.pose_gt, weights=weights).loss


METHODS: dict[Method, Callable[[View], Tensor]] = {
    "exact": _implicit("exact"),
    "gauss_newton": _implicit("gauss_newton"),
    "unrolled": _unrolled,
    "published": _published,
    "unweighted": _implicit("exact", weighted=False),
    "dsac": _dsac,
    "nabla_ransac": _nabla_ransac,
    "epro_pnp": _epro_pnp,
    "epro_pnp_full": _epro_pnp_full,
    "linear_covariance": _linear_covariance,
    "reprojection": _reprojection,
    "likelihood": _likelihood,
}
