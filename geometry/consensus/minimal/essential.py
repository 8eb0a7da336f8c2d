"""Essential matrices: the relative pose of two calibrated views, b^T E a = 0 for the rays a and b of a point."""

from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from geometry import se3
from geometry.optim import Problem

__all__ = [
    "angles_to_meet",
    "before_both",
    "essential_problem",
    "essential_ray_problem",
    "five_point",
    "pose_of_essential",
]

# Exponents of x, y, z: the monomials of degree three, then those of less.
_CUBIC = ((3, 0, 0), (2, 1, 0), (2, 0, 1), (1, 2, 0), (1, 1, 1), (1, 0, 2), (0, 3, 0), (0, 2, 1), (0, 1, 2), (0, 0, 3))
_LOWER = ((2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 2, 0), (0, 1, 1), (0, 0, 2), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0))


def five_point(rays_a: Tensor, rays_b: Tensor) -> Tensor:
    """All essential matrices of five pairs of rays.

    rays_a, rays_b (…,5,3): directions of any length in the two cameras -> E (…,10,3,3) with b^T E a = 0 and singular
    values 1, 1, 0, the sign being free; NaN where there are fewer, and ten of NaN where the pairs do not determine
    finitely many. Raises ValueError for other shapes. Differentiable in both arguments where roots are distinct.

    The five equations leave E = x E_1 + y E_2 + z E_3 + E_4; 2 E E^T E = tr(E E^T) E and det E = 0 are ten cubics in
    (x, y, z) (Nistér, TPAMI 2004). They reduce every monomial of degree three to those of less, and multiplication
    by x to a matrix whose eigenvectors are the roots (Stewénius, Engels and Nistér, ISPRS 2006). Gauss-Newton on E
    itself, with all equations at once, makes them exact.
    """
    for name, value in (("rays_a", rays_a), ("rays_b", rays_b)):
        if value.shape[-2:] != (5, 3):
            raise ValueError(f"{name} must have shape (…,5,3), got {tuple(value.shape)}")
    rays_a, rays_b = torch.broadcast_tensors(rays_a, rays_b)
    with torch.no_grad():
        M = _equations(rays_a, rays_b)
        finite = torch.isfinite(M).all(-1).all(-1)[..., None, None]
        M = torch.where(finite, M, torch.eye(5, 9, dtype=M.dtype, device=M.device))
        e = _roots(M)
        for _ in range(3):
            e = e - (_step(e, M)[0] @ _errors(e, M)[..., None]).squeeze(-1)
        e = torch.where(torch.isfinite(e), e, 0)
        step, pivot = _step(e, M)
        # without a pivot the root is not isolated
        least = torch.finfo(e.dtype).eps ** 0.5
        good = (finite[..., 0] & (pivot > least) & (_errors(e, M).abs().amax(-1) < least))[..., None]
    # What has no root is replaced, lest its derivatives be NaN; a root is then a function of the data by one step more.
    some = good.any(-2, keepdim=True)
    M = _equations(*(torch.where(some, r, 1.0) for r in (rays_a, rays_b)))
    e = e - (torch.where(good[..., None], step, 0) @ _errors(e, M)[..., None]).squeeze(-1)
    return torch.where(good & torch.isfinite(e).all(-1, keepdim=True), e, torch.nan).unflatten(-1, (3, 3))


def _equations(rays_a: Tensor, rays_b: Tensor) -> Tensor:
    """The matrix (…,5,9) of b^T E a = 0."""
    a, b = rays_a / rays_a.norm(dim=-1, keepdim=True), rays_b / rays_b.norm(dim=-1, keepdim=True)
    return (b[..., :, None] * a[..., None, :]).flatten(-2)


@lru_cache(maxsize=8)
def _cubics(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The ten cubic forms (10,9,9,9), symmetric, that vanish on the nine entries of an essential matrix."""
    E = torch.eye(9, dtype=dtype, device=device).unflatten(0, (3, 3))
    trace = 2 * torch.einsum("ika,lkb,ljc->ijabc", E, E, E) - torch.einsum("kla,klb,ijc->ijabc", E, E, E)
    signs = torch.zeros(3, 3, 3, dtype=dtype, device=device)
    for i, j, k in permutations(range(3)):
        signs[i, j, k] = (i - j) * (j - k) * (k - i) / 2
    forms = torch.cat([trace.flatten(0, 1), torch.einsum("ijk,ia,jb,kc->abc", signs, E[0], E[1], E[2])[None]])
    return sum((forms.permute(0, *p) for p in permutations((1, 2, 3))), torch.zeros_like(forms)) / 6


@lru_cache(maxsize=8)
def _monomials(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sums (64,20) the 4 x 4 x 4 coefficients of a cubic form in (x, y, z, 1) to those of its monomials."""
    place = {exponents: i for i, exponents in enumerate((*_CUBIC, *_LOWER))}
    out = torch.zeros(4, 4, 4, 20, dtype=dtype, device=device)
    for abc in torch.cartesian_prod(*[torch.arange(4)] * 3).tolist():
        out[(*abc, place[tuple(abc.count(v) for v in range(3))])] = 1
    return out.flatten(0, 2)


def _roots(M: Tensor) -> Tensor:
    """Essential matrices (…,10,9) of length sqrt 2 that satisfy M (…,5,9), roughly; NaN for those that are not real."""
    dtype, device = M.dtype, M.device
    basis = torch.linalg.qr(M.mT, mode="complete").Q[..., 5:]
    forms = torch.einsum("qijk,...ia,...jb,...kc->...qabc", _cubics(dtype, device), basis, basis, basis)
    coefficients = forms.flatten(-3) @ _monomials(dtype, device)
    reduced, _ = torch.linalg.solve_ex(coefficients[..., :10], -coefficients[..., 10:])
    # rows of multiplication by x: what becomes of _LOWER
    times_x = [tuple(v + (i == 0) for i, v in enumerate(m)) for m in _LOWER]
    eye = torch.eye(10, dtype=dtype, device=device).expand_as(reduced)
    rows = [reduced[..., _CUBIC.index(m), :] if m in _CUBIC else eye[..., _LOWER.index(m), :] for m in times_x]
    action = torch.stack(rows, -2)
    finite = torch.isfinite(action).all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eig(torch.where(finite, action, eye))
    vectors = vectors.mT
    point = vectors[..., 6:] / vectors[..., 9:]
    real = values.imag.abs() <= torch.finfo(dtype).eps ** 0.4 * (1 + values.abs())
    e = point.real @ basis.mT
    e = 2**0.5 * e / e.norm(dim=-1, keepdim=True)
    return torch.where(real[..., None] & finite, e, torch.nan)


def _errors(e: Tensor, M: Tensor) -> Tensor:
    """What must vanish (…,16): the five equations, the ten cubics, and the deviation of the length from sqrt 2."""
    E = e.unflatten(-1, (3, 3))
    size = e.square().sum(-1, keepdim=True)
    cubic = (2 * E @ E.mT @ E).flatten(-2) - size * e
    return torch.cat([e @ M.mT, cubic, torch.linalg.det(E)[..., None], size - 2], -1)


def _jacobian(e: Tensor, M: Tensor) -> Tensor:
    """Derivative (…,10,16,9) of `_errors`."""
    E, eye = e.unflatten(-1, (3, 3)), torch.eye(3, dtype=e.dtype, device=e.device)
    size = e.square().sum(-1)[..., None, None]
    left, right = 2 * E @ E.mT - size * eye, 2 * E.mT @ E
    # entry (i, j) of the cubics by entry (a, b) of E
    bent = torch.einsum("...ia,jb->...ijab", left, eye) + torch.einsum("ia,...bj->...ijab", eye, right)
    bent = bent + 2 * torch.einsum("...ib,...aj->...ijab", E, E) - 2 * torch.einsum("...ij,...ab->...ijab", E, E)
    minors = torch.linalg.cross(E.roll(-1, -2), E.roll(-2, -2)).flatten(-2)
    rows = (
        M.unsqueeze(-3).expand(*e.shape[:-1], 5, 9),
        bent.flatten(-2).flatten(-3, -2),
        minors[..., None, :],
        2 * e[..., None, :],
    )
    return torch.cat(rows, -2)


def _step(e: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix (…,9,16) that takes the errors to the step of Gauss and Newton, and its least pivot (…)."""
    Q, R = torch.linalg.qr(_jacobian(e, M))
    return torch.linalg.solve_triangular(R, Q.mT, upper=True), R.diagonal(dim1=-2, dim2=-1).abs().amin(-1)


def _sampson(E: Tensor, points_a: Tensor, points_b: Tensor) -> Tensor:
    a, b = (torch.nn.functional.pad(p, (0, 1), value=1.0) for p in (points_a, points_b))
    line_b, line_a = a @ E.mT, b @ E
    size = line_b[:, :2].square().sum(-1) + line_a[:, :2].square().sum(-1)
    return (b * line_b).sum(-1) / size.sqrt()


def angles_to_meet(E: Tensor, rays_a: Tensor, rays_b: Tensor) -> Tensor:
    """(N,): angles in rad by which two rays, together, miss the nearest ones that meet, to first order.

    E (3,3); rays_a, rays_b (N,3) of any length but zero, behind the cameras as well. Sampson's error on the sphere.
    """
    a, b = (torch.nn.functional.normalize(rays, dim=-1) for rays in (rays_a, rays_b))
    line_b, line_a = a @ E.mT, b @ E
    off = (b * line_b).sum(-1)
    # a ray moves across itself alone, and along themselves both lines have the part `off`
    size = (line_b.square() + line_a.square()).sum(-1) - 2 * off.square()
    return off * size.rsqrt()


def pose_of_essential(E: Tensor) -> Tensor:
    """One of the four poses (…,4,4) of E (…,3,3), p_b = R p_a + t with |t| = 1; `before_both` chooses."""
    U, _, Vh = torch.linalg.svd(E)
    R = U @ se3.exp(E.new_tensor([0, 0, torch.pi / 2])) @ Vh
    return se3.make(R * torch.linalg.det(R).sign()[..., None, None], U[..., 2])


def before_both(pose: Tensor, rays_a: Tensor, rays_b: Tensor, counts: Tensor) -> Tensor:
    """Of the four poses (B,4,4) of the same errors the one with most points, of those that count, before both cameras.

    rays_a, rays_b (B,N,3), counts (B,N) bool. The four differ by the sign of t and by half a turn about it (Hartley and
    Zisserman, section 9.6.3).
    """
    R, t = pose[:, :3, :3], pose[:, :3, 3]
    twisted = 2 * t[:, :, None] * (t[:, None, :] @ R) - R
    poses = torch.stack([se3.make(turn, sign * t) for turn in (R, twisted) for sign in (1, -1)], 1)
    with torch.no_grad():
        # the depths of the nearest points of two rays, z_b b = z_a R a + t, times what is positive
        a, b = rays_a[:, None] @ poses[..., :3, :3].mT, rays_b[:, None]
        t = poses[..., None, :3, 3]
        n = torch.linalg.cross(a, b)
        ahead = ((torch.linalg.cross(b, t) * n).sum(-1) > 0) & ((torch.linalg.cross(a, t) * n).sum(-1) > 0)
        best = (ahead & counts[:, None]).sum(-1).argmax(-1)
    return poses[torch.arange(len(best), device=best.device), best]


def _retract(E: Tensor, step: Tensor) -> Tensor:
    """exp(w) E exp(v)^T with v across the right epipole: a turn about that one is a turn about the left one."""
    crossed = torch.linalg.cross(E, E.roll(1, 0))
    longest = crossed.square().sum(-1).argmax()
    epipole = crossed.gather(0, longest.expand(1, 3)).squeeze(0)
    axis = torch.zeros_like(epipole).scatter(0, epipole.abs().argmin()[None], 1.0)
    first = torch.linalg.cross(epipole, axis)
    first = first * first.square().sum().rsqrt()
    second = torch.linalg.cross(epipole * epipole.square().sum().rsqrt(), first)
    return se3.exp(step[:3]) @ E @ se3.exp(step[3] * first + step[4] * second).mT


essential_problem = Problem(_sampson, dof=5, retract=_retract)
"""x = E (3,3), data points_a (N,2), points_b (N,2) in units of the focal length: Sampson's errors (N,)."""

essential_ray_problem = Problem(angles_to_meet, dof=5, retract=_retract)
"""The same of data rays_a (N,3), rays_b (N,3): angles (N,) in radians."""
