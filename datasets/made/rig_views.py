"""Points that rigs of cameras see, one time instant each, made from a seed."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from geometry import se3

__all__ = ["Mounting", "RigViews", "rig_views"]

Mounting = Literal["outward", "forward", "inward"]
"""Cameras in all directions, about the same one (as on a car), or about an object of size 1 which all look at."""

IMAGE = (640.0, 480.0)


class RigViews(NamedTuple):
    """Arguments of `geometry.rig_pnp`, float64, and the truth: points2d (B,N,2) px, points3d (B,N,3), K (B,S,3,3),
    sensor_from_rig (B,S,4,4), sensor_index (B,N), world_to_rig_gt (B,4,4)."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    sensor_from_rig: Tensor
    sensor_index: Tensor
    world_to_rig_gt: Tensor

    @property
    def given(self) -> dict[str, Any]:
        """What `rig_pnp` is given, by name."""
        return {name: value for name, value in self._asdict().items() if name != "world_to_rig_gt"}


def rig_views(
    B: int,
    N: int,
    S: int,
    noise: float,
    generator: torch.Generator,
    *,
    mounting: Mounting = "outward",
    baseline: float = 0.5,
    depth: tuple[float, float] = (1.0, 10.0),
) -> RigViews:
    """B rigs of S cameras that see N points each, every camera one at least if N >= S.

    noise: standard deviation in px. baseline: how far cameras are from the middle of the rig; of "inward" ones, from
    the object. depth: of points before their camera, log-uniform; focal lengths are 200 to 2000 px.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    centres = baseline * normalize(normal(B, S, 3), dim=-1)
    if mounting == "inward":
        R = se3.rotation_to_axis(-centres)
    elif mounting == "forward":
        R = se3.exp(0.2 * normal(B, S, 3))
    else:
        R = se3.rotation_from_quat_wxyz(normal(B, S, 4))
    sensors = se3.make(R, -(R @ centres[..., None])[..., 0])
    index = torch.randint(S, (B, N), generator=generator)
    index[:, : min(S, N)] = torch.arange(min(S, N))
    f = 200 * 10 ** uniform(B, S)
    K = torch.diag_embed(torch.stack([f, f, torch.ones_like(f)], -1))
    K[..., 0, 2], K[..., 1, 2] = (size / 2 for size in IMAGE)
    rows = torch.arange(B)[:, None]
    sensor, camera = sensors[rows, index], K[rows, index]
    if mounting == "inward":
        in_rig = uniform(B, N, 3) - 0.5
        p = _moved(sensor, in_rig)
        pixels = (p / p[..., 2:])[..., None, :] @ camera.mT[..., :2]
        pixels = pixels[..., 0, :]
    else:
        pixels = uniform(B, N, 2) * torch.tensor(IMAGE, dtype=torch.float64)
        near, far = depth
        z = near * (far / near) ** uniform(B, N, 1)
        xy = (pixels - camera[..., :2, 2]) / camera[..., 0, 0, None]
        in_rig = _moved(se3.inverse(sensor), z * torch.cat([xy, torch.ones_like(z)], -1))
    truth = se3.make(se3.rotation_from_quat_wxyz(normal(B, 4)), 5 * normal(B, 3))
    points3d = se3.transform(se3.inverse(truth), in_rig)
    return RigViews(pixels + noise * normal(B, N, 2), points3d, K, sensors, index, truth)


def _moved(pose: Tensor, points: Tensor) -> Tensor:
    """Each of the points (…,3) by a pose (…,4,4) of its own."""
    return se3.transform(pose, points[..., None, :])[..., 0, :]
