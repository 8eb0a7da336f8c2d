import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from datasets.images.middlebury import read_middlebury
from datasets.images.tracks import find_tracks
from datasets.locate import find
from experiments.structure.incremental import compare, reconstruct
from geometry import align_similarity, bundle, cauchy, project, se3


class Scene(NamedTuple):
    points2d: Tensor
    camera_index: Tensor
    point_index: Tensor
    K: Tensor
    distortion: Tensor
    world_to_camera: Tensor
    points3d: Tensor
    wrong: Tensor

    @property
    def given(self):
        return self[:5]


LENS = (-0.2, 0.05, 1e-3, -5e-4)


def ring(V=12, N=500, noise=0.5, wrong=0.1, distortion=(), seed=0):
    """Cameras around a ball (radius 1, from 4 away) whose points hide behind it; a share of observations is wrong."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high, *size):
        return low + (high - low) * torch.rand(*size, generator=g, dtype=torch.float64)

    points3d = torch.nn.functional.normalize(torch.randn(N, 3, generator=g, dtype=torch.float64), dim=1)
    points3d = points3d * uniform(0.8, 1.0, N, 1)
    angle = torch.arange(V) * 2 * math.pi / V + uniform(-0.1, 0.1, V)
    turn = se3.exp(torch.stack([torch.zeros(V).double(), angle, torch.zeros(V).double()], 1))
    tilt = se3.exp(uniform(-0.15, 0.15, V, 3) + torch.tensor([0.3, 0, 0]))
    pose = se3.make(tilt @ turn, uniform(-0.2, 0.2, V, 3) + torch.tensor([0, 0, 4.0]))
    K = torch.tensor([[800.0, 0, 320], [0, 810, 240], [0, 0, 1]], dtype=torch.float64)
    centre = se3.inverse(pose)[:, :3, 3]
    facing = (centre[:, None] - points3d) * points3d
    camera, point = (facing.sum(-1) > 0.5).nonzero().T
    distortion = torch.tensor(distortion, dtype=torch.float64)
    x = project(points3d, pose, K.expand(V, 3, 3), distortion.expand(V, -1))[camera, point]
    x = x + noise * torch.randn(x.shape, generator=g, dtype=torch.float64)
    bad = torch.rand(len(x), generator=g) < wrong
    x[bad] = uniform(0, 1, int(bad.sum()), 2) * torch.tensor([640.0, 480.0])
    order = torch.randperm(len(x), generator=g)
    return Scene(x[order], camera[order], point[order], K, distortion, pose, points3d, bad[order])


def adjust(points2d, camera_index, point_index):
    """Robust bundle adjustment as `refine`, once all cameras are known; before, poses and points stay as they are."""

    def refine(given, inlier):
        camera, x = camera_index[inlier], points2d[inlier]
        if len(camera.unique()) < len(given.K):
            return given
        known, point = point_index[inlier].unique(return_inverse=True)
        found = bundle(x, camera, point, given.world_to_camera, given.points3d[known], given.K, kernel=cauchy(0.5)).x
        points3d = given.points3d.index_put((known,), found.points3d)
        return given._replace(world_to_camera=found.world_to_camera, points3d=points3d)

    return refine


# --- made scenes ---


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "lens"), [(0, LENS), (1, ()), (2, ()), (3, ())])
def test_a_ring_with_a_tenth_of_the_observations_wrong(seed, lens):
    scene = ring(distortion=lens, seed=seed)
    found = reconstruct(*scene.given)
    assert found.registered.all()
    rotation, centre = compare(found.bundle.world_to_camera, scene.world_to_camera)
    # half a pixel of noise is 0.04 degrees for one ray
    assert rotation.median() < 0.2
    assert rotation.max() < 0.5
    assert centre.max() < 0.004
    assert found.inlier[~scene.wrong].double().mean() > 0.97
    assert found.inlier[scene.wrong].double().mean() < 0.03
    # a point with fewer than three right observations can be wrong, unnoticed
    right = torch.bincount(scene.point_index[~scene.wrong], minlength=500)[: len(found.found)]
    sure = found.found & (right >= 3)
    assert sure.sum() > 300
    true = scene.points3d[: len(sure)][sure]
    error = align_similarity(found.bundle.points3d[sure], true).apply(found.bundle.points3d[sure]) - true
    assert error.norm(dim=1).median() < 0.005


@pytest.mark.slow
def test_without_noise_it_is_exact():
    scene = ring(V=8, N=200, noise=0, wrong=0, distortion=LENS)
    found = reconstruct(*scene.given, rounds=20)
    rotation, centre = compare(found.bundle.world_to_camera, scene.world_to_camera)
    assert rotation.max() < 1e-3
    assert centre.max() < 1e-5
    assert found.inlier[found.found[scene.point_index]].all()


@pytest.mark.slow
def test_what_is_returned_agrees_with_itself():
    scene = ring(V=6, distortion=LENS)
    found = reconstruct(*scene.given, threshold=1.5)
    V = len(found.registered)
    pixels = project(
        found.bundle.points3d, found.bundle.world_to_camera, scene.K.expand(V, 3, 3), scene.distortion.expand(V, -1)
    )
    error = (pixels[scene.camera_index, scene.point_index] - scene.points2d).norm(dim=1)
    known = found.found[scene.point_index] & found.registered[scene.camera_index]
    assert torch.equal(found.inlier, known & (error < 1.5))
    assert (found.bundle.points3d[~found.found] == 0).all()
    assert torch.bincount(scene.point_index[found.inlier], minlength=len(found.found))[found.found].min() >= 2
    again = reconstruct(*scene.given, threshold=1.5)
    assert all(torch.equal(a, b) for a, b in zip(found.bundle[:4], again.bundle[:4], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found[1:], again[1:], strict=True))


@pytest.mark.slow
def test_a_camera_that_shares_nothing_is_not_registered():
    scene = ring(V=10)
    alone = scene.camera_index == 2
    point = torch.where(alone, 500 + torch.arange(len(alone)), scene.point_index)
    K = scene.K.expand(11, 3, 3)  # camera 10 has no observation at all
    found = reconstruct(scene.points2d, scene.camera_index, point, K, scene.distortion)
    assert found.registered.tolist() == [v not in (2, 10) for v in range(11)]
    assert torch.equal(found.bundle.world_to_camera[2], torch.eye(4).double())
    assert not found.inlier[alone].any()


@pytest.mark.slow
def test_refine_is_called_after_each_camera_and_what_it_returns_is_used():
    scene, calls = ring(V=6, wrong=0), []

    def refine(given, inlier):
        calls.append((len(scene.camera_index[inlier].unique()), inlier.sum()))
        assert given.K.shape == (7, 3, 3)
        known = torch.isin(torch.arange(7), scene.camera_index[inlier])
        # the truth, moved and scaled; nonsense for cameras that are not known yet, which must be ignored
        truth = torch.cat([scene.world_to_camera, torch.eye(4).double()[None]])
        truth[:, :3, 3] *= 3
        points3d = 3 * scene.points3d[: len(given.points3d)]
        return given._replace(world_to_camera=torch.where(known[:, None, None], truth, torch.nan), points3d=points3d)

    # camera 6 sees nothing
    found = reconstruct(*scene._replace(K=scene.K.expand(7, 3, 3)).given, refine=refine, rounds=1)
    assert [count for count, _ in calls] == [2, 3, 4, 5, 6, 6]
    assert calls[-1][1] > calls[0][1]
    assert found.registered.tolist() == [True] * 6 + [False]
    assert torch.equal(found.bundle.world_to_camera[:6, :3, 3], 3 * scene.world_to_camera[:, :3, 3])
    assert torch.equal(found.bundle.world_to_camera[6], torch.eye(4).double())


@pytest.mark.slow
def test_observations_come_back_once_they_agree():
    scene = ring(V=6, wrong=0)
    held = []

    def spoil_first(given, inlier):
        held.append(int(inlier.sum()))
        poses = given.world_to_camera
        if len(held) == 1:  # turn the second camera of the pair by a degree: hardly an observation agrees
            second = scene.camera_index[inlier].max()
            step = torch.zeros(6, 6).double()
            step[second, :3] = math.radians(1) * torch.tensor([1.0, 0, 0])
            return given._replace(world_to_camera=se3.retract(poses, step))
        truth = torch.where((poses == torch.eye(4)).all(-1).all(-1)[:, None, None], poses, start)
        return given._replace(world_to_camera=truth)

    start = reconstruct(*scene.given).bundle.world_to_camera
    found = reconstruct(*scene.given, fewest=8, refine=spoil_first)
    assert found.inlier.sum() >= held[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points2d": torch.zeros(4, 3)}, "points2d must be finite and of shape"),
        ({"points2d": torch.full((4, 2), torch.nan)}, "points2d must be finite"),
        ({"camera_index": torch.zeros(3).long()}, r"camera_index must hold int64 >= 0 of shape \(4,\)"),
        ({"point_index": torch.tensor([0, 1, -1, 2])}, "point_index must hold int64 >= 0"),
        ({"point_index": torch.tensor([0, 0, 0, 1])}, "a point once a camera, got one twice"),
        ({"K": torch.eye(3).expand(1, 3, 3)}, r"K must have shape \(3,3\) or \(V,3,3\) with V > 1"),
        ({"K": torch.eye(4)}, "K must have shape"),
        ({"distortion": torch.zeros(3, 4)}, r"distortion must have shape \(k,\) or \(2,k\)"),
        ({}, "two cameras with 15 good points in common wanted"),
    ],
)
def test_errors(changes, message):
    arguments = {
        "points2d": torch.rand(4, 2, dtype=torch.float64),
        "camera_index": torch.tensor([0, 0, 1, 1]),
        "point_index": torch.tensor([0, 1, 0, 1]),
        "K": torch.eye(3, dtype=torch.float64),
    }
    with pytest.raises(ValueError, match=message):
        reconstruct(**arguments | changes)


# --- real images ---


@pytest.fixture(scope="module")
def temple():
    """Views and tracks, found once for all tests."""
    try:
        views = read_middlebury(find("temple_sparse_ring"))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    tracks = find_tracks(views.images)
    return views, (tracks.points2d, tracks.camera_index, tracks.point_index)


@pytest.mark.slow
def test_temple(temple):
    views, tracks = temple
    found = reconstruct(*tracks, views.K)
    assert found.registered.all()
    assert found.found.sum() > 3300
    assert found.inlier.sum() > 9000
    rotation, centre = compare(found.bundle.world_to_camera, views.world_to_camera)
    assert rotation.median() < 0.2
    assert rotation.max() < 0.5
    assert centre.median() < 0.002
    assert centre.max() < 0.005


@pytest.mark.slow
def test_temple_with_a_bundle_adjustment_at_the_end(temple):
    views, tracks = temple
    found = reconstruct(*tracks, views.K, refine=adjust(*tracks), rounds=1)
    assert found.registered.all()
    rotation, centre = compare(found.bundle.world_to_camera, views.world_to_camera)
    assert rotation.median() < 0.15
    assert centre.median() < 0.001
    assert centre.max() < 0.004
