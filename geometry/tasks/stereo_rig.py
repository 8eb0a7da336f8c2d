"""Calibration of a stereo rig: how two known cameras stand to each other, from views of one target."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from geometry import se3
from geometry.alignment import Frame
from geometry.camera import in_front, project_camera_frame
from geometry.checks import batched, check_tensors
from geometry.lenses import check_distortion
from geometry.optim import Problem, Solution, argmin
from geometry.pose import pnp

__all__ = ["stereo_rig", "stereo_rig_problem"]

Rig = tuple[Tensor, Tensor]


def residual(
    x: Rig, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor | None = None
) -> Tensor:
    """(2VN,2): reprojection errors in px, times weights (2,V,N); infinite for a point that lies behind a camera."""
    camera1_to_camera2, target_to_camera1 = x
    points = se3.transform(torch.stack([target_to_camera1, camera1_to_camera2 @ target_to_camera1]), points3d)
    error = project_camera_frame(points, K[:, None], distortion[:, None]) - points2d
    if weights is None:
        weights = torch.ones_like(error[..., 0])
    behind = torch.where(weights == 0, 0.0, torch.inf).to(error)
    error = torch.where(in_front(points)[..., None], error, behind[..., None])
    return (weights[..., None] * error).flatten(0, 2)


def retract(x: Rig, step: Tensor) -> Rig:
    """Moved by step (6 + 6V,): that of the rig, then those of the views."""
    rig, *views = step.split(6)
    return se3.retract(x[0], rig), se3.retract(x[1], torch.stack(views))


_UNITS = (3, 1, 1, 1)  # of the step of a pose: the three of a rotation are of one kind

stereo_rig_problem = Problem(residual, dof=12, retract=retract, alike=_UNITS * 2)
"""Of one view; `dataclasses.replace(stereo_rig_problem, dof=6 + 6 * V)` is that of V.

x (camera1_to_camera2 (4,4), target_to_camera1 (V,4,4)), data points2d (2,V,N,2), points3d (N,3), K (2,3,3),
distortion (2,k), weights (2,V,N) or nothing.
"""


def stereo_rig(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
) -> Solution:
    """The pose of camera 2 relative to camera 1 and those of a target in V views, of the least reprojection error.

    points2d (B,2,V,N,2) or (2,V,N,2), px: where each camera sees the target's N >= 4 points in each view; points3d
    (B,N,3) or (N,3), target frame, any unit; K (B,2,3,3) or (2,3,3) and distortion (B,2,k) or (2,k), OpenCV's order, of
    the two cameras, or None; weights (B,2,V,N) or (2,V,N) multiply the errors of a point, zero where a camera does
    not see it. x = (camera1_to_camera2 (B,4,4), target_to_camera1 (B,V,4,4)), both with x right, y down, z forward, in
    the unit of points3d; differentiable in all. What fails says so in `status`: a view needs 4 points in one camera,
    one view 4 in both. Raises ValueError for other shapes.

    A target that looks the same after half a turn must be numbered the same way by both cameras in each view: points
    that are not are another problem, whose minimum is no rig. Only the cost tells, which is then that of the target's
    size instead of the noise; a single view does not tell at all.

    The cost is that of a calibration with fixed intrinsics (Hartley and Zisserman, "Multiple View Geometry", eq.
    18.1). Starts with PnP of each camera in each view; of the relative poses that these give, that with the least sum
    of distances over all views is taken, and in each view the target's pose as the one camera or the other has it.
    """
    check_tensors(K=K)
    if distortion is None:
        distortion = K.new_zeros(2, 0)
    data = batched(
        4, points2d=(points2d, "2,V,N,2"), points3d=(points3d, "N,3"), K=(K, "2,3,3", "camera"),
        distortion=(distortion, "2,k"), weights=(weights, "2,V,N"),
    )  # fmt: skip
    check_distortion(data[3], "radtan")
    V = data[0].shape[2]
    problem = replace(stereo_rig_problem, dof=6 + 6 * V, alike=_UNITS * (1 + V))
    frame = Frame.amid(data[1], (data[4] != 0).flatten(1, 2).any(1))
    found = argmin(problem, best_of_views, data[0], frame.points(data[1]), *data[2:])
    rig, targets = found.x
    # both cameras have the origin of their own frames, whatever that of the target is
    rig = Frame(torch.zeros_like(frame.origin), frame.unit).from_frame(rig)
    return replace(found, x=(rig, frame.from_frame(targets)))


def best_of_views(points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor) -> Rig:
    """A rig's pose (B,4,4) as one of the views has it, and the target's (B,V,4,4) that suit it best."""
    B, _, V, N = weights.shape
    each = [d[:, None, None].expand(B, 2, V, N, 3) if d is points3d else d for d in (points2d, points3d, weights)]
    lenses = [d[:, :, None].expand(B, 2, V, *d.shape[2:]) for d in (K, distortion)]
    image, object_, weight, K_each, distortion_each = (d.flatten(0, 2) for d in (*each, *lenses))
    found = pnp(image, object_, K_each, distortion=distortion_each, weights=weight).x
    one, two = found.unflatten(0, (B, 2, V)).unbind(1)
    rigs = two @ se3.inverse(one)
    targets = torch.stack([one[:, None].expand(B, V, V, 4, 4), se3.inverse(rigs)[:, :, None] @ two[:, None]], 2)
    # for each candidate, and the target as either camera has it: the sum of distances in each view
    shared = (None,) * 5
    errors = vmap(vmap(vmap(residual, ((None, 0), *shared)), ((0, 0), *shared)))(
        (rigs, targets), points2d, points3d, K, distortion, weights
    )
    distances = errors.norm(dim=-1).unflatten(-1, (2, V, N)).sum((-3, -1)).nan_to_num(torch.inf, torch.inf)
    least, either = distances.min(2)
    best = least.sum(-1).argmin(-1)
    b, v = torch.arange(B, device=best.device), torch.arange(V, device=best.device)
    return rigs[b, best], targets[b[:, None], best[:, None], either[b, best], v]
