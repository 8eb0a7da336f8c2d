"""Focal lengths out of EXIF, from files that are written here tag by tag."""

import math
from pathlib import Path

import pytest
from PIL import Image

from datasets.images.exif import read_focal_length, usual_focal_length

FILM = math.hypot(36, 24)
LENGTH, EQUIVALENT, WIDTH, HEIGHT, DENSITY, UNIT = 0x920A, 0xA405, 0xA002, 0xA003, 0xA20E, 0xA210


def photograph(path: Path, size=(600, 400), camera=None, **tags) -> Path:
    image = Image.new("RGB", size, "grey")
    exif = Image.Exif()
    for tag, value in zip((0x010F, 0x0110), camera or (), strict=False):
        exif[tag] = value
    exif.get_ifd(0x8769).update({globals()[name]: value for name, value in tags.items()})
    image.save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_the_equivalent_for_film_comes_first(tmp_path: Path, suffix: str) -> None:
    found = read_focal_length(photograph(tmp_path / f"a{suffix}", EQUIVALENT=36, LENGTH=5.0, DENSITY=999.0))
    assert found is not None
    # the shape of the picture is that of film, whose width is 36 mm
    assert found.px == pytest.approx(600)
    assert "36 mm for 35 mm film" in found.source


@pytest.mark.parametrize(("unit", "per_mm"), [(2, 1 / 25.4), (3, 0.1), (4, 1.0), (None, 1 / 25.4)])
def test_pixels_per_length_of_the_sensor(tmp_path: Path, unit: int | None, per_mm: float) -> None:
    tags = {"LENGTH": 50.0, "DENSITY": 12.0 / per_mm, "EQUIVALENT": 0} | ({} if unit is None else {"UNIT": unit})
    found = read_focal_length(photograph(tmp_path / "a.jpg", **tags))
    assert found is not None
    assert found.px == pytest.approx(600, rel=1e-6)


def test_a_table_knows_the_sensors_of_cameras(tmp_path: Path) -> None:
    pytest.importorskip("lensfunpy")
    camera = ("NIKON CORPORATION", "NIKON D90")
    found = read_focal_length(photograph(tmp_path / "a.jpg", camera=camera, LENGTH=18.0))
    assert found is not None
    # Nikon's data sheet: a sensor of 23.6 x 15.8 mm
    assert found.px == pytest.approx(18 * math.hypot(600, 400) / math.hypot(23.6, 15.8), rel=0.01)
    assert "NIKON D90" in found.source
    assert read_focal_length(photograph(tmp_path / "b.jpg", camera=("Nobody", "Nothing"), LENGTH=18.0)) is None


def test_a_scaled_picture_and_a_part_of_one(tmp_path: Path) -> None:
    whole = {"EQUIVALENT": 36, "WIDTH": 6000, "HEIGHT": 4000}
    scaled = read_focal_length(photograph(tmp_path / "scaled.jpg", **whole))
    upright = read_focal_length(photograph(tmp_path / "upright.jpg", size=(400, 600), **whole))
    part = read_focal_length(photograph(tmp_path / "part.jpg", size=(600, 600), **whole))
    assert scaled is not None
    assert upright is not None
    assert part is not None
    assert scaled.px == pytest.approx(600)
    assert upright.px == pytest.approx(600)
    assert part.px == pytest.approx(6000)


@pytest.mark.parametrize("tags", [{}, {"EQUIVALENT": 0}, {"LENGTH": 0.0}, {"DENSITY": 100.0}])
def test_what_is_not_told_is_not_known(tmp_path: Path, tags: dict) -> None:
    assert read_focal_length(photograph(tmp_path / "a.jpg", **tags)) is None


def test_most_photographs_and_those_of_another_zoom(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{mm}-{k}.jpg", EQUIVALENT=mm) for mm, k in ((36, 0), (36, 1), (70, 0))]
    paths.append(photograph(tmp_path / "none.jpg"))
    usual, other = usual_focal_length(paths)
    assert usual is not None
    assert usual.px == pytest.approx(600)
    assert list(other) == ["70-0.jpg"]
    assert "1167 px by EXIF, most have 600" in other["70-0.jpg"]
    assert usual_focal_length(paths[3:]) == (None, {})


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.jpg: an image wanted"):
        read_focal_length(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"b\.jpg"):
        read_focal_length(tmp_path / "b.jpg")
