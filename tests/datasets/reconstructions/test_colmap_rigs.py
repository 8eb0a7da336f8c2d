import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.reconstructions.colmap import read_colmap, write_colmap
from datasets.reconstructions.model import Reconstruction, Rigs
from geometry import se3

BOTH = pytest.mark.parametrize("suffix", [".bin", ".txt"])


def poses(n, seed):
    g = torch.Generator().manual_seed(seed)
    step = torch.randn(n, 6, generator=g, dtype=torch.float64)
    return se3.make(se3.exp(step[:, :3]), step[:, 3:])


@pytest.fixture
def rig_scene(make_scene):
    """Two rigs of two cameras and of one: 2 frames of the first, that one camera misses in one, and 2 of the second."""

    def make(reference=0):
        mounting = poses(3, 1)
        fixed = torch.tensor([False, False, True])
        fixed[reference] = True
        mounting[fixed] = torch.eye(4, dtype=torch.float64)
        rigs = Rigs(
            world_to_rig=poses(4, 2),
            rig_index=torch.tensor([0, 0, 1, 2, 3]),
            sensor_from_rig=mounting,
            sensor_index=torch.tensor([0, 1, 1, 2, 2]),
            rig_of_sensor=torch.tensor([0, 0, 1]),
            fixed_sensors=fixed,
        )
        scene = make_scene(cameras=3)
        changes = {"world_to_camera": rigs.world_to_camera, "intrinsics_index": rigs.sensor_index, "rigs": rigs}
        return dataclasses.replace(scene, **changes)

    return make


@BOTH
@pytest.mark.parametrize("reference", [0, 1])
def test_round_trip(tmp_path, rig_scene, assert_same, suffix, reference):
    scene = rig_scene(reference)
    write_colmap(tmp_path / "model", scene, binary=suffix == ".bin")
    assert_same(read_colmap(tmp_path / "model"), scene, different=("distortion", "image_sizes"))
    write_colmap(tmp_path / "model", scene, binary=suffix == ".bin")  # and over itself


@BOTH
def test_a_reference_that_is_mounted_becomes_the_frame(tmp_path, rig_scene, assert_same, suffix):
    """Where a rig's frame is, no image tells: poses are brought to the reference."""
    scene, moved = rig_scene(), poses(1, 5)
    first = scene.rigs.rig_of_sensor[scene.rigs.sensor_index].new_tensor([1, 1, 0, 0]).bool()
    mounting = scene.rigs.sensor_from_rig.clone()
    mounting[:2] = mounting[:2] @ se3.inverse(moved)
    world = torch.where(first[:, None, None], moved @ scene.rigs.world_to_rig, scene.rigs.world_to_rig)
    other = dataclasses.replace(scene, rigs=scene.rigs._replace(world_to_rig=world, sensor_from_rig=mounting))
    write_colmap(tmp_path / "model", other, binary=suffix == ".bin")
    assert_same(read_colmap(tmp_path / "model"), scene, different=("distortion", "image_sizes"))


@BOTH
@pytest.mark.parametrize("cameras_per_rig", [1, 3])
def test_pycolmap_has_the_same_rigs(tmp_path, suffix, cameras_per_rig):
    pycolmap = pytest.importorskip("pycolmap")
    settings = pycolmap.SyntheticDatasetOptions()
    settings.num_rigs, settings.num_cameras_per_rig, settings.num_frames_per_rig = 2, cameras_per_rig, 3
    settings.num_points3D = 8
    settings.sensor_from_rig_translation_stddev, settings.sensor_from_rig_rotation_stddev = 0.1, 5.0
    theirs = pycolmap.synthesize_dataset(settings)
    (tmp_path / "theirs").mkdir()
    (theirs.write_binary if suffix == ".bin" else theirs.write_text)(tmp_path / "theirs")
    ours = read_colmap(tmp_path / "theirs")
    if cameras_per_rig == 1:
        assert ours.rigs is None
        return
    write_colmap(tmp_path / "ours", ours, binary=suffix == ".bin")
    again = pycolmap.Reconstruction(tmp_path / "ours")
    assert again.is_valid()
    assert (again.num_rigs(), again.num_reg_frames()) == (2, 6)
    image_ids = sorted(theirs.images)
    for model, number in ((theirs, lambda v: image_ids[v]), (again, lambda v: v + 1)):
        for v in range(len(ours.world_to_camera)):
            image = model.image(number(v))
            frame, sensor = image.frame, image.camera.sensor_id
            mounting = np.eye(3, 4) if frame.rig.is_ref_sensor(sensor) else frame.rig.sensor_from_rig(sensor).matrix()
            mine = ours.rigs.sensor_from_rig[ours.rigs.sensor_index[v], :3]
            np.testing.assert_allclose(mine.numpy(), mounting, rtol=0, atol=1e-14)
            mine = ours.rigs.world_to_rig[ours.rigs.rig_index[v], :3]
            np.testing.assert_allclose(mine.numpy(), frame.rig_from_world.matrix(), rtol=0, atol=1e-14)
            assert bool(ours.rigs.fixed_sensors[ours.rigs.sensor_index[v]]) == frame.rig.is_ref_sensor(sensor)


def rewrite(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def test_a_rig_whose_reference_is_no_camera(tmp_path, rig_scene):
    """An IMU is left out, and the rig's first camera keeps its mounting."""
    write_colmap(tmp_path, rig_scene(), binary=False)
    rewrite(tmp_path, "rigs.txt", "1 2 CAMERA 1 CAMERA 2", "1 3 IMU 7 CAMERA 1 1 1.0 0 0 0 0 0 0 CAMERA 2")
    rewrite(tmp_path, "frames.txt", " 2 CAMERA 1 1 CAMERA 2 2", " 3 IMU 7 40 CAMERA 1 1 CAMERA 2 2")
    found, wanted = read_colmap(tmp_path).rigs, rig_scene().rigs
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_without_frames_the_images_have_their_poses(tmp_path, rig_scene):
    write_colmap(tmp_path, rig_scene(), binary=False)
    (tmp_path / "frames.txt").unlink()
    found = read_colmap(tmp_path)
    assert found.rigs is None
    torch.testing.assert_close(found.world_to_camera, rig_scene().world_to_camera, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("rigs.txt", "1 2 CAMERA", "1 2 RADAR", r"rigs\.txt, line 2: a sensor type, CAMERA or IMU, wanted, found 'RAD"),
        ("rigs.txt", "1 2 CAMERA", "1 3 CAMERA", r"line 2: a sensor type, .* found the end of the line"),
        ("rigs.txt", "1 2 CAMERA", "1 -2 CAMERA", r"line 2: a whole number wanted, found '-2'"),
        ("rigs.txt", "\n2 1 CAMERA 3", "\n2 1 CAMERA 3 4", r"line 3: the end of the line wanted, found '4'"),
        ("rigs.txt", "\n2 1 CAMERA 3", "\n2 1 CAMERA 1", r"line 3: a camera in one rig wanted, found camera 1"),
        ("rigs.txt", "\n2 1 CAMERA 3", "\n1 1 CAMERA 3", r"line 3: id 1 stands a second time"),
        ("frames.txt", "\n2 1 ", "\n2 8 ", r"frames\.txt, line 3: a rig of `rigs` wanted, found id 8"),
        ("frames.txt", "\n2 1 ", "\n2 2 ", r"line 3: a camera with a pose in rig 2 wanted for image 3, found 2"),
        ("frames.txt", "CAMERA 2 3", "CAMERA 1 3", r"line 3: camera 2 wanted, which took image 3, found 1"),
        ("frames.txt", "CAMERA 2 3", "CAMERA 2 2", r"line 3: an image in one frame wanted, found image 2"),
        ("frames.txt", "CAMERA 2 3", "CAMERA 2 9", r"frames\.txt: a frame wanted for image 3, found none"),
        ("frames.txt", "\n2 1 ", "\n2 1 inf ", r"line 3: a finite number wanted, found 'inf'"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path, rig_scene, name, old, new, message):
    write_colmap(tmp_path, rig_scene(), binary=False)
    rewrite(tmp_path, name, old, new)
    with pytest.raises(ValueError, match=message):
        read_colmap(tmp_path)


def test_frames_that_contradict_the_images(tmp_path, rig_scene):
    write_colmap(tmp_path, rig_scene(), binary=False)
    first = (tmp_path / "frames.txt").read_text().splitlines()[1].split()
    rewrite(tmp_path, "frames.txt", f" {first[6]} ", f" {float(first[6]) + 0.1} ")
    with pytest.raises(ValueError, match=r"images\.txt, line 2: the pose of its frame and sensor wanted"):
        read_colmap(tmp_path)


@pytest.mark.parametrize("name", ["rigs.bin", "frames.bin"])
def test_binary_files_that_are_cut_or_too_long(tmp_path, rig_scene, name):
    write_colmap(tmp_path, rig_scene())
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-3])
    with pytest.raises(ValueError, match=rf"{name}, byte \d+: \d bytes wanted .* the file is cut"):
        read_colmap(tmp_path)
    (tmp_path / name).write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=rf"{name}, byte \d+: the end of the file wanted"):
        read_colmap(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed_sensors": torch.tensor([True, True, True])}, "one fixed sensor a rig wanted"),
        ({"fixed_sensors": torch.tensor([False, False, True])}, "one fixed sensor a rig wanted"),
        ({"rig_of_sensor": torch.tensor([0, 1, 2]), "fixed_sensors": torch.ones(3, dtype=torch.bool)}, "one rig in a"),
        ({"world_to_rig": poses(4, 3)}, r"world_to_camera\[0\] must be the pose that follows from rigs"),
    ],
)
def test_what_colmap_cannot_say(tmp_path, rig_scene, changes, message):
    scene = rig_scene()
    with pytest.raises(ValueError, match=message):
        write_colmap(tmp_path, dataclasses.replace(scene, rigs=scene.rigs._replace(**changes)))


def test_a_sensor_is_a_camera(tmp_path, rig_scene):
    scene = rig_scene()
    other = dataclasses.replace(scene, intrinsics_index=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="a camera a sensor"):
        write_colmap(tmp_path, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rig_index": torch.zeros(4, dtype=torch.int64)}, r"rigs.rig_index must have shape \(5,\), got \(4,\)"),
        ({"sensor_index": torch.full((5,), 3)}, r"rigs.sensor_index must lie in 0 … 2 \(S = 3\), got 3 … 3"),
        ({"fixed_sensors": torch.zeros(3)}, "rigs.fixed_sensors must hold torch.bool"),
    ],
)
def test_rigs_are_checked(rig_scene, changes, message):
    scene = rig_scene()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(scene, rigs=scene.rigs._replace(**changes))
    assert isinstance(scene, Reconstruction)
