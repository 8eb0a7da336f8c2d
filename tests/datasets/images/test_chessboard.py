import dataclasses

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.sparse import lil_matrix

from datasets.images.chessboard import Views, detect, in_pairs, read_corners
from geometry import project, se3
from geometry.tasks.stereo_rig import stereo_rig


def calibrate(views: Views, flags=0, K=None):
    """cv2.calibrateCamera: rms, (fx, fy, cx, cy), distortion."""
    points3d = [views.points3d.numpy().astype(np.float32)] * len(views.points2d)
    points2d = list(views.points2d.numpy().astype(np.float32))
    rms, K, distortion, _, _ = cv2.calibrateCamera(points3d, points2d, views.image_size, K, None, flags=flags)
    return rms, K[[0, 1, 0, 1], [0, 1, 2, 2]], distortion.ravel()


def board_image(corners=(6, 4), size=(640, 480), square=50, origin=(100, 80)):
    """A fronto-parallel board; its inner corner (i, j) lies at origin + square (i + 1, j + 1) - 0.5."""
    image = np.full(size[::-1], 255, np.uint8)
    for i in range(corners[0] + 1):
        for j in range(corners[1] + 1):
            x, y = origin[0] + square * i, origin[1] + square * j
            if (i + j) % 2 == 0:
                image[y : y + square, x : x + square] = 0
    return image


# --- real data ---


def test_opencv_chess_left(real_data):
    views = detect(real_data("opencv_chess_left"))
    assert views.points2d.shape == (13, 54, 2)
    assert views.points2d.dtype == torch.float64
    assert views.image_size == (640, 480)
    assert views.names[0] == "left01.jpg"
    assert views.left_out == ()
    rms, intrinsics, distortion = calibrate(views)
    assert rms == pytest.approx(0.1954, abs=5e-5)
    assert intrinsics == pytest.approx([532.83, 532.95, 342.49, 233.86], abs=0.01)
    assert distortion == pytest.approx([-0.2809, 0.0252, 0.0012, -0.0001, 0.1635], abs=1e-4)


def test_a_window_that_reaches_the_neighbours_spoils_a_view(real_data):
    assert calibrate(detect(real_data("opencv_chess_left"), window=11))[0] == pytest.approx(0.409, abs=5e-4)


@pytest.mark.slow
def test_sony_chess_images_give_the_stored_corners(real_data):
    folder = real_data("sony_chess")
    stored = read_corners(folder / "corners_6x4_opencv.npz", corners=(6, 4), square=30.0, image_size=(640, 480))
    found = detect(folder, corners=(6, 4), square=30.0)
    assert stored.points2d.shape == (13, 24, 2)
    assert stored.names == found.names
    assert torch.equal(stored.points3d, found.points3d)
    torch.testing.assert_close(found.points2d, stored.points2d, rtol=0, atol=1e-3)
    rms, intrinsics, distortion = calibrate(stored, cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K3)
    assert rms == pytest.approx(0.16245, abs=1e-5)
    assert intrinsics == pytest.approx([700.931, 698.550, 307.777, 247.467], abs=2e-3)
    assert distortion[:2] == pytest.approx([-0.2555, 0.1097], abs=1e-4)


def test_opencv_corners(real_data):
    views = read_corners(real_data("opencv_corners") / "out_camera_data.yml")
    assert views.points2d.shape == (8, 54, 2)
    assert views.image_size == (640, 480)
    assert views.points3d[[1, 9, -1]].tolist() == [[50, 0, 0], [0, 50, 0], [400, 250, 0]]
    # the flags and the start of the stored result: fixed aspect ratio and principal point, no tangential part
    flags = cv2.CALIB_FIX_ASPECT_RATIO | cv2.CALIB_FIX_PRINCIPAL_POINT | cv2.CALIB_ZERO_TANGENT_DIST
    K = np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]])
    rms, intrinsics, distortion = calibrate(views, flags, K)
    assert rms == pytest.approx(0.38441346, abs=1e-6)
    assert intrinsics == pytest.approx([657.46697810, 657.46697810, 319.5, 239.5], abs=1e-4)
    assert distortion == pytest.approx([-0.418023, 0.507152, 0, 0, -0.578436], abs=1e-5)


def fisheye_start(points3d, points2d):
    """Pose of a board from an equidistant camera (f 190, centre of the image): DLT between board and rays."""
    m = (points2d - [320, 320]) / 190
    theta = np.linalg.norm(m, axis=-1, keepdims=True)
    rays = np.concatenate([m / theta * np.sin(theta), np.cos(theta)], axis=-1)
    plane = np.column_stack([points3d[:, :2], np.ones(len(points3d))])
    cross = [np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) for x, y, z in rays]
    H = np.linalg.svd(np.vstack([np.kron(c, p) for c, p in zip(cross, plane, strict=True)]))[2][-1].reshape(3, 3)
    H *= np.sign(((plane @ H.T) * rays).sum()) / np.linalg.norm(H[:, 0])
    u, _, vt = np.linalg.svd(np.column_stack([H[:, 0], H[:, 1], np.cross(H[:, 0], H[:, 1])]))
    return np.concatenate([cv2.Rodrigues(u @ vt)[0].ravel(), H[:, 2]])


def kannala_brandt(x, points3d, V):
    """(V,N,2) pixels and (V,N) angles from the axis; x = fx, fy, cx, cy, k1…k4, then rotvec and t a view."""
    fx, fy, cx, cy, k1, k2, k3, k4 = x[:8]
    poses = x[8:].reshape(V, 6)
    p = np.stack([points3d @ cv2.Rodrigues(pose[:3])[0].T + pose[3:] for pose in poses])
    r = np.hypot(p[..., 0], p[..., 1])
    theta = np.arctan2(r, p[..., 2])
    t2 = theta**2
    scale = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))) / r
    return np.stack([fx * scale * p[..., 0] + cx, fy * scale * p[..., 1] + cy], axis=-1), theta


def test_fisheye_chess(real_data):
    """Every board is found, and an independent Kannala-Brandt fit comes to the reference."""
    views = detect(real_data("fisheye_chess"), corners=(6, 4))
    V = 26
    assert views.points2d.shape == (V, 24, 2)
    assert views.names == tuple(f"{i}.jpg" for i in range(1, V + 1))  # natural order
    assert views.left_out == ()
    assert views.image_size == (640, 720)
    points2d, points3d = views.points2d.numpy(), views.points3d.numpy()
    x0 = np.concatenate([[190, 190, 320, 320, 0, 0, 0, 0], *(fisheye_start(points3d, p) for p in points2d)])
    sparsity = lil_matrix((V * 48, 8 + 6 * V), dtype=int)
    sparsity[:, :8] = 1
    for v in range(V):
        sparsity[48 * v : 48 * (v + 1), 8 + 6 * v : 14 + 6 * v] = 1
    fit = least_squares(
        lambda x: (kannala_brandt(x, points3d, V)[0] - points2d).ravel(),
        x0,
        jac_sparsity=sparsity,
        x_scale="jac",
    )
    theta = kannala_brandt(fit.x, points3d, V)[1]
    assert np.sqrt(2 * fit.cost / (V * 24)) == pytest.approx(0.2049, abs=1e-3)  # reference 0.2097
    assert fit.x[:4] == pytest.approx([189.910, 189.771, 318.724, 319.488], abs=0.05)
    assert fit.x[4:8] == pytest.approx([-0.017135, 0.018802, -0.008771, 0.000477], abs=5e-4)
    assert np.degrees(theta.max()) == pytest.approx(92.5, abs=0.1)
    beyond = [views.names[v] for v in range(V) if theta[v].max() > np.pi / 2]
    assert beyond == ["4.jpg", "5.jpg"]


def test_fisheye_chess_with_opencv(real_data):
    """OpenCV's fisheye model ends at 90 degrees: without the two views beyond, its own fit agrees."""
    views = detect(real_data("fisheye_chess"), corners=(6, 4))
    within = [v for v, name in enumerate(views.names) if name not in ("4.jpg", "5.jpg")]
    K = np.array([[190.0, 0, 320], [0, 190, 320], [0, 0, 1]])  # OpenCV's own start fails on this field of view
    flags = 0
    for name in ("RECOMPUTE_EXTRINSIC", "FIX_SKEW", "USE_INTRINSIC_GUESS"):
        # OpenCV 5 moved the constants out of cv2.fisheye, with other values
        flags |= getattr(cv2.fisheye, f"CALIB_{name}", None) or getattr(cv2, f"CALIB_{name}")
    rms, K, *_ = cv2.fisheye.calibrate(
        [views.points3d.numpy()[None]] * len(within),
        [views.points2d[v].numpy()[None] for v in within],
        views.image_size,
        K,
        np.zeros((4, 1)),
        flags=flags,
        criteria=(cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 200, 1e-10),
    )
    assert rms == pytest.approx(0.1995, abs=1e-3)
    assert K[[0, 1, 0, 1], [0, 1, 2, 2]] == pytest.approx([190.15, 190.01, 318.57, 319.82], abs=0.05)


# --- images made here ---


@pytest.mark.slow
def test_corners_of_a_drawn_board(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), board_image())
    views = detect(tmp_path, corners=(6, 4), square=2.0)
    # (0, 0) is the centre of the first pixel, so the edge between pixels 149 and 150 lies at 149.5
    expected = torch.tensor([100.0, 80]) + 50 * (views.points3d[:, :2] / 2 + 1) - 0.5
    found = views.points2d[0]
    if (found[0] - expected[0]).norm() > 1:  # this board looks the same turned by 180 degrees
        found = found.flip(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert views.points3d[:7].tolist() == [*([2.0 * i, 0, 0] for i in range(6)), [0, 2, 0]]


def test_what_is_left_out_and_why(tmp_path):
    cv2.imwrite(str(tmp_path / "view10.png"), board_image())
    cv2.imwrite(str(tmp_path / "view2.png"), board_image(origin=(150, 100)))
    cv2.imwrite(str(tmp_path / "view3.png"), board_image(size=(800, 600)))
    cv2.imwrite(str(tmp_path / "view4.png"), board_image(corners=(6, 3)))
    (tmp_path / "notes.txt").write_text("no image, and no matter")
    views = detect(tmp_path, corners=(6, 4))
    assert views.names == ("view2.png", "view10.png")
    assert views.left_out == (
        ("view3.png", "image size (800, 600), most images have (640, 480)"),
        ("view4.png", "no full board of 6 x 4 inner corners found"),
    )
    cv2.imwrite(str(tmp_path / "view1.png"), board_image(size=(400, 280), origin=(20, 20)))  # a thumbnail in front
    assert torch.equal(detect(tmp_path, corners=(6, 4)).points2d, views.points2d)
    listed = detect([tmp_path / "view10.png", str(tmp_path / "view2.png")], corners=(6, 4))
    assert listed.names == ("view10.png", "view2.png")
    assert torch.equal(listed.points2d, views.points2d.flip(0))


def test_detect_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing: no such folder"):
        detect(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"a\.png: a file wanted"):
        detect([tmp_path / "a.png"])
    with pytest.raises(ValueError, match=r"images .* wanted, found none"):
        detect(tmp_path)
    with pytest.raises(ValueError, match="found an empty list"):
        detect([])
    cv2.imwrite(str(tmp_path / "a.png"), board_image())
    with pytest.raises(ValueError, match=r"a full board of 9 x 6 inner corners wanted .* found in none of 1"):
        detect(tmp_path)
    with pytest.raises(ValueError, match="window: a positive number"):
        detect(tmp_path, window=0)
    with pytest.raises(ValueError, match="square: a positive length"):
        detect(tmp_path, square=0.0)
    with pytest.raises(ValueError, match="corners: at least 3"):
        detect(tmp_path, corners=(9, 2))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: an image wanted, found 8 bytes"):
        detect(tmp_path)


# --- stored corners ---


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


# --- two cameras ---


def rig_views(corners, turned):
    """What two cameras 120 mm apart see of a board in four poses, `turned` by 180 degrees in some of the second."""
    y, x = torch.meshgrid(*(30 * torch.arange(n, dtype=torch.float64) for n in corners[::-1]), indexing="ij")
    points3d = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    step = torch.randn(4, 6, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 0.2, 0.3, 30, 30, 50])
    target = se3.from_rotvec_t(step + torch.tensor([0, 0, 0, -60, -40, 700]))
    rig = se3.from_rotvec_t(torch.tensor([0.02, -0.2, 0.03, -120, 0, 0], dtype=torch.float64))
    one, two = (project(points3d, poses, K) for poses in (target, rig @ target))
    for v in turned:
        two[v] = two[v].flip(0)
    views = [
        Views(seen, points3d, (640, 480), tuple(f"{name}{v:02d}.jpg" for v in range(4)))
        for name, seen in (("left", one), ("right", two))
    ]
    return *views, K.expand(2, 3, 3), rig


@pytest.mark.parametrize("corners", [(6, 4), (5, 3)])
def test_a_board_that_is_symmetric_is_the_same_way_in_both_cameras(corners):
    one, two, K, rig = rig_views(corners, turned=(1, 2))
    two = dataclasses.replace(two, points2d=two.points2d[[3, 1, 2]], names=tuple(two.names[v] for v in (3, 1, 2)))
    first, second = in_pairs(one, two, corners)
    assert first.names == ("left01.jpg", "left02.jpg", "left03.jpg")
    assert second.names == ("right01.jpg", "right02.jpg", "right03.jpg")
    found = stereo_rig(torch.stack([first.points2d, second.points2d]), first.points3d, K)
    torch.testing.assert_close(found.x[0][0], rig, rtol=0, atol=1e-6)


def test_a_board_with_a_way_of_its_own_is_left_as_it_was_found():
    one, two, *_ = rig_views((6, 5), turned=(1,))
    assert in_pairs(one, two, (6, 5))[1].points2d.equal(two.points2d)


def test_what_does_not_belong_together_is_named():
    one, two, *_ = rig_views((6, 4), turned=())
    with pytest.raises(ValueError, match="views of one board of 4 x 5 corners wanted"):
        in_pairs(one, two, (4, 5))
    with pytest.raises(ValueError, match="with the same numbers wanted"):
        in_pairs(one, dataclasses.replace(two, names=tuple("abcd")), (6, 4))
    with pytest.raises(ValueError, match="names: other numbers for each view wanted"):
        in_pairs(one, dataclasses.replace(two, names=("a1", "b1", "c2", "c3")), (6, 4))
    quarter = torch.stack([-two.points2d[..., 1], two.points2d[..., 0]], -1)
    with pytest.raises(ValueError, match=r"left00\.jpg, right00\.jpg: rows of the board within 60 degrees"):
        in_pairs(one, dataclasses.replace(two, points2d=quarter), (6, 4))
