"""What `pnp` finds beside OpenCV, what must not change it, and the module that is the function."""

from typing import Any

import cv2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geometry import BPnP, cauchy, pnp, project, se3
from geometry.camera import in_front
from tests.geometry.pose.solving import inputs_of, solve_with_gradients
from tests.numbers import close

CAUCHY = cauchy(3.0)


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
