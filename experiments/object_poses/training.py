"""One training step of object poses: from a batch of crops to the loss that the network learns by."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.object_poses.crops import CropBatch
from experiments.object_poses.estimator import PoseEstimator, Precision, logits_of
from experiments.object_poses.losses import Balance, Loss, heatmap_loss, pose_loss, ramp, regularisation, target_of
from experiments.object_poses.network import cells_of, read_heatmaps

__all__ = ["Objective", "Step", "training_step"]


@dataclass(frozen=True)
class Objective:
    """What is minimised."""

    loss: Loss = "mixture"
    """Chooses l_h, l_h + beta l_proj, l_reg + beta l_proj, or l_h + beta times EPro-PnP's or the linear-covariance
    loss."""
    beta: float = 1.0
    """Weighs the pose loss; it is 0.0002 in the paper, with balance=paper."""
    balance: Balance = "robust"
    """Chooses Huber's loss in pixels, its gradient bounded, beta warmed up (robust), or a sum of squares from the first
    step (paper)."""
    warm_up: tuple[float, float] = (0.1, 0.3)
    """Sets the fractions of the iterations between which beta rises from zero."""
    sigma: float = 1.0
    """Sets the width of the Gaussians that the heatmaps learn, in cells."""
    precision: Precision = "bfloat16"
    """Sets the precision of the network; losses and solvers have their own, `dtype`."""


class Step(NamedTuple):
    """loss () to go down by. The rest without a graph: the parts' means (), the median error of the keypoints in pixels

    of the crop (), and the seconds spent on the pose loss, solver and its gradient included.
    """

    loss: Tensor
    heatmap: Tensor
    pose: Tensor
    keypoint_px: Tensor
    pose_seconds: float


def training_step(
    estimator: PoseEstimator,
    network: nn.Module,
    batch: CropBatch,
    objective: Objective,
    progress: float,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
) -> Step:
    """The loss of a batch after the fraction `progress` of the training.

    network: the estimator's, or what shares it among processes; dtype: of losses and solvers; generator: of the
    Monte-Carlo loss. Means are over all of the batch, failed samples included, so that equal parts of a batch have
    gradients whose mean is that of the whole.
    """
    logits = logits_of(network, batch, objective.precision)
    heatmaps = read_heatmaps(logits)
    points2d, deviation = heatmaps.points2d.to(dtype), heatmaps.deviation.to(dtype)
    risen, spent = 1.0, 0.0
    if objective.balance == "robust":
        risen = ramp(progress, objective.warm_up)
    settled = progress > objective.warm_up[1]
    symmetries = estimator.symmetries[batch.objects].to(dtype)
    target = target_of(
        estimator.keypoints3d[batch.objects].to(dtype), batch.K.to(dtype), batch.pose_gt.to(dtype),
        symmetries, points2d.detach() if settled else None,
    )  # fmt: skip
    regular = risen if objective.loss == "pose" else 0.0
    shape = (1 - regular) * heatmap_loss(logits, cells_of(target.points2d), objective.sigma)
    if regular:
        shape = shape + regular * regularisation(heatmaps, objective.sigma)
    posed = torch.zeros_like(shape, dtype=dtype)
    if objective.loss != "heatmap" and risen > 0:
        begun = time.perf_counter()
        posed = pose_loss(
            objective.loss, points2d, deviation, target, weighted=estimator.setup.weighted,
            balance=objective.balance, symmetries=symmetries, generator=generator,
        )  # fmt: skip
        spent = time.perf_counter() - begun
    loss = (shape + objective.beta * risen * posed).mean()
    with torch.no_grad():
        error = (points2d - target.points2d).square().sum(-1).sqrt().median()
        return Step(loss, shape.mean(), posed.mean(), error, spent)
