"""The division model of one parameter (Fitzgibbon 2001, CVPR): the ray of an image (u, v) is (u, v, 1 + lambda r^2).

It goes from image to ray in closed form, and back by the root of a quadratic equation: it is the enhanced unified model
of alpha = 1/2 and beta = -4 lambda (`geometry.lenses.eucm`). With lambda < 0, a barrel, it sees all around.
"""

import torch
from torch import Tensor

from geometry.lenses.quotients import quotient_lens, unified, unified_sees

__all__ = ["DIVISION"]


def _divisor(q: Tensor, z: Tensor, c: Tensor, order: int) -> tuple[Tensor, ...]:
    return unified(q, z, 0.5, -4 * c, order)


def _sees(p: Tensor, c: Tensor) -> Tensor:
    return unified_sees(p[..., :2].square().sum(-1), p[..., 2], 0.5, -4 * c)


def _ray(image: Tensor, c: Tensor) -> Tensor:
    return torch.cat([image, 1 + c[..., None, :] * image.square().sum(-1, keepdim=True)], -1)


# the stereographic lens, which shows half a turn in four focal lengths
DIVISION = quotient_lens(_divisor, _sees, _ray, names=("lambda",), powers=(2,), start=(0.25, -0.25))
