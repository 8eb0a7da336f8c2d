"""No gradient is lost without a word: what a minimum depends on gets one, or is refused by name.

A kernel's scale is learned as a divisor of the weights; held against finite differences.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import geometry
from geometry import (
    Constrained,
    Prior,
    Problem,
    argmin,
    attach_gradient,
    barron,
    bundle,
    cauchy,
    geman_mcclure,
    huber,
    minimize,
    pnp,
    pnp_ransac,
    project,
    rig_pnp,
    se3,
)
from geometry.robust import RobustKernel
from tests.numbers import DOUBLE, central_difference, close, generator, normal

KERNELS = {"huber": huber, "cauchy": cauchy, "geman_mcclure": geman_mcclure, "barron": partial(barron, 0.5)}
V, N = 3, 12
K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)
POINTS = 2 * torch.rand(N, 3, generator=generator(), **DOUBLE) - 1
POSES = se3.from_rotvec_t(0.3 * normal(V, 6, seed=1) + torch.tensor([0, 0, 0, 0, 0, 8.0]))
PIXELS = project(POINTS, POSES, K) + normal(V, N, 2, seed=2)
VIEWS, TRACKS = (t.flatten() for t in torch.meshgrid(torch.arange(V), torch.arange(N), indexing="ij"))
RIG = se3.from_rotvec_t(torch.tensor([[0.0] * 6, [0.1, 0, 0, 0.4, 0, 0]], **DOUBLE))
LINE = lambda x, a, b: x[0] * a + x[1] - b
START, A, B = torch.zeros(1, 2, **DOUBLE), torch.linspace(0, 1, N, **DOUBLE)[None], normal(1, N, seed=3)
SCALE = torch.tensor(1.5, **DOUBLE, requires_grad=True)  # of this module: functions name it, and enclose nothing


def by_pnp(scale: Tensor, kernel: Callable[[float], RobustKernel]) -> Tensor:
    return pnp(PIXELS, POINTS, K, init=POSES, weights=(1 / scale).expand(N), kernel=kernel(1.0)).x


def by_ransac(scale: Tensor, kernel: Callable[[float], RobustKernel]) -> Tensor:
    found = pnp_ransac(
        PIXELS, POINTS, K, weights=(1 / scale).expand(N), threshold=40 / float(scale), kernel=kernel(1.0),
        generator=generator(1),
    )  # fmt: skip
    return found.x


def by_bundle(scale: Tensor, kernel: Callable[[float], RobustKernel]) -> Tensor:
    known = Prior(POSES, (100 / scale).expand(6))
    found = bundle(
        PIXELS.flatten(0, 1), VIEWS, TRACKS, POSES, POINTS, K, weights=(1 / scale).expand(V * N), prior=known,
        kernel=kernel(1.0),
    )  # fmt: skip
    return found.x.world_to_camera


def by_argmin(scale: Tensor, kernel: Callable[[float], RobustKernel]) -> Tensor:
    problem = Problem(lambda x, a, b, scale: LINE(x, a, b) / scale, dof=2, kernel=kernel(1.0))
    return argmin(problem, START, A, B, scale[None]).x


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("solved", [by_pnp, by_ransac, by_bundle, by_argmin])
def test_a_scale_that_divides_the_weights_is_learned(solved: Callable[..., Tensor], name: str) -> None:
    at = torch.tensor(0.4 if solved is by_argmin else 1.5, **DOUBLE)
    x = solved(at, KERNELS[name])
    if solved is by_pnp:  # the same minimum
        there = pnp(PIXELS, POINTS, K, init=POSES, kernel=KERNELS[name](1.5))
        close(x, there.x, 1e-9)
    along = normal(*x.shape, seed=5)
    scale = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((solved(scale, KERNELS[name]) * along).sum(), scale)
    wanted = central_difference(lambda h: (solved(at + h, KERNELS[name]) * along).sum(), 1e-4)
    assert gradient.abs() > 1e-6
    close(gradient, wanted, atol=1e-6 * float(wanted.abs()))


@pytest.mark.parametrize("name", KERNELS)
def test_a_scale_is_a_number(name: str) -> None:
    with pytest.raises(ValueError, match=r"^scale must be a number, and to learn one divide the weights by it, got"):
        KERNELS[name](SCALE)


def welsch(s: Tensor, scale: Tensor) -> Tensor:
    return scale**2 * (1 - torch.exp(-s / scale**2))


def of_the_module(s: Tensor) -> Tensor:
    return welsch(s, SCALE)


@dataclass(frozen=True)
class Held:
    scale: Tensor

    def __call__(self, s: Tensor) -> Tensor:
        return welsch(s, self.scale)


class Plain:
    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def rho(self, s: Tensor) -> Tensor:
        return welsch(s, self.scale)


class Layer(torch.nn.Module):
    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(scale.detach(), requires_grad=scale.requires_grad)

    def forward(self, s: Tensor) -> Tensor:
        return welsch(s, self.scale)


HOLDERS: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    "enclosed": lambda scale: lambda s: welsch(s, scale),
    "enclosed twice": lambda scale: lambda s: (lambda t: welsch(t, scale))(s),
    "default": lambda scale: lambda s, scale=scale: welsch(s, scale),
    "keyword": lambda scale: partial(welsch, scale=scale),
    "dataclass": Held,
    "method": lambda scale: Plain(scale).rho,
    "module": Layer,
}


def calls(kernel: Callable) -> dict[str, Callable[[], Any]]:
    problem = Problem(LINE, dof=2, kernel=kernel)
    return {
        "pnp": lambda: pnp(PIXELS, POINTS, K, init=POSES, kernel=kernel),
        "pnp, global": lambda: pnp(PIXELS, POINTS, K, kernel=kernel),
        "pnp_ransac": lambda: pnp_ransac(PIXELS, POINTS, K, kernel=kernel),
        "rig_pnp": lambda: rig_pnp(PIXELS, POINTS, K, RIG, TRACKS[:N] % 2, init=POSES, kernel=kernel),
        "bundle": lambda: bundle(PIXELS.flatten(0, 1), VIEWS, TRACKS, POSES, POINTS, K, kernel=kernel, max_steps=1),
        "argmin": lambda: argmin(problem, START, A, B),
        "attach_gradient": lambda: attach_gradient(problem, START, A, B),
        "constrained": lambda: argmin(Constrained(problem, lambda x, a, b: x[:1]), START, A, B),
    }


@pytest.mark.parametrize("call", calls(welsch))
@pytest.mark.parametrize("holder", [*HOLDERS, "module of the file"])
def test_a_kernel_s_tensor_that_wants_a_gradient_is_named(call: str, holder: str) -> None:
    kernel = of_the_module if holder == "module of the file" else HOLDERS[holder](SCALE)
    with pytest.raises(
        ValueError, match=r"^kernel must not use a tensor .* requires a gradient.*got '(scale|SCALE|a default)'"
    ):
        calls(kernel)[call]()


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_kernel_s_tensor_that_wants_none_is_a_number(holder: str) -> None:
    found = calls(HOLDERS[holder](SCALE.detach()))["argmin"]().x
    with torch.no_grad():  # nobody asks for a gradient
        close(calls(HOLDERS[holder](SCALE))["argmin"]().x, found, 0)


def test_a_residual_and_constraints_are_asked_as_well() -> None:
    offset = torch.tensor(0.1, **DOUBLE, requires_grad=True)
    moved = Problem(lambda x, a, b: LINE(x, a, b) + offset * a**2, dof=2)
    for call in (lambda: argmin(moved, START, A, B), lambda: attach_gradient(moved, START, A, B)):
        with pytest.raises(ValueError, match=r"^residual must not use .*got 'offset'"):
            call()
    constrained = Constrained(Problem(LINE, dof=2), lambda x, a, b: x[:1] - offset)
    with pytest.raises(ValueError, match=r"^equality must not use .*got 'offset'"):
        argmin(constrained, START, A, B)
    assert not minimize(moved, START, A, B).x.requires_grad  # which says that it has no graph
    assert not geometry.covariance(moved, START, A, B).requires_grad


def test_unrolled_has_the_gradient_of_what_is_enclosed() -> None:
    def found(scale: Tensor) -> Tensor:
        return argmin(Problem(LINE, dof=2, kernel=lambda s: welsch(s, scale)), START, A, B, gradient="unrolled").x[0, 0]

    at = torch.tensor(1.5, **DOUBLE)
    scale = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(found(scale), scale)
    wanted = central_difference(lambda h: found(at + h), 1e-2)
    close(gradient, wanted, atol=1e-5 * float(wanted.abs()))  # as exact as its steps have converged
