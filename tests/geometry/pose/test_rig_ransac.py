"""`rig_pnp_ransac`, and `pnp_ransac` of bearings: as good as PoseLib, differentiable, never worse than a flag."""

from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.made.rig_views import RigViews, rig_views
from experiments.benchmarks.rig_pose import of_poselib
from geometry import Status, pnp, pnp_ransac, rig_pnp, rig_pnp_ransac, se3
from tests.numbers import DOUBLE, close, generator, normal


def spoiled(B: int, N: int, S: int, share: float, seed: int = 0) -> tuple[RigViews, Tensor]:
    """Rigs with a share of their pixels anywhere, and which those are (B,N)."""
    g = generator(seed)
    seen = rig_views(B, N, S, 1.0, g)
    wrong = torch.rand(B, N, generator=g, **DOUBLE).argsort(1).argsort(1) < round(share * N)
    anywhere = torch.rand(B, N, 2, generator=g, **DOUBLE) * torch.tensor([640.0, 480.0], **DOUBLE)
    return seen._replace(points2d=torch.where(wrong[..., None], anywhere, seen.points2d)), wrong


def success(x: Tensor, truth: Tensor) -> float:
    """Share of poses within half a degree and 0.03 of the truth, where cameras are 0.5 from the middle of the rig."""
    angle = torch.rad2deg(se3.rotation_angle(x[:, :3, :3] @ truth[:, :3, :3].mT))
    shift = (se3.centre(x) - se3.centre(truth)).norm(dim=-1)
    return ((angle < 0.5) & (shift < 0.03)).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("N", "S", "share"), [(60, 3, 0.3), (60, 3, 0.6), (24, 12, 0.5)])
def test_it_succeeds_as_often_as_poselib(N: int, S: int, share: float) -> None:
    """With two points a camera as well, half of them wrong: no camera has a pose of its own."""
    seen, wrong = spoiled(20, N, S, share, seed=N)
    found = rig_pnp_ransac(**seen.given, generator=generator())
    ours = success(found.x, seen.world_to_rig_gt)  # type: ignore[arg-type]
    assert ours >= success(of_poselib(seen, max_reproj_error=4.0), seen.world_to_rig_gt)
    best = rig_pnp(**seen.given, mask=~wrong, init=seen.world_to_rig_gt)
    assert ours >= success(best.x, seen.world_to_rig_gt)  # type: ignore[arg-type]
    assert found.converged.all()
    assert (found.inliers & wrong).double().mean() < 0.02


@pytest.mark.slow
def test_it_is_the_pose_of_its_inliers_and_has_its_gradient() -> None:
    seen, _ = spoiled(3, 20, 3, 0.3)
    leaves = {name: v.clone().requires_grad_() for name, v in seen.given.items() if v.is_floating_point()}
    found = rig_pnp_ransac(**leaves, sensor_index=seen.sensor_index, generator=generator())  # type: ignore[arg-type]
    alone = rig_pnp(
        **leaves,
        sensor_index=seen.sensor_index,
        mask=found.inliers,
        init=seen.world_to_rig_gt,  # type: ignore[arg-type]
    )
    close(found.x, alone.x, 1e-9)
    covector = normal(3, 4, 4)
    ours, theirs = (torch.autograd.grad((f.x * covector).sum(), list(leaves.values())) for f in (found, alone))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-6 * b.abs().max().item())


def test_no_rigs_have_no_poses() -> None:
    seen, _ = spoiled(1, 8, 2, 0.0)
    nothing = {name: value[:0] for name, value in seen.given.items()}
    assert rig_pnp_ransac(**nothing).x.shape == (0, 4, 4)  # type: ignore[union-attr]
    pose, scale = rig_pnp(**nothing, scale=True).x
    assert (pose.shape, scale.shape) == ((0, 4, 4), (0,))


@pytest.mark.slow
def test_chance_is_told_from_a_pose() -> None:
    seen, _ = spoiled(4, 12, 3, 1.0)
    found = rig_pnp_ransac(**seen.given, hypotheses=128, generator=generator())
    assert (found.status == Status.TOO_FEW).all()
    assert torch.isfinite(found.x).all()  # type: ignore[arg-type]
    mask = torch.arange(12).expand(4, 12) < 3
    right, _ = spoiled(4, 12, 3, 0.0)
    assert (rig_pnp_ransac(**right.given, mask=mask, hypotheses=64).status == Status.TOO_FEW).all()


@pytest.mark.slow
def test_bearings_among_wrong_ones() -> None:
    X, g = 3 * normal(8, 60, 3), generator(1)
    truth = se3.make(se3.rotation_from_quat_wxyz(normal(8, 4, seed=1)), normal(8, 3, seed=2))
    bearings = se3.transform(truth, X)
    bearings = bearings / bearings.norm(dim=-1, keepdim=True) + 1e-3 * normal(8, 60, 3, seed=3)
    wrong = torch.rand(8, 60, generator=g, **DOUBLE) < 0.5
    mixed = torch.where(wrong[..., None], normal(8, 60, 3, seed=4), bearings)
    found = pnp_ransac(mixed, X, None, model="ray", threshold=5e-3, generator=g)
    assert found.converged.all()
    assert (found.inliers == ~wrong).double().mean() > 0.99
    alone = pnp(mixed, X, None, model="ray", mask=found.inliers)
    close(found.x, alone.x, 1e-9)
    nothing: Any = pnp_ransac(normal(4, 12, 3, seed=5), X[:4, :12], None, model="ray", threshold=5e-3, hypotheses=128)
    assert (nothing.status == Status.TOO_FEW).all()
