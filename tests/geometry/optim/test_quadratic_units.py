"""Quadratic programs whose numbers differ by many orders: bounds that stand for none, rows in other units, little Q."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from geometry import Status, quadratic_program
from tests.geometry.optim.programs import times
from tests.numbers import DOUBLE, STENCIL, close, slope

eye, generator = torch.eye, torch.Generator


def bounded(B: int, n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """p, G, h with a point inside, x within +-5."""
    g = generator().manual_seed(seed)
    p, G, x = (torch.randn(B, *shape, generator=g, **DOUBLE) for shape in ((n,), (m, n), (n,)))
    h = times(G, x) + torch.rand(B, m, generator=g, **DOUBLE)
    box = torch.cat([eye(n, **DOUBLE), -eye(n, **DOUBLE)]).expand(B, -1, -1)
    return p, torch.cat([G, box], 1), torch.cat([h, torch.full((B, 2 * n), 5.0, **DOUBLE)], 1)


def enumerated(q: float, p: np.ndarray, G: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The minimum of q/2 x^2 + p x by trying every set of independent active constraints, of those that are optimal."""
    n, best, lowest = len(p), np.full(len(p), np.nan), np.inf
    for size in range(n + 1):
        for rows in combinations(range(len(h)), size):
            C = G[list(rows)]
            # x within the plane C x = h: what C leaves free, moved by p / q
            _, singular, vh = np.linalg.svd(C, full_matrices=True) if size else (None, np.ones(0), np.eye(n))
            if size and singular[-1] < 1e-9:
                continue
            x = np.linalg.lstsq(C, h[list(rows)], rcond=None)[0] if size else np.zeros(n)
            null = vh[size:].T
            if size < n:
                if q == 0:
                    continue
                x = x - null @ (null.T @ (p + q * x)) / q
            cost = 0.5 * q * x @ x + p @ x
            if (G @ x <= h + 1e-9).all() and cost < lowest:
                best, lowest = x, cost
    return best


@pytest.mark.parametrize("q", [0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4])
def test_little_curvature_beside_a_linear_cost(q: float) -> None:
    """All that ends CONVERGED is the minimum, and almost all does; it was one of four below 1e-8, and any point."""
    B, n = 40, 3
    p, G, h = bounded(B, n, 6, seed=1)
    found = quadratic_program(q * eye(n, **DOUBLE)[None], p, G, h)
    assert found.converged.sum() >= B - 1
    for i in found.converged.nonzero()[:, 0].tolist():
        reference = torch.from_numpy(enumerated(q, p[i].numpy(), G[i].numpy(), h[i].numpy()))
        close(found.x[i], reference, max(1e-9, 1e-15 / q if q else 0))


@pytest.mark.parametrize("q", [0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4])
def test_little_curvature_in_one_dimension(q: float) -> None:
    g = generator().manual_seed(0)
    B, m = 2000, 4
    p, sign = torch.randn(B, 1, generator=g, **DOUBLE), torch.randn(B, m, generator=g, **DOUBLE).sign()
    sign[:, 0], sign[:, 1] = -1, 1
    G = sign * (0.2 + torch.rand(B, m, generator=g, **DOUBLE))
    h = G * torch.randn(B, 1, generator=g, **DOUBLE) + torch.rand(B, m, generator=g, **DOUBLE)
    upper = torch.where(G > 0, h / G, torch.inf).amin(1)
    lower = torch.where(G < 0, h / G, -torch.inf).amax(1)
    free = -p[:, 0] / q if q else -torch.inf * p[:, 0].sign()
    found = quadratic_program(torch.full((1, 1, 1), q, **DOUBLE), p, G[..., None], h, throw=True)
    close(found.x[:, 0], torch.minimum(torch.maximum(free, lower), upper), 1e-9, 1e-9)


def test_a_minimum_on_a_face_is_told_by_its_little_curvature() -> None:
    """p is orthogonal to an edge of the feasible set, along which 1e-8 |x|^2 / 2 alone decides: x and its gradient."""
    q, Q = 1e-8, 1e-8 * eye(2, **DOUBLE)[None]
    p = torch.tensor([[0.0, 1.0], [-3e-9, 1.0], [-5e-8, 1.0]], **DOUBLE, requires_grad=True)
    G, h = torch.cat([eye(2, **DOUBLE), -eye(2, **DOUBLE)])[None], torch.ones(1, 4, **DOUBLE)
    found = quadratic_program(Q, p, G, h, throw=True)
    close(found.x.detach(), torch.tensor([[0, -1], [0.3, -1], [1, -1]], **DOUBLE), 1e-7)
    (gradient,) = torch.autograd.grad(found.x[:, 0].sum(), p)
    close(gradient * q, torch.tensor([[-1.0, 0], [-1, 0], [0, 0]], **DOUBLE), 1e-7)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
@pytest.mark.parametrize("none", [1e4, 1e8, 1e13, 1e30, torch.inf])
def test_a_large_bound_is_as_good_as_none(none: float, dtype: torch.dtype, off: float) -> None:
    g = generator().manual_seed(2)
    B, n, m = 100, 5, 8
    root, G, p = (torch.randn(B, *shape, generator=g, **DOUBLE) for shape in ((n, n), (m, n), (n,)))
    Q, h = root @ root.mT / n + 0.1 * eye(n, **DOUBLE), torch.rand(B, m, generator=g, **DOUBLE)
    bound = torch.full((B, 2 * n), none, **DOUBLE)
    boxed = torch.cat([G, eye(n, **DOUBLE).expand(B, n, n), -eye(n, **DOUBLE).expand(B, n, n)], 1)
    leaves = [t.clone().to(dtype).requires_grad_() for t in (Q, 3 * p, boxed, torch.cat([h, bound], 1))]
    plain = [t.clone().requires_grad_() for t in (Q, 3 * p, G, h)]
    found, expected = quadratic_program(*leaves), quadratic_program(*plain, throw=True)
    assert found.converged.sum() >= B - 2
    close(found.x[found.converged].double(), expected.x[found.converged], off)
    if dtype == torch.float64:
        found.x.sum().backward()
        expected.x.sum().backward()
        for one, other in zip(leaves[:2], plain[:2], strict=True):
            assert one.grad is not None
            close(one.grad, other.grad, 1e-6, 1e-6)
        assert torch.isfinite(leaves[3].grad).all()  # type: ignore[arg-type]


def test_a_row_in_another_unit_is_the_same_row() -> None:
    p, G, h = bounded(60, 4, 8, seed=3)
    Q = eye(4, **DOUBLE)[None]
    expected = quadratic_program(Q, p, G, h, throw=True)
    unit = 10 ** (12 * torch.rand(h.shape, generator=generator().manual_seed(4), **DOUBLE) - 6)
    found = quadratic_program(Q, p, unit[..., None] * G, unit * h, throw=True)
    close(found.x, expected.x, 1e-10)
    close(found.inequality * unit, expected.inequality, 1e-9)


def test_slacks_of_all_sizes_are_told_from_none() -> None:
    """Rows that miss a corner by 1e-8 to 1e-3, which the interior point comes to last."""
    g = generator().manual_seed(5)
    B, n, m = 100, 6, 12
    row, close_by = torch.arange(m), 10 ** (-8 + 5 * torch.rand(B, m, generator=g, **DOUBLE))
    gap = 0.1 + torch.rand(B, m, generator=g, **DOUBLE)
    G, x = torch.randn(B, m, n, generator=g, **DOUBLE), torch.randn(B, n, generator=g, **DOUBLE)
    slack, z = torch.where(row < n, 0.0, torch.where(row < n + 3, close_by, gap)), torch.where(row < n, gap, 0.0)
    p = -(0.1 * x + times(G.mT, z))
    found = quadratic_program(0.1 * eye(n, **DOUBLE)[None], p, G, times(G, x) + slack)
    assert found.converged.sum() >= B - 2
    close(found.x[found.converged], x[found.converged], 1e-8)


def test_a_program_that_has_a_minimum_is_not_unbounded() -> None:
    """Q of rank 2 and bounds that differ by orders, made from a minimum that need not be unique."""
    g = generator().manual_seed(10)
    B, n, m = 4000, 4, 7
    root, G, x = (torch.randn(B, *shape, generator=g, **DOUBLE) for shape in ((2, n), (m, n), (n,)))
    h = torch.rand(B, m, generator=g, **DOUBLE) * 10 ** (2 * torch.randn(B, m, generator=g, **DOUBLE))
    z = torch.rand(B, m, generator=g, **DOUBLE) * (torch.rand(B, m, generator=g) < 0.5)
    Q = root.mT @ root
    found = quadratic_program(Q, -(times(Q, x) + times(G.mT, z)), G, h)
    assert set(found.status.tolist()) <= {Status.CONVERGED, Status.SINGULAR}


@pytest.mark.parametrize("q", [1e-3, 1e-8])
def test_gradients_where_curvature_is_little(q: float) -> None:
    """Central differences along a random direction of all inputs at once, at minima that are not near another set."""
    p, G, h = bounded(30, 3, 6, seed=7)
    Q = q * eye(3, **DOUBLE).repeat(30, 1, 1)
    found = quadratic_program(Q, p, G, h)
    slack = h - times(G, found.x)
    strict = found.converged & (torch.maximum(slack, found.inequality).amin(-1) > 1e-2)
    data = [t[strict] for t in (Q, p, G, h)]
    assert strict.sum() > 15
    g = generator().manual_seed(8)
    ways = [torch.randn(t.shape, generator=g, **DOUBLE) * (q if i == 0 else 1) for i, t in enumerate(data)]
    ways[0] = ways[0] + ways[0].mT
    leaves = [t.clone().requires_grad_() for t in data]
    gradients = torch.autograd.grad(quadratic_program(*leaves, throw=True).x.sum(), leaves)
    analytic = sum((a * b).flatten(1).sum(1) for a, b in zip(gradients, ways, strict=True))
    step = 1e-6
    moved = [
        quadratic_program(*(t + k * step * way for t, way in zip(data, ways, strict=True)), throw=True).x.sum(-1)
        for k in STENCIL
    ]
    close(analytic, slope(torch.stack(moved), step), 1e-6, 1e-5)
