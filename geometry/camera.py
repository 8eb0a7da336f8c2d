"""Cameras: intrinsics, lens distortion, projection and its inverse.

Conventions: OpenCV axes (x right, y down, z forward) and OpenCV's pixel grid, where (0, 0) is the centre of the
top-left pixel. `K` (…,3,3) has the third row (0, 0, 1). `distortion` (…,k) holds the coefficients of a `model`, a file
of `geometry.lenses` each:

    "radtan"           k1, k2, p1, p2[, k3[, k4, k5, k6[, s1, s2, s3, s4]]]    (k = 0, 2, 4, 5, 8, 12), OpenCV's order
    "fisheye"          k1, k2, k3, k4 of theta (1 + k1 theta^2 + …)             (k = 0 … 4), Kannala and Brandt's
    "eucm"             alpha, beta                                              (k = 0, 2)
    "double_sphere"    xi, alpha                                                (k = 0, 2)
    "division"         lambda                                                   (k = 0, 1)
    "fov"              omega                                                    (k = 0, 1)

None and k = 0 both mean an undistorted lens (for "fisheye" the equidistant one, else a pinhole). All leading dimensions
broadcast; everything is differentiable in every tensor argument.
"""

import torch
from torch import Tensor

from geometry import se3
from geometry.checks import (
    alike,
    check_tensors,
    check_tensors_or_none,
    shaped,
    untransformed,
    values,
    whole,
)
from geometry.lenses import (
    FISHEYE_LIMIT_COS,
    LENSES,
    Lens,
    Model,
    Rays,
    bearing_whitening,
    check_distortion,
    distort,
    equirectangular_pixels,
    equirectangular_rays,
)

__all__ = [
    "FISHEYE_LIMIT_COS",
    "Model",
    "Rays",
    "bearing_whitening",
    "distort",
    "equirectangular_pixels",
    "equirectangular_rays",
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


def matrix_from_intrinsics(intrinsics: Tensor) -> Tensor:
    """K of (fx, fy, cx, cy) in pixels. (…,4) -> (…,3,3)."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], -1).unflatten(-1, (3, 3))


def intrinsics_from_matrix(K: Tensor) -> Tensor:
    """(fx, fy, cx, cy) of K. (…,3,3) -> (…,4)."""
    return torch.stack([K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]], -1)


def _bent(distortion: Tensor, model: Model) -> Lens | None:
    """The lens, or None where it is but a pinhole."""
    lens = LENSES[model]
    return None if lens.pinhole and distortion.shape[-1] == 0 else lens


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
    if lens := _bent(distortion, model):
        return _apply_K(lens.image(points_camera, distortion), K)
    # at depth zero that of depth one: whoever puts such a point aside by a `where` must not have NaN in the gradient
    xy, z = points_camera.tensor_split((2,), -1)
    return _apply_K(xy / torch.where(z == 0, 1.0, z), K)


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

    >>> project(torch.zeros(1, 3), se3.from_rotvec_t(torch.tensor([0.0, 0, 0, 0, 0, 4])), K)
    tensor([[320., 240.]])
    """
    distortion = _checked(K, distortion, model, world_to_camera, points3d=(points3d, "…,N,3"))
    return _pixels(se3.transform(world_to_camera, points3d), K, distortion, model)


def in_front(points_camera: Tensor, distortion: Tensor | None = None, *, model: Model = "radtan") -> Tensor:
    """Whether the camera model can see a point. (…,N,3), distortion (…,k) or None -> bool (…,N).

    z > 0 for "radtan" and every pinhole, within 174 degrees of the axis for "fisheye". What the other lenses see, ahead
    or behind, follows from their coefficients: rays with an image, farther out than that of any smaller angle.
    """
    points_camera = points_camera.detach()
    distortion = points_camera.new_zeros(0) if distortion is None else distortion.detach()
    if lens := _bent(distortion, model):
        return lens.sees(points_camera, distortion)
    z = points_camera[..., 2]
    return z > torch.finfo(z.dtype).eps * torch.linalg.vector_norm(points_camera, dim=-1)


def projection_jacobian(points_camera: Tensor, K: Tensor, distortion: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Pixels (…,N,2) and their derivatives (…,N,2,3) with respect to the point in the camera frame, in closed form.

    Like the curvature, they are views of tensors whose last dimension is N: so are fast to compute with.
    """
    lens = _bent(distortion, model)
    if lens is None:
        return _pinhole_jacobian(points_camera, K)
    image, rows = lens.slopes(points_camera, distortion)
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
    covector = covector @ K[..., :2, :2]
    lens = _bent(distortion, model)
    if lens is None:
        return _pinhole_curvature(points_camera, covector)
    xx, xy, xz, yy, yz, zz = lens.bend(points_camera, distortion, covector)
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

    >>> unproject(torch.tensor([[320.0, 240.0]]), K).directions
    tensor([[0., 0., 1.]])
    """
    distortion = _checked(K, distortion, model, points2d=(points2d, "…,N,2"))
    whole("max_steps", max_steps, 1)
    return rays_of(points2d, K, distortion, model, max_steps)


def rays_of(points2d: Tensor, K: Tensor, distortion: Tensor, model: Model, max_steps: int = 16) -> Rays:
    """`unproject` of what has been checked, inside solvers."""
    (a, b), (c, d) = (row.unbind(-1) for row in K[..., None, :2, :2].unbind(-2))
    u, v = (points2d - K[..., None, :2, 2]).unbind(-1)
    image = torch.stack([d * u - b * v, a * v - c * u], -1) / (a * d - b * c)[..., None]
    if lens := _bent(distortion, model):
        return lens.rays(image, distortion, max_steps, 1e-6 if points2d.dtype == torch.float64 else 1e-4)
    rays = torch.cat([image, torch.ones_like(image[..., :1])], -1)
    return Rays(rays / rays.norm(dim=-1, keepdim=True), torch.isfinite(image).all(-1))


def _checked(
    K: Tensor,
    distortion: Tensor | None,
    model: str,
    world_to_camera: Tensor | None = None,
    **points: tuple[Tensor, str],
) -> Tensor:
    """The distortion, (0,) for None, after ValueErrors of a formula that takes any leading dimensions.

    points: one tensor and its shape. K and poses are looked at where no transform is open and no graph drawn: within
    these the formula is a part of a residual. A pose with a NaN, which says that there is none, passes.
    """
    if model == "ray":
        raise ValueError(
            "model must be that of a camera with pixels, got 'ray': of a bearing the ray is its direction R X + t"
        )
    check_tensors(**{name: value for name, (value, _) in points.items()}, K=K)
    check_tensors_or_none(world_to_camera=world_to_camera, distortion=distortion)
    ((value, shape),) = points.values()
    fit = K.shape[-2:] == (3, 3) and (world_to_camera is None or world_to_camera.shape[-2:] == (4, 4))
    if not (fit and value.ndim > 1 and value.shape[-1] == int(shape[-1])):  # which one is wrong takes longer to say
        shaped(**points, world_to_camera=(world_to_camera, "…,4,4"), K=(K, "…,3,3"))
    if not torch.is_autocast_enabled(K.device.type):
        first = {name: value for name, (value, _) in points.items()}
        alike(**first, world_to_camera=world_to_camera, K=K, distortion=distortion)
    distortion = K.new_zeros(0) if distortion is None else distortion
    check_distortion(distortion, model)
    if not torch.compiler.is_compiling() and untransformed():
        values(world_to_camera=(world_to_camera, "pose or NaN"), K=(K, "camera"))
    return distortion
