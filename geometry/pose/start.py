"""The global start of PnP in tensors: minima of an algebraic error on SO(3), the best refined; `geometry.compiled.pose`
does the same.

With b_i the unit ray of pixel i and V_i = I - b_i b_i^T, the object-space error sum_i w_i^2 |V_i (R X_i + t)|^2 (Lu,
Hager and Mjolsness 2000, TPAMI 22(6), eq. 17) is quadratic in t, which is eliminated, and then quadratic in the
nine entries of R: r^T Omega r with one 9 x 9 matrix per problem, whatever N (the form of SQPnP, Terzakis and Lourakis,
ECCV 2020, eq. 8). Minimising it on SO(3) costs nothing per point, so it is done from many rotations at once.

Gross outliers bend that start. With a robust kernel rho the candidates are therefore refined twice, by it and by
graduated non-convexity, which begins with a kernel so wide that it is none (Yang, Antonante, Tzoumas and Carlone 2020,
RA-L 5(2)); the better of the two is kept. k^2 rho(s / k^2) is rho of k times the scale: the weights divided by k, which
serves any kernel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import rays_of
from geometry.compiled.constants import CANDIDATES, DISTINCT, RANKED
from geometry.optim import levenberg_marquardt, linearize
from geometry.pose.data import Options, PnPData
from geometry.pose.problem import pnp_problem, turned
from geometry.pose.triples import add_triples
from geometry.se3 import cube_rotations

__all__ = ["Starts", "find_poses"]

"""Poses that are refined."""
_DESCENT_STEPS = 8
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


def find_poses(data: PnPData, options: Options) -> Starts:
    """Starts near the minima of the reprojection error that may be the lowest, one or more for every problem.

    data: prepared, centred and scaled. 1. descend r^T Omega r from the 24 rotations of a cube; 2. take the lowest
    minima, distinct by 0.1 rad, those with the points ahead of the camera first, and poses of three points where
    these may tell more (`geometry.pose.triples`); 3. refine them on the reprojection error of some of the points;
    4. keep what may be the lowest.
    """
    rays, valid = rays_of(data.points2d, data.K, data.distortion, options.model, _LENS_STEPS)
    w2 = data.weights.square().mean(-1) * valid
    w2 = w2 / w2.sum(-1, keepdim=True).clamp_min(torch.finfo(w2.dtype).tiny)
    rays = torch.where(valid[..., None], rays, 0.0)
    middle = (w2[:, None] @ data.points3d).mT  # (B,3,1)
    X = data.points3d - middle.mT
    size = (w2 * X.square().sum(-1)).sum(-1).sqrt()
    # of one place alone, but for rounding, no form tells the depth
    one = size <= 1e4 * torch.finfo(size.dtype).eps * middle.mT.norm(dim=-1).squeeze(-1)
    one, size = one[:, None, None], torch.where(one, 1.0, size)[:, None, None]
    R, t, found = _algebraic_minima(rays, X / size, w2)
    t = torch.where(one, t.new_tensor([0.0, 0.0, 1.0]), t)
    poses = se3.make(R, size * t - (R @ middle[:, None]).squeeze(-1))
    some = _some_points(data, _FEW)
    poses, found = add_triples(data.points3d, rays, w2, _some_points(some, RANKED), options, poses, found)
    owner, rank = found.nonzero().unbind(1)
    cost, pose = _refined(PnPData(*(d[owner] for d in some)), poses[owner, rank], options)
    place = owner * CANDIDATES + rank
    costs = torch.full_like(found, torch.inf, dtype=cost.dtype).flatten().index_copy(0, place, cost)
    poses = poses.flatten(0, 1).index_copy(0, place, pose).unflatten(0, found.shape)
    owner, rank = _worth_more(costs.view_as(found), poses).nonzero().unbind(1)
    pose = poses[owner, rank]
    if options.model == "radtan":  # a point that the refinement has not seen may lie behind
        pose = _push_ahead(pose, data.points3d[owner], data.mask[owner], only_behind=True)
    return Starts(pose, owner, rank)


def _algebraic_minima(rays: Tensor, X: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest distinct minima of the object-space error: R (B,C,3,3), t (B,C,3), and whether there is one (B,C).

    Those behind the camera are taken where there is none ahead. rays and X (B,N,3), the points about their weighted
    centre and of size 1, w2 (B,N).
    """
    omega, T = _quadratic_form(rays, X, w2)
    R = cube_rotations(X.dtype, X.device).expand(len(X), -1, 3, 3)
    R, value = _descend(omega, R, _DESCENT_STEPS)
    t = R.mT.flatten(-2) @ T.mT
    # mean of b . (R X + t): negative for the mirror images behind the camera
    weighted = w2[..., None] * rays
    depth = (R * (weighted.mT @ X)[:, None]).sum((-2, -1)) + (t * weighted.sum(1)[:, None]).sum(-1)
    value = torch.where(depth > 0, value, value + 2)
    value, order = value.sort(-1)
    r = R.flatten(-2).gather(1, order[..., None].expand(-1, -1, 9))
    t = t.gather(1, order[..., None].expand(-1, -1, 3))
    # a minimum that lies next to a lower one is that one
    again = ((r @ r.mT > DISTINCT).tril(-1)).any(-1)
    value, chosen = torch.where(again, torch.inf, value).topk(CANDIDATES, -1, largest=False)
    found, chosen = value < 1.5, chosen[..., None]
    found[:, 0] = True
    r, t = r.gather(1, chosen.expand(-1, -1, 9)), t.gather(1, chosen.expand(-1, -1, 3))
    return r.unflatten(-1, (3, 3)), t, found


def _quadratic_form(rays: Tensor, X: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """Omega (B,9,9) over r = (first, second, third column of R), and T (B,3,9) with t = T r; zero if not finite."""
    eye = torch.eye(3, dtype=X.dtype, device=X.device)
    V = (w2[..., None, None] * (eye - rays[..., :, None] * rays[..., None, :])).flatten(-2)
    # sums over points of V, V X_k and V X_k X_l, with R X_i = (X_i^T (x) I) r
    X = torch.cat([X, (X[..., :, None] * X[..., None, :]).flatten(-2)], -1)
    sums = V.mT @ X  # (B, ij, 3 + 9)
    VA = sums[..., :3].unflatten(1, (3, 3)).transpose(-2, -1).flatten(-2)
    AVA = sums[..., 3:].unflatten(1, (3, 3)).unflatten(-1, (3, 3)).permute(0, 3, 1, 4, 2).flatten(1, 2).flatten(2)
    # Pixels that all but coincide leave the depth free to rounding; solve_ex never raises for one bad sample.
    ridge = 4 * torch.finfo(X.dtype).eps * w2.sum(-1).clamp_min(torch.finfo(X.dtype).tiny)[:, None, None] * eye
    T = -torch.linalg.solve_ex(V.sum(1).unflatten(-1, (3, 3)) + ridge, VA)[0]
    omega = AVA + VA.mT @ T
    finite = torch.isfinite(omega.sum((-2, -1)) + T.sum((-2, -1)))[:, None, None]
    return torch.where(finite, omega, 0.0), torch.where(finite, T, 0.0)


def _descend(omega: Tensor, R: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on r^T Omega r over SO(3). omega (B,9,9), R (B,S,3,3) -> R, value (B,S)."""
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    r = R.mT.flatten(-2)
    y = r @ omega
    value = (r * y).sum(-1)
    damping = torch.full_like(value, 0.1)
    for _ in range(steps):
        # d r_k = omega x r_k for each column: G (B,S,9,3)
        G = se3.hat(R.mT).flatten(-3, -2)
        gradient = (y[..., None, :] @ G).squeeze(-2)
        H = G.mT @ (omega[:, None] @ G)
        scale = H.diagonal(dim1=-2, dim2=-1).sum(-1) / 3 + torch.finfo(R.dtype).tiny
        trial = turned(R, _solve3(H + (damping * scale)[..., None, None] * eye, gradient))
        r = trial.mT.flatten(-2)
        new_y = r @ omega
        new_value = (r * new_y).sum(-1)
        accept = new_value < value
        R = torch.where(accept[..., None, None], trial, R)
        y = torch.where(accept[..., None], new_y, y)
        value = torch.where(accept, new_value, value)
        damping = torch.where(accept, 0.1 * damping, 8.0 * damping).clamp(1e-9, 1e9)
    return R, value


def _solve3(A: Tensor, b: Tensor) -> Tensor:
    """Solve symmetric positive definite 3 x 3 systems by Cramer's rule: element-wise, hence fast in large batches."""
    c0, c1, c2 = A.unbind(-1)
    n = torch.linalg.cross(c1, c2)
    det = (c0 * n).sum(-1, keepdim=True)
    rows = torch.stack([n, torch.linalg.cross(c2, c0), torch.linalg.cross(c0, c1)], -2)
    return (rows @ b[..., None]).squeeze(-1) / det


def _some_points(data: PnPData, most: int) -> PnPData:
    """At most so many of the visible points, spread over all of them, but for a jitter, lest they run along a grid."""
    if data.points2d.shape[1] <= most:
        return data
    visible_first = data.mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    count = data.mask.sum(-1, keepdim=True)
    steps = torch.arange(most, dtype=torch.float64, device=count.device)
    places = torch.where(count > most, ((steps + 0.618034 * steps % 1) * count / most).long(), steps.long())
    index = visible_first.gather(1, places)[..., None]
    points2d, weights = (d.gather(1, index.expand(-1, -1, 2)) for d in (data.points2d, data.weights))
    points3d = data.points3d.gather(1, index.expand(-1, -1, 3))
    return data._replace(points2d=points2d, points3d=points3d, weights=weights, mask=data.mask.gather(1, index[..., 0]))


def _refined(data: PnPData, pose: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Costs (M,), infinite where not finite, and poses (M,4,4) after some steps on the reprojection error."""
    problem = pnp_problem(options.model, options.kernel)
    if options.model == "radtan":
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
