"""What a thread of a CUDA device would do, as plain Python: equal to the kernels of the CPU in every option."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.benchmarks.places import StandIn, simulated_grid
from geometry import pnp, project, se3
from geometry.camera import Model
from geometry.optim import Status
from geometry.pose import back_end, cpu, cuda
from geometry.robust import RobustKernel
from tests.numbers import DOUBLE, close, generator, normal

ROBUST = {
    "none": (1.0, 1.0), "huber": (2.0, 1.0), "cauchy": (2.0, 1.0), "geman_mcclure": (4.0, 1.0), "barron": (2.0, -1.0),
}  # fmt: skip
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-4}


@pytest.fixture(autouse=True, params=["cuda", "warp"])
def _simulated(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A problem a thread, or a team of four, which stands for the 32 of a warp."""
    simulated_grid(request.param)  # importing it makes constants
    monkeypatch.setattr(cuda, "grid", simulated_grid)
    monkeypatch.setattr(cuda, "_MANY", 0 if request.param == "cuda" else math.inf)
    monkeypatch.setattr(cuda, "_WARP", 4)


def problems(make_scene: Callable[..., Any], lens: str, dtype: torch.dtype, B: int = 5) -> tuple[list[Tensor], Tensor]:
    """Data of some problems of ten points with weights, and poses near the right ones.

    In each one point is masked and holds NaN, another has weight zero. One problem has too few points, and the points
    of the last lie on a line.
    """
    model: Model = "fisheye" if lens == "fisheye" else "radtan"
    scene = make_scene(B, 10, 0.5, model=model, distorted=lens != "none", depth=1.5 if model == "fisheye" else 6.0)
    i = torch.arange(B)
    points3d = scene.points3d.clone()
    points3d[-1] = points3d[-1, :1] * torch.linspace(-1, 1, 10, **DOUBLE)[:, None]
    distortion = scene.distortion[None]
    if lens == "rational":
        more = torch.tensor([[0.01, 0.002, 1e-4, 1e-3, -1e-3, 5e-4, 1e-4]], **DOUBLE)
        distortion = torch.cat([scene.distortion[None], more], 1)
    pixels = project(points3d, scene.world_to_camera_gt, scene.K, distortion, model=model) + 0.5 * normal(
        B, 10, 2, seed=1
    )
    pixels[i, i + 2] = torch.nan
    weights = 0.5 + torch.rand(B, 10, 2, generator=generator(3), **DOUBLE)
    weights[i, i] = 0.0
    mask = torch.ones(B, 10, dtype=torch.bool)
    mask[i, i + 2] = False
    mask[-2, :8] = False
    near = se3.retract(scene.world_to_camera_gt, 0.05 * normal(B, 6, seed=2))
    data = [pixels, points3d, scene.K[None], distortion, weights]
    return [*(d.to(dtype) for d in data), mask], near.to(dtype)


def largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("lens", ["none", "radtan", "rational", "fisheye"])
@pytest.mark.parametrize("robust", ROBUST)
def test_minima_and_gradients(make_scene: Callable[..., Any], robust: str, lens: str, dtype: torch.dtype) -> None:
    data, near = problems(make_scene, lens, dtype)
    how, tolerance = ("fisheye" if lens == "fisheye" else "radtan", robust, *ROBUST[robust]), PRECISION[dtype]
    expected = cpu.solve(*data, near, *how, 50, 3, True)
    found = cuda.solve(*data, near, *how, 50, 3, True)
    assert expected[2].tolist() == found[2].tolist() == [Status.CONVERGED] * 3 + [Status.TOO_FEW, Status.SINGULAR]
    good = expected[2] == Status.CONVERGED
    close(found[0][good], expected[0][good], tolerance)
    # what a cost changes by where every pixel is rounded: its slope is sqrt(2 cost) in the space of residuals
    pixels = torch.finfo(dtype).eps * largest(data[0][data[5]])
    rounding = pixels * float((2 * expected[1][good].max() * data[4].square().sum((1, 2)).max()).sqrt())
    close(found[1][good], expected[1][good], rounding, tolerance)
    seeds = normal(*near.shape, seed=4).to(dtype)
    for exact in (True, False):
        rest = (expected[0], seeds, expected[2], *how, exact, [True] * 5)
        for g, e in zip(cuda.adjoint(*data, *rest), cpu.adjoint(*data, *rest), strict=True):
            close(g, e, tolerance * (1 + largest(e)))


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("robust", ["none", "huber"])
@pytest.mark.parametrize(("model", "planar"), [("radtan", False), ("radtan", True), ("fisheye", False)])
def test_global_search(
    make_scene: Callable[..., Any], model: Model, planar: bool, robust: str, dtype: torch.dtype
) -> None:
    scene = make_scene(3, 8, 0.5, model=model, planar=planar, distorted=True, dtype=dtype)
    shared = (scene.K[None], scene.distortion[None], torch.ones(1, 1, 1, dtype=dtype), torch.ones(1, 1) == 1)
    data, how = (scene.points2d, scene.points3d, *shared), (model, robust, *ROBUST[robust])
    for f, e in zip(cuda.search(*data, *how, 50), cpu.search(*data, *how, 50), strict=True):
        close(f, e, 1e-10 if dtype == torch.float64 else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["more than are refined first", "a few decide", "all of one thread are hidden", "none"]
)
def test_global_search_by_what_is_seen_of_the_points(make_scene: Callable[..., Any], kind: str) -> None:
    B, N = (1, 70) if kind == "many" else (3, 12)
    scene = make_scene(B, N, 0.5)
    weights, mask = torch.ones(1, N, 2, **DOUBLE), torch.ones(1, N) == 1
    if kind == "a few decide":
        weights[0, [1, 4, 5, 10]] = torch.tensor([100.0, 90.0, 80.0, 70.0], **DOUBLE)[:, None]
    if kind == "all of one thread are hidden":
        mask[0, 2::4] = False
    if kind == "none":
        mask[:] = False
    data = [scene.points2d, scene.points3d, scene.K[None], torch.zeros(1, 0, **DOUBLE), weights, mask]
    how = "radtan", "none", 1.0, 1.0, 50
    for f, e in zip(cuda.search(*data, *how), cpu.search(*data, *how), strict=True):
        close(f, e, 1e-10)


def test_shared_arguments_have_the_gradients_of_all(make_scene: Callable[..., Any]) -> None:
    data, near = problems(make_scene, "radtan", torch.float64)
    data = [data[0], *(d[:1] for d in data[1:5]), data[5]]
    poses, _, statuses, _ = cpu.solve(*data, near, "radtan", "none", 1.0, 1.0, 50, 3, True)
    rest = (poses, normal(*near.shape), statuses, "radtan", "none", 1.0, 1.0, True, [True, True, False, True, True])
    for g, e in zip(cuda.adjoint(*data, *rest), cpu.adjoint(*data, *rest), strict=True):
        close(g, e, 1e-12 * (1 + largest(e)))


@pytest.mark.parametrize("name", ["points2d", "points3d", "K", "distortion", "weights", "init"])
def test_what_is_not_finite_makes_its_own_problem_infeasible(make_scene: Callable[..., Any], name: str) -> None:
    data, near = problems(make_scene, "radtan", torch.float64, 4)
    expected = cuda.solve(*data, near, "radtan", "none", 1.0, 1.0, 50, 3, True)
    wrong = [d.expand(4, *d.shape[1:]).clone() for d in [*data[:5], near]]
    wrong[["points2d", "points3d", "K", "distortion", "weights", "init"].index(name)][1].view(-1)[0] = torch.inf
    found = cuda.solve(*wrong[:5], data[5], wrong[5], "radtan", "none", 1.0, 1.0, 50, 3, True)
    assert found[2][1] == Status.INFEASIBLE
    assert torch.isfinite(found[0]).all()
    others = [0, 2, 3]
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f[others], e[others])


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("robust", [None, RobustKernel("huber", 2.0)])
def test_a_call_is_a_few_launches_that_nothing_waits_for(
    make_scene: Callable[..., Any], start: bool, robust: RobustKernel | None
) -> None:
    scene = make_scene(3, 8, 0.5, distorted=True)
    near = se3.retract(scene.world_to_camera_gt, 0.02 * normal(3, 6))
    options: dict[str, Any] = {"distortion": scene.distortion, "kernel": robust} | ({"init": near} if start else {})
    expected = [d.clone().requires_grad_() for d in scene[:3]]
    found = [d.clone().requires_grad_() for d in scene[:3]]
    on_cpu = pnp(*expected, **options)
    (on_cpu.x * near).sum().backward()
    with StandIn() as device:
        on_device = pnp(*found, **options)
        (on_device.x * near).sum().backward()
    assert device.kernels == {"solve": 1, "adjoint": 1} | ({} if start else {"search": 1})
    assert device.waits == 0
    assert device.launches <= 10 + 3  # the product, its sum, and their gradient
    assert torch.equal(on_device.status, on_cpu.status)
    close(on_device.x, on_cpu.x.detach(), 1e-10)
    for f, e in zip(found, expected, strict=True):
        close(f.grad, e.grad, 1e-9 * (1 + largest(e.grad)))


def test_which_back_end_solves() -> None:
    pixels = torch.zeros(2, 8, 2)
    assert back_end(pixels) == back_end(pixels, kernel=RobustKernel("huber", 1.0)) == "compiled"
    assert back_end(pixels, model="fisheye") == "compiled"
    assert back_end(pixels, kernel=lambda s: s) == back_end(pixels.to("meta")) == "tensors"
    with pytest.raises(ValueError, match="model"):
        back_end(pixels, model="pinhole")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="points2d"):
        back_end([1.0])  # type: ignore[arg-type]
