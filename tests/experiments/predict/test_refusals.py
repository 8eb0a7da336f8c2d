"""What the command line says of damaged files, and of what cannot be."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from experiments import predict
from experiments.object_poses.requests import read_boxes, read_camera
from tests.experiments.predict.asking import call, entries, refused, told, write_boxes

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver


def test_pictures_that_cannot_be_read_are_reported_and_the_others_done(
    made: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = data / "test" / "000001" / "rgb" / "000000.jpg"  # the first: its size is asked for
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert call(made / "my_run-seed0", data, "--split", "test", "--out", tmp_path / "a") == 1
    captured = capsys.readouterr()
    assert f"{damaged}: an image wanted" in captured.err
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


WRONG = {
    "no estimator": ("{made}", "{set}", "--split", "test"),
    "an estimator that is nearly named so": ("{made}/my_rum-seed0", "{set}", "--split", "test"),
    "a mistyped option": ("{run}", "{set}", "--split", "test", "--boxs", "3"),
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
    "an estimator that is nearly named so": "wanted, found nothing; did you mean {made}/my_run-seed0?",
    "a mistyped option": "predict has no option --boxs; did you mean --boxes?",
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
    said = refused(capsys, tmp_path / "out", *(word.format(**places) for word in WRONG[what]))
    assert SAYS[what].replace("{made}", str(made)) in said


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
