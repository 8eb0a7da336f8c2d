"""Densities against quadrature and SciPy; normalisers and their gradients against quadrature over SE(3)."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from geometry import Problem, barron, covariance, minimize, pnp, pnp_problem, sample_poses, se3
from geometry.optim import exact_hessian
from geometry.pose import PoseProposal, log_normaliser
from tests.numbers import DOUBLE, close, generator


def spd(B: int, n: int, scale: float, seed: int) -> Tensor:
    a = torch.randn(B, n, n, generator=generator(seed), **DOUBLE)
    return scale**2 * (a @ a.mT / n + 0.3 * torch.eye(n, **DOUBLE))


def rotation_quadrature(n: int) -> tuple[Tensor, Tensor]:
    """Rotations by ZYZ Euler angles, exact for polynomials of degree < n in R; the weights add up to 8 pi^2."""
    angle = torch.arange(n, **DOUBLE) * (2 * math.pi / n)
    cosine, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(n // 2 + 1))
    a, b, c = (x.flatten() for x in torch.meshgrid(angle, cosine.acos(), angle, indexing="ij"))
    z, y = torch.tensor([0.0, 0, 1], **DOUBLE), torch.tensor([0.0, 1, 0], **DOUBLE)
    R = se3.exp(a[:, None] * z) @ se3.exp(b[:, None] * y) @ se3.exp(c[:, None] * z)
    return R, weight.repeat_interleave(n).repeat(n) * (2 * math.pi / n) ** 2


# ---- proposals ----


def test_the_quadrature_itself() -> None:
    R, weight = rotation_quadrature(8)
    assert weight.sum().item() == pytest.approx(8 * math.pi**2)
    # Peter and Weyl: matrix elements are orthogonal, of norm 8 pi^2 / 3
    flat = R.flatten(1)
    close(flat.mT @ (weight[:, None] * flat), 8 * math.pi**2 / 3 * torch.eye(9, **DOUBLE), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_rotation_density_integrates_to_one(scale: float) -> None:
    proposal = PoseProposal.from_covariance(spd(2, 6, scale, seed=1))
    R, weight = rotation_quadrature(90)
    turned = R @ se3.exp(torch.tensor([0.3, 0.4, -0.2], **DOUBLE))  # no node is a half turn, where w has no sign
    q = se3.quat_wxyz_from_rotation(turned).expand(2, -1, 4)
    tau = proposal.shift[:, None] + torch.where(q[..., :1] < 0, -2.0, 2.0) * q[..., 1:] @ proposal.slope.mT
    scale_matrix = proposal.scale @ proposal.scale.mT
    peak = math.gamma(3) / (math.gamma(1.5) * (3 * math.pi) ** 1.5) / torch.linalg.det(scale_matrix).sqrt()
    rotation = proposal.log_density(q, tau).exp() / peak[:, None]
    close((rotation * weight).sum(-1), torch.ones(2, **DOUBLE), 1e-6)
    close(proposal.log_density(-q, tau), proposal.log_density(q, tau), 1e-12)


def test_the_translation_density_is_scipy_s_multivariate_t() -> None:
    from scipy.stats import multivariate_t

    proposal = PoseProposal.from_covariance(spd(1, 6, 0.3, seed=2))
    tau = torch.randn(1, 50, 3, generator=generator(3), **DOUBLE)
    q = torch.nn.functional.normalize(torch.randn(1, 1, 4, generator=generator(4), **DOUBLE), dim=-1)
    feature = 2 * q[0, 0, 1:] * q[0, 0, 0].sign()
    t = multivariate_t((proposal.slope[0] @ feature).numpy(), (proposal.scale[0] @ proposal.scale[0].mT).numpy(), df=3)
    ours = proposal.log_density(q.expand(1, 50, 4), tau)[0]
    expected = torch.from_numpy(t.logpdf(tau[0].numpy()))
    close(ours - ours[0], expected - expected[0], 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "ratio"), [(0.1, 0.5), (1.0, 0.7), (1.0, 1.5)])
def test_draws_follow_the_density(scale: float, ratio: float) -> None:
    """The mean of p / q over draws of q is one, for any density p: here another proposal."""
    C = spd(4, 6, scale, seed=5)
    q_proposal, p_proposal = PoseProposal.from_covariance(C), PoseProposal.from_covariance(ratio**2 * C)
    q, tau = q_proposal.draw(300_000, generator(7))
    close(q.norm(dim=-1), torch.ones_like(q[..., 0]), 1e-12)
    weight = (p_proposal.log_density(q, tau) - q_proposal.log_density(q, tau)).exp()
    error = weight.std(-1) / math.sqrt(weight.shape[1])
    assert ((weight.mean(-1) - 1).abs() < 4 * error).all()
    assert (error < 0.005).all()


@pytest.mark.slow
def test_a_refit_has_the_moments_of_the_draws() -> None:
    """Weighted to a Gaussian step, draws of one proposal give that which `from_covariance` makes of the Gaussian."""
    C, start = spd(2, 6, 0.02, seed=8), spd(2, 6, 0.03, seed=9)
    first = PoseProposal.from_covariance(start)
    q, tau = first.draw(200_000, generator(10))
    step = torch.cat([se3.log(se3.rotation_from_quat_wxyz(q)), tau], -1)
    log_target = -0.5 * (step @ torch.linalg.inv(C) * step).sum(-1)
    found = first.refit(q, tau, log_target - first.log_density(q, tau), start)
    wanted = PoseProposal.from_covariance(C)
    for a, b in ((found.scale, wanted.scale), (found.spread[:, 1:, 1:], wanted.spread[:, 1:, 1:])):
        white = torch.linalg.solve_triangular(b, a, upper=False)
        close(white @ white.mT, torch.eye(3, **DOUBLE).expand(2, 3, 3), 0.06)
    close(found.slope, wanted.slope, 0.05)
    assert (found.shift.norm(dim=-1) < 0.05 * wanted.scale.diagonal(dim1=1, dim2=2).amin(-1)).all()


def test_one_lucky_draw_makes_no_needle() -> None:
    C = spd(1, 6, 0.1, seed=11)
    first = PoseProposal.from_covariance(C)
    q, tau = first.draw(16, generator(12))
    weight = torch.zeros(1, 16, **DOUBLE)
    weight[0, 5] = 1000.0
    found = first.refit(q, tau, weight, C)
    for a, b in ((found.scale, first.scale), (found.spread, first.spread)):
        volume = torch.linalg.det(a) / torch.linalg.det(b)
        assert 0.5 < volume.item() < 2


# ---- normalisers ----


def align(pose: Tensor, source: Tensor, target: Tensor) -> Tensor:
    return se3.transform(pose, source) - target


ALIGN = Problem(align, dof=6, retract=se3.retract)


@cache
def alignment(spread: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points off their origin and their images: mode, data and log Z, whose translation integrates in closed form."""
    g = generator(seed)
    source = spread * torch.randn(1, 5, 3, generator=g, **DOUBLE) + torch.tensor([0.5, -0.3, 0.2], **DOUBLE)
    pose = se3.from_rotvec_t(torch.randn(1, 6, generator=g, **DOUBLE))
    target = se3.transform(pose, source) + torch.randn(1, 5, 3, generator=g, **DOUBLE)
    mode = minimize(ALIGN, pose, source, target, throw=True).x
    R, weight = rotation_quadrature(60)
    s, y = source[0] - source[0].mean(0), target[0] - target[0].mean(0)
    cost = 0.5 * (s @ R.mT - y).square().sum((1, 2))
    log_z = (weight.log() - cost).logsumexp(0) + 1.5 * math.log(2 * math.pi / 5)
    return mode, source, target, log_z


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("iterations", [1, 4])
def test_normaliser_of_an_alignment(spread: float, iterations: int) -> None:
    """Of 1,000 estimates of Z the mean is right within its standard error, from nearly free rotations to tight ones."""
    mode, source, target, log_z = alignment(spread)
    data = source.expand(1000, 5, 3), target.expand(1000, 5, 3)
    drawn = sample_poses(ALIGN, mode.expand(1000, 4, 4), *data, iterations=iterations, generator=generator(1))
    ratio = (log_normaliser(ALIGN, drawn, *data) - log_z).exp()
    error = ratio.std() / math.sqrt(1000)
    assert (ratio.mean() - 1).abs() < 3 * error
    assert error < 0.004


def hermite(problem: Problem, mode: Tensor, data: tuple[Tensor, ...], order: int = 7) -> Tensor:
    """log Z (1,) by Gauss and Hermite's rule over the six steps about the mode, whitened by the Hessian there."""
    H = exact_hessian(problem, mode, data)[0].detach()
    x, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(order))
    z = torch.cartesian_prod(*[x] * 6)
    log_w = torch.cartesian_prod(*[w.log() + x.square() / 2] * 6).sum(-1)
    keep = log_w - z.square().sum(-1) / 2 > -30
    L = torch.linalg.cholesky(torch.linalg.inv(H))
    step, log_w = z[keep] @ L.mT, log_w[keep] + L.diagonal().log().sum()
    half = step[:, :3].norm(dim=-1) / 2
    log_w = log_w + 2 * torch.special.sinc(half / math.pi).log()  # dR = (sin(a/2) / (a/2))^2 d^3 omega
    pose = se3.retract(mode.expand(len(step), 4, 4), step)
    costs = vmap(problem.cost, in_dims=(0, *[None] * len(data)), chunk_size=20_000)(pose, *(d[0] for d in data))
    return (log_w - costs).logsumexp(0, keepdim=True)


def pnp_case(make_scene: Callable[..., Any], **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Mode and data of one noisy PnP with weights 1/sigma."""
    scene = make_scene(1, 8, 5.0, depth=4.0, **options)
    weights = 0.2 * (0.5 + torch.rand(1, 8, 2, generator=generator(1), **DOUBLE))
    pose = pnp(scene.points2d, scene.points3d, scene.K, weights=weights).x
    mask = torch.ones(1, 8, dtype=torch.bool)
    return pose, (scene.points2d, scene.points3d, scene.K[None], scene.points2d.new_zeros(1, 0), weights, mask)


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [1, 4])
def test_normaliser_and_gradient_of_pnp_against_quadrature(make_scene: Callable[..., Any], iterations: int) -> None:
    """1,000 estimates of Z, of its gradient (both unbiased) and of the gradient of log Z (a ratio: consistent)."""
    mode, data = pnp_case(make_scene)
    leaves = tuple(d.clone().requires_grad_(i in (0, 1, 2, 4)) for i, d in enumerate(data))
    log_z = hermite(pnp_problem(), mode, leaves)
    close(log_z, hermite(pnp_problem(), mode, data, order=5), 1e-3)
    wanted = torch.autograd.grad(log_z, [leaves[i] for i in (0, 1, 2, 4)])
    B = 1000
    many = tuple(d.expand(B, *d.shape[1:]).clone().requires_grad_(i in (0, 1, 2, 4)) for i, d in enumerate(data))
    modes = mode.expand(B, 4, 4)
    plain = (d.detach() for d in many)
    drawn = sample_poses(pnp_problem(), modes, *plain, samples=256, iterations=iterations, generator=generator(3))
    found = log_normaliser(pnp_problem(), drawn, *many)
    ratio = (found.detach() - log_z.detach()).exp()
    assert (ratio.mean() - 1).abs() < 3 * ratio.std() / math.sqrt(B)
    gradients = torch.autograd.grad(found.sum(), [many[i] for i in (0, 1, 2, 4)])
    for gradient, expected in zip(gradients, wanted, strict=True):
        seen = expected[0].abs() > 0  # K has entries that no pixel depends on
        g, e = gradient[:, seen], expected[0][seen]
        unbiased = g * ratio[:, None]
        assert ((unbiased.mean(0) - e) / (unbiased.std(0) / math.sqrt(B))).abs().max() < 4
        error = g.std(0) / math.sqrt(B)
        assert ((g.mean(0) - e) / error).abs().max() < 4
        assert error.norm() < 0.1 * e.norm()


def test_laplace_s_approximation_is_the_limit(make_scene: Callable[..., Any]) -> None:
    mode, data = pnp_case(make_scene)
    sharp = (*data[:4], 300 * data[4], data[5])
    drawn = sample_poses(pnp_problem(), mode, *sharp, samples=40_000, iterations=2, generator=generator(4))
    H = exact_hessian(pnp_problem(), mode, sharp)
    laplace = -pnp_problem().costs(mode, *sharp) + 3 * math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(H)[1]
    close(log_normaliser(pnp_problem(), drawn, *sharp), laplace, 0.03)
    # and the weighted draws have Laplace's covariance
    R, t = drawn.pose[0, :, :3, :3], drawn.pose[0, :, :3, 3]
    step = torch.cat([se3.log(R @ mode[0, :3, :3].mT), t - mode[0, :3, 3]], -1)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.linalg.inv(H[0])), step.mT, upper=False)
    close((drawn.weights * white) @ white.mT, torch.eye(6, **DOUBLE), 0.08)
    assert 0.3 < drawn.effective.item() / 40_000 < 0.5
    close(drawn.weights.sum(-1), torch.ones(1, **DOUBLE), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [None, barron(1.0, 1.0)])
def test_gradient_of_the_log_normaliser_against_differences(
    make_scene: Callable[..., Any], central_difference: Callable[..., Tensor], kernel: Any
) -> None:
    scene = make_scene(2, 8, 8.0, distorted=True, seed=3)
    weights = 0.2 * (0.5 + torch.rand(2, 8, 2, generator=generator(1), **DOUBLE))
    mask = torch.ones(2, 8, dtype=torch.bool)
    K, distortion = scene.K.expand(2, 3, 3), scene.distortion.expand(2, 5)
    data = (scene.points2d, scene.points3d, K, distortion, weights, mask)
    problem = pnp_problem(kernel=kernel)
    mode = minimize(problem, scene.world_to_camera_gt, *data, throw=True).x
    drawn = sample_poses(problem, mode, *data, generator=generator(5))
    for i in range(5):
        scale = 1e-3 if i == 4 else 1e-4 if i == 3 else 1e-2 if i == 1 else 1.0
        direction = scale * torch.randn(data[i].shape, generator=generator(i), **DOUBLE)
        if i == 2:
            direction[:, 2] = 0
        leaf = data[i].clone().requires_grad_()
        log_normaliser(problem, drawn, *data[:i], leaf, *data[i + 1 :]).sum().backward()
        numeric = central_difference(
            lambda h, i=i, d=direction: log_normaliser(
                problem, drawn, *data[:i], data[i] + h * d, *data[i + 1 :]
            ).sum(),
            1e-2,
        )
        assert leaf.grad is not None
        close((leaf.grad * direction).sum() / numeric, torch.ones((), **DOUBLE), 1e-6)


def test_draws_behind_the_camera_weigh_nothing_and_spoil_nothing(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 6, 0.0, depth=1.5)
    points3d = 0.5 * scene.points3d
    pose = scene.world_to_camera_gt
    points2d = torch.func.vmap(lambda X, P: se3.transform(P, X))(points3d, pose)
    points2d = points2d[..., :2] / points2d[..., 2:] @ scene.K[:2, :2].mT + scene.K[:2, 2]
    weights = torch.full((2, 6, 2), 1 / 100, **DOUBLE).requires_grad_()
    mask = torch.ones(2, 6, dtype=torch.bool)
    data = points2d.requires_grad_(), points3d, scene.K.expand(2, 3, 3), points2d.new_zeros(2, 0), weights, mask
    drawn = sample_poses(pnp_problem(), pose, *data, generator=generator(6))
    dead = torch.isinf(drawn.log_weight)
    assert drawn.ok.all()
    assert dead.any(-1).all()
    assert (drawn.weights[dead] == 0).all()
    log_normaliser(pnp_problem(), drawn, *data).sum().backward()
    for leaf in (points2d, weights):
        assert torch.isfinite(leaf.grad).all()  # type: ignore[arg-type]
        assert (leaf.grad != 0).all()  # type: ignore[union-attr]


@pytest.mark.slow
def test_what_the_data_do_not_determine_is_not_ok_and_spoils_nothing() -> None:
    mode, source, target, _ = alignment(1.0)
    source, target, mode = source.repeat(3, 1, 1), target.repeat(3, 1, 1), mode.repeat(3, 1, 1)
    line = source.clone()
    line[1] = torch.linspace(-1, 1, 5, **DOUBLE)[:, None] * torch.ones(3, **DOUBLE)
    found = []
    for points in (source, line):
        leaf = points.clone().requires_grad_()
        drawn = sample_poses(ALIGN, mode, leaf, target, generator=generator(2))
        value = log_normaliser(ALIGN, drawn, leaf, target)
        value.nansum().backward()
        found.append((drawn, value.detach(), leaf.grad))
    (_, value, grad), (drawn, broken_value, broken_grad) = found
    assert drawn.ok.tolist() == [True, False, True]
    assert drawn.effective[1] == 0
    assert (drawn.weights[1] == 0).all()
    assert torch.isnan(broken_value[1])
    assert (broken_grad[1] == 0).all()
    close(broken_value[[0, 2]], value[[0, 2]], 1e-12)
    close(broken_grad[[0, 2]], grad[[0, 2]], 1e-12)


def lifted(pose: Tensor, height: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """An alignment that has no derivative, nor value, at or below a height."""
    return torch.cat([(pose[2, 3] - height).log(), (se3.transform(pose, source) - target).flatten()])


def test_where_the_cost_is_not_a_number_nothing_is_spoiled() -> None:
    mode, source, target, _ = alignment(1.0)
    problem = Problem(lifted, dof=6, retract=se3.retract)
    modes, source, target = mode.repeat(3, 1, 1), source.repeat(3, 1, 1), target.repeat(3, 1, 1)
    found = []
    for broken in (0.3, -1.0):  # below the mode some draws are dead; above it all of them and the mode
        height = mode[:, 2, 3].repeat(3)[:, None] - torch.tensor([[0.3], [broken], [0.3]], **DOUBLE)
        leaves = [a.clone().requires_grad_() for a in (height, source, target)]
        drawn = sample_poses(problem, modes, *leaves, generator=generator(4))
        assert torch.isinf(drawn.log_weight).any(-1).all()
        value = log_normaliser(problem, drawn, *leaves)
        value.nansum().backward()
        found.append((drawn.ok.tolist(), value.detach(), *(leaf.grad for leaf in leaves)))
    assert found[0][0] == [True, True, True]
    assert found[1][0] == [True, False, True]
    for whole, broken_one in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.isfinite(whole).all()
        close(broken_one[[0, 2]], whole[[0, 2]], 1e-12)
    for gradient in found[1][2:]:
        assert (gradient[1] == 0).all()


def test_a_pose_may_turn_about_any_point(make_scene: Callable[..., Any]) -> None:
    """Translation follows rotation: as many draws are effective with the points three units off their origin."""
    mode, data = pnp_case(make_scene)
    share = []
    for offset in (0.0, 3.0):
        shift = torch.tensor([offset, -offset, 0.0], **DOUBLE)
        moved = se3.make(mode[:, :3, :3], mode[:, :3, 3] - mode[:, :3, :3] @ shift)
        shifted = (data[0], data[1] + shift, *data[2:])
        share.append(sample_poses(pnp_problem(), moved, *shifted, generator=generator(8)).effective.item() / 512)
    assert share[0] > 0.33
    assert share[1] > 0.9 * share[0]


def test_draws_carry_no_graph_and_repeat_with_a_generator() -> None:
    mode, source, target, _ = alignment(1.0)
    state = torch.get_rng_state()
    one, again, other = (
        sample_poses(ALIGN, mode, source.clone().requires_grad_(), target, generator=generator(s)) for s in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert not one.log_weight.requires_grad
    assert torch.equal(one.pose, again.pose)
    assert not torch.equal(one.pose, other.pose)
    close(
        one.log_weight,
        -vmap(lambda y: align(y, source[0], target[0]).square().sum() / 2)(one.pose[0])[None] - one.log_density,
        1e-10,
    )
    close(log_normaliser(ALIGN, one, source, target), one.log_weight.logsumexp(-1) - math.log(512), 1e-10)


def test_the_first_proposal_is_laplace_s() -> None:
    mode, source, target, _ = alignment(2.0)
    drawn = sample_poses(ALIGN, mode, source, target, samples=64, iterations=1, generator=generator(3))
    proposal = PoseProposal.from_covariance(covariance(ALIGN, mode, source, target, sigma=1.0))
    q, tau = proposal.draw(64, generator(3))
    close(drawn.pose[:, :, :3, :3], se3.rotation_from_quat_wxyz(q) @ mode[:, None, :3, :3], 1e-14)
    close(drawn.log_density, proposal.log_density(q, tau), 1e-12)


@pytest.mark.parametrize(("samples", "iterations"), [(10, 4), (0, 1), (8, 0)])
def test_samples_must_divide(samples: int, iterations: int) -> None:
    mode, source, target, _ = alignment(1.0)
    with pytest.raises(ValueError, match=r"samples must be a|iterations must be a whole number"):
        sample_poses(ALIGN, mode, source, target, samples=samples, iterations=iterations)
