"""Gradients of `pnp` in each of its inputs against finite differences and against each other."""

from typing import Any

import pytest
import torch
from torch import Tensor

from geometry import cauchy, geman_mcclure, huber, pnp, se3
from geometry.camera import Model
from geometry.robust import Kernel
from tests.geometry.pose.solving import inputs_of
from tests.numbers import STENCIL, slope

# finite-difference steps: a part in 1e4 of what each input is made of
STEPS = {"points2d": 0.01, "points3d": 2e-4, "K": 0.06, "distortion": 6e-5, "weights": 6e-4}


def tangent(pose: Tensor, origin: Tensor) -> Tensor:
    """Six-vector (B,6) of a pose relative to a fixed one: log(R R0^T), t - t0."""
    rotvec = se3.log(pose[..., :3, :3] @ origin[..., :3, :3].mT)
    return torch.cat([rotvec, pose[..., :3, 3] - origin[..., :3, 3]], -1)


def directions_of(inputs: dict[str, Tensor], seed: int = 8) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    directions = {k: torch.randn(v.shape, generator=g, dtype=torch.float64).to(v.dtype) for k, v in inputs.items()}
    directions["K"][:, 2] = 0  # its last row is (0, 0, 1) by convention
    return directions


def analytic(inputs: dict[str, Tensor], init: Tensor, **options: Any) -> dict[str, Tensor]:
    """d tangent / d direction (B,6) of every input by the layer's backward pass."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    directions = directions_of(inputs)
    solution = pnp(**leaves, init=init, **options)  # type: ignore[arg-type]
    assert solution.converged.all()
    six = tangent(solution.x, solution.x.detach())  # type: ignore[union-attr, arg-type]
    rows = [torch.autograd.grad(six[:, j].sum(), list(leaves.values()), retain_graph=True) for j in range(6)]
    return {
        name: torch.stack([(row[i] * directions[name]).flatten(1).sum(1) for row in rows], -1)
        for i, name in enumerate(leaves)
    }


def numeric(inputs: dict[str, Tensor], init: Tensor, shrink: float = 1.0, **options: Any) -> dict[str, Tensor]:
    """The same by central differences: all inputs and all stencil points are one batch."""
    steps = {name: shrink * h for name, h in STEPS.items()}
    directions = directions_of(inputs)
    shifted: dict[str, list[Tensor]] = {name: [] for name in inputs}
    for moving in inputs:
        for k in STENCIL:
            for name, value in inputs.items():
                shifted[name].append(value + k * steps[name] * directions[name] * (name == moving))
    count = len(inputs) * len(STENCIL)
    batch = {name: torch.cat(values) for name, values in shifted.items()}
    solution = pnp(**batch, init=init.repeat(count, 1, 1), **options)  # type: ignore[arg-type]
    assert solution.converged.all()
    six = tangent(solution.x, init.repeat(count, 1, 1)).view(len(inputs), len(STENCIL), -1, 6)  # type: ignore[arg-type]
    return {name: slope(six[i], steps[name]) for i, name in enumerate(inputs)}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: (found[k].double() - v).norm(dim=-1) / v.norm(dim=-1) for k, v in expected.items()}


LENSES: list[tuple[Model, bool]] = [("radtan", False), ("radtan", True), ("fisheye", True)]


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
@pytest.mark.parametrize(("model", "distorted"), LENSES)
def test_gradient_of_every_input(make_scene: Any, model: Model, distorted: bool, noise: float) -> None:
    scene = make_scene(4, 12, noise, model=model, distorted=distorted, seed=1)
    inputs = inputs_of(scene)
    optimum = pnp(**inputs, init=scene.world_to_camera_gt, model=model).x
    found, expected = analytic(inputs, optimum, model=model), numeric(inputs, optimum, model=model)
    if noise == 0:  # the residual vanishes, so no weight has a say
        assert found.pop("weights").abs().max() < 1e-12
        assert expected.pop("weights").abs().max() < 1e-10
    assert set(found) >= {"points2d", "points3d", "K"}
    for name, error in errors(found, expected).items():
        assert error.max() < 2e-9, name


@pytest.mark.parametrize("name", ["huber", "cauchy", "geman_mcclure"])
def test_gradient_under_a_robust_kernel(make_scene: Any, name: str) -> None:
    """At 10 px of noise most points lie where the kernel bends."""
    kernel: Kernel = {"huber": huber(3.0), "cauchy": cauchy(6.0), "geman_mcclure": geman_mcclure(8.0)}[name]
    scene = make_scene(5, 12, 10.0, seed=1)
    inputs = inputs_of(scene)
    optimum = pnp(**inputs, init=scene.world_to_camera_gt, kernel=kernel, max_steps=500, throw=True).x
    # Huber's second derivative jumps, and a stencil that straddles the jump measures nothing: hence a narrow one
    expected = numeric(inputs, optimum, 0.02 if name == "huber" else 1.0, kernel=kernel)
    for moved, e in errors(analytic(inputs, optimum, kernel=kernel), expected).items():
        assert e.max() < 1e-7, moved


@pytest.mark.parametrize("solve_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_float32_gradient(make_scene: Any, noise: float, solve_dtype: torch.dtype) -> None:
    scene = make_scene(8, 12, noise, seed=2)
    inputs = inputs_of(scene)
    expected = analytic(inputs, scene.world_to_camera_gt)
    small = {name: value.float() for name, value in inputs.items()}
    found = analytic(small, scene.world_to_camera_gt.float(), solve_dtype=solve_dtype)
    assert all(value.dtype == torch.float32 for value in found.values())
    if noise == 0:
        assert found.pop("weights").abs().max() < 1e-4
        expected.pop("weights")
    for name, error in errors(found, expected).items():
        assert error.median() < 1e-3, name


def test_gauss_newton_and_unrolled_gradients_by_name(make_scene: Any) -> None:
    """Gauss-Newton is off by the curvature of the residual, the unrolled one by the solver's last step."""
    scene = make_scene(8, 12, 10.0, seed=3)
    inputs = inputs_of(scene)
    exact = analytic(inputs, scene.world_to_camera_gt)
    approximate = errors(analytic(inputs, scene.world_to_camera_gt, gradient="gauss_newton"), exact)
    unrolled = errors(analytic(inputs, scene.world_to_camera_gt, gradient="unrolled"), exact)
    assert 1e-3 < approximate["points2d"].median() < 0.1
    assert unrolled["points2d"].median() < 1e-2
    # begun at the minimum there is nothing to unroll but one Gauss-Newton step
    optimum = pnp(**inputs, init=scene.world_to_camera_gt).x
    at_once = analytic(inputs, optimum, gradient="unrolled")
    assert errors(at_once, exact)["points2d"].median() < 0.1
    still = inputs_of(make_scene(8, 12, 0.0, seed=3))
    exact = analytic(still, scene.world_to_camera_gt)
    approximate = errors(analytic(still, scene.world_to_camera_gt, gradient="gauss_newton"), exact)
    assert approximate["points2d"].max() < 1e-9
