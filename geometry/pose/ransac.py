"""A camera pose among wrong correspondences: RANSAC with P3P, then PnP of the inliers, as a layer."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import Model, in_front, project_camera_frame, rays_of
from geometry.checks import check_tensors_or_none, positive, values
from geometry.compiled.launch import compiles_for, grid, in_parallel
from geometry.consensus import RansacSolution, ransac
from geometry.consensus.minimal import p3p
from geometry.consensus.samples import seeds
from geometry.consensus.search import rounds
from geometry.optim import Gradient, Status, opaque
from geometry.pose.compiled import MODELS
from geometry.pose.data import PnPData, check_options, prepare
from geometry.pose.layer import pnp
from geometry.pose.problem import pnp_problem
from geometry.robust import Kernel

__all__ = ["pnp_ransac"]

_REFINE = 2  # models of a round that are refined
_CHANCE = 0.1  # as many models as good as the one that is reported may be expected among random pixels


def pnp_ransac(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    candidates: Tensor | None = None,
    threshold: float = 4.0,
    hypotheses: int = 10_000,
    confidence: float = 0.9999,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    gradient: Gradient = "exact",
    generator: torch.Generator | None = None,
    throw: bool = False,
) -> RansacSolution:
    """Camera pose from 2D-3D correspondences many of which are wrong: what `pnp` cannot start from by itself.

    points2d, points3d, K, distortion, weights, mask, model and gradient as in `pnp`. candidates (B|1,N): the odds of
    each correspondence to be drawn, such as a network's or a matcher's confidence, 0 for absent; uniform if None.
    threshold: the largest error of an inlier, in pixels (times its weight). kernel: of the last refinement.
    Samples of three are drawn until one of inliers alone has been among them with probability `confidence`, at most
    `hypotheses` of them; the best by MSAC score are refined on their own inliers, every new best through thresholds of
    five times its size down to itself, and from its mirror image too, which of a flat, small object looks almost the
    same (`geometry.consensus.search`, `mirrored`).

    Returns RansacSolution with x = world_to_camera (B,4,4), which minimises the reprojection error of its inliers and
    is differentiable in them as `pnp` is (their choice is not); inliers (B,N) bool, those within the threshold of x
    and in front of the camera; cost (B,) = 1/2 sum min(|r|^2, threshold^2); steps (B,), the samples drawn. status:
    that of `pnp`, or TOO_FEW where fewer than four correspondences are present, or where the inliers are so few that
    random pixels would have as many (a contrario: Moisan and Stival, IJCV 2004, with the share that the threshold's
    disc has of the box around all pixels); then x is the best that was found, finite, without gradient, of no worth.
    Raises ValueError as `pnp` does; with throw=True, SolverError where a problem failed.

    generator: torch's own if None. It gives one number for each problem, in their order, and all samples of a problem
    follow from its own (`geometry.consensus.samples`). So on the CPU a batch draws the samples, chooses the inliers and
    leaves the generator as a loop over its problems, or over parts of it, with the same generator; x and cost are equal
    but for the rounding of `pnp`. A problem alone is the first of a batch.

    On the CPU a compiled kernel searches, on as many threads as torch has. On a CUDA device with numba-cuda threads of
    it do, and nothing waits for them, so that a call can be captured in a CUDA graph: the rounds are larger there, as
    many as `hypotheses` allows (so ask for no more than are needed), and what would raise ValueError for its values
    ends as INFEASIBLE. Elsewhere the tensor operations of `geometry.consensus.search` search.
    """
    positive("threshold", threshold)
    check_options(model, kernel, gradient)
    check_tensors_or_none(candidates=candidates)
    data = prepare(points2d, points3d, K, distortion, weights, mask, model=model)
    B, N, _ = points2d.shape
    if candidates is None:
        candidates = torch.ones(1, 1, dtype=points2d.dtype, device=points2d.device)
    elif candidates.shape not in ((B, N), (1, N)):
        raise ValueError(f"candidates must have shape ({B}|1,{N}), got {tuple(candidates.shape)}")
    back_end = _back_end(points2d, model)
    if back_end is not _OnDevice:
        values(candidates=(candidates, "odds"), K=(K, "camera"))

    def working(*tensors: Tensor) -> "_Compiled | _OnDevice | _Tensors":
        return back_end(PnPData(*tensors[:6]), tensors[6], threshold, model)

    def searched(*tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        pose, inliers, samples, count, chance = working(*tensors).search(hypotheses, confidence, generator)
        support = inliers.sum(1)
        enough = (support >= 4) & ~_by_chance(count, support, samples, chance)
        failed = torch.where(count < 0, Status.INFEASIBLE, Status.TOO_FEW)
        return pose, (inliers, samples, enough, failed)

    tensors = *data.to(torch.float64), candidates.double()
    pose, (inliers, samples, enough, failed) = opaque(searched, *tensors, batch="shared")
    found = pnp(
        points2d, points3d, K, distortion=distortion, weights=weights, mask=inliers,
        init=pose.to(torch.promote_types(points2d.dtype, torch.float32)), model=model, kernel=kernel, gradient=gradient,
    )  # fmt: skip
    pose = torch.where(enough[:, None, None], found.x, found.x.detach())
    cost, (inliers,) = opaque(lambda at, *rest: working(*rest).score(at), pose.double(), *tensors, batch="shared")
    status = torch.where(enough, found.status, failed).to(torch.int8)
    solution = RansacSolution(pose, cost.to(pose.dtype), status, samples, inliers)
    if throw:
        solution.raise_if_failed()
    return solution


def _back_end(points2d: Tensor, model: Model) -> "type[_Compiled | _OnDevice | _Tensors]":
    if model not in MODELS or not compiles_for(points2d):
        return _Tensors
    return _Compiled if points2d.is_cpu else _OnDevice


def mirrored(pose: Tensor, points3d: Tensor, inliers: Tensor) -> Tensor:
    """The pose (B,4,4) of the other look of a flat, small object: its depths turned about, its inliers (B,N) in place.

    Seen from afar, a plane and its mirror image in depth look alike (Oberkampf, DeMenthon and Davis 1996; Schweighofer
    and Pinz 2006): R becomes S(v) R S(n) with the reflections S along the line of sight v to the middle of the inliers
    and along the direction n in which they extend least. NaN where they are on a line, or none.
    """
    w = inliers[..., None].to(points3d)
    middle = (w * points3d).sum(1) / w.sum(1)
    apart = w * (points3d - middle[:, None])
    normal = _least_direction(apart.mT @ apart)
    p = se3.transform(pose, middle[:, None])[:, 0]
    R = _reflection(p / p.norm(dim=-1, keepdim=True)) @ pose[:, :3, :3] @ _reflection(normal)
    return se3.make(R, p - (R @ middle[..., None])[..., 0])


def _reflection(direction: Tensor) -> Tensor:
    """The reflection (B,3,3) along a direction (B,3) of length one."""
    eye = torch.eye(3, dtype=direction.dtype, device=direction.device)
    return eye - 2 * direction[:, :, None] * direction[:, None, :]


def _least_direction(A: Tensor) -> Tensor:
    """The eigenvector (B,3) of the least eigenvalue of A (B,3,3), about, without a decomposition.

    The adjugate has the eigenvectors of A, and its largest eigenvalue where A has its least; powers leave that alone.
    """
    rows = [torch.linalg.cross(A[:, (i + 1) % 3], A[:, (i + 2) % 3]) for i in range(3)]
    A = torch.stack(rows, -2)
    for _ in range(6):
        A = A / A.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        A = A @ A
    column = A.gather(-1, A.diagonal(dim1=-2, dim2=-1).argmax(-1)[:, None, None].expand(-1, 3, 1))[..., 0]
    return column / column.norm(dim=-1, keepdim=True)


def _by_chance(n: Tensor, k: Tensor, samples: Tensor, chance: Tensor) -> Tensor:
    """Whether so many models would have k of n inliers, were the pixels random, each of them an inlier by `chance`."""
    n, k = n.double(), k.double()
    models = 4 * torch.minimum(samples.double(), n * (n - 1) * (n - 2) / 6)
    ways = sum(sign * torch.lgamma(m.clamp_min(0) + 1) for sign, m in ((1, n - 3), (-1, k - 3), (-1, n - k)))
    # logarithms by xlogy: log itself wakes torch's threads for any size, and they hold the cores for milliseconds
    return ways + torch.xlogy((k - 3).clamp_min(0), chance) + torch.xlogy(1.0, models / _CHANCE) > 0


class _Tensors:
    """The search in batched tensor operations: the reference, and what runs elsewhere than on the CPU."""

    def __init__(self, data: PnPData, candidates: Tensor, threshold: float, model: Model) -> None:
        data = data.prepared()
        self.rays, valid = rays_of(data.points2d, data.K, data.distortion, model)
        # what the lens cannot have imaged is as if absent
        present = data.mask & (candidates > 0) & valid
        self.data, self.frame = data.centred(present)
        self.odds = torch.where(present, candidates.expand(present.shape), 0)
        self.threshold, self.model = threshold, model

    def search(
        self, hypotheses: int, confidence: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Poses (B,4,4), inliers (B,N), samples drawn (B,), points present (B,), chance of a random inlier (B,)."""
        rows = torch.arange(len(self.odds), device=self.odds.device)[:, None, None]

        def three_points(index: Tensor) -> Tensor:
            return p3p(self.rays[rows, index], self.data.points3d[rows, index]).flatten(1, 2)

        found = ransac(
            pnp_problem(self.model), three_points, *self.data, candidates=self.odds, size=3, threshold=self.threshold,
            hypotheses=hypotheses, confidence=confidence, refine=_REFINE, generator=generator,
            alternative=lambda pose, inliers: mirrored(pose, self.data.points3d, inliers),
        )  # fmt: skip
        # where no sample has a root there is nothing but NaN
        pose = torch.where(torch.isfinite(found.x), found.x, torch.eye(4, dtype=found.x.dtype, device=found.x.device))
        points2d, weights, present = self.data.points2d, self.data.weights, self.data.mask
        count = present.sum(1)
        low = torch.where(present[..., None], points2d, torch.inf).amin(1)
        high = torch.where(present[..., None], points2d, -torch.inf).amax(1)
        tiny = torch.finfo(weights.dtype).tiny
        area = torch.where(present, 1 / weights.prod(-1).abs().clamp_min(tiny), 0).sum(1) / count.clamp_min(1)
        box = torch.where(count > 0, (high - low).prod(-1), 1.0).clamp_min(tiny)
        chance = (math.pi * self.threshold**2 * area / box).clamp(max=1)
        return self.frame.from_frame(pose), found.inliers, found.steps, count, chance

    def score(self, pose: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        """Costs (B,) and inliers (B,N) of poses (B,4,4)."""
        points2d, points3d, K, distortion, weights, present = self.data
        points = se3.transform(self.frame.to_frame(pose), points3d)
        r = weights * (project_camera_frame(points, K, distortion, model=self.model) - points2d)
        square, bound = r.square().sum(-1), self.threshold**2
        inliers = present & in_front(points, distortion, model=self.model) & (square <= bound)
        return 0.5 * torch.where(inliers, square, torch.where(present, bound, 0.0)).sum(1), (inliers,)


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
                raise ValueError(f"{name} must be finite where mask is True, got NaN or infinity")

    def search(
        self, hypotheses: int, confidence: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        from geometry.compiled.consensus.rounds import attempt

        found = _Found.nothing(self.points2d)
        seed = seeds(len(self.points2d), generator, self.points2d.device)
        for begin, H in rounds(hypotheses, confidence):
            if not found.running.any():
                break
            self._run(attempt, (seed, begin, H, _REFINE, 1 - confidence), self.square, tuple(found))
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
        workspace = data.points2d.new_empty(19 * N + 21, B)
        given = *numbers, mask.view(torch.uint8), int(model == "fisheye")
        self.given: tuple[Any, ...] = given, candidates.contiguous(), threshold**2, workspace

    def _run(self, name: str, threads: int, *arguments: Any) -> None:
        if threads:
            grid("cuda").run(name, threads, (*self.given, *arguments), self.given[3].device)

    def search(
        self, hypotheses: int, confidence: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        points2d, *_ = self.given[0]
        B, found = len(points2d), _Found.nothing(points2d)
        seed, sizes = seeds(B, generator, points2d.device), list(rounds(hypotheses, confidence, *self.ROUNDS))
        scores = points2d.new_empty(4 * max(H for _, H in sizes), B)
        self._run("ransac_survey", B, tuple(found))
        for begin, H in sizes:
            sampling = seed, begin, H, _REFINE, 1 - confidence
            self._run("ransac_sample", B * H, tuple(found), sampling, scores)
            self._run("ransac_improve", B, tuple(found), sampling, scores)
        return found.result()

    def score(self, pose: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        cost, inliers = pose.new_empty(len(pose)), pose.new_empty(self.given[0][0].shape[:2], dtype=torch.uint8)
        self._run("ransac_score", len(pose), pose.contiguous(), (cost, inliers))
        return cost, (inliers.view(torch.bool),)
