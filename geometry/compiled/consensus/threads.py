"""What a thread of a device does of RANSAC for PnP: a problem is looked at, its samples are tried, its pose improved.

A round is two launches, and what has been found stays on the device with what is still running. Threads of one
problem read the same table, which the workspace (numbers(N), B) keeps from one launch to the next.
"""

from typing import Any

import numpy as np

from ..pose.descent import copy
from ..pose.equations import CAMERA, POSE, ROW, new_camera, new_pose
from ..pose.p3p import ROOTS, fill_sample, p3p
from ..pose.tile import Data, Part, new_centre
from ..vectors import get, jit, put, resolution, room
from .refinement import new_spare, score_of
from .rounds import Found, Sampling, keep, new_best, new_scores, no_models, take
from .rounds import improve as _improve
from .rounds import score as _score
from .samples import behind, draw, fill_table, new_chosen, new_roots, new_sample, new_table, new_work

__all__ = ["THREADS"]


@jit
def _store(part: Any, table: Any) -> None:
    """Camera and centre into the workspace, where they wait for the next launch behind what `improve` overwrites."""
    rows, camera = table.tile.rows, table.tile.camera
    kept = room(part, behind(table) + rows * (1 + ROW), CAMERA + 3, camera)
    for k in range(CAMERA):
        put(kept, k, get(camera, k))
    for k in range(3):
        put(kept, CAMERA + k, get(table.centre, k))


@jit
def _recall(part: Any, table: Any) -> None:
    """The camera and the centre that `_store` left."""
    rows, camera = table.tile.rows, table.tile.camera
    kept = room(part, behind(table) + rows * (1 + ROW), CAMERA + 3, camera)
    copy(kept, camera, CAMERA)
    for k in range(3):
        put(table.centre, k, get(kept, CAMERA + k))


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
    """Lay out problem b. arguments: data, candidates, threshold2, workspace, out, of `rounds.attempt` but for the
    workspace. What is not as it should be ends the problem, its number of points -1."""
    data, candidates, threshold2, workspace, out = arguments
    data, part, found = Data(*data), Part(b, b + 1, b, True, workspace), Found(*out)
    table = new_table(data, part, new_camera(workspace), new_centre(workspace))
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
    data, _, threshold2, workspace, out, sampling, scores = arguments
    sampling, found = Sampling(*sampling), Found(*out)
    b, h = i // sampling.H, i % sampling.H
    if not found.running[b] or found.facts[b, 0] < 3.0:
        return
    data, part = Data(*data), Part(b, b + 1, b, True, workspace)
    table = new_table(data, part, new_camera(workspace), new_centre(workspace))
    _recall(part, table)
    roots, pose = new_roots(workspace), new_pose(workspace)
    _solve(table, sampling.seeds[b], sampling.first + h, roots)
    for root in range(ROOTS):
        at, cost = root * (POSE + 1), np.inf
        if get(roots, at + POSE) != 0.0:
            take(roots, at, 1, pose)
            cost = score_of(table.tile, pose, threshold2, np.inf, None)
        scores[h * ROOTS + root, b] = cost


@jit
def improve(b: Any, arguments: Any) -> None:
    """What a round makes of problem b. arguments: those of `sample`."""
    data, _, threshold2, workspace, out, sampling, scores = arguments
    sampling, found = Sampling(*sampling), Found(*out)
    if not found.running[b]:
        return
    data, part = Data(*data), Part(b, b + 1, b, True, workspace)
    table = new_table(data, part, new_camera(workspace), new_centre(workspace))
    _recall(part, table)
    models = no_models(new_scores(workspace), new_best(workspace), sampling.refined)
    roots = new_roots(workspace)
    # of all that were tried scores alone are kept: the best samples are drawn and solved once more
    last, number = -np.inf, -1
    for _ in range(models.count if found.facts[b, 0] >= 3.0 else 0):
        before, number_before, last, number = last, number, np.inf, -1
        for k in range(ROOTS * sampling.H):
            cost = scores[k, b]
            if cost < last and (cost > before or (cost == before and k > number_before)):
                last, number = cost, k
        if number < 0:
            break
        _solve(table, sampling.seeds[b], sampling.first + number // ROOTS, roots)
        keep(models, last, roots, number % ROOTS * (POSE + 1))
    spare = new_spare(part, behind(table), table.tile)
    _improve(b, table, sampling, threshold2, models, spare, found)


@jit
def score(b: Any, arguments: Any) -> None:
    """What pose b is worth. arguments: data, candidates, threshold2, workspace, poses, out, of `rounds.score`."""
    data, candidates, threshold2, workspace, poses, out = arguments
    if _score(data, candidates, threshold2, poses, (b, b + 1, b, True, workspace), out):
        costs, inliers = out
        costs[b] = np.inf
        for i in range(inliers.shape[1]):
            inliers[b, i] = False


THREADS = {"ransac_survey": survey, "ransac_sample": sample, "ransac_improve": improve, "ransac_score": score}
"""What there is, by name; `ransac_sample` takes a thread for every sample of every problem."""
