from pathlib import Path

import pytest
import torch

from datasets.reconstructions.bal import write_bal
from datasets.reconstructions.colmap import write_colmap
from datasets.reconstructions.model import Reconstruction
from experiments.structure.tracks import observed, pinhole, read_tracks
from geometry import se3
from geometry.reconstruction import as_table


def scene(camera: list[int], point: list[int]) -> Reconstruction:
    """Three cameras side by side, the last 5 behind the others, and points in front of all or of the first two."""
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[1, 0, 3], poses[2, 2, 3] = -1.0, -5.0
    points = torch.tensor([[0.0, 0, 10], [1, 1, 4], [0, 1, 8]], dtype=torch.float64)
    M = len(camera)
    points2d = torch.randn(M, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    K, index = pinhole(500, 500, 0, 0)[None], torch.zeros(3, dtype=torch.int64)
    each = (torch.tensor(camera), torch.tensor(point), points2d)
    return Reconstruction(poses, points, K, K.new_zeros(1, 2), index, *each)


def test_what_can_be_learned_from_is_kept_in_order(tmp_path: Path) -> None:
    given = scene([0, 1, 2, 0, 1, 2, 0], [0, 0, 0, 1, 1, 1, 2])
    write_bal(tmp_path / "scene.txt", given)
    kept, note = read_tracks(tmp_path / "scene.txt")
    assert kept.camera_index.tolist() == [0, 1, 2, 0, 1]  # point 1 is behind camera 2, point 2 has one view
    assert kept.point_index.tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(kept.points2d, given.points2d[:5])
    assert len(kept.points3d) == 3
    assert note.startswith("2 of 7 ")


def test_twice_in_one_view_is_no_track(tmp_path: Path) -> None:
    write_colmap(tmp_path, scene([0, 1, 0, 0], [0, 0, 2, 2]))
    kept, note = read_tracks(tmp_path)
    assert kept.point_index.tolist() == [0, 0]
    assert note.startswith("2 of 4 ")


def test_a_table_holds_the_list() -> None:
    camera, point = torch.tensor([1, 0, 1]), torch.tensor([3, 0, 1])
    points2d = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    table, visible = as_table(points2d, camera, point, 2, 4)
    assert visible.nonzero().tolist() == [[0, 0], [1, 1], [1, 3]]
    assert torch.equal(table[camera, point], points2d)
    assert not table[~visible].any()
    with pytest.raises(IndexError):
        as_table(points2d, camera, point, 2, 3)


def test_each_observation_is_seen_by_its_own_camera() -> None:
    given = scene([2, 0], [1, 2])
    p = observed(given.world_to_camera, given.points3d, given.camera_index, given.point_index)
    expected = se3.transform(given.world_to_camera, given.points3d)[[2, 0], [1, 2]]
    assert torch.equal(p, expected[:, None])
