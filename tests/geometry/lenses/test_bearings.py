"""Cameras of bearings: panoramas against COLMAP's and the truth, covariances against draws."""

from typing import Any

import numpy as np
import pytest
import torch

from geometry import bearing_whitening, equirectangular_pixels, equirectangular_rays, project, se3
from geometry.interop import colmap
from tests.numbers import DOUBLE, close, normal

SIZE = (640, 320)


def test_a_panorama_looks_along_z_in_its_middle_and_turns_to_the_right() -> None:
    pixels = torch.tensor([[319.5, 159.5], [479.5, 159.5], [159.5, 159.5], [-0.5, 159.5], [319.5, 319.5]], **DOUBLE)
    rays = torch.tensor([[0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 0, -1], [0, 1, 0]], **DOUBLE)
    close(equirectangular_rays(pixels, SIZE), rays, 1e-15)


def test_pixels_come_back_and_rays_of_any_length() -> None:
    g = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 50, 2, generator=g, **DOUBLE) * torch.tensor(SIZE) - 0.5
    rays = equirectangular_rays(pixels, SIZE)
    close(rays.norm(dim=-1), torch.ones(4, 50, **DOUBLE), 1e-15)
    close(equirectangular_pixels(3 * rays, SIZE), pixels, 1e-11)
    assert torch.autograd.gradcheck(lambda p: equirectangular_rays(p, SIZE), pixels[0, :5].requires_grad_())
    assert torch.autograd.gradcheck(lambda r: equirectangular_pixels(r, SIZE), rays[1, :5].detach().requires_grad_())


def test_straight_up_every_column_is_as_good_and_has_no_derivative() -> None:
    up = torch.tensor([[0.0, -2, 0], [0, 2, 0], [0.3, 0.1, 1]], **DOUBLE, requires_grad=True)
    pixels = equirectangular_pixels(up, SIZE)
    close(pixels[:2, 1], torch.tensor([-0.5, 319.5], **DOUBLE), 1e-12)
    (gradient,) = torch.autograd.grad(pixels.sum(), up)
    assert gradient.isfinite().all()


def test_a_panorama_is_colmaps() -> None:
    pycolmap: Any = pytest.importorskip("pycolmap")
    camera = pycolmap.Camera(model="EQUIRECTANGULAR", width=SIZE[0], height=SIZE[1], params=SIZE)
    rays = normal(60, 3)
    theirs = np.stack([camera.img_from_cam(ray) for ray in rays.numpy()])
    close(equirectangular_pixels(rays, SIZE), colmap.from_pixels(torch.from_numpy(theirs)), 1e-9)


def test_whitened_errors_of_drawn_bearings_have_the_covariance_one() -> None:
    """Bearings ahead, aside and behind, of any length; the error is the image in a fisheye that looks along them."""
    bearings = torch.tensor([[0.1, 0.2, 2.0], [3, 0.5, 0.1], [0.2, -0.1, -0.7], [0, 0, -1]], **DOUBLE)
    A = 1e-3 * normal(4, 3, 3)
    W = bearing_whitening(bearings, A @ A.mT)
    drawn = bearings[:, None] + normal(4, 40000, 3, seed=1) @ A.mT
    turn = se3.make(se3.rotation_to_axis(bearings), torch.zeros(4, 3, **DOUBLE))
    error = project(drawn, turn, torch.eye(3, **DOUBLE), model="fisheye") @ W.mT
    close(error.mT @ error / 40000, torch.eye(2, **DOUBLE).expand(4, 2, 2), 0.03)
    close(bearing_whitening(5 * bearings, 25 * A @ A.mT), W, 1e-9 * W.abs().max().item())
    along = A @ A.mT + 7 * bearings[:, :, None] * bearings[:, None]  # how long they are does not matter
    close(bearing_whitening(bearings, along), W, 1e-9 * W.abs().max().item())


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"points2d must have shape \(…,2\), got \(4, 3\)"):
        equirectangular_rays(torch.zeros(4, 3), SIZE)
    with pytest.raises(ValueError, match=r"rays must have shape \(…,3\), got \(4, 2\)"):
        equirectangular_pixels(torch.zeros(4, 2), SIZE)
    with pytest.raises(ValueError, match=r"image_size must be \(width, height\) in px, got 640"):
        equirectangular_rays(torch.zeros(4, 2), 640)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image_size must be"):
        equirectangular_rays(torch.zeros(4, 2), (640, 0))
    with pytest.raises(ValueError, match=r"covariance must have shape \(…,3,3\), got \(4, 2, 2\)"):
        bearing_whitening(torch.ones(4, 3), torch.ones(4, 2, 2))
