"""Cameras and points that the tests of `geometry.interop` share."""

import torch
from torch import Tensor

from geometry import se3

K = torch.tensor([[810.0, 0, 330], [0, 790, 235], [0, 0, 1]], dtype=torch.float64)
SIZE = (640, 480)
RADTAN = [-0.28, 0.11, 0.0011, -0.0015, -0.02, 0.03, -0.01, 0.004, 0.002, -0.001, 0.0015, 0.0007]
FISHEYE = [0.06, -0.012, 0.004, -0.001]
DTYPES = [torch.float32, torch.float64]


def poses(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rigid motions (…,4,4) of any angle, some 5 units of translation."""
    g = torch.Generator().manual_seed(seed)
    q, t = torch.randn(*shape, 4, generator=g, dtype=torch.float64), torch.randn(*shape, 3, generator=g).double()
    return se3.make(se3.rotation_from_quat_wxyz(q), 3 * t).to(dtype)


def points_before(world_to_camera: Tensor, N: int = 20, seed: int = 0) -> Tensor:
    """World points (…,N,3) that are 2 to 6 units in front of each camera, X/Z and Y/Z within 0.5."""
    g = torch.Generator().manual_seed(seed)
    shape = (*world_to_camera.shape[:-2], N)
    z = 2 + 4 * torch.rand(*shape, 1, generator=g, dtype=torch.float64)
    xy = torch.rand(*shape, 2, generator=g, dtype=torch.float64) - 0.5
    return se3.transform(se3.inverse(world_to_camera.double()), torch.cat([xy * z, z], -1))


def eps(dtype: torch.dtype) -> float:
    """Some roundings of numbers around one."""
    return 20 * torch.finfo(dtype).eps


def close(a: Tensor, b: Tensor, atol: float) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol, check_dtype=False)
