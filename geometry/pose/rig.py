"""PnP of a rig: the pose of several cameras, mounted rigidly, from what any of them sees."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import Model
from geometry.checks import check_tensors, leading, one_of, spread, values
from geometry.optim import Gradient
from geometry.pose import tensors
from geometry.pose.data import Options, check_like, check_options, observed, precision, prepare
from geometry.pose.layer import PoseSolution, pnp, solved
from geometry.pose.rig_data import check_rig, scaled_pose
from geometry.robust import Kernel

__all__ = ["rig_pnp"]


def rig_pnp(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    sensor_from_rig: Tensor,
    sensor_index: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    init: Tensor | tuple[Tensor, Tensor] | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    gradient: Gradient = "exact",
    max_steps: int = 50,
    scale: bool = False,
    solve_dtype: torch.dtype = torch.float64,
    throw: bool = False,
) -> PoseSolution:
    """Pose of a rig of S cameras from points that any of them sees (generalised absolute pose), differentiable.

    points2d (B,N,2) px, point n seen by the camera sensor_index (N,) or (B|1,N), int32 or int64; points3d (B|1,N,3) or
    (N,3); sensor_from_rig (S,4,4) or (B|1,S,4,4): where each is mounted, p_sensor = T p_rig; K (3,3) for all,
    (S|1,3,3) or (B|1,S|1,3,3); distortion likewise (k,), (S|1,k) or (B|1,S|1,k), of one `model`; weights, mask, kernel,
    gradient, max_steps, solve_dtype and throw as in `pnp`. Returns PoseSolution with x = world_to_rig (B,4,4), in the
    units of sensor_from_rig and points3d, which are the same; x carries gradients to all six.

    scale=True: the mounting is known up to one factor, as after a reconstruction without measures. Then x is
    (world_to_rig (B,4,4), scale (B,)), `second` alike, and the translations of sensor_from_rig are multiplied by scale.
    Where baselines are small against the noise it may come out far from the truth, or negative.

    init: world_to_rig (B|1,4,4), with scale=True the two of them; None seeks the global minimum: the error of the
    points across rays that begin in the centres of the cameras (`geometry.pose.form`) from 24 rotations, its minima
    refined on the reprojection error. status per sample as in `pnp`: SINGULAR where the points are collinear, and with
    scale=True where one camera sees all of them, or all cameras are in one place; INFEASIBLE where no pose was found
    that puts every point ahead of the camera that sees it. At least 4 points, in whatever cameras; 3 with init.
    Raises ValueError naming the argument as `pnp` does, and for a sensor_index that is no camera, and a sensor_from_rig
    that is no rotation (to 1e-3) and translation. Lenses of different models: unproject, and `pnp(model="ray")`, if
    all centres coincide.

    One camera is solved by `pnp`; rigs by the tensor operations of `geometry.pose.tensors`, on any device.
    (Nistér and Stewénius, JMIV 2007; Kneip, Li and Seo, ECCV 2014.)

    >>> sensors, index = torch.eye(4).repeat(2, 1, 1), torch.arange(12) % 2
    >>> sensors[1, 0, 3] = 0.5  # beside the other; each sees every other point
    >>> seen = project(points3d, sensors[:, None] @ pose, K)[index, :, torch.arange(12)].transpose(0, 1)
    >>> rig_pnp(seen, points3d, K, sensors, index).converged
    tensor([True, True, True])
    """
    check_options(model, kernel, gradient, max_steps)
    one_of("solve_dtype", solve_dtype, (torch.float32, torch.float64))
    check_tensors(points2d=points2d)
    start, factor = _split(init, scale)
    points2d = observed(
        points2d, points3d, weights, mask, (K, 3), (distortion, 2), (sensor_from_rig, 3), (sensor_index, 1), (start, 2)
    )
    eye = torch.eye(3, dtype=points2d.dtype, device=points2d.device)
    data = prepare(points2d, points3d, eye, None, weights, mask, init=start)
    rig = check_rig(points2d, K, distortion, sensor_from_rig, sensor_index, model)
    if rig.sensor_from_rig.shape[1] == 1 and not scale:
        values(sensor_from_rig=(rig.sensor_from_rig, "pose"))
        mounted = rig.sensor_from_rig[:, 0]
        found = pnp(
            points2d, points3d, rig.K[:, 0], distortion=rig.distortion[:, 0], weights=weights, mask=mask,
            init=None if start is None else mounted.detach() @ start, model=model, kernel=kernel, gradient=gradient,
            max_steps=max_steps, solve_dtype=solve_dtype,
        )  # fmt: skip
        back = se3.inverse(mounted).to(found.x.dtype)
        found = replace(found, x=back @ found.x, second=None if found.second is None else back.detach() @ found.second)
    else:
        if start is not None:
            values(init=(start, "pose"))
            start = start if start.ndim > 2 else start[None]
            start = scaled_pose(start[:, :3, :3], start[:, :3, 3], start[:, 3, 3] if factor is None else factor)
        options = Options(model, kernel, gradient, max_steps, scale)
        found = solved(tensors, rig.by_point(data).to(solve_dtype), start, options, precision(points2d))
    if scale:
        found = replace(found, x=_apart(found.x), second=None if found.second is None else _apart(found.second))
    if throw:
        found.raise_if_failed()
    return found


def _split(init: Any, scale: bool) -> tuple[Tensor | None, Tensor | None]:
    """The pose and the scale to start from."""
    if init is None or not scale:
        return init, None
    if not (isinstance(init, tuple) and len(init) == 2 and all(isinstance(part, Tensor) for part in init)):
        raise ValueError(f"init must be (world_to_rig, scale) with scale=True, two tensors, got {type(init).__name__}")
    pose, factor = init
    check_like("init", factor, pose)
    values(init=(factor, "finite"))
    pose = spread(pose, 2, (factor, 0))
    return pose, leading("init", factor, len(pose), ()).expand(len(pose))


def _apart(pose: Tensor) -> tuple[Tensor, Tensor]:
    """world_to_rig (B,4,4) and the scale (B,), which is the last entry of what is given."""
    return se3.make(pose[:, :3, :3], pose[:, :3, 3]), pose[:, 3, 3]
