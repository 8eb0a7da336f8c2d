"""Structure from motion of tracks that are made, of images, and of a published reconstruction."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from datasets.images.middlebury import read_middlebury
from datasets.made.photographs import take_photographs
from datasets.reconstructions.colmap import read_colmap
from datasets.reconstructions.model import Reconstruction
from experiments import structure_from_motion
from experiments.running.run import Run
from experiments.structure import scenes, start
from experiments.structure.reversal import settle
from geometry import se3
from geometry.reconstruction import mirror


@pytest.fixture
def saved_models(monkeypatch: pytest.MonkeyPatch) -> list[Reconstruction]:
    """The models that runs have been told to save."""
    models: list[Reconstruction] = []
    save = Run.save_model

    def remember(self: Run, name: str, model: Reconstruction) -> None:
        models.append(model)
        save(self, name, model)

    monkeypatch.setattr(Run, "save_model", remember)
    return models


def equal(one: Reconstruction, other: Reconstruction) -> bool:
    """Whether two reconstructions say the same; COLMAP orders observations by image and counts pixels from a corner."""
    order = one.camera_index.argsort(stable=True)
    return (
        one.names == other.names
        and all(
            torch.equal(getattr(one, name)[order], getattr(other, name)) for name in ("camera_index", "point_index")
        )
        and torch.allclose(one.points2d[order], other.points2d, rtol=0, atol=1e-9)
        and all(
            torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-9)
            for name in ("world_to_camera", "points3d", "K", "distortion")
        )
        and all(
            getattr(one, name) is None or torch.equal(getattr(one, name), getattr(other, name))
            for name in ("intrinsics_index", "colors", "image_sizes")
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize(("views", "says"), [(2, "Fewer than three points"), (3, "no point is seen by three views")])
def test_a_shape_that_too_few_views_determine_is_no_success(tmp_path: Path, views: int, says: str) -> None:
    """Whatever the loss: two and three views fit below any threshold with shapes that are wrong by half their size."""
    summary = structure_from_motion.main(replace(structure_from_motion.PRESETS["default"], views=views, out=tmp_path))
    assert summary["loss"] < 1e-10
    assert summary["errors"]["rms_share"] > 0.2
    assert not summary["converged"]
    assert says in "; ".join(summary["undetermined"])


@pytest.mark.slow
def test_four_views_are_enough(tmp_path: Path) -> None:
    """Their shape is determined, and the search finds it among those that fit as well as the threshold asks."""
    summary = structure_from_motion.main(replace(structure_from_motion.PRESETS["default"], views=4, out=tmp_path))
    assert summary["converged"]
    assert summary["errors"]["rms_share"] < 1e-6


@pytest.mark.slow
def test_a_shape_that_is_determined_is_one(tmp_path: Path) -> None:
    summary = structure_from_motion.main(replace(structure_from_motion.PRESETS["smoke"], out=tmp_path))
    assert summary["converged"]
    assert summary["undetermined"] == []
    assert summary["goal"] == "loss below 1e-10 and the mirror image's"
    assert summary["errors"]["rms_share"] < 1e-3
    assert summary["loss"] < 1e-6 * summary["errors"]["mirror_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("finish", [False, True])
def test_the_finish_takes_the_better_of_shape_and_mirror_image(
    tmp_path: Path, finish: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned is the truth's mirror image, at its own minimum."""

    def learn(config: Any, run: Run, scene: scenes.Scene) -> structure_from_motion.Learned:
        points = mirror(scene.points_gt)
        pair = settle(scene.problem(global_poses=True), points)
        run.log(0, loss=pair.losses[0], **scene.errors(points))
        return structure_from_motion.Learned(pair.points[0], pair.poses[0], [pair.losses[0].item()], True)

    monkeypatch.setattr(structure_from_motion, "learn_points", learn)
    smoke = structure_from_motion.PRESETS["smoke"]
    summary = structure_from_motion.main(replace(smoke, finish=finish, out=tmp_path))
    errors = summary["errors"]
    assert summary["converged"] == finish
    if finish:
        assert errors["learned_rms_share"] > 0.5 > 1e-6 > errors["rms_share"]
        assert summary["loss"] < 1e-20 < errors["mirror_loss"] == pytest.approx(errors["learned_loss"], rel=1e-6)
    else:
        assert errors["mirror_loss"] < 1e-20 < summary["loss"] < 1e-10
        assert "the mirror image fits better" in summary["note"]
        assert "what was found is the mirror image of the truth" in summary["note"]


@pytest.mark.slow
def test_a_search_that_does_not_end_says_so(tmp_path: Path) -> None:
    smoke = structure_from_motion.PRESETS["smoke"]
    summary = structure_from_motion.main(replace(smoke, points=60, search_points=40, iterations=2, out=tmp_path))
    assert not summary["converged"]
    assert summary["note"].startswith("40 of 60 points were searched, cannot tell: the search was ended")


ORBIT = replace(structure_from_motion.PRESETS["real"], scene="orbit", points=150, views=12)


@pytest.mark.slow
def test_known_intrinsics_bundle_and_backprop_meet(tmp_path: Path, saved_models: list[Reconstruction]) -> None:
    """Both minimise the same squares, where no kernel is asked for: what was learned is the bundle's minimum."""
    summary = structure_from_motion.main(replace(ORBIT, out=tmp_path))
    assert summary["converged"]
    errors = summary["errors"]
    assert errors["reprojection_rms_px"] == pytest.approx(errors["learned_rms_px"], rel=1e-6)
    assert 0.4 < errors["reprojection_rms_px"] < 0.7
    assert errors["largest_rotation_deg"] < 0.5
    assert summary["note"].startswith("12 of 12 views placed")
    assert errors["rms_share"] < 0.01
    folder = tmp_path / "structure_from_motion" / "real-seed0"
    (model,) = saved_models
    assert equal(replace(model, names=tuple(f"{v:06d}" for v in range(12))), read_colmap(folder / "colmap"))
    assert (folder / "scene.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_interrupted_reconstruction_resumes_to_the_same_numbers(
    same_when_resumed: Callable[..., dict[str, Any]],
) -> None:
    files = ("metrics.csv", "colmap/points3D.bin")
    same_when_resumed(structure_from_motion.main, replace(ORBIT, points=100, views=8, log_every=2), at=3, files=files)


@pytest.mark.slow
def test_a_focal_length_from_tracks_alone(tmp_path: Path) -> None:
    config = replace(ORBIT, preset="self_calibrated", intrinsics_known=False, points=300, views=8, candidates_f=3)
    summary = structure_from_motion.main(replace(config, out=tmp_path, free=("f", "cx", "cy")))
    errors, found = summary["errors"], summary["found"]
    for name in ("f", "cx", "cy"):
        assert found[name]["value"] - found[name]["reference"] == pytest.approx(errors[f"{name}_off_px"])
    for name in ("f", "cx", "cy"):
        assert errors[f"{name}_deviation_px"] < 5
        assert abs(errors[f"{name}_off_px"]) < 4 * errors[f"{name}_deviation_px"]
    assert errors["rms_share"] < 0.02


@pytest.mark.slow
def test_a_turntable_says_f_but_not_where_its_axis_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(ORBIT, scene="turntable", intrinsics_known=False, points=200, candidates_f=2, free=("f",))
    sought, seek = [], start.seek_focal_length
    monkeypatch.setattr(start, "seek_focal_length", lambda *given: sought.append(seek(*given)) or sought[0])
    alone = structure_from_motion.main(replace(config, out=tmp_path, name="f"))
    monkeypatch.setattr(start, "seek_focal_length", lambda *given: sought[0])  # what is free is no matter of the start
    assert abs(alone["errors"]["f_off_px"]) < 4 * alone["errors"]["f_deviation_px"] < 20
    assert "not determined" not in alone["note"]
    more = structure_from_motion.main(replace(config, out=tmp_path, name="more", free=("f", "cx", "cy")))
    assert more["errors"]["cx_deviation_px"] < 5
    assert more["errors"]["cy_deviation_px"] > 50
    assert "not determined" in more["note"].split("cy")[1]
    assert any(told.startswith("The intrinsic cy: ") for told in more["undetermined"])
    assert not more["converged"]


@pytest.mark.parametrize("numbers", [(700.0, 700.0, 320.0), tuple(range(17))])
def test_intrinsics_are_four_numbers_and_a_lens(tmp_path: Path, numbers: tuple[float, ...]) -> None:
    config = replace(structure_from_motion.PRESETS["real"], scene=str(tmp_path), intrinsics=numbers)
    with pytest.raises(SystemExit, match=f"fx fy cx cy and up to 12 coefficients wanted, found {len(numbers)} in all"):
        structure_from_motion.main(replace(config, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_text_of_tracks_wants_the_size_of_its_images(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("a p 1 2\nb p 3 4")
    config = replace(structure_from_motion.PRESETS["real"], scene=str(tmp_path / "my.csv"), out=tmp_path / "out")
    with pytest.raises(SystemExit, match="image_size: width and height in px wanted"):
        structure_from_motion.main(config)


@pytest.mark.slow
def test_tracks_of_a_text_with_a_lens_that_bends(tmp_path: Path) -> None:
    """The lens is given with its distortion; without it, it is sought, and what is given is found."""
    g = torch.Generator().manual_seed(5)
    photographs = take_photographs(g, views=5, k1=-0.2)
    tracks = photographs.tracks(900, g, noise_px=0.3)
    rows = zip(tracks.camera_index.tolist(), tracks.point_index.tolist(), tracks.points2d.tolist(), strict=True)
    (tmp_path / "my.csv").write_text("\n".join(f"{v}.jpg,{n},{x:.6f},{y:.6f}" for v, n, (x, y) in rows))
    f, cx, cy = (photographs.K[i, j].item() for i, j in ((0, 0), (0, 2), (1, 2)))
    config = replace(
        structure_from_motion.PRESETS["real"], scene=str(tmp_path / "my.csv"), intrinsics=(f, f, cx, cy, -0.2),
        image_size=photographs.image_size, inlier_px=1.5, out=tmp_path / "out",
    )  # fmt: skip
    given = structure_from_motion.main(replace(config, name="given"))
    assert given["note"].startswith("5 of 5 views placed")
    assert "DOES NOT FIT" not in given["note"]
    assert given["errors"]["reprojection_rms_px"] < 0.5
    assert given["errors"]["pattern_deviations"] < 3
    sought = structure_from_motion.main(replace(config, name="sought", intrinsics_known=False, candidates_f=2))
    assert "free are f, k1" in sought["note"]
    assert abs(sought["errors"]["f_off_px"]) < 4 * sought["errors"]["f_deviation_px"] < 0.05 * f


@pytest.mark.slow
def test_photographs_with_exif_and_one_of_another_zoom(tmp_path: Path) -> None:
    photographs = take_photographs(torch.Generator().manual_seed(1), views=5, image_size=(480, 320), k1=-0.15)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for v, millimetres in enumerate((36, 36, 36, 36, 70)):  # of film, whose width is 36 mm, as f is the picture's
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA405] = millimetres
        Image.fromarray(photographs.picture(v, seed=1)).save(folder / f"{v}.jpg", quality=95, exif=exif.tobytes())
    config = replace(structure_from_motion.PRESETS["real"], scene=str(folder), out=tmp_path / "out")
    summary = structure_from_motion.main(config)
    note = summary["note"]
    assert note.startswith("4 of 4 views placed")
    assert summary["left_out"] == {"4.jpg": "focal length 933 px by EXIF, most have 480"}
    focal = summary["found"]["f"]
    assert focal["unit"] == "px"
    assert abs(focal["value"] - 480) < 5 * focal["deviation"] < 50
    assert "focal length at first 480 px by EXIF (36 mm for 35 mm film)" in note
    model = read_colmap(tmp_path / "out" / "structure_from_motion" / "real-seed0" / "colmap")
    assert model.K[0, 0, 0].item() == pytest.approx(480, rel=0.03)


@pytest.fixture(scope="module")
def tracks_found_once() -> Iterator[None]:
    """The same images have the same tracks in every test of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "find_tracks", functools.cache(scenes.find_tracks))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("tracks_found_once")
def test_the_temple_from_its_images(
    real_data: Callable[[str], Path], tmp_path: Path, saved_models: list[Reconstruction]
) -> None:
    given = read_middlebury(real_data("temple_sparse_ring"))
    summary = structure_from_motion.main(replace(structure_from_motion.PRESETS["real"], out=tmp_path))
    assert summary["converged"]
    errors = summary["errors"]
    assert errors["rotation_deg"] < 0.2
    assert errors["largest_rotation_deg"] < 0.3
    assert errors["largest_centre_share"] < 0.005
    folder = tmp_path / "structure_from_motion" / "real-seed0"
    found = read_colmap(folder / "colmap")
    (model,) = saved_models
    assert equal(model, found)
    assert found.names == given.names
    assert found.colors.float().std() > 10
    torch.testing.assert_close(found.K, given.K[:1])
    # laid onto the given cameras, in metres
    centres, centres_gt = (se3.inverse(poses)[:, :3, 3] for poses in (found.world_to_camera, given.world_to_camera))
    ring = torch.cdist(centres_gt, centres_gt).max()
    assert (centres - centres_gt).norm(dim=-1).max() < 0.005 * ring
    assert summary["note"].startswith("16 of 16 views placed")


@pytest.mark.slow
@pytest.mark.usefixtures("tracks_found_once")
def test_the_temple_without_its_intrinsics(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    real_data("temple_sparse_ring")
    config = replace(structure_from_motion.PRESETS["self_calibrated"], candidates_f=2, out=tmp_path)
    errors = structure_from_motion.main(config)["errors"]
    assert abs(errors["f_off_px"]) < 4 * errors["f_deviation_px"] < 20
    assert errors["rotation_deg"] < 0.3
    assert errors["largest_centre_share"] < 0.005


@pytest.mark.slow
def test_ladybug_by_its_own_name(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    real_data("bal")
    preset = structure_from_motion.PRESETS["real"]
    summary = structure_from_motion.main(replace(preset, scene="bal/problem-49-7776-pre.txt", out=tmp_path))
    assert summary["converged"]
    assert summary["loss"] == pytest.approx(2 * 16330.597, rel=1e-6)
    assert summary["errors"]["reprojection_rms_px"] == pytest.approx(summary["errors"]["learned_rms_px"], rel=1e-7)
    found = read_colmap(tmp_path / "structure_from_motion" / "real-seed0" / "colmap")
    assert found.world_to_camera.shape == (49, 4, 4)
    assert len(found.points2d) == 31812
