"""Where the world's origin lies and what its unit is changes nothing: statuses, costs, gradients, and what is found."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from geometry import calibrate, pnp, pnp_ransac, project, se3
from geometry.consensus.minimal import transfer
from geometry.reconstruction import triangulate
from geometry.tasks.homography import homography
from geometry.tasks.point_registration import point_registration
from geometry.tasks.radial_pnp import radial_pnp
from geometry.tasks.stereo_rig import stereo_rig
from geometry.tasks.triangulation import triangulation
from tests.numbers import DOUBLE, close, generator, normal

K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)


class Found(NamedTuple):
    """What a solver says, with x brought back to the world that was not moved, as numbers about 1."""

    status: Tensor
    cost: Tensor
    x: Tensor
    gradient: Tensor


POINTS = 2 * torch.rand(20, 3, generator=generator(1), **DOUBLE) - 1
POSES = se3.from_rotvec_t(0.2 * normal(6, 6) + torch.tensor([0.0, 0, 0, 0, 0, 6], **DOUBLE))
PIXELS = project(POINTS, POSES, K) + normal(6, 20, 2, seed=2)


class World:
    """The world moved by `away` and in units of 1 / `unit`."""

    def __init__(self, away: float, unit: float) -> None:
        self.shift, self.unit = away * torch.tensor([1.0, 0.5, -0.2], **DOUBLE), unit

    def points(self, X: Tensor) -> Tensor:
        return self.unit * (X + self.shift[: X.shape[-1]])

    def back(self, X: Tensor) -> Tensor:
        return X / self.unit - self.shift[: X.shape[-1]]

    def poses(self, pose: Tensor) -> Tensor:
        pose = se3.about(pose, -self.shift)
        return se3.make(pose[..., :3, :3], self.unit * pose[..., :3, 3])

    def poses_back(self, pose: Tensor) -> Tensor:
        return se3.about(se3.make(pose[..., :3, :3], pose[..., :3, 3] / self.unit), self.shift)


def with_gradient(solution: object, x: Tensor, leaf: Tensor) -> Found:
    size = x.detach().abs().amax()
    (gradient,) = torch.autograd.grad((x / size).pow(3).sum(), leaf)
    return Found(solution.status, solution.cost.detach(), (x / size).detach(), gradient)  # type: ignore[attr-defined]


def by_pnp(world: World) -> Found:
    leaf = PIXELS.clone().requires_grad_()
    found = pnp(leaf, world.points(POINTS), K)
    return with_gradient(found, world.poses_back(found.x), leaf)


def by_pnp_of_a_fisheye(world: World) -> Found:
    leaf = project(POINTS, POSES, K, model="fisheye").requires_grad_()
    found = pnp(leaf, world.points(POINTS), K, model="fisheye")
    return with_gradient(found, world.poses_back(found.x), leaf)


def by_pnp_ransac(world: World) -> Found:
    leaf = PIXELS.clone()
    leaf[:, :5] = 300
    leaf.requires_grad_()
    found = pnp_ransac(leaf, world.points(POINTS), K, generator=generator(), confidence=1 - 1e-9)
    return with_gradient(found, world.poses_back(found.x), leaf)


def by_radial_pnp(world: World) -> Found:
    leaf = PIXELS.clone().requires_grad_()
    found = radial_pnp(leaf, world.points(POINTS), K[:2, 2])
    return with_gradient(found, world.poses_back(found.x[0]), leaf)


def by_stereo_rig(world: World) -> Found:
    rig = se3.from_rotvec_t(torch.tensor([0.02, -0.03, 0.01, -0.5, 0.02, 0.01], **DOUBLE))
    right = project(POINTS, rig @ POSES[:2], K) + normal(2, 20, 2, seed=3)
    leaf = PIXELS[:2].clone().requires_grad_()
    found = stereo_rig(torch.stack([leaf, right]), world.points(POINTS), K.expand(2, 3, 3))
    rigs, targets = found.x
    rigs = se3.make(rigs[:, :3, :3], rigs[:, :3, 3] / world.unit)
    return with_gradient(found, torch.cat([rigs[:, None], world.poses_back(targets)], 1), leaf)


def by_triangulation(world: World) -> Found:
    leaf = PIXELS.transpose(0, 1).clone().requires_grad_()
    found = triangulation(leaf, world.poses(POSES), K.expand(6, 3, 3))
    return with_gradient(found, world.back(found.x), leaf)


def by_triangulate(world: World) -> Found:
    visible, lens = torch.ones(6, 20, dtype=torch.bool), torch.zeros(6, 0, **DOUBLE)
    found = triangulate(PIXELS, visible, world.poses(POSES), K.expand(6, 3, 3), lens)
    return Found(found.status, found.cost, world.back(found.x), torch.zeros(()))


def by_registration(world: World, scale: bool = False) -> Found:
    target = POINTS @ se3.exp(normal(3, seed=4)).T + 0.1 * normal(20, 3, seed=5)
    leaf = POINTS.clone().requires_grad_()
    found = point_registration(world.points(leaf), world.points(target), scale=scale)
    # x of the world as it was: p -> back(x points(p))
    R, t = found.x[:, :3, :3], found.x[:, :3, 3]
    t = (R - torch.eye(3, **DOUBLE)) @ world.shift + t / world.unit
    return with_gradient(found, torch.cat([R, t[..., None]], -1), leaf)._replace(
        cost=found.cost.detach() / world.unit**2
    )


def by_similarity(world: World) -> Found:
    return by_registration(world, scale=True)


def by_homography(world: World) -> Found:
    """Both images are moved: cost and errors are those of the second one's unit."""
    a = 50 * torch.rand(20, 2, generator=generator(6), **DOUBLE)
    H = torch.tensor([[10.0, 1, 20], [-1, 9, 30], [1e-3, 2e-3, 1]], **DOUBLE)
    b = transfer(H, a) + 0.2 * normal(20, 2, seed=7)
    leaf = a.clone().requires_grad_()
    found = homography(world.points(leaf), world.points(b))
    x = world.back(transfer(found.x, world.points(a)))
    return with_gradient(found, x, leaf)._replace(cost=found.cost.detach() / world.unit**2)


def by_calibrate(world: World) -> Found:
    flat = POINTS * torch.tensor([1.0, 1, 0], **DOUBLE)
    pixels = project(flat, POSES, K) + 0.3 * normal(6, 20, 2, seed=2)
    found = calibrate(pixels, world.points(flat), (640, 480), distortion=2)
    camera, lens, poses = found.x
    x = torch.cat([camera[0].flatten() / 800, lens[0], world.poses_back(poses[0]).flatten() / 6])
    return Found(found.status, found.cost, x, torch.zeros(()))


SOLVERS: dict[str, Callable[[World], Found]] = {
    name[3:]: solver for name, solver in list(globals().items()) if name.startswith("by_")
}


@cache
def as_it_was(name: str) -> Found:
    return SOLVERS[name](World(0.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("away", "unit"), [(0.0, 1e-6), (0.0, 1e6), (1e3, 1.0), (1e6, 1.0), (1e6, 1e-3), (1e8, 1.0), (1e8, 1e6)]
)
@pytest.mark.parametrize("name", SOLVERS)
def test_origin_and_unit_change_nothing(name: str, away: float, unit: float) -> None:
    """Far away the coordinates themselves are rounded, by a part of 1e-16 of the distance."""
    if name == "homography" and away > 1e6:
        pytest.skip(
            "a 3x3 matrix has no digits left for pixels so far away: its entries differ by the distance squared"
        )
    expected, found = as_it_was(name), SOLVERS[name](World(away, unit))
    assert (expected.status == 0).all()
    assert torch.equal(found.status, expected.status)
    rounding = 1e-9 + 1e-15 * away
    close(found.cost, expected.cost, 100 * rounding * float(expected.cost.abs().amax().clamp_min(1e-3)))
    close(found.x, expected.x, 100 * rounding)
    close(found.gradient, expected.gradient, 1e3 * rounding * float(expected.gradient.abs().amax()))
