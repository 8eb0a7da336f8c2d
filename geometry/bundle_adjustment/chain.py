"""Derivatives by a pose R, t pulled back to what it is made of: an inner pose, and a rigid motion on its left.

The motion turns by E and shifts by z. Its own unknowns s turn it on by y = turns s + ... and shift it by shifts s + ...
Steps (omega, v) of the inner pose R_0, t_0 come before it, and with k = E t_0 the outer pose takes the step

    y + E omega + y x E omega / 2 + ...
    z' - z + E v + y x (k + E v) + y x (y x k) / 2 + ...

that is, points and lenses know nothing of it, and unknowns join the columns of each camera.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.operator import Blocks
from geometry.bundle_adjustment.products import project_blocks

__all__ = ["Motion", "pull_back", "turned"]


class Motion(NamedTuple):
    """Of n cameras: E (n,3,3), k (n,3), and how c unknowns turn (n,3,c) and shift (n,3,c).

    bend: of covectors (n,3) of y and of the shift, the second derivatives (n,c,c) of y and shift by the unknowns along
    them; None where there are none.
    """

    rotation: Tensor
    arm: Tensor
    turns: Tensor
    shifts: Tensor
    bend: Callable[[Tensor, Tensor], Tensor] | None = None


def turned(poses: Tensor, rotation: Tensor) -> Motion:
    """Poses (n,4,4) turned by known rotations (n,3,3)."""
    nothing = rotation.new_zeros(len(rotation), 3, 0)
    return Motion(rotation, (rotation @ poses[:, :3, 3:]).squeeze(-1), nothing, nothing)


def pull_back(blocks: Blocks, motion: Motion, layout: Layout, exact: bool) -> Blocks:
    """What observations add to the normal equations by inner poses, and c more columns, from those by outer poses."""
    E, k, turns, shifts, bend = motion
    n, p = blocks.views.shape
    chain = E.new_zeros(n, p, p + turns.shape[2])
    chain[:, :3, :3] = chain[:, 3:6, 3:6] = E
    chain[:, 6:].diagonal(6, 1, 2).fill_(1.0)
    chain[:, :3, p:], chain[:, 3:6, p:] = turns, shifts - se3.hat(k) @ turns
    half = 0.5 * chain.mT @ blocks.U @ chain
    if exact and turns.shape[2]:
        a, b = blocks.views[:, :3], blocks.views[:, 3:6]
        level = torch.eye(3, dtype=E.dtype, device=E.device) * (b * k).sum(-1)[:, None, None]
        half[:, p:, :3] -= 0.5 * turns.mT @ se3.hat(a) @ E
        half[:, p:, 3:6] -= turns.mT @ se3.hat(b) @ E
        half[:, p:, p:] += 0.5 * turns.mT @ (b[:, :, None] * k[:, None] - level) @ turns
        if bend is not None:
            half[:, p:, p:] += 0.5 * bend(a + torch.linalg.cross(k, b), b)
    views = (chain.mT @ blocks.views[..., None]).squeeze(-1)
    return blocks._replace(views=views, U=half + half.mT, W=project_blocks(blocks.W, chain, layout))
