"""Scenes and the finite differences that the tests of the layer share."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from geometry import project, se3
from geometry.camera import Model
from tests import numbers

torch.set_num_threads(1)  # the batches are small, and the machine is shared

COEFFICIENTS = {
    "radtan": (-0.28, 0.11, 0.0011, -0.0015, -0.02),
    "fisheye": (0.06, -0.012, 0.004, -0.001),
    "eucm": (0.61, 1.1),
    "double_sphere": (-0.2, 0.58),
    "division": (-0.3,),
    "fov": (1.1,),
}


class Scene(NamedTuple):
    """points2d (B,N,2), points3d (B,N,3), K (3,3), distortion (k,) and the pose (B,4,4) behind the points."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    world_to_camera_gt: Tensor


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    """A function that makes B views of N random points in a cube of half side 1, six units away."""

    def make(
        B: int = 3,
        N: int = 12,
        noise: float = 0.0,
        *,
        model: Model = "radtan",
        distorted: bool = False,
        planar: bool = False,
        depth: float = 6.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Scene:
        g = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        points3d = 2 * torch.rand(B, N, 3, generator=g, dtype=torch.float64) - 1
        if planar:
            points3d[..., 2] = 0
        R = se3.rotation_from_quat_wxyz(normal(B, 4))
        t = normal(B, 3) * torch.tensor([0.4, 0.3, 0.0]) + torch.tensor([0.0, 0.0, depth])
        pose = se3.make(R, t)
        K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], dtype=torch.float64)
        coefficients = COEFFICIENTS[model] if distorted else ()
        distortion = torch.tensor(coefficients, dtype=torch.float64)
        pixels = project(points3d, pose, K, distortion, model=model)
        pixels = pixels + noise * normal(*pixels.shape)
        return Scene(*(a.to(dtype) for a in (pixels, points3d, K, distortion, pose)))

    return make


@pytest.fixture(scope="session")
def central_difference() -> Callable[..., Tensor]:
    """central_difference(f, h): d f(step)/d step at 0 by the central stencil of six points."""
    return numbers.central_difference


@pytest.fixture(scope="session")
def pose_tangent() -> Callable[[Tensor, Tensor], Tensor]:
    """Six-vector (B,6) of a pose relative to a fixed one: log(R R0^T) and t - t0. Its gradient needs no chart."""

    def tangent(pose: Tensor, origin: Tensor) -> Tensor:
        rotvec = se3.log(pose[..., :3, :3] @ origin[..., :3, :3].mT)
        return torch.cat([rotvec, pose[..., :3, 3] - origin[..., :3, 3]], -1)

    return tangent
