"""Candidates of the global start of PnP from three points; `geometry.compiled.pose.triples` does the same.

Where three or four points outweigh all others, the algebraic error is almost zero on many rotations, and its minima
tell little; but the reprojection error then has its minima next to the up to four P3P poses of such points. Gross
outliers under a robust kernel bend the algebraic error as well, and a sample of three points that holds none leads next
to the minimum (Fischler and Bolles 1981, CACM 24(6)). The samples are graded over all, and no random numbers.
"""

import torch
from torch import Tensor

from geometry.camera import in_front, project_camera_frame
from geometry.compiled.constants import DISTINCT, DOMINATED, HEAVIEST, OF_TRIPLES, TRIPLES
from geometry.consensus.minimal import p3p
from geometry.pose.data import Options, PnPData

__all__ = ["add_triples"]


def add_triples(
    X: Tensor, rays: Tensor, w2: Tensor, few: PnPData, options: Options, poses: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates poses (B,C,4,4) and which there are (B,C), with the best distinct poses of triples of points.

    X and rays (B,N,3), w2 (B,N) of sum 1 or 0. few: the points that tell which are the best. The candidates that there
    are come first.
    """
    order, count = _draw_from(w2, options.kernel is not None)
    problem = (count >= 3).nonzero().squeeze(-1)
    if len(problem) == 0:
        return poses, found
    index = order[problem].gather(1, _members(count[problem]).flatten(1)).unflatten(1, (TRIPLES, 3))
    row = problem[:, None, None]
    roots = p3p(rays[row, index], X[row, index])
    few = PnPData(*(d[problem] for d in few))
    # one root of all at a time: of as many points as poses, little memory
    cost = torch.cat([_costs(root, few, options) for root in roots.unbind(2)], 1)
    roots = roots.transpose(1, 2).flatten(1, 2)
    poses, found = poses.clone(), found.clone()
    place = found[problem].sum(-1).clamp_max(found.shape[1] - OF_TRIPLES)
    for i in range(OF_TRIPLES):
        least, best = cost.min(-1)
        there = torch.isfinite(least)
        chosen = roots.gather(1, best[:, None, None, None].expand(-1, 1, 4, 4))
        poses[problem, place + i] = torch.where(there[:, None, None], chosen[:, 0], poses[problem, place + i])
        found[problem, place + i] |= there
        trace = (roots * chosen)[..., :3, :3].sum((-2, -1))
        cost = torch.where(trace > DISTINCT, torch.inf, cost)
    return poses, found


def _draw_from(w2: Tensor, robust: bool) -> tuple[Tensor, Tensor]:
    """Places (B,N), the first count (B,) of which triples are drawn from; count is 0 where these do not help."""
    seen = w2 > 0
    dominated = w2.square().sum(-1) * DOMINATED > 1
    key = torch.where(dominated[:, None], w2, seen.to(w2.dtype))
    count = seen.sum(-1)
    if not robust:
        count = torch.where(dominated, count, 0)
    return key.argsort(dim=-1, descending=True, stable=True), torch.where(dominated, count.clamp_max(HEAVIEST), count)


def _members(count: Tensor) -> Tensor:
    """`TRIPLES` of the triples of count (M,) points (M,TRIPLES,3): all, or strides that are even but for a jitter.

    Triples are numbered in the order of their last, then middle, then first member.
    """
    every = (count * (count - 1) * (count - 2) // 6)[:, None]
    k = torch.arange(TRIPLES, device=count.device)
    spread = ((k + 0.618034 * k.double() % 1) * every / TRIPLES).long()
    number = torch.where(every <= TRIPLES, torch.minimum(k, every - 1), spread)
    m = torch.arange(int(count.max()) + 1, device=count.device)
    pairs = m * (m - 1) // 2
    before = pairs * (m - 2) // 3
    last = torch.searchsorted(before, number, right=True) - 1
    number = number - before[last]
    middle = torch.searchsorted(pairs, number, right=True) - 1
    return torch.stack([number - pairs[middle], middle, last], -1)


def _costs(pose: Tensor, data: PnPData, options: Options) -> Tensor:
    """Costs (M,C) of poses (M,C,4,4), infinite where there is none or it sees not all points."""
    p = (pose[:, :, None, :3, :3] * data.points3d[:, None, :, None, :]).sum(-1) + pose[:, :, None, :3, 3]
    mask = data.mask[:, None]
    p = torch.where(mask[..., None], p, 1.0)
    pixels = project_camera_frame(p, data.K[:, None], data.distortion[:, None], model=options.lens)
    s = (data.weights[:, None] * (pixels - data.points2d[:, None])).square().sum(-1)
    rho = s if options.kernel is None else options.kernel(s)
    cost = torch.where(mask, rho, 0.0).sum(-1)
    seen = (in_front(p, data.distortion[:, None], model=options.lens) | ~mask).all(-1)
    return torch.where(seen & torch.isfinite(cost), cost, torch.inf)
