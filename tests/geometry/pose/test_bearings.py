"""`pnp(model="ray")`: unit vectors in place of pixels, all around the camera."""

from typing import Any

import pytest
import torch
from torch import Tensor

from geometry import Status, bearing_whitening, cauchy, huber, pnp, se3, unproject
from geometry.robust import Kernel
from tests.numbers import DOUBLE, central_difference, close, generator, normal


def sphere(B: int = 4, N: int = 12, sigma: float = 0.01, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Bearings (B,N,3), points about the camera on all sides (B,N,3), and the pose (B,4,4)."""
    X = 3 * normal(B, N, 3, seed=seed)
    pose = se3.make(se3.rotation_from_quat_wxyz(normal(B, 4, seed=seed + 1)), normal(B, 3, seed=seed + 2))
    p = se3.transform(pose, X)
    return p / p.norm(dim=-1, keepdim=True) + sigma * normal(B, N, 3, seed=seed + 3), X, pose


def angles(pose: Tensor, X: Tensor, bearings: Tensor) -> Tensor:
    """Between where points are and where they are seen (B,N), radians."""
    p = se3.transform(pose, X)
    cross = torch.linalg.cross(p, bearings).norm(dim=-1)
    return torch.atan2(cross, (p * bearings).sum(-1))


@pytest.mark.parametrize(("N", "sigma"), [(4, 1e-3), (12, 0.03), (64, 0.1)])
def test_the_cost_is_that_of_angles_and_none_is_lower_next_to_the_truth(N: int, sigma: float) -> None:
    bearings, X, pose = sphere(50, N, sigma)
    found, near = pnp(bearings, X, None, model="ray"), pnp(bearings, X, None, model="ray", init=pose)
    assert found.converged.all()
    assert (found.cost <= near.cost * (1 + 1e-9)).all()
    close(found.cost, 0.5 * angles(found.x, X, bearings).square().sum(-1), 0, 1e-9)  # type: ignore[arg-type]


def test_the_length_of_a_bearing_means_nothing_and_a_turn_turns_the_pose() -> None:
    bearings, X, _ = sphere()
    plain = pnp(bearings, X, None, model="ray").x
    length = torch.rand(4, 12, 1, generator=generator(), **DOUBLE) + 0.5
    close(pnp(length * bearings, X, None, model="ray").x, plain, 1e-12)
    turn = se3.from_rotvec_t(torch.tensor([1.0, -2, 0.5, 0, 0, 0], **DOUBLE))
    close(pnp(se3.transform(turn, bearings), X, None, model="ray").x, turn @ plain, 1e-10)


def test_rays_of_a_long_lens_are_its_pixels(make_scene: Any) -> None:
    """Where the field of view is small, an angle times the focal length is a distance in pixels."""
    scene = make_scene(3, 12, 1.0, depth=600.0)
    K = scene.K.clone()
    K[0, 0] = K[1, 1] = 80_000.0
    centre = scene.world_to_camera_gt
    p = se3.transform(centre, scene.points3d)
    pixels = (p / p[..., 2:] @ K.mT)[..., :2] + normal(3, 12, 2)
    rays = unproject(pixels, K).directions
    by_angle = pnp(rays, scene.points3d, None, model="ray", weights=torch.full((1, 12), 80_000.0, **DOUBLE))
    by_pixel = pnp(pixels, scene.points3d, K)
    close(by_angle.cost, by_pixel.cost, 0, 1e-4)
    close(by_angle.x[:, :3, :3], by_pixel.x[:, :3, :3], 1e-4)  # type: ignore[index]


def test_a_whitening_is_the_inverse_root_of_a_covariance_in_the_tangent_plane() -> None:
    bearings, X, _ = sphere()
    W = normal(4, 12, 2, 2, seed=9) + 2 * torch.eye(2, **DOUBLE)
    found = pnp(bearings, X, None, model="ray", weights=W)
    p = (se3.rotation_to_axis(bearings) @ se3.transform(found.x, X)[..., None])[..., 0]  # type: ignore[arg-type]
    theta = torch.atan2(p[..., :2].norm(dim=-1), p[..., 2])
    r = theta[..., None] * p[..., :2] / p[..., :2].norm(dim=-1, keepdim=True)
    close(found.cost, 0.5 * (W @ r[..., None]).square().sum((1, 2, 3)), 0, 1e-9)
    covariance = torch.linalg.inv(W.mT @ W)
    T = se3.rotation_to_axis(bearings)[..., :2, :]
    of_vectors = 4 * bearings.square().sum(-1)[..., None, None] * (T.mT @ covariance @ T)
    white = bearing_whitening(2 * bearings, of_vectors)
    close(pnp(2 * bearings, X, None, model="ray", weights=white).x, found.x, 1e-9)
    equal = torch.tensor([2.0, 3.0], **DOUBLE).expand(4, 12, 2)
    a, b = (pnp(bearings, X, None, model="ray", weights=w) for w in (equal, torch.diag_embed(equal)))
    close(a.x, b.x, 1e-10)


def test_absent_bearings_and_wrong_ones() -> None:
    bearings, X, pose = sphere(30, 40)
    few = pnp(bearings[:, :30], X[:, :30], None, model="ray")
    wild = bearings.clone()
    wild[:, 30:] = 0.0
    wild[:, 35:] = torch.nan
    masked = pnp(wild, X, None, model="ray", mask=torch.arange(40).expand(30, 40) < 30)
    close(masked.x, few.x, 1e-12)
    wrong = torch.rand(30, 40, generator=generator(), **DOUBLE) < 0.3
    anywhere = torch.where(wrong[..., None], normal(30, 40, 3, seed=7), bearings)
    found, near = (pnp(anywhere, X, None, model="ray", kernel=cauchy(0.03), init=init) for init in (None, pose))
    assert found.converged.all()
    assert (found.cost <= near.cost * (1 + 1e-9)).all()


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [None, huber(0.03)])
@pytest.mark.parametrize("name", ["bearings", "points3d", "weights"])
def test_gradients_agree_with_finite_differences(kernel: Kernel | None, name: str) -> None:
    bearings, X, _ = sphere(5, 12, 0.03)
    weights = torch.rand(5, 12, generator=generator(), **DOUBLE) + 0.5
    data = {"bearings": bearings, "points3d": X, "weights": weights}
    direction = normal(*data[name].shape, seed=6)

    def solve(value: Tensor) -> Tensor:
        given = data | {name: value}
        found = pnp(
            given["bearings"], given["points3d"], None, model="ray", weights=given["weights"], kernel=kernel,
            max_steps=200,
        )  # fmt: skip
        assert found.converged.all()
        return se3.transform(found.x, torch.eye(3, **DOUBLE).expand(5, 3, 3)).flatten(1)  # type: ignore[arg-type]

    def moved(h: Tensor) -> Tensor:
        return solve(data[name] + h * direction)

    ours = torch.autograd.functional.jacobian(moved, torch.zeros((), **DOUBLE))
    # Huber's second derivative jumps, and a stencil that straddles the jump measures nothing
    wanted = central_difference(lambda h: moved(torch.tensor(h, **DOUBLE)), 1e-6 if kernel else 1e-4)
    assert ((ours - wanted).norm(dim=1) < 1e-6 * wanted.norm(dim=1)).all()  # type: ignore[operator]


def test_points_on_a_line_are_singular_and_mistakes_are_named() -> None:
    _, _, pose = sphere()
    X = torch.linspace(-1, 1, 8, **DOUBLE)[:, None] * torch.tensor([0.6, 0.7, -0.3], **DOUBLE) + 2
    bearings = se3.transform(pose, X.expand(4, 8, 3))
    assert (pnp(bearings, X, None, model="ray").status == Status.SINGULAR).all()
    K = torch.eye(3, **DOUBLE)
    with pytest.raises(ValueError, match="K and distortion must be None"):
        pnp(bearings, X, K, model="ray")
    with pytest.raises(ValueError, match=r"points2d must have shape \(B,N,3\) or \(N,3\), bearings, with model"):
        pnp(bearings[..., :2], X, None, model="ray")
    with pytest.raises(ValueError, match="points2d must hold bearings of a length above zero"):
        pnp(0 * bearings, X, None, model="ray")
    with pytest.raises(ValueError, match=r"weights must have shape \(4\|1,8,2,2\) or \(8,2,2\)"):
        pnp(bearings, X, None, model="ray", weights=torch.ones(4, 7, 2, 2, **DOUBLE))
