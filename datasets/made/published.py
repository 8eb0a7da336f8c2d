"""Points and poses of the published BPnP demo (Chen, Parra, Cao, Li, Chin, CVPR 2020): its .mat files."""

from pathlib import Path
from typing import Literal

from torch import Tensor

from datasets.arrays import rows_to_tensor
from datasets.files import require_file
from datasets.locate import find

__all__ = ["DUCK_UNIT", "MESHES", "POINT_SETS", "Mesh", "read_mesh", "read_points", "read_poses"]

POINT_SETS = {
    "cube": "cube.mat",
    "duck": "duck_mesh.mat",
    "driller": "driller_mesh.mat",
    "cat": "cat_mesh.mat",
}

DUCK_UNIT = 5.86e-6  # times the duck's file units = the units of the published experiments

Mesh = Literal["duck", "driller", "cat"]
MESHES: tuple[Mesh, ...] = ("duck", "driller", "cat")


def read_points(name: str, folder: str | Path | None = None) -> Tensor:
    """Points of "cube" (8), "duck" (1002), "driller" (1000) or "cat" (32): (N,3), object frame, file units.

    folder: where the .mat files lie, the data set bpnp_demo by default. Raises ValueError for another name or
    a file of other content, FileNotFoundError where the file is absent.
    """
    if name not in POINT_SETS:
        raise ValueError(f"name: one of {', '.join(POINT_SETS)} wanted, found {name!r}")
    return _read(_folder(folder) / POINT_SETS[name], "pts3d", 3)


def read_mesh(name: Mesh, folder: str | Path | None = None) -> Tensor:
    """Points of one of `MESHES` in the units of the published poses: (N,3).

    The duck as published. The demo has the driller and the cat, but no experiment with them and no scale: here their
    points are as far from their mean (rms) as the duck's, so that perspective is as weak. Raises like `read_points`.
    """
    if name not in MESHES:
        raise ValueError(f"name: one of {', '.join(MESHES)} wanted, found {name!r}")
    duck = DUCK_UNIT * read_points("duck", folder)
    if name == "duck":
        return duck
    points = read_points(name, folder)
    return points * (duck.std(0, correction=0).norm() / points.std(0, correction=0).norm())


def read_poses(folder: str | Path | None = None) -> Tensor:
    """The demo's poses: (50,6) = rotvec, t (object to camera), t in the units of the cube.

    Raises like `read_points`.
    """
    return _read(_folder(folder) / "poses.mat", "poses", 6)


def _folder(folder: str | Path | None) -> Path:
    return find("bpnp_demo") if folder is None else Path(folder)


def _read(path: Path, key: str, columns: int) -> Tensor:
    """Array `key` (N,columns) of a MATLAB file."""
    from scipy.io import loadmat

    path = require_file(path)
    try:
        content = loadmat(path)
    except Exception as error:  # scipy lets TypeError, zlib.error, ... of a broken file through
        raise ValueError(f"{path}: a MATLAB file wanted, found something else: {error}") from error
    if key not in content:
        found = [name for name in content if not name.startswith("__")]
        raise ValueError(f"{path}: an array {key!r} wanted, found {found}")
    return rows_to_tensor(content[key], columns, f"{path}, {key!r}")
