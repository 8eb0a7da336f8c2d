import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, jacrev, vmap

from geometry import project, se3, unproject
from geometry.camera import (
    Model,
    in_front,
    intrinsics_from_matrix,
    matrix_from_intrinsics,
    project_camera_frame,
    projection_curvature,
    projection_jacobian,
)
from geometry.lenses import fisheye, radtan
from geometry.lenses.polynomials import even_polynomial, stretch
from tests.numbers import close

K = torch.tensor([[810.0, 0, 330], [0, 790, 235], [0, 0, 1]], dtype=torch.float64)
COEFFICIENTS = [-0.28, 0.11, 0.0011, -0.0015, -0.02, 0.03, -0.01, 0.004, 0.002, -0.001, 0.0015, 0.0007]
RADIAL = torch.tensor([1.0, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0], dtype=torch.float64)
FISHEYE = [0.06, -0.012, 0.004, -0.001]
# of models that look behind
WIDE = {"fisheye": FISHEYE, "eucm": [0.61, 1.1], "double_sphere": [-0.2, 0.58], "division": [-0.3], "fov": [1.1]}
LENSES: list[tuple[Model, int]] = [
    ("radtan", 0), ("radtan", 2), ("radtan", 4), ("radtan", 5), ("radtan", 8), ("radtan", 12),
    ("fisheye", 0), ("fisheye", 4), ("eucm", 2), ("double_sphere", 2), ("division", 1), ("fov", 1),
]  # fmt: skip


def lens(model: Model, k: int) -> Tensor:
    return torch.tensor((COEFFICIENTS if model == "radtan" else WIDE[model])[:k], dtype=torch.float64)


def points_ahead(*shape: int, spread: float = 0.6, seed: int = 0) -> Tensor:
    """Points in the camera frame, 2 to 6 units ahead, X/Z and Y/Z within +-spread. (…,3)"""
    g = torch.Generator().manual_seed(seed)
    xy = spread * (2 * torch.rand(*shape, 2, generator=g, dtype=torch.float64) - 1)
    z = 2 + 4 * torch.rand(*shape, 1, generator=g, dtype=torch.float64)
    return torch.cat([xy * z, z], -1)


def some_pose() -> Tensor:
    return se3.from_rotvec_t(torch.tensor([0.3, -0.5, 0.2, 0.1, -0.2, 0.4], dtype=torch.float64))


@pytest.mark.parametrize("k", [0, 4, 5, 8, 12])
def test_radtan_is_opencv(k: int) -> None:
    pose = some_pose()
    points3d = se3.transform(se3.inverse(pose), points_ahead(30))
    six = se3.rotvec_t(pose).numpy()
    expected, _ = cv2.projectPoints(
        points3d.numpy(), six[:3], six[3:], K.numpy(), lens("radtan", k).numpy() if k else None
    )
    close(project(points3d, pose, K, lens("radtan", k)), torch.from_numpy(expected[:, 0]), 1e-10)


def test_fisheye_is_opencv() -> None:
    pose = some_pose()
    points3d = se3.transform(se3.inverse(pose), points_ahead(30, spread=3.0))  # up to 77 degrees off the axis
    six = se3.rotvec_t(pose).numpy()
    expected, _ = cv2.fisheye.projectPoints(points3d.numpy()[:, None], six[:3], six[3:], K.numpy(), np.array(FISHEYE))
    close(project(points3d, pose, K, lens("fisheye", 4), model="fisheye"), torch.from_numpy(expected[:, 0]), 1e-9)


def test_fisheye_beyond_90_degrees_follows_theta() -> None:
    theta = torch.tensor([1e-9, 0.009, 0.0101, 1.0, math.pi / 2, 1.8, 2.5, 3.0], dtype=torch.float64)
    phi = torch.linspace(0.0, 6.0, 8, dtype=torch.float64)
    directions = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], -1)
    k1, k2, k3, k4 = FISHEYE
    radius = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    expected = torch.stack([radius * phi.cos() * 810 + 330, radius * phi.sin() * 790 + 235], -1)
    distances = torch.linspace(0.1, 50, 8, dtype=torch.float64)[:, None]  # the radius has no say
    found = project_camera_frame(distances * directions, K, lens("fisheye", 4), model="fisheye")
    close(found, expected, 1e-10)


@pytest.mark.parametrize(("model", "k"), LENSES)
def test_none_and_zero_coefficients_are_the_plain_lens(model: Model, k: int) -> None:
    p = points_ahead(10)
    plain = project_camera_frame(p, K, None, model=model)
    close(project_camera_frame(p, K, torch.zeros(k, dtype=torch.float64), model=model), plain, 1e-11)
    if model != "fisheye":
        close(plain, p[:, :2] / p[:, 2:] * torch.tensor([810.0, 790.0]) + torch.tensor([330.0, 235.0]), 1e-11)


def test_leading_dimensions_broadcast() -> None:
    p, distortion = points_ahead(2, 3, 7), lens("radtan", 5)
    poses = torch.stack([some_pose(), torch.eye(4, dtype=torch.float64)])[:, None]  # (2,1,4,4)
    Ks = K * torch.tensor([1.0, 1.1, 1.2], dtype=torch.float64)[:, None, None]
    Ks[:, 2, 2] = 1
    found = project(p, poses, Ks, distortion.expand(3, 5))
    for i in range(2):
        for j in range(3):
            close(found[i, j], project(p[i, j], poses[i, 0], Ks[j], distortion), 1e-11)
    rays = unproject(found, Ks, distortion)
    for j in range(3):
        close(rays.directions[1, j], unproject(found[1, j], Ks[j], distortion).directions, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "k"), LENSES)
def test_gradients_of_project(model: Model, k: int) -> None:
    pose, points3d = some_pose(), points_ahead(4)
    rotvec_t = se3.rotvec_t(pose)

    def f(p: Tensor, x: Tensor, intrinsics: Tensor, distortion: Tensor) -> Tensor:
        return project(p, se3.from_rotvec_t(x), matrix_from_intrinsics(intrinsics), distortion, model=model)

    inputs = [a.clone().requires_grad_() for a in (points3d, rotvec_t, intrinsics_from_matrix(K), lens(model, k))]
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs, rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e-9, 1e-5, 0.0099, 0.0101])
def test_fisheye_gradient_near_the_axis(offset: float) -> None:
    """theta / r is 0/0 on the axis; a series takes over below r/z = 0.01."""
    p = torch.tensor([[offset, -0.5 * offset, 2.0]], dtype=torch.float64, requires_grad=True)
    distortion = lens("fisheye", 4).requires_grad_()
    f = lambda p, d: project_camera_frame(p, K, d, model="fisheye")
    assert torch.autograd.gradcheck(f, (p, distortion))
    jacobian = jacrev(f)(p.detach(), distortion.detach())[0, :, 0]
    if offset < 1e-8:  # the equidistant lens is a pinhole to first order
        close(jacobian, torch.tensor([[405.0, 0, 0], [0, 395, 0]], dtype=torch.float64), 1e-5)


def points_everywhere(model: Model) -> Tensor:
    """Points on and near the axis, in the field of view, and for wide lenses up to where they see, or 174 degrees."""
    ahead = points_ahead(6)
    theta = torch.tensor([0.0, 1e-12, 1e-9, 1e-6, 1e-4, 0.003, 0.0099, 0.00999999, 0.01, 0.0101, 0.03, 0.1])
    if model != "radtan":
        theta = torch.cat([theta, torch.tensor([1.0, math.pi / 2, 1.8, 2.2, 2.5, 3.0, 3.04])])
    theta, phi = theta.double(), torch.linspace(0.2, 6.0, len(theta), dtype=torch.float64)
    around = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], -1)
    points = torch.cat([ahead, 3.0 * around])
    return points[in_front(points, lens(model, 12), model=model)][None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("model", "k"), LENSES)
def test_projection_jacobian_and_curvature_are_the_derivatives(model: Model, k: int, dtype: torch.dtype) -> None:
    """Closed forms against automatic differentiation in double precision, in parts of the largest entry of a point."""
    single = points_everywhere(model).to(dtype)
    p, distortion = single.double(), lens(model, k)[None].to(dtype)
    skewed = K.clone()
    skewed[0, 1] = 3.0
    covector = torch.randn(p[..., :2].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    f = lambda q: project_camera_frame(q[None], skewed, distortion[0].double(), model=model)[0]
    bent = vmap(lambda q, c: hessian(lambda q: (c * f(q)).sum())(q))(p[0], covector[0].double())
    wanted = vmap(f)(p[0]), vmap(jacrev(f))(p[0]), bent
    pixels, jacobian = projection_jacobian(single, skewed[None].to(dtype), distortion, model)
    found = pixels, jacobian, projection_curvature(single, skewed[None].to(dtype), distortion, model, covector)
    eps = torch.finfo(dtype).eps
    # a curvature near the axis is a difference of numbers up to a hundred times as large
    for a, b, digits in zip(found, wanted, (8, 16, 500), strict=True):
        assert a.dtype == dtype
        error = (a[0].double() - b).flatten(1).abs().amax(1) / b.flatten(1).abs().amax(1)
        assert error.max() < digits * eps


@pytest.mark.slow
@pytest.mark.parametrize(("model", "k"), LENSES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**20), shape=st.sampled_from([(1,), (5,), (2, 3), (2, 0)]))
def test_unproject_inverts_project(model: Model, k: int, seed: int, shape: tuple[int, ...]) -> None:
    p = points_ahead(*shape, spread=0.6 if model == "radtan" else 3.0, seed=seed)
    rays = unproject(project_camera_frame(p, K, lens(model, k), model=model), K, lens(model, k), model=model)
    assert rays.valid.all()
    close(rays.directions, p / p.norm(dim=-1, keepdim=True), 1e-12)


def test_unproject_inverts_a_fisheye_of_more_than_a_half_sphere() -> None:
    theta = torch.linspace(0, 2.9, 30, dtype=torch.float64)
    directions = torch.stack([theta.sin() * 0.6, theta.sin() * 0.8, theta.cos()], -1)
    distortion = torch.tensor([0.02, 0.001], dtype=torch.float64)
    rays = unproject(project_camera_frame(directions, K, distortion, model="fisheye"), K, distortion, model="fisheye")
    assert rays.valid.all()
    close(rays.directions, directions, 1e-12)


@pytest.mark.parametrize("k", [4, 5, 8, 12])
def test_unproject_is_undistort_points(k: int) -> None:
    pixels = project_camera_frame(points_ahead(30, spread=0.4), K, lens("radtan", k))
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-14)
    expected = cv2.undistortPoints(pixels.numpy(), K.numpy(), lens("radtan", k).numpy(), criteria=criteria)
    rays = unproject(pixels, K, lens("radtan", k)).directions
    close(rays[:, :2] / rays[:, 2:], torch.from_numpy(expected[:, 0]), 1e-8)


def test_unproject_is_fisheye_undistort_points() -> None:
    pixels = project_camera_frame(points_ahead(30, spread=1.5), K, lens("fisheye", 4), model="fisheye")
    expected = cv2.fisheye.undistortPoints(pixels.numpy()[:, None], K.numpy(), np.array(FISHEYE))
    rays = unproject(pixels, K, lens("fisheye", 4), model="fisheye").directions
    close(rays[:, :2] / rays[:, 2:], torch.from_numpy(expected[:, 0]), 1e-6)  # OpenCV stops at 1e-8 rad


@pytest.mark.slow
@pytest.mark.parametrize(("model", "k"), LENSES)
def test_gradients_of_unproject(model: Model, k: int) -> None:
    pixels = project_camera_frame(points_ahead(2), K, lens(model, k), model=model)
    centre = torch.tensor([[330.0, 235.0]], dtype=torch.float64)  # the ray along the axis
    pixels = torch.cat([pixels, centre])

    def f(pixels: Tensor, intrinsics: Tensor, distortion: Tensor) -> Tensor:
        return unproject(pixels, matrix_from_intrinsics(intrinsics), distortion, model=model, max_steps=8).directions

    inputs = [a.clone().requires_grad_() for a in (pixels, intrinsics_from_matrix(K), lens(model, k))]
    assert torch.autograd.gradcheck(f, inputs, eps=1e-5)


SPREAD = {"radtan": [0.8, 0.4, 0, 0, 0.1, 0.4, 0.2, 0.05, 0, 0, 0, 0], "fisheye": [0.3, 0.1, 0.03, 0.01]}


@pytest.mark.parametrize(
    ("model", "k", "tangential"),
    [("radtan", 2, 0), ("radtan", 5, 0), ("radtan", 5, 0.003), ("radtan", 8, 0), ("fisheye", 4, 0)],
)
def test_every_ray_within_the_first_fold_comes_back_and_no_other(model: Model, k: int, tangential: float) -> None:
    """Random lenses, whose radius grows throughout, or up to a fold, beyond which the pixels are those of rays within
    or of none. Newton's method alone loses a tenth of the rays, and returns others for some.

    With tangential terms the radius shall grow by a tenth of what it does on the axis: where it all but stops, these
    terms are no small change any more.
    """
    g, lenses, end = torch.Generator().manual_seed(k), 400, 1.8 if model == "radtan" else 3.0
    distortion = torch.tensor(SPREAD[model][:k], dtype=torch.float64) * torch.randn(lenses, k, generator=g).double()
    if tangential:
        distortion[:, 2:4] = tangential * torch.randn(lenses, 2, generator=g).double()
    phi = 2 * math.pi * torch.rand(lenses, 1, generator=g).double()
    radius = torch.linspace(0, end, 181, dtype=torch.float64).expand(lenses, -1)
    away, ahead = (radius, torch.ones_like(radius)) if model == "radtan" else (radius.sin(), radius.cos())
    points = torch.stack([away * phi.cos(), away * phi.sin(), ahead], -1)
    eye = torch.eye(3, dtype=torch.float64)
    pixels, slopes = projection_jacobian(points, eye, distortion, model)
    # how pixels move as the ray moves away from the axis, and about it
    out = torch.stack([ahead * phi.cos(), ahead * phi.sin(), -away if model == "fisheye" else 0 * away], -1)
    about = torch.stack([-phi.sin(), phi.cos(), 0 * phi], -1).expand_as(out)
    moved = slopes @ torch.stack([out, about], -1)
    folded = (torch.linalg.det(moved) <= 0) | ((moved[..., 0] * pixels).sum(-1) <= 0)
    if model == "radtan":
        image, across = projection_jacobian(points, eye, distortion * RADIAL[:k], model)
        grows = ((across @ out[..., None])[..., 0] * image).sum(-1) / image.norm(dim=-1)
        folded |= grows <= (0.1 if tangential else 0)
    folded[:, 0] = False
    first = torch.where(folded.any(1), folded.to(torch.uint8).argmax(1) - 1, 181)[:, None]
    rays = unproject(pixels, eye, distortion, model=model)
    right = (rays.directions - points / points.norm(dim=-1, keepdim=True)).norm(dim=-1) < 1e-6
    inside, beyond = torch.arange(181) < first, torch.arange(181) > first + 1
    assert 50 < (first[:, 0] == 181).sum() < 300
    assert (rays.valid & right)[inside].all()
    if not tangential:
        assert not (rays.valid & right)[beyond].any()


def test_unproject_flags_the_folded_branch_and_unreachable_pixels() -> None:
    """With k1 = -0.3 the radius r (1 - 0.3 r^2) turns back at r = 1.054, where it is 0.7027 focal lengths."""
    distortion = torch.tensor([-0.3, 0.0], dtype=torch.float64)
    r = torch.tensor([0.0, 0.5, 1.0, 1.05, 1.06, 1.3, 1.7], dtype=torch.float64)
    normalised = torch.stack([0.6 * r, 0.8 * r], -1)
    points = torch.cat([normalised, torch.ones(7, 1, dtype=torch.float64)], -1)
    pixels = project_camera_frame(points, K, distortion)
    rays = unproject(pixels, K, distortion)
    # never a valid ray that is another one's: a pixel of the folded branch gives the ray of the first branch or none
    again = project_camera_frame(rays.directions, K, distortion)
    close(again[rays.valid], pixels[rays.valid], 1e-6)
    assert rays.valid[:3].all()
    inside = rays.directions[rays.valid]
    assert (inside[:, :2].norm(dim=-1) / inside[:, 2] < 1 / math.sqrt(0.9)).all()
    # Newton ends many of these at r < -1.8, where the image is turned by half a turn and the determinant is positive
    radius = torch.linspace(0.705, 4, 300, dtype=torch.float64)
    beyond = K[:2, 2] + torch.stack([0.6 * radius, 0.8 * radius], -1) * K.diagonal()[:2]
    assert not unproject(beyond, K, distortion).valid.any()


def test_unproject_flags_unreachable_fisheye_pixels() -> None:
    distortion = torch.tensor([-0.1], dtype=torch.float64)  # theta (1 - 0.1 theta^2) reaches 1.217 at 1.826 rad
    radii = torch.tensor([0.0, 0.5, 1.2, 1.22, 2.0, 9.0], dtype=torch.float64)
    pixels = K[:2, 2] + radii[:, None] * torch.tensor([0.6, -0.8], dtype=torch.float64) * K.diagonal()[:2]
    rays = unproject(pixels, K, distortion, model="fisheye")
    assert rays.valid.tolist() == [True, True, True, False, False, False]
    theta = torch.acos(rays.directions[:3, 2])
    close(theta * (1 - 0.1 * theta**2), radii[:3], 1e-10)
    # the equidistant lens ends before the pole, at radius pi
    ends = K[:2, 2] + torch.tensor([[3.0, 0], [3.13, 0], [3.2, 0]], dtype=torch.float64) * K.diagonal()[:2]
    assert unproject(ends, K, None, model="fisheye").valid.tolist() == [True, False, False]


def test_an_invalid_pixel_leaves_its_neighbours_and_their_gradients_alone() -> None:
    distortion = torch.tensor([-0.3, 0.0], dtype=torch.float64)
    good = project_camera_frame(points_ahead(3), K, distortion)
    bad = torch.tensor([[9000.0, 9000], [330, -1500], [-1e6, 0]], dtype=torch.float64)
    nothing = torch.tensor([[torch.inf, 0], [0, torch.nan]], dtype=torch.float64)
    assert not unproject(nothing, K, distortion).valid.any()
    assert not unproject(nothing, K).valid.any()
    assert not unproject(nothing, K, model="fisheye").valid.any()
    grads = []
    for pixels in (good, torch.cat([good, bad])):
        pixels = pixels.clone().requires_grad_()
        d = distortion.clone().requires_grad_()
        rays = unproject(pixels, K, d)
        assert rays.valid.tolist() == [True] * 3 + [False] * (len(pixels) - 3)
        rays.directions[:3].square().cumsum(0).sum().backward()
        grads.append((pixels.grad[:3], d.grad))  # type: ignore[index]
    close(grads[0][0], grads[1][0], 1e-15)
    close(grads[0][1], grads[1][1], 1e-15)


def test_in_front() -> None:
    p = torch.tensor(
        [[0.0, 0, 1], [5, 0, 1e-3], [0, 0, 0], [1, 0, 0], [1, 0, -1], [0, 0, -1], [1, 0, -8.0], [1, 0, -20]]
    )
    assert in_front(p).tolist() == [True, True, False, False, False, False, False, False]
    assert in_front(p, model="fisheye").tolist() == [True, True, False, True, True, False, True, False]


@pytest.mark.parametrize(("model", "k"), LENSES)
def test_what_cannot_be_seen_does_not_spoil_what_can(model: Model, k: int) -> None:
    """Points at depth zero, in the camera and on the axis behind it, put aside by a `where`, have gradient zero."""
    points = torch.tensor([[0.3, -0.2, 2.0], [0.3, 0.2, 0.0], [0.0, 0, 0], [0.0, 0, -2]], dtype=torch.float64)
    inputs = [a.requires_grad_() for a in (points, torch.eye(4).double(), K.clone(), lens(model, k))]
    pixels = project(*inputs, model=model)
    seen = torch.tensor([[True], [False], [False], [False]])
    assert torch.isfinite(pixels).all()
    gradients = torch.autograd.grad(torch.where(seen, pixels, 0).sum(), inputs[:3])
    alone = torch.autograd.grad(project(points[:1], *inputs[1:], model=model).sum(), inputs[:3])
    for found, wanted in zip(gradients, alone, strict=True):
        assert torch.equal(found, wanted)


def test_intrinsics_and_matrix() -> None:
    intrinsics = torch.tensor([[800.0, 780, 320, 240], [500, 510, 100, 90]])
    matrix = matrix_from_intrinsics(intrinsics)
    assert matrix[1].tolist() == [[500, 0, 100], [0, 510, 90], [0, 0, 1]]
    assert torch.equal(intrinsics_from_matrix(matrix), intrinsics)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_input(dtype: torch.dtype) -> None:
    p = points_ahead(3).to(dtype)
    for model, k in LENSES:
        pixels = project_camera_frame(p, K.to(dtype), lens(model, k).to(dtype), model=model)
        rays = unproject(pixels, K.to(dtype), lens(model, k).to(dtype), model=model)
        assert pixels.dtype == rays.directions.dtype == dtype
        assert rays.valid.all()
        close(rays.directions, p / p.norm(dim=-1, keepdim=True), 1e-12 if dtype == torch.float64 else 1e-5)


def test_errors_name_the_argument() -> None:
    p = points_ahead(3)
    with pytest.raises(ValueError, match=r"distortion must have .*\(3,\)"):
        project(p, some_pose(), K, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"distortion must have .*fisheye.*\(5,\)"):
        project(p, some_pose(), K, torch.zeros(5, dtype=torch.float64), model="fisheye")
    with pytest.raises(ValueError, match=r"model must be one of .*'pinhole'"):
        project(p, some_pose(), K, model="pinhole")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points2d must have shape .*got \(3, 3\)"):
        unproject(p, K)
    with pytest.raises(ValueError, match="distortion"):
        unproject(p[:, :2], K, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(("model", "k"), [("radtan", 2), ("radtan", 8), ("fisheye", 4)])
def test_the_radial_inverse_does_not_depend_on_the_place_in_a_batch(model: Model, k: int) -> None:
    # powers of the last numbers of a tensor, which fill no vector, are rounded otherwise
    B, N = 300, 5
    g = torch.Generator().manual_seed(1)
    distortion = 0.3 * torch.randn(B, k, generator=g, dtype=torch.float64)
    r2 = torch.rand(B, N, generator=g, dtype=torch.float64)

    def inverse(c: Tensor, r2: Tensor) -> Tensor:
        def factor(t: Tensor) -> tuple[Tensor, ...]:
            return even_polynomial(c, t, 1) if model == "fisheye" else radtan.radial_factor(c, t, 1)

        return stretch(factor, r2, (fisheye if model == "fisheye" else radtan).first_fold(c), 4)

    alone = torch.cat([inverse(distortion[i : i + 1], r2[i : i + 1]) for i in range(B)])
    assert torch.equal(alone, inverse(distortion, r2))
