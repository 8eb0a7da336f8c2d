"""Bearings, for cameras without pixels of a K: unit vectors in the camera frame, behind it as well.

An error between two is an angle: that of the point's direction from the bearing, in radians, along the two directions
in which the bearing can move (the first two rows of `se3.rotation_to_axis`). So it is the image of the point in an
equidistant fisheye that looks along the bearing. Any central camera becomes one of bearings by `unproject`, or here.
"""

import math

import torch
from torch import Tensor

from geometry import se3
from geometry.checks import alike, check_tensors, shaped, width_and_height

__all__ = ["bearing_whitening", "equirectangular_pixels", "equirectangular_rays"]


def equirectangular_rays(points2d: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Unit rays (…,3) of pixels (…,2) in a panorama of image_size (width, height), all around by half around.

    The middle of the image looks along z, columns turn about y to the right, rows bow down: OpenCV's axes and pixel
    grid, longitude and latitude in equal steps; COLMAP's EQUIRECTANGULAR but for its half pixel. Differentiable.
    Raises ValueError for another shape, and for a size that is not positive.

    >>> equirectangular_rays(torch.tensor([[511.5, 255.5]]), (1024, 512)).round(decimals=6)
    tensor([[0., 0., 1.]])
    """
    width, height = width_and_height(image_size)
    check_tensors(points2d=points2d)
    _last("points2d", points2d, 2)
    u, v = points2d.unbind(-1)
    longitude = (2 * u + 1 - width) * (math.pi / width)
    latitude = (2 * v + 1 - height) * (0.5 * math.pi / height)
    ring = latitude.cos()
    return torch.stack([ring * longitude.sin(), latitude.sin(), ring * longitude.cos()], -1)


def equirectangular_pixels(rays: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Pixels (…,2) of rays (…,3), of any length but zero, in a panorama: the inverse of `equirectangular_rays`.

    Columns are within -0.5 … width - 0.5. Straight up and down, where all columns meet, and behind the camera, where
    the first and the last do, a pixel has no derivative that says so: compare rays, not pixels, with an error in mind.

    >>> equirectangular_pixels(torch.tensor([[0.0, 0, 1]]), (1024, 512))
    tensor([[511.5000, 255.5000]])
    """
    width, height = width_and_height(image_size)
    check_tensors(rays=rays)
    _last("rays", rays, 3)
    x, y, z = rays.unbind(-1)
    square = x * x + z * z
    up = square == 0  # any column will do
    ring = torch.where(up, 0.0, torch.where(up, 1.0, square).sqrt())
    longitude, latitude = torch.atan2(x, torch.where(up, 1.0, z)), torch.atan2(y, ring)
    u = longitude * (width / (2 * math.pi)) + (width - 1) / 2
    return torch.stack([u, latitude * (height / math.pi) + (height - 1) / 2], -1)


def bearing_whitening(bearings: Tensor, covariance: Tensor) -> Tensor:
    """The matrices W (…,2,2) that make errors of bearings (…,3), in radians, white: W e has the covariance I.

    covariance (…,3,3): that of the vectors as they are given, of any length but zero; what it says of their length is
    left aside. With T the first two rows of `se3.rotation_to_axis`, C = T covariance T^T / |bearing|^2 is that of e,
    and W the inverse of its Cholesky factor (as MLPnP has it in a null space of the bearing: Urban, Leitloff and Hinz
    2016, ISPRS Annals III-3). Differentiable; NaN where C is not positive definite. Raises ValueError for shapes and
    dtypes that do not fit.

    >>> bearing_whitening(torch.tensor([0.0, 0, 2]), 0.01 * torch.eye(3)).diagonal().round(decimals=6)
    tensor([20., 20.])
    """
    check_tensors(bearings=bearings, covariance=covariance)
    _last("bearings", bearings, 3)
    if covariance.shape[-2:] != (3, 3):
        raise ValueError(f"covariance must have shape (…,3,3), got {tuple(covariance.shape)}")
    alike(bearings=bearings, covariance=covariance)
    T = se3.rotation_to_axis(bearings)[..., :2, :]
    C = T @ covariance @ T.mT / bearings.square().sum(-1)[..., None, None]
    a, b, c = C[..., 0, 0], 0.5 * (C[..., 0, 1] + C[..., 1, 0]), C[..., 1, 1]
    # the factor [[p, 0], [q, r]] and its inverse
    p = a.sqrt()
    q = b / p
    r = (c - q * q).sqrt()
    return torch.stack([1 / p, torch.zeros_like(p), -q / (p * r), 1 / r], -1).unflatten(-1, (2, 2))


def _last(name: str, value: Tensor, size: int) -> None:
    shaped(**{name: (value, f"…,{size}")})
