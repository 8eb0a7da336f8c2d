"""What `pnp` says of a caller's mistakes, and of problems in a batch that have no solution."""

from typing import Any

import pytest
import torch

from geometry import SolverError, Status, pnp, project, se3
from tests.geometry.pose.solving import solve_with_gradients
from tests.numbers import DOUBLE, close


def replaced(scene: Any, **changes: Any) -> dict[str, Any]:
    return {"points2d": scene.points2d, "points3d": scene.points3d, "K": scene.K, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points2d": torch.zeros(6, 3, **DOUBLE)}, r"points2d must have shape \(B,N,2\) or \(N,2\), got \(6, 3\)"),
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
        ({"weights": torch.zeros(5, **DOUBLE)}, r"weights .*got \(5,\)"),
        ({"weights": torch.zeros(2, 6, 3, **DOUBLE)}, r"weights .*got \(2, 6, 3\)"),
        ({"weights": torch.ones(2, 6)}, r"weights must have the dtype.*float32"),
        ({"weights": torch.full((2, 6), torch.nan, **DOUBLE)}, r"weights must be finite"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, r"mask .*got \(2, 5\)"),
        ({"mask": torch.ones(2, 6, **DOUBLE)}, r"mask must be of dtype torch.bool"),
        ({"init": torch.eye(3, **DOUBLE)}, r"init must have shape \(2\|1,4,4\) or \(4,4\), got \(3, 3\)"),
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


@pytest.mark.slow
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


@pytest.mark.parametrize("origin", [0.0, 5e5])
def test_points_in_one_place_determine_nothing_whatever_the_lens(make_scene: Any, origin: float) -> None:
    scene = make_scene(2, 6)
    place = torch.full((6, 3), origin, **DOUBLE)
    for options in ({}, {"gradient": "unrolled"}, {"model": "fisheye"}):
        assert pnp(scene.points2d, place, scene.K, **options).status.tolist() == [Status.SINGULAR] * 2


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
