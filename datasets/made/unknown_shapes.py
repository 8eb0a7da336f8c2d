"""Shapes that nothing is known of: views of made points for a search from nothing, with noise and wrong pixels."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geometry import project, se3
from geometry.camera import matrix_from_intrinsics

__all__ = ["UnknownShape", "UnknownViews", "made_unknown"]


@dataclass(frozen=True)
class UnknownShape:
    """What is seen, and how."""

    views: int = 4
    points: int = 50
    noise: float = 0.5
    """Of pixels."""
    wrong: float = 0.0
    """Share of the observations that lie anywhere in the image."""
    shape: Literal["ball", "plane", "rod"] = "ball"
    """Filled, flat, or ten times as long as thick; of unit rms radius."""
    visible: Literal["all", "half"] = "all"
    """Which points a view sees: all, or the nearer half."""
    far: float = 1.0
    """Times the usual distance of 4 to 6, and times the usual focal length: perspective is weaker by it."""


class UnknownViews(NamedTuple):
    """points2d (V,N,2) px in an image of 640 x 480, visible (V,N), K (V,3,3), and the truth: world_to_camera (V,4,4),
    points3d (N,3), wrong (V,N)."""

    points2d: Tensor
    visible: Tensor
    K: Tensor
    world_to_camera: Tensor
    points3d: Tensor
    wrong: Tensor


def made_unknown(what: UnknownShape, seed: int) -> UnknownViews:
    """Cameras of 600 to 900 px all around, of a plane up to 60 degrees off its normal, float64."""
    g = torch.Generator().manual_seed(seed)
    V, N = what.views, what.points

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=g, dtype=torch.float64)

    X = torch.nn.functional.normalize(normal(N, 3), dim=1) * uniform(N, 1) ** (1 / 3)
    X = X * X.new_tensor({"ball": (1.0, 1.0, 1.0), "plane": (1.0, 1.0, 0.0), "rod": (1.0, 0.1, 0.1)}[what.shape])
    X = X - X.mean(0)
    X = X / X.square().sum(-1).mean().sqrt()
    if what.shape == "plane":
        axis = torch.nn.functional.normalize(normal(V, 2), dim=1)
        tilt = math.radians(60) * uniform(V, 1).sqrt() * axis
        roll = torch.nn.functional.pad(2 * math.pi * uniform(V, 1), (2, 0))
        R = se3.exp(roll) @ se3.exp(torch.nn.functional.pad(tilt, (0, 1)))
    else:
        R = se3.rotation_from_quat_wxyz(normal(V, 4))
    depth, aside = 4 + 2 * uniform(V, 1), 0.3 * (2 * uniform(V, 2) - 1)
    pose = se3.make(R, what.far * torch.cat([aside, depth], 1))
    f = what.far * (600 + 300 * uniform(1).item())
    K = matrix_from_intrinsics(X.new_tensor([f, f, 319.5, 239.5])).expand(V, 3, 3)
    depths = se3.transform(pose, X)[..., 2]
    visible = depths <= depths.quantile(1.0 if what.visible == "all" else 0.5, dim=1, keepdim=True)
    wrong = (torch.rand(V, N, generator=g) < what.wrong) & visible
    anywhere = uniform(V, N, 2) * X.new_tensor([639.0, 479.0])
    pixels = project(X, pose, K) + what.noise * normal(V, N, 2)
    return UnknownViews(torch.where(wrong[..., None], anywhere, pixels), visible, K, pose, X, wrong)
