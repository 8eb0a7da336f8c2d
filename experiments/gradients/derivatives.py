"""Derivatives of the pose that minimises the reprojection error, by finite differences: the measure of every gradient.

And by the published formula, which is another thing.

Inputs are flat, (B,n) each: points2d, points3d, K (fx, fy, cx, cy), weights, and distortion if there is any.
"""

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from geometry import pnp, project, se3
from geometry.camera import matrix_from_intrinsics
from geometry.optim import Gradient

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


def published(
    inputs: dict[str, Tensor], optimum: Tensor, names: tuple[str, ...] = ("points2d", "points3d", "K")
) -> dict[str, Tensor]:
    """d (omega, t) / d input (B,6,n) by the formula of Chen et al.'s code (CVPR 2020), for inputs `names` it has.

    It differentiates the root of f_j = sum_i < c_ij, S_i (x_i - proj_i) >, c_ij = -2 d proj_i / d pose_j and S_i the
    depth of point i, although the solver minimises the error in pixels, without S_i. Not finite where f has no such
    derivative.
    """
    known = ("points2d", "points3d", "K")

    def f(y: Tensor, points2d: Tensor, points3d: Tensor, intrinsics: Tensor) -> Tensor:
        points2d, points3d = points2d.view(-1, 2), points3d.view(-1, 3)

        def pixels(y: Tensor) -> Tensor:
            return project(points3d, se3.from_rotvec_t(y), matrix_from_intrinsics(intrinsics))

        depth = se3.transform(se3.from_rotvec_t(y), points3d)[:, 2:]
        return torch.einsum("nkj,nk->j", -2 * jacfwd(pixels)(y), depth * (points2d - pixels(y)))

    def single(pose: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        y = se3.rotvec_t(pose)
        by_y, *by_inputs = jacfwd(f, argnums=(0, *(1 + known.index(name) for name in names)))(y, *inputs)
        # the pose was a rotation vector there: turn its derivative into that of (omega, t)
        chart = jacfwd(lambda y: tangent(se3.from_rotvec_t(y), pose))(y)
        return tuple(-chart @ torch.linalg.solve_ex(by_y, J).result for J in by_inputs)

    return dict(zip(names, vmap(single)(optimum, *(inputs[name] for name in known)), strict=True))
