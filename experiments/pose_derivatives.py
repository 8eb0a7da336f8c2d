"""Derivatives of the pose that minimises the reprojection error, by finite differences: the measure of every gradient.

Inputs are flat, (B,n) each: points2d, points3d, K (fx, fy, cx, cy), weights, and distortion if there is any.
"""

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import matrix_from_intrinsics
from geometry.implicit import Gradient
from geometry.pnp import pnp

# Finite differences: a part in 1e4 of what the input is made of, sixth order.
STEPS = {"points2d": 0.02, "points3d": 3e-4, "K": 0.05, "distortion": 1e-3, "weights": 1e-3}
STENCIL = ((-3, -1.0), (-2, 9.0), (-1, -45.0), (1, 45.0), (2, -9.0), (3, 1.0))


def solve(inputs: dict[str, Tensor], init: Tensor, gradient: Gradient = "exact") -> Tensor:
    """Poses (B,4,4) of flat inputs."""
    solution = pnp(
        inputs["points2d"].unflatten(1, (-1, 2)),
        inputs["points3d"].unflatten(1, (-1, 3)),
        matrix_from_intrinsics(inputs["K"]),
        distortion=inputs.get("distortion"),
        weights=inputs["weights"].unflatten(1, (-1, 2)),
        init=init,
        gradient=gradient,
        throw=True,
    )
    assert isinstance(solution.x, Tensor)
    return solution.x


def tangent(pose: Tensor, origin: Tensor) -> Tensor:
    """(omega, t) (…,6) of a pose relative to a fixed one."""
    rotvec = se3.log(pose[..., :3, :3] @ origin[..., :3, :3].mT)
    return torch.cat([rotvec, pose[..., :3, 3] - origin[..., :3, 3]], -1)


def numeric(inputs: dict[str, Tensor], optimum: Tensor) -> dict[str, Tensor]:
    """d (omega, t) / d input (B,6,n) of every input by finite differences."""
    found = {}
    for name, value in inputs.items():
        n = value.shape[1]
        moves = STEPS[name] * torch.eye(n, dtype=value.dtype)[:, None]  # (n,1,n), broadcast over problems
        offsets = torch.stack([k * moves for k, _ in STENCIL])
        still = {other: v for other, v in inputs.items() if other not in (name, "distortion")}
        batch = {other: v.expand(len(STENCIL), n, *v.shape).flatten(0, 2) for other, v in still.items()}
        batch[name] = (value + offsets).flatten(0, 2)
        start = optimum.expand(len(STENCIL), n, *optimum.shape)
        six = tangent(solve(batch, start.flatten(0, 2)).view_as(start), optimum)
        weights = torch.tensor([w for _, w in STENCIL], dtype=value.dtype) / (60 * STEPS[name])
        found[name] = torch.einsum("s,snbp->bpn", weights, six)
    return found
