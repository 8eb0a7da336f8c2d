"""`observe` and `linearize`: costs and normal equations of a bundle's observations, sorted by point.

scene is the tuple (cameras (V,30), points (N,3), lens): R row by row, t, K[:2,:2] row by row, principal point, twelve
distortion coefficients; lens is 0 where no camera has any, FISHEYE, or another number. seen is the tuple (view (M,),
point (M,), observed (M,4)): u, v and their weights; robust as `equations.Robust`.
"""

from typing import Any

from ..pose.equations import CAMERA, ROW, L, Robust, new_camera, new_pose, residuals, rho
from ..vectors import clear, entry, jit, scratch, store
from .reprojection import DERIVATIVES, GRADIENT, H, Model, derive

__all__ = ["add_to_point", "add_to_view", "fill", "linearize", "new_derivatives", "new_row", "observe"]

new_row, new_derivatives, _new_answer = scratch(ROW), scratch(DERIVATIVES), scratch(L)
_INPUTS = (
    "Tuple((float64[:,::1], float64[:,::1], int64)), Tuple((int64[::1], int64[::1], float64[:,::1])), "
    "Tuple((int64, float64, float64))"
)


@jit
def fill(scene: Any, seen: Any, first: Any, end: Any, pose: Any, camera: Any, row: Any) -> None:
    """Lay out observations first to end - 1, at most L; the last one again in the lanes that are left."""
    cameras, points, lens = scene
    view, point, observed = seen
    for lane in range(L):
        i = min(first + lane, end - 1)
        c, X = cameras[view[i]], points[point[i]]
        for k in range(12):
            pose[k * L + lane] = c[k]
        for k in range(18 if lens else 6):
            camera[k * L + lane] = c[12 + k]
        for k in range(3):
            row[k * L + lane] = X[k]
        for k in range(2):
            row[(3 + k) * L + lane] = observed[i, k] - c[16 + k]
            row[(5 + k) * L + lane] = observed[i, 2 + k]


@jit
def add_to_view(derivatives: Any, lane: Any, U: Any, gradient: Any) -> None:
    """Add the derivatives of the observation in a lane to a view: lower triangle of U (p,p), gradient (p,)."""
    place = H + lane
    for a in range(len(gradient)):
        gradient[a] += derivatives[GRADIENT + a * L + lane]
        for b in range(a + 1):
            U[a, b] += derivatives[place]
            place += L


@jit
def add_to_point(derivatives: Any, lane: Any, W: Any, V: Any, gradient: Any) -> None:
    """Add them to a point: lower triangle of V (3,3), gradient (3,); W (p,3) is set."""
    p = len(W)
    place = H + p * (p + 1) // 2 * L + lane
    for k in range(3):
        gradient[k] += derivatives[GRADIENT + (p + k) * L + lane]
        for b in range(p):
            W[b, k] = derivatives[place]
            place += L
        for b in range(k + 1):
            V[k, b] += derivatives[place]
            place += L


@entry(f"void({_INPUTS}, int64, int64, float64[::1])")
def observe(scene: Any, seen: Any, robust: Any, begin: Any, end: Any, costs: Any) -> None:
    """Add half of rho of observations begin to end - 1 to the costs (N,) of their points."""
    robust, lens, point = Robust(*robust), scene[2], seen[1]
    pose, camera, row, answer = new_pose(costs), new_camera(costs), new_row(costs), _new_answer(costs)
    clear(camera, CAMERA)
    for first in range(begin, end, L):
        fill(scene, seen, first, end, pose, camera, row)
        ru, rv, _ = residuals(pose, camera, lens, row, 0)
        s = ru * ru + rv * rv
        if robust.code:
            s, _, _ = rho(robust, s)
        store(answer, 0, s)
        for lane in range(min(L, end - first)):
            costs[point[first + lane]] += 0.5 * answer[lane]


@entry(
    f"float64({_INPUTS}, Tuple((int64[::1], boolean)), int64, int64, Tuple((float64[:,:,::1], float64[:,::1], "
     f"float64[:,:,::1], float64[:,:,::1], float64[:,::1])))"
)  # fmt: skip
def linearize(scene: Any, seen: Any, robust: Any, wanted: Any, begin: Any, end: Any, out: Any) -> Any:
    """Normal equations of observations begin to end - 1, by columns (omega, v, kappa) of their views and by points.

    wanted: codes as in `geometry.compiled.bundle_adjustment.reprojection`, and exact: the Hessian instead of
    Gauss-Newton's matrix. out: U, gradient, W, V, point_gradient. Adds to the lower triangles of U (V,p,p) and V
    (N,3,3), to gradient (V,p) and point_gradient (N,3); sets W (M,p,3). Returns the cost.
    """
    codes, exact = wanted
    model = Model(scene[2], Robust(*robust), exact)
    U, gradient, W, V, point_gradient = out
    pose, camera, row, answer = new_pose(U), new_camera(U), new_row(U), _new_answer(U)
    derivatives = new_derivatives(U)
    clear(camera, CAMERA)
    view, point, _ = seen
    cost = 0.0
    for first in range(begin, end, L):
        fill(scene, seen, first, end, pose, camera, row)
        store(answer, 0, derive(pose, camera, row, codes, model, derivatives))
        for lane in range(min(L, end - first)):
            i = first + lane
            v, j = view[i], point[i]
            cost += 0.5 * answer[lane]
            add_to_view(derivatives, lane, U[v], gradient[v])
            add_to_point(derivatives, lane, W[i], V[j], point_gradient[j])
    return cost
