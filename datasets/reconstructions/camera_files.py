"""Files of calibrated cameras, as OpenCV, ROS and Kalibr read them.

What a format cannot say raises ValueError naming it: nothing is left out of a camera in silence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from datasets.files import replacing
from geometry.camera import Model, intrinsics_from_matrix

__all__ = ["CameraFile", "write_kalibr", "write_opencv", "write_ros"]


class CameraFile(NamedTuple):
    """A camera: its name, K (3,3), distortion (k,) of `model` in OpenCV's order, image_size (width, height) px."""

    name: str
    K: Tensor
    distortion: Tensor
    image_size: tuple[int, int]
    model: Model = "radtan"

    def coefficients(self, count: int) -> list[float]:
        """The distortion with zeros behind it, of `count` numbers."""
        return [*self.distortion.tolist(), *[0.0] * (count - len(self.distortion))]


def write_opencv(path: Path, camera: CameraFile) -> None:
    """A .yml for cv2.FileStorage with the names of OpenCV's calibration sample."""
    import cv2

    _known(camera, "OpenCV", ("radtan", "fisheye"))
    with replacing(path) as temporary:
        storage = cv2.FileStorage(str(temporary), cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_FORMAT_YAML)
        storage.write("image_width", camera.image_size[0])
        storage.write("image_height", camera.image_size[1])
        storage.write("fisheye_model", int(camera.model == "fisheye"))
        storage.write("camera_matrix", camera.K.double().cpu().numpy())
        least = 4 if camera.model == "fisheye" else 5
        columns = torch.tensor(camera.coefficients(least), dtype=torch.float64)[:, None]
        storage.write("distortion_coefficients", columns.numpy())
        storage.release()


def write_ros(path: Path, camera: CameraFile) -> None:
    """A camera_info .yaml: plumb_bob, rational_polynomial or equidistant."""
    _known(camera, "ROS", ("radtan", "fisheye"))
    count = len(camera.distortion)
    if camera.model == "fisheye":
        model, count = "equidistant", 4
    elif count <= 5:
        model, count = "plumb_bob", 5
    elif count == 8:
        model = "rational_polynomial"
    else:
        raise ValueError(f"distortion: at most 8 coefficients wanted, as ROS knows no others, found {count}")
    width, height = camera.image_size
    K = camera.K.double().cpu()

    def matrix(values: Tensor) -> dict[str, Any]:
        return {"rows": values.shape[0], "cols": values.shape[1], "data": values.flatten().tolist()}

    content = {
        "image_width": width, "image_height": height, "camera_name": camera.name, "camera_matrix": matrix(K),
        "distortion_model": model,
        "distortion_coefficients": {"rows": 1, "cols": count, "data": camera.coefficients(count)},
        "rectification_matrix": matrix(torch.eye(3)), "projection_matrix": matrix(torch.cat([K, torch.zeros(3, 1)], 1)),
    }  # fmt: skip
    _write(path, content)


_KALIBR = {
    "radtan": ("pinhole", "radtan", 4),
    "fisheye": ("pinhole", "equidistant", 4),
    "fov": ("pinhole", "fov", 1),
    "eucm": ("eucm", "none", 0),
    "double_sphere": ("ds", "none", 0),
}
"""Kalibr's names of a camera and of its distortion, and how many coefficients that has."""


def write_kalibr(path: Path, cameras: Sequence[CameraFile], sensor_from_rig: Tensor) -> None:
    """A camchain .yaml of S cameras and how they are mounted: sensor_from_rig (S,4,4)."""
    content: dict[str, Any] = {}
    for s, camera in enumerate(cameras):
        _known(camera, "Kalibr", tuple(_KALIBR))
        extra = camera.distortion[4:]
        if (extra != 0).any():
            raise ValueError(f"distortion: four coefficients wanted, as Kalibr knows no others, found {4 + len(extra)}")
        if camera.K[0, 1] != 0:
            raise ValueError(f"K: no skew wanted, as Kalibr knows none, found {float(camera.K[0, 1])}")
        model, bend, count = _KALIBR[camera.model]
        intrinsics, coefficients = intrinsics_from_matrix(camera.K).tolist(), camera.coefficients(count)[:count]
        if bend == "none":  # of a lens that is no bent pinhole, the coefficients come first
            intrinsics, coefficients = [*camera.coefficients(2), *intrinsics], []
        content[f"cam{s}"] = {
            "camera_model": model, "intrinsics": intrinsics, "distortion_model": bend,
            "distortion_coeffs": coefficients, "resolution": list(camera.image_size),
            "rostopic": f"/{camera.name}/image_raw",
        }  # fmt: skip
        if s > 0:
            before = torch.linalg.inv(sensor_from_rig[s - 1].double().cpu())
            content[f"cam{s}"]["T_cn_cnm1"] = (sensor_from_rig[s].double().cpu() @ before).tolist()
    _write(path, content)


def _known(camera: CameraFile, kind: str, models: tuple[str, ...]) -> None:
    if camera.model not in models:
        raise ValueError(f"model: one of {models} wanted, as {kind} knows no others, found {camera.model!r}")


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120))
