"""`rig_pnp`: its derivatives, its minima beside PoseLib, what must not change them, and what is not determined."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from datasets.made.rig_views import Mounting, RigViews, rig_views
from experiments.benchmarks.rig_pose import of_poselib
from geometry import Status, cauchy, huber, pnp, rig_pnp, se3
from geometry.optim import jacobian, linearize
from geometry.pose.data import PnPData
from geometry.pose.problem import pnp_problem
from geometry.pose.rig_data import bearing_data, check_rig, scaled_pose
from geometry.robust import Kernel
from tests.numbers import DOUBLE, central_difference, close, generator, normal

LENS = torch.tensor([0.05, -0.01, 0.003, -0.001], **DOUBLE)


def views(B: int = 3, N: int = 10, S: int = 3, noise: float = 1.0, seed: int = 0, **options: Any) -> RigViews:
    return rig_views(B, N, S, noise, generator(seed), **options)


# ---- derivatives ----


def linearized(data: Any, pose: Tensor, *how: Any) -> None:
    """The closed form is what automatic differentiation of the residual gives."""
    problem = pnp_problem(*how)
    for a, b in zip(*(jacobian(p, pose, tuple(data)) for p in (problem, replace(problem, jacobian=None))), strict=True):
        close(a, b, 1e-12 * b.abs().max().item())
    found, wanted = (
        linearize(p, pose, tuple(data), exact=True) for p in (problem, replace(problem, linearize=None, jacobian=None))
    )
    for a, b in zip(found, wanted, strict=True):
        assert a is not None
        close(a, b, 1e-12 * b.abs().max().item())  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("kernel", [None, cauchy(3.0)])
@pytest.mark.parametrize("model", ["radtan", "fisheye"])
def test_closed_derivatives_of_a_rig(model: Any, kernel: Kernel | None, scale: bool) -> None:
    seen = views(2, 8, noise=3.0)
    rig = check_rig(seen.points2d, seen.K, LENS, seen.sensor_from_rig, seen.sensor_index, model)
    mask = torch.arange(8).expand(2, 8) < 7
    weights = torch.rand(2, 8, 2, generator=generator(1), **DOUBLE) + 0.5
    data = rig.by_point(PnPData(seen.points2d, seen.points3d, seen.K[:, 0], LENS, weights, mask)).prepared()
    factor = torch.full((2,), 1.2 if scale else 1.0, **DOUBLE)
    truth = seen.world_to_rig_gt
    linearized(data, scaled_pose(truth[:, :3, :3], truth[:, :3, 3], factor), model, kernel, scale)


def test_closed_derivatives_of_bearings() -> None:
    X, whitening = normal(3, 8, 3), normal(3, 8, 2, 2, seed=2)
    data = bearing_data(normal(3, 8, 3, seed=1), X, whitening, None, None).prepared()
    linearized(data, views().world_to_rig_gt, "ray", huber(1.0))


def unknowns(solution: Any) -> Tensor:
    """Three points where the pose takes them, and the scale if there is one: (B,9|10)."""
    pose, *scale = solution.x if isinstance(solution.x, tuple) else (solution.x,)
    moved = se3.transform(pose, torch.eye(3, **DOUBLE).expand(len(pose), 3, 3)).flatten(1)
    return torch.cat([moved, *(s[:, None] for s in scale)], 1)


STEPS = {"points2d": 1e-2, "points3d": 1e-4, "K": 1e-2, "distortion": 1e-5, "weights": 1e-3, "sensor_from_rig": 1e-4}


def path(name: str, value: Tensor) -> Callable[[Tensor], Tensor]:
    """A way of an input through what it may be, by a number that is 0 at its value."""
    if name == "sensor_from_rig":
        turn = normal(*value.shape[:-2], 6, seed=5)
        return lambda h: se3.retract(value, h * turn)
    direction = normal(*value.shape, seed=5)
    if name == "K":
        direction[..., 2, :] = 0
    return lambda h: value + h * direction


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("kernel", "scale"), [(None, False), (None, True), (cauchy(4.0), True)])
def test_the_gradient_of_every_input(name: str, kernel: Kernel | None, scale: bool) -> None:
    seen = views(4, 12, noise=3.0, seed=3)
    inputs = seen.given | {
        "distortion": LENS.expand(4, 3, 4).clone(),
        "weights": torch.rand(4, 12, 2, generator=generator(1), **DOUBLE) + 0.5,
    }
    options: dict[str, Any] = {"kernel": kernel, "scale": scale, "max_steps": 200}
    way = path(name, inputs[name])
    init = rig_pnp(**inputs, **options).x

    def moved(h: Tensor) -> Tensor:
        found = rig_pnp(**(inputs | {name: way(h)}), init=init, **options)
        assert found.converged.all()
        return unknowns(found)

    zero = torch.zeros((), **DOUBLE, requires_grad=True)
    ours = torch.autograd.functional.jacobian(moved, zero)
    wanted = central_difference(lambda h: moved(torch.tensor(h, **DOUBLE)), STEPS[name])
    assert ((ours - wanted).norm(dim=1) < 1e-6 * wanted.norm(dim=1)).all()  # type: ignore[operator]


# ---- what is found ----


@pytest.mark.slow
@pytest.mark.parametrize("mounting", get_args(Mounting))
@pytest.mark.parametrize(("N", "S", "noise"), [(4, 2, 0.1), (5, 4, 5.0), (30, 6, 1.0)])
def test_the_cost_is_never_above_poselib_s(mounting: Mounting, N: int, S: int, noise: float) -> None:
    baseline = 3.0 if mounting == "inward" else 0.5
    seen = views(20, N, S, noise, seed=N, mounting=mounting, baseline=baseline)
    found = rig_pnp(**seen.given)
    assert found.converged.all()
    theirs = of_poselib(seen, max_reproj_error=1e3, min_iterations=100, max_iterations=200)
    there = torch.isfinite(theirs).all(-1).all(-1)
    start = torch.where(there[:, None, None], theirs, seen.world_to_rig_gt)
    for other in (start, seen.world_to_rig_gt):
        refined = rig_pnp(**seen.given, init=other)
        assert (found.cost <= refined.cost * (1 + 1e-9) + 1e-12)[refined.converged].all()


def test_wrong_matches_do_not_bend_it_under_a_robust_kernel() -> None:
    """Of angles to the rays no match is infeasible, wherever a bent start puts its point."""
    seen = views(40, 40, 3, seed=4)
    wrong = torch.rand(40, 40, generator=generator(), **DOUBLE) < 0.3
    anywhere = torch.rand(40, 40, 2, generator=generator(1), **DOUBLE) * torch.tensor([640.0, 480.0], **DOUBLE)
    given = seen.given | {"points2d": torch.where(wrong[..., None], anywhere, seen.points2d)}
    found, near = (rig_pnp(**given, kernel=cauchy(3.0), init=init) for init in (None, seen.world_to_rig_gt))
    assert found.converged.all()
    assert (found.cost <= near.cost * (1 + 1e-9)).all()


@pytest.mark.slow
def test_few_points_that_outweigh_the_others_or_are_wrong_do_not_mislead_it() -> None:
    """Poses of three points, seen by whatever cameras, are among its starts."""
    seen, g = views(100, 8, 4, seed=6), generator(6)
    weights = 10 ** (16 * torch.rand(100, 8, generator=g, **DOUBLE) - 8)
    wrong = torch.rand(100, 8, generator=g, **DOUBLE) < 0.2
    anywhere = torch.rand(100, 8, 2, generator=g, **DOUBLE) * torch.tensor([640.0, 480.0], **DOUBLE)
    spoiled = seen.given | {"points2d": torch.where(wrong[..., None], anywhere, seen.points2d)}
    for given, options in ((seen.given, {"weights": weights}), (spoiled, {"kernel": cauchy(3.0)})):
        found, near = (rig_pnp(**given, **options, init=init) for init in (None, seen.world_to_rig_gt))
        assert (found.status != Status.INFEASIBLE).all()
        beaten = found.converged & near.converged & (near.cost < found.cost * (1 - 1e-6))
        assert beaten.double().mean() <= 0.03


@pytest.mark.parametrize("given_init", [False, True])
def test_a_rig_of_one_camera_is_a_camera(given_init: bool) -> None:
    seen = views(5, 12, 1, noise=2.0)
    leaves = {name: v.clone().requires_grad_() for name, v in seen.given.items() if v.is_floating_point()}
    mounted = leaves["sensor_from_rig"][:, 0]
    start = seen.world_to_rig_gt if given_init else None
    alone = pnp(
        leaves["points2d"], leaves["points3d"], leaves["K"][:, 0],
        init=None if start is None else mounted.detach() @ start,
    )  # fmt: skip
    found = rig_pnp(**leaves, sensor_index=seen.sensor_index, init=start)  # type: ignore[arg-type]
    close(mounted @ found.x, alone.x, 1e-12)
    # and the general way leads there, too: a second sensor that sees nothing
    spare = torch.cat([seen.sensor_from_rig, views(5, 12, 1, seed=1).sensor_from_rig], 1)
    general = rig_pnp(**(seen.given | {"sensor_from_rig": spare}), init=start)
    close(general.x, found.x, 1e-12)
    close(general.cost, found.cost, 0, 1e-11)
    assert torch.equal(general.status, found.status)


# ---- what must not change it ----


def test_the_frame_of_the_rig_and_of_the_world_are_arbitrary() -> None:
    seen = views(noise=2.0)
    plain = rig_pnp(**seen.given).x
    move = se3.from_rotvec_t(torch.tensor([1.0, -2, 0.5, 300, -400, 50], **DOUBLE))
    other = rig_pnp(**(seen.given | {"sensor_from_rig": seen.sensor_from_rig @ move}))
    close(move @ other.x, plain, 1e-9)
    other = rig_pnp(**(seen.given | {"points3d": se3.transform(move, seen.points3d)}))
    close(other.x @ move, plain, 1e-9)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_the_unit_of_length_scales_translations_alone(unit: float) -> None:
    seen = views(noise=2.0)
    grown = seen.sensor_from_rig.clone()
    grown[..., :3, 3] *= unit
    plain = rig_pnp(**seen.given)
    scaled = rig_pnp(**(seen.given | {"points3d": unit * seen.points3d, "sensor_from_rig": grown}))
    close(scaled.x[:, :3, :3], plain.x[:, :3, :3], 1e-10)
    close(scaled.x[:, :3, 3] / unit, plain.x[:, :3, 3], 1e-9)
    close(scaled.cost, plain.cost, 0, 1e-9)


def test_a_scale_that_is_unknown_is_found() -> None:
    seen = views(noise=0.0)
    shrunk = seen.sensor_from_rig.clone()
    shrunk[..., :3, 3] /= 7
    exact = rig_pnp(**(seen.given | {"sensor_from_rig": shrunk}), scale=True)
    assert exact.converged.all()
    close(exact.x[0], seen.world_to_rig_gt, 1e-8)
    close(exact.x[1], torch.full((3,), 7.0, **DOUBLE), 1e-8)
    noisy = seen.given | {"points2d": seen.points2d + normal(*seen.points2d.shape)}
    a, b = (rig_pnp(**(noisy | {"sensor_from_rig": s}), scale=True) for s in (seen.sensor_from_rig, shrunk))
    close(7 * a.x[1], b.x[1], 1e-8)
    close(a.x[0], b.x[0], 1e-8)
    assert (a.cost < rig_pnp(**noisy).cost).all()
    again = rig_pnp(**(noisy | {"sensor_from_rig": shrunk}), scale=True, init=b.x)
    close(again.x[1], b.x[1], 1e-9)


def test_a_scale_that_noise_all_but_hides_is_sought_on_both_sides_of_zero() -> None:
    seen = views(100, 5, 3, noise=3.0, seed=8, baseline=0.01)
    found = rig_pnp(**seen.given, scale=True)
    near = rig_pnp(**seen.given, scale=True, init=(seen.world_to_rig_gt, torch.ones(100, **DOUBLE)))
    assert (found.x[1] < 0).any()
    assert (found.converged | ~near.converged).all()
    assert (found.cost <= near.cost * (1 + 1e-6) + 1e-12)[near.converged].all()


def test_order_batch_and_absent_points() -> None:
    seen = views(4, 12, noise=2.0)
    plain = rig_pnp(**seen.given)
    order = torch.randperm(12, generator=generator())
    by_point = ("points2d", "points3d", "sensor_index")
    mixed = rig_pnp(**{k: v[:, order] if k in by_point else v for k, v in seen.given.items()})
    close(mixed.x, plain.x, 1e-11)
    for i in range(4):
        alone = rig_pnp(**{k: v[i : i + 1] for k, v in seen.given.items()})
        close(alone.x[0], plain.x[i], 1e-11)
    few = rig_pnp(**{k: v[:, :9] if k in by_point else v for k, v in seen.given.items()})
    wild = {k: v.clone() for k, v in seen.given.items()}
    wild["points2d"][:, 9:], wild["points3d"][:, 10:] = torch.nan, torch.inf
    present = torch.arange(12).expand(4, 12) < 9
    masked = rig_pnp(**wild, mask=present)
    weightless = rig_pnp(**seen.given, weights=present.double())
    for other in (masked, weightless):
        close(other.x, few.x, 1e-11)
        close(other.cost, few.cost, 1e-11)


def test_what_sensors_share_may_be_given_once() -> None:
    seen = views(noise=2.0)
    shared = {"K": seen.K[0, 0], "sensor_from_rig": seen.sensor_from_rig[0], "sensor_index": seen.sensor_index[0]}
    p = se3.transform(seen.world_to_rig_gt, seen.points3d)
    exact, depth = seen_from(shared["sensor_from_rig"][shared["sensor_index"]], shared["K"], p)
    pixels, mask = exact + normal(3, 10, 2), depth > 0.1
    full = {"K": shared["K"].expand(3, 3, 3, 3), "sensor_from_rig": shared["sensor_from_rig"].expand(3, 3, 4, 4)}
    full["sensor_index"] = shared["sensor_index"].expand(3, 10)
    a, b = (rig_pnp(pixels, seen.points3d, **kind, mask=mask, init=seen.world_to_rig_gt) for kind in (shared, full))
    assert a.converged.any()
    close(a.x, b.x, 0)


def test_float32_in_is_float32_out() -> None:
    seen = views(noise=2.0)
    small = {k: v.float() if v.is_floating_point() else v for k, v in seen.given.items()}
    found = rig_pnp(**small, scale=True)
    assert {t.dtype for t in (*found.x, *found.second, found.cost, found.ratio)} == {torch.float32}  # type: ignore[misc]
    close(found.x[0].double(), rig_pnp(**seen.given, scale=True).x[0], 1e-3)


# ---- what is not determined ----


@pytest.mark.parametrize("far", [0.0, 1e4])
def seen_from(T: Tensor, K: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B,N,2) of points p (B,N,3) in the frame of the rig, each by a sensor T and a camera K; and depths."""
    q = (T[..., :3, :3] @ p[..., None])[..., 0] + T[..., :3, 3]
    return ((q / q[..., 2:])[..., None, :] @ K.mT)[..., 0, :2], q[..., 2]


def of_points(values: Tensor, index: Tensor) -> Tensor:
    return values[torch.arange(len(index))[:, None], index]


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_one_place_tells_no_scale(far: float) -> None:
    """Neither one camera, nor several in one place, wherever that is in the frame of the rig."""
    one = views(3, 12, 1)
    one.sensor_from_rig[..., :3, 3] += far
    leaf = one.points2d.clone().requires_grad_()
    found = rig_pnp(**(one.given | {"points2d": leaf}), scale=True)
    assert (found.status == Status.SINGULAR).all()
    (gradient,) = torch.autograd.grad(found.x[0].sum(), leaf)
    assert (gradient == 0).all()

    seen = views(3, 40, 3)
    mounted = seen.sensor_from_rig.clone()
    mounted[..., :3, 3] = -(mounted[..., :3, :3] @ torch.full((3, 1), far, **DOUBLE))[..., 0]
    p = se3.transform(seen.world_to_rig_gt, seen.points3d)
    T, K = (of_points(a, seen.sensor_index) for a in (mounted, seen.K))
    pixels, depth = seen_from(T, K, p + far)
    shift = se3.make(torch.eye(3, **DOUBLE).expand(3, 3, 3), torch.full((3, 3), far, **DOUBLE))
    found = rig_pnp(
        **(seen.given | {"sensor_from_rig": mounted, "points2d": pixels + normal(3, 40, 2)}), scale=True,
        init=(shift @ seen.world_to_rig_gt, torch.ones(3, **DOUBLE)), mask=depth > 0.1,
    )  # fmt: skip
    assert (found.status == Status.SINGULAR).all()


def test_points_on_a_line_are_singular() -> None:
    seen = views(4, 8, 2, mounting="inward", baseline=3.0)
    line = torch.linspace(-0.5, 0.5, 8, **DOUBLE)[:, None] * torch.tensor([0.6, 0.7, -0.3], **DOUBLE)
    T, K = (of_points(a, seen.sensor_index) for a in (seen.sensor_from_rig, seen.K))
    pixels, _ = seen_from(T, K, line)
    points3d = se3.transform(se3.inverse(seen.world_to_rig_gt), line.expand(4, 8, 3))
    found = rig_pnp(**(seen.given | {"points2d": pixels, "points3d": points3d}))
    assert (found.status == Status.SINGULAR).all()


def test_too_few_points_are_flagged_and_leave_the_others_alone() -> None:
    seen = views(3, 8)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[1, 3:] = False
    found = rig_pnp(**seen.given, mask=mask)
    assert found.status.tolist() == [Status.CONVERGED, Status.TOO_FEW, Status.CONVERGED]
    close(found.x[::2], rig_pnp(**seen.given).x[::2], 1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sensor_index": torch.full((10,), 3)}, r"sensor_index must lie in 0 … 2"),
        ({"sensor_index": torch.zeros(9, dtype=torch.int64)}, r"sensor_index must have shape"),
        ({"sensor_index": torch.zeros(10)}, r"sensor_index must be of dtype"),
        ({"sensor_from_rig": torch.eye(4, **DOUBLE)}, r"sensor_from_rig must have shape"),
        ({"sensor_from_rig": 2 * torch.eye(4, **DOUBLE).expand(3, 4, 4)}, r"sensor_from_rig must have the last row"),
        ({"K": torch.eye(3, **DOUBLE).expand(2, 3, 3)}, r"K must have shape"),
        ({"distortion": torch.zeros(2, 4, **DOUBLE)}, r"distortion must have shape"),
        ({"model": "ray"}, r"model must be one of"),
        ({"scale": True, "init": torch.eye(4, **DOUBLE)[None]}, r"init must be \(world_to_rig, scale\)"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rig_pnp(**(views().given | wrong))
