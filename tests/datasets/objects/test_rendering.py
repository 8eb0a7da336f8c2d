import cv2
import numpy as np
import pytest

from datasets.objects import rendering
from datasets.objects.meshes import superquadric
from datasets.objects.rendering import Light, render, render_depth
from datasets.ply import Mesh

K = np.array([[500.0, 0, 79.3], [0, 510, 61.8], [0, 0, 1]])
SIZE = (160, 120)
NO_LIGHT: tuple[Light, ...] = ()


def square(u0, u1, v0, v1, z, color=(255, 255, 255), K=K):
    """A square of constant depth that covers the pixel coordinates [u0, u1] x [v0, v1]."""
    corners = np.array([(u0, v0, 1), (u1, v0, 1), (u1, v1, 1), (u0, v1, 1)])
    return Mesh(z * corners @ np.linalg.inv(K).T, np.array([[0, 1, 2], [0, 2, 3]]), np.tile(np.uint8(color), (4, 1)))


def ball(radius):
    return superquadric(np.full(3, radius), np.ones(2), np.full((1, 3), 200.0), np.random.default_rng(0))


def at(x, y, z):
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def rays(K, size=SIZE):
    v, u = np.indices(size[::-1])
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T


def tilted(seed):
    """A rotation about a random axis by a random angle, and a shift in front of the camera."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    pose = at(*rng.uniform(-30, 30, 2), rng.uniform(600, 800))
    pose[:3, :3] = Rotation.random(rng=rng).as_matrix()
    return pose


@pytest.mark.parametrize("skew", [0.0, 40.0])
def test_depth_of_a_tilted_plane_is_that_of_its_equation(skew):
    matrix = K + skew * np.eye(3)[[0]].T * np.eye(3)[1]
    normal, distance = np.array([0.3, -0.5, 0.8]), 400.0
    e = np.linalg.svd(normal[None])[2][1:] * 3000
    corners = normal * distance / (normal @ normal) + np.stack([e[0] + e[1], e[0] - e[1], -e[0] - e[1], e[1] - e[0]])
    depth, index = render_depth([Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))], np.eye(4)[None], matrix, SIZE)
    assert depth.dtype == np.float32
    assert index.dtype == np.int16
    assert depth.shape == index.shape == (120, 160)
    np.testing.assert_allclose(depth, distance / (rays(matrix) @ normal), rtol=2e-6)
    assert (index == 0).all()


def test_depth_and_outline_of_a_sphere_are_those_of_its_equation():
    """The outline is right to a few hundredths of a pixel, which a grid shifted by a part of one is not."""
    centre, radius = np.array([40.0, -25, 700]), 60.0
    depth, index = render_depth([ball(radius)], at(*centre)[None], K, SIZE)
    d = rays(K)
    b, a = d @ centre, (d * d).sum(-1)
    inside = b * b - a * (centre @ centre - radius**2)
    near = (b - np.sqrt(inside.clip(0))) / a
    wrong = (index == 0) != (inside > 0)
    assert wrong.sum() < 0.01 * (inside > 0).sum()
    face_on = inside > 0.3 * inside.max()
    assert np.abs(depth - near)[face_on].max() < 0.5  # a chord of 48 to a turn lies so much below its arc
    mean = lambda mask: np.argwhere(mask).mean(0)
    assert np.abs(mean(index == 0) - mean(inside > 0)).max() < 0.05


def test_a_pixel_is_covered_when_its_centre_is():
    mesh = square(10.25, 20.25, 30.6, 33.4, 500)
    depth, index = render_depth([mesh], np.eye(4)[None], K, SIZE)
    wanted = np.zeros((120, 160), bool)
    wanted[31:34, 11:21] = True
    np.testing.assert_array_equal(index == 0, wanted)
    np.testing.assert_allclose(depth[wanted], 500, rtol=1e-6)
    assert (depth[~wanted] == 0).all()
    assert (index[~wanted] == -1).all()


def test_what_a_pixel_shows_is_how_much_of_it_is_covered():
    """Half of column 10 and half of column 20, where two of the four rays hit; in linear light."""
    mesh = square(10.1, 19.9, 30.5, 40.5, 500)
    color = render([mesh], np.eye(4)[None], K, SIZE, NO_LIGHT, ambient=1.0).color
    half = np.rint(255 * np.sqrt(0.5))
    assert color[35, [9, 10, 11, 19, 20, 21], 0].tolist() == [0, half, 255, 255, half, 0]
    assert color[[30, 31, 40, 41], 15, 1].tolist() == [0, 255, 255, 0]


def test_the_nearest_of_many_meshes_is_seen():
    meshes = [ball(40), square(-50, 250, -50, 250, 690), ball(30)]
    poses = np.stack([at(0, 0, 700), np.eye(4), at(20, 0, 640)])
    depth, index = render_depth(meshes, poses, K, SIZE)
    alone = np.stack([render_depth([m], p[None], K, SIZE)[0] for m, p in zip(meshes, poses, strict=True)])
    alone[alone == 0] = np.inf
    np.testing.assert_array_equal(depth, alone.min(0))
    np.testing.assert_array_equal(index, alone.argmin(0))
    assert set(np.unique(index)) == {0, 1, 2}


def test_what_is_behind_the_camera_is_not_seen_and_a_floor_below_it_is():
    _, index = render_depth([ball(40)], at(0, 0, -700)[None], K, SIZE)
    assert (index == -1).all()
    floor = Mesh(5000.0 * np.array([(-1, 0, -1), (1, 0, -1), (1, 0, 1), (-1, 0, 1)]), np.array([[0, 1, 2], [0, 2, 3]]))
    depth, index = render_depth([floor], at(0, 100, 0)[None], K, SIZE)
    down = rays(K)[..., 1]
    wanted = np.where(down > 100 / 5000, 100 / np.where(down > 0, down, 1), 0)
    np.testing.assert_array_equal(index == 0, wanted > 0)
    np.testing.assert_allclose(depth, wanted, rtol=1e-5)


def test_a_mesh_that_moves_against_its_pose_stays_where_it_is():
    mesh, pose, move = ball(50), tilted(0), tilted(1)
    moved = Mesh(mesh.vertices @ move[:3, :3].T + move[:3, 3], mesh.faces, mesh.colors)
    depth, index = render_depth([mesh], pose[None], K, SIZE)
    depth2, index2 = render_depth([moved], (pose @ np.linalg.inv(move))[None], K, SIZE)
    assert (index != index2).sum() <= 2
    both = (index == 0) & (index2 == 0)
    assert both.sum() > 1000
    assert np.abs(depth - depth2)[both].max() < 0.01


def test_nothing_gives_the_background():
    background = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    picture = render([], np.zeros((0, 4, 4)), K, SIZE, background=background)
    np.testing.assert_array_equal(picture.color, background)
    assert (picture.depth == 0).all()
    assert (picture.which == -1).all()


def test_a_picture_has_the_depth_of_the_depth_map_and_the_background_beside_it():
    meshes, poses = [ball(40), ball(25)], np.stack([at(0, 0, 700), at(30, 10, 600)])
    background = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    picture = render(meshes, poses, K, SIZE, background=background)
    depth, index = render_depth(meshes, poses, K, SIZE)
    np.testing.assert_array_equal(picture.depth, depth)
    np.testing.assert_array_equal(picture.which, index)
    beside = cv2.dilate((index >= 0).astype(np.uint8), np.ones((3, 3))) == 0
    np.testing.assert_array_equal(picture.color[beside], background[beside])


def test_colours_are_interpolated_between_vertices():
    mesh = square(0, 100, 0, 100, 500)._replace(colors=np.uint8([[0] * 3, [255] * 3, [255] * 3, [0] * 3]))
    color = render([mesh], np.eye(4)[None], K, SIZE, NO_LIGHT, ambient=1.0).color
    u = np.arange(1, 100)
    np.testing.assert_allclose(color[50, 1:100, 2], 255 * np.sqrt(u / 100), atol=0.6)


def test_a_mesh_without_colours_is_grey():
    mesh = square(0, 100, 0, 100, 500)._replace(colors=None)
    color = render([mesh], np.eye(4)[None], K, SIZE, NO_LIGHT, ambient=1.0).color
    assert len(np.unique(color[10:90, 10:90])) == 1
    assert 100 < color[50, 50, 0] < 255


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.2, 1.7])
def test_brightness_follows_the_cosine_of_the_light(angle):
    mesh = square(0, 100, 0, 100, 500)
    light = Light(7.0 * np.array([np.sin(angle), 0, -np.cos(angle)]), np.array([0.5, 0.3, 0.1]))
    ambient = np.array([0.05, 0.1, 0.2])
    picture = render([mesh], np.eye(4)[None], K, SIZE, [light], ambient, specular=0)
    wanted = 255 * np.sqrt(ambient + max(np.cos(angle), 0) * light.color)
    np.testing.assert_allclose(picture.color[50, 50], wanted, atol=0.6)


def test_a_highlight_is_where_the_mirror_shows_the_light():
    """Blinn: brightest where the normal halves the angle between light and view."""
    mesh, n = square(-100, 300, -100, 300, 500, (60, 60, 60)), np.array([0, 0, -1.0])
    view = -rays(K)[70, 40] / np.linalg.norm(rays(K)[70, 40])
    light = Light(2 * (n @ view) * n - view, np.ones(3))
    color = render([mesh], np.eye(4)[None], K, SIZE, [light], 0.1, specular=0.5, shininess=2000).color[..., 0]
    brightest = np.argwhere(color == color.max()).mean(0)
    np.testing.assert_allclose(brightest, (70, 40), atol=1)
    assert color.max() > color[10, 150] + 30


def test_a_ball_throws_its_shadow_where_the_light_has_it():
    wall, z, radius = square(-200, 400, -200, 400, 800), 800.0, 10.0
    centre, direction = np.array([-30.0, 0, 700]), np.array([-0.5, 0.2, -1])
    picture = render(
        [wall, ball(radius)], np.stack([np.eye(4), at(*centre)]), K, SIZE, [Light(direction, np.ones(3))], 0
    )
    points = rays(K) * z
    along = direction / np.linalg.norm(direction)
    off = points - centre
    distance = np.linalg.norm(off - (off @ along)[..., None] * along, axis=-1)
    near_ball = cv2.dilate((picture.which == 1).astype(np.uint8), np.ones((3, 3))) > 0
    on_wall, brightness = ~near_ball, picture.color[..., 0]
    pixel = z / K[0, 0]  # the edge of a shadow is as soft as that
    dark = on_wall & (distance < radius - pixel)
    lit = on_wall & (distance > radius + pixel)
    assert dark.sum() > 30
    assert brightness[dark].max() == 0
    assert brightness[lit].min() > 200


def test_normals_are_smooth_where_faces_share_vertices():
    """A ball of 48 x 24 faces under one light is as a ball: brightness is the cosine at each place."""
    centre, radius = np.array([0.0, 0, 700]), 60.0
    light = Light(np.array([-1.0, -1, -2]), np.ones(3))
    pose = at(*centre)
    pose[:3, :3] = [(1, 0, 0), (0, 0, 1), (0, -1, 0)]  # its poles, where faces do not share them, at the outline
    picture = render([ball(radius)], pose[None], K, SIZE, [light], 0, specular=0)
    points = rays(K) * picture.depth[..., None]
    normals = (points - centre) / radius
    cosine = normals @ light.direction / np.linalg.norm(light.direction)
    see = (picture.which == 0) & (cosine > 0.3) & (normals[..., 2] < -0.3)
    assert see.sum() > 2000
    found = np.square(picture.color[see][:, 0] / 255) / np.square(200 / 255)
    assert np.abs(found - cosine[see]).max() < 0.03


def test_the_same_call_gives_the_same_picture_whether_or_not_the_mesh_was_seen_before():
    meshes, poses = [ball(40), ball(25)], np.stack([tilted(3), at(30, 10, 600)])
    first = render(meshes, poses, K, SIZE)
    again = render(meshes, poses, K, SIZE)
    rendering._caster.cache_clear()
    fresh = render(meshes, poses, K, SIZE)
    for a, b, c in zip(first, again, fresh, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_a_mesh_that_is_changed_in_place_is_seen_changed():
    mesh = square(10, 20, 10, 20, 500)
    assert render_depth([mesh], np.eye(4)[None], K, SIZE)[0][15, 15] == pytest.approx(500, rel=1e-6)
    mesh.vertices[:] *= 2
    assert render_depth([mesh], np.eye(4)[None], K, SIZE)[0][15, 15] == pytest.approx(1000, rel=1e-6)


GOOD = square(0, 10, 0, 10, 500)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": np.eye(4)}, r"poses: .*\(1, 4, 4\) wanted, found shape \(4, 4\)"),
        ({"poses": np.full((1, 4, 4), np.nan)}, "poses: finite"),
        ({"poses": np.zeros((1, 4, 4))}, "poses: .*invert"),
        ({"K": np.eye(4)}, r"K: \(3, 3\)"),
        ({"K": np.diag([0.0, 1, 1])}, "K: .*focal lengths positive"),
        ({"K": np.diag([2.0, 2, 2])}, r"K: .*third row \(0, 0, 1\)"),
        ({"size": (0, 5)}, r"size: .*found \(0, 5\)"),
        ({"meshes": [GOOD._replace(faces=np.array([[0, 1, 4]]))]}, r"meshes\[0\]: faces of its 4 vertices"),
        ({"meshes": [GOOD._replace(faces=np.array([[0, 1, -1]]))]}, r"meshes\[0\]: faces of its 4 vertices"),
        ({"meshes": [GOOD._replace(vertices=np.full((4, 3), np.nan))]}, r"meshes\[0\]: finite"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"meshes": [GOOD], "poses": np.eye(4)[None], "K": K, "size": SIZE} | change
    for draw in (render, render_depth):
        with pytest.raises(ValueError, match=message):
            draw(**arguments)


def test_a_background_of_another_size_or_kind_is_named():
    for background in (np.zeros((160, 120, 3), np.uint8), np.zeros((120, 160, 3))):
        with pytest.raises(ValueError, match=r"background: uint8 of shape \(120, 160, 3\) wanted"):
            render([GOOD], np.eye(4)[None], K, SIZE, background=background)
