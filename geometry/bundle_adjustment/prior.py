"""What is known beforehand of poses, mountings, intrinsics and velocities, and what it adds to cost and equations."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import hessian, jacfwd, vmap
from torch.nn.functional import pad

from geometry import se3
from geometry._forward import one_at_a_time
from geometry.bundle_adjustment.operator import Blocks

__all__ = ["Known", "Prior", "add_known", "cost_of"]


class Prior(NamedTuple):
    """What is known beforehand, with weights 1/sigma; a weight of zero knows nothing, None nothing of the kind.

    world_to_camera (V,4,4), pose_weights (V,6): the residual is the rotation vector of R R_prior^T (radians, camera
    axes) and the difference of the camera centres (world units, world axes; what a GPS measures). points3d (N,3),
    point_weights (N,3): control points. theta (C,P), theta_weights (C,P): the free intrinsics in the order of their
    names, "f" standing for fx. sensor_from_rig (S,4,4), sensor_weights (S,6): mountings, the residual as for poses;
    velocity (F,6), velocity_weights (F,6). Of rigs the poses are those of the frames.

    >>> gps = Prior(pose, torch.tensor([0.0, 0, 0, 10, 10, 10]))  # every centre to a tenth
    >>> bundle(points2d.flatten(0, 1), view, point, pose, points3d, K, prior=gps).converged
    tensor([True])
    """

    world_to_camera: Tensor | None = None
    pose_weights: Tensor | None = None
    points3d: Tensor | None = None
    point_weights: Tensor | None = None
    theta: Tensor | None = None
    theta_weights: Tensor | None = None
    sensor_from_rig: Tensor | None = None
    sensor_weights: Tensor | None = None
    velocity: Tensor | None = None
    velocity_weights: Tensor | None = None


class Known(NamedTuple):
    """Values of one kind, poses (n,4,4) or vectors (n,k), their priors and weights (n,k).

    first: the first of their columns, None where they have none. once (V,): the view that counts for all that share
    them, shared (V,): which of the n a view has.
    """

    value: Tensor
    prior: Tensor
    weights: Tensor
    first: int | None
    once: Tensor
    shared: Tensor


def _residual(value: Tensor, prior: Tensor, weights: Tensor) -> Tensor:
    """Of one pose (6,), or of one vector (k,)."""
    if value.ndim == 1:
        return weights * (value - prior)
    turn = se3.log(value[:3, :3] @ prior[:3, :3].mT)
    return weights * torch.cat([turn, se3.centre(value) - se3.centre(prior)])


def _derivatives(known: Known, exact: bool) -> tuple[Tensor, Tensor]:
    """J^T r (n,k), and J^T J or the exact Hessian (n,k,k), by steps of the values."""
    inputs = known[:3]
    if known.value.ndim == 2:
        return known.weights * vmap(_residual)(*inputs), torch.diag_embed(known.weights.square())

    def moved(step: Tensor, pose: Tensor, prior: Tensor, weights: Tensor) -> Tensor:
        return _residual(se3.retract(pose, step), prior, weights)

    at = (known.weights.new_zeros(known.weights.shape), *inputs)
    with one_at_a_time():
        r, J = vmap(moved)(*at), vmap(jacfwd(moved))(*at)
        H = vmap(hessian(lambda *a: 0.5 * moved(*a).square().sum()))(*at) if exact else J.mT @ J
    return (J.mT @ r[..., None]).squeeze(-1), H


def cost_of(known: Sequence[Known], like: Tensor) -> Tensor:
    """Half the sum of squares ()."""
    cost = like.new_zeros(())
    for one in known:
        cost = cost + 0.5 * vmap(_residual)(*one[:3]).square().sum()
    return cost


def add_known(blocks: Blocks, known: Sequence[Known], exact: bool) -> Blocks:
    """What observations add to the normal equations, and what is known beforehand."""
    views, U = blocks.views, blocks.U
    for one in known:
        if one.first is None:
            continue
        slope, bend = _derivatives(one, exact)
        room = one.first, views.shape[1] - one.first - slope.shape[1]
        once = one.once[:, None]
        views = views + once * pad(slope[one.shared], room)
        U = U + once[..., None] * pad(bend[one.shared], room + room)
    return blocks._replace(cost=blocks.cost + cost_of(known, U), views=views, U=U)
