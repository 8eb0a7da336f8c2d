import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from datasets.objects.layout import Instance, Target, read_models, read_split, read_targets
from datasets.ply import Mesh, write_mesh

K = [600.0, 0, 31.5, 0, 610.0, 23.5, 0, 0, 1]
TURNED = [0.0, -1, 0, 1, 0, 0, 0, 0, 1]
TETRAHEDRON = Mesh(
    np.array([[20.0, 0, 0], [0, 20, 0], [-20, -20, 0], [0, 0, 20]]),
    np.array([[0, 1, 2], [0, 1, 3], [1, 2, 3], [0, 2, 3]]),
)


def entry(number: int, x: float = 0.0, R: list[float] = TURNED) -> dict[str, Any]:
    return {"obj_id": number, "cam_R_m2c": R, "cam_t_m2c": [x, 5.0, 1000.0]}


def meta(box: list[int], share: float) -> dict[str, Any]:
    return {"bbox_obj": box, "visib_fract": share, "bbox_visib": [0, 0, 9, 9], "px_count_all": 100}


# scene 2 in grey and tif, scene 10 in colour; image 10 before image 9 in the file
TRUTH = {
    2: {"0": [entry(5)]},
    10: {"10": [entry(5, 1.0), entry(1, 2.0), entry(5, 3.0)], "9": [entry(1, 4.0)], "11": []},
}
INFO = {
    2: {"0": [meta([3, 4, 5, 6], 1.0)]},
    10: {
        "10": [meta([1, 2, 3, 4], 0.1), meta([5, 6, 7, 8], 0.5), meta([-1, -1, -1, -1], 0.0)],
        "9": [meta([9, 9, 1, 1], 0.05)],
        "11": [],
    },
}
MODELS = {
    "1": {"diameter": 30.5, "min_x": -20},
    "5": {
        "diameter": 41,
        "symmetries_discrete": [[-1, 0, 0, 10, 0, -1, 0, -4, 0, 0, 1, 0, 0, 0, 0, 1]],
        "symmetries_continuous": [{"axis": [1, 2, 2], "offset": [3, -5, 7]}],
    },
}


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small data set with all that the layout has."""
    root = tmp_path / "lmx"
    dump(root / "models" / "models_info.json", MODELS)
    for number in MODELS:
        write_mesh(root / "models" / f"obj_{int(number):06d}.ply", TETRAHEDRON)
    blank = np.zeros((48, 64), np.uint8)
    for scene, truth in TRUTH.items():
        folder = root / "test" / f"{scene:06d}"
        cameras = {
            image: {"cam_K": [K[0] + int(image), *K[1:]], "depth_scale": 0.1, "cam_R_w2c": TURNED} for image in truth
        }
        dump(folder / "scene_camera.json", cameras)
        dump(folder / "scene_gt.json", truth)
        dump(folder / "scene_gt_info.json", INFO[scene])
        for image, entries in truth.items():
            kind, suffix = ("gray", "tif") if scene == 2 else ("rgb", "jpg" if image == "9" else "png")
            picture(folder / kind / f"{int(image):06d}.{suffix}", blank)
            picture(folder / "depth" / f"{int(image):06d}.png", blank.astype(np.uint16))
            for index in range(len(entries) if scene == 10 else 0):
                whole, seen = blank.copy(), blank.copy()
                whole[10:21, 20 + index : 41], seen[10:21, 30:41] = 255, 255
                picture(folder / "mask" / f"{int(image):06d}_{index:06d}.png", whole)
                picture(folder / "mask_visib" / f"{int(image):06d}_{index:06d}.png", seen)
    dump(root / "train_pbr" / "000000" / "scene_camera.json", {})
    dump(
        root / "test_targets_bop19.json",
        [
            {"im_id": 9, "inst_count": 2, "obj_id": 1, "scene_id": 10},
            {"im_id": 0, "inst_count": 1, "obj_id": 5, "scene_id": 2},
        ],
    )
    return root


def keys(instances: list[Instance]) -> list[tuple[int, ...]]:
    return [instance[:4] for instance in instances]


def test_instances_in_order_of_scene_image_entry(root: Path) -> None:
    instances = read_split(root, "test", min_visible=0)
    assert keys(instances) == [(2, 0, 5, 0), (10, 9, 1, 0), (10, 10, 5, 0), (10, 10, 1, 1), (10, 10, 5, 2)]
    assert [i.path.relative_to(root / "test").as_posix() for i in instances[:3]] == [
        "000002/gray/000000.tif",
        "000010/rgb/000009.jpg",
        "000010/rgb/000010.png",
    ]
    assert [i.box for i in instances[:3]] == [(3, 4, 5, 6), (9, 9, 1, 1), (1, 2, 3, 4)]
    assert [i.visible for i in instances] == [1, 0.05, 0.1, 0.5, 0]


def test_numbers_and_files_of_an_instance(root: Path) -> None:
    scene = root / "test" / "000010"
    instance = read_split(root, "test", min_visible=0)[3]
    np.testing.assert_array_equal(instance.K, [[610, 0, 31.5], [0, 610, 23.5], [0, 0, 1]])  # image 10 has its own
    np.testing.assert_array_equal(instance.pose, [[0, -1, 0, 2], [1, 0, 0, 5], [0, 0, 1, 1000], [0, 0, 0, 1]])
    assert (instance.K.dtype, instance.pose.dtype) == (np.float64, np.float64)
    assert (instance.box, instance.visible, instance.depth_scale) == ((5, 6, 7, 8), 0.5, 0.1)
    assert instance.mask == scene / "mask" / "000010_000001.png"
    assert instance.mask_visible == scene / "mask_visib" / "000010_000001.png"
    assert instance.depth == scene / "depth" / "000010.png"
    grey = read_split(root, "test")[0]
    assert (grey.mask, grey.mask_visible) == (None, None)


def test_objects_and_visibility_select(root: Path) -> None:
    everything = read_split(root, "test", min_visible=0)
    assert keys(read_split(root, "test")) == [
        k for k, i in zip(keys(everything), everything, strict=True) if i.visible >= 0.1
    ]
    for number in (1, 5):
        assert keys(read_split(root, "test", [number], 0)) == [k for k in keys(everything) if k[2] == number]
    assert read_split(root, "test", (), 0) == []
    with pytest.raises(ValueError, match=r"objects: \[7\] wanted, .*test has no instance of them"):
        read_split(root, "test", {1, 7})


@pytest.mark.parametrize("kept", ["mask mask_visib", "mask_visib", "mask", ""])
def test_without_info_boxes_come_from_masks_or_the_model(root: Path, kept: str) -> None:
    scene = root / "test" / "000010"
    (scene / "scene_gt_info.json").unlink()
    for name in {"mask", "mask_visib"} - set(kept.split()):
        shutil.rmtree(scene / name)
    instance = read_split(root, "test")[3]  # entry 1: whole mask columns 21 … 40, seen 30 … 40, rows 10 … 20
    assert instance[:4] == (10, 10, 1, 1)
    if "mask" in kept.split():
        assert instance.box == (21, 10, 19, 10)
    elif kept:
        assert instance.box == (30, 10, 10, 10)
    else:
        camera = np.hstack([instance.K, np.zeros((3, 1))]) @ instance.pose
        seen = np.array([camera @ [*vertex, 1] for vertex in TETRAHEDRON.vertices])
        pixels = seen[:, :2] / seen[:, 2:]
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        np.testing.assert_allclose(instance.box, np.concatenate([low, high - low]))
    assert instance.visible == (11 / 20 if kept == "mask mask_visib" else 1)


def test_what_no_mask_shows_has_no_box(root: Path) -> None:
    scene = root / "test" / "000010"
    (scene / "scene_gt_info.json").unlink()
    for name in ("mask", "mask_visib"):
        picture(scene / name / "000010_000001.png", np.zeros((48, 64), np.uint8))
    assert (10, 10, 1, 1) not in keys(read_split(root, "test"))
    hidden = read_split(root, "test", [1], min_visible=0)[-1]
    assert (hidden.box, hidden.visible) == ((-1, -1, -1, -1), 0)


def test_models_of_a_data_set(root: Path) -> None:
    models = read_models(root)
    assert list(models) == [1, 5]
    assert [model.diameter for model in models.values()] == [30.5, 41]
    np.testing.assert_array_equal(models[1].symmetries, np.eye(4)[None])
    np.testing.assert_array_equal(models[5].mesh.vertices, TETRAHEDRON.vertices)
    np.testing.assert_array_equal(models[5].mesh.faces, TETRAHEDRON.faces)
    assert list(read_models(root, [5])) == [5]
    with pytest.raises(ValueError, match=r"objects: \[2\] wanted, .*models_info\.json has \[1, 5\]"):
        read_models(root, [2])


def test_models_eval_stand_in_and_a_folder_of_models_can_be_named(root: Path) -> None:
    (root / "models").rename(root / "models_eval")
    assert list(read_models(root)) == [1, 5]
    (root / "models_eval").rename(root / "models_cad")
    assert list(read_models(root / "models_cad")) == [1, 5]
    with pytest.raises(FileNotFoundError, match=r"models_info\.json in models or models_eval .* found models_cad"):
        read_models(root)


def test_symmetries_are_those_of_the_bop_toolkit(root: Path) -> None:
    """The matrices are what its get_symmetry_transformations(info, 0.01) returned; see MODELS for the info."""
    symmetries = read_models(root)[5].symmetries
    assert symmetries.shape == (630, 4, 4)
    np.testing.assert_array_equal(symmetries[0], np.eye(4))
    expected = {
        100: [
            [-0.254477425, -0.294051212, 0.921289924, -4.155853256],
            [0.921289924, 0.215951609, 0.323403428, -8.947935725],
            [-0.294051212, 0.931073997, 0.215951609, 11.025862353],
        ],
        415: [
            [0.254477425, 0.294051212, 0.921289924, -5.524422658],
            [-0.921289924, -0.215951609, 0.323403428, -0.598842918],
            [0.294051212, -0.931073997, 0.215951609, 4.361054247],
        ],
    }
    for index, matrix in expected.items():
        np.testing.assert_allclose(symmetries[index], np.array([*matrix, [0.0, 0, 0, 1]]), rtol=0, atol=1e-9)


def test_symmetries_are_rigid_and_continuous_ones_leave_their_axis(root: Path) -> None:
    symmetries = read_models(root)[5].symmetries
    R = symmetries[:, :3, :3]
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), R.shape), atol=1e-12)
    turns = symmetries[:315]
    np.testing.assert_allclose(turns @ [3 + 1, -5 + 2, 7 + 2, 1], np.tile([4, -3, 9, 1], (315, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.matrix_power(turns[1], 315), np.eye(4), atol=1e-10)
    np.testing.assert_allclose(turns[2], turns[1] @ turns[1], atol=1e-12)
    np.testing.assert_allclose(symmetries[315:], turns @ symmetries[315], atol=1e-12)


def test_targets(root: Path) -> None:
    assert read_targets(root) == [Target(10, 9, 1, 2), Target(2, 0, 5, 1)]


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    def missing(call: Callable[[], object], says: str) -> None:
        with pytest.raises(FileNotFoundError, match=says):
            call()

    scene = root / "test" / "000010"
    missing(lambda: read_split(tmp_path / "no", "test"), "no: the folder of a BOP data set wanted")
    missing(lambda: read_models(tmp_path / "no"), "no: the folder of a BOP data set wanted")
    missing(lambda: read_split(root, "val"), r"lmx: a split 'val' wanted, found test, train_pbr$")
    missing(lambda: read_split(root, ""), r"found test, train_pbr$")
    missing(lambda: read_split(tmp_path / "lmx" / "models", "test"), "this is no BOP data set")
    missing(lambda: read_split(root, "models"), "models: scenes 000000, 000001, … wanted, found none")
    missing(
        lambda: read_split(root, "train_pbr"), r"train_pbr/000000/scene_gt\.json: poses .* wanted, found no such file"
    )

    (scene / "rgb" / "000010.png").unlink()
    missing(
        lambda: read_split(root, "test"), r"000010/scene_gt\.json, image 10: .*000010\.png, \.jpg or \.tif is missing"
    )
    (scene / "scene_camera.json").unlink()
    missing(lambda: read_split(root, "test"), r"000010/scene_camera\.json: cameras")
    (root / "models" / "obj_000005.ply").unlink()
    missing(lambda: read_models(root), r"obj_000005\.ply: a PLY file wanted")
    (root / "models" / "models_info.json").unlink()
    missing(
        lambda: read_models(root), r"lmx: models_info\.json in models or models_eval wanted, found models without it"
    )
    shutil.rmtree(root / "models")
    missing(lambda: read_models(root), r"found no folder of models")
    (root / "test_targets_bop19.json").unlink()
    missing(lambda: read_targets(root), r"test_targets_bop19\.json: targets")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("scene_gt", "{", "JSON wanted"),
        ("scene_gt", [], "entries by number wanted"),
        ("scene_gt", {"first": []}, "entries by number wanted"),
        ("scene_gt", {"9": {}}, "image 9: a list wanted"),
        ("scene_gt", {"9": [5]}, "image 9, entry 0: 'obj_id' wanted, found 5"),
        ("scene_gt", {"9": [{"id": 1}]}, r"image 9, entry 0: 'obj_id' wanted, found keys \['id'\]"),
        ("scene_gt", {"9": [entry(1) | {"obj_id": "1"}]}, "image 9, entry 0: a whole number wanted for 'obj_id'"),
        ("scene_gt", {"9": [entry(1) | {"cam_t_m2c": [1, 2]}]}, "image 9, entry 0: 3 finite numbers .* 'cam_t_m2c'"),
        ("scene_gt", {"9": [entry(1) | {"cam_t_m2c": [1, 2, "x"]}]}, "image 9, entry 0: .* 'cam_t_m2c'"),
        ("scene_gt", {"9": [entry(1, float("nan"))]}, "image 9, entry 0: 3 finite numbers .* 'cam_t_m2c'"),
        ("scene_gt", {"9": [entry(1), entry(1, R=[2.0] * 9)]}, "image 9, entry 1, 'cam_R_m2c': a rotation matrix"),
        ("scene_camera", {"10": {"cam_K": K}}, "image 9: 'cam_K' wanted, found None"),
        ("scene_camera", {"9": {"cam_K": K[:8]}}, "image 9: 9 finite numbers wanted for 'cam_K'"),
        ("scene_camera", {"9": {"cam_K": [-1.0, *K[1:]]}}, "image 9: positive focal lengths"),
        (
            "scene_camera",
            {"9": {"cam_K": K, "depth_scale": None}},
            "image 9: 1 finite numbers wanted for 'depth_scale'",
        ),
        ("scene_gt_info", {"10": []}, "image 9: a list wanted, found None"),
        ("scene_gt_info", {"9": []}, "image 9: an entry for each"),
        ("scene_gt_info", {"9": [{"visib_fract": 1}]}, "image 9, entry 0: 'bbox_obj' wanted"),
        ("scene_gt_info", {"9": [{"bbox_obj": [1, 2, 3, 4]}]}, "image 9, entry 0: 'visib_fract' wanted"),
    ],
)
def test_a_damaged_entry_is_named(root: Path, name: str, content: Any, says: str) -> None:
    dump(root / "test" / "000010" / f"{name}.json", content)
    with pytest.raises(ValueError, match=rf"000010/{name}\.json(, |: ){says}"):
        read_split(root, "test", min_visible=0)


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ([], "object 5: 'diameter' wanted"),
        ({"min_x": 1}, r"object 5: 'diameter' wanted, found keys \['min_x'\]"),
        ({"diameter": 0}, "object 5: a positive 'diameter'"),
        ({"diameter": [1, 2]}, "object 5: 1 finite"),
        ({"diameter": 1, "symmetries_discrete": {}}, "object 5: a list wanted"),
        (
            {"diameter": 1, "symmetries_discrete": [[1] * 12]},
            "object 5: 16 finite numbers wanted for 'symmetries_discrete'",
        ),
        ({"diameter": 1, "symmetries_discrete": [[1] * 16]}, "object 5: rotations and translations"),
        ({"diameter": 1, "symmetries_continuous": [{"axis": [0, 0, 1]}]}, "object 5: 'offset' wanted"),
        ({"diameter": 1, "symmetries_continuous": [{"axis": [0, 0, 0], "offset": [0, 0, 0]}]}, "object 5: an 'axis'"),
    ],
)
def test_damaged_models_info_is_named(root: Path, info: Any, says: str) -> None:
    dump(root / "models" / "models_info.json", {"5": info})
    with pytest.raises(ValueError, match=rf"models_info\.json, {says}"):
        read_models(root)


def test_a_damaged_mask_or_list_of_targets_is_named(root: Path) -> None:
    scene = root / "test" / "000010"
    (scene / "scene_gt_info.json").unlink()
    dump(scene / "mask_visib" / "000009_000000.png", "no image")
    with pytest.raises(ValueError, match=r"mask_visib/000009_000000\.png: an image wanted"):
        read_split(root, "test")
    dump(root / "test_targets_bop19.json", [{"im_id": 9, "obj_id": 1, "scene_id": 10}])
    with pytest.raises(ValueError, match=r"test_targets_bop19\.json, entry 0: 'inst_count' wanted"):
        read_targets(root)
    dump(root / "test_targets_bop19.json", {})
    with pytest.raises(ValueError, match=r"test_targets_bop19\.json: a list wanted"):
        read_targets(root)
