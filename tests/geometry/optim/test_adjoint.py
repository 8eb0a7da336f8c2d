from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from geometry import Problem, Status, argmin, attach_gradient, cauchy, covariance, minimize, pnp, pnp_problem, se3
from geometry.optim import map_state
from tests.numbers import DOUBLE, STENCIL, close, slope

GRADIENTS: list[Literal["exact", "gauss_newton", "unrolled"]] = ["exact", "gauss_newton", "unrolled"]


def decay(x: tuple[Tensor, Tensor], time: Tensor, value: Tensor) -> Tensor:
    return x[0][0] * torch.exp(-x[1] * time) + x[0][1] - value


DECAY = Problem(decay, dof=3, retract=lambda x, step: (x[0] + step[:2], x[1] * torch.exp(step[2])))


def decay_data(B: int = 3, M: int = 8) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    time = torch.linspace(0, 4, M, **DOUBLE).expand(B, M)
    value = 2 * torch.exp(-0.7 * time) + 0.2 * torch.randn(B, M, generator=g, **DOUBLE)
    return (torch.ones(B, 2, **DOUBLE), torch.ones(B, **DOUBLE)), time.clone(), value


def align(R: Tensor, source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    return weights[:, None] * (source @ R.mT - target)


# Rotation alone, x a (3,3) matrix: neither x nor its step is a vector that could be added
WAHBA = Problem(align, dof=3, retract=lambda R, step: se3.exp(step) @ R, kernel=cauchy(1.0))


def wahba_data(B: int = 3, N: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    source = torch.randn(B, N, 3, generator=g, **DOUBLE)
    R = se3.exp(torch.randn(B, 3, generator=g, **DOUBLE))
    target = source @ R.mT + 0.2 * torch.randn(B, N, 3, generator=g, **DOUBLE)
    return R, source, target, 0.5 + torch.rand(B, N, generator=g, **DOUBLE)


def flat(x: Tensor | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([a.flatten(1) if a.ndim > 1 else a[:, None] for a in ((x,) if isinstance(x, Tensor) else x)], -1)


def gradient_errors(problem: Problem, x0: Any, data: tuple[Tensor, ...], gradient: Any = "exact") -> Tensor:
    """Relative error (data, B) of d x / d direction against central differences."""
    optimum = minimize(problem, x0, *data, max_steps=300, throw=True).x
    g = torch.Generator().manual_seed(5)
    errors = []
    for i, d in enumerate(data):
        direction, h = torch.randn(d.shape, generator=g, **DOUBLE), 1e-3
        # the six points of the stencil are one batch
        shifted = [torch.cat([d] * len(STENCIL)) for d in data]
        shifted[i] = torch.cat([d + k * h * direction for k in STENCIL])
        start = map_state(lambda a: torch.cat([a] * len(STENCIL)), optimum)
        moved = flat(minimize(problem, start, *shifted, throw=True).x).view(len(STENCIL), len(d), -1)
        numeric = slope(moved, h)
        leaf = d.clone().requires_grad_()
        x = flat(argmin(problem, x0, *data[:i], leaf, *data[i + 1 :], gradient=gradient, max_steps=300).x)
        rows = [torch.autograd.grad(c.sum(), leaf, retain_graph=True)[0] for c in x.unbind(-1)]
        analytic = torch.stack([(row * direction).flatten(1).sum(1) for row in rows], -1)
        errors.append((analytic - numeric).norm(dim=-1) / numeric.norm(dim=-1))
    return torch.stack(errors)


def test_gradient_through_a_tuple() -> None:
    x0, *data = decay_data()
    assert gradient_errors(DECAY, x0, tuple(data)).max() < 1e-8


@pytest.mark.slow
def test_gradient_on_a_manifold_with_a_kernel() -> None:
    R, *data = wahba_data()
    assert gradient_errors(WAHBA, R, tuple(data)).max() < 1e-8


@pytest.mark.slow
def test_unrolled_and_gauss_newton_gradients() -> None:
    """The unrolled one converges with the solver, Gauss-Newton is off by the curvature of the residual."""
    x0, *data = decay_data()
    assert gradient_errors(DECAY, x0, tuple(data), "unrolled").max() < 1e-2
    assert 1e-3 < gradient_errors(DECAY, x0, tuple(data), "gauss_newton").median() < 0.5
    linear = Problem(lambda x, A, b: A @ x - b, dof=2)  # no curvature: all agree
    g = torch.Generator().manual_seed(2)
    A, b = torch.randn(3, 5, 2, generator=g, **DOUBLE), torch.randn(3, 5, generator=g, **DOUBLE)
    x0 = torch.zeros(3, 2, **DOUBLE)
    found = {}
    for gradient in GRADIENTS:
        leaves = A.clone().requires_grad_(), b.clone().requires_grad_()
        (argmin(linear, x0, *leaves, gradient=gradient).x ** 2).sum().backward()  # type: ignore[operator]
        found[gradient] = [leaf.grad for leaf in leaves]
    expected = A.clone().requires_grad_(), b.clone().requires_grad_()
    (torch.linalg.lstsq(expected[0], expected[1][..., None]).solution ** 2).sum().backward()
    for i in range(2):
        close(found["exact"][i], expected[i].grad, 1e-12)
        close(found["gauss_newton"][i], expected[i].grad, 1e-12)
        close(found["unrolled"][i], expected[i].grad, 1e-6)


def test_a_problem_s_own_derivatives_change_nothing(make_scene: Any) -> None:
    scene = make_scene(2, 8, 3.0)
    mask = torch.ones(2, 8, dtype=torch.bool)
    grads = []
    for problem in (pnp_problem(), replace(pnp_problem(), linearize=None, jacobian=None)):
        leaf = scene.points2d.clone().requires_grad_()
        K, weights = scene.K.expand(2, 3, 3), torch.ones(2, 8, 2, **DOUBLE)
        data = leaf, scene.points3d, K, scene.distortion.expand(2, 0), weights, mask
        argmin(problem, scene.world_to_camera_gt, *data).x.sum().backward()  # type: ignore[union-attr]
        grads.append(leaf.grad)
    close(grads[0], grads[1], 1e-12)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_failed_problem_has_gradient_zero_and_spoils_no_other(gradient: Any) -> None:
    def residual(x: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        return torch.stack([scale[0] * torch.sqrt(x[0]) - target[0], target[1] * (x[1] - target[0])])

    problem = Problem(residual, dof=2)
    target = torch.tensor([[1.0, 1], [2, 0], [3, 1], [1, 1], [2, 2]], **DOUBLE)  # 1: x[1] is unseen
    x0 = torch.tensor([[1.0, 0], [1, 0], [4, 0], [-1, 0], [1, 0]], **DOUBLE)  # 3: the root of a negative number
    keep = torch.tensor([0, 2, 4])

    def solve(rows: Tensor) -> tuple[Any, Tensor, Tensor]:
        leaves = target[rows].requires_grad_(), torch.ones(1, 1, **DOUBLE).requires_grad_()
        solution = argmin(problem, x0[rows], *leaves, gradient=gradient)
        (solution.x * torch.tensor([1.0, 2.0])).sum().backward()  # type: ignore[operator]
        return solution, leaves[0].grad, leaves[1].grad  # type: ignore[return-value]

    solution, grad, shared = solve(torch.arange(5))
    alone, grad_alone, shared_alone = solve(keep)
    assert solution.status.tolist() == [0, Status.SINGULAR, 0, Status.INFEASIBLE, 0]
    assert (grad[[1, 3]] == 0).all()
    assert (grad_alone != 0).any(-1).all()
    close(solution.x[keep], alone.x, 1e-15)
    close(grad[keep], grad_alone, 1e-12)
    close(shared, shared_alone, 1e-12)


def test_ok_switches_gradients_off() -> None:
    x0, time, value = decay_data()
    x = minimize(DECAY, x0, time, value, throw=True).x
    value.requires_grad_()
    attached = attach_gradient(DECAY, x, time, value, ok=torch.tensor([True, False, True]))
    close(flat(attached), flat(x), 1e-15)
    flat(attached).sum().backward()
    assert (value.grad != 0).any(-1).tolist() == [True, False, True]  # type: ignore[union-attr]


def test_a_singular_hessian_switches_gradients_off() -> None:
    """Whatever `ok` says, of x that nothing in the data moves or that is no minimum."""
    problem = Problem(lambda x, target: torch.stack([x[0] - target[0], target[1] * (x[1] - target[0])]), dof=2)
    target = torch.tensor([[1.0, 2], [1, 0], [3, 1]], **DOUBLE).requires_grad_()
    x = target.detach()[:, :1].expand(3, 2)
    for ok in (None, torch.ones(3, dtype=torch.bool)):
        (gradient,) = torch.autograd.grad(attach_gradient(problem, x, target, ok=ok).sum(), target)
        close(gradient, torch.tensor([[2.0, 0], [0, 0], [2, 0]], **DOUBLE), 1e-12)


def test_the_value_is_unchanged_and_x0_gets_no_gradient() -> None:
    x0, time, value = decay_data()
    x0 = (x0[0].requires_grad_(), x0[1])
    value.requires_grad_()
    solution = argmin(DECAY, x0, time, value)
    close(flat(solution.x).detach(), flat(minimize(DECAY, x0, time, value).x), 1e-15)
    assert torch.autograd.grad(flat(solution.x).sum(), x0[0], allow_unused=True)[0] is None


def test_no_graph_where_none_is_wanted() -> None:
    x0, time, value = decay_data()
    assert not flat(argmin(DECAY, x0, time, value).x).requires_grad
    with torch.no_grad():
        assert not flat(argmin(DECAY, x0, time, value.clone().requires_grad_()).x).requires_grad


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_an_empty_batch_belongs_to_the_graph(gradient: Any) -> None:
    x0, time, value = decay_data()
    leaf = time[:1].clone().requires_grad_()
    x = argmin(DECAY, (x0[0][:0], x0[1][:0]), leaf.expand(0, 8), value[:0], gradient=gradient).x
    assert [tuple(a.shape) for a in x] == [(0, 2), (0,)]
    flat(x).sum().backward()
    assert (leaf.grad == 0).all()


def test_an_empty_batch_may_share_data_and_make_its_start() -> None:
    _, time, value = decay_data()
    solution = argmin(DECAY, lambda time, value: (value[:, :2], value[:, 0]), time[:1], value[:0])
    assert [tuple(a.shape) for a in solution.x] == [(0, 2), (0,)]


def test_errors_name_the_argument() -> None:
    x0, time, value = decay_data()
    with pytest.raises(ValueError, match=r"gradient must be .*'adjoint'"):
        argmin(DECAY, x0, time, value, gradient="adjoint")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gradient must be .*'unrolled'"):
        attach_gradient(DECAY, x0, time, value, gradient="unrolled")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\[1\] must have leading size"):
        attach_gradient(DECAY, x0, time, value[:2])
    for ok, said in (
        (torch.zeros(3, dtype=torch.int8), "ok must be of dtype torch.bool, got torch.int8: ok != 0"),
        (torch.ones(2, dtype=torch.bool), r"ok must have shape \(3,\), got \(2,\)"),
        (True, "ok must be a torch.Tensor, got True"),
    ):
        with pytest.raises(ValueError, match=f"^{said}"):
            attach_gradient(DECAY, x0, time, value, ok=ok)  # type: ignore[arg-type]


def test_covariance_of_a_line_is_the_textbook_s() -> None:
    g = torch.Generator().manual_seed(3)
    A = torch.stack([torch.ones(2, 9, **DOUBLE), torch.randn(2, 9, generator=g, **DOUBLE)], -1)
    b = torch.randn(2, 9, generator=g, **DOUBLE)
    line = Problem(lambda x, A, b: A @ x - b, dof=2)
    solution = minimize(line, torch.zeros(2, 2, **DOUBLE), A, b)
    inverse = torch.linalg.inv(A.mT @ A)
    close(covariance(line, solution.x, A, b, sigma=0.3), 0.09 * inverse, 1e-14)
    residual = (A @ solution.x[..., None]).squeeze(-1) - b  # type: ignore[index]
    variance = residual.square().sum(-1) / (9 - 2)
    close(covariance(line, solution.x, A, b), variance[:, None, None] * inverse, 1e-13)


def test_covariance_is_nan_where_the_data_do_not_determine_x() -> None:
    line = Problem(lambda x, A, b: A @ x - b, dof=2)
    A = torch.tensor([[[1.0, 1], [1, 2], [1, 3]], [[1, 1], [2, 2], [3, 3]]], **DOUBLE)
    found = covariance(line, torch.zeros(2, 2, **DOUBLE), A, torch.ones(2, 3, **DOUBLE))
    assert torch.isfinite(found[0]).all()
    assert torch.isnan(found[1]).all()


@pytest.mark.parametrize("given", [True, False])
def test_covariance_is_that_of_noisy_solves(make_scene: Any, given: bool) -> None:
    """2000 solves of one PnP: the estimate's error is about sqrt(2 / 2000) = 3 % of each principal variance."""
    B, sigma = 2000, 0.8
    scene = make_scene(1, 12, 0.0, seed=6)
    noise = sigma * torch.randn(B, 12, 2, generator=torch.Generator().manual_seed(0), **DOUBLE)
    solution = pnp(scene.points2d + noise, scene.points3d, scene.K, init=scene.world_to_camera_gt)
    assert solution.converged.all()
    R, t = solution.x[:, :3, :3], solution.x[:, :3, 3]  # type: ignore[index]
    R0, t0 = scene.world_to_camera_gt[0, :3, :3], scene.world_to_camera_gt[0, :3, 3]
    steps = torch.cat([se3.log(R @ R0.mT), t - t0], -1)
    empirical = steps.mT @ steps / B
    ones, mask = torch.ones(1, 12, 2, **DOUBLE), torch.ones(1, 12, dtype=torch.bool)
    data = scene.points2d + noise, scene.points3d, scene.K[None], scene.points2d.new_zeros(1, 0), ones, mask
    predicted = covariance(pnp_problem(), solution.x, *data, sigma=sigma if given else None).mean(0)
    # whitened by the prediction, the empirical covariance is the identity
    L = torch.linalg.cholesky(predicted)
    white = torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, empirical, upper=False).mT, upper=False)
    assert torch.linalg.eigvalsh(white).sub(1).abs().max() < 0.2


def test_covariance_against_opencv_s_jacobian(make_scene: Any) -> None:
    import cv2

    scene = make_scene(1, 12, 1.0, distorted=True, seed=6)
    solution = pnp(scene.points2d, scene.points3d, scene.K, distortion=scene.distortion)
    six = se3.rotvec_t(solution.x)[0]  # type: ignore[arg-type]
    arrays = scene.points3d[0].numpy(), six[:3].numpy(), six[3:].numpy(), scene.K.numpy(), scene.distortion.numpy()
    J = torch.from_numpy(cv2.projectPoints(*arrays)[1][:, :6])
    # OpenCV moves the rotation vector, we turn the camera: d omega / d rotvec
    turn = torch.autograd.functional.jacobian(
        lambda v: se3.log(se3.exp(v) @ solution.x[0, :3, :3].mT),
        six[:3],  # type: ignore[index]
    )
    J = torch.cat([J[:, :3] @ torch.linalg.inv(turn), J[:, 3:]], -1)
    ones, mask = torch.ones(1, 12, 2, **DOUBLE), torch.ones(1, 12, dtype=torch.bool)
    data = scene.points2d, scene.points3d, scene.K[None], scene.distortion[None], ones, mask
    found = covariance(pnp_problem(), solution.x, *data, sigma=1.0)[0]
    expected = torch.linalg.inv(J.mT @ J)
    close(found / expected.abs().max(), expected / expected.abs().max(), 1e-8)


@pytest.mark.slow
def test_unrolled_gradients_do_not_depend_on_how_long_others_of_the_batch_run() -> None:
    """Rosenbrock's valley: one problem starts near its minimum, the others need a hundred steps and more."""

    def valley(x: Tensor, end: Tensor) -> Tensor:
        return torch.stack([100 * (x[1] - x[0] ** 2), end - x[0]])

    problem = Problem(valley, dof=2)
    end = torch.tensor([1.0, 2.0, 3.0], **DOUBLE)
    x0 = torch.tensor([[0.99, 0.98], [-6.0, 1.0], [-8.0, 5.0]], **DOUBLE)

    def gradient(rows: slice) -> tuple[Tensor, Tensor]:
        leaf = end[rows].clone().requires_grad_()
        found = argmin(problem, x0[rows], leaf, gradient="unrolled", max_steps=500)
        found.x.sum().backward()
        assert found.converged.all()
        assert leaf.grad is not None
        return leaf.grad, found.steps

    together, steps = gradient(slice(None))
    assert steps[0] < 20
    assert steps[1:].min() > 60
    close(together, 1 + 2 * end, 1e-6)  # the minimum is (end, end^2)
    close(together, torch.cat([gradient(slice(i, i + 1))[0] for i in range(3)]), 1e-12)
