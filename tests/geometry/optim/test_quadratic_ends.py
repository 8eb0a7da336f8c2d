"""Quadratic programs at which an interior point ends far off, or with more than the multipliers ask for.

Each kind is made so that the rows that hold are known, and the minimum is that of a linear system.
"""

import pytest
import torch
from torch import Tensor

from geometry import quadratic_program
from tests.geometry.optim.programs import times
from tests.numbers import DOUBLE, close


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, **DOUBLE)


def where_held(Q: Tensor, p: Tensor, C: Tensor, d: Tensor) -> Tensor:
    """x (B,n) of the minimum on the rows C x = d, all of which hold."""
    k, n = C.shape[1:]
    K = torch.cat([torch.cat([Q, C.mT], -1), torch.cat([C, C.new_zeros(len(C), k, k)], -1)], 1)
    return torch.linalg.solve(K, torch.cat([-p, d], -1))[:, :n]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (3, 8)])
def test_multipliers_are_no_larger_than_the_cost_asks_for(n: int, m: int) -> None:
    """All rows pass through one point, but for bounds that are none.

    Where no other is feasible, multipliers may be as large as one likes and prove nothing: they were up to 1e21, and
    what the rounding of the slack makes of these was more than the cost.
    """
    g = torch.Generator().manual_seed(1)
    B = 300
    root, p, G, x = normal(g, B, n, n), normal(g, B, n), normal(g, B, m, n), normal(g, B, n)
    unit = 10 ** (8 * torch.rand(B, m, generator=g, **DOUBLE) - 4)
    G = unit[..., None] * G
    Q, h = root @ root.mT, times(G, x)
    h[:, 0] = torch.where(torch.arange(B) % 2 == 0, h[:, 0], 1e13)
    found = quadratic_program(Q, p, G, h, throw=True)
    z = found.inequality
    force = (p.abs() + times(Q.abs(), found.x.abs())).amax(-1)
    assert ((z[..., None] * G).abs().amax((1, 2)) < 1e6 * force).all()
    slope = times(Q, found.x) + p + times(G.mT, z)
    assert (slope.abs().amax(-1) < 1e-9 * force).all()
    gap = ((h - times(G, found.x)).abs() * z).sum(-1)
    assert (gap < 1e-9 * force).all()
    assert (z >= 0).all()


@pytest.mark.parametrize("bound", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("other", [1e8, 1e13])
def test_where_the_cost_is_flat_the_row_at_the_end_of_the_way_is_found(bound: float, other: float) -> None:
    """Q has rank n - 1, p falls along the rest, and of the two rows one ends that way, near or far."""
    g = torch.Generator().manual_seed(2)
    B, n = 200, 3
    root, p = normal(g, B, n, n - 1), normal(g, B, n)
    Q = root @ root.mT
    way = torch.linalg.svd(root)[0][..., -1:]
    way = -way * (p[:, None] @ way).sign()
    G = normal(g, B, 2, n)
    G = G * (G @ way).sign() * torch.tensor([[1.0], [-1.0]], **DOUBLE)
    clear = ((G @ way).abs().amin((1, 2)) > 0.05) & ((p[:, None] @ way).abs()[:, 0, 0] > 0.05)
    h = torch.tensor([[bound, other]], **DOUBLE).expand(B, -1)
    Q, p, G, h = (t[clear] for t in (Q, p, G, h))
    assert len(p) > 120
    found = quadratic_program(Q, p, G, h, throw=True)
    expected = where_held(Q, p, G[:, :1], h[:, :1])
    size = expected.abs().amax(-1, keepdim=True)
    close(found.x / size, expected / size, 1e-7)


@pytest.mark.parametrize("q", [1e-4, 1e-6, 1e-8])
def test_a_row_that_does_not_hold_is_no_unit(q: float) -> None:
    """A steep row in one unknown, far from the minimum, once set the units of x, in which the other curvature was below
    the proximal term."""
    g = torch.Generator().manual_seed(3)
    B = 200
    root, p = normal(g, B, 2, 2), normal(g, B, 2)
    Q = q * (root @ root.mT + 0.1 * torch.eye(2, **DOUBLE))
    G = torch.tensor([[[2700.0, -3.0]]], **DOUBLE).repeat(B, 1, 1)
    expected = torch.linalg.solve(Q, -p)
    G = -G * times(G, expected).sign()[..., None]
    found = quadratic_program(Q, p, G, torch.ones(1, 1, **DOUBLE), throw=True)
    size = expected.abs().amax(-1, keepdim=True)
    close(found.x / size, expected / size, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_x_is_as_exact_as_the_data_are(dtype: torch.dtype) -> None:
    """Rank-deficient Q and as many rows as that asks for: x is off by no more than rounding each datum may move it, a
    few times over (Higham 2002, theorem 7.4). It was a thousand times that."""
    g = torch.Generator().manual_seed(4)
    B, n, rank, m = 1000, 4, 3, 8
    root, G, x = normal(g, B, n, rank), normal(g, B, m, n), normal(g, B, n)
    Q = root @ root.mT
    z = torch.where(torch.arange(m) < n - rank, 10 ** (-2 * torch.rand(B, m, generator=g, **DOUBLE)), 0.0)
    s = torch.where(z > 0, 0.0, 0.1 + torch.rand(B, m, generator=g, **DOUBLE))
    data = [t.to(dtype) for t in (Q, -(times(Q, x) + times(G.mT, z)), G, times(G, x) + s)]
    found = quadratic_program(*data)
    Q, p, C, d = (t.double() for t in (*data[:2], data[2][:, : n - rank], data[3][:, : n - rank]))
    k = n - rank
    K = torch.cat([torch.cat([Q, C.mT], -1), torch.cat([C, C.new_zeros(B, k, k)], -1)], 1)
    right = torch.cat([-p, d], -1)
    exact = torch.linalg.solve(K, right)
    moved = times(torch.linalg.inv(K).abs(), times(K.abs(), exact.abs()) + right.abs())[:, :n].amax(-1)
    off = (found.x.double() - exact[:, :n]).abs().amax(-1)
    ratio = (off / (torch.finfo(dtype).eps * moved))[found.converged]
    assert found.converged.sum() > 0.99 * B
    assert ratio.max() < 20
