"""The field-of-view lens (Devernay and Faugeras 2001, MVA 13(1), eq. 13): its image is as far out as an angle, / omega.

The radius of a point at distance r before depth z is atan2(2 r tan(omega / 2), z) / omega: the equidistant fisheye of
the point drawn out by 2 tan(omega / 2) across the axis. Without omega it is a pinhole, and near omega = 0 all but one.
"""

import math

import torch
from torch import Tensor

from geometry.lenses.fisheye import FISHEYE
from geometry.lenses.lens import Lens, Rays

__all__ = ["FOV"]

_LEAST = 1e-7  # of omega: nearer to zero it is a pinhole to rounding


def _stretch(c: Tensor) -> tuple[Tensor, Tensor]:
    """omega (…,1), as if `_LEAST` where it is nearer to zero, and 2 tan(omega / 2); the lens is even in omega."""
    omega = c.abs().clamp_min(_LEAST)
    return omega, 2 * (0.5 * omega).tan()


def _drawn(p: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """The point (…,N,3) that the fisheye sees, and no coefficients for it."""
    xy, z = p.tensor_split((2,), -1)
    return torch.cat([across[..., None] * xy, z.expand(*xy.shape[:-1], 1)], -1), p.new_zeros(0)


def _image(p: Tensor, c: Tensor) -> Tensor:
    omega, across = _stretch(c)
    return FISHEYE.image(*_drawn(p, across)) / omega[..., None]


def _slopes(p: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    omega, across = _stretch(c)
    image, rows = FISHEYE.slopes(*_drawn(p, across))
    scale = torch.cat([across, across, torch.ones_like(across)], -1) / omega
    return image / omega[..., None], rows * scale[..., None, :, None]


def _bend(p: Tensor, c: Tensor, covector: Tensor) -> tuple[Tensor, ...]:
    omega, across = _stretch(c)
    xx, xy, xz, yy, yz, zz = FISHEYE.bend(*_drawn(p, across), covector / omega[..., None])
    a, b = across * across, across
    return a * xx, a * xy, b * xz, a * yy, b * yz, zz


def _sees(p: Tensor, c: Tensor) -> Tensor:
    return FISHEYE.sees(*_drawn(p, _stretch(c)[1]))


def _rays(image: Tensor, c: Tensor, max_steps: int, tolerance: float) -> Rays:
    omega, across = _stretch(c)
    drawn, valid = FISHEYE.rays(image * omega[..., None], c.new_zeros(0), max_steps, tolerance)
    xy, z = drawn.tensor_split((2,), -1)
    rays = torch.cat([xy / across[..., None], z], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), valid)


FOV = Lens(
    names=("omega",), counts=(0, 1), image=_image, slopes=_slopes, bend=_bend, sees=_sees, rays=_rays, powers=(1,),
    start=(1 / math.pi, 1.0),
)  # fmt: skip
