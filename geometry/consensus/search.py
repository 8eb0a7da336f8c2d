"""RANSAC over any `Problem`: hypotheses from minimal samples, all problems and hypotheses in one batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from geometry.checks import check_tensors, function, positive, values, whole
from geometry.compiled.constants import WIDER, WORTH
from geometry.consensus.samples import draw, seeds, uniform
from geometry.optim import Problem, Solution, State, Status, batch_data, levenberg_marquardt, map_state, select

__all__ = ["RansacSolution", "ransac", "rounds", "search", "truncated"]

_SHORT, _LONG = 4, 10  # steps of a descent on a score: of many models or on the way, and of the last one
_AT_ONCE = 1 << 21  # residual rows that are held at a time


@dataclass(frozen=True)
class RansacSolution(Solution):
    """`Solution` of `ransac`: cost is the score, steps the number of samples that were drawn.

    inliers (B,N) bool: the observations within the threshold of x.

    >>> pnp_ransac(points2d, points3d, K).inliers.shape
    torch.Size([3, 12])
    """

    inliers: Tensor


def rounds(hypotheses: int, confidence: float, least: int = 64, most: int = 256) -> Iterator[tuple[int, int]]:
    """The begin and the size of the rounds in which samples are drawn, after a check of the arguments.

    Each is half as large again as what was drawn before, between `least` and `most`.
    """
    if not (isinstance(confidence, Real) and 0 < confidence <= 1):
        raise ValueError(f"confidence must be in (0, 1], got {confidence}")
    whole("hypotheses", hypotheses, 1)
    drawn = 0
    while drawn < hypotheses:
        H = min(max(least, drawn // 2), most, hypotheses - drawn)
        yield drawn, H
        drawn += H


def search(
    attempt: Callable[[int, int, Tensor], tuple[Tensor, Tensor]], B: int, size: int, hypotheses: int, confidence: float,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """The rounds of RANSAC: samples are drawn until the best model says that a better one would have been seen.

    attempt(begin, H, running (B,)) draws the samples begin to begin + H - 1 of each problem and returns how many
    observations are present (B,), and how many of them agree with the best model so far (B,), by their share of the
    odds. A problem that is not running has to keep its model, and samples must be drawn for each problem by itself
    (`geometry.consensus.samples`), so that none depends on the others of its batch. A problem ends when a sample of
    inliers alone would have been drawn with probability `confidence` (Fischler and Bolles 1981), or at `hypotheses`
    samples. Returns how many were drawn (B,), int32.
    """
    running = torch.ones(B, dtype=torch.bool, device=device)
    samples = torch.zeros(B, dtype=torch.int32, device=device)
    for begin, H in rounds(hypotheses, confidence):
        if not running.any():
            break
        count, good = attempt(begin, H, running)
        drawn = begin + H
        samples = torch.where(running, drawn, samples)
        chance = torch.ones_like(good)
        for i in range(size):
            chance = chance * ((good - i) / (count - i).clamp_min(1)).clamp(0, 1)
        running = running & (count >= size) & ((1 - confidence) <= (1 - chance) ** drawn)
    return samples


def truncated(problem: Problem, threshold: float) -> Problem:
    """`problem` with the cost 1/2 sum min(|r|^2, threshold^2): the MSAC score (Torr and Zisserman 2000).

    Its data end with present (N,) bool; rows that are not, count nothing, and rows that are not finite, in full.
    """
    square = threshold * threshold

    def residual(x: State, *data_and_present: Tensor) -> Tensor:
        *data, present = data_and_present
        r = problem.residual(x, *data)
        r = r if r.ndim == 2 else r[:, None]
        r = torch.where(torch.isfinite(r).all(-1, keepdim=True), r, 2 * threshold)
        return torch.where(present[:, None], r, 0)

    def jacobian(x: State, *data_and_present: Tensor) -> tuple[Tensor, Tensor]:
        assert problem.jacobian is not None
        *data, present = data_and_present
        r, J = problem.jacobian(x, *data)
        finite = torch.isfinite(r).all(-1, keepdim=True)
        r = torch.where(present[..., None], torch.where(finite, r, 2 * threshold), 0.0)
        return r, torch.where((finite & present[..., None])[..., None], J, 0.0)

    return Problem(
        residual, problem.dof, problem.retract, kernel=lambda s: s.clamp(max=square), broadcasts=problem.broadcasts,
        jacobian=None if problem.jacobian is None else jacobian,
    )  # fmt: skip


def ransac(
    problem: Problem,
    minimal_solver: Callable[[Tensor], State],
    *data: Tensor,
    candidates: Tensor,
    size: int,
    threshold: float,
    hypotheses: int = 256,
    confidence: float = 0.9999,
    refine: int = 2,
    alternative: Callable[[State, Tensor], State] | None = None,
    generator: torch.Generator | None = None,
) -> RansacSolution:
    """The model with the best MSAC score for each of B problems (Torr and Zisserman 2000), locally refined.

    data as for `minimize`. candidates (B|1,N) or (N,): the sampling weight of each observation, 0 for absent ones;
    uniform if they are all alike. minimal_solver(index (B,H,size)) -> x with leading sizes (B,H'), all models that the
    H samples give (H' is any multiple of H; NaN is no model), from the observations that index names; observation n is
    row n of `problem.residual`. threshold: in the units of the residual row's norm.

    Samples are drawn in rounds, at most `hypotheses` of them, and fewer once an outlier-free one has been drawn with
    probability `confidence` (1: never fewer). The `refine` best models of every round descend on the score itself by a
    few Levenberg-Marquardt steps (LO-RANSAC, Chum et al. 2003), and the best of them, where it is new, by all that it
    takes. The score has many minima, and near most good models one that is not the lowest: so that descent begins with
    the score of a threshold five times as wide, and narrows it (graduated non-convexity, Blake and Zisserman 1987;
    thresholds that shrink: Lebeda, Matas and Chum 2012). alternative(x, inliers (B,N)) -> x: another model for each
    problem that explains the inliers about as well, such as the mirrored pose of a flat object; the descent is made
    from there too, and the better is kept. refine=0 leaves all models as they are. The generator (torch's own, if None)
    gives one number for each problem, in their order, which its samples follow from: on the CPU a batch is drawn as a
    loop over its problems, or over parts of it, draws with the same generator.

    Returns x, cost (B,) = 1/2 sum min(|r|^2, threshold^2), inliers (B,N), and status CONVERGED, or TOO_FEW where
    no more than the `size` observations of the sample itself lie within the threshold. x carries no gradient: start
    `argmin` from it, on the inliers or with a robust kernel.

    >>> a = torch.linspace(0, 1, 20)[None]
    >>> b = 3 * a + 1 + (a < 0.3)  # six of twenty are wrong
    >>> def through(index):  # the lines through two of the points
    ...     (a0, a1), (b0, b1) = (value[0][index].unbind(-1) for value in (a, b))
    ...     slope = (b1 - b0) / (a1 - a0)
    ...     return torch.stack([slope, b0 - slope * a0], -1)
    >>> line = Problem(lambda x, a, b: x[0] * a + x[1] - b, dof=2)
    >>> ransac(line, through, a, b, candidates=torch.ones(20), size=2, threshold=0.1).x.round(decimals=6)
    tensor([[3., 1.]])
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a Problem, got {type(problem).__name__}")
    function("minimal_solver", minimal_solver, optional=False)
    check_tensors(candidates=candidates)
    if candidates.ndim not in (1, 2):
        raise ValueError(f"candidates must have shape (B|1,N) or (N,), got {tuple(candidates.shape)}")
    whole("size", size, 1)
    positive("threshold", threshold)
    whole("refine", refine, 0)
    candidates, data = batch_data(candidates if candidates.ndim > 1 else candidates[None], data, "candidates")
    B, N = candidates.shape
    if size > N:
        raise ValueError(f"size must be at most the number of observations {N}, got {size}")
    values(candidates=(candidates, "odds"))
    present, odds = candidates > 0, candidates.detach().to(torch.float64)
    data = (*(d.detach() for d in data), present)
    target = truncated(problem, threshold)
    wider = [truncated(problem, factor * threshold) for factor in WIDER]
    rows = torch.arange(B, device=candidates.device)
    seed = seeds(B, generator, candidates.device)
    best: list[Any] = []  # x and cost, once there are any

    def costs(x: State) -> Tensor:
        each = vmap(target.cost, in_dims=(0, *[None] * len(data)), chunk_size=max(1, _AT_ONCE // N))
        H = (x if isinstance(x, Tensor) else x[0]).shape[1]
        return vmap(each, chunk_size=max(1, _AT_ONCE // (H * N)))(x, *data)

    def lower(x: State, cost: Tensor, other: State) -> tuple[State, Tensor]:
        its = costs(map_state(lambda a: a[:, None], other))[:, 0]
        return select(its < cost, other, x), torch.where(its < cost, its, cost)

    def narrowed(x: State, cost: Tensor, start: State) -> tuple[State, Tensor]:
        """The better of x and of where the descent through all thresholds leads from the start."""
        for wide in wider:
            start, _, _ = levenberg_marquardt(wide, start, data, _SHORT)
        start, _, _ = levenberg_marquardt(target, start, data, _LONG)
        return lower(x, cost, start)

    def optimised(x: State, cost: Tensor) -> tuple[State, Tensor]:
        x, cost = narrowed(x, cost, x)
        return (x, cost) if alternative is None else narrowed(x, cost, alternative(x, within(x)))

    def attempt(begin: int, H: int, running: Tensor) -> tuple[Tensor, Tensor]:
        x = minimal_solver(draw(candidates, uniform(seed, begin, H, size)))
        cost = costs(x)
        kept = min(max(1, refine), cost.shape[1])
        order = cost.topk(kept, dim=1, largest=False).indices
        x = map_state(lambda a: a.detach()[rows[:, None], order].flatten(0, 1), x)
        if refine > 0:
            repeated = tuple(d.repeat_interleave(kept, 0) for d in data)
            x, _, _ = levenberg_marquardt(target, x, repeated, _SHORT)
        x = map_state(lambda a: a.unflatten(0, (B, kept)), x)
        cost, first = costs(x).min(1)
        x = map_state(lambda a: a[rows, first], x)
        new = running & (cost < WORTH * best[1]) if best else running
        if refine > 0 and new.any():
            other, its = optimised(x, cost)
            x, cost = select(new, other, x), torch.where(new, its, cost)
        if best:
            better = running & (cost < best[1])
            x, cost = select(better, x, best[0]), torch.where(better, cost, best[1])
        best[:] = x, cost
        return present.sum(1), present.sum(1) * (odds * within(x)).sum(1) / odds.sum(1)

    def within(x: State) -> Tensor:
        return vmap(target.residual)(x, *data).square().sum(-1).le(threshold * threshold) & present

    with torch.no_grad():
        samples = search(attempt, B, size, hypotheses, confidence, candidates.device)
        if not best:  # without problems there are no rounds, yet x must have a shape
            attempt(0, 1, present.any(1))
        x, cost = best
        inliers = within(x)
        enough = (inliers.sum(1) > size) & (present.sum(1) >= size)
        status = torch.where(enough, Status.CONVERGED, Status.TOO_FEW).to(torch.int8)
        return RansacSolution(x, cost, status, samples, inliers)
