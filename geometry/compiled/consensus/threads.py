"""What a thread of a device does of RANSAC for PnP: a problem is looked at, its samples are tried, its pose improved.

A round is two launches, and what has been found stays on the device with what is still running. Threads of one
problem read the same table, which `kept` (12 N + 21, B) has from one launch to the next: a column is a problem's, and
no thread's own, so that these tables are not spread. A team that improves a pose deals the points of one out.
"""

from typing import Any

import numpy as np

from ..pose.descent import copy
from ..pose.equations import CAMERA, POSE, ROW, Tile, new_camera, new_pose
from ..pose.p3p import ROOTS, fill_sample, p3p
from ..pose.tile import Data, Part, new_centre, number
from ..vectors import TEAM, get, jit, lowest, member, put, resolution, room
from .refinement import new_spare, score_of
from .rounds import Found, Sampling, keep, new_best, new_scores, no_models, take
from .rounds import improve as _improve
from .rounds import score as _score
from .samples import Table, behind, draw, fill_table, new_chosen, new_roots, new_sample, new_table, new_work

__all__ = ["THREADS"]


@jit
def _waiting(table: Any) -> Any:
    """Where camera and centre wait for the next launch: behind the table, and what `rounds.score` overwrites."""
    return behind(table) + table.tile.rows


@jit
def _store(part: Any, table: Any) -> None:
    kept = room(part, _waiting(table), CAMERA + 3, table.centre)
    for k in range(CAMERA):
        put(kept, k, get(table.tile.camera, k))
    for k in range(3):
        put(kept, CAMERA + k, get(table.centre, k))


@jit
def _recall(data: Any, b: Any, kept: Any) -> Any:
    """The table of problem b that `survey` has left."""
    part = Part(b, b + 1, b, False, kept)
    table = new_table(data, part, new_camera(kept), new_centre(kept))
    waiting = room(part, _waiting(table), CAMERA + 3, table.centre)
    copy(waiting, table.tile.camera, CAMERA)
    for k in range(3):
        put(table.centre, k, get(waiting, CAMERA + k))
    return table


@jit
def _deal(table: Any, part: Any) -> Any:
    """A table with the points that a thread of a team has, at the beginning of its column, and the end of that."""
    tile, rays, ends, centre = table
    if TEAM == 1:
        return table, 0
    n = len(ends)
    rows = (n + TEAM - 1) // TEAM
    points, own = room(part, 0, rows * ROW, rays), room(part, rows * ROW, rows * 3, rays)
    for k in range(rows):
        i = min(number(k, True), n - 1)
        for c in range(ROW):
            put(points, k * ROW + c, get(tile.points, i * ROW + c))
        for c in range(3):
            put(own, k * 3 + c, get(rays, i * 3 + c))
        if number(k, True) >= n:  # absent, as in `tile.fill`
            put(points, k * ROW + 5, 0.0)
            put(points, k * ROW + 6, 0.0)
            put(own, k * 3 + 2, 0.0)
    return Table(Tile(points, rows, tile.camera, tile.lens, True), own, ends, centre), rows * (ROW + 3)


@jit
def _solve(table: Any, seed: Any, h: Any, roots: Any) -> None:
    """What `p3p` makes of sample h of a problem's stream."""
    chosen, drawn, work = new_chosen(roots), new_sample(roots), new_work(roots)
    draw(table.ends, seed, h, chosen)
    for j in range(3):
        fill_sample(table.tile, table.rays, chosen[j], j, 0, drawn)
    p3p(drawn, resolution(roots), work, roots)


@jit
def survey(b: Any, arguments: Any) -> None:
    """Lay out problem b. arguments: data, candidates, threshold2, kept, out, of `rounds.attempt` but for what is kept.
    What is not as it should be ends the problem, its number of points -1."""
    data, candidates, threshold2, kept, out = arguments
    data, part, found = Data(*data), Part(b, b + 1, b, False, kept), Found(*out)
    table = new_table(data, part, new_camera(kept), new_centre(kept))
    bad, count, chance = fill_table(data, b, candidates, threshold2, table)
    found.facts[b, 0], found.facts[b, 1] = -1.0 if bad else float(count), chance
    found.running[b] = bad == 0
    if not bad:
        _store(part, table)


@jit
def sample(i: Any, arguments: Any) -> None:
    """The scores of the four poses of sample i % H of problem i // H into scores (ROOTS H, B).

    arguments: those of `survey`, sampling, scores.
    """
    data, _, threshold2, kept, out, sampling, scores = arguments
    sampling, found = Sampling(*sampling), Found(*out)
    b, h = i // sampling.H, i % sampling.H
    if not found.running[b] or found.facts[b, 0] < 3.0:
        return
    table, roots, pose = _recall(Data(*data), b, kept), new_roots(kept), new_pose(kept)
    _solve(table, sampling.seeds[b], sampling.first + h, roots)
    for root in range(ROOTS):
        at, cost = root * (POSE + 1), np.inf
        if get(roots, at + POSE) != 0.0:
            take(roots, at, 1, pose)
            cost = score_of(table.tile, pose, threshold2, np.inf, None)
        scores[h * ROOTS + root, b] = cost


@jit
def improve(b: Any, arguments: Any) -> None:
    """What a round makes of problem b. arguments: those of `sample`, and a workspace for this launch alone."""
    data, _, threshold2, kept, out, sampling, scores, workspace = arguments
    sampling, found, part = Sampling(*sampling), Found(*out), Part(b, b + 1, b, TEAM > 1, workspace)
    if not found.running[b]:
        return
    table, end = _deal(_recall(Data(*data), b, kept), part)
    models = no_models(new_scores(kept), new_best(kept), sampling.refined)
    roots = new_roots(kept)
    # of all that were tried scores alone are kept: the best samples are drawn and solved once more
    last, best = -np.inf, -1
    for _ in range(models.count if found.facts[b, 0] >= 3.0 else 0):
        before, best_before, last, best = last, best, np.inf, -1
        for k in range(member(), ROOTS * sampling.H, TEAM):
            cost = scores[k, b]
            if cost < last and (cost > before or (cost == before and k > best_before)):
                last, best = cost, k
        least = lowest(last)
        first = lowest(float(best) if last == least and best >= 0 else np.inf)
        if not first < np.inf:
            break
        last, best = least, int(first)
        _solve(table, sampling.seeds[b], sampling.first + best // ROOTS, roots)
        keep(models, last, roots, best % ROOTS * (POSE + 1))
    _improve(b, table, sampling, threshold2, models, new_spare(part, end, table.tile), found)


@jit
def score(b: Any, arguments: Any) -> None:
    """What pose b is worth. arguments: data, candidates, threshold2, kept, poses, out, of `rounds.score`."""
    data, candidates, threshold2, kept, poses, out = arguments
    if _score(data, candidates, threshold2, poses, (b, b + 1, b, False, kept), out):
        costs, inliers = out
        costs[b] = np.inf
        for i in range(inliers.shape[1]):
            inliers[b, i] = False


THREADS = {"ransac_survey": survey, "ransac_sample": sample, "ransac_improve": improve, "ransac_score": score}
"""What there is, by name; `ransac_sample` takes a thread for every sample of every problem."""
