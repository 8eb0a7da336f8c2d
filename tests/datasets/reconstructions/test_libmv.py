import dataclasses
import struct

import cv2
import numpy as np
import pytest
import torch

from datasets.reconstructions.libmv import read_libmv, write_libmv

ROTATION = cv2.Rodrigues(np.array([0.3, -0.2, 0.5]))[0].astype(np.float32)


def content(
    endian="<", flags=b"vP", cameras=(7, 3), tracks=(5, 0), markers=((3, 5), (7, 0), (3, 0)), rotation=ROTATION
):
    """A problem written number by number, images and tracks with gaps and out of order."""
    parts = [flags, struct.pack(f"{endian}8f", 500, 320, 240, 0.1, 0.2, 0.3, 0.4, 0.5)]
    parts.append(struct.pack(f"{endian}i", len(cameras)))
    parts += [struct.pack(f"{endian}i12f", n, *rotation.T.ravel(), 1, 2, n) for n in cameras]
    parts.append(struct.pack(f"{endian}i", len(tracks)))
    parts += [struct.pack(f"{endian}i3f", n, n, 0.5, -1.5) for n in tracks]
    parts.append(struct.pack(f"{endian}i", len(markers)))
    parts += [struct.pack(f"{endian}2i2f", *marker, 10 * k, 0.25) for k, marker in enumerate(markers)]
    return b"".join(parts)


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "problem.bin"
        path.write_bytes(data)
        return path

    return write


def test_cost_of_the_real_file(real_data, project_all):
    """The reference value is half the sum of squares with the file's own cameras, points and intrinsics."""
    scene = read_libmv(real_data("libmv_ba") / "problem_01.bin")
    assert (len(scene.world_to_camera), len(scene.points3d), len(scene.points2d), len(scene.K)) == (333, 26, 5421, 1)
    cost = 0.5 * (project_all(scene) - scene.points2d).square().sum().item()
    assert cost == pytest.approx(4607.5945, rel=0, abs=5e-5)
    R = scene.world_to_camera[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand(333, 3, 3), rtol=0, atol=1e-14)
    assert scene.names == tuple(str(v) for v in range(1, 334))


def test_the_real_file_written_again(real_data, tmp_path, assert_same):
    path = real_data("libmv_ba") / "problem_01.bin"
    scene = read_libmv(path)
    write_libmv(tmp_path / "again.bin", scene)
    assert_same(read_libmv(tmp_path / "again.bin"), scene, different=("world_to_camera",), tolerance=0)
    assert_same(read_libmv(tmp_path / "again.bin"), scene, tolerance=1e-7)
    assert (tmp_path / "again.bin").stat().st_size == path.stat().st_size


@pytest.mark.parametrize(("endian", "flags"), [("<", b"vP"), ("<", b"vN"), (">", b"VP"), (">", b"VN")])
def test_layout_of_the_fields(write, endian, flags):
    scene = read_libmv(write(content(endian, flags)))
    assert scene.names == ("7", "3")
    assert scene.camera_index.tolist() == [1, 0, 1]
    assert scene.point_index.tolist() == [0, 1, 1]
    assert scene.points2d.tolist() == [[0, 0.25], [10, 0.25], [20, 0.25]]
    assert scene.points3d.tolist() == [[5, 0.5, -1.5], [0, 0.5, -1.5]]
    assert scene.K.tolist() == [[[500, 0, 320], [0, 500, 240], [0, 0, 1]]]
    np.testing.assert_array_equal(scene.distortion[0].numpy(), np.float32([0.1, 0.2, 0.4, 0.5, 0.3]))  # OpenCV's order
    assert scene.intrinsics_index.tolist() == [0, 0]
    np.testing.assert_allclose(scene.world_to_camera[0, :3, :3].numpy(), ROTATION, atol=1e-7)
    assert scene.world_to_camera[:, :3, 3].tolist() == [[1, 2, 7], [1, 2, 3]]
    assert (scene.colors, scene.image_sizes) == (None, None)


def test_markers_of_unknown_images_and_tracks_are_left_out(write):
    scene = read_libmv(write(content(markers=((3, 5), (4, 5), (7, 1), (7, 0)))))
    assert scene.camera_index.tolist() == [1, 0]
    assert scene.point_index.tolist() == [0, 1]
    assert scene.points2d.tolist() == [[0, 0.25], [30, 0.25]]


@pytest.mark.parametrize("coefficients", [0, 2, 5])
def test_round_trip(tmp_path, make_scene, assert_same, coefficients):
    scene = make_scene(cameras=1, coefficients=coefficients)
    write_libmv(tmp_path / "a.bin", scene)
    found = read_libmv(tmp_path / "a.bin")
    padded = torch.nn.functional.pad(scene.distortion, (0, 5 - coefficients))
    wanted = dataclasses.replace(
        scene, distortion=padded, names=("0", "1", "2", "3", "4"), colors=None, image_sizes=None
    )
    assert_same(found, wanted, tolerance=2e-7)
    assert torch.equal(found.camera_index, scene.camera_index)
    write_libmv(tmp_path / "b.bin", found)
    assert_same(read_libmv(tmp_path / "b.bin"), found, different=("world_to_camera",), tolerance=0)


def test_image_numbers_are_kept(tmp_path, make_scene):
    for names, kept in (
        (("9", "2", "70", "1", "0"), True),
        (("9", "9", "70", "1", "0"), False),
        (("-1", *"abcd"), False),
    ):
        write_libmv(tmp_path / "a.bin", dataclasses.replace(make_scene(cameras=1), names=names))
        assert read_libmv(tmp_path / "a.bin").names == (names if kept else tuple("01234"))


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"cameras": 2}, {}, "one camera for all images, got 2"),
        ({"fy": 1.1}, {}, "one focal length"),
        ({"model": "fisheye"}, {}, "holds 'radtan' cameras"),
        ({"coefficients": 8}, {}, "distortion: libmv holds 5 coefficients"),
        ({}, {"points3d": torch.full((12, 3), 1e39, dtype=torch.float64)}, "xyz of a point: .* float32"),
    ],
)
def test_what_libmv_cannot_say(tmp_path, make_scene, options, changes, message):
    with pytest.raises(ValueError, match=message):
        write_libmv(tmp_path / "a.bin", dataclasses.replace(make_scene(**{"cameras": 1} | options), **changes))
    assert not list(tmp_path.iterdir())


def patched(offset, data):
    whole = content()
    return whole[:offset] + data + whole[offset + len(data) :]


NAN, HUGE, MINUS = struct.pack("<f", np.nan), struct.pack("<i", 2**31 - 1), struct.pack("<i", -1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "byte 0: not a libmv problem: .* found b''"),
        (b"vX" + content()[2:], "byte 0: not a libmv problem: .* found b'vX'"),
        (b"\x89PNG", "byte 0: not a libmv problem"),
        (patched(6, NAN), r"byte 6: finite numbers wanted for the intrinsics \(centre\), found \[nan, 240.0\]"),
        (patched(34, HUGE), "byte 38: 111669149644 bytes wanted for 2147483647 cameras, found 192"),
        (patched(34, MINUS), "byte 34: the number of cameras wanted, found -1"),
        (patched(38, MINUS), "byte 38: image numbers from 0 wanted for camera 0, found -1"),
        (patched(42, NAN), r"byte 42: finite numbers wanted for 2 cameras \(R\), found \[nan"),
        (patched(94, NAN), r"byte 94: finite numbers wanted for 2 cameras \(R\)"),
        (patched(130, NAN), r"byte 130: finite numbers wanted for 2 cameras \(t\)"),
        (content(rotation=2 * ROTATION), "byte 38: camera 0: a rotation matrix wanted"),
        (content(rotation=-ROTATION), "byte 38: camera 0: a rotation matrix wanted"),
        (content(cameras=(7, 7)), "byte 90: image 7 stands a second time"),
        (content(tracks=(5, 5)), "byte 162: track 5 stands a second time"),
        (patched(142, HUGE), "byte 146: 34359738352 bytes wanted for 2147483647 points, found 84"),
        (patched(178, HUGE), "byte 182: .* bytes wanted for 2147483647 markers, found 48"),
        (content(markers=((3, -5),)), "byte 182: track numbers from 0 wanted for marker 0, found -5"),
        (patched(190, NAN), r"byte 190: finite numbers wanted for 3 markers \(xy\), found \[nan, 0.25\]"),
        (content() + b"\0", "byte 230: the end of the file wanted, found 1 more bytes"),
    ],
)
def test_a_file_that_cannot_be_trusted(write, data, message):
    with pytest.raises(ValueError, match=rf"problem\.bin, {message}"):
        read_libmv(write(data))


def test_truncated_anywhere(write):
    whole = content()
    for size in range(len(whole)):
        with pytest.raises(ValueError, match=r"problem\.bin, byte \d+: "):
            read_libmv(write(whole[:size]))


def test_the_real_file_truncated(real_data, write):
    whole = (real_data("libmv_ba") / "problem_01.bin").read_bytes()
    for size in range(0, len(whole), 1777):
        with pytest.raises(ValueError, match=r"problem\.bin, byte \d+: "):
            read_libmv(write(whole[:size]))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the path of an existing file"):
        read_libmv(tmp_path / "missing.bin")
