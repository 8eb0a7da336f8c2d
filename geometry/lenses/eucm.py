"""The enhanced unified camera model (Khomutenko, Garcia and Martinet 2016, RA-L 1(1)): alpha in 0 … 1, beta > 0.

The image of a point is (x, y) / (alpha d + (1 - alpha) z), d = sqrt(beta (x^2 + y^2) + z^2). alpha = 0 is the pinhole,
beta = 1 the unified model of one sphere; from alpha = 1/2 on the lens sees more than a half sphere.
"""

import torch
from torch import Tensor

from geometry.lenses.quotients import quotient_lens, unified, unified_depth, unified_sees

__all__ = ["EUCM"]


def _divisor(q: Tensor, z: Tensor, c: Tensor, order: int) -> tuple[Tensor, ...]:
    alpha, beta = c[..., None, :].unbind(-1)
    return unified(q, z, alpha, beta, order)


def _sees(p: Tensor, c: Tensor) -> Tensor:
    alpha, beta = c[..., None, :].unbind(-1)
    return unified_sees(p[..., :2].square().sum(-1), p[..., 2], alpha, beta)


def _ray(image: Tensor, c: Tensor) -> Tensor:
    alpha, beta = c[..., None, :].unbind(-1)
    return torch.cat([image, unified_depth(image.square().sum(-1), alpha, beta)[..., None]], -1)


# as wide as the stereographic lens, which shows half a turn in four focal lengths
EUCM = quotient_lens(_divisor, _sees, _ray, names=("alpha", "beta"), powers=(0, 2), start=(0.25, 0.5, 1.0))
