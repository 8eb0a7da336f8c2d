import shutil

import cv2
import numpy as np
import pytest
import torch

from datasets.images.middlebury import read_middlebury
from datasets.images.tracks import find_tracks, link
from geometry import project, triangulate


def rows(*pairs):
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def as_sets(image, place, track):
    """Tracks as sets of (image, place): what is left when numbers and order do not count."""
    return {frozenset(zip(image[track == k], place[track == k], strict=True)) for k in np.unique(track)}


# --- from matches to tracks ---


def test_matches_that_meet_are_one_track():
    image, place, track = link({(0, 1): rows((5, 7), (6, 8)), (1, 2): rows((7, 9)), (0, 2): rows((5, 9))})
    assert image.tolist() == [0, 1, 2, 0, 1]
    assert place.tolist() == [5, 7, 9, 6, 8]
    assert track.tolist() == [0, 0, 0, 1, 1]


def test_a_component_with_two_places_in_an_image_is_dropped_as_a_whole():
    # 0:5 - 1:7 - 2:9 - 0:6 comes back to image 0 elsewhere; 0:1 - 1:1 has nothing to do with it
    matches = {(0, 1): rows((5, 7), (1, 1)), (1, 2): rows((7, 9)), (0, 2): rows((6, 9))}
    assert as_sets(*link(matches)) == {frozenset({(0, 1), (1, 1)})}
    # one image further away it is the same; without the last match it is a track
    matches |= {(2, 3): rows((9, 4)), (3, 4): rows((4, 2))}
    assert as_sets(*link(matches)) == {frozenset({(0, 1), (1, 1)})}
    matches[0, 2] = rows()
    assert frozenset({(0, 5), (1, 7), (2, 9), (3, 4), (4, 2)}) in as_sets(*link(matches))


def test_neither_the_order_of_pairs_nor_their_direction_nor_repetition_matters():
    generator = np.random.default_rng(0)
    matches = {
        (i, j): np.unique(generator.integers(0, 300, (25, 2)), axis=0) for i in range(5) for j in range(i + 1, 5)
    }
    turned = {(j, i): np.concatenate([m, m])[::-1, ::-1] for (i, j), m in reversed(matches.items())}
    found = as_sets(*link(matches))
    assert found == as_sets(*link(turned))
    assert {len(track) for track in found} >= {2, 3}
    assert all(len({image for image, _ in track}) == len(track) for track in found)


def test_no_matches_are_no_tracks():
    assert [len(column) for column in link({})] == [0, 0, 0]
    assert [len(column) for column in link({(0, 1): rows()})] == [0, 0, 0]


# --- images made here: a rough wall seen by cameras in parallel, so that a point moves along its row ---


def texture(seed, size=(360, 480)):
    noise = np.random.default_rng(seed).standard_normal(size)
    smooth = sum(cv2.GaussianBlur(noise, None, s) * s for s in (1.5, 3.0, 6.0))
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture(scope="module")
def wall(tmp_path_factory):
    """Four images; image v shows row y moved to the left by v (8 + 3 (y // 60)) px: steps in depth."""
    folder, whole = tmp_path_factory.mktemp("wall"), texture(0, (360, 700))
    colored = np.stack([whole // 4, whole // 2, whole], axis=-1)  # OpenCV's order: red is strongest
    for v in range(4):
        image = np.concatenate([colored[y : y + 1, (s := v * (8 + 3 * (y // 60))) : s + 480] for y in range(360)])
        cv2.imwrite(str(folder / f"{v + 8}.png"), image)
    return folder


@pytest.mark.slow
def test_a_thumbnail_in_front_does_not_say_how_large_images_are(wall, tmp_path):
    for name in ("8.png", "9.png"):
        shutil.copy(wall / name, tmp_path)
    cv2.imwrite(str(tmp_path / "1.png"), cv2.resize(cv2.imread(str(wall / "8.png")), (120, 90)))
    tracks = find_tracks(tmp_path)
    assert tracks.image_size == (480, 360)
    assert tracks.left_out == (("1.png", "image size (120, 90), most images have (480, 360)"),)


@pytest.mark.slow
def test_a_wall_with_steps(wall):
    tracks = find_tracks(wall)
    assert tracks.names == ("8.png", "9.png", "10.png", "11.png")
    assert tracks.image_size == (480, 360)
    assert tracks.left_out == ()
    assert tracks.points2d.dtype == torch.float64
    length = torch.bincount(tracks.point_index)
    assert length.min() >= 2
    assert (length == 4).sum() > 300
    key = tracks.point_index * 4 + tracks.camera_index
    assert (key.diff() > 0).all()  # sorted, and at most one place in each image
    # where it was in image 0, by the true motion; half of the places stand near a step or come from coarse scales
    x, y = tracks.points2d.unbind(1)
    origin = x + tracks.camera_index * (8 + 3 * (y // 60))
    first = torch.zeros(len(length), dtype=torch.float64).index_add_(0, tracks.point_index, origin) / length
    assert ((origin - first[tracks.point_index]).abs() < 0.5).double().mean() > 0.9
    red, green, blue = tracks.colors.double().unbind(1)
    assert tracks.colors.dtype == torch.uint8
    assert ((red - 2 * green).abs() < 4).all()
    assert ((red - 4 * blue).abs() < 8).all()


def as_named_sets(tracks):
    observations = [set() for _ in range(len(tracks.colors))]
    for v, k, xy in zip(
        tracks.camera_index.tolist(), tracks.point_index.tolist(), tracks.points2d.tolist(), strict=True
    ):
        observations[k].add((tracks.names[v], *xy))
    return set(map(frozenset, observations))


@pytest.mark.slow
def test_the_order_of_the_images_does_not_matter_and_no_random_state_is_touched(wall):
    cv2.setRNGSeed(1)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    drawn = cv2.randu(np.zeros(3), 0, 1).ravel().tolist()
    cv2.setRNGSeed(1)
    paths = [wall / f"{k}.png" for k in (10, 8, 11, 9)]
    tracks = find_tracks(paths)
    assert cv2.randu(np.zeros(3), 0, 1).ravel().tolist() == drawn
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert tracks.names == ("10.png", "8.png", "11.png", "9.png")
    assert as_named_sets(tracks) == as_named_sets(find_tracks(wall))
    again = find_tracks(paths)
    assert all(torch.equal(getattr(tracks, f), getattr(again, f)) for f in ("points2d", "point_index", "colors"))


@pytest.mark.slow
def test_only_the_pairs_asked_for_are_matched(wall):
    tracks = find_tracks(wall, pairs=[(1, 0), (2, 3)])
    images = {frozenset(name for name, *_ in track) for track in as_named_sets(tracks)}
    assert images == {frozenset({"8.png", "9.png"}), frozenset({"10.png", "11.png"})}
    assert find_tracks(wall, pairs=[(0, 1)]).left_out == (
        ("10.png", "no other image matches it"),
        ("11.png", "no other image matches it"),
    )


@pytest.mark.slow
def test_images_that_give_nothing_are_left_out(wall, tmp_path):
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((360, 480, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "small.png"), texture(1, (100, 200)))
    cv2.imwrite(str(tmp_path / "other.png"), texture(2))
    paths = [wall / "8.png", tmp_path / "blank.png", tmp_path / "small.png", tmp_path / "other.png", wall / "9.png"]
    tracks = find_tracks(paths)
    assert [name for name, _ in tracks.left_out] == ["blank.png", "small.png", "other.png"]
    assert [reason[:9] for _, reason in tracks.left_out] == ["0 feature", "image siz", "no other "]
    assert tracks.camera_index.unique().tolist() == [0, 4]
    assert len(tracks.names) == 5
    with pytest.raises(ValueError, match=r"two images that match wanted, found none \(blank.png: 0 features"):
        find_tracks(paths[:2])


def test_errors(wall, tmp_path):
    with pytest.raises(ValueError, match="found none"):
        find_tracks(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        find_tracks([])
    with pytest.raises(ValueError, match="two at least wanted, found 1"):
        find_tracks([wall / "8.png"])
    with pytest.raises(ValueError, match="found one twice"):
        find_tracks([wall / "8.png", wall / "8.png"])
    with pytest.raises(FileNotFoundError, match="absent"):
        find_tracks([wall / "8.png", wall / "absent.png"])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text.png: an image wanted, found 8 bytes"):
        find_tracks([wall / "8.png", tmp_path / "text.png"])
    for pair in ((0, 4), (-1, 2), (1, 1)):
        with pytest.raises(ValueError, match="pairs: two different numbers in 0 … 3 wanted"):
            find_tracks(wall, pairs=[pair])
    for name, value in {"ratio": 0, "threshold": 0, "most_features": 0, "fewest": 7, "contrast": -1e-9}.items():
        with pytest.raises(ValueError, match=rf"ratio in 0 … 1, .* wanted, found .*'{name}': {value}"):
            find_tracks(wall, **{name: value})
    with pytest.raises(ValueError, match="ratio in 0 … 1"):
        find_tracks(wall, ratio=1.01)


# --- real images ---


@pytest.mark.slow
def test_temple_tracks_agree_with_the_true_cameras(real_data):
    views = read_middlebury(real_data("temple_sparse_ring"))
    tracks = find_tracks(views.images)
    assert tracks.left_out == ()
    length = torch.bincount(tracks.point_index)
    assert len(length) > 4000
    assert (length >= 3).sum() > 1500
    assert (length >= 4).sum() > 500
    assert torch.bincount(tracks.camera_index).min() > 250
    points2d = torch.zeros(16, len(length), 2, dtype=torch.float64)
    visible = torch.zeros(16, len(length), dtype=torch.bool)
    where = tracks.camera_index, tracks.point_index
    points2d[where], visible[where] = tracks.points2d, True
    points3d = triangulate(points2d, visible, views.world_to_camera, views.K, torch.zeros(16, 0).double()).x
    error = (project(points3d, views.world_to_camera, views.K) - points2d).norm(dim=-1)[where]
    # a point seen twice has one residual more than unknowns; from three on it says something of all its views
    error = error[length[tracks.point_index] >= 3]
    assert error.median() < 0.25
    for pixels, share in ((1, 0.94), (2, 0.97), (4, 0.98)):
        assert (error < pixels).double().mean() > share
    # the temple is ochre, before black
    red, green, blue = tracks.colors.double().mean(0)
    assert red > green > blue
