"""The scenes of structure_from_motion: what they hold, and what is said of those that cannot be learned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.made.published import DUCK_UNIT, read_points
from datasets.reconstructions.bal import write_bal
from datasets.reconstructions.model import Reconstruction
from experiments import structure_from_motion
from experiments.structure.alignment import rms_radius
from experiments.structure.scenes import SceneOptions, read_scene
from experiments.structure_from_motion import some_points
from geometry import project, se3


@pytest.mark.parametrize(("scene", "points"), [("published", 1000), ("published_driller", 1000), ("published_cat", 32)])
def test_published_scenes(real_data, scene: str, points: int) -> None:
    folder = real_data("bpnp_demo")
    found = read_scene(SceneOptions(scene=scene), 0)
    assert found.points2d.shape == (12, points, 2)
    torch.testing.assert_close(found.points2d, project(found.points_gt, found.poses_gt, found.K))
    assert found.K[0].diagonal().tolist() == [0.0005, 0.0005, 1]
    seen = found.visible.sum(0)
    assert ((seen == 6) | (points % 2 == 1)).all()
    # all are as large as the duck, whose scale is the published one
    duck = DUCK_UNIT * read_points("duck", folder)
    assert rms_radius(found.points_gt).item() == pytest.approx(rms_radius(duck).item(), rel=0.01)
    if scene != "published":
        mesh = read_points(scene.partition("_")[2], folder)
        torch.testing.assert_close(found.points_gt, found.points_gt.norm() / mesh.norm() * mesh)


def test_more_views_than_were_published_are_refused(real_data) -> None:
    real_data("bpnp_demo")
    with pytest.raises(ValueError, match="views: at most the 50 that were published wanted, found 51"):
        read_scene(SceneOptions(scene="published", views=51), 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"points": 2}, "scene duck: a visible point in every view wanted, found none in view 1, 3, 5, 7, 9, 11"),
        ({"views": 1}, "scene duck: at least two views wanted, found 1"),
        ({"points": 0}, "points, views: at least one wanted, found 0 and 12"),
    ],
)
def test_scenes_that_cannot_be_learned_are_refused_before_any_run(changes: dict, says: str, tmp_path: Path) -> None:
    config = replace(structure_from_motion.PRESETS["default"], **changes, out=tmp_path / "out")
    with pytest.raises(SystemExit, match=says):
        structure_from_motion.main(config)
    assert not (tmp_path / "out").exists()


def write(path: Path, camera: torch.Tensor, point: torch.Tensor) -> None:
    """A BAL file of three cameras and five points with these observations."""
    poses = se3.make(
        torch.eye(3, dtype=torch.float64).expand(3, 3, 3), torch.tensor([[0.1 * v, 0, 5] for v in range(3)])
    )
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    K = torch.diag(torch.tensor([500.0, 500, 1], dtype=torch.float64)).expand(3, 3, 3)
    points2d = project(points, poses.double(), K)[camera, point]
    distortion, index = torch.zeros(3, 2, dtype=torch.float64), torch.arange(3)
    write_bal(path, Reconstruction(poses.double(), points, K, distortion, index, camera, point, points2d))


def test_a_file_s_view_without_a_point_is_named_and_its_points_without_a_track_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    camera, point = torch.tensor([(v, n) for v in range(3) for n in (0, 1, 3, 4)]).T
    write(path, camera, point)
    scene = read_scene(SceneOptions(scene=str(path)), 0)
    assert scene.visible.shape == (3, 4)
    assert scene.visible.all()
    assert "1 points without a track" in scene.note
    torch.testing.assert_close(
        scene.points2d, project(scene.points_start, scene.poses_start, scene.K, scene.distortion)
    )
    write(path, camera[:8], point[:8])
    with pytest.raises(ValueError, match="a visible point in every view wanted, found none in view 2"):
        read_scene(SceneOptions(scene=str(path)), 0)


def test_a_few_points_are_enough_for_every_view() -> None:
    visible = torch.zeros(3, 40, dtype=torch.bool)
    visible[0], visible[1, 20:], visible[2, [5, 39]] = True, True, True
    few = some_points(visible, 4, torch.arange(40))
    assert torch.equal(few, torch.arange(40))  # the last one is one of two that view 2 sees
    few = some_points(visible[:2], 4, torch.arange(40))
    assert torch.equal(few, torch.arange(26))
    assert torch.equal(some_points(visible[:1], 4, torch.arange(40).flip(0)), torch.arange(40).flip(0)[:6])
