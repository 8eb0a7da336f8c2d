"""Photographs made here, of a yard between two walls, by one camera whose lens bends: their tracks, and pictures.

The world is a dozen rectangles (metres, y down): ground, walls, crates. Where a camera stands, how it is held and what
its lens does are drawn from a seed, so that what a reconstruction finds can be compared with the truth.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geometry import project, se3, unproject
from geometry.camera import in_front, matrix_from_intrinsics

__all__ = ["MadeTracks", "Photographs", "take_photographs"]

_HALF = 6.0
"""Metres from the middle to the walls."""
_EYE = 1.6
"""Metres from the ground to y = 0."""


class MadeTracks(NamedTuple):
    """Tracks and their truth: points2d (M,2) px, camera_index and point_index (M,), points3d (N,3), wrong (M,) bool."""

    points2d: Tensor
    camera_index: Tensor
    point_index: Tensor
    points3d: Tensor
    wrong: Tensor


class Photographs(NamedTuple):
    """What V photographs of image_size (width, height) px were taken of and with, float64.

    rectangles (S,3,3): a corner and the two edges that leave it. world_to_camera (V,4,4), K (3,3), distortion (2,).
    """

    rectangles: Tensor
    world_to_camera: Tensor
    K: Tensor
    distortion: Tensor
    image_size: tuple[int, int]

    def _first(self, centre: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rays from a centre (3,) along directions (n,3) meet first: how many directions away (n,), infinite for
        nothing, which rectangle (n,), and where in it, as shares of its edges (n,2)."""
        corner, edges = self.rectangles[:, 0], self.rectangles[:, 1:]
        normal = torch.linalg.cross(edges[:, 0], edges[:, 1])
        away = ((corner - centre) * normal).sum(-1) / (directions @ normal.mT)
        place = centre + away[..., None] * directions[:, None] - corner
        share = torch.einsum("nsk,sek->nse", place, edges) / edges.square().sum(-1)
        inside = ((share >= 0) & (share <= 1)).all(-1) & (away > 1e-9)
        away, which = torch.where(inside, away, torch.inf).min(-1)
        return away, which, share[torch.arange(len(which)), which]

    def tracks(
        self, count: int, generator: torch.Generator, *, noise_px: float, wrong: float = 0.0, kept: float = 0.6
    ) -> MadeTracks:
        """Tracks of `count` points on the rectangles, those that at least two photographs see.

        noise_px: in u and in v. kept: share of what could be seen that is found. wrong: share of the observations that
        lie anywhere in the picture.
        """
        area = self.rectangles[:, 1:].norm(dim=-1).prod(-1).sqrt()
        which = torch.multinomial(area, count, replacement=True, generator=generator)
        share = torch.rand(count, 2, 1, generator=generator, dtype=torch.float64)
        points3d = self.rectangles[which, 0] + (share * self.rectangles[which, 1:]).sum(1)
        seen = torch.stack([self._sees(view, points3d) for view in range(len(self.world_to_camera))])
        seen &= torch.rand(seen.shape, generator=generator) < kept
        points3d, seen = points3d[seen.sum(0) >= 2], seen[:, seen.sum(0) >= 2]
        camera, point = seen.nonzero().T
        pixels = project(points3d, self.world_to_camera, self.K, self.distortion)[camera, point]
        pixels = pixels + noise_px * torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
        bad = torch.rand(len(pixels), generator=generator) < wrong
        anywhere = torch.rand(pixels.shape, generator=generator, dtype=torch.float64) * torch.tensor(self.image_size)
        return MadeTracks(torch.where(bad[:, None], anywhere, pixels), camera, point, points3d, bad)

    def _sees(self, view: int, points3d: Tensor) -> Tensor:
        """Which points (N,3) a photograph shows: in the picture, and nothing before them. (N,)"""
        pose = self.world_to_camera[view]
        pixels = project(points3d, pose, self.K, self.distortion)
        inside = ((pixels > 0) & (pixels < torch.tensor(self.image_size) - 1)).all(-1)
        rays, there = unproject(pixels, self.K, self.distortion)
        p = se3.transform(pose, points3d)
        # a lens that folds shows a point far outside at a pixel that is another ray's
        same = torch.linalg.cross(rays, p).norm(dim=-1) < 1e-6 * p.norm(dim=-1)
        centre = se3.centre(pose)
        away, _, _ = self._first(centre, points3d - centre)
        return inside & there & same & in_front(p) & (away > 1 - 1e-6)

    def picture(self, view: int, seed: int) -> np.ndarray:
        """The photograph (H,W,3) uint8, of what the rays through the pixels' centres meet first: each rectangle has a
        pattern of its own, which follows from the seed."""
        width, height = self.image_size
        v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pose = self.world_to_camera[view]
        rays, there = unproject(torch.stack([u, v], -1).flatten(0, 1).double(), self.K, self.distortion)
        away, which, share = self._first(se3.centre(pose), rays @ pose[:3, :3])
        metres = share * self.rectangles[:, 1:].norm(dim=-1)[which]
        colors = np.full((width * height, 3), 200.0)
        for s in which[there & away.isfinite()].unique().tolist():
            here = (which == s) & there & away.isfinite()
            colors[here.numpy()] = _looked_up(_pattern(seed, s), metres[here].numpy())
        return colors.reshape(height, width, 3).round().clip(0, 255).astype(np.uint8)


def take_photographs(
    generator: torch.Generator,
    *,
    views: int = 12,
    image_size: tuple[int, int] = (960, 640),
    focal_share: float = 1.0,
    k1: float = 0.0,
    k2: float = 0.0,
    crop: tuple[float, float] = (0.0, 0.0),
    upright: float = 0.0,
) -> Photographs:
    """A walk along an arc of 100 degrees around the middle of the yard, 6 to 8 m away, looking at it.

    focal_share: focal length over the picture's width. crop: by which share of its width and height the principal
    point lies off the middle, as in a picture that was cut on one side. upright: share of the photographs that are
    taken with the camera held on its side.
    """

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(*size, generator=generator, dtype=torch.float64)

    width, height = image_size
    f, shift = focal_share * width, torch.tensor(crop, dtype=torch.float64) * torch.tensor([width, height])
    cx, cy = (((torch.tensor([width, height]) - 1) / 2).double() + shift).tolist()
    K = matrix_from_intrinsics(torch.tensor([f, f, cx, cy], dtype=torch.float64))
    angle = torch.linspace(-50, 50, views, dtype=torch.float64).deg2rad() + uniform(-0.05, 0.05, views)
    far = uniform(6.0, 8.0, views)
    # the walls stand behind (z = +) and to the left (x = -): the walk is in front and to the right
    around = angle - math.pi / 4
    height_above = uniform(-0.8, 0.6, views)
    centres = torch.stack([-far * around.sin(), height_above, -far * around.cos()], -1)
    centres = centres.clamp(min=-_HALF + 0.5)
    aim = uniform(-0.7, 0.7, views, 3) + torch.tensor([0, 0.6, 0])
    z = torch.nn.functional.normalize(aim - centres, dim=-1)
    x = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1, 0]).double().expand_as(z), z), dim=-1)
    R = torch.stack([x, torch.linalg.cross(z, x), z], 1)
    turned = math.pi / 2 * (torch.rand(views, generator=generator) < upright).double() + uniform(-0.1, 0.1, views)
    R = se3.exp(torch.stack([0 * turned, 0 * turned, turned], -1)) @ R
    poses = se3.make(R, -(R @ centres[..., None]).squeeze(-1))
    distortion = torch.tensor([k1, k2], dtype=torch.float64)
    return Photographs(_yard(uniform(-1, 1, 3, 3)), poses, K, distortion, image_size)


def _yard(places: Tensor) -> Tensor:
    """Ground, two walls and three crates (S,3,3): a corner and two edges each. places (3,3) in -1 … 1 of the crates."""
    size = 2 * _HALF
    flat = [
        [[-_HALF, _EYE, -_HALF], [size, 0, 0], [0, 0, size]],
        [[-_HALF, _EYE - 5, _HALF], [size, 0, 0], [0, 5, 0]],
        [[-_HALF, _EYE - 5, -_HALF], [0, 0, size], [0, 5, 0]],
    ]
    faces = []
    for k, (dx, dz, turn) in enumerate(places.tolist()):
        side, tall = 1.0 + 0.3 * k, 1.2 + 0.5 * k
        a, b = side * math.cos(turn), side * math.sin(turn)
        ex, ez, ey = np.array([a, 0, b]), np.array([-b, 0, a]), np.array([0, tall, 0])
        middle = np.array([(-2.0, 0.2, 1.8)[k] + 0.5 * dx, _EYE - tall, (0.5, -1.0, 1.6)[k] + 0.5 * dz])
        corner = middle - (ex + ez) / 2
        faces += [[corner, ex, ez], [corner, ex, ey], [corner, ez, ey], [corner + ez, ex, ey], [corner + ex, ez, ey]]
    return torch.tensor(np.array([*flat, *faces]), dtype=torch.float64)


_GRAIN = 64
"""Places of a pattern per metre."""


@lru_cache(maxsize=32)
def _pattern(seed: int, rectangle: int) -> np.ndarray:
    """Blotches of all sizes, of one hue, (n,n,3), 0 … 255, 16 m along a side, that repeat beyond."""
    rng, n = np.random.default_rng((seed, rectangle)), 16 * _GRAIN
    spectrum = np.fft.rfft2(rng.standard_normal((n, n)))
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None])
    blotches = np.fft.irfft2(spectrum / np.maximum(frequency, 2 / n) ** 0.9, s=(n, n))
    grey = 128 + 55 * blotches / blotches.std()
    return (grey[..., None] * rng.uniform(0.7, 1.1, 3)).clip(0, 255)


def _looked_up(pattern: np.ndarray, metres: np.ndarray) -> np.ndarray:
    """Colours (m,3) of a pattern at places (m,2), bilinear."""
    at = metres * _GRAIN
    low = np.floor(at).astype(np.int64)
    a, b = (at - low).T[..., None]
    n = len(pattern)
    (x0, y0), (x1, y1) = low.T % n, (low.T + 1) % n
    upper = (1 - a) * pattern[y0, x0] + a * pattern[y0, x1]
    lower = (1 - a) * pattern[y1, x0] + a * pattern[y1, x1]
    return (1 - b) * upper + b * lower
