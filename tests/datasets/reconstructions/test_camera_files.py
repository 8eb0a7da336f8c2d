"""Files of cameras say what the camera is, in the words of the programs that read them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from datasets.reconstructions.camera_files import CameraFile, write_kalibr, write_opencv, write_ros
from geometry.camera import Model

K = torch.tensor([[500.25, 0, 320.5], [0, 501, 240], [0, 0, 1]], dtype=torch.float64)
CAMERA = CameraFile("front", K, torch.tensor([-0.25, 0.125, 1e-3, -1e-3], dtype=torch.float64), (640, 480))


def test_opencv_reads_it(tmp_path: Path) -> None:
    write_opencv(tmp_path / "camera.yml", CAMERA)
    storage = cv2.FileStorage(str(tmp_path / "camera.yml"), cv2.FILE_STORAGE_READ)
    assert np.array_equal(storage.getNode("camera_matrix").mat(), K.numpy())
    assert storage.getNode("distortion_coefficients").mat().ravel().tolist() == [-0.25, 0.125, 1e-3, -1e-3, 0]
    assert (storage.getNode("image_width").real(), storage.getNode("image_height").real()) == (640, 480)


@pytest.mark.parametrize(
    ("count", "model", "name", "length"),
    [
        (0, "radtan", "plumb_bob", 5),
        (2, "radtan", "plumb_bob", 5),
        (5, "radtan", "plumb_bob", 5),
        (8, "radtan", "rational_polynomial", 8),
        (3, "fisheye", "equidistant", 4),
    ],
)
def test_ros_has_a_name_for_the_lens(tmp_path: Path, count: int, model: str, name: str, length: int) -> None:
    bend = torch.arange(1.0, count + 1).double() / 100
    write_ros(tmp_path / "camera.yaml", CAMERA._replace(distortion=bend, model=model))  # type: ignore[arg-type]
    read = yaml.safe_load((tmp_path / "camera.yaml").read_text())
    assert read["distortion_model"] == name
    assert read["distortion_coefficients"]["data"] == [*bend.tolist(), *[0.0] * (length - count)]
    assert read["camera_matrix"]["data"] == K.flatten().tolist()
    assert np.array_equal(np.reshape(read["projection_matrix"]["data"], (3, 4))[:, :3], K.numpy())


def test_kalibr_has_each_camera_from_the_one_before(tmp_path: Path) -> None:
    sensors = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    sensors[1:, 0, 3] = torch.tensor([-0.1, -0.3])
    write_kalibr(tmp_path / "chain.yaml", [CAMERA._replace(name=f"cam{s}") for s in range(3)], sensors)
    read = yaml.safe_load((tmp_path / "chain.yaml").read_text())
    assert [*read] == ["cam0", "cam1", "cam2"]
    assert "T_cn_cnm1" not in read["cam0"]
    assert np.allclose(np.array(read["cam2"]["T_cn_cnm1"])[:3, 3], [-0.2, 0, 0])
    assert read["cam0"]["intrinsics"] == [500.25, 501, 320.5, 240]
    assert read["cam0"]["distortion_coeffs"] == CAMERA.distortion.tolist()


def test_what_a_format_cannot_say_is_no_file(tmp_path: Path) -> None:
    five, twelve = (CAMERA._replace(distortion=torch.ones(k).double()) for k in (5, 12))
    skewed = K.clone()
    skewed[0, 1] = 1
    with pytest.raises(ValueError, match="at most 8 coefficients wanted, as ROS knows no others, found 12"):
        write_ros(tmp_path / "camera.yaml", twelve)
    with pytest.raises(ValueError, match="four coefficients wanted, as Kalibr knows no others, found 5"):
        write_kalibr(tmp_path / "chain.yaml", [five], torch.eye(4)[None])
    with pytest.raises(ValueError, match="no skew wanted, as Kalibr knows none, found 1"):
        write_kalibr(tmp_path / "chain.yaml", [CAMERA._replace(K=skewed)], torch.eye(4)[None])
    wide = CAMERA._replace(distortion=torch.tensor([0.6, 1.1]), model="eucm")
    for write, kind in ((write_opencv, "OpenCV"), (write_ros, "ROS")):
        with pytest.raises(ValueError, match=f"wanted, as {kind} knows no others, found 'eucm'"):
            write(tmp_path / "camera.yaml", wide)
    with pytest.raises(ValueError, match="wanted, as Kalibr knows no others, found 'division'"):
        write_kalibr(tmp_path / "chain.yaml", [wide._replace(model="division")], torch.eye(4)[None])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("model", "bend", "name", "intrinsics", "coefficients"),
    [
        ("eucm", [0.5, 1.25], ("eucm", "none"), [0.5, 1.25, 500.25, 501, 320.5, 240], []),
        ("double_sphere", [-0.25, 0.5], ("ds", "none"), [-0.25, 0.5, 500.25, 501, 320.5, 240], []),
        ("fov", [0.75], ("pinhole", "fov"), [500.25, 501, 320.5, 240], [0.75]),
    ],
)
def test_kalibr_knows_wide_lenses(
    tmp_path: Path, model: Model, bend: list[float], name: tuple[str, str], intrinsics: list[float], coefficients: list
) -> None:
    camera = CAMERA._replace(distortion=torch.tensor(bend), model=model)
    write_kalibr(tmp_path / "chain.yaml", [camera], torch.eye(4)[None])
    read = yaml.safe_load((tmp_path / "chain.yaml").read_text())["cam0"]
    assert (read["camera_model"], read["distortion_model"]) == name
    assert read["intrinsics"] == intrinsics
    assert read["distortion_coeffs"] == coefficients
