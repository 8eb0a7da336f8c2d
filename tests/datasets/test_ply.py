from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from datasets.ply import Mesh, read_mesh, read_ply, write_mesh, write_ply

POINTS = np.random.default_rng(0).normal(size=(20, 3)) * 1e3
COLORS = np.random.default_rng(1).integers(0, 256, (20, 3)).astype(np.uint8)
EDGES = np.array([[0, 1], [19, 2], [7, 7]])
HEADER = b"ply\nformat ascii 1.0\nelement vertex 1\n"
XYZ = b"property float x\nproperty float y\nproperty float z\n"
FACES = np.array([[0, 1, 2], [19, 2, 5]])
FACE = b"element face 1\nproperty list uchar int vertex_indices\nend_header\n"
EDGE = b"element edge 1\nproperty int vertex1\n"


def write_vertices(path: Path, text: bool = False, byte_order: str = "<", **columns: np.ndarray) -> None:
    vertices = np.rec.fromarrays(list(columns.values()), dtype=[(name, c.dtype) for name, c in columns.items()])
    PlyData([PlyElement.describe(vertices, "vertex")], text=text, byte_order=byte_order).write(str(path))


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", POINTS, COLORS, EDGES)
    ply = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(ply.points3d, POINTS)
    np.testing.assert_array_equal(ply.colors, COLORS)
    np.testing.assert_array_equal(ply.edges, EDGES)
    assert [a.dtype for a in ply if a is not None] == [np.float64, np.uint8, np.int64]


def test_points_alone_and_none_at_all(tmp_path: Path) -> None:
    unknown = np.array([[1.0, np.nan, np.inf]])
    for points in (POINTS, unknown, np.zeros((0, 3))):
        write_ply(tmp_path / "a.ply", points)
        ply = read_ply(tmp_path / "a.ply")
        np.testing.assert_array_equal(ply.points3d, points)
        assert ply.colors is None
        assert ply.edges.shape == (0, 2)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", POINTS)
    with pytest.raises(ValueError, match=r"shape|mismatch"):
        write_ply(tmp_path / "a.ply", POINTS, COLORS[:5])
    np.testing.assert_array_equal(read_ply(tmp_path / "a.ply").points3d, POINTS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


@pytest.mark.parametrize("ascii", [False, True])
def test_files_of_open3d_are_read(tmp_path: Path, ascii: bool) -> None:
    o3d: Any = pytest.importorskip("open3d")
    path, points, edges = tmp_path / "a.ply", o3d.utility.Vector3dVector(POINTS), o3d.utility.Vector2iVector(EDGES)
    cloud = o3d.geometry.PointCloud(points)
    cloud.colors, cloud.normals = o3d.utility.Vector3dVector(COLORS / 255), points
    o3d.io.write_point_cloud(str(path), cloud, write_ascii=ascii)
    np.testing.assert_allclose(read_ply(path).points3d, POINTS, rtol=1e-5)
    np.testing.assert_array_equal(read_ply(path).colors, COLORS)

    lines = o3d.geometry.LineSet(points, edges)  # its colours are those of the lines
    lines.paint_uniform_color([1, 0, 0])
    o3d.io.write_line_set(str(path), lines, write_ascii=ascii)
    np.testing.assert_allclose(read_ply(path).points3d, POINTS, rtol=1e-5)
    np.testing.assert_array_equal(read_ply(path).edges, EDGES)
    assert read_ply(path).colors is None

    o3d.io.write_triangle_mesh(str(path), o3d.geometry.TriangleMesh.create_box(), write_ascii=ascii)
    assert sorted(map(tuple, read_ply(path).points3d)) == [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    assert len(read_ply(path).edges) == 0


def test_open3d_reads_ours(tmp_path: Path) -> None:
    o3d: Any = pytest.importorskip("open3d")
    write_ply(tmp_path / "a.ply", POINTS, COLORS, EDGES)
    cloud, lines = o3d.io.read_point_cloud(str(tmp_path / "a.ply")), o3d.io.read_line_set(str(tmp_path / "a.ply"))
    for points in (cloud.points, lines.points):
        np.testing.assert_array_equal(np.asarray(points), POINTS)
    np.testing.assert_allclose(np.asarray(cloud.colors), COLORS / 255)
    np.testing.assert_array_equal(np.asarray(lines.lines), EDGES)
    np.testing.assert_allclose(np.asarray(lines.colors), COLORS[EDGES[:, 0]] / 255)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("byte_order", "<>")
def test_colors_of_any_type_mean_the_same(tmp_path: Path, text: bool, byte_order: str) -> None:
    xyz = {name: POINTS[:, i].astype("f4") for i, name in enumerate("xyz")}
    stored = {"f4": COLORS / 255, "f8": COLORS / 255, "u2": COLORS.astype(int) * 257, "u1": COLORS}
    for kind, values in stored.items():
        names = ("red", "green", "blue")
        rgb = {name: values[:, i].astype(kind) for i, name in enumerate(names)}
        write_vertices(tmp_path / "a.ply", text, byte_order, **xyz, **rgb)
        ply = read_ply(tmp_path / "a.ply")
        np.testing.assert_array_equal(ply.colors, COLORS, err_msg=kind)
        np.testing.assert_allclose(ply.points3d, POINTS, rtol=1e-5)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("prefix", ["", "diffuse_"])
def test_bytes_in_any_type_are_bytes(tmp_path: Path, kind: str, prefix: str) -> None:
    colors = COLORS // 2 if kind == "i1" else COLORS
    xyz = {name: POINTS[:, i].astype("f4") for i, name in enumerate("xyz")}
    names = (f"{prefix}red", f"{prefix}green", f"{prefix}blue")
    for text in (False, True):
        rgb = {name: colors[:, i].astype(kind) for i, name in enumerate(names)}
        write_vertices(tmp_path / "a.ply", text, **xyz, **rgb)
        np.testing.assert_array_equal(read_ply(tmp_path / "a.ply").colors, colors)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("text", [False, True])
def test_comments_may_hold_any_letters(tmp_path: Path, encoding: str, text: bool) -> None:
    write_vertices(tmp_path / "a.ply", text, x=POINTS[:, 0], y=POINTS[:, 1], z=POINTS[:, 2])
    head, _, rest = (tmp_path / "a.ply").read_bytes().partition(b"element")
    (tmp_path / "a.ply").write_bytes(head + "comment résumé\n".encode(encoding) + b"element" + rest)
    np.testing.assert_array_equal(read_ply(tmp_path / "a.ply").points3d, POINTS)


def test_colors_out_of_range_are_clipped(tmp_path: Path) -> None:
    zero, wild = np.zeros(4, "f4"), np.array([-1, 2, np.nan, 0.5], "f4")
    write_vertices(tmp_path / "a.ply", x=zero, y=zero, z=zero, red=wild, green=wild, blue=wild)
    colors = read_ply(tmp_path / "a.ply").colors
    assert colors is not None
    np.testing.assert_array_equal(colors[:, 0], [0, 255, 0, 128])


def test_two_colors_of_three_are_none(tmp_path: Path) -> None:
    write_vertices(tmp_path / "a.ply", x=np.zeros(1), y=np.zeros(1), z=np.zeros(1), red=np.zeros(1), blue=np.zeros(1))
    assert read_ply(tmp_path / "a.ply").colors is None


def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "cut.ply"
    for text in (False, True):
        write_ply(path, POINTS, COLORS, EDGES)
        ply = PlyData.read(str(path), mmap=False)
        ply.text = text
        ply.write(str(path))
        whole = path.read_bytes()
        for end in range(0, len(whole) - 4, 5):  # in a text, the last number may lose digits unnoticed
            path.write_bytes(whole[:end])
            with pytest.raises(ValueError, match=r"cut\.ply"):
                read_ply(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected 'ply'"),
        (b"hello, world\n", "expected 'ply'"),
        (b"\xff\xfe\x00\x01" * 100, r"decode|expected"),
        (b"ply\nformat ascii 1.0\nend_header\n", "vertex"),
        (HEADER + b"property float x\nproperty float y\nend_header\n0 0\n", "name z"),
        (HEADER + XYZ + b"end_header\n0 0 one\n", "malformed"),
        (HEADER + XYZ.replace(b"float x", b"list uchar float x") + b"end_header\n2 0 0 1 1\n", r"sequence|array"),
        (HEADER.replace(b" 1\n", b" 99999999999999999\n") + XYZ + b"end_header\n0 0 0\n", r"end-of-file|allocate"),
        (HEADER.replace(b"vertex 1", b"vertex -1") + XYZ + b"end_header\n", "negative"),
        (HEADER + XYZ + EDGE + b"end_header\n0 0 0\n0\n", "vertex2"),
        (
            HEADER + XYZ + EDGE + b"property int vertex2\nend_header\n0 0 0\n0 1\n",
            "edge",
        ),
        (
            HEADER + XYZ + EDGE + b"property int vertex2\nend_header\n0 0 0\n0 -1\n",
            "edge",
        ),
    ],
)
def test_damage_is_an_error_of_one_sentence_that_names_the_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "damaged.ply"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_ply(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.ply: a PLY file wanted, found nothing"):
        read_ply(tmp_path / "absent.ply")
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(FileNotFoundError, match="found a folder"):
        read_ply(tmp_path / "folder.ply")


@pytest.mark.parametrize("colors", [COLORS, None])
def test_a_mesh_that_is_written_is_read_back_exactly(tmp_path: Path, colors: np.ndarray | None) -> None:
    for faces in (FACES, np.zeros((0, 3), np.int64)):
        write_mesh(tmp_path / "a.ply", Mesh(POINTS, faces, colors))
        mesh = read_mesh(tmp_path / "a.ply")
        for value, wanted in zip(mesh, (POINTS, faces, colors), strict=True):
            np.testing.assert_array_equal(value, wanted)
        assert [a.dtype for a in mesh if a is not None] == [np.float64, np.int64, np.uint8][: 2 + (colors is not None)]


@pytest.mark.parametrize("ascii", [False, True])
def test_meshes_of_open3d_are_read_and_ours_by_it(tmp_path: Path, ascii: bool) -> None:
    o3d: Any = pytest.importorskip("open3d")
    sphere = o3d.geometry.TriangleMesh.create_sphere(50, 8)
    sphere.compute_vertex_normals()
    sphere.paint_uniform_color([1, 0.2, 0])
    o3d.io.write_triangle_mesh(str(tmp_path / "a.ply"), sphere, write_ascii=ascii)
    mesh = read_mesh(tmp_path / "a.ply")
    write_mesh(tmp_path / "b.ply", mesh)
    back = o3d.io.read_triangle_mesh(str(tmp_path / "b.ply"))
    for vertices in (mesh.vertices, np.asarray(back.vertices)):
        np.testing.assert_allclose(vertices, np.asarray(sphere.vertices), rtol=1e-5, atol=1e-12)
    for faces in (mesh.faces, np.asarray(back.triangles)):
        np.testing.assert_array_equal(faces, np.asarray(sphere.triangles))
    assert mesh.colors is not None
    for colors in (mesh.colors, np.asarray(back.vertex_colors) * 255):
        np.testing.assert_allclose(colors, np.tile([255, 51, 0], (len(mesh.vertices), 1)))


@pytest.mark.parametrize("name", [b"vertex_indices", b"vertex_index"])
def test_polygons_become_fans_and_what_bop_adds_is_ignored(tmp_path: Path, name: bytes) -> None:
    """Normals and texture coordinates of vertices, texture coordinates of faces, a face of 5 corners among others."""
    (tmp_path / "a.ply").write_bytes(
        b"ply\nformat ascii 1.0\ncomment TextureFile a.png\nelement vertex 5\n"
        + XYZ
        + b"".join(b"property float %s\n" % extra for extra in (b"nx", b"ny", b"nz", b"texture_u", b"texture_v"))
        + b"element face 3\nproperty list uchar int "
        + name
        + b"\nproperty list uchar float texcoord\nend_header\n"
        + b"".join(b"%d %d 0 0 0 1 .5 .5\n" % (i, i * i) for i in range(5))
        + b"5 0 1 2 3 4 2 .5 .5\n3 4 3 2 1 .5\n4 3 0 1 2 1 .5\n"
    )
    mesh = read_mesh(tmp_path / "a.ply")
    np.testing.assert_array_equal(mesh.vertices, [[i, i * i, 0] for i in range(5)])
    np.testing.assert_array_equal(mesh.faces, [[4, 3, 2], [3, 0, 1], [3, 1, 2], [0, 1, 2], [0, 2, 3], [0, 3, 4]])
    assert mesh.colors is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEADER + XYZ + b"end_header\n0 0 0\n", "has points, but no faces"),
        (HEADER + XYZ + FACE + b"0 0 0\n2 0 0\n", "face 0 has 2 corners"),
        (HEADER + XYZ + FACE + b"0 0 0\n3 0 0 1\n", "a face names a point that is not among the 1"),
        (HEADER + XYZ + FACE + b"0 0 0\n3 0 0 -1\n", "a face names a point"),
        (HEADER + XYZ + FACE + b"0 nan 0\n3 0 0 0\n", "vertex 0: finite numbers wanted"),
        (
            HEADER + XYZ + FACE.replace(b"list uchar int vertex_indices", b"int vertex_indices") + b"0 0 0\n0\n",
            "no PLY",
        ),
        (HEADER + XYZ + FACE.replace(b"vertex_indices", b"corners") + b"0 0 0\n3 0 0 0\n", "vertex_indices"),
        (HEADER + XYZ + FACE + b"0 0 0\n3 0 0\n", "early end"),
    ],
)
def test_what_is_no_mesh_is_an_error_that_names_the_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "damaged.ply"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_mesh(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"absent\.ply: a PLY file wanted"):
        read_mesh(tmp_path / "absent.ply")


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        (Mesh(POINTS[:, :2], FACES), r"mesh: vertices of shape \(20, 3\) wanted, found \(20, 2\)"),
        (Mesh(POINTS, FACES.T), r"mesh: faces of shape \(3, 3\) wanted, found \(3, 2\)"),
        (Mesh(POINTS, FACES, COLORS[:5]), r"mesh: colors of shape \(20, 3\) wanted, found \(5, 3\)"),
        (Mesh(POINTS * np.nan, FACES), "vertex 0: finite"),
        (Mesh(POINTS, FACES + 1), "a face names a point that is not among the 20"),
    ],
)
def test_no_mesh_is_not_written(tmp_path: Path, mesh: Mesh, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_mesh(tmp_path / "a.ply", mesh)
    assert not list(tmp_path.iterdir())
