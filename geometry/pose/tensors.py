"""PnP in batched tensor operations: the back end of `geometry.pnp` on any device, for every lens and kernel.

The contract is that of `geometry.pose.compiled`, which says it, and the algorithm the same.
"""

import torch
from torch import Tensor

from geometry import se3
from geometry.optim import Solution, Status, argmin, minimize
from geometry.pose.data import Options, PnPData
from geometry.pose.problem import pnp_problem
from geometry.pose.start import CANDIDATES, Starts, find_poses

__all__ = ["prepared", "search", "solve"]

_SAME = 1e-3  # two minima less than about this many radians apart are one


def prepared(data: PnPData, init: Tensor | None) -> PnPData:
    """Everything of full size, masked and checked (`PnPData.prepared`)."""
    return data.prepared(init)


def search(data: PnPData, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """See `geometry.pose.compiled`."""
    with torch.no_grad():
        data, frame = data.centred(scaled=True)
        starts = find_poses(data, options)
        part = (d[starts.owner] for d in data)
        found = minimize(pnp_problem(options.model, options.kernel), starts.poses, *part, max_steps=options.max_steps)
        best, second, ratio = _best_two(found, starts, len(data.points2d))
        return frame.from_frame(best), frame.from_frame(second), ratio


def solve(data: PnPData, init: Tensor, options: Options, fewest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `geometry.pose.compiled`."""
    data, frame = data.centred(scaled=True)
    with torch.no_grad():
        # a rotation that was rounded to float32, or came from a file, is made one again
        R = se3.rotation_from_quat_wxyz(se3.quat_wxyz_from_rotation(init[..., :3, :3]))
        start = frame.to_frame(se3.make(R, init[..., :3, 3]).expand(len(data.points2d), 4, 4))
    problem = pnp_problem(options.model, options.kernel)
    found = argmin(problem, start, *data, gradient=options.gradient, max_steps=options.max_steps)
    pose = frame.from_frame(found.x)
    # A sample with too few points may look converged to the solver; it is not, and its gradient is dropped.
    enough = data.mask.sum(-1) >= fewest
    pose = torch.where(enough[:, None, None], pose, pose.detach())
    status = torch.where(enough, found.status, Status.TOO_FEW).to(torch.int8)
    return pose, found.cost, status, found.steps


def _best_two(found: Solution, starts: Starts, B: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best minimum of every problem, the best of the others or a copy, and the ratio of their costs or 0.

    found: what became of the starts.
    """
    place = starts.owner * CANDIDATES + starts.rank
    poses = found.x.new_zeros(B * CANDIDATES, 4, 4).index_copy(0, place, found.x).unflatten(0, (B, CANDIDATES))
    # what did not converge comes after all that did
    none = found.cost.new_full((2, B * CANDIDATES), torch.inf)
    key = torch.stack([torch.where(found.converged, found.cost, torch.inf), found.cost.nan_to_num(torch.inf)])
    converged, cost = none.index_copy(1, place, key).unflatten(1, (B, CANDIDATES))
    first = torch.where(torch.isfinite(converged).any(-1), converged.argmin(-1), cost.argmin(-1))[:, None]
    best = poses.gather(1, first[..., None, None].expand(-1, -1, 4, 4))
    # sqrt(8) sin(angle / 2)
    chord = (poses - best)[..., :3, :3].square().sum((-2, -1)).sqrt()
    high, other = torch.where(chord > _SAME, converged, torch.inf).min(-1)
    low = converged.gather(1, first).squeeze(1)
    two = torch.isfinite(high) & torch.isfinite(low)
    second = torch.where(two[:, None], other[:, None], first)
    second = poses.gather(1, second[..., None, None].expand(-1, -1, 4, 4)).squeeze(1)
    ratio = torch.where(two, low / high.clamp_min(torch.finfo(low.dtype).tiny), 0.0)
    return best.squeeze(1), second, ratio
