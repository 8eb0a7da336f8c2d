"""P3P: every root is found, every root is one, and its gradient is right."""

from collections.abc import Callable

import cv2
import numpy as np
import poselib
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from geometry import se3
from geometry.compiled.pose import p3p as kernel
from geometry.compiled.pose.equations import POSE, L
from geometry.consensus.minimal import p3p

torch.set_num_threads(1)


def rotations(g: torch.Generator, n: int) -> Tensor:
    return se3.rotation_from_quat_wxyz(torch.randn(n, 4, generator=g, dtype=torch.float64))


def triangles(kind: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n points3d (n,3,3) and the same in a camera frame."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    points3d, depth = 2 * torch.rand(n, 3, 3, generator=g, dtype=torch.float64) - 1, 5.0
    if kind == "wide":
        camera = normal(n, 3, 3)
        return (camera - normal(n, 1, 3)) @ rotations(g, n), camera
    if kind == "symmetric":  # three equal sides, three equal angles: double roots, and nearly so
        turns = torch.tensor([0.0, 2, 4], dtype=torch.float64) * torch.pi / 3
        camera = torch.stack([0.3 * turns.cos(), 0.3 * turns.sin(), torch.ones(3, dtype=torch.float64)], -1)
        camera = 3 * camera + 1e-5 * normal(n, 3, 3)
        return camera @ rotations(g, n), camera
    if kind == "flat":  # almost collinear
        points3d[:, 2] = 0.5 * (points3d[:, 0] + points3d[:, 1]) + 1e-3 * normal(n, 3)
    if kind == "close":  # two points almost the same
        points3d[:, 2] = points3d[:, 0] + 1e-3 * normal(n, 3)
    if kind == "far":
        depth = 500.0
    t = torch.stack([normal(n), normal(n), torch.full((n,), depth, dtype=torch.float64)], -1)
    return points3d, points3d @ rotations(g, n).mT + t[:, None]


def real(poses: Tensor) -> Tensor:
    return torch.isfinite(poses).all(-1).all(-1)


def of_poselib(rays: Tensor, points3d: Tensor) -> list[Tensor]:
    found = [poselib.p3p(b, X) for b, X in zip(rays.numpy(), points3d.numpy(), strict=True)]
    return [torch.from_numpy(np.array([pose.Rt for pose in poses]).reshape(-1, 3, 4)) for poses in found]


def of_opencv(rays: Tensor, points3d: Tensor) -> list[Tensor]:
    found = []
    for b, X in zip(rays.numpy(), points3d.numpy(), strict=True):
        _, rotvecs, ts = cv2.solveP3P(X, b[:, :2] / b[:, 2:], np.eye(3), None, cv2.SOLVEPNP_P3P)
        six = np.array([np.concatenate([r.ravel(), t.ravel()]) for r, t in zip(rotvecs, ts, strict=True)])
        found.append(se3.from_rotvec_t(torch.from_numpy(six.reshape(-1, 6)))[:, :3])
    return found


@pytest.mark.parametrize("kind", ["cube", "wide", "symmetric", "flat", "close", "far"])
def test_every_root_is_a_pose_of_the_three_points(kind: str) -> None:
    points3d, camera = triangles(kind, 5000)
    rays = normalize(camera, dim=-1)
    poses = p3p(3 * rays, points3d)
    found = real(poses)
    assert (found.any(1)).float().mean() > 0.999
    R = poses[found][:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=torch.float64).expand_as(R), rtol=0, atol=1e-14)
    assert (torch.linalg.det(R) > 0).all()
    seen = se3.transform(poses, points3d[:, None])
    assert (seen * rays[:, None]).sum(-1)[found].min() > 0  # in front of the camera
    assert (normalize(seen, dim=-1) - rays[:, None])[found].norm(dim=-1).max() < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("solver", [of_poselib, of_opencv])
@pytest.mark.parametrize("kind", ["cube", "wide", "symmetric", "flat", "close"])
def test_no_root_of_another_solver_is_missed(kind: str, solver: Callable[..., list[Tensor]]) -> None:
    points3d, camera = triangles(kind, 1500, seed=1)
    if solver is of_opencv and kind == "wide":
        pytest.skip("OpenCV takes pixels, and sees only what is ahead")
    rays = normalize(camera, dim=-1)
    poses = p3p(rays, points3d)
    found = real(poses)
    total = missed = 0
    for b, X, ours, has, theirs in zip(rays, points3d, poses, found, solver(rays, points3d), strict=True):
        # refined, for theirs are as little as six digits
        p = theirs[:, :, :3] @ X.mT + theirs[:, :, 3:]
        right = (normalize(p.mT, dim=-1) - b).norm(dim=-1).amax(-1) < 1e-7
        distance = (theirs[right][:, None] - ours[has][None, :, :3]).flatten(2).norm(dim=2)
        total += int(right.sum())
        # near a double root, an error of 1e-7 moves the pose by its square root
        missed += int((distance.amin(1) > 2e-3).sum()) if has.any() else int(right.sum())
    assert total > 1200
    assert missed == 0


def test_no_more_roots_than_another_solver_where_all_are_well_apart() -> None:
    points3d, camera = triangles("cube", 3000, seed=2)
    rays = normalize(camera, dim=-1)
    ours = real(p3p(rays, points3d)).sum(1).tolist()
    assert ours == [len(poses) for poses in of_poselib(rays, points3d)]


def test_the_true_pose_is_among_the_roots_in_float32() -> None:
    points3d, camera = triangles("cube", 2000)
    pose = p3p(camera.float(), points3d.float())
    assert pose.dtype == torch.float32
    error = (se3.transform(pose, points3d.float()[:, None]) - camera[:, None]).norm(dim=-1).amax(-1)
    best = error.nan_to_num(torch.inf).amin(1)
    assert best.median() < 2e-5
    assert (best < 1e-2).float().mean() > 0.99


def test_leading_dimensions_are_the_batch() -> None:
    points3d, camera = triangles("cube", 12)
    flat = p3p(camera, points3d)
    torch.testing.assert_close(
        p3p(camera.unflatten(0, (3, 4)), points3d.unflatten(0, (3, 4))).flatten(0, 1), flat, equal_nan=True
    )
    torch.testing.assert_close(p3p(camera[3], points3d[3]), flat[3], equal_nan=True)
    torch.testing.assert_close(p3p(camera, points3d[3]), p3p(camera, points3d[3].expand(12, 3, 3)), equal_nan=True)
    assert p3p(camera[:0], points3d[:0]).shape == (0, 4, 4, 4)


def test_the_order_of_the_points_does_not_matter() -> None:
    points3d, camera = triangles("cube", 500)

    def traces(order: list[int]) -> Tensor:
        return p3p(camera[:, order], points3d[:, order])[:, :, 0, 3].nan_to_num(1e3).sort(-1).values

    for order in ([1, 2, 0], [2, 1, 0], [0, 2, 1]):
        torch.testing.assert_close(traces(order), traces([0, 1, 2]), rtol=1e-7, atol=1e-7)


def degenerate(case: str) -> tuple[Tensor, Tensor]:
    points3d, camera = (a.clone() for a in triangles("cube", 4, seed=5))
    if case == "collinear points":
        points3d[1, 2] = 3 * points3d[1, 1] - 2 * points3d[1, 0]
        points3d[1] = points3d[1].round()
        points3d[1, 2] = 2 * points3d[1, 1] - points3d[1, 0]
    elif case == "coincident points":
        points3d[1] = points3d[1, 0]
    elif case == "two coincident points":
        points3d[1, 1] = points3d[1, 0]
    elif case == "coincident rays":
        camera[1] = camera[1, 0]
    elif case == "no ray":
        camera[1] = 0
    else:
        points3d[1, 0, 0] = torch.nan
    return points3d, camera


CASES = ["collinear points", "coincident points", "two coincident points", "coincident rays", "no ray", "nan"]


@pytest.mark.parametrize("case", CASES)
def test_a_degenerate_sample_is_nan_and_leaves_the_others_alone(case: str) -> None:
    points3d, camera = degenerate(case)
    points3d, camera = points3d.requires_grad_(), camera.requires_grad_()
    poses = p3p(camera, points3d)
    assert poses[1].isnan().all()
    assert real(poses)[[0, 2, 3]].any(1).all()
    poses[real(poses)].sum().backward()
    for leaf in (points3d, camera):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert (leaf.grad[1] == 0).all()
        assert (leaf.grad[[0, 2, 3]] != 0).any()


def test_gradients_are_those_of_finite_differences() -> None:
    points3d, camera = triangles("cube", 60, seed=3)
    g = torch.Generator().manual_seed(0)
    seeds, *directions = (
        torch.randn(60, *shape, generator=g, dtype=torch.float64) for shape in ((4, 4, 4), (3, 3), (3, 3))
    )

    def f(camera: Tensor, points3d: Tensor) -> Tensor:
        found = p3p(camera, points3d)
        return torch.where(torch.isnan(found), 0, seeds * found).flatten(1).sum(1)

    leaves = [camera.requires_grad_(), points3d.requires_grad_()]
    for k, gradient in enumerate(torch.autograd.grad(f(*leaves).sum(), leaves)):

        def along(h: float, k: int = k) -> Tensor:
            return f(*(a.detach() + h * d * (i == k) for i, (a, d) in enumerate(zip(leaves, directions, strict=True))))

        coarse, fine = ((8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h) for h in (1e-4, 2e-5))
        scale = 1 + fine.abs()
        steady = (coarse - fine).abs() < 1e-6 * scale  # near a double root there are no differences to compare with
        assert steady.sum() > 50
        error = ((gradient * directions[k]).flatten(1).sum(1) - coarse) / scale
        assert error[steady].abs().max() < 1e-6


def test_a_wrong_shape_is_a_mistake() -> None:
    good = torch.eye(3)
    with pytest.raises(ValueError, match=r"rays must have shape \(…,3,3\), got \(4, 3\)"):
        p3p(torch.zeros(4, 3), good)
    with pytest.raises(ValueError, match=r"points3d must have shape \(…,3,3\), got \(3, 2\)"):
        p3p(good, torch.zeros(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cube", "wide", "symmetric", "flat", "close", "far"])
def test_the_compiled_one_is_the_same(kind: str) -> None:
    points3d, camera = triangles(kind, 400, seed=7)
    rays = normalize(camera, dim=-1)
    reference, ours = p3p(rays, points3d), torch.full((400, 4, 3, 4), torch.nan, dtype=torch.float64)
    work, roots = np.empty(39 * L), np.empty(kernel.POSES)
    for first in range(0, 400, L):
        sample = torch.cat([rays[first : first + L], points3d[first : first + L]], 1).flatten(1).mT.contiguous()
        kernel.p3p(sample.flatten().numpy(), 2.0**-52, work, roots)
        table = torch.from_numpy(roots.copy()).unflatten(0, (4, POSE // L + 1, L)).permute(2, 0, 1)
        Rt = torch.cat([table[..., :9].unflatten(-1, (3, 3)), table[..., 9:12, None]], -1)
        ours[first : first + L] = torch.where(table[..., 12, None, None] > 0, Rt, torch.nan)
    exists = real(ours)
    # at a double root, rounding decides whether there are two or none
    assert (exists != real(reference)).float().mean() < 1e-3
    both = exists & real(reference)
    seen = normalize((ours[..., :3] @ points3d[:, None].mT + ours[..., 3:]).mT, dim=-1)
    assert (seen - rays[:, None])[both].norm(dim=-1).max() < 1e-9
    distance = (ours - reference[:, :, :3]).flatten(2).norm(dim=2)[both] / camera.norm(dim=-1).mean()
    # the rounding of the data moves a pose by as much as the triangle is ill-conditioned
    assert distance.median() < {"cube": 1e-14, "wide": 1e-14, "symmetric": 1e-9}.get(kind, 1e-8)
    assert (distance < 1e-4).float().mean() > 0.998
