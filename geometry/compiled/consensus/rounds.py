"""RANSAC for PnP: `attempt`, one round of it, and `score`, what a pose is worth."""

from typing import Any, NamedTuple

import numpy as np

from geometry.compiled.constants import WORTH

from ..pose.descent import copy
from ..pose.equations import POSE, L, new_camera, new_pose
from ..pose.p3p import ROOTS, fill_sample, p3p
from ..pose.tile import DATA, PART, Data, Part, fill_pose, new_centre, number, share_of, write_pose
from ..vectors import entry, get, jit, meet, member, resolution, room, scratch, splat, store, total
from .refinement import new_spare, optimise, refine, score_of
from .samples import behind, draw, fill_table, new_chosen, new_roots, new_sample, new_table, new_work

__all__ = ["Found", "Sampling", "attempt", "improve", "keep", "new_best", "new_scores", "no_models", "score", "take"]

_MOST = 8  # models of a round that are refined, at most
new_scores, new_best = scratch(_MOST), scratch(_MOST * 12)


class Sampling(NamedTuple):
    """Samples first to first + H - 1 of the streams of the seeds (B,) are a round, its `refined` best models refined.

    unlikely: the chance to have missed a better model by which a problem ends.
    """

    seeds: Any
    first: Any
    H: Any
    refined: Any
    unlikely: Any


class Found(NamedTuple):
    """Of every problem: pose (B,4,4), cost (B,) = half the score, inliers (B,N), the points that are present and the
    chance of a random pixel to be an inlier (B,2), whether it is running (B,), and the samples it has drawn (B,)."""

    poses: Any
    costs: Any
    inliers: Any
    facts: Any
    running: Any
    drawn: Any


class Models(NamedTuple):
    """The best `count` models of a round: their scores, in order, and poses, twelve numbers each."""

    scores: Any
    poses: Any
    count: Any


@jit
def no_models(scores: Any, poses: Any, refined: Any) -> Any:
    """None of those that are refined, nor of the one that is kept where none is, in two arrays."""
    count = min(max(refined, 1), _MOST)
    for k in range(count):
        scores[k] = np.inf
    return Models(scores, poses, count)


@jit
def keep(models: Any, cost: Any, roots: Any, at: Any) -> None:
    """Put the root that `p3p` left at a place among the best models, if it is one; of equals the first stays ahead."""
    scores, poses, count = models
    if cost < scores[count - 1]:
        k = count - 1
        while k > 0 and cost < scores[k - 1]:
            scores[k] = scores[k - 1]
            for q in range(12):
                poses[12 * k + q] = poses[12 * k - 12 + q]
            k -= 1
        scores[k] = cost
        for q in range(12):
            poses[12 * k + q] = roots[at + q * L]


@jit
def take(numbers: Any, at: Any, apart: Any, pose: Any) -> None:
    """The pose whose numbers begin at a place, so far apart, into all lanes."""
    for k in range(12):
        store(pose, k * L, splat(get(numbers, at + k * apart), pose))


@jit
def improve(b: Any, table: Any, sampling: Any, threshold2: Any, models: Any, spare: Any, found: Any) -> None:
    """What a round makes of problem b: the pose of the best model, where better, optimised where that is worth it.

    The problem ends when a sample of inliers alone has been drawn but for the chance `unlikely`, as in
    `geometry.consensus.search.search`.
    """
    poses, costs, inliers, facts, running, drawn = found
    ends, n, count, before, good = table.ends, len(table.ends), facts[b, 0], costs[b], 0.0
    pose, trial, least = new_pose(poses), new_pose(poses), np.inf
    if count >= 3.0:
        for k in range(models.count):
            if models.scores[k] < np.inf:
                take(models.poses, 12 * k, 1, trial)
                cost = refine(table.tile, trial, threshold2, False, min(sampling.refined, 1), spare)
                if cost < least:
                    copy(trial, pose, POSE)
                    least = cost
        if sampling.refined > 0 and 0.5 * least < WORTH * before:
            least = optimise(table.tile, pose, threshold2, spare)
        if 0.5 * least < before:
            score_of(table.tile, pose, threshold2, np.inf, spare.squares)
            for k in range(share_of(n)):
                inliers[b, number(k, True)] = get(spare.squares, k) <= threshold2
        for k in range(share_of(n)):
            i = number(k, True)
            if inliers[b, i]:
                good += ends[i] - (ends[i - 1] if i > 0 else 0.0)
        good = total(good) * (count / ends[n - 1])
    chance = 1.0
    for i in range(3):
        chance *= min(max((good - i) / max(count - i, 1.0), 0.0), 1.0)
    meet()  # all have read what is written now
    if member() == 0:
        if 0.5 * least < before:
            costs[b] = 0.5 * least
            write_pose(pose, 0, table.centre, 0, poses, b)
        drawn[b] = sampling.first + sampling.H
        running[b] = count >= 3.0 and sampling.unlikely <= (1.0 - chance) ** float(drawn[b])


_INPUTS = DATA.format("float64") + ", float64[:,::1]"  # data, candidates
_SAMPLING = "Tuple((int64[::1], int64, int64, int64, float64))"
_FOUND = "Tuple((float64[:,:,::1], float64[::1], uint8[:,::1], float64[:,::1], uint8[::1], int32[::1]))"


@entry(f"int64({_INPUTS}, {_SAMPLING}, float64, {PART}, {_FOUND})")
def attempt(data: Any, candidates: Any, sampling: Any, threshold2: Any, part: Any, out: Any) -> Any:
    """Better poses for the problems of a part that are running, if samples of three of their points have any.

    data, part: tuples as `geometry.compiled.pose.tile.Data` and `Part`; candidates: the odds (B|1,N|1); sampling, out:
    as `Sampling` and `Found`. The `refined` best hypotheses of each problem are fitted to their inliers, and the best
    of these is optimised where it is worth it; with 0 all stay as they are. Returns 0, or what is not as it should be
    as `samples.fill_table` says.
    """
    data, sampling, part, found = Data(*data), Sampling(*sampling), Part(*part), Found(*out)
    table = new_table(data, part, new_camera(found.costs), new_centre(found.costs))
    spare = new_spare(part, behind(table), table.tile)
    tile, rays, ends, _ = table
    sample, roots, work = new_sample(found.costs), new_roots(found.costs), new_work(found.costs)
    chosen, pose = new_chosen(found.costs), new_pose(found.costs)
    scores, best = new_scores(found.costs), new_best(found.costs)
    for b in range(part.begin, part.end):
        if not found.running[b]:
            continue
        bad, count, chance = fill_table(data, b, candidates, threshold2, table)
        if bad:
            return bad
        found.facts[b, 0], found.facts[b, 1] = count, chance
        models = no_models(scores, best, sampling.refined)
        seed, first, H = sampling.seeds[b], sampling.first, sampling.H if count >= 3 else 0
        for h in range(0, H, L):
            for lane in range(L):
                draw(ends, seed, first + min(h + lane, H - 1), chosen)
                for j in range(3):
                    fill_sample(tile, rays, chosen[j], j, lane, sample)
            p3p(sample, resolution(sample), work, roots)
            for lane in range(min(L, H - h)):
                for root in range(ROOTS):
                    at = root * (POSE + L) + lane
                    if roots[at + POSE] != 0.0:
                        take(roots, at, L, pose)
                        keep(models, score_of(tile, pose, threshold2, scores[models.count - 1], None), roots, at)
        improve(b, table, sampling, threshold2, models, spare, found)
    return 0


@entry(f"int64({_INPUTS}, float64, float64[:,:,::1], {PART}, Tuple((float64[::1], uint8[:,::1])))")
def score(data: Any, candidates: Any, threshold2: Any, poses: Any, part: Any, out: Any) -> Any:
    """out: costs (B,) = half the score, and inliers (B,N), of poses (B,4,4); arguments and result as of `attempt`."""
    data, part = Data(*data), Part(*part)
    costs, inliers = out
    table = new_table(data, part, new_camera(costs), new_centre(costs))
    pose, squares = new_pose(costs), room(part, behind(table), table.tile.rows * L, costs)
    for b in range(part.begin, part.end):
        bad, _, _ = fill_table(data, b, candidates, threshold2, table)
        if bad:
            return bad
        for lane in range(L):
            fill_pose(poses, b, lane, table.centre, 0, pose)
        costs[b] = 0.5 * score_of(table.tile, pose, threshold2, np.inf, squares)
        for i in range(len(table.ends)):
            inliers[b, i] = get(squares, i) <= threshold2
    return 0
