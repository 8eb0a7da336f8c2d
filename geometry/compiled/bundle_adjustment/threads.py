"""What a thread of a device does for a bundle, by its number.

A point has its observations to itself, as they are sorted by point. What views or rows of the reduced matrix are given
by several observations is added up in runs of a few, each by one thread, and then run by run: no two threads write to
one place, and sums have the same bits every time.

index is the tuple (view (M,), point (M,), begin (N+1,)); runs the tuple (order, bounds) of
`geometry.bundle_adjustment.sums.Groups`; what is observed as in `observations`. One lane.
"""

from typing import Any

from ..pose.equations import CAMERA, Robust, new_camera, new_pose
from ..vectors import clear, jit, splat, store
from .observations import add_to_point, add_to_view, fill, new_derivatives, new_row
from .observations import observe as _observe
from .products import couple_back as _couple_back
from .products import dot_row, gather, row_times, times
from .products import project_blocks as _project_blocks
from .reprojection import Model, derive

__all__ = ["THREADS"]


@jit
def observe(j: Any, arguments: Any) -> None:
    """Add the cost of the observations of point j to costs (N,)."""
    scene, seen, robust, begin, costs = arguments
    _observe(scene, seen, robust, begin[j], begin[j + 1], costs)


@jit
def linearize_point(j: Any, arguments: Any) -> None:
    """What `observations.linearize` adds to V and the gradient of point j and sets in W; the cost, to costs (N,)."""
    scene, seen, robust, wanted, begin, (costs, W, V, gradient) = arguments
    codes, exact = wanted
    model = Model(scene[2], Robust(*robust), exact)
    pose, camera, row, derivatives = new_pose(V), new_camera(V), new_row(V), new_derivatives(V)
    clear(camera, CAMERA)
    cost = splat(0.0, V)
    for i in range(begin[j], begin[j + 1]):
        fill(scene, seen, i, i + 1, pose, camera, row)
        cost += 0.5 * derive(pose, camera, row, codes, model, derivatives)
        add_to_point(derivatives, 0, W[i], V[j], gradient[j])
    store(costs, j, cost)


@jit
def linearize_view(k: Any, arguments: Any) -> None:
    """What it adds to gradient and U of a view, of run k of its observations: rows of out (K,1+p,p), zero yet."""
    scene, seen, robust, wanted, (order, bounds), out = arguments
    codes, exact = wanted
    model = Model(scene[2], Robust(*robust), exact)
    pose, camera, row, derivatives = new_pose(out), new_camera(out), new_row(out), new_derivatives(out)
    clear(camera, CAMERA)
    for e in range(bounds[k], bounds[k + 1]):
        i = order[e]
        fill(scene, seen, i, i + 1, pose, camera, row)
        derive(pose, camera, row, codes, model, derivatives)
        add_to_view(derivatives, 0, out[k, 1:], out[k, 0])


@jit
def add_up(t: Any, arguments: Any) -> None:
    """out (G,c) = sums of rows of values (K,c), which lie group by group: those of group g from begin[g] on."""
    values, begin, out = arguments
    columns = values.shape[1]
    g, c = t // columns, t % columns
    total = 0.0
    for k in range(begin[g], begin[g + 1]):
        total += values[k, c]
    out[g, c] = total


@jit
def couple(t: Any, arguments: Any) -> None:
    """out (K,p,R) = W points, of the runs of the views; points (N,3,R)."""
    W, points, index, (order, bounds), out = arguments
    _, p, R = out.shape
    k, a, r = t // (p * R), t // R % p, t % R
    total = 0.0
    for e in range(bounds[k], bounds[k + 1]):
        i = order[e]
        X = points[index[1][i]]
        total += dot_row(W[i], a, (X[0, r], X[1, r], X[2, r]))
    out[k, a, r] = total


@jit
def couple_back(t: Any, arguments: Any) -> None:
    """`products.couple_back` of one point and one of R right-hand sides: views (V,p,R), out (N,3,R)."""
    W, views, (view, _, begin), out = arguments
    R = out.shape[2]
    j, r = t // R, t % R
    _couple_back(W, views[:, :, r], (view, begin), j, j + 1, out[:, :, r])


@jit
def eliminate(t: Any, arguments: Any) -> None:
    """out (N,3,R) = V^-1 W^T views of one point and one right-hand side: what `products.schur_product` gathers."""
    W, V_inverse, views, (view, _, begin), out = arguments
    R = out.shape[2]
    j, r = t // R, t % R
    x, y, z = times(V_inverse[j], gather(W, views[:, :, r], view, begin[j], begin[j + 1]))
    out[j, 0, r], out[j, 1, r], out[j, 2, r] = x, y, z


@jit
def project_blocks(j: Any, arguments: Any) -> None:
    """`products.project_blocks` of one point."""
    W, motions, (view, _, begin), out = arguments
    _project_blocks(W, motions, (view, begin), j, j + 1, out)


@jit
def own_blocks(t: Any, arguments: Any) -> None:
    """out (K,p,p) = W V^-1 W^T of each observation, of the runs of the views: one entry, twice the same."""
    W, V_inverse, index, (order, bounds), out = arguments
    p = W.shape[1]
    k, a, b = t // (p * p), t // p % p, t % p
    low, high = min(a, b), max(a, b)
    total = 0.0
    for e in range(bounds[k], bounds[k + 1]):
        i = order[e]
        total += dot_row(W[i], low, row_times(W[i], high, V_inverse[index[1][i]]))
    out[k, a, b] = total


@jit
def reduce_rows(t: Any, arguments: Any) -> None:
    """Add -W V^-1 W^T to T (K,D), whose rows add up to a matrix half of S: every pair of observations of a point once.

    rows (V,p): where columns of views lie in S. runs: of what adds to a row of S, observations times p plus the column.
    A column of S is always the same one of a view's, so a thread has every p-th of its row to itself, or so.
    """
    W, V_inverse, rows, (view, point, begin), (order, bounds), T = arguments
    p = W.shape[1]
    k, b = t // p, t % p
    for e in range(bounds[k], bounds[k + 1]):
        i, a = order[e] // p, order[e] % p
        j = point[i]
        X = row_times(W[i], a, V_inverse[j])
        for o in range(begin[j], i + 1):
            place = rows[view[o], b]
            if place < T.shape[1]:
                T[k, place] -= (0.5 if o == i else 1.0) * dot_row(W[o], b, X)


@jit
def add_blocks(t: Any, arguments: Any) -> None:
    """Add U (V,p,p) to S (D,D); runs: of what adds to a row of S, views times p plus the column, a row each."""
    U, rows, (order, begin), S = arguments
    p = U.shape[1]
    r, b = t // p, t % p
    for e in range(begin[r], begin[r + 1]):
        v, a = order[e] // p, order[e] % p
        place = rows[v, b]
        if place < S.shape[1]:
            S[r, place] += U[v, a, b]


THREADS = {
    f"bundle_{work.__name__}": work
    for work in (
        observe, linearize_point, linearize_view, add_up, couple, couple_back,
        eliminate, project_blocks, own_blocks, reduce_rows, add_blocks,
    )
}  # fmt: skip
"""What there is, by name."""
