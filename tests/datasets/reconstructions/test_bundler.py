import dataclasses

import cv2
import numpy as np
import pytest
import torch

from datasets.reconstructions.bundler import read_bundler, write_bundler

# Three cameras, of which the second was not registered; the third is turned by 90 degrees about z.
SMALL = """# Bundle file v0.3
3 2
500 -0.1 0.01
1 0 0
0 1 0
0 0 1
1 2 3
0 0 0
0 0 0
0 0 0
0 0 0
0 0 0
6.0000000000e+02 0 0
0 -1 0
1 0 0
0 0 1
4 5 6
1 2 -9
255 0 7
2 0 17 1.5 -2.5 2 3 4 5
3 4 -8
1 2 3
0
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "bundle.out"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_layout_of_the_fields(write):
    scene = read_bundler(write(SMALL))
    assert scene.names == ("0", "2")
    assert scene.camera_index.tolist() == [0, 1]
    assert scene.point_index.tolist() == [0, 0]
    assert scene.points2d.tolist() == [[1.5, 2.5], [4, -5]]
    assert scene.points3d.tolist() == [[1, 2, -9], [3, 4, -8]]
    assert scene.colors.tolist() == [[255, 0, 7], [1, 2, 3]]
    assert scene.colors.dtype == torch.uint8
    assert scene.K.tolist() == [[[f, 0, 0], [0, f, 0], [0, 0, 1]] for f in (500, 600)]
    assert scene.distortion.tolist() == [[-0.1, 0.01], [0, 0]]
    assert scene.intrinsics_index.tolist() == [0, 1]
    assert scene.image_sizes is None
    assert scene.world_to_camera.tolist() == [
        [[1, 0, 0, 1], [0, -1, 0, -2], [0, 0, -1, -3], [0, 0, 0, 1]],
        [[0, -1, 0, 4], [-1, 0, 0, -5], [0, 0, -1, -6], [0, 0, 0, 1]],
    ]


def test_the_manuals_formula(write, project_all):
    """p' = f r(p) p with p = -P / P.z, from the numbers as the file has them; y is up there and down here."""
    pixels = project_all(read_bundler(write(SMALL)))
    X = np.array([1.0, 2, -9])
    rotation = cv2.Rodrigues(np.array([0, 0, np.pi / 2]))[0]
    for R, t, f, k1, k2, found in ((np.eye(3), [1, 2, 3], 500, -0.1, 0.01, 0), (rotation, [4, 5, 6], 600, 0, 0, 1)):
        P = R @ X + t
        p = -P[:2] / P[2]
        expected = f * (1 + k1 * p @ p + k2 * (p @ p) ** 2) * p
        np.testing.assert_allclose(pixels[found].numpy(), expected * [1, -1], rtol=1e-13)


def test_round_trip(tmp_path, make_scene, assert_same):
    scene = make_scene(cameras=5)
    write_bundler(tmp_path / "a.out", scene)
    found = read_bundler(tmp_path / "a.out")
    assert_same(found, dataclasses.replace(scene, names=("0", "1", "2", "3", "4")), different=("image_sizes",))
    write_bundler(tmp_path / "b.out", found)
    assert_same(read_bundler(tmp_path / "b.out"), found)


def test_unknown_colours_are_black_and_keys_count_the_views_of_a_camera(tmp_path, make_scene):
    scene = dataclasses.replace(make_scene(), colors=None)
    path = tmp_path / "a.out"
    write_bundler(path, scene)
    assert not read_bundler(path).colors.any()
    keys = [[] for _ in range(5)]
    for line in path.read_text().splitlines()[2 + 5 * 5 + 2 :: 3]:
        words = line.split()[1:]
        for camera, key in zip(words[::4], words[1::4], strict=True):
            keys[int(camera)].append(int(key))
    assert [sorted(of_camera) for of_camera in keys] == [list(range(n)) for n in scene.camera_index.bincount().tolist()]


def test_rounded_rotations_become_rotations(write, make_scene, tmp_path):
    scene = make_scene()
    write_bundler(tmp_path / "a.out", scene)
    lines = (tmp_path / "a.out").read_text().splitlines()
    for k in range(2, 27):
        lines[k] = " ".join(f"{float(word):.6e}" for word in lines[k].split())
    R = read_bundler(write("\n".join(lines) + "\n")).world_to_camera[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand(5, 3, 3), rtol=0, atol=1e-14)
    torch.testing.assert_close(R, scene.world_to_camera[:, :3, :3], rtol=0, atol=1e-6)


def replace_line(number, text):
    lines = SMALL.splitlines()
    lines[number - 1] = text
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: '# Bundle file v0.3' wanted, found ''"),
        (replace_line(1, "# Bundle file v0.1"), "line 1: .* wanted, found '# Bundle file v0.1'"),
        (b"\x89PNG\r\n\x1a\n\xff\x00", "line 1: '# Bundle file v0.3' wanted"),
        ("# Bundle file v0.3\n", "line 2: two counts .* wanted, found 0"),
        ("# Bundle file v0.3\n3", "line 2: two counts .* wanted, found 1"),
        (replace_line(2, "3.5 2"), "line 2: the number of cameras and points wanted in 0 … .*found '3.5'"),
        (replace_line(2, "-3 2"), "line 2: the number of cameras and points .* found '-3'"),
        (replace_line(2, "2000000000 2000000000"), "line 23: the file ends after .*: 2000000000 cameras .* found 69"),
        (replace_line(2, "3 3"), "line 23: the file ends before point 2 of 3"),
        (replace_line(2, "3 1"), "line 21: the end of the file wanted after point 0, found '3'"),
        (replace_line(4, "1 0 x"), "line 4: a number wanted for value 6 after the counts, found 'x'"),
        (replace_line(4, "1 0 nan"), "line 4: a finite number wanted .* found 'nan'"),
        (replace_line(4, "2 0 0"), r"line 4: camera 0: a rotation matrix wanted, found \[\[2.0"),
        (replace_line(4, "1e308 -1e308 1e308"), "line 4: camera 0: a rotation matrix wanted"),
        (replace_line(14, "0 1 0"), "line 14: camera 2: a rotation matrix wanted"),
        (replace_line(19, "256 0 7"), "line 19: colour wanted in 0 … 255, found '256'"),
        (replace_line(19, "25.5 0 7"), "line 19: colour wanted in 0 … 255, found '25.5'"),
        (replace_line(20, "2 0 17 1.5 -2.5 3 3 4 5"), "line 20: camera index wanted in 0 … 2, found '3'"),
        (replace_line(20, "2 0 17 1.5 -2.5 1 3 4 5"), "line 20: a registered camera wanted .* found camera '1'"),
        (replace_line(20, "2 0 17 1.5 -2.5 -1 3 4 5"), "line 20: camera index wanted in 0 … 2, found '-1'"),
        (replace_line(20, "1e300 0 17 1.5 -2.5 2 3 4 5"), "line 20: the number of views of point 0 .*'1e300'"),
        (replace_line(20, "-2 0 17 1.5 -2.5 2 3 4 5"), "line 20: the number of views of point 0 .*'-2'"),
        (replace_line(20, "1.5 0 17 1.5 -2.5 2 3 4 5"), "line 20: the number of views of point 0 .*'1.5'"),
        (SMALL + "7\n", "line 24: the end of the file wanted after point 1, found '7'"),
    ],
)
def test_a_file_that_cannot_be_trusted(write, text, message):
    with pytest.raises(ValueError, match=rf"bundle\.out, {message}"):
        read_bundler(write(text))


CAMERAS = "# Bundle file v0.3\n1 2\n1 0 0\n1 0 0\n0 1 0\n0 0 1\n0 0 0\n"
POINT = "1 2 3\n4 5 6\n"


def test_points_without_views_may_end_a_file(write):
    found = read_bundler(write(f"{CAMERAS}{POINT}0\n{POINT}0\n"))
    assert found.points3d.tolist() == [[1, 2, 3]] * 2
    assert len(found.points2d) == 0
    found = read_bundler(write(f"{CAMERAS}{POINT}1 0 0 7 8\n{POINT}0\n"))
    assert found.point_index.tolist() == [0]
    found = read_bundler(write(f"{CAMERAS}{POINT}0\n{POINT}1 0 0 7 8\n"))
    assert found.point_index.tolist() == [1]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            f"{POINT}0\n{POINT}\n",
            "line 1[0-9]: the file ends after .*: 1 cameras and 2 points need 31 .* found 30",
        ),
        (f"{POINT}1 0 0 7 8\n{POINT}", "line 1[0-9]: the file ends before point 1 of 2"),  # its count is missing
        (f"{POINT}0\n{POINT}1 0 0 7\n", "line 13: the number of views of point 1 wanted, .*'1', and 3 more numbers"),
        (f"{POINT}0\n{POINT}1\n", "line 13: the number of views of point 1 wanted, .*'1', and 0 more numbers"),
        (f"{POINT}0\n{POINT}1 0 0 7 8 9\n", "line 13: the end of the file wanted after point 1, found '9'"),
        (f"{POINT}0\n{POINT}0 0\n", "line 13: the end of the file wanted after point 1, found '0'"),
    ],
)
def test_counts_at_the_end_of_a_file(write, points, message):
    with pytest.raises(ValueError, match=rf"bundle\.out, {message}"):
        read_bundler(write(CAMERAS + points))


def test_truncated_anywhere(tmp_path, write, make_scene):
    write_bundler(tmp_path / "a.out", make_scene())
    whole = (tmp_path / "a.out").read_bytes().strip()
    last = len(whole.split()[-1])
    for size in range(0, len(whole) - last, 7):
        with pytest.raises(ValueError, match=r"bundle\.out, line \d+: "):
            read_bundler(write(whole[:size]))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the path of an existing file"):
        read_bundler(tmp_path / "missing.out")
