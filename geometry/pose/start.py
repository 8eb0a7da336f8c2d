"""The global start of PnP in tensors: minima of an algebraic error on SO(3) (`geometry.pose.form`), the best refined;
`geometry.compiled.pose` does the same.

Gross outliers bend that start. With a robust kernel rho the candidates are therefore refined twice, by it and by
graduated non-convexity, which begins with a kernel so wide that it is none (Yang, Antonante, Tzoumas and Carlone 2020,
RA-L 5(2)); the better of the two is kept. k^2 rho(s / k^2) is rho of k times the scale: the weights divided by k, which
serves any kernel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.compiled.constants import CANDIDATES, DISTINCT, RANKED
from geometry.optim import levenberg_marquardt, linearize
from geometry.pose.data import Options, PnPData
from geometry.pose.form import Sights, algebraic_minima
from geometry.pose.rig_data import Data, RigData, scaled_pose
from geometry.pose.triples import add_triples

__all__ = ["Starts", "find_poses"]

_FEW = 64  # points that candidates are refined on
_STEPS = 6  # of a refinement
_ENOUGH = 1e-4  # relative decrease that is left to `geometry.pose.tensors`
_HOPELESS = 100.0  # times the lowest cost: not worth another step
_GRADUAL = (30.0, 8.0, 2.0, 1.0)  # times the scale of a robust kernel, one after the other
_LENS_STEPS = 10  # of Newton's method through a lens


class Starts(NamedTuple):
    """Poses (M,4,4) from which to look for minima: of problem `owner` (M,), of which they are candidate `rank` (M,)."""

    poses: Tensor
    owner: Tensor
    rank: Tensor


def find_poses(data: Data, options: Options) -> Starts:
    """Starts near the minima of the reprojection error that may be the lowest, one or more for every problem.

    data: prepared, centred and scaled. 1. descend r^T Omega r from the 24 rotations of a cube; 2. take the lowest
    minima, distinct by 0.1 rad, those with the points ahead of the camera first, and poses of three points where
    these may tell more (`geometry.pose.triples`); 3. refine them on the reprojection error of some of the points;
    4. keep what may be the lowest.
    """
    rays, valid = data.rays(options.lens, _LENS_STEPS)
    w2 = data.information() * valid
    w2 = w2 / w2.sum(-1, keepdim=True).clamp_min(torch.finfo(w2.dtype).tiny)
    rays = torch.where(valid[..., None], rays, 0.0)
    poses, found = _algebraic(rays, w2, data, options.scale)
    some = _some_points(data, _FEW)
    if not options.scale:
        poses, found = add_triples(data, rays, w2, _some_points(some, RANKED), options, poses, found)
    owner, rank = found.nonzero().unbind(1)
    cost, pose = _refined(type(some)(*(d[owner] for d in some)), poses[owner, rank], options)
    place = owner * CANDIDATES + rank
    costs = torch.full_like(found, torch.inf, dtype=cost.dtype).flatten().index_copy(0, place, cost)
    poses = poses.flatten(0, 1).index_copy(0, place, pose).unflatten(0, found.shape)
    owner, rank = _worth_more(costs.view_as(found), poses).nonzero().unbind(1)
    pose = poses[owner, rank]
    if _looks_ahead(data, options):  # a point that the refinement has not seen may lie behind
        pose = _push_ahead(pose, data.points3d[owner], data.mask[owner], only_behind=True)
    return Starts(pose, owner, rank)


def _algebraic(rays: Tensor, w2: Tensor, data: Data, scale: bool) -> tuple[Tensor, Tensor]:
    """Poses (B,C,4,4) at the minima of the algebraic error, and which there are (B,C)."""
    middle = (w2[:, None] @ data.points3d).mT  # (B,3,1)
    X = data.points3d - middle.mT
    square = (w2 * X.square().sum(-1)).sum(-1)
    # of one place alone, but for rounding, no form tells the depth
    one = square.sqrt() <= 1e4 * torch.finfo(w2.dtype).eps * middle.mT.norm(dim=-1).squeeze(-1)
    if isinstance(data, PnPData):
        size = torch.where(one, 1.0, square.sqrt())[:, None, None]
        R, t, found = algebraic_minima(Sights(rays, X / size, w2))
        t = torch.where(one[:, None, None], t.new_tensor([0.0, 0.0, 1.0]), t)
        return se3.make(R, size * t - (R @ middle[:, None]).squeeze(-1)), found
    centres = se3.centre(data.sensors)
    base = w2[:, None] @ centres  # (B,1,3)
    centres = centres - base
    if not scale:
        square = 2 * (square + (w2 * centres.square().sum(-1)).sum(-1))
    size = torch.where(one | (square == 0), 1.0, square.sqrt())[:, None, None]
    R, t, found = algebraic_minima(Sights(rays, X / size, w2, centres / size), scale)
    t = torch.where(one[:, None, None], t.new_tensor([0.0, 0.0, 1.0, 1.0]), t)
    t, factor = t.split((3, 1), -1)
    factor = torch.where(factor == 0, 1.0, factor)  # none can be told
    return scaled_pose(R, size * t + factor * base - (R @ middle[:, None]).squeeze(-1), factor[..., 0]), found


def _looks_ahead(data: Data, options: Options) -> bool:
    """Whether there is a direction that takes all points ahead of the camera."""
    return options.model == "radtan" and isinstance(data, PnPData)


def _some_points(data: Data, most: int) -> Data:
    """At most so many of the visible points, spread over all of them, but for a jitter, lest they run along a grid."""
    if data.points2d.shape[1] <= most:
        return data
    visible_first = data.mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    count = data.mask.sum(-1, keepdim=True)
    steps = torch.arange(most, dtype=torch.float64, device=count.device)
    places = torch.where(count > most, ((steps + 0.618034 * steps % 1) * count / most).long(), steps.long())
    return data.at(visible_first.gather(1, places))


def _refined(data: Data, pose: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Costs (M,), infinite where not finite, and poses (M,4,4) after some steps on the reprojection error.

    Of a rig they begin with steps on the angles to the rays, which are finite wherever the points are: there is no
    direction that takes all of them ahead of their cameras.
    """
    problem = options.problem
    if isinstance(data, RigData) and options.model != "ray":
        _, pose = _refined(data.as_bearings(options.lens, _LENS_STEPS), pose, options._replace(model="ray"))
    if _looks_ahead(data, options):
        pose = _push_ahead(pose, data.points3d, data.mask)
    narrow, _, _ = levenberg_marquardt(problem, pose, data, _STEPS, _ENOUGH)
    cost = linearize(problem, narrow, data).cost
    if options.kernel is not None:
        for wider in _GRADUAL:
            widened = data._replace(weights=data.weights / wider)
            pose, _, _ = levenberg_marquardt(problem, pose, widened, _STEPS, _ENOUGH)
        gradual = linearize(problem, pose, data).cost
        better = gradual < cost
        narrow, cost = torch.where(better[:, None, None], pose, narrow), torch.where(better, gradual, cost)
    return torch.where(torch.isfinite(cost), cost, torch.inf), narrow


def _worth_more(cost: Tensor, pose: Tensor) -> Tensor:
    """Which candidates (B,C) to look at further: those that may be the lowest minimum, each once."""
    ascending, order = cost.sort(-1)
    r = pose[..., :3, :3].flatten(-2).gather(1, order[..., None].expand(-1, -1, 9))
    own = ~((r @ r.mT > DISTINCT).tril(-1)).any(-1) & torch.isfinite(ascending)
    worth = own & (ascending <= _HOPELESS * ascending[:, :1])
    worth[:, 0] = True
    return torch.zeros_like(worth).scatter(1, order, worth)


def _push_ahead(pose: Tensor, X: Tensor, mask: Tensor, only_behind: bool = False) -> Tensor:
    """Shift poses (M,4,4) along z until every visible point X (M,N,3) is ahead by a tenth of the object's size, 1.

    only_behind: leave those alone whose points are ahead.
    """
    z = (pose[:, None, 2, :3] @ X.mT).squeeze(1) + pose[:, 2, 3:]
    nearest = torch.where(mask, z, torch.inf).amin(-1)
    shift = (0.1 - nearest).clamp(0, torch.finfo(z.dtype).max)
    if only_behind:
        shift = torch.where(nearest > 0, 0.0, shift)
    up = torch.zeros_like(pose)
    up[:, 2, 3] = shift
    return pose + up
