"""From tracks to a start: a first reconstruction, with a lens that is known or sought."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from datasets.progress import progress
from experiments.structure.incremental import reconstruct
from experiments.structure.lens import COEFFICIENTS, GROWN, Fit, Known, Sought, of_views
from experiments.structure.tracks import Flat, pinhole
from geometry import Bundle
from geometry.reconstruction import Incremental

__all__ = ["Growing", "seek_focal_length", "start_known", "start_sought"]

_BEND = 0.2
"""Standard deviation of k1 among lenses: it holds k1 while few views tell it."""
_OFF = 0.2
"""Of a focal length that is tried, as a share of it."""
_ROUNDS = 2
"""Of bundles at the end."""


@dataclass(frozen=True)
class Growing:
    """How a reconstruction grows."""

    candidates_f: int = 7
    """Sets how many focal lengths are tried where none is known, nor told by EXIF."""
    inlier_px: float = 1.0
    """Leaves out an observation of images, of tracks without poses, of `orbit` or of `turntable` that is farther from
    its point's projection."""
    robust_px: float = 0.25
    """Sets the scale of the Cauchy kernel of their bundles; the final one of `orbit` and `turntable`, which have no
    outliers, is least squares."""


def start_known(tracks: Flat, K: Tensor, distortion: Tensor, how: Growing, seed: int) -> Incremental:
    """A reconstruction camera after camera, with K (V,3,3) and distortion (V,k)."""
    refine = _Refine(tracks, (), {}, how)
    return reconstruct(*tracks[:3], K, distortion, threshold=how.inlier_px, refine=refine, rounds=_ROUNDS, seed=seed)


def start_sought(tracks: Flat, sought: Sought, how: Growing, seed: int) -> Incremental:
    """The same with a lens that is adjusted after every camera: f and k1, and in the end what the data ask for."""
    first = GROWN if sought.free is None else tuple(name for name in GROWN if name in sought.free)
    if "f" in sought.known:
        lenses, known = _lenses(tracks.views, sought, sought.known["f"][0]), sought.known
    else:
        lenses = seek_focal_length(tracks, sought, first, how)
        f = lenses[0][0, 0, 0].item()
        known = {"f": (f, _OFF * f)}
    grow = partial(reconstruct, *tracks[:3], threshold=how.inlier_px, rounds=_ROUNDS, seed=seed)
    grown = grow(*lenses, refine=_Refine(tracks, first, _held(known), how))
    if sought.free is not None:
        return grown
    fit = Fit(tracks.only(grown.inlier), "radtan", how.robust_px, True, sought.known)
    choice = fit.choose(grown.bundle, sought.usual)
    bundle, refine = of_views(choice.estimate.found), _Refine(tracks, choice.free, sought.known, how)
    return grow(bundle.K, bundle.distortion, refine=refine, start=grown._replace(bundle=bundle))


def _held(known: Known) -> Known:
    """What is known of a lens, and of every lens."""
    return {"k1": (0.0, _BEND), **known}


@dataclass(frozen=True)
class _Refine:
    """The robust bundle that a growing reconstruction is refined by (`experiments.structure.incremental.Refine`)."""

    tracks: Flat
    free: Sequence[str]
    known: Known
    how: Growing

    def __call__(self, bundle: Bundle, inlier: Tensor) -> Bundle:
        fit = Fit(self.tracks.only(inlier), "radtan", self.how.robust_px, True, self.known)
        return of_views(fit.adjust(bundle, self.free, max_steps=8))


def seek_focal_length(tracks: Flat, sought: Sought, free: tuple[str, ...], how: Growing) -> tuple[Tensor, Tensor]:
    """K (V,3,3) and distortion (V,k) of the lens whose robust bundle fits the tracks best, from several focal lengths.

    Each candidate is the start of a reconstruction and of a bundle that frees f and these names; what is no inlier
    costs as much as one at the threshold. A focal length far off places few cameras.
    """
    free = ("f", *(name for name in free if name != "f"))
    outlier = 0.5 * math.log1p((how.inlier_px / how.robust_px) ** 2)  # Cauchy's
    best, found = math.inf, None
    for share in progress(np.geomspace(0.5, 3, how.candidates_f).tolist(), "trying focal lengths"):
        f = share * sought.image_size[0]
        refine = _Refine(tracks, free, _held({"f": (f, _OFF * f)}), how)
        try:
            # farther than the truth by what a wrong f adds
            lenses, wide = _lenses(tracks.views, sought, f), 2 * how.inlier_px
            first = reconstruct(*tracks[:3], *lenses, threshold=wide, refine=refine, rounds=1)
        except ValueError:  # no two cameras agree
            continue
        fit = Fit(tracks.only(first.inlier), "radtan", how.robust_px, True, {})
        solution = fit.adjust(first.bundle, free, max_steps=100)
        cost = solution.cost.item() + outlier * int((~first.inlier).sum())
        if cost < best:
            best, found = cost, of_views(solution)
    if found is None:
        raise ValueError("candidates_f: a focal length at which two images agree wanted, found none")
    return found.K, found.distortion


def _lenses(views: int, sought: Sought, f: float) -> tuple[Tensor, Tensor]:
    """K (V,3,3) and distortion (V,k) of a usual lens of this focal length, of all views."""
    K = pinhole(f, f, sought.usual["cx"], sought.usual["cy"])
    return K.expand(views, 3, 3), K.new_zeros(views, COEFFICIENTS)
