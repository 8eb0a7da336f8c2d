import bz2
import dataclasses
import gzip

import pytest
import torch

from datasets.files import replacing
from datasets.reconstructions.bal import read_bal, write_bal
from datasets.reconstructions.bundler import write_bundler
from datasets.reconstructions.colmap import write_colmap
from datasets.reconstructions.libmv import write_libmv
from datasets.reconstructions.model import Reconstruction
from datasets.reconstructions.read import read_reconstruction


def test_every_format_is_recognised_and_keeps_the_errors(tmp_path, make_scene, project_all):
    scene = make_scene(cameras=1)
    error = (project_all(scene) - scene.points2d).square().sum()
    writers = {"a.txt": write_bal, "a.out": write_bundler, "a.bin": write_libmv, "binary": write_colmap}
    writers |= {"text": lambda path, scene: write_colmap(path, scene, binary=False), "no_suffix": write_bal}
    for name, write in writers.items():
        write(tmp_path / name, scene)
        found = read_reconstruction(tmp_path / name)
        rtol = 1e-3 if write is write_libmv else 1e-9  # libmv rounds to float32
        torch.testing.assert_close((project_all(found) - found.points2d).square().sum(), error, rtol=rtol, atol=0)


@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress])
@pytest.mark.parametrize("name", ["a.txt.packed", "a.txt"])
def test_bal_is_read_as_it_is_distributed(tmp_path, make_scene, pack, name):
    write_bal(tmp_path / "plain.txt", make_scene())
    packed = pack((tmp_path / "plain.txt").read_bytes())
    (tmp_path / name).write_bytes(packed)
    one, other = read_reconstruction(tmp_path / name), read_bal(tmp_path / "plain.txt")
    assert torch.equal(one.points2d, other.points2d)
    assert torch.equal(one.world_to_camera, other.world_to_camera)
    for damaged in (packed[:-5], packed[: len(packed) // 2], packed[:20] + b"\0\0\0\0" + packed[24:]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}: a packed file wanted, found a damaged one"):
            read_reconstruction(tmp_path / name)


def test_real_files(real_data):
    assert len(read_reconstruction(real_data("bal") / "dubrovnik-3-7-pre.txt").world_to_camera) == 3
    assert len(read_reconstruction(real_data("libmv_ba") / "problem_01.bin").world_to_camera) == 333


@pytest.mark.parametrize("content", [b"", b"ply\nformat ascii 1.0\n", b"1 2", b"\x89PNG\r\n\x1a\n\xff\x00"])
def test_what_is_recognised_by_nothing(tmp_path, content):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"file\.txt: a folder with .*COLMAP.*Bundler.*libmv.*BAL.* wanted, found none"
    ):
        read_reconstruction(path)


def test_a_folder_of_no_model_and_a_missing_path(tmp_path):
    with pytest.raises(ValueError, match=r"COLMAP.*wanted, found a folder without cameras"):
        read_reconstruction(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_reconstruction(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("world_to_camera", torch.zeros(5, 3, 4), r"world_to_camera must have shape \(V, 4, 4\), got \(5, 3, 4\)"),
        ("points3d", torch.zeros(12), r"points3d must have shape \(N, 3\), got \(12,\)"),
        ("distortion", torch.zeros(3, 2), r"distortion must have shape \(2, k\), got \(3, 2\)"),
        ("distortion", torch.zeros(2, 3), r"distortion must have one of \(0, 2, 4, 5, 8, 12\)"),
        ("model", "pinhole", "model must be one of"),
        ("intrinsics_index", torch.zeros(4, dtype=torch.int64), r"intrinsics_index must have shape \(5,\), got \(4,\)"),
        ("intrinsics_index", torch.zeros(5), r"intrinsics_index must hold torch\.int64, got torch\.float32"),
        ("intrinsics_index", torch.full((5,), 2), r"intrinsics_index must lie in 0 … 1 \(C = 2\), got 2 … 2"),
        ("colors", torch.zeros(12, 3), r"colors must hold torch\.uint8, got torch\.float32"),
        ("colors", torch.zeros(11, 3, dtype=torch.uint8), r"colors must have shape \(12, 3\), got \(11, 3\)"),
        ("image_sizes", torch.zeros(2, 3, dtype=torch.int64), r"image_sizes must have shape \(2, 2\), got \(2, 3\)"),
        ("names", ("a",), "names must hold 5 names or none, got 1"),
        ("points3d", torch.full((12, 3), torch.nan), "points3d must be finite"),
        ("points3d", torch.zeros(12, 3, dtype=torch.int64), "points3d must hold floating-point numbers"),
    ],
)
def test_a_reconstruction_names_the_wrong_field(make_scene, field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_scene(), **{field: value})


@pytest.mark.parametrize(("field", "size"), [("camera_index", 5), ("point_index", 12)])
@pytest.mark.parametrize("wrong", [-1, "size"])
def test_an_index_out_of_range(make_scene, field, size, wrong):
    scene = make_scene()
    index = getattr(scene, field).clone()
    index[3] = size if wrong == "size" else wrong
    with pytest.raises(ValueError, match=rf"{field} must lie in 0 … {size - 1}"):
        dataclasses.replace(scene, **{field: index})


def test_nothing_at_all_is_a_reconstruction():
    none = torch.zeros(0, dtype=torch.int64)
    scene = Reconstruction(
        torch.zeros(0, 4, 4),
        torch.zeros(0, 3),
        torch.zeros(0, 3, 3),
        torch.zeros(0, 0),
        none,
        none,
        none,
        torch.zeros(0, 2),
    )
    assert scene.names == ()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, make_scene):
    path = tmp_path / "problem.txt"
    write_bal(path, make_scene())
    before = path.read_bytes()

    def die():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        die()
    assert path.read_bytes() == before
    write_bal(path, make_scene(seed=1))
    assert [file.name for file in tmp_path.iterdir()] == ["problem.txt"]
    assert path.read_bytes() != before
    assert len(read_bal(path).points3d) == 12
