import dataclasses
import shutil

import numpy as np
import pytest
import torch

from datasets.reconstructions.colmap import read_colmap, write_colmap
from geometry import project

FILES = ("cameras", "images", "points3D")
BOTH = pytest.mark.parametrize("suffix", [".bin", ".txt"])
PARAMETERS = {  # beyond the focal length and a principal point of (330, 220)
    "SIMPLE_PINHOLE": [],
    "PINHOLE": [],
    "SIMPLE_RADIAL": [0.1],
    "RADIAL": [0.1, -0.02],
    "OPENCV": [0.1, -0.02, 0.003, -0.004],
    "FULL_OPENCV": [0.1, -0.02, 0.003, -0.004, 0.05, 0.06, 0.07, 0.08],
    "SIMPLE_FISHEYE": [],
    "FISHEYE": [],
    "SIMPLE_RADIAL_FISHEYE": [0.1],
    "RADIAL_FISHEYE": [0.1, -0.02],
    "OPENCV_FISHEYE": [0.1, -0.02, 0.03, -0.004],
    "FOV": [0.9],
    "SIMPLE_DIVISION": [-0.2],
    "DIVISION": [-0.2],
    "EUCM": [0.6, 1.1],
}
ONE_FOCAL_LENGTH = {
    "SIMPLE_PINHOLE",
    "SIMPLE_FISHEYE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "SIMPLE_DIVISION",
}


def camera_of(pycolmap, model, camera_id=1):
    focal = [500.0] if model in ONE_FOCAL_LENGTH else [500.0, 510.0]
    parameters = [*focal, 330.0, 220.0, *PARAMETERS[model]]
    return pycolmap.Camera(model=model, width=640, height=480, params=parameters, camera_id=camera_id)


def synthesize(pycolmap, **options):
    settings = pycolmap.SyntheticDatasetOptions()
    for name, value in ({"num_points3D": 8, "num_frames_per_rig": 3, "num_rigs": 2} | options).items():
        setattr(settings, name, value)
    return pycolmap.synthesize_dataset(settings)


def save(model, folder, suffix):
    folder.mkdir()
    (model.write_binary if suffix == ".bin" else model.write_text)(folder)
    return folder


@BOTH
@pytest.mark.parametrize(
    ("model", "coefficients"), [("radtan", k) for k in (0, 2, 4, 8)] + [("fisheye", k) for k in (1, 2, 4)]
)
def test_round_trip(tmp_path, make_scene, assert_same, suffix, model, coefficients):
    fy = 1.0 if coefficients < 4 else 1.1
    scene = make_scene(model=model, coefficients=coefficients, fy=fy, centre=(320, 240))
    write_colmap(tmp_path, scene, binary=suffix == ".bin")
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{name}{suffix}" for name in FILES]
    found = read_colmap(tmp_path)
    assert_same(found, scene)
    for name in ("points3d", "distortion", "intrinsics_index", "colors", "image_sizes"):
        assert torch.equal(getattr(found, name), getattr(scene, name)), name
    write_colmap(tmp_path, found, binary=suffix == ".bin")  # over itself
    assert_same(read_colmap(tmp_path), found)


@BOTH
@pytest.mark.parametrize(("model", "coefficients", "read"), [("radtan", 5, 8), ("radtan", 12, 8), ("fisheye", 3, 4)])
def test_coefficients_colmap_has_in_another_number(
    tmp_path, make_scene, assert_same, suffix, model, coefficients, read
):
    scene = make_scene(model=model, coefficients=coefficients)
    scene.distortion[:, 8:] = 0
    write_colmap(tmp_path, scene, binary=suffix == ".bin")
    padded = torch.nn.functional.pad(scene.distortion, (0, 12))[:, :read]
    assert_same(read_colmap(tmp_path), dataclasses.replace(scene, distortion=padded))


@BOTH
def test_what_is_unknown(tmp_path, make_scene, assert_same, suffix):
    scene = dataclasses.replace(make_scene(), names=(), colors=None, image_sizes=None)
    write_colmap(tmp_path, scene, binary=suffix == ".bin")
    found = read_colmap(tmp_path)
    assert_same(found, scene, different=("names", "colors"))
    assert found.names == ("000000", "000001", "000002", "000003", "000004")
    assert not found.colors.any()


@BOTH
def test_poses_alone(tmp_path, make_scene, assert_same, suffix):
    none = torch.zeros(0, dtype=torch.int64)
    scene = dataclasses.replace(
        make_scene(), points3d=torch.zeros(0, 3).double(), colors=torch.zeros(0, 3, dtype=torch.uint8),
        camera_index=none, point_index=none, points2d=torch.zeros(0, 2).double(),
    )  # fmt: skip
    write_colmap(tmp_path, scene, binary=suffix == ".bin")
    assert_same(read_colmap(tmp_path), scene)


@BOTH
@pytest.mark.parametrize("model", PARAMETERS)
def test_pycolmap_and_project_agree_on_each_lens(tmp_path, suffix, model):
    pycolmap = pytest.importorskip("pycolmap")
    theirs = pycolmap.Reconstruction()
    camera = camera_of(pycolmap, model, camera_id=7)
    theirs.add_camera_with_trivial_rig(camera)
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.1, -0.3, 0.3, 0.9])), np.array([0.1, 0.2, 3.0]))
    theirs.add_image_with_trivial_frame(pycolmap.Image(name="a.png", camera_id=7, image_id=12), pose)
    points = np.random.default_rng(0).normal(size=(20, 3)) * 0.5
    expected = np.stack([camera.img_from_cam(pose * point) for point in points])
    ours = read_colmap(save(theirs, tmp_path / "theirs", suffix))
    pixels = project(torch.from_numpy(points), ours.world_to_camera[0], ours.K[0], ours.distortion[0], model=ours.model)
    np.testing.assert_allclose(pixels.numpy() + 0.5, expected, rtol=0, atol=1e-9)

    write_colmap(tmp_path / "ours", ours, binary=suffix == ".bin")
    again = pycolmap.Reconstruction(tmp_path / "ours")
    assert again.camera(1).model.name == model
    np.testing.assert_allclose(again.camera(1).params, camera.params, rtol=1e-12)
    found = np.stack([again.camera(1).img_from_cam(again.image(1).cam_from_world() * point) for point in points])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@BOTH
def test_colmap_finds_the_mean_error_that_is_there(tmp_path, make_scene, project_all, suffix):
    pycolmap = pytest.importorskip("pycolmap")
    scene = make_scene()
    scene.world_to_camera[:, 2, 3] += 10  # no point is behind a camera, where COLMAP's error is without bounds
    shifts = torch.linspace(0, 3, len(scene.points2d), dtype=torch.float64)
    scene = dataclasses.replace(scene, points2d=project_all(scene) + torch.stack([shifts, -2 * shifts], -1))
    write_colmap(tmp_path, scene, binary=suffix == ".bin")
    theirs = pycolmap.Reconstruction(tmp_path)
    distance = 5**0.5 * shifts
    for n, point in enumerate(sorted(theirs.points3D)):
        wanted = distance[scene.point_index == n].mean().item()
        assert theirs.point3D(point).error == pytest.approx(wanted, rel=1e-9)
    stored = theirs.compute_mean_reprojection_error()
    theirs.update_point_3d_errors()
    assert stored == pytest.approx(theirs.compute_mean_reprojection_error(), rel=1e-9)


def compare(ours, theirs):
    """Every value of a reconstruction with pycolmap's own."""
    image_ids = sorted(theirs.images)
    assert ours.names == tuple(theirs.image(i).name for i in image_ids)
    point_ids = sorted(theirs.points3D)
    assert len(ours.points3d) == len(point_ids)
    for row, n in enumerate(point_ids):
        np.testing.assert_allclose(ours.points3d[row].numpy(), theirs.point3D(n).xyz, rtol=1e-14)
        assert ours.colors[row].tolist() == theirs.point3D(n).color.tolist()
    for v, i in enumerate(image_ids):
        image = theirs.image(i)
        np.testing.assert_allclose(ours.world_to_camera[v, :3].numpy(), image.cam_from_world().matrix(), atol=1e-14)
        expected = {(point_ids.index(p.point3D_id), *p.xy) for p in image.points2D if p.has_point3D()}
        mine = ours.camera_index == v
        xy = (ours.points2d[mine] + 0.5).tolist()
        found = [(n, *pixel) for n, pixel in zip(ours.point_index[mine].tolist(), xy, strict=True)]
        np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-14)
        camera = theirs.camera(image.camera_id)
        c = int(ours.intrinsics_index[v])
        K = ours.K[c].numpy() + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        np.testing.assert_allclose(K, camera.calibration_matrix(), rtol=1e-14)
        assert ours.image_sizes[c].tolist() == [camera.width, camera.height]


@BOTH
@pytest.mark.parametrize("cameras_per_rig", [1, 2])
@pytest.mark.parametrize("legacy", [False, True])
def test_models_of_pycolmap(tmp_path, project_all, suffix, cameras_per_rig, legacy):
    """With unobserved 2D points, gaps among the ids, rigs of two cameras, and without the files of rigs and frames."""
    pycolmap = pytest.importorskip("pycolmap")
    theirs = synthesize(pycolmap, num_cameras_per_rig=cameras_per_rig)
    for n in (2, 5):
        theirs.delete_point3D(n)
    theirs.point3D(3).color = [250, 1, 77]
    assert any(not point.has_point3D() for point in theirs.image(1).points2D)
    folder = save(theirs, tmp_path / "model", suffix)
    if legacy:
        for name in ("rigs", "frames"):
            (folder / f"{name}{suffix}").unlink()
    ours = read_colmap(folder)
    compare(ours, theirs)
    torch.testing.assert_close(project_all(ours), ours.points2d, rtol=0, atol=1e-9)

    write_colmap(tmp_path / "ours", ours, binary=suffix == ".bin")
    again = pycolmap.Reconstruction(tmp_path / "ours")
    assert again.is_valid()
    assert again.num_reg_images() == theirs.num_reg_images()
    compare(ours, again)
    again.update_point_3d_errors()
    assert again.compute_mean_reprojection_error() < 1e-9


@BOTH
def test_pycolmap_reads_what_we_write(tmp_path, make_scene, suffix):
    pycolmap = pytest.importorskip("pycolmap")
    names = (
        tuple("dcaeb") if suffix == ".txt" else ("d 1", "ü", "a/b", "e", "f")
    )  # COLMAP's text reader stops at a space
    scene = dataclasses.replace(make_scene(centre=(320, 240)), names=names)
    write_colmap(tmp_path / "ours", scene, binary=suffix == ".bin")
    theirs = pycolmap.Reconstruction(tmp_path / "ours")
    assert theirs.is_valid()
    compare(scene, theirs)


def test_the_binary_model_is_read_where_there_are_both(tmp_path, make_scene):
    write_colmap(tmp_path / "a", make_scene(), binary=True)
    write_colmap(tmp_path / "b", make_scene(cameras=1), binary=False)
    for name in FILES:
        shutil.copy(tmp_path / "b" / f"{name}.txt", tmp_path / "a")
    assert len(read_colmap(tmp_path / "a").K) == 2


@pytest.mark.parametrize("name", ["rigs.bin", "frames.txt", "cameras.txt", "points3D.txt"])
def test_a_folder_with_files_of_another_model_is_left_alone(tmp_path, make_scene, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"without files of another model wanted, found {name}"):
        write_colmap(tmp_path, make_scene())
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("a", "b", "a", "c", "d")}, "names: distinct names .* got 'a'"),
        ({"names": ("a", "", "b", "c", "d")}, "names: .* got ''"),
        ({"names": ("a", "b\nc", "b", "c", "d")}, r"names: .* got 'b\\nc'"),
        ({"names": ("a", " b", "b", "c", "d")}, "names: .* got ' b'"),
        ({"distortion": torch.full((2, 12), 0.1, dtype=torch.float64)}, "thin-prism"),
        ({"K": torch.ones(2, 3, 3, dtype=torch.float64)}, "K: COLMAP wants zeros beside"),
    ],
)
def test_what_colmap_cannot_say(tmp_path, make_scene, changes, message):
    with pytest.raises(ValueError, match=message):
        write_colmap(tmp_path / "a", dataclasses.replace(make_scene(), **changes))
    assert not (tmp_path / "a").exists()


def test_a_missing_file(tmp_path, make_scene):
    with pytest.raises(FileNotFoundError, match=r"cameras\.bin: a file wanted, found nothing"):
        read_colmap(tmp_path / "nothing")
    write_colmap(tmp_path / "a", make_scene(), binary=False)
    (tmp_path / "a" / "images.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.txt: a file wanted, found nothing"):
        read_colmap(tmp_path / "a")
