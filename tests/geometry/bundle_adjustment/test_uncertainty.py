"""The covariance of a bundle against dense matrices, with kernels and priors, and against noisy solves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd

from geometry import BundleSolution, Prior, cauchy, geman_mcclure, huber, se3
from geometry.bundle_adjustment.equations import NormalEquations
from geometry.robust import kernel_derivatives
from tests.geometry.bundle_adjustment.scenes import dense_hessian, make_tracks, moving, relative, unflat
from tests.geometry.bundle_adjustment.test_gauge import GAUGES, as_a_whole, first, freedom, gauge_of
from tests.numbers import DOUBLE


def dense_inverse(found: BundleSolution, gauge: str, equations: NormalEquations) -> Tensor:
    """(D + 3 N, D + 3 N): the inverse of the matrix bordered by what the gauge holds."""
    layout = found.task.problem.layout
    H = dense_hessian(equations, layout)
    chosen = gauge_of(found)
    if chosen is None:
        C = H[:, :0]
    elif gauge == "fixed":
        C = torch.eye(len(H), **DOUBLE)[:, found.task.rows]
    else:
        zero = torch.zeros(len(H), **DOUBLE)
        pose, problem = found.x.world_to_camera, found.task.problem
        C = jacfwd(lambda u: as_a_whole(problem.retract(found.state, unflat(u, layout))[0], pose))(zero).T
    places, g = moving(layout), C.shape[1]
    scale = H.diagonal().clamp_min(1e-300).rsqrt()[places]
    border = scale[:, None] * C[places]
    border = border / border.norm(dim=0)
    K = torch.cat([torch.cat([scale[:, None] * H[places][:, places] * scale, border], 1),
                   torch.cat([border.T, torch.zeros(g, g, **DOUBLE)], 1)])  # fmt: skip
    inverse = torch.linalg.inv(K)[: len(places), : len(places)]
    total = torch.zeros_like(H)
    total[places[:, None], places] = scale[:, None] * inverse * scale
    return total


def blocks(found: BundleSolution, dense: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """What `BundleSolution.covariance` has of a dense matrix."""
    layout = found.task.problem.layout
    dense = torch.nn.functional.pad(dense, (0, 1, 0, 1))  # fixed: the last one
    rows = torch.where(layout.rows < layout.size, layout.rows, len(dense) - 1)
    places = layout.size + 3 * points[:, None] + torch.arange(3)
    return dense[rows[:, :, None], rows[:, None, :]], dense[places[:, :, None], places[:, None, :]]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize(
    ("gauge", "options"),
    [("fixed", {}), ("free", {}), ("fixed", {"free": ("poses", "points", "f", "k1")}),
     ("free", {"free": ("poses", "points", "f")}), ("fixed", {"fixed_poses": first(2, 5)}),
     ("fixed", {"fixed_points": first(4, 20)})],
)  # fmt: skip
def test_covariance_is_that_of_the_dense_matrix(gauge: str, options: dict[str, Any], solver: str) -> None:
    found = make_tracks(5, 20, cameras=2).solve(gauge=gauge, solver=solver, **options)
    assert found.converged
    layout, some = found.task.problem.layout, torch.tensor([2, 7, 11])
    equations = found.task.problem.linearize(found.state, found.task.data)
    cameras, points = blocks(found, dense_inverse(found, gauge, equations), some)
    covariance = found.covariance(some, sigma=0.3)
    assert relative(covariance.cameras, 0.09 * cameras) < 1e-7
    assert relative(covariance.points, 0.09 * points) < 1e-7
    # sigma from the residuals: what is left of them, over the redundancy
    unknowns = layout.size + 3 * int((~layout.held).sum()) - freedom(found)
    variance = 2 * float(found.cost) / (2 * len(layout.view) - unknowns)
    assert relative(found.covariance(some).points, covariance.points * variance / 0.09) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "gauge", "solver", "known"),
    [(huber(0.4), "fixed", "dense", False), (cauchy(0.5), "free", "dense", False),
     (geman_mcclure(2.0), "fixed", "iterative", False), (cauchy(0.5), "fixed", "dense", True)],
)  # fmt: skip
def test_covariance_with_a_kernel_is_the_dense_sandwich(kernel: Any, gauge: Any, solver: Any, known: bool) -> None:
    """A^-1 (s J^T J + Q) A^-1: A the exact Hessian, Q what the prior adds to J^T J, s what psi leaves of it."""
    tracks = make_tracks(5, 20, cameras=2)
    weights = first(1, 5)[:, None] * torch.full((6,), 30.0, **DOUBLE)
    prior = Prior(tracks.truth.world_to_camera, weights) if known else None
    found = tracks.solve(kernel=kernel, gauge=gauge, solver=solver, prior=prior, max_steps=300)
    assert found.converged
    task, state, some = found.task, found.state, torch.tensor([2, 7, 11])
    plain, layout = replace(task.problem, kernel=None), task.problem.layout
    seen = dense_hessian(plain.linearize(state, task.data._replace(prior=Prior())), layout)
    every = dense_hessian(plain.linearize(state, task.data), layout)
    r = plain.residual(plain.compose(state, task.data.given), task.data)
    psi = kernel_derivatives(kernel, r.square().sum(-1))[1][:, None] * r
    numbers = r.numel() + 6 * known + freedom(found) - layout.size - 3 * 20
    A = dense_inverse(found, gauge, task.problem.linearize(state, task.data, exact=True))
    expected = blocks(found, A @ (every - seen + psi.square().sum() / numbers * seen) @ A, some)
    for one, other in zip(found.covariance(some), expected, strict=True):
        assert relative(one, other) < 1e-7


def test_no_sigma_beside_a_kernel() -> None:
    found = make_tracks(5, 20).solve(kernel=cauchy(1.0), max_steps=0)
    with pytest.raises(ValueError, match="sigma must be None where there is a kernel"):
        found.covariance(sigma=1.0)
    with pytest.raises(ValueError, match="sigma must be"):
        make_tracks(5, 20).solve(max_steps=0).covariance(sigma=0.0)


def test_a_prior_is_as_exact_as_it_says_whatever_the_pixels_are() -> None:
    """A pose that nothing but its prior tells has the covariance of the prior, with pixels of 0.05 or of 2."""
    for noise in (0.05, 2.0):
        tracks = make_tracks(5, 20, noise=noise)
        weights = first(1, 5)[:, None] * torch.tensor([100.0, 200, 300, 40, 50, 60], **DOUBLE)
        found = tracks.solve(prior=Prior(tracks.truth.world_to_camera, weights))
        turns = found.covariance().cameras[0, :3, :3]
        assert relative(turns, torch.diag(weights[0, :3] ** -2)) < 1e-6


@pytest.mark.parametrize("gauge", GAUGES)
def test_covariance_of_the_cameras_alone(gauge: str) -> None:
    found = make_tracks(5, 20).solve(gauge=gauge)
    alone = found.covariance()
    assert alone.points.shape == (0, 3, 3)
    assert torch.equal(alone.cameras, found.covariance(torch.arange(3)).cameras)


def test_sigma_is_estimated_from_what_is_known_beforehand_too() -> None:
    """Fifteen points that priors alone determine, each at its prior: they say nothing about sigma."""
    tracks = make_tracks(5, 20)
    X = torch.cat([tracks.points3d, torch.ones(15, 3, **DOUBLE)])
    known = Prior(points3d=X, point_weights=(torch.arange(35) > 19)[:, None] * torch.ones(35, 3, **DOUBLE))
    one = torch.tensor([3])
    expected = tracks.solve().covariance(one).points
    assert relative(replace(tracks, points3d=X).solve(prior=known).covariance(one).points, expected) < 1e-6


def test_covariance_of_what_is_fixed_is_zero() -> None:
    tracks = make_tracks(5, 20)
    fixed = tracks.solve(fixed_poses=first(2, 5), fixed_points=first(3, 20)).covariance(torch.tensor([0, 5]))
    assert not fixed.cameras[:2].any()
    assert not fixed.points[0].any()
    assert fixed.points[1].diagonal().min() > 0


@pytest.mark.slow
def test_covariance_is_what_noise_does() -> None:
    """The squared Mahalanobis distance of a 3-vector is chi^2: mean 3, its standard deviation sqrt(6 / draws)."""
    tracks, sigma, draws = make_tracks(4, 12, noise=0.0, off=0.0, seen=1.0), 0.2, 200
    covariance = tracks.solve().covariance(torch.arange(12), sigma=sigma)
    g = torch.Generator().manual_seed(0)
    points, poses = [], []
    for _ in range(draws):
        noise = sigma * torch.randn(tracks.points2d.shape, generator=g, **DOUBLE)
        x = replace(tracks, points2d=tracks.points2d + noise).solve().x
        points.append(x.points3d - tracks.truth.points3d)
        turn = se3.log(x.world_to_camera[:, :3, :3] @ tracks.truth.world_to_camera[:, :3, :3].mT)
        poses.append(turn)
    d = torch.stack(points)
    distance = (d * torch.linalg.solve(covariance.points, d[..., None]).squeeze(-1)).sum(-1).mean(0)
    assert (distance - 3).abs().max() < 4.5 * (6 / draws) ** 0.5
    assert (distance.mean() - 3).abs() < 3 * (6 / draws) ** 0.5
    r = torch.stack(poses)[:, 1:]
    distance = (r * torch.linalg.solve(covariance.cameras[1:, :3, :3], r[..., None]).squeeze(-1)).sum(-1).mean(0)
    assert (distance - 3).abs().max() < 4.5 * (6 / draws) ** 0.5


def test_no_sigma_is_estimated_from_as_many_numbers_as_unknowns() -> None:
    """Two views of five points: 20 coordinates, 20 unknowns."""
    found = make_tracks(2, 5, seen=1.0, noise=0.3, seed=0).solve(gauge="fixed")
    assert found.converged
    assert found.cost < 1e-12
    assert torch.isnan(found.covariance().cameras).all()
    known = found.covariance(sigma=1.0).cameras
    assert torch.isfinite(known).all()
    assert (known[1].diagonal()[:3] > 0).all()
