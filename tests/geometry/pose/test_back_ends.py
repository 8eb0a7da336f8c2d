"""The two back ends of `pnp` keep one contract: the same status, cost and pose for every problem, origin and unit."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from geometry import PoseSolution, Status, barron, cauchy, geman_mcclure, huber, pnp, project, se3
from geometry.camera import Model
from geometry.pose import compiled, tensors
from geometry.pose.data import Options, prepare
from geometry.robust import RobustKernel
from tests.numbers import DOUBLE, generator

KERNELS: dict[str, RobustKernel | None] = {
    "none": None,
    "huber": huber(3.0),
    "cauchy": cauchy(3.0),
    "geman_mcclure": geman_mcclure(3.0),
    "barron": barron(-1.0, 3.0),
}
LENSES: dict[str, tuple[Model, tuple[float, ...]]] = {
    "none": ("radtan", ()),
    "radtan": ("radtan", (-0.28, 0.11, 0.0011, -0.0015, -0.02)),
    "fisheye": ("fisheye", (0.06, -0.012, 0.004, -0.001)),
}
BACK_ENDS = {"compiled": compiled, "tensors": tensors}


class Problems(NamedTuple):
    """B views of N points, and the poses behind them."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    truth: Tensor
    model: Model = "radtan"


def problems(B: int, N: int, lens: str = "none", wrong: float = 0.0, noise: float = 1.0, seed: int = 0) -> Problems:
    """A share `wrong` of the pixels lies anywhere in the image, all others within the noise.

    A fisheye is amid the points: a quarter of them lies beside or behind it.
    """
    g = generator(seed)
    points3d = 2 * torch.rand(B, N, 3, generator=g, **DOUBLE) - 1
    (model, coefficients), fisheye = LENSES[lens], lens == "fisheye"
    ahead = torch.tensor([0.2, 0.1, 0.5] if fisheye else [0.0, 0.0, 6.0], **DOUBLE).expand(B, 3)
    truth = se3.from_rotvec_t(torch.cat([torch.randn(B, 3, generator=g, **DOUBLE), ahead], -1))
    K = torch.tensor(
        [[150.0 if fisheye else 800.0, 0, 320], [0, 150.0 if fisheye else 780.0, 240], [0, 0, 1]], **DOUBLE
    )
    distortion = torch.tensor(coefficients, **DOUBLE)
    points2d = project(points3d, truth, K, distortion, model=model) + noise * torch.randn(
        B, N, 2, generator=g, **DOUBLE
    )
    count = round(wrong * N)
    points2d[:, :count] = torch.rand(B, count, 2, generator=g, **DOUBLE) * torch.tensor([640.0, 480.0], **DOUBLE)
    return Problems(points2d, points3d, K, distortion, truth, model)


def solved(back_end: str, scene: Problems, options: Options | None = None, **arguments: Any) -> PoseSolution:
    """What `pnp` does, by one of the back ends."""
    options = (options or Options())._replace(model=scene.model)
    module, init = BACK_ENDS[back_end], arguments.get("init")
    data = prepare(*scene[:4], arguments.get("weights"), arguments.get("mask"), init=init, model=scene.model)
    data, second, ratio, fewest = module.prepared(data, init), None, None, 3  # type: ignore[attr-defined]
    if init is None:
        init, second, ratio = module.search(data.detached(), options)  # type: ignore[attr-defined]
        fewest = 4
    return PoseSolution(*module.solve(data, init, options, fewest), second, ratio)  # type: ignore[attr-defined]


def near(scene: Problems) -> Tensor:
    """Starts a few degrees off."""
    return se3.retract(scene.truth, 0.05 * torch.randn(len(scene.truth), 6, generator=generator(9), **DOUBLE))


def right(found: PoseSolution, scene: Problems) -> float:
    """Share of poses within a degree of the truth."""
    angle = se3.rotation_angle(found.x[:, :3, :3] @ scene.truth[:, :3, :3].mT)  # type: ignore[index]
    return (torch.rad2deg(angle) < 1).double().mean().item()


def assert_alike(scene: Problems, options: Options, agree: float, rounding: float, **arguments: Any) -> None:
    """In a share `agree` of the problems at least the statuses are equal, and so are costs and poses to `rounding`."""
    one, other = (solved(name, scene, options, **arguments) for name in BACK_ENDS)
    both = one.converged & other.converged
    assert (one.status == other.status).double().mean() >= agree
    close = (one.cost - other.cost).abs() <= rounding * other.cost + 1e-18
    assert (close | ~both).double().mean() >= agree
    together = both & close
    torch.testing.assert_close(one.x[together], other.x[together], rtol=0, atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("kernel", KERNELS)
def test_next_to_a_start(kernel: str, wrong: float, lens: str) -> None:
    """Next to the same start lies the same minimum, unless a step leads one of them over a ridge."""
    scene = problems(24, 20, lens, wrong)
    assert_alike(scene, Options(kernel=KERNELS[kernel], max_steps=200), 0.9 if wrong else 1.0, 1e-9, init=near(scene))


# Amid the points, the squares of gross errors are least where the camera meets a point: no minimum to agree about.
SOUGHT = [
    (kernel, lens, wrong)
    for wrong in (0.0, 0.3)
    for kernel in KERNELS
    for lens in (LENSES if kernel in ("none", "cauchy") else ["none"])
    if (kernel, lens, wrong) != ("none", "fisheye", 0.3)
]


@pytest.mark.parametrize(("kernel", "lens", "wrong"), SOUGHT)
def test_without_a_start(kernel: str, wrong: float, lens: str) -> None:
    scene = problems(24, 20, lens, wrong)
    assert_alike(scene, Options(kernel=KERNELS[kernel], max_steps=200), 0.9 if wrong else 1.0, 1e-9)


@pytest.mark.parametrize("N", [4, 5, 6, 9, 70, 150])
def test_without_a_start_for_few_points_and_for_many(N: int) -> None:
    """Four to six noisy points have several deep minima: the same one is found to be the lowest."""
    assert_alike(problems(24, N, noise=0.5), Options(), 0.95, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "wrong"), [("cauchy", 0.5), ("geman_mcclure", 0.5), ("geman_mcclure", 0.6)])
def test_as_many_poses_are_right_among_outliers(kernel: str, wrong: float) -> None:
    scene = problems(150, 40, wrong=wrong)
    shares = [right(solved(name, scene, Options(kernel=KERNELS[kernel])), scene) for name in BACK_ENDS]
    assert min(shares) > (0.97 if wrong == 0.5 else 0.92)
    assert abs(shares[0] - shares[1]) < 0.02


def test_a_kernel_of_the_user_is_as_good_among_outliers() -> None:
    scene = problems(40, 40, wrong=0.5)
    own = pnp(*scene[:3], kernel=lambda s: s / (1 + s / 9.0))
    assert right(own, scene) > 0.94


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_fisheye_is_as_good_among_outliers(back_end: str) -> None:
    scene = problems(40, 40, "fisheye", wrong=0.5)
    assert right(solved(back_end, scene, Options(kernel=KERNELS["geman_mcclure"])), scene) > 0.94


def turned(angle: float, offset: float = 0.0) -> Tensor:
    """The direction at an angle from the axis."""
    return torch.tensor([math.sin(angle), offset, math.cos(angle)], **DOUBLE)


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 0.1, 45.0, 89.9999999, 90.0, 135.0, 173.9])
def test_a_fisheye_is_the_same_at_every_angle(degrees: float) -> None:
    """On the axis, at its sides and behind: costs to 1e-12, poses and gradients to the rounding of the problem."""
    scene = problems(5, 8, "fisheye")
    seen = se3.transform(scene.truth, scene.points3d)
    seen[:, 0] = turned(math.radians(degrees))
    scene = scene._replace(points3d=se3.transform(se3.inverse(scene.truth), seen))
    exact = project(scene.points3d, scene.truth, scene.K, scene.distortion, model="fisheye")
    scene = scene._replace(points2d=exact + torch.randn(5, 8, 2, generator=generator(3), **DOUBLE))
    found = []
    for name in BACK_ENDS:
        leaves = [d.clone().requires_grad_() for d in scene[:4]]
        one = solved(name, scene._replace(**dict(zip(Problems._fields, leaves, strict=False))), init=scene.truth)
        assert one.converged.all()
        value = (one.x * torch.arange(16, **DOUBLE).view(4, 4)).sum()  # type: ignore[operator]
        found.append((one, torch.autograd.grad(value, leaves)))
    (one, gradients), (other, expected) = found
    torch.testing.assert_close(one.cost, other.cost, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-11)
    for g, e in zip(gradients, expected, strict=True):
        assert (g - e).norm() <= 1e-9 * e.norm()


@pytest.mark.parametrize("start", ["init", "global"])
def test_what_a_fisheye_cannot_see(start: str) -> None:
    """At 174.5 degrees it ends: a start that has a point there is none, and a pixel that shows one has no ray."""
    scene = problems(4, 8, "fisheye")
    seen = se3.transform(scene.truth, scene.points3d)
    seen[::2, 0] = turned(math.radians(174.5))
    scene = scene._replace(points3d=se3.transform(se3.inverse(scene.truth), seen))
    pixels = project(scene.points3d, scene.truth, scene.K, scene.distortion, model="fisheye")
    given = {"init": scene.truth} if start == "init" else {}
    one, other = (solved(name, scene._replace(points2d=pixels), **given) for name in BACK_ENDS)
    assert torch.equal(one.status, other.status)
    assert one.converged[1::2].all()
    assert not one.converged[::2].any() or start == "global"


DEGENERATE = ["collinear", "one point", "behind", "masked", "far plane"]


@pytest.mark.parametrize("start", ["init", "global"])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_what_is_degenerate(kind: str, start: str) -> None:
    scene = problems(6, 12)
    init, mask = near(scene), torch.ones(6, 12, dtype=torch.bool)
    if kind == "collinear":
        scene.points3d[::2] = torch.linspace(-1, 1, 12, **DOUBLE)[:, None] * torch.tensor([0.5, 0.3, 0.2], **DOUBLE)
        scene.points2d[::2] = project(scene.points3d, scene.truth, scene.K)[::2]
    if kind == "one point":
        scene.points3d[::2] = 0.3
    if kind == "behind":
        init[::2, 2, 3] = -6
    if kind == "masked":
        mask[::2, 2:] = False
    if kind == "far plane":
        scene.points3d[..., 2] = 0
        scene.truth[:, 2, 3], init = 40.0, scene.truth
        scene.points2d.copy_(project(scene.points3d, scene.truth, scene.K))
    arguments = {"mask": mask} | ({"init": init} if start == "init" else {})
    one, other = (solved(name, scene, **arguments) for name in BACK_ENDS)
    expected = {"behind": Status.INFEASIBLE, "masked": Status.TOO_FEW, "far plane": Status.CONVERGED}
    status = Status.CONVERGED if (kind, start) == ("behind", "global") else expected.get(kind, Status.SINGULAR)
    assert one.status.tolist() == other.status.tolist() == [status, Status.CONVERGED] * 3
    good = one.converged
    torch.testing.assert_close(one.x[good], other.x[good], rtol=0, atol=1e-6)  # type: ignore[index]


# ---- the origin and the unit of the world ----


@pytest.mark.parametrize("start", ["init", "global"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("shift", [0.0, 1e3, 1e6, 1e8])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_neither_origin_nor_unit_matters(unit: float, shift: float, back_end: str, start: str) -> None:
    """The world at `shift` extents from its origin, measured in another unit: the same status, cost and gradient.

    Coordinates carry 16 digits: those of a point at 1e8 are off by 1e-8, and that is what poses and gradients lose.
    """
    scene = problems(8, 12)
    away = shift * torch.tensor([1.0, -0.5, 0.7], **DOUBLE)
    there = se3.make(torch.eye(3, **DOUBLE), away)
    there_given = unit * (scene.points3d + away)
    kept = (there_given - unit * away) / unit  # what the digits of a far point have left of it
    plain, moved = scene._replace(points3d=kept), scene._replace(points3d=there_given)
    init = near(scene)
    far = init @ se3.inverse(there)
    far[:, :3, 3] *= unit
    given = [{"init": a} if start == "init" else {} for a in (init, far)]
    solutions, gradients = [], []
    for world, arguments, scale, back in zip((plain, moved), given, (1.0, unit), (0 * away, away), strict=True):
        leaves = [d.clone().requires_grad_() for d in world[:3]]
        found = solved(back_end, Problems(*leaves, *world[3:]), **arguments)  # type: ignore[arg-type]
        # where the camera sees the middle of the points, a function of the pose that has no far origin
        seen = found.x[:, :3, 3] / scale + found.x[:, :3, :3] @ back  # type: ignore[index]
        value = (seen * torch.tensor([1.0, 2, 3], **DOUBLE)).sum() + found.x[:, :3, :3].sum()  # type: ignore[index]
        gradient = torch.autograd.grad(value, leaves)
        solutions.append(found)
        gradients.append((gradient[0], scale * gradient[1], gradient[2]))
    lost = 1e-9 + 4e-15 * shift
    one, other = solutions
    assert one.converged.all()
    assert torch.equal(one.status, other.status)
    torch.testing.assert_close(other.cost, one.cost, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.x[:, :3, :3], one.x[:, :3, :3], rtol=0, atol=lost)  # type: ignore[index]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() <= 100 * lost * b.norm()
