"""Cameras: intrinsics, lens distortion, projection and its inverse.

Conventions: OpenCV axes (x right, y down, z forward) and OpenCV's pixel grid, where (0, 0) is the centre of the
top-left pixel. `K` (…,3,3) has the third row (0, 0, 1). `distortion` (…,k) holds, in OpenCV's order,

    model="radtan"    k1, k2, p1, p2[, k3[, k4, k5, k6[, s1, s2, s3, s4]]]    (k = 0, 2, 4, 5, 8, 12)
    model="fisheye"   k1, k2, k3, k4 of theta (1 + k1 theta^2 + …)             (k = 0 … 4)

None and k = 0 both mean an undistorted lens (for "fisheye": the equidistant one). Sources: OpenCV's `calib3d`
documentation; Brown 1966 for radtan, Kannala and Brandt 2006 (TPAMI 28(8), eq. 6) for fisheye. All leading
dimensions broadcast; everything is differentiable in every tensor argument.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry._forward import directional

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
    radial = 1 + r2 * (c[0] + r2 * (c[1] + (r2 * c[4] if k > 4 else 0)))
    if k > 5:
        radial = radial / (1 + r2 * (c[5] + r2 * (c[6] + r2 * c[7])))
    u, v = x * radial, y * radial
    if k > 2:
        u = u + 2 * c[2] * x * y + c[3] * (r2 + 2 * x * x)
        v = v + c[2] * (r2 + 2 * y * y) + 2 * c[3] * x * y
    if k > 8:
        u = u + r2 * (c[8] + r2 * c[9])
        v = v + r2 * (c[10] + r2 * c[11])
    return torch.stack([u, v], -1)


def _fisheye_radius(theta: Tensor, distortion: Tensor) -> Tensor:
    """theta (1 + k1 theta^2 + k2 theta^4 + …), the distance from the image centre in focal lengths."""
    theta2, factor = theta * theta, torch.ones_like(theta)
    power = torch.ones_like(theta)
    for i in range(distortion.shape[-1]):
        power = power * theta2
        factor = factor + distortion[..., None, i] * power
    return theta * factor


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
    factor, power = torch.ones_like(theta2), torch.ones_like(theta2)
    for i in range(distortion.shape[-1]):
        power = power * theta2
        factor = factor + distortion[..., None, i] * power
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
    """Pixels (…,N,2) and their derivatives (…,N,2,3) with respect to the point in the camera frame.

    Closed form for the pinhole; three forward-mode passes for every other lens, so that a lens is one function.
    """
    if model == "radtan" and distortion.shape[-1] == 0:
        x, y, z = points_camera.unbind(-1)
        iz = 1 / z
        zero = torch.zeros_like(iz)
        rows = torch.stack([iz, zero, -x * iz * iz, zero, iz, -y * iz * iz], -1).unflatten(-1, (2, 3))
        return _apply_K(points_camera[..., :2] * iz[..., None], K), K[..., None, :2, :2] @ rows

    def f(p: Tensor) -> Tensor:
        return project_camera_frame(p, K, distortion, model=model)

    columns = []
    for axis in torch.eye(3, dtype=points_camera.dtype, device=points_camera.device):
        pixels, column = directional(f, points_camera, axis)
        columns.append(column)
    return pixels, torch.stack(columns, -1)


def projection_curvature(
    points_camera: Tensor, K: Tensor, distortion: Tensor, model: Model, covector: Tensor
) -> Tensor:
    """Second derivative of <covector, pixels> with respect to the point. covector (…,N,2) -> (…,N,3,3)."""
    p = points_camera
    if model == "radtan" and distortion.shape[-1] == 0:
        x, y, z = p.unbind(-1)
        a, b = (covector @ K[..., :2, :2]).unbind(-1)
        iz2 = 1 / (z * z)
        zero = torch.zeros_like(z)
        xz, yz, zz = -a * iz2, -b * iz2, 2 * (a * x + b * y) * iz2 / z
        return torch.stack([zero, zero, xz, zero, zero, yz, xz, yz, zz], -1).unflatten(-1, (3, 3))

    def slope(axis: Tensor) -> Callable[[Tensor], Tensor]:
        """<covector, d pixels / d axis> as a function of the point."""

        def f(p: Tensor) -> Tensor:
            return (
                covector * directional(lambda q: project_camera_frame(q, K, distortion, model=model), p, axis)[1]
            ).sum(-1)

        return f

    axes = torch.eye(3, dtype=p.dtype, device=p.device).unbind(0)
    entry = {(i, j): directional(slope(axes[i]), p, axes[j])[1] for i in range(3) for j in range(i, 3)}
    rows = [entry[min(i, j), max(i, j)] for i in range(3) for j in range(3)]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


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
    target = torch.linalg.solve(K[..., None, :2, :2], (points2d - K[..., None, :2, 2])[..., None]).squeeze(-1)
    tolerance = 1e-6 if points2d.dtype == torch.float64 else 1e-4
    if model == "fisheye":
        return _unproject_fisheye(target, distortion, max_steps, tolerance)

    def newton(xy: Tensor) -> tuple[Tensor, Tensor]:
        value, columns = xy, []
        for axis in torch.eye(2, dtype=xy.dtype, device=xy.device):
            value, column = directional(lambda q: distort(q, distortion), xy, axis)
            columns.append(column)
        (a, c), (b, d) = columns[0].unbind(-1), columns[1].unbind(-1)
        ex, ey = (value - target).unbind(-1)
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
        value, slope = directional(lambda a: _fisheye_radius(a, distortion), theta, torch.ones_like(theta))
        return theta - (value - radius) / slope, slope

    with torch.no_grad():
        theta = radius.clamp(max=torch.pi)
        for _ in range(max_steps):
            theta = newton(theta)[0].clamp(0, torch.pi)
        good = (_fisheye_radius(theta, distortion) - radius).abs() <= tolerance
    theta, slope = newton(torch.where(good, theta, torch.zeros_like(theta)))
    valid = at_centre | (good & (slope > 0) & (theta.cos() > _FISHEYE_LIMIT_COS))
    lateral = torch.where(at_centre, torch.ones_like(theta), theta.sin() / radius)
    z = torch.where(at_centre, torch.ones_like(theta), theta.cos())
    rays = torch.cat([target * lateral[..., None], z[..., None]], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), valid)
