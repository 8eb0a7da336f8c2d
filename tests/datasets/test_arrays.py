"""Images are read by one function, and as the sensor has them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.arrays import read_image
from datasets.images.targets import chessboard
from datasets.images.views import detect

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["photograph.jpg", "photograph.png", "photograph.tif"])
@pytest.mark.parametrize("kind", ["color", "grey", "stored"])
def test_exif_does_not_turn_what_k_is_of(tmp_path: Path, name: str, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3)).astype(np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        found = read_image(tmp_path / name, kind)
        if orientation == 1:
            plain = found
        np.testing.assert_array_equal(found, plain)
    assert plain.shape[:2] == (5, 9)


def test_colours_are_red_green_blue(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "some.png")
    np.testing.assert_array_equal(read_image(tmp_path / "some.png"), pixels)


def test_corners_of_a_photograph_taken_upright_are_the_sensor_s(tmp_path: Path) -> None:
    board = np.kron(np.indices((7, 10)).sum(0) % 2, np.ones((30, 30))).astype(np.uint8) * 255
    board = cv2.copyMakeBorder(board, 40, 40, 40, 40, cv2.BORDER_CONSTANT, value=255)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, said in {"a.jpg": None, "b.jpg": exif}.items():
        Image.fromarray(board).save(tmp_path / name, quality=95, **({"exif": said} if said else {}))
    views = detect(tmp_path, chessboard((9, 6)))
    assert views.image_size == (380, 290)
    assert views.points2d[0].equal(views.points2d[1])


def test_nothing_else_reads_images() -> None:
    """But for `exif`, which reads what stands before the pixels."""
    code = [path for room in ("geometry", "datasets", "experiments") for path in (ROOT / room).rglob("*.py")]
    names = ("imread", "imdecode", "Image.open")
    reading = [path.name for path in code if any(name in path.read_text() for name in names)]
    assert sorted(reading) == ["arrays.py", "exif.py"]


def test_a_damaged_tiff_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.tif"
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (whole[:3], whole[:9], whole[:4] + b"\xff" * 4 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"some\.tif: an image wanted, found"):
            read_image(path)
