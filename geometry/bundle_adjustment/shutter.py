"""Images whose rows are read one after the other, while the camera moves (rolling shutter).

The camera, or rig, of a pose R, t has a velocity (omega, v) per second in its own frame: tau seconds after the instant
of its pose it sees the point X at p = exp(tau omega) (R X + t) + tau v. So its motion does not depend on where the
world's origin is. tau is the time of an observation, times a readout factor that all have in common.

Source: the constant velocities of Hedborg, Forssen, Felsberg, Ringaby 2012, "Rolling shutter bundle adjustment", which
interpolates between the poses of rows instead.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry._forward import directional
from geometry.bundle_adjustment.chain import Motion

__all__ = ["Shutter", "at_instants", "motion"]


class Shutter(NamedTuple):
    """What is sought of the motion of cameras while they expose: six more columns for velocities, one for readout."""

    velocities: bool
    readout: bool


def at_instants(poses: Tensor, velocity: Tensor, tau: Tensor) -> Tensor:
    """Poses (M,4,4) some seconds tau (M,) later; velocity (M,6)."""
    E = se3.exp(tau[:, None] * velocity[:, :3])
    t = (E @ poses[:, :3, 3:]).squeeze(-1) + tau[:, None] * velocity[:, 3:]
    return se3.make(E @ poses[:, :3, :3], t)


def motion(poses: Tensor, velocity: Tensor, times: Tensor, readout: Tensor, sought: Shutter) -> Motion:
    """What it does to the poses (M,4,4) of observations; times (M,), readout (1,), velocity (M,6).

    The unknowns are d omega, d v and d readout. Of x = tau omega, which they change by dx, y = A dx + B(dx, dx) / 2,
    with A the left Jacobian of exp at x and B its derivative.
    """
    w, v = velocity.split(3, 1)
    tau, time = (readout * times)[:, None], times[:, None]
    x, E = tau * w, se3.exp(tau * w)
    A, nothing = se3.left_jacobian(x), torch.zeros_like(E)
    eye = torch.eye(3, dtype=E.dtype, device=E.device)
    dx = torch.cat([tau[..., None] * eye, nothing, (time * w)[..., None]], -1)
    shifts = torch.cat([nothing, tau[..., None] * eye, (time * v)[..., None]], -1)
    columns = torch.tensor([*range(6 * sought.velocities), *([6] * sought.readout)], dtype=torch.long, device=E.device)

    def bend(a: Tensor, b: Tensor) -> Tensor:
        """Second derivatives (M,c,c)."""
        slopes = torch.stack([directional(se3.left_jacobian, x, axis)[1] for axis in eye], 1)
        B = torch.einsum("mk,mikj->mij", a, slopes)
        found = dx.mT @ (0.5 * (B + B.mT)) @ dx
        # d readout times d omega and d v
        mixed = time * torch.cat([(A.mT @ a[..., None]).squeeze(-1), b], 1)
        found[:, 6, :6] += mixed
        found[:, :6, 6] += mixed
        return found[:, columns[:, None], columns]

    arm = (E @ poses[:, :3, 3:]).squeeze(-1)
    return Motion(E, arm, (A @ dx)[..., columns], shifts[..., columns], bend)
