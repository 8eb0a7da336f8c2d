"""Structure from nothing, and whether to believe it: the search, and what the data must say of its lowest minimum."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geometry.bundle_adjustment import Bundle
from geometry.camera import Model
from geometry.checks import function, plainly, positive, whole
from geometry.optim import Status
from geometry.reconstruction.structure import checked_views, mirror
from geometry.reconstruction.structure_minima import (
    OFF,
    Minimum,
    Tracks,
    deviations,
    fits,
    freedom,
    from_pairs,
    from_random,
    regrown,
    same,
)

__all__ = ["Guess", "Rival", "StructureSolution", "find_structure"]

_ODDS = math.log(1e4)
"""A minimum that is less likely than the lowest by such a factor is no rival."""
_CHANCE = math.log(1e-6)
"""Of so many observations agreeing by chance."""
_SURE, _SURE_OF_WRONG = 2, 3
"""Independent starts that must have led to a minimum, where all observations fit and where some are wrong."""
_LOOSE = 0.1
"""A share of the shape's size, or of a focal length: a standard deviation above it says that they are not known."""


Verdict = Literal["FOUND", "UNDETERMINED", "AMBIGUOUS", "EXHAUSTED"]


class Guess(NamedTuple):
    """The best structure so far: points (N,3), poses (V,4,4), half the sum of squared errors in px^2."""

    points: Tensor
    poses: Tensor
    cost: float


class Rival(NamedTuple):
    """Another shape that might be the right one: points (N,3), poses (V,4,4), and how many times less likely it is."""

    points: Tensor
    poses: Tensor
    odds: float


class StructureSolution(NamedTuple):
    """What `find_structure` has found, and whether the data tell that it is right.

    verdict: "FOUND", which is a promise; or why it cannot be told: "UNDETERMINED", the shape or a focal length may
    vary, or as much would agree by chance; "AMBIGUOUS", another shape fits as well within the noise; "EXHAUSTED", the
    search found nothing that fits, or found it too seldom to be sure. message: the same for a person.

    points3d (N,3), world_to_camera (V,4,4), K (V,3,3): the best that was found, of worth where the verdict is FOUND,
    and there for points that are `determined` (N,). inlier (V,N): the observations that agree. deviation: standard
    deviation of the shape by the noise, as a share of its rms radius. focal_deviation: that of each view's focal
    length (V,), in px, 0 where it is known. rivals: the other shapes of an AMBIGUOUS one, the likeliest first.
    """

    verdict: Verdict
    message: str
    points3d: Tensor
    world_to_camera: Tensor
    K: Tensor
    determined: Tensor
    inlier: Tensor
    deviation: float
    focal_deviation: Tensor
    rivals: tuple[Rival, ...]

    @property
    def found(self) -> bool:
        return self.verdict == "FOUND"


def find_structure(
    points2d: Tensor,
    visible: Tensor,
    K: Tensor,
    distortion: Tensor | None = None,
    *,
    sigma: float,
    free: tuple[()] | tuple[Literal["f"]] = (),
    model: Model = "radtan",
    candidates: int = 8,
    rounds: int = 8,
    callback: Callable[[Guess], bool | None] | None = None,
) -> StructureSolution:
    """A shape of which nothing is known, from views of its points, and whether the data tell that it is the right one.

    points2d (V,N,2) px, visible (V,N) bool, K (V,3,3), distortion (V,k) of `model`, once where views share it. sigma:
    standard deviation of a coordinate in px, which says which differences of fit mean something; an observation farther
    off than 3.7 of them is wrong, such as a point that is said to be visible and is not. free=("f",): the focal length
    is sought, too, from a third to three times the one in K; views of the same K and distortion share it. At least two
    views and dozens of points; some hundred are enough, the others can be added by `triangulate`.

    Each round goes from `candidates` random structures and the mirror images of what they lead to; where nothing fits
    all observations, from two views at a time, some observations being wrong. The lowest minimum is FOUND if it fits
    within the noise; was reached from two independent starts, or three where some observations are wrong; agrees with
    more observations than chance would have; is isolated, and known to a tenth of its size; and if no other minimum,
    its own mirror image to begin with, is as likely (Necker reversal: where perspective is weak, the mirror image fits
    nearly as well). Otherwise it is told why not, after `rounds` rounds where more of them might help. callback(guess)
    is told after every step of random structures; the search ends where it returns True. torch's global generator
    draws.

    Raises ValueError for what are not such views, among them a view that sees no point.

    >>> cloud, every = torch.rand(60, 3) - 0.5, torch.ones(6, 60, dtype=torch.bool)
    >>> around = se3.from_rotvec_t(torch.tensor([0.0, 0, 0, 0, 0, 2]) + 0.3 * torch.randn(6, 6))
    >>> found = find_structure(project(cloud, around, K), every, K, sigma=0.5)
    >>> found.verdict
    'FOUND'
    """
    visible, K, distortion, _ = checked_views(points2d, visible, K=K, distortion=distortion, model=model)
    positive("sigma", sigma)
    whole("candidates", candidates, 1)
    whole("rounds", rounds, 1)
    function("callback", callback)
    if not (isinstance(free, tuple) and free in ((), ("f",))):
        raise ValueError(f'free must be () or ("f",), got {free!r}')

    def search(points2d: Tensor, K: Tensor, distortion: Tensor) -> StructureSolution:
        tracks = Tracks(points2d, visible, K, distortion, model, sigma, free)
        with torch.no_grad():
            return _search(tracks, candidates, rounds, callback)

    found = plainly(search, points2d.double(), K.double(), distortion.double(), batched=False)
    return found._replace(
        **{
            name: getattr(found, name).to(points2d.dtype)
            for name in ("points3d", "world_to_camera", "K", "focal_deviation")
        }
    )


def _search(
    tracks: Tracks, candidates: int, rounds: int, callback: Callable[[Guess], bool | None] | None
) -> StructureSolution:
    generator = torch.Generator(tracks.K.device).manual_seed(int(torch.randint(2**62, ())))
    right: list[Minimum] = []
    some_wrong: list[Minimum] = []
    reflected: list[Bundle] = []
    solution: StructureSolution | None = None
    guess: Guess | None = None
    for _ in range(rounds):
        # where views have grown together, some observations are wrong, and random structures lead nowhere
        grown = any(bool(minimum.registered.all()) for minimum in some_wrong)
        for state in () if grown else from_random(tracks, candidates):
            if isinstance(state, list):
                _merge(tracks, right, state, independent=True)
                continue
            guess = Guess(*state)
            if callback is not None and callback(guess):
                return _stopped(tracks, guess, "EXHAUSTED", "the search was ended")
        if not tracks.told.any():
            return _stopped(tracks, guess, "UNDETERMINED", "no point is seen by two views")
        minima = right
        if not (right and fits(tracks, right[0])):
            _merge(tracks, some_wrong, from_pairs(tracks, generator), independent=False)
            if some_wrong and not any(some_wrong[0].bundle is best for best in reflected):
                reflected.append(some_wrong[0].bundle)
                image = regrown(tracks, mirror(some_wrong[0].bundle.points3d), some_wrong[0], generator)
                _merge(tracks, some_wrong, [] if image is None else [image._replace(hits=0)], independent=False)
            minima = some_wrong
        if minima:
            solution = _judged(tracks, minima)
            if solution.verdict != "EXHAUSTED":
                break
    return _stopped(tracks, guess, "EXHAUSTED", "no start led anywhere") if solution is None else solution


def _merge(tracks: Tracks, minima: list[Minimum], more: list[Minimum], independent: bool) -> None:
    """Add to a list that is sorted by cost what is not there yet, and count what is: for each start that has led there,
    or once where all these minima are of one pair of views."""
    met: set[int] = set()
    for new in more:
        i = next((i for i, old in enumerate(minima) if same(tracks, *sorted((old, new), key=_cost))), len(minima))
        if i == len(minima):
            minima.append(new)
        else:
            hits = minima[i].hits + (new.hits if independent or i not in met else 0)
            minima[i] = min(minima[i], new, key=_cost)._replace(hits=hits)
        met.add(i)
    minima.sort(key=_cost)


def _cost(minimum: Minimum) -> float:
    return minimum.cost


def _by_chance(tracks: Tracks, minimum: Minimum) -> float:
    """Logarithm of how many sets of observations would agree as well, were they anywhere in the images (a contrario:
    Moisan and Stival, IJCV 2004)."""
    M, agree = int(tracks.told.sum()), int(minimum.inlier.sum())
    if agree == 0:
        return 0.0
    spread = tracks.points2d[tracks.told].std(0).mean().item() * 12**0.5
    chance = math.log(min(1.0, 2 * OFF * tracks.sigma / spread))
    subsets = math.lgamma(M + 1) - math.lgamma(agree + 1) - math.lgamma(M - agree + 1)
    return subsets + freedom(tracks, minimum.inlier) * chance


def _judged(tracks: Tracks, minima: list[Minimum]) -> StructureSolution:
    """The lowest of the minima, and what the data say of it."""
    best = minima[0]
    deviation, focal_deviation = deviations(tracks, best)
    rivals = tuple(
        Rival(other.bundle.points3d, other.bundle.world_to_camera, math.exp(min(other.cost - best.cost, 700)))
        for other in minima[1:]
        if other.cost - best.cost < _ODDS
    )
    focal = best.bundle.K[:, 0, 0]
    agree, of = int(best.inlier.sum()), int(tracks.told.sum())
    rms = tracks.sigma * (2 * best.solution.cost.item() / max(1, agree)) ** 0.5
    known = f"{int(best.determined.sum())} of {len(best.determined)} points, {agree} of {of} observations agree"
    lost = (~best.registered).nonzero().flatten().tolist()
    status = Status(int(best.solution.status))
    loose = (focal_deviation / focal).max().item()
    reasons: tuple[tuple[Verdict, bool, str], ...] = (
        ("EXHAUSTED", not fits(tracks, best), f"nothing fits within the noise, the best is {rms:.3g} px rms off"),
        ("UNDETERMINED", _by_chance(tracks, best) > _CHANCE, "as many observations would agree by chance"),
        ("EXHAUSTED", bool(lost), f"views {lost} could not be placed"),
        ("UNDETERMINED", status != Status.CONVERGED, best.solution.message),
        ("UNDETERMINED", not deviation < _LOOSE,
         f"the noise leaves {100 * deviation:.2g} % of the shape's size open"),
        ("UNDETERMINED", not loose < _LOOSE, f"the noise leaves {100 * loose:.2g} % of the focal length open"),
        ("AMBIGUOUS", bool(rivals),
         f"{len(rivals)} other shapes fit as well within the noise" if len(rivals) > 1 else
         "another shape fits as well within the noise"),
        ("EXHAUSTED", best.hits < (_SURE_OF_WRONG if best.wrong else _SURE),
         f"found by {best.hits} independent starts only: more rounds may find a better one"),
        ("FOUND", True, f"found: {known}"),
    )  # fmt: skip
    verdict, message = next((verdict, words) for verdict, holds, words in reasons if holds)
    message = message if verdict == "FOUND" else f"cannot tell: {message} ({known})"
    pose, points3d, K, _ = best.bundle[:4]
    return StructureSolution(
        verdict, message, points3d, pose, K, best.determined, best.inlier, deviation, focal_deviation, rivals
    )  # fmt: skip


def _stopped(tracks: Tracks, guess: Guess | None, verdict: Verdict, reason: str) -> StructureSolution:
    """No minimum was judged; the best so far is returned for what it is."""
    V, N = tracks.visible.shape
    nan = tracks.K.new_full((), math.nan)
    points = nan.expand(N, 3) if guess is None else guess.points
    poses = nan.expand(V, 4, 4) if guess is None else guess.poses
    nothing = torch.zeros_like(tracks.visible)
    return StructureSolution(
        verdict, f"cannot tell: {reason}", points, poses, tracks.K, nothing.any(0), nothing, math.nan, nan.expand(V), ()
    )
