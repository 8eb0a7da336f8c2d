import dataclasses

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.sparse import lil_matrix

from datasets.images.stored_marks import read_corners
from datasets.images.targets import chessboard, chessboard_points
from datasets.images.views import Views, detect, detect_cameras, in_rig
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


@pytest.mark.slow
def test_opencv_chess_left(real_data):
    views = detect(real_data("opencv_chess_left"), chessboard((9, 6)))
    assert views.points2d.shape == (13, 54, 2)
    assert views.points2d.dtype == torch.float64
    assert views.image_size == (640, 480)
    assert views.names[0] == "left01.jpg"
    assert views.left_out == ()
    assert views.notes == ()
    # corners by cornerSubPix (window 5): 0.1954
    rms, intrinsics, distortion = calibrate(views)
    assert rms < 0.16
    assert intrinsics == pytest.approx([532.83, 532.95, 342.49, 233.86], abs=1.0)
    assert distortion[:2] == pytest.approx([-0.2809, 0.0252], abs=0.02)


@pytest.mark.slow
def test_sony_chess_images_give_the_stored_corners(real_data):
    folder = real_data("sony_chess")
    stored = read_corners(folder / "corners_6x4_opencv.npz", corners=(6, 4), square=30.0, image_size=(640, 480))
    found = detect(folder, chessboard((6, 4), 30.0))
    assert stored.points2d.shape == (13, 24, 2)
    assert stored.names == found.names
    assert torch.equal(stored.points3d, found.points3d)
    torch.testing.assert_close(found.points2d, stored.points2d, rtol=0, atol=1.0)  # stored: cornerSubPix
    rms, intrinsics, distortion = calibrate(stored, cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K3)
    assert rms == pytest.approx(0.16245, abs=1e-5)
    assert intrinsics == pytest.approx([700.931, 698.550, 307.777, 247.467], abs=2e-3)
    assert distortion[:2] == pytest.approx([-0.2555, 0.1097], abs=1e-4)


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


@pytest.mark.slow
def test_fisheye_chess(real_data):
    """Every board is found, and an independent Kannala-Brandt fit comes to the reference."""
    views = detect(real_data("fisheye_chess"), chessboard((6, 4)))
    V = 26
    assert views.points2d.shape == (V, 24, 2)
    assert views.names == tuple(f"{i}.jpg" for i in range(1, V + 1))  # natural order
    assert views.left_out == ()
    assert views.image_size == (640, 720)
    points2d, points3d, mask = views.points2d.numpy(), views.points3d.numpy(), views.mask.numpy()
    assert mask.sum() >= 0.98 * mask.size
    starts = [fisheye_start(points3d[m], p[m]) for p, m in zip(points2d, mask, strict=True)]
    x0 = np.concatenate([[190, 190, 320, 320, 0, 0, 0, 0], *starts])
    sparsity = lil_matrix((V * 48, 8 + 6 * V), dtype=int)
    sparsity[:, :8] = 1
    for v in range(V):
        sparsity[48 * v : 48 * (v + 1), 8 + 6 * v : 14 + 6 * v] = 1
    fit = least_squares(
        lambda x: (mask[..., None] * (kannala_brandt(x, points3d, V)[0] - points2d)).ravel(),
        x0,
        jac_sparsity=sparsity,
        x_scale="jac",
    )
    theta = kannala_brandt(fit.x, points3d, V)[1]
    assert np.sqrt(2 * fit.cost / mask.sum()) < 0.2  # corners by cornerSubPix: 0.2049
    assert fit.x[:4] == pytest.approx([189.910, 189.771, 318.724, 319.488], abs=0.5)
    assert fit.x[4:8] == pytest.approx([-0.017135, 0.018802, -0.008771, 0.000477], abs=5e-3)
    assert np.degrees(theta.max()) == pytest.approx(92.5, abs=0.1)
    beyond = [views.names[v] for v in range(V) if theta[v].max() > np.pi / 2]
    assert beyond == ["4.jpg", "5.jpg"]


@pytest.mark.slow
def test_fisheye_chess_with_opencv(real_data):
    """OpenCV's fisheye model ends at 90 degrees: without the two views beyond, its own fit agrees."""
    views = detect(real_data("fisheye_chess"), chessboard((6, 4)))
    within = [v for v, name in enumerate(views.names) if name not in ("4.jpg", "5.jpg")]
    K = np.array([[190.0, 0, 320], [0, 190, 320], [0, 0, 1]])  # OpenCV's own start fails on this field of view
    flags = 0
    for name in ("RECOMPUTE_EXTRINSIC", "FIX_SKEW", "USE_INTRINSIC_GUESS"):
        # OpenCV 5 moved the constants out of cv2.fisheye, with other values
        flags |= getattr(cv2.fisheye, f"CALIB_{name}", None) or getattr(cv2, f"CALIB_{name}")
    rms, K, *_ = cv2.fisheye.calibrate(
        [views.points3d[views.mask[v]].numpy()[None] for v in within],
        [views.points2d[v, views.mask[v]].numpy()[None] for v in within],
        views.image_size,
        K,
        np.zeros((4, 1)),
        flags=flags,
        criteria=(cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 200, 1e-10),
    )
    assert rms < 0.195  # corners by cornerSubPix: 0.1995
    assert K[[0, 1, 0, 1], [0, 1, 2, 2]] == pytest.approx([190.15, 190.01, 318.57, 319.82], abs=0.5)


# --- images made here ---


@pytest.mark.slow
def test_corners_of_a_drawn_board(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), board_image())
    views = detect(tmp_path, chessboard((6, 4), 2.0))
    # (0, 0) is the centre of the first pixel, so the edge between pixels 149 and 150 lies at 149.5
    expected = torch.tensor([100.0, 80]) + 50 * (views.points3d[:, :2] / 2 + 1) - 0.5
    found = views.points2d[0]
    if (found[0] - expected[0]).norm() > 1:  # this board looks the same turned by 180 degrees
        found = found.flip(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert views.points3d[:7].tolist() == [*([2.0 * i, 0, 0] for i in range(6)), [0, 2, 0]]


@pytest.mark.slow
def test_what_is_left_out_and_why(tmp_path):
    cv2.imwrite(str(tmp_path / "view10.png"), board_image())
    cv2.imwrite(str(tmp_path / "view2.png"), board_image(origin=(150, 100)))
    cv2.imwrite(str(tmp_path / "view3.png"), board_image(size=(800, 600)))
    cv2.imwrite(str(tmp_path / "view4.png"), board_image(corners=(6, 3)))
    (tmp_path / "notes.txt").write_text("no image, and no matter")
    views = detect(tmp_path, chessboard((6, 4)))
    assert views.names == ("view2.png", "view10.png")
    assert views.left_out == (
        ("view3.png", "image size (800, 600), most images have (640, 480)"),
        ("view4.png", "no full board of 6 x 4 inner corners found"),
    )
    cv2.imwrite(str(tmp_path / "view1.png"), board_image(size=(400, 280), origin=(20, 20)))  # a thumbnail in front
    assert torch.equal(detect(tmp_path, chessboard((6, 4))).points2d, views.points2d)
    listed = detect([tmp_path / "view10.png", str(tmp_path / "view2.png")], chessboard((6, 4)))
    assert listed.names == ("view10.png", "view2.png")
    assert torch.equal(listed.points2d, views.points2d.flip(0))


def test_detect_errors(tmp_path):
    board = chessboard((9, 6))
    with pytest.raises(FileNotFoundError, match="missing: no such folder"):
        detect(tmp_path / "missing", board)
    with pytest.raises(FileNotFoundError, match=r"a\.png: a file wanted"):
        detect([tmp_path / "a.png"], board)
    with pytest.raises(ValueError, match=r"images .* wanted, found none"):
        detect(tmp_path, board)
    with pytest.raises(ValueError, match="found an empty list"):
        detect([], board)
    cv2.imwrite(str(tmp_path / "a.png"), board_image())
    with pytest.raises(ValueError, match=r"9 x 6 inner corners wanted .* found in none of 1: inner corners lie"):
        detect(tmp_path, board)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: an image wanted, found 8 bytes"):
        detect(tmp_path, board)


@pytest.mark.slow
def test_a_board_that_is_part_of_a_larger_one_is_pointed_out(tmp_path):
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), board_image((9, 6), square=40, origin=(60 + 30 * i, 70)))
    for stated in ((8, 6), (9, 5)):
        said = [*detect(tmp_path, chessboard(stated)).notes] if found(tmp_path, stated) else [none(tmp_path, stated)]
        assert any("full board of 9 x 6 inner corners" in note for note in said)
    assert detect(tmp_path, chessboard((9, 6))).notes == ()


def found(folder, corners):
    return any(chessboard(corners).detect(cv2.imread(str(path), 0)) for path in folder.iterdir())


def none(folder, corners):
    with pytest.raises(ValueError, match="found in none of 2") as error:
        detect(folder, chessboard(corners))
    return str(error.value)


def test_each_size_of_image_is_a_camera(tmp_path):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"a{i}.png"), board_image(origin=(100 + 20 * i, 80)))
    cv2.imwrite(str(tmp_path / "b0.png"), board_image(size=(800, 600)))
    cv2.imwrite(str(tmp_path / "b1.png"), board_image(corners=(3, 3), size=(800, 600)))
    one, two = detect_cameras(tmp_path, chessboard((6, 4)))
    assert (one.image_size, one.names) == ((640, 480), ("a0.png", "a1.png", "a2.png"))
    assert (two.image_size, two.names) == ((800, 600), ("b0.png",))
    assert two.left_out == (("b1.png", "no full board of 6 x 4 inner corners found"),)


# --- two cameras ---


def rig_views(corners, turned):
    """What two cameras 120 mm apart see of a board in four poses, `turned` by 180 degrees in some of the second."""
    points3d = chessboard_points(corners, 30.0)
    K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    step = torch.randn(4, 6, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 0.2, 0.3, 30, 30, 50])
    target = se3.from_rotvec_t(step + torch.tensor([0, 0, 0, -60, -40, 700]))
    rig = se3.from_rotvec_t(torch.tensor([0.02, -0.2, 0.03, -120, 0, 0], dtype=torch.float64))
    one, two = (project(points3d, poses, K) for poses in (target, rig @ target))
    for v in turned:
        two[v] = two[v].flip(0)
    views = [
        Views(seen, seen[..., 0] > -1e9, points3d, (640, 480), tuple(f"{name}{v:02d}.jpg" for v in range(4)))
        for name, seen in (("left", one), ("right", two))
    ]
    return *views, K.expand(2, 3, 3), rig


def some(views, which):
    names = tuple(views.names[v] for v in which)
    return dataclasses.replace(views, points2d=views.points2d[which], mask=views.mask[which], names=names)


@pytest.mark.parametrize("corners", [(6, 4), (5, 3)])
def test_a_board_that_is_symmetric_is_the_same_way_in_both_cameras(corners):
    one, two, K, rig = rig_views(corners, turned=(1, 2))
    both = in_rig([one, some(two, [3, 1, 2])], chessboard(corners, 30.0))
    assert both.names == one.names
    assert both.mask[1].any(1).tolist() == [False, True, True, True]
    found = stereo_rig(both.points2d[:, 1:], both.points3d, K)
    torch.testing.assert_close(found.x[0][0], rig, rtol=0, atol=1e-6)


def test_a_frame_that_the_first_camera_misses_is_a_frame():
    one, two, *_ = rig_views((6, 5), turned=())
    both = in_rig([some(one, [0, 2]), two], chessboard((6, 5), 30.0))
    assert both.names == ("left00.jpg", "left02.jpg", "right01.jpg", "right03.jpg")
    assert both.mask.any(2).tolist() == [[True, True, False, False], [True] * 4]


def test_a_board_with_a_way_of_its_own_is_left_as_it_was_found():
    one, two, *_ = rig_views((6, 5), turned=(1,))
    assert in_rig([one, two], chessboard((6, 5), 30.0)).points2d[1].equal(two.points2d)


def test_what_does_not_belong_together_is_named():
    one, two, *_ = rig_views((6, 4), turned=())
    board = chessboard((6, 4), 30.0)
    with pytest.raises(ValueError, match="views of a full board of 4 x 5 inner corners wanted"):
        in_rig([one, two], chessboard((4, 5), 30.0))
    with pytest.raises(ValueError, match="names: other numbers for each view wanted"):
        in_rig([one, dataclasses.replace(two, names=("a1", "b1", "c2", "c3"))], board)
    quarter = torch.stack([-two.points2d[..., 1], two.points2d[..., 0]], -1)
    with pytest.raises(ValueError, match=r"left00\.jpg, right00\.jpg: rows of the board within 60 degrees"):
        in_rig([one, dataclasses.replace(two, points2d=quarter)], board)
