"""Cameras that are mounted together: views of one frame share the pose of the rig, views of one sensor its mounting.

A view of frame f and sensor s sees a point X at S (R X + t) + t_s, with R, t the world_to_rig of f and S, t_s the
sensor_from_rig of s: with the pose of that product it is a view like any other.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry.bundle_adjustment.chain import Motion

__all__ = ["Rig", "mounting"]


class Rig(NamedTuple):
    """Which frame and which sensor each view is of (V,); fixed (S,) bool: mountings that do not move; moving: whether
    any other is there, and a view has six more columns, behind its intrinsics."""

    frame: Tensor
    sensor: Tensor
    fixed: Tensor
    moving: bool


def mounting(world_to_rig: Tensor, sensor_from_rig: Tensor, moving: bool) -> Motion:
    """What n mountings (n,4,4) do to the poses (n,4,4) of their rigs; with a step of their own if they move."""
    S, eye = sensor_from_rig[:, :3, :3], torch.eye(6, dtype=sensor_from_rig.dtype, device=sensor_from_rig.device)
    own = eye[:, : 6 * moving].expand(len(S), 6, 6 * moving)
    return Motion(S, (S @ world_to_rig[:, :3, 3:]).squeeze(-1), own[:, :3], own[:, 3:])
