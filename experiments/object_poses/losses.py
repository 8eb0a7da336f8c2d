"""What the pose network is trained by: a loss of the heatmaps, and a loss of the pose that PnP makes of them.

The losses of section 5 of "End-to-End Learnable Geometric Vision by Backpropagating PnP Optimization" (arXiv
1909.06043) and, in the same places, those of EPro-PnP (arXiv 2203.13254) and of linear covariance (arXiv 2303.11516):

    heatmap             l_h
    mixture             l_h   + beta l_proj
    pose                l_reg + beta l_proj
    monte_carlo         l_h   + beta l_mc
    linear_covariance   l_h   + beta l_lc

Two terms of different units, one of which runs through a solver, are what breaks such trainings: a beta that is right
late is ruinous early, when the keypoints hardly determine a pose. With `balance="robust"` each pose loss is in pixels
of the crop, or a logarithm of a density, robust to outliers; beta rises from zero once l_h has brought the keypoints
about right (for l_p as well, which l_h leaves as beta rises: keypoints that are all in one place have no pose); and no
sample pulls at its keypoints with more force than all of them at one unit each (`pulled_at_most`), however
ill-conditioned its pose. With `balance="paper"` l_proj is the sum of squares as published, from the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from kornia.geometry.subpix import render_gaussian2d
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss, pad

from experiments.object_poses.network import Heatmaps, cells_of
from geometry import linear_covariance_loss, monte_carlo_pose_loss, pnp, project, se3

__all__ = [
    "Balance", "Loss", "Target", "heatmap_loss", "pose_loss", "pulled_at_most", "ramp",
    "regularisation", "solve_pose", "target_of",
]  # fmt: skip

Loss = Literal["heatmap", "mixture", "pose", "monte_carlo", "linear_covariance"]
Balance = Literal["robust", "paper"]
_TURN = 0.05  # radians: poses that look alike and are less apart are samples of a continuous symmetry, which are 0.02


class Target(NamedTuple):
    """The truth of B samples: points3d (B,N,3), K (B,3,3) of the crops, pose (B,4,4), and its points2d (B,N,2)."""

    points3d: Tensor
    K: Tensor
    pose: Tensor
    points2d: Tensor


def target_of(
    points3d: Tensor,
    K: Tensor,
    pose_gt: Tensor,
    symmetries: Tensor,
    prediction: Tensor | None = None,
    weights: Tensor | None = None,
) -> Target:
    """Of all poses that look like pose_gt (B,4,4), that are pose_gt @ symmetries (B,S,4,4), the one to learn.

    Without a prediction, the one that shows the camera as much as it can of one side of the object, so that similar
    views have similar targets (but where the side changes, Pitteri et al. 2019, arXiv 1904.03230). With a prediction
    (B,N,2) px, the one whose keypoints are nearest to it in the mean square, each coordinate's difference times its
    weight (B,N,2): of a body of revolution at any angle, not those of `symmetries` alone, and there differentiable in
    the prediction, since the target turns with it.
    """
    if prediction is None:
        # camera centre in the object's frame, along a direction that is no axis of anyone's symmetry
        centre = -(pose_gt[:, :3, :3].mT @ pose_gt[:, :3, 3:]).mT
        towards = symmetries[..., :3, :3] @ centre.new_tensor([0.8, 0.5, 0.33])
        best = ((centre - symmetries[..., :3, 3]) * towards).sum(-1).argmax(1)
        pose = pose_gt @ symmetries[torch.arange(len(best), device=best.device), best]
    else:
        pose = pose_gt @ symmetries[:, 0]
        rows = (symmetries != symmetries[:, :1]).flatten(1).any(1).nonzero()[:, 0]
        weights = torch.ones_like(prediction) if weights is None else weights.detach()
        given = (points3d[rows], K[rows], pose_gt[rows], symmetries[rows], prediction[rows], weights[rows])
        pose = pose.index_copy(0, rows, _nearest(*given))
    return Target(points3d, K, pose, project(points3d, pose, K))


def _nearest(
    points3d: Tensor, K: Tensor, pose_gt: Tensor, symmetries: Tensor, prediction: Tensor, weights: Tensor
) -> Tensor:
    """The pose of those that look alike whose keypoints are nearest to the prediction; all of them have a choice."""
    with torch.no_grad():  # single precision tells which is nearest
        S, X, A, x, w = (v.float() for v in (symmetries, points3d, K @ pose_gt[:, :3], prediction, weights))
        count, points = S.shape[1], X.shape[1]
        # all the points that look alike, side by side: two products a sample instead of two a symmetry
        alike = S[..., :3, :].transpose(1, 2).flatten(1, 2) @ pad(X, (0, 1), value=1).mT
        imaged = A[..., :3] @ alike.view(-1, 3, count * points) + A[..., 3:]
        apart = (imaged[:, :2] / imaged[:, 2:]).unflatten(2, (count, points)) - x.mT[:, :, None]
        first, second = (w.mT[:, :, None] * apart).square().sum((1, 3)).topk(2, largest=False).indices.unbind(1)
        row = torch.arange(len(S), device=S.device)
        pose, other = (pose_gt @ symmetries[row, chosen] for chosen in (first, second))
        # from the nearest on towards its neighbour, if they are turns of one axis and not different sides
        between = se3.inverse(pose) @ other
        turn = se3.log(between[:, :3, :3])
        shift = torch.linalg.solve(se3.left_jacobian(turn), between[:, :3, 3])

        def gone(share: Tensor) -> Tensor:
            part = se3.left_jacobian(share * turn) @ (share * shift)[..., None]
            return pose @ se3.make(se3.exp(share * turn), part[..., 0])

        start = project(points3d, pose, K)
        half, whole = (project(points3d, gone(turn.new_tensor(share)), K) - start for share in (0.5, 1.0))
        continuous = turn.norm(dim=-1) < _TURN
    # the least of a parabola, given by what the distance grows on half of the way and on all of it
    off = prediction - start
    p, q = ((weights.square() * (step - 2 * off) * step).sum((1, 2)) for step in (half, whole))
    curved = continuous & (q > 2 * p)
    share = torch.where(curved, (q - 4 * p) / torch.where(curved, 4 * (q - 2 * p), 1), 0).clamp(-0.5, 1)
    return gone(share[:, None])


def heatmap_loss(logits: Tensor, cells: Tensor, sigma: float) -> Tensor:
    """l_h (B,): mean divergence KL(G | softmax(logits)) from Gaussians G about the true `cells` (B,N,2).

    logits (B,N,H,W); sigma in cells. The paper compares unnormalised maps by squares; between distributions the
    divergence is what a softmax is trained by. Where it is zero the expectation is the true point, unless the border of
    the crop cuts the Gaussian off, against which crops have a margin.
    """
    B, N, H, W = logits.shape
    gaussian = _gaussians(cells.to(logits.dtype), sigma, (H, W)).view(B * N, H * W)
    crossed = cross_entropy(logits.reshape(B * N, H * W), gaussian, reduction="none").view(B, N)
    sides = (gaussian.view(B, N, H, W).sum(side) for side in (-1, -2))  # a Gaussian is the product of its sums
    entropy = -sum(torch.xlogy(side, side).sum(-1) for side in sides)
    return (crossed - entropy).mean(1)


def regularisation(heatmaps: Heatmaps, sigma: float) -> Tensor:
    """l_reg (B,): mean Jensen-Shannon divergence of the maps from Gaussians about their own expectations.

    It keeps a map one peak of a known width wherever the pose loss moves it (Nibali et al. 2018, arXiv 1801.07372,
    section 3.3).
    """
    probability = heatmaps.probability
    gaussian = _gaussians(cells_of(heatmaps.points2d), sigma, probability.shape[-2:])

    def negative_entropy(density: Tensor) -> Tensor:
        # nothing times its logarithm is nothing, and so is its slope here
        return (density * density.clamp_min(1e-30).log()).sum((-2, -1))

    apart = (negative_entropy(probability) + negative_entropy(gaussian)) / 2
    return (apart - negative_entropy((probability + gaussian) / 2)).mean(1)


def _gaussians(cells: Tensor, sigma: float, size: tuple[int, ...]) -> Tensor:
    std = torch.full((1, 2), sigma, dtype=cells.dtype, device=cells.device)
    H, W = size
    return render_gaussian2d(cells, std, (H, W), normalized_coordinates=False)


def solve_pose(points2d: Tensor, deviation: Tensor | None, points3d: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Pose (B,4,4) of keypoints by PnP, weighted by 1/deviation where that is given, and whether it converged (B,)."""
    found = pnp(points2d, points3d, K, weights=None if deviation is None else 1 / deviation)
    return found.x, found.converged


def pose_loss(
    name: Loss,
    points2d: Tensor,
    deviation: Tensor,
    target: Target,
    *,
    weighted: bool,
    balance: Balance,
    symmetries: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """l_proj, l_mc or l_lc (B,) of keypoints points2d (B,N,2) px of the crop, zero where the solver failed.

    l_proj is of the keypoints projected with PnP's pose, in pixels: the sum of their squared distances from the truth
    ("paper"), or the mean Huber loss with threshold 1 px ("robust"). Monte-Carlo and linear covariance weigh by
    1/deviation, of which they are the losses; l_proj does so where `weighted`. l_lc is in units of 1 % of the
    distance from the camera.

    With symmetries (B,S,4,4) the truth is the one of all poses that look like the target's that is nearest to PnP's
    pose (l_proj) or to the keypoints, as they are weighed: what cannot be seen pulls at nothing. (Held to another one,
    keypoints of a body of revolution are driven round and round by what is left of the angle.)
    """

    def nearest(points2d: Tensor, weights: Tensor | None = None) -> Target:
        if symmetries is None:
            return target
        return target_of(target.points3d, target.K, target.pose, symmetries, points2d, weights)

    def loss(points2d: Tensor, deviation: Tensor) -> Tensor:
        if name in ("monte_carlo", "linear_covariance"):
            weights = 1 / deviation
            truth = nearest(points2d.detach(), weights).pose
            given = (points2d, target.points3d, target.K, truth)
            if name == "monte_carlo":
                return monte_carlo_pose_loss(*given, weights=weights, generator=generator).loss
            return 100 * linear_covariance_loss(*given, weights=weights).loss / truth[:, 2, 3]
        pose, converged = solve_pose(points2d, deviation if weighted else None, target.points3d, target.K)
        projected = project(target.points3d, pose, target.K)
        off = (projected - nearest(projected).points2d).square()
        if balance == "paper":
            each = off.sum((-2, -1))
        else:
            distance = off.sum(-1)
            each = huber_loss((distance + 1e-12).sqrt(), torch.zeros_like(distance), reduction="none").mean(-1)
        return torch.where(converged, each, 0)

    if balance == "paper":
        return loss(points2d, deviation)
    return pulled_at_most(loss, points2d, deviation)


def pulled_at_most(loss: Callable[[Tensor, Tensor], Tensor], points2d: Tensor, deviation: Tensor) -> Tensor:
    """loss(points2d, deviation) (B,), whose gradient is bounded for every sample by itself.

    A mean over N keypoints that pulls at each with one unit a pixel has a gradient of norm 1 / sqrt(N): that is the
    most one sample may have with respect to its points2d and deviation (B,N,2). Where they determine the pose
    badly, PnP's Jacobian is large and its gradient says little: there it is scaled down, and nowhere else.
    """
    inputs = [value.detach().requires_grad_() for value in (points2d, deviation)]
    with torch.enable_grad():
        value = loss(*inputs)
        gradients = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
    gradient = torch.stack([torch.zeros_like(points2d) if g is None else g for g in gradients])
    gradient = torch.nan_to_num(gradient, 0, 0, 0)
    norm = gradient.square().sum((0, 2, 3)).sqrt()
    gradient = gradient * (points2d.shape[1] ** -0.5 / norm.clamp_min(1e-30)).clamp_max(1)[:, None, None]
    moved = torch.stack([points2d - inputs[0], deviation - inputs[1]])  # zero, with a graph
    return value.detach() + (gradient * moved).sum((0, 2, 3))


def ramp(progress: float, warm_up: tuple[float, float]) -> float:
    """Zero until the fraction warm_up[0] of the training, one from warm_up[1] on, a line between."""
    first, last = warm_up
    return min(max((progress - first) / max(last - first, 1e-9), 0.0), 1.0)
