"""`solve`: local minima of a batch of PnP problems."""

from typing import Any

import numpy as np

from ..vectors import entry, meet, member, scratch, splat, store, where_less
from .descent import Rule, levenberg_marquardt, new_factor, polish
from .equations import L, Robust, new_camera, new_pose, new_sums
from .tile import INPUTS, PART, Data, Part, Visible, fill, fill_pose, new_centre, new_counts, new_tile, write_pose

__all__ = ["solve"]

_CONVERGED, _STALLED, _SINGULAR, _INFEASIBLE, _TOO_FEW = 0, 1, 2, 3, 4  # geometry.optim.solution.Status
_new_answer = scratch(3 * L)
_NEAR = 1e-7  # predicted relative decrease at which Newton takes over


@entry(
    *(f"int64({INPUTS.format(t)}, UniTuple(float64, 2), UniTuple(int64, 2), {t}[:,:,::1], {PART}, "
      f"Tuple(({t}[:,:,::1], {t}[::1], int8[::1], int32[::1])))" for t in ("float64", "float32"))
)  # fmt: skip
def solve(data: Any, robust: Any, rule: Any, limits: Any, init: Any, part: Any, out: Any) -> Any:
    """Local minima next to init (B|1,4,4), of the problems of a part: Levenberg-Marquardt, then Newton.

    data, part: tuples as `tile.Data`, `tile.Part`; robust: as `equations.Robust`; rule: as `descent.Rule`; limits:
    steps at the most, and points that make a problem at the least. Writes out: poses (B,4,4), costs, statuses
    (`geometry.optim.solution.Status`) and accepted steps (B,). Returns 0, or what is not as it should be: 1 to 5 and 7
    as `tile.fill` says, 6 and 7 as `tile.fill_pose` says of init.
    """
    data, robust, rule, part = Data(*data), Robust(*robust), Rule(*rule), Part(*part)
    max_steps, fewest = limits
    poses, costs, statuses, steps = out
    pose, work, sums, answer = new_pose(poses), new_factor(poses), new_sums(poses), _new_answer(poses)
    tile, visible = new_tile(data, part, new_camera(poses)), Visible(new_centre(poses), new_counts(poses))
    centre, counts = visible
    width = 1 if part.spread else L
    for first in range(part.begin, part.end, width):
        bad = fill(data, first, part.end, tile, visible)
        if bad:
            return bad
        for lane in range(L):
            bad = fill_pose(init, min(first + lane % width, part.end - 1), lane, centre, lane % width, pose)
            if bad:
                return bad
        start_cost, taken = levenberg_marquardt(tile, robust, max_steps, _NEAR, pose, work, sums)
        cost, stationary, determined = polish(tile, robust, rule, pose, work, sums)
        singular = splat(_SINGULAR, pose)
        status = where_less(0.5, stationary, _CONVERGED, where_less(0.5, determined, _STALLED, singular))
        store(answer, 0, where_less(start_cost, np.inf, status, _INFEASIBLE))
        store(answer, L, cost)
        store(answer, 2 * L, taken)
        meet()  # all have read init, which may be where the poses go
        for lane in range(min(width, part.end - first) if member() == 0 else 0):
            b = first + lane
            statuses[b] = answer[lane] if counts[lane] >= fewest else _TOO_FEW
            costs[b] = answer[L + lane]
            steps[b] = answer[2 * L + lane]
            write_pose(pose, lane, centre, lane, poses, b)
    return 0
