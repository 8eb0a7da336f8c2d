"""What a bundle leaves open, in words, and how sure a shape is."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from experiments.structure.alignment import shape_errors
from experiments.structure.determined import not_determined, shape_deviation
from experiments.structure.routes import Tracks, solid
from experiments.structure.scenes import Scene, SceneOptions, read_scene
from geometry import BundleSolution, bundle


def scene(views: int) -> Scene:
    """The made duck."""
    return read_scene(SceneOptions(views=views, points=60), 0)


def adjusted(scene: Scene, visible: Tensor) -> tuple[Callable[[Tensor], BundleSolution], Tensor, Tensor]:
    """The bundle of visible points from the truth, given their pixels; and which observations these are."""
    camera, point = visible.nonzero().T.contiguous()
    start = scene.poses_gt, scene.points_gt, scene.K, scene.distortion
    return lambda points2d: bundle(points2d, camera, point, *start, gauge="free"), camera, point


def open_ends(scene: Scene, visible: Tensor, names: Sequence[str] = ()) -> list[str]:
    solve, *index = adjusted(scene, visible)
    return not_determined(solve(scene.points2d[tuple(index)]), *index, names)


def deviation(scene: Scene, loss: float, visible: Tensor | None = None) -> float:
    solve, *index = adjusted(scene, scene.visible if visible is None else visible)
    return shape_deviation(solve, scene.points2d[tuple(index)], loss)


def test_nothing_is_said_of_what_is_determined() -> None:
    whole = scene(12)
    assert open_ends(whole, whole.visible) == []


def test_three_views_that_see_halves_say_what_is_missing() -> None:
    three = scene(3)
    points, shape = open_ends(three, three.visible)
    once = int((three.visible.sum(0) < 2).sum())
    assert points == f"{once} of 60 points are seen by fewer than two views that are determined."
    assert shape.startswith("The structure up to a similarity: its bundle is S")
    assert "no point is seen by three views" in shape
    assert math.isnan(deviation(three, 1e-12))


def test_a_view_of_two_points_is_named() -> None:
    whole = scene(6)
    visible = whole.visible.clone()
    visible[4] = False
    visible[4, :2] = True
    (told,) = open_ends(whole, visible, ["a", "b", "c", "d", "e", "f"])
    assert told == "Fewer than three points that are determined are seen in view e."


def test_parts_that_share_no_point_are_named() -> None:
    whole = scene(12)
    visible = torch.ones_like(whole.visible)
    visible[:5, 30:] = False
    visible[5:, :30] = False
    (told,) = open_ends(whole, visible)
    parts = "views 0, 1, 2, 3, 4; views 5, 6, 7, 8, 9, 10, 11"
    assert told == f"How parts lie to one another that share no point: {parts}."


@pytest.mark.slow
def test_the_deviation_goes_with_the_root_of_the_loss() -> None:
    whole = scene(12)
    low, high = (deviation(whole, loss) for loss in (1e-15, 4e-15))
    assert 0 < low < 0.1
    assert high == pytest.approx(2 * low, rel=0.02)


@pytest.mark.slow
def test_the_deviation_is_that_of_shapes_over_noises() -> None:
    def off(tracks: Tracks) -> tuple[float, float]:
        truth = tracks.camera, tracks.point, tracks.poses_gt, tracks.points_gt, tracks.K

        def solve(points2d: Tensor) -> BundleSolution:
            return bundle(points2d, *truth)

        found = solve(tracks.points2d)
        said = shape_deviation(solve, tracks.points2d, 2 * found.cost.item())
        return shape_errors(found.x.points3d, tracks.points_gt)["rms_share"], said

    every = [off(solid(6, 40, torch.Generator().manual_seed(seed), share=0.8)) for seed in range(8)]
    found, said = torch.tensor(every).square().mean(0).sqrt().tolist()
    assert found == pytest.approx(said, rel=0.2)
