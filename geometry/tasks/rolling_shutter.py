"""PnP of a rolling shutter: the pose and the velocity of a camera whose rows are exposed one after the other."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from geometry import se3
from geometry.alignment import Frame
from geometry.camera import Model, in_front, project_camera_frame
from geometry.checks import batched, check_tensors
from geometry.lenses import check_distortion
from geometry.optim import Problem, Solution, argmin
from geometry.pose import pnp

__all__ = ["readout_problem", "rolling_shutter", "rolling_shutter_points", "rolling_shutter_problem", "row_times"]

State = tuple[Tensor, Tensor]


def row_times(points2d: Tensor, readout: float | Tensor, height: int) -> Tensor:
    """When the rows of pixels (…,2) are read, in seconds since the middle row is (…): what `rolling_shutter` takes.

    readout: seconds from the first row to the one after the last of `height`. Differentiable.
    """
    return readout * ((points2d[..., 1] + 0.5) / height - 0.5)


def rolling_shutter_points(world_to_camera: Tensor, velocity: Tensor, points3d: Tensor, times: Tensor) -> Tensor:
    """Points (…,N,3) in the frame of a moving camera at times (…,N): exp(tau omega) (R X + t) + tau v.

    world_to_camera (…,4,4) at tau = 0; velocity (…,6) = (omega, v), per second, in the camera's frame: what points
    that stand still do before the camera. To first order it is `se3.retract`, and the world's origin has no part in it.
    """
    turn = se3.exp(times[..., None] * velocity[..., None, :3])
    p = se3.transform(world_to_camera, points3d)
    return (turn @ p[..., None]).squeeze(-1) + times[..., None] * velocity[..., None, 3:]


def residual(
    x: State, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, times: Tensor, weights: Tensor,
    *, model: Model = "radtan",
) -> Tensor:  # fmt: skip
    """(N,2): errors in px, times weights (N,); infinite where the camera cannot see a point that counts."""
    p = rolling_shutter_points(*x, points3d, times)
    error = weights[:, None] * (project_camera_frame(p, K, distortion, model=model) - points2d)
    return torch.where(in_front(p, distortion, model=model)[:, None] | (weights == 0)[:, None], error, torch.inf)


def retract(x: State, step: Tensor) -> State:
    """Pose and velocity, or whatever else is sought, moved by step (6 + k,)."""
    return se3.retract(x[0], step[:6]), x[1] + step[6:]


_POSE = (3, 1, 1, 1)  # of its step: the three of a rotation are of one kind

rolling_shutter_problem = Problem(residual, dof=12, retract=retract, alike=_POSE * 2)
"""x (world_to_camera (4,4), velocity (6,)), data points2d (N,2), points3d (N,3), K (3,3), distortion (k,), times (N,),
weights (N,)."""


def residual_of_readout(x: State, velocity: Tensor, *data: Tensor, model: Model = "radtan") -> Tensor:
    """The same at x (world_to_camera, factor (1,) of the times), the velocity being data."""
    pose, factor = x
    return residual((pose, factor * velocity), *data, model=model)  # a longer time is a faster camera


readout_problem = Problem(residual_of_readout, dof=7, retract=retract, alike=(*_POSE, 1))
"""x (world_to_camera (4,4), factor (1,) of the times), data velocity (6,) and those of `rolling_shutter_problem`."""


def rolling_shutter(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    times: Tensor,
    weights: Tensor | None = None,
    *,
    distortion: Tensor | None = None,
    model: Model = "radtan",
    velocity: Tensor | None = None,
) -> Solution:
    """Pose and velocity of a moving camera, each row of whose image has a time of its own, from N >= 6 known points.

    points2d (B,N,2) or (N,2), px; points3d (B,N,3) or (N,3), world; K (B,3,3) or (3,3), distortion (B,k) or (k,) of
    `model`; times (B,N) or (N,), seconds at which each was seen, as `row_times` makes them; weights (B,N) or (N,)
    multiply the errors. x = (world_to_camera (B,4,4) at time 0, velocity (B,6)), the latter as in
    `rolling_shutter_points`: radians and world units per second; differentiable in all.

    velocity (B,6) or (6,): that is known, as of a gyroscope and a wheel, and the time that rows take is not: x is then
    (world_to_camera, factor (B,1) of the times), which of times per image is the readout time. N >= 4.

    What fails says so in `status`: SINGULAR where all points are seen at one time, or the camera stands still though
    its readout is sought. Raises ValueError for other shapes and values. Starts at the `pnp` pose that knows of no
    motion, of which the motion in one image is a small correction. Rotation and translation are uniform during the
    readout (Ait-Aider, Andreff, Lavest and Martinet, ECCV 2006).
    """
    check_tensors(K=K)
    if distortion is None:
        distortion = K.new_zeros(0)
    known = {} if velocity is None else {"velocity": (velocity, "6")}
    points2d, points3d, K, distortion, times, weights, *velocities = batched(
        6 if velocity is None else 4, points2d=(points2d, "N,2"), points3d=(points3d, "N,3"), K=(K, "3,3", "camera"),
        distortion=(distortion, "k"), times=(times, "N"), weights=(weights, "N"), **known,
    )  # fmt: skip
    check_distortion(distortion, model)
    frame = Frame.amid(points3d, weights != 0)
    # in units of what the times are, a velocity says by its size whether it matters
    unit = torch.where(weights != 0, times, 0.0).detach().abs().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    lengths = torch.cat([torch.ones_like(unit).expand(-1, 3), frame.unit[:, None].expand(-1, 3)], -1) / unit
    problem = rolling_shutter_problem if velocity is None else readout_problem
    problem = replace(problem, residual=partial(problem.residual, model=model))
    data = points2d, frame.points(points3d), K, distortion, times / unit, weights
    found = argmin(problem, partial(still, model=model), *(v / lengths for v in velocities), *data)
    pose, sought = found.x
    return replace(found, x=(frame.from_frame(pose), sought * lengths if velocity is None else sought))


def still(*data: Tensor, model: Model) -> State:
    """The pose (B,4,4) of a camera that stands still, and zeros: its velocity (B,6), or the factor (B,1) of times."""
    *velocities, points2d, points3d, K, distortion, _, weights = data
    pose = pnp(points2d, points3d, K, distortion=distortion, weights=weights, model=model).x
    return pose, pose.new_zeros(len(pose), 1 if velocities else 6)
