"""The truth that keypoints learn, of objects that look alike in several poses."""

import pytest
import torch
from torch import Tensor

from experiments.object_poses.losses import target_of
from geometry import project, se3
from tests.experiments.object_poses.heatmaps import scene
from tests.numbers import DOUBLE, generator


def turn(angles: Tensor | float, axis: int = 2) -> Tensor:
    """(…,4,4) about an axis of the object."""
    angles = torch.as_tensor(angles, **DOUBLE)
    rotvec = angles[..., None] * torch.eye(3, **DOUBLE)[axis]
    return se3.make(se3.exp(rotvec), torch.zeros(*angles.shape, 3, **DOUBLE))


def turns(count: int) -> Tensor:
    return turn(2 * torch.pi * torch.arange(count, **DOUBLE) / count)


def angle_between(one: Tensor, other: Tensor) -> Tensor:
    R = one[..., :3, :3].mT @ other[..., :3, :3]
    return ((R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).acos()


def test_without_symmetry_the_truth_is_what_it_is() -> None:
    _, target = scene(B=3)
    identity = torch.eye(4, **DOUBLE).expand(3, 2, 4, 4)
    for prediction in (None, torch.zeros_like(target.points2d)):
        found = target_of(target.points3d, target.K, target.pose, identity, prediction)
        for one, other in zip(found, target, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("predicted", [True, False])
def test_the_target_is_one_of_the_poses_that_look_alike(predicted: bool) -> None:
    _, target = scene(B=3)
    symmetries = turns(5).expand(3, 5, 4, 4)
    prediction = target.points2d + 3 if predicted else None
    found = target_of(target.points3d, target.K, target.pose, symmetries, prediction)
    off = angle_between(found.pose[:, None], target.pose[:, None] @ symmetries)
    assert off.min(1).values.max() < 1e-6
    torch.testing.assert_close(found.points2d, project(target.points3d, found.pose, target.K), rtol=0, atol=1e-9)


def test_of_the_poses_that_look_alike_all_have_one_target() -> None:
    """Whichever of them a file happens to name as the truth."""
    _, target = scene(B=4)
    symmetries = turns(4)
    wanted = target_of(target.points3d, target.K, target.pose, symmetries.expand(4, 4, 4, 4)).pose
    for symmetry in symmetries:
        found = target_of(target.points3d, target.K, target.pose @ symmetry, symmetries.expand(4, 4, 4, 4)).pose
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_the_target_does_not_turn_with_a_body_of_revolution() -> None:
    """A whole turn of the object, in fine steps, moves the target by no more than the symmetries are apart."""
    _, target = scene(B=1)
    symmetries = turns(315)
    pose = target.pose @ turn(torch.linspace(0, 2 * torch.pi, 400, **DOUBLE))
    many = lambda value: value.expand(400, *value.shape[1:])
    found = target_of(many(target.points3d), many(target.K), pose, symmetries.expand(400, -1, -1, -1)).pose
    assert angle_between(found, found[:1]).max() < 2 * torch.pi / 315
    assert angle_between(pose, pose[:1]).max() > 3  # the pose itself does turn


def test_views_that_are_alike_have_targets_that_are() -> None:
    """Along a path about a body of revolution, its sides told apart by nothing: no jumps."""
    _, target = scene(B=1)
    steps = torch.linspace(0, 1, 300, **DOUBLE)
    path = turn(-1.4 + 0.9 * steps, axis=0) @ turn(5 * steps)  # tilts, and turns
    path[:, :3, 3] = torch.tensor([20.0, -10, 400], **DOUBLE) + 30 * steps[:, None]
    many = lambda value: value.expand(300, *value.shape[1:])
    found = target_of(many(target.points3d), many(target.K), path, turns(315).expand(300, -1, -1, -1)).pose
    assert angle_between(found[1:], found[:-1]).max() < 0.05
    assert angle_between(path[1:], path[:-1]).max() < 0.05


def test_the_target_is_the_nearest_to_what_is_predicted() -> None:
    _, target = scene(B=6)
    symmetries = turns(6).expand(6, 6, 4, 4)
    row = torch.arange(6)
    chosen = target.pose @ symmetries[row, row]
    near = project(target.points3d, chosen, target.K) + torch.randn(6, 7, 2, generator=generator(), **DOUBLE)
    near.requires_grad_()
    found = target_of(target.points3d, target.K, target.pose, symmetries, near)
    torch.testing.assert_close(found.pose, chosen, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.points2d.sum(), near)
    assert not gradient.any()  # sides do not move with the prediction


def test_a_body_of_revolution_is_met_between_the_samples_of_its_symmetry() -> None:
    """At any angle, of an axis beside the origin, by weights; and the target turns as the prediction does."""
    _, target = scene(B=1)
    many = lambda value: value.expand(50, *value.shape[1:])
    offset = torch.eye(4, **DOUBLE)
    offset[:3, 3] = torch.tensor([15.0, -12, 8], **DOUBLE)
    about = lambda turned: offset @ turned @ torch.linalg.inv(offset)
    angles = torch.linspace(0.1, 6.0, 50, **DOUBLE).requires_grad_()
    points3d, K, pose = (many(value) for value in (target.points3d, target.K, target.pose))
    weights = 0.2 + torch.rand(50, 7, 2, generator=generator(), **DOUBLE)
    seen = project(points3d, pose @ about(turn(angles)), K)
    found = target_of(points3d, K, pose, about(turns(315)).expand(50, -1, -1, -1), seen, weights)
    off = (found.points2d - seen).norm(dim=-1)
    assert off.max() < 2e-3  # the nearest sample is up to half a pixel away
    sampled = project(points3d[:, None], pose[:, None] @ about(turns(315)), K[:, None])
    assert (sampled - seen[:, None]).norm(dim=-1).amax(2).min(1).values.max() > 0.1
    (moved,) = torch.autograd.grad((found.points2d - seen).square().sum((1, 2)).sqrt().sum(), angles)
    with torch.no_grad():
        speed = (project(points3d, pose @ about(turn(angles + 1e-6)), K) - seen).square().sum((1, 2)).sqrt() / 1e-6
    assert moved.abs().max() < 0.01 * speed.min()


@pytest.mark.parametrize("predicted", [True, False])
def test_the_choice_is_that_of_all_poses_written_out(predicted: bool) -> None:
    """Turns about an axis beside the origin, for three objects of which the second has no symmetry."""
    _, target = scene(B=3)
    offset = torch.tensor([150.0, -120, 80], **DOUBLE)
    there, back = torch.eye(4, **DOUBLE), torch.eye(4, **DOUBLE)
    there[:3, 3], back[:3, 3] = offset, -offset
    symmetries = (there @ turns(7) @ back).repeat(3, 1, 1, 1)
    symmetries[1] = torch.eye(4, **DOUBLE)
    poses = target.pose[:, None] @ symmetries
    prediction = target.points2d + 40 * torch.randn(3, 7, 2, generator=generator(), **DOUBLE) if predicted else None
    found = target_of(target.points3d, target.K, target.pose, symmetries, prediction)
    for b in range(3):
        if prediction is None:
            direction = torch.tensor([0.8, 0.5, 0.33], **DOUBLE)
            score = torch.stack([-torch.linalg.inv(pose)[:3, 3] @ direction for pose in poses[b]])
        else:
            score = (project(target.points3d[b], poses[b], target.K[b]) - prediction[b]).square().sum((1, 2))
        torch.testing.assert_close(found.pose[b], poses[b, score.argmin()], rtol=0, atol=1e-9)
    assert angle_between(found.pose[1], target.pose[1]) < 1e-6
