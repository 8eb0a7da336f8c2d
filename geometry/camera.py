"""Cameras: intrinsics, lens distortion, projection and its inverse.

Conventions: OpenCV axes (x right, y down, z forward) and OpenCV's pixel grid, where (0, 0) is the centre of the
top-left pixel. `K` (…,3,3) has the third row (0, 0, 1). `distortion` (…,k) holds, in OpenCV's order,

    model="radtan"    k1, k2, p1, p2[, k3[, k4, k5, k6[, s1, s2, s3, s4]]]    (k = 0, 2, 4, 5, 8, 12)
    model="fisheye"   k1, k2, k3, k4 of theta (1 + k1 theta^2 + …)             (k = 0 … 4)

None and k = 0 both mean an undistorted lens (for "fisheye": the equidistant one). Sources: OpenCV's `calib3d`
documentation; Brown 1966 for radtan, Kannala and Brandt 2006 (TPAMI 28(8), eq. 6) for fisheye. All leading
dimensions broadcast; everything is differentiable in every tensor argument.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.checks import check_camera, check_distortion, whole
from geometry.lens import Model, even_polynomial, first_fold, horner, radial_factor, stretch

__all__ = [
    "FISHEYE_LIMIT_COS",
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
    "rays_of",
    "unproject",
]

# A fisheye ray is accepted up to this angle from the optical axis: the pole at 180 degrees has no direction.
FISHEYE_LIMIT_COS = -0.995
# of Newton's method, which leaves squares of what the tangential terms are beside the radial ones
_TANGENTIAL_STEPS = 6


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
    (radial,) = radial_factor(distortion, r2, 0)
    u, v = x * radial, y * radial
    if k > 2:
        u = u + 2 * c[2] * x * y + c[3] * (r2 + 2 * x * x)
        v = v + c[2] * (r2 + 2 * y * y) + 2 * c[3] * x * y
    if k > 8:
        u = u + r2 * (c[8] + r2 * c[9])
        v = v + r2 * (c[10] + r2 * c[11])
    return torch.stack([u, v], -1)


class _Bend(NamedTuple):
    """First and second derivatives of a function of normalised coordinates (x, y)."""

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


def _distorted(xy: Tensor, distortion: Tensor) -> tuple[Tensor, ...]:
    """u, v = `distort` (…,N) and u_x, u_y, v_x, v_y, their derivatives by normalised coordinates (x, y)."""
    k = distortion.shape[-1]
    c = distortion[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    xx, xy, yy = x * x, x * y, y * y
    r2 = xx + yy
    g, g1 = radial_factor(distortion, r2, 1)
    g1 = 2 * g1
    u, v = x * g, y * g
    u_x, u_y, v_y = torch.addcmul(g, xx, g1), xy * g1, torch.addcmul(g, yy, g1)
    if k > 2:
        p1, p2 = 2 * c[2], 2 * c[3]
        a, b = p2 * x, p1 * y
        # the tangential part is (b x + a x + c3 r2, a y + b y + c2 r2)
        both = a + b
        u, v = torch.addcmul(torch.addcmul(u, x, both), c[3], r2), torch.addcmul(torch.addcmul(v, y, both), c[2], r2)
        u_x, v_y = torch.add(u_x + both, a, alpha=2), torch.add(v_y + both, b, alpha=2)
        u_y = torch.addcmul(torch.addcmul(u_y, p1, x), p2, y)
    v_x = u_y
    if k > 8:
        r4 = r2 * r2
        u, v = u + c[8] * r2 + c[9] * r4, v + c[10] * r2 + c[11] * r4
        prism_u, prism_v = 2 * c[8] + 4 * c[9] * r2, 2 * c[10] + 4 * c[11] * r2
        u_x, u_y = torch.addcmul(u_x, prism_u, x), torch.addcmul(u_y, prism_u, y)
        v_x, v_y = torch.addcmul(v_x, prism_v, x), torch.addcmul(v_y, prism_v, y)
    return u, v, u_x, u_y, v_x, v_y


def _distort_bend(xy: Tensor, covector: Tensor, distortion: Tensor) -> _Bend:
    """Derivatives of <covector, distort(xy)> by normalised coordinates. xy, covector (…,N,2) -> each (…,N)."""
    bu, bv = covector.unbind(-1)
    k = distortion.shape[-1]
    c = distortion[..., None, :].unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    _, g1, g2 = radial_factor(distortion, r2, 2)
    _, _, u_x, u_y, v_x, v_y = _distorted(xy, distortion)
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


class _Polar(NamedTuple):
    """A fisheye in polar coordinates (…,N): distance r from the axis, unit vector (…,2,N) away from it, inverse squared
    distance L from the camera, d = theta (1 + k1 theta^2 + …) by its derivatives d' and d'' by theta, m = d / r, and
    e = d' z / L - m, which vanishes on the axis."""

    r: Tensor
    away: Tensor
    inverse: Tensor
    theta: Tensor
    d1: Tensor
    m: Tensor
    e: Tensor


def _polar(x: Tensor, y: Tensor, z: Tensor, distortion: Tensor) -> _Polar:
    s = torch.addcmul(x * x, y, y)
    inverse = 1 / torch.addcmul(s, z, z)
    r = s.clamp_min(torch.finfo(s.dtype).tiny).sqrt()
    theta = torch.atan2(r, z)
    t, m, d1 = theta * theta, theta / r, None
    if distortion.shape[-1] > 0:
        odd = torch.arange(3, 2 * distortion.shape[-1] + 2, 2, dtype=s.dtype, device=s.device)
        m, d1 = torch.addcmul(m, m * t, horner(distortion, t)), 1 + t * horner(distortion * odd, t)
    d1 = torch.ones_like(t) if d1 is None else d1
    return _Polar(r, torch.stack([x, y], -2) / r[..., None, :], inverse, theta, d1, m, d1 * z * inverse - m)


def _odd_bend(distortion: Tensor, theta: Tensor) -> Tensor:
    """d'' of `_Polar`: 6 k1 theta + 20 k2 theta^3 + …"""
    if distortion.shape[-1] == 0:
        return torch.zeros_like(theta)
    even = torch.arange(2, 2 * distortion.shape[-1] + 2, 2, dtype=theta.dtype, device=theta.device)
    return theta * horner(distortion * even * (even + 1), theta * theta)


def _near_axis(f: _Polar, z: Tensor, distortion: Tensor) -> Tensor:
    """e / r of `_Polar`, near the axis by its series in r / z: the formula of e cancels there."""
    k1, k2 = (distortion[..., i, None] if i < distortion.shape[-1] else 0.0 for i in range(2))
    inverse = 1 / z
    u = (f.r * inverse).square()
    near = (u < torch.finfo(z.dtype).eps ** (1 / 3)) & (z > 0)
    series = 2 * (k1 - 1 / 3 + 2 * (k2 - k1 + 1 / 5) * u) * f.r * inverse * inverse * inverse
    return torch.where(near, series, f.e / f.r)


def _fisheye(p: Tensor, distortion: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    r2 = x * x + y * y
    # Near the axis theta and r vanish together: theta/r is taken from the series of atan(r/z)/(r/z) instead.
    near = (r2 < 1e-4 * z * z) & (z > 0)
    # on the axis behind the camera, and at its centre, there is no direction: any angle does, for a radius of zero
    r = torch.where(near | (r2 == 0), torch.ones_like(r2), r2).sqrt()
    z_safe = torch.where(near, z, torch.ones_like(z))
    s = torch.where(near, r2, torch.zeros_like(r2)) / (z_safe * z_safe)
    series = 1 - s * (1 / 3 - s * (1 / 5 - s * (1 / 7 - s * (1 / 9 - s / 11))))
    theta_by_r = torch.where(near, series / z_safe, torch.atan2(r, z) / r)
    theta2 = theta_by_r * theta_by_r * r2
    (factor,) = even_polynomial(distortion, theta2, 0)
    return p[..., :2] * (theta_by_r * factor)[..., None]


def _apply_K(xy: Tensor, K: Tensor) -> Tensor:
    A, centre = K.mT[..., :2].tensor_split((2,), -2)
    return xy @ A + centre


def project_camera_frame(
    points_camera: Tensor, K: Tensor, distortion: Tensor | None = None, *, model: Model = "radtan"
) -> Tensor:
    """Pixels of points given in the camera frame. (…,N,3), K (…,3,3), distortion (…,k) -> (…,N,2)."""
    if distortion is None:
        distortion = points_camera.new_zeros(0)
    check_distortion(distortion, model)
    return _pixels(points_camera, K, distortion, model)


def _pixels(points_camera: Tensor, K: Tensor, distortion: Tensor, model: Model) -> Tensor:
    """`project_camera_frame` of what was checked."""
    if model == "fisheye":
        return _apply_K(_fisheye(points_camera, distortion), K)
    # at depth zero that of depth one: whoever puts such a point aside by a `where` must not have NaN in the gradient
    xy, z = points_camera.tensor_split((2,), -1)
    return _apply_K(distort(xy / torch.where(z == 0, 1.0, z), distortion), K)


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
    Points behind the camera, or at depth zero, get finite, meaningless pixels of finite gradient: `in_front` tells them
    apart. Raises ValueError for an unknown `model` or number of coefficients, for what is no tensor of floating-point
    numbers, shapes and dtypes that do not fit, a K with another third row than (0, 0, 1), and a pose that is no
    rotation (to 1e-3) and translation; under transforms of torch.func and in torch.compile both go unseen.
    """
    distortion = check_camera(K, distortion, model, world_to_camera, points3d=(points3d, "…,N,3"))
    return _pixels(se3.transform(world_to_camera, points3d), K, distortion, model)


def in_front(points_camera: Tensor, *, model: Model = "radtan") -> Tensor:
    """Whether the camera model can see a point: z > 0, or for "fisheye" within 174 degrees. (…,N,3) -> (…,N)."""
    points_camera = points_camera.detach()
    z, length = points_camera[..., 2], torch.linalg.vector_norm(points_camera, dim=-1)
    if model == "fisheye":
        return (length > 0) & (z > FISHEYE_LIMIT_COS * length)
    return z > torch.finfo(z.dtype).eps * length


def projection_jacobian(points_camera: Tensor, K: Tensor, distortion: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Pixels (…,N,2) and their derivatives (…,N,2,3) with respect to the point in the camera frame, in closed form.

    Like the curvature, they are views of tensors whose last dimension is N: so are fast to compute with.
    """
    if model == "radtan" and distortion.shape[-1] == 0:
        return _pinhole_jacobian(points_camera, K)
    x, y, z = points_camera.unbind(-1)
    if model == "fisheye":
        f = _polar(x, y, z, distortion)
        image = torch.stack([x, y], -2) * f.m[..., None, :]
        # across the axis e away away^T + m I, along it -(d' r / L) away
        slopes = torch.cat([f.away * f.e[..., None, :], (-f.d1 * f.r * f.inverse)[..., None, :]], -2)
        rows = f.away[..., :, None, :] * slopes[..., None, :, :]
        rows[..., 0, 0, :] += f.m
        rows[..., 1, 1, :] += f.m
    else:
        x, y, iz = x / z, y / z, 1 / z
        u, v, u_x, u_y, v_x, v_y = _distorted(torch.stack([x, y], -1), distortion)
        image = torch.stack([u, v], -2)
        u_z, v_z = -torch.addcmul(u_x * x, u_y, y), -torch.addcmul(v_x * x, v_y, y)
        rows = torch.stack([u_x, u_y, u_z, v_x, v_y, v_z], -2).unflatten(-2, (2, 3)) * iz[..., None, None, :]
    A = K[..., :2, :2]
    jacobian = (A @ rows.flatten(-2)).unflatten(-1, rows.shape[-2:])
    return (A @ image + K[..., :2, 2:]).mT, jacobian.movedim(-1, -3)


def _pinhole_jacobian(points_camera: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """`projection_jacobian` without a lens: the columns of K, and minus the image for depth, over the depth."""
    p = points_camera.mT
    inverse = 1 / p[..., 2:, :]
    image = K[..., :2, :2] @ (p[..., :2, :] * inverse)
    A = K[..., :2, :2, None].expand(*image.shape[:-2], 2, 2, image.shape[-1])
    rows = torch.cat([A, -image[..., None, :]], -2) * inverse[..., None, :]
    return (image + K[..., :2, 2:]).mT, rows.movedim(-1, -3)


def projection_curvature(
    points_camera: Tensor, K: Tensor, distortion: Tensor, model: Model, covector: Tensor
) -> Tensor:
    """Second derivative of <covector, pixels> with respect to the point, in closed form. (…,N,2) -> (…,N,3,3)."""
    if model == "radtan" and distortion.shape[-1] == 0:
        return _pinhole_curvature(points_camera, covector @ K[..., :2, :2])
    x, y, z = points_camera.unbind(-1)
    covector = covector @ K[..., :2, :2]
    if model == "fisheye":
        f = _polar(x, y, z, distortion)
        c, (a, b) = covector.unbind(-1), f.away.unbind(-2)
        along = c[0] * a + c[1] * b
        bent = _odd_bend(distortion, f.theta)
        rz, inverse2 = f.r * along, f.inverse * f.inverse
        G = (2 * f.d1 * f.r - bent * z) * inverse2
        k = _near_axis(f, z, distortion)
        # k (along I + c away^T + away c^T) - along (z G + 3 k) away away^T, and likewise for z
        ka, kb, common = k * a, k * b, k * along
        across = -along * (z * G + 3 * k)
        pa, pb = across * a, across * b
        xx, xy, yy = common + 2 * ka * c[0] + pa * a, ka * c[1] + kb * c[0] + pa * b, common + 2 * kb * c[1] + pb * b
        zG, slope = rz * G, f.d1 * f.inverse
        xz, yz = zG * a - slope * c[0], zG * b - slope * c[1]
        zz = rz * (bent * f.r + 2 * f.d1 * z) * inverse2
    else:
        x, y, iz2 = x / z, y / z, 1 / (z * z)
        bend = _distort_bend(torch.stack([x, y], -1), covector, distortion)
        # chain rule through the division by depth
        xx, xy, yy = bend.xx * iz2, bend.xy * iz2, bend.yy * iz2
        a, b = bend.x * iz2, bend.y * iz2
        xz, yz = -(x * xx + y * xy + a), -(x * xy + y * yy + b)
        zz = x * (a - xz) + y * (b - yz)
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -2).unflatten(-2, (3, 3)).movedim(-1, -3)


def _pinhole_curvature(points_camera: Tensor, covector: Tensor) -> Tensor:
    """`projection_curvature` without a lens: the depth alone bends, covector (…,N,2) of normalised coordinates."""
    p = points_camera.mT
    inverse = 1 / p[..., 2:, :]
    c = covector.mT * inverse * -inverse
    zz = -2 * (c * p[..., :2, :]).sum(-2, keepdim=True) * inverse
    flat = torch.zeros_like(c)[..., None, :].expand(*c.shape[:-1], 2, c.shape[-1])
    rows = [torch.cat([flat, c[..., None, :]], -2), torch.cat([c, zz], -2)[..., None, :, :]]
    return torch.cat(rows, -3).movedim(-1, -3)


def unproject(
    points2d: Tensor,
    K: Tensor,
    distortion: Tensor | None = None,
    *,
    model: Model = "radtan",
    max_steps: int = 16,
) -> Rays:
    """Unit rays through pixels: the inverse of the projection.

    points2d (…,N,2), K (…,3,3), distortion (…,k) or None -> Rays(directions (…,N,3), valid (…,N)). The radius (for
    "fisheye" the angle) from the axis up to its first fold, where the radial part of the lens ceases to grow, is found
    by at most `max_steps` bracketed steps of Newton's method, the tangential and thin-prism terms by a few more, of
    Newton's method in both coordinates. A pixel is invalid where that does not reach it within 1e-6 of a focal length
    (1e-4 in float32): nothing that a lens shows beyond its first fold has a ray. Within, all pixels have one, but for a
    few next to the fold of a lens with tangential terms. Differentiable once in every argument:
    the last Newton step is taken with the graph, which is the implicit function theorem for a root.
    Raises ValueError for an unknown `model` or number of coefficients, max_steps below 1, and for the tensors as
    `project` does.
    """
    distortion = check_camera(K, distortion, model, points2d=(points2d, "…,N,2"))
    whole("max_steps", max_steps, 1)
    return rays_of(points2d, K, distortion, model, max_steps)


def rays_of(points2d: Tensor, K: Tensor, distortion: Tensor, model: Model, max_steps: int = 16) -> Rays:
    """`unproject` of what has been checked, inside solvers."""
    (a, b), (c, d) = (row.unbind(-1) for row in K[..., None, :2, :2].unbind(-2))
    u, v = (points2d - K[..., None, :2, 2]).unbind(-1)
    target = torch.stack([d * u - b * v, a * v - c * u], -1) / (a * d - b * c)[..., None]
    tolerance = 1e-6 if points2d.dtype == torch.float64 else 1e-4
    if model == "fisheye":
        return _unproject_fisheye(target, distortion, max_steps, tolerance)
    if distortion.shape[-1] > 0:
        xy, valid = _undistorted(target, distortion, max_steps, tolerance)
    else:
        xy, valid = target, torch.isfinite(target).all(-1)
    rays = torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), valid)


def _undistorted(target: Tensor, distortion: Tensor, max_steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """The (x, y) (…,N,2) within the first fold that `distort` takes to the target, and whether there is one (…,N)."""

    def newton(xy: Tensor) -> tuple[Tensor, Tensor]:
        u, v, a, b, c, d = _distorted(xy, distortion)
        ex, ey = u - target[..., 0], v - target[..., 1]
        det = a * d - b * c
        step = torch.stack([d * ex - b * ey, a * ey - c * ex], -1) / det[..., None]
        return xy - step, (det > 0) & (a + d > 0)

    tangential = distortion.shape[-1] > 2
    with torch.no_grad():
        # these terms move the fold: Newton's method converges from within, and then a little beyond
        end = first_fold("radtan", distortion, 0.98 if tangential else 1.0)
        r2 = target.square().sum(-1)
        xy = target * stretch(lambda t: radial_factor(distortion, t, 1), r2, end, max_steps)[..., None]
        if tangential:
            for _ in range(_TANGENTIAL_STEPS):
                xy = newton(xy)[0]
        good = ((distort(xy, distortion) - target).norm(dim=-1) <= tolerance) & torch.isfinite(xy).all(-1)
        good = good & (xy.square().sum(-1) <= 1.06 * end)
    # an invalid pixel must not poison the gradients of its neighbours
    xy, unfolded = newton(torch.where(good[..., None], xy, torch.zeros_like(xy)))
    return xy, good & unfolded


def _unproject_fisheye(target: Tensor, distortion: Tensor, max_steps: int, tolerance: float) -> Rays:
    r2 = target.square().sum(-1)
    at_centre = r2 < 1e-24
    radius = torch.where(at_centre, torch.ones_like(r2), r2).sqrt()

    def newton(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta2 = theta * theta
        factor, bend = even_polynomial(distortion, theta2, 1)
        slope = factor + 2 * theta2 * bend
        return theta - (theta * factor - radius) / slope, slope

    with torch.no_grad():
        end = first_fold("fisheye", distortion).clamp_max(math.pi**2)
        theta = radius * stretch(lambda t: even_polynomial(distortion, t, 1), radius.square(), end, max_steps)
        good = (theta * even_polynomial(distortion, theta * theta, 0)[0] - radius).abs() <= tolerance
    theta, slope = newton(torch.where(good, theta, torch.zeros_like(theta)))
    valid = at_centre | (good & (slope > 0) & (theta.cos() > FISHEYE_LIMIT_COS))
    lateral = torch.where(at_centre, torch.ones_like(theta), theta.sin() / radius)
    z = torch.where(at_centre, torch.ones_like(theta), theta.cos())
    rays = torch.cat([target * lateral[..., None], z[..., None]], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), valid)
