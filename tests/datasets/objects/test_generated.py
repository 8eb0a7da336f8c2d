import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from datasets.objects import generated
from datasets.objects.generated import generate
from datasets.objects.layout import read_models, read_split, read_targets
from datasets.objects.meshes import solids
from datasets.objects.pictures import SIZE, K, frame
from datasets.objects.rendering import Light, render, render_depth

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver

ROOT = Path(__file__).parents[3]
COUNTS = {"train": 8, "test": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("generated") / "set", seed=3, **COUNTS, processes=1)


@pytest.fixture(scope="module")
def instances(folder):
    return [instance for split in COUNTS for instance in read_split(folder, split)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read(path):
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image


def project(points, pose):
    p = (points @ pose[:3, :3].T + pose[:3, 3]) @ K.T
    return p[:, :2] / p[:, 2:]


def test_it_is_a_bop_set_of_as_many_pictures_as_asked_for(folder, instances):
    assert sorted(read_models(folder)) == [1, 2, 3, 4]
    assert len(instances) == 4 * sum(COUNTS.values())
    assert all(instance.scene == instance.object for instance in instances)
    for instance in instances:
        np.testing.assert_array_equal(instance.K, K)
        assert read(instance.path).shape == (*SIZE[::-1], 3)
    for instance in instances[:3]:
        shot = frame(3, "train", instance.object, instance.image)
        stored, rendered = read(instance.path)[..., ::-1][shot.mask], shot.color[shot.mask]
        np.testing.assert_allclose(stored.mean(0), rendered.mean(0), atol=2)
    wanted = [(number, i, number) for number in (1, 2, 3, 4) for i in range(COUNTS["test"])]
    assert [(t.scene, t.image, t.object) for t in read_targets(folder)] == wanted
    camera = json.loads((folder / "camera.json").read_text())
    assert [camera[key] for key in ("fx", "fy", "cx", "cy")] == [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
    assert (camera["width"], camera["height"]) == SIZE


def test_models_are_those_that_are_rendered_and_their_sizes_are_stated(folder):
    info = json.loads((folder / "models" / "models_info.json").read_text())
    for number, model in read_models(folder).items():
        mesh = solids()[number].mesh
        for found, wanted in zip(model.mesh, mesh, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert len(mesh.vertices) < 15_000
        some = mesh.vertices[:: len(mesh.vertices) // 1500]
        widest = np.linalg.norm(some[:, None] - some, axis=-1).max()
        assert widest <= model.diameter < widest + 4
        assert 120 < model.diameter < 200
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        np.testing.assert_allclose([info[str(number)][f"min_{a}"] for a in "xyz"], low)
        np.testing.assert_allclose([info[str(number)][f"size_{a}"] for a in "xyz"], high - low)
        np.testing.assert_allclose(low, -high, atol=1e-9)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_meshes_are_closed_and_face_outwards(number):
    mesh = solids()[number].mesh
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    volume = np.einsum("ni,ni->n", a, np.cross(b, c)).sum() / 6
    size = np.ptp(mesh.vertices, axis=0)
    assert 0.05 * size.prod() < volume <= 1.001 * size.prod()
    np.testing.assert_allclose(np.cross(b - a, c - a).sum(0), 0, atol=1e-6 * size.prod() ** (2 / 3))
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)


def look(number, turn, view):
    """Colours and mask of an object that is turned first, and then seen from one side."""
    pose = np.eye(4)
    pose[:3, :3] = view.as_matrix()
    pose[:3, 3] = 0, 0, 700
    picture = render(
        [solids()[number].mesh], (pose @ turn)[None], K, SIZE, [Light(np.array([-1.0, -2, -2]), np.ones(3))]
    )
    return picture.color.astype(float), picture.which == 0


def unlike(number, turn):
    """Mean difference of colours, 0 to 255, over all that either picture shows."""
    view = Rotation.from_euler("zx", [0.4, 2.1])
    (a, in_a), (b, in_b) = look(number, np.eye(4), view), look(number, turn, view)
    return np.abs(a - b)[in_a | in_b].mean()


def about(axis, angle):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(angle * np.asarray(axis, float)).as_matrix()
    return turn


def test_a_stated_symmetry_is_not_to_be_seen(folder):
    models = read_models(folder)
    assert [len(models[i].symmetries) for i in (1, 2, 4)] == [1, 1, 2]
    assert len(models[3].symmetries) > 100
    np.testing.assert_allclose(models[4].symmetries[1], np.diag([-1, -1, 1, 1]), atol=1e-9)
    for number in (3, 4):
        for symmetry in models[number].symmetries[1::37]:
            assert unlike(number, symmetry) < 0.3


OTHERS = [about(axis, angle) for axis in np.eye(3) for angle in (np.pi / 2, np.pi, -np.pi / 2)]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_what_is_not_stated_as_a_symmetry_is_seen(number):
    stated = {1: [], 2: [], 3: [6, 7, 8], 4: [7]}[number]
    for i, turn in enumerate(OTHERS):
        assert (unlike(number, turn) < 0.3) == (i in stated)
        if i not in stated:
            assert unlike(number, turn) > 20


def test_small_turns_of_the_asymmetric_objects_are_seen():
    for number in (1, 2):
        for axis in np.eye(3):
            assert unlike(number, about(axis, np.deg2rad(5))) > 5


def test_masks_and_depth_are_those_of_the_model_at_the_stated_pose(folder, instances):
    models = read_models(folder)
    for instance in instances:
        alone, index = render_depth([models[instance.object].mesh], instance.pose[None], instance.K, SIZE)
        mask, visible = read(instance.mask), read(instance.mask_visible)
        assert set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(mask == 255, index == 0)
        assert (visible <= mask).all()
        depth = read(instance.depth)
        assert depth.dtype == np.uint16
        depth = depth * instance.depth_scale
        seen = visible == 255
        assert np.abs(depth - alone)[seen].max() <= 0.0501
        hidden = (mask == 255) & ~seen
        assert (depth[hidden] < alone[hidden] + 0.0501).all()
        assert (depth[hidden] > 0).all()


def test_annotations_are_those_of_the_masks(folder, instances):
    for split in COUNTS:
        for instance in read_split(folder, split):
            scene = folder / split / f"{instance.scene:06d}"
            (info,) = json.loads((scene / "scene_gt_info.json").read_text())[str(instance.image)]
            masks = read(instance.mask), read(instance.mask_visible)
            for mask, box, count in zip(
                masks, ("bbox_obj", "bbox_visib"), ("px_count_all", "px_count_visib"), strict=True
            ):
                x, y, w, h = cv2.boundingRect(mask)
                assert info[box] == [x, y, w - 1, h - 1]  # BOP's are from centre to centre of the outermost pixels
                assert info[count] == (mask > 0).sum()
            assert info["px_count_valid"] == info["px_count_all"]
            assert info["visib_fract"] == info["px_count_visib"] / info["px_count_all"] == instance.visible


def test_objects_are_inside_the_picture_seen_from_above_and_large_enough(instances):
    for instance in instances:
        vertices = solids()[instance.object].mesh.vertices
        pixels = project(vertices, instance.pose)
        assert (pixels > 0).all()
        assert (pixels < np.subtract(SIZE, 1)).all()
        mask = read(instance.mask) > 0
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        box = np.array([(x, y), (x + w - 1, y + h - 1)])
        low, high = box[0] - pixels.min(0), pixels.max(0) - box[1]  # a tip of less than a pixel may hit no centre
        assert (np.stack([low, high]) > -0.01).all()
        assert (np.stack([low, high]) < 2).all()
        R, t = instance.pose[:3, :3], instance.pose[:3, 3]
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(R) > 0
        assert (-R.T @ t)[2] > 0
        assert 600 <= t[2] <= 1000
        assert instance.visible >= 0.4


def test_views_cover_the_upper_hemisphere_and_rolls_of_45_degrees():
    from datasets.objects.pictures import _pose

    rng = np.random.default_rng(0)
    poses = np.stack([_pose(rng, solids()[1].mesh) for _ in range(2000)])
    R, t = poses[:, :3, :3], poses[:, :3, 3]
    eye = -np.einsum("nji,nj->ni", R, t) / np.linalg.norm(t, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.histogram(eye[:, 2], 5, (0, 1))[0] / 2000, 0.2, atol=0.04)  # uniform: Archimedes
    np.testing.assert_allclose(
        np.histogram(np.arctan2(eye[:, 1], eye[:, 0]), 5, (-np.pi, np.pi))[0] / 2000, 0.2, atol=0.04
    )
    up = R[:, :, 2] - np.einsum("ni,ni->n", R[:, :, 2], t)[:, None] * t / np.square(t).sum(-1, keepdims=True)
    tilt = np.rad2deg(np.arctan2(up[:, 0], -up[:, 1]))
    assert 40 < np.abs(tilt).max() < 50


def test_a_third_or_so_of_the_pictures_have_something_before_the_object():
    visible = np.array([f.mask_visible.sum() / f.mask.sum() for f in (frame(0, "test", 1, i) for i in range(60))])
    assert visible.min() >= 0.4
    assert 0.15 < (visible < 0.98).mean() < 0.55


def test_a_seed_gives_the_same_bytes_with_two_processes_and_in_a_smaller_set(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "_CHUNK", 2)
    other = generate(tmp_path / "deep" / "set", seed=3, train=3, test=2, objects=(4, 1), processes=2)
    pictures = [n for n in contents(other) if n.endswith((".png", ".jpg", ".ply"))]
    assert len(pictures) == 2 * (3 + 2) * 4 + 2
    for name in pictures:
        assert (other / name).read_bytes() == (folder / name).read_bytes(), name
    for split, count in (("train", 3), ("test", 2)):
        few, many = (read_split(f, split, objects=[1, 4]) for f in (other, folder))
        many = [instance for instance in many if instance.image < count]
        assert [(i.scene, i.image, i.box) for i in few] == [(i.scene, i.image, i.box) for i in many]
        np.testing.assert_array_equal([i.pose for i in few], [i.pose for i in many])


def test_pictures_of_other_seeds_splits_objects_and_numbers_differ():
    poses = [
        frame(*key).pose for key in ((3, "train", 1, 0), (4, "train", 1, 0), (3, "test", 1, 0), (3, "train", 1, 1))
    ]
    assert len({pose.tobytes() for pose in poses}) == 4


def test_what_is_there_already_is_left_alone(folder, monkeypatch):
    def never(*_):
        raise AssertionError("rendered again")

    monkeypatch.setattr(generated, "frame", never)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert generate(folder, seed=3, **COUNTS, processes=1) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(ValueError, match=r"other settings \(seed 3 there, 4 wanted; test 3 there, 5 wanted\)"):
        generate(folder, seed=4, train=COUNTS["train"], test=5)


def test_a_folder_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder: a new or an empty one wanted"):
        generate(tmp_path, train=1, test=1)
    with pytest.raises(ValueError, match="folder: a new or an empty one wanted"):
        generate(tmp_path / "mine.txt", train=1, test=1)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def failing(seed, split, number, index):
        if index == 1:
            raise RuntimeError("broken")
        return frame(seed, split, number, index)

    monkeypatch.setattr(generated, "frame", failing)
    with pytest.raises(RuntimeError, match="broken"):
        generate(tmp_path / "set", train=2, test=1, objects=[2], processes=1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_and_what_a_kill_leaves(tmp_path):
    """Nothing that looks like the set; and the next call makes it."""
    folder = tmp_path / "set"

    def command(train):
        options = ["--train", train, "--test", "1", "--seed", "5", "--objects", "2", "--processes", "1"]
        return [sys.executable, "-m", "datasets.objects.generated", str(folder), *options]

    process = subprocess.Popen(command("100000"), cwd=ROOT)
    while not list(tmp_path.rglob("*.jpg")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    assert list(tmp_path.iterdir()) != []
    subprocess.run(command("1"), cwd=ROOT, check=True)
    assert list(tmp_path.iterdir()) == [folder]
    assert [i.object for i in read_split(folder, "train")] == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0}, "at least 1.* wanted, found 0, 1, 1, 0"),
        ({"test": -1}, "at least 1.* wanted, found 1, -1, 1, 0"),
        ({"processes": 0}, "at least 1.* wanted, found 1, 1, 0, 0"),
        ({"seed": -1}, "at least 0 wanted, found 1, 1, 1, -1"),
        ({"objects": ()}, r"objects: some of \[1, 2, 3, 4\], each once, wanted, found \[\]"),
        ({"objects": (1, 5)}, r"objects: .*found \[1, 5\]"),
        ({"objects": (1, 1)}, r"objects: .*found \[1, 1\]"),
    ],
)
def test_bad_settings_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "set", **({"train": 1, "test": 1, "processes": 1} | change))
    assert list(tmp_path.iterdir()) == []
