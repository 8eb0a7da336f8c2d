import cv2
import numpy as np
import pytest

from datasets.images.stored_marks import read_corners, read_measured


def test_opencv_corners(real_data):
    views = read_corners(real_data("opencv_corners") / "out_camera_data.yml")
    assert views.points2d.shape == (8, 54, 2)
    assert views.mask.all()
    assert views.image_size == (640, 480)
    assert views.points3d[[1, 9, -1]].tolist() == [[50, 0, 0], [0, 50, 0], [400, 250, 0]]
    # the flags and the start of the stored result: fixed aspect ratio and principal point, no tangential part
    flags = cv2.CALIB_FIX_ASPECT_RATIO | cv2.CALIB_FIX_PRINCIPAL_POINT | cv2.CALIB_ZERO_TANGENT_DIST
    points3d = [views.points3d.numpy().astype(np.float32)] * len(views.points2d)
    points2d = list(views.points2d.numpy().astype(np.float32))
    start = np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]])
    rms, K, distortion, *_ = cv2.calibrateCamera(points3d, points2d, views.image_size, start, None, flags=flags)
    assert rms == pytest.approx(0.38441346, abs=1e-6)
    assert K[[0, 1, 0, 1], [0, 1, 2, 2]] == pytest.approx([657.46697810, 657.46697810, 319.5, 239.5], abs=1e-4)
    assert distortion.ravel() == pytest.approx([-0.418023, 0.507152, 0, 0, -0.578436], abs=1e-5)


def write_yml(path, points2d, capital=False, **changes):
    keys = ["board_Width", "board_Height", "square_Size", "image_Width", "image_Height", "Image_points"]
    values = {"board_width": 4, "board_height": 3, "square_size": 2.5, "image_width": 64, "image_height": 48}
    values |= {"image_points": points2d} | changes
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for key, (name, value) in zip(keys, values.items(), strict=True):
        if value is not None:
            storage.write(key if capital else name, value)
    storage.release()
    return path


@pytest.mark.parametrize("capital", [True, False])
def test_both_spellings_of_the_yml(tmp_path, capital):
    points2d = np.random.default_rng(0).uniform(0, 48, (5, 12, 2)).astype(np.float32)
    views = read_corners(write_yml(tmp_path / "c.yml", points2d, capital), corners=(4, 3))
    assert np.array_equal(views.points2d.numpy(), points2d)
    assert views.image_size == (64, 48)
    assert views.points3d[-1].tolist() == [7.5, 5, 0]
    assert views.names == ("view 0", "view 1", "view 2", "view 3", "view 4")


def test_yml_errors(tmp_path):
    good = np.zeros((2, 12, 2), np.float32)
    path = tmp_path / "c.yml"
    nan = good.copy()
    nan[1, 3, 0] = np.nan
    for changes, message in [
        ({"board_width": None}, "a positive number under 'board_width' wanted, found None"),
        ({"square_size": "large"}, "a positive number under 'square_size' wanted, found None"),
        ({"square_size": -1.0}, "a positive number under 'square_size' wanted, found -1.0"),
        ({"image_points": None}, r"'image_points' of shape \(V, 12, 2\) wanted, found none"),
        ({"image_points": good[0]}, r"'image_points' of shape \(V, 12, 2\) wanted, found shape \(12, 2\)"),
        (
            {"board_width": 5},
            r"'view 0': numbers of shape \(15, 2\) wanted, found float32 of shape \(12, 2\)",
        ),
        ({"image_points": nan}, r"'view 1', row 3: finite numbers wanted"),
    ]:
        write_yml(path, **{"points2d": good, **changes})
        with pytest.raises(ValueError, match=message) as error:
            read_corners(path)
        assert "c.yml" in str(error.value)
    write_yml(path, good)
    with pytest.raises(ValueError, match=r"c\.yml: the file states 2\.5, the argument says 3\.0"):
        read_corners(path, square=3.0)


@pytest.mark.parametrize("text", ["", "hello", "%YAML:1.0\n---\nboard_width: [1, 2\n", "%YAML:1.0\n---\n"])
def test_what_is_no_yml(tmp_path, text):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(ValueError, match=r"c\.yml: "):
        read_corners(tmp_path / "c.yml")


def test_npz_errors(tmp_path):
    path = tmp_path / "c.npz"
    with pytest.raises(FileNotFoundError, match=r"c\.npz: a file wanted"):
        read_corners(path)
    np.savez(path, a=np.zeros((12, 2)), b=np.zeros((11, 2)))
    with pytest.raises(ValueError, match=r"c\.npz: .*wanted as arguments, found \(4, 3\), None and None"):
        read_corners(path, corners=(4, 3))
    with pytest.raises(ValueError, match=r"c\.npz, 'b': numbers of shape \(12, 2\) wanted"):
        read_corners(path, corners=(4, 3), square=1.0, image_size=(64, 48))


# --- lists of points ---

POINTS = """# a corner of a room
a, 0, 0, 0
b 1 0 0   # to the right
c 0 1 0
d 0 0 1
"""
MEASURED = "one.jpg a 10 20\none.jpg c 11.5 21\n\ntwo.jpg, b, 30, 40\n"


def test_measured_points_are_read_in_the_order_of_their_file(tmp_path):
    (tmp_path / "points.txt").write_text(POINTS)
    (tmp_path / "measured.txt").write_text(MEASURED)
    views = read_measured(tmp_path / "points.txt", tmp_path / "measured.txt", (64, 48))
    assert views.names == ("one.jpg", "two.jpg")
    assert views.mask.tolist() == [[True, False, True, False], [False, True, False, False]]
    assert views.points2d[views.mask].tolist() == [[10, 20], [11.5, 21], [30, 40]]
    assert views.points3d.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("points", "measured", "message"),
    [
        (POINTS + "a 2 2 2", MEASURED, r"points\.txt, line 6: another name for each point wanted, found 'a'"),
        (POINTS + "e 2 2", MEASURED, r"points\.txt, line 6: a name and X Y Z wanted, found 'e 2 2'"),
        (POINTS, MEASURED + "one.jpg e 1 2", r"measured\.txt, line 5: a point of .*points\.txt wanted, found 'e'"),
        (POINTS, MEASURED + "one.jpg a 1 2", r"measured\.txt, line 5: each point once an image wanted"),
        (POINTS, MEASURED + "one.jpg b 1 nan", r"measured\.txt, line 5: an image, a point and u v wanted"),
        (POINTS, "# nothing", "points and measured pixels wanted, found 4 and 0"),
    ],
)
def test_what_is_no_list_of_points(tmp_path, points, measured, message):
    (tmp_path / "points.txt").write_text(points)
    (tmp_path / "measured.txt").write_text(measured)
    with pytest.raises(ValueError, match=message):
        read_measured(tmp_path / "points.txt", tmp_path / "measured.txt", (64, 48))
