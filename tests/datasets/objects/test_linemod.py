"""The real picture: does what the pose predicts agree with the mask a person would draw?

There is no mesh of the cat in the project, only 9 points, so silhouettes are compared by what points can tell: their
box and their convex hull. With LINEMOD's own mesh, which is no part of the project, the silhouette's IoU is 0.943.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull, Delaunay

from datasets.objects.layout import Instance, Model
from datasets.objects.linemod import read_cat
from datasets.objects.rendering import render_depth
from experiments.object_poses.metrics import add

POINTS = "cat_points_3d.txt"
POSE = "cat_pose.npy"


@pytest.fixture
def cat(real_data: Callable[[str], Path]) -> tuple[Model, Instance]:
    return read_cat(real_data("linemod_cat"))


def mask_of(instance: Instance) -> np.ndarray:
    image = cv2.imread(str(instance.mask), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return np.greater(image, 0)


def project(points3d: np.ndarray, instance: Instance) -> np.ndarray:
    rays = (points3d @ instance.pose[:3, :3].T + instance.pose[:3, 3]) @ instance.K.T
    return rays[:, :2] / rays[:, 2:]


def hull(points2d: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels whose centre lies in the convex hull of points (N,2), whose border belongs to it."""
    corners = points2d[ConvexHull(points2d).vertices]
    pixels = np.moveaxis(np.mgrid[: shape[0], : shape[1]][::-1], 0, -1)
    return Delaunay(corners).find_simplex(pixels, tol=1e-9) >= 0


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def iou_of_hulls(model: Model, instance: Instance) -> float:
    mask = mask_of(instance)
    drawn = hull(np.argwhere(mask)[:, ::-1].astype(float), mask.shape)
    return iou(hull(project(model.mesh.vertices, instance), mask.shape), drawn)


def iou_of_boxes(model: Model, instance: Instance) -> float:
    points2d = project(model.mesh.vertices, instance)
    (low, high), (x, y, w, h) = (points2d.min(axis=0), points2d.max(axis=0)), instance.box
    inner = np.prod(np.clip(np.minimum(high, [x + w, y + h]) - np.maximum(low, [x, y]), 0, None))
    return float(inner / (np.prod(high - low) + w * h - inner))


def aside(instance: Instance, t: list[float]) -> Instance:
    """The instance moved by t (mm, camera's axes)."""
    pose = instance.pose.copy()
    pose[:3, 3] += t
    return instance._replace(pose=pose)


def add_to(model: Model, pose: np.ndarray, instance: Instance) -> float:
    points3d = torch.from_numpy(model.mesh.vertices)
    return add(torch.from_numpy(pose)[None], torch.from_numpy(instance.pose)[None], points3d).item()


def test_the_pose_puts_the_points_where_the_mask_is(cat: tuple[Model, Instance]) -> None:
    """Hulls 0.907 and boxes 0.945; the points' hull has 0.746 of the mask itself, which is not convex."""
    model, instance = cat
    assert instance.box == (331, 130, 64, 63)
    assert iou_of_hulls(model, instance) > 0.9
    assert iou_of_boxes(model, instance) > 0.94
    mask = mask_of(instance).astype(np.uint8)
    points2d = project(model.mesh.vertices, instance)
    assert 0.74 < iou(hull(points2d, mask.shape), mask > 0) < 0.75
    x, y = np.rint(points2d).astype(int).T
    assert cv2.dilate(mask, np.ones((3, 3), np.uint8))[y, x].all()


@pytest.mark.slow
def test_the_mask_tells_the_given_pose_from_others(cat: tuple[Model, Instance]) -> None:
    model, instance = cat
    for t in np.eye(3)[:2] * 0.1 * model.diameter:
        for away in (aside(instance, t.tolist()), aside(instance, (-t).tolist())):
            assert add_to(model, away.pose, instance) == pytest.approx(0.1 * model.diameter)
            assert max(iou_of_hulls(model, away), iou_of_boxes(model, away)) < 0.8
    around = [aside(instance, [x, y, 0]) for x in range(-16, 17, 4) for y in range(-16, 17, 4)]
    best = max(around, key=lambda other: iou_of_hulls(model, other))
    assert add_to(model, best.pose, instance) < 0.05 * model.diameter


def test_the_pose_is_that_of_linemods_own_annotation(cat: tuple[Model, Instance]) -> None:
    """Its rot0.rot and tra0.tra (cm); between its frame and PVNet's are half a turn about x and an offset.

    The offset is found from the boxes of LINEMOD's mesh and of PVNet's, to three digits.
    """
    model, instance = cat
    theirs, frame = np.eye(4), np.diag([1.0, -1, -1, 1])
    theirs[:3] = [
        [0.0950661, -0.983309, 0.155129, 66.199],
        [0.741596, 0.173913, 0.647911, -116.28],
        [-0.664076, 0.0534489, 0.745752, 1087.77],
    ]
    frame[:3, 3] = [-5.775, -12.590, -40.623]
    assert add_to(model, theirs @ frame, instance) < 1e-3


def test_what_is_made_of_bop_instances_works_on_it(cat: tuple[Model, Instance]) -> None:
    """The rendered model, which overlays show, fills the hull of the projected points at the pose's distance."""
    model, instance = cat
    image = cv2.imread(str(instance.path))
    assert image is not None
    assert image.shape == (480, 640, 3)
    depth, index = render_depth([model.mesh], instance.pose[None], instance.K, (640, 480))
    assert iou(index == 0, hull(project(model.mesh.vertices, instance), (480, 640))) > 0.999
    z = (model.mesh.vertices @ instance.pose[:3, :3].T + instance.pose[:3, 3])[:, 2]
    assert z.min() - 1e-3 <= depth[index == 0].min() < depth.max() <= z.max() + 1e-3
    assert model.symmetries.tolist() == np.eye(4)[None].tolist()
    assert (instance.scene, instance.image, instance.object, instance.index) == (6, 0, 6, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files as the data set has them, of a cube's corners and middle."""
    corners = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)
    np.savetxt(tmp_path / POINTS, np.concatenate([corners, np.zeros((1, 3))]) / 20)
    np.save(tmp_path / POSE, np.array([[1, 0, 0, 0.01], [0, 1, 0, 0], [0, 0, 1, 0.5]]))
    mask = np.zeros((480, 640, 3), np.uint8)
    mask[10:20, 30:50] = 255
    for name in ("cat.jpg", "cat_mask.png"):
        cv2.imwrite(str(tmp_path / name), mask)
    return tmp_path


def test_metres_become_millimetres_and_points_a_closed_hull(folder: Path) -> None:
    model, instance = read_cat(folder)
    assert instance.pose.tolist() == [[1, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, 500], [0, 0, 0, 1]]
    assert (instance.box, instance.path) == ((30, 10, 19, 9), folder / "cat.jpg")
    a, b, c = np.moveaxis(model.mesh.vertices[model.mesh.faces], 1, 0)
    assert np.linalg.det(np.stack([a, b, c], axis=1)).sum() / 6 == pytest.approx(100**3)  # faces outwards everywhere
    assert (np.linalg.det(np.stack([a, b, c], axis=1)) > 0).all()


def test_what_is_missing_or_damaged_is_named(folder: Path) -> None:
    read_cat(folder)
    wrong: list[tuple[str, Callable[[Path], object], str]] = [
        (POSE, lambda path: np.save(path, np.eye(3)), r"\(3, 4\) wanted"),
        (POSE, lambda path: np.save(path, np.array({"pose": 1})), r"\(3, 4\) wanted.*pickle"),
        (POSE, lambda path: np.save(path, 2 * np.eye(4)[:3]), "rotation"),
        (POSE, lambda path: np.save(path, np.eye(4)[:3] + np.nan), "finite"),
        (POSE, lambda path: path.write_bytes(b""), r"\(3, 4\) wanted"),
        (POINTS, lambda path: path.write_text("1 2 x"), r"\(9, 3\) wanted"),
        (POINTS, lambda path: path.write_text("1 2 3"), r"\(9, 3\) wanted"),
        ("cat_mask.png", lambda path: cv2.imwrite(str(path), np.zeros((9, 9))), "pixels of the cat wanted"),
        ("cat_mask.png", lambda path: path.write_text("no image"), "an image wanted"),
    ]
    for name, damage, says in wrong:
        whole = (folder / name).read_bytes()
        damage(folder / name)
        with pytest.raises(ValueError, match=rf"{name}.*{says}"):
            read_cat(folder)
        (folder / name).write_bytes(whole)
    for name in (POSE, POINTS, "cat.jpg", "cat_mask.png"):
        (folder / name).rename(folder / "elsewhere")
        with pytest.raises(FileNotFoundError, match=name):
            read_cat(folder)
        (folder / "elsewhere").rename(folder / name)
