"""The command line: what it writes of data sets and of pictures."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from datasets.objects.layout import Instance, read_results, read_split
from datasets.objects.linemod import K as LINEMOD_K
from datasets.objects.linemod import read_cat
from experiments import predict
from experiments.drawing.figures import BLUE, ORANGE, rgb
from experiments.object_poses.crops import MARGIN
from experiments.object_poses.estimator import Estimated, PoseEstimator, load_estimator
from tests.experiments.predict.asking import boxes_of, call, entries, refused, told, write_boxes

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver


def matrix(entry: dict[str, Any]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = entry["pose"]["R"], entry["pose"]["t_mm"]
    return pose


def has(picture: np.ndarray, color: str) -> bool:
    return int((np.abs(picture[..., ::-1].astype(int) - rgb(color).astype(int)) < 40).all(-1).sum()) > 50


def test_a_data_set_s_csv_json_and_overlays_say_the_same(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(made / "my_run-seed0", made / "made_set", "--split", "test", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "boxes: the truth's" in printed
    assert "**ADD(-S)**" in printed
    assert "VSD" in printed
    # the toolkit cuts the name at its dot, then at _, then at -
    (name,) = (path.name for path in out.glob("*.csv"))
    method, about = name.removesuffix(".csv").split("_")
    assert (method, about.split("-")) == ("my-run-seed0", ["madeset", "test"])

    truth = read_split(made / "made_set", "test")
    wanted = list(load_estimator(made / "my_run-seed0" / "estimator.pt").estimate(truth))
    results, said = read_results(out / name), entries(out)
    assert len(results) == len(said) == len(truth) == 4
    for some, found, result, entry in zip(truth, wanted, results, said, strict=True):
        assert (result.scene, result.image, result.object) == (some.scene, some.image, some.object)
        np.testing.assert_allclose(found.estimate.pose, result.pose, rtol=1e-4, atol=1e-3)  # alone, or in a batch
        np.testing.assert_allclose(matrix(entry), result.pose, atol=1e-9)
        assert (entry["object"], entry["box"]) == (some.object, list(some.box))
        assert result.score == entry["score"]
        assert result.time > 0
    for picture in told(out)["pictures"]:
        drawn = cv2.imread(str(out / picture["overlay"]))
        assert drawn.shape == (480, 640, 3)
        assert has(drawn, BLUE)
        assert has(drawn, ORANGE)
    assert {path.name for path in out.iterdir()} == {name, "poses.json", "overlays"}


def test_only_the_benchmark_s_targets_are_asked_for(made: Path, data: Path, tmp_path: Path) -> None:
    targets = [{"scene_id": 3, "im_id": 1, "obj_id": 3, "inst_count": 1}]
    (data / "test_targets_bop19.json").write_text(json.dumps(targets))
    assert call(made / "my_run-seed0", data, "--split", "test", "--no-overlays", "--out", tmp_path / "a") == 0
    assert [(p["scene"], p["image"], len(p["objects"])) for p in told(tmp_path / "a")["pictures"]] == [(3, 1, 1)]
    assert list((tmp_path / "a").rglob("*.png")) == []
    # of a training split there are no targets
    assert call(made / "my_run-seed0", data, "--split", "train", "--no-overlays", "--out", tmp_path / "b") == 0
    assert len(entries(tmp_path / "b")) == 2


def test_of_a_detector_s_boxes_the_best_are_taken_and_the_truth_s_are_not_looked_at(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [
        (1, 0, 1, [10, 20, 60, 50], 0.2),
        (1, 0, 1, [40, 30, 70, 55], 0.9),
        (1, 0, 7, [40, 30, 70, 55], 0.9),  # an object the estimator does not know
        (3, 1, 3, [100, 60, 80, 80], 0.4),
    ]
    path = write_boxes(tmp_path / "boxes.json", boxes)
    arguments = (made / "my_run-seed0", data, "--split", "test", "--boxes", path, "--no-overlays", "--out")
    assert call(*arguments, tmp_path / "a") == 0
    assert "truth's" not in capsys.readouterr().out
    assert [entry["box"] for entry in entries(tmp_path / "a")] == [[40, 30, 70, 55], [100, 60, 80, 80]]
    (data / "test_targets_bop19.json").unlink()
    assert call(*arguments, tmp_path / "b") == 0
    assert len(entries(tmp_path / "b")) == 3
    # the pictures with truth and without a box are there, and empty
    assert len(told(tmp_path / "b")["pictures"]) == 4


def test_truth_is_not_needed_where_there_are_boxes(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = read_split(data, "test")
    for scene in (data / "test").iterdir():
        (scene / "scene_gt.json").unlink()
    asked = (made / "my_run-seed0", data, "--split", "test")
    assert "no truth (scene_gt.json)" in refused(capsys, tmp_path / "a", *asked)
    boxes = write_boxes(tmp_path / "boxes.json", boxes_of(truth))
    assert call(*asked, "--boxes", boxes, "--no-overlays", "--out", tmp_path / "a") == 0
    assert "ADD" not in capsys.readouterr().out
    assert call(made / "my_run-seed0", made / "made_set", "--split", "test", "--out", tmp_path / "b") == 0
    for one, other in zip(entries(tmp_path / "a"), entries(tmp_path / "b"), strict=True):
        assert one == other


def test_a_folder_of_pictures_gets_the_poses_that_the_data_set_gets(made: Path, tmp_path: Path) -> None:
    truth = [some for some in read_split(made / "made_set", "test") if some.scene == 3]
    shots = tmp_path / "shots"
    shutil.copytree(truth[0].path.parent, shots)
    boxes = write_boxes(tmp_path / "boxes.json", [(0, *box[1:]) for box in boxes_of(truth)])
    fx, fy, cx, cy = (truth[0].K[i] for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    out = tmp_path / "out"
    arguments = (made / "my_run-seed0" / "estimator.pt", shots, "--boxes", boxes, "--out", out)
    assert call(*arguments, "--intrinsics", fx, fy, cx, cy) == 0
    assert (
        call(made / "my_run-seed0", made / "made_set", "--split", "test", "--object", 3, "--out", tmp_path / "b") == 0
    )
    assert entries(out) == entries(tmp_path / "b")
    assert [(r.scene, r.image, r.object) for r in read_results(out / "poses.csv")] == [(0, 0, 3), (0, 1, 3)]
    for picture in told(out)["pictures"]:
        drawn = cv2.imread(str(out / picture["overlay"]))
        assert has(drawn, BLUE)
        assert not has(drawn, ORANGE)
    # one picture, its camera beside it
    shutil.copy(made / "made_set" / "camera.json", shots)
    one = ("--object", 3, "--box", *truth[1].box, "--out", tmp_path / "one", "--models", made / "made_set")
    assert call(made / "my_run-seed0", shots / "000001.jpg", *one) == 0
    assert entries(tmp_path / "one") == entries(out)[1:]


@pytest.fixture
def oracle(made: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """oracle(noise=, missing=): from now on estimates are the truth, of noisy keypoints; but of `missing` objects."""

    def install(noise: float = 0.0, missing: Sequence[int] = ()) -> None:
        truth = {(some.scene, some.image, some.object): some.pose for some in read_split(made / "made_set", "test")}
        draw = np.random.default_rng(0)

        def estimate(self: PoseEstimator, asked: Sequence[Instance], **_: Any) -> Iterator[Estimated]:
            for some in asked:
                points3d = self.keypoints3d[self.objects.index(some.object)].numpy()
                pose = truth[some.scene, some.image, some.object]
                points2d = project(points3d, pose, some.K) + noise * draw.normal(size=(len(points3d), 2))
                deviation = draw.uniform(0.5, 2, points2d.shape)
                pose = np.full((4, 4), np.nan) if some.object in missing else pose
                place = (some.scene, some.image, some.object)
                yield Estimated(predict.Estimate(*place, 0.3, pose), points2d, deviation)

        monkeypatch.setattr(PoseEstimator, "estimate", estimate)

    return install


def project(points3d: np.ndarray, pose: np.ndarray, K: np.ndarray) -> np.ndarray:
    rotvec = cv2.Rodrigues(pose[:3, :3])[0]
    return cv2.projectPoints(points3d, rotvec, pose[:3, 3], K, None)[0][:, 0]


def test_the_pose_in_json_and_how_sure_it_is(made: Path, tmp_path: Path, oracle: Callable[..., None]) -> None:
    oracle(noise=1.0)
    out = tmp_path / "out"
    assert call(made / "my_run-seed0", made / "made_set", "--split", "test", "--no-overlays", "--out", out) == 0
    estimator = load_estimator(made / "my_run-seed0" / "estimator.pt")
    for some, entry in zip(read_split(made / "made_set", "test"), entries(out), strict=True):
        points3d = estimator.keypoints3d[estimator.objects.index(some.object)].numpy()
        pose, found = entry["pose"], matrix(entry)
        np.testing.assert_allclose(found, some.pose, atol=1e-12)
        w, *axis = pose["quat_wxyz"]
        rotvec = 2 * np.arctan2(np.linalg.norm(axis), w) * np.array(axis) / np.linalg.norm(axis)
        np.testing.assert_allclose(cv2.Rodrigues(rotvec)[0], some.pose[:3, :3], atol=1e-9)
        error = project(points3d, some.pose, some.K) - entry["keypoints2d"]
        assert pose["reprojection_rms_px"] == pytest.approx(np.sqrt((error**2).sum(-1).mean()), rel=1e-6)

        def moved(step: np.ndarray, pose: np.ndarray = found) -> np.ndarray:
            turned = pose.copy()
            turned[:3, :3] = cv2.Rodrigues(step[:3])[0] @ pose[:3, :3]
            turned[:3, 3] += step[3:]
            return turned

        # the covariance of weighted least squares, by central differences: residuals are small
        steps = np.diag([1e-5] * 3 + [1e-3] * 3)
        both = [[project(points3d, moved(sign * step), some.K) for sign in (1, -1)] for step in steps]
        J = np.stack([(a - b) / (2 * step.max()) for (a, b), step in zip(both, steps, strict=True)], -1)
        J = (J / np.array(entry["keypoints2d_deviation"])[..., None]).reshape(-1, 6)
        wanted = np.sqrt(np.diag(np.linalg.inv(J.T @ J)))
        np.testing.assert_allclose(pose["rotation_deviation_deg"], np.rad2deg(wanted[:3]), rtol=1e-4)
        np.testing.assert_allclose(pose["t_deviation_mm"], wanted[3:], rtol=1e-4)


def test_a_pose_that_was_not_found_is_null_in_json_absent_from_the_csv_and_wrong(
    made: Path, tmp_path: Path, oracle: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    oracle(missing=[3])
    out = tmp_path / "out"
    assert call(made / "my_run-seed0", made / "made_set", "--split", "test", "--out", out) == 0
    assert [entry["pose"] is None for entry in entries(out)] == [False, False, True, True]
    assert [result.object for result in read_results(next(out.glob("*.csv")))] == [1, 1]
    printed = capsys.readouterr().out
    assert "2 poses of 4 asked for" in printed
    assert re.search(r"\| 1 \| 100.0 \| 100.0 \| 100.0 \|", printed)
    assert re.search(r"\| all instances \| 50.0 \| 50.0 \| 50.0 \|", printed)


def test_the_deviation_of_keypoints_is_in_pixels_of_the_picture(made: Path) -> None:
    estimator = load_estimator(made / "my_run-seed0" / "estimator.pt")
    (some, *_) = read_split(made / "made_set", "test")
    (found,) = estimator.estimate([some], views=1)
    scale = estimator.setup.size / (MARGIN * max(some.box[2:]))
    assert found.deviation.shape == (6, 2)
    assert found.deviation.mean() * scale * found.estimate.score == pytest.approx(1, rel=1e-5)


def test_by_default_it_lies_beside_the_estimator(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "my_run-seed0", tmp_path / "run")
    assert call(run, made / "made_set", "--split", "test", "--no-overlays") == 0
    assert (run / "predictions" / "madeset-test" / "run_madeset-test.csv").is_file()


def test_a_stranger_s_picture_gets_an_orderly_answer(made: Path, tmp_path: Path) -> None:
    try:
        _, cat = read_cat()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    fx, fy, cx, cy = (LINEMOD_K[i] for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    given = ("--intrinsics", fx, fy, cx, cy, "--object", 1, "--box", *cat.box, "--out", tmp_path / "out")
    assert call(made / "my_run-seed0", cat.path, *given) == 0
    (entry,) = entries(tmp_path / "out")
    assert np.isfinite(entry["keypoints2d"]).all()
    assert len(read_results(tmp_path / "out" / "poses.csv")) == (entry["pose"] is not None)
    assert cv2.imread(str(tmp_path / "out" / "overlays" / "000000_000000.png")).shape == (480, 640, 3)


def test_without_a_box_the_object_is_searched_for_in_pictures_and_if_asked_in_data_sets(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "search", lambda estimator, image, asked: (90.0, 60.0, 70.0 + asked.object, 80.0))
    shot = read_split(made / "made_set", "test")[0].path
    common = ("--no-overlays", "--out")
    camera = ("--camera", made / "made_set" / "camera.json", "--object", 1)
    assert call(made / "my_run-seed0", shot, *camera, *common, tmp_path / "a") == 0
    assert "boxes: searched for" in capsys.readouterr().out
    assert [entry["box"] for entry in entries(tmp_path / "a")] == [[90, 60, 71, 80]]
    assert call(made / "my_run-seed0", shot, *camera, "--box", 90, 60, 71, 80, *common, tmp_path / "b") == 0
    assert entries(tmp_path / "a") == entries(tmp_path / "b")
    assert (told(tmp_path / "a")["boxes"], told(tmp_path / "b")["boxes"]) == ("search", "given")
    assert call(made / "my_run-seed0", made / "made_set", "--split", "test", "--search", *common, tmp_path / "c") == 0
    assert {tuple(entry["box"]) for entry in entries(tmp_path / "c")} == {(90, 60, 71, 80), (90, 60, 73, 80)}
    assert "**ADD(-S)**" in capsys.readouterr().out


def test_a_split_of_a_type_is_named_as_the_toolkit_wants_it(made: Path, data: Path, tmp_path: Path) -> None:
    (data / "test").rename(data / "test_all")
    asked = (made / "my_run-seed0", data, "--split", "test_all", "--no-overlays", "--out", tmp_path / "out")
    assert call(*asked) == 0
    assert (tmp_path / "out" / "my-run-seed0_madeset-test-all.csv").is_file()
