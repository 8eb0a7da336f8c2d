"""One real picture of LINEMOD (Hinterstoisser et al., ACCV 2012) as PVNet's demo gives it (Peng et al., CVPR 2019).

All of LINEMOD, in the layout of BOP, is read by `datasets.objects.layout`. This is what a machine without it can test
on:

    cat.jpg            image 0 of the cat, object 6
    cat_mask.png       its pixels
    cat_pose.npy       (3,4) R, t object to camera, metres
    cat_points_3d.txt  (9,3) metres: 8 points of the surface, farthest from each other, and the middle of the model

There is no mesh, so the model is the convex hull of the points. The object's frame is PVNet's: half a turn about x and
an offset lie between it and the frame of LINEMOD's mesh and annotation, so this pose is for these points only. K is
LINEMOD's published one; the files state it only as a pickle, which could run anything.
"""

from pathlib import Path

import numpy as np

from datasets.files import require_file
from datasets.locate import find
from datasets.objects.layout import Instance, Model, box_of_mask
from datasets.objects.results import poses_from_rows
from datasets.ply import Mesh

__all__ = ["DIAMETERS", "K", "read_cat"]

K = np.array([[572.4114, 0.0, 325.2611], [0.0, 573.57043, 242.04899], [0.0, 0.0, 1.0]])  # px, of all LINEMOD
DIAMETERS = {6: 154.5455}  # mm, largest distance of two vertices of the published mesh
K.flags.writeable = False


def read_cat(folder: str | Path | None = None) -> tuple[Model, Instance]:
    """The model and its one instance, as `datasets.objects.layout` has them: millimetres, pixels, object to camera.

    folder: where the four files lie, the data set linemod_cat by default. Raises FileNotFoundError where one is
    absent, ValueError naming the one that is damaged.
    """
    folder = find("linemod_cat") if folder is None else Path(folder)
    points3d = _array(folder / "cat_points_3d.txt", (9, 3)) * 1e3
    row = _array(folder / "cat_pose.npy", (3, 4))
    path, mask = require_file(folder / "cat.jpg"), require_file(folder / "cat_mask.png")
    pose = poses_from_rows(
        np.concatenate([row[:, :3].ravel(), row[:, 3] * 1e3])[None],
        lambda _, message: ValueError(f"{folder / 'cat_pose.npy'}: {message}"),
    )[0]
    box, pixels = box_of_mask(mask)
    if not pixels:
        raise ValueError(f"{mask}: pixels of the cat wanted, found none")
    model = Model(_hull(points3d), DIAMETERS[6], np.eye(4)[None])
    return model, Instance(
        scene=6,
        image=0,
        object=6,
        index=0,
        path=path,
        K=K,
        pose=pose,
        box=box,
        visible=1.0,
        mask=mask,
        mask_visible=mask,
    )


def _array(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Numbers of a text or npy file as float64; ValueError naming it for another shape."""
    try:
        array = np.load(require_file(path)) if path.suffix == ".npy" else np.loadtxt(require_file(path), ndmin=2)
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{array.dtype} of shape {array.shape}: {array.ravel()[:12].tolist()}")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: finite numbers {shape} wanted, found something else: {error}") from None
    return array.astype(np.float64)


def _hull(points3d: np.ndarray) -> Mesh:
    """All the points as vertices, and the triangles of their convex hull, counter-clockwise from outside."""
    from scipy.spatial import ConvexHull

    hull = ConvexHull(points3d)
    a, b, c = np.moveaxis(points3d[hull.simplices], 1, 0)
    inwards = (np.cross(b - a, c - a) * hull.equations[:, :3]).sum(-1) < 0
    faces = np.where(inwards[:, None], hull.simplices[:, ::-1], hull.simplices)
    return Mesh(points3d, faces.astype(np.int64))
