"""Candidates of the global start of PnP from three points; `geometry.compiled.pose.triples` does the same.

Where three or four points outweigh all others, the algebraic error is almost zero on many rotations, and its minima
tell little; but the reprojection error then has its minima next to the up to four P3P poses of such points. Gross
outliers under a robust kernel bend the algebraic error as well, and a sample of three points that holds none leads next
to the minimum (Fischler and Bolles 1981, CACM 24(6)). The samples are graded over all, and no random numbers.
"""

import torch
from torch import Tensor
from torch.func import vmap

from geometry import se3
from geometry.compiled.constants import DISTINCT, DOMINATED, HEAVIEST, OF_TRIPLES, TRIPLES
from geometry.consensus.minimal import generalised_p3p, p3p
from geometry.pose.data import Options
from geometry.pose.problem import PoseModel
from geometry.pose.rig_data import Data, RigData

__all__ = ["add_triples", "poses_of_three"]


def poses_of_three(data: Data, rays: Tensor, row: Tensor, index: Tensor, model: PoseModel) -> Tensor:
    """All poses (M,H,4|8,4,4) of three points, those of index (M,H,3) of the problems row (M,1,1); rays (B,N,3)."""
    rays, points3d = rays[row, index], data.points3d[row, index]
    if isinstance(data, RigData) and model != "ray":
        return generalised_p3p(se3.centre(data.sensors[row, index]), rays, points3d)
    return p3p(rays, points3d)


def add_triples(
    data: Data, rays: Tensor, w2: Tensor, few: Data, options: Options, poses: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates poses (B,C,4,4) and which there are (B,C), with the best distinct poses of triples of points.

    rays (B,N,3), w2 (B,N) of sum 1 or 0. few: the points that tell which are the best. The candidates that there are
    come first.
    """
    order, count = _draw_from(w2, options.kernel is not None)
    problem = (count >= 3).nonzero().squeeze(-1)
    if len(problem) == 0:
        return poses, found
    index = order[problem].gather(1, _members(count[problem]).flatten(1)).unflatten(1, (TRIPLES, 3))
    row = problem[:, None, None]
    roots = poses_of_three(data, rays, row, index, options.model)
    few = type(few)(*(d[problem] for d in few))
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


def _costs(pose: Tensor, data: Data, options: Options) -> Tensor:
    """Costs (M,C) of poses (M,C,4,4), infinite where there is none or it sees not all points."""
    each = vmap(options.problem.cost, in_dims=(0, *[None] * len(data)))
    return vmap(each)(pose, *data).nan_to_num(torch.inf, torch.inf, torch.inf)
