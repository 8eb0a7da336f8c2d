"""Tracks of a COLMAP database that pycolmap writes, and of texts."""

from pathlib import Path

import numpy as np
import pytest

from datasets.images.track_files import is_database, read_database, read_track_text


def database(path: Path, *, prior: bool = True, other_size: bool = False) -> Path:
    """Three images with 40 keypoints: place k of image v matches place k of image v + 1; image c.jpg comes first."""
    pycolmap = pytest.importorskip("pycolmap")
    with pycolmap.Database.open(path) as db:
        for number, name in enumerate(("c.jpg", "a.jpg", "b.jpg"), start=1):
            small = other_size and name == "c.jpg"
            size = {"width": 320, "height": 240} if small else {"width": 640, "height": 480}
            camera = pycolmap.Camera(model="SIMPLE_RADIAL", params=[700.0, 320, 240, 0.1], camera_id=number, **size)
            camera.has_prior_focal_length = prior
            db.write_camera(camera, use_camera_id=True)
            image = pycolmap.Image(name=name, camera_id=number, image_id=number)
            db.write_image(image, use_image_id=True)
            db.write_keypoints(number, np.full((40, 2), 10.0 * number) + np.arange(40)[:, None])
        for pair in ((1, 2), (2, 3)):
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = 3
            geometry.inlier_matches = np.tile(np.arange(40, dtype=np.uint32)[:, None], 2)
            db.write_two_view_geometry(*pair, geometry)
    return path


@pytest.mark.slow
def test_matches_of_a_database_are_linked(tmp_path: Path) -> None:
    path = database(tmp_path / "database.db")
    assert is_database(path)
    tracks, focal = read_database(path)
    assert tracks.names == ("a.jpg", "b.jpg", "c.jpg")
    assert tracks.image_size == (640, 480)
    assert len(tracks.points2d) == 120
    assert int(tracks.point_index.max()) == 39
    # COLMAP counts from the corner of the first pixel
    first = tracks.points2d[tracks.point_index == tracks.point_index[0]]
    assert sorted((first[:, 0] - first[:, 0].min()).tolist()) == [0, 10, 20]
    assert (tracks.points2d % 1 == 0.5).all()
    assert tracks.left_out == ()
    assert focal is not None
    assert focal.px == 700


@pytest.mark.slow
def test_another_size_is_left_out_and_no_prior_is_none(tmp_path: Path) -> None:
    tracks, focal = read_database(database(tmp_path / "database.db", prior=False, other_size=True))
    assert tracks.left_out == (("c.jpg", "image size (320, 240), most images have (640, 480)"),)
    assert set(tracks.camera_index.tolist()) == {0, 1}
    assert focal is None


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    path.write_bytes(b"SQLite format 3\0 and then nothing")
    assert is_database(path)
    with pytest.raises(ValueError, match=r"database\.db: a COLMAP database wanted"):
        read_database(path)
    path.write_bytes(b"3 4 5")
    assert not is_database(path)


TEXT = """image,point,u,v
b.jpg, p1, 1.5, 2   # a remark
a.jpg, p1, 3, 4

b.jpg, p2, 5, 6
a.jpg  p2  7  8
"""


def test_a_text_with_or_without_heading(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in (TEXT, TEXT.partition("\n")[2]):
        path.write_text(text)
        tracks = read_track_text(path, (640, 480))
        assert tracks.names == ("b.jpg", "a.jpg")
        assert tracks.camera_index.tolist() == [0, 1, 0, 1]
        assert tracks.point_index.tolist() == [0, 0, 1, 1]
        assert tracks.points2d.tolist() == [[1.5, 2], [3, 4], [5, 6], [7, 8]]
        assert tracks.image_size == (640, 480)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv: lines of image, point, u and v wanted, found none"),
        ("a p 1", r"a\.csv, line 1: image, point, u and v wanted, found 'a p 1'"),
        ("a p 1 2\na p x 2", r"a\.csv, line 2: a number wanted for u, found 'x'"),
        ("a p 1 2\na p 1 nan", r"a\.csv, line 2: a finite number wanted for v"),
        ("a p 1 2\na p 3 4", r"a\.csv, line 2: a point once an image wanted"),
    ],
)
def test_text_errors(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_track_text(tmp_path / "a.csv", (640, 480))
