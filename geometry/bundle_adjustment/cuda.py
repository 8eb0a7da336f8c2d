"""How a CUDA device runs the loops over observations: the functions of `products` and `operator`, as launches that
nothing waits for. Any number of right-hand sides.
"""

from typing import Any

from torch import Tensor

from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.sums import add_up, start

__all__ = [
    "couple",
    "couple_back",
    "linearize",
    "own_blocks",
    "point_costs",
    "project_blocks",
    "reduce",
    "schur_product",
]


def point_costs(inputs: tuple[Any, ...], layout: Layout) -> Tensor:
    """Costs (N,). inputs: scene, seen and robust of `geometry.compiled.bundle_adjustment.observations`, in tensors."""
    costs = inputs[0][1].new_zeros(len(layout.held))
    start("observe", len(costs), (*inputs, layout.begin, costs), costs.device)
    return costs


def linearize(inputs: tuple[Any, ...], codes: Tensor, exact: bool, layout: Layout) -> tuple[Tensor, ...]:
    """Cost, gradients of views and points, U, W, V: of U and V the lower triangles."""
    like = inputs[0][1]
    N, M, p, runs = len(layout.held), len(layout.view), 6 + len(codes), layout.by_view
    costs, W = like.new_empty(N), like.new_empty(M, p, 3)
    V, points, views = like.new_zeros(N, 3, 3), like.new_zeros(N, 3), like.new_zeros(len(runs.bounds) - 1, 1 + p, p)
    given = *inputs, (codes, exact)
    start("linearize_point", N, (*given, layout.begin, (costs, W, V, points)), like.device)
    start("linearize_view", len(views), (*given, runs.runs, views), like.device)
    views = add_up(views, runs)
    return costs.sum(), views[:, 0], points, views[:, 1:], W, V


def couple(W: Tensor, points: Tensor, layout: Layout) -> Tensor:
    """W points: (M,p,3), (N,3,R) -> (D,R)."""
    runs = layout.by_view
    out = W.new_empty(len(runs.bounds) - 1, W.shape[1], points.shape[2])
    start("couple", out.numel(), (W, points.contiguous(), layout.index, runs.runs, out), W.device)
    return layout.from_views(add_up(out, runs))


def couple_back(W: Tensor, cameras: Tensor, layout: Layout) -> Tensor:
    """W^T cameras: (M,p,3), (D,R) -> (N,3,R)."""
    out = W.new_empty(len(layout.held), 3, cameras.shape[1])
    threads = len(out) * out.shape[2]
    start("couple_back", threads, (W, layout.to_views(cameras), layout.index, out), W.device)
    return out


def schur_product(W: Tensor, V_inverse: Tensor, cameras: Tensor, layout: Layout) -> Tensor:
    """W V^-1 W^T cameras: (M,p,3), (N,3,3), (D,R) -> (D,R)."""
    points = W.new_empty(len(layout.held), 3, cameras.shape[1])
    arguments = (W, V_inverse, layout.to_views(cameras), layout.index, points)
    start("eliminate", len(points) * points.shape[2], arguments, W.device)
    return couple(W, points, layout)


def project_blocks(W: Tensor, motions: Tensor, layout: Layout) -> Tensor:
    """motions^T W: (M,p,3), (V,p,c) -> (M,c,3)."""
    out = W.new_empty(len(W), motions.shape[2], 3)
    start("project_blocks", len(layout.held), (W, motions.contiguous(), layout.index, out), W.device)
    return out


def own_blocks(W: Tensor, V_inverse: Tensor, layout: Layout) -> Tensor:
    """The diagonal blocks of W V^-1 W^T, view by view: (V,p,p)."""
    runs, p = layout.by_view, W.shape[1]
    out = W.new_empty(len(runs.bounds) - 1, p, p)
    start("own_blocks", out.numel(), (W, V_inverse, layout.index, runs.runs, out), W.device)
    return add_up(out, runs)


def reduce(U: Tensor, W: Tensor, V_inverse: Tensor, layout: Layout) -> Tensor:
    """S = U - W V^-1 W^T, dense (D,D)."""
    runs, p = layout.by_row_and_observation, W.shape[1]
    T = W.new_zeros(len(runs.bounds) - 1, layout.size)
    start("reduce_rows", len(T) * p, (W, V_inverse, layout.rows, layout.index, runs.runs, T), W.device)
    half = add_up(T, runs)
    S = half + half.T
    own = layout.by_row
    start("add_blocks", layout.size * p, (U.contiguous(), layout.rows, (own.order, own.begin), S), W.device)
    return S
