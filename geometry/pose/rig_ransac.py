"""The pose of a rig among wrong correspondences."""

import torch
from torch import Tensor

from geometry.camera import Model
from geometry.checks import check_tensors, positive
from geometry.consensus import RansacSolution
from geometry.optim import Gradient
from geometry.pose.data import check_options, observed, prepare
from geometry.pose.layer import PoseSolution
from geometry.pose.ransac import Draws, among, check_unit
from geometry.pose.ransac_tensors import TensorSearch
from geometry.pose.rig import rig_pnp
from geometry.pose.rig_data import check_rig
from geometry.robust import Kernel

__all__ = ["rig_pnp_ransac"]


def rig_pnp_ransac(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    sensor_from_rig: Tensor,
    sensor_index: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    candidates: Tensor | None = None,
    threshold: float = 4.0,
    hypotheses: int = 10_000,
    confidence: float = 0.9999,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    gradient: Gradient = "exact",
    generator: torch.Generator | None = None,
    throw: bool = False,
) -> RansacSolution:
    """Pose of a rig from 2D-3D correspondences many of which are wrong: `pnp_ransac` of several cameras.

    The observations, cameras and mounting are those of `rig_pnp`, the rest, and what is returned, is that of
    `pnp_ransac`: x = world_to_rig (B,4,4), the minimum of `rig_pnp` on the inliers, differentiable as that. A sample
    is three points, seen by whatever cameras (`geometry.consensus.minimal.generalised_p3p`), so that it is enough if
    all cameras together see four right ones. Tensor operations search, on any device.

    >>> sensors, index = torch.eye(4).repeat(2, 1, 1), torch.arange(12) % 2
    >>> sensors[1, 0, 3] = 0.5
    >>> seen = project(points3d, sensors[:, None] @ pose, K)[index, :, torch.arange(12)].transpose(0, 1)
    >>> rig_pnp_ransac(seen, points3d, K, sensors, index, hypotheses=64).inliers.all()
    tensor(True)
    """
    check_options(model, kernel, gradient)
    positive("threshold", threshold)
    check_tensors(points2d=points2d)
    points2d = observed(
        points2d, points3d, weights, mask, (K, 3), (distortion, 2), (sensor_from_rig, 3), (sensor_index, 1),
        (candidates, 1),
    )  # fmt: skip
    eye = torch.eye(3, dtype=points2d.dtype, device=points2d.device)
    data = prepare(points2d, points3d, eye, None, weights, mask)
    rig = check_rig(points2d, K, distortion, sensor_from_rig, sensor_index, model)

    check_unit(threshold, points2d, rig.K, weights, mask)

    def near(pose: Tensor, inliers: Tensor) -> PoseSolution:
        return rig_pnp(
            points2d, points3d, K, sensor_from_rig, sensor_index, distortion=distortion, weights=weights, mask=inliers,
            init=pose, model=model, kernel=kernel, gradient=gradient,
        )  # fmt: skip

    draws = Draws(candidates, threshold, hypotheses, confidence, generator)
    solution = among(rig.by_point(data), model, near, TensorSearch, draws)
    if throw:
        solution.raise_if_failed()
    return solution
