"""Points, their colours and lines between them as PLY, the way MeshLab, Open3D and CloudCompare write them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from plyfile import PlyData, PlyElement, PlyParseError

__all__ = ["Ply", "read_ply", "write_ply"]

_COLORS = ("red", "green", "blue")


class Ply(NamedTuple):
    """points3d (N,3) float64; colors (N,3) uint8 or None; edges (E,2) int64, pairs of points, maybe none."""

    points3d: np.ndarray
    colors: np.ndarray | None
    edges: np.ndarray


def write_ply(
    path: Path, points3d: np.ndarray, colors: np.ndarray | None = None, edges: np.ndarray | None = None
) -> None:
    """A binary PLY with points (N,3) in double precision, colors (N,3) uint8 and edges (E,2); whole or not at all.

    A line has its first point's colour, which Open3D shows; a file of lines is what it reads as a LineSet.
    """
    from datasets.reconstruction import replacing  # torch, which reading does not need

    columns = _columns("xyz", points3d.astype("f8"))
    elements = [_element("vertex", columns | ({} if colors is None else _columns(_COLORS, colors)))]
    if edges is not None:
        columns = _columns(("vertex1", "vertex2"), edges.astype("i4"))
        elements.append(_element("edge", columns | ({} if colors is None else _columns(_COLORS, colors[edges[:, 0]]))))
    with replacing(path) as temporary:
        PlyData(elements, byte_order="<").write(str(temporary))


def _columns(names: str | tuple[str, ...], values: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, values.T, strict=True))


def _element(name: str, columns: dict[str, np.ndarray]) -> PlyElement:
    return PlyElement.describe(
        np.rec.fromarrays(list(columns.values()), dtype=[(key, column.dtype) for key, column in columns.items()]), name
    )


def read_ply(path: Path) -> Ply:
    """Points, colours and edges; of a mesh the vertices.

    Raises FileNotFoundError, or ValueError naming the file: it is damaged, or has no points x, y, z.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a PLY file wanted, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        ply = PlyData.read(str(path), mmap=False)  # mapped, a file that is written anew would change under us
        vertices = ply["vertex"]
        points3d = np.stack([np.asarray(vertices[name], dtype=np.float64) for name in "xyz"], axis=-1)
        names = {p.name for p in vertices.properties}
        colors = np.stack([vertices[name] for name in _COLORS], axis=-1) if names.issuperset(_COLORS) else None
        edges = np.zeros((0, 2), np.int64)
        if "edge" in ply:
            edges = np.stack([np.asarray(ply["edge"][f"vertex{i}"], dtype=np.int64) for i in (1, 2)], axis=-1)
    except (PlyParseError, KeyError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} is no PLY with points x, y, z that can be read: {error}") from None
    if edges.size and not (edges.min() >= 0 and edges.max() < len(points3d)):
        raise ValueError(f"{path}: an edge names a point that is not among the {len(points3d)}")
    if colors is not None and colors.dtype != np.uint8:  # fractions, or 16 bits
        whole = 255.0 if colors.dtype.kind == "f" else 255.0 / np.iinfo(colors.dtype).max
        colors = np.rint(np.nan_to_num(colors * whole).clip(0, 255)).astype(np.uint8)
    return Ply(points3d, colors, edges)
