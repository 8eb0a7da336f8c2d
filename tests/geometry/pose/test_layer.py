from typing import Any

import cv2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geometry import BPnP, SolverError, Status, cauchy, geman_mcclure, huber, pnp, project, se3
from geometry.camera import Model, in_front
from geometry.robust import Kernel
from tests.numbers import DOUBLE, STENCIL, close, slope

# finite-difference steps: a part in 1e4 of what each input is made of
STEPS = {"points2d": 0.01, "points3d": 2e-4, "K": 0.06, "distortion": 6e-5, "weights": 6e-4}


def tangent(pose: Tensor, origin: Tensor) -> Tensor:
    """Six-vector (B,6) of a pose relative to a fixed one: log(R R0^T), t - t0."""
    rotvec = se3.log(pose[..., :3, :3] @ origin[..., :3, :3].mT)
    return torch.cat([rotvec, pose[..., :3, 3] - origin[..., :3, 3]], -1)


def inputs_of(scene: Any, seed: int = 7) -> dict[str, Tensor]:
    """Every differentiable input of `pnp`, one of each per problem, with uneven weights."""
    B, N, _ = scene.points2d.shape
    g = torch.Generator().manual_seed(seed)
    inputs = {
        "points2d": scene.points2d,
        "points3d": scene.points3d,
        "K": scene.K.expand(B, 3, 3),
        "weights": (0.7 + 0.6 * torch.rand(B, N, 2, generator=g, dtype=torch.float64)).to(scene.K.dtype),
    }
    if len(scene.distortion):
        inputs["distortion"] = scene.distortion.expand(B, -1)
    return {name: value.clone() for name, value in inputs.items()}


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


@pytest.mark.parametrize("distorted", [False, True])
@pytest.mark.parametrize("N", [4, 10, 60])
def test_cost_is_never_above_opencv_s(make_scene: Any, N: int, distorted: bool) -> None:
    scene = make_scene(15, N, 1.0, distorted=distorted, seed=N)
    ours = pnp(scene.points2d, scene.points3d, scene.K, distortion=scene.distortion)
    assert ours.converged.all()
    for i in range(15):
        start = se3.rotvec_t(scene.world_to_camera_gt[i]).numpy()
        arrays = scene.points3d[i].numpy(), scene.points2d[i].numpy(), scene.K.numpy(), scene.distortion.numpy()
        _, rvec, tvec = cv2.solvePnP(
            *arrays, start[:3, None].copy(), start[3:, None].copy(), True, cv2.SOLVEPNP_ITERATIVE
        )  # fmt: skip
        rvec, tvec = cv2.solvePnPRefineLM(*arrays, rvec, tvec)
        theirs = se3.from_rotvec_t(torch.from_numpy(cv2.vconcat([rvec, tvec])[:, 0]))
        r = project(scene.points3d[i], theirs, scene.K, scene.distortion) - scene.points2d[i]
        assert ours.cost[i] <= 0.5 * r.square().sum() * (1 + 1e-9)
        if N >= 10:  # four noisy points may have a second, deeper minimum
            close(ours.x[i], theirs, 1e-5)  # type: ignore[index]


def solve_with_gradients(inputs: dict[str, Any], **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """Solution, and the gradients of one fixed function of the poses to all floating inputs."""
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    solution = pnp(**leaves, **options)
    covector = torch.linspace(-1, 1, 12, dtype=solution.cost.dtype).view(3, 4)
    (solution.x[:, :3] * covector).sum().backward()
    return solution, {k: v.grad for k, v in leaves.items() if v.is_floating_point()}


@pytest.mark.parametrize("start", ["init", "global"])
def test_weight_zero_is_masked_is_absent(make_scene: Any, start: str) -> None:
    scene = make_scene(3, 14, 2.0, distorted=start == "init", seed=5)
    options = {"init": scene.world_to_camera_gt} if start == "init" else {}
    inputs = inputs_of(scene)
    few = {k: v[:, :10] if k in ("points2d", "points3d", "weights") else v for k, v in inputs.items()}
    absent, gradient = solve_with_gradients(few, **options)
    assert absent.converged.all()

    wild = {k: v.clone() for k, v in inputs.items()}
    wild["points2d"][:, 10:], wild["points3d"][:, 12:, 2] = 1e4, -100.0  # some behind the camera
    mask = torch.arange(14).expand(3, 14) < 10
    unseen = {**wild, "weights": torch.where(mask[..., None], wild["weights"], 0)}
    broken = {k: v.clone() for k, v in wild.items()}
    for name in ("points2d", "points3d", "weights"):
        broken[name][:, 10:] = torch.nan
    for case in (unseen, {**wild, "mask": mask}, {**broken, "mask": mask}):
        solution, found = solve_with_gradients(case, **options)
        close(solution.x, absent.x, 1e-12)
        close(solution.cost, absent.cost, 1e-10)
        assert torch.equal(solution.status, absent.status)
        for name, g in found.items():
            per_point = name in ("points2d", "points3d", "weights")
            close(g[:, :10] if per_point else g, gradient[name], 1e-11, 1e-11)
            if per_point:
                assert (g[:, 10:] == 0).all(), name


def test_order_of_the_points_changes_nothing(make_scene: Any) -> None:
    scene = make_scene(3, 12, 2.0, seed=6)
    inputs = inputs_of(scene)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = {k: v[:, order] if k in ("points2d", "points3d", "weights") else v for k, v in inputs.items()}
    (a, grad_a), (b, grad_b) = solve_with_gradients(inputs), solve_with_gradients(mixed)
    close(a.x, b.x, 1e-12)
    for name in ("points2d", "points3d", "weights"):
        close(grad_a[name][:, order], grad_b[name], 1e-11)
    close(grad_a["K"], grad_b["K"], 1e-11)


def test_shared_inputs_are_expanded_ones_with_the_summed_gradient(make_scene: Any) -> None:
    scene = make_scene(4, 12, 0.0, distorted=True, seed=7)
    shared = {"points3d": scene.points3d[0], "K": scene.K, "distortion": scene.distortion}
    pixels = project(shared["points3d"], scene.world_to_camera_gt, scene.K, scene.distortion)
    pixels = pixels + torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.rand(1, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    init = scene.world_to_camera_gt
    a, grad_a = solve_with_gradients({"points2d": pixels, "weights": weights, **shared}, init=init)
    expanded = {k: v.expand(4, *v.shape).clone() for k, v in shared.items()}
    b, grad_b = solve_with_gradients(
        {"points2d": pixels, "weights": weights.expand(4, 12).clone(), **expanded}, init=init
    )
    leading = {k: v[None].clone() for k, v in shared.items()}
    c, grad_c = solve_with_gradients({"points2d": pixels, "weights": weights, **leading}, init=init)
    for other, grad, unsqueezed in ((b, grad_b, False), (c, grad_c, True)):
        close(a.x, other.x, 0)
        for name in shared:
            close(grad_a[name], grad[name][0] if unsqueezed else grad[name].sum(0), 1e-12, 1e-12)
    close(grad_a["weights"][0], grad_b["weights"].sum(0), 1e-12, 1e-12)
    close(grad_a["points2d"], grad_b["points2d"], 1e-13)


def test_a_weight_per_point_is_that_of_both_coordinates(make_scene: Any) -> None:
    scene = make_scene(3, 12, 2.0, seed=8)
    weights = torch.rand(3, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    basic = {"points2d": scene.points2d, "points3d": scene.points3d, "K": scene.K}
    a, grad_a = solve_with_gradients({**basic, "weights": weights})
    b, grad_b = solve_with_gradients({**basic, "weights": weights[..., None].expand(3, 12, 2).clone()})
    close(a.x, b.x, 0)
    close(grad_a["weights"], grad_b["weights"].sum(-1), 1e-13)


@pytest.mark.parametrize("factor", [1e-3, 100.0])
def test_units_of_the_object_and_of_the_weights(make_scene: Any, factor: float) -> None:
    scene = make_scene(3, 12, 2.0, seed=9)
    plain = pnp(scene.points2d, scene.points3d, scene.K)
    scaled = pnp(scene.points2d, factor * scene.points3d, scene.K)
    close(scaled.x[:, :3, :3], plain.x[:, :3, :3], 1e-9)  # type: ignore[index]
    close(scaled.x[:, :3, 3] / factor, plain.x[:, :3, 3], 1e-8)  # type: ignore[index]
    close(scaled.cost, plain.cost, 1e-9)
    heavy = pnp(scene.points2d, scene.points3d, scene.K, weights=torch.full((1, 12), factor, dtype=torch.float64))
    close(heavy.x, plain.x, 1e-9)
    close(heavy.cost / factor**2, plain.cost, 0, 1e-10)


def test_moving_the_world_moves_the_pose(make_scene: Any) -> None:
    scene = make_scene(3, 12, 2.0, seed=10)
    move = se3.from_rotvec_t(torch.tensor([1.0, -2, 0.5, 3, -4, 5], dtype=torch.float64))
    plain = pnp(scene.points2d, scene.points3d, scene.K)
    moved = pnp(scene.points2d, se3.transform(move, scene.points3d), scene.K)
    close(moved.x @ move, plain.x, 1e-9)  # type: ignore[operator]


@settings(max_examples=8, deadline=None)
@given(B=st.integers(1, 4), N=st.integers(4, 9), seed=st.integers(0, 1000))
def test_a_batch_is_a_loop(make_scene: Any, B: int, N: int, seed: int) -> None:
    scene = make_scene(B, N, 1.0, seed=seed)
    batch, grad = solve_with_gradients({"points2d": scene.points2d, "points3d": scene.points3d, "K": scene.K})
    assert (batch.status >= 0).all()
    total = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(B):
        one = slice(i, i + 1)
        basic = {"points2d": scene.points2d[one], "points3d": scene.points3d[one], "K": scene.K}
        single, grad_i = solve_with_gradients(basic)
        assert single.status[0] == batch.status[i]
        close(single.x[0], batch.x[i], 1e-10)  # type: ignore[index]
        close(grad_i["points2d"][0], grad["points2d"][i], 1e-9, 1e-8)
        total += grad_i["K"]
    close(total, grad["K"], 1e-9, 1e-8)


@pytest.mark.parametrize("solve_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["init", "global"])
def test_float32_in_float32_out(make_scene: Any, start: str, solve_dtype: torch.dtype) -> None:
    scene = make_scene(4, 20, 1.0, seed=11, dtype=torch.float32)
    init = scene.world_to_camera_gt if start == "init" else None
    solution = pnp(scene.points2d, scene.points3d, scene.K, init=init, solve_dtype=solve_dtype)
    assert solution.x.dtype == solution.cost.dtype == torch.float32  # type: ignore[union-attr]
    assert solution.converged.all()
    exact = pnp(scene.points2d.double(), scene.points3d.double(), scene.K.double())
    close(solution.x.double(), exact.x, 2e-4)  # type: ignore[union-attr]


def test_memory_layout_of_the_inputs_changes_nothing(make_scene: Any) -> None:
    scene = make_scene(3, 12, 1.0, distorted=True, seed=12)
    plain = inputs_of(scene)
    strided = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in plain.items()}
    interleaved = {k: torch.stack([v, v + 1], -1)[..., 0] for k, v in plain.items()}
    assert not strided["points2d"].is_contiguous()
    assert not interleaved["K"].is_contiguous()
    init = scene.world_to_camera_gt
    a, grad_a = solve_with_gradients(plain, init=init)
    for inputs, start in ((strided, init), (interleaved, init), (plain, init.mT.contiguous().mT)):
        b, grad_b = solve_with_gradients(inputs, init=start)
        close(a.x, b.x, 1e-12)
        for name in plain:
            close(grad_a[name], grad_b[name], 1e-11, 1e-11)


def test_inputs_are_not_changed(make_scene: Any) -> None:
    scene = make_scene(3, 12, 1.0, seed=13)
    before = [a.clone() for a in scene]
    pnp(scene.points2d, scene.points3d, scene.K, init=scene.world_to_camera_gt)
    pnp(scene.points2d, scene.points3d, scene.K)
    assert all(torch.equal(a, b) for a, b in zip(before, scene, strict=True))


def test_no_graph_where_no_input_asks_for_one(make_scene: Any) -> None:
    scene = make_scene(2, 8, 1.0)
    assert not pnp(scene.points2d, scene.points3d, scene.K).x.requires_grad  # type: ignore[union-attr]
    leaf = scene.points2d.clone().requires_grad_()
    with torch.no_grad():
        assert not pnp(leaf, scene.points3d, scene.K).x.requires_grad  # type: ignore[union-attr]
    init = scene.world_to_camera_gt.clone().requires_grad_()  # a minimum does not depend on where the search began
    assert not pnp(scene.points2d, scene.points3d, scene.K, init=init).x.requires_grad  # type: ignore[union-attr]


def replaced(scene: Any, **changes: Any) -> dict[str, Any]:
    return {"points2d": scene.points2d, "points3d": scene.points3d, "K": scene.K, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points2d": torch.zeros(6, 2, **DOUBLE)}, r"points2d must have shape \(B,N,2\), got \(6, 2\)"),
        ({"points2d": torch.zeros(2, 6, 3, **DOUBLE)}, r"points2d .*got \(2, 6, 3\)"),
        ({"points2d": torch.zeros(2, 6, 2, dtype=torch.int64)}, r"points2d must be of a floating"),
        ({"points2d": torch.full((2, 6, 2), torch.nan, **DOUBLE)}, r"points2d must be finite"),
        ({"points3d": torch.zeros(2, 5, 3, **DOUBLE)}, r"points3d .*\(2\|1,6,3\) or \(6,3\), got \(2, 5, 3\)"),
        ({"points3d": torch.zeros(6, 2, **DOUBLE)}, r"points3d .*got \(6, 2\)"),
        ({"points3d": torch.zeros(2, 6, 3)}, r"points3d must have the dtype.*float32"),
        ({"points3d": torch.full((2, 6, 3), torch.inf, **DOUBLE)}, r"points3d must be finite"),
        ({"K": torch.zeros(3, 3, 3, **DOUBLE)}, r"K must have shape \(2\|1,3,3\) or \(3,3\), got \(3, 3, 3\)"),
        ({"K": torch.zeros(4, **DOUBLE)}, r"K .*got \(4,\)"),
        ({"K": torch.eye(3)}, r"K must have the dtype.*float32"),
        ({"K": torch.full((3, 3), torch.nan, **DOUBLE)}, r"K must be finite"),
        ({"distortion": torch.zeros(3, **DOUBLE)}, r"distortion .*got shape \(3,\)"),
        ({"distortion": torch.zeros(3, 5, **DOUBLE)}, r"distortion must have shape \(2\|1,k\).*got \(3, 5\)"),
        ({"distortion": torch.zeros(5, **DOUBLE), "model": "fisheye"}, r"distortion .*got shape \(5,\)"),
        ({"distortion": torch.zeros(5)}, r"distortion must have the dtype.*float32"),
        ({"distortion": torch.full((5,), torch.nan, **DOUBLE)}, r"distortion must be finite"),
        ({"weights": torch.zeros(6, **DOUBLE)}, r"weights .*got \(6,\)"),
        ({"weights": torch.zeros(2, 6, 3, **DOUBLE)}, r"weights .*got \(2, 6, 3\)"),
        ({"weights": torch.ones(2, 6)}, r"weights must have the dtype.*float32"),
        ({"weights": torch.full((2, 6), torch.nan, **DOUBLE)}, r"weights must be finite"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, r"mask .*got \(2, 5\)"),
        ({"mask": torch.ones(2, 6, **DOUBLE)}, r"mask must be of dtype torch.bool"),
        ({"init": torch.eye(4, **DOUBLE)}, r"init must have shape \(2\|1,4,4\), got \(4, 4\)"),
        ({"init": torch.eye(4)[None]}, r"init must have the dtype.*float32"),
        ({"init": torch.full((1, 4, 4), torch.nan, **DOUBLE)}, r"init must be finite"),
        ({"model": "pinhole"}, r"model must be one of .*'pinhole'"),
        ({"gradient": "numeric"}, r"gradient must be .*'numeric'"),
    ],
)  # fmt: skip
def test_a_caller_s_mistake_names_the_argument(make_scene: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pnp(**replaced(make_scene(2, 6), **changes))


def test_fewer_points_than_the_pose_needs(make_scene: Any) -> None:
    scene = make_scene(2, 6, seed=0)
    three = replaced(scene, points2d=scene.points2d[:, :3], points3d=scene.points3d[:, :3])
    with pytest.raises(ValueError, match=r"points2d must hold at least 4 points.*N=3"):
        pnp(**three)
    solution = pnp(**three, init=scene.world_to_camera_gt)  # three points fix six numbers, up to a finite choice
    assert solution.converged.all()
    close(solution.x, scene.world_to_camera_gt, 1e-9)
    two = replaced(scene, points2d=scene.points2d[:, :2], points3d=scene.points3d[:, :2])
    with pytest.raises(ValueError, match=r"points2d must hold at least 3 points with init, got N=2"):
        pnp(**two, init=scene.world_to_camera_gt)


# What fails in problem 1 of three, its status, and the arguments that make it fail.
def broken_problem(kind: str, scene: Any) -> tuple[dict[str, Any], Status]:
    inputs: dict[str, Any] = {"points2d": scene.points2d.clone(), "points3d": scene.points3d.clone(), "K": scene.K}
    inputs["init"] = scene.world_to_camera_gt.clone()
    if kind in ("collinear", "collinear, global start"):
        line = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None] * torch.tensor([0.5, 0.3, 0.2], **DOUBLE)
        inputs["points3d"][1] = line
        inputs["points2d"][1] = project(line, scene.world_to_camera_gt[1], scene.K)
        if kind.endswith("start"):
            del inputs["init"]
        return inputs, Status.SINGULAR
    if kind == "init behind the camera":
        inputs["init"][1, 2, 3] = -6
        return inputs, Status.INFEASIBLE
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, 2:] = False
    if kind == "masked, global start":
        mask[1, 2] = True
        del inputs["init"]
    return {**inputs, "mask": mask}, Status.TOO_FEW


KINDS = ["collinear", "collinear, global start", "init behind the camera", "masked", "masked, global start"]


@pytest.mark.parametrize("gradient", ["exact", "gauss_newton", "unrolled"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_problem_says_why_and_leaves_the_others_alone(make_scene: Any, kind: str, gradient: str) -> None:
    scene = make_scene(3, 12, 1.0, seed=14)
    inputs, status = broken_problem(kind, scene)
    inputs["K"] = scene.K.expand(3, 3, 3)
    fixed = {name: inputs.pop(name) for name in ("init", "mask") if name in inputs}
    solution, grad = solve_with_gradients(inputs, **fixed, gradient=gradient)
    assert solution.status.tolist() == [Status.CONVERGED, status, Status.CONVERGED]
    assert torch.isfinite(solution.x).all()
    keep = torch.tensor([0, 2])
    alone, grad_alone = solve_with_gradients(
        {k: v[keep] for k, v in inputs.items()}, **{k: v[keep] for k, v in fixed.items()}, gradient=gradient
    )
    # The global start is a minimum up to rounding, from which the unrolled solver takes few steps or none.
    few_steps = gradient == "unrolled" and "init" not in fixed
    close(solution.x[keep], alone.x, 1e-7 if few_steps else 1e-12)
    close(solution.cost[keep], alone.cost, 1e-12)
    for name, g in grad.items():
        g_alone = grad_alone[name]
        assert (g_alone != 0).flatten(1).any(1).all(), name
        error = (g[keep] - g_alone).flatten(1).norm(dim=1) / g_alone.flatten(1).norm(dim=1)
        assert error.max() < (0.05 if few_steps else 1e-12), name
        assert (g[1] == 0).all(), name
    with pytest.raises(SolverError, match=rf"1 of 3 problems failed: problem 1: {status.message[:20]}"):
        pnp(**inputs, **fixed, throw=True)


def test_stalled_after_max_steps(make_scene: Any) -> None:
    scene = make_scene(3, 12, 1.0, seed=15)
    optimum = pnp(scene.points2d, scene.points3d, scene.K).x
    init = optimum.clone()  # type: ignore[union-attr]
    init[1] = se3.retract(init[1], torch.tensor([0.6, -0.5, 0.4, 0.3, 0.2, 2.0], dtype=torch.float64))
    inputs = {"points2d": scene.points2d, "points3d": scene.points3d, "K": scene.K.expand(3, 3, 3)}
    solution, grad = solve_with_gradients(inputs, init=init, max_steps=1)
    assert solution.status.tolist() == [Status.CONVERGED, Status.STALLED, Status.CONVERGED]
    close(solution.x[::2], optimum[::2], 1e-9)  # type: ignore[index]
    assert all((g[1] == 0).all() and (g[0] != 0).any() for g in grad.values())
    with pytest.raises(SolverError, match="raise max_steps"):
        pnp(**inputs, init=init, max_steps=1, throw=True)
    assert pnp(**inputs, init=init, throw=True).converged.all()


@pytest.mark.parametrize("start", ["init", "global"])
@pytest.mark.parametrize("gradient", ["exact", "gauss_newton", "unrolled"])
def test_an_empty_batch(make_scene: Any, start: str, gradient: str) -> None:
    scene = make_scene(1, 12, distorted=True)
    inputs = {
        "points2d": scene.points2d[:0],
        "points3d": scene.points3d[:0],
        "K": scene.K,
        "distortion": scene.distortion,
    }
    options = {"init": scene.world_to_camera_gt[:0]} if start == "init" else {}
    solution, grad = solve_with_gradients(inputs, gradient=gradient, **options)
    assert solution.x.shape == (0, 4, 4)
    assert solution.cost.shape == solution.status.shape == solution.steps.shape == (0,)
    assert solution.converged.all()
    assert grad["points2d"].shape == (0, 12, 2)
    assert (grad["K"] == 0).all()


def test_the_pose_has_every_visible_point_ahead(make_scene: Any) -> None:
    scene = make_scene(20, 5, 20.0, depth=2.2, seed=16)
    solution = pnp(scene.points2d, scene.points3d, scene.K)
    good = solution.converged
    assert good.sum() > 15
    assert in_front(se3.transform(solution.x, scene.points3d))[good].all()  # type: ignore[arg-type]


def test_module_is_the_function(make_scene: Any) -> None:
    scene = make_scene(3, 12, 1.0, seed=17)
    weights = torch.rand(3, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    pose = pnp(scene.points2d, scene.points3d, scene.K, weights=weights, kernel=CAUCHY).x
    assert torch.equal(BPnP(kernel=CAUCHY)(scene.points2d, scene.points3d, scene.K, weights=weights), pose)
    layer = BPnP(scene.points3d, scene.K, kernel=CAUCHY, vector=True)
    six = layer(scene.points2d, weights=weights)
    assert six.shape == (3, 6)
    close(se3.from_rotvec_t(six), pose, 1e-14)
    # what a call is given wins over what the module was given
    assert torch.equal(
        BPnP(scene.points3d + 1, scene.K, kernel=CAUCHY)(scene.points2d, scene.points3d, weights=weights), pose
    )
    assert {name for name, _ in layer.named_buffers()} == {"points3d", "K"}
    assert not layer.state_dict()
    assert layer.float().K.dtype == torch.float32
    for missing, arguments in (("points3d", {"K": scene.K}), ("K", {"points3d": scene.points3d})):
        with pytest.raises(ValueError, match=f"^{missing} must be given"):
            BPnP(**arguments)(scene.points2d)


def test_module_learns_inside_a_sequential(make_scene: Any) -> None:
    """A linear layer learns pixels whose pose is a wanted one."""
    scene = make_scene(1, 8, 0.0, seed=18)
    torch.manual_seed(0)
    linear = nn.Linear(4, 16).double()
    with torch.no_grad():
        linear.weight.mul_(5)
        linear.bias.copy_((scene.points2d + 10).flatten())
    model = nn.Sequential(linear, nn.Unflatten(-1, (8, 2)), BPnP(scene.points3d[0], scene.K))
    features = torch.ones(1, 4, dtype=torch.float64)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        pose = model(features)
        loss = (project(scene.points3d, pose, scene.K) - scene.points2d).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


CAUCHY = cauchy(3.0)
