"""A camera pose among wrong correspondences: RANSAC with P3P, then PnP of the inliers, as a layer."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from geometry.camera import Model
from geometry.checks import check_tensors_or_none, leading, not_finite, plainly, positive, values
from geometry.compiled.launch import compiles_for, grid, in_parallel
from geometry.consensus import RansacSolution
from geometry.consensus.samples import seeds
from geometry.consensus.search import rounds
from geometry.optim import Gradient, Status, opaque
from geometry.pose.compiled import MODELS
from geometry.pose.cuda import shared, workspace
from geometry.pose.data import PnPData, check_options
from geometry.pose.layer import PoseSolution, data_of, pnp
from geometry.pose.problem import PoseModel
from geometry.pose.ransac_tensors import REFINE, TensorSearch
from geometry.pose.rig_data import Data
from geometry.robust import Kernel

__all__ = ["Draws", "among", "pnp_ransac"]

_CHANCE = 0.1  # as many models as good as the one that is reported may be expected among random pixels


def pnp_ransac(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor | None,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    candidates: Tensor | None = None,
    threshold: float = 4.0,
    hypotheses: int = 10_000,
    confidence: float = 0.9999,
    model: PoseModel = "radtan",
    kernel: Kernel | None = None,
    gradient: Gradient = "exact",
    generator: torch.Generator | None = None,
    throw: bool = False,
) -> RansacSolution:
    """Camera pose from 2D-3D correspondences many of which are wrong: what `pnp` cannot start from by itself.

    points2d, points3d, K, distortion, weights, mask, model and gradient as in `pnp`. candidates (B|1,N): the odds of
    each correspondence to be drawn, such as a network's or a matcher's confidence, 0 for absent; uniform if None.
    threshold: the largest error of an inlier, in pixels, with model="ray" in radians (times its weight). kernel: of the
    last refinement.
    Samples of three are drawn until one of inliers alone has been among them with probability `confidence`, at most
    `hypotheses` of them; the best by MSAC score are refined on their own inliers, every new best through thresholds of
    five times its size down to itself, and from its mirror image too, which of a flat, small object looks almost the
    same (`geometry.consensus.search`, `geometry.pose.ransac_tensors.mirrored`).

    Returns RansacSolution with x = world_to_camera (B,4,4), which minimises the reprojection error of its inliers and
    is differentiable in them as `pnp` is (their choice is not); inliers (B,N) bool, those within the threshold of x
    and in front of the camera; cost (B,) = 1/2 sum min(|r|^2, threshold^2); steps (B,), the samples drawn. status:
    that of `pnp`, or TOO_FEW where fewer than four correspondences are present, or where the inliers are so few that
    random pixels would have as many (a contrario: Moisan and Stival, IJCV 2004, with the share that the threshold's
    disc has of the box around all pixels, or of the cap around all bearings); then x is the best that was found,
    finite, without gradient, of no worth.
    Raises ValueError as `pnp` does, and for a threshold of another unit than K, as pixels are where K is the identity;
    with throw=True, SolverError where a problem failed.

    generator: torch's own if None. It gives one number for each problem, in their order, and all samples of a problem
    follow from its own (`geometry.consensus.samples`). So on the CPU a batch draws the samples, chooses the inliers and
    leaves the generator as a loop over its problems, or over parts of it, with the same generator; x and cost are equal
    but for the rounding of `pnp`. A problem alone is the first of a batch.

    On the CPU a compiled kernel searches, on as many threads as torch has. On a CUDA device with numba-cuda threads of
    it do, and nothing waits for them, so that a call can be captured in a CUDA graph: the rounds are larger there, as
    many as `hypotheses` allows (so ask for no more than are needed), and what would raise ValueError for its values
    ends as INFEASIBLE. Elsewhere the tensor operations of `geometry.consensus.search` search.

    >>> points2d[:, :4] += 50  # wrong
    >>> found = pnp_ransac(points2d, points3d, K, threshold=3.0)
    >>> found.converged, found.inliers.sum(1)
    (tensor([True, True, True]), tensor([8, 8, 8]))
    """
    check_options(model, kernel, gradient, bearings=True)
    positive("threshold", threshold)
    data = data_of(points2d, points3d, K, distortion, weights, mask, candidates=candidates, model=model)
    back_end = _back_end(points2d, model)
    if back_end is not _OnDevice:
        values(K=(K, "camera"))
        check_unit(threshold, points2d, K, weights, mask)

    def near(pose: Tensor, inliers: Tensor) -> PoseSolution:
        return pnp(
            points2d, points3d, K, distortion=distortion, weights=weights, mask=inliers, init=pose, model=model,
            kernel=kernel, gradient=gradient,
        )  # fmt: skip

    draws = Draws(candidates, threshold, hypotheses, confidence, generator)
    solution = among(data, model, near, back_end, draws)
    if throw:
        solution.raise_if_failed()
    return solution


def check_unit(
    threshold: float, points2d: Tensor, K: Tensor | None, weights: Tensor | None, mask: Tensor | None
) -> None:
    """Raise ValueError for a threshold of another unit than the errors, where no weights change it: one that is as
    large as every focal length, and in whose disc all pixels of each problem would lie.

    Such is a threshold of pixels beside normalised coordinates and K = 1. All observations would be inliers of nearly
    any pose, and no answer could be but TOO_FEW; so with bearings and an angle of pi. Small extent alone says nothing:
    an object may be far away.
    """
    if weights is not None:
        return
    if K is None:
        if threshold >= math.pi:
            raise ValueError(f'threshold must be an angle in radians, below pi, with model="ray", got {threshold}')
        return

    def look(points2d: Tensor, K: Tensor, seen: Tensor) -> None:
        f = float(K[..., :2, :2].abs().amax()) if points2d.numel() and K.numel() else math.inf
        if threshold < f:
            return
        seen = seen[..., None]
        size = points2d.where(seen, -math.inf).amax(-2) - points2d.where(seen, math.inf).amin(-2)
        if (size.norm(dim=-1) <= 2 * threshold).all():
            raise ValueError(
                f"threshold must be in the unit of points2d and K, got {threshold:g} beside a focal length of {f:g} and"
                f" points2d that are all within {0.5 * float(size.norm(dim=-1).max()):.2g} of a middle: all would be"
                " inliers of any pose. For normalised coordinates divide pixels by the focal length"
            )

    plainly(look, points2d, K, torch.tensor(True, device=points2d.device) if mask is None else mask)


class Draws(NamedTuple):
    """How samples are drawn, and how far an inlier may be: arguments of `pnp_ransac`."""

    candidates: Tensor | None
    threshold: float
    hypotheses: int
    confidence: float
    generator: torch.Generator | None


def among(
    data: Data, model: PoseModel, near: Callable[[Tensor, Tensor], PoseSolution], back_end: Any, draws: Draws
) -> RansacSolution:
    """The best pose by MSAC score, refined on its inliers.

    back_end: what searches (`geometry.pose.ransac_tensors`). near(pose (B,4,4), inliers (B,N)): the minimum next to a
    pose, of the points that are inliers.
    """
    candidates, threshold, *how = draws
    check_tensors_or_none(candidates=candidates)
    B, N, _ = data.points2d.shape
    kind, dtype = type(data), data.points2d.dtype
    if candidates is None:
        candidates = torch.ones(1, 1, dtype=dtype, device=data.points2d.device)
    else:
        candidates = leading("candidates", candidates, B, (N,))
    if back_end is not _OnDevice:
        values(candidates=(candidates, "odds"))
    if B == 0 and back_end is TensorSearch:  # vmap cannot map over nothing
        inliers = torch.zeros(0, N, dtype=torch.bool, device=data.points2d.device)
        found = near(data.points2d.new_zeros(0, 4, 4, dtype=torch.promote_types(dtype, torch.float32)), inliers)
        return RansacSolution(found.x, found.cost, found.status, found.steps, inliers)

    def working(*tensors: Tensor) -> Any:
        return back_end(kind(*tensors[:-1]), tensors[-1], threshold, model)

    def searched(*tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        pose, inliers, samples, count, chance = working(*tensors).search(*how)
        support = inliers.sum(1)
        enough = (support >= 4) & ~_by_chance(count, support, samples, chance)
        failed = torch.where(count < 0, Status.INFEASIBLE, Status.TOO_FEW)
        return pose, (inliers, samples, enough, failed)

    tensors = *data.to(torch.float64), candidates.double()
    pose, (inliers, samples, enough, failed) = opaque(searched, *tensors, batch="shared")
    found = near(pose.to(torch.promote_types(dtype, torch.float32)), inliers)
    pose = torch.where(enough[:, None, None], found.x, found.x.detach())
    cost, (inliers,) = opaque(lambda at, *rest: working(*rest).score(at), pose.double(), *tensors, batch="shared")
    status = torch.where(enough, found.status, failed).to(torch.int8)
    return RansacSolution(pose, cost.to(pose.dtype), status, samples, inliers)


def _back_end(points2d: Tensor, model: PoseModel) -> "type[_Compiled | _OnDevice | TensorSearch]":
    if model not in MODELS or not compiles_for(points2d):
        return TensorSearch
    return _Compiled if points2d.is_cpu else _OnDevice


def _by_chance(n: Tensor, k: Tensor, samples: Tensor, chance: Tensor) -> Tensor:
    """Whether so many models would have k of n inliers, were the pixels random, each of them an inlier by `chance`."""
    n, k = n.double(), k.double()
    models = 4 * torch.minimum(samples.double(), n * (n - 1) * (n - 2) / 6)
    ways = sum(sign * torch.lgamma(m.clamp_min(0) + 1) for sign, m in ((1, n - 3), (-1, k - 3), (-1, n - k)))
    # logarithms by xlogy: log itself wakes torch's threads for any size, and they hold the cores for milliseconds
    return ways + torch.xlogy((k - 3).clamp_min(0), chance) + torch.xlogy(1.0, models / _CHANCE) > 0


class _Found(NamedTuple):
    """What a search by kernels changes (`geometry.compiled.consensus.rounds.Found`)."""

    poses: Tensor
    costs: Tensor
    inliers: Tensor
    facts: Tensor
    running: Tensor
    drawn: Tensor

    @classmethod
    def nothing(cls, points2d: Tensor) -> "_Found":
        """What there is at the beginning; booleans as the bytes that kernels know."""
        B, N, _ = points2d.shape
        poses = torch.eye(4, dtype=points2d.dtype, device=points2d.device).repeat(B, 1, 1)
        inliers, running = (points2d.new_zeros(size, dtype=torch.uint8) for size in ((B, N), (B,)))
        drawn = points2d.new_zeros(B, dtype=torch.int32)
        return cls(poses, points2d.new_full((B,), torch.inf), inliers, points2d.new_zeros(B, 2), running + 1, drawn)

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.poses, self.inliers.view(torch.bool), self.drawn, self.facts[:, 0], self.facts[:, 1]


class _Compiled:
    """The same by kernels alone, so that torch's threads stay asleep."""

    def __init__(self, data: PnPData, candidates: Tensor, threshold: float, model: Model) -> None:
        *numbers, mask = (d.contiguous() for d in data)
        given = *numbers, mask.view(torch.uint8), int(model == "fisheye")
        self.given: tuple[Any, ...] = given, candidates.contiguous()
        self.points2d, self.square = data.points2d, threshold**2

    def _run(self, kernel: Callable[..., int], *arguments: Any) -> None:
        """The kernel on all problems, by as many threads as torch has; arguments: those after candidates but part."""
        B = len(self.points2d)
        data, candidates, *between, out = _arrays((*self.given, *arguments))
        threads = max(1, min(torch.get_num_threads(), B))
        bounds = [B * i // threads for i in range(threads + 1)]

        def work(begin: int, end: int, slot: int) -> int:
            return kernel(data, candidates, *between, (begin, end, slot, True, None), out)

        for complaint in in_parallel(bounds, work):
            if complaint:
                name = ("points2d", "points3d", "K", "distortion", "weights")[complaint - 1]
                raise not_finite(name, " where mask is True")

    def search(
        self, hypotheses: int, confidence: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        from geometry.compiled.consensus.rounds import attempt

        found = _Found.nothing(self.points2d)
        seed = seeds(len(self.points2d), generator, self.points2d.device)
        for begin, H in rounds(hypotheses, confidence):
            if not found.running.any():
                break
            self._run(attempt, (seed, begin, H, REFINE, 1 - confidence), self.square, tuple(found))
        return found.result()

    def score(self, pose: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        from geometry.compiled.consensus.rounds import score

        cost, inliers = pose.new_empty(len(pose)), pose.new_empty(self.points2d.shape[:2], dtype=torch.uint8)
        self._run(score, self.square, pose.contiguous(), (cost, inliers))
        return cost, (inliers.view(torch.bool),)


def _arrays(argument: Any) -> Any:
    """Tensors of the CPU as arrays, in tuples of tuples."""
    if isinstance(argument, tuple):
        return tuple(_arrays(a) for a in argument)
    return argument.numpy() if isinstance(argument, Tensor) else argument


class _OnDevice:
    """The same by threads of a device, one for every problem, or sample: nothing waits for it, nothing is read back.

    So the rounds are those that `hypotheses` allows, and cost next to nothing once all problems have ended. They are
    larger than on the CPU: samples are tried side by side, the descents of a round one after the other.
    """

    ROUNDS = 256, 1024

    def __init__(self, data: PnPData, candidates: Tensor, threshold: float, model: Model) -> None:
        *numbers, mask = (d.contiguous() for d in data)
        B, N, _ = data.points2d.shape
        # of every point what `geometry.compiled.consensus.threads` keeps, and of every problem
        kept = data.points2d.new_empty(12 * N + 21, B)
        given = *numbers, mask.view(torch.uint8), int(model == "fisheye")
        self.given: tuple[Any, ...] = given, candidates.contiguous(), threshold**2, kept

    def _run(self, name: str, threads: int, *arguments: Any, team: Literal["cuda", "warp"] = "cuda") -> None:
        if threads:
            grid(team).run(name, threads, (*self.given, *arguments), self.given[3].device)

    def search(
        self, hypotheses: int, confidence: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        points2d, *_ = self.given[0]
        B, found = len(points2d), _Found.nothing(points2d)
        seed, sizes = seeds(B, generator, points2d.device), list(rounds(hypotheses, confidence, *self.ROUNDS))
        scores, together = points2d.new_empty(4 * max(H for _, H in sizes), B), shared(points2d)
        space = workspace(points2d, 18 if together else 8, together)
        self._run("ransac_survey", B, tuple(found))
        for begin, H in sizes:
            sampling = seed, begin, H, REFINE, 1 - confidence
            self._run("ransac_sample", B * H, tuple(found), sampling, scores)
            self._run("ransac_improve", B, tuple(found), sampling, scores, space, team="warp" if together else "cuda")
        return found.result()

    def score(self, pose: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        cost, inliers = pose.new_empty(len(pose)), pose.new_empty(self.given[0][0].shape[:2], dtype=torch.uint8)
        self._run("ransac_score", len(pose), pose.contiguous(), (cost, inliers))
        return cost, (inliers.view(torch.bool),)
