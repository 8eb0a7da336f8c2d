"""Whether tracks determine what is reported of them: the statuses and the covariance of their bundle, in words."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.structure.alignment import rms_radius
from geometry import BundleSolution, Status

__all__ = ["Determined", "determined"]

_KNOWN = 0.1
"""Standard deviation of points, as a share of the structure's rms radius, up to which their shape counts as known."""
_SAMPLE = 300
"""So many points, evenly chosen, stand for all where deviations are asked for."""


class Determined(NamedTuple):
    """What is not determined, a sentence each, and the deviation of a point, as a share of the structure's rms radius:
    root mean square over coordinates together, median over points; NaN where there is none."""

    not_determined: list[str]
    deviation_share: float


def determined(
    found: BundleSolution, camera: Tensor, point: Tensor, names: Sequence[str] = (), loss: float | None = None
) -> Determined:
    """What a bundle of observations camera (M,), point (M,) says of its views (V,) and points (N,).

    names: of the views. loss: sum of the squared residuals at which points are as sure as told, for what was not
    learned to the end; None for that of the bundle itself.
    """
    pose, points = found.x.world_to_camera.detach(), found.x.points3d.detach()
    V, N, used = len(pose), len(points), ~found.left_out
    tracks, seen = torch.bincount(point[used], minlength=N), torch.bincount(camera[used], minlength=V)
    told: list[str] = []
    if lost := int((tracks == 0).sum()):
        told.append(f"{lost} of {N} points: fewer than two views see them, or of them a view that is not determined")
    if blind := _named((seen == 0).nonzero().flatten(), names):
        told.append(f"{blind}: fewer than three points that are determined are seen there")
    parts = [(found.component == part).nonzero().flatten() for part in range(int(found.component.max()) + 1)]
    if len(parts) > 1:
        told.append(f"how parts that share no point lie to one another: {'; '.join(_named(p, names) for p in parts)}")
    if endless := int(found.undetermined.sum()):
        told.append(f"the distance of {endless} of {N} points, whose rays are parallel as far as the data tell")
    status, share = Status(int(found.status)), float("nan")
    if status == Status.CONVERGED:
        share = _deviation_share(found, points[tracks > 0], (tracks > 0).nonzero().flatten(), loss)
        if not share < _KNOWN:
            told.append(f"the shape: points are known to {100 * share:.0f} % of its size, in the median")
    elif len(parts) == 1:
        count = (
            f"{2 * int(used.sum())} numbers for {6 * int((seen > 0).sum()) + 3 * int((tracks > 0).sum()) - 7} unknowns"
        )
        pairs = V > 2 and int(tracks.max()) < 3
        reason = "; no point is seen by three views, so that pairs of views hardly share a scale" if pairs else ""
        told.append(f"the structure up to a similarity: its bundle is {status.name} ({count}){reason}")
    return Determined(told, share)


def _named(views: Tensor, names: Sequence[str]) -> str:
    """ "views 3, 5", or their names; "" for none."""
    told = [names[v] if names else str(v) for v in views.tolist()]
    return f"view{'s' * (len(told) > 1)} {', '.join(told)}" if told else ""


def _deviation_share(found: BundleSolution, points: Tensor, index: Tensor, loss: float | None) -> float:
    some = index[torch.linspace(0, len(index) - 1, min(_SAMPLE, len(index)), device=index.device).long()]
    sigma = None
    if loss is not None:
        freedom = found.task.problem.redundancy(found.task.data) + found.task.freedom(found.state)
        sigma = (loss / max(1, freedom)) ** 0.5
    covariance = found.covariance(some, sigma).points
    return (covariance.diagonal(dim1=1, dim2=2).sum(-1).sqrt().median() / rms_radius(points)).item()
