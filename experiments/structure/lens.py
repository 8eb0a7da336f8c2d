"""The lens of photographs: what is known of it beforehand, and which of its unknowns the data ask for."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from experiments.structure.tracks import Flat, observed
from geometry import Bundle, BundleSolution, Prior, bundle, cauchy
from geometry.camera import Model, project_camera_frame
from geometry.reconstruction import Estimate, ModelChoice, ResidualPattern, choose_model, residual_pattern
from geometry.robust import RobustKernel, kernel_derivatives

__all__ = ["COEFFICIENTS", "Fit", "GROWN", "Known", "Sought", "in_words", "of_views"]

GROWN = ("f", "k1")
"""What is sought of a lens that is not known while a reconstruction grows."""
ASKED = (("k1",), ("k2",), ("cx", "cy"))
"""What is sought in the end, beside f, if the data ask for it."""
COEFFICIENTS = 5
"""So many has the distortion of a lens that is sought: k1, k2, p1, p2, k3."""

Known = Mapping[str, tuple[float, float]]
"""What is known of intrinsics by name: the value, and its standard deviation."""


class Sought(NamedTuple):
    """A lens that is not known, the same for all views.

    image_size: (width, height) px; the principal point starts in the middle. known: beforehand. free: names of the
    unknowns; None for f and what the data ask for of `ASKED`. told: where the first focal length is from.
    """

    image_size: tuple[int, int]
    known: Known
    free: tuple[str, ...] | None
    told: str

    @property
    def usual(self) -> dict[str, float]:
        """What the lens of most photographs is like, beside its focal length."""
        width, height = self.image_size
        return {"cx": (width - 1) / 2, "cy": (height - 1) / 2, **dict.fromkeys(("k1", "k2", "p1", "p2", "k3"), 0.0)}


class Fit(NamedTuple):
    """Tracks, and how bundles are fitted to them, in units of scale_px, of which an error is taken for as large.

    robust: with a Cauchy kernel of that scale, or by least squares. known: of intrinsics, which holds those that are
    free.
    """

    tracks: Flat
    model: Model
    scale_px: float
    robust: bool
    known: Known

    @property
    def kernel(self) -> RobustKernel | None:
        """Of errors in units of scale_px."""
        return cauchy(1.0) if self.robust else None

    def adjust(self, start: Bundle, free: Sequence[str] = (), max_steps: int = 300) -> BundleSolution:
        """The bundle of poses, points and these intrinsics, of all views that start with the same K (V,3,3) and
        distortion (V,k) the same ones."""
        points2d, camera, point, _ = self.tracks
        lenses, index = torch.cat([start.K.flatten(1), start.distortion], 1).unique(dim=0, return_inverse=True)
        told = [(value, 1 / sigma) for value, sigma in (self.known.get(name, (0.0, torch.inf)) for name in free)]
        theta, weights = start.K.new_tensor(told).view(-1, 2).T[:, None].expand(2, len(lenses), -1)
        return bundle(
            points2d, camera, point, *start[:2], lenses[:, :9].reshape(-1, 3, 3), lenses[:, 9:], intrinsics_index=index,
            weights=points2d.new_full((len(points2d),), 1 / self.scale_px), free=("poses", "points", *free),
            prior=Prior(theta=theta, theta_weights=weights), model=self.model, kernel=self.kernel, max_steps=max_steps,
        )  # fmt: skip

    def estimate(self, start: Bundle, free: Sequence[str]) -> Estimate:
        """The intrinsics that are free, which all views share. found: the `BundleSolution`."""
        solution = self.adjust(start, free)
        used = self.tracks.camera.mode().values
        return Estimate(solution.state.theta[0], solution.covariance().cameras[used, 6:, 6:], solution)

    def choose(self, start: Bundle, usual: Mapping[str, float]) -> ModelChoice:
        """The intrinsics that the data ask for, the others being as usual.

        What is freed last begins at the start or where the others ended, whichever costs less. So a k1 that has grown
        in place of a principal point off the middle does not lead to a minimum beside the right one.
        """

        def fit(free: tuple[str, ...], last: Estimate | None) -> Estimate:
            begin = _otherwise_usual(start, free, usual)
            if last is not None:
                other = of_views(last.found)
                costs = [self.adjust(bundle, free, max_steps=0).cost for bundle in (begin, other)]
                begin = other if costs[1] < costs[0] else begin
            estimate = self.estimate(begin, free)
            # what ends at no minimum has no covariance, and is not asked for
            return estimate._replace(covariance=torch.where(estimate.found.converged, estimate.covariance, torch.nan))

        return choose_model(fit, ("f",), ASKED, usual)

    def pattern(self, found: Bundle, image_size: tuple[int, int]) -> ResidualPattern:
        """What the residuals of a bundle with K (V,3,3) have in common with their neighbours', as far as its kernel
        listens to them."""
        pose, points3d, K, distortion, *_ = found
        points2d, camera, point, _ = self.tracks
        p = observed(pose, points3d, camera, point)
        r = project_camera_frame(p, K[camera], distortion[camera], model=self.model).squeeze(1) - points2d
        slope = kernel_derivatives(self.kernel, (r / self.scale_px).square().sum(-1))[1]
        return residual_pattern(points2d, slope[:, None] * r, image_size)


def _otherwise_usual(bundle: Bundle, free: Sequence[str], usual: Mapping[str, float]) -> Bundle:
    """The bundle, with all of its lenses but f and what is free as usual."""
    K, distortion = bundle.K.clone(), bundle.distortion.clone()
    for name in set(usual) - set(free):
        if name in ("cx", "cy"):
            K[:, ("cx", "cy").index(name), 2] = usual[name]
        else:
            distortion[:, ("k1", "k2", "p1", "p2", "k3").index(name)] = usual[name]
    return bundle._replace(K=K, distortion=distortion)


def of_views(solution: BundleSolution) -> Bundle:
    """What was found, detached, with the K (V,3,3) and the distortion (V,k) of each view."""
    pose, points3d, K, distortion = (t.detach() for t in solution.x[:4])
    index = solution.task.problem.intrinsics_index
    return Bundle(pose, points3d, K[index], distortion[index])


def in_words(choice: ModelChoice) -> str:
    """Which unknowns were chosen, and with which odds the others might as well be as usual."""
    taken = [f"{' '.join(trial.added)} (p {trial.probability:.2g})" for trial in choice.trials if trial.taken]
    last = {trial.added: f"{' '.join(trial.added)} (p {trial.probability:.2g})" for trial in choice.trials}
    left = [told for added, told in last.items() if not set(added) <= set(choice.free)]
    asked = f", with {', '.join(taken)} asked for by the data" if taken else ""
    return f"free are {', '.join(choice.free)}{asked}" + (f"; as usual: {', '.join(left)}" if left else "")
