"""Small noisy colour images of one line or one circle among distractors, and what is in them.

The toy problems of differentiable RANSAC (DSAC, Brachmann et al., arXiv 1611.05705, and its published line example) and
of expert sample consensus (ESAC, Brachmann and Rother, arXiv 1908.02484). Coordinates are those of the
unit square, x right, y down: column i of S has its centre at (i + 1/2) / S.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SIDE", "ToyImages", "line_images", "shape_images"]

SIDE = 64
"""Pixels along either side of an image."""
_SHORTEST = 20 / SIDE


class ToyImages(NamedTuple):
    """B images and their truth.

    images (B,3,S,S) in [0,1]. shape (B,3): of a line its unit normal and offset, (n_x, n_y, d) with n . p = d; of a
    circle its centre and radius (c_x, c_y, r). is_circle (B,) bool: which of the two. ends (B,2,2): of the segment that
    is drawn of a line, nan for a circle. distractors (B,): how many there are.
    """

    images: Tensor
    shape: Tensor
    is_circle: Tensor
    ends: Tensor
    distractors: Tensor


def line_images(
    count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32, circles: tuple[int, int] = (2, 5)
) -> ToyImages:
    """One line segment over 2 to 5 circles of any size, all of random colour on grey, under speckle noise.

    Ends lie up to 5 pixels outside the image, the middle inside; a segment is 20 pixels long at least. Circles have
    radii of 0.1 to 1 image sides and centres up to half a radius outside.
    """
    ends = _segments(count, _SHORTEST, generator)
    distractors = torch.randint(circles[0], circles[1] + 1, (count,), generator=generator)
    radius = _between(0.1, 1.0, (count, 5), generator)
    centre = (torch.rand(count, 5, 2, generator=generator) * (1 + radius[..., None])) - 0.5 * radius[..., None]
    images = torch.full((count, 3, SIDE, SIDE), 0.5)
    for i in range(5):
        images = _paint(images, circle_cover(centre[:, i], radius[:, i]) * _some(distractors > i), generator)
    images = _paint(images, segment_cover(ends), generator)
    is_circle = torch.zeros(count, dtype=torch.bool)
    return ToyImages(_speckled(images, generator).to(dtype), _line(ends).to(dtype), is_circle, ends, distractors)


def shape_images(count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> ToyImages:
    """A line segment or a circle, either with probability one half, over 4 to 10 short strokes, under speckle noise.

    The segment is that of `line_images`; the circle has a radius of 0.1 to 0.4 image sides and lies inside. Strokes are
    5 to 15 pixels long and alike in both kinds of image: what tells the kinds apart is the shape alone.
    """
    is_circle = torch.rand(count, generator=generator) < 0.5
    ends = _segments(count, _SHORTEST, generator)
    radius = _between(0.1, 0.4, (count,), generator)
    centre = torch.rand(count, 2, generator=generator) * (1 - 2 * radius[:, None]) + radius[:, None]
    distractors = torch.randint(4, 11, (count,), generator=generator)
    middle = torch.rand(count, 10, 2, generator=generator)
    angle = _between(0.0, torch.pi, (count, 10), generator)
    reach = _between(2.5 / SIDE, 7.5 / SIDE, (count, 10, 1), generator)
    reach = reach * torch.stack([angle.cos(), angle.sin()], -1)
    images = torch.full((count, 3, SIDE, SIDE), 0.5)
    for i in range(10):
        stroke = torch.stack([middle[:, i] - reach[:, i], middle[:, i] + reach[:, i]], 1)
        images = _paint(images, segment_cover(stroke) * _some(distractors > i), generator)
    cover = torch.where(_some(is_circle) > 0, circle_cover(centre, radius), segment_cover(ends))
    images = _paint(images, cover, generator)
    shape = torch.where(is_circle[:, None], torch.cat([centre, radius[:, None]], -1), _line(ends))
    ends = torch.where(is_circle[:, None, None], torch.nan, ends)
    return ToyImages(_speckled(images, generator).to(dtype), shape.to(dtype), is_circle, ends, distractors)


def circle_cover(centre: Tensor, radius: Tensor) -> Tensor:
    """How much of each pixel a circle, one pixel wide, covers (B,S,S): one minus the distance in pixels, about."""
    x, y = _pixels()
    distance = torch.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
    return (1 - SIDE * (distance - radius[:, None, None]).abs()).clamp_min(0)


def segment_cover(ends: Tensor) -> Tensor:
    """How much of each pixel a segment (B,2,2), one pixel wide, covers. (B,S,S)"""
    x, y = _pixels()
    (ax, ay), (dx, dy) = (v.T[:, :, None, None] for v in (ends[:, 0], ends[:, 1] - ends[:, 0]))
    along = (((x - ax) * dx + (y - ay) * dy) / (dx.square() + dy.square())).clamp(0, 1)
    return (1 - SIDE * torch.hypot(x - ax - along * dx, y - ay - along * dy)).clamp_min(0)


def _pixels() -> tuple[Tensor, Tensor]:
    """x (1,S) and y (S,1) of the pixels' centres."""
    at = (torch.arange(SIDE) + 0.5) / SIDE
    return at[None], at[:, None]


def _between(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _segments(count: int, shortest: float, generator: torch.Generator) -> Tensor:
    """Ends (count,2,2), uniform in the image and 5 pixels around it, if long enough and with their middle in it.

    The first of 24 draws that is: none would be in one of 10^9 images, and then a diagonal is.
    """
    ends = _between(-5 / SIDE, 1 + 5 / SIDE, (count, 24, 2, 2), generator)
    ends[:, -1] = torch.eye(2)[0]
    ends[:, -1, 1] = torch.eye(2)[1]
    middle = ends.mean(2)
    good = ((ends[:, :, 0] - ends[:, :, 1]).norm(dim=-1) >= shortest) & ((middle >= 0) & (middle <= 1)).all(-1)
    return ends[torch.arange(count), good.int().argmax(1)]


def _line(ends: Tensor) -> Tensor:
    """(n_x, n_y, d) of the line through ends (B,2,2)."""
    along = torch.nn.functional.normalize(ends[:, 1] - ends[:, 0], dim=-1)
    normal = torch.stack([-along[:, 1], along[:, 0]], -1)
    return torch.cat([normal, (normal * ends[:, 0]).sum(-1, keepdim=True)], -1)


def _some(condition: Tensor) -> Tensor:
    """(B,) bool as a factor of (B,S,S)."""
    return condition.float()[:, None, None]


def _paint(images: Tensor, cover: Tensor, generator: torch.Generator) -> Tensor:
    """Lay a random colour over each image, as much as `cover` (B,S,S) says."""
    color = torch.rand(len(images), 3, 1, 1, generator=generator)
    return torch.lerp(images, color, cover[:, None])


def _speckled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of a tenth of the brightness."""
    return (images * (1 + 0.1 * torch.randn(images.shape, generator=generator))).clamp(0, 1)
