"""Four small objects, made of formulas and coloured by them, whose symmetries are known: for generated pictures.

Millimetres; z is up, and the origin is the centre of the box around the object, as BOP's models have it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from datasets.ply import Mesh

__all__ = ["Solid", "solids", "superquadric"]

Field = Callable[[np.ndarray], np.ndarray]
"""Values (...,) at points (...,3)."""


class Solid(NamedTuple):
    """A mesh and what leaves it the same: `turns` rotations about z (1: none, 0: every one)."""

    name: str
    mesh: Mesh
    turns: int


@cache
def solids() -> dict[int, Solid]:
    """The objects by BOP id. 1 cat and 2 box have no symmetry; 3 bottle: any turn about z; 4 clamp: half a turn."""
    return {1: Solid("cat", _cat(), 1), 2: Solid("box", _box(), 1), 3: Solid("bottle", _bottle(), 0), 4: _clamp()}


def superquadric(radii: np.ndarray, roundness: np.ndarray, colors: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A ball, box, cylinder or what lies between (Barr, IEEE CG&A 1981), patched with the given colours (C,3).

    radii (3,) in mm; roundness (2,), pole to pole and around: 1 a ball's, towards 0 a box's.
    """
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 25)[:, None]
    longitude = np.linspace(-np.pi, np.pi, 48, endpoint=False)[None]
    power = lambda x, e: np.sign(x) * np.abs(x) ** e
    ring = power(np.cos(latitude), roundness[0])
    x, y = ring * power(np.cos(longitude), roundness[1]), ring * power(np.sin(longitude), roundness[1])
    z = np.broadcast_to(power(np.sin(latitude), roundness[0]), x.shape)
    vertices = (np.stack([x, y, z], -1) * radii).reshape(-1, 3)
    levels = _noise(rng, 1.5 * radii.mean())(vertices)
    which = np.searchsorted(np.quantile(levels, np.linspace(0, 1, len(colors) + 1)[1:-1]), levels)
    return Mesh(vertices, _grid_faces(25, 48, closed=True), colors[which].astype(np.uint8))


def _noise(rng: np.random.Generator, wavelength: float, waves: int = 24) -> Field:
    """A smooth random field of about unit variance: cosines of random directions and phases."""
    k = rng.normal(size=(waves, 3)) * (2 * np.pi / wavelength / np.sqrt(3))
    phase = rng.uniform(0, 2 * np.pi, waves)
    return lambda p: np.cos(p @ k.T + phase).sum(-1) * np.sqrt(2 / waves)


def _grid_faces(rows: int, columns: int, closed: bool = False) -> np.ndarray:
    """Faces (F,3) of a grid of vertices; closed: the last column meets the first."""
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij")
    right = (j + 1) % columns
    a, b, c, d = (
        x.ravel() for x in (i * columns + j, i * columns + right, (i + 1) * columns + right, (i + 1) * columns + j)
    )
    return np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])


def _centred(vertices: np.ndarray) -> np.ndarray:
    return vertices - (vertices.min(0) + vertices.max(0)) / 2


# Solids of a signed distance -------------------------------------------------------------------------------------


def _ellipsoid(centre: Sequence[float], radii: Sequence[float]) -> Field:
    def distance(p: np.ndarray) -> np.ndarray:  # to first order in the distance
        q = (p - centre) / radii
        a, b = np.linalg.norm(q, axis=-1), np.linalg.norm(q / radii, axis=-1)
        return a * (a - 1) / b.clip(1e-9)

    return distance


def _limb(start: Sequence[float], end: Sequence[float], radii: tuple[float, float]) -> Field:
    """A stick that thins from one radius to the other."""
    a, along = np.array(start), np.subtract(end, start)

    def distance(p: np.ndarray) -> np.ndarray:
        s = ((p - a) @ along / (along @ along)).clip(0, 1)
        return np.linalg.norm(p - a - s[..., None] * along, axis=-1) - (radii[0] + s * (radii[1] - radii[0]))

    return distance


def _block(centre: Sequence[float], half: Sequence[float], radius: float) -> Field:
    def distance(p: np.ndarray) -> np.ndarray:
        q = np.abs(p - centre) - np.subtract(half, radius)
        return np.linalg.norm(q.clip(0), axis=-1) + q.max(-1).clip(max=0) - radius

    return distance


def _blend(parts: Sequence[Field], width: float) -> Field:
    """The union of solids, its creases rounded over about `width`."""
    return lambda p: -width * np.logaddexp.reduce([-part(p) / width for part in parts], axis=0)


def _surface(field: Field, low: Sequence[float], high: Sequence[float], step: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of the surface field = 0, by surface nets (Gibson, MICCAI 1998).

    A vertex in every cell of a grid that the surface crosses: the mean of the crossings of its edges, then moved onto
    the surface. A quadrilateral for every edge that it crosses.
    """
    axes = [a + step * np.arange(int(np.ceil((b - a) / step)) + 1) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values = np.stack([field(plane) for plane in points])
    cells = np.array(values.shape) - 1
    total, count = np.zeros((*cells, 3)), np.zeros(cells)
    crossings = []
    for axis in range(3):
        a, b = np.delete(values, -1, axis), np.delete(values, 0, axis)
        at = np.argwhere((a < 0) != (b < 0))
        a, b = a[tuple(at.T)], b[tuple(at.T)]
        where = points[tuple(at.T)]
        where[:, axis] += step * a / (a - b)
        u, v = (axis + 1) % 3, (axis + 2) % 3
        around = np.repeat(at[:, None], 4, axis=1)  # the four cells around the edge, in the sense of a right hand
        around[:, [1, 2], u] -= 1
        around[:, [2, 3], v] -= 1
        for k in range(4):
            np.add.at(total, tuple(around[:, k].T), where)
            np.add.at(count, tuple(around[:, k].T), 1)
        crossings.append(np.where((a < 0)[:, None, None], around, around[:, ::-1]))
    used = count > 0
    number = np.cumsum(used).reshape(used.shape) - 1
    vertices = total[used] / count[used][:, None]
    for _ in range(3):
        h = 1e-3 * np.eye(3)
        slope = np.stack([field(vertices + d) - field(vertices - d) for d in h], -1) / 2e-3
        move = field(vertices)[:, None] * slope / np.square(slope).sum(-1, keepdims=True).clip(1e-6)
        vertices -= move.clip(-step / 2, step / 2)
    quads = number[tuple(np.moveaxis(np.concatenate(crossings), -1, 0))]
    return vertices, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _paint(colors: np.ndarray, where: np.ndarray, color: Sequence[int]) -> None:
    colors[where] = color


def _cat() -> Mesh:
    rng = np.random.default_rng(1)
    head = _ellipsoid((45, 9, 33), (23, 23, 21))
    tail = [(-36, 2, 8), (-54, 0, 16), (-62, -12, 32), (-58, -28, 46), (-48, -36, 58)]
    parts = [
        _ellipsoid((0, 0, 0), (42, 25, 26)),
        _ellipsoid((24, 2, 4), (22, 22, 24)),
        head,
        _ellipsoid((65, 14, 26), (10, 10, 8)),
        _limb((42, -6, 46), (38, -13, 62), (9, 2)),
        _limb((36, 23, 46), (31, 31, 61), (9, 2)),
        _limb((26, 13, -12), (31, 15, -44), (11, 8)),
        _limb((26, -13, -12), (24, -15, -44), (11, 8)),
        _limb((-26, 13, -8), (-33, 16, -44), (15, 9)),
        _limb((-26, -13, -8), (-26, -17, -44), (15, 9)),
    ]
    parts += [_limb(a, b, (7.5 - i, 6.5 - i)) for i, (a, b) in enumerate(pairwise(tail))]
    p, faces = _surface(_blend(parts, 2.5), (-80, -55, -60), (85, 50, 75), 2.0)
    x, y, z = p.T
    large, fine = _noise(rng, 45)(p), _noise(rng, 9)(p)
    colors = np.tile([214, 132, 58], (len(p), 1))
    _paint(colors, large > 0.5, (70, 46, 38))
    _paint(colors, (y < -12) & (large < -0.3) & (x < 30), (60, 70, 84))
    _paint(colors, (np.sin(x / 2.6 + 0.9 * fine) > 0.35) & (z > 8) & (x < 22), (110, 58, 26))
    _paint(colors, z < -14 + 3 * fine, (238, 226, 204))
    _paint(colors, z < -44, (60, 44, 40))
    in_head = head(p) < 6
    _paint(colors, in_head & (y > 10 + 1.5 * fine), (240, 234, 222))
    _paint(colors, in_head & (np.abs(large - 0.2) < 0.25), (120, 66, 30))
    _paint(colors, (np.linalg.norm(p - (65, 14, 26), axis=-1) < 12), (246, 240, 230))
    _paint(colors, np.linalg.norm(p - (75, 16, 29), axis=-1) < 4.5, (226, 110, 120))
    for centre in ((64, 1, 39), (60, 23, 39)):
        _paint(colors, np.linalg.norm(p - centre, axis=-1) < 6.5, (60, 150, 70))
        _paint(colors, np.linalg.norm(p - centre, axis=-1) < 4.0, (16, 16, 18))
    neck = (p - (30, 5, 16)) @ np.array([0.70, 0.15, 0.70])
    _paint(colors, (np.abs(neck) < 3.5) & (x > 8) & (x < 55), (36, 70, 190))
    _paint(colors, (x < -40) & (np.sin(z / 3) > 0.2) & (z > 6), (60, 40, 34))
    _paint(colors, z - 0.4 * (30 - x) > 56, (70, 46, 38))
    return Mesh(_centred(p), faces, colors.astype(np.uint8))


def _bottle() -> Mesh:
    outline = np.array(
        [
            (0, 0),
            (30, 0),
            (33, 3),
            (33, 72),
            (31, 82),
            (24, 94),
            (15, 104),
            (12, 112),
            (12, 122),
            (14, 122),
            (14, 136),
            (12, 138),
            (0, 138),
        ]
    )
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(outline, axis=0), axis=-1))])
    s = np.unique(np.concatenate([np.arange(0, length[-1], 2.0), length]))
    r, z = (np.interp(s, length, column) for column in outline.T)
    angle = np.arange(96) * 2 * np.pi / 96
    p = np.stack([r[:, None] * np.cos(angle), r[:, None] * np.sin(angle), np.repeat(z[:, None], 96, 1)], -1)
    colors = np.tile([28, 104, 62], (len(s), 1))
    for low, high, color in (
        (0, 6, (20, 60, 40)),
        (14, 62, (240, 232, 208)),
        (17, 20, (190, 40, 40)),
        (28, 40, (214, 150, 40)),
        (33, 35, (120, 30, 30)),
        (48, 52, (40, 60, 150)),
        (56, 59, (190, 40, 40)),
        (88, 92, (220, 200, 120)),
        (122, 139, (206, 60, 44)),
        (128, 131, (240, 230, 220)),
    ):
        _paint(colors, (z >= low) & (z <= high), color)
    _paint(colors, (z > 137) & (r < 6), (240, 230, 220))
    return Mesh(
        _centred(p.reshape(-1, 3)), _grid_faces(len(s), 96, closed=True), np.repeat(colors, 96, 0).astype(np.uint8)
    )


def _clamp() -> Solid:
    half = [
        _block((22, 0, 0), (30, 11, 14), 4),
        _block((44, 20, 0), (10, 31, 14), 4),
        _block((33, 44, 4), (21, 8, 18), 4),
        _limb((44, -3, 10), (44, -3, 24), (9, 7)),
    ]
    turn = np.array([-1.0, -1.0, 1.0])
    union = _blend([*half, _limb((0, 0, 0), (0, 0, 26), (13, 9))], 1.2)
    field = lambda p: np.minimum(union(p), union(p * turn))
    p, faces = _surface(field, (-61, -61, -23), (61, 61, 41), 2.0)
    x, y, z = p.T
    # (x + iy)^2 is the same at p and half a turn on, and so is every colour that depends on it and z alone
    q = np.stack([(x * x - y * y) / 40, x * y / 20, z], -1)
    rng = np.random.default_rng(4)
    large, fine = _noise(rng, 50)(q), _noise(rng, 22)(q)
    radius = np.hypot(x, y)
    colors = np.tile([236, 186, 30], (len(p), 1))
    _paint(colors, large > 0.2, (44, 46, 52))
    _paint(colors, (fine > 0.9), (214, 214, 210))
    _paint(colors, (radius > 55) & (z > 0), (190, 40, 36))
    _paint(colors, (radius < 15) & (z > 10), (40, 90, 180))
    _paint(colors, z < -12, (120, 124, 130))
    return Solid("clamp", Mesh(_centred(p), faces, colors.astype(np.uint8)), 2)


def _box() -> Mesh:
    """A printed box: each side a grid of its own vertices, so that its edges are sharp."""
    size = np.array([112.0, 74.0, 46.0])
    vertices, faces, colors, first = [], [], [], 0
    for side in range(6):
        axis, sign = side // 2, 1 - 2 * (side % 2)
        normal = sign * np.eye(3)[axis]
        up = np.eye(3)[2 if axis != 2 else 1]
        right = np.cross(up, normal)
        width, height = (float(np.abs(size @ d)) for d in (right, up))
        columns, rows = (round(length / 1.6) + 1 for length in (width, height))
        a, b = np.meshgrid(np.linspace(-width / 2, width / 2, columns), np.linspace(height / 2, -height / 2, rows))
        vertices.append((a[..., None] * right + b[..., None] * up + normal * size[axis] / 2).reshape(-1, 3))
        faces.append(_grid_faces(rows, columns)[:, ::-1] + first)
        colors.append(_print(side, columns, rows).reshape(-1, 3))
        first += rows * columns
    return Mesh(np.concatenate(vertices), np.concatenate(faces), np.concatenate(colors))


def _print(side: int, columns: int, rows: int) -> np.ndarray:
    """What is printed on one side of the box, a colour for each vertex (rows, columns, 3)."""
    import cv2

    paper = ((196, 44, 50), (36, 84, 168), (244, 238, 226), (246, 200, 40), (30, 130, 110), (236, 232, 224))[side]
    ink = ((250, 240, 220), (250, 220, 60), (200, 40, 60), (30, 40, 90), (250, 245, 235), (40, 40, 46))[side]
    other = ((250, 200, 50), (240, 240, 240), (40, 90, 160), (200, 60, 40), (240, 170, 60), (170, 60, 140))[side]
    k = 8  # drawn finer, then averaged
    image = np.full((rows * k, columns * k, 3), paper, np.uint8)
    h, w = image.shape[:2]
    cv2.rectangle(image, (0, int(0.8 * h)), (w, h), other, -1)
    if side % 2:
        cv2.circle(image, (int(0.75 * w), int(0.35 * h)), int(0.22 * min(w, h)), other, -1)
        cv2.circle(image, (int(0.75 * w), int(0.35 * h)), int(0.10 * min(w, h)), ink, -1)
    else:
        corners = np.array([(0.60, 0.62), (0.92, 0.62), (0.84, 0.12)]) * (w, h)
        cv2.fillPoly(image, [corners.astype(np.int32)], other)
    text = ("TEA", "OAT", "MINT", "K7", "SOAP", "24")[side]
    (length, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(0.5 * w / length, 0.4 * h / tall)
    cv2.putText(image, text, (int(0.06 * w), int(0.5 * h)), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 2 * k, cv2.LINE_AA)
    for i in range(2 + side % 3):
        y = int((0.58 + 0.07 * i) * h)
        cv2.line(image, (int(0.07 * w), y), (int((0.3 + 0.08 * ((side + i) % 4)) * w), y), ink, k)
    for i in range(1 + side):
        cv2.rectangle(
            image, (int((0.06 + 0.1 * i) * w), int(0.85 * h)), (int((0.11 + 0.1 * i) * w), int(0.95 * h)), ink, -1
        )
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
