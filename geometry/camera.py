"""Cameras: intrinsics, lens distortion, projection and its inverse.

Conventions: OpenCV axes (x right, y down, z forward) and OpenCV's pixel grid, where (0, 0) is the centre of the
top-left pixel. `K` (…,3,3) has the third row (0, 0, 1). `distortion` (…,k) holds, in OpenCV's order,

    model="radtan"    k1, k2, p1, p2[, k3[, k4, k5, k6[, s1, s2, s3, s4]]]    (k = 0, 2, 4, 5, 8, 12)
    model="fisheye"   k1, k2, k3, k4 of theta (1 + k1 theta^2 + …)             (k = 0 … 4)

None and k = 0 both mean an undistorted lens (for "fisheye": the equidistant one). Sources: OpenCV's `calib3d`
documentation; Brown 1966 for radtan, Kannala and Brandt 2006 (TPAMI 28(8), eq. 6) for fisheye. All leading
dimensions broadcast; everything is differentiable in every tensor argument.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geometry import se3

__all__ = [
    "Model",
    "Rays",
    "distort",
    "in_front",
    "intrinsics_from_matrix",
    "matrix_from_intrinsics",
    "project",
    "project_camera_frame",
    "projection_curvature",
    "projection_jacobian",
    "unproject",
]

Model = Literal["radtan", "fisheye"]
_LENGTHS = {"radtan": (0, 2, 4, 5, 8, 12), "fisheye": (0, 1, 2, 3, 4)}
# A fisheye ray is accepted up to this angle from the optical axis: the pole at 180 degrees has no direction.
_FISHEYE_LIMIT_COS = -0.995
# Below this (r / z)^2 the derivatives of theta / r by r^2 are taken from their series: the formulas cancel there.
_NEAR_AXIS = 1e-4


class Rays(NamedTuple):
    """Result of `unproject`: unit directions (…,N,3) in the camera frame, and whether each is to be trusted."""

    directions: Tensor
    valid: Tensor


def matrix_from_intrinsics(intrinsics: Tensor) -> Tensor:
    """K of (fx, fy, cx, cy) in pixels. (…,4) -> (…,3,3)."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).unflatten(-1, (3, 3))


def intrinsics_from_matrix(K: Tensor) -> Tensor:
    """(fx, fy, cx, cy) of K. (…,3,3) -> (…,4)."""
    return torch.stack([K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]], -1)


def check_distortion(distortion: Tensor, model: Model) -> None:
    """Raise ValueError unless `model` is known and takes this many coefficients."""
    if model not in _LENGTHS:
        raise ValueError(f"model must be one of {sorted(_LENGTHS)}, got {model!r}")
    if distortion.shape[-1] not in _LENGTHS[model]:
        raise ValueError(
            f"distortion must have one of {_LENGTHS[model]} coefficients for model={model!r}, "
            f"got shape {tuple(distortion.shape)}"
        )


def distort(xy: Tensor, distortion: Tensor) -> Tensor:
    """OpenCV's radial, tangential and thin-prism distortion of normalised coordinates.

    xy (…,N,2) = (X/Z, Y/Z), distortion (…,k) of model "radtan" -> (…,N,2).
    """
    k = distortion.shape[-1]
    if k == 0:
        return xy
    c = distortion[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    (radial,) = _radial(distortion, r2, 0)
    u, v = x * radial, y * radial
    if k > 2:
        u = u + 2 * c[2] * x * y + c[3] * (r2 + 2 * x * x)
        v = v + c[2] * (r2 + 2 * y * y) + 2 * c[3] * x * y
    if k > 8:
        u = u + r2 * (c[8] + r2 * c[9])
        v = v + r2 * (c[10] + r2 * c[11])
    return torch.stack([u, v], -1)


class _Bend(NamedTuple):
    """First and second derivatives of a function of two variables, here of normalised coordinates (x, y)."""

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


def _horner(coefficients: Tensor, t: Tensor) -> Tensor:
    """c_0 + c_1 t + c_2 t^2 + … (…,N) of coefficients (…,k), k > 0, at t (…,N)."""
    *rest, value = coefficients[..., None, :].unbind(-1)
    value = value.expand_as(t) if not rest else value
    for c in reversed(rest):
        value = torch.addcmul(c, value, t)
    return value


def _even_polynomial(coefficients: Tensor, t: Tensor, order: int) -> tuple[Tensor, ...]:
    """1 + c_1 t + c_2 t^2 + … and its first `order` derivatives by t. (…,k), (…,N) -> each (…,N)."""
    if coefficients.shape[-1] == 0:
        return torch.ones_like(t), *[torch.zeros_like(t)] * order
    values = [1 + t * _horner(coefficients, t)]
    for _ in range(order):
        coefficients = coefficients * torch.arange(1, coefficients.shape[-1] + 1, dtype=t.dtype, device=t.device)
        values.append(_horner(coefficients, t) if coefficients.shape[-1] else torch.zeros_like(t))
        coefficients = coefficients[..., 1:]
    return tuple(values)


def _radial(distortion: Tensor, r2: Tensor, order: int) -> tuple[Tensor, ...]:
    """The radial factor of "radtan" and its first `order` derivatives by r2 (…,N)."""
    k = distortion.shape[-1]
    above = torch.cat([distortion[..., :2], distortion[..., 4:5]], -1) if k > 4 else distortion[..., :2]
    values = _even_polynomial(above, r2, order)
    if k <= 5:
        return values
    below = _even_polynomial(distortion[..., 5:8], r2, order)
    inverse = 1 / below[0]
    g = values[0] * inverse
    if order == 0:
        return (g,)
    g1 = (values[1] - g * below[1]) * inverse
    if order == 1:
        return g, g1
    return g, g1, (values[2] - 2 * g1 * below[1] - g * below[2]) * inverse


def _distort_slopes(xy: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives u_x, u_y, v_x, v_y (…,N) of `distort` (u, v) by normalised coordinates (x, y)."""
    k = distortion.shape[-1]
    c = distortion[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    xx, yy = x * x, y * y
    r2 = xx + yy
    g, g1 = _radial(distortion, r2, 1)
    g1 = 2 * g1
    mixed = x * y * g1
    u_x, u_y, v_x, v_y = torch.addcmul(g, xx, g1), mixed, mixed, torch.addcmul(g, yy, g1)
    if k > 2:
        p1, p2 = 2 * c[2], 2 * c[3]
        a, b = p2 * x, p1 * y
        u_x, v_y = u_x + b + 3 * a, v_y + 3 * b + a
        mixed = mixed + p1 * x + p2 * y
        u_y, v_x = mixed, mixed
    if k > 8:
        prism_u, prism_v = 2 * c[8] + 4 * c[9] * r2, 2 * c[10] + 4 * c[11] * r2
        u_x, u_y = torch.addcmul(u_x, prism_u, x), torch.addcmul(u_y, prism_u, y)
        v_x, v_y = torch.addcmul(v_x, prism_v, x), torch.addcmul(v_y, prism_v, y)
    return u_x, u_y, v_x, v_y


def _distort_bend(xy: Tensor, covector: Tensor, distortion: Tensor) -> _Bend:
    """Derivatives of <covector, distort(xy)> by normalised coordinates. xy, covector (…,N,2) -> each (…,N)."""
    bu, bv = covector.unbind(-1)
    if distortion.shape[-1] == 0:
        zero = torch.zeros_like(bu)
        return _Bend(bu, bv, zero, zero, zero)
    k = distortion.shape[-1]
    c = distortion[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    _, g1, g2 = _radial(distortion, r2, 2)
    u_x, u_y, v_x, v_y = _distort_slopes(xy, distortion)
    radial = bu * x + bv * y
    along, twice, g1 = 2 * radial * g1, 4 * radial * g2, 2 * g1
    if k > 8:
        along = along + 2 * (bu * (c[8] + 2 * r2 * c[9]) + bv * (c[10] + 2 * r2 * c[11]))
        twice = twice + 8 * (bu * c[9] + bv * c[11])
    xx = along + x * (twice * x + 2 * bu * g1)
    yy = along + y * (twice * y + 2 * bv * g1)
    mixed = twice * x * y + g1 * (bu * y + bv * x)
    if k > 2:
        p1, p2 = 2 * c[2], 2 * c[3]
        xx, yy = xx + 3 * bu * p2 + bv * p1, yy + bu * p2 + 3 * bv * p1
        mixed = mixed + bu * p1 + bv * p2
    return _Bend(bu * u_x + bv * v_x, bu * u_y + bv * v_y, xx, mixed, yy)


class _Magnification(NamedTuple):
    """m with fisheye(p) = (x, y) m, as a function of s = x^2 + y^2 and z, and its derivatives (…,N)."""

    m: Tensor
    s: Tensor
    z: Tensor
    ss: Tensor | None = None
    sz: Tensor | None = None
    zz: Tensor | None = None


def _fisheye_magnification(p: Tensor, distortion: Tensor, order: int) -> _Magnification:
    """The magnification of points (…,N,3) with its derivatives up to `order` 1 or 2.

    With h = theta / r, L = s + z^2 and t = theta^2: m = h F(t), F = 1 + k1 t + …, and everything follows from
    h_z = -1 / L,  2 s h_s = z / L - h,  t_s = h z / L,  t_z = -2 s h / L,  which cancel nowhere but in h_s on the axis.
    """
    z = p[..., 2]
    s = p[..., :2].square().sum(-1)
    inverse = 1 / (s + z * z)
    near = s < _NEAR_AXIS * z * z.abs()  # where z is positive
    off = torch.where(near, 1, s)
    r = off.sqrt()
    ahead = torch.where(near, z, 1)
    u = torch.where(near, s, 0) / (ahead * ahead)
    series = 1 - u * (1 / 3 - u * (1 / 5 - u * (1 / 7 - u / 9)))
    h = torch.where(near, series / ahead, torch.atan2(r, z) / r)
    slope = -1 / 3 + u * (2 / 5 - u * (3 / 7 - u * (4 / 9 - u * 5 / 11)))
    zl = z * inverse
    half = 0.5 / off
    h_s = torch.where(near, slope / ahead**3, (zl - h) * half)
    hs = h * s
    F = _even_polynomial(distortion, hs * h, order)
    t_s, t_z = h * zl, -2 * hs * inverse
    hF1 = h * F[1]
    m, m_s = h * F[0], h_s * F[0] + hF1 * t_s
    m_z = hF1 * t_z - inverse * F[0]
    if order == 1:
        return _Magnification(m, m_s, m_z)
    inverse2 = inverse * inverse
    bend = 2 / 5 - u * (6 / 7 - u * (12 / 9 - u * (20 / 11 - u * 30 / 13)))
    h_ss = torch.where(near, bend / ahead**5, (-z * inverse2 - 3 * h_s) * half)
    hz = h * z
    t_ss = (h_s - h * inverse) * zl
    t_sz = h * inverse - z * inverse2 * (1 + 2 * hz)
    t_zz = 2 * s * inverse2 * (1 + 2 * hz)
    hF2 = h * F[2]
    m_ss = h_ss * F[0] + 2 * h_s * F[1] * t_s + hF2 * t_s * t_s + hF1 * t_ss
    m_sz = inverse2 * F[0] + (h_s * t_z - inverse * t_s) * F[1] + hF2 * t_s * t_z + hF1 * t_sz
    m_zz = 2 * zl * inverse * F[0] - 2 * inverse * t_z * F[1] + hF2 * t_z * t_z + hF1 * t_zz
    return _Magnification(m, m_s, m_z, m_ss, m_sz, m_zz)


def _fisheye(p: Tensor, distortion: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    r2 = x * x + y * y
    # Near the axis theta and r vanish together: theta/r is taken from the series of atan(r/z)/(r/z) instead.
    near = (r2 < 1e-4 * z * z) & (z > 0)
    r = torch.where(near, torch.ones_like(r2), r2).sqrt()
    z_safe = torch.where(near, z, torch.ones_like(z))
    s = torch.where(near, r2, torch.zeros_like(r2)) / (z_safe * z_safe)
    series = 1 - s * (1 / 3 - s * (1 / 5 - s * (1 / 7 - s * (1 / 9 - s / 11))))
    theta_by_r = torch.where(near, series / z_safe, torch.atan2(r, z) / r)
    theta2 = theta_by_r * theta_by_r * r2
    (factor,) = _even_polynomial(distortion, theta2, 0)
    return p[..., :2] * (theta_by_r * factor)[..., None]


def _apply_K(xy: Tensor, K: Tensor) -> Tensor:
    return xy @ K[..., :2, :2].mT + K[..., None, :2, 2]


def project_camera_frame(
    points_camera: Tensor, K: Tensor, distortion: Tensor | None = None, *, model: Model = "radtan"
) -> Tensor:
    """Pixels of points given in the camera frame. (…,N,3), K (…,3,3), distortion (…,k) -> (…,N,2)."""
    if distortion is None:
        distortion = points_camera.new_zeros(0)
    check_distortion(distortion, model)
    if model == "fisheye":
        return _apply_K(_fisheye(points_camera, distortion), K)
    return _apply_K(distort(points_camera[..., :2] / points_camera[..., 2:], distortion), K)


def project(
    points3d: Tensor,
    world_to_camera: Tensor,
    K: Tensor,
    distortion: Tensor | None = None,
    *,
    model: Model = "radtan",
) -> Tensor:
    """Project world points into a camera.

    points3d (…,N,3), world_to_camera (…,4,4), K (…,3,3), distortion (…,k) or None -> points2d (…,N,2) in pixels.
    Points behind the camera get the finite, meaningless pixels of the formula: `in_front` tells them apart.
    Raises ValueError for an unknown `model` or a wrong number of coefficients.
    """
    return project_camera_frame(se3.transform(world_to_camera, points3d), K, distortion, model=model)


def in_front(points_camera: Tensor, *, model: Model = "radtan") -> Tensor:
    """Whether the camera model can see a point: z > 0, or for "fisheye" within 174 degrees. (…,N,3) -> (…,N)."""
    z, length = points_camera[..., 2], points_camera.norm(dim=-1)
    if model == "fisheye":
        return (length > 0) & (z > _FISHEYE_LIMIT_COS * length)
    return z > torch.finfo(z.dtype).eps * length


def projection_jacobian(points_camera: Tensor, K: Tensor, distortion: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Pixels (…,N,2) and their derivatives (…,N,2,3) with respect to the point in the camera frame, in closed form.

    Both are views of tensors whose last dimension is N, so that what is computed of them stays contiguous.
    """
    x, y, z = points_camera.unbind(-1)
    if model == "fisheye":
        m, m_s, m_z = _fisheye_magnification(points_camera, distortion, 1)[:3]
        across = torch.stack([x, y], -2)
        image = across * m[..., None, :]
        # d (x, y) m = m I + (x, y) (2 m_s x, 2 m_s y, m_z)
        slopes = torch.stack([2 * m_s * x, 2 * m_s * y, m_z], -2)
        rows = across[..., :, None, :] * slopes[..., None, :, :]
        zero = torch.zeros_like(m)
        rows = rows + torch.stack([m, zero, zero, zero, m, zero], -2).unflatten(-2, (2, 3))
    else:
        iz = 1 / z
        x, y = x * iz, y * iz
        if distortion.shape[-1] == 0:
            image, zero = torch.stack([x, y], -2), torch.zeros_like(iz)
            rows = torch.stack([iz, zero, -x * iz, zero, iz, -y * iz], -2).unflatten(-2, (2, 3))
        else:
            xy = torch.stack([x, y], -1)
            image = distort(xy, distortion).mT
            u_x, u_y, v_x, v_y = _distort_slopes(xy, distortion)
            rows = torch.stack([u_x, u_y, -(u_x * x + u_y * y), v_x, v_y, -(v_x * x + v_y * y)], -2) * iz[..., None, :]
            rows = rows.unflatten(-2, (2, 3))
    A = K[..., :2, :2]
    jacobian = (A @ rows.flatten(-2)).unflatten(-1, rows.shape[-2:])
    return (A @ image + K[..., :2, 2:]).mT, jacobian.movedim(-1, -3)


def projection_curvature(
    points_camera: Tensor, K: Tensor, distortion: Tensor, model: Model, covector: Tensor
) -> Tensor:
    """Second derivative of <covector, pixels> with respect to the point, in closed form. (…,N,2) -> (…,N,3,3)."""
    x, y, z = points_camera.unbind(-1)
    covector = covector @ K[..., :2, :2]
    if model == "fisheye":
        m = _fisheye_magnification(points_camera, distortion, 2)
        assert m.ss is not None
        assert m.sz is not None
        assert m.zz is not None
        a, b = covector.unbind(-1)
        along = a * x + b * y
        # Hessian of along * m: covector (x) grad m, twice symmetrised, and along times the Hessian of m
        px, py, common = 2 * m.s * x, 2 * m.s * y, 2 * along * m.s
        bend = 4 * along * m.ss
        xx, yy = 2 * a * px + common + bend * x * x, 2 * b * py + common + bend * y * y
        xy = a * py + b * px + bend * x * y
        across = 2 * along * m.sz
        xz, yz, zz = a * m.z + across * x, b * m.z + across * y, along * m.zz
    else:
        iz = 1 / z
        x, y, iz2 = x * iz, y * iz, iz * iz
        f = _distort_bend(torch.stack([x, y], -1), covector, distortion)
        # chain rule through the division by depth
        xx, xy, yy = f.xx * iz2, f.xy * iz2, f.yy * iz2
        a, b = f.x * iz2, f.y * iz2
        xz, yz = -(x * xx + y * xy + a), -(x * xy + y * yy + b)
        zz = x * (a - xz) + y * (b - yz)
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).unflatten(-1, (3, 3))


def unproject(
    points2d: Tensor,
    K: Tensor,
    distortion: Tensor | None = None,
    *,
    model: Model = "radtan",
    max_steps: int = 20,
) -> Rays:
    """Unit rays through pixels: the inverse of the projection, by Newton's method.

    points2d (…,N,2), K (…,3,3), distortion (…,k) or None -> Rays(directions (…,N,3), valid (…,N)). A pixel is
    invalid where Newton does not reach it within 1e-6 of a focal length (1e-4 in float32), or where it lies on a
    folded branch of the lens (negative Jacobian), whose ray is not unique. Differentiable once in every argument:
    the last Newton step is taken with the graph, which is the implicit function theorem for a root.
    Raises ValueError for an unknown `model`, a wrong number of coefficients, or points2d not ending in 2.
    """
    if points2d.shape[-1] != 2:
        raise ValueError(f"points2d must have shape (…,N,2), got {tuple(points2d.shape)}")
    if distortion is None:
        distortion = points2d.new_zeros(0)
    check_distortion(distortion, model)
    (a, b), (c, d) = (row.unbind(-1) for row in K[..., None, :2, :2].unbind(-2))
    u, v = (points2d - K[..., None, :2, 2]).unbind(-1)
    target = torch.stack([d * u - b * v, a * v - c * u], -1) / (a * d - b * c)[..., None]
    tolerance = 1e-6 if points2d.dtype == torch.float64 else 1e-4
    if model == "fisheye":
        return _unproject_fisheye(target, distortion, max_steps, tolerance)

    def newton(xy: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c, d = _distort_slopes(xy, distortion)
        ex, ey = (distort(xy, distortion) - target).unbind(-1)
        det = a * d - b * c
        step = torch.stack([d * ex - b * ey, a * ey - c * ex], -1) / det[..., None]
        # both eigenvalues positive: far out a folded lens may turn both, and the determinant does not show it
        return xy - step, (det > 0) & (a + d > 0)

    xy = target
    if distortion.shape[-1] > 0:
        with torch.no_grad():
            for _ in range(max_steps):
                xy = newton(xy)[0]
            error = (distort(xy, distortion) - target).norm(dim=-1)
        good = (error <= tolerance) & torch.isfinite(xy).all(-1)
        # an invalid pixel must not poison the gradients of its neighbours
        xy, unfolded = newton(torch.where(good[..., None], xy, torch.zeros_like(xy)))
        valid = good & unfolded
    else:
        valid = torch.isfinite(xy).all(-1)
    rays = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), valid)


def _unproject_fisheye(target: Tensor, distortion: Tensor, max_steps: int, tolerance: float) -> Rays:
    r2 = target.square().sum(-1)
    at_centre = r2 < 1e-24
    radius = torch.where(at_centre, torch.ones_like(r2), r2).sqrt()

    def newton(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta2 = theta * theta
        factor, bend = _even_polynomial(distortion, theta2, 1)
        slope = factor + 2 * theta2 * bend
        return theta - (theta * factor - radius) / slope, slope

    with torch.no_grad():
        theta = radius.clamp(max=torch.pi)
        for _ in range(max_steps):
            theta = newton(theta)[0].clamp(0, torch.pi)
        good = (theta * _even_polynomial(distortion, theta * theta, 0)[0] - radius).abs() <= tolerance
    theta, slope = newton(torch.where(good, theta, torch.zeros_like(theta)))
    valid = at_centre | (good & (slope > 0) & (theta.cos() > _FISHEYE_LIMIT_COS))
    lateral = torch.where(at_centre, torch.ones_like(theta), theta.sin() / radius)
    z = torch.where(at_centre, torch.ones_like(theta), theta.cos())
    rays = torch.cat([target * lateral[..., None], z[..., None]], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), valid)
