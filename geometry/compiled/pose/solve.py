"""`solve`: local minima of a batch of PnP problems."""

from typing import Any

import numpy as np
from numba import njit

from geometry.compiled.pose.descent import levenberg_marquardt, polish
from geometry.compiled.pose.equations import CAMERA, OPTIONS, POSE, ROW, SUMS, L
from geometry.compiled.pose.tile import INPUTS, fill, fill_pose, rows_of, write_pose
from geometry.compiled.vectors import splat, store, where_less

__all__ = ["solve"]

_CONVERGED, _STALLED, _SINGULAR, _INFEASIBLE, _TOO_FEW = 0, 1, 2, 3, 4  # geometry.optim.solution.Status
_NEAR = 1e-7  # predicted relative decrease at which Newton takes over


@njit(
    [f"int64({INPUTS.format(t)}, {t}, {t}, {t}[:,:,::1], int64, int64, boolean, int64, int64, "
     f"{t}[:,:,::1], {t}[::1], int8[::1], int32[::1])" for t in ("float64", "float32")],
    cache=True, **OPTIONS,
)  # fmt: skip
def solve(
    data: Any, kind: Any, scale2: Any, alpha: Any, eps: Any, least: Any, feigned: Any, init: Any, max_steps: Any,
    fewest: Any, spread: Any, begin: Any, end: Any, poses: Any, costs: Any, statuses: Any, steps: Any,
) -> Any:  # fmt: skip
    """Local minima next to init, of problems begin to end - 1: Levenberg-Marquardt, then Newton.

    data and spread as in `geometry.compiled.pose.tile`; kind: a code of `equations.ROBUST`, with squared scale and
    shape; eps of the dtype; least, feigned: what is singular (`geometry.optim.linear`); fewest points that make a
    problem. Writes poses (B,4,4), costs, statuses (`geometry.optim.solution.Status`) and accepted steps (B,). Returns
    0, or what is not finite: 1 to 5 as `tile.fill` says, 6 init.
    """
    model = (data[3].shape[1], kind, scale2, alpha)
    rows = rows_of(data[0], spread)
    tile = np.empty(rows * ROW, poses.dtype)
    camera, pose = np.zeros(CAMERA, poses.dtype), np.empty(POSE, poses.dtype)
    centre, work = np.empty(3 * L, poses.dtype), np.empty(42 * L, poses.dtype)
    sums, answer, counts = np.empty(SUMS, poses.dtype), np.empty(3 * L, poses.dtype), np.empty(2 * L, np.int64)
    width = 1 if spread else L
    for first in range(begin, end, width):
        bad = fill(data, first, end, spread, tile, rows, camera, centre, counts)
        if bad:
            return bad
        for lane in range(L):
            if not fill_pose(init, min(first + lane % width, end - 1), lane, centre, lane % width, pose):
                return 6
        start_cost, taken = levenberg_marquardt(
            tile, rows, spread, camera, model, max_steps, _NEAR, eps, pose, work, sums
        )
        cost, stationary, determined = polish(tile, rows, spread, camera, model, eps, least, feigned, pose, work, sums)
        status = where_less(0.5, stationary, _CONVERGED, where_less(0.5, determined, _STALLED, splat(_SINGULAR, tile)))
        store(answer, 0, where_less(start_cost, np.inf, status, _INFEASIBLE))
        store(answer, L, cost)
        store(answer, 2 * L, taken)
        for lane in range(min(width, end - first)):
            b = first + lane
            statuses[b] = answer[lane] if counts[lane] >= fewest else _TOO_FEW
            costs[b] = answer[L + lane]
            steps[b] = answer[2 * L + lane]
            write_pose(pose, lane, centre, lane, poses, b)
    return 0
