"""`observe` and `linearize`: costs and normal equations of a bundle's observations, sorted by point.

scene is the tuple (cameras (V,30), points (N,3)): R row by row, t, K[:2,:2] row by row, principal point, twelve
distortion coefficients; seen the tuple (view (M,), point (M,), observed (M,4)): u, v and their weights. Cameras without
distortion are lens = False.
"""

from typing import Any

import numpy as np
from numba import njit

from geometry.compiled.bundle_adjustment.reprojection import COLUMNS, ENTRIES, derive, residuals
from geometry.compiled.pose.equations import CAMERA, OPTIONS, POSE, ROW, L, jit, robust
from geometry.compiled.vectors import store

__all__ = ["linearize", "observe"]

_SCENE = "Tuple((float64[:,::1], float64[:,::1])), Tuple((int64[::1], int64[::1], float64[:,::1]))"


@jit
def _fill(scene: Any, seen: Any, first: Any, end: Any, lens: Any, pose: Any, camera: Any, row: Any) -> None:
    """Lay out observations first to end - 1, at most L; the last one again in the lanes that are left."""
    cameras, points = scene
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
        for k in range(4):
            row[(3 + k) * L + lane] = observed[i, k]


@njit(
    [f"void({_SCENE}, boolean, int64, float64, float64, int64, int64, float64[::1])"], cache=True, **OPTIONS
)  # fmt: skip
def observe(
    scene: Any, seen: Any, lens: Any, kind: Any, scale2: Any, alpha: Any, begin: Any, end: Any, costs: Any
) -> None:
    """Add half of rho of observations begin to end - 1 to the costs (N,) of their points."""
    pose, camera = np.empty(POSE, np.float64), np.zeros(CAMERA, np.float64)
    row, answer = np.empty(ROW, np.float64), np.empty(L, np.float64)
    point = seen[1]
    for first in range(begin, end, L):
        _fill(scene, seen, first, end, lens, pose, camera, row)
        ru, rv = residuals(pose, camera, lens, row)
        s = ru * ru + rv * rv
        if kind:
            s, _, _ = robust(kind, s, scale2, alpha)
        store(answer, 0, s)
        for lane in range(min(L, end - first)):
            costs[point[first + lane]] += 0.5 * answer[lane]


@njit(
    [f"float64({_SCENE}, boolean, int64[::1], int64, float64, float64, boolean, int64, int64, float64[:,:,::1], "
     f"float64[:,::1], float64[:,:,::1], float64[:,:,::1], float64[:,::1])"],
    cache=True, **OPTIONS,
)  # fmt: skip
def linearize(
    scene: Any, seen: Any, lens: Any, codes: Any, kind: Any, scale2: Any, alpha: Any, exact: Any, begin: Any, end: Any,
    U: Any, gradient: Any, W: Any, V: Any, point_gradient: Any,
) -> Any:  # fmt: skip
    """Normal equations of observations begin to end - 1, by columns (omega, v, kappa) of their views and by points.

    codes as in `geometry.compiled.bundle_adjustment.reprojection`; exact: the Hessian instead of Gauss-Newton's matrix.
    Adds to the lower triangles of U (V,p,p) and V (N,3,3), to gradient (V,p) and point_gradient (N,3); sets W (M,p,3).
    Returns the cost.
    """
    p = 6 + len(codes)
    pose, camera = np.empty(POSE, np.float64), np.zeros(CAMERA, np.float64)
    row, answer = np.empty(ROW, np.float64), np.empty(L, np.float64)
    J, g = np.empty(2 * COLUMNS * L, np.float64), np.empty(COLUMNS * L, np.float64)
    H, work = np.empty(ENTRIES * L, np.float64), np.empty(27 * L, np.float64)
    view, point, _ = seen
    cost = 0.0
    for first in range(begin, end, L):
        _fill(scene, seen, first, end, lens, pose, camera, row)
        s = derive(pose, camera, lens, row, codes, kind, scale2, alpha, exact, J, g, H, work)
        store(answer, 0, s)
        for lane in range(min(L, end - first)):
            i = first + lane
            Uv, gv, Wi, Vj, gj = U[view[i]], gradient[view[i]], W[i], V[point[i]], point_gradient[point[i]]
            cost += 0.5 * answer[lane]
            place = lane
            for a in range(p):
                gv[a] += g[a * L + lane]
                for b in range(a + 1):
                    Uv[a, b] += H[place]
                    place += L
            for k in range(3):
                gj[k] += g[(p + k) * L + lane]
                for b in range(p):
                    Wi[b, k] = H[place]
                    place += L
                for b in range(k + 1):
                    Vj[k, b] += H[place]
                    place += L
    return cost
