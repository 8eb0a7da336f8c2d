"""Cameras that are mounted together: views of one frame share the pose of the rig, views of one sensor its mounting.

A view of frame f and sensor s sees a point X at p = S (R X + t) + t_s, with R, t the world_to_rig of f and S, t_s the
sensor_from_rig of s. With the pose of that product it is a view like any other. Steps of rig and mounting move it by

    omega = omega_s + S omega_f + omega_s x S omega_f / 2 + ...
    v     = v_s + S v_f + omega_s x (S t + S v_f) + omega_s x (omega_s x S t) / 2 + ...

so that the derivatives of single cameras are pulled back view by view; neither points nor lenses know of it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.operator import Blocks
from geometry.bundle_adjustment.products import project_blocks

__all__ = ["Rig", "pull_back", "view_poses"]


class Rig(NamedTuple):
    """Which frame and which sensor each view is of (V,); fixed (S,) bool: mountings that do not move; moving: whether
    any other is there, and a view has six more columns, behind its intrinsics."""

    frame: Tensor
    sensor: Tensor
    fixed: Tensor
    moving: bool


def view_poses(world_to_rig: Tensor, sensor_from_rig: Tensor, rig: Rig) -> Tensor:
    """world_to_camera (V,4,4) of all views; world_to_rig (F,4,4), sensor_from_rig (S,4,4)."""
    return sensor_from_rig[rig.sensor] @ world_to_rig[rig.frame]


def pull_back(
    blocks: Blocks, world_to_rig: Tensor, sensor_from_rig: Tensor, rig: Rig, layout: Layout, exact: bool
) -> Blocks:
    """What observations add to the normal equations of rigs, from that of single cameras with `view_poses`."""
    q, S = layout.rows.shape[1], sensor_from_rig[rig.sensor, :3, :3]
    arm = (S @ world_to_rig[rig.frame, :3, 3:]).squeeze(-1)
    chain = S.new_zeros(len(S), blocks.views.shape[1], q)
    chain[:, :3, :3] = chain[:, 3:6, 3:6] = S
    chain[:, 6:].diagonal(6, 1, 2).fill_(1.0)
    if rig.moving:
        chain[:, :6, q - 6 :] = torch.eye(6, dtype=S.dtype, device=S.device)
        chain[:, 3:6, q - 6 : q - 3] = -se3.hat(arm)
    half = 0.5 * chain.mT @ blocks.U @ chain
    if rig.moving and exact:
        turn, shift = blocks.views[:, :3], blocks.views[:, 3:6]
        level = torch.eye(3, dtype=S.dtype, device=S.device) * (shift * arm).sum(-1)[:, None, None]
        half[:, q - 6 : q - 3, :3] -= 0.5 * se3.hat(turn) @ S
        half[:, q - 6 : q - 3, 3:6] -= se3.hat(shift) @ S
        half[:, q - 6 : q - 3, q - 6 : q - 3] += 0.5 * (shift[:, :, None] * arm[:, None] - level)
    views = (chain.mT @ blocks.views[..., None]).squeeze(-1)
    return blocks._replace(views=views, U=half + half.mT, W=project_blocks(blocks.W, chain, layout))
