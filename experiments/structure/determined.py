"""Whether tracks determine what is reported of them: the statuses of their bundle in words, and how sure a shape is."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from experiments.structure.alignment import shape_errors
from geometry import BundleSolution, Status

__all__ = ["not_determined", "shape_deviation"]


def not_determined(found: BundleSolution, camera: Tensor, point: Tensor, names: Sequence[str] = ()) -> list[str]:
    """What a bundle of observations camera (M,), point (M,) leaves open of its V views and N points, a sentence each.

    names: of the views.
    """
    V, N, used = len(found.x.world_to_camera), len(found.x.points3d), ~found.left_out
    tracks, seen = torch.bincount(point[used], minlength=N), torch.bincount(camera[used], minlength=V)
    told: list[str] = []
    if lost := int((tracks == 0).sum()):
        told.append(f"{lost} of {N} points are seen by fewer than two views that are determined.")
    if (seen == 0).any():
        told.append(f"Fewer than three points that are determined are seen in {_named((seen == 0), names)}.")
    parts = [found.component == part for part in range(int(found.component.max()) + 1)]
    if len(parts) > 1:
        told.append(f"How parts lie to one another that share no point: {'; '.join(_named(p, names) for p in parts)}.")
    if endless := int(found.undetermined.sum()):
        told.append(f"{endless} of {N} points have no depth: their rays are parallel as far as the data tell.")
    if len(parts) == 1 and not found.converged.all():
        numbers, unknowns = 2 * int(used.sum()), 6 * int((seen > 0).sum()) + 3 * int((tracks > 0).sum()) - 7
        pairs = V > 2 and int(tracks.max()) < 3
        reason = ", and no point is seen by three views, which would tie pairs of views together" if pairs else ""
        told.append(
            f"The structure up to a similarity: its bundle is {Status(int(found.status)).name}, with {numbers} numbers "
            f"for {unknowns} unknowns{reason}."
        )
    return told


def shape_deviation(
    solve: Callable[[Tensor], BundleSolution], points2d: Tensor, loss: float, *, draws: int = 4
) -> float:
    """How far off points are, as a share of the structure's rms radius, when errors of pixels leave such a loss.

    solve(points2d (M,2)) is the bundle of those pixels, without a kernel; loss the sum of its squared residuals. Rms
    over points after similarity alignment, and over draws of Gaussian noise: a parametric bootstrap, since the place
    and the size of a structure, which the covariance of its points has in it, do not count. NaN where the bundle has no
    minimum to begin with.
    """
    found = solve(points2d)
    if not found.converged.all():
        return float("nan")
    freedom = found.task.problem.redundancy(found.task.data) + found.task.freedom(found.state)
    sigma = (loss / max(1, freedom)) ** 0.5
    generator = torch.Generator().manual_seed(0)
    used, squares = torch.unique(found.task.problem.layout.point), 0.0
    for _ in range(draws):
        noise = torch.randn(points2d.shape, generator=generator, dtype=torch.float64).to(points2d)
        other = solve(points2d + sigma * noise).x.points3d
        squares += shape_errors(other[used], found.x.points3d[used])["rms_share"] ** 2
    return (squares / draws) ** 0.5


def _named(which: Tensor, names: Sequence[str]) -> str:
    """ "views 3, 5", or their names, where (V,) is true."""
    told = [names[v] if names else str(v) for v in which.nonzero().flatten().tolist()]
    return f"view{'s' * (len(told) > 1)} {', '.join(told)}"
