"""The lenses of closed form both ways: their published formulas, what they see, and what they are to each other."""

import math

import pytest
import torch
from torch import Tensor

from geometry import project, unproject
from geometry.camera import Model, in_front, project_camera_frame
from geometry.lenses import LENSES
from tests.numbers import close

EYE = torch.eye(3, dtype=torch.float64)
QUOTIENTS: list[Model] = ["eucm", "double_sphere", "division"]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def directions(*shape: int, seed: int = 0) -> Tensor:
    """Points all around the camera."""
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_lens(model: Model, g: torch.Generator) -> Tensor:
    """Coefficients as the papers allow them, barrels and pincushions."""
    a, b = torch.rand(2, generator=g, dtype=torch.float64)
    return {"eucm": [a, 0.2 + 2 * b], "double_sphere": [1.8 * a - 0.9, b], "division": [1.5 * a - 1]}[model]  # type: ignore


def published(model: Model, c: list[float], p: list[float]) -> tuple[list[float], bool]:
    """Image of a point, and whether it has one, as Usenko, Demmel and Cremers 2018 and Fitzgibbon 2001 say it."""
    x, y, z = p
    if model == "eucm":
        alpha, beta = c
        d = math.sqrt(beta * (x * x + y * y) + z * z)
        w = alpha / (1 - alpha) if alpha <= 0.5 else (1 - alpha) / alpha
        scale = alpha * d + (1 - alpha) * z
        return [x / scale, y / scale], z > -w * d
    if model == "double_sphere":
        xi, alpha = c
        d1 = math.sqrt(x * x + y * y + z * z)
        d2 = math.sqrt(x * x + y * y + (xi * d1 + z) ** 2)
        w1 = alpha / (1 - alpha) if alpha <= 0.5 else (1 - alpha) / alpha
        scale = alpha * d2 + (1 - alpha) * (xi * d1 + z)
        # the unified model's bound on the shifted point; that of the paper on z is another, where scale < 0 may be
        return [x / scale, y / scale], z + xi * d1 > -w1 * d2 and d1 + xi * z > 0
    # the ray (u, v, 1 + lambda r^2) along p: of the two roots r of lambda rho r^2 - z r + rho = 0 that next to the axis
    (bend,), rho = c, math.hypot(x, y)
    square = z * z - 4 * bend * rho * rho
    if square < 0 or (bend >= 0 and z <= 0):
        return [0.0, 0.0], False
    roots = [(z + sign * math.sqrt(square)) / (2 * bend * rho) for sign in (1, -1)]
    r = min(root for root in roots if root > 0)
    return [r * x / rho, r * y / rho], True


@pytest.mark.parametrize("model", QUOTIENTS)
def test_the_published_formulas(model: Model) -> None:
    g = torch.Generator().manual_seed(3)
    for i in range(20):
        c, p = torch.stack(random_lens(model, g)), directions(30, seed=i)  # type: ignore[arg-type]
        wanted = [published(model, c.tolist(), point) for point in p.tolist()]
        seen = torch.tensor([there for _, there in wanted])
        assert torch.equal(in_front(p, c, model=model), seen)
        pixels = project_camera_frame(p, EYE, c, model=model)
        expected = torch.tensor([image for image, _ in wanted], dtype=torch.float64)
        close(pixels[seen], expected[seen], 1e-11 * max(1, expected[seen].abs().max().item()))


@pytest.mark.parametrize("model", QUOTIENTS)
def test_it_sees_as_far_as_images_move_outwards(model: Model) -> None:
    """No ray beyond has an image of its own, and every one within comes back, from ahead and from behind."""
    theta = torch.linspace(1e-3, math.pi - 1e-3, 2000, dtype=torch.float64)
    p = torch.stack([0.6 * theta.sin(), 0.8 * theta.sin(), theta.cos()], -1)
    g, behind = torch.Generator().manual_seed(4), 0
    for _ in range(40):
        c = torch.stack(random_lens(model, g))  # type: ignore[arg-type]
        pixels = project_camera_frame(p, EYE, c, model=model)
        radius = pixels.norm(dim=-1) * (pixels[:, 0] / p[:, 0]).sign()
        grows = torch.cat([radius[:1] > 0, (radius.diff() > 0) & (radius[1:] > 0)])
        if model == "division" and c > 0:
            grows &= p[:, 2] > 2 * c.sqrt() * theta.sin()
        count = int(grows.to(torch.uint8).argmin()) if not grows.all() else len(grows)
        seen = in_front(p, c, model=model)
        assert abs(int(seen.sum()) - count) <= 1
        assert seen[: int(seen.sum())].all()
        rays = unproject(pixels, EYE, c, model=model)
        inside = seen & (theta < theta[int(seen.sum()) - 1] - 0.01)
        assert rays.valid[inside].all()
        close(rays.directions[inside], p[inside], 1e-9)
        # whatever pixel: a ray that shows there, or none
        there = rays.valid & seen
        close(project_camera_frame(rays.directions, EYE, c, model=model)[there], pixels[there], 1e-6)
        behind += int((p[inside, 2] < -0.2).any())
    assert behind > 5


def test_pixels_beyond_the_image_of_all_rays_have_none() -> None:
    """With alpha > 1/2 the images of all rays lie within 1 / sqrt(beta (2 alpha - 1)), and with lambda > 0 within
    1 / sqrt(lambda)."""
    for model, c, end in (("eucm", (0.7, 1.3), (1.3 * 0.4) ** -0.5), ("division", (0.2,), 0.2**-0.5)):
        radius = end * numbers(0.5, 0.999, 1.001, 2.0, 50.0)
        pixels = torch.stack([0.6 * radius, -0.8 * radius], -1)
        pixels = torch.cat([pixels, numbers(math.nan, 0, math.inf, 0).view(2, 2)]).requires_grad_()
        rays = unproject(pixels, EYE, numbers(*c), model=model)  # type: ignore[arg-type]
        assert rays.valid.tolist() == [True, True, False, False, False, False, False]
        (gradient,) = torch.autograd.grad(rays.directions[:2].sum(), pixels)
        assert torch.isfinite(gradient[:2]).all()
        assert (gradient[2:] == 0).all()


def test_what_the_lenses_are_to_each_other() -> None:
    p = directions(200)
    for a, c, b, d in (
        ("division", (-0.3,), "eucm", (0.5, 1.2)),
        ("division", (0.1,), "eucm", (0.5, -0.4)),
        ("double_sphere", (0.0, 0.7), "eucm", (0.7, 1.0)),
        ("eucm", (0.0, 2.0), "radtan", ()),
        ("double_sphere", (0.0, 0.0), "radtan", ()),
        ("division", (0.0,), "radtan", ()),
    ):
        seen = in_front(p, numbers(*c), model=a)  # type: ignore[arg-type]
        assert torch.equal(seen, in_front(p, numbers(*d), model=b))  # type: ignore[arg-type]
        images = [project_camera_frame(p[seen], EYE, numbers(*k), model=m) for m, k in ((a, c), (b, d))]  # type: ignore
        close(images[0], images[1], 1e-10)


def test_a_lens_says_what_it_takes() -> None:
    for model, lens in LENSES.items():
        assert max(lens.counts) == len(lens.names) == len(lens.powers) == len(lens.start) - 1, model
    p = directions(3)
    with pytest.raises(ValueError, match=r"distortion must have one of \(0, 2\) coefficients for model='eucm'"):
        project(p, torch.eye(4, dtype=torch.float64), EYE, numbers(0.5), model="eucm")
    with pytest.raises(ValueError, match="model must be that of a camera with pixels, got 'ray'"):
        project(p, torch.eye(4, dtype=torch.float64), EYE, model="ray")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model must be that of a camera with pixels, got 'ray'"):
        unproject(p[:, :2], EYE, model="ray")  # type: ignore[arg-type]
