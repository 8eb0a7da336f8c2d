import struct

import numpy as np
import pytest
import torch

from datasets.reconstructions.colmap import read_colmap, write_colmap

TEXT = {
    "cameras": """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
# Number of cameras: 2
9 PINHOLE 640 480 500 510 320.5 240.5
4 SIMPLE_RADIAL 100 200 90 50 100 0.1
""",
    "images": """# Image list with two lines of data per image:
#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME
#   POINTS2D[] as (X, Y, POINT3D_ID)
# Number of images: 3, mean observations per image: 1
70 0.5 0.5 0.5 0.5 1 2 3 9 b ä  2.png
1.5 2.5 33 7 8 -1 10.5 20.5 12
5 1 0 0 0 0 0 0 4 a.png
3.5 4.5 -1 5.5 6.5 12
6 2 0 0 0 4 5 6 4 none.png

""",
    "points3D": """# 3D point list with one line of data per point:
# Number of points: 3, mean track length: 1
33 1 2 3 255 0 7 0.25 70 0
12 4 5 6 1 2 3 -1 5 1 70 2
8 7 8 9 0 0 0 -1
""",
}


@pytest.fixture
def write(tmp_path):
    """Writes TEXT, in which the named files are replaced."""

    def write(**files):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        for name, text in (TEXT | files).items():
            (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return write


def test_layout_of_the_fields(write):
    scene = read_colmap(write())
    assert scene.names == ("a.png", "none.png", "b ä  2.png")
    assert scene.intrinsics_index.tolist() == [0, 0, 1]
    assert scene.image_sizes.tolist() == [[100, 200], [640, 480]]
    assert scene.K.tolist() == [[[90, 0, 49.5], [0, 90, 99.5], [0, 0, 1]], [[500, 0, 320], [0, 510, 240], [0, 0, 1]]]
    assert scene.distortion.tolist() == [[0.1, 0], [0, 0]]
    assert scene.model == "radtan"
    assert scene.points3d.tolist() == [[7, 8, 9], [4, 5, 6], [1, 2, 3]]
    assert scene.colors.tolist() == [[0, 0, 0], [1, 2, 3], [255, 0, 7]]
    assert scene.camera_index.tolist() == [0, 2, 2]
    assert scene.point_index.tolist() == [1, 2, 1]
    assert scene.points2d.tolist() == [[5, 6], [1, 2], [10, 20]]
    assert scene.world_to_camera.tolist() == [
        torch.eye(4).tolist(),
        [[1, 0, 0, 4], [0, 1, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1]],  # its quaternion has length 2
        [[0, 0, 1, 1], [1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]],
    ]


@pytest.mark.slow
def test_windows_line_ends_and_no_comments(write, assert_same):
    wanted = read_colmap(write())
    bare = {name: "\n".join(row for row in text.split("\n") if row[:1] != "#") for name, text in TEXT.items()}
    assert_same(read_colmap(write(**bare)), wanted, tolerance=0)
    assert_same(read_colmap(write(**{name: text.replace("\n", "\r\n") for name, text in TEXT.items()})), wanted)


def line(name, number, text):
    lines = TEXT[name].split("\n")
    lines[number - 1] = text
    return {name: "\n".join(lines)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            line("cameras", 4, "9 MOON 640 480 500 510 320 240 1"),
            r"cameras\.txt, line 4: one of .*RADIAL.* found 'MOON'",
        ),
        (line("cameras", 4, "9"), r"cameras\.txt, line 4: one of the camera models .* found ''"),
        (line("cameras", 4, "9 PINHOLE 640 480 500"), r"cameras\.txt, line 4: 4 parameters of PINHOLE wanted, found 1"),
        (line("cameras", 4, "9 PINHOLE 640"), r"cameras\.txt, line 4: 4 numbers wanted for a camera, .* found 3"),
        (line("cameras", 4, "9 PINHOLE 640 480 500 x 1 2"), r"cameras\.txt, line 4: a number wanted .* found 'x'"),
        (line("cameras", 4, "9 PINHOLE 640 480 500 inf 1 2"), r"cameras\.txt, line 4: a finite number .* found 'inf'"),
        (line("cameras", 4, "9 PINHOLE -1 480 500 1 1 2"), r"cameras\.txt, line 4: camera: size wanted .* found '-1'"),
        (line("cameras", 4, "9 PINHOLE 9e9 480 500 1 1 2"), r"cameras\.txt, line 4: an image size below 2\^31"),
        (line("cameras", 4, "4 PINHOLE 640 480 500 1 1 2"), r"cameras\.txt, line 5: id 4 stands a second time"),
        (
            line("cameras", 4, "9 OPENCV_FISHEYE 1 1 1 1 1 1 0 0 0 0"),
            r"cameras\.txt, line 4: one lens model .*'fisheye'",
        ),
        (line("cameras", 4, ""), r"cameras\.txt, line 3: 2 cameras announced, found 1"),
        (line("images", 5, "70 0.5 0.5 0.5 0.5 1 2 3 9"), r"images\.txt, line 5: .* found 9 words"),
        (line("images", 5, "70 0 0 0 0 1 2 3 9 b.png"), r"images\.txt, line 5: a quaternion wanted .* found \[0.0"),
        (line("images", 5, "70 1e200 0 0 0 1 2 3 9 b.png"), r"images\.txt, line 5: a quaternion wanted .*1e\+200"),
        (
            line("images", 5, "70 1 0 0 0 1 2 3 8 b.png"),
            r"images\.txt, line 5: a camera of `cameras` wanted, found id 8",
        ),
        (line("images", 5, "5 1 0 0 0 1 2 3 9 b.png"), r"images\.txt, line 7: id 5 stands a second time"),
        (line("images", 5, "7.5 1 0 0 0 1 2 3 9 b.png"), r"images\.txt, line 5: image: id wanted .* found '7.5'"),
        (line("images", 5, "70 1 0 0 0 nan 2 3 9 b.png"), r"images\.txt, line 5: a finite number .* found 'nan'"),
        (line("images", 6, "1.5 2.5 33 7 8 -1 10.5 20.5"), r"images\.txt, line 5: 9 numbers .* then 3 .* found 17"),
        (line("images", 6, "1.5 2.5 33 7 8 -1 10.5 y 12"), r"images\.txt, line 6: a number wanted .* found 'y'"),
        (line("images", 6, "1.5 2.5 33 7 8 -1 1 2 13"), r"images\.txt, line 5: a point .* for 2D point 2, found id 13"),
        (
            line("images", 6, "1.5 2.5 33 7 8 -1 1 2 -2"),
            r"images\.txt, line 6: image: point wanted in -1 .* found '-2'",
        ),
        (
            line("images", 6, "1.5 2.5 33 7 8 -1 1 2 33"),
            r"points3D\.txt, line 4: image 70 does not show this .* point 2",
        ),
        (line("images", 6, "1 2 33 7 8 12 1 2 12"), r"images\.txt, line 5: 2D point 1 shows point 12, whose track"),
        (line("images", 6, ""), r"points3D\.txt, line 4: image 70 does not show this point as its 2D point 2"),
        (line("points3D", 3, "33 1 2 3 256 0 7 0.25 70 0"), r"points3D\.txt, line 3: point: color wanted in 0 … 255"),
        (line("points3D", 3, "33 1 2 3 255 0 7 0.25 70"), r"points3D\.txt, line 3: 8 numbers .* then 2 .* found 9"),
        (line("points3D", 3, "33 1 2 3 255"), r"points3D\.txt, line 3: 8 numbers wanted for a point, .* found 5"),
        (line("points3D", 3, "33 1 2 3 255 0 7 0.25 71 0"), r"points3D\.txt, line 3: image 71 does not show"),
        (line("points3D", 3, "33 1 2 3 255 0 7 0.25 70 9"), r"points3D\.txt, line 3: image 70 does not show"),
        (line("points3D", 3, "33 1 2 3 255 0 7 0.25"), r"images\.txt, line 5: 2D point 0 shows point 33, whose track"),
        (line("points3D", 3, "8 1 2 3 255 0 7 0.25"), r"points3D\.txt, line 5: id 8 stands a second time"),
        ({"points3D": b"\x89PNG\r\n\x1a\n\xff\x00"}, r"points3D\.txt, line 1: a number wanted for a point, found"),
        ({"images": b"\x89PNG\r\n\x1a\n\xff\x00"}, r"images\.txt, line 1: .* found 1 words"),
    ],
)
def test_a_text_file_that_cannot_be_trusted(write, files, message):
    with pytest.raises(ValueError, match=message):
        read_colmap(write(**files))


# Offsets are those of TEXT written as binary files.
HUGE, NAN = struct.pack("<Q", 2**63), struct.pack("<d", np.nan)


@pytest.mark.parametrize(
    ("name", "offset", "data", "message"),
    [
        ("cameras", 0, HUGE, r"cameras\.bin, byte 0: 9223372036854775808 cameras need .* bytes, found 152"),
        ("cameras", 0, b"\1", r"cameras\.bin, byte \d+: the end of the file wanted, found \d+ more bytes"),
        ("cameras", 0, b"\3", r"cameras\.bin, byte \d+: 24 bytes wanted for camera 2 of 3, found 0"),
        (
            "cameras",
            12,
            b"\12",
            r"cameras\.bin, byte 12: one of the camera models .* wanted for camera 0 of 2, found model 10",
        ),
        ("cameras", 16, HUGE, r"cameras\.bin, byte 8: camera 0 of 2: an image size below 2\^31 wanted"),
        ("cameras", 32, NAN, r"cameras\.bin, byte 32: finite numbers wanted for an item of cameras"),
        ("images", 0, HUGE, r"images\.bin, byte 0: 9223372036854775808 images need"),
        ("images", 12, NAN, r"images\.bin, byte 12: finite numbers wanted for image \(quat_wxyz\)"),
        ("images", 68, b"\7", r"images\.bin, byte 8: image 0 of 3: a camera of `cameras` wanted, found id 7"),
        ("images", 78, HUGE, r"images\.bin, byte 86: \d+ bytes wanted for 9223372036854775808 items of image 0"),
        ("images", 86, NAN, r"images\.bin, byte 86: finite numbers wanted for an item of images \(xy\)"),
        ("points3D", 0, HUGE, r"points3D\.bin, byte 0: 9223372036854775808 points3D need"),
        ("points3D", 16, NAN, r"points3D\.bin, byte 16: finite numbers wanted for point \(xyz\)"),
        ("points3D", 51, HUGE, r"points3D\.bin, byte 59: \d+ bytes wanted for 9223372036854775808 items of point 0"),
    ],
)
def test_a_binary_file_that_cannot_be_trusted(tmp_path, write, name, offset, data, message):
    write_colmap(tmp_path / "binary", read_colmap(write()))
    path = tmp_path / "binary" / f"{name}.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:offset] + data + whole[offset + len(data) :])
    with pytest.raises(ValueError, match=message):
        read_colmap(tmp_path / "binary")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".bin", ".txt"])
@pytest.mark.parametrize("name", TEXT)
def test_truncated_anywhere(tmp_path, make_scene, suffix, name):
    write_colmap(tmp_path, make_scene(), binary=suffix == ".bin")
    path = tmp_path / f"{name}{suffix}"
    whole = path.read_bytes()
    # A text loses its last line end without harm, and a number cut short is another one. Where it is the id of a 2D
    # point or the index in a track, the other file shows it; the last parameter of a camera stands nowhere else.
    text_end = len(whole.rstrip()) - (len(whole.split()[-1]) if name == "cameras" else 0)
    place = r"byte \d+" if suffix == ".bin" else r"line \d+"
    for size in range(0, len(whole) if suffix == ".bin" else text_end, 5):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"(cameras|images|points3D)\{suffix}, {place}: "):
            read_colmap(tmp_path)
