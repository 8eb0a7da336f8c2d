"""Points, their colours, lines and triangles between them as PLY, as MeshLab, Open3D and CloudCompare write them."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from plyfile import PlyData, PlyElement, PlyParseError

from datasets.files import replacing

__all__ = ["Mesh", "Ply", "read_mesh", "read_ply", "write_mesh", "write_ply"]

_COLORS = ("red", "green", "blue")
_DIFFUSE = ("diffuse_red", "diffuse_green", "diffuse_blue")


class Ply(NamedTuple):
    """points3d (N,3) float64; colors (N,3) uint8 or None; edges (E,2) int64, pairs of points, maybe none."""

    points3d: np.ndarray
    colors: np.ndarray | None
    edges: np.ndarray


class Mesh(NamedTuple):
    """vertices (V,3) float64; faces (F,3) int64, triples of vertices; colors (V,3) uint8 of the vertices, or None."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None = None


def write_ply(
    path: Path, points3d: np.ndarray, colors: np.ndarray | None = None, edges: np.ndarray | None = None
) -> None:
    """A binary PLY with points (N,3) in double precision, colors (N,3) uint8 and edges (E,2); whole or not at all.

    A line has its first point's colour, which Open3D shows; a file of lines is what it reads as a LineSet.
    """
    elements = [_points(points3d, colors)]
    if edges is not None:
        columns = _columns(("vertex1", "vertex2"), edges.astype("i4"))
        elements.append(_element("edge", columns | ({} if colors is None else _columns(_COLORS, colors[edges[:, 0]]))))
    _write(path, elements)


def write_mesh(path: Path, mesh: Mesh) -> None:
    """A binary PLY of a mesh, vertices in double precision; whole or not at all.

    Raises ValueError for vertices that are not finite (V,3), or faces that are no triples (F,3) of them.
    """
    _check_mesh("mesh", mesh)
    faces = np.empty(len(mesh.faces), dtype=[("vertex_indices", "i4", (3,))])
    faces["vertex_indices"] = mesh.faces
    _write(path, [_points(mesh.vertices, mesh.colors), PlyElement.describe(faces, "face")])


def _write(path: Path, elements: list[PlyElement]) -> None:
    with replacing(path) as temporary:
        PlyData(elements, byte_order="<").write(str(temporary))


def _points(points3d: np.ndarray, colors: np.ndarray | None) -> PlyElement:
    columns = _columns("xyz", points3d.astype("f8"))
    return _element("vertex", columns | ({} if colors is None else _columns(_COLORS, colors)))


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
    with _reading(path) as ply:
        points3d, colors = _vertices(ply)
        edges = np.zeros((0, 2), np.int64)
        if "edge" in ply:
            edges = np.stack([np.asarray(ply["edge"][f"vertex{i}"], dtype=np.int64) for i in (1, 2)], axis=-1)
    _check_indices(f"{path}: an edge", edges, len(points3d))
    return Ply(points3d, colors, edges)


def read_mesh(path: Path) -> Mesh:
    """Vertices, their colours and triangles; a polygon of more corners becomes a fan of them, which is right if convex.

    Triangles stand first, in the file's order, then what quadrangles became, and so on. Normals and texture
    coordinates are ignored. Raises FileNotFoundError, or ValueError naming the file: it is damaged, is a cloud of
    points without faces, has a vertex that is not finite, or a face that names fewer than 3 vertices or one that is
    not there.
    """
    with _reading(path) as ply:
        vertices, colors = _vertices(ply)
        if "face" not in ply:
            raise ValueError("it has points, but no faces")
        names = {p.name for p in ply["face"].properties}
        lists = ply["face"]["vertex_index" if "vertex_index" in names else "vertex_indices"]
        corners = np.fromiter(map(len, lists), np.int64, len(lists))
        if corners.size and corners.min() < 3:
            raise ValueError(f"face {corners.argmin()} has {corners.min()} corners")
        faces = [np.zeros((0, 3), np.int64)]
        for count in np.unique(corners):
            polygons = np.stack(lists[corners == count]).astype(np.int64)
            first = np.broadcast_to(polygons[:, :1], (len(polygons), count - 2))
            faces.append(np.stack([first, polygons[:, 1:-1], polygons[:, 2:]], axis=-1).reshape(-1, 3))
    mesh = Mesh(vertices, np.concatenate(faces), colors)
    _check_mesh(str(path), mesh)
    return mesh


@contextmanager
def _reading(path: Path) -> Iterator[PlyData]:
    """The opened file; what goes wrong with it in the block becomes one ValueError that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a PLY file wanted, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        yield PlyData.read(_ascii_header(path.read_bytes()))
    except (PlyParseError, KeyError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} is no PLY with points x, y, z that can be read: {error}") from None


def _ascii_header(content: bytes) -> BytesIO:
    """The file with a question mark for every letter of its header, as in comments, that plyfile does not take."""
    header, end, body = content.partition(b"end_header")
    return BytesIO(header.decode("latin-1").encode("ascii", errors="replace") + end + body)


def _vertices(ply: PlyData) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (N,3) float64 and colours (N,3) uint8, if there are."""
    vertices = ply["vertex"]
    points3d = np.stack([np.asarray(vertices[name], dtype=np.float64) for name in "xyz"], axis=-1)
    there = {p.name for p in vertices.properties}
    names = next((names for names in (_COLORS, _DIFFUSE) if there.issuperset(names)), None)
    return points3d, names and _bytes(np.stack([vertices[name] for name in names], axis=-1))


def _bytes(colors: np.ndarray) -> np.ndarray:
    """Colours of any type as uint8, by their values: fractions of one, bytes, 16 or 32 bits, whichever hold them all.

    Writers use wide types for bytes, too. Fractions may exceed one by as much again, and are clipped.
    """
    if colors.dtype == np.uint8:
        return colors
    values = np.nan_to_num(colors.astype(np.float64), posinf=0, neginf=0)
    largest = values.max(initial=0)
    fractions = colors.dtype.kind == "f" and largest <= 2
    white = 1.0 if fractions else next((w for w in (2.0**8 - 1, 2.0**16 - 1) if largest <= w), 2.0**32 - 1)
    return np.rint((values * (255 / white)).clip(0, 255)).astype(np.uint8)


def _check_mesh(where: str, mesh: Mesh) -> None:
    for name, value in mesh._asdict().items():
        shape = (len(mesh.faces if name == "faces" else mesh.vertices), 3)
        if value is not None and np.shape(value) != shape:
            raise ValueError(f"{where}: {name} of shape {shape} wanted, found {np.shape(value)}")
    bad = np.flatnonzero(~np.isfinite(mesh.vertices).all(-1))
    if bad.size:
        raise ValueError(f"{where}, vertex {bad[0]}: finite numbers wanted, found {mesh.vertices[bad[0]].tolist()}")
    _check_indices(f"{where}: a face", mesh.faces, len(mesh.vertices))


def _check_indices(what: str, indices: np.ndarray, count: int) -> None:
    if indices.size and not (indices.min() >= 0 and indices.max() < count):
        raise ValueError(f"{what} names a point that is not among the {count}")
