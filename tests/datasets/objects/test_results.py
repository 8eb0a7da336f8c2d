from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from datasets.objects.results import Estimate, read_results, write_results

LINE = "1,2,3,0.5,1 0 0 0 1 0 0 0 1,10 20.5 1e3,0.25"


def poses(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, random_state=rng).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(count, 3)) * 300
    return poses


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    estimates = [Estimate(i // 3, i % 3, 5 - i, i / 7, pose, i / 3) for i, pose in enumerate(poses(5))]
    write_results(tmp_path / "a.csv", iter(estimates))
    read = read_results(tmp_path / "a.csv")
    assert [(*e[:4], e.time) for e in read] == [(*e[:4], e.time) for e in estimates]
    for one, other in zip(read, estimates, strict=True):
        np.testing.assert_array_equal(one.pose[:, 3], other.pose[:, 3])
        np.testing.assert_allclose(one.pose, other.pose, rtol=0, atol=1e-15)
    write_results(tmp_path / "none.csv", [])
    assert read_results(tmp_path / "none.csv") == []


def test_the_file_is_what_the_benchmark_defines(tmp_path: Path) -> None:
    pose = np.array([[0, -1, 0, 10], [1, 0, 0, -20.5], [0, 0, 1, 1e3], [0, 0, 0, 1]], np.float32)
    write_results(tmp_path / "a.csv", [Estimate(1, 2, 3, np.float32(0.5), pose)])  # type: ignore[arg-type]
    assert (tmp_path / "a.csv").read_text() == (
        "scene_id,im_id,obj_id,score,R,t,time\n1,2,3,0.5,0.0 -1.0 0.0 1.0 0.0 0.0 0.0 0.0 1.0,10.0 -20.5 1000.0,-1.0\n"
    )


@pytest.mark.parametrize("text", [LINE, f"scene_id,im_id,obj_id,score,R,t,time\n{LINE}\n", f"{LINE}\r\n"])
def test_the_line_of_names_and_the_last_end_of_line_may_be_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text, newline="")
    (estimate,) = read_results(tmp_path / "a.csv")
    assert (*estimate[:4], estimate.time) == (1, 2, 3, 0.5, 0.25)
    np.testing.assert_array_equal(estimate.pose, [[1, 0, 0, 10], [0, 1, 0, 20.5], [0, 0, 1, 1000], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "9 numbers R"),
        (LINE.replace(",0.25", ""), "9 numbers R"),
        (LINE.replace("0 0 1,", "0 0,"), "9 numbers R"),
        (LINE.replace("10 20.5", "10 20.5 7"), "9 numbers R"),
        (LINE.replace("1 0 0 0 1 0 0 0 1,10", "1 0 0 0 1 0 0 0,1 10"), "9 numbers R"),  # 12 numbers, but 8 and 4
        (LINE.replace("1,10 20.5 1e3", "1 10,20.5 1e3"), "9 numbers R"),
        (LINE.replace("1,2,3", "1,2.5,3"), "9 numbers R"),
        (LINE.replace("20.5", "x"), "9 numbers R"),
        (LINE.replace("20.5", "nan"), "finite"),
        (LINE.replace("1 0 0 0 1", "1 0 0 0 2"), "rotation"),
        (LINE.replace("1 0 0 0 1", "1 0 0 0 -1"), "rotation"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(f"scene_id,im_id,obj_id,score,R,t,time\n{LINE}\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.csv, line 3: .*{says}"):
        read_results(tmp_path / "a.csv")


def test_no_file_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.csv: a CSV of estimates wanted, found nothing"):
        read_results(tmp_path / "a.csv")


def test_what_the_benchmark_would_refuse_is_not_written(tmp_path: Path) -> None:
    pose, mirrored, sheared = np.eye(4), np.diag([1.0, 1, -1, 1]), np.eye(4)
    sheared[0, 1] = 0.01
    wrong = [
        (Estimate(0, 0, 1, 0.5, pose, 0.2), "time 0.1"),
        (Estimate(0, 1, 1, np.nan, pose), "finite"),
        (Estimate(0, 1, 1, 0.5, pose[:3]), r"\(4, 4\)"),
        (Estimate(0, 1, 1, 0.5, pose + np.inf), "finite"),
        (Estimate(0, 1, 1, 0.5, mirrored), "rotation"),
        (Estimate(0, 1, 1, 0.5, sheared), "rotation"),
    ]
    write_results(tmp_path / "a.csv", [])
    for estimate, says in wrong:
        with pytest.raises(ValueError, match=rf"estimates\[1\]: .*{says}"):
            write_results(tmp_path / "a.csv", [Estimate(0, 0, 1, 0.5, pose, 0.1), estimate])
    assert read_results(tmp_path / "a.csv") == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
