"""Scenes made here: the published cube and pose, a duck-shaped solid, views of it, and who sees what."""

import math

import torch
from torch import Tensor

from geometry import se3

__all__ = ["CUBE", "CUBE_EDGES", "PUBLISHED_POSE", "duck", "half_visible", "random_poses"]

# Corners of the cube of side 2, in the order of the published demo's cube.mat (MIT licence, B. Chen 2020).
CUBE = torch.tensor(
    [[1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, -1], [1, -1, 1], [1, 1, 1], [-1, 1, 1], [-1, -1, 1]],
    dtype=torch.float64,
)
# The pairs of its corners that an edge connects.
CUBE_EDGES = torch.tensor(
    [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]]
)
# First pose [rotvec, t] of the published demo's poses.mat, rounded to the digits that matter to a cube at 4.7.
PUBLISHED_POSE = torch.tensor([-1.9496, 1.9800, 0.12222, 0.065936, -0.037431, 4.6802], dtype=torch.float64)

# A duck, in metres, z up, about as large as the published one: (centre, radii) of ellipsoids.
_DUCK = torch.tensor(
    [
        [[0.00, 0.0, 0.10], [0.150, 0.105, 0.085]],  # body
        [[0.09, 0.0, 0.23], [0.068, 0.062, 0.066]],  # head
        [[0.16, 0.0, 0.22], [0.045, 0.032, 0.014]],  # beak
        [[-0.14, 0.0, 0.14], [0.050, 0.040, 0.050]],  # tail
    ],
    dtype=torch.float64,
)


def duck(count: int, generator: torch.Generator) -> Tensor:
    """`count` points on the surface of a duck about 0.37 long, float64. (count,3)."""
    centres, radii = _DUCK[:, 0], _DUCK[:, 1]
    # enough draws that those inside another part can be thrown away
    draws = 4 * count
    area = (radii[:, 0] * radii[:, 1] + radii[:, 1] * radii[:, 2] + radii[:, 0] * radii[:, 2]) / 3
    part = torch.multinomial(area, draws, replacement=True, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(draws, 3, generator=generator, dtype=torch.float64), dim=-1)
    points = centres[part] + radii[part] * direction
    inside = (((points[:, None] - centres) / radii).square().sum(-1) < 1 - 1e-9).any(1)
    return points[~inside][:count]


def random_poses(count: int, generator: torch.Generator, depth: tuple[float, float] = (3.8, 20.0)) -> Tensor:
    """Cameras looking at the origin's neighbourhood from all sides, world_to_camera (count,4,4), float64.

    Depths are log-uniform, the object is off the optical axis by up to 0.06 of its depth: the published demo's range.
    """
    quat = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    u = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    z = depth[0] * (u[:, 2] * math.log(depth[1] / depth[0])).exp()
    lateral = 0.06 * (2 * u[:, :2] - 1) * z[:, None]
    return se3.make(se3.rotation_from_quat_wxyz(quat), torch.cat([lateral, z[:, None]], -1))


def half_visible(points3d: Tensor, views: int) -> Tensor:
    """Each view sees the half of the points beyond the median along x, -x, y, -y, z, -z in turn. (V,N) bool."""
    median = points3d.median(0).values
    above = points3d >= median
    return torch.stack([above[:, v % 6 // 2] ^ (v % 2 == 1) for v in range(views)])
