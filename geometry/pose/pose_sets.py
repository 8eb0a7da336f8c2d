"""Sets of poses that hold the true one as often as is asked for, whatever the errors of the keypoints are.

Split conformal prediction (Vovk, Gammerman and Shafer 2005): on labelled views that nothing was fitted to, the score of
a view says how badly the true pose fits what was predicted. The poses that fit no worse than a quantile of these scores
hold the truth of a new view with the coverage of that quantile, if the views can be exchanged; no model of the errors
is asked for. Conformal keypoints (Yang and Pavone 2023, arXiv 2303.12246) take as the score the worst keypoint's
distance, and the set is what lies within all discs; here it is how much more the true pose costs than the best, a
likelihood ratio, so that the set is as narrow as all keypoints together make it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geometry.alignment import Frame
from geometry.camera import Model
from geometry.checks import check_tensors, positive
from geometry.optim import Problem, Solution, jacobian, solve_spd, stop_gradient_where
from geometry.pose.data import PnPData, check_pose
from geometry.pose.layer import data_of, pnp
from geometry.pose.losses import nothing_of
from geometry.pose.problem import pnp_problem
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["PoseSet", "conformal_level", "pose_set"]

_BALL = math.log(math.pi**3 / 6)  # volume of the ball of radius 1 in six dimensions


@dataclass(frozen=True)
class PoseSet:
    """For each of B views the poses that fit its points nearly as well as the best: excess at most a level.

    x (B,4,4): the best, as of `pnp`. status (B,) int8 of `Status`; where it is not CONVERGED the points do not tell a
    pose, and the set is every pose, at every level.

    >>> sets = pose_set(points2d, points3d, K)
    >>> sets.contains(sets.x, level=1.0)
    tensor([True, True, True])
    """

    x: Tensor
    status: Tensor
    _problem: Problem
    _data: PnPData
    _frame: Frame
    _cost: Tensor
    _log_det: Tensor

    @property
    def converged(self) -> Tensor:
        """(B,) bool."""
        return self.status == 0

    def excess(self, pose: Tensor) -> Tensor:
        """How much more poses (B|1,4,4) cost than the best (B,): half the squared residuals, or what the kernel makes
        of them. Infinite where a point is behind the camera, zero where every pose belongs to the set.

        It is the score that `conformal_level` takes, of true poses. Differentiable in what `pose_set` was given, and in
        pose. Raises ValueError naming pose for its shape, dtype, device and values.
        """
        pose = check_pose("pose", pose, self.x)
        truth = self._frame.to_frame(pose.to(self._cost.dtype))
        more = (_costs(self._problem, truth, self._data) - self._cost).clamp_min(0)
        return torch.where(self.converged, more, 0.0).to(self.x.dtype)

    def contains(self, pose: Tensor, level: Tensor | float) -> Tensor:
        """Whether poses (B|1,4,4) belong to the sets of a level (B,), bool. level: a number, or a tensor () or (B,)."""
        return self.excess(pose) <= level

    def log_volume(self, level: Tensor | float) -> Tensor:
        """Logarithm of the sets' volumes (B,), to first order: of the ellipsoids about x of steps (omega, v), in rad^3
        times the cube of the unit of points3d. Infinite where every pose belongs to the set.

        A loss for networks that predict points and weights: the mean over views of one half of a batch, with the level
        of the other half (Stutz et al. 2022, arXiv 2110.09192). The weights' common scale does not matter: the level
        takes it back. Differentiable in weights, points3d and K, with x held, and in level. What is not near x, as
        about `second` of `pnp`, does not count.
        """
        level = torch.as_tensor(level, dtype=self._log_det.dtype, device=self.x.device)
        volume = _BALL + 3 * (2 * level).log() - 0.5 * self._log_det
        return torch.where(self.converged, volume, torch.inf).to(self.x.dtype)


def pose_set(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
) -> PoseSet:
    """The poses that fit the points of each view nearly as well as the best one: a `PoseSet`.

    The level at which it holds the truth in, say, 90 % of views comes from views whose true poses are known, to which
    nothing was fitted and no network trained; `conformal_level` says which it is. That coverage holds on average over
    new views of the same kind, whatever distribution the errors have and whatever the weights are; weights that tell
    good points from bad, or a kernel, make the sets smaller. Arguments as for `pnp`, at least 4 points. Computed in
    float64, returned in the precision of points2d (float32 for 16-bit inputs). Raises ValueError as `pnp` does.

    >>> known = pose_set(points2d, points3d, K)
    >>> level = conformal_level(known.excess(pose).repeat(7), coverage=0.9)
    >>> pose_set(points2d, points3d, K).contains(pose, level)
    tensor([True, True, True])
    """
    found: Solution = pnp(
        points2d, points3d, K, distortion=distortion, weights=weights, mask=mask, model=model, kernel=kernel
    )
    given = data_of(points2d, points3d, K, distortion, weights, mask, model=model)
    assert isinstance(given, PnPData)
    data, frame = given.to(torch.float64).masked().centred()
    problem = pnp_problem(model, kernel)
    best = frame.to_frame(found.x.detach().double())
    data = PnPData(*stop_gradient_where(~found.converged, tuple(data)))
    # x is a minimum: by the envelope theorem its own derivative does not enter that of the cost
    H = _gauss_newton(problem, best, data)
    positive = found.converged & solve_spd(H.detach(), torch.zeros_like(H[..., 0]).detach())[1]
    eye = torch.eye(6, dtype=H.dtype, device=H.device)
    log_det = torch.linalg.slogdet(torch.where(positive[:, None, None], H, eye))[1]
    log_det = torch.where(positive, log_det, -torch.inf)
    cost = _costs(problem, best, data)
    return PoseSet(found.x.detach(), found.status, problem, data, frame, cost, log_det)


def _costs(problem: Problem, pose: Tensor, data: PnPData) -> Tensor:
    """Of poses (B,4,4), which may be none."""
    return problem.costs(pose, *data) if len(pose) else nothing_of(data)


def _gauss_newton(problem: Problem, pose: Tensor, data: PnPData) -> Tensor:
    """J^T rho' J (B,6,6) at poses (B,4,4), differentiable in the data."""
    if len(pose) == 0:
        return pose.new_zeros(0, 6, 6)
    r, J = jacobian(problem, pose, data)
    _, slope, _ = kernel_derivatives(problem.kernel, r.square().sum(-1))
    return J.flatten(1, 2).mT @ (slope[..., None, None] * J).flatten(1, 2)


def conformal_level(scores: Tensor, coverage: float) -> Tensor:
    """The level () that holds a new score with at least this probability, of scores (n,) that are exchangeable with it.

    The ceil((n + 1) coverage)-th smallest; infinite where n is too small for any: nine scores are the fewest for 90 %.
    A score that is not a number counts as infinite.
    Given these, the coverage varies about what is asked for with a standard deviation of
    sqrt(coverage (1 - coverage) / n): 1 % with 900 scores for 90 %. Differentiable in the score that it is.
    Raises ValueError for scores of another shape or dtype, and for a coverage that is not between 0 and 1.

    >>> conformal_level(torch.arange(1.0, 20.0), 0.9)
    tensor(18.)
    """
    check_tensors(scores=scores)
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape (n,), got {tuple(scores.shape)}")
    positive("coverage", coverage)
    if coverage >= 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    place = math.ceil((len(scores) + 1) * coverage - 1e-9)
    if place > len(scores):
        return scores.new_tensor(torch.inf)
    return torch.where(torch.isnan(scores), torch.inf, scores).sort().values[place - 1]
