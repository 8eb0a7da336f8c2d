"""The driver that adjusts a file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.ply import read_ply
from datasets.reconstructions.bal import write_bal
from datasets.reconstructions.colmap import read_colmap, write_colmap
from experiments.benchmarks.bundle_solvers import bundle_cost, reproject, synthetic_scene
from experiments.bundle_adjustment import Config, loose, main, read
from experiments.records.quantities import Quantity
from geometry import se3
from geometry.camera import project_camera_frame


@pytest.mark.slow
def test_a_file_is_adjusted_and_saved(tmp_path: Path) -> None:
    start, truth = synthetic_scene(6, 120, 4, torch.Generator().manual_seed(0))
    write_bal(tmp_path / "street.txt", start)
    summary = main(Config(preset="test", scene=str(tmp_path / "street.txt"), out=tmp_path))
    assert summary["converged"]
    # a minimum lies below the truth, by about half a squared pixel an unknown
    assert 0.5 * bundle_cost(truth) < summary["loss"] < bundle_cost(truth)
    rms = (2 * summary["loss"] / len(start.points2d)) ** 0.5
    assert summary["errors"]["rms_after_px"] == pytest.approx(rms, rel=1e-12)
    saved = read_colmap(tmp_path / "bundle_adjustment" / "test-seed0" / "colmap")
    assert bundle_cost(saved) == pytest.approx(summary["loss"], rel=1e-9)


@pytest.mark.slow
def test_least_squares_bends_to_outliers_and_a_kernel_does_not(tmp_path: Path) -> None:
    start, truth = synthetic_scene(6, 120, 4, torch.Generator().manual_seed(1), noise=0.1)
    start.points2d[::20] += 50.0
    write_bal(tmp_path / "street.txt", start)
    found = {}
    for robust_px in (0.0, 1.0):
        name = f"robust{robust_px}"
        main(Config(scene=str(tmp_path / "street.txt"), out=tmp_path, name=name, robust_px=robust_px))
        K = read_colmap(tmp_path / "bundle_adjustment" / name / "colmap").K
        found[robust_px] = (K - truth.K)[:, 0, 0].abs().median()
    assert found[1.0] < 0.1 * found[0.0]


@pytest.mark.slow
def test_what_the_tracks_do_not_determine_is_named(tmp_path: Path) -> None:
    """Seven points in three views leave room for a focal length and k1 each, and no more."""
    start, _ = synthetic_scene(3, 7, 3, torch.Generator().manual_seed(200))
    write_bal(tmp_path / "few.txt", start)
    config = Config(scene=str(tmp_path / "few.txt"), out=tmp_path, preset="few")
    summary = main(config)
    assert not summary["converged"]
    assert summary["undetermined"][0].startswith("The data do not determine k2 beside poses, points, f, k1: fewer")
    (told,) = main(replace(config, free=("poses", "points", "f"), name="f"))["undetermined"]
    assert told.startswith("The data hardly tell lens 0 f")


@pytest.mark.slow
def test_a_single_lens_is_told_with_its_deviation(tmp_path: Path) -> None:
    """Which covers the truth of a scene whose cameras share it."""
    _, truth = synthetic_scene(6, 120, 4, torch.Generator().manual_seed(202), noise=0.0)
    one = replace(truth, K=truth.K[:1], distortion=truth.distortion[:1], intrinsics_index=torch.zeros(6).long())
    pixels = reproject(one) + 0.5 * torch.randn(len(one.points2d), 2, generator=torch.Generator().manual_seed(203))
    write_colmap(tmp_path / "model", replace(one, points2d=pixels))
    found = main(Config(preset="test", scene=str(tmp_path / "model"), out=tmp_path))["found"]
    assert list(found) == ["rms", "f", "k1", "k2"]
    wanted = {"f": one.K[0, 0, 0], "k1": one.distortion[0, 0], "k2": one.distortion[0, 1]}
    for name, value in wanted.items():
        assert found[name]["deviation"] > 0
        assert abs(found[name]["value"] - value) < 4 * found[name]["deviation"]
    assert found["f"]["deviation"] < 0.05 * found["f"]["value"]  # and tells something


@pytest.mark.parametrize(
    ("lens", "camera"), [([], "SIMPLE_PINHOLE"), ([-0.02, 0.0], "SIMPLE_RADIAL"), ([-0.02, 0.01], "RADIAL")]
)
def test_a_model_comes_back_with_the_cameras_that_it_had(lens: list[float], camera: str, tmp_path: Path) -> None:
    """No coefficient is freed that they do not have; their focal lengths are."""
    start, _ = synthetic_scene(5, 60, 4, torch.Generator().manual_seed(0))
    write_colmap(tmp_path / "model", replace(start, distortion=start.K.new_tensor(lens).expand(5, -1)))
    main(Config(preset="test", scene=str(tmp_path / "model"), max_steps=3, out=tmp_path))
    folder = tmp_path / "bundle_adjustment" / "test-seed0" / "colmap"
    found = read_colmap(folder)
    assert found.distortion.shape[1] == len(lens)
    write_colmap(tmp_path / "text", found, binary=False)
    rows = [row.split() for row in (tmp_path / "text" / "cameras.txt").read_text().splitlines() if row[0] != "#"]
    assert {row[1] for row in rows} == {camera}
    assert (found.K[:, 0, 0] != start.K[:, 0, 0]).all()


def test_coefficients_that_are_asked_for_are_added(tmp_path: Path) -> None:
    start, _ = synthetic_scene(5, 60, 4, torch.Generator().manual_seed(0))
    write_colmap(tmp_path / "model", replace(start, distortion=start.distortion[:, :0]))
    scene, free = read(Config(scene=str(tmp_path / "model"), free=("poses", "points", "f", "p1")))
    assert free == ("poses", "points", "f", "p1")
    assert scene.distortion.shape[1] == 4


@pytest.mark.parametrize(
    ("free", "says"),
    [
        (
            ("poses", "pionts"),
            r"free: names among poses, .* wanted, got pionts; did you mean points\?",
        ),
        (("poses", "points", "sensors"), "free: sensors are of a COLMAP model with rigs, and this scene has none"),
        (("f", "fx"), 'free may hold "f" or "fx" and "fy", not both'),
    ],
)
def test_names_that_cannot_be_sought_are_told(free: tuple[str, ...], says: str, tmp_path: Path) -> None:
    write_bal(tmp_path / "street.txt", synthetic_scene(5, 60, 4, torch.Generator().manual_seed(0))[0])
    with pytest.raises(SystemExit, match=says):
        main(Config(preset="test", scene=str(tmp_path / "street.txt"), free=free, out=tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_focal_length_of_a_large_deviation_is_named() -> None:
    intrinsics = {
        "lens 0 f": Quantity(500.0, 49.0),
        "lens 1 f": Quantity(500.0, 51.0),
        "lens 1 k1": Quantity(0.1, 5.0),
    }
    assert loose(intrinsics) == ["The data hardly tell lens 1 f: deviations are above 10% of it."]
    assert loose({"f": Quantity(500.0, 1.0)}) == []


@pytest.mark.slow
def test_a_point_without_depth_is_not_written(tmp_path: Path) -> None:
    _, start = synthetic_scene(6, 120, 4, torch.Generator().manual_seed(201), noise=0.0)
    seen = start.point_index == 0
    cameras = start.camera_index[seen]
    poses = start.world_to_camera[cameras]
    outward = start.points3d[0] - se3.inverse(poses)[0, :3, 3]
    # parallel rays: it is seen as if it were at infinity
    rays = (poses[:, :3, :3] @ outward)[:, None]
    start.points2d[seen] = project_camera_frame(rays, start.K[cameras], start.distortion[cameras])[:, 0]
    write_bal(tmp_path / "street.txt", start)
    free = ("poses", "points")
    summary = main(Config(preset="test", scene=str(tmp_path / "street.txt"), free=free, out=tmp_path))
    assert summary["converged"]
    assert "1 of 120 points have no depth" in summary["note"]
    folder = tmp_path / "bundle_adjustment" / "test-seed0"
    assert len(read_colmap(folder / "colmap").points3d) == len(read_ply(folder / "points.ply").points3d) == 119
