"""What a thread of a device, or a team of them, does: the kernels of `geometry.compiled` for one problem, by its
number. `bundle_adjustment.threads` has those for a part of one bundle.

`geometry.compiled.cuda.grid` makes kernels of a grid of them, `geometry.compiled.simulated.grid` calls them in a loop.
A device cannot raise: what is not as it should be makes the problem INFEASIBLE, its pose the identity.
"""

from typing import Any

import numpy as np

from .bundle_adjustment.threads import THREADS as _BUNDLE
from .consensus.threads import THREADS as _RANSAC
from .pose.adjoint import adjoint as _adjoint
from .pose.solve import solve as _solve
from .pose.start import start as _start
from .vectors import TEAM, jit, meet, member

__all__ = ["THREADS"]

_CONVERGED, _INFEASIBLE = 0, 3  # geometry.optim.solution.Status
_SAME = 1e-3  # two minima less than about this many radians apart are one


@jit
def _refuse(b: Any, out: Any) -> None:
    poses, costs, statuses, steps = out
    meet()  # where init lies where the poses go, all have read it
    if member() == 0:
        for i in range(4):
            for j in range(4):
                poses[b, i, j] = 1.0 if i == j else 0.0
        costs[b], statuses[b], steps[b] = np.inf, _INFEASIBLE, 0


@jit
def solve(b: Any, arguments: Any) -> None:
    """The minimum next to init. arguments: those of `pose.solve`, its `part` replaced by the workspace."""
    data, robust, rule, limits, init, workspace, out = arguments
    if _solve(data, robust, rule, limits, init, (b, b + 1, b, TEAM > 1, workspace), out):
        _refuse(b, out)


@jit
def adjoint(b: Any, arguments: Any) -> None:
    """The gradient. arguments: those of `pose.adjoint`, its `part` replaced by the workspace."""
    data, robust, least, exact, at, workspace, gradients = arguments
    _adjoint(data, robust, least, exact, at, (b, b + 1, b, TEAM > 1, workspace), gradients)


@jit
def search(b: Any, arguments: Any) -> None:
    """The better of the minima next to the two best starts, the other, and the ratio of their costs, or 0.

    arguments: data, robust, rule, limits as of `pose.solve`, the workspace, two of out as there, and ratios (B,). The
    first of out ends with what is better, the second with the other, or with a copy where there is none.
    """
    data, robust, rule, limits, workspace, first, second, ratios = arguments
    part = (b, b + 1, b, TEAM > 1, workspace)
    a, c = first[0], second[0]
    _start(data, robust, (b, b + 1, b, True, workspace), (a, c))
    meet()
    distance = 0.0
    for i in range(3):
        for j in range(4):
            distance += abs(a[b, i, j] - c[b, i, j])
    bad = _solve(data, robust, rule, limits, a, part, first)
    if bad:
        _refuse(b, first)
    if distance > 0.0 and not bad:
        _solve(data, robust, rule, limits, c, part, second)
    elif member() == 0:
        second[1][b], second[2][b] = np.inf, _INFEASIBLE
    if member() > 0:
        return
    good, other = first[2][b] == _CONVERGED, second[2][b] == _CONVERGED
    chord2 = 0.0
    swap = other and (not good or second[1][b] < first[1][b])
    for i in range(3):
        for j in range(3):
            chord2 += (a[b, i, j] - c[b, i, j]) * (a[b, i, j] - c[b, i, j])
    two = good and other and chord2 > _SAME * _SAME
    ratios[b] = 0.0
    for i in range(4):
        for j in range(4):
            best, rest = (c[b, i, j], a[b, i, j]) if swap else (a[b, i, j], c[b, i, j])
            a[b, i, j] = best
            c[b, i, j] = rest if two else best
    if two:
        low, high = (second[1][b], first[1][b]) if swap else (first[1][b], second[1][b])
        ratios[b] = low / high if high > 0.0 else 0.0


THREADS = {"solve": solve, "search": search, "adjoint": adjoint, **_BUNDLE, **_RANSAC}
"""What there is, by name."""
