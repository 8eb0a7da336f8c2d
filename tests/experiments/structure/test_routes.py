import math
from pathlib import Path

import torch

from datasets.reconstructions.bal import write_bal
from datasets.reconstructions.model import Reconstruction
from experiments.structure.routes import Tracks, make_starts, read_file, solid
from geometry import se3, triangulate


def small() -> Tracks:
    return solid(10, 40, torch.Generator().manual_seed(0))


def test_points_come_to_rest_where_they_are_triangulated() -> None:
    tracks = small()
    expected = triangulate(*tracks.dense, tracks.poses_gt, tracks.K, tracks.distortion).x
    points = tracks.points
    for _ in range(4):
        points = tracks.place_points(points, tracks.poses_gt)
    torch.testing.assert_close(points, expected, rtol=0, atol=1e-6)


def test_a_point_stays_in_front_of_its_cameras() -> None:
    tracks = small()
    behind = tracks.points.clone()
    behind[0] = se3.inverse(tracks.poses)[tracks.camera[tracks.point == 0][0], :3, 3] * 2
    costs = tracks.point_costs(behind, tracks.poses)
    assert costs[0] == math.inf
    assert costs[1:].isfinite().all()
    moved = tracks.place_points(behind, tracks.poses)
    assert torch.equal(moved[0], behind[0])
    assert (tracks.point_costs(moved, tracks.poses)[1:] < costs[1:]).all()


def test_a_random_start_has_no_poses_and_the_right_scene() -> None:
    starts = make_starts("random_start", seed=0, starts=3)
    assert len(starts) == 3
    assert all(tracks.poses is None for tracks in starts)
    assert not torch.equal(starts[0].points, starts[1].points)
    assert torch.equal(starts[0].points2d, starts[2].points2d)


def test_only_tracks_in_front_of_two_cameras_are_read(tmp_path: Path) -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[1, 0, 3] = -1.0
    poses[2, 2, 3] = -5.0  # at z = 5: point 1 lies behind
    points = torch.tensor([[0.0, 0, 10], [1, 1, 4], [0, 1, 4], [0, 0, 9]], dtype=torch.float64)
    camera = torch.tensor([0, 1, 2, 0, 1, 2, 0, 2, 0])
    point = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3])
    K = torch.tensor([[500.0, 0, 0], [0, 500, 0], [0, 0, 1]], dtype=torch.float64).repeat(3, 1, 1)
    points2d = torch.randn(9, 2, dtype=torch.float64)
    scene = Reconstruction(poses, points, K, K.new_zeros(3, 2), torch.arange(3), camera, point, points2d)
    write_bal(tmp_path / "scene.txt", scene)
    tracks = read_file(tmp_path / "scene.txt")
    # point 1 loses its view from behind, points 2 and 3 have one view left
    assert tracks.camera.tolist() == [0, 1, 2, 0, 1]
    assert tracks.point.tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(tracks.points, points[:2])
    torch.testing.assert_close(tracks.points2d, points2d[:5])
    assert tracks.note.startswith("4 of 9 ")
