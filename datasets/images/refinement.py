"""Where the marks of a plane target lie, to a few hundredths of a pixel: corners of its print, and discs.

A mark is fitted to the grey values around it, with the blur of the lens and the greys of the print unknown. How
large the patch may be, and how the print lies in it, tell the marks next to it.

- A corner is where two edges cross, whose four quadrants have four greys: corners of a chessboard and of markers alike.
  Seen blurred, two edges that are not perpendicular are not the product of two blurred ones, which would move the
  corners of a marker by a tenth of a pixel: their quadrant is the bivariate normal distribution (Drezner and Wesolowsky
  1990, J. Stat. Comput. Simul. 35). Without that term, for chessboards: Krueger and Woehler 2011, Pattern Recognition
  Letters 32(4).
- A disc is bent as its neighbourhood is, so that its centre is where the circle's is, not the middle of its image.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from geometry import Problem
from geometry.optim import Linearization, levenberg_marquardt

__all__ = ["Marks", "refine_corners", "refine_discs"]

_NEXT = 25
"""Marks of which it is taken how the target lies in the image next to one."""
_CORNER, _DISC = 9, 40
"""Half the side of the largest patch of a corner, and of a disc, px: what the fits gain beyond is little."""
_RIM = 600
"""Pixels of a disc that are fitted: those next to its rim, as no other tells where it is."""
_LEAST = 25
"""Pixels that a patch must have."""
_BLUR = 1.0
"""How far in px what lies beside a patch reaches into it."""
_UNLIKE = 2.0
"""Times the median residual of an image's marks from where one is none, or hidden in part."""
_ALIKE = 0.95
"""Least cosine between the greys of a corner's quadrants and those of its print."""
_CONTRAST = 0.03
"""Least difference of greys of a mark, in parts of the whole range."""
_NODES = [(float((x + 1) / 2), float(w / 2)) for x, w in zip(*np.polynomial.legendre.leggauss(4), strict=True)]
"""Where, and how much: Gauss and Legendre's rule on the unit interval."""
_HALF = math.sqrt(0.5)


class Marks(NamedTuple):
    """points2d (N,2) px; good (N,) bool, False where the greys show no such mark next to the place."""

    points2d: Tensor
    good: Tensor


class _Patches(NamedTuple):
    """The greys around N marks: values (N,M), offsets from the mark (N,M,2) px, inside (N,M), whether the image has
    them; plane (N,M,2): the same offsets in the target's plane, and slopes (N,M,2,2), their derivatives by pixels;
    scale (N,): its unit in px where it is shortest; jacobian (N,2,2) of the image by the plane.
    """

    values: Tensor
    offsets: Tensor
    inside: Tensor
    plane: Tensor
    slopes: Tensor
    scale: Tensor
    jacobian: Tensor


_POWERS = torch.tensor([[i - j, j] for i in range(4) for j in range(i + 1)])
"""Of u and v in the terms of a cubic polynomial (10,2)."""
_LIGHTLY = torch.tensor([0.0] * 3 + [1e-5] * 3 + [1e-4] * 4, dtype=torch.float64)
"""How much is held against each of them."""


def _maps(points2d: Tensor, points3d: Tensor) -> tuple[Tensor, Tensor]:
    """From the image to the target's plane next to each of N marks: coefficients (N,10,2) of `_terms`, whose (u, v) is
    the offset from the mark in units (N,) px.

    Of the marks next to it, in least squares; where these are few, higher orders are as little as may be.
    """
    plane = points3d[:, :2]
    nearest = torch.cdist(plane, plane).argsort(dim=1, stable=True)[:, :_NEXT]
    offsets = points2d[nearest] - points2d[:, None]
    unit = offsets.norm(dim=-1).mean(1).clamp_min(1e-6)
    A = _terms(offsets / unit[:, None, None])[0]
    local = plane[nearest] - plane[:, None]
    return torch.linalg.solve_ex(A.mT @ A + torch.diag(_LIGHTLY), A.mT @ local)[0], unit


def _terms(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The terms (…,10) of a cubic polynomial of offsets (…,2), and their derivatives (…,10,2)."""
    powers = [torch.ones_like(offsets), offsets, offsets.square(), offsets**3]
    slopes = [torch.zeros_like(offsets), powers[0], 2 * offsets, 3 * powers[2]]
    (u, v), (du, dv) = (torch.stack(part, -2).unbind(-1) for part in (powers, slopes))
    a, b = _POWERS.unbind(1)
    return u[..., a] * v[..., b], torch.stack([du[..., a] * v[..., b], u[..., a] * dv[..., b]], -1)


def _patches(image: np.ndarray, points2d: np.ndarray, points3d: Tensor, reach: float, largest: int) -> _Patches:
    """All within `reach` of each mark, in the target's unit, or a square of 2 largest + 1 pixels."""
    at = torch.from_numpy(points2d)
    coefficients, unit = _maps(at, points3d)
    inverse = coefficients[:, 1:3].mT / unit[:, None, None]
    regular = torch.isfinite(coefficients).all((1, 2)) & (torch.linalg.det(inverse).abs() > 1e-12)
    J = torch.linalg.inv(torch.where(regular[:, None, None], inverse, torch.eye(2, dtype=inverse.dtype)))
    scale = torch.linalg.svdvals(J)[:, 1]
    span = math.ceil(min(reach * float(J.abs().sum(-1).max()), 100 * largest))
    n = max(2, min(largest, span))
    steps = torch.arange(-n, n + 1)
    pixels = at.round().long()[:, None] + torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
    size = torch.tensor(image.shape[::-1])
    inside = ((pixels >= 0) & (pixels < size)).all(-1) & regular[:, None]
    u, v = pixels.clamp_min(0).minimum(size - 1).unbind(-1)
    offsets = pixels - at[:, None]
    # from where the map has the mark itself
    terms, along = _terms(offsets / unit[:, None, None])
    plane = (terms[..., 1:] @ coefficients[:, 1:]).nan_to_num()
    slopes = (coefficients[:, None].mT @ along / unit[:, None, None, None]).nan_to_num()
    return _Patches(torch.from_numpy(image)[v, u].to(at) / 255, offsets, inside, plane, slopes, scale, J)


def _fitting(residual: Tensor, weights: Tensor, contrast: Tensor) -> Tensor:
    """Which marks (N,) are as their model says: residuals (N,M) no larger than others' of the image, and than greys."""
    rms = (residual.square().sum(1) / weights.sum(1).clamp_min(1)).sqrt()
    enough = weights.sum(1) >= _LEAST
    typical = rms[enough].median() if enough.any() else rms.new_zeros(())
    return enough & (contrast > _CONTRAST) & (rms < (_UNLIKE * typical).clamp_min(0.05 * contrast))


def _corner(x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The greys (N,M) of blurred corners x (N,9) at offsets (N,M,2) px, and their derivatives (N,M,9).

    x: place px, directions of both edges, logarithm of the blur in px, four greys.
    """
    _, _, a, b, blur, *greys = x[..., None].unbind(1)
    (dx, dy), scale = (offsets - x[:, None, :2]).unbind(-1), torch.exp(-blur)
    h, k = (scale * (dx * t.sin() - dy * t.cos()) for t in (a, b))
    one, two = torch.erf(h * _HALF), torch.erf(k * _HALF)
    # the mean of the product of both signs under the blur: more than that of the means, unless perpendicular
    slant, both = math.pi / 2 - torch.acos(torch.cos(a - b)), one * two
    for node, weight in _NODES:
        t = slant * node
        exponent = (h * h + k * k - 2 * h * k * t.sin()) / (2 * t.cos().square())
        both = both + 2 / math.pi * weight * slant * torch.exp(-exponent)
    rho, across = torch.cos(a - b), torch.sin(a - b)
    width = across.abs().clamp_min(1e-6)
    by_h, by_k = (
        2 / math.sqrt(2 * math.pi) * torch.exp(-p * p / 2) * (g + greys[3] * torch.erf((q - rho * p) / width * _HALF))
        for p, q, g in ((h, k, greys[1]), (k, h, greys[2]))
    )
    turn = 2 / math.pi * greys[3] * across.sign() * torch.exp(-(h * h + k * k - 2 * rho * h * k) / (2 * width * width))
    rows = [
        -scale * (by_h * a.sin() + by_k * b.sin()), scale * (by_h * a.cos() + by_k * b.cos()),
        scale * by_h * (dx * a.cos() + dy * a.sin()) - turn, scale * by_k * (dx * b.cos() + dy * b.sin()) + turn,
        -by_h * h - by_k * k, torch.ones_like(h), one, two, both,
    ]  # fmt: skip
    return greys[0] + greys[1] * one + greys[2] * two + greys[3] * both, torch.stack(rows, -1)


def _corner_residual(x: Tensor, values: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """(M,) of one corner (9,)."""
    return weights * (_corner(x[None], offsets[None])[0][0] - values)


def _corner_equations(
    x: Tensor, values: Tensor, offsets: Tensor, weights: Tensor, exact: bool = False
) -> Linearization:
    """Normal equations of N corners; the steps taken here need no Hessian."""
    greys, J = _corner(x, offsets)
    r, J = weights * (greys - values), weights[..., None] * J
    return Linearization(0.5 * r.square().sum(1), (r[:, None] @ J)[:, 0], J.mT @ J)


_CORNERS = Problem(_corner_residual, dof=9, linearize=_corner_equations)


def _disc(x: Tensor, values: Tensor, plane: Tensor, slopes: Tensor, weights: Tensor) -> Tensor:
    """(M,) of x (10,): place in the plane; the symmetric matrix that makes it a unit disc; logarithm of the blur in px;
    mean and half difference of two greys, and what the light adds to either, in radii along x and y. slopes (M,2,2): of
    plane (M,2) by pixels."""
    A = x[[2, 3, 3, 4]].view(2, 2)
    round_ = (plane - x[:2]) @ A
    r = (round_.square().sum(-1) + 1e-12).sqrt()
    # from the rim, in pixels, to first order
    steep = (((round_ / r[:, None]) @ A)[:, None] @ slopes)[:, 0].norm(dim=-1)
    # light falls on print and ground alike
    light = 1 + round_ @ x[8:]
    return weights * (light * (x[6] + x[7] * torch.erf((r - 1) / steep * torch.exp(-x[5]) * _HALF)) - values)


def refine_corners(
    image: np.ndarray, points2d: np.ndarray, points3d: Tensor, shape: Tensor, clear: tuple[float, float]
) -> Marks:
    """The corners of a target's print next to points2d (N,2) px, in a grey image (H,W) of bytes.

    points3d (N,3): of the plane target, whose edges run along x and y. clear: in its unit, how far from a corner's
    edges, and along them, there is nothing else. shape (N,3): how greys differ in its quadrants, as the coefficients of
    sign(-y), sign(x) and their product about the corner, whatever their scale: (0, 0, 1) on a chessboard.
    """
    start, (near, far) = torch.from_numpy(points2d), clear
    values, offsets, inside, plane, _, scale, J = _patches(image, points2d, points3d, far, _CORNER)
    beside, along = plane.abs().aminmax(dim=-1)
    margin = _BLUR / scale[:, None]
    # of a small print two pixels at least, for want of better
    fits = (beside < (near - margin).maximum(2 * margin)) & (along < (far - margin).maximum(3 * margin))
    weights = (fits & inside).to(start)
    angles = torch.atan2(J[:, 1], J[:, 0])
    signs = [(offsets[..., 0] * a.sin() - offsets[..., 1] * a.cos()).sign() for a in angles[..., None].unbind(1)]
    basis = torch.stack([torch.ones_like(values), *signs, signs[0] * signs[1]], -1)
    weighted = (weights[..., None] * basis).mT
    greys = torch.linalg.solve(weighted @ basis + 1e-6 * torch.eye(4).to(values), weighted @ values[..., None])[..., 0]
    x0 = torch.cat([torch.zeros_like(start), angles, torch.full_like(start[:, :1], -0.3), greys], 1)
    x, *_ = levenberg_marquardt(_CORNERS, x0, (values, offsets, weights), 40, 1e-6)
    residual = weights * (_corner(x, offsets)[0] - values)
    # what hides a quadrant makes another corner, with its own edges
    alike = torch.nn.functional.cosine_similarity(x[:, 6:], shape.to(x), dim=1).abs() > _ALIKE
    # it lies well within its patch
    good = x[:, :2].norm(dim=1) < 0.5 * (weights * offsets.norm(dim=-1)).amax(1)
    good = good & alike & _fitting(residual, weights, 2 * x[:, 6:].abs().amax(1)) & (x[:, 4] < math.log(4.0))
    return Marks(torch.where(good[:, None], start + x[:, :2], start), good)


def refine_discs(image: np.ndarray, points2d: np.ndarray, points3d: Tensor, spacing: float) -> Marks:
    """The centres of a target's discs next to points2d (N,2) px, in a grey image (H,W) of bytes.

    points3d (N,3): of the plane target; spacing: in its unit, from a disc to the nearest other one.
    """
    start = torch.from_numpy(points2d)
    values, _, inside, plane, slopes, _, J = _patches(image, points2d, points3d, 0.5 * spacing, _DISC)
    distance = plane.norm(dim=-1)
    weights = (inside & (distance < 0.5 * spacing)).to(start)

    def mean(of: Tensor, where: Tensor) -> Tensor:
        return (where * of).sum(1) / where.sum(1).clamp_min(1)

    # which part of the patch is as dark as its middle tells the radius
    middle, rim = (
        mean(values, weights * (distance < 0.1 * spacing)),
        mean(values, weights * (distance > 0.45 * spacing)),
    )
    share = mean((values - rim[:, None]) / (middle - rim)[:, None], weights).nan_to_num(0.2).clamp(0.05, 0.8)
    A = 2 / (share.sqrt() * spacing)
    away = ((distance * A[:, None] - 1).abs() + 1e9 * (weights == 0)).topk(min(_RIM, values.shape[1]), largest=False)[1]
    values, weights = values.gather(1, away), weights.gather(1, away)
    row = torch.arange(len(away))[:, None]
    plane, slopes = plane[row, away], slopes[row, away]
    none = torch.zeros_like(A)
    x0 = torch.stack(
        [none, none, A, none, A, torch.full_like(A, -0.3), (middle + rim) / 2, (rim - middle) / 2, none, none], 1
    )
    x, *_ = levenberg_marquardt(Problem(_disc, dof=10), x0, (values, plane, slopes, weights), 40, 1e-6)
    residual = vmap(_disc)(x, values, plane, slopes, weights)
    good = (x[:, :2].norm(dim=1) < 0.25 * spacing) & _fitting(residual, weights, 2 * x[:, 7].abs())
    return Marks(torch.where(good[:, None], start + (J @ x[:, :2, None])[..., 0], start), good)
