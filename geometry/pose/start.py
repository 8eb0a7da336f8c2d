"""The global start of PnP: every minimum of an algebraic error on SO(3), the best ones refined.

With b_i the unit ray of pixel i and V_i = I - b_i b_i^T, the object-space error sum_i w_i^2 |V_i (R X_i + t)|^2 (Lu,
Hager and Mjolsness 2000, TPAMI 22(6), eq. 17) is quadratic in t, which is eliminated, and then quadratic in the
nine entries of R: r^T Omega r with one 9 x 9 matrix per problem, whatever N (the form of SQPnP, Terzakis and Lourakis,
ECCV 2020, eq. 8). Minimising it on SO(3) costs nothing per point, so it is done from many rotations at once.
"""

import math

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import Model, unproject
from geometry.optim import Problem, Status, levenberg_marquardt
from geometry.se3 import cube_rotations

__all__ = ["find_pose", "better"]

_DESCENT_STEPS = 10
_CANDIDATES = 7
_DISTINCT = 0.1  # radians
_REFINE_STEPS = 12


def _solve3(A: Tensor, b: Tensor) -> Tensor:
    """Solve symmetric positive definite 3 x 3 systems by Cramer's rule: element-wise, hence fast in large batches."""
    c0, c1, c2 = A.unbind(-1)
    n = torch.linalg.cross(c1, c2)
    det = (c0 * n).sum(-1, keepdim=True)
    rows = torch.stack([n, torch.linalg.cross(c2, c0), torch.linalg.cross(c0, c1)], -2)
    return (rows @ b[..., None]).squeeze(-1) / det


def _quadratic_form(rays: Tensor, X: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """Omega (B,9,9) over r = (first, second, third column of R), and T (B,3,9) with t = T r."""
    eye = torch.eye(3, dtype=X.dtype, device=X.device)
    V = w2[..., None, None] * (eye - rays[..., :, None] * rays[..., None, :])
    # A_i r = R X_i with A_i = X_i^T (x) I; sums over points of V, V A and A^T V A
    VA = torch.einsum("bnij,bnk->bikj", V, X).flatten(-2)
    AVA = torch.einsum("bnk,bnij,bnl->bkilj", X, V, X).reshape(-1, 9, 9)
    trace = w2.sum(-1).clamp_min(torch.finfo(X.dtype).tiny)
    # Pixels that all but coincide leave the depth free to rounding; solve_ex never raises for one bad sample.
    ridge = 4 * torch.finfo(X.dtype).eps * trace[:, None, None] * eye
    T = -torch.linalg.solve_ex(V.sum(1) + ridge, VA)[0]
    return AVA + VA.mT @ T, T


def _descend(omega: Tensor, R: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on r^T Omega r over SO(3). omega (B,9,9), R (B,S,3,3) -> R, value (B,S)."""

    def value_and_product(R: Tensor) -> tuple[Tensor, Tensor]:
        r = R.mT.flatten(-2)
        y = r @ omega
        return (r * y).sum(-1), y

    value, y = value_and_product(R)
    damping = torch.full_like(value, 0.1)
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    for _ in range(steps):
        # d r_k = omega x r_k for each column: G (B,S,9,3)
        G = -se3.hat(R.mT).flatten(-3, -2)
        gradient = (G.mT @ y[..., None]).squeeze(-1)
        H = G.mT @ (omega[:, None] @ G)
        scale = H.diagonal(dim1=-2, dim2=-1).sum(-1) / 3 + torch.finfo(R.dtype).tiny
        step = -_solve3(H + (damping * scale)[..., None, None] * eye, gradient)
        candidate = se3.exp(step) @ R
        new_value, new_y = value_and_product(candidate)
        accept = new_value < value
        R = torch.where(accept[..., None, None], candidate, R)
        y = torch.where(accept[..., None], new_y, y)
        value = torch.where(accept, new_value, value)
        damping = torch.where(accept, damping * 0.1, damping * 8).clamp(1e-9, 1e9)
    return R, value


def find_pose(
    problem: Problem,
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor,
    weights: Tensor,
    mask: Tensor,
    model: Model,
) -> tuple[Tensor, Tensor]:
    """Start of PnP near its global minimum, and the best start elsewhere. Batched data of `pnp_problem` -> twice
    world_to_camera (B,4,4), always finite.

    1. descend r^T Omega r from the 24 rotations of a cube; 2. keep the lowest minima, distinct by 0.1 rad, whose
    points lie ahead of the camera; 3. refine them on the reprojection error (with the robust kernel, if any), keep
    the two best.
    """
    B = len(points2d)
    rays, valid = unproject(points2d, K, distortion, model=model)
    w2 = weights.square().mean(-1) * (mask & valid)
    w2 = w2 / w2.sum(-1, keepdim=True).clamp_min(torch.finfo(w2.dtype).tiny)
    rays = torch.where(valid[..., None], rays, rays.new_tensor([0.0, 0.0, 1.0]))
    # centre and scale the object, so that nothing below depends on its units
    centre = (w2[..., None] * points3d).sum(1, keepdim=True)
    X = points3d - centre
    size = (w2 * X.square().sum(-1)).sum(-1).sqrt()
    size = torch.where(size > 0, size, torch.ones_like(size))
    X = X / size[:, None, None]
    omega, T = _quadratic_form(rays, X, w2)
    omega = torch.where(torch.isfinite(omega), omega, torch.zeros_like(omega))
    T = torch.where(torch.isfinite(T), T, torch.zeros_like(T))

    R = cube_rotations(X.dtype, X.device).expand(B, -1, 3, 3)
    R, value = _descend(omega, R, _DESCENT_STEPS)
    t = (T[:, None] @ R.mT.flatten(-2)[..., None]).squeeze(-1)
    # mean of b . (R X + t): negative for the mirror images behind the camera
    ahead = ((w2[..., None] * rays)[:, :, :, None] * X[:, :, None, :]).sum(1)
    depth = (R * ahead[:, None]).sum((-2, -1)) + (t * (w2[..., None] * rays).sum(1)[:, None]).sum(-1)
    value = torch.where(depth > 0, value, value + value.amax(-1, keepdim=True) + 1)

    chosen = []
    for _ in range(_CANDIDATES):
        best = value.argmin(-1)
        index = best[:, None, None, None].expand(B, 1, 3, 3)
        R_best = R.gather(1, index)
        chosen.append(se3.make(R_best.squeeze(1), t.gather(1, best[:, None, None].expand(B, 1, 3)).squeeze(1)))
        # trace(R_a^T R_b) = 1 + 2 cos(angle)
        cosine = ((R * R_best).sum((-2, -1)) - 1) / 2
        value = torch.where(cosine > math.cos(_DISTINCT), torch.inf, value)
    pose = torch.stack(chosen, 1)

    # back to the caller's units: R (X s + c) + t' with t' = s t - R c
    R, t = pose[..., :3, :3], pose[..., :3, 3]
    if model == "radtan":
        t = _push_ahead(R, t, X, mask)
    t = size[:, None, None] * t - (R @ centre[:, None].mT).squeeze(-1)
    start = se3.make(R, t).flatten(0, 1)
    data = tuple(d.repeat_interleave(_CANDIDATES, 0) for d in (points2d, points3d, K, distortion, weights, mask))
    refined, _, _ = levenberg_marquardt(problem, start, data, _REFINE_STEPS)
    assert problem.linearize is not None
    cost = problem.linearize(refined, *data).cost.unflatten(0, (B, _CANDIDATES))
    cost = torch.where(torch.isfinite(cost), cost, torch.inf)
    poses = refined.unflatten(0, (B, _CANDIDATES))

    def pick(cost: Tensor) -> Tensor:
        return poses.gather(1, cost.argmin(-1)[:, None, None, None].expand(B, 1, 4, 4)).squeeze(1)

    best = pick(cost)
    cosine = ((poses[..., :3, :3] * best[:, None, :3, :3]).sum((-2, -1)) - 1) / 2
    return best, pick(torch.where(cosine > math.cos(_DISTINCT), torch.inf, cost))


def _push_ahead(R: Tensor, t: Tensor, X: Tensor, mask: Tensor) -> Tensor:
    """Shift candidates (B,C) along z until every visible point is at least a tenth of the object ahead."""
    z = (X[:, None] @ R.mT)[..., 2] + t[..., None, 2]
    nearest = torch.where(mask[:, None], z, torch.inf).amin(-1)
    shift = (0.1 - nearest).clamp(min=0)
    return t + torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), torch.nan_to_num(shift)], -1)


# Two minima less than about this many radians apart are one.
_SAME = 1e-3


def better(
    pose_a: Tensor, cost_a: Tensor, status_a: Tensor, pose_b: Tensor, cost_b: Tensor, status_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The better minimum, the other (a copy of the better where it is none), and the ratio of their costs, or 0."""
    good_a, good_b = status_a == Status.CONVERGED, status_b == Status.CONVERGED
    swap = (good_b & ((cost_b < cost_a) | ~good_a))[:, None, None]
    first, second = torch.where(swap, pose_b, pose_a), torch.where(swap, pose_a, pose_b)
    # sqrt(8) sin(angle / 2), element by element: torch's threads, once woken, hold their cores for milliseconds
    chord = (first - second)[:, :3, :3].square().sum((-2, -1)).sqrt()
    two = good_a & good_b & (chord > _SAME)
    low, high = torch.minimum(cost_a, cost_b), torch.maximum(cost_a, cost_b)
    ratio = torch.where(two, low / high.clamp_min(torch.finfo(low.dtype).tiny), 0)
    return first, torch.where(two[:, None, None], second, first), ratio
