"""PnP in batched tensor operations: the back end of `geometry.pnp` on any device, for every lens and kernel, and rigs.

The contract is that of `geometry.pose.compiled`, which says it, and the algorithm the same. Poses of rigs have their
scale for a last entry (`geometry.pose.problem`).
"""

import torch
from torch import Tensor, nn

from geometry.compiled.constants import CANDIDATES
from geometry.optim import Solution, Status, argmin, attach_gradient, minimize, opaque
from geometry.pose.data import Options
from geometry.pose.rig_data import Data
from geometry.pose.start import Starts, find_poses

__all__ = ["prepared", "search", "solve"]

_NEAR = 1e-7  # predicted relative decrease at which Newton takes over
_NEWTON = 2  # of its steps; one on a candidate
_STEPS = 4  # on a candidate: one that needs more runs away, or is left to `solve`
_SAME = 1e-3  # two minima less than about this many radians apart are one


def prepared(data: Data, init: Tensor | None) -> Data:
    """Everything of full size, masked and checked (`PnPData.prepared`)."""
    return data.prepared(init)


def search(data: Data, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """See `geometry.pose.compiled`."""
    kind = type(data)

    def find(*tensors: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        centred, frame = kind(*tensors).centred(scaled=True)
        starts = find_poses(centred, options)
        part = tuple(d[starts.owner] for d in centred)
        found = _minima(starts.poses, part, options, min(options.max_steps, _STEPS), 1)
        best, second, ratio = _best_two(found, starts, len(centred.points2d))
        return frame.from_frame(best), (frame.from_frame(second), ratio)

    best, (second, ratio) = opaque(find, *data)
    return best, second, ratio


def solve(data: Data, init: Tensor, options: Options, fewest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `geometry.pose.compiled`."""
    data, frame = data.centred(scaled=True)
    with torch.no_grad():
        start = frame.to_frame(_rigid(init).expand(len(data.points2d), 4, 4))
    problem = options.problem
    if options.gradient == "unrolled":
        found = argmin(problem, start, *data, gradient="unrolled", max_steps=options.max_steps)
        x = found.x
    else:
        with torch.no_grad():
            found = _minima(start, data, options, options.max_steps, _NEWTON)
        x = attach_gradient(problem, found.x, *data, ok=found.converged, gradient=options.gradient)
    pose = frame.from_frame(x)
    # A sample with too few points may look converged to the solver; it is not, and its gradient is dropped.
    enough = data.mask.sum(-1) >= fewest
    pose = torch.where(enough[:, None, None], pose, pose.detach())
    status = torch.where(enough, found.status, Status.TOO_FEW).to(torch.int8)
    return pose, found.cost, status, found.steps


def _minima(start: Tensor, data: tuple[Tensor, ...], options: Options, max_steps: int, newton: int) -> Solution:
    """Local minima next to the starts (M,4,4): Levenberg-Marquardt as long as it pays, then Newton's method."""
    return minimize(options.problem, start, *data, max_steps=max_steps, polish=newton, enough=_NEAR)


def _rigid(pose: Tensor) -> Tensor:
    """The pose, its rotation made orthonormal, which may have been rounded to float32, or come from a file."""
    a, b = pose[..., 0, :3], pose[..., 1, :3]
    a = nn.functional.normalize(a, dim=-1)
    b = nn.functional.normalize(b - (a * b).sum(-1, keepdim=True) * a, dim=-1)
    R = torch.stack([a, b, torch.linalg.cross(a, b)], -2)
    return torch.cat([torch.cat([R, pose[..., :3, 3:]], -1), pose[..., 3:, :]], -2)


def _best_two(found: Solution, starts: Starts, B: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best minimum of every problem, the best of the others or a copy, and the ratio of their costs or 0.

    found: what became of the starts.
    """
    place = starts.owner * CANDIDATES + starts.rank
    poses = found.x.new_zeros(B * CANDIDATES, 4, 4).index_copy(0, place, found.x).unflatten(0, (B, CANDIDATES))
    # what is singular comes after all that may be a minimum, and what is still on its way is left to `solve`
    none = found.cost.new_full((3, B * CANDIDATES), torch.inf)
    cost = found.cost.nan_to_num(torch.inf, torch.inf)
    isolated = found.converged | (found.status == Status.STALLED)
    key = torch.stack([torch.where(found.converged, cost, torch.inf), torch.where(isolated, cost, torch.inf), cost])
    converged, isolated, cost = none.index_copy(1, place, key).unflatten(1, (B, CANDIDATES))
    first = torch.where(torch.isfinite(isolated).any(-1), isolated.argmin(-1), cost.argmin(-1))[:, None]
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
