"""pnp_ransac: as good as the best of C++, differentiable, and never worse than a flag."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import poselib
import pytest
import torch
from torch import Tensor

from datasets.images.matches import read_box_matches
from geometry import RansacSolution, SolverError, Status, pnp, pnp_ransac, se3
from geometry.camera import in_front, project_camera_frame
from geometry.pose.data import PnPData
from geometry.pose.ransac import _Compiled
from geometry.pose.ransac_tensors import TensorSearch, mirrored
from tests.numbers import close, generator

torch.set_num_threads(1)
IMAGE = torch.tensor([640.0, 480.0], dtype=torch.float64)


@pytest.fixture
def spoil(make_scene: Callable[..., Any]) -> Callable[..., tuple[Any, Tensor, Tensor]]:
    """A function that makes a scene, its pixels with a share of them anywhere, and which those are."""

    def make(B: int, N: int, share: float, noise: float = 1.0, seed: int = 0, **options: Any) -> Any:
        scene, g = make_scene(B, N, noise, seed=seed, **options), generator(seed + 1)
        outlier = torch.rand(B, N, generator=g).argsort(1).argsort(1) < round(share * N)
        wild = torch.rand(B, N, 2, generator=g, dtype=torch.float64) * IMAGE
        return scene, torch.where(outlier[..., None], wild.to(scene.points2d), scene.points2d), outlier

    return make


def errors(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Degrees, and translation relative to its length."""
    angle = torch.rad2deg(se3.rotation_angle(x[:, :3, :3] @ truth[:, :3, :3].mT))
    return angle, (x - truth)[:, :3, 3].norm(dim=1) / truth[:, :3, 3].norm(dim=1)


def success(x: Tensor, truth: Tensor) -> float:
    angle, shift = errors(x, truth)
    return ((angle < 0.5) & (shift < 0.01)).double().mean().item()


def of_poselib(points2d: Tensor, points3d: Tensor, K: Tensor) -> Tensor:
    fx, fy, cx, cy = (K[i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    camera = poselib.Camera("PINHOLE", [fx, fy, cx, cy], 640, 480)
    options = {"max_reproj_error": 4.0}
    pairs = zip(points2d.numpy(), points3d.numpy(), strict=True)
    Rt = torch.from_numpy(np.array([poselib.estimate_absolute_pose(x, X, camera, options, {})[0].Rt for x, X in pairs]))
    return se3.make(Rt[..., :3], Rt[..., 3])


def of_opencv(points2d: Tensor, points3d: Tensor, K: Tensor) -> Tensor:
    six = []
    for x, X in zip(points2d.numpy(), points3d.numpy(), strict=True):
        ok, *six_vector, _ = cv2.solvePnPRansac(
            X, x, K.numpy(), None, None, None, False, 10000, 4.0, 0.9999, None, cv2.USAC_ACCURATE
        )
        six.append(np.concatenate(six_vector).ravel() if ok else np.full(6, np.nan))
    return se3.from_rotvec_t(torch.from_numpy(np.array(six)))


# ---- what it finds ----


@pytest.mark.slow
@pytest.mark.parametrize(("share", "N"), [(0.0, 20), (0.3, 100), (0.5, 100), (0.7, 100)])
def test_it_succeeds_as_often_as_poselib_and_opencv(spoil: Callable[..., Any], share: float, N: int) -> None:
    scene, points2d, outlier = spoil(200, N, share)
    found = pnp_ransac(points2d, scene.points3d, scene.K, generator=generator())
    ours = success(found.x, scene.world_to_camera_gt)
    for other in (of_poselib, of_opencv):
        assert ours >= success(other(points2d, scene.points3d, scene.K), scene.world_to_camera_gt)
    # nobody knows more than the pose of the right ones
    best = pnp(points2d, scene.points3d, scene.K, mask=~outlier, init=scene.world_to_camera_gt)
    assert ours >= success(best.x, scene.world_to_camera_gt) - 0.01
    assert found.converged.all()
    assert found.inliers[~outlier].double().mean() > 0.99
    assert found.inliers[outlier].double().mean() < 0.01 if share else True


@pytest.mark.parametrize("options", [{"distorted": True}, {"planar": True}, {"depth": 60.0}])
def test_lenses_planes_and_distant_objects(spoil: Callable[..., Any], options: dict[str, Any]) -> None:
    scene, points2d, outlier = spoil(50, 60, 0.4, noise=0.1, **options)
    found = pnp_ransac(points2d, scene.points3d, scene.K, distortion=scene.distortion, generator=generator())
    best = pnp(points2d, scene.points3d, scene.K, distortion=scene.distortion, mask=~outlier)
    assert success(found.x, scene.world_to_camera_gt) >= success(best.x, scene.world_to_camera_gt) - 0.02
    assert found.converged.all()


@pytest.mark.slow
def test_a_fisheye_among_outliers(spoil: Callable[..., Any]) -> None:
    scene, points2d, outlier = spoil(3, 40, 0.4, noise=0.1, model="fisheye", distorted=True)
    found = pnp_ransac(
        points2d, scene.points3d, scene.K, distortion=scene.distortion, model="fisheye", generator=generator()
    )
    assert success(found.x, scene.world_to_camera_gt) == 1
    assert not (found.inliers & outlier & ((points2d - scene.points2d).norm(dim=-1) > 20)).any()


# ---- flat, small objects: the score has many minima, and two looks ----


def msac(points2d: Tensor, points3d: Tensor, x: Tensor, K: Tensor) -> Tensor:
    """Sum of min(|r|^2, 4 px^2), what lies behind the camera counting in full."""
    p = se3.transform(x, points3d)
    square = (project_camera_frame(p, K) - points2d).square().sum(-1)
    return torch.where(in_front(p), square.clamp(max=16), 16).sum(-1)


BOX = torch.tensor([[634.0, 0, 319.5], [0, 634, 239.5], [0, 0, 1]], dtype=torch.float64)


def test_no_run_ends_above_the_lowest_score_of_a_flat_box(real_data: Callable[[str], Path]) -> None:
    for matches, lowest in zip(read_box_matches(real_data("box_flat")), (803.31, 697.18), strict=True):
        points2d, points3d = matches.points2d.double()[None].expand(200, -1, -1), matches.points3d.double()
        found = pnp_ransac(points2d, points3d, BOX, generator=generator())
        assert found.converged.all()
        score = msac(points2d, points3d, found.x, BOX)
        assert score.min() < lowest  # the lowest of thousands of runs of PoseLib and OpenCV
        assert score.max() < 1.02 * lowest


@pytest.mark.slow
def test_tensors_find_the_lowest_score_of_a_flat_box_as_well(real_data: Callable[[str], Path]) -> None:
    for matches, lowest in zip(read_box_matches(real_data("box_flat")), (803.31, 697.18), strict=True):
        points2d, points3d = matches.points2d.double()[None].expand(24, -1, -1), matches.points3d.double()
        nothing, ones = torch.zeros(1, 0).double(), torch.ones(1, 1, 1).double()
        data = PnPData(points2d, points3d[None], BOX[None], nothing, ones, torch.ones(1, 1, dtype=torch.bool))
        pose, *_ = TensorSearch(data, torch.ones(1, 1).double(), 4.0, "radtan").search(10_000, 0.9999, generator())
        assert msac(points2d, points3d, pose, BOX).max() < 1.02 * lowest


def test_the_mirror_image_looks_the_same_from_afar(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(20, 30, 0.0, planar=True, depth=1e5)
    pose, points3d = scene.world_to_camera_gt, scene.points3d
    inliers = torch.rand(20, 30, generator=generator(1)) < 0.5
    other = mirrored(pose, points3d, inliers)
    torch.testing.assert_close(other[:, :3, :3] @ other[:, :3, :3].mT, torch.eye(3).double().expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(other), torch.ones(20).double())
    p, q = se3.transform(pose, points3d), se3.transform(other, points3d)
    assert (project_camera_frame(p, scene.K) - project_camera_frame(q, scene.K)).norm(dim=-1).max() < 1e-6
    # what lies ahead of the middle of the inliers lies as far behind it, and the image of that is the first again
    v = torch.nn.functional.normalize((inliers[..., None] * p).sum(1) / inliers.sum(1, keepdim=True), dim=-1)
    middle = (inliers[..., None] * p).sum(1, keepdim=True) / inliers.sum(1)[:, None, None]
    torch.testing.assert_close(((p - middle) @ v[..., None]), -((q - middle) @ v[..., None]), rtol=0, atol=1e-6)
    torch.testing.assert_close(mirrored(other, points3d, inliers), pose, rtol=1e-9, atol=1e-6)
    assert not torch.isfinite(mirrored(pose, points3d, inliers & False)[:, :3]).any()


def test_wrong_points_behind_the_camera_do_no_harm(spoil: Callable[..., Any]) -> None:
    scene, points2d, outlier = spoil(30, 60, 0.4)
    behind = se3.transform(se3.inverse(scene.world_to_camera_gt), scene.points3d.new_tensor([[0.1, 0.2, -3.0]]))
    points3d = torch.where(outlier[..., None], behind, scene.points3d)
    found = pnp_ransac(points2d, points3d, scene.K, generator=generator())
    assert success(found.x, scene.world_to_camera_gt) > 0.95
    assert not (found.inliers & outlier).any()


def test_the_answer_is_what_it_says(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(20, 50, 0.5)
    found = pnp_ransac(points2d, scene.points3d, scene.K, threshold=3.0, generator=generator())
    assert isinstance(found, RansacSolution)
    assert found.x.shape == (20, 4, 4)
    assert found.inliers.shape == (20, 50)
    assert found.inliers.dtype == torch.bool
    p = se3.transform(found.x, scene.points3d)
    error = (project_camera_frame(p, scene.K) - points2d).norm(dim=-1)
    error = torch.where(in_front(p), error, torch.inf)
    assert torch.equal(found.inliers, error <= 3.0)
    torch.testing.assert_close(found.cost, 0.5 * error.clamp(max=3.0).square().sum(1))
    again = pnp(points2d, scene.points3d, scene.K, mask=found.inliers, init=found.x)
    same = (again.x - found.x).flatten(1).norm(dim=1)
    assert same.median() < 1e-10  # the inliers of the end are those that it was refined on, but for a few at the rim
    assert (found.steps >= 64).all()


def test_weights_are_one_over_sigma(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(10, 60, 0.4)
    plain = pnp_ransac(points2d, scene.points3d, scene.K, threshold=4.0, generator=generator())
    weights = torch.full((1, 60), 0.5, dtype=torch.float64)
    half = pnp_ransac(points2d, scene.points3d, scene.K, weights=weights, threshold=2.0, generator=generator())
    torch.testing.assert_close(half.x, plain.x, rtol=1e-8, atol=1e-8)
    assert torch.equal(half.inliers, plain.inliers)
    torch.testing.assert_close(half.cost, plain.cost / 4)


def test_the_odds_find_what_is_rare(spoil: Callable[..., Any]) -> None:
    scene, points2d, outlier = spoil(30, 100, 0.9)
    candidates = torch.where(outlier, 0.01, 1.0).double()
    few: dict[str, Any] = {"hypotheses": 32}
    blind = pnp_ransac(points2d, scene.points3d, scene.K, generator=generator(), **few)
    told = pnp_ransac(points2d, scene.points3d, scene.K, candidates=candidates, generator=generator(), **few)
    best = pnp(points2d, scene.points3d, scene.K, mask=~outlier, init=scene.world_to_camera_gt)
    limit = success(best.x, scene.world_to_camera_gt)
    assert success(told.x, scene.world_to_camera_gt) > limit - 0.1
    assert success(blind.x, scene.world_to_camera_gt) < 0.3 * limit


def test_float32_in_float32_out(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(20, 60, 0.4)
    data = (points2d.float(), scene.points3d.float(), scene.K.float())
    found = pnp_ransac(*data, generator=generator())
    assert found.x.dtype == found.cost.dtype == torch.float32
    double = pnp_ransac(*(d.double() for d in data), generator=generator())
    torch.testing.assert_close(found.x.double(), double.x, rtol=1e-5, atol=1e-5)
    half = pnp_ransac(data[0].half(), *data[1:], threshold=8.0, generator=generator())
    assert half.x.dtype == torch.float32
    assert half.converged.all()


def test_an_origin_that_is_far_away_changes_nothing(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(20, 60, 0.4)
    shift = torch.tensor([4e5, -5e6, 300.0], dtype=torch.float64)
    here = pnp_ransac(points2d, scene.points3d, scene.K, generator=generator())
    there = pnp_ransac(points2d, scene.points3d + shift, scene.K, generator=generator())
    assert torch.equal(here.inliers, there.inliers)
    back = there.x[:, :3, 3] + (there.x[:, :3, :3] @ shift[:, None]).squeeze(-1)
    torch.testing.assert_close(back, here.x[:, :3, 3], rtol=0, atol=1e-6)


# ---- gradients ----


@pytest.mark.parametrize("name", ["points2d", "points3d", "K", "weights"])
def test_gradients_are_those_of_finite_differences(spoil: Callable[..., Any], name: str) -> None:
    scene, points2d, _ = spoil(4, 30, 0.4, noise=0.7)
    data = {"points2d": points2d, "points3d": scene.points3d, "K": scene.K, "weights": torch.ones(4, 30).double()}
    seeds = torch.randn(4, 4, 4, generator=generator(1), dtype=torch.float64)
    data[name] = data[name].clone().requires_grad_()
    found = pnp_ransac(**data, generator=generator())
    (gradient,) = torch.autograd.grad((seeds * found.x).sum(), data[name])
    if name == "points2d":
        assert (gradient[~found.inliers] == 0).all()
    direction = torch.randn(data[name].shape, generator=generator(2), dtype=torch.float64)
    if name == "K":
        direction[2] = 0

    def along(h: float) -> Tensor:
        moved = {**data, name: data[name].detach() + h * direction}
        return (seeds * pnp_ransac(**moved, generator=generator()).x).sum()

    h = 1e-4
    numeric = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-6)


def test_a_failure_has_gradient_zero(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(3, 40, 0.3)
    points2d[1] = torch.rand(40, 2, generator=generator(5), dtype=torch.float64) * IMAGE
    points2d = points2d.requires_grad_()
    found = pnp_ransac(points2d, scene.points3d, scene.K, hypotheses=500, generator=generator())
    assert found.status.tolist() == [Status.CONVERGED, Status.TOO_FEW, Status.CONVERGED]
    found.x.sum().backward()
    assert points2d.grad is not None
    assert (points2d.grad[1] == 0).all()
    assert (points2d.grad[[0, 2]] != 0).flatten(1).any(1).all()


# ---- the batch ----


def test_a_mask_is_as_good_as_absence(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(8, 40, 0.3)
    mask = torch.arange(40) < 30
    nonsense = torch.where(mask[:, None], points2d, torch.nan)
    masked = pnp_ransac(
        nonsense, scene.points3d, scene.K, mask=mask[None], hypotheses=64, confidence=1.0, generator=generator()
    )
    absent = pnp_ransac(
        points2d[:, :30], scene.points3d[:, :30], scene.K, hypotheses=64, confidence=1.0, generator=generator()
    )
    torch.testing.assert_close(masked.x, absent.x, rtol=1e-10, atol=1e-10)
    assert torch.equal(masked.inliers[:, :30], absent.inliers)
    assert not masked.inliers[:, 30:].any()
    torch.testing.assert_close(masked.cost, absent.cost)
    for other in ({"weights": mask[None].double()}, {"candidates": mask[None].double()}):
        same = pnp_ransac(
            points2d, scene.points3d, scene.K, hypotheses=64, confidence=1.0, generator=generator(), **other
        )
        torch.testing.assert_close(same.x, masked.x, rtol=1e-10, atol=1e-10)


def test_a_generator_makes_it_repeatable(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(8, 40, 0.5)
    one, two, other = (pnp_ransac(points2d, scene.points3d, scene.K, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.steps, two.steps)
    torch.testing.assert_close(one.x, other.x, rtol=0.1, atol=0.1)  # another way to the same pose


def test_threads_change_nothing(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(13, 40, 0.5)
    one = pnp_ransac(points2d, scene.points3d, scene.K, generator=generator())
    torch.set_num_threads(2)
    try:
        two = pnp_ransac(points2d, scene.points3d, scene.K, generator=generator())
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one.x, two.x)


def both(scene: Any, points2d: Tensor, threshold: float, **options: Any) -> tuple[TensorSearch, _Compiled]:
    """The two ways to search, given the same data."""
    data = PnPData(
        points2d,
        scene.points3d,
        scene.K[None],
        scene.distortion[None],
        options.get("weights", torch.ones(1, 1, 1).double()),
        options.get("mask", torch.ones(1, 1, dtype=torch.bool)),
    )
    candidates = options.get("candidates", torch.ones(1, 1).double())
    return tuple(back_end(data, candidates, threshold, "radtan") for back_end in (TensorSearch, _Compiled))


@pytest.mark.slow
@pytest.mark.parametrize("distorted", [False, True])
def test_the_kernel_does_what_the_tensors_do(spoil: Callable[..., Any], distorted: bool) -> None:
    scene, points2d, _ = spoil(24, 50, 0.5, distorted=distorted)
    weights = 0.5 + torch.rand(24, 50, 2, generator=generator(3), dtype=torch.float64)
    mask = torch.rand(24, 50, generator=generator(4)) < 0.9
    candidates = torch.rand(24, 50, generator=generator(5), dtype=torch.float64).clamp_min(0.2) - 0.2
    tensors, kernels = both(scene, points2d, 4.0, weights=weights, mask=mask, candidates=candidates)
    pose, inliers, samples, count, chance = tensors.search(128, 0.9999, generator())
    fast, kept, drawn, seen, odds = kernels.search(128, 0.9999, generator())
    # both descend from the best of the same samples, each until it no longer pays
    assert torch.equal(drawn, samples)
    assert torch.equal(seen.long(), count)
    torch.testing.assert_close(odds, chance)
    assert (kept == inliers).double().mean() > 0.999
    angle, shift = errors(fast, pose)
    assert angle.max() < 0.02
    assert shift.max() < 1e-3


def test_the_kernel_keeps_the_best_of_the_same_samples(
    spoil: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("ransac", "ransac_tensors"):
        monkeypatch.setattr(f"geometry.pose.{place}.REFINE", 0)
    scene, points2d, _ = spoil(24, 50, 0.5)
    candidates = torch.rand(24, 50, generator=generator(5), dtype=torch.float64).clamp_min(0.2) - 0.2
    tensors, kernels = both(scene, points2d, 4.0, candidates=candidates)
    pose, inliers, *_ = tensors.search(100, 1.0, generator())
    fast, kept, *_ = kernels.search(100, 1.0, generator())
    torch.testing.assert_close(fast, pose, rtol=1e-7, atol=1e-7)
    assert torch.equal(kept, inliers)
    # the score of any pose is the same as well
    (cost, (within,)), (reference, (support,)) = kernels.score(pose), tensors.score(pose)
    torch.testing.assert_close(cost, reference)
    assert torch.equal(within, support)
    assert torch.equal(within, kept)


@pytest.mark.parametrize("parts", [[1] * 13, [9, 4]])
def test_a_batch_is_a_loop_with_one_generator(spoil: Callable[..., Any], parts: list[int]) -> None:
    """In whatever parts, and for whoever draws next, though problem 3 needs the most samples.

    Only the last `pnp` rounds otherwise, which adds up the points of a small batch in another order.
    """
    scene, points2d, _ = spoil(13, 40, 0.5)
    points2d[3] = torch.rand(40, 2, generator=generator(5), dtype=torch.float64) * IMAGE
    g, h = generator(), generator()
    together = pnp_ransac(points2d, scene.points3d, scene.K, hypotheses=600, generator=g)
    assert together.steps[3] > together.steps.min()
    pieces = zip(points2d.split(parts), scene.points3d.split(parts), strict=True)
    loop = [pnp_ransac(x, X, scene.K, hypotheses=600, generator=h) for x, X in pieces]
    for name in ("status", "steps", "inliers"):
        assert torch.equal(torch.cat([getattr(one, name) for one in loop]), getattr(together, name)), name
    close(torch.cat([one.x for one in loop]), together.x, atol=1e-9)
    close(torch.cat([one.cost for one in loop]), together.cost, atol=0, rtol=1e-9)
    assert torch.equal(g.get_state(), h.get_state())


# ---- failures and mistakes ----


@pytest.mark.parametrize("N", [10, 40, 200, 1000])
def test_random_pixels_are_no_model(make_scene: Callable[..., Any], N: int) -> None:
    scene = make_scene(60, N, seed=3)
    wild = torch.rand(60, N, 2, generator=generator(4), dtype=torch.float64) * IMAGE
    found = pnp_ransac(wild, scene.points3d, scene.K, hypotheses=300, generator=generator())
    # a model as good as the one that is reported is expected once in ten such problems
    assert (found.status == Status.TOO_FEW).double().mean() > 0.85
    assert torch.isfinite(found.x).all()
    assert torch.isfinite(found.cost).all()


def test_failures_are_flagged_finite_and_alone(spoil: Callable[..., Any]) -> None:
    scene, points2d, _ = spoil(7, 30, 0.3)
    points3d = scene.points3d.clone()
    mask = torch.ones(7, 30, dtype=torch.bool)
    points3d[1] = points3d[1, :1] + torch.linspace(0, 1, 30)[:, None] * torch.tensor([1.0, 2, 3])  # collinear
    points3d[2] = points3d[2, :1]  # one point
    points2d[3] = points2d[3, :1]  # one pixel
    mask[4, 3:] = False  # too few
    mask[5] = False
    found = pnp_ransac(points2d, points3d, scene.K, mask=mask, hypotheses=300, generator=generator())
    assert torch.isfinite(found.x).all()
    assert torch.isfinite(found.cost).all()
    assert found.status[[0, 6]].tolist() == [Status.CONVERGED] * 2
    assert (found.status[1:6] != Status.CONVERGED).all()
    assert (found.status[[4, 5]] == Status.TOO_FEW).all()
    clean = pnp_ransac(points2d[[0, 6]], points3d[[0, 6]], scene.K, hypotheses=300, generator=generator())
    assert max(e.max() for e in errors(found.x[[0, 6]], clean.x)) < 0.1
    with pytest.raises(SolverError, match="5 of 7"):
        pnp_ransac(points2d, points3d, scene.K, mask=mask, hypotheses=300, generator=generator(), throw=True)


def test_four_good_points_are_a_pose(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(20, 4, 0.0)
    found = pnp_ransac(scene.points2d, scene.points3d, scene.K, generator=generator())
    assert found.converged.double().mean() > 0.9
    assert success(found.x[found.converged], scene.world_to_camera_gt[found.converged]) > 0.9


def test_no_problems_are_no_work(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 10)
    found = pnp_ransac(scene.points2d[:0], scene.points3d[:0], scene.K)
    assert found.x.shape == (0, 4, 4)
    assert found.inliers.shape == (0, 10)


def test_mistakes_are_named(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 10)
    data = (scene.points2d, scene.points3d, scene.K)
    with pytest.raises(ValueError, match=r"points2d must have shape \(B,N,2\) or \(N,2\)"):
        pnp_ransac(data[0][0, 0], *data[1:])
    with pytest.raises(ValueError, match="at least 4 points"):
        pnp_ransac(data[0][:, :3], data[1][:, :3], data[2])
    with pytest.raises(ValueError, match=r"candidates must have shape \(2\|1,10\) or \(10,\), got \(9,\)"):
        pnp_ransac(*data, candidates=torch.ones(9))
    with pytest.raises(ValueError, match="candidates must be finite and not negative"):
        pnp_ransac(*data, candidates=-torch.ones(2, 10))
    with pytest.raises(ValueError, match="threshold must be a positive number, got 0"):
        pnp_ransac(*data, threshold=0)
    with pytest.raises(ValueError, match="confidence must be in"):
        pnp_ransac(*data, confidence=0.0)
    with pytest.raises(ValueError, match="points3d must be finite where mask is True"):
        pnp_ransac(data[0], data[1] * torch.nan, data[2])
