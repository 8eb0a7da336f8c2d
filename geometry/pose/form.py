"""The algebraic error of poses, a quadratic form in the entries of R, and its minima on SO(3).

With b_i the unit ray of observation i and V_i = I - b_i b_i^T, the object-space error sum_i w_i^2 |V_i (R X_i + t)|^2
(Lu, Hager and Mjolsness 2000, TPAMI 22(6), eq. 17) is quadratic in t, which is eliminated, and then quadratic in the
nine entries of R: r^T Omega r with one 9 x 9 matrix per problem, whatever N (the form of SQPnP, Terzakis and Lourakis,
ECCV 2020, eq. 8). Minimising it on SO(3) costs nothing per point, so it is done from many rotations at once.

The rays of a rig begin in the centres c_i of its sensors: |V_i (R X_i + t - s c_i)|^2 has one number more, the scale s,
which is 1 or, where it is unknown, eliminated as well (Schweighofer and Pinz, BMVC 2008; Kneip, Li and Seo, UPnP, ECCV
2014).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.compiled.constants import CANDIDATES, DISTINCT
from geometry.pose.problem import turned
from geometry.se3 import cube_rotations

__all__ = ["Sights", "algebraic_minima"]

_DESCENT_STEPS = 8


class Sights(NamedTuple):
    """Unit rays (B,N,3) that see points (B,N,3), of weights w2 (B,N); where they begin (B,N,3), in the origin if None.

    Points and centres are about their weighted middle and of a size of about 1.
    """

    rays: Tensor
    X: Tensor
    w2: Tensor
    centres: Tensor | None = None


def algebraic_minima(sights: Sights, scale: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest distinct minima of the object-space error: R (B,C,3,3), t (B,C,3), and whether there is one (B,C).

    Those behind the camera are taken where there is none ahead. Of a rig, t (B,C,4) ends with the scale; scale: whether
    that is unknown.
    """
    rays, X, w2, centres = sights
    omega, T = quadratic_form(sights)
    if centres is not None:
        omega, T = _without_scale(omega, T) if scale else (omega, nn.functional.pad(T, (0, 0, 0, 1)))
        if not scale:
            T[:, 3, 9] = 1
    R = cube_rotations(X.dtype, X.device).expand(len(X), -1, 3, 3)
    R, value = descend(omega, R, _DESCENT_STEPS)
    t = _numbers(R, omega) @ T.mT
    # mean of b . (R X + t): negative for the mirror images behind the camera
    weighted = w2[..., None] * rays
    depth = (R * (weighted.mT @ X)[:, None]).sum((-2, -1)) + (t[..., :3] * weighted.sum(1)[:, None]).sum(-1)
    ahead = depth > 0
    if centres is not None:
        ahead = depth > t[..., 3] * (weighted * centres).sum((-2, -1))[:, None]
    value = torch.where(ahead, value, value + 2)
    value, order = value.sort(-1)
    r = R.flatten(-2).gather(1, order[..., None].expand(-1, -1, 9))
    t = t.gather(1, order[..., None].expand_as(t))
    # a minimum that lies next to a lower one is that one
    again = ((r @ r.mT > DISTINCT).tril(-1)).any(-1)
    value, chosen = torch.where(again, torch.inf, value).topk(CANDIDATES, -1, largest=False)
    found, chosen = value < 1.5, chosen[..., None]
    found[:, 0] = True
    r, t = (a.gather(1, chosen.expand(-1, -1, a.shape[-1])) for a in (r, t))
    return r.unflatten(-1, (3, 3)), t, found


def quadratic_form(sights: Sights) -> tuple[Tensor, Tensor]:
    """Omega (B,9,9) over r = (first, second, third column of R), and T (B,3,9) with t = T r; zero if not finite.

    Of a rig the scale comes behind r: (B,10,10) and (B,3,10).
    """
    rays, X, w2, centres = sights
    eye = torch.eye(3, dtype=X.dtype, device=X.device)
    V = (w2[..., None, None] * (eye - rays[..., :, None] * rays[..., None, :])).flatten(-2)
    # sums over points of V, V X_k and V X_k X_l, with R X_i = (X_i^T (x) I) r
    moments = torch.cat([X, (X[..., :, None] * X[..., None, :]).flatten(-2)], -1)
    sums = V.mT @ moments  # (B, ij, 3 + 9)
    VA = sums[..., :3].unflatten(1, (3, 3)).transpose(-2, -1).flatten(-2)
    AVA = sums[..., 3:].unflatten(1, (3, 3)).unflatten(-1, (3, 3)).permute(0, 3, 1, 4, 2).flatten(1, 2).flatten(2)
    if centres is not None:
        back = -(V.unflatten(-1, (3, 3)) @ centres[..., None])[..., 0]
        with_scale, own = (X.mT @ back).flatten(1)[..., None], -(back * centres).sum((1, 2))[:, None, None]
        VA = torch.cat([VA, back.sum(1)[..., None]], -1)
        AVA = torch.cat([torch.cat([AVA, with_scale], -1), torch.cat([with_scale.mT, own], -1)], -2)
    # Pixels that all but coincide leave the depth free to rounding; solve_ex never raises for one bad sample.
    ridge = 4 * torch.finfo(X.dtype).eps * w2.sum(-1).clamp_min(torch.finfo(X.dtype).tiny)[:, None, None] * eye
    T = -torch.linalg.solve_ex(V.sum(1).unflatten(-1, (3, 3)) + ridge, VA)[0]
    omega = AVA + VA.mT @ T
    finite = torch.isfinite(omega.sum((-2, -1)) + T.sum((-2, -1)))[:, None, None]
    return torch.where(finite, omega, 0.0), torch.where(finite, T, 0.0)


def _without_scale(omega: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """The form (B,9,9) with the scale that is best for every R, and T (B,4,9) with (t, s) = T r.

    Sensors in one place tell no scale: it is 0 then, and the descent that follows calls it singular.
    """
    own, cross = omega[:, 9:, 9:], omega[:, 9:, :9]
    known = own > torch.finfo(own.dtype).eps * omega.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    s = torch.where(known, -cross / torch.where(known, own, 1.0), 0.0)  # (B,1,9)
    return omega[:, :9, :9] + cross.mT @ s, torch.cat([T[..., :9] + T[..., 9:] @ s, s], -2)


def _numbers(R: Tensor, omega: Tensor) -> Tensor:
    """What the form is of (…,9|10): the columns of R, and 1 for a scale that is known."""
    r = R.mT.flatten(-2)
    return nn.functional.pad(r, (0, omega.shape[-1] - 9), value=1.0)


def descend(omega: Tensor, R: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on r^T Omega r over SO(3). omega (B,9|10,9|10), R (B,S,3,3) -> R, value (B,S)."""
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    r = _numbers(R, omega)
    y = r @ omega
    value = (r * y).sum(-1)
    damping = torch.full_like(value, 0.1)
    inner = omega[:, None, :9, :9]
    for _ in range(steps):
        # d r_k = omega x r_k for each column: G (B,S,9,3)
        G = se3.hat(R.mT).flatten(-3, -2)
        gradient = (y[..., None, :9] @ G).squeeze(-2)
        H = G.mT @ (inner @ G)
        scale = H.diagonal(dim1=-2, dim2=-1).sum(-1) / 3 + torch.finfo(R.dtype).tiny
        trial = turned(R, _solve3(H + (damping * scale)[..., None, None] * eye, gradient))
        r = _numbers(trial, omega)
        new_y = r @ omega
        new_value = (r * new_y).sum(-1)
        accept = new_value < value
        R = torch.where(accept[..., None, None], trial, R)
        y = torch.where(accept[..., None], new_y, y)
        value = torch.where(accept, new_value, value)
        damping = torch.where(accept, 0.1 * damping, 8.0 * damping).clamp(1e-9, 1e9)
    return R, value


def _solve3(A: Tensor, b: Tensor) -> Tensor:
    """Solve symmetric positive definite 3 x 3 systems by Cramer's rule: element-wise, hence fast in large batches."""
    c0, c1, c2 = A.unbind(-1)
    n = torch.linalg.cross(c1, c2)
    det = (c0 * n).sum(-1, keepdim=True)
    rows = torch.stack([n, torch.linalg.cross(c2, c0), torch.linalg.cross(c0, c1)], -2)
    return (rows @ b[..., None]).squeeze(-1) / det
