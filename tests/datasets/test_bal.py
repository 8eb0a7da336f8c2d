import cv2
import numpy as np
import pytest
import torch

from datasets.bal import read_bal, to_opencv

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


def cost(bal):
    """Half the sum of squares of the reprojection error, projected by OpenCV."""
    cameras = to_opencv(bal)
    total = 0.0
    for v in range(len(bal.cameras)):
        seen = bal.camera_index == v
        projected, _ = cv2.projectPoints(
            bal.points3d[bal.point_index[seen]].numpy(),
            cv2.Rodrigues(cameras.world_to_camera[v, :3, :3].numpy())[0],
            cameras.world_to_camera[v, :3, 3].numpy(),
            cameras.K[v].numpy(),
            cameras.distortion[v].numpy(),
        )
        total += 0.5 * np.square(projected.reshape(-1, 2) - cameras.points2d[seen].numpy()).sum()
    return total


@pytest.mark.parametrize(
    ("name", "sizes", "published_cost"),
    [
        ("problem-49-7776-pre.txt", (49, 7776, 31843), 850912.460681),
        ("dubrovnik-3-7-pre.txt", (3, 7, 19), 2764.219984),
    ],
)
def test_cost_at_the_start_is_the_published_one(real_data, name, sizes, published_cost):
    bal = read_bal(real_data("bal") / name)
    assert (len(bal.cameras), len(bal.points3d), len(bal.points2d)) == sizes
    assert cost(bal) == pytest.approx(published_cost, rel=0, abs=1e-6)


def test_bal_convention_is_the_papers(real_data):
    """to_opencv against the formulas of BAL's page, on every observation of the file."""
    bal = read_bal(real_data("bal") / "problem-49-7776-pre.txt")
    cameras = to_opencv(bal)
    rotvec, t, f, k1, k2 = bal.cameras[bal.camera_index].split([3, 3, 1, 1, 1], dim=-1)
    rotation = torch.tensor(np.stack([cv2.Rodrigues(r)[0] for r in rotvec.numpy()]))
    P = (rotation @ bal.points3d[bal.point_index][..., None])[..., 0] + t
    p = -P[:, :2] / P[:, 2:]
    r2 = p.square().sum(-1, keepdim=True)
    expected = f * (1 + k1 * r2 + k2 * r2**2) * p
    assert 0.5 * (expected - bal.points2d).square().sum().item() == pytest.approx(850912.460681, abs=1e-6)
    own = cameras.world_to_camera[bal.camera_index]
    depth = (own[:, :3, :3] @ bal.points3d[bal.point_index][..., None])[:, 2, 0] + own[:, 2, 3]
    torch.testing.assert_close(depth, -P[:, 2])
    assert torch.equal(cameras.points2d, bal.points2d * torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert torch.equal(own.det().sign(), torch.ones(len(own), dtype=torch.float64))  # no reflection


def test_one_camera_one_point(real_data):
    bal = read_bal(real_data("bal") / "dubrovnik-1-1-pre.txt")
    assert bal.points2d.tolist() == [[-385.99, 387.12]]
    assert bal.points3d.tolist() == [[-12.055995050700867, 12.838775976205760, -41.099369264082803]]
    assert bal.cameras.shape == (1, 9)


def test_layout_of_the_fields(write):
    bal = read_bal(write(SMALL))
    assert bal.camera_index.tolist() == [0, 1, 0, 1]
    assert bal.point_index.tolist() == [0, 0, 1, 2]
    assert bal.points2d.tolist() == [[1.5, -2.5], [3, 4], [5, 6], [7, 8]]
    assert bal.cameras.tolist() == [
        [0.1, 0.2, 0.3, 1, 2, 3, 500, -1e-7, 1e-13],
        [0, 0, 0, 4, 5, 6, 600, 0.25, 0.5],
    ]
    assert bal.points3d.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, -9]]
    assert bal.camera_index.dtype == torch.int64
    assert {x.dtype for x in (bal.points2d, bal.cameras, bal.points3d)} == {torch.float64}
    cameras = to_opencv(bal)
    assert cameras.K[1].tolist() == [[600, 0, 0], [0, 600, 0], [0, 0, 1]]
    assert cameras.distortion[1].tolist() == [0.25, 0.5, 0, 0]
    assert cameras.world_to_camera[1].tolist() == [[1, 0, 0, 4], [0, -1, 0, -5], [0, 0, -1, -6], [0, 0, 0, 1]]


def test_windows_line_ends(write):
    assert torch.equal(read_bal(write(SMALL.replace("\n", "\r\n"))).cameras, read_bal(write(SMALL)).cameras)


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
