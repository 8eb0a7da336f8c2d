"""Minima of a structure that nothing is known of: where random structures, their mirror images and pairs of views lead.

Where all observations are right, random structures are the best start by far: with the poses eliminated
(`geometry.reconstruction.structure`) every second one reaches the global minimum of views that see everything. Wrong
observations bend those; then two views are related by five points (Nistér, TPAMI 2004), in which a sample without wrong
ones is soon drawn, and the others follow camera after camera (`geometry.reconstruction.growing`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.alignment import align_similarity
from geometry.bundle_adjustment import Bundle, BundleSolution, bundle
from geometry.camera import Model, projection_jacobian, rays_of
from geometry.consensus.minimal import angles_to_meet, before_both, essential_ray_problem, five_point, pose_of_essential
from geometry.consensus.search import truncated
from geometry.optim import NestedState, levenberg_marquardt, nested_start, nested_step
from geometry.pose import pnp
from geometry.reconstruction.growing import Incremental, grow
from geometry.reconstruction.structure import StructureProblem, mirror, triangulate
from geometry.robust import cauchy

__all__ = ["OFF", "Minimum", "Tracks", "deviations", "fits", "freedom", "from_pairs", "from_random", "regrown", "same"]

OFF = 3.7
"""Standard deviations: farther from its projection an observation is wrong; of right ones, one in a thousand is."""
_MISFIT = 1e-6
"""Of noise that leaves residuals as large."""
_STEPS = 15
"""Of Gauss and Newton, after which a random structure is near a minimum."""
_DISTINCT = 6
"""So many of the lowest distinct minima of a round are worth a bundle."""
_SAMPLES = 64
"""Of five points; without a wrong one are 21 of them where a fifth of the observations is wrong in both views."""
_MOTIONS = 3
"""Of a pair of views: those of a plane, or of few points, have more than one."""
_ROUGH_STEPS = 5
"""Of a motion on all matches of its pair."""
_WORTH = 0.8
"""Of the matches that agree with the best motion, so many must with another."""
_FAR = 0.3
"""Shapes that differ by so much of their size lead to different minima."""
_FACTORS = tuple(3 ** (i / 3) for i in range(-3, 4))
"""Times the focal length given, where it is sought."""


@dataclass(frozen=True)
class Tracks:
    """What is given: points2d (V,N,2), visible (V,N), K (V,3,3), distortion (V,k) of `model`, the standard deviation
    sigma of an observation's coordinates, and names of intrinsics that are sought."""

    points2d: Tensor
    visible: Tensor
    K: Tensor
    distortion: Tensor
    model: Model
    sigma: float
    free: tuple[str, ...]

    @cached_property
    def told(self) -> Tensor:
        """The observations (V,N) that may tell something: of points that more than one view sees."""
        return self.visible & (self.visible.sum(0) > 1)

    def lenses(self) -> Iterator[Tensor]:
        """K (V,3,3) to begin with: that given, or with focal lengths around it."""
        for factor in _FACTORS if "f" in self.free else (1.0,):
            yield self.K * self.K.new_tensor([[factor, factor, 1], [1, factor, 1], [1, 1, 1]])

    def adjust(self, start: Bundle, inlier: Tensor, robust: bool = False, max_steps: int = 100) -> BundleSolution:
        """The bundle of these observations (V,N) in units of sigma; views of one lens share what is free."""
        camera, point = inlier.nonzero().T
        lens, index = torch.cat([start.K.flatten(1), start.distortion], 1).unique(dim=0, return_inverse=True)
        return bundle(
            self.points2d[camera, point], camera, point, *start[:2], lens[:, :9].reshape(-1, 3, 3), lens[:, 9:],
            intrinsics_index=index, weights=start.K.new_full((len(camera),), 1 / self.sigma), model=self.model,
            free=("poses", "points", *self.free), kernel=cauchy(1.0) if robust else None, max_steps=max_steps,
        )  # fmt: skip


class Minimum(NamedTuple):
    """Where a search has ended, up to a similarity.

    bundle: world_to_camera (V,4,4), points3d (N,3), K (V,3,3), distortion (V,k). inlier (V,N): observations that agree.
    registered (V,): the views whose pose is known. cost: half the sum of squares in units of sigma, of observations
    that do not agree as much as just would. wrong: how many these are. hits: how many independent starts have led
    here, to which mirror images do not belong.
    """

    bundle: Bundle
    inlier: Tensor
    registered: Tensor
    cost: float
    solution: BundleSolution
    wrong: int
    hits: int = 1

    @property
    def determined(self) -> Tensor:
        """The points (N,) whose depth is told by two views, or by three where some observations are wrong: of two, a
        wrong one agrees wherever it lies on the line that the other is seen along."""
        return (self.inlier.sum(0) >= (3 if self.wrong else 2)) & ~self.solution.undetermined


def settled(tracks: Tracks, start: Bundle, inlier: Tensor, registered: Tensor) -> Minimum:
    """The least squares of these observations, next to a start; its cost is infinite with a point behind a camera."""
    solution = tracks.adjust(start, inlier)
    pose, points3d, K, distortion = (t.detach() for t in solution.x[:4])
    index = solution.task.problem.intrinsics_index
    wrong = int(tracks.told.sum()) - int(inlier.sum())
    cost = math.inf if solution.behind.any() else solution.cost.item() + 0.5 * OFF**2 * wrong
    used = torch.zeros_like(inlier).index_put(inlier.nonzero(as_tuple=True), ~solution.left_out)
    known = registered & (solution.component >= 0)
    return Minimum(Bundle(pose, points3d, K[index], distortion[index]), used, known, cost, solution, wrong)


def apart(points3d: Tensor, other: Tensor) -> float:
    """The rms distance of points (N,3) from others after a similarity, as a share of their rms radius."""
    size = (other - other.mean(0)).square().sum(-1).mean().sqrt()
    return ((align_similarity(points3d, other).apply(points3d) - other).square().sum(-1).mean().sqrt() / size).item()


def freedom(tracks: Tracks, inlier: Tensor) -> int:
    """How many more numbers these observations (V,N) are than are sought, 1 at least."""
    seen, views = int(inlier.any(0).sum()), int(inlier.any(1).sum())
    lenses = torch.cat([tracks.K.flatten(1), tracks.distortion], 1).unique(dim=0)
    return max(1, 2 * int(inlier.sum()) - 3 * seen - 6 * views + 7 - len(tracks.free) * len(lenses))


def fits(tracks: Tracks, minimum: Minimum) -> bool:
    """Whether noise of sigma leaves residuals as large."""
    return math.isfinite(minimum.cost) and bool(_likely(minimum.solution.cost, freedom(tracks, minimum.inlier)))


def _likely(cost: Tensor, more: int) -> Tensor:
    """Whether half the sum of squares of residuals, in units of sigma, is one of noise (chi squared)."""
    cost = cost.double().nan_to_num(torch.inf).clamp(max=1e12)
    return torch.special.gammaincc(torch.full_like(cost, more / 2), cost) > _MISFIT


def deviations(tracks: Tracks, minimum: Minimum) -> tuple[float, Tensor]:
    """Standard deviations by the noise: of the shape, as a share of its rms radius, and of focal lengths (V,) in px.

    Those of the shape are what a similarity cannot take away, which `BundleSolution.covariance` does not tell: there
    the cameras are held. One dense matrix, of some hundred unknowns.
    """
    pose, points3d, K, distortion = minimum.bundle[:4]
    used = minimum.determined.nonzero().flatten()
    X, V = points3d[used], len(K)
    if len(X) < 3:
        return math.inf, K.new_full((V,), math.inf if tracks.free else 0.0)
    camera, point = minimum.inlier[:, used].nonzero().T
    p = se3.transform(pose[camera], X[point][:, None])
    pixels, J = (t.squeeze(1) for t in projection_jacobian(p, K[camera], distortion[camera], tracks.model))
    rotated = p.squeeze(1) - pose[camera, :3, 3]
    lens = torch.cat([tracks.K.flatten(1), tracks.distortion], 1).unique(dim=0, return_inverse=True)[1]
    P = int(lens.max()) + 1 if tracks.free else 0
    n, rows = 6 * V + P, torch.arange(len(camera), device=camera.device)
    A = J.new_zeros(len(camera), 2, n + 3 * len(X))
    turn = torch.linalg.cross(rotated[:, None].expand_as(J), J)
    for i in range(3):
        A[rows, :, 6 * camera + i], A[rows, :, 6 * camera + 3 + i] = turn[..., i], J[..., i]
        A[rows, :, n + 3 * point + i] = (J @ pose[camera, :3, :3])[..., i]
    if P:  # of the logarithm of f
        A[rows, :, 6 * V + lens[camera]] = pixels - K[camera, :2, 2]
    A = A.flatten(0, 1) / tracks.sigma
    scale = 1 / A.norm(dim=0).clamp_min(torch.finfo(A.dtype).tiny)
    values, vectors = torch.linalg.eigh((A * scale).mT @ (A * scale))
    root = scale[:, None] * vectors[:, 7:] * values[7:].clamp_min(torch.finfo(A.dtype).tiny).rsqrt()
    X = X - X.mean(0)
    # turns, shifts and a spreading of the points
    turns = torch.linalg.cross(torch.eye(3).to(X).expand(len(X), 3, 3), X[:, None].expand(-1, 3, 3)).mT.flatten(0, 1)
    motions = torch.cat([turns, torch.eye(3).to(X).repeat(len(X), 1), X.flatten()[:, None]], 1)
    basis = torch.linalg.qr(motions).Q
    shape = root[n:] - basis @ (basis.mT @ root[n:])
    focal = root[6 * V : n].norm(dim=1)[lens] * K[:, 0, 0] if P else K.new_zeros(V)
    return (shape.square().sum() / X.square().sum()).sqrt().item(), focal


# ---- all observations right ----


def from_random(tracks: Tracks, candidates: int) -> Iterator[tuple[Tensor, Tensor, float] | list[Minimum]]:
    """Minima next to random structures, and next to the mirror images of the better half of those they lead to.

    Yields the best points, poses and cost in px^2 after every step, and last a list of the minima.
    """
    ends: list[tuple[float, Tensor, Tensor, Tensor, int]] = []
    told = tracks.told.any(0)
    for K in tracks.lenses():
        problem = StructureProblem(tracks.points2d, tracks.visible, K, tracks.distortion, tracks.model)
        noise = torch.randn(candidates, len(told), 3, dtype=K.dtype).to(K.device)
        theta = problem.retract(noise, torch.zeros_like(noise))
        for image in (False, True):
            state = nested_start(problem, mirror(theta) if image else theta)
            while state.steps < _STEPS and not state.done.all():
                state = nested_step(problem, state, tolerance=1e-6, floor=1e-6 * tracks.sigma**2)
                yield _best(state)
                if not image and _likely(state.cost / tracks.sigma**2, freedom(tracks, tracks.told)).sum() > 1:
                    break
            costs = state.cost.tolist()
            ends += [(c, *rest, K, 1 - image) for c, *rest in zip(costs, state.theta, state.inner, strict=True)]
            theta = state.theta[state.cost.argsort()[: max(1, candidates // 2)]]
    everything = torch.ones(len(tracks.K), dtype=torch.bool, device=told.device)
    minima: list[Minimum] = []
    ends = ends if told.any() else []
    distinct: list[tuple[float, Tensor]] = []
    for cost, points, poses, K, hits in sorted(ends, key=lambda end: end[0]):
        # costs of exact observations are but rounding: what is below the noise tells no minima apart
        near = [i for i, (c, _) in enumerate(distinct) if cost - c < 0.01 * max(c, tracks.sigma**2)]
        alike = [i for i in near if apart(points[told], distinct[i][1][told]) < 0.02]
        if alike:
            minima[alike[0]] = minima[alike[0]]._replace(hits=minima[alike[0]].hits + hits)
        elif len(distinct) < _DISTINCT and math.isfinite(cost):
            distinct.append((cost, points))
            end = settled(tracks, Bundle(poses, points, K, tracks.distortion), tracks.told, everything)
            minima.append(end._replace(hits=hits))
            if not fits(tracks, minima[0]):
                break  # nor does what costs more
    yield minima


def _best(state: NestedState) -> tuple[Tensor, Tensor, float]:
    i = int(state.cost.argmin())
    return state.theta[i], state.inner[i], state.cost[i].item()


# ---- some observations wrong ----


def from_pairs(tracks: Tracks, generator: torch.Generator) -> list[Minimum]:
    """Minima next to what grows from a pair of views, drawn by how many points they share: from each of its motions."""
    shared = (tracks.told[:, None] & tracks.told[None]).sum(-1).triu(1)
    odds = torch.where(shared >= 6, shared, 0).flatten().to(torch.float64)
    if not odds.any():
        return []
    drawn = torch.multinomial(odds, 1, generator=generator).item()
    pair = torch.tensor([drawn // len(shared), drawn % len(shared)], device=odds.device)
    both = tracks.told[pair].all(0)
    minima = []
    for K in tracks.lenses():
        rays, _ = rays_of(tracks.points2d[pair][:, both], K[pair], tracks.distortion[pair], tracks.model)
        tolerance = 2**0.5 * OFF * tracks.sigma / K[pair][:, [0, 1], [0, 1]].mean().item()
        for motion in _motions(rays[0], rays[1], tolerance, generator):
            V, N = tracks.visible.shape
            poses = torch.eye(4).repeat(V, 1, 1).to(K)
            poses[pair[1]] = motion
            registered = torch.zeros(V, dtype=torch.bool, device=K.device).index_fill(0, pair, True)
            start = Bundle(poses, K.new_zeros(N, 3), K, tracks.distortion)
            if (found := _grown(tracks, start, registered, generator)) is not None:
                minima.append(found)
    return minima


def _motions(rays_a: Tensor, rays_b: Tensor, tolerance: float, generator: torch.Generator) -> list[Tensor]:
    """Poses (4,4) of a second camera in the frame of a first from rays (n,3), some of them wrong: the best distinct
    ones of samples of five, by the angles that rays miss each other."""
    index = torch.rand(_SAMPLES, len(rays_a), generator=generator, device=rays_a.device).argsort(1)[:, :5]
    E = five_point(rays_a[index], rays_b[index]).flatten(0, 1)
    E = E[E.isfinite().all(-1).all(-1)]
    score = angles_to_meet(E, rays_a, rays_b).square().clamp(max=tolerance**2).sum(-1)
    E = E[score.argsort()[: 8 * _MOTIONS]]
    a, b = (r.expand(len(E), *r.shape) for r in (rays_a, rays_b))
    everywhere = torch.ones_like(a[..., 0], dtype=torch.bool)
    # of five pixels with noise, a motion is rough
    E = levenberg_marquardt(truncated(essential_ray_problem, tolerance), E, (a, b, everywhere), _ROUGH_STEPS)[0]
    off = angles_to_meet(E, rays_a, rays_b).abs()
    order = off.clamp(max=tolerance).square().sum(-1).argsort()
    near = off[order] < tolerance
    worth = near.sum(-1) >= _WORTH * near[:1].sum()
    order, near = order[worth], near[worth]
    motions: list[Tensor] = []
    for pose in before_both(pose_of_essential(E[order]), a[: len(order)], b[: len(order)], near):
        step = [se3.rotation_angle(pose[:3, :3].mT @ other[:3, :3]) for other in motions]
        turn = [(pose[:3, 3] @ other[:3, 3]).clamp(-1, 1).acos() for other in motions]
        if len(motions) < _MOTIONS and all(s + t > 0.3 for s, t in zip(step, turn, strict=True)):
            motions.append(pose)
    return motions


def _grown(tracks: Tracks, start: Bundle, registered: Tensor, generator: torch.Generator) -> Minimum | None:
    """What grows from registered views, with the lens that is sought held until they are all there."""
    camera, point = tracks.told.nonzero().T.contiguous()
    N = tracks.visible.shape[1]
    held = replace(tracks, free=())

    def refine(how: Tracks, given: Bundle, inlier: Tensor) -> Bundle:
        table = torch.zeros_like(tracks.told).index_put((camera, point), inlier)
        solution = how.adjust(given, table, robust=True, max_steps=5)
        pose, points3d, K, distortion = (t.detach() for t in solution.x[:4])
        index = solution.task.problem.intrinsics_index
        return Bundle(pose, points3d, K[index], distortion[index])

    nothing = torch.zeros(N, dtype=torch.bool, device=point.device), torch.zeros_like(point, dtype=torch.bool)
    state = Incremental(start, registered, *nothing)
    # farther than the truth by what a wrong focal length adds
    for how, widened in ((held, 2.0), (tracks, 1.0)) if tracks.free else ((tracks, 1.0),):
        state = grow(
            tracks.points2d[camera, point], camera, point, state, model=tracks.model, fewest=6, parallax=1.0,
            threshold=widened * OFF * tracks.sigma, rounds=2, generator=generator, refine=partial(refine, how),
        )  # fmt: skip
    inlier = torch.zeros_like(tracks.told).index_put((camera, point), state.inlier)
    if not state.inlier.any():
        return None
    return settled(tracks, state.bundle, inlier, state.registered)


def regrown(tracks: Tracks, points3d: Tensor, near: Minimum, generator: torch.Generator) -> Minimum | None:
    """The minimum next to other points (N,3), such as the mirror image of those that were found, poses sought anew."""
    pose, _, K, distortion = near.bundle[:4]
    mask = near.inlier & near.determined
    placed = pnp(
        tracks.points2d, points3d, K, distortion=distortion, mask=mask, model=tracks.model,
        kernel=cauchy(2 * tracks.sigma),
    )  # fmt: skip
    registered = near.registered & placed.x.isfinite().all(-1).all(-1)
    poses = torch.where(registered[:, None, None], placed.x, pose)
    return _grown(tracks, Bundle(poses, points3d, K, distortion), registered, generator)


def same(tracks: Tracks, one: Minimum, other: Minimum) -> bool:
    """Whether two minima are one: that the other leads there, too, with the observations that agree in the first."""
    used, known, both = one.determined, one.registered, one.determined & other.determined
    if not torch.equal(known, other.registered) or not both.any():
        return False
    if apart(other.bundle.points3d[both], one.bundle.points3d[both]) > _FAR:
        return False
    if not torch.equal(one.inlier, other.inlier):
        pose, _, K, distortion = other.bundle[:4]
        cameras = pose[known], K[known], distortion[known]
        points3d = triangulate(tracks.points2d[known], one.inlier[known], *cameras, model=tracks.model).x
        other = settled(tracks, other.bundle._replace(points3d=points3d), one.inlier, known)
    return apart(other.bundle.points3d[used], one.bundle.points3d[used]) < 1e-3
