"""Lines and circles of the plane for sample consensus: through points, distances, fits, errors, all batched.

A line is (n_x, n_y, d), n a unit normal and n . p = d on it, its sign of no matter; a circle is (c_x, c_y, r). Images
are the unit square. Everything is differentiable and finite: where points do not say which line or circle they are of,
one of those they allow is taken, and no gradient passes what was not determined.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from geometry import soft_inliers

__all__ = [
    "CIRCLE", "LINE", "Consensus", "Shape", "border_crossings", "bounded", "consensus", "line_at", "line_error_sum",
]  # fmt: skip


class Shape(NamedTuple):
    """What sample consensus has to know of a kind of model (…,3).

    size: points of a minimal sample. through(points (…,size,2)) -> (…,3). distance(model (…,3), points (…,N,2)) ->
    (…,N). fit(points (…,N,2), share (…,N)) -> (…,3): least squares, where `share` is how much each squared distance
    counts. error(model, truth) -> (…): how far apart they are at most, in image sides.
    """

    size: int
    through: Callable[[Tensor], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]
    fit: Callable[[Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]


class Consensus(NamedTuple):
    """H hypotheses: their scores (B,H), refined models (B,H,3), and how far each point agrees with each (B,H,N)."""

    score: Tensor
    model: Tensor
    agreement: Tensor

    @property
    def best(self) -> Tensor:
        """The refined model (B,3) of the best score."""
        return self.model[torch.arange(len(self.score), device=self.score.device), self.score.argmax(1)]


def consensus(
    shape: Shape, points: Tensor, sets: Tensor, threshold: float, beta: float, trust: Tensor | None = None
) -> Consensus:
    """Score the models through `sets` (B,H,size) of points (B,N,2) by soft inliers, and refine each by its own.

    trust (B,N) in [0,1]: how much a point counts as one of them, all alike if None. Differentiable in points and trust
    throughout: scores, shares and refined models (DSAC++, arXiv 1711.10228, section 3).
    """
    rows = torch.arange(len(points), device=points.device)[:, None, None]
    distance = shape.distance(shape.through(points[rows, sets]), points[:, None])
    agreement = soft_inliers(distance[..., None], threshold, beta)
    if trust is not None:
        agreement = agreement * trust[:, None]
    return Consensus(agreement.sum(-1), shape.fit(points[:, None], agreement), agreement)


def bounded(error: Tensor, scale: float) -> Tensor:
    """An error that stays below `scale`: small ones count in full, of large ones it does not matter how large."""
    return error if math.isinf(scale) else scale * error / (scale + error)


# ---- lines ----


def line_at(point: Tensor, double_angle: Tensor) -> Tensor:
    """The line (…,3) through `point` (…,2) whose normal, at angle a, has (cos 2a, sin 2a) along `double_angle` (…,2).

    A normal and its opposite are the same line: twice their angle is the same, and a network can predict it smoothly.
    """
    known = double_angle.square().sum(-1, keepdim=True) > torch.finfo(point.dtype).tiny ** 0.5
    cos, sin = torch.where(known, double_angle, double_angle.new_tensor([1.0, 0.0])).unbind(-1)
    angle = 0.5 * torch.atan2(sin, cos)
    normal = torch.stack([angle.cos(), angle.sin()], -1)
    return torch.cat([normal, (normal * point).sum(-1, keepdim=True)], -1)


def line_through(points: Tensor) -> Tensor:
    """The line (…,3) through two points (…,2,2); an upright one where they coincide."""
    x, y = (points[..., 1, :] - points[..., 0, :]).unbind(-1)
    # the normal (-y, x), squared as a complex number
    return line_at(points[..., 0, :], torch.stack([y.square() - x.square(), -2 * x * y], -1))


def line_distance(line: Tensor, points: Tensor) -> Tensor:
    """Distances (…,N) of points (…,N,2) from lines (…,3)."""
    coefficients = line * line.new_tensor([1.0, 1.0, -1.0])
    return _combined(coefficients, points[..., 0], points[..., 1], torch.ones_like(points[..., 0])).abs()


def fit_line(points: Tensor, share: Tensor) -> Tensor:
    """The line (…,3) that minimises sum share_i distance_i^2, in closed form; points (…,N,2), share (…,N).

    With S the scatter of the points, n' S n is least where (cos 2a, sin 2a) points away from (S_xx - S_yy, 2 S_xy).
    """
    x, y = points.double().unbind(-1)
    m_x, m_y, xx, xy, yy = _means(share.double(), x, y, x * x, x * y, y * y).unbind(-1)
    away = torch.stack([yy - m_y * m_y - xx + m_x * m_x, 2 * (m_x * m_y - xy)], -1)
    known = away.square().sum(-1, keepdim=True) > _NOTHING**2
    return line_at(torch.stack([m_x, m_y], -1), torch.where(known, away, 0.0)).to(points.dtype)


def border_crossings(line: Tensor) -> Tensor:
    """Where a line (…,3) enters and leaves the unit square (…,2,2), in either order.

    Of a line that misses the square: two points of it close by, so that there is always something to compare. A point
    of the square is at most half a diagonal away from where the line is closest to the centre.
    """
    n, d = line[..., :2], line[..., 2:]
    foot = (d - n.sum(-1, keepdim=True) / 2) * n  # from the centre of the square
    along = torch.stack([-n[..., 1], n[..., 0]], -1)
    steep = along.abs() > 1e-9  # else it never meets those two sides
    slope = torch.where(steep, along, 1.0)
    one, other = (torch.where(steep, (side - foot) / slope, side * torch.inf) for side in (-0.5, 0.5))
    half = math.sqrt(0.5)
    enter = torch.minimum(one, other).amax(-1).clamp(-half, half)
    leave = torch.maximum(one, other).amin(-1).clamp(-half, half)
    return 0.5 + foot[..., None, :] + torch.stack([enter, leave], -1)[..., None] * along[..., None, :]


def line_error(line: Tensor, truth: Tensor) -> Tensor:
    """Distance (…) between border crossings of two lines: the larger of the two, paired the better way."""
    return torch.minimum(*(apart.amax(-1) for apart in _apart(line, truth)))


def line_error_sum(line: Tensor, truth: Tensor) -> Tensor:
    """The same, but the sum of the two: what the published line example (arXiv 1611.05705) calls correct by."""
    return torch.minimum(*(apart.sum(-1) for apart in _apart(line, truth)))


def _apart(line: Tensor, truth: Tensor) -> list[Tensor]:
    """Distances (…,2) between border crossings, paired either way."""
    a, b = border_crossings(line), border_crossings(truth)
    return [_length(a - other) for other in (b, b.flip(-2))]


# ---- circles ----


def circle_through(points: Tensor) -> Tensor:
    """The circle (…,3) through three points (…,3,2); the first, with radius zero, where they are on one line."""
    start = points[..., 0, :]
    (bx, by), (cx, cy) = ((points[..., i, :] - start).unbind(-1) for i in (1, 2))
    b, c = bx.square() + by.square(), cx.square() + cy.square()
    area = 2 * (bx * cy - by * cx)
    apart = area.abs() > 1e-3 * torch.maximum(b, c)  # or else a radius of hundreds of times their distance
    area = torch.where(apart, area, 1.0)
    to_centre = torch.stack([cy * b - by * c, bx * c - cx * b], -1) / area[..., None]
    to_centre = torch.where(apart[..., None], to_centre, 0.0)
    return torch.cat([start + to_centre, _length(to_centre)[..., None]], -1)


def circle_distance(circle: Tensor, points: Tensor) -> Tensor:
    """Distances (…,N) of points (…,N,2) from circles (…,3)."""
    x, y = points.double().unbind(-1)
    c_x, c_y, r = circle.double().unbind(-1)
    # |p - c|^2, multiplied out
    coefficients = torch.stack([torch.ones_like(r), -2 * c_x, -2 * c_y, c_x * c_x + c_y * c_y], -1)
    square = _combined(coefficients, x * x + y * y, x, y, torch.ones_like(x))
    return (_root(square) - r[..., None]).abs().to(points.dtype)


def fit_circle(points: Tensor, share: Tensor) -> Tensor:
    """The circle (…,3) that minimises sum share_i (|p_i - c|^2 - r^2)^2, in closed form (Kasa 1976).

    That is a regression of |p|^2 on 2 p, whose slope is c; r^2 is the mean of |p - c|^2. Where the points are on one
    line: their mean, and how far they are from it.
    """
    x, y = points.double().unbind(-1)
    square = x * x + y * y
    columns = (x, y, x * x, x * y, y * y, square * x, square * y)
    m_x, m_y, xx, xy, yy, u, v = _means(share.double(), *columns).unbind(-1)
    mean, u, v = xx + yy, u - (xx + yy) * m_x, v - (xx + yy) * m_y
    xx, xy, yy = xx - m_x * m_x, xy - m_x * m_y, yy - m_y * m_y
    determinant = xx * yy - xy * xy
    known = (determinant > 1e-6 * (xx + yy).square()) & (xx + yy > _NOTHING)
    centre = torch.stack([yy * u - xy * v, xx * v - xy * u], -1) / torch.where(known, 2 * determinant, 1.0)[..., None]
    centre = torch.where(known[..., None], centre, torch.stack([m_x, m_y], -1))
    radius = _root(mean - 2 * (centre[..., 0] * m_x + centre[..., 1] * m_y) + centre.square().sum(-1))
    return torch.cat([centre, radius[..., None]], -1).to(points.dtype)


def circle_error(circle: Tensor, truth: Tensor) -> Tensor:
    """How far a point of one circle can be from the other (…): |c - c'| + |r - r'|."""
    return _length(circle[..., :2] - truth[..., :2]) + (circle[..., 2] - truth[..., 2]).abs()


# ---- sums over points, each a product of matrices where many models share the points ----

_NOTHING = 1e-12
"""Mean squares of points, in image sides, below which they are all in one place."""


def _combined(coefficients: Tensor, *columns: Tensor) -> Tensor:
    """Sums (…,N) of coefficients (…,K), each times its column (…,N)."""
    return torch.einsum("...k,...nk->...n", coefficients, torch.stack(columns, -1))


def _means(share: Tensor, *columns: Tensor) -> Tensor:
    """Weighted means (…,K) of K columns (…,N). Of float64: moments are differences of them."""
    total = share.sum(-1, keepdim=True)
    return torch.einsum("...n,...nk->...k", share, torch.stack(columns, -1)) / total.clamp_min(1e-300)


def _length(v: Tensor) -> Tensor:
    """Norm (…) of v (…,2), with gradient zero where it is zero."""
    return _root(v.square().sum(-1))


def _root(square: Tensor) -> Tensor:
    """Square root, with value and gradient zero where there is none to take."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


LINE = Shape(2, line_through, line_distance, fit_line, line_error)
CIRCLE = Shape(3, circle_through, circle_distance, fit_circle, circle_error)
