"""Images of cameras that move while their rows are read, one after the other, with truth."""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import project, se3

__all__ = ["RollingScene", "made_rolling"]

_SIZE = (1280, 720)


class RollingScene(NamedTuple):
    """What `geometry.bundle` is given, by its names; V views of N points."""

    points2d: Tensor
    camera_index: Tensor
    point_index: Tensor
    world_to_camera: Tensor
    points3d: Tensor
    K: Tensor
    times: Tensor
    velocity: Tensor


def made_rolling(
    views: int,
    points: int,
    generator: torch.Generator,
    *,
    readout: float = 0.03,
    noise: float = 0.5,
    speed: float = 1.0,
) -> RollingScene:
    """The truth, in float64, and what is seen of it with `noise` px: views about 9 units from a cloud of 3.

    readout: seconds from the first row of 720 to the last one, 0 for a global shutter. speed: how fast cameras turn and
    move, in units of 0.5 radians and 1.5 units a second.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    points3d = normal(points, 3) * torch.tensor([3.0, 2, 3])
    around = torch.zeros(views, 6, dtype=torch.float64)
    around[:, 1], around[:, 5] = torch.linspace(-0.6, 0.6, views), 9.0
    poses = se3.retract(se3.from_rotvec_t(around), 0.1 * normal(views, 6))
    velocity = speed * torch.cat([0.5 * normal(views, 3), 1.5 * normal(views, 3)], 1)
    K = torch.tensor([[800.0, 0, 640], [0, 800, 360], [0, 0, 1]], dtype=torch.float64)
    view, point = torch.cartesian_prod(torch.arange(views), torch.arange(points)).unbind(1)
    times = torch.zeros(len(view), dtype=torch.float64)
    for _ in range(30):  # a row is read at its time, and at that time the point is seen in a row
        p = se3.transform(poses[view], points3d[point][:, None])[:, 0]
        p = (se3.exp(times[:, None] * velocity[view, :3]) @ p[..., None])[..., 0] + times[:, None] * velocity[view, 3:]
        pixels = project(p[:, None], torch.eye(4, dtype=torch.float64), K)[:, 0]
        times = readout * (pixels[:, 1] / _SIZE[1] - 0.5)
    seen = ((pixels >= 0) & (pixels <= torch.tensor(_SIZE))).all(1) & (p[:, 2] > 1)
    view, point = view[seen], point[seen]
    pixels = pixels[seen] + noise * normal(len(view), 2)
    times = readout * (pixels[:, 1] / _SIZE[1] - 0.5)
    return RollingScene(pixels, view, point, poses, points3d, K, times, velocity)
