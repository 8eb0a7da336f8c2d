"""A proof that a pose is the global minimum of the reprojection error, by branch and bound on rotations.

The claim: no pose with all points ahead has a smaller sum of squares F = sum |r_i|^2 than the one found has, but for
rounding (`basin.slack`). The proof has three parts (docs/certificate.md).

1. Of a pose with all depths z_i > 0, |r_i| z_i = |C_i (R, t)| is linear in the pose. Where z_i <= g_i (t_z + c), and
   that is not negative, sum |r_i|^2 <= F asks for sum |C_i (R, t)|^2 / g_i^2 <= F (t_z + c)^2. What is left when t_x
   and t_y take their best values is, over t_z + c, a parabola with a positive leading coefficient; it has a root, and
   a positive one, only where a quartic in the quaternion is not positive and a quadratic form is (`Form`). A box of
   rotations (`rotation_boxes`) in which Bernstein's coefficients exclude that holds no better pose.
2. With c the largest distance of a point from their mean, which is where t is taken, all g_i are 1. The roots bound
   t_z within a box, and so the depths; with them g_i is nearly what it should be.
3. In a box next to a known minimum, the depths bound how much better a pose in it could be, therefore how far it is
   from that minimum; if that is within its basin (`geometry.pose.basin`), there is none.

A box that none excludes is divided into eight. What is left after the last division is not certified.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.optim import linearize, opaque
from geometry.pose.basin import Basin, Views, basin, slack
from geometry.pose.data import PnPData
from geometry.pose.problem import pnp_problem
from geometry.pose.rotation_boxes import Boxes, tables

__all__ = ["certified"]

_DIVISIONS = 10
_NARROW = 3  # divisions from which on boxes have depths of their own
_MOST = 128  # boxes of a problem that may be left after a division: more are those of one that is beaten
_TOGETHER = 256, 32768  # problems, and points of these, that are looked at together
_ROUNDING = 1e-11  # of the sum of all terms of a form
# Cosine of half the angle to a minimum whose basin is asked: no box after so many divisions has corners as near to q
# and to -q at once.
_NEAR = 0.8


class Form(NamedTuple):
    """What a better pose must fulfil, with k the products of two entries of its quaternion: k . square k <= 0 and
    ahead . k > 0.

    square (n,10,10), ahead (n,10), room (n,): the leading coefficient of the parabola over t_z + shift (n,), whose
    roots are (ahead . k +- sqrt(-room k . square k)) / room / |q|^2.
    """

    square: Tensor
    ahead: Tensor
    room: Tensor
    shift: Tensor


class Within(NamedTuple):
    """A form within boxes, as polynomials in them (`rotation_boxes`): square a quartic (n,35), ahead and length, |q|^2,
    quadratics (n,10); room and shift as in `Form`."""

    square: Tensor
    ahead: Tensor
    length: Tensor
    room: Tensor
    shift: Tensor

    def some(self, which: Tensor) -> "Within":
        """Those of a mask (n,)."""
        return Within(*(each[which] for each in self))

    def split(self) -> "Within":
        """In the eight halves of each box, one after the other."""
        table = tables(self.room.device)
        square = (self.square @ table.halves4).view(-1, 35)
        ahead, length = ((each @ table.halves2).view(-1, 10) for each in (self.ahead, self.length))
        return Within(square, ahead, length, self.room.repeat_interleave(8), self.shift.repeat_interleave(8))

    def least(self) -> Tensor:
        """What the quartic is nowhere below (n,)."""
        return (self.square @ tables(self.room.device).least4).amin(-1) - _ROUNDING * self.square.abs().sum(-1)

    def possible(self, least: Tensor) -> Tensor:
        """Whether a better pose may be there (n,): NaN excludes none."""
        most = (self.ahead @ tables(self.room.device).least2).amax(-1) + _ROUNDING * self.ahead.abs().sum(-1)
        return ~((least > 0) | (most <= 0))


class Known(NamedTuple):
    """Of problems: their views, sums (B,N,78) of products of C_i, the squares (B,) to beat, and the basins of two
    minima of each, (B,2,…)."""

    views: Views
    products: Tensor
    squares: Tensor
    basins: Basin


def certified(data: PnPData, pose: Tensor, second: Tensor | None, ratio: Tensor | None) -> Tensor:
    """Whether poses (B,4,4) are proved to be global minima, (B,) bool. data: without a lens, in float64.

    second (B,4,4): another minimum, where ratio (B,) is above 0; boxes about it are excluded by its own basin.
    """
    if second is None or ratio is None:
        second, ratio = pose, torch.zeros_like(pose[:, 0, 0])

    def find(pose: Tensor, second: Tensor, ratio: Tensor, *data: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        full = PnPData(*data).masked()
        count, points, _ = full.points2d.shape
        size = max(1, min(_TOGETHER[0], _TOGETHER[1] // points))
        parts = []
        for begin in range(0, count, size):
            part = slice(begin, begin + size)
            some = PnPData(*(each[part] for each in full))
            parts.append(_certified(some, pose[part], second[part], ratio[part] > 0))
        return torch.cat(parts) if parts else full.mask.any(-1), ()

    proved, _ = opaque(find, pose, second, ratio, *data)
    return proved


def _certified(data: PnPData, pose: Tensor, second: Tensor, two: Tensor) -> Tensor:
    """`certified`, of problems that are looked at together."""
    data, frame = data.centred(scaled=True)
    views = _views(data)
    poses = torch.stack([frame.to_frame(pose), frame.to_frame(second)], 1).flatten(0, 1)
    each = torch.arange(len(pose), device=pose.device).repeat_interleave(2)
    local = linearize(pnp_problem(), poses, tuple(part[each] for part in data), exact=True)
    found = basin(poses, views.at(each), local)
    basins = Basin(*(part.unflatten(0, (-1, 2)) for part in found))
    # that nothing in a basin is better than its minimum tells nothing of a minimum that is better than the first
    other = two & (basins.squares[:, 1] >= basins.squares[:, 0])
    basins.radius[:, 1] = torch.where(other, basins.radius[:, 1], 0.0)
    squares = basins.squares[:, 0] + slack(views, basins.squares[:, 0])
    known = Known(views, _pairs(views), squares, basins)
    form = _coarse(known)
    proved = (basins.radius[:, 0] > 0) & (form.room > 0)
    return proved & ~_possible(known, form, proved)


def _possible(known: Known, form: Form, asked: Tensor) -> Tensor:
    """Whether a better pose may be in some box (B,), of the problems that are asked for; the others' is False."""
    boxes = Boxes.everything(asked.nonzero()[:, 0])
    within = _within(boxes, Form(*(each[boxes.owner] for each in form)))
    left = torch.zeros_like(asked)
    for division in range(_DIVISIONS + 1):
        least = within.least()
        possible = within.possible(least)
        boxes, within, least = boxes.some(possible), within.some(possible), least[possible]
        if division >= _NARROW and len(least):
            within, possible = _narrowed(known, boxes, within, least)
            boxes, within = boxes.some(possible), within.some(possible)
        count = torch.bincount(boxes.owner, minlength=len(asked))
        left |= count > (0 if division == _DIVISIONS else _MOST)
        open_ = ~left[boxes.owner]
        boxes, within = boxes.some(open_), within.some(open_)
        if not len(boxes.owner):
            break
        boxes, within = boxes.split(), within.split()
    return left


def _views(data: PnPData) -> Views:
    """Points that are centred, as they are in the plane at z = 1."""
    visible = data.mask[..., None]
    camera = data.K[:, None, :2, :2]
    off = (data.points2d - data.K[:, None, :2, 2])[..., None]
    seen = torch.linalg.solve(camera, off)[..., 0]
    whiten = data.weights[..., None] * camera
    return Views(
        torch.where(visible, data.points3d, 0.0), torch.where(visible, seen, 0.0),
        torch.where(visible[..., None], whiten, 0.0), data.mask,
    )  # fmt: skip


def _pairs(views: Views) -> Tensor:
    """Sums (B,N,78) over both residuals of the products of the 12 entries of C_i, by R row after row and t."""
    X, seen, W, _ = views
    C = torch.cat([W, -(W @ seen[..., None])], -1)  # by the point in the frame of the camera
    rows = torch.cat([(C[..., :, None] * X[:, :, None, None]).flatten(-2), C], -1)  # (B,N,2,12)
    i, j = torch.triu_indices(12, 12, device=X.device)
    return (rows[..., i] * rows[..., j]).sum(2)


def _form(sums: Tensor, shift: Tensor, squares: Tensor) -> Form:
    """The form of sums (n,78) over points of C^T C / g^2, for t_z + shift (n,), and the squares (n,) to beat."""
    n = len(sums)
    i, j = torch.triu_indices(12, 12, device=sums.device)
    G = sums.new_empty(n, 12, 12)
    G[:, i, j], G[:, j, i] = sums, sums
    # t_x and t_y take their best values
    a, b, d = G[:, 9, 9], G[:, 9, 10], G[:, 10, 10]
    inverse = torch.stack([d, -b, -b, a], -1).unflatten(-1, (2, 2)) / (a * d - b * b)[:, None, None]
    rest = [*range(9), 11]
    cross = G[:, 9:11][..., rest]
    G = G[:, rest][..., rest] - cross.mT @ (inverse @ cross)
    own, mixed, alpha = G[:, :9, :9], G[:, :9, 9], G[:, 9, 9]
    # t_z = s - shift: the entry 1 of (R, 1) has what the shift brings
    back = -shift[:, None]
    square = torch.cat(
        [
            torch.cat([own, (back * mixed)[..., None]], -1),
            torch.cat([back * mixed, back.square() * alpha[:, None]], -1)[:, None],
        ],
        1,
    )
    ahead = -torch.cat([mixed, back * alpha[:, None]], -1)
    room = alpha - squares
    room = torch.where(room > 1e-6 * alpha, room, 0.0)
    square = square - ahead[:, :, None] * ahead[:, None] / torch.where(room > 0, room, 1.0)[:, None, None]
    entries = tables(sums.device).entries
    return Form(entries.T @ square @ entries, ahead @ entries, room, shift)


def _coarse(known: Known) -> Form:
    """The forms of problems (B,) for all rotations."""
    shift = known.views.points.norm(dim=-1).amax(-1)
    return _form(known.products.sum(1), shift, known.squares)


def _within(boxes: Boxes, form: Form) -> Within:
    """Forms (n,) within their boxes."""
    table, products = tables(form.room.device), boxes.products()
    square = (products.mT @ form.square @ products).flatten(1) @ table.quartics
    length = table.entries[9] @ products
    return Within(square, (form.ahead[:, None] @ products)[:, 0], length, form.room, form.shift)


def _narrowed(known: Known, boxes: Boxes, within: Within, least: Tensor) -> tuple[Within, Tensor]:
    """Forms with the depths of their own boxes, and whether a better pose is still possible (n,)."""
    owner, counts = boxes.owner, torch.bincount(boxes.owner, minlength=len(known.squares)).tolist()
    X, visible = known.views.points, known.views.visible[boxes.owner]
    corners = boxes.quaternions(tables(least.device).corners)
    corners = corners / corners.norm(dim=-1, keepdim=True)
    middle = boxes.quaternions(torch.zeros(1, 3, dtype=X.dtype, device=X.device))
    R = se3.rotation_from_quat_wxyz(middle[:, 0])
    # |exp(omega) - I| = 2 sin(|omega| / 2) of the rotations from the middle to the others
    cosine = (corners * middle).sum(-1).amin(-1) / middle[:, 0].norm(dim=-1)
    reach = 2 * (1 - cosine.square()).clamp_min(0).sqrt()
    rows = zip(R[:, 2].split(counts), X, strict=True)
    highest = torch.cat([row @ points.T for row, points in rows]) + reach[:, None] * X.norm(dim=-1)[owner]  # (R X)_z
    nearest, farthest = _depths(boxes, within, least)
    nearest = torch.maximum(nearest, torch.where(visible, -highest, -torch.inf).amax(-1))
    deepest = highest + farthest[:, None]
    gone = (farthest <= nearest) | (visible & (deepest <= 0)).any(-1)
    bounded = nearest > 0
    ratio = 1 + torch.maximum(highest / nearest[:, None], highest / farthest[:, None])
    inverse = torch.where(visible, ratio, torch.inf).square().reciprocal()
    parts = zip(inverse.split(counts), known.products, strict=True)
    form = _form(torch.cat([part @ products for part, products in parts]), 0 * nearest, known.squares[owner])
    better = bounded & (form.room > 0)
    narrow = _within(boxes, form)
    within = Within(
        *(torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(narrow, within, strict=True))
    )
    possible = within.possible(torch.where(better, within.least(), least))
    return within, possible & ~gone & ~(bounded & _in_basin(known, owner, corners, deepest))


def _depths(boxes: Boxes, within: Within, least: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest t_z (n,) of a better pose in every box."""
    shortest = boxes.least_length()
    root = (-within.room * least).clamp_min(0).sqrt() / shortest
    at = within.ahead[:, 0] / within.length[:, 0]
    other = (within.ahead - at[:, None] * within.length) @ tables(least.device).least2
    low = at + other.amin(-1).clamp_max(0) / shortest
    high = at + other.amax(-1).clamp_min(0) / shortest
    return (low - root) / within.room - within.shift, (high + root) / within.room - within.shift


def _in_basin(known: Known, owner: Tensor, corners: Tensor, deepest: Tensor) -> Tensor:
    """Whether every better pose in a box would be in the basin of a minimum (n,). deepest (n,N): its depths' bounds."""
    basins = Basin(*(each[owner] for each in known.basins))
    cosine = (corners @ basins.quat_wxyz.mT).abs().amin(1).clamp_max(1)  # (n,2), of half the largest angle
    angle = 2 * torch.acos(cosine)
    visible = known.views.visible[owner][:, None]
    grown = torch.where(visible, deepest[:, None] / basins.depth, 0.0).amax(-1)
    bend = basins.bend * angle.square() / 2
    size = basins.squares.sqrt()
    gain = grown.square() * known.squares[owner][:, None] - basins.squares + 2 * (basins.slope + size) * bend
    moved = basins.slope + (basins.slope.square() + gain).clamp_min(0).sqrt() + bend
    return ((basins.stretch.sqrt() * moved < basins.radius) & (cosine > _NEAR)).any(-1)
