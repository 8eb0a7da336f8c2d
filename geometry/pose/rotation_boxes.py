"""All rotations as boxes of quaternions, halved again and again, and how low forms in the quaternion get within a box.

Of a quaternion q, up to its length, one of the largest entries is made 1; the other three are then in a cube, and four
cubes hold every rotation. The entries of R |q|^2 and |q|^2 are sums of the ten products k of two entries of q. So a
quadratic form in (R, 1) is, up to the positive factor |q|^4, a quartic in three numbers within a box, and it is
nowhere lower than the least of its coefficients in Bernstein's basis (Garloff 1986, "Convergent bounds for the range of
multivariate polynomials").

Polynomials in a box are in a, |a_i| <= 1, about its centre: quadratics by the coefficients of the ten products of two
of (1, a_1, a_2, a_3), quartics by those of the 35 monomials.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3

__all__ = ["Boxes", "Tables", "tables"]

_PAIRS = tuple(itertools.combinations_with_replacement(range(4), 2))
_SAME = [first == second for first, second in _PAIRS]
_MONOMIALS = tuple(e for e in itertools.product(range(5), repeat=3) if sum(e) <= 4)
_CORNERS = tuple(itertools.product((-1, 1), repeat=3))


class Tables(NamedTuple):
    """Constant matrices in float64.

    entries (10,10): of (R, 1) |q|^2 by k. quartics (100,35): of products of two of the ten products. least2 (10,27),
    least4 (35,125): coefficients in Bernstein's basis of quadratics and quartics. halves2 (10,80), halves4 (35,280):
    the same polynomials in the eight halves of the cube, whose centres are at half its corners (8,3).
    """

    entries: Tensor
    quartics: Tensor
    least2: Tensor
    least4: Tensor
    halves2: Tensor
    halves4: Tensor
    corners: Tensor


@lru_cache(maxsize=8)
def tables(device: torch.device) -> Tables:
    """The tables, made once a device."""
    pairs = [_exponents(pair) for pair in _PAIRS]
    quartics = torch.zeros(100, 35)
    for row, (a, b) in enumerate(itertools.product(_PAIRS, repeat=2)):
        quartics[row, _MONOMIALS.index(_exponents((*a, *b)))] = 1

    def bernstein(monomials: Sequence[tuple[int, ...]], degree: int) -> Tensor:
        every = list(itertools.product(range(degree + 1), repeat=3))
        return _by_axes([_bernstein(degree)] * 3, monomials, every)

    def halves(monomials: Sequence[tuple[int, ...]]) -> Tensor:
        return torch.cat([_by_axes([_half(side) for side in at], monomials, monomials) for at in _CORNERS], 1)

    corners = torch.tensor(_CORNERS)
    made = (
        _entries(), quartics, bernstein(pairs, 2), bernstein(_MONOMIALS, 4), halves(pairs), halves(_MONOMIALS), corners,
    )  # fmt: skip
    with torch.inference_mode(False):
        return Tables(*(each.to(device, torch.float64, copy=True) for each in made))


def _entries() -> Tensor:
    """R row after row and 1, times |q|^2, by the products of two of q = (w, x, y, z): a quadratic map, polarised."""

    def entries(q: Tensor) -> Tensor:
        return torch.cat([se3.rotation_from_quat_wxyz(q).flatten(), q.new_ones(1)]) * q.square().sum()

    one = torch.eye(4, dtype=torch.float64)
    alone = [entries(q) for q in one]
    columns = [alone[i] if i == j else entries(one[i] + one[j]) - alone[i] - alone[j] for i, j in _PAIRS]
    return torch.stack(columns, -1)


def _exponents(factors: tuple[int, ...]) -> tuple[int, ...]:
    """Of a product of entries of (1, a_1, a_2, a_3)."""
    return tuple(factors.count(axis) for axis in (1, 2, 3))


def _by_axes(axes: Sequence[Tensor], rows: Sequence[tuple[int, ...]], columns: Sequence[tuple[int, ...]]) -> Tensor:
    """The linear map of polynomials that does to each variable what axes (k,l) do: from rows to columns."""
    made = torch.ones(len(rows), len(columns), dtype=torch.float64)
    for axis, one in enumerate(axes):
        made *= one[[row[axis] for row in rows]][:, [column[axis] for column in columns]]
    return made


def _bernstein(degree: int) -> Tensor:
    """Bernstein's coefficients (k, coefficient) of a^k on [-1, 1]: its blossom, the mean of products of k ends."""
    ends = [[1] * i + [-1] * (degree - i) for i in range(degree + 1)]
    some = [[list(itertools.combinations(each, k)) for each in ends] for k in range(degree + 1)]
    return torch.tensor([[sum(map(math.prod, each)) / len(each) for each in row] for row in some], dtype=torch.float64)


def _half(side: int) -> Tensor:
    """a^k with a = (side + b) / 2 as a polynomial in b: (k, power of b)."""
    return torch.tensor(
        [[math.comb(k, j) * side ** (k - j) / 2**k if j <= k else 0 for j in range(5)] for k in range(5)],
        dtype=torch.float64,
    )


class Boxes(NamedTuple):
    """Boxes of half the width `half`: owner (n,) problem, face (n,) entry of q that is 1, centre (n,3) of the next."""

    owner: Tensor
    face: Tensor
    centre: Tensor
    half: float

    @staticmethod
    def everything(owner: Tensor) -> "Boxes":
        """The four boxes of each of some problems (m,)."""
        face = torch.arange(4, device=owner.device).repeat(len(owner))
        centre = torch.zeros(len(face), 3, dtype=torch.float64, device=owner.device)
        return Boxes(owner.repeat_interleave(4), face, centre, 1.0)

    def some(self, which: Tensor) -> "Boxes":
        """Those of a mask (n,)."""
        return Boxes(self.owner[which], self.face[which], self.centre[which], self.half)

    def split(self) -> "Boxes":
        """The eight of half the width in each, one after the other."""
        half = self.half / 2
        centre = (self.centre[:, None] + half * tables(self.centre.device).corners).flatten(0, 1)
        return Boxes(self.owner.repeat_interleave(8), self.face.repeat_interleave(8), centre, half)

    def quaternions(self, at: Tensor) -> Tensor:
        """Quaternions (n,m,4) at places (m,3) of the cube |a_i| <= 1."""
        places = self.centre[:, None] + self.half * at
        q = torch.cat([torch.ones_like(places[..., :1]), places], -1)
        order = (torch.arange(4, device=at.device) - self.face[:, None]) % 4
        return q.gather(-1, order[:, None].expand_as(q))

    def products(self) -> Tensor:
        """The matrices (n,10,10) of the products of two of q by those of two of (1, a_1, a_2, a_3)."""
        eye = torch.eye(3, dtype=self.centre.dtype, device=self.centre.device)
        ends = self.quaternions(torch.cat([0 * eye[:1], eye])).permute(1, 2, 0)
        # q = (1, a) L, with L (4,4,n): indices before boxes are whole rows of memory
        L = torch.cat([ends[:1], ends[1:] - ends[:1]]).contiguous()
        one, other = ([pair[i] for pair in _PAIRS] for i in (0, 1))
        La, Lb = L[:, one], L[:, other]
        twice = La[one] * Lb[other] + La[other] * Lb[one]
        twice[_SAME] /= 2
        return twice.permute(2, 1, 0).contiguous()

    def least_length(self) -> Tensor:
        """The least |q|^2 (n,) within."""
        return 1 + (self.centre.abs() - self.half).clamp_min(0).square().sum(-1)
