"""The double sphere camera model (Usenko, Demmel and Cremers 2018, 3DV): xi in -1 … 1, alpha in 0 … 1.

A point goes to a sphere about the camera, is seen from xi before its centre, goes to a sphere about there, and is seen
from alpha / (1 - alpha) before that: the unified model of z + xi |p| instead of z. xi = 0 is the unified model.
What it sees is what that sees of the shifted point. The paper's bound on z itself is less exact: with xi < 0
and a small alpha it admits rays that have no image.
"""

import torch
from torch import Tensor

from geometry.lenses.quotients import quotient_lens, unified, unified_depth, unified_sees

__all__ = ["DOUBLE_SPHERE"]


def _divisor(q: Tensor, z: Tensor, c: Tensor, order: int) -> tuple[Tensor, ...]:
    xi, alpha = c[..., None, :].unbind(-1)
    length, *of_length = unified(q, z, 1.0, 1.0, order)  # |p|
    D, *of_D = unified(q, z + xi * length, alpha, 1.0, order)
    if order == 0:
        return (D,)
    # chain rule through the shift of z
    (D_q, D_z), (l_q, l_z) = of_D[:2], of_length[:2]
    s_q, s_z = xi * l_q, 1 + xi * l_z
    first = D, D_q + D_z * s_q, D_z * s_z
    if order == 1:
        return first
    (D_qq, D_qz, D_zz), bent = of_D[2:], [xi * D_z * l for l in of_length[2:]]
    D_qq = D_qq + s_q * (2 * D_qz + s_q * D_zz)
    return *first, D_qq + bent[0], s_z * (D_qz + s_q * D_zz) + bent[1], s_z * s_z * D_zz + bent[2]


def _sees(p: Tensor, c: Tensor) -> Tensor:
    xi, alpha = c[..., None, :].unbind(-1)
    q, z, length = p[..., :2].square().sum(-1), p[..., 2], torch.linalg.vector_norm(p, dim=-1)
    # seen from xi before the centre, rays turn outwards with the angle from the axis as long as the last is positive
    return unified_sees(q, z + xi * length, alpha, 1.0) & (length + xi * z > torch.finfo(z.dtype).eps * length)


def _ray(image: Tensor, c: Tensor) -> Tensor:
    xi, alpha = c[..., None, :].unbind(-1)
    r2 = image.square().sum(-1)
    z = unified_depth(r2, alpha, 1.0)
    # how far along (u, v, z), from xi before the centre, the first sphere is met
    far = (xi * z + torch.addcmul(z * z, 1 - xi * xi, r2).clamp_min(0).sqrt()) / torch.addcmul(r2, z, z)
    return torch.cat([far[..., None] * image, (far * z - xi)[..., None]], -1)


# as wide as the stereographic lens, which shows half a turn in four focal lengths
DOUBLE_SPHERE = quotient_lens(_divisor, _sees, _ray, names=("xi", "alpha"), powers=(0, 0), start=(0.25, 0.0, 0.5))
