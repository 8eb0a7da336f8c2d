"""The published formula as the gradient of a pose: what an experiment learns by that asks for it."""

import torch
from torch import Tensor

from experiments.gradients.derivatives import published
from geometry import se3
from geometry.camera import intrinsics_from_matrix

__all__ = ["with_published_gradient"]


def with_published_gradient(pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor) -> Tensor:
    """Poses (B,4,4) with the gradient of `derivatives.published` in points2d (B,N,2), points3d ((B,)N,3), K ((B,)3,3).

    The poses stay as they are; what gradient they brought along is dropped. Computed in float64, as `pnp` is; where the
    formula has no derivative, the gradient is zero.
    """
    B = len(pose)
    pose, inputs = pose.detach(), {
        "points2d": points2d.expand(B, -1, 2).flatten(1),
        "points3d": points3d.expand(B, -1, 3).flatten(1),
        "K": intrinsics_from_matrix(K).expand(B, 4),
    }  # fmt: skip
    wanted = tuple(name for name, value in inputs.items() if value.requires_grad)
    if not wanted or not torch.is_grad_enabled():
        return pose
    still = {name: value.detach().double() for name, value in inputs.items()}
    with torch.no_grad():
        jacobians = published(still, pose.double(), wanted)
    told = torch.stack([jacobians[name].flatten(1).isfinite().all(1) for name in wanted]).all(0)
    # a step of nothing, with a gradient
    step = sum(
        (J.where(told[:, None, None], 0.0).to(pose) @ (inputs[name] - inputs[name].detach())[..., None]).squeeze(-1)
        for name, J in jacobians.items()
    )
    assert isinstance(step, Tensor)
    return se3.retract(pose, step.where(told[:, None], 0.0))
