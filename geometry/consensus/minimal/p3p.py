"""P3P: the poses of a camera that sees three known points along three known rays."""

import torch
from torch import Tensor

from geometry import se3

__all__ = ["PAIRS", "aligned", "p3p"]

PAIRS = ((0, 1), (0, 2), (1, 2))
_POLISH = 5  # Newton steps: one is enough but near a double root


def p3p(rays: Tensor, points3d: Tensor) -> Tensor:
    """All poses that put three points on three rays, in front of the camera.

    rays (…,3,3): three directions in the camera frame, of any length; points3d (…,3,3) -> world_to_camera (…,4,4,4):
    four poses, NaN where there are fewer, and four of NaN for collinear or coincident points or rays. Raises ValueError
    for other shapes. Differentiable in both arguments where roots are distinct (by one Newton step from the root).

    With depths d_i along unit rays, c_ij their cosines and a_ij the squared distances of the points,

        d_i^2 + d_j^2 - 2 c_ij d_i d_j = a_ij :

    three quadrics, of which two combinations without constant are conics in the plane of (d_1 : d_2 : d_3). A real root
    of the cubic det(D_1 + g D_2) gives a pair of lines that meets either conic where they meet each other (Grunert
    1841; Finsterwalder 1903; Persson and Nordberg, "Lambda Twist", ECCV 2018; Ding et al., CVPR 2023). Here the root is
    the one that lies farthest from the other two, the lines come from the adjugate (Richter-Gebert, "Perspectives on
    Projective Geometry", 11.1), and all is homogeneous, so that no order of the points is worse than another.
    """
    for name, value in (("rays", rays), ("points3d", points3d)):
        if value.shape[-2:] != (3, 3):
            raise ValueError(f"{name} must have shape (…,3,3), got {tuple(value.shape)}")
    rays, points3d = torch.broadcast_tensors(rays, points3d)
    with torch.no_grad():
        _, a, c, _ = _triangle(rays, points3d)
        d = _depths(a, c)
        a, c = a.unsqueeze(-2), c.unsqueeze(-2)
        for _ in range(_POLISH):
            d = _newton(d, a, c)
        bound = torch.finfo(d.dtype).eps ** 0.5 * d.square().amax(-1).clamp_min(1)
        good = (d > 0).all(-1) & (_errors(d, a, c).abs().amax(-1) < bound)
    # What has no root is replaced, lest its derivatives be NaN; a root is then a function of the data by one step more.
    eye = torch.eye(3, dtype=rays.dtype, device=rays.device)
    some = good.any(-1)[..., None, None]
    rays, points3d = torch.where(some, rays, eye), torch.where(some, points3d, eye)
    rays, a, c, size = _triangle(rays, points3d)
    a, c = torch.where(good[..., None], a.unsqueeze(-2), 1.0), torch.where(good[..., None], c.unsqueeze(-2), 0.5)
    d = _newton(torch.where(good[..., None], d, 1.0), a, c)
    camera = (d * size[..., None, None])[..., None] * rays.unsqueeze(-3)
    pose = aligned(camera, points3d.unsqueeze(-3))
    good = good & torch.isfinite(pose).all(-1).all(-1)
    return torch.where(good[..., None, None], pose, torch.nan)


def aligned(camera: Tensor, world: Tensor) -> Tensor:
    """The pose (…,4,4) that takes a triangle of the world (…,3,3) to its like (…,3,3)."""
    R = _frame(camera) @ _frame(world).mT
    t = camera.mean(-2) - (R @ world.mean(-2)[..., None]).squeeze(-1)
    return se3.make(R, t)


def _triangle(rays: Tensor, points3d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rays, squared sides (…,3) of the triangle in units of its size, cosines (…,3) of the rays, size (…)."""
    rays = rays / rays.norm(dim=-1, keepdim=True)
    c = torch.stack([(rays[..., i, :] * rays[..., j, :]).sum(-1) for i, j in PAIRS], -1)
    a = torch.stack([(points3d[..., i, :] - points3d[..., j, :]).square().sum(-1) for i, j in PAIRS], -1)
    size = a.sum(-1)
    return rays, a / size[..., None], c, size.sqrt()


def _errors(d: Tensor, a: Tensor, c: Tensor) -> Tensor:
    """d_i^2 + d_j^2 - 2 c_ij d_i d_j - a_ij of the three pairs. (…,3)."""
    x, y, z = d.unbind(-1)
    cxy, cxz, cyz = c.unbind(-1)
    squares = (x * x + y * y - 2 * cxy * x * y, x * x + z * z - 2 * cxz * x * z, y * y + z * z - 2 * cyz * y * z)
    return torch.stack(squares, -1) - a


def _newton(d: Tensor, a: Tensor, c: Tensor) -> Tensor:
    """One Newton step on the three quadrics; the matrix is taken as constant, which leaves first derivatives exact."""
    x, y, z = d.detach().unbind(-1)
    cxy, cxz, cyz = c.detach().unbind(-1)
    # rows (xx, xy, 0), (yx, 0, yz), (0, zy, zz) of half the Jacobian
    xx, xy, yx, yz, zy, zz = x - cxy * y, y - cxy * x, x - cxz * z, z - cxz * x, y - cyz * z, z - cyz * y
    determinant = -(xx * yz * zy + xy * yx * zz)
    e, f, g = _errors(d, a, c).unbind(-1)
    dx = -yz * zy * e - xy * zz * f + xy * yz * g
    dy = -yx * zz * e + xx * zz * f - xx * yz * g
    dz = yx * zy * e - xx * zy * f - xy * yx * g
    return d - 0.5 * torch.stack([dx, dy, dz], -1) / determinant[..., None]


def _frame(triangle: Tensor) -> Tensor:
    """Orthonormal frame (…,3,3), in columns, of a triangle (…,3,3)."""
    first, second = triangle[..., 1, :] - triangle[..., 0, :], triangle[..., 2, :] - triangle[..., 0, :]
    x = first / first.norm(dim=-1, keepdim=True)
    # the normal of a flat triangle is known to few digits; what is orthogonal to x by construction is so to all
    y = torch.linalg.cross(torch.linalg.cross(first, second), x)
    y = y / y.norm(dim=-1, keepdim=True)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def _depths(a: Tensor, c: Tensor) -> Tensor:
    """Depths (…,4,3) of the points where the conics meet; NaN for those that are not real."""
    axy, axz, ayz = a.unbind(-1)
    cxy, cxz, cyz = c.unbind(-1)
    zero = torch.zeros_like(axy)
    # each symmetric matrix as xx, xy, xz, yy, yz, zz
    first = torch.stack([ayz, -ayz * cxy, zero, ayz - axy, axy * cyz, -axy], -1)
    second = torch.stack([ayz, zero, -ayz * cxz, -axz, axz * cyz, ayz - axz], -1)
    u, v = _singular_member(first, second)
    pair, other = u * first + v * second, u * second - v * first
    cofactors = _adjugate(pair)
    negated = -cofactors[..., (0, 3, 5)]
    largest, k = negated.max(-1, keepdim=True)
    root = torch.where(largest > 0, largest, torch.nan).sqrt()
    p = _matrix(cofactors).gather(-1, k[..., None].expand(*k.shape[:-1], 3, 1)).squeeze(-1) / root
    product = _matrix(pair) + se3.hat(p)  # of one line with the other
    squares = product.square()
    row, column = (squares.sum(dim).argmax(-1)[..., None, None] for dim in (-1, -2))
    one = product.gather(-2, row.expand(*row.shape[:-1], 3)).squeeze(-2)
    two = product.gather(-1, column.expand(*column.shape[:-2], 3, 1)).squeeze(-1)
    lines = torch.stack([one, two], -2)
    d = _meet(lines, _matrix(other).unsqueeze(-3)).flatten(-3, -2)
    # onto the sphere that the sum of the three equations is
    x, y, z = d.unbind(-1)
    quadric = 2 * (d.square().sum(-1) - cxy[..., None] * x * y - cxz[..., None] * x * z - cyz[..., None] * y * z)
    return d * (d.sum(-1).sign() / quadric.sqrt())[..., None]


def _adjugate(m: Tensor) -> Tensor:
    xx, xy, xz, yy, yz, zz = m.unbind(-1)
    entries = (
        yy * zz - yz * yz,
        xz * yz - xy * zz,
        xy * yz - xz * yy,
        xx * zz - xz * xz,
        xy * xz - xx * yz,
        xx * yy - xy * xy,
    )
    return torch.stack(entries, -1)


def _matrix(m: Tensor) -> Tensor:
    return m[..., (0, 1, 2, 1, 3, 4, 2, 4, 5)].unflatten(-1, (3, 3))


def _singular_member(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(u : v), of length one, with det(u first + v second) = 0: the root farthest from the others. (…,1) each."""
    twice = first.new_tensor([1.0, 2, 2, 1, 2, 1])
    adjugate, adjugate2 = _adjugate(first), _adjugate(second)
    c0, c1 = (adjugate * first * twice).sum(-1) / 3, (adjugate * second * twice).sum(-1)
    c2, c3 = (adjugate2 * first * twice).sum(-1), (adjugate2 * second * twice).sum(-1) / 3
    # a root of c3 g^3 + c2 g^2 + c1 g + c0, or of the reversed polynomial if that one's leading coefficient is larger
    swap = c0.abs() > c3.abs()
    c0, c1, c2, c3 = (torch.where(swap, p, q) for p, q in ((c3, c0), (c2, c1), (c1, c2), (c0, c3)))
    shift, s = c2 / (3 * c3), c1 / c3
    # y^3 + p y + q with g = y - shift: the root on the far side of the turning point, from an upper bound by Newton
    p, q = s - 3 * shift * shift, shift * (2 * shift * shift - s) + c0 / c3
    size = q.abs()
    y = (-4 / 3 * p).clamp_min(0).sqrt() + (size.log() / 3).exp()
    for _ in range(8):
        y = y - (y * (y * y + p) - size) / (3 * y * y + p).clamp_min(torch.finfo(y.dtype).tiny)
    g = torch.where(q > 0, -y, y) - shift
    length = (1 + g * g).sqrt()
    u, v = torch.where(swap, g, 1.0) / length, torch.where(swap, 1.0, g) / length
    return u[..., None], v[..., None]


def _meet(line: Tensor, conic: Tensor) -> Tensor:
    """The two points (…,2,3) of a line (…,3) on a conic (…,3,3); NaN where they are not real."""
    least = line.abs().argmin(-1, keepdim=True)
    axis = torch.zeros_like(line).scatter(-1, least, 1.0)
    u = torch.linalg.cross(line, axis)
    u = u / u.norm(dim=-1, keepdim=True)
    v = torch.linalg.cross(line, u)
    v = v / v.norm(dim=-1, keepdim=True)
    conic_u, conic_v = (conic @ u[..., None]).squeeze(-1), (conic @ v[..., None]).squeeze(-1)
    a, b, c = (u * conic_u).sum(-1), (u * conic_v).sum(-1), (v * conic_v).sum(-1)
    # a s^2 + 2 b s t + c t^2 = 0; where the line all but touches, rounding must not lose both roots: Newton decides
    discriminant = b * b - a * c
    real = discriminant > -16 * torch.finfo(a.dtype).eps ** 0.5 * (b * b + (a * c).abs())
    root = discriminant.abs().sqrt()
    q = torch.where(b > 0, -b - root, root - b)
    s, t = torch.stack([q, c], -1), torch.stack([a, q], -1)
    points = s[..., None] * u.unsqueeze(-2) + t[..., None] * v.unsqueeze(-2)
    return torch.where(real[..., None, None], points, torch.nan)
