import dataclasses

import cv2
import numpy as np
import pytest
import torch

from datasets.reconstructions.bal import read_bal, write_bal
from datasets.reconstructions.bundler import write_bundler

SMALL = """2 3 4

0 0     1.5 -2.5
1 0     3 4
0 1     5 6
1 2     7 8

0.1
0.2
0.3
1
2
3
500
-1e-7
1e-13

0 0 0 4 5 6 600 0.25 0.5

1 2 3
4 5 6
7
8
-9
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "problem.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def cost(scene):
    """Half the sum of squares of the reprojection error, projected by OpenCV."""
    total = 0.0
    for v in range(len(scene.world_to_camera)):
        seen = scene.camera_index == v
        projected, _ = cv2.projectPoints(
            scene.points3d[scene.point_index[seen]].numpy(),
            cv2.Rodrigues(scene.world_to_camera[v, :3, :3].numpy())[0],
            scene.world_to_camera[v, :3, 3].numpy(),
            scene.K[v].numpy(),
            np.append(scene.distortion[v].numpy(), [0, 0]),
        )
        total += 0.5 * np.square(projected.reshape(-1, 2) - scene.points2d[seen].numpy()).sum()
    return total


@pytest.mark.parametrize(
    ("name", "sizes", "published_cost"),
    [
        ("problem-49-7776-pre.txt", (49, 7776, 31843), 850912.460681),
        ("dubrovnik-3-7-pre.txt", (3, 7, 19), 2764.219984),
    ],
)
def test_cost_at_the_start_is_the_published_one(real_data, tmp_path, name, sizes, published_cost):
    scene = read_bal(real_data("bal") / name)
    assert (len(scene.world_to_camera), len(scene.points3d), len(scene.points2d)) == sizes
    assert cost(scene) == pytest.approx(published_cost, rel=0, abs=1e-6)
    write_bal(tmp_path / "again.txt", scene)
    assert cost(read_bal(tmp_path / "again.txt")) == pytest.approx(published_cost, rel=0, abs=1e-6)


def test_bal_convention_is_the_papers(real_data):
    """The reader against the formulas of BAL's page, on every observation of the file."""
    path = real_data("bal") / "problem-49-7776-pre.txt"
    scene = read_bal(path)
    V, N, M = 49, 7776, 31843
    numbers = torch.tensor([float(token) for token in path.read_text().split()[3:]], dtype=torch.float64)
    observations, cameras, points3d = numbers.split([4 * M, 9 * V, 3 * N])
    camera_index, point_index, points2d = observations.view(M, 4).split([1, 1, 2], dim=-1)
    camera_index, point_index = camera_index[:, 0].long(), point_index[:, 0].long()
    rotvec, t, f, k1, k2 = cameras.view(V, 9)[camera_index].split([3, 3, 1, 1, 1], dim=-1)
    rotation = torch.tensor(np.stack([cv2.Rodrigues(r)[0] for r in rotvec.numpy()]))
    P = (rotation @ points3d.view(N, 3)[point_index][..., None])[..., 0] + t
    p = -P[:, :2] / P[:, 2:]
    r2 = p.square().sum(-1, keepdim=True)
    expected = f * (1 + k1 * r2 + k2 * r2**2) * p
    assert 0.5 * (expected - points2d).square().sum().item() == pytest.approx(850912.460681, abs=1e-6)
    assert torch.equal(scene.camera_index, camera_index)
    assert torch.equal(scene.point_index, point_index)
    own = scene.world_to_camera[camera_index]
    depth = (own[:, :3, :3] @ scene.points3d[point_index][..., None])[:, 2, 0] + own[:, 2, 3]
    torch.testing.assert_close(depth, -P[:, 2])
    assert torch.equal(scene.points2d, points2d * torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert torch.equal(own.det().sign(), torch.ones(len(own), dtype=torch.float64))  # no reflection


def test_one_camera_one_point(real_data):
    scene = read_bal(real_data("bal") / "dubrovnik-1-1-pre.txt")
    assert scene.points2d.tolist() == [[-385.99, -387.12]]
    assert scene.points3d.tolist() == [[-12.055995050700867, 12.838775976205760, -41.099369264082803]]
    assert scene.world_to_camera.shape == (1, 4, 4)


def test_layout_of_the_fields(write):
    scene = read_bal(write(SMALL))
    assert scene.camera_index.tolist() == [0, 1, 0, 1]
    assert scene.point_index.tolist() == [0, 0, 1, 2]
    assert scene.points2d.tolist() == [[1.5, 2.5], [3, -4], [5, -6], [7, -8]]
    assert scene.points3d.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, -9]]
    assert scene.K.tolist() == [[[f, 0, 0], [0, f, 0], [0, 0, 1]] for f in (500, 600)]
    assert scene.distortion.tolist() == [[-1e-7, 1e-13], [0.25, 0.5]]
    assert scene.intrinsics_index.tolist() == [0, 1]
    assert scene.world_to_camera[1].tolist() == [[1, 0, 0, 4], [0, -1, 0, -5], [0, 0, -1, -6], [0, 0, 0, 1]]
    rotation = np.diag([1.0, -1, -1]) @ cv2.Rodrigues(np.array([0.1, 0.2, 0.3]))[0]
    np.testing.assert_allclose(scene.world_to_camera[0, :3, :3].numpy(), rotation, atol=1e-15)
    assert scene.camera_index.dtype == scene.point_index.dtype == torch.int64
    assert {x.dtype for x in (scene.points2d, scene.world_to_camera, scene.points3d, scene.K)} == {torch.float64}
    assert (scene.model, scene.colors, scene.names, scene.image_sizes) == ("radtan", None, (), None)


def test_windows_line_ends(write, assert_same):
    assert_same(read_bal(write(SMALL.replace("\n", "\r\n"))), read_bal(write(SMALL)), tolerance=0)


def test_round_trip(tmp_path, make_scene, assert_same):
    scene = make_scene(cameras=5)
    write_bal(tmp_path / "a.txt", scene)
    found = read_bal(tmp_path / "a.txt")
    assert_same(found, scene, different=("colors", "names", "image_sizes"))
    for name in (
        "points3d",
        "K",
        "distortion",
        "camera_index",
        "point_index",
        "points2d",
    ):  # in the same order, exactly
        assert torch.equal(getattr(found, name), getattr(scene, name)), name


def test_shared_intrinsics_are_repeated_and_the_centre_subtracted(tmp_path, make_scene, project_all):
    scene = make_scene(cameras=2, coefficients=5, centre=(320.0, 240.5))
    scene.distortion[:, 2:] = 0
    write_bal(tmp_path / "a.txt", scene)
    found = read_bal(tmp_path / "a.txt")
    assert torch.equal(found.K[:, 0, 0], scene.K[scene.intrinsics_index, 0, 0])
    assert not found.K[:, :2, 2].any()
    torch.testing.assert_close(found.points2d + torch.tensor([320, 240.5], dtype=torch.float64), scene.points2d)
    torch.testing.assert_close(project_all(found) - found.points2d, project_all(scene) - scene.points2d)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"fy": 1.1}, {}, "one focal length a camera, got fx = .* and fy = "),
        ({"model": "fisheye"}, {}, "holds 'radtan' cameras, got 'fisheye'"),
        ({"coefficients": 4}, {}, "distortion: .* holds 2 coefficients"),
        ({}, {"K": torch.eye(3).double().repeat(2, 1, 1) + torch.eye(3).roll(1, 1)}, "K: .* wants zeros beside"),
    ],
)
def test_what_bal_and_bundler_cannot_say(tmp_path, make_scene, options, changes, message):
    scene = dataclasses.replace(make_scene(**options), **changes)
    for write in (write_bal, write_bundler):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "file", scene)
    assert not list(tmp_path.iterdir())


def test_a_problem_without_observations_is_not_written(tmp_path, make_scene):
    none = torch.zeros(0, dtype=torch.int64)
    scene = dataclasses.replace(make_scene(), camera_index=none, point_index=none, points2d=torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"one image, point and observation at least, got \(5, 12, 0\)"):
        write_bal(tmp_path / "file", scene)


def replace_line(number, text):
    lines = SMALL.splitlines()
    lines[number - 1] = text
    return "\n".join(lines)


def first_lines(count):
    return "\n".join(SMALL.splitlines()[:count])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: not a BAL file.*found ''"),
        ("2 3", "line 1: not a BAL file.*found '2 3'"),
        ("ply\nformat ascii 1.0\n", "line 1: not a BAL file.*found 'ply format ascii'"),
        (b"\x89PNG\r\n\x1a\n\xff\x00 1 2", "line 1: not a BAL file"),
        (replace_line(1, "2 -3 4"), "line 1: not a BAL file.*found '2 -3 4'"),
        (replace_line(1, "2 3.0 4"), "line 1: not a BAL file"),
        (replace_line(1, "0 3 4"), "line 1: not a BAL file"),
        (first_lines(1), r"line 1: the file ends after the header: .* need 46 numbers, found 3"),
        (first_lines(4), r"line 4: the file ends after observation 1 \(y\): .*found 11"),
        (first_lines(4) + "\n0 1 5", r"line 5: 4 numbers .* wanted for observation 2, found 3: '0 1 5'"),
        (first_lines(12), r"line 12: the file ends after camera 0, value 5 of 9"),
        (first_lines(18), r"line 18: the file ends after camera 1, value 9 of 9"),
        (first_lines(22), r"line 22: the file ends after point 2, value 1 of 3"),
        (replace_line(4, "1 0 3"), r"line 4: 4 numbers .* observation 1, found 3: '1 0 3'.*found 45"),
        (SMALL + "1 2\n", r"line 25: the end of the file wanted, found '1'.* need 46 numbers, found 48"),
        (replace_line(1, "2 3 5"), r"line 8: 4 numbers .* observation 4, found 1: '0.1'"),
        (
            replace_line(1, "3 3 4"),
            r"line 24: the file ends after point 0, value 1 of 3|line 24: the file ends",
        ),
        (replace_line(6, "2 2 7 8"), r"line 6: camera index wanted in 0 … 1, found '2'"),
        (replace_line(6, "-1 2 7 8"), r"line 6: camera index wanted in 0 … 1, found '-1'"),
        (replace_line(6, "1 3 7 8"), r"line 6: point index wanted in 0 … 2, found '3'"),
        (replace_line(6, "1 1.5 7 8"), r"line 6: point index wanted in 0 … 2, found '1.5'"),
        (
            replace_line(3, "0 0 nan 1"),
            r"line 3: a finite number wanted for observation 0 \(x\), found 'nan'",
        ),
        (replace_line(14, "inf"), r"line 14: a finite number wanted for camera 0, value 7 of 9, found 'inf'"),
        (
            replace_line(14, "1e999"),
            r"line 14: a finite number wanted for camera 0, value 7 of 9, found '1e999'",
        ),
        (replace_line(21, "4 5 six"), r"line 21: a number wanted for point 1, value 3 of 3, found 'six'"),
        (replace_line(21, "4 5 0x10"), r"line 21: a number wanted for point 1, value 3 of 3, found '0x10'"),
        (replace_line(8, "1e200"), r"line 8: a rotation vector wanted for camera 0, found \[1e\+200"),
        (replace_line(1, "2 3 9999999999"), r"line 8: 4 numbers .* observation 4, found 1: '0.1'"),
        (replace_line(21, "4 5 1_0"), r"line 21: a number wanted for point 1, value 3 of 3, found '1_0'"),
        (SMALL.replace("600", "\xe9"), r"line 18: a number wanted for camera 1, value 7 of 9"),
    ],
)
def test_a_file_that_cannot_be_trusted(write, text, message):
    with pytest.raises(ValueError, match=rf"problem\.txt, {message}"):
        read_bal(write(text))


def test_the_real_file_truncated_anywhere(real_data, write):
    whole = (real_data("bal") / "dubrovnik-3-7-pre.txt").read_bytes().strip()
    last = len(whole.split()[-1])
    for size in range(0, len(whole) - last, 13):
        with pytest.raises(ValueError, match=r"problem\.txt, line \d+: "):
            read_bal(write(whole[:size]))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the path of an existing file"):
        read_bal(tmp_path / "missing.txt")
