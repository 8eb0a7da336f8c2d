"""Rigs of cameras that move through a cloud of points, with truth."""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import project, se3
from geometry.camera import Model, matrix_from_intrinsics

__all__ = ["RigScene", "made_rig"]


class RigScene(NamedTuple):
    """What `geometry.bundle` is given, by its names: F frames of S sensors, V views, M observations of N points."""

    points2d: Tensor
    camera_index: Tensor
    point_index: Tensor
    world_to_camera: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    rig_index: Tensor
    sensor_index: Tensor
    sensor_from_rig: Tensor

    def moved(self, generator: torch.Generator, share: float) -> "RigScene":
        """Poses, points and all mountings but the first some `share` of a radian and of the unit off."""

        def normal(*shape: int) -> Tensor:
            return share * torch.randn(*shape, generator=generator, dtype=torch.float64)

        mounting = normal(len(self.sensor_from_rig), 6)
        mounting[0] = 0
        return self._replace(
            world_to_camera=se3.retract(self.world_to_camera, normal(len(self.world_to_camera), 6)),
            points3d=self.points3d + normal(len(self.points3d), 3),
            sensor_from_rig=se3.retract(self.sensor_from_rig, mounting),
        )


def made_rig(
    frames: int,
    sensors: int,
    points: int,
    generator: torch.Generator,
    *,
    apart: float = 0.3,
    baseline: float = 0.5,
    noise: float = 0.5,
    lens: int = 2,
    model: Model = "radtan",
) -> RigScene:
    """The truth, in float64, and what is seen of it with `noise` px: frames along a path, points 4 to 12 units away.

    Sensors are `apart` radians and `baseline` units from one to the next, 0 is where the rig is; beyond a radian their
    views do not overlap. Each has intrinsics of its own, f of about 500 in 640 x 480, and `lens` coefficients.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    turn, place = 0.05 * normal(sensors, 3), 0.1 * normal(sensors, 3)
    turn[:, 1] += apart * torch.arange(sensors)
    place[:, 0] += baseline * torch.arange(sensors)
    turn[0], place[0] = 0, 0
    mounted = se3.make(se3.exp(turn), place)
    along = torch.linspace(-1, 1, frames, dtype=torch.float64)[:, None] * torch.tensor([2.0, 0, 1]).double()
    heading = torch.tensor([0.1, 0.4, 0.1]).double() * normal(frames, 3)
    heading[:, 1] += 2 * torch.rand(frames, generator=generator, dtype=torch.float64)
    rigs = se3.inverse(se3.make(se3.exp(heading), along + 0.3 * normal(frames, 3)))
    distance = 4 + 8 * torch.rand(points, 1, generator=generator, dtype=torch.float64)
    points3d = distance * torch.nn.functional.normalize(normal(points, 3) * torch.tensor([1, 0.5, 1]), dim=1)
    intrinsics = torch.tensor([500.0, 505, 320, 240]).double() + 5 * normal(sensors, 4)
    K, distortion = matrix_from_intrinsics(intrinsics), 0.02 * normal(sensors, lens)
    frame, sensor = torch.cartesian_prod(torch.arange(frames), torch.arange(sensors)).view(-1, 2).unbind(1)
    poses = mounted[sensor] @ rigs[frame]
    pixels = project(points3d[None], poses, K[sensor], distortion[sensor], model=model)
    inside = ((pixels >= 0) & (pixels <= torch.tensor([639, 479]))).all(-1)
    view, point = (inside & (se3.transform(poses, points3d[None])[..., 2] > 1)).nonzero(as_tuple=True)
    pixels = pixels[view, point] + noise * normal(len(view), 2)
    return RigScene(pixels, view, point, rigs, points3d, K, distortion, frame, sensor, mounted)
