"""Pictures of the objects of `datasets.objects.meshes`: pose, light, surroundings and noise, all drawn from a seed."""

from typing import NamedTuple

import numpy as np

from datasets.objects.meshes import solids, superquadric
from datasets.objects.rendering import Light, render, render_depth
from datasets.ply import Mesh

__all__ = ["Frame", "K", "SIZE", "frame", "turn_z"]

SIZE = (320, 240)
"""Width and height of a picture."""
K = np.array([[520.0, 0, 163.4], [0, 518.0, 117.2], [0, 0, 1]])
_DISTANCE = (600.0, 1000.0)  # mm
_LEAST_VISIBLE = 0.4  # of the object's pixels


class Frame(NamedTuple):
    """color (H,W,3) uint8, RGB; depth (H,W) float32, mm; pose (4,4), object to camera in mm.

    mask (H,W) bool: the object as if nothing were before it; mask_visible: what is seen of it.
    """

    color: np.ndarray
    depth: np.ndarray
    pose: np.ndarray
    mask: np.ndarray
    mask_visible: np.ndarray


def frame(seed: int, split: str, number: int, index: int) -> Frame:
    """Picture `index` of object `number` in the split "train" or "test"; the same whenever it is asked for."""
    rng = np.random.default_rng([seed, ("train", "test").index(split), number, index])
    solid = solids()[number]
    pose = _pose(rng, solid.mesh)
    alone, hit = render_depth([solid.mesh], pose[None], K, SIZE)
    mask, covered = hit == 0, np.zeros(hit.shape, bool)
    meshes, poses = [solid.mesh], [pose]

    def add(mesh: Mesh, at: np.ndarray) -> None:
        """Another thing, unless it and those before it leave too little of the object."""
        nonlocal covered
        depth, hit = render_depth([mesh], at[None], K, SIZE)
        after = covered | (mask & (hit == 0) & (depth < alone))
        if after.sum() <= (1 - _LEAST_VISIBLE) * mask.sum():
            covered = after
            meshes.append(mesh)
            poses.append(at)

    if rng.random() < 0.35:
        ground = _ground(rng, solid.mesh)
        meshes.append(ground)
        poses.append(pose)
        for _ in range(rng.integers(2, 6)):
            add(*_bystander(rng, solid.mesh, pose))
    if rng.random() < 0.3:
        add(*_occluder(rng, pose, mask))
    lights, ambient = _lights(rng, pose)
    picture = render(
        meshes,
        np.stack(poses),
        K,
        SIZE,
        lights,
        ambient,
        _image(rng, SIZE),
        specular=rng.uniform(0, 0.35),
        shininess=rng.uniform(8, 60),
    )
    return Frame(_sensor(rng, picture.color), picture.depth, pose, mask, (picture.which == 0) & mask)


def _pose(rng: np.random.Generator, mesh: Mesh) -> np.ndarray:
    """From a viewpoint on the upper hemisphere, uniform, rolled by up to 45 degrees; wholly inside the picture."""
    azimuth, sine, roll = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1), rng.uniform(-np.pi / 4, np.pi / 4)
    cosine = np.sqrt(1 - sine * sine)
    forward = -np.array([cosine * np.cos(azimuth), cosine * np.sin(azimuth), sine])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
    radius, z = np.linalg.norm(mesh.vertices, axis=-1).max(), rng.uniform(*_DISTANCE)
    margin = K.diagonal()[:2] * radius / np.sqrt(z * z - radius * radius) * 1.06 + 2  # a ball's outline, off the axis
    u, v = rng.uniform(margin, np.subtract(SIZE, 1) - margin)
    pose = np.eye(4)
    pose[:3, 3] = z * np.linalg.inv(K) @ (u, v, 1)
    pose[:3, :3] = _towards(pose[:3, 3]) @ turn_z(roll)[:3, :3] @ np.stack([right, np.cross(forward, right), forward])
    return pose


def _towards(direction: np.ndarray) -> np.ndarray:
    """The least rotation (3,3) that takes the z axis there: what is off it would be seen from elsewhere."""
    x, y, z = direction / np.linalg.norm(direction)
    cross = np.array([[0, 0, x], [0, 0, y], [-x, -y, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + z)


def turn_z(angle: float) -> np.ndarray:
    """A rotation about z as (4,4)."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def _thing(rng: np.random.Generator, low: float, high: float) -> Mesh:
    """A ball, box, cylinder or what lies between, of random size and colours."""
    radii, roundness = rng.uniform(low, high, 3), rng.choice([0.15, 0.5, 1.0], 2)
    return superquadric(radii, roundness, _colors(rng, int(rng.integers(1, 4))), rng)


def _turn(rng: np.random.Generator) -> np.ndarray:
    """A uniform rotation as (4,4)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    turn = np.eye(4)
    turn[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return turn


def _bystander(rng: np.random.Generator, mesh: Mesh, pose: np.ndarray) -> tuple[Mesh, np.ndarray]:
    """A thing on the ground beside the object."""
    thing = _thing(rng, 12, 50)
    reach = np.linalg.norm(mesh.vertices[:, :2], axis=-1).max() + np.hypot(*np.abs(thing.vertices[:, :2]).max(0))
    at = turn_z(rng.uniform(0, 2 * np.pi))
    angle, distance = rng.uniform(0, 2 * np.pi), reach + rng.uniform(5, 120)
    low = mesh.vertices[:, 2].min() - thing.vertices[:, 2].min()
    at[:3, 3] = distance * np.cos(angle), distance * np.sin(angle), low
    return thing, pose @ at


def _occluder(rng: np.random.Generator, pose: np.ndarray, mask: np.ndarray) -> tuple[Mesh, np.ndarray]:
    """A thing between the camera and some pixel of the object."""
    rows, columns = np.nonzero(mask)
    pixel = rng.integers(len(rows))
    at = _turn(rng)
    z = pose[2, 3] * rng.uniform(0.6, 0.8)
    at[:3, 3] = z * np.linalg.inv(K) @ (columns[pixel], rows[pixel], 1)
    return _thing(rng, 10, 32), at


def _ground(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """The table that the object stands on, of tiles that a random image colours, in the object's frame."""
    tiles, side = int(rng.integers(20, 60)), 1500.0
    grid = (np.arange(tiles + 1) / tiles - 0.5) * side
    image = _image(rng, (tiles, tiles))
    i, j = (x.ravel() for x in np.indices((tiles, tiles)))
    corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
    flat = np.stack([np.stack([grid[a], grid[b]], -1) for a, b in corners], 1).reshape(-1, 2)
    flat = flat @ turn_z(rng.uniform(0, 2 * np.pi))[:2, :2].T
    first = 4 * np.arange(tiles * tiles)[:, None]
    faces = np.concatenate([first + corner for corner in ([0, 1, 2], [0, 2, 3])])
    z = np.full((len(flat), 1), mesh.vertices[:, 2].min() - 0.2)
    return Mesh(np.concatenate([flat, z], 1), faces, np.repeat(image.reshape(-1, 3), 4, 0))


def _lights(rng: np.random.Generator, pose: np.ndarray) -> tuple[list[Light], np.ndarray]:
    """One or two lights from above the object, tinted, and light from everywhere."""
    lights = []
    for strength in (rng.uniform(0.45, 1.0), rng.uniform(0.1, 0.45))[: rng.integers(1, 3)]:
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1)
        across = np.sqrt(1 - height * height)
        direction = pose[:3, :3] @ (across * np.cos(azimuth), across * np.sin(azimuth), height)
        lights.append(Light(direction, strength * rng.uniform(0.8, 1.1, 3)))
    return lights, rng.uniform(0.2, 0.5) * rng.uniform(0.85, 1.1, 3)


def _image(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random image (H,W,3) uint8: noise of several scales, a gradient, stripes or checkers; often shapes upon it."""
    import cv2

    width, height = size
    y, x = np.indices((height, width), dtype=np.float32) / max(size)
    kind = rng.integers(4)
    first, second = _colors(rng, 2)
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind == 0:
        level = np.full((height, width), 0.5)
        for octave in range(5):
            coarse = rng.normal(size=(2 * 2**octave + 1, 2 * 2**octave + 1))
            level += 0.35 * 0.6**octave * cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    elif kind == 1:
        level = along
    else:
        f, g = rng.uniform(8, 80, 2)
        level = np.sin(f * along + rng.uniform(0, 6)) * (np.sin(g * across) if kind == 3 else 1)
        level = 0.5 + 0.5 * np.tanh(level * rng.uniform(1, 8))
    image = first + (second - first) * level[..., None].clip(0, 1)
    image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        for _ in range(rng.integers(3, 25)):
            centre, reach = rng.uniform((0, 0), size), rng.uniform(0.02, 0.2) * max(size)
            corners = centre + rng.normal(size=(rng.integers(3, 7), 2)) * reach
            color = _colors(rng, 1)[0].tolist()
            if rng.random() < 0.4:
                axes = (rng.uniform(0.3, 1.5, 2) * reach).tolist()
                cv2.ellipse(image, (centre.tolist(), axes, rng.uniform(0, 180)), color, -1, cv2.LINE_AA)
            else:
                cv2.fillConvexPoly(image, cv2.convexHull(corners.astype(np.int32)), color, cv2.LINE_AA)
    return image


def _colors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours (count,3) in 0…255, most of them as dull as those of most things."""
    grey, dullness = rng.uniform(20, 240, (count, 1)), rng.uniform(0, 0.8, (count, 1)) ** 2
    return grey + dullness * (rng.uniform(0, 255, (count, 3)) - grey)


def _sensor(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """What a small camera makes of it: a little blur, exposure and noise."""
    import cv2

    blurred = cv2.GaussianBlur(color, (0, 0), rng.uniform(0.2, 0.8)).astype(np.float32)
    noise = rng.standard_normal(color.shape, dtype=np.float32) * np.float32(rng.uniform(1, 5))
    return np.rint(blurred * rng.uniform(0.85, 1.1) + noise).clip(0, 255).astype(np.uint8)
