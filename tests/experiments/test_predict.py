"""The command line: what it writes of data sets and of pictures, and what it says when it cannot."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from datasets.objects.generated import generate
from datasets.objects.layout import Instance, read_models, read_results, read_split
from datasets.objects.linemod import K as LINEMOD_K
from datasets.objects.linemod import read_cat
from experiments import predict
from experiments.drawing.figures import BLUE, ORANGE, rgb
from experiments.object_poses.crops import MARGIN
from experiments.object_poses.estimator import Estimated, Network, PoseEstimator, load_estimator
from experiments.object_poses.requests import read_boxes, read_camera

OBJECTS = (1, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, made_set, and an estimator that has learned nothing in a run's, my_run-seed0."""
    folder = tmp_path_factory.mktemp("made")
    generate(folder / "made_set", train=1, test=2, objects=OBJECTS, processes=1)
    torch.manual_seed(0)
    (folder / "my_run-seed0").mkdir()
    estimator = PoseEstimator.of_models(Network(32, 6, "resnet10", 8), read_models(folder / "made_set"))
    torch.nn.init.normal_(estimator.network.head, std=1.0)  # or all heatmaps would be flat
    estimator.save(folder / "my_run-seed0" / "estimator.pt")
    return folder


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be damaged."""
    return shutil.copytree(made / "made_set", tmp_path / "made_set")


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "poses.json").read_text())


def entries(out: Path) -> list[dict[str, Any]]:
    """What poses.json has of objects, in order."""
    return [entry for picture in told(out)["pictures"] for entry in picture["objects"]]


def matrix(entry: dict[str, Any]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = entry["pose"]["R"], entry["pose"]["t_mm"]
    return pose


def call(*arguments: object) -> int:
    return predict.main([str(a) for a in arguments])


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    """What stderr says of arguments that cannot be: one line; the exit code is 2, and nothing is written."""
    assert call(*arguments, "--out", out) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert not out.exists()
    return captured.err.strip()


def write_boxes(path: Path, boxes: Sequence[tuple[int, int, int, Sequence[float], float]]) -> Path:
    keys = ("scene_id", "image_id", "category_id", "bbox", "score")
    path.write_text(json.dumps([dict(zip(keys, box, strict=True)) for box in boxes]))
    return path


def boxes_of(instances: Sequence[Instance]) -> list[tuple[int, int, int, Sequence[float], float]]:
    return [(some.scene, some.image, some.object, some.box, 0.5) for some in instances]


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


def test_pictures_that_cannot_be_read_are_reported_and_the_others_done(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = data / "test" / "000001" / "rgb" / "000000.jpg"  # the first: its size is asked for
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert call(made / "my_run-seed0", data, "--split", "test", "--out", tmp_path / "a") == 1
    captured = capsys.readouterr()
    assert f"{damaged}: a picture wanted" in captured.err
    assert "1 of which could not be read" in captured.out
    assert "ADD" in captured.out
    (unread,) = told(tmp_path / "a")["unread"]
    assert unread["path"] == str(damaged)
    assert len(entries(tmp_path / "a")) == len(list((tmp_path / "a").rglob("*.png"))) == 3


def test_a_picture_that_is_not_the_camera_s_or_has_no_pixel_in_the_box_is_reported(made: Path, tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    for name, width in {"1.png": 320, "2.png": 640}.items():
        cv2.imwrite(str(shots / name), np.zeros((240, width, 3), np.uint8))
    shutil.copy(made / "made_set" / "camera.json", shots)
    asked = (made / "my_run-seed0", shots, "--object", 1, "--no-overlays", "--out", tmp_path / "out", "--box")
    assert call(*asked, 10, 10, 50, 50) == 1
    (unread,) = told(tmp_path / "out")["unread"]
    assert unread["error"] == f"{shots / '2.png'}: a picture of 320x240, as its camera's are, wanted, found 640x240"
    assert [picture["image"] for picture in told(tmp_path / "out")["pictures"]] == [1]
    assert call(*asked, 330, 10, 50, 50) == 1
    assert "lies outside the picture of 320x240" in told(tmp_path / "out")["unread"][0]["error"]


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


def test_what_is_stopped_leaves_no_results_and_no_half_files(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = predict._drawn

    def dying(image: np.ndarray, picture: Any, *rest: Any) -> np.ndarray:
        if picture.scene == 3:
            raise KeyboardInterrupt
        return drawn(image, picture, *rest)

    monkeypatch.setattr(predict, "_drawn", dying)
    assert call(made / "my_run-seed0", made / "made_set", "--split", "test", "--out", tmp_path / "out") == 130
    files = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == ["000001_000000.png", "000001_000001.png"]


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


WRONG = {
    "no estimator": ("{made}", "{set}", "--split", "test"),
    "another file for it": ("{set}/camera.json", "{set}", "--split", "test"),
    "no such device": ("{run}", "{set}", "--split", "test", "--device", "cuda:77"),
    "no such object": ("{run}", "{set}", "--split", "test", "--object", "2"),
    "no such split": ("{run}", "{set}", "--split", "val"),
    "no data set": ("{run}", "{shots}", "--split", "test"),
    "a data set without a split": ("{run}", "{set}", "--intrinsics", "1", "1", "0", "0"),
    "a box of a data set": ("{run}", "{set}", "--split", "test", "--box", "1", "2", "3", "4"),
    "nothing there": ("{run}", "{set}/absent.jpg", "--intrinsics", "5", "5", "0", "0", "--box", "1", "2", "3", "4"),
    "no pictures": ("{run}", "{run}", "--intrinsics", "5", "5", "0", "0", "--box", "1", "2", "3", "4"),
    "no camera": ("{run}", "{shots}", "--object", "1", "--box", "1", "2", "3", "4"),
    "two cameras": ("{run}", "{shots}", "--camera", "{set}/camera.json", "--intrinsics", "5", "5", "0", "0"),
    "a camera with no focal length": ("{run}", "{shots}", "--intrinsics", "0", "5", "0", "0"),
    "a camera that is none": ("{run}", "{shots}", "--camera", "{set}/models/models_info.json"),
    "an empty box": ("{run}", "{shots}", "--object", "1", "--camera", "{set}/camera.json", "--box", "1", "2", "0", "4"),
    "several objects": ("{run}", "{shots}", "--camera", "{set}/camera.json", "--box", "1", "2", "3", "4"),
    "two kinds of boxes": ("{run}", "{shots}", "--box", "1", "2", "3", "4", "--boxes", "{set}/camera.json"),
    "boxes that are none": ("{run}", "{set}", "--split", "test", "--boxes", "{set}/camera.json"),
    "boxes of nothing here": ("{run}", "{set}", "--split", "test", "--boxes", "{shots}/far.json"),
}
SAYS = {
    "no estimator": "estimator.pt: the estimator of an object_pose run that has ended wanted, found nothing",
    "another file for it": "camera.json: the estimator of an object_pose run wanted",
    "no such device": "--device cuda:77: ",
    "no such object": "--object: one the estimator knows, [1, 3], wanted, got 2",
    "no such split": "a split 'val' wanted, found test, train",
    "no data set": "a split 'test' wanted, found no folder that holds scenes",
    "a data set without a split": "is a data set in BOP's layout: give --split NAME",
    "a box of a data set": "--box: for pictures; ",
    "nothing there": "absent.jpg: a picture or a folder of pictures wanted, found nothing",
    "no pictures": "images (.bmp, ",
    "no camera": "which camera? Give --intrinsics FX FY CX CY, or --camera FILE",
    "two cameras": "--intrinsics and --camera say the same",
    "a camera with no focal length": "--intrinsics: FX and FY above 0 wanted",
    "a camera that is none": "models_info.json: a finite number wanted for 'fx'",
    "an empty box": "--box: X Y W H with W and H above 0 wanted",
    "several objects": "--object: one of [1, 3] wanted",
    "two kinds of boxes": "--box and --boxes say where objects are: give one",
    "boxes that are none": "camera.json: a list of boxes wanted",
    "boxes of nothing here": "far.json (targets of the test) have none; there: [9]",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_said_in_a_sentence(
    what: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    cv2.imwrite(str(shots / "1.png"), np.zeros((240, 320, 3), np.uint8))
    write_boxes(shots / "far.json", [(0, 0, 9, [1, 2, 3, 4], 1.0)])
    places = {"made": made, "run": made / "my_run-seed0", "set": made / "made_set", "shots": shots}
    assert SAYS[what] in refused(capsys, tmp_path / "out", *(word.format(**places) for word in WRONG[what]))


def test_meshes_of_other_objects_are_refused(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data / "models" / "models_info.json"
    info = json.loads(path.read_text())
    info["3"]["diameter"] *= 1.1
    path.write_text(json.dumps(info))
    said = refused(capsys, tmp_path / "out", made / "my_run-seed0", data, "--split", "test")
    assert re.search(r"object 3 with a diameter of \d+\.\d mm wanted, which the estimator has learned, found one", said)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"bbox": [1, 2, 3]}, "4 finite numbers wanted for 'bbox', found [1, 2, 3]"),
        ({"bbox": [1, 2, 0, 3]}, "w and h above 0 wanted"),
        ({"bbox": [1, 2, float("nan"), 3]}, "4 finite numbers wanted for 'bbox'"),
        ({"scene_id": 1.5}, "a whole number wanted for 'scene_id', found 1.5"),
        ({"score": None}, "a finite number wanted for 'score'"),
        ({"image_id": True}, "a finite number wanted for 'image_id', found True"),
    ],
)
def test_damaged_boxes_are_named(entry: dict[str, Any], says: str, tmp_path: Path) -> None:
    good = {"scene_id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2.5, 3, 4], "score": 1, "time": -1}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([good]))
    assert read_boxes(path) == [(1, 2, 3, (1, 2.5, 3, 4), 1)]
    path.write_text(json.dumps([good, good | entry]))
    with pytest.raises(ValueError, match=re.escape(f"{path}, entry 1: ")) as raised:
        read_boxes(path)
    assert says in str(raised.value)


def test_a_camera_s_file(tmp_path: Path) -> None:
    path = tmp_path / "camera.json"
    path.write_text('{"fx": 500, "fy": 501.5, "cx": 160, "cy": 119, "depth_scale": 0.1}')
    camera = read_camera(path)
    assert camera.K.tolist() == [[500, 0, 160], [0, 501.5, 119], [0, 0, 1]]
    assert camera.size is None
    path.write_text("{")
    with pytest.raises(ValueError, match=re.escape(f"{path}: JSON wanted")):
        read_camera(path)


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


def test_a_depth_picture_that_cannot_be_read_costs_the_scores_alone(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    depth = data / "test" / "000003" / "depth" / "000001.png"
    depth.write_bytes(b"")
    asked = (made / "my_run-seed0", data, "--split", "test", "--no-overlays", "--out", tmp_path / "out")
    assert call(*asked) == 1
    captured = capsys.readouterr()
    assert f"no scores: {depth}: an image wanted" in captured.err
    assert "4 poses of 4 asked for" in captured.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"my-run-seed0_madeset-test.csv", "poses.json"}


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
